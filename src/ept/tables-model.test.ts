// SPDX-License-Identifier: MIT
/**
 * Random writes to page tables that point to each other, to themselves and out of RAM, in every mode,
 * against a walk of memory that knows nothing of the hooks.
 */
import { expect, test } from "bun:test";
import { HVI_W, HVI_X } from "../bridge/index.ts";
import {
  type AddressSpace,
  type PagingMode,
  Translation,
  translate,
  translateHalves,
} from "../memory/index.ts";
import { ALLOW } from "./gpa-hooks.ts";
import type { GvaHook } from "./gva-hooks.ts";
import type { TranslationWatch } from "./page-tables.ts";
import { entry, space, TablesGuest, word } from "./tables.fixture.ts";

type Mode = Exclude<PagingMode, "none">;
const SHIFTS: Record<Mode, number[]> = {
  "32": [22, 12],
  pae: [30, 21, 12],
  "4level": [39, 30, 21, 12],
  "5level": [48, 39, 30, 21, 12],
};
const RAM = 0x100000;
/** Pages 1..20 are tables, the others frames. */
const TABLES = 20;
const WATCHES = 16;
const ROUNDS = 700;

/** Numbers below n, the same in every run (mulberry32). */
function random(seed: number): (n: number) => number {
  let state = seed;
  return (n) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % n;
  };
}

class Model {
  readonly guest = new TablesGuest();
  readonly shifts: number[];
  readonly size: number;
  readonly spaces: AddressSpace[];
  readonly watches: { watch: TranslationWatch; space: AddressSpace; gva: number }[] = [];
  readonly gvaHooks: { hook: GvaHook; space: AddressSpace; gva: number }[] = [];
  readonly #walk = new Translation();
  problems: string[] = [];

  constructor(
    readonly mode: Mode,
    readonly next: (n: number) => number,
  ) {
    this.shifts = SHIFTS[mode];
    this.size = mode === "32" ? 4 : 8;
    const features = {
      pse: next(4) > 0,
      nxe: next(4) > 0,
      physicalBits: next(2) === 0 ? 52 : 36,
    };
    const pae = mode === "pae" ? 0x20 * next(64) : 0;
    this.spaces = [space(0x1000 + pae, mode, features), space(0x2000 + pae, mode, features)];
    for (let page = 1; page <= TABLES; page++) {
      for (let i = 0; i < 40; i++) {
        const [gpa, bytes] = this.entryWrite(page);
        if (gpa + bytes.length <= RAM) this.guest.memory.write(gpa, Uint8Array.from(bytes));
      }
    }
  }

  /** Few indices, so that addresses and writes meet. */
  index(): number {
    const entries = this.size === 4 ? 1024 : 512;
    return [0, 1, entries / 2, entries - 1][this.next(4)] as number;
  }

  gva(): number {
    let gva = 0n;
    for (const shift of this.shifts) {
      const i = this.mode === "pae" && shift === 30 ? this.index() & 3 : this.index();
      gva |= BigInt(i) << BigInt(shift);
    }
    const top = { "32": 64, pae: 64, "4level": 48, "5level": 57 }[this.mode];
    return Number(BigInt.asIntN(top, gva));
  }

  entryValue(pdpte = false): number[] {
    const { next } = this;
    const flags =
      pdpte && next(8) > 0
        ? 1
        : (next(6) > 0 ? 1 : 0) | (next(4) > 0 ? 6 : next(8)) | (next(6) === 0 ? 0x80 : 0);
    // A large page's address is aligned, mostly.
    let address = next(3) > 0 ? 1 + next(TABLES) : next(RAM / 0x1000 + 8);
    if ((flags & 0x80) !== 0 && next(4) > 0) address = 0;
    const noise = next(3) === 0 ? next(0x1000) & (pdpte ? 0xe00 : 0xe60) : 0;
    const lo = (address * 0x1000) | flags | noise;
    if (this.size === 4) return word(lo);
    const hi = next(12) === 0 ? next(0x100000) : 0;
    return entry(lo, (hi | (next(8) === 0 && !pdpte ? 0x80000000 : 0)) >>> 0);
  }

