// SPDX-License-Identifier: MIT
/** Guests that lie: random tables, tables that change while they are read, ranges without end. */
import { describe, expect, test } from "bun:test";
import { HVI_RWX } from "../bridge/abi.ts";
import { GuestRam } from "../bridge/ram.ts";
import { GuestMemory } from "./guest-memory.ts";
import { PhysicalMemory } from "./physical.ts";
import { SAFE_WRITE_LIMIT, safeWrite, WriteAccess, WriteOutcome } from "./safe-write.ts";
import { SWAPPED_LENGTH, SwappedMemory } from "./swapped.ts";
import {
  DEFAULT_FEATURES,
  type PagingFeatures,
  type PagingMode,
  Translation,
  translateHalves,
} from "./translate.ts";
import { READ_LIMIT, VirtualMemory } from "./virtual.ts";

const MODES = ["32", "pae", "4level", "5level"] as const;
const RAM = 0x40000;

let seed = 1;
/** 32 random bits. */
function random(): number {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return (seed ^ (seed >>> 15)) >>> 0;
}
const below = (n: number): number => random() % n;
const chance = (percent: number): boolean => below(100) < percent;

/** Fills RAM with entries of a kind that lead on often enough to be interesting. */
function fillTables(m: PhysicalMemory, mode: PagingMode): void {
  const size = mode === "32" ? 4 : 8;
  for (let gpa = 0; gpa < RAM; gpa += size) {
    let lo = (below(RAM / 0x1000) << 12) | 0x1;
    let hi = 0;
    if (chance(10)) lo &= ~1;
    if (chance(80)) lo |= 6;
    if (chance(30)) lo |= 1 << below(12);
    if (chance(12)) lo |= 0x80;
    if (chance(8)) lo = (random() & 0xfffff000) | (chance(50) ? 0x67 : 0xe7);
    if (chance(5)) hi |= 1 << below(32);
    if (chance(5)) hi |= 0x80000000;
    if (size === 4) m.write32(gpa, lo);
    else m.writeU64(gpa, lo, hi);
  }
}

interface Reference {
  status: string;
  gpa: bigint;
  depth: number;
  writable?: boolean;
  user?: boolean;
  nx?: boolean;
}

/** The walk of SDM vol. 3, chapter 4, written down once more, in 64-bit arithmetic and without tables. */
function reference(
  m: PhysicalMemory,
  root: number,
  mode: Exclude<PagingMode, "none">,
  address: bigint,
  f: PagingFeatures,
): Reference {
  const signed = BigInt.asIntN(64, address);
  const width = { "32": 32n, pae: 32n, "4level": 48n, "5level": 57n }[mode];
  const canonical =
    width === 32n ? address < 1n << 32n : BigInt.asIntN(Number(width), signed) === signed;
  if (!canonical) return { status: "NotCanonical", gpa: -1n, depth: 0 };
  const shifts = {
    "32": [22, 12],
    pae: [30, 21, 12],
    "4level": [39, 30, 21, 12],
    "5level": [48, 39, 30, 21, 12],
  }[mode];
  const frame = ((1n << 52n) - 1n) & ~0xfffn;
  const physical = (1n << BigInt(f.physicalBits)) - 1n;
  let table = BigInt(root);
  if (mode === "32") table &= 0xfffff000n;
  else if (mode === "pae") table &= 0xffffffe0n;
  else table &= frame;
  let [writable, user, nx] = [true, true, false];
  for (const [i, shift] of shifts.entries()) {
    const bits = mode === "32" ? 10n : mode === "pae" && i === 0 ? 2n : 9n;
    const size = mode === "32" ? 4n : 8n;
    const index = (address >> BigInt(shift)) & ((1n << bits) - 1n);
    const at = Number(table + index * size);
    const lo = m.read32(at);
    const hi = size === 8n ? m.read32(at + 4) : 0;
    if (lo < 0 || hi < 0) return { status: "NoRam", gpa: -1n, depth: i };
    const e = (BigInt(hi) << 32n) | BigInt(lo);
    const depth = i + 1;
    if ((e & 1n) === 0n) return { status: "NotPresent", gpa: -1n, depth };
    const pdpte = mode === "pae" && i === 0;
    const ps = (e & 0x80n) !== 0n;
    const large = ps && !pdpte && (shift === 21 || shift === 30 || (shift === 22 && f.pse));
    let reserved = 0n;
    if (size === 8n) {
      reserved |= ((1n << 52n) - 1n) & ~physical;
      if (!f.nxe) reserved |= 1n << 63n;
      if (pdpte) reserved |= 0xfff00000000001e6n;
      if (shift >= 39) reserved |= 0x80n;
      if (large) reserved |= ((1n << BigInt(shift)) - 1n) & ~0x1fffn;
    } else if (large) {
      for (let bit = Math.min(40, f.physicalBits) - 19; bit <= 21; bit++)
        reserved |= 1n << BigInt(bit);
    }
    if ((e & reserved) !== 0n) return { status: "Reserved", gpa: -1n, depth };
    if (!pdpte) {
      writable &&= (e & 2n) !== 0n;
      user &&= (e & 4n) !== 0n;
      nx ||= e >> 63n === 1n;
    }
    if (large || shift === 12) {
      const offset = (1n << BigInt(shift)) - 1n;
      let base = e & frame & ~offset;
      if (shift === 22) base = (e & 0xffc00000n) | (((e >> 13n) & 0xffn) << 32n);
      return { status: "Ok", gpa: base | (address & offset), depth, writable, user, nx };
    }
    table = e & frame;
  }
  throw new Error("no leaf");
}

