// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { fakeVm } from "../bridge/fake.fixture.ts";
import {
  HVI_CS,
  HVI_FS,
  HVI_GS,
  HVI_R8,
  HVI_R15,
  HVI_RAX,
  HVI_SS,
  HVI_STATE_ALL,
  openVm,
  VCPU_VALID,
  type Vcpu,
} from "../bridge/index.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import { CURRENT_VCPU, Gprs, GuestState, Registers, Segments } from "./state.ts";

function longMode(vcpu: Vcpu, cr3: number): void {
  vcpu.cr0 = 0x80010033;
  vcpu.cr3 = cr3;
  vcpu.cr4 = 0x20;
  vcpu.efer = 0xd01;
  vcpu.rip = -0x7f000000;
  vcpu.rflags = 0x246;
  vcpu.setSeg(HVI_CS, 0x10, 0, 0xffffffff, 0xa09b);
  vcpu.setSeg(HVI_SS, 0x18, 0, 0xffffffff, 0xc093);
  vcpu.setSeg(HVI_GS, 0, -0x777777000000, 0xffffffff, 0xc093);
}

function guest() {
  const { vm, backend } = fakeVm({ size: 0x200000, vcpus: 3 });
  const physical = new PhysicalMemory(vm.ram);
  const tables = new FakeTables(physical, "4level", 0x10000);
  tables.map(-0x7e000000, 0x80000);
  for (const v of vm.vcpus) longMode(v, tables.root);
  const memory = new GuestMemory(physical);
  const state = new GuestState(vm, memory);
  return { vm, backend, physical, tables, memory, state };
}

