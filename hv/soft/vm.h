/* SPDX-License-Identifier: MIT */
/* vm.h - the ioctls' workers: vcpu.c (vCPUs, running) and view.c (EPT). 0 or -errno. */
#ifndef HVI_SOFT_VM_H
#define HVI_SOFT_VM_H

#include "more.h"

struct cpu *vcpu_new(struct vm *vm, u32 index);
void vcpu_free(struct cpu *c);
int vcpu_run(struct vm *vm, struct hvi_run *run);
int vcpu_op(struct vm *vm, unsigned long request, const struct hvi_vcpu_op *op);
int vcpu_get_xsave(struct vm *vm, const struct hvi_xsave *a);
int vcpu_set_xsave(struct vm *vm, const struct hvi_xsave *a);
int vcpu_list_msrs(struct vm *vm, struct hvi_msrs *a);
int vcpu_msrs(struct vm *vm, const struct hvi_msrs *a, bool set);
int vcpu_mtrr(struct vm *vm, struct hvi_mtrr *a);

int ept_set(struct vm *vm, const struct hvi_ept *a);
int ept_get(struct vm *vm, const struct hvi_ept *a);
int view_create(struct vm *vm, struct hvi_view *a);
int view_destroy(struct vm *vm, const struct hvi_view *a);
int view_remap(struct vm *vm, const struct hvi_remap *a);
int view_add_spare(struct vm *vm, struct hvi_spare *a);
int ve_set(struct vm *vm, const struct hvi_ve *a);
int ve_pages(struct vm *vm, const struct hvi_ve_pages *a);
int spp_set(struct vm *vm, const struct hvi_spp *a);
bool view_ok(const struct vm *vm, u32 view);
bool view_in_ram(const struct vm *vm, u64 gfn, u64 count);
void view_free(struct view *v);

#endif
