// SPDX-License-Identifier: MIT
import {
  EptRanges,
  HVI_ACCESS_EVENT,
  HVI_ACCESS_EXEC,
  HVI_ACCESS_GVA,
  HVI_ACCESS_WALK,
  HVI_R,
  HVI_RWX,
  HVI_W,
  HVI_X,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";

/**
 * Hooks on guest physical pages (the guide's "Guest physical memory hooks"): take a right away from
 * a page in the EPT and be called when the guest needs it. Several hooks may share a page; each can
 * be narrower than the page.
 */

/** What a hook wants done with an access. The numerically greatest of all hooks called wins. */
export const ALLOW = 0;
/** The access has no effect: a write goes to a scratch copy. Only for writes. */
export const DENY = 1;
/** The instruction runs again under the rights that hold then. */
export const RETRY = 2;
/** The hook has set the reply itself (emulated bytes, a step, an injected event). */
export const REPLIED = 3;
export type HookAction = typeof ALLOW | typeof DENY | typeof RETRY | typeof REPLIED;

/** The access being handled. One record, used again for every exit: copy what you keep. */
export interface PageAccess {
  vcpu: Vcpu;
  /** First byte, guest physical; the access does not leave its page. */
  gpa: number;
  /** Bytes; to the end of the page when the backend does not know the size. */
  size: number;
  /** Linear address the guest used, NaN when there is none. */
  gva: number;
  /** HVI_ACCESS_* */
  access: number;
}

/** Bytes that the instruction at RIP accesses from a linear address on; 0 when it cannot tell. */
export type AccessSizes = (vcpu: Vcpu, gva: number) => number;

export type HookHandler = (access: PageAccess, hook: GpaHook) => HookAction;

export interface GpaHook {
  readonly gfn: number;
  /** HVI_R, HVI_W or HVI_X: one of them. */
  readonly right: number;
  /** Bytes of the page that are meant: from `start` up to, not including, `end`. */
  readonly start: number;
  readonly end: number;
  readonly handler: HookHandler;
  removed: boolean;
}

/** One page with hooks. */
interface Page {
  readonly gfn: number;
  hooks: GpaHook[];
  /** Rights in the EPT since the last commit. */
  rights: number;
  changed: boolean;
}

const PAGE_SIZE = 4096;
/** Accesses that are not to an operand of the instruction at RIP. */
const NOT_AN_OPERAND = HVI_ACCESS_EXEC | HVI_ACCESS_WALK | HVI_ACCESS_EVENT;

export class GpaHooks {
  readonly #vm: Vm;
  readonly #sizes: AccessSizes;
  readonly #view: number;
  readonly #pages = new Map<number, Page>();
  readonly #ranges = new EptRanges();
  #changed: Page[] = [];
  #access: PageAccess | undefined;

  /**
   * @param sizes asked when the backend does not know the size of an access
   * @param view EPT view in which rights are taken away.
   */
  constructor(vm: Vm, sizes: AccessSizes, view = 0) {
    this.#vm = vm;
    this.#sizes = sizes;
    this.#view = view;
  }

  /** Pages with at least one hook. */
  get pageCount(): number {
    return this.#pages.size;
  }

  /**
   * Hooks `right` on a page, or on the part [start, end) of it. In effect after `commit`.
   * @throws RangeError for a range outside the page or more than one right.
   */
  add(gfn: number, right: number, handler: HookHandler, start = 0, end = PAGE_SIZE): GpaHook {
    if (right !== HVI_R && right !== HVI_W && right !== HVI_X) {
      throw new RangeError(`a hook takes one right, not ${right}`);
    }
    if (!(start >= 0 && start < end && end <= PAGE_SIZE)) {
      throw new RangeError(`[${start}, ${end}) is not a part of a page`);
    }
    const hook: GpaHook = { gfn, right, start, end, handler, removed: false };
    let page = this.#pages.get(gfn);
    if (page === undefined) {
      page = { gfn, hooks: [], rights: HVI_RWX, changed: false };
      this.#pages.set(gfn, page);
    }
    page.hooks.push(hook);
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
    if (this.#changed.length === 0) return;
    const changed = this.#changed;
    this.#changed = [];
    changed.sort((a, b) => a.gfn - b.gfn);
    this.#ranges.clear();
    for (const page of changed) {
      page.changed = false;
      if (page.hooks.some((h) => h.removed)) page.hooks = page.hooks.filter((h) => !h.removed);
      const rights = rightsFor(page.hooks);
      if (page.hooks.length === 0) this.#pages.delete(page.gfn);
      if (rights === page.rights) continue;
      page.rights = rights;
      this.#ranges.add(page.gfn, 1, rights);
    }
    if (this.#ranges.length > 0) this.#vm.setRightsBatch(this.#view, this.#ranges);
  }

  /**
   * Handles an EPT violation on a hooked page and sets the reply.
   * @returns false when no page of ours was hit; the reply is untouched then.
   */
  dispatch(vcpu: Vcpu): boolean {
    const gpa = vcpu.exitGpa;
    if (!this.#pages.has(Math.floor(gpa / PAGE_SIZE))) return false;
    const access = vcpu.exitAccess;
    const gva = (access & HVI_ACCESS_GVA) !== 0 ? vcpu.exitGva : Number.NaN;
    let size = vcpu.exitSize;
    if (size === 0 && (access & NOT_AN_OPERAND) === 0 && !Number.isNaN(gva)) {
      size = this.#sizes(vcpu, gva);
    }
    const action = this.ask(vcpu, gpa, size, gva, access);
    if (action === ALLOW) vcpu.resume();
    else if (action === DENY) vcpu.scratch();
    else if (action === RETRY) vcpu.retry();
    return true;
  }

  /**
   * What the hooks want done with an access, whoever makes it: the guest, or a device for it.
   * @param size bytes, 0 when unknown; a part beyond the page is not looked at
   * @param gva linear address, NaN when there is none
   * @param access HVI_ACCESS_*
   */
  ask(vcpu: Vcpu, gpa: number, size: number, gva: number, access: number): HookAction {
    const page = this.#pages.get(Math.floor(gpa / PAGE_SIZE));
    if (page === undefined) return ALLOW;
    if (this.#access === undefined) this.#access = { vcpu, gpa, size, gva, access };
    const record = this.#access;
    const from = gpa % PAGE_SIZE;
    const room = PAGE_SIZE - from;
    record.vcpu = vcpu;
    record.gpa = gpa;
    record.size = size === 0 || size > room ? room : size;
    record.gva = gva;
    record.access = access;
    const to = from + record.size;
    let action: HookAction = ALLOW;
    // The list may grow or have hooks marked removed while handlers run; it shrinks in commit only.
    for (let i = 0; i < page.hooks.length; i++) {
      const hook = page.hooks[i] as GpaHook;
      if (hook.removed || from >= hook.end || to <= hook.start) continue;
      if ((access & hook.right) === 0) continue;
      const wish = hook.handler(record, hook);
      if (wish > action) action = wish;
    }
    return action;
  }

  #touch(page: Page): void {
    if (page.changed) return;
    page.changed = true;
    this.#changed.push(page);
  }
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
