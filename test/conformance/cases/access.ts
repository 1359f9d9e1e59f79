// SPDX-License-Identifier: MIT
/** A8 for explicit accesses: every size, inside a page and across two, with every reply. */

import * as abi from "../../../src/bridge/abi.ts";
import { type Bench, fromHex, le, pattern } from "../bench.ts";
import { type Case, ept, exit, type Step, trap } from "../case.ts";
import { WALK } from "../layout.ts";
import { R, RWX, setYmm0, VALUE, X, ymm0 } from "./words.ts";

const SIZES = [1, 2, 4, 8, 16, 32];
const needs = (size: number) => (size === 32 ? ("avx" as const) : undefined);

/** RAX and YMM0 hold the bytes 11 22 33 ... that a store of any size writes. */
const STORED = "1122334455667788 99aabbccddeeff00 0102030405060708 090a0b0c0d0e0f10".replace(
  / /g,
  "",
);
const storeOf = (size: number) => STORED.slice(0, 2 * size);
const BEFORE = (size: number) => pattern(size, 0xc0);

function loadVector(t: Bench, size: number): void {
  if (size >= 16) setYmm0(t, STORED.slice(0, 2 * Math.max(size, 16)));
}

/** A store to page 0 that the view forbids. */
function store(
  name: string,
  size: number,
  offset: number,
  script: (t: Bench) => Step[],
  written: boolean,
  more: Partial<Case> = {},
): Case {
  return {
    name: `store.${size}.${name}`,
    entry: `st${size}`,
    needs: needs(size),
    regs: (t) => ({ rdi: t.d(0, offset), rax: VALUE, rflags: 0xcd7 & ~0x500 }),
    setup: (t) => {
      loadVector(t, size);
      t.poke(t.p(0, offset), BEFORE(size));
      t.rights(t.p(0), R);
    },
    script,
    memory: (t) => [[t.p(0, offset), written ? storeOf(size) : BEFORE(size)]],
    end: (t) => ({ rdi: t.d(0, offset), rax: VALUE, flags: 0x8c5 }),
    ...more,
  };
}

function storeReplies(size: number): Case[] {
  const o = 0x48;
  const v = (t: Bench) => ept("w", t.p(0, o), { size, rights: R });
  return [
    store("resume", size, o, (t) => [v(t).resume()], true),
    store("skip", size, o, (t) => [v(t).skip()], false),
    store("retry", size, o, (t) => [v(t).retryWith(RWX)], true),
    store("scratch", size, o, (t) => [v(t).scratch()], false),
    // A write to a page given to EMULATE behaves as SCRATCH when it is not writable.
    store(
      "emulate",
      size,
      o,
      (t) => [v(t).do((c, b) => c.emulate(b.p(0, o), fromHex(pattern(size))))],
      false,
    ),
    store("step", size, o, (t) => [v(t).step(1)], true, {
      setup: (t) => {
        loadVector(t, size);
        t.poke(t.p(0, o), BEFORE(size));
        const view = t.vm.createView(0);
        t.rights(t.p(0), R);
        if (view !== 1) throw new Error(`the first view made is ${view}`);
      },
    }),
    store(
      "last-bytes-of-page",
      size,
      0x1000 - size,
      (t) => [ept("w", t.p(0, 0x1000 - size), { size, rights: R }).scratch()],
      false,
    ),
  ];
}

type Half = "resume" | "scratch";
/** A store over the boundary of pages 0 and 1, with the reply of each page that is hooked. */
function crossingStore(size: number, first: Half | undefined, second: Half | undefined): Case {
  const half = size / 2;
  const o = 0x1000 - half;
  const reply = (s: Step, h: Half) => (h === "resume" ? s.resume() : s.scratch());
  const part = (h: Half | undefined, from: number) =>
    (h === "scratch" ? BEFORE(size) : storeOf(size)).slice(2 * from, 2 * (from + half));
  return {
    name: `store.${size}.crossing.${first ?? "free"}-${second ?? "free"}`,
    entry: `st${size}`,
    needs: needs(size),
    regs: (t) => ({ rdi: t.d(0, o), rax: VALUE }),
    setup: (t) => {
      loadVector(t, size);
      t.poke(t.p(0, o), BEFORE(size));
      if (first) t.rights(t.p(0), R);
      if (second) t.rights(t.p(1), R);
    },
    script: (t) => [
      ...(first ? [reply(ept("w", t.p(0, o), { rights: R }), first)] : []),
      ...(second ? [reply(ept("w", t.p(1), { rights: R }), second)] : []),
    ],
    memory: (t) => [[t.p(0, o), part(first, 0) + part(second, half)]],
  };
}

