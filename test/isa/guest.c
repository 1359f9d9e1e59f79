/* SPDX-License-Identifier: MIT */
/* guest.c - the instruction in hv/soft: a user program's page tables and nothing else. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../hv/abi/hvi.h"
#include "isa.h"

#define RAM_SIZE	0x200000u
#define PML4		0x1000u
#define PDPT		0x2000u
#define PD		0x3000u
#define PT		0x4000u
#define CODE_GPA	0x10000u
#define DATA_GPA	0x11000u
#define STACK_GPA	0x13000u
#define PTE_USER	0x67ull	/* P, W, U, A, D */
#define PTE_W		0x2ull

static long (*do_open)(void);
static long (*do_ioctl)(long, unsigned long, void *);
static void *(*do_mmap)(long, u64, u64);
static long vm;
static u8 *ram;
static struct hvi_vcpu *page;

static void *symbol(void *lib, const char *name)
{
	void *p = dlsym(lib, name);

	if (!p) {
		fprintf(stderr, "isa: the library has no %s\n", name);
		exit(2);
	}
	return p;
}

static void call(unsigned long request, void *arg, const char *what)
{
	long e = do_ioctl(vm, request, arg);

	if (e) {
		fprintf(stderr, "isa: %s: %ld\n", what, e);
		exit(2);
	}
}

static void entry(u32 table, u32 index, u64 value)
{
	memcpy(ram + table + 8 * index, &value, 8);
}

static void map(u64 la, u32 gpa, u32 size, u64 rights)
{
	for (u32 i = 0; i < size; i += 4096)
		entry(PT, (u32)((la + i) >> 12 & 511), (gpa + i) | rights);
}

static void intercept(u32 kind, u64 mask)
{
	struct hvi_intercept i = { .kind = kind, .mask = mask };

	call(HVI_INTERCEPT, &i, "HVI_INTERCEPT");
}

static u8 mode;		/* 64, 32; 0: to be set */

