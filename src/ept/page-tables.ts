// SPDX-License-Identifier: MIT
import { HVI_W, type Vcpu } from "../bridge/index.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import {
  ALLOW,
  type GpaHook,
  type GpaHooks,
  type HookAction,
  type PageAccess,
} from "./gpa-hooks.ts";

/**
 * Watches the translation of linear address ranges in 4-level page tables (the guide's "Guest
 * page-table hooks"): every table page on the way to the range is write-hooked, and the watcher is
 * asked before an entry changes. A table is hooked before its entries are read, so no change between
 * the two is missed.
 */

/** An entry that translates part of a watched range is about to be written. One record, used again. */
export interface TranslationChange {
  vcpu: Vcpu;
  /** First linear address that the entry translates, signed canonical. */
  gva: number;
  /** 1 = PT, 2 = PD, 3 = PDPT, 4 = PML4. */
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

export type TranslationHandler = (change: TranslationChange) => HookAction;

/** Bytes the current instruction writes at the violated address; -1 when they cannot be known. */
export type WrittenBytes = (access: PageAccess, out: Uint8Array) => number;

interface Table {
  readonly gfn: number;
  readonly level: number;
  /** Linear address that entry 0 translates. */
  readonly base: number;
  hook: GpaHook;
}

export const PTE_PRESENT = 1;
export const PTE_LARGE = 0x80;
/** Low-half bits whose change concerns a translation: P, R/W, U/S, PS and the address. */
const LOW_MASK = 0xfffff087;
/** High-half bits: the address up to bit 51 and NX. */
const HIGH_MASK = 0x800fffff;
const ENTRIES = 512;
const GIB = 0x40000000;
const LEVEL_BYTES = [0, 0x1000, 0x200000, GIB, GIB * 512] as const;

/** Guest physical address in a paging entry (bits 51:12). */
export function entryAddress(lo: number, hi: number): number {
  return (hi & 0xfffff) * 0x1_0000_0000 + ((lo & 0xfffff000) >>> 0);
}

export class TranslationWatch {
  readonly #hooks: GpaHooks;
  readonly #memory: PhysicalMemory;
  readonly #written: WrittenBytes;
  readonly #handler: TranslationHandler;
  readonly #start: number;
  readonly #end: number;
  readonly #tables = new Map<number, Table[]>();
  readonly #bytes = new Uint8Array(64);
  readonly #view = new DataView(this.#bytes.buffer);
  #change: TranslationChange | undefined;

  /**
   * Watches [start, end) under `root` (the physical address in CR3).
   * @param start, end signed canonical, page aligned
   */
  constructor(
    hooks: GpaHooks,
    memory: PhysicalMemory,
    written: WrittenBytes,
    root: number,
    start: number,
    end: number,
    handler: TranslationHandler,
  ) {
    this.#hooks = hooks;
    this.#memory = memory;
    this.#written = written;
    this.#handler = handler;
    this.#start = start;
    this.#end = end;
    const top = LEVEL_BYTES[4] * ENTRIES;
    // The two canonical halves: entry 256 of the PML4 begins the negative one.
    this.#addTable(Math.floor(root / 4096), 4, start < 0 ? -top : 0);
  }

  /** Table pages that are hooked now. */
  get tableCount(): number {
    return this.#tables.size;
  }

  /** Ends the watch; in effect after the hooks' next commit. */
  remove(): void {
    for (const tables of this.#tables.values()) {
      for (const table of tables) this.#hooks.remove(table.hook);
    }
    this.#tables.clear();
  }

