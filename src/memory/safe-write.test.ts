// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { HVI_RWX, HVI_SS } from "../bridge/abi.ts";
import { fakeVm } from "../bridge/fake.fixture.ts";
import { GuestRam } from "../bridge/ram.ts";
import { FakeTables } from "./fake-tables.fixture.ts";
import { PhysicalMemory } from "./physical.ts";
import {
  PF_KEY,
  PF_PRESENT,
  PF_RESERVED,
  PF_USER,
  PF_WRITE,
  SAFE_WRITE_LIMIT,
  safeWrite,
  WriteAccess,
  WriteOutcome,
  WriteStop,
} from "./safe-write.ts";
import { DEFAULT_FEATURES, type PagingMode, PTE_D, PTE_P, PTE_RW, PTE_US } from "./translate.ts";
import { VirtualMemory } from "./virtual.ts";

const PTE_A = 1 << 5;
const BASE = 0x400000;
/** Pages side by side, named by their rights. */
const PAGES = { userRw: 0, userRo: 1, kernelRw: 2, kernelRo: 3, absent: 4, device: 5, plain: 6 };
const at = (page: keyof typeof PAGES, offset = 0): number => BASE + PAGES[page] * 0x1000 + offset;

function space(mode: Exclude<PagingMode, "none"> = "4level") {
  const m = new PhysicalMemory(GuestRam.allocate(0x400000));
  const tables = new FakeTables(m, mode, 0x10000);
  const leaf = (page: keyof typeof PAGES, gpa: number, flags: number): number =>
    tables.map(at(page), gpa, { flags }).at(-1) ?? -1;
  const entries = {
    userRw: leaf("userRw", 0x80000, PTE_P | PTE_RW | PTE_US),
    userRo: leaf("userRo", 0x81000, PTE_P | PTE_US),
    kernelRw: leaf("kernelRw", 0x82000, PTE_P | PTE_RW),
    kernelRo: leaf("kernelRo", 0x83000, PTE_P),
    device: leaf("device", 0xfee00000, PTE_P | PTE_RW | PTE_US),
    plain: leaf("plain", 0x86000, PTE_P | PTE_RW | PTE_US),
  };
  const features = { ...DEFAULT_FEATURES, physicalBits: mode === "32" ? 40 : 46 };
  const v = new VirtualMemory(m, tables.root, mode, features);
  const out = new WriteOutcome();
  const access = new WriteAccess();
  const write = (gva: number, length = 1, rights = (_gfn: number): number => HVI_RWX): boolean =>
    safeWrite(v, gva, new Uint8Array(length).fill(0xee), access, rights, out);
  const set = (o: Partial<WriteAccess>): void => void Object.assign(access, new WriteAccess(), o);
  return { m, v, tables, entries, out, access, write, set };
}

