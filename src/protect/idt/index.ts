import type { Protection, ProtectionContext } from "../protection.ts";
import { ceilPage, floorPage, WriteProtection } from "../write-protection.ts";

const NAME = "idt";
const TECHNIQUE = "T1014";
/** 256 gates of 16 bytes (SDM 6.14.1). */
const IDT_BYTES = 4096;

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
    regions: [{ kind: "idt", start: floorPage(base), end: ceilPage(base + IDT_BYTES) }],
    // The kernel's own code, and not on behalf of a module.
    allow: (vcpu) => context.attribution.of(vcpu).originator.kind === "kernel",
  });
}
