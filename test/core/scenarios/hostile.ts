// SPDX-License-Identifier: MIT
/** Page tables as no system makes them, and changes at the worst moment: bounded, no throw, no missed denial. */
import { HVI_W } from "../../../src/bridge/index.ts";
import { ALLOW, DENY } from "../../../src/ept/gpa-hooks.ts";
import { ENTRY, LEVELS, PAGE, RAM_SIZE, TARGET, USER_PAGE, WORD } from "../layout.ts";
import { Answer, hex, type Scenario, type Trial } from "../scenario.ts";
import type { Space } from "../space.ts";

/** Entries that point where no table or page is. */
const nowhere = (t: Trial): bigint[] => {
  const all = [RAM_SIZE, RAM_SIZE + 0x12345000, 0xfee00000, 0xfffff000];
  const wide = [0xf_ffff_f000, 0x7_ffff_ffff_f000];
  return [...all, ...(t.mode === "p32" ? [] : wide)].map((a) => BigInt(a) + BigInt(USER_PAGE));
};

function watched(t: Trial, space: Space, va: number, pages: number) {
  const watch = t.core.tables.watch(space.memory, va, va + pages * PAGE, {
    after: () => undefined,
  });
  const deny = new Answer(DENY);
  const hook = t.core.gva.add(space.memory, va, HVI_W, deny.handler);
  if (!watch || !hook) throw new Error("the range cannot be watched");
  t.core.hooks.commit();
  return {
    watch,
    hook,
    deny,
    end: () => {
      t.core.gva.remove(hook);
      t.core.tables.unwatch(watch);
      t.core.hooks.commit();
    },
  };
}

const store = (t: Trial, space: Space, va: number): number =>
  t.guest.run("mov4_st", { ring: 3, space, registers: { ax: 0x666, di: va } }).fault;

const pointers: Scenario = {
  name: "hostile.entries-to-nowhere",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1);
    const w = watched(t, space, va, 64);
    for (let level = 1; level <= LEVELS[t.mode]; level++) {
      // PDPTEs with reserved bits make MOV CR3 fault, in the guest's own kernel.
      if (t.mode === "pae" && level === 3) continue;
      const own = t.guest.get64(space.entryAt(va, level));
      for (const value of nowhere(t)) {
        space.write(va, value, "mov", level);
        // What the CPU makes of such an entry is seen elsewhere; the engine has to bear it.
        t.check(!(w.hook.gpa >= 0 && w.hook.gpa < RAM_SIZE), `the hook is at ${hex(w.hook.gpa)}`);
      }
      space.write(va, ENTRY[t.mode] === 8 ? own : BigInt.asUintN(32, own), "mov", level);
      t.same("frame again", w.hook.gpa, frame);
      t.same("exception", store(t, space, va), -1);
      t.same("memory", t.guest.memory.read32(frame!), 0);
    }
    t.line(`denied ${w.deny.calls}`);
    w.end();
  },
};

const loops: Scenario = {
  name: "hostile.tables-in-a-circle",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1);
    const w = watched(t, space, va, 1024);
    for (let level = 2; level <= LEVELS[t.mode]; level++) {
      if (t.mode === "pae" && level === 3) continue;
      const entry = space.entryAt(va, level);
      const own = t.guest.get64(entry);
      // The table that holds the entry, as the table below it.
      const self = Math.floor(entry / PAGE) * PAGE + USER_PAGE;
      space.write(va, self, "mov", level);
      space.write(va, ENTRY[t.mode] === 8 ? own : BigInt.asUintN(32, own), "mov", level);
      t.same("frame again", w.hook.gpa, frame);
    }
    t.same("exception", store(t, space, va), -1);
    t.same("memory", t.guest.memory.read32(frame!), 0);
    w.end();
    // Every entry of the top table's lower half is the table itself.
    const all = t.guest.space();
    const half = t.mode === "pae" ? 3 : PAGE / ENTRY[t.mode] / 2;
    for (let i = 0; i < half; i++) {
      const at = all.root + i * ENTRY[t.mode];
      const value = BigInt(all.root + (t.mode === "pae" ? 1 : USER_PAGE));
      if (ENTRY[t.mode] === 8) t.guest.put64(at, value);
      else t.guest.memory.write32(at, Number(value));
    }
    const wide = t.core.tables.watch(all.memory, 0, 0x40000000, { after: () => undefined });
    t.check(t.core.tables.nodeCount <= 65536, `${t.core.tables.nodeCount} places of tables`);
    const narrow = new Answer(DENY);
    const hook = t.core.gva.add(all.memory, va, HVI_W, narrow.handler);
    t.core.hooks.commit();
    t.line(`complete ${wide?.complete}`);
    if (hook) t.core.gva.remove(hook);
    if (wide) t.core.tables.unwatch(wide);
    t.core.hooks.commit();
  },
};

