/* SPDX-License-Identifier: MIT */
/*
 * cpuid.c - what this CPU is: the table offered to the engine (SDM vol. 2A,
 * CPUID), the guest's own table, and the masks that follow from it.
 */
#include <cpuid.h>
#include "native.h"
#include "more.h"

/* Leaf 1 EDX: FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH. VME is not. */
#define L1_EDX_OWN	0x000bfbfdu
#define L1_EDX_NATIVE	0x07808001u
/* Leaf 1 ECX: CX16 PCID x2APIC (and TSC-deadline is the machine's). */
#define L1_ECX_OWN	((1u << 13) | (1u << 17) | (1u << 21))
/* Leaf 7 EBX: FSGSBASE SMEP ERMS INVPCID SMAP CLFLUSHOPT CLWB. */
#define L7_EBX_OWN	((1u << 0) | (1u << 7) | (1u << 9) | (1u << 10) | (1u << 20) | (1u << 23) | (1u << 24))
/* Leaf 7 ECX: UMIP RDPID. */
#define L7_ECX_OWN	((1u << 2) | (1u << 22))
/* Leaf 7 EDX: FSRM, SERIALIZE, IBRS with IBPB (IBRS_ALL of ARCH_CAPABILITIES needs it), ARCH_CAPABILITIES. */
#define L7_EDX_OWN	((1u << 4) | (1u << 14) | (1u << 26) | (1u << 29))
/* 80000001h: LAHF, PREFETCHW; SYSCALL NX 1G RDTSCP LM. */
#define LX1_ECX_OWN	((1u << 0) | (1u << 8))
#define LX1_EDX_OWN	((1u << 11) | (1u << 20) | (1u << 26) | (1u << 27) | (1u << 29))

u64 cpuid_host_xcr0(void)
{
	return native_xcr0_mask();
}

u32 cpuid_size_of(u64 xcr0)
{
	return xcr0 & 4 ? 832 : 576;
}

u32 cpuid_xsave_size(void)
{
	return NATIVE_XSAVE_SIZE;
}

struct list {
	struct hvi_cpuid_entry *out;
	u32 n, room;
};

static void add(struct list *l, u32 leaf, u32 index, u32 flags, u32 a, u32 b, u32 c, u32 d)
{
	if (l->n < l->room)
		l->out[l->n++] = (struct hvi_cpuid_entry){
			.leaf = leaf, .index = index, .flags = flags, .eax = a, .ebx = b, .ecx = c, .edx = d,
		};
}

static void add_brand(struct list *l)
{
	char name[48] = "hvi software vCPU";
	u32 r[12];

	memcpy(r, name, sizeof(r));
	for (u32 i = 0; i < 3; i++)
		add(l, 0x80000002 + i, 0, 0, r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]);
}

u32 cpuid_supported(struct hvi_cpuid_entry *out, u32 room)
{
	struct list l = { .out = out, .room = room };
	struct native_features f;
	u64 xcr0 = native_xcr0_mask();
	u32 xsave;

	native_features(&f);
	xsave = f.leaf1_ecx >> 26 & 1;
	add(&l, 0, 0, 0, 0x16, 0x756e6547, 0x6c65746e, 0x49656e69);	/* GenuineIntel */
	/* Family 6, model 0x55 (Skylake server), stepping 4: features come from the leaves, errata lists do not match. */
	add(&l, 1, 0, 0, 0x00050654, 0x00010800, L1_ECX_OWN | f.leaf1_ecx,
	    L1_EDX_OWN | (f.leaf1_edx & L1_EDX_NATIVE));
	add(&l, 2, 0, 0, 0x00feff01, 0xf0, 0, 0);	/* descriptor 0xff: see leaf 4 */
	add(&l, 4, 0, HVI_CPUID_INDEXED, 0x00000121, 0x01c0003f, 0x3f, 0);	/* L1D 32 KiB */
	add(&l, 4, 1, HVI_CPUID_INDEXED, 0x00000122, 0x01c0003f, 0x3f, 0);	/* L1I 32 KiB */
	add(&l, 4, 2, HVI_CPUID_INDEXED, 0x00000143, 0x03c0003f, 0x3ff, 0);	/* L2 1 MiB */
	add(&l, 6, 0, 0, 1u << 2, 0, 0, 0);		/* ARAT */
	add(&l, 7, 0, HVI_CPUID_INDEXED, 1, L7_EBX_OWN | f.leaf7_ebx, L7_ECX_OWN | f.leaf7_ecx, L7_EDX_OWN);
	add(&l, 7, 1, HVI_CPUID_INDEXED, f.leaf7_1_eax, 0, 0, 0);
	add(&l, 0xb, 0, HVI_CPUID_INDEXED, 0, 1, 0x100, 0);
	add(&l, 0xb, 1, HVI_CPUID_INDEXED, 0, 1, 0x201, 0);
	if (xsave) {
		add(&l, 0xd, 0, HVI_CPUID_INDEXED, (u32)xcr0, 576, cpuid_size_of(xcr0), 0);
		add(&l, 0xd, 1, HVI_CPUID_INDEXED, f.leaf13_1_eax, 0, 0, 0);
		if (xcr0 & 4)
			add(&l, 0xd, 2, HVI_CPUID_INDEXED, 256, 576, 0, 0);
	}
	/* TSC = crystal * ebx / eax: 25 MHz * 40. */
	add(&l, 0x15, 0, 0, 1, TSC_KHZ / 25000, 25000000, 0);
	add(&l, 0x16, 0, 0, TSC_KHZ / 1000, TSC_KHZ / 1000, 100, 0);
	add(&l, 0x80000000, 0, 0, 0x80000008, 0, 0, 0);
	add(&l, 0x80000001, 0, 0, 0, 0, LX1_ECX_OWN | f.ext1_ecx, LX1_EDX_OWN);
	add_brand(&l);
	add(&l, 0x80000006, 0, 0, 0, 0, 0x04008040, 0);
	add(&l, 0x80000007, 0, 0, 0, 0, 0, 1u << 8);	/* invariant TSC */
	add(&l, 0x80000008, 0, 0, PHYS_BITS | 48 << 8, 0, 0, 0);
	return l.n;
}

