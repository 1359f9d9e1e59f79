// SPDX-License-Identifier: MIT
/** Hooks on translations: every way and level of changing one. */
import { ALLOW, DENY, type HookAction } from "../../../src/ept/gpa-hooks.ts";
import type { MappingChange, TranslationWatch } from "../../../src/ept/page-tables.ts";
import { LARGE, LARGE_SIZE, LEVELS, PAGE, RW, SOURCE, TARGET, US, USER_PAGE } from "../layout.ts";
import { hex, type Scenario, type Trial } from "../scenario.ts";
import { SETTERS, SETTERS_64, type Space, type Writer } from "../space.ts";

const setters = (t: Trial): readonly Writer[] =>
  t.mode === "p32" ? SETTERS : [...SETTERS, ...SETTERS_64];

/** A watch of some pages that keeps what it is told. */
class Watched {
  readonly told: string[] = [];
  readonly watch: TranslationWatch;
  /** What `before` answers. */
  action: HookAction = ALLOW;
  asked = 0;

  constructor(
    readonly t: Trial,
    readonly space: Space,
    readonly va: number,
    pages = 1,
  ) {
    const watch = t.core.tables.watch(space.memory, va, va + pages * PAGE, {
      before: () => {
        this.asked++;
        return this.action;
      },
      after: (change) => this.told.push(this.#text(change)),
    });
    if (!watch) throw new Error("the range cannot be watched");
    this.watch = watch;
    t.core.hooks.commit();
  }

  #text(c: MappingChange): string {
    const rights = (m: MappingChange["after"]): string =>
      m.gpa < 0
        ? "none"
        : `${hex(m.gpa)}${m.writable ? "w" : ""}${m.user ? "u" : ""}${m.nx ? "" : "x"}`;
    return `level ${c.level} ${rights(c.before)} -> ${rights(c.after)}`;
  }
  /** What was told since the last call; the watch agrees with the guest's tables. */
  take(what: string): string[] {
    const { t, va, space } = this;
    t.same(`${what}: translation`, this.watch.gpaOf(va), space.memory.gpaOf(va));
    return this.told.splice(0);
  }
  end(): void {
    this.t.core.tables.unwatch(this.watch);
    this.t.core.hooks.commit();
  }
}

function twoFrames(t: Trial): { space: Space; va: number; first: number; second: number } {
  const [first, second] = [t.guest.frame(), t.guest.frame()] as [number, number];
  return { space: t.guest.space(), va: TARGET[t.mode], first, second };
}

const writers: Scenario = {
  name: "tables.every-writer",
  run: (t) => {
    const { space, va, first, second } = twoFrames(t);
    space.map(va + PAGE, first);
    const w = new Watched(t, space, va);
    for (const writer of setters(t)) {
      space.map(va, first, USER_PAGE, writer);
      const mapped = w.take(`mapped by ${writer}`);
      space.map(va, second, USER_PAGE, writer);
      const remapped = w.take(`remapped by ${writer}`);
      // The neighbour is nobody's business.
      space.map(va + PAGE, second, USER_PAGE, writer);
      t.same(`told of the neighbour by ${writer}`, w.take("neighbour").join(), "");
      space.unmap(va, writer);
      const unmapped = w.take(`unmapped by ${writer}`);
      // Single bytes make entries of their own on the way.
      for (const told of [mapped, remapped, unmapped]) {
        t.same(`told by ${writer}`, writer === "bytes" ? told.length > 0 : told.length === 1, true);
      }
      t.line(`${writer}: ${[mapped, remapped, unmapped].map((l) => l.join(", ")).join(" | ")}`);
      space.map(va + PAGE, first);
    }
    w.end();
  },
};

