// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import * as abi from "../bridge/abi.ts";
import { fakeVm } from "../bridge/fake.fixture.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import { VirtualMemory } from "../memory/virtual.ts";
import {
  ACCESS_CONDITIONAL,
  ACCESS_IMPLICIT,
  ACCESS_READ,
  ACCESS_SYSTEM,
  ACCESS_WRITE,
  AccessList,
} from "./access-list.ts";
import { listAccesses, listWholeRep } from "./accesses.ts";
import type { InsnContext } from "./context.ts";
import { decode } from "./decode.ts";
import { EVENT_WITH_CODE, listDelivery, PLAIN_EVENT, SOFTWARE_EVENT } from "./descriptors.ts";
import type { CodeMode, Instruction } from "./instruction.ts";
import { XsaveLayout } from "./xsave.ts";

const GDT = 0x3000;
const TSS = 0x4000;
const IDT = 0x5000;

interface Guest extends InsnContext {
  readonly area: Uint8Array;
  mode: CodeMode;
}

/** A vCPU over 1 MiB of memory mapped one to one; 64-bit ring 3 unless told otherwise. */
function guest(mode: CodeMode = 64): Guest {
  const { vm } = fakeVm({ size: 0x100000 });
  const physical = new PhysicalMemory(vm.ram);
  const tables = new FakeTables(physical, "4level", 0x80000);
  for (let at = 0; at < 0x40000; at += 0x1000) tables.map(at, at);
  const memory = new VirtualMemory(physical, tables.root, "4level");
  const vcpu = vm.vcpus[0];
  vcpu.cr0 = 0x80000001;
  vcpu.cr4 = 0x20;
  vcpu.efer = mode === 64 ? 0xd01 : 0;
  vcpu.rflags = 2;
  vcpu.rip = 0x1000;
  vcpu.setSeg(abi.HVI_CS, 0x33, 0, 0xffffffff, mode === 64 ? 0xa0fb : 0xc0fb);
  vcpu.setSeg(abi.HVI_SS, 0x2b, 0, 0xffffffff, 0xc0f3);
  vcpu.setGdt(GDT, 0xff);
  vcpu.setIdt(IDT, 0xfff);
  vcpu.setTr(0x40, TSS, 0x3ff, 0x8b);
  vcpu.setLdtr(0, 0, 0, abi.HVI_SEG_UNUSABLE);
  vcpu.setGprNumber(abi.HVI_RSP, 0x8000);
  vcpu.setGprNumber(abi.HVI_RBP, 0x9000);
  vcpu.setGprNumber(abi.HVI_RBX, 0x100);
  vcpu.setGprNumber(abi.HVI_RSI, 0x200);
  vcpu.setGprNumber(abi.HVI_RDI, 0x300);
  vcpu.setGprNumber(abi.HVI_RCX, 3);
  const area = new Uint8Array(2696);
  area[512] = 0xe7;
  // Components as on a CPU with AVX-512 and no MPX.
  const component = (index: number, eax: number, ebx: number, ecx: number) => ({
    ...{ leaf: 0xd, index, flags: 1, eax, ebx, ecx, edx: 0 },
  });
  const layout = new XsaveLayout([
    component(2, 256, 576, 0),
    component(5, 64, 832, 0),
    component(6, 512, 896, 2),
    component(7, 1024, 1408, 2),
    component(9, 8, 2432, 0),
    component(11, 16, 0, 1),
  ]);
  return { vcpu, memory, area, mode, xsave: () => area, xsaveLayout: () => layout };
}

function insnOf(code: string, mode: CodeMode): Instruction {
  const bytes = Uint8Array.from(code.split(" "), (b) => Number.parseInt(b, 16));
  const insn = decode(bytes, 0, mode);
  if (!insn) throw new Error(`no instruction: ${code}`);
  return insn;
}

