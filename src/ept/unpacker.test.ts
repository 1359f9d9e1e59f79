// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { HVI_ACCESS_EXEC, HVI_REPLY_RESUME, HVI_W, HVI_X } from "../bridge/index.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { entry, space, TablesGuest } from "./tables.fixture.ts";
import { Unpacker, type UnpackerEvents, type UnpackerPage } from "./unpacker.ts";

const GVA = 0x400000;

function setup(events: Partial<UnpackerEvents> = {}) {
  const guest = new TablesGuest();
  const tables = new FakeTables(guest.memory, "4level", 0x10000);
  const leaf = tables.map(GVA, 0x50000).at(-1) as number;
  const where = space(tables.root, "4level");
  const unpacker = new Unpacker(guest.gva);
  const told: number[] = [];
  const page = unpacker.watch(where, GVA + 0x123, {
    unpacked: (of, gva) => told.push(gva, of.writes),
    ...events,
  }) as UnpackerPage;
  guest.hooks.commit();
  const run = (gpa = 0x50010): boolean => guest.access(gpa, HVI_ACCESS_EXEC);
  return { guest, leaf, where, unpacker, page, told, run };
}

test("code that runs from a page written before is told of, once", () => {
  const { guest, told, run, page } = setup();
  expect(run()).toBe(false);
  expect(guest.write(0x50000, [0xc3])).toBe(HVI_REPLY_RESUME);
  expect(run()).toBe(true);
  expect(told).toEqual([GVA + 0x10, 1]);
  expect([page.unpacked, run(), guest.without(HVI_W).includes(0x50)]).toEqual([true, false, false]);
});

test("after 32 writes the page is watched for executions only", () => {
  const { guest, told, run } = setup();
  for (let i = 0; i < 31; i++) guest.write(0x50000 + i, [1]);
  expect(guest.rights(0x50) & (HVI_W | HVI_X)).toBe(0);
  guest.write(0x50100, [1]);
  expect(guest.rights(0x50) & (HVI_W | HVI_X)).toBe(HVI_W);
  const exits = guest.exits;
  guest.write(0x50101, [1]);
  expect(guest.exits).toBe(exits);
  run();
  expect(told).toEqual([GVA + 0x10, 32]);
});

test("legitimate writes do not count", () => {
  const { guest, told, run, page } = setup({ isLegitimate: (_page, gva) => gva < GVA + 0x100 });
  for (let i = 0; i < 40; i++) guest.write(0x50000, [1]);
  expect([run(), page.writes]).toEqual([false, 0]);
  guest.write(0x50100, [1]);
  run();
  expect(told).toEqual([GVA + 0x10, 1]);
});

test("a caller may want more writes first", () => {
  const { guest, told, run } = setup({ minWrites: 3 });
  guest.write(0x50000, [1]);
  guest.write(0x50000, [1]);
  expect([run(), told.length]).toEqual([false, 0]);
  guest.write(0x50000, [1]);
  expect([run(), told.length]).toEqual([true, 2]);
});

test("armed again from its own callback, it starts anew", () => {
  let times = 0;
  const armed = setup({
    unpacked: (page) => {
      times++;
      armed.unpacker.rearm(page);
    },
  });
  for (let i = 0; i < 3; i++) {
    expect(armed.run()).toBe(false);
    armed.guest.write(0x50000, [1]);
    expect(armed.run()).toBe(true);
  }
  expect([times, armed.page.unpacked, armed.page.writes]).toEqual([3, false, 0]);
});

test("a page of another unpacker is left alone", () => {
  const { guest, page } = setup();
  const other = new Unpacker(guest.gva);
  guest.write(0x50000, [1]);
  other.rearm(page);
  other.unwatch(page);
  expect([page.writes, guest.rights(0x50) & (HVI_W | HVI_X)]).toEqual([1, 0]);
});

test("the page may be swapped out and in, or remapped, in between", () => {
  const { guest, told, leaf } = setup();
  guest.write(0x50000, [1]);
  guest.write(leaf, entry(0x123000));
  guest.write(leaf, entry(0x60007));
  guest.exit();
  expect(guest.access(0x50010, HVI_ACCESS_EXEC)).toBe(false);
  expect(guest.access(0x60020, HVI_ACCESS_EXEC)).toBe(true);
  expect(told).toEqual([GVA + 0x20, 1]);
});

test("watches end one by one, with their space, and inside callbacks", () => {
  const { guest, unpacker, where, page } = setup();
  const other = unpacker.watch(where, GVA + 0x1000, { unpacked: () => {} }) as UnpackerPage;
  expect(unpacker.watch(where, 2 ** 47, { unpacked: () => {} })).toBeUndefined();
  unpacker.unwatch(page);
  unpacker.rearm(page);
  expect(unpacker.count).toBe(1);
  unpacker.unwatchSpace({ ...where, root: where.root | 0x18 });
  guest.hooks.commit();
  expect([unpacker.count, other.writeHook, guest.isUntouched()]).toEqual([0, undefined, true]);

  const ended = setup({
    isLegitimate: (of) => {
      ended.unpacker.unwatch(of);
      return false;
    },
  });
  ended.guest.write(0x50000, [1]);
  expect([ended.guest.isUntouched(), ended.page.writes]).toEqual([true, 0]);
});
