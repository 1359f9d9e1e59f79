// SPDX-License-Identifier: MIT
/** Bad input to every command: one line that says what and what next, exit code 2, nothing written. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { guest } from "../../fixtures/guests.ts";
import { hvi } from "../support/hvi.ts";

let dir = "";
let inputs = "";
let kernel = "";
let initrd = "";

/** A bzImage's header alone, saying what the test wants it to say. */
function header(change: (bytes: Buffer) => void): Buffer {
  const bytes = Buffer.from(readFileSync(kernel));
  change(bytes);
  return bytes;
}

const input = (name: string): string => join(inputs, name);

beforeAll(async () => {
  const g = await guest("6.1");
  kernel = g.kernel;
  initrd = g.initrd;
  inputs = mkdtempSync(join(tmpdir(), "hvi-input-test-"));
  dir = join(inputs, "cwd");
  await Bun.write(join(dir, ".keep"), "");
  const whole = readFileSync(kernel);
  writeFileSync(input("truncated"), whole.subarray(0, 1_000_000));
  writeFileSync(input("header-only"), whole.subarray(0, 0x230));
  writeFileSync(input("empty"), "");
  writeFileSync(input("text"), "this is no kernel\n".repeat(100));
  // Boot protocol, xloadflags (offset 0x236): bit 0 says that there is a 64-bit entry.
  const flags32 = header((b) => b.writeUInt16LE(b.readUInt16LE(0x236) & ~1, 0x236));
  writeFileSync(input("kernel-32-bit"), flags32);
  const snapshot = await hvi([
    ...["run", "--kernel", kernel, "--append", "console=ttyS0 earlyprintk=ttyS0"],
    ...["--memory", "128M", "--snapshot-at", "Linux version", "--snapshot", input("snapshot")],
    ...["--timeout", "60"],
  ]);
  expect(snapshot.stderr.includes("ERROR") ? snapshot.stderr : "").toBe("");
  const bytes = readFileSync(input("snapshot"));
  writeFileSync(input("snapshot-cut"), bytes);
  truncateSync(input("snapshot-cut"), bytes.length - 4096);
  const flipped = Buffer.from(bytes.subarray());
  flipped[100] ^= 0xff;
  writeFileSync(input("snapshot-corrupt"), flipped);
  const other = Buffer.from(bytes.subarray());
  other.writeUInt32LE(0x7777, 12);
  writeFileSync(input("snapshot-abi"), other);
}, 120_000);

afterAll(() => rmSync(inputs, { recursive: true, force: true }));

/** Each with what its line must say. */
const cases: [string, () => string[], RegExp][] = [
  ["no command", () => [], /Usage|usage/],
  ["an unknown command", () => ["frobnicate"], /frobnicate/],
  ["an unknown option", () => ["run", "--kernel", kernel, "--frobnicate"], /frobnicate/],
  ["run with nothing to run", () => ["run"], /--kernel/],
  ["run: an option without its value", () => ["run", "--kernel"], /kernel/],
  ["run: no such kernel", () => ["run", "--kernel", input("none")], /none: no such file/],
  ["run: a folder", () => ["run", "--kernel", inputs], /directory/],
  ["run: no such initrd", () => ["run", "--kernel", kernel, "--initrd", input("none")], /none/],
  ["run: an empty file", () => ["run", "--kernel", input("empty")], /empty/],
  ["run: a text file", () => ["run", "--kernel", input("text")], /text/],
  ["run: a truncated bzImage", () => ["run", "--kernel", input("truncated")], /truncated/],
  ["run: a bzImage's header alone", () => ["run", "--kernel", input("header-only")], /header-only/],
  ["run: a 32-bit kernel", () => ["run", "--kernel", input("kernel-32-bit")], /32-bit|64-bit/],
  [
    "run: a kernel larger than memory",
    () => ["run", "--kernel", kernel, "--memory", "32M"],
    /memory/i,
  ],
  [
    "run: an initrd larger than memory",
    () => ["run", "--kernel", kernel, "--initrd", initrd, "--memory", "64M"],
    /memory/i,
  ],
  ["run: memory that is no size", () => ["run", "--kernel", kernel, "--memory", "lots"], /lots/],
  ["run: too little memory", () => ["run", "--kernel", kernel, "--memory", "1M"], /1M/],
  ["run: an unknown backend", () => ["run", "--kernel", kernel, "--backend", "kvm"], /kvm/],
  ["run: an unknown protection", () => ["run", "--kernel", kernel, "--protect", "moon"], /moon/],
  ["run: a bad pattern", () => ["run", "--kernel", kernel, "--until", "("], /until/],
  ["run: a bad timeout", () => ["run", "--kernel", kernel, "--timeout", "soon"], /soon/],
  [
    "run: an alerts file in no folder",
    () => ["run", "--kernel", kernel, "--alerts", input("no/where.jsonl")],
    /alerts/,
  ],
  ["run: no such snapshot", () => ["run", "--restore", input("none")], /none/],
  ["run: a file that is no snapshot", () => ["run", "--restore", kernel], /not a snapshot/],
  ["run: a truncated snapshot", () => ["run", "--restore", input("snapshot-cut")], /truncated/],
  ["run: a corrupt snapshot", () => ["run", "--restore", input("snapshot-corrupt")], /corrupt/],
  [
    "run: a snapshot of another ABI version",
    () => ["run", "--restore", input("snapshot-abi")],
    /ABI version 30583.*version \d/,
  ],
  ["inspect: nothing given", () => ["inspect"], /inspect|arguments/],
  ["inspect: no such file", () => ["inspect", input("none"), "ps"], /none/],
  ["inspect: a file that is no snapshot", () => ["inspect", kernel, "ps"], /not a snapshot/],
  ["inspect: an unknown view", () => ["inspect", input("snapshot"), "moon"], /moon/],
  ["inspect: a bad address", () => ["inspect", input("snapshot"), "read", "0xyz", "8"], /xyz/],
  ["inspect: a corrupt snapshot", () => ["inspect", input("snapshot-corrupt"), "ps"], /corrupt/],
];

for (const [name, args, says] of cases) {
  test(name, async () => {
    const before = readdirSync(dir);
    const ended = await hvi(args(), { cwd: dir });
    const said = `${ended.stdout}${ended.stderr}`;
    expect(said).toMatch(says);
    expect(said).not.toMatch(/\n\s+at .*:\d+:\d+/);
    expect(ended.code).toBe(2);
    if (name !== "no command") {
      const lines = said.split("\n").filter((line) => line.trim() !== "");
      expect(lines).toHaveLength(1);
      expect(lines[0]).toMatch(/ -> /);
    }
    expect(readdirSync(dir)).toEqual(before);
  }, 20_000);
}

test("bad input leaves the files that it names as outputs alone", async () => {
  const console = join(inputs, "console.log");
  const alerts = join(inputs, "alerts.jsonl");
  for (const path of [console, alerts]) writeFileSync(path, "precious");
  const out = ["--console", console, "--alerts", alerts];
  expect((await hvi(["run", "--kernel", input("truncated"), ...out])).code).toBe(2);
  expect((await hvi(["run", "--restore", input("snapshot-cut"), ...out])).code).toBe(2);
  expect(readFileSync(console, "utf8")).toBe("precious");
  expect(readFileSync(alerts, "utf8")).toBe("precious");
});
