// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { type IdentifyFailure, identify } from "./identify.ts";
import type { LinuxGuest } from "./linux/kernel.ts";
import {
  AT,
  DIRECT,
  HEAP,
  LAYOUTS,
  MODULE,
  type SyntheticGuest,
  syntheticBtf,
  syntheticGuest,
  TASK,
} from "./synthetic.fixture.ts";

function identified(g: SyntheticGuest): LinuxGuest {
  const attempt = identify(g.memory, g.cpu);
  if (!attempt.ok) throw new Error(attempt.reason);
  return attempt.guest;
}

function failure(g: SyntheticGuest): IdentifyFailure | "identified" {
  const attempt = identify(g.memory, g.cpu);
  return attempt.ok ? "identified" : attempt.code;
}

/** A task in the direct mapping, linked behind `after`. */
function addTask(g: SyntheticGuest, n: number, pid: number, comm: string, after: number): number {
  const task = DIRECT + HEAP + n * 0x100;
  g.write32(task + TASK.state, 1);
  g.write32(task + TASK.pid, pid);
  g.write32(task + TASK.tgid, pid);
  g.writeText(task + TASK.comm, comm);
  g.writePtr(task + TASK.parent, g.base + AT.initTask);
  g.writePtr(after + TASK.tasks, task + TASK.tasks);
  g.writePtr(task + TASK.tasks, g.base + AT.initTask + TASK.tasks);
  return task;
}

/** A module with the symbols given, linked behind the list's head. */
function addModule(g: SyntheticGuest, name: string): { module: number; text: number } {
  const module = DIRECT + HEAP + 0x10_0000;
  const text = DIRECT + HEAP + 0x11_0000;
  const table = DIRECT + HEAP + 0x12_0000;
  const symtab = table + 0x100;
  const strtab = table + 0x400;
  g.writeText(module + MODULE.name, name);
  g.writePtr(module + MODULE.mem, text);
  g.write32(module + MODULE.mem + 8, 0x2000);
  g.writePtr(module + MODULE.mem + 16, text + 0x4000);
  g.write32(module + MODULE.mem + 24, 0x1000);
  g.writePtr(module + MODULE.kallsyms, table);
  g.writePtr(table, symtab);
  g.write32(table + 8, 3);
  g.writePtr(table + 16, strtab);
  g.writePtr(table + 24, table + 0x800);
  g.writeText(strtab, "");
  g.writeText(strtab + 1, "attack_init");
  g.writeText(strtab + 13, "attack_write");
  [
    [1, 0x100],
    [13, 0x400],
  ].forEach(([at, value], i) => {
    g.write32(symtab + (i + 1) * 24, at);
    g.write32(symtab + (i + 1) * 24 + 4, 1 << 16);
    g.writePtr(symtab + (i + 1) * 24 + 8, text + value);
  });
  g.writeText(table + 0x800, " tt");
  g.writePtr(g.base + AT.modules, module + MODULE.list);
  g.writePtr(module + MODULE.list, g.base + AT.modules);
  return { module, text };
}

