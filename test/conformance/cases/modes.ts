// SPDX-License-Identifier: MIT
/** The same interface under 32-bit paging, PAE, no paging, real mode and compatibility mode. */
import * as abi from "../../../src/bridge/abi.ts";
import { fromHex, le, pattern } from "../bench.ts";
import { type Case, ept, event, exit, trap } from "../case.ts";
import { GDT, IDT, LARGE, type Mode, SEL, STACK, WALK } from "../layout.ts";
import { R, RW, VALUE } from "./words.ts";

const SP = STACK - 0x100;
const PROTECTED: Mode[] = ["prot", "p32", "pae"];

const common: Case[] = PROTECTED.flatMap((mode): Case[] => [
  {
    name: `mode.${mode}.done`,
    mode,
    script: [],
  },
  ...([1, 2, 4, 16] as const).map(
    (size): Case => ({
      name: `mode.${mode}.store.${size}.scratch`,
      mode,
      entry: `st${size}`,
      regs: (t) => ({ rdi: t.d(0, 0x10), rax: 0x44332211 }),
      setup: (t) => t.rights(t.p(0), R),
      script: (t) => [ept("w", t.p(0, 0x10), { size, rights: R }).scratch()],
      memory: (t) => [[t.p(0, 0x10), "00".repeat(16)]],
    }),
  ),
  {
    name: `mode.${mode}.store.crossing`,
    mode,
    entry: "st4",
    regs: (t) => ({ rdi: t.d(0, 0xffe), rax: 0x44332211 }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
    },
    script: (t) => [ept("w", t.p(0, 0xffe)).resume(), ept("w", t.p(1)).scratch()],
    memory: (t) => [[t.p(0, 0xffe), "11220000"]],
  },
  {
    name: `mode.${mode}.load.emulate`,
    mode,
    entry: "ld4",
    regs: (t) => ({ rsi: t.d(0, 4) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0, 4), { size: 4 }).do((c, b) => c.emulate(b.p(0, 4), fromHex("78563412"))),
    ],
    end: { rax: 0x12345678 },
  },
  {
    name: `mode.${mode}.rmw`,
    mode,
    entry: "add4",
    regs: (t) => ({ rdi: t.d(0), rax: 1 }),
    setup: (t) => {
      t.put32(t.p(0), 0xffffffff);
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("rw", t.p(0), { size: 4 }).resume()],
    end: { flags: 0x45 },
    memory: (t) => [[t.p(0), "00000000"]],
  },
  {
    name: `mode.${mode}.rep_movsl`,
    mode,
    entry: "rep_movsl",
    regs: (t) => ({ rsi: t.d(4), rdi: t.d(0, 0xff8), rcx: 4 }),
    setup: (t) => {
      t.poke(t.p(4), pattern(16));
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(1), { size: 4, regs: { rcx: 2 } }).resume(),
      ept("w", t.p(1, 4), { regs: { rcx: 1 } }).resume(),
    ],
    memory: (t) => [[t.p(0, 0xff8), pattern(16)]],
  },
  {
    name: `mode.${mode}.fetch`,
    mode,
    setup: (t) => {
      t.code(3, 0, "90 e6ee");
      t.rights(t.p(3), RW);
    },
    script: (t) => [
      ept("x", t.p(3), { rip: t.d(3) }).resume(),
      ept("x", t.p(3, 1), { rip: t.d(3, 1) }).resume(),
    ],
  },
  {
    name: `mode.${mode}.push`,
    mode,
    entry: "push_eax",
    regs: { rax: 0x1234 },
    setup: (t) => t.rights(STACK - 0x1000, R),
    script: [ept("w", SP - 4, { size: 4 }).resume()],
    end: { rsp: SP - 4 },
  },
  {
    name: `mode.${mode}.pusha`,
    mode,
    entry: "pusha",
    regs: { rax: 0x1234 },
    setup: (t) => t.rights(STACK - 0x1000, R),
    script: [ept("w", SP - 4, { page: true }).resume()],
    end: { rsp: SP - 32 },
    memory: [
      [SP - 4, le(0x1234, 4)],
      [SP - 20, le(SP, 4)],
    ],
  },
  {
    name: `mode.${mode}.int`,
    mode,
    entry: "int_30",
    setup: (t) => {
      t.rights(STACK - 0x1000, R);
      t.rights(IDT, 0);
    },
    script: [
      ept("re", IDT + 8 * 0x30, { page: true, rights: 0 }).resume(),
      ept("we", SP - 4, { page: true, rights: R }).resume(),
      trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 })),
    ],
    end: { rsp: SP },
  },
  {
    name: `mode.${mode}.segment-load`,
    mode,
    entry: "load_es",
    regs: { rax: SEL.dataBased },
    setup: (t) => t.rights(GDT, 0),
    script: [ept("r", GDT + SEL.dataBased, { page: true, rights: 0 }).resume()],
    end: { es: SEL.dataBased },
  },
  {
    name: `mode.${mode}.segment-base`,
    mode,
    entry: "ld4_fs",
    // FS.base is the window's start: the GVA reported is linear.
    regs: { rsi: 0x20 },
    setup: (t) => {
      t.cpu.segment("fs", SEL.dataBased, t.d(0), 0xfff, 0x93);
      t.put32(t.p(0, 0x20), 0x5555);
      t.rights(t.p(0), 0);
    },
    script: (t) => [ept("r", t.p(0, 0x20), { size: 4 }).resume()],
    end: { rax: 0x5555 },
  },
  {
    name: `mode.${mode}.segment-limit-first`,
    mode,
    entry: "ld4_fs",
    regs: { rsi: 0xffd },
    setup: (t) => {
      t.cpu.segment("fs", SEL.dataBased, t.d(0), 0xfff, 0x93);
      t.rights(t.p(0), 0);
    },
    script: [trap(13, { error: 0, rip: "ld4_fs" })],
    done: false,
  },
  {
    name: `mode.${mode}.inject.gp`,
    mode,
    setup: (t) => event(t.vcpu(), { type: abi.HVI_EVENT_EXCEPTION, vector: 13, error: 0x18 }),
    script: [trap(13, { error: 0x18, rip: "nothing" })],
  },
  {
    name: `mode.${mode}.inject.external`,
    mode,
    regs: { rflags: 0x202 },
    setup: (t) => event(t.vcpu(), { type: abi.HVI_EVENT_EXTERNAL, vector: 0x30, notify: true }),
    script: [
      exit(abi.HVI_EXIT_INJECTED, { eventStatus: abi.HVI_EVENT_DELIVERED }).resume(),
      trap(0x30, { rip: "nothing" }),
    ],
    end: { rflags: 0x202 },
  },
  {
    name: `mode.${mode}.exception.int3`,
    mode,
    entry: "int3",
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_EXCEPTION, 0, 8),
    script: [exit(abi.HVI_EXIT_EXCEPTION, { number: 3, rip: "int3", insnLen: 1 }).skip()],
  },
  {
    name: `mode.${mode}.exception.aam0`,
    mode,
    entry: "aam0",
    script: [trap(0, { rip: "aam0" })],
    done: false,
  },
  {
    name: `mode.${mode}.out`,
    mode,
    entry: "out1",
    regs: { rdx: 0x3f8, rax: 0x41 },
    script: [exit(abi.HVI_EXIT_IO, { number: 0x3f8, size: 1, value: 0x41, insnLen: 1 }).skip()],
  },
  {
    name: `mode.${mode}.vmcall`,
    mode,
    entry: "vmcall",
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_VMCALL, 0, 1),
    script: [exit(abi.HVI_EXIT_VMCALL, { insnLen: 3 }).skip()],
  },
]);

