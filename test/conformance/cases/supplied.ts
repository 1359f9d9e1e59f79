// SPDX-License-Identifier: MIT
/** EMULATE where the access is not a plain load or store: read-modify-write, strings, stack, events, walks, areas. */

import { type Bench, fromHex, le, pattern, toHex } from "../bench.ts";
import { type Case, ept, over, type Step, trap } from "../case.ts";
import { GDT, IDT, SEL, STACK, STACK_RSP0, TSS, WALK } from "../layout.ts";
import { RMW, type Rmw } from "./access.ts";
import { R, RW, RWX, setYmm0, VALUE, ymm0 } from "./words.ts";

const SP = STACK - 0x100;
const STACK_PAGE = STACK - 0x1000;

/** Spare page with the bytes of a page of RAM, and these on top. Its index. */
function spareOf(t: Bench, gpa: number, ...changes: [number, string][]): number {
  const i = t.vm.addSpare(1);
  const page = t.vm.spare(i);
  page.set(fromHex(t.peek(gpa & ~0xfff, 4096)));
  for (const [offset, bytes] of changes) page.set(fromHex(bytes), offset);
  return i;
}
/** EMULATE: the whole page reads as spare page 0. */
const fromSpare = (s: Step, gpa: number, o: { write?: boolean } = {}) =>
  s.emulateSpare([[gpa & ~0xfff, 4096, 0]], o);

/* ---- read-modify-write ------------------------------------------------------------------ */

type RmwHow = "beside" | "over" | "half" | "spare";
function rmwCase(r: Rmw, how: RmwHow): Case {
  const o = 0x60;
  const other = le(0x6b6b6b6b6b6b6b6bn, r.size);
  const [real, result] = [le(r.memory, r.size), le(r.result, r.size)];
  // Of "half", the low half of the operand is supplied.
  const half = how === "half" ? r.size : how === "beside" ? 0 : 2 * r.size;
  const stands = other.slice(0, half) + real.slice(half);
  return {
    name: `emulate.rmw.${r.entry}.${how}`,
    entry: r.entry,
    regs: (t) => ({ ...r.regs, rdi: t.d(0, o) }),
    setup: (t) => {
      t.poke(t.p(0, o), stands);
      t.rights(t.p(0), 0);
      if (how === "spare") spareOf(t, t.p(0), [o, real]);
    },
    script: (t) => {
      const s = ept("rw", t.p(0, o), { size: r.size });
      if (how === "spare") return [fromSpare(s, t.p(0), { write: true })];
      const ranges: [number, string][] =
        how === "beside"
          ? [
              [t.p(0, o - 8), "1122334455667788"],
              [t.p(0, o + r.size), "1122334455667788"],
            ]
          : [[t.p(0, o), real.slice(0, half)]];
      return [s.emulate(ranges, { write: true })];
    },
    memory: (t) => [[t.p(0, o), stands.slice(0, half) + result.slice(half)]],
    end: r.end,
    brief: Object.keys(r.end).length === 0,
  };
}
const rmw = RMW.flatMap((r) =>
  (["beside", "over", "spare", ...(r.size > 1 ? ["half"] : [])] as RmwHow[]).map((how) =>
    rmwCase(r, how),
  ),
);

const wide: Case[] = (["beside", "over", "spare"] as const).map((how) => {
  const real = le(1, 8) + le(2, 8);
  const stands = how === "beside" ? real : "6b".repeat(16);
  return {
    name: `emulate.rmw.lock_cmpxchg16b.${how}`,
    entry: "lock_cmpxchg16b",
    regs: (t) => ({ rdi: t.d(0, 0x60), rax: 1, rdx: 2, rbx: 3, rcx: 4 }),
    setup: (t) => {
      t.poke(t.p(0, 0x60), stands);
      t.rights(t.p(0), R);
      if (how === "spare") spareOf(t, t.p(0), [0x60, real]);
    },
    script: (t) => {
      const s = ept("rw", t.p(0, 0x60), { size: 16 });
      if (how === "spare") return [fromSpare(s, t.p(0), { write: true })];
      return [
        s.emulate([[t.p(0, how === "beside" ? 0x70 : 0x60), how === "beside" ? "ff" : real]], {
          write: true,
        }),
      ];
    },
    memory: (t) => [[t.p(0, 0x60), how === "beside" ? le(3, 8) + le(4, 8) : stands]],
    end: { flags: 0x40 },
  };
});

/* ---- two pages ---------------------------------------------------------------------------- */

