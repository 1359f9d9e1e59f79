// SPDX-License-Identifier: MIT
/**
 * Reads of guest memory that may be swapped out: the page is brought in by a page
 * fault injected into a thread of its address space, or waited for.
 */
import {
  EVENT_CR2,
  EVENT_FLAGS,
  HVI_ACCESS_EVENT,
  HVI_BLOCK_MOV_SS,
  HVI_BLOCK_STI,
  HVI_EVENT_DELIVERED,
  HVI_EVENT_EXCEPTION,
  HVI_EXIT_DEADLINE,
  HVI_EXIT_EXCEPTION,
  HVI_EXIT_IDLE,
  HVI_EXIT_INJECTED,
  HVI_EXIT_IRQ_WINDOW,
  HVI_EXIT_PAUSED,
  HVI_EXIT_STEP,
  HVI_MP_RUNNING,
  HVI_REPLY_RETRY,
  HVI_REPLY_SKIP,
} from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import { isCanonical48, pageOf } from "./address.ts";
import type { GuestMemory } from "./guest-memory.ts";
import { type AddressSpace, rootTable } from "./space.ts";
import { pagingModeOf, TranslationStatus } from "./translate.ts";
import { VirtualMemory } from "./virtual.ts";

/** Longest range of one request. */
export const SWAPPED_LENGTH = 0x100000;
/** Requests that may wait at a time, and the bytes they may ask for together. */
export const SWAPPED_REQUESTS = 64;
export const SWAPPED_BYTES = 0x400000;
/** Injections for one page that may be lost before the request is given up. */
const MAX_LOST = 8;
/** Injections a page of a request: a guest that swaps out what it just swapped in ends nowhere. */
const MAX_INJECTIONS = 4;

const VECTOR_PF = 14;
/** Error code of a user's read of a page that is not present (SDM vol. 3, 4.7). */
const PF_USER = 1 << 2;
const RFLAGS_IF = 1 << 9;
const RFLAGS_VM = 1 << 17;

/** Why there will be no bytes. */
export type SwappedFailure =
  /** The range is not canonical, leaves the address space, or is too long. */
  | "range"
  /** Too many requests, or bytes, wait already. */
  | "limit"
  /** A paging-structure entry has reserved bits set. */
  | "malformed"
  /** The translation leads to where there is no RAM. */
  | "no-ram"
  /** Page faults were injected and lost, or brought nothing in, too often. */
  | "not-delivered"
  /** cancelSpace() took it. */
  | "cancelled";

export type SwappedResult =
  | { readonly ok: true; readonly gva: number; readonly bytes: Uint8Array }
  | { readonly ok: false; readonly gva: number; readonly reason: SwappedFailure };

export interface SwappedReadOptions {
  /** Inject page faults (the default), or wait until the guest needs the page itself: it may never. */
  inject?: boolean;
  /**
   * Asked before a fault is injected for a page. A fault at an address that the
   * guest's system knows nothing of kills the process: answer true only for what
   * is known to be mapped. Yes for every page when left out.
   */
  mayInject?: (gva: number) => boolean;
}

/** A request that waits. */
export interface SwappedHandle {
  /** False once the callback was called or the request was cancelled. */
  readonly waiting: boolean;
  /** Takes the request back: its callback is not called. Harmless afterwards. */
  cancel(): void;
}

/** Tells of changes of a translation; hooks on page tables implement it. */
export interface TranslationNotifier {
  /** `onChange` may come at any time, before the change is in memory too. */
  watch(space: AddressSpace, gva: number, onChange: () => void): { remove(): void };
}

export interface SwappedMemoryOptions {
  memory: GuestMemory;
  /** Rate of the guest's TSC (VmInfo.tscKhz). */
  tscKhz: number;
  notifier?: TranslationNotifier;
  /**
   * Whether a vCPU with this CR3 is in the space. By the first table, after
   * GuestMemory.kernelRootOf, when left out.
   */
  sameSpace?: (space: AddressSpace, cr3: number) => boolean;
  /**
   * Inject for kernel addresses too: at CPL 0 with interrupts on and CR8 0. Only
   * for a system that pages its kernel (Windows); Linux dies of it.
   */
  kernelFaults?: boolean;
}