/** What a load of `size` gave: RAX or YMM0. */
function loaded(size: number, bytes: string): Partial<Case> {
  if (size <= 8) {
    const b = fromHex(bytes);
    let v = 0n;
    for (let i = b.length - 1; i >= 0; i--) v = (v << 8n) | BigInt(b[i]!);
    return { end: { rax: v } };
  }
  return {
    check: (t) => {
      const have = ymm0(t, size);
      return have === bytes ? undefined : `YMM0 is ${have}, should be ${bytes}`;
    },
  };
}

function load(
  name: string,
  size: number,
  offset: number,
  rights: [number, number],
  script: (t: Bench) => Step[],
  result: string,
): Case {
  return {
    name: `load.${size}.${name}`,
    entry: `ld${size}`,
    needs: needs(size),
    regs: (t) => ({ rsi: t.d(0, offset) }),
    setup: (t) => {
      t.poke(t.p(0, offset), BEFORE(size));
      t.rights(t.p(0), rights[0]);
      t.rights(t.p(1), rights[1]);
    },
    script,
    // The memory itself is never touched.
    memory: (t) => [[t.p(0, offset), BEFORE(size)]],
    ...loaded(size, result),
  };
}

const FAKE = (size: number) => pattern(size, 0x31);
const fake = (size: number) => fromHex(FAKE(size));

function loadReplies(size: number): Case[] {
  const o = 0x53;
  const v = (t: Bench) => ept("r", t.p(0, o), { size, rights: 0 });
  return [
    load("resume", size, o, [0, RWX], (t) => [v(t).resume()], BEFORE(size)),
    load("retry", size, o, [0, RWX], (t) => [v(t).retryWith(R)], BEFORE(size)),
    load("skip", size, o, [0, RWX], (t) => [v(t).skip()], "00".repeat(size)),
    load(
      "emulate",
      size,
      o,
      [0, RWX],
      (t) => [v(t).do((c, b) => c.emulate(b.p(0, o), fake(size)))],
      FAKE(size),
    ),
    // SCRATCH drops writes only: a read is made.
    load("scratch", size, o, [0, RWX], (t) => [v(t).scratch()], BEFORE(size)),
    {
      ...load(
        "step",
        size,
        o,
        [0, RWX],
        (t) => [v(t).step(1, true), exit(abi.HVI_EXIT_STEP, { view: 0 }).resume()],
        BEFORE(size),
      ),
      setup: (t) => {
        t.poke(t.p(0, o), BEFORE(size));
        t.vm.createView(0);
        t.rights(t.p(0), 0);
      },
    },
  ];
}

function crossingLoads(size: number): Case[] {
  const half = size / 2;
  const o = 0x1000 - half;
  const old = BEFORE(size);
  const low = fake(size).slice(0, half);
  const high = fake(size).slice(half);
  const first = (t: Bench) => ept("r", t.p(0, o), { rights: 0 });
  const second = (t: Bench) => ept("r", t.p(1), { rights: 0 });
  return [
    load(
      "crossing.emulate-free",
      size,
      o,
      [0, RWX],
      (t) => [first(t).do((c, b) => c.emulate(b.p(0, o), low))],
      FAKE(size).slice(0, size) + old.slice(size),
    ),
    load(
      "crossing.free-emulate",
      size,
      o,
      [RWX, 0],
      (t) => [second(t).do((c, b) => c.emulate(b.p(1), high))],
      old.slice(0, size) + FAKE(size).slice(size),
    ),
    load(
      "crossing.emulate-emulate",
      size,
      o,
      [0, 0],
      (t) => [
        first(t).do((c, b) => c.emulate(b.p(0, o), low)),
        second(t).do((c, b) => c.emulate(b.p(1), high)),
      ],
      FAKE(size),
    ),
    // One reply with both parts: the second page is free, and still reads as told.
    load(
      "crossing.two-ranges",
      size,
      o,
      [0, RWX],
      (t) => [first(t).do((c, b) => c.emulate(b.p(0, o), fake(size), b.p(1), half))],
      FAKE(size),
    ),
    load(
      "crossing.resume-emulate",
      size,
      o,
      [0, 0],
      (t) => [first(t).resume(), second(t).do((c, b) => c.emulate(b.p(1), high))],
      old.slice(0, size) + FAKE(size).slice(size),
    ),
  ];
}

