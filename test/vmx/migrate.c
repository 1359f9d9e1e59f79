// SPDX-License-Identifier: MIT
/*
 * migrate.c - vCPUs whose threads are moved between the host's CPUs all the time.
 *
 *   migrate [--vms N] [--vcpus N] [--seconds N]
 *
 * N VMs (2) of N vCPUs (1), each VM on a thread of its own, and two threads
 * without a VM. Another thread sends them from CPU to CPU at random moments,
 * for so many seconds (5). Everything that a CPU holds for one of them is in use and
 * compared after each call, to the last bit:
 *   in the guests   sums in general and YMM registers and on the x87 stack,
 *                   MXCSR and FCW, FS and GS bases, SWAPGS, SYSCALL's MSRs,
 *                   TSC_AUX, a TSC that never goes back, a breakpoint on data
 *   in the threads  the same YMM, x87 and control words around each HVI_RUN,
 *                   FS and GS bases, TSC_AUX, the TSC, a breakpoint of perf's
 * Works with any number of CPUs; with one it shows what a task switch loses.
 *
 * Exit code 0: all as it should be; 1: something was lost, which is named; 2:
 * bad usage; 3: no device or no AVX2.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include "backend.h"

#define RAM		0x400000ull
#define TABLES		0x1000u		/* PML4, page-directory pointers, page directory */
#define GDT		0x4000u
#define IDT		0x5000u
#define CODE		0x8000u
#define AREAS		0x10000u	/* a page for each vCPU; above it its stack */
#define AREA_SIZE	0x2000u
#define REGISTERS	16
#define MAX_VMS		8
#define MAX_THREADS	(MAX_VMS + 2)
#define GUEST_MXCSR	0x5f80u
#define GUEST_FCW	0x0b7fu
#define GUEST_DR7	0x90401ull	/* writes to the 8 bytes at DR0 */
#define PORT		0x10

/* What a vCPU has in memory; the guest's code knows the offsets. */
struct area {
	__u64 period;		/* 0: rounds to the next exit */
	__u64 errors;		/* 8 */
	__u64 tsc;		/* 16 */
	__u64 hits;		/* 24: of the breakpoint */
	__u64 watched;		/* 32 */
	__u64 fs_value, gs_value, kernel_gs_value;	/* 40, 48, 56: what stands there */
	__u64 tsc_aux;		/* 64 */
	__u64 syscalls;		/* 72 */
	__u64 at_fs, at_gs, at_kernel_gs;		/* 80, 88, 96 */
	__u64 reserved[3];
	__u64 step[4];		/* 128: what is added to each YMM register */
};

/* RDI: the area. RSI: rounds. R8 and others: sums. */
asm(".pushsection .rodata\n"
    "guest_start:\n"
    "1:	mov	(%rdi), %rbx\n"
    "	incq	32(%rdi)\n"		/* the breakpoint */
    "	xor	%eax, %eax\n"
    "	xor	%ecx, %ecx\n"
    "	push	%rbx\n"
    "	cpuid\n"
    "	pop	%rbx\n"
    "2:	inc	%rsi\n"
    "	add	$0x11111, %r8\n"
    "	add	$0x22222, %r9\n"
    "	add	$0x33333, %r10\n"
    "	add	$0x44444, %r12\n"
    "	add	$0x55555, %r13\n"
    "	add	$0x66666, %r14\n"
    "	add	$0x77777, %r15\n"
    "	fld1\n"
    "	faddp\n"
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
    "	vpaddq	128(%rdi), %ymm\\n, %ymm\\n\n"
    ".endr\n"
    "	mov	%fs:0, %rax\n"
    "	cmp	40(%rdi), %rax\n"
    "	je	3f\n"
    "	orq	$1, 8(%rdi)\n"
    "3:	mov	%gs:0, %rax\n"
    "	cmp	48(%rdi), %rax\n"
    "	je	3f\n"
    "	orq	$2, 8(%rdi)\n"
    "3:	swapgs\n"
    "	mov	%gs:0, %rax\n"
    "	swapgs\n"
    "	cmp	56(%rdi), %rax\n"
    "	je	3f\n"
    "	orq	$4, 8(%rdi)\n"
    "3:	syscall\n"
    "	rdtscp\n"
    "	cmp	64(%rdi), %ecx\n"
    "	je	3f\n"
    "	orq	$8, 8(%rdi)\n"
    "3:	shl	$32, %rdx\n"
    "	or	%rdx, %rax\n"
    "	cmp	16(%rdi), %rax\n"
    "	jae	3f\n"
    "	orq	$16, 8(%rdi)\n"
    "3:	mov	%rax, 16(%rdi)\n"
    "	dec	%rbx\n"
    "	jnz	2b\n"
    "	out	%al, $0x10\n"
    "	jmp	1b\n"
    "guest_syscall:\n"			/* RCX: where it goes on; R11: RFLAGS */
    "	incq	72(%rdi)\n"
    "	push	%r11\n"
    "	popfq\n"
    "	jmp	*%rcx\n"
    "guest_debug:\n"
    "	incq	24(%rdi)\n"
    "	iretq\n"
    "guest_end:\n"
    ".popsection\n");
