/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * step.c - replies that hold for one instruction. The vCPU runs it under MTF
 * (SDM 26.5.2) with a private EPT: a copy of the view's path to each page that
 * the instruction violated, the leaf showing the page with all rights
 * (RESUME), or a copy of it (SCRATCH, EMULATE) with the supplied bytes put in.
 * What it wrote to a copy goes to the page afterwards when the reply says so.
 * The tables are kept, and hold until the view changes: hitting the same page
 * again costs one entry.
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
	v->ov = kvcalloc(HVI_MAX_OVERRIDES, sizeof(*v->ov), GFP_KERNEL_ACCOUNT);
	v->priv_root = (u64 *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	return v->ov && v->priv_root ? 0 : -ENOMEM;
}

void step_free(struct vcpu *v)
{
	u32 i;

	for (i = 0; v->ov && i < HVI_MAX_OVERRIDES; i++) {
		if (v->ov[i].copy)
			__free_page(v->ov[i].copy);
		if (v->ov[i].before)
			__free_page(v->ov[i].before);
	}
	kvfree(v->ov);
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
	int err;

	/* Full of tables of instructions before; those of one instruction have room. */
	if (v->pool_used + 3 > ARRAY_SIZE(v->pool)) {
		v->priv_view = ~0u;
		return 0;
	}
	err = grow_pool(v, v->pool_used + 3);
	return err ? err : v->pool_size > before ? 0 : -ENOMEM;
}

static struct override *override_of(const struct vcpu *v, u64 gfn)
{
	u32 i;

	for (i = 0; i < v->nov; i++)
		if (v->ov[i].gfn == gfn)
			return &v->ov[i];
	return NULL;
}

u32 step_rights(const struct vcpu *v, u64 gfn, u32 rights)
{
	const struct override *ov = override_of(v, gfn);

	return ov ? ov->rights : rights;
}

u8 *step_copy(const struct vcpu *v, u64 gfn)
{
	const struct override *ov = override_of(v, gfn);

	return ov && ov->shown ? page_address(ov->copy) : NULL;
}

bool step_walked(struct vcpu *v, u64 gfn)
{
	struct override *ov = override_of(v, gfn);

	if (!ov || !ov->shown)
		return false;
	ov->walk = true;
	return true;
}

/* ---- before an answer is taken: what may sleep ------------------------------------------- */

/* A page that the reply needs and that was never touched. */
static int need(struct vcpu *v, u64 gfn)
{
	u32 index = ram_index(v->vm, gfn);
	struct page *p;

	if (index == NO_PAGE)
		return 0;
	p = ram_page(v->vm, index);
	return IS_ERR(p) ? PTR_ERR(p) : 0;
}

static int need_copy(struct override *ov)
{
	if (!ov->copy)
		ov->copy = alloc_page(GFP_MODEST | __GFP_ZERO);
	if (!ov->before)
		ov->before = alloc_page(GFP_MODEST | __GFP_ZERO);
	return ov->copy && ov->before ? 0 : -ENOMEM;
}

int step_prepare(struct vcpu *v, u64 gfn, const struct hvi_reply *r)
{
	u32 last = v->nov + 3, i;
	int err = need(v, gfn);

	for (i = 0; !err && r->action == HVI_REPLY_EMULATE && i < HVI_EMULATE_RANGES; i++)
		if (r->range[i].len) {
			err = need(v, r->range[i].gpa >> PAGE_SHIFT);
			last++;
		}
	for (i = 0; !err && i < min_t(u32, last, HVI_MAX_OVERRIDES); i++)
		err = need_copy(&v->ov[i]);
	return err ? err : grow_pool(v, POOL_MIN);
}

/* ---- what an override shows ------------------------------------------------------------ */

static const u8 *supplied(const struct vcpu *v, const struct override *ov, const struct hvi_emulate_range *r)
{
	if (ov->spare)
		return (const u8 *)page_address(v->vm->spare[r->offset]) + (r->gpa & ~PAGE_MASK);
	return ov->bytes + r->offset;
}

