// SPDX-License-Identifier: MIT
/** A vCPU's registers by name, as unsigned 64-bit BigInts: tests want exactness, not speed. */
import * as abi from "../../src/bridge/abi.ts";
import type { Vcpu } from "../../src/bridge/index.ts";
import { GPR_NAMES } from "../../src/x86/registers.ts";
import { GDT, IDT, type Mode, SEL, STACK, STACK_USER, TABLES, TSS } from "./layout.ts";

const PLAIN = {
  rip: [abi.VCPU_RIP, abi.HVI_STATE_GPR],
  rflags: [abi.VCPU_RFLAGS, abi.HVI_STATE_GPR],
  cr0: [abi.VCPU_CR0, abi.HVI_STATE_CR],
  cr2: [abi.VCPU_CR2, abi.HVI_STATE_CR],
  cr3: [abi.VCPU_CR3, abi.HVI_STATE_CR],
  cr4: [abi.VCPU_CR4, abi.HVI_STATE_CR],
  cr8: [abi.VCPU_CR8, abi.HVI_STATE_CR],
  xcr0: [abi.VCPU_XCR0, abi.HVI_STATE_CR],
  efer: [abi.VCPU_EFER, abi.HVI_STATE_MSR],
  star: [abi.VCPU_STAR, abi.HVI_STATE_MSR],
  lstar: [abi.VCPU_LSTAR, abi.HVI_STATE_MSR],
  fmask: [abi.VCPU_FMASK, abi.HVI_STATE_MSR],
  kernelGsBase: [abi.VCPU_KERNEL_GS_BASE, abi.HVI_STATE_MSR],
  sysenterCs: [abi.VCPU_SYSENTER_CS, abi.HVI_STATE_MSR],
  sysenterEsp: [abi.VCPU_SYSENTER_ESP, abi.HVI_STATE_MSR],
  sysenterEip: [abi.VCPU_SYSENTER_EIP, abi.HVI_STATE_MSR],
  pat: [abi.VCPU_PAT, abi.HVI_STATE_MSR],
  tsc: [abi.VCPU_TSC, abi.HVI_STATE_MSR],
  dr0: [abi.VCPU_DR, abi.HVI_STATE_DR],
  dr6: [abi.VCPU_DR + 8 * 6, abi.HVI_STATE_DR],
  dr7: [abi.VCPU_DR + 8 * 7, abi.HVI_STATE_DR],
  gdtBase: [abi.VCPU_GDTR + abi.TABLE_BASE, abi.HVI_STATE_TABLES],
  idtBase: [abi.VCPU_IDTR + abi.TABLE_BASE, abi.HVI_STATE_TABLES],
  fsBase: [abi.VCPU_SEG + abi.HVI_FS * abi.SIZEOF_SEGMENT, abi.HVI_STATE_SEG],
  gsBase: [abi.VCPU_SEG + abi.HVI_GS * abi.SIZEOF_SEGMENT, abi.HVI_STATE_SEG],
} as const;

const NARROW = {
  gdtLimit: [abi.VCPU_GDTR + abi.TABLE_LIMIT, abi.HVI_STATE_TABLES],
  idtLimit: [abi.VCPU_IDTR + abi.TABLE_LIMIT, abi.HVI_STATE_TABLES],
  mpState: [abi.VCPU_MP_STATE, abi.HVI_STATE_EVENTS],
  interruptibility: [abi.VCPU_INTERRUPTIBILITY, abi.HVI_STATE_EVENTS],
} as const;

const SEGMENTS = {
  es: abi.VCPU_SEG,
  cs: abi.VCPU_SEG + abi.HVI_CS * abi.SIZEOF_SEGMENT,
  ss: abi.VCPU_SEG + abi.HVI_SS * abi.SIZEOF_SEGMENT,
  ds: abi.VCPU_SEG + abi.HVI_DS * abi.SIZEOF_SEGMENT,
  fs: abi.VCPU_SEG + abi.HVI_FS * abi.SIZEOF_SEGMENT,
  gs: abi.VCPU_SEG + abi.HVI_GS * abi.SIZEOF_SEGMENT,
  ldtr: abi.VCPU_LDTR,
  tr: abi.VCPU_TR,
} as const;

type GprName = (typeof GPR_NAMES)[number];
/** "flags" are CF, PF, ZF, SF and OF of RFLAGS. */
export type RegName =
  | "flags"
  | GprName
  | keyof typeof PLAIN
  | keyof typeof NARROW
  | keyof typeof SEGMENTS;
/** Register values; a segment's is its selector. */
export type Regs = Partial<Record<RegName, number | bigint>>;

/** FLAGS that a transcript shows: all but AF, which too many instructions leave undefined. */
export const FLAGS_SHOWN = 0x247fc5n;

export const u64 = (v: number | bigint): bigint => BigInt.asUintN(64, BigInt(v));
export const hex = (v: number | bigint): string => `0x${u64(v).toString(16)}`;

export class Cpu {
  private readonly view: DataView;
  constructor(readonly vcpu: Vcpu) {
    this.view = new DataView(vcpu.page.buffer, vcpu.page.byteOffset, vcpu.page.byteLength);
  }