class Request implements SwappedHandle {
  waiting = true;
  /** The first page that was absent at the last look. */
  missing = Number.NaN;
  /** The notifier told of a change since then. */
  changed = false;
  watch: { remove(): void } | undefined;
  lost = 0;
  injections = 0;

  constructor(
    private readonly owner: SwappedMemory,
    readonly memory: VirtualMemory,
    readonly gva: number,
    readonly length: number,
    readonly inject: boolean,
    readonly mayInject: ((gva: number) => boolean) | undefined,
    readonly callback: (result: SwappedResult) => void,
  ) {}

  cancel(): void {
    this.owner.cancel(this);
  }
}

/** What a look at the pages of a request finds. */
enum Look {
  Present,
  Absent,
  Malformed,
  NoRam,
  NotCanonical,
}

/**
 * Reads of memory that may be swapped out. Nothing happens inside an exit but
 * notes; poll() does the work between exits.
 *
 * At most one injected fault is under way in the whole guest. It counts as lost
 * when the backend says so, and when the page is not there a second of guest time
 * after it was injected.
 */
export class SwappedMemory {
  /** Guest TSC at which poll() is due; Infinity when nothing waits. */
  deadline = Number.POSITIVE_INFINITY;
  /** Counters that only grow. */
  injected = 0;
  delivered = 0;
  lost = 0;
  completed = 0;

  readonly #memory: GuestMemory;
  readonly #notifier: TranslationNotifier | undefined;
  readonly #sameSpace: (space: AddressSpace, cr3: number) => boolean;
  readonly #kernelFaults: boolean;
  /** Ticks of a second, and between two looks at what waits. */
  readonly #second: number;
  readonly #interval: number;
  readonly #requests: Request[] = [];
  #bytes = 0;
  #lookedAt = 0;
  /** The request after which the next injection looks for a candidate. */
  #turn = 0;

  // The injection under way. Its request may be gone: #faultFor is undefined then.
  #fault = false;
  #faultFor: Request | undefined;
  #faultGva = 0;
  #faultVcpu: Vcpu | undefined;
  #faultAt = 0;
  /** The backend said that it was delivered. */
  #faultTaken = false;

