// SPDX-License-Identifier: MIT
import { closeSync } from "node:fs";
import { basename } from "node:path";
import type { CAC } from "cac";
import { type BackendChoice, BackendError } from "../bridge/index.ts";
import { ControlServer } from "../control/server.ts";
import type { Engine } from "../engine.ts";
import { InputError } from "../errors.ts";
import { Console } from "../machine/console.ts";
import { loadImage } from "../machine/load/index.ts";
import { Machine, type MachineOptions } from "../machine/machine.ts";
import { openSnapshot, restoreMachine, saveSnapshot } from "../machine/snapshot/index.ts";
import { parseChoice, parseCount, parseMemory, parsePattern, parseSeconds } from "./args.ts";
import { checkOutputFolder, checkReplaceable, openOutput, readInput } from "./files.ts";
import { serveInspect } from "./inspect.ts";
import { introspect, PROTECTION_NAMES, parseProtect } from "./introspection.ts";
import { conclude, statistics } from "./outcome.ts";
import { complain, EXIT_FAILURE, EXIT_OK, log } from "./output.ts";
import { attachStdin } from "./terminal.ts";
import { vtxFacts, vtxFinding } from "./vtx.ts";

const MAX_CPUS = 32;
const STDOUT = 1;
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Options as cac gives them: what looks like a number is one. */
interface RunFlags {
  kernel?: string | number;
  initrd?: string | number;
  append?: string | number;
  memory?: string | number;
  cpus?: string | number;
  backend: string;
  protect: string;
  alerts?: string | number;
  console: string | number;
  until?: string | number;
  timeout?: string | number;
  snapshotAt?: string | number;
  snapshot?: string | number;
  restore?: string | number;
  verbose?: boolean;
}

export function registerRun(cli: CAC): void {
  cli
    .command("run", "Run a guest under introspection")
    .usage("run --kernel FILE [options]\n  $ hvi run --restore FILE [options]")
    .option("--kernel <file>", "bzImage, vmlinux or Multiboot image")
    .option("--initrd <file>", "initial RAM disk (for Multiboot: a module)")
    .option("--append <text>", "command line of the guest")
    .option("--memory <size>", "guest memory, e.g. 512M or 2G (default: 256M)")
    .option("--cpus <n>", `virtual CPUs, 1 to ${MAX_CPUS} (default: 1)`)
    .option("--backend <name>", "auto, vmx (VT-x) or soft (software vCPU)", { default: "auto" })
    .option("--protect <list>", `protections: all, none, or some of ${PROTECTION_NAMES}`, {
      default: "all",
    })
    .option("--alerts <file>", "write alerts as JSON lines")
    .option("--console <target>", "stdio, or a file for the guest's output", { default: "stdio" })
    .option("--until <regex>", "end with success when this appears on the console")
    .option("--timeout <seconds>", "end with exit code 124 after this much real time")
    .option("--snapshot-at <regex>", "take a snapshot when this appears on the console, and end")
    .option("--snapshot <file>", "where the snapshot goes")
    .option("--restore <file>", "go on from a snapshot")
    .option("--verbose", "tell how the guest was loaded, and statistics at the end")
    .example('  hvi run --kernel vmlinuz --initrd initrd.img --append "console=ttyS0"')
    .example(
      "  hvi run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --alerts a.jsonl",
    )
    .example("  hvi run --kernel test.flat --timeout 30")
    .example(
      "  hvi run --kernel vmlinuz --initrd i.img --append console=ttyS0 --snapshot-at '# $' --snapshot up.hvi",
    )
    .example("  hvi run --restore up.hvi --until 'done'")
    .example("")
    .example(
      "Exit codes: 0 power-off, reset or --until seen; 124 timeout; 3 guest dead; 2 bad arguments or files; 1 otherwise.",
    )
    .example("On a terminal, Ctrl-] leaves the guest.")
    .action((flags: RunFlags) => run(flags));
}

/** An option's name as it is typed. */
const kebab = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

const text = (value: string | number | undefined) =>
  value === undefined ? undefined : String(value);

/** What was asked for, checked; nothing is written or started before that. */
function parse(flags: RunFlags) {
  for (const [name, value] of Object.entries(flags))
    if (Array.isArray(value) && name !== "--")
      throw new InputError(`--${kebab(name)} is given ${value.length} times`, "give it once");
  const given = (name: keyof RunFlags) => flags[name] !== undefined;
  if (given("kernel") === given("restore"))
    throw new InputError(
      given("kernel") ? "--kernel and --restore exclude each other" : "nothing to run",
      "give --kernel FILE or --restore FILE; see hvi run --help",
    );
  for (const name of ["initrd", "append", "memory", "cpus"] as const)
    if (given("restore") && given(name))
      throw new InputError(
        `--${name} does not go with --restore`,
        "leave it out: the snapshot tells",
      );
  if (given("snapshotAt") !== given("snapshot"))
    throw new InputError("--snapshot-at and --snapshot go together", "give both");
  const snapshot = text(flags.snapshot);
  if (snapshot !== undefined) checkReplaceable(snapshot, "snapshot");
  const alerts = text(flags.alerts);
  if (alerts !== undefined) checkOutputFolder(alerts, "alerts");
  const consoleTarget = String(flags.console);
  if (consoleTarget !== "stdio") checkOutputFolder(consoleTarget, "console");
  const until = text(flags.until);
  const snapshotAt = text(flags.snapshotAt);
  const timeout = text(flags.timeout);
  return {
    kernel: text(flags.kernel),
    initrd: text(flags.initrd),
    append: text(flags.append) ?? "",
    memory: parseMemory(text(flags.memory) ?? "256M"),
    cpus: parseCount("cpus", text(flags.cpus) ?? "1", 1, MAX_CPUS),
    backend: parseChoice("backend", flags.backend, [
      "auto",
      "vmx",
      "soft",
    ] as const) as BackendChoice,
    protections: parseProtect(String(flags.protect)),
    alerts,
    consoleTarget,
    until: until === undefined ? undefined : parsePattern("until", until),
    timeout: timeout === undefined ? undefined : parseSeconds("timeout", timeout),
    snapshot,
    snapshotAt: snapshotAt === undefined ? undefined : parsePattern("snapshot-at", snapshotAt),
    restore: text(flags.restore),
    verbose: flags.verbose === true,
  };
}

