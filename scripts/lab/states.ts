// SPDX-License-Identifier: MIT
/**
 * Steps of the module's life on its host: what stands in the way of VT-x, each told by the kernel's
 * log, by `hvi doctor` and by `hvi run`; more than one CPU; CPUs that come and go; suspend; another
 * kernel.
 */
import type { Step, StepResult } from "./steps.ts";

/** What `hvi run --backend auto` does in a state: the software vCPU, VT-x, or an error. */
type Auto = "soft" | "vmx" | "error";

interface Report {
  readonly vtx: { readonly state: string; readonly what: string; readonly hint: string };
}

/**
 * What `state NAME` found (HELPERS below): `hvi doctor` says the state, in words too, `--backend vmx`
 * ends with exit code 1 and the same words, `--backend auto` does as it should.
 */
function found(r: StepResult, name: string, state: string, says: RegExp, auto: Auto): string[] {
  const text = (ending: string): string => r.files.get(`${name}.${ending}`) ?? "";
  let report: Report;
  try {
    report = JSON.parse(text("json")) as Report;
  } catch {
    return [`${name}: hvi doctor --json gave no JSON: ${text("json")}`];
  }
  const { what, hint } = report.vtx;
  const wrong: string[] = [];
  if (report.vtx.state !== state) wrong.push(`state ${report.vtx.state}, should be ${state}`);
  if (!says.test(`${what} -> ${hint}`)) wrong.push(`it says: ${what} -> ${hint}`);
  const line = state === "ready" ? what : `${what} -> ${hint}`;
  if (!text("txt").includes(line)) wrong.push(`hvi doctor says: ${text("txt")}`);
  if (state !== "ready") {
    if (!/^1 /.test(text("code"))) wrong.push(`--backend vmx: exit code ${text("code")}`);
    if (!text("vmx").includes(line)) wrong.push(`--backend vmx says: ${text("vmx")}`);
  }
  const ran = auto === "error" ? line : `ready to run on ${auto}`;
  if (!text("auto").includes(ran)) wrong.push(`--backend auto says: ${text("auto")}`);
  if (auto === "soft" && !text("auto").includes(line))
    wrong.push(`--backend auto does not say why: ${text("auto")}`);
  return wrong.map((w) => `${name}: ${w}`);
}

const HELPERS = `
# state NAME [COMMAND...]: what hvi says of VT-x now; COMMAND runs it as somebody else.
state() {
	name=$1
	shift
	$@ hvi doctor --json > /lab/out/$name.json
	$@ hvi doctor > /lab/out/$name.txt
	$@ hvi run --backend vmx --kernel /lab/guest/vmlinuz --timeout 0.1 < /dev/null > /dev/null 2> /lab/out/$name.vmx
	echo "$? of hvi run" > /lab/out/$name.code
	$@ hvi run --backend auto --verbose --kernel /lab/guest/vmlinuz --timeout 0.1 < /dev/null > /dev/null 2> /lab/out/$name.auto
}
# refused MODULE ERRNO: it does not load.
refused() {
	insmod $1
	code=$?
	[ $code -eq $2 ] || fail "insmod $1: exit code $code, should be $2"
	[ ! -e /dev/hvi ] || fail "/dev/hvi is there all the same"
}
says() { dmesg | grep -q "$1" || fail "the kernel's log does not say: $1"; }
kvm() { for m in irqbypass kvm kvm-intel; do insmod /lab/kvm/$m.ko || fail "$m.ko does not load"; done; }
no_kvm() { for m in kvm-intel kvm irqbypass; do rmmod $m || fail "$m does not unload"; done; }
online() { echo $1 > /sys/devices/system/cpu/cpu1/online || fail "CPU 1 does not go to $1"; }
`;

const CAN = "switch on Intel Virtualization Technology";

export const STATE_STEPS: readonly Step[] = [
  {
    name: "doctor",
    needs: ["module", "strangers", "kvm", "hvi", "guest"],
    limit: 400,
    allow: /hvi: version magic|hvi: CPU 0 is in VMX operation/,
    script: `${HELPERS}
state absent
refused /lab/hvi-kernel.ko 8
state kernel
insmod /lab/hvi-abi.ko || fail "hvi-abi.ko does not load"
state abi
unload
kvm
/lab/bin/kvm-guest &
holder=$!
sleep 1
refused /lab/hvi.ko 16
says 'another hypervisor holds VT-x; stop its guests and unload it (rmmod kvm_intel)'
state kvm
kill $holder; wait $holder 2> /dev/null
no_kvm
load
state user setuidgid 1000:1000
state ready
unload`,
    judge: (r) => [
      ...found(r, "absent", "module-not-loaded", /not loaded -> .*insmod/, "soft"),
      ...found(r, "kernel", "other-kernel", /version magic '.*' should be '.*make -C/, "soft"),
      ...found(r, "abi", "abi-differs", /speaks ABI version 2, .* version 1 -> load/, "error"),
      ...found(r, "kvm", "kvm-holds-vmx", /KVM holds VT-x -> .*rmmod kvm_intel/, "soft"),
      ...found(r, "user", "not-root", /root -> sudo/, "soft"),
      ...found(r, "ready", "ready", /hvi.ko, ABI 1/, "vmx"),
    ],
  },
  {
    name: "doctor.no-vtx",
    needs: ["module", "hvi", "guest"],
    machine: { without: "vmx" },
    limit: 200,
    allow: /hvi: this CPU has no VT-x/,
    script: `${HELPERS}
refused /lab/hvi.ko 95
says 'this CPU has no VT-x; .*--backend soft'
state no-vtx`,
    judge: (r) => found(r, "no-vtx", "no-vtx", /no VT-x, .*-> .*--backend soft/, "soft"),
  },
  {
    name: "doctor.locked",
    needs: ["module", "hvi", "guest"],
    machine: { firmware: "vtx-off" },
    limit: 200,
    allow: /hvi: VT-x is disabled and locked by the firmware/,
    script: `${HELPERS}
refused /lab/hvi.ko 95
says 'disabled and locked by the firmware; ${CAN}'
state locked`,
    judge: (r) =>
      found(r, "locked", "locked", new RegExp(`locked by the firmware -> ${CAN}`), "soft"),
  },
  {
    name: "module.old-vtx",
    needs: ["module"],
    machine: { model: "corei5_lynnfield_750" },
    limit: 120,
    allow: /hvi: this CPU lacks/,
    script: `${HELPERS}
refused /lab/hvi.ko 95
says 'lacks unrestricted guest .*--backend soft'`,
  },
];
