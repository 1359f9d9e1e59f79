// SPDX-License-Identifier: MIT
/** Reads of memory that the guest's pager has taken out. */
import type { SwappedResult } from "../../../src/memory/swapped.ts";
import { PAGE, SOURCE, TARGET } from "../layout.ts";
import type { Scenario, Trial } from "../scenario.ts";
import type { Space } from "../space.ts";

/** The answers so far, and ring 3 at work meanwhile. */
function reader(t: Trial) {
  const results: SwappedResult[] = [];
  /** Ring 3 stores in a loop until there is an answer, or it is over. */
  const work = (space: Space, until: () => boolean): void => {
    t.guest.beginRun("store_loop", {
      ring: 3,
      space,
      registers: { di: SOURCE[t.mode], cx: 2_000_000 },
    });
    let done = false;
    while (!done && !until()) done = t.guest.runFor(20_000);
    if (!done) t.guest.finish();
  };
  const { swapped } = t.core;
  return { swapped, results, work, got: (r: SwappedResult) => results.push(r) };
}

function content(t: Trial, frames: readonly number[]): void {
  for (const [n, pa] of frames.entries()) {
    for (let i = 0; i < PAGE; i++) t.guest.ram[pa + i] = (i * 7 + n) & 0xff;
  }
}
const expected = (from: number, length: number): string =>
  Buffer.from(
    Uint8Array.from({ length }, (_, i) => {
      const at = from + i;
      return ((at % PAGE) * 7 + Math.floor(at / PAGE)) & 0xff;
    }),
  ).toString("hex");

const brought: Scenario = {
  name: "swapped.brought-in",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    content(t, space.mapNew(va, 3));
    space.mapNew(SOURCE[t.mode], 1);
    const { swapped, results, work, got } = reader(t);
    // All there: at once.
    swapped.read(space.memory, va + 10, 20, {}, got);
    t.same("answers", results.length, 1);
    for (const i of [0, 1, 2]) space.swapOut(va + i * PAGE);
    const handle = swapped.read(space.memory, va + PAGE - 100, PAGE + 200, {}, got);
    t.check(handle?.waiting ?? false, "it does not wait");
    work(space, () => results.length > 1);
    const r = results[1];
    t.check(r?.ok === true, `no bytes: ${JSON.stringify(r)}`);
    if (r?.ok) {
      const bytes = Buffer.from(r.bytes).toString("hex");
      t.same("bytes", bytes, expected(PAGE - 100, PAGE + 200));
    }
    t.line(`injected ${swapped.injected} delivered ${swapped.delivered} lost ${swapped.lost}`);
    t.same("pages brought in", Number(t.guest.get64(t.guest.at("page_ins"))), 3);
  },
};

/** The thread that can bring it in runs under the other root of a pair. */
const pairs: Scenario = {
  name: "swapped.root-pairs",
  run: (t) => {
    const va = TARGET[t.mode];
    const kernel = t.guest.space();
    content(t, kernel.mapNew(va, 1));
    kernel.mapNew(SOURCE[t.mode], 1);
    const user = kernel.pair();
    const { swapped, results, work, got } = reader(t);
    t.core.memory.kernelRootOf = (cr3) => (cr3 === user.root ? kernel.root : cr3);
    kernel.swapOut(va);
    swapped.read(kernel.memory, va + 5, 30, {}, got);
    work(user, () => results.length > 0);
    const r = results[0];
    t.check(r?.ok === true, "no bytes");
    if (r?.ok) t.same("bytes", Buffer.from(r.bytes).toString("hex"), expected(5, 30));
    t.line(`injected ${swapped.injected}`);
  },
};

/** Never asked for by us: the guest brings it in when it needs it. */
const waited: Scenario = {
  name: "swapped.waited-for",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    content(t, space.mapNew(va, 1));
    space.mapNew(SOURCE[t.mode], 1);
    const { swapped, results, work, got } = reader(t);
    space.swapOut(va);
    swapped.read(space.memory, va, 16, { inject: false }, got);
    work(space, () => false);
    t.same("answers while out", results.length, 0);
    t.guest.run("mov4_ld", { ring: 3, space, registers: { si: va } });
    work(space, () => results.length > 0);
    t.check(results[0]?.ok === true, "no bytes");
    t.same("injected", swapped.injected, 0);
  },
};

/** Another space runs, the request is taken back, the process ends. */
const never: Scenario = {
  name: "swapped.never",
  run: (t) => {
    const [space, other] = [t.guest.space(), t.guest.space()];
    const va = TARGET[t.mode];
    space.mapNew(va, 2);
    other.mapNew(SOURCE[t.mode], 1);
    const { swapped, results, work, got } = reader(t);
    space.swapOut(va);
    const first = swapped.read(space.memory, va, 16, {}, got);
    swapped.read(space.memory, va + 64, 16, {}, got);
    work(other, () => results.length > 0);
    t.same("answers", results.length, 0);
    t.same("injected into another space", swapped.injected, 0);
    first?.cancel();
    t.same("answers to what was taken back", results.length, 0);
    swapped.cancelSpace(space.root);
    const r = results[0];
    t.same("reason", r?.ok === false ? r.reason : "none", "cancelled");
    t.same("waiting", swapped.waiting, 0);
  },
};

export const swapped: readonly Scenario[] = [brought, pairs, waited, never];
