// SPDX-License-Identifier: MIT
/** Makes page tables in RAM, for tests and benchmarks. */
import type { PhysicalMemory } from "./physical.ts";
import { type PagingMode, PTE_P, PTE_PS, PTE_RW, PTE_US } from "./translate.ts";

const TWO32 = 4294967296;
const SHIFTS: Readonly<Record<Exclude<PagingMode, "none">, readonly number[]>> = {
  "32": [22, 12],
  pae: [30, 21, 12],
  "4level": [39, 30, 21, 12],
  "5level": [48, 39, 30, 21, 12],
};

export interface MapOptions {
  /** Flags of the low half of the leaf; P, R/W and U/S when left out. PS is added for large pages. */
  flags?: number;
  nx?: boolean;
  /** Bytes of the page; 4 KiB when left out. */
  pageSize?: number;
}

/** Address of a GVA as bits, for walks by arithmetic instead of shifts: independent of the code under test. */
function indexOf(gva: bigint, shift: number, entrySize: number, mode: PagingMode): number {
  const bits = mode === "32" ? 10n : mode === "pae" && shift === 30 ? 2n : 9n;
  return Number((gva >> BigInt(shift)) & ((1n << bits) - 1n)) * entrySize;
}

/** Page tables under construction. Tables are taken from `next` on, a page each. */
export class FakeTables {
  readonly root: number;
  private readonly entrySize: 4 | 8;

  /** @param next page-aligned guest physical address where tables may stand; below 4 GiB for modes of 32 bits */
  constructor(
    private readonly memory: PhysicalMemory,
    readonly mode: Exclude<PagingMode, "none">,
    private next: number,
  ) {
    this.entrySize = mode === "32" ? 4 : 8;
    this.root = this.take();
  }

  private take(): number {
    const gpa = this.next;
    this.next += 0x1000;
    if (!this.memory.fill(gpa, 0x1000, 0)) throw new Error("no room for page tables");
    return gpa;
  }
  private put(gpa: number, lo: number, hi: number): void {
    const done =
      this.entrySize === 8 ? this.memory.writeU64(gpa, lo, hi) : this.memory.write32(gpa, lo);
    if (!done) throw new Error("page table outside RAM");
  }

  /** Maps one page. Returns the guest physical addresses of the entries, from the root down. */
  map(gva: number | bigint, gpa: number, o: MapOptions = {}): number[] {
    const flags = o.flags ?? PTE_P | PTE_RW | PTE_US;
    const address = BigInt.asUintN(64, BigInt(gva));
    const size = o.pageSize ?? 0x1000;
    const entries: number[] = [];
    let table = this.root;
    for (const shift of SHIFTS[this.mode]) {
      const entry = table + indexOf(address, shift, this.entrySize, this.mode);
      entries.push(entry);
      if (size === 2 ** shift) {
        const pse36 = this.mode === "32" && shift === 22 ? Math.floor(gpa / TWO32) << 13 : 0;
        this.put(
          entry,
          ((gpa >>> 0) | flags | pse36 | (shift > 12 ? PTE_PS : 0)) >>> 0,
          (Math.floor(gpa / TWO32) | (o.nx ? 0x80000000 : 0)) >>> 0,
        );
        return entries;
      }
      const present = this.memory.read32(entry);
      if ((present & PTE_P) !== 0) {
        const high = this.entrySize === 8 ? this.memory.read32(entry + 4) & 0xfffff : 0;
        table = high * TWO32 + ((present & 0xfffff000) >>> 0);
        continue;
      }
      table = this.take();
      const inner = this.mode === "pae" && shift === 30 ? PTE_P : PTE_P | PTE_RW | PTE_US;
      this.put(entry, ((table >>> 0) | inner) >>> 0, Math.floor(table / TWO32));
    }
    throw new Error(`no ${size}-byte pages in ${this.mode} paging`);
  }
}
