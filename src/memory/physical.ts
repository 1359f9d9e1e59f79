// SPDX-License-Identifier: MIT
import type { GuestRam } from "../bridge/ram.ts";
import { RAM_CHUNK } from "../bridge/ram.ts";

const TWO32 = 4294967296;
/** Bytes that are copied one by one: up to here that is faster than to make a view, and leaves no garbage. */
const FEW = 64;

/** A 64-bit value as two unsigned halves. */
export interface U64 {
  lo: number;
  hi: number;
}

/** Frames of 1 GiB: what Stretch lookups are indexed by. */
const GIB_FRAMES = 0x40000;
/** Frames are 31-bit integers: RAM below 8 TiB. */
const FRAMES = 2 ** 31;

/** A range of RAM whose bytes lie side by side in one view. */
interface Stretch {
  readonly gfn: number;
  readonly frames: number;
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  readonly view: DataView;
  /** Its first byte in them. */
  readonly start: number;
}

/** Where a page walk finds its tables. */
export interface TableSource {
  /** Word at which the frame asked of tableAt() starts. */
  readonly wordIndex: number;
  /** Words that hold a frame, from `wordIndex` on; undefined when it is not RAM. */
  tableAt(gfn: number): Uint32Array | undefined;
}

function stretchesOf(ram: GuestRam): Stretch[] {
  const out: Stretch[] = [];
  for (const slot of ram.slots) {
    for (let done = 0; done < slot.size; ) {
      const offset = slot.offset + done;
      const chunk = Math.floor(offset / RAM_CHUNK);
      const within = offset - chunk * RAM_CHUNK;
      const size = Math.min(slot.size - done, RAM_CHUNK - within);
      out.push({
        gfn: (slot.gpa + done) / 0x1000,
        frames: Math.floor(size / 0x1000),
        bytes: ram.bytes[chunk],
        words: ram.words[chunk],
        view: ram.views[chunk],
        start: within,
      });
      done += size;
    }
  }
  return out.sort((a, b) => a.gfn - b.gfn).filter((s) => s.gfn + s.frames <= FRAMES);
}

/**
 * Guest physical memory. Any size, any alignment, across pages and slots.
 * Nothing throws for an address without RAM: reads answer -1, undefined or
 * false; writes answer false and have changed nothing.
 *
 * A value wider than 4 bytes may change between the reads of its halves while
 * other vCPUs run; pause them when that matters.
 */
export class PhysicalMemory implements TableSource {
  wordIndex = 0;
  /** Byte that bytesAt() was asked for. */
  byteIndex = 0;
  private readonly scratch: U64 = { lo: 0, hi: 0 };
  // The first gigabyte of the first slot, where most accesses go. An index is made an integer by
  // `| 0`: with a double, JIT code that expects integers is thrown away again and again.
  private readonly firstGpa: number;
  private readonly firstSize: number;
  private readonly firstView: DataView;
  private readonly stretches: readonly Stretch[];
  /** The first stretch that reaches into each GiB. */
  private readonly byGib: Uint16Array;
  private recent: Stretch;

  constructor(readonly ram: GuestRam) {
    const slot = ram.slots[0];
    const view = ram.views[0];
    if (!slot || !view || slot.offset !== 0) throw new Error("there is no guest memory");
    this.firstGpa = slot.gpa;
    this.firstSize = Math.min(slot.size, RAM_CHUNK);
    this.firstView = view;
    const stretches = stretchesOf(ram);
    const last = stretches[stretches.length - 1];
    if (!last) throw new Error("there is no guest memory below 8 TiB");
    this.stretches = stretches;
    this.recent = stretches[0];
    this.byGib = Uint16Array.from(
      { length: Math.ceil((last.gfn + last.frames) / GIB_FRAMES) },
      (_, gib) => stretches.findIndex((s) => s.gfn + s.frames > gib * GIB_FRAMES),
    );
  }

