/* SPDX-License-Identifier: MIT */
/*
 * control.c - control and debug registers (SDM vol. 2B, MOV; vol. 3A, 2.5,
 * 17.2), XCR0, MSRs, TLB invalidation.
 */
#include "sys.h"

#define CR0_PE	(1ull << 0)
#define CR0_NW	(1ull << 29)
#define CR0_CD	(1ull << 30)
#define CR0_PG	(1ull << 31)
#define CR0_ALL	0xe005003full
#define CR3_NO_FLUSH (1ull << 63)
#define CR4_PAE	(1ull << 5)
#define CR4_PCIDE (1ull << 17)
#define CR4_LA57 (1ull << 12)
#define CR4_OSXSAVE (1ull << 18)
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)

/* An instruction that the engine lets go on, with its value; also when the intercept is off by then. */
bool sys_pass(struct cpu *c, u32 reason, u32 number, u64 *value)
{
	struct pass *p = &c->more->pass;

	if (!p->valid || p->reason != reason || p->number != number)
		return false;
	p->valid = false;
	*value = p->value;
	return true;
}

void sys_intercept(struct cpu *c, const struct op *o, u32 reason, u32 number, u64 value, u64 old)
{
	struct hvi_exit *x = cpu_exit_record(c);

	x->number = number;
	x->value = value;
	x->old = old;
	x->insn_len = o->len;
	cpu_exit(c, o, reason);
}

/* ---- CR0 ----------------------------------------------------------------------------------- */

/* The value as CR0 takes it; raises where SDM vol. 2B, MOV CR says so. */
static u64 checked_cr0(struct cpu *c, const struct op *o, u64 v)
{
	u64 old = c->cr0;

	v |= 0x10;
	if (v >> 32 || ((v & CR0_PG) && !(v & CR0_PE)) || ((v & CR0_NW) && !(v & CR0_CD)))
		raise_gp0(c, o);
	v &= CR0_ALL;
	if ((v & CR0_PG) && !(old & CR0_PG) && (c->efer & EFER_LME) &&
	    (!(c->cr4 & CR4_PAE) || (c->seg[HVI_CS].access & (1u << 13))))
		raise_gp0(c, o);
	if (!(v & CR0_PG) && (old & CR0_PG) && (c->code_bits == 64 || (c->cr4 & CR4_PCIDE)))
		raise_gp0(c, o);
	return v;
}

static void write_cr0(struct cpu *c, const struct op *o, u64 v)
{
	u64 old = c->cr0;

	v = checked_cr0(c, o, v);
	if (sys_pass(c, HVI_EXIT_CR_WRITE, 0, &v))
		v = checked_cr0(c, o, v);	/* the engine may have given another value */
	else if ((v ^ old) & c->more->vm->cr0_exit)
		sys_intercept(c, o, HVI_EXIT_CR_WRITE, 0, v, old);
	/* SDM 4.4.1: PDPTEs are loaded when PAE paging begins or CD, NW change in it. */
	if ((v & CR0_PG) && (c->cr4 & CR4_PAE) && !(c->efer & EFER_LME) &&
	    ((v ^ old) & (CR0_PG | CR0_CD | CR0_NW)) && !mmu_load_pdptes(c, c->cr3))
		raise_gp0(c, o);
	c->cr0 = v;
	if ((v ^ old) & CR0_PG) {
		if ((v & CR0_PG) && (c->efer & EFER_LME))
			c->efer |= EFER_LMA;
		else
			c->efer &= ~EFER_LMA;
	}
	if (!(v & CR0_PE))
		c->cpl = 0;
	if ((v ^ old) & (CR0_PG | CR0_PE | (1ull << 16)))
		mmu_flush_all(c);
	cpu_mode_changed(c);
}

/* ---- CR3, CR4, CR8 ----------------------------------------------------------------------------- */