/** "rw 100 8": implicit ones in brackets, conditional ones with a question mark, system ones with a star. */
function show(out: AccessList): string[] {
  const lines: string[] = [];
  for (let i = 0; i < out.length; i++) {
    const f = out.flags[i];
    const kind = `${f & ACCESS_READ ? "r" : ""}${f & ACCESS_WRITE ? "w" : ""}`;
    const marks = `${f & ACCESS_CONDITIONAL ? "?" : ""}${f & ACCESS_SYSTEM ? "*" : ""}`;
    const text = `${kind}${marks} ${out.gva[i].toString(16)} ${out.size[i]}`;
    lines.push(f & ACCESS_IMPLICIT ? `(${text})` : text);
  }
  if (!out.complete) lines.push("...");
  return lines;
}
function list(code: string, g = guest(), prepare?: (v: Vcpu, g: Guest) => void): string[] {
  prepare?.(g.vcpu, g);
  const out = new AccessList();
  expect(listAccesses(g, insnOf(code, g.mode), out)).toBe(out.length);
  return show(out);
}
function whole(code: string, g: Guest): string[] {
  const out = new AccessList();
  listWholeRep(g, insnOf(code, g.mode), out);
  return show(out);
}
function delivery(g: Guest, vector: number, kind = PLAIN_EVENT): string[] {
  const out = new AccessList();
  listDelivery(g, vector, kind, out);
  return show(out);
}

function code(g: Guest, selector: number, dpl: number, more = 0): void {
  g.memory.writeU64(GDT + (selector & ~7), 0xffff, 0x00a09b00 | (dpl << 13) | more);
}

describe("operands and the stack", () => {
  test("explicit and implicit", () => {
    expect(list("ff 33")).toEqual(["r 100 8", "(w 7ff8 8)"]);
    expect(list("8f 44 24 08")).toEqual(["(r 8000 8)", "w 8010 8"]);
    expect(list("c3")).toEqual(["(r 8000 8)"]);
    expect(list("e8 00 00 00 00")).toEqual(["(w 7ff8 8)"]);
    expect(list("a4")).toEqual(["(r 200 1)", "(w 300 1)"]);
    expect(list("f0 48 ff 03")).toEqual(["rw 100 8"]);
    expect(list("0f 01 0b")).toEqual(["w 100 10"]);
    expect(list("c9")).toEqual(["(r 9000 8)"]);
    expect(list("48 0f b1 0b")).toEqual(["rw 100 8"]);
  });
  test("none: LEA, NOP, prefetches, INVLPG, undefined instructions", () => {
    for (const code of [
      ...["48 8d 03", "0f 1f 03", "90", "0f 18 03", "0f 0d 0b", "0f 01 3b", "0f b9 03", "0f ff 03"],
    ]) {
      expect(list(code)).toEqual([]);
    }
  });
  test("the first one written and read", () => {
    const out = new AccessList();
    const g = guest();
    listAccesses(g, insnOf("ff 33", 64), out);
    expect([out.firstRead, out.firstWritten]).toEqual([0x100, 0x7ff8]);
    listAccesses(g, insnOf("48 8d 03", 64), out);
    expect([out.firstRead, out.firstWritten]).toEqual([Number.NaN, Number.NaN]);
  });
  test("ENTER with levels, PUSHA, POPA", () => {
    expect(list("c8 10 00 00")).toEqual(["(w 7ff8 8)", "(w? 7fe8 8)"]);
    expect(list("c8 10 00 03")).toEqual([
      ...["(w 7ff8 8)", "(r 8ff8 8)", "(w 7ff0 8)", "(r 8ff0 8)", "(w 7fe8 8)", "(w 7fe0 8)"],
      "(w? 7fd0 8)",
    ]);
    expect(list("c8 ff ff 1f").length).toBe(1 + 2 * 30 + 1 + 1);
    expect(list("60", guest(32)).length).toBe(8);
    expect(list("60", guest(32))[7]).toBe("(w 7fe0 4)");
    expect(list("61", guest(32))[3]).toBe("(r? 800c 4)");
  });
  test("the stack's width is that of SS", () => {
    const narrow = (v: Vcpu) => {
      v.setSeg(abi.HVI_SS, 0x2b, 0x10000, 0xffff, 0xf3);
      v.setGprNumber(abi.HVI_RSP, 0xabcd0002);
    };
    expect(list("50", guest(32), narrow)).toEqual(["(w 1fffe 4)"]);
    expect(list("66 50", guest(32), narrow)).toEqual(["(w 10000 2)"]);
    expect(list("1e", guest(32))).toEqual(["(w 7ffc 2)"]);
  });
  test("cache lines, MONITOR, 64-byte stores", () => {
    const at = (v: Vcpu) => v.setGprNumber(abi.HVI_RAX, 0x1234);
    expect(list("0f ae 3b")).toEqual(["r 100 1"]);
    expect(list("0f 01 fc", guest(), at)).toEqual(["(w 1200 64)"]);
    expect(list("0f 01 c8", guest(), at)).toEqual(["(r 1234 1)"]);
    expect(list("f3 0f ae f3")).toEqual(["(r 100 1)"]);
    expect(list("66 0f 38 f8 03", guest(), at)).toEqual(["r 100 64", "w 1234 64"]);
    const gs = (v: Vcpu) => {
      v.setSeg(abi.HVI_GS, 0, 0x10000, 0, 0);
      v.setGprNumber(abi.HVI_RAX, 0x1234);
    };
    expect(list("65 0f 01 c8", guest(), gs)).toEqual(["(r 11234 1)"]);
  });
});

