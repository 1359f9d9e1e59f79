// SPDX-License-Identifier: MIT
/** Register hooks over the real software vCPU: what the guest's instruction did in the end. */
import { afterEach, describe, expect, test } from "bun:test";
import {
  assetPath,
  HVI_CS,
  HVI_DTR_LGDT,
  HVI_DTR_LIDT,
  HVI_DTR_SIDT,
  HVI_EXIT_HLT,
  HVI_INTERCEPT_HLT,
  HVI_INTERCEPT_MSR_WRITE,
  HVI_RAX,
  HVI_RBX,
  HVI_RDX,
  openVm,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";
import { ALLOW, DENY, REPLIED } from "../hook-action.ts";
import { RegisterHooks } from "./register-hooks.ts";

const LSTAR = 0xc0000082;
const TS = 8;
/** Real-mode code: mov ecx, LSTAR */
const MOV_ECX_LSTAR = [0x66, 0xb9, 0x82, 0x00, 0x00, 0xc0];
const movEax = (value: number) => [0x66, 0xb8, value, 0, 0, 0];
const movEdx = (value: number) => [0x66, 0xba, value, 0, 0, 0];
const HLT = 0xf4;

let vm: Vm | undefined;
afterEach(() => vm?.close());

/** A vCPU in real mode at this code, which ends in HLT, and hooks in front of it. */
function setup(...code: number[]) {
  vm = openVm({ backend: "soft" });
  const machine = vm;
  machine.create({ vcpus: 1 });
  machine.addMemory({ gpa: 0, size: 0x100000 });
  machine.mapMemory();
  machine.setCpuid(machine.supportedCpuid());
  machine.ram.view(0x1000, code.length + 1)?.set([...code, HLT]);
  machine.intercept(HVI_INTERCEPT_HLT, 0, 1);
  const vcpu = machine.vcpus[0] as Vcpu;
  vcpu.setSeg(HVI_CS, 0, 0, 0xffff, 0x9b);
  vcpu.rip = 0x1000;
  const hooks = new RegisterHooks(machine);
  /** Runs to the HLT; how many exits the hooks took. `then` is called after each. */
  const run = (then = () => {}): number => {
    for (let taken = 0; taken < 100; taken++) {
      machine.run();
      if (vcpu.exitReason === HVI_EXIT_HLT) return taken;
      expect(hooks.dispatch(vcpu)).toBe(true);
      then();
    }
    throw new Error("the guest does not end");
  };
  return { vm: machine, vcpu, hooks, run };
}

describe.skipIf(assetPath("libhvi-soft.so") === undefined)("software vCPU", () => {
  test("MOV to CR0 is allowed, CLTS and LMSW of the same bit are denied", () => {
    const { vcpu, hooks, run } = setup(
      ...[0x0f, 0x20, 0xc0, 0x0c, TS, 0x0f, 0x22, 0xc0], // mov eax, cr0; or al, 8; mov cr0, eax
      ...[0x0f, 0x06], // clts
      ...[0x31, 0xc0, 0x0f, 0x01, 0xf0], // xor ax, ax; lmsw ax
      ...[0x0f, 0x20, 0xc3], // mov ebx, cr0
    );
    hooks.addCr(0, (access) => ((access.lo & TS) === 0 ? DENY : ALLOW), { mask: TS });
    expect(run()).toBe(3);
    expect(vcpu.gprLo(HVI_RBX) & TS).toBe(TS);
    expect(hooks.counters).toMatchObject({ exits: 3, allowed: 1, denied: 2 });
  });

  test("a write of CR0 that changes none of the bits makes no exit", () => {
    const { hooks, run } = setup(0x0f, 0x20, 0xc0, 0x0c, TS, 0x0f, 0x22, 0xc0);
    hooks.addCr(0, () => DENY, { mask: 1 << 16 });
    expect(run()).toBe(0);
  });

  test.each(["in its handler", "after its answer"])(
    "another value is written than the guest gave, also when the hook goes %s",
    (when) => {
      const { vm, vcpu, hooks, run } = setup(
        ...MOV_ECX_LSTAR,
        ...movEax(5),
        ...movEdx(0),
        ...[0x0f, 0x30], // wrmsr
      );
      const hook = hooks.addMsr(LSTAR, (access, self) => {
        access.vcpu.setExitValue(access.lo + 2, access.hi);
        if (when === "in its handler") hooks.remove(self);
        return ALLOW;
      });
      expect(run(() => hooks.remove(hook))).toBe(1);
      expect(vcpu.lstar).toBe(7);
      expect(vm.interceptMask(HVI_INTERCEPT_MSR_WRITE, LSTAR)).toBe(0);
    },
  );

  test("an MSR reads as the hook says, or not at all", () => {
    const { vcpu, hooks, run } = setup(
      ...MOV_ECX_LSTAR,
      ...[0x0f, 0x32, 0x66, 0x89, 0xc3], // rdmsr; mov ebx, eax
      ...movEax(9),
      ...[0x0f, 0x32],
    );
    let reads = 0;
    hooks.addMsr(
      LSTAR,
      ({ vcpu: reader }) => {
        if (++reads === 2) return DENY;
        reader.setGpr(HVI_RAX, 0x1234, 0);
        reader.setGpr(HVI_RDX, 0x5678, 0);
        reader.skip();
        return REPLIED;
      },
      { read: true },
    );
    expect(run()).toBe(2);
    expect([vcpu.gprLo(HVI_RBX), vcpu.gprLo(HVI_RAX)]).toEqual([0x1234, 9]);
  });

  test("a denied LIDT loads nothing, a denied SIDT stores nothing, LGDT is let through", () => {
    const { vm, vcpu, hooks, run } = setup(
      ...[0x0f, 0x01, 0x1e, 0x00, 0x20], // lidt [2000h]
      ...[0x0f, 0x01, 0x0e, 0x00, 0x30], // sidt [3000h]
      ...[0x0f, 0x01, 0x16, 0x00, 0x20], // lgdt [2000h]
    );
    vm.ram.view(0x2000, 6)?.set([0x34, 0x12, 0x78, 0x56, 0x34, 0]);
    const before = vcpu.idtBase;
    const operands: number[] = [];
    hooks.addDtr(HVI_DTR_LIDT | HVI_DTR_SIDT | HVI_DTR_LGDT, (access) => {
      operands.push(access.gva);
      return access.number === HVI_DTR_LGDT ? ALLOW : DENY;
    });
    expect(run()).toBe(3);
    expect(operands).toEqual([0x2000, 0x3000, 0x2000]);
    expect(vcpu.idtBase).toBe(before);
    expect(vm.ram.view(0x3000, 6)).toEqual(new Uint8Array(6));
    expect([vcpu.gdtBase, vcpu.gdtLimit]).toEqual([0x345678, 0x1234]);
  });

  test("XSETBV is denied", () => {
    const { vcpu, hooks, run } = setup(
      ...[0x66, 0x31, 0xc9, ...movEax(3), ...movEdx(0)], // xor ecx, ecx
      ...[0x0f, 0x01, 0xd1], // xsetbv
    );
    vcpu.cr4 = 0x40000; // OSXSAVE
    hooks.addXcr((access) => (access.lo === 3 && access.oldLo === 1 ? DENY : ALLOW));
    expect(run()).toBe(1);
    expect(vcpu.xcr0).toBe(1);
  });
});
