// SPDX-License-Identifier: MIT
import {
  HVI_DTR_LLDT,
  HVI_DTR_LTR,
  HVI_DTR_SLDT,
  HVI_DTR_STR,
  HVI_EXIT_CR_WRITE,
  HVI_EXIT_DTR,
  HVI_EXIT_MSR_READ,
  HVI_EXIT_MSR_WRITE,
  HVI_EXIT_XSETBV,
  HVI_INTERCEPT_CR0_WRITE,
  HVI_INTERCEPT_CR3_WRITE,
  HVI_INTERCEPT_CR4_WRITE,
  HVI_INTERCEPT_CR8_WRITE,
  HVI_INTERCEPT_DTR,
  HVI_INTERCEPT_MSR_READ,
  HVI_INTERCEPT_MSR_WRITE,
  HVI_INTERCEPT_XSETBV,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";
import { ALLOW, DENY, type HookAction, RETRY } from "../hook-action.ts";

/**
 * Hooks on registers (the guide's "Setting register hooks"): writes of control registers, reads and
 * writes of MSRs, loads and stores of descriptor-table registers, writes of extended control
 * registers. A hook is asked before the instruction has any effect.
 *
 * Intercepts belong to the virtual machine and have other users, such as the devices. The first hook
 * of a register adds what it needs to what was set; the last one to go leaves what was there before.
 */

/** The access being handled. One record, used again for every exit: copy what you keep. */
export interface RegisterAccess {
  vcpu: Vcpu;
  /** HVI_EXIT_CR_WRITE, _MSR_READ, _MSR_WRITE, _DTR or _XSETBV. */
  kind: number;
  /** Control register, MSR, HVI_DTR_* bit or XCR. */
  number: number;
  /**
   * Halves of the value that will be written, as hooks before this one left it; 0 for MSR reads. Of
   * LLDT, LTR, SLDT and STR it is the selector; LIDT and LGDT have theirs in memory at `gva`.
   */
  lo: number;
  hi: number;
  /** Halves of the value before; 0 for MSR reads and descriptor tables. */
  oldLo: number;
  oldHi: number;
  /** Linear address of a descriptor-table instruction's memory operand, signed; else NaN. */
  gva: number;
}

/**
 * Answers ALLOW, DENY (the instruction is skipped: nothing is written, loaded, stored or read),
 * RETRY or REPLIED. To let another value be written, call `vcpu.setExitValue(lo, hi)` and answer
 * ALLOW; descriptor-table instructions and MSR reads have no such value.
 */
export type RegisterHandler = (access: RegisterAccess, hook: RegisterHook) => HookAction;

export interface RegisterHook {
  /** HVI_INTERCEPT_* */
  readonly intercept: number;
  /** MSR; 0 for others. */
  readonly index: number;
  /** Of control registers: bits whose change is meant. Of descriptor tables: HVI_DTR_* bits. */
  readonly maskLo: number;
  readonly maskHi: number;
  readonly priority: number;
  /** Whose hook it is, for statistics. */
  readonly owner: string;
  readonly handler: RegisterHandler;
  removed: boolean;
  /** How often it was called. */
  calls: number;
}

export interface RegisterHookOptions {
  /** Hooks of greater priority are called before the others of a register; 0 when left out. */
  priority?: number;
  owner?: string;
}

export interface CrHookOptions extends RegisterHookOptions {
  /**
   * Bits whose change is meant, an unsigned integer below 2^53. Left out: every change of CR0 and
   * CR4, and every write of CR3 and CR8, also of the value that they have.
   */
  mask?: number;
}

export interface MsrHookOptions extends RegisterHookOptions {
  /** Reads are hooked instead of writes. */
  read?: boolean;
}

/** What became of the exits so far. They only grow. */
export interface RegisterHookCounters {
  exits: number;
  allowed: number;
  denied: number;
  retried: number;
  replied: number;
}

/** One intercept with hooks. */
interface Register {
  readonly intercept: number;
  readonly index: number;
  /** Mask that others had set when the first hook came. */
  readonly before: number;
  /** Replaced, not changed: handlers may add and remove while the list is walked. */
  hooks: readonly RegisterHook[];
}

const TWO32 = 4294967296;
const ALL_BITS = 0xffffffff;
const CR_INTERCEPTS = new Map([
  [0, HVI_INTERCEPT_CR0_WRITE],
  [3, HVI_INTERCEPT_CR3_WRITE],
  [4, HVI_INTERCEPT_CR4_WRITE],
  [8, HVI_INTERCEPT_CR8_WRITE],
]);
const ALL_DTR = 0xff;
/** Descriptor-table instructions that can have a register as their operand. */
const DTR_SELECTORS = HVI_DTR_LLDT | HVI_DTR_LTR | HVI_DTR_SLDT | HVI_DTR_STR;

export class RegisterHooks {
  /** Of Statistics. */
  readonly name = "registers";
  readonly counters: RegisterHookCounters = {
    exits: 0,
    allowed: 0,
    denied: 0,
    retried: 0,
    replied: 0,
  };
  readonly #vm: Vm;
  /** By intercept * 2^32 + index. */
  readonly #registers = new Map<number, Register>();
  #access: RegisterAccess | undefined;

  constructor(vm: Vm) {
    this.#vm = vm;
  }

  /** Hooks that are set now. */
  get count(): number {
    let count = 0;
    for (const register of this.#registers.values()) count += register.hooks.length;
    return count;
  }

  /**
   * Hooks writes of a control register, by MOV to CR, CLTS or LMSW.
   * @param register 0, 3, 4 or 8
   * @throws RangeError for another register or mask
   */
  addCr(register: number, handler: RegisterHandler, options: CrHookOptions = {}): RegisterHook {
    const intercept = CR_INTERCEPTS.get(register);
    if (intercept === undefined) throw new RangeError(`CR${register} cannot be hooked`);
    const { mask } = options;
    if (mask !== undefined && !(Number.isSafeInteger(mask) && mask > 0)) {
      throw new RangeError(`${mask} is no mask of bits`);
    }
    // A mask of none stands for "also when nothing changes", which only CR3 and CR8 exit for.
    const all = register === 0 || register === 4 ? ALL_BITS : 0;
    return this.#add(intercept, 0, mask ?? all, handler, options);
  }

  /**
   * Hooks WRMSR, or RDMSR, of one register.
   * @throws RangeError for what is no 32-bit number, HviError when the backend cannot intercept this one (SDM 24.6.9: 0 to 1fffh and
   * c0000000h to c0001fffh can be)
   */
  addMsr(msr: number, handler: RegisterHandler, options: MsrHookOptions = {}): RegisterHook {
    if (msr !== msr >>> 0) throw new RangeError(`${msr} is no number of an MSR`);
    const intercept = options.read === true ? HVI_INTERCEPT_MSR_READ : HVI_INTERCEPT_MSR_WRITE;
    return this.#add(intercept, msr, 0, handler, options);
  }

  /**
   * Hooks loads and stores of IDTR, GDTR, LDTR and TR.
   * @param mask HVI_DTR_* bits
   * @throws RangeError for no or unknown bits, HviError where the backend lacks HVI_CAP_DTR_EXIT
   */
  addDtr(mask: number, handler: RegisterHandler, options: RegisterHookOptions = {}): RegisterHook {
    if (!(Number.isInteger(mask) && mask > 0 && mask <= ALL_DTR)) {
      throw new RangeError(`${mask} are no HVI_DTR_* bits`);
    }
    return this.#add(HVI_INTERCEPT_DTR, 0, mask, handler, options);
  }

  /** Hooks XSETBV. The exit comes before the CPU has checked register and value. */
  addXcr(handler: RegisterHandler, options: RegisterHookOptions = {}): RegisterHook {
    return this.#add(HVI_INTERCEPT_XSETBV, 0, 0, handler, options);
  }

  /** Removes a hook, also from inside a handler: it is not called any more. Harmless twice. */
  remove(hook: RegisterHook): void {
    if (hook.removed) return;
    hook.removed = true;
    const register = this.#registers.get(hook.intercept * TWO32 + hook.index);
    if (register === undefined) return;
    register.hooks = register.hooks.filter((other) => other !== hook);
    this.#program(register);
  }

  /**
   * Handles an exit of a hooked register and sets the reply.
   * @returns false when the exit is not (only) for hooks: none is on this register, or they allow
   * the access and somebody else has it intercepted too. The reply is untouched then.
   */
  dispatch(vcpu: Vcpu): boolean {
    const kind = vcpu.exitReason;
    const number = vcpu.exitNumber;
    const register = this.#registers.get(keyOf(kind, number));
    if (register === undefined) return false;
    this.counters.exits++;
    return this.#reply(register, vcpu, this.#call(register, vcpu, kind, number));
  }

  #call(register: Register, vcpu: Vcpu, kind: number, number: number): HookAction {
    const firstLo = vcpu.exitValueLo;
    const firstHi = vcpu.exitValueHi;
    const reading = kind === HVI_EXIT_MSR_READ;
    const tables = kind === HVI_EXIT_DTR;
    const control = kind === HVI_EXIT_CR_WRITE;
    const oldLo = reading || tables ? 0 : vcpu.exitOldLo;
    const oldHi = reading || tables ? 0 : vcpu.exitOldHi;
    const gva = tables ? operandOf(vcpu, number) : Number.NaN;
    if (this.#access === undefined) {
      this.#access = { vcpu, kind, number, lo: 0, hi: 0, oldLo, oldHi, gva };
    }
    const access = this.#access;
    const hooks = register.hooks;
    let action: HookAction = ALLOW;
    for (let i = 0; i < hooks.length; i++) {
      const hook = hooks[i] as RegisterHook;
      if (hook.removed) continue;
      const lo = reading ? 0 : vcpu.exitValueLo;
      const hi = reading ? 0 : vcpu.exitValueHi;
      if (control) {
        // What the guest would change, and what a hook before this one made of it.
        const changedLo = (firstLo ^ oldLo) | (lo ^ oldLo);
        const changedHi = (firstHi ^ oldHi) | (hi ^ oldHi);
        const masked = (changedLo & hook.maskLo) | (changedHi & hook.maskHi);
        if (masked === 0 && (hook.maskLo | hook.maskHi) !== 0) continue;
      } else if (tables && (number & hook.maskLo) === 0) continue;
      // Set each time: a handler may have written to the record.
      access.vcpu = vcpu;
      access.kind = kind;
      access.number = number;
      access.lo = lo;
      access.hi = hi;
      access.oldLo = oldLo;
      access.oldHi = oldHi;
      access.gva = gva;
      hook.calls++;
      const wish = hook.handler(access, hook);
      if (wish > action) action = wish;
    }
    return action;
  }

  #reply(register: Register, vcpu: Vcpu, action: HookAction): boolean {
    const counters = this.counters;
    if (action === ALLOW) {
      counters.allowed++;
      if (othersWant(register, vcpu)) return false;
      vcpu.resume();
    } else if (action === DENY) {
      counters.denied++;
      vcpu.skip();
    } else if (action === RETRY) {
      counters.retried++;
      vcpu.retry();
    } else counters.replied++;
    return true;
  }

  #add(
    intercept: number,
    index: number,
    mask: number,
    handler: RegisterHandler,
    options: RegisterHookOptions,
  ): RegisterHook {
    const { priority = 0, owner = "" } = options;
    const hook: RegisterHook = {
      intercept,
      index,
      maskLo: mask >>> 0,
      maskHi: Math.floor(mask / TWO32),
      priority,
      owner,
      handler,
      removed: false,
      calls: 0,
    };
    const key = intercept * TWO32 + index;
    const known = this.#registers.get(key);
    const before = this.#vm.interceptMask(intercept, index);
    const register = known ?? { intercept, index, before, hooks: [] };
    const at = register.hooks.findIndex((other) => other.priority < priority);
    const last = register.hooks;
    register.hooks = at < 0 ? [...last, hook] : last.toSpliced(at, 0, hook);
    try {
      this.#set(register);
    } catch (error) {
      register.hooks = last;
      throw error;
    }
    this.#registers.set(key, register);
    return hook;
  }

  /** Sets the intercept to what the hooks and others need; a register without hooks is given up. */
  #program(register: Register): void {
    if (register.hooks.length === 0) {
      this.#registers.delete(register.intercept * TWO32 + register.index);
    }
    this.#set(register);
  }

  #set(register: Register): void {
    const { intercept, index } = register;
    const mask = maskOf(register);
    if (mask !== this.#vm.interceptMask(intercept, index)) {
      this.#vm.intercept(intercept, index, mask);
    }
  }

  /** Of Statistics: counters; hooks, their calls and owners by register. */
  read(): Record<string, number | string> {
    const out: Record<string, number | string> = { hooks: this.count, ...this.counters };
    for (const register of this.#registers.values()) {
      const calls = register.hooks.reduce((sum, hook) => sum + hook.calls, 0);
      const name = nameOf(register);
      out[`${name}.hooks`] = register.hooks.length;
      out[`${name}.calls`] = calls;
      out[`${name}.owners`] = [...new Set(register.hooks.map((hook) => hook.owner || "?"))].join(
        " ",
      );
    }
    return out;
  }
}