  u64(offset: number): bigint {
    return this.view.getBigUint64(offset, true);
  }
  u32(offset: number): number {
    return this.view.getUint32(offset, true);
  }
  put64(offset: number, value: number | bigint): void {
    this.view.setBigUint64(offset, u64(value), true);
  }
  put32(offset: number, value: number): void {
    this.view.setUint32(offset, value, true);
  }
  dirty(groups: number): void {
    this.put32(abi.VCPU_DIRTY, this.u32(abi.VCPU_DIRTY) | groups);
  }

  get(name: RegName): bigint {
    if (name === "flags") return this.get("rflags") & 0x8c5n;
    const gpr = GPR_NAMES.indexOf(name as GprName);
    if (gpr >= 0) return this.u64(abi.VCPU_GPR + 8 * gpr);
    if (name in PLAIN) return this.u64(PLAIN[name as keyof typeof PLAIN][0]);
    if (name in NARROW) return BigInt(this.u32(NARROW[name as keyof typeof NARROW][0]));
    return BigInt(
      this.view.getUint16(SEGMENTS[name as keyof typeof SEGMENTS] + abi.SEGMENT_SELECTOR, true),
    );
  }

  set(name: RegName, value: number | bigint): void {
    const gpr = GPR_NAMES.indexOf(name as GprName);
    if (gpr >= 0) {
      this.put64(abi.VCPU_GPR + 8 * gpr, value);
      this.dirty(abi.HVI_STATE_GPR);
    } else if (name in PLAIN) {
      const [offset, group] = PLAIN[name as keyof typeof PLAIN];
      this.put64(offset, value);
      this.dirty(group);
    } else if (name in NARROW) {
      const [offset, group] = NARROW[name as keyof typeof NARROW];
      this.put32(offset, Number(value));
      this.dirty(group);
    } else {
      throw new Error(`${name}: a segment is set with segment()`);
    }
  }

  setAll(regs: Regs): void {
    for (const [name, value] of Object.entries(regs)) this.set(name as RegName, value);
  }

  segment(
    name: keyof typeof SEGMENTS,
    selector: number,
    base: number | bigint,
    limit: number,
    access: number,
  ): void {
    const at = SEGMENTS[name];
    this.put64(at + abi.SEGMENT_BASE, base);
    this.put32(at + abi.SEGMENT_LIMIT, limit);
    this.put32(at + abi.SEGMENT_ACCESS, access);
    this.view.setUint16(at + abi.SEGMENT_SELECTOR, selector, true);
    this.dirty(abi.HVI_STATE_SEG);
  }

  private flat(code: number, codeAccess: number, data: number, dataAccess: number): void {
    this.segment("cs", code, 0, 0xffffffff, codeAccess);
    for (const s of ["ss", "ds", "es", "fs", "gs"] as const)
      this.segment(s, data, 0, 0xffffffff, dataAccess);
  }

  /** The state in which each case of a mode starts; the runner then sets what the case asks. */
  init(mode: Mode, avx: boolean): void {
    for (const r of GPR_NAMES) this.set(r, 0);
    this.setAll({
      rflags: 2,
      rsp: STACK - 0x100,
      cr2: 0,
      cr3: TABLES,
      cr8: 0,
      gdtBase: GDT,
      gdtLimit: 0xfff,
      idtBase: IDT,
      idtLimit: 0xfff,
      dr6: 0xffff0ff0,
      dr7: 0x400,
      mpState: abi.HVI_MP_RUNNING,
      interruptibility: 0,
      pat: 0x0007040600070406n,
    });
    this.segment("ldtr", 0, 0, 0, abi.HVI_SEG_UNUSABLE);
    this.segment("tr", SEL.tss, TSS, 0x67, 0x8b);
    if (mode === "long" || mode === "user") {
      this.setAll({ cr0: 0x80010033, cr4: 0x40620, efer: 0xd01, xcr0: avx ? 7 : 3 });
      if (mode === "long") this.flat(SEL.code64, 0xa09b, SEL.data, 0xc093);
      else {
        this.flat(SEL.userCode64, 0xa0fb, SEL.userData, 0xc0f3);
        // IOPL 3: the ports that end a case are open to the user.
        this.setAll({ rsp: STACK_USER - 0x100, rflags: 0x3002 });
      }
    } else if (mode === "real") {
      this.setAll({
        cr0: 0x10,
        cr3: 0,
        cr4: 0x600,
        efer: 0,
        xcr0: 1,
        rsp: 0x7000,
        idtBase: 0,
        idtLimit: 0x3ff,
      });
      this.segment("cs", 0, 0, 0xffff, 0x9b);
      for (const s of ["ss", "ds", "es", "fs", "gs"] as const) this.segment(s, 0, 0, 0xffff, 0x93);
    } else {
      this.setAll({
        cr0: mode === "prot" ? 0x10033 : 0x80010033,
        cr3: mode === "prot" ? 0 : TABLES,
        cr4: mode === "pae" ? 0x620 : mode === "p32" ? 0x610 : 0x600,
        efer: mode === "pae" ? 0x800 : 0,
        xcr0: 1,
      });
      this.flat(SEL.code64, 0xc09b, SEL.data, 0xc093);
    }
  }

  /** The registers a DONE line shows, short. */
  summary(): string {
    const shown = GPR_NAMES.slice(0, 8).map((r) => `${r}=${hex(this.get(r))}`);
    return `${shown.join(" ")} rflags=${hex(this.get("rflags") & FLAGS_SHOWN)}`;
  }
}
