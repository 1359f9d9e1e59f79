// SPDX-License-Identifier: MIT
import {
  HVI_EVENT_EXCEPTION,
  HVI_IO_IN,
  HVI_IO_REP,
  HVI_RCX,
  HVI_RDI,
  HVI_RSI,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";
import { asGva, type VirtualMemory } from "../memory/index.ts";
import { vcpuMemory } from "./dump.ts";
import type { PortMap } from "./ports.ts";
import { addToRegister } from "./registers.ts";

const RFLAGS_DF = 0x400;
const VECTOR_PF = 14;
const CR0_WP = 0x10000;
const PF_PRESENT = 1;
const PF_WRITE = 2;
const PF_USER = 4;

/** Speaks for the EPT, which devices go past. */
export interface DeviceGuard {
  /** Whether a device may write [gpa, gpa + size) in one page, which the guest knows as `gva`. */
  mayWrite(vcpu: Vcpu, gva: number, gpa: number, size: number): boolean;
  /** A device has written the page that `gpa` lies in. */
  wrote(gpa: number): void;
  /** Changes bytes read from `gpa` on, in one page, to what the guest would have read. */
  overlay(gpa: number, bytes: Uint8Array): void;
}

/**
 * INS and OUTS: one element an exit. With REP the instruction is run again
 * for the next one, so that interrupts come in between as on a CPU.
 */
export class StringIo {
  readonly #vm: Vm;
  readonly #ports: PortMap;
  readonly #guard: () => DeviceGuard | undefined;
  readonly #bytes = new Uint8Array(4);

  constructor(vm: Vm, ports: PortMap, guard: () => DeviceGuard | undefined) {
    this.#vm = vm;
    this.#ports = ports;
    this.#guard = guard;
  }

  handle(vcpu: Vcpu): void {
    const input = (vcpu.exitFlags & HVI_IO_IN) !== 0;
    const size = vcpu.exitSize;
    const gva = vcpu.exitGva;
    const memory = vcpuMemory(this.#vm, vcpu);
    // Check first and last byte before the port is touched: a fault must leave the device alone.
    const first = this.#place(vcpu, memory, gva, input);
    const last = first < 0 ? -1 : this.#place(vcpu, memory, gva + size - 1, input);
    if (first < 0 || last < 0) return;
    const { physical } = memory;
    const split = Math.min(size, 0x1000 - (first & 0xfff));
    const place = (i: number) => (i < split ? first + i : last - (size - 1 - i));
    if (input) {
      const value = this.#ports.in(vcpu.exitNumber, size);
      const guard = this.#guard();
      const head = guard?.mayWrite(vcpu, gva, first, split) ?? true;
      const tail =
        split === size || (guard?.mayWrite(vcpu, gva + split, place(split), size - split) ?? true);
      for (let i = 0; i < size; i++) {
        if (i < split ? head : tail) physical.write8(place(i), (value >>> (8 * i)) & 0xff);
      }
      if (head) guard?.wrote(first);
      if (tail && split < size) guard?.wrote(place(split));
    } else {
      const bytes = this.#bytes;
      for (let i = 0; i < size; i++) bytes[i] = Math.max(0, physical.read8(place(i)));
      const guard = this.#guard();
      guard?.overlay(first, bytes.subarray(0, split));
      if (split < size) guard?.overlay(place(split), bytes.subarray(split, size));
      let value = 0;
      for (let i = 0; i < size; i++) value |= (bytes[i] as number) << (8 * i);
      this.#ports.out(vcpu.exitNumber, size, value >>> 0);
    }
    this.#advance(vcpu, input ? HVI_RDI : HVI_RSI, size);
  }

  /** Where a byte stands, when the guest's tables let the instruction at it; else -1, and #PF is injected. */
  #place(vcpu: Vcpu, memory: VirtualMemory, gva: number, write: boolean): number {
    const gpa = memory.gpaOf(asGva(gva));
    const user = vcpu.cpl === 3;
    const protect = user || (vcpu.cr0 & CR0_WP) !== 0;
    const { writable, user: userPage } = memory.last;
    if (gpa >= 0 && !(write && protect && !writable) && !(user && !userPage)) return gpa;
    const error = (gpa < 0 ? 0 : PF_PRESENT) | (write ? PF_WRITE : 0) | (user ? PF_USER : 0);
    vcpu.inject(HVI_EVENT_EXCEPTION, VECTOR_PF, error, gva);
    vcpu.injectReply();
    return -1;
  }

  #advance(vcpu: Vcpu, pointer: number, size: number): void {
    const step = (vcpu.rflags & RFLAGS_DF) !== 0 ? -size : size;
    const wide = addressSize(vcpu);
    addToRegister(vcpu, pointer, step, wide);
    if ((vcpu.exitFlags & HVI_IO_REP) === 0) {
      vcpu.skip();
      return;
    }
    if (addToRegister(vcpu, HVI_RCX, -1, wide)) vcpu.skip();
    else vcpu.retry();
  }
}

/** Default address size of the code segment, bytes. An address-size prefix on INS/OUTS is not looked at. */
function addressSize(vcpu: Vcpu): 2 | 4 | 8 {
  const access = vcpu.segAccess(1);
  if ((vcpu.efer & 0x400) !== 0 && (access & 0x2000) !== 0) return 8;
  return (access & 0x4000) !== 0 ? 4 : 2;
}
