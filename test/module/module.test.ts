// SPDX-License-Identifier: MIT
// Parts of the module (hv/vmx) that need no VT-x, built in user space.
import { beforeAll, expect, test } from "bun:test";
import { make, run } from "../support/native.ts";

beforeAll(() => {
  make("test/module");
}, 60_000);

test("the length of an instruction, where one is given, is Zydis's in 16, 32 and 64-bit code", () => {
  const { code, output } = run(["build/module/insn"]);
  if (code !== 0) console.error(output);
  const n = /^strings (\d+) valid (\d+) known (\d+) mismatches 0$/m.exec(output);
  expect(n).not.toBeNull();
  const [, strings, valid, known] = (n ?? []).map(Number);
  expect(strings).toBeGreaterThan(40_000_000);
  // Of what is an instruction, little is not known: what no Intel CPU has.
  expect(known! / valid!).toBeGreaterThan(0.999);
  expect(code).toBe(0);
}, 120_000);

test("a wrong option is refused with exit code 2", () => {
  const { code, output } = run(["build/module/insn", "--sed", "3"]);
  expect(code).toBe(2);
  expect(output).toContain("unknown option --sed");
});

test("page walks: accessed and dirty bits in tables without W, and reads of guest memory", () => {
  expect(run(["build/module/paging"])).toEqual({ code: 0, output: "paging: 0 failures\n" });
});
