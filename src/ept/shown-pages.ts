// SPDX-License-Identifier: MIT
import type { Vm } from "../bridge/index.ts";
import { PAGE_SIZE } from "../memory/address.ts";
import type { GpaHooks, ShownPage } from "./gpa-hooks.ts";

/** Spare pages asked of the backend at a time. */
const CHUNK = 16;

/** A stretch of a page that reads see otherwise. */
interface Stretch {
  start: number;
  end: number;
}

class Shown implements ShownPage {
  readonly ranges: Int32Array;
  count = 0;
  readonly stretches: Stretch[] = [];

  constructor(
    readonly spare: number,
    limit: number,
  ) {
    this.ranges = new Int32Array(2 * limit);
  }

  update(): void {
    this.stretches.sort((a, b) => a.start - b.start);
    this.count = this.stretches.length;
    for (const [i, stretch] of this.stretches.entries()) {
      this.ranges[2 * i] = stretch.start;
      this.ranges[2 * i + 1] = stretch.end;
    }
  }
}

/**
 * What reads of guest pages see instead of memory: for each page a spare page of the backend holds
 * those bytes at their place. Whose reads exit is up to hooks on the page.
 */
export class ShownPages {
  readonly #vm: Vm;
  readonly #hooks: GpaHooks;
  /** Stretches that a page may have: the ranges of one reply. */
  readonly #limit: number;
  readonly #pages = new Map<number, Shown>();
  readonly #free: number[] = [];

  constructor(vm: Vm, hooks: GpaHooks, limit: number) {
    this.#vm = vm;
    this.#hooks = hooks;
    this.#limit = limit;
  }

  /** Pages that are shown otherwise. */
  get size(): number {
    return this.#pages.size;
  }

  /** Whether [start, end) of a page can be shown as well: it overlaps nothing, and there is room. */
  accepts(gfn: number, start: number, end: number): boolean {
    const page = this.#pages.get(gfn);
    if (page === undefined) return true;
    return (
      page.stretches.length < this.#limit &&
      page.stretches.every((s) => end <= s.start || start >= s.end)
    );
  }

  /** Lets reads of [start, start + bytes.length) of a page see `bytes`. Ask `accepts` first. */
  show(gfn: number, start: number, bytes: Uint8Array): void {
    let page = this.#pages.get(gfn);
    if (page === undefined) {
      page = new Shown(this.#takeSpare(), this.#limit);
      this.#pages.set(gfn, page);
      this.#hooks.setShown(gfn, page);
    }
    page.stretches.push({ start, end: start + bytes.length });
    this.#vm.spare(page.spare).set(bytes, start);
    page.update();
  }

  /** Changes bytes that are shown. */
  change(gfn: number, start: number, bytes: Uint8Array): void {
    const page = this.#pages.get(gfn);
    if (page !== undefined) this.#vm.spare(page.spare).set(bytes, start);
  }

  /** Reads of the stretch that begins at `start` see memory again. */
  hide(gfn: number, start: number): void {
    const page = this.#pages.get(gfn);
    const at = page?.stretches.findIndex((s) => s.start === start) ?? -1;
    if (page === undefined || at < 0) return;
    page.stretches.splice(at, 1);
    page.update();
    if (page.count > 0) return;
    this.#pages.delete(gfn);
    this.#hooks.setShown(gfn, undefined);
    this.#free.push(page.spare);
  }

  /** The bytes of [gpa, gpa + out.length), within a page, as the guest reads them: laid over `out`. */
  overlay(gpa: number, out: Uint8Array): void {
    const page = this.#pages.get(Math.floor(gpa / PAGE_SIZE));
    if (page === undefined) return;
    const from = gpa % PAGE_SIZE;
    const to = from + out.length;
    const spare = this.#vm.spare(page.spare);
    for (const { start, end } of page.stretches) {
      const first = Math.max(start, from);
      const last = Math.min(end, to);
      if (first < last) out.set(spare.subarray(first, last), first - from);
    }
  }

  #takeSpare(): number {
    const kept = this.#free.pop();
    if (kept !== undefined) return kept;
    const first = this.#vm.addSpare(CHUNK);
    for (let i = first + CHUNK - 1; i > first; i--) this.#free.push(i);
    return first;
  }
}
