/* SPDX-License-Identifier: MIT */
/*
 * shift.c - SHL SHR SAR ROL ROR RCL RCR, SHLD SHRD.
 *
 * By the host's instruction, with the count masked as the guest's size asks;
 * a masked count of 0 changes no flag (SDM vol. 2B), but the operand is still
 * read and written.
 */
#include "integer.h"

/* Shifts write all status flags, rotates only CF and OF. */
#define FL_ROTATE	(FL_CF | FL_OF)

#define SHIFT_OP(name, insn, n, written)				\
	ALWAYS_INLINE u##n name##n(u##n a, u8 count, u64 *f)		\
	{								\
		u32 ax;							\
		if (!count)						\
			return a;					\
		asm(insn " %%cl, %0" CAPTURE : "+r"(a), "=a"(ax) : "c"(count) : "cc"); \
		*f = (*f & ~(u64)(written)) | (flags_from(ax) & (written)); \
		return a;						\
	}
/* Through the carry flag. */
#define ROTATE_CARRY(name, insn, n)					\
	ALWAYS_INLINE u##n name##n(u##n a, u8 count, u64 *f)		\
	{								\
		u32 ax;							\
		if (!count)						\
			return a;					\
		asm("btl $0, %3\n\t" insn " %%cl, %0" CAPTURE		\
		    : "+&r"(a), "=&a"(ax) : "c"(count), "r"((u32)*f) : "cc"); \
		*f = (*f & ~(u64)FL_ROTATE) | (flags_from(ax) & FL_ROTATE); \
		return a;						\
	}

#define FOR_SIZES(X)	X(8, "b") X(16, "w") X(32, "l") X(64, "q")

#define OPS(n, s)							\
	SHIFT_OP(shl, "shl" s, n, FL_STATUS) SHIFT_OP(shr, "shr" s, n, FL_STATUS) \
	SHIFT_OP(sar, "sar" s, n, FL_STATUS)				\
	SHIFT_OP(rol, "rol" s, n, FL_ROTATE) SHIFT_OP(ror, "ror" s, n, FL_ROTATE) \
	ROTATE_CARRY(rcl, "rcl" s, n) ROTATE_CARRY(rcr, "rcr" s, n)
FOR_SIZES(OPS)

#define COUNT_MASK(n)	((n) == 64 ? 63 : 31)

