// SPDX-License-Identifier: MIT
/** HVI_REPLY_NOTIFY: HVI_EXIT_STEP when the instruction of a reply is over, once, and never for another one. */

import * as abi from "../../../src/bridge/abi.ts";
import type { Vcpu } from "../../../src/bridge/index.ts";
import { type Bench, le, pattern } from "../bench.ts";
import { type Case, ept, exit, over, type Step, trap } from "../case.ts";
import { IDT, STACK, WALK } from "../layout.ts";
import { R, RW, RWX, setYmm0, VALUE } from "./words.ts";

const SP = STACK - 0x100;
const STACK_PAGE = STACK - 0x1000;
/** Linear address of the first instruction of a vector's handler. */
const handler = (vector: number) => (t: Bench) => t.symbol("handlers") + 16 * vector;
const behind = (entry: string, length: number) => (t: Bench) => t.symbol(entry) + length;

/** A store of 8 bytes to page 0, which the view forbids, and what comes after it. */
function store(name: string, script: (t: Bench) => Step[], more: Partial<Case> = {}): Case {
  return {
    name: `notify.${name}`,
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), R),
    script,
    ...more,
  };
}
const violation = (t: Bench) => ept("w", t.p(0), { rights: R });
const END = behind("st8", 3);

const actions: Case[] = [
  store("resume", (t) => [violation(t).resume(true), over(END)], {
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  }),
  store("scratch", (t) => [violation(t).scratch(true), over(END)], {
    memory: (t) => [[t.p(0), le(0, 8)]],
  }),
  store("emulate", (t) => [violation(t).emulate([], { notify: true }), over(END)], {
    memory: (t) => [[t.p(0), le(0, 8)]],
  }),
  store(
    "emulate-write",
    (t) => [violation(t).emulate([[t.p(0, 2), "ffff"]], { write: true, notify: true }), over(END)],
    { memory: (t) => [[t.p(0), "1122000055667788"]] },
  ),
  store("step", (t) => [violation(t).step(1, true), over(END, { view: 0 })], {
    setup: (t) => {
      t.vm.createView(0);
      t.rights(t.p(0), R);
    },
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  }),
  // Written before the notice comes, and nothing of the next instruction has run.
  {
    name: "notify.memory-is-written-when-it-comes",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [
      violation(t).emulate([[t.p(0, 7), "00"]], { write: true, notify: true }),
      over(behind("st8x2", 3)).do((_, b) => {
        const have = b.peek(b.p(0), 16);
        if (have !== `11223344556677${"00".repeat(9)}`) throw new Error(`memory is ${have}`);
      }),
      ept("w", t.p(0, 8)).resume(),
    ],
    memory: (t) => [[t.p(0), `1122334455667700${le(VALUE, 8)}`]],
  },
  store("user", (t) => [ept("wu", t.p(0)).resume(true), over(END)], { mode: "user" }),
  {
    name: "notify.load",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0)).emulate([[t.p(0), le(VALUE, 8)]], { notify: true }),
      over(behind("ld8", 3), { regs: { rax: VALUE } }),
    ],
  },
  {
    name: "notify.atomic",
    entry: "lock_xadd8",
    regs: (t) => ({ rdi: t.d(0), rax: 5 }),
    setup: (t) => {
      t.put64(t.p(0), 7n);
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("rw", t.p(0)).resume(true),
      over(behind("lock_xadd8", 5), { regs: { rax: 7 } }),
    ],
    memory: (t) => [[t.p(0), le(12, 8)]],
  },
  {
    name: "notify.fetch",
    regs: (t) => ({ rip: t.d(7) }),
    setup: (t) => {
      t.poke(t.p(7), "90 90 e6ee");
      t.rights(t.p(7), RW);
    },
    script: (t) => [
      ept("x", t.p(7), { rip: t.d(7) }).resume(true),
      over(t.d(7, 1)),
      ept("x", t.p(7, 1), { rip: t.d(7, 1) }).retryWith(RWX),
    ],
  },
  // INT n, INT3 and INT1 are no faults: they are delivered under the reply to their fetch.
  ...(
    [
      ["int", "cd30", 0x30],
      ["int3", "cc", 3],
      ["int1", "f1", 1],
    ] as const
  ).map(
    ([name, bytes, vector]): Case => ({
      name: `notify.fetch.${name}`,
      regs: (t) => ({ rip: t.d(7), rsp: t.d(7, 0x800) }),
      setup: (t) => {
        t.poke(t.p(7), `${bytes} e6ee`);
        t.rights(t.p(7), 0);
      },
      script: (t) => [
        // The frame goes to the same page: for this one instruction it is open.
        ept("x", t.p(7), { rip: t.d(7) }).resume(true),
        over(handler(vector)),
        trap(vector, { rip: t.d(7, bytes.length / 2) }).do((_, b) => b.rights(b.p(7), RWX)),
      ],
    }),
  ),
  // A REP: one iteration each.
  {
    name: "notify.rep",
    entry: "rep_movsb",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0, 0xffe), rcx: 5 }),
    setup: (t) => {
      t.poke(t.p(4), pattern(5));
      t.rights(t.p(1), R);
    },
    script: (t) =>
      [0, 1, 2].flatMap((i) => [
        ept("w", t.p(1, i), { rip: "rep_movsb", regs: { rcx: 3 - i } }).resume(true),
        over(t.symbol("rep_movsb") + (i < 2 ? 0 : 2), {
          regs: { rcx: 2 - i, rsi: t.d(4, 3 + i), rdi: t.d(1, 1 + i) },
        }),
      ]),
    memory: (t) => [[t.p(0, 0xffe), pattern(5)]],
  },
  {
    name: "notify.rep.compare-stops",
    entry: "repe_cmpsb",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(4), rcx: 8 }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0)).emulate([[t.p(0), "00"]], { notify: true }),
      over((b) => b.symbol("repe_cmpsb"), { regs: { rcx: 7 } }),
      ept("r", t.p(0, 1), { rip: "repe_cmpsb" }).emulate([[t.p(0, 1), "01"]], { notify: true }),
      over(behind("repe_cmpsb", 2), { regs: { rcx: 6 } }),
    ],
  },
  // Control transfers: RIP is where they went.
  {
    name: "notify.call",
    entry: "call_near",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [
      ept("w", SP - 8).resume(true),
      over(behind("call_near", 7), { regs: { rsp: SP - 8 } }),
    ],
  },
  {
    name: "notify.ret",
    entry: "ret_near",
    setup: (t) => t.rights(STACK_PAGE, 0),
    script: (t) => [
      ept("r", SP).emulate([[SP, le(t.symbol("done"), 8)]], { notify: true }),
      over(t.symbol("done"), { regs: { rsp: SP + 8 } }),
    ],
  },
  {
    name: "notify.int",
    entry: "int_30",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [
      ept("we", SP - 8, { page: true }).resume(true),
      over(handler(0x30), { regs: { rsp: SP - 40 } }),
      trap(0x30, { rip: undefined }),
    ],
  },
  {
    name: "notify.int.idt",
    entry: "int_30",
    setup: (t) => t.rights(IDT, 0),
    script: [
      ept("re", IDT + 16 * 0x30, { page: true }).resume(true),
      over(handler(0x30)),
      trap(0x30),
    ],
  },
  // TF: the notice comes first, the trap stays pending.
  store(
    "before-single-step-trap",
    (t) => [
      violation(t).resume(true),
      over(END),
      trap(1, { rip: t.symbol("st8") + 3 }).do((v, b) => {
        // Without TF in the frame, or each instruction traps.
        b.put64(b.phys(b.reg("rsp")) + 16, 2n);
        v.skip();
      }),
    ],
    { regs: (t) => ({ rdi: t.d(0), rax: VALUE, rflags: 0x102 }) },
  ),
];

