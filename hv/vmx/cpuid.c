/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * cpuid.c - what a guest's CPU is: this CPU's own leaves, less what the module
 * does not virtualise; and the table that the engine made of it.
 */
#include <linux/uaccess.h>
#include <asm/processor.h>
#include <asm/processor-flags.h>
#include "hvi_vmx.h"

/* Leaf 1 ECX: SSE3 PCLMUL SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND. x2APIC is ours. */
#define L1_ECX		0x76da3203u
#define L1_ECX_OURS	(1u << 21)
/* Leaf 1 EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2. VME is not. */
#define L1_EDX		0x078bfbfdu
/* Leaf 7 EBX: FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB SHA, AVX-512 F DQ IFMA CD BW VL. */
#define L7_EBX		0xf1bf07a9u
#define L7_EBX_512	((1u << 16) | (1u << 17) | (1u << 21) | (1u << 28) | (1u << 30) | (1u << 31))
/* Leaf 7 ECX: VBMI UMIP VBMI2 GFNI VAES VPCLMUL VNNI BITALG VPOPCNT RDPID. */
#define L7_ECX		0x00405f46u
#define L7_ECX_512	((1u << 1) | (1u << 6) | (1u << 11) | (1u << 12) | (1u << 14))
/* Leaf 7 EDX: FSRM MD_CLEAR SERIALIZE ARCH_CAPABILITIES. */
#define L7_EDX		((1u << 4) | (1u << 10) | (1u << 14) | (1u << 29))
/* 80000001h ECX: LAHF LZCNT PREFETCHW; EDX: SYSCALL NX 1G RDTSCP LM. */
#define LX1_ECX		((1u << 0) | (1u << 5) | (1u << 8))
#define LX1_EDX		((1u << 11) | (1u << 20) | (1u << 26) | (1u << 27) | (1u << 29))

struct list {
	struct hvi_cpuid_entry *e;
	u32 n;
};

static void add(struct list *l, u32 leaf, u32 index, u32 flags, const u32 *r)
{
	if (l->n < HVI_MAX_CPUID)
		l->e[l->n++] = (struct hvi_cpuid_entry){
			.leaf = leaf, .index = index, .flags = flags, .eax = r[0], .ebx = r[1], .ecx = r[2], .edx = r[3],
		};
}

static void host(u32 leaf, u32 index, u32 *r)
{
	cpuid_count(leaf, index, &r[0], &r[1], &r[2], &r[3]);
}

static void add_host(struct list *l, u32 leaf)
{
	u32 r[4];

	host(leaf, 0, r);
	add(l, leaf, 0, 0, r);
}

static void features(struct list *l, u32 top)
{
	u32 r[4], i;

	host(1, 0, r);
	r[1] = (r[1] & 0xff00) | 0x00010000;	/* CLFLUSH size; one logical CPU */
	r[2] = (r[2] & L1_ECX) | L1_ECX_OURS;
	if (!(vmx_caps.secondary & SEC_INVPCID))
		r[2] &= ~(1u << 17);
	if (!(vmx_caps.xcr0 & 4))
		r[2] &= ~((1u << 28) | (1u << 12) | (1u << 29));
	r[3] &= L1_EDX;
	add(l, 1, 0, 0, r);
	add_host(l, 2);
	for (i = 0; i < 4; i++) {
		host(4, i, r);
		if (!(r[0] & 31))
			break;
		r[0] &= 0x3ff;			/* one core, one thread */
		add(l, 4, i, HVI_CPUID_INDEXED, r);
	}
	r[0] = 1u << 2;				/* ARAT */
	r[1] = r[2] = r[3] = 0;
	add(l, 6, 0, 0, r);
	if (top < 7)
		return;
	host(7, 0, r);
	r[0] = 0;
	r[1] &= L7_EBX;
	r[2] &= L7_ECX;
	r[3] &= L7_EDX;
	if (!(vmx_caps.secondary & SEC_INVPCID))
		r[1] &= ~(1u << 10);
	if (!(vmx_caps.secondary & SEC_RDTSCP))
		r[2] &= ~(1u << 22);
	if (!(vmx_caps.xcr0 & 4))
		r[1] &= ~(1u << 5);
	if (!(vmx_caps.xcr0 & 0x20)) {
		r[1] &= ~L7_EBX_512;
		r[2] &= ~L7_ECX_512;
	}
	add(l, 7, 0, HVI_CPUID_INDEXED, r);
}

