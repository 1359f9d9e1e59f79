// SPDX-License-Identifier: MIT
// Every instruction form against the host's own CPU: see isa.h.
import { beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { make, root, run } from "../support/native.ts";

/** States a form is tried with; HVI_ISA_STATES makes it more or less. */
const states = Number(process.env.HVI_ISA_STATES ?? 100);

beforeAll(() => {
  make("hv/soft", "test/isa");
}, 300_000);

test("2,000 forms and more agree with the host's CPU", async () => {
  const { code, output } = run([
    "build/isa/isa",
    "--states",
    String(states),
    "--json",
    "build/isa/forms.json",
  ]);
  const counts = /^forms (\d+) states (\d+) mismatches (\d+)$/m.exec(output);
  if (code !== 0) console.error(output.slice(0, 20_000));
  expect(output).toMatch(/^conditions \d+ mismatches 0$/m);
  expect(counts).not.toBeNull();
  expect(Number(counts?.[3])).toBe(0);
  expect(Number(counts?.[1])).toBeGreaterThanOrEqual(2000);
  expect(Number(counts?.[2])).toBeGreaterThanOrEqual(2000 * states);
  expect(code).toBe(0);

  const list = (await Bun.file(join(root, "build/isa/forms.json")).json()) as {
    forms: { form: string; states: number }[];
  };
  expect(list.forms.length).toBe(Number(counts?.[1]));
}, 300_000);

test("a wrong option is refused with exit code 2", () => {
  const { code, output } = run(["build/isa/isa", "--sates", "3"]);
  expect(code).toBe(2);
  expect(output).toContain("unknown option --sates");
});
