/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * ept.c - views. What a view allows is an array, a byte a page of RAM; its EPT
 * tables (SDM 28.3) are filled from it when the guest comes by, in 2 MiB pages
 * where 512 pages are alike and lie together, and kept in step from then on.
 */
#include <linux/err.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include "hvi_vmx.h"

#define TABLE			0x7ull		/* an entry that points to a table: all rights */

u64 ept_pointer(const u64 *root)
{
	return __pa(root) | 3 << 3 | 6;		/* four levels, write-back, no A/D bits */
}

void ept_clear(u64 *t)
{
	memset64(t, EPT_NONE, 512);
}

static u64 *new_table(void)
{
	struct page *p = alloc_page(GFP_MODEST);

	if (!p)
		return NULL;
	ept_clear(page_address(p));
	return page_address(p);
}

static void free_table(u64 *t, int level)
{
	int i;

	if (level > 1)
		for (i = 0; i < 512; i++)
			if ((t[i] & TABLE) && !(t[i] & EPT_LARGE))
				free_table(ept_table(t[i]), level - 1);
	free_page((unsigned long)t);
}

/* The leaf for a GFN and its level (1 or 2), or NULL where there is no table. */
u64 *ept_leaf(u64 *root, u64 gfn, int *level)
{
	u64 *t = root;

	for (*level = 4;; (*level)--) {
		u64 *e = &t[EPT_INDEX(gfn, *level)];

		if (*level == 1 || (*e & EPT_LARGE))
			return e;
		if (!(*e & TABLE))
			return NULL;
		t = ept_table(*e);
	}
}

/* ---- INVEPT ------------------------------------------------------------------------ */

void ept_invalidate(struct vcpu *v, u64 eptp)
{
	struct {
		u64 eptp, zero;
	} d = { eptp, 0 };

	asm volatile("invept %0, %1" : : "m" (d), "r" (1ul) : "cc", "memory");
	v->page->counters.invepts++;
}

bool ept_test_stale(struct view *v, int cpu)
{
	if (likely(v->flushed[cpu] == v->flush))
		return false;
	v->flushed[cpu] = v->flush;
	return true;
}

static void stale(struct view *v)
{
	v->flush++;
}

/* ---- entries --------------------------------------------------------------------------- */

u64 ept_frame(struct vm *vm, u32 view, u64 gfn)
{
	const struct view *v = &vm->view[view];
	u32 i = ram_index(vm, gfn);
	struct page *p;

	if (i == NO_PAGE)
		return 0;
	p = v->remap && v->remap[i] != NO_PAGE ? vm->spare[v->remap[i]] : ram_page_present(vm, i);
	return p ? page_to_phys(p) : 0;
}

/*
 * A page without rights is kept in its entry, where the CPU does not look at it
 * (SDM 28.3.2). A convertible page that is not there yet exits, to be filled
 * in; then the CPU decides.
 */
static __always_inline u64 entry(u64 frame, u8 page)
{
	u64 e = page & PAGE_VE ? 0 : EPT_NO_VE;
	u32 rights = page & HVI_RWX;

	if (!frame)
		return rights ? EPT_NONE : e;
	if ((page & PAGE_SPP) && (rights & (HVI_R | HVI_W)) == HVI_R)
		e |= EPT_SPP;
	return e | frame | EPT_WB_IPAT | rights;
}

static u64 entry_for(struct vm *vm, u32 view, u32 index, u64 gfn)
{
	return entry(ept_frame(vm, view, gfn), vm->view[view].rights[index]);
}

/* Whether a page has a mark that the CPU does not see yet, because its entry is still to be filled in. */
bool ept_hides_mark(struct vm *vm, u32 view, u64 gfn)
{
	const struct view *v = &vm->view[view];
	u32 index = ram_index(vm, gfn);
	const u64 *e;
	u8 page;
	int level;

	if (likely(!v->marked) || index == NO_PAGE)
		return false;
	page = v->rights[index];
	if (!(page & (PAGE_SPP | PAGE_VE)))
		return false;
	e = ept_leaf(v->root, gfn, &level);
	if (!e || ((page & PAGE_VE) && (*e & EPT_NO_VE)))
		return true;
	return (page & HVI_R) && !(*e & HVI_RWX);
}

