// SPDX-License-Identifier: MIT
/** A6: events of every type injected, delivered or lost, and the windows for them. */
import * as abi from "../../../src/bridge/abi.ts";
import { type Case, type Event, ept, event, exit, trap } from "../case.ts";
import { gate, IDT, STACK } from "../layout.ts";
import { R } from "./words.ts";

const SP = STACK - 0x100;
const IF = 0x202;
const external = (vector: number, notify = false): Event => ({
  type: abi.HVI_EVENT_EXTERNAL,
  vector,
  notify,
});
const exception = (vector: number, error?: number, cr2?: bigint, notify = false): Event => ({
  type: abi.HVI_EVENT_EXCEPTION,
  vector,
  error,
  cr2,
  notify,
});
const delivered = (vector: number) =>
  exit(abi.HVI_EXIT_INJECTED, (t) => ({
    eventStatus: abi.HVI_EVENT_DELIVERED,
    rip: t.symbol("handlers") + 16 * vector,
  })).resume();
const lost = () => exit(abi.HVI_EXIT_INJECTED, { eventStatus: abi.HVI_EVENT_LOST }).resume();

/** Vectors with the error code that each takes. */
const VECTORS: [number, number | undefined][] = [
  [0, undefined],
  [1, undefined],
  [4, undefined],
  [5, undefined],
  [6, undefined],
  [7, undefined],
  [10, 0x10],
  [11, 0x18],
  [12, 0],
  [13, 0x20],
  [16, undefined],
  [17, 0],
  [19, undefined],
];

