/* SPDX-License-Identifier: MIT */
/*
 * integer.h - what the files of the general-purpose instructions share.
 *
 * Each mnemonic has a translator (integer.c's table), which looks at the
 * operands once and picks the handler specialised for their form and size.
 *
 * A handler with a memory operand exists three times, from one body:
 *   _b  base + displacement, segment base 0   fast: TLB hit inline, no call
 *   _x  any address that needs no wrapping     fast
 *   _s  everything else, and every TLB miss    calls ea(), ldN(), stN()
 * The fast ones tail-call the slow one before they have changed anything, so
 * their hot path saves no register and has no stack frame.
 */
#ifndef HVI_SOFT_INTEGER_H
#define HVI_SOFT_INTEGER_H

#include "cpu.h"
#include "mmu.h"

#define ALWAYS_INLINE	static inline __attribute__((always_inline))
#define COLD		__attribute__((noinline, cold))

/* ---- registers -------------------------------------------------------------- */

/* Byte registers are named by their offset in gpr[], which covers AH..BH without a branch. */
static inline u8 byte_reg(u8 number)
{
	return number >= 0x14 ? (number & 3) * 8 + 1 : number * 8;
}

#define GET8(c, r)	(((const u8 *)(c)->gpr)[r])
#define GET16(c, r)	((u16)(c)->gpr[r])
#define GET32(c, r)	((u32)(c)->gpr[r])
#define GET64(c, r)	((c)->gpr[r])
#define SET8(c, r, v)	(((u8 *)(c)->gpr)[r] = (u8)(v))
#define SET16(c, r, v)	(*(u16 *)&(c)->gpr[r] = (u16)(v))
#define SET32(c, r, v)	((c)->gpr[r] = (u32)(v))
#define SET64(c, r, v)	((c)->gpr[r] = (u64)(v))

