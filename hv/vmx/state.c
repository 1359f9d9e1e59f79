/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * state.c - the vCPU page: reset, loading what the engine changed, storing
 * everything at an exit. The VMCS is loaded, but for state_reset's first part.
 */
#include <asm/processor-flags.h>
#include "../abi/state.h"
#include "hvi_vmx.h"

#define EFER_LMA_BIT	(1ull << 10)

/* Guest-owned unless intercepted: no exit for a change. */
#define CR0_FREE	(X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_WP | X86_CR0_AM)
#define CR4_FREE	(X86_CR4_TSD | X86_CR4_DE | X86_CR4_PGE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT)

/* ---- control registers ---------------------------------------------------------------- */

static u64 cr0_mask(const struct vm *vm)
{
	return ~(u64)CR0_FREE | vm->cr0_exit;
}

static u64 cr4_mask(const struct vm *vm)
{
	return ~(CR4_FREE & vm->cr4_allowed) | vm->cr4_exit;
}

u64 guest_cr0(void)
{
	u64 mask = vmcs_read(F_CR0_MASK);

	return (vmcs_read(F_CR0_SHADOW) & mask) | (vmcs_read(F_GUEST_CR0) & ~mask);
}

u64 guest_cr4(void)
{
	u64 mask = vmcs_read(F_CR4_MASK);

	return (vmcs_read(F_CR4_SHADOW) & mask) | (vmcs_read(F_GUEST_CR4) & ~mask);
}

/* CD and NW would turn off the host's cache: the guest sees them, the CPU does not. */
void set_guest_cr0(struct vcpu *v, u64 cr0)
{
	u64 must = vmx_caps.cr0_fixed0 & ~(u64)(X86_CR0_PE | X86_CR0_PG);
	u64 hw = ((cr0 & ~(u64)(X86_CR0_CD | X86_CR0_NW)) | must) & vmx_caps.cr0_fixed1;

	vmcs_write(F_GUEST_CR0, hw);
	vmcs_write(F_CR0_SHADOW, cr0);
}

void set_guest_cr4(struct vcpu *v, u64 cr4)
{
	vmcs_write(F_GUEST_CR4, (cr4 | vmx_caps.cr4_fixed0) & vmx_caps.cr4_fixed1);
	vmcs_write(F_CR4_SHADOW, cr4);
}

void set_guest_efer(struct vcpu *v, u64 efer)
{
	u32 entry = vmcs_read32(F_ENTRY_CTL);

	vmcs_write(F_GUEST_EFER, efer);
	vmcs_write(F_ENTRY_CTL, efer & EFER_LMA_BIT ? entry | ENTRY_IA32E : entry & ~ENTRY_IA32E);
}

/* What follows from the VM's intercepts. */
void state_masks(struct vcpu *v)
{
	struct vm *vm = v->vm;
	u64 cr0 = guest_cr0(), cr4 = guest_cr4();
	u32 primary = v->primary_now & ~(PRI_CR3_LOAD | PRI_CR3_STORE), secondary = v->secondary_now & ~SEC_DTR;

	vmcs_write(F_CR0_MASK, cr0_mask(vm));
	vmcs_write(F_CR4_MASK, cr4_mask(vm));
	set_guest_cr0(v, cr0);
	set_guest_cr4(v, cr4);
	if (vm->cr3_exit)
		primary |= PRI_CR3_LOAD;
	if (vm->dtr_exit && (vmx_caps.secondary_allowed & SEC_DTR))
		secondary |= SEC_DTR;
	if (primary != v->primary_now)
		vmcs_write(F_PRIMARY, v->primary_now = primary);
	if (secondary != v->secondary_now)
		vmcs_write(F_SECONDARY, v->secondary_now = secondary);
	ve_load(v);
	v->controls_gen = vm->controls_gen;
}

/* ---- reset ------------------------------------------------------------------------------- */

