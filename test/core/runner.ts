// SPDX-License-Identifier: MIT
/** Runs scenarios and writes down what happened, in the form of the conformance suite's results. */
import type { BackendName } from "../conformance/bench.ts";
import type { Result } from "../conformance/runner.ts";
import type { Effort } from "./effort.ts";
import type { ImageSource } from "./image.ts";
import type { Mode } from "./layout.ts";
import { type Scenario, Trial } from "./scenario.ts";

const MOST_FAILURES = 20;

export function runScenario(
  s: Scenario,
  mode: Mode,
  backend: BackendName,
  images: ImageSource,
  effort: Effort,
): Result {
  let t: Trial | undefined;
  const failures: string[] = [];
  try {
    t = new Trial(backend, images, mode, effort, s.name);
    s.run(t);
    if (t.failures.length === 0) t.nothingLeft();
  } catch (e) {
    failures.push(`threw ${e instanceof Error ? (e.stack ?? e.message) : String(e)}`);
  } finally {
    t?.guest.close();
  }
  failures.push(...(t?.failures ?? []));
  const more = failures.length - MOST_FAILURES;
  if (more > 0) failures.splice(MOST_FAILURES, more, `and ${more} more`);
  return { name: `${s.name}.${mode}`, transcript: t?.lines ?? [], failures, skipped: false };
}
