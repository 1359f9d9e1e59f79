/* SPDX-License-Identifier: MIT */
/*
 * segload.c - loads of segment registers (SDM vol. 2B, MOV and POP; vol. 3A,
 * 5.6) and LAR, LSL, VERR, VERW, ARPL.
 */
#include "sys.h"

/* A descriptor that DS, ES, FS, GS or SS may hold; raises otherwise. */
static void check_data(struct cpu *c, const struct op *o, u8 seg, u16 sel, const struct descriptor *d)
{
	u32 type = DESC_TYPE(d), rpl = sel & 3, dpl = DESC_DPL(d), err = sel & ~3u;

	if (!(d->lo & DESC_S))
		cpu_raise(c, o, X_GP, err);
	if (seg == HVI_SS) {
		if (rpl != c->cpl || dpl != c->cpl || (type & 10) != 2)
			cpu_raise(c, o, X_GP, err);
		if (!(d->lo & DESC_P))
			cpu_raise(c, o, X_SS, err);
		return;
	}
	if ((type & 10) == 8)		/* execute-only */
		cpu_raise(c, o, X_GP, err);
	if ((type & 12) != 12 && (rpl > dpl || c->cpl > dpl))
		cpu_raise(c, o, X_GP, err);
	if (!(d->lo & DESC_P))
		cpu_raise(c, o, X_NP, err);
}

void seg_load(struct cpu *c, const struct op *o, u8 seg, u16 sel)
{
	struct hvi_segment *s = &c->seg[seg];
	struct descriptor d;

	if (!(c->cr0 & 1)) {		/* real mode keeps limit and rights: "unreal" mode works */
		s->selector = sel;
		s->base = (u64)sel << 4;
		s->access &= ~HVI_SEG_UNUSABLE;
	} else if (c->rflags & FL_VM) {
		*s = (struct hvi_segment){ .selector = sel, .base = (u64)sel << 4, .limit = 0xffff, .access = 0xf3 };
	} else if (!(sel & ~3)) {
		if (seg == HVI_SS) {
			if (c->code_bits != 64 || c->cpl == 3 || (sel & 3) != c->cpl)
				raise_gp0(c, o);
			seg_null_ss(s, c->cpl);
		} else {
			*s = (struct hvi_segment){ .selector = sel, .access = HVI_SEG_UNUSABLE };
		}
	} else {
		desc_fetch(c, o, sel, X_GP, 0, &d);
		check_data(c, o, seg, sel, &d);
		desc_accessed(c, o, &d);
		desc_segment(&d, sel, s);
	}
	cpu_mode_changed(c);
}

static HANDLER(mov_seg_r)
{
	seg_load(c, o, o->a, (u16)c->gpr[o->b]);
	if (o->a == HVI_SS)
		cpu_shadow(c, o, true);
	CONTINUE(c, o);
}

static HANDLER(mov_seg_m)
{
	seg_load(c, o, o->a, ld16(c, o, ea(c, o)));
	if (o->a == HVI_SS)
		cpu_shadow(c, o, true);
	CONTINUE(c, o);
}

static HANDLER(mov_r_seg)
{
	set_gpr(c, o->a, o->size, c->seg[o->b].selector);
	NEXT(c, o);
}

static HANDLER(mov_m_seg)
{
	st16(c, o, ea(c, o), c->seg[o->b].selector);
	NEXT(c, o);
}

static HANDLER(pop_seg)
{
	u64 mask = c->stack_size == 8 ? ~0ull : c->stack_size == 4 ? 0xffffffff : 0xffff;
	u64 sp = c->gpr[HVI_RSP] & mask;
	u16 sel = ld16(c, o, seg_linear(c, o, HVI_SS, sp, o->size, false));

	if (o->size > 2)	/* the whole slot must be readable */
		mem_probe_read(c, o, seg_linear(c, o, HVI_SS, sp, o->size, false), o->size);
	seg_load(c, o, o->a, sel);
	set_gpr(c, HVI_RSP, (u32)(mask == ~0ull ? 8 : mask == 0xffff ? 2 : 4), sp + o->size);
	if (o->a == HVI_SS)
		cpu_shadow(c, o, true);
	CONTINUE(c, o);
}

