// SPDX-License-Identifier: MIT
import { HVI_CS, type Vcpu, type Vm } from "../bridge/index.ts";
import {
  asGva,
  PhysicalMemory,
  pagingFeaturesOf,
  pagingModeOf,
  VirtualMemory,
} from "../memory/index.ts";

const GPR_NAMES = [
  ["RAX", "RCX", "RDX", "RBX"],
  ["RSP", "RBP", "RSI", "RDI"],
  ["R8 ", "R9 ", "R10", "R11"],
  ["R12", "R13", "R14", "R15"],
];
const CODE_BYTES = 32;
const STACK_WORDS = 16;

const hex32 = (v: number) => (v >>> 0).toString(16).padStart(8, "0");

/** 16 digits of a signed or unsigned number below 2^53 in magnitude. */
function hex64(v: number): string {
  return hex32(Math.floor(v / 4294967296)) + hex32(v);
}

/** The guest's memory as vCPU `vcpu` sees it now. */
export function vcpuMemory(vm: Vm, vcpu: Vcpu): VirtualMemory {
  const mode = pagingModeOf(vcpu.cr0, vcpu.cr4, vcpu.efer);
  return new VirtualMemory(
    new PhysicalMemory(vm.ram),
    vcpu.cr3,
    mode,
    pagingFeaturesOf(vcpu.cr4, vcpu.efer),
  );
}

/** Registers, code at RIP and top of the stack of a vCPU, for a person. */
export function dumpVcpu(vm: Vm, vcpu: Vcpu): string {
  const lines = [`vCPU ${vcpu.index}, exit ${vcpu.exitName}, guest TSC ${vcpu.exitTsc}`];
  lines.push(
    `RIP=${hex64(vcpu.rip)} RFLAGS=${hex32(vcpu.rflags)} CS=${vcpu.segSelector(HVI_CS).toString(16)}`,
  );
  GPR_NAMES.forEach((names, rowIndex) => {
    lines.push(
      names
        .map(
          (n, i) =>
            `${n}=${hex32(vcpu.gprHi(4 * rowIndex + i))}${hex32(vcpu.gprLo(4 * rowIndex + i))}`,
        )
        .join(" "),
    );
  });
  lines.push(
    `CR0=${hex64(vcpu.cr0)} CR2=${hex64(vcpu.cr2)} CR3=${hex64(vcpu.cr3)} CR4=${hex64(vcpu.cr4)} EFER=${hex32(vcpu.efer)}`,
  );
  lines.push(
    `GDT=${hex64(vcpu.gdtBase)}:${vcpu.gdtLimit.toString(16)} IDT=${hex64(vcpu.idtBase)}:${vcpu.idtLimit.toString(16)} TR=${vcpu.trSelector.toString(16)}`,
  );
  const memory = vcpuMemory(vm, vcpu);
  const code: string[] = [];
  const at = vcpu.rip + vcpu.segBase(HVI_CS);
  for (let i = 0; i < CODE_BYTES; i++) {
    const byte = memory.read8(asGva(at + i));
    if (byte < 0) break;
    code.push(byte.toString(16).padStart(2, "0"));
  }
  lines.push(`Code: ${code.length > 0 ? code.join(" ") : "not mapped"}`);
  const stack: string[] = [];
  const sp = vcpu.gpr(4);
  for (let i = 0; i < STACK_WORDS; i++) {
    const low = memory.read32(asGva(sp + 8 * i));
    const high = memory.read32(asGva(sp + 8 * i + 4));
    if (low < 0 || high < 0) break;
    stack.push(hex32(high) + hex32(low));
  }
  if (stack.length === 0) lines.push("Stack: not mapped");
  for (let i = 0; i < stack.length; i += 4)
    lines.push(`${i === 0 ? "Stack:" : "      "} ${stack.slice(i, i + 4).join(" ")}`);
  return lines.join("\n");
}
