/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * check.c - why a VM entry failed with "invalid guest state": the checks of
 * SDM vol. 3 26.3.1 in their order, the answer being the encoding of the first
 * field that breaks one. 0 when none does.
 */
#include <asm/processor-flags.h>
#include "hvi_vmx.h"

struct seg {
	u64 base;
	u32 limit, access;
	u16 selector;
};

static struct seg seg_of(int i)
{
	return (struct seg){
		.base = vmcs_read(F_GUEST_ES_BASE + 2 * i), .limit = vmcs_read32(F_GUEST_ES_LIMIT + 2 * i),
		.access = vmcs_read32(F_GUEST_ES_ACCESS + 2 * i), .selector = vmcs_read(F_GUEST_ES_SEL + 2 * i),
	};
}

static bool limit_bad(const struct seg *s)
{
	bool g = s->access & (1u << 15);

	return g ? (s->limit & 0xfff) != 0xfff : s->limit >> 20;
}

static u32 check_registers(void)
{
	u64 cr0 = vmcs_read(F_GUEST_CR0), cr4 = vmcs_read(F_GUEST_CR4), efer = vmcs_read(F_GUEST_EFER);
	u64 must0 = vmx_caps.cr0_fixed0 & ~(u64)(X86_CR0_PE | X86_CR0_PG), pat = vmcs_read(F_GUEST_PAT);
	bool ia32e = vmcs_read32(F_ENTRY_CTL) & ENTRY_IA32E;
	int i;

	if ((cr0 & must0) != must0 || (cr0 & ~vmx_caps.cr0_fixed1) || ((cr0 & X86_CR0_PG) && !(cr0 & X86_CR0_PE)))
		return F_GUEST_CR0;
	if ((cr4 & vmx_caps.cr4_fixed0) != vmx_caps.cr4_fixed0 || (cr4 & ~vmx_caps.cr4_fixed1))
		return F_GUEST_CR4;
	if (ia32e && !(cr0 & X86_CR0_PG))
		return F_GUEST_CR0;
	if ((ia32e && !(cr4 & X86_CR4_PAE)) || (!ia32e && (cr4 & X86_CR4_PCIDE)))
		return F_GUEST_CR4;
	if (vmcs_read(F_GUEST_CR3) >> vmx_caps.phys_bits)
		return F_GUEST_CR3;
	if (vmcs_read(F_GUEST_DR7) >> 32)
		return F_GUEST_DR7;
	if (!is_canonical(vmcs_read(F_GUEST_SYSENTER_ESP), false))
		return F_GUEST_SYSENTER_ESP;
	if (!is_canonical(vmcs_read(F_GUEST_SYSENTER_EIP), false))
		return F_GUEST_SYSENTER_EIP;
	for (i = 0; i < 64; i += 8)
		if ((pat >> i & 0xff) > 7 || (pat >> i & 0xff) == 2 || (pat >> i & 0xff) == 3)
			return F_GUEST_PAT;
	if ((efer & ~0xd01ull) || !!(efer & 0x400) != ia32e ||
	    ((cr0 & X86_CR0_PG) && !!(efer & 0x400) != !!(efer & 0x100)))
		return F_GUEST_EFER;
	return 0;
}

static u32 check_v86(void)
{
	int i;

	for (i = 0; i < HVI_SEGS; i++) {
		struct seg s = seg_of(i);

		if (s.base != (u64)s.selector << 4)
			return F_GUEST_ES_BASE + 2 * i;
		if (s.limit != 0xffff)
			return F_GUEST_ES_LIMIT + 2 * i;
		if (s.access != 0xf3)
			return F_GUEST_ES_ACCESS + 2 * i;
	}
	return 0;
}

static u32 check_data(int i)
{
	struct seg s = seg_of(i);

	if (s.access & HVI_SEG_UNUSABLE)
		return 0;
	if (!(s.access & 1) || ((s.access & 8) && !(s.access & 2)) || !(s.access & 0x10) || !(s.access & 0x80) ||
	    (s.access & 0xf00) || limit_bad(&s))
		return F_GUEST_ES_ACCESS + 2 * i;
	return 0;
}