describe("what is read", () => {
  test("general and control registers, without a call for the current vCPU", () => {
    const { vm, backend, state, tables } = guest();
    const vcpu = vm.vcpus[0];
    for (let i = HVI_RAX; i <= HVI_R15; i++) vcpu.setGpr(i, 0xfffffff0 + i, 0x80000000 + i);
    vcpu.cr2 = -0x1000;
    vcpu.cr8 = 3;
    vcpu.setDr(7, 0x400);
    backend.calls.length = 0;
    const out = new Gprs();
    state.readGprs(out);
    expect([...out.lo]).toEqual(Array.from({ length: 16 }, (_, i) => 0xfffffff0 + i));
    expect([out.hi[HVI_R8], out.rip, out.rflags]).toEqual([0x80000008, -0x7f000000, 0x246]);
    expect([out.cr0, out.cr2, out.cr3, out.cr4]).toEqual([0x80010033, -0x1000, tables.root, 0x20]);
    expect([out.cr8, out.dr7]).toEqual([3, 0x400]);
    vcpu.setGprNumber(HVI_RAX, -5);
    state.readGprs(out);
    expect(out.value(HVI_RAX)).toBe(-5);
    expect(backend.calls).toEqual([]);
  });

  test("a user's root of page-table isolation is shown as the kernel's", () => {
    const { vm, state, memory, tables } = guest();
    memory.kernelRootOf = (cr3) => cr3 - (cr3 % 0x2000);
    vm.vcpus[0].cr3 = tables.root + 0x1000 + 0x80;
    const out = new Gprs();
    state.readGprs(out);
    expect([out.cr3, state.cr3(), vm.vcpus[0].cr3]).toEqual([
      tables.root,
      tables.root,
      tables.root + 0x1080,
    ]);
  });

  test("segments, descriptor tables, an entry of the IDT, ring and mode", () => {
    const { vm, physical, state } = guest();
    const vcpu = vm.vcpus[0];
    vcpu.setSeg(HVI_FS, 0x2b, 0x7f0000001000, 0xfffff, 0xc0f3);
    vcpu.setIdt(-0x7e000000, 0xfff);
    vcpu.setGdt(-0x7e000000 + 0x800, 0x7f);
    const segments = new Segments();
    state.readSegments(segments);
    expect([segments.selector[HVI_CS], segments.access[HVI_CS]]).toEqual([0x10, 0xa09b]);
    expect([segments.base[HVI_FS], segments.limit[HVI_FS]]).toEqual([0x7f0000001000, 0xfffff]);
    expect(segments.base[HVI_GS]).toBe(-0x777777000000);
    const all = new Registers();
    state.readRegisters(all);
    expect([all.idtBase, all.idtLimit, all.gdtBase, all.gdtLimit, all.rip]).toEqual([
      -0x7e000000,
      0xfff,
      -0x7e000000 + 0x800,
      0x7f,
      -0x7f000000,
    ]);
    physical.writeU64(0x80000 + 16 * 14, 0x00101234, 0x8100ee02);
    physical.writeU64(0x80000 + 16 * 14 + 8, 0xffffffff, 0);
    expect(state.idtEntry(14)).toMatchObject({
      offset: -0x7effedcc,
      dpl: 3,
      ist: 2,
      selector: 0x10,
    });
    expect(state.idtEntry(256)).toBeUndefined();
    vcpu.setIdt(0x1000, 0xfff);
    expect(state.idtEntry(14)).toBeUndefined();
    expect([state.ring(), state.mode()]).toEqual([0, 64]);
    vcpu.setSeg(HVI_SS, 0x2b, 0, 0xffffffff, 0xc0f3);
    vcpu.setSeg(HVI_CS, 0x23, 0, 0xffffffff, 0xc0fb);
    expect([state.ring(), state.mode()]).toEqual([3, 32]);
  });

  test("of the machine: vCPUs, TSC, the last frame, XSAVE, MSRs", () => {
    const { vm, state, backend } = guest();
    expect([state.cpuCount, state.tscSpeed, state.maxGfn]).toEqual([3, 1e9, 0x1ff]);
    expect(state.xsaveSize).toBe(832);
    const area = new Uint8Array(832);
    area[24] = 0x80;
    expect(state.setXsave(area, 1)).toBe(true);
    expect(state.readXsave(1)).toEqual(area);
    expect(state.readXsave(0)).not.toEqual(area);
    vm.setMsrs(0, [{ index: 0x277, value: 0x8007040600070406n }]);
    const out = { lo: 1, hi: 1 };
    expect(state.readMsr(0x277, out)).toBe(true);
    expect(out).toEqual({ lo: 0x00070406, hi: 0x80070406 });
    backend.failNth(1, 22, "HVI_GET_MSRS");
    expect(state.readMsr(0x999, out)).toBe(false);
    backend.failNth(1, 22, "HVI_SET_XSAVE");
    expect(state.setXsave(area)).toBe(false);
    backend.failNth(1, 9, "HVI_SET_XSAVE");
    expect(() => state.setXsave(area)).toThrow("EBADF");
  });
});

describe("another vCPU", () => {
  test("is paused, fetched and let go on", () => {
    const { vm, state, backend } = guest();
    const other = vm.vcpus[2];
    other.u32[VCPU_VALID >>> 2] = 0;
    backend.calls.length = 0;
    expect(state.look(2)).toBe(other);
    expect(backend.calls.map((c) => [c.name, c.args.vcpu])).toEqual([
      ["HVI_PAUSE", 2],
      ["HVI_FETCH", 2],
      ["HVI_RESUME", 2],
    ]);
    expect(other.valid).toBe(HVI_STATE_ALL);
    // The current one is whichever exited.
    state.current = other;
    backend.calls.length = 0;
    expect([state.look(2), state.look(), state.look(CURRENT_VCPU)]).toEqual([other, other, other]);
    expect(backend.calls).toEqual([]);
    state.look(0);
    expect(backend.count("HVI_FETCH")).toBe(1);
  });

  test("that somebody paused stays so: pauses are counted", () => {
    const { state, backend } = guest();
    state.pause(1);
    state.pause();
    state.look(1);
    expect([backend.count("HVI_PAUSE"), backend.count("HVI_RESUME")]).toEqual([3, 0]);
    state.resume();
    expect(backend.count("HVI_RESUME")).toBe(2);
    state.look(1);
    expect(backend.count("HVI_RESUME")).toBe(2);
    state.resume(1);
    expect(backend.count("HVI_RESUME")).toBe(3);
    expect(() => state.resume(1)).toThrow("not paused");
  });

  test("goes on when it cannot be fetched", () => {
    const { state, backend } = guest();
    backend.failNth(1, 5, "HVI_FETCH");
    expect(() => state.look(1)).toThrow("EIO");
    expect([backend.count("HVI_PAUSE"), backend.count("HVI_RESUME")]).toEqual([1, 1]);
  });

  test("that does not exist is a RangeError", () => {
    const { state } = guest();
    for (const cpu of [3, -2, 1.5, Number.NaN]) expect(() => state.look(cpu)).toThrow(RangeError);
  });
});

