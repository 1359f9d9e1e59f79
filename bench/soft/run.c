// SPDX-License-Identifier: MIT
/*
 * run.c - million guest instructions a second of the software vCPU, next to
 * QEMU's TCG on the same image.
 *
 *   run LIBRARY IMAGE...
 *
 * A guest is a flat multiboot image (boot.S) that ends in a write to port
 * 0xf4. Times are CPU time, so that other work on the machine does not count.
 * QEMU tells no instruction count: its rate is hvi's count over its CPU time,
 * less that of an image which stops at once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../../hv/abi/hvi.h"

#define RAM	(64u << 20)
#define LOAD	0x100000u
#define PORT	0xf4

static long (*hvi_open)(void);
static long (*hvi_ioctl)(long, unsigned long, void *);
static void *(*hvi_mmap)(long, __u64, __u64);
static int (*hvi_close)(long);

/* CPU seconds of this thread, which runs the vCPU. */
static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what, long n)
{
	fprintf(stderr, "run: %s (%ld)\n", what, n);
	exit(1);
}

static void *symbol(void *lib, const char *name)
{
	void *p = dlsym(lib, name);

	if (!p) {
		fprintf(stderr, "run: no %s in the library\n", name);
		exit(1);
	}
	return p;
}

static struct hvi_segment flat(__u16 selector, __u32 access)
{
	return (struct hvi_segment){ .limit = 0xffffffff, .access = access, .selector = selector };
}

/* The state in which multiboot enters an image. */
static void enter_multiboot(struct hvi_vcpu *v)
{
	for (int i = 0; i < HVI_SEGS; i++)
		v->seg[i] = flat(16, 0xc093);
	v->seg[HVI_CS] = flat(8, 0xc09b);
	v->cr0 = 0x11;
	v->rip = LOAD;
	v->rflags = 2;
	v->dirty = HVI_STATE_GPR | HVI_STATE_SEG | HVI_STATE_CR;
}

struct result { double seconds; __u64 instructions; __u32 answer; };

static struct result run_soft(const char *image)
{
	struct hvi_create create = { .vcpus = 1 };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };
	struct hvi_run run = { 0 };
	struct result r;
	long vm = hvi_open(), e;
	struct hvi_vcpu *v;
	char *ram;
	FILE *f = fopen(image, "rb");

	if (!f)
		die(image, 0);
	if (vm < 0)
		die("open", vm);
	if ((e = hvi_ioctl(vm, HVI_CREATE, &create)))
		die("create", e);
	if ((e = hvi_ioctl(vm, HVI_ADD_MEMORY, &memory)))
		die("memory", e);
	ram = hvi_mmap(vm, HVI_MMAP_RAM, RAM);
	v = hvi_mmap(vm, HVI_MMAP_VCPU, HVI_VCPU_SIZE);
	if (!fread(ram + LOAD, 1, RAM - LOAD, f))
		die(image, 0);
	fclose(f);
	enter_multiboot(v);

	r.seconds = now();
	if ((e = hvi_ioctl(vm, HVI_RUN, &run)))
		die("run", e);
	r.seconds = now() - r.seconds;
	if (v->exit.reason != HVI_EXIT_IO || v->exit.number != PORT) {
		fprintf(stderr, "run: %s: exit %u at %llx: gpa %llx gva %llx number %u value %llx\n",
			image, v->exit.reason, v->rip, v->exit.gpa, v->exit.gva, v->exit.number,
			v->exit.value);
		exit(1);
	}
	r.instructions = v->counters.instructions;
	r.answer = (__u32)v->gpr[HVI_RAX];
	hvi_close(vm);
	return r;
}

/* CPU seconds of QEMU's TCG until the image writes to port 0xf4; 0 when it is not installed. */
static double run_qemu(const char *image)
{
	struct rusage u;
	int status;
	pid_t pid = fork();

	if (!pid) {
		execlp("qemu-system-x86_64", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max",
		       "-m", "64", "-display", "none", "-serial", "none", "-monitor", "none",
		       "-nodefaults", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		       "-kernel", image, (char *)NULL);
		_exit(127);
	}
	if (pid < 0 || wait4(pid, &status, 0, &u) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 127)
		return 0;
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

int main(int argc, char **argv)
{
	double idle = 0;
	void *lib = argc > 2 ? dlopen(argv[1], RTLD_NOW) : NULL;

	if (!lib)
		die(argc > 2 ? dlerror() : "usage: run LIBRARY IMAGE...", argc);
	hvi_open = symbol(lib, "hvi_soft_open");
	hvi_ioctl = symbol(lib, "hvi_soft_ioctl");
	hvi_mmap = symbol(lib, "hvi_soft_mmap");
	hvi_close = symbol(lib, "hvi_soft_close");

	printf("%-12s %12s %9s %9s %9s %9s\n", "guest", "instructions", "answer", "hvi M/s",
	       "TCG M/s", "hvi/TCG");
	for (int i = 2; i < argc; i++) {
		const char *name = base_name(argv[i]);
		struct result r = run_soft(argv[i]);
		double tcg = run_qemu(argv[i]);

		if (!strcmp(name, "idle.bin")) {
			idle = tcg;
			continue;
		}
		printf("%-12.*s %12llu %9x %9.0f", (int)strcspn(name, "."), name, r.instructions,
		       r.answer, r.instructions / r.seconds / 1e6);
		if (tcg > idle)
			printf(" %9.0f %9.2f\n", r.instructions / (tcg - idle) / 1e6,
			       (tcg - idle) / r.seconds);
		else
			printf(" %9s %9s\n", "-", "-");
	}
	return 0;
}
