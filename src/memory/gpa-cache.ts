// SPDX-License-Identifier: MIT
import type { PhysicalMemory, TableSource } from "./physical.ts";

/** Answers of findAndAdd() that are no entry. */
export const GPA_NO_RAM = -1;
/** All entries that the page may take are in use. */
export const GPA_NO_ROOM = -2;

const NOTHING = new Uint8Array(0);
const NO_WORDS = new Uint32Array(0);

/**
 * Views of guest pages that are asked for again and again. RAM is mapped whole,
 * so an entry is a view of the page in place and never stale; what it saves is
 * the making of the view, and its garbage: a hit allocates nothing.
 *
 * It is a set-associative table. A page that comes in takes the place of the one
 * that was asked for longest ago and is not in use.
 */
export class GpaCache implements TableSource {
  /** Counters that only grow. `refused`: there was no room. */
  hits = 0;
  misses = 0;
  evictions = 0;
  refused = 0;
  /** Of a page's words, the first. */
  readonly wordIndex = 0;

  readonly #frames: Int32Array;
  readonly #users: Int32Array;
  /** When an entry was last asked for. */
  readonly #stamps: Float64Array;
  readonly #bytes: Uint8Array[];
  readonly #words: Uint32Array[];
  readonly #mask: number;
  #now = 0;

  /**
   * @param lines a power of two
   * @param ways entries a line
   */
  constructor(
    private readonly physical: PhysicalMemory,
    lines = 512,
    private readonly ways = 8,
  ) {
    if (lines < 1 || (lines & (lines - 1)) !== 0 || ways < 1) {
      throw new RangeError(`a GPA cache of ${lines} x ${ways}`);
    }
    const entries = lines * ways;
    this.#mask = lines - 1;
    this.#frames = new Int32Array(entries).fill(-1);
    this.#users = new Int32Array(entries);
    this.#stamps = new Float64Array(entries);
    this.#bytes = new Array<Uint8Array>(entries).fill(NOTHING);
    this.#words = new Array<Uint32Array>(entries).fill(NO_WORDS);
  }

  /** Part of all look-ups that found their page, 0..1. */
  get hitRate(): number {
    const all = this.hits + this.misses;
    return all === 0 ? 0 : this.hits / all;
  }
  /** Of Statistics. */
  readonly name = "GPA cache";
  read(): Record<string, number> {
    const { hits, misses, evictions, refused, inUse } = this;
    return {
      hits,
      misses,
      hitRate: Math.round(this.hitRate * 1000) / 1000,
      evictions,
      refused,
      inUse,
    };
  }
  /** Entries in use. */
  get inUse(): number {
    let n = 0;
    for (const users of this.#users) if (users > 0) n++;
    return n;
  }

  /**
   * The entry of the page that holds gpa, in use until release(); GPA_NO_RAM, or
   * GPA_NO_ROOM when all that may hold it are in use.
   */
  findAndAdd(gpa: number): number {
    const entry = this.#find(frameOf(gpa));
    if (entry >= 0) this.#users[entry]++;
    return entry;
  }
  /** Ends one use of an entry. It stays until its place is needed. Throws when it is not in use. */
  release(entry: number): void {
    if (!(this.#users[entry] > 0)) throw new Error(`GPA cache entry ${entry} is not in use`);
    this.#users[entry]--;
  }
  /** The 4096 bytes of an entry's page, in place. Good until it is released. */
  bytes(entry: number): Uint8Array {
    return this.#bytes[entry];
  }

  /**
   * Copies from memory through the cache, over pages. False, with `into` partly
   * written, when some of it is not RAM.
   */
  fetch(gpa: number, into: Uint8Array): boolean {
    for (let done = 0; done < into.length; ) {
      const within = (gpa + done) & 0xfff;
      const n = Math.min(into.length - done, 0x1000 - within);
      const entry = this.#find(frameOf(gpa + done));
      if (entry >= 0) {
        const page = this.#bytes[entry];
        for (let i = 0; i < n; i++) into[done + i] = page[within + i];
      } else {
        const page = entry === GPA_NO_ROOM ? this.physical.map(gpa + done, n) : undefined;
        if (page === undefined) return false;
        into.set(page, done);
      }
      done += n;
    }
    return true;
  }
  /** Writes through the cache, over pages: all bytes or, when some of the range is not RAM, none. */
  patch(gpa: number, bytes: Uint8Array): boolean {
    const within = gpa & 0xfff;
    const entry = within + bytes.length <= 0x1000 ? this.#find(frameOf(gpa)) : GPA_NO_ROOM;
    if (entry === GPA_NO_RAM) return false;
    if (entry === GPA_NO_ROOM) return this.physical.write(gpa, bytes);
    this.#bytes[entry].set(bytes, within);
    return true;
  }

  /** The words of a frame, for walks. */
  tableAt(gfn: number): Uint32Array | undefined {
    const entry = this.#find(gfn);
    return entry >= 0 ? this.#words[entry] : undefined;
  }

  /** Drops all entries but those in use. */
  flush(): void {
    for (let i = 0; i < this.#frames.length; i++) {
      if (this.#users[i] > 0) continue;
      this.#frames[i] = -1;
      this.#stamps[i] = 0;
      this.#bytes[i] = NOTHING;
      this.#words[i] = NO_WORDS;
    }
  }

  #find(gfn: number): number {
    const frames = this.#frames;
    const first = (gfn & this.#mask) * this.ways;
    const end = first + this.ways;
    for (let i = first; i < end; i++) {
      if (frames[i] !== gfn) continue;
      if (gfn < 0) break;
      this.hits++;
      this.#stamps[i] = ++this.#now;
      return i;
    }
    return this.#add(gfn, first, end);
  }
  #add(gfn: number, first: number, end: number): number {
    const gpa = gfn * 0x1000;
    if (gfn < 0 || this.physical.ram.offsetOf(gpa) < 0) return GPA_NO_RAM;
    this.misses++;
    let place = -1;
    for (let i = first; i < end; i++) {
      if (this.#users[i] > 0) continue;
      if (place < 0 || this.#stamps[i] < this.#stamps[place]) place = i;
    }
    if (place < 0) {
      this.refused++;
      return GPA_NO_ROOM;
    }
    const page = this.physical.map(gpa, 0x1000);
    if (page === undefined) return GPA_NO_RAM;
    if (this.#frames[place] >= 0) this.evictions++;
    this.#frames[place] = gfn;
    this.#stamps[place] = ++this.#now;
    this.#bytes[place] = page;
    this.#words[place] = new Uint32Array(page.buffer, page.byteOffset, 1024);
    return place;
  }
}

/** Frame of an address; -1 beyond 8 TiB and for what is no address. */
function frameOf(gpa: number): number {
  return gpa >= 0 && gpa < 2 ** 43 ? Math.floor(gpa / 0x1000) : -1;
}
