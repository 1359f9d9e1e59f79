// SPDX-License-Identifier: MIT
/** The bridge over the real software vCPU: loading, the run loop and the end of a machine. */
import { describe, expect, test } from "bun:test";
import * as abi from "./abi.ts";
import { assetPath } from "./assets.ts";
import { HviError } from "./error.ts";
import { openVm } from "./index.ts";
import type { Vm } from "./vm.ts";

const MIB = 0x100000;

/** A machine whose vCPU stands in real mode at 0x1000. */
function realMode(code: readonly number[]): Vm {
  const vm = openVm({ backend: "soft" });
  vm.create({ vcpus: 1 });
  vm.addMemory({ gpa: 0, size: MIB });
  vm.addMemory({ gpa: 0x100000000, size: MIB });
  vm.mapMemory();
  const ram = vm.ram.view(0x1000, code.length);
  ram?.set(code);
  const v = vm.vcpus[0];
  v.setSeg(abi.HVI_CS, 0, 0, 0xffff, 0x9b);
  v.rip = 0x1000;
  return vm;
}

describe.skipIf(assetPath("libhvi-soft.so") === undefined)("software vCPU", () => {
  test("says what it is", () => {
    const vm = openVm({ backend: "soft" });
    expect(vm.info.backend).toBe("soft");
    expect(vm.info.abiVersion).toBe(abi.HVI_ABI_VERSION);
    expect(vm.info.xsaveSize).toBeGreaterThanOrEqual(576);
    vm.close();
  });

  test("runs, exits, takes replies and registers", () => {
    // in al, 0xe8; out 0xe9, al; hlt
    const vm = realMode([0xe4, 0xe8, 0xe6, 0xe9, 0xf4]);
    vm.intercept(abi.HVI_INTERCEPT_HLT, 0, 1);
    const v = vm.run();
    expect([v.exitReason, v.exitNumber, v.exitSize, v.exitInsnLen]).toEqual([
      abi.HVI_EXIT_IO,
      0xe8,
      1,
      2,
    ]);
    v.setExitValue(0x5a, 0);
    v.skip();
    vm.run();
    expect([v.exitNumber, v.exitValueLo, v.gpr(abi.HVI_RAX) & 0xff]).toEqual([0xe9, 0x5a, 0x5a]);
    v.skip();
    vm.run();
    expect(v.exitReason).toBe(abi.HVI_EXIT_HLT);
    expect(v.rip).toBe(0x1004);
    expect(v.exits).toBe(3);
    vm.close();
  });

  test("memory is the guest's own, in both directions", () => {
    // mov [0x2000], 0x1234 (word); hlt
    const vm = realMode([0xc7, 0x06, 0x00, 0x20, 0x34, 0x12, 0xf4]);
    vm.intercept(abi.HVI_INTERCEPT_HLT, 0, 1);
    vm.setRights(0, 2, 1, abi.HVI_R);
    const v = vm.run();
    expect([v.exitReason, v.exitGpa, v.exitAccess & 7, v.exitRights]).toEqual([
      abi.HVI_EXIT_EPT,
      0x2000,
      abi.HVI_W,
      abi.HVI_R,
    ]);
    expect(vm.ram.view(0x2000, 2)).toEqual(Uint8Array.of(0, 0));
    v.resume();
    vm.run();
    expect(vm.ram.view(0x2000, 2)).toEqual(Uint8Array.of(0x34, 0x12));
    vm.close();
  });

  test("a state that cannot be entered is told by the field's name", () => {
    const vm = realMode([0xf4]);
    const v = vm.vcpus[0];
    v.cr0 = 0x80000010;
    vm.run();
    expect(v.exitName).toBe("ENTRY_FAILED");
    expect(v.entryFailure).toBe("invalid guest state, field GUEST_CR0");
    vm.close();
  });

  test("a deadline, spare pages, lists", () => {
    const vm = realMode([0xeb, 0xfe]);
    expect(vm.run(vm.vcpus[0].tsc + 1000).exitReason).toBe(abi.HVI_EXIT_DEADLINE);
    const spare = vm.addSpare(2);
    vm.spare(spare + 1)[4095] = 1;
    vm.remap(vm.createView(0), 2, spare);
    expect(vm.supportedCpuid().length).toBeGreaterThan(4);
    expect(vm.getMsrs(0, vm.listMsrs()).length).toBe(vm.listMsrs().length);
    const area = vm.getXsave(0);
    vm.setXsave(0, area);
    expect(vm.getXsave(0)).toEqual(area);
    expect(vm.rights(0, 0x100000)).toBe(abi.HVI_RWX);
    expect(vm.rights(0, 0x80000)).toBe(0);
    expect(() => vm.setRights(0, 1, 1, abi.HVI_W)).toThrow(HviError);
    vm.close();
  });

  test("machines come and go; a late view finds nothing", () => {
    for (let i = 0; i < 20; i++) {
      const vm = realMode([0xf4]);
      const kept = vm.ram.view(0x1000, 1);
      vm.close();
      expect(kept?.length).toBe(0);
      expect(() => vm.run()).toThrow("closed");
    }
  });
});
