// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import * as abi from "../bridge/abi.ts";
import { fakeVm } from "../bridge/fake.fixture.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import { VirtualMemory } from "../memory/virtual.ts";
import { AccessList } from "./access-list.ts";
import { listAccesses, listWholeRep } from "./accesses.ts";
import { DecodeCache } from "./cache.ts";
import { decode, disassemble, format } from "./decode.ts";
import { EVENT_WITH_CODE, listDelivery } from "./descriptors.ts";
import {
  ACTION_READ,
  type CodeMode,
  type Instruction,
  OPERAND_IMMEDIATE,
  VISIBLE_HIDDEN,
} from "./instruction.ts";
import { branchTarget, linearAddress } from "./operand.ts";
import { GPR_NAMES, registerInfo, registerLo, registerNamed } from "./registers.ts";
import {
  codeMode,
  cpuMode,
  currentRing,
  idtEntry,
  pagingMode,
  virtualMemoryOf,
} from "./segments.ts";
import { destinationValue, Written, writtenValue } from "./written.ts";
import { XsaveLayout } from "./xsave.ts";

const KERNEL = -0x7f000000;

function hex(text: string): Uint8Array {
  return Uint8Array.from(text.split(" "), (b) => Number.parseInt(b, 16));
}
function insnOf(text: string, mode: CodeMode = 64): Instruction {
  const insn = decode(hex(text), 0, mode);
  if (!insn) throw new Error(`no instruction: ${text}`);
  return insn;
}
function newVcpu(): Vcpu {
  return fakeVm().vm.vcpus[0];
}

describe("decode", () => {
  test("the whole record of one instruction", () => {
    // lock cmpxchg [rip+4], rcx
    const i = insnOf("f0 48 0f b1 0d 04 00 00 00");
    expect([i.name, i.length, i.lock, i.rep, i.operandWidth, i.addressWidth]).toEqual([
      "cmpxchg",
      9,
      true,
      false,
      64,
      64,
    ]);
    expect(i.category).toBe("semaphore");
    expect(i.flagsWritten & 0x8d5).toBe(0x8d5);
    const memory = i.operands[0];
    expect(memory.isMemory && memory.size).toBe(8);
    expect(registerInfo(memory.base).name).toBe("rip");
    expect(memory.value).toBe(4);
    expect(memory.reads && memory.writes).toBe(true);
    expect(registerInfo(i.operands[1].register)).toMatchObject({ name: "rcx", index: 1, size: 8 });
    expect(i.operands[1].actions).toBe(ACTION_READ);
    expect(i.operands.some((o) => o.visibility === VISIBLE_HIDDEN)).toBe(true);
    expect(i.bytes()).toEqual(hex("f0 48 0f b1 0d 04 00 00 00"));
  });
  test("immediates keep 64 bits and their sign", () => {
    const wide = insnOf("48 b8 88 77 66 55 44 33 22 91").operands[1];
    expect([wide.type, wide.lo >>> 0, wide.hi >>> 0]).toEqual([
      OPERAND_IMMEDIATE,
      0x55667788,
      0x91223344,
    ]);
    expect(insnOf("48 c7 03 fb ff ff ff").operands[1].value).toBe(-5);
    expect(insnOf("48 8b 43 f8").operands[1].value).toBe(-8);
  });
  test("the mode counts", () => {
    expect(insnOf("40 89 03").operandWidth).toBe(32);
    expect(insnOf("40", 32).name).toBe("inc");
    expect(insnOf("b8 34 12", 16).length).toBe(3);
    expect(insnOf("b8 78 56 34 12", 32).length).toBe(5);
  });
  test("no instruction is an answer", () => {
    expect(decode(hex("06"), 0, 64)).toBeUndefined();
    expect(decode(hex("48 89"), 0, 64)).toBeUndefined();
    expect(decode(new Uint8Array(0), 0, 64)).toBeUndefined();
    expect(decode(hex("90"), 1, 64)).toBeUndefined();
    expect(decode(new Uint8Array(20).fill(0x66), 0, 64)).toBeUndefined();
  });
  test("text", () => {
    expect(format(hex("e8 fb 00 00 00"), 0, 64, KERNEL)).toBe("call 0xffffffff81000100");
    expect(format(hex("c7 03 01 00 00 00"), 0, 64, 0)).toBe("mov dword ptr [rbx], 0x01");
    const lines = disassemble(hex("55 48 89 e5 06 c3 48"), 64, 0x1000, 10);
    expect(lines.map((l) => `${l.address.toString(16)} ${l.length} ${l.text}`)).toEqual([
      "1000 1 push rbp",
      "1001 3 mov rbp, rsp",
    ]);
    const long = disassemble(hex(`06 ${"90 ".repeat(20).trim()}`), 64, 0, 2);
    expect(long.map((l) => l.text)).toEqual(["db 0x06", "nop"]);
  });
});

