// SPDX-License-Identifier: MIT
import type { PhysicalMemory, U64 } from "./physical.ts";
import type { AddressSpace } from "./space.ts";
import {
  DEFAULT_FEATURES,
  type PagingFeatures,
  type PagingMode,
  Translation,
  Walk,
} from "./translate.ts";

const TWO32 = 4294967296;
const utf8 = new TextDecoder("utf-8");
const utf16 = new TextDecoder("utf-16le");
/** The longest string that is read, whatever the caller asks. */
const STRING_LIMIT = 65536;
/** The longest copy that read() and map() make: a length may come from the guest. */
export const READ_LIMIT = 0x4000000;
/** Longest range that write() and fill() take. */
export const WRITE_LIMIT = 0x4000000;
/** Where the pages of a write stand, for up to 1 MiB; longer ones get their own. */
const targets = new Float64Array(257);
const few = new Uint8Array(8);
const fewWords = new DataView(few.buffer);

/** One range of readMany(). */
export interface ReadRange {
  readonly gva: number;
  readonly into: Uint8Array;
  /** Out: bytes read from gva on. */
  done: number;
}

/** What map() gives. */
export interface Mapped {
  readonly bytes: Uint8Array;
  /** The bytes are the guest's own. False: a copy, which a write does not leave. */
  readonly direct: boolean;
}

/**
 * The virtual memory of one address space. Reads and writes of any size across
 * pages. A page that is not present is an answer (-1, NaN, undefined, false),
 * not a throw. What was translated is not taken as still true: the guest may
 * change its tables at any time.
 *
 * On an error: a read of a number gives its error value and nothing else;
 * readPartial and readMany say how many bytes they read; readInto leaves `into`
 * partly written; a write that answers false has changed nothing.
 *
 * In long mode a range that runs over the last address goes on at 0, as on the
 * CPU; one that leaves the canonical half ends there. In 32-bit modes a range
 * ends at 4 GiB.
 *
 * Writes look at presence only, not at the guest's rights or the EPT's: use
 * safeWrite() where the address comes from the guest.
 */
export class VirtualMemory implements AddressSpace {
  /** Record of the last gpaOf() or translate(). */
  readonly last = new Translation();
  protected readonly walk = new Walk();
  private readonly u64: U64 = { lo: 0, hi: 0 };
  /** Bytes of a pointer: 8 in long mode, else 4. Compatibility-mode code has 4 under long-mode tables. */
  readonly pointerSize: 4 | 8;

  static pointerSizeOf(mode: PagingMode): 4 | 8 {
    return mode === "4level" || mode === "5level" ? 8 : 4;
  }

  /**
   * @param root CR3, PCID bits allowed
   * @throws for an unknown mode
   */
  constructor(
    readonly physical: PhysicalMemory,
    readonly root: number,
    readonly mode: PagingMode,
    readonly features: PagingFeatures = DEFAULT_FEATURES,
    pointerSize: 4 | 8 = VirtualMemory.pointerSizeOf(mode),
  ) {
    this.pointerSize = pointerSize;
    this.walk.aim(physical, root, mode, features);
  }

  /** The same tables' mode under another root. */
  withRoot(root: number): VirtualMemory {
    return new VirtualMemory(this.physical, root, this.mode, this.features, this.pointerSize);
  }

  /** Guest physical address, or -1. The full record is in `last`. */
  gpaOf(gva: number): number {
    return this.walk.to(gva, this.last);
  }
  /** The same with a record of the caller's, or without one, which is faster. */
  walkTo(gva: number, out: Translation | undefined): number {
    return this.walk.to(gva, out);
  }
  private at(gva: number): number {
    return this.walk.to(gva, undefined);
  }
  /** The full record, overwritten by the next gpaOf() and translate(); undefined when there is no translation. */
  translate(gva: number): Translation | undefined {
    return this.gpaOf(gva) < 0 ? undefined : this.last;
  }

