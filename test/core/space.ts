// SPDX-License-Identifier: MIT
/** An address space of the core guest, with what the guest's kernel can do to it. */
import { VirtualMemory } from "../../src/memory/virtual.ts";
import type { CoreGuest } from "./guest.ts";
import { LEVELS, PAGE, PS, USER_PAGE } from "./layout.ts";

const PAGING = { long: "4level", pae: "pae", p32: "32" } as const;

/** Ways of changing an entry, in every mode: guest/writers.S. The operand is the new entry. */
export const SETTERS = ["mov", "xchg", "cmpxchg", "stos", "push", "movnti", "bytes"] as const;
/** Those that 8-byte entries have besides. */
export const SETTERS_64 = ["halves", "halves_high_first", "movq"] as const;
export type Writer =
  | (typeof SETTERS)[number]
  | (typeof SETTERS_64)[number]
  | "and"
  | "lock_and"
  | "or"
  | "lock_or"
  | "xor"
  | "btr"
  | "lock_btr"
  | "bts";

export class Space {
  /** As the engine sees it. */
  readonly memory: VirtualMemory;

  constructor(
    readonly guest: CoreGuest,
    /** CR3. */
    readonly root: number,
  ) {
    const features = { pse: true, nxe: guest.mode !== "p32", physicalBits: 52 };
    this.memory = new VirtualMemory(guest.memory, root, PAGING[guest.mode], features);
  }

  /** Makes it the current one. */
  enter(): void {
    this.guest.call("space_switch", this.root);
  }
  /** Writes an entry (level 1: that of a small page); the entry then. Tables on the way are made. */
  write(va: number, value: number | bigint, writer: Writer = "mov", level = 1): number {
    const how = this.guest.symbol(`write_${writer}`);
    return this.guest.call("entry_write", this.root, va, level, value, how);
  }
  /** Maps a frame. */
  map(va: number, pa: number, flags = USER_PAGE, writer: Writer = "mov"): void {
    this.write(va, pa + flags, writer);
  }
  /** Maps new frames, the last address first; their physical addresses. */
  mapNew(va: number, pages: number, flags = USER_PAGE): number[] {
    const frames = Array.from({ length: pages }, () => this.guest.frame()).reverse();
    for (const [i, pa] of frames.entries()) this.map(va + i * PAGE, pa, flags);
    return frames;
  }
  mapLarge(va: number, pa: number, flags = USER_PAGE, writer: Writer = "mov"): void {
    this.write(va, pa + flags + PS, writer, 2);
  }
  unmap(va: number, writer: Writer = "mov"): void {
    this.write(va, 0, writer);
  }
  /** Physical address of an entry; -1 when its table is absent. */
  entryAt(va: number, level = 1): number {
    const at = this.guest.call("entry_at", this.root, va, level);
    return at > Number.MAX_SAFE_INTEGER ? -1 : at;
  }
  /** Physical addresses of the entries that translate va, the top one first. */
  path(va: number): number[] {
    const levels = LEVELS[this.guest.mode];
    return Array.from({ length: levels }, (_, i) => this.entryAt(va, levels - i)).filter(
      (a) => a >= 0,
    );
  }
  split(va: number): boolean {
    return this.guest.call("split", this.root, va) === 1;
  }
  merge(va: number): boolean {
    return this.guest.call("merge", this.root, va) === 1;
  }
  swapOut(va: number): boolean {
    return this.guest.call("swap_out", this.root, va) === 1;
  }
  /** Another root of the same tables: what is in the top table later is not in both. */
  pair(): Space {
    return new Space(this.guest, this.guest.call("space_pair", this.root));
  }
  /** Clears and frees its tables. */
  destroy(): void {
    this.guest.call("space_destroy", this.root);
  }
}
