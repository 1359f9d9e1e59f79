// SPDX-License-Identifier: MIT
import { HVI_EXIT_EPT, HVI_EXIT_STEP, type Vcpu } from "../bridge/index.ts";
import { PAGE_SIZE } from "../memory/address.ts";
import type { Continuation } from "./gpa-hooks.ts";

/** Bytes of a write that are kept: the widest store has 64. */
export const WRITE_BYTES = 64;

/** What PageTables does with a write. */
export interface WriteSteps {
  /** All hooks have allowed it: memory will hold the bytes after the instruction. */
  allowed(write: TableWrite, vcpu: Vcpu): void;
  /** An exit has come since. */
  exited(write: TableWrite, vcpu: Vcpu): void;
}

/** A write to a page table, from its exit until it is seen in memory. Used again and again. */
export class TableWrite implements Continuation {
  gfn = -1;
  /** Bytes written: [offset, offset + size) of the page. */
  offset = 0;
  size = 0;
  vcpu: Vcpu | undefined;
  /** Where the instruction stands. */
  rip = 0;
  /** Whether `bytes` holds the value. */
  known = false;
  /** The copies of the entries have the new value, which memory has not yet. */
  applied = false;
  /** Nothing is left to do. */
  settled = true;
  readonly bytes = new Uint8Array(WRITE_BYTES);
  readonly whenAllowed: Continuation;
  readonly #view = new DataView(this.bytes.buffer);
  readonly #steps: WriteSteps;

  constructor(steps: WriteSteps) {
    this.#steps = steps;
    this.whenAllowed = { run: (vcpu) => steps.allowed(this, vcpu) };
  }

  run(vcpu: Vcpu): void {
    this.#steps.exited(this, vcpu);
  }

  /** A word of the page after the write, given what memory holds now. */
  word(index: number, now: number): number {
    const at = index * 4 - this.offset;
    if (!this.known || at <= -4 || at >= this.size) return now;
    if (at >= 0 && at + 4 <= this.size) return this.#view.getUint32(at, true);
    // A write may cover part of a word only; the rest stays as it is.
    let value = now;
    for (let b = 0; b < 4; b++) {
      const i = at + b;
      if (i < 0 || i >= this.size) continue;
      value = (value & ~(0xff << (8 * b))) | ((this.bytes[i] as number) << (8 * b));
    }
    return value >>> 0;
  }

  /**
   * Whether the instruction is over at this exit, done or faulted. Another vCPU's exit does not tell,
   * nor one at the same instruction, which may need other pages, or not have been tried yet.
   */
  isOver(vcpu: Vcpu): boolean {
    if (vcpu !== this.vcpu) return false;
    if (vcpu.exitReason === HVI_EXIT_STEP || vcpu.rip !== this.rip) return true;
    return vcpu.exitReason === HVI_EXIT_EPT && Math.floor(vcpu.exitGpa / PAGE_SIZE) === this.gfn;
  }
}