  read8(gva: number): number {
    const gpa = this.at(gva);
    return gpa < 0 ? -1 : this.physical.read8(gpa);
  }
  read16(gva: number): number {
    if ((gva & 0xfff) <= 0xffe) {
      const gpa = this.at(gva);
      return gpa < 0 ? -1 : this.physical.read16(gpa);
    }
    const lo = this.read8(gva);
    const hi = this.read8(gva + 1);
    return lo < 0 || hi < 0 ? -1 : lo | (hi << 8);
  }
  read32(gva: number): number {
    if ((gva & 0xfff) <= 0xffc) {
      const gpa = this.at(gva);
      return gpa < 0 ? -1 : this.physical.read32(gpa);
    }
    const lo = this.read16(gva);
    const hi = this.read16(gva + 2);
    return lo < 0 || hi < 0 ? -1 : lo + hi * 0x10000;
  }
  /** Reads 8 bytes into out; false, with out untouched, when some are absent. */
  readU64Into(gva: number, out: U64): boolean {
    if ((gva & 0xfff) <= 0xff8) {
      const gpa = this.at(gva);
      return gpa >= 0 && this.physical.readU64Into(gpa, out);
    }
    const lo = this.read32(gva);
    const hi = this.read32(gva + 4);
    if (lo < 0 || hi < 0) return false;
    out.lo = lo;
    out.hi = hi;
    return true;
  }
  /** 8 bytes as halves, in an object that the next call overwrites. */
  readU64(gva: number): U64 | undefined {
    return this.readU64Into(gva, this.u64) ? this.u64 : undefined;
  }
  /** 8 bytes as a signed number, rounded beyond 2^53; NaN when absent. */
  readI64(gva: number): number {
    if (!this.readU64Into(gva, this.u64)) return Number.NaN;
    return (this.u64.hi | 0) * TWO32 + this.u64.lo;
  }
  /**
   * A pointer, signed canonical in long mode; NaN when absent. What is read may
   * be any value: check with isCanonical48 and translate before use.
   */
  readPtr(gva: number): number {
    if (this.pointerSize === 8) return this.readI64(gva);
    const value = this.read32(gva);
    return value < 0 ? Number.NaN : value;
  }

  /** Copies as much as is present from gva on; returns the bytes copied. */
  readPartial(gva: number, into: Uint8Array): number {
    let done = 0;
    while (done < into.length) {
      const n = Math.min(into.length - done, 0x1000 - ((gva + done) & 0xfff));
      const gpa = this.at(gva + done);
      if (gpa < 0 || !this.physical.copyOut(gpa, n, into, done)) break;
      done += n;
    }
    return done;
  }
  /** Fills `into`. False, with `into` partly written, when some of the range is absent. */
  readInto(gva: number, into: Uint8Array): boolean {
    return this.readPartial(gva, into) === into.length;
  }
  /**
   * The same for an address of two 32-bit halves, exact for 57 bits (5-level
   * paging). Returns the bytes copied.
   */
  readHalves(lo: number, hi: number, into: Uint8Array): number {
    const start = lo >>> 0;
    let done = 0;
    while (done < into.length) {
      const at = start + done;
      const n = Math.min(into.length - done, 0x1000 - (at & 0xfff));
      const high = (hi + Math.floor(at / TWO32)) | 0;
      const gpa = this.walk.toHalves(at >>> 0, high, undefined);
      if (gpa < 0 || !this.physical.copyOut(gpa, n, into, done)) break;
      done += n;
    }
    return done;
  }
  /**
   * Several ranges in one call. Each gets what is present from its start on and
   * says how much; one that is absent does not keep the others from being read.
   * Returns how many are complete.
   */
  readMany(ranges: readonly ReadRange[]): number {
    let complete = 0;
    for (let i = 0; i < ranges.length; i++) {
      const range = ranges[i];
      range.done = this.readPartial(range.gva, range.into);
      if (range.done === range.into.length) complete++;
    }
    return complete;
  }
  /** Every page of [gva, gva + length) is present and RAM. */
  private present(gva: number, length: number): boolean {
    for (let done = 0; done < length; done += 0x1000 - ((gva + done) & 0xfff)) {
      const gpa = this.at(gva + done);
      if (gpa < 0 || this.physical.ram.offsetOf(gpa) < 0) return false;
    }
    return true;
  }
  /**
   * A copy of [gva, gva + length); undefined when some of it is absent, and for
   * more than READ_LIMIT bytes.
   */
  read(gva: number, length: number): Uint8Array | undefined {
    // Nothing is allocated for a length that no memory stands behind.
    if (!(length >= 0 && length <= READ_LIMIT && this.present(gva, length))) return undefined;
    const out = new Uint8Array(length);
    return this.readInto(gva, out) ? out : undefined;
  }
  /**
   * The bytes of [gva, gva + length): the guest's own when they lie in one page,
   * a copy otherwise. Nothing needs to be unmapped. Undefined as with read().
   */
  map(gva: number, length: number): Mapped | undefined {
    if (!((gva & 0xfff) + length <= 0x1000)) {
      const bytes = this.read(gva, length);
      return bytes && { bytes, direct: false };
    }
    const gpa = this.at(gva);
    const bytes = gpa < 0 ? undefined : this.physical.ram.view(gpa, length);
    return bytes && { bytes, direct: true };
  }

