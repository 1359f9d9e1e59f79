// SPDX-License-Identifier: MIT
/** Every memory access of an instruction, explicit and implicit. Nothing here allocates. */
import { HVI_DS, HVI_ES, HVI_FS, HVI_GS, HVI_RCX, HVI_RDX, HVI_SS } from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import {
  ACCESS_CONDITIONAL,
  ACCESS_IMPLICIT,
  ACCESS_READ,
  ACCESS_WRITE,
  type AccessList,
} from "./access-list.ts";
import type { InsnContext } from "./context.ts";
import {
  listDelivery,
  listDescriptorLook,
  listFarReturn,
  listFarTransfer,
  listInterruptReturn,
  listPortPermission,
  listPushes,
  listSegmentLoad,
  listSystemLoad,
  PLAIN_EVENT,
  SOFTWARE_EVENT,
} from "./descriptors.ts";
import {
  ACTION_ANY_READ,
  ACTION_ANY_WRITE,
  type Instruction,
  MEMORY_PLAIN,
  OPERAND_IMMEDIATE,
  OPERAND_POINTER,
  OPERAND_REGISTER,
  type Operand,
  TRAIT_FAR,
  VISIBLE_EXPLICIT,
} from "./instruction.ts";
import {
  accessSize,
  esAddress,
  frameAddress,
  linearAddress,
  raxAddress,
  stackAddress,
} from "./operand.ts";
import { RFLAGS_DF, RFLAGS_OF, registerInfo, registerLo } from "./registers.ts";
import { effectiveBase } from "./segments.ts";
import { isGatherOrScatter, listElements, listMasked, opmaskOf } from "./vector-accesses.ts";
import { hasUnmaskedException } from "./xsave.ts";
import { listXsave } from "./xsave-accesses.ts";
import { zydis } from "./zydis/module.ts";

const TWO32 = 4294967296;
const PUSH = ACCESS_WRITE | ACCESS_IMPLICIT;
const POP = ACCESS_READ | ACCESS_IMPLICIT;

/** What an instruction needs beyond its operands, by mnemonic. */
enum Kind {
  /** The memory operands are all there is. */
  Operands,
  /** No access, whatever the operands say: hints, invalidations, undefined instructions. */
  None,
  /** More than can be known here. */
  Unknown,
  String,
  PortString,
  Port,
  Push,
  PushAll,
  PopAll,
  Enter,
  /** MOV, POP: perhaps to a segment register. */
  ToSegment,
  FarPointer,
  DescriptorLook,
  LoadLdt,
  LoadTr,
  Branch,
  InterruptReturn,
  Interrupt,
  Xsave,
  Fxsave,
  FloatStore,
  Masked,
  Compare,
  CacheLine,
  ClearLine,
  Monitor,
  MonitorRegister,
  MoveLine,
  Expand,
}

const KINDS: readonly (readonly [RegExp, Kind])[] = [
  [/^(nop|lea|ud0|ud1|ud2|invlpg|invlpga|cldemote|endbr\d+)$/, Kind.None],
  [/^(prefetch|v(gather|scatter)pf|bnd(cl|cn|cu|mk)$)/, Kind.None],
  [/^(bndldx|bndstx|tileloadd|tileloaddt1|tilestored|rsm)$/, Kind.Unknown],
  // Shadow stacks are not offered to guests: their accesses are not followed.
  [/^(rstorssp|saveprevssp|setssbsy|clrssbsy|wruss[dq]|incssp[dq])$/, Kind.Unknown],
  [/^(movs|stos|lods|cmps|scas)[bwdq]$/, Kind.String],
  [/^(ins|outs)[bwd]$/, Kind.PortString],
  [/^(in|out)$/, Kind.Port],
  [/^push$/, Kind.Push],
  [/^pushad?$/, Kind.PushAll],
  [/^popad?$/, Kind.PopAll],
  [/^enter$/, Kind.Enter],
  [/^(mov|pop)$/, Kind.ToSegment],
  [/^l[defgs]s$/, Kind.FarPointer],
  [/^(lar|lsl|verr|verw)$/, Kind.DescriptorLook],
  [/^lldt$/, Kind.LoadLdt],
  [/^ltr$/, Kind.LoadTr],
  [/^(call|jmp|ret)$/, Kind.Branch],
  [/^iret[dq]?$/, Kind.InterruptReturn],
  [/^(int|int1|int3|into)$/, Kind.Interrupt],
  [/^(xsave|xrstor)/, Kind.Xsave],
  [/^fxsave/, Kind.Fxsave],
  [/^(fst|fstp|fist|fistp|fisttp|fbstp)$/, Kind.FloatStore],
  [/^(maskmovq|v?maskmovdqu|vp?maskmov(ps|pd|d|q))$/, Kind.Masked],
  [/^cmpxchg(8b|16b)?$/, Kind.Compare],
  [/^(clflush|clflushopt|clwb)$/, Kind.CacheLine],
  [/^clzero$/, Kind.ClearLine],
  [/^(monitor|monitorx)$/, Kind.Monitor],
  [/^umonitor$/, Kind.MonitorRegister],
  [/^(movdir64b|enqcmds?)$/, Kind.MoveLine],
  [/^vp?(compress|expand)/, Kind.Expand],
];

