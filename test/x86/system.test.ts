// SPDX-License-Identifier: MIT
/**
 * Access lists of system instructions against hv/soft: descriptor tables, TSS, IDT, stacks and data
 * have no rights, each access exits and is let pass; then what exited is compared with the list.
 * And the values of LGDT and LIDT. A user program cannot run these on the host's CPU.
 */
import { describe, expect, test } from "bun:test";
import * as abi from "../../src/bridge/abi.ts";
import { openVm, type Vcpu, type Vm } from "../../src/bridge/index.ts";
import { ExitInstructions } from "../../src/ept/instructions.ts";
import { FakeTables } from "../../src/memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../../src/memory/physical.ts";
import {
  ACCESS_CONDITIONAL,
  ACCESS_READ,
  ACCESS_WRITE,
  type AccessList,
  type CodeMode,
  destinationValue,
  Written,
} from "../../src/x86/index.ts";

const MIB = 0x100000;
const CODE = 0x1000;
const GDT = 0x3000;
const TSS = 0x4000;
const IDT = 0x5000;
const STACK = 0x8000;
const INNER = 0xb000;
const DATA = 0xe000;
const LAST = 0x18000;
/** Where events and far transfers go: NOPs. */
const TARGET = CODE + 0x100;

/** Selectors. */
const RING0_CODE = 0x10;
const RING0_DATA = 0x18;
const RING3_DATA = 0x28;
const RING3_CODE = 0x30;
const FRESH_DATA = 0x38;
const TSS_SELECTOR = 0x40;
const LDT_SELECTOR = 0x50;

interface Machine {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly memory: PhysicalMemory;
  readonly instructions: ExitInstructions;
}

/** A machine in 64-bit or in unpaged 32-bit protected mode, at CODE. */
function machine(mode: CodeMode, ring: 0 | 3): Machine {
  const vm = openVm({ backend: "soft" });
  vm.create({ vcpus: 1 });
  vm.addMemory({ gpa: 0, size: 2 * MIB });
  vm.setCpuid(vm.supportedCpuid());
  vm.mapMemory();
  const memory = new PhysicalMemory(vm.ram);
  const vcpu = vm.vcpus[0];
  const long = mode === 64;
  const code = long ? 0x00a09a00 : 0x00cf9a00;
  memory.writeU64(GDT + RING0_CODE, 0xffff, code);
  memory.writeU64(GDT + RING0_DATA, 0xffff, 0x00cf9200);
  memory.writeU64(GDT + RING3_DATA, 0xffff, 0x00cff300);
  memory.writeU64(GDT + RING3_CODE, 0xffff, code | 0x6100);
  memory.writeU64(GDT + FRESH_DATA, 0xffff, 0x00cff200);
  memory.writeU64(GDT + TSS_SELECTOR, (TSS << 16) | 0x67, 0x8900);
  memory.writeU64(GDT + LDT_SELECTOR, (DATA << 16) | 0xff, 0x8200);
  for (let vector = 0; vector < 256; vector++) {
    const low = (RING0_CODE << 16) | TARGET;
    // Every fourth one has an interrupt stack of its own.
    const ist = long && vector % 4 === 3 ? 1 + (vector % 7) : 0;
    if (long) memory.writeU64(IDT + 16 * vector, low, 0xee00 | ist);
    else memory.writeU64(IDT + 8 * vector, low, vector % 2 ? 0xee00 : 0xe600);
  }
  if (long) {
    memory.writeU64(TSS + 4, INNER + 0x808, 0);
    for (let i = 0; i < 7; i++) memory.writeU64(TSS + 36 + 8 * i, INNER + 0x1010 + 0x10 * i, 0);
  } else {
    memory.write32(TSS + 4, INNER + 0x808);
    memory.write16(TSS + 8, RING0_DATA);
  }
  memory.write16(TSS + 0x66, 0x68);
  vcpu.cr0 = long ? 0x80050033 : 0x33;
  vcpu.cr4 = 0x40620;
  vcpu.efer = long ? 0xd01 : 0;
  if (long) {
    const tables = new FakeTables(memory, "4level", MIB);
    for (let at = 0; at < 2 * MIB; at += 0x1000) tables.map(at, at);
    vcpu.cr3 = tables.root;
  }
  memory.fill(TARGET, 64, 0x90);
  const dpl = ring << 5;
  vcpu.setSeg(
    abi.HVI_CS,
    ring === 0 ? RING0_CODE : RING3_CODE | 3,
    0,
    0xffffffff,
    (long ? 0xa09b : 0xc09b) | dpl,
  );
  for (const i of [abi.HVI_SS, abi.HVI_DS, abi.HVI_ES]) {
    vcpu.setSeg(i, ring === 0 ? RING0_DATA : RING3_DATA | 3, 0, 0xffffffff, 0xc093 | dpl);
  }
  vcpu.setGdt(GDT, 0xff);
  vcpu.setIdt(IDT, 0xfff);
  vcpu.setTr(TSS_SELECTOR, TSS, 0x3ff, 0x8b);
  vcpu.rflags = 2;
  vcpu.rip = CODE;
  return { vm, vcpu, memory, instructions: new ExitInstructions(vm, memory) };
}