describe("strings", () => {
  test("a count of 0 is no access", () => {
    const none = (v: Vcpu) => v.setGpr(abi.HVI_RCX, 0, 0);
    expect(list("f3 a4", guest(), none)).toEqual([]);
    expect(list("a4", guest(), none)).toEqual(["(r 200 1)", "(w 300 1)"]);
    // The count is ECX with 32-bit addresses.
    expect(list("67 f3 a4", guest(), (v) => v.setGpr(abi.HVI_RCX, 0, 1))).toEqual([]);
    expect(list("f3 a4", guest(), (v) => v.setGpr(abi.HVI_RCX, 0, 1)).length).toBe(2);
  });
  test("the whole of a REP, upwards and downwards", () => {
    const g = guest();
    expect(whole("f3 48 a5", g)).toEqual(["(r 200 24)", "(w 300 24)"]);
    g.vcpu.rflags = 0x402;
    expect(whole("f3 48 a5", g)).toEqual(["(r 1f0 24)", "(w 2f0 24)"]);
    expect(whole("f2 ae", g)).toEqual(["(r? 2fe 3)"]);
    expect(whole("ff 33", g)).toEqual(["r 100 8", "(w 7ff8 8)"]);
    g.vcpu.setGpr(abi.HVI_RCX, 0, 0);
    expect(whole("f3 48 a5", g)).toEqual([]);
  });
  test("wraps around at the address size", () => {
    const g = guest(16);
    g.vcpu.setSeg(abi.HVI_ES, 0, 0x10000, 0xffff, 0xf3);
    g.vcpu.setGprNumber(abi.HVI_RDI, 0xfffe);
    g.vcpu.setGprNumber(abi.HVI_RCX, 5);
    expect(whole("f3 aa", g)).toEqual(["(w 1fffe 2)", "(w 10000 3)"]);
    g.vcpu.setGprNumber(abi.HVI_RCX, 0xffff);
    expect(whole("f3 66 ab", g)).toEqual(["(w 10000 65536)"]);
    g.vcpu.rflags = 0x402;
    g.vcpu.setGprNumber(abi.HVI_RDI, 1);
    g.vcpu.setGprNumber(abi.HVI_RCX, 4);
    expect(whole("f3 aa", g)).toEqual(["(w 1fffe 2)", "(w 10000 2)"]);
  });
  test("ports: the bit map of the TSS where IOPL is too low", () => {
    const g = guest();
    g.memory.write16(TSS + 0x66, 0x68);
    g.vcpu.setGprNumber(abi.HVI_RDX, 0x3f8);
    expect(list("6c", g)).toEqual(["(r* 4066 2)", "(r* 40e7 2)", "(w 300 1)"]);
    expect(list("e6 80", g)).toEqual(["(r* 4066 2)", "(r* 4078 2)"]);
    g.vcpu.rflags = 0x3002;
    expect(list("6c", g)).toEqual(["(w 300 1)"]);
    expect(list("f3 6e", g)).toEqual(["(r 200 1)"]);
    expect(whole("f3 6e", g)).toEqual(["(r 200 3)"]);
  });
});

