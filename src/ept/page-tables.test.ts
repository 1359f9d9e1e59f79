// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import {
  HVI_ACCESS_EVENT,
  HVI_ACCESS_WRITE,
  HVI_REPLY_NOTIFY,
  HVI_REPLY_RESUME,
  HVI_REPLY_SCRATCH,
  HVI_W,
} from "../bridge/index.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import type { PagingMode } from "../memory/index.ts";
import { ALLOW, DENY, type HookAction } from "./gpa-hooks.ts";
import type { MappingChange, TranslationChange, Watcher } from "./page-tables.ts";
import { entry, space, TablesGuest, word } from "./tables.fixture.ts";
import { violate } from "./violation.fixture.ts";

const BASE = -0x7f000000; // 0xffffffff81000000
const PML4 = 0x1000;
const PDPT = 0x2000;
const PD = 0x3000;
const PT = 0x4000;
const NEW_PT = 0x6000;
const SPACE = space(PML4, "4level");

/** PML4[511] -> PDPT[510] -> PD[8] a 2 MiB page, PD[9] -> PT; the watched range is 4 MiB from BASE. */
function setup(watcher: Watcher = {}, end = BASE + 0x400000, start = BASE) {
  const guest = new TablesGuest();
  const { memory } = guest;
  memory.writeU64(PML4 + 511 * 8, PDPT | 3, 0);
  memory.writeU64(PDPT + 510 * 8, PD | 3, 0);
  memory.writeU64(PD + 8 * 8, 0x40000000 | 0x83, 0);
  memory.writeU64(PD + 9 * 8, PT | 3, 0);
  for (let i = 0; i < 512; i++) memory.writeU64(PT + i * 8, 0x50000 + i * 0x1000 + 1, 0);
  const watch = guest.tables.watch(SPACE, start, end, watcher);
  if (watch === undefined) throw new Error("not watched");
  return { guest, memory, watch };
}

/** Changes told, as copies. */
function told(): { changes: MappingChange[]; after: (change: MappingChange) => void } {
  const changes: MappingChange[] = [];
  const after = (c: MappingChange): void => {
    changes.push({ ...c, before: { ...c.before }, after: { ...c.after } });
  };
  return { changes, after };
}