extern const unsigned char guest_start[], guest_syscall[], guest_debug[], guest_end[];

static const __u64 gpr_step[HVI_GPRS] = {
	[HVI_RSI] = 1, [HVI_R8] = 0x11111, [HVI_R9] = 0x22222, [HVI_R10] = 0x33333,
	[HVI_R12] = 0x44444, [HVI_R13] = 0x55555, [HVI_R14] = 0x66666, [HVI_R15] = 0x77777,
};

static double seconds = 5;
static unsigned vcpus = 1, vms = 2;
static volatile bool stop;
static int cpus[CPU_SETSIZE], ncpus;
static atomic_int failures;

struct thread {
	pthread_t id;
	unsigned number;
	volatile pid_t tid;
	unsigned seed;
	unsigned long calls, moves, rounds, hits;
};
static struct thread threads[MAX_THREADS];

static void wrong(const struct thread *t, const char *what, __u64 is, __u64 should)
{
	if (failures++ < 20)
		fprintf(stderr, "migrate: thread %u, call %lu, CPU %d: %s is %llx, should be %llx\n", t->number, t->calls,
			sched_getcpu(), what, (unsigned long long)is, (unsigned long long)should);
	stop = true;
}

static void check(const struct thread *t, const char *what, __u64 is, __u64 should)
{
	if (is != should)
		wrong(t, what, is, should);
}

/* ---- what a thread of the host has on its CPU ------------------------------------------- */

struct fp {
	__u64 ymm[REGISTERS][4];
	long double st[4];
	__u32 mxcsr;
	__u16 fcw;
};

struct host {
	struct fp in, out;
	__u64 gs[2];		/* GS base points here */
	__u64 tsc;
	volatile __u64 watched;
	__u64 writes;
	int breakpoint;		/* of perf's; -1: there is none to be had */
};
static __thread __u64 tls;

/* ioctl(fd, request, arg) with all of the FPU in use before and after; a system call leaves it alone. */
static long call_with_fpu(struct host *h, long number, long fd, unsigned long request, void *arg)
{
	register const struct fp *in asm("r8") = &h->in;
	register struct fp *out asm("r9") = &h->out;
	__u32 mxcsr;
	__u16 fcw;
	long r;

	asm volatile("stmxcsr %[mxcsr]\n\tfnstcw %[fcw]\n\t"
		     "fninit\n\t"
		     "fldt 512+48(%[in])\n\tfldt 512+32(%[in])\n\tfldt 512+16(%[in])\n\tfldt 512(%[in])\n\t"
		     "ldmxcsr 576(%[in])\n\tfldcw 580(%[in])\n\t"
		     ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n\t"
		     "vmovdqu \\n * 32(%[in]), %%ymm\\n\n\t"
		     ".endr\n\t"
		     "syscall\n\t"
		     ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n\t"
		     "vmovdqu %%ymm\\n, \\n * 32(%[out])\n\t"
		     ".endr\n\t"
		     "stmxcsr 576(%[out])\n\tfnstcw 580(%[out])\n\t"
		     "fstpt 512(%[out])\n\tfstpt 512+16(%[out])\n\tfstpt 512+32(%[out])\n\tfstpt 512+48(%[out])\n\t"
		     "ldmxcsr %[mxcsr]\n\tfldcw %[fcw]\n\tvzeroupper"
		     : "=a" (r), [mxcsr] "=m" (mxcsr), [fcw] "=m" (fcw)
		     : "0" (number), "D" (fd), "S" (request), "d" (arg), [in] "r" (in), [out] "r" (out)
		     : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
		       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st", "st(1)", "st(2)", "st(3)",
		       "st(4)", "st(5)", "st(6)", "st(7)");
	return r;
}

