// SPDX-License-Identifier: MIT
/**
 * The value that an instruction gives its destination, worked out from the
 * state before it. Nothing here allocates: one answer is overwritten by the next.
 */
import { HVI_RAX, HVI_RBX, HVI_RCX, HVI_RDX } from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import { isRepeatedZero } from "./accesses.ts";
import { type InsnContext, readBytes } from "./context.ts";
import { addFloats, floatSum } from "./float.ts";
import {
  ENCODING_VEX,
  type Instruction,
  OPERAND_IMMEDIATE,
  OPERAND_MEMORY,
  OPERAND_REGISTER,
  type Operand,
  TRAIT_FAR,
  VISIBLE_EXPLICIT,
  VISIBLE_HIDDEN,
} from "./instruction.ts";
import { divide, multiply } from "./muldiv.ts";
import { accessSize, linearAddress } from "./operand.ts";
import { type RegisterInfo, RFLAGS_CF, registerHi, registerInfo, registerLo } from "./registers.ts";
import { MXCSR_OFFSET, readMmx, readVector } from "./xsave.ts";
import { zydis } from "./zydis/module.ts";

/** Why there is no value. */
export type NoValue =
  /** The instruction has no destination of the kind asked for, or its REP count is 0. */
  | "writes nothing"
  /** Not one of the mnemonics in docs/instructions.md. */
  | "not worked out"
  /** It reads or writes memory that is absent. */
  | "absent memory"
  /** It faults: #DE, #XM. */
  | "faults";

/** The largest value: a YMM register. */
const MAX_VALUE = 32;

/** An answer, used again for each question. */
export class Written {
  /** Why there is none; undefined when there is one. */
  missing: NoValue | undefined = "writes nothing";
  /** First address written, signed; NaN when the destination is a register. */
  gva = Number.NaN;
  /** How many of `bytes` and `old` count. */
  size = 0;
  /** The bytes that will stand there. */
  readonly bytes = new Uint8Array(MAX_VALUE);
  /** The bytes that stand there now. */
  readonly old = new Uint8Array(MAX_VALUE);
  /** The same bytes, for integers. */
  readonly view = new DataView(this.bytes.buffer);
  readonly oldView = new DataView(this.old.buffer);
}

/** Fills out.bytes; out.old and out.size are set. False: out.missing says why. */
type Rule = (
  c: InsnContext,
  insn: Instruction,
  target: Operand,
  out: Written,
  rip: number,
) => boolean;

// ---- operands -----------------------------------------------------------------------------

/** Bytes that a vector or a memory source is read into. */
const buffer = new Uint8Array(MAX_VALUE);
const bufferView = new DataView(buffer.buffer);
/** The integer read last: halves, zero-extended unless it is an immediate. */
let lo = 0;
let hi = 0;
/** The old value of a destination of at most 8 bytes. */
let oldLo = 0;
let oldHi = 0;

/** The result of an integer rule. What stands behind out.size does not count. */
function put(out: Written, low: number, high: number): boolean {
  out.view.setUint32(0, low, true);
  out.view.setUint32(4, high, true);
  return true;
}
function putHalves(to: Uint8Array, at: number, n: number, low: number, high: number): void {
  for (let i = 0; i < n; i++) to[at + i] = (i < 4 ? low : high) >>> (8 * (i & 3));
}
function word(bytes: Uint8Array, i: number): number {
  return (bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24)) >>> 0;
}
function miss(out: Written, why: NoValue): boolean {
  out.missing = why;
  return false;
}

/** Reads n bytes of a register into `to`; those that it does not have become 0. */
function readRegister(c: InsnContext, info: RegisterInfo, to: Uint8Array, n: number): boolean {
  switch (info.kind) {
    case "gpr":
      putHalves(to, 0, Math.min(n, 8), registerLo(c.vcpu, info), registerHi(c.vcpu, info));
      for (let i = 8; i < n; i++) to[i] = 0;
      return true;
    case "xmm":
    case "ymm":
      return readVector(c.xsave(), info.index, to, n);
    case "mmx":
      return readMmx(c.xsave(), info.index, to, n);
    default:
      return false;
  }
}

