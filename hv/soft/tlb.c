/* SPDX-License-Identifier: MIT */
/*
 * tlb.c - upkeep of the soft TLBs: one set a vCPU and view, in which each PCID
 * has its generation. Entries are dropped as a whole by a new generation, by
 * page (INVLPG), or by host frame when rights or remappings change or a page
 * begins to hold decoded code. Global pages are not told apart: what is kept
 * across a change of CR3 is kept for one PCID.
 */
#include <stdlib.h>
#include "more.h"
#include "mmu.h"

#define CR0_AM	(1u << 18)

#define CR4_PCIDE (1u << 17)

static u32 current_pcid(const struct cpu *c)
{
	return c->cr4 & CR4_PCIDE ? c->cr3 & 0xfff : 0;
}

/* A context without entries; false when no generation is left for it. */
static bool context_reset(struct cpu *c, struct tlb_set *s, struct tlb_context *x, u32 pcid)
{
	if (s->last_gen == 0xffe)
		return false;
	*x = (struct tlb_context){
		.pcid = pcid, .gen = ++s->last_gen, .jump_gen = ++c->more->jump_counter,
		.huge_first = ~0ull,
	};
	return true;
}

static void set_reset(struct cpu *c, struct tlb_set *s)
{
	for (u32 i = 0; i < TLB_CONTEXTS; i++)
		s->context[i].gen = 0;
	s->now = &s->context[0];
	s->turn = 1;
	if (!context_reset(c, s, s->now, current_pcid(c))) {
		memset(s->e, 0xff, sizeof(s->e));
		s->last_gen = 0;
		context_reset(c, s, s->now, current_pcid(c));
	}
}

int mmu_add_set(struct cpu *c, u32 view)
{
	struct tlb_set *s = c->more->set[view];

	if (!s) {
		s = aligned_alloc(64, (sizeof(*s) + 63) & ~63ul);
		if (!s)
			return -1;
		memset(s->e, 0xff, sizeof(s->e));
		s->last_gen = 0;
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

void mmu_flush_all(struct cpu *c)
{
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++)
		if (c->more->set[i])
			set_reset(c, c->more->set[i]);
	mmu_setup(c);
}

static struct tlb_context *context_of(struct tlb_set *s, u32 pcid)
{
	for (u32 i = 0; i < TLB_CONTEXTS; i++)
		if (s->context[i].gen && s->context[i].pcid == pcid)
			return &s->context[i];
	return NULL;
}

/* Go on with what the PCID in CR3 has left behind, or with nothing. */
static void set_switch(struct cpu *c, struct tlb_set *s, bool flush)
{
	u32 pcid = current_pcid(c);
	struct tlb_context *x = context_of(s, pcid);

	if (!x) {
		x = &s->context[s->turn];
		s->turn = (s->turn + 1) % TLB_CONTEXTS;
		flush = true;
	}
	s->now = x;
	if (flush && !context_reset(c, s, x, pcid))
		set_reset(c, s);
}

void mmu_switch_pcid(struct cpu *c, bool flush)
{
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++)
		if (c->more->set[i])
			set_switch(c, c->more->set[i], flush);
	mmu_setup(c);
}

void mmu_flush_pcid(struct cpu *c, u32 pcid)
{
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++) {
		struct tlb_set *s = c->more->set[i];
		struct tlb_context *x = s ? context_of(s, pcid) : NULL;

		if (!x)
			continue;
		if (x == s->now)
			set_switch(c, s, true);
		else
			x->gen = 0;
	}
	mmu_setup(c);
}

static void entry_clear(struct tlb_entry *e)
{
	e->tag_r = e->tag_w = e->tag_x = ~0ull;
}

/* Large pages are held as 4 KiB entries, all of which must go. */
static void set_clear_large(struct tlb_set *s, u64 la)
{
	for (u32 k = 0; k < TLB_MODES * TLB_SIZE; k++) {
		struct tlb_entry *e = &s->e[0][0] + k;

		/* An unset tag is all ones; clearing such an entry does no harm. */
		if (!(((e->tag_r & e->tag_w & e->tag_x) ^ la) & ~0x3fffffull))
			entry_clear(e);
	}
}

static void set_flush_page(struct cpu *c, struct tlb_set *s, u64 la)
{
	bool large = false;

	for (u32 i = 0; i < TLB_CONTEXTS; i++) {
		struct tlb_context *x = &s->context[i];
		bool here;

		if (!x->gen)
			continue;
		if (la >> 30 >= x->huge_first && la >> 30 <= x->huge_last) {
			set_reset(c, s);
			return;
		}
		here = x->large[la >> 28 & 15] >> (la >> 22 & 63) & 1;
		if (here || (x->code[la >> 18 & 63] >> (la >> 12 & 63) & 1))
			x->jump_gen = ++c->more->jump_counter;
		large |= here;
	}
	if (large)
		set_clear_large(s, la);
	for (int m = 0; m < TLB_MODES; m++)
		entry_clear(&s->e[m][(la >> 12) & (TLB_SIZE - 1)]);
}

/* INVLPG: every mode, every view, and, since the page may be global, every PCID. */
void mmu_flush_page(struct cpu *c, u64 la)
{
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++)
		if (c->more->set[i])
			set_flush_page(c, c->more->set[i], la);
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
			entry_clear(e);
	}
	for (u32 i = 0; i < TLB_CONTEXTS; i++)
		s->context[i].jump_gen = ++c->more->jump_counter;
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
	const struct tlb_context *x = s->now;
	enum tlb_mode mode = mmu_mode(c);

	c->tlb = m->nov || mmu_alignment_checked(c) || data_breakpoints(c) ? m->empty : s->e[mode];
	c->tlb_gen = x->gen;
	c->jump_key = x->jump_gen << 24 | (u64)m->cs_gen << 8 | (u64)mode << 6 | block_mode(c);
}
