// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import * as abi from "../bridge/abi.ts";
import { assetPath } from "../bridge/assets.ts";
import { openVm, type Vm } from "../bridge/index.ts";
import {
  mmxOf,
  readMmx,
  readOpmask,
  readVector,
  setMmxOf,
  setVectorOf,
  vectorOf,
  writeMmx,
  writeVector,
  XsaveLayout,
} from "./xsave.ts";

/** n bytes that count up. */
function count(n: number, from = 1): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(n);
  for (let i = 0; i < n; i++) bytes[i] = from + i;
  return bytes;
}

describe("registers of an XSAVE area", () => {
  test("XMM and YMM", () => {
    const area = new Uint8Array(832);
    const out = new Uint8Array(32);
    expect(writeVector(area, 5, count(32))).toBe(true);
    expect(area[512] & 6).toBe(6);
    expect(readVector(area, 5, out) && out).toEqual(count(32));
    expect(readVector(area, 4, out) && out.every((b) => b === 0)).toBe(true);
    // XMM alone leaves the upper half.
    expect(writeVector(area, 5, count(16, 100))).toBe(true);
    expect(readVector(area, 5, out) && [out[0], out[16]]).toEqual([100, 17]);
    expect(readVector(area, 16, out)).toBe(false);
    expect(writeVector(area, 16, count(16))).toBe(false);
    expect(writeVector(area, 0, count(24))).toBe(false);
    expect(writeVector(area.subarray(0, 576), 0, count(32))).toBe(false);
  });
  test("ZMM and mask registers stand where CPUID says", () => {
    const row = (index: number, eax: number, ebx: number) => ({
      ...{ leaf: 0xd, index, flags: 1, eax, ebx, ecx: 0, edx: 0 },
    });
    const layout = new XsaveLayout([row(5, 64, 832), row(6, 512, 896), row(7, 1024, 1408)]);
    const area = new Uint8Array(2432);
    area[512] = 0xe7;
    area.set(count(16), 160 + 16 * 3);
    area.set(count(16, 17), 576 + 16 * 3);
    area.set(count(32, 33), 896 + 32 * 3);
    area.set(count(64, 101), 1408 + 64);
    area.set(count(8, 7), 832 + 8 * 2);
    const out = new Uint8Array(64);
    expect(readVector(area, 3, out, 64, layout) && out).toEqual(count(64));
    expect(readVector(area, 17, out, 64, layout) && out).toEqual(count(64, 101));
    expect(readOpmask(area, 2, out, layout) && out.slice(0, 8)).toEqual(count(8, 7));
    expect(readOpmask(area, 8, out, layout)).toBe(false);
    expect(readVector(area, 3, out, 64)).toBe(false);
    expect(readVector(area.subarray(0, 900), 3, out, 64, layout)).toBe(false);
    area[512] = 7;
    expect(readVector(area, 3, out, 64, layout) && out[40]).toBe(0);
    expect(readOpmask(area, 2, out, new XsaveLayout([]))).toBe(false);
  });
  test("MM registers go round with TOP", () => {
    const area = new Uint8Array(576);
    const out = new Uint8Array(8);
    expect(readMmx(area, 1, out) && out.every((b) => b === 0)).toBe(true);
    expect(writeMmx(area, 1, count(8))).toBe(true);
    // FCW as after FNINIT, the register valid, its exponent all ones.
    expect([area[0], area[1], area[4], area[512]]).toEqual([0x7f, 3, 2, 1]);
    expect(area.slice(32 + 16, 32 + 26)).toEqual(Uint8Array.of(...count(8), 0xff, 0xff));
    // TOP = 3: what is ST(0) is the physical register 3.
    area[3] = 3 << 3;
    expect(readMmx(area, 4, out) && out).toEqual(count(8));
    expect(readMmx(area, 8, out)).toBe(false);
    expect(writeMmx(area, 0, count(4))).toBe(false);
  });
});

describe.skipIf(assetPath("libhvi-soft.so") === undefined)("registers of a vCPU", () => {
  /** Real mode at 0x1000 with SSE on; the instructions store to 0x2000. */
  function machine(code: readonly number[]): Vm {
    const vm = openVm({ backend: "soft" });
    vm.create({ vcpus: 1 });
    vm.addMemory({ gpa: 0, size: 0x100000 });
    vm.setCpuid(vm.supportedCpuid());
    vm.mapMemory();
    vm.ram.view(0x1000, code.length)?.set(code);
    vm.intercept(abi.HVI_INTERCEPT_HLT, 0, 1);
    const v = vm.vcpus[0];
    v.setSeg(abi.HVI_CS, 0, 0, 0xffff, 0x9b);
    v.cr4 = 0x600;
    v.rip = 0x1000;
    return vm;
  }

  test("what was set is what the guest stores, and the other way round", () => {
    // movups [0x2000], xmm3; movq [0x2010], mm5; movups xmm4, [0x2000]; movq mm6, [0x2010]; hlt
    const vm = machine([
      ...[0x0f, 0x11, 0x1e, 0x00, 0x20, 0x0f, 0x7f, 0x2e, 0x10, 0x20],
      ...[0x0f, 0x10, 0x26, 0x00, 0x20, 0x0f, 0x6f, 0x36, 0x10, 0x20, 0xf4],
    ]);
    const out = new Uint8Array(16);
    const mm = new Uint8Array(8);
    expect(setVectorOf(vm, 0, 3, count(16, 50))).toBe(true);
    expect(setMmxOf(vm, 0, 5, count(8, 90))).toBe(true);
    expect(vectorOf(vm, 0, 3, out) && out).toEqual(count(16, 50));
    vm.run();
    expect(vm.vcpus[0].exitReason).toBe(abi.HVI_EXIT_HLT);
    expect(vm.ram.view(0x2000, 24)).toEqual(Uint8Array.of(...count(16, 50), ...count(8, 90)));
    expect(vectorOf(vm, 0, 4, out) && out).toEqual(count(16, 50));
    expect(mmxOf(vm, 0, 6, mm) && mm).toEqual(count(8, 90));
    expect(setVectorOf(vm, 0, 16, out)).toBe(false);
    expect(setMmxOf(vm, 0, 9, mm)).toBe(false);
    vm.close();
  });
});