static void write_cr3(struct cpu *c, const struct op *o, u64 v)
{
	u64 cr3 = v, other;
	bool pcid = c->long_mode && (c->cr4 & CR4_PCIDE);

	if (!c->long_mode)
		cr3 = (u32)v;
	else if (pcid)
		cr3 &= ~CR3_NO_FLUSH;
	if (cr3 & ~PHYS_MASK)
		raise_gp0(c, o);
	if (sys_pass(c, HVI_EXIT_CR_WRITE, 3, &other)) {
		if (pcid) {
			v = other;
			other &= ~CR3_NO_FLUSH;
		}
		if (other & ~PHYS_MASK)
			raise_gp0(c, o);
		cr3 = other;
	} else if (c->more->vm->cr3_exit) {
		sys_intercept(c, o, HVI_EXIT_CR_WRITE, 3, v, c->cr3);
	}
	if (!c->long_mode && (c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !mmu_load_pdptes(c, cr3))
		raise_gp0(c, o);
	c->cr3 = cr3;
	if (pcid)
		mmu_switch_pcid(c, !(v & CR3_NO_FLUSH));
	else
		mmu_flush_all(c);
}

static void check_cr4(struct cpu *c, const struct op *o, u64 v)
{
	u64 old = c->cr4;

	if (v & ~cpuid_cr4_mask(c))
		raise_gp0(c, o);
	if (c->long_mode && (!(v & CR4_PAE) || ((v ^ old) & CR4_LA57)))
		raise_gp0(c, o);
	if ((v & CR4_PCIDE) && !(old & CR4_PCIDE) && (!c->long_mode || (c->cr3 & 0xfff)))
		raise_gp0(c, o);
}

static void write_cr4(struct cpu *c, const struct op *o, u64 v)
{
	u64 old = c->cr4;

	check_cr4(c, o, v);
	if (sys_pass(c, HVI_EXIT_CR_WRITE, 4, &v))
		check_cr4(c, o, v);
	else if ((v ^ old) & c->more->vm->cr4_exit)
		sys_intercept(c, o, HVI_EXIT_CR_WRITE, 4, v, old);
	/* PAE paging reloads the PDPTEs when PAE, PGE, PSE or SMEP change. */
	if ((c->cr0 & CR0_PG) && !c->long_mode && (v & CR4_PAE) && ((v ^ old) & 0x1000b0) &&
	    !mmu_load_pdptes(c, c->cr3))
		raise_gp0(c, o);
	c->cr4 = v;
	if (v != old)
		mmu_flush_all(c);
	cpu_mode_changed(c);
}

static void write_cr8(struct cpu *c, const struct op *o, u64 v)
{
	if (v > 15)
		raise_gp0(c, o);
	if (sys_pass(c, HVI_EXIT_CR_WRITE, 8, &v)) {
		if (v > 15)
			raise_gp0(c, o);
	} else if (c->more->vm->cr8_exit) {
		sys_intercept(c, o, HVI_EXIT_CR_WRITE, 8, v, c->cr8);
	}
	c->cr8 = v;
}

static HANDLER(mov_to_cr)
{
	u64 v = c->code_bits == 64 ? c->gpr[o->b] : (u32)c->gpr[o->b];

	need_cpl0(c, o);
	switch (o->a) {
	case 0: write_cr0(c, o, v); break;
	case 2: c->cr2 = v; break;
	case 3: write_cr3(c, o, v); break;
	case 4: write_cr4(c, o, v); break;
	case 8: write_cr8(c, o, v); break;
	default: raise_ud(c, o);
	}
	CONTINUE(c, o);
}

static HANDLER(mov_from_cr)
{
	u64 v;

	need_cpl0(c, o);
	switch (o->b) {
	case 0: v = c->cr0; break;
	case 2: v = c->cr2; break;
	case 3: v = c->cr3; break;
	case 4: v = c->cr4; break;
	case 8: v = c->cr8; break;
	default: raise_ud(c, o);
	}
	c->gpr[o->a] = c->code_bits == 64 ? v : (u32)v;
	NEXT(c, o);
}

static HANDLER(clts)
{
	need_cpl0(c, o);
	write_cr0(c, o, c->cr0 & ~8ull);
	CONTINUE(c, o);
}

/* LMSW changes PE, MP, EM and TS, and cannot clear PE. */
static HANDLER(lmsw)
{
	u64 v;

	need_cpl0(c, o);
	v = o->b == REG_ZERO ? ld16(c, o, ea(c, o)) : c->gpr[o->b];
	write_cr0(c, o, (c->cr0 & ~0xeull) | (v & 0xf));
	CONTINUE(c, o);
}

/* ---- debug registers ------------------------------------------------------------------------------ */

static u8 debug_register(struct cpu *c, const struct op *o, u8 n)
{
	if (n == 4 || n == 5) {
		if (c->cr4 & 8)
			raise_ud(c, o);
		n += 2;
	}
	if (n > 7)
		raise_ud(c, o);
	need_cpl0(c, o);
	if (c->more->dr[7] & (1u << 13)) {	/* general detect: SDM 17.2.4 */
		c->more->raised_dr6 = 1u << 13;
		cpu_raise(c, o, X_DB, 0);
	}
	return n;
}

static HANDLER(mov_to_dr)
{
	u64 v = c->code_bits == 64 ? c->gpr[o->b] : (u32)c->gpr[o->b];
	u8 n = debug_register(c, o, o->a);

	if (n >= 6 && v >> 32)
		raise_gp0(c, o);
	c->more->dr[n] = n == 6 ? (v & 0xe00f) | DR6_FIXED : n == 7 ? (v & 0xffff2fff) | DR7_FIXED : v;
	cpu_mode_changed(c);
	CONTINUE(c, o);
}

static HANDLER(mov_from_dr)
{
	u8 n = debug_register(c, o, o->b);

	c->gpr[o->a] = c->code_bits == 64 ? c->more->dr[n] : (u32)c->more->dr[n];
	NEXT(c, o);
}

/* ---- XCR0 --------------------------------------------------------------------------------------------- */

static HANDLER(xgetbv)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		raise_ud(c, o);
	if ((u32)c->gpr[HVI_RCX])	/* XCR1 is not offered */
		raise_gp0(c, o);
	c->gpr[HVI_RAX] = (u32)c->xcr0;
	c->gpr[HVI_RDX] = c->xcr0 >> 32;
	NEXT(c, o);
}

