// SPDX-License-Identifier: MIT
/** Accesses of vector instructions that touch only chosen elements. Nothing here allocates. */
import {
  ACCESS_CONDITIONAL,
  ACCESS_IMPLICIT,
  ACCESS_READ,
  ACCESS_WRITE,
  type AccessList,
} from "./access-list.ts";
import type { InsnContext } from "./context.ts";
import {
  ENCODING_EVEX,
  type Instruction,
  MEMORY_VSIB,
  OPERAND_REGISTER,
  type Operand,
  VISIBLE_EXPLICIT,
} from "./instruction.ts";
import { elementAddress, linearAddress } from "./operand.ts";
import { registerInfo } from "./registers.ts";
import { readMmx, readOpmask, readVector } from "./xsave.ts";

const indices = new Uint8Array(64);
const indexWords = new Int32Array(indices.buffer);
const mask = new Uint8Array(64);
/** One byte an element: whether it is chosen. */
const chosen = new Uint8Array(64);

export function isGatherOrScatter(operand: Operand): boolean {
  return operand.memoryType === MEMORY_VSIB;
}

/** Number of the AVX-512 mask register that an instruction runs under; 0: none. */
export function opmaskOf(insn: Instruction): number {
  if (insn.encoding !== ENCODING_EVEX) return 0;
  const operand = insn.operands[1];
  if (operand === undefined || operand.type !== OPERAND_REGISTER) return 0;
  const info = registerInfo(operand.register);
  return info.kind === "mask" ? info.index : 0;
}

/** Takes the chosen elements from mask register k. */
function chooseByOpmask(c: InsnContext, k: number, count: number): boolean {
  if (!readOpmask(c.xsave(), k, mask, c.xsaveLayout())) return false;
  for (let i = 0; i < count; i++) chosen[i] = (mask[i >>> 3] >>> (i & 7)) & 1;
  return true;
}
/** Takes them from the top bit of each element of a vector register. */
function chooseByVector(c: InsnContext, register: number, count: number, bytes: number): boolean {
  const info = registerInfo(register);
  const there =
    info.kind === "mmx"
      ? readMmx(c.xsave(), info.index, mask, 8)
      : readVector(c.xsave(), info.index, mask, count * bytes, c.xsaveLayout());
  if (!there) return false;
  for (let i = 0; i < count; i++) chosen[i] = mask[i * bytes + bytes - 1] >>> 7;
  return true;
}

/** Each run of chosen neighbours as one access. */
function addRuns(at: number, count: number, bytes: number, flags: number, out: AccessList): void {
  for (let i = 0; i < count; ) {
    let end = i;
    while (end < count && chosen[end] !== 0) end++;
    if (end > i) out.add(at + i * bytes, (end - i) * bytes, flags);
    i = end + 1;
  }
}

/** Compressed stores and expanding loads: as many elements as are chosen, side by side. */
function addPacked(at: number, count: number, bytes: number, flags: number, out: AccessList): void {
  let n = 0;
  for (let i = 0; i < count; i++) n += chosen[i];
  if (n > 0) out.add(at, n * bytes, flags);
}

/**
 * The memory operand of MASKMOV and its kin, and of AVX-512 instructions with a
 * mask. Which bytes a masked AVX-512 load reads differs between instructions,
 * so that is one conditional access; so is everything when the mask is unknown.
 */
export function listMasked(c: InsnContext, insn: Instruction, out: AccessList, rip: number): void {
  for (let i = 0; i < insn.operands.length; i++) {
    const operand = insn.operands[i];
    if (!operand.isMemory) continue;
    const at = linearAddress(c.vcpu, insn, operand, rip);
    const flags =
      (operand.writes ? ACCESS_WRITE : 0) |
      (operand.reads ? ACCESS_READ : 0) |
      (operand.visibility === VISIBLE_EXPLICIT ? 0 : ACCESS_IMPLICIT);
    const k = opmaskOf(insn);
    const name = insn.name;
    const packs = name.includes("compress") || name.includes("expand");
    let bytes = operand.elementBits >>> 3;
    let known = false;
    if (insn.encoding === ENCODING_EVEX) {
      if (k === 0) {
        out.add(at, operand.size, flags);
        continue;
      }
      known = (operand.writes || packs) && chooseByOpmask(c, k, operand.elementCount);
    } else {
      bytes = name.startsWith("mask") || name.startsWith("vmaskmovd") ? 1 : elementOf(name);
      known = chooseByVector(c, insn.operands[1].register, operand.size / bytes, bytes);
    }
    if (!known) out.add(at, operand.size, flags | ACCESS_CONDITIONAL);
    else if (packs) addPacked(at, operand.elementCount, bytes, flags, out);
    else addRuns(at, operand.size / bytes, bytes, flags, out);
  }
}

/** VMASKMOVPS, VPMASKMOVD: 4 bytes; VMASKMOVPD, VPMASKMOVQ: 8. */
function elementOf(name: string): number {
  return name.endsWith("pd") || name.endsWith("q") ? 8 : 4;
}

/** Gather and scatter: one access an element that is chosen, from the lowest one on. */
export function listElements(
  c: InsnContext,
  insn: Instruction,
  operand: Operand,
  out: AccessList,
  rip: number,
): void {
  const flags = operand.writes ? ACCESS_WRITE : ACCESS_READ;
  const bytes = operand.size;
  // v[p]gatherd..., v[p]scatterq...: the letter says how wide an index is.
  const letter = insn.name.charCodeAt(insn.name.indexOf("er") + 2);
  const indexBytes = letter === 0x71 ? 8 : 4;
  const data = registerInfo(insn.operands[operand.writes ? 2 : 0].register);
  const index = registerInfo(operand.index);
  const count = Math.min(data.size / bytes, index.size / indexBytes);
  if (!readVector(c.xsave(), index.index, indices, count * indexBytes, c.xsaveLayout())) {
    out.complete = false;
    return;
  }
  const k = opmaskOf(insn);
  const known =
    insn.encoding === ENCODING_EVEX
      ? chooseByOpmask(c, k, count)
      : chooseByVector(c, insn.operands[2].register, count, bytes);
  for (let i = 0; i < count; i++) {
    if (known && chosen[i] === 0) continue;
    const lo = indexWords[(i * indexBytes) >>> 2];
    const hi = indexBytes === 8 ? indexWords[2 * i + 1] : lo >> 31;
    const at = elementAddress(c.vcpu, insn, operand, lo, hi, rip);
    out.add(at, bytes, known ? flags : flags | ACCESS_CONDITIONAL);
  }
}
