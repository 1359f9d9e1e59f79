// SPDX-License-Identifier: MIT
/** Strings, the stack, descriptors, events, save areas: accesses that are not plainly in the operand; and A5. */
import { fromHex, le, pattern, toHex } from "../bench.ts";
import { type Case, ept, trap } from "../case.ts";
import {
  descriptor,
  GDT,
  gate,
  IDT,
  LDT,
  SEL,
  STACK,
  STACK_IST,
  STACK_RSP0,
  TSS,
  WALK,
} from "../layout.ts";
import { R, RW, RWX, RX, setYmm0, VALUE, X, ymm0 } from "./words.ts";

const SP = STACK - 0x100;
const STACK_PAGE = STACK - 0x1000;

export const strings: Case[] = [
  {
    name: "string.rep_movsb.dest-mid.resume",
    entry: "rep_movsb",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0, 0xff8), rcx: 11 }),
    setup: (t) => {
      t.poke(t.p(4), pattern(11));
      t.rights(t.p(1), R);
    },
    script: (t) =>
      [0, 1, 2].map((i) =>
        ept("w", t.p(1, i), {
          size: 1,
          rights: R,
          rip: "rep_movsb",
          regs: { rcx: 3 - i, rsi: t.d(4, 8 + i), rdi: t.d(1, i) },
        }).resume(),
      ),
    memory: (t) => [[t.p(0, 0xff8), pattern(11)]],
    end: { rcx: 0 },
  },
  {
    name: "string.rep_movsb.source-mid.resume",
    entry: "rep_movsb",
    regs: (t) => ({ rsi: t.d(4, 0xffe), rdi: t.d(0), rcx: 4 }),
    setup: (t) => {
      t.poke(t.p(4, 0xffe), pattern(4));
      t.rights(t.p(5), 0);
    },
    script: (t) => [
      ept("r", t.p(5), { size: 1, regs: { rcx: 2, rdi: t.d(0, 2) } }).resume(),
      ept("r", t.p(5, 1), { size: 1, regs: { rcx: 1, rdi: t.d(0, 3) } }).resume(),
    ],
    memory: (t) => [[t.p(0), pattern(4)]],
  },
  {
    name: "string.rep_movsq.scratch-each",
    entry: "rep_movsq",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0, 0xff0), rcx: 4 }),
    setup: (t) => {
      t.poke(t.p(4), pattern(32));
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(1), { size: 8, regs: { rcx: 2 } }).scratch(),
      ept("w", t.p(1, 8), { size: 8, regs: { rcx: 1 } }).scratch(),
    ],
    memory: (t) => [[t.p(0, 0xff0), pattern(16) + "00".repeat(16)]],
    end: { rcx: 0 },
  },
  {
    name: "string.rep_movsq.element-crosses",
    entry: "rep_movsq",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0, 0xff4), rcx: 3 }),
    setup: (t) => {
      t.poke(t.p(4), pattern(24));
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(1), { regs: { rcx: 2, rdi: t.d(0, 0xffc) } }).resume(),
      ept("w", t.p(1, 4), { regs: { rcx: 1 } }).resume(),
    ],
    memory: (t) => [[t.p(0, 0xff4), pattern(24)]],
  },
  {
    name: "string.rep_movsq.emulate",
    entry: "rep_movsq",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0), rcx: 2 }),
    setup: (t) => t.rights(t.p(4), 0),
    script: (t) => [
      ept("r", t.p(4), { regs: { rcx: 2 } }).do((c, b) => c.emulate(b.p(4), fromHex(pattern(16)))),
      ept("r", t.p(4, 8), { regs: { rcx: 1 } }).do((c, b) =>
        c.emulate(b.p(4, 8), fromHex(pattern(8, 0x71))),
      ),
    ],
    memory: (t) => [[t.p(0), pattern(8) + pattern(8, 0x71)]],
  },
  {
    name: "string.rep_movsq.down",
    entry: "rep_movsq_down",
    regs: (t) => ({ rsi: t.d(4, 0x18), rdi: t.d(1, 8), rcx: 4 }),
    setup: (t) => {
      t.poke(t.p(4), pattern(32));
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("w", t.p(0, 0xff8), {
        size: 8,
        rip: t.symbol("rep_movsq_down") + 1,
        regs: { rcx: 2 },
      }).resume(),
      ept("w", t.p(0, 0xff0), {
        size: 8,
        rip: t.symbol("rep_movsq_down") + 1,
        regs: { rcx: 1 },
      }).resume(),
    ],
    memory: (t) => [[t.p(0, 0xff0), pattern(32)]],
  },
  {
    name: "string.rep_stosq.retry-goes-on",
    entry: "rep_stosq",
    regs: (t) => ({ rdi: t.d(0, 0xff0), rcx: 100, rax: VALUE }),
    setup: (t) => t.rights(t.p(1), R),
    script: (t) => [ept("w", t.p(1), { size: 8, regs: { rcx: 98 } }).retryWith(RWX)],
    memory: (t) => [[t.p(1, 97 * 8), le(VALUE, 8) + le(0, 8)]],
    end: { rcx: 0 },
  },
  {
    name: "string.rep_stosb.skip-mid",
    entry: "rep_stosb",
    regs: (t) => ({ rdi: t.d(0, 0xffe), rcx: 6, rax: 0x55 }),
    setup: (t) => t.rights(t.p(1), R),
    script: (t) => [ept("w", t.p(1), { size: 1 }).skip()],
    end: { rcx: 4 },
    memory: (t) => [[t.p(0, 0xffe), "555500"]],
  },
  {
    name: "string.rep_stosb.step-one-iteration",
    entry: "rep_stosb",
    regs: (t) => ({ rdi: t.d(0), rcx: 3, rax: 0x55 }),
    setup: (t) => {
      t.vm.createView(0);
      t.rights(t.p(0), R);
    },
    script: (t) => [0, 1, 2].map((i) => ept("w", t.p(0, i), { regs: { rcx: 3 - i } }).step(1)),
    memory: (t) => [[t.p(0), "55555500"]],
  },
  {
    name: "string.rep_lodsb.emulate-last",
    entry: "rep_lodsb",
    regs: (t) => ({ rsi: t.d(0, 0xffe), rcx: 3 }),
    setup: (t) => t.rights(t.p(1), 0),
    script: (t) => [ept("r", t.p(1), { size: 1 }).do((c, b) => c.emulate(b.p(1), fromHex("99")))],
    end: { rax: 0x99, rcx: 0 },
  },
  {
    name: "string.repe_cmpsb.emulate-difference",
    entry: "repe_cmpsb",
    regs: (t) => ({ rsi: t.d(0, 0xffe), rdi: t.d(4), rcx: 8 }),
    setup: (t) => t.rights(t.p(1), 0),
    script: (t) => [
      ept("r", t.p(1), { size: 1, regs: { rcx: 6 } }).do((c, b) =>
        c.emulate(b.p(1), fromHex("01")),
      ),
    ],
    end: { rcx: 5, flags: 0 },
  },
  {
    name: "string.repne_scasb.mid",
    entry: "repne_scasb",
    regs: (t) => ({ rdi: t.d(0, 0xffc), rcx: 100, rax: 0x7e }),
    setup: (t) => {
      t.poke(t.p(1, 1), "7e");
      t.rights(t.p(1), 0);
    },
    script: (t) => [
      ept("r", t.p(1), { regs: { rcx: 96 } }).resume(),
      ept("r", t.p(1, 1), { regs: { rcx: 95 } }).resume(),
    ],
    end: { rcx: 94, flags: 0x44 },
  },
  {
    name: "string.movsq.both-ends",
    entry: "movsq",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0) }),
    setup: (t) => {
      t.poke(t.p(4), pattern(8));
      t.rights(t.p(4), 0);
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("r", t.p(4), { size: 8, rights: 0 }).do((c, b) =>
        c.emulate(b.p(4), fromHex(pattern(8, 0x41))),
      ),
      ept("w", t.p(0), { size: 8, rights: R }).resume(),
    ],
    memory: (t) => [
      [t.p(0), pattern(8, 0x41)],
      [t.p(4), pattern(8)],
    ],
  },
  {
    name: "string.movsb.same-page",
    entry: "movsb",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(0, 0x10) }),
    setup: (t) => {
      t.poke(t.p(0), "5a");
      t.rights(t.p(0), X);
    },
    needs: "exec-only",
    // RESUME of the page covers the whole instruction: its write too.
    script: (t) => [ept("r", t.p(0), { size: 1 }).resume()],
    memory: (t) => [[t.p(0, 0x10), "5a"]],
  },
  {
    name: "string.rep.count-zero-is-silent",
    entry: "rep_stosq",
    regs: (t) => ({ rdi: t.d(0), rcx: 0 }),
    setup: (t) => t.rights(t.p(0), 0),
    script: [],
  },
];

