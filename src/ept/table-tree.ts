// SPDX-License-Identifier: MIT
import type { Vcpu } from "../bridge/index.ts";
import { PAGE_SIZE } from "../memory/address.ts";
import { type AddressSpace, rootTable } from "../memory/space.ts";
import { PTE_RW, PTE_US } from "../memory/translate.ts";
import type { GpaHook, HookAction, PageAccess } from "./gpa-hooks.ts";
import {
  ENTRY_NONE,
  ENTRY_PAGE,
  type EntryFormat,
  entryFormats,
  entryKind,
  entryPage,
  hasNegativeHalf,
} from "./paging-entry.ts";

/**
 * The watched part of a guest's page tables, as PageTables (page-tables.ts) keeps it: table pages with
 * copies of their watched entries, and for each address space a tree of the places at which they serve.
 */

/** Bytes by which hooks grow: the part of a page that the CPU can watch alone (sub-page permissions). */
const GRAIN = 128;

/** An entry that translates part of a watched range is about to be written. One record, used again. */
export interface TranslationChange {
  vcpu: Vcpu;
  /** First linear address that the entry translates, signed canonical. */
  gva: number;
  /** 1 = PT, 2 = PD, 3 = PDPT, 4 = PML4, 5 = PML5. */
  level: number;
  entryGpa: number;
  oldLo: number;
  oldHi: number;
  /** Valid when `known`. */
  newLo: number;
  newHi: number;
  /** False when the instruction's written value could not be computed. */
  known: boolean;
  access: PageAccess;
}

/** The translation of part of a watched range has changed. One record, used again: copy what you keep. */
export interface MappingChange {
  watch: TranslationWatch;
  /** The vCPU whose instruction does it; undefined when memory was found changed by others. */
  vcpu: Vcpu | undefined;
  /** What of the watched range is concerned, signed: [start, end). */
  start: number;
  end: number;
  /** Level of the entry that changed, as above; its contents as two halves. */
  level: number;
  oldLo: number;
  oldHi: number;
  newLo: number;
  newHi: number;
  /**
   * Of a watch of one page, what it translated to and does now. Of a wider one, what the entry itself
   * maps: no translation when it is a table or absent, and the rights of this entry alone.
   */
  readonly before: Mapping;
  readonly after: Mapping;
}

export interface Watcher {
  /** Asked before an entry changes. */
  before?: (change: TranslationChange) => HookAction;
  /** Told that a translation is another one from the next instruction on; all hooks have allowed it. */
  after?: (change: MappingChange) => void;
  /** Whose watch it is, for statistics. */
  owner?: string;
  /**
   * May miss changes for a while: a table that is written much and hardly changes translations is not
   * hooked but compared with what it was, by PageTables.poll().
   */
  relaxed?: boolean;
}

/** What a linear page translates to. */
export interface Mapping {
  /** Guest physical address; -1 when there is no translation. */
  gpa: number;
  /** Bytes of the page: 4 KiB, 2 MiB, 4 MiB, 1 GiB; 0 when there is none. */
  pageSize: number;
  /** Rights of all levels together. */
  writable: boolean;
  user: boolean;
  /** Execute-disable. */
  nx: boolean;
}

export function absentMapping(): Mapping {
  return { gpa: -1, pageSize: 0, writable: false, user: false, nx: true };
}

export function copyMapping(from: Mapping, to: Mapping): void {
  to.gpa = from.gpa;
  to.pageSize = from.pageSize;
  to.writable = from.writable;
  to.user = from.user;
  to.nx = from.nx;
}

/** A range of linear addresses whose translation is watched. */
export class TranslationWatch {
  removed = false;
  /**
   * False when not all tables on the way are watched, because of the limits on them: changes may be
   * missed then, and addresses seem to have no translation. Stays so.
   */
  complete = true;
  /** Translations changed so far. */
  changes = 0;
  /** Of a watch of one page: what it translates to. */
  readonly mapping = absentMapping();

  /** Made by PageTables.watch(). */
  constructor(
    readonly tree: SpaceTree,
    readonly start: number,
    readonly end: number,
    readonly watcher: Watcher,
  ) {}

  get isPage(): boolean {
    return this.end - this.start === PAGE_SIZE;
  }

  /**
   * Guest physical address of a linear one of the range; -1 when it has none, or is not of the range.
   * While a change is told it is the new one, though memory still holds the old entry.
   */
  gpaOf(gva: number): number {
    if (!(gva >= this.start && gva < this.end)) return -1;
    return this.tree.walk(gva, scratch) ? scratch.gpa : -1;
  }

