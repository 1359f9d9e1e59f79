// SPDX-License-Identifier: MIT
/*
 * exit-cost.c - what an exit costs, on KVM and on hvi, with one guest.
 *
 *   exit-cost kvm|hvi
 *
 * A line for each figure: name, backend, ticks of the TSC. Each is the median
 * of many, which leaves timer interrupts out. Under Bochs the TSC counts
 * instructions, so there the figures are exact and the same in every run.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "hvi.h"

#define RAM		0x100000u
#define PORT_LOOP	0x1000
#define READ_LOOP	0x1100
#define WRITE_LOOP	0x1200
#define CPUID_LOOP	0x1300
#define PAGE		0x8000u		/* the one that reads and writes go to */
#define CPUIDS		20
#define ROUNDS		301

/* Real mode, segments at 0. */
static const unsigned char port_loop[] = {
	0xe6, 0x10,			/* 1: out %al, $0x10 */
	0xeb, 0xfc,			/*    jmp 1b */
};
static const unsigned char read_loop[] = {
	0xa0, 0x00, 0x80,		/* 1: mov 0x8000, %al */
	0xeb, 0xfb,			/*    jmp 1b */
};
static const unsigned char write_loop[] = {
	0xa2, 0x00, 0x80,		/* 1: mov %al, 0x8000 */
	0xeb, 0xfb,			/*    jmp 1b */
};
static const unsigned char cpuid_loop[] = {
	0xbe, CPUIDS, 0x00,		/* 1: mov $CPUIDS, %si */
	0x66, 0x31, 0xc0,		/* 2: xor %eax, %eax */
	0x0f, 0xa2,			/*    cpuid */
	0x4e,				/*    dec %si */
	0x75, 0xf8,			/*    jnz 2b */
	0xe6, 0x10,			/*    out %al, $0x10 */
	0xeb, 0xf1,			/*    jmp 1b */
};
/* Instructions of one turn besides CPUID itself. */
#define CPUID_TURN	3

static const char *backend;

static void die(const char *what)
{
	fprintf(stderr, "exit-cost: %s: %s: %s\n", backend, what, strerror(errno));
	exit(1);
}

static inline unsigned long long ticks(void)
{
	unsigned lo, hi;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi) : : "memory");
	return (unsigned long long)hi << 32 | lo;
}

static int order(const void *a, const void *b)
{
	long long x = *(const long long *)a, y = *(const long long *)b;

	return x < y ? -1 : x > y;
}

/* The median of what `once` takes; the cost of measuring is taken off. */
static long long median(void (*once)(int round))
{
	static long long times[ROUNDS];
	long long empty = 1 << 30;

	for (int i = 0; i < 20; i++) {
		unsigned long long t = ticks();
		long long d = ticks() - t;

		empty = d < empty ? d : empty;
	}
	for (int i = -10; i < ROUNDS; i++) {	/* ten to warm up */
		unsigned long long t = ticks();

		once(i);
		if (i >= 0)
			times[i] = ticks() - t - empty;
		else
			(void)ticks();
	}
	qsort(times, ROUNDS, sizeof(times[0]), order);
	return times[ROUNDS / 2];
}

static void tell(const char *name, long long cost)
{
	printf("%s\t%s\t%lld\n", name, backend, cost);
	fflush(stdout);
}

static void put_guest(unsigned char *ram)
{
	memcpy(ram + PORT_LOOP, port_loop, sizeof(port_loop));
	memcpy(ram + READ_LOOP, read_loop, sizeof(read_loop));
	memcpy(ram + WRITE_LOOP, write_loop, sizeof(write_loop));
	memcpy(ram + CPUID_LOOP, cpuid_loop, sizeof(cpuid_loop));
}

static void null_call(int round)
{
	(void)round;
	ioctl(-1, 0, 0);
}

/* The part of CPUID: a turn of the loop is CPUIDS of them and one port write. */
static long long cpuid_cost(long long loop, long long port)
{
	return (loop - port) / CPUIDS - CPUID_TURN;
}

/* ---- KVM ------------------------------------------------------------------ */

static int kvm_vm, kvm_vcpu;
static struct kvm_run *kvm_run_page;
static struct kvm_userspace_memory_region kvm_slot;

static void kvm_go(int round)
{
	(void)round;
	if (ioctl(kvm_vcpu, KVM_RUN, 0) < 0)
		die("KVM_RUN");
}

