// SPDX-License-Identifier: MIT
import {
  EXIT_REASON,
  HVI_STATE_ALL,
  HviError,
  VCPU_GPR,
  VCPU_PENDING_DEBUG,
} from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import { Machine, type MachineOptions } from "../machine.ts";
import type { OpenSnapshot, VcpuState } from "./format.ts";

export type RestoreOptions = Omit<MachineOptions, "memory" | "cpus" | "ramFile" | "cpuid">;

/**
 * A machine as the snapshot left it. Its RAM is the file's, copied on write:
 * machines restored from the same file share what they have not changed.
 * The snapshot may be closed afterwards. Throws InputError, BackendError, HviError.
 */
export function restoreMachine(snapshot: OpenSnapshot, options: RestoreOptions): Machine {
  const { meta } = snapshot;
  const machine = Machine.create({
    ...options,
    memory: meta.memory,
    cpus: meta.cpus,
    cpuid: meta.cpuid,
    ramFile: { fd: snapshot.fd, offset: snapshot.ramOffset },
  });
  try {
    if (machine.vm.info.tscKhz !== meta.tscKhz)
      throw new InputError(
        `the snapshot's guest TSC runs at ${meta.tscKhz} kHz, this backend's at ${machine.vm.info.tscKhz} kHz`,
        `restore it with --backend ${meta.backend}`,
      );
    machine.clock.now = meta.now;
    meta.vcpus.forEach((state, i) => {
      restoreVcpu(machine, i, state);
    });
    machine.platform.restore(meta.devices);
    return machine;
  } catch (error) {
    machine.close();
    if (error instanceof HviError)
      throw new InputError(
        `the backend refuses the snapshot's state: ${error.message}`,
        "take the snapshot again on this machine",
      );
    if (error instanceof TypeError) throw new InputError(error.message, "take the snapshot again");
    throw error;
  }
}

function restoreVcpu(machine: Machine, index: number, state: VcpuState): void {
  const { vm } = machine;
  const vcpu = vm.vcpus[index];
  const page = Buffer.from(state.page, "base64");
  if (page.length !== EXIT_REASON - VCPU_GPR)
    throw new TypeError("snapshot: vCPU state has another length");
  vm.setXsave(index, new Uint8Array(Buffer.from(state.xsave, "base64")));
  vm.setMsrs(
    index,
    state.msrs.map(([msr, value]) => ({ index: msr, value: BigInt(`0x${value}`) })),
  );
  vm.fetch(index, HVI_STATE_ALL);
  vcpu.page.set(page, VCPU_GPR);
  vcpu.u32[VCPU_PENDING_DEBUG >>> 2] = state.pendingDebug;
  vcpu.mpState = state.mpState;
  vcpu.interruptibility = state.interruptibility;
  vcpu.markDirty(HVI_STATE_ALL);
  machine.setVcpuExtra(index, state);
}
