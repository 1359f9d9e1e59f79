/* SPDX-License-Identifier: MIT */
/*
 * tables.c - loads and stores of GDTR, IDTR, LDTR and TR (SDM vol. 2A: LGDT,
 * SGDT; 2A: LLDT, SLDT; 2B: LTR, STR) with their exits.
 */
#include "sys.h"

static void dtr_exit(struct cpu *c, const struct op *o, u32 bit, u64 gva, u64 value)
{
	u64 unused;
	struct hvi_exit *x;

	if (!(c->more->vm->dtr_exit & bit) || sys_pass(c, HVI_EXIT_DTR, bit, &unused))
		return;
	x = cpu_exit_record(c);
	x->number = bit;
	x->gva = gva;
	x->value = value;
	x->insn_len = o->len;
	cpu_exit(c, o, HVI_EXIT_DTR);
}

/* aux: HVI_DTR_* bit; size: 2, 4 or 8. */
static HANDLER(load_table)
{
	struct hvi_table t = { 0 };
	u8 bytes[10];
	u32 n = o->size == 8 ? 10 : 6;
	u64 la;

	need_cpl0(c, o);
	la = ea(c, o);
	dtr_exit(c, o, o->aux, la, 0);
	mem_read(c, o, la, bytes, n);
	memcpy(&t.limit, bytes, 2);
	memcpy(&t.base, bytes + 2, n - 2);
	if (o->size == 2)
		t.base &= 0xffffff;
	if (!is_canonical(c, t.base))
		raise_gp0(c, o);
	if (o->aux == HVI_DTR_LGDT)
		c->more->gdtr = t;
	else
		c->more->idtr = t;
	NEXT(c, o);
}

static HANDLER(store_table)
{
	const struct hvi_table *t = o->aux == HVI_DTR_SGDT ? &c->more->gdtr : &c->more->idtr;
	u8 bytes[10];
	u64 la;

	need_umip(c, o);
	la = ea(c, o);
	dtr_exit(c, o, o->aux, la, 0);
	memcpy(bytes, &t->limit, 2);
	memcpy(bytes + 2, &t->base, 8);
	mem_write(c, o, la, bytes, o->size == 8 ? 10 : 6);
	NEXT(c, o);
}

/* SLDT, STR, SMSW. */
static HANDLER(store_selector)
{
	u64 v, la = ~0ull;

	if (o->imm != ZYDIS_MNEMONIC_SMSW)
		need_protected(c, o);
	need_umip(c, o);
	v = o->imm == ZYDIS_MNEMONIC_SLDT ? c->more->ldtr.selector :
	    o->imm == ZYDIS_MNEMONIC_STR ? c->more->tr.selector : c->cr0;
	if (o->a == REG_ZERO)
		la = ea(c, o);
	if (o->aux)
		dtr_exit(c, o, o->aux, la, v);
	if (o->a == REG_ZERO)
		st16(c, o, la, (u16)v);
	else
		set_gpr(c, o->a, o->size, v);
	NEXT(c, o);
}

static HANDLER(lldt)
{
	struct cpu_more *m = c->more;
	u64 la = ~0ull;
	struct descriptor d;
	u16 sel;

	need_protected(c, o);
	need_cpl0(c, o);
	if (o->a == REG_ZERO) {
		la = ea(c, o);
		sel = ld16(c, o, la);
	} else {
		sel = (u16)c->gpr[o->a];
	}
	dtr_exit(c, o, HVI_DTR_LLDT, la, sel);
	if (!(sel & ~3)) {
		m->ldtr = (struct hvi_segment){ .selector = sel, .access = HVI_SEG_UNUSABLE | 0x82 };
		NEXT(c, o);
	}
	if (sel & 4)
		cpu_raise(c, o, X_GP, sel & ~3u);
	desc_fetch(c, o, sel, X_GP, 0, &d);
	if (c->long_mode)
		desc_fetch_high(c, o, sel, X_GP, 0, &d);
	if ((d.lo & DESC_S) || DESC_TYPE(&d) != 2)
		cpu_raise(c, o, X_GP, sel & ~3u);
	if (!(d.lo & DESC_P))
		cpu_raise(c, o, X_NP, sel & ~3u);
	desc_segment(&d, sel, &m->ldtr);
	NEXT(c, o);
}

static HANDLER(ltr)
{
	struct cpu_more *m = c->more;
	u64 la = ~0ull;
	struct descriptor d;
	u16 sel;
	u8 type;

	need_protected(c, o);
	need_cpl0(c, o);
	if (o->a == REG_ZERO) {
		la = ea(c, o);
		sel = ld16(c, o, la);
	} else {
		sel = (u16)c->gpr[o->a];
	}
	dtr_exit(c, o, HVI_DTR_LTR, la, sel);
	if (!(sel & ~3))
		raise_gp0(c, o);
	if (sel & 4)
		cpu_raise(c, o, X_GP, sel & ~3u);
	desc_fetch(c, o, sel, X_GP, 0, &d);
	if (c->long_mode)
		desc_fetch_high(c, o, sel, X_GP, 0, &d);
	if ((d.lo & DESC_S) || (DESC_TYPE(&d) != 9 && (c->long_mode || DESC_TYPE(&d) != 1)))
		cpu_raise(c, o, X_GP, sel & ~3u);
	if (!(d.lo & DESC_P))
		cpu_raise(c, o, X_NP, sel & ~3u);
	type = (u8)(d.lo >> 40) | 2;	/* busy */
	mem_write_sys(c, o, d.la + 5, &type, 1);
	d.lo |= 2ull << 40;
	desc_segment(&d, sel, &m->tr);
	NEXT(c, o);
}

enum xlate xlate_tables(const struct insn *in, struct op *o)
{
	bool mem = in->z.operand_count_visible && in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;

	if (in->z.operand_count_visible && in->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
		o->a = reg_number(in->op[0].reg.value);
		o->size = (u8)(in->op[0].size / 8);
	} else {
		o->a = REG_ZERO;
	}
	if (mem)
		o->size = in->code_bits == 64 ? 8 : in->z.operand_width / 8;
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_LGDT: o->aux = HVI_DTR_LGDT; o->fn = load_table; break;
	case ZYDIS_MNEMONIC_LIDT: o->aux = HVI_DTR_LIDT; o->fn = load_table; break;
	case ZYDIS_MNEMONIC_SGDT: o->aux = HVI_DTR_SGDT; o->fn = store_table; break;
	case ZYDIS_MNEMONIC_SIDT: o->aux = HVI_DTR_SIDT; o->fn = store_table; break;
	case ZYDIS_MNEMONIC_LLDT: o->fn = lldt; break;
	case ZYDIS_MNEMONIC_LTR: o->fn = ltr; break;
	case ZYDIS_MNEMONIC_SLDT: o->aux = HVI_DTR_SLDT; o->imm = in->z.mnemonic; o->fn = store_selector; break;
	case ZYDIS_MNEMONIC_STR: o->aux = HVI_DTR_STR; o->imm = in->z.mnemonic; o->fn = store_selector; break;
	case ZYDIS_MNEMONIC_SMSW: o->imm = in->z.mnemonic; o->fn = store_selector; break;
	default: return XLATE_NO;
	}
	return XLATE_NEXT;
}
