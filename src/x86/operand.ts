// SPDX-License-Identifier: MIT
/** Where the memory operands of an instruction point. Nothing here allocates. */
import { HVI_ES, HVI_RAX, HVI_RBP, HVI_RSP, HVI_SS } from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import {
  ACTION_ANY_WRITE,
  type CodeMode,
  type Instruction,
  MEMORY_ADDRESS_ONLY,
  MEMORY_PLAIN,
  OPERAND_IMMEDIATE,
  OPERAND_REGISTER,
  type Operand,
  VISIBLE_HIDDEN,
} from "./instruction.ts";
import { type RegisterInfo, registerHi, registerInfo, registerLo } from "./registers.ts";
import { effectiveBase, stackWidth } from "./segments.ts";

const TWO32 = 4294967296;

/** The 64-bit sum being built: two 32-bit halves, so that wrapping is the CPU's. */
let sumLo = 0;
let sumHi = 0;

function add(lo: number, hi: number): void {
  const low = (sumLo >>> 0) + (lo >>> 0);
  sumLo = low | 0;
  sumHi = (sumHi + hi + (low >= TWO32 ? 1 : 0)) | 0;
}
function addNumber(n: number): void {
  add(n | 0, Math.floor(n / TWO32) | 0);
}

/** The linear address of the offset in the sum: wrapped to `width` bits, the segment's base added. */
function toLinear(vcpu: Vcpu, mode: CodeMode, width: number, segment: number): number {
  if (width === 32) sumHi = 0;
  if (width === 16) {
    sumLo &= 0xffff;
    sumHi = 0;
  }
  if (segment >= 0) addNumber(effectiveBase(vcpu, segment, mode));
  if (mode !== 64) sumHi = 0;
  return sumHi * TWO32 + (sumLo >>> 0);
}

/** Bytes of a memory operand; 0 when nothing is accessed (LEA, NOP). */
export function accessSize(operand: Operand): number {
  return operand.memoryType === MEMORY_ADDRESS_ONLY ? 0 : operand.size;
}

/**
 * The linear address of a memory operand, signed, as the CPU computes it at
 * the start of the instruction: segment base, base, index, scale, displacement,
 * wrapped to the address size. It need not be canonical; beyond 2^53 it is
 * rounded. NaN for operands that have no single address (gather, scatter, MPX).
 * @param rip of the instruction; the vCPU's own when left out
 */
export function linearAddress(
  vcpu: Vcpu,
  insn: Instruction,
  operand: Operand,
  rip?: number,
): number {
  const type = operand.memoryType;
  if (type !== MEMORY_PLAIN && type !== MEMORY_ADDRESS_ONLY) return Number.NaN;
  const base = registerInfo(operand.base);
  if (operand.visibility === VISIBLE_HIDDEN && base.kind === "gpr") {
    // The stack's own accesses: by the stack's width, whatever the address size.
    const push = (operand.actions & ACTION_ANY_WRITE) !== 0;
    if (base.index === HVI_RSP) return stackAddress(vcpu, insn.mode, push ? -operand.size : 0);
    if (base.index === HVI_RBP) return frameAddress(vcpu, insn.mode, 0);
  }
  const index = registerInfo(operand.index);
  const isGpr = index.kind === "gpr";
  sumLo = operand.lo;
  sumHi = operand.hi;
  addBase(vcpu, insn, operand, base, rip);
  if (isGpr) addScaled(registerLo(vcpu, index), registerHi(vcpu, index), operand.scale);
  addBitOffset(vcpu, insn, operand);
  // The decoder leaves XLAT's index away.
  if (insn.name === "xlat") add(vcpu.gprLo(HVI_RAX) & 0xff, 0);
  return toLinear(vcpu, insn.mode, insn.addressWidth, registerInfo(operand.segment).index);
}

/**
 * The linear address of one element of a gather or scatter.
 * @param indexLo its index, sign-extended to 64 bits, as halves
 */
export function elementAddress(
  vcpu: Vcpu,
  insn: Instruction,
  operand: Operand,
  indexLo: number,
  indexHi: number,
  rip?: number,
): number {
  sumLo = operand.lo;
  sumHi = operand.hi;
  addBase(vcpu, insn, operand, registerInfo(operand.base), rip);
  addScaled(indexLo, indexHi, operand.scale);
  return toLinear(vcpu, insn.mode, insn.addressWidth, registerInfo(operand.segment).index);
}

