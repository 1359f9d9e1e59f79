// SPDX-License-Identifier: MIT
import { closeSync, fsyncSync, openSync, writeSync } from "node:fs";
import type { Alert, AlertSink } from "./alert.ts";

/** One JSON object a line. A line is written whole before the next exit is handled. */
export class JsonLinesSink implements AlertSink {
  #fd: number;

  /** @throws the file system's error when `path` cannot be created. */
  constructor(path: string) {
    this.#fd = openSync(path, "w", 0o600);
  }

  write(alert: Alert): void {
    const line = Buffer.from(`${JSON.stringify(alert)}\n`);
    let done = 0;
    while (done < line.length) done += writeSync(this.#fd, line, done);
  }

  close(): void {
    if (this.#fd < 0) return;
    fsyncSync(this.#fd);
    closeSync(this.#fd);
    this.#fd = -1;
  }
}