describe("what is set", () => {
  test("general registers, RIP and RFLAGS, and nothing else", () => {
    const { vm, state, tables } = guest();
    const from = new Registers();
    state.readRegisters(from);
    for (let i = 0; i < 16; i++) {
      from.lo[i] = i;
      from.hi[i] = 0xffffffff - i;
    }
    Object.assign(from, { rip: 0x400000, rflags: 0x202, cr0: 1, cr3: 0, cr4: 0 });
    Object.assign(from, { idtBase: 7, idtLimit: 7, gdtBase: 7, gdtLimit: 7 });
    expect(state.setGprs(from, 1)).toBe(true);
    const v = vm.vcpus[1];
    expect([v.gprLo(9), v.gprHi(9), v.rip, v.rflags]).toEqual([9, 0xfffffff6, 0x400000, 0x202]);
    expect([v.cr0, v.cr3, v.cr4, v.idtBase, v.gdtLimit]).toEqual([
      0x80010033,
      tables.root,
      0x20,
      0,
      0,
    ]);
    expect(vm.vcpus[0].rip).toBe(-0x7f000000);
  });

  test("a RIP that the CPU would not take changes nothing", () => {
    const { vm, state } = guest();
    const from = new Gprs();
    for (const rip of [2 ** 47, -(2 ** 47) - 1, Number.NaN, 0.5]) {
      from.rip = rip;
      expect(state.setGprs(from)).toBe(false);
    }
    vm.vcpus[0].setSeg(HVI_CS, 0x23, 0, 0xffffffff, 0xc0fb);
    from.rip = 2 ** 32;
    expect(state.setGprs(from)).toBe(false);
    expect(vm.vcpus[0].rip).toBe(-0x7f000000);
    from.rip = 0xfffffff0;
    expect(state.setGprs(from)).toBe(true);
  });
});

test("the software vCPU answers the same questions", () => {
  const vm = openVm({ backend: "soft" });
  vm.create({ vcpus: 2 });
  vm.addMemory({ gpa: 0, size: 0x100000 });
  vm.mapMemory();
  vm.setCpuid(vm.supportedCpuid());
  const state = new GuestState(vm, new GuestMemory(new PhysicalMemory(vm.ram)));
  const out = new Registers();
  // After reset (SDM vol. 3, table 9-1).
  vm.reset(1);
  state.readRegisters(out, 1);
  expect([out.rip, out.rflags & 2, out.cr0 & 1, out.idtLimit]).toEqual([0xfff0, 2, 0, 0xffff]);
  expect([state.ring(1), state.mode(1)]).toEqual([0, 16]);
  const value = { lo: 0, hi: 0 };
  expect(state.readMsr(0x277, value, 1)).toBe(true);
  expect(value).toEqual({ lo: 0x00070406, hi: 0x00070406 });
  expect(state.readMsr(0x12345, value, 1)).toBe(false);
  expect(state.readXsave(1).length).toBe(state.xsaveSize);
  const area = state.readXsave(1);
  area[530] = 1;
  expect(state.setXsave(area, 1)).toBe(false);
  out.rip = 0x1234;
  expect(state.setGprs(out, 1)).toBe(true);
  vm.close();
});
