// SPDX-License-Identifier: MIT
import type { Vcpu } from "../bridge/vcpu.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import type { VirtualMemory } from "../memory/virtual.ts";
import { decode, MAX_INSTRUCTION } from "./decode.ts";
import type { CodeMode, Instruction } from "./instruction.ts";
import { codeMode, linearRip } from "./segments.ts";

const BITS = 14;
const SIZE = 1 << BITS;
/** Slots for instructions that cross a page. */
const CROSSING_SIZE = 256;

/**
 * Decoded instructions by guest physical address and mode.
 *
 * A hit is checked against the bytes in memory, so that code which the guest
 * changed, with or without an exit, is never answered from the cache;
 * invalidatePage() and clear() only give memory back early. Direct-mapped: a fixed number of
 * slots, an instruction that falls on a taken one replaces it. Instructions
 * that cross a page have a few slots of their own and are compared byte by byte,
 * since what follows the page depends on the tables.
 */
export class DecodeCache {
  hits = 0;
  misses = 0;
  private readonly keys = new Float64Array(SIZE).fill(-1);
  private readonly slots: (Instruction | undefined)[] = new Array(SIZE).fill(undefined);
  private readonly crossingKeys = new Float64Array(CROSSING_SIZE).fill(-1);
  private readonly crossing: (Instruction | undefined)[] = new Array(CROSSING_SIZE).fill(undefined);
  private readonly scratch = new Uint8Array(MAX_INSTRUCTION);

  constructor(private readonly memory: PhysicalMemory) {}

  /** The instruction at a guest physical address; undefined when there is none in its page. */
  atGpa(gpa: number, mode: CodeMode): Instruction | undefined {
    const slot = DecodeCache.slotOf(gpa, mode);
    if (this.keys[slot] === DecodeCache.keyOf(gpa, mode)) {
      const kept = this.slots[slot];
      if (kept !== undefined && this.unchanged(gpa, kept)) {
        this.hits++;
        return kept;
      }
    }
    return this.fill(gpa, mode, slot);
  }

  /**
   * The instruction at a guest virtual address, which may cross into another
   * page. Undefined when a page is absent or the bytes are no instruction.
   */
  at(memory: VirtualMemory, gva: number, mode: CodeMode): Instruction | undefined {
    const gpa = memory.gpaOf(gva);
    if (gpa < 0) return undefined;
    if ((gva & 0xfff) <= 0x1000 - MAX_INSTRUCTION) return this.atGpa(gpa, mode);
    return this.nearPageEnd(memory, gva, gpa, mode);
  }

  /** An instruction in the last bytes of a page: it may go on in the next one. */
  private nearPageEnd(
    memory: VirtualMemory,
    gva: number,
    gpa: number,
    mode: CodeMode,
  ): Instruction | undefined {
    const bytes = this.scratch;
    const n = memory.readPartial(gva, bytes);
    const slot = (gpa ^ Math.floor(gpa / 0x1000)) & (CROSSING_SIZE - 1);
    const key = DecodeCache.keyOf(gpa, mode);
    const kept = this.crossing[slot];
    if (kept !== undefined && this.crossingKeys[slot] === key && DecodeCache.same(bytes, n, kept)) {
      this.hits++;
      return kept;
    }
    this.misses++;
    const decoded = decode(bytes, 0, mode, n);
    if (decoded !== undefined) {
      this.crossingKeys[slot] = key;
      this.crossing[slot] = decoded;
    }
    return decoded;
  }
  private static same(bytes: Uint8Array, n: number, kept: Instruction): boolean {
    if (kept.length > n) return false;
    for (let i = 0; i < kept.length; i++) if (bytes[i] !== kept.byte(i)) return false;
    return true;
  }

  /**
   * The instruction that a vCPU stands at. Undefined as in at().
   * @param memory the vCPU's own address space (virtualMemoryOf)
   */
  atRip(vcpu: Vcpu, memory: VirtualMemory): Instruction | undefined {
    return this.at(memory, linearRip(vcpu), codeMode(vcpu));
  }

  private static keyOf(gpa: number, mode: CodeMode): number {
    return gpa * 4 + (mode >>> 5);
  }
  private static slotOf(gpa: number, mode: CodeMode): number {
    return (gpa ^ Math.floor(gpa / SIZE) ^ (mode << 7)) & (SIZE - 1);
  }

  /** Compares the instruction's bytes with memory. Its end is inside the page of gpa. */
  private unchanged(gpa: number, kept: Instruction): boolean {
    const n = kept.length;
    const m = this.memory;
    // Reading past the end of the page would look at memory of someone else: go byte by byte there.
    if ((gpa & 0xfff) > 0x1000 - 16) return this.unchangedAtEnd(gpa, kept);
    if (n <= 4) return ((m.read32(gpa) ^ kept.word0) & DecodeCache.mask(n)) === 0;
    if ((m.read32(gpa) | 0) !== (kept.word0 | 0)) return false;
    if (n <= 8) return ((m.read32(gpa + 4) ^ kept.word1) & DecodeCache.mask(n - 4)) === 0;
    if ((m.read32(gpa + 4) | 0) !== (kept.word1 | 0)) return false;
    if (n <= 12) return ((m.read32(gpa + 8) ^ kept.word2) & DecodeCache.mask(n - 8)) === 0;
    if ((m.read32(gpa + 8) | 0) !== (kept.word2 | 0)) return false;
    return ((m.read32(gpa + 12) ^ kept.word3) & DecodeCache.mask(n - 12)) === 0;
  }
  private unchangedAtEnd(gpa: number, kept: Instruction): boolean {
    for (let i = 0; i < kept.length; i++) {
      if (this.memory.read8(gpa + i) !== kept.byte(i)) return false;
    }
    return true;
  }
  /** Ones for the low n bytes of a word, n = 1..4. */
  private static mask(n: number): number {
    return n === 4 ? -1 : (1 << (8 * n)) - 1;
  }

  private fill(gpa: number, mode: CodeMode, slot: number): Instruction | undefined {
    this.misses++;
    const bytes = this.memory.bytesAt(gpa);
    if (bytes === undefined) return undefined;
    const at = this.memory.byteIndex;
    const decoded = decode(bytes, at, mode, at + 0x1000 - (gpa & 0xfff));
    if (decoded) {
      this.keys[slot] = DecodeCache.keyOf(gpa, mode);
      this.slots[slot] = decoded;
    }
    return decoded;
  }

  /**
   * Drops what was decoded in one page. Looks at every slot (some 10 us): for
   * pages that go away, not for each write to one.
   */
  invalidatePage(gfn: number): void {
    for (let i = 0; i < SIZE; i++) {
      if (Math.floor(this.keys[i] / 0x4000) !== gfn) continue;
      this.keys[i] = -1;
      this.slots[i] = undefined;
    }
    for (let i = 0; i < CROSSING_SIZE; i++) {
      if (Math.floor(this.crossingKeys[i] / 0x4000) !== gfn) continue;
      this.crossingKeys[i] = -1;
      this.crossing[i] = undefined;
    }
  }
  clear(): void {
    this.keys.fill(-1);
    this.slots.fill(undefined);
    this.crossingKeys.fill(-1);
    this.crossing.fill(undefined);
  }
  /** Share of lookups answered from the cache, 0..1. */
  get hitRate(): number {
    const all = this.hits + this.misses;
    return all === 0 ? 0 : this.hits / all;
  }
}
