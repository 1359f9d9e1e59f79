/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * xsave.c - the guest's x87, SSE, AVX and AVX-512 state, in the standard
 * format (SDM vol. 1, 13.4), and XCR0.
 */
#include <linux/uaccess.h>
#include <asm/cpufeature.h>
#include <asm/fpu/api.h>
#include "hvi_vmx.h"

#define XCR0_OFFERED	0xe7ull		/* x87 SSE AVX, AVX-512's three */
#define HEADER		512
#define HEADER_END	576

static u64 host_xcr0;

static u64 xgetbv0(void)
{
	u32 lo, hi;

	asm volatile("xgetbv" : "=a" (lo), "=d" (hi) : "c" (0));
	return lo | (u64)hi << 32;
}

static void xsetbv0(u64 value)
{
	asm volatile("xsetbv" : : "a" ((u32)value), "d" ((u32)(value >> 32)), "c" (0) : "memory");
}

/* Bytes of a standard-format image with these components. */
u32 xsave_size_of(u64 xcr0)
{
	u32 size = HEADER_END, i;

	for (i = 2; i < 8; i++)
		if (xcr0 >> i & 1) {
			u32 a, b, c, d;

			cpuid_count(0xd, i, &a, &b, &c, &d);
			size = max(size, a + b);
		}
	return size;
}

int xsave_init(void)
{
	if (!boot_cpu_has(X86_FEATURE_OSXSAVE)) {
		pr_err("hvi: this kernel or CPU does not use XSAVE\n");
		return -EOPNOTSUPP;
	}
	host_xcr0 = xgetbv0();
	vmx_caps.xcr0 = host_xcr0 & XCR0_OFFERED;
	if ((vmx_caps.xcr0 & 0xe0) != 0xe0)
		vmx_caps.xcr0 &= ~0xe0ull;
	vmx_caps.xsave_size = xsave_size_of(vmx_caps.xcr0);
	return vmx_caps.xsave_size <= PAGE_SIZE ? 0 : -EOPNOTSUPP;
}

/* From here to xsave_save the CPU's FPU is the guest's; interrupts find it in use. */
void xsave_load(struct vcpu *v)
{
	u64 mask = vmx_caps.xcr0;

	kernel_fpu_begin();
	asm volatile("xrstor64 (%0)" : : "r" (v->xsave), "a" ((u32)mask), "d" ((u32)(mask >> 32)) : "memory");
	if (v->xcr0 != host_xcr0)
		xsetbv0(v->xcr0);
}

void xsave_save(struct vcpu *v)
{
	u64 mask = vmx_caps.xcr0;

	if (v->xcr0 != host_xcr0)
		xsetbv0(host_xcr0);
	asm volatile("xsave64 (%0)" : : "r" (v->xsave), "a" ((u32)mask), "d" ((u32)(mask >> 32)) : "memory");
	kernel_fpu_end();
}

/* The guest's XCR0 while it is on the CPU. */
void xsave_set_xcr0(struct vcpu *v, u64 value)
{
	v->xcr0 = value;
	xsetbv0(value);
}

/* SDM table 9-1: x87 and SSE after reset. */
void xsave_reset(struct vcpu *v)
{
	memset(v->xsave, 0, PAGE_SIZE);
	*(u16 *)v->xsave = 0x40;
	*(u32 *)(v->xsave + 24) = 0x1f80;
	*(u64 *)(v->xsave + HEADER) = 3;
}

int xsave_get(struct vm *vm, const struct hvi_xsave *a)
{
	struct vcpu *v = vcpu_of(vm, a->vcpu);
	void __user *to = (void __user *)(uintptr_t)a->data;
	u32 size = vmx_caps.xsave_size;

	if (!v || a->size < size)
		return -EINVAL;
	return copy_to_user(to, v->xsave, size) ? -EFAULT : 0;
}

int xsave_put(struct vm *vm, const struct hvi_xsave *a)
{
	struct vcpu *v = vcpu_of(vm, a->vcpu);
	u32 size = min(a->size, vmx_caps.xsave_size);
	u64 bv;
	u8 *image;
	int err = -EINVAL;

	if (!v || a->size < HEADER_END)
		return -EINVAL;
	image = kzalloc(vmx_caps.xsave_size, GFP_KERNEL);
	if (!image)
		return -ENOMEM;
	if (copy_from_user(image, (void __user *)(uintptr_t)a->data, size)) {
		err = -EFAULT;
		goto out;
	}
	/* What would make XRSTOR fault: XCOMP_BV, reserved bytes, unknown components, reserved bits of MXCSR. */
	if (memchr_inv(image + HEADER + 8, 0, HEADER_END - HEADER - 8))
		goto out;
	bv = *(u64 *)(image + HEADER);
	if ((bv & ~vmx_caps.xcr0) || (*(u32 *)(image + 24) & ~0xffffu) || xsave_size_of(bv) > a->size)
		goto out;
	memset(v->xsave, 0, PAGE_SIZE);
	memcpy(v->xsave, image, vmx_caps.xsave_size);
	err = 0;
out:
	kfree(image);
	return err;
}