function kindOf(access: number): number {
  return (
    ((access & abi.HVI_ACCESS_READ) !== 0 ? ACCESS_READ : 0) |
    ((access & abi.HVI_ACCESS_WRITE) !== 0 ? ACCESS_WRITE : 0)
  );
}
function covered(list: AccessList, gva: number, size: number, kind: number): boolean {
  for (let i = 0; i < list.length; i++) {
    if ((list.flags[i] & kind) === 0) continue;
    if (gva >= list.gva[i] && gva + size <= list.gva[i] + list.size[i]) return true;
  }
  // A frame that is pushed or popped at once is several entries.
  let at = gva;
  for (let pass = 0; pass < list.length; pass++) {
    for (let i = 0; i < list.length; i++) {
      if ((list.flags[i] & kind) === 0) continue;
      if (at >= list.gva[i] && at < list.gva[i] + list.size[i]) at = list.gva[i] + list.size[i];
    }
  }
  return at >= gva + size;
}

/** Runs the one instruction at CODE and answers how its exits differ from the list. */
function differences(m: Machine, code: string): string[] {
  const { vm, vcpu, memory } = m;
  memory.write(
    CODE,
    Uint8Array.from(code.split(" "), (b) => Number.parseInt(b, 16)),
  );
  const problems: string[] = [];
  const list = m.instructions.accesses(vcpu);
  if (list === undefined) return ["not decoded"];
  if (!list.complete) problems.push("incomplete");
  const wanted = new Set<number>();
  for (let i = 0; i < list.length; i++) {
    if ((list.flags[i] & ACCESS_CONDITIONAL) !== 0) continue;
    wanted.add(Math.floor(list.gva[i] / 4096));
    wanted.add(Math.floor((list.gva[i] + list.size[i] - 1) / 4096));
  }
  for (let at = GDT; at < LAST; at += 0x1000) vm.setRights(0, at / 4096, 1, 0);
  const seen = new Set<number>();
  const deadline = vcpu.tsc + 1;
  vm.run(deadline);
  while (vcpu.exitReason === abi.HVI_EXIT_EPT) {
    const kind = kindOf(vcpu.exitAccess);
    const gva = vcpu.exitGva;
    seen.add(Math.floor(gva / 4096));
    if (!covered(list, gva, vcpu.exitSize, kind)) {
      problems.push(`${kind} ${gva.toString(16)} ${vcpu.exitSize} is not in the list`);
    }
    vcpu.resume();
    vm.run(deadline);
  }
  // Instructions that end with an exit of their own have made their accesses by then.
  const ends = [abi.HVI_EXIT_DEADLINE, abi.HVI_EXIT_IO];
  if (!ends.includes(vcpu.exitReason)) problems.push(`ended with ${vcpu.exitName}`);
  for (const page of wanted) {
    if (!seen.has(page)) problems.push(`page ${page.toString(16)} did not exit`);
  }
  return problems;
}

