// SPDX-License-Identifier: MIT
import {
  HVI_ACCESS_GVA,
  HVI_ACCESS_WRITE,
  HVI_EXIT_CR_WRITE,
  HVI_EXIT_DTR,
  HVI_EXIT_EPT,
  HVI_EXIT_INJECTED,
  HVI_EXIT_MSR_READ,
  HVI_EXIT_MSR_WRITE,
  HVI_EXIT_STEP,
  HVI_EXIT_XSETBV,
  type Vcpu,
  type Vm,
} from "./bridge/index.ts";
import { Cloaks } from "./ept/cloak.ts";
import { ALLOW, GpaHooks } from "./ept/gpa-hooks.ts";
import { GvaHooks } from "./ept/gva-hooks.ts";
import { HookObjects } from "./ept/hook-objects.ts";
import { ExitInstructions } from "./ept/instructions.ts";
import { Integrity } from "./ept/integrity.ts";
import { PageTables, type WrittenBytes } from "./ept/page-tables.ts";
import { Unpacker } from "./ept/unpacker.ts";
import { VasMonitor } from "./ept/vas-monitor.ts";
import { GuestState } from "./guest/state.ts";
import {
  type AddressSpace,
  GpaCache,
  GuestMemory,
  PAGE_SIZE,
  type PhysicalMemory,
  pageOf,
  SwappedMemory,
} from "./memory/index.ts";
import { RegisterHooks } from "./registers/register-hooks.ts";
import { Statistics } from "./statistics.ts";

/**
 * What of introspection does not depend on the guest's operating system: hooks on memory, translations
 * and registers, hidden and swapped-out memory, integrity; and who gets which exit.
 */
export class Introspection {
  readonly memory: GuestMemory;
  readonly state: GuestState;
  /** Views of physical pages that are asked for again and again. */
  readonly pages: GpaCache;
  readonly instructions: ExitInstructions;
  readonly hooks: GpaHooks;
  readonly tables: PageTables;
  readonly gva: GvaHooks;
  readonly objects: HookObjects;
  readonly monitor: VasMonitor;
  readonly unpacker: Unpacker;
  readonly cloaks: Cloaks;
  readonly registers: RegisterHooks;
  readonly integrity: Integrity;
  readonly swapped: SwappedMemory;
  readonly statistics: Statistics;
  /** Bytes that the instruction at hand writes. */
  readonly written: WrittenBytes;
  /** Guest ticks of a second: the guide's timer. */
  readonly #second: number;
  #secondEnds = Number.POSITIVE_INFINITY;

  constructor(vm: Vm, memory: PhysicalMemory) {
    this.memory = new GuestMemory(memory, vm.physicalBits);
    this.pages = new GpaCache(memory);
    this.state = new GuestState(vm, this.memory);
    this.instructions = new ExitInstructions(vm, memory);
    this.written = (access, out) => this.instructions.bytes(access, out);
    this.hooks = new GpaHooks(vm, this.instructions);
    this.tables = new PageTables(this.hooks, memory, this.written);
    this.gva = new GvaHooks(this.hooks, this.tables, memory);
    this.objects = new HookObjects(this.gva);
    this.monitor = new VasMonitor(this.tables);
    this.unpacker = new Unpacker(this.gva);
    this.cloaks = new Cloaks(vm, memory, this.hooks, this.tables, this.written);
    this.registers = new RegisterHooks(vm);
    this.integrity = new Integrity(memory);
    this.swapped = new SwappedMemory({
      memory: this.memory,
      tscKhz: vm.info.tscKhz,
      notifier: { watch: (space, gva, onChange) => this.#watchPage(space, gva, onChange) },
    });
    this.#second = vm.info.tscKhz * 1000;
    this.statistics = new Statistics(vm);
    const { swapped } = this;
    this.statistics.add({
      name: "swapped memory",
      read: () => ({
        waiting: swapped.waiting,
        injected: swapped.injected,
        delivered: swapped.delivered,
        lost: swapped.lost,
        completed: swapped.completed,
      }),
    });
    for (const part of [
      this.hooks,
      this.instructions,
      this.tables,
      this.cloaks,
      this.pages,
      this.registers,
      this.integrity,
    ]) {
      this.statistics.add(part);
    }
  }

  /**
   * First refusal of an exit.
   * @returns true when it was dealt with and the reply is set; else it is the devices'
   */
  handle(vcpu: Vcpu): boolean {
    const reason = vcpu.exitReason;
    this.statistics.count(reason);
    this.state.current = vcpu;
    this.hooks.settle(vcpu);
    const ours = this.#dispatch(vcpu, reason);
    this.hooks.commit();
    return ours;
  }

  #dispatch(vcpu: Vcpu, reason: number): boolean {
    switch (reason) {
      case HVI_EXIT_EPT:
        return this.hooks.dispatch(vcpu);
      case HVI_EXIT_MSR_READ:
      case HVI_EXIT_MSR_WRITE:
      case HVI_EXIT_CR_WRITE:
      case HVI_EXIT_DTR:
      case HVI_EXIT_XSETBV:
        return this.registers.dispatch(vcpu);
      case HVI_EXIT_INJECTED:
        if (!this.swapped.onInjected(vcpu)) return false;
        vcpu.resume();
        return true;
      case HVI_EXIT_STEP:
        // The news that an instruction is over, which settle() has dealt with.
        vcpu.resume();
        return true;
      default:
        return false;
    }
  }