static int perf_breakpoint(const volatile void *address)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_BREAKPOINT, .size = sizeof(attr), .bp_type = HW_BREAKPOINT_W,
		.bp_addr = (unsigned long)address, .bp_len = HW_BREAKPOINT_LEN_8, .exclude_kernel = 1, .exclude_hv = 1,
	};

	return (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

static struct host *host_new(struct thread *t)
{
	struct host *h = aligned_alloc(64, (sizeof(*h) + 63) / 64 * 64);

	if (!h)
		exit(1);
	memset(h, 0, sizeof(*h));
	t->tid = gettid();
	t->seed = 1 + t->number;
	tls = 0x7150000 + t->number;
	h->gs[0] = 0x6500000 + t->number;
	syscall(SYS_arch_prctl, ARCH_SET_GS, h->gs);
	h->breakpoint = perf_breakpoint(&h->watched);
	return h;
}

static __u64 tsc_and_aux(__u32 *aux)
{
	__u32 lo, hi;

	asm volatile("rdtscp" : "=a" (lo), "=d" (hi), "=c" (*aux) : : "memory");
	return lo | (__u64)hi << 32;
}

/* One call with everything in use, and a look at what is there afterwards. */
static long call(struct thread *t, struct host *h, long number, long fd, unsigned long request, void *arg)
{
	int before = sched_getcpu();
	__u64 gs, now;
	__u32 aux;
	long r;

	for (unsigned i = 0; i < REGISTERS; i++)
		for (unsigned k = 0; k < 4; k++)
			h->in.ymm[i][k] = ((__u64)rand_r(&t->seed) << 32) | (t->number << 24) | (i << 16) | k;
	for (unsigned i = 0; i < 4; i++)
		h->in.st[i] = (long double)rand_r(&t->seed) / 3;
	h->in.mxcsr = 0x1f80 | (t->calls & 3) << 13;
	h->in.fcw = 0x037f | ((t->calls + 1) & 3) << 10;
	h->watched++;
	h->writes++;
	r = call_with_fpu(h, number, fd, request, arg);
	t->calls++;
	for (unsigned i = 0; i < REGISTERS; i++)
		for (unsigned k = 0; k < 4; k++)
			check(t, "the thread's YMM", h->out.ymm[i][k], h->in.ymm[i][k]);
	for (unsigned i = 0; i < 4; i++)
		if (h->out.st[i] != h->in.st[i])
			wrong(t, "the thread's x87 register", i, i);
	check(t, "the thread's MXCSR", h->out.mxcsr, h->in.mxcsr);
	check(t, "the thread's FCW", h->out.fcw, h->in.fcw);
	asm volatile("mov %%gs:0, %0" : "=r" (gs));
	check(t, "what GS points at", gs, h->gs[0]);
	check(t, "what FS points at", tls, 0x7150000 + t->number);
	now = tsc_and_aux(&aux);
	if (now < h->tsc)
		wrong(t, "the thread's TSC", now, h->tsc);
	h->tsc = now;
	if ((aux & 0xfff) >= CPU_SETSIZE)
		wrong(t, "the thread's TSC_AUX", aux, 0);
	if (sched_getcpu() != before)
		t->moves++;
	return r;
}

static void host_end(struct thread *t, struct host *h)
{
	__u64 hits = 0;

	if (h->breakpoint >= 0) {
		if (read(h->breakpoint, &hits, sizeof(hits)) != sizeof(hits))
			perror("migrate: perf");
		check(t, "the hits of the thread's breakpoint", hits, h->writes);
		close(h->breakpoint);
		t->hits = hits;
	}
	free(h);
}

/* ---- the guests ---------------------------------------------------------------------------- */

struct guest {
	long hvi;
	unsigned char *ram;
	struct hvi_vcpu *page[HVI_MAX_VCPUS];
	__u64 rounds[HVI_MAX_VCPUS], periods[HVI_MAX_VCPUS], tsc[HVI_MAX_VCPUS];
	__u64 seed[HVI_MAX_VCPUS];
};

static void must(const struct guest *g, unsigned long request, void *arg, const char *name)
{
	long r = hvi_call(g->hvi, request, arg);

	if (r < 0) {
		fprintf(stderr, "migrate: %s: %s\n", name, strerror((int)-r));
		exit(1);
	}
}
#define MUST(request, arg) must(g, request, arg, #request)

static struct area *area(const struct guest *g, unsigned vcpu)
{
	return (struct area *)(g->ram + AREAS + vcpu * AREA_SIZE);
}

static void put(const struct guest *g, unsigned at, unsigned index, __u64 value)
{
	((__u64 *)(g->ram + at))[index] = value;
}

static void build(struct guest *g)
{
	struct hvi_create create = { .vcpus = vcpus };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };
	__u64 debug = CODE + (guest_debug - guest_start);

	MUST(HVI_CREATE, &create);
	MUST(HVI_ADD_MEMORY, &memory);
	g->ram = hvi_map(g->hvi, HVI_MMAP_RAM, RAM);
	if (!g->ram)
		exit(1);
	memcpy(g->ram + CODE, guest_start, (size_t)(guest_end - guest_start));
	put(g, TABLES, 0, (TABLES + 0x1000) | 3);
	put(g, TABLES + 0x1000, 0, (TABLES + 0x2000) | 3);
	put(g, TABLES + 0x2000, 0, 0x83);
	put(g, TABLES + 0x2000, 1, 0x200083);
	put(g, GDT, 1, 0x00af9b000000ffffull);
	put(g, GDT, 2, 0x00cf93000000ffffull);
	put(g, IDT, 2, (debug & 0xffff) | 8 << 16 | 0x8e00ull << 32 | (debug & 0xffff0000) << 32);
}