describe("tables", () => {
  test("on the way are hooked, and nothing else", () => {
    const { guest } = setup();
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4]);
    expect([guest.tables.pageCount, guest.tables.nodeCount]).toEqual([4, 4]);
  });

  test("are hooked before their entries are read", () => {
    const { guest, memory } = setup();
    const order: string[] = [];
    const read = memory.read32.bind(memory);
    memory.read32 = (gpa) => {
      const gfn = Math.floor(gpa / 0x1000);
      // The first look is whether there is RAM at all.
      if (gpa % 0x1000 !== 0) order.push(`${gfn} ${guest.rights(gfn) & HVI_W}`);
      return read(gpa);
    };
    guest.tables.watch(space(0x8000, "4level"), BASE + 0x1000, BASE + 0x2000, {});
    memory.writeU64(0x8000 + 511 * 8, 0x9000 | 3, 0);
    guest.tables.resync(8);
    expect(order).toContain("9 0");
    expect(order.filter((o) => o.endsWith(" 2"))).toEqual([]);
  });

  test("serve several watches and spaces with one hook, until the last has gone", () => {
    const { guest, memory, watch } = setup();
    memory.writeU64(0x8000 + 511 * 8, PDPT | 3, 0);
    const other = guest.tables.watch(space(0x8000 | 7, "4level"), BASE, BASE + 0x1000, {});
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4, 8]);
    expect(guest.tables.pageCount).toBe(5);
    guest.tables.unwatch(watch);
    guest.hooks.commit();
    expect(guest.without(HVI_W)).toEqual([2, 3, 8]);
    if (other !== undefined) guest.tables.unwatch(other);
    guest.hooks.commit();
    expect(guest.isUntouched()).toBe(true);
    expect(guest.hooks.pageCount).toBe(0);
  });

  test("whose watch ends in its own callback", () => {
    const ended = setup({
      after: () => guest.tables.unwatch(watch),
    });
    const { guest, watch } = ended;
    guest.write(PT, entry(0x99001));
    guest.exit();
    expect(guest.isUntouched()).toBe(true);
  });

  test.each<[string, number, number]>([
    ["not whole pages", BASE + 1, BASE + 0x1000],
    ["empty", BASE, BASE],
    ["not canonical", 0x7ffffffff000, 0x800000001000],
    ["not a number", Number.NaN, BASE],
  ])("for a range that is %s are not watched", (_what, start, end) => {
    const { guest } = setup();
    expect(guest.tables.watch(SPACE, start, end, {})).toBeUndefined();
    expect(guest.tables.watchCount).toBe(1);
  });

  test("without paging never change", () => {
    const guest = new TablesGuest();
    const watch = guest.tables.watch(space(0, "none"), 0x5000, 0x6000, {});
    expect(watch?.gpaOf(0x5123)).toBe(0x5123);
    expect(guest.isUntouched()).toBe(true);
    expect(guest.tables.watch(space(0, "none"), 2 ** 32, 2 ** 32 + 0x1000, {})).toBeUndefined();
  });

  test.each<[Exclude<PagingMode, "none">, number]>([
    ["32", 0xc0000000],
    ["pae", 0xc0000000],
    ["4level", -0x1000],
    ["5level", -(2 ** 56)],
    ["5level", 2 ** 55],
  ])("of %s paging are followed at %p", (mode, gva) => {
    const guest = new TablesGuest();
    const tables = new FakeTables(guest.memory, mode, 0x10000);
    const entries = tables.map(mode === "5level" ? BigInt(gva) : gva, 0x7000);
    const { changes, after } = told();
    const watch = guest.tables.watch(space(tables.root, mode), gva, gva + 0x1000, { after });
    expect(watch?.gpaOf(gva)).toBe(0x7000);
    expect(guest.without(HVI_W)).toEqual(entries.map((gpa) => gpa / 0x1000).map(Math.floor));
    const leaf = entries.at(-1) as number;
    guest.write(leaf, mode === "32" ? word(0x8003) : entry(0x8003));
    expect(changes).toMatchObject([
      { start: gva, end: gva + 0x1000, level: 1, before: { gpa: 0x7000 }, after: { gpa: 0x8000 } },
    ]);
  });

  test("of PAE: the four entries of the root are watched, and no byte beside them", () => {
    const guest = new TablesGuest();
    const root = 0x1fe0;
    guest.memory.writeU64(root + 24, 0x2001, 0);
    guest.tables.watch(space(root, "pae"), 0, 2 ** 32, {});
    expect(guest.tables.counters.writes).toBe(0);
    guest.write(root - 8, entry(0));
    expect(guest.tables.counters.writes).toBe(0);
    guest.write(root + 24, entry(0x3001));
    guest.exit();
    expect(guest.without(HVI_W)).toEqual([1, 3]);
  });
});

