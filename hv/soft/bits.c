/* SPDX-License-Identifier: MIT */
/* bits.c - BT BTS BTR BTC, BSF BSR, BSWAP. */
#include "integer.h"

#define FOR_SIZES(X)	X(16, "w") X(32, "l") X(64, "q")

/* ---- bit tests: by the host on a register; bit offset modulo the size --------------- */

#define TEST_OP(name, n, s)						\
	ALWAYS_INLINE u##n name##n(u##n a, u##n bit, u64 *f)		\
	{								\
		u32 ax;							\
		asm(#name s " %2, %0" CAPTURE : "+r"(a), "=a"(ax) : "r"(bit) : "cc"); \
		*f = (*f & ~(u64)FL_CF) | (flags_from(ax) & FL_CF);	\
		return a;						\
	}

/*
 * A bit offset in a register is signed and reaches beyond the memory operand
 * (SDM vol. 2A, BT): the address moves by whole operands. In 64-bit mode with
 * 64-bit addresses the sum needs no wrapping; elsewhere the moved offset is
 * wrapped and checked like any other.
 */
ALWAYS_INLINE u64 bit_address(struct cpu *c, const struct op *o, enum ea_kind k, i64 bit,
			      unsigned int n, bool write)
{
	i64 move = (bit >> (n == 16 ? 4 : n == 32 ? 5 : 6)) * (n / 8);
	u64 off;

	if (k != EA_SLOW)
		return address(c, o, k) + (u64)move;
	off = c->gpr[o->base] + (c->gpr[o->index] << o->scale) + (u64)(o->disp + move);
	off &= size_mask(o->asize);
	return o->seg == SEG_FLAT ? off : seg_linear(c, o, o->seg, off, n / 8, write);
}

#define TESTS(name, n)							\
	HANDLER(name##n##_rr)						\
	{								\
		u64 f = c->flags;					\
		u##n r = name##n(GET##n(c, o->a), GET##n(c, o->b), &f);	\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(name##n##_ri)						\
	{								\
		u64 f = c->flags;					\
		u##n r = name##n(GET##n(c, o->a), (u##n)o->imm, &f);	\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_mr)					\
	{								\
		i64 bit = (i##n)GET##n(c, o->b);			\
		u64 la = bit_address(c, o, k, bit, n, true), f = c->flags; \
		LOAD_RMW(n, v, la);					\
		u##n r = name##n(v, (u##n)bit, &f);			\
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_mi)					\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = name##n(v, (u##n)o->imm, &f);			\
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}
/* BT only reads, and leaves the upper half of a 32-bit register alone. */
#define TEST_ONLY(n)							\
	HANDLER(bt##n##_rr)						\
	{								\
		u64 f = c->flags;					\
		bt##n(GET##n(c, o->a), GET##n(c, o->b), &f);		\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(bt##n##_ri)						\
	{								\
		u64 f = c->flags;					\
		bt##n(GET##n(c, o->a), (u##n)o->imm, &f);		\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(bt##n##_mr)						\
	{								\
		i64 bit = (i##n)GET##n(c, o->b);			\
		u64 la = bit_address(c, o, k, bit, n, false), f = c->flags; \
		LOAD(n, v, la);						\
		bt##n(v, (u##n)bit, &f);				\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(bt##n##_mi)						\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD(n, v, la);						\
		bt##n(v, (u##n)o->imm, &f);				\
		c->flags = f;						\
		NEXT(c, o);						\
	}

#define ALL_TESTS(n, s)							\
	TEST_OP(bt, n, s) TEST_OP(bts, n, s) TEST_OP(btr, n, s) TEST_OP(btc, n, s) \
	TEST_ONLY(n) TESTS(bts, n) TESTS(btr, n) TESTS(btc, n)
FOR_SIZES(ALL_TESTS)

#define TEST_FORM(name, n)						\
	{ name##n##_rr, name##n##_ri, { MEM3(name##n##_mr) }, { MEM3(name##n##_mi) } }
#define TEST_FORMS(name)						\
	{ TEST_FORM(name, 16), TEST_FORM(name, 32), TEST_FORM(name, 64) }
static const struct { op_fn rr, ri, mr[3], mi[3]; } test_fns[4][3] = {
	TEST_FORMS(bt), TEST_FORMS(bts), TEST_FORMS(btr), TEST_FORMS(btc),
};

enum xlate xlate_bit_test(struct cpu *c, const struct insn *in, struct op *o)
{
	ZydisMnemonic m = in->z.mnemonic;
	unsigned int t = m == ZYDIS_MNEMONIC_BT ? 0 : m == ZYDIS_MNEMONIC_BTS ? 1 :
			 m == ZYDIS_MNEMONIC_BTR ? 2 : 3;
	unsigned int s = size_index(op_size(in, 0)) - 1;
	bool imm = is_imm(in, 1);

	(void)c;
	o->size = op_size(in, 0);
	if (imm)
		o->imm = (i64)(in->op[1].imm.value.u & (o->size * 8u - 1));
	else
		o->b = op_reg(in, 1);
	if (is_mem(in, 0)) {
		o->fn = mem_fn(imm ? test_fns[t][s].mi : test_fns[t][s].mr, o);
	} else {
		o->a = op_reg(in, 0);
		o->fn = imm ? test_fns[t][s].ri : test_fns[t][s].rr;
	}
	return XLATE_NEXT;
}

/* ---- BSF, BSR: with the old destination, which the host keeps for a source of 0 ------------ */

#define SCAN(name, n, s)						\
	ALWAYS_INLINE void name##n(struct cpu *c, const struct op *o, u##n v) \
	{								\
		u64 r = c->gpr[o->a];					\
		u32 ax;							\
		asm(#name s " %2, %" SCAN_MOD##n "0" CAPTURE		\
		    : "+r"(r), "=a"(ax) : "r"(v) : "cc");		\
		c->gpr[o->a] = r;					\
		c->flags = flags_from(ax);				\
	}								\
	HANDLER(name##n##_rr)						\
	{								\
		name##n(c, o, GET##n(c, o->b));				\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(name##n##_rm)					\
	{								\
		u64 la = address(c, o, k);				\
		LOAD(n, v, la);						\
		name##n(c, o, v);					\
		NEXT(c, o);						\
	}
#define SCAN_MOD16	"w"
#define SCAN_MOD32	"k"
#define SCAN_MOD64	"q"
#define SCANS(n, s)	SCAN(bsf, n, s) SCAN(bsr, n, s)
FOR_SIZES(SCANS)

#define SCAN_FORM(name, n)	{ name##n##_rr, { MEM3(name##n##_rm) } }
#define SCAN_FORMS(name)	{ SCAN_FORM(name, 16), SCAN_FORM(name, 32), SCAN_FORM(name, 64) }
static const struct { op_fn rr, rm[3]; } scan_fns[2][3] = { SCAN_FORMS(bsf), SCAN_FORMS(bsr) };

enum xlate xlate_bit_scan(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int t = in->z.mnemonic == ZYDIS_MNEMONIC_BSR;
	unsigned int s = size_index(op_size(in, 0)) - 1;

	(void)c;
	o->size = op_size(in, 0);
	o->a = op_reg(in, 0);
	if (is_mem(in, 1)) {
		o->fn = mem_fn(scan_fns[t][s].rm, o);
	} else {
		o->b = op_reg(in, 1);
		o->fn = scan_fns[t][s].rr;
	}
	return XLATE_NEXT;
}

/* ---- BSWAP ---------------------------------------------------------------------------------- */

HANDLER(bswap64)
{
	c->gpr[o->a] = __builtin_bswap64(c->gpr[o->a]);
	NEXT(c, o);
}

HANDLER(bswap32)
{
	c->gpr[o->a] = __builtin_bswap32((u32)c->gpr[o->a]);
	NEXT(c, o);
}

/* Undefined; every CPU seen clears the register's low half. */
HANDLER(bswap16)
{
	SET16(c, o->a, 0);
	NEXT(c, o);
}

enum xlate xlate_bswap(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	o->size = op_size(in, 0);
	o->a = op_reg(in, 0);
	o->fn = o->size == 8 ? bswap64 : o->size == 4 ? bswap32 : bswap16;
	return XLATE_NEXT;
}
