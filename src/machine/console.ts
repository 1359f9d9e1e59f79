// SPDX-License-Identifier: MIT
import { writeSync } from "node:fs";
import { OutputError } from "../errors.ts";

const FLUSH_BYTES = 4096;
/** How much of the latest output a pattern is looked for in. */
const TAIL = 4096;

/** A pattern waited for in the console's output. */
interface Watch {
  pattern: RegExp;
  seen: () => void;
}

/**
 * The guest's console: what it prints goes to a file descriptor, unchanged.
 * Writes are synchronous, so that nothing is lost however the process ends.
 */
export class Console {
  readonly fd: number;
  readonly #buffer = new Uint8Array(FLUSH_BYTES);
  #length = 0;
  #tail = "";
  #fresh = false;
  readonly #watches: Watch[] = [];
  readonly #decoder = new TextDecoder("latin1");

  /** `fd` -1: output goes nowhere but to the patterns. */
  constructor(fd: number) {
    this.fd = fd;
  }

  /** Called once when nobody reads the output any more. */
  onClosed: () => void = () => {};
  #closed = false;

  /** Calls `seen` once, at a flush after the pattern stood in the output. */
  watch(pattern: RegExp, seen: () => void): void {
    this.#watches.push({ pattern, seen });
  }

  write(byte: number): void {
    this.#buffer[this.#length++] = byte;
    if (this.#length === FLUSH_BYTES || (byte === 10 && this.#watches.length > 0)) this.flush();
  }

  /** Passes on what is buffered and looks for the patterns. */
  flush(): void {
    if (this.#length === 0) return;
    const bytes = this.#buffer.subarray(0, this.#length);
    if (this.#watches.length > 0) {
      this.#tail = (this.#tail + this.#decoder.decode(bytes)).slice(-TAIL);
      this.#fresh = true;
    }
    this.#length = 0;
    if (this.fd >= 0 && !this.#closed) this.#send(bytes);
    if (this.#fresh) this.#look();
  }

  #send(bytes: Uint8Array): void {
    try {
      if (writeAll(this.fd, bytes)) return;
    } catch (error) {
      this.#closed = true;
      const why = (error as Error).message;
      throw new OutputError(`the console's output: ${why}`, "make room, or give another --console");
    }
    this.#closed = true;
    this.onClosed();
  }

  #look(): void {
    this.#fresh = false;
    for (let i = 0; i < this.#watches.length; ) {
      const { pattern, seen } = this.#watches[i];
      if (!pattern.test(this.#tail)) {
        i++;
        continue;
      }
      this.#watches.splice(i, 1);
      seen();
    }
  }
}

/** Writes everything, also to a descriptor that does not block. False when its reader is gone. */
export function writeAll(fd: number, bytes: Uint8Array): boolean {
  let done = 0;
  while (done < bytes.length) {
    try {
      done += writeSync(fd, bytes, done, bytes.length - done);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "EAGAIN") Bun.sleepSync(1);
      else if (code === "EPIPE") return false;
      else throw error;
    }
  }
  return true;
}
