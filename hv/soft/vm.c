/* SPDX-License-Identifier: MIT */
/*
 * vm.c - hvi.h as a library: open, ioctl, mmap, close. Every number that comes
 * from the caller is checked here.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "more.h"
#include "vm.h"

#define API __attribute__((visibility("default")))
#define MAX_VMS 256

static struct vm *vms[MAX_VMS];
static pthread_mutex_t vms_lock = PTHREAD_MUTEX_INITIALIZER;

static struct vm *vm_of(long handle)
{
	return handle >= 1 && handle <= MAX_VMS ? __atomic_load_n(&vms[handle - 1], __ATOMIC_ACQUIRE) : NULL;
}

static void *reserve(u64 bytes)
{
	void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void *zero_pages(u64 bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

#define FRAMES_BYTES ((SPARE_BYTES + MAX_RAM) / PAGE * sizeof(struct frame))

static void vm_free(struct vm *vm)
{
	for (u32 i = 0; i < vm->ncpus; i++)
		vcpu_free(vm->cpu[i]);
	for (u32 i = 0; i < HVI_MAX_VIEWS; i++)
		view_free(&vm->view[i]);
	block_free(vm);
	if (vm->base)
		munmap(vm->base, SPARE_BYTES + MAX_RAM);
	if (vm->frames)
		munmap(vm->frames, FRAMES_BYTES);
	free(vm);
}

API long hvi_soft_open(void)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	long handle = -ENFILE;

	if (!vm)
		return -ENOMEM;
	vm->base = reserve(SPARE_BYTES + MAX_RAM);
	vm->frames = zero_pages(FRAMES_BYTES);
	vm->view[0].used = true;
	if (!vm->base || !vm->frames || block_init(vm)) {
		vm_free(vm);
		return -ENOMEM;
	}
	pthread_mutex_lock(&vms_lock);
	for (long i = 0; i < MAX_VMS; i++)
		if (!vms[i]) {
			__atomic_store_n(&vms[i], vm, __ATOMIC_RELEASE);
			handle = i + 1;
			break;
		}
	pthread_mutex_unlock(&vms_lock);
	if (handle < 0)
		vm_free(vm);
	return handle;
}

API int hvi_soft_close(long handle)
{
	struct vm *vm;

	pthread_mutex_lock(&vms_lock);
	vm = vm_of(handle);
	if (vm)
		vms[handle - 1] = NULL;
	pthread_mutex_unlock(&vms_lock);
	if (!vm)
		return -EBADF;
	vm_free(vm);
	return 0;
}

API void *hvi_soft_mmap(long handle, u64 offset, u64 size)
{
	struct vm *vm = vm_of(handle);

	if (!vm || !size)
		return NULL;
	if (offset >= HVI_MMAP_SPARE) {
		u64 at = offset - HVI_MMAP_SPARE, all = (u64)vm->spare_count * PAGE;

		return at % PAGE || at >= all || size > all - at ? NULL : vm->base + at;
	}
	if (offset >= HVI_MMAP_VCPU) {
		u64 at = offset - HVI_MMAP_VCPU;

		if (at % HVI_VCPU_SIZE || at / HVI_VCPU_SIZE >= vm->ncpus || size > HVI_VCPU_SIZE)
			return NULL;
		return vm->cpu[at / HVI_VCPU_SIZE]->more->page;
	}
	if (offset % PAGE || offset >= vm->ram_size || size > vm->ram_size - offset)
		return NULL;
	return vm->base + SPARE_BYTES + offset;
}

/* ---- building ------------------------------------------------------------------------------ */