type RunOptions = ReturnType<typeof parse>;

/** A machine ready to run: from a kernel, or from a snapshot. `open` gives the options once the input is known good. */
async function build(
  o: RunOptions,
  open: () => Omit<MachineOptions, "memory" | "cpus">,
): Promise<Machine> {
  if (o.restore !== undefined) {
    const snapshot = openSnapshot(o.restore);
    try {
      return restoreMachine(snapshot, open());
    } finally {
      snapshot.close();
    }
  }
  const kernel = o.kernel as string;
  const image = await loadImage({
    kernel: readInput(kernel, "kernel"),
    kernelName: basename(kernel),
    initrd: o.initrd === undefined ? undefined : readInput(o.initrd, "initrd"),
    initrdName: o.initrd === undefined ? "" : basename(o.initrd),
    append: o.append,
    memory: o.memory,
    cpus: o.cpus,
    random: Math.random,
  });
  if (o.verbose) for (const note of image.notes) log.info(note);
  const machine = Machine.create({ ...open(), memory: o.memory, cpus: o.cpus });
  machine.load(image);
  return machine;
}

/** The control socket; undefined, with a warning, where it cannot be made. */
function serve(machine: Machine, engine: Engine | undefined): ControlServer | undefined {
  try {
    const server = new ControlServer();
    serveInspect(server, machine, engine);
    return server;
  } catch (error) {
    log.warn(`hvi inspect --live will not work: ${(error as Error).message}`);
    return undefined;
  }
}

/** Says what stands in the way of VT-x, where it was asked for or could have been taken. */
function explain(error: unknown): never {
  const found = error instanceof BackendError ? vtxFinding(vtxFacts()) : undefined;
  if (found === undefined || found.state === "ready") throw error;
  throw new BackendError(`VT-x cannot be used: ${found.what}`, found.hint);
}

async function run(flags: RunFlags): Promise<number> {
  const o = parse(flags);
  const started = performance.now();
  const stdio = o.consoleTarget === "stdio";
  const building = build(o, () => ({
    backend: o.backend,
    console: new Console(stdio ? STDOUT : openOutput(o.consoleTarget, "console")),
    interactive: stdio && process.stdin.isTTY === true,
    inputOpen: stdio,
    epoch: Date.now() / 1000,
  }));
  const machine = await (o.backend === "vmx" ? building.catch(explain) : building);
  if (o.verbose) {
    const { backend } = machine.vm.info;
    if (o.backend === "auto" && backend === "soft") {
      const found = vtxFinding(vtxFacts());
      log.info(`the software vCPU runs it, not VT-x: ${found.what} -> ${found.hint}`);
    }
    log.info(`ready to run on ${backend} after ${(performance.now() - started).toFixed(1)} ms`);
  }
  const introspection =
    o.protections.length > 0 || o.alerts !== undefined
      ? introspect(machine, o.protections, o.alerts)
      : undefined;
  const control = serve(machine, introspection?.engine);
  const { console } = machine;
  const stop = (why: string) => machine.stop({ kind: "stopped", why });
  console.onClosed = () => stop("the console's reader going away");
  if (o.until !== undefined) console.watch(o.until, () => stop("until"));
  if (o.snapshotAt !== undefined) console.watch(o.snapshotAt, () => machine.pause());
  const timer =
    o.timeout === undefined ? undefined : setTimeout(() => stop("timeout"), o.timeout * 1000);
  const onSignal = (signal: NodeJS.Signals) => stop(signal);
  for (const signal of SIGNALS) process.on(signal, onSignal);
  const detach = stdio ? attachStdin(machine, () => stop("escape")) : () => {};
  try {
    const result = await machine.run();
    if (result.kind === "died") introspection?.died(result.why);
    // Before a snapshot is taken: none of our hooks belong in it.
    introspection?.close();
    console.flush();
    if (result.kind === "paused" && o.snapshot !== undefined) saveSnapshot(machine, o.snapshot);
    if (o.verbose) statistics(machine, performance.now() - started);
    const code = conclude(result, o.timeout);
    if (o.snapshot === undefined || result.kind === "paused" || code !== EXIT_OK) return code;
    complain("the guest ended before --snapshot-at was seen: no snapshot", "look at its console");
    return EXIT_FAILURE;
  } finally {
    introspection?.close();
    clearTimeout(timer);
    control?.close();
    detach();
    for (const signal of SIGNALS) process.off(signal, onSignal);
    if (!stdio) closeSync(console.fd);
    machine.close();
  }
}
