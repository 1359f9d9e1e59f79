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
    // By words where there are four: a call for each byte is what costs.
    for (; done + 4 <= end; done += 4, gpa += 4) {
      const word = memory.physical.read32(gpa);
      if (word < 0) return false;
      out[done] = word;
      out[done + 1] = word >>> 8;
      out[done + 2] = word >>> 16;
      out[done + 3] = word >>> 24;
    }
    for (; done < end; done++, gpa++) {
      const byte = memory.physical.read8(gpa);
      if (byte < 0) return false;
      out[done] = byte;
    }
  }
  return true;
}
