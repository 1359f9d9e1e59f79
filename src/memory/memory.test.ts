// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { GuestRam } from "../bridge/ram.ts";
import {
  asGva,
  gvaFromHalves,
  hex,
  hex64,
  isCanonical48,
  pageEnd,
  pageOf,
  parseGpa,
  parseGva,
} from "./address.ts";
import { FakeTables } from "./fake-tables.fixture.ts";
import { PhysicalMemory } from "./physical.ts";
import {
  type PagingMode,
  PTE_G,
  PTE_P,
  PTE_RW,
  PTE_US,
  pagingFeaturesOf,
  pagingModeOf,
  Translation,
  TranslationStatus,
  translate,
  translateHalves,
} from "./translate.ts";
import { VirtualMemory } from "./virtual.ts";

const KERNEL = -0x7f000000;
const MIB = 0x100000;

function memory(size = 4 * MIB): PhysicalMemory {
  return new PhysicalMemory(GuestRam.allocate(size));
}

describe("addresses", () => {
  test("halves, pages, canonical", () => {
    expect(gvaFromHalves(0x81000000, 0xffffffff)).toBe(asGva(KERNEL));
    expect(pageOf(KERNEL + 0x1fff)).toBe(KERNEL + 0x1000);
    expect([pageEnd(0), pageEnd(1), pageEnd(KERNEL - 1)]).toEqual([0, 0x1000, KERNEL]);
    expect([isCanonical48(KERNEL), isCanonical48(2 ** 47), isCanonical48(Number.NaN)]).toEqual([
      true,
      false,
      false,
    ]);
  });
  test("hex both ways", () => {
    expect(hex(KERNEL)).toBe("0xffffffff81000000");
    expect(hex(0x1000)).toBe("0x1000");
    expect(hex64(0x10, 0xff000000)).toBe("0xff00000000000010");
    expect(parseGva("0xffffffff81000000")).toBe(asGva(KERNEL));
    expect(parseGva("ffff_8880_0000_0000")).toBe(asGva(-0x778000000000));
    expect(parseGva("0t4096")).toBe(asGva(4096));
    expect(parseGva("0x800000000000")).toBeUndefined();
    expect(parseGva("nonsense")).toBeUndefined();
    expect(parseGpa("0xfffffffffffff")).toBe(0xfffffffffffff as never);
  });
});

