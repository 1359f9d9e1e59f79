// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import * as abi from "../bridge/abi.ts";
import { fakeVm } from "../bridge/fake.fixture.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import { VirtualMemory } from "../memory/virtual.ts";
import type { InsnContext } from "./context.ts";
import { decode } from "./decode.ts";
import { destinationValue, Written, writtenValue } from "./written.ts";
import { XsaveLayout } from "./xsave.ts";

const KERNEL = -0x7f000000;
const TARGET = KERNEL + 0x100;
const SOURCE = KERNEL + 0x200;
const STACK = KERNEL + 0x800;

function fromHex(text: string): Uint8Array {
  return Uint8Array.from({ length: text.length / 2 }, (_, i) =>
    Number.parseInt(text.slice(2 * i, 2 * i + 2), 16),
  );
}
function toHex(bytes: Uint8Array): string {
  return [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
}

/** The state that the recorded results below were made from. */
function state(): InsnContext {
  const { vm } = fakeVm({ size: 0x40000 });
  const physical = new PhysicalMemory(vm.ram);
  const tables = new FakeTables(physical, "4level", 0x10000);
  tables.map(KERNEL, 0x5000);
  const memory = new VirtualMemory(physical, tables.root, "4level");
  for (let i = 0; i < 64; i++) {
    memory.write8(TARGET + i, (0x11 * ((i % 15) + 1)) ^ (i >> 4));
    memory.write8(SOURCE + i, 0xa0 + i);
  }
  const vcpu = vm.vcpus[0];
  vcpu.setGpr(abi.HVI_RAX, 0x55667788, 0x11223344);
  vcpu.setGpr(abi.HVI_RCX, 0x105, 0);
  vcpu.setGpr(abi.HVI_RDX, 0xddeeff01, 0x99aabbcc);
  vcpu.setGprNumber(abi.HVI_RBX, TARGET);
  vcpu.setGprNumber(abi.HVI_RDI, TARGET);
  vcpu.setGprNumber(abi.HVI_RSI, SOURCE);
  vcpu.setGprNumber(abi.HVI_RSP, STACK);
  vcpu.rflags = 3;
  vcpu.rip = KERNEL;
  const area = new Uint8Array(832);
  area[512] = 7;
  for (let i = 0; i < 16; i++) {
    area[160 + 16 + i] = 0xc0 + i;
    area[576 + 16 + i] = 0xd0 + i;
    if (i < 8) area[32 + 16 + i] = 0xc0 + i;
  }
  const layout = new XsaveLayout([]);
  return { vcpu, memory, xsave: () => area, xsaveLayout: () => layout };
}

/**
 * Instruction bytes, and 32 bytes of memory after the host's CPU (with AVX) ran
 * it in that state: made once with a C program of inline assembly.
 */
const RECORDED: readonly (readonly [string, string])[] = [
  ["48c703fbffffff", "fbffffffffffffff99aabbccddeeff112332455467768998abbacddceffe1023"], // mov QWORD PTR [rbx],0xfffffffffffffffb
  ["66c7033412", "341233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // mov WORD PTR [rbx],0x1234
  ["480103", "999999999999999999aabbccddeeff112332455467768998abbacddceffe1023"], // add QWORD PTR [rbx],rax
  ["831301", "132233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // adc DWORD PTR [rbx],0x1
  ["482903", "89aaccee1033557799aabbccddeeff112332455467768998abbacddceffe1023"], // sub QWORD PTR [rbx],rax
  ["1803", "882233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // sbb BYTE PTR [rbx],al
  ["2103", "002222445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // and DWORD PTR [rbx],eax
  ["66810b0001", "112333445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // or WORD PTR [rbx],0x100
  ["483103", "995555111155559999aabbccddeeff112332455467768998abbacddceffe1023"], // xor QWORD PTR [rbx],rax
  ["48ff03", "122233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // inc QWORD PTR [rbx]
  ["ff0b", "102233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // dec DWORD PTR [rbx]
  ["f613", "ee2233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // not BYTE PTR [rbx]
  ["48f71b", "efddccbbaa99887799aabbccddeeff112332455467768998abbacddceffe1023"], // neg QWORD PTR [rbx]
  ["488703", "887766554433221199aabbccddeeff112332455467768998abbacddceffe1023"], // xchg QWORD PTR [rbx],rax
  ["f0480fc103", "999999999999999999aabbccddeeff112332455467768998abbacddceffe1023"], // lock xadd QWORD PTR [rbx],rax
  ["f0480fb113", "112233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // lock cmpxchg QWORD PTR [rbx],rdx
  ["0fc70b", "112233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // cmpxchg8b QWORD PTR [rbx]
  ["480fc70b", "112233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // cmpxchg16b OWORD PTR [rbx]
  ["aa", "882233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // stos BYTE PTR es:[rdi],al
  ["f348ab", "887766554433221199aabbccddeeff112332455467768998abbacddceffe1023"], // rep stos QWORD PTR es:[rdi],rax
  ["a5", "a0a1a2a35566778899aabbccddeeff112332455467768998abbacddceffe1023"], // movs DWORD PTR es:[rdi],DWORD PTR ds:[rsi]
  ["f3a4", "a02233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // rep movs BYTE PTR es:[rdi],BYTE PTR ds:[rsi]
  ["480fab03", "312233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // bts QWORD PTR [rbx],rax
  ["0fba3307", "112233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // btr DWORD PTR [rbx],0x7
  ["660fbb03", "312233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // btc WORD PTR [rbx],ax
  ["c10308", "441122335566778899aabbccddeeff112332455467768998abbacddceffe1023"], // rol DWORD PTR [rbx],0x8
  ["d00b", "882233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // ror BYTE PTR [rbx],1
  ["66d313", "324233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // rcl WORD PTR [rbx],cl
  ["48c11b03", "426486a8caec0e7199aabbccddeeff112332455467768998abbacddceffe1023"], // rcr QWORD PTR [rbx],0x3
  ["d323", "204264865566778899aabbccddeeff112332455467768998abbacddceffe1023"], // shl DWORD PTR [rbx],cl
  ["48d12b", "089119a22ab33b4499aabbccddeeff112332455467768998abbacddceffe1023"], // shr QWORD PTR [rbx],1
  ["c03b03", "022233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // sar BYTE PTR [rbx],0x3
  ["0f9403", "002233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // sete BYTE PTR [rbx]
  ["0f9f03", "012233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // setg BYTE PTR [rbx]
  ["480fc303", "887766554433221199aabbccddeeff112332455467768998abbacddceffe1023"], // movnti QWORD PTR [rbx],rax
  ["480f38f103", "112233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // movbe QWORD PTR [rbx],rax
  ["0f110b", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf2332455467768998abbacddceffe1023"], // movups XMMWORD PTR [rbx],xmm1
  ["660f7f0b", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf2332455467768998abbacddceffe1023"], // movdqa XMMWORD PTR [rbx],xmm1
  ["f30f110b", "c0c1c2c35566778899aabbccddeeff112332455467768998abbacddceffe1023"], // movss DWORD PTR [rbx],xmm1
  ["f20f110b", "c0c1c2c3c4c5c6c799aabbccddeeff112332455467768998abbacddceffe1023"], // movsd QWORD PTR [rbx],xmm1
  ["0f170b", "c8c9cacbcccdcecf99aabbccddeeff112332455467768998abbacddceffe1023"], // movhps QWORD PTR [rbx],xmm1
  ["660f130b", "c0c1c2c3c4c5c6c799aabbccddeeff112332455467768998abbacddceffe1023"], // movlpd QWORD PTR [rbx],xmm1
  ["660fd60b", "c0c1c2c3c4c5c6c799aabbccddeeff112332455467768998abbacddceffe1023"], // movq QWORD PTR [rbx],xmm1
  ["0f7f0b", "c0c1c2c3c4c5c6c799aabbccddeeff112332455467768998abbacddceffe1023"], // movq QWORD PTR [rbx],mm1
  ["c5fe7f0b", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf"], // vmovdqu YMMWORD PTR [rbx],ymm1
  ["c5f8110b", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf2332455467768998abbacddceffe1023"], // vmovups XMMWORD PTR [rbx],xmm1
  ["c00309", "222233445566778899aabbccddeeff112332455467768998abbacddceffe1023"], // rol BYTE PTR [rbx],0x9
];

describe("value written, against the host's CPU", () => {
  for (const [code, after] of RECORDED) {
    const insn = decode(fromHex(code), 0, 64);
    test(`${insn?.name} (${code})`, () => {
      const c = state();
      // BTS and BTC with a register were recorded with bit 5.
      if (code === "480fab03" || code === "660fbb03") c.vcpu.setGpr(abi.HVI_RAX, 5, 0);
      const written = new Written();
      expect(writtenValue(c, insn as NonNullable<typeof insn>, written)).toBe(true);
      expect([written.missing, written.gva]).toEqual([undefined, TARGET]);
      const { size } = written;
      expect(toHex(written.bytes.subarray(0, size))).toBe(after.slice(0, 2 * size));
      expect(c.memory.read(TARGET, size)).toEqual(written.old.slice(0, size));
    });
  }
});

describe("value written", () => {
  const run = (code: string, prepare?: (c: ReturnType<typeof state>) => void): string => {
    const c = state();
    prepare?.(c);
    const insn = decode(fromHex(code), 0, 64);
    if (!insn) throw new Error("no instruction");
    const written = new Written();
    return writtenValue(c, insn, written)
      ? `${written.gva - KERNEL}:${toHex(written.bytes.subarray(0, written.size))}`
      : `${written.missing}`;
  };

  test("CMPXCHG that succeeds", () => {
    expect(run("f0480fb113", (c) => c.vcpu.setGpr(abi.HVI_RAX, 0x44332211, 0x88776655))).toBe(
      `${0x100}:01ffeeddccbbaa99`,
    );
    expect(
      run("480fc70b", (c) => {
        c.vcpu.setGpr(abi.HVI_RAX, 0x44332211, 0x88776655);
        c.vcpu.setGpr(abi.HVI_RDX, 0xccbbaa99, 0x11ffeedd);
      }),
    ).toBe(`${0x100}:00010081ffffffff0501000000000000`);
  });
  test("the stack: PUSH and CALL", () => {
    expect(run("50")).toBe(`${0x800 - 8}:8877665544332211`);
    expect(run("6a12")).toBe(`${0x800 - 8}:1200000000000000`);
    expect(run("6afe")).toBe(`${0x800 - 8}:feffffffffffffff`);
    expect(run("ff33")).toBe(`${0x800 - 8}:1122334455667788`);
    expect(run("e8fb000000")).toBe(`${0x800 - 8}:05000081ffffffff`);
    expect(run("ffd0")).toBe(`${0x800 - 8}:02000081ffffffff`);
  });
  test("a segment register, and GS-relative", () => {
    expect(run("8c1b", (c) => c.vcpu.setSeg(abi.HVI_DS, 0x2b, 0, 0, 0))).toBe(`${0x100}:2b00`);
    expect(run("6588242528000000", (c) => c.vcpu.setSeg(abi.HVI_GS, 0, TARGET, 0, 0))).toBe(
      `${0x128}:77`,
    );
  });
  test("a vector register in its initial state is zero", () => {
    expect(
      run("0f110b", (c) => {
        c.xsave()[512] = 1;
      }),
    ).toBe(`${0x100}:${"00".repeat(16)}`);
  });
  test("over a page boundary into an absent page", () => {
    expect(run("480103", (c) => c.vcpu.setGprNumber(abi.HVI_RBX, KERNEL + 0x4ffc))).toBe(
      "absent memory",
    );
  });
  test("an error for any other", () => {
    expect(run("488d03")).toBe("writes nothing");
    expect(run("8b03")).toBe("writes nothing");
    expect(run("0f5803")).toBe("writes nothing");
    expect(run("dd1b")).toBe("not worked out");
    expect(run("9c")).toBe("not worked out");
    expect(run("ff1b")).toBe("not worked out");
    // EVEX: vmovdqu64 [rbx], zmm0
    expect(run("62f1fe487f03")).toBe("not worked out");
    expect(run("f3aa", (c) => c.vcpu.setGpr(abi.HVI_RCX, 0, 0))).toBe("writes nothing");
  });
});

describe("value of the destination", () => {
  const run = (code: string, prepare?: (c: InsnContext) => void): string => {
    const c = state();
    prepare?.(c);
    const insn = decode(fromHex(code), 0, 64);
    if (!insn) throw new Error("no instruction");
    const out = new Written();
    if (!destinationValue(c, insn, out)) return `${out.missing}`;
    const at = Number.isNaN(out.gva) ? "" : `${out.gva - KERNEL}:`;
    return at + toHex(out.bytes.subarray(0, out.size));
  };
  const set =
    (lo: number, hi = 0) =>
    (c: InsnContext) =>
      c.vcpu.setGpr(abi.HVI_RAX, lo, hi);

  test("registers", () => {
    expect(run("0fb603")).toBe("11000000"); // movzx eax, byte [rbx]
    expect(run("480fbe4308")).toBe("99ffffffffffffff"); // movsx rax, byte [rbx + 8]
    expect(run("48634308")).toBe("99aabbccffffffff"); // movsxd rax, [rbx + 8]
    expect(run("480303")).toBe("9999999999999999"); // add rax, [rbx]
    expect(run("87cb")).toBe("05010000"); // xchg ebx, ecx
    expect(run("4889d8")).toBe("00010081ffffffff"); // mov rax, rbx
    expect(run("50")).toBe(`${0x800 - 8}:8877665544332211`);
  });
  test("products, quotients and their faults", () => {
    expect(run("f6e1", set(0xff))).toBe("fb04"); // mul cl = 5
    expect(run("48f7e8", set(0xfffffffe, 0xffffffff))).toBe(`04${"00".repeat(15)}`); // imul rax
    expect(run("48f7e0", set(0xfffffffe, 0xffffffff))).toBe(`04${"00".repeat(7)}fcffffffffffffff`);
    expect(run("6bc0fd", set(7))).toBe("ebffffff"); // imul eax, eax, -3
    expect(run("f6f1", set(0x0123))).toBe("3a01"); // div cl: 291 = 5 * 58 + 1
    expect(run("f6f1", set(0x0523))).toBe("faults");
    expect(run("f6f9", set(0xff80))).toBe("e7fd"); // idiv cl: -128 = 5 * -25 - 3
    expect(run("f6f8", set(0))).toBe("faults");
  });
  test("descriptor tables and vectors", () => {
    expect(run("0f0113")).toBe("112233445566778899aa"); // lgdt [rbx]
    expect(run("0f1603")).toBe(`${"00".repeat(8)}1122334455667788`); // movhps xmm0, [rbx]
    expect(run("f30f1003")).toBe(`11223344${"00".repeat(12)}`);
    expect(run("660f6ec8")).toBe(`88776655${"00".repeat(12)}`); // movd xmm1, eax
    expect(run("39d8")).toBe("not worked out"); // cmp
    expect(run("0f20d8")).toBe("not worked out"); // mov rax, cr3
    expect(run("90")).toBe("writes nothing");
  });
});