  /** Where an entry is written, and with what: whole, a half, bytes, two at once. */
  entryWrite(page: number): [number, number[]] {
    const { next, size } = this;
    const root = this.spaces?.[page - 1]?.root;
    const pdpte = this.mode === "pae" && root !== undefined && next(4) > 0;
    const table = pdpte ? root : page * 0x1000;
    const i = pdpte ? this.index() & 3 : this.index();
    const gpa = table + i * size;
    const value = this.entryValue(pdpte);
    switch (next(8)) {
      case 0:
        return [gpa, value.slice(0, size / 2)];
      case 1:
        return [gpa + size / 2, value.slice(size / 2)];
      case 2: {
        const at = next(size);
        return [gpa + at, value.slice(at, at + 1)];
      }
      case 3:
        return [gpa, [...value, ...this.entryValue()]];
      case 4: {
        // Over an entry's edges, sometimes over the page's.
        const at = gpa - 1 - next(12);
        return [Math.max(0, at), [...value, ...this.entryValue()]];
      }
      default:
        return [gpa, value];
    }
  }

  reference(where: AddressSpace, gva: number): Translation {
    const t = this.#walk;
    const { memory } = this.guest;
    if (this.mode === "5level") {
      const bits = BigInt.asUintN(64, BigInt(gva));
      const [lo, hi] = [Number(bits & 0xffffffffn), Number(bits >> 32n)];
      translateHalves(memory, where.root, where.mode, lo, hi, t, where.features);
    } else translate(memory, where.root, where.mode, gva, t, where.features);
    return t;
  }

  /** Every page of every hook. */
  *gvaPages(): Generator<{ hook: GvaHook; space: AddressSpace; gva: number }> {
    for (const { hook, space: where, gva } of this.gvaHooks) {
      for (let page = 0; page < hook.pageCount; page++) {
        yield { hook, space: where, gva: gva + page * 0x1000 };
      }
    }
  }

  /** Every watch, hook and right against memory. */
  compare(when: string): void {
    const { guest } = this;
    const noWrite = new Set<number>();
    const noFetch = new Set<number>();
    const path = (where: AddressSpace, gva: number): Translation => {
      const t = this.reference(where, gva);
      for (let i = 0; i < t.depth; i++) noWrite.add(Math.floor((t.entryGpa[i] as number) / 0x1000));
      return t;
    };
    for (const { watch, space: where, gva } of this.watches) {
      const t = path(where, gva);
      const { mapping } = watch;
      const same =
        watch.gpaOf(gva) === t.gpa &&
        mapping.gpa === t.gpa &&
        mapping.pageSize === t.pageSize &&
        mapping.writable === t.writable &&
        mapping.user === t.user &&
        mapping.nx === t.nx;
      if (!same) this.problems.push(`${when}: ${gva} is at ${mapping.gpa}, not ${t.gpa}`);
    }
    for (const { hook, space: where, gva } of this.gvaPages()) {
      const t = path(where, gva);
      const gpa = hook.gpaOf(gva);
      if (gpa !== t.gpa) this.problems.push(`${when}: hook ${gva} at ${gpa}, not ${t.gpa}`);
      if (t.gpa < 0 || t.gpa >= RAM) continue;
      (hook.right === HVI_W ? noWrite : noFetch).add(t.gpa / 0x1000);
    }
    const sorted = (set: Set<number>): number[] => [...set].sort((a, b) => a - b);
    const told = (right: number): string => guest.without(right).join();
    if (told(HVI_W) !== sorted(noWrite).join()) {
      this.problems.push(`${when}: not writable ${told(HVI_W)}, not ${sorted(noWrite).join()}`);
    }
    if (told(HVI_X) !== sorted(noFetch).join()) {
      this.problems.push(`${when}: not executable ${told(HVI_X)}, not ${sorted(noFetch).join()}`);
    }
  }

