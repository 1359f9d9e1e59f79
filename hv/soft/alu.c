/* SPDX-License-Identifier: MIT */
/*
 * alu.c - ADD OR ADC SBB AND SUB XOR CMP TEST; INC DEC NOT NEG.
 *
 * The arithmetic is done by the host's own instruction, and the flags it
 * leaves are the guest's, the undefined ones included. Where nobody reads the
 * flags the plain C operator does, without capturing them.
 */
#include "integer.h"

/* ---- the operations: value and, in *f, the flags ---------------------------- */

#define HOST_OP(name, insn, n)						\
	ALWAYS_INLINE u##n name##n(u##n a, u##n b, u64 *f)		\
	{								\
		u32 ax;							\
		asm(insn " %2, %0" CAPTURE : "+r"(a), "=a"(ax) : "r"(b) : "cc"); \
		*f = flags_from(ax);					\
		return a;						\
	}
/* With carry in: CF from *f. */
#define HOST_OP_CARRY(name, insn, n)					\
	ALWAYS_INLINE u##n name##n(u##n a, u##n b, u64 *f)		\
	{								\
		u32 ax;							\
		asm("btl $0, %3\n\t" insn " %2, %0" CAPTURE		\
		    : "+&r"(a), "=&a"(ax) : "r"(b), "r"((u32)*f) : "cc"); \
		*f = flags_from(ax);					\
		return a;						\
	}
#define HOST_OP1(name, insn, n, keep)					\
	ALWAYS_INLINE u##n name##n(u##n a, u64 *f)			\
	{								\
		u32 ax;							\
		asm(insn " %0" CAPTURE : "+r"(a), "=a"(ax) : : "cc");	\
		*f = (flags_from(ax) & ~(u64)(keep)) | (*f & (keep));	\
		return a;						\
	}

#define FOR_SIZES(X)	X(8, "b") X(16, "w") X(32, "l") X(64, "q")

#define OPS(n, s)							\
	HOST_OP(add, "add" s, n) HOST_OP(or, "or" s, n)			\
	HOST_OP(and, "and" s, n) HOST_OP(sub, "sub" s, n)		\
	HOST_OP(xor, "xor" s, n)					\
	HOST_OP_CARRY(adc, "adc" s, n) HOST_OP_CARRY(sbb, "sbb" s, n)	\
	HOST_OP1(inc, "inc" s, n, FL_CF) HOST_OP1(dec, "dec" s, n, FL_CF) \
	HOST_OP1(neg, "neg" s, n, 0)
FOR_SIZES(OPS)

/* The same without flags; carry is CF of the guest. */
#define PLAIN_add(a, b)	((a) + (b))
#define PLAIN_or(a, b)	((a) | (b))
#define PLAIN_adc(a, b)	((a) + (b) + (c->flags & FL_CF))
#define PLAIN_sbb(a, b)	((a) - (b) - (c->flags & FL_CF))
#define PLAIN_and(a, b)	((a) & (b))
#define PLAIN_sub(a, b)	((a) - (b))
#define PLAIN_xor(a, b)	((a) ^ (b))
#define PLAIN_inc(a)	((a) + 1)
#define PLAIN_dec(a)	((a) - 1)
#define PLAIN_neg(a)	(-(a))
#define PLAIN_not(a)	(~(a))

/* ---- two operands, result kept ----------------------------------------------- */

