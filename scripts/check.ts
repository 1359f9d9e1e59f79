// SPDX-License-Identifier: MIT
/**
 * `npm run check`: types, formatting and lint, the C compiler's warnings (setup has just built with
 * -Werror), and the documents. Everything is checked before it ends, so one run shows all.
 */
import { join } from "node:path";
import { docsProblems, labDocsProblems } from "./check-docs.ts";
import { STEP_NAMES } from "./lab/steps.ts";

const root = join(import.meta.dir, "..");

async function tool(name: string, argv: string[]): Promise<boolean> {
  const child = Bun.spawn(argv, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
  const ok = (await child.exited) === 0;
  console.log(`${name}: ${ok ? "ok" : "failed"}`);
  return ok;
}

const results = [
  await tool("types (tsc)", ["node_modules/.bin/tsc", "--noEmit"]),
  await tool("format and lint (biome)", [
    "node_modules/.bin/biome",
    "check",
    "--max-diagnostics=40",
    ".",
  ]),
];
const steps = new Map(STEP_NAMES.map((name) => [name, undefined]));
const problems = [...docsProblems(root), ...labDocsProblems(root, steps)];
for (const problem of problems) console.error(problem);
console.log(`documents: ${problems.length === 0 ? "ok" : "failed"}`);
process.exit(results.every(Boolean) && problems.length === 0 ? 0 : 1);
