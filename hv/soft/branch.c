/* SPDX-License-Identifier: MIT */
/*
 * branch.c - near JMP, Jcc, CALL, RET, LOOPcc, JrCXZ.
 *
 * o->imm is the target of a direct branch relative to the block's start. The
 * operand size truncates the target outside 64-bit mode (and, for the indirect
 * ones with a 66 prefix, in 16-bit code); 64-bit mode knows 64 bits alone.
 */
#include "integer.h"

#define TARGET(c, o)	((c)->gpr[REG_BLOCK] + (u64)(o)->imm)

ALWAYS_INLINE u64 target(const struct cpu *c, const struct op *o, unsigned int size)
{
	u64 rip = TARGET(c, o);

	return size == 8 ? rip : size == 4 ? (u32)rip : (u16)rip;
}

/* ---- Jcc, JMP: by operand size ---------------------------------------------------- */

#define JCC(cc, num)							\
	HANDLER(j##cc##64)						\
	{								\
		return cpu_jump(c, o, condition(c->flags, num) ? TARGET(c, o) : op_next_rip(c, o)); \
	}								\
	HANDLER(j##cc##_other)						\
	{								\
		return cpu_jump(c, o, condition(c->flags, num) ?	\
				target(c, o, o->size) : op_next_rip(c, o)); \
	}
FOR_CONDITIONS(JCC)

#define JCC_ROW(cc, num)	{ j##cc##64, j##cc##_other },
static const struct { op_fn in64, other; } jcc_fns[16] = { FOR_CONDITIONS(JCC_ROW) };

HANDLER(jmp64)
{
	return cpu_jump(c, o, TARGET(c, o));
}

HANDLER(jmp_other)
{
	return cpu_jump(c, o, target(c, o, o->size));
}

HANDLER(jmp64_r)
{
	return cpu_jump(c, o, c->gpr[o->a]);
}

MEM_HANDLER(jmp64_m)
{
	u64 la = address(c, o, k);

	LOAD(64, v, la);
	return cpu_jump(c, o, v);
}

HANDLER(jmp_other_r)
{
	return cpu_jump(c, o, c->gpr[o->a] & size_mask(o->size));
}

HANDLER(jmp_other_m)
{
	u64 la = ea(c, o);

	return cpu_jump(c, o, o->size == 4 ? ld32(c, o, la) : ld16(c, o, la));
}

/* ---- CALL: the target is checked, then the return address pushed, then RIP moves --------- */

#define CHECK_TARGET(rip)						\
	do {								\
		if (unlikely(!cpu_can_jump(c, rip)))			\
			raise_gp0(c, o);				\
	} while (0)

/* 64-bit mode. k and slow as in a memory handler. */
#define CALL64(rip)							\
	do {								\
		u64 to = (rip), sp = c->gpr[HVI_RSP] - 8, at;		\
		CHECK_TARGET(to);					\
		at = stack64(c, o, k, sp, true);			\
		STORE(64, at, op_next_rip(c, o));			\
		c->gpr[HVI_RSP] = sp;					\
		return cpu_jump(c, o, to);				\
	} while (0)

STACK_HANDLER(call64)
{
	CALL64(TARGET(c, o));
}

STACK_HANDLER(call64_r)
{
	CALL64(c->gpr[o->a]);
}

MEM_HANDLER(call64_m)
{
	u64 la = address(c, o, k);

	LOAD(64, v, la);
	CALL64(v);
}

/* Outside 64-bit mode. */
static void call_to(struct cpu *c, const struct op *o, u64 rip)
{
	CHECK_TARGET(rip);
	stack_push(c, o, o->size, op_next_rip(c, o));
	return cpu_jump(c, o, rip);
}

HANDLER(call_other)
{
	return call_to(c, o, target(c, o, o->size));
}

HANDLER(call_other_r)
{
	return call_to(c, o, c->gpr[o->a] & size_mask(o->size));
}

HANDLER(call_other_m)
{
	u64 la = ea(c, o);

	return call_to(c, o, o->size == 4 ? ld32(c, o, la) : ld16(c, o, la));
}

/* ---- RET; imm: bytes of arguments to drop ---------------------------------------------------- */

STACK_HANDLER(ret64)
{
	u64 sp = c->gpr[HVI_RSP], at = stack64(c, o, k, sp, false);

	LOAD(64, rip, at);
	CHECK_TARGET(rip);
	c->gpr[HVI_RSP] = sp + 8 + (u64)o->imm;
	return cpu_jump(c, o, rip);
}

HANDLER(ret_other)
{
	u64 rip = stack_read(c, o, o->size, 0);

	CHECK_TARGET(rip);
	stack_move(c, o->size + o->imm);
	return cpu_jump(c, o, rip);
}

/* ---- LOOPcc, JrCXZ: the counter has the address size ---------------------------------------------- */

ALWAYS_INLINE void loop_on(struct cpu *c, const struct op *o, bool flag)
{
	u64 n = (c->gpr[HVI_RCX] - 1) & size_mask(o->asize);
	u64 rip = n && flag ? target(c, o, o->size) : op_next_rip(c, o);

	CHECK_TARGET(rip);
	set_reg(c, HVI_RCX, o->asize, n);
	return cpu_jump(c, o, rip);
}

HANDLER(loop)
{
	return loop_on(c, o, true);
}

HANDLER(loope)
{
	return loop_on(c, o, c->flags & FL_ZF);
}

HANDLER(loopne)
{
	return loop_on(c, o, !(c->flags & FL_ZF));
}

HANDLER(jcxz)
{
	bool taken = !(c->gpr[HVI_RCX] & size_mask(o->asize));

	return cpu_jump(c, o, taken ? target(c, o, o->size) : op_next_rip(c, o));
}

/* Operand size of a near branch: in 64-bit mode always 64 bits (Intel ignores 66). */
static u8 branch_size(const struct insn *in)
{
	return in->code_bits == 64 ? 8 : in->z.operand_width == 16 ? 2 : 4;
}

static const op_fn jmp64_ms[3] = { MEM3(jmp64_m) }, call64_ms[3] = { MEM3(call64_m) };

static op_fn indirect(const struct insn *in, struct op *o, bool call)
{
	bool wide = o->size == 8;

	if (is_reg(in, 0)) {
		o->a = reg_number(in->op[0].reg.value);
		return call ? (wide ? call64_r : call_other_r) : (wide ? jmp64_r : jmp_other_r);
	}
	if (wide)
		return mem_fn(call ? call64_ms : jmp64_ms, o);
	return call ? call_other_m : jmp_other_m;
}

enum xlate xlate_branch(struct cpu *c, const struct insn *in, struct op *o)
{
	bool direct = is_imm(in, 0), wide;

	(void)c;
	if (in->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
		return XLATE_NO;
	o->size = branch_size(in);
	wide = o->size == 8;
	if (direct && in->z.mnemonic != ZYDIS_MNEMONIC_RET)
		o->imm = o->off + o->len + in->op[0].imm.value.s;

	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		o->fn = direct ? (wide ? jmp64 : jmp_other) : indirect(in, o, false);
		break;
	case ZYDIS_MNEMONIC_CALL:
		o->fn = direct ? (wide ? call64 : call_other) : indirect(in, o, true);
		break;
	case ZYDIS_MNEMONIC_RET:
		o->imm = direct ? (i64)(in->op[0].imm.value.u & 0xffff) : 0;
		o->fn = wide ? ret64 : ret_other;
		break;
	case ZYDIS_MNEMONIC_LOOP:
		o->fn = loop;
		break;
	case ZYDIS_MNEMONIC_LOOPE:
		o->fn = loope;
		break;
	case ZYDIS_MNEMONIC_LOOPNE:
		o->fn = loopne;
		break;
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		o->fn = jcxz;
		break;
	default:
		if (wide && o->off)
			fuse_compare(o - 1, condition_of(in));
		o->fn = wide ? jcc_fns[condition_of(in)].in64 : jcc_fns[condition_of(in)].other;
		break;
	}
	o->asize = in->z.address_width / 8;
	return XLATE_END;
}