static int get_info(struct hvi_info *info)
{
	struct hvi_info out = {
		.size = sizeof(out),
		.abi_version = HVI_ABI_VERSION,
		.caps = HVI_CAP_EXEC_ONLY | HVI_CAP_EPT_AD | HVI_CAP_DTR_EXIT | HVI_CAP_MTF |
			HVI_CAP_COW_MEMORY | HVI_CAP_ICOUNT | HVI_CAP_UNRESTRICTED | HVI_CAP_TSC_SET |
			HVI_CAP_SPP | HVI_CAP_VE | HVI_CAP_EPTP_SWITCH,
		.max_vcpus = HVI_MAX_VCPUS,
		.max_views = HVI_MAX_VIEWS,
		.max_spare_pages = HVI_MAX_SPARE_PAGES,
		.xsave_size = cpuid_xsave_size(),
		.xcr0_mask = cpuid_host_xcr0(),
		.max_gfn = (1ull << (PHYS_BITS - 12)) - 1,
		.tsc_khz = TSC_KHZ,
		.backend = "soft",
	};

	if (info->size < sizeof(out)) {
		info->abi_version = HVI_ABI_VERSION;	/* a caller of another version can name both */
		return -EINVAL;
	}
	memcpy(info, &out, sizeof(out));
	return 0;
}

static int create(struct vm *vm, const struct hvi_create *a)
{
	if (vm->ncpus)
		return -EBUSY;
	if (a->flags || !a->vcpus || a->vcpus > HVI_MAX_VCPUS)
		return -EINVAL;
	vm->ncpuid = cpuid_supported(vm->cpuid, HVI_MAX_CPUID);
	for (u32 i = 0; i < a->vcpus; i++) {
		struct cpu *c = vcpu_new(vm, i);

		if (!c) {
			while (i--)
				vcpu_free(vm->cpu[i]);
			return -ENOMEM;
		}
		vm->cpu[i] = c;
	}
	vm->ncpus = a->vcpus;
	for (u32 i = 0; i < vm->ncpus; i++) {
		state_reset(vm->cpu[i]);
		state_store(vm->cpu[i]);
	}
	return 0;
}