/** The stack page without W (or R) under one instruction that uses it. */
export const stack: Case[] = [
  ...(["resume", "scratch", "skip"] as const).map(
    (how): Case => ({
      name: `stack.push.${how}`,
      entry: "push_rax",
      regs: { rax: VALUE },
      setup: (t) => t.rights(STACK_PAGE, R),
      script: [ept("w", SP - 8, { size: 8, rights: R, regs: { rsp: SP } })[how]()],
      end: { rsp: how === "skip" ? SP : SP - 8 },
      memory: [[SP - 8, how === "resume" ? le(VALUE, 8) : le(0, 8)]],
    }),
  ),
  {
    name: "stack.push.crossing",
    entry: "push_rax",
    regs: (t) => ({ rax: VALUE, rsp: t.d(1, 4) }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(0, 0xffc), { rights: R }).resume(),
      ept("w", t.p(1), { rights: R }).scratch(),
    ],
    memory: (t) => [[t.p(0, 0xffc), `${le(VALUE, 8).slice(0, 8)}00000000`]],
    end: (t) => ({ rsp: t.d(0, 0xffc) }),
  },
  {
    name: "stack.push-imm",
    entry: "push_imm",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [ept("w", SP - 8, { size: 8 }).resume()],
    memory: [[SP - 8, le(0x1234, 8)]],
  },
  {
    name: "stack.push-mem.both",
    entry: "push_mem",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(0), VALUE);
      t.rights(t.p(0), 0);
      t.rights(STACK_PAGE, R);
    },
    script: (t) => [
      ept("r", t.p(0), { size: 8 }).do((c, b) => c.emulate(b.p(0), fromHex(pattern(8, 0x21)))),
      ept("w", SP - 8, { size: 8 }).resume(),
    ],
    memory: [[SP - 8, pattern(8, 0x21)]],
  },
  {
    name: "stack.pop.emulate",
    entry: "pop_rax",
    setup: (t) => t.rights(STACK_PAGE, 0),
    script: [ept("r", SP, { size: 8, rights: 0 }).do((c) => c.emulate(SP, fromHex(le(VALUE, 8))))],
    end: { rax: VALUE, rsp: SP + 8 },
  },
  {
    name: "stack.pop-mem.scratch",
    entry: "pop_mem",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => {
      t.put64(SP, VALUE);
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0), { size: 8, regs: { rsp: SP } }).scratch()],
    memory: (t) => [[t.p(0), le(0, 8)]],
    end: { rsp: SP + 8 },
  },
  {
    name: "stack.pushf",
    entry: "pushf",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [ept("w", SP - 8, { size: 8 }).resume()],
    memory: [[SP - 8, le(2, 8)]],
  },
  {
    name: "stack.popf",
    entry: "popf",
    setup: (t) => t.rights(STACK_PAGE, 0),
    script: [ept("r", SP, { size: 8 }).do((c) => c.emulate(SP, fromHex(le(0x8d7, 8))))],
    end: { rflags: 0x8d7 },
  },
  {
    name: "stack.enter",
    entry: "enter_frame",
    regs: { rbp: VALUE },
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [ept("w|rw", SP - 8, { page: true }).resume()],
    end: { rsp: SP - 24, rbp: SP - 8 },
    memory: [[SP - 8, le(VALUE, 8)]],
  },
  {
    name: "stack.leave",
    entry: "leave_frame",
    regs: (t) => ({ rbp: t.d(0) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0), { size: 8, regs: { rsp: SP } }).do((c, b) =>
        c.emulate(b.p(0), fromHex(le(VALUE, 8))),
      ),
    ],
    end: (t) => ({ rbp: VALUE, rsp: t.d(0, 8) }),
  },
  ...(["resume", "scratch"] as const).map(
    (how): Case => ({
      name: `stack.call.${how}`,
      entry: "call_near",
      setup: (t) => t.rights(STACK_PAGE, R),
      script: [ept("w", SP - 8, { size: 8, regs: { rsp: SP } })[how]()],
      end: { rsp: SP - 8 },
      check: (t) => {
        const want = how === "resume" ? BigInt(t.symbol("call_near") + 5) : 0n;
        return t.get64(SP - 8) === want ? undefined : `the return address is ${t.get64(SP - 8)}`;
      },
    }),
  ),
  {
    name: "stack.call-mem.both",
    entry: "call_mem",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.rights(t.p(0), 0);
      t.rights(STACK_PAGE, R);
    },
    script: (t) => [
      ept("r", t.p(0), { size: 8 }).do((c, b) =>
        c.emulate(b.p(0), fromHex(le(b.symbol("done"), 8))),
      ),
      ept("w", SP - 8, { size: 8 }).resume(),
    ],
    end: { rsp: SP - 8 },
  },
  {
    name: "stack.jmp-mem",
    entry: "jmp_mem",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0), { size: 8 }).do((c, b) =>
        c.emulate(b.p(0), fromHex(le(b.symbol("done"), 8))),
      ),
    ],
  },
  {
    name: "stack.ret.emulate",
    entry: "ret_near",
    setup: (t) => t.rights(STACK_PAGE, 0),
    script: (t) => [
      ept("r", SP, { size: 8 }).do((c) => c.emulate(SP, fromHex(le(t.symbol("done"), 8)))),
    ],
    end: { rsp: SP + 8 },
  },
  {
    name: "stack.ret-far",
    entry: "ret_far",
    setup: (t) => {
      t.put64(SP, BigInt(t.symbol("done")));
      t.put64(SP + 8, BigInt(SEL.code64));
      t.rights(STACK_PAGE, 0);
    },
    script: [ept("r", SP, { page: true }).resume()],
    end: { rsp: SP + 16, cs: SEL.code64 },
  },
  {
    name: "stack.iret.same-level",
    entry: "iret",
    setup: (t) => {
      t.putQwords(SP, [t.symbol("done"), SEL.code64, 0x246, SP + 0x40, SEL.data]);
      t.rights(STACK_PAGE, 0);
    },
    script: [ept("r", SP, { page: true, rights: 0 }).resume()],
    end: { rsp: SP + 0x40, rflags: 0x246, ss: SEL.data },
  },
  {
    name: "stack.iret.to-user",
    entry: "iret",
    setup: (t) => {
      t.putQwords(SP, [t.symbol("done"), SEL.userCode64, 0x3202, STACK_RSP0 - 0x800, SEL.userData]);
      t.rights(STACK_PAGE, 0);
      t.rights(GDT, 0);
    },
    script: [
      ept("r", SP, { page: true, rights: 0 }).resume(),
      ept("r", GDT, { page: true, rights: 0 }).resume(),
    ],
    end: { cs: SEL.userCode64, ss: SEL.userData, rsp: STACK_RSP0 - 0x800 },
  },
];

