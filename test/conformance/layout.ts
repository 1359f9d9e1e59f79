// SPDX-License-Identifier: MIT
/**
 * Where things stand in a conformance guest, and how the runner builds its
 * tables. Everything is written through the ABI: there is no firmware.
 *
 * Guest physical memory (8 MiB of RAM from 0):
 *   0x001000 GDT   0x002000 IDT   0x003000 TSS   0x004000 LDT
 *   0x010000 page tables
 *   0x100000 the image (real mode: 0x8000)
 *   0x1c0000, 0x1d0000, 0x1e0000, 0x1f0000: tops of the stacks, each alone on its page
 *   0x200000 data pages, seen at the window's linear address
 *   0x400000 a large page, seen behind the window
 */
import type { Bench } from "./bench.ts";

export const PORT_DONE = 0xee;
export const PORT_VECTOR = 0x80;
export const VECTORS = 64;

export const RAM_SIZE = 0x800000;
/** The second memory slot of cases that ask for it. */
export const HIGH = 0x100000000;
export const HIGH_SIZE = 0x10000;
export const GDT = 0x1000;
export const IDT = 0x2000;
export const TSS = 0x3000;
export const LDT = 0x4000;
export const TABLES = 0x10000;
export const DATA = 0x200000;
export const LARGE = 0x400000;
/** The stack in use; the one the TSS names for ring 0; IST 1; the user's. */
export const STACK = 0x1f0000;
export const STACK_RSP0 = 0x1c0000;
export const STACK_IST = 0x1d0000;
export const STACK_USER = 0x1e0000;

/** Selectors. */
export const SEL = {
  code64: 0x08,
  data: 0x10,
  code32: 0x18,
  userData: 0x23,
  userCode64: 0x2b,
  tss: 0x30,
  tssFree: 0x40,
  /** Data whose accessed bit is clear. */
  dataFresh: 0x50,
  dataAbsent: 0x58,
  userCode32: 0x63,
  ldt: 0x68,
  /** Data with base LDT, limit 0xfff, byte granular. */
  dataBased: 0x78,
} as const;

export type Mode = "long" | "user" | "prot" | "p32" | "pae" | "real";

/** Linear address of the window onto DATA, by mode. */
export const WINDOW: Record<Mode, bigint> = {
  long: 0xffff900000000000n,
  user: 0x0000600000000000n,
  prot: BigInt(DATA),
  p32: 0x80000000n,
  pae: 0x80000000n,
  real: 0xa000n,
};
export const DATA_OF: Record<Mode, number> = {
  long: DATA,
  user: DATA,
  prot: DATA,
  p32: DATA,
  pae: DATA,
  real: 0xa000,
};
/** Entries (physical addresses) of the window's walk for data page 0, top level first. */
export const WALK: Partial<Record<Mode, number[]>> = {
  long: [TABLES + 8 * 288, TABLES + 0x5000, TABLES + 0x6000, TABLES + 0x7000],
  user: [TABLES + 8 * 192, TABLES + 0x5000, TABLES + 0x6000, TABLES + 0x7000],
  p32: [TABLES + 4 * 0x200, TABLES + 0x2000],
  pae: [TABLES + 8 * 2, TABLES + 0x4000, TABLES + 0x5000],
};
export const IMAGE: Record<Mode, string> = {
  long: "long",
  user: "long",
  prot: "prot",
  p32: "prot",
  pae: "prot",
  real: "real",
};

/** Present, writable, user, accessed, dirty: a walk of such entries writes nothing. */
const FLAGS = 0x67n;
const TABLE_FLAGS = 0x27n;
const PS = 0x80n;

function longTables(t: Bench, mode: Mode): void {
  const [pml4, pdptLow, pdLow, pt0, pt1, pdptWin, pdWin, ptWin] = [0, 1, 2, 3, 4, 5, 6, 7].map(
    (n) => TABLES + n * 0x1000,
  ) as [number, number, number, number, number, number, number, number];
  t.put64(pml4, BigInt(pdptLow) | TABLE_FLAGS);
  t.put64(WALK[mode]![0]!, BigInt(pdptWin) | TABLE_FLAGS);
  t.put64(pdptLow, BigInt(pdLow) | TABLE_FLAGS);
  t.put64(pdLow, BigInt(pt0) | TABLE_FLAGS);
  t.put64(pdLow + 8, BigInt(pt1) | TABLE_FLAGS);
  t.put64(pdLow + 16, BigInt(LARGE) | FLAGS | PS);
  t.put64(pdLow + 24, BigInt(LARGE + 0x200000) | FLAGS | PS);
  t.put64(pdptWin, BigInt(pdWin) | TABLE_FLAGS);
  t.put64(pdWin, BigInt(ptWin) | TABLE_FLAGS);
  t.put64(pdWin + 8, BigInt(LARGE) | FLAGS | PS);
  for (let i = 0; i < 512; i++) {
    t.put64(pt0 + 8 * i, BigInt(i * 0x1000) | FLAGS);
    t.put64(pt1 + 8 * i, BigInt(0x200000 + i * 0x1000) | FLAGS);
    t.put64(ptWin + 8 * i, BigInt(DATA + i * 0x1000) | FLAGS);
  }
}

