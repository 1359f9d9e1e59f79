// SPDX-License-Identifier: MIT
import {
  EptRanges,
  HVI_ACCESS_EVENT,
  HVI_ACCESS_EXEC,
  HVI_ACCESS_GVA,
  HVI_ACCESS_READ,
  HVI_ACCESS_WALK,
  HVI_ACCESS_WRITE,
  HVI_EMULATE_RANGES,
  HVI_EVENT_EXCEPTION,
  HVI_R,
  HVI_RWX,
  HVI_W,
  HVI_X,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";
import { ALLOW, DENY, type HookAction, REPLIED, RETRY } from "../hook-action.ts";
import { PAGE_SIZE, pageOffset } from "../memory/address.ts";
import { ACCESS_READ, ACCESS_WRITE, type AccessList, linearRip } from "../x86/index.ts";

/**
 * Hooks on guest physical pages (the guide's "Guest physical memory hooks"): take a right away from
 * a page in the EPT and be called when the guest needs it. Several hooks may share a page; each can
 * be narrower than the page.
 *
 * A backend opens a whole page for the instruction that violated it, so all that the instruction does
 * to the page is put to the hooks at once: what it accesses is told by its operands, not by the exit.
 */

/**
 * Of a page, DENY sends a write to a scratch copy, lets a read see zeros in the hooked part, and raises
 * for a fetch the #PF of a page that is not executable.
 */
export { ALLOW, DENY, type HookAction, REPLIED, RETRY };

/** The access being handled. One record, used again for every exit: copy what you keep. */
export interface PageAccess {
  vcpu: Vcpu;
  /** First byte, guest physical; the access does not leave its page. */
  gpa: number;
  /** Bytes; to the end of the page when they cannot be known. */
  size: number;
  /** Linear address the guest used, NaN when there is none. */
  gva: number;
  /** HVI_ACCESS_* */
  access: number;
}

/** What the instruction behind an exit accesses. */
export interface ExitAccesses {
  /** Undefined when the instruction at RIP cannot be read or decoded. Overwritten by the next call. */
  accesses(vcpu: Vcpu): AccessList | undefined;
  /** Bytes of the instruction at RIP; 0 when it cannot be read or decoded. */
  length(vcpu: Vcpu): number;
  /** Guest physical address of a linear one in the vCPU's own tables; -1 when there is none. */
  gpaOf(vcpu: Vcpu, gva: number): number;
}

export type HookHandler = (access: PageAccess, hook: GpaHook) => HookAction;

export interface GpaHook {
  readonly gfn: number;
  /** HVI_R, HVI_W or HVI_X: one of them. */
  readonly right: number;
  /** Bytes of the page that are meant: from `start` up to, not including, `end`. */
  readonly start: number;
  readonly end: number;
  readonly priority: number;
  /** Whose hook it is, for statistics. */
  readonly owner: string;
  readonly handler: HookHandler;
  removed: boolean;
  /** How often it was called. */
  calls: number;
}

export interface GpaHookOptions {
  /** Part of the page, in bytes: [start, end). The whole page when left out. */
  start?: number;
  end?: number;
  /** Hooks of greater priority are called before the others of a page; 0 when left out. */
  priority?: number;
  owner?: string;
}

/** What reads of a page see instead of memory: bytes of a spare page, at the same place in it. */
export interface ShownPage {
  readonly spare: number;
  /** First byte and end of each range, ascending. */
  readonly ranges: Int32Array;
  /** Ranges that count; at most HVI_EMULATE_RANGES. */
  readonly count: number;
}

/** Work that waits for the outcome of an access. Objects, so that an exit makes no closures. */
export interface Continuation {
  /** Called once; the guest stands at the exit, or right after the instruction. */
  run(vcpu: Vcpu): void;
}

/** What became of the exits so far. They only grow. */
export interface GpaHookCounters {
  exits: number;
  reads: number;
  writes: number;
  fetches: number;
  allowed: number;
  denied: number;
  retried: number;
  replied: number;
  /** Exits whose instruction could not be decoded, or does not account for the access. */
  unexplained: number;
  /** Calls of HVI_EPT_SET. */
  commits: number;
}

/** One page with hooks. */
interface Page {
  readonly gfn: number;
  /** Replaced, not changed, when one is added: handlers may add while the list is walked. */
  hooks: readonly GpaHook[];
  /** Rights in the EPT since the last commit. */
  rights: number;
  changed: boolean;
  shown: ShownPage | undefined;
}

/** Pages that statistics name. */
const HOTTEST = 8;
/** Accesses that are not to an operand of the instruction at RIP. */
const NOT_AN_OPERAND = HVI_ACCESS_EXEC | HVI_ACCESS_WALK | HVI_ACCESS_EVENT;
const VECTOR_PF = 14;
const READ_WRITE = HVI_ACCESS_READ | HVI_ACCESS_WRITE;

export class GpaHooks {
  /** Of Statistics. */
  readonly name = "hooks";
  readonly counters: GpaHookCounters = {
    exits: 0,
    reads: 0,
    writes: 0,
    fetches: 0,
    allowed: 0,
    denied: 0,
    retried: 0,
    replied: 0,
    unexplained: 0,
    commits: 0,
  };
  readonly #vm: Vm;
  readonly #instructions: ExitAccesses;
  readonly #view: number;
  readonly #pages = new Map<number, Page>();
  readonly #ranges = new EptRanges();
  readonly #changed: Page[] = [];
  readonly #ifAllowed: Continuation[] = [];
  readonly #after: Continuation[] = [];
  /** The reply asks for an exit when the instruction is over. */
  #notify = false;
  #access: PageAccess | undefined;
  /** Parts of the page that reads of this exit are denied: first byte and end of each. */
  readonly #hidden = new Int32Array(2 * HVI_EMULATE_RANGES);
  #hiddenCount = 0;
  #real = false;
  /** A spare page of zeros, made when a read is denied for the first time. */
  #zeros = -1;

  /**
   * @param instructions asked what an exit's instruction accesses
   * @param view EPT view in which rights are taken away
   */
  constructor(vm: Vm, instructions: ExitAccesses, view = 0) {
    this.#vm = vm;
    this.#instructions = instructions;
    this.#view = view;
  }

  /** Pages with at least one hook. */
  get pageCount(): number {
    return this.#pages.size;
  }

  /** Hooks by owner: how many there are, and how often they were called. */
  owners(): Map<string, { hooks: number; calls: number }> {
    const out = new Map<string, { hooks: number; calls: number }>();
    for (const page of this.#pages.values()) {
      for (const hook of page.hooks) {
        if (hook.removed) continue;
        const sum = out.get(hook.owner) ?? { hooks: 0, calls: 0 };
        sum.hooks++;
        sum.calls += hook.calls;
        out.set(hook.owner, sum);
      }
    }
    return out;
  }

  /** Pages by how often their hooks were called, the most called first. */
  hottest(limit: number): { gfn: number; calls: number; owners: string[] }[] {
    return [...this.#pages.values()]
      .map((page) => ({
        gfn: page.gfn,
        calls: page.hooks.reduce((sum, hook) => sum + hook.calls, 0),
        owners: [...new Set(page.hooks.map((hook) => hook.owner))],
      }))
      .filter((page) => page.calls > 0)
      .sort((a, b) => b.calls - a.calls)
      .slice(0, limit);
  }

  /**
   * Hooks `right` on a page, or on a part of it. In effect after `commit`.
   * @throws RangeError for a range outside the page or more than one right.
   */
  add(gfn: number, right: number, handler: HookHandler, options: GpaHookOptions = {}): GpaHook {
    const { start = 0, end = PAGE_SIZE, priority = 0, owner = "" } = options;
    if (right !== HVI_R && right !== HVI_W && right !== HVI_X) {
      throw new RangeError(`a hook takes one right, not ${right}`);
    }
    if (!(start >= 0 && start < end && end <= PAGE_SIZE)) {
      throw new RangeError(`[${start}, ${end}) is not a part of a page`);
    }
    const hook: GpaHook = {
      gfn,
      right,
      start,
      end,
      priority,
      owner,
      handler,
      removed: false,
      calls: 0,
    };
    let page = this.#pages.get(gfn);
    if (page === undefined) {
      page = { gfn, hooks: [], rights: HVI_RWX, changed: false, shown: undefined };
      this.#pages.set(gfn, page);
    }
    const at = page.hooks.findIndex((other) => other.priority < priority);
    page.hooks = at < 0 ? [...page.hooks, hook] : page.hooks.toSpliced(at, 0, hook);
    this.#touch(page);
    return hook;
  }

  /** Removes a hook, also from inside its own handler. In effect after `commit`. */
  remove(hook: GpaHook): void {
    if (hook.removed) return;
    hook.removed = true;
    const page = this.#pages.get(hook.gfn);
    if (page !== undefined) this.#touch(page);
  }

  /** Brings the EPT in line with the hooks. Call it before the guest runs again. */
  commit(): void {
    const changed = this.#changed;
    if (changed.length === 0) return;
    if (changed.length > 1) changed.sort((a, b) => a.gfn - b.gfn);
    this.#ranges.clear();
    for (const page of changed) {
      page.changed = false;
      if (page.hooks.some((h) => h.removed)) page.hooks = page.hooks.filter((h) => !h.removed);
      const rights = rightsFor(page.hooks);
      if (page.hooks.length === 0) this.#pages.delete(page.gfn);
      if (rights === page.rights) continue;
      page.rights = rights;
      if (this.#ranges.isFull) this.#setRanges();
      this.#ranges.add(page.gfn, 1, rights);
    }
    changed.length = 0;
    if (this.#ranges.length > 0) this.#setRanges();
  }

  #setRanges(): void {
    this.counters.commits++;
    this.#vm.setRightsBatch(this.#view, this.#ranges);
    this.#ranges.clear();
  }

  /**
   * Handles an EPT violation on a hooked page and sets the reply.
   * @returns false when no page of ours was hit; the reply is untouched then.
   */
  dispatch(vcpu: Vcpu): boolean {
    const gpa = vcpu.exitGpa;
    const page = this.#pages.get(Math.floor(gpa / PAGE_SIZE));
    if (page === undefined) return false;
    const access = vcpu.exitAccess;
    const counters = this.counters;
    counters.exits++;
    if ((access & HVI_ACCESS_EXEC) !== 0) counters.fetches++;
    else if ((access & HVI_ACCESS_WRITE) !== 0) counters.writes++;
    else counters.reads++;
    this.#hiddenCount = 0;
    this.#real = false;
    this.#reply(vcpu, page, access, this.#decide(page, vcpu, gpa, access));
    return true;
  }

  /**
   * Lets reads of a hooked page see what `shown` says, and drops writes there. It takes no right away:
   * add hooks for what is to exit. undefined: memory again.
   */
  setShown(gfn: number, shown: ShownPage | undefined): void {
    const page = this.#pages.get(gfn);
    if (page !== undefined) page.shown = shown;
  }

  /** For handlers: the instruction at hand sees the page as it is. */
  showReal(): void {
    this.#real = true;
  }

  /** For handlers: `next` runs when all hooks have been asked and the access goes through. */
  ifAllowed(next: Continuation): void {
    this.#ifAllowed.push(next);
  }

  /**
   * For handlers: `next` runs when the instruction is over, and at any exit before that, so it must
   * do no harm when it comes early; the instruction may also have faulted.
   * @param exit whether the guest shall exit for it as soon as the instruction is over
   */
  afterInstruction(next: Continuation, exit = false): void {
    this.#after.push(next);
    if (exit) this.#notify = true;
  }

  /** Runs what waits for an instruction to be over. Call it at every exit, before anything else. */
  settle(vcpu: Vcpu): void {
    const after = this.#after;
    const count = after.length;
    if (count === 0) return;
    for (let i = 0; i < count; i++) (after[i] as Continuation).run(vcpu);
    // What ran too early has asked to run again.
    after.copyWithin(0, count);
    after.length -= count;
  }

  /** Of Statistics: counters, hooks and their calls by owner, the pages called most. */
  read(): Record<string, number | string> {
    const out: Record<string, number | string> = { pages: this.pageCount, ...this.counters };
    for (const [owner, sum] of this.owners()) {
      out[`owner ${owner || "?"}.hooks`] = sum.hooks;
      out[`owner ${owner || "?"}.calls`] = sum.calls;
    }
    for (const page of this.hottest(HOTTEST)) {
      const name = `page 0x${page.gfn.toString(16)}`;
      out[`${name}.calls`] = page.calls;
      out[`${name}.owners`] = page.owners.join(" ");
    }
    return out;
  }

  #decide(page: Page, vcpu: Vcpu, gpa: number, access: number): HookAction {
    const gva = (access & HVI_ACCESS_GVA) !== 0 ? vcpu.exitGva : Number.NaN;
    const list =
      (access & NOT_AN_OPERAND) !== 0 || Number.isNaN(gva)
        ? undefined
        : this.#instructions.accesses(vcpu);
    let action: HookAction = ALLOW;
    let explained = false;
    if (list !== undefined) {
      const other = access & ~READ_WRITE;
      // The exit tells where this linear page lies; others have to be translated.
      const linear = gva - (gpa % PAGE_SIZE);
      const frame = gpa - (gpa % PAGE_SIZE);
      for (let i = 0; i < list.length; i++) {
        const end = (list.gva[i] as number) + (list.size[i] as number);
        for (let at = list.gva[i] as number; at < end; ) {
          const base = at - pageOffset(at);
          const next = Math.min(end, base + PAGE_SIZE);
          const start = base === linear ? frame + (at - base) : this.#instructions.gpaOf(vcpu, at);
          if (start >= frame && start < frame + PAGE_SIZE) {
            if (gpa >= start && gpa < start + (next - at)) explained = true;
            const wish = this.#call(
              page,
              vcpu,
              start,
              next - at,
              at,
              other | ((list.flags[i] as number) & (ACCESS_READ | ACCESS_WRITE)),
            );
            if (wish > action) action = wish;
          }
          at = next;
        }
      }
    }
    if (explained && list?.complete === true) return action;
    // Frames of events, descriptor tables, fetches; or code that changed under the decoder.
    if ((access & NOT_AN_OPERAND) === 0) this.counters.unexplained++;
    const wish = this.#call(page, vcpu, gpa, vcpu.exitSize, gva, access);
    return wish > action ? wish : action;
  }

  /**
   * What the hooks want done with an access that the guest does not make itself: a device's, for it.
   * @param size bytes, 0 when unknown; a part beyond the page is not looked at
   * @param gva linear address, NaN when there is none
   * @param access HVI_ACCESS_*
   */
  ask(vcpu: Vcpu, gpa: number, size: number, gva: number, access: number): HookAction {
    const page = this.#pages.get(Math.floor(gpa / PAGE_SIZE));
    if (page === undefined) return ALLOW;
    let action = this.#call(page, vcpu, gpa, size, gva, access);
    // What reads do not see, writes do not reach.
    if (action === ALLOW && (access & HVI_ACCESS_WRITE) !== 0 && covers(page.shown, gpa, size)) {
      action = DENY;
    }
    this.#conclude(vcpu, action);
    return action;
  }

  #call(
    page: Page,
    vcpu: Vcpu,
    gpa: number,
    size: number,
    gva: number,
    access: number,
  ): HookAction {
    if (this.#access === undefined) this.#access = { vcpu, gpa, size, gva, access };
    const record = this.#access;
    const from = gpa % PAGE_SIZE;
    const room = PAGE_SIZE - from;
    const bytes = size === 0 || size > room ? room : size;
    const to = from + bytes;
    const hooks = page.hooks;
    let action: HookAction = ALLOW;
    for (let i = 0; i < hooks.length; i++) {
      const hook = hooks[i] as GpaHook;
      if (hook.removed || from >= hook.end || to <= hook.start) continue;
      if ((access & hook.right) === 0) continue;
      // Set each time: a handler may have asked about another access meanwhile.
      record.vcpu = vcpu;
      record.gpa = gpa;
      record.size = bytes;
      record.gva = gva;
      record.access = access;
      hook.calls++;
      const wish = hook.handler(record, hook);
      if (wish === DENY && hook.right === HVI_R) this.#hide(hook);
      if (wish > action) action = wish;
    }
    return action;
  }

  /** Runs or drops what waited for the decision. */
  #conclude(vcpu: Vcpu, action: HookAction): void {
    const waiting = this.#ifAllowed;
    if (waiting.length === 0) return;
    if (action === ALLOW) {
      for (let i = 0; i < waiting.length; i++) (waiting[i] as Continuation).run(vcpu);
    }
    waiting.length = 0;
  }

  #reply(vcpu: Vcpu, page: Page, access: number, action: HookAction): void {
    this.#conclude(vcpu, action);
    const notify = this.#notify;
    this.#notify = false;
    const counters = this.counters;
    if (action === ALLOW) counters.allowed++;
    else if (action === DENY) counters.denied++;
    else if (action === RETRY) counters.retried++;
    else counters.replied++;

    if (action === REPLIED) return;
    if (action === RETRY) vcpu.retry();
    else if ((access & HVI_ACCESS_EXEC) !== 0) {
      if (action === DENY) raiseNotExecutable(vcpu);
      else vcpu.resume(notify);
    } else if ((page.shown !== undefined && !this.#real) || this.#hiddenCount > 0) {
      this.#emulate(vcpu, page, action === ALLOW, notify);
    } else if (action === ALLOW) vcpu.resume(notify);
    else vcpu.scratch(notify);
  }

  /** The instruction sees the page with what is shown and what is hidden laid over. */
  #emulate(vcpu: Vcpu, page: Page, write: boolean, notify: boolean): void {
    const frame = page.gfn * PAGE_SIZE;
    const shown = this.#real ? undefined : page.shown;
    let fits = true;
    vcpu.beginEmulate();
    if (shown !== undefined) {
      // The backend may fetch from what it shows: the code that runs stays as it is.
      const rip = this.#instructions.gpaOf(vcpu, linearRip(vcpu)) - frame;
      const end = rip + this.#instructions.length(vcpu);
      for (let i = 0; i < shown.count; i++) {
        const start = shown.ranges[2 * i] as number;
        const stop = shown.ranges[2 * i + 1] as number;
        if (rip < stop && end > start) continue;
        fits = vcpu.emulateSpare(frame + start, stop - start, shown.spare) && fits;
      }
    }
    // After what is shown, which lies below it.
    for (let i = 0; i < this.#hiddenCount; i++) {
      const start = this.#hidden[2 * i] as number;
      fits =
        vcpu.emulateSpare(
          frame + start,
          (this.#hidden[2 * i + 1] as number) - start,
          this.#zeros,
        ) && fits;
    }
    // More than a reply holds: nothing of the page is seen, rather than what must not be.
    if (!fits) {
      vcpu.beginEmulate();
      vcpu.emulateSpare(frame, PAGE_SIZE, this.#zeroPage());
    }
    vcpu.endEmulate(write && fits, notify);
  }

  /** Notes that a part of the page is not to be read by the instruction at hand. */
  #hide(hook: GpaHook): void {
    const hidden = this.#hidden;
    this.#zeroPage();
    for (let i = 0; i < this.#hiddenCount; i++) {
      if (hidden[2 * i] === hook.start && hidden[2 * i + 1] === hook.end) return;
    }
    if (this.#hiddenCount === HVI_EMULATE_RANGES) {
      hidden[0] = 0;
      hidden[1] = PAGE_SIZE;
      this.#hiddenCount = 1;
      return;
    }
    hidden[2 * this.#hiddenCount] = hook.start;
    hidden[2 * this.#hiddenCount + 1] = hook.end;
    this.#hiddenCount++;
  }

  #zeroPage(): number {
    if (this.#zeros < 0) this.#zeros = this.#vm.addSpare(1);
    return this.#zeros;
  }

  #touch(page: Page): void {
    if (page.changed) return;
    page.changed = true;
    this.#changed.push(page);
  }
}

/** Whether any of [gpa, gpa + size), in one page, is shown otherwise. */
function covers(shown: ShownPage | undefined, gpa: number, size: number): boolean {
  const from = gpa % PAGE_SIZE;
  for (let i = 0; shown !== undefined && i < shown.count; i++) {
    const start = shown.ranges[2 * i] as number;
    const end = shown.ranges[2 * i + 1] as number;
    if (from < end && (size === 0 || from + size > start)) return true;
  }
  return false;
}

/** #PF as for code in a page that tables make not executable (SDM 4.7): P, I/D, and U/S by the ring. */
function raiseNotExecutable(vcpu: Vcpu): void {
  const code = 0x11 | (vcpu.cpl === 3 ? 4 : 0);
  vcpu.inject(HVI_EVENT_EXCEPTION, VECTOR_PF, code, vcpu.exitGva);
  vcpu.injectReply();
}

/** EPT rights of a page with these hooks. A page without R has no W either (SDM 28.3.3.1). */
function rightsFor(hooks: readonly GpaHook[]): number {
  let rights = HVI_RWX;
  for (const hook of hooks) {
    rights &= ~hook.right;
    if (hook.right === HVI_R) rights &= ~HVI_W;
  }
  return rights;
}
