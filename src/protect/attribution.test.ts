// SPDX-License-Identifier: MIT
import { beforeEach, describe, expect, test } from "bun:test";
import { HVI_ACCESS_GVA, HVI_ACCESS_WRITE, type Vcpu } from "../bridge/index.ts";
import type { LinuxGuest } from "../guest/linux/kernel.ts";
import { Attribution } from "./attribution.ts";

const TEXT = -0x7f000000;
/** Bytes between two functions of the made-up kernel. */
const APART = 0x100;
const NAMES = [
  "memcpy",
  "__text_poke",
  "text_poke_bp_batch",
  "arch_jump_label_transform",
  "schedule",
  "__x86_indirect_thunk_rax",
];
const MODULE = -0x3f000000;

const at = (name: string, offset = 0): number => TEXT + NAMES.indexOf(name) * APART + offset;

const code = new Map<number, number>();

/** Puts bytes so that they end at an offset of a function; the return address after them. */
function callIn(caller: string, offset: number, bytes: readonly number[]): number {
  const back = at(caller, offset);
  for (const [i, byte] of bytes.entries()) code.set(back - bytes.length + i, byte);
  return back;
}

/** CALL rel32 */
function call(caller: string, callee: number, offset = 0x40): number {
  const relative = Buffer.alloc(4);
  relative.writeInt32LE(callee - at(caller, offset));
  return callIn(caller, offset, [0xe8, ...relative]);
}

/** Whether a store is taken for the kernel's patching, with these return addresses on the stack. */
function allowed(
  rip: number,
  stack: readonly number[],
  change: Partial<Vcpu> = {},
  missing = new Map<string, string>(),
): boolean {
  const guest = {
    missing,
    inKernelText: (gva: number) => gva >= TEXT && gva < TEXT + NAMES.length * APART,
    symbolName: (gva: number) => NAMES[Math.floor((gva - TEXT) / APART)],
    walkStack: (_cpu: unknown, visit: (address: number) => boolean) => stack.every(visit),
    vm: {
      read8: (gva: number) => code.get(gva) ?? -1,
      read32: (gva: number) =>
        [3, 2, 1, 0].reduce((sum, i) => sum * 256 + (code.get(gva + i) ?? Number.NaN), 0),
    },
  };
  const vcpu = {
    cpl: 0,
    cr0: 0x80050033,
    rip,
    exitAccess: HVI_ACCESS_WRITE | HVI_ACCESS_GVA,
    exitGva: 0x1000,
    ...change,
  };
  return new Attribution(guest as unknown as LinuxGuest).isKernelPatching(vcpu as Vcpu);
}

describe("the kernel's own patching", () => {
  let honest: number[];
  beforeEach(() => {
    code.clear();
    honest = [
      call("__text_poke", at("memcpy")),
      call("text_poke_bp_batch", at("__text_poke")),
      call("arch_jump_label_transform", at("text_poke_bp_batch")),
      call("schedule", at("arch_jump_label_transform")),
    ];
  });

  test("is told by its stack", () => {
    expect(allowed(at("memcpy", 8), honest)).toBe(true);
    expect(allowed(at("__text_poke", 8), honest.slice(1))).toBe(true);
  });

  test.each([
    ["CALL RAX", [0xff, 0xd0]],
    ["CALL R11", [0x41, 0xff, 0xd3]],
  ])("reaches its copy routine through a pointer: %s", (_what, bytes) => {
    honest[0] = callIn("__text_poke", 0x60, bytes);
    expect(allowed(at("memcpy", 8), honest)).toBe(true);
  });

  test("reaches its copy routine through a retpoline", () => {
    honest[0] = call("__text_poke", at("__x86_indirect_thunk_rax"));
    expect(allowed(at("memcpy", 8), honest)).toBe(true);
  });

  test("may leave no frame of what ended in a jump", () => {
    const stack = [honest[0], call("arch_jump_label_transform", at("text_poke_bp_batch"))];
    expect(allowed(at("memcpy", 8), stack)).toBe(true);
    expect(allowed(at("__text_poke", 8), stack.slice(1))).toBe(true);
  });

  test.each([
    ["in user mode", { cpl: 3 }],
    ["with CR0.WP clear", { cr0: 0x80040033 }],
    ["through a kernel address", { exitGva: TEXT }],
  ])("is not a write %s", (_what, change) => {
    expect(allowed(at("memcpy", 8), honest, change)).toBe(false);
  });

  test("is told without its stack on a kernel that has no tables to unwind it", () => {
    const missing = new Map([["unwind", "no ORC tables"]]);
    expect(allowed(at("memcpy", 8), [], {}, missing)).toBe(true);
    expect(allowed(at("memcpy", 8), [], { exitGva: TEXT }, missing)).toBe(false);
    expect(allowed(MODULE, [], {}, missing)).toBe(false);
  });

  test("is not what a module, or other kernel code, asks for", () => {
    expect(allowed(at("memcpy", 8), [...honest.slice(0, 2), MODULE])).toBe(false);
    const other = call("schedule", at("text_poke_bp_batch"));
    expect(allowed(at("memcpy", 8), [...honest.slice(0, 2), other])).toBe(false);
    expect(allowed(MODULE, honest)).toBe(false);
  });

  test("needs a patching function between the copy and who asked", () => {
    const direct = call("arch_jump_label_transform", at("memcpy"));
    expect(allowed(at("memcpy", 8), [direct])).toBe(false);
  });

  test.each([
    ["no CALL before it", () => at("arch_jump_label_transform", 0x80)],
    ["a CALL of something else before it", () => call("arch_jump_label_transform", at("schedule"))],
    [
      "a CALL through a pointer before it",
      () => callIn("arch_jump_label_transform", 0x80, [0xff, 0xd0]),
    ],
  ])("is not believed of a return address with %s", (_what, forged) => {
    expect(allowed(at("memcpy", 8), [honest[0], honest[1], forged()])).toBe(false);
  });
});
