// SPDX-License-Identifier: MIT
/**
 * Seconds from the start of the program to the shell of a stock Debian 6.1 kernel, without and with
 * every protection; beside QEMU's TCG on the same kernel when it is installed.
 *
 *     bun bench/boot.bench.ts [--json]
 */
import { join } from "node:path";
import { guest } from "../fixtures/guests.ts";

const root = join(import.meta.dir, "..");
const READY = "HVI-SHELL ready";
/** Seconds (issue 2). */
const BOUND = 25;

interface Row {
  name: string;
  seconds: number;
  bound?: number;
}

const { kernel, initrd } = await guest("6.1");

async function hvi(...more: string[]): Promise<number> {
  const run = ["run", "--kernel", kernel, "--initrd", initrd, "--append", "console=ttyS0 quiet"];
  const start = performance.now();
  const child = Bun.spawn(
    [process.execPath, join(root, "src/main.ts"), ...run, "--until", READY, ...more],
    { stdio: ["ignore", "ignore", "ignore"] },
  );
  if ((await child.exited) !== 0) throw new Error("the guest does not come to its shell");
  return (performance.now() - start) / 1000;
}

async function qemu(): Promise<number | undefined> {
  const program = Bun.which("qemu-system-x86_64");
  if (program === null) return undefined;
  const start = performance.now();
  const child = Bun.spawn(
    // CMPXCHG16B of QEMU 7.2's TCG leaves wrong flags now and then; see docs/limits.md.
    [program, "-accel", "tcg", "-cpu", "max,-cx16", "-m", "256", "-nographic", "-no-reboot"].concat(
      ["-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet"],
    ),
    { stdio: ["ignore", "pipe", "ignore"] },
  );
  let seen = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    seen = (seen + text).slice(-4096);
    if (seen.includes(READY)) break;
  }
  const seconds = (performance.now() - start) / 1000;
  child.kill();
  await child.exited;
  return seen.includes(READY) ? seconds : undefined;
}

const rows: Row[] = [
  { name: "hvi", seconds: await hvi("--protect", "none"), bound: BOUND },
  { name: "hvi, all protections", seconds: await hvi("--protect", "all"), bound: BOUND },
];
const peer = await qemu();
if (peer !== undefined) rows.push({ name: "QEMU TCG", seconds: peer });

if (process.argv.includes("--json"))
  console.log(JSON.stringify({ bench: "boot", unit: "s", rows }));
else {
  for (const { name, seconds, bound } of rows) {
    const limit = bound === undefined ? "" : ` (at most ${bound})`;
    const ratio = peer === undefined ? "" : `; ratio to TCG ${(seconds / peer).toFixed(1)}`;
    console.log(`${seconds.toFixed(2).padStart(8)} s  start to shell: ${name}${limit}${ratio}`);
  }
}
if (rows.some((r) => r.bound !== undefined && r.seconds > r.bound)) process.exitCode = 1;
