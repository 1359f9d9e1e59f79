// SPDX-License-Identifier: MIT
/**
 * Guest instructions a second of the software vCPU, beside QEMU's TCG on the same images when it is
 * installed; see bench/soft.
 *
 *     bun bench/vcpu.bench.ts
 */
import { join } from "node:path";

const root = join(import.meta.dir, "..");
/** Million instructions a second (issue 2). */
const BOUND = 100;

const make = Bun.spawnSync(["make", "-s", "-C", join(root, "bench/soft"), "run"], {
  stderr: "inherit",
});
const table = make.stdout.toString();
process.stdout.write(table);
if (make.exitCode !== 0) process.exit(1);
const rates = [...table.matchAll(/^(\w+) +\d+ +[0-9a-f]+ +(\d+)/gm)].map((m) => Number(m[2]));
if (rates.length === 0 || rates.some((rate) => rate < BOUND)) {
  console.error(`a guest runs at less than ${BOUND} million instructions a second`);
  process.exit(1);
}
