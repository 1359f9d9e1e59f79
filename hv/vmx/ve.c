/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * ve.c - what a guest may do without an exit: change its view by VMFUNC 0
 * (EPTP switching, SDM 25.5.6.3) and take violations as #VE (SDM 25.5.7).
 *
 * The EPTP list holds the roots of the views that the engine named, and zeros,
 * which are no EPTP: an index beyond them exits, like every other VMFUNC. While
 * one instruction runs with a private EPT or in another view (step.c), VM
 * function 0 is off: its VMFUNC exits too, and is done here.
 */
#include <linux/err.h>
#include <linux/uaccess.h>
#include "hvi_vmx.h"

#define EPTP_SWITCHING	1ull		/* of the VM-function controls */
#define NO_INDEX	0xffffu

u32 ve_index(const struct vcpu *v, u32 view)
{
	u32 i;

	for (i = 0; i < v->nviews; i++)
		if (v->views[i] == view)
			return i;
	return ~0u;
}

static int check_views(struct vm *vm, const struct hvi_ve *a, u32 *views)
{
	u32 i, k;

	if (a->view_count > HVI_MAX_VIEWS)
		return -EINVAL;
	if (copy_from_user(views, (void __user *)(uintptr_t)a->views, a->view_count * sizeof(*views)))
		return -EFAULT;
	for (i = 0; i < a->view_count; i++) {
		if (!view_ok(vm, views[i]))
			return -EINVAL;
		for (k = 0; k < i; k++)
			if (views[k] == views[i])
				return -EINVAL;
	}
	return 0;
}

int ve_set(struct vm *vm, const struct hvi_ve *a)
{
	struct vcpu *v = vcpu_of(vm, a->vcpu);
	u32 views[HVI_MAX_VIEWS], i;
	u64 info = 0;
	int err;

	if (!(vmx_caps.caps & (HVI_CAP_VE | HVI_CAP_EPTP_SWITCH)))
		return -EOPNOTSUPP;
	if (!v || a->enable > 1 || a->reserved)
		return -EINVAL;
	if ((a->enable && !(vmx_caps.caps & HVI_CAP_VE)) ||
	    (a->view_count && !(vmx_caps.caps & HVI_CAP_EPTP_SWITCH)))
		return -EOPNOTSUPP;
	err = check_views(vm, a, views);
	if (err)
		return err;
	if (a->enable) {
		u32 index = ram_index(vm, a->info_gpa >> PAGE_SHIFT);
		struct page *p;

		if (a->info_gpa & ~PAGE_MASK)
			return -EINVAL;
		if (index == NO_PAGE)
			return -EFAULT;
		p = ram_page(vm, index);	/* stays where it is for as long as the VM lives */
		if (IS_ERR(p))
			return PTR_ERR(p);
		info = page_to_phys(p);
	}
	if (a->view_count && !v->eptp_list) {
		v->eptp_list = (u64 *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
		if (!v->eptp_list)
			return -ENOMEM;
	}
	v->ve_info = info;
	v->nviews = a->view_count;
	memcpy(v->views, views, sizeof(*views) * v->nviews);
	for (i = 0; v->eptp_list && i < HVI_MAX_VIEWS; i++)
		v->eptp_list[i] = i < v->nviews ? ept_pointer(vm->view[views[i]].root) : 0;
	vm->controls_gen++;
	return 0;
}

int ve_pages(struct vm *vm, const struct hvi_ve_pages *a)
{
	if (!(vmx_caps.caps & HVI_CAP_VE))
		return -EOPNOTSUPP;
	if (a->convertible > 1)
		return -EINVAL;
	return ept_mark(vm, a->view, a->gfn, a->count, PAGE_VE, a->convertible);
}

void ve_free(struct vcpu *v)
{
	free_page((unsigned long)v->eptp_list);
}

/* ---- around an entry ------------------------------------------------------------------------ */

void ve_load(struct vcpu *v)
{
	u32 secondary = v->secondary_now & ~(SEC_VE | SEC_VMFUNC);

	if (v->ve_info) {
		secondary |= SEC_VE;
		vmcs_write(F_VE_INFO, v->ve_info);
	}
	if (v->nviews) {
		secondary |= SEC_VMFUNC;
		vmcs_write(F_EPTP_LIST, __pa(v->eptp_list));
		vmcs_write(F_VMFUNC_CTL, v->vmfunc_now = 0);
	}
	if (secondary != v->secondary_now)
		vmcs_write(F_SECONDARY, v->secondary_now = secondary);
	v->eptp_now = ~0ull;
}

/* Interrupts are off, eptp goes into the VMCS. */
void ve_enter(struct vcpu *v, u64 eptp)
{
	int cpu = raw_smp_processor_id();
	u64 functions = v->one || v->step_back != ~0u ? 0 : EPTP_SWITCHING;
	u32 i;

	if (eptp != v->eptp_now && (vmx_caps.caps & HVI_CAP_VE))
		vmcs_write(F_EPTP_INDEX, min(ve_index(v, v->view), NO_INDEX));
	if (!v->nviews)
		return;
	if (functions != v->vmfunc_now)
		vmcs_write(F_VMFUNC_CTL, v->vmfunc_now = functions);
	/* Any of them may be the next one that it runs in. */
	for (i = 0; i < v->nviews; i++) {
		struct view *view = &v->vm->view[v->views[i]];

		if (ept_test_stale(view, cpu))
			ept_invalidate(v, ept_pointer(view->root));
	}
}

void ve_follow(struct vcpu *v)
{
	u64 eptp;
	u32 i;

	if (!v->vmfunc_now)
		return;
	eptp = vmcs_read(F_EPTP);
	if (eptp == v->eptp_now)
		return;
	for (i = 0; i < v->nviews; i++)
		if (v->eptp_list[i] == eptp)
			v->view = v->views[i];
	v->eptp_now = eptp;
}

int exit_vmfunc(struct vcpu *v)
{
	u32 index = (u32)v->gpr[HVI_RCX];

	if ((u32)v->gpr[HVI_RAX] || index >= v->nviews)
		return inject_ud(v);
	skip(v, v->rip_len);
	v->view = v->views[index];
	return 0;
}
