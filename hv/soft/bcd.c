/* SPDX-License-Identifier: MIT */
/*
 * bcd.c - DAA, DAS, AAA, AAS, AAM, AAD (outside 64-bit mode) and BOUND.
 *
 * The host cannot run these in 64-bit mode: written after the operation
 * sections of SDM vol. 2A. Undefined flags are those of Intel CPUs: SF, ZF and
 * PF from AL and OF cleared; AAD leaves those of its last addition.
 */
#include "integer.h"

#define AL	0	/* byte offsets in gpr[] */
#define AH	1

static u64 sign_zero_parity(u8 v)
{
	return (v & 0x80 ? FL_SF : 0) | (v ? 0 : FL_ZF) | (__builtin_parity(v) ? 0 : FL_PF);
}

/* DAA adds the correction, DAS takes it away. */
ALWAYS_INLINE void decimal_adjust(struct cpu *c, bool subtract)
{
	u8 old = GET8(c, AL), al = old;
	u64 f = 0;

	if ((old & 15) > 9 || (c->flags & FL_AF)) {
		al = subtract ? al - 6 : al + 6;
		f |= FL_AF;
		if (subtract ? old < 6 : old > 0xf9)
			f |= FL_CF;
	}
	f |= c->flags & FL_CF;
	if (old > 0x99 || (c->flags & FL_CF)) {
		al = subtract ? al - 0x60 : al + 0x60;
		f |= FL_CF;
	}
	SET8(c, AL, al);
	c->flags = f | sign_zero_parity(al);
}

HANDLER(daa)
{
	decimal_adjust(c, false);
	NEXT(c, o);
}

HANDLER(das)
{
	decimal_adjust(c, true);
	NEXT(c, o);
}

/* AAA adds 0x106 to AX, AAS takes 6 from AX and 1 from AH. */
ALWAYS_INLINE void ascii_adjust(struct cpu *c, int by)
{
	u64 f = 0;

	if ((GET8(c, AL) & 15) > 9 || (c->flags & FL_AF)) {
		SET16(c, HVI_RAX, GET16(c, HVI_RAX) + by);
		f = FL_AF | FL_CF;
	}
	SET8(c, AL, GET8(c, AL) & 15);
	c->flags = f | sign_zero_parity(GET8(c, AL));
}

HANDLER(aaa)
{
	ascii_adjust(c, 0x106);
	NEXT(c, o);
}

HANDLER(aas)
{
	ascii_adjust(c, -0x106);
	NEXT(c, o);
}

HANDLER(aam)
{
	u8 al = GET8(c, AL), base = (u8)o->imm;

	if (!base)
		cpu_raise(c, o, X_DE, 0);
	SET8(c, AH, al / base);
	SET8(c, AL, al % base);
	c->flags = sign_zero_parity(GET8(c, AL));
	NEXT(c, o);
}

HANDLER(aad)
{
	u8 al = GET8(c, AL), tens = (u8)(GET8(c, AH) * (u8)o->imm);
	u32 ax;

	asm("addb %2, %0" CAPTURE : "+r"(al), "=a"(ax) : "r"(tens) : "cc");
	SET16(c, HVI_RAX, al);
	c->flags = flags_from(ax);
	NEXT(c, o);
}

enum xlate xlate_bcd(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	o->size = 1;
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_DAA: o->fn = daa; break;
	case ZYDIS_MNEMONIC_DAS: o->fn = das; break;
	case ZYDIS_MNEMONIC_AAA: o->fn = aaa; break;
	case ZYDIS_MNEMONIC_AAS: o->fn = aas; break;
	case ZYDIS_MNEMONIC_AAM:
		o->imm = (i64)in->op[0].imm.value.u;
		o->fn = aam;
		break;
	default:
		o->imm = (i64)in->op[0].imm.value.u;
		o->fn = aad;
		break;
	}
	return XLATE_NEXT;
}

/* BOUND: signed index against a pair of signed bounds in memory; outside is #BR. */
HANDLER(bound16)
{
	u64 la = ea(c, o);
	u32 pair = ld32(c, o, la);
	i16 v = (i16)c->gpr[o->a];

	if (v < (i16)pair || v > (i16)(pair >> 16))
		cpu_raise(c, o, X_BR, 0);
	NEXT(c, o);
}

HANDLER(bound32)
{
	u64 la = ea(c, o);
	u64 pair = ld64(c, o, la);
	i32 v = (i32)c->gpr[o->a];

	if (v < (i32)pair || v > (i32)(pair >> 32))
		cpu_raise(c, o, X_BR, 0);
	NEXT(c, o);
}

enum xlate xlate_bound(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	o->size = op_size(in, 0);
	o->a = op_reg(in, 0);
	o->fn = o->size == 2 ? bound16 : bound32;
	return XLATE_NEXT;
}
