/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * check.c - which field made a VM entry fail: the checks of SDM vol. 3 26.2
 * (controls, host state) and 26.3.1 (guest state) on the current VMCS. Made
 * only after a failure, so what it costs does not matter.
 */
#include <asm/processor-flags.h>
#include "../abi/state.h"
#include "hvi_vmx.h"

static bool frame_ok(u64 value, u64 low)
{
	return !(value & low) && !(value >> vmx_caps.phys_bits);
}

/* ---- the event to enter with (26.2.1.3; its relation to the guest: 26.3.1.4, 26.3.1.5) -------------- */

static u32 check_event(void)
{
	u32 info = vmcs_read32(F_ENTRY_INTR_INFO), type = INTR_TYPE(info), vector = INTR_VECTOR(info);
	bool pe = vmcs_read(F_GUEST_CR0) & X86_CR0_PE, error = info & INTR_ERROR;
	bool has = type == HVI_EVENT_EXCEPTION && vector < 32 && (0x27d00u >> vector & 1);

	if (!(info & INTR_VALID))
		return 0;
	if ((info & 0x7ffff000) || type == 1 || type == 7 || (type == HVI_EVENT_NMI && vector != 2) ||
	    (type == HVI_EVENT_EXCEPTION && vector > 31) || error != (has && pe))
		return HVI_FIELD_ENTRY_EVENT;
	if (error && vmcs_read32(F_ENTRY_ERROR_CODE) >> 16)
		return HVI_FIELD_ENTRY_EVENT_ERROR_CODE;
	if (type >= HVI_EVENT_SOFT_INT && vmcs_read32(F_ENTRY_INSN_LEN) - 1 > 14)
		return HVI_FIELD_ENTRY_EVENT_INSN_LEN;
	return 0;
}

/* ---- controls (26.2.1) ----------------------------------------------------------------------------- */

static bool allowed(u32 msr, u32 value)
{
	u64 cap;

	rdmsrl(msr, cap);
	return !((u32)cap & ~value) && !(value & ~(u32)(cap >> 32));
}

static u32 check_controls(void)
{
	u32 pin = vmcs_read32(F_PIN), primary = vmcs_read32(F_PRIMARY), secondary = vmcs_read32(F_SECONDARY);
	u64 eptp = vmcs_read(F_EPTP);
	u32 bad = check_event();

	if (bad)
		return bad;
	/* NMI exiting, then virtual NMIs, then the NMI window: each needs the one before. */
	if (!allowed(VMX_TRUE_PIN, pin) || ((pin & PIN_VNMI) && !(pin & PIN_NMI)))
		return HVI_FIELD_PIN_CONTROLS;
	if (!allowed(VMX_TRUE_PRIMARY, primary) || ((primary & PRI_NMI_WINDOW) && !(pin & PIN_VNMI)))
		return HVI_FIELD_PRIMARY_CONTROLS;
	if (!allowed(VMX_SECONDARY, secondary) || ((secondary & SEC_UNRESTRICTED) && !(secondary & SEC_EPT)))
		return HVI_FIELD_SECONDARY_CONTROLS;
	if (!allowed(VMX_TRUE_EXIT, vmcs_read32(F_EXIT_CTL)))
		return HVI_FIELD_EXIT_CONTROLS;
	if (!allowed(VMX_TRUE_ENTRY, vmcs_read32(F_ENTRY_CTL)))
		return HVI_FIELD_ENTRY_CONTROLS;
	if (vmcs_read32(F_CR3_TARGETS) > 4)
		return HVI_FIELD_CR3_TARGET_COUNT;
	if (!frame_ok(vmcs_read(F_IO_BITMAP_A), 0xfff))
		return HVI_FIELD_IO_BITMAP_A;
	if (!frame_ok(vmcs_read(F_IO_BITMAP_B), 0xfff))
		return HVI_FIELD_IO_BITMAP_B;
	if (!frame_ok(vmcs_read(F_MSR_BITMAP), 0xfff))
		return HVI_FIELD_MSR_BITMAP;
	if (!vmcs_read(F_VPID))
		return HVI_FIELD_VPID;
	/* Write-back, four levels, accessed and dirty bits or not. */
	if ((eptp & 0x3f) != 0x1e || !frame_ok(eptp, 0xf80))
		return HVI_FIELD_EPT_POINTER;
	return HVI_FIELD_NOT_KNOWN;
}

