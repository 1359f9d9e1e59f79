// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import {
  HVI_ACCESS_EXEC,
  HVI_ACCESS_READ,
  HVI_ACCESS_WRITE,
  HVI_R,
  HVI_REPLY_SCRATCH,
  HVI_W,
  HVI_X,
} from "../bridge/index.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { ALLOW, DENY, type HookAction } from "./gpa-hooks.ts";
import type { GvaHook, GvaHookOptions } from "./gva-hooks.ts";
import { entry, space, TablesGuest } from "./tables.fixture.ts";

const GVA = 0x400000;

/** Three pages from GVA on at frames 0x50, 0x60, 0x70, one hook. */
function setup(right: number, action: HookAction = ALLOW, options: GvaHookOptions = {}) {
  const guest = new TablesGuest();
  const tables = new FakeTables(guest.memory, "4level", 0x10000);
  const where = space(tables.root, "4level");
  const leaves = [0x50, 0x60, 0x70].map(
    (gfn, i) => tables.map(GVA + i * 0x1000, gfn * 0x1000).at(-1) as number,
  );
  const calls: number[] = [];
  const hook = guest.gva.add(
    where,
    GVA,
    right,
    (_access, _hook, gva) => {
      calls.push(gva);
      return action;
    },
    options,
  ) as GvaHook;
  guest.hooks.commit();
  return { guest, tables, where, hook, calls, leaf: leaves[0] as number, leaves };
}

test("a hook is asked about the frame behind the page, with the linear address", () => {
  const { guest, hook, calls } = setup(HVI_W, DENY);
  expect(hook.gpa).toBe(0x50000);
  expect(guest.write(0x50123, [1, 2, 3, 4])).toBe(HVI_REPLY_SCRATCH);
  expect(calls).toEqual([GVA + 0x123]);
  expect(guest.memory.read32(0x50123)).toBe(0);
  expect(hook.calls).toBe(1);
});

test.each([
  [HVI_R, HVI_ACCESS_READ],
  [HVI_W, HVI_ACCESS_WRITE],
  [HVI_X, HVI_ACCESS_EXEC],
])("right %p", (right, access) => {
  const { guest, calls } = setup(right);
  expect(guest.access(0x50000, access)).toBe(true);
  expect(calls).toHaveLength(1);
});

test("a part of a page, and of three", () => {
  const { guest, calls } = setup(HVI_W, ALLOW, { start: 0xff0, end: 0x2010 });
  for (const gpa of [0x50fe8, 0x50ff0, 0x60000, 0x60ff8, 0x70008, 0x70010]) {
    guest.write(gpa, [1, 2, 3, 4, 5, 6, 7, 8]);
  }
  expect(calls).toEqual([0xff0, 0x1000, 0x1ff8, 0x2008].map((o) => GVA + o));
});

describe("the hook follows", () => {
  test("a remapped page, and is on the new frame before the guest runs on", () => {
    const moves: number[][] = [];
    const { guest, hook, leaf, calls } = setup(HVI_W, DENY, {
      moved: (_hook, from, to, gva) => moves.push([from, to, gva]),
    });
    guest.write(leaf, entry(0x80007));
    expect([guest.rights(0x80) & HVI_W, hook.gpa]).toEqual([0, 0x80000]);
    expect(moves).toEqual([[0x50000, 0x80000, GVA]]);
    // The entry may still be the old one, should the instruction have faulted.
    expect(guest.rights(0x50) & HVI_W).toBe(0);
    guest.exit();
    expect(guest.rights(0x50) & HVI_W).toBe(HVI_W);
    expect(guest.write(0x80000, [1])).toBe(HVI_REPLY_SCRATCH);
    expect(calls).toEqual([GVA]);
  });

  test("a page that is swapped out and in again", () => {
    const moves: number[] = [];
    const { guest, hook, leaf } = setup(HVI_X, ALLOW, { moved: (_h, _f, to) => moves.push(to) });
    guest.write(leaf, entry(0xdead000));
    guest.exit();
    expect([hook.gpa, guest.without(HVI_X).length]).toEqual([-1, 0]);
    guest.write(leaf, entry(0x90007));
    guest.exit();
    expect([hook.gpa, guest.without(HVI_X)]).toEqual([0x90000, [0x90]]);
    expect(moves).toEqual([-1, 0x90000]);
  });

  test("a page that is not there at first, with no table for it either", () => {
    const { guest, tables, where } = setup(HVI_X);
    const far = -0x4000000000;
    const hook = guest.gva.add(where, far, HVI_W, () => DENY) as GvaHook;
    guest.hooks.commit();
    expect(hook.gpa).toBe(-1);
    // The guest makes the tables, from the root down, the last entry before it links them.
    const top = tables.root + (Math.floor(far / 2 ** 39) & 511) * 8;
    const at = (shift: number): number => (Math.floor(far / 2 ** shift) & 511) * 8;
    guest.write(0xa0000 + at(30), entry(0xa1003));
    guest.write(0xa1000 + at(21), entry(0xa2003));
    guest.write(0xa2000 + at(12), entry(0x55003));
    guest.write(top, entry(0xa0003));
    expect([hook.gpa, guest.rights(0x55) & HVI_W]).toEqual([0x55000, 0]);
    guest.write(0xa2000 + at(12), entry(0x56003));
    expect(hook.gpa).toBe(0x56000);
  });

  test("a page into a large one and out of it: the 4 KiB frame concerned", () => {
    const guest = new TablesGuest({ size: 0x800000 });
    const tables = new FakeTables(guest.memory, "4level", 0x10000);
    const pde = tables.map(GVA, 0x400000, { pageSize: 0x200000 }).at(-1) as number;
    const where = space(tables.root, "4level");
    const hook = guest.gva.add(where, GVA + 0x3456, HVI_W, () => ALLOW) as GvaHook;
    guest.hooks.commit();
    expect([hook.gva, hook.gpa]).toEqual([GVA + 0x3000, 0x403000]);
    guest.write(pde, entry(0x600087));
    guest.exit();
    expect(hook.gpa).toBe(0x603000);
    guest.memory.writeU64(0x20000 + 3 * 8, 0x77007, 0);
    guest.write(pde, entry(0x20007));
    guest.exit();
    expect(guest.without(HVI_W)).toContain(0x77);
    expect(guest.without(HVI_W)).not.toContain(0x603);
  });

  test("each page of a range by itself", () => {
    const moves: number[] = [];
    const { guest, hook, leaves } = setup(HVI_W, ALLOW, {
      end: 0x3000,
      moved: (_hook, _from, _to, gva) => moves.push(gva - GVA),
    });
    guest.write(leaves[1] as number, [...entry(0), ...entry(0x90007)]);
    guest.exit();
    expect(moves).toEqual([0x1000, 0x2000]);
    expect([0, 1, 2, 3].map((i) => hook.gpaOf(GVA + i * 0x1000 + 5))).toEqual([
      0x50005, -1, 0x90005, -1,
    ]);
  });

  test("not into device space, but knows where it is", () => {
    const { guest, hook, leaf } = setup(HVI_X);
    guest.write(leaf, entry(0xfee00007));
    guest.exit();
    expect([hook.gpa, guest.without(HVI_X)]).toEqual([0xfee00000, []]);
  });
});

