// SPDX-License-Identifier: MIT
/** A4: every exit reason raised by guest code, with its data, and every reply it takes. */
import * as abi from "../../../src/bridge/abi.ts";
import type { Bench } from "../bench.ts";
import { le, pattern } from "../bench.ts";
import { type Case, ept, exit, type Step, trap } from "../case.ts";
import type { Regs } from "../cpu.ts";
import { GDT, IDT, SEL, STACK, TABLES } from "../layout.ts";
import { R, VALUE } from "./words.ts";

const SP = STACK - 0x100;
const LSTAR = 0xc0000082;
const on =
  (kind: number, index = 0, mask = 1) =>
  (t: Bench) =>
    t.vm.intercept(kind, index, mask);
/** The handler's frame names `done`, so that a fault's handler goes there. */
const leave = (s: Step): Step =>
  s.do((_, t) => {
    t.put64(SP - 0x28, BigInt(t.symbol("done")));
  });

const msrs: Case[] = [
  {
    name: "exit.msr-read.resume",
    entry: "rdmsr",
    regs: { rcx: LSTAR, lstar: 0xffffffff81000000n },
    setup: on(abi.HVI_INTERCEPT_MSR_READ, LSTAR),
    script: [exit(abi.HVI_EXIT_MSR_READ, { number: LSTAR, insnLen: 2, rip: "rdmsr" }).resume()],
    end: { rax: 0x81000000, rdx: 0xffffffff },
  },
  {
    name: "exit.msr-read.skip",
    entry: "rdmsr",
    regs: { rcx: LSTAR },
    setup: on(abi.HVI_INTERCEPT_MSR_READ, LSTAR),
    script: [
      exit(abi.HVI_EXIT_MSR_READ, { number: LSTAR })
        .do((_, t) => t.cpu.setAll({ rax: 0x1234, rdx: 0x5678 }))
        .skip(),
    ],
    end: { rax: 0x1234, rdx: 0x5678 },
  },
  {
    name: "exit.msr-read.other-msr-is-silent",
    entry: "rdmsr",
    regs: { rcx: 0xc0000081, star: 0x1800080000000000n },
    setup: on(abi.HVI_INTERCEPT_MSR_READ, LSTAR),
    script: [],
    end: { rdx: 0x18000800 },
  },
  {
    name: "exit.msr-read.switched-off",
    entry: "rdmsr",
    regs: { rcx: LSTAR },
    setup: (t) => {
      t.vm.intercept(abi.HVI_INTERCEPT_MSR_READ, LSTAR, 1);
      t.vm.intercept(abi.HVI_INTERCEPT_MSR_READ, LSTAR, 0);
    },
    script: [],
  },
  {
    name: "exit.msr-read.inject-gp",
    entry: "rdmsr",
    regs: { rcx: LSTAR },
    setup: on(abi.HVI_INTERCEPT_MSR_READ, LSTAR),
    script: [
      exit(abi.HVI_EXIT_MSR_READ, { number: LSTAR }).inject({
        type: abi.HVI_EVENT_EXCEPTION,
        vector: 13,
        error: 0,
      }),
      leave(trap(13, { error: 0, rip: "rdmsr" })),
    ],
  },
  {
    name: "exit.msr-write.resume",
    entry: "wrmsr",
    regs: { rcx: LSTAR, rax: 0x81000000, rdx: 0xffffffff, lstar: 0xffffffff80000000n },
    setup: on(abi.HVI_INTERCEPT_MSR_WRITE, LSTAR),
    script: [
      exit(abi.HVI_EXIT_MSR_WRITE, {
        number: LSTAR,
        value: 0xffffffff81000000n,
        old: 0xffffffff80000000n,
        insnLen: 2,
        rip: "wrmsr",
      }).resume(),
    ],
    end: { lstar: 0xffffffff81000000n },
  },
  {
    name: "exit.msr-write.other-value",
    entry: "wrmsr",
    regs: { rcx: LSTAR, rax: 1 },
    setup: on(abi.HVI_INTERCEPT_MSR_WRITE, LSTAR),
    script: [
      exit(abi.HVI_EXIT_MSR_WRITE, { value: 1, old: 0 })
        .do((v) => v.setExitValue(0x1000, 0))
        .resume(),
    ],
    end: { lstar: 0x1000 },
  },
  // The value of the reply counts, also when the intercept is off by the time the instruction goes on.
  {
    name: "exit.msr-write.other-value.intercept-off",
    entry: "wrmsr",
    regs: { rcx: LSTAR, rax: 1 },
    setup: on(abi.HVI_INTERCEPT_MSR_WRITE, LSTAR),
    script: [
      exit(abi.HVI_EXIT_MSR_WRITE, { value: 1, old: 0 })
        .do((v, t) => {
          v.setExitValue(0x1000, 0);
          t.vm.intercept(abi.HVI_INTERCEPT_MSR_WRITE, LSTAR, 0);
        })
        .resume(),
    ],
    end: { lstar: 0x1000 },
  },
  {
    name: "exit.msr-write.skip",
    entry: "wrmsr",
    regs: { rcx: LSTAR, rax: 0x81000000, rdx: 0xffffffff },
    setup: on(abi.HVI_INTERCEPT_MSR_WRITE, LSTAR),
    script: [exit(abi.HVI_EXIT_MSR_WRITE, { number: LSTAR }).skip()],
    end: { lstar: 0 },
  },
  {
    name: "exit.msr-write.sysenter",
    entry: "wrmsr",
    regs: { rcx: 0x176, rax: 0x1234 },
    setup: on(abi.HVI_INTERCEPT_MSR_WRITE, 0x176),
    script: [exit(abi.HVI_EXIT_MSR_WRITE, { number: 0x176, value: 0x1234 }).resume()],
    end: { sysenterEip: 0x1234 },
  },
  {
    name: "exit.msr-write.fault-before-exit",
    entry: "wrmsr",
    mode: "user",
    // CPL 3: #GP comes before the intercept (SDM 25.1.1).
    regs: { rcx: LSTAR },
    setup: on(abi.HVI_INTERCEPT_MSR_WRITE, LSTAR),
    script: [trap(13, { error: 0, rip: "wrmsr" })],
    done: false,
  },
  {
    name: "exit.msr-unknown-is-gp",
    entry: "rdmsr",
    regs: { rcx: 0x1fff },
    script: [leave(trap(13, { error: 0, rip: "rdmsr" }))],
  },
];

