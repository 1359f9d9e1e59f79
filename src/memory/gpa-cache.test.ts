// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { GuestRam } from "../bridge/ram.ts";
import { FakeTables } from "./fake-tables.fixture.ts";
import { GPA_NO_RAM, GPA_NO_ROOM, GpaCache } from "./gpa-cache.ts";
import { PhysicalMemory } from "./physical.ts";
import { Translation, translate } from "./translate.ts";

function memory(): PhysicalMemory {
  const physical = new PhysicalMemory(GuestRam.allocate(0x100000));
  for (let gfn = 0; gfn < 0x100; gfn++) physical.write32(gfn * 0x1000, gfn);
  return physical;
}

describe("the GPA cache", () => {
  test("an entry is the page in place, the same view each time", () => {
    const physical = memory();
    const cache = new GpaCache(physical);
    const entry = cache.findAndAdd(0x5678);
    const bytes = cache.bytes(entry);
    expect([bytes.length, bytes[0]]).toEqual([0x1000, 5]);
    // In both directions, and never a copy that ages.
    physical.write32(0x5678, 0xdeadbeef);
    expect(bytes[0x67b]).toBe(0xde);
    bytes[0x678] = 1;
    expect(physical.read8(0x5678)).toBe(1);
    cache.release(entry);
    const again = cache.findAndAdd(0x5fff);
    expect(cache.bytes(again)).toBe(bytes);
    expect([cache.hits, cache.misses, cache.hitRate]).toEqual([1, 1, 0.5]);
  });

  test("what is longest unused goes first, and nothing in use ever", () => {
    const cache = new GpaCache(memory(), 1, 4);
    const page = (gfn: number): number => cache.findAndAdd(gfn * 0x1000);
    const held = page(1);
    for (const gfn of [2, 3, 4]) cache.release(page(gfn));
    cache.release(page(2));
    const bytes = cache.bytes(held);
    cache.release(page(5));
    expect(cache.evictions).toBe(1);
    // 3 was the oldest: 2 is a hit still, and 1 the same page as ever.
    const { misses } = cache;
    for (const gfn of [1, 2, 4, 5]) cache.release(page(gfn));
    expect([cache.misses, cache.bytes(held) === bytes]).toEqual([misses, true]);
    for (let gfn = 10; gfn < 100; gfn++) cache.release(page(gfn));
    expect(cache.bytes(held)[0]).toBe(1);
  });

  test("more users than room is an answer, until one is released", () => {
    const cache = new GpaCache(memory(), 1, 2);
    const first = cache.findAndAdd(0x1000);
    const second = cache.findAndAdd(0x2000);
    expect(cache.findAndAdd(0x1234)).toBe(first);
    expect(cache.findAndAdd(0x3000)).toBe(GPA_NO_ROOM);
    expect([cache.refused, cache.inUse]).toEqual([1, 2]);
    // Small accesses go on without an entry.
    const four = new Uint8Array(4);
    expect(cache.fetch(0x3000, four)).toBe(true);
    expect(four[0]).toBe(3);
    expect(cache.patch(0x3000, Uint8Array.of(9))).toBe(true);
    expect(cache.fetch(0x3000, four) && four[0]).toBe(9);
    cache.release(first);
    expect(cache.findAndAdd(0x3000)).toBe(GPA_NO_ROOM);
    cache.release(first);
    expect(cache.findAndAdd(0x3000)).toBe(first);
    expect(cache.inUse).toBe(2);
    expect(() => cache.release(2)).toThrow();
    cache.release(second);
    expect(() => cache.release(second)).toThrow();
  });

  test("no RAM is an answer, for any number", () => {
    const cache = new GpaCache(memory());
    for (const gpa of [0x100000, -1, -0x1000, 2 ** 44, 2 ** 52, Number.NaN]) {
      expect(cache.findAndAdd(gpa)).toBe(GPA_NO_RAM);
      expect(cache.fetch(gpa, new Uint8Array(1))).toBe(false);
      expect(cache.patch(gpa, new Uint8Array(1))).toBe(false);
    }
    expect([cache.tableAt(-1), cache.inUse]).toEqual([undefined, 0]);
    expect(() => new GpaCache(memory(), 3)).toThrow(RangeError);
  });

  test("fetch and patch go over pages; a patch that cannot be whole is none", () => {
    const physical = memory();
    const cache = new GpaCache(physical);
    const bytes = Uint8Array.of(1, 2, 3, 4);
    expect(cache.patch(0x1ffe, bytes)).toBe(true);
    const out = new Uint8Array(4);
    expect(cache.fetch(0x1ffe, out)).toBe(true);
    expect(out).toEqual(bytes);
    expect(cache.patch(0xffffe, bytes)).toBe(false);
    expect(physical.read16(0xffffe)).toBe(0);
    expect(cache.fetch(0xffffe, out)).toBe(false);
  });

  test("a flush drops what is not in use", () => {
    const cache = new GpaCache(memory());
    const held = cache.findAndAdd(0x1000);
    cache.release(cache.findAndAdd(0x2000));
    cache.flush();
    cache.findAndAdd(0x1000);
    cache.findAndAdd(0x2000);
    expect([cache.hits, cache.misses]).toEqual([1, 3]);
    expect(cache.bytes(held)[0]).toBe(1);
  });

  test("walks through it find what walks without it find", () => {
    const physical = memory();
    const tables = new FakeTables(physical, "4level", 0x10000);
    for (let i = 0; i < 64; i++) tables.map(0x400000 + i * 0x20_0000, 0x20000 + i * 0x1000);
    const cache = new GpaCache(physical, 8, 2);
    const [a, b] = [new Translation(), new Translation()];
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < 70; i++) {
        const gva = 0x400000 + i * 0x20_0000 + 8 * i;
        expect(translate(cache, tables.root, "4level", gva, a)).toBe(
          translate(physical, tables.root, "4level", gva, b),
        );
        expect(a).toEqual(b);
      }
    }
    expect(cache.hits).toBeGreaterThan(cache.misses);
    expect(cache.evictions).toBeGreaterThan(0);
  });
});
