/* SPDX-License-Identifier: MIT */
/*
 * record.c - states for test/x86/execution.fixture.ts, which says the layout. Memory is kept as
 * what changed: between two states by the making of the next one, and by the instruction.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "isa.h"

#define MEMORY_SIZE	(DATA_SIZE + STACK_SIZE)
#define CHUNK		8u

static FILE *file;
static u8 image[MEMORY_SIZE];	/* as the reader has it */

static void put(const void *p, u32 n)
{
	if (fwrite(p, 1, n, file) != n) {
		fprintf(stderr, "isa: the record cannot be written\n");
		exit(2);
	}
}

void record_open(const char *path)
{
	file = fopen(path, "w");
	if (!file) {
		fprintf(stderr, "isa: cannot write %s\n", path);
		exit(2);
	}
}

void record_close(void)
{
	if (fclose(file)) {
		fprintf(stderr, "isa: the record cannot be written\n");
		exit(2);
	}
}

/* Runs of chunks that differ from the image, which then is `now`; a run of length 0 ends them. */
static void put_changes(const u8 *now)
{
	static const u16 end[2];

	for (u32 i = 0; i < MEMORY_SIZE;) {
		u32 n = 0;
		u16 head[2];

		while (i + n < MEMORY_SIZE && memcmp(image + i + n, now + i + n, CHUNK))
			n += CHUNK;
		if (!n) {
			i += CHUNK;
			continue;
		}
		head[0] = (u16)i;
		head[1] = (u16)n;
		put(head, sizeof(head));
		put(now + i, n);
		memcpy(image + i, now + i, n);
		i += n;
	}
	put(end, sizeof(end));
}

static void join(u8 *to, const u8 *data, const u8 *stack)
{
	memcpy(to, data, DATA_SIZE);
	memcpy(to + DATA_SIZE, stack, STACK_SIZE);
}

void record_state(const struct test *t, const struct outcome *host, const struct watched *w,
		  const u8 *before_data, const u8 *before_stack)
{
	static u8 memory[MEMORY_SIZE];
	bool vectors = t->z.meta.isa_ext != ZYDIS_ISA_EXT_BASE;
	u32 head[4] = { t->bits, t->len, vectors, w->count };
	u32 registers = sizeof(t->in.gpr) + 16;

	put(head, sizeof(head));
	put(t->code, 16);
	put(&t->in, registers);
	put(t->in.xs, vectors ? XSAVE_SIZE : 0);
	put(&host->s, registers);
	put(host->s.xs, vectors ? XSAVE_SIZE : 0);
	put(w->access, w->count * (u32)sizeof(w->access[0]));
	join(memory, before_data, before_stack);
	put_changes(memory);
	join(memory, (u8 *)(uintptr_t)DATA, (u8 *)(uintptr_t)STACK);
	put_changes(memory);
}
