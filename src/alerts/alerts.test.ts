// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Alert, Draft, Violation } from "./alert.ts";
import { JsonLinesSink } from "./jsonl.ts";
import { AlertQueue } from "./queue.ts";
import { formatAlert, TerminalSink } from "./terminal.ts";

function violation(change: {
  gva?: number;
  size?: number;
  rip?: string;
  action?: "denied" | "allowed";
}): Draft<Violation> {
  const { gva = 0x1000, size = 1, rip = "0x10", action = "denied" } = change;
  return {
    kind: "violation",
    type: "ept-violation",
    tsc: 5,
    vcpu: 0,
    protection: "kernel-image",
    action,
    reason: "no-exception",
    technique: "T1014",
    originator: { kind: "module", module: "evil", symbol: "evil_init+0x4 [evil]", rip },
    victim: {
      kind: "kernel-text",
      symbol: "vfs_read+0x0",
      gva: `0x${gva.toString(16)}`,
      gpa: "0x2000",
    },
    access: { kind: "write", size, old: "00".repeat(size), new: "cc".repeat(size), count: 1 },
    process: { pid: 7, tgid: 7, comm: "insmod" },
  };
}

function collect() {
  const seen: Alert[] = [];
  const host = { ms: 0 };
  const sink = { write: (alert: Alert) => seen.push(alert), close: () => {} };
  const queue = new AlertQueue([sink], () => host.ms);
  return { queue, seen, host };
}

/** Accesses that the violations stand for. */
function accesses(alerts: readonly Alert[]): number {
  return alerts.reduce((sum, a) => sum + (a.kind === "violation" ? a.access.count : 0), 0);
}

test("nothing reaches a sink before drain, then all of it in order", () => {
  const { queue, seen } = collect();
  queue.push(violation({ gva: 0x1000 }));
  queue.push(violation({ gva: 0x5000 }));
  expect(seen).toEqual([]);
  queue.drain();
  expect(seen.map((a) => a.id)).toEqual([1, 2]);
  expect(seen.every((a) => a.schema === "hvi.alert/1")).toBe(true);
});

test("a store that goes on byte by byte is one alert with all bytes", () => {
  const { queue, seen } = collect();
  for (let i = 0; i < 16; i++) queue.push(violation({ gva: 0x1000 + i }));
  queue.drain();
  expect(seen).toHaveLength(1);
  const [alert] = seen as Violation[];
  expect(alert?.access).toMatchObject({ size: 16, count: 16, new: "cc".repeat(16) });
});

test.each([
  ["another instruction", { gva: 0x1001, rip: "0x20" }],
  ["a gap", { gva: 0x1002 }],
  ["the same bytes again", { gva: 0x1000 }],
  ["another verdict", { gva: 0x1001, action: "allowed" as const }],
])("%s is an alert of its own", (_what, change) => {
  const { queue, seen } = collect();
  queue.push(violation({ gva: 0x1000 }));
  queue.push(violation(change));
  queue.drain();
  expect(seen).toHaveLength(2);
});

test("an alert already sent is not grown", () => {
  const { queue, seen } = collect();
  queue.push(violation({ gva: 0x1000 }));
  queue.drain();
  queue.push(violation({ gva: 0x1001 }));
  queue.drain();
  expect((seen as Violation[]).map((a) => a.access.size)).toEqual([1, 1]);
});

test("violations are counted by protection and verdict", () => {
  const { queue } = collect();
  queue.push(violation({ gva: 0x1000 }));
  queue.push(violation({ gva: 0x3000 }));
  queue.push(violation({ gva: 0x5000, action: "allowed" }));
  expect(queue.violations).toBe(3);
  expect(Object.fromEntries(queue.counts)).toEqual({
    "kernel-image denied": 2,
    "kernel-image allowed": 1,
  });
});

