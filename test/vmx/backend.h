/* SPDX-License-Identifier: MIT */
/*
 * backend.h - /dev/hvi or the software vCPU behind the same four calls, for
 * programs of one file: they run in the lab and, with --soft, anywhere.
 *
 * Handles are file descriptors for the device and numbers of the library for
 * the software vCPU. Calls answer 0 or more, or a negative errno.
 */
#ifndef HVI_TEST_BACKEND_H
#define HVI_TEST_BACKEND_H

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "../../hv/abi/hvi.h"

static bool on_soft;
static long (*soft_open)(void);
static long (*soft_ioctl)(long, unsigned long, void *);
static void *(*soft_mmap)(long, __u64, __u64);
static int (*soft_close)(long);

/* Takes the software vCPU instead of the device; ends the program when it cannot be had. */
static inline void use_soft(const char *path)
{
	void *lib = dlopen(path, RTLD_NOW);

	if (lib) {
		soft_open = (long (*)(void))dlsym(lib, "hvi_soft_open");
		soft_ioctl = (long (*)(long, unsigned long, void *))dlsym(lib, "hvi_soft_ioctl");
		soft_mmap = (void *(*)(long, __u64, __u64))dlsym(lib, "hvi_soft_mmap");
		soft_close = (int (*)(long))dlsym(lib, "hvi_soft_close");
	}
	if (!lib || !soft_open || !soft_ioctl || !soft_mmap || !soft_close) {
		fprintf(stderr, "--soft: %s\n", dlerror());
		exit(2);
	}
	on_soft = true;
}

static inline long hvi_open(void)
{
	int fd;

	if (on_soft)
		return soft_open();
	fd = open("/dev/hvi", O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static inline long hvi_call(long handle, unsigned long request, void *arg)
{
	int r;

	if (on_soft)
		return soft_ioctl(handle, request, arg);
	r = ioctl((int)handle, request, arg);
	return r < 0 ? -errno : r;
}

/* NULL when it is refused. */
static inline void *hvi_map(long handle, __u64 offset, __u64 size)
{
	void *p;

	if (on_soft)
		return soft_mmap(handle, offset, size);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, (int)handle, (off_t)offset);
	return p == MAP_FAILED ? NULL : p;
}

/* The software vCPU's mappings belong to the VM and go with it. */
static inline void hvi_unmap(void *p, __u64 size)
{
	if (!on_soft && p)
		munmap(p, size);
}

static inline void hvi_close(long handle)
{
	if (on_soft)
		soft_close(handle);
	else
		close((int)handle);
}

/* The state of a CPU in real mode with all segments at 0, at `rip`. */
static inline void real_mode(struct hvi_vcpu *v, __u64 rip)
{
	for (int i = 0; i < HVI_SEGS; i++)
		v->seg[i] = (struct hvi_segment){ .limit = 0xffff, .access = 0x93 };
	v->seg[HVI_CS].access = 0x9b;
	v->rip = rip;
	v->rflags = 2;
	v->dirty |= HVI_STATE_GPR | HVI_STATE_SEG;
}

#endif
