// SPDX-License-Identifier: MIT
import {
  HVI_ALL_VCPUS,
  HVI_GPRS,
  HVI_SEGS,
  HVI_STATE_ALL,
  HviError,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";
import { isCanonical48 } from "../memory/address.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import type { U64 } from "../memory/physical.ts";
import type { CodeMode } from "../x86/instruction.ts";
import { codeMode, currentRing, type IdtEntry, idtEntry } from "../x86/segments.ts";

const EINVAL = 22;
/** The vCPU whose exit is being handled. */
export const CURRENT_VCPU = -1;
const TWO32 = 4294967296;

/** General and control registers of one vCPU; filled again and again. */
export class Gprs {
  /** RAX..R15 in the order of their encoding (HVI_RAX ...), as halves. */
  readonly lo = new Uint32Array(HVI_GPRS);
  readonly hi = new Uint32Array(HVI_GPRS);
  /** Signed canonical. */
  rip = 0;
  rflags = 0;
  cr0 = 0;
  /** Signed canonical. */
  cr2 = 0;
  /** The kernel's root, where page-table isolation has the user's in CR3. */
  cr3 = 0;
  cr4 = 0;
  cr8 = 0;
  dr7 = 0;

  /** Register i as a signed number, rounded beyond 2^53. */
  value(i: number): number {
    return (this.hi[i] | 0) * TWO32 + this.lo[i];
  }
}

/** The same with the descriptor tables. */
export class Registers extends Gprs {
  /** Signed canonical. */
  idtBase = 0;
  idtLimit = 0;
  gdtBase = 0;
  gdtLimit = 0;
}

/** ES, CS, SS, DS, FS, GS in the order of their encoding (HVI_ES ...). */
export class Segments {
  readonly selector = new Uint16Array(HVI_SEGS);
  /** Signed canonical. */
  readonly base = new Float64Array(HVI_SEGS);
  /** Bytes, granularity applied. */
  readonly limit = new Uint32Array(HVI_SEGS);
  /** VMX format (SDM vol. 3, 24.4.1). */
  readonly access = new Uint32Array(HVI_SEGS);
}

/**
 * The state of a guest's vCPUs. What is asked of the current one costs nothing;
 * another one is paused, its registers fetched, and let go on, and what was
 * fetched holds until it runs again.
 *
 * Nothing here throws for a guest's state. A vCPU number that does not exist is a
 * RangeError, and a backend that is gone throws as Vm does.
 */
export class GuestState {
  /** Pauses of each vCPU that were not taken back. */
  readonly #pauses: Int32Array;
  #current: Vcpu;

  constructor(
    private readonly vm: Vm,
    private readonly memory: GuestMemory,
  ) {
    this.#pauses = new Int32Array(vm.vcpus.length);
    this.#current = this.#at(0);
  }

  /** The vCPU whose exit is being handled; the engine says so at each exit. */
  get current(): Vcpu {
    return this.#current;
  }
  set current(vcpu: Vcpu) {
    this.#current = vcpu;
  }

  // ---- the guest ----------------------------------------------------------

  get cpuCount(): number {
    return this.#pauses.length;
  }
  /** Ticks of the TSC in a second. */
  get tscSpeed(): number {
    return this.vm.info.tscKhz * 1000;
  }
  /** The last frame that has RAM. What the EPT could map is Vm.info.maxGfn. */
  get maxGfn(): number {
    let end = 0;
    for (const slot of this.vm.ram.slots) end = Math.max(end, slot.gpa + slot.size);
    return end / 0x1000 - 1;
  }

  // ---- pausing ------------------------------------------------------------

  /**
   * Stops a vCPU, or all (HVI_ALL_VCPUS), until as many resume() follow. Pauses
   * are counted here: whoever calls Vm.pause() and Vm.resume() beside it undoes them.
   */
  pause(cpu: number = HVI_ALL_VCPUS): void {
    if (cpu === HVI_ALL_VCPUS) {
      for (let i = 0; i < this.#pauses.length; i++) this.pause(i);
      return;
    }
    const { index } = this.#at(cpu);
    if (this.#pauses[index] === 0) this.vm.pause(index);
    this.#pauses[index]++;
  }
  /** Takes one pause() back. Throws when there is none. */
  resume(cpu: number = HVI_ALL_VCPUS): void {
    if (cpu === HVI_ALL_VCPUS) {
      for (let i = 0; i < this.#pauses.length; i++) this.resume(i);
      return;
    }
    const { index } = this.#at(cpu);
    if (this.#pauses[index] === 0) throw new Error(`vCPU ${index} is not paused`);
    if (--this.#pauses[index] === 0) this.vm.resume(index);
  }

  #at(cpu: number): Vcpu {
    const vcpu = cpu === CURRENT_VCPU ? this.#current : this.vm.vcpus[cpu];
    if (vcpu === undefined) throw new RangeError(`there is no vCPU ${cpu}`);
    return vcpu;
  }

  // ---- reading ------------------------------------------------------------

  /**
   * A vCPU with all its registers at hand: RIP, CR0, CR4, EFER, IDTR, GDTR, bases
   * of FS and GS, EPTP index and the rest are its own getters.
   */
  look(cpu: number = CURRENT_VCPU): Vcpu {
    const vcpu = this.#at(cpu);
    if (vcpu === this.#current) return vcpu;
    this.pause(vcpu.index);
    try {
      this.vm.fetch(vcpu.index, HVI_STATE_ALL);
    } finally {
      this.resume(vcpu.index);
    }
    return vcpu;
  }

  /** CR3, or with page-table isolation the kernel's root that belongs to it. */
  cr3(cpu: number = CURRENT_VCPU): number {
    return this.memory.kernelRootOf(this.look(cpu).cr3);
  }
  /** 0..3. */
  ring(cpu: number = CURRENT_VCPU): number {
    return currentRing(this.look(cpu));
  }
  /** Bits of the code that runs: compatibility mode has 16 or 32. */
  mode(cpu: number = CURRENT_VCPU): CodeMode {
    return codeMode(this.look(cpu));
  }
  /** An entry of the IDT; undefined when it is beyond the limit or not present in memory. */
  idtEntry(vector: number, cpu: number = CURRENT_VCPU): IdtEntry | undefined {
    const vcpu = this.look(cpu);
    return idtEntry(vcpu, this.memory.current(vcpu), vector);
  }

  /** General and control registers. */
  readGprs(out: Gprs, cpu: number = CURRENT_VCPU): void {
    const vcpu = this.look(cpu);
    for (let i = 0; i < HVI_GPRS; i++) {
      out.lo[i] = vcpu.gprLo(i);
      out.hi[i] = vcpu.gprHi(i);
    }
    out.rip = vcpu.rip;
    out.rflags = vcpu.rflags;
    out.cr0 = vcpu.cr0;
    out.cr2 = vcpu.cr2;
    out.cr3 = this.memory.kernelRootOf(vcpu.cr3);
    out.cr4 = vcpu.cr4;
    out.cr8 = vcpu.cr8;
    out.dr7 = vcpu.dr(7);
  }
  /** The same with IDTR and GDTR. */
  readRegisters(out: Registers, cpu: number = CURRENT_VCPU): void {
    this.readGprs(out, cpu);
    // Fetched by readGprs.
    const vcpu = this.#at(cpu);
    out.idtBase = vcpu.idtBase;
    out.idtLimit = vcpu.idtLimit;
    out.gdtBase = vcpu.gdtBase;
    out.gdtLimit = vcpu.gdtLimit;
  }
  readSegments(out: Segments, cpu: number = CURRENT_VCPU): void {
    const vcpu = this.look(cpu);
    for (let i = 0; i < HVI_SEGS; i++) {
      out.selector[i] = vcpu.segSelector(i);
      out.base[i] = vcpu.segBase(i);
      out.limit[i] = vcpu.segLimit(i);
      out.access[i] = vcpu.segAccess(i);
    }
  }
  /** An MSR by its number; false, with `out` untouched, for one that the backend does not have. */
  readMsr(msr: number, out: U64, cpu: number = CURRENT_VCPU): boolean {
    const { index } = this.#at(cpu);
    const value = refused(() => this.vm.getMsrs(index, [msr])[0]);
    if (value === undefined) return false;
    out.lo = Number(value & 0xffffffffn);
    out.hi = Number(value >> 32n);
    return true;
  }

  /** Bytes of the largest XSAVE area. */
  get xsaveSize(): number {
    return this.vm.info.xsaveSize;
  }
  /** A copy of the XSAVE area, standard format (SDM vol. 1, 13.4). */
  readXsave(cpu: number = CURRENT_VCPU): Uint8Array {
    return this.vm.getXsave(this.#at(cpu).index);
  }

  // ---- setting ------------------------------------------------------------

  /**
   * Sets RAX..R15, RIP and RFLAGS; they count from the vCPU's next instruction.
   * Control registers and descriptor tables are not set here: CR3 of a record may
   * be another than the guest's.
   * @returns false, with nothing changed, when RIP is none that the CPU would take
   */
  setGprs(from: Gprs, cpu: number = CURRENT_VCPU): boolean {
    const vcpu = this.look(cpu);
    const { rip } = from;
    const fits = codeMode(vcpu) === 64 ? isCanonical48(rip) : rip >= 0 && rip < TWO32;
    if (!Number.isInteger(rip) || !fits) return false;
    for (let i = 0; i < HVI_GPRS; i++) vcpu.setGpr(i, from.lo[i], from.hi[i]);
    vcpu.rip = rip;
    vcpu.rflags = from.rflags >>> 0;
    return true;
  }
  /**
   * Sets the XSAVE area, standard format.
   * @returns false, with nothing changed, when it is none that XRSTOR would take
   */
  setXsave(bytes: Uint8Array, cpu: number = CURRENT_VCPU): boolean {
    const { index } = this.#at(cpu);
    const done = refused(() => {
      this.vm.setXsave(index, bytes);
      return true;
    });
    return done ?? false;
  }
}

/** What a request answers, or undefined where the backend refuses its argument. */
function refused<T>(request: () => T): T | undefined {
  try {
    return request();
  } catch (e) {
    if (e instanceof HviError && e.errno === EINVAL) return undefined;
    throw e;
  }
}
