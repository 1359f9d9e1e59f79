// SPDX-License-Identifier: MIT
import { EPT_RANGE_COUNT, EPT_RANGE_GFN, EPT_RANGE_RIGHTS, SIZEOF_EPT_RANGE } from "./abi.ts";
import { Block } from "./backend.ts";

/** The most ranges one HVI_EPT_SET takes. */
export const EPT_RANGES_MAX = 65536;

/** A list of (GFN, count, rights) that is built up and reused without allocating. */
export class EptRanges {
  private block: Block;
  private used = 0;

  /** @param capacity ranges to have room for; grows by doubling */
  constructor(capacity = 64) {
    this.block = new Block(capacity * SIZEOF_EPT_RANGE);
  }

  get length(): number {
    return this.used;
  }
  /** No other range fits: hand these over first. */
  get isFull(): boolean {
    return this.used === EPT_RANGES_MAX;
  }
  /** The memory handed to the backend. */
  get memory(): Block {
    return this.block;
  }
  clear(): void {
    this.used = 0;
  }

  /**
   * Adds `count` GFNs from gfn on. Joins the range before when it continues it
   * with the same rights. Throws RangeError at the backend's limit of 65536 ranges.
   */
  add(gfn: number, count: number, rights: number): void {
    if (this.used > 0) {
      const last = (this.used - 1) * SIZEOF_EPT_RANGE;
      const had = this.block.get32(last + EPT_RANGE_COUNT);
      if (
        this.block.get32(last + EPT_RANGE_RIGHTS) === rights &&
        this.block.get64(last + EPT_RANGE_GFN) + had === gfn &&
        had + count <= 0xffffffff
      ) {
        this.block.set32(last + EPT_RANGE_COUNT, had + count);
        return;
      }
    }
    if (this.used === EPT_RANGES_MAX) throw new RangeError("more than 65536 EPT ranges in a batch");
    const at = this.used * SIZEOF_EPT_RANGE;
    if (at + SIZEOF_EPT_RANGE > this.block.bytes.length) {
      const bigger = new Block(Math.max(2 * this.block.bytes.length, SIZEOF_EPT_RANGE));
      bigger.bytes.set(this.block.bytes);
      this.block = bigger;
    }
    this.block.set64(at + EPT_RANGE_GFN, gfn);
    this.block.set32(at + EPT_RANGE_COUNT, count);
    this.block.set32(at + EPT_RANGE_RIGHTS, rights);
    this.used++;
  }

  gfn(i: number): number {
    return this.block.get64(i * SIZEOF_EPT_RANGE + EPT_RANGE_GFN);
  }
  count(i: number): number {
    return this.block.get32(i * SIZEOF_EPT_RANGE + EPT_RANGE_COUNT);
  }
  rights(i: number): number {
    return this.block.get32(i * SIZEOF_EPT_RANGE + EPT_RANGE_RIGHTS);
  }
}
