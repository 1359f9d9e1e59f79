// SPDX-License-Identifier: MIT
/*
 * fuzz.c - a hostile caller of /dev/hvi.
 *
 *   fuzz [--seed N] [--calls N] [--seconds N] [--soft LIBRARY]
 *
 * Calls every ioctl with arguments that are right, right but for a field, at
 * the edge, or random; with wrong sizes and numbers; through pointers that are
 * NULL, unmapped, the kernel's, read-only or end in the middle. Runs vCPUs in
 * sound, damaged and random states for a short time, on up to four VMs at once.
 * In between: odd mmaps, mremap and munmap under a running guest, threads that
 * call, scribble and close while one runs, forks that share a VM, children that
 * are killed in the middle of HVI_RUN.
 *
 * All of it follows from the seed, but for when threads and signals come. The
 * seed is told at the start and every 5,000 calls, with how far it is.
 *
 * In the end every request must have succeeded at least once (from 20,000
 * calls on, and but for those that the backend has no capability for), a failed
 * VM entry must have named its field, and a new VM must run a guest to HLT.
 * Exit code 0: so it was; 1: not, or a call did not come back in 20 seconds; 2:
 * bad usage; 3: no device. What the kernel thinks of it is in dmesg and in what
 * counters.sh compares.
 *
 * With --soft the software vCPU takes the device's place. It shares our
 * address space and trusts its caller's pointers and threads as a library does,
 * so bad pointers, short buffers, calls while another one is running (other than
 * KICK and PAUSE) and the tricks with mappings are left out there.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include "backend.h"

typedef __u8 u8;
typedef __u32 u32;
typedef __u64 u64;

#define RAM		0x200000u
#define VMS		4
#define THREADS		3
#define LIFE		400		/* calls on one VM */
#define BUDGET		20000		/* guest TSC that one HVI_RUN gets */
#define MOST_ERRNO	134
#define STUCK_SECONDS	20
#define ARG		65536		/* room for arguments, with nothing behind it */
#define DATA		(65536 * sizeof(struct hvi_ept_range))
#define TABLES		0x1000u		/* identity mapping of the long mode guests */
#define CODE		0x4000u
#define CODE_SIZE	0x4000u

enum {
	GET_INFO, CREATE, ADD_MEMORY, GET_CPUID, SET_CPUID, INTERCEPT, RUN, PAUSE, RESUME, KICK, FETCH,
	RESET, EPT_SET, EPT_GET, VIEW_CREATE, VIEW_DESTROY, REMAP, ADD_SPARE, SPP_SET, VE_SET, VE_PAGES,
	GET_XSAVE, SET_XSAVE, LIST_MSRS, GET_MSRS, SET_MSRS, QUERY_MTRR, OTHER, REQUESTS
};
static const struct { unsigned long number; const char *name; } requests[REQUESTS] = {
#define R(n) [n] = { HVI_##n, #n }
	R(GET_INFO), R(CREATE), R(ADD_MEMORY), R(GET_CPUID), R(SET_CPUID), R(INTERCEPT), R(RUN), R(PAUSE),
	R(RESUME), R(KICK), R(FETCH), R(RESET), R(EPT_SET), R(EPT_GET), R(VIEW_CREATE), R(VIEW_DESTROY),
	R(REMAP), R(ADD_SPARE), R(SPP_SET), R(VE_SET), R(VE_PAGES), R(GET_XSAVE), R(SET_XSAVE),
	R(LIST_MSRS), R(GET_MSRS), R(SET_MSRS), R(QUERY_MTRR),
#undef R
	[OTHER] = { 0, "(no request)" },
};

/* ---- chance ------------------------------------------------------------------- */

static __thread u64 chance;

