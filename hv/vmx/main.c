/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* main.c - /dev/hvi: one open file is one VM. Every number from user space is checked by the ioctls' workers. */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include "hvi_vmx.h"


static int hvi_open(struct inode *inode, struct file *file)
{
	struct vm *vm;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	vm = vm_new();
	if (!vm)
		return -ENOMEM;
	file->private_data = vm;
	return 0;
}

static int hvi_release(struct inode *inode, struct file *file)
{
	vm_free(file->private_data);
	return 0;
}

/* ---- mmap ----------------------------------------------------------------------------------- */

static vm_fault_t hvi_fault(struct vm_fault *vmf)
{
	struct vm *vm = vmf->vma->vm_private_data;
	u64 at = (u64)vmf->pgoff << PAGE_SHIFT;
	struct page *p = NULL;

	if (at >= HVI_MMAP_SPARE) {
		p = mem_spare(vm, (at - HVI_MMAP_SPARE) >> PAGE_SHIFT);
	} else if (at >= HVI_MMAP_VCPU) {
		u64 index = (at - HVI_MMAP_VCPU) >> PAGE_SHIFT;

		if (index < smp_load_acquire(&vm->ncpus))
			p = vm->cpu[index]->page_page;
	} else {
		p = ram_page_mapped(vm, at >> PAGE_SHIFT);
		if (IS_ERR(p))
			return PTR_ERR(p) == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
	}
	if (!p)
		return VM_FAULT_SIGBUS;
	get_page(p);
	vmf->page = p;
	return 0;
}

static const struct vm_operations_struct hvi_vm_ops = {
	.fault = hvi_fault,
};

static int hvi_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct vm *vm = file->private_data;
	u64 first = vma->vm_pgoff, pages = vma_pages(vma), base, have;

	if (first >= HVI_MMAP_SPARE >> PAGE_SHIFT) {
		base = HVI_MMAP_SPARE >> PAGE_SHIFT;
		have = smp_load_acquire(&vm->spare_count);
	} else if (first >= HVI_MMAP_VCPU >> PAGE_SHIFT) {
		base = HVI_MMAP_VCPU >> PAGE_SHIFT;
		have = smp_load_acquire(&vm->ncpus);
		if (pages > 1)
			return -EINVAL;
	} else {
		base = 0;
		have = READ_ONCE(vm->ram_pages);
	}
	if (first - base >= have || pages > have - (first - base))
		return -EINVAL;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY);
	vma->vm_private_data = vm;
	vma->vm_ops = &hvi_vm_ops;
	return 0;
}

/* ---- ioctl ------------------------------------------------------------------------------------ */

static int get_info(struct hvi_info *info)
{
	if (info->size < sizeof(*info)) {
		info->abi_version = HVI_ABI_VERSION;	/* a caller of another version can name both */
		return -EINVAL;
	}
	*info = (struct hvi_info){
		.size = sizeof(*info), .abi_version = HVI_ABI_VERSION, .caps = vmx_caps.caps,
		.max_vcpus = HVI_MAX_VCPUS, .max_views = HVI_MAX_VIEWS, .max_spare_pages = HVI_MAX_SPARE_PAGES,
		.xsave_size = vmx_caps.xsave_size, .xcr0_mask = vmx_caps.xcr0, .max_gfn = vmx_caps.max_gfn,
		.tsc_khz = tsc_khz, .backend = "vmx",
	};
	return 0;
}

union argument {
	struct hvi_info info;
	struct hvi_create create;
	struct hvi_memory memory;
	struct hvi_cpuid cpuid;
	struct hvi_intercept intercept;
	struct hvi_vcpu_op op;
	struct hvi_ept ept;
	struct hvi_view view;
	struct hvi_remap remap;
	struct hvi_spare spare;
	struct hvi_spp spp;
	struct hvi_ve ve;
	struct hvi_ve_pages ve_pages;
	struct hvi_xsave xsave;
	struct hvi_msrs msrs;
	struct hvi_mtrr mtrr;
};

