// SPDX-License-Identifier: MIT

/** Bits of AccessList.flags. */
export const ACCESS_READ = 1 << 0;
export const ACCESS_WRITE = 1 << 1;
/** Not of an operand that is written out: the stack of PUSH, a descriptor, both sides of MOVS. */
export const ACCESS_IMPLICIT = 1 << 2;
/** May be left out, or touch only a part: it depends on the CPU, or on what cannot be known here. */
export const ACCESS_CONDITIONAL = 1 << 3;
/** Made with the rights of ring 0 whatever the CPL: descriptor tables, TSS. */
export const ACCESS_SYSTEM = 1 << 4;

/**
 * The memory accesses of one instruction. Made once and filled again for each.
 * Entry i is gva[i], size[i], flags[i], for i below `length`, in the order in
 * which the SDM's pseudo-code makes them. A read-modify-write is one entry with
 * both flags.
 */
export class AccessList {
  /** The most entries: ENTER with 31 levels has 63. */
  static readonly CAPACITY = 64;
  length = 0;
  /**
   * False when there are accesses that the list does not have: it was full, or
   * which they are depends on memory that is absent or on state not looked at
   * (task switches, AMX, MPX tables).
   */
  complete = true;
  /** Signed linear addresses, as linearAddress() gives them. */
  readonly gva = new Float64Array(AccessList.CAPACITY);
  /** Bytes, at least 1; more than a page only for XSAVE areas and a whole REP. */
  readonly size = new Float64Array(AccessList.CAPACITY);
  /** ACCESS_* */
  readonly flags = new Uint8Array(AccessList.CAPACITY);

  clear(): void {
    this.length = 0;
    this.complete = true;
  }
  add(gva: number, size: number, flags: number): void {
    const i = this.length;
    if (i === AccessList.CAPACITY || Number.isNaN(gva)) {
      this.complete = false;
      return;
    }
    this.gva[i] = gva;
    this.size[i] = size;
    this.flags[i] = flags;
    this.length = i + 1;
  }
  /** Number of the first entry with one of these flags; -1 when there is none. */
  find(flags: number): number {
    for (let i = 0; i < this.length; i++) if ((this.flags[i] & flags) !== 0) return i;
    return -1;
  }
  /** First address written, NaN when nothing is. */
  get firstWritten(): number {
    const i = this.find(ACCESS_WRITE);
    return i < 0 ? Number.NaN : this.gva[i];
  }
  /** First address read, NaN when nothing is. */
  get firstRead(): number {
    const i = this.find(ACCESS_READ);
    return i < 0 ? Number.NaN : this.gva[i];
  }
}
