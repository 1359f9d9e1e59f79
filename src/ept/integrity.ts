// SPDX-License-Identifier: MIT
import { PAGE_SIZE, pageOffset } from "../memory/address.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import { type AddressSpace, sameTables } from "../memory/space.ts";
import { Translation, translate } from "../memory/translate.ts";

/**
 * Regions of guest memory that are looked at from time to time (the guide's "The Integrity
 * Mechanism"), for what is written too often, or lies too close to what is, to be hooked.
 *
 * A guest knows how it is checked, so the check must not be one that a guest can satisfy with other
 * bytes: a small region is compared with a copy, byte by byte; of a large one each page's SHA-256 is.
 */

/** What was found becomes what is expected. */
export const ACCEPT = 0;
/** The old bytes are written back, where a copy of them is kept. */
export const REVERT = 1;
export type IntegrityVerdict = typeof ACCEPT | typeof REVERT;

/** What a region's last check found; of one that takes several calls, the last part of it. */
export type IntegrityState =
  | "ok"
  | "changed"
  /** No change, but a page was not present: it was not looked at. */
  | "skipped";

/** Bytes in a row that differ. */
export interface IntegrityChange {
  /** From the region's start. */
  readonly offset: number;
  readonly length: number;
  /** Undefined where no copy is kept; whole pages are meant then. */
  readonly old: Uint8Array | undefined;
  readonly current: Uint8Array | undefined;
}

export interface IntegrityReport {
  readonly region: IntegrityRegion;
  /** By offset, at most MAX_CHANGES. Bytes that are equal in between may be part of one. */
  readonly changes: readonly IntegrityChange[];
  /** More changed than `changes` tells. */
  readonly truncated: boolean;
  /** REVERT can be answered: the old bytes are kept. */
  readonly revertible: boolean;
}

/** Called once for each change, between exits. May add and remove regions. */
export type IntegrityHandler = (report: IntegrityReport) => IntegrityVerdict;

export interface IntegrityRegion {
  readonly space: AddressSpace;
  /** Linear address of the first byte, signed. */
  readonly gva: number;
  /** Bytes. */
  readonly length: number;
  /** Whose region it is, for statistics. */
  readonly owner: string;
  readonly handler: IntegrityHandler;
  /** A copy is kept, so that changes are told by bytes and can be reverted. */
  readonly copied: boolean;
  /** Regions under the same root that shared bytes with this one when it was added. */
  readonly overlaps: readonly IntegrityRegion[];
  state: IntegrityState;
  removed: boolean;
}

interface Region extends IntegrityRegion {
  /** The bytes expected, of a copied region; else 32 bytes of SHA-256 a page. */
  readonly expected: Uint8Array;
  /** Pages whose expected bytes are known: they have been present once. */
  readonly known: Uint8Array;
  /** Page at which the next part of the check begins. */
  next: number;
}

/** Bytes a region may have for a copy of it to be kept. */
export const MAX_COPIED = 64 * 1024;
/** Bytes of all copies together; regions after that are hashed. */
export const MAX_COPIES = 16 * 1024 * 1024;
/** Bytes of a region: taking its hashes at the start takes some 50 to 200 ms. */
export const MAX_LENGTH = 64 * 1024 * 1024;
export const MAX_REGIONS = 16_384;
/** Changes that a report has, and bytes of each that it shows. */
export const MAX_CHANGES = 16;
export const MAX_SHOWN = 64;

const BYTES_PER_CHECK = 4 * 1024 * 1024;
/** What a page costs at least, in bytes: it has to be translated. */
const PAGE_COST = 512;
const DIGEST = 32;
/** Changes with fewer equal bytes between them are told as one. */
const GAP = 8;
const MAX_COPIED_PAGES = MAX_COPIED / PAGE_SIZE + 1;

/** What the checks did so far. They only grow. */
export interface IntegrityCounters {
  /** Calls of check(). */
  checks: number;
  /** Pages looked at, and bytes of them that are in regions. */
  pages: number;
  bytes: number;
  /** Pages that were not present. */
  skipped: number;
  /** Reports. */
  changes: number;
  /** Pages written back, and pages that could not be. */
  reverted: number;
  notReverted: number;
}