/** One STEP for a store over the pages 0 and 1, whichever replies ask for it. */
function crossing(
  name: string,
  answer: [(s: Step) => Step, (s: Step) => Step],
  memory: string,
): Case {
  return {
    name: `notify.crossing.${name}`,
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0, 0xffc), rax: VALUE }),
    setup: (t) => {
      t.vm.createView(0);
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
    },
    script: (t) => [
      answer[0](ept("w", t.p(0, 0xffc), { rights: R })),
      answer[1](ept("w", t.p(1), { rights: R })),
      over(END),
    ],
    memory: (t) => [[t.p(0, 0xffc), memory]],
  };
}
const both = le(VALUE, 8);
const low = `${both.slice(0, 8)}00000000`;
const high = `00000000${both.slice(8)}`;
const crossings: Case[] = [
  crossing("first", [(s) => s.resume(true), (s) => s.resume()], both),
  crossing("second", [(s) => s.resume(), (s) => s.resume(true)], both),
  crossing("both", [(s) => s.resume(true), (s) => s.resume(true)], both),
  crossing("resume-scratch", [(s) => s.resume(true), (s) => s.scratch()], low),
  crossing("scratch-resume", [(s) => s.scratch(true), (s) => s.resume()], high),
  crossing("scratch-write", [(s) => s.scratch(true), (s) => s.emulate([], { write: true })], high),
  crossing("write-scratch", [(s) => s.emulate([], { write: true }), (s) => s.scratch(true)], low),
  crossing(
    "write-write",
    [
      (s) => s.emulate((t) => [[t.p(0, 0xffc), "99"]], { write: true }),
      (s) => s.emulate((t) => [[t.p(1, 3), "99"]], { write: true, notify: true }),
    ],
    `00${both.slice(2, 14)}00`,
  ),
  crossing("retry", [(s) => s.resume(true), (s) => s.retryWith(RWX)], both),
  crossing(
    "emulate-retry",
    [(s) => s.emulate([], { notify: true }), (s) => s.retryWith(RWX)],
    high,
  ),
];

