// SPDX-License-Identifier: MIT
import { type DeviceState, num, nums, type Stateful } from "../device.ts";
import type { MmioDevice } from "../ports.ts";

/*
 * 82093AA I/O APIC with 24 inputs, version 0x20 (with an EOI register), at
 * 0xfec00000. Redirection entries are held as two words.
 */
export const IOAPIC_BASE = 0xfec00000;
const PINS = 24;
const LOW_MASKED = 1 << 16;
const LOW_LEVEL = 1 << 15;
const LOW_REMOTE_IRR = 1 << 14;
const LOW_DELIVERY_STATUS = 1 << 12;
const LOW_LOGICAL = 1 << 11;

/** Sends an interrupt message: delivery mode, vector, destination, logical or physical, level or edge. */
export type SendMessage = (
  mode: number,
  vector: number,
  dest: number,
  logical: boolean,
  level: boolean,
) => void;

export class IoApic implements MmioDevice, Stateful {
  /** Where messages go; the machine sets it to the local APICs' bus. */
  send: SendMessage = () => {};
  readonly #low = new Uint32Array(PINS).fill(LOW_MASKED);
  readonly #high = new Uint32Array(PINS);
  #select = 0;
  #id = 0;
  /** Levels as the devices drive them (active high). */
  #lines = 0;
  /** Requests seen and not sent yet. */
  #irr = 0;

  /** Drives input `pin` (0..23). */
  set(pin: number, level: boolean): void {
    const bit = 1 << pin;
    const was = (this.#lines & bit) !== 0;
    if (level) this.#lines |= bit;
    else this.#lines &= ~bit;
    if ((this.#low[pin] & LOW_LEVEL) !== 0) {
      if (level) this.#irr |= bit;
      else this.#irr &= ~bit;
    } else if (level && !was && (this.#low[pin] & LOW_MASKED) === 0) {
      // Edges on a masked input are ignored (82093AA data sheet, 3.2.4).
      this.#irr |= bit;
    }
    this.#service(pin);
  }

  #service(pin: number): void {
    const low = this.#low[pin];
    const bit = 1 << pin;
    if ((this.#irr & bit) === 0 || (low & LOW_MASKED) !== 0) return;
    const level = (low & LOW_LEVEL) !== 0;
    if (level) {
      if ((low & LOW_REMOTE_IRR) !== 0) return;
      this.#low[pin] |= LOW_REMOTE_IRR;
    } else this.#irr &= ~bit;
    this.send((low >> 8) & 7, low & 0xff, this.#high[pin] >>> 24, (low & LOW_LOGICAL) !== 0, level);
  }

  /** An EOI of a level-triggered vector from a local APIC. */
  endOfInterrupt(vector: number): void {
    for (let pin = 0; pin < PINS; pin++) {
      const low = this.#low[pin];
      if (
        (low & 0xff) !== vector ||
        (low & (LOW_LEVEL | LOW_REMOTE_IRR)) !== (LOW_LEVEL | LOW_REMOTE_IRR)
      )
        continue;
      this.#low[pin] &= ~LOW_REMOTE_IRR;
      this.#service(pin);
    }
  }

  mmioRead(offset: number): number {
    if (offset === 0) return this.#select;
    if (offset !== 0x10) return 0;
    const select = this.#select;
    if (select === 0 || select === 2) return this.#id << 24;
    if (select === 1) return ((PINS - 1) << 16) | 0x20;
    const pin = (select - 0x10) >> 1;
    if (pin < 0 || pin >= PINS) return 0;
    return (select & 1) !== 0 ? this.#high[pin] : this.#low[pin];
  }

  mmioWrite(offset: number, _size: number, value: number): void {
    if (offset === 0) {
      this.#select = value & 0xff;
      return;
    }
    if (offset === 0x40) {
      this.endOfInterrupt(value & 0xff);
      return;
    }
    if (offset !== 0x10) return;
    const select = this.#select;
    if (select === 0) {
      this.#id = (value >>> 24) & 15;
      return;
    }
    const pin = (select - 0x10) >> 1;
    if (pin < 0 || pin >= PINS) return;
    if ((select & 1) !== 0) {
      this.#high[pin] = value & 0xff000000;
      return;
    }
    const readOnly = LOW_REMOTE_IRR | LOW_DELIVERY_STATUS;
    this.#low[pin] = (value & 0x1ffff & ~readOnly) | (this.#low[pin] & readOnly);
    const bit = 1 << pin;
    if ((value & LOW_LEVEL) === 0) {
      // Turning an entry to edge mode clears remote IRR; Linux does so to force an EOI.
      this.#low[pin] &= ~LOW_REMOTE_IRR;
    } else if ((this.#lines & bit) !== 0) this.#irr |= bit;
    else this.#irr &= ~bit;
    this.#service(pin);
  }

  save(): DeviceState {
    return {
      low: Array.from(this.#low),
      high: Array.from(this.#high),
      select: this.#select,
      id: this.#id,
      lines: this.#lines,
      irr: this.#irr,
    };
  }

  restore(s: DeviceState): void {
    this.#low.set(nums(s, "low", PINS));
    this.#high.set(nums(s, "high", PINS));
    this.#select = num(s, "select");
    this.#id = num(s, "id");
    this.#lines = num(s, "lines");
    this.#irr = num(s, "irr");
  }
}