  read8(gpa: number): number {
    const at = gpa - this.firstGpa;
    if (at >= 0 && at < this.firstSize) return this.firstView.getUint8(at | 0);
    const s = this.stretchAt(gpa);
    return s === undefined ? -1 : s.view.getUint8(this.byteIndex);
  }
  read16(gpa: number): number {
    const at = gpa - this.firstGpa;
    if (at >= 0 && at <= this.firstSize - 2) return this.firstView.getUint16(at | 0, true);
    const s = this.stretchAt(gpa);
    if (s === undefined) return -1;
    if ((this.byteIndex & 0xfff) <= 0xffe) return s.view.getUint16(this.byteIndex, true);
    const lo = this.read8(gpa);
    const hi = this.read8(gpa + 1);
    return hi < 0 ? -1 : lo | (hi << 8);
  }
  read32(gpa: number): number {
    const at = gpa - this.firstGpa;
    if (at >= 0 && at <= this.firstSize - 4) return this.firstView.getUint32(at | 0, true);
    const s = this.stretchAt(gpa);
    if (s === undefined) return -1;
    if ((this.byteIndex & 0xfff) <= 0xffc) return s.view.getUint32(this.byteIndex, true);
    const lo = this.read16(gpa);
    const hi = this.read16(gpa + 2);
    return lo < 0 || hi < 0 ? -1 : lo + hi * 0x10000;
  }
  /** Reads 8 bytes into out; false when some of them are not RAM. */
  readU64Into(gpa: number, out: U64): boolean {
    const at = gpa - this.firstGpa;
    if (at >= 0 && at <= this.firstSize - 8) {
      const i = at | 0;
      out.lo = this.firstView.getUint32(i, true);
      out.hi = this.firstView.getUint32(i + 4, true);
      return true;
    }
    const s = this.stretchAt(gpa);
    if (s === undefined) return false;
    const i = this.byteIndex;
    if ((i & 0xfff) <= 0xff8) {
      out.lo = s.view.getUint32(i, true);
      out.hi = s.view.getUint32(i + 4, true);
      return true;
    }
    const lo = this.read32(gpa);
    const hi = this.read32(gpa + 4);
    if (lo < 0 || hi < 0) return false;
    out.lo = lo;
    out.hi = hi;
    return true;
  }
  /** The same into an object that the next call overwrites. */
  readU64(gpa: number): U64 | undefined {
    return this.readU64Into(gpa, this.scratch) ? this.scratch : undefined;
  }
  /** 8 bytes as a signed number, rounded beyond 2^53; NaN when not RAM. */
  readI64(gpa: number): number {
    if (!this.readU64Into(gpa, this.scratch)) return Number.NaN;
    return (this.scratch.hi | 0) * TWO32 + this.scratch.lo;
  }

  /**
   * The words of the page table (or whatever else is read as words) in a frame;
   * `wordIndex` tells where. Undefined when there is no RAM. Integers only, and
   * a search only where one stretch of RAM ends: walks live on this.
   */
  tableAt(gfn: number): Uint32Array | undefined {
    const r = this.recent;
    const at = (gfn - r.gfn) | 0;
    const s = at >= 0 && at < r.frames ? r : this.search(gfn);
    if (s === undefined) return undefined;
    this.wordIndex = (s.start >> 2) + ((gfn - s.gfn) << 10);
    return s.words;
  }
  /** The stretch of an address, with `byteIndex` set; undefined when there is no RAM. */
  private stretchAt(gpa: number): Stretch | undefined {
    if (!(gpa >= 0 && gpa < FRAMES * 0x1000)) return undefined;
    const gfn = (gpa / 0x1000) | 0;
    const r = this.recent;
    const at = (gfn - r.gfn) | 0;
    const s = at >= 0 && at < r.frames ? r : this.search(gfn);
    if (s === undefined) return undefined;
    this.byteIndex = s.start + ((gfn - s.gfn) << 12) + ((gpa - gfn * 0x1000) | 0);
    return s;
  }
  private search(gfn: number): Stretch | undefined {
    const { byGib, stretches } = this;
    const gib = gfn >>> 18;
    if (gib >= byGib.length) return undefined;
    for (let i = byGib[gib]; i < stretches.length; i++) {
      const s = stretches[i];
      const at = (gfn - s.gfn) | 0;
      if (at < 0) return undefined;
      if (at < s.frames) {
        this.recent = s;
        return s;
      }
    }
    return undefined;
  }

  /**
   * The bytes around gpa, good up to the end of its page; `byteIndex` tells
   * where. Undefined when there is no RAM. Unlike ram.view() it allocates nothing.
   */
  bytesAt(gpa: number): Uint8Array | undefined {
    return this.stretchAt(gpa)?.bytes;
  }

