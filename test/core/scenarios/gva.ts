// SPDX-License-Identifier: MIT
/** Hooks on linear addresses: they hold wherever the page goes. */
import { HVI_R, HVI_W, HVI_X } from "../../../src/bridge/index.ts";
import { ALLOW, DENY, type HookAction } from "../../../src/ept/gpa-hooks.ts";
import type { GvaHook, GvaHookOptions } from "../../../src/ept/gva-hooks.ts";
import { LARGE, LARGE_SIZE, LEVELS, PAGE, SOURCE, TARGET, USER_PAGE } from "../layout.ts";
import { hex, type Scenario, type Trial } from "../scenario.ts";
import { SETTERS, SETTERS_64, type Space } from "../space.ts";

/** A hook on a page of a space, and what it was told. */
class Hooked {
  readonly hook: GvaHook;
  readonly seen: string[] = [];
  readonly moves: string[] = [];
  action: HookAction = DENY;

  constructor(
    readonly t: Trial,
    readonly space: Space,
    readonly va: number,
    right: number = HVI_W,
    options: GvaHookOptions = {},
  ) {
    const hook = t.core.gva.add(
      space.memory,
      va,
      right,
      (access, _, gva) => {
        this.seen.push(`${hex(gva - va)}+${access.size}`);
        return this.action;
      },
      { moved: (_, from, to) => this.moves.push(`${hex(from)} -> ${hex(to)}`), ...options },
    );
    if (!hook) throw new Error("the page cannot be hooked");
    this.hook = hook;
    t.core.hooks.commit();
  }

  /** A store from ring 3 into the hooked page is denied. */
  holds(what: string): void {
    const { t, space, va } = this;
    const before = this.seen.length;
    const gpa = space.memory.gpaOf(va);
    const old = t.guest.memory.read32(gpa);
    t.same(`${what}: exception`, store(t, space, va, 0x77777777), -1);
    const now = space.memory.gpaOf(va);
    t.same(`${what}: frame of the hook`, this.hook.gpa, now);
    t.check(this.seen.length > before, `${what}: the hook was not called`);
    if (gpa >= 0) t.same(`${what}: memory`, t.guest.memory.read32(now), old);
  }
  end(): void {
    this.t.core.gva.remove(this.hook);
    this.t.core.hooks.commit();
  }
}

function store(t: Trial, space: Space, va: number, ax: number): number {
  return t.guest.run("mov4_st", { ring: 3, space, registers: { ax, di: va } }).fault;
}

const remap: Scenario = {
  name: "gva.remap",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const frames = [t.guest.frame(), t.guest.frame()];
    space.map(va, frames[0]!);
    const h = new Hooked(t, space, va);
    h.holds("at first");
    const writers = t.mode === "p32" ? SETTERS : [...SETTERS, ...SETTERS_64];
    for (const [i, writer] of writers.entries()) {
      space.map(va, frames[(i + 1) % 2]!, USER_PAGE, writer);
      h.holds(`remapped by ${writer}`);
      // The frame of before is free again: seen through another address.
      space.map(SOURCE[t.mode], frames[i % 2]!);
      t.same("store beside", store(t, space, SOURCE[t.mode], i), -1);
      t.same("memory beside", t.guest.memory.read32(frames[i % 2]!), i);
      // The hooked frame is hooked by whatever address.
      space.map(SOURCE[t.mode], frames[(i + 1) % 2]!);
      const was = t.guest.memory.read32(frames[(i + 1) % 2]!);
      store(t, space, SOURCE[t.mode], 0x12121212);
      t.same("memory by the alias", t.guest.memory.read32(frames[(i + 1) % 2]!), was);
    }
    t.line(h.moves.join(", "));
    h.end();
    t.same("store without hooks", store(t, space, va, 5), -1);
    t.same("memory", t.guest.memory.read32(space.memory.gpaOf(va)), 5);
  },
};

const swapped: Scenario = {
  name: "gva.swap",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    space.mapNew(va, 1);
    const h = new Hooked(t, space, va);
    for (let n = 0; n < 3; n++) {
      space.swapOut(va);
      t.same("frame while out", h.hook.gpa, -1);
      // The store itself brings it in.
      h.holds(`swapped ${n}`);
    }
    t.line(h.moves.join(", "));
    space.swapOut(va);
    h.end();
    store(t, space, va, 9);
    t.same("memory without hooks", t.guest.memory.read32(space.memory.gpaOf(va)), 9);
  },
};

/** Set on an address that nothing is mapped at yet. */
const absent: Scenario = {
  name: "gva.absent",
  run: (t) => {
    const space = t.guest.space();
    const va = 0x40000000 + 0x5000;
    const h = new Hooked(t, space, va);
    t.same("frame", h.hook.gpa, -1);
    t.same("exception", store(t, space, va, 1), 14);
    space.mapLarge(0x40000000, LARGE);
    h.holds("a large page");
    space.split(va);
    h.holds("split");
    space.map(va, t.guest.frame());
    h.holds("a page of its own");
    space.merge(va);
    h.holds("merged");
    space.write(0x40000000, 0, "mov", 2);
    t.same("exception", store(t, space, va, 1), 14);
    space.mapLarge(0x40000000, LARGE + LARGE_SIZE[t.mode]);
    h.holds("another large page");
    t.line(h.moves.join(", "));
    h.end();
  },
};