const CR0 = 0x80010033;
/** A register write whose reply has another value, and takes the intercept away. */
function otherValueIntercept(
  name: string,
  o: { entry: string; rax: number; kind: number; mask: number; value: number; end: Regs },
): Case {
  return {
    name: `exit.${name}.other-value.intercept-off`,
    entry: o.entry,
    regs: { rax: o.rax },
    setup: on(o.kind, 0, o.mask),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE)
        .do((v, t) => {
          v.setExitValue(o.value >>> 0, 0);
          t.vm.intercept(o.kind, 0, 0);
        })
        .resume(),
    ],
    end: o.end,
  };
}

const controls: Case[] = [
  otherValueIntercept("cr0", {
    entry: "mov_cr0",
    rax: (CR0 | 8) >>> 0,
    kind: abi.HVI_INTERCEPT_CR0_WRITE,
    mask: 8,
    value: (CR0 | 4) >>> 0,
    end: { cr0: (CR0 | 4) >>> 0 },
  }),
  otherValueIntercept("cr4", {
    entry: "mov_cr4",
    rax: 0x40624,
    kind: abi.HVI_INTERCEPT_CR4_WRITE,
    mask: 4,
    value: 0x40620,
    end: { cr4: 0x40620 },
  }),
  otherValueIntercept("cr8", {
    entry: "mov_cr8",
    rax: 5,
    kind: abi.HVI_INTERCEPT_CR8_WRITE,
    mask: 1,
    value: 7,
    end: { cr8: 7 },
  }),
  {
    name: "exit.cr0.resume",
    entry: "mov_cr0",
    regs: { rax: (CR0 | 8) >>> 0 },
    setup: on(abi.HVI_INTERCEPT_CR0_WRITE, 0, 8),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, {
        number: 0,
        value: (CR0 | 8) >>> 0,
        old: CR0,
        insnLen: 3,
        rip: "mov_cr0",
      }).resume(),
    ],
    end: { cr0: (CR0 | 8) >>> 0 },
  },
  {
    name: "exit.cr0.other-value",
    entry: "mov_cr0",
    regs: { rax: (CR0 & ~0x10000) >>> 0 },
    setup: on(abi.HVI_INTERCEPT_CR0_WRITE, 0, 0x10000),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, { number: 0, old: CR0 })
        .do((v) => v.setExitValue(CR0, 0))
        .resume(),
    ],
    end: { cr0: CR0 },
  },
  {
    name: "exit.cr0.skip",
    entry: "mov_cr0",
    regs: { rax: (CR0 & ~0x10000) >>> 0 },
    setup: on(abi.HVI_INTERCEPT_CR0_WRITE, 0, 0x10000),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, { number: 0, value: (CR0 & ~0x10000) >>> 0, old: CR0 }).skip(),
    ],
    end: { cr0: CR0 },
  },
  {
    name: "exit.cr0.bit-not-in-mask",
    entry: "mov_cr0",
    regs: { rax: (CR0 | 0x40000) >>> 0 },
    setup: on(abi.HVI_INTERCEPT_CR0_WRITE, 0, 0x10000),
    script: [],
    end: { cr0: (CR0 | 0x40000) >>> 0 },
  },
  {
    name: "exit.cr0.same-value",
    entry: "mov_cr0",
    regs: { rax: CR0 },
    setup: on(abi.HVI_INTERCEPT_CR0_WRITE, 0, 0xffffffff),
    script: [],
  },
  {
    name: "exit.cr0.clts",
    entry: "clts",
    regs: { cr0: (CR0 | 8) >>> 0 },
    setup: on(abi.HVI_INTERCEPT_CR0_WRITE, 0, 8),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, {
        number: 0,
        value: CR0,
        old: (CR0 | 8) >>> 0,
        insnLen: 2,
      }).resume(),
    ],
    end: { cr0: CR0 },
  },
  {
    name: "exit.cr0.lmsw",
    entry: "lmsw",
    regs: { rax: 0x3b },
    setup: on(abi.HVI_INTERCEPT_CR0_WRITE, 0, 8),
    script: [exit(abi.HVI_EXIT_CR_WRITE, { number: 0, value: (CR0 | 8) >>> 0, old: CR0 }).skip()],
    end: { cr0: CR0 },
  },
  {
    name: "exit.cr3.resume",
    entry: "mov_cr3",
    regs: { rax: TABLES + 0x8000 },
    setup: (t) => {
      t.poke(TABLES + 0x8000, t.peek(TABLES, 4096));
      t.vm.intercept(abi.HVI_INTERCEPT_CR3_WRITE, 0, 1);
    },
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, {
        number: 3,
        value: TABLES + 0x8000,
        old: TABLES,
        insnLen: 3,
      }).resume(),
    ],
    end: { cr3: TABLES + 0x8000 },
  },
  {
    name: "exit.cr3.skip",
    entry: "mov_cr3",
    regs: { rax: 0x7000 },
    setup: on(abi.HVI_INTERCEPT_CR3_WRITE),
    script: [exit(abi.HVI_EXIT_CR_WRITE, { number: 3, value: 0x7000, old: TABLES }).skip()],
    end: { cr3: TABLES },
  },
  {
    name: "exit.cr3.off",
    entry: "mov_cr3",
    regs: { rax: TABLES },
    script: [],
  },
  {
    name: "exit.cr4.resume",
    entry: "mov_cr4",
    regs: { rax: 0x40624 },
    setup: on(abi.HVI_INTERCEPT_CR4_WRITE, 0, 4),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, { number: 4, value: 0x40624, old: 0x40620, insnLen: 3 }).resume(),
    ],
    end: { cr4: 0x40624 },
  },
  {
    name: "exit.cr4.skip",
    entry: "mov_cr4",
    regs: { rax: 0x40624 },
    setup: on(abi.HVI_INTERCEPT_CR4_WRITE, 0, 4),
    script: [exit(abi.HVI_EXIT_CR_WRITE, { number: 4 }).skip()],
    end: { cr4: 0x40620 },
  },
  {
    name: "exit.cr4.bit-not-in-mask",
    entry: "mov_cr4",
    regs: { rax: 0x40624 },
    setup: on(abi.HVI_INTERCEPT_CR4_WRITE, 0, 8),
    script: [],
    end: { cr4: 0x40624 },
  },
  {
    name: "exit.cr8.resume",
    entry: "mov_cr8",
    regs: { rax: 5 },
    setup: on(abi.HVI_INTERCEPT_CR8_WRITE),
    script: [exit(abi.HVI_EXIT_CR_WRITE, { number: 8, value: 5, old: 0 }).resume()],
    end: { cr8: 5 },
  },
  {
    name: "exit.cr8.off",
    entry: "mov_cr8",
    regs: { rax: 7 },
    script: [],
    end: { cr8: 7 },
  },
  {
    name: "exit.xsetbv.resume",
    entry: "xsetbv",
    regs: { rax: 1, xcr0: 3 },
    setup: on(abi.HVI_INTERCEPT_XSETBV),
    script: [exit(abi.HVI_EXIT_XSETBV, { number: 0, value: 1, old: 3, insnLen: 3 }).resume()],
    end: { xcr0: 1 },
  },
  {
    name: "exit.xsetbv.skip",
    entry: "xsetbv",
    regs: { rax: 1, xcr0: 3 },
    setup: on(abi.HVI_INTERCEPT_XSETBV),
    script: [exit(abi.HVI_EXIT_XSETBV, { value: 1 }).skip()],
    end: { xcr0: 3 },
  },
  {
    name: "exit.xsetbv.off",
    entry: "xsetbv",
    regs: { rax: 1, xcr0: 3 },
    script: [],
    end: { xcr0: 1 },
  },
];

