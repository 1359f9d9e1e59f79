// SPDX-License-Identifier: MIT
/** The command line as tests use it. */
import { join } from "node:path";

export const ROOT = join(import.meta.dir, "../..");
const MAIN = join(ROOT, "src/main.ts");

export interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface HviOptions {
  /** What to run instead of the sources: the single executable. */
  readonly command?: readonly string[];
  readonly cwd?: string;
  readonly env?: Record<string, string>;
}

/** Runs `hvi` with no input to its end. */
export async function hvi(args: readonly string[], o: HviOptions = {}): Promise<Ended> {
  const child = Bun.spawn([...(o.command ?? [process.execPath, MAIN]), ...args], {
    cwd: o.cwd ?? ROOT,
    env: { ...process.env, NO_COLOR: "1", ...o.env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, stdout, stderr };
}