/** Reads n bytes of a register or memory operand into `to`. */
function readOperand(
  c: InsnContext,
  insn: Instruction,
  operand: Operand | undefined,
  to: Uint8Array,
  n: number,
  out: Written,
  rip: number,
): boolean {
  if (operand !== undefined && operand.type === OPERAND_MEMORY) {
    const at = linearAddress(c.vcpu, insn, operand, rip);
    return readBytes(c.memory, at, to, n) || miss(out, "absent memory");
  }
  if (operand === undefined || operand.type !== OPERAND_REGISTER)
    return miss(out, "not worked out");
  return readRegister(c, registerInfo(operand.register), to, n) || miss(out, "not worked out");
}

/** Takes n bytes of memory, at most 8, into lo and hi. */
function takeMemory(c: InsnContext, gva: number, n: number): boolean {
  const { memory } = c;
  if ((gva & 0xfff) + n > 0x1000 || (n & (n - 1)) !== 0) {
    bufferView.setUint32(0, 0, true);
    bufferView.setUint32(4, 0, true);
    if (!readBytes(memory, gva, buffer, n)) return false;
    lo = bufferView.getUint32(0, true);
    hi = bufferView.getUint32(4, true);
    return true;
  }
  const gpa = memory.gpaOf(gva);
  if (gpa < 0) return false;
  const { physical } = memory;
  hi = n === 8 ? physical.read32(gpa + 4) : 0;
  lo = n >= 4 ? physical.read32(gpa) : n === 2 ? physical.read16(gpa) : physical.read8(gpa);
  return lo >= 0 && hi >= 0;
}

/** Takes an integer operand (its own size, at most 8 bytes) into lo and hi. */
function take(
  c: InsnContext,
  insn: Instruction,
  operand: Operand | undefined,
  out: Written,
  rip: number,
): boolean {
  if (operand === undefined) return miss(out, "not worked out");
  const n = Math.min(operand.size, 8);
  if (operand.type === OPERAND_MEMORY) {
    const at = linearAddress(c.vcpu, insn, operand, rip);
    return takeMemory(c, at, n) || miss(out, "absent memory");
  }
  if (operand.type === OPERAND_IMMEDIATE) {
    lo = operand.lo;
    hi = operand.hi;
    return true;
  }
  if (operand.type !== OPERAND_REGISTER) return miss(out, "not worked out");
  const info = registerInfo(operand.register);
  if (info.kind === "gpr") {
    lo = registerLo(c.vcpu, info);
    hi = registerHi(c.vcpu, info);
    return true;
  }
  if (info.kind === "segment") {
    lo = c.vcpu.segSelector(info.index);
    hi = 0;
    return true;
  }
  bufferView.setUint32(0, 0, true);
  bufferView.setUint32(4, 0, true);
  if (!readRegister(c, info, buffer, n)) return miss(out, "not worked out");
  lo = bufferView.getUint32(0, true);
  hi = bufferView.getUint32(4, true);
  return true;
}

/** Takes what the destination holds now, into out.old and, up to 8 bytes, oldLo and oldHi. */
function takeOld(
  c: InsnContext,
  insn: Instruction,
  target: Operand,
  out: Written,
  rip: number,
): boolean {
  if (out.size > 8) return readOperand(c, insn, target, out.old, out.size, out, rip);
  if (Number.isNaN(out.gva)) {
    if (!take(c, insn, target, out, rip)) return false;
  } else if (!takeMemory(c, out.gva, out.size)) return miss(out, "absent memory");
  oldLo = lo >>> 0;
  oldHi = hi >>> 0;
  out.oldView.setUint32(0, oldLo, true);
  out.oldView.setUint32(4, oldHi, true);
  return true;
}

// ---- moves --------------------------------------------------------------------------------

/** The second operand as it is, zero-extended: MOV, STOS, MOVS, MOVZX. */
const move: Rule = (c, insn, _target, out, rip) =>
  take(c, insn, insn.operands[1], out, rip) && put(out, lo, hi);