#define BINARY(op, n)							\
	HANDLER(op##n##_rr)						\
	{								\
		u64 f = c->flags;					\
		u##n r = op##n(GET##n(c, o->a), GET##n(c, o->b), &f);	\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(op##n##_ri)						\
	{								\
		u64 f = c->flags;					\
		u##n r = op##n(GET##n(c, o->a), (u##n)o->imm, &f);	\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_rm)						\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD(n, v, la);						\
		u##n r = op##n(GET##n(c, o->a), v, &f);			\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mr)						\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = op##n(v, GET##n(c, o->b), &f);			\
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mi)						\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = op##n(v, (u##n)o->imm, &f);			\
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(op##n##_rr_dead)					\
	{								\
		SET##n(c, o->a, PLAIN_##op(GET##n(c, o->a), GET##n(c, o->b))); \
		NEXT(c, o);						\
	}								\
	HANDLER(op##n##_ri_dead)					\
	{								\
		SET##n(c, o->a, PLAIN_##op(GET##n(c, o->a), (u##n)o->imm)); \
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_rm_dead)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, v, la);						\
		SET##n(c, o->a, PLAIN_##op(GET##n(c, o->a), v));	\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mr_dead)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD_RMW(n, v, la);					\
		UPDATE(n, la, PLAIN_##op(v, GET##n(c, o->b)));		\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mi_dead)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD_RMW(n, v, la);					\
		UPDATE(n, la, PLAIN_##op(v, (u##n)o->imm));		\
		NEXT(c, o);						\
	}

/* ---- two operands, only the flags kept: CMP is a SUB, TEST an AND ---------------- */

#define COMPARE(name, op, n)						\
	HANDLER(name##n##_rr)						\
	{								\
		u64 f;							\
		op##n(GET##n(c, o->a), GET##n(c, o->b), &f);		\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(name##n##_ri)						\
	{								\
		u64 f;							\
		op##n(GET##n(c, o->a), (u##n)o->imm, &f);		\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_rm)					\
	{								\
		u64 la = address(c, o, k), f;				\
		LOAD(n, v, la);						\
		op##n(GET##n(c, o->a), v, &f);				\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_mr)					\
	{								\
		u64 la = address(c, o, k), f;				\
		LOAD(n, v, la);						\
		op##n(v, GET##n(c, o->b), &f);				\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_mi)					\
	{								\
		u64 la = address(c, o, k), f;				\
		LOAD(n, v, la);						\
		op##n(v, (u##n)o->imm, &f);				\
		c->flags = f;						\
		NEXT(c, o);						\
	}

#define BINARIES(n, s)							\
	BINARY(add, n) BINARY(or, n) BINARY(adc, n) BINARY(sbb, n)	\
	BINARY(and, n) BINARY(sub, n) BINARY(xor, n)			\
	COMPARE(cmp, sub, n) COMPARE(test, and, n)
FOR_SIZES(BINARIES)

/* A compare whose flags are dead still makes its access. */
HANDLER(nothing)
{
	NEXT(c, o);
}
#define TOUCH(n, s)							\
	MEM_HANDLER(touch##n)						\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, v, la);						\
		(void)v;						\
		NEXT(c, o);						\
	}
FOR_SIZES(TOUCH)

struct forms { op_fn rr, ri, rm[3], mr[3], mi[3]; };

#define FORMS(name, n, sfx)						\
	{ name##n##_rr##sfx, name##n##_ri##sfx,				\
	  { name##n##_rm##sfx##_b, name##n##_rm##sfx##_x, name##n##_rm##sfx##_s }, \
	  { name##n##_mr##sfx##_b, name##n##_mr##sfx##_x, name##n##_mr##sfx##_s }, \
	  { name##n##_mi##sfx##_b, name##n##_mi##sfx##_x, name##n##_mi##sfx##_s } }
#define FORMS4(name, sfx) {						\
	FORMS(name, 8, sfx), FORMS(name, 16, sfx),			\
	FORMS(name, 32, sfx), FORMS(name, 64, sfx) }
#define TOUCH_FORMS(n)							\
	{ nothing, nothing, { MEM3(touch##n) }, { MEM3(touch##n) }, { MEM3(touch##n) } }
#define TOUCH_FORMS4							\
	{ TOUCH_FORMS(8), TOUCH_FORMS(16), TOUCH_FORMS(32), TOUCH_FORMS(64) }

enum alu_op { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP,
	      ALU_TEST, ALU_OPS };

/* [operation][flags dead][size] */
static const struct forms alu_fns[ALU_OPS][2][4] = {
	[ALU_ADD] = { FORMS4(add,), FORMS4(add, _dead) },
	[ALU_OR] = { FORMS4(or,), FORMS4(or, _dead) },
	[ALU_ADC] = { FORMS4(adc,), FORMS4(adc, _dead) },
	[ALU_SBB] = { FORMS4(sbb,), FORMS4(sbb, _dead) },
	[ALU_AND] = { FORMS4(and,), FORMS4(and, _dead) },
	[ALU_SUB] = { FORMS4(sub,), FORMS4(sub, _dead) },
	[ALU_XOR] = { FORMS4(xor,), FORMS4(xor, _dead) },
	[ALU_CMP] = { FORMS4(cmp,), TOUCH_FORMS4 },
	[ALU_TEST] = { FORMS4(test,), TOUCH_FORMS4 },
};

static enum alu_op alu_op_of(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_ADD: return ALU_ADD;
	case ZYDIS_MNEMONIC_OR: return ALU_OR;
	case ZYDIS_MNEMONIC_ADC: return ALU_ADC;
	case ZYDIS_MNEMONIC_SBB: return ALU_SBB;
	case ZYDIS_MNEMONIC_AND: return ALU_AND;
	case ZYDIS_MNEMONIC_SUB: return ALU_SUB;
	case ZYDIS_MNEMONIC_XOR: return ALU_XOR;
	case ZYDIS_MNEMONIC_CMP: return ALU_CMP;
	default: return ALU_TEST;
	}
}

enum xlate xlate_alu(struct cpu *c, const struct insn *in, struct op *o)
{
	const struct forms *f;

	(void)c;
	o->size = op_size(in, 0);
	f = &alu_fns[alu_op_of(in->z.mnemonic)][in->flags_dead][size_index(o->size)];
	if (is_reg(in, 0))
		o->a = op_reg(in, 0);
	if (is_reg(in, 1))
		o->b = op_reg(in, 1);
	if (is_imm(in, 1))
		o->imm = in->op[1].imm.value.s;

	if (is_mem(in, 0))
		o->fn = mem_fn(is_imm(in, 1) ? f->mi : f->mr, o);
	else if (is_mem(in, 1))
		o->fn = mem_fn(f->rm, o);
	else
		o->fn = is_imm(in, 1) ? f->ri : f->rr;
	return XLATE_NEXT;
}

/* ---- CMP or TEST of registers or with an immediate, and the Jcc behind it, in one ---------- */

/*
 * The handler of a compare that goes on to the branch itself: o is the
 * compare, the op behind it the Jcc of 64-bit mode. The condition is taken
 * from the host's flags while they still stand.
 */
#define FUSED_ONE(name, insn, n, s, form, second, cc, hostcc)		\
	HANDLER(name##n##_##form##_j##cc)				\
	{								\
		const struct op *j = o + 1;				\
		bool taken;						\
		u32 ax;							\
		asm(insn s " %3, %2" CAPTURE : "=a"(ax), "=@cc" #hostcc(taken) \
		    : "r"(GET##n(c, o->a)), "r"(second));		\
		c->flags = flags_from(ax);				\
		return cpu_jump(c, j, taken ? c->gpr[REG_BLOCK] + (u64)j->imm : op_next_rip(c, j)); \
	}
#define FUSED_CC(cc, hostcc)						\
	FUSED_ALL(cmp, "cmp", cc, hostcc) FUSED_ALL(test, "test", cc, hostcc)
#define FUSED_ALL(name, insn, cc, hostcc)				\
	FUSED_SIZE(name, insn, 8, "b", cc, hostcc) FUSED_SIZE(name, insn, 32, "l", cc, hostcc) \
	FUSED_SIZE(name, insn, 64, "q", cc, hostcc)
#define FUSED_SIZE(name, insn, n, s, cc, hostcc)			\
	FUSED_ONE(name, insn, n, s, rr, GET##n(c, o->b), cc, hostcc)	\
	FUSED_ONE(name, insn, n, s, ri, (u##n)o->imm, cc, hostcc)
#define FOR_HOST_CONDITIONS(X)						\
	X(o, o) X(no, no) X(b, b) X(nb, ae) X(z, e) X(nz, ne)		\
	X(be, be) X(nbe, a) X(s, s) X(ns, ns) X(p, p) X(np, np)		\
	X(l, l) X(nl, ge) X(le, le) X(nle, g)
FOR_HOST_CONDITIONS(FUSED_CC)

#define FUSED_ROW(fn)							\
	{ fn, { fn##_jo, fn##_jno, fn##_jb, fn##_jnb, fn##_jz, fn##_jnz, fn##_jbe, fn##_jnbe, \
		fn##_js, fn##_jns, fn##_jp, fn##_jnp, fn##_jl, fn##_jnl, fn##_jle, fn##_jnle } }
#define FUSED_ROWS(name, n)	FUSED_ROW(name##n##_rr), FUSED_ROW(name##n##_ri)
static const struct { op_fn plain, fused[16]; } fused_fns[] = {
	FUSED_ROWS(cmp, 8), FUSED_ROWS(cmp, 32), FUSED_ROWS(cmp, 64),
	FUSED_ROWS(test, 8), FUSED_ROWS(test, 32), FUSED_ROWS(test, 64),
};

void fuse_compare(struct op *o, unsigned int cc)
{
	for (unsigned int i = 0; i < sizeof(fused_fns) / sizeof(fused_fns[0]); i++)
		if (o->fn == fused_fns[i].plain) {
			o->fn = fused_fns[i].fused[cc];
			return;
		}
}

/* ---- one operand ------------------------------------------------------------------ */

#define UNARY(op, n)							\
	HANDLER(op##n##_r)						\
	{								\
		u64 f = c->flags;					\
		u##n r = op##n(GET##n(c, o->a), &f);			\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_m)						\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = op##n(v, &f);					\
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}
#define UNARY_DEAD(op, n)						\
	HANDLER(op##n##_r_dead)						\
	{								\
		SET##n(c, o->a, PLAIN_##op(GET##n(c, o->a)));		\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_m_dead)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD_RMW(n, v, la);					\
		UPDATE(n, la, PLAIN_##op(v));				\
		NEXT(c, o);						\
	}
#define UNARIES(n, s)							\
	UNARY(inc, n) UNARY(dec, n) UNARY(neg, n)			\
	UNARY_DEAD(inc, n) UNARY_DEAD(dec, n) UNARY_DEAD(neg, n) UNARY_DEAD(not, n)
FOR_SIZES(UNARIES)

struct unary_forms { op_fn r, m[3]; };

#define UNARY_FORMS(name, n, sfx)					\
	{ name##n##_r##sfx,						\
	  { name##n##_m##sfx##_b, name##n##_m##sfx##_x, name##n##_m##sfx##_s } }
#define UNARY_FORMS4(name, sfx) {					\
	UNARY_FORMS(name, 8, sfx), UNARY_FORMS(name, 16, sfx),		\
	UNARY_FORMS(name, 32, sfx), UNARY_FORMS(name, 64, sfx) }

enum unary_op { UN_INC, UN_DEC, UN_NEG, UN_NOT, UN_OPS };

/* NOT writes no flags: both rows the same. */
static const struct unary_forms unary_fns[UN_OPS][2][4] = {
	[UN_INC] = { UNARY_FORMS4(inc,), UNARY_FORMS4(inc, _dead) },
	[UN_DEC] = { UNARY_FORMS4(dec,), UNARY_FORMS4(dec, _dead) },
	[UN_NEG] = { UNARY_FORMS4(neg,), UNARY_FORMS4(neg, _dead) },
	[UN_NOT] = { UNARY_FORMS4(not, _dead), UNARY_FORMS4(not, _dead) },
};

enum xlate xlate_unary(struct cpu *c, const struct insn *in, struct op *o)
{
	const struct unary_forms *f;
	enum unary_op op = in->z.mnemonic == ZYDIS_MNEMONIC_INC ? UN_INC :
			   in->z.mnemonic == ZYDIS_MNEMONIC_DEC ? UN_DEC :
			   in->z.mnemonic == ZYDIS_MNEMONIC_NEG ? UN_NEG : UN_NOT;

	(void)c;
	o->size = op_size(in, 0);
	f = &unary_fns[op][in->flags_dead][size_index(o->size)];
	if (is_mem(in, 0)) {
		o->fn = mem_fn(f->m, o);
	} else {
		o->a = op_reg(in, 0);
		o->fn = f->r;
	}
	return XLATE_NEXT;
}
