// SPDX-License-Identifier: MIT
/**
 * The little of src/memory that guest introspection reads through. The classes
 * PhysicalMemory and VirtualMemory satisfy these structurally; a memory dump,
 * a snapshot or a test image can stand in for them.
 */
import { isKernelGva } from "../memory/address.ts";

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

/** True for an address of the kernel's half (4-level paging) that is worth following; error values are none. */
export function isKernelPointer(address: number): boolean {
  return address < -4095 && isKernelGva(address);
}

/** What is wrong with a list's pointer that is no kernel pointer. */
export function pointerProblem(address: number): string {
  // 57-bit addresses are not exact as numbers.
  return address < -(2 ** 47) && address >= -(2 ** 56)
    ? "has addresses of 5-level paging, which are not followed"
    : "has a pointer that is none";
}

/** A NUL-terminated byte string of `bytes`, at most `max` long; bytes above 0x7f are shown as in Latin-1. */
export function cString(bytes: Uint8Array, start = 0, max = bytes.length - start): string {
  const limit = Math.min(bytes.length, start + max);
  let end = start;
  while (end < limit && bytes[end] !== 0) end++;
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString("latin1");
}
