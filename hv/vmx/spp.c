/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * spp.c - sub-page write permissions (SDM 28.3.4). A view's table has four
 * levels like its EPT; the last one holds a vector a page, its even bits the
 * 32 parts of 128 bytes, its odd bits zero. The CPU asks it for writes to pages
 * whose leaf has EPT_SPP and no W, so the engine's mask stands in it alone.
 */
#include "hvi_vmx.h"

#define VALID			1ull

static u64 *new_table(void)
{
	return (u64 *)get_zeroed_page(GFP_MODEST);
}

static void free_table(u64 *t, int level)
{
	int i;

	for (i = 0; level > 1 && i < 512; i++)
		if (t[i] & VALID)
			free_table(ept_table(t[i]), level - 1);
	free_page((unsigned long)t);
}

void spp_free(u64 *sppt)
{
	if (sppt)
		free_table(sppt, 4);
}

static u64 *copy_table(const u64 *from, int level)
{
	u64 *t = new_table();
	int i;

	if (!t)
		return NULL;
	if (level == 1) {
		memcpy(t, from, PAGE_SIZE);
		return t;
	}
	for (i = 0; i < 512; i++) {
		u64 *below;

		if (!(from[i] & VALID))
			continue;
		below = copy_table(ept_table(from[i]), level - 1);
		if (!below) {
			free_table(t, level);
			return NULL;
		}
		t[i] = __pa(below) | VALID;
	}
	return t;
}

u64 *spp_copy(const u64 *sppt)
{
	return copy_table(sppt, 4);
}

/* The vector of a page, with the tables made down to it; NULL: no memory. */
static u64 *vector(u64 *t, u64 gfn)
{
	int level;

	for (level = 4; level > 1; level--) {
		u64 *e = &t[EPT_INDEX(gfn, level)];

		if (!(*e & VALID)) {
			u64 *n = new_table();

			if (!n)
				return NULL;
			*e = __pa(n) | VALID;
		}
		t = ept_table(*e);
	}
	return &t[EPT_INDEX(gfn, 1)];
}

static u64 even_bits(u32 mask)
{
	u64 v = 0;
	int i;

	for (i = 0; i < 32; i++)
		v |= (u64)(mask >> i & 1) << (2 * i);
	return v;
}

int spp_set(struct vm *vm, const struct hvi_spp *a)
{
	struct view *v;
	u64 *e;
	int err;

	if (!(vmx_caps.caps & HVI_CAP_SPP))
		return -EOPNOTSUPP;
	if (!view_ok(vm, a->view))
		return -EINVAL;
	if (ram_index(vm, a->gfn) == NO_PAGE)
		return -EFAULT;
	v = &vm->view[a->view];
	if (!v->sppt) {
		if (!a->mask)
			return 0;
		v->sppt = new_table();
		if (!v->sppt)
			return -ENOMEM;
	}
	e = vector(v->sppt, a->gfn);
	if (!e)
		return -ENOMEM;
	err = ept_mark(vm, a->view, a->gfn, 1, PAGE_SPP, a->mask);
	if (err)
		return err;
	*e = even_bits(a->mask);
	ept_changed(vm, a->view);
	return 0;
}

/* Into the VMCS; the secondary control that goes with it. A guest that switches EPTs alone would take this table along. */
u32 spp_load(struct vcpu *v)
{
	const u64 *sppt = v->vm->view[v->view].sppt;

	if (!sppt || v->nviews)
		return 0;
	if (__pa(sppt) != v->spptp_now)
		vmcs_write(F_SPPTP, v->spptp_now = __pa(sppt));
	return SEC_SPP;
}
