import { closeSync, openSync, readFileSync, statSync } from "node:fs";
import { basename, dirname } from "node:path";
import { InputError } from "../machine/errors.ts";

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
    if (statSync(path).isDirectory()) throw Object.assign(new Error(), { code: "EISDIR" });
    return new Uint8Array(readFileSync(path));
  } catch (error) {
    throw new InputError(`--${option} ${path}: ${reason(error)}`, "check the path");
  }
}

/** Opens an existing file for reading. */
export function openInput(path: string, option: string): number {
  try {
    if (statSync(path).isDirectory()) throw Object.assign(new Error(), { code: "EISDIR" });
    return openSync(path, "r");
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