/** Key of the register that an exit is about. */
function keyOf(kind: number, number: number): number {
  switch (kind) {
    case HVI_EXIT_MSR_WRITE:
      return HVI_INTERCEPT_MSR_WRITE * TWO32 + number;
    case HVI_EXIT_MSR_READ:
      return HVI_INTERCEPT_MSR_READ * TWO32 + number;
    case HVI_EXIT_CR_WRITE:
      return (CR_INTERCEPTS.get(number) ?? 0) * TWO32;
    case HVI_EXIT_DTR:
      return HVI_INTERCEPT_DTR * TWO32;
    case HVI_EXIT_XSETBV:
      return HVI_INTERCEPT_XSETBV * TWO32;
    default:
      return -1;
  }
}

/** Linear address of a descriptor-table instruction's memory operand; NaN when it has none. */
function operandOf(vcpu: Vcpu, number: number): number {
  const gva = vcpu.exitGva;
  return gva === -1 && (number & DTR_SELECTORS) !== 0 ? Number.NaN : gva;
}

function isChange(intercept: number): boolean {
  return intercept === HVI_INTERCEPT_CR0_WRITE || intercept === HVI_INTERCEPT_CR4_WRITE;
}

/** The mask of the interface, what others had set included. */
function maskOf(register: Register): number {
  const { intercept, before, hooks } = register;
  if (hooks.length === 0) return before;
  const masks = isChange(intercept) || intercept === HVI_INTERCEPT_DTR;
  let lo = before >>> 0;
  let hi = Math.floor(before / TWO32);
  for (const hook of hooks) {
    lo |= masks ? hook.maskLo : 1;
    hi |= masks ? hook.maskHi : 0;
  }
  return (hi >>> 0) * TWO32 + (lo >>> 0);
}

/** Whether the exit would have come without hooks too. */
function othersWant(register: Register, vcpu: Vcpu): boolean {
  const { intercept, before } = register;
  if (before === 0) return false;
  if (intercept === HVI_INTERCEPT_DTR) return (vcpu.exitNumber & before) !== 0;
  if (!isChange(intercept)) return true;
  const lo = (vcpu.exitValueLo ^ vcpu.exitOldLo) & before;
  const hi = (vcpu.exitValueHi ^ vcpu.exitOldHi) & Math.floor(before / TWO32);
  return (lo | hi) !== 0;
}

function nameOf(register: Register): string {
  const index = `0x${register.index.toString(16)}`;
  switch (register.intercept) {
    case HVI_INTERCEPT_MSR_READ:
      return `MSR ${index} read`;
    case HVI_INTERCEPT_MSR_WRITE:
      return `MSR ${index} write`;
    case HVI_INTERCEPT_DTR:
      return "descriptor tables";
    case HVI_INTERCEPT_XSETBV:
      return "XCR";
    default:
      for (const [number, intercept] of CR_INTERCEPTS) {
        if (intercept === register.intercept) return `CR${number}`;
      }
      return "?";
  }
}