static void kvm_flags(int round)
{
	kvm_slot.flags = round & 1 ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	if (ioctl(kvm_vm, KVM_SET_USER_MEMORY_REGION, &kvm_slot) < 0)
		die("KVM_SET_USER_MEMORY_REGION");
}

static void kvm_at(unsigned rip, unsigned want)
{
	struct kvm_regs regs = { .rip = rip, .rflags = 2 };

	/* What the last exit left to do would else be done with the new RIP. */
	kvm_run_page->immediate_exit = 1;
	(void)ioctl(kvm_vcpu, KVM_RUN, 0);
	kvm_run_page->immediate_exit = 0;
	if (ioctl(kvm_vcpu, KVM_SET_REGS, &regs) < 0)
		die("KVM_SET_REGS");
	kvm_go(0);
	if (kvm_run_page->exit_reason != want) {
		fprintf(stderr, "exit-cost: kvm: exit %u, not %u\n", kvm_run_page->exit_reason, want);
		exit(1);
	}
}

static void on_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct kvm_sregs sregs;
	unsigned char *ram;
	long long port;
	long size;

	if (kvm < 0 || (kvm_vm = ioctl(kvm, KVM_CREATE_VM, 0)) < 0)
		die("/dev/kvm");
	ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ram == MAP_FAILED)
		die("mmap");
	put_guest(ram);
	/* Two slots with a hole at PAGE; the second one's flags are what changes. */
	kvm_slot = (struct kvm_userspace_memory_region){
		.slot = 0, .memory_size = PAGE, .userspace_addr = (unsigned long)ram };
	kvm_flags(0);
	kvm_slot = (struct kvm_userspace_memory_region){
		.slot = 1, .guest_phys_addr = PAGE + 0x1000, .memory_size = RAM - PAGE - 0x1000,
		.userspace_addr = (unsigned long)ram + PAGE + 0x1000 };
	kvm_flags(0);

	kvm_vcpu = ioctl(kvm_vm, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (kvm_vcpu < 0 || size < 0)
		die("KVM_CREATE_VCPU");
	kvm_run_page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, kvm_vcpu, 0);
	if (kvm_run_page == MAP_FAILED || ioctl(kvm_vcpu, KVM_GET_SREGS, &sregs) < 0)
		die("vCPU");
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(kvm_vcpu, KVM_SET_SREGS, &sregs) < 0)
		die("KVM_SET_SREGS");

	kvm_at(PORT_LOOP, KVM_EXIT_IO);
	port = median(kvm_go);
	tell("port write to user space and back", port);
	kvm_at(READ_LOOP, KVM_EXIT_MMIO);
	tell("access exit to user space and back", median(kvm_go));
	kvm_at(CPUID_LOOP, KVM_EXIT_IO);
	tell("CPUID in the kernel", cpuid_cost(median(kvm_go), port));
	tell("rights of 1 page (KVM: flags of a slot)", median(kvm_flags));
}

/* ---- hvi ------------------------------------------------------------------- */

static int hvi;
static struct hvi_vcpu *vcpu;
static struct hvi_run hvi_run_arg;
static struct hvi_ept_range ranges[64];
static struct hvi_ept ept;
static __u32 action;

static void hvi_call(unsigned long request, void *arg, const char *name)
{
	if (ioctl(hvi, request, arg) < 0)
		die(name);
}

static void hvi_go(int round)
{
	(void)round;
	vcpu->reply.action = action;
	if (ioctl(hvi, HVI_RUN, &hvi_run_arg) < 0)
		die("HVI_RUN");
}

static void hvi_rights(int round)
{
	for (unsigned i = 0; i < ept.count; i++)
		ranges[i].rights = round & 1 ? HVI_RWX : HVI_R | HVI_X;
	if (ioctl(hvi, HVI_EPT_SET, &ept) < 0)
		die("HVI_EPT_SET");
}

/* A change, and the guest's next exit: with what the flush of the TLB costs. */
static void hvi_rights_and_go(int round)
{
	hvi_rights(round);
	hvi_go(round);
}

/* `count` GFNs from 0x20 on, in `calls` ranges. */
static long long rights_of(unsigned count, unsigned calls)
{
	for (unsigned i = 0; i < calls; i++)
		ranges[i] = (struct hvi_ept_range){ .gfn = 0x20 + i, .count = count / calls };
	ept = (struct hvi_ept){ .count = calls, .ranges = (unsigned long)ranges };
	return median(hvi_rights);
}

