/* SPDX-License-Identifier: MIT */
/*
 * native_mask.c - vector moves that touch only chosen elements of memory:
 * MASKMOVDQU, MASKMOVQ, VMASKMOV, VPMASKMOV and the gathers of AVX2. Elements
 * that are not chosen are not accessed and cannot fault.
 */
#include <string.h>
#include "native_int.h"

static void vector_get(const struct cpu *c, u8 n, u8 v[32])
{
	memcpy(v, c->xsave + XS_XMM + 16 * n, 16);
	memcpy(v + 16, c->xsave + XS_YMM + 16 * n, 16);
}

static void vector_put(struct cpu *c, u8 n, const u8 v[32])
{
	memcpy(c->xsave + XS_XMM + 16 * n, v, 16);
	memcpy(c->xsave + XS_YMM + 16 * n, v + 16, 16);
}

static bool chosen(const u8 *mask, u32 i, u32 bytes)
{
	return mask[i * bytes + bytes - 1] >> 7;
}

/* Store the chosen ones of `count` elements: all of them or, on a fault, none. */
static void store_chosen(struct cpu *c, const struct op *o, u64 la, const u8 *from,
			 const u8 *mask, u32 count, u32 bytes)
{
	for (u32 i = 0; i < count; i++)
		if (chosen(mask, i, bytes))
			mem_probe_write(c, o, la + i * bytes, bytes);
	for (u32 i = 0; i < count; i++)
		if (chosen(mask, i, bytes))
			mem_write(c, o, la + i * bytes, from + i * bytes, bytes);
}

/* MASKMOVDQU, VMASKMOVDQU: a source, b mask. */
static void maskmovdqu(struct cpu *c, const struct op *o)
{
	native_check_need(c, o, (u8)o->aux);
	store_chosen(c, o, ea(c, o), c->xsave + XS_XMM + 16 * o->a,
		     c->xsave + XS_XMM + 16 * o->b, 16, 1);
	NEXT(c, o);
}

/* MASKMOVQ: MMX register i is the significand of the physical x87 register i; TOP becomes 0. */
static void maskmovq(struct cpu *c, const struct op *o)
{
	u8 regs[128], *x = c->xsave;
	u32 top = get_u16(x + XS_FSW) >> 11 & 7;

	native_check_need(c, o, (u8)o->aux);
	for (u32 i = 0; i < 8; i++)
		memcpy(regs + 16 * i, x + XS_ST + 16 * ((i - top) & 7), 16);
	store_chosen(c, o, ea(c, o), regs + 16 * o->a, regs + 16 * o->b, 8, 1);
	memcpy(x + XS_ST, regs, sizeof(regs));
	put_u16(x + XS_FSW, get_u16(x + XS_FSW) & ~(7u << 11));
	x[XS_FTW] = 0xff;
	NEXT(c, o);
}

/* What a VMASKMOV, VPMASKMOV or gather works on; packed in o->imm. */
struct shape {
	u8 element;		/* bytes */
	u8 vector;		/* bytes: 16 or 32 */
	u8 index;		/* bytes of a gather's index, and */
	u8 index_reg, scale;	/* its register and shift */
};
_Static_assert(sizeof(struct shape) <= sizeof(((struct op *)0)->imm), "struct shape is in imm");

static struct shape shape_of(const struct op *o)
{
	struct shape s;

	memcpy(&s, &o->imm, sizeof(s));
	return s;
}

/* a destination, b mask */
static void masked_load(struct cpu *c, const struct op *o)
{
	struct shape s = shape_of(o);
	u8 mask[32], v[32] = { 0 };
	u64 la;

	native_check_need(c, o, (u8)o->aux);
	la = ea(c, o);
	vector_get(c, o->b, mask);
	for (u32 i = 0; i < s.vector / s.element; i++)
		if (chosen(mask, i, s.element))
			mem_read(c, o, la + i * s.element, v + i * s.element, s.element);
	vector_put(c, o->a, v);
	NEXT(c, o);
}

/* a source, b mask */
static void masked_store(struct cpu *c, const struct op *o)
{
	struct shape s = shape_of(o);
	u8 mask[32], v[32];

	native_check_need(c, o, (u8)o->aux);
	vector_get(c, o->a, v);
	vector_get(c, o->b, mask);
	store_chosen(c, o, ea(c, o), v, mask, s.vector / s.element, s.element);
	NEXT(c, o);
}

/*
 * Gather: a destination, b mask. Elements are done from the lowest one; each
 * clears its mask, so that the instruction goes on after a fault where it was.
 */