let kinds: Uint8Array | undefined;

function makeKinds(): Uint8Array {
  return Uint8Array.from(
    zydis().mnemonics,
    (name) => KINDS.find(([pattern]) => pattern.test(name))?.[1] ?? Kind.Operands,
  );
}

/**
 * Lists the memory accesses of an instruction that has not run yet, as if none
 * of them faulted: one iteration of a REP, none when its count is 0. Page walks
 * and the fetch of the instruction itself are not in the list.
 * @param out filled anew
 * @param rip of the instruction; the vCPU's own when left out
 * @returns how many there are; see also out.complete
 */
export function listAccesses(
  c: InsnContext,
  insn: Instruction,
  out: AccessList,
  rip: number = c.vcpu.rip,
): number {
  out.clear();
  kinds ??= makeKinds();
  list(c, insn, kinds[insn.mnemonic], out, rip);
  return out.length;
}

function list(c: InsnContext, insn: Instruction, kind: Kind, out: AccessList, rip: number): void {
  switch (kind) {
    case Kind.None:
      return;
    case Kind.Unknown:
      out.complete = false;
      return;
    case Kind.String:
      if (insn.category === "stringop" && isRepeatedZero(c.vcpu, insn)) return;
      break;
    case Kind.PortString:
      listPortPermission(c, c.vcpu.gprLo(HVI_RDX) & 0xffff, out);
      if (isRepeatedZero(c.vcpu, insn)) return;
      break;
    case Kind.Port:
      listPortPermission(c, portOf(c.vcpu, insn), out);
      return;
    case Kind.Push:
      if (!isSegment(insn.operands[0]) || insn.operandWidth !== 32) break;
      // Two bytes are written and the rest of the slot stays (SDM vol. 2, PUSH).
      out.add(stackAddress(c.vcpu, insn.mode, -4), 2, PUSH);
      return;
    case Kind.PushAll:
      listPushes(c, insn, 8, insn.operandWidth >>> 3, out);
      return;
    case Kind.PopAll:
      listPopAll(c, insn, out);
      return;
    case Kind.Enter:
      listEnter(c, insn, out);
      return;
    case Kind.ToSegment:
      listOperands(c, insn, out, rip);
      if (isSegment(insn.operands[0])) listLoadedSegment(c, insn, out, rip);
      return;
    case Kind.FarPointer:
      listOperands(c, insn, out, rip);
      withSelector(c, insn, insn.operands[1], out, rip, listSegmentLoad);
      return;
    case Kind.DescriptorLook:
      listOperands(c, insn, out, rip);
      withSelector(c, insn, insn.operands[insn.visibleCount - 1], out, rip, listDescriptorLook);
      return;
    case Kind.LoadLdt:
      listOperands(c, insn, out, rip);
      withSelector(c, insn, insn.operands[0], out, rip, loadLdt);
      return;
    case Kind.LoadTr:
      listOperands(c, insn, out, rip);
      withSelector(c, insn, insn.operands[0], out, rip, loadTr);
      return;
    case Kind.Branch:
      if ((insn.traits & TRAIT_FAR) === 0) break;
      listFarBranch(c, insn, out, rip);
      return;
    case Kind.InterruptReturn:
      listInterruptReturn(c, insn, insn.operandWidth >>> 3, out);
      return;
    case Kind.Interrupt:
      listInterrupt(c, insn, out);
      return;
    case Kind.Xsave:
      listXsave(c, insn, linearAddress(c.vcpu, insn, insn.operands[0], rip), out);
      return;
    case Kind.Fxsave:
      listFxsave(c, insn, out, rip);
      return;
    case Kind.FloatStore:
      listOperands(c, insn, out, rip);
      // An exception that is not masked keeps the value from being stored (SDM vol. 1, 8.5.1).
      if (out.length > 0 && hasUnmaskedException(c.xsave())) out.flags[0] |= ACCESS_CONDITIONAL;
      return;
    case Kind.Masked:
      listMasked(c, insn, out, rip);
      return;
    case Kind.Compare:
      // The bus sees a write also when the comparison fails: the old value (SDM vol. 2, CMPXCHG).
      if (insn.operands[0].isMemory) addOperand(c, insn, 0, ACCESS_READ | ACCESS_WRITE, out, rip);
      return;
    case Kind.CacheLine:
      // Checked as a load of the byte (SDM vol. 2, CLFLUSH).
      out.add(linearAddress(c.vcpu, insn, insn.operands[0], rip), 1, ACCESS_READ);
      return;
    case Kind.ClearLine:
      out.add(raxAddress(c.vcpu, insn, dataSegment(insn), ~63), 64, PUSH);
      return;
    case Kind.Monitor:
      out.add(raxAddress(c.vcpu, insn, dataSegment(insn), -1), 1, POP);
      return;
    case Kind.MonitorRegister:
      listMonitorRegister(c, insn, out);
      return;
    case Kind.MoveLine:
      addOperand(c, insn, 1, ACCESS_READ, out, rip);
      out.add(esAddress(c.vcpu, insn, registerInfo(insn.operands[0].register)), 64, ACCESS_WRITE);
      return;
    default:
      break;
  }
  listOperands(c, insn, out, rip);
}

