// SPDX-License-Identifier: MIT
/** A decoded instruction: plain numbers, copied out of the decoder. */

/** Bits of the code: the default operand and address sizes of the code segment. */
export type CodeMode = 16 | 32 | 64;

/** Values of Operand.type. */
export const OPERAND_REGISTER = 1;
export const OPERAND_MEMORY = 2;
/** A far pointer in the instruction. */
export const OPERAND_POINTER = 3;
export const OPERAND_IMMEDIATE = 4;

/** Values of Operand.visibility. */
export const VISIBLE_EXPLICIT = 1;
/** Part of the mnemonic, e.g. the CL of a shift. */
export const VISIBLE_IMPLICIT = 2;
/** Not written at all, e.g. the stack access of PUSH. */
export const VISIBLE_HIDDEN = 3;

/** Bits of Operand.actions. */
export const ACTION_READ = 1;
export const ACTION_WRITE = 2;
/** Only under some condition: CMOVcc, CMPXCHG, REP with RCX 0... */
export const ACTION_COND_READ = 4;
export const ACTION_COND_WRITE = 8;
export const ACTION_ANY_READ = ACTION_READ | ACTION_COND_READ;
export const ACTION_ANY_WRITE = ACTION_WRITE | ACTION_COND_WRITE;

/** Values of Operand.memoryType. */
export const MEMORY_PLAIN = 1;
/** An address is computed and nothing accessed: LEA, NOP. */
export const MEMORY_ADDRESS_ONLY = 2;
/** MPX's base and index as two values. */
export const MEMORY_MIB = 3;
/** The index register is a vector: gather and scatter. */
export const MEMORY_VSIB = 4;

/** Bits of Instruction.traits. */
export const TRAIT_LOCK = 1 << 0;
/** F3: REP or REPE. */
export const TRAIT_REP = 1 << 1;
export const TRAIT_REPNE = 1 << 2;
export const TRAIT_PRIVILEGED = 1 << 3;
/** An operand is relative to RIP. */
export const TRAIT_RELATIVE = 1 << 4;
export const TRAIT_FAR = 1 << 5;

/** Values of Instruction.encoding. */
export const ENCODING_VEX = 3;
export const ENCODING_EVEX = 4;

/**
 * One operand. Fields that do not belong to its type are 0. Registers are
 * Zydis's numbers; registers.ts says what they are.
 */
export class Operand {
  constructor(
    /** OPERAND_* */
    readonly type: number,
    /** VISIBLE_* */
    readonly visibility: number,
    /** ACTION_* */
    readonly actions: number,
    /** Bits. */
    readonly bits: number,
    readonly elementBits: number,
    readonly elementCount: number,
    /** OPERAND_REGISTER: the register; OPERAND_POINTER: the selector. */
    readonly register: number,
    /** OPERAND_MEMORY: MEMORY_* */
    readonly memoryType: number,
    readonly segment: number,
    readonly base: number,
    readonly index: number,
    /** 0 without an index, else 1, 2, 4, 8. */
    readonly scale: number,
    /** Immediate, displacement or offset of a far pointer, as two halves; sign-extended. */
    readonly lo: number,
    readonly hi: number,
    /** OPERAND_IMMEDIATE: relative to the next instruction. */
    readonly relative: boolean,
    readonly signed: boolean,
  ) {}

  /** Bytes; at least 1 when there is anything. */
  get size(): number {
    return (this.bits + 7) >>> 3;
  }
  get isMemory(): boolean {
    return this.type === OPERAND_MEMORY;
  }
  get isRegister(): boolean {
    return this.type === OPERAND_REGISTER;
  }
  get reads(): boolean {
    return (this.actions & ACTION_ANY_READ) !== 0;
  }
  get writes(): boolean {
    return (this.actions & ACTION_ANY_WRITE) !== 0;
  }
  /** Immediate or displacement as a signed number, rounded beyond 2^53. */
  get value(): number {
    return this.hi * 4294967296 + (this.lo >>> 0);
  }
}

export class Instruction {
  constructor(
    readonly mode: CodeMode,
    /** Zydis's number of the mnemonic, and its name in lower case ("mov"). */
    readonly mnemonic: number,
    readonly name: string,
    /** Bytes, 1..15. */
    readonly length: number,
    /** "call", "ret", "uncond_br"... in lower case. */
    readonly category: string,
    readonly opcode: number,
    /** 0 legacy, 1 0F, 2 0F38, 3 0F3A, 4 3DNow!, 5.. XOP and later. */
    readonly opcodeMap: number,
    /** 0 legacy, 1 3DNow!, 2 XOP, 3 VEX, 4 EVEX, 5 MVEX. */
    readonly encoding: number,
    /** Bits: effective operand, address and stack sizes. */
    readonly operandWidth: number,
    readonly addressWidth: number,
    readonly stackWidth: number,
    /** TRAIT_* */
    readonly traits: number,
    /** Masks of RFLAGS. `flagsWritten` includes those left undefined. */
    readonly flagsRead: number,
    readonly flagsWritten: number,
    readonly flagsUndefined: number,
    /** Explicit ones first, then implicit, then hidden. */
    readonly operands: readonly Operand[],
    /** How many of them are explicit or implicit. */
    readonly visibleCount: number,
    /** The bytes it was decoded from, as four words, zeros behind its end. */
    readonly word0: number,
    readonly word1: number,
    readonly word2: number,
    readonly word3: number,
  ) {}

  get lock(): boolean {
    return (this.traits & TRAIT_LOCK) !== 0;
  }
  get rep(): boolean {
    return (this.traits & TRAIT_REP) !== 0;
  }
  get repne(): boolean {
    return (this.traits & TRAIT_REPNE) !== 0;
  }
  /** Byte i of the instruction. */
  byte(i: number): number {
    const word = i < 4 ? this.word0 : i < 8 ? this.word1 : i < 12 ? this.word2 : this.word3;
    return (word >>> ((i & 3) * 8)) & 0xff;
  }
  /** A copy of its bytes. */
  bytes(): Uint8Array {
    return Uint8Array.from({ length: this.length }, (_, i) => this.byte(i));
  }
}
