/* SPDX-License-Identifier: MIT */
/*
 * host.c - the instruction on this CPU. A signal frame is the one place where
 * Linux lets a program load and see every register at once: the handler of an
 * UD2 puts the test's state into its frame and returns into the instruction;
 * the handler of the fault that ends it takes the state out and goes back.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include "isa.h"

#define SW_RESERVED	464u
#define XSTATE_MAGIC	0x46505853u

static const int order[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static enum { IDLE, ENTER, RUNNING } phase;
static const struct test *current;
static struct outcome *result;
static gregset_t saved;
static u8 saved_fp[XSAVE_SIZE];

static void die(const char *what)
{
	(void)!write(2, what, strlen(what));
	_exit(70);
}

static void swap_in(u8 *fp, const u8 *xs)
{
	u64 bv;

	memcpy(fp, xs, SW_RESERVED);
	memcpy(&bv, fp + XS_BV, 8);
	bv |= 7;
	memcpy(fp + XS_BV, &bv, 8);
	memcpy(fp + XS_YMM, xs + XS_YMM, 256);
}

static void take_out(u8 *xs, const u8 *fp)
{
	u64 bv;

	memcpy(xs, fp, SW_RESERVED);
	memset(xs + SW_RESERVED, 0, 512 - SW_RESERVED);
	memcpy(&bv, fp + XS_BV, 8);
	memset(xs + XS_BV, 0, 64);
	memcpy(xs + XS_YMM, fp + XS_YMM, 256);
	if (!(bv & 4))
		memset(xs + XS_YMM, 0, 256);
}

static void handler(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	greg_t *g = uc->uc_mcontext.gregs;
	u8 *fp = (u8 *)uc->uc_mcontext.fpregs;
	u32 magic;

	(void)info;
	memcpy(&magic, fp + SW_RESERVED, 4);
	if (magic != XSTATE_MAGIC)
		die("isa: no extended state in the signal frame: this CPU or kernel lacks XSAVE\n");
	switch (phase) {
	case ENTER:
		memcpy(saved, g, sizeof(saved));
		memcpy(saved_fp, fp, SW_RESERVED);
		memcpy(saved_fp + XS_YMM, fp + XS_YMM, 256);
		for (u32 i = 0; i < 16; i++)
			g[order[i]] = (greg_t)current->in.gpr[i];
		g[REG_RIP] = (greg_t)current->in.rip;
		g[REG_EFL] = (greg_t)current->in.rflags;
		/* CS in the low word: 64-bit or compatibility mode; SS stays. */
		g[REG_CSGSFS] = (greg_t)(((u64)g[REG_CSGSFS] & ~0xffffull) | (current->bits == 64 ? 0x33 : 0x23));
		swap_in(fp, current->in.xs);
		phase = RUNNING;
		break;
	case RUNNING:
		for (u32 i = 0; i < 16; i++)
			result->s.gpr[i] = (u64)g[order[i]];
		result->s.rip = (u64)g[REG_RIP];
		result->s.rflags = (u64)g[REG_EFL];
		take_out(result->s.xs, fp);
		result->vector = (u32)g[REG_TRAPNO];
		result->error = (u32)g[REG_ERR];
		result->cr2 = (u64)g[REG_CR2];
		memcpy(g, saved, sizeof(saved));
		g[REG_RIP] += 2;	/* past the UD2 */
		swap_in(fp, saved_fp);
		phase = IDLE;
		break;
	default:
		fprintf(stderr, "isa: signal %d of its own at %llx, address %p\n", sig,
			(unsigned long long)g[REG_RIP], info->si_addr);
		_exit(70);
	}
}

static u8 *code_page;	/* CODE, writable: what the instruction sees is not */

static void map(u64 la, u32 size, int rights, int fd)
{
	int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);

	if (mmap((void *)(uintptr_t)la, size, rights, flags, fd, 0) == MAP_FAILED)
		die("isa: cannot map the sandbox\n");
}

void host_open(void)
{
	static u8 stack[65536] __attribute__((aligned(64)));
	stack_t alt = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	u64 from = CODE - 0x200000;
	int fd;

	if (mmap((void *)(uintptr_t)from, STACK + 0x200000 - from, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
		die("isa: the sandbox's addresses are taken\n");
	fd = memfd_create("isa-code", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, CODE_SIZE))
		die("isa: memfd_create\n");
	map(CODE, CODE_SIZE, PROT_READ | PROT_EXEC, fd);
	map(DATA, DATA_SIZE, PROT_READ | PROT_WRITE, -1);
	map(STACK, STACK_SIZE, PROT_READ | PROT_WRITE, -1);
	code_page = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (code_page == MAP_FAILED)
		die("isa: cannot map the code page\n");
	memset(code_page, 0xf4, CODE_SIZE);
	sigfillset(&sa.sa_mask);
	/* For 32-bit code; in 64-bit code they mean nothing. */
	__asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(0x2b));
	if (sigaltstack(&alt, NULL))
		die("isa: sigaltstack\n");
	for (u32 i = 0; i < 5; i++)
		sigaction(signals[i], &sa, NULL);
}

void host_run(const struct test *t, struct outcome *out)
{
	u8 *code = code_page + (t->at - CODE);
	u64 room = CODE + CODE_SIZE - t->at;
	u32 len = t->len < room ? t->len : (u32)room;

	memcpy(code, t->code, len);
	current = t;
	result = out;
	out->failure = NULL;
	phase = ENTER;
	__asm__ volatile("ud2" : : : "memory");
	memset(code, 0xf4, len);
	/* NT, ID and the like, which a signal return does not restore. */
	__builtin_ia32_writeeflags_u64(0x202);
}