/* Into the vCPU page and what stands outside the VMCS; the next HVI_RUN loads the page. */
void state_reset(struct vcpu *v)
{
	struct hvi_vcpu *p = v->page;
	int i;

	memset(p->gpr, 0, sizeof(p->gpr));
	p->gpr[HVI_RDX] = 0x600;
	p->rip = 0xfff0;
	p->rflags = 2;
	for (i = 0; i < HVI_SEGS; i++)
		p->seg[i] = (struct hvi_segment){ .limit = 0xffff, .access = 0x93 };
	p->seg[HVI_CS] = (struct hvi_segment){
		.base = 0xffff0000, .limit = 0xffff, .access = 0x9b, .selector = 0xf000,
	};
	p->ldtr = (struct hvi_segment){ .limit = 0xffff, .access = 0x82 };
	p->tr = (struct hvi_segment){ .limit = 0xffff, .access = 0x8b };
	p->gdtr = p->idtr = (struct hvi_table){ .limit = 0xffff };
	p->cr0 = 0x60000010;
	p->cr2 = p->cr3 = p->cr4 = p->cr8 = p->efer = 0;
	p->xcr0 = 1;
	p->star = p->lstar = p->cstar = p->fmask = p->kernel_gs_base = 0;
	p->sysenter_cs = p->sysenter_esp = p->sysenter_eip = 0;
	p->pat = 0x0007040600070406ull;
	p->apic_base = 0xfee00800 | (v->index ? 0 : 0x100);
	p->tsc = p->tsc_aux = p->debugctl = p->xss = p->spec_ctrl = 0;
	memset(p->dr, 0, sizeof(p->dr));
	p->dr[6] = DR6_FIXED;
	p->dr[7] = DR7_FIXED;
	p->interruptibility = p->pending_debug = 0;
	p->mp_state = v->index ? HVI_MP_WAIT_SIPI : HVI_MP_RUNNING;
	p->view = 0;
	p->irq_ready = 0;
	p->valid = HVI_STATE_ALL;
	p->dirty = 0;
	v->tsc_offset = -v->vm->stopped_at;
	v->page_tsc = 0;
	v->misc_enable = 1;
	v->mtrr_def = v->tsc_adjust = v->mcg_status = v->tsc_deadline = 0;
	memset(v->mtrr_fix, 0, sizeof(v->mtrr_fix));
	memset(v->mtrr_base, 0, sizeof(v->mtrr_base));
	memset(v->mtrr_mask, 0, sizeof(v->mtrr_mask));
	v->evt.valid = v->flying.valid = false;
	step_reset(v);
	v->pass_exception = v->notify_injected = v->shut_down = false;
	v->in_exit = false;
	v->view = 0;
	v->mp_state = p->mp_state;
	v->reload = HVI_STATE_ALL;
	xsave_reset(v);
}

/* ---- load --------------------------------------------------------------------------------- */

static u32 load_cr(struct vcpu *v, const struct hvi_vcpu *p)
{
	u64 efer = p->efer, cr0 = p->cr0, cr4 = p->cr4, cr3 = p->cr3, xcr0 = p->xcr0;

	v->cr2 = p->cr2;
	v->cr8 = p->cr8;
	if (xcr0 != v->xcr0)
		xsave_set_xcr0(v, xcr0);
	set_guest_cr0(v, cr0 | X86_CR0_ET);
	set_guest_cr4(v, cr4);
	set_guest_efer(v, efer);
	vmcs_write(F_GUEST_CR3, cr3);
	v->flush_vpid = true;
	if ((cr0 & X86_CR0_PG) && (cr4 & X86_CR4_PAE) && !(efer & EFER_LMA_BIT) && !load_pdptes(v, cr3))
		return HVI_FIELD_GUEST_PDPTE0;
	return 0;
}

static void load_segment(int i, const struct hvi_segment *s)
{
	vmcs_write(F_GUEST_ES_SEL + 2 * i, s->selector);
	vmcs_write(F_GUEST_ES_BASE + 2 * i, s->base);
	vmcs_write(F_GUEST_ES_LIMIT + 2 * i, s->limit);
	vmcs_write(F_GUEST_ES_ACCESS + 2 * i, s->access & 0x1f0ff);
}

static void load_segments(const struct hvi_vcpu *p)
{
	int i;

	for (i = 0; i < HVI_SEGS; i++)
		load_segment(i, &p->seg[i]);
	load_segment(6, &p->ldtr);
	load_segment(7, &p->tr);
}

static void load_msr(u32 msr, u64 *now, u64 value)
{
	if (*now != value)
		wrmsrl(msr, value);	/* the guest's are on the CPU */
	*now = value;
}

static void load_msrs(struct vcpu *v, const struct hvi_vcpu *p)
{
	load_msr(MSR_STAR, &v->star, p->star);
	load_msr(MSR_LSTAR, &v->lstar, p->lstar);
	load_msr(MSR_CSTAR, &v->cstar, p->cstar);
	load_msr(MSR_SYSCALL_MASK, &v->fmask, (u32)p->fmask);
	if (vmx_caps.secondary & SEC_RDTSCP)
		load_msr(MSR_TSC_AUX, &v->tsc_aux, (u32)p->tsc_aux);
	else
		v->tsc_aux = (u32)p->tsc_aux;
	wrmsrl(MSR_KERNEL_GS_BASE, p->kernel_gs_base);
	v->kernel_gs_base = p->kernel_gs_base;
	vmcs_write(F_GUEST_SYSENTER_CS, (u32)p->sysenter_cs);
	vmcs_write(F_GUEST_SYSENTER_ESP, p->sysenter_esp);
	vmcs_write(F_GUEST_SYSENTER_EIP, p->sysenter_eip);
	vmcs_write(F_GUEST_PAT, p->pat);
	v->debugctl = p->debugctl;
	vmcs_write(F_GUEST_DEBUGCTL, v->debugctl & 2);	/* BTF */
	v->apic_base = p->apic_base;
	v->xss = p->xss;
	v->spec_ctrl = p->spec_ctrl;
	if (p->tsc != v->page_tsc) {
		v->tsc_offset = p->tsc - rdtsc();
		vmcs_write(F_TSC_OFFSET, v->tsc_offset);
		v->page_tsc = p->tsc;
	}
}

