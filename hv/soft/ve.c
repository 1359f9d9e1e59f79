/* SPDX-License-Identifier: MIT */
/*
 * ve.c - what a guest may do without an exit (hvi.h): take violations as #VE,
 * switch views by VMFUNC 0, write the open parts of a page without W.
 */
#include <errno.h>
#include <stdlib.h>
#include "sys.h"
#include "vm.h"

#define PART_SHIFT	7	/* 128 bytes */

/* ---- requests ------------------------------------------------------------------------------ */

int ve_set(struct vm *vm, const struct hvi_ve *a)
{
	const u32 *views = (const void *)(uintptr_t)a->views;
	struct cpu_more *m;
	u32 frame = NO_FRAME;

	if (a->vcpu >= vm->ncpus || a->enable > 1 || a->reserved || a->view_count > HVI_MAX_VIEWS)
		return -EINVAL;
	if (a->view_count && !views)
		return -EFAULT;
	m = vm->cpu[a->vcpu]->more;
	for (u32 i = 0; i < a->view_count; i++) {
		if (!view_ok(vm, views[i]))
			return -EINVAL;
		for (u32 k = 0; k < i; k++)
			if (views[k] == views[i])
				return -EINVAL;
	}
	if (a->enable) {
		u32 page = mmu_ram_page(vm, a->info_gpa / PAGE);

		if (a->info_gpa % PAGE)
			return -EINVAL;
		if (page == NO_FRAME)
			return -EFAULT;
		frame = SPARE_FRAMES + page;
	}
	for (u32 i = 0; i < a->view_count; i++)
		if (!m->set[views[i]] && mmu_add_set(vm->cpu[a->vcpu], views[i]))
			return -ENOMEM;
	m->ve_frame = frame;
	m->nviews = a->view_count;
	for (u32 i = 0; i < m->nviews; i++)
		m->views[i] = views[i];
	return 0;
}

int ve_pages(struct vm *vm, const struct hvi_ve_pages *a)
{
	struct view *v;

	if (!view_ok(vm, a->view) || a->convertible > 1 || !a->count)
		return -EINVAL;
	if (a->gfn > PHYS_MASK / PAGE || a->count > PHYS_MASK / PAGE + 1 || !view_in_ram(vm, a->gfn, a->count))
		return -EFAULT;
	v = &vm->view[a->view];
	if (!v->ve) {
		if (!a->convertible)
			return 0;
		v->ve = calloc(vm->ram_size / PAGE, 1);
		if (!v->ve)
			return -ENOMEM;
	}
	for (u64 i = 0; i < a->count; i++)
		v->ve[mmu_ram_page(vm, a->gfn + i)] = (u8)a->convertible;
	return 0;
}

/* A part that may be written has no tag in the TLB, so nothing is to be forgotten. */
int spp_set(struct vm *vm, const struct hvi_spp *a)
{
	u32 page = mmu_ram_page(vm, a->gfn);
	struct view *v;

	if (!view_ok(vm, a->view))
		return -EINVAL;
	if (page == NO_FRAME)
		return -EFAULT;
	v = &vm->view[a->view];
	if (!v->parts) {
		if (!a->mask)
			return 0;
		v->parts = calloc(vm->ram_size / PAGE, sizeof(u32));
		if (!v->parts)
			return -ENOMEM;
	}
	v->parts[page] = a->mask;
	return 0;
}

/* ---- in the guest ---------------------------------------------------------------------------- */

u32 ve_index(const struct cpu *c, u32 view)
{
	for (u32 i = 0; i < c->more->nviews; i++)
		if (c->more->views[i] == view)
			return i;
	return ~0u;
}

/* SDM 25.5.7.2 */
struct information {
	u32 reason, busy;
	u64 qualification, gla, gpa;
	u16 index;
} __attribute__((packed));

void ve_raise(struct cpu *c, const struct op *o, u64 gpa, u64 la, u32 access, u32 rights)
{
	struct cpu_more *m = c->more;
	struct vm *vm = m->vm;
	const struct view *v = &vm->view[m->view];
	u32 page = mmu_ram_page(vm, gpa >> 12);
	struct information *info, now;

	/* SDM 25.5.7.1 */
	if (m->ve_frame == NO_FRAME || !v->ve || page == NO_FRAME || !v->ve[page] || !(c->cr0 & 1) || m->delivering)
		return;
	info = (void *)frame_host(vm, m->ve_frame);
	memcpy(&now, info, sizeof(now));
	if (now.busy)
		return;
	now = (struct information){
		.reason = 48, .busy = ~0u, .gla = la, .gpa = gpa, .index = (u16)ve_index(c, m->view),
		/* SDM table 27-7: the access, the rights, a linear address (bit 7), not of the page walk (bit 8) */
		.qualification = (access & HVI_RWX) | rights << 3 | 1u << 7 | (access & HVI_ACCESS_WALK ? 0 : 1u << 8),
	};
	memcpy(info, &now, sizeof(now));
	if (vm->frames[m->ve_frame].code)
		block_written(c, m->ve_frame, 0, sizeof(now));
	cpu_raise(c, o, X_VE, 0);
}

/* A write to a page with R and without W, which stays in one open part. */
bool spp_allows(const struct cpu *c, u64 gpa, u32 len)
{
	const struct cpu_more *m = c->more;
	const struct view *v = &m->vm->view[m->view];
	u32 first = (u32)(gpa & 0xfff) >> PART_SHIFT, last = (u32)((gpa & 0xfff) + len - 1) >> PART_SHIFT;

	return v->parts && !m->nviews && first == last && (v->parts[mmu_ram_page(m->vm, gpa >> 12)] >> first & 1);
}

/* VMFUNC: whatever may not be done is no instruction. */
static HANDLER(vmfunc)
{
	struct cpu_more *m = c->more;
	u32 index = (u32)c->gpr[HVI_RCX];

	if ((u32)c->gpr[HVI_RAX] || index >= m->nviews)
		raise_ud(c, o);
	m->view = m->views[index];
	if (m->step_back != ~0u)
		m->step_back = m->view;	/* the guest's choice outlasts the step */
	mmu_setup(c);
	CONTINUE(c, o);
}

enum xlate xlate_vmfunc(const struct insn *in, struct op *o)
{
	if (in->z.mnemonic != ZYDIS_MNEMONIC_VMFUNC)
		return XLATE_NO;
	o->fn = vmfunc;
	return XLATE_END;
}
