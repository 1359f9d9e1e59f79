/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * paging.c - the guest's own page tables (SDM vol. 3 chapter 4), read from its
 * RAM. Nothing in them is trusted: a walk is four steps at most and every
 * address is looked up in the VM's RAM.
 */
#include <asm/processor-flags.h>
#include "hvi_vmx.h"

#define PTE_P	1ull
#define PTE_A	(1ull << 5)
#define PTE_D	(1ull << 6)
#define PTE_PS	(1ull << 7)
#define FRAME	0x000ffffffffff000ull

static bool read_phys(const struct vcpu *v, u64 gpa, u32 size, u64 *value)
{
	const void *p = gpa_host(v->vm, gpa);

	*value = 0;
	if (!p)
		return ram_index(v->vm, gpa >> PAGE_SHIFT) != NO_PAGE;	/* never touched: zeros */
	memcpy(value, p, size);
	return true;
}

bool guest_walk(struct vcpu *v, u64 gva, u64 *gpa)
{
	u64 cr0 = guest_cr0(), cr4 = guest_cr4(), table = vmcs_read(F_GUEST_CR3) & FRAME, e;
	bool lma = vmcs_read(F_GUEST_EFER) & 0x400;
	int level;

	if (!(cr0 & X86_CR0_PG)) {
		*gpa = (u32)gva;
		return true;
	}
	if (!(cr4 & X86_CR4_PAE)) {
		gva = (u32)gva;
		if (!read_phys(v, table + (gva >> 22) * 4, 4, &e) || !(e & PTE_P))
			return false;
		if ((e & PTE_PS) && (cr4 & X86_CR4_PSE)) {
			*gpa = (e & 0xffc00000) | (e >> 13 & 0xff) << 32 | (gva & 0x3fffff);
			return true;
		}
		if (!read_phys(v, (e & 0xfffff000) + (gva >> 12 & 0x3ff) * 4, 4, &e) || !(e & PTE_P))
			return false;
		*gpa = (e & 0xfffff000) | (gva & 0xfff);
		return true;
	}
	level = 4;
	if (!lma) {
		gva = (u32)gva;
		e = vmcs_read(F_GUEST_PDPTE0 + 2 * (gva >> 30));
		if (!(e & PTE_P))
			return false;
		table = e & FRAME;
		level = 2;
	}
	for (;; level--) {
		u64 span = (1ull << (12 + 9 * (level - 1))) - 1;

		if (!read_phys(v, table + (gva >> (12 + 9 * (level - 1)) & 511) * 8, 8, &e) || !(e & PTE_P))
			return false;
		if (level == 1 || ((e & PTE_PS) && level <= 3)) {
			*gpa = (e & FRAME & ~span) | (gva & span);
			return true;
		}
		table = e & FRAME;
	}
}

bool guest_read(struct vcpu *v, u64 gva, void *to, u32 size)
{
	u32 i;

	for (i = 0; i < size; i++) {
		u64 gpa;
		const u8 *p;

		if (!guest_walk(v, gva + i, &gpa))
			return false;
		p = gpa_host(v->vm, gpa);
		if (!p && ram_index(v->vm, gpa >> PAGE_SHIFT) == NO_PAGE)
			return false;
		((u8 *)to)[i] = p ? *p : 0;
	}
	return true;
}

/*
 * The CPU's walk wanted to set accessed or dirty in an entry on a page without
 * W. Accessed first: a walk for a write comes back for dirty.
 */
bool guest_set_ad(struct vcpu *v, u64 gva, u64 entry_gpa)
{
	bool wide = guest_cr4() & X86_CR4_PAE;
	u64 at = entry_gpa & (wide ? ~7ull : ~3ull);
	u32 *p = gpa_host(v->vm, at);
	u32 old;

	if (!p)
		return false;
	old = READ_ONCE(*p);
	if (!(old & PTE_P) || (old & PTE_D))
		return false;		/* nothing to set: this was not the walk's write */
	return cmpxchg(p, old, old & PTE_A ? old | PTE_D : old | PTE_A) == old || !(READ_ONCE(*p) & PTE_D);
}