/** A later exit of the same instruction is answered by what ends it otherwise. */
const ended: Case[] = [
  // Nothing of it is written, and the STEP comes.
  ...(["resume", "emulate", "write"] as const).map(
    (how): Case => ({
      ...crossing("", [(s) => s, (s) => s], le(0, 8)),
      name: `notify.ended.skip.${how}`,
      script: (t) => [
        how === "resume"
          ? ept("w", t.p(0, 0xffc)).resume(true)
          : ept("w", t.p(0, 0xffc)).emulate([], { write: how === "write", notify: true }),
        ept("w", t.p(1)).skip(),
        over(END),
      ],
    }),
  ),
  {
    ...crossing("", [(s) => s, (s) => s], both),
    name: "notify.ended.step-later",
    script: (t) => [
      ept("w", t.p(0, 0xffc)).resume(),
      // View 1 has the pages writable.
      ept("w", t.p(1)).step(1, true),
      over(END, { view: 0 }),
    ],
  },
  // The instruction is given up: its handler returns to it, and it violates as if nothing had been answered.
  {
    ...crossing("", [(s) => s, (s) => s], both),
    name: "notify.ended.inject",
    script: (t) => [
      ept("w", t.p(0, 0xffc)).resume(true),
      ept("w", t.p(1)).inject({ type: abi.HVI_EVENT_EXCEPTION, vector: 6 }),
      trap(6, { rip: t.symbol("st8") }),
      ept("w", t.p(0, 0xffc)).resume(),
      ept("w", t.p(1)).resume(),
    ],
  },
  {
    ...crossing("", [(s) => s, (s) => s], le(0, 8)),
    name: "notify.ended.moved",
    script: (t) => [
      ept("w", t.p(0, 0xffc)).resume(true),
      ept("w", t.p(1)).do((v) => {
        v.rip = t.symbol("nops");
        v.retry();
      }),
    ],
  },
  // The reply that goes with the move is for the instruction that stands there; the one before is forgotten.
  {
    ...crossing("", [(s) => s, (s) => s], "00000000"),
    name: "notify.ended.moved-and-answered",
    script: (t) => [
      ept("w", t.p(0, 0xffc)).resume(true),
      ept("w", t.p(1)).do((v, b) => {
        v.rip = b.symbol("st8x2");
        b.cpu.set("rdi", b.d(1));
        v.resume(true);
      }),
      over(behind("st8x2", 3)),
      ept("w", t.p(1, 8)).do((v, b) => {
        b.cpu.set("rdi", b.d(0));
        v.rip = b.symbol("st8");
        v.retry();
      }),
      // Page 0 was answered for another instruction.
      ept("w", t.p(0)).skip(),
    ],
  },
  {
    ...crossing("", [(s) => s, (s) => s], le(0, 8)),
    name: "notify.ended.reset",
    script: (t) => [
      ept("w", t.p(0, 0xffc)).resume(true),
      ept("w", t.p(1)).do((v, b) => {
        v.resume(true);
        b.vm.reset(0);
        b.cpu.init("long", b.avx);
        b.cpu.setAll({ rip: b.symbol("st8"), rdi: b.d(0, 0xffc) });
      }),
      ept("w", t.p(0, 0xffc)).skip(),
    ],
  },
  // The same instruction again after a triple fault.
  {
    name: "notify.ended.shutdown",
    entry: "movsq",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(0x20), idtLimit: 0 }),
    setup: (t) => {
      t.put64(WALK.long![3]! + 8 * 0x20, 0n);
      t.rights(t.p(0), 0);
    },
    script: (t) => [
      ept("r", t.p(0)).resume(true),
      exit(abi.HVI_EXIT_SHUTDOWN).do((v, b) => {
        b.put64(WALK.long![3]! + 8 * 0x20, 0x220067n);
        b.cpu.setAll({ mpState: abi.HVI_MP_RUNNING, idtLimit: 0xfff, rip: b.symbol("movsq") });
        v.resume();
      }),
      ept("r", t.p(0)).resume(),
    ],
  },
  // An event given with the reply comes first and counts instead; then the store violates again.
  ...([false, true] as const).map(
    (notify): Case =>
      store(`ended.event${notify ? ".notified" : ""}`, (t) => [
        violation(t)
          .resume(true)
          .do((v) => {
            v.inject(abi.HVI_EVENT_EXCEPTION, 6, -1, undefined, notify);
          }),
        ...(notify
          ? [
              exit(abi.HVI_EXIT_INJECTED, {
                eventStatus: abi.HVI_EVENT_DELIVERED,
                rip: handler(6)(t),
              }),
            ]
          : []),
        over(handler(6)),
        trap(6, { rip: t.symbol("st8") }),
        violation(t).scratch(),
      ]),
  ),
  store("ended.kick", (t) => [
    violation(t)
      .resume(true)
      .do((_, b) => b.vm.kick()),
    exit(abi.HVI_EXIT_PAUSED).resume(),
    over(END),
  ]),
  store("ended.before-deadline", (t) => [violation(t).resume(true), over(END)], {
    budget: [undefined, 1],
  }),
];

