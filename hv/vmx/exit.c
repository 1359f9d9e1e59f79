/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* exit.c - VM exits (SDM vol. 3 appendix C): what the module does itself, what the engine is told. */
#include <asm/processor-flags.h>
#include "hvi_vmx.h"

/* ---- helpers ---------------------------------------------------------------------------- */

struct hvi_exit *exit_record(struct vcpu *v, u32 reason)
{
	struct hvi_exit *x = &v->page->exit;

	*x = (struct hvi_exit){ .reason = reason };
	return x;
}

int exit_engine(struct vcpu *v, u32 reason)
{
	exit_record(v, reason);
	return reason;
}

u32 guest_cpl(void)
{
	return vmcs_read32(F_GUEST_SS_ACCESS) >> 5 & 3;
}

int guest_code_bits(void)
{
	u32 cs = vmcs_read32(F_GUEST_CS_ACCESS);

	if ((cs & ACCESS_L) && (vmcs_read(F_GUEST_EFER) & 0x400))
		return 64;
	return cs & ACCESS_DB ? 32 : 16;
}

int inject_exception(struct vcpu *v, u32 vector, bool has_err, u32 err)
{
	v->evt = (struct event){
		.valid = true, .type = HVI_EVENT_EXCEPTION, .vector = vector, .has_err = has_err, .err = err,
	};
	/* One that the engine wants to see, as if the CPU had raised it. */
	if (v->vm->exception_exit >> vector & 1) {
		struct hvi_exit *x = exit_record(v, HVI_EXIT_EXCEPTION);

		x->number = vector;
		x->value = err;
		return HVI_EXIT_EXCEPTION;
	}
	return 0;
}

int inject_gp0(struct vcpu *v)
{
	return inject_exception(v, VEC_GP, true, 0);
}

int inject_ud(struct vcpu *v)
{
	return inject_exception(v, VEC_UD, false, 0);
}

/* RIP past an instruction of len bytes, with what the CPU would do at its end. */
void skip(struct vcpu *v, u32 len)
{
	u64 rip = vmcs_read(F_GUEST_RIP) + len, rflags = vmcs_read(F_GUEST_RFLAGS);
	u32 block = vmcs_read32(F_INTERRUPTIBILITY);
	int bits = guest_code_bits();

	vmcs_write(F_GUEST_RIP, bits == 64 ? rip : bits == 32 ? (u32)rip : (u16)rip);
	if (rflags & FLAG_RF)
		vmcs_write(F_GUEST_RFLAGS, rflags & ~(u64)FLAG_RF);
	if (block & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS))
		vmcs_write(F_INTERRUPTIBILITY, block & ~(HVI_BLOCK_STI | HVI_BLOCK_MOV_SS));
	if ((rflags & FLAG_TF) && !(v->debugctl & 2))
		vmcs_write(F_PENDING_DEBUG, vmcs_read(F_PENDING_DEBUG) | 0x4000);
	v->evt.valid = false;
	if (v->one || v->step_back != ~0u)
		step_finish(v, false);
}

static int unsupported(struct vcpu *v, u32 detail)
{
	struct hvi_exit *x = exit_record(v, HVI_EXIT_EMULATION);

	x->value = detail;
	x->insn_len = v->rip_len;
	return HVI_EXIT_EMULATION;
}

/* ---- EPT violations (SDM 27.2.1, table 27-7) ------------------------------------------------- */

#define Q_GLA		(1u << 7)
#define Q_FINAL		(1u << 8)

static int exit_ept(struct vcpu *v, u64 q)
{
	u64 gpa = vmcs_read(F_GPA), gfn = gpa >> PAGE_SHIFT, gva = 0;
	bool walk = !(q & Q_FINAL), ram = ram_index(v->vm, gfn) != NO_PAGE;
	u32 access = q & HVI_RWX, rights = view_rights(v->vm, v->view, gfn);
	u32 allowed = step_rights(v, gfn, rights);
	struct hvi_exit *x;

	if ((q & INTR_NMI_UNBLOCK) && !v->evt.valid)
		vmcs_write(F_INTERRUPTIBILITY, vmcs_read32(F_INTERRUPTIBILITY) | HVI_BLOCK_NMI);
	if (q & Q_GLA)
		gva = vmcs_read(F_GUEST_LINEAR);
	if (ram && !(access & ~allowed)) {
		int level;
		const u64 *e = ept_leaf(v->vm->view[v->view].root, gfn, &level);

		if (e && !(access & ~*e) && v->spurious++ < 16)
			return 0;	/* the CPU's copy was older than the entry */
		v->spurious = 0;
		v->fill_gfn = gfn;
		return EXIT_FILL;
	}
	v->spurious = 0;
	if ((access & ~allowed) && ept_hides_mark(v->vm, v->view, gfn)) {
		v->fill_gfn = gfn;
		return EXIT_FILL;	/* the CPU decides with the entry before it */
	}
	if (ram && (q & Q_GLA) && walk && (access & HVI_W) && (rights & HVI_R) && guest_set_ad(v, gpa)) {
		if (!step_walked(v, gfn))
			v->page->counters.ad_writes++;
		return 0;
	}
	x = exit_record(v, HVI_EXIT_EPT);
	x->gpa = gpa;
	x->gva = gva;
	x->access = access;
	if (q & Q_GLA)
		x->access |= HVI_ACCESS_GVA;
	if (walk)
		x->access |= HVI_ACCESS_WALK;
	if (!ram)
		x->access |= HVI_ACCESS_NO_RAM;
	if (v->evt.valid)
		x->access |= HVI_ACCESS_EVENT;
	else if (guest_cpl() == 3)
		x->access |= HVI_ACCESS_USER;
	x->rights = rights;
	return HVI_EXIT_EPT;
}

