// SPDX-License-Identifier: MIT
/** The conformance suite under bun test; HVI_BACKEND chooses the backend. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import type { BackendName } from "./bench.ts";
import { beyondBochs } from "./cases/beyond-bochs.ts";
import { imagesFrom } from "./guests.ts";
import { type Result, runCase, transcriptOf } from "./runner.ts";
import { suite } from "./suite.ts";

const backend = (process.env.HVI_BACKEND ?? "soft") as BackendName;
const directory = resolve(import.meta.dir, "../../build/conformance");
const images = imagesFrom(directory);
const results: Result[] = [];

beforeAll(() => {
  mkdirSync(directory, { recursive: true });
  const make = Bun.spawnSync(["make", "-s", "-C", resolve(import.meta.dir, "guests")]);
  if (make.exitCode !== 0) throw new Error(`the guests cannot be built: ${make.stderr.toString()}`);
});

test("the names of the cases are unique", () => {
  const names = suite.map((c) => c.name);
  expect(names.filter((n, i) => names.indexOf(n) !== i)).toEqual([]);
});

for (const c of suite) {
  test(c.name, () => {
    const result = runCase(c, backend, images);
    results.push(result);
    expect(result.failures).toEqual([]);
  });
}

for (const c of beyondBochs) {
  test(c.name, () => {
    expect(runCase(c, "soft", images).failures).toEqual([]);
  });
}

afterAll(() => {
  writeFileSync(`${directory}/${backend}.transcript`, transcriptOf(results));
});
