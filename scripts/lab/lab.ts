// SPDX-License-Identifier: MIT
/**
 * Runs steps in the lab's machine. All that need the same machine go in one boot; when the machine
 * dies under a step, that step has failed and the rest goes on in another boot.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cacheRoot, lock } from "../../fixtures/cache.ts";
import { guest } from "../../fixtures/guests.ts";
import type { Series } from "../../fixtures/kernels/kernels.ts";
import { bochs, CONSOLE } from "./bochs.ts";
import type { ChannelEvent } from "./channel.ts";
import { archive, compressedPart, type LabFile, makeIso } from "./image.ts";
import { type Ingredient, LARGE, prepare, type Workshop, workshop } from "./ingredients.ts";
import { APPEND, CRASH, type Ending, runMachine } from "./machine.ts";
import { type Hardware, LIBRARY, type Step, type StepResult } from "./steps.ts";

const ROOT = join(import.meta.dir, "../..");

export interface LabOptions {
  /** The machine of steps that do not ask for another. */
  readonly hardware: Hardware;
  /** Prints what the machine says as it says it. */
  readonly verbose: boolean;
  readonly print: (line: string) => void;
}

export interface Outcome {
  readonly name: string;
  readonly verdict: "ok" | "failed" | "skipped";
  /** Why not ok. */
  readonly reasons: readonly string[];
  /** Seconds of real time. */
  readonly seconds: number;
  readonly result: StepResult | undefined;
}

/** Kernel warnings that say nothing about hvi. */
const HARMLESS =
  /loading out-of-tree module taints kernel|module verification failed|perf: interrupt took too long|clocksource|sched: RT throttling/;

function judge(step: Step, result: StepResult): string[] {
  const reasons: string[] = [];
  if (result.code !== 0) reasons.push(`exit code ${result.code}`);
  const warnings = result.kmsg.filter((l) => !HARMLESS.test(l) && !step.allow?.test(l));
  for (const line of warnings) reasons.push(`kernel: ${line}`);
  return [...reasons, ...(step.judge?.(result) ?? [])];
}

/** What is being collected about the step that runs. */
interface Running {
  readonly step: Step;
  readonly started: number;
  readonly output: string[];
  readonly kmsg: string[];
  readonly files: Map<string, string>;
}

const resultOf = (r: Running, code: number, seconds: number): StepResult => ({
  code,
  seconds,
  output: r.output,
  kmsg: r.kmsg,
  files: r.files,
});

function linesOf(path: string): string[] {
  try {
    return readFileSync(path, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => line.trimEnd());
  } catch {
    return [];
  }
}

/** The end of the console: from shortly before the crash on, or its last lines. */
function consoleEnd(path: string): string[] {
  const lines = linesOf(path);
  const crash = lines.findIndex((line) => CRASH.test(line));
  return crash < 0 ? lines.slice(-20) : lines.slice(Math.max(0, crash - 8), crash + 120);
}

/** Files that every boot has: the first process, the tools, the steps. */
async function basics(steps: readonly Step[], busybox: string): Promise<LabFile[]> {
  return [
    { path: "init", from: join(import.meta.dir, "init.sh") },
    { path: "bin/busybox", from: busybox },
    { path: "lab/lib.sh", text: LIBRARY },
    ...steps.map((step, i) => ({
      path: `lab/steps/${String(i).padStart(3, "0")}-${step.name}`,
      text: `. /lab/lib.sh\n${step.script}\n`,
    })),
  ];
}

