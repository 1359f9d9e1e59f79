// SPDX-License-Identifier: MIT
/*
 * victim.c - an engine to be killed.
 *
 *   victim [--vcpus N] [--seconds N] [--soft LIBRARY]
 *
 * Makes a VM of N vCPUs (2) with two slots of RAM, spare pages, views and
 * remappings, maps all of it, says `victim: running` and then runs it until it
 * is killed (kills.sh), or for so many seconds. What it does changes every few
 * milliseconds, so that SIGKILL comes in all places:
 *   a guest that never exits, over many pages;
 *   exits in a row: ports, CPUID, writes denied by SCRATCH, reads let through,
 *     steps in another view;
 *   rights, remappings and views that change between short runs;
 *   halted vCPUs, for which HVI_RUN waits.
 *
 * Exit code 0: its time was up; 1: a call failed that should not; 2: bad usage;
 * 3: no device.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include "backend.h"

#define LOW		0x1000000ull	/* bytes of RAM from 0 on, and from HIGH_GPA on */
#define HIGH		0x800000ull
#define HIGH_GPA	0x100000000ull
#define SPARES		64
#define VIEWS		4
#define BUSY		0x1000u		/* the guests */
#define EXITS		0x1100u
#define HALTED		0x1200u
#define NO_READ		0x8000u
#define NO_WRITE	0x9000u

/* Real mode, segments at 0. */
static const unsigned char busy[] = {
	0x8e, 0xc0,			/* 1: mov %ax, %es */
	0x26, 0x00, 0x06, 0x00, 0x70,	/*    add %al, %es:0x7000 */
	0x05, 0x00, 0x01,		/*    add $0x100, %ax */
	0xeb, 0xf4,			/*    jmp 1b */
};
static const unsigned char exits[] = {
	0xe6, 0x10,			/* 1: out %al, $0x10 */
	0xe4, 0x60,			/*    in $0x60, %al */
	0x0f, 0xa2,			/*    cpuid */
	0xa0, 0x00, 0x80,		/*    mov NO_READ, %al */
	0xfe, 0x06, 0x00, 0x90,		/*    incb NO_WRITE */
	0xeb, 0xf1,			/*    jmp 1b */
};
static const unsigned char halted[] = { 0xf4, 0xeb, 0xfd };	/* 1: hlt; jmp 1b */

static long hvi;
static unsigned vcpus = 2;
static unsigned char *low, *high, *spare;
static struct hvi_vcpu *page[HVI_MAX_VCPUS];
static volatile sig_atomic_t rung;

static void must(unsigned long request, void *arg, const char *name)
{
	long r = hvi_call(hvi, request, arg);

	if (r == -EINTR)
		return;
	if (r < 0) {
		fprintf(stderr, "victim: %s: %s\n", name, strerror((int)-r));
		exit(1);
	}
}
#define MUST(request, arg) must(request, arg, #request)

static void *map(__u64 offset, __u64 size)
{
	void *p = hvi_map(hvi, offset, size);

	if (!p) {
		fprintf(stderr, "victim: mmap at %llx: %s\n", (unsigned long long)offset, strerror(errno));
		exit(1);
	}
	return p;
}

static void on_alarm(int sig)
{
	struct hvi_vcpu_op kick = { .vcpu = HVI_ALL_VCPUS };

	(void)sig;
	rung = 1;
	if (on_soft)		/* knows no signals */
		(void)hvi_call(hvi, HVI_KICK, &kick);
}

static void rights(__u32 view, __u64 gfn, __u32 count, __u32 rwx)
{
	struct hvi_ept_range range = { gfn, count, rwx };
	struct hvi_ept set = { view, 1, (unsigned long)&range };

	MUST(HVI_EPT_SET, &set);
}

static void build(void)
{
	struct hvi_create create = { .vcpus = vcpus };
	struct hvi_memory first = { .size = LOW, .fd = -1 };
	struct hvi_memory second = { .gpa = HIGH_GPA, .size = HIGH, .fd = -1 };
	struct hvi_spare spares = { .count = SPARES };

	MUST(HVI_CREATE, &create);
	MUST(HVI_ADD_MEMORY, &first);
	MUST(HVI_ADD_MEMORY, &second);
	MUST(HVI_ADD_SPARE, &spares);
	low = map(HVI_MMAP_RAM, LOW);
	high = map(HVI_MMAP_RAM + LOW, HIGH);
	spare = map(HVI_MMAP_SPARE, SPARES * HVI_PAGE_SIZE);
	for (unsigned i = 0; i < vcpus; i++)
		page[i] = map(HVI_MMAP_VCPU + i * HVI_VCPU_SIZE, HVI_VCPU_SIZE);
	for (__u64 i = 0; i < HIGH; i += HVI_PAGE_SIZE)
		high[i] = 1;
	memset(spare, 0x90, SPARES * HVI_PAGE_SIZE);
	memcpy(low + BUSY, busy, sizeof(busy));
	memcpy(low + EXITS, exits, sizeof(exits));
	memcpy(low + HALTED, halted, sizeof(halted));
	for (unsigned i = 0; i < VIEWS; i++) {
		struct hvi_view view = { .from = i ? 1 : 0 };
		struct hvi_remap remap = { .spare = i, .gfn = 0x100 + i };

		MUST(HVI_VIEW_CREATE, &view);
		remap.view = view.view;
		MUST(HVI_REMAP, &remap);
		rights(view.view, 0x200, 64, HVI_R);
	}
	rights(0, NO_READ >> 12, 1, HVI_X);
	rights(0, NO_WRITE >> 12, 1, HVI_R);
}

