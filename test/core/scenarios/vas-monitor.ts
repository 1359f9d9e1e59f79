// SPDX-License-Identifier: MIT
/** Monitors of address spaces: every change of a translation. */
import type { MappingChange } from "../../../src/ept/page-tables.ts";
import { LARGE, PAGE, SOURCE, TARGET, USER_PAGE } from "../layout.ts";
import { hex, type Scenario } from "../scenario.ts";

const text = (c: MappingChange): string =>
  `level ${c.level} ${hex(c.start)}..${hex(c.end)} ${hex(c.oldLo)} -> ${hex(c.newLo)}`;

const changes: Scenario = {
  name: "vas-monitor.changes",
  run: (t) => {
    const { monitor } = t.core;
    const [space, other] = [t.guest.space(), t.guest.space()];
    const told: string[] = [];
    const watch = monitor.start(space.memory, (c) => told.push(text(c)), { range: "user" });
    t.core.hooks.commit();
    const step = (what: string, go: () => void): void => {
      told.length = 0;
      go();
      // Accessed and dirty bits are the CPU's, at a time of its own.
      t.line(
        `${what}: ${told.length} ${told.map((s) => s.replace(/\b0x[0-9a-f]+ ->.*/, "")).join(", ")}`,
      );
    };
    const [first, second] = [t.guest.frame(), t.guest.frame()];
    step("mapped", () => space.map(TARGET[t.mode], first));
    step("a neighbour", () => space.map(TARGET[t.mode] + PAGE, second));
    step("far away", () => space.map(SOURCE[t.mode], second));
    step("large", () => space.mapLarge(0x40000000, LARGE));
    step("split", () => space.split(0x40000000));
    step("used", () =>
      t.guest.run("mov4_st", { ring: 3, space, registers: { di: TARGET[t.mode] } }),
    );
    step("swapped out", () => space.swapOut(TARGET[t.mode]));
    step("read only", () => space.write(TARGET[t.mode] + PAGE, 1, "btr"));
    step("another space", () => other.map(TARGET[t.mode], first));
    step("unmapped", () => space.unmap(TARGET[t.mode] + PAGE));
    step("the same again", () => space.map(SOURCE[t.mode], second + 0, USER_PAGE));
    t.check(watch?.complete ?? false, "incomplete");
    if (watch) monitor.stop(watch);
    t.core.hooks.commit();
    step("without the monitor", () => space.map(TARGET[t.mode], second));
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
