// SPDX-License-Identifier: MIT
/** Code that runs from pages written before. */
import type { UnpackerEvents } from "../../../src/ept/unpacker.ts";
import { PAGE, TARGET } from "../layout.ts";
import { hex, type Scenario, type Trial } from "../scenario.ts";
import type { Space } from "../space.ts";

/** ret, and fill */
const RETS = 0xc3c3c3c3;

const write = (t: Trial, space: Space, va: number): number =>
  t.guest.run("mov4_st", { ring: 3, space, registers: { ax: RETS, di: va } }).fault;
const call = (t: Trial, space: Space, va: number): number =>
  t.guest.run("call_ax", { ring: 3, space, registers: { ax: va } }).fault;

function unpacked(t: Trial, pages = 1, events: Partial<UnpackerEvents> = {}) {
  const space = t.guest.space();
  const va = TARGET[t.mode];
  const frames = space.mapNew(va, pages);
  for (const f of frames) t.guest.ram.fill(0xc3, f, f + PAGE);
  const { unpacker } = t.core;
  const told: string[] = [];
  const page = unpacker.watch(space.memory, va, {
    unpacked: (p, gva) => told.push(`${hex(gva - va)} after ${p.writes}`),
    ...events,
  });
  if (!page) throw new Error("the page cannot be watched");
  t.core.hooks.commit();
  return { space, va, unpacker, page, told };
}

const once: Scenario = {
  name: "unpacker.execute-after-write",
  run: (t) => {
    const { space, va, unpacker, page, told } = unpacked(t);
    call(t, space, va + 16);
    t.same("told of a page not written", told.join(), "");
    write(t, space, va + 100);
    t.same("told of a write", told.join(), "");
    t.same("exception", call(t, space, va + 100), -1);
    t.same("told", told.join(), "0x64 after 1");
    // Once only, until it is armed again.
    write(t, space, va + 200);
    call(t, space, va + 200);
    t.same("told", told.length, 1);
    unpacker.rearm(page);
    t.core.hooks.commit();
    call(t, space, va + 200);
    t.same("told before the next write", told.length, 1);
    for (let n = 0; n < 40; n++) write(t, space, va + 4 * n);
    call(t, space, va + 8);
    t.same("told after many writes", told[1], "0x8 after 32");
    unpacker.unwatch(page);
    t.core.hooks.commit();
    t.same("pages", unpacker.count, 0);
  },
};

const swap: Scenario = {
  name: "unpacker.swap",
  run: (t) => {
    const { space, va, unpacker, page, told } = unpacked(t);
    write(t, space, va);
    space.swapOut(va);
    // The fetch brings it in, at another frame.
    t.same("exception", call(t, space, va), -1);
    t.same("told", told.join(), "0x0 after 1");
    unpacker.rearm(page);
    t.core.hooks.commit();
    space.swapOut(va);
    write(t, space, va + 64);
    space.swapOut(va);
    call(t, space, va + 64);
    t.same("told again", told[1], "0x40 after 1");
    unpacker.unwatchSpace(space.memory);
    t.core.hooks.commit();
    t.same("pages", unpacker.count, 0);
  },
};

const legitimate: Scenario = {
  name: "unpacker.legitimate-writes",
  run: (t) => {
    const { space, va, unpacker, page, told } = unpacked(t, 1, {
      minWrites: 3,
      isLegitimate: (_, gva) => gva - TARGET[t.mode] < 0x100,
    });
    for (let n = 0; n < 10; n++) write(t, space, va + 4 * n);
    call(t, space, va);
    t.same("told of a loader's writes", told.join(), "");
    for (let n = 1; n <= 3; n++) {
      write(t, space, va + 0x100 * n);
      call(t, space, va + 0x100 * n);
      t.same(`told after ${n} writes`, told.join(), n === 3 ? "0x300 after 3" : "");
    }
    unpacker.unwatch(page);
  },
};

export const unpackers: readonly Scenario[] = [once, swap, legitimate];