static HANDLER(xsetbv)
{
	u64 v = (u32)c->gpr[HVI_RAX] | c->gpr[HVI_RDX] << 32;

	if (!(c->cr4 & CR4_OSXSAVE))
		raise_ud(c, o);
	need_cpl0(c, o);
	/* VMX checks after the exit (SDM 25.1.2): the exit sees bad values as well. */
	if (!sys_pass(c, HVI_EXIT_XSETBV, (u32)c->gpr[HVI_RCX], &v) && c->more->vm->xsetbv_exit)
		sys_intercept(c, o, HVI_EXIT_XSETBV, (u32)c->gpr[HVI_RCX], v, c->xcr0);
	if ((u32)c->gpr[HVI_RCX] || !(v & 1) || (v & ~cpuid_xcr0_mask(c)) || (v & 6) == 4)
		raise_gp0(c, o);
	c->xcr0 = v;
	CONTINUE(c, o);
}

/* ---- MSRs ------------------------------------------------------------------------------------------------ */

static bool msr_bit(const u8 (*map)[MSR_BITMAP / 8], u32 index)
{
	u32 range, bit;

	return !vm_msr_bit(index, &range, &bit) && (map[range][bit / 8] >> bit % 8 & 1);
}

static HANDLER(rdmsr)
{
	u32 index = (u32)c->gpr[HVI_RCX];
	u64 v = 0;

	need_cpl0(c, o);
	if (msr_bit(c->more->vm->msr_read, index) && !sys_pass(c, HVI_EXIT_MSR_READ, index, &v))
		sys_intercept(c, o, HVI_EXIT_MSR_READ, index, 0, 0);
	if (!msr_read(c, o, index, &v))
		raise_gp0(c, o);
	c->gpr[HVI_RAX] = (u32)v;
	c->gpr[HVI_RDX] = v >> 32;
	NEXT(c, o);
}

static HANDLER(wrmsr)
{
	u32 index = (u32)c->gpr[HVI_RCX];
	u64 v = (u32)c->gpr[HVI_RAX] | c->gpr[HVI_RDX] << 32, old = 0;

	need_cpl0(c, o);
	if (!sys_pass(c, HVI_EXIT_MSR_WRITE, index, &v) && msr_bit(c->more->vm->msr_write, index)) {
		msr_read(c, o, index, &old);
		sys_intercept(c, o, HVI_EXIT_MSR_WRITE, index, v, old);
	}
	if (!msr_write_ok(c, index, v))
		raise_gp0(c, o);
	old = c->efer;
	/* The clock of a write is that of its instruction. */
	if (index == 0x10)
		msr_write(c, index, v - (u64)(o - c->blk->ops));
	else
		msr_write(c, index, v);
	if (c->efer != old)
		mmu_flush_all(c);
	cpu_mode_changed(c);
	CONTINUE(c, o);
}