/** MOVSX, MOVSXD. */
const moveSigned: Rule = (c, insn, _target, out, rip) => {
  if (!take(c, insn, insn.operands[1], out, rip)) return false;
  const size = insn.operands[1].size;
  if (size === 8) return put(out, lo, hi);
  const shift = 32 - 8 * size;
  const value = (lo << shift) >> shift;
  return put(out, value, value >> 31);
};
/** MOVBE: bytes reversed. */
const moveReversed: Rule = (c, insn, _target, out, rip) => {
  if (!take(c, insn, insn.operands[1], out, rip)) return false;
  const n = out.size;
  for (let i = 0; i < n; i++) out.bytes[n - 1 - i] = (i < 4 ? lo : hi) >>> (8 * (i & 3));
  return true;
};
/** XCHG: each operand gets the other. */
const exchange: Rule = (c, insn, target, out, rip) => {
  const other = insn.operands[target === insn.operands[0] ? 1 : 0];
  return take(c, insn, other, out, rip) && put(out, lo, hi);
};
/** PUSH: registers and memory as they are, immediates sign-extended, segments zero-extended. */
const push: Rule = (c, insn, _target, out, rip) =>
  take(c, insn, insn.operands[0], out, rip) && put(out, lo, hi);
/** POP: what stands on the stack. */
const pop: Rule = (c, insn, target, out, rip) => {
  const stack = insn.operands.length > 2 ? insn.operands[2] : undefined;
  if (stack === target) return miss(out, "not worked out");
  return take(c, insn, stack, out, rip) && put(out, lo, hi);
};
/** CALL near: the address of the next instruction. */
const call: Rule = (_c, insn, _target, out, rip) => {
  if ((insn.traits & TRAIT_FAR) !== 0) return miss(out, "not worked out");
  const next = rip + insn.length;
  return put(out, next >>> 0, Math.floor(next / 4294967296) >>> 0);
};
/** LIDT, LGDT: the limit and the base that stand in memory. */
const loadTable: Rule = (c, insn, _target, out, rip) => {
  const operand = insn.operands[0];
  out.size = operand.size;
  return readOperand(c, insn, operand, out.bytes, operand.size, out, rip);
};

// ---- arithmetic and logic -----------------------------------------------------------------

type Combine = (out: Written, carry: number) => boolean;

/** destination = f(destination in old, second operand in lo and hi). */
function binary(f: Combine): Rule {
  return (c, insn, _target, out, rip) => {
    if (!take(c, insn, insn.operands[1], out, rip)) return false;
    return f(out, c.vcpu.rflags & RFLAGS_CF);
  };
}
function unary(f: Combine): Rule {
  return (_c, _insn, _target, out) => f(out, 0);
}
function sum(out: Written, carry: number): boolean {
  const low = (oldLo >>> 0) + (lo >>> 0) + carry;
  return put(out, low >>> 0, oldHi + hi + (low > 0xffffffff ? 1 : 0));
}
function difference(out: Written, borrow: number): boolean {
  const low = (oldLo >>> 0) - (lo >>> 0) - borrow;
  return put(out, low | 0, oldHi - hi - (low < 0 ? 1 : 0));
}
const add = binary((out) => sum(out, 0));
const addCarry = binary(sum);
const subtract = binary((out) => difference(out, 0));
const subtractBorrow = binary(difference);
const and = binary((out) => put(out, oldLo & lo, oldHi & hi));
const or = binary((out) => put(out, oldLo | lo, oldHi | hi));
const xor = binary((out) => put(out, oldLo ^ lo, oldHi ^ hi));
const increment = unary((out) => put(out, oldLo + 1, oldHi + (oldLo === 0xffffffff ? 1 : 0)));
const decrement = unary((out) => put(out, oldLo - 1, oldHi - (oldLo === 0 ? 1 : 0)));
const not = unary((out) => put(out, ~oldLo, ~oldHi));
const negate = unary((out) => put(out, -oldLo, ~oldHi + (oldLo === 0 ? 1 : 0)));

