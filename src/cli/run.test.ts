// SPDX-License-Identifier: MIT
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HVI_ABI_VERSION } from "../bridge/index.ts";
import { bzImage, elf64, multiboot } from "../machine/load/images.fixture.ts";
import type { StatisticsReport } from "../statistics.ts";

const folder = mkdtempSync(join(tmpdir(), "hvi-run-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const path = (name: string, bytes: Uint8Array) => {
  const p = join(folder, name);
  writeFileSync(p, bytes);
  return p;
};

async function hvi(...args: string[]) {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "../main.ts"), ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, out, err: err.trim() };
}

const hasBackend = existsSync(join(import.meta.dir, "../../build/libhvi-soft.so"));

describe("bad input: one line with the next step, exit code 2, nothing written", () => {
  const elf = elf64(0x1000000, Uint8Array.of(0xf4));
  const good = path("good", bzImage(elf));
  const cases: [string, string[], string][] = [
    ["nothing", ["run"], "nothing to run"],
    ["unknown option", ["run", "--kernel", good, "--frobnicate"], "see hvi run --help"],
    ["unknown command", ["walk"], "no command 'walk'"],
    ["missing file", ["run", "--kernel", join(folder, "none")], "no such file"],
    ["folder", ["run", "--kernel", folder], "is a directory"],
    [
      "truncated",
      ["run", "--kernel", path("short", bzImage(elf).subarray(0, 1500))],
      "truncated bzImage",
    ],
    ["32-bit", ["run", "--kernel", path("k32", bzImage(elf, { xloadflags: 0 }))], "32-bit kernel"],
    [
      "too large",
      ["run", "--kernel", path("big", bzImage(elf, { initSize: 1 << 30 }))],
      "--memory",
    ],
    ["memory", ["run", "--kernel", good, "--memory", "lots"], "not a size"],
    ["cpus", ["run", "--kernel", good, "--cpus", "0"], "--cpus 0"],
    ["backend", ["run", "--kernel", good, "--backend", "kvm"], "choose one of auto, vmx, soft"],
    ["pattern", ["run", "--kernel", good, "--until", "("], "--until"],
    ["timeout", ["run", "--kernel", good, "--timeout", "soon"], "--timeout soon"],
    ["protection", ["run", "--kernel", good, "--protect", "everything"], "unknown protection"],
    [
      "alerts' folder",
      ["run", "--kernel", good, "--alerts", join(folder, "no/a.jsonl")],
      "--alerts",
    ],
    ["half a snapshot", ["run", "--kernel", good, "--snapshot", join(folder, "s")], "go together"],
    ["both", ["run", "--kernel", good, "--restore", good], "exclude each other"],
    ["no snapshot", ["run", "--restore", good], "not a snapshot"],
    ["initrd", ["run", "--kernel", good, "--initrd", join(folder, "none")], "--initrd"],
    ["a device", ["run", "--kernel", "/dev/zero"], "/dev/zero: not a file"],
    ["an endless initrd", ["run", "--kernel", good, "--initrd", "/dev/zero"], "not a file"],
    ["a timeout of years", ["run", "--kernel", good, "--timeout", "1e9"], "24 days"],
    ["an option twice", ["run", "--kernel", good, "--kernel", good], "--kernel is given 2 times"],
    [
      "a snapshot in a folder's place",
      ["run", "--kernel", good, "--snapshot-at", "x", "--snapshot", folder],
      "not a file",
    ],
    [
      "a snapshot in a device's place",
      ["run", "--kernel", good, "--snapshot-at", "x", "--snapshot", "/dev/full"],
      "/dev/full: not a file",
    ],
  ];
  for (const [name, args, message] of cases)
    test.concurrent(name, async () => {
      const before = readdirSync(folder).sort();
      const { code, out, err } = await hvi(...args);
      expect(err).toContain(message);
      expect(err).toContain("->");
      expect(err.split("\n").length).toBe(1);
      expect(out).toBe("");
      expect(code).toBe(2);
      expect(readdirSync(folder).sort()).toEqual(before);
    });
});

test("--version says what the command version says", async () => {
  const [option, command] = [await hvi("--version"), await hvi("version")];
  expect(option).toEqual(command);
  expect(option.code).toBe(0);
  expect(option.out).toContain(`Bun ${Bun.version}`);
});