const DTR: [string, number, "load" | "store" | "select" | "get"][] = [
  ["lgdt", abi.HVI_DTR_LGDT, "load"],
  ["lidt", abi.HVI_DTR_LIDT, "load"],
  ["sgdt", abi.HVI_DTR_SGDT, "store"],
  ["sidt", abi.HVI_DTR_SIDT, "store"],
  ["lldt", abi.HVI_DTR_LLDT, "select"],
  ["ltr", abi.HVI_DTR_LTR, "select"],
  ["sldt", abi.HVI_DTR_SLDT, "get"],
  ["str_reg", abi.HVI_DTR_STR, "get"],
];
const NO_GVA = 0xffffffffffffffffn;
const tables: Case[] = DTR.flatMap(([entry, bit, kind]) =>
  (["resume", "skip"] as const).map((how): Case => {
    const memory = kind === "load" || kind === "store";
    const selector = entry === "lldt" ? SEL.ldt : SEL.tssFree;
    const done = how === "resume";
    const end: Record<string, number | bigint> = {};
    if (entry === "lgdt")
      Object.assign(end, { gdtBase: done ? 0x9000 : GDT, gdtLimit: done ? 0x7f : 0xfff });
    if (entry === "lidt")
      Object.assign(end, { idtBase: done ? 0x9000 : IDT, idtLimit: done ? 0x7f : 0xfff });
    if (entry === "lldt") end.ldtr = done ? SEL.ldt : 0;
    if (entry === "ltr") end.tr = done ? SEL.tssFree : SEL.tss;
    if (entry === "sldt") end.rax = done ? 0 : 0xeeee;
    if (entry === "str_reg") end.rax = done ? SEL.tss : 0xeeee;
    return {
      name: `exit.dtr.${entry}.${how}`,
      entry,
      regs: (t) => ({ rsi: t.d(0, 8), rdi: t.d(0, 8), rax: kind === "select" ? selector : 0xeeee }),
      setup: (t) => {
        t.poke(t.p(0, 8), kind === "load" ? le(0x7f, 2) + le(0x9000, 8) : "00".repeat(10));
        t.vm.intercept(abi.HVI_INTERCEPT_DTR, 0, bit);
      },
      script: (t) => [
        exit(abi.HVI_EXIT_DTR, {
          number: bit,
          insnLen: entry === "sldt" || entry === "str_reg" ? undefined : 3,
          gva: memory ? t.d(0, 8) : NO_GVA,
          value: kind === "select" ? selector : undefined,
        })[how](),
      ],
      end,
      memory: (t) =>
        kind === "store"
          ? [
              [
                t.p(0, 8),
                done ? le(0xfff, 2) + le(entry === "sgdt" ? GDT : IDT, 8) : "00".repeat(10),
              ],
            ]
          : [],
    };
  }),
);
const tablesMore: Case[] = [
  {
    name: "exit.dtr.str-memory",
    entry: "str_mem",
    regs: (t) => ({ rdi: t.d(0, 2) }),
    setup: on(abi.HVI_INTERCEPT_DTR, 0, abi.HVI_DTR_STR),
    script: (t) => [exit(abi.HVI_EXIT_DTR, { number: abi.HVI_DTR_STR, gva: t.d(0, 2) }).resume()],
    memory: (t) => [[t.p(0, 2), le(SEL.tss, 2)]],
  },
  {
    name: "exit.dtr.lldt-memory",
    entry: "lldt_mem",
    regs: (t) => ({ rsi: t.d(0, 2) }),
    setup: (t) => {
      t.put32(t.p(0, 2), SEL.ldt);
      t.vm.intercept(abi.HVI_INTERCEPT_DTR, 0, abi.HVI_DTR_LLDT);
    },
    script: (t) => [
      exit(abi.HVI_EXIT_DTR, { number: abi.HVI_DTR_LLDT, gva: t.d(0, 2), value: SEL.ldt }).resume(),
    ],
    end: { ldtr: SEL.ldt },
  },
  {
    name: "exit.dtr.only-the-bits-asked",
    entry: "sgdt",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: on(abi.HVI_INTERCEPT_DTR, 0, abi.HVI_DTR_LGDT | abi.HVI_DTR_LIDT | abi.HVI_DTR_SIDT),
    script: [],
    memory: (t) => [[t.p(0), le(0xfff, 2)]],
  },
];