u32 view_rights(const struct vm *vm, u32 view, u64 gfn)
{
	u32 i = ram_index(vm, gfn);

	return i == NO_PAGE ? 0 : vm->view[view].rights[i] & HVI_RWX;
}

/* Whether the 2 MiB around may be one page: 512 pages of RAM, all RWX and no more, not remapped, in one piece. */
static bool uniform(struct vm *vm, u32 view, u64 gfn)
{
	const struct view *v = &vm->view[view];
	u32 first = ram_index(vm, gfn & ~511ull), i;
	struct page *p;

	if (first == NO_PAGE || ram_index(vm, gfn | 511) != first + 511)
		return false;
	p = ram_page_present(vm, first);
	if (!p || (page_to_pfn(p) & 511) || memchr_inv(v->rights + first, HVI_RWX, 512))
		return false;
	if (v->remap && memchr_inv(v->remap + first, 0xff, 512 * sizeof(u32)))
		return false;
	for (i = 1; i < 512; i++)
		if (ram_page_present(vm, first + i) != p + i)
			return false;
	return true;
}

/* The entry of a level, with tables made down to it; NULL: no memory, or a large page stands above. */
static u64 *make_path(struct view *v, u64 gfn, int to)
{
	u64 *t = v->root;
	int level;

	for (level = 4; level > to; level--) {
		u64 *e = &t[EPT_INDEX(gfn, level)];

		if (*e & EPT_LARGE)
			return NULL;
		if (!(*e & TABLE)) {
			u64 *n = new_table();

			if (!n)
				return NULL;
			WRITE_ONCE(*e, __pa(n) | TABLE);
			v->gen++;
		}
		t = ept_table(*e);
	}
	return &t[EPT_INDEX(gfn, to)];
}

static void fill_table(struct vm *vm, u32 view, u64 *t, u64 gfn)
{
	u32 i;

	for (i = 0; i < 512; i++) {
		u32 index = ram_index(vm, (gfn & ~511ull) + i);

		t[i] = index == NO_PAGE ? EPT_NONE : entry_for(vm, view, index, (gfn & ~511ull) + i);
	}
}

/* Replace a 2 MiB page by its 512 parts. */
static int split(struct vm *vm, u32 view, u64 *e, u64 gfn)
{
	u64 *t = new_table();

	if (!t)
		return -ENOMEM;
	fill_table(vm, view, t, gfn);
	WRITE_ONCE(*e, __pa(t) | TABLE);
	vm->view[view].gen++;
	stale(&vm->view[view]);
	return 0;
}

/* Make the page and its entry; also what an entry left out for want of a page. */
int ept_fill(struct vm *vm, u32 view, u64 gfn)
{
	struct view *v = &vm->view[view];
	u32 index = ram_index(vm, gfn);
	struct page *p;
	u64 *e;

	if (index == NO_PAGE)
		return -EFAULT;
	p = ram_page(vm, index);
	if (IS_ERR(p))
		return PTR_ERR(p);
	e = make_path(v, gfn, 2);
	if (!e)
		return -ENOMEM;
	if (!(*e & TABLE) && uniform(vm, view, gfn)) {
		WRITE_ONCE(*e, (page_to_phys(p) & ~0x1fffffull) | EPT_NO_VE | EPT_WB_IPAT | EPT_LARGE | HVI_RWX);
		v->gen++;
		return 0;
	}
	if (*e & EPT_LARGE)
		return 0;
	if (!(*e & TABLE)) {
		u64 *t = new_table();

		if (!t)
			return -ENOMEM;
		fill_table(vm, view, t, gfn);
		WRITE_ONCE(*e, __pa(t) | TABLE);
	} else {
		WRITE_ONCE(ept_table(*e)[EPT_INDEX(gfn, 1)], entry_for(vm, view, index, gfn));
	}
	v->gen++;
	return 0;
}