static void hvi_at(unsigned rip, __u32 reply, unsigned want)
{
	vcpu->rip = rip;
	vcpu->rflags = 2;
	vcpu->dirty |= HVI_STATE_GPR;
	action = HVI_REPLY_RETRY;	/* of the exit before; this one begins anew */
	hvi_go(0);
	if (vcpu->exit.reason != want) {
		fprintf(stderr, "exit-cost: hvi: exit %u at %llx, not %u; number %u value %llx\n",
			vcpu->exit.reason, vcpu->rip, want, vcpu->exit.number, vcpu->exit.value);
		exit(1);
	}
	action = reply;
}

static void real_mode(void)
{
	for (int i = 0; i < HVI_SEGS; i++)
		vcpu->seg[i] = (struct hvi_segment){ .limit = 0xffff, .access = 0x93 };
	vcpu->seg[HVI_CS].access = 0x9b;
	vcpu->dirty = HVI_STATE_GPR | HVI_STATE_SEG;
}

static void page_rights(__u32 rights)
{
	struct hvi_ept_range range = { .gfn = PAGE >> 12, .count = 1, .rights = rights };
	struct hvi_ept set = { .count = 1, .ranges = (unsigned long)&range };

	hvi_call(HVI_EPT_SET, &set, "HVI_EPT_SET");
}

static void on_hvi(void)
{
	struct hvi_create create = { .vcpus = 1 };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };
	static struct hvi_cpuid_entry entries[HVI_MAX_CPUID];
	struct hvi_cpuid cpuid = { .count = HVI_MAX_CPUID, .entries = (unsigned long)entries };
	unsigned char *ram;
	long long port, plain;

	hvi = open("/dev/hvi", O_RDWR | O_CLOEXEC);
	if (hvi < 0)
		die("/dev/hvi");
	hvi_call(HVI_CREATE, &create, "HVI_CREATE");
	hvi_call(HVI_ADD_MEMORY, &memory, "HVI_ADD_MEMORY");
	hvi_call(HVI_GET_CPUID, &cpuid, "HVI_GET_CPUID");
	hvi_call(HVI_SET_CPUID, &cpuid, "HVI_SET_CPUID");
	ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, hvi, HVI_MMAP_RAM);
	vcpu = mmap(NULL, HVI_VCPU_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, hvi, HVI_MMAP_VCPU);
	if (ram == MAP_FAILED || vcpu == MAP_FAILED)
		die("mmap");
	put_guest(ram);
	real_mode();

	hvi_at(PORT_LOOP, HVI_REPLY_RESUME, HVI_EXIT_IO);
	port = median(hvi_go);
	tell("port write to user space and back", port);
	page_rights(0);
	hvi_at(READ_LOOP, HVI_REPLY_RETRY, HVI_EXIT_EPT);
	plain = median(hvi_go);
	tell("access exit to user space and back", plain);
	hvi_at(CPUID_LOOP, HVI_REPLY_RESUME, HVI_EXIT_IO);
	tell("CPUID in the kernel", cpuid_cost(median(hvi_go), port));
	tell("rights of 1 page (KVM: flags of a slot)", rights_of(1, 1));
	tell("rights of 64 pages, one range", rights_of(64, 1));
	tell("rights of 64 pages, 64 ranges", rights_of(64, 64));
	hvi_at(PORT_LOOP, HVI_REPLY_RESUME, HVI_EXIT_IO);
	rights_of(1, 1);
	tell("rights of 1 page, and the next exit", median(hvi_rights_and_go));
	page_rights(HVI_R);
	hvi_at(WRITE_LOOP, HVI_REPLY_RESUME, HVI_EXIT_EPT);
	tell("write exit, let through", median(hvi_go));
	hvi_at(WRITE_LOOP, HVI_REPLY_SCRATCH, HVI_EXIT_EPT);
	tell("write exit, denied by scratch", median(hvi_go));
	close(hvi);
}

int main(int argc, char **argv)
{
	backend = argc == 2 ? argv[1] : "";
	if (!strcmp(backend, "kvm"))
		on_kvm();
	else if (!strcmp(backend, "hvi"))
		on_hvi();
	else {
		fprintf(stderr, "usage: exit-cost kvm|hvi\n");
		return 2;
	}
	tell("system call that fails at once", median(null_call));
	return 0;
}
