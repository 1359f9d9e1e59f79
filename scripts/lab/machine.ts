// SPDX-License-Identifier: MIT
/**
 * Runs a machine of the lab from start to power-off, reading its serial lines as they grow, and
 * ends it when it crashes, falls silent or takes too long.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import { CHANNEL, CONSOLE, type MachineOptions, machineCommand } from "./bochs.ts";
import { Channel, type ChannelEvent } from "./channel.ts";

/** What on the console means that the kernel is lost, or not to be trusted any more. */
export const CRASH =
  /Kernel panic|BUG:|Oops|general protection fault|unable to handle|double fault|Call Trace|soft lockup|hard LOCKUP/;

/** What a boot's kernel is told; design notes say why. */
export const APPEND =
  "console=ttyS0,115200 nokaslr tsc=reliable mitigations=off random.trust_cpu=on " +
  "no_timer_check lpj=1000000 loglevel=5 oops=panic";

export interface Limits {
  /** Seconds without a sign of life after which the machine counts as hung. */
  readonly silence: number;
  /** Seconds for the whole run. */
  readonly total: number;
  /** Whether a crash is what the step is about. */
  readonly mayCrash: () => boolean;
  /** Says why the machine is to be ended now, if it is. */
  readonly overdue: () => string | undefined;
}

export interface Ending {
  /** Why the run ended; "off" is the good one. */
  readonly kind: "off" | "crash" | "hang" | "timeout" | "exit";
  readonly reason: string;
  readonly seconds: number;
}

/** Reads what has been appended to a file since the last time. */
class Tail {
  private readonly fd: number;
  private at = 0;
  private readonly buffer = new Uint8Array(65536);
  private readonly decoder = new TextDecoder();

  constructor(path: string) {
    this.fd = openSync(path, "r");
  }
  read(): string {
    let text = "";
    for (;;) {
      const n = readSync(this.fd, this.buffer, 0, this.buffer.length, this.at);
      if (n === 0) return text;
      this.at += n;
      text += this.decoder.decode(this.buffer.subarray(0, n), { stream: true });
    }
  }
  close(): void {
    closeSync(this.fd);
  }
}

function quote(argv: readonly string[]): string {
  return argv.map((a) => `'${a.replaceAll("'", "'\\''")}'`).join(" ");
}

/** The processes below one, itself included. */
function family(pid: number): number[] {
  let children: number[] = [];
  try {
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
    children = text.trim().split(" ").filter(Boolean).map(Number);
  } catch {
    return [];
  }
  return [...children.flatMap(family), pid];
}

function kill(child: ChildProcess): void {
  if (child.pid === undefined || child.exitCode !== null) return;
  for (const pid of family(child.pid)) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has just ended by itself.
    }
  }
}

/** Runs the machine; each event of its channel goes to `onEvent`, the console's lines to `onConsole`. */
export async function runMachine(
  bochsDir: string,
  o: MachineOptions,
  limits: Limits,
  onEvent: (event: ChannelEvent) => void,
  onConsole: (line: string) => void,
): Promise<Ending> {
  const command = machineCommand(bochsDir, o);
  const child = spawn("script", ["-qefc", quote(command), "/dev/null"], {
    cwd: o.dir,
    // No terminal of ours: keys typed here are not for the machine.
    stdio: ["ignore", "ignore", "ignore"],
    env: {
      ...process.env,
      TERM: "vt100",
      LTDL_LIBRARY_PATH: join(bochsDir, "plugins"),
      BXSHARE: join(bochsDir, "share"),
    },
  });
  const started = Date.now();
  const seconds = (): number => (Date.now() - started) / 1000;
  let exited: string | undefined;
  child.on("error", (error) => {
    exited = `script does not run: ${error.message}`;
  });
  child.on("exit", (code) => {
    exited = `Bochs ended with exit code ${code}`;
  });
  const onSignal = (): void => {
    kill(child);
    process.exit(130);
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);

  const console = new Tail(join(o.dir, CONSOLE));
  const channelTail = new Tail(join(o.dir, CHANNEL));
  const channel = new Channel();
  let lastSign = Date.now();
  let rest = "";
  let done = false;
  let crash: { line: string; at: number } | undefined;
  const look = (): void => {
    const said = console.read();
    const sent = channelTail.read();
    if (said !== "" || sent !== "") lastSign = Date.now();
    const lines = (rest + said).split("\n");
    rest = lines.pop() ?? "";
    for (const raw of lines) {
      const line = raw.trimEnd();
      onConsole(line);
      if (CRASH.test(line) && !limits.mayCrash()) crash ??= { line, at: Date.now() };
    }
    for (const event of channel.push(sent)) {
      if (event.kind === "done") done = true;
      onEvent(event);
    }
  };
  const ending = (): Omit<Ending, "seconds"> | undefined => {
    // The rest of what a dying kernel has to say takes it a while.
    if (crash && (Date.now() - crash.at > 4000 || exited)) {
      return { kind: "crash", reason: crash.line };
    }
    if (exited !== undefined) {
      return done ? { kind: "off", reason: "powered off" } : { kind: "exit", reason: exited };
    }
    if (done && Date.now() - lastSign > 15_000) return { kind: "off", reason: "did not power off" };
    if ((Date.now() - lastSign) / 1000 > limits.silence) {
      return { kind: "hang", reason: `no sign of life for ${limits.silence} s` };
    }
    const late =
      limits.overdue() ??
      (seconds() > limits.total ? `not done after ${limits.total} s` : undefined);
    return late === undefined ? undefined : { kind: "timeout", reason: late };
  };
  try {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      const gone = exited;
      look();
      const end = gone === exited ? ending() : undefined;
      if (end) return { ...end, seconds: seconds() };
    }
  } finally {
    kill(child);
    console.close();
    channelTail.close();
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
}