/* LDS, LES, LFS, LGS, LSS: offset, then selector. */
static HANDLER(load_far_pointer)
{
	u64 la = ea(c, o), off = 0;
	u8 bytes[10];
	u16 sel;

	mem_read(c, o, la, bytes, o->size + 2u);
	memcpy(&off, bytes, o->size);
	memcpy(&sel, bytes + o->size, 2);
	seg_load(c, o, o->b, sel);
	set_gpr(c, o->a, o->size, off);
	CONTINUE(c, o);
}

/* ---- LAR, LSL, VERR, VERW: never fault on the selector, ZF tells -------------------------- */

static u16 selector_operand(struct cpu *c, const struct op *o)
{
	return o->b == REG_ZERO ? ld16(c, o, ea(c, o)) : (u16)c->gpr[o->b];
}

/* The descriptor of a selector; false when there is none or it is out of reach. */
static bool visible(struct cpu *c, const struct op *o, u16 sel, struct descriptor *d)
{
	u32 type;

	if (!(sel & ~3) || !desc_address(c, sel, 8, &d->la))
		return false;
	mem_read_sys(c, o, d->la, &d->lo, 8);
	type = DESC_TYPE(d);
	if ((d->lo & DESC_S) && (type & 12) == 12)	/* conforming code */
		return true;
	return DESC_DPL(d) >= c->cpl && DESC_DPL(d) >= (sel & 3u);
}

static void set_zf(struct cpu *c, bool z)
{
	c->flags = z ? c->flags | FL_ZF : c->flags & ~(u64)FL_ZF;
}

static HANDLER(lar)
{
	struct descriptor d;
	u16 sel;
	bool ok;

	need_protected(c, o);
	sel = selector_operand(c, o);
	ok = visible(c, o, sel, &d);
	if (ok && !(d.lo & DESC_S)) {
		/* SDM table 3-53: TSS, LDT, call gate; task and 16-bit call gates not in IA-32e mode. */
		u32 legal = c->long_mode ? 0x1a04 : 0x1a3e;

		ok = legal >> DESC_TYPE(&d) & 1;
	}
	if (ok)
		set_gpr(c, o->a, o->size, o->size == 2 ? d.lo >> 32 & 0xff00 : d.lo >> 32 & 0xffff00);
	set_zf(c, ok);
	NEXT(c, o);
}

static HANDLER(lsl)
{
	struct descriptor d;
	struct hvi_segment s;
	u16 sel;
	bool ok;

	need_protected(c, o);
	sel = selector_operand(c, o);
	ok = visible(c, o, sel, &d);
	if (ok && !(d.lo & DESC_S))
		ok = (c->long_mode ? 0x0a04 : 0x0a0e) >> DESC_TYPE(&d) & 1;
	if (ok) {
		d.hi = 0;
		desc_segment(&d, sel, &s);
		set_gpr(c, o->a, o->size, s.limit);
	}
	set_zf(c, ok);
	NEXT(c, o);
}

static HANDLER(verify)
{
	struct descriptor d;
	bool ok;

	need_protected(c, o);
	ok = visible(c, o, selector_operand(c, o), &d) && (d.lo & DESC_S);
	if (ok && o->aux)	/* VERW: writable data */
		ok = (DESC_TYPE(&d) & 10) == 2;
	else if (ok)		/* VERR: data, or readable code */
		ok = (DESC_TYPE(&d) & 10) != 8;
	set_zf(c, ok);
	NEXT(c, o);
}

static HANDLER(arpl)
{
	u64 la = 0;
	u16 dst, rpl = (u16)c->gpr[o->b] & 3;
	bool mem = o->a == REG_ZERO;

	need_protected(c, o);
	if (mem) {
		la = ea(c, o);
		dst = ld16_rmw(c, o, la);
	} else {
		dst = (u16)c->gpr[o->a];
	}
	set_zf(c, (dst & 3) < rpl);
	if ((dst & 3) < rpl) {
		dst = (u16)((dst & ~3) | rpl);
		if (mem)
			st16(c, o, la, dst);
		else
			set_gpr(c, o->a, 2, dst);
	}
	NEXT(c, o);
}

/* ---- translation ------------------------------------------------------------------------------ */