describe("before a change", () => {
  test("level, linear address, old and new entry are told", () => {
    const seen: TranslationChange[] = [];
    const { guest } = setup({
      before: (c) => {
        seen.push({ ...c });
        return DENY;
      },
    });
    expect(guest.write(PT + 3 * 8, entry(0x99001))).toBe(HVI_REPLY_SCRATCH);
    expect(seen).toHaveLength(1);
    expect(seen[0]).toMatchObject({
      level: 1,
      gva: BASE + 0x203000,
      oldLo: 0x53001,
      newLo: 0x99001,
      known: true,
      entryGpa: PT + 24,
    });
  });

  test.each([
    ["accessed and dirty bits", PT, entry(0x50061)],
    ["software bits", PT, entry(0x50e01)],
    ["PAT", PT, entry(0x50081)],
    ["an entry outside the range", PD + 10 * 8, entry(0x77083)],
    ["nothing at all", PD + 8 * 8, entry(0x40000083)],
    ["PAT of a large page", PD + 8 * 8, entry(0x40001083)],
    ["what is not present before and after", PDPT, entry(0x1000)],
  ])("a change of %s is none", (_what, gpa, bytes) => {
    let calls = 0;
    const count = (): HookAction => {
      calls++;
      return DENY;
    };
    const { guest } = setup({ before: count, after: count });
    expect(guest.write(gpa, bytes)).toBe(HVI_REPLY_RESUME);
    expect(calls).toBe(0);
  });

  test.each([
    ["P", entry(0x50000)],
    ["R/W", entry(0x50003)],
    ["U/S", entry(0x50005)],
    ["NX", entry(0x50001, 0x80000000)],
    ["the address above 4 GiB", entry(0x50001, 1)],
  ])("a change of %s is one", (_what, bytes) => {
    let before = 0;
    const { changes, after } = told();
    const { guest } = setup({
      before: () => {
        before++;
        return ALLOW;
      },
      after,
    });
    guest.write(PT, bytes);
    expect([before, changes.length]).toEqual([1, 1]);
  });

  test("a write of part of an entry is laid over the rest", () => {
    const seen: number[] = [];
    const { guest } = setup({
      before: (c) => {
        seen.push(c.newLo, c.newHi);
        return DENY;
      },
    });
    guest.write(PT + 5 * 8 + 1, [0x12, 0x34]);
    expect(seen).toEqual([0x341201, 0]);
  });

  test("a write that covers two entries asks for both, an unaligned one too", () => {
    const seen: number[] = [];
    const { guest } = setup({
      before: (c) => {
        seen.push(c.gva);
        return DENY;
      },
    });
    guest.write(PT + 8, [...entry(0x1001), ...entry(0x2001)]);
    guest.write(PT + 12, [1, 0, 0, 0, 0, 0, 0, 0]);
    expect(seen).toEqual([0x201000, 0x202000, 0x201000, 0x202000].map((o) => BASE + o));
  });

  test("an instruction whose value is not known is asked about, as not known", () => {
    const seen: boolean[] = [];
    const { guest } = setup({
      before: (c) => {
        seen.push(c.known);
        return DENY;
      },
    });
    expect(guest.write(PT, entry(1), { known: false })).toBe(HVI_REPLY_SCRATCH);
    expect(seen).toEqual([false]);
  });

  test("what an event's delivery pushes is not taken for the instruction's value", () => {
    const seen: boolean[] = [];
    const { guest } = setup({
      before: (c) => {
        seen.push(c.known);
        return DENY;
      },
    });
    const access = HVI_ACCESS_WRITE | HVI_ACCESS_EVENT;
    guest.hooks.dispatch(violate(guest.vm, guest.backend, { gpa: PT, access, size: 8 }));
    expect(seen).toEqual([false]);
  });

  test("that is denied, nothing is told and nothing changes", () => {
    const { changes, after } = told();
    const { guest, watch } = setup({ before: () => DENY, after });
    guest.write(PT, entry(0x99001));
    guest.write(PD + 9 * 8, entry(NEW_PT | 3));
    guest.exit();
    expect(watch.gpaOf(BASE + 0x200000)).toBe(0x50000);
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4]);
    expect(changes).toEqual([]);
  });

  test("another hook's refusal counts as well", () => {
    const { changes, after } = told();
    const { guest } = setup({ before: () => ALLOW, after });
    guest.hooks.add(PT / 0x1000, HVI_W, () => DENY);
    guest.hooks.commit();
    expect(guest.write(PT, entry(0x99001))).toBe(HVI_REPLY_SCRATCH);
    expect(changes).toEqual([]);
  });
});

