// SPDX-License-Identifier: MIT
import type { Clock, Timer } from "../clock.ts";
import { type DeviceState, num, nums, type Stateful } from "../device.ts";

/*
 * Local APICs (SDM volume 3, chapter 11 "Advanced Programmable Interrupt
 * Controller"): xAPIC through memory, x2APIC through MSRs.
 */
export const LAPIC_BASE = 0xfee00000;
/** Rate of the APIC timer before its divider; told to the guest as the core crystal clock. */
export const LAPIC_HZ = 25_000_000;

export const MSR_APIC_BASE = 0x1b;
export const MSR_TSC_DEADLINE = 0x6e0;
export const MSR_X2APIC_FIRST = 0x800;
export const MSR_X2APIC_LAST = 0x83f;

const BASE_BSP = 1 << 8;
const BASE_EXTD = 1 << 10;
const BASE_ENABLE = 1 << 11;

/** Register numbers: offset in the page >> 4, MSR - 0x800. */
const R_ID = 0x02;
const R_VERSION = 0x03;
const R_TPR = 0x08;
const R_APR = 0x09;
const R_PPR = 0x0a;
const R_EOI = 0x0b;
const R_RRD = 0x0c;
const R_LDR = 0x0d;
const R_DFR = 0x0e;
const R_SVR = 0x0f;
const R_ISR = 0x10;
const R_TMR = 0x18;
const R_IRR = 0x20;
const R_ESR = 0x28;
const R_ICR = 0x30;
const R_ICR_HIGH = 0x31;
const R_LVT_TIMER = 0x32;
const R_LVT_LINT0 = 0x35;
const R_LVT_LINT1 = 0x36;
const R_LVT_ERROR = 0x37;
const R_TMICT = 0x38;
const R_TMCCT = 0x39;
const R_TDCR = 0x3e;
const R_SELF_IPI = 0x3f;

const LVT_MASKED = 1 << 16;
const SVR_ENABLED = 1 << 8;
const ESR_SEND_VECTOR = 1 << 5;
const ESR_RECEIVE_VECTOR = 1 << 6;
const ESR_REGISTER = 1 << 7;

const MODE_FIXED = 0;
const MODE_LOWEST = 1;
const MODE_NMI = 4;
const MODE_INIT = 5;
const MODE_STARTUP = 6;
const MODE_EXTINT = 7;

const TIMER_PERIODIC = 1;
const TIMER_TSC_DEADLINE = 2;

/** Writable bits of each LVT register. */
function lvtMask(register: number): number {
  if (register === R_LVT_TIMER) return 0x700ff;
  if (register === R_LVT_LINT0 || register === R_LVT_LINT1) return 0x1a7ff;
  if (register === R_LVT_ERROR) return 0x100ff;
  return 0x107ff;
}

function highest(bits: Uint32Array): number {
  for (let i = 7; i >= 0; i--) if (bits[i] !== 0) return i * 32 + 31 - Math.clz32(bits[i]);
  return -1;
}

export class LocalApic implements Stateful {
  readonly id: number;
  /** An NMI waits to be delivered. */
  nmi = false;
  /** An INIT arrived; the machine resets the vCPU and clears this. */
  init = false;
  /** A start-up IPI arrived after INIT: its vector, or -1. */
  startup = -1;
  /** Second half of a 64-bit MSR value that msrRead left. */
  high = 0;
  readonly #bus: LapicBus;
  readonly #clock: Clock;
  readonly #timer: Timer;
  /** APIC_BASE, low word. */
  #base: number;
  #tpr = 0;
  #ldr = 0;
  #dfr = 0xffffffff;
  #svr = 0xff;
  #esr = 0;
  #esrPending = 0;
  #icr = 0;
  #icrHigh = 0;
  #tmict = 0;
  #tdcr = 0;
  #timerStart = 0;
  readonly #lvt = new Uint32Array(0x40);
  readonly #isr = new Uint32Array(8);
  readonly #irr = new Uint32Array(8);
  readonly #tmr = new Uint32Array(8);
  /** Whether #irr may hold a bit: spares the scan on nearly every exit. */
  #requests = false;