interface Case {
  readonly name: string;
  readonly code: string;
  readonly mode?: 64 | 32;
  readonly ring?: 0 | 3;
  readonly prepare?: (m: Machine, sp: number) => void;
}

const set =
  (register: number, value: number) =>
  ({ vcpu }: Machine): void =>
    vcpu.setGprNumber(register, value);

/** What a far return finds on the stack: items of `size` bytes. */
const frame =
  (size: 4 | 8, ...items: number[]) =>
  ({ memory }: Machine, sp: number): void => {
    for (const [i, item] of items.entries()) memory.write32(sp + i * size, item);
  };

const BOTH: readonly Case[] = [
  { name: "MOV DS", code: "8e d8", prepare: set(0, RING3_DATA | 3) },
  { name: "MOV ES, first load", code: "8e c0", prepare: set(0, FRESH_DATA | 3) },
  { name: "MOV ES, null", code: "8e c0", prepare: set(0, 0) },
  {
    name: "MOV ES from memory",
    code: "8e 03",
    prepare: ({ memory }) => memory.write16(DATA, FRESH_DATA),
  },
  { name: "LAR", code: "0f 02 c8", prepare: set(0, RING3_DATA) },
  { name: "LSL", code: "0f 03 c8", prepare: set(0, FRESH_DATA) },
  { name: "VERR", code: "0f 00 e0", prepare: set(0, RING3_DATA) },
  { name: "VERW, beyond the limit", code: "0f 00 e8", prepare: set(0, 0x108) },
  { name: "LTR", code: "0f 00 d8", prepare: set(0, TSS_SELECTOR) },
  { name: "LLDT", code: "0f 00 d0", prepare: set(0, LDT_SELECTOR) },
  { name: "SGDT", code: "0f 01 03" },
  { name: "SIDT", code: "0f 01 0b" },
  { name: "SLDT", code: "0f 00 03" },
  { name: "STR", code: "0f 00 0b" },
  { name: "CLFLUSH", code: "0f ae 3b" },
  { name: "INVLPG", code: "0f 01 3b" },
  { name: "INT 80h", code: "cd 80" },
  { name: "INT 81h", code: "cd 81" },
  { name: "INT 83h", code: "cd 83" },
  { name: "INT3", code: "cc" },
  { name: "INT1", code: "f1" },
  { name: "far JMP through memory", code: "ff 2b", prepare: farPointer },
  { name: "far CALL through memory", code: "ff 1b", prepare: farPointer },
  { name: "PUSH FS", code: "0f a0" },
  { name: "POP FS", code: "0f a1", prepare: frame(8, FRESH_DATA | 3) },
  { name: "LSS, from ring 0", code: "0f b2 0b", ring: 0, prepare: stackPointer },
  { name: "ENTER 16, 3", code: "c8 10 00 03" },
  { name: "IN AL, DX", code: "ec", prepare: set(2, 0x3f9) },
  { name: "OUT 80h, AL", code: "e6 80" },
  { name: "INSB", code: "6c", prepare: set(2, 0x3f9) },
  { name: "REP OUTSB", code: "f3 6e", prepare: set(2, 0x3f9) },
];

function farPointer({ memory, vcpu }: Machine): void {
  memory.write32(DATA, TARGET);
  memory.write16(DATA + 4, vcpu.cpl === 0 ? RING0_CODE : RING3_CODE | 3);
}
function stackPointer({ memory }: Machine): void {
  memory.write32(DATA, STACK);
  memory.write16(DATA + 4, RING0_DATA);
}

