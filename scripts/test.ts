// SPDX-License-Identifier: MIT
/**
 * `npm test`: every test of the project, then the check that the documents name only tests that ran.
 *
 *   npm test [-- PATTERN...]     patterns as `bun test` takes them; the documents are then not checked
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { docsProblems } from "./check-docs.ts";
import { readJunit } from "./junit.ts";

const root = join(import.meta.dir, "..");
const report = join(root, "build/junit.xml");
const patterns = process.argv.slice(2);

mkdirSync(join(root, "build"), { recursive: true });
rmSync(report, { force: true });
const argv = [process.execPath, "test", "--reporter=junit", `--reporter-outfile=${report}`];
const child = Bun.spawn([...argv, ...patterns], {
  cwd: root,
  stdio: ["ignore", "inherit", "inherit"],
});
const code = await child.exited;

const cases = readJunit(report);
let failed = cases.filter((c) => c.outcome === "failed").length;
const passed = cases.filter((c) => c.outcome === "passed").length;
const skipped = cases.filter((c) => c.outcome === "skipped").length;
if (code !== 0 && failed === 0) {
  // A file that does not load is no case in the report, but it is a failure.
  console.error(`bun test ended with exit code ${code}`);
  failed = 1;
}
if (patterns.length === 0) {
  const problems = docsProblems(root, cases);
  for (const problem of problems) console.error(problem);
  failed += problems.length;
}
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
