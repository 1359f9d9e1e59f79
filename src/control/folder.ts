// SPDX-License-Identifier: MIT
import { chmodSync, lstatSync, mkdirSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * Where running machines listen: one socket each, named by process id, in a folder that only its
 * user can enter.
 */
export function controlFolder(): string {
  const uid = process.getuid?.() ?? 0;
  if (uid === 0) return "/run/hvi";
  const runtime = process.env.XDG_RUNTIME_DIR;
  return runtime === undefined ? join(tmpdir(), `hvi-${uid}`) : join(runtime, "hvi");
}

/**
 * Makes the folder.
 * @throws Error when it is somebody else's: its owner could read the guest then
 */
export function makeControlFolder(): string {
  const folder = controlFolder();
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const found = lstatSync(folder);
  if (!found.isDirectory() || found.uid !== process.getuid?.()) {
    throw new Error(`${folder} belongs to somebody else`);
  }
  chmodSync(folder, 0o700);
  return folder;
}

export function socketPath(pid: number): string {
  return join(controlFolder(), `${pid}.sock`);
}

/** Process ids of machines that listen, or did when they were killed. */
export function socketPids(): number[] {
  try {
    return readdirSync(controlFolder()).flatMap((name) => {
      const match = /^(\d+)\.sock$/.exec(name);
      return match === null ? [] : [Number(match[1])];
    });
  } catch {
    return [];
  }
}
