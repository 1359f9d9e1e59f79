// SPDX-License-Identifier: MIT
import { HVI_EMULATE_RANGES, HVI_R, HVI_W, type Vm } from "../bridge/index.ts";
import { PAGE_SIZE, pageOf } from "../memory/address.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import { type AddressSpace, sameTables } from "../memory/space.ts";
import { linearRip } from "../x86/index.ts";
import {
  ALLOW,
  DENY,
  type GpaHook,
  type GpaHooks,
  type HookAction,
  type PageAccess,
} from "./gpa-hooks.ts";
import type { PageTables, TranslationWatch, WrittenBytes } from "./page-tables.ts";
import { ShownPages } from "./shown-pages.ts";

/**
 * Hides what the engine puts into guest memory (the guide's "Hiding guest memory contents"). A cloaked
 * region holds the engine's bytes and executes as such; whoever reads it sees the bytes that stood there
 * before, and nobody can write it. The backend shows the reading instruction a page with the original
 * bytes laid over, so it does not matter which instruction reads, how much, at which alignment, or
 * through which mapping.
 */

/** Pages that a region may span. */
const MAX_PAGES = 2;

/** What becomes of a guest's write to a region. The engine's own bytes stay either way. */
export const BLOCK = 0;
/** The guest will read what it has written: the write goes to the original bytes. */
export const ABSORB = 1;
export type CloakWrite = typeof BLOCK | typeof ABSORB;

export interface CloakOptions {
  /** What reads see; what memory holds now when left out, which must be present then. */
  original?: Uint8Array;
  /** What stands there; what memory holds now when left out. */
  patched?: Uint8Array;
  /** Write `patched` into the guest now, and into pages that come in later. */
  apply?: boolean;
  /** The engine's own code, in whatever region it runs, reads here what really stands there. */
  allowInternal?: boolean;
  /** Told of each write to the region that the guest tries. */
  onWrite?: (access: PageAccess, cloak: Cloak) => CloakWrite;
  /** Told when a page came in that holds neither the original bytes nor the patch: it is left alone. */
  onForeign?: (cloak: Cloak, gva: number) => void;
  owner?: string;
}

export type CloakResult =
  | { readonly ok: true; readonly cloak: Cloak }
  | { readonly ok: false; readonly reason: string };

/** The part of a region that lies in one page. */
interface Part {
  /** First linear address. */
  readonly gva: number;
  /** Where it begins in the region, and its bytes. */
  readonly offset: number;
  readonly length: number;
  /** Guest physical address of its first byte while it is cloaked there; -1 otherwise. */
  gpa: number;
  hooks: readonly GpaHook[];
  watch: TranslationWatch | undefined;
}

/** A cloaked region. Made by Cloaks.cloak, and managed by it. */
export class Cloak {
  removed = false;
  /** Exits for reads of the region's pages, and writes to the region that were blocked. */
  reads = 0;
  writes = 0;
  readonly parts: Part[] = [];

  constructor(
    readonly space: AddressSpace,
    readonly gva: number,
    readonly length: number,
    readonly original: Uint8Array,
    readonly patched: Uint8Array,
    readonly options: CloakOptions,
  ) {}

  /** Whether an address lies in the region. */
  contains(gva: number): boolean {
    return gva >= this.gva && gva < this.gva + this.length;
  }
}

export class Cloaks {
  readonly #memory: PhysicalMemory;
  readonly #hooks: GpaHooks;
  readonly #tables: PageTables;
  readonly #written: WrittenBytes;
  readonly #shown: ShownPages;
  readonly #all = new Set<Cloak>();
  readonly #bytes = new Uint8Array(PAGE_SIZE);

  /** @param written bytes that the instruction at hand writes, for writes that are absorbed */
  constructor(
    vm: Vm,
    memory: PhysicalMemory,
    hooks: GpaHooks,
    tables: PageTables,
    written: WrittenBytes,
  ) {
    this.#memory = memory;
    this.#hooks = hooks;
    this.#tables = tables;
    this.#written = written;
    this.#shown = new ShownPages(vm, hooks, HVI_EMULATE_RANGES);
  }

