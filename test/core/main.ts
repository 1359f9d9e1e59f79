// SPDX-License-Identifier: MIT
/**
 * The core's scenarios without a test framework, for places where only the single executable exists:
 *   bun test/core/main.ts --backend soft|vmx --out FILE [--only TEXT] [--images DIR] [--zydis FILE] [--times]
 *     [--effort full|every|brief]
 * --effort: every scenario as often as the tests do, less often, or only some of them (effort.ts); --times: what each took.
 * Transcripts are compared with those of the same effort. Exit code 0: every scenario went as it should.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { parseArgs } from "node:util";
import { registerAsset } from "../../src/bridge/index.ts";
import { type Result, transcriptOf } from "../conformance/runner.ts";
import { EFFORTS } from "./effort.ts";
import { imagesFrom } from "./image.ts";
import { runScenario } from "./runner.ts";
import { runs } from "./suite.ts";

const { values } = parseArgs({
  options: {
    backend: { type: "string", default: "soft" },
    out: { type: "string" },
    only: { type: "string", default: "" },
    images: { type: "string", default: resolve(import.meta.dir, "../../build/core") },
    zydis: { type: "string" },
    effort: { type: "string", default: "full" },
    times: { type: "boolean", default: false },
  },
});
const { backend, out, only } = values;
if (backend !== "soft" && backend !== "vmx") {
  console.error(`core: --backend is soft or vmx, not ${backend}`);
  process.exit(2);
}
const effort = EFFORTS[values.effort];
if (effort === undefined) {
  console.error(`core: --effort is ${Object.keys(EFFORTS).join(", ")}, not ${values.effort}`);
  process.exit(2);
}
if (values.zydis !== undefined) registerAsset("zydis.wasm", values.zydis);
const images = imagesFrom(values.images);

const results: Result[] = [];
for (const { scenario, mode } of runs(effort)) {
  if (!`${scenario.name}.${mode}`.includes(only)) continue;
  const started = performance.now();
  const r = runScenario(scenario, mode, backend, images, effort);
  results.push(r);
  if (values.times) console.log(`${r.name}: ${(performance.now() - started).toFixed(0)} ms`);
  if (r.failures.length === 0) continue;
  console.log(`FAIL ${r.name}`);
  for (const f of r.failures) console.log(`     ${f}`);
}
if (out !== undefined) {
  mkdirSync(dirname(resolve(out)), { recursive: true });
  writeFileSync(out, transcriptOf(results));
}
const failed = results.filter((r) => r.failures.length > 0).length;
console.log(`core on ${backend}: ${results.length - failed} passed, ${failed} failed`);
process.exit(failed === 0 && results.length > 0 ? 0 : 1);
