// SPDX-License-Identifier: MIT
/**
 * Guest virtual to guest physical, for every paging mode of SDM vol. 3,
 * chapter 4. The modes are rows of one table; there is one walk.
 */
import type { TableSource } from "./physical.ts";

const TWO32 = 4294967296;

export type PagingMode = "none" | "32" | "pae" | "4level" | "5level";

/** Bits of a paging-structure entry. */
export const PTE_P = 1 << 0;
export const PTE_RW = 1 << 1;
export const PTE_US = 1 << 2;
export const PTE_D = 1 << 6;
export const PTE_PS = 1 << 7;
export const PTE_G = 1 << 8;
/** Execute-disable, in the high half. */
export const PTE_NX_HI = 0x80000000 | 0;

/** Why there is no translation. */
export enum TranslationStatus {
  Ok = 0,
  /** The address is not canonical in this mode, or not exact as a number. */
  NotCanonical = 1,
  /** An entry is not present: the last one of the record. */
  NotPresent = 2,
  /** An entry has a reserved bit set: the last one of the record. */
  Reserved = 3,
  /** A paging structure would stand where there is no RAM. */
  NoRam = 4,
}

interface Level {
  readonly name: "PML5E" | "PML4E" | "PDPTE" | "PDE" | "PTE";
  /** Lowest address bit that indexes this level. */
  readonly shift: number;
  readonly indexMask: number;
  /** The PS bit makes this entry map a page of 2^shift bytes. */
  readonly large: boolean;
  /** Entries carry R/W, U/S and NX; false for the four PDPTEs of PAE paging. */
  readonly rights: boolean;
  /** Bits of the low half that must be 0. */
  readonly reserved: number;
  /** The same when the entry maps a large page. */
  readonly reservedLarge: number;
}

interface Mode {
  readonly name: PagingMode;
  readonly levels: readonly Level[];
  readonly entrySize: 4 | 8;
  /** Bits of CR3 that are the address of the first table: low and high half. */
  readonly rootLo: number;
  readonly rootHi: number;
  /** Highest address bit; the ones above copy it. 31: there are none. */
  readonly topBit: number;
}

function level(
  name: Level["name"],
  shift: number,
  o: Partial<Omit<Level, "name" | "shift">> = {},
): Level {
  return {
    name,
    shift,
    indexMask: o.indexMask ?? 0x1ff,
    large: o.large ?? false,
    rights: o.rights ?? true,
    reserved: o.reserved ?? 0,
    reservedLarge: o.reservedLarge ?? 0,
  };
}

const PAGE_BITS = 0xfffff000 | 0;
const PTE = level("PTE", 12);
const PDE = level("PDE", 21, { large: true, reservedLarge: 0x001fe000 });
const PDPTE = level("PDPTE", 30, { large: true, reservedLarge: 0x3fffe000 });
const PML4E = level("PML4E", 39, { reserved: PTE_PS });
const PML5E = level("PML5E", 48, { reserved: PTE_PS });

const MODES: Readonly<Record<PagingMode, Mode>> = {
  none: { name: "none", levels: [], entrySize: 4, rootLo: 0, rootHi: 0, topBit: 31 },
  "32": {
    name: "32",
    // Bits 20..13 of a 4 MiB entry are address bits 39..32 (PSE-36), as far as MAXPHYADDR goes.
    levels: [
      level("PDE", 22, { indexMask: 0x3ff, large: true }),
      level("PTE", 12, { indexMask: 0x3ff }),
    ],
    entrySize: 4,
    rootLo: PAGE_BITS,
    rootHi: 0,
    topBit: 31,
  },
  pae: {
    name: "pae",
    levels: [level("PDPTE", 30, { indexMask: 3, rights: false, reserved: 0x1e6 }), PDE, PTE],
    entrySize: 8,
    rootLo: 0xffffffe0 | 0,
    rootHi: 0,
    topBit: 31,
  },
  "4level": {
    name: "4level",
    levels: [PML4E, PDPTE, PDE, PTE],
    entrySize: 8,
    rootLo: PAGE_BITS,
    rootHi: 0xfffff,
    topBit: 47,
  },
  "5level": {
    name: "5level",
    levels: [PML5E, PML4E, PDPTE, PDE, PTE],
    entrySize: 8,
    rootLo: PAGE_BITS,
    rootHi: 0xfffff,
    topBit: 56,
  },
};

