// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import {
  EXIT_ACCESS,
  EXIT_GPA,
  GuestRam,
  HVI_ACCESS_EXEC,
  HVI_ACCESS_NO_RAM,
  HVI_CS,
  HVI_RAX,
  HVI_RBX,
  HVI_RCX,
  HVI_RDI,
  HVI_STATE_ALL,
  VCPU_VALID,
  Vcpu,
} from "../bridge/index.ts";
import { MmioEmulator } from "./mmio.ts";
import { MmioMap } from "./ports.ts";

const BASE = 0xfee00000;
const AT = 0x1000;
const ZF = 0x40;
const CF = 1;
const SF = 0x80;

/** A vCPU in flat 32-bit mode at `code`, whose access to the device at BASE just exited. */
function make(code: number[], memory: number) {
  const ram = GuestRam.allocate(0x10000);
  (ram.view(AT, code.length) as Uint8Array).set(code);
  const vcpu = new Vcpu(0, new Uint8Array(4096), () => {});
  vcpu.u32[VCPU_VALID >>> 2] = HVI_STATE_ALL;
  vcpu.setSeg(HVI_CS, 8, 0, 0xffffffff, 0xc09b);
  vcpu.rip = AT;
  vcpu.rflags = 2;
  vcpu.u32[EXIT_GPA >>> 2] = BASE;
  vcpu.u32[EXIT_ACCESS >>> 2] = HVI_ACCESS_NO_RAM;
  const written: [number, number, number][] = [];
  const map = new MmioMap();
  map.add(
    {
      mmioRead: () => memory,
      mmioWrite: (offset, size, value) => written.push([offset, size, value]),
    },
    BASE,
    0x1000,
  );
  const mmio = new MmioEmulator(ram, map);
  return { ram, vcpu, written, done: () => mmio.handle(vcpu) };
}

const hasDecoder = existsSync(join(import.meta.dir, "../../build/zydis.wasm"));

describe.skipIf(!hasDecoder)("instructions on device memory", () => {
  test("the same bytes mean something else when the code segment's size changes", () => {
    const { vcpu, done } = make([0x8b, 0x03], 0x89abcdef);
    expect(done()).toBeUndefined();
    expect(vcpu.gprLo(HVI_RAX)).toBe(0x89abcdef);
    vcpu.setGpr(HVI_RAX, 0x11223344, 0);
    vcpu.setSeg(HVI_CS, 8, 0, 0xffff, 0x009b);
    vcpu.rip = AT;
    expect(done()).toBeUndefined();
    expect(vcpu.gprLo(HVI_RAX)).toBe(0x1122cdef);
  });

  test("loads: MOV, MOVZX, MOVSX, a high byte register", () => {
    for (const [code, register, before, after] of [
      [[0x8b, 0x03], HVI_RAX, 0, 0x89abcdef],
      [[0x0f, 0xb6, 0x0b], HVI_RCX, 0, 0xef],
      [[0x0f, 0xbe, 0x0b], HVI_RCX, 0, 0xffffffef],
      [[0x0f, 0xb7, 0x0b], HVI_RCX, 0, 0xcdef],
      [[0x8a, 0x23], HVI_RAX, 0x11223344, 0x1122ef44],
      [[0x66, 0x8b, 0x03], HVI_RAX, 0x11223344, 0x1122cdef],
    ] as [number[], number, number, number][]) {
      const { vcpu, done } = make(code, 0x89abcdef);
      vcpu.setGpr(register, before, 0);
      expect(done()).toBeUndefined();
      expect(vcpu.gprLo(register)).toBe(after);
      expect(vcpu.rip).toBe(AT + code.length);
    }
  });

  test("stores: register, immediate, high byte, exchange", () => {
    for (const [code, value] of [
      [
        [0x89, 0x03],
        [0, 4, 0x11223344],
      ],
      [
        [0xc7, 0x03, 1, 0, 0, 0x80],
        [0, 4, 0x80000001],
      ],
      [
        [0x88, 0x23],
        [0, 1, 0x33],
      ],
      [
        [0x87, 0x03],
        [0, 4, 0x11223344],
      ],
    ] as [number[], [number, number, number]][]) {
      const { vcpu, written, done } = make(code, 7);
      vcpu.setGpr(HVI_RAX, 0x11223344, 0);
      done();
      expect(written).toEqual([value]);
      if (code[0] === 0x87) expect(vcpu.gprLo(HVI_RAX)).toBe(7);
    }
  });

  test("TEST, CMP, AND, OR, XOR set the flags and write back what they must", () => {
    const flags = (code: number[], memory: number, rax = 0) => {
      const m = make(code, memory);
      m.vcpu.setGpr(HVI_RAX, rax, 0);
      m.done();
      return { flags: m.vcpu.rflags & (ZF | CF | SF), written: m.written };
    };
    expect(flags([0xf7, 0x03, 0, 0x10, 0, 0], 0x1000)).toEqual({ flags: 0, written: [] });
    expect(flags([0xf7, 0x03, 0, 0x10, 0, 0], 0x2000)).toEqual({ flags: ZF, written: [] });
    expect(flags([0x39, 0x03], 5, 5)).toEqual({ flags: ZF, written: [] });
    expect(flags([0x39, 0x03], 4, 5)).toEqual({ flags: CF | SF, written: [] });
    expect(flags([0x3b, 0x03], 4, 5)).toEqual({ flags: 0, written: [] });
    expect(flags([0x21, 0x03], 0xf0, 0x3c)).toEqual({ flags: 0, written: [[0, 4, 0x30]] });
    expect(flags([0x09, 0x03], 0xf0, 0x0f)).toEqual({ flags: 0, written: [[0, 4, 0xff]] });
    expect(flags([0x31, 0x03], 0xf0, 0xf0)).toEqual({ flags: ZF, written: [[0, 4, 0]] });
  });

  test("REP STOS goes on until the count is zero", () => {
    const { vcpu, written, done } = make([0xf3, 0xab], 0);
    vcpu.setGpr(HVI_RCX, 2, 0);
    vcpu.setGpr(HVI_RDI, BASE, 0);
    vcpu.setGpr(HVI_RAX, 9, 0);
    done();
    expect(vcpu.rip).toBe(AT);
    done();
    expect(vcpu.rip).toBe(AT + 2);
    expect(vcpu.gprLo(HVI_RDI)).toBe(BASE + 8);
    expect(written.length).toBe(2);
  });

  test("code that changed under its address is decoded again", () => {
    const { ram, vcpu, written, done } = make([0x89, 0x03], 0);
    vcpu.setGpr(HVI_RAX, 1, 0);
    vcpu.setGpr(HVI_RBX, 2, 0);
    done();
    (ram.view(AT, 2) as Uint8Array).set([0x89, 0x1b]);
    vcpu.rip = AT;
    done();
    expect(written.map((w) => w[2])).toEqual([1, 2]);
  });

  test("other instructions, and code in device space, are told by name", () => {
    expect(make([0x0f, 0xc1, 0x03], 0).done()).toMatch(/^XADD \(0f c1 03\).*0xfee00000/);
    const jumped = make([0x90], 0);
    jumped.vcpu.u32[EXIT_ACCESS >>> 2] = HVI_ACCESS_NO_RAM | HVI_ACCESS_EXEC;
    expect(jumped.done()).toContain("jumped to 0xfee00000");
  });
});
