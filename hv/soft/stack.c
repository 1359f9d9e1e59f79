/* SPDX-License-Identifier: MIT */
/*
 * stack.c - PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE.
 *
 * 64-bit pushes and pops have fast paths; all else goes through stack_push()
 * and stack_read(), which know every operand and stack size.
 */
#include "integer.h"

static u64 load_n(struct cpu *c, const struct op *o, u64 la, unsigned int size)
{
	return size == 8 ? ld64(c, o, la) : size == 4 ? ld32(c, o, la) : ld16(c, o, la);
}

static void store_n(struct cpu *c, const struct op *o, u64 la, unsigned int size, u64 v)
{
	if (size == 8)
		st64(c, o, la, v);
	else if (size == 4)
		st32(c, o, la, (u32)v);
	else
		st16(c, o, la, (u16)v);
}

/* Linear address of what stands `depth` bytes above the top of the stack. */
static u64 slot(struct cpu *c, const struct op *o, unsigned int size, i64 depth, bool write)
{
	u64 sp = (c->gpr[HVI_RSP] + (u64)depth) & size_mask(c->stack_size);

	return seg_linear(c, o, HVI_SS, sp, size, write);
}

u64 stack_read(struct cpu *c, const struct op *o, unsigned int size, i64 depth)
{
	return load_n(c, o, slot(c, o, size, depth, false), size);
}

void stack_push(struct cpu *c, const struct op *o, unsigned int size, u64 v)
{
	store_n(c, o, slot(c, o, size, -(i64)size, true), size, v);
	stack_move(c, -(i64)size);
}

/* ---- PUSH ----------------------------------------------------------------------- */

#define PUSH64(v)							\
	do {								\
		u64 sp = c->gpr[HVI_RSP] - 8, at = stack64(c, o, k, sp, true); \
		STORE(64, at, v);					\
		c->gpr[HVI_RSP] = sp;					\
		NEXT(c, o);						\
	} while (0)

STACK_HANDLER(push64_r)
{
	PUSH64(c->gpr[o->a]);
}

STACK_HANDLER(push64_i)
{
	PUSH64((u64)o->imm);
}

MEM_HANDLER(push64_m)
{
	u64 la = address(c, o, k);

	LOAD(64, v, la);
	PUSH64(v);
}

HANDLER(push_r)
{
	stack_push(c, o, o->size, c->gpr[o->a]);
	NEXT(c, o);
}

HANDLER(push_i)
{
	stack_push(c, o, o->size, (u64)o->imm);
	NEXT(c, o);
}

HANDLER(push_m)
{
	stack_push(c, o, o->size, load_n(c, o, ea(c, o), o->size));
	NEXT(c, o);
}

/*
 * PUSH Sreg with a 32-bit operand moves SP by four and writes two bytes, as
 * the CPUs of the last two decades do (SDM vol. 2B, PUSH); 64 bits are
 * zero-extended.
 */
HANDLER(push_seg)
{
	unsigned int width = o->size == 4 ? 2 : o->size;

	store_n(c, o, slot(c, o, width, -(i64)o->size, true), width, c->seg[o->a].selector);
	stack_move(c, -(i64)o->size);
	NEXT(c, o);
}

/* ---- POP --------------------------------------------------------------------------- */

STACK_HANDLER(pop64_r)
{
	u64 sp = c->gpr[HVI_RSP], at = stack64(c, o, k, sp, false);

	LOAD(64, v, at);
	c->gpr[HVI_RSP] = sp + 8;
	c->gpr[o->a] = v;
	NEXT(c, o);
}

HANDLER(pop_r)
{
	u64 v = stack_read(c, o, o->size, 0);

	stack_move(c, o->size);
	set_reg(c, o->a, o->size, v);
	NEXT(c, o);
}

