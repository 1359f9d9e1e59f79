// SPDX-License-Identifier: MIT
/** Guest RAM, seen in place. */

/** One range of guest physical addresses with memory behind it. */
export interface MemorySlot {
  /** First guest physical address, page aligned. */
  readonly gpa: number;
  /** Bytes. */
  readonly size: number;
  /** Where it stands in the RAM mapping, bytes. */
  readonly offset: number;
}

/** RAM is viewed in pieces of 1 GiB: indices stay 31-bit integers, which JIT code handles best. */
export const RAM_CHUNK = 0x40000000;
const NO_SLOT: MemorySlot = { gpa: 0, size: 0, offset: 0 };

/**
 * Zero-copy views of guest RAM. The guest writes to the same bytes at any
 * time: read a value once, then check it.
 */
export class GuestRam {
  /** Bytes of RAM in all slots. */
  readonly size: number;
  readonly slots: readonly MemorySlot[];
  /** RAM in pieces of RAM_CHUNK bytes, in the order of the mapping. Empty once detached. */
  readonly bytes: Uint8Array[] = [];
  readonly words: Uint32Array[] = [];
  readonly views: DataView[] = [];
  private recent: MemorySlot;
  private readonly buffers: readonly ArrayBuffer[];

  /**
   * @param buffers RAM in pieces of RAM_CHUNK bytes; the last may be shorter
   */
  constructor(slots: readonly MemorySlot[], buffers: readonly ArrayBuffer[]) {
    this.slots = slots;
    this.buffers = buffers;
    this.size = slots.reduce((n, s) => n + s.size, 0);
    for (const b of buffers) {
      this.bytes.push(new Uint8Array(b));
      this.words.push(new Uint32Array(b, 0, b.byteLength >>> 2));
      this.views.push(new DataView(b));
    }
    this.recent = slots[0] ?? NO_SLOT;
  }

  /** RAM of `size` zero bytes at guest physical 0, with nothing behind it; for tests and images. */
  static allocate(size: number, gpa = 0): GuestRam {
    const buffers: ArrayBuffer[] = [];
    for (let at = 0; at < size; at += RAM_CHUNK) {
      buffers.push(new ArrayBuffer(Math.min(RAM_CHUNK, size - at)));
    }
    return new GuestRam([{ gpa, size, offset: 0 }], buffers);
  }

  /** Offset in RAM of a guest physical address; -1 when there is no RAM (also for NaN). */
  offsetOf(gpa: number): number {
    const r = this.recent;
    const d = gpa - r.gpa;
    if (d >= 0 && d < r.size) return r.offset + d;
    return this.search(gpa);
  }

  private search(gpa: number): number {
    for (const s of this.slots) {
      if (gpa >= s.gpa && gpa < s.gpa + s.size) {
        this.recent = s;
        return s.offset + (gpa - s.gpa);
      }
    }
    return -1;
  }

  /** The guest physical address of a byte of RAM; -1 when out of range. */
  gpaOf(offset: number): number {
    for (const s of this.slots) {
      if (offset >= s.offset && offset < s.offset + s.size) return s.gpa + (offset - s.offset);
    }
    return -1;
  }

  /** True when all of [gpa, gpa + length) is RAM. */
  contains(gpa: number, length = 1): boolean {
    let at = gpa;
    const end = gpa + length;
    for (let n = 0; at < end && n <= this.slots.length; n++) {
      const offset = this.offsetOf(at);
      if (offset < 0) return false;
      at = this.recent.gpa + this.recent.size;
    }
    return at >= end;
  }

  /** The bytes that hold a guest physical address, and where; undefined when there is no RAM. */
  u8(gpa: number): { bytes: Uint8Array; offset: number } | undefined {
    const offset = this.offsetOf(gpa);
    if (offset < 0) return undefined;
    return { bytes: this.bytes[Math.floor(offset / RAM_CHUNK)], offset: offset % RAM_CHUNK };
  }

  /**
   * A view of [gpa, gpa + length) without copying. Undefined when some of it is
   * not RAM or it is not contiguous in the mapping. Inside one page it always is.
   */
  view(gpa: number, length: number): Uint8Array | undefined {
    const offset = this.offsetOf(gpa);
    if (offset < 0 || length < 0) return undefined;
    const within = offset % RAM_CHUNK;
    if (gpa + length > this.recent.gpa + this.recent.size || within + length > RAM_CHUNK) {
      return undefined;
    }
    return this.bytes[Math.floor(offset / RAM_CHUNK)].subarray(within, within + length);
  }

  /** Makes every view unusable: the memory behind them is about to go away. */
  detach(): void {
    this.bytes.length = 0;
    this.words.length = 0;
    this.views.length = 0;
    this.recent = NO_SLOT;
    (this as { slots: readonly MemorySlot[] }).slots = [];
    for (const b of this.buffers) b.transfer();
  }
}