  /** Guest TSC at which poll() is due; Infinity when nothing waits. */
  get deadline(): number {
    if (this.#secondEnds === Number.POSITIVE_INFINITY && this.#timed) return 0;
    return Math.min(this.#secondEnds, this.swapped.deadline);
  }

  /** Something is to be done every second. */
  get #timed(): boolean {
    return this.integrity.count > 0 || this.tables.relaxedCount > 0;
  }

  /** A poll after each exit would find work, not only one at `deadline`. */
  get eager(): boolean {
    return this.swapped.wants;
  }

  /** Work that waits for guest time, between two exits: the second's checks, swapped-out pages. */
  poll(vcpu: Vcpu): void {
    const now = vcpu.exitTsc;
    if (!this.#timed) this.#secondEnds = Number.POSITIVE_INFINITY;
    // A guest may set its TSC back: then the second begins anew.
    else if (!(this.#secondEnds - now <= this.#second)) this.#secondEnds = now + this.#second;
    else if (now >= this.#secondEnds) {
      this.#secondEnds = now + this.#second;
      this.integrity.check();
      this.tables.poll();
    }
    if (this.swapped.wants || this.swapped.deadline <= now) this.swapped.poll(vcpu);
    this.hooks.commit();
  }

  /** For swapped-out memory: it looks again later where tables cannot be watched. */
  #watchPage(space: AddressSpace, gva: number, onChange: () => void): { remove(): void } {
    const page = pageOf(gva);
    const watch = this.tables.watch(space, page, page + PAGE_SIZE, {
      after: onChange,
      owner: "swapped memory",
    });
    return {
      remove: () => {
        if (watch !== undefined) this.tables.unwatch(watch);
      },
    };
  }

  /**
   * Whether a device may write guest memory for the instruction at hand, which no EPT sees.
   * @param gva linear address of the first byte; the range does not leave its page
   */
  mayWrite(vcpu: Vcpu, gva: number, gpa: number, size: number): boolean {
    const action = this.hooks.ask(vcpu, gpa, size, gva, HVI_ACCESS_WRITE | HVI_ACCESS_GVA);
    this.hooks.commit();
    return action === ALLOW;
  }

  /** A device has written the page that `gpa` lies in: it may hold page tables. */
  wrote(gpa: number): void {
    this.tables.resync(Math.floor(gpa / PAGE_SIZE));
    this.hooks.commit();
  }

  /** Changes bytes that a device read from `gpa` on, within a page, to what the guest would read. */
  overlay(gpa: number, bytes: Uint8Array): void {
    this.cloaks.overlay(gpa, bytes);
  }

  /** Brings hooks that were removed out of effect. Call it when the guest is left alone. */
  stop(): void {
    this.hooks.commit();
  }
}