/* SDM 28.3.4.2: a hole in the table (bit 11), which is none of ours: the page is not writable; or it is corrupt. */
static int exit_spp(struct vcpu *v)
{
	u64 q = vmcs_read(F_QUALIFICATION);

	if (!(q & (1u << 11)))
		return unsupported(v, X_SPP);
	return exit_ept(v, HVI_W | Q_GLA | Q_FINAL | (q & INTR_NMI_UNBLOCK));
}

/* ---- exceptions ------------------------------------------------------------------------------- */

static int exit_exception(struct vcpu *v)
{
	u32 info = vmcs_read32(F_EXIT_INTR_INFO), vector = INTR_VECTOR(info);
	struct event e = {
		.valid = true, .type = INTR_TYPE(info), .vector = vector, .has_err = info & INTR_ERROR,
		.err = info & INTR_ERROR ? vmcs_read32(F_EXIT_INTR_ERROR) : 0,
	};
	struct hvi_exit *x;

	if (e.type == HVI_EVENT_NMI || (e.type == HVI_EVENT_EXCEPTION && vector == VEC_MC))
		return 0;		/* the host's: done with interrupts off */
	if (e.type >= HVI_EVENT_SOFT_INT)
		e.len = v->rip_len;
	if (vector == VEC_PF) {
		e.set_cr2 = true;
		e.cr2 = vmcs_read(F_QUALIFICATION);
	}
	if (vector == VEC_DB && e.type == HVI_EVENT_EXCEPTION) {
		e.is_db = true;
		e.dr6 = vmcs_read(F_QUALIFICATION) & 0xe00f;
	}
	if ((info & INTR_NMI_UNBLOCK) && vector != VEC_DF && !v->evt.valid)
		vmcs_write(F_INTERRUPTIBILITY, vmcs_read32(F_INTERRUPTIBILITY) | HVI_BLOCK_NMI);
	if (v->nov && e.type == HVI_EVENT_EXCEPTION)
		step_faulted(v);
	if (v->evt.valid)
		event_merge(v, &e);
	else
		v->evt = e;
	if (!v->evt.valid || v->evt.injected || !(v->vm->exception_exit >> v->evt.vector & 1))
		return 0;
	x = exit_record(v, HVI_EXIT_EXCEPTION);
	x->number = v->evt.vector;
	x->value = v->evt.has_err ? v->evt.err : 0;
	x->gva = v->evt.set_cr2 ? v->evt.cr2 : 0;
	x->insn_len = v->evt.len;
	return HVI_EXIT_EXCEPTION;
}

/* NMIs and machine checks belong to the host: run its handlers, as if they had come now. */
void handle_host_events(struct vcpu *v, u32 reason)
{
	u32 info;

	if (likely(reason != X_EXCEPTION))
		return;
	info = vmcs_read32(F_EXIT_INTR_INFO);
	if (INTR_TYPE(info) == HVI_EVENT_NMI)
		asm volatile("int $2" : : : "memory");
	else if (INTR_TYPE(info) == HVI_EVENT_EXCEPTION && INTR_VECTOR(info) == VEC_MC)
		asm volatile("int $18" : : : "memory");
}

/* ---- instructions -------------------------------------------------------------------------------- */

/* RCX of a REP, in the instruction's address size (SDM table 27-8). */
static u64 rep_count(struct vcpu *v)
{
	u32 size = vmx_caps.ins_outs_info ? vmcs_read32(F_EXIT_INSN_INFO) >> 7 & 7 : guest_code_bits() / 32;
	u64 count = v->gpr[HVI_RCX];

	return size == 0 ? (u16)count : size == 1 ? (u32)count : count;
}

