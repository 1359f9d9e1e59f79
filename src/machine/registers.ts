// SPDX-License-Identifier: MIT
import type { Vcpu } from "../bridge/index.ts";

/**
 * Adds to a general register as an instruction with this address size (2, 4
 * or 8 bytes) does: 16-bit results keep the upper part, 32-bit ones clear it.
 * True when the result is zero.
 */
export function addToRegister(vcpu: Vcpu, register: number, delta: number, size: number): boolean {
  const low = vcpu.gprLo(register);
  const high = vcpu.gprHi(register);
  if (size === 2) {
    const part = (low + delta) & 0xffff;
    vcpu.setGpr(register, ((low & 0xffff0000) | part) >>> 0, high);
    return part === 0;
  }
  const sum = low + delta;
  if (size === 4) {
    vcpu.setGpr(register, sum >>> 0, 0);
    return sum >>> 0 === 0;
  }
  const carry = sum < 0 ? -1 : sum > 0xffffffff ? 1 : 0;
  vcpu.setGpr(register, sum >>> 0, (high + carry) >>> 0);
  return sum >>> 0 === 0 && (high + carry) >>> 0 === 0;
}
