// SPDX-License-Identifier: MIT
import { InputError } from "../errors.ts";

/* Values of command-line options. All throw InputError. */

const UNITS: Record<string, number> = { "": 1 << 20, K: 1 << 10, M: 1 << 20, G: 1 << 30 };
const MIN_MEMORY = 16 << 20;
/** What a timer of the runtime can wait for: 2^31 - 1 ms. */
const MAX_SECONDS = 2_147_483;
const MAX_MEMORY = 64 * 2 ** 30;

/** Memory size such as 256M, 2G or 512 (MiB); a multiple of 2 MiB. In bytes. */
export function parseMemory(text: string): number {
  const match = /^(\d+)([KMG]?)(?:i?B)?$/i.exec(text);
  const size = match === null ? Number.NaN : Number(match[1]) * UNITS[match[2].toUpperCase()];
  if (Number.isNaN(size))
    throw new InputError(`--memory ${text}: not a size`, "write it as 256M or 2G");
  if (size < MIN_MEMORY || size > MAX_MEMORY)
    throw new InputError(`--memory ${text}: out of range`, "give 16M to 64G");
  return Math.floor(size / 0x200000) * 0x200000;
}

/** A whole number in a range. */
export function parseCount(option: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < min || value > max)
    throw new InputError(
      `--${option} ${text}: not a number from ${min} to ${max}`,
      `give ${min} to ${max}`,
    );
  return value;
}

/** Seconds above zero, up to MAX_SECONDS, fractions allowed. */
export function parseSeconds(option: string, text: string): number {
  const value = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || value <= 0)
    throw new InputError(`--${option} ${text}: not a number of seconds`, "write it as 30 or 2.5");
  if (value > MAX_SECONDS)
    throw new InputError(
      `--${option} ${text}: more than ${MAX_SECONDS} seconds (24 days)`,
      "leave it out for no limit",
    );
  return value;
}

export function parsePattern(option: string, text: string): RegExp {
  try {
    return new RegExp(text, "m");
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new InputError(
      `--${option}: ${why}`,
      "give a JavaScript regular expression, e.g. 'login:'",
    );
  }
}

/** One of a set of words. */
export function parseChoice<T extends string>(
  option: string,
  text: string,
  choices: readonly T[],
): T {
  const found = choices.find((c) => c === text);
  if (found === undefined)
    throw new InputError(`--${option} ${text}: not known`, `choose one of ${choices.join(", ")}`);
  return found;
}