const LONG: readonly Case[] = [
  {
    name: "IRETQ to the same ring",
    code: "48 cf",
    ring: 0,
    prepare: frame(8, TARGET, RING0_CODE, 2, STACK, RING0_DATA),
  },
  {
    name: "IRETQ outwards",
    code: "48 cf",
    ring: 0,
    prepare: frame(8, TARGET, RING3_CODE | 3, 2, STACK, FRESH_DATA | 3),
  },
  {
    name: "IRETQ in ring 3",
    code: "48 cf",
    ring: 3,
    prepare: frame(8, TARGET, RING3_CODE | 3, 2, STACK, RING3_DATA | 3),
  },
  { name: "far RET, 64-bit", code: "48 cb", ring: 0, prepare: frame(8, TARGET, RING0_CODE) },
  {
    name: "far RET outwards, with parameters",
    code: "48 ca 10 00",
    ring: 0,
    prepare: frame(8, TARGET, RING3_CODE | 3, 0, 0, STACK, RING3_DATA | 3),
  },
];
const PROTECTED: readonly Case[] = [
  { name: "IRETD to the same ring", code: "cf", ring: 0, prepare: frame(4, TARGET, RING0_CODE, 2) },
  {
    name: "IRETD outwards",
    code: "cf",
    ring: 0,
    prepare: frame(4, TARGET, RING3_CODE | 3, 2, STACK, FRESH_DATA | 3),
  },
  {
    name: "IRETD to virtual-8086 mode",
    code: "cf",
    ring: 0,
    prepare: frame(4, TARGET, 0, 0x20002, 0x800, 0x800, 0, 0, 0, 0),
  },
  { name: "far RET", code: "cb", ring: 0, prepare: frame(4, TARGET, RING0_CODE) },
  {
    name: "far RET outwards",
    code: "ca 08 00",
    ring: 0,
    prepare: frame(4, TARGET, RING3_CODE | 3, 0, 0, STACK, RING3_DATA | 3),
  },
  { name: "far CALL", code: "9a 00 11 00 00 10 00", ring: 0 },
  { name: "far JMP", code: "ea 00 11 00 00 10 00", ring: 0 },
  {
    name: "INTO",
    code: "ce",
    prepare: ({ vcpu }) => {
      vcpu.rflags |= 0x800;
    },
  },
  { name: "INTO without OF", code: "ce" },
  { name: "PUSH DS", code: "1e" },
  { name: "POP DS", code: "1f", prepare: frame(4, FRESH_DATA | 3) },
  { name: "LES", code: "c4 0b", prepare: ({ memory }) => memory.write16(DATA + 4, FRESH_DATA | 3) },
  { name: "LDS", code: "c5 0b", prepare: ({ memory }) => memory.write16(DATA + 4, FRESH_DATA | 3) },
  { name: "PUSHAD", code: "60" },
  { name: "POPAD", code: "61" },
];

const PRIVILEGED = ["LTR", "LLDT", "INVLPG", "MOV ES, null"];

function runCases(mode: 64 | 32, cases: readonly Case[]): void {
  for (const c of cases) {
    for (const ring of c.ring === undefined ? ([0, 3] as const) : [c.ring]) {
      if (ring === 3 && PRIVILEGED.includes(c.name)) continue;
      test(`${c.name}, ring ${ring}`, () => {
        const problems: string[] = [];
        // The stack at a page's middle, and over its edge at each slot.
        for (const sp of [
          STACK + 0x800,
          STACK + 0x1000,
          STACK + 0xffc,
          STACK + 0xff8,
          STACK + 0x1010,
        ]) {
          const m = machine(mode, ring);
          m.vcpu.setGprNumber(abi.HVI_RSP, sp);
          m.vcpu.setGprNumber(abi.HVI_RBP, STACK + 0x1808);
          for (const r of [abi.HVI_RBX, abi.HVI_RSI, abi.HVI_RDI]) m.vcpu.setGprNumber(r, DATA);
          m.vcpu.setGprNumber(abi.HVI_RCX, 2);
          c.prepare?.(m, sp);
          for (const p of differences(m, c.code)) problems.push(`sp ${sp.toString(16)}: ${p}`);
          m.vm.close();
        }
        expect(problems).toEqual([]);
      });
    }
  }
}

