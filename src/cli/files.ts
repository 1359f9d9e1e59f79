// SPDX-License-Identifier: MIT
import { closeSync, openSync, readFileSync, statSync } from "node:fs";
import { basename, dirname } from "node:path";
import { InputError } from "../errors.ts";

function reason(error: unknown): string {
  switch ((error as NodeJS.ErrnoException).code) {
    case "ENOENT":
      return "no such file";
    case "EACCES":
      return "permission denied";
    case "EISDIR":
      return "is a directory";
    default:
      return error instanceof Error ? error.message : String(error);
  }
}

/** A whole input file; throws InputError naming the option that it was given with. */
export function readInput(path: string, option: string): Uint8Array {
  try {
    const stat = statSync(path);
    if (stat.isDirectory()) throw Object.assign(new Error(), { code: "EISDIR" });
    // A device such as /dev/zero never ends.
    if (!stat.isFile() && !stat.isFIFO()) throw new Error("not a file");
    return new Uint8Array(readFileSync(path));
  } catch (error) {
    throw new InputError(`--${option} ${path}: ${reason(error)}`, "check the path");
  }
}

/** Opens a file for output, emptying it. */
export function openOutput(path: string, option: string): number {
  try {
    return openSync(path, "w");
  } catch (error) {
    throw new InputError(
      `--${option} ${path}: ${reason(error)}`,
      "give a path that can be written",
    );
  }
}

/** Makes sure that a file can be put in the place of `path` later, without creating it. */
export function checkReplaceable(path: string, option: string): void {
  checkOutputFolder(path, option);
  const stat = statSync(path, { throwIfNoEntry: false });
  // A device or folder of that name would be replaced, or refused when it is too late.
  if (stat !== undefined && !stat.isFile())
    throw new InputError(
      `--${option} ${path}: not a file`,
      "give the path of a file, or a new one",
    );
}

/** Makes sure that a file can be created later, without creating it. */
export function checkOutputFolder(path: string, option: string): void {
  const folder = dirname(path);
  try {
    if (!statSync(folder).isDirectory())
      throw Object.assign(new Error("not a directory"), { code: "ENOTDIR" });
    closeSync(openSync(folder, "r"));
  } catch (error) {
    throw new InputError(
      `--${option} ${basename(path)}: the folder ${folder}: ${reason(error)}`,
      "give a path in a folder that exists",
    );
  }
}
