/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * step.c - replies that hold for one instruction. The vCPU runs it under MTF
 * (SDM 26.5.2) with a private EPT: a copy of the view's path to each page that
 * the instruction violated, the leaf showing the page with all rights
 * (RESUME), or a copy of it (SCRATCH, EMULATE). The tables are kept, and hold
 * until the view changes: hitting the same page again costs one entry.
 */
#include <linux/atomic.h>
#include <linux/err.h>
#include <asm/processor-flags.h>
#include "hvi_vmx.h"

#define PRIVATE			(1ull << 52)	/* ignored by the CPU: a table of our own */
#define POOL_MIN		(1 + 3)
#define ENTRY_AD		0x60		/* accessed and dirty, in the first byte of a guest's entry */

int step_init(struct vcpu *v)
{
	v->priv_view = ~0u;
	v->ov = kcalloc(MAX_OVERRIDES, sizeof(*v->ov), GFP_KERNEL_ACCOUNT);
	v->priv_root = (u64 *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	return v->ov && v->priv_root ? 0 : -ENOMEM;
}

void step_free(struct vcpu *v)
{
	u32 i;

	for (i = 0; v->ov && i < MAX_OVERRIDES; i++)
		if (v->ov[i].copy)
			__free_page(v->ov[i].copy);
	kfree(v->ov);
	for (i = 0; i < v->pool_size; i++)
		free_page((unsigned long)v->pool[i]);
	free_page((unsigned long)v->priv_root);
}

static int grow_pool(struct vcpu *v, u32 size)
{
	while (v->pool_size < min_t(u32, size, ARRAY_SIZE(v->pool))) {
		u64 *p = (u64 *)__get_free_page(GFP_MODEST);

		if (!p)
			return -ENOMEM;
		v->pool[v->pool_size++] = p;
	}
	return 0;
}

int step_more(struct vcpu *v)
{
	u32 before = v->pool_size;
	int err = grow_pool(v, v->pool_used + 3);

	return err ? err : v->pool_size > before ? 0 : -ENOMEM;
}

static const struct override *override_of(const struct vcpu *v, u64 gfn)
{
	u32 i;

	for (i = 0; i < v->nov; i++)
		if (v->ov[i].gfn == gfn)
			return &v->ov[i];
	return NULL;
}

bool step_overrides(const struct vcpu *v, u64 gfn)
{
	return override_of(v, gfn);
}

u8 *step_copy(const struct vcpu *v, u64 gfn)
{
	const struct override *ov = override_of(v, gfn);

	return ov && ov->kind != OV_ALLOW ? page_address(ov->copy) : NULL;
}

/* A page that the reply needs and that was never touched; a copy for each override there may be. */
static int need(struct vcpu *v, u64 gfn)
{
	u32 index = ram_index(v->vm, gfn);
	struct page *p;

	if (index == NO_PAGE)
		return 0;
	p = ram_page(v->vm, index);
	return IS_ERR(p) ? PTR_ERR(p) : 0;
}

int step_prepare(struct vcpu *v, u64 gfn, const struct hvi_reply *r)
{
	u32 i, n = 0, last = min_t(u32, v->nov + 3, MAX_OVERRIDES);
	int err = need(v, gfn);

	for (i = 0; i < HVI_EMULATE_RANGES; i++)
		if (!err && r->action == HVI_REPLY_EMULATE && r->range[i].len)
			err = need(v, r->range[i].gpa >> PAGE_SHIFT);
	for (i = 0; !err && i < MAX_OVERRIDES && n < last; i++, n++)
		if (!v->ov[i].copy) {
			v->ov[i].copy = alloc_page(GFP_MODEST | __GFP_ZERO);
			if (!v->ov[i].copy)
				err = -ENOMEM;
		}
	return err ? err : grow_pool(v, POOL_MIN);
}

/* ---- what an override shows ------------------------------------------------------------ */

static void patch(const struct override *ov, u8 *page)
{
	int i;

	for (i = 0; i < HVI_EMULATE_RANGES; i++)
		if (ov->range[i].len && ov->range[i].gpa >> PAGE_SHIFT == ov->gfn)
			memcpy(page + (ov->range[i].gpa & ~PAGE_MASK), ov->bytes + ov->range[i].offset, ov->range[i].len);
}

static void make_copy(struct vcpu *v, struct override *ov, u8 *to)
{
	u64 frame = ept_frame(v->vm, v->view, ov->gfn);

	if (frame)
		memcpy(to, __va(frame), PAGE_SIZE);
	else
		memset(to, 0xff, PAGE_SIZE);	/* device space that nobody answers for */
	if (ov->kind == OV_EMULATE)
		patch(ov, to);
}

/* What a copy of page showed at byte i before the instruction ran. */
static u8 shown_byte(const struct override *ov, const u8 *page, u32 i)
{
	u64 gpa = (ov->gfn << PAGE_SHIFT) + i;
	u8 byte = READ_ONCE(page[i]);
	int r;

	for (r = 0; r < HVI_EMULATE_RANGES; r++)
		if (gpa - ov->range[r].gpa < ov->range[r].len)
			byte = ov->bytes[ov->range[r].offset + (gpa - ov->range[r].gpa)];
	return byte;
}

/* Writes of an emulated instruction to a page that the view lets it write: those bytes are meant. */
static void write_back(struct vcpu *v, struct override *ov)
{
	u64 frame = ept_frame(v->vm, v->view, ov->gfn);
	const u8 *now = page_address(ov->copy);
	u8 *to;
	u32 i;

	if (!frame || ov->kind != OV_EMULATE || !(view_rights(v->vm, v->view, ov->gfn) & HVI_W))
		return;
	to = __va(frame);
	for (i = 0; i < PAGE_SIZE; i++)
		if (now[i] != shown_byte(ov, to, i))
			to[i] = now[i];
}

/*
 * The walk's accessed and dirty bits in a copy of a page table are the guest's:
 * they go to the entry itself, whatever else of it the engine supplied.
 */
static void keep_walk(struct vcpu *v, struct override *ov)
{
	u64 frame = ept_frame(v->vm, v->view, ov->gfn);
	u32 size = guest_cr4() & X86_CR4_PAE ? 8 : 4, i;
	u8 *now = page_address(ov->copy), *to;

	if (!ov->walk || ov->kind == OV_ALLOW || !frame)
		return;
	to = __va(frame);
	for (i = 0; i < PAGE_SIZE; i += size) {
		u8 was = shown_byte(ov, to, i), set = now[i] & ~was & ENTRY_AD;

		if (!set || now[i] != (was | set))
			continue;
		atomic_or(set, (atomic_t *)(to + i));
		now[i] = shown_byte(ov, to, i);
		if (!(view_rights(v->vm, v->view, ov->gfn) & HVI_W))
			v->page->counters.ad_writes++;
	}
}

static struct override *set_override(struct vcpu *v, u64 gfn, enum override_kind kind, u8 rights,
				     const struct hvi_reply *r)
{
	struct override *ov;
	u32 i;

	for (i = 0; i < v->nov && v->ov[i].gfn != gfn; i++)
		;
	if (i == MAX_OVERRIDES || !v->ov[i].copy)
		return NULL;		/* no instruction touches so many pages */
	ov = &v->ov[i];
	if (i == v->nov) {
		v->nov++;
		ov->walk = false;
	} else {
		v->applied = 0;
		keep_walk(v, ov);
	}
	ov->gfn = gfn;
	ov->kind = kind;
	ov->rights = rights;
	memset(ov->range, 0, sizeof(ov->range));
	if (kind == OV_EMULATE) {
		memcpy(ov->range, r->range, sizeof(ov->range));
		memcpy(ov->bytes, r->bytes, sizeof(ov->bytes));
	}
	if (kind != OV_ALLOW || !ept_frame(v->vm, v->view, gfn))
		make_copy(v, ov, page_address(ov->copy));
	return ov;
}

/* r is a checked copy of the engine's reply. */
void step_override(struct vcpu *v, u64 gfn, enum override_kind kind, bool walk, const struct hvi_reply *r)
{
	struct override *ov = set_override(v, gfn, kind, HVI_RWX, r);
	int i;

	if (ov)
		ov->walk |= walk;
	for (i = 0; kind == OV_EMULATE && i < HVI_EMULATE_RANGES; i++) {
		u64 other = r->range[i].gpa >> PAGE_SHIFT;

		/* Supplied bytes of a page that is not violated: the instruction sees them all the same. */
		if (r->range[i].len && other != gfn && !step_overrides(v, other) && ram_index(v->vm, other) != NO_PAGE)
			set_override(v, other, kind, view_rights(v->vm, v->view, other), r);
	}
}

/* ---- the private EPT --------------------------------------------------------------------- */

static u64 shared_leaf(struct vcpu *v, u64 gfn)
{
	int level;
	const u64 *e = ept_leaf(v->vm->view[v->view].root, gfn, &level);

	if (!e)
		return EPT_NONE;
	return level == 1 ? *e : (*e & ~EPT_LARGE) + ((gfn & 511) << PAGE_SHIFT);
}

/* The private leaf, its tables made as copies of the view's; NULL: the pool is empty. */
static u64 *private_leaf(struct vcpu *v, u64 gfn)
{
	u64 *t = v->priv_root;
	int level, i;

	for (level = 4; level > 1; level--) {
		u64 *e = &t[EPT_INDEX(gfn, level)], *n;

		if (!(*e & PRIVATE)) {
			if (v->pool_used == v->pool_size)
				return NULL;
			n = v->pool[v->pool_used++];
			if (*e & EPT_LARGE)
				for (i = 0; i < 512; i++)
					n[i] = (*e & ~EPT_LARGE) + ((u64)i << PAGE_SHIFT);
			else if (*e & HVI_RWX)
				memcpy(n, ept_table(*e), PAGE_SIZE);
			else
				ept_clear(n);
			*e = __pa(n) | HVI_RWX | PRIVATE;
		}
		t = ept_table(*e);
	}
	return &t[EPT_INDEX(gfn, 1)];
}

int step_enter(struct vcpu *v, u64 *eptp)
{
	struct view *view = &v->vm->view[v->view];
	u32 i;

	if (likely(!v->nov)) {
		*eptp = ept_pointer(view->root);
		return 0;
	}
	*eptp = ept_pointer(v->priv_root);
	if (v->priv_view != v->view || v->priv_gen != view->gen) {
		memcpy(v->priv_root, view->root, PAGE_SIZE);
		v->pool_used = 0;
		v->priv_view = v->view;
		v->priv_gen = view->gen;
		v->applied = 0;
		v->priv_flush = true;
	}
	for (i = v->applied; i < v->nov; i++) {
		const struct override *ov = &v->ov[i];
		u64 *leaf = private_leaf(v, ov->gfn), frame = ept_frame(v->vm, v->view, ov->gfn);

		if (!leaf)
			return -EAGAIN;
		if (ov->kind != OV_ALLOW || !frame)
			frame = page_to_phys(ov->copy);
		*leaf = ov->rights ? frame | EPT_NO_VE | EPT_WB_IPAT | ov->rights : EPT_NONE;
		v->priv_flush = true;
	}
	v->applied = v->nov;
	return 0;
}

static void forget(struct vcpu *v)
{
	u32 i;

	if (v->priv_view == v->view && v->priv_gen == v->vm->view[v->view].gen)
		for (i = 0; i < v->applied; i++) {
			u64 *leaf = private_leaf(v, v->ov[i].gfn);

			if (leaf)
				*leaf = shared_leaf(v, v->ov[i].gfn);
		}
	else
		v->priv_view = ~0u;
	v->applied = 0;
	v->nov = 0;
	v->priv_flush = true;
}

void step_drop(struct vcpu *v)
{
	v->one = false;
	v->pass_dtr = false;
	if (v->nov)
		forget(v);
	if (v->step_back != ~0u) {
		v->view = v->step_back;
		v->step_back = ~0u;
	}
}

void step_finish(struct vcpu *v)
{
	u32 i;

	for (i = 0; i < v->applied; i++) {
		keep_walk(v, &v->ov[i]);
		write_back(v, &v->ov[i]);
	}
	step_drop(v);
	v->notify_step |= v->step_notify;
	v->step_notify = false;
}