static int query_mtrr(struct vm *vm, struct hvi_mtrr *a)
{
	a->type = mtrr_type(vm->cpu[0], a->gpa);
	return 0;
}

/* The VM's lock is held. */
static int locked(struct vm *vm, unsigned int request, union argument *a)
{
	switch (request) {
	case HVI_CREATE: return vm_create(vm, &a->create);
	case HVI_ADD_MEMORY: return mem_add(vm, &a->memory);
	case HVI_SET_CPUID: return cpuid_set(vm, &a->cpuid);
	}
	if (!vm->ncpus)
		return -EINVAL;
	switch (request) {
	case HVI_INTERCEPT: return vm_intercept(vm, &a->intercept);
	case HVI_FETCH: case HVI_RESET: return vcpu_op(vm, request, &a->op);
	case HVI_EPT_GET: return ept_get(vm, &a->ept);
	case HVI_VIEW_CREATE: return view_create(vm, &a->view);
	case HVI_VIEW_DESTROY: return view_destroy(vm, &a->view);
	case HVI_REMAP: return view_remap(vm, &a->remap);
	case HVI_ADD_SPARE: return mem_add_spare(vm, &a->spare);
	case HVI_SPP_SET: return spp_set(vm, &a->spp);
	case HVI_VE_SET: return ve_set(vm, &a->ve);
	case HVI_VE_PAGES: return ve_pages(vm, &a->ve_pages);
	case HVI_GET_XSAVE: return xsave_get(vm, &a->xsave);
	case HVI_SET_XSAVE: return xsave_put(vm, &a->xsave);
	case HVI_LIST_MSRS: return msr_list(vm, &a->msrs);
	case HVI_GET_MSRS: return msr_access(vm, &a->msrs, false);
	case HVI_SET_MSRS: return msr_access(vm, &a->msrs, true);
	case HVI_QUERY_MTRR: return query_mtrr(vm, &a->mtrr);
	default: return -ENOTTY;
	}
}

static bool known(unsigned int request)
{
	switch (request) {
	case HVI_GET_INFO: case HVI_CREATE: case HVI_ADD_MEMORY: case HVI_GET_CPUID: case HVI_SET_CPUID:
	case HVI_INTERCEPT: case HVI_PAUSE: case HVI_RESUME: case HVI_KICK: case HVI_FETCH:
	case HVI_RESET: case HVI_EPT_GET: case HVI_VIEW_CREATE: case HVI_VIEW_DESTROY:
	case HVI_REMAP: case HVI_ADD_SPARE: case HVI_SPP_SET: case HVI_VE_SET: case HVI_VE_PAGES:
	case HVI_GET_XSAVE: case HVI_SET_XSAVE: case HVI_LIST_MSRS: case HVI_GET_MSRS: case HVI_SET_MSRS: case HVI_QUERY_MTRR:
		return true;
	default:
		return false;
	}
}

static int without_lock(struct vm *vm, unsigned int request, union argument *a)
{
	switch (request) {
	case HVI_GET_INFO: return get_info(&a->info);
	case HVI_GET_CPUID: return cpuid_get(&a->cpuid);
	default:
		return smp_load_acquire(&vm->ncpus) ? vcpu_op(vm, request, &a->op) : -EINVAL;
	}
}

/*
 * Arguments are whole QWORDs, a few: moving them so costs a fifth of what
 * copy_from_user's and copy_to_user's checks of a variable size do.
 */
static_assert(sizeof(struct hvi_create) % 8 == 0 && sizeof(struct hvi_view) % 8 == 0 &&
	      sizeof(struct hvi_spare) % 8 == 0 && sizeof(struct hvi_vcpu_op) % 8 == 0);

