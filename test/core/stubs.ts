// SPDX-License-Identifier: MIT
/** What each stub of guest/stubs.S accesses. */
import type { Registers } from "./guest.ts";
import type { Mode } from "./layout.ts";

/** Values of registers that stubs are given, but for SI and DI. CX counts, DX is a bit offset. */
export const REGISTERS = { ax: 0x77665544332211n, cx: 5, dx: 100, bx: 0x1020304050607n } as const;

export interface Access {
  readonly kind: "r" | "w" | "rw";
  readonly at: "si" | "di";
  readonly offset: number;
  readonly size: number;
  /** Elements of a string instruction; negative: downwards. */
  readonly count: number;
}

export interface Stub {
  readonly name: string;
  /** As accesses() reads it. */
  readonly what: string;
  readonly modes?: readonly Mode[];
  /** Only ring 0 may. */
  readonly ring0?: boolean;
  /** Needs AVX (and with it XSAVE). */
  readonly avx?: boolean;
  /** Addresses must be multiples of it. */
  readonly align?: number;
  readonly registers?: Registers;
  /** Word at SI: a number, or an address of the guest's code. */
  readonly source?: number | "landing";
  /** More or less than said may be accessed: what is masked, or depends on the CPU's state. */
  readonly loose?: boolean;
  /** By the delivery of an event, not by operands: a hook hears of the first access to each page. */
  readonly event?: boolean;
  /** Reads what it wrote just before, so it goes wrong when that is denied. */
  readonly readsBack?: boolean;
  /** SF, ZF and PF are undefined after it; hv/soft takes them from the host's CPU, where they vary. */
  readonly undefinedFlags?: boolean;
  /** The pages to write are zero before. */
  readonly zeroed?: boolean;
}

const LONG = ["long"] as const;
const SHORT = ["pae", "p32"] as const;

const row = (name: string, what: string, more: Omit<Stub, "name" | "what"> = {}): Stub => ({
  name,
  what,
  ...more,
});

/**
 * KIND SIZE [@si|@di] [+-OFFSET] [*COUNT]: r reads at SI, w writes and u updates at DI; W is the size
 * of a register, T that of a descriptor table's register.
 */