/** LOCK ADD of 8 bytes over pages 0 and 1. Memory reads 16 in all; what is supplied is 1000. */
const ADDEND = 0x0100000000000001n;
const inMemory = le(0x10, 8);
const given = le(1000, 8);
const sum = (low: bigint) => le(low + ADDEND, 8);
function crossing(
  name: string,
  answer: (first: Step, second: Step, t: Bench) => Step[],
  memory: string,
  rights: [number, number] = [0, R],
): Case {
  return {
    name: `emulate.crossing.${name}`,
    entry: "lock_xadd8",
    regs: (t) => ({ rdi: t.d(0, 0xffc), rax: ADDEND }),
    setup: (t) => {
      t.poke(t.p(0, 0xffc), inMemory);
      t.rights(t.p(0), rights[0]);
      t.rights(t.p(1), rights[1]);
    },
    script: (t) =>
      answer(
        ept("rw", t.p(0, 0xffc), { rights: rights[0] }),
        ept("rw", t.p(1), { rights: rights[1] }),
        t,
      ),
    memory: (t) => [[t.p(0, 0xffc), memory]],
  };
}
const lowGiven = (t: Bench): [number, string] => [t.p(0, 0xffc), given.slice(0, 8)];
const highGiven = (t: Bench): [number, string] => [t.p(1), "ffffffff"];
const crossings: Case[] = [
  {
    ...crossing(
      "write-resume",
      (a, b, t) => [a.emulate([lowGiven(t)], { write: true }), b.resume()],
      inMemory.slice(0, 8) + sum(1000n).slice(8),
    ),
    end: { rax: 1000 },
  },
  {
    ...crossing(
      "resume-write",
      (a, b, t) => [a.resume(), b.emulate([highGiven(t)], { write: true })],
      sum(0xffffffff00000010n).slice(0, 8) + inMemory.slice(8),
    ),
    end: { rax: 0xffffffff00000010n },
  },
  {
    ...crossing(
      "write-scratch",
      (a, b) => [a.emulate([], { write: true }), b.scratch()],
      sum(0x10n).slice(0, 8) + inMemory.slice(8),
    ),
    end: { rax: 0x10 },
  },
  {
    ...crossing(
      "emulate-write",
      (a, b, t) => [a.emulate([lowGiven(t)]), b.emulate([[t.p(1, 3), "7f"]], { write: true })],
      inMemory.slice(0, 8) + sum(0x7f000000000003e8n).slice(8, 14) + inMemory.slice(14),
    ),
    end: { rax: 0x7f000000000003e8n },
  },
  // Ranges of the first reply on the second page hold, however that page is answered.
  ...(["resume", "scratch", "write"] as const).map(
    (how): Case => ({
      ...crossing(
        `both-ranges.${how}`,
        (a, b, t) => [
          a.emulate([lowGiven(t), [t.p(1), "eeff"]], { write: true }),
          how === "write" ? b.emulate([], { write: true }) : b[how](),
        ],
        inMemory.slice(0, 8) +
          (how === "scratch" ? inMemory.slice(8) : `0000${sum(0x0000ffee000003e8n).slice(12)}`),
      ),
      end: { rax: 0x0000ffee000003e8n },
    }),
  ),
  // The second page may be written: nobody asks about it, and the range there holds all the same.
  {
    ...crossing(
      "range-on-a-free-page",
      (a, _, t) => [a.emulate([lowGiven(t), [t.p(1), "eeff"]], { write: true })],
      `${inMemory.slice(0, 8)}0000${sum(0x0000ffee000003e8n).slice(12)}`,
      [0, RWX],
    ),
    end: { rax: 0x0000ffee000003e8n },
  },
  {
    ...crossing(
      "spare-both",
      (a, b, t) => [
        a.emulateSpare([[t.p(0), 4096, 0]], { write: true }),
        b.emulateSpare([[t.p(1, 2), 2, 1]], { write: true }),
      ],
      `${inMemory.slice(0, 8)}${sum(0x44430000_14131211n).slice(8, 12)}0000`,
    ),
    setup: (t) => {
      t.poke(t.p(0, 0xffc), inMemory);
      t.rights(t.p(0), 0);
      t.rights(t.p(1), R);
      t.vm.addSpare(2);
      t.vm.spare(0).set(fromHex("11121314"), 0xffc);
      t.vm.spare(1).set(fromHex("41424344"), 0);
    },
    end: { rax: 0x4443000014131211n },
  },
];

/* ---- ranges ---------------------------------------------------------------------------------- */

