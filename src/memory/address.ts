// SPDX-License-Identifier: MIT
/**
 * Addresses as branded numbers.
 *
 * A guest physical address has at most 52 bits and is exact as a number. A
 * 48-bit canonical virtual address is kept as a signed number: kernel
 * addresses are negative (0xffffffff81000000 is -0x7f000000). The 57-bit
 * addresses of 5-level paging do not fit 53 bits in general; code that must
 * take them works on two 32-bit halves.
 */
declare const gpaBrand: unique symbol;
declare const gvaBrand: unique symbol;

/** Guest physical address in bytes. */
export type Gpa = number & { readonly [gpaBrand]: true };
/** Guest virtual (linear) address, signed canonical. */
export type Gva = number & { readonly [gvaBrand]: true };

export const PAGE_SIZE = 4096;
const TWO32 = 4294967296;

export function asGva(n: number): Gva {
  return n as Gva;
}

/** The signed address of two 32-bit halves; exact for 48-bit canonical addresses. */
export function gvaFromHalves(lo: number, hi: number): Gva {
  return ((hi | 0) * TWO32 + (lo >>> 0)) as Gva;
}
/** The unsigned address of two 32-bit halves; exact up to 2^53. */
export function gpaFromHalves(lo: number, hi: number): Gpa {
  return ((hi >>> 0) * TWO32 + (lo >>> 0)) as Gpa;
}

/** The page that an address lies in, as the address of its first byte. */
export function pageOf(address: number): number {
  return Math.floor(address / PAGE_SIZE) * PAGE_SIZE;
}
/** Bytes from the start of its page to an address, which may be negative. */
export function pageOffset(address: number): number {
  const rest = address % PAGE_SIZE;
  return rest < 0 ? rest + PAGE_SIZE : rest;
}
/** The first page boundary from an address on. */
export function pageEnd(address: number): number {
  return Math.ceil(address / PAGE_SIZE) * PAGE_SIZE;
}

/** True when bits 63..47 are all the same (SDM vol. 1, 3.3.7.1). */
export function isCanonical48(gva: number): boolean {
  return gva >= -0x800000000000 && gva < 0x800000000000;
}
/** A canonical address of the upper half: the kernel's on Linux and Windows. */
export function isKernelGva(gva: number): boolean {
  return gva < 0 && gva >= -0x800000000000;
}

/**
 * Writes a 64-bit address as an unsigned hex literal ("0xffffffff81000000").
 * Takes signed and unsigned values.
 */
export function hex(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value >= 0) return `0x${value.toString(16)}`;
  const lo = value >>> 0;
  const hi = Math.floor(value / TWO32) >>> 0;
  return `0x${hi.toString(16)}${lo.toString(16).padStart(8, "0")}`;
}
/** Hex of two 32-bit halves, without losing bits. */
export function hex64(lo: number, hi: number): string {
  const h = hi >>> 0;
  const l = lo >>> 0;
  return h === 0 ? `0x${l.toString(16)}` : `0x${h.toString(16)}${l.toString(16).padStart(8, "0")}`;
}
export const formatGva = hex;
export const formatGpa = hex;

/**
 * Reads a virtual address typed by a person: hex with or without 0x, or
 * decimal with a leading "0t". Undefined when it is none or not canonical (48 bits).
 */
export function parseGva(text: string): Gva | undefined {
  const s = text.trim().replace(/_/g, "").toLowerCase();
  const decimal = /^0t(\d+)$/.exec(s);
  const digits = /^(?:0x)?([0-9a-f]{1,16})$/.exec(s);
  const value = decimal?.[1] ?? (digits ? `0x${digits[1]}` : undefined);
  if (value === undefined) return undefined;
  const signed = BigInt.asIntN(64, BigInt(value));
  const n = Number(signed);
  return BigInt(n) === signed && isCanonical48(n) ? (n as Gva) : undefined;
}
/** The same for a physical address (at most 52 bits). */
export function parseGpa(text: string): Gpa | undefined {
  const gva = parseGva(text);
  if (gva !== undefined && gva >= 0) return gva as number as Gpa;
  const m = /^(?:0x)?([0-9a-f]{1,13})$/i.exec(text.trim());
  return m ? (Number.parseInt(m[1], 16) as Gpa) : undefined;
}