static void load_gpr(struct vcpu *v, const struct hvi_vcpu *p)
{
	memcpy(v->gpr, p->gpr, sizeof(v->gpr));
	vmcs_write(F_GUEST_RSP, v->gpr[HVI_RSP]);
	if (p->rip != vmcs_read(F_GUEST_RIP)) {
		u32 block = vmcs_read32(F_INTERRUPTIBILITY);

		vmcs_write(F_INTERRUPTIBILITY, block & ~(HVI_BLOCK_STI | HVI_BLOCK_MOV_SS));
	}
	vmcs_write(F_GUEST_RIP, p->rip);
	vmcs_write(F_GUEST_RFLAGS, (p->rflags & 0x3f7fd5) | 2);
}

static void load_events(struct vcpu *v, const struct hvi_vcpu *p)
{
	u32 block = p->interruptibility & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS | HVI_BLOCK_NMI);
	u32 pending = p->pending_debug & 0x400f;

	if (block & HVI_BLOCK_MOV_SS)
		block &= ~HVI_BLOCK_STI;
	if ((block & HVI_BLOCK_STI) && !(p->rflags & FLAG_IF))
		block &= ~HVI_BLOCK_STI;
	vmcs_write(F_INTERRUPTIBILITY, block);
	vmcs_write(F_PENDING_DEBUG, pending & 15 ? pending | PENDING_ENABLED : pending);
	if (p->mp_state <= HVI_MP_SHUTDOWN)
		v->mp_state = p->mp_state;
}

/*
 * The page may change while it is looked at: what is checked and loaded is a
 * copy. Registers alone are left to the CPU's own check (but for RIP, which
 * Bochs 3.0 does not look at).
 */
u32 state_load(struct vcpu *v, u32 groups)
{
	const struct hvi_limits limits = { v->vm->cr4_allowed, v->vm->xcr0_allowed, vmx_caps.phys_bits };
	bool more = groups & ~HVI_STATE_GPR;
	struct hvi_vcpu *p = &v->taken;
	u32 bad;

	take(p, v->page, more ? offsetof(struct hvi_vcpu, exit) : offsetof(struct hvi_vcpu, seg));
	bad = more ? hvi_bad_state(p, &limits) : is_canonical(p->rip, false) ? 0 : HVI_FIELD_GUEST_RIP;
	if (bad)
		return bad;
	if (groups & HVI_STATE_GPR)
		load_gpr(v, p);
	if (groups & (HVI_STATE_CR | HVI_STATE_MSR)) {
		bad = load_cr(v, p);
		if (bad)
			return bad;
	}
	if (groups & (HVI_STATE_SEG | HVI_STATE_CR | HVI_STATE_MSR))
		load_segments(p);
	if (groups & HVI_STATE_TABLES) {
		vmcs_write(F_GUEST_GDTR_BASE, p->gdtr.base);
		vmcs_write(F_GUEST_IDTR_BASE, p->idtr.base);
		vmcs_write(F_GUEST_GDTR_LIMIT, p->gdtr.limit & 0xffff);
		vmcs_write(F_GUEST_IDTR_LIMIT, p->idtr.limit & 0xffff);
	}
	if (groups & HVI_STATE_MSR)
		load_msrs(v, p);
	if (groups & HVI_STATE_DR) {
		int i;

		for (i = 0; i < 4; i++)
			v->dr[i] = p->dr[i];
		v->dr[6] = (p->dr[6] & 0xe00f) | DR6_FIXED;
		v->dr[7] = (p->dr[7] & 0xffff2fff) | DR7_FIXED;
		vmcs_write(F_GUEST_DR7, v->dr[7]);
	}
	if (groups & HVI_STATE_EVENTS)
		load_events(v, p);
	return 0;
}

/* ---- store ---------------------------------------------------------------------------------- */

static void store_segment(int i, struct hvi_segment *s)
{
	s->selector = vmcs_read(F_GUEST_ES_SEL + 2 * i);
	s->base = vmcs_read(F_GUEST_ES_BASE + 2 * i);
	s->limit = vmcs_read32(F_GUEST_ES_LIMIT + 2 * i);
	s->access = vmcs_read32(F_GUEST_ES_ACCESS + 2 * i);
}