const ranges: Case[] = [
  {
    name: "emulate.ranges.sixteen",
    entry: "ld32",
    needs: "avx",
    regs: (t) => ({ rsi: t.d(0, 0x40) }),
    setup: (t) => {
      t.poke(t.p(0, 0x40), "00".repeat(32));
      t.rights(t.p(0), 0);
    },
    script: (t) => [
      ept("r", t.p(0, 0x40)).emulate(
        Array.from({ length: 16 }, (_, i): [number, string] => [
          t.p(0, 0x40 + 2 * i),
          le(i + 1, 1),
        ]),
      ),
    ],
    check: (t) => {
      const should = Array.from({ length: 16 }, (_, i) => le(i + 1, 2)).join("");
      return ymm0(t, 32) === should ? undefined : `YMM0 is ${ymm0(t, 32)}`;
    },
  },
  {
    name: "emulate.ranges.last-counts",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0, 0x40) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0, 0x40)).emulate([
        [t.p(0, 0x40), "1111111111111111"],
        [t.p(0, 0x42), "22222222"],
        [t.p(0, 0x43), "33"],
      ]),
    ],
    end: { rax: 0x1111222233221111n },
  },
  {
    name: "emulate.ranges.one-instruction-only",
    entry: "st8_ld8",
    regs: (t) => ({ rdi: t.d(0), rsi: t.d(0), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("w", t.p(0)).emulate([[t.p(0), "ffff"]], { write: true }),
      ept("r", t.p(0), { rip: t.symbol("st8_ld8") + 3 }).resume(),
    ],
    end: { rbx: VALUE & ~0xffffn },
  },
  // What the engine writes to memory between two violations of one instruction is not undone.
  {
    name: "emulate.ranges.memory-changes-meanwhile",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0, 0xffc), rax: VALUE }),
    setup: (t) => {
      t.poke(t.p(0, 0xff0), "00".repeat(12));
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(0, 0xffc)).emulate([], { write: true }),
      ept("w", t.p(1))
        .resume()
        .do((_, b) => b.poke(b.p(0, 0xff0), "aabbccdd")),
    ],
    memory: (t) => [[t.p(0, 0xff0), `aabbccdd${"00".repeat(8)}${le(VALUE, 8)}`]],
  },
  {
    name: "emulate.ranges.no-ram.write",
    entry: "add4",
    regs: (t) => ({ rdi: t.d(0x20), rax: 1 }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfee00067n),
    script: (t) => [
      ept("rwn", 0xfee00000, { gva: t.d(0x20), size: 4 }).emulate([[0xfee00000, "ffffffff"]], {
        write: true,
      }),
    ],
    end: { flags: 0x45 },
  },
  // Bytes that were written with the values that stood in memory or were supplied.
  {
    name: "emulate.ranges.same-values",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.poke(t.p(0), "1100330055000000");
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0)).emulate([[t.p(0, 4), "5566"]], { write: true })],
    memory: (t) => [[t.p(0), "1122334455007788"]],
  },
];

/* ---- strings --------------------------------------------------------------------------------- */

const strings: Case[] = [
  {
    name: "emulate.string.movsq.both-pages",
    entry: "movsq",
    regs: (t) => ({ rsi: t.d(4, 0xffc), rdi: t.d(0, 0xffc) }),
    setup: (t) => {
      for (const n of [0, 1]) t.rights(t.p(n), R);
      for (const n of [4, 5]) t.rights(t.p(n), 0);
      t.vm.addSpare(2);
      t.vm.spare(0).set(fromHex("a1a2a3a4"), 0xffc);
      t.vm.spare(1).set(fromHex("a5a6a7a8"), 0);
    },
    script: (t) => [
      ept("r", t.p(4, 0xffc), { size: 4 }).emulateSpare([[t.p(4), 4096, 0]]),
      ept("r", t.p(5), { size: 4 }).emulateSpare([[t.p(5), 4096, 1]]),
      ept("w", t.p(0, 0xffc), { size: 4 }).emulate([[t.p(0, 0xffd), "00"]], { write: true }),
      ept("w", t.p(1), { size: 4 }).scratch(),
    ],
    memory: (t) => [[t.p(0, 0xffc), "a100a3a400000000"]],
  },
  {
    name: "emulate.string.movsb.same-page",
    entry: "movsb",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(0, 0x10) }),
    setup: (t) => {
      t.poke(t.p(0), "5a");
      t.rights(t.p(0), 0);
    },
    script: (t) => [ept("r", t.p(0)).emulate([[t.p(0), "77"]], { write: true })],
    memory: (t) => [
      [t.p(0), "5a"],
      [t.p(0, 0x10), "77"],
    ],
  },
  // A copy over a page with a range in the middle: each iteration is answered, the range stays as it was.
  {
    name: "emulate.string.rep_movsb.around-a-range",
    entry: "rep_movsb",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0, 0x20), rcx: 24 }),
    setup: (t) => {
      t.poke(t.p(4), pattern(24));
      t.rights(t.p(0), R);
    },
    script: (t) =>
      Array.from({ length: 24 }, (_, i) =>
        ept("w", t.p(0, 0x20 + i), { size: 1, rip: "rep_movsb", regs: { rcx: 24 - i } }).emulate(
          [[t.p(0, 0x28), "eeeeeeee"]],
          { write: true },
        ),
      ),
    memory: (t) => [[t.p(0, 0x20), `${pattern(8)}00000000${pattern(12, 0x1d)}`]],
    end: { rcx: 0 },
  },
  {
    name: "emulate.string.rep_movsq.from-spare",
    entry: "rep_movsq",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0), rcx: 3 }),
    setup: (t) => {
      t.rights(t.p(4), 0);
      t.vm.addSpare(1);
      t.vm.spare(0).set(fromHex(pattern(24, 0x51)));
    },
    script: (t) =>
      [0, 1, 2].map((i) =>
        fromSpare(ept("r", t.p(4, 8 * i), { size: 8, rip: "rep_movsq" }), t.p(4)),
      ),
    memory: (t) => [[t.p(0), pattern(24, 0x51)]],
  },
  {
    name: "emulate.string.repe_cmpsb.from-spare",
    entry: "repe_cmpsb",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(4), rcx: 8 }),
    setup: (t) => {
      t.poke(t.p(4), "0102030405060708");
      t.rights(t.p(0), 0);
      t.vm.addSpare(1);
      t.vm.spare(0).set(fromHex("010203ff"));
    },
    script: (t) =>
      [0, 1, 2, 3].map((i) => fromSpare(ept("r", t.p(0, i), { rip: "repe_cmpsb" }), t.p(0))),
    end: { rcx: 4 },
  },
  {
    name: "emulate.string.repne_scasb.from-spare",
    entry: "repne_scasb",
    regs: (t) => ({ rdi: t.d(0), rcx: 8, rax: 0x7e }),
    setup: (t) => {
      t.rights(t.p(0), 0);
      t.vm.addSpare(1);
      t.vm.spare(0).set(fromHex("01027e"));
    },
    script: (t) =>
      [0, 1, 2].map((i) => fromSpare(ept("r", t.p(0, i), { rip: "repne_scasb" }), t.p(0))),
    end: { rcx: 5 },
  },
];

