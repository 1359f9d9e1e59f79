#!/bin/sh
# SPDX-License-Identifier: MIT
# kills.sh - engines killed at random moments.
#
#   kills.sh ROUNDS COMMAND...
#
# Starts COMMAND (victim, or `hvi run ...`), kills it with SIGKILL after 0 to KILLS_MS milliseconds
# (1000), waits for it, and looks at the module's users: 0 a moment later. Exit code 1 when that is not so, or when
# COMMAND went by itself. Runs with busybox; where the shell has no RANDOM, /dev/urandom serves.
set -u
rounds=$1
shift
dice() { echo $(($(od -An -N2 -tu2 /dev/urandom 2> /dev/null || hexdump -n 2 -e '"%u"' /dev/urandom) % $1)); }

n=0
while [ $n -lt "$rounds" ]; do
	n=$((n + 1))
	"$@" > /dev/null < /dev/null &
	engine=$!
	ms=$(dice "${KILLS_MS:-1000}")
	usleep $((ms * 1000)) 2> /dev/null || sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
	kill -9 $engine 2> /dev/null || { echo "kills: round $n: $1 went by itself"; exit 1; }
	wait $engine 2> /dev/null
	# 137: it was SIGKILL that ended it.
	[ $? -eq 137 ] || { echo "kills: round $n: $1 ended with another code than 137"; exit 1; }
	[ -r /sys/module/hvi/refcnt ] || continue
	tries=0
	while [ "$(cat /sys/module/hvi/refcnt)" != 0 ]; do
		tries=$((tries + 1))
		[ $tries -le 20 ] || { echo "kills: round $n: hvi.ko has users"; exit 1; }
		usleep 50000 2> /dev/null || sleep 0.05
	done
done
echo "kills: $rounds rounds"