/** One boot with `steps`; the outcomes of those that it came to. */
async function boot(
  o: LabOptions,
  h: Hardware,
  w: Workshop,
  steps: readonly Step[],
  made: ReadonlyMap<Ingredient, LabFile[]>,
  report: (outcome: Outcome) => void,
): Promise<number> {
  const dir = join(w.dir, "run");
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir, { recursive: true });
  const needs = new Set(steps.flatMap((s) => s.needs));
  const small: LabFile[] = await basics(steps, join(cacheRoot(), "busybox/busybox"));
  const large: LabFile[] = [];
  for (const name of needs) (LARGE.has(name) ? large : small).push(...(made.get(name) ?? []));
  writeFileSync(join(dir, "steps.cpio"), archive(small));
  const parts = [join(dir, "steps.cpio")];
  // The kernel takes what follows a compressed part for more of it, so that one is the last.
  if (large.length > 0) parts.push(await compressedPart(join(w.dir, "large.cpio.lz4"), large));
  const iso = join(dir, "lab.iso");
  const append = [APPEND, h.cpus === 1 ? "nosmp" : "", h.append ?? ""].join(" ").trim();
  await makeIso({ iso, kernel: w.kernel.vmlinuz, append, parts });

  let done = 0;
  let running: Running | undefined;
  const started = Date.now();
  const onEvent = (event: ChannelEvent): void => {
    const step = steps[done];
    switch (event.kind) {
      case "boot":
        o.print(
          `# Linux ${w.kernel.release} (${h.model}, ${h.cpus} CPU${h.cpus === 1 ? "" : "s"}) is up after ${((Date.now() - started) / 1000).toFixed(1)} s (${event.seconds} s of its own)`,
        );
        break;
      case "begin":
        if (step) running = { step, started: Date.now(), output: [], kmsg: [], files: new Map() };
        break;
      case "line":
        running?.output.push(event.text);
        if (o.verbose) o.print(`  | ${event.text}`);
        break;
      case "garbled":
        running?.output.push(`(garbled) ${event.text}`);
        break;
      case "kmsg":
        running?.kmsg.push(event.text);
        break;
      case "file":
        running?.files.set(event.name, new TextDecoder().decode(event.data));
        break;
      case "end": {
        if (!running) break;
        const result = resultOf(running, event.code, event.seconds);
        const reasons = judge(running.step, result);
        const seconds = (Date.now() - running.started) / 1000;
        const verdict = reasons.length === 0 ? "ok" : "failed";
        report({ name: running.step.name, verdict, reasons, seconds, result });
        running = undefined;
        done++;
        break;
      }
    }
  };
  const onConsole = (line: string): void => {
    if (o.verbose && line !== "") o.print(`  > ${line}`);
  };
  const silence = 90;
  const total = 90 + steps.reduce((sum, s) => sum + s.limit, 0);
  const { model, cpus, without, firmware } = h;
  const machine = { iso, dir, model, cpus, without, firmware, memory: 1536 };
  const overdue = (): string | undefined =>
    running && Date.now() - running.started > running.step.limit * 1000
      ? `${running.step.name}: not done after ${running.step.limit} s`
      : undefined;
  const ending: Ending = await runMachine(
    await bochs(),
    machine,
    { silence, total, overdue, mayCrash: () => running?.step.crashes === true },
    onEvent,
    onConsole,
  );
  if (ending.kind === "off" && done === steps.length) return done;

  const last: string[] = [`the machine ended: ${ending.kind}: ${ending.reason}`];
  const step = steps[done];
  last.push(...consoleEnd(join(dir, CONSOLE)).map((l) => `console: ${l}`));
  if (ending.kind === "exit")
    last.push(
      ...linesOf(join(dir, "bochs.log"))
        .slice(-12)
        .map((l) => `bochs: ${l}`),
    );
  if (step) {
    const at: Running = running ?? {
      step,
      started: Date.now(),
      output: [],
      kmsg: [],
      files: new Map(),
    };
    const seconds = (Date.now() - at.started) / 1000;
    report({
      name: step.name,
      verdict: "failed",
      reasons: last,
      seconds,
      result: resultOf(at, -1, seconds),
    });
  }
  return done + 1;
}

/** Waits until no other run of this work tree is under way: they share folders, and the CPUs. */
export function labLock(): Promise<() => void> {
  mkdirSync(join(ROOT, "build/lab"), { recursive: true });
  return lock(join(ROOT, "build/lab/lock"));
}

/** Builds the module for a kernel, which takes no machine. */
export async function moduleBuilds(series: Series): Promise<Outcome> {
  const started = Date.now();
  const got = await prepare(await workshop(series), "module");
  const base = {
    name: `build.${series}`,
    seconds: (Date.now() - started) / 1000,
    result: undefined,
  };
  if ("files" in got) return { ...base, verdict: "ok", reasons: [] };
  if ("missing" in got) return { ...base, verdict: "skipped", reasons: [got.missing] };
  return { ...base, verdict: "failed", reasons: [got.broken] };
}

/** Runs `steps`, telling each outcome as it is known. */
export async function runLab(
  o: LabOptions,
  steps: readonly Step[],
  report: (outcome: Outcome) => void,
): Promise<void> {
  const machines = new Map<string, { hardware: Hardware; steps: Step[] }>();
  for (const step of steps) {
    const hardware = { ...o.hardware, ...step.machine };
    const key = JSON.stringify(hardware);
    const machine = machines.get(key) ?? { hardware, steps: [] };
    machine.steps.push(step);
    machines.set(key, machine);
  }
  for (const m of machines.values()) await runMachineSteps(o, m.hardware, m.steps, report);
}

/** Runs steps of one machine. */
async function runMachineSteps(
  o: LabOptions,
  h: Hardware,
  steps: readonly Step[],
  report: (outcome: Outcome) => void,
): Promise<void> {
  // Its busybox is the machine's too.
  await guest(h.series);
  const w = await workshop(h.series);
  const made = new Map<Ingredient, LabFile[]>();
  const not = new Map<Ingredient, { verdict: "skipped" | "failed"; reason: string }>();
  for (const name of new Set(steps.flatMap((s) => s.needs))) {
    const got = await prepare(w, name);
    if ("files" in got) made.set(name, got.files);
    else if ("missing" in got) not.set(name, { verdict: "skipped", reason: got.missing });
    else not.set(name, { verdict: "failed", reason: got.broken });
  }
  let rest: Step[] = [];
  for (const step of steps) {
    const lack = step.needs.map((n) => not.get(n)).filter((n) => n !== undefined);
    const [first] = lack;
    if (first === undefined) rest.push(step);
    else {
      const reasons = lack.map((l) => l.reason);
      report({ name: step.name, verdict: first.verdict, reasons, seconds: 0, result: undefined });
    }
  }
  while (rest.length > 0) rest = rest.slice(await boot(o, h, w, rest, made, report));
}
