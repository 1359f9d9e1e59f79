/* SPDX-License-Identifier: MIT */
/*
 * native_xsave.c - FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR, LDMXCSR, STMXCSR,
 * VZEROUPPER, VZEROALL (SDM 1, 10.5 and chapter 13).
 *
 * Every component counts as in use (XINUSE is all ones), and XSAVEOPT writes
 * what XSAVE would: the SDM allows both. XSAVEC is not offered, so a compacted
 * image is #GP for XRSTOR.
 */
#include <string.h>
#include "native_int.h"

#define HEADER		64u
#define COMP_X87	1u
#define COMP_SSE	2u
#define COMP_AVX	4u

/* XMM and YMM registers that the mode has. */
static u32 vector_count(const struct cpu *c)
{
	return c->code_bits == 64 ? 16 : 8;
}

/* o->b: REX.W, FIP and FDP are 64 bits; else 32 and a selector that reads as 0. */
static void x87_pointers(const struct op *o, u8 *to)
{
	if (o->b)
		return;
	put_u32(to + XS_FIP + 4, 0);
	put_u32(to + XS_FDP + 4, 0);
}

/* The first 32 bytes as FXSAVE and XSAVE write them. */
static void x87_head(const struct cpu *c, const struct op *o, u8 head[32])
{
	memcpy(head, c->xsave, 32);
	head[XS_FTW + 1] = 0;
	x87_pointers(o, head);
}

/* #GP(0), but #SS(0) for an address on the stack that is not even canonical. */
static noreturn void misaligned(struct cpu *c, const struct op *o, u64 la)
{
	if ((o->flags & OP_STACK_SEG) && c->code_bits == 64 && !cpu_can_jump(c, la))
		cpu_raise(c, o, X_SS, 0);
	raise_gp0(c, o);
}

static void fxsave(struct cpu *c, const struct op *o)
{
	u32 bytes = XS_XMM + 16 * vector_count(c);
	u8 *image = native(c)->image;
	u64 la;

	native_check_need(c, o, NEED_X87);
	la = ea(c, o);
	if (la & 15)
		misaligned(c, o, la);
	memcpy(image, c->xsave, bytes);
	x87_head(c, o, image);
	for (u32 i = 0; i < 8; i++)
		memset(image + XS_ST + 16 * i + 10, 0, 6);
	/* The whole area has to be writable, though its end is software's. */
	mem_probe_write(c, o, la, XS_LEGACY);
	mem_write(c, o, la, image, bytes);
	NEXT(c, o);
}

static void take_x87(struct cpu *c, const struct op *o, const u8 *from)
{
	u8 *x = c->xsave;

	memcpy(x, from, XS_MXCSR);
	x[XS_FTW + 1] = 0;
	put_u16(x + XS_FOP, get_u16(x + XS_FOP) & 0x7ff);
	put_u16(x + XS_FCW, (get_u16(x + XS_FCW) & 0x1f3f) | 0x40);
	x87_pointers(o, x);
	put_u64(x + XS_FIP, (u64)((i64)(get_u64(x + XS_FIP) << 16) >> 16));	/* made canonical (SDM 1, 10.5.1) */
	put_u64(x + XS_FDP, (u64)((i64)(get_u64(x + XS_FDP) << 16) >> 16));
	for (u32 i = 0; i < 8; i++) {
		memcpy(x + XS_ST + 16 * i, from + XS_ST + 16 * i, 10);
		memset(x + XS_ST + 16 * i + 10, 0, 6);
	}
	x87_fix_es(x);
}

static void fxrstor(struct cpu *c, const struct op *o)
{
	u32 vectors = 16 * vector_count(c);
	u8 *image = native(c)->image;
	u64 la;

	native_check_need(c, o, NEED_X87);
	la = ea(c, o);
	if (la & 15)
		misaligned(c, o, la);
	mem_read(c, o, la, image, XS_LEGACY);
	if (get_u32(image + XS_MXCSR) & ~MXCSR_VALID)
		raise_gp0(c, o);
	take_x87(c, o, image);
	put_u32(c->xsave + XS_MXCSR, get_u32(image + XS_MXCSR));
	memcpy(c->xsave + XS_XMM, image + XS_XMM, vectors);
	NEXT(c, o);
}

static u64 xsave_area(struct cpu *c, const struct op *o)
{
	u64 la;

	if (!(c->cr4 & CR4_OSXSAVE))
		raise_ud(c, o);
	if (c->cr0 & CR0_TS)
		cpu_raise(c, o, X_NM, 0);
	la = ea(c, o);
	if (la & 63)
		misaligned(c, o, la);
	return la;
}

static u64 requested(const struct cpu *c)
{
	return c->xcr0 & (((c->gpr[HVI_RDX] & 0xffffffff) << 32) | (c->gpr[HVI_RAX] & 0xffffffff));
}