  /** Copies n bytes that lie in one page to into[at]; false when they are not RAM. */
  copyOut(gpa: number, n: number, into: Uint8Array, at: number): boolean {
    if (n > FEW) {
      const page = this.ram.view(gpa, n);
      if (page) into.set(page, at);
      return page !== undefined;
    }
    const bytes = this.bytesAt(gpa);
    if (!bytes) return false;
    const from = this.byteIndex;
    for (let i = 0; i < n; i++) into[at + i] = bytes[from + i];
    return true;
  }
  /** Copies n bytes from bytes[at] to where they lie in one page; false when that is not RAM. */
  private copyIn(gpa: number, n: number, bytes: Uint8Array, at: number): boolean {
    if (n > FEW) {
      const page = this.ram.view(gpa, n);
      page?.set(n === bytes.length ? bytes : bytes.subarray(at, at + n));
      return page !== undefined;
    }
    const into = this.bytesAt(gpa);
    if (!into) return false;
    const to = this.byteIndex;
    for (let i = 0; i < n; i++) into[to + i] = bytes[at + i];
    return true;
  }
  /** Copies as much as is RAM from gpa on; returns the bytes copied. */
  readPartial(gpa: number, into: Uint8Array): number {
    let done = 0;
    while (done < into.length) {
      const n = Math.min(into.length - done, 0x1000 - ((gpa + done) & 0xfff));
      if (!this.copyOut(gpa + done, n, into, done)) break;
      done += n;
    }
    return done;
  }
  /** Fills `into` from memory. False, with `into` partly written, when some of it is not RAM. */
  readInto(gpa: number, into: Uint8Array): boolean {
    return this.readPartial(gpa, into) === into.length;
  }
  /** A copy of [gpa, gpa + length); undefined when some of it is not RAM. */
  read(gpa: number, length: number): Uint8Array | undefined {
    if (!(length >= 0) || !this.ram.contains(gpa, length)) return undefined;
    const out = new Uint8Array(length);
    return this.readInto(gpa, out) ? out : undefined;
  }
  /**
   * The bytes of [gpa, gpa + length) in place, of any number of pages that lie
   * side by side in the mapping (one page always does); undefined otherwise, and
   * when some of it is not RAM. Nothing needs to be unmapped.
   */
  map(gpa: number, length: number): Uint8Array | undefined {
    return length >= 0 ? this.ram.view(gpa, length) : undefined;
  }

  write8(gpa: number, value: number): boolean {
    const s = this.stretchAt(gpa);
    s?.view.setUint8(this.byteIndex, value);
    return s !== undefined;
  }
  write16(gpa: number, value: number): boolean {
    const s = this.stretchAt(gpa);
    if (s === undefined) return false;
    if ((this.byteIndex & 0xfff) <= 0xffe) {
      s.view.setUint16(this.byteIndex, value, true);
      return true;
    }
    if (!this.ram.contains(gpa, 2)) return false;
    return this.write8(gpa, value) && this.write8(gpa + 1, value >>> 8);
  }
  write32(gpa: number, value: number): boolean {
    const s = this.stretchAt(gpa);
    if (s === undefined) return false;
    if ((this.byteIndex & 0xfff) <= 0xffc) {
      s.view.setUint32(this.byteIndex, value, true);
      return true;
    }
    if (!this.ram.contains(gpa, 4)) return false;
    return this.write16(gpa, value) && this.write16(gpa + 2, value >>> 16);
  }
  writeU64(gpa: number, lo: number, hi: number): boolean {
    const s = this.stretchAt(gpa);
    if (s === undefined) return false;
    const i = this.byteIndex;
    if ((i & 0xfff) <= 0xff8) {
      s.view.setUint32(i, lo, true);
      s.view.setUint32(i + 4, hi, true);
      return true;
    }
    if (!this.ram.contains(gpa, 8)) return false;
    return this.write32(gpa, lo) && this.write32(gpa + 4, hi);
  }
  /** Writes all bytes or, when some of the range is not RAM, none. */
  write(gpa: number, bytes: Uint8Array): boolean {
    if (!this.ram.contains(gpa, bytes.length)) return false;
    for (let done = 0; done < bytes.length; ) {
      const n = Math.min(bytes.length - done, 0x1000 - ((gpa + done) & 0xfff));
      this.ram
        .view(gpa + done, n)
        ?.set(n === bytes.length ? bytes : bytes.subarray(done, done + n));
      done += n;
    }
    return true;
  }
  /** Sets [gpa, gpa + length) to one byte; all or nothing. */
  fill(gpa: number, length: number, value: number): boolean {
    if (!(length >= 0) || !this.ram.contains(gpa, length)) return false;
    for (let done = 0; done < length; ) {
      const n = Math.min(length - done, 0x1000 - ((gpa + done) & 0xfff));
      this.ram.view(gpa + done, n)?.fill(value);
      done += n;
    }
    return true;
  }
  /**
   * Writes bytes to pages that need not be neighbours: from pages[0] to the end of its page, then
   * from pages[1] on, and so forth. What is not RAM is left out: the caller has looked.
   */
  scatter(pages: Float64Array, bytes: Uint8Array): void {
    for (let i = 0, done = 0; done < bytes.length; i++) {
      const gpa = pages[i];
      const n = Math.min(bytes.length - done, 0x1000 - (gpa & 0xfff));
      this.copyIn(gpa, n, bytes, done);
      done += n;
    }
  }
}
