/* SPDX-License-Identifier: MIT */
/*
 * far.c - far JMP, CALL and RET, and IRET (SDM vol. 2A: CALL, IRET, JMP; 2B:
 * RET). Call gates, task gates and TSSs as targets are exits of kind
 * EMULATION: no system that hvi runs uses them.
 */
#include "sys.h"

#define NO_GATES	0x45544147ull	/* "GATE", the detail of the EMULATION exit */
#define NO_TASKS	0x4b534154ull	/* "TASK" */

static bool real_or_v86(const struct cpu *c)
{
	return !(c->cr0 & 1) || (c->rflags & FL_VM);
}

static u64 stack_mask(const struct cpu *c)
{
	return c->stack_size == 8 ? ~0ull : c->stack_size == 4 ? 0xffffffff : 0xffff;
}

static void set_sp(struct cpu *c, u64 sp)
{
	set_gpr(c, HVI_RSP, c->stack_size, sp);
}

/* n items of `size` bytes from the top of the stack on. */
static void peek(struct cpu *c, const struct op *o, u64 *to, u32 n, u32 size, u32 skip)
{
	for (u32 i = 0; i < n; i++) {
		u64 off = (c->gpr[HVI_RSP] + skip + i * size) & stack_mask(c);
		u64 la = seg_linear(c, o, HVI_SS, off, size, false);

		to[i] = size == 8 ? ld64(c, o, la) : size == 4 ? ld32(c, o, la) : ld16(c, o, la);
	}
}

static void load_real_cs(struct cpu *c, u16 sel)
{
	struct hvi_segment *cs = &c->seg[HVI_CS];

	cs->selector = sel;
	cs->base = (u64)sel << 4;
	if (c->rflags & FL_VM) {
		cs->limit = 0xffff;
		cs->access = 0xf3;
	} else {
		cs->access = (cs->access & ~0x60u & ~(3u << 13)) | 0x9b;
	}
}

static void check_target(struct cpu *c, const struct op *o, u64 rip, const struct hvi_segment *cs)
{
	bool wide = c->long_mode && (cs->access & (1u << 13));

	if (wide ? !is_canonical(c, rip) : rip > cs->limit)
		raise_gp0(c, o);
}

/* A code segment for a far JMP or CALL without change of privilege. */
static void fetch_code(struct cpu *c, const struct op *o, u16 sel, struct hvi_segment *cs)
{
	struct descriptor d;
	u32 err = sel & ~3u;

	if (!(sel & ~3))
		raise_gp0(c, o);
	desc_fetch(c, o, sel, X_GP, 0, &d);
	if (!(d.lo & DESC_S)) {
		u32 type = DESC_TYPE(&d);

		if (type == 12 || (!c->long_mode && type == 4))
			cpu_emulation(c, o, NO_GATES);
		if (!c->long_mode && (type == 1 || type == 5 || type == 9))
			cpu_emulation(c, o, NO_TASKS);
		cpu_raise(c, o, X_GP, err);
	}
	if (!(DESC_TYPE(&d) & 8) || (c->long_mode && (d.lo & DESC_L) && (d.lo & DESC_DB)))
		cpu_raise(c, o, X_GP, err);
	if (DESC_TYPE(&d) & 4) {
		if (DESC_DPL(&d) > c->cpl)
			cpu_raise(c, o, X_GP, err);
	} else if ((sel & 3) > c->cpl || DESC_DPL(&d) != c->cpl) {
		cpu_raise(c, o, X_GP, err);
	}
	if (!(d.lo & DESC_P))
		cpu_raise(c, o, X_NP, err);
	desc_accessed(c, o, &d);
	desc_segment(&d, (u16)((sel & ~3) | c->cpl), cs);
	if (!c->long_mode)
		cs->access &= ~(1u << 13);
}

static void far_pointer(struct cpu *c, const struct op *o, u64 *off, u16 *sel)
{
	u8 bytes[10];

	*off = 0;
	if (o->base == REG_ZERO && o->aux) {	/* ptr16:16, ptr16:32 */
		*off = (u64)o->imm;
		*sel = (u16)o->disp;
		return;
	}
	mem_read(c, o, ea(c, o), bytes, o->size + 2u);
	memcpy(off, bytes, o->size);
	memcpy(sel, bytes + o->size, 2);
}