  constructor(options: SwappedMemoryOptions) {
    this.#memory = options.memory;
    this.#notifier = options.notifier;
    this.#sameSpace = options.sameSpace ?? ((space, cr3) => this.#sameTable(space, cr3));
    this.#kernelFaults = options.kernelFaults ?? false;
    this.#second = options.tscKhz * 1000;
    this.#interval = options.tscKhz;
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#requests.length;
  }
  /** A fault is to be injected as soon as a vCPU can take it: poll after every exit, it is cheap. */
  get wants(): boolean {
    if (this.#fault) return false;
    for (let i = 0; i < this.#requests.length; i++) if (this.#requests[i].inject) return true;
    return false;
  }

  /**
   * Reads [gva, gva + length), at most SWAPPED_LENGTH bytes. `callback` is called
   * once: at once when all is present or it cannot be done, else from poll() when
   * all pages were present together. The bytes are a copy.
   * @returns the request when it waits; undefined when the callback was called
   */
  read(
    space: AddressSpace,
    gva: number,
    length: number,
    options: SwappedReadOptions,
    callback: (result: SwappedResult) => void,
  ): SwappedHandle | undefined {
    if (!isRange(space, gva, length)) {
      callback({ ok: false, gva, reason: "range" });
      return undefined;
    }
    const memory = new VirtualMemory(this.#memory.physical, space.root, space.mode, space.features);
    const { inject = true, mayInject } = options;
    const request = new Request(this, memory, gva, length, inject, mayInject, callback);
    let result = this.#tryRead(request);
    if (this.#requests.length >= SWAPPED_REQUESTS || this.#bytes + length > SWAPPED_BYTES) {
      result ??= "limit";
    }
    if (result !== undefined) {
      this.#end(request, result);
      return undefined;
    }
    this.#requests.push(request);
    this.#bytes += length;
    this.#watch(request);
    this.deadline = 0;
    return request;
  }

  /** Takes all requests of an address space back, whose callbacks get "cancelled". */
  cancelSpace(root: number): void {
    // A callback may read again, or take others back.
    for (const request of this.#requests.filter((r) => this.#sameTable(r.memory, root))) {
      if (request.waiting) this.#end(request, "cancelled");
    }
  }

  /** Takes a request back; SwappedHandle.cancel() for its owner. */
  cancel(handle: SwappedHandle): void {
    const request = this.#requests.find((r) => r === handle);
    if (request !== undefined) this.#remove(request);
  }

  /**
   * Work between two exits: looks for pages that have come, calls back, injects
   * the next fault. Call it at `deadline`, and after every exit while `wants`;
   * the vCPU is the one that exited, with its reply set.
   */
  poll(vcpu: Vcpu): void {
    if (this.#requests.length === 0 && !this.#fault) {
      this.deadline = Number.POSITIVE_INFINITY;
      return;
    }
    const now = vcpu.exitTsc;
    // A guest may set its TSC back.
    if (this.deadline <= now || now < this.#lookedAt) {
      this.#lookedAt = now;
      this.deadline = now + this.#interval;
      this.#lookAtFault();
      this.#lookAtRequests(now);
    }
    if (!this.#fault) this.#injectNext(vcpu);
    if (this.#requests.length === 0 && !this.#fault) this.deadline = Number.POSITIVE_INFINITY;
  }

  /**
   * HVI_EXIT_INJECTED: the news of an event.
   * @returns true when it was of a fault injected here
   */
  onInjected(vcpu: Vcpu): boolean {
    if (!this.#fault || this.#faultTaken || vcpu !== this.#faultVcpu || !this.#isFault(vcpu)) {
      return false;
    }
    if (vcpu.eventStatus === HVI_EVENT_DELIVERED) {
      this.delivered++;
      this.#faultTaken = true;
      // Nobody waits for what it brings in any more.
      if (this.#faultFor === undefined) this.#fault = false;
    } else {
      this.#faultLost();
    }
    return true;
  }

  // ---- requests ---------------------------------------------------------------

  #sameTable(space: AddressSpace, cr3: number): boolean {
    const { kernelRootOf } = this.#memory;
    return (
      rootTable(space.mode, kernelRootOf(space.root)) === rootTable(space.mode, kernelRootOf(cr3))
    );
  }

  #look(request: Request, gva: number): Look {
    const { memory } = request;
    const gpa = memory.gpaOf(gva);
    if (gpa >= 0) return memory.physical.ram.offsetOf(gpa) >= 0 ? Look.Present : Look.NoRam;
    switch (memory.last.status) {
      case TranslationStatus.NotPresent:
        return Look.Absent;
      case TranslationStatus.Reserved:
        return Look.Malformed;
      case TranslationStatus.NotCanonical:
        return Look.NotCanonical;
      default:
        return Look.NoRam;
    }
  }

  /**
   * The bytes, when all pages are present together; why there will be none; or
   * undefined, with `missing` the first page that is absent.
   */
  #tryRead(request: Request): Uint8Array | SwappedFailure | undefined {
    const end = request.gva + request.length;
    for (let page = pageOf(request.gva); page < end; page += 0x1000) {
      const look = this.#look(request, page);
      if (look === Look.Present) continue;
      if (look !== Look.Absent) return FAILURES[look];
      if (request.missing !== page) request.lost = 0;
      request.missing = page;
      return undefined;
    }
    const bytes = new Uint8Array(request.length);
    const done = request.memory.readPartial(request.gva, bytes);
    if (done === bytes.length) return bytes;
    // One has gone between the two looks.
    request.missing = pageOf(request.gva + done);
    return undefined;
  }

  #watch(request: Request): void {
    if (this.#notifier === undefined) return;
    request.watch?.remove();
    request.watch = this.#notifier.watch(request.memory, request.missing, () => {
      request.changed = true;
      this.deadline = 0;
    });
  }

  #remove(request: Request): void {
    request.waiting = false;
    const at = this.#requests.indexOf(request);
    if (at < 0) return;
    this.#requests.splice(at, 1);
    this.#bytes -= request.length;
    request.watch?.remove();
    request.watch = undefined;
    if (this.#faultFor === request) {
      this.#faultFor = undefined;
      if (this.#faultTaken || this.#revoke()) this.#fault = false;
    }
  }

  #end(request: Request, result: Uint8Array | SwappedFailure): void {
    this.#remove(request);
    const { gva } = request;
    if (typeof result === "string") {
      request.callback({ ok: false, gva, reason: result });
      return;
    }
    this.completed++;
    request.callback({ ok: true, gva, bytes: result });
  }

