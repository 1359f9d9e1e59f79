/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* control.c - control registers, debug registers, XCR0 (SDM vol. 2B, MOV; vol. 3A 2.5, 17.2). */
#include <linux/sched.h>
#include <asm/debugreg.h>
#include <asm/processor-flags.h>
#include "hvi_vmx.h"

#define LME (1ull << 8)
#define LMA (1ull << 10)

static u64 reg_value(struct vcpu *v, u32 n)
{
	u64 value = n == HVI_RSP ? vmcs_read(F_GUEST_RSP) : v->gpr[n];

	return guest_code_bits() == 64 ? value : (u32)value;
}

static void set_reg(struct vcpu *v, u32 n, u64 value)
{
	if (guest_code_bits() != 64)
		value = (u32)value;
	if (n == HVI_RSP)
		vmcs_write(F_GUEST_RSP, value);
	else
		v->gpr[n] = value;
}

/* SDM 4.4.1. False: reserved bits, or no memory there. */
bool load_pdptes(struct vcpu *v, u64 cr3)
{
	u64 at = cr3 & 0xffffffe0, e[4];
	const u64 *p = guest_phys(v, at);
	int i;

	if (!p && ram_index(v->vm, at >> PAGE_SHIFT) == NO_PAGE)
		return false;
	for (i = 0; i < 4; i++) {
		e[i] = p ? READ_ONCE(p[i]) : 0;
		if ((e[i] & 1) && (e[i] & (0x1e6ull | ~((1ull << vmx_caps.phys_bits) - 1))))
			return false;
	}
	for (i = 0; i < 4; i++)
		vmcs_write(F_GUEST_PDPTE0 + 2 * i, e[i]);
	return true;
}

/* ---- CR0, CR3, CR4, CR8 ---------------------------------------------------------------- */

/* Checks of a value; false: #GP(0). */
static bool cr0_ok(u64 value, u64 old)
{
	u64 efer = vmcs_read(F_GUEST_EFER), cr4 = guest_cr4();

	if (value >> 32 || ((value & X86_CR0_PG) && !(value & X86_CR0_PE)) ||
	    ((value & X86_CR0_NW) && !(value & X86_CR0_CD)))
		return false;
	if ((value & X86_CR0_PG) && !(old & X86_CR0_PG) && (efer & LME) &&
	    (!(cr4 & X86_CR4_PAE) || (vmcs_read32(F_GUEST_CS_ACCESS) & ACCESS_L)))
		return false;
	return (value & X86_CR0_PG) || !(old & X86_CR0_PG) ||
	       (guest_code_bits() != 64 && !(cr4 & X86_CR4_PCIDE));
}

static bool do_cr0(struct vcpu *v, u64 value)
{
	u64 old = guest_cr0(), efer = vmcs_read(F_GUEST_EFER);

	value |= X86_CR0_ET;
	if (!cr0_ok(value, old))
		return false;
	value &= CR0_GUEST_MASK;
	if ((value & X86_CR0_PG) && (guest_cr4() & X86_CR4_PAE) && !(efer & LME) &&
	    ((value ^ old) & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW)) && !load_pdptes(v, vmcs_read(F_GUEST_CR3)))
		return false;
	if ((value ^ old) & X86_CR0_PG)
		set_guest_efer(v, (value & X86_CR0_PG) && (efer & LME) ? efer | LMA : efer & ~LMA);
	set_guest_cr0(v, value);
	if ((value ^ old) & (X86_CR0_PG | X86_CR0_PE | X86_CR0_WP))
		v->flush_vpid = true;
	return true;
}

static bool cr3_ok(u64 *value)
{
	bool lma = vmcs_read(F_GUEST_EFER) & LMA;

	if (!lma)
		*value = (u32)*value;
	else if (guest_cr4() & X86_CR4_PCIDE)
		*value &= ~(1ull << 63);
	return !(*value >> vmx_caps.phys_bits);
}

static bool do_cr3(struct vcpu *v, u64 value)
{
	if (!cr3_ok(&value))
		return false;
	if (!(vmcs_read(F_GUEST_EFER) & LMA) && (guest_cr0() & X86_CR0_PG) && (guest_cr4() & X86_CR4_PAE) &&
	    !load_pdptes(v, value))
		return false;
	vmcs_write(F_GUEST_CR3, value);
	v->flush_vpid = true;
	return true;
}

static bool cr4_ok(struct vcpu *v, u64 value, u64 old)
{
	bool lma = vmcs_read(F_GUEST_EFER) & LMA;

	if (value & ~v->vm->cr4_allowed)
		return false;
	if (lma && (!(value & X86_CR4_PAE) || ((value ^ old) & X86_CR4_LA57)))
		return false;
	return !((value & X86_CR4_PCIDE) && !(old & X86_CR4_PCIDE) && (!lma || (vmcs_read(F_GUEST_CR3) & 0xfff)));
}

static bool do_cr4(struct vcpu *v, u64 value)
{
	u64 old = guest_cr4();

	if (!cr4_ok(v, value, old))
		return false;
	if ((guest_cr0() & X86_CR0_PG) && !(vmcs_read(F_GUEST_EFER) & LMA) && (value & X86_CR4_PAE) &&
	    ((value ^ old) & (X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PSE | X86_CR4_SMEP)) &&
	    !load_pdptes(v, vmcs_read(F_GUEST_CR3)))
		return false;
	set_guest_cr4(v, value);
	if (value != old)
		v->flush_vpid = true;
	return true;
}