/* For handlers that take the size from the op: registers by their plain number. */
static inline u64 size_mask(unsigned int size)
{
	return size == 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

/* Write a 16, 32 or 64-bit register. */
static inline void set_reg(struct cpu *c, unsigned int r, unsigned int size, u64 v)
{
	if (size == 8)
		c->gpr[r] = v;
	else if (size == 4)
		c->gpr[r] = (u32)v;
	else
		SET16(c, r, v);
}

/* ---- flags -------------------------------------------------------------------- */

/* From AX after LAHF; SETO AL: the status flags in their RFLAGS places. */
ALWAYS_INLINE u64 flags_from(u32 ax)
{
	return ((ax >> 8) & 0xd5) | (ax & 0xff) << 11;
}
#define CAPTURE		"\n\tlahf\n\tseto %%al"

/* Is condition `cc` (low four bits of the opcode, SDM vol. 1 appendix B) true? Constant cc folds. */
ALWAYS_INLINE bool condition(u64 f, unsigned int cc)
{
	bool r;

	switch (cc >> 1) {
	case 0: r = f & FL_OF; break;
	case 1: r = f & FL_CF; break;
	case 2: r = f & FL_ZF; break;
	case 3: r = f & (FL_CF | FL_ZF); break;
	case 4: r = f & FL_SF; break;
	case 5: r = f & FL_PF; break;
	case 6: r = ((f >> 7) ^ (f >> 11)) & 1; break;
	default: r = (((f >> 7) ^ (f >> 11)) & 1) | ((f >> 6) & 1); break;
	}
	return r ^ (cc & 1);
}

/* X(name, cc) for all sixteen. */
#define FOR_CONDITIONS(X)						\
	X(o, 0) X(no, 1) X(b, 2) X(nb, 3) X(z, 4) X(nz, 5)		\
	X(be, 6) X(nbe, 7) X(s, 8) X(ns, 9) X(p, 10) X(np, 11)		\
	X(l, 12) X(nl, 13) X(le, 14) X(nle, 15)

/* Condition number of a Jcc, SETcc or CMOVcc; from the opcode byte, which all of them end in. */
static inline unsigned int condition_of(const struct insn *in)
{
	return in->z.opcode & 15;
}

/* ---- memory operands ------------------------------------------------------------- */

enum ea_kind { EA_BASE, EA_FULL, EA_SLOW };

ALWAYS_INLINE u64 address(struct cpu *c, const struct op *o, enum ea_kind k)
{
	if (k == EA_BASE)
		return c->gpr[o->base] + o->disp;
	if (k == EA_FULL)
		return c->gpr[o->base] + (c->gpr[o->index] << o->scale) + o->disp +
		       c->segbase[o->seg];
	return ea(c, o);
}

typedef u8 u8_mem;
typedef u16 __attribute__((aligned(1))) u16_mem;
typedef u32 __attribute__((aligned(1))) u32_mem;
typedef u64 __attribute__((aligned(1))) u64_mem;

/*
 * In a body with `k` and `slow` in scope: declare v and load it; store v; or
 * load it for a read-modify-write, which UPDATE at the same address finishes.
 */
#define LOAD(n, v, la)							\
	u##n v;								\
	if (k != EA_SLOW) {						\
		const struct tlb_entry *e_##v = tlb_slot(c, la);	\
		if (unlikely(e_##v->tag_r != tlb_tag(c, la, n / 8)))	\
			return slow(c, o);				\
		v = *(const u##n##_mem *)((la) + (u64)e_##v->addend);	\
	} else								\
		v = ld##n(c, o, la)

#define STORE(n, la, v)							\
	do {								\
		if (k != EA_SLOW) {					\
			const struct tlb_entry *e_st = tlb_slot(c, la);	\
			if (unlikely(e_st->tag_w != tlb_tag(c, la, n / 8))) \
				return slow(c, o);			\
			*(u##n##_mem *)((la) + (u64)e_st->addend) = (u##n)(v); \
		} else							\
			st##n(c, o, la, (u##n)(v));			\
	} while (0)

/* A page may be writable and, in the slow path's eyes, not readable. */
#define LOAD_RMW(n, v, la)						\
	u##n v, *p_rmw = NULL;						\
	if (k != EA_SLOW) {						\
		const struct tlb_entry *e_##v = tlb_slot(c, la);	\
		u64 tag_##v = tlb_tag(c, la, n / 8);			\
		if (unlikely(e_##v->tag_w != tag_##v || e_##v->tag_r != tag_##v)) \
			return slow(c, o);				\
		p_rmw = (u##n *)((la) + (u64)e_##v->addend);		\
		v = *(const u##n##_mem *)p_rmw;				\
	} else								\
		v = ld##n##_rmw(c, o, la)

#define UPDATE(n, la, v)						\
	do {								\
		if (k != EA_SLOW)					\
			*(u##n##_mem *)p_rmw = (u##n)(v);		\
		else							\
			st##n(c, o, la, (u##n)(v));			\
	} while (0)

#define HANDLER(name)							\
	static void name(struct cpu *c, const struct op *o)

/* The three handlers of one body, and their table entry. */
#define MEM_HANDLER(name)						\
	ALWAYS_INLINE void name##_do(struct cpu *c, const struct op *o,	\
				     enum ea_kind k, op_fn slow);	\
	static COLD void name##_s(struct cpu *c, const struct op *o)	\
	{								\
		return name##_do(c, o, EA_SLOW, NULL);			\
	}								\
	static void name##_x(struct cpu *c, const struct op *o)		\
	{								\
		return name##_do(c, o, EA_FULL, name##_s);		\
	}								\
	static void name##_b(struct cpu *c, const struct op *o)		\
	{								\
		return name##_do(c, o, EA_BASE, name##_s);		\
	}								\
	ALWAYS_INLINE void name##_do(struct cpu *c, const struct op *o,	\
				     enum ea_kind k,			\
				     op_fn slow __attribute__((unused)))
/* One fast handler and its slow twin, for operands of one kind of address: the stack. */
#define STACK_HANDLER(name)						\
	ALWAYS_INLINE void name##_do(struct cpu *c, const struct op *o,	\
				     enum ea_kind k, op_fn slow);	\
	static COLD void name##_s(struct cpu *c, const struct op *o)	\
	{								\
		return name##_do(c, o, EA_SLOW, NULL);			\
	}								\
	static void name(struct cpu *c, const struct op *o)		\
	{								\
		return name##_do(c, o, EA_BASE, name##_s);		\
	}								\
	ALWAYS_INLINE void name##_do(struct cpu *c, const struct op *o,	\
				     enum ea_kind k, op_fn slow)
#define MEM3(name)	name##_b, name##_x, name##_s

static inline op_fn mem_fn(const op_fn fn[3], const struct op *o)
{
	if (o->flags & OP_SLOW_EA)
		return fn[EA_SLOW];
	if (o->index == REG_ZERO && o->seg == SEG_FLAT)
		return fn[EA_BASE];
	return fn[EA_FULL];
}

/* ---- the stack, for everything but the 64-bit fast paths (stack.c) --------------------- */

/* The operand of `size` bytes `depth` bytes above the top. */
u64 stack_read(struct cpu *c, const struct op *o, unsigned int size, i64 depth);
/* Linear address of a stack slot in 64-bit mode: the slow path asks for the checks of SS. */
ALWAYS_INLINE u64 stack64(struct cpu *c, const struct op *o, enum ea_kind k, u64 sp, bool write)
{
	return k == EA_SLOW ? seg_linear(c, o, HVI_SS, sp, 8, write) : sp;
}

/* Store first, then SP. */
void stack_push(struct cpu *c, const struct op *o, unsigned int size, u64 v);

/* SP += by, in the width of the stack. */
static inline void stack_move(struct cpu *c, i64 by)
{
	set_reg(c, HVI_RSP, c->stack_size, c->gpr[HVI_RSP] + (u64)by);
}

/* ---- operand forms ---------------------------------------------------------------- */

/* 0..3 for 1, 2, 4, 8 bytes: how the handler tables are indexed. */
static inline unsigned int size_index(unsigned int size)
{
	return __builtin_ctz(size);
}

static inline bool is_reg(const struct insn *in, unsigned int i)
{
	return in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static inline bool is_mem(const struct insn *in, unsigned int i)
{
	return in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static inline bool is_imm(const struct insn *in, unsigned int i)
{
	return in->op[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

/* Bytes of operand i. */
static inline unsigned int op_size(const struct insn *in, unsigned int i)
{
	return in->op[i].size / 8;
}

/* The register of operand i as the handlers of that operand's size want it. */
static inline u8 op_reg(const struct insn *in, unsigned int i)
{
	u8 r = reg_number(in->op[i].reg.value);

	return in->op[i].size == 8 ? byte_reg(r) : r;
}

/* Segment of the (hidden) memory operand: for instructions that address by a fixed register. */
static inline u8 memory_segment(const struct insn *in, ZydisRegister base16, ZydisRegister base32,
				ZydisRegister base64)
{
	for (unsigned int i = 0; i < in->z.operand_count; i++) {
		ZydisRegister b = in->op[i].mem.base;

		if (is_mem(in, i) && (b == base16 || b == base32 || b == base64))
			return (u8)(in->op[i].mem.segment - ZYDIS_REGISTER_ES);
	}
	return HVI_DS;
}

typedef enum xlate (*translate_fn)(struct cpu *c, const struct insn *in, struct op *o);

/* o stands right before a Jcc of 64-bit mode with condition cc: let it do both if it is a compare. */
void fuse_compare(struct op *o, unsigned int cc);

/* By family; each takes the mnemonics that integer.c's table gives it. */
enum xlate xlate_alu(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_unary(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_mov(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_extend(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_lea(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_xchg(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_cmov(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_setcc(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_convert(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_flag(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_xlat(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_cmpxchg(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_shift(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_double_shift(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_muldiv(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_bit_test(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_bit_scan(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_bswap(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_stack(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_branch(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_string(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_bcd(struct cpu *c, const struct insn *in, struct op *o);
enum xlate xlate_bound(struct cpu *c, const struct insn *in, struct op *o);

#endif
