// SPDX-License-Identifier: MIT
/** Test programs in C: made, and run from the project's folder. */
import { join } from "node:path";

export const root = join(import.meta.dir, "../..");

export function run(command: string[]): { code: number; output: string } {
  const result = Bun.spawnSync(command, { cwd: root, stdout: "pipe", stderr: "pipe" });
  return { code: result.exitCode, output: result.stdout.toString() + result.stderr.toString() };
}

/** Makes folders of the project, in this order. Throws with what make said when one does not build. */
export function make(...directories: string[]): void {
  for (const directory of directories) {
    const made = run(["make", "-s", "-j2", "-C", directory]);
    if (made.code !== 0) throw new Error(`make -C ${directory}:\n${made.output}`);
  }
}
