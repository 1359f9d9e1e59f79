/* SPDX-License-Identifier: MIT */
/*
 * native_x87.c - x87 control instructions, on the image in memory (SDM 1, 8.1
 * and 8.3.11). FCS and FDS do not exist (CPUID.7.EBX[13]): they read as 0.
 */
#include <string.h>
#include "native_int.h"

#define FCW_WRITABLE	0x1f3fu
#define FCW_ONE		0x40u

/* The instructions that do not wait for a pending exception check CR0 alone. */
static void check_no_wait(struct cpu *c, const struct op *o)
{
	native_check_need(c, o, NEED_X87);
}

static void check_wait(struct cpu *c, const struct op *o)
{
	native_check_need(c, o, NEED_X87 | NEED_NOMF);
}

static void put_fcw(u8 *x, u16 v)
{
	put_u16(x + XS_FCW, (v & FCW_WRITABLE) | FCW_ONE);
	x87_fix_es(x);
}

/* The image's registers count from TOP: a change of TOP moves them, the physical ones stay. */
static void set_fsw(u8 *x, u16 sw)
{
	u32 by = ((sw >> 11) - (get_u16(x + XS_FSW) >> 11)) & 7;
	u8 old[128];

	memcpy(old, x + XS_ST, sizeof(old));
	for (u32 i = 0; by && i < 8; i++)
		memcpy(x + XS_ST + 16 * i, old + 16 * ((i + by) & 7), 16);
	put_u16(x + XS_FSW, sw);
}

static void init(u8 *x)
{
	put_u16(x + XS_FCW, 0x37f);
	set_fsw(x, 0);
	put_u16(x + XS_FTW, 0);
	put_u16(x + XS_FOP, 0);
	put_u64(x + XS_FIP, 0);
	put_u64(x + XS_FDP, 0);
}

/* The tag word of FSTENV from the abridged one (SDM 1, 10.5.1.1). */
static u16 full_tags(const u8 *x)
{
	u32 top = get_u16(x + XS_FSW) >> 11 & 7;
	u16 tags = 0;

	for (u32 phys = 0; phys < 8; phys++) {
		const u8 *st = x + XS_ST + 16 * ((phys - top) & 7);
		u16 exponent = get_u16(st + 8) & 0x7fff, tag;
		u64 mantissa = get_u64(st);

		if (!(x[XS_FTW] >> phys & 1))
			tag = 3;
		else if (exponent == 0x7fff)
			tag = 2;
		else if (exponent == 0)
			tag = mantissa ? 2 : 1;
		else
			tag = mantissa >> 63 ? 0 : 2;
		tags |= (u16)(tag << (2 * phys));
	}
	return tags;
}

static u8 abridged_tags(u16 tags)
{
	u8 v = 0;

	for (u32 phys = 0; phys < 8; phys++)
		if ((tags >> (2 * phys) & 3) != 3)
			v |= (u8)(1u << phys);
	return v;
}

/* Bytes of the environment; o->a: 16-bit operand size. */
static u32 env_bytes(const struct op *o)
{
	return o->a ? 14 : 28;
}

static bool real_format(const struct cpu *c)
{
	return !(c->cr0 & CR0_PE) || (c->rflags & FL_VM);
}

/* The environment in one of its four formats (SDM 1, figures 8-9 to 8-12). */
static void make_env(const struct cpu *c, const struct op *o, u8 *env)
{
	const u8 *x = c->xsave;
	u32 fip = get_u32(x + XS_FIP), fdp = get_u32(x + XS_FDP);
	u32 fop = get_u16(x + XS_FOP) & 0x7ff;
	u32 w[7] = { get_u16(x + XS_FCW), get_u16(x + XS_FSW), full_tags(x) };

	if (real_format(c)) {
		w[3] = fip & 0xffff;
		w[4] = (fip >> 16 << 12) | fop;
		w[5] = fdp & 0xffff;
		w[6] = fdp >> 16 << 12;
	} else {
		w[3] = fip;
		w[4] = fop << 16;
		w[5] = fdp;
		w[6] = 0;
	}
	if (o->a) {
		for (u32 i = 0; i < 7; i++)
			put_u16(env + 2 * i, (u16)w[i]);
		return;
	}
	w[0] |= 0xffff0000;
	w[1] |= 0xffff0000;
	w[2] |= 0xffff0000;
	w[6] |= real_format(c) ? 0 : 0xffff0000;
	if (real_format(c)) {
		w[3] |= 0xffff0000;
		w[5] |= 0xffff0000;
	}
	for (u32 i = 0; i < 7; i++)
		put_u32(env + 4 * i, w[i]);
}

