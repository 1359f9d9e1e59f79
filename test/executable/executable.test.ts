// SPDX-License-Identifier: MIT
/** The single executable: everything is inside it, and it leaves nothing behind. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "../../fixtures/command.ts";
import { guest } from "../../fixtures/guests.ts";
import { hvi, ROOT } from "../support/hvi.ts";

let dir = "";
let command: string[] = [];
let temp = "";

beforeAll(async () => {
  await must([process.execPath, join(ROOT, "scripts/build.ts")], { cwd: ROOT });
  dir = mkdtempSync(join(tmpdir(), "hvi-build-test-"));
  temp = join(dir, "tmp");
  mkdirSync(temp);
  // Away from the project, so that nothing of it can be found by accident.
  copyFileSync(join(ROOT, "dist/hvi"), join(dir, "hvi"));
  command = [join(dir, "hvi")];
}, 120_000);

afterAll(() => rmSync(dir, { recursive: true, force: true }));

const env = (): Record<string, string> => ({ TMPDIR: temp, TMP: temp, TEMP: temp, HOME: temp });

/** Names in the system's folder for temporary files that an executable could have left. */
function leftovers(): string[] {
  return readdirSync("/tmp").filter((name) => /\.so$|\.wasm$|\.node$|^\.?bun/.test(name));
}

test("tells its version", async () => {
  const ended = await hvi(["version"], { command, cwd: dir, env: env() });
  expect(ended.code).toBe(0);
  expect(ended.stdout + ended.stderr).toMatch(/\d+\.\d+\.\d+/);
}, 20_000);

test("runs a guest with the software vCPU and the decoder inside it, and leaves no file", async () => {
  const g = await guest("6.1");
  const before = leftovers();
  const ended = await hvi(
    [
      ...[
        "run",
        "--backend",
        "soft",
        "--protect",
        "all",
        "--kernel",
        g.kernel,
        "--initrd",
        g.initrd,
      ],
      ...["--append", "console=ttyS0", "--until", "Linux version", "--timeout", "60"],
    ],
    { command, cwd: dir, env: env() },
  );
  expect(ended.stderr.includes("ERROR") ? ended.stderr : "").toBe("");
  expect(ended.stdout).toContain("Linux version");
  expect(ended.code).toBe(0);
  expect(readdirSync(temp)).toEqual([]);
  expect(readdirSync(dir).sort()).toEqual(["hvi", "tmp"]);
  expect(leftovers()).toEqual(before);
}, 90_000);
