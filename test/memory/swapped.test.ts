// SPDX-License-Identifier: MIT
/**
 * Swapped-out reads of a guest that runs: user code in a loop, and a page fault
 * handler in the guest that swaps pages in. The engine's part is played as the
 * engine plays it: poll between exits, tell of HVI_EXIT_INJECTED.
 */
import { beforeAll, expect, test } from "bun:test";
import { resolve } from "node:path";
import * as abi from "../../src/bridge/abi.ts";
import { GuestMemory } from "../../src/memory/guest-memory.ts";
import { PhysicalMemory } from "../../src/memory/physical.ts";
import { SwappedMemory, type SwappedResult } from "../../src/memory/swapped.ts";
import { DEFAULT_FEATURES } from "../../src/memory/translate.ts";
import { Bench } from "../conformance/bench.ts";
import { imagesFrom } from "../conformance/guests.ts";
import { gate, TABLES, WALK } from "../conformance/layout.ts";

const directory = resolve(import.meta.dir, "../../build/conformance");
const USER_PAGES = TABLES + 0x7000;
/** Data page with the pager, by its identity mapping. */
const PAGER = 0x2f0000;
const OTHER_ROOT = 0x600000;

beforeAll(() => {
  const guests = resolve(import.meta.dir, "../conformance/guests");
  const make = Bun.spawnSync(["make", "-s", "-C", guests]);
  if (make.exitCode !== 0) throw new Error(`the guests cannot be built: ${make.stderr.toString()}`);
});

function start(code: string) {
  const t = new Bench("soft", imagesFrom(directory), "user", 1);
  // push rax, rcx; mov rax, cr2; shr rax, 12; and eax, 0x1ff; mov rcx, USER_PAGES;
  // or byte [rcx + rax * 8], 1; inc dword [pager's count]; pop rcx, rax; add rsp, 8; iretq
  t.poke(
    PAGER,
    "50 51 0f20d0 48c1e80c 25ff010000 48c7c100700100 800cc101 ff0425 00082f00 59 58 4883c408 48cf",
  );
  gate(t, 14, { handler: PAGER });
  t.code(0, 0, code);
  // Pages 1 to 4 are swapped out: not present, the rest of the entry kept. No pattern repeats.
  for (let n = 1; n <= 4; n++) {
    for (let i = 0; i < 0x1000; i += 4) t.put32(t.p(n, i), n * 0x1000000 + i);
    t.put64(USER_PAGES + 8 * n, t.get64(USER_PAGES + 8 * n) & ~1n);
  }
  t.poke(OTHER_ROOT, t.peek(TABLES, 0x1000));
  t.put64(OTHER_ROOT + 8 * 192, 0n);
  const memory = new GuestMemory(new PhysicalMemory(t.vm.ram));
  const swapped = new SwappedMemory({ memory, tscKhz: 1000 });
  const space = { root: TABLES, mode: "4level" as const, features: DEFAULT_FEATURES };
  const results: SwappedResult[] = [];
  /** Runs for some exits or until nothing waits. */
  const run = (exits: number): void => {
    for (let i = 0; i < exits && swapped.waiting > 0; i++) {
      const vcpu = t.vm.run(Math.min(swapped.deadline, t.vcpu().tsc + 1000));
      const reason = vcpu.exitReason;
      if (reason === abi.HVI_EXIT_INJECTED) expect(swapped.onInjected(vcpu)).toBe(true);
      else if (reason === abi.HVI_EXIT_IO) vcpu.skip();
      else expect(reason).toBe(abi.HVI_EXIT_DEADLINE);
      swapped.poll(vcpu);
    }
  };
  return { t, swapped, space, results, run, done: (r: SwappedResult) => void results.push(r) };
}

const SPIN = "ebfe";

test("several pages are swapped in by the guest itself, with one callback", () => {
  const { t, swapped, space, results, run, done } = start(SPIN);
  const gva = Number(t.d(1, 0xffc));
  swapped.read(space, gva, 0x2008, {}, done);
  run(100);
  expect(results.length).toBe(1);
  expect(results[0].ok && Buffer.from(results[0].bytes).toString("hex")).toBe(
    t.peek(t.p(1, 0xffc), 0x2008),
  );
  // One fault a page, taken by the guest's handler, and the user's code goes on.
  expect(t.get32(PAGER + 0x800)).toBe(4);
  expect([swapped.injected, swapped.delivered, swapped.lost]).toEqual([4, 4, 0]);
  t.vm.run(t.vcpu().tsc + 100);
  expect([t.reg("rip"), t.vcpu().cpl]).toEqual([t.d(0), 3]);
  t.close();
});

test("nothing is injected while another process runs", () => {
  const { t, swapped, space, results, run, done } = start(SPIN);
  t.cpu.set("cr3", OTHER_ROOT);
  t.cpu.set("rip", t.symbol("spin"));
  swapped.read(space, Number(t.d(1)), 16, {}, done);
  run(50);
  expect([swapped.injected, results.length, t.get32(PAGER + 0x800)]).toEqual([0, 0, 0]);
  t.cpu.set("cr3", TABLES);
  run(50);
  expect([swapped.injected, results.length]).toEqual([1, 1]);
  t.close();
});

test("a page that the process touches by itself completes without injection", () => {
  // mov rax, [rsi]; jmp back
  const { t, swapped, space, results, run, done } = start("488b06 ebfb");
  t.cpu.set("rsi", t.d(2));
  swapped.read(space, Number(t.d(2)), 8, { inject: false }, done);
  run(50);
  expect([results.length, swapped.injected, t.get32(PAGER + 0x800)]).toEqual([1, 0, 1]);
  t.close();
});

test("a delivery that faults is lost and tried again", () => {
  const { t, swapped, space, results, run, done } = start(SPIN);
  // No gate for #PF: the delivery ends in #DF, whose handler goes on after its exit.
  gate(t, 14, { present: false });
  swapped.read(space, Number(t.d(1)), 8, {}, done);
  run(3);
  expect(swapped.lost).toBeGreaterThan(0);
  gate(t, 14, { handler: PAGER });
  run(50);
  expect(results[0]?.ok).toBe(true);
  expect([swapped.injected, swapped.delivered]).toEqual([swapped.lost + 1, 1]);
  t.close();
});

test("an absent table is waited for like an absent page", () => {
  const { t, swapped, space, results, run, done } = start(SPIN);
  const entry = WALK.user?.[2] ?? 0;
  t.put64(entry, t.get64(entry) & ~1n);
  swapped.read(space, Number(t.d(5)), 8, { inject: false }, done);
  run(10);
  expect(results.length).toBe(0);
  t.put64(entry, t.get64(entry) | 1n);
  run(10);
  expect(results[0]?.ok).toBe(true);
  t.close();
});
