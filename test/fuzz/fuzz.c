// SPDX-License-Identifier: MIT
/*
 * fuzz.c - hostile guests and a hostile caller against the software vCPU.
 *
 *	fuzz [--instructions N] [--seconds T] [--seed S] [--case SEED] [--verbose]
 *
 * A case is a machine in some mode with random code, tables and rights, run in
 * short pieces; at each exit the reply, registers, events and ioctls are
 * random. All of a case follows from its seed, which is printed when something
 * breaks: `fuzz --case SEED` runs it again. Built with ASan and UBSan; buffers
 * handed over have exactly the size they say. Exit code 0: nothing broke.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "../../hv/abi/hvi.h"

long hvi_soft_open(void);
long hvi_soft_ioctl(long handle, unsigned long request, void *arg);
void *hvi_soft_mmap(long handle, uint64_t offset, uint64_t size);
int hvi_soft_close(long handle);

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define RAM		0x400000u
#define HIGH_GPA	0x100000000ull	/* a second slot, behind the hole */
#define HIGH		0x10000u
#define TABLES		0x1000u
#define GDT		0x8000u
#define IDT		0x9000u
#define TSS		0xa000u
#define HANDLERS	0xb000u
#define STACK		0x20000u
#define CODE		0x40000u
#define CODE_SIZE	0x4000u
#define DATA		0x50000u
#define DATA_SIZE	0x10000u
#define PIECE		3000		/* guest instructions between two looks */
#define PIECES		60		/* pieces of a case */
#define STUCK_SECONDS	20		/* one HVI_RUN may not take longer */

enum mode { LONG, LONG5, COMPAT, USER, PAE, LEGACY, UNPAGED, REAL, MODES };

static u64 rng;
static u64 case_seed;
static u64 total, runs, cases, exits_of[HVI_EXIT_REASONS];
static bool verbose;

