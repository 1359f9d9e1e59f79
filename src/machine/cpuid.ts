// SPDX-License-Identifier: MIT
import { type CpuidEntry, HVI_CPUID_INDEXED } from "../bridge/index.ts";
import { LAPIC_HZ } from "./devices/lapic.ts";

/* The CPUID table of a guest: what the backend can do, on this machine. */

const LEAF1_ECX_X2APIC = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE = 1 << 24;
const LEAF1_ECX_HYPERVISOR = 1 << 31;
const LEAF1_EDX_APIC = 1 << 9;
const LEAF1_EDX_HTT = 1 << 28;
const LEAF7_0_ECX_LA57 = 1 << 16;
const LEAF6_EAX_ARAT = 1 << 2;
const LEAF80000007_EDX_INVARIANT_TSC = 1 << 8;
const SIGNATURE = "hvihvihvihvi";

/** First leaf of the hypervisor range, and the one with the TSC's and the bus's rate in kHz. */
const HYPERVISOR_LEAF = 0x40000000;
const HYPERVISOR_TIMING_LEAF = 0x40000010;

function word(text: string, at: number): number {
  let value = 0;
  for (let i = 0; i < 4; i++) value |= text.charCodeAt(at + i) << (8 * i);
  return value >>> 0;
}

function row(
  leaf: number,
  eax: number,
  ebx: number,
  ecx: number,
  edx: number,
  index = -1,
): CpuidEntry {
  const u = (v: number) => v >>> 0;
  return {
    leaf,
    index: Math.max(index, 0),
    flags: index >= 0 ? HVI_CPUID_INDEXED : 0,
    eax: u(eax),
    ebx: u(ebx),
    ecx: u(ecx),
    edx: u(edx),
  };
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/** The table for a machine with `cpus` vCPUs whose TSC runs at `tscKhz`. */
export function machineCpuid(
  supported: readonly CpuidEntry[],
  cpus: number,
  tscKhz: number,
): CpuidEntry[] {
  const replaced = new Set([0x4, 0xb, 0x1f, 0x6, 0x15, 0x16, 0x80000007]);
  const table = supported
    .filter((e) => !replaced.has(e.leaf) && !(e.leaf >= HYPERVISOR_LEAF && e.leaf < 0x50000000))
    .map((e) => ({ ...e }));
  const old7 = supported.find((e) => e.leaf === 0x80000007);
  const bits = Math.ceil(Math.log2(Math.max(cpus, 1)));
  for (const e of table) {
    // Leaf 0x15 must be in range; leaves up to the backend's own maximum stay.
    if (e.leaf === 0) e.eax = Math.max(e.eax, 0x16);
    if (e.leaf === 1) {
      // Bits 31..24 (initial APIC id) are filled in by the backend; 23..16 count logical CPUs, 15..8 CLFLUSH.
      e.ebx = ((e.ebx & 0xff00) | (cpus << 16)) >>> 0;
      e.ecx = (e.ecx | LEAF1_ECX_X2APIC | LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR) >>> 0;
      e.edx = (e.edx | LEAF1_EDX_APIC) & ~LEAF1_EDX_HTT;
      if (cpus > 1) e.edx |= LEAF1_EDX_HTT;
      e.edx >>>= 0;
    }
    if (e.leaf === 7 && e.index === 0) e.ecx = (e.ecx & ~LEAF7_0_ECX_LA57) >>> 0;
  }
  // Each vCPU is a core of one package: no threads, no caches told of.
  table.push(row(4, 0, 0, 0, 0));
  table.push(row(6, LEAF6_EAX_ARAT, 0, 0, 0));
  if (cpus > 1) {
    table.push(
      row(0xb, 0, 1, 0x100, 0, 0),
      row(0xb, bits, cpus, 0x201, 0, 1),
      row(0xb, 0, 0, 2, 0, 2),
    );
  }
  // TSC Hz = crystal Hz * EBX / EAX (SDM volume 2, CPUID leaf 15H); in lowest terms, since
  // Linux multiplies crystal kHz and EBX in 32 bits.
  const crystalKhz = LAPIC_HZ / 1000;
  const divisor = greatestCommonDivisor(crystalKhz, tscKhz);
  table.push(row(0x15, crystalKhz / divisor, tscKhz / divisor, LAPIC_HZ, 0));
  const mhz = Math.round(tscKhz / 1000);
  table.push(row(0x16, mhz, mhz, LAPIC_HZ / 1e6, 0));
  table.push(
    row(
      0x80000007,
      old7?.eax ?? 0,
      old7?.ebx ?? 0,
      old7?.ecx ?? 0,
      (old7?.edx ?? 0) | LEAF80000007_EDX_INVARIANT_TSC,
    ),
  );
  table.push(
    row(
      HYPERVISOR_LEAF,
      HYPERVISOR_TIMING_LEAF,
      word(SIGNATURE, 0),
      word(SIGNATURE, 4),
      word(SIGNATURE, 8),
    ),
  );
  table.push(row(HYPERVISOR_TIMING_LEAF, tscKhz, LAPIC_HZ / 1000, 0, 0));
  return table;
}