const EXC = abi.HVI_INTERCEPT_EXCEPTION;
const instructions: Case[] = [
  {
    name: "exit.vmcall.skip",
    entry: "vmcall",
    regs: { rax: 0x42 },
    setup: on(abi.HVI_INTERCEPT_VMCALL),
    script: [
      exit(abi.HVI_EXIT_VMCALL, { insnLen: 3, rip: "vmcall", regs: { rax: 0x42 } })
        .do((v) => v.setGpr(0, 0x43, 0))
        .skip(),
    ],
    end: { rax: 0x43 },
  },
  {
    name: "exit.vmcall.resume-is-skip",
    entry: "vmcall",
    setup: on(abi.HVI_INTERCEPT_VMCALL),
    script: [exit(abi.HVI_EXIT_VMCALL, { insnLen: 3 }).resume()],
  },
  {
    name: "exit.vmcall.off-is-ud",
    entry: "vmcall",
    script: [leave(trap(6, { rip: "vmcall" }))],
  },
  {
    name: "exit.vmcall.user",
    entry: "vmcall",
    mode: "user",
    setup: on(abi.HVI_INTERCEPT_VMCALL),
    script: [exit(abi.HVI_EXIT_VMCALL, { insnLen: 3, regs: { cs: SEL.userCode64 } }).skip()],
  },
  {
    name: "exit.cpuid.resume",
    entry: "cpuid",
    regs: { rax: 0x40000000, rcx: 5 },
    setup: (t) => {
      t.vm.setCpuid([
        ...t.vm.supportedCpuid().filter((e) => e.leaf < 0x40000000 || e.leaf >= 0x80000000),
        { leaf: 0x40000000, index: 0, flags: 0, eax: 0x40000001, ebx: 0x11, ecx: 0x22, edx: 0x33 },
      ]);
      t.vm.intercept(abi.HVI_INTERCEPT_CPUID, 0, 1);
    },
    script: [exit(abi.HVI_EXIT_CPUID, { value: 0x40000000, old: 5, insnLen: 2 }).resume()],
    end: { rax: 0x40000001, rbx: 0x11, rcx: 0x22, rdx: 0x33 },
  },
  {
    name: "exit.cpuid.skip",
    entry: "cpuid",
    regs: { rax: 1 },
    setup: on(abi.HVI_INTERCEPT_CPUID),
    script: [
      exit(abi.HVI_EXIT_CPUID, { value: 1 })
        .do((_, t) => t.cpu.setAll({ rax: 1, rbx: 2, rcx: 3, rdx: 4 }))
        .skip(),
    ],
    end: { rax: 1, rbx: 2, rcx: 3, rdx: 4 },
  },
  {
    name: "exit.cpuid.off.indexed",
    entry: "cpuid",
    regs: { rax: 0x40000001, rcx: 2 },
    setup: (t) =>
      t.vm.setCpuid([
        ...t.vm.supportedCpuid().filter((e) => e.leaf < 0x40000000 || e.leaf >= 0x80000000),
        {
          leaf: 0x40000001,
          index: 1,
          flags: abi.HVI_CPUID_INDEXED,
          eax: 1,
          ebx: 1,
          ecx: 1,
          edx: 1,
        },
        {
          leaf: 0x40000001,
          index: 2,
          flags: abi.HVI_CPUID_INDEXED,
          eax: 0xa,
          ebx: 0xb,
          ecx: 0xc,
          edx: 0xd,
        },
      ]),
    script: [],
    end: { rax: 0xa, rbx: 0xb, rcx: 0xc, rdx: 0xd },
  },
  {
    name: "exit.cpuid.unknown-leaf-is-zero",
    entry: "cpuid",
    regs: { rax: 0x40000777, rbx: 1, rcx: 2, rdx: 3 },
    script: [],
    end: { rax: 0, rbx: 0, rcx: 0, rdx: 0 },
  },
  {
    name: "exit.hlt.skip",
    entry: "hlt",
    setup: on(abi.HVI_INTERCEPT_HLT),
    script: [exit(abi.HVI_EXIT_HLT, { insnLen: 1, rip: "hlt" }).skip()],
  },
  {
    name: "exit.hlt.resume-halts",
    entry: "hlt",
    setup: on(abi.HVI_INTERCEPT_HLT),
    script: (t) => [
      exit(abi.HVI_EXIT_HLT, { insnLen: 1 }).resume(),
      exit(abi.HVI_EXIT_DEADLINE, {
        rip: t.symbol("hlt") + 1,
        regs: { mpState: abi.HVI_MP_HALTED },
      }),
    ],
    budget: 200000,
    done: false,
  },
  {
    name: "exit.hlt.off-waits-for-deadline",
    entry: "hlt",
    script: (t) => [
      exit(abi.HVI_EXIT_DEADLINE, {
        rip: t.symbol("hlt") + 1,
        regs: { mpState: abi.HVI_MP_HALTED },
      }),
    ],
    budget: 200000,
    done: false,
  },
  {
    name: "exit.hlt.idle-without-deadline",
    entry: "hlt",
    script: [exit(abi.HVI_EXIT_IDLE)],
    budget: 0,
    done: false,
  },
  {
    name: "exit.deadline",
    entry: "spin",
    script: [
      exit(abi.HVI_EXIT_DEADLINE, { rip: "spin" }).resume(),
      exit(abi.HVI_EXIT_DEADLINE, { rip: "spin" }),
    ],
    budget: 100000,
    done: false,
  },
  {
    name: "exit.deadline.guest-turns-its-clock-back",
    entry: "wrmsr_spin",
    // IA32_TSC := 0 with the clock at 10^11: the deadline comes no later for it.
    regs: { rcx: 0x10, tsc: 100_000_000_000 },
    script: [exit(abi.HVI_EXIT_DEADLINE)],
    check: (t) =>
      t.vcpu().tsc < 1_000_000 ? undefined : `the guest's TSC is ${t.vcpu().tsc} at the deadline`,
    budget: 100000,
    done: false,
  },
  {
    name: "exit.deadline.passed",
    entry: "nothing",
    setup: (t) => t.cpu.set("tsc", 1000000),
    script: [exit(abi.HVI_EXIT_DEADLINE, { rip: "nothing" })],
    budget: -10,
    done: false,
  },
  ...(["resume", "scratch", "step"] as const).map(
    (reply): Case => ({
      name: `exit.deadline.passed.after-${reply}`,
      entry: "st8",
      regs: (t) => ({ rdi: t.d(0), rax: 5, tsc: 1000000 }),
      setup: (t) => {
        t.vm.createView(0);
        t.rights(t.p(0), R);
      },
      // The store that the reply lets run comes before the deadline, its exit after.
      script: (t) => [
        reply === "step" ? ept("w", t.p(0)).step(1) : ept("w", t.p(0))[reply](),
        exit(abi.HVI_EXIT_DEADLINE, { rip: t.symbol("st8") + 3 }),
      ],
      memory: (t) => [[t.p(0), reply === "scratch" ? "00" : "05"]],
      budget: [undefined, -10],
      done: false,
    }),
  ),
  {
    name: "exit.shutdown.no-idt",
    entry: "ud2",
    regs: { idtLimit: 0 },
    script: [exit(abi.HVI_EXIT_SHUTDOWN, { rip: "ud2" })],
    done: false,
  },
  {
    name: "exit.shutdown.stack-gone",
    entry: "int3",
    // The stack is not mapped: #PF, then #DF, then shutdown.
    regs: { rsp: 0x7f0000000000 },
    script: [exit(abi.HVI_EXIT_SHUTDOWN, { rip: "int3", regs: { rsp: 0x7f0000000000 } })],
    done: false,
  },
];