/** Page 0x20 of the window, absent in the guest's tables. */
const ABSENT = 0x20;
const absent = (t: Bench) => t.put64(WALK.long![3]! + 8 * ABSENT, 0n);
const present = (_: Vcpu, t: Bench) => t.put64(WALK.long![3]! + 8 * ABSENT, 0x220067n);

/** The instruction faults: its replies end, the STEP comes at the handler. */
const faults: Case[] = [
  ...(["resume", "scratch", "emulate", "write"] as const).map(
    (how): Case => ({
      name: `notify.fault.${how}`,
      entry: "movsq",
      regs: (t) => ({ rsi: t.d(0), rdi: t.d(ABSENT) }),
      setup: (t) => {
        absent(t);
        t.put64(t.p(0), VALUE);
        t.rights(t.p(0), 0);
      },
      script: (t) => {
        const answered = (s: Step, notify: boolean) =>
          how === "resume"
            ? s.resume(notify)
            : how === "scratch"
              ? s.scratch(notify)
              : s.emulate([[t.p(0), le(7, 8)]], { notify, write: how === "write" });
        return [
          answered(ept("r", t.p(0)), true),
          over(handler(14)),
          trap(14, { error: 2, rip: "movsq", cr2: t.d(ABSENT) }).do(present),
          answered(ept("r", t.p(0), { rip: "movsq" }), false),
        ];
      },
      memory: [[0x220000, le(how === "resume" || how === "scratch" ? VALUE : 7, 8)]],
    }),
  ),
  // Its frame goes to the page that was answered: that is another access.
  ...(["resume", "scratch", "write"] as const).map(
    (how): Case => ({
      name: `notify.fault.frame-on-the-page.${how}`,
      entry: "movsq",
      regs: (t) => ({ rsi: t.d(0), rdi: t.d(ABSENT), rsp: t.d(0, 0x800) }),
      setup: (t) => {
        absent(t);
        t.rights(t.p(0), 0);
      },
      script: (t) => {
        const read = ept("r", t.p(0));
        return [
          how === "resume"
            ? read.resume(true)
            : how === "scratch"
              ? read.scratch(true)
              : read.emulate([[t.p(0), le(7, 8)]], { write: true, notify: true }),
          ept("we", t.p(0, 0x7f8), { page: true, rip: "movsq" }).resume(),
          over(handler(14), { regs: { rsp: t.d(0, 0x800 - 48) } }),
          // The handler's frame is read from the page again.
          trap(14, { error: 2, rip: "movsq" }).do((v, b) => {
            b.rights(b.p(0), RWX);
            present(v, b);
          }),
        ];
      },
    }),
  ),
  // An exception that the engine sees first: still one STEP, after its delivery.
  {
    name: "notify.fault.intercepted",
    entry: "movsq",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(ABSENT) }),
    setup: (t) => {
      absent(t);
      t.rights(t.p(0), 0);
      t.vm.intercept(abi.HVI_INTERCEPT_EXCEPTION, 0, 1 << 14);
    },
    script: (t) => [
      ept("r", t.p(0)).resume(true),
      exit(abi.HVI_EXIT_EXCEPTION, { number: 14, rip: "movsq" }).resume(),
      over(handler(14)),
      trap(14, { rip: "movsq" }).do(present),
      ept("r", t.p(0), { rip: "movsq" }).resume(),
    ],
  },
  // The engine repairs the cause and has the instruction run again.
  {
    name: "notify.fault.repaired",
    entry: "movsq",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(ABSENT) }),
    setup: (t) => {
      absent(t);
      t.rights(t.p(0), 0);
      t.vm.intercept(abi.HVI_INTERCEPT_EXCEPTION, 0, 1 << 14);
    },
    script: (t) => [
      ept("r", t.p(0)).resume(true),
      exit(abi.HVI_EXIT_EXCEPTION, { number: 14 }).do(present).retry(),
      ept("r", t.p(0), { rip: "movsq" }).resume(),
      over(behind("movsq", 2)),
    ],
  },
  // In a step, the delivery is made in the other view.
  {
    name: "notify.fault.step",
    entry: "movsq",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(ABSENT) }),
    setup: (t) => {
      absent(t);
      t.vm.createView(0);
      t.rights(t.p(0), 0);
      t.rights(STACK_PAGE, R, 1);
    },
    script: (t) => [
      ept("r", t.p(0)).step(1, true),
      ept("we", SP - 8, { page: true, view: 1 }).resume(),
      over(handler(14), { view: 0 }),
      trap(14, { rip: "movsq" }).do(present),
      ept("r", t.p(0), { rip: "movsq" }).resume(),
    ],
  },
];

