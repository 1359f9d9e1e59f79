// SPDX-License-Identifier: MIT
import {
  type BackendChoice,
  type CpuidEntry,
  HVI_ACCESS_NO_RAM,
  HVI_BLOCK_NMI,
  HVI_EVENT_EXCEPTION,
  HVI_EVENT_EXTERNAL,
  HVI_EVENT_NMI,
  HVI_EXIT_CR_WRITE,
  HVI_EXIT_DEADLINE,
  HVI_EXIT_EMULATION,
  HVI_EXIT_ENTRY_FAILED,
  HVI_EXIT_EPT,
  HVI_EXIT_HLT,
  HVI_EXIT_IDLE,
  HVI_EXIT_IO,
  HVI_EXIT_IRQ_WINDOW,
  HVI_EXIT_MSR_READ,
  HVI_EXIT_MSR_WRITE,
  HVI_EXIT_PAUSED,
  HVI_EXIT_SHUTDOWN,
  HVI_INTERCEPT_CR8_WRITE,
  HVI_INTERCEPT_HLT,
  HVI_INTERCEPT_IO,
  HVI_INTERCEPT_MSR_READ,
  HVI_INTERCEPT_MSR_WRITE,
  HVI_IO_IN,
  HVI_IO_STRING,
  HVI_MP_HALTED,
  HVI_MP_RUNNING,
  HVI_MP_WAIT_SIPI,
  HVI_RAX,
  HVI_RDX,
  HVI_REPLY_RETRY,
  HVI_REPLY_SKIP,
  openVm,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";
import { Clock } from "./clock.ts";
import type { Console } from "./console.ts";
import { machineCpuid } from "./cpuid.ts";
import {
  type LocalApic,
  MSR_APIC_BASE,
  MSR_TSC_DEADLINE,
  MSR_X2APIC_FIRST,
  MSR_X2APIC_LAST,
} from "./devices/lapic.ts";
import { dumpVcpu } from "./dump.ts";
import { ramRanges } from "./layout.ts";
import { enterRealMode } from "./load/entry.ts";
import type { LoadableImage } from "./load/index.ts";
import { MmioEmulator } from "./mmio.ts";
import { Platform } from "./platform.ts";
import { type DeviceGuard, StringIo } from "./string-io.ts";

const MSR_TSC = 0x10;
const MSR_TSC_ADJUST = 0x3b;
const RFLAGS_TF = 0x100;
const RFLAGS_IF = 0x200;
const VECTOR_NMI = 2;
const VECTOR_GP = 13;
const TWO32 = 4294967296;
/** The loop goes back to Bun's event loop this often. */
const SLICE_MS = 10;
/** An event's delivery and a reply take an exit or two. */
const MAX_SETTLE_EXITS = 64;
/** Exits between two looks at the host's clock. */
const EXITS_PER_LOOK = 64;

export interface MachineOptions {
  backend: BackendChoice;
  /** Bytes, page aligned. */
  memory: number;
  cpus: number;
  console: Console;
  /**
   * A person waits at the console: guest idle time passes in real time. Without,
   * it is skipped.
   */
  interactive: boolean;
  /** More input for the console may come. */
  inputOpen: boolean;
  /** Seconds since 1970 for the guest's clock. */
  epoch: number;
  /** RAM comes from this file, copied on write: offset of its first byte. */
  ramFile?: { fd: number; offset: number };
  /** CPUID of the guest; made from what the backend supports when not given. */
  cpuid?: readonly CpuidEntry[];
}

export type RunResult =
  | { kind: "power-off" }
  | { kind: "reset" }
  | { kind: "debug-exit"; code: number }
  | { kind: "stopped"; why: string }
  /** By pause(); the machine stands between two exits and may be saved. */
  | { kind: "paused" }
  /** The guest cannot go on; `dump` tells its state. */
  | { kind: "died"; why: string; dump: string };

/** What looks at exits before the devices do: the introspection engine. */
export interface ExitObserver {
  readonly guard: DeviceGuard;
  /** True when the exit was dealt with and the reply is set. */
  handle(vcpu: Vcpu): boolean;
  /** Guest TSC at which poll() is due, or Infinity. */
  readonly deadline: number;
  /** poll() is due after each exit, whatever the deadline. */
  readonly eager: boolean;
  /** Work that waited for guest time, between two exits. */
  poll(vcpu: Vcpu): void;
}

/** A guest: vCPUs, memory, devices, and the loop that runs them. */
export class Machine {
  readonly vm: Vm;
  readonly clock: Clock;
  readonly platform: Platform;
  readonly console: Console;
  readonly options: MachineOptions;
  readonly cpuid: readonly CpuidEntry[];
  /** Has the first refusal of every exit. */
  observer: ExitObserver | undefined;
  /** Called between slices of guest work, about every 10 ms. */
  onSlice: () => void = () => {};
  readonly #apics: readonly LocalApic[];
  readonly #mmio: MmioEmulator;
  readonly #stringIo: StringIo;
  /** vCPUs that executed HLT and got nothing since. */
  readonly #halted: boolean[];
  /** Guest TSC - machine time, a vCPU each: a guest may set its TSC. */
  readonly #tscOffset: number[];
  /** The vCPU of the last exit, whose irqReady is fresh; -1 when its reply may change what it can take. */
  #fresh = -1;
  #result: RunResult | undefined;
  /** TSC ticks to run before looking at the host's clock again. */
  #quantum: number;
  #wake: (() => void) | undefined;
  #pausing = false;
  /** An NMI could not be delivered yet. */
  #nmiWaits = false;

  /** Opens a backend and builds a machine with nothing in its memory. Throws BackendError, HviError. */
  static create(options: MachineOptions): Machine {
    const vm = openVm({ backend: options.backend });
    try {
      vm.create({ vcpus: options.cpus });
      let fileOffset = options.ramFile?.offset ?? 0;
      for (const range of ramRanges(options.memory)) {
        const file =
          options.ramFile === undefined ? {} : { fd: options.ramFile.fd, fdOffset: fileOffset };
        vm.addMemory({ ...range, ...file });
        fileOffset += range.size;
      }
      vm.mapMemory();
      return new Machine(vm, options);
    } catch (error) {
      vm.close();
      throw error;
    }
  }

  private constructor(vm: Vm, options: MachineOptions) {
    this.vm = vm;
    this.options = options;
    this.console = options.console;
    this.clock = new Clock(vm.info.tscKhz);
    this.#quantum = vm.info.tscKhz;
    this.#halted = new Array<boolean>(options.cpus).fill(false);
    this.#tscOffset = new Array<number>(options.cpus).fill(0);
    this.platform = new Platform(this.clock, options.cpus, options.memory, options.epoch, {
      powerOff: () => this.stop({ kind: "power-off" }),
      reset: () => this.stop({ kind: "reset" }),
      debugExit: (code) => this.stop({ kind: "debug-exit", code }),
      consoleByte: (byte) => this.console.write(byte),
    });
    this.#apics = this.platform.lapics.apics;
    this.#mmio = new MmioEmulator(vm.ram, this.platform.mmio);
    this.#stringIo = new StringIo(vm, this.platform.ports, () => this.observer?.guard);
    this.platform.lapics.onTpr = (id, tpr) => {
      vm.vcpus[id].cr8 = tpr >> 4;
    };
    this.platform.lapics.onBase = (id, gpa, mapped) => {
      // The table has one APIC page for all CPUs; moving it is the boot CPU's business.
      if (id === 0 && mapped) this.platform.moveLapic(gpa);
    };
    this.cpuid = options.cpuid ?? machineCpuid(vm.supportedCpuid(), options.cpus, vm.info.tscKhz);
    vm.setCpuid(this.cpuid);
    this.#setIntercepts();
    for (let i = 1; i < options.cpus; i++) vm.vcpus[i].mpState = HVI_MP_WAIT_SIPI;
    for (let i = 0; i < options.cpus; i++) vm.vcpus[i].initialApicId = i;
  }

  #setIntercepts(): void {
    const { vm } = this;
    vm.intercept(HVI_INTERCEPT_HLT, 0, 1);
    vm.intercept(HVI_INTERCEPT_CR8_WRITE, 0, 1);
    // Port 0x80 only delays; nothing answers there.
    vm.intercept(HVI_INTERCEPT_IO, 0x80 | (0x80 << 16), 0);
    for (const kind of [HVI_INTERCEPT_MSR_READ, HVI_INTERCEPT_MSR_WRITE]) {
      vm.intercept(kind, MSR_APIC_BASE, 1);
      vm.intercept(kind, MSR_TSC_DEADLINE, 1);
      for (let msr = MSR_X2APIC_FIRST; msr <= MSR_X2APIC_LAST; msr++) vm.intercept(kind, msr, 1);
    }
    vm.intercept(HVI_INTERCEPT_MSR_WRITE, MSR_TSC, 1);
    vm.intercept(HVI_INTERCEPT_MSR_WRITE, MSR_TSC_ADJUST, 1);
  }

  /** Puts a checked image into memory and the first vCPU at its entry. */
  load(image: LoadableImage): void {
    image.place(this.vm.ram, this.vm.vcpus[0]);
    if (image.firmware) this.platform.setUpAsFirmware();
    this.vm.vcpus[0].mpState = HVI_MP_RUNNING;
  }

  /** What a snapshot keeps of a vCPU beside its registers. */
  vcpuExtra(index: number): { halted: boolean; tscOffset: number } {
    return { halted: this.#halted[index], tscOffset: this.#tscOffset[index] };
  }

  setVcpuExtra(index: number, extra: { halted: boolean; tscOffset: number }): void {
    this.#halted[index] = extra.halted;
    this.#tscOffset[index] = extra.tscOffset;
  }

  /** Ends run() with this result at the next exit; the first result counts. */
  stop(result: RunResult): void {
    this.#result ??= result;
    this.#wake?.();
  }

  /** Ends run() with "paused" as soon as the machine can be saved. */
  pause(): void {
    this.#pausing = true;
    this.#wake?.();
  }

  /** Bytes typed at the console. */
  input(bytes: Uint8Array): void {
    this.platform.uart.feed(bytes);
    this.#wake?.();
  }

  /** No more input will come. */
  inputEnded(): void {
    this.options.inputOpen = false;
    this.#wake?.();
  }

  /** Guest time in seconds. */
  get guestSeconds(): number {
    return this.clock.now / (this.clock.khz * 1000);
  }

  /** Runs the guest until something ends it. */
  async run(): Promise<RunResult> {
    for (;;) {
      this.#slice();
      this.console.flush();
      this.onSlice();
      if (this.#result !== undefined) return this.#result;
      if (this.#allHalted() && !this.#anythingPending()) await this.#idle();
      else await new Promise<void>((resolve) => setImmediate(resolve));
      if (this.#result !== undefined) return this.#result;
    }
  }

  /** Every vCPU is halted: real time has to pass, or input to come. */
  async #idle(): Promise<void> {
    const { clock } = this;
    if (clock.next === Infinity && !this.options.inputOpen) return; // the next slice reports it
    const wait =
      clock.next === Infinity ? 1000 : Math.min(1000, (clock.next - clock.now) / clock.khz);
    const began = performance.now();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.max(0, wait));
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = undefined;
    const gone = (performance.now() - began) * clock.khz;
    this.#idleUntil = Math.min(clock.next, clock.now + Math.floor(gone));
  }

  /** Machine time to which a sleeping guest shall be moved; -1 for none. */
  #idleUntil = -1;

  #allHalted(): boolean {
    const halted = this.#halted;
    for (let i = 0; i < halted.length; i++)
      if (!halted[i] && this.vm.vcpus[i].mpState !== HVI_MP_WAIT_SIPI) return false;
    return true;
  }

  #anythingPending(): boolean {
    const { pic } = this.platform;
    for (let i = 0; i < this.#apics.length; i++) {
      const apic = this.#apics[i];
      if (apic.init || apic.startup >= 0 || apic.nmi) return true;
      if (apic.pending() >= 0 || (pic.intr && apic.takesExtInt)) return true;
    }
    return this.clock.next <= this.clock.now;
  }

  /** Runs guest code for about SLICE_MS, or until there is a result or nothing to run. */
  #slice(): void {
    const { vm, clock } = this;
    const began = performance.now();
    const ticksBefore = clock.now;
    let left = EXITS_PER_LOOK;
    while (this.#result === undefined) {
      if (this.#pausing && this.#settle()) {
        this.stop({ kind: "paused" });
        return;
      }
      if (clock.next <= clock.now) clock.advance(clock.now);
      this.#nmiWaits = false;
      for (let i = 0; i < this.#apics.length; i++) this.#deliver(i);
      // There is no exit for "NMIs are unblocked": an NMI that waits for it is tried after each instruction.
      const quantum = this.#nmiWaits ? 1 : this.#quantum;
      let deadline = Math.min(clock.next, clock.now + quantum);
      if (this.#allHalted()) {
        if (this.#dead()) return;
        if (!this.#anythingPending()) {
          if (this.#idleUntil >= 0) {
            deadline = this.#idleUntil;
            this.#idleUntil = -1;
          } else if (this.options.interactive || clock.next === Infinity) return;
          else deadline = clock.next;
        }
      }
      const observer = this.observer;
      // Rounded up: a device's deadline between two ticks must be over when the guest stops.
      deadline = Math.ceil(deadline) + this.#tscOffset[0];
      if (observer !== undefined && observer.deadline < deadline) deadline = observer.deadline;
      const vcpu = vm.run(deadline);
      const reason = this.#took(vcpu);
      if (observer !== undefined && (observer.eager || observer.deadline <= vcpu.exitTsc)) {
        observer.poll(vcpu);
      }
      if (--left <= 0 || reason === HVI_EXIT_DEADLINE) {
        left = EXITS_PER_LOOK;
        const spent = performance.now() - began;
        if (spent >= SLICE_MS) {
          // Aim at a look at the clock every half slice of pure guest work.
          const rate = (clock.now - ticksBefore) / spent;
          this.#quantum = Math.max(10_000, Math.min(rate * (SLICE_MS / 2), clock.khz * SLICE_MS));
          return;
        }
      }
    }
  }

  /**
   * Brings the machine to a point where registers are all there is of a vCPU:
   * the last exit's reply is taken and no event is half delivered. False when
   * the guest ended on the way.
   */
  #settle(): boolean {
    for (let i = 0; i < MAX_SETTLE_EXITS && this.#result === undefined; i++) {
      const vcpu = this.vm.run(Math.ceil(this.clock.now) + this.#tscOffset[0]);
      const reason = this.#took(vcpu);
      if (reason === HVI_EXIT_DEADLINE || reason === HVI_EXIT_IDLE) return true;
    }
    return false;
  }

  /** Deals with an exit; its reason. */
  #took(vcpu: Vcpu): number {
    const index = vcpu.index;
    this.#fresh = index;
    const now = vcpu.exitTsc - this.#tscOffset[index];
    if (now > this.clock.now) this.clock.now = now;
    const reason = vcpu.exitReason;
    if (this.#halted[index]) this.#halted[index] = vcpu.mpState === HVI_MP_HALTED;
    if (this.observer?.handle(vcpu)) {
      // With the other replies the exiting instruction runs first, and may change what can be taken.
      const action = vcpu.replyAction;
      if (action !== HVI_REPLY_SKIP && action !== HVI_REPLY_RETRY) this.#fresh = -1;
    } else this.#exit(vcpu, reason);
    return reason;
  }

  /** All are halted: ends the run when nothing can wake the guest any more. */
  #dead(): boolean {
    let takes = false;
    for (let i = 0; i < this.#apics.length; i++) {
      const apic = this.#apics[i];
      if (apic.nmi || apic.init || apic.startup >= 0 || this.vm.vcpus[i].eventPending) return false;
      if (this.#halted[i] && (this.vm.vcpus[i].rflags & RFLAGS_IF) !== 0) takes = true;
    }
    if (
      takes &&
      (this.clock.next !== Infinity || this.options.inputOpen || this.#anythingPending())
    )
      return false;
    const why = takes
      ? "it is halted and no device will ever interrupt it"
      : "it is halted with interrupts disabled";
    this.#die(this.vm.vcpus[0], why);
    return true;
  }

  #die(vcpu: Vcpu, why: string): void {
    if (this.#result !== undefined) return;
    this.stop({ kind: "died", why, dump: dumpVcpu(this.vm, vcpu) });
  }

  /** Hands vCPU i what waits for it: INIT, start-up, NMI, interrupt. */
  #deliver(i: number): void {
    const apic = this.#apics[i];
    const vcpu = this.vm.vcpus[i];
    if (apic.init || apic.startup >= 0) this.#startUp(apic, vcpu);
    if (vcpu.eventPending) return;
    const fresh = this.#fresh === i;
    if (apic.nmi) {
      if (fresh && (vcpu.interruptibility & HVI_BLOCK_NMI) === 0) {
        apic.nmi = false;
        this.#halted[i] = false;
        vcpu.inject(HVI_EVENT_NMI, VECTOR_NMI);
        return;
      }
      this.#nmiWaits = true;
    }
    const vector = apic.pending();
    if (vector < 0 && !(this.platform.pic.intr && apic.takesExtInt)) {
      if (vcpu.wantIrqWindow) vcpu.wantIrqWindow = false;
      return;
    }
    if (!fresh || !vcpu.irqReady) {
      vcpu.wantIrqWindow = true;
      return;
    }
    vcpu.wantIrqWindow = false;
    this.#halted[i] = false;
    if (vector >= 0) {
      apic.acknowledge(vector);
      vcpu.inject(HVI_EVENT_EXTERNAL, vector);
    } else {
      vcpu.inject(HVI_EVENT_EXTERNAL, this.platform.pic.acknowledge());
      this.platform.syncIntr();
    }
  }

  #startUp(apic: LocalApic, vcpu: Vcpu): void {
    if (apic.init) {
      apic.init = false;
      apic.resetByInit();
      this.#halted[apic.id] = false;
      if (apic.id === 0) {
        this.stop({ kind: "reset" });
        return;
      }
      this.vm.reset(vcpu.index);
      vcpu.mpState = HVI_MP_WAIT_SIPI;
    }
    if (apic.startup >= 0) {
      const vector = apic.startup;
      apic.startup = -1;
      // A CPU that runs already ignores start-up IPIs (SDM 8.4.2: the second of the two).
      if (vcpu.mpState === HVI_MP_WAIT_SIPI) enterRealMode(vcpu, vector);
    }
  }

  /** Devices' part of an exit. */
  #exit(vcpu: Vcpu, reason: number): void {
    switch (reason) {
      case HVI_EXIT_IO:
        this.#io(vcpu);
        return;
      case HVI_EXIT_EPT:
        if ((vcpu.exitAccess & HVI_ACCESS_NO_RAM) === 0) {
          vcpu.resume();
          return;
        }
        {
          const failure = this.#mmio.handle(vcpu);
          if (failure !== undefined) this.#die(vcpu, failure);
        }
        return;
      case HVI_EXIT_MSR_READ:
        this.#readMsr(vcpu);
        return;
      case HVI_EXIT_MSR_WRITE:
        this.#writeMsr(vcpu);
        return;
      case HVI_EXIT_CR_WRITE:
        if (vcpu.exitNumber === 8) this.#apics[vcpu.index].setCr8(vcpu.exitValueLo);
        vcpu.resume();
        return;
      case HVI_EXIT_HLT:
        // A trap that is due after the instruction (RFLAGS.TF) ends the halt at once.
        this.#halted[vcpu.index] = (vcpu.rflags & RFLAGS_TF) === 0;
        vcpu.resume();
        return;
      case HVI_EXIT_DEADLINE:
      case HVI_EXIT_IRQ_WINDOW:
      case HVI_EXIT_PAUSED:
        vcpu.resume();
        return;
      case HVI_EXIT_IDLE:
        vcpu.resume();
        return;
      case HVI_EXIT_SHUTDOWN:
        this.#die(vcpu, "triple fault");
        return;
      case HVI_EXIT_EMULATION:
        this.#die(
          vcpu,
          `the backend cannot do the instruction at RIP (detail 0x${vcpu.exitValueLo.toString(16)})`,
        );
        return;
      case HVI_EXIT_ENTRY_FAILED:
        this.#die(vcpu, `VM entry failed: ${vcpu.entryFailure}`);
        return;
      default:
        vcpu.resume();
    }
  }

  #io(vcpu: Vcpu): void {
    const flags = vcpu.exitFlags;
    if ((flags & HVI_IO_STRING) !== 0) {
      this.#stringIo.handle(vcpu);
      this.platform.syncIntr();
      return;
    }
    const { ports } = this.platform;
    if ((flags & HVI_IO_IN) !== 0) vcpu.setExitValue(ports.in(vcpu.exitNumber, vcpu.exitSize), 0);
    else {
      ports.out(vcpu.exitNumber, vcpu.exitSize, vcpu.exitValueLo);
      this.platform.syncIntr();
    }
    vcpu.skip();
  }

  #generalProtection(vcpu: Vcpu): void {
    vcpu.inject(HVI_EVENT_EXCEPTION, VECTOR_GP, 0);
    vcpu.injectReply();
  }

  #readMsr(vcpu: Vcpu): void {
    const msr = vcpu.exitNumber;
    if (
      msr !== MSR_APIC_BASE &&
      msr !== MSR_TSC_DEADLINE &&
      (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST)
    ) {
      vcpu.resume();
      return;
    }
    const apic = this.#apics[vcpu.index];
    let low = apic.msrRead(msr);
    let high = apic.high;
    if (low === -1) {
      this.#generalProtection(vcpu);
      return;
    }
    if (msr === MSR_TSC_DEADLINE && (low !== 0 || high !== 0)) {
      const deadline = high * TWO32 + low + this.#tscOffset[vcpu.index];
      high = Math.floor(deadline / TWO32);
      low = deadline % TWO32;
    }
    vcpu.setGpr(HVI_RAX, low, 0);
    vcpu.setGpr(HVI_RDX, high, 0);
    vcpu.skip();
  }

  #writeMsr(vcpu: Vcpu): void {
    const msr = vcpu.exitNumber;
    const low = vcpu.exitValueLo;
    const high = vcpu.exitValueHi;
    const index = vcpu.index;
    if (msr === MSR_TSC || msr === MSR_TSC_ADJUST) {
      // Devices keep their own time: the guest moved its counter, not theirs.
      const before = msr === MSR_TSC ? vcpu.exitTsc : signed64(vcpu.exitOldLo, vcpu.exitOldHi);
      this.#tscOffset[index] +=
        (msr === MSR_TSC ? high * TWO32 + low : signed64(low, high)) - before;
      vcpu.resume();
      return;
    }
    if (
      msr !== MSR_APIC_BASE &&
      msr !== MSR_TSC_DEADLINE &&
      (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST)
    ) {
      vcpu.resume();
      return;
    }
    const apic = this.#apics[index];
    if (msr === MSR_TSC_DEADLINE) {
      const deadline = high * TWO32 + low;
      apic.setTscDeadline(deadline === 0 ? 0 : Math.max(1, deadline - this.#tscOffset[index]));
    } else if (!apic.msrWrite(msr, low, high)) {
      this.#generalProtection(vcpu);
      return;
    }
    // CPUID tells whether the APIC is on, which is the backend's to answer.
    if (msr === MSR_APIC_BASE) vcpu.apicBase = high * TWO32 + apic.msrRead(MSR_APIC_BASE);
    vcpu.skip();
  }

  /** Frees the guest. */
  close(): void {
    this.console.flush();
    this.vm.close();
  }
}

function signed64(low: number, high: number): number {
  return (high | 0) * TWO32 + low;
}
