#!/bin/sh
# SPDX-License-Identifier: MIT
# counters.sh - what must be as before once all VMs are closed.
#
#   counters.sh save FILE       writes down what the kernel uses now
#   counters.sh compare FILE    says what differs from then; exit code 1 when it should not
#   counters.sh now             what can be told without a comparison: users, vmalloc, dmesg
#   counters.sh run COMMAND...  runs it in a memory cgroup of its own and says what the kernel still
#                               holds for it when it has ended; exit code 1 when it does, or COMMAND's
#
# `run` is exact: the module charges every page that it takes to its caller's cgroup, so a page that
# stays of each VM is seen (16 KiB and 16 more a CPU are allowed, which the kernel keeps in stock). It
# needs cgroup v2 and a kernel that tells `kernel` in memory.stat (5.18); without them it says so and
# fails.
#
# Runs with busybox, as root, hvi.ko loaded. `save` belongs behind a first round of the same work:
# that one makes what stays (caches, folders, per-CPU lists). Looked at:
#   users of the module            must be 0 (/sys/module/hvi/refcnt)
#   vmalloc ranges of the module   must be as many as before (/proc/vmallocinfo, lines with [hvi])
#   memory of the kernel           at most 2 MiB more (Slab, KernelStack, PageTables, VmallocUsed,
#                                  Percpu); what is free is told, it differs by 16 MiB by itself
#   each slab                      at most 256 KiB more; what grew by 32 KiB and more is told
#   dmesg                          nothing that says BUG, WARNING, Oops, a lockup, a bad page
#   kmemleak, where the kernel has it: no new object
set -u
bad=0
complain() { echo "counters: $*"; bad=1; }

# Lines of NAME VALUE.
gather() {
	sync
	echo 3 > /proc/sys/vm/drop_caches
	[ ! -w /proc/sys/vm/compact_memory ] || echo 1 > /proc/sys/vm/compact_memory
	awk '/^(Slab|KernelStack|PageTables|VmallocUsed|Percpu):/ { sum += $2 }
	     /^MemFree:/ { free = $2 }
	     END { print "kernel " sum; print "free " free }' /proc/meminfo
	# Files under /proc say when they cannot be read; slabinfo is root's.
	awk 'NR > 2 { print "slab:" $1 " " int($3 * $4 / 1024) }' /proc/slabinfo
	echo "vmalloc $(grep -c '\[hvi\]' /proc/vmallocinfo)"
}

now() {
	if [ -r /sys/module/hvi/refcnt ]; then
		users=$(cat /sys/module/hvi/refcnt)
		[ "$users" = 0 ] || complain "hvi.ko has $users users"
	else
		complain "hvi.ko is not loaded"
	fi
	said=$(dmesg | grep -v 'ommand line:' | grep -E '\bBUG:|kernel BUG|WARNING:|Oops|general protection fault|Call Trace|soft lockup|hung task|blocked for more than|rcu.*(self-detected|detected stall)|Bad page|bad page|list_(add|del) corruption|leaked|refcount_t|Out of memory|page allocation failure|vmwrite|unchecked MSR' | head -n 20)
	[ -z "$said" ] || complain "dmesg: $said"
	if [ -w /sys/kernel/debug/kmemleak ]; then
		echo scan > /sys/kernel/debug/kmemleak
		leaks=$(grep -c '^unreferenced' /sys/kernel/debug/kmemleak)
		[ "$leaks" = 0 ] || complain "kmemleak: $leaks objects: $(head -n 30 /sys/kernel/debug/kmemleak)"
	fi
}

compare() {
	gather > "$1.now"
	awk -v before="$1" '
		BEGIN { while ((getline line < before) > 0) { split(line, f, " "); was[f[1]] = f[2] } }
		{ grew = $2 - was[$1] }
		$1 == "kernel" { print "counters: kernel memory " was[$1] " KiB, now " $2
				 if (grew > 2048) { print "counters: it is " grew " KiB more"; bad = 1 } }
		$1 == "free" { print "counters: free " was[$1] " KiB, now " $2 }
		$1 == "vmalloc" && grew > 0 { print "counters: hvi.ko has " $2 " vmalloc ranges, had " was[$1]; bad = 1 }
		/^slab:/ && grew >= 32 { print "counters: " $1 " grew by " grew " KiB to " $2
					 if (grew > 256) bad = 1 }
		END { exit bad }' "$1.now" || bad=1
	rm -f "$1.now"
}

group=/sys/fs/cgroup/hvi-counters

# VALUE of NAME in memory.stat, in KiB; nothing when the kernel does not tell it.
stat_of() { awk -v name="$1" '$1 == name { print int($2 / 1024) }' $group/memory.stat; }

# Kernel memory of the group but for slabs, which caches fill, and per-CPU counters.
pages_of() { echo $(($(stat_of kernel) - $(stat_of slab) - $(stat_of percpu))); }

run() {
	grep -q ' /sys/fs/cgroup cgroup2' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup || return 1
	echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir -p $group || return 1
	[ -n "$(stat_of kernel)" ] || { complain "this kernel does not tell what it holds for a group"; return; }
	before=$(pages_of)
	sh -c 'echo $$ > "$0"/cgroup.procs; exec "$@"' $group "$@"
	code=$?
	[ $code -eq 0 ] || bad=$code
	tries=0
	while grep -q . $group/cgroup.procs && [ $tries -lt 40 ]; do
		tries=$((tries + 1))
		sleep 0.05
	done
	sync
	echo 3 > /proc/sys/vm/drop_caches
	left=$(($(pages_of) - before))
	echo "counters: left of $1: $left KiB of pages, $(stat_of slab) KiB of slabs"
	[ $left -le $((16 + 16 * $(nproc))) ] || complain "$left KiB of kernel memory stay when $1 has ended"
	[ "$(stat_of slab)" -le 512 ] || complain "$(stat_of slab) KiB of slabs stay when $1 has ended"
	rmdir $group
}

case "${1:-}-$#" in
run-1) echo "usage: counters.sh run COMMAND..."; exit 2 ;;
run-*) shift; run "$@" ;;
save-2) gather > "$2" ;;
compare-2) now; compare "$2" ;;
now-1) now ;;
*) echo "usage: counters.sh save FILE | compare FILE | now | run COMMAND..."; exit 2 ;;
esac
exit $bad
