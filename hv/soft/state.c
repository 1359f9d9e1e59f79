/* SPDX-License-Identifier: MIT */
/*
 * state.c - the vCPU page: reset, loading what the engine changed (with the
 * checks that VM entry makes, hv/abi/state.h), storing everything at an exit.
 */
#include "../abi/state.h"
#include "more.h"
#include "native.h"

#define CR0_PE	(1ull << 0)
#define CR0_PG	(1ull << 31)
#define CR4_PAE	(1ull << 5)
#define EFER_LMA (1ull << 10)

void state_reset(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct hvi_segment data = { .limit = 0xffff, .access = 0x93 };

	memset(c->gpr, 0, sizeof(c->gpr));
	c->gpr[HVI_RDX] = 0x600;
	c->flags = 0;
	c->rflags = 2;
	c->rip = 0xfff0;
	c->cr0 = 0x60000010;
	c->cr2 = c->cr3 = c->cr4 = c->cr8 = c->efer = 0;
	c->xcr0 = 1;
	c->cpl = 0;
	for (int i = 0; i < HVI_SEGS; i++)
		c->seg[i] = data;
	c->seg[HVI_CS] = (struct hvi_segment){
		.base = 0xffff0000, .limit = 0xffff, .access = 0x9b, .selector = 0xf000,
	};
	m->ldtr = (struct hvi_segment){ .limit = 0xffff, .access = 0x82 };
	m->tr = (struct hvi_segment){ .limit = 0xffff, .access = 0x8b };
	m->gdtr = m->idtr = (struct hvi_table){ .limit = 0xffff };
	m->star = m->lstar = m->cstar = m->fmask = m->kernel_gs_base = 0;
	m->sysenter_cs = m->sysenter_esp = m->sysenter_eip = 0;
	m->pat = 0x0007040600070406ull;
	m->apic_base = 0xfee00800 | (m->index ? 0 : 0x100);
	m->tsc_offset = -c->icount;
	m->tsc_aux = m->debugctl = m->xss = m->spec_ctrl = 0;
	m->misc_enable = 1;
	m->mtrr_def = 0;
	memset(m->mtrr_fix, 0, sizeof(m->mtrr_fix));
	memset(m->mtrr_base, 0, sizeof(m->mtrr_base));
	memset(m->mtrr_mask, 0, sizeof(m->mtrr_mask));
	m->tsc_adjust = 0;
	m->mcg_status = m->tsc_deadline = 0;
	memset(m->dr, 0, sizeof(m->dr));
	m->dr[6] = DR6_FIXED;
	m->dr[7] = DR7_FIXED;
	m->shadow = 0;
	m->shadow_at = ~0ull;
	m->nmi_blocked = false;
	m->pending_debug = 0;
	m->evt.valid = false;
	m->nov = 0;
	m->one = m->step_notify = false;
	m->step_back = ~0u;
	m->pass.valid = m->pass_exception = false;
	m->delivering = m->notify_injected = m->notify_step = m->shut_down = false;
	m->in_exit = false;
	m->mp_state = m->index ? HVI_MP_WAIT_SIPI : HVI_MP_RUNNING;
	m->view = 0;
	c->rep_limit = QUANTUM;
	c->blk = NULL;
	if (c->xsave) {		/* SDM table 9-1: x87 and SSE after reset */
		native_init_state(c);
		*(u16 *)c->xsave = 0x40;
	}
	cpu_mode_changed(c);
	mmu_flush_all(c);
}

