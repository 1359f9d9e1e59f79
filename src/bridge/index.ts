// SPDX-License-Identifier: MIT
/** The engine's side of hv/abi/hvi.h. */
import type { Backend } from "./backend.ts";
import { BackendError } from "./error.ts";
import { hasDevice, openSoft, openVmx } from "./native.ts";
import { Vm } from "./vm.ts";

export * from "./abi.ts";
export { type AssetName, assetBytes, assetPath, registerAsset } from "./assets.ts";
export { EptRanges } from "./ept-ranges.ts";
export { BackendError, errnoName, HviError } from "./error.ts";
export { DEVICE } from "./native.ts";
export { GuestRam, type MemorySlot, RAM_CHUNK } from "./ram.ts";
export { Vcpu } from "./vcpu.ts";
export { type CpuidEntry, type MemoryOptions, Vm, type VmInfo } from "./vm.ts";

export type BackendChoice = "auto" | "soft" | "vmx";

function openDevice(): Backend | undefined {
  if (!hasDevice()) return undefined;
  try {
    return openVmx();
  } catch (e) {
    if (e instanceof BackendError) return undefined;
    throw e;
  }
}

/**
 * Opens a virtual machine. "auto" takes VT-x when /dev/hvi can be opened, and
 * the software vCPU otherwise; a module of another ABI version is an error still.
 * Throws BackendError; its `hint` is the next step.
 */
export function openVm(o: { backend: BackendChoice }): Vm {
  if (o.backend === "vmx") return new Vm(openVmx());
  if (o.backend === "soft") return new Vm(openSoft());
  return new Vm(openDevice() ?? openSoft());
}