describe("descriptors and far transfers", () => {
  test("segment loads read the table and set the accessed bit", () => {
    const g = guest();
    g.memory.writeU64(GDT + 0x28, 0xffff, 0x00cff300);
    g.vcpu.setGprNumber(abi.HVI_RAX, 0x2b);
    expect(list("8e d8", g)).toEqual(["(r* 3028 8)"]);
    g.memory.writeU64(GDT + 0x28, 0xffff, 0x00cff200);
    expect(list("8e d8", g)).toEqual(["(r* 3028 8)", "(w* 302d 1)"]);
    expect(list("0f 02 c0", g)).toEqual(["(r* 3028 8)"]);
    g.memory.write16(0x100, 0x2b);
    expect(list("8e 1b", g)).toEqual(["r 100 2", "(r* 3028 8)", "(w* 302d 1)"]);
    expect(list("0f 00 2b", g)).toEqual(["r 100 2", "(r* 3028 8)"]);
    // The null selector, beyond the limit, no LDT.
    for (const selector of [3, 0x100, 0x2f]) {
      g.vcpu.setGprNumber(abi.HVI_RAX, selector);
      expect(list("8e d8", g)).toEqual([]);
    }
    g.vcpu.setGprNumber(abi.HVI_RAX, 0x2b);
    g.vcpu.setGdt(0x70000, 0xff);
    expect(list("8e d8", g)).toEqual(["(r* 70028 8)", "..."]);
    const real = guest(16);
    real.vcpu.cr0 = 0;
    real.vcpu.setGprNumber(abi.HVI_RAX, 0x2b);
    expect(list("8e d8", real)).toEqual([]);
  });
  test("LTR and LLDT: 16 bytes in IA-32e mode, the busy bit", () => {
    const g = guest();
    g.vcpu.setGprNumber(abi.HVI_RAX, 0x40);
    g.memory.writeU64(GDT + 0x40, 0x67, 0x8900);
    expect(list("0f 00 d8", g)).toEqual(["(r* 3040 8)", "(r* 3048 8)", "(w* 3045 1)"]);
    expect(list("0f 00 d0", g)).toEqual(["(r* 3040 8)", "(r* 3048 8)"]);
  });
  test("far CALL, to a segment and through a call gate to an inner stack", () => {
    const g = guest();
    code(g, 0x33, 3);
    g.memory.write32(0x100, 0x1000);
    g.memory.write16(0x104, 0x33);
    expect(list("ff 1b", g)).toEqual(["r 100 6", "(r* 3030 8)", "(w 7ffc 4)", "(w 7ff8 4)"]);
    expect(list("ff 2b", g)).toEqual(["r 100 6", "(r* 3030 8)"]);
    // A 64-bit call gate at 48h to ring 0 code at 10h.
    code(g, 0x10, 0);
    g.memory.writeU64(GDT + 0x48, (0x10 << 16) | 0x1000, 0xec00);
    g.memory.writeU64(TSS + 4, 0x7000, 0);
    g.memory.write16(0x104, 0x48);
    expect(list("ff 1b", g)).toEqual([
      ...["r 100 6", "(r* 3048 8)", "(r* 3050 8)", "(r* 3010 8)", "(r* 4004 8)"],
      ...["(w* 6ff8 8)", "(w* 6ff0 8)", "(w* 6fe8 8)", "(w* 6fe0 8)"],
    ]);
  });
  test("a 32-bit call gate copies parameters", () => {
    const g = guest(32);
    code(g, 0x10, 0, 1 << 22);
    g.memory.writeU64(GDT + 0x48, (0x10 << 16) | 0x1000, 0xec02);
    g.memory.writeU64(GDT + 0x18, 0xffff, 0x00cf9300);
    g.memory.write32(TSS + 4, 0x7000);
    g.memory.write16(TSS + 8, 0x18);
    expect(list("9a 00 00 00 00 48 00", g)).toEqual([
      ...["(r* 3048 8)", "(r* 3010 8)", "(r* 4004 4)", "(r* 4008 2)", "(r* 3018 8)"],
      ...["(r 8000 4)", "(r 8004 4)"],
      ...["(w* 6ffc 4)", "(w* 6ff8 4)", "(w* 6ff4 4)", "(w* 6ff0 4)", "(w* 6fec 4)", "(w* 6fe8 4)"],
    ]);
    // A task gate: what a task switch accesses is not followed.
    g.memory.writeU64(GDT + 0x48, 0x40 << 16, 0xe500);
    expect(list("9a 00 00 00 00 48 00", g)).toEqual(["(r* 3048 8)", "..."]);
  });
  test("far RET and IRET, to the same ring and outwards", () => {
    const g = guest(32);
    g.vcpu.setSeg(abi.HVI_CS, 0x10, 0, 0xffffffff, 0xc09b);
    g.vcpu.setSeg(abi.HVI_SS, 0x18, 0, 0xffffffff, 0xc093);
    code(g, 0x10, 0, 1 << 22);
    code(g, 0x30, 3, 1 << 22);
    g.memory.writeU64(GDT + 0x28, 0xffff, 0x00cff300);
    g.memory.write32(0x8004, 0x10);
    expect(list("cb", g)).toEqual(["(r 8000 4)", "(r 8004 4)", "(r* 3010 8)"]);
    expect(list("cf", g)).toEqual(["(r 8000 4)", "(r 8004 4)", "(r 8008 4)", "(r* 3010 8)"]);
    g.memory.write32(0x8004, 0x33);
    g.memory.write32(0x8014, 0x2b);
    expect(list("ca 08 00", g)).toEqual([
      ...["(r 8000 4)", "(r 8004 4)", "(r 8010 4)", "(r 8014 4)", "(r* 3030 8)", "(r* 3028 8)"],
    ]);
    g.memory.write32(0x8010, 0x2b);
    expect(list("cf", g)).toEqual([
      ...["(r 8000 4)", "(r 8004 4)", "(r 8008 4)", "(r 800c 4)", "(r 8010 4)"],
      ...["(r* 3030 8)", "(r* 3028 8)"],
    ]);
    g.memory.write32(0x8008, 1 << 17);
    expect(list("cf", g).length).toBe(9);
    const long = guest();
    code(long, 0x33, 3);
    long.memory.write32(0x8008, 0x33);
    expect(list("48 cf", long)).toEqual([
      ...["(r 8000 8)", "(r 8008 8)", "(r 8010 8)", "(r 8018 8)", "(r 8020 8)", "(r* 3030 8)"],
    ]);
  });
});

