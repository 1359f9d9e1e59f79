// SPDX-License-Identifier: MIT
/**
 * What the lab's machine does, step by step. A step is a shell script (busybox) that runs in the
 * machine with /lab/lib.sh at hand; its exit code, its output, the kernel's warnings and the files
 * that it leaves in /lab/out decide how it went.
 */
import { readFileSync } from "node:fs";
import { overBudget, parseCosts } from "../../bench/vmx/costs.ts";
import { differences } from "../../fixtures/attacks/compare.ts";
import { describe, judge as judgeRun, parseAlerts } from "../../fixtures/attacks/verdict.ts";
import { SERIES, type Series } from "../../fixtures/kernels/kernels.ts";
import { differences as transcriptDifferences } from "../../test/conformance/compare.ts";
import type { CpuModel, Firmware } from "./bochs.ts";
import {
  ATTACKS_APPEND,
  type Ingredient,
  SOFT_ATTACKS,
  SOFT_TRANSCRIPT,
  softCore,
} from "./ingredients.ts";
import { STATE_STEPS } from "./states.ts";

export interface StepResult {
  readonly code: number;
  /** Seconds of the machine's own time. */
  readonly seconds: number;
  readonly output: readonly string[];
  /** Warnings and worse of the kernel. */
  readonly kmsg: readonly string[];
  readonly files: ReadonlyMap<string, string>;
}

/** A machine that steps run in. */
export interface Hardware {
  readonly series: Series;
  readonly model: CpuModel;
  readonly cpus: number;
  /** A feature that the CPU is not to have. */
  readonly without?: string;
  readonly firmware?: Firmware;
  /** More for the kernel's command line. */
  readonly append?: string;
}

export interface Step {
  readonly name: string;
  /** Where it needs another machine than the usual one. */
  readonly machine?: Partial<Hardware>;
  readonly needs: readonly Ingredient[];
  readonly script: string;
  /** Seconds of real time, on a busy machine. */
  readonly limit: number;
  /** The kernel is to crash; the step goes on in the one that comes after. */
  readonly crashes?: boolean;
  /** Kernel warnings that belong to what the step does. */
  readonly allow?: RegExp;
  /** What is wrong, beyond an exit code other than 0 and warnings; empty when nothing is. */
  readonly judge?: (result: StepResult) => string[];
}

/** Functions for the steps' scripts: /lab/lib.sh. */
export const LIBRARY = `
fail() { echo "FAIL: $*"; exit 1; }
load() {
	# One that failed before us may have left it.
	[ ! -e /sys/module/hvi ] || rmmod hvi
	insmod /lab/hvi.ko "$@" || fail "hvi.ko does not load: $(dmesg | tail -n 3)"
}
unload() { rmmod hvi || fail "hvi.ko does not unload"; }
kvm() { for m in irqbypass kvm kvm-intel; do insmod /lab/kvm/$m.ko || fail "$m.ko does not load"; done; }
no_kvm() { for m in kvm-intel kvm irqbypass; do rmmod $m || fail "$m does not unload"; done; }
# leaves_nothing COMMAND: slabs and pages are after it as before.
leaves_nothing() {
	counters.sh save /tmp/counters
	counters.sh run "$@" || fail "$*: exit code $?"
	counters.sh compare /tmp/counters || fail "counters differ"
}
`;

/** The scenarios of the introspection core, and whether they say what they say on hv/soft. */
function coreStep(name: string, effort: "brief" | "every", limit: number): Step {
  return {
    name,
    needs: ["module", "hvi", "core", `soft-core-${effort}`],
    limit,
    script: `
load
BUN_BE_BUN=1 hvi /lab/core/main.js --backend vmx --effort ${effort} --times --images /lab/core \
	--zydis /lab/core/zydis.wasm --out /lab/out/core.transcript > /lab/out/core.log
code=$?
grep -v ' ms$' /lab/out/core.log
unload
exit $code`,
    judge: (r) => {
      const transcript = r.files.get("core.transcript");
      if (transcript === undefined) return ["no transcript came back"];
      const found = transcriptDifferences(readFileSync(softCore(effort), "utf8"), transcript);
      return found.map((d) => `differs from hv/soft: ${d}`);
    },
  };
}