const rights: Scenario = {
  name: "tables.rights",
  run: (t) => {
    const { space, va, first } = twoFrames(t);
    space.map(va, first);
    const w = new Watched(t, space, va);
    const change = (operand: number, writer: Writer, should: string): void => {
      space.write(va, operand, writer);
      const told = w.take(writer).join(", ").replaceAll(hex(first), "").replace("level 1 ", "");
      t.same(`${writer} ${hex(operand)}`, told, should);
    };
    change(1, "btr", "wux -> ux");
    change(RW, "or", "ux -> wux");
    change(2, "lock_btr", "wux -> wx");
    change(US, "lock_or", "wx -> wux");
    change(RW, "xor", "wux -> ux");
    change(1, "bts", "ux -> wux");
    if (t.mode !== "p32") {
      change(63, "bts", "wux -> wu");
      change(63, "lock_btr", "wu -> wux");
    }
    // Accessed, dirty and the system's own bits are no change.
    change(0x60, "or", "");
    change(0xe00, "lock_or", "");
    change(5, "btr", "");
    // P away and back.
    change(0, "btr", "wux -> none");
    change(0, "bts", "none -> wux");
    t.same("frame", space.memory.gpaOf(va), first);
    w.end();
  },
};

const levels: Scenario = {
  name: "tables.levels",
  run: (t) => {
    const { space, va, first, second } = twoFrames(t);
    const other = t.guest.space();
    space.map(va, first);
    other.map(va, second);
    const w = new Watched(t, space, va);
    for (let level = 2; level <= LEVELS[t.mode]; level++) {
      // The same entry of the other space: its tables from there down.
      const own = t.guest.get64(space.entryAt(va, level));
      const theirs = t.guest.get64(other.entryAt(va, level));
      for (const value of [0n, theirs, own]) {
        space.write(va, t.mode === "p32" ? BigInt.asUintN(32, value) : value, "mov", level);
        const frame = value === 0n ? -1 : value === own ? first : second;
        t.same(`frame after level ${level}`, w.watch.gpaOf(va), frame);
        const told = w.take(`level ${level}`);
        t.same(`times told of level ${level}`, told.length, 1);
        t.line(told.join(", "));
      }
    }
    w.end();
  },
};

const large: Scenario = {
  name: "tables.large-pages",
  run: (t) => {
    const space = t.guest.space();
    const base = 0x40000000;
    const va = base + 0x7000;
    space.mapLarge(base, LARGE);
    const w = new Watched(t, space, va);
    const step = (go: () => void, should: string): void => {
      go();
      t.same("told", w.take(should).join(", "), should);
    };
    const here = LARGE + 0x7000;
    const [at, next] = [hex(here), hex(here + LARGE_SIZE[t.mode])];
    const own = t.guest.frame();
    step(() => space.split(va), `level 2 ${at}wux -> ${at}wux`);
    step(() => space.map(va, own), `level 1 ${at}wux -> ${hex(own)}wux`);
    step(() => space.merge(va), `level 2 ${hex(own)}wux -> ${at}wux`);
    const second = LARGE + LARGE_SIZE[t.mode];
    step(() => space.mapLarge(base, second), `level 2 ${at}wux -> ${next}wux`);
    step(() => space.write(base, 1, "btr", 2), `level 2 ${next}wux -> ${next}ux`);
    step(() => space.write(base, 0, "xchg", 2), `level 2 ${next}ux -> none`);
    w.end();
  },
};

const denied: Scenario = {
  name: "tables.denied",
  run: (t) => {
    const { space, va, first, second } = twoFrames(t);
    space.map(va, first);
    const w = new Watched(t, space, va);
    w.action = DENY;
    for (const writer of setters(t)) {
      w.asked = 0;
      space.map(va, second, USER_PAGE, writer);
      t.check(w.asked > 0, `${writer}: not asked`);
      t.same(`frame after ${writer}`, space.memory.gpaOf(va), first);
      t.same(`told by ${writer}`, w.take(writer).join(), "");
    }
    // One level up.
    space.write(va, 0, "xchg", 2);
    t.same("frame", space.memory.gpaOf(va), first);
    w.action = ALLOW;
    space.map(va, second);
    t.same("frame once allowed", space.memory.gpaOf(va), second);
    w.end();
  },
};