static u32 check_segments(void)
{
	struct seg cs = seg_of(HVI_CS), ss = seg_of(HVI_SS), ldtr = seg_of(6), tr = seg_of(7);
	bool ia32e = vmcs_read32(F_ENTRY_CTL) & ENTRY_IA32E;
	u32 bad, type = cs.access & 15, dpl = cs.access >> 5 & 3, ss_dpl = ss.access >> 5 & 3;
	int i;

	if (tr.selector & 4)
		return F_GUEST_ES_SEL + 14;
	if (!(ldtr.access & HVI_SEG_UNUSABLE) && (ldtr.selector & 4))
		return F_GUEST_ES_SEL + 12;
	if (vmcs_read(F_GUEST_RFLAGS) & FLAG_VM) {
		bad = check_v86();
		if (bad)
			return bad;
	} else {
		if ((type != 3 && !(type & 8)) || !(type & 1) || !(cs.access & 0x10) || !(cs.access & 0x80) ||
		    (cs.access & 0xf00) || (cs.access & HVI_SEG_UNUSABLE) || limit_bad(&cs) ||
		    (ia32e && (cs.access & ACCESS_L) && (cs.access & ACCESS_DB)) ||
		    (type == 3 && dpl) || ((type == 9 || type == 11) && dpl != ss_dpl) ||
		    ((type == 13 || type == 15) && dpl > ss_dpl))
			return F_GUEST_CS_ACCESS;
		if (!(ss.access & HVI_SEG_UNUSABLE) &&
		    (((ss.access & 15) != 3 && (ss.access & 15) != 7) || !(ss.access & 0x10) || !(ss.access & 0x80) ||
		     (ss.access & 0xf00) || limit_bad(&ss)))
			return F_GUEST_SS_ACCESS;
		if ((type == 3 || !(vmcs_read(F_GUEST_CR0) & X86_CR0_PE)) && ss_dpl)
			return F_GUEST_SS_ACCESS;
		for (i = 0; i < HVI_SEGS; i++) {
			bad = i == HVI_CS || i == HVI_SS ? 0 : check_data(i);
			if (bad)
				return bad;
		}
	}
	if ((tr.access & HVI_SEG_UNUSABLE) || !(tr.access & 0x80) || (tr.access & 0x10) || limit_bad(&tr) ||
	    ((tr.access & 15) != 11 && (ia32e || (tr.access & 15) != 3)))
		return F_GUEST_TR_ACCESS;
	if (!(ldtr.access & HVI_SEG_UNUSABLE) &&
	    ((ldtr.access & 0x1f) != 2 || !(ldtr.access & 0x80) || limit_bad(&ldtr)))
		return F_GUEST_LDTR_ACCESS;
	return 0;
}

static u32 check_rest(void)
{
	u64 rflags = vmcs_read(F_GUEST_RFLAGS), rip = vmcs_read(F_GUEST_RIP);
	u32 block = vmcs_read32(F_INTERRUPTIBILITY), info = vmcs_read32(F_ENTRY_INTR_INFO);
	bool code64 = (vmcs_read32(F_ENTRY_CTL) & ENTRY_IA32E) && (vmcs_read32(F_GUEST_CS_ACCESS) & ACCESS_L);
	bool tf = (rflags & FLAG_TF) && !(vmcs_read(F_GUEST_DEBUGCTL) & 2);
	u64 pending = vmcs_read(F_PENDING_DEBUG);

	if (code64 ? !is_canonical(rip, false) : rip >> 32)
		return F_GUEST_RIP;
	if ((rflags & ~0x3f7fd7ull) || !(rflags & 2))
		return F_GUEST_RFLAGS;
	if ((info & INTR_VALID) && !INTR_TYPE(info) && !(rflags & FLAG_IF))
		return F_GUEST_RFLAGS;
	if ((block & 3) == 3 || ((block & 1) && !(rflags & FLAG_IF)) ||
	    ((info & INTR_VALID) && !INTR_TYPE(info) && (block & 3)))
		return F_INTERRUPTIBILITY;
	if ((block & 3) && !!(pending & 0x4000) != tf)
		return F_PENDING_DEBUG;
	return 0;
}

u32 check_guest_state(void)
{
	u32 bad = check_registers();

	if (!bad)
		bad = check_segments();
	return bad ? bad : check_rest();
}