// ---- operands -----------------------------------------------------------------------------

function addOperand(
  c: InsnContext,
  insn: Instruction,
  i: number,
  flags: number,
  out: AccessList,
  rip: number,
): void {
  const operand = insn.operands[i];
  out.add(linearAddress(c.vcpu, insn, operand, rip), operand.size, flags);
}

/** READ, WRITE, IMPLICIT of an operand. Conditions are the mnemonic's business. */
function flagsOf(operand: Operand): number {
  return (
    ((operand.actions & ACTION_ANY_READ) !== 0 ? ACCESS_READ : 0) |
    ((operand.actions & ACTION_ANY_WRITE) !== 0 ? ACCESS_WRITE : 0) |
    (operand.visibility === VISIBLE_EXPLICIT ? 0 : ACCESS_IMPLICIT)
  );
}

/** Reads first: an instruction has its sources before it stores. */
function listOperands(c: InsnContext, insn: Instruction, out: AccessList, rip: number): void {
  const operands = insn.operands;
  let stores = false;
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i];
    if (!operand.isMemory) continue;
    if ((operand.actions & ACTION_ANY_READ) !== 0) listOperand(c, insn, operand, out, rip);
    else stores = true;
  }
  if (!stores) return;
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i];
    if (operand.isMemory && (operand.actions & ACTION_ANY_READ) === 0) {
      listOperand(c, insn, operand, out, rip);
    }
  }
}

function listOperand(
  c: InsnContext,
  insn: Instruction,
  operand: Operand,
  out: AccessList,
  rip: number,
): void {
  if (isGatherOrScatter(operand)) {
    listElements(c, insn, operand, out, rip);
    return;
  }
  const size = accessSize(operand);
  const flags = flagsOf(operand);
  if (size === 0 || (flags & (ACCESS_READ | ACCESS_WRITE)) === 0) return;
  if (operand.memoryType !== MEMORY_PLAIN) {
    out.complete = false;
    return;
  }
  if (opmaskOf(insn) > 0) {
    listMasked(c, insn, out, rip);
    return;
  }
  out.add(linearAddress(c.vcpu, insn, operand, rip), size, flags);
}

function isSegment(operand: Operand | undefined): boolean {
  return (
    operand !== undefined &&
    operand.type === OPERAND_REGISTER &&
    registerInfo(operand.register).kind === "segment"
  );
}

/** The segment of an instruction whose memory operand is not written out: DS, or what a prefix says. */
function dataSegment(insn: Instruction): number {
  for (let i = 0; i < insn.length; i++) {
    switch (insn.byte(i)) {
      case 0x26:
        return HVI_ES;
      case 0x2e:
        return 1;
      case 0x36:
        return HVI_SS;
      case 0x3e:
        return HVI_DS;
      case 0x64:
        return HVI_FS;
      case 0x65:
        return HVI_GS;
      case 0x66:
      case 0x67:
      case 0xf2:
      case 0xf3:
      case 0xf0:
        continue;
      default:
        return HVI_DS;
    }
  }
  return HVI_DS;
}

function listMonitorRegister(c: InsnContext, insn: Instruction, out: AccessList): void {
  const register = registerInfo(insn.operands[0].register);
  const segment = dataSegment(insn);
  const base = effectiveBase(c.vcpu, segment, insn.mode);
  if (insn.mode === 64 && register.size === 8) {
    out.add(c.vcpu.gpr(register.index) + base, 1, POP);
    return;
  }
  const sum = registerLo(c.vcpu, register) + base;
  out.add(insn.mode === 64 ? sum : sum >>> 0, 1, POP);
}

