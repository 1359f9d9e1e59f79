// SPDX-License-Identifier: MIT
/**
 * The value that an instruction writes to memory, worked out from the state
 * before it. Values are byte arrays, little-endian: every operand size is the
 * same code and nothing is rounded.
 */
import type { Vcpu } from "../bridge/vcpu.ts";
import type { VirtualMemory } from "../memory/virtual.ts";
import {
  type Instruction,
  OPERAND_IMMEDIATE,
  OPERAND_REGISTER,
  type Operand,
  TRAIT_FAR,
} from "./instruction.ts";
import { linearAddress, writtenOperand } from "./operand.ts";
import { RFLAGS_CF, registerBytes, registerInfo } from "./registers.ts";
import { readMmx, readVector } from "./sse.ts";

/** What the computation may look at. */
export interface WriteContext {
  readonly vcpu: Vcpu;
  /** Memory as the instruction sees it. */
  readonly memory: VirtualMemory;
  /** The XSAVE area; asked only for vector stores. */
  readonly xsave: () => Uint8Array;
}

export type Written =
  | {
      readonly ok: true;
      /** First address written, signed. */
      readonly gva: number;
      /** The bytes that will stand there. */
      readonly bytes: Uint8Array;
      /** The bytes that stand there now. */
      readonly old: Uint8Array;
    }
  | { readonly ok: false; readonly reason: string };

/** Fills `out` with the value; `out` holds the old value on entry. False: cannot be read. */
type Rule = (c: WriteContext, insn: Instruction, out: Uint8Array, rip: number) => boolean;

/** Puts an operand's value, sign-extended for immediates, into `out`. */
function load(
  c: WriteContext,
  insn: Instruction,
  operand: Operand | undefined,
  out: Uint8Array,
  rip: number,
): boolean {
  if (operand === undefined) return false;
  if (operand.isMemory) return c.memory.readInto(linearAddress(c.vcpu, insn, operand, rip), out);
  if (operand.type === OPERAND_IMMEDIATE) {
    for (let i = 0; i < out.length; i++) {
      out[i] = i < 4 ? operand.lo >>> (8 * i) : operand.hi >>> (8 * (Math.min(i, 7) - 4));
    }
    return true;
  }
  if (operand.type !== OPERAND_REGISTER) return false;
  const info = registerInfo(operand.register);
  switch (info.kind) {
    case "gpr":
      out.fill(0);
      return registerBytes(c.vcpu, info, out);
    case "segment": {
      const selector = c.vcpu.segSelector(info.index);
      out.fill(0);
      out[0] = selector;
      if (out.length > 1) out[1] = selector >>> 8;
      return true;
    }
    case "xmm":
    case "ymm":
      return readVector(c.xsave(), info.index, out);
    case "mmx":
      return readMmx(c.xsave(), info.index, out);
    default:
      return false;
  }
}

function addInto(out: Uint8Array, other: Uint8Array, carryIn: number): void {
  let carry = carryIn;
  for (let i = 0; i < out.length; i++) {
    const sum = out[i] + other[i] + carry;
    out[i] = sum;
    carry = sum >>> 8;
  }
}
function subtractInto(out: Uint8Array, other: Uint8Array, borrowIn: number): void {
  let borrow = borrowIn;
  for (let i = 0; i < out.length; i++) {
    const difference = out[i] - other[i] - borrow;
    out[i] = difference;
    borrow = difference < 0 ? 1 : 0;
  }
}
function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.every((x, i) => x === b[i]);
}
function bit(bytes: Uint8Array, i: number): number {
  return (bytes[i >>> 3] >>> (i & 7)) & 1;
}
/** Sets every bit i of out to source(i). */
function setBits(out: Uint8Array, source: (i: number) => number): void {
  for (let i = 0; i < out.length; i++) {
    let value = 0;
    for (let b = 0; b < 8; b++) value |= source(i * 8 + b) << b;
    out[i] = value;
  }
}

function carryFlag(c: WriteContext): number {
  return c.vcpu.rflags & RFLAGS_CF;
}

/** out = f(out, second operand), the form of most arithmetic. */
function binary(f: (out: Uint8Array, other: Uint8Array, c: WriteContext) => void): Rule {
  return (c, insn, out, rip) => {
    const other = new Uint8Array(out.length);
    if (!load(c, insn, insn.operands[1], other, rip)) return false;
    f(out, other, c);
    return true;
  };
}
/** out = f(out). */
function unary(f: (out: Uint8Array) => void): Rule {
  return (_c, _insn, out) => {
    f(out);
    return true;
  };
}
/** out = the second operand. */
const store: Rule = (c, insn, out, rip) => load(c, insn, insn.operands[1], out, rip);

