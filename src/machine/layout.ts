// SPDX-License-Identifier: MIT
/** Where things stand in guest physical memory. */

/** RAM below 4 GiB ends here at most; above it devices answer. */
export const LOW_MEMORY_LIMIT = 0xc0000000;
export const HIGH_MEMORY_START = 0x100000000;
/** End of conventional memory: the EBDA of a PC begins here. */
export const CONVENTIONAL_END = 0x9fc00;
export const BIOS_AREA_END = 0x100000;

/** Start-up structures in conventional memory; all free for the guest once it has left its entry code. */
export const BOOT_GDT = 0x1000;
export const BOOT_PML4 = 0x2000;
export const BOOT_PDPT = 0x3000;
/** Four page directories, one a GiB. */
export const BOOT_PD = 0x4000;
export const BOOT_PARAMS = 0x10000;
export const BOOT_CMDLINE = 0x20000;
export const MULTIBOOT_INFO = 0x90000;
/** ACPI tables, in the area that is searched for the RSDP. */
export const ACPI_TABLES = 0xe0000;

export interface MemoryRange {
  gpa: number;
  size: number;
}

/** The RAM of a machine with `bytes` of memory: a hole for devices from 3 to 4 GiB. */
export function ramRanges(bytes: number): MemoryRange[] {
  if (bytes <= LOW_MEMORY_LIMIT) return [{ gpa: 0, size: bytes }];
  return [
    { gpa: 0, size: LOW_MEMORY_LIMIT },
    { gpa: HIGH_MEMORY_START, size: bytes - LOW_MEMORY_LIMIT },
  ];
}

export const E820_RAM = 1;
export const E820_RESERVED = 2;

export interface E820Entry {
  base: number;
  size: number;
  type: number;
}

/** The memory map that firmware would give. */
export function e820(bytes: number): E820Entry[] {
  const low = Math.min(bytes, LOW_MEMORY_LIMIT);
  const map: E820Entry[] = [
    { base: 0, size: CONVENTIONAL_END, type: E820_RAM },
    { base: CONVENTIONAL_END, size: BIOS_AREA_END - CONVENTIONAL_END, type: E820_RESERVED },
    { base: BIOS_AREA_END, size: low - BIOS_AREA_END, type: E820_RAM },
  ];
  if (bytes > low) map.push({ base: HIGH_MEMORY_START, size: bytes - low, type: E820_RAM });
  return map;
}
