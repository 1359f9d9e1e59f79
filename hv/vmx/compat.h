/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * compat.h - what differs between the kernels that hvi.ko is built for (5.10
 * to 6.12), in this one place.
 */
#ifndef HVI_VMX_COMPAT_H
#define HVI_VMX_COMPAT_H

#include <linux/version.h>
#include <linux/mm.h>

/* 6.3: vm_flags may be changed by helpers only. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags |= flags;
}
#endif

/* 6.11: the MSR's layout is in MSR_IA32_VMX_BASIC helpers; the number is the same. */
#ifndef X86_CR4_FRED
#define X86_CR4_FRED 0
#endif

#endif
