// SPDX-License-Identifier: MIT
import type { Vcpu } from "../bridge/index.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import { codeMode, decode, format, MAX_INSTRUCTION, virtualMemoryOf } from "../x86/index.ts";

/** The instruction at RIP as text (Intel syntax) and its bytes in hexadecimal; undefined when absent. */
export function disassembleAtRip(
  vcpu: Vcpu,
  physical: PhysicalMemory,
): { text: string; bytes: string } | undefined {
  const memory = virtualMemoryOf(vcpu, physical);
  const bytes = new Uint8Array(MAX_INSTRUCTION);
  const length = memory.readPartial(vcpu.rip, bytes);
  const mode = codeMode(vcpu);
  const code = bytes.subarray(0, length);
  const insn = decode(code, 0, mode);
  if (insn === undefined) return undefined;
  const text = format(code, 0, mode, vcpu.rip);
  if (text === undefined) return undefined;
  return { text, bytes: Buffer.from(insn.bytes()).toString("hex") };
}