/* A port that the engine has switched off, without a device. INS and OUTS go to the engine all the same. */
static bool io_silent(struct vcpu *v, u64 q)
{
	u32 port = q >> 16 & 0xffff, size = (q & 7) + 1;
	u64 *rax = &v->gpr[HVI_RAX];

	if ((q & (1u << 4)) || port + size > PORTS ||
	    find_next_zero_bit(v->vm->io_silent, port + size, port) < port + size)
		return false;
	if (q & (1u << 3))
		*rax = size == 4 ? 0xffffffff : *rax | (size == 2 ? 0xffff : 0xff);
	skip(v, v->rip_len);
	return true;
}

static int exit_io(struct vcpu *v)
{
	u64 q = vmcs_read(F_QUALIFICATION), value = v->gpr[HVI_RAX];
	struct hvi_exit *x;

	if (unlikely(v->vm->any_silent) && io_silent(v, q))
		return 0;

	if ((q & 0x30) == 0x30 && !rep_count(v)) {	/* no element: nothing to do */
		skip(v, v->rip_len);
		return 0;
	}
	x = exit_record(v, HVI_EXIT_IO);
	x->number = q >> 16 & 0xffff;
	x->size = (q & 7) + 1;
	x->insn_len = v->rip_len;
	if (q & (1u << 3))
		x->flags |= HVI_IO_IN;
	if (q & (1u << 4)) {
		x->flags |= HVI_IO_STRING;
		x->gva = vmcs_read(F_GUEST_LINEAR);
		if (q & (1u << 5))
			x->flags |= HVI_IO_REP;
	} else if (!(q & (1u << 3))) {
		x->value = x->size == 1 ? (u8)value : x->size == 2 ? (u16)value : (u32)value;
	}
	return HVI_EXIT_IO;
}

static int exit_cpuid(struct vcpu *v)
{
	struct hvi_exit *x;

	if (likely(!v->vm->cpuid_exit)) {
		cpuid_answer(v);
		skip(v, v->rip_len);
		return 0;
	}
	x = exit_record(v, HVI_EXIT_CPUID);
	x->value = (u32)v->gpr[HVI_RAX];
	x->old = (u32)v->gpr[HVI_RCX];
	x->insn_len = v->rip_len;
	return HVI_EXIT_CPUID;
}

int do_hlt(struct vcpu *v)
{
	skip(v, v->rip_len);
	v->mp_state = HVI_MP_HALTED;
	return 0;
}

static int plain(struct vcpu *v, u32 reason)
{
	exit_record(v, reason)->insn_len = v->rip_len;
	return reason;
}

static int step_done(struct vcpu *v)
{
	v->pass_dtr = false;
	if (v->one)
		step_finish(v, true);
	return 0;
}

int handle_exit(struct vcpu *v, u32 reason)
{
	event_vectoring(v);
	v->rip_len = vmcs_read32(F_EXIT_INSN_LEN);
	switch (reason) {
	case X_EPT: return exit_ept(v, vmcs_read(F_QUALIFICATION));
	case X_IO: return exit_io(v);
	case X_EXCEPTION: return exit_exception(v);
	case X_EXTERNAL: case X_INT_WINDOW: case X_NMI_WINDOW: case X_TIMER: return 0;
	case X_MTF: return step_done(v);
	case X_CPUID: return exit_cpuid(v);
	case X_HLT: return v->vm->hlt_exit ? plain(v, HVI_EXIT_HLT) : do_hlt(v);
	case X_CR: return exit_cr(v);
	case X_DR: return exit_dr(v);
	case X_RDMSR: return exit_rdmsr(v);
	case X_WRMSR: return exit_wrmsr(v);
	case X_XSETBV: return exit_xsetbv(v);
	case X_GDT_IDT: return exit_gdt_idt(v);
	case X_LDT_TR: return exit_ldt_tr(v);
	case X_VMFUNC: return exit_vmfunc(v);
	case X_SPP: return exit_spp(v);
	case X_VMCALL: return v->vm->vmcall_exit ? plain(v, HVI_EXIT_VMCALL) : inject_ud(v);
	case X_INVD: case X_WBINVD:		/* memory is coherent */
		skip(v, v->rip_len);
		return 0;
	case X_RDPMC: return inject_gp0(v);
	case X_TRIPLE:
		v->mp_state = HVI_MP_SHUTDOWN;
		v->evt.valid = false;
		step_drop(v);
		return exit_engine(v, HVI_EXIT_SHUTDOWN);
	case X_TASK: return unsupported(v, 0x5441534b);		/* "TASK": hardware task switches */
	case X_EPT_MISCONFIG: return unsupported(v, X_EPT_MISCONFIG);
	default:		/* VMX, SMX, MONITOR: not in the guest's CPUID */
		if (reason == X_GETSEC || reason == X_MWAIT || reason == X_MONITOR ||
		    (reason > X_VMCALL && reason <= X_VMXON) || reason == X_INVEPT || reason == X_INVVPID)
			return inject_ud(v);
		return unsupported(v, reason);
	}
}