static u32 load_cr(struct cpu *c, const struct hvi_vcpu *p)
{
	struct cpu_more *m = c->more;
	u64 efer = p->efer;

	c->cr0 = p->cr0 | 0x10;
	c->cr2 = p->cr2;
	c->cr4 = p->cr4;
	c->cr8 = p->cr8;
	c->xcr0 = p->xcr0;
	c->efer = efer;
	c->cr3 = p->cr3;
	if ((c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !(efer & EFER_LMA) && !mmu_load_pdptes(c, c->cr3)) {
		memset(m->pdpte, 0, sizeof(m->pdpte));
		return HVI_FIELD_GUEST_PDPTE0;
	}
	return 0;
}

static void load_segments(struct cpu *c, const struct hvi_vcpu *p)
{
	struct cpu_more *m = c->more;

	memcpy(c->seg, p->seg, sizeof(c->seg));
	for (int i = 0; i < HVI_SEGS; i++) {
		c->seg[i].access &= 0x1f0ff;
		memset(c->seg[i].reserved, 0, sizeof(c->seg[i].reserved));
	}
	m->ldtr = p->ldtr;
	m->tr = p->tr;
	/* CPL is SS.DPL (SDM 24.4.1), 0 in real mode, 3 in virtual-8086 mode. */
	c->cpl = p->rflags & FL_VM ? 3 : p->cr0 & CR0_PE ? p->seg[HVI_SS].access >> 5 & 3 : 0;
}

u32 state_load(struct cpu *c, u32 groups)
{
	struct cpu_more *m = c->more;
	const struct hvi_vcpu *p = m->page;
	struct hvi_limits limits = { cpuid_cr4_mask(c), cpuid_xcr0_mask(c), PHYS_BITS };
	bool mode = false;
	u32 bad = groups & ~HVI_STATE_GPR ? hvi_bad_state(p, &limits) : hvi_bad_rip(p);

	if (bad)
		return bad;
	if (groups & HVI_STATE_GPR) {
		u64 rip = p->rip;

		memcpy(c->gpr, p->gpr, sizeof(p->gpr));
		c->flags = p->rflags & FL_STATUS;
		if ((c->rflags ^ p->rflags) & (FL_AC | FL_VM))
			mode = true;
		if ((c->rflags ^ p->rflags) & FL_VM)
			groups |= HVI_STATE_SEG;
		c->rflags = (p->rflags & 0x3f7fd5 & ~(u64)FL_STATUS) | 2;
		if (rip != c->rip)
			m->shadow = 0;
		c->rip = rip;
	}
	if (groups & (HVI_STATE_CR | HVI_STATE_MSR)) {
		bad = load_cr(c, p);
		if (bad)
			return bad;
		mode = true;
	}
	if (groups & (HVI_STATE_SEG | HVI_STATE_CR | HVI_STATE_MSR)) {
		load_segments(c, p);
		mode = true;
	}
	if (groups & HVI_STATE_TABLES) {
		m->gdtr = p->gdtr;
		m->idtr = p->idtr;
		m->gdtr.limit &= 0xffff;
		m->idtr.limit &= 0xffff;
	}
	if (groups & HVI_STATE_MSR) {
		m->star = p->star;
		m->lstar = p->lstar;
		m->cstar = p->cstar;
		m->fmask = (u32)p->fmask;
		m->kernel_gs_base = p->kernel_gs_base;
		m->sysenter_cs = p->sysenter_cs;
		m->sysenter_esp = p->sysenter_esp;
		m->sysenter_eip = p->sysenter_eip;
		m->pat = p->pat;
		m->apic_base = p->apic_base;
		m->tsc_aux = (u32)p->tsc_aux;
		m->debugctl = p->debugctl;
		m->xss = p->xss;
		m->spec_ctrl = p->spec_ctrl;
		if (p->tsc != m->page_tsc)
			m->tsc_offset = p->tsc - c->icount;
	}
	if (groups & HVI_STATE_DR) {
		for (int i = 0; i < 4; i++)
			m->dr[i] = p->dr[i];
		m->dr[6] = (p->dr[6] & 0xe00f) | DR6_FIXED;
		m->dr[7] = (p->dr[7] & 0xffff2fff) | DR7_FIXED;
		mode = true;
	}
	if (groups & HVI_STATE_EVENTS) {
		m->nmi_blocked = p->interruptibility & HVI_BLOCK_NMI;
		m->shadow = p->interruptibility & HVI_BLOCK_MOV_SS ? HVI_BLOCK_MOV_SS :
			    p->interruptibility & HVI_BLOCK_STI ? HVI_BLOCK_STI : 0;
		m->shadow_at = c->icount;
		m->pending_debug = p->pending_debug & 0x600f;
		if (p->mp_state <= HVI_MP_SHUTDOWN)
			m->mp_state = p->mp_state;
	}
	if (mode)
		cpu_mode_changed(c);
	if (groups & (HVI_STATE_CR | HVI_STATE_MSR))
		mmu_flush_all(c);
	return 0;
}

static void store_msrs(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct hvi_vcpu *p = m->page;

	p->efer = c->efer;
	p->star = m->star;
	p->lstar = m->lstar;
	p->cstar = m->cstar;
	p->fmask = m->fmask;
	p->kernel_gs_base = m->kernel_gs_base;
	p->sysenter_cs = m->sysenter_cs;
	p->sysenter_esp = m->sysenter_esp;
	p->sysenter_eip = m->sysenter_eip;
	p->pat = m->pat;
	p->apic_base = m->apic_base;
	p->tsc = m->page_tsc = cpu_tsc(c, NULL);
	p->tsc_aux = m->tsc_aux;
	p->debugctl = m->debugctl;
	p->xss = m->xss;
	p->spec_ctrl = m->spec_ctrl;
}

/*
 * Where the vCPU page shows an MSR, and the group it belongs to; NULL when it
 * does not. What the engine has written there and not yet run with is the
 * truth, so HVI_GET_MSRS and HVI_SET_MSRS go through it.
 */
__u64 *state_msr_field(struct cpu *c, u32 index, u32 *group)
{
	struct hvi_vcpu *p = c->more->page;

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

void state_store(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct hvi_vcpu *p = m->page;

	memcpy(p->gpr, c->gpr, sizeof(p->gpr));
	p->rip = c->rip;
	p->rflags = flags_all(c);
	memcpy(p->seg, c->seg, sizeof(p->seg));
	p->ldtr = m->ldtr;
	p->tr = m->tr;
	p->gdtr = m->gdtr;
	p->idtr = m->idtr;
	p->cr0 = c->cr0;
	p->cr2 = c->cr2;
	p->cr3 = c->cr3;
	p->cr4 = c->cr4;
	p->cr8 = c->cr8;
	p->xcr0 = c->xcr0;
	store_msrs(c);
	memcpy(p->dr, m->dr, sizeof(p->dr));
	p->interruptibility = exec_interruptibility(c);
	p->mp_state = m->vm->paused[m->index] ? HVI_MP_PAUSED : m->mp_state;
	p->pending_debug = (u32)m->pending_debug;
	p->irq_ready = exec_can_take_irq(c);
	p->eptp_index = ve_index(c, m->step_back != ~0u ? m->step_back : m->view);
	p->view = m->step_back != ~0u ? m->step_back : m->view;	/* STEP is over before the engine's next view */
	p->counters.instructions = c->icount;
	p->valid = HVI_STATE_ALL;
}
