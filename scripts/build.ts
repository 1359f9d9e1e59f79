// SPDX-License-Identifier: MIT
/**
 * `npm run build`: the single executable dist/hvi, with the software vCPU and the Zydis module
 * inside it (src/executable.ts says which files).
 */
import { mkdirSync, renameSync, statSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const out = join(root, "dist/hvi");
const fresh = `${out}.${process.pid}`;

mkdirSync(join(root, "dist"), { recursive: true });
const child = Bun.spawn(
  [
    process.execPath,
    "build",
    "--compile",
    "--minify-syntax",
    "--target=bun-linux-x64",
    `--outfile=${fresh}`,
    join(root, "src/executable.ts"),
  ],
  { cwd: root, stdio: ["ignore", "inherit", "inherit"] },
);
const code = await child.exited;
if (code !== 0) process.exit(code);
renameSync(fresh, out);
console.log(`dist/hvi: ${(statSync(out).size / 1e6).toFixed(1)} MB`);
