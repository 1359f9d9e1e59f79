// SPDX-License-Identifier: MIT
import type { Clock, Timer } from "../clock.ts";
import { type DeviceState, type IrqLine, num, nums, type Stateful } from "../device.ts";
import type { PortDevice } from "../ports.ts";

/*
 * MC146818 real-time clock and its CMOS memory behind ports 0x70 and 0x71.
 * The time of day is the host's at start plus the guest time gone by since.
 */
const REG_A = 0x0a;
const REG_B = 0x0b;
const REG_C = 0x0c;
const REG_D = 0x0d;
const REG_CENTURY = 0x32;
const A_UIP = 0x80;
const B_SET = 0x80;
const B_PIE = 0x40;
const B_AIE = 0x20;
const B_UIE = 0x10;
const B_BINARY = 0x04;
const B_24H = 0x02;
const C_PF = 0x40;
const C_AF = 0x20;
const C_UF = 0x10;

export class Rtc implements PortDevice, Stateful {
  readonly #clock: Clock;
  readonly #irq: IrqLine;
  readonly #second: Timer;
  readonly #periodic: Timer;
  readonly #ram = new Uint8Array(128);
  #index = 0;
  /** Seconds since 1970 that the clock showed at guest TSC 0. */
  #base: number;

  /** `epoch`: seconds since 1970 (UTC) at this moment of guest time. */
  constructor(clock: Clock, irq: IrqLine, epoch: number) {
    this.#clock = clock;
    this.#irq = irq;
    this.#base = epoch - this.#gone();
    this.#second = clock.timer(() => this.#tick());
    this.#periodic = clock.timer((deadline) => this.#period(deadline));
    this.#ram[REG_A] = 0x26;
    this.#ram[REG_B] = B_24H;
  }

  /** CMOS memory, for what a BIOS leaves there (memory sizes). */
  poke(index: number, value: number): void {
    this.#ram[index & 0x7f] = value;
  }

