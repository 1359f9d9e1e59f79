// SPDX-License-Identifier: MIT
/** Addition of single-precision numbers as SSE does it (SDM vol. 1, 4.8, 11.5 and table 4-7). */

const floats = new Float32Array(3);
const bits = new Int32Array(floats.buffer);

const EXPONENT = 0x7f800000;
const FRACTION = 0x007fffff;
const QUIET = 0x00400000;
const SIGN = 0x80000000 | 0;
const DEFAULT_NAN = 0xffc00000 | 0;

/** Bits of MXCSR. */
const MXCSR_DAZ = 1 << 6;
const MXCSR_FTZ = 1 << 15;
const MASK_SHIFT = 7;
const INVALID = 1 << 0;
const DENORMAL = 1 << 1;
const OVERFLOW = 1 << 3;
const UNDERFLOW = 1 << 4;
const INEXACT = 1 << 5;

const isNan = (x: number): boolean => (x & 0x7fffffff) > EXPONENT;
const isDenormal = (x: number): boolean => (x & EXPONENT) === 0 && (x & FRACTION) !== 0;

/** The sum's bits, when addFloats() answered true. */
export let floatSum = 0;

/**
 * Adds two numbers given as bits, under an MXCSR. False: an exception that is
 * not masked, so that there is no result.
 */
export function addFloats(a: number, b: number, mxcsr: number): boolean {
  const raised = add(a, b, mxcsr);
  return (raised & ~(mxcsr >>> MASK_SHIFT) & 0x3f) === 0;
}

/** Leaves the masked result in floatSum; answers the exceptions that it raises. */
function add(a: number, b: number, mxcsr: number): number {
  const daz = (mxcsr & MXCSR_DAZ) !== 0;
  let x = a;
  let y = b;
  if (isNan(x) || isNan(y)) {
    // The first operand when it is a NaN, else the second; made quiet.
    floatSum = (isNan(x) ? x : y) | QUIET;
    const signals = (isNan(x) && (x & QUIET) === 0) || (isNan(y) && (y & QUIET) === 0);
    return signals ? INVALID : 0;
  }
  let raised = 0;
  if (isDenormal(x)) {
    if (daz) x &= SIGN;
    else raised |= DENORMAL;
  }
  if (isDenormal(y)) {
    if (daz) y &= SIGN;
    else raised |= DENORMAL;
  }
  bits[0] = x;
  bits[1] = y;
  const p = floats[0];
  const q = floats[1];
  if (!Number.isFinite(p) || !Number.isFinite(q)) {
    if (Number.isNaN(p + q)) {
      floatSum = DEFAULT_NAN;
      return INVALID;
    }
    floats[2] = p + q;
    floatSum = bits[2];
    return raised;
  }
  return raised | round(p, q, mxcsr);
}

/** Adds two finite numbers and rounds by MXCSR.RC. */
function round(p: number, q: number, mxcsr: number): number {
  const mode = (mxcsr >>> 13) & 3;
  // The exact sum is sum + error: both fit a double (Knuth's two-sum).
  const sum = p + q;
  const part = sum - p;
  const error = p - (sum - part) + (q - part);
  floats[2] = sum;
  // Above 2^128 Float32 gives infinity for round-to-nearest, which is right (53 >= 2 * 24 + 2).
  const nearest = floats[2];
  const above = nearest > sum || (nearest === sum && error < 0);
  const below = nearest < sum || (nearest === sum && error > 0);
  if (mode === 1 || (mode === 3 && sum > 0)) {
    if (above) bits[2] += nearest > 0 ? -1 : 1;
  } else if (mode === 2 || (mode === 3 && sum < 0)) {
    if (below) bits[2] += nearest < 0 ? -1 : 1;
  }
  if (sum === 0) {
    // Zeros of one sign keep it; otherwise the sum is +0, but -0 when rounding down.
    const negative = Object.is(p, -0) && Object.is(q, -0);
    bits[2] = negative || (mode === 1 && !(Object.is(p, 0) && Object.is(q, 0))) ? SIGN : 0;
  }
  let raised = above || below ? INEXACT : 0;
  if (!Number.isFinite(floats[2]) || Math.abs(sum) >= 2 ** 128) raised |= OVERFLOW | INEXACT;
  if (isDenormal(bits[2])) {
    // A sum that small is exact: underflow is told only where it is not masked, or flushed.
    const masked = (mxcsr & (UNDERFLOW << MASK_SHIFT)) !== 0;
    if (!masked) raised |= UNDERFLOW;
    else if ((mxcsr & MXCSR_FTZ) !== 0) {
      bits[2] &= SIGN;
      raised |= UNDERFLOW | INEXACT;
    }
  }
  floatSum = bits[2];
  return raised;
}