const paged: Case[] = (["p32", "pae"] as const).flatMap((mode): Case[] => [
  ...WALK[mode]!.slice(mode === "pae" ? 1 : 0).map(
    (entry, i): Case => ({
      name: `mode.${mode}.walk.${i}`,
      mode,
      entry: "ld4",
      regs: (t) => ({ rsi: t.d(0) }),
      setup: (t) => t.rights(entry, 0),
      script: (t) =>
        // The top table of 4-byte paging maps the code as well: its fetch comes first.
        mode === "p32" && i === 0
          ? [
              ept("rk|rwk", 0x10000, { gva: t.symbol("ld4") }).resume(),
              ept("rk|rwk", 0x10000, {
                gva: t.symbol("ld4") + 2,
                rip: t.symbol("ld4") + 2,
              }).resume(),
            ]
          : [ept("rk|rwk", entry, { gva: t.d(0) }).resume()],
    }),
  ),
  {
    name: `mode.${mode}.ad`,
    mode,
    entry: "st4",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => {
      const pte = WALK[mode]!.at(-1)!;
      t.put32(pte, t.get32(pte) & ~0x60);
      t.rights(pte, R);
    },
    script: [],
    check: (t) => ((t.get32(WALK[mode]!.at(-1)!) & 0x60) === 0x60 ? undefined : "A/D bits"),
    adWrites: true,
  },
  {
    name: `mode.${mode}.large-page`,
    mode,
    entry: "st4",
    regs: { rdi: mode === "p32" ? 0x80400000 + 0x3123 : 0x80200000 + 0x3123, rax: 0x44332211 },
    setup: (t) => t.rights(LARGE + 0x3000, R),
    script: (t) => [ept("w", LARGE + 0x3123, { gva: t.reg("rdi"), size: 4 }).resume()],
    memory: [[LARGE + 0x3123, "11223344"]],
  },
  {
    name: `mode.${mode}.page-fault`,
    mode,
    entry: "st4",
    regs: { rdi: 0x90000000 },
    script: [trap(14, { error: 2, rip: "st4", cr2: 0x90000000 })],
    done: false,
  },
]);