static void xsave(struct cpu *c, const struct op *o)
{
	u64 la = xsave_area(c, o), rfbm = requested(c), bv;
	u32 vectors = 16 * vector_count(c);
	u8 head[32];

	mem_probe_write(c, o, la, rfbm & COMP_AVX ? XS_YMM + vectors : XS_LEGACY + HEADER);
	mem_read(c, o, la + XS_BV, &bv, 8);
	x87_head(c, o, head);
	if (rfbm & COMP_X87) {
		u8 st[128];

		memcpy(st, c->xsave + XS_ST, sizeof(st));
		for (u32 i = 0; i < 8; i++)
			memset(st + 16 * i + 10, 0, 6);
		mem_write(c, o, la, head, XS_MXCSR);
		mem_write(c, o, la + XS_ST, st, sizeof(st));
	}
	if (rfbm & (COMP_SSE | COMP_AVX))
		mem_write(c, o, la + XS_MXCSR, head + XS_MXCSR, 8);
	if (rfbm & COMP_SSE)
		mem_write(c, o, la + XS_XMM, c->xsave + XS_XMM, vectors);
	if (rfbm & COMP_AVX)
		mem_write(c, o, la + XS_YMM, c->xsave + XS_YMM, vectors);
	bv = (bv & ~rfbm) | rfbm;
	mem_write(c, o, la + XS_BV, &bv, 8);
	NEXT(c, o);
}

static void xrstor(struct cpu *c, const struct op *o)
{
	u64 la = xsave_area(c, o), rfbm = requested(c), bv;
	u32 vectors = 16 * vector_count(c), mxcsr;
	u8 header[HEADER], ymm[256], *image = native(c)->image;

	mem_read(c, o, la + XS_BV, header, HEADER);
	bv = get_u64(header);
	if (bv & ~c->xcr0)
		raise_gp0(c, o);
	for (u32 i = 8; i < 24; i++)
		if (header[i])
			raise_gp0(c, o);
	mem_read(c, o, la, image, XS_LEGACY);
	mxcsr = get_u32(image + XS_MXCSR);
	if ((rfbm & (COMP_SSE | COMP_AVX)) && (mxcsr & ~MXCSR_VALID))
		raise_gp0(c, o);
	if (rfbm & bv & COMP_AVX)
		mem_read(c, o, la + XS_YMM, ymm, vectors);
	else
		memset(ymm, 0, sizeof(ymm));

	if (rfbm & COMP_X87) {
		if (!(bv & COMP_X87)) {
			memset(image, 0, XS_MXCSR);
			memset(image + XS_ST, 0, XS_XMM - XS_ST);
			put_u16(image + XS_FCW, 0x37f);
		}
		take_x87(c, o, image);
	}
	if (rfbm & (COMP_SSE | COMP_AVX))
		put_u32(c->xsave + XS_MXCSR, mxcsr);
	if (rfbm & COMP_SSE) {
		if (!(bv & COMP_SSE))
			memset(image + XS_XMM, 0, 256);
		memcpy(c->xsave + XS_XMM, image + XS_XMM, vectors);
	}
	if (rfbm & COMP_AVX)
		memcpy(c->xsave + XS_YMM, ymm, vectors);
	NEXT(c, o);
}

static void ldmxcsr(struct cpu *c, const struct op *o)
{
	u32 v;

	native_check_need(c, o, (u8)o->aux);
	v = ld32(c, o, ea(c, o));
	if (v & ~MXCSR_VALID)
		raise_gp0(c, o);
	put_u32(c->xsave + XS_MXCSR, v);
	NEXT(c, o);
}

static void stmxcsr(struct cpu *c, const struct op *o)
{
	native_check_need(c, o, (u8)o->aux);
	st32(c, o, ea(c, o), get_u32(c->xsave + XS_MXCSR));
	NEXT(c, o);
}

static void vzeroupper(struct cpu *c, const struct op *o)
{
	native_check_need(c, o, (u8)o->aux);
	memset(c->xsave + XS_YMM, 0, 16 * vector_count(c));
	NEXT(c, o);
}

static void vzeroall(struct cpu *c, const struct op *o)
{
	native_check_need(c, o, (u8)o->aux);
	memset(c->xsave + XS_XMM, 0, 16 * vector_count(c));
	memset(c->xsave + XS_YMM, 0, 16 * vector_count(c));
	NEXT(c, o);
}

op_fn native_xsave_insn(const struct insn *in, struct op *o)
{
	bool vex = in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;

	o->b = 0;
	o->aux = vex ? NEED_VEX | NEED_AVX | NEED_TS0 : NEED_EM0 | NEED_FXSR | NEED_TS0;
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE64:
		o->b = 1;
		return fxsave;
	case ZYDIS_MNEMONIC_FXSAVE:
		return fxsave;
	case ZYDIS_MNEMONIC_FXRSTOR64:
		o->b = 1;
		return fxrstor;
	case ZYDIS_MNEMONIC_FXRSTOR:
		return fxrstor;
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
		o->b = 1;
		return xsave;
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVEOPT:
		return xsave;
	case ZYDIS_MNEMONIC_XRSTOR64:
		o->b = 1;
		return xrstor;
	case ZYDIS_MNEMONIC_XRSTOR:
		return xrstor;
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		return ldmxcsr;
	case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VSTMXCSR:
		return stmxcsr;
	case ZYDIS_MNEMONIC_VZEROUPPER:
		return vzeroupper;
	case ZYDIS_MNEMONIC_VZEROALL:
		return vzeroall;
	default:
		return NULL;
	}
}
