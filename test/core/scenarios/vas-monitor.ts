// SPDX-License-Identifier: MIT
/** Monitors of address spaces: every change of a translation. */
import type { MappingChange } from "../../../src/ept/page-tables.ts";
import { LARGE, PAGE, SOURCE, TARGET, USER_PAGE } from "../layout.ts";
import { hex, type Scenario } from "../scenario.ts";

const text = (c: MappingChange): string => `level ${c.level} ${hex(c.start)}..${hex(c.end)}`;

const changes: Scenario = {
  name: "vas-monitor.changes",
  run: (t) => {
    const { monitor } = t.core;
    const [space, other] = [t.guest.space(), t.guest.space()];
    const told: string[] = [];
    const watch = monitor.start(space.memory, (c) => told.push(text(c)), { range: "user" });
    t.core.hooks.commit();
    const step = (what: string, go: () => void, times: number): void => {
      told.length = 0;
      go();
      t.same(`times told of ${what}`, told.length, times);
      t.line(`${what}: ${told.join(", ")}`);
    };
    // Tables that are made on the way are changes of their own.
    const [mapped, far, big] = { long: [4, 4, 2], pae: [3, 2, 1], p32: [2, 2, 1] }[t.mode];
    const [first, second] = [t.guest.frame(), t.guest.frame()];
    const va = TARGET[t.mode];
    step("a page", () => space.map(va, first), mapped);
    step("its neighbour", () => space.map(va + PAGE, second), 1);
    step("one far away", () => space.map(SOURCE[t.mode], second), far);
    step("a large page", () => space.mapLarge(0x40000000, LARGE), big);
    step("its splitting", () => space.split(0x40000000), 1);
    // Accessed and dirty bits are set.
    step("use", () => t.guest.run("mov4_st", { ring: 3, space, registers: { di: va } }), 0);
    step("the pager", () => space.swapOut(va), 1);
    step("rights", () => space.write(va + PAGE, 1, "btr"), 1);
    step("another space", () => other.map(va, first), 0);
    step("an end", () => space.unmap(va + PAGE), 1);
    step("the same again", () => space.map(SOURCE[t.mode], second, USER_PAGE), 0);
    t.check(watch?.complete ?? false, "incomplete");
    if (watch) monitor.stop(watch);
    t.core.hooks.commit();
    step("what is not monitored any more", () => space.map(va, second), 0);
    t.same("monitors", monitor.count, 0);
  },
};

/** A table that is written often and hardly changes is left alone, and what changed is told later. */
const adapts: Scenario = {
  name: "vas-monitor.adapts",
  run: (t) => {
    const { monitor } = t.core;
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [first, second] = [t.guest.frame(), t.guest.frame()];
    space.map(va, first);
    let told = 0;
    const watch = monitor.start(space.memory, () => {
      told++;
    });
    t.core.hooks.commit();
    // Software bits only.
    const values = [first + USER_PAGE + 0x800, first + USER_PAGE] as const;
    t.guest.call("storm", space.root, va, 1, ...values, 6000);
    t.same("told of software bits", told, 0);
    t.check(t.core.tables.relaxedCount > 0, "the table is still hooked");
    const exits = t.guest.exits;
    t.guest.call("storm", space.root, va, 1, ...values, 1000);
    t.check(t.guest.exits - exits < 100, `${t.guest.exits - exits} exits of a table left alone`);
    space.map(va, second);
    t.core.tables.poll();
    t.core.hooks.commit();
    t.same("told at the poll", told, 1);
    space.map(va, first);
    t.same("told at once", told, 2);
    if (watch) monitor.stop(watch);
  },
};

/** The space ends while it is monitored; its tables become pages of others. */
const ends: Scenario = {
  name: "vas-monitor.exit-of-a-space",
  run: (t) => {
    const { monitor } = t.core;
    const space = t.guest.space();
    const frames = space.mapNew(TARGET[t.mode], 8);
    const gone = new Set<number>();
    const watch = monitor.start(
      space.memory,
      (c) => {
        if (c.newLo === 0 && c.level === 1) gone.add(c.start);
      },
      { range: "user" },
    );
    t.core.hooks.commit();
    space.destroy();
    for (let i = 0; i < frames.length; i++) {
      t.check(gone.has(TARGET[t.mode] + i * PAGE), `page ${i} is not told of`);
    }
    if (watch) monitor.stop(watch);
    t.core.hooks.commit();
    t.same("tables watched", t.core.tables.pageCount, 0);
  },
};

export const vasMonitors: readonly Scenario[] = [changes, adapts, ends];