/* ---- TLB ---------------------------------------------------------------------------------------------------- */

static HANDLER(invlpg)
{
	u64 la = c->gpr[o->base] + (c->gpr[o->index] << o->scale) + (u64)o->disp;

	need_cpl0(c, o);
	if (o->asize == 4)
		la = (u32)la;
	else if (o->asize == 2)
		la = (u16)la;
	la += c->segbase[o->seg];
	mmu_flush_page(c, c->code_bits == 64 ? la : (u32)la);
	CONTINUE(c, o);
}

static HANDLER(invpcid)
{
	u64 d[2], type = c->code_bits == 64 ? c->gpr[o->a] : (u32)c->gpr[o->a];

	need_cpl0(c, o);
	mem_read(c, o, ea(c, o), d, 16);
	if (type > 3 || d[0] >> 12 ||
	    (type < 2 && !(c->cr4 & CR4_PCIDE) && (d[0] & 0xfff)) || (type == 0 && !is_canonical(c, d[1])))
		raise_gp0(c, o);
	if (type == 0)
		mmu_flush_page(c, d[1]);
	else if (type == 1)
		mmu_flush_pcid(c, (u32)d[0]);
	else
		mmu_flush_all(c);
	CONTINUE(c, o);
}

/* INVD, WBINVD: memory is coherent here. */
static HANDLER(cache_op)
{
	need_cpl0(c, o);
	NEXT(c, o);
}

/* ---- translation ------------------------------------------------------------------------------------------------ */

static int control_number(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_CR0 && r <= ZYDIS_REGISTER_CR15 ? (int)(r - ZYDIS_REGISTER_CR0) : -1;
}

static int debug_number(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_DR0 && r <= ZYDIS_REGISTER_DR15 ? (int)(r - ZYDIS_REGISTER_DR0) : -1;
}

static enum xlate xlate_mov(const struct insn *in, struct op *o)
{
	ZydisRegister to = in->op[0].reg.value, from = in->op[1].reg.value;

	if (in->op[0].type != ZYDIS_OPERAND_TYPE_REGISTER || in->op[1].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return XLATE_NO;
	if (control_number(to) >= 0 || debug_number(to) >= 0) {
		o->a = (u8)(control_number(to) >= 0 ? control_number(to) : debug_number(to));
		o->b = reg_number(from);
		o->fn = control_number(to) >= 0 ? mov_to_cr : mov_to_dr;
		return XLATE_END;
	}
	if (control_number(from) >= 0 || debug_number(from) >= 0) {
		o->a = reg_number(to);
		o->b = (u8)(control_number(from) >= 0 ? control_number(from) : debug_number(from));
		o->fn = control_number(from) >= 0 ? mov_from_cr : mov_from_dr;
		return XLATE_NEXT;
	}
	return XLATE_NO;
}

enum xlate xlate_control(const struct insn *in, struct op *o)
{
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_MOV: return xlate_mov(in, o);
	case ZYDIS_MNEMONIC_CLTS: o->fn = clts; return XLATE_END;
	case ZYDIS_MNEMONIC_LMSW:
		o->b = in->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? reg_number(in->op[0].reg.value) : REG_ZERO;
		o->fn = lmsw;
		return XLATE_END;
	case ZYDIS_MNEMONIC_XGETBV: o->fn = xgetbv; return XLATE_NEXT;
	case ZYDIS_MNEMONIC_XSETBV: o->fn = xsetbv; return XLATE_END;
	case ZYDIS_MNEMONIC_RDMSR: o->fn = rdmsr; return XLATE_NEXT;
	case ZYDIS_MNEMONIC_WRMSR: o->fn = wrmsr; return XLATE_END;
	case ZYDIS_MNEMONIC_INVLPG: o->fn = invlpg; return XLATE_END;
	case ZYDIS_MNEMONIC_INVPCID:
		o->a = reg_number(in->op[0].reg.value);
		o->fn = invpcid;
		return XLATE_END;
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD: o->fn = cache_op; return XLATE_NEXT;
	default: return XLATE_NO;
	}
}
