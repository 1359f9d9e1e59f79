/* SPDX-License-Identifier: MIT */
/*
 * syscall.c - SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2B), SWAPGS and the
 * instructions that read and write the FS and GS bases.
 */
#include "sys.h"

#define EFER_SCE	1u

static struct hvi_segment flat_code(u32 sel, u32 dpl, bool l)
{
	return (struct hvi_segment){
		.selector = (u16)sel, .limit = 0xffffffff,
		.access = 0x809b | dpl << 5 | (l ? 1u << 13 : 1u << 14),
	};
}

static struct hvi_segment flat_stack(u32 sel, u32 dpl)
{
	return (struct hvi_segment){ .selector = (u16)sel, .limit = 0xffffffff, .access = 0xc093 | dpl << 5 };
}

static void enter_at(struct cpu *c, u8 cpl, struct hvi_segment cs, struct hvi_segment ss)
{
	c->cpl = cpl;
	c->seg[HVI_CS] = cs;
	c->seg[HVI_SS] = ss;
}

static HANDLER(syscall_insn)
{
	struct cpu_more *m = c->more;
	u64 flags = flags_all(c), rip = op_next_rip(c, o);
	u32 sel = m->star >> 32 & 0xfffc;

	if (c->code_bits != 64 || !(c->efer & EFER_SCE))
		raise_ud(c, o);
	c->gpr[HVI_RCX] = rip;
	c->gpr[HVI_R11] = flags & ~(u64)FL_RF;
	flags &= ~(m->fmask | FL_RF | FL_VM);
	enter_at(c, 0, flat_code(sel, 0, true), flat_stack(sel + 8, 0));
	flags_set_all(c, flags);
	cpu_mode_changed(c);
	return cpu_jump(c, o, m->lstar);
}

static HANDLER(sysret_insn)
{
	struct cpu_more *m = c->more;
	u32 sel = (u32)(m->star >> 48);
	u64 rcx = c->gpr[HVI_RCX];
	bool wide = o->size == 8;

	if (c->code_bits != 64 || !(c->efer & EFER_SCE))
		raise_ud(c, o);
	if (c->cpl || (wide && !is_canonical(c, rcx)))
		raise_gp0(c, o);
	if (wide)
		enter_at(c, 3, flat_code((sel + 16) | 3, 3, true), flat_stack((sel + 8) | 3, 3));
	else
		enter_at(c, 3, flat_code(sel | 3, 3, false), flat_stack((sel + 8) | 3, 3));
	flags_set_all(c, (c->gpr[HVI_R11] & 0x3c7fd7) | 2);
	cpu_mode_changed(c);
	return cpu_jump(c, o, wide ? rcx : (u32)rcx);
}

static HANDLER(sysenter_insn)
{
	struct cpu_more *m = c->more;
	u32 sel = m->sysenter_cs & 0xfffc;

	if (!(c->cr0 & 1) || !sel)
		raise_gp0(c, o);
	flags_set_all(c, flags_all(c) & ~(u64)(FL_VM | FL_IF));
	enter_at(c, 0, flat_code(sel, 0, c->long_mode), flat_stack(sel + 8, 0));
	c->gpr[HVI_RSP] = c->long_mode ? m->sysenter_esp : (u32)m->sysenter_esp;
	cpu_mode_changed(c);
	return cpu_jump(c, o, c->long_mode ? m->sysenter_eip : (u32)m->sysenter_eip);
}

static HANDLER(sysexit_insn)
{
	struct cpu_more *m = c->more;
	u32 sel = m->sysenter_cs & 0xffff;
	bool wide = o->size == 8;
	u64 rsp = c->gpr[HVI_RCX], rip = c->gpr[HVI_RDX];

	if (!(c->cr0 & 1) || !(sel & 0xfffc) || c->cpl)
		raise_gp0(c, o);
	if (wide && (!is_canonical(c, rsp) || !is_canonical(c, rip)))
		raise_gp0(c, o);
	if (wide)
		enter_at(c, 3, flat_code((sel + 32) | 3, 3, true), flat_stack((sel + 40) | 3, 3));
	else
		enter_at(c, 3, flat_code((sel + 16) | 3, 3, false), flat_stack((sel + 24) | 3, 3));
	c->gpr[HVI_RSP] = wide ? rsp : (u32)rsp;
	cpu_mode_changed(c);
	return cpu_jump(c, o, wide ? rip : (u32)rip);
}

static HANDLER(swapgs_insn)
{
	struct cpu_more *m = c->more;
	u64 old = c->seg[HVI_GS].base;

	if (c->code_bits != 64)
		raise_ud(c, o);
	need_cpl0(c, o);
	c->seg[HVI_GS].base = c->segbase[HVI_GS] = m->kernel_gs_base;
	m->kernel_gs_base = old;
	NEXT(c, o);
}

static void need_fsgsbase(struct cpu *c, const struct op *o)
{
	if (c->code_bits != 64 || !(c->cr4 & (1u << 16)))
		raise_ud(c, o);
}

static HANDLER(rdbase)
{
	need_fsgsbase(c, o);
	set_gpr(c, o->a, o->size, c->seg[o->b].base);
	NEXT(c, o);
}

static HANDLER(wrbase)
{
	u64 v = o->size == 4 ? (u32)c->gpr[o->a] : c->gpr[o->a];

	need_fsgsbase(c, o);
	if (!is_canonical(c, v))
		raise_gp0(c, o);
	c->seg[o->b].base = c->segbase[o->b] = v;
	NEXT(c, o);
}

static enum xlate base_insn(const struct insn *in, struct op *o, op_fn fn, u8 seg)
{
	o->fn = fn;
	o->a = reg_number(in->op[0].reg.value);
	o->b = seg;
	o->size = (u8)(in->op[0].size / 8);
	return XLATE_NEXT;
}

static enum xlate end(struct op *o, op_fn fn, bool wide)
{
	o->fn = fn;
	o->size = wide ? 8 : 4;
	return XLATE_END;
}

enum xlate xlate_syscall(const struct insn *in, struct op *o)
{
	bool wide = in->z.attributes & ZYDIS_ATTRIB_HAS_REX && in->z.raw.rex.W;

	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_SYSCALL: return end(o, syscall_insn, true);
	case ZYDIS_MNEMONIC_SYSRET: return end(o, sysret_insn, wide);
	case ZYDIS_MNEMONIC_SYSENTER: return end(o, sysenter_insn, false);
	case ZYDIS_MNEMONIC_SYSEXIT: return end(o, sysexit_insn, wide);
	case ZYDIS_MNEMONIC_SWAPGS:
		o->fn = swapgs_insn;
		return XLATE_NEXT;
	case ZYDIS_MNEMONIC_RDFSBASE: return base_insn(in, o, rdbase, HVI_FS);
	case ZYDIS_MNEMONIC_RDGSBASE: return base_insn(in, o, rdbase, HVI_GS);
	case ZYDIS_MNEMONIC_WRFSBASE: return base_insn(in, o, wrbase, HVI_FS);
	case ZYDIS_MNEMONIC_WRGSBASE: return base_insn(in, o, wrbase, HVI_GS);
	default: return XLATE_NO;
	}
}