describe("after a change", () => {
  test("a watch of one page is told of its old and new translation", () => {
    const { changes, after } = told();
    const at = BASE + 0x203000;
    const { guest } = setup({ after }, at + 0x1000, at);
    guest.write(PT + 24, entry(0x99007, 0x80000000));
    guest.write(PT + 24, entry(0));
    guest.write(PD + 9 * 8, entry(0x600000 | 0x83));
    const absent = { gpa: -1, pageSize: 0 };
    expect(changes.map((c) => [c.level, c.before, c.after])).toMatchObject([
      [
        1,
        { gpa: 0x53000, writable: false, user: false, nx: false },
        // The tables above let no user in.
        { gpa: 0x99000, pageSize: 0x1000, writable: true, user: false, nx: true },
      ],
      [1, { gpa: 0x99000 }, absent],
      [2, absent, { gpa: 0x603000, pageSize: 0x200000, writable: true }],
    ]);
  });

  test("a wider watch is told of the entry's part of it", () => {
    const { changes, after } = told();
    const { guest } = setup({ after }, BASE + 0x300000);
    guest.write(PDPT + 510 * 8, entry(0));
    expect(changes).toMatchObject([{ start: BASE, end: BASE + 0x300000, level: 3, newLo: 0 }]);
  });

  test("the new translation is the watch's before memory has it", () => {
    let seen = 0;
    const { guest, memory } = setup({
      after: (c) => {
        seen = c.watch.gpaOf(BASE + 0x200123);
        expect(memory.read32(PT)).toBe(0x50001);
      },
    });
    guest.write(PT, entry(0x99001));
    expect(seen).toBe(0x99123);
  });

  test("a large page that is split has its new table hooked, one that is merged loses it", () => {
    const { guest, memory, watch } = setup();
    for (let i = 0; i < 512; i++) memory.writeU64(NEW_PT + i * 8, 0x40000001 + i * 0x1000, 0);
    guest.write(PD + 8 * 8, entry(NEW_PT | 3));
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4, 6]);
    expect(watch.gpaOf(BASE + 0x5000)).toBe(0x40005000);
    guest.write(PD + 8 * 8, entry(0x40000083));
    // Until the entry is in memory the CPU may still walk the table.
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4, 6]);
    guest.exit();
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4]);
  });

  test("of a present entry each half that changes it is a change at once", () => {
    const { changes, after } = told();
    const { guest, watch } = setup({ after });
    guest.write(PT + 4, word(1));
    expect(watch.gpaOf(BASE + 0x200000)).toBe(0x1_0005_0000);
    guest.write(PT, word(0x77001));
    expect(changes.map((c) => [c.newLo, c.newHi])).toEqual([
      [0x50001, 1],
      [0x77001, 1],
    ]);
  });

  test("of an absent one the half that makes it present is", () => {
    const { changes, after } = told();
    const { guest, memory } = setup({ after });
    memory.writeU64(PT, 0, 0);
    guest.tables.resync(PT / 0x1000);
    changes.length = 0;
    guest.write(PT + 4, word(1));
    guest.write(PT, word(0x77001));
    expect(changes.map((c) => [c.oldLo, c.newLo, c.newHi])).toEqual([[0, 0x77001, 1]]);
  });

  test("with a value that is not known comes at the exit that the reply asks for", () => {
    const { changes, after } = told();
    const { guest } = setup({ after });
    guest.write(PT, entry(0x99001), { known: false });
    expect(guest.vm.vcpus[0]?.replyFlags).toBe(HVI_REPLY_NOTIFY);
    expect(changes).toEqual([]);
    guest.exit();
    expect(changes).toHaveLength(1);
    guest.write(PT, entry(0x50001));
    expect(guest.vm.vcpus[0]?.replyFlags).toBe(0);
  });

  test("that did not come, because the instruction faulted, is taken back", () => {
    const { changes, after } = told();
    const { guest, watch } = setup({ after });
    guest.write(PD + 9 * 8, entry(NEW_PT | 3), { happens: false });
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4, 6]);
    // The old table counts still, and a change in it ends the doubt.
    guest.write(PT, entry(0x99001));
    expect(watch.gpaOf(BASE + 0x200000)).toBe(0x99000);
    expect(guest.without(HVI_W)).toEqual([1, 2, 3, 4]);
    expect(guest.tables.counters.withoutEffect).toBe(1);
    expect(changes.map((c) => c.level)).toEqual([2, 2, 1]);
  });

  test("an exit of the same instruction for another page is too early to tell", () => {
    const { guest, watch } = setup();
    guest.hooks.add(0x20, HVI_W, () => ALLOW);
    guest.hooks.commit();
    // Both pages violate before anything is written.
    const bytes = [...entry(0x99001), ...entry(0)];
    guest.memory.writeU64(PD + 9 * 8, 0x1f000 | 3, 0);
    guest.tables.resync(PD / 0x1000);
    guest.write(0x1fff8, bytes);
    expect(watch.gpaOf(BASE + 0x3ff000)).toBe(0x99000);
    guest.exit();
    expect(watch.gpaOf(BASE + 0x3ff000)).toBe(0x99000);
    expect(guest.tables.counters.withoutEffect).toBe(0);
  });

  test("a host's write counts when it is told of", () => {
    const { changes, after } = told();
    const { guest, memory, watch } = setup({ after });
    memory.writeU64(PD + 8 * 8, NEW_PT | 3, 0);
    memory.writeU64(NEW_PT, 0x7001, 0);
    guest.tables.resync(PD / 0x1000);
    guest.tables.resync(0x77);
    expect(watch.gpaOf(BASE)).toBe(0x7000);
    expect(changes).toMatchObject([{ vcpu: undefined, level: 2 }]);
  });
});

