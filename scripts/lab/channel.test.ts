// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { Channel } from "./channel.ts";

function sent(name: string, text: string): { head: string; lines: string[] } {
  const data = gzipSync(text);
  const sum = createHash("md5").update(data).digest("hex");
  const lines = (data.toString("base64").match(/.{1,20}/g) ?? []).map((l) => `+ ${l}\n`);
  return { head: `@lab file ${name} ${data.length} ${sum}\n`, lines };
}

test("a step's lines, its warnings and its end", () => {
  const channel = new Channel();
  const text =
    "@lab boot 13.2\r\n@lab begin load\n| a line\n|\n| @lab end load 0 1\n@lab kmsg <4>[ 1.0] hvi: x\n@lab end load 3 0.25\n@lab done\n";
  // In pieces, as a growing file gives them.
  const events = [...text].flatMap((c) => channel.push(c));
  expect(events).toEqual([
    { kind: "boot", seconds: 13.2 },
    { kind: "begin", name: "load" },
    { kind: "line", text: "a line" },
    { kind: "line", text: "" },
    { kind: "line", text: "@lab end load 0 1" },
    { kind: "kmsg", level: 4, text: "[ 1.0] hvi: x" },
    { kind: "end", name: "load", code: 3, seconds: 0.25 },
    { kind: "done" },
  ]);
});

test("a file with a heartbeat in the middle", () => {
  const { head, lines } = sent("t", "one two three four five six seven");
  const [first = "", ...more] = lines;
  const events = new Channel().push(`${head}${first}@lab beat 5\n${more.join("")}@lab done\n`);
  expect(events.map((e) => e.kind)).toEqual(["beat", "file", "done"]);
  const file = events[1];
  expect(file?.kind === "file" && new TextDecoder().decode(file.data)).toBe(
    "one two three four five six seven",
  );
});

test("a damaged file is told, not believed", () => {
  const { head, lines } = sent("t", "one two three four five six seven");
  lines.splice(1, 1);
  const events = new Channel().push(`${head}${lines.join("")}@lab done\n`);
  expect(events[0]?.kind).toBe("garbled");
});

test("what is no line of the protocol is kept as garbled", () => {
  expect(new Channel().push("+ AAAA\nnoise\n@lab end x\n").map((e) => e.kind)).toEqual([
    "garbled",
    "garbled",
    "garbled",
  ]);
});
