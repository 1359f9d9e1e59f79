// SPDX-License-Identifier: MIT
/**
 * Something given by the user cannot be used: one line that says what, one
 * that says what to do next. The command line answers it with exit code 2.
 */
export class InputError extends Error {
  override name = "InputError";
  constructor(
    message: string,
    /** The next step for a person. */
    readonly hint: string,
  ) {
    super(message);
  }
}

/** Output that cannot be written any more, such as on a full disk: ends the run with exit code 1. */
export class OutputError extends Error {
  override name = "OutputError";
  constructor(
    message: string,
    /** The next step for a person. */
    readonly hint: string,
  ) {
    super(message);
  }
}
