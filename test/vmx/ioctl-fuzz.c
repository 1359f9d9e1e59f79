// SPDX-License-Identifier: MIT
/*
 * ioctl-fuzz.c - calls /dev/hvi at random: every ioctl with right and wrong
 * arguments, random vCPU states, memory mapped and unmapped in between, several
 * threads on one VM, and a close under all of that.
 *
 *   ioctl-fuzz [CALLS [SEED]]
 *
 * It asks nothing of the answers but that one comes: whether the kernel is
 * still well is for dmesg and the module's counters to say. A failed VM entry
 * must name the field that was wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "hvi.h"

#define RAM		(2u << 20)
#define OPS_PER_VM	200
#define THREADS		3
#define BUDGET		20000		/* guest TSC that one HVI_RUN gets at most */

static const struct { unsigned long number; const char *name; } calls[] = {
#define CALL(n) { n, #n }
	CALL(HVI_GET_INFO), CALL(HVI_CREATE), CALL(HVI_ADD_MEMORY), CALL(HVI_GET_CPUID),
	CALL(HVI_SET_CPUID), CALL(HVI_INTERCEPT), CALL(HVI_RUN), CALL(HVI_PAUSE),
	CALL(HVI_RESUME), CALL(HVI_KICK), CALL(HVI_FETCH), CALL(HVI_RESET), CALL(HVI_EPT_SET),
	CALL(HVI_EPT_GET), CALL(HVI_VIEW_CREATE), CALL(HVI_VIEW_DESTROY), CALL(HVI_REMAP),
	CALL(HVI_ADD_SPARE), CALL(HVI_SPP_SET), CALL(HVI_VE_SET), CALL(HVI_VE_PAGES),
	CALL(HVI_GET_XSAVE), CALL(HVI_SET_XSAVE), CALL(HVI_LIST_MSRS), CALL(HVI_GET_MSRS),
	CALL(HVI_SET_MSRS), CALL(HVI_QUERY_MTRR),
#undef CALL
};
#define CALLS (sizeof(calls) / sizeof(calls[0]))

static struct { unsigned long made, good; } tally[CALLS + 1];
static unsigned long reasons[HVI_EXIT_REASONS], unnamed, total;

/* ---- chance --------------------------------------------------------------- */

static __thread __u64 state;

static __u64 rnd(void)		/* xorshift64* */
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dull;
}

static unsigned below(unsigned n)
{
	return (unsigned)(rnd() >> 33) % n;
}

/* Numbers at which checks go wrong. */
static __u64 odd_number(void)
{
	static const __u64 edge[] = {
		0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 0xfff, 0x1000,
		0x1001, 0xffff, 0x10000, 0x10001, 0xfffff, 0x100000, 0x7fffffff, 0x80000000,
		0xffffffff, 0x100000000, 0xfffffffff, 0x000fffffffffffff, 0x0010000000000000,
		0x7fffffffffff, 0x800000000000, 0x7fffffffffffffff, 0x8000000000000000,
		0xffffffffffffffff, 0xfffffffffffff000, 0xffff800000000000,
	};

	switch (below(4)) {
	case 0:
		return edge[below(sizeof(edge) / sizeof(edge[0]))];
	case 1:
		return below(8);
	case 2:
		return below(0x300);		/* GFNs around the end of RAM, MSRs, ports */
	default:
		return rnd() >> below(64);
	}
}

/* ---- one VM ------------------------------------------------------------------ */

struct vm {
	int fd;
	unsigned vcpus;
	struct hvi_vcpu *page[3];
	unsigned char *ram;
};

/* A pointer for the module to follow: good memory, its edge, or none at all. */
static __thread unsigned char *scratch;	/* 64 KiB, and nothing behind it */
#define SCRATCH 65536

static void *place(unsigned size)
{
	switch (below(12)) {
	case 0:
		return NULL;
	case 1:
		return (void *)rnd();
	case 2:
		return scratch + SCRATCH - below(size + 8);
	case 3:
		return (void *)0xffffffff81000000ul;
	default:
		return scratch + below(SCRATCH / 2);
	}
}

static void fill(void *p, unsigned size)
{
	__u64 *q = p;

	for (unsigned i = 0; i < size / 8; i++)
		q[i] = below(3) ? odd_number() & (below(2) ? 0xffffffff : ~0ull) : 0;
}