static void far_transfer(struct cpu *c, const struct op *o, bool call)
{
	struct hvi_segment cs;
	u64 off, ret = op_next_rip(c, o);
	u16 sel;

	far_pointer(c, o, &off, &sel);
	if (real_or_v86(c)) {
		if (off > (c->rflags & FL_VM ? 0xffff : c->seg[HVI_CS].limit))
			raise_gp0(c, o);
	} else {
		fetch_code(c, o, sel, &cs);
		check_target(c, o, off, &cs);
	}
	if (call) {
		u64 mask = stack_mask(c), sp = c->gpr[HVI_RSP];
		u64 at = (sp - 2 * o->size) & mask;
		u64 frame[2] = { ret, c->seg[HVI_CS].selector };
		u8 bytes[16];

		memcpy(bytes, &frame[0], o->size);
		memcpy(bytes + o->size, &frame[1], o->size);
		mem_write(c, o, seg_linear(c, o, HVI_SS, at, 2u * o->size, true), bytes, 2u * o->size);
		set_sp(c, at);
	}
	if (real_or_v86(c))
		load_real_cs(c, sel);
	else
		c->seg[HVI_CS] = cs;
	cpu_mode_changed(c);
	return cpu_jump(c, o, off);
}

static HANDLER(jmp_far)
{
	far_transfer(c, o, false);
}

static HANDLER(call_far)
{
	far_transfer(c, o, true);
}

/* ---- returns -------------------------------------------------------------------------------------- */

/* The code segment a far return or IRET goes back to; the new CPL is the selector's RPL. */
static void return_code(struct cpu *c, const struct op *o, u16 sel, struct hvi_segment *cs)
{
	struct descriptor d;
	u32 err = sel & ~3u, rpl = sel & 3;

	if (!(sel & ~3))
		raise_gp0(c, o);
	desc_fetch(c, o, sel, X_GP, 0, &d);
	if (!(d.lo & DESC_S) || !(DESC_TYPE(&d) & 8) || rpl < c->cpl)
		cpu_raise(c, o, X_GP, err);
	if (c->long_mode && (d.lo & DESC_L) && (d.lo & DESC_DB))
		cpu_raise(c, o, X_GP, err);
	if (DESC_TYPE(&d) & 4 ? DESC_DPL(&d) > rpl : DESC_DPL(&d) != rpl)
		cpu_raise(c, o, X_GP, err);
	if (!(d.lo & DESC_P))
		cpu_raise(c, o, X_NP, err);
	desc_accessed(c, o, &d);
	desc_segment(&d, sel, cs);
	if (!c->long_mode)
		cs->access &= ~(1u << 13);
}

static void return_stack(struct cpu *c, const struct op *o, u16 sel, u32 cpl, bool to_64, struct hvi_segment *ss)
{
	struct descriptor d;
	u32 err = sel & ~3u;

	if (!(sel & ~3)) {
		if (!to_64 || cpl == 3)
			raise_gp0(c, o);
		seg_null_ss(ss, cpl);
		ss->selector = sel;
		return;
	}
	desc_fetch(c, o, sel, X_GP, 0, &d);
	if ((sel & 3) != cpl || !(d.lo & DESC_S) || (DESC_TYPE(&d) & 10) != 2 || DESC_DPL(&d) != cpl)
		cpu_raise(c, o, X_GP, err);
	if (!(d.lo & DESC_P))
		cpu_raise(c, o, X_SS, err);
	desc_accessed(c, o, &d);
	desc_segment(&d, sel, ss);
}

/* Data segments of more privilege than the code returned to become null. */
static void drop_segments(struct cpu *c)
{
	static const u8 which[4] = { HVI_ES, HVI_DS, HVI_FS, HVI_GS };

	for (int i = 0; i < 4; i++) {
		struct hvi_segment *s = &c->seg[which[i]];
		u32 type = s->access & 15, dpl = s->access >> 5 & 3;

		if (!(s->access & HVI_SEG_UNUSABLE) && (type & 12) != 12 && dpl < c->cpl) {
			u64 base = s->base;

			*s = (struct hvi_segment){ .access = HVI_SEG_UNUSABLE };
			if (c->long_mode && which[i] >= HVI_FS)
				s->base = base;
		}
	}
}