static u64 rnd(void)
{
	u64 z = (chance += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static u32 below(u32 n)
{
	return (u32)(rnd() >> 32) % n;
}

static bool one_in(u32 n)
{
	return below(n) == 0;
}

/* Numbers at which checks go wrong. */
static u64 edge(void)
{
	static const u64 list[] = {
		0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 511, 512, 575,
		576, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0xffff, 0x10000, 0x10001, 0xfffff, 0x1fffff,
		0x200000, 0x7fffffff, 0x80000000, 0xfffff000, 0xffffffff, 0x100000000, 0x1000000000,
		0xfffffffff, 0x10000000000, 0xfffffffffffff, 0xffffffffff000, 0x10000000000000,
		0x7fffffffffff, 0x800000000000, 0xffff7fffffffffff, 0xffff800000000000,
		0x7fffffffffffffff, 0x8000000000000000, 0xfffffffffffff000, ~0ull,
	};

	switch (below(4)) {
	case 0:
		return list[below(sizeof(list) / sizeof(list[0]))];
	case 1:
		return list[below(sizeof(list) / sizeof(list[0]))] + below(5) - 2;
	case 2:
		return 1ull << below(64);
	default:
		return rnd() >> below(64);
	}
}

/* ---- what happened ---------------------------------------------------------------- */

static u64 tally[REQUESTS][MOST_ERRNO + 1];	/* answers by errno; 0: good */
static u64 reasons[HVI_EXIT_REASONS], calls, vms_made, forks, kills, mappings, rounds_together;
static u64 unnamed, most_calls = 100000, first_seed = 1;
static time_t started;
static bool large;		/* one VM with much RAM at a time */

/* Of the main thread's calls: for the alarm to see that they come back. */
static volatile u32 in_call;	/* request + 1 */
static volatile long in_handle;
static volatile u64 beats;

static time_t seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static void count(u64 *n)
{
	__atomic_add_fetch(n, 1, __ATOMIC_RELAXED);
}

static void count_call(u32 i, long r)
{
	u64 n = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	u32 err = r < 0 ? (u32)-r : 0;

	count(&tally[i][err < MOST_ERRNO ? err : MOST_ERRNO]);
	if (n % 5000 == 0) {
		printf("fuzz: seed %llu: %llu calls, %llu VMs, %ld s\n", (unsigned long long)first_seed,
		       (unsigned long long)n, (unsigned long long)vms_made, (long)(seconds() - started));
		fflush(stdout);
	}
}

/* Every 7 ms: interrupts HVI_RUN, as an engine's timers do. */
static void on_alarm(int sig)
{
	static u64 last;
	static u32 same;
	struct hvi_vcpu_op kick = { .vcpu = HVI_ALL_VCPUS };
	u32 i = in_call;

	(void)sig;
	if (!i || beats != last) {
		last = beats;
		same = 0;
		return;
	}
	if (on_soft && i == RUN + 1)	/* knows no signals */
		(void)hvi_call(in_handle, HVI_KICK, &kick);
	if (++same > STUCK_SECONDS * 1000 / 7) {
		static const char text[] = "fuzz: FAIL: a call does not come back: ";

		(void)!write(1, text, sizeof(text) - 1);
		(void)!write(1, requests[i - 1].name, strlen(requests[i - 1].name));
		(void)!write(1, "\n", 1);
		_exit(1);
	}
}

/* Our own end: a mistake of ours, or of what the module gives back of the CPU. */
static void on_fault(int sig, siginfo_t *info, void *context)
{
	const greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;

	printf("fuzz: FAIL: signal %d, address %p, RIP %llx, RSP %llx, error %llx, in call %u\n", sig, info->si_addr,
	       (unsigned long long)g[REG_RIP], (unsigned long long)g[REG_RSP], (unsigned long long)g[REG_ERR], in_call);
	for (u32 i = 0; i < 16; i++)
		printf(" %llx", (unsigned long long)g[i]);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

static void on_wake(int sig)
{
	(void)sig;
}

/* ---- VMs --------------------------------------------------------------------------- */

struct vm {
	long handle;		/* -1: none */
	u32 vcpus;
	u64 ram_size;
	bool large;
	u8 *ram;
	struct hvi_vcpu *page[HVI_MAX_VCPUS];
	u32 life;
	bool shared;		/* with a child */
};

static __thread u8 *arg_room, *data;

static u8 *guarded(size_t size)
{
	u8 *p = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p + size, 4096, PROT_NONE)) {
		perror("fuzz: mmap");
		exit(1);
	}
	return p;
}

static void make_room(void)
{
	arg_room = guarded(ARG);
	data = guarded(DATA);
}

static void free_room(void)
{
	munmap(arg_room, ARG + 4096);
	munmap(data, DATA + 4096);
}

/* Instructions that exit in every way, among random bytes. */
static void put_code(u8 *ram)
{
	static const struct { u8 len, code[9]; } some[] = {
		{ 2, { 0xe6, 0x10 } }, { 2, { 0xe4, 0x60 } }, { 1, { 0xf4 } }, { 2, { 0x0f, 0xa2 } },
		{ 2, { 0x0f, 0x32 } }, { 2, { 0x0f, 0x30 } }, { 3, { 0x0f, 0x01, 0xc1 } }, { 1, { 0xcc } },
		{ 3, { 0x0f, 0x22, 0xc0 } }, { 3, { 0x0f, 0x22, 0xd8 } }, { 3, { 0x0f, 0x22, 0xe0 } },
		{ 3, { 0x0f, 0x01, 0x13 } }, { 3, { 0x0f, 0x01, 0x1b } }, { 3, { 0x0f, 0x00, 0xd0 } },
		{ 3, { 0x0f, 0x01, 0xd1 } }, { 2, { 0xeb, 0xfe } }, { 2, { 0x88, 0x03 } }, { 2, { 0xf3, 0xa4 } },
		{ 2, { 0xf3, 0xab } }, { 2, { 0xf3, 0x6e } }, { 2, { 0xcd, 0x80 } }, { 1, { 0xfb } },
		{ 2, { 0xff, 0x33 } }, { 2, { 0x8f, 0x03 } }, { 3, { 0xf0, 0xff, 0x03 } }, { 2, { 0x0f, 0x0b } },
		{ 4, { 0x0f, 0xc7, 0x0b, 0x90 } }, { 3, { 0x0f, 0x21, 0xf8 } }, { 3, { 0x0f, 0x23, 0xf8 } },
		{ 2, { 0x0f, 0x31 } }, { 3, { 0x0f, 0x01, 0xf9 } }, { 1, { 0x9d } }, { 1, { 0xcf } },
		{ 3, { 0x0f, 0x01, 0x3b } }, { 2, { 0x0f, 0x08 } }, { 3, { 0x0f, 0x01, 0xd0 } },
		/* PUSH 1, POP RCX, XOR EAX, EAX, VMFUNC; VMFUNC with what is there; STOSQ over the next parts of a page */
		{ 8, { 0x6a, 0x01, 0x59, 0x31, 0xc0, 0x0f, 0x01, 0xd4 } }, { 3, { 0x0f, 0x01, 0xd4 } }, { 2, { 0x48, 0xab } },
	};

	for (u32 at = 0; at < CODE_SIZE - 16;) {
		u32 i = below(sizeof(some) / sizeof(some[0]));

		if (one_in(4))
			ram[CODE + at++] = (u8)rnd();
		memcpy(ram + CODE + at, some[i].code, some[i].len);
		at += some[i].len;
	}
	/* Level 4 to level 2, whose entries are pages of 2 MiB. */
	for (u32 i = 0; i < 512; i++) {
		u64 e = (u64)i << 21 | 0x87;

		memcpy(ram + TABLES + 0x2000 + i * 8, &e, 8);
	}
	memcpy(ram + TABLES, &(u64){ (TABLES + 0x1000) | 7 }, 8);
	memcpy(ram + TABLES + 0x1000, &(u64){ (TABLES + 0x2000) | 7 }, 8);
}

/* All that a guest can do to exit. */
static void intercept_much(const struct vm *m)
{
	for (u32 kind = 1; kind <= HVI_INTERCEPT_HLT; kind++) {
		static const u32 msrs[] = { 0x10, 0x174, 0x277, 0xc0000080, 0xc0000082, 0xc0000102, 0x40000000 };
		bool msr = kind <= HVI_INTERCEPT_MSR_WRITE;
		bool bits = kind == HVI_INTERCEPT_CR0_WRITE || kind == HVI_INTERCEPT_CR4_WRITE ||
			    kind == HVI_INTERCEPT_DTR || kind == HVI_INTERCEPT_EXCEPTION;

		for (u32 i = 0; i < (msr ? sizeof(msrs) / sizeof(msrs[0]) : 1); i++) {
			struct hvi_intercept a = { .kind = kind, .mask = bits ? rnd() & 0xff : 1 };

			a.index = msr ? msrs[i] : kind == HVI_INTERCEPT_IO ? 0xffff0000 : 0;
			(void)hvi_call(m->handle, HVI_INTERCEPT, &a);
		}
	}
}

static void map_vm(struct vm *m)
{
	for (u32 i = 0; i < m->vcpus; i++)
		m->page[i] = hvi_map(m->handle, HVI_MMAP_VCPU + (u64)i * HVI_VCPU_SIZE, HVI_VCPU_SIZE);
	m->ram = hvi_map(m->handle, HVI_MMAP_RAM, RAM);
}

static void unmap_vm(struct vm *m)
{
	for (u32 i = 0; i < m->vcpus; i++)
		hvi_unmap(m->page[i], HVI_VCPU_SIZE);
	hvi_unmap(m->ram, RAM);
	memset(m->page, 0, sizeof(m->page));
	m->ram = NULL;
}

static void open_vm(struct vm *m)
{
	struct hvi_create create = { .vcpus = one_in(40) ? HVI_MAX_VCPUS : 1 + below(3) };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };

	memset(m, 0, sizeof(*m));
	m->life = LIFE / 2 + below(LIFE);
	m->handle = hvi_open();
	if (m->handle < 0) {
		fprintf(stderr, "fuzz: /dev/hvi: %s\n", strerror((int)-m->handle));
		exit(3);
	}
	vms_made++;
	if (one_in(8))
		return;		/* calls on what is no machine yet */
	if (hvi_call(m->handle, HVI_CREATE, &create))
		return;
	m->vcpus = create.vcpus;
	if (!one_in(16) && !hvi_call(m->handle, HVI_ADD_MEMORY, &memory))
		m->ram_size = RAM;
	map_vm(m);
	if (one_in(2))
		intercept_much(m);
	if (m->ram)
		put_code(m->ram);
}

static void close_vm(struct vm *m)
{
	bool unmap_first = one_in(2);

	if (unmap_first)
		unmap_vm(m);
	if (m->handle >= 0)
		hvi_close(m->handle);
	if (!unmap_first)	/* they keep the VM */
		unmap_vm(m);
	if (m->large)
		large = false;
	m->handle = -1;
}

/* ---- arguments ---------------------------------------------------------------------- */

static u64 some_gfn(void)
{
	return one_in(6) ? edge() : below((RAM >> 12) + 8);
}

static u32 some_view(void)
{
	return one_in(12) ? (u32)edge() : below(6);
}