/* A state that is sound, then some fields of it that are not. */
static void shake(struct hvi_vcpu *v)
{
	__u32 *word = (__u32 *)v;

	if (below(3) == 0) {
		for (int i = 0; i < HVI_SEGS; i++)
			v->seg[i] = (struct hvi_segment){ .limit = 0xffff, .access = 0x93 };
		v->seg[HVI_CS].access = 0x9b;
		v->rip = below(0x10000);
		v->rflags = 2;
		v->cr0 = 0x30;
		v->cr4 = 0;
		v->efer = 0;
	}
	for (unsigned n = below(4); n; n--)
		word[below(sizeof(*v) / 4)] = (__u32)odd_number();
	v->dirty = below(4) ? (__u32)rnd() & HVI_STATE_ALL : (__u32)rnd();
	v->reply.action = below(HVI_REPLY_ACTIONS + 1);
	if (below(8) == 0)
		fill(&v->reply, sizeof(v->reply));
	if (below(4) == 0) {
		fill(&v->event, sizeof(v->event));
		v->event.flags |= HVI_EVENT_VALID;
		v->event.vector &= 0xff;
	}
	v->mp_state = below(8) ? HVI_MP_RUNNING : (__u32)odd_number();
}

static void count_exit(const struct vm *m, const struct hvi_run *r)
{
	const struct hvi_vcpu *v = r->vcpu < m->vcpus ? m->page[r->vcpu] : NULL;

	if (r->reason < HVI_EXIT_REASONS)
		__atomic_add_fetch(&reasons[r->reason], 1, __ATOMIC_RELAXED);
	if (v && r->reason == HVI_EXIT_ENTRY_FAILED && !v->exit.value)
		__atomic_add_fetch(&unnamed, 1, __ATOMIC_RELAXED);
}

static void call(struct vm *m)
{
	unsigned i = below(CALLS + 1);
	unsigned magic = below(8) ? HVI_IOC_MAGIC : below(256);
	unsigned long number = i < CALLS ? calls[i].number
					 : _IOC((unsigned)rnd() & 3, magic, below(64), below(4096));
	unsigned size = _IOC_SIZE(number);
	void *arg = place(size);
	struct hvi_run *run = (struct hvi_run *)scratch;
	int r;

	if (below(3) == 0 && m->page[0])	/* running is what matters most */
		number = HVI_RUN, i = 6;
	fill(scratch, 4096);
	if (number == HVI_RUN) {
		struct hvi_vcpu *v = m->page[below(m->vcpus ? m->vcpus : 1)];

		if (v && below(2))
			shake(v);
		arg = run;
		*run = (struct hvi_run){ .flags = HVI_RUN_DEADLINE, .deadline = v ? v->tsc + BUDGET : 0 };
		if (below(16) == 0)
			run->flags = (__u32)odd_number() | HVI_RUN_DEADLINE;
	} else if (arg == (void *)scratch || below(2)) {
		/* A pointer inside of the argument, where there is one. */
		arg = scratch;
		for (unsigned at = 8; at + 8 <= size; at += 8)
			if (below(3) == 0)
				*(__u64 *)(scratch + at) = (unsigned long)place(64);
	}
	r = ioctl(m->fd, number, arg);
	__atomic_add_fetch(&tally[i].made, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&total, 1, __ATOMIC_RELAXED);
	if (r < 0)
		return;
	__atomic_add_fetch(&tally[i].good, 1, __ATOMIC_RELAXED);
	if (number == HVI_RUN)
		count_exit(m, run);
}

static void map(struct vm *m)
{
	for (unsigned i = 0; i < m->vcpus && i < 3; i++) {
		m->page[i] = mmap(NULL, HVI_VCPU_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd,
				  HVI_MMAP_VCPU + i * HVI_VCPU_SIZE);
		if (m->page[i] == MAP_FAILED)
			m->page[i] = NULL;
	}
	m->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, HVI_MMAP_RAM);
	if (m->ram == MAP_FAILED)
		m->ram = NULL;
}

/* Mappings that should be refused, or be gone again at once. */
static void odd_mapping(struct vm *m)
{
	static const __u64 base[] = { HVI_MMAP_RAM, HVI_MMAP_VCPU, HVI_MMAP_SPARE, 0 };
	__u64 at = (base[below(4)] + (odd_number() & ~0xfffull)) & ~0xfffull;
	size_t size = (below(64) + 1) * 4096ul << (below(8) ? 0 : 20);
	unsigned char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
				below(4) ? MAP_SHARED : MAP_PRIVATE, m->fd, (off_t)at);

	if (p == MAP_FAILED)
		return;
	if (below(2))		/* a process that dies of what it touches says so to us only */
		(void)madvise(p, size, below(2) ? MADV_DONTNEED : MADV_WILLNEED);
	munmap(p, size);
}

static int open_vm(struct vm *m)
{
	struct hvi_create create = { .vcpus = 1 + below(3) };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };

	memset(m, 0, sizeof(*m));
	m->fd = open("/dev/hvi", O_RDWR | O_CLOEXEC);
	if (m->fd < 0)
		return -1;
	if (below(8) == 0)	/* calls on what is no machine yet */
		return 0;
	if (ioctl(m->fd, HVI_CREATE, &create) == 0) {
		m->vcpus = create.vcpus;
		if (below(16))
			(void)ioctl(m->fd, HVI_ADD_MEMORY, &memory);
		map(m);
		for (unsigned i = 0; m->ram && i < 4096; i++)
			m->ram[below(0x10000)] = (unsigned char)rnd();
	}
	return 0;
}