describe("random tables", () => {
  for (const mode of MODES) {
    test(`${mode}: 20,000 walks end as another walk's`, () => {
      const met = new Set<string>();
      const t = new Translation();
      for (let round = 0; round < 10; round++) {
        const m = new PhysicalMemory(GuestRam.allocate(RAM));
        fillTables(m, mode);
        const features = {
          pse: chance(50),
          nxe: chance(50),
          physicalBits: [32, 36, 39, 46, 52][below(5)],
        };
        for (let i = 0; i < 2000; i++) {
          const root = chance(5) ? random() : below(RAM);
          const lo = random();
          let hi = mode === "32" || mode === "pae" ? 0 : chance(50) ? 0 : 0xffffffff;
          if (chance(30)) hi = random() >>> below(32);
          const address = (BigInt(hi >>> 0) << 32n) | BigInt(lo);
          const ok = translateHalves(m, root, mode, lo, hi, t, features);
          const wanted = reference(m, root, mode, address, features);
          const got: Reference = { status: t.statusName, gpa: BigInt(t.gpa), depth: t.depth };
          if (ok) Object.assign(got, { writable: t.writable, user: t.user, nx: t.nx });
          expect(got).toEqual(wanted);
          met.add(wanted.status);
        }
      }
      expect([...met].sort()).toEqual(["NoRam", "NotCanonical", "NotPresent", "Ok", "Reserved"]);
    });
  }
});

/** Memory that another vCPU writes to while the engine walks. */
class Restless extends PhysicalMemory {
  override tableAt(gfn: number): Uint32Array | undefined {
    for (let i = 0; i < 4; i++) {
      const gpa = below(RAM / 4) * 4;
      this.write32(gpa, chance(50) ? random() : (below(RAM / 0x1000) << 12) | 0x67);
    }
    return super.tableAt(gfn);
  }
}

describe("tables that change between two reads", () => {
  for (const mode of MODES) {
    test(`${mode}: every access ends with an answer`, () => {
      const m = new Restless(GuestRam.allocate(RAM));
      const out = new WriteOutcome();
      const access = new WriteAccess();
      const buffer = new Uint8Array(0x3000);
      const { memory, swapped, vcpu } = waiting(m);
      let answers = 0;
      for (let round = 0; round < 60; round++) {
        fillTables(m, mode);
        const v = new VirtualMemory(m, below(RAM), mode, DEFAULT_FEATURES);
        for (let i = 0; i < 10; i++) {
          const wide = mode === "4level" || mode === "5level";
          const gva = wide && chance(50) ? -random() * 0x1000 : random();
          const n = v.readPartial(gva, buffer);
          expect(n >= 0 && n <= buffer.length).toBe(true);
          if (v.readString(gva, 0x4000) !== undefined) answers++;
          if (v.read(gva, 0x2345) !== undefined) answers++;
          if (v.write(gva, buffer)) answers++;
          if (v.fill(gva, 0x1001, 0xff)) answers++;
          if (v.writeU64(gva, 1, 2)) answers++;
          if (v.readI64(gva) >= 0) answers++;
          if (safeWrite(v, gva, buffer, access, () => HVI_RWX, out)) answers++;
          expect(
            memory.current({ cr0: 0x80000001, cr3: v.root, cr4: 0x20, efer: 0xd00 }).gpaOf(gva),
          ).toBeNumber();
          swapped.read(v, gva, 0x2345, { inject: chance(50) }, () => answers++);
          vcpu.exitTsc += 2000;
          swapped.poll(vcpu as never);
        }
        if (chance(20)) swapped.cancelSpace(v.root);
      }
      expect(answers).toBeGreaterThan(0);
    });
  }
});

