/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * mem.c - guest RAM and spare pages. A page is made when the guest or the
 * engine first touches it; one that stands for a file is then a private copy.
 */
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/sched/signal.h>
#include "hvi_vmx.h"

#define CHUNK		512u		/* pages of a large one */
#define CHUNK_ORDER	9
#define GFP_GUEST	(GFP_KERNEL_ACCOUNT | __GFP_ZERO)

/* Page number in RAM of a GFN, or NO_PAGE. */
u32 ram_index(const struct vm *vm, u64 gfn)
{
	u32 i;

	for (i = 0; i < vm->nslots; i++) {
		const struct slot *s = &vm->slot[i];

		if (gfn - s->gfn < s->pages)
			return s->first + (u32)(gfn - s->gfn);
	}
	return NO_PAGE;
}

static struct slot *slot_of(const struct vm *vm, u32 index)
{
	u32 n = smp_load_acquire(&vm->nslots), i;

	for (i = 0; i < n; i++)
		if (index - vm->slot[i].first < vm->slot[i].pages)
			return (struct slot *)&vm->slot[i];
	return NULL;
}

struct page *ram_page_present(const struct vm *vm, u32 index)
{
	struct slot *s = slot_of(vm, index);

	return s ? smp_load_acquire(&s->page[index - s->first]) : NULL;
}

static struct page *file_page(struct slot *s, u32 n, gfp_t gfp)
{
	struct page *p = alloc_page(gfp);
	loff_t at = s->file_offset + ((u64)n << PAGE_SHIFT);
	size_t done = 0;

	if (!p)
		return ERR_PTR(-ENOMEM);
	while (done < PAGE_SIZE) {
		ssize_t got = kernel_read(s->file, page_address(p) + done, PAGE_SIZE - done, &at);

		if (got < 0) {
			__free_page(p);
			return ERR_PTR(got);
		}
		if (!got)
			break;		/* behind the file's end: zeros */
		done += got;
	}
	return p;
}

/* 2 MiB at once where the guest address allows a large page and nothing of it exists yet. */
static bool chunk(struct slot *s, u32 n)
{
	u64 gfn = (s->gfn + n) & ~(u64)(CHUNK - 1);
	struct page *p;
	u32 first, i;

	if (gfn < s->gfn || gfn + CHUNK > s->gfn + s->pages)
		return false;
	first = (u32)(gfn - s->gfn);
	for (i = 0; i < CHUNK; i++)
		if (s->page[first + i])
			return false;
	p = alloc_pages(GFP_GUEST | __GFP_NOWARN | __GFP_NORETRY, CHUNK_ORDER);
	if (!p)
		return false;
	split_page(p, CHUNK_ORDER);
	for (i = 0; i < CHUNK; i++)
		smp_store_release(&s->page[first + i], p + i);
	return true;
}

static struct page *make_page(struct vm *vm, u32 index, gfp_t gfp)
{
	struct slot *s = slot_of(vm, index);
	u32 n;
	struct page *p;

	if (!s)
		return ERR_PTR(-EFAULT);
	n = index - s->first;
	p = smp_load_acquire(&s->page[n]);
	if (p)
		return p;
	mutex_lock(&vm->ram_lock);
	p = s->page[n];
	if (!p && s->file) {
		p = file_page(s, n, gfp);
		if (!IS_ERR(p))
			smp_store_release(&s->page[n], p);
	} else if (!p && chunk(s, n)) {
		p = s->page[n];
	} else if (!p) {
		p = alloc_page(gfp);
		if (p)
			smp_store_release(&s->page[n], p);
		else
			p = ERR_PTR(-ENOMEM);
	}
	mutex_unlock(&vm->ram_lock);
	return p;
}

/*
 * For the guest. What it takes is no process's resident memory, so the kernel
 * would kill others for it: HVI_RUN fails instead.
 */
struct page *ram_page(struct vm *vm, u32 index)
{
	return make_page(vm, index, GFP_MODEST | __GFP_ZERO);
}

/* For a page fault of a process, which can be killed for its own. */
struct page *ram_page_mapped(struct vm *vm, u32 index)
{
	return make_page(vm, index, GFP_GUEST);
}

/* kernel_read logs a warning for what it cannot read, such as most files of /proc. */
static bool file_ok(const struct file *f)
{
	return S_ISREG(file_inode(f)->i_mode) && (f->f_mode & FMODE_READ) && (f->f_mode & FMODE_CAN_READ) &&
	       f->f_op->read_iter && !f->f_op->read;
}