describe("registers", () => {
  test("every size of a general register", () => {
    const v = newVcpu();
    v.setGpr(abi.HVI_RBX, 0x44332211, 0x88776655);
    const value = (name: string): number => {
      const info = registerNamed(name);
      return info ? registerLo(v, info) : -1;
    };
    expect([value("bl"), value("bh"), value("bx"), value("ebx"), value("rbx")]).toEqual([
      0x11, 0x22, 0x2211, 0x44332211, 0x44332211,
    ]);
    for (const [i, name] of GPR_NAMES.entries()) expect(registerNamed(name)?.index).toBe(i);
    expect(registerNamed("spl")?.index).toBe(abi.HVI_RSP);
    expect(registerNamed("r15b")?.index).toBe(abi.HVI_R15);
    expect(registerNamed("gs")?.index).toBe(abi.HVI_GS);
    expect(registerNamed("nothing")).toBeUndefined();
  });
});

describe("addresses of operands", () => {
  const address = (text: string, prepare: (v: Vcpu) => void, mode: CodeMode = 64): number => {
    const v = newVcpu();
    prepare(v);
    const insn = insnOf(text, mode);
    const operand = insn.operands.find((o) => o.isMemory);
    return operand ? linearAddress(v, insn, operand) : Number.NaN;
  };

  test("base, index, scale, displacement, with the CPU's wrap-around", () => {
    // mov [rbx+rcx*8+0x10], rax
    const code = "48 89 44 cb 10";
    expect(
      address(code, (v) => {
        v.setGprNumber(abi.HVI_RBX, KERNEL);
        v.setGprNumber(abi.HVI_RCX, 3);
      }),
    ).toBe(KERNEL + 0x28);
    expect(
      address(code, (v) => {
        v.setGpr(abi.HVI_RBX, 0xfffffff0, 0xffffffff);
        v.setGpr(abi.HVI_RCX, 0x20000001, 0xe0000000);
      }),
    ).toBe(0x100000008);
  });
  test("RIP-relative, FS and GS, flat others", () => {
    const rip = (v: Vcpu): void => {
      v.rip = KERNEL;
      v.setSeg(abi.HVI_DS, 0, 0x1000, 0, 0);
      v.setSeg(abi.HVI_GS, 0, -0x776000000000, 0, 0);
    };
    expect(address("48 8b 05 fc ff ff ff", rip)).toBe(KERNEL + 7 - 4);
    expect(address("65 48 8b 04 25 28 00 00 00", rip)).toBe(-0x776000000000 + 0x28);
    expect(address("3e 48 8b 04 25 28 00 00 00", rip)).toBe(0x28);
  });
  test("address sizes", () => {
    const set = (v: Vcpu): void => {
      v.setGpr(abi.HVI_RBX, 0xfffffffe, 0x12345678);
      v.setSeg(abi.HVI_DS, 0, 0x10000, 0, 0);
    };
    expect(address("67 89 43 04", set)).toBe(2);
    expect(address("89 43 04", set, 32)).toBe(0x10002);
    // mov [bp+di], al: SS by default
    expect(
      address(
        "88 03",
        (v) => {
          v.setGpr(abi.HVI_RBP, 0xffff, 0);
          v.setGpr(abi.HVI_RDI, 3, 0);
          v.setSeg(abi.HVI_SS, 0, 0x20000, 0, 0);
        },
        16,
      ),
    ).toBe(0x20002);
  });
  test("SIB without a base, REX.B and 32-bit addresses (wrong in Zydis 4.0.0)", () => {
    // lea rax, [ebx*8 + 0x54db36a6]
    const set = (v: Vcpu): void => {
      v.setGprNumber(abi.HVI_RBX, 2);
      v.setGprNumber(abi.HVI_R13, 0x1000);
    };
    expect(address("67 49 8d 04 dd a6 36 db 54", set)).toBe(0x54db36b6);
    expect(format(hex("67 49 8d 04 dd a6 36 db 54"), 0, 64, 0)).toBe("lea rax, [ebx*8+0x54db36a6]");
    // lea rax, [r13d + ebx*8 + 0]
    expect(address("67 49 8d 44 dd 00", set)).toBe(0x1010);
  });
  test("bit strings reach outside their operand", () => {
    const with_ = (lo: number, hi: number) => (v: Vcpu) => {
      v.setGprNumber(abi.HVI_RBX, 0x10000);
      v.setGpr(abi.HVI_RAX, lo, hi);
    };
    expect(address("48 0f ab 03", with_(64 * 5 + 3, 0))).toBe(0x10000 + 40);
    expect(address("48 0f ab 03", with_(0xffffffff, 0xffffffff))).toBe(0x10000 - 8);
    expect(address("48 0f ab 03", with_(0, 1))).toBe(0x10000 + 2 ** 29);
    expect(address("0f ab 03", with_(0xffffffff, 0))).toBe(0x10000 - 4);
    expect(address("66 0f ab 03", with_(0x8000, 0))).toBe(0x10000 - 4096);
    expect(address("0f ba 2b 07", with_(999, 0))).toBe(0x10000);
  });

  test("branch targets", () => {
    expect(branchTarget(insnOf("e8 fb 00 00 00"), KERNEL)).toBe(KERNEL + 0x100);
    expect(branchTarget(insnOf("eb fe"), 0x1000)).toBe(0x1000);
    expect(branchTarget(insnOf("ff d0"), 0)).toBeUndefined();
    expect(branchTarget(insnOf("e8 00 00 00 00", 32), 0xfffffffd)).toBe(2);
  });
});