/* ---- rights ---------------------------------------------------------------------------- */

static const struct slot *slot_at(const struct vm *vm, u64 gfn)
{
	u32 i;

	for (i = 0; i < vm->nslots; i++)
		if (gfn - vm->slot[i].gfn < vm->slot[i].pages)
			return &vm->slot[i];
	return NULL;
}

/* Moves v->near to a GFN's 2 MiB, or what of them lies in one slot of RAM. False: no RAM. */
static noinline bool come_near(struct vm *vm, struct view *v, u64 gfn)
{
	const struct slot *s = slot_at(vm, gfn);
	struct near *n = &v->near;
	int level;
	u64 *e;

	if (!s)
		return false;
	n->first = max(gfn & ~511ull, s->gfn);
	n->count = min((gfn | 511) + 1, s->gfn + s->pages) - n->first;
	n->rights = v->rights + s->first + (n->first - s->gfn);
	e = ept_leaf(v->root, n->first, &level);
	/* No table: nothing is there yet, or 2 MiB that are RWX. */
	n->entry = e && level == 1 ? e : NULL;
	n->large = e && level > 1;
	n->gen = v->gen;
	return true;
}

/* Whether GFNs up to end are RAM; take: large pages among them become tables, which may fail. */
static noinline int prepare(struct vm *vm, u32 view, u64 gfn, u64 end, bool take)
{
	struct view *v = &vm->view[view];

	if (gfn > vmx_caps.max_gfn)
		return -EFAULT;
	for (; gfn < end; gfn = v->near.first + v->near.count) {
		if (!come_near(vm, v, gfn))
			return -EFAULT;
		if (v->near.large && take) {
			int level, err = split(vm, view, ept_leaf(v->root, gfn, &level), gfn);

			if (err)
				return err;
			come_near(vm, v, gfn);
			cond_resched();
		}
	}
	return 0;
}

/* All of 2 MiB is RWX again: the table goes, the next access may find a large page. */
static void merge(struct vm *vm, u32 view, u64 gfn)
{
	struct view *v = &vm->view[view];
	u64 *t = v->root;
	int level;

	for (level = 4; level > 2; level--) {
		u64 e = t[EPT_INDEX(gfn, level)];

		if (!(e & TABLE) || (e & EPT_LARGE))
			return;
		t = ept_table(e);
	}
	t += EPT_INDEX(gfn, 2);
	if (!(*t & TABLE) || (*t & EPT_LARGE) || !uniform(vm, view, gfn))
		return;
	/* The table may still be cached by a CPU: stale() comes before anyone enters, and it is not reused before. */
	{
		u64 *old = ept_table(*t);
		u64 frame = ept_frame(vm, view, gfn & ~511ull);

		WRITE_ONCE(*t, frame | EPT_NO_VE | EPT_WB_IPAT | EPT_LARGE | HVI_RWX);
		v->gen++;
		v->near.count = 0;
		stale(v);
		free_page((unsigned long)old);
	}
}

static void merge_range(struct vm *vm, u32 view, const struct hvi_ept_range *r)
{
	u64 gfn = ALIGN(r->gfn, 512), end = r->gfn + r->count;

	for (; gfn + 512 <= end; gfn += 512)
		merge(vm, view, gfn);
}

/*
 * What most calls ask for: single pages, all of them in v->near, no page of the
 * view with a mark. *plain says whether these are that; then there is nothing
 * else to check.
 */