describe("accesses in 64-bit mode", () => runCases(64, [...BOTH, ...LONG]));
describe("accesses in protected mode", () => runCases(32, [...BOTH, ...PROTECTED]));

test("real mode: INT n, far CALL and RET, IRET", () => {
  for (const code of ["cd 21", "9a 00 10 00 00", "cb", "cf", "8e d8", "c4 1f", "60", "61"]) {
    const m = machine(32, 0);
    const { vcpu } = m;
    vcpu.cr0 = 0x30;
    vcpu.setSeg(abi.HVI_CS, 0, 0, 0xffff, 0x9b);
    vcpu.setSeg(abi.HVI_SS, 0x800, 0x8000, 0xffff, 0x93);
    vcpu.setSeg(abi.HVI_DS, 0xe00, 0xe000, 0xffff, 0x93);
    vcpu.setIdt(IDT, 0x3ff);
    vcpu.setGprNumber(abi.HVI_RSP, 0x12340006);
    vcpu.setGprNumber(abi.HVI_RBX, 0x10);
    expect([code, differences(m, code)]).toEqual([code, []]);
    m.vm.close();
  }
});

describe("LGDT and LIDT", () => {
  /** xorshift32: the same states in every run. */
  let x = 1;
  const random = (): number => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
  const out = new Written();
  const shapes: readonly (readonly [CodeMode, string, number])[] = [
    [64, "", 10],
    [32, "", 6],
    [32, "66 ", 6],
  ];
  for (const [mode, prefix, size] of shapes) {
    for (const [name, code] of [
      ["LGDT", "0f 01 13"],
      ["LIDT", "0f 01 1b"],
    ] as const) {
      test(`${name}, ${mode}-bit${prefix ? ", 16-bit operand" : ""}: the registers hold what was computed`, () => {
        const m = machine(mode as 64 | 32, 0);
        const { vcpu, memory } = m;
        const bytes = Uint8Array.from(`${prefix}${code}`.split(" "), (b) => Number.parseInt(b, 16));
        memory.write(CODE, bytes);
        for (let n = 0; n < 200; n++) {
          const at = DATA + (random() % 0xff0);
          const base = mode === 64 ? (random() | 0) * 0x8000 + (random() % 0x8000) : random();
          memory.write16(at, random());
          memory.writeU64(at + 2, base >>> 0, Math.floor(base / 2 ** 32) >>> 0);
          vcpu.setGprNumber(abi.HVI_RBX, at);
          vcpu.rip = CODE;
          const insn = m.instructions.instruction(vcpu);
          if (insn === undefined) throw new Error("not decoded");
          expect(destinationValue(m.instructions.context(vcpu), insn, out)).toBe(true);
          expect(out.size).toBe(size);
          m.vm.run(vcpu.tsc + 1);
          expect(vcpu.exitReason).toBe(abi.HVI_EXIT_DEADLINE);
          const view = new DataView(out.bytes.buffer);
          const high = mode === 64 ? view.getInt32(6, true) * 2 ** 32 : 0;
          const mask = prefix ? 0xffffff : 0xffffffff;
          const computed = high + ((view.getUint32(2, true) & mask) >>> 0);
          const table =
            name === "LGDT" ? [vcpu.gdtBase, vcpu.gdtLimit] : [vcpu.idtBase, vcpu.idtLimit];
          expect(table).toEqual([computed, view.getUint16(0, true)]);
        }
        m.vm.close();
      });
    }
  }
});