/* ---- host state (26.2.2, 26.2.3) -------------------------------------------------------------------- */

static bool pat_ok(u64 pat)
{
	int i;

	for (i = 0; i < 64; i += 8)
		if ((pat >> i & 0xff) > 7 || !(0xf3 >> (pat >> i & 7) & 1))
			return false;
	return true;
}

static u32 check_host(void)
{
	static const u16 bases[] = {
		F_HOST_FS_BASE, F_HOST_GS_BASE, F_HOST_TR_BASE, F_HOST_GDTR_BASE, F_HOST_IDTR_BASE,
		F_HOST_SYSENTER_ESP, F_HOST_SYSENTER_EIP, F_HOST_RIP,
	};
	u64 cr0 = vmcs_read(F_HOST_CR0), cr4 = vmcs_read(F_HOST_CR4);
	u32 i;

	if ((cr0 & vmx_caps.cr0_fixed0) != vmx_caps.cr0_fixed0 || (cr0 & ~vmx_caps.cr0_fixed1))
		return HVI_FIELD_HOST_CR0;
	if ((cr4 & vmx_caps.cr4_fixed0) != vmx_caps.cr4_fixed0 || (cr4 & ~vmx_caps.cr4_fixed1) || !(cr4 & X86_CR4_PAE))
		return HVI_FIELD_HOST_CR4;
	if (!frame_ok(vmcs_read(F_HOST_CR3), 0))
		return HVI_FIELD_HOST_CR3;
	for (i = 0; i < 7; i++) {	/* ES CS SS DS FS GS TR: RPL and TI 0; CS and TR not null */
		u16 selector = vmcs_read(F_HOST_ES_SEL + 2 * i);

		if ((selector & 7) || (!selector && (i == 1 || i == 6)))
			return HVI_FIELD_HOST_ES_SELECTOR + 2 * i;
	}
	for (i = 0; i < ARRAY_SIZE(bases); i++)
		if (!is_canonical(vmcs_read(bases[i]), cr4 & X86_CR4_LA57))
			return bases[i];
	if (!pat_ok(vmcs_read(F_HOST_PAT)))
		return HVI_FIELD_HOST_PAT;
	/* LMA and LME, as the CPU is in 64-bit mode. */
	if ((vmcs_read(F_HOST_EFER) & ~0xd01ull) || (vmcs_read(F_HOST_EFER) & 0x500) != 0x500)
		return HVI_FIELD_HOST_EFER;
	return HVI_FIELD_NOT_KNOWN;
}

/* ---- guest state (26.3.1) ---------------------------------------------------------------------------- */

static void collect_segment(struct hvi_segment *s, int i)
{
	s->selector = vmcs_read(F_GUEST_ES_SEL + 2 * i);
	s->base = vmcs_read(F_GUEST_ES_BASE + 2 * i);
	s->limit = vmcs_read32(F_GUEST_ES_LIMIT + 2 * i);
	s->access = vmcs_read32(F_GUEST_ES_ACCESS + 2 * i);
}

/* The guest as the CPU found it, for the rules that the page is checked by. */
static void collect(struct hvi_vcpu *p)
{
	int i;

	memset(p, 0, sizeof(*p));
	for (i = 0; i < HVI_SEGS; i++)
		collect_segment(&p->seg[i], i);
	collect_segment(&p->ldtr, 6);
	collect_segment(&p->tr, 7);
	p->gdtr.base = vmcs_read(F_GUEST_GDTR_BASE);
	p->idtr.base = vmcs_read(F_GUEST_IDTR_BASE);
	p->cr0 = vmcs_read(F_GUEST_CR0);
	p->cr3 = vmcs_read(F_GUEST_CR3);
	p->cr4 = vmcs_read(F_GUEST_CR4);
	p->xcr0 = 1;
	p->efer = vmcs_read(F_GUEST_EFER);
	p->pat = vmcs_read(F_GUEST_PAT);
	p->debugctl = vmcs_read(F_GUEST_DEBUGCTL);
	p->sysenter_esp = vmcs_read(F_GUEST_SYSENTER_ESP);
	p->sysenter_eip = vmcs_read(F_GUEST_SYSENTER_EIP);
	p->rip = vmcs_read(F_GUEST_RIP);
	p->rflags = vmcs_read(F_GUEST_RFLAGS);
}

