// SPDX-License-Identifier: MIT
/**
 * Accesses to descriptor tables, the TSS and the stacks of far transfers and
 * events (SDM vol. 3, chapters 3, 5, 6 and 7; pseudo-code of vol. 2). They are
 * listed as if nothing faulted; what is seen to fault first ends the list.
 */
import { HVI_RSP, HVI_SEG_UNUSABLE, HVI_SS } from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import {
  ACCESS_IMPLICIT,
  ACCESS_READ,
  ACCESS_SYSTEM,
  ACCESS_WRITE,
  type AccessList,
} from "./access-list.ts";
import type { InsnContext } from "./context.ts";
import type { Instruction } from "./instruction.ts";
import { stackAddress } from "./operand.ts";
import { RFLAGS_VM } from "./registers.ts";
import { cpuMode, currentRing, stackWidth } from "./segments.ts";

const TWO32 = 4294967296;
const READ_TABLE = ACCESS_READ | ACCESS_IMPLICIT | ACCESS_SYSTEM;
const WRITE_TABLE = ACCESS_WRITE | ACCESS_IMPLICIT | ACCESS_SYSTEM;
const PUSH = ACCESS_WRITE | ACCESS_IMPLICIT;
const POP = ACCESS_READ | ACCESS_IMPLICIT;

const RFLAGS_IOPL = 3 << 12;
const RFLAGS_NT = 1 << 14;
const CR4_VME = 1 << 0;
const EFER_LMA = 1 << 10;
/** Bits of the upper half of a descriptor. */
const DESC_ACCESSED = 1 << 8;
const DESC_CONFORMING = 1 << 10;
const DESC_CODE = 1 << 11;
const DESC_S = 1 << 12;
const DESC_P = 1 << 15;
const DESC_DB = 1 << 22;
/** Types of system descriptors. */
const TYPE_TASK_GATE = 5;
const TYPE_CALL_GATE_16 = 4;
const TYPE_CALL_GATE = 12;

/** The descriptor read last: its halves. */
let descLo = 0;
let descHi = 0;
/** The stack that an inner level gets: offset, and what is added to it. */
let innerSp = 0;
let innerBase = 0;
/** What the offset wraps at; 0 for 64 bits. */
let innerMask = 0;
let innerFlags = 0;
/** Where the descriptor read last stands. */
let lastDescriptor = 0;

const isLong = (vcpu: Vcpu): boolean => (vcpu.efer & EFER_LMA) !== 0;
/** Where segments are selectors into tables at all. */
function hasDescriptors(vcpu: Vcpu): boolean {
  return (vcpu.cr0 & 1) !== 0 && (vcpu.rflags & RFLAGS_VM) === 0;
}
/** System structures stand at linear addresses that wrap at 4 GiB outside IA-32e mode. */
function wrapped(vcpu: Vcpu, gva: number): number {
  return isLong(vcpu) ? gva : gva >>> 0;
}
const typeOf = (hi: number): number => (hi >>> 8) & 0xf;
const dplOf = (hi: number): number => (hi >>> 13) & 3;

/**
 * Adds the read of a descriptor and takes its value. False when nothing more
 * can be said: the null selector, beyond the table's limit, absent.
 */
function readDescriptor(c: InsnContext, selector: number, out: AccessList): boolean {
  const { vcpu, memory } = c;
  if ((selector & ~3) === 0) return false;
  const local = (selector & 4) !== 0;
  if (local && (vcpu.ldtrAccess & HVI_SEG_UNUSABLE) !== 0) return false;
  const at = selector & ~7;
  if (at + 7 > (local ? vcpu.ldtrLimit : vcpu.gdtLimit)) return false;
  const gva = wrapped(vcpu, (local ? vcpu.ldtrBase : vcpu.gdtBase) + at);
  out.add(gva, 8, READ_TABLE);
  descLo = memory.read32(gva);
  descHi = memory.read32(gva + 4);
  if (descLo < 0 || descHi < 0) {
    out.complete = false;
    return false;
  }
  lastDescriptor = gva;
  return true;
}