/* The bytes that the replies supply for a page, whichever violation they answered; to NULL: whether there are any. */
static bool supply(const struct vcpu *v, u64 gfn, u8 *to)
{
	bool any = false;
	u32 i, k;

	for (i = 0; i < v->nov; i++)
		for (k = 0; k < v->ov[i].nranges; k++) {
			const struct hvi_emulate_range *r = &v->ov[i].range[k];

			if (r->gpa >> PAGE_SHIFT != gfn)
				continue;
			any = true;
			if (to)
				memcpy(to + (r->gpa & ~PAGE_MASK), supplied(v, &v->ov[i], r), r->len);
		}
	return any;
}

/* Whether what the instruction writes to a copy is meant for the page. */
static bool comes_back(const struct vcpu *v, const struct override *ov)
{
	if (!ov->frame || ov->kind == OV_SCRATCH)
		return false;
	return ov->kind == OV_ALLOW || ov->write || (view_rights(v->vm, v->view, ov->gfn) & HVI_W);
}

static void show(struct vcpu *v, struct override *ov)
{
	u8 *copy = page_address(ov->copy);

	ov->frame = ept_frame(v->vm, v->view, ov->gfn);
	if (!ov->answered)
		ov->rights = view_rights(v->vm, v->view, ov->gfn);
	ov->shown = ov->kind != OV_ALLOW || !ov->frame || supply(v, ov->gfn, NULL);
	ov->tracked = false;
	if (!ov->shown)
		return;
	if (ov->frame)
		memcpy(copy, __va(ov->frame), PAGE_SIZE);
	else
		memset(copy, 0xff, PAGE_SIZE);	/* device space that nobody answers for */
	supply(v, ov->gfn, copy);
	ov->tracked = ov->walk || comes_back(v, ov);
	if (ov->tracked)
		memcpy(page_address(ov->before), copy, PAGE_SIZE);
}

/* Writes to a copy that are meant: outside the supplied bytes, and no others than the instruction's. */
static void write_back(struct vcpu *v, struct override *ov)
{
	const u8 *before;
	u8 *now, *to;
	u32 i, k;

	if (!ov->shown || !ov->tracked || !comes_back(v, ov))
		return;
	now = page_address(ov->copy);
	before = page_address(ov->before);
	to = __va(ov->frame);
	supply(v, ov->gfn, now);
	for (i = 0; i < PAGE_SIZE; i += sizeof(u64)) {
		if (likely(*(u64 *)(now + i) == *(const u64 *)(before + i)))
			continue;
		for (k = i; k < i + sizeof(u64); k++)
			if (now[k] != before[k])
				to[k] = now[k];
	}
}

/*
 * The walk's accessed and dirty bits in a copy of a page table are the guest's:
 * they go to the entry itself, whatever else of it the engine supplied.
 */
static void keep_walk(struct vcpu *v, struct override *ov)
{
	const u8 *before;
	u8 *now, *to;
	u32 size, i;

	if (!ov->shown || !ov->walk || !ov->tracked || !ov->frame)
		return;
	size = guest_cr4() & X86_CR4_PAE ? 8 : 4;
	now = page_address(ov->copy);
	before = page_address(ov->before);
	to = __va(ov->frame);
	for (i = 0; i < PAGE_SIZE; i += size) {
		u8 set = now[i] & ~before[i] & ENTRY_AD;

		if (!set || now[i] != (before[i] | set))
			continue;
		atomic_or(set, (atomic_t *)(to + i));
		now[i] = before[i];
		if (!(view_rights(v->vm, v->view, ov->gfn) & HVI_W))
			v->page->counters.ad_writes++;
	}
}

void step_show(struct vcpu *v)
{
	u32 i;

	for (i = 0; i < v->nov; i++)
		keep_walk(v, &v->ov[i]);
	for (i = 0; i < v->nov; i++)
		show(v, &v->ov[i]);
	v->applied = 0;
}

static void hide(struct vcpu *v, const struct override *ov);

static struct override *slot(struct vcpu *v, u64 gfn)
{
	struct override *ov = override_of(v, gfn);

	if (!ov && v->nov < HVI_MAX_OVERRIDES) {
		ov = &v->ov[v->nov++];
		ov->shown = false;
	} else if (!ov) {
		ov = &v->ov[v->oldest++ % HVI_MAX_OVERRIDES];
		keep_walk(v, ov);
		hide(v, ov);
		ov->shown = false;
	} else {
		keep_walk(v, ov);
	}
	ov->gfn = gfn;
	return ov;
}

