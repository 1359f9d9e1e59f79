// SPDX-License-Identifier: MIT
/**
 * The fuzzer for a minute, on the same seed each time; HVI_FUZZ_SEED chooses
 * another. A longer run: make -C test/fuzz && build/fuzz --instructions 1000000000
 */
import { beforeAll, expect, test } from "bun:test";
import { resolve } from "node:path";

const root = resolve(import.meta.dir, "../..");

beforeAll(() => {
  const make = Bun.spawnSync(["make", "-s", "-C", import.meta.dir]);
  if (make.exitCode !== 0) throw new Error(`the fuzzer cannot be built: ${make.stderr.toString()}`);
}, 600_000);

test("10 million instructions of hostile guests and callers break nothing", () => {
  const seed = process.env.HVI_FUZZ_SEED ?? "1";
  const run = Bun.spawnSync([
    `${root}/build/fuzz`,
    "--instructions",
    "10000000",
    "--seconds",
    "60",
    "--seed",
    seed,
  ]);
  expect(run.stderr.toString()).toBe("");
  expect(run.exitCode).toBe(0);
  const instructions = Number(/fuzz: (\d+) instructions/.exec(run.stdout.toString())?.[1]);
  expect(instructions).toBeGreaterThanOrEqual(10_000_000);
}, 120_000);