export class Integrity {
  /** Of Statistics. */
  readonly name = "integrity";
  readonly counters: IntegrityCounters = {
    checks: 0,
    pages: 0,
    bytes: 0,
    skipped: 0,
    changes: 0,
    reverted: 0,
    notReverted: 0,
  };
  readonly #memory: PhysicalMemory;
  readonly #budget: number;
  readonly #translation = new Translation();
  /** Only added to; replaced when one goes: handlers may do both while it is walked. */
  #regions: Region[] = [];
  /** Where the next check begins. */
  #next: Region | undefined;
  #copies = 0;
  #checking = false;
  // Of the region at hand: what was found where.
  readonly #found = new Uint8Array(MAX_COPIED);
  readonly #frames = new Float64Array(MAX_COPIED_PAGES);
  readonly #digest = new Uint8Array(DIGEST);

  /** @param bytesPerCheck bounds one call of check(); at least 64 KiB */
  constructor(memory: PhysicalMemory, bytesPerCheck = BYTES_PER_CHECK) {
    this.#memory = memory;
    this.#budget = Math.max(bytesPerCheck, 2 * MAX_COPIED);
  }

  /** Regions that are checked now. */
  get count(): number {
    return this.#regions.length;
  }

  /** Calls of check() after which every region has been looked at. */
  get checksPerRound(): number {
    const cost = this.#regions.reduce((sum, region) => sum + costOf(region), 0);
    return Math.ceil(cost / this.#budget);
  }

  /**
   * Checks [gva, gva + length) from now on. What it holds now is what is expected; of a page that is
   * not present, what it holds when it is seen first.
   * @param gva signed, canonical in the space's mode
   * @returns undefined when that is no range of the space (also an empty one, or one longer than
   * MAX_LENGTH), or there are MAX_REGIONS
   */
  add(
    space: AddressSpace,
    gva: number,
    length: number,
    handler: IntegrityHandler,
    owner = "",
  ): IntegrityRegion | undefined {
    if (!isRange(space, gva, length) || this.#regions.length >= MAX_REGIONS) return undefined;
    const copied = length <= MAX_COPIED && this.#copies + length <= MAX_COPIES;
    const pages = pagesOf(gva, length);
    const region: Region = {
      space,
      gva,
      length,
      owner,
      handler,
      copied,
      overlaps: this.#overlaps(space, gva, length),
      state: "ok",
      removed: false,
      expected: new Uint8Array(copied ? length : pages * DIGEST),
      known: new Uint8Array(pages),
      next: 0,
    };
    if (copied) this.#copies += length;
    let absent = false;
    for (let page = 0; page < pages; page++) {
      const bytes = this.#page(region, page);
      if (bytes === undefined) absent = true;
      else this.#learn(region, page, bytes);
    }
    if (absent) region.state = "skipped";
    this.#regions.push(region);
    return region;
  }

  #overlaps(space: AddressSpace, gva: number, length: number): Region[] {
    const found: Region[] = [];
    for (const other of this.#regions) {
      if (gva >= other.gva + other.length || other.gva >= gva + length) continue;
      if (sameTables(other.space, space)) found.push(other);
    }
    return found;
  }

  /** Ends the checks of a region, also from inside its own handler. Harmless twice. */
  remove(region: IntegrityRegion): void {
    if (region.removed) return;
    region.removed = true;
    const at = this.#regions.indexOf(region as Region);
    if (at < 0) return;
    if (region.copied) this.#copies -= region.length;
    if (this.#next === region) this.#next = this.#regions[at + 1];
    this.#regions = this.#regions.toSpliced(at, 1);
  }

  /**
   * Checks regions, at most a bounded number of bytes of them; the next call goes on where this one
   * ended. Call it once each guest second, between exits.
   */
  check(): void {
    const regions = this.#regions;
    if (regions.length === 0 || this.#checking) return;
    this.#checking = true;
    this.counters.checks++;
    try {
      this.#next = this.#round(regions);
    } finally {
      this.#checking = false;
    }
  }

  /** Goes round the regions while the budget lasts; the one to go on with. */
  #round(regions: readonly Region[]): Region | undefined {
    const count = regions.length;
    let at = this.#next === undefined ? 0 : Math.max(0, regions.indexOf(this.#next));
    let left = this.#budget;
    for (let seen = 0; seen < count && left > 0; seen++) {
      const region = regions[at] as Region;
      if (!region.removed) {
        const cost = costOf(region);
        if (region.copied && cost > left) break;
        if (region.copied) {
          this.#checkCopied(region);
          left -= cost;
        } else left = this.#checkHashed(region, left);
        if (region.next !== 0) break;
      }
      at = (at + 1) % count;
    }
    // Not one that a handler has removed: who stands behind it would wait for another round.
    for (let i = 0; i < count && (regions[at] as Region).removed; i++) at = (at + 1) % count;
    return regions[at];
  }

  /** Compares a region with its copy. */
  #checkCopied(region: Region): void {
    const found = this.#found;
    const frames = this.#frames;
    const pages = region.known.length;
    let absent = false;
    let differs = false;
    for (let page = 0; page < pages; page++) {
      const bytes = this.#page(region, page);
      const from = offsetOf(region, page);
      frames[page] = -1;
      if (bytes === undefined) {
        absent = true;
        continue;
      }
      if (region.known[page] === 0) {
        this.#learn(region, page, bytes);
        continue;
      }
      const expected = region.expected.subarray(from, from + bytes.length);
      if (Buffer.compare(bytes, expected) === 0) continue;
      // The guest may write on: what is told and what is expected next must be the same bytes.
      found.set(bytes, from);
      frames[page] = this.#translation.gpa;
      differs = true;
    }
    region.state = absent ? "skipped" : "ok";
    if (!differs) return;
    const changes = this.#differences(region);
    if (changes.length === 0) return;
    const verdict = this.#tell(region, changes);
    for (let page = 0; page < pages; page++) {
      if (frames[page] === -1) continue;
      const from = offsetOf(region, page);
      const length = lengthOf(region, page);
      if (verdict === ACCEPT) {
        region.expected.set(found.subarray(from, from + length), from);
      } else if (this.#revert(region, page)) this.counters.reverted++;
      else this.counters.notReverted++;
    }
  }

  /** Writes a page's expected bytes back; false when it is not what was found there any more. */
  #revert(region: Region, page: number): boolean {
    const bytes = this.#page(region, page);
    if (bytes === undefined || this.#translation.gpa !== this.#frames[page]) return false;
    const from = offsetOf(region, page);
    const to = from + bytes.length;
    if (Buffer.compare(bytes, this.#found.subarray(from, to)) !== 0) return false;
    bytes.set(region.expected.subarray(from, to));
    return true;
  }

  /** Runs of bytes that differ between what was found and what was expected; one more than told. */
  #differences(region: Region): IntegrityChange[] {
    const { expected } = region;
    const found = this.#found;
    const changes: IntegrityChange[] = [];
    let start = -1;
    let end = 0;
    const put = (): void => {
      const to = Math.min(end, start + MAX_SHOWN);
      changes.push({
        offset: start,
        length: end - start,
        old: expected.slice(start, to),
        current: found.slice(start, to),
      });
    };
    for (let page = 0; page < region.known.length && changes.length <= MAX_CHANGES; page++) {
      if (this.#frames[page] === -1) continue;
      const from = offsetOf(region, page);
      const to = from + lengthOf(region, page);
      for (let i = from; i < to; i++) {
        if (expected[i] === found[i]) continue;
        if (start >= 0 && i - end > GAP) {
          put();
          start = i;
          if (changes.length > MAX_CHANGES) return changes;
        } else if (start < 0) start = i;
        end = i + 1;
      }
    }
    if (start >= 0) put();
    return changes;
  }

  /**
   * Compares the hashes of a region's pages, from `next` on, as long as `left` lasts.
   * @returns what is left
   */
  #checkHashed(region: Region, left: number): number {
    const pages = region.known.length;
    const changes: IntegrityChange[] = [];
    let absent = false;
    let page = region.next;
    for (; page < pages && left > 0; page++) {
      const length = lengthOf(region, page);
      left -= Math.max(length, PAGE_COST);
      const bytes = this.#page(region, page);
      if (bytes === undefined) {
        absent = true;
        continue;
      }
      if (region.known[page] === 0) {
        this.#learn(region, page, bytes);
        continue;
      }
      Bun.SHA256.hash(bytes, this.#digest);
      const expected = region.expected.subarray(page * DIGEST, (page + 1) * DIGEST);
      if (Buffer.compare(this.#digest, expected) === 0) continue;
      expected.set(this.#digest);
      const offset = offsetOf(region, page);
      const last = changes.at(-1);
      if (last !== undefined && last.offset + last.length === offset) {
        changes[changes.length - 1] = { ...last, length: last.length + length };
      } else if (changes.length <= MAX_CHANGES) {
        changes.push({ offset, length, old: undefined, current: undefined });
      }
    }
    region.next = page < pages ? page : 0;
    region.state = absent ? "skipped" : "ok";
    if (changes.length > 0) this.#tell(region, changes);
    return left;
  }

  #tell(region: Region, changes: IntegrityChange[]): IntegrityVerdict {
    this.counters.changes++;
    region.state = "changed";
    const truncated = changes.length > MAX_CHANGES;
    if (truncated) changes.length = MAX_CHANGES;
    return region.handler({ region, changes, truncated, revertible: region.copied });
  }

  /** The region's bytes in its nth page, in place; undefined when the page is not present. */
  #page(region: Region, page: number): Uint8Array | undefined {
    const { root, mode, features } = region.space;
    const gva = region.gva + offsetOf(region, page);
    const length = lengthOf(region, page);
    const there = translate(this.#memory, root, mode, gva, this.#translation, features);
    const bytes = there ? this.#memory.ram.view(this.#translation.gpa, length) : undefined;
    if (bytes === undefined) this.counters.skipped++;
    else {
      this.counters.pages++;
      this.counters.bytes += length;
    }
    return bytes;
  }

  #learn(region: Region, page: number, bytes: Uint8Array): void {
    region.known[page] = 1;
    if (region.copied) region.expected.set(bytes, offsetOf(region, page));
    else {
      Bun.SHA256.hash(bytes, this.#digest);
      region.expected.set(this.#digest, page * DIGEST);
    }
  }

  /** Of Statistics. */
  read(): Record<string, number | string> {
    return {
      regions: this.count,
      regionBytes: this.#regions.reduce((sum, region) => sum + region.length, 0),
      copiedBytes: this.#copies,
      checksPerRound: this.checksPerRound,
      ...this.counters,
    };
  }
}

function pagesOf(gva: number, length: number): number {
  return Math.ceil((pageOffset(gva) + length) / PAGE_SIZE);
}

/** Where the region's nth page begins, from the region's start. */
function offsetOf(region: Region, page: number): number {
  return page === 0 ? 0 : page * PAGE_SIZE - pageOffset(region.gva);
}

/** Bytes of the region in its nth page. */
function lengthOf(region: Region, page: number): number {
  return (
    Math.min((page + 1) * PAGE_SIZE - pageOffset(region.gva), region.length) -
    offsetOf(region, page)
  );
}

function costOf(region: Region): number {
  return Math.max(region.length, region.known.length * PAGE_COST);
}

/** Whether these are addresses of the space, all on one side of the canonical hole. */
function isRange(space: AddressSpace, gva: number, length: number): boolean {
  if (!Number.isSafeInteger(gva) || !Number.isSafeInteger(length)) return false;
  if (length < 1 || length > MAX_LENGTH) return false;
  const last = gva + length - 1;
  switch (space.mode) {
    case "4level":
    case "5level": {
      // Of 57-bit addresses, those that a number can hold.
      const half = space.mode === "4level" ? 2 ** 47 : 2 ** 53;
      return gva < 0 ? gva >= -half && last < 0 : last < half;
    }
    default:
      return gva >= 0 && last < 2 ** 32;
  }
}