  /** Bytes up to NUL (of `unit` bytes) or `max`; undefined when a page before that is absent. */
  private readUntilNul(gva: number, max: number, unit: 1 | 2): Uint8Array | undefined {
    const limit = Math.max(0, Math.min(max, STRING_LIMIT));
    const out = new Uint8Array(limit);
    let done = 0;
    while (done < limit) {
      const n = Math.min(limit - done, 0x1000 - ((gva + done) & 0xfff));
      if (!this.readInto(gva + done, out.subarray(done, done + n))) return undefined;
      for (let i = done - (done % unit); i + unit <= done + n; i += unit) {
        if (out[i] === 0 && (unit === 1 || out[i + 1] === 0)) return out.subarray(0, i);
      }
      done += n;
    }
    return out;
  }
  /**
   * A string up to NUL or `max` bytes (at most 64 KiB), as UTF-8 with
   * replacement characters. Undefined when a page before its end is absent.
   */
  readString(gva: number, max: number): string | undefined {
    const bytes = this.readUntilNul(gva, max, 1);
    return bytes && utf8.decode(bytes);
  }
  /** The same for UTF-16; `max` in bytes. */
  readString16(gva: number, max: number): string | undefined {
    const bytes = this.readUntilNul(gva, max & ~1, 2);
    return bytes && utf16.decode(bytes);
  }

  write8(gva: number, value: number): boolean {
    const gpa = this.at(gva);
    return gpa >= 0 && this.physical.write8(gpa, value);
  }
  write16(gva: number, value: number): boolean {
    if ((gva & 0xfff) <= 0xffe) {
      const gpa = this.at(gva);
      return gpa >= 0 && this.physical.write16(gpa, value);
    }
    fewWords.setUint16(0, value, true);
    return this.writeFew(gva, 2);
  }
  write32(gva: number, value: number): boolean {
    if ((gva & 0xfff) <= 0xffc) {
      const gpa = this.at(gva);
      return gpa >= 0 && this.physical.write32(gpa, value);
    }
    fewWords.setUint32(0, value, true);
    return this.writeFew(gva, 4);
  }
  writeU64(gva: number, lo: number, hi: number): boolean {
    if ((gva & 0xfff) <= 0xff8) {
      const gpa = this.at(gva);
      return gpa >= 0 && this.physical.writeU64(gpa, lo, hi);
    }
    fewWords.setUint32(0, lo, true);
    fewWords.setUint32(4, hi, true);
    return this.writeFew(gva, 8);
  }
  /** Writes a pointer of this address space. */
  writePtr(gva: number, value: number): boolean {
    return this.pointerSize === 4
      ? this.write32(gva, value)
      : this.writeU64(gva, value >>> 0, Math.floor(value / TWO32) >>> 0);
  }

  /** Writes the first n bytes of `few` over a page boundary; both pages or none. */
  private writeFew(gva: number, n: number): boolean {
    const first = 0x1000 - (gva & 0xfff);
    const gpa = this.at(gva);
    const next = this.at(gva + first);
    const { physical } = this;
    if (gpa < 0 || next < 0 || physical.read8(gpa) < 0 || physical.read8(next) < 0) return false;
    for (let i = 0; i < n; i++) physical.write8(i < first ? gpa + i : next + i - first, few[i]);
    return true;
  }

  /**
   * Where the pages of [gva, gva + length) stand, the first and last cut to the
   * range; undefined when one is absent or not RAM. Translating once and then
   * writing leaves the guest no time to change a table in between.
   */
  private locate(gva: number, length: number): Float64Array | undefined {
    if (!(length >= 0 && length <= WRITE_LIMIT) || !Number.isSafeInteger(gva)) return undefined;
    const pages = length === 0 ? 0 : Math.ceil(((gva & 0xfff) + length) / 0x1000);
    const out = pages <= targets.length ? targets : new Float64Array(pages);
    for (let i = 0, at = gva; i < pages; i++, at += 0x1000 - (at & 0xfff)) {
      const gpa = this.at(at);
      if (gpa < 0 || this.physical.ram.offsetOf(gpa) < 0) return undefined;
      out[i] = gpa;
    }
    return out;
  }
  /** Writes all bytes or, when some of the range is absent or it is longer than WRITE_LIMIT, none. */
  write(gva: number, bytes: Uint8Array): boolean {
    const pages = this.locate(gva, bytes.length);
    if (pages) this.physical.scatter(pages, bytes);
    return pages !== undefined;
  }
  /** Sets [gva, gva + length) to one byte; all or nothing, as with write(). */
  fill(gva: number, length: number, value: number): boolean {
    const pages = this.locate(gva, length);
    if (!pages) return false;
    for (let i = 0, done = 0; done < length; i++) {
      const n = Math.min(length - done, 0x1000 - (pages[i] & 0xfff));
      this.physical.fill(pages[i], n, value);
      done += n;
    }
    return true;
  }
}
