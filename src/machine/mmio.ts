// SPDX-License-Identifier: MIT
import {
  type GuestRam,
  HVI_ACCESS_EXEC,
  HVI_ACCESS_WALK,
  HVI_CS,
  HVI_RAX,
  HVI_RCX,
  HVI_RDI,
  type Vcpu,
} from "../bridge/index.ts";
import {
  asGva,
  PhysicalMemory,
  pagingFeaturesOf,
  pagingModeOf,
  VirtualMemory,
} from "../memory/index.ts";
import {
  RFLAGS_AF as AF,
  RFLAGS_CF as CF,
  type CodeMode,
  codeMode,
  RFLAGS_DF as DF,
  decode,
  type Instruction,
  RFLAGS_OF as OF,
  OPERAND_IMMEDIATE,
  type Operand,
  RFLAGS_PF as PF,
  registerInfo,
  RFLAGS_SF as SF,
  RFLAGS_ZF as ZF,
} from "../x86/index.ts";
import type { MmioMap } from "./ports.ts";
import { addToRegister } from "./registers.ts";

/*
 * Instructions on device memory. The backend reports the access before
 * anything happened; here the instruction is decoded, done with the device's
 * registers in memory's place, and skipped.
 */
enum Action {
  /** Register or immediate to memory. */
  Store,
  /** Memory to register, extended as the instruction says. */
  Load,
  /** Read, combine, set flags, write back or to the register. */
  Alu,
  /** Exchange with a register. */
  Exchange,
  /** STOS. */
  Fill,
}

enum Alu {
  Test,
  Cmp,
  And,
  Or,
  Xor,
}

const ALU_NAMES: Record<string, Alu> = {
  test: Alu.Test,
  cmp: Alu.Cmp,
  and: Alu.And,
  or: Alu.Or,
  xor: Alu.Xor,
};

const STATUS = CF | PF | AF | ZF | SF | OF;
const CACHE_ROWS = 256;

/** What an instruction does to device memory, taken apart once. */
interface Plan {
  action: Action;
  alu: Alu;
  length: number;
  /** Bytes of the memory operand. */
  size: number;
  /** Register operand: number, or -1 for the immediate; its size in bytes; 8 when it is AH..BH. */
  register: number;
  registerSize: number;
  shift: number;
  low: number;
  high: number;
  /** Memory is the destination. */
  toMemory: boolean;
  signExtend: boolean;
  rep: boolean;
  addressSize: number;
  /** The bytes it was decoded from; another code at the same address makes it void. */
  words: [number, number, number, number];
  rip: number;
  mode: CodeMode;
}

export class MmioEmulator {
  readonly #mmio: MmioMap;
  readonly #physical: PhysicalMemory;
  readonly #code = new Uint8Array(16);
  readonly #cache: (Plan | undefined)[] = new Array(CACHE_ROWS).fill(undefined);
  #memory: VirtualMemory | undefined;
  #low = 0;
  #high = 0;

  constructor(ram: GuestRam, mmio: MmioMap) {
    this.#mmio = mmio;
    this.#physical = new PhysicalMemory(ram);
  }

  /** Deals with an access to a guest physical address without RAM; why it cannot be done, or undefined. */
  handle(vcpu: Vcpu): string | undefined {
    const access = vcpu.exitAccess;
    const where = () => `0x${vcpu.exitGpa.toString(16)}`;
    if ((access & HVI_ACCESS_WALK) !== 0)
      return `a page table at ${where()}, where there is no memory`;
    if ((access & HVI_ACCESS_EXEC) !== 0)
      return `it jumped to ${where()}, where there is no memory`;
    const plan = this.#plan(vcpu);
    if (typeof plan === "string")
      return `${plan} accesses device memory at ${where()}, which is not emulated`;
    this.#execute(vcpu, plan);
    return undefined;
  }

  /** The instruction at RIP, decoded or from the cache; its text when it is not one of ours. */
  #plan(vcpu: Vcpu): Plan | string {
    const rip = vcpu.rip;
    const words = this.#fetch(vcpu, rip);
    if (words === 0) return "an instruction that cannot be read";
    const row = (rip >>> 0) % CACHE_ROWS;
    const cached = this.#cache[row];
    const view = this.#codeWords;
    const mode = codeMode(vcpu);
    if (cached !== undefined && cached.rip === rip && cached.mode === mode) {
      const w = cached.words;
      if (w[0] === view[0] && w[1] === view[1] && w[2] === view[2] && w[3] === view[3])
        return cached;
    }
    const instruction = decode(this.#code.subarray(0, words), 0, mode);
    if (instruction === undefined) return "an invalid instruction";
    const plan = makePlan(instruction);
    if (plan === undefined)
      return `${instruction.name.toUpperCase()} (${hex(instruction.bytes())})`;
    plan.rip = rip;
    plan.words = [view[0], view[1], view[2], view[3]];
    this.#cache[row] = plan;
    return plan;
  }