/** Events through the IDT with one of their structures hooked. */
export const frames: Case[] = [
  {
    name: "event.int.frame-write",
    entry: "int_30",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [
      ept("we", SP - 8, { page: true, rights: R, regs: { rsp: SP } }).resume(),
      trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 })),
      // IRET reads are allowed: the page has R.
    ],
    end: { rsp: SP },
  },
  {
    name: "event.int.frame-scratch",
    entry: "int_30",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: (t) => [
      ept("we", SP - 8, { page: true, rights: R }).scratch(),
      // The frame was dropped: memory stays as it was.
      trap(0x30, { rip: 0 }).do((v) => {
        v.rip = t.symbol("done");
        v.retry();
      }),
    ],
    memory: [[SP - 0x28, "00".repeat(0x28)]],
  },
  {
    name: "event.int.retry",
    entry: "int_30",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [
      ept("we", SP - 8, { page: true, rights: R }).retryWith(RWX),
      trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 })),
    ],
  },
  {
    name: "event.int.idt-read",
    entry: "int_30",
    setup: (t) => t.rights(IDT, 0),
    script: [
      ept("re", IDT + 16 * 0x30, { page: true, rights: 0 }).resume(),
      trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 })),
    ],
  },
  {
    name: "event.int.idt-emulate",
    entry: "int_30",
    setup: (t) => t.rights(IDT, 0),
    // The gate that is read names another handler.
    script: (t) => [
      ept("re", IDT + 16 * 0x30, { page: true, rights: 0 }).do((c) => {
        const h = t.symbol("handlers") + 16 * 0x31;
        const gateBytes =
          le((h & 0xffff) | (SEL.code64 << 16), 4) + le((h & 0xffff0000) | 0xee00, 4) + le(0, 8);
        c.emulate(IDT + 16 * 0x30, fromHex(gateBytes));
      }),
      trap(0x31, (b) => ({ rip: b.symbol("int_30") + 2 })),
    ],
  },
  {
    name: "event.int.gdt-read",
    entry: "int_30",
    setup: (t) => t.rights(GDT, 0),
    script: [
      ept("re", GDT + SEL.code64, { page: true, rights: 0 }).resume(),
      trap(0x30),
      // IRET loads CS and SS again.
      ept("r", GDT + SEL.code64, { page: true, rights: 0, rip: undefined }).resume(),
    ],
  },
  {
    name: "event.int.from-user.tss-read",
    mode: "user",
    entry: "int_30",
    setup: (t) => t.rights(TSS, 0),
    script: [
      ept("re", TSS + 4, { page: true, rights: 0 }).resume(),
      trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 }), { regs: { rsp: STACK_RSP0 - 0x28 } }),
    ],
  },
  {
    name: "event.int.from-user.frame-write",
    mode: "user",
    entry: "int_30",
    setup: (t) => t.rights(STACK_RSP0 - 0x1000, R),
    script: [
      ept("we", STACK_RSP0 - 8, { page: true, rights: R }).resume(),
      trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 })),
    ],
  },
  {
    name: "event.int.ist",
    entry: "int_30",
    setup: (t) => {
      gate(t, 0x30, { ist: 1 });
      t.rights(TSS, 0);
      t.rights(STACK_IST - 0x1000, R);
    },
    script: [
      ept("re", TSS + 0x24, { page: true, rights: 0 }).resume(),
      ept("we", STACK_IST - 8, { page: true, rights: R }).resume(),
      trap(0x30, {}, { regs: { rsp: STACK_IST - 0x28 } }),
    ],
  },
  {
    name: "event.exception.frame-write",
    entry: "ud2",
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [
      ept("we", SP - 8, { page: true, rights: R }).resume(),
      trap(6, { rip: "ud2" }).do((v, t) => {
        t.put64(SP - 0x28, BigInt(t.symbol("done")));
        v.skip();
      }),
    ],
  },
  {
    name: "event.page-fault.frame-write",
    entry: "ld8",
    regs: { rsi: 0x7000000000 },
    setup: (t) => t.rights(STACK_PAGE, R),
    script: [
      ept("we", SP - 8, { page: true, rights: R }).resume(),
      trap(14, { error: 0, rip: "ld8", cr2: 0x7000000000 }).do((v, t) => {
        t.put64(SP - 0x28, BigInt(t.symbol("done")));
        v.skip();
      }),
    ],
  },
  {
    name: "event.handler-not-executable",
    entry: "int_30",
    setup: (t) => {
      gate(t, 0x30, { handler: Number(t.p(6)) });
      t.poke(t.p(6), "48cf");
      t.rights(t.p(6), RW);
    },
    script: (t) => [ept("x", t.p(6), { gva: t.p(6), rights: RW, rip: t.p(6) }).resume()],
  },
];