/** XADD: the sum; the second operand, a register, gets the old value. */
const exchangeAdd = add;

/** Shifts and rotates go bit by bit: at most 63 steps, and each is plain to see. */
enum Shift {
  Rol,
  Ror,
  Rcl,
  Rcr,
  Shl,
  Shr,
  Sar,
}
function shift(kind: Shift): Rule {
  return (c, insn, _target, out, rip) => {
    if (!take(c, insn, insn.operands[1], out, rip)) return false;
    const top = 8 * out.size - 1;
    const wide = top === 63;
    let low = oldLo | 0;
    let high = oldHi | 0;
    let carry = c.vcpu.rflags & RFLAGS_CF;
    for (let n = lo & (wide ? 63 : 31); n > 0; n--) {
      const topBit = wide ? high >>> 31 : (low >>> top) & 1;
      const bottomBit = low & 1;
      if (kind === Shift.Rol || kind === Shift.Rcl || kind === Shift.Shl) {
        const enters = kind === Shift.Rol ? topBit : kind === Shift.Rcl ? carry : 0;
        high = (high << 1) | (low >>> 31);
        low = (low << 1) | enters;
        carry = topBit;
      } else {
        const enters =
          kind === Shift.Ror
            ? bottomBit
            : kind === Shift.Rcr
              ? carry
              : kind === Shift.Sar
                ? topBit
                : 0;
        low = (low >>> 1) | (wide ? high << 31 : enters << top);
        high = (high >>> 1) | (wide ? enters << 31 : 0);
        // Bits above the operand's are not part of it.
        if (top < 31) low &= (2 << top) - 1;
        carry = bottomBit;
      }
    }
    return put(out, low, high);
  };
}

/** BTS, BTR, BTC: the bit's place inside the operand. */
function changeBit(f: (value: number, bit: number) => number): Rule {
  return (c, insn, _target, out, rip) => {
    if (!take(c, insn, insn.operands[1], out, rip)) return false;
    const i = lo & (8 * out.size - 1);
    const bit = 1 << (i & 31);
    return i < 32 ? put(out, f(oldLo, bit), oldHi) : put(out, oldLo, f(oldHi, bit));
  };
}

/** CMPXCHG: the source when the accumulator equals the destination, the old value otherwise. */
const compareExchange: Rule = (c, insn, _target, out, rip) => {
  const accumulator = registerInfo(insn.operands[2].register);
  const same =
    registerLo(c.vcpu, accumulator) === oldLo &&
    (out.size < 8 || registerHi(c.vcpu, accumulator) === oldHi);
  if (!same) return put(out, oldLo, oldHi);
  return take(c, insn, insn.operands[1], out, rip) && put(out, lo, hi);
};
/** CMPXCHG8B and 16B: EDX:EAX against memory, ECX:EBX in (SDM vol. 2). */
const compareExchangePair: Rule = (c, _insn, _target, out) => {
  const { vcpu } = c;
  const half = out.size / 2;
  const same =
    equalsHalf(vcpu, HVI_RAX, out, 0, half) && equalsHalf(vcpu, HVI_RDX, out, half, half);
  for (let i = 0; i < out.size; i++) out.bytes[i] = out.old[i];
  if (!same) return true;
  putHalves(out.bytes, 0, half, vcpu.gprLo(HVI_RBX), vcpu.gprHi(HVI_RBX));
  putHalves(out.bytes, half, half, vcpu.gprLo(HVI_RCX), vcpu.gprHi(HVI_RCX));
  return true;
};
function equalsHalf(vcpu: Vcpu, register: number, out: Written, at: number, n: number): boolean {
  if (word(out.old, at) !== vcpu.gprLo(register)) return false;
  return n === 4 || word(out.old, at + 4) === vcpu.gprHi(register);
}