static void take_env(const struct cpu *c, const struct op *o, const u8 *env)
{
	u8 *x = c->xsave;
	u32 w[7], fip, fdp, fop;

	for (u32 i = 0; i < 7; i++)
		w[i] = o->a ? get_u16(env + 2 * i) : get_u32(env + 4 * i);
	if (real_format(c)) {
		fip = (w[3] & 0xffff) | (w[4] >> 12 << 16);
		fdp = (w[5] & 0xffff) | (w[6] >> 12 << 16);
		fop = w[4];
	} else {
		fip = w[3];
		fdp = w[5];
		fop = o->a ? 0 : w[4] >> 16;
	}
	set_fsw(x, (u16)w[1]);
	put_u16(x + XS_FTW, abridged_tags((u16)w[2]));
	put_u16(x + XS_FOP, fop & 0x7ff);
	put_u64(x + XS_FIP, fip);
	put_u64(x + XS_FDP, fdp);
	put_fcw(x, (u16)w[0]);
}

static void fninit(struct cpu *c, const struct op *o)
{
	check_no_wait(c, o);
	init(c->xsave);
	NEXT(c, o);
}

static void fnclex(struct cpu *c, const struct op *o)
{
	check_no_wait(c, o);
	put_u16(c->xsave + XS_FSW, get_u16(c->xsave + XS_FSW) & 0x7f00);
	NEXT(c, o);
}

static void fnstsw_ax(struct cpu *c, const struct op *o)
{
	check_no_wait(c, o);
	c->gpr[HVI_RAX] = (c->gpr[HVI_RAX] & ~0xffffull) | get_u16(c->xsave + XS_FSW);
	NEXT(c, o);
}

static void fnstsw(struct cpu *c, const struct op *o)
{
	check_no_wait(c, o);
	st16(c, o, ea(c, o), get_u16(c->xsave + XS_FSW));
	NEXT(c, o);
}

static void fnstcw(struct cpu *c, const struct op *o)
{
	check_no_wait(c, o);
	st16(c, o, ea(c, o), get_u16(c->xsave + XS_FCW));
	NEXT(c, o);
}

static void fldcw(struct cpu *c, const struct op *o)
{
	check_wait(c, o);
	put_fcw(c->xsave, ld16(c, o, ea(c, o)));
	NEXT(c, o);
}

static void fnstenv(struct cpu *c, const struct op *o)
{
	u8 env[28];

	check_no_wait(c, o);
	make_env(c, o, env);
	mem_write(c, o, ea(c, o), env, env_bytes(o));
	put_fcw(c->xsave, get_u16(c->xsave + XS_FCW) | 0x3f);
	NEXT(c, o);
}

static void fldenv(struct cpu *c, const struct op *o)
{
	u8 env[28];

	check_wait(c, o);
	mem_read(c, o, ea(c, o), env, env_bytes(o));
	take_env(c, o, env);
	NEXT(c, o);
}

static void fnsave(struct cpu *c, const struct op *o)
{
	u32 env = env_bytes(o);
	u8 all[28 + 80];

	check_no_wait(c, o);
	make_env(c, o, all);
	for (u32 i = 0; i < 8; i++)
		memcpy(all + env + 10 * i, c->xsave + XS_ST + 16 * i, 10);
	mem_write(c, o, ea(c, o), all, env + 80);
	init(c->xsave);
	NEXT(c, o);
}

static void frstor(struct cpu *c, const struct op *o)
{
	u32 env = env_bytes(o);
	u8 all[28 + 80];

	check_wait(c, o);
	mem_read(c, o, ea(c, o), all, env + 80);
	take_env(c, o, all);
	for (u32 i = 0; i < 8; i++)
		memcpy(c->xsave + XS_ST + 16 * i, all + env + 10 * i, 10);
	NEXT(c, o);
}

static void fwait(struct cpu *c, const struct op *o)
{
	if ((c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
		cpu_raise(c, o, X_NM, 0);
	native_check_need(c, o, NEED_NOMF);
	NEXT(c, o);
}

/* FENI, FDISI, FSETPM: the 8087's and 80287's, without effect since. */
static void fnothing(struct cpu *c, const struct op *o)
{
	check_no_wait(c, o);
	NEXT(c, o);
}

op_fn native_x87_control(const struct insn *in, struct op *o)
{
	const ZydisDecodedOperand *mem = native_memory_operand(in);

	o->a = in->z.operand_width == 16;
	if (mem && mem->size / 8 < 256)
		o->size = (u8)(mem->size / 8);
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_FNINIT:
		return fninit;
	case ZYDIS_MNEMONIC_FNCLEX:
		return fnclex;
	case ZYDIS_MNEMONIC_FNSTSW:
		return mem ? fnstsw : fnstsw_ax;
	case ZYDIS_MNEMONIC_FNSTCW:
		return fnstcw;
	case ZYDIS_MNEMONIC_FLDCW:
		return fldcw;
	case ZYDIS_MNEMONIC_FNSTENV:
		return fnstenv;
	case ZYDIS_MNEMONIC_FLDENV:
		return fldenv;
	case ZYDIS_MNEMONIC_FNSAVE:
		return fnsave;
	case ZYDIS_MNEMONIC_FRSTOR:
		return frstor;
	case ZYDIS_MNEMONIC_FWAIT:
		return fwait;
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return fnothing;
	default:
		return NULL;
	}
}