// ---- selectors ----------------------------------------------------------------------------

type SelectorUse = (c: InsnContext, selector: number, out: AccessList) => void;
const loadLdt: SelectorUse = (c, selector, out) => listSystemLoad(c, selector, false, out);
const loadTr: SelectorUse = (c, selector, out) => listSystemLoad(c, selector, true, out);

/** Hands on the selector of an operand: a register, or the last 16 bits of memory. */
function withSelector(
  c: InsnContext,
  insn: Instruction,
  operand: Operand,
  out: AccessList,
  rip: number,
  use: SelectorUse,
): void {
  if (operand.type === OPERAND_REGISTER) {
    use(c, registerLo(c.vcpu, registerInfo(operand.register)) & 0xffff, out);
    return;
  }
  const at = linearAddress(c.vcpu, insn, operand, rip) + operand.size - 2;
  const selector = c.memory.read16(at);
  if (selector < 0) out.complete = false;
  else use(c, selector, out);
}

/** MOV Sreg and POP Sreg. */
function listLoadedSegment(c: InsnContext, insn: Instruction, out: AccessList, rip: number): void {
  if (insn.name !== "pop") {
    withSelector(c, insn, insn.operands[1], out, rip, listSegmentLoad);
    return;
  }
  const selector = c.memory.read16(stackAddress(c.vcpu, insn.mode, 0));
  if (selector < 0) out.complete = false;
  else listSegmentLoad(c, selector, out);
}

function listFarBranch(c: InsnContext, insn: Instruction, out: AccessList, rip: number): void {
  const size = insn.operandWidth >>> 3;
  const first = insn.operands[0];
  if (insn.name === "ret") {
    const drop = first.type === OPERAND_IMMEDIATE ? first.lo & 0xffff : 0;
    listFarReturn(c, insn, size, drop, out);
    return;
  }
  const call = insn.name === "call";
  if (first.type === OPERAND_POINTER) {
    listFarTransfer(c, insn, first.register & 0xffff, size, call, out);
    return;
  }
  addOperand(c, insn, 0, ACCESS_READ, out, rip);
  const selector = c.memory.read16(linearAddress(c.vcpu, insn, first, rip) + size);
  if (selector < 0) out.complete = false;
  else listFarTransfer(c, insn, selector, size, call, out);
}

function listInterrupt(c: InsnContext, insn: Instruction, out: AccessList): void {
  switch (insn.name) {
    case "int":
      listDelivery(c, insn.operands[0].lo & 0xff, SOFTWARE_EVENT, out);
      break;
    case "int3":
      listDelivery(c, 3, SOFTWARE_EVENT, out);
      break;
    case "into":
      if ((c.vcpu.rflags & RFLAGS_OF) !== 0) listDelivery(c, 4, SOFTWARE_EVENT, out);
      break;
    default:
      listDelivery(c, 1, PLAIN_EVENT, out);
  }
}

function portOf(vcpu: Vcpu, insn: Instruction): number {
  const operand = insn.operands[insn.name === "in" ? 1 : 0];
  return operand.type === OPERAND_IMMEDIATE ? operand.lo & 0xff : vcpu.gprLo(HVI_RDX) & 0xffff;
}

// ---- the stack ----------------------------------------------------------------------------

/** POPA: the slot of the stack pointer is stepped over, and may be read. */
function listPopAll(c: InsnContext, insn: Instruction, out: AccessList): void {
  const size = insn.operandWidth >>> 3;
  const slotOfSp = 3;
  for (let i = 0; i < 8; i++) {
    const flags = i === slotOfSp ? POP | ACCESS_CONDITIONAL : POP;
    out.add(stackAddress(c.vcpu, insn.mode, i * size), size, flags);
  }
}

/**
 * ENTER (SDM vol. 2A): RBP is pushed, then level - 1 pointers of the frame
 * outside are copied, then the new frame's. It tries a write below the locals.
 */
function listEnter(c: InsnContext, insn: Instruction, out: AccessList): void {
  const { vcpu } = c;
  const size = insn.operandWidth >>> 3;
  const locals = insn.operands[0].lo & 0xffff;
  const level = insn.operands[1].lo & 0x1f;
  let depth = -size;
  out.add(stackAddress(vcpu, insn.mode, depth), size, PUSH);
  for (let i = 1; i < level; i++) {
    out.add(frameAddress(vcpu, insn.mode, -i * size), size, POP);
    depth -= size;
    out.add(stackAddress(vcpu, insn.mode, depth), size, PUSH);
  }
  if (level > 0) {
    depth -= size;
    out.add(stackAddress(vcpu, insn.mode, depth), size, PUSH);
  }
  if (locals !== 0) {
    out.add(stackAddress(vcpu, insn.mode, depth - locals), size, PUSH | ACCESS_CONDITIONAL);
  }
}