/* The write of an instruction that is then skipped, or #GP(0). */
int write_cr(struct vcpu *v, u32 number, u64 value)
{
	bool ok;

	switch (number) {
	case 0: ok = do_cr0(v, value); break;
	case 3: ok = do_cr3(v, value); break;
	case 4: ok = do_cr4(v, value); break;
	default:
		ok = value <= 15;
		if (ok)
			v->cr8 = value;
	}
	if (!ok)
		return inject_gp0(v);
	skip(v, v->rip_len);
	return 0;
}

static int cr_write(struct vcpu *v, u32 number, u64 value)
{
	struct vm *vm = v->vm;
	u64 old;
	bool ok, asked;

	switch (number) {
	case 0:
		old = guest_cr0();
		value |= X86_CR0_ET;
		ok = cr0_ok(value, old);
		value &= CR0_GUEST_MASK;
		asked = (value ^ old) & vm->cr0_exit;
		break;
	case 3: {
		u64 masked = value;

		old = vmcs_read(F_GUEST_CR3);
		ok = cr3_ok(&masked);
		asked = vm->cr3_exit;
		break;
	}
	case 4:
		old = guest_cr4();
		ok = cr4_ok(v, value, old);
		asked = (value ^ old) & vm->cr4_exit;
		break;
	case 8:
		old = v->cr8;
		ok = value <= 15;
		asked = vm->cr8_exit;
		break;
	default:
		return inject_ud(v);
	}
	if (!ok)
		return inject_gp0(v);
	if (asked) {
		struct hvi_exit *x = exit_record(v, HVI_EXIT_CR_WRITE);

		x->number = number;
		x->value = value;
		x->old = old;
		x->insn_len = v->rip_len;
		return HVI_EXIT_CR_WRITE;
	}
	return write_cr(v, number, value);
}

int exit_cr(struct vcpu *v)
{
	u64 q = vmcs_read(F_QUALIFICATION), cr0;
	u32 cr = q & 15, reg = q >> 8 & 15;

	switch (q >> 4 & 3) {
	case 0:
		return cr_write(v, cr, reg_value(v, reg));
	case 1:
		set_reg(v, reg, cr == 8 ? v->cr8 : vmcs_read(F_GUEST_CR3));
		skip(v, v->rip_len);
		return 0;
	case 2:
		return cr_write(v, 0, guest_cr0() & ~(u64)X86_CR0_TS);
	default:		/* LMSW cannot clear PE */
		cr0 = guest_cr0();
		return cr_write(v, 0, (cr0 & ~0xeull) | (q >> 16 & 15));
	}
}

/* ---- debug registers: every access exits, the CPU holds them only while DR7 enables one ------ */

int exit_dr(struct vcpu *v)
{
	u64 q = vmcs_read(F_QUALIFICATION), value;
	u32 n = q & 7, reg = q >> 8 & 15;

	if (n == 4 || n == 5) {
		if (guest_cr4() & X86_CR4_DE)
			return inject_ud(v);
		n += 2;
	}
	if (guest_cpl())
		return inject_gp0(v);
	v->dr[7] = vmcs_read(F_GUEST_DR7);
	if (v->dr[7] & (1u << 13)) {		/* general detect: SDM 17.2.4; the exit comes before it */
		v->evt = (struct event){
			.valid = true, .type = HVI_EVENT_EXCEPTION, .vector = VEC_DB, .is_db = true, .dr6 = 1u << 13,
		};
		return 0;
	}
	if (q & (1u << 4)) {
		set_reg(v, reg, v->dr[n]);
	} else {
		value = reg_value(v, reg);
		if (n >= 6 && value >> 32)
			return inject_gp0(v);
		v->dr[n] = n == 6 ? (value & 0xe00f) | DR6_FIXED : n == 7 ? (value & 0xffff2fff) | DR7_FIXED : value;
		vmcs_write(F_GUEST_DR7, v->dr[7]);
	}
	skip(v, v->rip_len);
	return 0;
}

/* DR7 itself is in the VMCS. */
void load_debug_registers(struct vcpu *v)
{
	if (likely(!(vmcs_read(F_GUEST_DR7) & 0xff)))
		return;
	/* Until the entry the host's DR7 would hold for the guest's addresses. */
	if (unlikely(hw_breakpoint_active()))
		set_debugreg(0, 7);
	set_debugreg(v->dr[0], 0);
	set_debugreg(v->dr[1], 1);
	set_debugreg(v->dr[2], 2);
	set_debugreg(v->dr[3], 3);
}

/* ---- XCR0 ---------------------------------------------------------------------------------------- */

int write_xcr(struct vcpu *v, u32 number, u64 value)
{
	if (number || !(value & 1) || (value & ~v->vm->xcr0_allowed) || (value & 6) == 4 ||
	    ((value & 0xe0) && (value & 0xe6) != 0xe6))
		return inject_gp0(v);
	xsave_set_xcr0(v, value);
	skip(v, v->rip_len);
	return 0;
}

int exit_xsetbv(struct vcpu *v)
{
	u64 value = (u32)v->gpr[HVI_RAX] | v->gpr[HVI_RDX] << 32;
	u32 number = (u32)v->gpr[HVI_RCX];

	if (v->vm->xsetbv_exit) {
		struct hvi_exit *x = exit_record(v, HVI_EXIT_XSETBV);

		x->number = number;
		x->value = value;
		x->old = v->xcr0;
		x->insn_len = v->rip_len;
		return HVI_EXIT_XSETBV;
	}
	return write_xcr(v, number, value);
}
