#!/usr/bin/env bun
// SPDX-License-Identifier: MIT
import { cac } from "cac";
import { BackendError, HviError } from "./bridge/index.ts";
import { registerDoctor } from "./cli/doctor.ts";
import { registerInspect } from "./cli/inspect.ts";
import { complain, EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK, log } from "./cli/output.ts";
import { registerRun } from "./cli/run.ts";
import { printVersion, registerVersion } from "./cli/version.ts";
import { InputError, OutputError } from "./errors.ts";

/** One line a command; each registers itself with its options, help and action. */
const COMMANDS = [registerRun, registerInspect, registerDoctor, registerVersion];

/** Runs the command line; the exit code. */
async function main(argv: string[]): Promise<number> {
  const cli = cac("hvi");
  for (const register of COMMANDS) register(cli);
  cli.help();
  // cac's own --version calls Bun's version something else.
  cli.option("-v, --version", "Display version number");
  try {
    cli.parse(argv, { run: false });
    if (cli.options.help) return EXIT_OK;
    if (cli.matchedCommand === undefined) {
      const name = cli.args[0];
      if (cli.options.version) return printVersion();
      if (name === undefined) {
        cli.outputHelp();
        return EXIT_BAD_INPUT;
      }
      throw new InputError(`there is no command '${name}'`, "see hvi --help");
    }
    return (await cli.runMatchedCommand()) ?? EXIT_OK;
  } catch (error) {
    return failure(error, cli.matchedCommandName);
  }
}

function failure(error: unknown, command: string | undefined): number {
  if (error instanceof InputError) {
    complain(error.message, error.hint);
    return EXIT_BAD_INPUT;
  }
  if (error instanceof BackendError) {
    complain(error.message, error.hint);
    return EXIT_FAILURE;
  }
  if (error instanceof OutputError) {
    complain(error.message, error.hint);
    return EXIT_FAILURE;
  }
  if (error instanceof HviError) {
    complain(error.message, "see hvi doctor");
    return EXIT_FAILURE;
  }
  // cac reports what is wrong with the arguments by this error.
  if (error instanceof Error && error.name === "CACError") {
    complain(error.message, `see hvi ${command === undefined ? "" : `${command} `}--help`);
    return EXIT_BAD_INPUT;
  }
  log.error(error);
  return EXIT_FAILURE;
}

process.exit(await main(process.argv));
