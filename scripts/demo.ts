// SPDX-License-Identifier: MIT
/**
 * `npm run demo`: a stock Debian 6.1 kernel boots under introspection, works, is attacked, and lives
 * on; then its processes are listed from outside and it is resumed from a snapshot. Ends with exit
 * code 0 only when every attack was denied and reported, and nothing benign was.
 *
 * Leaves build/demo/: console.log, alerts.jsonl, ps.txt, report.json, report.html.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, judge, parseAlerts, type RunVerdict } from "../fixtures/attacks/verdict.ts";
import { guest } from "../fixtures/guests.ts";
import { page } from "./demo-report.ts";

const root = join(import.meta.dir, "..");
const out = join(root, "build/demo");
const files = {
  console: join(out, "console.log"),
  alerts: join(out, "alerts.jsonl"),
  snapshot: join(out, "guest.hvi"),
  ps: join(out, "ps.txt"),
  json: join(out, "report.json"),
  html: join(out, "report.html"),
};

/** Lines of the boot that tell how far it is. */
const MILESTONES =
  /Linux version|Write protecting the kernel|Run \/init|HVI-INIT|HVI-PART|HVI-BENIGN|HVI-FAIL|HVI-DONE|HVI-ATTACKS done/;
/** Seconds after which the guest is given up. */
const LIMIT = 300;

const bold = (text: string): string => (process.stdout.isTTY ? `\x1b[1m${text}\x1b[0m` : text);
const red = (text: string): string => (process.stdout.isTTY ? `\x1b[31m${text}\x1b[0m` : text);
const green = (text: string): string => (process.stdout.isTTY ? `\x1b[32m${text}\x1b[0m` : text);

function title(text: string): void {
  console.log(`\n${bold(text)}`);
}

/** Gives each line of a stream to `onLine`. */
async function lines(stream: ReadableStream<Uint8Array>, onLine: (line: string) => void) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of stream) {
    const whole = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = whole.pop() ?? "";
    for (const line of whole) onLine(line.replaceAll("\r", ""));
  }
  if (rest !== "") onLine(rest);
}

/**
 * Runs `hvi` and gives each line of its standard output to `onLine`; its exit code. Of what it says
 * itself, alerts are left to the table.
 */
async function hvi(args: string[], onLine: (line: string) => void): Promise<number> {
  const child = Bun.spawn([process.execPath, join(root, "src/main.ts"), ...args], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const said = lines(child.stderr, (line) => {
    if (line.trim() !== "" && !line.startsWith("DENIED ")) console.log(`  ${line.trim()}`);
  });
  await Promise.all([lines(child.stdout, onLine), said]);
  return child.exited;
}

/** Boots the guest, lets it work and attacks it; what it printed. */
async function boot(kernel: string, initrd: string): Promise<{ code: number; console: string }> {
  const started = performance.now();
  const printed: string[] = [];
  let attacks = 0;
  const code = await hvi(
    [
      ...["run", "--kernel", kernel, "--initrd", initrd, "--memory", "256M"],
      ...["--append", "console=ttyS0 hvi.mode=benign-brief,attack,benign-brief,snapshot,poweroff"],
      ...["--protect", "all", "--alerts", files.alerts, "--timeout", String(LIMIT)],
      ...["--snapshot-at", "HVI-SNAPSHOT here", "--snapshot", files.snapshot],
    ],
    (line) => {
      printed.push(line);
      if (/HVI-ATTACK /.test(line)) attacks++;
      if (!MILESTONES.test(line)) return;
      const seconds = ((performance.now() - started) / 1000).toFixed(1).padStart(6);
      const note = /ATTACKS done/.test(line) ? ` (${attacks} attacks)` : "";
      console.log(`  ${seconds} s  ${line.slice(0, 100)}${note}`);
    },
  );
  return { code, console: printed.join("\n") };
}

function table(run: RunVerdict): void {
  const width = Math.max(...run.attacks.map((a) => a.name.length), 6);
  console.log(`  ${"attack".padEnd(width)}  ${"verdict".padEnd(13)}  first alert`);
  for (const a of run.attacks) {
    const paint = a.verdict === "denied" ? green : red;
    const alert = a.alerts[0];
    const more = a.alerts.length > 1 ? ` (+${a.alerts.length - 1})` : "";
    const said = alert ? `${describe(alert)}${more}` : "";
    console.log(`  ${a.name.padEnd(width)}  ${paint(a.verdict.padEnd(13))}  ${said}`);
  }
}

/** Everything that keeps the demo from being a success; empty when it is one. */
function complaints(run: RunVerdict, code: number, ps: string, resumed: boolean): string[] {
  const found: string[] = [];
  if (code !== 0) found.push(`hvi run ended with exit code ${code}`);
  if (run.attacks.length === 0) found.push("the guest ran no attack");
  for (const a of run.attacks) {
    if (a.verdict !== "denied") found.push(`attack ${a.name}: ${a.verdict}`);
  }
  for (const v of run.stray) found.push(`false alarm: ${describe(v)}`);
  if (run.benignRuns !== 2) found.push(`the benign workload ran ${run.benignRuns} times of 2`);
  found.push(...run.failures.map((f) => `the guest says: ${f}`));
  if (!run.events.some((e) => e.type === "protection-active"))
    found.push("no protection was active");
  if (!ps.includes("hvi-daemon")) found.push("the list of processes lacks hvi-daemon");
  if (!resumed) found.push("the guest did not go on from its snapshot");
  return found;
}

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
const g = await guest("6.1");

title(`Debian's ${g.release} boots under introspection, works, is attacked, works on`);
const booted = await boot(g.kernel, g.initrd);
writeFileSync(files.console, booted.console);
let alertText = "";
try {
  alertText = readFileSync(files.alerts, "utf8");
} catch {
  console.log(red("  the engine wrote no alerts file"));
}
const run = judge(booted.console, parseAlerts(alertText));

title("Attacks");
if (run.attacks.length > 0) table(run);

title("Its processes, read from the snapshot's memory by the engine");
const psLines: string[] = [];
const psCode = await hvi(["inspect", files.snapshot, "ps"], (line) => {
  psLines.push(line);
  console.log(`  ${line}`);
});
const ps = psCode === 0 ? psLines.join("\n") : "";
writeFileSync(files.ps, ps);

title("The guest goes on from the snapshot");
const restoreStarted = performance.now();
let resumed = false;
await hvi(["run", "--restore", files.snapshot, "--timeout", "60"], (line) => {
  if (/HVI-SNAPSHOT past|HVI-DONE/.test(line)) console.log(`  ${line}`);
  if (/HVI-DONE rc=0/.test(line)) resumed = true;
});
console.log(`  ${((performance.now() - restoreStarted) / 1000).toFixed(2)} s until it was off`);

const problems = complaints(run, booted.code, ps, resumed);
const denied = run.attacks.filter((a) => a.verdict === "denied").length;
const summary = `${denied} of ${run.attacks.length} attacks denied, ${run.stray.length} false alarms`;
const report = { release: g.release, summary, problems, ...run };
writeFileSync(files.json, `${JSON.stringify(report, null, 2)}\n`);
writeFileSync(files.html, page({ release: g.release, summary, problems, run, ps }));
rmSync(files.snapshot, { force: true });

title("Result");
for (const problem of problems) console.log(red(`  ${problem}`));
console.log(`  ${problems.length === 0 ? green(summary) : red(summary)}`);
console.log("  report: build/demo/report.html");
process.exit(problems.length === 0 ? 0 : 1);
