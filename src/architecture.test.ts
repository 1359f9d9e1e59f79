// SPDX-License-Identifier: MIT
/**
 * The arrows of docs/architecture.md: which part may import which. A part that is not listed, and an
 * arrow that is not, fail here, so a new one is a decision somebody writes down.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";

const SRC = import.meta.dir;

/** Part of src -> the parts it may import from. A part is a folder, or a file beside them. */
const ARROWS: Record<string, readonly string[]> = {
  "errors.ts": [],
  "printable.ts": [],
  "version.ts": [],
  "hook-action.ts": [],
  alerts: ["printable.ts"],
  bridge: [],
  memory: ["bridge"],
  x86: ["memory", "bridge"],
  ept: ["x86", "memory", "bridge", "hook-action.ts"],
  registers: ["bridge", "hook-action.ts"],
  guest: ["x86", "memory", "bridge"],
  protect: ["alerts", "guest", "ept", "x86", "memory", "bridge"],
  "statistics.ts": ["bridge"],
  "introspection.ts": ["guest", "ept", "registers", "memory", "bridge", "statistics.ts"],
  "engine.ts": [
    "introspection.ts",
    "alerts",
    "protect",
    "guest",
    "ept",
    "registers",
    "memory",
    "bridge",
  ],
  machine: ["x86", "memory", "bridge", "errors.ts", "version.ts"],
  control: ["errors.ts", "version.ts"],
  cli: [
    ...["engine.ts", "statistics.ts", "machine", "control", "alerts", "protect", "guest"],
    ...["x86", "memory", "bridge", "errors.ts", "printable.ts", "version.ts"],
  ],
  "main.ts": ["cli", "bridge", "errors.ts"],
  "executable.ts": ["bridge", "main.ts"],
};

/** What src/bridge is for others; the rest of the folder is how it does it. */
const BRIDGE_DOORS = ["index.ts", "abi.ts", "ram.ts", "vcpu.ts", "assets.ts"];

/** What loads or calls a backend. */
const BACKEND = /"bun:ffi"|\bdlopen\b/;

interface Import {
  readonly from: string;
  readonly to: string;
}

const isTest = (file: string): boolean => /\.(test|fixture)\.ts$/.test(file);

const sources = readdirSync(SRC, { recursive: true, encoding: "utf8" })
  .filter((file) => file.endsWith(".ts") && !file.endsWith(".d.ts") && !isTest(file))
  .sort();

function part(file: string): string {
  return file.split(sep)[0];
}

const text = (file: string): string => readFileSync(join(SRC, file), "utf8");

const imports: Import[] = sources.flatMap((from) =>
  Array.from(text(from).matchAll(/(?:\bfrom|\bimport\(?)\s*"(\.[^"]+\.ts)"/g), (match) => ({
    from,
    to: relative(SRC, join(SRC, dirname(from), match[1])),
  })),
);

test("imports follow the arrows", () => {
  const wrong = imports
    .filter(({ from, to }) => part(from) !== part(to))
    .filter(({ from, to }) => !(ARROWS[part(from)] ?? []).includes(part(to)))
    .map(({ from, to }) => `${from} -> ${to}`);
  expect(wrong).toEqual([]);
});

test("every part has its arrows, every arrow is used, and none goes in a circle", () => {
  expect(Object.keys(ARROWS).sort()).toEqual([...new Set(sources.map(part))].sort());
  const used = new Set(imports.map(({ from, to }) => `${part(from)} -> ${part(to)}`));
  const drawn = Object.entries(ARROWS).flatMap(([from, tos]) =>
    tos.map((to) => `${from} -> ${to}`),
  );
  expect(drawn.filter((arrow) => !used.has(arrow))).toEqual([]);
  // Taking away what needs nothing that is left leaves nothing, unless there is a circle.
  const left = new Map(Object.entries(ARROWS));
  for (;;) {
    const ready = [...left.keys()].filter((p) => left.get(p)?.every((to) => !left.has(to)));
    if (ready.length === 0) break;
    for (const p of ready) left.delete(p);
  }
  expect([...left.keys()]).toEqual([]);
});

test("the bridge is entered by its doors, and nothing else knows a backend", () => {
  const side = imports
    .filter(({ from, to }) => part(to) === "bridge" && part(from) !== "bridge")
    .filter(({ to }) => !BRIDGE_DOORS.includes(relative("bridge", to)));
  expect(side).toEqual([]);
  const knowing = sources.filter((file) => part(file) !== "bridge" && BACKEND.test(text(file)));
  expect(knowing).toEqual([]);
});

test("imports between files of src go in no circle", () => {
  const left = new Map(
    sources.map((file) => [file, imports.filter((i) => i.from === file).map((i) => i.to)]),
  );
  for (;;) {
    const ready = [...left.keys()].filter((f) => left.get(f)?.every((to) => !left.has(to)));
    if (ready.length === 0) break;
    for (const file of ready) left.delete(file);
  }
  expect([...left.keys()]).toEqual([]);
});