/** Bits of an entry for 4 MiB that must be 0: 21, and those of an address beyond MAXPHYADDR (SDM 4.3). */
export function reservedOf4MiB(physicalBits: number): number {
  return 0x400000 - (1 << (Math.min(40, physicalBits) - 19));
}

/** What the guest's CPU does beyond the mode. */
export interface PagingFeatures {
  /** CR4.PSE: PS counts in 32-bit paging. */
  readonly pse: boolean;
  /** EFER.NXE: bit 63 is NX; without it, reserved. */
  readonly nxe: boolean;
  /** MAXPHYADDR, 32..52: address bits from there on are reserved. */
  readonly physicalBits: number;
}
export const DEFAULT_FEATURES: PagingFeatures = { pse: true, nxe: true, physicalBits: 52 };

/** Names of the entries of a mode, from the root down. Throws for an unknown mode. */
export function levelNames(mode: PagingMode): string[] {
  return modeOf(mode).levels.map((l) => l.name);
}

/** The paging mode that control registers select (SDM vol. 3, 4.1.1). */
export function pagingModeOf(cr0: number, cr4: number, efer: number): PagingMode {
  const CR0_PG = 1 << 31;
  const CR4_PAE = 1 << 5;
  const CR4_LA57 = 1 << 12;
  const EFER_LMA = 1 << 10;
  if ((cr0 & CR0_PG) === 0) return "none";
  if ((cr4 & CR4_PAE) === 0) return "32";
  if ((efer & EFER_LMA) === 0) return "pae";
  return (cr4 & CR4_LA57) === 0 ? "4level" : "5level";
}

/** The features that control registers select. Long mode and PAE have large pages always. */
export function pagingFeaturesOf(cr4: number, efer: number, physicalBits = 52): PagingFeatures {
  return { pse: (cr4 & (1 << 4)) !== 0, nxe: (efer & (1 << 11)) !== 0, physicalBits };
}

function modeOf(mode: PagingMode): Mode {
  if (mode === "4level") return MODES["4level"];
  const found = MODES[mode] as Mode | undefined;
  if (!found) throw new Error(`unknown paging mode "${String(mode)}"`);
  return found;
}

/** The record of one walk; reused from walk to walk. */
export class Translation {
  status = TranslationStatus.NotPresent;
  /** Guest physical address; -1 when there is none. */
  gpa = -1;
  /** Bytes of the page: 4 KiB, 2 MiB, 4 MiB, 1 GiB; 0 when there is none. */
  pageSize = 0;
  /** Entries read, from the root down. When the walk failed, the last one is to blame. */
  depth = 0;
  /** Entries as two halves, and where they stand. */
  readonly entryLo = new Uint32Array(5);
  readonly entryHi = new Uint32Array(5);
  readonly entryGpa = new Float64Array(5);
  /** Rights of all levels together (before CR0.WP, SMEP, SMAP). */
  writable = false;
  user = false;
  /** Execute-disable. */
  nx = false;
  global = false;
  dirty = false;
  /** Name of the level that mapped the page, or failed; undefined without paging. */
  mode: PagingMode = "none";

  get ok(): boolean {
    return this.status === TranslationStatus.Ok;
  }
  /** Name of the last entry read, e.g. "PDE"; undefined when none was. */
  get lastLevel(): string | undefined {
    return this.depth === 0 ? undefined : levelNames(this.mode)[this.depth - 1];
  }
  get statusName(): string {
    return TranslationStatus[this.status];
  }
}

