// SPDX-License-Identifier: MIT
import { HVI_GS } from "../bridge/abi.ts";

/**
 * The registers that guest introspection asks for. A Vcpu of the bridge is one;
 * so is what a snapshot or a test tells of a CPU that is not there.
 */
export interface GuestCpu {
  readonly rip: number;
  readonly cpl: number;
  readonly cr0: number;
  readonly cr3: number;
  readonly cr4: number;
  readonly efer: number;
  /** Signed canonical; 0 before the guest set it. */
  readonly lstar: number;
  readonly kernelGsBase: number;
  readonly idtBase: number;
  /** General register by its encoding (HVI_RAX …), signed. */
  gpr(index: number): number;
  /** Base of a segment register (HVI_ES …), signed. */
  segBase(index: number): number;
}

/**
 * The GS base that the guest's kernel uses: that of GS in the kernel, the one
 * kept for SWAPGS in user mode and in the first and last instructions of an
 * entry. Undefined when neither is a kernel address.
 */
export function kernelGs(cpu: GuestCpu): number | undefined {
  const now = cpu.segBase(HVI_GS);
  if (now < 0) return now;
  return cpu.kernelGsBase < 0 ? cpu.kernelGsBase : undefined;
}