/** SETcc: conditions in the order of their encoding. */
const setOnCondition: Rule = (c, insn, _target, out) => {
  const flags = c.vcpu.rflags;
  const CF = flags & 1;
  const PF = (flags >>> 2) & 1;
  const ZF = (flags >>> 6) & 1;
  const SF = (flags >>> 7) & 1;
  const OF = (flags >>> 11) & 1;
  let holds = 0;
  switch ((insn.opcode & 0xf) >>> 1) {
    case 0:
      holds = OF;
      break;
    case 1:
      holds = CF;
      break;
    case 2:
      holds = ZF;
      break;
    case 3:
      holds = CF | ZF;
      break;
    case 4:
      holds = SF;
      break;
    case 5:
      holds = PF;
      break;
    case 6:
      holds = SF ^ OF;
      break;
    default:
      holds = ZF | (SF ^ OF);
  }
  return put(out, holds ^ (insn.opcode & 1), 0);
};

// ---- multiplication and division ----------------------------------------------------------

const factor = new Uint8Array(MAX_VALUE);

/** MUL, IMUL with one operand: twice the size, as it will stand in rAX (AX for bytes) and rDX. */
function multiplyPair(signed: boolean): Rule {
  return (c, insn, _target, out, rip) => {
    const n = insn.operands[0].size;
    if (!readOperand(c, insn, insn.operands[0], factor, n, out, rip)) return false;
    putHalves(buffer, 0, 8, c.vcpu.gprLo(HVI_RAX), c.vcpu.gprHi(HVI_RAX));
    multiply(buffer, factor, n, signed, out.bytes);
    out.size = 2 * n;
    return true;
  };
}
const multiplyUnsigned = multiplyPair(false);
const multiplySigned = multiplyPair(true);
/** IMUL: with two and three operands the low half goes to the first. */
const multiplyAny: Rule = (c, insn, target, out, rip) => {
  const { visibleCount } = insn;
  // The form of one operand has rAX as an implicit or hidden one.
  if (isOneOperand(insn)) return multiplySigned(c, insn, target, out, rip);
  const n = out.size;
  if (!take(c, insn, insn.operands[visibleCount - 1], out, rip)) return false;
  putHalves(factor, 0, 8, lo, hi);
  const first = insn.operands[visibleCount > 2 ? 1 : 0];
  if (!readOperand(c, insn, first, buffer, n, out, rip)) return false;
  multiply(buffer, factor, n, true, wide);
  for (let i = 0; i < n; i++) out.bytes[i] = wide[i];
  return true;
};
const wide = new Uint8Array(16);
function isOneOperand(insn: Instruction): boolean {
  const second = insn.operands[1];
  return second === undefined || second.visibility !== VISIBLE_EXPLICIT;
}
/** DIV, IDIV: the quotient as it will stand in rAX (AL), then the remainder, in rDX (AH). */
function dividePair(signed: boolean): Rule {
  return (c, insn, _target, out, rip) => {
    const { vcpu } = c;
    const n = insn.operands[0].size;
    if (!readOperand(c, insn, insn.operands[0], factor, n, out, rip)) return false;
    putHalves(buffer, 0, n === 1 ? 2 : n, vcpu.gprLo(HVI_RAX), vcpu.gprHi(HVI_RAX));
    if (n > 1) putHalves(buffer, n, n, vcpu.gprLo(HVI_RDX), vcpu.gprHi(HVI_RDX));
    out.size = 2 * n;
    return divide(buffer, factor, n, signed, out.bytes) || miss(out, "faults");
  };
}

// ---- vectors ------------------------------------------------------------------------------

/** The last operand's bytes as they are: stores, and loads; MOVD and MOVQ zero-extend. */
const moveVector: Rule = (c, insn, _target, out, rip) => {
  const source = insn.operands[insn.visibleCount - 1];
  const n = Math.min(source.size, out.size);
  for (let i = n; i < out.size; i++) out.bytes[i] = 0;
  return readOperand(c, insn, source, out.bytes, n, out, rip);
};

/**
 * MOVSS, MOVSD: to memory the low element; from memory it and zeros; between
 * registers it, under what the first source (with VEX) or the destination has.
 */