  #addTable(gfn: number, level: number, base: number): void {
    const known = this.#tables.get(gfn);
    if (known?.some((t) => t.level === level && t.base === base)) return;
    const bytes = LEVEL_BYTES[level] as number;
    const first = Math.max(0, Math.floor((this.#start - base) / bytes));
    const last = Math.min(ENTRIES - 1, Math.ceil((this.#end - base) / bytes) - 1);
    if (first > last) return;
    const table = { gfn, level, base } as Table;
    table.hook = this.#hooks.add(gfn, HVI_W, (access) => this.#onWrite(table, access), {
      start: first * 8,
      end: last * 8 + 8,
      owner: "page-tables",
    });
    if (known === undefined) this.#tables.set(gfn, [table]);
    else known.push(table);
    // The hook must hold before the entries are read.
    this.#hooks.commit();
    if (level === 1) return;
    for (let i = first; i <= last; i++) {
      const lo = this.#memory.read32(gfn * 4096 + i * 8);
      const hi = this.#memory.read32(gfn * 4096 + i * 8 + 4);
      if (lo < 0 || hi < 0) return;
      this.#descend(level, base + i * bytes, lo, hi);
    }
  }

  /** Hooks what an entry points to, when it is a table. */
  #descend(level: number, gva: number, lo: number, hi: number): void {
    if (level === 1 || (lo & PTE_PRESENT) === 0) return;
    if (level < 4 && (lo & PTE_LARGE) !== 0) return;
    this.#addTable(entryAddress(lo, hi) / 4096, level - 1, gva);
  }

  #onWrite(table: Table, access: PageAccess): HookAction {
    const offset = access.gpa % 4096;
    const length = this.#written(access, this.#bytes);
    const known = length > 0;
    const size = known ? Math.min(length, access.size) : access.size;
    const bytes = LEVEL_BYTES[table.level] as number;
    const firstEntry = offset >> 3;
    const lastEntry = (offset + size - 1) >> 3;
    let action: HookAction = ALLOW;
    for (let i = firstEntry; i <= lastEntry; i++) {
      const gva = table.base + i * bytes;
      if (gva + bytes <= this.#start || gva >= this.#end) continue;
      const wish = this.#entryWrite(table, access, i, gva, known, size, offset);
      if (wish > action) action = wish;
    }
    return action;
  }

  #entryWrite(
    table: Table,
    access: PageAccess,
    index: number,
    gva: number,
    known: boolean,
    size: number,
    offset: number,
  ): HookAction {
    const entryGpa = table.gfn * 4096 + index * 8;
    const oldLo = this.#memory.read32(entryGpa);
    const oldHi = this.#memory.read32(entryGpa + 4);
    if (oldLo < 0 || oldHi < 0) return ALLOW;
    let newLo = oldLo;
    let newHi = oldHi;
    if (known) {
      // A write may cover part of an entry only; the rest stays as it is.
      const at = index * 8 - offset;
      newLo = this.#overlay(oldLo, at, size);
      newHi = this.#overlay(oldHi, at + 4, size);
      const same = ((newLo ^ oldLo) & LOW_MASK) === 0 && ((newHi ^ oldHi) & HIGH_MASK) === 0;
      if (same || ((oldLo | newLo) & PTE_PRESENT) === 0) return ALLOW;
    }
    if (this.#change === undefined) this.#change = {} as TranslationChange;
    const c = this.#change;
    c.vcpu = access.vcpu;
    c.gva = gva;
    c.level = table.level;
    c.entryGpa = entryGpa;
    c.oldLo = oldLo;
    c.oldHi = oldHi;
    c.newLo = newLo;
    c.newHi = newHi;
    c.known = known;
    c.access = access;
    const action = this.#handler(c);
    if (action === ALLOW && known) this.#descend(table.level, gva, newLo, newHi);
    return action;
  }

  /** `old` with the written bytes laid over it; `at` is where its first byte stands in them. */
  #overlay(old: number, at: number, size: number): number {
    if (at >= 0 && at + 4 <= size) return this.#view.getUint32(at, true);
    let value = old;
    for (let b = 0; b < 4; b++) {
      const i = at + b;
      if (i < 0 || i >= size) continue;
      value = ((value & ~(0xff << (8 * b))) | ((this.#bytes[i] as number) << (8 * b))) >>> 0;
    }
    return value;
  }
}