static void gather(struct cpu *c, const struct op *o)
{
	struct shape s = shape_of(o);
	u32 step = s.index > s.element ? s.index : s.element, count = s.vector / step;
	u8 mask[32], index[32], v[32];

	native_check_need(c, o, (u8)o->aux);
	if (o->a == o->b || o->a == s.index_reg || o->b == s.index_reg)
		raise_ud(c, o);
	vector_get(c, s.index_reg, index);
	vector_get(c, o->b, mask);
	vector_get(c, o->a, v);
	for (u32 i = 0; i < s.vector / s.element; i++)
		memset(mask + i * s.element, chosen(mask, i, s.element) ? 0xff : 0, s.element);
	memset(mask + s.vector, 0, sizeof(mask) - s.vector);
	vector_put(c, o->b, mask);
	for (u32 i = 0; i < count; i++) {
		i64 n;

		if (!chosen(mask, i, s.element))
			continue;
		n = s.index == 8 ? (i64)get_u64(index + 8 * i) : (i32)get_u32(index + 4 * i);
		mem_read(c, o, ea_at(c, o, (u64)n << s.scale), v + i * s.element, s.element);
		memset(mask + i * s.element, 0, s.element);
		/* Done: not again after a fault of a later one. */
		memset(v + s.vector, 0, sizeof(v) - s.vector);
		vector_put(c, o->b, mask);
		vector_put(c, o->a, v);
	}
	memset(v + count * s.element, 0, sizeof(v) - count * s.element);
	memset(mask, 0, sizeof(mask));
	vector_put(c, o->a, v);
	vector_put(c, o->b, mask);
	NEXT(c, o);
}

static u8 vector_number(ZydisRegister r)
{
	if (r >= ZYDIS_REGISTER_YMM0)
		return (u8)(r - ZYDIS_REGISTER_YMM0);
	if (r >= ZYDIS_REGISTER_XMM0)
		return (u8)(r - ZYDIS_REGISTER_XMM0);
	return (u8)(r - ZYDIS_REGISTER_MM0);
}

/* The implicit DS:[rDI], which block.c leaves alone; the segment may be overridden. */
static void implicit_rdi(const struct insn *in, struct op *o, u32 bytes)
{
	ZydisRegister seg = ZYDIS_REGISTER_DS;
	const ZydisDecodedOperand *mem = native_memory_operand(in);

	if (mem && mem->mem.segment != ZYDIS_REGISTER_NONE)
		seg = mem->mem.segment;
	o->base = HVI_RDI;
	o->index = REG_ZERO;
	o->scale = 0;
	o->disp = 0;
	o->size = (u8)bytes;
	o->msize = bytes;
	o->flags |= OP_MEM_WRITE;
	switch (seg) {
	case ZYDIS_REGISTER_ES:
		o->seg = HVI_ES;
		break;
	case ZYDIS_REGISTER_CS:
		o->seg = HVI_CS;
		break;
	case ZYDIS_REGISTER_SS:
		o->seg = HVI_SS;
		o->flags |= OP_STACK_SEG;
		break;
	case ZYDIS_REGISTER_FS:
		o->seg = HVI_FS;
		break;
	case ZYDIS_REGISTER_GS:
		o->seg = HVI_GS;
		break;
	default:
		o->seg = HVI_DS;
		break;
	}
	if (in->code_bits == 64 && o->seg != HVI_FS && o->seg != HVI_GS)
		o->seg = SEG_FLAT;
	if (in->code_bits != 64 || o->asize != 8)
		o->flags |= OP_SLOW_EA;
}

static op_fn vmaskmov(const struct insn *in, struct op *o, u8 element)
{
	bool store = in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
	struct shape s = { .element = element, .vector = in->z.raw.vex.L ? 32 : 16 };

	o->a = vector_number(in->op[store ? 2 : 0].reg.value);
	o->b = vector_number(in->op[1].reg.value);
	o->size = s.vector;
	memcpy(&o->imm, &s, sizeof(s));
	return store ? masked_store : masked_load;
}

static op_fn vgather(const struct insn *in, struct op *o, u8 index, u8 element)
{
	struct shape s = {
		.element = element,
		.vector = in->z.raw.vex.L ? 32 : 16,
		.index = index,
		.index_reg = vector_number(in->op[1].mem.index),
	};

	for (u32 scale = in->op[1].mem.scale; scale > 1; scale >>= 1)
		s.scale++;
	o->a = vector_number(in->op[0].reg.value);
	o->b = vector_number(in->op[2].reg.value);
	o->size = element;
	o->index = REG_ZERO;
	o->scale = 0;
	memcpy(&o->imm, &s, sizeof(s));
	return gather;
}

op_fn native_masked(const struct insn *in, struct op *o)
{
	bool vex = in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;

	o->aux = vex ? NEED_VEX | NEED_AVX | NEED_TS0 : NEED_EM0 | NEED_FXSR | NEED_TS0;
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_MASKMOVQ:
		o->aux = NEED_EM0 | NEED_TS0 | NEED_NOMF;
		o->a = vector_number(in->op[0].reg.value);
		o->b = vector_number(in->op[1].reg.value);
		implicit_rdi(in, o, 8);
		return maskmovq;
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		o->a = vector_number(in->op[0].reg.value);
		o->b = vector_number(in->op[1].reg.value);
		implicit_rdi(in, o, 16);
		return maskmovdqu;
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
		return vmaskmov(in, o, 4);
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return vmaskmov(in, o, 8);
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VPGATHERDD:
		return vgather(in, o, 4, 4);
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
		return vgather(in, o, 4, 8);
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VPGATHERQD:
		return vgather(in, o, 8, 4);
	case ZYDIS_MNEMONIC_VGATHERQPD:
	case ZYDIS_MNEMONIC_VPGATHERQQ:
		return vgather(in, o, 8, 8);
	default:
		return NULL;
	}
}
