// SPDX-License-Identifier: MIT
import { PAGE_SIZE } from "../memory/address.ts";
import type { AddressSpace } from "../memory/space.ts";
import {
  PTE_P,
  PTE_PS,
  PTE_RW,
  PTE_US,
  pagingStructure,
  reservedOf4MiB,
} from "../memory/translate.ts";

/**
 * What a paging entry means (SDM vol. 3, 4.3 to 4.5), told from a copy of it: where a walk would go on.
 * The rules are those of src/memory/translate.ts; an entry with a reserved bit set translates nothing.
 */

/** The entry translates nothing: not present, or malformed. */
export const ENTRY_NONE = 0;
/** It points to a table of the next level. */
export const ENTRY_TABLE = 1;
/** It maps a page. */
export const ENTRY_PAGE = 2;
export type EntryKind = typeof ENTRY_NONE | typeof ENTRY_TABLE | typeof ENTRY_PAGE;

/** Entries of one level under the features of one address space. */
export interface EntryFormat {
  /** 1 = PT, 2 = PD, 3 = PDPT, 4 = PML4, 5 = PML5. */
  readonly level: number;
  /** Linear bytes that one entry translates. */
  readonly size: number;
  /** Entries of a table; a power of two. */
  readonly count: number;
  /** 32-bit words of an entry: 1 or 2. */
  readonly words: number;
  /** Whether PS makes the entry map a page. */
  readonly large: boolean;
  /** Whether entries carry R/W, U/S and NX: not PAE's PDPTEs. */
  readonly rights: boolean;
  /** Bits that must be 0: of a pointer to a table, of a large page, and of the high half of any. */
  readonly reservedTable: number;
  readonly reservedLarge: number;
  readonly reservedHi: number;
}

/** The entry formats of a space, from the root down; none without paging. */
export function entryFormats(space: AddressSpace): readonly EntryFormat[] {
  const { levels, entrySize } = pagingStructure(space.mode);
  const { physicalBits, nxe, pse } = space.features;
  const beyond = physicalBits >= 52 ? 0 : 0xfffff & (-1 << (physicalBits - 32));
  return levels.map((level, depth) => ({
    level: levels.length - depth,
    size: 2 ** level.shift,
    count: level.indexMask + 1,
    words: entrySize / 4,
    large: level.large && (pse || entrySize === 8),
    rights: level.rights,
    reservedTable: level.reserved,
    reservedLarge:
      level.shift === 12
        ? level.reserved
        : level.reservedLarge | (entrySize === 4 ? reservedOf4MiB(physicalBits) : 0),
    // PAE's PDPTEs have no NX and nothing to ignore above the address.
    reservedHi:
      entrySize === 4
        ? 0
        : beyond | (nxe ? 0 : 0x80000000 | 0) | (level.rights ? 0 : 0xfff00000 | 0),
  }));
}

export function entryKind(format: EntryFormat, lo: number, hi: number): EntryKind {
  if ((lo & PTE_P) === 0 || (hi & format.reservedHi) !== 0) return ENTRY_NONE;
  if (format.level === 1 || (format.large && (lo & PTE_PS) !== 0)) {
    return (lo & format.reservedLarge) !== 0 ? ENTRY_NONE : ENTRY_PAGE;
  }
  return (lo & format.reservedTable) !== 0 ? ENTRY_NONE : ENTRY_TABLE;
}

/** Guest physical address in a paging entry (bits 51:12). */
export function entryAddress(lo: number, hi: number): number {
  return (hi & 0xfffff) * 0x1_0000_0000 + ((lo & 0xfffff000) >>> 0);
}

/** First byte of the page that an entry of kind ENTRY_PAGE maps. */
export function entryPage(format: EntryFormat, lo: number, hi: number): number {
  if (format.level === 1) return entryAddress(lo, hi);
  // PSE-36: a 4 MiB page keeps address bits 39..32 in bits 20..13.
  const high = format.words === 1 ? (lo >>> 13) & 0xff : hi & 0xfffff;
  return high * 0x1_0000_0000 + ((lo & -format.size) >>> 0);
}

/** Whether two contents of an entry translate alike; accessed, dirty and ignored bits aside. */
export function sameTranslation(
  format: EntryFormat,
  lo: number,
  hi: number,
  otherLo: number,
  otherHi: number,
): boolean {
  const kind = entryKind(format, lo, hi);
  if (kind !== entryKind(format, otherLo, otherHi)) return false;
  if (kind === ENTRY_NONE) return true;
  if (format.rights) {
    if (((lo ^ otherLo) & (PTE_RW | PTE_US)) !== 0 || (hi ^ otherHi) < 0) return false;
  }
  return kind === ENTRY_TABLE
    ? entryAddress(lo, hi) === entryAddress(otherLo, otherHi)
    : entryPage(format, lo, hi) === entryPage(format, otherLo, otherHi);
}

/** Whether the upper half of a space's addresses is negative. */
export function hasNegativeHalf(space: AddressSpace): boolean {
  return pagingStructure(space.mode).topBit > 31;
}

/**
 * The linear addresses of a space, signed: [start, end). The user's half ends at `middle`; where no
 * address is negative, that is where Windows puts it, and Linux allows 1 GiB more.
 */
export function addressBounds(space: AddressSpace): { start: number; middle: number; end: number } {
  const { topBit } = pagingStructure(space.mode);
  if (topBit === 31) return { start: 0, middle: 2 ** 31, end: 2 ** 32 };
  return { start: -(2 ** topBit), middle: 2 ** topBit, end: 2 ** topBit };
}

/**
 * Whether [start, end) is a range of whole pages that the space can have. Page addresses are multiples
 * of 4096 and so exact as numbers in 57 bits too.
 */
export function isPageRange(space: AddressSpace, start: number, end: number): boolean {
  const bounds = addressBounds(space);
  if (!(start >= bounds.start && start < end && end <= bounds.end)) return false;
  return start % PAGE_SIZE === 0 && end % PAGE_SIZE === 0;
}