/** Descriptor loads through the GDT and the LDT. */
export const descriptors: Case[] = [
  {
    name: "descriptor.ds.read",
    entry: "load_ds",
    regs: { rax: SEL.userData },
    setup: (t) => t.rights(GDT, 0),
    script: [ept("r", GDT + 0x20, { page: true, rights: 0 }).resume()],
    end: { ds: SEL.userData },
  },
  {
    name: "descriptor.ds.execute-only",
    entry: "load_ds",
    regs: { rax: SEL.userData },
    needs: "exec-only",
    setup: (t) => t.rights(GDT, X),
    script: [ept("r", GDT + 0x20, { page: true, rights: X }).skip()],
    end: { ds: SEL.data },
  },
  {
    name: "descriptor.ds.accessed-write",
    entry: "load_ds",
    regs: { rax: SEL.dataFresh },
    setup: (t) => t.rights(GDT, R),
    script: [ept("w|rw", GDT + SEL.dataFresh, { page: true, rights: R }).resume()],
    memory: [[GDT + SEL.dataFresh, le(descriptor(0, 0xfffff, 0xc93), 8)]],
    end: { ds: SEL.dataFresh },
  },
  {
    name: "descriptor.ds.accessed-write-denied",
    entry: "load_ds",
    regs: { rax: SEL.dataFresh },
    setup: (t) => t.rights(GDT, R),
    script: [ept("w|rw", GDT + SEL.dataFresh, { page: true, rights: R }).scratch()],
    memory: [[GDT + SEL.dataFresh, le(descriptor(0, 0xfffff, 0xc92), 8)]],
    end: { ds: SEL.dataFresh },
  },
  {
    name: "descriptor.ds.accessed-already",
    entry: "load_ds",
    regs: { rax: SEL.userData },
    setup: (t) => t.rights(GDT, R),
    script: [],
    end: { ds: SEL.userData },
  },
  {
    name: "descriptor.ds.emulate",
    entry: "load_fs",
    regs: { rax: SEL.dataBased },
    setup: (t) => t.rights(GDT, 0),
    script: [
      ept("r", GDT + SEL.dataBased, { page: true }).do((c) =>
        c.emulate(GDT + SEL.dataBased, fromHex(le(descriptor(0x123000, 0xfff, 0x093), 8))),
      ),
    ],
    end: { fsBase: 0x123000 },
  },
  {
    name: "descriptor.absent",
    entry: "load_ds",
    regs: { rax: SEL.dataAbsent },
    script: [
      trap(11, { error: SEL.dataAbsent, rip: "load_ds" }).do((v, t) => {
        t.put64(SP - 0x28, BigInt(t.symbol("done")));
        v.skip();
      }),
    ],
  },
  {
    name: "descriptor.beyond-limit",
    entry: "load_ds",
    regs: { rax: 0x2000 },
    script: [
      trap(13, { error: 0x2000, rip: "load_ds" }).do((v, t) => {
        t.put64(SP - 0x28, BigInt(t.symbol("done")));
        v.skip();
      }),
    ],
  },
  {
    name: "descriptor.ltr.busy-write",
    entry: "ltr",
    regs: { rax: SEL.tssFree },
    setup: (t) => t.rights(GDT, R),
    script: [ept("w|rw", GDT + SEL.tssFree, { page: true, rights: R }).resume()],
    end: { tr: SEL.tssFree },
    memory: [[GDT + SEL.tssFree, le(descriptor(TSS + 0x100, 0x67, 0x8b), 8)]],
  },
  {
    name: "descriptor.lldt.read",
    entry: "lldt",
    regs: { rax: SEL.ldt },
    setup: (t) => t.rights(GDT, 0),
    script: [ept("r", GDT + SEL.ldt, { page: true, rights: 0 }).resume()],
    end: { ldtr: SEL.ldt },
  },
  {
    name: "descriptor.through-ldt",
    entry: "load_fs",
    regs: { rax: 0x0c },
    setup: (t) => {
      t.put64(LDT + 8, descriptor(0x5000, 0xff, 0x093));
      t.cpu.segment("ldtr", SEL.ldt, LDT, 0xff, 0x82);
      t.rights(LDT, 0);
    },
    script: [ept("r", LDT + 8, { page: true, rights: 0 }).resume()],
    end: { fs: 0x0c, fsBase: 0x5000 },
  },
  {
    name: "descriptor.far-jump",
    entry: "jmp_far",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(0), BigInt(t.symbol("done")));
      t.put64(t.p(0, 8), BigInt(SEL.code64));
      t.rights(t.p(0), 0);
      t.rights(GDT, 0);
    },
    script: (t) => [
      ept("r", t.p(0), { page: true, rights: 0 }).resume(),
      ept("r", GDT + SEL.code64, { page: true, rights: 0, rip: "jmp_far" }).resume(),
    ],
    end: { cs: SEL.code64 },
  },
  {
    name: "descriptor.far-call",
    entry: "call_far",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(0), BigInt(t.symbol("done")));
      t.put64(t.p(0, 8), BigInt(SEL.code64));
      t.rights(STACK_PAGE, R);
    },
    script: [ept("w", SP - 8, { page: true, rights: R }).resume()],
    end: { rsp: SP - 16 },
  },
  {
    name: "descriptor.lss",
    entry: "lss_mem",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(0), BigInt(STACK_IST - 64));
      t.put64(t.p(0, 8), BigInt(SEL.data));
      t.rights(t.p(0), 0);
    },
    script: (t) => [ept("r", t.p(0), { page: true, rights: 0 }).resume()],
    end: { ss: SEL.data, rsp: STACK_IST - 64 },
  },
  ...(["lar", "lsl"] as const).map(
    (entry): Case => ({
      name: `descriptor.${entry}.read`,
      entry,
      regs: { rax: SEL.data },
      setup: (t) => t.rights(GDT, 0),
      script: [ept("r", GDT + SEL.data, { page: true, rights: 0 }).resume()],
      end: { rbx: entry === "lar" ? 0xcf9300 : 0xffffffff },
    }),
  ),
  {
    name: "descriptor.sgdt.store",
    entry: "sgdt",
    regs: (t) => ({ rdi: t.d(0, 4) }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0, 4), { page: true, rights: R }).resume()],
    memory: (t) => [[t.p(0, 4), le(0xfff, 2) + le(GDT, 8)]],
  },
  {
    name: "descriptor.sidt.scratch",
    entry: "sidt",
    regs: (t) => ({ rdi: t.d(0, 4) }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0, 4), { page: true, rights: R }).scratch()],
    memory: (t) => [[t.p(0, 4), "00".repeat(10)]],
  },
  {
    name: "descriptor.lidt.operand",
    entry: "lidt",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0), { page: true, rights: 0 }).do((c, b) =>
        c.emulate(b.p(0), fromHex(le(0x3ff, 2) + le(0x9000, 8))),
      ),
    ],
    end: { idtBase: 0x9000, idtLimit: 0x3ff },
  },
];