/** Read-modify-write on a page without W: registers and flags as if it had happened. */
export interface Rmw {
  entry: string;
  size: number;
  memory: bigint;
  regs: Record<string, number | bigint>;
  /** What stands in memory afterwards when the write is let through. */
  result: bigint;
  end: Record<string, number | bigint>;
}
const CF = 1;
const PF = 4;
const ZF = 0x40;
const SF = 0x80;
const OF = 0x800;
const M = 0xffffffffffffffffn;
export const RMW: Rmw[] = [
  {
    entry: "add1",
    size: 1,
    memory: 0xffn,
    regs: { rax: 1 },
    result: 0n,
    end: { flags: CF | PF | ZF },
  },
  {
    entry: "add2",
    size: 2,
    memory: 0x7fffn,
    regs: { rax: 1 },
    result: 0x8000n,
    end: { flags: PF | SF | OF },
  },
  {
    entry: "add4",
    size: 4,
    memory: 0xfffffffen,
    regs: { rax: 1 },
    result: 0xffffffffn,
    end: { flags: PF | SF },
  },
  { entry: "add8", size: 8, memory: 0x10n, regs: { rax: 0x20 }, result: 0x30n, end: { flags: PF } },
  { entry: "sub8", size: 8, memory: 0n, regs: { rax: 1 }, result: M, end: { flags: CF | PF | SF } },
  {
    entry: "adc8",
    size: 8,
    memory: 1n,
    regs: { rax: 2, rflags: 3 },
    result: 4n,
    end: { flags: 0 },
  },
  {
    entry: "sbb8",
    size: 8,
    memory: 5n,
    regs: { rax: 2, rflags: 3 },
    result: 2n,
    end: { flags: 0 },
  },
  {
    entry: "and8",
    size: 8,
    memory: 0xf0n,
    regs: { rax: 0x0f },
    result: 0n,
    end: { flags: PF | ZF },
  },
  { entry: "or8", size: 8, memory: 0xf0n, regs: { rax: 0x0f }, result: 0xffn, end: { flags: PF } },
  { entry: "xor8", size: 8, memory: 0xffn, regs: { rax: 0x0f }, result: 0xf0n, end: { flags: PF } },
  {
    entry: "inc8",
    size: 8,
    memory: M,
    regs: { rflags: 3 },
    result: 0n,
    end: { flags: CF | PF | ZF },
  },
  { entry: "dec4", size: 4, memory: 1n, regs: {}, result: 0n, end: { flags: PF | ZF } },
  { entry: "not8", size: 8, memory: 0n, regs: {}, result: M, end: { flags: 0 } },
  { entry: "neg8", size: 8, memory: 1n, regs: {}, result: M, end: { flags: CF | PF | SF } },
  { entry: "shl8", size: 8, memory: 0x11n, regs: {}, result: 0x110n, end: {} },
  { entry: "rol4", size: 4, memory: 0x80000000n, regs: { rcx: 1 }, result: 1n, end: {} },
  { entry: "rcr8", size: 8, memory: 0n, regs: { rflags: 3 }, result: 1n << 63n, end: {} },
  { entry: "shld8", size: 8, memory: 1n, regs: { rax: 0xabn << 56n }, result: 0x1abn, end: {} },
  { entry: "bts8", size: 8, memory: 0x20n, regs: {}, result: 0x20n, end: {} },
  {
    entry: "xchg1",
    size: 1,
    memory: 0x5an,
    regs: { rax: 0x77 },
    result: 0x77n,
    end: { rax: 0x5a, flags: 0 },
  },
  {
    entry: "xchg2",
    size: 2,
    memory: 0x5a5bn,
    regs: { rax: 0x7777 },
    result: 0x7777n,
    end: { rax: 0x5a5b },
  },
  {
    entry: "xchg4",
    size: 4,
    memory: 0x5a5b5c5dn,
    regs: { rax: 0x77777777 },
    result: 0x77777777n,
    end: { rax: 0x5a5b5c5d },
  },
  {
    entry: "xchg8",
    size: 8,
    memory: VALUE,
    regs: { rax: 1 },
    result: 1n,
    end: { rax: VALUE, flags: 0 },
  },
  {
    entry: "cmpxchg8",
    size: 8,
    memory: 5n,
    regs: { rax: 5, rbx: 9 },
    result: 9n,
    end: { rax: 5, flags: ZF | PF },
  },
  { entry: "lock_add1", size: 1, memory: 1n, regs: { rax: 2 }, result: 3n, end: { flags: PF } },
  { entry: "lock_add2", size: 2, memory: 1n, regs: { rax: 2 }, result: 3n, end: { flags: PF } },
  { entry: "lock_add4", size: 4, memory: 1n, regs: { rax: 2 }, result: 3n, end: { flags: PF } },
  { entry: "lock_add8", size: 8, memory: 1n, regs: { rax: 2 }, result: 3n, end: { flags: PF } },
  {
    entry: "lock_inc4",
    size: 4,
    memory: 0x7fffffffn,
    regs: {},
    result: 0x80000000n,
    end: { flags: PF | SF | OF },
  },
  { entry: "lock_bts8", size: 8, memory: 0n, regs: { rflags: 3 }, result: 0x20n, end: {} },
  {
    entry: "lock_neg8",
    size: 8,
    memory: 0n,
    regs: { rflags: 3 },
    result: 0n,
    end: { flags: PF | ZF },
  },
  {
    entry: "lock_xadd4",
    size: 4,
    memory: 7n,
    regs: { rax: 3 },
    result: 10n,
    end: { rax: 7, flags: PF },
  },
  {
    entry: "lock_xadd8",
    size: 8,
    memory: 7n,
    regs: { rax: 3 },
    result: 10n,
    end: { rax: 7, flags: PF },
  },
  {
    entry: "lock_cmpxchg4",
    size: 4,
    memory: 5n,
    regs: { rax: 5, rbx: 9 },
    result: 9n,
    end: { rax: 5, flags: ZF | PF },
  },
  {
    entry: "lock_cmpxchg8",
    size: 8,
    memory: 6n,
    regs: { rax: 5, rbx: 9 },
    result: 6n,
    end: { rax: 6, flags: CF | PF | SF },
  },
  {
    entry: "lock_cmpxchg8b",
    size: 8,
    memory: 0x200000001n,
    regs: { rax: 1, rdx: 2, rbx: 3, rcx: 4 },
    result: 0x400000003n,
    end: { rax: 1, rdx: 2, flags: ZF },
  },
];