/** RESUME with NOTIFY at the other exits that go on with something. */
interface Other {
  name: string;
  entry: string;
  length: number;
  kind?: number;
  index?: number;
  mask?: number;
  reason: number;
  regs?: (t: Bench) => Case["regs"];
  setup?: (t: Bench) => void;
}
const others: Other[] = [
  {
    name: "msr-read",
    entry: "rdmsr",
    length: 2,
    kind: abi.HVI_INTERCEPT_MSR_READ,
    index: 0xc0000082,
    reason: abi.HVI_EXIT_MSR_READ,
    regs: () => ({ rcx: 0xc0000082 }),
  },
  {
    name: "msr-write",
    entry: "wrmsr",
    length: 2,
    kind: abi.HVI_INTERCEPT_MSR_WRITE,
    index: 0xc0000082,
    reason: abi.HVI_EXIT_MSR_WRITE,
    regs: () => ({ rcx: 0xc0000082, rax: 0x1000 }),
  },
  {
    name: "cr3",
    entry: "mov_cr3",
    length: 3,
    kind: abi.HVI_INTERCEPT_CR3_WRITE,
    reason: abi.HVI_EXIT_CR_WRITE,
    regs: (t) => ({ rax: t.reg("cr3") }),
  },
  {
    name: "cr4",
    entry: "mov_cr4",
    length: 3,
    kind: abi.HVI_INTERCEPT_CR4_WRITE,
    mask: 4,
    reason: abi.HVI_EXIT_CR_WRITE,
    regs: (t) => ({ rax: t.reg("cr4") | 4n }),
  },
  {
    name: "cr8",
    entry: "mov_cr8",
    length: 4,
    kind: abi.HVI_INTERCEPT_CR8_WRITE,
    reason: abi.HVI_EXIT_CR_WRITE,
    regs: () => ({ rax: 3 }),
  },
  {
    name: "dtr",
    entry: "sidt",
    length: 3,
    kind: abi.HVI_INTERCEPT_DTR,
    mask: abi.HVI_DTR_SIDT,
    reason: abi.HVI_EXIT_DTR,
    regs: (t) => ({ rdi: t.d(0) }),
  },
  {
    name: "xsetbv",
    entry: "xsetbv",
    length: 3,
    kind: abi.HVI_INTERCEPT_XSETBV,
    reason: abi.HVI_EXIT_XSETBV,
    regs: () => ({ rax: 1 }),
  },
  {
    name: "vmcall",
    entry: "vmcall",
    length: 3,
    kind: abi.HVI_INTERCEPT_VMCALL,
    reason: abi.HVI_EXIT_VMCALL,
  },
  {
    name: "cpuid",
    entry: "cpuid",
    length: 2,
    kind: abi.HVI_INTERCEPT_CPUID,
    reason: abi.HVI_EXIT_CPUID,
  },
  {
    name: "out",
    entry: "out1",
    length: 1,
    reason: abi.HVI_EXIT_IO,
    regs: () => ({ rdx: 0x300 }),
  },
];
const instructions: Case[] = others.map((o) => ({
  name: `notify.exit.${o.name}`,
  entry: o.entry,
  brief: true,
  regs: (t) => {
    const r = o.regs?.(t);
    return typeof r === "function" ? r(t) : (r ?? {});
  },
  setup: (t) => {
    if (o.kind !== undefined) t.vm.intercept(o.kind, o.index ?? 0, o.mask ?? 1);
  },
  script: [exit(o.reason, { rip: o.entry }).resume(true), over(behind(o.entry, o.length))],
}));