function p32Tables(t: Bench): void {
  const [pd, ptLow, ptWin] = [TABLES, TABLES + 0x1000, TABLES + 0x2000];
  t.put32(pd!, ptLow! | 0x27);
  t.put32(pd! + 4 * 0x200, ptWin! | 0x27);
  t.put32(pd! + 4 * 0x201, LARGE | 0x67 | 0x80);
  for (let i = 0; i < 1024; i++) {
    t.put32(ptLow! + 4 * i, (i * 0x1000) | 0x67);
    t.put32(ptWin! + 4 * i, (DATA + i * 0x1000) | 0x67);
  }
}

function paeTables(t: Bench): void {
  const [pdpt, pd0, pt0, pt1, pd2, ptWin] = [0, 1, 2, 3, 4, 5].map((n) => TABLES + n * 0x1000) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  t.put64(pdpt, BigInt(pd0) | 1n);
  t.put64(pdpt + 16, BigInt(pd2) | 1n);
  t.put64(pd0, BigInt(pt0) | TABLE_FLAGS);
  t.put64(pd0 + 8, BigInt(pt1) | TABLE_FLAGS);
  t.put64(pd2, BigInt(ptWin) | TABLE_FLAGS);
  t.put64(pd2 + 8, BigInt(LARGE) | FLAGS | PS);
  for (let i = 0; i < 512; i++) {
    t.put64(pt0 + 8 * i, BigInt(i * 0x1000) | FLAGS);
    t.put64(pt1 + 8 * i, BigInt(0x200000 + i * 0x1000) | FLAGS);
    t.put64(ptWin + 8 * i, BigInt(DATA + i * 0x1000) | FLAGS);
  }
}

/** A segment descriptor of 8 bytes; flags = type..P in bits 0-7, AVL L D G in bits 8-11. */
export function descriptor(base: number, limit: number, flags: number): bigint {
  const b = BigInt(base);
  const l = BigInt(limit);
  const f = BigInt(flags);
  return (
    (l & 0xffffn) |
    ((b & 0xffffffn) << 16n) |
    ((f & 0xffn) << 40n) |
    ((l >> 16n) << 48n) |
    ((f >> 8n) << 52n) |
    ((b >> 24n) << 56n)
  );
}

function gdt(t: Bench, long: boolean): void {
  const at = (selector: number, d: bigint) => t.put64(GDT + (selector & ~7), d);
  at(SEL.code64, descriptor(0, 0xfffff, long ? 0xa9b : 0xc9b));
  at(SEL.data, descriptor(0, 0xfffff, 0xc93));
  at(SEL.code32, descriptor(0, 0xfffff, 0xc9b));
  at(SEL.userData, descriptor(0, 0xfffff, 0xcf3));
  at(SEL.userCode64, descriptor(0, 0xfffff, long ? 0xafb : 0xcfb));
  at(SEL.tss, descriptor(TSS, 0x67, 0x8b));
  at(SEL.tssFree, descriptor(TSS + 0x100, 0x67, 0x89));
  at(SEL.dataFresh, descriptor(0, 0xfffff, 0xc92));
  at(SEL.dataAbsent, descriptor(0, 0xfffff, 0xc13));
  at(SEL.userCode32, descriptor(0, 0xfffff, 0xcfb));
  at(SEL.ldt, descriptor(LDT, 0xff, 0x82));
  at(SEL.dataBased, descriptor(LDT, 0xfff, 0x093));
}

/** One gate: 16 bytes in long mode, 8 in protected mode, 4 in real mode. `present` false leaves P clear. */
export function gate(
  t: Bench,
  vector: number,
  o: { present?: boolean; ist?: number; handler?: number } = {},
): void {
  const h = o.handler ?? t.symbol("handlers") + 16 * vector;
  const p = o.present === false ? 0x6e00 : 0xee00;
  if (t.mode === "real") {
    t.put32(4 * vector, h & 0xffff);
  } else if (t.image === "long") {
    t.put32(IDT + 16 * vector, (h & 0xffff) | (SEL.code64 << 16));
    t.put32(IDT + 16 * vector + 4, (h & 0xffff0000) | p | (o.ist ?? 0));
    t.put64(IDT + 16 * vector + 8, 0n);
  } else {
    t.put32(IDT + 8 * vector, (h & 0xffff) | (SEL.code64 << 16));
    t.put32(IDT + 8 * vector + 4, (h & 0xffff0000) | p);
  }
}

/** Writes GDT, IDT, TSS and page tables of the guest's mode. */
export function buildTables(t: Bench): void {
  if (t.mode !== "real") {
    gdt(t, t.image === "long");
    if (t.image === "long") {
      t.put64(TSS + 4, BigInt(STACK_RSP0));
      t.put64(TSS + 0x24, BigInt(STACK_IST));
    } else {
      t.put32(TSS + 4, STACK_RSP0);
      t.put32(TSS + 8, SEL.data);
    }
    // No I/O bitmap.
    t.put32(TSS + 0x64, 0x680000);
  } else {
    // For the case that enters protected mode.
    t.put64(GDT + 0x08, descriptor(0, 0xfffff, 0xc9b));
  }
  for (let v = 0; v < VECTORS; v++) gate(t, v);
  if (t.image === "long") longTables(t, t.mode);
  else if (t.mode === "p32") p32Tables(t);
  else if (t.mode === "pae") paeTables(t);
}
