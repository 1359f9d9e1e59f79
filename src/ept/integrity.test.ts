// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { GuestRam } from "../bridge/index.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import type { PagingMode } from "../memory/translate.ts";
import { VirtualMemory } from "../memory/virtual.ts";
import {
  ACCEPT,
  Integrity,
  type IntegrityHandler,
  type IntegrityRegion,
  type IntegrityReport,
  type IntegrityVerdict,
  MAX_CHANGES,
  MAX_COPIED,
  MAX_COPIES,
  MAX_LENGTH,
  MAX_SHOWN,
  REVERT,
} from "./integrity.ts";

const KERNEL = -0x7f000000;
const LOW = 0x400000;
const FRAMES = 0x200000;

/** `pages` pages at `base`, each in a frame of its own: the linear order is not the physical one. */
function setup(o: { pages?: number; mode?: Exclude<PagingMode, "none">; budget?: number } = {}) {
  const { pages = 8, mode = "4level", budget } = o;
  const base = mode === "4level" ? KERNEL : LOW;
  const physical = new PhysicalMemory(GuestRam.allocate(FRAMES + (pages + 1) * 0x2000));
  const tables = new FakeTables(physical, mode, 0x10000);
  const frame = (page: number) => FRAMES + (pages - page) * 0x2000;
  const entries: number[] = [];
  for (let page = 0; page < pages; page++) {
    entries.push(tables.map(base + page * 0x1000, frame(page)).at(-1) as number);
    for (let i = 0; i < 0x1000; i += 4) physical.write32(frame(page) + i, page * 0x1000 + i);
  }
  const memory = new VirtualMemory(physical, tables.root, mode);
  const integrity = new Integrity(physical, budget);
  const reports: IntegrityReport[] = [];
  const telling =
    (verdict: IntegrityVerdict): IntegrityHandler =>
    (report) => {
      reports.push(report);
      return verdict;
    };
  const add = (gva: number, length: number, handler = telling(ACCEPT)): IntegrityRegion => {
    const region = integrity.add(memory, gva, length, handler, "test");
    if (region === undefined) throw new Error("no region");
    return region;
  };
  /** Takes a page away; the entry that brings it back. */
  const unmap = (page: number): number => {
    const entry = entries[page] as number;
    const value = physical.read32(entry);
    physical.write32(entry, 0);
    return value;
  };
  const remap = (page: number, value: number) => physical.write32(entries[page] as number, value);
  return { base, physical, memory, frame, integrity, reports, add, telling, unmap, remap };
}

const bytes = (...values: number[]) => Uint8Array.of(...values);

describe("a change", () => {
  test.each(["4level", "pae", "32"] as const)(
    "is told once, with what was and what is (%s)",
    (mode) => {
      const { base, memory, integrity, reports, add } = setup({ mode });
      const region = add(base + 0x10, 0x40);
      integrity.check();
      expect([region.state, reports.length]).toEqual(["ok", 0]);
      memory.write(base + 0x14, bytes(1, 2, 3, 4));
      integrity.check();
      expect(region.state).toBe("changed");
      expect(reports).toEqual([
        {
          region,
          changes: [
            { offset: 4, length: 4, old: bytes(0x14, 0, 0, 0), current: bytes(1, 2, 3, 4) },
          ],
          truncated: false,
          revertible: true,
        },
      ]);
      integrity.check();
      expect([region.state, reports.length]).toEqual(["ok", 1]);
    },
  );

  test("of one byte at either end is found, the bytes next to the region are not", () => {
    const { base, memory, integrity, reports, add } = setup();
    add(base + 0xffd, 6);
    memory.write8(base + 0xffc, 0x77);
    memory.write8(base + 0x1003, 0x77);
    integrity.check();
    expect(reports).toHaveLength(0);
    memory.write8(base + 0xffd, 0x77);
    memory.write8(base + 0x1002, 0x77);
    integrity.check();
    expect(reports[0]?.changes.map((c) => [c.offset, c.length])).toEqual([[0, 6]]);
  });

  test("goes over a page boundary as one", () => {
    const { base, memory, integrity, reports, add } = setup();
    add(base, 0x3000);
    memory.write(base + 0xffe, bytes(9, 9, 9, 9));
    integrity.check();
    expect(reports[0]?.changes).toEqual([
      { offset: 0xffe, length: 4, old: bytes(0, 0, 0, 0x10), current: bytes(9, 9, 9, 9) },
    ]);
  });

  test("in several places is told in order, bounded, and all of it is accepted", () => {
    const { base, memory, integrity, reports, add } = setup();
    add(base, 0x8000);
    for (let i = 0; i < 2 * MAX_CHANGES; i++) memory.write8(base + i * 0x400 + 1, 0xff);
    memory.fill(base + 0x40, 0x100, 0xee);
    integrity.check();
    const [report] = reports;
    expect(report?.truncated).toBe(true);
    expect(report?.changes).toHaveLength(MAX_CHANGES);
    expect(report?.changes[0]?.offset).toBe(1);
    expect(report?.changes[1]).toMatchObject({ offset: 0x40, length: 0x100 });
    expect(report?.changes[1]?.current).toHaveLength(MAX_SHOWN);
    integrity.check();
    expect(reports).toHaveLength(1);
  });

  test("that is undone before the check is none", () => {
    const { base, memory, integrity, reports, add } = setup();
    add(base, 0x100);
    memory.write8(base, 0xff);
    memory.write8(base, 0);
    integrity.check();
    expect(reports).toHaveLength(0);
  });

  test("of the translation, to a page with other bytes, is one", () => {
    const { base, integrity, reports, add, unmap, remap } = setup();
    add(base + 0x100, 0x10);
    const other = unmap(3);
    remap(0, other);
    integrity.check();
    // Words of page 0 and page 3 differ in their second byte: 01h and 31h.
    expect(reports[0]?.changes[0]?.offset).toBe(1);
    expect(reports[0]?.changes[0]?.current?.[0]).toBe(0x31);
  });
});

