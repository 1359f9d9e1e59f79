// SPDX-License-Identifier: MIT
import type { PortDevice } from "../ports.ts";

/*
 * What is left of the rest of a PC: ports that only reset the machine, and
 * ports that say that there is nothing.
 */

/** Keyboard controller ports 0x60 and 0x64: no keyboard, but the reset pulse (command 0xfe) works. */
export class KeyboardController implements PortDevice {
  readonly #reset: () => void;

  constructor(reset: () => void) {
    this.#reset = reset;
  }

  /**
   * Reads as a bus without a controller, so that guests give up at once, but
   * with "input buffer full" clear, or they would wait before the reset.
   */
  portIn(port: number): number {
    return port === 0x64 ? 0xfd : 0xff;
  }

  portOut(port: number, _size: number, value: number): void {
    // Commands 0xf0..0xff pulse output lines; bit 0 clear pulses the reset line.
    if (port === 0x64 && (value & 0xf1) === 0xf0) this.#reset();
  }
}

/** Port 0x92: A20 (always on here) and the fast reset, bit 0. */
export class SystemControlPort implements PortDevice {
  readonly #reset: () => void;

  constructor(reset: () => void) {
    this.#reset = reset;
  }

  portIn(): number {
    return 2;
  }

  portOut(_port: number, _size: number, value: number): void {
    if ((value & 1) !== 0) this.#reset();
  }
}

/**
 * PCI configuration mechanism 1 (0xcf8..0xcff) of a bus without devices, and
 * in its midst the reset control register 0xcf9.
 */
export class PciConfig implements PortDevice {
  readonly #reset: () => void;
  #address = 0;

  constructor(reset: () => void) {
    this.#reset = reset;
  }

  portIn(port: number, size: number): number {
    if (port === 0xcf8 && size === 4) return this.#address;
    if (port === 0xcf9 && size === 1) return 0;
    return 0xffffffff;
  }

  portOut(port: number, size: number, value: number): void {
    if (port === 0xcf8 && size === 4) this.#address = value;
    else if (port === 0xcf9 && size === 1 && (value & 4) !== 0) this.#reset();
  }
}

/** Port 0x80 (POST codes, and Linux's I/O delay): remembers the last byte. */
export class PostPort implements PortDevice {
  last = 0;

  portIn(): number {
    return this.last;
  }

  portOut(_port: number, _size: number, value: number): void {
    this.last = value;
  }
}