/* An address by RSP uses its value after the pop: the translator has moved the displacement. */
HANDLER(pop_m)
{
	u64 v = stack_read(c, o, o->size, 0);

	store_n(c, o, ea(c, o), o->size, v);
	stack_move(c, o->size);
	NEXT(c, o);
}

/* ---- PUSHA, POPA: the eight registers in encoding order, downwards ------------------- */

HANDLER(pusha)
{
	for (int i = 0; i < 8; i++)
		mem_probe_write(c, o, slot(c, o, o->size, -(i + 1) * o->size, true), o->size);
	for (int i = 0; i < 8; i++)
		store_n(c, o, slot(c, o, o->size, -(i + 1) * o->size, true), o->size, c->gpr[i]);
	stack_move(c, -8 * o->size);
	NEXT(c, o);
}

static COLD void pop_all(struct cpu *c, const struct op *o)
{
	u64 v[8];

	for (int i = 0; i < 8; i++)
		v[7 - i] = stack_read(c, o, o->size, i * o->size);
	for (int i = 0; i < 8; i++)
		if (i != HVI_RSP)
			set_reg(c, i, o->size, v[i]);
	stack_move(c, 8 * o->size);
}

HANDLER(popa)
{
	pop_all(c, o);
	NEXT(c, o);
}

/* ---- PUSHF, POPF ------------------------------------------------------------------------ */

/* Virtual-8086 mode below IOPL 3 (without the VME extension, which CPUID does not offer). */
static bool flags_forbidden(const struct cpu *c)
{
	return (c->rflags & FL_VM) && (c->rflags & FL_IOPL) != FL_IOPL;
}

HANDLER(pushf)
{
	if (flags_forbidden(c))
		raise_gp0(c, o);
	stack_push(c, o, o->size, flags_all(c) & ~(u64)(FL_VM | FL_RF));
	NEXT(c, o);
}

/* What POPF may change (SDM vol. 2B, table of POPF): IOPL at CPL 0, IF at CPL <= IOPL. */
HANDLER(popf)
{
	u64 may = FL_STATUS | FL_TF | FL_DF | FL_NT | FL_AC | FL_ID, v;

	if (flags_forbidden(c))
		raise_gp0(c, o);
	if (c->cpl == 0)
		may |= FL_IOPL | FL_IF;
	else if (c->cpl <= (c->rflags & FL_IOPL) >> 12)
		may |= FL_IF;
	if (o->size == 2)
		may &= 0xffff;
	v = stack_read(c, o, o->size, 0);
	stack_move(c, o->size);
	flags_set_all(c, (flags_all(c) & ~(may | FL_RF)) | (v & may));
	return cpu_continue(c, o);
}

/* ---- ENTER, LEAVE ------------------------------------------------------------------------- */

/*
 * SDM vol. 2A, ENTER. imm: bytes of locals; aux: nesting level 0..31. All
 * accesses are tried before the first store; the pointers of the outer frames
 * are read between the stores, since they may be one and the same memory.
 */
static COLD void enter_frame(struct cpu *c, const struct op *o)
{
	unsigned int n = o->size, level = o->aux;
	u64 stack_mask = size_mask(c->stack_size);
	u64 frame = (c->gpr[HVI_RSP] - n) & stack_mask;
	i64 pushed = (i64)n * (level ? level + 1 : 1);

	mem_probe_write(c, o, slot(c, o, n, -(i64)n, true), n);
	for (unsigned int i = 1; i < level; i++) {
		mem_probe_read(c, o, seg_linear(c, o, HVI_SS, (c->gpr[HVI_RBP] - i * n) & stack_mask,
						n, false), n);
		mem_probe_write(c, o, slot(c, o, n, -(i64)n * (i + 1), true), n);
	}
	if (level)
		mem_probe_write(c, o, slot(c, o, n, -pushed, true), n);
	mem_probe_write(c, o, slot(c, o, n, -pushed - o->imm, true), n);

	store_n(c, o, slot(c, o, n, -(i64)n, true), n, c->gpr[HVI_RBP]);
	for (unsigned int i = 1; i < level; i++) {
		u64 from = seg_linear(c, o, HVI_SS, (c->gpr[HVI_RBP] - i * n) & stack_mask, n, false);

		store_n(c, o, slot(c, o, n, -(i64)n * (i + 1), true), n, load_n(c, o, from, n));
	}
	if (level)
		store_n(c, o, slot(c, o, n, -pushed, true), n, frame);
	stack_move(c, -pushed - o->imm);
	set_reg(c, HVI_RBP, n, frame);
}