int mem_add(struct vm *vm, struct hvi_memory *a)
{
	struct slot *s = &vm->slot[vm->nslots];
	u64 pages = a->size >> PAGE_SHIFT, gfn = a->gpa >> PAGE_SHIFT, limit = (vmx_caps.max_gfn + 1) << PAGE_SHIFT;
	struct view *v = &vm->view[0];
	struct file *file = NULL;
	struct page **page;
	u32 *remap = NULL;
	u32 old, i;
	u8 *rights;

	if (vm->started || vm->nslots == HVI_MAX_MEMORY_SLOTS)
		return -EBUSY;
	if (a->flags || a->gpa & ~PAGE_MASK || !a->size || a->size & ~PAGE_MASK || a->fd_offset & ~PAGE_MASK || a->fd < -1)
		return -EINVAL;
	if (a->gpa >= limit || a->size > limit - a->gpa)
		return -EINVAL;
	old = vm->ram_pages;
	if (a->size > MAX_RAM - ((u64)old << PAGE_SHIFT))
		return -ENOMEM;
	if (a->fd_offset > LLONG_MAX - a->size)
		return -EINVAL;
	for (i = 0; i < vm->nslots; i++)
		if (gfn < vm->slot[i].gfn + vm->slot[i].pages && vm->slot[i].gfn < gfn + pages)
			return -EEXIST;
	for (i = 1; i < HVI_MAX_VIEWS; i++)
		if (vm->view[i].used)
			return -EBUSY;		/* views are as long as RAM */
	if (a->fd >= 0) {
		file = fget(a->fd);
		if (!file)
			return -EBADF;
		if (!file_ok(file)) {
			fput(file);
			return -EACCES;
		}
	}
	page = kvcalloc(pages, sizeof(*page), GFP_MODEST);
	rights = kvmalloc(old + pages, GFP_MODEST);
	if (v->remap)
		remap = kvmalloc_array(old + pages, sizeof(u32), GFP_MODEST);
	if (!page || !rights || (v->remap && !remap)) {
		kvfree(page);
		kvfree(rights);
		kvfree(remap);
		if (file)
			fput(file);
		return -ENOMEM;
	}
	if (old)
		memcpy(rights, v->rights, old);
	memset(rights + old, HVI_RWX, pages);
	kvfree(v->rights);
	v->rights = rights;
	v->gen++;
	if (remap) {
		memcpy(remap, v->remap, old * sizeof(u32));
		memset(remap + old, 0xff, pages * sizeof(u32));
		kvfree(v->remap);
		v->remap = remap;
	}
	mutex_lock(&vm->ram_lock);
	*s = (struct slot){ .gfn = gfn, .pages = pages, .first = old, .file = file,
			    .file_offset = a->fd_offset, .page = page };
	smp_store_release(&vm->nslots, vm->nslots + 1);		/* page faults look there without a lock */
	WRITE_ONCE(vm->ram_pages, old + pages);
	mutex_unlock(&vm->ram_lock);
	vm->top_gfn = max(vm->top_gfn, gfn + pages);
	a->ram_offset = (u64)old << PAGE_SHIFT;
	return 0;
}

int mem_add_spare(struct vm *vm, struct hvi_spare *a)
{
	u32 i;

	if (!a->count)
		return -EINVAL;
	if (a->count > HVI_MAX_SPARE_PAGES - vm->spare_count)
		return -ENOSPC;
	if (!vm->spare) {
		struct page **spare = kvcalloc(HVI_MAX_SPARE_PAGES, sizeof(*spare), GFP_KERNEL_ACCOUNT);

		if (!spare)
			return -ENOMEM;
		vm->spare = spare;
	}
	for (i = 0; i < a->count; i++) {
		struct page *p = fatal_signal_pending(current) ? NULL : alloc_page(GFP_MODEST | __GFP_ZERO);

		if (!p) {
			while (i--) {
				__free_page(vm->spare[vm->spare_count + i]);
				vm->spare[vm->spare_count + i] = NULL;
			}
			return -ENOMEM;
		}
		vm->spare[vm->spare_count + i] = p;
		cond_resched();
	}
	a->first = vm->spare_count;
	smp_store_release(&vm->spare_count, vm->spare_count + a->count);
	return 0;
}

struct page *mem_spare(struct vm *vm, u32 index)
{
	return index < smp_load_acquire(&vm->spare_count) ? vm->spare[index] : NULL;
}

void mem_free(struct vm *vm)
{
	u32 i;
	u64 k;

	for (i = 0; i < vm->nslots; i++) {
		struct slot *s = &vm->slot[i];

		for (k = 0; k < s->pages; k++) {
			if (s->page[k])
				__free_page(s->page[k]);
			if (!(k & 0xffff))
				cond_resched();
		}
		kvfree(s->page);
		if (s->file)
			fput(s->file);
	}
	for (i = 0; i < vm->spare_count; i++)
		__free_page(vm->spare[i]);
	kvfree(vm->spare);
}