/** Shifts and rotates: `f` gives bit i of the result from the old value, the count and CF. */
function shift(
  f: (old: Uint8Array, width: number, count: number, cf: number) => (i: number) => number,
): Rule {
  return (c, insn, out, rip) => {
    const count = new Uint8Array(1);
    if (!load(c, insn, insn.operands[1], count, rip)) return false;
    const masked = count[0] & (out.length === 8 ? 63 : 31);
    const old = out.slice();
    setBits(out, f(old, out.length * 8, masked, carryFlag(c)));
    return true;
  };
}
/** Rotation through CF: CF is bit `width` of a value one bit longer. */
function throughCarry(left: boolean): Rule {
  return shift((old, width, count, cf) => {
    const n = count % (width + 1);
    return (i) => {
      const from = left ? (i - n + width + 1) % (width + 1) : (i + n) % (width + 1);
      return from === width ? cf : bit(old, from);
    };
  });
}

/** BTS, BTR, BTC: the bit's place inside the operand. */
function changeBit(f: (old: number) => number): Rule {
  return (c, insn, out, rip) => {
    const offset = new Uint8Array(8);
    if (!load(c, insn, insn.operands[1], offset, rip)) return false;
    const i = offset[0] & (out.length * 8 - 1);
    const old = bit(out, i);
    out[i >>> 3] = (out[i >>> 3] & ~(1 << (i & 7))) | (f(old) << (i & 7));
    return true;
  };
}

/** CMPXCHG: the source when the accumulator equals memory, the old value otherwise. */
const cmpxchg: Rule = (c, insn, out, rip) => {
  const accumulator = new Uint8Array(8);
  for (let i = 0; i < 8; i++) {
    const half = i < 4 ? c.vcpu.gprLo(0) : c.vcpu.gprHi(0);
    accumulator[i] = half >>> (8 * (i & 3));
  }
  if (!equal(out, accumulator)) return true;
  return load(c, insn, insn.operands[1], out, rip);
};
/** CMPXCHG8B and 16B: EDX:EAX against memory, ECX:EBX in (SDM vol. 2). */
const cmpxchgPair: Rule = (c, _insn, out) => {
  const RAX = 0;
  const RCX = 1;
  const RDX = 2;
  const RBX = 3;
  const half = out.length / 2;
  const pair = (low: number, high: number): Uint8Array =>
    Uint8Array.from({ length: out.length }, (_, i) => {
      const register = i < half ? low : high;
      const at = i % half;
      return (at < 4 ? c.vcpu.gprLo(register) : c.vcpu.gprHi(register)) >>> (8 * (at & 3));
    });
  if (equal(out, pair(RAX, RDX))) out.set(pair(RBX, RCX));
  return true;
};

/** PUSH: registers and memory as they are, immediates sign-extended, segments zero-extended. */
const push: Rule = (c, insn, out, rip) => load(c, insn, insn.operands[0], out, rip);

/** CALL near: the address of the next instruction. */
const call: Rule = (_c, insn, out, rip) => {
  const next = rip + insn.length;
  for (let i = 0; i < out.length; i++) {
    out[i] = (i < 4 ? next >>> 0 : Math.floor(next / 4294967296) >>> 0) >>> (8 * (i & 3));
  }
  return true;
};

/** The upper 8 bytes of a vector register. */
const storeHigh: Rule = (c, insn, out, rip) => {
  const whole = new Uint8Array(16);
  if (!load(c, insn, insn.operands[1], whole, rip)) return false;
  out.set(whole.subarray(8, 8 + out.length));
  return true;
};

/** MOVBE to memory: bytes reversed. */
const storeReversed: Rule = (c, insn, out, rip) => {
  if (!load(c, insn, insn.operands[1], out, rip)) return false;
  out.reverse();
  return true;
};

/** SETcc: conditions in the order of their encoding. */
const setcc: Rule = (c, insn, out) => {
  const flags = c.vcpu.rflags;
  const CF = flags & 1;
  const PF = (flags >>> 2) & 1;
  const ZF = (flags >>> 6) & 1;
  const SF = (flags >>> 7) & 1;
  const OF = (flags >>> 11) & 1;
  const conditions = [OF, CF, ZF, CF | ZF, SF, PF, SF ^ OF, ZF | (SF ^ OF)];
  out[0] = conditions[(insn.opcode & 0xf) >>> 1] ^ (insn.opcode & 1);
  return true;
};

const subtract = binary((out, other) => subtractInto(out, other, 0));
const ONE = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);