static __always_inline int get_ranges(struct view *v, struct hvi_ept_range *to,
				      const struct hvi_ept_range __user *from, u32 count, bool *plain)
{
	const u64 __user *u = (const u64 __user *)from;
	u64 *k = (u64 *)to, *end = k + 2 * count;
	u64 first = v->near.first, pages = 0;
	u32 allowed = vmx_caps.rights;
	bool other = false;

	if (v->near.gen == v->gen && v->near.entry && !v->marked)
		pages = v->near.count;
	if (!user_access_begin(from, count * sizeof(*from)))
		return -EFAULT;
	for (; k < end; k += 2, u += 2) {
		u64 gfn, what;		/* what: count, and rights in the upper half */

		unsafe_get_user(gfn, &u[0], fault);
		unsafe_get_user(what, &u[1], fault);
		k[0] = gfn;
		k[1] = what;
		if (unlikely(gfn - first >= pages || (u32)what != 1 || what >> 32 > HVI_RWX ||
			     !(allowed >> (what >> 32) & 1)))
			other = true;
	}
	user_access_end();
	*plain = !other;
	return 0;
fault:
	user_access_end();
	return -EFAULT;
}

static __always_inline void changed(struct view *v, u64 lost)
{
	v->near.gen = ++v->gen;
	if (lost)
		stale(v);
}

static __always_inline void set_plain(struct view *v, const struct hvi_ept_range *r, u32 count)
{
	const struct hvi_ept_range *end = r + count;
	u64 *entries = v->near.entry, first = v->near.first, lost = 0;
	u8 *have = v->near.rights;

	for (; r < end; r++) {
		u64 i = r->gfn - first, rights = r->rights;

		lost |= have[i] & ~rights;
		have[i] = rights;
		/* Others are filled in when the guest comes by. */
		if (entries[i] & EPT_FRAME)
			WRITE_ONCE(entries[i], (entries[i] & ~(u64)HVI_RWX) | rights);
	}
	changed(v, lost);
}