static u32 some_vcpu(const struct vm *m)
{
	return one_in(12) ? (u32)edge() : one_in(8) ? HVI_ALL_VCPUS : below(m->vcpus ? m->vcpus : 1);
}

static u32 some_msr(void)
{
	static const u32 list[] = {
		0x10, 0x1b, 0x3a, 0x48, 0x8b, 0xfe, 0x174, 0x175, 0x176, 0x1a0, 0x1d9, 0x200, 0x201, 0x250,
		0x277, 0x2ff, 0x480, 0x6e0, 0x802, 0xc80, 0xda0, 0x1fff, 0x2000, 0x40000000, 0x40001fff,
		0xc0000080, 0xc0000081, 0xc0000082, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102,
		0xc0000103, 0xc0001fff, 0xc0002000,
	};

	return one_in(8) ? (u32)edge() : list[below(sizeof(list) / sizeof(list[0]))];
}

/* Fills `data` by a call of its own and damages some of it. */
static void fetched(const struct vm *m, unsigned long request, void *a, u32 size)
{
	(void)hvi_call(m->handle, request, a);
	for (u32 n = below(4); n; n--)
		data[below(size)] = (u8)edge();
}

static u32 fill_ranges(void)
{
	struct hvi_ept_range *r = (struct hvi_ept_range *)data;
	u32 n = one_in(400) ? 65536 : one_in(20) ? (u32)edge() : 1 + below(8);

	for (u32 i = 0; i < n && i < 65536; i++)
		r[i] = (struct hvi_ept_range){
			.gfn = one_in(40) ? edge() : below(RAM >> 12), .count = one_in(40) ? (u32)edge() : 1,
			.rights = one_in(40) ? (u32)edge() : (u32[]){ 0, 1, 3, 4, 5, 7 }[below(6)] };
	return n;
}

/* Arguments that are right, for a VM in the right state. */
static void fill_arg(const struct vm *m, u32 i, void *to)
{
	u64 p = (unsigned long)data;

	switch (i) {
	case GET_INFO:
		*(struct hvi_info *)to = (struct hvi_info){ .size = sizeof(struct hvi_info) };
		break;
	case CREATE:
		*(struct hvi_create *)to = (struct hvi_create){ .vcpus = 1 + below(3) };
		break;
	case ADD_MEMORY:
		*(struct hvi_memory *)to = (struct hvi_memory){
			.gpa = (u64)(below(8) + 1) << (one_in(2) ? 21 : 32), .size = (1 + below(512)) * 4096ull,
			.fd = on_soft || one_in(2) ? -1 : (__s32)below(12) };
		break;
	case GET_CPUID:
		*(struct hvi_cpuid *)to = (struct hvi_cpuid){ .count = HVI_MAX_CPUID, .entries = p };
		break;
	case SET_CPUID: {
		struct hvi_cpuid *a = to;

		*a = (struct hvi_cpuid){ .count = HVI_MAX_CPUID, .entries = p };
		fetched(m, HVI_GET_CPUID, a, HVI_MAX_CPUID * sizeof(struct hvi_cpuid_entry));
		break;
	}
	case INTERCEPT: {
		struct hvi_intercept *a = to;

		*a = (struct hvi_intercept){ .kind = 1 + below(HVI_INTERCEPT_HLT), .mask = below(2) };
		if (a->kind <= HVI_INTERCEPT_MSR_WRITE)
			a->index = some_msr();
		else if (a->kind == HVI_INTERCEPT_IO)
			a->index = below(0x100) | (0x100 + below(0xff00)) << 16;
		else if (one_in(2))
			a->mask = rnd() & 0xff;
		break;
	}
	case RUN: {
		const struct hvi_vcpu *v = m->page[0];

		*(struct hvi_run *)to = (struct hvi_run){ .flags = HVI_RUN_DEADLINE,
							   .deadline = (v ? v->tsc : 0) + BUDGET };
		break;
	}
	case PAUSE: case RESUME: case KICK: case FETCH: case RESET:
		*(struct hvi_vcpu_op *)to = (struct hvi_vcpu_op){ some_vcpu(m), (u32)rnd() & HVI_STATE_ALL };
		break;
	case EPT_SET: case EPT_GET:
		*(struct hvi_ept *)to = (struct hvi_ept){ some_view(), fill_ranges(), p };
		break;
	case VIEW_CREATE: case VIEW_DESTROY:
		*(struct hvi_view *)to = (struct hvi_view){ one_in(2) ? 0 : some_view(), some_view() };
		break;
	case REMAP:
		*(struct hvi_remap *)to = (struct hvi_remap){
			some_view(), one_in(3) ? HVI_SPARE_NONE : below(20), some_gfn() };
		break;
	case ADD_SPARE:
		*(struct hvi_spare *)to = (struct hvi_spare){ .count = 1 + below(8) };
		break;
	case SPP_SET:
		*(struct hvi_spp *)to = (struct hvi_spp){ some_view(), (u32)rnd(), some_gfn() };
		break;
	case VE_SET:
		for (u32 k = 0; k < 512; k++)
			((u32 *)data)[k] = one_in(8) ? some_view() : k;
		*(struct hvi_ve *)to = (struct hvi_ve){
			.vcpu = some_vcpu(m), .enable = below(2), .info_gpa = some_gfn() << 12,
			.view_count = below(5), .views = p };
		break;
	case VE_PAGES:
		*(struct hvi_ve_pages *)to = (struct hvi_ve_pages){ some_view(), below(2), some_gfn(), below(9) };
		break;
	case GET_XSAVE: case SET_XSAVE: {
		struct hvi_xsave *a = to;

		*a = (struct hvi_xsave){ some_vcpu(m), 16384, p };
		if (i == SET_XSAVE)
			fetched(m, HVI_GET_XSAVE, a, one_in(2) ? 16384 : 600);
		break;
	}
	case LIST_MSRS:
		*(struct hvi_msrs *)to = (struct hvi_msrs){ some_vcpu(m), 1024, p };
		break;
	case GET_MSRS: case SET_MSRS: {
		struct hvi_msr_entry *e = (struct hvi_msr_entry *)data;
		struct hvi_msrs *a = to;

		*a = (struct hvi_msrs){ below(m->vcpus ? m->vcpus : 1), 1024, p };
		memset(data, 0, 4096 * sizeof(*e));
		(void)hvi_call(m->handle, HVI_LIST_MSRS, a);
		if (i == SET_MSRS)
			(void)hvi_call(m->handle, HVI_GET_MSRS, a);
		for (u32 n = below(4), all = a->count < 4096 ? a->count : 4096; n && all; n--) {
			u32 k = below(all);

			if (one_in(2))
				e[k].index = some_msr();
			else
				e[k].value = edge();
		}
		break;
	}
	case QUERY_MTRR:
		*(struct hvi_mtrr *)to = (struct hvi_mtrr){ .gpa = some_gfn() << 12 };
		break;
	}
}

/* Too much of what the machine has little of would be the kernel's trouble, not the module's. */
static bool modest(struct vm *m, u32 i, void *to)
{
	struct hvi_memory *memory = to;
	struct hvi_spare *spare = to;

	if (i == ADD_SPARE && spare->count > 256 && spare->count <= HVI_MAX_SPARE_PAGES)
		spare->count += HVI_MAX_SPARE_PAGES;
	if (i == ADD_MEMORY && memory->size > (1ull << 30)) {
		if (large && !m->large && memory->size <= (1ull << 40))
			return false;
		large = m->large = true;
	}
	if (i == VIEW_CREATE && m->large)
		return false;
	return true;
}