export const areas: Case[] = [
  {
    name: "area.fxsave",
    entry: "fxsave",
    regs: (t) => ({ rdi: t.d(0, 0x200) }),
    setup: (t) => {
      setYmm0(t, pattern(16));
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0, 0x200), { page: true, rights: R }).resume()],
    memory: (t) => [
      [t.p(0, 0x200 + 160), pattern(16)],
      [t.p(0, 0x200 + 24), "801f"],
    ],
  },
  {
    name: "area.fxsave.scratch",
    entry: "fxsave",
    regs: (t) => ({ rdi: t.d(0, 0x200) }),
    setup: (t) => {
      setYmm0(t, pattern(16));
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0, 0x200), { page: true, rights: R }).scratch()],
    memory: (t) => [[t.p(0, 0x200), "00".repeat(512)]],
  },
  {
    name: "area.fxsave.crossing",
    entry: "fxsave",
    regs: (t) => ({ rdi: t.d(0, 0xf40) }),
    setup: (t) => {
      setYmm0(t, pattern(16));
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(0, 0xf40), { page: true, rights: R }).resume(),
      ept("w", t.p(1), { page: true, rights: R }).resume(),
    ],
    memory: (t) => [[t.p(0, 0xf40 + 160), pattern(16)]],
  },
  {
    name: "area.fxrstor",
    entry: "fxrstor",
    regs: (t) => ({ rsi: t.d(0, 0x200) }),
    setup: (t) => {
      t.put32(t.p(0, 0x200), 0x37f);
      t.put32(t.p(0, 0x200 + 24), 0x1f80);
      t.poke(t.p(0, 0x200 + 160), pattern(16));
      t.rights(t.p(0), 0);
    },
    script: (t) => [ept("r", t.p(0, 0x200), { page: true, rights: 0 }).resume()],
    check: (t) => (ymm0(t, 16) === pattern(16) ? undefined : `XMM0 is ${ymm0(t, 16)}`),
  },
  {
    name: "area.xsave",
    entry: "xsave",
    regs: (t) => ({ rdi: t.d(0, 0x200), rax: 3 }),
    setup: (t) => {
      setYmm0(t, pattern(16));
      t.rights(t.p(0), R);
    },
    // XSTATE_BV is read and written.
    script: (t) => [ept("w|rw|r", t.p(0, 0x200), { page: true, rights: R }).resume()],
    memory: (t) => [[t.p(0, 0x200 + 160), pattern(16)]],
  },
  {
    name: "area.xrstor",
    entry: "xrstor",
    regs: (t) => ({ rsi: t.d(0, 0x200), rax: 2 }),
    setup: (t) => {
      t.put32(t.p(0, 0x200 + 24), 0x1f80);
      t.poke(t.p(0, 0x200 + 160), pattern(16));
      t.put32(t.p(0, 0x200 + 512), 2);
      t.rights(t.p(0), 0);
    },
    script: (t) => [ept("r", t.p(0, 0x200), { page: true, rights: 0 }).resume()],
    check: (t) => (ymm0(t, 16) === pattern(16) ? undefined : `XMM0 is ${ymm0(t, 16)}`),
  },
  {
    name: "area.fnstenv",
    entry: "fnstenv",
    regs: (t) => ({ rdi: t.d(0, 0x40) }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0, 0x40), { page: true, rights: R }).scratch()],
    memory: (t) => [[t.p(0, 0x40), "00".repeat(28)]],
  },
  {
    name: "area.x87-store",
    entry: "fstp8",
    regs: (t) => ({ rdi: t.d(0, 0x40) }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [
      ept("w", t.p(0, 0x40), { size: 8, rights: R, rip: t.symbol("fstp8") + 2 }).resume(),
    ],
    memory: (t) => [[t.p(0, 0x40), "000000000000f03f"]],
  },
  {
    name: "area.x87-load.emulate",
    entry: "fild8",
    regs: (t) => ({ rsi: t.d(0, 8), rdi: t.d(4) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0, 8), { size: 8, rights: 0 }).do((c, b) =>
        c.emulate(b.p(0, 8), fromHex(le(0x123456789abcden, 8))),
      ),
    ],
    memory: (t) => [[t.p(4), le(0x123456789abcden, 8)]],
  },
];

