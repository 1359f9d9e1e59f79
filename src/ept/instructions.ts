// SPDX-License-Identifier: MIT
import type { Vcpu, Vm } from "../bridge/index.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import {
  codeMode,
  DecodeCache,
  type Instruction,
  memoryAccesses,
  virtualMemoryOf,
  type WriteContext,
  writtenValue,
} from "../x86/index.ts";
import type { AccessList, ExitAccesses, PageAccess } from "./gpa-hooks.ts";

/** Decodes the instruction behind an access: how many bytes it accesses, which it would write. */
export class ExitInstructions implements ExitAccesses {
  readonly #memory: PhysicalMemory;
  readonly #cache: DecodeCache;
  readonly #vm: Vm;
  /** That of the last exit, and the control registers that it was made of. */
  #context: WriteContext | undefined;
  #cr0 = Number.NaN;
  #cr4 = Number.NaN;
  #efer = Number.NaN;

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
    return this.#cache.at(this.#contextOf(vcpu).memory, vcpu.rip, codeMode(vcpu));
  }

  /** Virtual memory remembers no translations: what was made for the last exit serves again. */
  #contextOf(vcpu: Vcpu): WriteContext {
    const { cr0, cr3, cr4, efer } = vcpu;
    const last = this.#context;
    if (
      last !== undefined &&
      last.vcpu === vcpu &&
      last.memory.root === cr3 &&
      last.memory.pointerSize === (codeMode(vcpu) === 64 ? 8 : 4) &&
      this.#cr0 === cr0 &&
      this.#cr4 === cr4 &&
      this.#efer === efer
    ) {
      return last;
    }
    const context: WriteContext = {
      vcpu,
      memory: virtualMemoryOf(vcpu, this.#memory),
      xsave: () => this.#vm.getXsave(vcpu.index),
    };
    this.#context = context;
    this.#cr0 = cr0;
    this.#cr4 = cr4;
    this.#efer = efer;
    return context;
  }

  readonly #list = {
    count: 0,
    gva: new Float64Array(64),
    size: new Uint32Array(64),
    flags: new Uint8Array(64),
  };

  /** What the instruction at RIP accesses; undefined when it cannot be told. */
  accesses(vcpu: Vcpu): AccessList | undefined {
    const insn = this.instruction(vcpu);
    if (insn === undefined) return undefined;
    const list = this.#list;
    list.count = 0;
    for (const a of memoryAccesses(vcpu, insn)) {
      list.gva[list.count] = a.gva;
      list.size[list.count] = a.size;
      list.flags[list.count] = (a.read ? 1 : 0) | (a.write ? 2 : 0);
      list.count++;
    }
    return list;
  }

  /** Guest physical address of a linear one in the vCPU's own tables; -1 when there is none. */
  gpaOf(vcpu: Vcpu, gva: number): number {
    return this.#contextOf(vcpu).memory.gpaOf(gva);
  }

  /**
   * Puts the bytes that the instruction would write from `access.gpa` on, within that page, into
   * `out`. Of a REP, those of the iteration at hand.
   * @returns how many there are; -1 when they cannot be known
   */
  bytes(access: PageAccess, out: Uint8Array): number {
    if (Number.isNaN(access.gva)) return -1;
    const { vcpu } = access;
    const insn = this.instruction(vcpu);
    if (insn === undefined) return -1;
    const written = writtenValue(this.#contextOf(vcpu), insn);
    if (!written.ok) return -1;
    // An access that crosses into a second page violates there at a later byte of the value.
    const from = access.gva - written.gva;
    if (from < 0 || from >= written.bytes.length) return -1;
    const room = Math.min(4096 - (access.gpa % 4096), out.length, written.bytes.length - from);
    for (let i = 0; i < room; i++) out[i] = written.bytes[from + i];
    return room;
  }
}