export const STUBS: readonly Stub[] = [
  row("mov1_st", "w1"),
  row("mov2_st", "w2"),
  row("mov4_st", "w4"),
  row("mov1i_st", "w1"),
  row("mov4i_st", "w4"),
  row("movnti4_st", "w4"),
  row("movd_st", "w4"),
  row("movq_st", "w8"),
  row("movss_st", "w4"),
  row("movsd_st", "w8"),
  row("movlps_st", "w8"),
  row("movhps_st", "w8"),
  row("movlpd_st", "w8"),
  row("movhpd_st", "w8"),
  row("movups_st", "w16"),
  row("movupd_st", "w16"),
  row("movdqu_st", "w16"),
  row("movaps_st", "w16", { align: 16 }),
  row("movapd_st", "w16", { align: 16 }),
  row("movdqa_st", "w16", { align: 16 }),
  row("movntdq_st", "w16", { align: 16 }),
  row("movntps_st", "w16", { align: 16 }),
  row("vmovups_st", "w32", { avx: true }),
  row("vmovdqu_st", "w32", { avx: true }),
  row("vmovntdq_st", "w32", { avx: true, align: 32 }),
  row("maskmovdqu", "w16", { loose: true }),
  row("setz", "w1"),
  row("setnb", "w1"),
  row("fst4", "w4"),
  row("fst8", "w8"),
  row("fst10", "w10"),
  row("fist4", "w4"),
  row("fnstcw", "w2"),
  row("fnstsw", "w2"),
  row("stmxcsr", "w4"),
  row("fxsave", "w512", { align: 16, loose: true }),
  row("xsave", "w512", { align: 64, avx: true, loose: true, registers: { ax: 7, dx: 0 } }),
  row("sidt", "wT"),
  row("sgdt", "wT"),
  row("sldt", "w2"),
  row("str", "w2"),
  row("smsw", "w2"),

  row("stosb", "w1"),
  row("stosw", "w2"),
  row("stosl", "w4"),
  row("rep_stosb", "w1*5"),
  row("rep_stosl", "w4*5"),
  row("rep_stosl_down", "w4*-5"),
  row("movsb", "r1 w1"),
  row("movsw", "r2 w2"),
  row("movsl", "r4 w4"),
  row("rep_movsb", "r1*5 w1*5"),
  row("rep_movsl", "r4*5 w4*5"),
  row("rep_movsb_down", "r1*-5 w1*-5"),
  row("lodsb", "r1"),
  row("lodsl", "r4"),
  row("rep_lodsw", "r2*5"),
  row("scasb", "r1@di"),
  row("repne_scasl", "r4@di*5"),
  row("cmpsb", "r1 r1@di"),
  row("repe_cmpsl", "r4 r4@di"),

  row("add1", "u1"),
  row("add2", "u2"),
  row("add4", "u4"),
  row("add4i", "u4"),
  row("adc4", "u4"),
  row("sub2", "u2"),
  row("sbb4", "u4"),
  row("and1", "u1"),
  row("and4", "u4"),
  row("or4", "u4"),
  row("xor4", "u4"),
  row("inc4", "u4"),
  row("dec1", "u1"),
  row("not4", "u4"),
  row("neg2", "u2"),
  row("shl4", "u4"),
  row("shr1", "u1"),
  row("sar4", "u4"),
  row("rol4", "u4"),
  row("ror2", "u2"),
  row("rcl4", "u4"),
  row("rcr4", "u4"),
  row("shld4", "u4"),
  row("shrd4", "u4"),
  row("bts4i", "u4"),
  row("btr4i", "u4"),
  row("btc4i", "u4"),
  row("bts4_near", "u4"),
  row("btr4_far", "u4+12"),
  row("btc4_far", "u4-4", { registers: { dx: -20 } }),
  row("xchg1", "u1"),
  row("xchg4", "u4"),
  row("xadd4", "u4"),
  row("cmpxchg4_equal", "u4"),
  row("cmpxchg4_other", "u4"),
  row("cmpxchg8b", "u8"),
  row("lock_add4", "u4"),
  row("lock_or1", "u1"),
  row("lock_inc4", "u4"),
  row("lock_btr4", "u4"),
  row("lock_xadd4", "u4"),
  row("lock_cmpxchg4", "u4"),
  row("lock_cmpxchg8b", "u8"),

  row("mov1_ld", "r1"),
  row("mov2_ld", "r2"),
  row("mov4_ld", "r4"),
  row("movzx1_ld", "r1"),
  row("movzx2_ld", "r2"),
  row("movsx1_ld", "r1"),
  row("movsx2_ld", "r2"),
  row("movq_ld", "r8"),
  row("movhps_ld", "r8"),
  row("movups_ld", "r16"),
  row("movaps_ld", "r16", { align: 16 }),
  row("vmovups_ld", "r32", { avx: true }),
  row("addps_ld", "r16", { align: 16 }),
  row("cvtsi2sd_ld", "r4"),
  row("cvtps2pd_ld", "r8"),
  row("cmp4_ld", "r4"),
  row("test4_ld", "r4"),
  row("add4_ld", "r4"),
  row("imul4_ld", "r4", { undefinedFlags: true }),
  row("mul4_ld", "r4", { undefinedFlags: true }),
  row("div4_ld", "r4", { undefinedFlags: true }),
  row("bt4_ld", "r4"),
  row("bt4_far", "r4+12"),
  row("fld4_ld", "r4"),
  row("fild8_ld", "r8"),
  row("xlat_ld", "r1+17"),
  row("fxrstor", "u512", { align: 16, loose: true, readsBack: true }),
  row("xrstor", "u512", {
    align: 64,
    avx: true,
    loose: true,
    readsBack: true,
    zeroed: true,
    registers: { ax: 7, dx: 0 },
  }),

  row("push_st", "wW-W"),
  row("push_i", "wW-W"),
  row("push_m", "rW wW-W"),
  row("push2", "w2-2"),
  row("pushf_st", "wW-W"),
  row("call_st", "wW-W"),
  row("enter_st", "wW-W", { loose: true }),
  row("pop_ld", "rW"),
  row("pop_m", "rW wW"),
  row("popf_ld", "rW", { source: 0x46 }),
  row("leave_ld", "rW"),
  row("ret_ld", "rW", { source: "landing" }),
  row("call_m", "rW wW-W", { source: "landing" }),
  row("jmp_m", "rW", { source: "landing" }),
  // 5 slots, of 8 bytes from a multiple of 16 downwards, in long mode; 3 of 4 bytes otherwise.
  row("int_st", "w8-8*-5", { modes: LONG, ring0: true, event: true, align: 16 }),
  row("int_st", "w4-4*-3", { modes: SHORT, ring0: true, event: true }),

  row("mov8_st", "w8", { modes: LONG }),
  row("mov8i_st", "w8", { modes: LONG }),
  row("movnti8_st", "w8", { modes: LONG }),
  row("fxsave64", "w512", { modes: LONG, align: 16, loose: true }),
  row("xsave64", "w512", {
    modes: LONG,
    align: 64,
    avx: true,
    loose: true,
    registers: { ax: 7, dx: 0 },
  }),
  row("stosq", "w8", { modes: LONG }),
  row("rep_stosq", "w8*5", { modes: LONG }),
  row("movsq", "r8 w8", { modes: LONG }),
  row("rep_movsq", "r8*5 w8*5", { modes: LONG }),
  row("add8", "u8", { modes: LONG }),
  row("xor8", "u8", { modes: LONG }),
  row("inc8", "u8", { modes: LONG }),
  row("neg8", "u8", { modes: LONG }),
  row("shl8", "u8", { modes: LONG }),
  row("shld8", "u8", { modes: LONG }),
  row("bts8_far", "u8+8", { modes: LONG }),
  row("xchg8", "u8", { modes: LONG }),
  row("xadd8", "u8", { modes: LONG }),
  row("cmpxchg8", "u8", { modes: LONG }),
  row("cmpxchg16b", "u16", { modes: LONG, align: 16 }),
  row("lock_cmpxchg16b", "u16", { modes: LONG, align: 16 }),
  row("mov8_ld", "r8", { modes: LONG }),
  row("movsxd_ld", "r4", { modes: LONG }),
  row("cmp8_ld", "r8", { modes: LONG }),
  row("imul8_ld", "r8", { modes: LONG, undefinedFlags: true }),
  row("movs_indexed", "r4+20", { modes: LONG }),
  row("mov_gs", "r4", { modes: LONG }),
  row("pusha_st", "wW-W*-8", { modes: SHORT }),
];