/** Frame of a physical address in an entry or CR3; -1 beyond 8 TiB, where there is no RAM. */
function frameOf(lo: number, hi: number): number {
  return (hi & 0xff800) !== 0 ? -1 : (hi << 20) | (lo >>> 12);
}

const NO_TABLES: TableSource = { wordIndex: 0, tableAt: () => undefined };

/** The one walk, aimed at an address space: what does not depend on the address is ready. */
export class Walk {
  private mode: Mode = MODES.none;
  private levels: readonly Level[] = MODES.none.levels;
  private entryWords = 1;
  /** Bits of an entry's high half that must be 0: all but PAE's PDPTEs, and those. */
  private reservedHi = 0;
  private reservedHiBare = 0;
  /** PS counts. */
  private large = false;
  /** Bits of a 4 MiB entry that must be 0. */
  private reservedPse = 0;
  private table = -1;
  /** Word of the first table in its frame: the four PDPTEs of PAE paging stand anywhere. */
  private within = 0;

  private memory: TableSource = NO_TABLES;

  /** Throws for an unknown mode. */
  aim(memory: TableSource, root: number, mode: PagingMode, features: PagingFeatures): void {
    const m = modeOf(mode);
    this.memory = memory;
    this.mode = m;
    this.levels = m.levels;
    this.entryWords = m.entrySize >>> 2;
    const { physicalBits } = features;
    this.reservedHi =
      (physicalBits >= 52 ? 0 : 0xfffff & (-1 << (physicalBits - 32))) |
      (features.nxe ? 0 : PTE_NX_HI);
    // No rights, no NX: bits 63..52 are reserved.
    this.reservedHiBare = this.reservedHi | (0xfff00000 | 0);
    this.large = features.pse || m.entrySize === 8;
    this.reservedPse = m.entrySize === 4 ? reservedOf4MiB(physicalBits) : 0;
    const rootLo = root & m.rootLo;
    this.table = frameOf(rootLo, Math.floor(root / TWO32) & m.rootHi);
    this.within = (rootLo & 0xfff) >>> 2;
  }

  /** Guest physical address of a signed canonical one, or -1; `out`, where given, gets the record. */
  to(gva: number, out: Translation | undefined): number {
    // Beyond 2^53 a number does not tell which address is meant.
    if (!(gva > -9007199254740992 && gva < 9007199254740992)) {
      if (out !== undefined) out.depth = 0;
      return failed(out, this.mode, TranslationStatus.NotCanonical);
    }
    const hi = Math.floor(gva / TWO32) | 0;
    return this.toHalves((gva - hi * TWO32) >>> 0, hi, out);
  }

