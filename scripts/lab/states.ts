// SPDX-License-Identifier: MIT
/**
 * Steps of the module's life on its host: what stands in the way of VT-x, each told by the kernel's
 * log, by `hvi doctor` and by `hvi run`; more than one CPU; CPUs that come and go; suspend; another
 * kernel.
 */
import { APPEND } from "./machine.ts";
import type { Step, StepResult } from "./steps.ts";

interface Report {
  readonly vtx: { readonly state: string; readonly what: string; readonly hint: string };
}

/**
 * What `state NAME` or `states NAME` found (HELPERS below): `hvi doctor --json` names the state and the
 * next step; `hvi run --backend vmx` ends with exit code 1 and the same words; `states`: so does plain
 * `hvi doctor`, and `--backend auto` says as much and takes the software vCPU, `auto` being what it says.
 */
function found(r: StepResult, name: string, state: string, says: RegExp, auto?: string): string[] {
  const text = (ending: string): string => r.files.get(`${name}.${ending}`) ?? "";
  let report: Report;
  try {
    report = JSON.parse(text("json")) as Report;
  } catch {
    return [`${name}: hvi doctor --json gave no JSON: ${text("json")}`];
  }
  const { what, hint } = report.vtx;
  const line = hint === "" ? what : `${what} -> ${hint}`;
  const wrong: string[] = [];
  if (report.vtx.state !== state) wrong.push(`state ${report.vtx.state}, should be ${state}`);
  if (!says.test(line)) wrong.push(`it says: ${line}`);
  if (state !== "ready") {
    if (text("code").trim() !== "1") wrong.push(`--backend vmx: exit code ${text("code")}`);
    if (!text("vmx").includes(line)) wrong.push(`--backend vmx says: ${text("vmx")}`);
  }
  if (auto !== undefined) {
    if (!text("txt").includes(line)) wrong.push(`hvi doctor says: ${text("txt")}`);
    if (!text("auto").includes(auto)) wrong.push(`--backend auto says: ${text("auto")}`);
    if (state !== "ready" && !text("auto").includes(what))
      wrong.push(`--backend auto does not say why: ${text("auto")}`);
  }
  return wrong.map((w) => `${name}: ${w}`);
}

const HELPERS = `
# state NAME [PROGRAM]: what hvi, or PROGRAM that runs it, says of VT-x now.
state() {
	hvi=\${2:-hvi}
	$hvi doctor --json > /lab/out/$1.json
	$hvi run --backend vmx --kernel /lab/guest/vmlinuz --timeout 0.1 < /dev/null > /dev/null 2> /lab/out/$1.vmx
	echo $? > /lab/out/$1.code
}
states() {
	state $1
	hvi doctor > /lab/out/$1.txt
	hvi run --backend auto --verbose --kernel /lab/guest/vmlinuz --timeout 0.1 < /dev/null > /dev/null 2> /lab/out/$1.auto
	true
}
# refused MODULE ERRNO: it does not load.
refused() {
	insmod $1
	code=$?
	[ $code -eq $2 ] || fail "insmod $1: exit code $code, should be $2"
	[ ! -e /dev/hvi ] || fail "/dev/hvi is there all the same"
}
says() { dmesg | grep -q "$1" || fail "the kernel's log does not say: $1"; }
online() { echo $1 > /sys/devices/system/cpu/cpu1/online || fail "CPU 1 does not go to $1"; }
`;

/** The command line of the kernel after this one. */
const SECOND = `${APPEND} hvi.second`;

const CAN = "switch on Intel Virtualization Technology";