static void xsave_leaves(struct list *l)
{
	u32 r[4], i;

	r[0] = (u32)vmx_caps.xcr0;
	r[1] = 576;
	r[2] = vmx_caps.xsave_size;
	r[3] = 0;
	add(l, 0xd, 0, HVI_CPUID_INDEXED, r);
	host(0xd, 1, r);
	r[0] &= 5;				/* XSAVEOPT, XGETBV with ECX 1; no XSAVES */
	r[1] = r[2] = r[3] = 0;
	add(l, 0xd, 1, HVI_CPUID_INDEXED, r);
	for (i = 2; i < 8; i++)
		if (vmx_caps.xcr0 >> i & 1) {
			host(0xd, i, r);
			r[2] = r[3] = 0;
			add(l, 0xd, i, HVI_CPUID_INDEXED, r);
		}
}

static u32 supported(struct hvi_cpuid_entry *e)
{
	struct list l = { .e = e };
	u32 r[4], top, i;

	host(0, 0, r);
	top = r[0];
	r[0] = 0x16;
	add(&l, 0, 0, 0, r);
	features(&l, top);
	r[0] = 0; r[1] = 1; r[2] = 0x100; r[3] = 0;
	add(&l, 0xb, 0, HVI_CPUID_INDEXED, r);
	r[2] = 0x201;
	add(&l, 0xb, 1, HVI_CPUID_INDEXED, r);
	xsave_leaves(&l);
	/* TSC = crystal * EBX / EAX, in a way that gives the rate as the host measured it: 1 kHz units. */
	r[0] = 1000; r[1] = tsc_khz; r[2] = 1000000; r[3] = 0;
	add(&l, 0x15, 0, 0, r);
	r[0] = r[1] = tsc_khz / 1000; r[2] = 100; r[3] = 0;
	add(&l, 0x16, 0, 0, r);
	r[0] = 0x80000008; r[1] = r[2] = r[3] = 0;
	add(&l, 0x80000000, 0, 0, r);
	host(0x80000001, 0, r);
	r[0] = r[1] = 0;
	r[2] &= LX1_ECX;
	r[3] = (r[3] & LX1_EDX) | (1u << 11);	/* SYSCALL: the bit shows in 64-bit mode only */
	if (!(vmx_caps.secondary & SEC_RDTSCP))
		r[3] &= ~(1u << 27);
	add(&l, 0x80000001, 0, 0, r);
	for (i = 0x80000002; i <= 0x80000004; i++)
		add_host(&l, i);
	add_host(&l, 0x80000006);
	r[0] = r[1] = r[2] = 0; r[3] = 1u << 8;	/* invariant TSC */
	add(&l, 0x80000007, 0, 0, r);
	r[0] = min(vmx_caps.phys_bits, 48u) | 48 << 8; r[1] = r[2] = r[3] = 0;
	add(&l, 0x80000008, 0, 0, r);
	return l.n;
}

/* ---- the table ----------------------------------------------------------------------------- */

static const struct hvi_cpuid_entry *find(const struct vm *vm, u32 leaf, u32 index)
{
	static const struct hvi_cpuid_entry zero;
	u32 i;

	for (i = 0; i < vm->ncpuid; i++) {
		const struct hvi_cpuid_entry *e = &vm->cpuid[i];

		if (e->leaf == leaf && (!(e->flags & HVI_CPUID_INDEXED) || e->index == index))
			return e;
	}
	return &zero;
}