  /** The same for an address as two 32-bit halves, the upper one signed. */
  toHalves(lo: number, hi: number, out: Translation | undefined): number {
    const { levels, entryWords, memory } = this;
    if (out !== undefined) out.depth = 0;
    const { topBit } = this.mode;
    const top = topBit === 31 ? hi : hi >> (topBit - 32);
    if (top !== 0 && (top !== -1 || topBit === 31)) {
      return failed(out, this.mode, TranslationStatus.NotCanonical);
    }
    if (levels.length === 0) return unpaged(out, lo);
    let table = this.table;
    let within = this.within;
    // R/W and U/S of all entries by AND, NX by OR.
    let allLo = PTE_RW | PTE_US;
    let anyHi = 0;

    for (let i = 0; i < levels.length; i++) {
      const l = levels[i];
      const shift = l.shift;
      const index =
        (shift >= 32 ? hi >>> (shift - 32) : (lo >>> shift) | (hi << (32 - shift))) & l.indexMask;
      const words = table < 0 ? undefined : memory.tableAt(table);
      if (words === undefined) return failed(out, this.mode, TranslationStatus.NoRam);
      const at = within + index * entryWords;
      const word = memory.wordIndex + at;
      const entryLo = words[word] | 0;
      const entryHi = entryWords === 2 ? words[word + 1] | 0 : 0;
      if (out !== undefined) {
        out.entryLo[i] = entryLo;
        out.entryHi[i] = entryHi;
        out.entryGpa[i] = table * 0x1000 + at * 4;
        out.depth = i + 1;
      }
      if ((entryLo & PTE_P) === 0) return failed(out, this.mode, TranslationStatus.NotPresent);

      if (l.rights) {
        allLo &= entryLo;
        anyHi |= entryHi;
      }
      const isLeaf = shift === 12 || (l.large && this.large && (entryLo & PTE_PS) !== 0);
      const badLo = isLeaf && shift !== 12 ? l.reservedLarge | this.reservedPse : l.reserved;
      const badHi = l.rights ? this.reservedHi : this.reservedHiBare;
      if (((entryLo & badLo) | (entryHi & badHi)) !== 0) {
        return failed(out, this.mode, TranslationStatus.Reserved);
      }
      if (!isLeaf) {
        table = frameOf(entryLo, entryHi & 0xfffff);
        within = 0;
        continue;
      }
      const below = shift === 30 ? 0x3fffffff : (1 << shift) - 1;
      // PSE-36: a 4 MiB page keeps address bits 39..32 in bits 20..13.
      const frameHi = shift === 22 ? (entryLo >>> 13) & 0xff : entryHi & 0xfffff;
      const gpa = frameHi * TWO32 + (((entryLo & PAGE_BITS & ~below) | (lo & below)) >>> 0);
      if (out !== undefined) {
        out.mode = this.mode.name;
        out.status = TranslationStatus.Ok;
        out.gpa = gpa;
        out.pageSize = below + 1;
        out.writable = (allLo & PTE_RW) !== 0;
        out.user = (allLo & PTE_US) !== 0;
        out.nx = anyHi < 0;
        out.global = (entryLo & PTE_G) !== 0;
        out.dirty = (entryLo & PTE_D) !== 0;
      }
      return gpa;
    }
    // The last level of every mode has shift 12 and is a leaf.
    throw new Error(`paging mode "${this.mode.name}" has no last level`);
  }
}

function failed(out: Translation | undefined, mode: Mode, status: TranslationStatus): -1 {
  if (out === undefined) return -1;
  out.mode = mode.name;
  out.status = status;
  out.gpa = -1;
  out.pageSize = 0;
  out.writable = false;
  out.user = false;
  out.nx = true;
  out.global = false;
  out.dirty = false;
  return -1;
}

function unpaged(out: Translation | undefined, lo: number): number {
  const gpa = lo >>> 0;
  if (out === undefined) return gpa;
  out.mode = "none";
  out.status = TranslationStatus.Ok;
  out.gpa = gpa;
  out.pageSize = 4096;
  out.writable = true;
  out.user = true;
  out.nx = false;
  out.global = false;
  out.dirty = false;
  return gpa;
}

/** Of translate() and translateHalves(): aimed anew by each call. */
const walk = new Walk();

/**
 * Translates a signed canonical address under a root (CR3); for many addresses
 * under one root, VirtualMemory does it without aiming anew.
 * Answers false, with the reason in out.status, when there is no translation.
 * The page it names may be device space: reading it then fails.
 * Throws for an unknown mode.
 */
export function translate(
  memory: TableSource,
  root: number,
  mode: PagingMode,
  gva: number,
  out: Translation,
  features: PagingFeatures = DEFAULT_FEATURES,
): boolean {
  walk.aim(memory, root, mode, features);
  return walk.to(gva, out) >= 0;
}

/** The same for an address as two 32-bit halves; exact for 57 bits too. */
export function translateHalves(
  memory: TableSource,
  root: number,
  mode: PagingMode,
  lo: number,
  hi: number,
  out: Translation,
  features: PagingFeatures = DEFAULT_FEATURES,
): boolean {
  walk.aim(memory, root, mode, features);
  return walk.toHalves(lo >>> 0, hi | 0, out) >= 0;
}

/** How the tables of a mode are built, for those that keep entries of their own (src/ept). */
export { type Level as PagingLevel, type Mode as PagingStructure, modeOf as pagingStructure };