/** Guest code that raises each exception. */
interface Raise {
  vector: number;
  entry: string;
  regs?: Record<string, number | bigint>;
  error?: number;
  cr2?: bigint;
  /** RIP of the frame, from the entry: 0 for a fault. */
  offset?: number;
  length?: number;
  setup?: (t: Bench) => void;
}
const RAISE: Raise[] = [
  { vector: 0, entry: "div8", regs: { rsi: 0x5000 } },
  { vector: 3, entry: "int3", offset: 1, length: 1 },
  { vector: 6, entry: "ud2" },
  { vector: 7, entry: "fild8", regs: { rsi: 0x5000, cr0: 0x8001003b } },
  { vector: 11, entry: "load_ds", regs: { rax: SEL.dataAbsent }, error: SEL.dataAbsent },
  { vector: 13, entry: "load_ds", regs: { rax: 0x2000 }, error: 0x2000 },
  { vector: 14, entry: "ld8", regs: { rsi: 0x7000000000 }, error: 0, cr2: 0x7000000000n },
  { vector: 14, entry: "st8", regs: { rdi: 0x7000000123 }, error: 2, cr2: 0x7000000123n },
  { vector: 14, entry: "jmp_rax", regs: { rax: 0x7000000000 }, error: 0x10, cr2: 0x7000000000n },
];
const exceptions: Case[] = RAISE.flatMap((r, i) => {
  const name = `${r.vector}.${r.entry}`;
  const error = r.error ?? 0;
  const target = r.entry === "jmp_rax";
  const rip = (t: Bench) => (target ? 0x7000000000 : t.symbol(r.entry));
  const wanted = (t: Bench) => ({
    number: r.vector,
    value: error,
    rip: rip(t),
    gva: r.cr2,
    regs: r.vector === 14 ? { cr2: 0 } : {},
    insnLen: r.length,
  });
  const frame = (t: Bench) => ({
    error: r.error,
    rip: rip(t) + (r.offset ?? 0),
    cr2: r.cr2,
  });
  return [
    {
      name: `exit.exception.${name}.resume.${i}`,
      entry: r.entry,
      regs: r.regs,
      setup: (t) => t.vm.intercept(EXC, 0, 2 ** r.vector),
      script: [exit(abi.HVI_EXIT_EXCEPTION, wanted).resume(), leave(trap(r.vector, frame))],
      brief: r.vector === 0,
    },
    {
      name: `exit.exception.${name}.off.${i}`,
      entry: r.entry,
      regs: r.regs,
      setup: (t) => t.vm.intercept(EXC, 0, (0xffffffff & ~(2 ** r.vector)) >>> 0),
      script: [leave(trap(r.vector, frame))],
      brief: r.vector === 0,
    },
  ] satisfies Case[];
});

