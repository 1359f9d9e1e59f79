// SPDX-License-Identifier: MIT
/** Mode, ring, segments and descriptor tables of a vCPU (the engine's rows C1 to C3). */
import { HVI_CS, HVI_FS, HVI_GS, HVI_SS } from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import {
  type PagingFeatures,
  type PagingMode,
  pagingFeaturesOf,
  pagingModeOf,
} from "../memory/translate.ts";
import { VirtualMemory } from "../memory/virtual.ts";
import type { CodeMode } from "./instruction.ts";
import { RFLAGS_VM } from "./registers.ts";

const TWO32 = 4294967296;
const EFER_LMA = 1 << 10;
const CR0_PE = 1 << 0;

/** Access rights in VMX format (SDM vol. 3, 24.4.1): code segment of 64-bit code. */
const ACCESS_L = 1 << 13;
/** Default operand size 32 bits. */
const ACCESS_DB = 1 << 14;

/** What the CPU runs in. */
export type CpuMode = "real" | "vm86" | "protected" | "compatibility" | "long";

export function cpuMode(vcpu: Vcpu): CpuMode {
  if ((vcpu.cr0 & CR0_PE) === 0) return "real";
  if ((vcpu.efer & EFER_LMA) !== 0) {
    return (vcpu.segAccess(HVI_CS) & ACCESS_L) !== 0 ? "long" : "compatibility";
  }
  return (vcpu.rflags & RFLAGS_VM) !== 0 ? "vm86" : "protected";
}

/** Bits of the code at RIP: how to decode it. */
export function codeMode(vcpu: Vcpu): CodeMode {
  if (cpuMode(vcpu) === "long") return 64;
  // In real mode too: the D bit stays when PE is cleared, until CS is loaded (SDM 9.9.2).
  return (vcpu.segAccess(HVI_CS) & ACCESS_DB) !== 0 ? 32 : 16;
}

/** Current privilege level, 0..3. */
export function currentRing(vcpu: Vcpu): number {
  const mode = cpuMode(vcpu);
  if (mode === "real") return 0;
  return mode === "vm86" ? 3 : vcpu.cpl;
}

export function pagingMode(vcpu: Vcpu): PagingMode {
  return pagingModeOf(vcpu.cr0, vcpu.cr4, vcpu.efer);
}
export function pagingFeatures(vcpu: Vcpu, physicalBits = 52): PagingFeatures {
  return pagingFeaturesOf(vcpu.cr4, vcpu.efer, physicalBits);
}
/** The vCPU's memory as its own tables give it: root CR3, or another one of the same mode. */
export function virtualMemoryOf(
  vcpu: Vcpu,
  physical: PhysicalMemory,
  root: number = vcpu.cr3,
): VirtualMemory {
  const pointer = cpuMode(vcpu) === "long" ? 8 : 4;
  return new VirtualMemory(physical, root, pagingMode(vcpu), pagingFeatures(vcpu), pointer);
}

/** What a segment adds to an effective address: in 64-bit code only FS and GS count. */
export function effectiveBase(vcpu: Vcpu, segment: number, mode: CodeMode): number {
  if (mode === 64 && segment !== HVI_FS && segment !== HVI_GS) return 0;
  return vcpu.segBase(segment);
}

/** Bits of the stack pointer that count: the B flag of SS says it outside 64-bit code. */
export function stackWidth(vcpu: Vcpu, mode: CodeMode): CodeMode {
  if (mode === 64) return 64;
  return (vcpu.segAccess(HVI_SS) & ACCESS_DB) !== 0 ? 32 : 16;
}

/** Linear address of the instruction at RIP: CS counts outside 64-bit code. */
export function linearRip(vcpu: Vcpu): number {
  const mode = codeMode(vcpu);
  if (mode === 64) return vcpu.rip;
  const sum = effectiveBase(vcpu, HVI_CS, mode) + vcpu.rip;
  return sum >>> 0;
}

/** An entry of the IDT. */
export interface IdtEntry {
  /** Handler, signed canonical; an offset in its segment. */
  readonly offset: number;
  readonly selector: number;
  /** 5 task, 6/7 16-bit, 14 interrupt and 15 trap gate. */
  readonly type: number;
  readonly dpl: number;
  readonly present: boolean;
  /** Interrupt stack table index; 0 outside long mode. */
  readonly ist: number;
}

/** Reads entry `vector` of the IDT; undefined when it is beyond the limit or absent. */
export function idtEntry(vcpu: Vcpu, memory: VirtualMemory, vector: number): IdtEntry | undefined {
  const mode = cpuMode(vcpu);
  const longMode = mode === "long" || mode === "compatibility";
  const size = longMode ? 16 : 8;
  if (mode === "real" || vector < 0 || (vector + 1) * size - 1 > vcpu.idtLimit) return undefined;
  const at = vcpu.idtBase + vector * size;
  const low = memory.read32(at);
  const high = memory.read32(at + 4);
  const top = longMode ? memory.read32(at + 8) : 0;
  if (low < 0 || high < 0 || top < 0) return undefined;
  const offset32 = ((high & 0xffff0000) | (low & 0xffff)) >>> 0;
  return {
    offset: longMode ? (top | 0) * TWO32 + offset32 : offset32,
    selector: low >>> 16,
    type: (high >>> 8) & 0xf,
    dpl: (high >>> 13) & 3,
    present: (high & 0x8000) !== 0,
    ist: longMode ? high & 7 : 0,
  };
}