describe("revert", () => {
  test("writes the old bytes back, over pages, and only those of the region", () => {
    const { base, memory, integrity, reports, add, telling } = setup();
    const region = add(base + 0x800, 0x1000, telling(REVERT));
    const before = memory.read(base, 0x3000);
    memory.fill(base + 0x800, 0x1000, 0xaa);
    integrity.check();
    expect(memory.read(base, 0x3000)).toEqual(before);
    expect(integrity.counters).toMatchObject({ changes: 1, reverted: 2, notReverted: 0 });
    integrity.check();
    expect([reports.length, region.state]).toEqual([1, "ok"]);
    memory.write8(base + 0x7ff, 0x55);
    integrity.check();
    expect(memory.read8(base + 0x7ff)).toBe(0x55);
  });

  test("is not done on a page that has moved meanwhile, and is tried again", () => {
    const { base, memory, physical, frame, integrity, add, unmap, remap } = setup();
    let entry = 0;
    let told = 0;
    add(base, 0x10, () => {
      if (++told === 1) entry = unmap(0);
      return REVERT;
    });
    memory.write8(base, 0xbb);
    integrity.check();
    expect(physical.read8(frame(0))).toBe(0xbb);
    expect(integrity.counters).toMatchObject({ reverted: 0, notReverted: 1 });
    remap(0, entry);
    integrity.check();
    expect([told, memory.read8(base)]).toEqual([2, 0]);
  });

  test("is not done over bytes that have changed again", () => {
    const { base, memory, integrity, add } = setup();
    add(base, 0x10, () => {
      memory.write8(base + 1, 0xcc);
      return REVERT;
    });
    memory.write8(base, 0xbb);
    integrity.check();
    expect([memory.read8(base), memory.read8(base + 1)]).toEqual([0xbb, 0xcc]);
    expect(integrity.counters.notReverted).toBe(1);
  });
});

describe("a page that is not present", () => {
  test("is skipped, and what comes back unchanged is no change", () => {
    const { base, memory, integrity, reports, add, unmap, remap } = setup();
    const region = add(base, 0x2000);
    const entry = unmap(0);
    integrity.check();
    expect(region.state).toBe("skipped");
    remap(0, entry);
    integrity.check();
    expect([region.state, reports.length]).toEqual(["ok", 0]);
    unmap(1);
    memory.write8(base, 0xff);
    integrity.check();
    // The others are looked at all the same.
    expect([region.state, reports[0]?.changes[0]?.offset]).toEqual(["changed", 0]);
  });

  test.each([0x2000, MAX_COPIED + 0x2000])(
    "at the start is known from when it is seen first (%i bytes)",
    (length) => {
      const { base, memory, physical, frame, integrity, reports, add, unmap, remap } = setup({
        pages: 20,
      });
      const entry = unmap(1);
      const region = add(base, length);
      expect(region.state).toBe("skipped");
      physical.write8(frame(1), 0x99);
      remap(1, entry);
      integrity.check();
      expect([region.state, reports.length]).toEqual(["ok", 0]);
      memory.write8(base + 0x1000, 0x9a);
      integrity.check();
      expect(reports).toHaveLength(1);
    },
  );

  test.each([
    ["beyond RAM", 0x7ffff003],
    ["with a reserved bit", -1],
  ])("nor one %s", (_what, value) => {
    const { base, integrity, reports, add, unmap, remap, physical, memory } = setup();
    const region = add(base, 0x10);
    if (value >= 0) {
      unmap(0);
      remap(0, value);
    } else {
      memory.gpaOf(base);
      physical.write32((memory.last.entryGpa[3] as number) + 4, 0x000f0000);
    }
    integrity.check();
    expect([region.state, reports.length]).toEqual(["skipped", 0]);
  });
});