describe("decode cache", () => {
  function cache(): { c: DecodeCache; memory: PhysicalMemory; v: VirtualMemory } {
    const { vm } = fakeVm({ size: 0x40000 });
    const memory = new PhysicalMemory(vm.ram);
    const tables = new FakeTables(memory, "4level", 0x10000);
    tables.map(KERNEL, 0x4000);
    tables.map(KERNEL + 0x1000, 0x7000);
    return {
      c: new DecodeCache(memory),
      memory,
      v: new VirtualMemory(memory, tables.root, "4level"),
    };
  }

  test("a hit is the same object, a change of the bytes a new one", () => {
    const { c, memory } = cache();
    for (const code of [
      "55",
      "48 89 e5",
      "48 89 44 cb 10",
      "c7 05 34 12 00 00 ef be ad de",
      "66 48 c7 84 cb 11 22 33 44 55 66 77 88".slice(0, 3 * 12 - 1),
      "26 48 c7 84 cb 11 22 33 44 55 66 77 08",
    ]) {
      const bytes = hex(code);
      memory.write(0x2000, bytes);
      const first = c.atGpa(0x2000, 64);
      expect(first?.length).toBeGreaterThan(0);
      expect(c.atGpa(0x2000, 64)).toBe(first as Instruction);
      // What follows the instruction does not matter, each of its bytes does.
      const length = first?.length ?? 0;
      memory.write8(0x2000 + length, 0xcc);
      expect(c.atGpa(0x2000, 64)).toBe(first as Instruction);
      for (let i = 0; i < length; i++) {
        const old = memory.read8(0x2000 + i);
        memory.write8(0x2000 + i, old ^ 0x10);
        expect(c.atGpa(0x2000, 64)).not.toBe(first as Instruction);
        memory.write8(0x2000 + i, old);
      }
    }
  });
  test("modes are apart; pages can be dropped", () => {
    const { c, memory } = cache();
    memory.write(0x2000, hex("40 90"));
    const long = c.atGpa(0x2000, 64);
    const legacy = c.atGpa(0x2000, 32);
    expect([long?.name, legacy?.name]).toEqual(["nop", "inc"]);
    expect(c.atGpa(0x2000, 64)).toBe(long as Instruction);
    c.invalidatePage(3);
    expect(c.atGpa(0x2000, 64)).toBe(long as Instruction);
    c.invalidatePage(2);
    expect(c.atGpa(0x2000, 64)).not.toBe(long as Instruction);
    c.clear();
    expect([c.hits, c.misses]).toEqual([2, 3]);
    expect(c.hitRate).toBe(0.4);
  });
  test("at the end of a page and over it", () => {
    const { c, memory, v } = cache();
    memory.write(0x4ffd, hex("48 89 e5"));
    const last = c.at(v, KERNEL + 0xffd, 64);
    expect(last?.length).toBe(3);
    expect(c.at(v, KERNEL + 0xffd, 64)).toBe(last as Instruction);
    memory.write8(0x4fff, 0xe4);
    expect(c.at(v, KERNEL + 0xffd, 64)).not.toBe(last as Instruction);
    // E8 imm32 with its last bytes on the next virtual page.
    memory.write(0x4ffe, hex("e8 01"));
    memory.write(0x7000, hex("02 03 04"));
    expect(c.at(v, KERNEL + 0xffe, 64)?.operands[0].value).toBe(0x04030201);
    memory.write8(0x7000, 9);
    expect(c.at(v, KERNEL + 0xffe, 64)?.operands[0].value).toBe(0x04030901);
    expect(c.at(v, KERNEL + 0x1ffe, 64)?.name).toBe("add");
    memory.write(0x7ffe, hex("e8 01"));
    expect(c.at(v, KERNEL + 0x1ffe, 64)).toBeUndefined();
    expect(c.at(v, KERNEL + 0x5000, 64)).toBeUndefined();
    expect(c.atGpa(0x1000000, 64)).toBeUndefined();
  });
});