HANDLER(enter)
{
	enter_frame(c, o);
	NEXT(c, o);
}

STACK_HANDLER(leave64)
{
	u64 sp = c->gpr[HVI_RBP], at = stack64(c, o, k, sp, false);

	LOAD(64, v, at);
	c->gpr[HVI_RSP] = sp + 8;
	c->gpr[HVI_RBP] = v;
	NEXT(c, o);
}

HANDLER(leave)
{
	u64 sp = c->gpr[HVI_RBP] & size_mask(c->stack_size);
	u64 v = load_n(c, o, seg_linear(c, o, HVI_SS, sp, o->size, false), o->size);

	set_reg(c, HVI_RSP, c->stack_size, sp + o->size);
	set_reg(c, HVI_RBP, o->size, v);
	NEXT(c, o);
}

/* ---- translation ------------------------------------------------------------------------------ */

static const op_fn push64_ms[3] = { MEM3(push64_m) };

static bool is_seg_reg(const struct insn *in, unsigned int i)
{
	return in->op[i].reg.value >= ZYDIS_REGISTER_ES && in->op[i].reg.value <= ZYDIS_REGISTER_GS;
}

static enum xlate xlate_push(const struct insn *in, struct op *o)
{
	bool wide = o->size == 8;

	if (is_imm(in, 0)) {
		o->imm = in->op[0].imm.value.s;
		o->fn = wide ? push64_i : push_i;
	} else if (is_mem(in, 0)) {
		o->fn = wide ? mem_fn(push64_ms, o) : push_m;
	} else if (is_seg_reg(in, 0)) {
		o->a = (u8)(in->op[0].reg.value - ZYDIS_REGISTER_ES);
		o->fn = push_seg;
	} else {
		o->a = reg_number(in->op[0].reg.value);
		o->fn = wide ? push64_r : push_r;
	}
	return XLATE_NEXT;
}

static enum xlate xlate_pop(const struct insn *in, struct op *o)
{
	if (is_mem(in, 0)) {
		if (o->base == HVI_RSP)
			o->disp += o->size;
		o->fn = pop_m;
	} else if (is_seg_reg(in, 0)) {
		return XLATE_NO;
	} else {
		o->a = reg_number(in->op[0].reg.value);
		o->fn = o->size == 8 ? pop64_r : pop_r;
	}
	return XLATE_NEXT;
}

enum xlate xlate_stack(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	/* The operand size, which in 64-bit mode is 64 bits or, with a 66 prefix, 16. */
	o->size = in->z.operand_width / 8;
	if (in->code_bits == 64 && o->size != 2)
		o->size = 8;

	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		return xlate_push(in, o);
	case ZYDIS_MNEMONIC_POP:
		return xlate_pop(in, o);
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
		o->fn = pusha;
		return XLATE_NEXT;
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
		o->fn = popa;
		return XLATE_NEXT;
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		o->fn = pushf;
		return XLATE_NEXT;
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
		o->fn = popf;
		return XLATE_END;
	case ZYDIS_MNEMONIC_ENTER:
		o->imm = (i64)(in->op[0].imm.value.u & 0xffff);
		o->aux = in->op[1].imm.value.u & 31;
		o->fn = enter;
		return XLATE_NEXT;
	default:
		o->fn = o->size == 8 ? leave64 : leave;
		return XLATE_NEXT;
	}
}