const pae: Case[] = [
  {
    name: "mode.pae.no-execute",
    mode: "pae",
    setup: (t) => {
      t.code(3, 0, "90 e6ee");
      t.put64(WALK.pae![2]! + 8 * 3, BigInt(t.p(3)) | 0x67n | (1n << 63n));
    },
    script: (t) => [trap(14, { error: 0x11, rip: t.d(3), cr2: t.d(3) })],
    done: false,
  },
];

const real: Case[] = [
  { name: "mode.real.done", mode: "real", script: [] },
  ...([1, 2, 4] as const).map(
    (size): Case => ({
      name: `mode.real.store.${size}`,
      mode: "real",
      entry: `st${size}`,
      regs: { rdi: 0xa010, rax: 0x44332211 },
      setup: (t) => t.rights(0xa000, R),
      script: [ept("w", 0xa010, { size, rights: R }).resume()],
      memory: [[0xa010, `${"11223344".slice(0, 2 * size)}00`]],
    }),
  ),
  {
    name: "mode.real.load.emulate",
    mode: "real",
    entry: "ld4",
    regs: { rsi: 0xa000 },
    setup: (t) => t.rights(0xa000, 0),
    script: [ept("r", 0xa000, { size: 4 }).do((c) => c.emulate(0xa000, fromHex("01020304")))],
    end: { rax: 0x04030201 },
  },
  {
    name: "mode.real.segment-base",
    mode: "real",
    entry: "load_es",
    regs: { rax: 0xb00, rbx: 0x5566, rdi: 8 },
    setup: (t) => t.rights(0xb000, R),
    script: (t) => [ept("w", 0xb008, { size: 2, rip: t.symbol("load_es") + 2 }).resume()],
    end: { es: 0xb00 },
    memory: [[0xb008, "6655"]],
  },
  {
    name: "mode.real.push",
    mode: "real",
    entry: "push_ax",
    regs: { rax: 0x1234 },
    setup: (t) => t.rights(0x6000, R),
    script: [ept("w", 0x6ffe, { size: 2 }).scratch()],
    end: { rsp: 0x6ffe },
    memory: [[0x6ffe, "0000"]],
  },
  {
    name: "mode.real.int",
    mode: "real",
    entry: "int_30",
    setup: (t) => t.rights(0x6000, R),
    script: [
      ept("we", 0x6ffe, { page: true, rights: R }).resume(),
      trap(0x30, (t) => ({ rip: t.symbol("int_30") + 2 })),
    ],
  },
  {
    name: "mode.real.ivt-read",
    mode: "real",
    entry: "int3",
    setup: (t) => t.rights(0, 0),
    script: [
      ept("re", 12, { page: true, rights: 0 }).resume(),
      trap(3, (t) => ({ rip: t.symbol("int3") + 1 })),
    ],
  },
  {
    name: "mode.real.divide",
    mode: "real",
    entry: "div0",
    script: [trap(0, { rip: "div0" })],
    done: false,
  },
  {
    name: "mode.real.rep_stosw",
    mode: "real",
    entry: "rep_stosw",
    regs: { rdi: 0xaffc, rcx: 4, rax: 0x7788 },
    setup: (t) => t.rights(0xb000, R),
    script: [
      ept("w", 0xb000, { size: 2, regs: { rcx: 2 } }).resume(),
      ept("w", 0xb002, { size: 2, regs: { rcx: 1 } }).resume(),
    ],
    end: { rcx: 0, rdi: 0xb004 },
  },
  {
    name: "mode.real.far-call",
    mode: "real",
    entry: "call_far",
    regs: { rsi: 0xa000 },
    setup: (t) => {
      t.put32(0xa000, 0x0b000000);
      t.poke(0xb000, "cb");
      t.rights(0x6000, R);
    },
    script: [ept("w", 0x6ffe, { page: true }).resume()],
    end: { rsp: 0x7000, cs: 0 },
  },
  {
    name: "mode.real.out",
    mode: "real",
    entry: "out2",
    regs: { rdx: 0x80 + 0x100, rax: 0x1234 },
    script: [exit(abi.HVI_EXIT_IO, { number: 0x180, size: 2, value: 0x1234, insnLen: 1 }).skip()],
  },
  {
    name: "mode.real.inject",
    mode: "real",
    regs: { rflags: 0x202 },
    setup: (t) => event(t.vcpu(), { type: abi.HVI_EVENT_EXTERNAL, vector: 0x20 }),
    script: [trap(0x20, { rip: "nothing" })],
    end: { rflags: 0x202 },
  },
  {
    name: "mode.real.to-protected",
    mode: "real",
    entry: "to_prot",
    regs: { rax: 0x11 },
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_CR0_WRITE, 0, 1),
    script: [exit(abi.HVI_EXIT_CR_WRITE, { number: 0, value: 0x11, old: 0x10 }).resume()],
    end: { rbx: 0x12345678, cs: 8, cr0: 0x11 },
  },
];

