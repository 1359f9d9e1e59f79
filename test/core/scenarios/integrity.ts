// SPDX-License-Identifier: MIT
/** Regions that are looked at from time to time. */
import { ACCEPT, type IntegrityVerdict, REVERT } from "../../../src/ept/integrity.ts";
import { PAGE, TARGET } from "../layout.ts";
import { hex, type Scenario, type Trial } from "../scenario.ts";
import type { Space } from "../space.ts";

/** A region over some pages at TARGET, and what it was told. */
function region(t: Trial, pages: number, start: number, length: number) {
  const space = t.guest.space();
  const va = TARGET[t.mode];
  const frames = space.mapNew(va, pages);
  const seen: string[] = [];
  const o = { verdict: ACCEPT as IntegrityVerdict };
  const added = t.core.integrity.add(space.memory, va + start, length, (report) => {
    for (const c of report.changes) {
      seen.push(`${hex(c.offset)}+${c.length}`);
      if (c.current)
        t.same(
          "bytes told",
          toHex(c.current),
          toHex(now(space, va + start + c.offset, c.current.length)),
        );
    }
    return o.verdict;
  });
  if (!added) throw new Error("the region cannot be checked");
  return { space, va, frames, seen, o, added };
}
const toHex = (b: Uint8Array): string => Buffer.from(b).toString("hex");
function now(space: Space, va: number, length: number): Uint8Array {
  const out = new Uint8Array(length);
  space.memory.readPartial(va, out);
  return out;
}

function store(t: Trial, space: Space, va: number, stub: string, ax = 0x5a5a5a5a): void {
  t.same("exception", t.guest.run(stub, { ring: 3, space, registers: { ax, di: va } }).fault, -1);
}

const changes: Scenario = {
  name: "integrity.changes",
  run: (t) => {
    const { space, va, seen, added } = region(t, 3, 0x800, 2 * PAGE);
    t.core.integrity.check();
    t.same("told of nothing", seen.join(), "");
    for (const [offset, stub, should] of [
      [0x7fc, "mov4_st", ""],
      [0x7fe, "mov4_st", "0x0+2"],
      [0x900, "mov1_st", "0x100+1"],
      [PAGE - 2, "mov4_st", "0x7fe+4"],
      [2 * PAGE + 0x7f8, "fst8", "0x1ff8+8"],
      [2 * PAGE + 0x800, "mov4_st", ""],
    ] as const) {
      store(t, space, va + offset, stub);
      t.core.integrity.check();
      t.same(`told of ${stub} at ${hex(offset)}`, seen.splice(0).join(" "), should);
      // Once is enough.
      t.core.integrity.check();
      t.same("told again", seen.join(), "");
    }
    t.core.integrity.remove(added);
    store(t, space, va + 0x900, "mov4_st", 1);
    t.core.integrity.check();
    t.same("told after removal", seen.join(), "");
  },
};

const reverted: Scenario = {
  name: "integrity.reverted",
  run: (t) => {
    const { space, va, frames, seen, o, added } = region(t, 2, PAGE - 16, 32);
    o.verdict = REVERT;
    store(t, space, va + PAGE - 2, "mov4_st");
    t.core.integrity.check();
    t.same("first page", t.guest.memory.read16(frames[0]! + PAGE - 2), 0);
    t.same("second page", t.guest.memory.read16(frames[1]!), 0);
    t.same("told", seen.join(" "), "0xe+4");
    t.core.integrity.remove(added);
  },
};

const swapped: Scenario = {
  name: "integrity.swap-and-remap",
  run: (t) => {
    const { space, va, frames, seen, added } = region(t, 2, 0, 2 * PAGE);
    space.swapOut(va);
    t.core.integrity.check();
    t.same("told while out", seen.join(), "");
    t.same("state", added.state, "skipped");
    // In again with a change.
    store(t, space, va + 8, "mov4_st");
    t.core.integrity.check();
    t.same("told of what came in", seen.splice(0).join(" "), "0x8+4");
    // The same bytes in another frame are no change, others are.
    const frame = t.guest.frame();
    t.guest.ram.set(t.guest.bytes(frames[1]!, PAGE), frame);
    space.map(va + PAGE, frame);
    t.core.integrity.check();
    t.same("told of a copy", seen.join(), "");
    t.guest.memory.write32(frames[1]! + 4, 7);
    space.map(va + PAGE, frames[1]!);
    t.core.integrity.check();
    t.same("told of another frame", seen.splice(0).join(" "), "0x1004+1");
    space.unmap(va + PAGE);
    t.core.integrity.check();
    t.same("told of an absent page", seen.join(), "");
    t.core.integrity.remove(added);
    t.same("regions", t.core.integrity.count, 0);
  },
};

export const integrity: readonly Scenario[] = [changes, reverted, swapped];
