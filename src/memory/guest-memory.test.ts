// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { GuestRam } from "../bridge/ram.ts";
import { FakeTables } from "./fake-tables.fixture.ts";
import { GuestMemory } from "./guest-memory.ts";
import { PhysicalMemory } from "./physical.ts";
import { rootTable } from "./space.ts";

const KERNEL = -0x7f000000;
const LONG = { cr0: 0x80000001, cr4: 0x20, efer: 0xd00 };

/** Two processes that share the kernel's page, the first one's root with a user's half behind it. */
function guest() {
  const physical = new PhysicalMemory(GuestRam.allocate(0x100000));
  const first = new FakeTables(physical, "4level", 0x10000);
  const second = new FakeTables(physical, "4level", 0x20000);
  const user = new FakeTables(physical, "4level", 0x30000);
  for (const t of [first, second]) t.map(KERNEL, 0x8000);
  first.map(0x400000, 0x9000);
  user.map(0x400000, 0x9000);
  second.map(0x400000, 0xa000);
  physical.write32(0x8000, 0x11111111);
  physical.write32(0x9000, 0x22222222);
  physical.write32(0xa000, 0x33333333);
  return { physical, memory: new GuestMemory(physical), first, second, user };
}

describe("the memory of a guest", () => {
  test("root 0 is the vCPU's own, others go by their root", () => {
    const { memory, first, second } = guest();
    const cpu = { ...LONG, cr3: first.root | 0x123 };
    expect(memory.current(cpu).read32(0x400000)).toBe(0x22222222);
    expect(memory.of(0, cpu).read32(0x400000)).toBe(0x22222222);
    expect(memory.of(second.root, cpu).read32(0x400000)).toBe(0x33333333);
    expect(memory.of(second.root, cpu).write32(0x400000, 5)).toBe(true);
    expect(memory.current({ ...cpu, cr3: second.root }).read32(0x400000)).toBe(5);
  });

  test("the kernel's is there once it is known", () => {
    const { memory, first } = guest();
    expect(memory.kernel).toBeUndefined();
    memory.setKernel(memory.current({ ...LONG, cr3: first.root }));
    memory.current({ ...LONG, cr3: 0 });
    expect(memory.kernel?.root).toBe(first.root);
    expect(memory.kernel?.read32(KERNEL)).toBe(0x11111111);
  });

  test("a user's root of page-table isolation is replaced", () => {
    const { memory, first, user } = guest();
    const cpu = { ...LONG, cr3: user.root };
    expect(memory.current(cpu).read32(KERNEL)).toBe(-1);
    memory.kernelRootOf = (cr3) => (rootTable("4level", cr3) === user.root ? first.root : cr3);
    expect(memory.current(cpu).read32(KERNEL)).toBe(0x11111111);
    expect(memory.of(0, cpu).root).toBe(first.root);
    // A root that is named is that one.
    expect(memory.of(user.root, cpu).read32(KERNEL)).toBe(-1);
  });

  test("objects are used again: PCIDs do not matter, the mode does", () => {
    const { memory, second } = guest();
    const cpu = { ...LONG, cr3: 0 };
    const space = memory.of(second.root, cpu);
    expect(memory.of(second.root + 0xabc, cpu)).toBe(space);
    expect(memory.current(cpu)).toBe(memory.current({ ...cpu, cr3: second.root }));
    const pae = memory.of(second.root, { ...cpu, efer: 0 });
    expect([pae.mode, pae.pointerSize]).toEqual(["pae", 4]);
    expect(memory.of(second.root, cpu)).not.toBe(space);
    // Bounded: the oldest goes, and what is handed out keeps its root.
    for (let i = 1; i <= 100; i++) memory.of(i * 0x1000, cpu);
    expect(space.root).toBe(second.root);
    expect(space.read32(0x400000)).toBe(0x33333333);
  });

  test("the table a CR3 names", () => {
    expect(rootTable("5level", 0xf_ffff_ffff_ffff)).toBe(0xf_ffff_ffff_f000);
    expect(rootTable("pae", 0x1_2345_67ff)).toBe(0x234567e0);
    expect(rootTable("32", 0x2345_6fff)).toBe(0x23456000);
    expect(rootTable("none", 0x1000)).toBe(-1);
  });
});