static void close_vm(struct vm *m)
{
	if (m->fd >= 0)
		close(m->fd);
	/* Mappings keep the VM; they may go before the file or after it. */
	for (unsigned i = 0; i < 3; i++)
		if (m->page[i])
			munmap(m->page[i], HVI_VCPU_SIZE);
	if (m->ram)
		munmap(m->ram, RAM);
}

static void *make_scratch(void)
{
	unsigned char *p = mmap(NULL, SCRATCH + 4096, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p + SCRATCH, 4096, PROT_NONE)) {
		perror("ioctl-fuzz: mmap");
		exit(1);
	}
	return p;
}

struct helper { struct vm *vm; __u64 seed; unsigned ops; int done; };

static void *help(void *arg)
{
	struct helper *h = arg;

	state = h->seed;
	scratch = make_scratch();
	for (unsigned i = 0; i < h->ops; i++) {
		call(h->vm);
		if (below(16) == 0)
			odd_mapping(h->vm);
	}
	munmap(scratch, SCRATCH + 4096);
	__atomic_store_n(&h->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* Several threads on one VM; in some rounds its file is closed under them. */
static void together(struct vm *m)
{
	pthread_t thread[THREADS];
	struct helper h[THREADS];
	int fd = m->fd;

	for (int i = 0; i < THREADS; i++) {
		h[i] = (struct helper){ m, rnd() | 1, OPS_PER_VM / THREADS, 0 };
		if (pthread_create(&thread[i], NULL, help, &h[i])) {
			perror("ioctl-fuzz: thread");
			exit(1);
		}
	}
	if (below(2)) {
		usleep(below(20000));
		m->fd = -1;
		close(fd);
	}
	/* A guest may run for ever; a signal to the thread that runs it ends the call. */
	for (int i = 0; i < THREADS; i++) {
		struct timespec until;

		for (;;) {
			clock_gettime(CLOCK_REALTIME, &until);
			until.tv_nsec += 5000000;
			if (until.tv_nsec >= 1000000000) {
				until.tv_sec++;
				until.tv_nsec -= 1000000000;
			}
			if (pthread_timedjoin_np(thread[i], NULL, &until) != ETIMEDOUT)
				break;
			for (int j = i; j < THREADS; j++)
				if (!__atomic_load_n(&h[j].done, __ATOMIC_ACQUIRE))
					pthread_kill(thread[j], SIGUSR1);
		}
	}
}

static void on_alarm(int sig)
{
	(void)sig;
}

int main(int argc, char **argv)
{
	unsigned long want = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000;
	struct sigaction sa = { .sa_handler = on_alarm };
	/* Interrupts a HVI_RUN now and then, as the engine's timers do. */
	struct itimerval every = { { 0, 7000 }, { 0, 7000 } };
	unsigned long vms = 0;
	struct vm m;

	state = (argc > 2 ? strtoull(argv[2], NULL, 0) : 1) * 0x9e3779b97f4a7c15ull | 1;
	scratch = make_scratch();
	sigaction(SIGALRM, &sa, NULL);
	sigaction(SIGUSR1, &sa, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	while (total < want) {
		if (open_vm(&m)) {
			perror("ioctl-fuzz: /dev/hvi");
			return 1;
		}
		vms++;
		if (below(8) == 0)
			together(&m);
		else
			for (unsigned i = 0; i < OPS_PER_VM; i++) {
				call(&m);
				if (below(32) == 0)
					odd_mapping(&m);
			}
		if (below(16) == 0) {	/* a process that goes without closing anything */
			pid_t pid = fork();

			if (!pid) {
				call(&m);
				_exit(0);
			}
			waitpid(pid, NULL, 0);
		}
		close_vm(&m);
	}
	printf("%lu calls on %lu VMs\n", total, vms);
	for (unsigned i = 0; i <= CALLS; i++)
		printf("%-18s %7lu made, %7lu good\n", i < CALLS ? calls[i].name : "(unknown)",
		       tally[i].made, tally[i].good);
	printf("exits by reason:");
	for (unsigned i = 0; i < HVI_EXIT_REASONS; i++)
		if (reasons[i])
			printf(" %u:%lu", i, reasons[i]);
	printf("\n");
	if (unnamed) {
		printf("FAIL: %lu failed VM entries name no field\n", unnamed);
		return 1;
	}
	if (!tally[6].good) {
		printf("FAIL: no HVI_RUN has come to an exit\n");
		return 1;
	}
	return 0;
}