/* ---- the stack and events ------------------------------------------------------------------------- */

/** A gate of vector `at` that leads to the handler of another one, as in the IDT. */
function gateTo(t: Bench, vector: number): string {
  const h = t.symbol("handlers") + 16 * vector;
  return le((h & 0xffff) | (SEL.code64 << 16), 4) + le((h & 0xffff0000) | 0xee00, 4) + le(0, 8);
}

const stack: Case[] = [
  {
    name: "emulate.stack.push.write",
    entry: "push_rax",
    regs: { rax: VALUE },
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [ept("w", SP - 8, { size: 8 }).emulate([[SP - 8, "ff"]], { write: true })],
    memory: [[SP - 8, `00${le(VALUE, 8).slice(2)}`]],
  },
  {
    name: "emulate.stack.call.write",
    entry: "call_near",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [ept("w", SP - 8, { size: 8 }).emulate([[SP, "ff"]], { write: true })],
    check: (t) =>
      t.get64(SP - 8) === BigInt(t.symbol("call_near") + 5)
        ? undefined
        : `the return address is ${t.get64(SP - 8)}`,
  },
  {
    name: "emulate.stack.push-mem.spare-and-write",
    entry: "push_mem",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.rights(t.p(0), 0);
      t.rights(STACK_PAGE, R);
      t.vm.addSpare(1);
      t.vm.spare(0).set(fromHex(pattern(8, 0x21)));
    },
    script: (t) => [
      fromSpare(ept("r", t.p(0), { size: 8 }), t.p(0)),
      ept("w", SP - 8, { size: 8 }).emulate([], { write: true }),
    ],
    memory: [[SP - 8, pattern(8, 0x21)]],
  },
  {
    name: "emulate.stack.pop-mem.spare",
    entry: "pop_mem",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => {
      spareOf(t, SP, [SP & 0xfff, le(VALUE, 8)]);
      t.rights(STACK_PAGE, 0);
    },
    script: [fromSpare(ept("r", SP, { size: 8 }), SP)],
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  },
  {
    name: "emulate.stack.ret.spare",
    entry: "ret_near",
    setup: (t) => {
      spareOf(t, SP, [SP & 0xfff, le(t.symbol("done"), 8)]);
      t.rights(STACK_PAGE, 0);
    },
    script: [fromSpare(ept("r", SP, { size: 8 }), SP)],
    end: { rsp: SP + 8 },
  },
  {
    name: "emulate.stack.iret.spare",
    entry: "iret",
    setup: (t) => {
      const frame = [t.symbol("done"), SEL.code64, 0x246, SP + 0x40, SEL.data];
      spareOf(t, SP, [SP & 0xfff, frame.map((x) => le(x, 8)).join("")]);
      t.rights(STACK_PAGE, 0);
    },
    script: [fromSpare(ept("r", SP, { page: true }), SP)],
    end: { rsp: SP + 0x40, rflags: 0x246 },
  },
  {
    name: "emulate.stack.call-mem.spare",
    entry: "call_mem",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      spareOf(t, t.p(0), [0, le(t.symbol("done"), 8)]);
      t.rights(t.p(0), 0);
      t.rights(STACK_PAGE, R);
    },
    script: (t) => [
      fromSpare(ept("r", t.p(0), { size: 8 }), t.p(0)),
      ept("w", SP - 8, { size: 8 }).emulate([], { write: true }),
    ],
    end: { rsp: SP - 8 },
  },
  // The frame is pushed but for the range, in which the guest finds what stood there.
  {
    name: "emulate.event.frame.write",
    entry: "int_30",
    setup: (t) => {
      t.put64(SP - 40, BigInt(t.symbol("done")));
      t.rights(STACK_PAGE, R);
    },
    script: (t) => [
      ept("we", SP - 8, { page: true }).emulate([[SP - 40, le(0, 8)]], { write: true }),
      trap(0x30, { rip: t.symbol("done") }),
    ],
    end: { rsp: SP },
  },
  {
    name: "emulate.event.idt.spare",
    entry: "int_30",
    setup: (t) => {
      spareOf(t, IDT, [16 * 0x30, gateTo(t, 0x31)]);
      t.rights(IDT, 0);
    },
    script: (t) => [
      fromSpare(ept("re", IDT + 16 * 0x30, { page: true }), IDT),
      trap(0x31, { rip: t.symbol("int_30") + 2 }),
    ],
  },
  {
    name: "emulate.event.idt-and-frame",
    entry: "int_30",
    setup: (t) => {
      spareOf(t, IDT, [16 * 0x30, gateTo(t, 0x31)]);
      t.rights(IDT, 0);
      t.rights(STACK_PAGE, R);
    },
    script: (t) => [
      fromSpare(ept("re", IDT + 16 * 0x30, { page: true }), IDT),
      ept("we", SP - 8, { page: true }).emulate([], { write: true }),
      trap(0x31, { rip: t.symbol("int_30") + 2 }),
    ],
    end: { rsp: SP },
  },
  {
    name: "emulate.event.exception.idt.spare",
    entry: "ud2",
    setup: (t) => {
      spareOf(t, IDT, [16 * 6, gateTo(t, 0x31)]);
      t.rights(IDT, 0);
    },
    script: (t) => [
      fromSpare(ept("re", IDT + 16 * 6, { page: true }), IDT),
      trap(0x31, { rip: t.symbol("ud2") }).do((v) => {
        v.rip = t.symbol("done");
        v.retry();
      }),
    ],
  },
  {
    name: "emulate.event.tss.spare",
    mode: "user",
    entry: "int_30",
    // The stack that is taken is 100h lower than the TSS in memory says.
    setup: (t) => {
      spareOf(t, TSS, [4, le(STACK_RSP0 - 0x100, 8)]);
      t.rights(TSS, 0);
    },
    script: (t) => [
      fromSpare(ept("re", TSS + 4, { page: true }), TSS),
      trap(0x30, { rip: t.symbol("int_30") + 2 }, { regs: { rsp: STACK_RSP0 - 0x128 } }),
    ],
  },
  // The accessed bit of a descriptor is a write to the GDT: into the range it is dropped, beside it it is made.
  ...([true, false] as const).map(
    (covered): Case => ({
      name: `emulate.descriptor.accessed.${covered ? "dropped" : "written"}`,
      entry: "load_ds",
      regs: { rax: SEL.dataFresh },
      setup: (t) => {
        spareOf(t, GDT);
        t.rights(GDT, 0);
      },
      script: [
        ept("r|rw", GDT + SEL.dataFresh, { page: true }).emulateSpare(
          [[covered ? GDT : GDT + 0x800, 0x800, 0]],
          { write: true },
        ),
      ],
      check: (t) => {
        const bit = (t.get64(GDT + SEL.dataFresh) >> 40n) & 1n;
        if (bit !== (covered ? 0n : 1n)) return `the accessed bit is ${bit}`;
        return t.vm.spare(0)[SEL.dataFresh + 5]! & 1 ? "the spare page was written" : undefined;
      },
      end: { ds: SEL.dataFresh },
    }),
  ),
  {
    name: "emulate.descriptor.lidt.spare",
    entry: "lidt",
    regs: (t) => ({ rsi: t.d(0, 0xffb) }),
    setup: (t) => {
      for (const n of [0, 1]) {
        t.rights(t.p(n), 0);
        t.vm.addSpare(1);
      }
      t.vm.spare(0).set(fromHex("ff03009000"), 0xffb);
    },
    script: (t) => [
      ept("r", t.p(0, 0xffb), { page: true }).emulateSpare([[t.p(0), 4096, 0]]),
      ept("r", t.p(1), { page: true }).emulateSpare([[t.p(1), 4096, 1]]),
    ],
    end: { idtBase: 0x9000, idtLimit: 0x3ff },
  },
];

