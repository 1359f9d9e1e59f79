// SPDX-License-Identifier: MIT
import type { Clock } from "../clock.ts";
import { type DeviceState, num, type Stateful } from "../device.ts";
import type { PortDevice } from "../ports.ts";

/*
 * ACPI fixed hardware (ACPI 6.4, 4.8.3): PM1a event block, PM1a control with
 * the S5 power-off, and the power management timer.
 */
export const ACPI_PM_BASE = 0x600;
export const PM1_EVENT = ACPI_PM_BASE;
export const PM1_CONTROL = ACPI_PM_BASE + 4;
export const PM_TIMER = ACPI_PM_BASE + 8;
export const ACPI_PM_LAST = ACPI_PM_BASE + 0xb;
/** SLP_TYP of S5, the only sleeping state that the DSDT declares. */
export const SLEEP_TYPE_S5 = 5;

const PM_TIMER_HZ = 3579545;
const SCI_EN = 1;
const SLP_EN = 1 << 13;

export class AcpiPm implements PortDevice, Stateful {
  readonly #tick: number;
  readonly #clock: Clock;
  readonly #powerOff: () => void;
  #status = 0;
  #enable = 0;
  #control = SCI_EN;

  constructor(clock: Clock, powerOff: () => void) {
    this.#clock = clock;
    this.#tick = clock.period(PM_TIMER_HZ);
    this.#powerOff = powerOff;
  }

  portIn(port: number): number {
    const offset = port - ACPI_PM_BASE;
    if (offset < 4) return (this.#status | (this.#enable << 16)) >>> (8 * offset);
    if (offset < 8) return this.#control >>> (8 * (offset - 4));
    return (Math.floor(this.#clock.now / this.#tick) & 0xffffff) >>> (8 * (offset - 8));
  }

  portOut(port: number, size: number, value: number): void {
    if (port === PM1_EVENT) this.#status &= ~value;
    if (port === PM1_EVENT && size === 4) this.#enable = value >>> 16;
    else if (port === PM1_EVENT + 2) this.#enable = value & 0xffff;
    else if (port === PM1_CONTROL) {
      // There is no SMI command port, so the machine is in ACPI mode for good.
      this.#control = (value & 0x1c06) | SCI_EN;
      if ((value & SLP_EN) !== 0) this.#powerOff();
    }
  }

  save(): DeviceState {
    return { status: this.#status, enable: this.#enable, control: this.#control };
  }

  restore(s: DeviceState): void {
    this.#status = num(s, "status");
    this.#enable = num(s, "enable");
    this.#control = num(s, "control");
  }
}
