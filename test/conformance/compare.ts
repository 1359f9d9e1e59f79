// SPDX-License-Identifier: MIT
/**
 * Compares the transcripts of two backends, line by line:
 *   bun test/conformance/compare.ts build/conformance/soft.transcript build/conformance/vmx.transcript
 * What a backend may leave unknown (0 in `size` of an EPT violation and in
 * `len`), whether a write that reads as well says so (SDM 28.2.1, table 28-7:
 * up to the CPU), and a case that one of them does not support, are no difference.
 */
import { readFileSync } from "node:fs";

/** Cases of a transcript, by name. */
export function parseTranscript(text: string): Map<string, string[]> {
  const cases = new Map<string, string[]>();
  let lines: string[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("== ")) {
      lines = [];
      cases.set(line.slice(3), lines);
    } else if (line !== "") lines.push(line);
  }
  return cases;
}

const UNKNOWN = /\b(size|len)=0\b/g;

/** True when two lines say the same, what hvi.h leaves to the backend aside. */
export function sameLine(a: string, b: string): boolean {
  if (a === b) return true;
  const free = new Set([...a.matchAll(UNKNOWN), ...b.matchAll(UNKNOWN)].map((m) => m[1]));
  const bare = (s: string) =>
    s
      .replace(/\b(size|len)=\d+/g, (all, field) => (free.has(field) ? field : all))
      .replace(/\baccess=rw/, "access=w");
  return bare(a) === bare(b);
}

/** One text for each case that differs. */
export function differences(left: string, right: string): string[] {
  const a = parseTranscript(left);
  const b = parseTranscript(right);
  const out: string[] = [];
  for (const name of new Set([...a.keys(), ...b.keys()])) {
    const x = a.get(name);
    const y = b.get(name);
    if (!x || !y) {
      out.push(`${name}: only in the ${x ? "first" : "second"}`);
      continue;
    }
    if (x[0]?.startsWith("not supported") || y[0]?.startsWith("not supported")) continue;
    for (let i = 0; i < Math.max(x.length, y.length); i++) {
      const [l, r] = [x[i] ?? "(end)", y[i] ?? "(end)"];
      if (sameLine(l, r)) continue;
      out.push(`${name}, line ${i + 1}:\n  - ${l}\n  + ${r}`);
      break;
    }
  }
  return out;
}

if (import.meta.main) {
  const [first, second] = process.argv.slice(2);
  if (!first || !second) {
    console.error("compare: give two transcripts");
    process.exit(2);
  }
  const found = differences(readFileSync(first, "utf8"), readFileSync(second, "utf8"));
  for (const d of found) console.log(d);
  console.log(`${found.length} cases differ`);
  process.exit(found.length === 0 ? 0 : 1);
}