/** The host (or another CPU) writes an entry while it is watched: what was missed is found by resync. */
const behind: Scenario = {
  name: "hostile.changed-behind-the-back",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [first] = space.mapNew(va, 1);
    const second = t.guest.frame();
    const w = watched(t, space, va, 1);
    const entry = space.entryAt(va);
    t.guest.memory.write32(entry, second + USER_PAGE);
    t.core.tables.resync(Math.floor(entry / PAGE));
    t.core.hooks.commit();
    t.same("frame", w.hook.gpa, second);
    t.same("exception", store(t, space, va), -1);
    t.same("memory", t.guest.memory.read32(second), 0);
    // Between the exit of a write to the entry and the write itself.
    let once = true;
    const meddle = t.core.hooks.add(
      Math.floor(entry / PAGE),
      HVI_W,
      () => {
        if (once) t.guest.memory.write32(entry, 0);
        once = false;
        return ALLOW;
      },
      { priority: 9 },
    );
    t.core.hooks.commit();
    space.map(va, first!, USER_PAGE, "xchg");
    t.core.hooks.remove(meddle);
    t.core.hooks.commit();
    t.same("frame", w.hook.gpa, first);
    t.same("exception", store(t, space, va), -1);
    t.same("memory", t.guest.memory.read32(first!), 0);
    w.end();
  },
};

/** An instruction writes its own page's entry, and is where it writes. */
const addresses: Scenario = {
  name: "hostile.addresses",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const frames = space.mapNew(va, 2);
    const deny = new Answer(DENY);
    const hooks = frames.map((f) => t.core.hooks.add(f / PAGE, HVI_W, deny.handler));
    t.core.hooks.commit();
    const word = WORD[t.mode];
    const ends =
      word === 8 ? [-1n, 0x7fff_ffff_ffffn, -0x8000_0000_0000n, 1n << 63n] : [0xffffffffn];
    for (const di of ends) {
      for (const stub of ["mov4_st", "movups_st", "rep_stosl", "push_st", "cmpxchg8b"]) {
        const o = t.guest.run(stub, { ring: 3, space, registers: { di, cx: 100 } });
        t.check(o.fault !== -1, `${stub} at ${di.toString(16)}: no exception`);
      }
    }
    // A string with no end: it stops at the first page that is not there.
    const most = word === 8 ? (1n << 64n) - 1n : 0xffffffffn;
    const o = t.guest.run("rep_stosl", { ring: 3, space, registers: { di: va + 4, cx: most } });
    t.same("exception", o.fault, 14);
    t.same("address", o.address, BigInt(va + 2 * PAGE));
    t.same("calls", deny.calls, (2 * PAGE - 4) / 4);
    for (const f of frames)
      t.check(
        t.guest.bytes(f, PAGE).every((b) => b === 0),
        "memory changed",
      );
    for (const h of hooks) t.core.hooks.remove(h);
  },
};

/** A hooked page whose entry is rewritten as fast as can be. */
const moving: Scenario = {
  name: "hostile.moving-page",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [first, second] = [t.guest.frame(), t.guest.frame()];
    space.map(va, first);
    const w = watched(t, space, va, 1);
    const values = [second + USER_PAGE, first + USER_PAGE] as const;
    const count = Math.ceil(t.effort.storm / 10);
    for (let n = 0; n < 10; n++) {
      t.guest.call("storm", space.root, va, 1, ...values, count + (n & 1));
      t.same("frame", w.hook.gpa, space.memory.gpaOf(va));
      t.same("exception", store(t, space, va), -1);
    }
    t.same("memory", t.guest.memory.read32(first) + t.guest.memory.read32(second), 0);
    t.same("calls", w.deny.calls, 10);
    w.end();
  },
};

export const hostile: readonly Scenario[] = [pointers, loops, behind, addresses, moving];
