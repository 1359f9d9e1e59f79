// SPDX-License-Identifier: MIT
/**
 * Compares the transcript of a backend with hv/soft's, line by line:
 *   bun test/conformance/compare.ts build/conformance/soft.transcript build/conformance/vmx.transcript
 * The only differences let through are those of ALLOWED.
 */
import { readFileSync } from "node:fs";

/** A difference that is none. docs/backends.md has a section of the same name with the reason. */
export interface Allowed {
  readonly name: string;
  /** What hv/soft's line becomes for the other backend's sake; the line itself when it does not apply. */
  readonly forgive: (soft: string, other: string) => string;
}

/** A field of an EPT exit's line that the other backend does not know. */
const unknown =
  (field: string) =>
  (soft: string, other: string): string =>
    / EPT /.test(` ${soft}`) && new RegExp(` ${field}=0( |$)`).test(other)
      ? soft.replace(new RegExp(` ${field}=\\d+`), ` ${field}=0`)
      : soft;

export const ALLOWED: readonly Allowed[] = [
  { name: "ept-length", forgive: unknown("len") },
  { name: "ept-size", forgive: unknown("size") },
  {
    name: "rmw-read",
    forgive: (soft, other) =>
      / EPT /.test(` ${soft}`) && /\baccess=w\b/.test(other)
        ? soft.replace(/\baccess=rw\b/, "access=w")
        : soft,
  },
  // A whole case: the line stands for it.
  {
    name: "not-supported",
    forgive: (soft, other) => (other.startsWith("not supported: ") ? other : soft),
  },
  {
    name: "bochs-accessed-dirty",
    forgive: (soft, other) =>
      soft === "ad_writes counted" && other === "ad_writes not counted: Bochs" ? other : soft,
  },
];

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

/** True when two lines say the same, or differ as they may. `used` gathers which allowance was needed. */
export function sameLine(soft: string, other: string, used?: Map<string, number>): boolean {
  if (soft === other) return true;
  let line = soft;
  const needed: string[] = [];
  for (const a of ALLOWED) {
    const next = a.forgive(line, other);
    if (next !== line) needed.push(a.name);
    line = next;
  }
  if (line !== other) return false;
  for (const name of needed) used?.set(name, (used.get(name) ?? 0) + 1);
  return true;
}

/** One text for each case that differs. */
export function differences(soft: string, other: string, used?: Map<string, number>): string[] {
  const a = parseTranscript(soft);
  const b = parseTranscript(other);
  const out: string[] = [];
  for (const name of new Set([...a.keys(), ...b.keys()])) {
    const x = a.get(name);
    const y = b.get(name);
    if (!x || !y) {
      out.push(`${name}: only in the ${x ? "first" : "second"}`);
      continue;
    }
    if (y.length === 1 && y[0]?.startsWith("not supported: ")) x.length = 1;
    for (let i = 0; i < Math.max(x.length, y.length); i++) {
      const [l, r] = [x[i] ?? "(end)", y[i] ?? "(end)"];
      if (sameLine(l, r, used)) continue;
      out.push(`${name}, line ${i + 1}:\n  - ${l}\n  + ${r}`);
      break;
    }
  }
  return out;
}

if (import.meta.main) {
  const [first, second] = process.argv.slice(2);
  if (!first || !second) {
    console.error("compare: give two transcripts, hv/soft's first");
    process.exit(2);
  }
  const used = new Map<string, number>();
  const found = differences(readFileSync(first, "utf8"), readFileSync(second, "utf8"), used);
  for (const d of found) console.log(d);
  for (const [name, n] of used) console.log(`${name}: ${n} lines (docs/backends.md)`);
  console.log(`${found.length} cases differ`);
  process.exit(found.length === 0 ? 0 : 1);
}
