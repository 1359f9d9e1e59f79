// SPDX-License-Identifier: MIT
import type { PagingFeatures, PagingMode } from "./translate.ts";

const TWO32 = 4294967296;

/** What a walk needs beside the address: whose tables, and how they are read. */
export interface AddressSpace {
  /** CR3; PCID bits allowed. */
  readonly root: number;
  readonly mode: PagingMode;
  readonly features: PagingFeatures;
}

/**
 * Guest physical address of the first table that a CR3 names: without PCID and
 * cache bits, which differ between two loads of the same tables. -1 without
 * paging, where CR3 names none.
 */
export function rootTable(mode: PagingMode, cr3: number): number {
  if (mode === "none") return -1;
  const low = (cr3 & (mode === "pae" ? 0xffffffe0 : 0xfffff000)) >>> 0;
  if (mode === "32" || mode === "pae") return low;
  return (Math.floor(cr3 / TWO32) & 0xfffff) * TWO32 + low;
}

/** Whether two spaces translate by the same tables, whatever the PCID. */
export function sameTables(a: AddressSpace, b: AddressSpace): boolean {
  return a.mode === b.mode && rootTable(a.mode, a.root) === rootTable(b.mode, b.root);
}