describe("events", () => {
  function gate(g: Guest, vector: number, lo: number, hi: number): void {
    g.memory.writeU64(IDT + vector * (g.mode === 64 ? 16 : 8), lo, hi);
  }
  test("in 64-bit mode: to ring 0, by IST, with an error code", () => {
    const g = guest();
    code(g, 0x10, 0);
    gate(g, 14, 0x100000, 0x8e00);
    g.memory.writeU64(TSS + 4, 0x7018, 0);
    expect(delivery(g, 14, EVENT_WITH_CODE)).toEqual([
      ...["(r* 50e0 16)", "(r* 3010 8)", "(r* 4004 8)"],
      ...["(w* 7008 8)", "(w* 7000 8)", "(w* 6ff8 8)", "(w* 6ff0 8)", "(w* 6fe8 8)", "(w* 6fe0 8)"],
    ]);
    gate(g, 14, 0x100000, 0x8e03);
    g.memory.writeU64(TSS + 36 + 16, 0x6000, 0);
    expect(delivery(g, 14).slice(2, 4)).toEqual(["(r* 4034 8)", "(w* 5ff8 8)"]);
    // INT n through a gate of ring 0, a gate that is not present, beyond the limit.
    expect(list("cd 0e", g)).toEqual(["(r* 50e0 16)"]);
    expect(delivery(g, 15)).toEqual(["(r* 50f0 16)"]);
    g.vcpu.setIdt(IDT, 0xe0);
    expect(delivery(g, 14)).toEqual([]);
  });
  test("at the same ring the current stack is used", () => {
    const g = guest();
    g.vcpu.setSeg(abi.HVI_SS, 0x18, 0, 0xffffffff, 0xc093);
    code(g, 0x10, 0);
    gate(g, 3, 0x100000, 0xee00);
    g.vcpu.setGprNumber(abi.HVI_RSP, 0x8008);
    expect(list("cc", g).slice(1)).toEqual([
      ...["(r* 3010 8)", "(w 7ff8 8)", "(w 7ff0 8)", "(w 7fe8 8)", "(w 7fe0 8)", "(w 7fd8 8)"],
    ]);
  });
  test("in protected mode: SS and ESP from the TSS", () => {
    const g = guest(32);
    code(g, 0x10, 0, 1 << 22);
    gate(g, 0x80, 0x100000, 0xee00);
    g.memory.writeU64(GDT + 0x18, 0xffff, 0x00cf9200);
    g.memory.write32(TSS + 4, 0x7000);
    g.memory.write16(TSS + 8, 0x18);
    expect(list("cd 80", g)).toEqual([
      ...["(r* 5400 8)", "(r* 3010 8)", "(r* 4004 4)", "(r* 4008 2)", "(r* 3018 8)", "(w* 301d 1)"],
      ...["(w* 6ffc 4)", "(w* 6ff8 4)", "(w* 6ff4 4)", "(w* 6ff0 4)", "(w* 6fec 4)"],
    ]);
    expect(list("ce", g)).toEqual([]);
    gate(g, 8, 0x400000, 0x8500);
    expect(delivery(g, 8, EVENT_WITH_CODE)).toEqual(["(r* 5040 8)", "..."]);
    expect(delivery(g, 8, SOFTWARE_EVENT)).toEqual(["(r* 5040 8)"]);
  });
  test("in real mode", () => {
    const g = guest(16);
    g.vcpu.cr0 = 0;
    g.vcpu.setSeg(abi.HVI_SS, 0x1000, 0x10000, 0xffff, 0x93);
    g.vcpu.setIdt(0, 0x3ff);
    g.vcpu.setGprNumber(abi.HVI_RSP, 2);
    expect(list("cd 10", g)).toEqual(["(r* 40 4)", "(w 10000 2)", "(w 1fffe 2)", "(w 1fffc 2)"]);
  });
});

