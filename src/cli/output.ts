// SPDX-License-Identifier: MIT
import { createConsola } from "consola";

/** hvi's own messages. They go to stderr: stdout belongs to the guest's console. */
export const log = createConsola({ stdout: process.stderr, stderr: process.stderr });

/** Exit codes of the command line. */
export const EXIT_OK = 0;
export const EXIT_FAILURE = 1;
export const EXIT_BAD_INPUT = 2;
export const EXIT_GUEST_DIED = 3;
export const EXIT_TIMEOUT = 124;

/** One line: what is wrong, and what to do next. */
export function complain(message: string, hint: string): void {
  log.error(`${message} -> ${hint}`);
}