describe("a flood", () => {
  const TIMES = 100_000;

  test("of one violation over and over is a few alerts and a count a second, none lost", () => {
    const { queue, seen, host } = collect();
    for (let i = 0; i < TIMES; i++) {
      queue.push(violation({}));
      if (i % 100 === 99) {
        host.ms += 10;
        queue.drain();
      }
    }
    queue.close();
    expect(queue.violations).toBe(TIMES);
    expect(accesses(seen)).toBe(TIMES);
    expect(seen.length).toBeLessThan(30);
  });

  test("of a store of several bytes over and over keeps its bytes together", () => {
    const { queue, seen } = collect();
    for (let i = 0; i < 1000; i++) {
      for (let byte = 0; byte < 4; byte++) queue.push(violation({ gva: 0x1000 + byte }));
    }
    queue.close();
    expect(accesses(seen)).toBe(4000);
    expect(seen.every((a) => a.kind === "violation" && a.access.size === 4)).toBe(true);
    expect(seen.length).toBeLessThan(20);
  });

  test("of different violations loses none, and counts repeats of more than it remembers", () => {
    const { queue, seen } = collect();
    for (let i = 0; i < TIMES; i++) {
      queue.push(violation({ gva: 0x1000 + 2 * (i % 5000) }));
      if (i % 1000 === 0) queue.drain();
    }
    queue.close();
    expect(accesses(seen)).toBe(TIMES);
  });

  test("that has stopped is reported at once when it comes again", () => {
    const { queue, seen, host } = collect();
    for (let i = 0; i < 20; i++) queue.push(violation({}));
    queue.drain();
    expect(seen).toHaveLength(8);
    for (const ms of [1000, 2000, 3000]) {
      host.ms = ms;
      queue.drain();
    }
    expect(seen).toHaveLength(9);
    queue.push(violation({}));
    queue.drain();
    expect(seen).toHaveLength(10);
    expect(accesses(seen)).toBe(21);
  });

  test("does not drown the terminal, which says how much it left out", () => {
    const lines: string[] = [];
    const host = { ms: 0 };
    const queue = new AlertQueue([new TerminalSink((l) => lines.push(l), false)], () => host.ms);
    for (let i = 0; i < 1000; i++) queue.push(violation({ gva: 0x1000 + 2 * i }));
    queue.drain();
    host.ms = 1000;
    queue.push(violation({ gva: 0x100 }));
    queue.close();
    const shown = lines.filter((l) => l.startsWith("DENIED")).length;
    expect(shown).toBeLessThan(300);
    expect(lines).toContain(
      `hvi: ${1001 - shown} more violations in that second are not shown here`,
    );
  });
});

test("the JSON-lines file holds every alert, one a line, readable by its owner only", () => {
  const folder = mkdtempSync(join(tmpdir(), "hvi-alerts-"));
  try {
    const path = join(folder, "alerts.jsonl");
    const queue = new AlertQueue([new JsonLinesSink(path)]);
    for (let i = 0; i < 300; i++) queue.push(violation({ gva: 0x1000 + 2 * i }));
    queue.close();
    const lines = readFileSync(path, "utf8").trimEnd().split("\n");
    expect(lines).toHaveLength(300);
    expect(lines.map((l) => (JSON.parse(l) as Alert).id)).toEqual(
      Array.from({ length: 300 }, (_, i) => i + 1),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("names that a guest made up cannot steer the terminal or forge a line", () => {
  const { queue, seen } = collect();
  const draft = violation({});
  queue.push({ ...draft, process: { pid: 7, tgid: 7, comm: "a\x1b[2J\nhvi: \x9b" } });
  queue.drain();
  expect(formatAlert(seen[0] as Alert)).toEndWith("in a\\x1b[2J\\x0ahvi: \\x9b[7]");
});

test("the terminal line says verdict, victim, bytes, originator and process", () => {
  const { queue, seen } = collect();
  queue.push(violation({ size: 2 }));
  queue.drain();
  expect(formatAlert(seen[0] as Alert)).toBe(
    "DENIED kernel-image: write of 2 bytes at vfs_read+0x0 (kernel-text) 0000 -> cccc by evil_init+0x4 [evil] in insmod[7]",
  );
});