describe("a hostile guest", () => {
  test("with tables that point to themselves", () => {
    const guest = new TablesGuest();
    for (let i = 0; i < 512; i++) guest.memory.writeU64(PML4 + i * 8, PML4 | 3, 0);
    const watch = guest.tables.watch(SPACE, BASE, BASE + 0x1000, {});
    expect([guest.tables.pageCount, guest.tables.nodeCount]).toEqual([1, 4]);
    expect([watch?.gpaOf(BASE), watch?.complete]).toEqual([PML4, true]);
    guest.write(PML4 + 511 * 8, entry(0));
    guest.exit();
    expect([watch?.gpaOf(BASE), guest.tables.nodeCount]).toEqual([-1, 1]);
  });

  test("with more places of tables than the limit is told so, and all ends well", () => {
    const guest = new TablesGuest({ limits: { nodes: 1000, nodesOfPage: 300 } });
    for (let i = 0; i < 512; i++) guest.memory.writeU64(PML4 + i * 8, PML4 | 3, 0);
    const watch = guest.tables.watch(SPACE, -(2 ** 47), 2 ** 47, {});
    expect(watch?.complete).toBe(false);
    expect(guest.tables.nodeCount).toBe(300);
    for (let i = 0; i < 8; i++) guest.write(PML4 + i * 8, entry(PML4 | (i & 1)));
    guest.exit();
    expect(guest.tables.nodeCount).toBeLessThanOrEqual(300);
    if (watch !== undefined) guest.tables.unwatch(watch);
    guest.hooks.commit();
    expect([guest.tables.nodeCount, guest.isUntouched()]).toEqual([0, true]);
  });

  test("with tables that are no RAM", () => {
    const { guest, watch } = setup();
    guest.write(PD + 9 * 8, entry(0xfee00003));
    guest.write(PDPT + 509 * 8, entry(3, 0xfffff));
    guest.exit();
    expect([watch.gpaOf(BASE + 0x200000), watch.complete]).toEqual([-1, true]);
    expect(guest.tables.watch(space(0x7ffff000, "4level"), BASE, BASE + 0x1000, {})?.complete).toBe(
      true,
    );
  });

  test("that rewrites an entry 100,000 times leaves nothing behind", () => {
    let changes = 0;
    const { guest } = setup({ after: () => changes++ });
    guest.hooks.commit();
    for (let i = 0; i < 100_000; i++) guest.write(PT, entry(i % 2 === 0 ? 0x99001 : 0x50001));
    guest.exit();
    expect(changes).toBe(100_000);
    expect(guest.tables.pageCount).toBe(4);
    expect(guest.hooks.owners().get("page-tables")?.hooks).toBe(4);
  });
});

describe("a relaxed watch", () => {
  const limits = { relaxWrites: 100, relaxChanges: 5 };

  function relaxed(strict: boolean) {
    const guest = new TablesGuest({ limits });
    const tables = new FakeTables(guest.memory, "4level", 0x10000);
    const pt = Math.floor((tables.map(0x400000, 0x7000).at(-1) as number) / 0x1000) * 0x1000;
    const where = space(tables.root, "4level");
    const { changes, after } = told();
    guest.tables.watch(where, 0, 2 ** 47, { after, relaxed: true });
    if (strict) guest.tables.watch(where, 0x400000, 0x401000, {});
    for (let i = 0; i < 100; i++) guest.write(pt, entry(0x7007 | (i & 1 ? 0x20 : 0)));
    return { guest, pt, changes, where };
  }

  test("gives up a table that changes no translation, and finds later what did change", () => {
    const { guest, pt, changes } = relaxed(false);
    expect(guest.rights(pt / 0x1000) & HVI_W).toBe(HVI_W);
    expect(guest.tables.relaxedCount).toBe(1);
    guest.write(pt, entry(0x8007));
    expect(changes).toEqual([]);
    guest.tables.poll();
    guest.hooks.commit();
    expect(changes).toMatchObject([{ start: 0x400000, level: 1, newLo: 0x8007, vcpu: undefined }]);
    expect(guest.rights(pt / 0x1000) & HVI_W).toBe(0);
  });

  test("does not when another watch needs the table, or when translations change", () => {
    const { guest } = relaxed(true);
    expect(guest.tables.relaxedCount).toBe(0);
    const busy = relaxed(false);
    busy.guest.tables.poll();
    for (let i = 0; i < 100; i++) {
      busy.guest.write(busy.pt, entry(i % 10 === 0 ? 0x100007 + i * 0x1000 : 0x7007));
    }
    expect(busy.guest.tables.relaxedCount).toBe(0);
  });

  test("has the table hooked again for one that must not miss anything", () => {
    const { guest, pt, where, changes } = relaxed(false);
    guest.write(pt, entry(0x8007));
    const strict = guest.tables.watch(where, 0x400000, 0x401000, {});
    expect(strict?.gpaOf(0x400000)).toBe(0x8000);
    expect(guest.rights(pt / 0x1000) & HVI_W).toBe(0);
    expect(changes).toHaveLength(1);
  });
});
