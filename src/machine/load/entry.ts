// SPDX-License-Identifier: MIT
import * as abi from "../../bridge/abi.ts";
import type { GuestRam, Vcpu } from "../../bridge/index.ts";
import { BOOT_GDT, BOOT_PD, BOOT_PDPT, BOOT_PML4 } from "../layout.ts";
import { writeRam } from "./ram.ts";

/* Entry states of a vCPU that a boot loader leaves behind. */

const CR0_PE = 1;
const CR0_ET = 0x10;
const CR0_NE = 0x20;
const CR0_PG = 0x80000000;
const CR4_PAE = 0x20;
const EFER_LME = 0x100;
const EFER_LMA = 0x400;
const RFLAGS_FIXED = 2;

/** Segment access rights, VMX format. */
const CODE64 = 0xa09b;
const CODE32 = 0xc09b;
const DATA = 0xc093;
const TSS_BUSY = 0x8b;
/** The Linux boot protocol's __BOOT_CS and __BOOT_DS. */
const BOOT_CS = 0x10;
const BOOT_DS = 0x18;

const PTE_PRESENT_WRITE = 3;
const PDE_LARGE = 0x80;

/** A GDT with flat segments: 0x08 and 0x10 code, 0x18 data, all for ring 0. */
function writeGdt(ram: GuestRam, wide: boolean): void {
  const gdt = new DataView(new ArrayBuffer(0x28));
  const code = wide ? 0x00af9b00 : 0x00cf9b00;
  const words: [number, number][] = [
    [0, 0],
    [0xffff, code],
    [0xffff, wide ? code : 0x00cf9300],
    [0xffff, 0x00cf9300],
    [0, 0],
  ];
  words.forEach(([low, high], i) => {
    gdt.setUint32(8 * i, low, true);
    gdt.setUint32(8 * i + 4, high, true);
  });
  writeRam(ram, BOOT_GDT, new Uint8Array(gdt.buffer));
}

/** Identity mapping of the first 4 GiB in pages of 2 MiB. */
function writeIdentityPaging(ram: GuestRam): void {
  const tables = new DataView(new ArrayBuffer(BOOT_PD + 4 * 0x1000 - BOOT_PML4));
  tables.setUint32(0, BOOT_PDPT | PTE_PRESENT_WRITE, true);
  for (let i = 0; i < 4; i++)
    tables.setUint32(
      BOOT_PDPT - BOOT_PML4 + 8 * i,
      (BOOT_PD + 0x1000 * i) | PTE_PRESENT_WRITE,
      true,
    );
  for (let i = 0; i < 4 * 512; i++)
    tables.setUint32(
      BOOT_PD - BOOT_PML4 + 8 * i,
      ((i << 21) | PDE_LARGE | PTE_PRESENT_WRITE) >>> 0,
      true,
    );
  writeRam(ram, BOOT_PML4, new Uint8Array(tables.buffer));
}

function flat(vcpu: Vcpu, cs: number, codeAccess: number, ds: number): void {
  vcpu.setSeg(abi.HVI_CS, cs, 0, 0xffffffff, codeAccess);
  for (const seg of [abi.HVI_DS, abi.HVI_ES, abi.HVI_SS, abi.HVI_FS, abi.HVI_GS])
    vcpu.setSeg(seg, ds, 0, 0xffffffff, DATA);
  vcpu.setLdtr(0, 0, 0, abi.HVI_SEG_UNUSABLE);
  vcpu.setTr(0, 0, 0xffff, TSS_BUSY);
  vcpu.setGdt(BOOT_GDT, 0x27);
  vcpu.setIdt(0, 0);
  vcpu.rflags = RFLAGS_FIXED;
  vcpu.mpState = abi.HVI_MP_RUNNING;
}

function clearGprs(vcpu: Vcpu): void {
  for (let i = 0; i < abi.HVI_GPRS; i++) vcpu.setGpr(i, 0, 0);
}

/** The 64-bit entry of the Linux boot protocol: identity paging, RSI = boot_params. */
export function enterLinux64(ram: GuestRam, vcpu: Vcpu, rip: number, bootParams: number): void {
  writeGdt(ram, true);
  writeIdentityPaging(ram);
  clearGprs(vcpu);
  flat(vcpu, BOOT_CS, CODE64, BOOT_DS);
  vcpu.cr4 = CR4_PAE;
  vcpu.cr3 = BOOT_PML4;
  vcpu.efer = EFER_LME | EFER_LMA;
  vcpu.cr0 = CR0_PG + (CR0_PE | CR0_ET | CR0_NE);
  vcpu.setGprNumber(abi.HVI_RSI, bootParams);
  vcpu.rip = rip;
}

/** The entry of the Multiboot specification (3.2): flat 32-bit protected mode, no paging. */
export function enterMultiboot(ram: GuestRam, vcpu: Vcpu, eip: number, info: number): void {
  writeGdt(ram, false);
  clearGprs(vcpu);
  flat(vcpu, 0x08, CODE32, 0x10);
  vcpu.cr4 = 0;
  vcpu.cr3 = 0;
  vcpu.efer = 0;
  vcpu.cr0 = CR0_PE | CR0_ET;
  vcpu.setGpr(abi.HVI_RAX, 0x2badb002, 0);
  vcpu.setGpr(abi.HVI_RBX, info, 0);
  vcpu.rip = eip;
}

/** A start-up IPI: real mode at vector:0 (SDM 8.4.3). */
export function enterRealMode(vcpu: Vcpu, vector: number): void {
  clearGprs(vcpu);
  vcpu.setGpr(abi.HVI_RDX, 0x600, 0);
  vcpu.setSeg(abi.HVI_CS, vector << 8, vector << 12, 0xffff, 0x9b);
  for (const seg of [abi.HVI_DS, abi.HVI_ES, abi.HVI_SS, abi.HVI_FS, abi.HVI_GS])
    vcpu.setSeg(seg, 0, 0, 0xffff, 0x93);
  vcpu.setLdtr(0, 0, 0xffff, 0x82);
  vcpu.setTr(0, 0, 0xffff, TSS_BUSY);
  vcpu.setGdt(0, 0xffff);
  vcpu.setIdt(0, 0xffff);
  vcpu.cr4 = 0;
  vcpu.cr3 = 0;
  vcpu.efer = 0;
  // CD and NW are set after reset; ET always.
  vcpu.cr0 = 0x60000010;
  vcpu.rflags = RFLAGS_FIXED;
  vcpu.rip = 0;
  vcpu.mpState = abi.HVI_MP_RUNNING;
}
