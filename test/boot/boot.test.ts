// SPDX-License-Identifier: MIT
/**
 * Stock Debian kernels on the software vCPU with every protection on: a benign workload, all attacks,
 * and the benign workload again, in one boot a kernel.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  judge,
  parseAlerts,
  type RunVerdict,
  describe as tell,
} from "../../fixtures/attacks/verdict.ts";
import { ALL_SERIES, guest } from "../../fixtures/guests.ts";
import { type Ended, hvi } from "../support/hvi.ts";

/** Seconds for one boot with everything in it; CI's machines are slow. */
const LIMIT = 420;

for (const series of ALL_SERIES) {
  describe(`Linux ${series}`, () => {
    let dir = "";
    let ended: Ended;
    let run: RunVerdict;

    beforeAll(
      async () => {
        const g = await guest(series);
        dir = mkdtempSync(join(tmpdir(), "hvi-boot-test-"));
        const alerts = join(dir, "alerts.jsonl");
        ended = await hvi([
          ...["run", "--backend", "soft", "--kernel", g.kernel, "--initrd", g.initrd],
          ...["--append", "console=ttyS0 hvi.mode=benign,attack,benign-brief,poweroff"],
          ...["--protect", "all", "--alerts", alerts, "--timeout", String(LIMIT)],
        ]);
        run = judge(
          ended.stdout,
          existsSync(alerts) ? parseAlerts(readFileSync(alerts, "utf8")) : [],
        );
      },
      (LIMIT + 30) * 1000,
    );

    afterAll(() => rmSync(dir, { recursive: true, force: true }));

    test("boots, works and powers off", () => {
      expect({
        code: ended.code,
        rc: run.rc,
        stderr: ended.code === 0 ? "" : ended.stderr,
      }).toEqual({
        code: 0,
        rc: 0,
        stderr: "",
      });
    });

    test("the engine knows the guest and protects it", () => {
      const types = run.events.map((e) => e.type);
      expect(types).toContain("guest-identified");
      expect(types).toContain("protection-active");
      expect(types).not.toContain("protection-failed");
    });

    test("the benign workload raises no alert, before the attacks and after", () => {
      expect(run.failures).toEqual([]);
      expect(run.benignRuns).toBe(2);
      expect(run.stray.map(tell)).toEqual([]);
    });

    test("every attack is denied and blamed on its module", () => {
      const bad = run.attacks.filter((a) => a.verdict !== "denied");
      expect(bad.map((a) => `${a.name}: ${a.verdict}`)).toEqual([]);
      expect(run.attacks.length).toBeGreaterThanOrEqual(45);
    });

    test("each alert names the victim's bytes, old and new", () => {
      for (const a of run.attacks) {
        for (const v of a.alerts) {
          expect(v.victim.gva).toMatch(/^0x[0-9a-f]+$/);
          expect(v.access.size).toBeGreaterThan(0);
          expect(v.access.new).not.toBe(v.access.old ?? "");
        }
      }
    });
  });
}
