// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { HVI_W } from "../bridge/index.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import type { PagingMode } from "../memory/index.ts";
import type { TranslationWatch } from "./page-tables.ts";
import { entry, space, TablesGuest, word } from "./tables.fixture.ts";
import { VasMonitor, type VasMonitorOptions } from "./vas-monitor.ts";

/** A user page at 0x400000, a kernel page in the upper half. */
function setup(mode: Exclude<PagingMode, "none">, options: VasMonitorOptions = {}) {
  const guest = new TablesGuest({ limits: { relaxWrites: 50, relaxChanges: 4 } });
  const tables = new FakeTables(guest.memory, mode, 0x10000);
  const kernel = mode === "32" || mode === "pae" ? 0xc0000000 : -0x1000;
  const userEntry = tables.map(0x400000, 0x50000).at(-1) as number;
  const kernelEntry = tables.map(kernel, 0x60000).at(-1) as number;
  const where = space(tables.root, mode);
  const monitor = new VasMonitor(guest.tables);
  const seen: number[][] = [];
  const watch = monitor.start(
    where,
    (c) => seen.push([c.start, c.level, c.oldLo, c.newLo]),
    options,
  ) as TranslationWatch;
  const put = (gpa: number, value: number): void => {
    guest.write(gpa, mode === "32" ? word(value) : entry(value));
  };
  return { guest, tables, where, kernel, userEntry, kernelEntry, monitor, watch, seen, put };
}

test.each(["32", "pae", "4level", "5level"] as const)("every change in %s tables", (mode) => {
  const { guest, tables, kernel, userEntry, kernelEntry, watch, seen, put, monitor } = setup(mode);
  put(userEntry, 0x70007);
  put(kernelEntry, 0);
  const newRoot = tables.root + (mode === "pae" ? 8 : 16);
  put(newRoot, 0x80001);
  expect(seen.slice(0, 2)).toEqual([
    [0x400000, 1, 0x50007, 0x70007],
    [kernel, 1, 0x60007, 0],
  ]);
  expect(seen).toHaveLength(3);
  // The new table is watched from its first entry on.
  put(0x80000, 0x90007);
  expect(seen).toHaveLength(4);
  monitor.stop(watch);
  guest.exit();
  expect([guest.isUntouched(), guest.tables.nodeCount, monitor.count]).toEqual([true, 0, 0]);
});

test("of the user's half only", () => {
  const { userEntry, kernelEntry, seen, put, kernel } = setup("4level", { range: "user" });
  put(kernelEntry, 0);
  expect(seen).toEqual([]);
  put(userEntry, 0);
  expect(seen).toHaveLength(1);
  const linux = setup("32", { range: { start: 0, end: 0xc0001000 } });
  linux.put(linux.kernelEntry, 0);
  expect(linux.seen).toEqual([[kernel < 0 ? 0xc0000000 : kernel, 1, 0x60007, 0]]);
});

test("a table that is written much and changes little is looked at by poll()", () => {
  const { guest, userEntry, seen, put } = setup("4level");
  const table = Math.floor(userEntry / 0x1000);
  for (let i = 0; i < 50; i++) put(userEntry, 0x50007 | (i % 2 === 0 ? 0x20 : 0));
  expect(guest.rights(table) & HVI_W).toBe(HVI_W);
  put(userEntry, 0x70007);
  expect(seen).toEqual([]);
  guest.tables.poll();
  guest.hooks.commit();
  expect(seen).toHaveLength(1);
  expect(guest.rights(table) & HVI_W).toBe(0);
});

test("ends with its space, and from inside its callback", () => {
  const { guest, where, monitor } = setup("4level");
  monitor.start(where, () => {});
  monitor.stopSpace({ ...where, root: where.root | 5 });
  guest.hooks.commit();
  expect([monitor.count, guest.isUntouched()]).toEqual([0, true]);
  const watch = monitor.start(where, () => {
    if (watch !== undefined) monitor.stop(watch);
  });
  guest.write(where.root, entry(0));
  guest.exit();
  expect(guest.isUntouched()).toBe(true);
  expect(monitor.start(where, () => {}, { range: { start: 0, end: 2 ** 60 } })).toBeUndefined();
});

test("thousands of tables that the guest shares between spaces end as they began", () => {
  const guest = new TablesGuest();
  const tables = new FakeTables(guest.memory, "4level", 0x10000);
  for (let i = 0; i < 64; i++) tables.map(i * 0x200000, 0x50000);
  const monitor = new VasMonitor(guest.tables);
  const watches = Array.from({ length: 16 }, (_, i) => {
    const root = 0x80000 + i * 0x1000;
    guest.memory.writeU64(root, guest.memory.read32(tables.root), 0);
    return monitor.start(space(root, "4level"), () => {}) as TranslationWatch;
  });
  expect(guest.tables.nodeCount).toBe(16 * 67);
  expect(guest.tables.pageCount).toBe(16 + 66);
  for (const watch of watches) monitor.stop(watch);
  guest.hooks.commit();
  expect([guest.tables.nodeCount, guest.isUntouched()]).toEqual([0, true]);
});