function rmwCase(r: Rmw, how: "resume" | "scratch" | "emulate"): Case {
  const emulate = how === "emulate";
  // EMULATE: memory holds something else, the bytes given are what is read.
  const stands = emulate ? 0x6b6b6b6b6b6b6b6bn & ((1n << BigInt(8 * r.size)) - 1n) : r.memory;
  const rights = emulate ? 0 : R;
  return {
    name: `rmw.${r.entry}.${how}`,
    entry: r.entry,
    regs: (t) => ({ ...r.regs, rdi: t.d(0, 0x60) }),
    setup: (t) => {
      t.poke(t.p(0, 0x60), le(stands, r.size));
      t.rights(t.p(0), rights);
    },
    script: (t) => {
      const s = ept("rw", t.p(0, 0x60), { size: r.size, rights });
      if (how === "resume") return [s.resume()];
      if (how === "scratch") return [s.scratch()];
      return [s.do((c, b) => c.emulate(b.p(0, 0x60), fromHex(le(r.memory, r.size))))];
    },
    memory: (t) => [[t.p(0, 0x60), le(how === "resume" ? r.result : stands, r.size)]],
    end: r.end,
    brief: Object.keys(r.end).length === 0,
  };
}

const cmpxchg16b: Case[] = (["resume", "scratch"] as const).map((how) => ({
  name: `rmw.lock_cmpxchg16b.${how}`,
  entry: "lock_cmpxchg16b",
  regs: (t) => ({ rdi: t.d(0, 0x60), rax: 1, rdx: 2, rbx: 3, rcx: 4 }),
  setup: (t) => {
    t.poke(t.p(0, 0x60), le(1, 8) + le(2, 8));
    t.rights(t.p(0), R);
  },
  script: (t) => {
    const s = ept("rw", t.p(0, 0x60), { size: 16, rights: R });
    return [how === "resume" ? s.resume() : s.scratch()];
  },
  memory: (t) => [[t.p(0, 0x60), how === "resume" ? le(3, 8) + le(4, 8) : le(1, 8) + le(2, 8)]],
  end: { flags: ZF },
}));