  readonly #codeWords = new Uint32Array(this.#code.buffer);

  /** Reads up to 15 bytes at RIP; how many there are. */
  #fetch(vcpu: Vcpu, rip: number): number {
    const mode = pagingModeOf(vcpu.cr0, vcpu.cr4, vcpu.efer);
    let memory = this.#memory;
    if (memory === undefined || memory.root !== vcpu.cr3 || memory.mode !== mode) {
      memory = new VirtualMemory(
        this.#physical,
        vcpu.cr3,
        mode,
        pagingFeaturesOf(vcpu.cr4, vcpu.efer),
      );
      this.#memory = memory;
    }
    const at = codeMode(vcpu) === 64 ? rip : rip + vcpu.segBase(HVI_CS);
    const code = this.#code;
    this.#codeWords.fill(0);
    let done = 0;
    while (done < 15) {
      const gpa = memory.gpaOf(asGva(at + done));
      if (gpa < 0) break;
      const count = Math.min(15 - done, 0x1000 - (gpa % 0x1000));
      for (let i = 0; i < count; i++) {
        const byte = this.#physical.read8(gpa + i);
        if (byte < 0) return done;
        code[done++] = byte;
      }
    }
    return done;
  }

  #read(gpa: number, size: number, vcpu: number): void {
    this.#low = this.#mmio.read(gpa, Math.min(size, 4), vcpu);
    this.#high = size === 8 ? this.#mmio.read(gpa + 4, 4, vcpu) : 0;
  }

  #write(gpa: number, size: number, low: number, high: number, vcpu: number): void {
    this.#mmio.write(gpa, Math.min(size, 4), low, vcpu);
    if (size === 8) this.#mmio.write(gpa + 4, 4, high, vcpu);
  }

  #execute(vcpu: Vcpu, plan: Plan): void {
    const gpa = vcpu.exitGpa;
    const { size } = plan;
    const index = vcpu.index;
    switch (plan.action) {
      case Action.Store:
        if (plan.register < 0) this.#write(gpa, size, plan.low, plan.high, index);
        else
          this.#write(
            gpa,
            size,
            vcpu.gprLo(plan.register) >>> plan.shift,
            vcpu.gprHi(plan.register),
            index,
          );
        break;
      case Action.Load:
        this.#read(gpa, size, index);
        if (plan.signExtend) this.#signExtend(size);
        setRegister(vcpu, plan, this.#low, this.#high);
        break;
      case Action.Exchange: {
        const low = vcpu.gprLo(plan.register) >>> plan.shift;
        const high = vcpu.gprHi(plan.register);
        this.#read(gpa, size, index);
        this.#write(gpa, size, low, high, index);
        setRegister(vcpu, plan, this.#low, this.#high);
        break;
      }
      case Action.Alu:
        this.#alu(vcpu, plan, gpa);
        break;
      case Action.Fill:
        this.#write(gpa, size, vcpu.gprLo(HVI_RAX), vcpu.gprHi(HVI_RAX), index);
        addToRegister(vcpu, HVI_RDI, (vcpu.rflags & DF) !== 0 ? -size : size, plan.addressSize);
        if (plan.rep && !addToRegister(vcpu, HVI_RCX, -1, plan.addressSize)) {
          vcpu.retry();
          return;
        }
        break;
    }
    // The exit is a fault without an instruction length, so SKIP is not for it: RIP is moved here.
    vcpu.rip = plan.rip + plan.length;
    vcpu.retry();
  }

  #signExtend(size: number): void {
    if (size < 4) this.#low = ((this.#low << (32 - 8 * size)) >> (32 - 8 * size)) >>> 0;
    if (size < 8) this.#high = (this.#low | 0) < 0 ? 0xffffffff : 0;
  }

  /** TEST, CMP, AND, OR, XOR with flags (SDM volume 2). Values are unsigned halves. */
  #alu(vcpu: Vcpu, plan: Plan, gpa: number): void {
    const { size } = plan;
    this.#read(gpa, size, vcpu.index);
    const memLow = this.#low;
    const memHigh = this.#high;
    const mask = size === 1 ? 0xff : size === 2 ? 0xffff : 0xffffffff;
    let otherLow = plan.low;
    let otherHigh = plan.high;
    if (plan.register >= 0) {
      otherLow = vcpu.gprLo(plan.register) >>> plan.shift;
      otherHigh = vcpu.gprHi(plan.register);
    }
    otherLow = (otherLow & mask) >>> 0;
    if (size !== 8) otherHigh = 0;
    const aLow = plan.toMemory ? memLow : otherLow;
    const aHigh = plan.toMemory ? memHigh : otherHigh;
    const bLow = plan.toMemory ? otherLow : memLow;
    const bHigh = plan.toMemory ? otherHigh : memHigh;
    let low: number;
    let high: number;
    let flags = 0;
    const top = size === 8 ? 0x80000000 : 1 << (8 * size - 1);
    switch (plan.alu) {
      case Alu.Cmp: {
        low = ((aLow - bLow) & mask) >>> 0;
        const borrow = aLow < bLow ? 1 : 0;
        high = size === 8 ? (aHigh - bHigh - borrow) >>> 0 : 0;
        const less = size === 8 ? aHigh < bHigh + borrow : borrow === 1;
        const [a, b, r] = size === 8 ? [aHigh, bHigh, high] : [aLow, bLow, low];
        flags =
          (less ? CF : 0) | (((a ^ b) & (a ^ r) & top) !== 0 ? OF : 0) | ((aLow ^ bLow ^ low) & AF);
        break;
      }
      case Alu.Or:
        low = (aLow | bLow) >>> 0;
        high = (aHigh | bHigh) >>> 0;
        break;
      case Alu.Xor:
        low = (aLow ^ bLow) >>> 0;
        high = (aHigh ^ bHigh) >>> 0;
        break;
      default:
        low = (aLow & bLow) >>> 0;
        high = (aHigh & bHigh) >>> 0;
    }
    if (low === 0 && high === 0) flags |= ZF;
    if (((size === 8 ? high : low) & top) !== 0) flags |= SF;
    if (evenParity(low & 0xff)) flags |= PF;
    vcpu.rflags = ((vcpu.rflags & ~STATUS) | flags) >>> 0;
    if (plan.alu === Alu.Cmp || plan.alu === Alu.Test) return;
    if (plan.toMemory) this.#write(gpa, size, low, high, vcpu.index);
    else setRegister(vcpu, plan, low, high);
  }
}