/* Where an argument has its pointer; NULL: it has none. */
static u64 *pointer_of(u32 i, void *to)
{
	switch (i) {
	case GET_CPUID: case SET_CPUID:
		return &((struct hvi_cpuid *)to)->entries;
	case EPT_SET: case EPT_GET:
		return &((struct hvi_ept *)to)->ranges;
	case VE_SET:
		return &((struct hvi_ve *)to)->views;
	case GET_XSAVE: case SET_XSAVE:
		return &((struct hvi_xsave *)to)->data;
	case LIST_MSRS: case GET_MSRS: case SET_MSRS:
		return &((struct hvi_msrs *)to)->entries;
	default:
		return NULL;
	}
}

/* A damaged pointer may be one to our own variables, and what is answered there our end. */
static void keep_off(u32 i, void *to)
{
	extern char __executable_start, end;
	u64 *p = pointer_of(i, to);

	if (p && *p + DATA > (unsigned long)&__executable_start && *p < (unsigned long)&end)
		*p = 0;
}

/* For the library, buffers must be what the argument says. */
static void make_safe(u32 i, void *to)
{
	u64 p = one_in(20) ? 0 : (unsigned long)data;

	if (pointer_of(i, to))
		*pointer_of(i, to) = p;
	switch (i) {
	case GET_XSAVE: case SET_XSAVE:
		if (((struct hvi_xsave *)to)->size > DATA)
			((struct hvi_xsave *)to)->size = DATA;
		break;
	case ADD_MEMORY:	/* a file that is too short ends in SIGBUS */
		if (((struct hvi_memory *)to)->fd >= 0)
			((struct hvi_memory *)to)->fd = one_in(2) ? -1 : 9999;
		break;
	}
}

static void *bad_pointer(u32 size)
{
	switch (below(6)) {
	case 0:
		return NULL;
	case 1:
		return (void *)(unsigned long)rnd();
	case 2:
		return arg_room + ARG - below(size + 1);	/* ends in the middle */
	case 3:
		return (void *)0xffffffff81000000ul;
	case 4:
		return (void *)(unsigned long)(0x7ffffffff000ull - below(32));
	default:
		return (void *)(unsigned long)"read-only, and not as long as an argument is";
	}
}

/* Damages some fields; in structures with a pointer also that. */
static void damage(void *to, u32 size)
{
	u32 *word = to;

	for (u32 n = 1 + below(3); n && size >= 4; n--) {
		u32 at = below(size / 4);

		if (at % 2 == 0 && at + 1 < size / 4 && one_in(2)) {
			u64 v = one_in(3) ? (unsigned long)bad_pointer(64) : edge();

			memcpy(word + at, &v, 8);
		} else {
			word[at] = (u32)edge();
		}
	}
}

/* ---- vCPU states --------------------------------------------------------------------- */

static void long_mode(struct hvi_vcpu *v)
{
	for (u32 i = 0; i < HVI_SEGS; i++)
		v->seg[i] = (struct hvi_segment){ .limit = 0xffffffff, .access = 0xc093, .selector = 16 };
	v->seg[HVI_CS] = (struct hvi_segment){ .limit = 0xffffffff, .access = 0xa09b, .selector = 8 };
	v->tr = (struct hvi_segment){ .limit = 0x67, .access = 0x8b, .selector = 24 };
	v->ldtr = (struct hvi_segment){ .access = HVI_SEG_UNUSABLE };
	v->cr0 = 0x80010033;
	v->cr3 = TABLES;
	v->cr4 = 0x620;
	v->efer = 0xd01;
	v->rip = CODE + below(CODE_SIZE);
	v->rflags = 2 | (rnd() & 0x200);
	v->gpr[HVI_RSP] = 0x10000;
}

static u64 canonical(void)
{
	return (u64)((__s64)(edge() << 16) >> 16);
}

/* A limit and the G that fits it. */
static void some_limit(struct hvi_segment *s)
{
	s->limit = (u32)edge();
	s->access &= ~(1u << 15);
	if (s->limit >> 20) {
		s->limit |= 0xfff;
		s->access |= 1u << 15;
	}
}

static struct hvi_segment some_data(u32 types, u32 dpl)
{
	struct hvi_segment s = { .base = (u32)edge(), .selector = (__u16)edge() };
	u32 type;

	do {
		type = below(16);
	} while (!(types >> type & 1));
	s.access = 0x90 | type | dpl << 5 | ((u32)rnd() & 0x5000);	/* S, P; AVL and D/B as they come */
	some_limit(&s);
	if (one_in(6))
		s.access |= HVI_SEG_UNUSABLE;
	return s;
}

enum { REAL, PROTECTED, PAE, V86, COMPAT, LONG64, MODES };
static u64 plausible_tried[MODES], plausible_failed;

/* A state as odd as the rules of VM entry allow: it must enter. */
static void plausible(struct hvi_vcpu *v)
{
	u32 mode = below(MODES), dpl = mode == REAL ? 0 : below(4), type = (u32[]){ 3, 9, 11, 13, 15 }[below(5)];
	bool lma = mode >= COMPAT;

	count(&plausible_tried[mode]);
	if (type == 3 && mode != REAL)
		dpl = 0;
	v->cr0 = (rnd() & 0x6005002e) | 0x10;
	if (!(v->cr0 >> 30 & 1))
		v->cr0 &= ~(1ull << 29);
	v->cr4 = rnd() & 0x61c;
	v->cr3 = 0x9000;	/* nothing there: the first access is a page fault */
	v->efer = rnd() & 0x801;
	if (mode != REAL)
		v->cr0 |= 1;
	if (mode == PAE || lma) {
		v->cr0 |= 1u << 31;
		v->cr4 |= 0x20;
	}
	if (lma) {
		v->cr3 = one_in(2) ? TABLES : 0x9000;
		v->efer |= 0x500;
	}
	v->cr2 = edge();
	v->cr8 = below(16);
	v->xcr0 = one_in(2) ? 1 : 3;
	for (u32 i = 0; i < HVI_SEGS; i++) {
		v->seg[i] = some_data(i == HVI_SS ? 0x0088 : 0x88aa, dpl);	/* SS: 3, 7; others: accessed, code readable */
		if (i >= HVI_FS)
			v->seg[i].base = canonical();
	}
	v->seg[HVI_CS] = some_data(1u << type, type >= 13 && dpl ? below(dpl + 1) : dpl);
	v->seg[HVI_CS].access &= ~HVI_SEG_UNUSABLE;
	if (one_in(2)) {	/* where there is code */
		v->seg[HVI_CS].base = 0;
		v->seg[HVI_CS].limit = 0xffffffff;
		v->seg[HVI_CS].access |= 1u << 15;
	}
	if (mode == LONG64)
		v->seg[HVI_CS].access = (v->seg[HVI_CS].access & ~0x4000u) | 0x2000;
	v->tr = (struct hvi_segment){ canonical(), 0, 0x80 | (lma || one_in(2) ? 11 : 3), (__u16)edge() & 0xfffb, { 0 } };
	some_limit(&v->tr);
	v->ldtr = (struct hvi_segment){ canonical(), 0, 0x82, (__u16)edge() & 0xfffb, { 0 } };
	some_limit(&v->ldtr);
	if (one_in(2))
		v->ldtr.access |= HVI_SEG_UNUSABLE;
	v->gdtr = (struct hvi_table){ canonical(), (u32)edge(), 0 };
	v->idtr = (struct hvi_table){ canonical(), (u32)edge(), 0 };
	v->rip = one_in(3) ? (mode == LONG64 ? canonical() : (u32)edge()) : CODE + below(CODE_SIZE);
	v->rflags = rnd();
	if (mode == V86)
		v->rflags |= 1 << 17;
	else
		v->rflags &= ~(1ull << 17);
	for (u32 i = 0; mode == V86 && i < HVI_SEGS; i++) {
		v->seg[i] = (struct hvi_segment){ .limit = 0xffff, .access = 0xf3, .selector = (__u16)edge() };
		v->seg[i].base = (u64)v->seg[i].selector << 4;
	}
	for (u32 i = 0; i < 64; i += 8)
		v->pat = (v->pat & ~(0xffull << i)) | (u64)(u8[]){ 0, 1, 4, 5, 6, 7 }[below(6)] << i;
	v->star = edge();
	v->lstar = canonical();
	v->cstar = canonical();
	v->fmask = edge();
	v->kernel_gs_base = canonical();
	v->sysenter_cs = edge();
	v->sysenter_esp = canonical();
	v->sysenter_eip = canonical();
	v->apic_base = edge();
	v->tsc = one_in(4) ? edge() : v->tsc;
	v->tsc_aux = edge();
	v->debugctl = rnd() & 0x1ffc3;
	v->xss = edge();
	v->spec_ctrl = edge();
	for (u32 i = 0; i < 8; i++)
		v->dr[i] = edge();
	v->interruptibility = (u32)rnd();
	v->pending_debug = (u32)rnd();
	v->mp_state = HVI_MP_RUNNING;
	v->event.flags = 0;
	if (one_in(2))
		v->event = (struct hvi_event){
			.flags = HVI_EVENT_VALID | ((u32)rnd() & 0xe), .type = (u32[]){ 0, 2, 3, 4, 5, 6 }[below(6)],
			.error_code = (u32)edge(), .cr2 = edge(), .insn_len = 1 + below(15) };
	v->event.vector = v->event.type == HVI_EVENT_NMI ? 2 : below(32);
	v->view = 0;
	v->dirty = HVI_STATE_ALL;
}

