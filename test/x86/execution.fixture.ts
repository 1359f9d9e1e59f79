// SPDX-License-Identifier: MIT
/**
 * Reads what test/isa/record.c writes: states of instructions that ran on the host's CPU and in
 * hv/soft with the same result, and the accesses that left the guest when all its memory was taken
 * away.
 *
 * One state: bits, length, whether vector registers follow, number of accesses (u32 each); 16 bytes
 * of code; registers, RIP, RFLAGS and perhaps XSAVE area before, the same after; accesses (address
 * u64, HVI_ACCESS_* u32, size u32); changes of memory since the state before this one; changes by
 * the instruction. Changes: offset and length u16, bytes; a length of 0 ends them.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import * as abi from "../../src/bridge/abi.ts";
import { fakeVm } from "../../src/bridge/fake.fixture.ts";
import type { Vcpu } from "../../src/bridge/vcpu.ts";
import { FakeTables } from "../../src/memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../../src/memory/physical.ts";
import { VirtualMemory } from "../../src/memory/virtual.ts";
import type { InsnContext } from "../../src/x86/context.ts";
import type { CodeMode } from "../../src/x86/instruction.ts";
import { XSTATE_BV, XsaveLayout } from "../../src/x86/xsave.ts";

/** As in test/isa/isa.h. */
const CODE = 0x10000000;
const DATA = 0x10010000;
const STACK = 0x10020000;
const PART = 0x2000;
const XSAVE_SIZE = 832;
const REGISTERS = 18 * 8;

const CODE_GPA = 0x10000;
const DATA_GPA = 0x20000;
const TABLES_GPA = 0x30000;
const WINDOW = 1 << 22;

export interface Watched {
  gva: number;
  /** HVI_ACCESS_* */
  kind: number;
  size: number;
}

/** A recording, and the state that next() stands at. */
export class Recording implements InsnContext {
  readonly vcpu: Vcpu;
  readonly memory: VirtualMemory;
  mode: CodeMode = 64;
  readonly code = new Uint8Array(16);
  /** Registers after it: RAX... RIP, RFLAGS, as words. */
  readonly after = new Uint32Array(REGISTERS / 4);
  readonly xsaveAfter = new Uint8Array(XSAVE_SIZE);
  hasVectors = false;
  accesses: Watched[] = [];
  /** DATA and STACK, before and after. */
  readonly before: Uint8Array;
  readonly memoryAfter = new Uint8Array(2 * PART);
  /** Bytes of them in pieces of 8 that hold a change. */
  readonly changed: number[] = [];

  readonly #fd: number;
  readonly #size: number;
  #at = 0;
  readonly #window = new Uint8Array(WINDOW);
  readonly #view = new DataView(this.#window.buffer);
  #windowAt = 0;
  #windowEnd = 0;
  readonly #xsave = new Uint8Array(XSAVE_SIZE);
  readonly #layout = new XsaveLayout([]);

  constructor(path: string) {
    this.#fd = openSync(path, "r");
    this.#size = fstatSync(this.#fd).size;
    const { vm } = fakeVm({ size: 0x40000 });
    const physical = new PhysicalMemory(vm.ram);
    const tables = new FakeTables(physical, "4level", TABLES_GPA);
    tables.map(CODE, CODE_GPA);
    for (let i = 0; i < PART; i += 0x1000) {
      tables.map(DATA + i, DATA_GPA + i);
      tables.map(STACK + i, DATA_GPA + PART + i);
    }
    this.memory = new VirtualMemory(physical, tables.root, "4level");
    this.before = vm.ram.view(DATA_GPA, 2 * PART) as Uint8Array;
    this.vcpu = vm.vcpus[0];
    const v = this.vcpu;
    v.cr0 = 0x80050033;
    v.cr4 = 0x40620;
    v.efer = 0xd01;
    v.xcr0 = 7;
    for (const i of [abi.HVI_ES, abi.HVI_SS, abi.HVI_DS]) v.setSeg(i, 0x2b, 0, 0xffffffff, 0xc0f3);
    for (const i of [abi.HVI_FS, abi.HVI_GS]) v.setSeg(i, 0, 0, 0, abi.HVI_SEG_UNUSABLE);
  }
  xsave(): Uint8Array {
    return this.#xsave;
  }
  xsaveLayout(): XsaveLayout {
    return this.#layout;
  }

  /** Address of a byte of `before` and `memoryAfter`. */
  static address(offset: number): number {
    return offset < PART ? DATA + offset : STACK + offset - PART;
  }
  /** The byte of them at an address; -1 outside. */
  static offset(gva: number): number {
    if (gva >= DATA && gva < DATA + PART) return gva - DATA;
    return gva >= STACK && gva < STACK + PART ? gva - STACK + PART : -1;
  }

  #fill(): void {
    const n = readSync(this.#fd, this.#window, 0, WINDOW, this.#at);
    this.#windowAt = this.#at;
    this.#windowEnd = this.#at + n;
  }
  /** Index in the window of the next n bytes, which are then behind us. */
  #take(n: number): number {
    if (this.#at + n > this.#windowEnd) {
      this.#fill();
      if (this.#at + n > this.#windowEnd) throw new Error("the recording is cut off");
    }
    const i = this.#at - this.#windowAt;
    this.#at += n;
    return i;
  }
  #word(): number {
    return this.#view.getUint32(this.#take(4), true);
  }
  #copy(to: Uint8Array): void {
    const i = this.#take(to.length);
    to.set(this.#window.subarray(i, i + to.length));
  }
  #changes(to: Uint8Array): void {
    this.changed.length = 0;
    for (;;) {
      const head = this.#word();
      const offset = head & 0xffff;
      const n = head >>> 16;
      if (n === 0) return;
      const i = this.#take(n);
      to.set(this.#window.subarray(i, i + n), offset);
      for (let k = offset; k < offset + n; k++) this.changed.push(k);
    }
  }

  /** Goes to the next state; false at the end. */
  next(): boolean {
    if (this.#at === this.#size) {
      closeSync(this.#fd);
      return false;
    }
    this.mode = this.#word() === 64 ? 64 : 32;
    this.#word();
    this.hasVectors = this.#word() !== 0;
    const count = this.#word();
    this.#copy(this.code);
    const v = this.vcpu;
    if (this.mode === 64) v.setSeg(abi.HVI_CS, 0x33, 0, 0xffffffff, 0xa0fb);
    else v.setSeg(abi.HVI_CS, 0x23, 0, 0xffffffff, 0xc0fb);
    for (let i = 0; i < 16; i++) {
      const lo = this.#word();
      v.setGpr(i, lo, this.#word());
    }
    v.rip = this.#word() + this.#word() * 2 ** 32;
    v.rflags = this.#word();
    this.#word();
    if (this.hasVectors) this.#copy(this.#xsave);
    for (let i = 0; i < this.after.length; i++) this.after[i] = this.#word();
    if (this.hasVectors) {
      this.#copy(this.xsaveAfter);
      // test/isa/host.c leaves the header out; all components are there.
      this.xsaveAfter[XSTATE_BV] = 7;
    }
    this.accesses = [];
    for (let i = 0; i < count; i++) {
      const at = this.#take(16);
      const gva = Number(this.#view.getBigInt64(at, true));
      const kind = this.#view.getUint32(at + 8, true);
      this.accesses.push({ gva, kind, size: this.#view.getUint32(at + 12, true) });
    }
    // The record goes on from what the last instruction left.
    this.before.set(this.memoryAfter);
    this.#changes(this.before);
    this.memoryAfter.set(this.before);
    this.#changes(this.memoryAfter);
    return true;
  }
}
