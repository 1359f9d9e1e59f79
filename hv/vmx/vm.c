/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* vm.c - a VM: creation, intercepts, its lock, its end. */
#include <linux/sched.h>
#include "hvi_vmx.h"

atomic_t vm_count = ATOMIC_INIT(0);
static atomic64_t last_id = ATOMIC64_INIT(0);

struct vm *vm_new(void)
{
	struct vm *vm = kvzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);

	if (!vm)
		return NULL;
	vm->id = atomic64_inc_return(&last_id);
	mutex_init(&vm->lock);
	mutex_init(&vm->ram_lock);
	init_waitqueue_head(&vm->wake);
	vm->io_bitmap = (unsigned long *)__get_free_pages(GFP_KERNEL_ACCOUNT, 1);
	vm->io_silent = bitmap_zalloc(PORTS, GFP_KERNEL_ACCOUNT);
	vm->msr_bitmap = (unsigned long *)__get_free_page(GFP_KERNEL_ACCOUNT);
	vm->batch = (void *)__get_free_page(GFP_KERNEL_ACCOUNT);
	atomic_inc(&vm_count);
	if (!vm->batch || !vm->io_bitmap || !vm->io_silent || !vm->msr_bitmap || view_init(vm, 0)) {
		vm_free(vm);
		return NULL;
	}
	memset(vm->io_bitmap, 0xff, 2 * PAGE_SIZE);
	msr_bitmap_init(vm);
	return vm;
}

void vm_free(struct vm *vm)
{
	u32 i;

	for (i = 0; i < vm->ncpus; i++)
		vcpu_free(vm->cpu[i]);
	for (i = 0; i < HVI_MAX_VIEWS; i++)
		if (vm->view[i].used)
			view_free(vm, i);
	mem_free(vm);
	free_pages((unsigned long)vm->io_bitmap, 1);
	bitmap_free(vm->io_silent);
	free_page((unsigned long)vm->msr_bitmap);
	free_page((unsigned long)vm->batch);
	kvfree(vm);
	atomic_dec(&vm_count);
}

/* Also while the VM runs: its thread comes out of the guest and makes room. */
int vm_lock_held(struct vm *vm)
{
	struct task_struct *runner;
	int err;

	atomic_inc(&vm->waiters);
	smp_mb();
	rcu_read_lock();
	runner = READ_ONCE(vm->runner);
	if (runner)
		kick_process(runner);
	rcu_read_unlock();
	wake_up(&vm->wake);
	err = mutex_lock_killable(&vm->lock);
	if (atomic_dec_and_test(&vm->waiters))
		wake_up(&vm->wake);
	return err;
}

int vm_create(struct vm *vm, const struct hvi_create *a)
{
	u32 i;

	if (vm->ncpus)
		return -EBUSY;
	if (a->flags || !a->vcpus || a->vcpus > HVI_MAX_VCPUS)
		return -EINVAL;
	cpuid_default(vm);
	vm->stopped_at = rdtsc();
	for (i = 0; i < a->vcpus; i++) {
		struct vcpu *v = vcpu_new(vm, i);

		if (!v) {
			while (i--) {
				vcpu_free(vm->cpu[i]);
				vm->cpu[i] = NULL;
			}
			return -ENOMEM;
		}
		vm->cpu[i] = v;
		state_reset(v);
	}
	smp_store_release(&vm->ncpus, a->vcpus);
	return 0;
}

/* ---- intercepts --------------------------------------------------------------------------- */

static int flag(bool *f, const struct hvi_intercept *a)
{
	if (a->mask > 1)
		return -EINVAL;
	*f = a->mask;
	return 0;
}

/* The CPU's bitmaps keep all their bits: behind a port without one stand the host's devices. */
static int ports(struct vm *vm, const struct hvi_intercept *a)
{
	u32 first = a->index & 0xffff, last = a->index >> 16;

	if (a->mask > 1 || last < first)
		return -EINVAL;
	if (a->mask)
		bitmap_clear(vm->io_silent, first, last - first + 1);
	else
		bitmap_set(vm->io_silent, first, last - first + 1);
	vm->any_silent |= !a->mask;
	return 0;
}

int vm_intercept(struct vm *vm, const struct hvi_intercept *a)
{
	vm->controls_gen++;
	switch (a->kind) {
	case HVI_INTERCEPT_MSR_READ:
		return msr_intercept(vm, a, false);
	case HVI_INTERCEPT_MSR_WRITE:
		return msr_intercept(vm, a, true);
	case HVI_INTERCEPT_CR0_WRITE:
		vm->cr0_exit = a->mask;
		return 0;
	case HVI_INTERCEPT_CR3_WRITE:
		return flag(&vm->cr3_exit, a);
	case HVI_INTERCEPT_CR4_WRITE:
		vm->cr4_exit = a->mask;
		return 0;
	case HVI_INTERCEPT_CR8_WRITE:
		return flag(&vm->cr8_exit, a);
	case HVI_INTERCEPT_DTR:
		if (a->mask > 0xff)
			return -EINVAL;
		if (a->mask && !(vmx_caps.caps & HVI_CAP_DTR_EXIT))
			return -EOPNOTSUPP;
		vm->dtr_exit = (u32)a->mask;
		return 0;
	case HVI_INTERCEPT_XSETBV:
		return flag(&vm->xsetbv_exit, a);
	case HVI_INTERCEPT_VMCALL:
		return flag(&vm->vmcall_exit, a);
	case HVI_INTERCEPT_EXCEPTION:
		if (a->mask >> 32)
			return -EINVAL;
		vm->exception_exit = (u32)a->mask;
		return 0;
	case HVI_INTERCEPT_IO:
		return ports(vm, a);
	case HVI_INTERCEPT_CPUID:
		return flag(&vm->cpuid_exit, a);
	case HVI_INTERCEPT_HLT:
		return flag(&vm->hlt_exit, a);
	default:
		return -EINVAL;
	}
}