static void shake(struct hvi_vcpu *v)
{
	u32 *word = (u32 *)v;
	u32 state_words = (u32)(__builtin_offsetof(struct hvi_vcpu, exit) / 4);

	switch (below(8)) {
	case 0: case 1:
		real_mode(v, CODE + below(CODE_SIZE));
		v->cr0 = 0x30;
		v->cr4 = 0;
		v->efer = 0;
		break;
	case 2: case 3: case 4:
		long_mode(v);
		break;
	case 5:
		for (u32 i = 0; one_in(4) && i < state_words; i++)
			word[i] = (u32)rnd();
		break;
	}
	if (one_in(2))
		for (u32 i = 0; i < HVI_GPRS; i++)
			v->gpr[i] = one_in(2) ? edge() : below(RAM);
	if (one_in(3))
		for (u32 n = 1 + below(4); n; n--)
			word[below(one_in(4) ? sizeof(*v) / 4 : state_words)] = (u32)edge();
	if (one_in(6)) {
		struct hvi_segment *s = &v->seg[below(HVI_SEGS + 2)];

		*s = (struct hvi_segment){ edge(), (u32)edge(), (u32)rnd() & 0x1f0ff, (__u16)edge(), { 0 } };
	}
	v->dirty = one_in(20) ? (u32)rnd() : (u32)rnd() & HVI_STATE_ALL;
	if (one_in(2))
		v->dirty |= HVI_STATE_ALL;
	v->mp_state = one_in(10) ? (u32)edge() : HVI_MP_RUNNING;
	if (one_in(3)) {
		v->event = (struct hvi_event){
			.flags = HVI_EVENT_VALID | ((u32)rnd() & 0xe), .type = one_in(6) ? (u32)edge() : below(7),
			.vector = one_in(6) ? (u32)edge() : below(48), .error_code = (u32)edge(), .cr2 = edge(),
			.insn_len = below(4) };
	}
	v->view = one_in(6) ? some_view() : 0;
	v->want_irq_window = one_in(8);
}

static void some_reply(struct hvi_vcpu *v)
{
	v->reply.action = one_in(20) ? (u32)edge() : below(HVI_REPLY_ACTIONS);
	v->reply.flags = one_in(20) ? (u32)edge() : 0;
	if (v->reply.action == HVI_REPLY_EMULATE)
		v->reply.flags |= below(8);
	else if (v->reply.action == HVI_REPLY_RESUME || v->reply.action == HVI_REPLY_SCRATCH ||
		 v->reply.action == HVI_REPLY_STEP)
		v->reply.flags |= one_in(3);
	v->reply.step_view = one_in(2) ? 0 : some_view();
	for (u32 i = 0; i < HVI_EMULATE_RANGES; i++) {
		bool page = (v->reply.flags & HVI_REPLY_SPARE) && one_in(2);

		v->reply.range[i] = (struct hvi_emulate_range){
			.gpa = one_in(20) ? edge() : (page ? v->exit.gpa & ~0xfffull : v->exit.gpa) + (one_in(8) ? 4096 * below(4) : 0),
			.offset = one_in(40) ? (u32)edge() : v->reply.flags & HVI_REPLY_SPARE ? below(2) : below(64),
			.len = one_in(2) ? 0 : one_in(40) ? (u32)edge() : page ? 4096 : below(17) };
	}
	v->reply.bytes[below(HVI_EMULATE_BYTES)] = (u8)rnd();
	v->exit.value = one_in(2) ? v->exit.value : edge();
	if (one_in(12))		/* what the module has written itself is no more to be trusted */
		((u32 *)&v->exit)[below(sizeof(v->exit) / 4)] = (u32)edge();
}

/* What HVI_RUN has refused stays so until it is changed. */
static void repair(struct hvi_vcpu *v)
{
	v->reply.action = one_in(2) ? HVI_REPLY_RETRY : HVI_REPLY_RESUME;
	v->reply.flags = 0;
	v->event.flags = 0;
	v->view = 0;
	if (one_in(2)) {
		long_mode(v);
		v->mp_state = HVI_MP_RUNNING;
		v->interruptibility = v->pending_debug = 0;
		v->gdtr = v->idtr = (struct hvi_table){ .limit = 0xffff };
		v->cr2 = v->cr8 = v->star = v->lstar = v->cstar = v->fmask = v->kernel_gs_base = 0;
		v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = v->tsc_aux = 0;
		v->debugctl = v->xss = v->spec_ctrl = 0;
		v->xcr0 = 1;
		v->pat = 0x0007040600070406;
		v->apic_base = 0xfee00800;
		memset(v->dr, 0, sizeof(v->dr));
		v->dr[6] = 0xffff0ff0;
		v->dr[7] = 0x400;
		v->dirty = HVI_STATE_ALL;
	}
}

/* ---- calls ------------------------------------------------------------------------------ */

static u64 failed_fields[0x10000], refused_guests, failed_controls;