/** Stubs that are no access of their own to memory: system registers, jumps, exceptions. */
export const OTHERS = [
  "user_return",
  "lidt",
  "lgdt",
  "wrmsr",
  "rdmsr",
  "set_cr0",
  "get_cr0",
  "set_cr3",
  "get_cr3",
  "set_cr4",
  "get_cr4",
  "cr0_clts",
  "lmsw_clts",
  "xsetbv",
  "xgetbv",
  "nothing",
  "undefined",
  "breakpoint",
  "divide",
  "call_ax",
  "store_loop",
  "workload",
] as const;

/** The accesses of a stub, for a register size. */
export function accesses(stub: Stub, word: number): Access[] {
  const bytes = (s: string): number => (s === "W" ? word : s === "T" ? word + 2 : Number(s));
  return stub.what.split(" ").map((text) => {
    const m = /^([rwu])(\d+|W|T)(?:@(si|di))?(?:([+-])(\d+|W))?(?:\*(-?\d+))?$/.exec(text);
    if (!m) throw new Error(`${stub.name}: ${text}`);
    const [, kind, size, at, sign, offset, count] = m;
    return {
      kind: kind === "u" ? "rw" : (kind as "r" | "w"),
      at: (at as "si" | "di" | undefined) ?? (kind === "r" ? "si" : "di"),
      offset: offset === undefined ? 0 : bytes(offset) * (sign === "-" ? -1 : 1),
      size: bytes(size ?? ""),
      count: count === undefined ? 1 : Number(count),
    };
  });
}