/** The CPU sets the accessed bit of the descriptor read last when it is clear. */
function markAccessed(out: AccessList): void {
  if ((descHi & (DESC_S | DESC_ACCESSED)) === DESC_S) out.add(lastDescriptor + 5, 1, WRITE_TABLE);
}

/** A load of a segment register other than CS by MOV, POP, LDS... */
export function listSegmentLoad(c: InsnContext, selector: number, out: AccessList): void {
  if (!hasDescriptors(c.vcpu) || !readDescriptor(c, selector, out)) return;
  markAccessed(out);
}
/** LAR, LSL, VERR, VERW: look at a descriptor. */
export function listDescriptorLook(c: InsnContext, selector: number, out: AccessList): void {
  if (hasDescriptors(c.vcpu)) readDescriptor(c, selector, out);
}
/** LLDT and, with `busy`, LTR. Their descriptors have 16 bytes in IA-32e mode. */
export function listSystemLoad(
  c: InsnContext,
  selector: number,
  busy: boolean,
  out: AccessList,
): void {
  if (!hasDescriptors(c.vcpu) || (selector & 4) !== 0) return;
  if (!readDescriptor(c, selector, out)) return;
  if (isLong(c.vcpu)) out.add(lastDescriptor + 8, 8, READ_TABLE);
  if (busy) out.add(lastDescriptor + 5, 1, WRITE_TABLE);
}

// ---- stacks ------------------------------------------------------------------------------

/** `count` items of `size` bytes pushed on the current stack. */
export function listPushes(
  c: InsnContext,
  insn: Instruction,
  count: number,
  size: number,
  out: AccessList,
): void {
  for (let i = 1; i <= count; i++) {
    out.add(stackAddress(c.vcpu, insn.mode, -i * size), size, PUSH);
  }
}
/** `count` items read from `skip` bytes above the top of the stack on. */
function listPops(
  c: InsnContext,
  insn: Instruction,
  skip: number,
  count: number,
  size: number,
  out: AccessList,
): void {
  for (let i = 0; i < count; i++) {
    out.add(stackAddress(c.vcpu, insn.mode, skip + i * size), size, POP);
  }
}
/** Pushes on the stack that takeTss64(), takeTss() or takeCurrentStack() took. */
function listInnerPushes(vcpu: Vcpu, count: number, size: number, out: AccessList): void {
  for (let i = 1; i <= count; i++) {
    // The sum stays exact: outside IA-32e mode all of it is below 2^34.
    let offset = innerSp - i * size;
    if (innerMask !== 0) offset = ((offset % innerMask) + innerMask) % innerMask;
    out.add(wrapped(vcpu, innerBase + offset), size, innerFlags);
  }
}

/** Reads a stack pointer of the 64-bit TSS: RSP0..2 at 4, IST1..7 at 36. */
function takeTss64(c: InsnContext, offset: number, out: AccessList): boolean {
  const { vcpu, memory } = c;
  if (offset + 7 > vcpu.trLimit) return false;
  const gva = vcpu.trBase + offset;
  out.add(gva, 8, READ_TABLE);
  const value = memory.readI64(gva);
  if (Number.isNaN(value)) {
    out.complete = false;
    return false;
  }
  innerSp = value;
  innerBase = 0;
  innerMask = 0;
  innerFlags = PUSH | ACCESS_SYSTEM;
  return true;
}
/** Reads SS:SP of ring `cpl` from a 16- or 32-bit TSS, and the stack's descriptor. */
function takeTss(c: InsnContext, cpl: number, out: AccessList): boolean {
  const { vcpu, memory } = c;
  const wide = (vcpu.trAccess & 8) !== 0;
  const offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
  const n = wide ? 4 : 2;
  if (offset + n + 1 > vcpu.trLimit) return false;
  const gva = (vcpu.trBase + offset) >>> 0;
  out.add(gva, n, READ_TABLE);
  out.add(gva + n, 2, READ_TABLE);
  const sp = wide ? memory.read32(gva) : memory.read16(gva);
  const ss = memory.read16(gva + n);
  if (sp < 0 || ss < 0) {
    out.complete = false;
    return false;
  }
  if (!readDescriptor(c, ss, out)) return false;
  markAccessed(out);
  innerSp = sp;
  innerBase = ((descLo >>> 16) | ((descHi & 0xff) << 16) | (descHi & 0xff000000)) >>> 0;
  innerMask = (descHi & DESC_DB) !== 0 ? TWO32 : 0x10000;
  innerFlags = cpl < 3 ? PUSH | ACCESS_SYSTEM : PUSH;
  return true;
}
function takeCurrentStack(vcpu: Vcpu, long: boolean): void {
  innerSp = long ? vcpu.gpr(HVI_RSP) : vcpu.gprLo(HVI_RSP);
  innerBase = long ? 0 : vcpu.segBase(HVI_SS);
  innerMask = long ? 0 : stackWidth(vcpu, 32) === 32 ? TWO32 : 0x10000;
  innerFlags = PUSH;
}