/* ---- page walks -------------------------------------------------------------------------------------- */

/** The page table of the window cannot be read; the spare page that stands for it maps page 0 to page 1. */
function walk(level: number, entry: string, more: Partial<Case> = {}): Case {
  const at = WALK.long![level]!;
  return {
    name: `emulate.walk.level${4 - level}.${entry}`,
    entry,
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.put64(t.p(0), 10n);
      t.put64(t.p(1), 11n);
      // A table of the last level for page 1; tables above it that lead to it.
      const pt = t.p(8);
      t.put64(pt, BigInt(t.p(1)) | 0x67n);
      const pd = t.p(9);
      t.put64(pd, BigInt(pt) | 0x27n);
      const pdpt = t.p(10);
      t.put64(pdpt, BigInt(pd) | 0x27n);
      const next = [pdpt, pd, pt, t.p(1)][level]!;
      // Without accessed and dirty, in memory and in the spare page.
      t.put32(at, t.get32(at) & ~0x60);
      spareOf(t, at, [at & 0xfff, le(next | 7, 8)]);
      t.rights(at, 0);
    },
    script: (t) => [ept("rk|rwk", at, { gva: t.d(0) }).emulateSpare([[at & ~0xfff, 4096, 0]])],
    check: (t) => {
      // What the walk sets is set in memory, whatever it read; the spare page is nobody's to write.
      const should = level === 3 && entry !== "ld8" ? 0x60 : 0x20;
      const bits = t.get32(at) & 0x60;
      if (bits !== should) return `accessed and dirty are ${bits.toString(16)} in memory`;
      return t.vm.spare(0)[at & 0xfff]! & 0x60 ? "the spare page was written" : undefined;
    },
    ...more,
  };
}
const walks: Case[] = [
  // Only the window's own tables: the code's walk goes through the top one too.
  ...[1, 2, 3].flatMap((level) => [
    walk(level, "ld8", { end: { rax: 11 } }),
    walk(level, "st8", {
      memory: (t) => [
        [t.p(0), le(10, 8)],
        [t.p(1), le(VALUE, 8)],
      ],
    }),
    walk(level, "add8", {
      end: { rax: VALUE },
      memory: (t) => [
        [t.p(0), le(10, 8)],
        [t.p(1), le(VALUE + 11n, 8)],
      ],
      brief: true,
    }),
  ]),
  // The next instruction walks the real tables.
  walk(3, "st8_ld8", {
    name: "emulate.walk.one-instruction-only",
    script: (t) => {
      const at = WALK.long![3]!;
      return [
        ept("rk|rwk", at, { gva: t.d(0) }).emulateSpare([[at & ~0xfff, 4096, 0]]),
        ept("rk|rwk", at, { gva: t.d(0), rip: t.symbol("st8_ld8") + 3 }).resume(),
      ];
    },
    end: { rbx: 10 },
    memory: (t) => [[t.p(1), le(VALUE, 8)]],
  }),
  // Supplied bytes of a table, and another reply for the page that it leads to.
  walk(3, "st8", {
    name: "emulate.walk.then-violation",
    script: (t) => {
      const at = WALK.long![3]!;
      t.rights(t.p(1), R);
      return [
        ept("rk|rwk", at, { gva: t.d(0) }).emulateSpare([[at & ~0xfff, 4096, 0]]),
        ept("w", t.p(1), { gva: t.d(0), size: 8 }).emulate([[t.p(1), "99"]], { write: true }),
      ];
    },
    memory: (t) => [[t.p(1), `0b${le(VALUE, 8).slice(2)}`]],
  }),
  // A table in device space: nobody answers but the reply.
  {
    name: "emulate.walk.no-ram",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(1), 11n);
      t.put64(WALK.long![2]!, 0xfec00027n);
    },
    script: (t) => [
      ept("rkn|rwkn", 0xfec00000, { gva: t.d(0) }).emulate([
        [0xfec00000, le(BigInt(t.p(1)) | 0x67n, 8)],
      ]),
    ],
    end: { rax: 11 },
  },
  {
    name: "emulate.walk.no-ram.resume",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.put64(WALK.long![2]!, 0xfec00027n),
    // It reads as ones: a present entry with reserved bits.
    script: (t) => [
      ept("rkn|rwkn", 0xfec00000, { gva: t.d(0) }).resume(),
      trap(14, { error: 9, rip: "ld8" }).do((v) => {
        v.rip = t.symbol("done");
        v.retry();
      }),
    ],
  },
  ...(["p32", "pae"] as const).map(
    (mode): Case => ({
      name: `emulate.walk.${mode}`,
      mode,
      entry: "st4",
      regs: (t) => ({ rdi: t.d(0), rax: 0x44332211 }),
      setup: (t) => {
        const at = WALK[mode]!.at(-1)!;
        t.put32(at, t.get32(at) & ~0x60);
        spareOf(t, at, [at & 0xfff, le(t.p(1) | 7, 4)]);
        t.rights(at, 0);
      },
      script: (t) => {
        const at = WALK[mode]!.at(-1)!;
        return [ept("rk|rwk", at, { gva: t.d(0) }).emulateSpare([[at & ~0xfff, 4096, 0]])];
      },
      memory: (t) => [
        [t.p(0), "00000000"],
        [t.p(1), "11223344"],
      ],
      check: (t) => {
        const bits = t.get32(WALK[mode]!.at(-1)!) & 0x60;
        return bits === 0x60 ? undefined : `accessed and dirty are ${bits.toString(16)}`;
      },
    }),
  ),
];

