// SPDX-License-Identifier: MIT
/**
 * Identification on Debian's kernels as the loader puts them into memory, KASLR
 * on and off, before their first instruction. What a running kernel has besides
 * (processes, modules) is tested in test/guest/guest.test.ts.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { SERIES, type Series } from "../../../fixtures/kernels/kernels.ts";
import { identify } from "../identify.ts";
import type { LinuxGuest } from "./kernel.ts";
import { LOADED, loadKernel } from "./loaded.fixture.ts";

async function load(
  series: Series,
  append: string,
): Promise<{ guest: LinuxGuest; release: string }> {
  const { memory, cpu, slide, release } = await loadKernel(series, append);
  const attempt = identify(memory, cpu);
  if (!attempt.ok) throw new Error(attempt.reason);
  expect(attempt.guest.slide).toBe(slide);
  return { guest: attempt.guest, release };
}

for (const series of Object.keys(SERIES) as Series[]) {
  describe(`Debian's ${series} kernel as loaded`, () => {
    let guest: LinuxGuest;
    let release: string;
    beforeAll(async () => {
      ({ guest, release } = await load(series, "quiet"));
    }, 120_000);

    test("is identified with its version, slide and place", () => {
      expect(guest.version).toBe(release);
      expect(guest.slide).toBeGreaterThan(0);
      expect(guest.physicalText).toBe(LOADED);
    });

    test("has symbols, ranges and types; nothing is missing", () => {
      expect(guest.symbols.count).toBeGreaterThan(50_000);
      expect([...guest.missing]).toEqual([]);
      for (const kind of [
        "text",
        "rodata",
        "data",
        "init",
        "init-text",
        "syscall-table",
        "idt",
        "image",
      ] as const) {
        expect(guest.kernelRange(kind)).toBeDefined();
      }
      const text = guest.kernelRange("text");
      const rodata = guest.kernelRange("rodata");
      expect(text && rodata && text.end <= rodata.start).toBe(true);
      for (const name of [
        "text_poke_bp_batch",
        "vfs_read",
        "do_syscall_64",
        "init_task",
        "sys_call_table",
      ]) {
        const at = guest.symbols.lookup(name);
        expect(at && guest.symbolize(at)).toContain("+0x0");
      }
      expect(guest.btf?.sizeof("list_head")).toBe(16);
      expect(guest.btf?.offsetof("task_struct", "thread.sp")).toBeGreaterThan(0);
      expect(guest.btf?.enumerator("SYSTEM_RUNNING")).toBeGreaterThan(0);
    });

    test("every symbol is found again by its name and address", () => {
      const { symbols } = guest;
      for (let i = 0; i < symbols.count; i += 97) {
        const address = symbols.addressAt(i);
        expect(symbols.findAll(symbols.nameAt(i)).some((s) => s.address === address)).toBe(true);
        expect(symbols.at(address)?.address).toBe(address);
      }
    });

    test("has its idle task and no modules yet", () => {
      expect(guest.tasks().problem).toBeUndefined();
      expect(guest.tasks().tasks.map((t) => t.comm)).toEqual(["swapper"]);
      expect(guest.modules()).toEqual({ modules: [], problem: undefined });
    });

    test("without KASLR stands where it was linked", async () => {
      const { guest: plain } = await load(series, "nokaslr");
      expect(plain.slide).toBe(0);
      expect(plain.symbols.count).toBe(guest.symbols.count);
    }, 120_000);
  });
}
