// SPDX-License-Identifier: MIT
// What of the lab's programs needs no lab: the rules of VM entry on the software vCPU, and the
// module's search for the field that broke one.
import { beforeAll, expect, test } from "bun:test";
import { join } from "node:path";

const root = join(import.meta.dir, "../..");

function run(command: string[]): { code: number; output: string } {
  const result = Bun.spawnSync(command, { cwd: root, stdout: "pipe", stderr: "pipe" });
  return { code: result.exitCode, output: result.stdout.toString() + result.stderr.toString() };
}

beforeAll(() => {
  for (const directory of ["hv/soft", "test/vmx"]) {
    const made = run(["make", "-s", "-j2", "-C", directory]);
    if (made.code !== 0) throw new Error(`make -C ${directory}:\n${made.output}`);
  }
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