  /** Brings `mapping` up to date, with the one before in `old`; false when it is the same. */
  refresh(old: Mapping): boolean {
    const now = scratch;
    this.tree.walk(this.start, now);
    const had = this.mapping;
    if (
      had.gpa === now.gpa &&
      had.pageSize === now.pageSize &&
      had.writable === now.writable &&
      had.user === now.user &&
      had.nx === now.nx
    ) {
      return false;
    }
    copyMapping(had, old);
    copyMapping(now, had);
    return true;
  }
}

/** Record of a walk whose result is used at once. */
const scratch = absentMapping();

/** A guest page that holds page tables. Entries are counted in granules of 8 bytes. */
export class TablePage {
  /** Copies of the entries from `start` on, good where the counts are not 0. */
  #words = new Uint32Array(0);
  /** How many entries of all nodes are watched in a granule. */
  #counts = new Uint16Array(0);
  /** The places at which the page serves: levels, spaces, linear addresses. */
  readonly nodes: TableNode[] = [];
  /** Undefined until the first entry is watched, and while the hook is given up. */
  hook: GpaHook | undefined;
  /** Bytes of the page that hold watched entries: [start, end). */
  start = PAGE_SIZE;
  end = 0;
  /** The range has outgrown the hook. */
  widened = false;
  /** Writes to watched entries, and those of them that changed a translation, since the hook was set. */
  writes = 0;
  changes = 0;
  /** The hook was given up because of what it cost; the entries are compared from time to time. */
  relaxed = false;

  constructor(readonly gfn: number) {}