static __always_inline int get_argument(void *a, const u64 __user *from, u32 size)
{
	u64 *to = a;
	u32 i;

	if (!user_access_begin(from, size))
		return -EFAULT;
	for (i = 0; i < size / 8; i++)
		unsafe_get_user(to[i], &from[i], fault);
	user_access_end();
	return 0;
fault:
	user_access_end();
	return -EFAULT;
}

static __always_inline int put_argument(u64 __user *to, const void *a, u32 size)
{
	const u64 *from = a;
	u32 i;

	if (!user_access_begin(to, size))
		return -EFAULT;
	for (i = 0; i < size / 8; i++)
		unsafe_put_user(from[i], &to[i], fault);
	user_access_end();
	return 0;
fault:
	user_access_end();
	return -EFAULT;
}

static noinline long ioctl_run(struct vm *vm, u64 __user *user)
{
	struct hvi_run a;
	int r;

	if (get_argument(&a, user, sizeof(a)))
		return -EFAULT;
	r = run(vm, &a);
	return r ? r : put_argument(user, &a, sizeof(a));
}

static noinline long ioctl_ept_set(struct vm *vm, const u64 __user *user)
{
	struct hvi_ept a;
	int r;

	if (get_argument(&a, user, sizeof(a)))
		return -EFAULT;
	r = vm_lock(vm);
	if (r)
		return r;
	r = vm->ncpus ? ept_set(vm, &a) : -EINVAL;
	vm_unlock(vm);
	return r;
}

static noinline long ioctl_other(struct vm *vm, unsigned int request, u64 __user *user)
{
	union argument a;
	u32 size = _IOC_SIZE(request);
	int r;

	if (!known(request))
		return -ENOTTY;
	if (get_argument(&a, user, size))
		return -EFAULT;
	switch (request) {
	case HVI_GET_INFO: case HVI_GET_CPUID: case HVI_PAUSE: case HVI_RESUME: case HVI_KICK:
		r = without_lock(vm, request, &a);
		break;
	default:
		r = vm_lock(vm);
		if (r)
			return r;
		r = locked(vm, request, &a);
		vm_unlock(vm);
	}
	/* -EINVAL of HVI_GET_INFO and -E2BIG tell something in the structure. */
	if ((_IOC_DIR(request) & _IOC_READ) && (!r || r == -E2BIG || request == HVI_GET_INFO) &&
	    put_argument(user, &a, size))
		return -EFAULT;
	return r;
}

/* The first two are what an engine does all the time. */
static long hvi_ioctl(struct file *file, unsigned int request, unsigned long arg)
{
	struct vm *vm = file->private_data;
	u64 __user *user = (u64 __user *)arg;

	if (likely(request == HVI_RUN))
		return ioctl_run(vm, user);
	if (request == HVI_EPT_SET)
		return ioctl_ept_set(vm, user);
	return ioctl_other(vm, request, user);
}

static const struct file_operations hvi_fops = {
	.owner = THIS_MODULE,
	.open = hvi_open,
	.release = hvi_release,
	.unlocked_ioctl = hvi_ioctl,
	.mmap = hvi_mmap,
	.llseek = noop_llseek,
};

static struct miscdevice hvi_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "hvi",
	.fops = &hvi_fops,
	.mode = 0600,
};

static int __init hvi_init(void)
{
	int err = vmx_init();

	if (err)
		return err;
	err = misc_register(&hvi_device);
	if (err) {
		vmx_exit();
		return err;
	}
	pr_info("hvi: ABI %u, capabilities %#llx, %u guest-physical bits\n", HVI_ABI_VERSION, vmx_caps.caps, vmx_caps.phys_bits);
	return 0;
}

static void __exit hvi_exit(void)
{
	misc_deregister(&hvi_device);
	vmx_exit();
	WARN_ON(atomic_read(&vm_count));
}

module_init(hvi_init);
module_exit(hvi_exit);
MODULE_DESCRIPTION("hypervisor introspection: VT-x below /dev/hvi");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(__stringify(HVI_ABI_VERSION));
