// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { differences, sameLine } from "./compare.ts";

const one = "== a\nEPT rip=0x1 gpa=0x2 access=w size=8\nDONE rax=0x0\n== b\nnot supported: avx\n";

test("equal transcripts have no difference", () => {
  expect(differences(one, one)).toEqual([]);
});

test("an unknown size is no difference, another size is", () => {
  expect(sameLine("EPT gpa=0x2 size=8", "EPT gpa=0x2 size=0")).toBe(true);
  expect(sameLine("EPT gpa=0x2 size=8", "EPT gpa=0x3 size=0")).toBe(false);
  expect(sameLine("EPT gpa=0x2 size=8", "EPT gpa=0x2 size=4")).toBe(false);
  expect(sameLine("IO len=1 size=2", "IO len=0 size=4")).toBe(false);
});

test("a write that does not tell that it reads is no difference, another access is", () => {
  expect(sameLine("EPT access=rw rights=r-x", "EPT access=w rights=r-x")).toBe(true);
  expect(sameLine("EPT access=r rights=--x", "EPT access=w rights=--x")).toBe(false);
});

test("a line, an end or a case that is missing is found", () => {
  expect(differences(one, one.replace("rax=0x0", "rax=0x1"))).toHaveLength(1);
  expect(differences(one, one.replace("DONE rax=0x0\n", ""))).toHaveLength(1);
  expect(differences(one, "== b\nDONE\n")).toEqual(["a: only in the first"]);
});
