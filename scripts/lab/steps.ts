/**
 * What the lab's machine does, step by step. A step is a shell script (busybox) that runs in the
 * machine with /lab/lib.sh at hand; its exit code, its output, the kernel's warnings and the files
 * that it leaves in /lab/out decide how it went.
 */
import type { Ingredient } from "./ingredients.ts";

export interface StepResult {
  readonly code: number;
  /** Seconds of the machine's own time. */
  readonly seconds: number;
  readonly output: readonly string[];
  /** Warnings and worse of the kernel. */
  readonly kmsg: readonly string[];
  readonly files: ReadonlyMap<string, string>;
}

export interface Step {
  readonly name: string;
  readonly needs: readonly Ingredient[];
  readonly script: string;
  /** Seconds of real time, on a busy machine. */
  readonly limit: number;
  /** Kernel warnings that belong to what the step does. */
  readonly allow?: RegExp;
  /** What is wrong, beyond an exit code other than 0 and warnings; empty when nothing is. */
  readonly judge?: (result: StepResult) => string[];
}

/** Functions for the steps' scripts: /lab/lib.sh. */
export const LIBRARY = `
fail() { echo "FAIL: $*"; exit 1; }
load() { insmod /lab/hvi.ko "$@" || fail "hvi.ko does not load: $(dmesg | tail -n 3)"; }
unload() { rmmod hvi || fail "hvi.ko does not unload"; }
# Memory of the kernel that a leak would show in, in KiB.
kernel_memory() {
	sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory
	awk '/^(Slab|KernelStack|PageTables|VmallocUsed|Percpu):/ { sum += $2 } /^MemFree:/ { free = $2 }
	     END { print sum, free }' /proc/meminfo
}
`;

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
for m in irqbypass kvm kvm-intel; do insmod /lab/kvm/$m.ko || fail "$m.ko does not load"; done
# KVM switches VMX on with its first guest.
/lab/bin/kvm-guest &
holder=$!
sleep 1
insmod /lab/hvi.ko; first=$?
[ $first -ne 0 ] || rmmod hvi
kill $holder; wait $holder 2> /dev/null
dmesg | grep hvi
for m in kvm-intel kvm irqbypass; do rmmod $m || fail "$m does not unload"; done
[ $first -ne 0 ] || fail "hvi.ko loads while KVM has VMX on"
load
unload`,
  },
  {
    name: "module.selftest",
    needs: ["module", "selftest"],
    limit: 300,
    script: `
load
timeout -s KILL 200 /lab/bin/selftest || fail "selftest: exit code $?"
unload`,
  },
];
