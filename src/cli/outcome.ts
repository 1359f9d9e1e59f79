// SPDX-License-Identifier: MIT
import { writeAll } from "../machine/console.ts";
import type { Machine, RunResult } from "../machine/machine.ts";
import { EXIT_FAILURE, EXIT_GUEST_DIED, EXIT_OK, EXIT_TIMEOUT, log } from "./output.ts";

const STDERR = 2;

/** What a run cost, on stderr. */
export function statistics(machine: Machine, ms: number): void {
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
export function conclude(result: RunResult, timeout: number | undefined): number {
  switch (result.kind) {
    case "power-off":
    case "paused":
      return EXIT_OK;
    case "reset":
      log.info("the guest asked for a reset");
      return EXIT_OK;
    case "debug-exit":
      return result.code;
    case "died":
      log.error(`guest dead: ${result.why}`);
      writeAll(STDERR, new TextEncoder().encode(`${result.dump}\n`));
      return EXIT_GUEST_DIED;
    case "stopped":
      if (result.why === "until") return EXIT_OK;
      if (result.why === "timeout") {
        log.error(`timeout after ${timeout} s`);
        return EXIT_TIMEOUT;
      }
      log.info(result.why === "escape" ? "left by Ctrl-]" : `stopped by ${result.why}`);
      return EXIT_FAILURE;
  }
}
