// SPDX-License-Identifier: MIT
import type { Vcpu, Vm } from "../bridge/index.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import {
  bytesAccessedAt,
  codeMode,
  DecodeCache,
  type Instruction,
  virtualMemoryOf,
  writtenValue,
} from "../x86/index.ts";
import type { PageAccess } from "./gpa-hooks.ts";

/** Decodes the instruction behind an access: how many bytes it accesses, which it would write. */
export class ExitInstructions {
  readonly #memory: PhysicalMemory;
  readonly #cache: DecodeCache;
  readonly #xsave: (vcpu: number) => Uint8Array;

  constructor(vm: Vm, memory: PhysicalMemory) {
    this.#memory = memory;
    this.#cache = new DecodeCache(memory);
    this.#xsave = (vcpu) => vm.getXsave(vcpu);
  }

  /** The instruction at RIP; undefined when its page is absent or it is none. */
  instruction(vcpu: Vcpu): Instruction | undefined {
    return this.#cache.at(virtualMemoryOf(vcpu, this.#memory), vcpu.rip, codeMode(vcpu));
  }

  /**
   * Bytes that the instruction at RIP accesses from `gva` on, for a backend that does not tell:
   * VT-x has no field for it (SDM 28.2.1). They may go on in the next page.
   * @returns 0 when they cannot be known
   */
  size(vcpu: Vcpu, gva: number): number {
    const insn = this.instruction(vcpu);
    return insn === undefined ? 0 : bytesAccessedAt(vcpu, insn, gva);
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
    const memory = virtualMemoryOf(vcpu, this.#memory);
    const written = writtenValue({ vcpu, memory, xsave: () => this.#xsave(vcpu.index) }, insn);
    if (!written.ok) return -1;
    // An access that crosses into a second page violates there at a later byte of the value.
    const from = access.gva - written.gva;
    if (from < 0 || from >= written.bytes.length) return -1;
    const room = Math.min(4096 - (access.gpa % 4096), out.length);
    const bytes = written.bytes.subarray(from, from + room);
    out.set(bytes);
    return bytes.length;
  }
}
