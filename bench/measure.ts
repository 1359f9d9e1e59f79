// SPDX-License-Identifier: MIT
/** What the benchmarks of memory and decoding share: timing, peers in C, the table. */
import { dlopen } from "bun:ffi";
import { heapStats } from "bun:jsc";
import { mkdirSync } from "node:fs";
import { join } from "node:path";

const REPEATS = 7;
/** Short runs are repeated for this long: some fit between two turns of other processes. */
const REPEAT_NS = 8e8;

/**
 * Nanoseconds an operation: the best of several runs, which other work on the
 * machine disturbed least. `body` does `rounds` operations and answers a
 * checksum; 0 and NaN mean that they failed.
 */
export function measure(rounds: number, body: (rounds: number) => number): number {
  let best = Number.POSITIVE_INFINITY;
  const began = Bun.nanoseconds();
  for (let i = 0; i < REPEATS || Bun.nanoseconds() - began < REPEAT_NS; i++) {
    const start = Bun.nanoseconds();
    if (!body(rounds)) throw new Error("an operation failed");
    best = Math.min(best, (Bun.nanoseconds() - start) / rounds);
  }
  return best;
}

/** Bytes that the heap grows by while `body`, which has run before, runs once more. */
export function growth(body: () => void): number {
  const size = (): number => {
    Bun.gc(true);
    return heapStats().heapSize;
  };
  body();
  // The first look at the heap leaves something there itself.
  size();
  const before = size();
  body();
  return size() - before;
}

/** Builds and loads bench/peers/peers.c. */
export function peers() {
  const root = join(import.meta.dir, "..");
  const out = join(root, "build/bench-peers.so");
  mkdirSync(join(root, "build"), { recursive: true });
  const gcc = Bun.spawnSync(
    ["gcc", "-O2", "-shared", "-fPIC", "-o", out, join(root, "bench/peers/peers.c"), "-lZydis"],
    { stderr: "inherit" },
  );
  if (gcc.exitCode !== 0) throw new Error("the peers in C do not build");
  return dlopen(out, {
    peer_translate: { args: ["ptr", "u64", "i64", "u32", "u32"], returns: "u32" },
    peer_read: { args: ["ptr", "u64", "i64", "u32", "u32"], returns: "u32" },
    peer_decode: { args: ["ptr", "ptr", "u32", "u32"], returns: "u32" },
  }).symbols;
}

export interface Row {
  readonly name: string;
  /** Nanoseconds. */
  readonly ns: number;
  /** The most it may take. */
  readonly bound?: number;
  readonly peer?: { readonly name: string; readonly ns: number };
}

/** Nanoseconds for people, in a column. */
function time(ns: number): string {
  return ns < 1e6 ? `${ns.toFixed(1).padStart(8)} ns` : `${(ns / 1e6).toFixed(1).padStart(8)} ms`;
}

/** Prints the rows, as JSON with --json. The exit code is 1 when a bound was missed. */
export function report(bench: string, rows: readonly Row[]): void {
  const round = (x: number): number => Math.round(x * 10) / 10;
  if (process.argv.includes("--json")) {
    const shown = rows.map((r) => ({
      name: r.name,
      ns: round(r.ns),
      bound: r.bound,
      peer: r.peer && { name: r.peer.name, ns: round(r.peer.ns), ratio: round(r.ns / r.peer.ns) },
    }));
    console.log(JSON.stringify({ bench, unit: "ns", rows: shown }));
  } else {
    for (const r of rows) {
      const bound = r.bound === undefined ? "" : ` (at most ${time(r.bound).trim()})`;
      const peer = r.peer
        ? `; ${r.peer.name} ${time(r.peer.ns).trim()}, ratio ${(r.ns / r.peer.ns).toPrecision(2)}`
        : "";
      console.log(`${time(r.ns)}  ${r.name}${bound}${peer}`);
    }
  }
  if (rows.some((r) => r.bound !== undefined && r.ns > r.bound)) process.exitCode = 1;
}