const compat: Case[] = [
  {
    name: "mode.compat.store",
    mode: "user",
    // 32-bit code of the user in long mode: MOV [EDI], EAX; OUT.
    regs: { rdi: 0x206000, rax: VALUE },
    setup: (t) => {
      t.poke(0x207000, "8907 e6ee");
      t.cpu.segment("cs", SEL.userCode32, 0, 0xffffffff, 0xc0fb);
      t.cpu.set("rip", 0x207000);
      t.rights(0x206000, R);
    },
    script: [ept("wu", 0x206000, { gva: 0x206000, size: 4, rights: R, rip: 0x207000 }).resume()],
    memory: [[0x206000, "1122334400000000"]],
  },
  {
    name: "mode.compat.segment-limit",
    mode: "user",
    regs: { rdi: 0x206000 },
    setup: (t) => {
      t.poke(0x207000, "8907 e6ee");
      t.cpu.segment("cs", SEL.userCode32, 0, 0xffffffff, 0xc0fb);
      t.cpu.segment("ds", SEL.userData, 0, 0x1fffff, 0xc0f3);
      t.cpu.set("rip", 0x207000);
    },
    script: [trap(13, { error: 0, rip: 0x207000 })],
    done: false,
  },
  {
    name: "mode.compat.int-to-long",
    mode: "user",
    regs: {},
    setup: (t) => {
      t.poke(0x207000, "cd30 e6ee");
      t.cpu.segment("cs", SEL.userCode32, 0, 0xffffffff, 0xc0fb);
      t.cpu.set("rip", 0x207000);
    },
    script: [trap(0x30, { rip: 0x207002 }, { regs: { cs: SEL.code64 } })],
    end: { cs: SEL.userCode32 },
  },
];

const translation: Case[] = [
  {
    name: "mode.long.no-execute",
    setup: (t) => {
      t.code(3, 0, "90 e6ee");
      t.put64(WALK.long![3]! + 8 * 3, BigInt(t.p(3)) | 0x67n | (1n << 63n));
      t.rights(t.p(3), 0);
    },
    script: (t) => [trap(14, { error: 0x11, rip: t.d(3), cr2: t.d(3) })],
    done: false,
  },
  {
    name: "mode.long.write-protect-off",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: 5, cr0: 0x80000033 }),
    setup: (t) => {
      t.put64(WALK.long![3]!, BigInt(t.p(0)) | 0x65n);
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0), { size: 8 }).resume()],
    memory: (t) => [[t.p(0), le(5, 8)]],
  },
  {
    name: "mode.user.supervisor-page",
    mode: "user",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.put64(WALK.user![3]!, BigInt(t.p(0)) | 0x63n),
    script: (t) => [trap(14, { error: 5, rip: "ld8", cr2: t.d(0) })],
    done: false,
  },
  {
    name: "mode.long.reserved-bit",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.put64(WALK.long![3]!, BigInt(t.p(0)) | 0x67n | (1n << 51n)),
    script: (t) => [trap(14, { error: 9, rip: "ld8", cr2: t.d(0) })],
    done: false,
  },
  {
    name: "mode.long.non-canonical",
    entry: "ld8",
    regs: { rsi: 0x0000900000000000n },
    script: [trap(13, { error: 0, rip: "ld8" })],
    done: false,
  },
  {
    name: "mode.long.alias",
    entry: "st8",
    // Two linear addresses of one page: the hook is on the physical one.
    regs: (t) => ({ rdi: t.p(0, 8), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0, 8), { gva: t.p(0, 8), size: 8 }).resume()],
    memory: (t) => [[t.p(0, 8), le(VALUE, 8)]],
  },
  {
    name: "mode.long.invlpg",
    entry: "invlpg",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: [],
  },
  {
    name: "mode.long.table-in-no-ram",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.put64(WALK.long![2]!, 0xfec00027n),
    script: (t) => [
      ept("rkn|rwkn", 0xfec00000, { gva: t.d(0), rights: 0 }).do((v) => {
        v.rip += 3;
        v.retry();
      }),
    ],
  },
];

export const modes: Case[] = [...common, ...paged, ...pae, ...real, ...compat, ...translation];