describe("physical memory", () => {
  test("every size at every alignment", () => {
    const m = memory();
    for (let at = 0xff0; at < 0x1010; at++) {
      expect(m.writeU64(at, 0x89abcdef, 0xfedcba98)).toBe(true);
      expect(m.read8(at)).toBe(0xef);
      expect(m.read16(at)).toBe(0xcdef);
      expect(m.read32(at)).toBe(0x89abcdef);
      expect(m.readU64(at)).toEqual({ lo: 0x89abcdef, hi: 0xfedcba98 });
    }
    m.writeU64(0x100, 0xfffffff0, 0xffffffff);
    expect(m.readI64(0x100)).toBe(-16);
  });
  test("no RAM is an answer, and a write changes nothing", () => {
    const m = memory(0x2000);
    expect(m.read8(0x2000)).toBe(-1);
    expect(m.read32(0x1ffd)).toBe(-1);
    expect(m.readU64(0x1ffc)).toBeUndefined();
    expect(m.readI64(0x1ffc)).toBeNaN();
    expect(m.write(0x1fff, Uint8Array.of(1, 2))).toBe(false);
    expect(m.writeU64(0x1ffc, 1, 1)).toBe(false);
    expect(m.write32(0x1ffe, -1)).toBe(false);
    expect(m.fill(0x1ff0, 17, 9)).toBe(false);
    expect(m.read16(0x1ffe)).toBe(0);
    expect(m.read(0x1ff8, 9)).toBeUndefined();
    expect(m.tableAt(1)).toBeDefined();
    for (const gfn of [2, -1, 0x40000, 0x7fffffff]) expect(m.tableAt(gfn)).toBeUndefined();
  });
  test("tables stand where their frame says, in any slot and gigabyte", () => {
    const slots = [
      { gpa: 0x1000, size: 0x3000, offset: 0 },
      { gpa: 0x140000000, size: 0x2000, offset: 0x40001000 },
      // Its two pages lie in two pieces of the mapping.
      { gpa: 0x3ffff000, size: 0x2000, offset: 0x3ffff000 },
    ];
    const m = new PhysicalMemory(
      new GuestRam(slots, [new ArrayBuffer(0x40000000), new ArrayBuffer(0x3000)]),
    );
    const frames = [1, 2, 3, 0x3ffff, 0x40000, 0x140000, 0x140001];
    for (const gfn of frames) m.write32(gfn * 0x1000 + 0xffc, gfn);
    for (let i = 0; i < 50; i++) {
      const gfn = frames[(i * 3) % frames.length];
      expect(m.tableAt(gfn)?.[m.wordIndex + 1023]).toBe(gfn);
    }
    for (const gfn of [0, 4, 0x3fffe, 0x40001, 0x13ffff, 0x140002, -1, 0x7fffffff]) {
      expect(m.tableAt(gfn)).toBeUndefined();
    }
  });
  test("slots apart, and accesses over their seams", () => {
    const ram = new GuestRam(
      [
        { gpa: 0x1000, size: 0x1000, offset: 0 },
        { gpa: 0x100002000, size: 0x1000, offset: 0x1000 },
        { gpa: 0x2000, size: 0x1000, offset: 0x2000 },
      ],
      [new ArrayBuffer(0x3000)],
    );
    const m = new PhysicalMemory(ram);
    expect(m.write(0x1ffe, Uint8Array.of(1, 2, 3, 4))).toBe(true);
    expect(m.read32(0x1ffe)).toBe(0x04030201);
    expect(ram.bytes[0][0x2000]).toBe(3);
    expect(m.write32(0x100002ffc, 7)).toBe(true);
    expect(m.read32(0x100002ffc)).toBe(7);
    expect(m.read(0x1ffe, 4)).toEqual(Uint8Array.of(1, 2, 3, 4));
  });
});