describe("vectors and XSAVE", () => {
  test("gather, element by element", () => {
    const g = guest();
    // Indices 1, -2, 3, 4 in XMM0; mask of elements 0, 1 and 3 in XMM2.
    const view = new DataView(g.area.buffer);
    [1, -2, 3, 4].forEach((n, i) => {
      view.setInt32(160 + 4 * i, n, true);
    });
    [1, 1, 0, 1].forEach((n, i) => {
      view.setUint32(160 + 32 + 4 * i, n << 31, true);
    });
    expect(list("c4 e2 69 92 0c 83", g)).toEqual(["r 104 4", "r f8 4", "r 110 4"]);
  });
  test("scatter under a mask register, 512 bits", () => {
    const g = guest();
    const view = new DataView(g.area.buffer);
    const offsets = [
      160, 164, 168, 172, 576, 580, 584, 588, 896, 900, 904, 908, 912, 916, 920, 924,
    ];
    offsets.forEach((at, i) => {
      view.setInt32(at, i * 0x10, true);
    });
    view.setUint16(832 + 8, 0x8011, true);
    // vpscatterdd [rbx + zmm0*4] {k1}, zmm1
    expect(list("62 f2 7d 49 a0 0c 83", g)).toEqual(["w 100 4", "w 200 4", "w 4c0 4"]);
    g.area[512] &= ~0x20;
    expect(list("62 f2 7d 49 a0 0c 83", g)).toEqual([]);
  });
  test("masked moves: runs of chosen elements", () => {
    const g = guest();
    for (const i of [0, 1, 2, 9]) g.area[160 + 16 + i] = 0x80;
    expect(list("66 0f f7 c1", g)).toEqual(["(w 300 3)", "(w 309 1)"]);
    // vmovdqu32 [rbx] {k1}, zmm0 and its load; without k1 the whole.
    g.area[832 + 8] = 0x0f;
    expect(list("62 f1 7e 49 7f 03", g)).toEqual(["w 100 16"]);
    expect(list("62 f1 7e 49 6f 03", g)).toEqual(["r? 100 64"]);
    expect(list("62 f1 7e 48 7f 03", g)).toEqual(["w 100 64"]);
    // vpcompressd [rbx] {k1}, zmm0
    g.area[832 + 8] = 0x55;
    expect(list("62 f2 7d 49 8b 03", g)).toEqual(["w 100 16"]);
  });
  test("XSAVE by mask, format and mode", () => {
    const g = guest();
    g.vcpu.xcr0 = 0xe7;
    g.vcpu.setGpr(abi.HVI_RAX, 0xffffffff, 0);
    const probe = "w? 100 576";
    expect(list("0f ae 23", g)).toEqual([
      ...["rw 300 8", "w 100 24", "w 120 128", "w 118 8", "w 1a0 256", "w 340 256"],
      ...["w 440 64", "w 480 512", "w 680 1024", probe],
    ]);
    g.vcpu.setGpr(abi.HVI_RAX, 4, 0);
    expect(list("0f ae 23", g)).toEqual(["rw 300 8", "w 118 8", "w 340 256", probe]);
    // Compacted: ZMM_Hi256 alone comes right behind the header.
    g.vcpu.setGpr(abi.HVI_RAX, 0x60, 0);
    expect(list("0f c7 23", g)).toEqual(["w 300 16", "w? 340 64", "w? 380 512", probe]);
    const narrow = guest(32);
    narrow.vcpu.xcr0 = 0xe7;
    narrow.vcpu.setGpr(abi.HVI_RAX, 0x86, 0);
    expect(list("0f ae 23", narrow)).toEqual([
      ...["rw 300 8", "w 118 8", "w 1a0 128", "w 340 128", probe],
    ]);
  });
  test("XRSTOR reads what its header says", () => {
    const g = guest();
    g.vcpu.xcr0 = 7;
    g.vcpu.setGpr(abi.HVI_RAX, 7, 0);
    g.memory.write32(0x100 + 512, 5);
    expect(list("0f ae 2b", g)).toEqual([
      ...["r 300 64", "r 118 8", "r 100 24", "r 120 128", "r 340 256", "r? 100 512"],
    ]);
    // The area reaches into an absent page.
    g.vcpu.setGprNumber(abi.HVI_RBX, 0x3fe00);
    expect(list("0f ae 2b", g)).toEqual(["r 40000 64", "..."]);
  });
  test("FXSAVE", () => {
    expect(list("0f ae 03")).toEqual(["w 100 416", "w? 2a0 96"]);
    expect(list("0f ae 03", guest(32))).toEqual(["w 100 288", "w? 220 224"]);
  });
});