/** A5: page walks that set accessed and dirty bits in a table without W. */
const PT = WALK.long![3]!;
function adCase(name: string, entry: string, rights: number, before: number, after: number): Case {
  return {
    name: `ad.${name}`,
    entry,
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(0) }),
    setup: (t) => {
      t.put32(PT, 0x200000 | before);
      t.rights(PT, rights);
    },
    script: [],
    memory: [[PT, le(0x200000 | after, 4)]],
    adWrites: true,
  };
}
export const accessedDirty: Case[] = [
  adCase("read.accessed", "ld8", R, 0x07, 0x27),
  adCase("write.accessed-dirty", "st8", R, 0x07, 0x67),
  adCase("write.dirty", "st8", R, 0x27, 0x67),
  adCase("rmw.rx", "add8", RX, 0x07, 0x67),
  {
    name: "ad.every-level",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => {
      for (const e of WALK.long!.slice(1)) {
        t.put32(e, t.get32(e) & ~0x60);
        t.rights(e, R);
      }
    },
    script: [],
    check: (t) => {
      const bits = WALK.long!.slice(1).map((e) => t.get32(e) & 0x60);
      return bits.join() === "32,32,96" ? undefined : `accessed and dirty bits are ${bits.join()}`;
    },
  },
  {
    name: "ad.walk-and-violation",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.put32(PT, 0x200007);
      t.rights(PT, R);
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0), { size: 8, rights: R }).resume()],
    memory: (t) => [
      [t.p(0), le(VALUE, 8)],
      [PT, le(0x200067, 4)],
    ],
  },
  {
    name: "ad.writable-table-counts-nothing",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => t.put32(PT, 0x200007),
    script: [],
    memory: [[PT, le(0x200067, 4)]],
    check: (t) =>
      t.vcpu().adWrites === 0 ? undefined : `counters.ad_writes is ${t.vcpu().adWrites}`,
  },
  {
    name: "ad.remapped-table",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    // In view 1 the table is a spare page whose first entry names data page 1.
    setup: (t) => {
      const view = t.vm.createView(0);
      const spare = t.vm.addSpare(1);
      t.vm.spare(spare).set(fromHex(t.peek(PT, 4096)));
      t.vm.spare(spare).set(fromHex(le(0x201007, 8)));
      t.vm.remap(view, PT >>> 12, spare);
      t.put64(t.p(1), VALUE);
      t.vcpu().view = view;
      if (toHex(t.vm.spare(spare).subarray(0, 2)) !== "0710")
        throw new Error("the spare page is not mapped");
    },
    script: [],
    end: { rax: VALUE },
    check: (t) => {
      const [spare, ram] = [t.vm.spare(0)[0]!, t.get32(PT) & 0xff];
      return spare === 0x27 && ram === 0x67
        ? undefined
        : `entries are ${spare} in the spare page and ${ram} in RAM`;
    },
  },
];
