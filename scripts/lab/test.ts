// SPDX-License-Identifier: MIT
/**
 * `npm run test:vmx [-- [--kernel SERIES] [--cpu MODEL] [--cpus N] [--verbose] PATTERN...]`: the VT-x
 * module and the engine on it, inside an emulated machine with VT-x. Steps whose names contain one
 * of the patterns run; without one, all of them.
 *
 * `-- --run 'SHELL COMMANDS' --with module,kvm,...` runs those commands in the machine instead, which
 * may lack a feature of the CPU (`--without vmx`), or have it off (`--firmware vtx-off`), or `--append` to the kernel's command line.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { isSeries, SERIES, type Series } from "../../fixtures/kernels/kernels.ts";
import { labDocsProblems } from "../check-docs.ts";
import { type Firmware, MODELS } from "./bochs.ts";
import { isIngredient } from "./ingredients.ts";
import { labLock, moduleBuilds, type Outcome, runLab } from "./lab.ts";
import { STEP_NAMES, STEPS, type Step } from "./steps.ts";

function usage(message: string): never {
  console.error(message);
  process.exit(2);
}

const { values, positionals } = parseArgs({
  args: process.argv.slice(2),
  allowPositionals: true,
  options: {
    kernel: { type: "string", default: "6.1" },
    cpu: { type: "string" },
    cpus: { type: "string", default: "1" },
    verbose: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
    run: { type: "string" },
    with: { type: "string", default: "module" },
    limit: { type: "string", default: "300" },
    without: { type: "string" },
    firmware: { type: "string" },
    append: { type: "string" },
  },
});
const series = values.kernel;
if (!isSeries(series)) usage(`unknown kernel ${series}`);
const model = MODELS.find((m) => m === (values.cpu ?? "broadwell_ult"));
if (model === undefined) usage(`unknown CPU ${values.cpu}: known are ${MODELS.join(", ")}`);
const cpus = Number(values.cpus);
if (!(cpus >= 1 && cpus <= 8)) usage("--cpus is a number from 1 to 8");

/** Commands given on the command line, as a step. */
function adHoc(script: string): Step {
  const needs = values.with.split(",").filter(Boolean);
  const unknown = needs.filter((name) => !isIngredient(name));
  if (unknown.length > 0) usage(`--with: unknown ${unknown.join(", ")}`);
  const firmware = values.firmware as Firmware | undefined;
  const machine = { without: values.without, firmware, append: values.append };
  const limit = Number(values.limit);
  return { name: "run", needs: needs.filter(isIngredient), limit, script, machine };
}

/** A whole name means that step alone. */
const chosen = (name: string): boolean =>
  positionals.length === 0 ||
  positionals.some((p) => (STEP_NAMES.includes(p) ? name === p : name.includes(p)));
const steps = values.run === undefined ? STEPS.filter((s) => chosen(s.name)) : [adHoc(values.run)];
/** Kernels that the module is built for, besides the one that boots. */
const builds =
  values.run === undefined
    ? (Object.keys(SERIES) as Series[]).filter((name) => chosen(`build.${name}`))
    : [];
const verbose = values.verbose || values.run !== undefined;
if (steps.length + builds.length === 0) usage(`no step like ${positionals.join(" ")}`);
if (values.list) {
  for (const b of builds) console.log(`build.${b}`);
  for (const s of steps) console.log(s.name);
  process.exit(0);
}

const MARK = { ok: "ok  ", failed: "FAIL", skipped: "skip" } as const;
const out = join(import.meta.dir, "../../build/lab/results");
const outcomes: Outcome[] = [];
const unlock = await labLock();
const started = Date.now();
const report = (o: Outcome): void => {
  outcomes.push(o);
  console.log(`${MARK[o.verdict]} ${o.name} (${o.seconds.toFixed(1)} s)`);
  for (const [name, text] of o.result?.files ?? []) {
    mkdirSync(join(out, o.name), { recursive: true });
    writeFileSync(join(out, o.name, name), text);
  }
  if (o.verdict === "ok") return;
  for (const reason of o.reasons) console.log(`     ${reason.replaceAll("\n", "\n     ")}`);
  if (o.verdict === "skipped" || verbose) return;
  for (const line of o.result?.output.slice(-40) ?? []) console.log(`     | ${line}`);
};
for (const name of builds) report(await moduleBuilds(name));
const hardware = { series, model, cpus };
await runLab({ hardware, verbose, print: (line) => console.log(line) }, steps, report);
unlock();
const count = (verdict: Outcome["verdict"]): number =>
  outcomes.filter((o) => o.verdict === verdict).length;
const time = ((Date.now() - started) / 1000).toFixed(0);
console.log(
  `${count("ok")} passed, ${count("failed")} failed, ${count("skipped")} skipped, ${time} s`,
);
/** All of them ran as they are meant to: what the documents say of them can be held against it. */
const whole = values.run === undefined && positionals.length === 0 && values.cpu === undefined;
const problems = whole
  ? labDocsProblems(
      join(import.meta.dir, "../.."),
      new Map(outcomes.map((o) => [o.name, o.verdict])),
    )
  : [];
for (const problem of problems) console.error(problem);
process.exit(count("failed") + problems.length === 0 && count("ok") > 0 ? 0 : 1);