function moveScalar(n: number): Rule {
  return (c, insn, target, out, rip) => {
    const source = insn.operands[insn.visibleCount - 1];
    if (target.isMemory) return readOperand(c, insn, source, out.bytes, n, out, rip);
    if (source.isMemory) {
      out.bytes.fill(0);
      return readOperand(c, insn, source, out.bytes, n, out, rip);
    }
    const upper = insn.operands[insn.visibleCount - 2];
    if (!readOperand(c, insn, upper, out.bytes, 16, out, rip)) return false;
    return readOperand(c, insn, source, out.bytes, n, out, rip);
  };
}
/** MOVLPS, MOVLPD, MOVHPS, MOVHPD: one half of an XMM register; with VEX the other is the first source's. */
function moveHalf(at: 0 | 8): Rule {
  return (c, insn, target, out, rip) => {
    const source = insn.operands[insn.visibleCount - 1];
    if (target.isMemory) {
      if (!readOperand(c, insn, source, buffer, 16, out, rip)) return false;
      for (let i = 0; i < 8; i++) out.bytes[i] = buffer[at + i];
      return true;
    }
    const other = insn.operands[insn.visibleCount - 2];
    if (!readOperand(c, insn, other, out.bytes, 16, out, rip)) return false;
    if (!readOperand(c, insn, source, buffer, 8, out, rip)) return false;
    for (let i = 0; i < 8; i++) out.bytes[at + i] = buffer[i];
    return true;
  };
}

const addend = new Uint8Array(MAX_VALUE);
/** ADDPS. */
const addPacked: Rule = (c, insn, _target, out, rip) => {
  const source = insn.operands[insn.visibleCount - 1];
  const first = insn.operands[insn.visibleCount - 2];
  if (!readOperand(c, insn, first, addend, out.size, out, rip)) return false;
  if (!readOperand(c, insn, source, buffer, out.size, out, rip)) return false;
  const mxcsr = word(c.xsave(), MXCSR_OFFSET);
  for (let i = 0; i < out.size; i += 4) {
    const there = addFloats(word(addend, i) | 0, word(buffer, i) | 0, mxcsr);
    if (!there) return miss(out, "faults");
    putHalves(out.bytes, i, 4, floatSum, 0);
  }
  return true;
};

// ---- by mnemonic --------------------------------------------------------------------------

const moveSingle = moveScalar(4);
const moveDouble = moveScalar(8);

/** MOVSD is a string instruction and a vector move under one name. */
const moveStringOrDouble: Rule = (c, insn, target, out, rip) =>
  (insn.category === "stringop" ? move : moveDouble)(c, insn, target, out, rip);

const RULES: readonly (readonly [RegExp, Rule])[] = [
  [/^(mov|movnti|movzx|movs[bwq]|stos[bwdq])$/, move],
  [/^movsd$/, moveStringOrDouble],
  [/^(movsx|movsxd)$/, moveSigned],
  [/^movbe$/, moveReversed],
  [/^xchg$/, exchange],
  [/^xadd$/, exchangeAdd],
  [/^cmpxchg$/, compareExchange],
  [/^cmpxchg(8|16)b$/, compareExchangePair],
  [/^add$/, add],
  [/^adc$/, addCarry],
  [/^sub$/, subtract],
  [/^sbb$/, subtractBorrow],
  [/^and$/, and],
  [/^or$/, or],
  [/^xor$/, xor],
  [/^inc$/, increment],
  [/^dec$/, decrement],
  [/^not$/, not],
  [/^neg$/, negate],
  [/^mul$/, multiplyUnsigned],
  [/^imul$/, multiplyAny],
  [/^div$/, dividePair(false)],
  [/^idiv$/, dividePair(true)],
  [/^rol$/, shift(Shift.Rol)],
  [/^ror$/, shift(Shift.Ror)],
  [/^rcl$/, shift(Shift.Rcl)],
  [/^rcr$/, shift(Shift.Rcr)],
  [/^shl$/, shift(Shift.Shl)],
  [/^shr$/, shift(Shift.Shr)],
  [/^sar$/, shift(Shift.Sar)],
  [/^bts$/, changeBit((value, bit) => value | bit)],
  [/^btr$/, changeBit((value, bit) => value & ~bit)],
  [/^btc$/, changeBit((value, bit) => value ^ bit)],
  [/^set(n?[bolpsz]|n?be|n?le)$/, setOnCondition],
  [/^push$/, push],
  [/^pop$/, pop],
  [/^call$/, call],
  [/^(lgdt|lidt)$/, loadTable],
  [/^v?(movdqu|movdqa|movups|movupd|movaps|movapd|movntdq|movntps|movntpd)$/, moveVector],
  [/^(movntq|v?lddqu|v?movntdqa)$/, moveVector],
  [/^v?(movd|movq)$/, moveVector],
  [/^v?movss$/, moveSingle],
  [/^vmovsd$/, moveDouble],
  [/^v?(movhps|movhpd)$/, moveHalf(8)],
  [/^v?(movlps|movlpd)$/, moveHalf(0)],
  [/^v?addps$/, addPacked],
];