static const struct hvi_cpuid_entry *find(const struct vm *vm, u32 leaf, u32 index)
{
	for (u32 i = 0; i < vm->ncpuid; i++) {
		const struct hvi_cpuid_entry *e = &vm->cpuid[i];

		if (e->leaf == leaf && (!(e->flags & HVI_CPUID_INDEXED) || e->index == index))
			return e;
	}
	return NULL;
}

static const struct hvi_cpuid_entry *find_or_zero(const struct vm *vm, u32 leaf, u32 index)
{
	static const struct hvi_cpuid_entry zero;
	const struct hvi_cpuid_entry *e = find(vm, leaf, index);

	return e ? e : &zero;
}

void cpuid_query(const struct cpu *c, u32 leaf, u32 index, u32 regs[4])
{
	const struct vm *vm = c->more->vm;
	const struct hvi_cpuid_entry *e;
	u32 apic = c->more->page->initial_apic_id;
	u32 top = find_or_zero(vm, 0, 0)->eax;

	/* SDM: a basic leaf beyond the highest answers as the highest does. */
	if (leaf < 0x40000000 && leaf > top)
		leaf = top;
	e = find_or_zero(vm, leaf, index);
	regs[0] = e->eax;
	regs[1] = e->ebx;
	regs[2] = e->ecx;
	regs[3] = e->edx;
	switch (leaf) {
	case 1:
		regs[1] = (regs[1] & 0x00ffffff) | apic << 24;
		regs[2] = (regs[2] & ~(1u << 27)) | (c->cr4 >> 18 & 1) << 27;	/* OSXSAVE */
		if (!(c->more->apic_base & 0x800))
			regs[3] &= ~(1u << 9);
		break;
	case 0xb:
	case 0x1f:
		regs[2] = (regs[2] & ~0xffu) | (index & 0xff);
		regs[3] = apic;
		break;
	case 0xd:
		if (index == 0)
			regs[1] = cpuid_size_of(c->xcr0);
		break;
	}
}

u64 cpuid_xcr0_mask(const struct cpu *c)
{
	return (find_or_zero(c->more->vm, 0xd, 0)->eax & native_xcr0_mask()) | 1;
}

/* CR4 bits that the guest's CPUID allows (SDM 2.5). */
u64 cpuid_cr4_mask(const struct cpu *c)
{
	const struct vm *vm = c->more->vm;
	const struct hvi_cpuid_entry *l1 = find_or_zero(vm, 1, 0), *l7 = find_or_zero(vm, 7, 0);
	u64 mask = (1u << 2) | (1u << 4) | (1u << 8) | (1u << 9) | (1u << 10);	/* TSD PSE PCE OSFXSR OSXMMEXCPT */
	static const struct { u8 reg, bit, cr4; } rows[] = {
		{ 0, 2, 3 }, { 0, 6, 5 }, { 0, 7, 6 }, { 0, 13, 7 },
		{ 1, 17, 17 }, { 1, 26, 18 },
		{ 2, 0, 16 }, { 2, 7, 20 }, { 2, 20, 21 },
		{ 3, 2, 11 }, { 3, 16, 12 },
	};
	const u32 reg[4] = { l1->edx, l1->ecx, l7->ebx, l7->ecx };

	for (u32 i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (reg[rows[i].reg] >> rows[i].bit & 1)
			mask |= 1ull << rows[i].cr4;
	return mask;
}