export const STATE_STEPS: readonly Step[] = [
  {
    name: "doctor",
    needs: ["module", "strangers", "kvm", "hvi", "guest"],
    limit: 400,
    allow: /hvi: (version magic|disagrees about version|CPU 0 is in VMX operation)/,
    script: `${HELPERS}
states absent
refused /lab/hvi-kernel.ko 8
state kernel
insmod /lab/hvi-abi.ko || fail "hvi-abi.ko does not load"
state abi
unload
kvm
kvm-guest &
holder=$!
sleep 1
refused /lab/hvi.ko 16
says 'another hypervisor holds VT-x; stop its guests and unload it (rmmod kvm_intel)'
state kvm
kill $holder; wait $holder 2> /dev/null
no_kvm
load
mkdir -p /etc
echo 'user:x:1000:1000::/tmp:/bin/sh' > /etc/passwd
state user "start-stop-daemon -S -c 1000:1000 -x /lab/bin/hvi --"
hvi doctor --json > /lab/out/ready.json
unload`,
    judge: (r) => [
      ...found(r, "absent", "module-not-loaded", /not loaded -> .*insmod/, "ready to run on soft"),
      ...found(r, "kernel", "other-kernel", /for another kernel: .* -> make -C hv.vmx clean/),
      ...found(r, "abi", "abi-differs", /speaks ABI version 2, .* version 1 -> load/),
      ...found(r, "kvm", "kvm-holds-vmx", /KVM holds VT-x -> .*rmmod kvm_intel/),
      ...found(r, "user", "not-root", /root -> sudo/),
      ...found(r, "ready", "ready", /hvi.ko, ABI 1/),
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
    judge: (r) => found(r, "no-vtx", "no-vtx", /no VT-x, .*-> .*--backend soft/),
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
    judge: (r) => found(r, "locked", "locked", new RegExp(`locked by the firmware -> ${CAN}`)),
  },
  {
    name: "doctor.old-vtx",
    needs: ["module"],
    machine: { model: "corei5_lynnfield_750" },
    limit: 120,
    allow: /hvi: this CPU lacks/,
    script: `${HELPERS}
refused /lab/hvi.ko 95
says 'lacks unrestricted guest .*--backend soft'`,
  },
  {
    name: "kvm.beside",
    needs: ["module", "kvm", "migrate"],
    limit: 200,
    script: `${HELPERS}
kvm
load
kvm-guest && fail "KVM has a guest beside hvi"
migrate --seconds 1 || fail "migrate: exit code $?"
no_kvm
kvm
no_kvm
kvm
unload
kvm-guest &
holder=$!
sleep 1
kill -0 $holder || fail "KVM has no guest after hvi"
kill $holder; wait $holder 2> /dev/null
no_kvm`,
  },
  {
    // From 6.12 on KVM takes VT-x when it is loaded. This machine's second takes a minute.
    name: "kernel.6.12",
    needs: ["module", "kvm", "hvi", "guest", "migrate"],
    machine: { series: "6.12", model: "arrow_lake" },
    limit: 400,
    // The second: KVM's, which has left its folder behind.
    allow: /hvi: CPU 0 is in VMX operation|debugfs: Directory 'kvm'/,
    script: `${HELPERS}
kvm
state idle-kvm
refused /lab/hvi.ko 16
says 'another hypervisor holds VT-x; stop its guests and unload it (rmmod kvm_intel)'
no_kvm
load
insmod /lab/kvm/irqbypass.ko
insmod /lab/kvm/kvm.ko
insmod /lab/kvm/kvm-intel.ko && fail "kvm-intel.ko loads beside hvi"
migrate --seconds 0.05 || fail "migrate: exit code $?"
unload
insmod /lab/kvm/kvm-intel.ko || fail "kvm-intel.ko does not load after hvi"
no_kvm
load
unload`,
    judge: (r) => found(r, "idle-kvm", "kvm-holds-vmx", /KVM holds VT-x -> .*rmmod kvm_intel/),
  },
  {
    name: "kernel.5.10",
    needs: ["module", "migrate"],
    machine: { series: "5.10" },
    limit: 200,
    script: `
load
migrate --seconds 1 || fail "migrate: exit code $?"
unload
load
unload`,
  },
  {
    name: "suspend.ram",
    needs: ["module", "migrate", "fuzz"],
    limit: 200,
    allow: /TSC ADJUST differs/,
    script: `
load
migrate --seconds 4 &
vms=$!
victim --seconds 4 &
victim=$!
echo deep > /sys/power/mem_sleep
for n in 1 2 3; do
	usleep 500000
	echo mem > /sys/power/state || fail "no suspend to RAM"
done
wait $vms || fail "migrate: exit code $?"
wait $victim || fail "victim: exit code $?"
dmesg | grep -c 'Waking up from system sleep state S3'
unload
load
unload`,
  },
  {
    name: "cpus.migrate",
    needs: ["module", "migrate"],
    machine: { cpus: 2 },
    limit: 300,
    script: `
load
migrate --seconds 2 || fail "migrate: exit code $?"
migrate --seconds 2 --vcpus 2 || fail "migrate: exit code $?"
migrate --seconds 2 --vms 3 || fail "migrate: exit code $?"
unload`,
  },
  {
    name: "cpus.hotplug",
    needs: ["module", "migrate", "fuzz"],
    machine: { cpus: 2 },
    limit: 300,
    // The kernel breaks the affinity of threads whose CPU goes.
    allow: /no longer affine to cpu/,
    script: `${HELPERS}
load
migrate --seconds 4 &
vms=$!
victim --seconds 4 &
victim=$!
for n in 1 2 3 4 5; do
	usleep 200000
	online 0
	usleep 300000
	online 1
done
wait $vms || fail "migrate under hotplug: exit code $?"
wait $victim || fail "victim under hotplug: exit code $?"
# Stopped threads, their VMCS active on the CPU that goes.
taskset 2 migrate --seconds 3 &
vms=$!
sleep 1
kill -STOP $vms
online 0
kill -CONT $vms
sleep 1
online 1
wait $vms || fail "migrate after a stop: exit code $?"
online 0
unload
load
online 1
taskset 2 migrate --seconds 1 || fail "migrate on a CPU that came later: exit code $?"
unload`,
  },
  {
    name: "suspend.disk",
    needs: ["module", "migrate"],
    machine: { cpus: 2 },
    limit: 300,
    // All of it but the writing: there is no place to write to.
    allow: /PM: Cannot (find swap device|get swap writer)|no longer affine to cpu/,
    script: `
load
migrate --seconds 3 &
vms=$!
sleep 1
echo shutdown > /sys/power/disk
echo disk > /sys/power/state
dmesg | grep -q 'PM: hibernation: Image created' || fail "no image was made"
wait $vms || fail "migrate: exit code $?"
unload`,
  },
  {
    // The second CPU's firmware has VT-x off, and it comes when the module is there.
    name: "cpus.one-without",
    needs: ["module", "migrate"],
    machine: { cpus: 2, firmware: "vtx-off-on-others", append: "maxcpus=1" },
    limit: 200,
    allow: /VMX \(outside TXT\) disabled by BIOS|hvi: /,
    script: `${HELPERS}
load
online 1
says 'disabled and locked by the firmware of CPU 1; ${CAN}'
says 'CPU 1 cannot run guests'
taskset 2 migrate --seconds 1 2> /tmp/said && fail "CPU 1 runs guests"
grep -q 'HVI_RUN: No such device' /tmp/said || fail "migrate said: $(cat /tmp/said)"
taskset 1 migrate --seconds 1 || fail "CPU 0 does not run guests: exit code $?"
unload
refused /lab/hvi.ko 95
says 'disabled and locked by the firmware; ${CAN}'`,
  },
  {
    // The step ends in the kernel that comes after; in VMX operation it would not start.
    name: "reboot.kexec",
    needs: ["module", "migrate", "second"],
    machine: { cpus: 2, append: "hvi.step=kexec" },
    limit: 200,
    script: `
load
migrate --seconds 100 &
sleep 1
kexec /lab/second/vmlinuz /lab/second/initrd "${SECOND}" || fail "kexec: exit code $?"`,
  },
  {
    name: "reboot.crash",
    needs: ["module", "migrate", "second"],
    machine: { cpus: 2, append: "crashkernel=256M" },
    limit: 200,
    crashes: true,
    // Loading it checks sums for half a minute without a break.
    script: `
load
echo 0 > /proc/sys/kernel/soft_watchdog
kexec /lab/second/vmlinuz /lab/second/initrd "${SECOND} nr_cpus=1" crash || fail "kexec: exit code $?"
migrate --seconds 100 &
sleep 1
echo c > /proc/sysrq-trigger`,
  },
];
