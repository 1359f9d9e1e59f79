// SPDX-License-Identifier: MIT

import { pageEnd, pageOf } from "../../memory/address.ts";
import type { Protection, ProtectionContext } from "../protection.ts";
import { WriteProtection } from "../write-protection.ts";

const NAME = "kernel-image";
const TECHNIQUE = "T1014";

/**
 * Write-protects the kernel's .text and .rodata (the system call tables lie in the latter), and keeps
 * their linear addresses translating to the same frames. See DESIGN.md in this folder.
 */
export const kernelImage: Protection = {
  name: NAME,
  title: "Kernel text, read-only data and system call tables against writes and remapping",
  technique: TECHNIQUE,
  activate: (context) => protect(context),
};

function protect(context: ProtectionContext): WriteProtection {
  const { guest } = context;
  const text = guest.kernelRange("text");
  const rodata = guest.kernelRange("rodata");
  if (text === undefined) throw new Error("symbols _text or _etext not found in the guest");
  if (rodata === undefined) {
    throw new Error("symbols __start_rodata or __end_rodata not found in the guest");
  }
  const tables = ["sys_call_table", "ia32_sys_call_table", "x32_sys_call_table"];
  return new WriteProtection(context, {
    name: NAME,
    technique: TECHNIQUE,
    regions: [
      { kind: "kernel-text", start: pageOf(text.start), end: pageEnd(text.end) },
      { kind: "kernel-rodata", start: pageOf(rodata.start), end: pageEnd(rodata.end) },
    ],
    parts: tables.flatMap((table) => {
      const range = guest.symbolRange(table);
      return range === undefined ? [] : [{ kind: "syscall-table" as const, ...range }];
    }),
    allow: (vcpu) => context.attribution.isKernelPatching(vcpu),
  });
}
