// SPDX-License-Identifier: MIT
import { type DeviceState, num, type Stateful } from "../device.ts";
import type { PortDevice } from "../ports.ts";

/*
 * QEMU's firmware configuration interface, the traditional port version
 * (docs/specs/fw_cfg of QEMU): selector at 0x510 (word), data at 0x511 (byte).
 */
export const FW_CFG_SELECTOR = 0x510;
export const FW_CFG_DATA = 0x511;

const KEY_SIGNATURE = 0x00;
const KEY_ID = 0x01;
const KEY_RAM_SIZE = 0x03;
const KEY_NB_CPUS = 0x05;
const KEY_MAX_CPUS = 0x0f;
const KEY_FILE_DIR = 0x19;

export class FwCfg implements PortDevice, Stateful {
  readonly #items = new Map<number, Uint8Array>();
  #key = 0;
  #offset = 0;

  /** `ram` in bytes. */
  constructor(ram: number, cpus: number) {
    const size = new Uint8Array(8);
    new DataView(size.buffer).setUint32(0, ram % 4294967296, true);
    new DataView(size.buffer).setUint32(4, Math.floor(ram / 4294967296), true);
    this.#items.set(KEY_SIGNATURE, new TextEncoder().encode("QEMU"));
    this.#items.set(KEY_ID, Uint8Array.of(1, 0, 0, 0));
    this.#items.set(KEY_RAM_SIZE, size);
    this.#items.set(KEY_NB_CPUS, Uint8Array.of(cpus & 0xff, cpus >> 8));
    this.#items.set(KEY_MAX_CPUS, Uint8Array.of(cpus & 0xff, cpus >> 8));
    // A directory of no files: a big-endian count.
    this.#items.set(KEY_FILE_DIR, new Uint8Array(4));
  }

  portIn(port: number, size: number): number {
    if (port !== FW_CFG_DATA || size !== 1) return 0;
    return this.#items.get(this.#key)?.[this.#offset++] ?? 0;
  }

  portOut(port: number, size: number, value: number): void {
    if (port !== FW_CFG_SELECTOR || size !== 2) return;
    this.#key = value & 0x3fff;
    this.#offset = 0;
  }

  save(): DeviceState {
    return { key: this.#key, offset: this.#offset };
  }

  restore(s: DeviceState): void {
    this.#key = num(s, "key");
    this.#offset = num(s, "offset");
  }
}