/* 64-bit mode, all of the state that the guest will compare. */
static void set_up(struct guest *g, unsigned vcpu, __u64 seed)
{
	struct hvi_vcpu *v = g->page[vcpu] = hvi_map(g->hvi, HVI_MMAP_VCPU + vcpu * HVI_VCPU_SIZE, HVI_VCPU_SIZE);
	struct area *a = area(g, vcpu);
	__u64 base = AREAS + vcpu * AREA_SIZE;
	static unsigned char image[HVI_PAGE_SIZE] __attribute__((aligned(64)));
	struct hvi_xsave xsave = { .vcpu = vcpu, .size = 832, .data = (unsigned long)image };

	if (!v)
		exit(1);
	g->seed[vcpu] = seed;
	a->fs_value = a->at_fs = seed + 1;
	a->gs_value = a->at_gs = seed + 2;
	a->kernel_gs_value = a->at_kernel_gs = seed + 3;
	a->tsc_aux = 0xabcde000 + seed;
	for (unsigned k = 0; k < 4; k++)
		a->step[k] = seed + 0x100000001ull * k;
	for (unsigned i = 0; i < HVI_GPRS; i++)
		v->gpr[i] = gpr_step[i] ? (i == HVI_RSI ? 0 : seed * i) : 0;
	v->gpr[HVI_RDI] = base;
	v->gpr[HVI_RSP] = base + AREA_SIZE;
	v->rip = CODE;
	v->rflags = 2;
	for (unsigned i = 0; i < HVI_SEGS; i++)
		v->seg[i] = (struct hvi_segment){ .limit = ~0u, .access = 0xc093, .selector = 0x10 };
	v->seg[HVI_CS] = (struct hvi_segment){ .limit = ~0u, .access = 0xa09b, .selector = 8 };
	v->seg[HVI_FS].base = base + offsetof(struct area, at_fs);
	v->seg[HVI_GS].base = base + offsetof(struct area, at_gs);
	v->kernel_gs_base = base + offsetof(struct area, at_kernel_gs);
	v->tr = (struct hvi_segment){ .limit = 0x67, .access = 0x8b };
	v->ldtr = (struct hvi_segment){ .access = HVI_SEG_UNUSABLE };
	v->gdtr = (struct hvi_table){ .base = GDT, .limit = 0x17 };
	v->idtr = (struct hvi_table){ .base = IDT, .limit = 0xfff };
	v->cr0 = 0x80050033;
	v->cr3 = TABLES;
	v->cr4 = 0x406a0 & ~0x80ull;	/* PAE, DE... without PGE; OSFXSR, OSXMMEXCPT, OSXSAVE */
	v->xcr0 = 7;
	v->efer = 0xd01;		/* SCE, LME, LMA, NXE */
	v->star = 8ull << 32;
	v->lstar = CODE + (guest_syscall - guest_start);
	v->fmask = 0x200;
	v->tsc_aux = (__u32)a->tsc_aux;
	v->dr[0] = base + offsetof(struct area, watched);
	v->dr[7] = GUEST_DR7;
	v->mp_state = HVI_MP_RUNNING;
	v->dirty = HVI_STATE_ALL;

	memset(image, 0, sizeof(image));
	*(__u16 *)image = GUEST_FCW;
	*(__u32 *)(image + 24) = GUEST_MXCSR;
	*(__u64 *)(image + 512) = 7;
	image[4] = 0x80;		/* abridged tags: ST(0) = R7 holds 0 */
	*(__u16 *)(image + 2) = 7 << 11;
	for (unsigned i = 0; i < REGISTERS; i++)
		for (unsigned k = 0; k < 4; k++)
			*(__u64 *)(image + (k < 2 ? 160 : 576) + 16 * i + 8 * (k % 2)) = seed * i + k;
	MUST(HVI_SET_XSAVE, &xsave);
}