describe("at RIP", () => {
  test("CS counts outside 64-bit code", () => {
    const { vm } = fakeVm({ size: 0x40000 });
    const memory = new PhysicalMemory(vm.ram);
    const v = vm.vcpus[0];
    v.setSeg(abi.HVI_CS, 0x200, 0x2000, 0xffff, 0x9b);
    v.rip = 0x10;
    memory.write(0x2010, hex("b8 34 12"));
    const cache = new DecodeCache(memory);
    expect(cache.atRip(v, virtualMemoryOf(v, memory))?.length).toBe(3);
    v.cr0 = 1;
    v.setSeg(abi.HVI_CS, 8, 0xffffffff, 0xffffffff, 0xc09b);
    v.rip = 0x2011;
    expect(cache.atRip(v, virtualMemoryOf(v, memory))?.length).toBe(5);
  });
});

describe("hostile input", () => {
  /** xorshift32: the same bytes in every run. */
  function random(seed: number): () => number {
    let x = seed;
    return () => {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      return x >>> 0;
    };
  }
  test("random bytes decode or do not, nothing else", () => {
    const next = random(42);
    const bytes = new Uint8Array(15);
    const v = newVcpu();
    let decoded = 0;
    let wrong = 0;
    for (let n = 0; n < 20000; n++) {
      for (let i = 0; i < 15; i++) bytes[i] = next();
      const mode = ([16, 32, 64] as const)[n % 3];
      const insn = decode(bytes, 0, mode);
      if (!insn) continue;
      decoded++;
      // The bytes behind its end do not change it.
      if (insn.length > 15 || decode(insn.bytes(), 0, mode)?.name !== insn.name) wrong++;
      for (const o of insn.operands) if (o.isMemory) linearAddress(v, insn, o);
      if (n % 8 === 0 && format(bytes, 0, mode, n) === undefined) wrong++;
    }
    expect(decoded).toBeGreaterThan(8000);
    expect(wrong).toBe(0);
  });
  test("random instructions in random states: lists and values, never a throw", () => {
    const next = random(99);
    const { vm } = fakeVm({ size: 0x40000 });
    const physical = new PhysicalMemory(vm.ram);
    for (let at = 0; at < 0x40000; at += 4) physical.write32(at, next());
    const tables = new FakeTables(physical, "4level", 0x30000);
    for (let at = 0; at < 0x8000; at += 0x1000) tables.map(at, at);
    const v = vm.vcpus[0];
    const area = new Uint8Array(832);
    const layout = new XsaveLayout([]);
    const bytes = new Uint8Array(15);
    const list = new AccessList();
    const out = new Written();
    let decoded = 0;
    let entries = 0;
    for (let n = 0; n < 20000; n++) {
      for (let i = 0; i < 15; i++) bytes[i] = next();
      const mode = ([16, 32, 64] as const)[n % 3];
      const insn = decode(bytes, 0, mode);
      if (!insn) continue;
      decoded++;
      for (let i = 0; i < 16; i++) {
        if (next() & 1) v.setGpr(i, next() & 0x7fff, 0);
        else v.setGpr(i, next(), next());
      }
      v.cr0 = next() % 4 === 0 ? 0 : 0x80000001;
      v.efer = mode === 64 || next() & 1 ? 0x500 : 0;
      v.rflags = next();
      v.xcr0 = next();
      for (let i = 0; i < 6; i++) v.setSeg(i, next(), next() & 0xfff, next(), next() & 0x1f0ff);
      v.setTr(next(), next() & 0x7fff, next(), next() & 0xffff);
      v.setLdtr(next(), next(), next(), next() & 0x1ffff);
      v.setGdt(next() & 1 ? next() & 0x7fff : next(), next() & 0xffff);
      v.setIdt(next() & 1 ? next() & 0x7fff : next(), next() & 0xffff);
      for (let i = 0; i < 832; i++) area[i] = next();
      const memory = new VirtualMemory(physical, tables.root, "4level");
      const c = { vcpu: v, memory, xsave: () => area, xsaveLayout: () => layout };
      entries += listAccesses(c, insn, list);
      listWholeRep(c, insn, list);
      writtenValue(c, insn, out);
      destinationValue(c, insn, out);
      listDelivery(c, next() & 0xff, EVENT_WITH_CODE, list);
      for (let i = 0; i < list.length; i++) {
        if (!(list.size[i] >= 1) || Number.isNaN(list.gva[i])) throw new Error(insn.name);
      }
    }
    expect(decoded).toBeGreaterThan(8000);
    expect(entries).toBeGreaterThan(4000);
  });
  test("random page tables translate or do not, nothing else", () => {
    const next = random(7);
    const { vm } = fakeVm({ size: 0x10000 });
    const memory = new PhysicalMemory(vm.ram);
    for (let at = 0; at < 0x10000; at += 8) {
      // Mostly present, mostly inside RAM, sometimes with anything in the high half.
      memory.writeU64(
        at,
        (next() & 0xffff) | (next() % 4 === 0 ? 0x80 : 1),
        next() % 8 ? 0 : next(),
      );
    }
    for (let n = 0; n < 5000; n++) {
      const mode = (["32", "pae", "4level", "5level"] as const)[n % 4];
      const space = new VirtualMemory(memory, next() & 0xffff, mode);
      const gva = mode === "32" || mode === "pae" ? next() : next() * 32768 - 2 ** 46;
      const value = space.read32(gva);
      if (!(value >= -1 && value < 2 ** 32)) throw new Error(`read ${value}`);
      space.readPartial(gva, new Uint8Array(64));
    }
  });
});