static u64 rnd(void)
{
	u64 z = (rng += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static u64 below(u64 n)
{
	return rnd() % n;
}

static bool one_in(u64 n)
{
	return below(n) == 0;
}

/* Called by ASan before it ends the process. */
void __asan_on_error(void);
void __asan_on_error(void)
{
	fprintf(stderr, "fuzz: broken in --case %llu\n", (unsigned long long)case_seed);
}

static void stop(int sig)
{
	static const char text[] = "fuzz: stuck or killed in --case ";
	char digits[24];
	int n = 0;

	(void)!write(2, text, sizeof(text) - 1);
	for (u64 v = case_seed; v || !n; v /= 10)
		digits[n++] = (char)('0' + v % 10);
	while (n)
		(void)!write(2, &digits[--n], 1);
	(void)!write(2, "\n", 1);
	signal(sig, SIG_DFL);
	raise(sig == SIGALRM ? SIGABRT : sig);
}

struct machine {
	long handle;
	enum mode mode;
	u32 vcpus;
	u8 *ram;
	struct hvi_vcpu *page[2];
	u64 tsc[2];		/* at the last exit */
};

/* ---- numbers that find edges --------------------------------------------------- */

static u64 number(void)
{
	static const u64 edge[] = {
		0, 1, 2, 3, 7, 8, 0x7f, 0x80, 0xff, 0xfff, 0x1000, 0x7fff, 0xffff, 0x10000,
		0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffff, 0x800000000000,
		0xffff7fffffffffff, 0xffff800000000000, 0x7fffffffffffffff, 0x8000000000000000,
		~0ull, ~0ull - 0xfff, RAM - 1, RAM, RAM / 4096, DATA, CODE, STACK,
	};

	switch (below(4)) {
	case 0:
		return edge[below(sizeof(edge) / sizeof(*edge))];
	case 1:
		return edge[below(sizeof(edge) / sizeof(*edge))] + below(17) - 8;
	case 2:
		return rnd() >> below(64);
	default:
		return DATA + below(DATA_SIZE);
	}
}

static u64 gfn(void)
{
	return one_in(8) ? number() : one_in(16) ? (HIGH_GPA >> 12) + below(18) : below(RAM >> 12);
}

/* ---- code ------------------------------------------------------------------------ */

static u32 instruction(u8 *p)
{
	static const u8 prefix[] = {
		0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65,
		0x48, 0x49, 0x4c, 0x4f, 0x40, 0x41, 0x44,
	};
	/* The instructions of the system, which chance would seldom spell. */
	static const u8 sys[][4] = {
		{ 2, 0x0f, 0x30 }, { 2, 0x0f, 0x32 }, { 2, 0x0f, 0xa2 }, { 3, 0x0f, 0x01, 0xc1 },
		{ 3, 0x0f, 0x01, 0xd1 }, { 3, 0x0f, 0x01, 0xd0 }, { 3, 0x0f, 0x22, 0xc0 }, { 3, 0x0f, 0x22, 0xd8 },
		{ 3, 0x0f, 0x22, 0xe0 }, { 3, 0x0f, 0x20, 0xc0 }, { 3, 0x0f, 0x23, 0xf8 }, { 3, 0x0f, 0x01, 0x16 },
		{ 3, 0x0f, 0x01, 0x1e }, { 3, 0x0f, 0x01, 0x06 }, { 3, 0x0f, 0x01, 0x0e }, { 3, 0x0f, 0x00, 0xd0 },
		{ 3, 0x0f, 0x00, 0xd8 }, { 3, 0x0f, 0x00, 0xc0 }, { 1, 0xf4 }, { 1, 0xfb }, { 1, 0xfa }, { 1, 0xcf },
		{ 2, 0x48, 0xcf }, { 1, 0xcb }, { 2, 0xcd, 0x30 }, { 1, 0xcc }, { 2, 0x0f, 0x05 }, { 2, 0x0f, 0x07 },
		{ 2, 0x0f, 0x34 }, { 2, 0x0f, 0x35 }, { 3, 0x0f, 0x01, 0xf8 }, { 2, 0xff, 0x2e }, { 2, 0xff, 0x1e },
		{ 2, 0x8e, 0xd8 }, { 2, 0x8e, 0xd0 }, { 2, 0x8e, 0xe0 }, { 3, 0x0f, 0xae, 0x27 }, { 3, 0x0f, 0xae, 0x2e },
		{ 3, 0x0f, 0xae, 0x07 }, { 3, 0x0f, 0xae, 0x0e }, { 3, 0x0f, 0x01, 0x3e }, { 2, 0x0f, 0x06 },
		{ 2, 0xf3, 0xa4 }, { 2, 0xf3, 0xab }, { 2, 0xf3, 0x6c }, { 2, 0xf3, 0x6f }, { 1, 0x9d }, { 1, 0xee },
	};
	u32 n = 0, map = below(8);

	if (one_in(12)) {
		const u8 *i = sys[below(sizeof(sys) / sizeof(*sys))];

		memcpy(p, i + 1, i[0]);
		return i[0];
	}
	while (one_in(3) && n < 4)
		p[n++] = prefix[below(sizeof(prefix))];
	if (map == 0) {			/* VEX */
		if (one_in(2)) {
			p[n++] = 0xc5;
		} else {
			p[n++] = 0xc4;
			p[n++] = (u8)((rnd() & 0xe0) | (1 + below(3)));
		}
		p[n++] = (u8)rnd();
		p[n++] = (u8)rnd();
	} else if (map <= 3) {
		p[n++] = 0x0f;
		if (one_in(4))
			p[n++] = one_in(2) ? 0x38 : 0x3a;
		p[n++] = (u8)rnd();
	} else {
		p[n++] = (u8)rnd();
	}
	/* ModRM: mostly registers and plain [register] or short displacements. */
	p[n++] = (u8)(one_in(2) ? 0xc0 | rnd() : one_in(2) ? rnd() & 0x7f : rnd());
	for (u32 i = below(6); i; i--)
		p[n++] = (u8)(one_in(2) ? below(16) : rnd());
	return n;
}

static void fill_code(u8 *p, u32 size)
{
	u32 at = 0;

	if (one_in(4)) {
		for (u32 i = 0; i < size; i++)
			p[i] = (u8)rnd();
		return;
	}
	while (at + 32 < size)
		at += instruction(p + at);
}

/* ---- machines ---------------------------------------------------------------------- */

static void put64(struct machine *m, u32 at, u64 v)
{
	memcpy(m->ram + at, &v, 8);
}

static void put32(struct machine *m, u32 at, u32 v)
{
	memcpy(m->ram + at, &v, 4);
}

static u64 descriptor(u32 base, u32 limit, u32 flags)
{
	return (limit & 0xffff) | ((u64)(base & 0xffffff) << 16) | ((u64)(flags & 0xff) << 40) |
	       ((u64)(limit >> 16) << 48) | ((u64)(flags >> 8) << 52) | ((u64)(base >> 24) << 56);
}

/* Handlers that step over the byte at which the fault stood. */
static void handlers(struct machine *m)
{
	static const u8 c64[] = { 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf };
	static const u8 e64[] = { 0x48, 0x83, 0xc4, 0x08 };
	static const u8 c32[] = { 0xff, 0x04, 0x24, 0xcf };
	static const u8 e32[] = { 0x83, 0xc4, 0x04 };
	static const u8 c16[] = { 0x55, 0x89, 0xe5, 0xff, 0x46, 0x02, 0x5d, 0xcf };
	bool is_long = m->mode <= USER;

	for (u32 v = 0; v < 256; v++) {
		u8 *p = m->ram + HANDLERS + 16 * v;
		bool error = v == 8 || (v >= 10 && v <= 14) || v == 17;

		if (m->mode == REAL) {
			memcpy(p, c16, sizeof(c16));
			put32(m, 4 * v, HANDLERS + 16 * v);
		} else if (is_long) {
			memcpy(p, e64, error ? sizeof(e64) : 0);
			memcpy(p + (error ? sizeof(e64) : 0), c64, sizeof(c64));
			put64(m, IDT + 16 * v, ((HANDLERS + 16 * v) & 0xffff) | (8u << 16) | (0xee00ull << 32) |
			      (one_in(16) ? 1ull << 32 : 0));
			put64(m, IDT + 16 * v + 8, 0);
		} else {
			memcpy(p, e32, error ? sizeof(e32) : 0);
			memcpy(p + (error ? sizeof(e32) : 0), c32, sizeof(c32));
			put64(m, IDT + 8 * v, ((HANDLERS + 16 * v) & 0xffff) | (8u << 16) |
			      ((one_in(32) ? 0xef00ull : 0xee00ull) << 32));
		}
	}
}

static void tables(struct machine *m)
{
	u64 f = 0x07 | (below(4) << 5);

	for (u32 i = 0; m->mode <= PAE && i < 1024; i++)
		put64(m, TABLES + 0x3000 + 8 * i, (u64)i << 12 | f);
	if (m->mode <= USER) {
		put64(m, TABLES, TABLES + 0x1000 + 7);
		put64(m, TABLES + 0x1000, TABLES + 0x2000 + 7);
		put64(m, TABLES + 0x2000, TABLES + 0x3000 + 7);
		put64(m, TABLES + 0x2008, TABLES + 0x4000 + 7);
		put64(m, TABLES + 0x2010, 0x87);		/* a large page: 0 again */
		put64(m, TABLES + 0x5000, TABLES + 7);		/* five levels */
	} else if (m->mode == PAE) {
		put64(m, TABLES, TABLES + 0x1000 + 1);
		put64(m, TABLES + 0x1000, TABLES + 0x3000 + 7);
		put64(m, TABLES + 0x1008, TABLES + 0x4000 + 7);
		put64(m, TABLES + 0x1010, 0x87);
	} else if (m->mode == LEGACY) {
		put32(m, TABLES, TABLES + 0x1000 + 7);
		put32(m, TABLES + 4, 0x87);
		for (u32 i = 0; i < 1024; i++)
			put32(m, TABLES + 0x1000 + 4 * i, i << 12 | (u32)f);
	}
	/* Damage: single bits, whole entries, entries that name tables. */
	for (u64 i = one_in(2) ? 0 : below(24); i; i--) {
		u32 at = TABLES + (u32)below(0x6000 / 8) * 8;

		if (one_in(2))
			m->ram[at + below(8)] ^= (u8)(1u << below(8));
		else if (one_in(2))
			put64(m, at, rnd());
		else
			put64(m, at, (TABLES + below(6) * 0x1000) | (rnd() & 0xfff) | 1);
	}
}

static void segment(struct hvi_segment *s, u16 selector, u32 access)
{
	s->base = 0;
	s->limit = 0xffffffff;
	s->access = access;
	s->selector = selector;
}

static void registers(struct machine *m, struct hvi_vcpu *p)
{
	for (u32 i = 0; i < HVI_GPRS; i++)
		p->gpr[i] = one_in(3) ? number() : DATA + below(DATA_SIZE);
	p->gpr[HVI_RCX] = one_in(2) ? below(300) : p->gpr[HVI_RCX];
	if (one_in(8))
		p->gpr[HVI_RCX] = one_in(2) ? 0xc0000080 + below(5) : 0x277;
	p->gpr[HVI_RSP] = STACK - 8 * below(64);
	p->rip = CODE + below(CODE_SIZE - 64);
	p->rflags = 2 | (rnd() & 0x8d5) | (one_in(2) ? 0x200 : 0) | (one_in(16) ? 0x400 : 0) |
		    (one_in(64) ? 0x100 : 0) | (one_in(4) ? 0x3000 : 0) | (one_in(32) ? 0x40000 : 0);
	if (m->mode == REAL) {
		for (u32 i = 0; i < HVI_GPRS; i++)
			p->gpr[i] &= 0xffff;
		p->rip &= 0xffff;
		p->gpr[HVI_RSP] = 0xfff0;
		p->rip = 0x100 + below(0x3000);
	}
	p->dirty |= HVI_STATE_GPR;
}

static void state(struct machine *m, struct hvi_vcpu *p)
{
	bool user = m->mode == USER || m->mode == COMPAT;
	u32 dpl = user ? 0x60 : 0;

	registers(m, p);
	p->cr0 = 0x80010033;
	p->cr3 = TABLES;
	p->cr4 = 0x40620;
	p->efer = 0xd01;
	p->xcr0 = one_in(4) ? 3 : 7;
	p->cr8 = 0;
	for (u32 i = 0; i < HVI_SEGS; i++)
		segment(&p->seg[i], user ? 0x23 : 0x10, 0xc093 | dpl);
	segment(&p->seg[HVI_CS], user ? 0x2b : 0x08, 0xa09b | dpl);
	segment(&p->ldtr, 0, HVI_SEG_UNUSABLE);
	segment(&p->tr, 0x30, 0x8b);
	p->tr.base = TSS;
	p->tr.limit = 0x67;
	p->gdtr.base = GDT;
	p->gdtr.limit = 0xfff;
	p->idtr.base = IDT;
	p->idtr.limit = 0xfff;
	p->star = 0x0018000800000000ull;
	p->lstar = CODE;
	p->sysenter_cs = 8;
	p->sysenter_eip = CODE;
	p->sysenter_esp = STACK;
	p->dr[6] = 0xffff0ff0;
	p->dr[7] = 0x400;
	if (one_in(16)) {
		p->dr[below(4)] = one_in(2) ? p->rip + below(32) : DATA + below(DATA_SIZE);
		p->dr[7] |= rnd() & 0xffff00ff;
		p->dr[7] &= 0xffff03ff;
	}
	p->pat = 0x0007040600070406ull;
	p->mp_state = HVI_MP_RUNNING;
	p->interruptibility = 0;
	p->pending_debug = 0;
	switch (m->mode) {
	case LONG5:
		p->cr3 = TABLES + 0x5000;
		p->cr4 |= 0x1000;
		break;
	case COMPAT:
		segment(&p->seg[HVI_CS], 0x1b, 0xc0fb);
		break;
	case PAE:
		p->efer = 0x800;
		segment(&p->seg[HVI_CS], 8, 0xc09b);
		break;
	case LEGACY:
		p->efer = 0;
		p->cr4 = 0x610;
		segment(&p->seg[HVI_CS], 8, 0xc09b);
		break;
	case UNPAGED:
		p->efer = 0;
		p->cr0 = 0x10033;
		p->cr4 = 0x600;
		segment(&p->seg[HVI_CS], 8, 0xc09b);
		break;
	case REAL:
		p->efer = 0;
		p->cr0 = 0x10;
		p->cr4 = 0x600;
		p->cr3 = 0;
		p->idtr.base = 0;
		p->idtr.limit = 0x3ff;
		for (u32 i = 0; i < HVI_SEGS; i++) {
			p->seg[i].selector = i == HVI_CS ? CODE >> 4 : DATA >> 4;
			p->seg[i].base = (u64)p->seg[i].selector << 4;
			p->seg[i].limit = 0xffff;
			p->seg[i].access = 0x93;
		}
		p->seg[HVI_CS].access = 0x9b;
		break;
	default:
		break;
	}
	if (m->mode <= USER && one_in(4))
		p->cr4 |= 1ull << (one_in(2) ? 20 : 21);	/* SMEP, SMAP */
	p->dirty = HVI_STATE_ALL;
}

static void memory(struct machine *m)
{
	bool is_long = m->mode <= USER;

	fill_code(m->ram + CODE, CODE_SIZE);
	for (u32 i = 0; i < DATA_SIZE; i += 8)
		put64(m, DATA + i, one_in(4) ? number() : rnd());
	put64(m, GDT + 0x08, descriptor(0, 0xfffff, is_long ? 0xa9b : 0xc9b));
	put64(m, GDT + 0x10, descriptor(0, 0xfffff, 0xc93));
	put64(m, GDT + 0x18, descriptor(0, 0xfffff, 0xcfb));
	put64(m, GDT + 0x20, descriptor(0, 0xfffff, 0xcf3));
	put64(m, GDT + 0x28, descriptor(0, 0xfffff, is_long ? 0xafb : 0xcfb));
	put64(m, GDT + 0x30, descriptor(TSS, 0x67, 0x8b));
	/* The rest of the GDT: gates, task states, whatever. */
	for (u32 i = 0x40; i < 0x400; i += 8)
		put64(m, GDT + i, one_in(2) ? rnd() : descriptor(CODE + (u32)below(64), 0xffff, (u32)rnd() & 0xfff));
	put64(m, TSS + 4, STACK);
	if (!is_long)
		put64(m, TSS + 4, STACK | 0x1000000000ull);
	for (u32 i = 0; i < 7; i++)
		put64(m, TSS + 0x24 + 8 * i, STACK - 0x2000 * i);
	handlers(m);
	if (m->mode < UNPAGED)
		tables(m);
}

static long call(struct machine *m, unsigned long request, void *arg)
{
	return hvi_soft_ioctl(m->handle, request, arg);
}

static bool build(struct machine *m)
{
	struct hvi_create create = { .vcpus = m->vcpus };
	struct hvi_memory slot = { .size = RAM, .fd = -1 };
	struct hvi_memory high = { .gpa = HIGH_GPA, .size = HIGH, .fd = -1 };
	struct hvi_cpuid cpuid = { .count = HVI_MAX_CPUID };
	struct hvi_cpuid_entry list[HVI_MAX_CPUID];

	m->handle = hvi_soft_open();
	if (m->handle < 0 || call(m, HVI_CREATE, &create) || call(m, HVI_ADD_MEMORY, &slot) ||
	    call(m, HVI_ADD_MEMORY, &high))
		return false;
	m->ram = hvi_soft_mmap(m->handle, HVI_MMAP_RAM, RAM + HIGH);
	for (u32 i = 0; i < m->vcpus; i++)
		m->page[i] = hvi_soft_mmap(m->handle, HVI_MMAP_VCPU + i * HVI_VCPU_SIZE, HVI_VCPU_SIZE);
	cpuid.entries = (u64)(uintptr_t)list;
	if (!m->ram || !m->page[0] || call(m, HVI_GET_CPUID, &cpuid))
		return false;
	for (u32 i = 0; m->mode == LONG5 && i < cpuid.count; i++)
		if (list[i].leaf == 7 && !list[i].index)
			list[i].ecx |= 1u << 16;	/* LA57 */
	if (call(m, HVI_SET_CPUID, &cpuid))
		return false;
	memory(m);
	for (u32 i = 0; i < m->vcpus; i++)
		state(m, m->page[i]);
	return true;
}

/* ---- the caller --------------------------------------------------------------------- */

static void random_ept(struct machine *m, bool get)
{
	u32 n = (u32)below(6);
	struct hvi_ept_range *r = malloc(n * sizeof(*r) + 1);
	struct hvi_ept e = { .view = one_in(8) ? (u32)number() : (u32)below(4), .count = n };

	for (u32 i = 0; i < n; i++) {
		r[i].gfn = gfn();
		r[i].count = one_in(16) ? (u32)number() : 1 + (u32)below(4);
		r[i].rights = one_in(32) ? (u32)number() : (u32)below(8);
		if (!one_in(16) && r[i].rights != 2 && r[i].rights != 6)
			continue;
		r[i].rights = HVI_RWX;
	}
	e.ranges = (u64)(uintptr_t)r;
	if (one_in(64))
		e.ranges = 0;
	if (one_in(256))
		e.count = 65537 + (u32)below(1000);
	call(m, get ? HVI_EPT_GET : HVI_EPT_SET, &e);
	free(r);
}

static void random_msrs(struct machine *m, unsigned long request)
{
	static const u32 known[] = {
		0x10, 0x1b, 0x174, 0x175, 0x176, 0x1a0, 0x1d9, 0x200, 0x20f, 0x250, 0x277, 0x2ff, 0x6e0, 0xda0,
		0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103,
	};
	u32 n = (u32)below(5);
	struct hvi_msr_entry *e = calloc(n + 1, sizeof(*e));
	struct hvi_msrs a = { .vcpu = one_in(8) ? (u32)number() : 0, .count = n };

	e = realloc(e, n ? n * sizeof(*e) : 1);
	for (u32 i = 0; i < n; i++) {
		e[i].index = one_in(4) ? (u32)number() : known[below(sizeof(known) / sizeof(*known))];
		e[i].reserved = one_in(32);
		e[i].value = number();
	}
	a.entries = (u64)(uintptr_t)e;
	call(m, request, &a);
	free(e);
}

static void random_xsave(struct machine *m, bool set)
{
	u32 n = one_in(4) ? (u32)below(1200) : 832;
	u8 *p = malloc(n + 1);
	struct hvi_xsave a = { .vcpu = one_in(8) ? (u32)number() : 0, .size = n, .data = (u64)(uintptr_t)p };

	p = realloc(p, n ? n : 1);
	a.data = (u64)(uintptr_t)p;
	for (u32 i = 0; i < n; i++)
		p[i] = (u8)rnd();
	if (n > 576 && !one_in(4)) {
		memset(p + 512, 0, 64);
		p[512] = (u8)below(8);
		p[26] = p[27] = 0;
		p[25] &= 0x1f;
	}
	call(m, set ? HVI_SET_XSAVE : HVI_GET_XSAVE, &a);
	free(p);
}

static void random_cpuid(struct machine *m)
{
	u32 n = (u32)below(20);
	struct hvi_cpuid_entry *e = malloc(n ? n * sizeof(*e) : 1);
	struct hvi_cpuid a = { .count = n, .entries = (u64)(uintptr_t)e };

	for (u32 i = 0; i < n * sizeof(*e) / 4; i++)
		((u32 *)e)[i] = (u32)number();
	for (u32 i = 0; i < n; i++)
		e[i].reserved = one_in(16);
	if (one_in(2)) {
		call(m, HVI_GET_CPUID, &a);
	} else if (one_in(32)) {
		call(m, HVI_SET_CPUID, &a);
	}
	free(e);
}

static void all_intercepts(struct machine *m)
{
	static const struct hvi_intercept list[] = {
		{ HVI_INTERCEPT_CR0_WRITE, 0, ~0u }, { HVI_INTERCEPT_CR3_WRITE, 0, 1 }, { HVI_INTERCEPT_CR4_WRITE, 0, ~0u },
		{ HVI_INTERCEPT_CR8_WRITE, 0, 1 }, { HVI_INTERCEPT_DTR, 0, 0xff }, { HVI_INTERCEPT_XSETBV, 0, 1 },
		{ HVI_INTERCEPT_VMCALL, 0, 1 }, { HVI_INTERCEPT_EXCEPTION, 0, 0x00020008 }, { HVI_INTERCEPT_CPUID, 0, 1 },
		{ HVI_INTERCEPT_HLT, 0, 1 }, { HVI_INTERCEPT_MSR_READ, 0x10, 1 }, { HVI_INTERCEPT_MSR_WRITE, 0x10, 1 },
		{ HVI_INTERCEPT_MSR_READ, 0x277, 1 }, { HVI_INTERCEPT_MSR_WRITE, 0xc0000082, 1 },
	};

	for (u32 i = 0; i < sizeof(list) / sizeof(*list); i++) {
		struct hvi_intercept a = list[i];

		if (!one_in(4))
			call(m, HVI_INTERCEPT, &a);
	}
}

static void random_ioctl(struct machine *m)
{
	u64 words[32];

	for (u32 i = 0; i < 32; i++)
		words[i] = number();
	switch (below(18)) {
	case 0: case 1: case 2:
		random_ept(m, one_in(4));
		break;
	case 3: {
		struct hvi_view v = { .from = one_in(8) ? (u32)number() : (u32)below(3) };

		call(m, HVI_VIEW_CREATE, &v);
		break;
	}
	case 4: {
		struct hvi_view v = { .view = one_in(8) ? (u32)number() : (u32)below(5) };

		call(m, HVI_VIEW_DESTROY, &v);
		break;
	}
	case 5: {
		struct hvi_spare s = { .count = one_in(8) ? (u32)number() : (u32)below(3) };

		call(m, HVI_ADD_SPARE, &s);
		break;
	}
	case 6: {
		struct hvi_remap r = {
			.view = one_in(8) ? (u32)number() : (u32)below(3),
			.spare = one_in(3) ? HVI_SPARE_NONE : (u32)below(4),
			.gfn = gfn(),
		};

		call(m, HVI_REMAP, &r);
		break;
	}
	case 7: case 8: {
		struct hvi_intercept i = {
			.kind = one_in(16) ? (u32)number() : 1 + (u32)below(14),
			.index = (u32)number(),
			.mask = one_in(4) ? number() : below(2),
		};

		if (i.kind == HVI_INTERCEPT_EXCEPTION && !one_in(8))
			i.mask = 1ull << below(32);
		if (i.kind == HVI_INTERCEPT_IO && one_in(2))
			i.index = 0xffff0000;
		call(m, HVI_INTERCEPT, &i);
		break;
	}
	case 9:
		random_msrs(m, one_in(3) ? HVI_GET_MSRS : HVI_SET_MSRS);
		break;
	case 10:
		random_xsave(m, one_in(2));
		break;
	case 11:
		random_cpuid(m);
		break;
	case 12: {
		static const unsigned long op[] = { HVI_PAUSE, HVI_RESUME, HVI_KICK, HVI_FETCH };
		struct hvi_vcpu_op a = { .vcpu = one_in(4) ? (u32)number() : 0, .groups = (u32)number() };

		call(m, op[below(4)], &a);
		a.vcpu = HVI_ALL_VCPUS;
		a.groups = 0;
		call(m, HVI_RESUME, &a);
		break;
	}
	case 13: {
		struct hvi_mtrr a = { .gpa = number() };

		call(m, HVI_QUERY_MTRR, &a);
		break;
	}
	case 14: {
		struct hvi_spp s = { .view = (u32)below(2), .mask = (u32)rnd(), .gfn = gfn() };
		struct hvi_ve v = { .vcpu = (u32)below(3), .enable = 1, .info_gpa = number() };
		struct hvi_ve_pages g = { .gfn = gfn(), .count = number() };

		call(m, HVI_SPP_SET, &s);
		call(m, HVI_VE_SET, &v);
		call(m, HVI_VE_PAGES, &g);
		break;
	}
	case 15:
		/* Numbers that are no ioctl at all, or of another size. */
		call(m, 0x40000000ul | (below(256) << 16) | 0xb100 | below(256) | 0x80, words);
		hvi_soft_ioctl((long)number() | 0x1000, HVI_GET_INFO, words);
		break;
	case 16:
		hvi_soft_mmap(m->handle, number() & ~0xfffull, number());
		hvi_soft_mmap(m->handle, HVI_MMAP_SPARE + (below(8) << 12), number());
		break;
	default: {
		struct hvi_vcpu_op a = { .vcpu = (u32)below(m->vcpus) };

		if (one_in(8) && !call(m, HVI_RESET, &a))
			state(m, m->page[a.vcpu]);
	}
	}
}

/* Registers written by a caller that means harm. */
static void random_state(struct machine *m, struct hvi_vcpu *p)
{
	u8 *from = (u8 *)p->gpr, *to = (u8 *)&p->exit;

	switch (below(4)) {
	case 0:
		for (u64 i = 1 + below(4); i; i--)
			from[below((u64)(to - from))] ^= (u8)(1u << below(8));
		p->dirty = HVI_STATE_ALL;
		break;
	case 1: {
		u64 v = number();

		memcpy(from + below((u64)(to - from) / 8) * 8, &v, 8);
		p->dirty = HVI_STATE_ALL;
		break;
	}
	case 2:
		if (one_in(16))
			for (u8 *q = from; q < to; q++)
				*q = (u8)rnd();
		p->dirty = (u32)number();
		break;
	default:
		p->interruptibility = (u32)below(16);
		p->mp_state = one_in(16) ? (u32)below(8) : HVI_MP_RUNNING;
		p->want_irq_window = one_in(4);
		p->pending_debug = one_in(4) ? (u32)rnd() : 0;
		p->dirty = HVI_STATE_EVENTS;
	}
	(void)m;
}

static void random_event(struct hvi_vcpu *p)
{
	p->event.type = one_in(16) ? (u32)number() : (u32)below(7);
	p->event.vector = one_in(16) ? (u32)number() : p->event.type == 2 ? 2 : (u32)below(p->event.type == 3 ? 32 : 256);
	p->event.flags = HVI_EVENT_VALID | (u32)(rnd() & 14);
	p->event.error_code = one_in(2) ? (u32)below(32) : (u32)number();
	p->event.cr2 = number();
	p->event.insn_len = (u32)below(one_in(8) ? 40 : 16);
}

static void random_reply(struct hvi_vcpu *p)
{
	struct hvi_reply *r = &p->reply;

	r->action = one_in(64) ? (u32)number() : (u32)below(HVI_REPLY_ACTIONS);
	r->flags = one_in(64) ? (u32)number() : one_in(4) ? (u32)below(8) : (u32)below(2);
	r->step_view = one_in(16) ? (u32)number() : (u32)below(3);
	for (u32 i = 0; i < HVI_EMULATE_RANGES; i++) {
		bool page = (r->flags & HVI_REPLY_SPARE) && one_in(4);

		r->range[i].gpa = one_in(2) ? p->exit.gpa : number();
		if (page)
			r->range[i].gpa &= ~0xfffull;
		r->range[i].len = one_in(2) ? 0 : one_in(64) ? (u32)number() : page ? 4096 : (u32)below(33);
		r->range[i].offset = one_in(64) ? (u32)number() : r->flags & HVI_REPLY_SPARE ? (u32)below(3) : (u32)below(200);
	}
	for (u32 i = 0; i < 32; i++)
		r->bytes[below(HVI_EMULATE_BYTES)] = (u8)rnd();
	if (one_in(8))
		p->exit.value = number();
	if (r->action == HVI_REPLY_INJECT)
		random_event(p);
	if (one_in(64))
		for (u8 *q = (u8 *)&p->exit; q < (u8 *)r; q++)
			*q = (u8)rnd();
}

static bool run_piece(struct machine *m)
{
	struct hvi_run run = { .flags = HVI_RUN_DEADLINE };
	u64 now[2];
	long r;

	/*
	 * A TSC that was written is the vCPU's only when its group is dirty. The clocks
	 * of two vCPUs may be set far apart: the deadline is that of the one behind.
	 */
	for (u32 i = 0; i < m->vcpus; i++)
		now[i] = m->page[i]->dirty & HVI_STATE_MSR ? m->page[i]->tsc : m->tsc[i];
	run.deadline = now[0] + PIECE;
	if (m->vcpus > 1 && (int64_t)(now[1] - now[0]) < 0)
		run.deadline = now[1] + PIECE;
	alarm(STUCK_SECONDS);
	r = call(m, HVI_RUN, &run);
	alarm(0);
	runs++;
	for (u32 i = 0; i < m->vcpus && !r; i++)
		m->tsc[i] = m->page[i]->tsc;
	if (r) {
		/* Refused: a reply, an event or a view that cannot be. Make it one that can. */
		for (u32 i = 0; i < m->vcpus; i++) {
			m->page[i]->reply.action = HVI_REPLY_RETRY;
			m->page[i]->reply.flags = 0;
			m->page[i]->event.flags = 0;
			m->page[i]->view = 0;
			state(m, m->page[i]);
		}
		return true;
	}
	if (run.vcpu >= m->vcpus || run.reason >= HVI_EXIT_REASONS || run.reason == HVI_EXIT_NONE ||
	    m->page[run.vcpu]->exit.reason != run.reason) {
		fprintf(stderr, "fuzz: HVI_RUN answers vCPU %u, reason %u in --case %llu\n", run.vcpu, run.reason,
			(unsigned long long)case_seed);
		abort();
	}
	exits_of[run.reason]++;
	struct hvi_vcpu *p = m->page[run.vcpu];

	if (verbose && (run.reason == HVI_EXIT_EMULATION || run.reason == HVI_EXIT_ENTRY_FAILED))
		printf("%s at %#llx in mode %d: number %#x, value %#llx\n",
		       run.reason == HVI_EXIT_EMULATION ? "EMULATION" : "ENTRY_FAILED", (unsigned long long)p->rip,
		       m->mode, p->exit.number, (unsigned long long)p->exit.value);

	if (run.reason == HVI_EXIT_SHUTDOWN || run.reason == HVI_EXIT_ENTRY_FAILED || run.reason == HVI_EXIT_IDLE) {
		for (u32 i = 0; i < m->vcpus; i++)
			state(m, m->page[i]);
		if (one_in(4))
			memory(m);
	} else {
		random_reply(p);
		if (one_in(3))
			registers(m, p);
	}
	if (one_in(16))
		random_state(m, p);
	if (one_in(24))
		random_event(p);
	if (one_in(16))
		p->view = (u32)below(3);
	for (u64 i = below(4); i; i--)
		if (one_in(4))
			random_ioctl(m);
	/* Code and tables change under the guest. */
	if (one_in(8))
		for (u32 i = 0; i < 16; i++)
			m->ram[CODE + below(CODE_SIZE)] = (u8)rnd();
	if (one_in(64))
		m->ram[TABLES + below(0x6000)] ^= (u8)(1u << below(8));
	return true;
}

static bool one_case(u64 seed)
{
	struct machine m = { 0 };
	u64 before = total;

	case_seed = seed;
	rng = seed;
	m.mode = (enum mode)below(MODES);
	m.vcpus = one_in(8) ? 2 : 1;
	if (!build(&m)) {
		fprintf(stderr, "fuzz: the machine cannot be built in --case %llu\n", (unsigned long long)seed);
		return false;
	}
	if (one_in(2))
		all_intercepts(&m);
	for (u64 i = below(12); i; i--)
		random_ioctl(&m);
	for (u32 i = 0; i < PIECES && run_piece(&m); i++)
		;
	for (u32 i = 0; i < m.vcpus; i++)
		total += m.page[i]->counters.instructions;
	cases++;
	if (verbose)
		printf("case %llu: mode %d, %llu instructions\n", (unsigned long long)seed, m.mode,
		       (unsigned long long)(total - before));
	hvi_soft_close(m.handle);
	return true;
}

static const char *const reason_name[HVI_EXIT_REASONS] = {
	"none", "EPT", "MSR_READ", "MSR_WRITE", "CR_WRITE", "DTR", "XSETBV", "VMCALL", "EXCEPTION", "IO", "CPUID",
	"HLT", "DEADLINE", "IRQ_WINDOW", "INJECTED", "STEP", "SHUTDOWN", "PAUSED", "IDLE", "ENTRY_FAILED", "EMULATION",
};

int main(int argc, char **argv)
{
	u64 want = 10000000, seconds = 0, seed = (u64)time(NULL), next;
	time_t start = time(NULL);
	bool single = false;

	for (int i = 1; i < argc; i++) {
		bool has = i + 1 < argc;

		if (!strcmp(argv[i], "--verbose")) {
			verbose = true;
		} else if (has && !strcmp(argv[i], "--instructions")) {
			want = strtoull(argv[++i], NULL, 0);
		} else if (has && !strcmp(argv[i], "--seconds")) {
			seconds = strtoull(argv[++i], NULL, 0);
		} else if (has && !strcmp(argv[i], "--seed")) {
			seed = strtoull(argv[++i], NULL, 0);
		} else if (has && !strcmp(argv[i], "--case")) {
			single = true;
			seed = strtoull(argv[++i], NULL, 0);
		} else {
			fprintf(stderr, "fuzz: unknown option %s\n", argv[i]);
			return 2;
		}
	}
	signal(SIGALRM, stop);
	if (single)
		return one_case(seed) ? 0 : 1;
	printf("fuzz: seed %llu\n", (unsigned long long)seed);
	next = seed;
	while (total < want && !(seconds && time(NULL) - start >= (time_t)seconds)) {
		u64 this;

		rng = next;
		this = rnd();
		next = rng;
		if (!one_case(this))
			return 1;
	}
	printf("fuzz: %llu instructions, %llu cases, %llu runs in %ld s\n", (unsigned long long)total,
	       (unsigned long long)cases, (unsigned long long)runs, (long)(time(NULL) - start));
	for (u32 i = 1; i < HVI_EXIT_REASONS; i++)
		if (exits_of[i])
			printf("  %-12s %llu\n", reason_name[i], (unsigned long long)exits_of[i]);
	return 0;
}