describe("paging modes", () => {
  test("control registers select the mode", () => {
    const PG = 0x80000000;
    expect(pagingModeOf(1, 0x20, 0xd00)).toBe("none");
    expect(pagingModeOf(PG, 0, 0)).toBe("32");
    expect(pagingModeOf(PG, 0x20, 0)).toBe("pae");
    expect(pagingModeOf(PG, 0x20, 0x500)).toBe("4level");
    expect(pagingModeOf(PG, 0x1020, 0x500)).toBe("5level");
    expect(pagingFeaturesOf(0x10, 0x800, 40)).toEqual({ pse: true, nxe: true, physicalBits: 40 });
  });

  const cases: [Exclude<PagingMode, "none">, number | bigint, number, number][] = [
    ["32", 0xc0123456, 0x1000, 2],
    ["32", 0xc0123456, 4 * MIB, 1],
    ["pae", 0xc0123456, 0x1000, 3],
    ["pae", 0xc0123456, 2 * MIB, 2],
    ["4level", KERNEL + 0x123456, 0x1000, 4],
    ["4level", KERNEL + 0x123456, 2 * MIB, 3],
    ["4level", KERNEL + 0x123456, 1024 * MIB, 2],
    ["4level", 0x7fff_1234_5678, 0x1000, 4],
    ["5level", 0x7fff_1234_5678, 0x1000, 5],
    ["5level", 0xff11_2233_4455_6677n, 0x1000, 5],
    ["5level", 0x00ab_cdef_0123_4567n, 2 * MIB, 4],
    ["5level", 0xff11_0000_0455_6677n, 1024 * MIB, 3],
  ];
  for (const [mode, gva, pageSize, depth] of cases) {
    test(`${mode}: ${pageSize / 1024} KiB page at ${gva.toString(16)}`, () => {
      const m = memory();
      const tables = new FakeTables(m, mode, 0x10000);
      const target = 3 * 1024 * MIB * (pageSize > 4 * MIB || mode === "32" ? 1 : 8);
      const where = tables.map(gva, target, { pageSize, nx: mode !== "32" });
      const t = new Translation();
      const a = BigInt.asUintN(64, BigInt(gva));
      const low = Number(a & (BigInt(pageSize) - 1n));
      const ok = translateHalves(
        m,
        tables.root + (mode === "pae" ? 0 : 0xabc),
        mode,
        Number(a & 0xffffffffn),
        Number(a >> 32n),
        t,
      );
      expect(t.statusName).toBe("Ok");
      expect(ok).toBe(true);
      expect(t.gpa).toBe(target + low);
      expect(t.pageSize).toBe(pageSize);
      expect(t.depth).toBe(depth);
      expect([...t.entryGpa.subarray(0, depth)]).toEqual(where);
      expect([t.writable, t.user, t.nx]).toEqual([true, true, mode !== "32"]);
      if (Math.abs(Number(gva)) < 2 ** 53) {
        expect(translate(m, tables.root, mode, Number(gva), t)).toBe(true);
        expect(t.gpa).toBe(target + low);
      }
    });
  }

  test("a 4 MiB page above 4 GiB (PSE-36)", () => {
    const m = memory();
    const tables = new FakeTables(m, "32", 0x10000);
    tables.map(0xc0000000, 0x12_3440_0000, { pageSize: 4 * MIB });
    const t = new Translation();
    expect(translate(m, tables.root, "32", 0xc0000004, t)).toBe(true);
    expect(t.gpa).toBe(0x12_3440_0004);
    // Without CR4.PSE the entry names a page table, which stands outside RAM here.
    const features = { pse: false, nxe: false, physicalBits: 40 };
    expect(translate(m, tables.root, "32", 0xc0000004, t, features)).toBe(false);
    expect(t.status).toBe(TranslationStatus.NoRam);
  });

  test("rights are those of all levels together", () => {
    const m = memory();
    const tables = new FakeTables(m, "4level", 0x10000);
    const entries = tables.map(0x400000, 0x5000, { flags: PTE_P | PTE_RW | PTE_US | PTE_G });
    const t = new Translation();
    for (let i = 0; i < 4; i++) {
      const old = m.read32(entries[i]);
      m.write32(entries[i], old & ~PTE_RW);
      translate(m, tables.root, "4level", 0x400000, t);
      expect([t.writable, t.user, t.nx, t.global]).toEqual([false, true, false, true]);
      m.write32(entries[i], old & ~PTE_US);
      translate(m, tables.root, "4level", 0x400000, t);
      expect([t.writable, t.user]).toEqual([true, false]);
      m.writeU64(entries[i], old, 0x80000000);
      translate(m, tables.root, "4level", 0x400000, t);
      expect(t.nx).toBe(true);
      m.writeU64(entries[i], old, 0);
    }
  });

  test("a missing entry is named", () => {
    const m = memory();
    const tables = new FakeTables(m, "4level", 0x10000);
    const entries = tables.map(0x400000, 0x5000);
    const t = new Translation();
    for (let i = 3; i >= 0; i--) {
      m.write32(entries[i], 0xdead0000);
      expect(translate(m, tables.root, "4level", 0x400000, t)).toBe(false);
      expect([t.status, t.depth, t.gpa]).toEqual([TranslationStatus.NotPresent, i + 1, -1]);
      expect(t.entryLo[i]).toBe(0xdead0000);
    }
    expect(t.lastLevel).toBe("PML4E");
  });

  test("reserved bits, tables outside RAM, bad addresses, unknown modes", () => {
    const m = memory();
    const tables = new FakeTables(m, "4level", 0x10000);
    const entries = tables.map(0x400000, 0x5000);
    const t = new Translation();
    const status = (gva: number, features?: Parameters<typeof translate>[5]): string => {
      translate(m, tables.root, "4level", gva, t, features);
      return t.statusName;
    };
    m.writeU64(entries[3], 0x5007, 0x80000000);
    expect(status(0x400000, { pse: true, nxe: false, physicalBits: 52 })).toBe("Reserved");
    m.writeU64(entries[3], 0x5007, 0x100);
    expect(status(0x400000, { pse: true, nxe: true, physicalBits: 40 })).toBe("Reserved");
    expect(status(0x400000)).toBe("Ok");
    m.write32(entries[2], 0x2087 | 0x2000);
    expect(status(0x400000)).toBe("Reserved");
    m.writeU64(entries[2], 0x7, 0x10);
    expect(status(0x400000)).toBe("NoRam");
    m.write32(entries[0], m.read32(entries[0]) | 0x80);
    expect(status(0x400000)).toBe("Reserved");
    expect(status(2 ** 47)).toBe("NotCanonical");
    expect(status(-(2 ** 47) - 1)).toBe("NotCanonical");
    expect(status(2 ** 60)).toBe("NotCanonical");
    expect(status(Number.NaN)).toBe("NotCanonical");
    expect(() => translate(m, 0, "6level" as PagingMode, 0, t)).toThrow("6level");
    expect(translate(m, 0, "pae", -1, t)).toBe(false);
  });

  test("no paging", () => {
    const t = new Translation();
    expect(translate(memory(), 0, "none", 0xfee00000, t)).toBe(true);
    expect(t.gpa).toBe(0xfee00000);
    expect(translate(memory(), 0, "none", 2 ** 32, t)).toBe(false);
  });
});