  constructor(bus: LapicBus, id: number, clock: Clock) {
    this.#bus = bus;
    this.#clock = clock;
    this.id = id;
    this.#timer = clock.timer((deadline) => this.#expire(deadline));
    this.#base = (LAPIC_BASE | BASE_ENABLE | (id === 0 ? BASE_BSP : 0)) >>> 0;
    this.#reset();
  }

  /** State after power-up or INIT (SDM 11.4.7.1). */
  #reset(): void {
    this.#tpr = 0;
    this.#ldr = 0;
    this.#dfr = 0xffffffff;
    this.#svr = 0xff;
    this.#esr = 0;
    this.#esrPending = 0;
    this.#icr = 0;
    this.#icrHigh = 0;
    this.#tmict = 0;
    this.#tdcr = 0;
    this.#timer.stop();
    this.#lvt.fill(LVT_MASKED);
    this.#isr.fill(0);
    this.#irr.fill(0);
    this.#tmr.fill(0);
    this.#requests = false;
    if (this.x2apic) this.#ldr = this.#x2apicLdr();
  }

  /** INIT: everything but the APIC base, whose mode stays. */
  resetByInit(): void {
    this.#reset();
    this.nmi = false;
  }

  /** What a PC's firmware leaves: enabled, LINT0 takes the 8259's interrupts, LINT1 is NMI. */
  setUpAsFirmware(): void {
    this.#svr = 0x1ff;
    this.#lvt[R_LVT_LINT0] = 0x8700;
    this.#lvt[R_LVT_LINT1] = 0x8400;
  }

  get enabled(): boolean {
    return (this.#base & BASE_ENABLE) !== 0;
  }

  get x2apic(): boolean {
    return (this.#base & (BASE_ENABLE | BASE_EXTD)) === (BASE_ENABLE | BASE_EXTD);
  }

  get #softEnabled(): boolean {
    return this.enabled && (this.#svr & SVR_ENABLED) !== 0;
  }

  get tpr(): number {
    return this.#tpr;
  }

  /** CR8 was written: bits 7..4 of the TPR. */
  setCr8(value: number): void {
    this.#tpr = (value & 15) << 4;
  }

  #x2apicLdr(): number {
    return (((this.id >> 4) << 16) | (1 << (this.id & 15))) >>> 0;
  }

  #ppr(): number {
    const isr = highest(this.#isr);
    const service = isr < 0 ? 0 : isr & 0xf0;
    return (this.#tpr & 0xf0) >= service ? this.#tpr : service;
  }

  /** Vector of the interrupt to deliver now, or -1. */
  pending(): number {
    if (!this.#requests || !this.#softEnabled) return -1;
    const vector = highest(this.#irr);
    if (vector < 0) {
      this.#requests = false;
      return -1;
    }
    return (vector & 0xf0) > (this.#ppr() & 0xf0) ? vector : -1;
  }

  /** The vCPU takes `vector`, which pending() gave. */
  acknowledge(vector: number): void {
    const bit = 1 << (vector & 31);
    this.#irr[vector >> 5] &= ~bit;
    this.#isr[vector >> 5] |= bit;
  }

  /** Whether interrupts of the 8259 pair reach this CPU as ExtINT. */
  get takesExtInt(): boolean {
    if (!this.enabled) return this.id === 0;
    return (this.#lvt[R_LVT_LINT0] & (LVT_MASKED | 0x700)) === MODE_EXTINT << 8;
  }

  /** A rising edge of LINT0 (the 8259's INTR) while it is not in ExtINT mode. */
  lint0(): void {
    const lvt = this.#lvt[R_LVT_LINT0];
    if (this.enabled && (lvt & LVT_MASKED) === 0 && ((lvt >> 8) & 7) !== MODE_EXTINT)
      this.#local(R_LVT_LINT0);
  }

  /** An interrupt of a local source through its LVT entry. */
  #local(register: number): void {
    const lvt = this.#lvt[register];
    if ((lvt & LVT_MASKED) !== 0) return;
    const mode = (lvt >> 8) & 7;
    if (mode === MODE_NMI) this.nmi = true;
    else if (mode === MODE_FIXED) this.accept(lvt & 0xff, false);
  }

  /** A fixed interrupt arrives. */
  accept(vector: number, level: boolean): void {
    if (!this.enabled) return;
    if (vector < 16) {
      this.#error(ESR_RECEIVE_VECTOR);
      return;
    }
    const bit = 1 << (vector & 31);
    const word = vector >> 5;
    this.#irr[word] |= bit;
    if (level) this.#tmr[word] |= bit;
    else this.#tmr[word] &= ~bit;
    this.#requests = true;
  }

  #error(bit: number): void {
    if ((this.#esrPending & bit) !== 0) return;
    this.#esrPending |= bit;
    this.#local(R_LVT_ERROR);
  }

  /** Whether a message for `dest` is for this CPU. `wide`: the destination has 32 bits (from an x2APIC). */
  matches(dest: number, logical: boolean, wide: boolean): boolean {
    if (!this.enabled) return false;
    if (!logical) {
      if (dest === (wide ? 0xffffffff : 0xff)) return true;
      return dest === this.id;
    }
    if (this.x2apic) {
      if (dest === 0xffffffff) return true;
      return dest >>> 16 === this.#ldr >>> 16 && (dest & this.#ldr & 0xffff) !== 0;
    }
    const mine = this.#ldr >>> 24;
    if (dest === 0xff) return true;
    if (this.#dfr >>> 28 === 15) return (dest & mine) !== 0;
    return dest >> 4 === mine >> 4 && (dest & mine & 15) !== 0;
  }

  /** A message of the given delivery mode arrives. */
  receive(mode: number, vector: number, level: boolean): void {
    switch (mode) {
      case MODE_FIXED:
      case MODE_LOWEST:
        this.accept(vector, level);
        break;
      case MODE_NMI:
        this.nmi = true;
        break;
      case MODE_INIT:
        this.init = true;
        this.startup = -1;
        break;
      case MODE_STARTUP:
        this.startup = vector;
        break;
    }
  }

  #endOfInterrupt(): void {
    const vector = highest(this.#isr);
    if (vector < 0) return;
    const bit = 1 << (vector & 31);
    this.#isr[vector >> 5] &= ~bit;
    if ((this.#tmr[vector >> 5] & bit) !== 0) this.#bus.endOfInterrupt(vector);
  }

  // ---- timer ----

  get #timerMode(): number {
    return (this.#lvt[R_LVT_TIMER] >> 17) & 3;
  }

  /** TSC ticks of one count of the timer. */
  #tick(): number {
    const code = (this.#tdcr & 3) | ((this.#tdcr >> 1) & 4);
    const divide = code === 7 ? 1 : 2 << code;
    return this.#clock.period(LAPIC_HZ) * divide;
  }

  #startTimer(): void {
    this.#timerStart = this.#clock.now;
    if (this.#tmict === 0) this.#timer.stop();
    else this.#timer.set(this.#timerStart + this.#tmict * this.#tick());
  }

  #expire(deadline: number): void {
    this.#local(R_LVT_TIMER);
    if (this.#timerMode !== TIMER_PERIODIC || this.#tmict === 0) return;
    const period = this.#tmict * this.#tick();
    const behind = Math.floor((this.#clock.now - deadline) / period);
    this.#timerStart = deadline + behind * period;
    this.#timer.set(this.#timerStart + period);
  }

  #currentCount(): number {
    if (this.#tmict === 0 || this.#timerMode === TIMER_TSC_DEADLINE) return 0;
    const gone = Math.floor((this.#clock.now - this.#timerStart) / this.#tick());
    if (this.#timerMode === TIMER_PERIODIC) return this.#tmict - (gone % this.#tmict);
    return Math.max(0, this.#tmict - gone);
  }

  /** IA32_TSC_DEADLINE: the armed deadline, 0 when none. */
  get tscDeadline(): number {
    if (this.#timerMode !== TIMER_TSC_DEADLINE || this.#timer.deadline === Infinity) return 0;
    return this.#timer.deadline;
  }

  setTscDeadline(value: number): void {
    if (this.#timerMode !== TIMER_TSC_DEADLINE) return;
    if (value === 0) this.#timer.stop();
    else this.#timer.set(value);
  }

  // ---- registers ----

  /** A register by number; -1 when there is none. Bits 63..32 (ICR in x2APIC mode) go to `high`. */
  #read(register: number): number {
    if (register >= R_ISR && register < R_ISR + 8) return this.#isr[register - R_ISR];
    if (register >= R_TMR && register < R_TMR + 8) return this.#tmr[register - R_TMR];
    if (register >= R_IRR && register < R_IRR + 8) return this.#irr[register - R_IRR];
    if (register >= R_LVT_TIMER && register <= R_LVT_ERROR) return this.#lvt[register];
    switch (register) {
      case R_ID:
        return this.x2apic ? this.id : (this.id << 24) >>> 0;
      case R_VERSION:
        return 0x50014; // version 0x14 with six LVT entries, as QEMU's
      case R_TPR:
        return this.#tpr;
      case R_APR:
      case R_RRD:
        return this.x2apic ? -1 : 0;
      case R_PPR:
        return this.#ppr();
      case R_EOI:
        return this.x2apic ? -1 : 0;
      case R_LDR:
        return this.#ldr;
      case R_DFR:
        return this.x2apic ? -1 : this.#dfr;
      case R_SVR:
        return this.#svr;
      case R_ESR:
        return this.#esr;
      case R_ICR:
        this.high = this.x2apic ? this.#icrHigh : 0;
        return this.#icr;
      case R_ICR_HIGH:
        return this.x2apic ? -1 : this.#icrHigh;
      case R_TMICT:
        return this.#tmict;
      case R_TMCCT:
        return this.#currentCount();
      case R_TDCR:
        return this.#tdcr;
      default:
        return -1;
    }
  }

  #setLvt(register: number, value: number): void {
    let lvt = value & lvtMask(register);
    if (!this.#softEnabled) lvt |= LVT_MASKED;
    if (register === R_LVT_TIMER) {
      const before = this.#timerMode;
      this.#lvt[register] = lvt;
      const mode = this.#timerMode;
      if (before !== mode && (before === TIMER_TSC_DEADLINE || mode === TIMER_TSC_DEADLINE)) {
        this.#timer.stop();
        this.#tmict = 0;
      }
      return;
    }
    this.#lvt[register] = lvt;
  }

  /** False: no such register, or read-only. */
  #write(register: number, value: number, high: number): boolean {
    switch (register) {
      case R_ID:
        return !this.x2apic; // read-only here, silently in xAPIC mode
      case R_TPR:
        if (this.x2apic && value > 0xff) return false;
        this.#tpr = value & 0xff;
        this.#bus.onTpr(this.id, this.#tpr);
        return true;
      case R_EOI:
        if (this.x2apic && value !== 0) return false;
        this.#endOfInterrupt();
        return true;
      case R_LDR:
        if (this.x2apic) return false;
        this.#ldr = (value & 0xff000000) >>> 0;
        return true;
      case R_DFR:
        if (this.x2apic) return false;
        this.#dfr = (value | 0x0fffffff) >>> 0;
        return true;
      case R_SVR:
        if (this.x2apic && (value & ~0x11ff) !== 0) return false;
        this.#svr = value & 0x1ff;
        if ((value & SVR_ENABLED) === 0) {
          for (let i = R_LVT_TIMER; i <= R_LVT_ERROR; i++) this.#lvt[i] |= LVT_MASKED;
        }
        return true;
      case R_ESR:
        if (this.x2apic && value !== 0) return false;
        this.#esr = this.#esrPending;
        this.#esrPending = 0;
        return true;
      case R_ICR:
        // The delivery status bit is read-only.
        this.#icr = (value & 0xccfff & ~(1 << 12)) >>> 0;
        if (this.x2apic) this.#icrHigh = high;
        this.#sendIpi();
        return true;
      case R_ICR_HIGH:
        if (this.x2apic) return false;
        this.#icrHigh = value;
        return true;
      case R_TMICT:
        if (this.#timerMode === TIMER_TSC_DEADLINE) return true;
        this.#tmict = value;
        this.#startTimer();
        return true;
      case R_TDCR: {
        if (this.x2apic && (value & ~0xb) !== 0) return false;
        const left = this.#currentCount();
        this.#tdcr = value & 0xb;
        if (this.#timer.deadline !== Infinity && this.#timerMode !== TIMER_TSC_DEADLINE) {
          // The count goes on from where it is, at the new rate.
          this.#timerStart = this.#clock.now - (this.#tmict - left) * this.#tick();
          this.#timer.set(this.#clock.now + left * this.#tick());
        }
        return true;
      }
      case R_SELF_IPI:
        if (!this.x2apic || value > 0xff) return false;
        if (value < 16) this.#error(ESR_SEND_VECTOR);
        this.accept(value, false);
        return true;
      default:
        if (register < R_LVT_TIMER || register > R_LVT_ERROR) return false;
        if (this.x2apic && (value & ~(lvtMask(register) | 0x5000)) !== 0) return false;
        this.#setLvt(register, value);
        return true;
    }
  }

  #sendIpi(): void {
    const icr = this.#icr;
    const mode = (icr >> 8) & 7;
    const vector = icr & 0xff;
    const shorthand = (icr >> 18) & 3;
    if ((mode === MODE_FIXED || mode === MODE_LOWEST) && vector < 16) this.#error(ESR_SEND_VECTOR);
    // An INIT level de-assert does nothing on CPUs of this century (SDM 11.6.1).
    if (mode === MODE_INIT && (icr & (1 << 14)) === 0 && (icr & (1 << 15)) !== 0) return;
    const level = (icr & (1 << 15)) !== 0 && mode === MODE_FIXED;
    const dest = this.x2apic ? this.#icrHigh : this.#icrHigh >>> 24;
    if (shorthand === 0)
      this.#bus.send(mode, vector, dest, (icr & (1 << 11)) !== 0, level, this.x2apic);
    else if (shorthand === 1) this.receive(mode, vector, level);
    else this.#bus.broadcast(mode, vector, level, shorthand === 3 ? this.id : -1);
  }

  /** A read in the APIC page (xAPIC mode). */
  mmioRead(offset: number): number {
    // Registers are 16 bytes apart; bytes 4..15 of each are undefined (read as zero here).
    if ((offset & 0xc) !== 0) return 0;
    const value = this.#read(offset >> 4);
    if (value === -1) {
      this.#error(ESR_REGISTER);
      return 0;
    }
    return value >>> (8 * (offset & 3));
  }

  mmioWrite(offset: number, value: number): void {
    if ((offset & 15) !== 0) return;
    if (!this.#write(offset >> 4, value, 0)) this.#error(ESR_REGISTER);
  }

  /** RDMSR of an APIC register: the low half (high half in `high`), or -1 for #GP. */
  msrRead(msr: number): number {
    this.high = 0;
    if (msr === MSR_APIC_BASE) return this.#base;
    if (msr === MSR_TSC_DEADLINE) {
      const deadline = this.tscDeadline;
      this.high = Math.floor(deadline / 4294967296);
      return deadline % 4294967296;
    }
    if (!this.x2apic) return -1;
    const value = this.#read(msr - MSR_X2APIC_FIRST);
    return value === -1 ? -1 : value >>> 0;
  }

  /** WRMSR of an APIC register; false for #GP. */
  msrWrite(msr: number, low: number, high: number): boolean {
    if (msr === MSR_APIC_BASE) return this.#writeBase(low, high);
    if (msr === MSR_TSC_DEADLINE) {
      this.setTscDeadline(high * 4294967296 + low);
      return true;
    }
    if (!this.x2apic) return false;
    const register = msr - MSR_X2APIC_FIRST;
    if (high !== 0 && register !== R_ICR) return false;
    return this.#write(register, low, high);
  }

  #writeBase(low: number, high: number): boolean {
    if (high > 0xf || (low & 0x2ff) !== 0) return false;
    const enable = (low & BASE_ENABLE) !== 0;
    const extd = (low & BASE_EXTD) !== 0;
    // The transitions of SDM figure 11-27; anything else is #GP.
    if (extd && !enable) return false;
    if (this.x2apic && enable && !extd) return false;
    if (!this.enabled && extd) return false;
    const before = this.#base;
    this.#base = ((low & ~BASE_BSP) | (this.id === 0 ? BASE_BSP : 0)) >>> 0;
    if ((before & BASE_ENABLE) !== 0 && !enable) this.#reset();
    if (this.x2apic) this.#ldr = this.#x2apicLdr();
    this.#bus.onBase(this.id, high * 4294967296 + (low - (low % 4096)), enable && !extd);
    return true;
  }

  save(): DeviceState {
    return {
      base: this.#base,
      tpr: this.#tpr,
      ldr: this.#ldr,
      dfr: this.#dfr,
      svr: this.#svr,
      esr: this.#esr,
      esrPending: this.#esrPending,
      icr: this.#icr,
      icrHigh: this.#icrHigh,
      tmict: this.#tmict,
      tdcr: this.#tdcr,
      timerStart: this.#timerStart,
      deadline: this.#timer.deadline,
      lvt: Array.from(this.#lvt),
      isr: Array.from(this.#isr),
      irr: Array.from(this.#irr),
      tmr: Array.from(this.#tmr),
      nmi: this.nmi ? 1 : 0,
      init: this.init ? 1 : 0,
      startup: this.startup,
    };
  }

  restore(s: DeviceState): void {
    this.#base = num(s, "base");
    this.#tpr = num(s, "tpr");
    this.#ldr = num(s, "ldr");
    this.#dfr = num(s, "dfr");
    this.#svr = num(s, "svr");
    this.#esr = num(s, "esr");
    this.#esrPending = num(s, "esrPending");
    this.#icr = num(s, "icr");
    this.#icrHigh = num(s, "icrHigh");
    this.#tmict = num(s, "tmict");
    this.#tdcr = num(s, "tdcr");
    this.#timerStart = num(s, "timerStart");
    this.#lvt.set(nums(s, "lvt", 0x40));
    this.#isr.set(nums(s, "isr", 8));
    this.#irr.set(nums(s, "irr", 8));
    this.#tmr.set(nums(s, "tmr", 8));
    this.nmi = num(s, "nmi") !== 0;
    this.init = num(s, "init") !== 0;
    this.startup = num(s, "startup");
    this.#timer.set(num(s, "deadline"));
    this.#requests = true;
    this.#bus.onBase(this.id, this.#base - (this.#base % 4096), this.enabled && !this.x2apic);
  }
}

/** The bus between the local APICs and the I/O APIC. */
export class LapicBus {
  readonly apics: LocalApic[] = [];
  /** An EOI for a level-triggered vector. */
  endOfInterrupt: (vector: number) => void = () => {};
  /** The TPR of a CPU changed by a register write (CR8 follows). */
  onTpr: (id: number, tpr: number) => void = () => {};
  /** APIC_BASE of a CPU was written: where its page is, if it has one. */
  onBase: (id: number, gpa: number, mapped: boolean) => void = () => {};
  #turn = 0;

  add(clock: Clock): LocalApic {
    const apic = new LocalApic(this, this.apics.length, clock);
    this.apics.push(apic);
    return apic;
  }

  send(
    mode: number,
    vector: number,
    dest: number,
    logical: boolean,
    level: boolean,
    wide = false,
  ): void {
    const apics = this.apics;
    if (mode === MODE_LOWEST) {
      // Lowest priority: the CPUs that match take turns.
      for (let i = 0; i < apics.length; i++) {
        const apic = apics[(this.#turn + i) % apics.length];
        if (!apic.matches(dest, logical, wide)) continue;
        this.#turn = (apic.id + 1) % apics.length;
        apic.accept(vector, level);
        return;
      }
      return;
    }
    for (let i = 0; i < apics.length; i++)
      if (apics[i].matches(dest, logical, wide)) apics[i].receive(mode, vector, level);
  }

  /** To all, or all but one. */
  broadcast(mode: number, vector: number, level: boolean, but: number): void {
    for (const apic of this.apics)
      if (apic.id !== but && apic.enabled) apic.receive(mode, vector, level);
  }
}