// ---- far transfers ----------------------------------------------------------------------

/**
 * Far JMP and, with `call`, far CALL to a selector.
 * @param size bytes of the offset: what a CALL pushes twice
 */
export function listFarTransfer(
  c: InsnContext,
  insn: Instruction,
  selector: number,
  size: number,
  call: boolean,
  out: AccessList,
): void {
  const { vcpu } = c;
  if (hasDescriptors(vcpu)) {
    if (!readDescriptor(c, selector, out)) return;
    if ((descHi & DESC_S) === 0) {
      listGate(c, insn, call, out);
      return;
    }
    markAccessed(out);
  }
  if (call) listPushes(c, insn, 2, size, out);
}

/** Through the gate that was just read. A task switch is not followed. */
function listGate(c: InsnContext, insn: Instruction, call: boolean, out: AccessList): void {
  const { vcpu } = c;
  const long = isLong(vcpu);
  const type = typeOf(descHi);
  if (type !== TYPE_CALL_GATE && (long || type !== TYPE_CALL_GATE_16)) {
    if (!long && (type === TYPE_TASK_GATE || (type & 5) === 1)) out.complete = false;
    return;
  }
  if ((descHi & DESC_P) === 0) return;
  const size = long ? 8 : type === TYPE_CALL_GATE ? 4 : 2;
  const parameters = long ? 0 : descHi & 0x1f;
  const selector = descLo >>> 16;
  if (long) out.add(lastDescriptor + 8, 8, READ_TABLE);
  if (!readDescriptor(c, selector, out)) return;
  markAccessed(out);
  const cpl = currentRing(vcpu);
  const dpl = dplOf(descHi);
  if (!call) return;
  if ((descHi & DESC_CONFORMING) !== 0 || dpl >= cpl) {
    listPushes(c, insn, 2, size, out);
    return;
  }
  if (!(long ? takeTss64(c, 4 + 8 * dpl, out) : takeTss(c, dpl, out))) return;
  listPops(c, insn, 0, parameters, size, out);
  listInnerPushes(vcpu, 4 + parameters, size, out);
}

/** Reads the code segment and, to an outer ring, the stack that a return goes to. */
function listReturnSegments(
  c: InsnContext,
  cs: number,
  ss: number,
  loadsStack: boolean,
  out: AccessList,
): void {
  if (!readDescriptor(c, cs, out)) return;
  markAccessed(out);
  if (loadsStack && readDescriptor(c, ss, out)) markAccessed(out);
}

/** What stands at a stack slot, as a 16-bit selector; -1 when absent. */
function selectorAt(c: InsnContext, insn: Instruction, depth: number): number {
  return c.memory.read16(stackAddress(c.vcpu, insn.mode, depth));
}