static HANDLER(ret_far)
{
	struct hvi_segment cs, ss;
	u32 size = o->size, drop = (u32)o->imm;
	u64 f[4];
	u32 rpl;

	peek(c, o, f, 2, size, 0);
	if (real_or_v86(c)) {
		if (f[0] > (c->rflags & FL_VM ? 0xffff : c->seg[HVI_CS].limit))
			raise_gp0(c, o);
		set_sp(c, c->gpr[HVI_RSP] + 2 * size + drop);
		load_real_cs(c, (u16)f[1]);
		cpu_mode_changed(c);
		return cpu_jump(c, o, f[0]);
	}
	rpl = f[1] & 3;
	return_code(c, o, (u16)f[1], &cs);
	check_target(c, o, f[0], &cs);
	if (rpl == c->cpl) {
		set_sp(c, c->gpr[HVI_RSP] + 2 * size + drop);
		c->seg[HVI_CS] = cs;
		cpu_mode_changed(c);
		return cpu_jump(c, o, f[0]);
	}
	peek(c, o, f + 2, 2, size, 2 * size + drop);
	return_stack(c, o, (u16)f[3], rpl, c->long_mode && (cs.access & (1u << 13)), &ss);
	c->seg[HVI_CS] = cs;
	c->seg[HVI_SS] = ss;
	c->cpl = (u8)rpl;
	cpu_mode_changed(c);
	set_sp(c, f[2] + drop);
	drop_segments(c);
	cpu_mode_changed(c);
	return cpu_jump(c, o, f[0]);
}

/* ---- IRET -------------------------------------------------------------------------------------------- */

/* Flags that IRET with this operand size may load at the old CPL. */
static u64 iret_flags(const struct cpu *c, u64 v, u32 size)
{
	u64 may = FL_STATUS | FL_TF | FL_DF | FL_NT;

	if (size > 2)
		may |= FL_RF | FL_AC | FL_ID;
	if (c->cpl == 0)
		may |= FL_IOPL | (size > 2 ? FL_VIF | FL_VIP : 0);
	if (c->cpl <= (c->rflags & FL_IOPL) >> 12)
		may |= FL_IF;
	return (flags_all(c) & ~may) | (v & may);
}

static void load_flags(struct cpu *c, u64 v)
{
	flags_set_all(c, v);
	if (v & FL_RF)
		c->more->rf_loaded = true;
	c->icount_stop = c->rflags & FL_RF ? 0 : c->icount_stop;
}

static void unblock_nmi(struct cpu *c)
{
	c->more->nmi_blocked = false;
	c->more->in_iret = false;
	if (c->more->page->event.flags & HVI_EVENT_VALID)
		c->icount_stop = 0;	/* one is waiting */
}

static void iret_real(struct cpu *c, const struct op *o)
{
	u64 f[3], v;
	bool v86 = c->rflags & FL_VM;

	if (v86 && (c->rflags & FL_IOPL) != FL_IOPL)
		raise_gp0(c, o);
	peek(c, o, f, 3, o->size, 0);
	if (f[0] > (v86 ? 0xffff : c->seg[HVI_CS].limit))
		raise_gp0(c, o);
	set_sp(c, c->gpr[HVI_RSP] + 3 * o->size);
	v = o->size == 2 ? (flags_all(c) & ~0xffffull) | f[2] : f[2];
	if (v86)	/* IOPL stays */
		v = (v & ~(u64)(FL_IOPL | FL_VM | FL_VIF | FL_VIP)) |
		    (c->rflags & (FL_IOPL | FL_VM | FL_VIF | FL_VIP));
	else
		v = (v & ~(u64)(FL_VM | FL_VIF | FL_VIP)) | (c->rflags & (FL_VM | FL_VIF | FL_VIP));
	load_real_cs(c, (u16)f[1]);
	load_flags(c, v);
	unblock_nmi(c);
	cpu_mode_changed(c);
	return cpu_jump(c, o, f[0]);
}

