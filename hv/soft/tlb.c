/* SPDX-License-Identifier: MIT */
/*
 * tlb.c - upkeep of the soft TLBs: one set a vCPU and view, dropped as a whole
 * by a new generation, by page (INVLPG), or by host frame when rights or
 * remappings change or a page begins to hold decoded code.
 */
#include <stdlib.h>
#include "more.h"
#include "mmu.h"

#define CR0_AM	(1u << 18)

static void set_reset(struct cpu *c, struct tlb_set *s)
{
	if (++s->gen > 0xffe) {
		memset(s->e, 0xff, sizeof(s->e));
		s->gen = 1;
	}
	s->jump_gen = ++c->more->jump_counter;
	memset(s->large, 0, sizeof(s->large));
	memset(s->code, 0, sizeof(s->code));
	s->huge_first = ~0ull;
	s->huge_last = 0;
}

int mmu_add_set(struct cpu *c, u32 view)
{
	struct tlb_set *s = c->more->set[view];

	if (!s) {
		s = aligned_alloc(64, (sizeof(*s) + 63) & ~63ul);
		if (!s)
			return -1;
		memset(s->e, 0xff, sizeof(s->e));
		s->gen = 0;
		c->more->set[view] = s;
	}
	set_reset(c, s);
	return 0;
}

int mmu_init_cpu(struct cpu *c)
{
	c->more->empty = aligned_alloc(64, TLB_SIZE * sizeof(struct tlb_entry));
	if (!c->more->empty)
		return -1;
	memset(c->more->empty, 0xff, TLB_SIZE * sizeof(struct tlb_entry));
	return mmu_add_set(c, 0);
}

void mmu_free_cpu(struct cpu *c)
{
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++)
		free(c->more->set[i]);
	free(c->more->empty);
}

void mmu_flush(struct cpu *c)
{
	set_reset(c, c->more->set[c->more->view]);
	mmu_setup(c);
}

void mmu_flush_all(struct cpu *c)
{
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++)
		if (c->more->set[i])
			set_reset(c, c->more->set[i]);
	mmu_setup(c);
}

static void entry_clear(struct tlb_entry *e)
{
	e->tag_r = e->tag_w = e->tag_x = ~0ull;
}

/* INVLPG: every mode, every view. Large pages are held as 4 KiB entries, all of which must go. */
void mmu_flush_page(struct cpu *c, u64 la)
{
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++) {
		struct tlb_set *s = c->more->set[i];

		if (!s)
			continue;
		if (la >> 30 >= s->huge_first && la >> 30 <= s->huge_last) {
			set_reset(c, s);
			continue;
		}
		if (s->large[la >> 28 & 15] >> (la >> 22 & 63) & 1) {
			for (u32 k = 0; k < TLB_MODES * TLB_SIZE; k++) {
				struct tlb_entry *e = &s->e[0][0] + k;

				/* An unset tag is all ones; clearing such an entry does no harm. */
				if (!(((e->tag_r & e->tag_w & e->tag_x) ^ la) & ~0x3fffffull))
					entry_clear(e);
			}
			s->jump_gen = ++c->more->jump_counter;
			continue;
		}
		for (int m = 0; m < TLB_MODES; m++)
			entry_clear(&s->e[m][(la >> 12) & (TLB_SIZE - 1)]);
		if (s->code[la >> 18 & 63] >> (la >> 12 & 63) & 1)
			s->jump_gen = ++c->more->jump_counter;
	}
	mmu_setup(c);
}

/* Drop the tags that lead to host frames first..first+count-1. */
static void set_forget(struct cpu *c, struct tlb_set *s, u32 first, u32 count)
{
	struct vm *vm = c->more->vm;

	for (u32 i = 0; i < TLB_MODES * TLB_SIZE; i++) {
		struct tlb_entry *e = &s->e[0][0] + i;
		u64 tag = e->tag_r != ~0ull ? e->tag_r : e->tag_w != ~0ull ? e->tag_w : e->tag_x;

		if (tag == ~0ull)
			continue;
		if (frame_of(vm, (void *)((tag & ~0xfffull) + (u64)e->addend)) - first < count)
			e->tag_r = e->tag_w = e->tag_x = ~0ull;
	}
	s->jump_gen = ++c->more->jump_counter;
}

void mmu_forget_frames(struct vm *vm, u32 view, u32 first, u32 count)
{
	for (u32 i = 0; i < vm->ncpus; i++) {
		struct cpu *c = vm->cpu[i];

		for (u32 v = 0; v < HVI_MAX_VIEWS; v++) {
			if (!c->more->set[v] || (view != ~0u && view != v))
				continue;
			if (count > 64)
				set_reset(c, c->more->set[v]);
			else
				set_forget(c, c->more->set[v], first, count);
		}
		mmu_setup(c);
	}
}

void mmu_forget_pages(struct vm *vm, u32 view, u32 page, u32 count)
{
	const u32 *remap = vm->view[view].remap;

	if (count > 64 || !remap) {
		mmu_forget_frames(vm, view, SPARE_FRAMES + page, count);
		return;
	}
	for (u32 i = 0; i < count; i++)
		mmu_forget_frames(vm, view, remap[page + i] != NO_FRAME ? remap[page + i] :
				  SPARE_FRAMES + page + i, 1);
}

/* A frame is about to hold decoded code: stores must take the slow path from now on. */
void mmu_revoke_write(struct vm *vm, u32 frame)
{
	for (u32 i = 0; i < vm->ncpus; i++) {
		struct cpu *c = vm->cpu[i];

		for (u32 v = 0; v < HVI_MAX_VIEWS; v++) {
			struct tlb_set *s = c->more->set[v];

			if (!s)
				continue;
			for (u32 k = 0; k < TLB_MODES * TLB_SIZE; k++) {
				struct tlb_entry *e = &s->e[0][0] + k;

				if (e->tag_w != ~0ull &&
				    frame_of(vm, (void *)((e->tag_w & ~0xfffull) + (u64)e->addend)) == frame)
					e->tag_w = ~0ull;
			}
		}
	}
}

enum tlb_mode mmu_mode(const struct cpu *c)
{
	if (c->cpl == 3)
		return TLB_USER;
	return c->rflags & FL_AC ? TLB_SUPER_AC : TLB_SUPER;
}

bool mmu_alignment_checked(const struct cpu *c)
{
	return c->cpl == 3 && (c->cr0 & CR0_AM) && (c->rflags & FL_AC);
}

/* DR7 has a data breakpoint enabled (type 01 or 11). */
static bool data_breakpoints(const struct cpu *c)
{
	u64 dr7 = c->more->dr[7];

	for (int i = 0; i < 4; i++)
		if ((dr7 >> (2 * i) & 3) && (dr7 >> (16 + 4 * i) & 1))
			return true;
	return false;
}

void mmu_setup(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct tlb_set *s = m->set[m->view];
	enum tlb_mode mode = mmu_mode(c);

	c->tlb = m->nov || mmu_alignment_checked(c) || data_breakpoints(c) ? m->empty : s->e[mode];
	c->tlb_gen = s->gen;
	c->jump_key = s->jump_gen << 24 | (u64)m->cs_gen << 8 | (u64)mode << 6 | block_mode(c);
}
