// SPDX-License-Identifier: MIT
import { type DeviceState, nums, type Stateful } from "../device.ts";
import type { MmioDevice, PortDevice } from "../ports.ts";

/*
 * The devices that public bare-metal test images expect of QEMU: the debug
 * console, isa-debug-exit and pc-testdev.
 */

/** Port 0xe9: what is written is a console byte; it reads as 0xe9 when it is there. */
export class DebugConsole implements PortDevice {
  readonly #onByte: (byte: number) => void;

  constructor(onByte: (byte: number) => void) {
    this.#onByte = onByte;
  }

  portIn(): number {
    return 0xe9;
  }

  portOut(_port: number, _size: number, value: number): void {
    this.#onByte(value);
  }
}

/** isa-debug-exit at 0xf4: writing v ends the machine with exit code (v << 1) | 1. */
export class DebugExit implements PortDevice {
  readonly #exit: (code: number) => void;

  constructor(exit: (code: number) => void) {
    this.#exit = exit;
  }

  portIn(): number {
    return 0;
  }

  portOut(_port: number, _size: number, value: number): void {
    this.#exit(((value << 1) | 1) & 0xff);
  }
}

export const TESTDEV_MMIO_BASE = 0xff000000;
export const TESTDEV_MMIO_SIZE = 0x10000;
export const TESTDEV_IRQ_PORT = 0x2000;
export const TESTDEV_IRQ_LINES = 24;

/**
 * pc-testdev: a register that reads back at 0xe0, a page flush at 0xe4 (there
 * is nothing to flush here), a byte register at 0xe8, interrupt lines to set
 * at 0x2000 + n, and 64 KiB of memory that is a device at 0xff000000.
 */
export class TestDevice implements PortDevice, MmioDevice, Stateful {
  readonly #setIrq: (line: number, level: boolean) => void;
  readonly #memory = new Uint8Array(TESTDEV_MMIO_SIZE);
  readonly #registers = new Uint8Array(12);

  constructor(setIrq: (line: number, level: boolean) => void) {
    this.#setIrq = setIrq;
  }

  portIn(port: number, size: number): number {
    if (port < 0xe0 || port > 0xeb) return 0;
    let value = 0;
    for (let i = 0; i < size && port + i <= 0xeb; i++)
      value |= this.#registers[port + i - 0xe0] << (8 * i);
    return value;
  }

  portOut(port: number, size: number, value: number): void {
    if (port >= TESTDEV_IRQ_PORT) {
      this.#setIrq(port - TESTDEV_IRQ_PORT, value !== 0);
      return;
    }
    for (let i = 0; i < size && port + i <= 0xeb; i++)
      this.#registers[port + i - 0xe0] = (value >>> (8 * i)) & 0xff;
  }

  mmioRead(offset: number, size: number): number {
    let value = 0;
    for (let i = 0; i < size; i++) value |= (this.#memory[offset + i] ?? 0) << (8 * i);
    return value >>> 0;
  }

  mmioWrite(offset: number, size: number, value: number): void {
    for (let i = 0; i < size && offset + i < TESTDEV_MMIO_SIZE; i++)
      this.#memory[offset + i] = (value >>> (8 * i)) & 0xff;
  }

  save(): DeviceState {
    // The memory is scratch space of tests within one run; only the registers are state.
    return { registers: Array.from(this.#registers) };
  }

  restore(s: DeviceState): void {
    this.#registers.set(nums(s, "registers", 12));
  }
}