/* SDM 24.4.2: without bit 12, B0-B3 tell of breakpoints that DR7 did not enable. */
u32 pending_debug(void)
{
	u32 pending = vmcs_read(F_PENDING_DEBUG);

	return pending & (pending & PENDING_ENABLED ? PENDING_BS | 15 : PENDING_BS);
}

/* So few that the start of a string instruction, which memcpy is, would cost more. */
static __always_inline void store_words(__u64 *to, const u64 *from, int n)
{
	int i;

#pragma GCC unroll 16
	for (i = 0; i < n; i++)
		WRITE_ONCE(to[i], from[i]);
}

void state_store(struct vcpu *v)
{
	struct hvi_vcpu *p = v->page;
	int i;

	v->gpr[HVI_RSP] = vmcs_read(F_GUEST_RSP);
	store_words(p->gpr, v->gpr, HVI_GPRS);
	p->rip = vmcs_read(F_GUEST_RIP);
	p->rflags = vmcs_read(F_GUEST_RFLAGS);
	for (i = 0; i < HVI_SEGS; i++)
		store_segment(i, &p->seg[i]);
	store_segment(6, &p->ldtr);
	store_segment(7, &p->tr);
	p->gdtr.base = vmcs_read(F_GUEST_GDTR_BASE);
	p->gdtr.limit = vmcs_read32(F_GUEST_GDTR_LIMIT);
	p->idtr.base = vmcs_read(F_GUEST_IDTR_BASE);
	p->idtr.limit = vmcs_read32(F_GUEST_IDTR_LIMIT);
	p->cr0 = guest_cr0();
	p->cr2 = v->cr2;
	p->cr3 = vmcs_read(F_GUEST_CR3);
	p->cr4 = guest_cr4();
	p->cr8 = v->cr8;
	p->xcr0 = v->xcr0;
	p->efer = vmcs_read(F_GUEST_EFER);
	p->star = v->star;
	p->lstar = v->lstar;
	p->cstar = v->cstar;
	p->fmask = v->fmask;
	rdmsrl(MSR_KERNEL_GS_BASE, p->kernel_gs_base);
	p->sysenter_cs = vmcs_read32(F_GUEST_SYSENTER_CS);
	p->sysenter_esp = vmcs_read(F_GUEST_SYSENTER_ESP);
	p->sysenter_eip = vmcs_read(F_GUEST_SYSENTER_EIP);
	p->pat = vmcs_read(F_GUEST_PAT);
	p->apic_base = v->apic_base;
	p->tsc = v->page_tsc = guest_tsc(v);
	p->tsc_aux = v->tsc_aux;
	p->debugctl = v->debugctl;
	p->xss = v->xss;
	p->spec_ctrl = v->spec_ctrl;
	v->dr[7] = vmcs_read(F_GUEST_DR7);
	store_words(p->dr, v->dr, ARRAY_SIZE(p->dr));
	p->interruptibility = vmcs_read32(F_INTERRUPTIBILITY) & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS | HVI_BLOCK_NMI);
	p->pending_debug = pending_debug();
	p->mp_state = v->vm->paused[v->index] ? HVI_MP_PAUSED : v->mp_state;
	p->irq_ready = can_take_irq(v);
	p->view = v->step_back != ~0u ? v->step_back : v->view;
	p->eptp_index = ve_index(v, p->view);
	p->valid = HVI_STATE_ALL;
}

/*
 * Where the vCPU page shows an MSR, and the group it belongs to; NULL when it
 * does not. What the engine has written there and not yet run with is the
 * truth, so HVI_GET_MSRS and HVI_SET_MSRS go through it.
 */
__u64 *state_msr_field(struct vcpu *v, u32 index, u32 *group)
{
	struct hvi_vcpu *p = v->page;

	*group = HVI_STATE_MSR;
	switch (index) {
	case 0x10: return &p->tsc;
	case 0x1b: return &p->apic_base;
	case 0x48: return &p->spec_ctrl;
	case 0x174: return &p->sysenter_cs;
	case 0x175: return &p->sysenter_esp;
	case 0x176: return &p->sysenter_eip;
	case 0x1d9: return &p->debugctl;
	case 0x277: return &p->pat;
	case 0xda0: return &p->xss;
	case 0xc0000080: return &p->efer;
	case 0xc0000081: return &p->star;
	case 0xc0000082: return &p->lstar;
	case 0xc0000083: return &p->cstar;
	case 0xc0000084: return &p->fmask;
	case 0xc0000102: return &p->kernel_gs_base;
	case 0xc0000103: return &p->tsc_aux;
	case 0xc0000100: *group = HVI_STATE_SEG; return &p->seg[HVI_FS].base;
	case 0xc0000101: *group = HVI_STATE_SEG; return &p->seg[HVI_GS].base;
	default: return NULL;
	}
}