/* All vCPUs to one of the guests. */
static void send_to(unsigned rip)
{
	for (unsigned i = 0; i < vcpus; i++) {
		real_mode(page[i], rip);
		page[i]->mp_state = HVI_MP_RUNNING;
		page[i]->dirty |= HVI_STATE_EVENTS;
		page[i]->reply.action = HVI_REPLY_RETRY;
		page[i]->view = 0;
	}
}

static void answer(struct hvi_vcpu *v, unsigned n)
{
	v->reply.action = HVI_REPLY_RESUME;
	if (v->exit.reason != HVI_EXIT_EPT || n % 4 == 0)
		return;
	v->reply.action = n % 4 == 1 ? HVI_REPLY_STEP : HVI_REPLY_SCRATCH;
	v->reply.step_view = 1;
}

/* Of HVI_RUN; SOON: and rights and views change between two runs. */
enum deadline { NONE, SOON, LATE };

/* Runs until the alarm. */
static void run(enum deadline deadline)
{
	for (unsigned n = 0; !rung; n++) {
		struct hvi_run run = { 0 };
		__u64 now = 0;

		for (unsigned i = 0; i < vcpus; i++)
			now = page[i]->tsc > now ? page[i]->tsc : now;
		if (deadline != NONE) {		/* without one, nobody waits for halted vCPUs */
			run.flags = HVI_RUN_DEADLINE;
			run.deadline = now + (deadline == SOON ? 5000 : 1000000000);
		}
		if (deadline == SOON) {
			struct hvi_remap remap = { .view = 0, .spare = n % 2 ? n % SPARES : HVI_SPARE_NONE,
						   .gfn = 0x300 + n % 16 };
			struct hvi_view view = { .from = 0 };

			rights(0, 0x40 + n % 200, 8, n % 2 ? HVI_RWX : HVI_R | HVI_X);
			MUST(HVI_REMAP, &remap);
			if (n % 8 == 0) {
				MUST(HVI_VIEW_CREATE, &view);
				MUST(HVI_VIEW_DESTROY, &view);
			}
		}
		MUST(HVI_RUN, &run);
		if (run.vcpu < vcpus)
			answer(page[run.vcpu], n);
		if (run.reason == HVI_EXIT_ENTRY_FAILED || run.reason == HVI_EXIT_EMULATION ||
		    run.reason == HVI_EXIT_SHUTDOWN) {
			fprintf(stderr, "victim: exit %u\n", run.reason);
			exit(1);
		}
	}
}

static int usage(void)
{
	fprintf(stderr, "usage: victim [--vcpus N] [--seconds N] [--soft LIBRARY]\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_alarm };
	time_t stop = 0;

	for (int i = 1; i < argc; i += 2) {
		if (i + 1 == argc)
			return usage();
		if (!strcmp(argv[i], "--vcpus"))
			vcpus = (unsigned)atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--seconds"))
			stop = time(NULL) + atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--soft"))
			use_soft(argv[i + 1]);
		else
			return usage();
	}
	if (!vcpus || vcpus > HVI_MAX_VCPUS)
		return usage();
	hvi = hvi_open();
	if (hvi < 0) {
		fprintf(stderr, "victim: /dev/hvi: %s\n", strerror((int)-hvi));
		return 3;
	}
	build();
	printf("victim: running\n");
	fflush(stdout);
	sigaction(SIGALRM, &action, NULL);
	for (unsigned n = 0; !stop || time(NULL) < stop; n++) {
		/* Behind the end of a phase: an alarm that comes before HVI_RUN would be missed. */
		struct itimerval timer = { { 0, 3000 }, { 0, 3000 + n % 7 * 2000 } };

		rung = 0;
		setitimer(ITIMER_REAL, &timer, NULL);
		send_to(n % 4 == 1 ? EXITS : n % 4 == 3 ? HALTED : BUSY);
		run((enum deadline[]){ NONE, NONE, SOON, LATE }[n % 4]);
	}
	hvi_close(hvi);
	return 0;
}
