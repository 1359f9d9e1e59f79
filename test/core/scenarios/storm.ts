// SPDX-License-Identifier: MIT
/** Guests that write to what is hooked as often as they can: each write is seen, and none that is denied is made. */
import { HVI_W } from "../../../src/bridge/index.ts";
import { ALLOW, DENY } from "../../../src/ept/gpa-hooks.ts";
import { PAGE, TARGET, USER_PAGE } from "../layout.ts";
import { Answer, type Scenario } from "../scenario.ts";

const page: Scenario = {
  name: "storm.page",
  run: (t) => {
    const count = t.effort.storm;
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1);
    for (const [ring, action] of [
      [0, DENY],
      [3, DENY],
      [3, ALLOW],
    ] as const) {
      t.guest.memory.write32(frame!, 0x5a5a);
      const answer = new Answer(action);
      const hook = t.core.hooks.add(frame! / PAGE, HVI_W, answer.handler);
      t.core.hooks.commit();
      const done = t.guest.run("store_loop", { ring, space, registers: { di: va, cx: count } });
      t.same("exception", done.fault, -1);
      t.same("CX", done.registers[1], 0n);
      t.same("calls", answer.calls, count);
      t.same("memory", t.guest.memory.read32(frame!), action === DENY ? 0x5a5a : 1);
      t.core.hooks.remove(hook);
      t.core.hooks.commit();
    }
  },
};

const table: Scenario = {
  name: "storm.table",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [first, second] = [t.guest.frame(), t.guest.frame()];
    space.map(va, first);
    const entry = space.entryAt(va);
    // In PAE an entry is written as two halves.
    const writes = t.effort.storm * (t.mode === "pae" ? 2 : 1);
    const at = entry % PAGE;
    for (const action of [DENY, ALLOW] as const) {
      const answer = new Answer(action);
      const part = { start: at, end: at + 8 };
      const hook = t.core.hooks.add(Math.floor(entry / PAGE), HVI_W, answer.handler, part);
      t.core.hooks.commit();
      const values = [second + USER_PAGE, first + USER_PAGE] as const;
      t.guest.call("storm", space.root, va, 1, ...values, t.effort.storm);
      t.same("calls", answer.calls, writes);
      t.same("frame", space.memory.gpaOf(va), first);
      t.core.hooks.remove(hook);
      t.core.hooks.commit();
    }
  },
};

/** The same under a watch: whatever its frame, the page stays hooked. */
const watched: Scenario = {
  name: "storm.watched-table",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [first, second] = [t.guest.frame(), t.guest.frame()];
    space.map(va, first);
    let asked = 0;
    const watch = t.core.tables.watch(space.memory, va, va + PAGE, {
      before: () => {
        asked++;
        return DENY;
      },
    });
    t.core.hooks.commit();
    const values = [second + USER_PAGE, first + USER_PAGE] as const;
    t.guest.call("storm", space.root, va, 1, ...values, t.effort.storm);
    // Each other value is what stands there; of two halves in PAE the upper one never changes.
    t.same("asked", asked, t.effort.storm / 2);
    t.same("frame", space.memory.gpaOf(va), first);
    if (watch) t.core.tables.unwatch(watch);
    t.core.hooks.commit();
  },
};

export const storm: readonly Scenario[] = [page, table, watched];