static int add_memory(struct vm *vm, struct hvi_memory *a)
{
	struct slot *s = &vm->slot[vm->nslots];
	u8 *at = vm->base + SPARE_BYTES + vm->ram_size;
	u64 pages = a->size / PAGE, old = vm->ram_size / PAGE;
	u8 *rights;
	void *p;

	if (vm->started || vm->nslots == HVI_MAX_MEMORY_SLOTS)
		return -EBUSY;
	if (a->flags || a->gpa % PAGE || !a->size || a->size % PAGE || a->fd_offset % PAGE || a->fd < -1)
		return -EINVAL;
	if (a->gpa > PHYS_MASK || a->size > PHYS_MASK + 1 - a->gpa)
		return -EINVAL;
	if (a->size > MAX_RAM - vm->ram_size)
		return -ENOMEM;
	for (u32 i = 0; i < vm->nslots; i++)
		if (a->gpa / PAGE < vm->slot[i].gfn + vm->slot[i].pages &&
		    vm->slot[i].gfn < a->gpa / PAGE + pages)
			return -EEXIST;
	for (u32 i = 1; i < HVI_MAX_VIEWS; i++)
		if (vm->view[i].used)
			return -EBUSY;	/* views are as long as RAM */
	rights = realloc(vm->view[0].rights, old + pages);
	if (!rights)
		return -ENOMEM;
	vm->view[0].rights = rights;
	if (vm->view[0].ve) {
		u8 *ve = realloc(vm->view[0].ve, old + pages);

		if (!ve)
			return -ENOMEM;
		vm->view[0].ve = ve;
		memset(ve + old, 0, pages);
	}
	if (vm->view[0].parts) {
		u32 *parts = realloc(vm->view[0].parts, (old + pages) * sizeof(u32));

		if (!parts)
			return -ENOMEM;
		vm->view[0].parts = parts;
		memset(parts + old, 0, pages * sizeof(u32));
	}
	if (vm->view[0].remap) {
		u32 *remap = realloc(vm->view[0].remap, (old + pages) * sizeof(u32));

		if (!remap)
			return -ENOMEM;
		vm->view[0].remap = remap;
		memset(remap + old, 0xff, pages * sizeof(u32));
	}
	if (a->fd >= 0)
		p = mmap(at, a->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
			 a->fd, (off_t)a->fd_offset);
	else
		p = mmap(at, a->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	memset(rights + old, HVI_RWX, pages);
	*s = (struct slot){ .gfn = a->gpa / PAGE, .pages = pages, .first = old };
	vm->nslots++;
	a->ram_offset = vm->ram_size;
	vm->ram_size += a->size;
	return 0;
}

static int get_cpuid(struct hvi_cpuid *a)
{
	struct hvi_cpuid_entry e[HVI_MAX_CPUID];
	u32 n = cpuid_supported(e, HVI_MAX_CPUID);

	if (a->reserved)
		return -EINVAL;
	if (a->count < n) {
		a->count = n;
		return -E2BIG;
	}
	if (!a->entries)
		return -EFAULT;
	memcpy((void *)(uintptr_t)a->entries, e, n * sizeof(*e));
	a->count = n;
	return 0;
}

static int set_cpuid(struct vm *vm, const struct hvi_cpuid *a)
{
	const struct hvi_cpuid_entry *e = (const void *)(uintptr_t)a->entries;

	if (a->reserved || a->count > HVI_MAX_CPUID)
		return -EINVAL;
	if (a->count && !e)
		return -EFAULT;
	for (u32 i = 0; i < a->count; i++)
		if (e[i].flags & ~HVI_CPUID_INDEXED)
			return -EINVAL;
	if (a->count)
		memcpy(vm->cpuid, e, a->count * sizeof(*e));
	vm->ncpuid = a->count;
	return 0;
}

/* ---- intercepts ------------------------------------------------------------------------------- */

int vm_msr_bit(u32 index, u32 *range, u32 *bit)
{
	static const u32 base[3] = { 0, 0xc0000000, 0x40000000 };

	for (u32 i = 0; i < 3; i++)
		if (index - base[i] < MSR_BITMAP) {
			*range = i;
			*bit = index - base[i];
			return 0;
		}
	return -EINVAL;
}

static int intercept_msr(u8 (*map)[MSR_BITMAP / 8], const struct hvi_intercept *a)
{
	u32 range, bit;

	if (a->mask > 1 || vm_msr_bit(a->index, &range, &bit))
		return -EINVAL;
	if (a->mask)
		map[range][bit / 8] |= (u8)(1 << bit % 8);
	else
		map[range][bit / 8] &= (u8)~(1 << bit % 8);
	return 0;
}

static int intercept_flag(bool *flag, const struct hvi_intercept *a)
{
	if (a->mask > 1)
		return -EINVAL;
	*flag = a->mask;
	return 0;
}

static int intercept_io(struct vm *vm, const struct hvi_intercept *a)
{
	u32 first = a->index & 0xffff, last = a->index >> 16;

	if (a->mask > 1 || last < first)
		return -EINVAL;
	for (u32 p = first; p <= last; p++) {
		if (a->mask)
			vm->io_pass[p / 8] &= (u8)~(1 << p % 8);
		else
			vm->io_pass[p / 8] |= (u8)(1 << p % 8);
	}
	return 0;
}

static int intercept(struct vm *vm, const struct hvi_intercept *a)
{
	switch (a->kind) {
	case HVI_INTERCEPT_MSR_READ:
		return intercept_msr(vm->msr_read, a);
	case HVI_INTERCEPT_MSR_WRITE:
		return intercept_msr(vm->msr_write, a);
	case HVI_INTERCEPT_CR0_WRITE:
		vm->cr0_exit = a->mask;
		return 0;
	case HVI_INTERCEPT_CR3_WRITE:
		return intercept_flag(&vm->cr3_exit, a);
	case HVI_INTERCEPT_CR4_WRITE:
		vm->cr4_exit = a->mask;
		return 0;
	case HVI_INTERCEPT_CR8_WRITE:
		return intercept_flag(&vm->cr8_exit, a);
	case HVI_INTERCEPT_DTR:
		if (a->mask > 0xff)
			return -EINVAL;
		vm->dtr_exit = (u32)a->mask;
		return 0;
	case HVI_INTERCEPT_XSETBV:
		return intercept_flag(&vm->xsetbv_exit, a);
	case HVI_INTERCEPT_VMCALL:
		return intercept_flag(&vm->vmcall_exit, a);
	case HVI_INTERCEPT_EXCEPTION:
		if (a->mask >> 32)
			return -EINVAL;
		vm->exception_exit = (u32)a->mask;
		return 0;
	case HVI_INTERCEPT_IO:
		return intercept_io(vm, a);
	case HVI_INTERCEPT_CPUID:
		return intercept_flag(&vm->cpuid_exit, a);
	case HVI_INTERCEPT_HLT:
		return intercept_flag(&vm->hlt_exit, a);
	default:
		return -EINVAL;
	}
}

/* ---- ioctl ---------------------------------------------------------------------------------------- */

/* Requests that need vCPUs. */
static bool known(unsigned long request)
{
	switch (request) {
	case HVI_INTERCEPT: case HVI_RUN: case HVI_PAUSE: case HVI_RESUME: case HVI_KICK: case HVI_FETCH:
	case HVI_RESET: case HVI_EPT_SET: case HVI_EPT_GET: case HVI_VIEW_CREATE: case HVI_VIEW_DESTROY:
	case HVI_REMAP: case HVI_ADD_SPARE: case HVI_SPP_SET: case HVI_VE_SET: case HVI_VE_PAGES:
	case HVI_GET_XSAVE: case HVI_SET_XSAVE: case HVI_LIST_MSRS: case HVI_GET_MSRS: case HVI_SET_MSRS:
	case HVI_QUERY_MTRR:
		return true;
	default:
		return false;
	}
}

API long hvi_soft_ioctl(long handle, unsigned long request, void *arg)
{
	struct vm *vm = vm_of(handle);

	if (!vm)
		return -EBADF;
	if (!arg)
		return -EFAULT;
	switch (request) {
	case HVI_GET_INFO:
		return get_info(arg);
	case HVI_CREATE:
		return create(vm, arg);
	case HVI_ADD_MEMORY:
		return add_memory(vm, arg);
	case HVI_GET_CPUID:
		return get_cpuid(arg);
	case HVI_SET_CPUID:
		return set_cpuid(vm, arg);
	}
	if (!known(request))
		return -ENOTTY;
	if (!vm->ncpus)
		return -EINVAL;
	switch (request) {
	case HVI_INTERCEPT:
		return intercept(vm, arg);
	case HVI_RUN:
		return vcpu_run(vm, arg);
	case HVI_PAUSE:
	case HVI_RESUME:
	case HVI_KICK:
	case HVI_FETCH:
	case HVI_RESET:
		return vcpu_op(vm, request, arg);
	case HVI_EPT_SET:
		return ept_set(vm, arg);
	case HVI_EPT_GET:
		return ept_get(vm, arg);
	case HVI_VIEW_CREATE:
		return view_create(vm, arg);
	case HVI_VIEW_DESTROY:
		return view_destroy(vm, arg);
	case HVI_REMAP:
		return view_remap(vm, arg);
	case HVI_ADD_SPARE:
		return view_add_spare(vm, arg);
	case HVI_SPP_SET:
		return spp_set(vm, arg);
	case HVI_VE_SET:
		return ve_set(vm, arg);
	case HVI_VE_PAGES:
		return ve_pages(vm, arg);
	case HVI_GET_XSAVE:
		return vcpu_get_xsave(vm, arg);
	case HVI_SET_XSAVE:
		return vcpu_set_xsave(vm, arg);
	case HVI_LIST_MSRS:
		return vcpu_list_msrs(vm, arg);
	case HVI_GET_MSRS:
		return vcpu_msrs(vm, arg, false);
	case HVI_SET_MSRS:
		return vcpu_msrs(vm, arg, true);
	case HVI_QUERY_MTRR:
		return vcpu_mtrr(vm, arg);
	default:
		return -ENOTTY;
	}
}