  /** Of Statistics. */
  readonly name = "cloaks";
  read(): Record<string, number> {
    let reads = 0;
    let writes = 0;
    for (const cloak of this.#all) {
      reads += cloak.reads;
      writes += cloak.writes;
    }
    return { regions: this.#all.size, pages: this.#shown.size, reads, writes };
  }

  /** Regions that are cloaked now. */
  get size(): number {
    return this.#all.size;
  }

  /**
   * Cloaks [gva, gva + length), at most two pages (the guide's IntMemClkCloakRegion). In effect after
   * the hooks' next commit. A part that is not present is cloaked when it comes in.
   * @returns the region, or why there is none: nothing has changed then
   */
  cloak(space: AddressSpace, gva: number, length: number, options: CloakOptions = {}): CloakResult {
    const refuse = (reason: string): CloakResult => ({ ok: false, reason });
    const first = pageOf(gva);
    const whole = Number.isInteger(gva) && Number.isInteger(length);
    if (!(whole && length > 0 && gva + length <= first + MAX_PAGES * PAGE_SIZE)) {
      return refuse(`a region has 1 byte to ${MAX_PAGES} pages, not ${length} bytes from there`);
    }
    for (const bytes of [options.original, options.patched]) {
      if (bytes !== undefined && bytes.length !== length) {
        return refuse(`${bytes.length} bytes given for a region of ${length}`);
      }
    }
    for (const other of this.#all) {
      const apart = gva >= other.gva + other.length || other.gva >= gva + length;
      if (!apart && sameTables(other.space, space)) return refuse("part of it is cloaked already");
    }
    const original = new Uint8Array(length);
    const patched = new Uint8Array(length);
    const cloak = new Cloak(space, gva, length, original, patched, options);
    for (let at = gva; at < gva + length; ) {
      const end = Math.min(gva + length, pageOf(at) + PAGE_SIZE);
      cloak.parts.push({
        gva: at,
        offset: at - gva,
        length: end - at,
        gpa: -1,
        hooks: [],
        watch: undefined,
      });
      at = end;
    }
    const failure = this.#prepare(cloak);
    if (failure !== undefined) {
      this.#forget(cloak);
      return refuse(failure);
    }
    this.#all.add(cloak);
    for (const part of cloak.parts) {
      const gpa = part.watch?.gpaOf(part.gva) ?? -1;
      if (gpa >= 0) this.#enter(cloak, part, gpa, true);
    }
    return { ok: true, cloak };
  }

  /**
   * Ends a region (IntMemClkUncloakRegion). In effect after the hooks' next commit.
   * @param restore put the original bytes back where it is present
   */
  uncloak(cloak: Cloak, restore = true): void {
    if (cloak.removed) return;
    this.#forget(cloak, restore);
  }

  /** Ends all of them. */
  uncloakAll(restore = true): void {
    for (const cloak of this.#all) this.uncloak(cloak, restore);
  }

  /** Changes what reads see, from `offset` on. False when it does not fit the region. */
  modifyOriginal(cloak: Cloak, bytes: Uint8Array, offset = 0): boolean {
    if (cloak.removed || offset < 0 || offset + bytes.length > cloak.length) return false;
    cloak.original.set(bytes, offset);
    for (const part of cloak.parts) {
      if (part.gpa < 0) continue;
      this.#shown.change(
        Math.floor(part.gpa / PAGE_SIZE),
        part.gpa % PAGE_SIZE,
        cloak.original.subarray(part.offset, part.offset + part.length),
      );
    }
    return true;
  }

  /** Changes what stands there, in the guest too, from `offset` on. False when it does not fit. */
  modifyPatched(cloak: Cloak, bytes: Uint8Array, offset = 0): boolean {
    if (cloak.removed || offset < 0 || offset + bytes.length > cloak.length) return false;
    cloak.patched.set(bytes, offset);
    for (const part of cloak.parts) {
      const from = Math.max(part.offset, offset);
      const to = Math.min(part.offset + part.length, offset + bytes.length);
      if (part.gpa < 0 || from >= to) continue;
      this.#memory.write(part.gpa + (from - part.offset), cloak.patched.subarray(from, to));
    }
    return true;
  }

  /** A copy of what reads see. */
  original(cloak: Cloak): Uint8Array {
    return cloak.original.slice();
  }

  /** What really stands there; undefined while a part of it is not present. */
  contents(cloak: Cloak): Uint8Array | undefined {
    const out = new Uint8Array(cloak.length);
    for (const part of cloak.parts) {
      const into = out.subarray(part.offset, part.offset + part.length);
      if (part.gpa < 0 || !this.#memory.readInto(part.gpa, into)) return undefined;
    }
    return out;
  }

  /** CRC-32 of what really stands there; undefined while a part of it is not present. */
  hash(cloak: Cloak): number | undefined {
    const bytes = this.contents(cloak);
    return bytes === undefined ? undefined : Bun.hash.crc32(bytes);
  }

  /** The region that an address of a space lies in (IntMemClkIsPtrInCloak). */
  at(space: AddressSpace, gva: number): Cloak | undefined {
    for (const cloak of this.#all) {
      if (cloak.contains(gva) && sameTables(cloak.space, space)) return cloak;
    }
    return undefined;
  }

  /**
   * Lays what the guest would read over bytes that were read for it from [gpa, gpa + bytes.length),
   * within a page: for devices, whose reads no EPT sees.
   */
  overlay(gpa: number, bytes: Uint8Array): void {
    this.#shown.overlay(gpa, bytes);
  }

  /** Fills in the two contents and watches the translations; why not, if it cannot be done. */
  #prepare(cloak: Cloak): string | undefined {
    const { options } = cloak;
    for (const part of cloak.parts) {
      const page = pageOf(part.gva);
      part.watch = this.#tables.watch(cloak.space, page, page + PAGE_SIZE, {
        after: () => this.#moved(cloak, part),
        owner: options.owner ?? "cloak",
      });
      if (part.watch === undefined) return "the address space has no such addresses";
      if (!part.watch.complete) return "its translation has more tables than are watched";
      const gpa = part.watch.gpaOf(part.gva);
      const now = cloak.original.subarray(part.offset, part.offset + part.length);
      const known = options.original !== undefined && options.patched !== undefined;
      if (!known && (gpa < 0 || !this.#memory.readInto(gpa, now))) {
        return "it is not present, and its contents are not given";
      }
      const start = gpa % PAGE_SIZE;
      if (gpa >= 0 && !this.#shown.accepts(Math.floor(gpa / PAGE_SIZE), start, start + part.length))
        return "its page has too many regions, or one that overlaps";
    }
    cloak.patched.set(options.patched ?? cloak.original);
    if (options.original !== undefined) cloak.original.set(options.original);
    return undefined;
  }

  #forget(cloak: Cloak, restore = false): void {
    cloak.removed = true;
    this.#all.delete(cloak);
    for (const part of cloak.parts) {
      if (part.watch !== undefined) this.#tables.unwatch(part.watch);
      part.watch = undefined;
      this.#leave(cloak, part, restore);
    }
  }