describe("a region that is too long for a copy", () => {
  const LENGTH = MAX_COPIED + 0x1000;

  test("tells which pages changed, once", () => {
    const { base, memory, integrity, reports, add, telling } = setup({ pages: 20 });
    const region = add(base + 0x800, LENGTH, telling(REVERT));
    expect(region.copied).toBe(false);
    memory.write8(base + 0x7ff, 1);
    integrity.check();
    expect(reports).toHaveLength(0);
    memory.write8(base + 0x900, 1);
    memory.write8(base + 0x5000, 0xff);
    memory.write8(base + 0x6fff, 0xff);
    integrity.check();
    expect(reports[0]).toMatchObject({ truncated: false, revertible: false });
    expect(reports[0]?.changes).toEqual([
      { offset: 0, length: 0x800, old: undefined, current: undefined },
      { offset: 0x4800, length: 0x2000, old: undefined, current: undefined },
    ]);
    integrity.check();
    expect([reports.length, memory.read8(base + 0x5000)]).toEqual([1, 0xff]);
  });

  test("also when room for copies is used up; it comes back with removal", () => {
    const { base, integrity, add } = setup({ pages: 16 });
    const all = Array.from({ length: MAX_COPIES / MAX_COPIED }, () => add(base, MAX_COPIED));
    expect(all.every((region) => region.copied)).toBe(true);
    expect(add(base, 1).copied).toBe(false);
    integrity.remove(all[5] as IntegrityRegion);
    expect(add(base, MAX_COPIED).copied).toBe(true);
  });
});

describe("one check is bounded", () => {
  test("and the next goes on, so that all regions have their turn", () => {
    const budget = 2 * MAX_COPIED;
    const { base, memory, integrity, reports, add } = setup({ pages: 64, budget });
    // Of 64 KiB of copies, 160 KiB of hashes, small ones.
    const regions = [
      add(base, MAX_COPIED),
      add(base + 0x10000, 0x28000),
      add(base + 0x38000, MAX_COPIED - 0x8000),
      add(base + 0x3f000, 8),
    ];
    const rounds = integrity.checksPerRound;
    expect(rounds).toBe(3);
    for (const region of regions) memory.write8(region.gva + region.length - 1, 0xfe);
    for (let i = 0; i < rounds; i++) {
      const before = integrity.counters.bytes;
      integrity.check();
      expect(integrity.counters.bytes - before).toBeLessThanOrEqual(budget + 0x1000);
    }
    expect(new Set(reports.map((r) => r.region))).toEqual(new Set(regions));
    expect(reports).toHaveLength(4);
  });

  test("also when a handler removes the region that is next", () => {
    const budget = 2 * MAX_COPIED;
    const { base, memory, integrity, add, telling, reports } = setup({ pages: 64, budget });
    const first = add(base, MAX_COPIED, () => {
      integrity.remove(first);
      integrity.remove(third);
      return ACCEPT;
    });
    add(base + 0x10000, MAX_COPIED);
    const third = add(base + 0x20000, MAX_COPIED, telling(ACCEPT));
    const fourth = add(base + 0x30000, MAX_COPIED);
    memory.write8(base, 0xff);
    memory.write8(fourth.gva, 0xff);
    memory.write8(third.gva, 0xff);
    integrity.check();
    integrity.check();
    expect(reports.map((r) => r.region)).toEqual([fourth]);
  });

  test("many small regions cost what their pages do", () => {
    const budget = 2 * MAX_COPIED;
    const { base, integrity, add } = setup({ budget });
    for (let i = 0; i < 1024; i++) add(base + i * 8, 8);
    integrity.check();
    expect(integrity.counters.pages - 1024).toBe(budget / 512);
    expect(integrity.checksPerRound).toBe(4);
  });
});