const RULES: Readonly<Record<string, Rule>> = {
  mov: store,
  movnti: store,
  movbe: storeReversed,
  // XCHG leaves the register in memory, whichever operand is written first.
  xchg: (c, insn, out, rip) =>
    load(c, insn, insn.operands[insn.operands[0].isMemory ? 1 : 0], out, rip),
  xadd: binary((out, other) => addInto(out, other, 0)),
  cmpxchg,
  cmpxchg8b: cmpxchgPair,
  cmpxchg16b: cmpxchgPair,
  add: binary((out, other) => addInto(out, other, 0)),
  adc: binary((out, other, c) => addInto(out, other, carryFlag(c))),
  sub: subtract,
  sbb: binary((out, other, c) => subtractInto(out, other, carryFlag(c))),
  and: binary((out, other) => setBits(out, (i) => bit(out, i) & bit(other, i))),
  or: binary((out, other) => setBits(out, (i) => bit(out, i) | bit(other, i))),
  xor: binary((out, other) => setBits(out, (i) => bit(out, i) ^ bit(other, i))),
  inc: unary((out) => addInto(out, ONE, 0)),
  dec: unary((out) => subtractInto(out, ONE, 0)),
  not: unary((out) => setBits(out, (i) => bit(out, i) ^ 1)),
  neg: unary((out) => {
    const old = out.slice();
    out.fill(0);
    subtractInto(out, old, 0);
  }),
  rol: shift((old, width, n) => (i) => bit(old, (i + width - (n % width)) % width)),
  ror: shift((old, width, n) => (i) => bit(old, (i + n) % width)),
  rcl: throughCarry(true),
  rcr: throughCarry(false),
  shl: shift((old, _width, n) => (i) => (i < n ? 0 : bit(old, i - n))),
  shr: shift((old, width, n) => (i) => (i + n < width ? bit(old, i + n) : 0)),
  sar: shift((old, width, n) => (i) => bit(old, Math.min(i + n, width - 1))),
  bts: changeBit(() => 1),
  btr: changeBit(() => 0),
  btc: changeBit((old) => old ^ 1),
  push,
  call,
  movhps: storeHigh,
  movhpd: storeHigh,
};
for (const size of ["b", "w", "d", "q"]) {
  (RULES as Record<string, Rule>)[`stos${size}`] = store;
}

/** Stores of a register's low bytes, with and without VEX. */
const VECTOR_STORES = [
  "movd",
  "movq",
  "movss",
  "movsd",
  "movups",
  "movupd",
  "movaps",
  "movapd",
  "movdqu",
  "movdqa",
  "movlps",
  "movlpd",
  "movntdq",
  "movntps",
  "movntpd",
  "movntq",
];
const ENCODING_VEX = 3;

/** Of instructions seen; decoded ones are kept and come again. */
const known = new WeakMap<Instruction, Rule | null>();

function ruleOf(insn: Instruction): Rule | undefined {
  let rule = known.get(insn);
  if (rule === undefined) {
    rule = findRule(insn) ?? null;
    known.set(insn, rule);
  }
  return rule ?? undefined;
}

function findRule(insn: Instruction): Rule | undefined {
  let name = insn.name;
  // MOVSD is a string instruction and a vector store under one name.
  if (/^movs[bwdq]$/.test(name) && insn.category === "stringop") return store;
  if (insn.encoding > ENCODING_VEX) return undefined;
  if (insn.encoding === ENCODING_VEX && name.startsWith("v")) name = name.slice(1);
  if (/^set/.test(name) && insn.category === "setcc") return setcc;
  if (VECTOR_STORES.includes(name)) return store;
  // A far CALL pushes CS too.
  if (name === "call" && (insn.traits & TRAIT_FAR) !== 0) return undefined;
  return RULES[name];
}

/**
 * The value that `insn`, not yet executed, writes to memory. An answer with
 * `ok: false` for an instruction that writes none, is not of the list, or
 * reads something that is absent.
 * @param rip of the instruction; the vCPU's own when left out
 */
export function writtenValue(c: WriteContext, insn: Instruction, rip = c.vcpu.rip): Written {
  const target = writtenOperand(insn);
  if (!target) return { ok: false, reason: `${insn.name} writes no memory` };
  const rule = ruleOf(insn);
  if (!rule) return { ok: false, reason: `the value written by ${insn.name} is not worked out` };
  const gva = linearAddress(c.vcpu, insn, target, rip);
  const old = c.memory.read(gva, target.size);
  if (!old) return { ok: false, reason: "the memory written is absent" };
  const bytes = old.slice();
  return rule(c, insn, bytes, rip)
    ? { ok: true, gva, bytes, old }
    : { ok: false, reason: `a source of ${insn.name} is absent or unknown` };
}