static int seg_index(const ZydisDecodedOperand *d)
{
	if (d->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return -1;
	switch (d->reg.value) {
	case ZYDIS_REGISTER_ES: return HVI_ES;
	case ZYDIS_REGISTER_CS: return HVI_CS;
	case ZYDIS_REGISTER_SS: return HVI_SS;
	case ZYDIS_REGISTER_DS: return HVI_DS;
	case ZYDIS_REGISTER_FS: return HVI_FS;
	case ZYDIS_REGISTER_GS: return HVI_GS;
	default: return -1;
	}
}

static HANDLER(mov_cs)
{
	raise_ud(c, o);
}

static bool is_mem(const ZydisDecodedOperand *d)
{
	return d->type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static enum xlate xlate_mov(const struct insn *in, struct op *o)
{
	int to = seg_index(&in->op[0]), from = seg_index(&in->op[1]);

	if (to >= 0) {
		o->a = (u8)to;
		o->b = is_mem(&in->op[1]) ? REG_ZERO : reg_number(in->op[1].reg.value);
		o->msize = is_mem(&in->op[1]) ? 2 : 0;
		o->fn = to == HVI_CS ? mov_cs : is_mem(&in->op[1]) ? mov_seg_m : mov_seg_r;
		return XLATE_END;
	}
	if (from >= 0) {
		o->b = (u8)from;
		if (is_mem(&in->op[0])) {
			o->fn = mov_m_seg;
		} else {
			o->a = reg_number(in->op[0].reg.value);
			o->size = (u8)(in->op[0].size / 8);
			o->fn = mov_r_seg;
		}
		return XLATE_NEXT;
	}
	return XLATE_NO;
}

static enum xlate xlate_pointer(const struct insn *in, struct op *o, u8 seg)
{
	o->a = reg_number(in->op[0].reg.value);
	o->b = seg;
	o->size = (u8)(in->op[0].size / 8);
	o->fn = load_far_pointer;
	return XLATE_END;
}

enum xlate xlate_segment(const struct insn *in, struct op *o)
{
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return xlate_mov(in, o);
	case ZYDIS_MNEMONIC_POP: {
		int seg = seg_index(&in->op[0]);

		if (seg < 0)
			return XLATE_NO;
		o->a = (u8)seg;
		o->size = in->z.operand_width / 8;
		if (in->code_bits == 64 && o->size != 2)
			o->size = 8;
		o->flags |= OP_STACK_SEG;
		o->fn = pop_seg;
		return XLATE_END;
	}
	case ZYDIS_MNEMONIC_LDS: return xlate_pointer(in, o, HVI_DS);
	case ZYDIS_MNEMONIC_LES: return xlate_pointer(in, o, HVI_ES);
	case ZYDIS_MNEMONIC_LFS: return xlate_pointer(in, o, HVI_FS);
	case ZYDIS_MNEMONIC_LGS: return xlate_pointer(in, o, HVI_GS);
	case ZYDIS_MNEMONIC_LSS: return xlate_pointer(in, o, HVI_SS);
	case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL:
		o->a = reg_number(in->op[0].reg.value);
		o->b = is_mem(&in->op[1]) ? REG_ZERO : reg_number(in->op[1].reg.value);
		o->size = (u8)(in->op[0].size / 8);
		o->msize = is_mem(&in->op[1]) ? 2 : 0;
		o->fn = in->z.mnemonic == ZYDIS_MNEMONIC_LAR ? lar : lsl;
		return XLATE_NEXT;
	case ZYDIS_MNEMONIC_VERR:
	case ZYDIS_MNEMONIC_VERW:
		o->b = is_mem(&in->op[0]) ? REG_ZERO : reg_number(in->op[0].reg.value);
		o->aux = in->z.mnemonic == ZYDIS_MNEMONIC_VERW;
		o->fn = verify;
		return XLATE_NEXT;
	case ZYDIS_MNEMONIC_ARPL:
		o->a = is_mem(&in->op[0]) ? REG_ZERO : reg_number(in->op[0].reg.value);
		o->b = reg_number(in->op[1].reg.value);
		o->fn = arpl;
		return XLATE_NEXT;
	default:
		return XLATE_NO;
	}
}