/** A process that ends: its tables are cleared by REP STOS, and given to another. */
const exit: Scenario = {
  name: "tables.exit-of-a-space",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    space.mapNew(va, 3);
    const all = [0, 1, 2].map((i) => new Watched(t, space, va + i * PAGE));
    const range = new Watched(t, space, va, 3);
    space.destroy();
    for (const w of all) {
      t.same("translation", w.watch.gpaOf(w.va), -1);
      t.check(w.told.length > 0, "not told");
    }
    t.check(range.told.length >= 3, "the range was told too little");
    // The frames' next owners write what looks like entries.
    const next = t.guest.space();
    next.mapNew(va, 3);
    for (const w of [...all, range]) w.end();
  },
};

const swap: Scenario = {
  name: "tables.swap",
  run: (t) => {
    const space = t.guest.space();
    const va = SOURCE[t.mode];
    const [frame] = space.mapNew(va, 1);
    const w = new Watched(t, space, va);
    for (let n = 0; n < 3; n++) {
      space.swapOut(va);
      t.same("translation when out", w.watch.gpaOf(va), -1);
      t.guest.run("mov4_ld", { ring: 3, space, registers: { si: va } });
      t.check(w.watch.gpaOf(va) >= 0, "no translation when in again");
    }
    t.check(w.watch.gpaOf(va) !== frame, "the same frame");
    t.line(w.take("swapped").join(", "));
    w.end();
  },
};

const spaces: Scenario = {
  name: "tables.several-spaces",
  run: (t) => {
    const va = TARGET[t.mode];
    const all = [1, 2, 3, 4].map(() => t.guest.space());
    const frames = all.map((s) => s.mapNew(va, 1)[0] as number);
    const watched = all.map((s) => new Watched(t, s, va));
    for (const [i, s] of all.entries()) {
      s.enter();
      s.map(va, frames[(i + 1) % 4]!);
    }
    for (const [i, w] of watched.entries()) t.line(`space ${i}: ${w.take("remapped").join(", ")}`);
    for (const w of watched) w.end();
  },
};

/** The top table as one of its own tables: its entries are written at linear addresses. */
const selfMap: Scenario = {
  name: "tables.self-map",
  modes: ["long", "p32"],
  run: (t) => {
    const { space, va, first, second } = twoFrames(t);
    space.map(va, first);
    const [bits, size, self] = t.mode === "long" ? [9, 8, 200] : [10, 4, 700];
    const top = t.mode === "long" ? 48 : 32;
    // Linear address of the entry of va, through the self-map.
    const entry = self * 2 ** (top - bits) + Math.floor(va / PAGE) * size;
    const slot = self * 2 ** (top - bits);
    space.write(slot, space.root + USER_PAGE, "mov", LEVELS[t.mode]);
    const w = new Watched(t, space, va);
    const stub = t.mode === "long" ? "mov8_st" : "mov4_st";
    const o = { space, registers: { ax: second + USER_PAGE, di: entry } };
    t.same("exception", t.guest.run(stub, o).fault, -1);
    t.same("frame", space.memory.gpaOf(va), second);
    t.line(w.take("through the self-map").join(", "));
    w.action = DENY;
    t.guest.run(stub, { space, registers: { ax: first + USER_PAGE, di: entry } });
    t.same("frame", space.memory.gpaOf(va), second);
    w.end();
    // All of it at once: every table is at every level.
    const all = new Watched(t, space, slot, 1024);
    t.line(`complete ${all.watch.complete}`);
    all.end();
  },
};

export const tables: readonly Scenario[] = [
  writers,
  rights,
  levels,
  large,
  denied,
  exit,
  swap,
  spaces,
  selfMap,
];