/* Between two of many ranges, each of which may be all of RAM. A caller that is killed does not see the end. */
static int give_way(u32 done)
{
	if (done % 64 != 63)
		return 0;
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* All of the ranges are good, or nothing changes. */
static int check_ranges(struct vm *vm, u32 view, const struct hvi_ept_range *r, u32 count)
{
	struct view *v = &vm->view[view];
	u32 allowed = vmx_caps.rights, done;
	struct near n;

	if (v->near.gen != v->gen)
		v->near.count = 0;
	for (done = 0, n = v->near; done < count; done++, r++) {
		u64 i = r->gfn - n.first, pages = r->count;

		if (!pages || r->rights > HVI_RWX || !(allowed >> r->rights & 1))
			return -EINVAL;
		if (unlikely(i >= n.count || pages > n.count - i || n.large)) {
			int err = prepare(vm, view, r->gfn, r->gfn + pages, r->rights != HVI_RWX) ?: give_way(done);

			if (err)
				return err;
			n = v->near;
		}
	}
	return 0;
}

static int set_ranges(struct vm *vm, u32 view, const struct hvi_ept_range *r, u32 count)
{
	struct view *v = &vm->view[view];
	u64 lost = 0;
	u32 done;
	int err = 0;

	for (done = 0; done < count && !err; done++, r++) {
		u64 gfn = r->gfn, stop = r->gfn + r->count, rights = r->rights;

		while (gfn < stop) {
			u64 i = gfn - v->near.first, n, *e;
			u8 *have;

			if (i >= v->near.count) {
				come_near(vm, v, gfn);
				i = gfn - v->near.first;
			}
			n = min(v->near.count - i, stop - gfn);
			have = v->near.rights + i;
			e = v->near.entry ? v->near.entry + i : NULL;
			for (i = 0; i < n; i++) {
				u8 old = have[i], now = (old & ~HVI_RWX) | rights;

				if (old == now)
					continue;
				/* A CPU's older copy that refuses costs no more than an exit, but not where that is a #VE. */
				lost |= (old & ~now) | (old & PAGE_VE);
				have[i] = now;
				if (e)
					WRITE_ONCE(e[i], entry(e[i] & EPT_FRAME, now));
			}
			gfn += n;
		}
		if (r->count >= 512 && rights == HVI_RWX)
			merge_range(vm, view, r);
		err = give_way(done);
	}
	changed(v, lost);
	return err;
}

static noinline int check_and_set(struct vm *vm, u32 view, const struct hvi_ept_range *r, u32 count)
{
	int err = check_ranges(vm, view, r, count);

	return err ? err : set_ranges(vm, view, r, count);
}

/* More than vm->batch holds. */
static noinline int set_many(struct vm *vm, const struct hvi_ept *a)
{
	struct hvi_ept_range *r = kvmalloc_array(a->count, sizeof(*r), GFP_KERNEL_ACCOUNT);
	bool plain;
	int err;

	if (!r)
		return -ENOMEM;
	err = get_ranges(&vm->view[a->view], r, (void __user *)(uintptr_t)a->ranges, a->count, &plain);
	if (!err)
		err = check_and_set(vm, a->view, r, a->count);
	kvfree(r);
	return err;
}

int ept_set(struct vm *vm, const struct hvi_ept *a)
{
	u32 view = a->view, count = a->count;
	struct view *v = &vm->view[view];
	bool plain;

	if (!view_ok(vm, view) || count > 65536)
		return -EINVAL;
	if (count > PAGE_SIZE / sizeof(*vm->batch))
		return set_many(vm, a);
	if (get_ranges(v, vm->batch, (void __user *)(uintptr_t)a->ranges, count, &plain))
		return -EFAULT;
	if (!plain)
		return check_and_set(vm, view, vm->batch, count);
	set_plain(v, vm->batch, count);
	return 0;
}

int ept_get(struct vm *vm, const struct hvi_ept *a)
{
	struct hvi_ept_range __user *u = (void __user *)(uintptr_t)a->ranges;
	u32 i;

	if (!view_ok(vm, a->view) || a->count > 65536)
		return -EINVAL;
	for (i = 0; i < a->count; i++) {
		struct hvi_ept_range r;

		if (copy_from_user(&r, &u[i], sizeof(r)))
			return -EFAULT;
		r.count = 1;
		r.rights = view_rights(vm, a->view, r.gfn);
		if (copy_to_user(&u[i], &r, sizeof(r)))
			return -EFAULT;
	}
	return 0;
}

/* ---- marks: convertible to #VE, writable in parts ---------------------------------------------- */

/* Set or clear a mark of pages. The large pages among them become tables first: this may fail. */
int ept_mark(struct vm *vm, u32 view, u64 gfn, u64 count, u8 mark, bool on)
{
	struct view *v;
	bool changed = false;
	u64 g, end = gfn + count;
	int err, level;

	if (!view_ok(vm, view))
		return -EINVAL;
	if (!count)
		return -EINVAL;
	if (count > vmx_caps.max_gfn + 1)
		return -EFAULT;
	err = prepare(vm, view, gfn, end, on);
	if (err)
		return err;
	v = &vm->view[view];
	v->marked |= on;
	for (g = gfn; g < end; g++) {
		u32 index = ram_index(vm, g);
		u8 *have = &v->rights[index], now = on ? *have | mark : *have & ~mark;
		u64 *e;

		if (!(g & 511))
			cond_resched();
		if (*have == now)
			continue;
		*have = now;
		changed = true;
		e = ept_leaf(v->root, g, &level);
		if (e)
			WRITE_ONCE(*e, entry_for(vm, view, index, g));
	}
	if (changed) {
		v->gen++;
		stale(v);
	}
	return 0;
}

/* What a page's mark stands for has changed. */
void ept_changed(struct vm *vm, u32 view)
{
	vm->view[view].gen++;
	stale(&vm->view[view]);
}

/* ---- views ----------------------------------------------------------------------------------- */

/* A view's tables; the arrays are the caller's. */
int view_init(struct vm *vm, u32 view)
{
	struct view *v = &vm->view[view];

	v->root = new_table();
	v->flushed = kcalloc(nr_cpu_ids, sizeof(*v->flushed), GFP_KERNEL_ACCOUNT);
	if (!v->root || !v->flushed) {
		if (v->root)
			free_page((unsigned long)v->root);
		kfree(v->flushed);
		v->root = NULL;
		v->flushed = NULL;
		return -ENOMEM;
	}
	stale(v);		/* the root's page may have been another's */
	v->gen = 1;
	v->used = true;
	return 0;
}

void view_free(struct vm *vm, u32 view)
{
	struct view *v = &vm->view[view];

	if (v->root)
		free_table(v->root, 4);
	spp_free(v->sppt);
	kfree(v->flushed);
	kvfree(v->rights);
	kvfree(v->remap);
	memset(v, 0, sizeof(*v));
}

int view_create(struct vm *vm, struct hvi_view *a)
{
	const struct view *from;
	struct view *v;
	u32 i;

	if (!view_ok(vm, a->from))
		return -EINVAL;
	for (i = 0; i < HVI_MAX_VIEWS && vm->view[i].used; i++)
		;
	if (i == HVI_MAX_VIEWS)
		return -ENOSPC;
	from = &vm->view[a->from];
	v = &vm->view[i];
	v->rights = kvmalloc(max(vm->ram_pages, 1u), GFP_MODEST);
	if (from->remap)
		v->remap = kvmalloc_array(vm->ram_pages, sizeof(u32), GFP_MODEST);
	if (!v->rights || (from->remap && !v->remap) || view_init(vm, i)) {
		kvfree(v->rights);
		kvfree(v->remap);
		v->rights = NULL;
		v->remap = NULL;
		return -ENOMEM;
	}
	if (vm->ram_pages)
		memcpy(v->rights, from->rights, vm->ram_pages);
	if (v->remap)
		memcpy(v->remap, from->remap, vm->ram_pages * sizeof(u32));
	v->marked = from->marked;
	if (from->sppt) {
		v->sppt = spp_copy(from->sppt);
		if (!v->sppt) {
			view_free(vm, i);
			return -ENOMEM;
		}
	}
	a->view = i;
	return 0;
}

int view_destroy(struct vm *vm, const struct hvi_view *a)
{
	u32 i;

	if (!view_ok(vm, a->view) || !a->view)
		return -EINVAL;
	for (i = 0; i < vm->ncpus; i++) {
		const struct vcpu *v = vm->cpu[i];

		if (v->view == a->view || READ_ONCE(v->page->view) == a->view || v->step_back == a->view ||
		    ve_index(v, a->view) != ~0u)
			return -EBUSY;
	}
	for (i = 0; i < vm->ncpus; i++)
		if (vm->cpu[i]->priv_view == a->view)
			vm->cpu[i]->priv_view = ~0u;	/* its private tables point into these */
	view_free(vm, a->view);
	return 0;
}

int view_remap(struct vm *vm, const struct hvi_remap *a)
{
	struct view *v;
	u32 index;
	u64 *e;
	int level;

	if (!view_ok(vm, a->view) || (a->spare != HVI_SPARE_NONE && a->spare >= vm->spare_count))
		return -EINVAL;
	index = ram_index(vm, a->gfn);
	if (index == NO_PAGE)
		return -EFAULT;
	v = &vm->view[a->view];
	if (!v->remap) {
		if (a->spare == HVI_SPARE_NONE)
			return 0;
		v->remap = kvmalloc_array(vm->ram_pages, sizeof(u32), GFP_MODEST);
		if (!v->remap)
			return -ENOMEM;
		memset(v->remap, 0xff, vm->ram_pages * sizeof(u32));
	}
	e = ept_leaf(v->root, a->gfn, &level);
	if (e && level == 2) {
		int err = split(vm, a->view, e, a->gfn);

		if (err)
			return err;
		e = ept_leaf(v->root, a->gfn, &level);
	}
	v->remap[index] = a->spare;
	if (e)
		WRITE_ONCE(*e, entry_for(vm, a->view, index, a->gfn));
	v->gen++;
	stale(v);
	return 0;
}