/* CR4 and XCR0 bits that the guest's CPUID allows (SDM 2.5). */
static void derive(struct vm *vm)
{
	static const struct { u8 reg, bit, cr4; } rows[] = {
		{ 0, 2, 3 }, { 0, 6, 5 }, { 0, 7, 6 }, { 0, 13, 7 }, { 1, 17, 17 }, { 1, 26, 18 },
		{ 2, 0, 16 }, { 2, 7, 20 }, { 2, 20, 21 }, { 3, 2, 11 },
	};
	const struct hvi_cpuid_entry *l1 = find(vm, 1, 0), *l7 = find(vm, 7, 0);
	const u32 reg[4] = { l1->edx, l1->ecx, l7->ebx, l7->ecx };
	u64 mask = X86_CR4_TSD | X86_CR4_PSE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
	u32 i;

	for (i = 0; i < ARRAY_SIZE(rows); i++)
		if (reg[rows[i].reg] >> rows[i].bit & 1)
			mask |= 1ull << rows[i].cr4;
	vm->cr4_allowed = mask & vmx_caps.cr4_fixed1 & ~vmx_caps.cr4_fixed0;
	vm->xcr0_allowed = (find(vm, 0xd, 0)->eax & vmx_caps.xcr0) | 1;
	vm->controls_gen++;
}

void cpuid_default(struct vm *vm)
{
	vm->ncpuid = supported(vm->cpuid);
	derive(vm);
}

int cpuid_get(struct hvi_cpuid *a)
{
	struct hvi_cpuid_entry *e;
	int err = 0;
	u32 n;

	if (a->reserved)
		return -EINVAL;
	e = kcalloc(HVI_MAX_CPUID, sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	n = supported(e);
	if (a->count < n)
		err = -E2BIG;
	else if (copy_to_user((void __user *)(uintptr_t)a->entries, e, n * sizeof(*e)))
		err = -EFAULT;
	a->count = n;
	kfree(e);
	return err;
}

int cpuid_set(struct vm *vm, const struct hvi_cpuid *a)
{
	struct hvi_cpuid_entry *e;
	u32 i;

	if (a->reserved || a->count > HVI_MAX_CPUID)
		return -EINVAL;
	e = kcalloc(HVI_MAX_CPUID, sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	if (copy_from_user(e, (void __user *)(uintptr_t)a->entries, a->count * sizeof(*e))) {
		kfree(e);
		return -EFAULT;
	}
	for (i = 0; i < a->count; i++)
		if (e[i].flags & ~HVI_CPUID_INDEXED) {
			kfree(e);
			return -EINVAL;
		}
	memcpy(vm->cpuid, e, a->count * sizeof(*e));
	vm->ncpuid = a->count;
	kfree(e);
	derive(vm);
	return 0;
}

void cpuid_query(struct vcpu *v, u32 leaf, u32 index, u32 *r)
{
	const struct hvi_cpuid_entry *e;
	u32 top = find(v->vm, 0, 0)->eax, apic = v->page->initial_apic_id;

	/* SDM: a basic leaf beyond the highest answers as the highest does. */
	if (leaf < 0x40000000 && leaf > top)
		leaf = top;
	e = find(v->vm, leaf, index);
	r[0] = e->eax;
	r[1] = e->ebx;
	r[2] = e->ecx;
	r[3] = e->edx;
	switch (leaf) {
	case 1:
		r[1] = (r[1] & 0x00ffffff) | apic << 24;
		if (!(v->apic_base & 0x800))
			r[3] &= ~(1u << 9);
		break;
	case 0xb:
	case 0x1f:
		r[2] = (r[2] & ~0xffu) | (index & 0xff);
		r[3] = apic;
		break;
	case 0xd:
		if (index == 0)
			r[1] = xsave_size_of(v->xcr0);
		break;
	}
}

/* Of a loaded vCPU. */
void cpuid_answer(struct vcpu *v)
{
	u32 leaf = (u32)v->gpr[HVI_RAX], r[4];

	cpuid_query(v, leaf, (u32)v->gpr[HVI_RCX], r);
	if (leaf == 1)
		r[2] = (r[2] & ~(1u << 27)) | (u32)(guest_cr4() >> 18 & 1) << 27;	/* OSXSAVE */
	v->gpr[HVI_RAX] = r[0];
	v->gpr[HVI_RBX] = r[1];
	v->gpr[HVI_RCX] = r[2];
	v->gpr[HVI_RDX] = r[3];
}