const exits: Case[] = [
  ...instructions,
  {
    name: "notify.exit.hlt",
    entry: "hlt",
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_HLT, 0, 1),
    script: [
      exit(abi.HVI_EXIT_HLT).resume(true),
      over(behind("hlt", 1), { regs: { mpState: abi.HVI_MP_HALTED } }),
      exit(abi.HVI_EXIT_DEADLINE, { regs: { mpState: abi.HVI_MP_HALTED } }),
    ],
    budget: 200000,
    done: false,
  },
  ...(["ud2", "int3"] as const).map(
    (entry): Case => ({
      name: `notify.exit.exception.${entry}`,
      entry,
      setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_EXCEPTION, 0, (1 << 6) | (1 << 3)),
      script: (t) => [
        exit(abi.HVI_EXIT_EXCEPTION, { rip: entry }).resume(true),
        over(handler(entry === "ud2" ? 6 : 3)),
        trap(entry === "ud2" ? 6 : 3, { rip: t.symbol(entry) + (entry === "ud2" ? 0 : 1) }).do(
          (v, b) => {
            v.rip = b.symbol("done");
            v.retry();
          },
        ),
      ],
    }),
  ),
  // A write that the CPU refuses faults.
  {
    name: "notify.exit.msr-write.faults",
    entry: "wrmsr",
    regs: { rcx: 0xc0000082, rax: 0 },
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_MSR_WRITE, 0xc0000082, 1),
    script: (t) => [
      exit(abi.HVI_EXIT_MSR_WRITE).do((v) => {
        v.setExitValue(0, 0x9000);
        v.resume(true);
      }),
      over(handler(13)),
      trap(13, { error: 0, rip: "wrmsr" }).do((v) => {
        v.rip = t.symbol("done");
        v.retry();
      }),
    ],
  },
  // The fetch and then the MSR of one instruction; asked at either, it comes once.
  ...([0, 1] as const).map(
    (asked): Case => ({
      name: `notify.exit.fetch-then-msr.${asked}`,
      regs: (t) => ({ rip: t.d(7), rcx: 0xc0000082, rax: 0x1000 }),
      setup: (t) => {
        t.poke(t.p(7), "0f30 90 e6ee");
        t.rights(t.p(7), RW);
        t.vm.intercept(abi.HVI_INTERCEPT_MSR_WRITE, 0xc0000082, 1);
      },
      script: (t) => [
        ept("x", t.p(7), { rip: t.d(7) }).resume(asked === 0),
        exit(abi.HVI_EXIT_MSR_WRITE, { rip: t.d(7) }).resume(asked === 1),
        over(t.d(7, 2)),
        ept("x", t.p(7, 2), { rip: t.d(7, 2) }).retryWith(RWX),
      ],
      end: { rcx: 0xc0000082 },
    }),
  ),
  {
    name: "notify.area",
    entry: "fxsave",
    regs: (t) => ({ rdi: t.d(0, 0xf40) }),
    setup: (t) => {
      setYmm0(t, pattern(16));
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(0, 0xf40), { page: true }).resume(),
      ept("w", t.p(1), { page: true }).resume(true),
      over(behind("fxsave", 4)),
    ],
    memory: (t) => [[t.p(0, 0xf40 + 160), pattern(16)]],
  },
];