const exceptionReplies: Case[] = [
  {
    name: "exit.exception.int3.skip",
    entry: "int3",
    setup: (t) => t.vm.intercept(EXC, 0, 8),
    script: [exit(abi.HVI_EXIT_EXCEPTION, { number: 3, insnLen: 1, rip: "int3" }).skip()],
  },
  {
    name: "exit.exception.int3.moved-rip",
    entry: "int3",
    setup: (t) => t.vm.intercept(EXC, 0, 8),
    script: (t) => [
      exit(abi.HVI_EXIT_EXCEPTION, { number: 3 }).do((v) => {
        v.rip = t.symbol("nops");
        v.retry();
      }),
    ],
  },
  {
    name: "exit.exception.ud.inject-other",
    entry: "ud2",
    setup: (t) => t.vm.intercept(EXC, 0, 1 << 6),
    script: [
      exit(abi.HVI_EXIT_EXCEPTION, { number: 6, rip: "ud2" }).inject({
        type: abi.HVI_EVENT_EXCEPTION,
        vector: 13,
        error: 0x18,
      }),
      leave(trap(13, { error: 0x18, rip: "ud2" })),
    ],
  },
  {
    name: "exit.exception.page-fault.repaired",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(0), VALUE);
      t.put64(0x17000, 0n);
      t.vm.intercept(EXC, 0, 1 << 14);
    },
    script: (t) => [
      exit(abi.HVI_EXIT_EXCEPTION, { number: 14, value: 0, gva: t.d(0), rip: "ld8" }).do((v, b) => {
        b.put64(0x17000, BigInt(b.p(0)) | 0x67n);
        v.retry();
      }),
    ],
    end: { rax: VALUE, cr2: 0 },
  },
  {
    name: "exit.exception.user-page-fault",
    entry: "ld8",
    mode: "user",
    regs: { rsi: 0x7000000000 },
    setup: (t) => t.vm.intercept(EXC, 0, 1 << 14),
    script: [
      exit(abi.HVI_EXIT_EXCEPTION, {
        number: 14,
        value: 4,
        gva: 0x7000000000,
        rip: "ld8",
      }).resume(),
      trap(14, { error: 4, rip: "ld8" }),
    ],
    done: false,
  },
  {
    name: "exit.exception.debug-trap",
    entry: "tf_nops",
    setup: (t) => t.vm.intercept(EXC, 0, 2),
    // The trap comes after the instruction that follows POPFQ.
    script: (t) => [
      exit(abi.HVI_EXIT_EXCEPTION, { number: 1, rip: t.symbol("tf_nops") + 11 })
        .do((_, b) => {
          b.cpu.set("rflags", b.reg("rflags") & ~0x100n);
        })
        .retry(),
    ],
  },
  {
    name: "exit.exception.soft-int-is-none",
    entry: "int_30",
    setup: (t) => t.vm.intercept(EXC, 0, 0xffffffff),
    script: [trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 }))],
  },
];

