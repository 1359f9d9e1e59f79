// SPDX-License-Identifier: MIT
/**
 * `npm run bench [-- NAME...]`: the benchmarks of bench/*.bench.ts, one after the other. Each prints
 * its own figures; a benchmark that misses its bound ends with an exit code other than 0.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const asked = process.argv.slice(2);
const all = readdirSync(join(root, "bench"))
  .filter((name) => name.endsWith(".bench.ts"))
  .map((name) => name.slice(0, -".bench.ts".length))
  .sort();
const unknown = asked.filter((name) => !all.includes(name));
if (unknown.length > 0) {
  console.error(`unknown benchmark ${unknown.join(", ")}: known are ${all.join(", ")}`);
  process.exit(2);
}
let worst = 0;
for (const name of asked.length > 0 ? asked : all) {
  console.log(`# ${name}`);
  const child = Bun.spawn([process.execPath, join(root, "bench", `${name}.bench.ts`)], {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit"],
  });
  worst = Math.max(worst, await child.exited);
}
process.exit(worst);