describe("regions", () => {
  test("that overlap are told, under one root, and both are checked", () => {
    const { base, memory, integrity, reports, add, physical } = setup();
    const one = add(base, 0x100);
    const two = add(base + 0x80, 0x100);
    const beside = add(base + 0x180, 0x10);
    expect([one.overlaps, two.overlaps, beside.overlaps]).toEqual([[], [one], []]);
    const pcid = new VirtualMemory(physical, memory.root + 5, "4level");
    expect(integrity.add(pcid, base, 8, () => ACCEPT)?.overlaps).toEqual([one]);
    const other = new FakeTables(physical, "4level", 0x80000);
    other.map(base, 0x5000);
    const foreign = new VirtualMemory(physical, other.root, "4level");
    expect(integrity.add(foreign, base, 8, () => ACCEPT)?.overlaps).toEqual([]);
    memory.write8(base + 0x90, 0xff);
    integrity.check();
    expect(reports.map((r) => r.region)).toEqual([one, two]);
  });

  test("that are no ranges are refused, whatever the guest made of them", () => {
    const { integrity, memory, physical } = setup();
    const no = (gva: number, length: number, space = memory) =>
      expect(integrity.add(space, gva, length, () => ACCEPT)).toBeUndefined();
    for (const length of [0, -1, 1.5, Number.NaN, Infinity, MAX_LENGTH + 1]) no(KERNEL, length);
    for (const gva of [Number.NaN, 0.5, 2 ** 47, 2 ** 60, -(2 ** 47) - 1]) no(gva, 8);
    no(-4, 8);
    no(2 ** 47 - 4, 8);
    no(0xfffffffc, 8, new VirtualMemory(physical, memory.root, "pae"));
    no(-8, 4, new VirtualMemory(physical, memory.root, "32"));
    expect(integrity.count).toBe(0);
  });

  test("may be removed and added in a handler, also the one that is told", () => {
    const { base, memory, integrity, reports, add, telling } = setup();
    const one = add(base, 8, (report) => {
      reports.push(report);
      integrity.remove(one);
      integrity.remove(two);
      add(base + 0x2000, 8, telling(ACCEPT));
      return REVERT;
    });
    const two = add(base + 0x1000, 8);
    memory.write8(base, 0xff);
    memory.write8(base + 0x1000, 0xff);
    integrity.check();
    expect(reports.map((r) => r.region)).toEqual([one]);
    expect([memory.read8(base), integrity.count]).toEqual([0, 1]);
    memory.write8(base + 0x2000, 0xff);
    integrity.check();
    integrity.check();
    expect(reports).toHaveLength(2);
    integrity.remove(one);
    expect(integrity.count).toBe(1);
  });

  test("a check from inside a handler does nothing", () => {
    const { base, memory, integrity, add } = setup();
    let told = 0;
    add(base, 8, () => {
      told++;
      integrity.check();
      return ACCEPT;
    });
    memory.write8(base, 0xff);
    integrity.check();
    expect([told, integrity.counters.checks]).toEqual([1, 1]);
  });

  test("a handler that throws does not end the checks", () => {
    const { base, memory, integrity, add } = setup();
    add(base, 8, () => {
      throw new Error("broken");
    });
    memory.write8(base, 0xff);
    expect(() => integrity.check()).toThrow("broken");
    expect(() => integrity.check()).toThrow("broken");
  });

  test("have figures", () => {
    const { base, integrity, add } = setup({ pages: 20 });
    add(base, 0x1800);
    add(base, MAX_COPIED + 1);
    integrity.check();
    expect(integrity.read()).toMatchObject({
      regions: 2,
      regionBytes: 0x1800 + MAX_COPIED + 1,
      copiedBytes: 0x1800,
      checksPerRound: 1,
      checks: 1,
      pages: 2 * 19,
      changes: 0,
    });
  });
});

test("any writes, any regions: what is told is what differs, and reverting restores all", () => {
  // Park and Miller's generator: the same numbers every time.
  let seed = 20261126;
  const random = (n: number): number => {
    seed = (seed * 48271) % 2147483647;
    return seed % n;
  };
  for (let round = 0; round < 200; round++) {
    const { base, memory, integrity, add, telling, reports } = setup({ pages: 20 });
    const verdict = random(2) === 0 ? ACCEPT : REVERT;
    const start = base + random(0x2000);
    const length = 1 + random(random(2) === 0 ? 64 : 0x11000);
    add(start, length, telling(verdict));
    const before = memory.read(start, length) as Uint8Array;
    for (let i = random(6); i > 0; i--) {
      memory.write(base + random(0x13000), new Uint8Array(1 + random(40)).fill(random(256)));
    }
    const after = memory.read(start, length) as Uint8Array;
    const differs = (i: number) => before[i] !== after[i];
    const wanted = Array.from(before.keys()).filter(differs);
    integrity.check();
    const told = (reports[0]?.changes ?? []).flatMap((change) =>
      Array.from({ length: change.length }, (_, i) => change.offset + i),
    );
    expect(told.filter(differs)).toEqual(wanted);
    for (const change of reports[0]?.changes ?? []) {
      expect([differs(change.offset), differs(change.offset + change.length - 1)]).toEqual(
        change.old === undefined ? expect.anything() : [true, true],
      );
      if (change.old === undefined) continue;
      const { offset, old, current } = change;
      expect(old).toEqual(before.slice(offset, offset + old.length));
      expect(current).toEqual(after.slice(offset, offset + old.length));
    }
    const reverted = verdict === REVERT && length <= MAX_COPIED;
    expect(memory.read(start, length)).toEqual(reverted ? before : after);
    integrity.check();
    expect(reports.length).toBe(wanted.length === 0 ? 0 : 1);
  }
});