static const char *const guest_errors[] = {
	"what the guest's FS points at", "what the guest's GS points at", "what the guest's other GS points at",
	"the guest's TSC_AUX", "the guest's TSC went back",
};

static void check_guest(struct thread *t, struct guest *g, unsigned vcpu)
{
	static __thread unsigned char image[HVI_PAGE_SIZE] __attribute__((aligned(64)));
	struct hvi_xsave xsave = { .vcpu = vcpu, .size = sizeof(image), .data = (unsigned long)image };
	const struct hvi_vcpu *v = g->page[vcpu];
	const struct area *a = area(g, vcpu);
	__u64 seed = g->seed[vcpu], n = g->rounds[vcpu];
	long double sum = (long double)n, st0;

	for (unsigned i = 0; i < sizeof(guest_errors) / sizeof(*guest_errors); i++)
		if (a->errors >> i & 1)
			wrong(t, guest_errors[i], 1, 0);
	for (unsigned i = 0; i < HVI_GPRS; i++)
		if (gpr_step[i])
			check(t, "a sum of the guest", v->gpr[i], (i == HVI_RSI ? 0 : seed * i) + n * gpr_step[i]);
	check(t, "the guest's system calls", a->syscalls, n);
	check(t, "the guest's breakpoint hits", a->hits, g->periods[vcpu]);
	check(t, "the guest's DR0", v->dr[0], AREAS + vcpu * AREA_SIZE + offsetof(struct area, watched));
	check(t, "the guest's DR7", v->dr[7], GUEST_DR7);
	check(t, "the guest's LSTAR", v->lstar, CODE + (guest_syscall - guest_start));
	check(t, "the guest's KERNEL_GS_BASE", v->kernel_gs_base, AREAS + vcpu * AREA_SIZE + offsetof(struct area, at_kernel_gs));
	check(t, "the guest's XCR0", v->xcr0, 7);
	if (v->tsc < g->tsc[vcpu])
		wrong(t, "the guest's TSC", v->tsc, g->tsc[vcpu]);
	g->tsc[vcpu] = v->tsc;
	MUST(HVI_GET_XSAVE, &xsave);
	check(t, "the guest's FCW", *(__u16 *)image, GUEST_FCW);
	check(t, "the guest's MXCSR", *(__u32 *)(image + 24), GUEST_MXCSR);
	memcpy(&st0, image + 32, 10);
	if (st0 != sum)
		wrong(t, "the guest's ST(0)", (__u64)st0, n);
	for (unsigned i = 0; i < REGISTERS; i++)
		for (unsigned k = 0; k < 4; k++)
			check(t, "the guest's YMM", *(__u64 *)(image + (k < 2 ? 160 : 576) + 16 * i + 8 * (k % 2)),
			      seed * i + k + n * a->step[k]);
}

/* Rounds to the next exit: mostly few, at times milliseconds. */
static void next_period(struct thread *t, struct guest *g, unsigned vcpu)
{
	__u64 n = 1 + (unsigned)rand_r(&t->seed) % (rand_r(&t->seed) % 8 ? 20 : 10000);

	area(g, vcpu)->period = n;
	g->rounds[vcpu] += n;
	g->periods[vcpu]++;
}

