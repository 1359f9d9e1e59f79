// SPDX-License-Identifier: MIT
/**
 * SKIP of instructions of all shapes, at EPT violations: the backend must know or find out how long
 * they are. RIP then stands at an OUT to PORT_DONE, which ends the case.
 */
import { fromHex, le } from "../bench.ts";
import { type Case, ept } from "../case.ts";
import { type Mode, PORT_DONE, WALK } from "../layout.ts";
import { R } from "./words.ts";

const DONE = `e6${PORT_DONE.toString(16)}`;

interface Shape {
  name: string;
  code: string;
  kind: string;
  /** Where in the data page, 0 when left out. */
  at?: number;
  /** It reads in several parts. */
  page?: boolean;
  needs?: Case["needs"];
}

/** RSI and RDI point at the data page. */
const LONG: Shape[] = [
  { name: "mov-disp32-imm32", code: "48 c7 87 00000000 78563412", kind: "w" },
  { name: "mov-sib-disp8-imm16", code: "66 c7 44 27 04 3412", kind: "w", at: 4 },
  { name: "mov-moffs64", code: "48 a1 0000000000 90ffff", kind: "r" },
  { name: "cmp-imm8", code: "80 3f 05", kind: "r" },
  { name: "test-imm32", code: "f7 06 00000001", kind: "r" },
  { name: "not", code: "f6 17", kind: "rw" },
  { name: "lock-cmpxchg", code: "f0 48 0f b1 0f", kind: "rw" },
  { name: "imul-imm8", code: "6b 06 05", kind: "r" },
  { name: "shld-imm8", code: "0f a4 07 03", kind: "rw" },
  { name: "bt-imm8", code: "0f ba 26 03", kind: "r" },
  { name: "movdqu", code: "f3 0f 6f 06", kind: "r" },
  { name: "pextrd", code: "66 0f 3a 16 07 02", kind: "w" },
  { name: "pshufb", code: "66 0f 38 00 06", kind: "r" },
  { name: "prefixes", code: "2e 66 4c 8b 06", kind: "r" },
  { name: "rep-movs", code: "f3 48 a5", kind: "r" },
  { name: "call", code: "ff 16", kind: "r" },
  { name: "fld", code: "dd 06", kind: "r" },
  { name: "vmovdqu", code: "c5 fe 6f 06", kind: "r", needs: "avx" },
  { name: "vextractf128-imm8", code: "c4 e3 7d 19 07 01", kind: "w", needs: "avx" },
];
const PROTECTED: Shape[] = [
  { name: "mov-imm32", code: "c7 07 78563412", kind: "w" },
  { name: "mov-imm16", code: "66 c7 07 3412", kind: "w" },
  { name: "test-imm32", code: "f7 07 00000001", kind: "r" },
  { name: "inc", code: "ff 07", kind: "rw" },
  { name: "les", code: "c4 06", kind: "r", page: true },
];
const REAL: Shape[] = [
  { name: "mov-imm16", code: "c7 05 3412", kind: "w" },
  { name: "mov-imm32", code: "66 c7 05 78563412", kind: "w" },
  { name: "mov-32-bit-address", code: "67 c6 07 55", kind: "w" },
  { name: "add-disp16", code: "83 06 00a0 01", kind: "rw" },
];

/** The data page that has the code; in real mode IP reaches no further. */
const page = (mode: Mode) => (mode === "real" ? 1 : 7);

function skip(mode: Mode, s: Shape): Case {
  const n = page(mode);
  return {
    name: `skip.${mode}.${s.name}`,
    mode,
    needs: s.needs,
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(0), rcx: 3 }),
    setup: (t) => {
      t.code(n, 0, s.code + DONE);
      t.rights(t.p(0), 0);
    },
    script: (t) => [
      // Of a read-modify-write a CPU may report the read first.
      ept(s.kind === "rw" ? "r|w|rw" : s.kind, t.p(0, s.at), {
        rights: 0,
        rip: t.d(n),
        page: s.page,
      }).skip(),
    ],
    end: (t) => ({ rip: t.d(n, fromHex(s.code).length) }),
    memory: (t) => [[t.p(0), "00".repeat(16)]],
  };
}

export const skips: Case[] = [
  ...LONG.map((s) => skip("long", s)),
  ...(["prot", "p32", "pae"] as const).flatMap((mode) => PROTECTED.map((s) => skip(mode, s))),
  ...REAL.map((s) => skip("real", s)),
  {
    name: "skip.two-pages",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => {
      t.code(7, 0xffa, `48 c7 87 00000000 78563412 ${DONE}`);
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0), { rights: R, rip: t.d(7, 0xffa) }).skip()],
    end: (t) => ({ rip: t.d(8, 5) }),
  },
  {
    // In view 1 another instruction stands there, and only that counts.
    name: "skip.remapped-code",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => {
      const view = t.vm.createView(0);
      const spare = t.vm.addSpare(1);
      t.code(7, 0, `88 07 ${DONE}`);
      t.vm.spare(spare).set(fromHex(`48 c7 07 78563412 ${DONE}`));
      t.vm.remap(view, t.gfn(7), spare);
      t.rights(t.p(0), R, view);
      t.vcpu().view = view;
    },
    script: (t) => [ept("w", t.p(0), { rights: R, view: 1, rip: t.d(7) }).skip()],
    end: (t) => ({ rip: t.d(7, 7) }),
  },
  {
    // The walk is stopped, not the store: CR2 and memory stay as they were.
    name: "skip.walk",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: 5 }),
    setup: (t) => t.rights(WALK.long![3]!, 0),
    script: (t) => [ept("rk|rwk", WALK.long![3]!, { gva: t.d(0), rights: 0 }).skip()],
    memory: (t) => [[t.p(0), le(0, 8)]],
  },
];
