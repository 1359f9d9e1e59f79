#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# The first process of the lab's machine. It runs the steps of /lab/steps one after the other and
# tells on the second serial line what they do, in lines that scripts/lab/channel.ts reads:
#   @lab boot SECONDS            the machine is up; seconds of its own time since it started
#   @lab begin NAME              a step starts
#   | TEXT                       a line that it prints
#   @lab kmsg <LEVEL>TEXT        a line of the kernel's log of the step, warnings and worse
#   @lab file NAME BYTES SUM     a file that it leaves in /lab/out: size and md5 of what follows,
#   + BASE64                     which is gzip in base64
#   @lab end NAME EXIT SECONDS   the step is over
#   @lab beat SECONDS            still alive, every few seconds
#   @lab done                    all steps are over; the machine goes off
export PATH=/bin:/sbin:/lab/bin HOME=/root TERM=vt100
/bin/busybox mkdir -p /proc /sys /dev /tmp /root /lab/out
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox mount -t debugfs debug /sys/kernel/debug
/bin/busybox --install -s /bin
mkdir -p /dev/shm /dev/pts
mount -t devpts pts /dev/pts
# The line as it is: no echo, no translation of line ends, no flow control.
stty -F /dev/ttyS1 115200 raw -echo -crtscts clocal
exec 3> /dev/ttyS1

now() {
	read up idle < /proc/uptime
	echo "$up"
}

# What the kernel has said since the last call, warnings and worse (levels 0 to 4).
kmsg() {
	dmesg -r > /tmp/kmsg.now
	dmesg -c > /dev/null
	grep '^<[0-4]>' /tmp/kmsg.now | head -n 120 | sed 's/^/@lab kmsg /' >&3
}

# Sends /lab/out.
files() {
	for file in /lab/out/*; do
		[ -f "$file" ] || continue
		gzip -c "$file" > /tmp/send
		set -- $(md5sum /tmp/send)
		echo "@lab file ${file##*/} $(stat -c %s /tmp/send) $1" >&3
		base64 /tmp/send | sed 's/^/+ /' >&3
		rm -f "$file" /tmp/send
	done
}

echo "@lab boot $(now)" >&3
dmesg -c > /dev/null
(
	while sleep 5; do
		echo "@lab beat $(now)" >&3
	done
) &
beat=$!

for step in /lab/steps/*; do
	name=${step##*/}
	name=${name#*-}
	echo "@lab begin $name" >&3
	from=$(now)
	{
		cd /lab
		sh "$step" < /dev/null 3>&-
		echo $? > /tmp/exit
	} 2>&1 | awk '{ print "| " $0; fflush() }' >&3
	to=$(now)
	kmsg
	files
	echo "@lab end $name $(cat /tmp/exit) $(echo "$to $from" | awk '{ print $1 - $2 }')" >&3
done
kill $beat
echo "@lab done" >&3
# The last byte must have left the port before the machine goes off.
sleep 1
poweroff -f
