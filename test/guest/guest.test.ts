// SPDX-License-Identifier: MIT
/**
 * What introspection reads of a running Linux against what the guest itself
 * says of it in /proc: symbols, modules, processes, stacks; on snapshots taken
 * by `hvi run`, KASLR on.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ALL_SERIES, guest as fixture } from "../../fixtures/guests.ts";
import { cpio } from "../../fixtures/initramfs/cpio.ts";
import { identify } from "../../src/guest/identify.ts";
import type { LinuxGuest } from "../../src/guest/linux/kernel.ts";
import { type OpenSnapshot, openSnapshot } from "../../src/machine/snapshot/index.ts";
import { hex, PhysicalMemory } from "../../src/memory/index.ts";
import { hvi } from "../support/hvi.ts";

/** Seconds for one boot. */
const LIMIT = 240;

/** Runs in the guest: prints what the kernel says of itself. */
const TELL = `#!/bin/sh
echo 0 > /proc/sys/kernel/kptr_restrict
insmod /lib/hvi/dummy.ko
insmod /lib/hvi/loop.ko
sleep 1
echo "TELL version"; cat /proc/version
echo "TELL modules"; cat /proc/modules
echo "TELL symbols"; grep -v '\\[' /proc/kallsyms | sha256sum
echo "TELL module-symbols"; grep '\\[loop\\]' /proc/kallsyms | grep -v '\\.LC' | head -40
echo "TELL processes"; for p in /proc/[0-9]*; do cat $p/stat; done
echo "TELL stacks"
for p in /proc/[0-9]*; do
  read -r name < $p/comm
  case "$name" in hvi-daemon|kthreadd|kswapd0|kauditd) echo "pid \${p#/proc/}"; cat $p/stack ;; esac
done
echo "TELL end"
`;