describe("a safe write", () => {
  // ring, WP, SMAP, AC -> which of userRw, userRo, kernelRw, kernelRo may be written (SDM 4.6.1).
  const rules: [Partial<WriteAccess>, string][] = [
    [{ ring: 3 }, "1000"],
    [{ ring: 3, wp: false }, "1000"],
    [{ ring: 3, smap: true }, "1000"],
    [{ ring: 0 }, "1010"],
    [{ ring: 1 }, "1010"],
    [{ ring: 2 }, "1010"],
    [{ ring: 0, wp: false }, "1111"],
    [{ ring: 0, smap: true }, "0010"],
    [{ ring: 0, smap: true, ac: true }, "1010"],
    [{ ring: 0, smap: true, wp: false }, "0011"],
    [{ ring: 0, smap: true, ac: true, wp: false }, "1111"],
  ];
  for (const mode of ["4level", "5level", "pae", "32"] as const) {
    test(`keeps to the rights of the tables: ${mode}`, () => {
      for (const [o, expected] of rules) {
        const s = space(mode);
        s.set(o);
        const got = (["userRw", "userRo", "kernelRw", "kernelRo"] as const)
          .map((page) => {
            const done = s.write(at(page));
            expect(s.v.read8(at(page))).toBe(done ? 0xee : 0);
            const code = PF_PRESENT | PF_WRITE | (o.ring === 3 ? PF_USER : 0);
            const stop = done ? WriteStop.None : WriteStop.PageFault;
            expect([s.out.stop, s.out.errorCode]).toEqual([stop, done ? 0 : code]);
            return done ? "1" : "0";
          })
          .join("");
        expect(`${JSON.stringify(o)} ${got}`).toBe(`${JSON.stringify(o)} ${expected}`);
      }
    });
  }

  test("tells which page and why", () => {
    const s = space();
    s.set({ ring: 3 });
    const why = (gva: number, length = 1): [boolean, WriteStop, number, number] => [
      s.write(gva, length),
      s.out.stop,
      s.out.errorCode,
      s.out.gva,
    ];
    expect(why(at("absent", 5))).toEqual([
      false,
      WriteStop.PageFault,
      PF_WRITE | PF_USER,
      at("absent", 5),
    ]);
    expect(why(at("device"))).toEqual([false, WriteStop.NoRam, 0, at("device")]);
    expect(why(0x800000000000)[1]).toBe(WriteStop.NotCanonical);
    expect(why(Number.NaN)[1]).toBe(WriteStop.NotCanonical);
    expect(why(BASE + 0.5)[1]).toBe(WriteStop.NotCanonical);
    expect(why(BASE, SAFE_WRITE_LIMIT + 1)[1]).toBe(WriteStop.Unsupported);
    s.m.writeU64(s.entries.userRw, 0x80067, 0x000f0000);
    expect(why(at("userRw"))).toEqual([
      false,
      WriteStop.PageFault,
      PF_PRESENT | PF_WRITE | PF_USER | PF_RESERVED,
      at("userRw"),
    ]);
    // A table that stands where no RAM is.
    s.m.writeU64(s.tables.root, 0xfee00067, 0);
    expect(why(at("userRw"))[1]).toBe(WriteStop.NoRam);
  });

  test("wants the EPT's leave for every page", () => {
    const s = space();
    const seen: number[] = [];
    const rights = (gfn: number): number => {
      seen.push(gfn);
      return gfn === 0x82 ? HVI_RWX - 2 : HVI_RWX;
    };
    expect(s.write(at("kernelRw"), 1, rights)).toBe(false);
    expect([s.out.stop, s.out.gva]).toEqual([WriteStop.Ept, at("kernelRw")]);
    expect(s.write(at("userRw"), 1, rights)).toBe(true);
    expect(seen).toEqual([0x82, 0x80]);
  });

  test("over pages is all or nothing", () => {
    const s = space();
    s.set({ wp: false });
    expect(s.write(at("userRw", 0xffe), 0x1004)).toBe(true);
    expect([s.v.read16(at("userRw", 0xffe)), s.v.read16(at("kernelRo", 0))]).toEqual([0xeeee, 0]);
    expect(s.m.read(0x81000, 0x1000)?.every((b) => b === 0xee)).toBe(true);
    expect(s.v.read32(at("kernelRw"))).toBe(0xeeee);
    const before = [s.v.read(BASE, 0x4000), s.m.read(0x10000, 0x8000)];
    expect(s.write(at("userRw"), 0x4001)).toBe(false);
    expect(s.out.gva).toBe(at("absent"));
    s.set({ ring: 3 });
    expect(s.write(at("userRw", 0xfff), 2)).toBe(false);
    expect(s.out.gva).toBe(at("userRo"));
    expect([s.v.read(BASE, 0x4000), s.m.read(0x10000, 0x8000)]).toEqual(before);
    // The wrap at the end of the lower half.
    s.tables.map(0x7ffffffff000, 0x90000);
    expect(s.write(0x7ffffffffffe, 2)).toBe(true);
    expect(s.write(0x7ffffffffffe, 3)).toBe(false);
    expect([s.out.stop, s.out.gva]).toEqual([WriteStop.NotCanonical, 0x800000000000]);
    expect(s.write(BASE, 0)).toBe(true);
  });

  test("marks entries accessed and pages dirty, as the CPU", () => {
    for (const mode of ["4level", "pae", "32"] as const) {
      const s = space(mode);
      s.v.translate(at("plain"));
      const entries = [...s.v.last.entryGpa.subarray(0, s.v.last.depth)];
      expect(s.write(at("plain"))).toBe(true);
      const marks = entries.map((gpa) => s.m.read32(gpa) & (PTE_A | PTE_D));
      const middle = entries.slice(1, -1).map(() => PTE_A);
      expect(marks).toEqual([mode === "pae" ? 0 : PTE_A, ...middle, PTE_A | PTE_D]);
      const upper = entries.map((gpa) => (mode === "32" ? 0 : s.m.read32(gpa + 4)));
      expect(upper.every((x) => x === 0)).toBe(true);
    }
  });

  test("keeps to protection keys", () => {
    const s = space();
    const key = 5;
    s.m.writeU64(s.entries.userRw, 0x80067, key << 27);
    const tries = (o: Partial<WriteAccess>): [boolean, WriteStop, number] => {
      s.set(o);
      return [s.write(at("userRw")), s.out.stop, s.out.errorCode];
    };
    const code = PF_PRESENT | PF_WRITE | PF_KEY;
    const [ad, wd] = [1 << (2 * key), 2 << (2 * key)];
    expect(tries({ ring: 3, pkru: ad })[0]).toBe(true);
    expect(tries({ ring: 3, pke: true, pkru: 0 })[0]).toBe(true);
    expect(tries({ ring: 3, pke: true, pkru: ~(ad | wd) >>> 0 })[0]).toBe(true);
    for (const pkru of [ad, wd]) {
      expect(tries({ ring: 3, pke: true, pkru })).toEqual([
        false,
        WriteStop.PageFault,
        code | PF_USER,
      ]);
      expect(tries({ ring: 0, pke: true, pkru })).toEqual([false, WriteStop.PageFault, code]);
    }
    // Without CR0.WP write-disable does not bind the supervisor, access-disable does.
    expect(tries({ ring: 0, wp: false, pke: true, pkru: wd })[0]).toBe(true);
    expect(tries({ ring: 0, wp: false, pke: true, pkru: ad })[0]).toBe(false);
    // What is not known is refused, and only where it counts.
    expect(tries({ ring: 3, pke: true })[1]).toBe(WriteStop.Unsupported);
    s.set({ pks: true });
    expect([s.write(at("kernelRw")), s.out.stop]).toEqual([false, WriteStop.Unsupported]);
    expect(s.write(at("userRw"))).toBe(true);
    s.set({ pke: true });
    expect(s.write(at("kernelRw"))).toBe(true);
  });

  test("takes what counts from a vCPU", () => {
    const { vm } = fakeVm();
    const vcpu = vm.vcpus[0];
    const access = new WriteAccess();
    vcpu.cr0 = 0x80000001;
    vcpu.cr4 = 0x20;
    vcpu.rflags = 2;
    vcpu.setSeg(HVI_SS, 0x2b, 0, 0xffffffff, 0xc0f3);
    access.from(vcpu);
    expect({ ...access }).toEqual({
      ring: 3,
      wp: false,
      smap: false,
      ac: false,
      pke: false,
      pkru: -1,
      pks: false,
    });
    vcpu.cr0 = 0x80010001;
    vcpu.cr4 = 0x1600020;
    vcpu.rflags = 0x40002;
    access.from(vcpu, 0, 0x55555554);
    expect({ ...access }).toEqual({
      ring: 0,
      wp: true,
      smap: true,
      ac: true,
      pke: true,
      pkru: 0x55555554,
      pks: true,
    });
  });

  test("without paging is a matter of RAM and EPT", () => {
    const m = new PhysicalMemory(GuestRam.allocate(0x10000));
    const v = new VirtualMemory(m, 0, "none");
    const out = new WriteOutcome();
    const access = new WriteAccess();
    const go = (gva: number, rights = HVI_RWX): boolean =>
      safeWrite(v, gva, Uint8Array.of(1), access, () => rights, out);
    expect([go(0x1000), go(0x20000), go(2 ** 32), go(0x1000, 5)]).toEqual([
      true,
      false,
      false,
      false,
    ]);
  });
});