describe("mode, ring and tables", () => {
  test("modes", () => {
    const v = newVcpu();
    const set = (cr0: number, efer: number, cs: number, rflags = 2): string => {
      v.cr0 = cr0;
      v.cr4 = 0x20;
      v.efer = efer;
      v.rflags = rflags;
      v.setSeg(abi.HVI_CS, 8, 0, 0xffffffff, cs);
      return `${cpuMode(v)} ${codeMode(v)} ${pagingMode(v)} ${currentRing(v)}`;
    };
    v.setSeg(abi.HVI_SS, 0x10, 0, 0xffffffff, 0xc0f3);
    expect(set(0, 0, 0x9b)).toBe("real 16 none 0");
    expect(set(1, 0, 0xc09b)).toBe("protected 32 none 3");
    expect(set(0x80000001, 0, 0x9b)).toBe("protected 16 pae 3");
    expect(set(0x80000001, 0, 0xf3, 0x20002)).toBe("vm86 16 pae 3");
    expect(set(0x80000001, 0x500, 0xa09b)).toBe("long 64 4level 3");
    expect(set(0x80000001, 0x500, 0xc0fb)).toBe("compatibility 32 4level 3");
  });
  test("an IDT entry", () => {
    const { vm } = fakeVm({ size: 0x40000 });
    const memory = new PhysicalMemory(vm.ram);
    const tables = new FakeTables(memory, "4level", 0x10000);
    tables.map(KERNEL, 0x4000);
    const v = vm.vcpus[0];
    v.cr0 = 0x80000001;
    v.cr3 = tables.root;
    v.cr4 = 0x20;
    v.efer = 0xd01;
    v.setSeg(abi.HVI_CS, 8, 0, 0xffffffff, 0xa09b);
    v.setIdt(KERNEL, 0xfff);
    memory.write(0x4000 + 14 * 16, hex("40 0b 10 00 01 8e a0 81 ff ff ff ff 00 00 00 00"));
    const space = virtualMemoryOf(v, memory);
    expect(idtEntry(v, space, 14)).toEqual({
      offset: -0x7e5ff4c0,
      selector: 0x10,
      type: 14,
      dpl: 0,
      present: true,
      ist: 1,
    });
    expect(idtEntry(v, space, 256)).toBeUndefined();
    v.setIdt(0, 0xfff);
    expect(idtEntry(v, space, 14)).toBeUndefined();
  });
});