static void *run_vm(void *arg)
{
	struct thread *t = arg;
	struct host *h = host_new(t);
	struct guest *g = calloc(1, sizeof(*g));

	if (!g)
		exit(1);
	g->hvi = hvi_open();
	if (g->hvi < 0) {
		fprintf(stderr, "migrate: /dev/hvi: %s\n", strerror((int)-g->hvi));
		exit(3);
	}
	build(g);
	for (unsigned i = 0; i < vcpus; i++) {
		set_up(g, i, 1000 * (t->number + 1) + 10 * i);
		next_period(t, g, i);
	}
	while (!stop) {
		struct hvi_run run = { 0 };
		long r = call(t, h, SYS_ioctl, g->hvi, HVI_RUN, &run);

		/* -EINTR too: no signal of this program's has a handler, and the kernel's freezer is not to be seen. */
		if (r < 0 || run.vcpu >= vcpus || run.reason != HVI_EXIT_IO || g->page[run.vcpu]->exit.number != PORT) {
			fprintf(stderr, "migrate: thread %u: HVI_RUN: %s, exit %u\n", t->number, r ? strerror((int)-r) : "ok",
				run.reason);
			if (r >= 0 && run.vcpu < vcpus)
				fprintf(stderr, "migrate: number %llx value %llx rip %llx\n",
					(unsigned long long)g->page[run.vcpu]->exit.number,
					(unsigned long long)g->page[run.vcpu]->exit.value,
					(unsigned long long)g->page[run.vcpu]->rip);
			failures++;
			stop = true;
			break;
		}
		check_guest(t, g, run.vcpu);
		g->page[run.vcpu]->reply.action = HVI_REPLY_RESUME;
		next_period(t, g, run.vcpu);
	}
	for (unsigned i = 0; i < vcpus; i++)
		t->rounds += g->rounds[i];
	hvi_close(g->hvi);
	host_end(t, h);
	return NULL;
}

/* A thread of the host that has nothing to do with the VMs. */
static void *run_bystander(void *arg)
{
	struct thread *t = arg;
	struct host *h = host_new(t);
	struct timespec moment = { 0, 0 };

	while (!stop) {
		if (t->calls % 16 == 0)
			(void)call(t, h, SYS_nanosleep, (long)&moment, 0, NULL);
		else
			(void)call(t, h, SYS_sched_yield, 0, 0, NULL);
	}
	host_end(t, h);
	return NULL;
}

/* ---- moving ---------------------------------------------------------------------------------- */

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static unsigned long flips(unsigned count)
{
	unsigned seed = 77;
	unsigned long n = 0;
	double end = now() + seconds;

	do {
		struct thread *t = &threads[rand_r(&seed) % count];
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpus[rand_r(&seed) % (unsigned)ncpus], &set);
		if (t->tid && !sched_setaffinity(t->tid, sizeof(set), &set))
			n++;
		usleep(100 + (unsigned)rand_r(&seed) % 3000);
	} while (!stop && now() < end);
	stop = true;
	return n;
}

static int usage(void)
{
	fprintf(stderr, "usage: migrate [--vms N] [--vcpus N] [--seconds N]\n");
	return 2;
}

int main(int argc, char **argv)
{
	unsigned long moved, moves = 0, calls = 0, rounds = 0, hits = 0;
	unsigned a, b, c, d;
	cpu_set_t set;

	for (int i = 1; i < argc; i += 2) {
		if (i + 1 == argc)
			return usage();
		if (!strcmp(argv[i], "--vms"))
			vms = (unsigned)atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--vcpus"))
			vcpus = (unsigned)atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--seconds"))
			seconds = atof(argv[i + 1]);
		else
			return usage();
	}
	if (!vms || vms > MAX_VMS || !vcpus || vcpus > 8)
		return usage();
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 5 & 1)) {
		fprintf(stderr, "migrate: this CPU has no AVX2\n");
		return 3;
	}
	sched_getaffinity(0, sizeof(set), &set);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &set))
			cpus[ncpus++] = i;
	for (unsigned i = 0; i < vms + 2; i++) {
		threads[i].number = i;
		if (pthread_create(&threads[i].id, NULL, i < vms ? run_vm : run_bystander, &threads[i]))
			exit(1);
	}
	moved = flips(vms + 2);
	for (unsigned i = 0; i < vms + 2; i++) {
		pthread_join(threads[i].id, NULL);
		calls += threads[i].calls;
		rounds += threads[i].rounds;
		hits += threads[i].hits;
		if (i < vms)
			moves += threads[i].moves;
	}
	printf("migrate: %d CPUs, %u VMs of %u vCPUs: %lu rounds in the guests, %lu calls, %lu moves, %lu of them under HVI_RUN, %lu hits of perf's breakpoints\n",
	       ncpus, vms, vcpus, rounds, calls, moved, moves, hits);
	if (failures)
		printf("migrate: %d differences\n", failures);
	return failures ? 1 : 0;
}
