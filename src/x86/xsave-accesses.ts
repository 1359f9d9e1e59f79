// SPDX-License-Identifier: MIT
/** Which bytes of its area XSAVE and its kin access (SDM vol. 1, 13.7 to 13.12). */
import { HVI_RAX, HVI_STATE_MSR, VCPU_XSS } from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import { ACCESS_CONDITIONAL, ACCESS_READ, ACCESS_WRITE, type AccessList } from "./access-list.ts";
import type { InsnContext } from "./context.ts";
import type { Instruction } from "./instruction.ts";
import {
  AVX,
  HEADER_END,
  HI16_ZMM,
  LEGACY_SIZE,
  MXCSR_OFFSET,
  SSE,
  ST_OFFSET,
  X87,
  XCOMP_BV,
  XMM_OFFSET,
  XSTATE_BV,
  ZMM_HI256,
} from "./xsave.ts";

/** Components beyond bit 31 are none of hvi's: LWP, the compaction flag. */
const COMPONENTS = 32;

/** Whether component i is in a mask. */
const has = (bits: number, i: number): boolean => ((bits >>> i) & 1) !== 0;

/** The requested-feature bit map: EDX:EAX and what the system has enabled. */
function requested(vcpu: Vcpu, supervisor: boolean): number {
  let enabled = vcpu.xcr0 >>> 0;
  if (supervisor) {
    vcpu.need(HVI_STATE_MSR);
    enabled |= vcpu.u32[VCPU_XSS >>> 2];
  }
  return (enabled & vcpu.gprLo(HVI_RAX)) >>> 0;
}

/**
 * XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS on the area at `at`. The
 * legacy region may be touched as a whole, whatever is asked for.
 */
export function listXsave(c: InsnContext, insn: Instruction, at: number, out: AccessList): void {
  const { vcpu, memory } = c;
  const name = insn.name;
  const saves = name.charCodeAt(1) === 0x73;
  const supervisor = name.startsWith("xsaves") || name.startsWith("xrstors");
  const rfbm = requested(vcpu, supervisor);
  if (saves) {
    const plain = name === "xsave" || name === "xsave64";
    const compact = supervisor || name.startsWith("xsavec");
    // What is in its initial state, or was not changed, may be left out by all but XSAVE.
    const flags = plain ? ACCESS_WRITE : ACCESS_WRITE | ACCESS_CONDITIONAL;
    if (compact) out.add(at + XSTATE_BV, 16, ACCESS_WRITE);
    else out.add(at + XSTATE_BV, 8, ACCESS_READ | ACCESS_WRITE);
    listComponents(c, insn, at, rfbm, rfbm, compact, flags, out);
    out.add(at, HEADER_END, ACCESS_WRITE | ACCESS_CONDITIONAL);
    return;
  }
  out.add(at + XSTATE_BV, HEADER_END - XSTATE_BV, ACCESS_READ);
  const present = memory.read32(at + XSTATE_BV);
  const layout = memory.read32(at + XCOMP_BV);
  const top = memory.read32(at + XCOMP_BV + 4);
  if (present < 0 || layout < 0 || top < 0) {
    out.complete = false;
    return;
  }
  const compact = top >= 0x80000000;
  if (!compact && (rfbm & ((1 << SSE) | (1 << AVX))) !== 0 && !has(rfbm & present, SSE)) {
    out.add(at + MXCSR_OFFSET, 8, ACCESS_READ);
  }
  listComponents(c, insn, at, (rfbm & present) >>> 0, layout, compact, ACCESS_READ, out);
  out.add(at, LEGACY_SIZE, ACCESS_READ | ACCESS_CONDITIONAL);
}

/**
 * @param bits components that are accessed
 * @param laidOut those that have a place in a compacted area
 */
function listComponents(
  c: InsnContext,
  insn: Instruction,
  at: number,
  bits: number,
  laidOut: number,
  compact: boolean,
  flags: number,
  out: AccessList,
): void {
  const layout = c.xsaveLayout();
  const wide = insn.mode === 64;
  if (has(bits, X87)) {
    out.add(at, MXCSR_OFFSET, flags);
    out.add(at + ST_OFFSET, XMM_OFFSET - ST_OFFSET, flags);
  }
  if (has(bits, SSE)) {
    out.add(at + MXCSR_OFFSET, 8, flags);
    out.add(at + XMM_OFFSET, wide ? 256 : 128, flags);
  } else if (!compact && has(bits, AVX) && (flags & ACCESS_WRITE) !== 0) {
    out.add(at + MXCSR_OFFSET, 8, flags);
  }
  let next = HEADER_END;
  for (let i = AVX; i < COMPONENTS; i++) {
    let offset = layout.offsets[i];
    if (compact) {
      if (!has(laidOut, i)) continue;
      if (has(layout.aligned, i)) next = (next + 63) & ~63;
      offset = next;
      next += layout.sizes[i];
    }
    if (!has(bits, i) || layout.sizes[i] === 0 || offset === 0) continue;
    // Outside 64-bit mode only registers 0 to 7 exist.
    const half = !wide && (i === AVX || i === ZMM_HI256);
    if (!wide && i === HI16_ZMM) continue;
    out.add(at + offset, half ? layout.sizes[i] / 2 : layout.sizes[i], flags);
  }
}
