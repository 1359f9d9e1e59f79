// SPDX-License-Identifier: MIT
/** Corners of the architecture that an exit or a fault in the middle makes hard: debug traps, RF, tables beyond 4 GiB. */
import * as abi from "../../../src/bridge/abi.ts";
import { fromHex, le } from "../bench.ts";
import { type Case, ept, event, exit, trap } from "../case.ts";
import { SEL, TABLES, TSS, WALK } from "../layout.ts";
import { R, VALUE } from "./words.ts";

const CR0 = 0x80010033;
/** DR7: breakpoint 0 on, reads and writes of one byte; on instructions. */
const DATA_BYTE = 0x30401;
const INSTRUCTION = 0x401;
const PTE = WALK.long![3]!;

export const architecture: Case[] = [
  {
    // The engine's value still differs in an intercepted bit: no second exit.
    name: "arch.cr0.another-changed-value",
    entry: "mov_cr0",
    regs: { rax: (CR0 | 8) >>> 0 },
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_CR0_WRITE, 0, 0xa),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, { number: 0, value: (CR0 | 8) >>> 0, old: CR0 })
        .do((v) => v.setExitValue((CR0 & ~2) >>> 0, 0))
        .resume(),
    ],
    end: { cr0: (CR0 & ~2) >>> 0 },
  },
  {
    name: "arch.cr4.another-changed-value",
    entry: "mov_cr4",
    regs: { rax: 0x40624 },
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_CR4_WRITE, 0, 0xc),
    script: [
      exit(abi.HVI_EXIT_CR_WRITE, { number: 4, value: 0x40624 })
        .do((v) => v.setExitValue(0x40628, 0))
        .resume(),
    ],
    end: { cr4: 0x40628 },
  },
  {
    // The read hits a breakpoint, the write of the same instruction leaves: one trap, after it.
    name: "arch.debug.breakpoint-before-exit",
    entry: "st8",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(1), dr0: t.d(0), dr7: DATA_BYTE }),
    setup: (t) => {
      t.code(3, 0, "a4 e6ee"); // movsb
      t.rights(t.p(1), R);
    },
    script: (t) => [
      ept("w", t.p(1), { rip: t.d(3) }).resume(),
      trap(1, { rip: t.d(3, 1) }, { regs: { dr6: 0xffff0ff1 } }),
    ],
  },
  {
    name: "arch.debug.breakpoint-before-fault",
    entry: "st8",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(1), dr0: t.d(0), dr7: DATA_BYTE }),
    setup: (t) => {
      t.code(3, 0, "a4 e6ee");
      t.put64(PTE + 8, 0n);
    },
    script: (t) => [
      trap(14, { rip: t.d(3), error: 2 }, { regs: { dr6: 0xffff0ff0 } }).do((_, b) =>
        b.put64(PTE + 8, BigInt(b.p(1)) | 0x67n),
      ),
      trap(1, { rip: t.d(3, 1) }, { regs: { dr6: 0xffff0ff1 } }),
    ],
  },
  {
    // RF holds for every iteration: the breakpoint that the handler returned to does not hit again.
    name: "arch.debug.rf-of-repeated",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rcx: 5, rax: 0x7777, dr0: t.d(3), dr7: INSTRUCTION }),
    setup: (t) => t.code(3, 0, "f3aa e6ee"),
    script: (t) => [
      trap(1, { rip: t.d(3) }).do((_, b) => {
        const rflags = Number(b.cpu.get("rsp")) + 16;
        b.put32(rflags, b.get32(rflags) | 0x10000);
      }),
    ],
    memory: (t) => [[t.p(0), "777777777700"]],
  },
  {
    name: "arch.debug.injected-keeps-dr6",
    entry: "nops",
    regs: { dr6: 0xffff4ff1 },
    setup: (t) => event(t.vm.vcpus[0]!, { type: abi.HVI_EVENT_EXCEPTION, vector: 1 }),
    script: [trap(1, { rip: "nops" }, { regs: { dr6: 0xffff4ff1 } })],
  },
  {
    // A walk's A bit goes to the real entry, not to one with the supplied bytes.
    name: "arch.walk.accessed-of-emulated-entry",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(1), VALUE);
      t.put64(PTE, BigInt(t.p(0)) | 0x03n);
      t.rights(TABLES + 0x7000, 0);
    },
    script: (t) => [
      ept("rk", PTE, { gva: t.d(0) }).do((v) =>
        v.emulate(PTE, fromHex(le(BigInt(t.p(1)) | 0x03n, 8))),
      ),
    ],
    end: { rax: VALUE },
    memory: (t) => [[PTE, le(BigInt(t.p(0)) | 0x23n, 8)]],
  },
  {
    // The frame of an event that interrupts 32-bit code stands above 4 GiB and on two pages.
    name: "arch.compat.frame-across-pages",
    mode: "user",
    setup: (t) => {
      t.poke(0x207000, "cd30 e6ee");
      t.cpu.segment("cs", SEL.userCode32, 0, 0xffffffff, 0xc0fb);
      t.cpu.set("rip", 0x207000);
      t.put64(TSS + 4, BigInt(t.d(1, 0x10)));
    },
    script: (t) => [
      trap(0x30, { rip: 0x207002 }, { regs: { cs: SEL.code64, rsp: BigInt(t.d(1, 0x10)) - 40n } }),
    ],
    memory: (t) => [
      [t.p(0, 0xfe8), le(0x207002, 8)],
      [t.p(1, 8), le(SEL.userData, 8)],
    ],
  },
  {
    // CR3 without bit 63 drops what its own PCID has, also when it comes back to it.
    name: "arch.pcid.flush",
    entry: "nops",
    regs: (t) => ({
      rax: TABLES | 5,
      rbx: BigInt(t.p(1)) | 0x67n,
      rsi: t.d(0),
      rdi: PTE,
      r8: BigInt(TABLES) | (1n << 63n),
      cr4: 0x60620,
    }),
    setup: (t) => {
      t.put64(t.p(0), 1n);
      t.put64(t.p(1), 2n);
      // PCID 5: load. PCID 0 kept: change the entry. PCID 5 flushed: load.
      t.code(3, 0, "0f22d8 488b0e 410f22d8 48891f 0f22d8 488b16 e6ee");
    },
    script: [],
    end: { rcx: 1, rdx: 2, cr3: TABLES | 5 },
  },
];