/* `pure`: a plausible state, and nobody else has written to the page since. */
static void count_exit(const struct vm *m, const struct hvi_run *r, bool alone, bool pure)
{
	const struct hvi_vcpu *v = r->vcpu < m->vcpus ? m->page[r->vcpu] : NULL;

	if (r->reason < HVI_EXIT_REASONS)
		count(&reasons[r->reason]);
	if (!v || r->reason != HVI_EXIT_ENTRY_FAILED || !alone)
		return;		/* or another thread may have spoilt the record */
	count(&failed_fields[v->exit.value & 0xffff]);
	if (v->exit.number == HVI_ENTRY_BAD_GUEST)
		count(&refused_guests);
	else
		count(&failed_controls);
	if (v->exit.value == HVI_FIELD_NOT_KNOWN || v->exit.value > 0xffff)
		count(&unnamed);
	/* The guest may write its PDPTEs, and a damaged CPUID table takes CR4's and XCR0's bits away. */
	if (pure && v->exit.value != HVI_FIELD_GUEST_PDPTE0 && v->exit.value != HVI_FIELD_GUEST_CR4 &&
	    v->exit.value != HVI_FIELD_GUEST_XCR0) {
		count(&plausible_failed);
		printf("fuzz: a plausible state failed: number %u, field %llx\n", v->exit.number,
		       (unsigned long long)v->exit.value);
	}
}

/* One ioctl; its answer. `alone`: the main thread, and no other uses this VM. */
static long call(struct vm *m, bool alone)
{
	u32 i = one_in(3) && m->page[0] ? (u32)RUN : below(REQUESTS);
	unsigned long number = requests[i].number;
	struct hvi_run *ran = NULL;
	u32 size = _IOC_SIZE(number);
	void *to = arg_room + (one_in(2) ? 0 : ARG - size);
	bool pure = false;
	long r;

	if (i == OTHER) {	/* a wrong size, direction or number, another driver's */
		number = requests[below(OTHER)].number ^ (one_in(4) ? rnd() : 1ul << below(32));
		size = 64;
		to = arg_room;
		for (u32 k = 0; k < OTHER; k++)
			if (requests[k].number == number)
				return 0;
	}
	memset(arg_room, 0, 1024);
	fill_arg(m, i, to);
	if (!modest(m, i, to))
		return 0;
	if (i == RUN) {
		struct hvi_run *run = to;
		struct hvi_vcpu *v = m->page[below(m->vcpus ? m->vcpus : 1)];

		if (v && one_in(3)) {
			plausible(v);
			pure = alone && m->vcpus == 1 && !m->shared;
		} else if (v && one_in(2)) {
			shake(v);
		}
		for (u32 k = 0; k < m->vcpus; k++)
			if (m->page[k] && one_in(2))
				some_reply(m->page[k]);
		if (v)		/* state that we do not hand over says nothing about the clock */
			run->deadline = v->tsc + BUDGET;
		if (one_in(24))
			run->flags |= (u32)edge();
		if (one_in(24))
			run->deadline = edge();
		ran = run;
	} else if (one_in(3)) {
		damage(to, size);
		if (!modest(m, i, to))
			return 0;
	}
	if (on_soft)
		make_safe(i, to);
	else
		keep_off(i, to);
	if (one_in(16)) {
		to = on_soft ? NULL : bad_pointer(size);
		ran = NULL;
	}
	if (alone) {
		in_handle = m->handle;
		beats++;
		in_call = i + 1;
	}
	r = hvi_call(m->handle, number, to);
	if (alone)
		in_call = 0;
	count_call(i, r);
	if (ran && (r == -EINVAL || ran->reason == HVI_EXIT_ENTRY_FAILED || ran->reason == HVI_EXIT_SHUTDOWN ||
		    ran->reason == HVI_EXIT_IDLE) && !one_in(4))
		for (u32 k = 0; k < m->vcpus; k++)
			if (m->page[k])
				repair(m->page[k]);
	if (r)
		return r;
	if (ran)
		count_exit(m, ran, alone && !m->shared, pure);
	if (i == CREATE && !m->vcpus && alone) {	/* what was none is a machine now */
		m->vcpus = ((struct hvi_create *)to)->vcpus;
		if (m->vcpus > HVI_MAX_VCPUS)
			m->vcpus = 0;
		map_vm(m);
	}
	return 0;
}

/* ---- mappings -------------------------------------------------------------------------------- */

/* Mappings that are refused, or are gone again at once. */
static void odd_mapping(const struct vm *m)
{
	static const u64 base[] = { HVI_MMAP_RAM, HVI_MMAP_VCPU, HVI_MMAP_SPARE, 0x300000000000ull };
	u64 at = base[below(4)] + (one_in(2) ? (u64)below(600) << 12 : edge());
	u64 size = one_in(8) ? edge() : (1 + below(600)) * 4096ull;
	u8 *p;

	count(&mappings);
	if (on_soft) {
		(void)hvi_map(m->handle, at, size);
		return;
	}
	p = mmap(NULL, size, one_in(4) ? PROT_READ | PROT_EXEC : PROT_READ | PROT_WRITE,
		 MAP_NORESERVE | (one_in(4) ? MAP_PRIVATE : MAP_SHARED), (int)m->handle, (off_t)(at & ~0xfffull));
	if (p == MAP_FAILED)
		return;
	/* Touching it from user space may end in SIGBUS by right: let the kernel try. */
	if (one_in(2))
		(void)!write(-1, p, 1);
	if (one_in(2))
		(void)madvise(p, size, (int[]){ MADV_DONTNEED, MADV_WILLNEED, MADV_REMOVE, MADV_DONTFORK,
						 MADV_HUGEPAGE, MADV_POPULATE_WRITE }[below(6)]);
	if (one_in(3))
		(void)mprotect(p, size, (int)below(8));
	if (one_in(3)) {
		u64 longer = one_in(2) ? size + 4096 : size / 2 & ~0xfffull;
		u8 *q = longer ? mremap(p, size, longer, MREMAP_MAYMOVE) : MAP_FAILED;

		if (q != MAP_FAILED) {
			p = q;
			size = longer;
		}
	}
	if (one_in(4) && size > 8192) {		/* splits it; the hole may be another thread's at once */
		munmap(p + 4096, 4096);
		munmap(p, 4096);
		p += 8192;
		size -= 8192;
	}
	munmap(p, size);
}