static void iret_to_v86(struct cpu *c, const struct op *o, const u64 f[3])
{
	static const u8 order[4] = { HVI_ES, HVI_DS, HVI_FS, HVI_GS };
	u64 g[6];

	peek(c, o, g, 6, 4, 12);
	if ((f[0] & 0xffffffff) > 0xffff)
		raise_gp0(c, o);
	load_flags(c, (f[2] & 0x3f7fd7) | FL_VM);
	c->cpl = 3;
	unblock_nmi(c);
	seg_load(c, o, HVI_SS, (u16)g[1]);
	for (int i = 0; i < 4; i++)
		seg_load(c, o, order[i], (u16)g[2 + i]);
	load_real_cs(c, (u16)f[1]);
	cpu_mode_changed(c);
	c->gpr[HVI_RSP] = (u32)g[0];
	return cpu_jump(c, o, (u16)f[0]);
}

static HANDLER(iret)
{
	struct hvi_segment cs, ss;
	u32 size = o->size, rpl;
	u64 f[5], flags;
	bool five = c->code_bits == 64, to_64;

	c->more->in_iret = true;
	if (real_or_v86(c))
		return iret_real(c, o);
	if (c->rflags & FL_NT) {
		if (c->long_mode)
			raise_gp0(c, o);
		cpu_emulation(c, o, NO_TASKS);
	}
	peek(c, o, f, five ? 5 : 3, size, 0);
	if (!c->long_mode && size == 4 && (f[2] & FL_VM) && c->cpl == 0)
		return iret_to_v86(c, o, f);
	rpl = f[1] & 3;
	return_code(c, o, (u16)f[1], &cs);
	to_64 = c->long_mode && (cs.access & (1u << 13));
	if (!five && rpl != c->cpl) {
		peek(c, o, f + 3, 2, size, 3 * size);
		five = true;
	}
	if (five)
		return_stack(c, o, (u16)f[4], rpl, to_64, &ss);
	check_target(c, o, f[0], &cs);
	flags = iret_flags(c, f[2], size);
	if (five) {
		bool outer = rpl != c->cpl;

		c->seg[HVI_CS] = cs;
		c->seg[HVI_SS] = ss;
		c->cpl = (u8)rpl;
		if (outer)
			drop_segments(c);
		load_flags(c, flags);
		cpu_mode_changed(c);
		/* To a 16-bit stack only SP is loaded; the rest of RSP keeps its value. */
		if (c->stack_size == 2)
			set_gpr(c, HVI_RSP, 2, f[3]);
		else
			c->gpr[HVI_RSP] = c->stack_size == 4 ? (u32)f[3] : f[3];
	} else {
		set_sp(c, c->gpr[HVI_RSP] + 3 * size);
		c->seg[HVI_CS] = cs;
		load_flags(c, flags);
		cpu_mode_changed(c);
	}
	unblock_nmi(c);
	return cpu_jump(c, o, f[0]);
}

/* ---- translation ----------------------------------------------------------------------------------------- */

enum xlate xlate_far(const struct insn *in, struct op *o)
{
	const ZydisDecodedOperand *d = &in->op[0];
	bool far = in->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;

	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
		if (!far)
			return XLATE_NO;
		o->size = in->z.operand_width / 8;
		if (d->type == ZYDIS_OPERAND_TYPE_POINTER) {
			o->aux = 1;
			o->imm = d->ptr.offset;
			o->disp = d->ptr.segment;
		} else {
			o->msize = o->size + 2u;
		}
		o->fn = in->z.mnemonic == ZYDIS_MNEMONIC_JMP ? jmp_far : call_far;
		return XLATE_END;
	case ZYDIS_MNEMONIC_RET:
		if (!far)
			return XLATE_NO;
		o->size = in->z.operand_width / 8;
		o->imm = d->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && in->z.operand_count_visible ?
			 (i64)(d->imm.value.u & 0xffff) : 0;
		o->fn = ret_far;
		return XLATE_END;
	case ZYDIS_MNEMONIC_IRET: o->size = 2; o->fn = iret; return XLATE_END;
	case ZYDIS_MNEMONIC_IRETD: o->size = 4; o->fn = iret; return XLATE_END;
	case ZYDIS_MNEMONIC_IRETQ: o->size = 8; o->fn = iret; return XLATE_END;
	default:
		return XLATE_NO;
	}
}
