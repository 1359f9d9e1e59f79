// SPDX-License-Identifier: MIT
/** The core's scenarios under bun test, on hv/soft. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { type Result, transcriptOf } from "../conformance/runner.ts";
import { make } from "../support/native.ts";
import { FULL } from "./effort.ts";
import { imagesFrom } from "./image.ts";
import { runScenario } from "./runner.ts";
import { runs, suite } from "./suite.ts";

const directory = resolve(import.meta.dir, "../../build/core");
const images = imagesFrom(directory);
const results: Result[] = [];
/** Milliseconds: for a machine that does much else. */
const LONG = 300_000;

beforeAll(() => {
  mkdirSync(directory, { recursive: true });
  make("test/core/guest");
});

test("the names of the scenarios are unique", () => {
  const names = suite.map((s) => s.name);
  expect(names.filter((n, i) => names.indexOf(n) !== i)).toEqual([]);
});

for (const { scenario, mode } of runs(FULL)) {
  test(
    `${scenario.name}.${mode}`,
    () => {
      const result = runScenario(scenario, mode, "soft", images, FULL);
      results.push(result);
      expect(result.failures).toEqual([]);
    },
    LONG,
  );
}

afterAll(() => {
  writeFileSync(`${directory}/soft.transcript`, transcriptOf(results));
});
