/* SPDX-License-Identifier: MIT */
/* view.c - views: EPT rights, remappings, spare pages (hvi.h). */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "vm.h"

bool view_ok(const struct vm *vm, u32 view)
{
	return view < HVI_MAX_VIEWS && vm->view[view].used;
}

/* SDM 28.3.3.1: write without read is a misconfiguration. */
static bool rights_ok(u32 rights)
{
	return !(rights & ~HVI_RWX) && !((rights & HVI_W) && !(rights & HVI_R));
}

bool view_in_ram(const struct vm *vm, u64 gfn, u64 count)
{
	for (u64 end = gfn + count; gfn < end;) {
		const struct slot *s = NULL;

		for (u32 i = 0; i < vm->nslots; i++)
			if (gfn - vm->slot[i].gfn < vm->slot[i].pages)
				s = &vm->slot[i];
		if (!s)
			return false;
		gfn = s->gfn + s->pages;
	}
	return true;
}

static int range_ok(const struct vm *vm, const struct hvi_ept_range *r)
{
	if (r->gfn > PHYS_MASK >> 12)
		return -EFAULT;
	if (!r->count || !rights_ok(r->rights))
		return -EINVAL;
	return view_in_ram(vm, r->gfn, r->count) ? 0 : -EFAULT;
}

int ept_set(struct vm *vm, const struct hvi_ept *a)
{
	const struct hvi_ept_range *r = (const void *)(uintptr_t)a->ranges;
	u8 *rights;

	if (!view_ok(vm, a->view) || a->count > 65536)
		return -EINVAL;
	if (a->count && !r)
		return -EFAULT;
	for (u32 i = 0; i < a->count; i++) {
		int err = range_ok(vm, &r[i]);

		if (err)
			return err;
	}
	rights = vm->view[a->view].rights;
	for (u32 i = 0; i < a->count; i++) {
		for (u64 k = 0; k < r[i].count;) {
			u32 page = mmu_ram_page(vm, r[i].gfn + k), n = 0;
			bool less = false;

			/* Pages that follow each other in RAM as well as in the range. */
			while (k + n < r[i].count && mmu_ram_page(vm, r[i].gfn + k + n) == page + n) {
				less |= rights[page + n] & ~r[i].rights;
				rights[page + n] = (u8)r[i].rights;
				n++;
			}
			if (less)
				mmu_forget_pages(vm, a->view, page, n);
			k += n;
		}
	}
	return 0;
}

int ept_get(struct vm *vm, const struct hvi_ept *a)
{
	struct hvi_ept_range *r = (void *)(uintptr_t)a->ranges;

	if (!view_ok(vm, a->view) || a->count > 65536)
		return -EINVAL;
	if (a->count && !r)
		return -EFAULT;
	for (u32 i = 0; i < a->count; i++) {
		u32 page = mmu_ram_page(vm, r[i].gfn);

		r[i].count = 1;
		r[i].rights = page == NO_FRAME ? 0 : vm->view[a->view].rights[page];
	}
	return 0;
}

void view_free(struct view *v)
{
	free(v->rights);
	free(v->remap);
	free(v->ve);
	free(v->parts);
	*v = (struct view){ 0 };
}

/* An array of a view that may be absent. */
static int copy(void **to, const void *from, size_t bytes)
{
	if (!from)
		return 0;
	*to = malloc(bytes ? bytes : 1);
	if (!*to)
		return -1;
	memcpy(*to, from, bytes);
	return 0;
}

int view_create(struct vm *vm, struct hvi_view *a)
{
	u64 pages = vm->ram_size / PAGE;
	const struct view *from;
	struct view *v;
	u32 i;

	if (!view_ok(vm, a->from))
		return -EINVAL;
	for (i = 0; i < HVI_MAX_VIEWS && vm->view[i].used; i++)
		;
	if (i == HVI_MAX_VIEWS)
		return -ENOSPC;
	v = &vm->view[i];
	from = &vm->view[a->from];
	if (copy((void **)&v->rights, from->rights, pages) || copy((void **)&v->remap, from->remap, pages * sizeof(u32)) ||
	    copy((void **)&v->ve, from->ve, pages) || copy((void **)&v->parts, from->parts, pages * sizeof(u32))) {
		view_free(v);
		return -ENOMEM;
	}
	v->used = true;
	a->view = i;
	return 0;
}

int view_destroy(struct vm *vm, const struct hvi_view *a)
{
	if (!view_ok(vm, a->view) || !a->view)
		return -EINVAL;
	for (u32 i = 0; i < vm->ncpus; i++) {
		const struct cpu_more *m = vm->cpu[i]->more;

		if (m->view == a->view || m->page->view == a->view || m->step_back == a->view ||
		    ve_index(vm->cpu[i], a->view) != ~0u)
			return -EBUSY;
	}
	view_free(&vm->view[a->view]);
	for (u32 i = 0; i < vm->ncpus; i++) {
		free(vm->cpu[i]->more->set[a->view]);
		vm->cpu[i]->more->set[a->view] = NULL;
	}
	return 0;
}

int view_remap(struct vm *vm, const struct hvi_remap *a)
{
	u64 pages = vm->ram_size / PAGE;
	struct view *v;
	u32 page, frame;

	if (!view_ok(vm, a->view) || (a->spare != HVI_SPARE_NONE && a->spare >= vm->spare_count))
		return -EINVAL;
	page = mmu_ram_page(vm, a->gfn);
	if (page == NO_FRAME)
		return -EFAULT;
	v = &vm->view[a->view];
	if (!v->remap) {
		if (a->spare == HVI_SPARE_NONE)
			return 0;
		v->remap = malloc(pages * sizeof(u32));
		if (!v->remap)
			return -ENOMEM;
		memset(v->remap, 0xff, pages * sizeof(u32));
	}
	frame = v->remap[page] != NO_FRAME ? v->remap[page] : SPARE_FRAMES + page;
	v->remap[page] = a->spare == HVI_SPARE_NONE ? NO_FRAME : a->spare;
	mmu_forget_frames(vm, a->view, frame, 1);
	return 0;
}

int view_add_spare(struct vm *vm, struct hvi_spare *a)
{
	u8 *at = vm->base + (u64)vm->spare_count * PAGE;

	if (!a->count)
		return -EINVAL;
	if (a->count > HVI_MAX_SPARE_PAGES - vm->spare_count)
		return -ENOSPC;
	if (mprotect(at, (u64)a->count * PAGE, PROT_READ | PROT_WRITE))
		return -errno;
	a->first = vm->spare_count;
	vm->spare_count += a->count;
	return 0;
}