/* ---- save areas --------------------------------------------------------------------------------------- */

/** An area for FXRSTOR or XRSTOR: control words, XMM0, and the header that says so. */
function area(xmm0: string): string {
  const bytes = new Uint8Array(4096);
  bytes.set(fromHex("7f03"), 0);
  bytes.set(fromHex("801f"), 24);
  bytes.set(fromHex(xmm0), 160);
  bytes[512] = 2;
  return toHex(bytes);
}
/** The area at byte `o` of page 0, so laid over one or two spare pages. */
function spareArea(t: Bench, o: number, xmm0: string): void {
  t.vm.addSpare(2);
  const bytes = fromHex(area(xmm0));
  t.vm.spare(0).set(bytes.subarray(0, 4096 - o), o);
  t.vm.spare(1).set(bytes.subarray(4096 - o, 4096 - o + 1024), 0);
}
const areas: Case[] = [
  ...(["fxrstor", "xrstor"] as const).flatMap((entry) =>
    [0x200, 0xf40].map(
      (o): Case => ({
        name: `emulate.area.${entry}.spare.${o.toString(16)}`,
        entry,
        regs: (t) => ({ rsi: t.d(0, o), rax: 2 }),
        setup: (t) => {
          spareArea(t, o, pattern(16, 0x81));
          t.poke(t.p(0), "ff".repeat(0x2000));
          t.rights(t.p(0), 0);
          t.rights(t.p(1), 0);
        },
        // XRSTOR reads its header first, which may be on the second page.
        script: (t) => {
          const pages = [0, ...(o > 0xe00 ? [1] : [])];
          if (entry === "xrstor") pages.reverse();
          return pages.map((n) =>
            ept("r", t.p(n), { page: true, gpa: undefined, gva: undefined }).do((v, b) => {
              const k = Math.floor(v.exitGpa / 4096) - b.gfn(0);
              v.beginEmulate();
              v.emulateSpare(b.p(k), 4096, k);
              v.endEmulate(false, false);
            }),
          );
        },
        check: (t) => (ymm0(t, 16) === pattern(16, 0x81) ? undefined : `XMM0 is ${ymm0(t, 16)}`),
      }),
    ),
  ),
  ...(["fxsave", "xsave"] as const).flatMap((entry) => [
    // Written but for XMM0, which lies in the range.
    {
      name: `emulate.area.${entry}.write`,
      entry,
      regs: (t: Bench) => ({ rdi: t.d(0, 0x200), rax: 3 }),
      setup: (t: Bench) => {
        setYmm0(t, pattern(16));
        t.poke(t.p(0, 0x200 + 144), "ee".repeat(48));
        t.rights(t.p(0), R);
      },
      script: (t: Bench) => [
        ept("w|rw|r", t.p(0, 0x200), { page: true }).emulate(
          [[t.p(0, 0x200 + 160), "77".repeat(16)]],
          {
            write: true,
          },
        ),
      ],
      memory: (t: Bench): [number, string][] => [
        [t.p(0, 0x200 + 24), "801f"],
        [t.p(0, 0x200 + 160), "ee".repeat(16)],
        [t.p(0, 0x200 + 176), "00".repeat(16)],
      ],
    },
    {
      name: `emulate.area.${entry}.spare`,
      entry,
      regs: (t: Bench) => ({ rdi: t.d(0, 0x200), rax: 3 }),
      setup: (t: Bench) => {
        setYmm0(t, pattern(16));
        t.vm.addSpare(1);
        t.poke(t.p(0, 0x200), "ee".repeat(832));
        t.rights(t.p(0), R);
      },
      script: (t: Bench) => [fromSpare(ept("w|rw|r", t.p(0, 0x200), { page: true }), t.p(0))],
      memory: (t: Bench): [number, string][] => [[t.p(0, 0x200), "ee".repeat(832)]],
    },
  ]),
];

