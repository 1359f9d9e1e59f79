// SPDX-License-Identifier: MIT
/*
 * kvm-guest.c - holds a guest of KVM open until it is killed: from the first
 * one on, KVM has VMX switched on.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0 || ioctl(kvm, KVM_CREATE_VM, 0) < 0) {
		perror("kvm-guest: /dev/kvm");
		return 1;
	}
	for (;;)
		pause();
}
