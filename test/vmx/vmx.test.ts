// SPDX-License-Identifier: MIT
// What of the lab's programs needs no lab: the rules of VM entry on the software vCPU, and the
// module's search for the field that broke one.
import { beforeAll, expect, test } from "bun:test";
import { make, run } from "../support/native.ts";

beforeAll(() => {
  make("hv/soft", "test/vmx");
}, 300_000);

test("each rule of VM entry is told by its field's name, on the software vCPU", () => {
  const { code, output } = run(["build/vmx/entry", "--soft", "build/libhvi-soft.so"]);
  expect(output).toMatch(/^entry: 1\d\d rules, 0 failures$/m);
  expect(code).toBe(0);
});

test("the module finds the field of a failed entry: controls, host, guest", () => {
  const { code, output } = run(["build/vmx/check"]);
  expect(output).toMatch(/^check: \d\d rules, 0 failures$/m);
  expect(code).toBe(0);
});