for (const series of ALL_SERIES) {
  describe(`Linux ${series}, running`, () => {
    let dir = "";
    let told: Map<string, string[]>;
    let snapshot: OpenSnapshot;
    let guest: LinuxGuest;
    let release = "";

    beforeAll(
      async () => {
        const files = await fixture(series);
        release = files.release;
        dir = mkdtempSync(join(tmpdir(), "hvi-guest-test-"));
        // The kernel unpacks archives that stand one behind the other.
        const initrd = join(dir, "initramfs.cpio");
        const extra = cpio([
          { kind: "file", path: "etc/hvi/tell", data: Buffer.from(TELL), mode: 0o755 },
        ]);
        writeFileSync(initrd, Buffer.concat([readFileSync(files.initrd), extra]));
        const at = join(dir, "told.hvi");
        const ended = await hvi([
          ...["run", "--backend", "soft", "--kernel", files.kernel, "--initrd", initrd],
          ...["--append", "console=ttyS0 hvi.run=/etc/hvi/tell hvi.mode=shell"],
          ...["--snapshot-at", "TELL end", "--snapshot", at, "--timeout", String(LIMIT)],
        ]);
        expect({ code: ended.code, stderr: ended.code === 0 ? "" : ended.stderr }).toEqual({
          code: 0,
          stderr: "",
        });
        told = new Map();
        let lines: string[] = [];
        for (const line of ended.stdout.split(/\r?\n/)) {
          const section = /^TELL ([\w-]+)$/.exec(line);
          if (section === null) {
            lines.push(line);
            continue;
          }
          lines = [];
          told.set(section[1], lines);
        }
        snapshot = openSnapshot(at);
        const attempt = identify(new PhysicalMemory(snapshot.ram), snapshot.vcpus[0]);
        if (!attempt.ok) throw new Error(attempt.reason);
        guest = attempt.guest;
      },
      (LIMIT + 30) * 1000,
    );

    afterAll(() => {
      snapshot?.close();
      rmSync(dir, { recursive: true, force: true });
    });

    const section = (name: string): string[] => told.get(name) ?? [];

    test("its version and banner", () => {
      expect(guest.version).toBe(release);
      expect(guest.banner).toBe(section("version")[0]);
      expect(guest.slide).toBeGreaterThan(0);
      expect([...guest.missing]).toEqual([]);
      expect(guest.initFreed).toBe(true);
    });

    test("its phys_base is what the kernel computed", () => {
      const at = guest.symbols.lookup("phys_base") ?? 0;
      expect(guest.physBase).toBe(guest.vm.readPtr(at));
    });

    test("every symbol of /proc/kallsyms, in order", () => {
      const { symbols } = guest;
      const hash = new Bun.CryptoHasher("sha256");
      for (let i = 0; i < symbols.count; i++) {
        const address = hex(symbols.addressAt(i)).slice(2).padStart(16, "0");
        hash.update(`${address} ${symbols.typeAt(i)} ${symbols.nameAt(i)}\n`);
      }
      expect(section("symbols")[0]).toBe(`${hash.digest("hex")}  -`);
    });

    test("its modules and their symbols", () => {
      const { modules, problem } = guest.modules();
      expect(problem).toBeUndefined();
      const lines = modules.map((m) => `${m.name} ${m.size} 0 - Live ${hex(m.base)}`);
      expect(lines).toEqual(section("modules").map((l) => l.replace(/ \(\w+\)$/, "").trimEnd()));
      const loop = modules.find((m) => m.name === "loop");
      const own = new Set(
        (loop ? guest.moduleSymbols(loop) : []).map(
          (s) => `${hex(s.address).slice(2)} ${s.type} ${s.name}\t[loop]`,
        ),
      );
      expect(section("module-symbols").length).toBeGreaterThan(10);
      expect(section("module-symbols").filter((line) => !own.has(line))).toEqual([]);
    });

    test("its processes, with parent and kind", () => {
      const { tasks, problem } = guest.tasks();
      expect(problem).toBeUndefined();
      const seen = new Map(tasks.map((t) => [t.pid, t]));
      let compared = 0;
      for (const line of section("processes")) {
        const match = /^(\d+) \((.*)\) (\S) (\d+)/.exec(line);
        if (match === null) continue;
        const task = seen.get(Number(match[1]));
        // Kernel workers come and go; /proc also tells their work, beyond the 15 letters of comm.
        if (task === undefined && /^(kworker|cryptomgr|modprobe|cat)/.test(match[2])) continue;
        expect(task).toBeDefined();
        expect(match[2].startsWith(task?.comm ?? "?")).toBe(true);
        expect(task?.parent?.pid ?? 0).toBe(Number(match[4]));
        compared++;
      }
      expect(compared).toBeGreaterThan(30);
      expect(tasks.filter((t) => t.comm === "hvi-daemon")).toHaveLength(3);
      expect(tasks.find((t) => t.comm === "hvi-daemon")).toMatchObject({ kernelThread: false });
      expect(tasks.find((t) => t.comm === "kthreadd")).toMatchObject({ kernelThread: true, mm: 0 });
      expect(guest.currentTask(snapshot.vcpus[0])).toBeDefined();
    });

    test("the stacks of sleepers as the kernel unwinds them", () => {
      let pid = 0;
      const stacks = new Map<number, string[]>();
      for (const line of section("stacks")) {
        const start = /^pid (\d+)$/.exec(line);
        if (start !== null) pid = Number(start[1]);
        const frame = /^\[<0>\] (\S+)\/0x/.exec(line);
        if (frame !== null) stacks.set(pid, [...(stacks.get(pid) ?? []), frame[1]]);
      }
      expect(stacks.size).toBeGreaterThanOrEqual(5);
      for (const [at, frames] of stacks) {
        const task = guest.tasks().tasks.find((t) => t.pid === at);
        const trace = task === undefined ? [] : guest.sleepingStack(task, 64);
        // The kernel leaves the scheduler's own frames out.
        const own = trace.map((a) => guest.symbolize(a)).slice(-frames.length);
        expect(own).toEqual(frames);
      }
    });

    test("hvi inspect shows it", async () => {
      const file = snapshot.path;
      const ps = await hvi(["inspect", file, "ps", "--json"]);
      expect(ps.code).toBe(0);
      const list = JSON.parse(ps.stdout) as { processes: Array<{ pid: number; comm: string }> };
      expect(list.processes.find((p) => p.pid === 1)?.comm).toBe("init");
      const code = await hvi(["inspect", file, "disasm", "vfs_read", "4"]);
      expect(code.stdout.split("\n")[0]).toBe("vfs_read+0x0:");
      const memory = await hvi(["inspect", file, "read", "linux_banner", "16"]);
      expect(memory.stdout).toContain("Linux version");
      const all = await hvi(["inspect", file, "symbols"]);
      expect(all.stdout.trimEnd().split("\n")).toHaveLength(guest.symbols.count);
      const wrong = await hvi(["inspect", file, "read", "no_such_symbol"]);
      expect(wrong.code).toBe(2);
      expect(wrong.stderr).toContain("no such symbol");
    });
  });
}