/** Far RET. @param drop bytes of parameters that it removes */
export function listFarReturn(
  c: InsnContext,
  insn: Instruction,
  size: number,
  drop: number,
  out: AccessList,
): void {
  listPops(c, insn, 0, 2, size, out);
  if (!hasDescriptors(c.vcpu)) return;
  const cs = selectorAt(c, insn, size);
  if (cs < 0) {
    out.complete = false;
    return;
  }
  const outer = (cs & 3) > currentRing(c.vcpu);
  let ss = 0;
  if (outer) {
    listPops(c, insn, 2 * size + drop, 2, size, out);
    ss = selectorAt(c, insn, 3 * size + drop);
    if (ss < 0) out.complete = false;
  }
  listReturnSegments(c, cs, ss, outer && ss >= 0, out);
}

/** IRET of every size. A return to another task (NT) is not followed. */
export function listInterruptReturn(
  c: InsnContext,
  insn: Instruction,
  size: number,
  out: AccessList,
): void {
  const { vcpu, memory } = c;
  if (!hasDescriptors(vcpu)) {
    listPops(c, insn, 0, 3, size, out);
    return;
  }
  if ((vcpu.rflags & RFLAGS_NT) !== 0) {
    out.complete = isLong(vcpu);
    return;
  }
  listPops(c, insn, 0, 3, size, out);
  const cs = selectorAt(c, insn, size);
  // Only an IRETD outside IA-32e mode can return to virtual-8086 mode.
  const flags = size === 4 ? memory.read32(stackAddress(vcpu, insn.mode, 8)) : 0;
  if (cs < 0 || flags < 0) {
    out.complete = false;
    return;
  }
  const cpl = currentRing(vcpu);
  if (!isLong(vcpu) && (flags & RFLAGS_VM) !== 0 && cpl === 0) {
    listPops(c, insn, 12, 6, 4, out);
    return;
  }
  // In 64-bit mode SS:RSP is always popped.
  const loadsStack = insn.mode === 64 || (cs & 3) > cpl;
  let ss = 0;
  if (loadsStack) {
    listPops(c, insn, 3 * size, 2, size, out);
    ss = selectorAt(c, insn, 4 * size);
    if (ss < 0) out.complete = false;
  }
  listReturnSegments(c, cs, ss, loadsStack && ss >= 0, out);
}

// ---- events ------------------------------------------------------------------------------

/** How an event comes about. */
export interface EventKind {
  /** By INT n, INT3 or INTO: the gate's DPL is checked. */
  readonly software: boolean;
  /** An error code is pushed. */
  readonly errorCode: boolean;
}
export const SOFTWARE_EVENT: EventKind = { software: true, errorCode: false };
export const PLAIN_EVENT: EventKind = { software: false, errorCode: false };
export const EVENT_WITH_CODE: EventKind = { software: false, errorCode: true };

/**
 * Adds what the delivery of an event accesses: the IDT's entry, the code
 * segment's descriptor, the TSS and the frame on the stack that the handler
 * gets. Without allocating. A task gate is not followed.
 * @param vector 0..255
 */
export function listDelivery(
  c: InsnContext,
  vector: number,
  kind: EventKind,
  out: AccessList,
): number {
  const { vcpu } = c;
  const mode = cpuMode(vcpu);
  if (mode === "real") deliverReal(c, vector, out);
  else if (isLong(vcpu)) deliverLong(c, vector, kind, out);
  else deliverProtected(c, vector, kind, mode === "vm86", out);
  return out.length;
}

function deliverReal(c: InsnContext, vector: number, out: AccessList): void {
  const { vcpu } = c;
  if (vector * 4 + 3 > vcpu.idtLimit) return;
  out.add((vcpu.idtBase + vector * 4) >>> 0, 4, READ_TABLE);
  const sp = vcpu.gprLo(HVI_RSP) & 0xffff;
  for (let i = 1; i <= 3; i++) {
    out.add((vcpu.segBase(HVI_SS) + ((sp - 2 * i) & 0xffff)) >>> 0, 2, PUSH);
  }
}