const ranges: Scenario = {
  name: "gva.ranges",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    space.mapNew(va, 4);
    const h = new Hooked(t, space, va, HVI_W, { start: PAGE - 8, end: 3 * PAGE + 8 });
    for (const [offset, should] of [
      [PAGE - 12, ""],
      [PAGE - 10, "0xff6+4"],
      [PAGE - 2, "0xffe+2 0x1000+2"],
      [2 * PAGE, "0x2000+4"],
      [3 * PAGE + 6, "0x3006+4"],
      [3 * PAGE + 8, ""],
    ] as const) {
      h.seen.length = 0;
      store(t, space, va + offset, 1);
      t.same(`told of ${hex(offset)}`, h.seen.join(" "), should);
    }
    h.end();
  },
};

const rights: Scenario = {
  name: "gva.rights",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1);
    // inc %eax; ret
    t.guest.ram.set([0x83, 0xc0, 0x01, 0xc3], frame);
    const all = [HVI_R, HVI_W, HVI_X].map((right) => {
      const h = new Hooked(t, space, va, right);
      h.action = ALLOW;
      return h;
    });
    for (const [stub, registers, should] of [
      ["mov4_ld", { si: va + 8 }, "1 0 0"],
      ["mov4_st", { di: va + 8 }, "0 1 0"],
      ["add4", { di: va + 8, ax: 3 }, "1 1 0"],
      ["call_ax", { ax: va }, "0 0 2"],
    ] as const) {
      for (const h of all) h.seen.length = 0;
      const done = t.guest.run(stub, { ring: 3, space, registers });
      t.same(`exception of ${stub}`, done.fault, -1);
      t.same(`told of ${stub}`, all.map((h) => h.seen.length).join(" "), should);
    }
    t.same("memory", t.guest.memory.read32(frame! + 8), 3);
    for (const h of all) h.end();
  },
};

const removed: Scenario = {
  name: "gva.removed-inside",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    space.mapNew(va, 2);
    const seen: string[] = [];
    const { gva } = t.core;
    const inHandler = gva.add(space.memory, va, HVI_W, (_, hook) => {
      seen.push("called");
      gva.remove(hook);
      return ALLOW;
    });
    const inMoved = gva.add(space.memory, va + PAGE, HVI_W, () => DENY, {
      moved: (hook) => {
        seen.push("moved");
        gva.remove(hook);
      },
    });
    t.core.hooks.commit();
    store(t, space, va, 1);
    store(t, space, va, 2);
    t.same("memory", t.guest.memory.read32(space.memory.gpaOf(va)), 2);
    store(t, space, va + PAGE, 3);
    space.map(va + PAGE, t.guest.frame());
    store(t, space, va + PAGE, 4);
    t.same("memory once moved", t.guest.memory.read32(space.memory.gpaOf(va + PAGE)), 4);
    t.same("seen", seen.join(" "), "called moved");
    t.check(!!inHandler?.removed && !!inMoved?.removed, "not removed");
  },
};

/** The same linear address in several spaces, the frame shared by two of them. */
const spaces: Scenario = {
  name: "gva.several-spaces",
  run: (t) => {
    const va = TARGET[t.mode];
    const all = [1, 2, 3, 4].map(() => t.guest.space());
    const shared = t.guest.frame();
    for (const [i, s] of all.entries()) s.map(va, i < 2 ? shared : t.guest.frame());
    const hooks = [0, 2].map((i) => new Hooked(t, all[i]!, va));
    for (const [i, s] of all.entries()) {
      store(t, s, va, 0x100 + i);
      const told = hooks.map((h) => h.seen.splice(0).length).join(" ");
      t.same(`told of space ${i}`, told, ["1 0", "1 0", "0 1", "0 0"][i]);
    }
    t.same("the last one's memory", t.guest.memory.read32(all[3]!.memory.gpaOf(va)), 0x103);
    for (const h of hooks) h.end();
  },
};

/** Two roots with the same tables below, as page-table isolation has them. */
const pairs: Scenario = {
  name: "gva.root-pairs",
  run: (t) => {
    const va = TARGET[t.mode];
    const kernel = t.guest.space();
    kernel.mapNew(va, 1);
    const user = kernel.pair();
    const h = new Hooked(t, kernel, va);
    const beside = new Hooked(t, user, va);
    for (const [what, space] of [
      ["mapped under the one", kernel],
      ["mapped under the other", user],
    ] as const) {
      space.map(va, t.guest.frame());
      h.holds(what);
      for (const s of [kernel, user]) {
        const before = h.seen.length;
        t.same("exception", store(t, s, va, 1), -1);
        t.same("calls", h.seen.length - before, 1);
        t.same("memory", t.guest.memory.read32(s.memory.gpaOf(va)), 0);
      }
    }
    // One entry of one top table: the roots part.
    const frame = kernel.memory.gpaOf(va);
    user.write(va, 0, "xchg", LEVELS[t.mode]);
    t.same("hook under the one", h.hook.gpa, frame);
    t.same("hook under the other", beside.hook.gpa, -1);
    h.holds("after they part");
    h.end();
    beside.end();
  },
};

export const gva: readonly Scenario[] = [
  remap,
  swapped,
  absent,
  ranges,
  rights,
  removed,
  spaces,
  pairs,
];
