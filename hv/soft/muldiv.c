/* SPDX-License-Identifier: MIT */
/* muldiv.c - MUL, IMUL, DIV, IDIV. */
#include "integer.h"

typedef __int128 i128;
typedef unsigned __int128 u128;

/* ---- IMUL with a destination register ------------------------------------------ */

#define FOR_SIZES(X)	X(16, "w") X(32, "l") X(64, "q")

#define IMUL_OP(n, s)							\
	ALWAYS_INLINE u##n imul##n(u##n a, u##n b, u64 *f)		\
	{								\
		u32 ax;							\
		asm("imul" s " %2, %0" CAPTURE : "+r"(a), "=a"(ax) : "r"(b) : "cc"); \
		*f = flags_from(ax);					\
		return a;						\
	}								\
	HANDLER(imul##n##_rr)						\
	{								\
		u64 f;							\
		u##n r = imul##n(GET##n(c, o->a), GET##n(c, o->b), &f);	\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(imul##n##_rm)					\
	{								\
		u64 la = address(c, o, k), f;				\
		LOAD(n, v, la);						\
		u##n r = imul##n(GET##n(c, o->a), v, &f);		\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(imul##n##_rri)						\
	{								\
		u64 f;							\
		u##n r = imul##n(GET##n(c, o->b), (u##n)o->imm, &f);	\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(imul##n##_rmi)					\
	{								\
		u64 la = address(c, o, k), f;				\
		LOAD(n, v, la);						\
		u##n r = imul##n(v, (u##n)o->imm, &f);			\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}
FOR_SIZES(IMUL_OP)

/* ---- MUL and IMUL into the accumulator pair --------------------------------------- */

#define MULTIPLY(name, insn, n)						\
	ALWAYS_INLINE void name##n(struct cpu *c, u##n b)		\
	{								\
		u64 ax = c->gpr[HVI_RAX], dx = c->gpr[HVI_RDX], lo;	\
		asm(insn " %3\n\tmov %%rax, %2" CAPTURE			\
		    : "+a"(ax), "+d"(dx), "=&r"(lo) : "r"(b) : "cc");	\
		MUL_OUT##n(c, lo, dx);					\
		c->flags = flags_from((u32)ax);				\
	}
/* MUL r/m8 leaves its result in AX and DX alone; a 32-bit one clears both upper halves. */
#define MUL_OUT8(c, lo, hi)	SET16(c, HVI_RAX, lo)
#define MUL_OUT16(c, lo, hi)	(SET16(c, HVI_RAX, lo), SET16(c, HVI_RDX, hi))
#define MUL_OUT32(c, lo, hi)	(SET32(c, HVI_RAX, lo), SET32(c, HVI_RDX, hi))
#define MUL_OUT64(c, lo, hi)	(SET64(c, HVI_RAX, lo), SET64(c, HVI_RDX, hi))

/* ---- DIV and IDIV: false for #DE, and then nothing has changed ----------------------- */

/* Quotient in *q, remainder in *r. Of a 128-bit dividend, whose high part is below d: fits. */
ALWAYS_INLINE void divide128(u64 hi, u64 lo, u64 d, u64 *q, u64 *r)
{
	asm("divq %4" : "=a"(*q), "=d"(*r) : "a"(lo), "d"(hi), "r"(d) : "cc");
}

static bool div8(struct cpu *c, u8 d)
{
	u16 n = GET16(c, HVI_RAX);

	if (!d || n / d > 0xff)
		return false;
	SET16(c, HVI_RAX, (n % d) << 8 | n / d);
	return true;
}

static bool div16(struct cpu *c, u16 d)
{
	u32 n = (u32)GET16(c, HVI_RDX) << 16 | GET16(c, HVI_RAX);

	if (!d || n / d > 0xffff)
		return false;
	SET16(c, HVI_RAX, n / d);
	SET16(c, HVI_RDX, n % d);
	return true;
}

static bool div32(struct cpu *c, u32 d)
{
	u64 n = (u64)GET32(c, HVI_RDX) << 32 | GET32(c, HVI_RAX);

	if (GET32(c, HVI_RDX) >= d)
		return false;
	SET32(c, HVI_RAX, n / d);
	SET32(c, HVI_RDX, n % d);
	return true;
}

static bool div64(struct cpu *c, u64 d)
{
	if (c->gpr[HVI_RDX] >= d)
		return false;
	divide128(c->gpr[HVI_RDX], c->gpr[HVI_RAX], d, &c->gpr[HVI_RAX], &c->gpr[HVI_RDX]);
	return true;
}

static bool idiv8(struct cpu *c, u8 d)
{
	i32 n = (i16)GET16(c, HVI_RAX), q;

	if (!d)
		return false;
	q = n / (i8)d;
	if (q != (i8)q)
		return false;
	SET16(c, HVI_RAX, (u8)(n % (i8)d) << 8 | (u8)q);
	return true;
}

static bool idiv16(struct cpu *c, u16 d)
{
	i64 n = (i32)((u32)GET16(c, HVI_RDX) << 16 | GET16(c, HVI_RAX)), q;

	if (!d)
		return false;
	q = n / (i16)d;
	if (q != (i16)q)
		return false;
	SET16(c, HVI_RAX, q);
	SET16(c, HVI_RDX, n % (i16)d);
	return true;
}

/* By magnitudes, because the C division of the smallest number by -1 traps. */
static bool idiv32(struct cpu *c, u32 d)
{
	i64 n = (i64)((u64)GET32(c, HVI_RDX) << 32 | GET32(c, HVI_RAX));
	u64 un = n < 0 ? -(u64)n : (u64)n, q, r;
	u64 ud = (i32)d < 0 ? -(u64)(i64)(i32)d : d;
	bool negative = (n < 0) != ((i32)d < 0);

	if (!d)
		return false;
	q = un / ud;
	r = un % ud;
	if (q > 0x7fffffffull + negative)
		return false;
	SET32(c, HVI_RAX, negative ? -q : q);
	SET32(c, HVI_RDX, n < 0 ? -r : r);
	return true;
}

static bool idiv64(struct cpu *c, u64 d)
{
	i128 n = (i128)((u128)c->gpr[HVI_RDX] << 64 | c->gpr[HVI_RAX]);
	u128 un = n < 0 ? -(u128)n : (u128)n;
	u64 ud = (i64)d < 0 ? -d : d, q, r;
	bool negative = (n < 0) != ((i64)d < 0);

	if ((u64)(un >> 64) >= ud)
		return false;
	divide128((u64)(un >> 64), (u64)un, ud, &q, &r);
	if (q > 0x7fffffffffffffffull + negative)
		return false;
	c->gpr[HVI_RAX] = negative ? -q : q;
	c->gpr[HVI_RDX] = n < 0 ? -r : r;
	return true;
}

#define WIDE(n, s)							\
	MULTIPLY(mul, "mul" s, n)					\
	MULTIPLY(imulw, "imul" s, n)					\
	WIDE_MUL(mul, n) WIDE_MUL(imulw, n) WIDE_DIV(div, n) WIDE_DIV(idiv, n)
#define WIDE_MUL(name, n)						\
	HANDLER(name##n##_r)						\
	{								\
		name##n(c, GET##n(c, o->a));				\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_m)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, v, la);						\
		name##n(c, v);						\
		NEXT(c, o);						\
	}
#define WIDE_DIV(name, n)						\
	HANDLER(name##n##_r)						\
	{								\
		if (unlikely(!name##n(c, GET##n(c, o->a))))		\
			cpu_raise(c, o, X_DE, 0);			\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_m)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, v, la);						\
		if (unlikely(!name##n(c, v)))				\
			cpu_raise(c, o, X_DE, 0);			\
		NEXT(c, o);						\
	}
WIDE(8, "b")
WIDE(16, "w")
WIDE(32, "l")
WIDE(64, "q")

#define WIDE_FORM(name, n)	{ name##n##_r, { MEM3(name##n##_m) } }
#define WIDE_FORMS(name)						\
	{ WIDE_FORM(name, 8), WIDE_FORM(name, 16), WIDE_FORM(name, 32), WIDE_FORM(name, 64) }
enum wide_op { W_MUL, W_IMUL, W_DIV, W_IDIV };
static const struct { op_fn r, m[3]; } wide_fns[4][4] = {
	WIDE_FORMS(mul), WIDE_FORMS(imulw), WIDE_FORMS(div), WIDE_FORMS(idiv),
};

#define IMUL_FORMS(n)							\
	{ imul##n##_rr, imul##n##_rri, { MEM3(imul##n##_rm) }, { MEM3(imul##n##_rmi) } }
static const struct { op_fn rr, rri, rm[3], rmi[3]; } imul_fns[3] = {
	IMUL_FORMS(16), IMUL_FORMS(32), IMUL_FORMS(64),
};

static enum xlate xlate_imul(const struct insn *in, struct op *o)
{
	unsigned int s = size_index(o->size) - 1;
	bool imm = in->z.operand_count_visible == 3;

	o->a = op_reg(in, 0);
	if (imm)
		o->imm = in->op[2].imm.value.s;
	if (is_mem(in, 1)) {
		o->fn = mem_fn(imm ? imul_fns[s].rmi : imul_fns[s].rm, o);
	} else {
		o->b = op_reg(in, 1);
		o->fn = imm ? imul_fns[s].rri : imul_fns[s].rr;
	}
	return XLATE_NEXT;
}

enum xlate xlate_muldiv(struct cpu *c, const struct insn *in, struct op *o)
{
	ZydisMnemonic m = in->z.mnemonic;
	enum wide_op w = m == ZYDIS_MNEMONIC_MUL ? W_MUL : m == ZYDIS_MNEMONIC_IMUL ? W_IMUL :
			 m == ZYDIS_MNEMONIC_DIV ? W_DIV : W_IDIV;

	(void)c;
	o->size = op_size(in, 0);
	if (w == W_IMUL && in->z.operand_count_visible > 1)
		return xlate_imul(in, o);
	if (is_mem(in, 0)) {
		o->fn = mem_fn(wide_fns[w][size_index(o->size)].m, o);
	} else {
		o->a = op_reg(in, 0);
		o->fn = wide_fns[w][size_index(o->size)].r;
	}
	return XLATE_NEXT;
}
