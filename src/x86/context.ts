// SPDX-License-Identifier: MIT
import type { Vcpu } from "../bridge/vcpu.ts";
import type { VirtualMemory } from "../memory/virtual.ts";
import type { XsaveLayout } from "./xsave.ts";

/** What an instruction that is about to run sees. */
export interface InsnContext {
  readonly vcpu: Vcpu;
  /** The vCPU's own address space. */
  readonly memory: VirtualMemory;
  /** The vCPU's XSAVE area in standard format; may be overwritten by the next call. */
  xsave(): Uint8Array;
  /** Where the CPU puts the components of an XSAVE area. */
  xsaveLayout(): XsaveLayout;
}

/**
 * Copies n bytes of guest memory to the start of `out`, without allocating.
 * False when some of them are absent; `out` is partly written then.
 */
export function readBytes(memory: VirtualMemory, gva: number, out: Uint8Array, n: number): boolean {
  let done = 0;
  while (done < n) {
    let gpa = memory.gpaOf(gva + done);
    if (gpa < 0) return false;
    const end = Math.min(n, done + 0x1000 - (gpa & 0xfff));
    for (; done < end; done++, gpa++) {
      const byte = memory.physical.read8(gpa);
      if (byte < 0) return false;
      out[done] = byte;
    }
  }
  return true;
}
