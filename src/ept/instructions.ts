// SPDX-License-Identifier: MIT
import type { Vcpu, Vm } from "../bridge/index.ts";
import { PAGE_SIZE, type PhysicalMemory, type VirtualMemory } from "../memory/index.ts";
import {
  AccessList,
  cpuMode,
  DecodeCache,
  type InsnContext,
  type Instruction,
  listAccesses,
  virtualMemoryOf,
  Written,
  writtenValue,
  XsaveLayout,
} from "../x86/index.ts";
import type { ExitAccesses, PageAccess } from "./gpa-hooks.ts";

/** Address spaces of a vCPU that are kept ready. */
const SPACES = 32;

/** What a vCPU's instructions see. Made once for a vCPU; its memory follows the control registers. */
class VcpuContext implements InsnContext {
  readonly vcpu: Vcpu;
  memory: VirtualMemory;
  readonly #vm: Vm;
  readonly #physical: PhysicalMemory;
  #layout: XsaveLayout | undefined;
  /** Virtual memory remembers no translations: it serves as long as its registers are the same. */
  readonly #spaces: (VirtualMemory | undefined)[] = new Array(SPACES).fill(undefined);
  #cr0: number;
  #cr4: number;
  #efer: number;

  constructor(vm: Vm, physical: PhysicalMemory, vcpu: Vcpu) {
    this.vcpu = vcpu;
    this.#vm = vm;
    this.#physical = physical;
    this.memory = virtualMemoryOf(vcpu, physical);
    this.#cr0 = vcpu.cr0;
    this.#cr4 = vcpu.cr4;
    this.#efer = vcpu.efer;
  }

  follow(): void {
    const { vcpu } = this;
    const { cr0, cr3, cr4, efer } = vcpu;
    if (this.#cr0 !== cr0 || this.#cr4 !== cr4 || this.#efer !== efer) {
      this.#spaces.fill(undefined);
      this.#cr0 = cr0;
      this.#cr4 = cr4;
      this.#efer = efer;
    }
    const pointerSize = cpuMode(vcpu) === "long" ? 8 : 4;
    // Roots are neighbours: a process's pair of tables, processes made one after the other.
    const slot = (Math.floor(cr3 / PAGE_SIZE) ^ (pointerSize & 4)) & (SPACES - 1);
    let memory = this.#spaces[slot];
    if (memory?.root !== cr3 || memory.pointerSize !== pointerSize) {
      memory = virtualMemoryOf(vcpu, this.#physical);
      this.#spaces[slot] = memory;
    }
    this.memory = memory;
  }
  xsave(): Uint8Array {
    return this.#vm.xsaveOf(this.vcpu.index);
  }
  xsaveLayout(): XsaveLayout {
    this.#layout ??= new XsaveLayout(this.#vm.supportedCpuid());
    return this.#layout;
  }
}

/**
 * The instruction behind an exit: which memory it accesses, and what it would
 * write. Answers are good until the next question.
 */
export class ExitInstructions implements ExitAccesses {
  readonly #memory: PhysicalMemory;
  readonly #cache: DecodeCache;
  readonly #vm: Vm;
  readonly #contexts: VcpuContext[] = [];
  readonly #accesses = new AccessList();
  readonly #written = new Written();

  constructor(vm: Vm, memory: PhysicalMemory) {
    this.#vm = vm;
    this.#memory = memory;
    this.#cache = new DecodeCache(memory);
  }

  /** Of Statistics. */
  readonly name = "decode cache";
  read(): Record<string, number> {
    return { hits: this.#cache.hits, misses: this.#cache.misses };
  }

  /** The instruction at RIP; undefined when its page is absent or it is none. */
  instruction(vcpu: Vcpu): Instruction | undefined {
    return this.#cache.atRip(vcpu, this.context(vcpu).memory);
  }

  /** What the instructions of a vCPU see now. */
  context(vcpu: Vcpu): InsnContext {
    let context = this.#contexts[vcpu.index];
    if (context === undefined) {
      context = new VcpuContext(this.#vm, this.#memory, vcpu);
      this.#contexts[vcpu.index] = context;
    }
    context.follow();
    return context;
  }

  /**
   * Every access of the instruction at RIP; of a REP, of the iteration at hand.
   * One list, filled anew by each call. Undefined when it cannot be decoded.
   */
  accesses(vcpu: Vcpu): AccessList | undefined {
    const context = this.context(vcpu);
    const insn = this.#cache.atRip(vcpu, context.memory);
    if (insn === undefined) return undefined;
    listAccesses(context, insn, this.#accesses);
    return this.#accesses;
  }

  /** Bytes of the instruction at RIP; 0 when it cannot be decoded. */
  length(vcpu: Vcpu): number {
    return this.instruction(vcpu)?.length ?? 0;
  }

  /** Guest physical address of a linear one in the vCPU's own tables; -1 when there is none. */
  gpaOf(vcpu: Vcpu, gva: number): number {
    return this.context(vcpu).memory.gpaOf(gva);
  }

  /**
   * Puts the bytes that the instruction would write from `access.gpa` on, within that page, into
   * `out`. Of a REP, those of the iteration at hand.
   * @returns how many there are; -1 when they cannot be known
   */
  bytes(access: PageAccess, out: Uint8Array): number {
    if (Number.isNaN(access.gva)) return -1;
    const { vcpu } = access;
    const context = this.context(vcpu);
    const insn = this.#cache.atRip(vcpu, context.memory);
    const written = this.#written;
    if (insn === undefined || !writtenValue(context, insn, written)) return -1;
    // An access that crosses into a second page violates there at a later byte of the value.
    const from = access.gva - written.gva;
    if (from < 0 || from >= written.size) return -1;
    const room = Math.min(PAGE_SIZE - (access.gpa % PAGE_SIZE), out.length, written.size - from);
    for (let i = 0; i < room; i++) out[i] = written.bytes[from + i];
    return room;
  }
}