const crossingRmw: Case[] = (["lock_add8", "xchg8", "add8"] as const).flatMap((entry) =>
  (["resume", "scratch"] as const).map((how): Case => {
    const sum = entry === "xchg8" ? 0x0100000000000001n : 0x0100000000000001n + 0x10n;
    return {
      name: `rmw.${entry}.crossing.${how}`,
      entry,
      regs: (t) => ({ rdi: t.d(0, 0xffc), rax: 0x0100000000000001n }),
      setup: (t) => {
        t.poke(t.p(0, 0xffc), le(0x10, 8));
        t.rights(t.p(0), R);
        t.rights(t.p(1), R);
      },
      script: (t) =>
        [ept("rw", t.p(0, 0xffc), { rights: R }), ept("rw", t.p(1), { rights: R })].map((s) =>
          how === "resume" ? s.resume() : s.scratch(),
        ),
      memory: (t) => [[t.p(0, 0xffc), le(how === "resume" ? sum : 0x10, 8)]],
      end: entry === "xchg8" ? { rax: 0x10 } : {},
    };
  }),
);

const others: Case[] = [
  {
    name: "store.movnti",
    entry: "movnti",
    regs: (t) => ({ rdi: t.d(0, 8), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0, 8), { size: 8, rights: R }).scratch()],
    memory: (t) => [[t.p(0, 8), le(0, 8)]],
  },
  {
    name: "store.movaps",
    entry: "movaps_st",
    regs: (t) => ({ rdi: t.d(0, 0x10) }),
    setup: (t) => {
      setYmm0(t, pattern(16));
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0, 0x10), { size: 16, rights: R }).resume()],
    memory: (t) => [[t.p(0, 0x10), pattern(16)]],
  },
  {
    name: "store.movlps",
    entry: "movlps_st",
    regs: (t) => ({ rdi: t.d(0, 0x10) }),
    setup: (t) => {
      setYmm0(t, pattern(16));
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0, 0x10), { size: 8, rights: R }).resume()],
    memory: (t) => [[t.p(0, 0x10), pattern(8) + le(0, 8)]],
  },
  {
    name: "load.addps.emulate",
    entry: "addps_ld",
    regs: (t) => ({ rsi: t.d(0, 0x20) }),
    setup: (t) => {
      setYmm0(t, "0000803f".repeat(4));
      t.rights(t.p(0), 0);
    },
    // 1.0 + 2.0
    script: (t) => [
      ept("r", t.p(0, 0x20), { size: 16, rights: 0 }).do((c, b) =>
        c.emulate(b.p(0, 0x20), fromHex("00000040".repeat(4))),
      ),
    ],
    check: (t) => (ymm0(t, 16) === "00004040".repeat(4) ? undefined : `XMM0 is ${ymm0(t, 16)}`),
  },
  ...(
    [
      ["movzx1", 1, { rax: 0xffffffffffffffffn }, "f0", { rax: 0xf0 }],
      ["movsx4", 4, {}, "000000f0", { rax: 0xfffffffff0000000n }],
      ["cmp8", 8, { rax: 5 }, le(5, 8), { flags: ZF | PF }],
      ["test8", 8, { rax: 2 }, le(5, 8), { flags: ZF | PF }],
      ["mul8", 8, { rax: 6 }, le(7, 8), { rax: 42, rdx: 0 }],
      ["div8", 8, { rax: 43 }, le(7, 8), { rax: 6, rdx: 1 }],
    ] as const
  ).map(
    ([entry, size, regs, bytes, end]): Case => ({
      name: `load.${entry}.emulate`,
      entry,
      regs: (t) => ({ ...regs, rsi: t.d(0, 0x20) }),
      setup: (t) => t.rights(t.p(0), X),
      needs: "exec-only",
      script: (t) => [
        ept("r", t.p(0, 0x20), { size, rights: X }).do((c, b) =>
          c.emulate(b.p(0, 0x20), fromHex(bytes)),
        ),
      ],
      end,
      brief: entry === "mul8" || entry === "div8",
    }),
  ),
  {
    name: "load.prefetch-is-silent",
    entry: "prefetch",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: [],
  },
  {
    name: "rmw.btr.bit-string",
    entry: "btr_reg",
    regs: (t) => ({ rdi: t.d(0, 0x100), rcx: 8 * 0x40 + 3 }),
    setup: (t) => {
      t.poke(t.p(0, 0x140), "ff");
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("rw", t.p(0, 0x140), { size: 8, rights: R }).resume()],
    memory: (t) => [[t.p(0, 0x140), "f7"]],
    brief: true,
  },
  {
    name: "store.setcc",
    entry: "setcc",
    regs: (t) => ({ rdi: t.d(0, 1), rflags: 0x42 }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0, 1), { size: 1, rights: R }).resume()],
    memory: (t) => [[t.p(0), "0001"]],
  },
  // Ranges that cover a read in part, or more than it.
  ...(
    [
      ["inside", 2, 4, "c0c1 31323334 c6c7"],
      ["from-before", -4, 8, "35363738 c4c5c6c7"],
      ["to-behind", 4, 16, "c0c1c2c3 31323334"],
      ["around", -16, 64, "4142434445464748"],
      ["beside", 8, 8, "c0c1c2c3c4c5c6c7"],
      ["whole-page-half", -0x50, 256, "8182838485868788"],
    ] as const
  ).map(
    ([name, from, length, result]): Case =>
      load(
        `emulate-range.${name}`,
        8,
        0x50,
        [0, RWX],
        (t) => [
          ept("r", t.p(0, 0x50), { size: 8, rights: 0 }).do((c, b) =>
            c.emulate(b.p(0, 0x50 + from), fromHex(pattern(length, 0x31))),
          ),
        ],
        result.replaceAll(" ", ""),
      ),
  ),
  ...Array.from(
    { length: 8 },
    (_, i): Case =>
      load(
        `emulate-offset.${i}`,
        4,
        0x60 + i,
        [0, RWX],
        (t) => [
          ept("r", t.p(0, 0x60 + i), { size: 4, rights: 0 }).do((c, b) =>
            c.emulate(b.p(0, 0x60), fromHex(pattern(16))),
          ),
        ],
        pattern(4, 0x11 + i),
      ),
  ),
  {
    name: "reply.one-instruction-only",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [
      ept("w", t.p(0), { rights: R }).scratch(),
      ept("w", t.p(0, 8), { rights: R, rip: t.symbol("st8x2") + 3 }).resume(),
    ],
    memory: (t) => [[t.p(0), le(0, 8) + le(VALUE, 8)]],
  },
  {
    name: "reply.scratch-then-read-is-real",
    entry: "st8_ld8",
    regs: (t) => ({ rdi: t.d(0), rsi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.put64(t.p(0), 5n);
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0), { rights: R }).scratch()],
    end: { rbx: 5 },
  },
  {
    name: "reply.retry-violates-again",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [
      ept("w", t.p(0), { rights: R }).retry(),
      ept("w", t.p(0), { rights: R }).retry(),
      ept("w", t.p(0), { rights: R }).resume(),
    ],
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  },
  {
    name: "reply.user-store",
    mode: "user",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("wu", t.p(0), { size: 8, rights: R }).resume()],
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  },
  {
    name: "reply.guest-tables-first",
    entry: "st8",
    // Read-only in the guest's tables: a #PF, whatever the view says of the page.
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.put64(WALK.long![3]!, BigInt(t.p(0)) | 0x65n);
      t.rights(t.p(0), 0);
    },
    script: (t) => [
      trap(14, { error: 3, rip: "st8", cr2: t.d(0) }).do((_, b) => {
        b.put64(WALK.long![3]!, BigInt(b.p(0)) | 0x67n);
      }),
      ept("w", t.p(0), { rights: 0 }).resume(),
    ],
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  },
];

export const accesses: Case[] = [
  ...SIZES.flatMap(storeReplies),
  ...SIZES.slice(1).flatMap((size) => [
    crossingStore(size, "resume", undefined),
    crossingStore(size, undefined, "resume"),
    crossingStore(size, "resume", "resume"),
    crossingStore(size, "scratch", undefined),
    crossingStore(size, undefined, "scratch"),
    crossingStore(size, "scratch", "scratch"),
    crossingStore(size, "scratch", "resume"),
  ]),
  ...SIZES.flatMap(loadReplies),
  ...SIZES.slice(1).flatMap(crossingLoads),
  ...RMW.flatMap((r) => [rmwCase(r, "resume"), rmwCase(r, "scratch"), rmwCase(r, "emulate")]),
  ...cmpxchg16b,
  ...crossingRmw,
  ...others,
];
