// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import * as abi from "../bridge/abi.ts";
import { fakeVm } from "../bridge/fake.fixture.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import { FakeTables } from "../memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import { ACCESS_IMPLICIT, ACCESS_READ, ACCESS_WRITE } from "../x86/index.ts";
import { ExitInstructions } from "./instructions.ts";

const CODE = -0x7f000000;
const DATA = CODE + 0x2000;

interface Setup {
  readonly vcpu: Vcpu;
  readonly memory: PhysicalMemory;
  readonly instructions: ExitInstructions;
  /** Puts code at RIP. */
  readonly code: (text: string) => void;
}

function setup(): Setup {
  const { vm } = fakeVm({ size: 0x40000 });
  const memory = new PhysicalMemory(vm.ram);
  const tables = new FakeTables(memory, "4level", 0x10000);
  for (let i = 0; i < 4; i++) tables.map(CODE + 0x1000 * i, 0x2000 + 0x1000 * i);
  const vcpu = vm.vcpus[0];
  vcpu.cr0 = 0x80000001;
  vcpu.cr4 = 0x20;
  vcpu.efer = 0x500;
  vcpu.cr3 = tables.root;
  vcpu.setSeg(abi.HVI_CS, 0x10, 0, 0xffffffff, 0xa09b);
  vcpu.rip = CODE;
  vcpu.setGprNumber(abi.HVI_RBX, DATA);
  vcpu.setGprNumber(abi.HVI_RSP, DATA + 0x800);
  vcpu.setGpr(abi.HVI_RAX, 0x44332211, 0x88776655);
  return {
    vcpu,
    memory,
    instructions: new ExitInstructions(vm, memory),
    code: (text) => {
      memory.write(
        0x2000,
        Uint8Array.from(text.split(" "), (b) => Number.parseInt(b, 16)),
      );
    },
  };
}

describe("the instruction behind an exit", () => {
  test("its accesses", () => {
    const { vcpu, instructions, code } = setup();
    code("ff 33");
    const list = instructions.accesses(vcpu);
    expect([list?.length, list?.complete]).toEqual([2, true]);
    expect([list?.gva[0], list?.size[0], list?.flags[0]]).toEqual([DATA, 8, ACCESS_READ]);
    expect([list?.gva[1], list?.flags[1]]).toEqual([DATA + 0x7f8, ACCESS_WRITE | ACCESS_IMPLICIT]);
    // The same list, for another instruction.
    code("48 8d 03");
    expect(instructions.accesses(vcpu)).toBe(list as NonNullable<typeof list>);
    expect(list?.length).toBe(0);
    code("06");
    expect(instructions.accesses(vcpu)).toBeUndefined();
    vcpu.rip = 0x1000;
    expect(instructions.accesses(vcpu)).toBeUndefined();
  });
  test("the bytes it would write, also behind a page's edge", () => {
    const { vcpu, instructions, code } = setup();
    const out = new Uint8Array(16);
    const bytes = (gpa: number, gva: number): number =>
      instructions.bytes({ vcpu, gpa, size: 8, gva, access: abi.HVI_ACCESS_WRITE }, out);
    code("48 89 03");
    expect(bytes(0x4000, DATA)).toBe(8);
    expect(out.slice(0, 8)).toEqual(Uint8Array.of(0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88));
    vcpu.setGprNumber(abi.HVI_RBX, DATA + 0xffd);
    expect(bytes(0x4ffd, DATA + 0xffd)).toBe(3);
    expect(bytes(0x5000, DATA + 0x1000)).toBe(5);
    expect(out[0]).toBe(0x44);
    expect(bytes(0x5000, Number.NaN)).toBe(-1);
    expect(bytes(0x5000, DATA + 0x1005)).toBe(-1);
    code("8b 03");
    expect(bytes(0x4ffd, DATA + 0xffd)).toBe(-1);
  });
  test("follows the control registers and the code segment", () => {
    const { vcpu, memory, instructions, code } = setup();
    code("89 03");
    expect(instructions.accesses(vcpu)?.gva[0]).toBe(DATA);
    const other = new FakeTables(memory, "4level", 0x20000);
    other.map(CODE, 0x6000);
    memory.write(0x6000, Uint8Array.of(0x48, 0x89, 0x03));
    const first = vcpu.cr3;
    for (let i = 0; i < 3; i++) {
      vcpu.cr3 = other.root;
      expect(instructions.accesses(vcpu)?.size[0]).toBe(8);
      vcpu.cr3 = first;
      expect(instructions.accesses(vcpu)?.size[0]).toBe(4);
    }
    // Real mode: linear addresses of CS and DS.
    vcpu.cr0 = 0;
    vcpu.efer = 0;
    vcpu.setSeg(abi.HVI_CS, 0x200, 0x2000, 0xffff, 0x9b);
    vcpu.setSeg(abi.HVI_DS, 0x400, 0x4000, 0xffff, 0x93);
    vcpu.rip = 0;
    vcpu.setGprNumber(abi.HVI_RBP, 0);
    vcpu.setGprNumber(abi.HVI_RDI, 0x10);
    code("88 05");
    expect(instructions.accesses(vcpu)?.gva[0]).toBe(0x4010);
  });
  test("decodes an instruction once", () => {
    const { vcpu, instructions, code } = setup();
    code("89 03");
    for (let i = 0; i < 10; i++) instructions.accesses(vcpu);
    expect(instructions.read()).toEqual({ hits: 9, misses: 1 });
    // Over the edge of a page too.
    vcpu.rip = CODE + 0xfff;
    const first = instructions.instruction(vcpu);
    expect(first).toBeDefined();
    expect(instructions.instruction(vcpu)).toBe(first as NonNullable<typeof first>);
  });
});