  /** The translation of a part has changed: swapped out, in, or moved. */
  #moved(cloak: Cloak, part: Part): void {
    const gpa = part.watch?.gpaOf(part.gva) ?? -1;
    // While it is set up, and when the page comes back that a write did not take away after all.
    if (cloak.removed || !this.#all.has(cloak) || gpa === part.gpa) return;
    // What goes to the disk, or to whoever gets the frame, is the original.
    this.#leave(cloak, part, true);
    if (gpa >= 0) this.#enter(cloak, part, gpa, false);
  }

  /** Takes a part into effect at a frame. */
  #enter(cloak: Cloak, part: Part, gpa: number, first: boolean): void {
    const { options } = cloak;
    const original = cloak.original.subarray(part.offset, part.offset + part.length);
    const patched = cloak.patched.subarray(part.offset, part.offset + part.length);
    const now = this.#bytes.subarray(0, part.length);
    const gfn = Math.floor(gpa / PAGE_SIZE);
    const start = gpa % PAGE_SIZE;
    if (!this.#memory.readInto(gpa, now) || !this.#shown.accepts(gfn, start, start + part.length))
      return;
    if (!first && !same(now, original) && !same(now, patched)) {
      options.onForeign?.(cloak, part.gva);
      return;
    }
    if (options.apply === true || !first) this.#memory.write(gpa, patched);
    const range = {
      start,
      end: start + part.length,
      owner: options.owner ?? "cloak",
    };
    part.gpa = gpa;
    part.hooks = [
      this.#hooks.add(gfn, HVI_R, (access) => this.#onRead(cloak, access), range),
      this.#hooks.add(gfn, HVI_W, (access) => this.#onWrite(cloak, part, access), range),
    ];
    this.#shown.show(gfn, start, original);
  }

  #leave(cloak: Cloak, part: Part, restore: boolean): void {
    if (part.gpa < 0) return;
    this.#shown.hide(Math.floor(part.gpa / PAGE_SIZE), part.gpa % PAGE_SIZE);
    for (const hook of part.hooks) this.#hooks.remove(hook);
    const now = this.#bytes.subarray(0, part.length);
    const patched = cloak.patched.subarray(part.offset, part.offset + part.length);
    // What somebody else has put there meanwhile, behind the EPT's back, is his.
    if (restore && this.#memory.readInto(part.gpa, now) && same(now, patched)) {
      const original = cloak.original.subarray(part.offset, part.offset + part.length);
      this.#memory.write(part.gpa, original);
    }
    part.hooks = [];
    part.gpa = -1;
  }

  #onRead(cloak: Cloak, access: PageAccess): HookAction {
    cloak.reads++;
    if (this.#isInternal(cloak, access)) this.#hooks.showReal();
    return ALLOW;
  }

  #onWrite(cloak: Cloak, part: Part, access: PageAccess): HookAction {
    cloak.writes++;
    const wish = cloak.options.onWrite?.(access, cloak) ?? BLOCK;
    if (wish === ABSORB) this.#absorb(cloak, part, access);
    // The backend drops what of a write falls on a region, unless the page is shown as it is.
    return this.#isInternal(cloak, access) ? DENY : ALLOW;
  }

  /** The engine's own code makes the access, and is to see what really stands there. */
  #isInternal(cloak: Cloak, access: PageAccess): boolean {
    if (cloak.options.allowInternal !== true) return false;
    const rip = linearRip(access.vcpu);
    for (const other of this.#all) if (other.contains(rip)) return true;
    return false;
  }

  /** Puts the part of a write that falls on the region into the original bytes. */
  #absorb(cloak: Cloak, part: Part, access: PageAccess): void {
    const length = this.#written(access, this.#bytes);
    const from = Math.max(part.gpa, access.gpa);
    const to = Math.min(part.gpa + part.length, access.gpa + length);
    if (from >= to) return;
    const bytes = this.#bytes.slice(from - access.gpa, to - access.gpa);
    this.modifyOriginal(cloak, bytes, part.offset + (from - part.gpa));
  }
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
