// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { HVI_R, HVI_REPLY_SCRATCH, HVI_W, HVI_X } from "../bridge/index.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { ALLOW, DENY } from "./gpa-hooks.ts";
import { HookObjects, type HookRegion } from "./hook-objects.ts";
import { entry, space, TablesGuest } from "./tables.fixture.ts";

const GVA = -0x1000000;

/** Eight pages from GVA on, the odd ones absent; frames from 0x50 on. */
function setup() {
  const guest = new TablesGuest();
  const tables = new FakeTables(guest.memory, "4level", 0x10000);
  const leaves: number[] = [];
  for (let i = 0; i < 8; i++) {
    const flags = i % 2 === 0 ? 7 : 0;
    leaves.push(tables.map(GVA + i * 0x1000, 0x50000 + i * 0x1000, { flags }).at(-1) as number);
  }
  const objects = new HookObjects(guest.gva);
  return { guest, leaves, where: space(tables.root, "4level"), objects };
}

test("a region of any length is hooked where it is present, and where it becomes so", () => {
  const { guest, leaves, where, objects } = setup();
  const seen: number[] = [];
  const object = objects.create(where, "ssdt");
  const region = object.hook(GVA + 0xff0, 0x3020, HVI_W, (_access, _region, gva) => {
    seen.push(gva - GVA);
    return DENY;
  }) as HookRegion;
  guest.hooks.commit();
  expect(guest.without(HVI_W).filter((gfn) => gfn >= 0x50)).toEqual([0x50, 0x52, 0x54]);
  guest.write(leaves[1] as number, entry(0x51007));
  for (const gpa of [0x50fe8, 0x50ff0, 0x51000, 0x54008, 0x54010]) {
    guest.write(gpa, [1, 2, 3, 4, 5, 6, 7, 8]);
  }
  expect(seen).toEqual([0xff0, 0x1000, 0x4008]);
  expect([region.calls, region.gpaOf(GVA + 0x1234), region.gpaOf(GVA)]).toEqual([3, 0x51234, -1]);
  expect(guest.hooks.owners().get("ssdt")?.hooks).toBe(4);
});

test("regions are found by address, right and the object's type", () => {
  const { where, objects } = setup();
  const module = objects.create(where, "module");
  const table = objects.create(where, "table");
  const text = module.hook(GVA, 0x2000, HVI_X, () => ALLOW) as HookRegion;
  const data = module.hook(GVA + 0x1000, 0x2000, HVI_R, () => ALLOW) as HookRegion;
  const entries = table.hook(GVA + 0x1800, 8, HVI_W, () => ALLOW) as HookRegion;
  expect(module.find(GVA + 0x1fff)).toBe(text);
  expect(module.find(GVA + 0x1fff, HVI_R)).toBe(data);
  expect(module.find(GVA + 0x3000)).toBeUndefined();
  expect(objects.find(where.root, GVA + 0x1800, "table")).toBe(entries);
  // A PCID does not make another space.
  expect(objects.find(where.root + 5, GVA + 0x1800, "table")).toBe(entries);
  expect(objects.find(where.root, GVA + 0x1808, "table")).toBeUndefined();
  expect(objects.find(where.root + 0x1000, GVA)).toBeUndefined();
  expect(objects.ofType("module")).toEqual([module]);
  expect(text.object).toBe(module);
});

test("a region goes alone, an object with all of its own, also from inside a handler", () => {
  const { guest, where, objects } = setup();
  const object = objects.create(where, "raw");
  const first = object.hook(GVA, 0x3000, HVI_W, () => {
    object.destroy();
    return DENY;
  }) as HookRegion;
  const second = object.hook(GVA, 0x3000, HVI_X, () => ALLOW) as HookRegion;
  guest.hooks.commit();
  object.unhook(second);
  object.unhook(second);
  guest.hooks.commit();
  expect([guest.without(HVI_X), second.removed, first.removed]).toEqual([[], true, false]);
  expect(guest.write(0x50000, [1])).toBe(HVI_REPLY_SCRATCH);
  expect([objects.count, object.destroyed, first.removed]).toEqual([0, true, true]);
  expect(guest.isUntouched()).toBe(true);
  expect(object.hook(GVA, 1, HVI_W, () => ALLOW)).toBeUndefined();
});

test("another object's region cannot be taken away, nor one be set where there are no addresses", () => {
  const { guest, where, objects } = setup();
  const region = objects.create(where, "a").hook(GVA, 0x1000, HVI_W, () => ALLOW) as HookRegion;
  const other = objects.create(where, "b");
  other.unhook(region);
  expect(region.removed).toBe(false);
  expect(other.hook(-0x1000, 0x1001, HVI_W, () => ALLOW)).toBeDefined();
  expect(other.hook(2 ** 47 - 8, 9, HVI_W, () => ALLOW)).toBeUndefined();
  expect(other.hook(GVA, 2 ** 33, HVI_W, () => ALLOW)).toBeUndefined();
  expect(() => other.hook(GVA, 0, HVI_W, () => ALLOW)).toThrow(RangeError);
  guest.hooks.commit();
});

test("a region tells of its pages that move", () => {
  const { guest, leaves, where, objects } = setup();
  const moves: (number | boolean)[][] = [];
  const region: HookRegion = objects.create(where, "raw").hook(GVA, 0x8000, HVI_W, () => ALLOW, {
    moved: (of, from, to, gva) => moves.push([of === region, from, to, gva]),
  }) as HookRegion;
  guest.write(leaves[2] as number, entry(0));
  expect(moves).toEqual([[true, 0x52000, -1, GVA + 0x2000]]);
});