/** Swapped-out reads with a vCPU that can take nothing. */
function waiting(physical: PhysicalMemory) {
  const memory = new GuestMemory(physical);
  const swapped = new SwappedMemory({ memory, tscKhz: 1000 });
  return { memory, swapped, vcpu: { exitTsc: 0, eventPending: true } };
}

describe("tables that lead in circles", () => {
  /** One page that is every table and every page: each entry points to itself. */
  function circle(mode: Exclude<PagingMode, "none">): VirtualMemory {
    const m = new PhysicalMemory(GuestRam.allocate(0x2000));
    for (let at = 0; at < 0x1000; at += 8) {
      if (mode === "32") m.writeU64(at, 0x67, 0x67);
      else m.writeU64(at, mode === "pae" ? 0x1 : 0x67, 0);
    }
    return new VirtualMemory(m, 0, mode);
  }
  for (const mode of MODES) {
    test(`${mode}: strings and blocks are bounded`, () => {
      const v = circle(mode);
      expect(v.readString(0x1001, Number.POSITIVE_INFINITY)?.length).toBeLessThanOrEqual(65536);
      expect(v.readString16(0x1001, 2 ** 40)).toBeDefined();
      expect(v.read(0, READ_LIMIT + 1)).toBeUndefined();
      expect(v.read(0x10, 0x5000)?.length).toBe(0x5000);
      v.physical.fill(0x1000, 0x1000, 0x41);
      const bytes = new Uint8Array(SAFE_WRITE_LIMIT);
      const out = new WriteOutcome();
      const access = new WriteAccess();
      access.wp = false;
      // The first page written is the table of all that follows: the CPU's own business. It ends.
      expect(safeWrite(v, 0, bytes, access, () => HVI_RWX, out)).toBe(true);
      const { swapped } = waiting(v.physical);
      const results: boolean[] = [];
      swapped.read(v, 0, SWAPPED_LENGTH, { inject: false }, (r) => void results.push(r.ok));
      expect(swapped.waiting + results.length).toBe(1);
    });
  }

  test("a string without an end", () => {
    const m = new PhysicalMemory(GuestRam.allocate(0x3000));
    for (let at = 0; at < 0x1000; at += 8) m.writeU64(at, 0x1067, 0);
    for (let at = 0; at < 0x1000; at += 8) m.writeU64(0x1000 + at, 0x2067, 0);
    m.fill(0x2000, 0x1000, 0x41);
    // Root, then a table whose entries all lead to one page of letters, as deep as it goes.
    const v = new VirtualMemory(m, 0x0, "32");
    for (let at = 0; at < 0x1000; at += 4) m.write32(at, 0x1067);
    for (let at = 0; at < 0x1000; at += 4) m.write32(0x1000 + at, 0x2067);
    expect(v.readString(0x123, 2 ** 30)).toBe("A".repeat(65536));
    expect(v.readString16(0x123, 2 ** 30)?.length).toBe(32768);
    expect(v.readString(0xfffff000, 2 ** 30)).toBeUndefined();
  });

  test("tables at devices and beyond all RAM", () => {
    for (const table of [0xfee00067, 0x7ffff067]) {
      for (const hi of [0, 0xf, 0x7ff, 0xfffff]) {
        const m = new PhysicalMemory(GuestRam.allocate(0x2000));
        m.writeU64(0, table, hi);
        const t = new Translation();
        expect(translateHalves(m, 0, "4level", 0, 0, t)).toBe(false);
        expect([t.statusName, t.depth]).toEqual(["NoRam", 1]);
      }
    }
  });
});