  /**
   * Right after a write, before any other exit: what memory says must be covered, whether or not the
   * instruction has come through, and what was foreseen is there if it has.
   */
  compareAtOnce(happened: boolean): void {
    const { guest } = this;
    for (const { watch, space: where, gva } of this.watches) {
      const t = this.reference(where, gva);
      if (happened) expect(watch.gpaOf(gva)).toBe(t.gpa);
      for (let i = 0; i < t.depth; i++) {
        expect(guest.rights(Math.floor((t.entryGpa[i] as number) / 0x1000)) & HVI_W).toBe(0);
      }
    }
    for (const { hook, space: where, gva } of this.gvaPages()) {
      const { gpa } = this.reference(where, gva);
      if (happened) expect(hook.gpaOf(gva)).toBe(gpa);
      if (gpa >= 0 && gpa < RAM) expect(guest.rights(gpa / 0x1000) & hook.right).toBe(0);
    }
  }

  addOne(): void {
    const { next, guest } = this;
    const where = this.spaces[next(2)] as AddressSpace;
    const gva = this.gva();
    if (next(2) === 0) {
      const watch = guest.tables.watch(where, gva, gva + 0x1000, {});
      if (watch !== undefined) this.watches.push({ watch, space: where, gva });
    } else {
      const right = next(2) === 0 ? HVI_W : HVI_X;
      const end = 0x1000 * (next(3) === 0 ? 2 + next(600) : 1);
      const hook = guest.gva.add(where, gva, right, () => ALLOW, { end });
      if (hook !== undefined) this.gvaHooks.push({ hook, space: where, gva });
    }
    guest.hooks.commit();
  }

  removeOne(): void {
    const { next, guest } = this;
    if (next(2) === 0 && this.watches.length > 0) {
      const [gone] = this.watches.splice(next(this.watches.length), 1);
      if (gone !== undefined) guest.tables.unwatch(gone.watch);
    } else if (this.gvaHooks.length > 0) {
      const [gone] = this.gvaHooks.splice(next(this.gvaHooks.length), 1);
      if (gone !== undefined) guest.gva.remove(gone.hook);
    }
    guest.hooks.commit();
  }
}

test.each<[Mode, number]>([
  ["32", 1],
  ["32", 2],
  ["pae", 3],
  ["pae", 4],
  ["4level", 5],
  ["4level", 6],
  ["4level", 7],
  ["5level", 8],
  ["5level", 9],
])("%s tables written at random (%p) translate for the watches as for the CPU", (mode, seed) => {
  const next = random(seed);
  const model = new Model(mode, next);
  const { guest } = model;
  for (let i = 0; i < WATCHES; i++) model.addOne();
  model.compare("at the start");
  for (let round = 0; round < ROUNDS && model.problems.length === 0; round++) {
    // Mostly to a table that is on a watched way.
    const ways = guest.without(HVI_W).filter((gfn) => gfn <= TABLES);
    const page = next(4) > 0 && ways.length > 0 ? ways[next(ways.length)] : 1 + next(TABLES);
    const [gpa, bytes] = model.entryWrite(page as number);
    if (gpa + bytes.length > RAM) continue;
    const known = next(6) > 0;
    const happens = next(8) > 0;
    const what = `round ${round}, ${bytes.length} at ${gpa.toString(16)}${known ? "" : ", unknown"}`;
    if (next(10) === 0) {
      guest.memory.write(gpa, Uint8Array.from(bytes));
      guest.tables.resync(Math.floor(gpa / 0x1000));
      guest.tables.resync(Math.floor((gpa + bytes.length - 1) / 0x1000));
      guest.hooks.commit();
    } else guest.write(gpa, bytes, { known, happens });
    if (known) model.compareAtOnce(happens);
    guest.exit();
    model.compare(what);
    if (next(40) === 0) {
      model.removeOne();
      model.addOne();
      model.compare(`${what}, another watch`);
    }
  }
  expect(model.problems).toEqual([]);
  expect(guest.tables.counters.changes).toBeGreaterThan(100);
  while (model.watches.length + model.gvaHooks.length > 0) model.removeOne();
  guest.exit();
  expect(guest.isUntouched()).toBe(true);
  expect(guest.tables.pageCount).toBe(0);
  expect(guest.tables.nodeCount).toBe(0);
  expect(guest.hooks.pageCount).toBe(0);
});
