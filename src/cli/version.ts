// SPDX-License-Identifier: MIT
import type { CAC } from "cac";
import { HVI_ABI_VERSION } from "../bridge/index.ts";
import { VERSION } from "../version.ts";
import { EXIT_OK } from "./output.ts";

/** Prints the versions; the exit code. */
export function printVersion(): number {
  process.stdout.write(`hvi ${VERSION} (ABI ${HVI_ABI_VERSION}, Bun ${Bun.version})\n`);
  return EXIT_OK;
}

export function registerVersion(cli: CAC): void {
  cli
    .command("version", "Print the versions of hvi, its interface and Bun")
    .example("  hvi version")
    .action(printVersion);
}
