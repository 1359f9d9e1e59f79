// SPDX-License-Identifier: MIT
/**
 * The little of src/memory that guest introspection reads through. The classes
 * PhysicalMemory and VirtualMemory satisfy these structurally; a memory dump,
 * a snapshot or a test image can stand in for them.
 */

/** Guest physical memory, read only. An address without RAM is an error value, never a throw. */
export interface PhysicalReader {
  /** 32 bits at `gpa`, unsigned; -1 when not RAM. */
  read32(gpa: number): number;
  /** Fills `out` from `gpa` on; false when any byte of it is not RAM. */
  readInto(gpa: number, out: Uint8Array): boolean;
}

/** Guest virtual memory of one address space, read only. Addresses are signed canonical numbers. */
export interface VirtualReader {
  read8(gva: number): number;
  read16(gva: number): number;
  read32(gva: number): number;
  /** A pointer as a signed canonical number; NaN when the page is absent. */
  readPtr(gva: number): number;
  /** Fills `out` from `gva` on; false when a page is absent. */
  readInto(gva: number, out: Uint8Array): boolean;
}

/** 2^32, for splitting and joining 64-bit numbers. */
export const TWO_32 = 0x1_0000_0000;

/** The signed number of a 64-bit value given in halves (exact for canonical 48-bit addresses). */
export function joinSigned(lo: number, hi: number): number {
  return (hi | 0) * TWO_32 + (lo >>> 0);
}

/** A signed canonical address as `0x…` with 16 digits. */
export function hex64(address: number): string {
  if (!Number.isFinite(address)) return "(absent)";
  const lo = ((address % TWO_32) + TWO_32) % TWO_32;
  const hi = Math.floor(address / TWO_32) >>> 0;
  return `0x${hi.toString(16).padStart(8, "0")}${lo.toString(16).padStart(8, "0")}`;
}

/**
 * True for an address of the kernel's half that is worth following: 47 bits of
 * it with 4-level paging, 56 with 5 levels. Beyond 2^53 a number is only exact
 * for multiples of 8, which all kernel objects are.
 */
export function isKernelPointer(address: number): boolean {
  return address < -4095 && address >= -(2 ** 56);
}

/** A NUL-terminated byte string of `bytes`, at most `max` long; bytes above 0x7f are shown as in Latin-1. */
export function cString(bytes: Uint8Array, start = 0, max = bytes.length - start): string {
  const limit = Math.min(bytes.length, start + max);
  let end = start;
  while (end < limit && bytes[end] !== 0) end++;
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString("latin1");
}