  #lookAtRequests(now: number): void {
    // From the end: a callback may add requests, which have had their look, and cancel some.
    for (let i = this.#requests.length - 1; i >= 0; i--) {
      const request = this.#requests[i];
      if (request === undefined) continue;
      const changed = request.changed;
      request.changed = false;
      if (!changed && this.#look(request, request.missing) === Look.Absent) continue;
      const before = request.missing;
      const result = this.#tryRead(request);
      if (result !== undefined) this.#end(request, result);
      else if (request.missing !== before) this.#watch(request);
      // The notice may come before the write: look again right after the instruction.
      else if (changed) this.deadline = Math.min(this.deadline, now + 1);
    }
  }

  // ---- the injected fault -----------------------------------------------------

  /** The event in a vCPU's page is the fault under way. */
  #isFault(vcpu: Vcpu): boolean {
    const cr2 = EVENT_CR2 >>> 2;
    return vcpu.eventVector === VECTOR_PF && vcpu.u32[cr2] === this.#faultGva >>> 0;
  }

  /** Takes the fault back; false when the backend has it already. */
  #revoke(): boolean {
    const vcpu = this.#faultVcpu;
    if (vcpu === undefined || !vcpu.eventPending || !this.#isFault(vcpu)) return false;
    vcpu.u32[EVENT_FLAGS >>> 2] = 0;
    return true;
  }

  /** Ends the one under way when its page has come, or it is a second old by its vCPU's clock. */
  #lookAtFault(): void {
    if (!this.#fault) return;
    const request = this.#faultFor;
    if (request !== undefined && this.#look(request, this.#faultGva) !== Look.Absent) {
      // Once the notice has come, too: until then the event may not be delivered yet.
      if (this.#faultTaken) this.#fault = false;
    }
    const age = (this.#faultVcpu?.tsc ?? 0) - this.#faultAt;
    if (this.#fault && (age > this.#second || age < 0)) {
      if (!this.#faultTaken) this.#revoke();
      this.#faultLost();
    }
  }

  #faultLost(): void {
    const request = this.#faultFor;
    this.#fault = false;
    this.#faultFor = undefined;
    this.lost++;
    if (request === undefined) return;
    request.lost++;
    const pages = Math.ceil(request.length / 0x1000) + 1;
    if (request.lost >= MAX_LOST || request.injections >= MAX_INJECTIONS * pages + MAX_LOST) {
      this.#end(request, "not-delivered");
    }
  }

  /** Injects for the next request whose address space the vCPU is in. */
  #injectNext(vcpu: Vcpu): void {
    if (!canTake(vcpu)) return;
    const mode = pagingModeOf(vcpu.cr0, vcpu.cr4, vcpu.efer);
    const cr3 = vcpu.cr3;
    const n = this.#requests.length;
    for (let i = 0; i < n; i++) {
      const at = (this.#turn + i) % n;
      const request: Request | undefined = this.#requests[at];
      if (request === undefined) return; // mayInject cancelled some
      if (!request.inject || request.memory.mode !== mode) continue;
      const kernel = isKernelAddress(request.memory, request.missing);
      if (!this.#ringFits(vcpu, kernel) || !this.#sameSpace(request.memory, cr3)) continue;
      if (request.mayInject?.(request.missing) === false) continue;
      if (this.#look(request, request.missing) !== Look.Absent) {
        this.deadline = 0;
        continue;
      }
      vcpu.inject(HVI_EVENT_EXCEPTION, VECTOR_PF, kernel ? 0 : PF_USER, request.missing, true);
      request.injections++;
      this.injected++;
      this.#turn = at + 1;
      this.#fault = true;
      this.#faultFor = request;
      this.#faultGva = request.missing;
      this.#faultVcpu = vcpu;
      this.#faultAt = vcpu.tsc;
      this.#faultTaken = false;
      return;
    }
  }

  /** A user's page is asked for by user code; a kernel's where a page fault may sleep. */
  #ringFits(vcpu: Vcpu, kernel: boolean): boolean {
    if (!kernel) return vcpu.cpl === 3;
    return (
      this.#kernelFaults && vcpu.cpl === 0 && (vcpu.rflags & RFLAGS_IF) !== 0 && vcpu.cr8 === 0
    );
  }
}

const FAILURES: Readonly<Record<Exclude<Look, Look.Present | Look.Absent>, SwappedFailure>> = {
  [Look.Malformed]: "malformed",
  [Look.NoRam]: "no-ram",
  [Look.NotCanonical]: "range",
};

/** The range is one that numbers tell exactly and that stays in its half of the address space. */
function isRange(space: AddressSpace, gva: number, length: number): boolean {
  if (!Number.isInteger(gva) || !Number.isInteger(length)) return false;
  if (length < 0 || length > SWAPPED_LENGTH) return false;
  const last = gva + Math.max(0, length - 1);
  if (space.mode === "4level" || space.mode === "5level") {
    return isCanonical48(gva) && isCanonical48(last) && gva < 0 === last < 0;
  }
  return gva >= 0 && last < 2 ** 32;
}

/** Windows and Linux have their kernel in the upper half; a 32-bit Linux begins it at 3 GiB. */
function isKernelAddress(space: AddressSpace, gva: number): boolean {
  return gva < 0 || (space.mode !== "4level" && space.mode !== "5level" && gva >= 0x80000000);
}

/** Exits that stand between two instructions, whatever the reply. */
function betweenInstructions(reason: number): boolean {
  return (
    reason === HVI_EXIT_DEADLINE ||
    reason === HVI_EXIT_IRQ_WINDOW ||
    reason === HVI_EXIT_INJECTED ||
    reason === HVI_EXIT_PAUSED ||
    reason === HVI_EXIT_STEP ||
    reason === HVI_EXIT_IDLE
  );
}

/**
 * The vCPU can take an exception now: it runs, stands between two instructions,
 * and has no other event to take. Where the reply lets the exiting instruction
 * run, it stands before it with that reply in hand: not now.
 */
function canTake(vcpu: Vcpu): boolean {
  if (vcpu.eventPending || vcpu.mpState !== HVI_MP_RUNNING) return false;
  const reason = vcpu.exitReason;
  if (!betweenInstructions(reason)) {
    const action = vcpu.replyAction;
    if (action !== HVI_REPLY_SKIP && action !== HVI_REPLY_RETRY) return false;
    // Either has an event of its own to go on with.
    if (reason === HVI_EXIT_EXCEPTION || (vcpu.exitAccess & HVI_ACCESS_EVENT) !== 0) return false;
  }
  if ((vcpu.interruptibility & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS)) !== 0) return false;
  return (vcpu.rflags & RFLAGS_VM) === 0;
}
