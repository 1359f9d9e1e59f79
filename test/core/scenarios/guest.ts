// SPDX-License-Identifier: MIT
/** The guest itself: without these nothing else means anything. */
import { LARGE, PAGE, SOURCE, TARGET, USER_PAGE } from "../layout.ts";
import type { Scenario } from "../scenario.ts";
import { SETTERS, SETTERS_64 } from "../space.ts";
import { OTHERS, STUBS } from "../stubs.ts";
import { workload } from "../workload.ts";

const stubs: Scenario = {
  name: "guest.stubs",
  run: (t) => {
    const told = STUBS.filter((s) => s.modes?.includes(t.mode) ?? true).map((s) => s.name);
    t.same(
      "stubs of the image",
      t.guest.symbolsAfter("stub_").sort().join(" "),
      [...told, ...OTHERS].sort().join(" "),
    );
  },
};

const rings: Scenario = {
  name: "guest.rings",
  run: (t) => {
    const space = t.guest.space();
    const [frame] = space.mapNew(TARGET[t.mode], 1);
    for (const ring of [0, 3] as const) {
      const registers = { ax: 0x1234 + ring, di: TARGET[t.mode] + 8 };
      const done = t.guest.run("mov4_st", { ring, space, registers });
      t.same("exception", done.fault, -1);
      t.same("stored", t.guest.memory.read32(frame! + 8), 0x1234 + ring);
      const gone = t.guest.run("mov4_st", {
        ring,
        space,
        registers: { di: TARGET[t.mode] + PAGE },
      });
      t.same("vector", gone.fault, 14);
      t.same("error code", gone.error, ring === 3 ? 6 : 2);
      t.same("CR2", gone.address, BigInt(TARGET[t.mode] + PAGE));
    }
    for (const [stub, vector] of [
      ["undefined", 6],
      ["breakpoint", 3],
      ["divide", 0],
    ] as const) {
      t.same(`vector of ${stub}`, t.guest.run(stub, { ring: 3, space }).fault, vector);
    }
    t.same("vector of WRMSR in ring 3", t.guest.run("wrmsr", { ring: 3, space }).fault, 13);
  },
};

const writers: Scenario = {
  name: "guest.writers",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [first, second] = [t.guest.frame(), t.guest.frame()];
    for (const writer of t.mode === "p32" ? SETTERS : [...SETTERS, ...SETTERS_64]) {
      space.map(va, first, USER_PAGE, writer);
      t.same(`mapped by ${writer}`, space.memory.gpaOf(va), first);
      space.map(va, second, USER_PAGE, writer);
      t.same(`remapped by ${writer}`, space.memory.gpaOf(va), second);
      space.unmap(va, writer);
      t.same(`unmapped by ${writer}`, space.memory.gpaOf(va), -1);
    }
    space.map(va, first);
    space.write(va, 1, "btr");
    t.same("writable", space.memory.translate(va)?.writable, false);
    space.write(va, 2, "lock_or");
    t.same("writable", space.memory.translate(va)?.writable, true);
  },
};

const pager: Scenario = {
  name: "guest.pager",
  run: (t) => {
    const space = t.guest.space();
    const va = SOURCE[t.mode];
    const [frame] = space.mapNew(va, 1);
    t.guest.put64(frame! + 16, 0x1122334455667788n);
    t.check(space.swapOut(va), "the page was not swapped out");
    t.same("mapped", space.memory.gpaOf(va), -1);
    const { fault, registers } = t.guest.run("mov4_ld", {
      ring: 3,
      space,
      registers: { si: va + 16 },
    });
    t.same("exception", fault, -1);
    t.same("read", registers[0], 0x55667788n);
    t.check(space.memory.gpaOf(va) !== frame, "it came back to the same frame");
    t.same("pages brought in", Number(t.guest.get64(t.guest.at("page_ins"))), 1);
  },
};

const large: Scenario = {
  name: "guest.large-pages",
  run: (t) => {
    const space = t.guest.space();
    // A multiple of every size of large pages.
    const va = 0x40000000;
    space.mapLarge(va, LARGE);
    t.same("mapped", space.memory.gpaOf(va + 0x12345), LARGE + 0x12345);
    t.check(space.split(va), "not split");
    t.same("split", space.memory.gpaOf(va + 0x12345), LARGE + 0x12345);
    t.same("page size", space.memory.translate(va)?.pageSize, PAGE);
    t.check(space.merge(va), "not merged");
    t.same("merged", space.memory.gpaOf(va + 0x12345), LARGE + 0x12345);
  },
};

const spaces: Scenario = {
  name: "guest.spaces",
  run: (t) => {
    const before = t.guest.call("frames_left");
    const all = [1, 2, 3, 4, 5].map(() => t.guest.space());
    const frames = all.map((s) => s.mapNew(TARGET[t.mode], 1)[0] as number);
    for (const [i, space] of all.entries()) {
      const o = { ring: 3, space, registers: { ax: 100 + i, di: TARGET[t.mode] } } as const;
      t.guest.run("mov1_st", o);
    }
    t.same("stored", frames.map((f) => t.guest.memory.read8(f)).join(), "100,101,102,103,104");
    for (const f of frames) t.guest.call("frame_free", f);
    for (const s of all) s.destroy();
    t.same("frames", t.guest.call("frames_left"), before);
  },
};

const work: Scenario = {
  name: "guest.workload",
  run: (t) => {
    const space = t.guest.space();
    space.mapNew(TARGET[t.mode], 4);
    for (const ring of [0, 3] as const) {
      const words = new Uint32Array(4096);
      for (let i = 0; i < 4; i++) {
        const gpa = space.memory.gpaOf(TARGET[t.mode] + i * PAGE);
        words.set(new Uint32Array(t.guest.bytes(gpa, PAGE).buffer), 1024 * i);
      }
      const registers = { si: TARGET[t.mode], cx: 4096, dx: 20_000, ax: 77 + ring };
      const done = t.guest.run("workload", { ring, space, registers });
      t.same("exception", done.fault, -1);
      t.same(
        "sum",
        Number(BigInt.asUintN(32, done.registers[0] ?? 0n)),
        workload(words, 20_000, 77 + ring),
      );
    }
  },
};

const spins: Scenario = {
  name: "guest.spins-until-told",
  run: (t) => {
    t.guest.begin("spin");
    t.same("done", t.guest.runFor(100_000), false);
    t.guest.put64(t.guest.at("stop"), 1);
    t.check(t.guest.finish() > 0, "it did not go round");
  },
};

export const guest: readonly Scenario[] = [
  spins,
  stubs,
  rings,
  writers,
  pager,
  large,
  spaces,
  work,
];
