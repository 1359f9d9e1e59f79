// SPDX-License-Identifier: MIT
/** Integer multiplication and division of any operand size, on little-endian bytes. */

/** 16 bytes of each operand, sign- or zero-extended. */
const wideA = new Uint8Array(16);
const wideB = new Uint8Array(16);
/** Digits of the sum: bytes with their carries still in them. */
const digits = new Uint32Array(16);

function widen(to: Uint8Array, from: Uint8Array, n: number, signed: boolean): void {
  const fill = signed && from[n - 1] >= 0x80 ? 0xff : 0;
  for (let i = 0; i < 16; i++) to[i] = i < n ? from[i] : fill;
}

/** out[0..2n) = a * b, n bytes each, n at most 8. */
export function multiply(
  a: Uint8Array,
  b: Uint8Array,
  n: number,
  signed: boolean,
  out: Uint8Array,
): void {
  widen(wideA, a, n, signed);
  widen(wideB, b, n, signed);
  digits.fill(0);
  for (let i = 0; i < 2 * n; i++) {
    if (wideA[i] === 0) continue;
    for (let k = 0; i + k < 2 * n; k++) digits[i + k] += wideA[i] * wideB[k];
  }
  let carry = 0;
  for (let i = 0; i < 2 * n; i++) {
    const digit = digits[i] + carry;
    out[i] = digit;
    carry = digit >>> 8;
  }
}

function negate(bytes: Uint8Array, n: number): void {
  let carry = 1;
  for (let i = 0; i < n; i++) {
    const digit = (bytes[i] ^ 0xff) + carry;
    bytes[i] = digit;
    carry = digit >>> 8;
  }
}
function isZero(bytes: Uint8Array, n: number): boolean {
  for (let i = 0; i < n; i++) if (bytes[i] !== 0) return false;
  return true;
}

const numerator = new Uint8Array(16);
const divisor = new Uint8Array(16);
const rest = new Uint8Array(17);

/**
 * Divides 2n bytes at `a` by n bytes at `b`: the quotient goes to out[0..n),
 * the remainder to out[n..2n). False: #DE, a zero divisor or a quotient that
 * does not fit (SDM vol. 2, DIV and IDIV).
 */
export function divide(
  a: Uint8Array,
  b: Uint8Array,
  n: number,
  signed: boolean,
  out: Uint8Array,
): boolean {
  if (isZero(b, n)) return false;
  const negativeA = signed && a[2 * n - 1] >= 0x80;
  const negativeB = signed && b[n - 1] >= 0x80;
  for (let i = 0; i < 2 * n; i++) numerator[i] = a[i];
  for (let i = 0; i < n; i++) divisor[i] = b[i];
  if (negativeA) negate(numerator, 2 * n);
  if (negativeB) negate(divisor, n);
  longDivide(n);
  // The quotient stands where the numerator was.
  for (let i = n; i < 2 * n; i++) if (numerator[i] !== 0) return false;
  const negative = negativeA !== negativeB;
  if (signed && numerator[n - 1] >= 0x80) {
    // Only -2^(8n-1) has this top bit.
    numerator[n - 1] ^= 0x80;
    const least = isZero(numerator, n);
    numerator[n - 1] ^= 0x80;
    if (!negative || !least) return false;
  }
  if (negative) negate(numerator, n);
  if (negativeA) negate(rest, n);
  for (let i = 0; i < n; i++) {
    out[i] = numerator[i];
    out[n + i] = rest[i];
  }
  return true;
}

/** Bit by bit: numerator (2n bytes) becomes the quotient, rest the remainder. */
function longDivide(n: number): void {
  rest.fill(0);
  for (let bit = 0; bit < 16 * n; bit++) {
    let carry = 0;
    for (let i = 0; i < 2 * n; i++) {
      const digit = (numerator[i] << 1) | carry;
      numerator[i] = digit;
      carry = digit >>> 8;
    }
    for (let i = 0; i <= n; i++) {
      const digit = (rest[i] << 1) | carry;
      rest[i] = digit;
      carry = digit >>> 8;
    }
    if (!atLeastDivisor(n)) continue;
    let borrow = 0;
    for (let i = 0; i <= n; i++) {
      const digit = rest[i] - (i < n ? divisor[i] : 0) - borrow;
      rest[i] = digit;
      borrow = digit < 0 ? 1 : 0;
    }
    numerator[0] |= 1;
  }
}
function atLeastDivisor(n: number): boolean {
  if (rest[n] !== 0) return true;
  for (let i = n - 1; i >= 0; i--) if (rest[i] !== divisor[i]) return rest[i] > divisor[i];
  return true;
}