function deliverLong(c: InsnContext, vector: number, kind: EventKind, out: AccessList): void {
  const { vcpu, memory } = c;
  if (vector * 16 + 15 > vcpu.idtLimit) return;
  const gate = vcpu.idtBase + vector * 16;
  out.add(gate, 16, READ_TABLE);
  const lo = memory.read32(gate);
  const hi = memory.read32(gate + 4);
  if (lo < 0 || hi < 0) {
    out.complete = false;
    return;
  }
  const cpl = vcpu.cpl;
  if ((typeOf(hi) | 1) !== 15 || (hi & DESC_S) !== 0 || (hi & DESC_P) === 0) return;
  if (kind.software && dplOf(hi) < cpl) return;
  if (!readDescriptor(c, lo >>> 16, out) || (descHi & DESC_CODE) === 0) return;
  markAccessed(out);
  const newCpl = (descHi & DESC_CONFORMING) !== 0 ? cpl : dplOf(descHi);
  const ist = hi & 7;
  if (ist !== 0) {
    if (!takeTss64(c, 36 + 8 * (ist - 1), out)) return;
  } else if (newCpl < cpl) {
    if (!takeTss64(c, 4 + 8 * newCpl, out)) return;
  } else {
    takeCurrentStack(vcpu, true);
  }
  innerSp = Math.floor(innerSp / 16) * 16;
  listInnerPushes(vcpu, kind.errorCode ? 6 : 5, 8, out);
}

function deliverProtected(
  c: InsnContext,
  vector: number,
  kind: EventKind,
  vm86: boolean,
  out: AccessList,
): void {
  const { vcpu, memory } = c;
  if (vm86 && kind.software) {
    // With VME the TSS says which vectors stay inside the task; without, IOPL 3 is needed.
    if ((vcpu.cr4 & CR4_VME) !== 0) out.complete = false;
    else if ((vcpu.rflags & RFLAGS_IOPL) !== RFLAGS_IOPL) return;
  }
  if (vector * 8 + 7 > vcpu.idtLimit) return;
  const gate = (vcpu.idtBase + vector * 8) >>> 0;
  out.add(gate, 8, READ_TABLE);
  const lo = memory.read32(gate);
  const hi = memory.read32(gate + 4);
  if (lo < 0 || hi < 0) {
    out.complete = false;
    return;
  }
  const cpl = currentRing(vcpu);
  const type = typeOf(hi);
  if ((hi & DESC_S) !== 0 || (hi & DESC_P) === 0) return;
  if (kind.software && dplOf(hi) < cpl) return;
  if (type === TYPE_TASK_GATE) {
    out.complete = false;
    return;
  }
  if ((type & 6) !== 6) return;
  const size = (type & 8) !== 0 ? 4 : 2;
  if (!readDescriptor(c, lo >>> 16, out) || (descHi & DESC_CODE) === 0) return;
  markAccessed(out);
  const newCpl = (descHi & DESC_CONFORMING) !== 0 ? cpl : dplOf(descHi);
  let count = kind.errorCode ? 4 : 3;
  if (newCpl < cpl) {
    if (!takeTss(c, newCpl, out)) return;
    count += vm86 ? 6 : 2;
  } else {
    takeCurrentStack(vcpu, false);
  }
  listInnerPushes(vcpu, count, size, out);
}

/** IN, OUT, INS, OUTS: the bit map in the TSS, where IOPL does not allow the port. */
export function listPortPermission(c: InsnContext, port: number, out: AccessList): void {
  const { vcpu, memory } = c;
  const mode = cpuMode(vcpu);
  const iopl = (vcpu.rflags & RFLAGS_IOPL) >>> 12;
  if (mode === "real" || (mode !== "vm86" && currentRing(vcpu) <= iopl)) return;
  if ((vcpu.trAccess & 8) === 0 || vcpu.trLimit < 0x67) return;
  const field = wrapped(vcpu, vcpu.trBase + 0x66);
  out.add(field, 2, READ_TABLE);
  const base = memory.read16(field);
  if (base < 0) {
    out.complete = false;
    return;
  }
  const at = base + (port >>> 3);
  if (at + 1 > vcpu.trLimit) return;
  out.add(wrapped(vcpu, vcpu.trBase + at), 2, READ_TABLE);
}
