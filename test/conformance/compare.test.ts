// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ALLOWED, differences, sameLine } from "./compare.ts";

const one =
  "== a\nEPT rip=0x1 len=3 gpa=0x2 access=w size=8\nDONE rax=0x0\n== b\nDONE rax=0x1\nDONE\n";

test("equal transcripts have no difference", () => {
  expect(differences(one, one)).toEqual([]);
});

test("of an EPT exit an unknown length and size are no difference, others are", () => {
  expect(sameLine("EPT len=3 gpa=0x2 size=8", "EPT len=0 gpa=0x2 size=0")).toBe(true);
  expect(sameLine("vcpu1 EPT len=3 gpa=0x2 size=8", "vcpu1 EPT len=0 gpa=0x2 size=0")).toBe(true);
  expect(sameLine("EPT len=3 gpa=0x2 size=8", "EPT len=3 gpa=0x3 size=0")).toBe(false);
  expect(sameLine("EPT len=3 gpa=0x2 size=8", "EPT len=3 gpa=0x2 size=4")).toBe(false);
  expect(sameLine("EPT len=3 gpa=0x2 size=8", "EPT len=2 gpa=0x2 size=0")).toBe(false);
  expect(sameLine("EPT len=0 gpa=0x2 size=0", "EPT len=3 gpa=0x2 size=8")).toBe(false);
  expect(sameLine("IO rip=0x1 len=1 size=2", "IO rip=0x1 len=0 size=2")).toBe(false);
  expect(sameLine("IO rip=0x1 len=1 size=2", "IO rip=0x1 len=1 size=0")).toBe(false);
});

test("a write that does not tell that it reads is no difference, another access is", () => {
  expect(sameLine("EPT access=rw rights=r-x", "EPT access=w rights=r-x")).toBe(true);
  expect(sameLine("EPT access=w rights=r-x", "EPT access=rw rights=r-x")).toBe(false);
  expect(sameLine("EPT access=r rights=--x", "EPT access=w rights=--x")).toBe(false);
  expect(sameLine("EPT access=rw+walk rights=r--", "EPT access=w rights=r--")).toBe(false);
});

test("a case that the other backend does not support is no difference", () => {
  expect(differences(one, one.replace("DONE rax=0x1\nDONE\n", "not supported: avx\n"))).toEqual([]);
  expect(
    differences(one.replace("DONE rax=0x1\nDONE\n", "not supported: avx\n"), one),
  ).toHaveLength(1);
});

test("a line, an end or a case that is missing is found", () => {
  expect(differences(one, one.replace("rax=0x0", "rax=0x1"))).toHaveLength(1);
  expect(differences(one, one.replace("DONE rax=0x0\n", ""))).toHaveLength(1);
  expect(differences(one, "== b\nDONE rax=0x1\nDONE\n")).toEqual(["a: only in the first"]);
});

test("differences that were let through are counted", () => {
  const used = new Map<string, number>();
  expect(differences(one, one.replace("len=3", "len=0"), used)).toEqual([]);
  expect([...used]).toEqual([["ept-length", 1]]);
});

test("docs/backends.md gives a reason for each allowed difference, and for no other", () => {
  const text = readFileSync(join(import.meta.dir, "../../docs/backends.md"), "utf8");
  const sections = text.split(/^## /m).slice(1);
  const reasons = new Map(
    sections.flatMap((s) => {
      const match = /^`([\w-]+)`[^\n]*\n(.*)$/s.exec(s);
      return match ? [[match[1]!, match[2]!.trim()] as const] : [];
    }),
  );
  expect([...reasons.keys()].sort()).toEqual(ALLOWED.map((a) => a.name).sort());
  for (const [name, reason] of reasons) {
    expect(`${name}: ${reason}`).toMatch(/Reason: \S.{40}/);
  }
});
