// SPDX-License-Identifier: MIT
/** The XSAVE area (SDM vol. 1, chapter 13): components, and the vector registers in it. */
import type { CpuidEntry, Vm } from "../bridge/index.ts";

/** Components, by their bit in XCR0. */
export const X87 = 0;
export const SSE = 1;
export const AVX = 2;
export const OPMASK = 5;
export const ZMM_HI256 = 6;
export const HI16_ZMM = 7;

const CPUID_XSAVE = 0xd;
const MAX_COMPONENTS = 32;

/** Offsets of the parts of the legacy region and of the header. */
export const MXCSR_OFFSET = 24;
export const ST_OFFSET = 32;
export const XMM_OFFSET = 160;
export const LEGACY_SIZE = 512;
export const XSTATE_BV = 512;
export const XCOMP_BV = 520;
export const HEADER_END = 576;
const FSW_OFFSET = 2;
const FTW_OFFSET = 4;

/** Where the components stand, as CPUID leaf 0DH says: it differs between CPUs. */
export class XsaveLayout {
  /** Bytes; 0 for a component that the CPU does not have. */
  readonly sizes = new Uint32Array(MAX_COMPONENTS);
  /** In the standard format; 0 for those of IA32_XSS, which have no place there. */
  readonly offsets = new Uint32Array(MAX_COMPONENTS);
  /** Bit i: component i starts at a multiple of 64 in the compacted format. */
  readonly aligned: number;

  /** @param cpuid rows of leaf 0DH; others are left aside */
  constructor(cpuid: readonly CpuidEntry[]) {
    // AVX has this place wherever it exists (SDM vol. 1, 13.4.3 leaves it to CPUID; no CPU differs).
    this.sizes[AVX] = 256;
    this.offsets[AVX] = HEADER_END;
    let aligned = 0;
    for (const row of cpuid) {
      if (row.leaf !== CPUID_XSAVE || row.index < AVX || row.index >= MAX_COMPONENTS) continue;
      this.sizes[row.index] = row.eax;
      this.offsets[row.index] = row.ebx;
      if ((row.ecx & 2) !== 0) aligned |= 1 << row.index;
    }
    this.aligned = aligned >>> 0;
  }
}

/** A component in its initial state is not stored: it reads as zeros. */
function stored(xsave: Uint8Array, component: number): boolean {
  return (xsave[XSTATE_BV] & (1 << component)) !== 0;
}

/** Copies a piece of a component to out[at...]; zeros when it is not stored. False: not in the area. */
function copyPart(
  xsave: Uint8Array,
  component: number,
  from: number,
  out: Uint8Array,
  at: number,
  n: number,
): boolean {
  if (from === 0 || from + n > xsave.length) return false;
  const there = stored(xsave, component);
  for (let i = 0; i < n; i++) out[at + i] = there ? xsave[from + i] : 0;
  return true;
}

/**
 * Copies the low `n` bytes (at most 64) of vector register i: XMM, YMM or ZMM,
 * as n says. Without allocating.
 * @param layout needed for more than 32 bytes and registers above 15
 * @returns false when the area has no such part
 */
export function readVector(
  xsave: Uint8Array,
  i: number,
  out: Uint8Array,
  n: number = out.length,
  layout?: XsaveLayout,
): boolean {
  if (n > 64 || n > out.length || i < 0 || i > 31) return false;
  if (i > 15) {
    const high = layout?.offsets[HI16_ZMM] ?? 0;
    return high !== 0 && copyPart(xsave, HI16_ZMM, high + 64 * (i - 16), out, 0, n);
  }
  if (!copyPart(xsave, SSE, XMM_OFFSET + 16 * i, out, 0, Math.min(n, 16))) return false;
  if (n <= 16) return true;
  if (!copyPart(xsave, AVX, HEADER_END + 16 * i, out, 16, Math.min(n, 32) - 16)) return false;
  if (n <= 32) return true;
  const upper = layout?.offsets[ZMM_HI256] ?? 0;
  return upper !== 0 && copyPart(xsave, ZMM_HI256, upper + 32 * i, out, 32, n - 32);
}

/** Copies mask register k of AVX-512, 8 bytes. False when the area has none. */
export function readOpmask(
  xsave: Uint8Array,
  k: number,
  out: Uint8Array,
  layout: XsaveLayout,
): boolean {
  const from = layout.offsets[OPMASK];
  return from !== 0 && k >= 0 && k < 8 && copyPart(xsave, OPMASK, from + 8 * k, out, 0, 8);
}

