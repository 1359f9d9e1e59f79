// SPDX-License-Identifier: MIT
import type { AlertSink } from "../alerts/alert.ts";
import { JsonLinesSink } from "../alerts/jsonl.ts";
import { AlertQueue } from "../alerts/queue.ts";
import { TerminalSink } from "../alerts/terminal.ts";
import { Engine } from "../engine.ts";
import { InputError, OutputError } from "../errors.ts";
import { writeAll } from "../machine/console.ts";
import type { Machine } from "../machine/machine.ts";
import { PhysicalMemory } from "../memory/index.ts";
import { protections, selectProtections } from "../protect/index.ts";
import type { Protection } from "../protect/protection.ts";

const STDERR = 2;

/** What --protect takes, for the help. */
export const PROTECTION_NAMES = protections.map((p) => p.name).join(", ");

/** Value of --protect. Throws InputError. */
export function parseProtect(list: string): Protection[] {
  try {
    return selectProtections(list);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const [what, known] = error.message.split("; there are: ");
    throw new InputError(`--protect: ${what}`, `choose from ${known}`);
  }
}

export interface IntrospectedMachine {
  readonly engine: Engine;
  readonly alerts: AlertQueue;
  /** The guest cannot go on. */
  died(why: string): void;
  /** Takes all hooks out and sends what waits. Harmless twice. */
  close(): void;
}

/**
 * Puts the engine in front of the machine's devices. Alerts go to stderr and,
 * with `path`, to a file as JSON lines. Throws InputError when that cannot be
 * made.
 */
export function introspect(
  machine: Machine,
  chosen: readonly Protection[],
  path: string | undefined,
): IntrospectedMachine {
  const sinks: AlertSink[] = [];
  if (path !== undefined) {
    try {
      sinks.push(new JsonLinesSink(path));
    } catch (error) {
      throw new InputError(
        `--alerts ${path}: ${(error as Error).message}`,
        "give a path that can be written",
      );
    }
  }
  const encoder = new TextEncoder();
  // The guest's console and the alerts may share a terminal: its lines first.
  const line = (text: string) => {
    machine.console.flush();
    writeAll(STDERR, encoder.encode(`${text}\n`));
  };
  sinks.push(new TerminalSink(line, process.stderr.isTTY === true));
  const alerts = new AlertQueue(sinks);
  const engine = new Engine({
    vm: machine.vm,
    memory: new PhysicalMemory(machine.vm.ram),
    alerts,
    protections: chosen,
  });
  engine.attach(machine.vm.vcpus[0]);
  machine.observer = engine;
  // A guest whose alerts are lost must not go on as if it were watched.
  const sending = (send: () => void) => {
    try {
      send();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
      const where = path === undefined ? "alerts" : `--alerts ${path}`;
      throw new OutputError(
        `${where}: ${(error as Error).message}`,
        "make room, or give another path",
      );
    }
  };
  machine.onSlice = () => sending(() => alerts.drain());
  return {
    engine,
    alerts,
    died(why) {
      const { index, tsc } = machine.vm.vcpus[0];
      const message = `the guest died: ${why}`;
      alerts.push({ kind: "event", type: "guest-died", tsc, vcpu: index, message });
    },
    close() {
      machine.observer = undefined;
      engine.stop();
      sending(() => alerts.close());
    },
  };
}