let rules: readonly (Rule | undefined)[] | undefined;

function makeRules(): readonly (Rule | undefined)[] {
  return zydis().mnemonics.map((name) => RULES.find(([pattern]) => pattern.test(name))?.[1]);
}

/** Bytes of a destination. The decoder counts only the half of XMM that MOVHPS changes: we mean all. */
function sizeOf(target: Operand): number {
  if (target.isMemory) return target.size;
  return registerInfo(target.register).kind === "xmm" ? 16 : target.size;
}

function compute(
  c: InsnContext,
  insn: Instruction,
  target: Operand,
  out: Written,
  rip: number,
): boolean {
  rules ??= makeRules();
  const rule = insn.encoding > ENCODING_VEX ? undefined : rules[insn.mnemonic];
  if (rule === undefined) return miss(out, "not worked out");
  const size = sizeOf(target);
  if (size > MAX_VALUE) return miss(out, "not worked out");
  out.size = size;
  if (target.isMemory && target.writes) {
    if (isRepeatedZero(c.vcpu, insn)) return miss(out, "writes nothing");
    out.gva = linearAddress(c.vcpu, insn, target, rip);
  }
  if (!takeOld(c, insn, target, out, rip)) return false;
  if (!rule(c, insn, target, out, rip)) return false;
  out.missing = undefined;
  return true;
}

/**
 * The value that `insn`, not yet executed, writes to memory: of a REP, in the
 * iteration at hand; of an instruction with several stores, its first operand.
 * @param rip of the instruction; the vCPU's own when left out
 * @returns false when there is none: out.missing says why
 */
export function writtenValue(
  c: InsnContext,
  insn: Instruction,
  out: Written,
  rip: number = c.vcpu.rip,
): boolean {
  out.gva = Number.NaN;
  const operands = insn.operands;
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i];
    if (operand.isMemory && operand.writes && accessSize(operand) > 0) {
      return compute(c, insn, operand, out, rip);
    }
  }
  return miss(out, "writes nothing");
}

/**
 * The value of the destination, register or memory. MUL and IMUL with one
 * operand: the product, as the pair of registers holds it, low half first.
 * DIV, IDIV: quotient, then remainder. LGDT, LIDT: the bytes of the operand.
 * A register's bits above the destination (the upper half behind a 32-bit
 * result, YMM behind XMM with VEX) are not in the answer.
 */
export function destinationValue(
  c: InsnContext,
  insn: Instruction,
  out: Written,
  rip: number = c.vcpu.rip,
): boolean {
  out.gva = Number.NaN;
  const first = insn.operands[0];
  if (first === undefined) return miss(out, "writes nothing");
  const toRegister = first.writes && first.visibility !== VISIBLE_HIDDEN && !first.isMemory;
  if (!toRegister) {
    if (writtenValue(c, insn, out, rip)) return true;
    if (out.missing !== "writes nothing" || first.writes) return false;
  }
  return compute(c, insn, first, out, rip);
}