/* The VM's own mappings come, go and move. */
static void move_mappings(struct vm *m)
{
	if (m->ram && one_in(2)) {
		u8 *to = mmap(NULL, RAM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		u8 *q = mremap(m->ram, RAM, RAM, MREMAP_MAYMOVE | MREMAP_FIXED, to);

		m->ram = q == MAP_FAILED ? m->ram : q;
	}
	unmap_vm(m);
	map_vm(m);
}

/* ---- several at once ---------------------------------------------------------------------------- */

struct helper { struct vm vm; u64 seed; u32 ops; int done; };

/* Has mappings of its own: those of the others may go at any time. */
static void *help(void *arg)
{
	struct helper *h = arg;
	u32 closed = 0;

	chance = h->seed;
	make_room();
	map_vm(&h->vm);
	for (u32 i = 0; i < h->ops && closed < 3; i++) {
		if (call(&h->vm, false) == -EBADF)
			closed++;
		if (one_in(16))
			odd_mapping(&h->vm);
		for (u32 n = one_in(4) ? 64 : 0; n && h->vm.page[0]; n--) {	/* under another's run */
			u32 *word = (u32 *)h->vm.page[below(h->vm.vcpus)];

			if (word)	/* the file may have been closed before this one was mapped */
				word[below(sizeof(struct hvi_vcpu) / 4)] = (u32)edge();
			if (h->vm.ram)
				h->vm.ram[CODE + below(CODE_SIZE)] = (u8)rnd();
		}
	}
	unmap_vm(&h->vm);
	free_room();
	__atomic_store_n(&h->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void join(pthread_t thread, struct helper *all, pthread_t *threads)
{
	for (u32 waited = 0;; waited += 5) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 5000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
		if (pthread_timedjoin_np(thread, NULL, &until) != ETIMEDOUT)
			return;
		if (waited > STUCK_SECONDS * 1000) {
			printf("fuzz: FAIL: a thread does not come back\n");
			exit(1);
		}
		/* A guest may run for ever; a signal to the thread that runs it ends the call. */
		for (u32 i = 0; i < THREADS; i++)
			if (!__atomic_load_n(&all[i].done, __ATOMIC_ACQUIRE))
				pthread_kill(threads[i], SIGUSR1);
	}
}

/* Threads on one VM, and its mappings and its file taken away under them. */
static void together(struct vm *m)
{
	static struct helper h[THREADS];
	pthread_t threads[THREADS];

	rounds_together++;
	for (u32 i = 0; i < THREADS; i++) {
		h[i] = (struct helper){ .vm = *m, .seed = rnd(), .ops = 30 + below(60) };
		memset(h[i].vm.page, 0, sizeof(h[i].vm.page));
		h[i].vm.ram = NULL;
		if (pthread_create(&threads[i], NULL, help, &h[i])) {
			perror("fuzz: thread");
			exit(1);
		}
	}
	for (u32 n = below(6); n; n--) {
		usleep(below(3000));
		move_mappings(m);
	}
	if (one_in(2)) {
		close((int)m->handle);
		m->handle = -1;
	}
	for (u32 i = 0; i < THREADS; i++)
		join(threads[i], h, threads);
	for (u32 i = 0; i < THREADS; i++)
		if (h[i].vm.large)
			m->large = true;
	if (m->handle < 0)
		close_vm(m);
}

/* The software vCPU: what another thread may do while one runs. */
static void *kicker(void *arg)
{
	const struct vm *m = arg;
	struct hvi_vcpu_op op = { .vcpu = HVI_ALL_VCPUS };

	for (u32 i = 0; i < 40; i++) {
		(void)hvi_call(m->handle, i % 4 ? HVI_KICK : i % 8 ? HVI_PAUSE : HVI_RESUME, &op);
		usleep(50);
	}
	(void)hvi_call(m->handle, HVI_RESUME, &op);
	return NULL;
}

static void kicked(struct vm *m)
{
	pthread_t thread;

	rounds_together++;
	if (!m->page[0] || pthread_create(&thread, NULL, kicker, m))
		return;
	for (u32 i = 0; i < 40; i++) {
		struct hvi_run run = { .flags = HVI_RUN_DEADLINE, .deadline = m->page[0]->tsc + BUDGET };

		m->page[0]->reply.action = HVI_REPLY_RESUME;
		in_handle = m->handle;
		beats++;
		in_call = RUN + 1;
		count_call(RUN, hvi_call(m->handle, HVI_RUN, &run));
		in_call = 0;
	}
	pthread_join(thread, NULL);
}

/* A child that shares the VM and goes without closing it. */
static void shared_fork(struct vm *m)
{
	u32 n = below(20);
	pid_t pid;

	forks++;
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		calls = 1;	/* the child tells nothing */
		if (!on_soft) {		/* the device's mappings do not come along */
			memset(m->page, 0, sizeof(m->page));
			map_vm(m);
		}
		while (n--)
			call(m, false);
		if (m->ram)
			m->ram[below(RAM)] = 1;
		_exit(0);
	}
	if (on_soft || one_in(2))
		waitpid(pid, NULL, 0);
	m->shared = true;
	while (!on_soft && n--)
		call(m, true);
	m->shared = false;
	/* Without a timer of its own it may run a guest for ever. */
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* A child that runs a busy guest for ever on a VM of its own, and is killed. */
static void killed_child(void)
{
	pid_t pid;

	kills++;
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		struct hvi_create create = { .vcpus = 1 + below(2) };
		struct hvi_memory memory = { .size = RAM, .fd = -1 };
		struct hvi_run run = { 0 };
		struct vm m = { .handle = hvi_open() };

		if (m.handle < 0 || hvi_call(m.handle, HVI_CREATE, &create) ||
		    hvi_call(m.handle, HVI_ADD_MEMORY, &memory))
			_exit(1);
		m.vcpus = create.vcpus;
		map_vm(&m);
		if (!m.ram || !m.page[0])
			_exit(1);
		memcpy(m.ram + CODE, "\xfe\x06\x00\x80\xeb\xfa", 6);	/* 1: incb 0x8000; jmp 1b */
		for (u32 i = 0; i < m.vcpus; i++) {
			real_mode(m.page[i], CODE);
			m.page[i]->mp_state = HVI_MP_RUNNING;
			m.page[i]->dirty = HVI_STATE_ALL;
		}
		for (;;)
			(void)hvi_call(m.handle, HVI_RUN, &run);
	}
	usleep(below(one_in(4) ? 30000 : 4000));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* ---- afterwards --------------------------------------------------------------------------------- */

/* A new VM: a guest on each vCPU counts in its memory, asks CPUID and halts. */
static bool still_works(void)
{
	static const u8 code[] = {
		0xb9, 0x64, 0x00,		/*    mov $100, %cx */
		0xfe, 0x06, 0x00, 0x80,		/* 1: incb 0x8000 */
		0xe2, 0xfa,			/*    loop 1b */
		0x66, 0x31, 0xc0,		/*    xor %eax, %eax */
		0x0f, 0xa2,			/*    cpuid */
		0xf4,				/*    hlt */
	};
	struct hvi_create create = { .vcpus = 2 };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };
	struct hvi_intercept hlt = { .kind = HVI_INTERCEPT_HLT, .mask = 1 };
	struct hvi_info info = { .size = sizeof(info) };
	struct vm m = { .handle = hvi_open() };
	u32 halted = 0;

	if (m.handle < 0 || hvi_call(m.handle, HVI_GET_INFO, &info) || info.abi_version != HVI_ABI_VERSION ||
	    hvi_call(m.handle, HVI_CREATE, &create) || hvi_call(m.handle, HVI_ADD_MEMORY, &memory) ||
	    hvi_call(m.handle, HVI_INTERCEPT, &hlt)) {
		printf("fuzz: FAIL: no VM can be made any more\n");
		return false;
	}
	m.vcpus = create.vcpus;
	map_vm(&m);
	if (!m.ram || !m.page[0] || !m.page[1]) {
		printf("fuzz: FAIL: a VM cannot be mapped any more\n");
		return false;
	}
	memcpy(m.ram + CODE, code, sizeof(code));
	for (u32 i = 0; i < 2; i++) {
		real_mode(m.page[i], CODE);
		m.page[i]->mp_state = HVI_MP_RUNNING;
		m.page[i]->dirty |= HVI_STATE_EVENTS;
	}
	for (u32 tries = 0; tries < 200 && halted != 3; tries++) {
		struct hvi_run run = { 0 };
		long r;

		beats++;
		in_call = RUN + 1;
		in_handle = m.handle;
		r = hvi_call(m.handle, HVI_RUN, &run);
		in_call = 0;
		if (r == -EINTR || run.reason == HVI_EXIT_PAUSED)
			continue;
		if (r || run.reason != HVI_EXIT_HLT || run.vcpu > 1) {
			printf("fuzz: FAIL: a plain guest: %ld, exit %u of vCPU %u\n", r, run.reason, run.vcpu);
			return false;
		}
		halted |= 1u << run.vcpu;
	}
	if (halted != 3 || m.ram[0x8000] != 200 || !m.page[0]->gpr[HVI_RBX]) {
		printf("fuzz: FAIL: a plain guest: halted %x, counted %u, CPUID %llx\n", halted, m.ram[0x8000],
		       (unsigned long long)m.page[0]->gpr[HVI_RBX]);
		return false;
	}
	unmap_vm(&m);
	hvi_close(m.handle);
	printf("fuzz: a new guest runs to HLT on both of its vCPUs\n");
	return true;
}

static bool expected(u32 i, u64 caps)
{
	switch (i) {
	case SPP_SET:
		return caps & HVI_CAP_SPP;
	case VE_PAGES:
		return caps & HVI_CAP_VE;
	case VE_SET:
		return (caps & HVI_CAP_VE) || (caps & HVI_CAP_EPTP_SWITCH);
	default:
		return i != OTHER;
	}
}

static u64 sum(const u64 *of, u32 n)
{
	u64 all = 0;

	while (n--)
		all += of[n];
	return all;
}

static bool report(u64 caps)
{
	bool good = true;

	printf("fuzz: seed %llu: %llu calls on %llu VMs, %llu mappings, %llu rounds of threads, %llu forks, "
	       "%llu children killed, %ld s\n", (unsigned long long)first_seed, (unsigned long long)calls,
	       (unsigned long long)vms_made, (unsigned long long)mappings,
	       (unsigned long long)rounds_together, (unsigned long long)forks, (unsigned long long)kills,
	       (long)(seconds() - started));
	for (u32 i = 0; i < REQUESTS; i++) {
		printf("%-14s good %llu", requests[i].name, (unsigned long long)tally[i][0]);
		for (u32 e = 1; e <= MOST_ERRNO; e++)
			if (tally[i][e])
				printf(", %s %llu", strerrorname_np((int)e) ? strerrorname_np((int)e) : "(unknown)",
				       (unsigned long long)tally[i][e]);
		printf("\n");
		if (calls >= 20000 && !tally[i][0] && expected(i, caps)) {
			printf("fuzz: FAIL: %s has never succeeded\n", requests[i].name);
			good = false;
		}
	}
	printf("exits by reason:");
	for (u32 i = 0; i < HVI_EXIT_REASONS; i++)
		if (reasons[i])
			printf(" %u:%llu", i, (unsigned long long)reasons[i]);
	printf("\n");
	printf("entries: %llu plausible states in six modes (%llu %llu %llu %llu %llu %llu), of which %llu failed; "
	       "of all states %llu were invalid, controls %llu; by field:", (unsigned long long)sum(plausible_tried, MODES),
	       (unsigned long long)plausible_tried[0], (unsigned long long)plausible_tried[1],
	       (unsigned long long)plausible_tried[2], (unsigned long long)plausible_tried[3],
	       (unsigned long long)plausible_tried[4], (unsigned long long)plausible_tried[5],
	       (unsigned long long)plausible_failed, (unsigned long long)refused_guests,
	       (unsigned long long)failed_controls);
	for (u32 i = 0; i < 0x10000; i++)
		if (failed_fields[i])
			printf(" %x:%llu", i, (unsigned long long)failed_fields[i]);
	printf("\n");
	if (plausible_failed || failed_controls) {
		printf("fuzz: FAIL: states that should enter did not\n");
		good = false;
	}
	if (tally[OTHER][0]) {
		printf("fuzz: FAIL: %llu requests that do not exist succeeded\n",
		       (unsigned long long)tally[OTHER][0]);
		good = false;
	}
	if (unnamed) {
		printf("fuzz: FAIL: %llu failed VM entries name no field\n", (unsigned long long)unnamed);
		good = false;
	}
	return good;
}

static void open_files(void)
{
	static const char *const path[] = { "/dev/zero", "/dev/null", "/", "/proc/self/exe", "/proc/self/maps" };
	int fd = memfd_create("whole", 0), part = memfd_create("part", 0), pipes[2];

	/* What HVI_ADD_MEMORY's small numbers may then stand for. */
	if (fd < 0 || part < 0 || ftruncate(fd, RAM) || ftruncate(part, 5000) || pipe(pipes))
		perror("fuzz: files");
	for (u32 i = 0; i < sizeof(path) / sizeof(path[0]); i++)
		(void)open(path[i], O_RDONLY | O_CLOEXEC);
}

int main(int argc, char **argv)
{
	struct sigaction alarm_action = { .sa_handler = on_alarm }, wake = { .sa_handler = on_wake };
	struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	struct itimerval every = { { 0, 7000 }, { 0, 7000 } }, never = { { 0, 0 }, { 0, 0 } };
	struct hvi_info info = { .size = sizeof(info) };
	u64 most_seconds = ~0ull >> 1;
	static struct vm vms[VMS];
	long first;
	bool good;

	for (int i = 1; i < argc; i += 2) {
		if (i + 1 == argc || strncmp(argv[i], "--", 2))
			goto usage;
		if (!strcmp(argv[i], "--seed"))
			first_seed = strtoull(argv[i + 1], NULL, 0);
		else if (!strcmp(argv[i], "--calls"))
			most_calls = strtoull(argv[i + 1], NULL, 0);
		else if (!strcmp(argv[i], "--seconds"))
			most_seconds = strtoull(argv[i + 1], NULL, 0);
		else if (!strcmp(argv[i], "--soft"))
			use_soft(argv[i + 1]);
		else
			goto usage;
	}
	chance = first_seed;
	started = seconds();
	make_room();
	open_files();
	first = hvi_open();
	if (first < 0 || hvi_call(first, HVI_GET_INFO, &info)) {
		fprintf(stderr, "fuzz: /dev/hvi: %s\n", first < 0 ? strerror((int)-first) : "HVI_GET_INFO");
		return 3;
	}
	hvi_close(first);
	printf("fuzz: seed %llu, %s, ABI %u, capabilities %llx\n", (unsigned long long)first_seed, info.backend,
	       info.abi_version, (unsigned long long)info.caps);
	fflush(stdout);
	sigaction(SIGALRM, &alarm_action, NULL);
	sigaction(SIGUSR1, &wake, NULL);
	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	for (u32 i = 0; i < VMS; i++)
		open_vm(&vms[i]);
	while (calls < most_calls && (u64)(seconds() - started) < most_seconds) {
		struct vm *m = &vms[below(VMS)];

		if (m->handle >= 0 && m->life) {
			m->life--;
			call(m, true);
		} else {
			if (m->handle >= 0)
				close_vm(m);
			open_vm(m);
		}
		if (one_in(24))
			odd_mapping(m);
		if (one_in(200) && m->handle >= 0)
			on_soft ? kicked(m) : together(m);
		if (one_in(300) && m->handle >= 0)
			shared_fork(m);
		if (one_in(500))
			killed_child();
		if (!on_soft && one_in(100) && m->handle >= 0)
			move_mappings(m);
	}
	for (u32 i = 0; i < VMS; i++)
		if (vms[i].handle >= 0)
			close_vm(&vms[i]);
	good = report(info.caps);
	good = still_works() && good;
	setitimer(ITIMER_REAL, &never, NULL);
	printf("fuzz: %s\n", good ? "survived" : "FAILED");
	return good ? 0 : 1;
usage:
	fprintf(stderr, "usage: fuzz [--seed N] [--calls N] [--seconds N] [--soft LIBRARY]\n");
	return 2;
}