const IO: [string, Partial<Case>, Record<string, unknown>][] = [
  [
    "out1",
    { regs: { rdx: 0x3f8, rax: VALUE } },
    { number: 0x3f8, size: 1, value: 0x11, flags: 0, insnLen: 1 },
  ],
  [
    "out2",
    { regs: { rdx: 0x1234, rax: VALUE } },
    { number: 0x1234, size: 2, value: 0x2211, flags: 0, insnLen: 2 },
  ],
  [
    "out4",
    { regs: { rdx: 0xcf8, rax: VALUE } },
    { number: 0xcf8, size: 4, value: 0x44332211, flags: 0, insnLen: 1 },
  ],
  [
    "out_imm",
    { regs: { rax: VALUE } },
    { number: 0x42, size: 1, value: 0x11, flags: 0, insnLen: 2 },
  ],
];
const io: Case[] = [
  ...IO.map(
    ([entry, more, want]): Case => ({
      name: `exit.io.${entry}`,
      entry,
      script: [exit(abi.HVI_EXIT_IO, { ...want, rip: entry }).skip()],
      ...more,
    }),
  ),
  ...(
    [
      ["in1", 1, 0x55aa77ee, 0x88776655443322een],
      ["in2", 2, 0x55aa77ee, 0x88776655443377een],
      ["in4", 4, 0x55aa77ee, 0x55aa77een],
    ] as const
  ).map(
    ([entry, size, answer, rax]): Case => ({
      name: `exit.io.${entry}`,
      entry,
      regs: { rdx: 0x60, rax: VALUE },
      script: [
        exit(abi.HVI_EXIT_IO, { number: 0x60, size, flags: abi.HVI_IO_IN, rip: entry })
          .do((v) => v.setExitValue(answer, 0))
          .skip(),
      ],
      end: { rax },
    }),
  ),
  {
    name: "exit.io.in-imm.resume-is-skip",
    entry: "in_imm",
    script: [
      exit(abi.HVI_EXIT_IO, { number: 0x42, size: 4, flags: abi.HVI_IO_IN, insnLen: 2 })
        .do((v) => v.setExitValue(7, 0))
        .resume(),
    ],
    end: { rax: 7 },
  },
  {
    name: "exit.io.outsb",
    entry: "outsb",
    regs: (t) => ({ rdx: 0x3f8, rsi: t.d(0, 5) }),
    script: (t) => [
      exit(abi.HVI_EXIT_IO, {
        number: 0x3f8,
        size: 1,
        flags: abi.HVI_IO_STRING,
        gva: t.d(0, 5),
        insnLen: 1,
      })
        .do((_, b) => b.cpu.set("rsi", b.reg("rsi") + 1n))
        .skip(),
    ],
    end: (t) => ({ rsi: t.d(0, 6) }),
  },
  {
    name: "exit.io.insl",
    entry: "insl",
    regs: (t) => ({ rdx: 0x1f0, rdi: t.d(0, 8) }),
    script: (t) => [
      exit(abi.HVI_EXIT_IO, {
        number: 0x1f0,
        size: 4,
        flags: abi.HVI_IO_STRING | abi.HVI_IO_IN,
        gva: t.d(0, 8),
        insnLen: 1,
      })
        .do((_, b) => {
          b.poke(b.p(0, 8), pattern(4));
          b.cpu.set("rdi", b.reg("rdi") + 4n);
        })
        .skip(),
    ],
    memory: (t) => [[t.p(0, 8), pattern(4)]],
  },
  ...(
    [
      ["rep_outsw", abi.HVI_IO_STRING | abi.HVI_IO_REP, "rsi", 2],
      ["rep_insb", abi.HVI_IO_STRING | abi.HVI_IO_REP | abi.HVI_IO_IN, "rdi", 1],
    ] as const
  ).map(
    ([entry, flags, reg, size]): Case => ({
      name: `exit.io.${entry}`,
      entry,
      regs: (t) => ({ rdx: 0x1f0, rsi: t.d(0), rdi: t.d(0), rcx: 3 }),
      // One element an exit; the engine counts, and the instruction runs again until RCX is 0.
      script: (t) =>
        [0, 1, 2].map((i) =>
          exit(abi.HVI_EXIT_IO, {
            number: 0x1f0,
            size,
            flags,
            gva: t.d(0, i * size),
            rip: entry,
            regs: { rcx: 3 - i },
          })
            .do((_, b) =>
              b.cpu.setAll({ [reg]: b.reg(reg) + BigInt(size), rcx: b.reg("rcx") - 1n }),
            )
            .retry(),
        ),
      end: (t) => ({ rcx: 0, [reg]: t.d(0, 3 * size) }),
    }),
  ),
  {
    name: "exit.io.rep-count-zero-is-silent",
    entry: "rep_outsw",
    regs: (t) => ({ rdx: 0x1f0, rsi: t.d(0), rcx: 0 }),
    script: [],
  },
  {
    name: "exit.io.port-switched-off",
    entry: "out1",
    regs: { rdx: 0xed },
    setup: on(abi.HVI_INTERCEPT_IO, 0xec | (0xed << 16), 0),
    script: [],
  },
  {
    name: "exit.io.user-without-iopl-is-gp",
    entry: "out1",
    mode: "user",
    regs: { rdx: 0x80, rflags: 2 },
    script: [trap(13, { error: 0, rip: "out1" })],
    done: false,
  },
];

export const exits: Case[] = [
  ...msrs,
  ...controls,
  ...tables,
  ...tablesMore,
  ...instructions,
  ...exceptions,
  ...exceptionReplies,
  ...io,
];
