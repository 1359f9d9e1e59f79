// SPDX-License-Identifier: MIT
/** Registers by the decoder's numbers, and their values in a vCPU. */
import type { Vcpu } from "../bridge/vcpu.ts";
import { type RegisterInfo, type RegisterKind, zydis } from "./zydis/module.ts";

export type { RegisterInfo, RegisterKind };

const NONE: RegisterInfo = { id: 0, name: "none", kind: "none", index: -1, size: 0, high: false };

/** What a register number of the decoder stands for. */
export function registerInfo(id: number): RegisterInfo {
  return zydis().registers[id] ?? NONE;
}

let byName: Map<string, RegisterInfo> | undefined;
/** A register by its name in lower case ("rax", "r8d", "gs"); undefined for an unknown one. */
export function registerNamed(name: string): RegisterInfo | undefined {
  byName ??= new Map(zydis().registers.map((r) => [r.name, r]));
  return byName.get(name);
}

/**
 * Value of a general register of any size in bits, low half of it. The upper
 * half is registerHi(). For registers that are none of the general ones, 0.
 */
export function registerLo(vcpu: Vcpu, info: RegisterInfo): number {
  if (info.kind !== "gpr") return 0;
  const full = vcpu.gprLo(info.index);
  if (info.size >= 4) return full;
  if (info.size === 2) return full & 0xffff;
  return (info.high ? full >>> 8 : full) & 0xff;
}
export function registerHi(vcpu: Vcpu, info: RegisterInfo): number {
  return info.kind === "gpr" && info.size === 8 ? vcpu.gprHi(info.index) : 0;
}

/**
 * Puts the bytes of a general register operand into `out`, little-endian.
 * False when it is not a general register.
 */
export function registerBytes(vcpu: Vcpu, info: RegisterInfo, out: Uint8Array): boolean {
  if (info.kind !== "gpr") return false;
  const lo = registerLo(vcpu, info);
  const hi = registerHi(vcpu, info);
  for (let i = 0; i < info.size; i++)
    out[i] = (i < 4 ? lo >>> (8 * i) : hi >>> (8 * (i - 4))) & 0xff;
  return true;
}

/** Names of the general registers in the order of HVI_RAX... */
export const GPR_NAMES = [
  "rax",
  "rcx",
  "rdx",
  "rbx",
  "rsp",
  "rbp",
  "rsi",
  "rdi",
  "r8",
  "r9",
  "r10",
  "r11",
  "r12",
  "r13",
  "r14",
  "r15",
] as const;

/** Bits of RFLAGS (SDM vol. 1, 3.4.3). */
export const RFLAGS_CF = 1 << 0;
export const RFLAGS_PF = 1 << 2;
export const RFLAGS_AF = 1 << 4;
export const RFLAGS_ZF = 1 << 6;
export const RFLAGS_SF = 1 << 7;
export const RFLAGS_TF = 1 << 8;
export const RFLAGS_IF = 1 << 9;
export const RFLAGS_DF = 1 << 10;
export const RFLAGS_OF = 1 << 11;
export const RFLAGS_VM = 1 << 17;