test("help names the exit codes and gives examples", async () => {
  const { code, out } = await hvi("run", "--help");
  expect(code).toBe(0);
  for (const part of ["--kernel <file>", "Examples:", "Exit codes"]) expect(out).toContain(part);
});

describe.skipIf(!hasBackend)("a guest's end", () => {
  test("an end before the snapshot's moment is no success", async () => {
    // mov dx, 604h; mov ax, 2000h; out dx, ax: power off
    const code = Uint8Array.of(0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4);
    const kernel = path("off.elf", multiboot(code));
    const snapshot = join(folder, "never.hvi");
    const at = ["--snapshot-at", "never", "--snapshot", snapshot];
    const run = await hvi("run", "--kernel", kernel, ...at, "--timeout", "20");
    expect(run.err).toContain("no snapshot");
    expect(run.code).toBe(1);
    expect(existsSync(snapshot)).toBe(false);
  });

  test("a full disk is one line and code 1", async () => {
    // mov dx, 3f8h; mov al, 'A'; out dx, al; jmp $
    const code = Uint8Array.of(0x66, 0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0xeb, 0xfe);
    const kernel = path("loop.elf", multiboot(code));
    const run = await hvi("run", "--kernel", kernel, "--console", "/dev/full", "--timeout", "20");
    expect(run.err).toMatch(/^.*console's output: ENOSPC.* -> .*$/);
    expect(run.code).toBe(1);
  });

  test("isa-debug-exit gives its code, and what it printed is all there", async () => {
    // mov dx, 3f8h; mov al, 'A'; out dx, al; ... mov al, 10; out 0f4h, al
    const code = Uint8Array.of(
      ...[0x66, 0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0xb0, 0x0a, 0xee, 0xb0, 0x0a, 0xe6, 0xf4],
      0xf4,
    );
    const { code: exit, out } = await hvi(
      "run",
      "--kernel",
      path("exit.elf", multiboot(code)),
      "--timeout",
      "20",
    );
    expect(out).toBe("A\n");
    expect(exit).toBe(21);
  });

  test("a triple fault is code 3 with a dump, and an event in the alerts", async () => {
    // lidt of an empty table (zeros behind the image), int3
    const code = Uint8Array.of(0x0f, 0x01, 0x1d, 0, 8, 0x10, 0, 0xcc);
    const kernel = path("dead.elf", multiboot(code));
    const alerts = join(folder, "dead.jsonl");
    const run = await hvi("run", "--kernel", kernel, "--timeout", "20", "--alerts", alerts);
    expect(run.code).toBe(3);
    expect(run.err).toContain("triple fault");
    expect(run.err).toMatch(/RIP=[0-9a-f]{16}/);
    expect(run.err).toContain("Code:");
    const events = (await Bun.file(alerts).text()).trimEnd().split("\n");
    expect(JSON.parse(events.at(-1) ?? "")).toMatchObject({ kind: "event", type: "guest-died" });
  });

  test("HLT with interrupts disabled is a dead guest, an endless loop a timeout", async () => {
    const halted = await hvi(
      "run",
      "--kernel",
      path("hlt.elf", multiboot(Uint8Array.of(0xfa, 0xf4))),
      "--timeout",
      "20",
    );
    expect(halted.code).toBe(3);
    const loop = path("loop.elf", multiboot(Uint8Array.of(0xeb, 0xfe)));
    expect((await hvi("run", "--kernel", loop, "--timeout", "0.3")).code).toBe(124);
  });

  test("hvi inspect --live looks into a guest that runs", async () => {
    const loop = path("live.elf", multiboot(Uint8Array.of(0xeb, 0xfe)));
    const main = join(import.meta.dir, "../main.ts");
    const guest = Bun.spawn([process.execPath, main, "run", "--kernel", loop, "--timeout", "60"], {
      stdio: ["ignore", "ignore", "ignore"],
    });
    try {
      const look = () => hvi("inspect", "--live", "--machine", String(guest.pid), "disasm");
      let seen = await look();
      for (let tries = 0; seen.code !== 0 && tries < 50; tries++) seen = await look();
      expect(seen.out).toContain("jmp");
      const unknown = await hvi("inspect", "--live", "--machine", String(guest.pid), "ps");
      expect(unknown.code).toBe(2);
      expect(unknown.err).toContain("->");
    } finally {
      guest.kill();
      await guest.exited;
    }
    const gone = await hvi("inspect", "--live", "--machine", String(guest.pid), "regs");
    expect([gone.code, gone.err]).toEqual([2, expect.stringContaining("no hvi runs as process")]);
  }, 60_000);

  test("hvi inspect --live stats counts what a guest that runs does", async () => {
    // mov dx, 3f8h; in al, dx; jmp back
    const code = Uint8Array.of(0x66, 0xba, 0xf8, 0x03, 0xec, 0xeb, 0xfd);
    const kernel = path("stats.elf", multiboot(code));
    const main = join(import.meta.dir, "../main.ts");
    const stats = async (protect: string) => {
      const run = ["run", "--kernel", kernel, "--protect", protect, "--timeout", "60"];
      const guest = Bun.spawn([process.execPath, main, ...run], {
        stdio: ["ignore", "ignore", "ignore"],
      });
      try {
        const look = (...more: string[]) =>
          hvi("inspect", "--live", "--machine", String(guest.pid), "stats", ...more);
        let seen = await look("--json");
        for (let tries = 0; seen.code !== 0 && tries < 50; tries++) seen = await look("--json");
        const later = await look("--json");
        const table = await look();
        return { first: JSON.parse(seen.out), later: JSON.parse(later.out), table: table.out };
      } finally {
        guest.kill();
        await guest.exited;
      }
    };
    const exitsOf = (report: StatisticsReport) =>
      Number(report.parts.find((part) => part.name === "vcpu 0")?.values.exits);
    const engine = await stats("all");
    expect(engine.first.exits.IO).toBeGreaterThan(0);
    expect(engine.later.exits.IO).toBeGreaterThan(engine.first.exits.IO);
    expect(exitsOf(engine.later)).toBeGreaterThanOrEqual(engine.later.exits.IO);
    const parts = engine.first.parts.map((part: { name: string }) => part.name);
    for (const name of [
      "time",
      "vcpu 0",
      "hooks",
      "decode cache",
      "page tables",
      "swapped memory",
    ]) {
      expect(parts).toContain(name);
    }
    expect(engine.table).toMatch(/^EXIT +COUNT$/m);
    expect(engine.table).toMatch(/^HOOKS$/m);
    // Without an engine nobody tells exits apart; the backend counts them still.
    const bare = await stats("none");
    expect(bare.first.exits).toEqual({});
    expect(exitsOf(bare.first)).toBeGreaterThan(0);
  }, 60_000);

  test("a snapshot goes on where it was taken; damage and other versions are found", async () => {
    // print 'A', '\n', then 'B', '\n', then exit with 3
    const print = (c: number) => [0xb0, c, 0xee];
    const code = Uint8Array.of(
      ...[0x66, 0xba, 0xf8, 0x03],
      ...print(0x41),
      ...print(10),
      ...print(0x42),
      ...print(10),
      ...[0xb0, 1, 0xe6, 0xf4, 0xf4],
    );
    const file = join(folder, "state.hvi");
    const kernel = path("two.elf", multiboot(code));
    const taken = await hvi(
      "run",
      "--kernel",
      kernel,
      "--memory",
      "16M",
      "--snapshot-at",
      "A",
      "--snapshot",
      file,
    );
    expect(taken.err).toBe("");
    expect(taken.code).toBe(0);
    expect(taken.out.startsWith("A\n")).toBe(true);
    const [one, two] = await Promise.all([
      hvi("run", "--restore", file),
      hvi("run", "--restore", file),
    ]);
    expect(one.code).toBe(3);
    expect(taken.out + one.out).toBe("A\nB\n");
    expect(two).toEqual(one);

    const bytes = new Uint8Array(readFileSync(file));
    const changed = (at: number, value: number) => {
      const copy = bytes.slice();
      copy[at] = value;
      return copy;
    };
    const broken = async (name: string, content: Uint8Array, message: string) => {
      const { code: exit, err } = await hvi("run", "--restore", path(name, content));
      expect(err).toContain(message);
      expect(exit).toBe(2);
    };
    await broken(
      "abi.hvi",
      changed(12, 99),
      `ABI version 99, this hvi has version ${HVI_ABI_VERSION}`,
    );
    await broken("format.hvi", changed(8, 7), "format 7");
    await broken("header.hvi", changed(24, 1), "corrupt snapshot");
    await broken("meta.hvi", changed(200, 0), "corrupt snapshot");
    await broken("cut.hvi", bytes.subarray(0, bytes.length - 5000), "truncated snapshot");
  });
});