/** Flags of replies that a backend must refuse; the reply can be given anew. */
const refusals: Case[] = [
  ...misfits().map(
    ([action, flags]): Case => ({
      name: `notify.refused.${abi.hviReplyActionNames[action]!.toLowerCase()}.${flags}`,
      entry: "st8",
      regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
      setup: (t) => t.rights(t.p(0), R),
      script: (t) => [
        violation(t).do((v, b) => {
          refuse(b, action, flags);
          v.scratch(true);
        }),
        over(END).do((v, b) => {
          // Nothing is left of an instruction to go on with.
          refuse(b, abi.HVI_REPLY_RESUME, abi.HVI_REPLY_NOTIFY);
          refuse(b, abi.HVI_REPLY_SCRATCH, 0);
          v.resume();
        }),
      ],
      memory: (t) => [[t.p(0), le(0, 8)]],
    }),
  ),
];
/** Each action with each flag that it does not take. */
function misfits(): [number, number][] {
  const takes: Record<number, number> = {
    [abi.HVI_REPLY_RESUME]: abi.HVI_REPLY_NOTIFY,
    [abi.HVI_REPLY_SKIP]: 0,
    [abi.HVI_REPLY_RETRY]: 0,
    [abi.HVI_REPLY_EMULATE]: abi.HVI_REPLY_NOTIFY | abi.HVI_REPLY_WRITE | abi.HVI_REPLY_SPARE,
    [abi.HVI_REPLY_SCRATCH]: abi.HVI_REPLY_NOTIFY,
    [abi.HVI_REPLY_STEP]: abi.HVI_REPLY_NOTIFY,
    [abi.HVI_REPLY_INJECT]: 0,
  };
  return Object.entries(takes).flatMap(([action, flags]) =>
    [1, 2, 4, 8, 0x10, 0x80000000]
      .filter((f) => (f & flags) === 0)
      .map((f): [number, number] => [Number(action), f]),
  );
}
function refuse(t: Bench, action: number, flags: number): void {
  t.cpu.put32(abi.REPLY_ACTION, action);
  t.cpu.put32(abi.REPLY_FLAGS, flags);
  try {
    t.vm.run(Number(t.reg("tsc")) + 1e9);
  } catch (e) {
    if (e instanceof Error && e.message.includes("EINVAL")) return;
    throw e;
  }
  throw new Error(`action ${action} with flags ${flags} was taken`);
}

export const notify: Case[] = [
  ...actions,
  ...crossings,
  ...ended,
  ...faults,
  ...exits,
  ...refusals,
];