describe("identify", () => {
  for (const [name, layout] of Object.entries(LAYOUTS)) {
    if (layout.addressing === "relative" || layout.addressing === "self-relative") continue;
    test(`a guest with the tables of ${name}`, () => {
      const guest = identified(syntheticGuest({ layout, slide: 0x1a0_0000 }));
      expect(guest.version).toBe("6.9.1-test");
      expect(guest.slide).toBe(0x1a0_0000);
      expect(guest.physicalText).toBe(0x40_0000);
      expect(guest.physBase).toBe(0x40_0000 - 0x100_0000 - 0x1a0_0000);
      expect([...guest.missing.keys()]).toEqual(["unwind"]);
    });
  }

  test("each thing that can be missing has its reason", () => {
    const off = syntheticGuest();
    off.cpu.cr0 = 0x11;
    expect(failure(off)).toBe("no-paging");
    const legacy = syntheticGuest();
    legacy.cpu.efer = 0;
    expect(failure(legacy)).toBe("not-long-mode");
    const unmapped = syntheticGuest();
    unmapped.memory.writeU64(0x1000 + 511 * 8, 0, 0);
    expect(failure(unmapped)).toBe("no-kernel-mapping");
    const elsewhere = syntheticGuest();
    elsewhere.cpu.cr3 = 0xffff_f000;
    expect(failure(elsewhere)).toBe("no-kernel-mapping");
    expect(failure(syntheticGuest({ banner: "Unix version 6.1.0 " }))).toBe("no-banner");
    expect(failure(syntheticGuest({ banner: "Linux version %s (" }))).toBe("no-banner");
    expect(failure(syntheticGuest({ kallsyms: false }))).toBe("no-kallsyms");
    expect(failure(syntheticGuest({ bannerSkew: 64 }))).toBe("kallsyms-damaged");
  });

  test("an attempt on an unknown guest changes nothing", () => {
    const g = syntheticGuest({ kallsyms: false });
    const before = Bun.hash(g.ram.bytes[0]);
    identify(g.memory, g.cpu);
    expect(Bun.hash(g.ram.bytes[0])).toBe(before);
  });

  test("the user's root of page-table isolation leads to the kernel's", () => {
    const g = syntheticGuest();
    // A pair of roots at 8 KiB: the kernel's, and the user's with one page of entry code.
    const kernel = 0x10_0000;
    g.memory.write(kernel, g.memory.read(0x1000, 4096) as Uint8Array);
    const user = kernel + 0x1000;
    g.memory.writeU64(user + 511 * 8, 0x10_2023, 0);
    g.memory.writeU64(0x10_2000 + 510 * 8, 0x10_3023, 0);
    g.memory.writeU64(0x10_3000 + 26 * 8, 0x10_4023, 0);
    g.memory.writeU64(0x10_4000, 0x40_0023, 0);
    g.cpu.cr3 = user + 0x803;
    expect(identified(g).root).toBe(kernel);
  });

  test("page tables that lead everywhere do not hang it", () => {
    const g = syntheticGuest();
    // Every entry of every level is the same table.
    for (let i = 0; i < 512; i++) g.memory.writeU64(0x1000 + i * 8, 0x1023, 0);
    expect(failure(g)).not.toBe("identified");
  }, 60_000);

  test("without BTF symbols still work", () => {
    const guest = identified(syntheticGuest({ btf: null }));
    expect(guest.btf).toBeUndefined();
    expect([...guest.missing.keys()]).toEqual(["btf", "tasks", "modules", "unwind"]);
    expect(guest.symbolize(guest.symbols.lookup("fn_3") ?? 0)).toBe("fn_3+0x0");
    expect(guest.tasks()).toEqual({ tasks: [], problem: "the kernel has no BTF" });
    expect(guest.modules().problem).toBe("the kernel has no BTF");
  });

  test("a structure that is missing from BTF turns off only what needs it", () => {
    const guest = identified(syntheticGuest({ btf: syntheticBtf(["task_struct"]) }));
    expect(guest.missing.get("tasks")).toBe("BTF struct task_struct");
    expect(guest.missing.has("modules")).toBe(false);
  });
});

