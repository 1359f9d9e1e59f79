// SPDX-License-Identifier: MIT
/** Where the memory operands of an instruction point. */
import type { Vcpu } from "../bridge/vcpu.ts";
import {
  ACTION_ANY_READ,
  ACTION_ANY_WRITE,
  type Instruction,
  MEMORY_ADDRESS_ONLY,
  MEMORY_VSIB,
  OPERAND_IMMEDIATE,
  OPERAND_REGISTER,
  type Operand,
  TRAIT_FAR,
  VISIBLE_HIDDEN,
} from "./instruction.ts";
import { type RegisterInfo, registerHi, registerInfo, registerLo } from "./registers.ts";
import { effectiveBase } from "./segments.ts";

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

/** Categories whose memory operand the CPU does not access, or whose access cannot fault. */
const NO_ACCESS: readonly string[] = ["nop", "widenop", "prefetch", "prefetchwt1"];

function accessesMemory(insn: Instruction): boolean {
  return !NO_ACCESS.includes(insn.category);
}

/** Bytes of a memory operand; 0 when nothing is accessed (LEA, NOP). */
export function accessSize(operand: Operand): number {
  return operand.memoryType === MEMORY_ADDRESS_ONLY ? 0 : operand.size;
}

/**
 * The linear address of a memory operand, signed, as the CPU computes it at
 * the start of the instruction: segment base, base, index, scale, displacement,
 * wrapped to the address size. It need not be canonical; beyond 2^53 it is
 * rounded. NaN for operands that have no single address (gather and scatter).
 * @param rip of the instruction; the vCPU's own when left out
 */
export function linearAddress(
  vcpu: Vcpu,
  insn: Instruction,
  operand: Operand,
  rip?: number,
): number {
  if (operand.memoryType === MEMORY_VSIB) return Number.NaN;
  sumLo = operand.lo;
  sumHi = operand.hi;
  const base = registerInfo(operand.base);
  if (base.kind === "ip") {
    addNumber(rip ?? vcpu.rip);
    add(insn.length, 0);
  } else if (base.kind === "gpr") {
    add(registerLo(vcpu, base), registerHi(vcpu, base));
    addNumber(stackAdjustment(insn, operand, base));
  }
  const index = registerInfo(operand.index);
  if (index.kind === "gpr") {
    const shift = operand.scale === 8 ? 3 : operand.scale >>> 1;
    const lo = registerLo(vcpu, index);
    const hi = registerHi(vcpu, index);
    add(lo << shift, shift === 0 ? hi : (hi << shift) | (lo >>> (32 - shift)));
  }
  addBitOffset(vcpu, insn, operand);

  // The stack's own accesses go by the stack's width, not by an address-size prefix.
  const ofStack = base.index === 4 && operand.visibility === VISIBLE_HIDDEN;
  const width = ofStack ? insn.stackWidth : insn.addressWidth;
  if (width === 32) sumHi = 0;
  if (width === 16) {
    sumLo &= 0xffff;
    sumHi = 0;
  }
  const segment = registerInfo(operand.segment);
  if (segment.kind === "segment") addNumber(effectiveBase(vcpu, segment.index, insn.mode));
  if (insn.mode !== 64) sumHi = 0;
  return sumHi * TWO32 + (sumLo >>> 0);
}

/**
 * What PUSH, CALL and POP add to the stack pointer before they use it: the
 * decoder gives the register as it is before the instruction.
 */
function stackAdjustment(insn: Instruction, operand: Operand, base: RegisterInfo): number {
  if (base.index !== 4) return 0;
  if (operand.visibility === VISIBLE_HIDDEN) {
    return (operand.actions & ACTION_ANY_WRITE) !== 0 ? -operand.size : 0;
  }
  // POP computes its destination after it has moved the stack pointer (SDM vol. 2, POP).
  return insn.name === "pop" ? operand.size : 0;
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

/** One access of an instruction. */
export interface MemoryAccess {
  readonly operand: Operand;
  /** Signed linear address. */
  readonly gva: number;
  /** Bytes. */
  readonly size: number;
  readonly read: boolean;
  readonly write: boolean;
}

/**
 * Every memory access of an instruction, explicit and implicit (the stack of
 * PUSH and CALL, both sides of MOVS), at its start: one iteration of a REP.
 * Accesses through descriptor tables and page tables are not operands and not
 * in the list. Gather and scatter: as many as the list has no address for are
 * left out.
 */
export function memoryAccesses(vcpu: Vcpu, insn: Instruction, rip?: number): MemoryAccess[] {
  const out: MemoryAccess[] = [];
  if (!accessesMemory(insn)) return out;
  for (const operand of insn.operands) {
    if (!operand.isMemory) continue;
    const size = accessSize(operand);
    const gva = size === 0 ? Number.NaN : linearAddress(vcpu, insn, operand, rip);
    if (Number.isNaN(gva)) continue;
    out.push({
      operand,
      gva,
      size,
      read: (operand.actions & ACTION_ANY_READ) !== 0,
      write: (operand.actions & ACTION_ANY_WRITE) !== 0,
    });
  }
  return out;
}

/**
 * Instructions that may access more than their operand says: what XSAVE stores depends on its mask,
 * ENTER and PUSHA push several values.
 */
const ACCESSES_MORE = /^(xsave|xrstor|enter|pusha|popa)/;

/**
 * How many bytes an instruction accesses from `gva` on, in one piece.
 * @param gva linear address inside one of its memory operands
 * @returns 0 when it cannot be known, or no operand of it lies there
 */
export function bytesAccessedAt(vcpu: Vcpu, insn: Instruction, gva: number): number {
  if ((insn.traits & TRAIT_FAR) !== 0 || ACCESSES_MORE.test(insn.name)) return 0;
  let most = 0;
  for (const operand of insn.operands) {
    if (!operand.isMemory) continue;
    const size = accessSize(operand);
    const start = linearAddress(vcpu, insn, operand);
    if (gva >= start && gva < start + size) most = Math.max(most, start + size - gva);
  }
  return most;
}

/** The memory operand written first, or undefined. */
export function writtenOperand(insn: Instruction): Operand | undefined {
  return insn.operands.find((o) => o.isMemory && o.writes && accessSize(o) > 0);
}
/** The memory operand read first, or undefined. */
export function readOperand(insn: Instruction): Operand | undefined {
  if (!accessesMemory(insn)) return undefined;
  return insn.operands.find((o) => o.isMemory && o.reads && accessSize(o) > 0);
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
