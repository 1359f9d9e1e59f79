// SPDX-License-Identifier: MIT

import { pageEnd, pageOf } from "../../memory/address.ts";
import type { Protection, ProtectionContext } from "../protection.ts";
import { WriteProtection } from "../write-protection.ts";

const NAME = "idt";
const TECHNIQUE = "T1014";
/** 256 gates of 16 bytes (SDM 6.14.1). */
const GATE_BYTES = 16;
const IDT_BYTES = 256 * GATE_BYTES;

/**
 * Write-protects the interrupt descriptor table behind IDTR, and keeps its linear address translating
 * to the same frame. See DESIGN.md in this folder.
 */
export const idt: Protection = {
  name: NAME,
  title: "Interrupt descriptor table against writes and remapping",
  technique: TECHNIQUE,
  activate: (context) => protect(context),
};

function protect(context: ProtectionContext): WriteProtection {
  const base = context.vcpu.idtBase;
  // Linux has one table for all CPUs, page aligned, seen through the CPU entry area.
  if (base >= 0 || context.guest.vm.gpaOf(base) < 0) {
    throw new Error("IDTR does not point to mapped kernel memory");
  }
  return new WriteProtection(context, {
    name: NAME,
    technique: TECHNIQUE,
    regions: [
      {
        kind: "idt",
        start: pageOf(base),
        end: pageEnd(base + IDT_BYTES),
        describe: (gva) => {
          const offset = gva - base;
          return `idt[${Math.floor(offset / GATE_BYTES)}]+0x${(offset % GATE_BYTES).toString(16)}`;
        },
      },
    ],
    // Its gates are all set before the kernel makes the table read-only (arch/x86/kernel/idt.c).
    allow: () => false,
  });
}