/* ---- code ------------------------------------------------------------------------------------------------ */

const code: Case[] = [
  // The page reads as nonsense; the spare page has: mov [rdi], rax; out 0xee, al.
  ...([true, false] as const).map(
    (covered): Case => ({
      name: `emulate.code.spare.store-${covered ? "into-range" : "beside"}`,
      regs: (t) => ({ rip: t.d(7), rdi: t.d(7, 0x80), rax: VALUE }),
      setup: (t) => {
        t.poke(t.p(7), "06".repeat(16));
        spareOf(t, t.p(7), [0, "488907"]);
        t.rights(t.p(7), RW);
      },
      // The page may be written, so its bytes outside the ranges are.
      script: (t) => [
        ept("x", t.p(7), { rip: t.d(7) }).emulateSpare([[t.p(7), covered ? 4096 : 16, 0]]),
        ept("x", t.p(7, 3), { rip: t.d(7, 3) }).do((v, b) => {
          b.poke(b.p(7, 3), "e6ee");
          b.rights(b.p(7), RWX);
          v.retry();
        }),
      ],
      memory: (t) => [[t.p(7, 0x80), covered ? le(0, 8) : le(VALUE, 8)]],
    }),
  ),
  {
    name: "emulate.code.no-ram",
    regs: (t) => ({ rip: t.d(0x20), rax: t.symbol("done") }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfec00067n),
    // jmp *%rax
    script: (t) => [ept("xn", 0xfec00000, { gva: t.d(0x20) }).emulate([[0xfec00000, "ffe0"]])],
  },
  {
    name: "emulate.code.no-ram.resume",
    regs: (t) => ({ rip: t.d(0x20) }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfec00067n),
    // Ones are no instruction.
    script: (t) => [
      ept("xn", 0xfec00000, { gva: t.d(0x20) }).resume(),
      trap(6, { rip: t.d(0x20) }).do((v) => {
        v.rip = t.symbol("done");
        v.retry();
      }),
    ],
  },
];

/* ---- other modes ------------------------------------------------------------------------------------------- */