  #gone(): number {
    return this.#clock.now / (this.#clock.khz * 1000);
  }

  #time(): number {
    return this.#base + this.#gone();
  }

  #encode(value: number): number {
    if ((this.#ram[REG_B] & B_BINARY) !== 0) return value;
    return (Math.floor(value / 10) << 4) | (value % 10);
  }

  #decode(value: number): number {
    if ((this.#ram[REG_B] & B_BINARY) !== 0) return value;
    return (value >> 4) * 10 + (value & 15);
  }

  #hour(hour: number): number {
    if ((this.#ram[REG_B] & B_24H) !== 0) return this.#encode(hour);
    return this.#encode(hour % 12 === 0 ? 12 : hour % 12) | (hour >= 12 ? 0x80 : 0);
  }

  /** Puts the time into the registers 0, 2, 4, 6..9 and the century. */
  #show(): void {
    if ((this.#ram[REG_B] & B_SET) !== 0) return;
    const date = new Date(Math.floor(this.#time()) * 1000);
    const ram = this.#ram;
    ram[0] = this.#encode(date.getUTCSeconds());
    ram[2] = this.#encode(date.getUTCMinutes());
    ram[4] = this.#hour(date.getUTCHours());
    ram[6] = this.#encode(date.getUTCDay() + 1);
    ram[7] = this.#encode(date.getUTCDate());
    ram[8] = this.#encode(date.getUTCMonth() + 1);
    ram[9] = this.#encode(date.getUTCFullYear() % 100);
    ram[REG_CENTURY] = this.#encode(Math.floor(date.getUTCFullYear() / 100));
  }

  /** Takes the time from the registers. */
  #take(): void {
    const ram = this.#ram;
    let hour = this.#decode(ram[4] & 0x7f);
    if ((ram[REG_B] & B_24H) === 0) hour = (hour % 12) + ((ram[4] & 0x80) !== 0 ? 12 : 0);
    const year = this.#decode(ram[REG_CENTURY]) * 100 + this.#decode(ram[9]);
    const ms = Date.UTC(
      year,
      this.#decode(ram[8]) - 1,
      this.#decode(ram[7]),
      hour,
      this.#decode(ram[2]),
      this.#decode(ram[0]),
    );
    if (Number.isFinite(ms)) this.#base = ms / 1000 - this.#gone();
  }

  #raise(flag: number): void {
    this.#ram[REG_C] |= flag;
    // The enable bits of B stand where the flags of C do.
    if ((this.#ram[REG_B] & this.#ram[REG_C] & 0x70) !== 0) {
      this.#ram[REG_C] |= 0x80;
      this.#irq(true);
    }
  }

  #tick(): void {
    this.#show();
    this.#raise(C_UF);
    const ram = this.#ram;
    // An alarm byte with its top two bits set matches every value.
    const due = (alarm: number, now: number) =>
      (ram[alarm] & 0xc0) === 0xc0 || ram[alarm] === ram[now];
    if (due(1, 0) && due(3, 2) && due(5, 4)) this.#raise(C_AF);
    this.#arm();
  }

  #period(deadline: number): void {
    this.#raise(C_PF);
    this.#periodic.set(Math.max(deadline + this.#periodTicks(), this.#clock.now));
  }

  #periodTicks(): number {
    const rate = this.#ram[REG_A] & 15;
    // Rates 1 and 2 are those of 8 and 9 (MC146818 table 5).
    const shift = rate <= 2 ? rate + 6 : rate - 1;
    return this.#clock.period(32768) * 2 ** shift;
  }

  #arm(): void {
    const b = this.#ram[REG_B];
    if ((b & (B_AIE | B_UIE)) !== 0 && (b & B_SET) === 0) {
      const left = 1 - (this.#time() % 1);
      this.#second.set(this.#clock.now + left * this.#clock.khz * 1000);
    } else this.#second.stop();
    if ((b & B_PIE) !== 0 && (this.#ram[REG_A] & 15) !== 0) {
      if (this.#periodic.deadline === Infinity)
        this.#periodic.set(this.#clock.now + this.#periodTicks());
    } else this.#periodic.stop();
  }

  portIn(port: number): number {
    if (port === 0x70) return 0xff;
    const index = this.#index;
    if (index < 10 || index === REG_CENTURY) this.#show();
    if (index === REG_A) {
      // The update cycle begins 244 microseconds after UIP is set (data sheet).
      const updating = (this.#ram[REG_B] & B_SET) === 0 && this.#time() % 1 > 1 - 0.000244;
      return (this.#ram[REG_A] & 0x7f) | (updating ? A_UIP : 0);
    }
    if (index === REG_C) {
      const flags = this.#ram[REG_C];
      this.#ram[REG_C] = 0;
      this.#irq(false);
      return flags;
    }
    // D: the battery is fine.
    return index === REG_D ? 0x80 : this.#ram[index];
  }

  portOut(port: number, _size: number, value: number): void {
    if (port === 0x70) {
      this.#index = value & 0x7f;
      return;
    }
    const index = this.#index;
    const ram = this.#ram;
    if (index === REG_C || index === REG_D) return;
    if (index === REG_A) {
      ram[REG_A] = value & 0x7f;
      this.#periodic.stop();
      this.#arm();
      return;
    }
    if (index === REG_B) {
      const released = (ram[REG_B] & B_SET) !== 0 && (value & B_SET) === 0;
      this.#show();
      ram[REG_B] = value;
      if (released) this.#take();
      this.#arm();
      return;
    }
    const isTime =
      index === 0 ||
      index === 2 ||
      index === 4 ||
      (index >= 6 && index <= 9) ||
      index === REG_CENTURY;
    if (isTime) this.#show();
    ram[index] = value;
    if (isTime && (ram[REG_B] & B_SET) === 0) this.#take();
  }

  save(): DeviceState {
    return {
      index: this.#index,
      base: this.#base,
      ram: Array.from(this.#ram),
      second: this.#second.deadline,
      periodic: this.#periodic.deadline,
    };
  }

  restore(s: DeviceState): void {
    this.#index = num(s, "index") & 0x7f;
    this.#base = num(s, "base");
    this.#ram.set(nums(s, "ram", 128));
    this.#second.set(num(s, "second"));
    this.#periodic.set(num(s, "periodic"));
  }
}
