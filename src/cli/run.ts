import { closeSync } from "node:fs";
import { basename } from "node:path";
import type { CAC } from "cac";
import { InputError } from "../machine/errors.ts";
import { Console } from "../machine/console.ts";
import { loadImage } from "../machine/load/index.ts";
import { Machine, type RunResult } from "../machine/machine.ts";
import { parseChoice, parseCount, parseMemory, parsePattern, parseSeconds } from "./args.ts";
import { openOutput, readInput } from "./files.ts";
import {
  EXIT_FAILURE,
  EXIT_GUEST_DIED,
  EXIT_OK,
  EXIT_TIMEOUT,
  log,
} from "./output.ts";
import { attachStdin } from "./terminal.ts";

const MAX_CPUS = 32;
const STDOUT = 1;

/** Options as cac gives them: strings, or undefined. */
interface RunFlags {
  kernel?: string;
  initrd?: string;
  append?: string;
  memory: string;
  cpus: string;
  backend: string;
  protect: string;
  alerts?: string;
  console: string;
  until?: string;
  timeout?: string;
  snapshotAt?: string;
  snapshot?: string;
  restore?: string;
  verbose?: boolean;
}

export function registerRun(cli: CAC): void {
  cli
    .command("run", "Run a guest under introspection")
    .usage("run --kernel FILE [options]\n  $ hvi run --restore FILE [options]")
    .option("--kernel <file>", "bzImage, vmlinux or Multiboot image")
    .option("--initrd <file>", "initial RAM disk (for Multiboot: a module)")
    .option("--append <text>", "command line of the guest")
    .option("--memory <size>", "guest memory, e.g. 512M or 2G", { default: "256M" })
    .option("--cpus <n>", `virtual CPUs, 1 to ${MAX_CPUS}`, { default: "1" })
    .option("--backend <name>", "auto, vmx (VT-x) or soft (software vCPU)", { default: "auto" })
    .option("--protect <list>", "protections, comma separated, or all, or none", { default: "none" })
    .option("--alerts <file>", "write alerts as JSON lines")
    .option("--console <target>", "stdio, or a file for the guest's output", { default: "stdio" })
    .option("--until <regex>", "end with success when this appears on the console")
    .option("--timeout <seconds>", "end with exit code 124 after this much real time")
    .option("--snapshot-at <regex>", "take a snapshot when this appears on the console, and end")
    .option("--snapshot <file>", "where the snapshot goes")
    .option("--restore <file>", "go on from a snapshot")
    .option("--verbose", "tell how the guest was loaded, and statistics at the end")
    .example('  hvi run --kernel vmlinuz --initrd initrd.img --append "console=ttyS0"')
    .example("  hvi run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --protect all --alerts a.jsonl")
    .example("  hvi run --kernel test.flat --timeout 30")
    .example("  hvi run --kernel vmlinuz --initrd i.img --snapshot-at 'login:' --snapshot booted.hvi")
    .example("  hvi run --restore booted.hvi --until '# $'")
    .action((flags: RunFlags) => run(flags));
}

async function run(flags: RunFlags): Promise<number> {
  if (flags.kernel === undefined)
    throw new InputError("nothing to run", "give --kernel FILE or --restore FILE; see hvi run --help");
  const memory = parseMemory(String(flags.memory));
  const cpus = parseCount("cpus", String(flags.cpus), 1, MAX_CPUS);
  const backend = parseChoice("backend", String(flags.backend), ["auto", "vmx", "soft"] as const);
  const until = flags.until === undefined ? undefined : parsePattern("until", String(flags.until));
  const timeout = flags.timeout === undefined ? undefined : parseSeconds("timeout", String(flags.timeout));
  const image = await loadImage({
    kernel: readInput(String(flags.kernel), "kernel"),
    kernelName: basename(String(flags.kernel)),
    initrd: flags.initrd === undefined ? undefined : readInput(String(flags.initrd), "initrd"),
    initrdName: flags.initrd === undefined ? "" : basename(String(flags.initrd)),
    append: flags.append === undefined ? "" : String(flags.append),
    memory,
    cpus,
    random: Math.random,
  });
  if (flags.verbose) for (const note of image.notes) log.info(note);

  const stdio = flags.console === "stdio";
  const fd = stdio ? STDOUT : openOutput(String(flags.console), "console");
  const console = new Console(fd);
  const started = performance.now();
  const machine = Machine.create({
    backend,
    memory,
    cpus,
    console,
    interactive: stdio && process.stdin.isTTY === true,
    inputOpen: stdio,
    epoch: Date.now() / 1000,
  });
  let reason = "";
  const stop = (why: string) => {
    reason = why;
    machine.stop({ kind: "stopped", why });
  };
  if (until !== undefined) console.watch(until, () => stop("until"));
  const timer = timeout === undefined ? undefined : setTimeout(() => stop("timeout"), timeout * 1000);
  const onSignal = (signal: NodeJS.Signals) => stop(signal);
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  process.on("SIGHUP", onSignal);
  const detach = stdio ? attachStdin(machine, () => stop("escape")) : () => {};
  let result: RunResult;
  try {
    machine.load(image);
    result = await machine.run();
  } finally {
    clearTimeout(timer);
    detach();
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
    process.off("SIGHUP", onSignal);
    console.flush();
    if (!stdio) closeSync(fd);
  }
  if (flags.verbose) statistics(machine, performance.now() - started);
  machine.close();
  return conclude(result, reason, timeout);
}

function statistics(machine: Machine, ms: number): void {
  let instructions = 0;
  let exits = 0;
  for (const vcpu of machine.vm.vcpus) {
    instructions += vcpu.instructions;
    exits += vcpu.exits;
  }
  log.info(
    `${(ms / 1000).toFixed(2)} s, guest ${machine.guestSeconds.toFixed(2)} s, ` +
      `${(instructions / 1e6).toFixed(1)} M instructions (${(instructions / ms / 1000).toFixed(1)} M/s), ${exits} exits`,
  );
}

/** Exit code of a finished run, with a line about it where it is not plain success. */
function conclude(result: RunResult, reason: string, timeout: number | undefined): number {
  switch (result.kind) {
    case "power-off":
      return EXIT_OK;
    case "reset":
      log.info("the guest asked for a reset");
      return EXIT_OK;
    case "debug-exit":
      return result.code;
    case "died":
      log.error(`guest dead: ${result.why}`);
      process.stderr.write(`${result.dump}\n`);
      return EXIT_GUEST_DIED;
    case "stopped":
      if (reason === "until") return EXIT_OK;
      if (reason === "timeout") {
        log.error(`timeout after ${timeout} s`);
        return EXIT_TIMEOUT;
      }
      log.info(reason === "escape" ? "left by Ctrl-]" : `stopped by ${reason}`);
      return EXIT_FAILURE;
  }
}