export const STEPS: readonly Step[] = [
  {
    name: "machine",
    needs: [],
    limit: 120,
    script: `
grep -q '^flags.* vmx' /proc/cpuinfo || fail "no VT-x"
grep -m1 '^vmx flags' /proc/cpuinfo`,
  },
  {
    name: "module.load-unload",
    needs: ["module"],
    limit: 120,
    script: `
load
[ -c /dev/hvi ] || fail "/dev/hvi is not there"
[ "$(stat -c %a:%u /dev/hvi)" = 600:0 ] || fail "mode $(stat -c %a:%u /dev/hvi)"
unload
[ ! -e /dev/hvi ] || fail "/dev/hvi stays after unloading"
load
unload`,
  },
  {
    name: "module.busy",
    needs: ["module"],
    limit: 120,
    script: `
load
( exec 4<> /dev/hvi; rmmod hvi 2> /dev/null && exit 1; exit 0 ) || fail "unloads under an open VM"
unload`,
  },
  {
    name: "module.kvm-has-vmx",
    needs: ["module", "kvm"],
    limit: 120,
    // The module says why it does not go on.
    allow: /hvi: .*VMX|hvi: .*KVM/,
    script: `
kvm
# KVM switches VMX on with its first guest.
/lab/bin/kvm-guest &
holder=$!
sleep 1
insmod /lab/hvi.ko; first=$?
[ $first -ne 0 ] || rmmod hvi
kill $holder; wait $holder 2> /dev/null
dmesg | grep hvi
no_kvm
[ $first -ne 0 ] || fail "hvi.ko loads while KVM has VMX on"
load
unload`,
  },
  {
    name: "conformance",
    needs: ["module", "hvi", "conformance"],
    limit: 600,
    script: `
load
BUN_BE_BUN=1 hvi /lab/conformance/main.js --backend vmx --images /lab/conformance --bochs \
	--out /lab/out/vmx.transcript
code=$?
unload
exit $code`,
    judge: (r) => {
      const transcript = r.files.get("vmx.transcript");
      if (transcript === undefined) return ["no transcript came back"];
      const found = transcriptDifferences(readFileSync(SOFT_TRANSCRIPT, "utf8"), transcript);
      return found.map((d) => `differs from hv/soft: ${d}`);
    },
  },
  {
    // The usual machine's CPU has no sub-page write permissions.
    name: "conformance.spp",
    machine: { series: "6.12", model: "arrow_lake" },
    needs: ["module", "hvi", "conformance"],
    limit: 300,
    script: `
load
BUN_BE_BUN=1 hvi /lab/conformance/main.js --backend vmx --images /lab/conformance --only spp. \
	--out /lab/out/spp.transcript || fail "conformance: exit code $?"
unload
grep "not supported" /lab/out/spp.transcript && fail "the CPU has no SPP"
true`,
    judge: (r) => {
      const spp = (text: string) =>
        text
          .split(/^(?=== )/m)
          .filter((c) => c.startsWith("== spp."))
          .join("");
      const soft = spp(readFileSync(SOFT_TRANSCRIPT, "utf8"));
      const found = transcriptDifferences(soft, spp(r.files.get("spp.transcript") ?? ""));
      return found.map((d) => `differs from hv/soft: ${d}`);
    },
  },
  coreStep("core", "brief", 600),
  coreStep("core.every", "every", 3600),
  {
    name: "boot",
    needs: ["module", "hvi", "guest"],
    limit: 600,
    script: `
load
hvi run --backend vmx --kernel /lab/guest/vmlinuz --initrd /lab/guest/initramfs.cpio \
	--append "console=ttyS0 quiet hvi.mode=poweroff" \
	--console /lab/out/console.txt --verbose < /dev/null || fail "hvi run: exit code $?"
unload`,
    judge: (r) =>
      /HVI-DONE rc=0/.test(r.files.get("console.txt") ?? "")
        ? []
        : [
            "the guest did not come to its end",
            ...(r.files.get("console.txt") ?? "").split("\n").slice(-20),
          ],
  },
  {
    name: "attacks",
    needs: ["module", "hvi", "guest", "soft-attacks"],
    limit: 900,
    script: `
load
hvi run --backend vmx --kernel /lab/guest/vmlinuz --initrd /lab/guest/initramfs.cpio \
	--append "${ATTACKS_APPEND}" --protect all \
	--alerts /lab/out/alerts.jsonl --console /lab/out/console.txt < /dev/null ||
	fail "hvi run: exit code $?"
unload`,
    judge: (r) => {
      const alerts = parseAlerts(r.files.get("alerts.jsonl") ?? "");
      const run = judgeRun(r.files.get("console.txt") ?? "", alerts);
      const reasons: string[] = [...run.failures];
      for (const a of run.attacks)
        if (a.verdict !== "denied") reasons.push(`${a.name}: ${a.verdict}`);
      if (run.attacks.length < 45) reasons.push(`only ${run.attacks.length} attacks were tried`);
      if (run.benignRuns !== 2) reasons.push("the benign workload did not run twice");
      for (const v of run.stray) reasons.push(`false alarm: ${describe(v)}`);
      const soft = judgeRun(
        readFileSync(SOFT_ATTACKS.console, "utf8"),
        parseAlerts(readFileSync(SOFT_ATTACKS.alerts, "utf8")),
      );
      for (const line of differences(soft, run)) reasons.push(`not as on hv/soft: ${line}`);
      return reasons;
    },
  },
  {
    name: "exit-cost",
    needs: ["module", "kvm", "exit-cost", "engine-cost", "hvi"],
    limit: 400,
    script: `
kvm
exit-cost kvm > /lab/out/costs
[ $? -le 1 ] || fail "exit-cost kvm"
no_kvm
load
exit-cost hvi >> /lab/out/costs
[ $? -le 1 ] || fail "exit-cost hvi"
BUN_BE_BUN=1 hvi /lab/engine-cost/main.js --zydis /lab/engine-cost/zydis.wasm >> /lab/out/costs ||
	fail "engine-cost"
unload`,
    judge: (r) => overBudget(parseCosts(r.files.get("costs") ?? "")),
  },
  {
    name: "robust.entry",
    needs: ["module", "fuzz"],
    limit: 120,
    script: `
load
counters.sh run entry || fail "entry: exit code $?"
unload`,
  },
  {
    name: "robust.abuse",
    needs: ["module", "fuzz"],
    limit: 300,
    script: `
load
counters.sh run abuse || fail "abuse: exit code $?"
counters.sh now || fail "counters"
unload`,
  },
  {
    name: "robust.ioctls",
    needs: ["module", "fuzz"],
    limit: 400,
    script: `
load
# The first round makes what stays: caches, folders, per-CPU lists.
fuzz --seed 2 --calls 3000 > /tmp/first || { cat /tmp/first; fail "fuzz: exit code 1 or more"; }
leaves_nothing fuzz --seed 1 --calls 100000
unload`,
  },
  {
    name: "robust.kill",
    needs: ["module", "fuzz"],
    limit: 300,
    script: `
load
kills.sh 2 victim || fail "kills.sh: exit code $?"
leaves_nothing kills.sh 50 victim
unload
load
unload`,
  },
  {
    name: "robust.kill-engine",
    needs: ["module", "fuzz", "hvi", "guest"],
    limit: 900,
    script: `
load
engine() {
	# It takes about two seconds to its first entry.
	export KILLS_MS=5000
	"$@" hvi run --backend vmx --kernel /lab/guest/vmlinuz --initrd /lab/guest/initramfs.cpio \\
		--append "console=ttyS0" --protect all --console /tmp/console
}
engine kills.sh 1 || fail "kills.sh: exit code $?"
engine leaves_nothing kills.sh 50
unload
load
unload`,
  },
  ...STATE_STEPS,
];

/** What `npm run test:vmx` may run: that the module builds for each kernel, and the steps. */
export const STEP_NAMES: readonly string[] = [
  ...Object.keys(SERIES).map((series) => `build.${series}`),
  ...STEPS.map((step) => step.name),
];
