// SPDX-License-Identifier: MIT
/**
 * Hooks of every kind on a guest at work, set and removed again and again. A kind is a function that
 * sets some over the work's pages and answers with what removes them; one line in KINDS adds it.
 */
import { HVI_R, HVI_W, HVI_X } from "../../src/bridge/index.ts";
import { ALLOW } from "../../src/ept/gpa-hooks.ts";
import { ACCEPT } from "../../src/ept/integrity.ts";
import { PAGE, SOURCE, TARGET } from "./layout.ts";
import type { Trial } from "./scenario.ts";
import type { Space } from "./space.ts";
import { workload } from "./workload.ts";

const SYSENTER_EIP = 0x176;
/** Pages of the work, and its length. */
const PAGES = 4;
const ROUNDS = 200;

export interface Work {
  readonly t: Trial;
  readonly space: Space;
  /** Linear address of the first page. */
  readonly va: number;
  /** Linear address of a page with code that is called once a round. */
  readonly code: number;
}

export type Kind = (w: Work) => () => void;

/** Reads, writes and fetches by physical address. */
const physical: Kind = ({ t, space, va, code }) => {
  const { hooks } = t.core;
  const gfn = (address: number): number => Math.floor(space.memory.gpaOf(address) / PAGE);
  const set = [
    hooks.add(gfn(va), HVI_W, () => ALLOW),
    hooks.add(gfn(va), HVI_W, () => ALLOW, { start: 100, end: 200, priority: 3 }),
    hooks.add(gfn(va + PAGE), HVI_R, () => ALLOW),
    hooks.add(gfn(code), HVI_X, () => ALLOW),
  ];
  return () => {
    for (const hook of set) hooks.remove(hook);
  };
};

/** Writes of CR3, which each run of a stub makes, of an MSR, and of the descriptor tables' registers. */
const registers: Kind = ({ t }) => {
  const hooks = t.core.registers;
  const set = [
    hooks.addCr(3, () => ALLOW),
    hooks.addMsr(SYSENTER_EIP, () => ALLOW),
    hooks.addXcr(() => ALLOW),
  ];
  return () => {
    for (const hook of set) hooks.remove(hook);
  };
};

/** A region that changes all the time, looked at before it goes. */
const integrity: Kind = ({ t, space, va }) => {
  let changes = 0;
  const region = t.core.integrity.add(space.memory, va, 2 * PAGE, () => {
    changes++;
    return ACCEPT;
  });
  return () => {
    t.core.integrity.check();
    t.check(changes > 0, "the region has not changed");
    if (region) t.core.integrity.remove(region);
  };
};

/** Translations of all pages, and hooks on some that follow them. */
const linear: Kind = ({ t, space, va }) => {
  const { gva, tables } = t.core;
  const watch = tables.watch(space.memory, va, va + PAGES * PAGE, { before: () => ALLOW });
  const set = [
    gva.add(space.memory, va, HVI_W, () => ALLOW, { end: 2 * PAGE }),
    gva.add(space.memory, va + 2 * PAGE, HVI_R, () => ALLOW, { start: 8, end: 16 }),
    gva.add(space.memory, va + 0x100000, HVI_X, () => ALLOW),
  ];
  return () => {
    if (watch) tables.unwatch(watch);
    for (const hook of set) if (hook) gva.remove(hook);
  };
};

/** Code that is other code than one reads. */
const hidden: Kind = ({ t, space, code }) => {
  const { cloaks } = t.core;
  const o = { patched: Uint8Array.of(0x83, 0xc0, 0x02, 0xc3), apply: true };
  const result = cloaks.cloak(space.memory, code, 4, o);
  t.check(result.ok, "the code cannot be hidden");
  t.core.hooks.commit();
  const load = () => t.guest.run("mov4_ld", { ring: 3, space, registers: { si: code } });
  t.same("code as it is read", load().registers[0], 0xc301c083n);
  return () => {
    if (result.ok) cloaks.uncloak(result.cloak);
  };
};

/** Objects of several regions, a monitor of the space, pages watched for code that is written. */
const sets: Kind = ({ t, space, va, code }) => {
  const { objects, monitor, unpacker } = t.core;
  const object = objects.create(space.memory, "soak");
  object.hook(va + 8, PAGE, HVI_W, () => ALLOW);
  object.hook(va + 3 * PAGE, 100, HVI_R, () => ALLOW);
  const watch = monitor.start(space.memory, () => undefined, { range: "user" });
  const page = unpacker.watch(space.memory, code, { unpacked: () => undefined });
  return () => {
    object.destroy();
    if (watch) monitor.stop(watch);
    if (page) unpacker.unwatch(page);
  };
};

export const KINDS: readonly Kind[] = [physical, registers, integrity, linear, hidden, sets];

/** inc %eax; ret */
const INC_RET = Uint8Array.of(0x83, 0xc0, 0x01, 0xc3);

/** The guest's work on its pages, and what they should hold. */
export class Worker {
  readonly work: Work;
  readonly #words = new Uint32Array((PAGES * PAGE) / 4);

  constructor(t: Trial) {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    space.mapNew(va, PAGES);
    const code = SOURCE[t.mode];
    const [frame] = space.mapNew(code, 1);
    t.guest.ram.set(INC_RET, frame);
    this.work = { t, space, va, code };
  }

  /** One round of work in ring 3, with a page swapped out before it. */
  go(round: number): void {
    const { t, space, va, code } = this.work;
    const called = t.guest.run("call_ax", { ring: 3, space, registers: { ax: code } });
    t.same(
      "run of the hidden code",
      Number(BigInt.asUintN(32, called.registers[0] ?? 0n)),
      (code % 2 ** 32) + 2,
    );
    space.swapOut(va + (round % PAGES) * PAGE);
    const registers = { si: va, cx: this.#words.length, dx: ROUNDS, ax: round };
    const done = t.guest.run("workload", { ring: 3, space, registers });
    t.same("exception", done.fault, -1);
    const sum = Number(BigInt.asUintN(32, done.registers[0] ?? 0n));
    t.same(`sum of round ${round}`, sum, workload(this.#words, ROUNDS, round));
  }

  /** What the pages hold is what the work should have left. */
  compare(): void {
    const { t, space, va } = this.work;
    const bytes = new Uint8Array(this.#words.buffer);
    for (let i = 0; i < PAGES; i++) {
      const gpa = space.memory.gpaOf(va + i * PAGE);
      // One may be out.
      if (gpa < 0) continue;
      const same = Buffer.compare(
        t.guest.bytes(gpa, PAGE),
        bytes.subarray(i * PAGE, (i + 1) * PAGE),
      );
      t.same(`page ${i} as the work left it`, same, 0);
    }
  }
}