describe("LinuxGuest", () => {
  test("ranges and symbols of the image", () => {
    const g = syntheticGuest();
    const guest = identified(g);
    expect(guest.kernelRange("text")).toEqual({ start: g.base, end: g.base + 0x9_0000 });
    expect(guest.kernelRange("rodata")).toEqual({
      start: g.base + 0x10_0000,
      end: g.base + 0x1b_0000,
    });
    expect(guest.kernelRange("syscall-table")).toEqual({
      start: g.base + 0x10_8000,
      end: g.base + 0x10_8e00,
    });
    expect(guest.kernelRange("init")).toBeUndefined();
    expect(guest.inKernelText(g.base + 0x5_0000)).toBe(true);
    expect(guest.inKernelText(g.base + 0x15_0000)).toBe(false);
    expect(guest.symbolize(g.base + 0x1234)).toBe("fn_2+0x34");
    expect(guest.symbolize(DIRECT + HEAP)).toBeUndefined();
    expect(guest.symbolize(Number.NaN)).toBeUndefined();
  });

  test("processes, the parent and the current one", () => {
    const g = syntheticGuest();
    const init = addTask(g, 1, 1, "init", g.base + AT.initTask);
    addTask(g, 2, 77, "a name that is c", init);
    g.writePtr(DIRECT + HEAP + 0x20, init);
    const guest = identified(g);
    const { tasks, problem } = guest.tasks();
    expect(problem).toBeUndefined();
    expect(tasks.map((t) => [t.pid, t.comm, t.state, t.parent?.comm])).toEqual([
      [0, "swapper", "R", undefined],
      [1, "init", "S", "swapper"],
      [77, "a name that is c", "S", "swapper"],
    ]);
    expect(guest.currentTask(g.cpu)?.comm).toBe("init");
  });

  test("a circular task list and a wild pointer end with what was read and a problem", () => {
    const g = syntheticGuest();
    const one = addTask(g, 1, 1, "one", g.base + AT.initTask);
    const two = addTask(g, 2, 2, "two", one);
    g.writePtr(two + TASK.tasks, one + TASK.tasks);
    const guest = identified(g);
    expect(guest.tasks()).toMatchObject({ problem: "the task list is circular" });
    expect(guest.tasks().tasks).toHaveLength(3);
    g.writePtr(two + TASK.tasks, -0x5000_0000_0000);
    expect(guest.tasks().problem).toBe("the task list leads to memory that is not there");
    g.writePtr(two + TASK.tasks, 0x1234);
    expect(guest.tasks().problem).toBe("the task list has a pointer that is none");
  });

  test("modules, their symbols and ranges", () => {
    const g = syntheticGuest();
    const { text } = addModule(g, "hvi_attack");
    const guest = identified(g);
    const { modules, problem } = guest.modules();
    expect(problem).toBeUndefined();
    expect(modules).toHaveLength(1);
    expect(modules[0]).toMatchObject({
      name: "hvi_attack",
      base: text,
      size: 0x3000,
      state: "live",
    });
    expect(guest.symbolize(text + 0x412)).toBe("attack_write+0x12 [hvi_attack]");
    expect(guest.symbolize(text + 0x20)).toBe("0x20 [hvi_attack]");
    expect(guest.moduleAt(text + 0x4800)).toBe("hvi_attack");
    expect(guest.moduleAt(text + 0x3000)).toBeUndefined();
    expect(guest.resolve("hvi_attack:attack_init")).toBe(text + 0x100);
    expect(guest.resolve("hvi_attack:nothing")).toBeUndefined();
    expect(guest.resolve("nothing:attack_init")).toBeUndefined();
  });

  test("hostile module lists and symbol tables", () => {
    const g = syntheticGuest();
    const { module, text } = addModule(g, "x".repeat(56));
    const guest = identified(g);
    expect(guest.modules().modules[0].name).toHaveLength(56);
    g.write32(DIRECT + HEAP + 0x12_0000 + 8, 0xffff_ffff);
    expect(guest.symbolize(text + 0x412)).toBe(`0x412 [${"x".repeat(56)}]`);
    g.writePtr(module + MODULE.list, module + MODULE.list);
    expect(guest.modules().problem).toBe("the module list is circular");
    g.writePtr(module + MODULE.list, -0x5000_0000_0000);
    expect(guest.modules().problem).toBe("the module list leads to memory that is not there");
    g.writePtr(g.base + AT.modules, 0);
    expect(guest.modules()).toEqual({ modules: [], problem: undefined });
  });
});