/** Whether the x87 control word leaves an exception unmasked; in the initial state all are masked. */
export function hasUnmaskedException(xsave: Uint8Array): boolean {
  return stored(xsave, X87) && (xsave[0] & 0x3f) !== 0x3f;
}

/** MM i is the significand of the physical x87 register i; the area has them in the order of ST(0). */
function mmxOffset(xsave: Uint8Array, i: number): number {
  const top = stored(xsave, X87) ? (xsave[FSW_OFFSET + 1] >>> 3) & 7 : 0;
  return ST_OFFSET + 16 * ((i - top) & 7);
}

/** Copies the low n bytes (at most 8) of MM i. Without allocating. */
export function readMmx(
  xsave: Uint8Array,
  i: number,
  out: Uint8Array,
  n: number = out.length,
): boolean {
  if (n > 8 || n > out.length || i < 0 || i > 7) return false;
  return copyPart(xsave, X87, mmxOffset(xsave, i), out, 0, n);
}

/**
 * Sets XMM i (16 bytes) or YMM i (32 bytes) in an area that is then given back
 * to the vCPU. XMM leaves the upper half of YMM as it is.
 * @returns false when the area has no such register
 */
export function writeVector(xsave: Uint8Array, i: number, value: Uint8Array): boolean {
  const wide = value.length === 32;
  if ((value.length !== 16 && !wide) || i < 0 || i > 15) return false;
  const high = HEADER_END + 16 * i;
  if (wide && HEADER_END + 256 > xsave.length) return false;
  if (!stored(xsave, SSE)) xsave.fill(0, XMM_OFFSET, XMM_OFFSET + 256);
  xsave.set(value.subarray(0, 16), XMM_OFFSET + 16 * i);
  xsave[XSTATE_BV] |= 1 << SSE;
  if (wide) {
    if (!stored(xsave, AVX)) xsave.fill(0, HEADER_END, HEADER_END + 256);
    xsave.set(value.subarray(16), high);
    xsave[XSTATE_BV] |= 1 << AVX;
  }
  return true;
}

/**
 * Sets MM i (8 bytes) as an MMX instruction would (SDM vol. 1, 9.5.1): exponent
 * all ones, tag valid. TOP stays, so that the other registers keep their names.
 */
export function writeMmx(xsave: Uint8Array, i: number, value: Uint8Array): boolean {
  if (value.length !== 8 || i < 0 || i > 7) return false;
  if (!stored(xsave, X87)) {
    // The initial state (SDM vol. 1, 13.6): FCW 37FH, all else 0. MXCSR is not of this component.
    xsave.fill(0, 0, MXCSR_OFFSET);
    xsave.fill(0, ST_OFFSET, XMM_OFFSET);
    xsave[0] = 0x7f;
    xsave[1] = 0x03;
    xsave[XSTATE_BV] |= 1 << X87;
  }
  const at = mmxOffset(xsave, i);
  xsave.set(value, at);
  xsave[at + 8] = 0xff;
  xsave[at + 9] = 0xff;
  xsave[FTW_OFFSET] |= 1 << i;
  return true;
}

/** Reads XMM i (out of 16 bytes) or YMM i (32) of a vCPU. False when it has no such register. */
export function vectorOf(vm: Vm, vcpu: number, i: number, out: Uint8Array): boolean {
  return readVector(vm.xsaveOf(vcpu), i, out);
}
/** Sets XMM i (16 bytes) or YMM i (32) of a vCPU; in effect at its next run. */
export function setVectorOf(vm: Vm, vcpu: number, i: number, value: Uint8Array): boolean {
  const area = vm.xsaveOf(vcpu);
  if (!writeVector(area, i, value)) return false;
  vm.setXsave(vcpu, area);
  return true;
}
/** Reads MM i (out of 8 bytes) of a vCPU. */
export function mmxOf(vm: Vm, vcpu: number, i: number, out: Uint8Array): boolean {
  return readMmx(vm.xsaveOf(vcpu), i, out);
}
/** Sets MM i (8 bytes) of a vCPU; in effect at its next run. */
export function setMmxOf(vm: Vm, vcpu: number, i: number, value: Uint8Array): boolean {
  const area = vm.xsaveOf(vcpu);
  if (!writeMmx(area, i, value)) return false;
  vm.setXsave(vcpu, area);
  return true;
}
