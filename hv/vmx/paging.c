/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * paging.c - the guest's own page tables (SDM vol. 3 chapter 4), read from its
 * RAM. Nothing in them is trusted: a walk is four steps at most and every
 * address is looked up in the VM's RAM.
 */
#include <linux/err.h>
#include <asm/processor-flags.h>
#include "hvi_vmx.h"
#include "insn.h"

#define PTE_P	1ull
#define PTE_A	(1ull << 5)
#define PTE_D	(1ull << 6)
#define PTE_PS	(1ull << 7)
#define FRAME	0x000ffffffffff000ull

/* How the guest translates addresses: a copy, so that a walk needs no VMCS and may sleep. */
struct paging {
	u64 cr0, cr3, cr4, pdpte[4];
	bool lma, may_sleep;
};

enum found { FOUND, ABSENT, UNTOUCHED };

static void paging_now(struct paging *g)
{
	int i;

	*g = (struct paging){
		.cr0 = guest_cr0(), .cr3 = vmcs_read(F_GUEST_CR3), .cr4 = guest_cr4(),
		.lma = vmcs_read(F_GUEST_EFER) & 0x400,
	};
	for (i = 0; i < 4; i++)
		g->pdpte[i] = vmcs_read(F_GUEST_PDPTE0 + 2 * i);
}

/* In the view it runs in, under replies that hold for this instruction. */
void *guest_phys(struct vcpu *v, u64 gpa)
{
	u64 gfn = gpa >> PAGE_SHIFT, frame;
	u8 *copy = step_copy(v, gfn);

	if (copy)
		return copy + (gpa & ~PAGE_MASK);
	frame = ept_frame(v->vm, v->view, gfn);
	return frame ? __va(frame) + (gpa & ~PAGE_MASK) : NULL;
}

static enum found read_phys(struct vcpu *v, const struct paging *g, u64 gpa, u32 size, void *to)
{
	const void *p = guest_phys(v, gpa);
	u32 index = ram_index(v->vm, gpa >> PAGE_SHIFT);

	if (!p && g->may_sleep && index != NO_PAGE && !IS_ERR(ram_page(v->vm, index)))
		p = guest_phys(v, gpa);
	if (p) {
		memcpy(to, p, size);
		return FOUND;
	}
	if (index == NO_PAGE)
		return ABSENT;
	v->fill_gfn = gpa >> PAGE_SHIFT;
	return UNTOUCHED;
}

static enum found read_entry(struct vcpu *v, const struct paging *g, u64 gpa, u32 size, u64 *e)
{
	enum found f;

	*e = 0;
	f = read_phys(v, g, gpa, size, e);
	return f == FOUND && !(*e & PTE_P) ? ABSENT : f;
}

static enum found walk_32(struct vcpu *v, const struct paging *g, u32 gva, u64 *gpa)
{
	enum found f;
	u64 e;

	f = read_entry(v, g, (g->cr3 & 0xfffff000) + (gva >> 22) * 4, 4, &e);
	if (f)
		return f;
	if ((e & PTE_PS) && (g->cr4 & X86_CR4_PSE)) {
		*gpa = (e & 0xffc00000) | (e >> 13 & 0xff) << 32 | (gva & 0x3fffff);
		return FOUND;
	}
	f = read_entry(v, g, (e & 0xfffff000) + (gva >> 12 & 0x3ff) * 4, 4, &e);
	*gpa = (e & 0xfffff000) | (gva & 0xfff);
	return f;
}

/* No rights checked, nothing written. */
static enum found walk(struct vcpu *v, const struct paging *g, u64 gva, u64 *gpa)
{
	u64 table = g->cr3 & FRAME, e;
	int level = 4;

	if (!g->lma)
		gva = (u32)gva;
	if (!(g->cr0 & X86_CR0_PG)) {
		*gpa = gva;
		return FOUND;
	}
	if (!(g->cr4 & X86_CR4_PAE))
		return walk_32(v, g, gva, gpa);
	if (!g->lma) {
		e = g->pdpte[gva >> 30];
		if (!(e & PTE_P))
			return ABSENT;
		table = e & FRAME;
		level = 2;
	}
	for (;; level--) {
		u64 span = (1ull << (12 + 9 * (level - 1))) - 1;
		enum found f = read_entry(v, g, table + (gva >> (12 + 9 * (level - 1)) & 511) * 8, 8, &e);

		if (f)
			return f;
		if (level == 1 || ((e & PTE_PS) && level <= 3)) {
			*gpa = (e & FRAME & ~span) | (gva & span);
			return FOUND;
		}
		table = e & FRAME;
	}
}

/* Bytes from gva on; *got: how many before one that cannot be read. */
static enum found read_linear(struct vcpu *v, const struct paging *g, u64 gva, u8 *to, u32 size, u32 *got)
{
	for (*got = 0; *got < size;) {
		u32 part = min_t(u64, size - *got, PAGE_SIZE - ((gva + *got) & ~PAGE_MASK));
		enum found f;
		u64 gpa;

		f = walk(v, g, gva + *got, &gpa);
		if (!f)
			f = read_phys(v, g, gpa, part, to + *got);
		if (f)
			return f;
		*got += part;
	}
	return FOUND;
}

int guest_read(struct vcpu *v, u64 gva, void *to, u32 size)
{
	struct paging g;
	u32 got;

	paging_now(&g);
	switch (read_linear(v, &g, gva, to, size, &got)) {
	case FOUND:
		return 0;
	case UNTOUCHED:
		return EXIT_FILL;
	default:
		return -EFAULT;
	}
}

/*
 * walked: the address whose walk made the exit, or NULL. When the code may
 * stand there it was its fetch, and the CPU has not seen the instruction.
 */
int guest_insn_length(struct vcpu *v, const u64 *walked)
{
	u8 bytes[INSN_MAX];
	struct paging g;
	int bits, err;
	u32 got;
	u64 at;

	err = vcpu_load(v);
	if (err)
		return err;
	paging_now(&g);
	bits = guest_code_bits();
	at = vmcs_read(F_GUEST_RIP);
	if (bits != 64)
		at = (u32)(at + vmcs_read(F_GUEST_ES_BASE + 2 * HVI_CS));
	vcpu_put(v);
	if (walked && (!((*walked ^ at) & PAGE_MASK) || !((*walked ^ (at + INSN_MAX - 1)) & PAGE_MASK)))
		return 0;
	g.may_sleep = true;
	read_linear(v, &g, at, bytes, sizeof(bytes), &got);
	return insn_length(bytes, got, bits);
}

/*
 * The CPU's walk wanted to set accessed or dirty in an entry on a page without
 * W. Accessed first: a walk for a write comes back for dirty.
 */
bool guest_set_ad(struct vcpu *v, u64 entry_gpa)
{
	bool wide = guest_cr4() & X86_CR4_PAE;
	u64 at = entry_gpa & (wide ? ~7ull : ~3ull);
	u32 *p = guest_phys(v, at);
	u32 old;

	if (!p)
		return false;
	old = READ_ONCE(*p);
	if (!(old & PTE_P) || (old & PTE_A && old & PTE_D))
		return false;		/* nothing to set: this was not the walk's write */
	cmpxchg(p, old, old & PTE_A ? old | PTE_D : old | PTE_A);
	return true;		/* also when another CPU was first: the walk sees what stands there now */
}