  /** Makes room for entries in bytes [start, end); false when there was. */
  widen(start: number, end: number): boolean {
    if (start >= this.start && end <= this.end) return false;
    const from = Math.min(this.start, start - (start % GRAIN));
    const to = Math.max(this.end, Math.ceil(end / GRAIN) * GRAIN);
    const words = new Uint32Array((to - from) / 4);
    const counts = new Uint16Array((to - from) / 8);
    if (this.end > 0) {
      words.set(this.#words, (this.start - from) / 4);
      counts.set(this.#counts, (this.start - from) / 8);
    }
    this.#words = words;
    this.#counts = counts;
    this.start = from;
    this.end = to;
    return true;
  }

  /** How many places watch a granule of the page. */
  count(granule: number): number {
    const at = granule - (this.start >> 3);
    return at >= 0 && at < this.#counts.length ? (this.#counts[at] as number) : 0;
  }
  /** For granules that there is room for, as all below. */
  addCount(granule: number, change: number): void {
    (this.#counts[granule - (this.start >> 3)] as number) += change;
  }
  /** A word of the page, unsigned. */
  word(index: number): number {
    return this.#words[index - (this.start >> 2)] as number;
  }
  setWord(index: number, value: number): void {
    this.#words[index - (this.start >> 2)] = value;
  }

  /** Whether one of `size` bytes from `offset` on belongs to a watched entry. */
  covers(offset: number, size: number): boolean {
    const last = Math.min(PAGE_SIZE / 8 - 1, (offset + size - 1) >> 3);
    for (let granule = offset >> 3; granule <= last; granule++) {
      if (this.count(granule) !== 0) return true;
    }
    return false;
  }
}

/** One place at which a table page serves. */
export class TableNode {
  readonly #watched = new Uint32Array(32);
  /** Tables below, by entry. */
  children: Map<number, TableNode> | undefined;
  /** Place in page.nodes. */
  slot = 0;
  /** Entries that are watched. */
  entries = 0;
  removed = false;

  /**
   * @param depth 0 for the root
   * @param base linear address that entry 0 translates
   * @param offset of the table in its page, in words: PAE's root has 32 bytes
   */
  constructor(
    readonly tree: SpaceTree,
    readonly page: TablePage,
    readonly depth: number,
    readonly base: number,
    readonly offset: number,
  ) {}

  get format(): EntryFormat {
    return this.tree.formats[this.depth] as EntryFormat;
  }

  /** Also of a number that no entry has. */
  isWatched(entry: number): boolean {
    return (
      entry >= 0 &&
      entry < 1024 &&
      ((this.#watched[entry >>> 5] as number) & (1 << (entry & 31))) !== 0
    );
  }
  setWatched(entry: number, watched: boolean): void {
    const bit = 1 << (entry & 31);
    const word = this.#watched[entry >>> 5] as number;
    this.#watched[entry >>> 5] = watched ? word | bit : word & ~bit;
    this.entries += watched ? 1 : -1;
  }

  /** First linear address that an entry translates, signed. */
  gvaOf(entry: number): number {
    const { size, count } = this.format;
    // The upper half of a root's entries translates the negative addresses.
    const signed = this.depth === 0 && entry >= count / 2 && this.tree.negativeHalf;
    return this.base + (signed ? entry - count : entry) * size;
  }
  /** First entry that translates part of [start, end), which does not cross 0 at a root. */
  firstEntry(start: number): number {
    return Math.max(0, Math.floor((start - this.#origin(start)) / this.format.size));
  }
  lastEntry(start: number, end: number): number {
    const { size, count } = this.format;
    return Math.min(count - 1, Math.ceil((end - this.#origin(start)) / size) - 1);
  }
  #origin(start: number): number {
    const { size, count } = this.format;
    return this.depth === 0 && start < 0 ? -count * size : this.base;
  }

  /** Word of the page in which an entry begins. */
  wordOf(entry: number): number {
    return this.offset + entry * this.format.words;
  }
  /** The entry that begins in a word of the page; a number that no entry has when none does. */
  entryAt(word: number): number {
    return (word - this.offset) / this.format.words;
  }
  lo(entry: number): number {
    return this.page.word(this.wordOf(entry)) | 0;
  }
  hi(entry: number): number {
    return this.format.words === 1 ? 0 : this.page.word(this.wordOf(entry) + 1) | 0;
  }
}

/** The watched tables of one address space, and the watches on them. */
export class SpaceTree {
  readonly formats: readonly EntryFormat[];
  readonly rootGpa: number;
  readonly negativeHalf: boolean;
  root: TableNode | undefined;
  /** Watches that are asked before a change. */
  askers = 0;
  /** Watches of one page, by address. */
  readonly #pages: TranslationWatch[] = [];
  readonly #ranges: TranslationWatch[] = [];

  constructor(
    readonly key: string,
    space: AddressSpace,
  ) {
    this.formats = entryFormats(space);
    this.rootGpa = rootTable(space.mode, space.root);
    this.negativeHalf = hasNegativeHalf(space);
  }

  get watchCount(): number {
    return this.#pages.length + this.#ranges.length;
  }

  add(watch: TranslationWatch): void {
    if (watch.watcher.before !== undefined) this.askers++;
    if (watch.end - watch.start === PAGE_SIZE) {
      this.#pages.splice(this.#firstFrom(watch.start), 0, watch);
    } else this.#ranges.push(watch);
  }

  remove(watch: TranslationWatch): void {
    const single = watch.end - watch.start === PAGE_SIZE;
    const list = single ? this.#pages : this.#ranges;
    const at = list.indexOf(watch, single ? this.#firstFrom(watch.start) : 0);
    if (at < 0) return;
    list.splice(at, 1);
    if (watch.watcher.before !== undefined) this.askers--;
  }

  /** Place of the first single page from `gva` on. */
  #firstFrom(gva: number): number {
    let low = 0;
    let high = this.#pages.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#pages[middle] as TranslationWatch).start < gva) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Whether a watch needs part of [start, end). */
  overlaps(start: number, end: number): boolean {
    const page = this.#pages[this.#firstFrom(start)];
    if (page !== undefined && page.start < end) return true;
    for (let i = 0; i < this.#ranges.length; i++) {
      const range = this.#ranges[i] as TranslationWatch;
      if (range.start < end && range.end > start) return true;
    }
    return false;
  }

  /** Appends the watches that need part of [start, end) to `out`. */
  collect(start: number, end: number, out: TranslationWatch[]): void {
    for (let i = 0; i < this.#ranges.length; i++) {
      const range = this.#ranges[i] as TranslationWatch;
      if (range.start < end && range.end > start) out.push(range);
    }
    for (let i = this.#firstFrom(start); i < this.#pages.length; i++) {
      const page = this.#pages[i] as TranslationWatch;
      if (page.start >= end) break;
      out.push(page);
    }
  }

  /**
   * Translates by the copies. An address that no watch covers has no translation here.
   * @returns whether there is one; `out` is filled in either way
   */
  walk(gva: number, out: Mapping): boolean {
    out.writable = true;
    out.user = true;
    out.nx = false;
    if (this.formats.length === 0) {
      out.gpa = gva;
      out.pageSize = PAGE_SIZE;
      return true;
    }
    for (let node = this.root; node !== undefined; ) {
      const format = node.format;
      const quotient = Math.floor(gva / format.size);
      const entry = quotient & (format.count - 1);
      if (!node.isWatched(entry)) break;
      const lo = node.lo(entry);
      const hi = node.hi(entry);
      const kind = entryKind(format, lo, hi);
      if (kind === ENTRY_NONE) break;
      if (format.rights) {
        if ((lo & PTE_RW) === 0) out.writable = false;
        if ((lo & PTE_US) === 0) out.user = false;
        if (hi < 0) out.nx = true;
      }
      if (kind === ENTRY_PAGE) {
        out.gpa = entryPage(format, lo, hi) + (gva - quotient * format.size);
        out.pageSize = format.size;
        return true;
      }
      node = node.children?.get(entry);
    }
    out.gpa = -1;
    out.pageSize = 0;
    out.writable = false;
    out.user = false;
    out.nx = true;
    return false;
  }
}