export const injections: Case[] = [
  ...VECTORS.map(
    ([vector, error]): Case => ({
      name: `inject.exception.${vector}`,
      setup: (t) => event(t.vcpu(), exception(vector, error)),
      script: [trap(vector, { error, rip: "nothing" })],
    }),
  ),
  {
    name: "inject.page-fault",
    setup: (t) => event(t.vcpu(), exception(14, 6, 0x123456789000n)),
    script: [trap(14, { error: 6, rip: "nothing", cr2: 0x123456789000n })],
  },
  {
    name: "inject.page-fault.notify",
    setup: (t) => event(t.vcpu(), exception(14, 4, 0xffff888000001000n, true)),
    script: [delivered(14), trap(14, { error: 4, rip: "nothing", cr2: 0xffff888000001000n })],
  },
  {
    name: "inject.page-fault.user",
    mode: "user",
    setup: (t) => event(t.vcpu(), exception(14, 4, 0x1000n)),
    script: [trap(14, { error: 4, rip: "nothing", cr2: 0x1000n })],
  },
  {
    name: "inject.external",
    regs: { rflags: IF },
    setup: (t) => event(t.vcpu(), external(0x30)),
    script: [trap(0x30, { rip: "nothing" }, { regs: { rflags: 2 } })],
    end: { rflags: IF },
  },
  {
    name: "inject.external.notify",
    regs: { rflags: IF },
    setup: (t) => event(t.vcpu(), external(0x31, true)),
    script: [delivered(0x31), trap(0x31, { rip: "nothing" })],
  },
  {
    name: "inject.external.then-runs-on",
    regs: { rflags: IF, rcx: 20000 },
    // 1: dec ecx; jnz 1b; done. Watching an event's delivery ends with it.
    setup: (t) => {
      t.code(3, 0, "ffc9 75fc e6ee");
      event(t.vcpu(), external(0x30));
    },
    script: (t) => [trap(0x30, { rip: t.d(3) })],
    check: (t) =>
      t.vcpu().internalExits < 200
        ? undefined
        : `${t.vcpu().internalExits} exits below the interface for one event`,
  },
  {
    name: "inject.external.if-clear-is-lost",
    setup: (t) => event(t.vcpu(), external(0x30, true)),
    script: [lost()],
  },
  {
    name: "inject.external.sti-shadow-is-lost",
    regs: { rflags: IF, interruptibility: abi.HVI_BLOCK_STI },
    setup: (t) => event(t.vcpu(), external(0x30, true)),
    script: [lost()],
  },
  {
    name: "inject.external.mov-ss-shadow-is-lost",
    regs: { rflags: IF, interruptibility: abi.HVI_BLOCK_MOV_SS },
    setup: (t) => event(t.vcpu(), external(0x30, true)),
    script: [lost()],
  },
  {
    name: "inject.nmi",
    setup: (t) => event(t.vcpu(), { type: abi.HVI_EVENT_NMI, vector: 2 }),
    script: [trap(2, { rip: "nothing" }, { regs: { interruptibility: abi.HVI_BLOCK_NMI } })],
    end: { interruptibility: 0 },
  },
  {
    name: "inject.soft-int",
    entry: "nops",
    setup: (t) => event(t.vcpu(), { type: abi.HVI_EVENT_SOFT_INT, vector: 0x32, insnLen: 2 }),
    script: [trap(0x32, (t) => ({ rip: t.symbol("nops") + 2 }))],
  },
  {
    name: "inject.soft-exception",
    entry: "nops",
    setup: (t) => event(t.vcpu(), { type: abi.HVI_EVENT_SOFT_EXCEPTION, vector: 3, insnLen: 1 }),
    script: [trap(3, (t) => ({ rip: t.symbol("nops") + 1 }))],
  },
  {
    name: "inject.priv-soft-exception",
    entry: "nops",
    setup: (t) => event(t.vcpu(), { type: abi.HVI_EVENT_PRIV_SOFT, vector: 1, insnLen: 1 }),
    script: [trap(1, (t) => ({ rip: t.symbol("nops") + 1 }))],
  },
  {
    name: "inject.from-user.rsp0",
    mode: "user",
    regs: { rflags: 0x3202 },
    setup: (t) => event(t.vcpu(), external(0x33)),
    script: [trap(0x33, { rip: "nothing" }, { regs: { rsp: 0x1c0000 - 0x28, cs: 8 } })],
  },
  {
    name: "inject.ist",
    setup: (t) => {
      gate(t, 18, { ist: 1 });
      event(t.vcpu(), exception(18));
    },
    script: [trap(18, { rip: "nothing" }, { regs: { rsp: 0x1d0000 - 0x28 } })],
  },
  {
    name: "inject.with-skip",
    entry: "out1",
    regs: { rdx: 0x60, rflags: IF },
    script: (t) => [
      exit(abi.HVI_EXIT_IO, { number: 0x60 })
        .do((v) => event(v, external(0x30)))
        .skip(),
      trap(0x30, { rip: t.symbol("out1") + 1 }),
    ],
  },
  {
    name: "inject.instead-of-violation",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: 5 }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [
      ept("w", t.p(0)).inject(exception(14, 3, t.d(0))),
      trap(14, { error: 3, rip: "st8", cr2: t.d(0) }),
      ept("w", t.p(0)).scratch(),
    ],
    memory: (t) => [[t.p(0), "00".repeat(8)]],
  },
  {
    name: "inject.delivery-violates.resume",
    setup: (t) => {
      t.rights(STACK - 0x1000, R);
      event(t.vcpu(), exception(13, 8, undefined, true));
    },
    script: [
      ept("we", SP - 8, { page: true, rights: R, rip: "nothing" }).resume(),
      delivered(13),
      trap(13, { error: 8, rip: "nothing" }),
    ],
  },
  {
    name: "inject.delivery-violates.retry",
    regs: { rflags: IF },
    setup: (t) => {
      t.rights(IDT, 0);
      event(t.vcpu(), external(0x30, true));
    },
    script: [
      ept("re", IDT + 16 * 0x30, { page: true, rights: 0, rip: "nothing" }).retryWith(7),
      delivered(0x30),
      trap(0x30, { rip: "nothing" }),
    ],
  },
  {
    name: "inject.gate-absent.external",
    regs: { rflags: IF },
    setup: (t) => {
      gate(t, 0x30, { present: false });
      event(t.vcpu(), external(0x30, true));
    },
    // #NP with the vector's index, IDT and EXT.
    script: [lost(), trap(11, { error: 0x30 * 8 + 3, rip: "nothing" })],
  },
  {
    name: "inject.gate-absent.soft-int",
    entry: "nops",
    setup: (t) => {
      gate(t, 0x30, { present: false });
      event(t.vcpu(), { type: abi.HVI_EVENT_SOFT_INT, vector: 0x30, insnLen: 2, notify: true });
    },
    // Not an external event: no EXT; the fault stands at the instruction.
    script: [lost(), trap(11, { error: 0x30 * 8 + 2, rip: "nops" })],
  },
  {
    name: "inject.page-fault.gate-absent-is-double-fault",
    setup: (t) => {
      gate(t, 14, { present: false });
      event(t.vcpu(), exception(14, 0, 0x5000n, true));
    },
    script: [lost(), trap(8, { error: 0, rip: "nothing" })],
  },
  {
    name: "inject.gate-absent.page-fault-of-stack",
    // Delivery of #UD finds no stack: #PF instead; its own delivery fails: #DF on the IST.
    regs: { rsp: 0x7f0000000000 },
    setup: (t) => {
      gate(t, 8, { ist: 1 });
      event(t.vcpu(), exception(6, undefined, undefined, true));
    },
    script: [lost(), trap(8, { error: 0, rip: "nothing" }, { regs: { rsp: 0x1d0000 - 0x30 } })],
  },
  {
    name: "inject.everything-absent-is-shutdown",
    setup: (t) => {
      for (const v of [8, 11, 13, 14]) gate(t, v, { present: false });
      event(t.vcpu(), exception(13, 0));
    },
    script: [exit(abi.HVI_EXIT_SHUTDOWN, { rip: "nothing" })],
    done: false,
  },
  {
    name: "inject.wakes-halt",
    entry: "hlt",
    regs: { rflags: IF },
    script: (t) => [
      exit(abi.HVI_EXIT_DEADLINE, { regs: { mpState: abi.HVI_MP_HALTED } })
        .do((v) => event(v, external(0x30)))
        .resume(),
      trap(0x30, { rip: t.symbol("hlt") + 1 }, { regs: { mpState: abi.HVI_MP_RUNNING } }),
    ],
    budget: [200000],
  },
  {
    name: "inject.nmi.wakes-halt",
    entry: "hlt",
    script: (t) => [
      exit(abi.HVI_EXIT_DEADLINE)
        .do((v) => event(v, { type: abi.HVI_EVENT_NMI, vector: 2 }))
        .resume(),
      trap(2, { rip: t.symbol("hlt") + 1 }),
    ],
    budget: [200000],
  },
  {
    name: "window.irq.after-sti",
    entry: "sti_nops",
    setup: (t) => {
      t.vcpu().wantIrqWindow = true;
    },
    // STI holds interrupts off for one instruction more.
    script: (t) => [
      exit(abi.HVI_EXIT_IRQ_WINDOW, { rip: t.symbol("sti_nops") + 2 })
        .do((v) => {
          v.wantIrqWindow = false;
          event(v, external(0x30, true));
        })
        .resume(),
      delivered(0x30),
      trap(0x30, { rip: t.symbol("sti_nops") + 2 }),
    ],
  },
  {
    name: "window.irq.open-at-once",
    entry: "nops",
    regs: { rflags: IF },
    setup: (t) => {
      t.vcpu().wantIrqWindow = true;
    },
    script: [
      exit(abi.HVI_EXIT_IRQ_WINDOW, { rip: "nops" }).do((v) => {
        v.wantIrqWindow = false;
      }),
    ],
  },
  {
    name: "window.irq.after-mov-ss",
    regs: { rax: 0x10, rflags: IF },
    // MOV SS ends page 3; the fetch from page 4 exits inside its shadow.
    setup: (t) => {
      t.code(3, 0xffe, "8ed0 90 90 e6ee");
      t.rights(t.p(4), R);
    },
    script: (t) => [
      ept("x", t.p(4), { rip: t.d(4), regs: { interruptibility: abi.HVI_BLOCK_MOV_SS } })
        .do((v) => {
          if (v.irqReady) throw new Error("irq_ready is set in the shadow of MOV SS");
          v.wantIrqWindow = true;
        })
        .retryWith(7),
      exit(abi.HVI_EXIT_IRQ_WINDOW, { rip: t.d(4, 1) }).do((v) => {
        v.wantIrqWindow = false;
      }),
    ],
  },
  {
    name: "window.irq.sti-shadow-by-abi",
    entry: "nops",
    regs: { rflags: IF, interruptibility: abi.HVI_BLOCK_STI },
    setup: (t) => {
      t.vcpu().wantIrqWindow = true;
    },
    script: (t) => [
      exit(abi.HVI_EXIT_IRQ_WINDOW, { rip: t.symbol("nops") + 1 }).do((v) => {
        v.wantIrqWindow = false;
      }),
    ],
  },
  {
    name: "window.irq.mov-ss-shadow-by-abi",
    entry: "nops",
    regs: { rflags: IF, interruptibility: abi.HVI_BLOCK_MOV_SS },
    setup: (t) => {
      t.vcpu().wantIrqWindow = true;
    },
    script: (t) => [
      exit(abi.HVI_EXIT_IRQ_WINDOW, { rip: t.symbol("nops") + 1 }).do((v) => {
        v.wantIrqWindow = false;
      }),
    ],
  },
  {
    name: "window.irq-ready",
    entry: "out1",
    regs: { rdx: 0x60, rflags: IF },
    script: [
      exit(abi.HVI_EXIT_IO, { number: 0x60 })
        .do((v) => {
          if (!v.irqReady) throw new Error("irq_ready is clear with IF set");
        })
        .skip(),
    ],
    check: (t) => (t.vcpu().irqReady ? undefined : "irq_ready is clear at the end"),
  },
  {
    name: "window.irq-not-ready",
    entry: "out1",
    regs: { rdx: 0x60 },
    script: [exit(abi.HVI_EXIT_IO, { number: 0x60 }).skip()],
    check: (t) => (t.vcpu().irqReady ? "irq_ready is set with IF clear" : undefined),
  },
  {
    name: "inject.counted",
    regs: { rflags: IF },
    setup: (t) => event(t.vcpu(), external(0x30)),
    script: [trap(0x30)],
    check: (t) => (t.vcpu().events === 1 ? undefined : `counters.events is ${t.vcpu().events}`),
  },
];