/** Linear address of what stands `depth` bytes above the top of the stack (below, when negative). */
export function stackAddress(vcpu: Vcpu, mode: CodeMode, depth: number): number {
  sumLo = vcpu.gprLo(HVI_RSP);
  sumHi = vcpu.gprHi(HVI_RSP);
  addNumber(depth);
  return toLinear(vcpu, mode, stackWidth(vcpu, mode), HVI_SS);
}
/** The same for what stands `depth` bytes above where RBP points: ENTER, LEAVE. */
export function frameAddress(vcpu: Vcpu, mode: CodeMode, depth: number): number {
  sumLo = vcpu.gprLo(HVI_RBP);
  sumHi = vcpu.gprHi(HVI_RBP);
  addNumber(depth);
  return toLinear(vcpu, mode, stackWidth(vcpu, mode), HVI_SS);
}

/** Linear address in the segment that the operand of an instruction without one uses: [rAX] of CLZERO. */
export function raxAddress(vcpu: Vcpu, insn: Instruction, segment: number, mask: number): number {
  sumLo = vcpu.gprLo(HVI_RAX) & mask;
  sumHi = vcpu.gprHi(HVI_RAX);
  return toLinear(vcpu, insn.mode, insn.addressWidth, segment);
}
/** ES:[register]: the destination of MOVDIR64B and ENQCMD, which no prefix overrides. */
export function esAddress(vcpu: Vcpu, insn: Instruction, register: RegisterInfo): number {
  sumLo = registerLo(vcpu, register);
  sumHi = registerHi(vcpu, register);
  return toLinear(vcpu, insn.mode, insn.addressWidth, HVI_ES);
}

function addBase(
  vcpu: Vcpu,
  insn: Instruction,
  operand: Operand,
  base: RegisterInfo,
  rip?: number,
): void {
  if (base.kind === "ip") {
    addNumber(rip ?? vcpu.rip);
    add(insn.length, 0);
  } else if (base.kind === "gpr") {
    add(registerLo(vcpu, base), registerHi(vcpu, base));
    // POP computes its destination after it has moved the stack pointer (SDM vol. 2, POP).
    if (base.index === HVI_RSP && insn.name === "pop") addNumber(operand.size);
  }
}

function addScaled(lo: number, hi: number, scale: number): void {
  const shift = scale === 8 ? 3 : scale >>> 1;
  add(lo << shift, shift === 0 ? hi : (hi << shift) | (lo >>> (32 - shift)));
}

/** BT, BTS, BTR, BTC with a register: the bit may lie outside the operand (SDM vol. 2, BT). */
function addBitOffset(vcpu: Vcpu, insn: Instruction, operand: Operand): void {
  const name = insn.name;
  if (name !== "bts" && name !== "btr" && name !== "btc" && name !== "bt") return;
  const bit = insn.operands[1];
  if (operand !== insn.operands[0] || bit.type !== OPERAND_REGISTER) return;
  const info = registerInfo(bit.register);
  const lo = registerLo(vcpu, info);
  if (info.size === 2) {
    addNumber(((lo << 16) >> 20) * 2);
  } else if (info.size === 4) {
    addNumber(((lo | 0) >> 5) * 4);
  } else {
    // (value >> 6) * 8 of a 64-bit value: clear the low 6 bits, shift right by 3, keep the sign.
    const hi = registerHi(vcpu, info) | 0;
    add(((lo & ~63) >>> 3) | (hi << 29), hi >> 3);
  }
}

/** Target of a direct branch at `rip`, signed; undefined for any other instruction. */
export function branchTarget(insn: Instruction, rip: number): number | undefined {
  const o = insn.operands[0];
  if (o === undefined || o.type !== OPERAND_IMMEDIATE || !o.relative) return undefined;
  sumLo = o.lo;
  sumHi = o.hi;
  addNumber(rip);
  add(insn.length, 0);
  if (insn.mode !== 64) sumHi = 0;
  if (insn.operandWidth === 16 && insn.mode !== 64) sumLo &= 0xffff;
  return sumHi * TWO32 + (sumLo >>> 0);
}