#define SHIFTS(op, n)							\
	HANDLER(op##n##_ri)						\
	{								\
		u64 f = c->flags;					\
		u##n r = op##n(GET##n(c, o->a), (u8)o->imm, &f);	\
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(op##n##_rc)						\
	{								\
		u64 f = c->flags;					\
		u##n r = op##n(GET##n(c, o->a), (u8)c->gpr[HVI_RCX] & COUNT_MASK(n), &f); \
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mi)						\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = op##n(v, (u8)o->imm, &f);			\
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mc)						\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = op##n(v, (u8)c->gpr[HVI_RCX] & COUNT_MASK(n), &f); \
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}

#define ALL_SHIFTS(n, s)						\
	SHIFTS(shl, n) SHIFTS(shr, n) SHIFTS(sar, n) SHIFTS(rol, n)	\
	SHIFTS(ror, n) SHIFTS(rcl, n) SHIFTS(rcr, n)
FOR_SIZES(ALL_SHIFTS)

/* 32 and 64-bit registers whose flags nobody reads; the count is known and not 0, or any in CL. */
#define ROTL(v, k, n)	((v) << (k) | (v) >> (-(k) & ((n) - 1)))
#define ROTR(v, k, n)	((v) >> (k) | (v) << (-(k) & ((n) - 1)))
#define DEAD(op, n, expr)						\
	HANDLER(op##n##_ri_dead)					\
	{								\
		u##n v = GET##n(c, o->a);				\
		unsigned int count = (unsigned int)o->imm;		\
		SET##n(c, o->a, expr);					\
		NEXT(c, o);						\
	}								\
	HANDLER(op##n##_rc_dead)					\
	{								\
		u##n v = GET##n(c, o->a);				\
		unsigned int count = (unsigned int)c->gpr[HVI_RCX] & COUNT_MASK(n); \
		SET##n(c, o->a, expr);					\
		NEXT(c, o);						\
	}
#define DEADS(n)							\
	DEAD(shl, n, v << count) DEAD(shr, n, v >> count)		\
	DEAD(sar, n, (i##n)v >> count)					\
	DEAD(rol, n, ROTL(v, count, n)) DEAD(ror, n, ROTR(v, count, n))
DEADS(32)
DEADS(64)

enum shift_op { SH_SHL, SH_SHR, SH_SAR, SH_ROL, SH_ROR, SH_RCL, SH_RCR, SH_OPS };

#define SHIFT_FORMS(op, n)						\
	{ op##n##_ri, op##n##_rc, { MEM3(op##n##_mi) }, { MEM3(op##n##_mc) } }
#define SHIFT_FORMS4(op)						\
	{ SHIFT_FORMS(op, 8), SHIFT_FORMS(op, 16), SHIFT_FORMS(op, 32), SHIFT_FORMS(op, 64) }
static const struct { op_fn ri, rc, mi[3], mc[3]; } shift_fns[SH_OPS][4] = {
	SHIFT_FORMS4(shl), SHIFT_FORMS4(shr), SHIFT_FORMS4(sar), SHIFT_FORMS4(rol),
	SHIFT_FORMS4(ror), SHIFT_FORMS4(rcl), SHIFT_FORMS4(rcr),
};

#define DEAD_FORMS(op)	{ { op##32_ri_dead, op##32_rc_dead }, { op##64_ri_dead, op##64_rc_dead } }
/* [operation][32 or 64 bits] */
static const struct { op_fn ri, rc; } dead_fns[SH_RCL][2] = {
	DEAD_FORMS(shl), DEAD_FORMS(shr), DEAD_FORMS(sar), DEAD_FORMS(rol), DEAD_FORMS(ror),
};

static enum shift_op shift_op_of(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_SHL: return SH_SHL;
	case ZYDIS_MNEMONIC_SHR: return SH_SHR;
	case ZYDIS_MNEMONIC_SAR: return SH_SAR;
	case ZYDIS_MNEMONIC_ROL: return SH_ROL;
	case ZYDIS_MNEMONIC_ROR: return SH_ROR;
	case ZYDIS_MNEMONIC_RCL: return SH_RCL;
	default: return SH_RCR;
	}
}

enum xlate xlate_shift(struct cpu *c, const struct insn *in, struct op *o)
{
	enum shift_op op = shift_op_of(in->z.mnemonic);
	unsigned int s = size_index(op_size(in, 0));
	bool imm = is_imm(in, 1);

	(void)c;
	o->size = op_size(in, 0);
	if (imm)
		o->imm = (i64)(in->op[1].imm.value.u & (o->size == 8 ? 63 : 31));
	if (is_mem(in, 0)) {
		o->fn = mem_fn(imm ? shift_fns[op][s].mi : shift_fns[op][s].mc, o);
		return XLATE_NEXT;
	}
	o->a = op_reg(in, 0);
	if (in->flags_dead && op < SH_RCL && s >= 2)
		o->fn = imm ? dead_fns[op][s - 2].ri : dead_fns[op][s - 2].rc;
	else
		o->fn = imm ? shift_fns[op][s].ri : shift_fns[op][s].rc;
	return XLATE_NEXT;
}

/* ---- SHLD, SHRD: 16 bits with a count above 16 is undefined, and what the host makes of it ---- */

#define DOUBLE_OP(name, insn, n)					\
	ALWAYS_INLINE u##n name##n(u##n a, u##n b, u8 count, u64 *f)	\
	{								\
		u32 ax;							\
		if (!count)						\
			return a;					\
		asm(insn " %%cl, %3, %0" CAPTURE			\
		    : "+&r"(a), "=&a"(ax) : "c"(count), "r"(b) : "cc");	\
		*f = flags_from(ax);					\
		return a;						\
	}
#define DOUBLES(op, n)							\
	HANDLER(op##n##_rri)						\
	{								\
		u64 f = c->flags;					\
		u##n r = op##n(GET##n(c, o->a), GET##n(c, o->b), (u8)o->imm, &f); \
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	HANDLER(op##n##_rrc)						\
	{								\
		u64 f = c->flags;					\
		u##n r = op##n(GET##n(c, o->a), GET##n(c, o->b),	\
			       (u8)c->gpr[HVI_RCX] & COUNT_MASK(n), &f); \
		SET##n(c, o->a, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mri)					\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = op##n(v, GET##n(c, o->b), (u8)o->imm, &f);	\
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(op##n##_mrc)					\
	{								\
		u64 la = address(c, o, k), f = c->flags;		\
		LOAD_RMW(n, v, la);					\
		u##n r = op##n(v, GET##n(c, o->b), (u8)c->gpr[HVI_RCX] & COUNT_MASK(n), &f); \
		UPDATE(n, la, r);					\
		c->flags = f;						\
		NEXT(c, o);						\
	}
#define DOUBLE(n, s)							\
	DOUBLE_OP(shld, "shld" s, n) DOUBLE_OP(shrd, "shrd" s, n)	\
	DOUBLES(shld, n) DOUBLES(shrd, n)
DOUBLE(16, "w")
DOUBLE(32, "l")
DOUBLE(64, "q")

#define DOUBLE_FORMS(op, n)						\
	{ op##n##_rri, op##n##_rrc, { MEM3(op##n##_mri) }, { MEM3(op##n##_mrc) } }
static const struct { op_fn ri, rc, mi[3], mc[3]; } double_fns[2][3] = {
	{ DOUBLE_FORMS(shld, 16), DOUBLE_FORMS(shld, 32), DOUBLE_FORMS(shld, 64) },
	{ DOUBLE_FORMS(shrd, 16), DOUBLE_FORMS(shrd, 32), DOUBLE_FORMS(shrd, 64) },
};

enum xlate xlate_double_shift(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int s = size_index(op_size(in, 0)) - 1;
	unsigned int right = in->z.mnemonic == ZYDIS_MNEMONIC_SHRD;
	bool imm = is_imm(in, 2);

	(void)c;
	o->size = op_size(in, 0);
	o->b = op_reg(in, 1);
	if (imm)
		o->imm = (i64)(in->op[2].imm.value.u & (o->size == 8 ? 63 : 31));
	if (is_mem(in, 0)) {
		o->fn = mem_fn(imm ? double_fns[right][s].mi : double_fns[right][s].mc, o);
	} else {
		o->a = op_reg(in, 0);
		o->fn = imm ? double_fns[right][s].ri : double_fns[right][s].rc;
	}
	return XLATE_NEXT;
}