static void user_mode(u8 bits)
{
	struct hvi_segment unusable = { .access = HVI_SEG_UNUSABLE };

	for (u32 i = 0; i < HVI_SEGS; i++)
		page->seg[i] = unusable;
	if (bits == 64)
		page->seg[HVI_CS] = (struct hvi_segment){ .limit = ~0u, .access = 0xa0fb, .selector = 0x33 };
	else
		page->seg[HVI_CS] = (struct hvi_segment){ .limit = ~0u, .access = 0xc0fb, .selector = 0x23 };
	page->seg[HVI_SS] = (struct hvi_segment){ .limit = ~0u, .access = 0xc0f3, .selector = 0x2b };
	page->seg[HVI_DS] = page->seg[HVI_ES] = page->seg[HVI_SS];
	page->ldtr = unusable;
	page->tr = (struct hvi_segment){ .limit = 0x67, .access = 0x8b, .selector = 0x40 };
	page->cr0 = 0x80050033;
	page->cr3 = PML4;
	page->cr4 = 0x40620;	/* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
	page->xcr0 = 7;
	page->efer = 0xd01;
	page->dirty = HVI_STATE_ALL;
	mode = bits;
}

void guest_open(const char *library)
{
	void *lib = dlopen(library, RTLD_NOW);
	struct hvi_create create = { .vcpus = 1 };
	struct hvi_memory memory = { .size = RAM_SIZE, .fd = -1 };

	if (!lib) {
		fprintf(stderr, "isa: %s\n", dlerror());
		exit(2);
	}
	do_open = (long (*)(void))symbol(lib, "hvi_soft_open");
	do_ioctl = (long (*)(long, unsigned long, void *))symbol(lib, "hvi_soft_ioctl");
	do_mmap = (void *(*)(long, u64, u64))symbol(lib, "hvi_soft_mmap");
	vm = do_open();
	if (vm < 0) {
		fprintf(stderr, "isa: hvi_soft_open: %ld\n", vm);
		exit(2);
	}
	call(HVI_CREATE, &create, "HVI_CREATE");
	call(HVI_ADD_MEMORY, &memory, "HVI_ADD_MEMORY");
	ram = do_mmap(vm, HVI_MMAP_RAM, RAM_SIZE);
	page = do_mmap(vm, HVI_MMAP_VCPU, HVI_VCPU_SIZE);
	if (!ram || !page) {
		fprintf(stderr, "isa: hvi_soft_mmap failed\n");
		exit(2);
	}
	entry(PML4, 0, PDPT | PTE_USER);
	entry(PDPT, 0, PD | PTE_USER);
	entry(PD, CODE >> 21 & 511, PT | PTE_USER);
	map(CODE, CODE_GPA, CODE_SIZE, PTE_USER & ~PTE_W);
	map(DATA, DATA_GPA, DATA_SIZE, PTE_USER);
	map(STACK, STACK_GPA, STACK_SIZE, PTE_USER);
	memset(ram + CODE_GPA, 0xf4, CODE_SIZE);
	intercept(HVI_INTERCEPT_EXCEPTION, 0xffffffff);
	user_mode(64);
}

void guest_control(u64 cr0_set, u64 cr4_clear, u64 xcr0)
{
	user_mode(64);
	page->cr0 |= cr0_set;
	page->cr4 &= ~cr4_clear;
	page->xcr0 = xcr0;
}

u8 *guest_data(void)
{
	return ram + DATA_GPA;
}

u8 *guest_stack(void)
{
	return ram + STACK_GPA;
}

static void set_rights(u32 rights)
{
	struct hvi_ept_range range = {
		.gfn = DATA_GPA >> 12, .count = (DATA_SIZE + STACK_SIZE) >> 12, .rights = rights,
	};
	struct hvi_ept ept = { .count = 1, .ranges = (u64)(uintptr_t)&range };

	call(HVI_EPT_SET, &ept, "HVI_EPT_SET");
}

static struct watched *watch;	/* what is being filled in, or NULL */

/* Lets each violation pass, and keeps those of the instruction's first iteration. */
static void run_to_end(struct hvi_run *run, const struct test *t)
{
	u32 exits = 0;

	call(HVI_RUN, run, "HVI_RUN");
	while (watch && run->reason == HVI_EXIT_EPT && exits++ < 10000) {
		/* Each iteration of a REP counts RCX down. */
		if (page->gpr[RCX] == t->in.gpr[RCX] && page->rip == t->at && watch->count < MAX_WATCHED)
			watch->access[watch->count++] = (struct access) {
				.gva = page->exit.gva, .kind = page->exit.access, .size = page->exit.size,
			};
		page->reply.action = HVI_REPLY_RESUME;
		call(HVI_RUN, run, "HVI_RUN");
	}
}

void guest_watch(const struct test *t, struct outcome *out, struct watched *w)
{
	w->count = 0;
	watch = w;
	set_rights(0);
	guest_run(t, out);
	set_rights(HVI_RWX);
	watch = NULL;
}

void guest_run(const struct test *t, struct outcome *out)
{
	u8 *code = ram + CODE_GPA + (t->at - CODE);
	u64 room = CODE + CODE_SIZE - t->at;
	u32 len = t->len < room ? t->len : (u32)room;
	struct hvi_xsave xs = { .size = XSAVE_SIZE, .data = (u64)(uintptr_t)t->in.xs };
	struct hvi_run run = { .flags = HVI_RUN_DEADLINE };
	static char failure[64];

	memcpy(code, t->code, len);
	call(HVI_SET_XSAVE, &xs, "HVI_SET_XSAVE");
	if (mode != t->bits)
		user_mode(t->bits);
	memcpy(page->gpr, t->in.gpr, sizeof(page->gpr));
	page->rip = t->in.rip;
	page->rflags = t->in.rflags;
	page->interruptibility = 0;
	page->pending_debug = 0;
	page->mp_state = HVI_MP_RUNNING;
	page->dirty |= HVI_STATE_GPR | HVI_STATE_EVENTS;
	page->reply.action = HVI_REPLY_RETRY;
	run.deadline = page->tsc + 100000;
	run_to_end(&run, t);
	out->failure = NULL;
	if (run.reason != HVI_EXIT_EXCEPTION) {
		snprintf(failure, sizeof(failure), "exit reason %u, value %llx", run.reason,
			 (unsigned long long)page->exit.value);
		out->failure = failure;
		mode = 0;
	}
	memcpy(out->s.gpr, page->gpr, sizeof(page->gpr));
	out->s.rip = page->rip;
	out->s.rflags = page->rflags;
	out->vector = page->exit.number;
	out->error = (u32)page->exit.value;
	out->cr2 = page->exit.gva;
	xs.data = (u64)(uintptr_t)out->s.xs;
	call(HVI_GET_XSAVE, &xs, "HVI_GET_XSAVE");
	memset(code, 0xf4, len);
}