describe("virtual memory", () => {
  function space(): { m: PhysicalMemory; v: VirtualMemory } {
    const m = memory();
    const tables = new FakeTables(m, "4level", 0x10000);
    // Neighbours in virtual memory, apart and out of order in physical memory.
    tables.map(KERNEL, 0x8000);
    tables.map(KERNEL + 0x1000, 0x6000, { flags: PTE_P });
    tables.map(KERNEL + 0x2000, 0x9000, { flags: PTE_P | PTE_RW });
    tables.map(KERNEL + 0x8000, 0xfee00000);
    return { m, v: new VirtualMemory(m, tables.root, "4level") };
  }
  const EDGE = KERNEL + 0x1000;

  test("every size over a page boundary", () => {
    const { v, m } = space();
    for (let at = EDGE - 9; at < EDGE + 2; at++) {
      expect(v.writeU64(at, 0x89abcdef, 0xffffba98)).toBe(true);
      expect(v.read8(at)).toBe(0xef);
      expect(v.read16(at)).toBe(0xcdef);
      expect(v.read32(at)).toBe(0x89abcdef);
      expect(v.readU64(at)).toEqual({ lo: 0x89abcdef, hi: 0xffffba98 });
      expect(v.readPtr(at)).toBe(-0x4567 * 2 ** 32 - (2 ** 32 - 0x89abcdef));
      expect(v.write16(at, 0x1234) && v.read16(at)).toBe(0x1234);
      expect(v.write32(at, 0x12345678) && v.read32(at)).toBe(0x12345678);
    }
    v.writePtr(EDGE - 4, KERNEL);
    expect(v.readPtr(EDGE - 4)).toBe(KERNEL);
    expect(m.read32(0x6000)).toBe(0xffffffff);
  });

  test("absent pages are answers", () => {
    const { v } = space();
    const end = KERNEL + 0x3000;
    expect(v.read8(end)).toBe(-1);
    expect(v.read32(end - 2)).toBe(-1);
    expect(v.readU64(end - 4)).toBeUndefined();
    expect(v.readPtr(end - 7)).toBeNaN();
    expect(v.read(end - 16, 17)).toBeUndefined();
    expect(v.readPartial(end - 16, new Uint8Array(40))).toBe(16);
    expect(v.write(end - 1, Uint8Array.of(1, 2))).toBe(false);
    expect(v.fill(end - 1, 2, 7)).toBe(false);
    expect(v.read8(end - 1)).toBe(0);
    expect(v.translate(end)).toBeUndefined();
    expect(v.last.lastLevel).toBe("PTE");
    // Present in the tables, but device space.
    expect(v.gpaOf(KERNEL + 0x8000)).toBe(0xfee00000);
    expect(v.read32(KERNEL + 0x8000)).toBe(-1);
    expect(v.write8(KERNEL + 0x8000, 1)).toBe(false);
    expect(v.read(KERNEL + 0x8000, 8)).toBeUndefined();
  });

  test("blocks and strings", () => {
    const { v } = space();
    const text = new TextEncoder().encode("init_task über\0rest");
    expect(v.write(EDGE - 5, text)).toBe(true);
    expect(v.readString(EDGE - 5, 64)).toBe("init_task über");
    expect(v.readString(EDGE - 5, 4)).toBe("init");
    expect(v.readString(KERNEL + 0x2fff, 64)).toBe("");
    v.fill(KERNEL + 0x2ff0, 16, 0x41);
    expect(v.readString(KERNEL + 0x2ff0, 64)).toBeUndefined();
    expect(v.readString(KERNEL + 0x2ff0, 16)).toBe("A".repeat(16));
    v.write(EDGE - 3, Uint8Array.of(0x41, 0, 0x42, 0, 0, 0));
    expect(v.readString16(EDGE - 3, 64)).toBe("AB");
    const inPlace = v.map(KERNEL + 8, 8)!;
    inPlace.bytes[0] = 0x55;
    expect(inPlace.direct).toBe(true);
    expect(v.read8(KERNEL + 8)).toBe(0x55);
    const copy = v.map(EDGE - 4, 8)!;
    copy.bytes[0]++;
    expect([copy.direct, copy.bytes.length]).toEqual([false, 8]);
    expect(v.read8(EDGE - 4)).not.toBe(copy.bytes[0]);
  });

  test("an error leaves what the comments say", () => {
    const { v, m } = space();
    const end = KERNEL + 0x3000;
    v.fill(KERNEL, 0x3000, 0x11);
    // Reads: what is before the absent page, and nothing after it.
    const into = new Uint8Array(8);
    expect(v.readInto(end - 3, into)).toBe(false);
    expect(into).toEqual(Uint8Array.of(0x11, 0x11, 0x11, 0, 0, 0, 0, 0));
    const u64 = { lo: 1, hi: 2 };
    expect(v.readU64Into(end - 3, u64)).toBe(false);
    expect(u64).toEqual({ lo: 1, hi: 2 });
    // Writes of every size over the end of what is present, or into device space: nothing.
    expect([v.write16(end - 1, 0), v.write32(end - 2, 0), v.writeU64(end - 7, 0, 0)]).toEqual([
      false,
      false,
      false,
    ]);
    expect(v.write(end - 100, new Uint8Array(101))).toBe(false);
    expect(v.fill(KERNEL, 0x3001, 0)).toBe(false);
    expect(v.read(KERNEL, 0x3000)!.every((b) => b === 0x11)).toBe(true);
    expect(v.write(KERNEL + 0x8000, new Uint8Array(1))).toBe(false);
    expect(m.write32(4 * MIB - 2, 0xffffffff)).toBe(false);
    expect(m.read16(4 * MIB - 2)).toBe(0);
    const some = new Uint8Array(16).fill(9);
    expect(m.readPartial(4 * MIB - 5, some)).toBe(5);
    expect([some[4], some[5]]).toEqual([0, 9]);
  });

  test("lengths from a guest: none throws or allocates what is not there", () => {
    const { v, m } = space();
    for (const length of [-1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, 2 ** 52]) {
      expect(v.read(KERNEL, length)).toBeUndefined();
      expect(v.map(KERNEL, length)).toBeUndefined();
      expect(v.fill(KERNEL, length, 0)).toBe(false);
      expect(m.read(0, length)).toBeUndefined();
      expect(m.map(0, length)).toBeUndefined();
      expect(m.fill(0, length, 0)).toBe(false);
    }
    for (const gva of [Number.NaN, 2 ** 60, Number.NEGATIVE_INFINITY]) {
      expect(v.write(gva, Uint8Array.of(1, 2))).toBe(false);
      expect(v.fill(gva, 2, 1)).toBe(false);
      expect(v.write32(gva, 1)).toBe(false);
      expect(v.read(gva, 2)).toBeUndefined();
    }
    expect(v.readString(KERNEL, -5)).toBe("");
    expect(v.read(KERNEL + 0x5000, 0)).toEqual(new Uint8Array(0));
    expect(v.write(KERNEL + 0x5001, new Uint8Array(0))).toBe(true);
  });

  test("several ranges in one call, each as far as it is present", () => {
    const { v } = space();
    v.fill(KERNEL, 0x3000, 7);
    const ranges = [
      { gva: KERNEL + 0xff0, into: new Uint8Array(32), done: -1 },
      { gva: KERNEL + 0x2ffe, into: new Uint8Array(4), done: -1 },
      { gva: 0x800000000000, into: new Uint8Array(1), done: -1 },
      { gva: KERNEL, into: new Uint8Array(0), done: -1 },
    ];
    expect(v.readMany(ranges)).toBe(2);
    expect(ranges.map((r) => r.done)).toEqual([32, 2, 0, 0]);
    expect(ranges[1].into).toEqual(Uint8Array.of(7, 7, 0, 0));
  });

  test("ranges end where the address space does, and wrap only in long mode's top half", () => {
    const { m } = space();
    const wide = new FakeTables(m, "4level", 0x40000);
    wide.map(-0x1000, 0x5000);
    wide.map(0, 0x6000);
    wide.map(0x7ffffffff000, 0x7000);
    m.write(0x5ffe, Uint8Array.of(1, 2));
    m.write(0x6000, Uint8Array.of(3, 4));
    const v = new VirtualMemory(m, wide.root, "4level");
    expect(v.read32(-2)).toBe(0x04030201);
    expect(v.write32(-2, 0x0a0b0c0d)).toBe(true);
    expect(m.read16(0x6000)).toBe(0x0a0b);
    expect(v.read32(0x7ffffffffffe)).toBe(-1);
    expect(v.readPartial(0x7ffffffffffe, new Uint8Array(4))).toBe(2);
    const narrow = new FakeTables(m, "32", 0x60000);
    narrow.map(0xfffff000, 0x5000);
    narrow.map(0, 0x6000);
    const n = new VirtualMemory(m, narrow.root, "32");
    expect(n.readPartial(0xfffffffe, new Uint8Array(4))).toBe(2);
    expect(n.read16(0xffffffff)).toBe(-1);
  });

  test("57-bit addresses, also over a multiple of 4 GiB", () => {
    const m = memory();
    const tables = new FakeTables(m, "5level", 0x10000);
    tables.map(0xff11_0000_ffff_f000n, 0x5000);
    tables.map(0xff11_0001_0000_0000n, 0x9000);
    m.write(0x5ffe, Uint8Array.of(1, 2));
    m.write(0x9000, Uint8Array.of(3, 4));
    const v = new VirtualMemory(m, tables.root, "5level");
    const out = new Uint8Array(4);
    expect(v.readHalves(0xfffffffe, 0xff110000, out)).toBe(4);
    expect(out).toEqual(Uint8Array.of(1, 2, 3, 4));
    expect(v.readHalves(0xffe, 0xff110001, out)).toBe(2);
    expect(v.readHalves(0, 0x01000000, out)).toBe(0);
    const t = new Translation();
    expect(translateHalves(m, tables.root, "5level", 0, 0x01000000, t)).toBe(false);
    expect(t.status).toBe(TranslationStatus.NotCanonical);
  });

  test("hostile tables: a root that points to itself ends", () => {
    const m = memory(0x1000);
    for (let i = 0; i < 512; i++) m.writeU64(i * 8, 0x67, 0);
    const v = new VirtualMemory(m, 0, "5level");
    expect(v.read8(KERNEL)).toBe(0x67);
    expect(v.read(KERNEL, 0x8000)!.length).toBe(0x8000);
  });
});