function evenParity(byte: number): boolean {
  let v = byte ^ (byte >> 4);
  v ^= v >> 2;
  v ^= v >> 1;
  return (v & 1) === 0;
}

/** Writes a register operand as the CPU does: 32-bit writes clear the upper half, smaller ones keep the rest. */
function setRegister(vcpu: Vcpu, plan: Plan, low: number, high: number): void {
  const register = plan.register;
  if (plan.registerSize === 8) vcpu.setGpr(register, low, high);
  else if (plan.registerSize === 4) vcpu.setGpr(register, low, 0);
  else {
    const mask = (plan.registerSize === 2 ? 0xffff : 0xff) << plan.shift;
    const value = (vcpu.gprLo(register) & ~mask) | ((low << plan.shift) & mask);
    vcpu.setGpr(register, value >>> 0, vcpu.gprHi(register));
  }
}

/** Fills in the register part of a plan; false when it is no general register. */
function useRegister(plan: Plan, number: number): boolean {
  const info = registerInfo(number);
  plan.register = info.index;
  plan.registerSize = info.size;
  plan.shift = info.high ? 8 : 0;
  return info.kind === "gpr";
}

function makePlan(instruction: Instruction): Plan | undefined {
  const { name, operands } = instruction;
  const plan: Plan = {
    action: Action.Store,
    alu: Alu.Test,
    length: instruction.length,
    size: 0,
    register: -1,
    registerSize: 0,
    shift: 0,
    low: 0,
    high: 0,
    toMemory: false,
    signExtend: false,
    rep: false,
    addressSize: instruction.addressWidth >> 3,
    words: [0, 0, 0, 0],
    rip: 0,
    mode: instruction.mode,
  };
  const first: Operand | undefined = operands[0];
  const second: Operand | undefined = operands[1];
  if (first === undefined) return undefined;
  if (name === "stosb" || name === "stosw" || name === "stosd" || name === "stosq") {
    plan.action = Action.Fill;
    plan.size = { stosb: 1, stosw: 2, stosd: 4, stosq: 8 }[name];
    plan.rep = instruction.rep || instruction.repne;
    return plan;
  }
  if (second === undefined) return undefined;
  plan.toMemory = first.isMemory;
  const memory = plan.toMemory ? first : second;
  const other = plan.toMemory ? second : first;
  if (!memory.isMemory) return undefined;
  plan.size = memory.size;
  if (plan.size > 8) return undefined;
  if (other.type === OPERAND_IMMEDIATE) {
    plan.low = other.lo >>> 0;
    plan.high = other.hi >>> 0;
  } else if (!useRegister(plan, other.register)) return undefined;
  switch (name) {
    case "mov":
      plan.action = plan.toMemory ? Action.Store : Action.Load;
      return plan;
    case "movzx":
      plan.action = Action.Load;
      return plan;
    case "movsx":
    case "movsxd":
      plan.action = Action.Load;
      plan.signExtend = true;
      return plan;
    case "xchg":
      plan.action = Action.Exchange;
      return plan;
    default: {
      const alu = ALU_NAMES[name];
      if (alu === undefined) return undefined;
      plan.action = Action.Alu;
      plan.alu = alu;
      return plan;
    }
  }
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(" ");
}
