// SPDX-License-Identifier: MIT
/**
 * The conformance suite without a test framework, for places where only the
 * single executable exists:
 *   bun test/conformance/main.ts --backend soft|vmx --out FILE [--only TEXT] [--images DIR] [--bochs]
 * --bochs: the CPU is Bochs's, whose deviations are known (docs/backends.md).
 * Exit code 0: every case as it should be.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { BackendName } from "./bench.ts";
import { type ImageSource, imagesFrom } from "./guests.ts";
import { type Result, runCase, transcriptOf } from "./runner.ts";
import { suite } from "./suite.ts";

export interface Options {
  backend: BackendName;
  images: ImageSource;
  /** File for the transcript. */
  out?: string;
  /** Only cases whose names contain this. */
  only?: string;
  bochs?: boolean;
  print: (line: string) => void;
}

/** Runs the suite; answers the number of cases that failed. */
export function conformance(o: Options): number {
  const cases = suite.filter((c) => o.only === undefined || c.name.includes(o.only));
  const results: Result[] = [];
  for (const c of cases) {
    const r = runCase(c, o.backend, o.images, o.bochs);
    results.push(r);
    if (r.failures.length > 0) {
      o.print(`FAIL ${r.name}`);
      for (const f of r.failures) o.print(`     ${f}`);
    }
  }
  if (o.out) {
    mkdirSync(dirname(resolve(o.out)), { recursive: true });
    writeFileSync(o.out, transcriptOf(results));
  }
  const failed = results.filter((r) => r.failures.length > 0).length;
  const skipped = results.filter((r) => r.skipped).length;
  o.print(
    `conformance on ${o.backend}: ${results.length - failed - skipped} passed, ${failed} failed, ${skipped} not supported`,
  );
  return failed;
}

function option(name: string): string | undefined {
  const i = process.argv.indexOf(`--${name}`);
  return i < 0 ? undefined : process.argv[i + 1];
}

if (import.meta.main) {
  const backend = option("backend") ?? process.env.HVI_BACKEND ?? "soft";
  if (backend !== "soft" && backend !== "vmx") {
    console.error(`conformance: --backend is soft or vmx, not ${backend}`);
    process.exit(2);
  }
  const failed = conformance({
    backend,
    images: imagesFrom(option("images") ?? resolve(import.meta.dir, "../../build/conformance")),
    out: option("out"),
    only: option("only"),
    bochs: process.argv.includes("--bochs"),
    print: (line) => console.log(line),
  });
  process.exit(failed === 0 ? 0 : 1);
}