// ---- FXSAVE -------------------------------------------------------------------------------

/** FXSAVE (SDM vol. 1, 10.5.1): eight XMM registers outside 64-bit mode; its end is software's. */
function listFxsave(c: InsnContext, insn: Instruction, out: AccessList, rip: number): void {
  const at = linearAddress(c.vcpu, insn, insn.operands[0], rip);
  const used = insn.mode === 64 ? 416 : 288;
  out.add(at, used, ACCESS_WRITE);
  out.add(at + used, 512 - used, ACCESS_WRITE | ACCESS_CONDITIONAL);
}

// ---- strings ------------------------------------------------------------------------------

const isRepeated = (insn: Instruction): boolean => insn.rep || insn.repne;

/** A repeated instruction whose count is 0. */
export function isRepeatedZero(vcpu: Vcpu, insn: Instruction): boolean {
  return isRepeated(insn) && repeatCount(vcpu, insn) === 0;
}

/** Iterations of a string instruction: RCX, ECX or CX by the address size; 1 without REP. */
export function repeatCount(vcpu: Vcpu, insn: Instruction): number {
  if (!isRepeated(insn)) return 1;
  const lo = vcpu.gprLo(HVI_RCX);
  if (insn.addressWidth === 16) return lo & 0xffff;
  return insn.addressWidth === 32 ? lo : vcpu.gprHi(HVI_RCX) * TWO32 + lo;
}

/**
 * The accesses of all iterations that a string instruction has still to do,
 * each side as one range (two, where it wraps around its segment); for any
 * other instruction the same as listAccesses(). CMPS and SCAS may end earlier:
 * theirs are conditional.
 */
export function listWholeRep(
  c: InsnContext,
  insn: Instruction,
  out: AccessList,
  rip: number = c.vcpu.rip,
): number {
  const { vcpu } = c;
  const count = repeatCount(vcpu, insn);
  const isString = insn.category === "stringop" || insn.category === "iostringop";
  listAccesses(c, insn, out, rip);
  if (!isString || count <= 1) return out.length;
  // The elements at hand come last; in front of them stands the port's permission.
  let first = out.length;
  for (let i = 0; i < insn.operands.length; i++) if (insn.operands[i].isMemory) first--;
  out.length = first;
  for (let i = 0; i < insn.operands.length; i++) {
    const operand = insn.operands[i];
    if (operand.isMemory && operand.reads) addRange(vcpu, insn, operand, count, out);
  }
  for (let i = 0; i < insn.operands.length; i++) {
    const operand = insn.operands[i];
    if (operand.isMemory && !operand.reads) addRange(vcpu, insn, operand, count, out);
  }
  return out.length;
}

function addRange(
  vcpu: Vcpu,
  insn: Instruction,
  operand: Operand,
  count: number,
  out: AccessList,
): void {
  const size = operand.size;
  const ends = insn.name.startsWith("cmps") || insn.name.startsWith("scas");
  const flags = flagsOf(operand) | (ends ? ACCESS_CONDITIONAL : 0);
  const down = (vcpu.rflags & RFLAGS_DF) !== 0;
  const here = linearAddress(vcpu, insn, operand);
  const bytes = count * size;
  if (insn.addressWidth === 64) {
    out.add(down ? here - bytes + size : here, bytes, flags);
    return;
  }
  // Offsets wrap at the address size: what goes beyond goes on at the other end.
  const space = insn.addressWidth === 32 ? TWO32 : 0x10000;
  const base = effectiveBase(vcpu, registerInfo(operand.segment).index, insn.mode);
  const lo = vcpu.gprLo(registerInfo(operand.base).index);
  if (bytes >= space) {
    out.add(toSpace(insn, base), space, flags);
    return;
  }
  let start = (space === TWO32 ? lo : lo & 0xffff) + (down ? size - bytes : 0);
  if (start < 0) start += space;
  const room = space - start;
  out.add(toSpace(insn, base + start), Math.min(bytes, room), flags);
  if (bytes > room) out.add(toSpace(insn, base), bytes - room, flags);
}

/** Linear addresses have 32 bits outside 64-bit mode. */
function toSpace(insn: Instruction, gva: number): number {
  return insn.mode === 64 ? gva : gva >>> 0;
}
