// SPDX-License-Identifier: MIT
import type { Machine } from "../machine/machine.ts";

/** Ctrl-] leaves the guest's console, as in telnet and virsh. */
export const ESCAPE_BYTE = 0x1d;

/** Connects standard input to the guest's serial line; returns what undoes it. */
export function attachStdin(machine: Machine, quit: () => void): () => void {
  const { stdin } = process;
  const raw = stdin.isTTY === true;
  const restore = () => {
    if (raw) stdin.setRawMode(false);
  };
  const onData = (chunk: Buffer) => {
    const bytes = new Uint8Array(chunk);
    const left = raw ? bytes.indexOf(ESCAPE_BYTE) : -1;
    machine.input(left < 0 ? bytes : bytes.subarray(0, left));
    if (left >= 0) quit();
  };
  const onEnd = () => machine.inputEnded();
  if (raw) stdin.setRawMode(true);
  // The terminal must be sane again however the process ends.
  process.on("exit", restore);
  stdin.on("data", onData);
  stdin.on("end", onEnd);
  stdin.on("error", onEnd);
  return () => {
    stdin.off("data", onData);
    stdin.off("end", onEnd);
    stdin.off("error", onEnd);
    stdin.pause();
    restore();
    process.off("exit", restore);
  };
}
