/* SPDX-License-Identifier: MIT */
/*
 * mov.c - data movement without arithmetic: MOV, MOVZX, MOVSX, MOVSXD, LEA,
 * XCHG, XLAT, CMOVcc, SETcc, SALC, CBW and its kin.
 */
#include "integer.h"

#define FOR_SIZES(X)	X(8) X(16) X(32) X(64)

/* ---- MOV -------------------------------------------------------------------- */

#define MOVES(n)							\
	HANDLER(mov##n##_rr)						\
	{								\
		SET##n(c, o->a, GET##n(c, o->b));			\
		NEXT(c, o);						\
	}								\
	HANDLER(mov##n##_ri)						\
	{								\
		SET##n(c, o->a, o->imm);				\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(mov##n##_rm)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, v, la);						\
		SET##n(c, o->a, v);					\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(mov##n##_mr)					\
	{								\
		u64 la = address(c, o, k);				\
		STORE(n, la, GET##n(c, o->b));				\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(mov##n##_mi)					\
	{								\
		u64 la = address(c, o, k);				\
		STORE(n, la, o->imm);					\
		NEXT(c, o);						\
	}
FOR_SIZES(MOVES)

#define MOV_FORMS(n)							\
	{ mov##n##_rr, mov##n##_ri, { MEM3(mov##n##_rm) },		\
	  { MEM3(mov##n##_mr) }, { MEM3(mov##n##_mi) } }
static const struct { op_fn rr, ri, rm[3], mr[3], mi[3]; } mov_fns[4] = {
	MOV_FORMS(8), MOV_FORMS(16), MOV_FORMS(32), MOV_FORMS(64),
};

enum xlate xlate_mov(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int s = size_index(op_size(in, 0));

	(void)c;
	o->size = op_size(in, 0);
	if (is_reg(in, 0))
		o->a = op_reg(in, 0);
	if (is_reg(in, 1))
		o->b = op_reg(in, 1);
	if (is_imm(in, 1))
		o->imm = in->op[1].imm.value.s;

	if (is_mem(in, 0))
		o->fn = mem_fn(is_imm(in, 1) ? mov_fns[s].mi : mov_fns[s].mr, o);
	else if (is_mem(in, 1))
		o->fn = mem_fn(mov_fns[s].rm, o);
	else
		o->fn = is_imm(in, 1) ? mov_fns[s].ri : mov_fns[s].rr;
	return XLATE_NEXT;
}

/* ---- MOVZX, MOVSX, MOVSXD ------------------------------------------------------ */

/* from n bits (type t) to m bits */
#define EXTEND(name, t, n, m)						\
	HANDLER(name##n##_##m##_rr)					\
	{								\
		SET##m(c, o->a, (t)GET##n(c, o->b));			\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_##m##_rm)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, v, la);						\
		SET##m(c, o->a, (t)v);					\
		NEXT(c, o);						\
	}
#define EXTENDS(n)							\
	EXTEND(zx, u##n, n, 16) EXTEND(zx, u##n, n, 32) EXTEND(zx, u##n, n, 64) \
	EXTEND(sx, i##n, n, 16) EXTEND(sx, i##n, n, 32) EXTEND(sx, i##n, n, 64)
EXTENDS(8)
EXTENDS(16)
EXTENDS(32)

#define EXT(name, n, m)		{ name##n##_##m##_rr, { MEM3(name##n##_##m##_rm) } }
#define EXT_TO(name, n)		{ EXT(name, n, 16), EXT(name, n, 32), EXT(name, n, 64) }
#define EXT_FROM(name)		{ EXT_TO(name, 8), EXT_TO(name, 16), EXT_TO(name, 32) }
/* [signed][from 8, 16, 32][to 16, 32, 64] */
static const struct { op_fn rr, rm[3]; } extend_fns[2][3][3] = { EXT_FROM(zx), EXT_FROM(sx) };

enum xlate xlate_extend(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int sx = in->z.mnemonic != ZYDIS_MNEMONIC_MOVZX;
	unsigned int from = size_index(op_size(in, 1)), to = size_index(op_size(in, 0));

	(void)c;
	o->size = op_size(in, 0);
	o->a = op_reg(in, 0);
	/* MOVSXD with a 16-bit operand is a MOV: it reads 16 bits, whatever the decoder says. */
	if (from > to) {
		from = to;
		o->msize = o->size;
	}
	if (is_mem(in, 1)) {
		o->fn = mem_fn(extend_fns[sx][from][to - 1].rm, o);
	} else {
		o->b = op_reg(in, 1);
		o->fn = extend_fns[sx][from][to - 1].rr;
	}
	return XLATE_NEXT;
}

/* ---- LEA -------------------------------------------------------------------------- */

#define LEA_SUM		(c->gpr[o->base] + (c->gpr[o->index] << o->scale) + (u64)o->disp)

HANDLER(lea64_b)
{
	c->gpr[o->a] = c->gpr[o->base] + (u64)o->disp;
	NEXT(c, o);
}

HANDLER(lea64)
{
	c->gpr[o->a] = LEA_SUM;
	NEXT(c, o);
}

/* A 32-bit operand or a 32-bit address: truncated either way. */
HANDLER(lea32)
{
	c->gpr[o->a] = (u32)LEA_SUM;
	NEXT(c, o);
}

HANDLER(lea_other)
{
	set_reg(c, o->a, o->size, LEA_SUM & size_mask(o->asize));
	NEXT(c, o);
}

enum xlate xlate_lea(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	o->size = op_size(in, 0);
	o->a = op_reg(in, 0);
	if (o->size == 8 && o->asize == 8)
		o->fn = o->index == REG_ZERO ? lea64_b : lea64;
	else if (o->size >= 4 && o->asize >= 4)
		o->fn = lea32;
	else
		o->fn = lea_other;
	return XLATE_NEXT;
}

/* ---- XCHG --------------------------------------------------------------------------- */

#define EXCHANGE(n)							\
	HANDLER(xchg##n##_rr)						\
	{								\
		u##n a = GET##n(c, o->a), b = GET##n(c, o->b);		\
		SET##n(c, o->a, b);					\
		SET##n(c, o->b, a);					\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(xchg##n##_mr)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD_RMW(n, v, la);					\
		UPDATE(n, la, GET##n(c, o->b));				\
		SET##n(c, o->b, v);					\
		NEXT(c, o);						\
	}
FOR_SIZES(EXCHANGE)

#define XCHG_FORMS(n)	{ xchg##n##_rr, { MEM3(xchg##n##_mr) } }
static const struct { op_fn rr, mr[3]; } xchg_fns[4] = {
	XCHG_FORMS(8), XCHG_FORMS(16), XCHG_FORMS(32), XCHG_FORMS(64),
};

enum xlate xlate_xchg(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int s = size_index(op_size(in, 0)), mem = is_mem(in, 1);

	(void)c;
	o->size = op_size(in, 0);
	if (mem || is_mem(in, 0)) {
		o->b = op_reg(in, !mem);
		o->fn = mem_fn(xchg_fns[s].mr, o);
	} else {
		o->a = op_reg(in, 0);
		o->b = op_reg(in, 1);
		o->fn = xchg_fns[s].rr;
	}
	return XLATE_NEXT;
}

/* ---- XLAT ------------------------------------------------------------------------------ */

HANDLER(xlat)
{
	u64 off = (c->gpr[HVI_RBX] + (u8)c->gpr[HVI_RAX]) & size_mask(o->asize);
	u8 v = ld8(c, o, seg_linear(c, o, o->seg, off, 1, false));

	SET8(c, byte_reg(HVI_RAX), v);
	NEXT(c, o);
}

enum xlate xlate_xlat(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	o->asize = in->z.address_width / 8;
	o->seg = memory_segment(in, ZYDIS_REGISTER_BX, ZYDIS_REGISTER_EBX, ZYDIS_REGISTER_RBX);
	o->fn = xlat;
	return XLATE_NEXT;
}

/* ---- CMOVcc: the load is made, and the upper half cleared, whatever the condition ---------- */

#define CMOVE(cc, num, n)						\
	HANDLER(cmov##cc##n##_rr)					\
	{								\
		u##n v = GET##n(c, o->a), w = GET##n(c, o->b);		\
		SET##n(c, o->a, condition(c->flags, num) ? w : v);	\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(cmov##cc##n##_rm)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, w, la);						\
		u##n v = GET##n(c, o->a);				\
		SET##n(c, o->a, condition(c->flags, num) ? w : v);	\
		NEXT(c, o);						\
	}
#define CMOVES(cc, num)	CMOVE(cc, num, 16) CMOVE(cc, num, 32) CMOVE(cc, num, 64)
FOR_CONDITIONS(CMOVES)

#define CMOV_FORM(cc, n)	{ cmov##cc##n##_rr, { MEM3(cmov##cc##n##_rm) } }
#define CMOV_ROW(cc, num)	{ CMOV_FORM(cc, 16), CMOV_FORM(cc, 32), CMOV_FORM(cc, 64) },
static const struct { op_fn rr, rm[3]; } cmov_fns[16][3] = { FOR_CONDITIONS(CMOV_ROW) };

enum xlate xlate_cmov(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int s = size_index(op_size(in, 0)) - 1, cc = condition_of(in);

	(void)c;
	o->size = op_size(in, 0);
	o->a = op_reg(in, 0);
	if (is_mem(in, 1)) {
		o->fn = mem_fn(cmov_fns[cc][s].rm, o);
	} else {
		o->b = op_reg(in, 1);
		o->fn = cmov_fns[cc][s].rr;
	}
	return XLATE_NEXT;
}

/* ---- SETcc, SALC ------------------------------------------------------------------------------ */

#define SETCC(cc, num)							\
	HANDLER(set##cc##_r)						\
	{								\
		SET8(c, o->a, condition(c->flags, num));		\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(set##cc##_m)					\
	{								\
		u64 la = address(c, o, k);				\
		STORE(8, la, condition(c->flags, num));			\
		NEXT(c, o);						\
	}
FOR_CONDITIONS(SETCC)

#define SETCC_ROW(cc, num)	{ set##cc##_r, { MEM3(set##cc##_m) } },
static const struct { op_fn r, m[3]; } setcc_fns[16] = { FOR_CONDITIONS(SETCC_ROW) };

HANDLER(salc)
{
	SET8(c, byte_reg(HVI_RAX), c->flags & FL_CF ? 0xff : 0);
	NEXT(c, o);
}

enum xlate xlate_setcc(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int cc = condition_of(in);

	(void)c;
	o->size = 1;
	if (in->z.mnemonic == ZYDIS_MNEMONIC_SALC) {
		o->fn = salc;
	} else if (is_mem(in, 0)) {
		o->fn = mem_fn(setcc_fns[cc].m, o);
	} else {
		o->a = op_reg(in, 0);
		o->fn = setcc_fns[cc].r;
	}
	return XLATE_NEXT;
}

/* ---- sign extension of the accumulator ------------------------------------------------------------ */

HANDLER(cbw)
{
	SET16(c, HVI_RAX, (i8)c->gpr[HVI_RAX]);
	NEXT(c, o);
}

HANDLER(cwde)
{
	SET32(c, HVI_RAX, (i16)c->gpr[HVI_RAX]);
	NEXT(c, o);
}

HANDLER(cdqe)
{
	SET64(c, HVI_RAX, (i32)c->gpr[HVI_RAX]);
	NEXT(c, o);
}

HANDLER(cwd)
{
	SET16(c, HVI_RDX, (i16)c->gpr[HVI_RAX] >> 15);
	NEXT(c, o);
}

HANDLER(cdq)
{
	SET32(c, HVI_RDX, (i32)c->gpr[HVI_RAX] >> 31);
	NEXT(c, o);
}

HANDLER(cqo)
{
	SET64(c, HVI_RDX, (i64)c->gpr[HVI_RAX] >> 63);
	NEXT(c, o);
}

enum xlate xlate_convert(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_CBW: o->fn = cbw; break;
	case ZYDIS_MNEMONIC_CWDE: o->fn = cwde; break;
	case ZYDIS_MNEMONIC_CDQE: o->fn = cdqe; break;
	case ZYDIS_MNEMONIC_CWD: o->fn = cwd; break;
	case ZYDIS_MNEMONIC_CDQ: o->fn = cdq; break;
	default: o->fn = cqo; break;
	}
	return XLATE_NEXT;
}