const modes: Case[] = (["prot", "p32", "pae"] as const).flatMap((mode): Case[] => [
  {
    name: `emulate.${mode}.store`,
    mode,
    entry: "st4",
    regs: (t) => ({ rdi: t.d(0, 0xffe), rax: 0x44332211 }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(0, 0xffe), { size: 2 }).emulate([[t.p(0, 0xfff), "ff"]], {
        write: true,
        notify: true,
      }),
      ept("w", t.p(1), { size: 2 }).emulate([[t.p(1), "ff"]], { write: true }),
      over(t.symbol("st4") + 2),
    ],
    memory: (t) => [[t.p(0, 0xffe), "11000044"]],
  },
  {
    name: `emulate.${mode}.load.spare`,
    mode,
    entry: "ld4",
    regs: (t) => ({ rsi: t.d(0, 0xffe) }),
    setup: (t) => {
      t.vm.addSpare(2);
      t.vm.spare(0).set(fromHex("a1a2"), 0xffe);
      t.vm.spare(1).set(fromHex("a3a4"));
      t.rights(t.p(0), 0);
      t.rights(t.p(1), 0);
    },
    script: (t) => [
      ept("r", t.p(0, 0xffe), { size: 2 }).emulateSpare([[t.p(0), 4096, 0]]),
      ept("r", t.p(1), { size: 2 }).emulateSpare([[t.p(1), 4096, 1]]),
    ],
    end: { rax: 0xa4a3a2a1 },
  },
  {
    name: `emulate.${mode}.pusha`,
    mode,
    entry: "pusha",
    regs: { rax: 0x11, rcx: 0x22, rdx: 0x33, rbx: 0x44, rbp: 0x55, rsi: 0x66, rdi: 0x77 },
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [ept("w", SP - 4, { page: true }).emulate([[SP - 12, "ffffffff"]], { write: true })],
    memory: [[SP - 32, [0x77, 0x66, 0x55, SP, 0x44, 0, 0x22, 0x11].map((x) => le(x, 4)).join("")]],
    end: { rsp: SP - 32 },
  },
  {
    name: `emulate.${mode}.event`,
    mode,
    entry: "int_30",
    setup: (t) => {
      const h = t.symbol("handlers") + 16 * 0x31;
      spareOf(t, IDT, [
        8 * 0x30,
        le((h & 0xffff) | (SEL.code64 << 16), 4) + le((h & 0xffff0000) | 0xee00, 4),
      ]);
      t.rights(IDT, 0);
      t.rights(STACK_PAGE, R);
    },
    script: (t) => [
      fromSpare(ept("re", IDT + 8 * 0x30, { page: true }), IDT),
      ept("we", SP - 4, { page: true }).emulate([], { write: true }),
      trap(0x31, { rip: t.symbol("int_30") + 2 }),
    ],
    end: { rsp: SP },
  },
]);

/* The vector table and the frame of real mode; which of them comes first is up to the CPU. */
const real: Case[] = [
  {
    name: "emulate.real.event.table",
    mode: "real",
    entry: "int_30",
    setup: (t) => t.rights(0, 0),
    script: (t) => [
      ept("re", 4 * 0x30, { page: true }).emulate(
        [[4 * 0x30, le(t.symbol("handlers") + 16 * 0x31, 4)]],
        { notify: true },
      ),
      over(t.symbol("handlers") + 16 * 0x31),
      trap(0x31, { rip: t.symbol("int_30") + 2 }),
    ],
    end: { rsp: 0x7000 },
  },
  {
    name: "emulate.real.event.frame",
    mode: "real",
    entry: "int_30",
    setup: (t) => t.rights(0x6000, R),
    script: (t) => [
      ept("we", 0x6ffe, { page: true }).emulate([], { write: true, notify: true }),
      over(t.symbol("handlers") + 16 * 0x30),
      trap(0x30, { rip: t.symbol("int_30") + 2 }),
    ],
    end: { rsp: 0x7000 },
  },
];

/* ---- many pages -------------------------------------------------------------------------------------------- */

/** 8 DWORDs, each over the boundary of two pages: 16 pages, answered each in its own way. */
const many: Case = {
  name: "emulate.many-pages.gather",
  entry: "gather",
  needs: "avx2",
  regs: (t) => ({ rsi: t.d(0x40, 0xffe), rdx: t.d(0) }),
  setup: (t) => {
    t.vm.addSpare(1);
    t.vm.spare(0).fill(0x77);
    for (let i = 0; i < 8; i++) {
      t.put32(t.p(0, 4 * i), 0x2000 * i);
      t.poke(t.p(0x40 + 2 * i, 0xffe), pattern(4, 0x10 * (i + 1)));
      t.rights(t.p(0x40 + 2 * i), 0);
      t.rights(t.p(0x41 + 2 * i), 0);
    }
  },
  script: (t) =>
    Array.from({ length: 16 }, (_, k) => {
      const gpa = t.p(0x40 + k);
      const s = ept("r", t.p(0x40 + k, k % 2 ? 0 : 0xffe), {
        page: true,
        rip: t.symbol("gather") + 8,
      });
      if (k % 4 === 0) return s.resume();
      if (k % 4 === 1) return s.emulate([[gpa, "aabb"]]);
      return k % 4 === 2 ? s.scratch() : s.emulateSpare([[gpa, 4096, 0]]);
    }),
  check: (t) => {
    const should = Array.from({ length: 8 }, (_, i) => {
      const bytes = pattern(4, 0x10 * (i + 1));
      return bytes.slice(0, 4) + (i % 2 ? "7777" : "aabb");
    }).join("");
    return ymm0(t, 32) === should ? undefined : `YMM0 is ${ymm0(t, 32)}, should be ${should}`;
  },
};

export const supplied: Case[] = [
  ...rmw,
  ...wide,
  ...crossings,
  ...ranges,
  ...strings,
  ...stack,
  ...walks,
  ...areas,
  ...code,
  ...modes,
  ...real,
  many,
];
