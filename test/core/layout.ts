// SPDX-License-Identifier: MIT
/** Where things stand in the core guest: guest/layout.h and guest/kernel.h have the same numbers. */

/** The guest's paging modes; an image each. */
export const MODES = ["long", "pae", "p32"] as const;
export type Mode = (typeof MODES)[number];

export const PAGE = 4096;
export const RAM_SIZE = 0x2000000;
/** Large pages that a scenario may map, up to the end of RAM. */
export const LARGE = 0x1000000;
export const USER_STUBS = 0x10000000;
export const USER_STACK = 0x10100000;
export const PORT_COMMAND = 0xee;
export const PORT_PANIC = 0xed;
export const REGISTERS = 16;
/** Vector registers that a stub is given, of 32 bytes. */
export const VECTORS = 4;

/** All RAM is mapped here, in every address space. */
export const KERNEL_BASE: Record<Mode, number> = {
  long: -0x80000000,
  pae: 0xc0000000,
  p32: 0xc0000000,
};
/** Bytes of a register. */
export const WORD: Record<Mode, 4 | 8> = { long: 8, pae: 4, p32: 4 };
/** Bytes of a page-table entry. */
export const ENTRY: Record<Mode, 4 | 8> = { long: 8, pae: 8, p32: 4 };
export const LEVELS: Record<Mode, number> = { long: 4, pae: 3, p32: 2 };
/** Bytes of a large page. */
export const LARGE_SIZE: Record<Mode, number> = { long: 0x200000, pae: 0x200000, p32: 0x400000 };
/** Linear addresses of a scenario's own, nothing mapped; far apart in long mode. */
export const SOURCE: Record<Mode, number> = {
  long: 0x7f5512340000,
  pae: 0x20000000,
  p32: 0x20000000,
};
export const TARGET: Record<Mode, number> = {
  long: 0x12345670000,
  pae: 0x7f7f0000,
  p32: 0x7f7f0000,
};

/** Flags of entries; NX is a bit of the high half, which 32-bit paging has not. */
export const P = 1;
export const RW = 2;
export const US = 4;
export const PS = 0x80;
/** A page of ring 3 that can be written. */
export const USER_PAGE = P | RW | US;