/* r is a checked copy of the engine's reply. step_show is still to come. */
void step_override(struct vcpu *v, u64 gfn, enum override_kind kind, bool walk, const struct hvi_reply *r)
{
	struct override *ov = slot(v, gfn);
	u32 i;

	ov->walk = walk || (ov->shown && ov->walk);
	ov->kind = kind;
	ov->rights = HVI_RWX;
	ov->answered = true;
	ov->write = ov->spare = false;
	ov->nranges = 0;
	if (kind != OV_EMULATE)
		return;
	ov->write = r->flags & HVI_REPLY_WRITE;
	ov->spare = r->flags & HVI_REPLY_SPARE;
	memcpy(ov->bytes, r->bytes, sizeof(ov->bytes));
	for (i = 0; i < HVI_EMULATE_RANGES; i++)
		if (r->range[i].len)
			ov->range[ov->nranges++] = r->range[i];
	/* Supplied bytes of a page that is not violated: the instruction sees them all the same. */
	for (i = 0; i < HVI_EMULATE_RANGES; i++) {
		u64 other = r->range[i].gpa >> PAGE_SHIFT;

		if (!r->range[i].len || override_of(v, other) || ram_index(v->vm, other) == NO_PAGE)
			continue;
		ov = slot(v, other);
		ov->kind = OV_ALLOW;
		ov->walk = ov->answered = ov->write = ov->spare = false;
		ov->nranges = 0;
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

/* The private leaf. Its tables are made as copies of the view's; without `make`, or when the pool is empty, NULL. */
static u64 *private_leaf(struct vcpu *v, u64 gfn, bool make)
{
	u64 *t = v->priv_root;
	int level, i;

	for (level = 4; level > 1; level--) {
		u64 *e = &t[EPT_INDEX(gfn, level)], *n;

		if (!(*e & PRIVATE)) {
			if (!make || v->pool_used == v->pool_size)
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
		u64 *leaf = private_leaf(v, ov->gfn, true);
		u64 frame = ov->shown ? page_to_phys(ov->copy) : ept_frame(v->vm, v->view, ov->gfn);

		if (!leaf)
			return -EAGAIN;
		*leaf = ov->rights && frame ? frame | EPT_NO_VE | EPT_WB_IPAT | ov->rights : EPT_NONE;
		v->priv_flush = true;
	}
	v->applied = v->nov;
	return 0;
}

/* The private tables show the page as the view does. */
static void hide(struct vcpu *v, const struct override *ov)
{
	u64 *leaf;

	v->priv_flush = true;
	if (v->priv_view != v->view || v->priv_gen != v->vm->view[v->view].gen) {
		v->priv_view = ~0u;
		return;
	}
	leaf = private_leaf(v, ov->gfn, false);
	if (leaf)
		*leaf = shared_leaf(v, ov->gfn);
}

/* done: the instruction has run to its end, its writes count. */
static void forget(struct vcpu *v, bool done)
{
	u32 i;

	for (i = 0; i < v->nov; i++) {
		keep_walk(v, &v->ov[i]);
		if (done)
			write_back(v, &v->ov[i]);
		hide(v, &v->ov[i]);
	}
	v->nov = v->applied = v->oldest = 0;
}

void step_faulted(struct vcpu *v)
{
	forget(v, false);
}

static void end(struct vcpu *v, bool done)
{
	v->one = v->step_notify = false;
	v->pass_dtr = false;
	if (v->nov)
		forget(v, done);
	if (v->step_back != ~0u) {
		v->view = v->step_back;
		v->step_back = ~0u;
	}
}

void step_drop(struct vcpu *v)
{
	end(v, false);
}

void step_finish(struct vcpu *v, bool done)
{
	bool notify = v->step_notify;

	end(v, done);
	v->notify_step |= notify;
}

void step_reset(struct vcpu *v)
{
	v->nov = v->applied = v->oldest = 0;
	v->priv_view = ~0u;
	v->priv_flush = true;
	v->one = v->step_notify = v->notify_step = v->pass_dtr = false;
	v->step_back = ~0u;
}