/* What stands in the VMCS alone. */
static u32 check_own(const struct hvi_vcpu *p)
{
	u64 must0 = vmx_caps.cr0_fixed0 & ~(u64)(X86_CR0_PE | X86_CR0_PG);
	bool lma = vmcs_read32(F_ENTRY_CTL) & ENTRY_IA32E;

	if ((p->cr0 & must0) != must0)
		return HVI_FIELD_GUEST_CR0;
	if ((p->cr4 & vmx_caps.cr4_fixed0) != vmx_caps.cr4_fixed0)
		return HVI_FIELD_GUEST_CR4;
	if (lma != !!(p->efer & HVI_EFER_LMA))
		return HVI_FIELD_GUEST_EFER;
	if (vmcs_read(F_GUEST_DR7) >> 32)
		return HVI_FIELD_GUEST_DR7;
	if (vmcs_read32(F_GUEST_GDTR_LIMIT) >> 16)
		return HVI_FIELD_GUEST_GDTR_LIMIT;
	if (vmcs_read32(F_GUEST_IDTR_LIMIT) >> 16)
		return HVI_FIELD_GUEST_IDTR_LIMIT;
	if ((p->rflags & ~0x3f7fd7ull) || !(p->rflags & 2))
		return HVI_FIELD_GUEST_RFLAGS;
	if (vmcs_read32(F_ACTIVITY))
		return HVI_FIELD_GUEST_ACTIVITY;
	return vmcs_read(F_VMCS_LINK) == ~0ull ? 0 : HVI_FIELD_VMCS_LINK;
}

/* 26.3.1.5. */
static u32 check_blocking(u64 rflags)
{
	u32 block = vmcs_read32(F_INTERRUPTIBILITY), info = vmcs_read32(F_ENTRY_INTR_INFO);
	bool external = (info & INTR_VALID) && INTR_TYPE(info) == HVI_EVENT_EXTERNAL;
	bool nmi = (info & INTR_VALID) && INTR_TYPE(info) == HVI_EVENT_NMI;
	bool tf = (rflags & FLAG_TF) && !(vmcs_read(F_GUEST_DEBUGCTL) & 2);
	u64 pending = vmcs_read(F_PENDING_DEBUG);

	if (external && !(rflags & FLAG_IF))
		return HVI_FIELD_GUEST_RFLAGS;
	if ((block & ~0xbu) || (block & 3) == 3 || ((block & HVI_BLOCK_STI) && !(rflags & FLAG_IF)) ||
	    ((external || nmi) && (block & 3)) || (nmi && (block & HVI_BLOCK_NMI)))
		return HVI_FIELD_GUEST_INTERRUPTIBILITY;
	if ((pending & ~0x1500full) || ((block & 3) && !!(pending & PENDING_BS) != tf))
		return HVI_FIELD_GUEST_PENDING_DEBUG;
	return 0;
}

/* 26.3.1.6. */
static u32 check_pdptes(const struct hvi_vcpu *p)
{
	u32 i;

	if (!(p->cr0 & X86_CR0_PG) || !(p->cr4 & X86_CR4_PAE) || (p->efer & HVI_EFER_LMA))
		return 0;
	for (i = 0; i < 4; i++) {
		u64 e = vmcs_read(F_GUEST_PDPTE0 + 2 * i);

		if ((e & 1) && !frame_ok(e, 0x1e6))
			return HVI_FIELD_GUEST_PDPTE0 + 2 * i;
	}
	return 0;
}

static u32 check_guest(struct hvi_vcpu *p)
{
	struct hvi_limits limits = { vmx_caps.cr4_fixed1, 1, vmx_caps.phys_bits };
	u32 bad;

	collect(p);
	bad = check_own(p);
	/* Bits that the CPU insists on and a guest may not have: NE for one is among both. */
	p->cr0 &= HVI_CR0_BITS;
	if (!bad)
		bad = hvi_bad_state(p, &limits);
	if (!bad)
		bad = check_blocking(p->rflags);
	if (!bad)
		bad = check_pdptes(p);
	return bad ? bad : HVI_FIELD_NOT_KNOWN;
}

/* number: of enum hvi_entry_error. The VMCS is as it was at the entry. */
u32 check_failed_entry(struct vcpu *v, u32 number)
{
	switch (number) {
	case HVI_ENTRY_BAD_CONTROL: return check_controls();
	case HVI_ENTRY_BAD_HOST: return check_host();
	case HVI_ENTRY_BAD_GUEST: return check_guest(&v->taken);
	default: return HVI_FIELD_NOT_KNOWN;
	}
}
