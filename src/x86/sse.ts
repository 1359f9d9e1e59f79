// SPDX-License-Identifier: MIT
/** Vector registers in an XSAVE area, standard format (SDM vol. 1, 13.4). */

const X87 = 0;
const SSE = 1;
const AVX = 2;
const MM_OFFSET = 32;
const XMM_OFFSET = 160;
const XSTATE_BV = 512;
const YMM_HIGH_OFFSET = 576;

/** A component in its initial state is not stored: it reads as zeros. */
function stored(xsave: Uint8Array, component: number): boolean {
  return (xsave[XSTATE_BV] & (1 << component)) !== 0;
}

/** Copies XMM i (16 bytes) or, with out of 32 bytes, YMM i. False when the area has no such part. */
export function readVector(xsave: Uint8Array, i: number, out: Uint8Array): boolean {
  out.fill(0);
  if (out.length > 32 || i < 0 || i > 15) return false;
  const low = XMM_OFFSET + 16 * i;
  if (stored(xsave, SSE)) out.set(xsave.subarray(low, low + Math.min(16, out.length)));
  if (out.length > 16) {
    const high = YMM_HIGH_OFFSET + 16 * i;
    if (high + 16 > xsave.length) return false;
    if (stored(xsave, AVX)) out.set(xsave.subarray(high, high + out.length - 16), 16);
  }
  return true;
}

/** Copies MM i (8 bytes). */
export function readMmx(xsave: Uint8Array, i: number, out: Uint8Array): boolean {
  out.fill(0);
  if (out.length > 8 || i < 0 || i > 7) return false;
  if (stored(xsave, X87))
    out.set(xsave.subarray(MM_OFFSET + 16 * i, MM_OFFSET + 16 * i + out.length));
  return true;
}

/** Sets XMM i (16 bytes) or YMM i (32 bytes) in an area that is then given back to the vCPU. */
export function writeVector(xsave: Uint8Array, i: number, value: Uint8Array): boolean {
  const wide = value.length === 32;
  if ((value.length !== 16 && !wide) || i < 0 || i > 15) return false;
  const high = YMM_HIGH_OFFSET + 16 * i;
  if (wide && high + 16 > xsave.length) return false;
  if (!stored(xsave, SSE)) xsave.fill(0, XMM_OFFSET, XMM_OFFSET + 256);
  xsave.set(value.subarray(0, 16), XMM_OFFSET + 16 * i);
  xsave[XSTATE_BV] |= 1 << SSE;
  if (wide) {
    if (!stored(xsave, AVX)) xsave.fill(0, YMM_HIGH_OFFSET, YMM_HIGH_OFFSET + 256);
    xsave.set(value.subarray(16), high);
    xsave[XSTATE_BV] |= 1 << AVX;
  }
  return true;
}