describe("removal and adding", () => {
  test("removal inside the hook's own handler", () => {
    const guest = new TablesGuest();
    const tables = new FakeTables(guest.memory, "4level", 0x10000);
    tables.map(GVA, 0x50000);
    const where = space(tables.root, "4level");
    let calls = 0;
    const hook = guest.gva.add(where, GVA, HVI_W, () => {
      calls++;
      guest.gva.remove(hook);
      return ALLOW;
    }) as GvaHook;
    guest.hooks.commit();
    guest.write(0x50000, [1]);
    expect([calls, guest.gva.count, guest.isUntouched()]).toEqual([1, 0, true]);
  });

  test("both inside `moved`", () => {
    const { guest, where, hook, leaf } = setup(HVI_W, ALLOW, {
      end: 0x3000,
      moved: (moved) => {
        guest.gva.remove(moved);
        guest.gva.add(where, GVA, HVI_X, () => ALLOW);
      },
    });
    guest.write(leaf, [...entry(0x80007), ...entry(0x81007)]);
    guest.exit();
    expect(hook.removed).toBe(true);
    expect(guest.without(HVI_X)).toEqual([0x80]);
    expect(guest.without(HVI_W).filter((gfn) => gfn >= 0x50)).toEqual([]);
  });

  test("adding one whose entry the same instruction writes", () => {
    let other: GvaHook | undefined;
    const { guest, where, leaf } = setup(HVI_W, ALLOW, {
      moved: () => {
        other = guest.gva.add(where, GVA + 0x1000, HVI_X, () => ALLOW);
      },
    });
    guest.write(leaf, [...entry(0x80007), ...entry(0x81007)]);
    expect([other?.gpa, guest.without(HVI_X)]).toEqual([0x81000, [0x81]]);
    guest.exit();
    expect([other?.gpa, guest.tables.counters.withoutEffect]).toEqual([0x81000, 0]);
  });

  test("removal after a move that memory has not shown yet leaves no handler behind", () => {
    const { guest, hook, leaf, calls } = setup(HVI_W);
    guest.write(leaf, entry(0x80007), { happens: false });
    guest.gva.remove(hook);
    guest.write(0x50000, [1]);
    guest.exit();
    expect([calls, guest.isUntouched()]).toEqual([[], true]);
  });
});

test("two hooks on one page and two pages on one frame keep their own rights", () => {
  const { guest, tables, where, hook, leaf } = setup(HVI_W);
  tables.map(GVA + 0x8000, 0x50000);
  const other = guest.gva.add(where, GVA + 0x8000, HVI_X, () => ALLOW) as GvaHook;
  guest.hooks.commit();
  expect(guest.rights(0x50)).toBe(HVI_R);
  guest.write(leaf, entry(0x80007));
  guest.exit();
  expect(guest.rights(0x50)).toBe(HVI_R | HVI_W);
  guest.gva.remove(other);
  guest.gva.remove(hook);
  guest.hooks.commit();
  expect(guest.isUntouched()).toBe(true);
});

test("addresses that the space cannot have, and ranges too long, are refused", () => {
  const { guest, where } = setup(HVI_W);
  const add = (gva: number, options?: GvaHookOptions) =>
    guest.gva.add(where, gva, HVI_W, () => ALLOW, options);
  expect(add(2 ** 47)).toBeUndefined();
  expect(add(2 ** 47 - 0x1000, { end: 0x2000 })).toBeUndefined();
  expect(add(Number.NaN)).toBeUndefined();
  expect(add(0, { end: 2 ** 40 })).toBeUndefined();
  expect(() => guest.gva.add(where, GVA, HVI_R | HVI_W, () => ALLOW)).toThrow(RangeError);
  expect(() => add(GVA, { start: 8, end: 8 })).toThrow(RangeError);
  expect(guest.gva.count).toBe(1);
});
