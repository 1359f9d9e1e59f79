/* SPDX-License-Identifier: MIT */
/* states.c - random operands, registers and memory for one instruction form. */
#include <string.h>
#include "isa.h"

#define STATUS	0x8d5u
#define DF	0x400u
#define AC	0x40000u

/* ---- values ---------------------------------------------------------------------- */

static u64 random_int(struct rng *r)
{
	static const u64 edges[] = {
		0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
		0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000, ~0ull, ~1ull,
	};
	u64 v = rnd(r);

	switch (below(r, 8)) {
	case 0:
		return edges[below(r, sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return v >> below(r, 64);
	case 2:
		return (u64)((i64)v >> below(r, 64));
	case 3:
		return below(r, 256);
	case 4:
		return (u32)v;
	default:
		return v;
	}
}

static u32 random_f32(struct rng *r)
{
	static const u32 edges[] = {
		0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7fa00000,
		0xffffffff, 1, 0x807fffff, 0x00800000, 0x7f7fffff, 0x4f000000, 0xcf000000, 0x3f000000,
	};
	u32 v = (u32)rnd(r);

	switch (below(r, 4)) {
	case 0:
		return edges[below(r, 16)];
	case 1:
		return (v & 0x807fffff) | (120 + below(r, 16)) << 23;
	case 2:
		return (v & 0x80000000) | below(r, 64) << 23 | (v & 0x7fffff);
	default:
		return (v & 0x80600000) | (100 + below(r, 60)) << 23;
	}
}

static u64 random_f64(struct rng *r)
{
	static const u64 edges[] = {
		0, 1ull << 63, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000,
		0xfff0000000000000, 0x7ff8000000000000, 0x7ff4000000000000, 1, 0x000fffffffffffff,
		0x0010000000000000, 0x7fefffffffffffff, 0x41e0000000000000, 0xc1e0000000000000,
		0x43e0000000000000, 0x3fe0000000000000,
	};
	u64 v = rnd(r);

	switch (below(r, 4)) {
	case 0:
		return edges[below(r, 16)];
	case 1:
		return (v & 0x800fffffffffffff) | (u64)(1010 + below(r, 30)) << 52;
	case 2:
		return (v & 0x800fffffffffffff) | (u64)below(r, 512) << 52;
	default:
		return (v & 0x8008000000000000) | (u64)(900 + below(r, 250)) << 52;
	}
}

static void random_f80(struct rng *r, u8 *to)
{
	u64 m = rnd(r);
	u16 e = (u16)rnd(r);

	switch (below(r, 8)) {
	case 0:
		m = 0;
		e &= 0x8000;
		break;
	case 1:
		m = below(r, 2) ? 1ull << 63 : m | 1ull << 63;
		e |= 0x7fff;
		break;
	case 2:
		e &= 0x8000;
		break;
	case 3:		/* anything, unnormal numbers too */
		break;
	case 4:		/* integers */
		m = 1ull << 63 | m << below(r, 63);
		e = (u16)((e & 0x8000) | (0x3fff + below(r, 70)));
		break;
	default:
		m |= 1ull << 63;
		e = (u16)((e & 0x8000) | (0x3fe0 + below(r, 64)));
		break;
	}
	memcpy(to, &m, 8);
	memcpy(to + 8, &e, 2);
}

static void random_16_bytes(struct rng *r, u8 *to)
{
	u32 kind = below(r, 8);
	u64 v;

	for (u32 i = 0; i < 16; i += 8) {
		switch (kind) {
		case 0:
			v = 0;
			break;
		case 1:
		case 2:
			v = (u64)random_f32(r) << 32 | random_f32(r);
			break;
		case 3:
		case 4:
			v = random_f64(r);
			break;
		case 5:
			v = random_int(r);
			break;
		default:
			v = rnd(r);
			break;
		}
		memcpy(to + i, &v, 8);
	}
}

static void random_bytes(struct rng *r, u8 *to, u32 n)
{
	u8 b[16];

	while (n) {
		u32 k = n < 16 ? n : 16;

		random_16_bytes(r, b);
		memcpy(to, b, k);
		to += k;
		n -= k;
	}
}

static void put16(u8 *p, u32 v)
{
	u16 w = (u16)v;

	memcpy(p, &w, 2);
}

static void random_vectors(struct rng *r, u8 *xs)
{
	static const u16 controls[] = { 0x37f, 0x27f, 0x07f, 0xf7f, 0x77f, 0xb7f };
	u64 bv = 7;
	u32 cw, sw, mxcsr;

	memset(xs, 0, XSAVE_SIZE);
	cw = controls[below(r, 6)];
	if (below(r, 5) == 0)
		cw &= ~(u32)below(r, 64);
	sw = (u32)rnd(r) & 0x7f00;
	if (below(r, 3) == 0)
		sw |= (u32)rnd(r) & 0x7f;
	if (below(r, 10))
		sw &= ~(~cw & 0x3f);	/* mostly nothing pending */
	if (sw & ~cw & 0x3f)
		sw |= 0x8080;
	put16(xs, cw);
	put16(xs + 2, sw);
	xs[4] = below(r, 3) ? 0xff : (u8)rnd(r);
	for (u32 i = 0; i < 8; i++)
		random_f80(r, xs + XS_ST + 16 * i);
	mxcsr = 0x1f80;
	if (below(r, 2))
		mxcsr = (mxcsr & ~0x6000u) | below(r, 4) << 13;
	if (below(r, 4) == 0)
		mxcsr ^= below(r, 2) ? 0x40 : 0x8000;
	if (below(r, 6) == 0)
		mxcsr &= ~(below(r, 64) << 7);
	if (below(r, 4) == 0)
		mxcsr |= below(r, 64);
	memcpy(xs + XS_MXCSR, &mxcsr, 4);
	for (u32 i = 0; i < 16; i++) {
		random_16_bytes(r, xs + XS_XMM + 16 * i);
		random_16_bytes(r, xs + XS_YMM + 16 * i);
	}
	memcpy(xs + XS_BV, &bv, 8);
}

/* ---- encoding ---------------------------------------------------------------------- */

struct pick {
	u8 reg, rm, v;		/* 0..15 */
	bool memory;
	u8 kind;		/* of addressing */
	u8 base, index, scale;
	int32_t disp;
	bool addr32, vsib;
};

enum { A_BASE, A_BASE8, A_BASE32, A_SIB8, A_SIB32, A_RIP, A_ABS, A_KINDS };

static u32 put_modrm(u8 *b, const struct pick *p)
{
	u8 reg = (u8)((p->reg & 7) << 3);
	u32 n = 0;

	if (!p->memory) {
		b[n++] = 0xc0 | reg | (p->rm & 7);
		return n;
	}
	switch (p->kind) {
	case A_RIP:
		b[n++] = reg | 5;
		memcpy(b + n, &p->disp, 4);
		return n + 4;
	case A_ABS:
		b[n++] = reg | 4;
		b[n++] = 0x25;
		memcpy(b + n, &p->disp, 4);
		return n + 4;
	case A_BASE:
		if ((p->base & 7) != 5 && (p->base & 7) != 4) {
			b[n++] = reg | (p->base & 7);
			return n;
		}
		__attribute__((fallthrough));	/* these need a displacement or a SIB */
	case A_BASE8:
	case A_BASE32:
		b[n++] = (p->kind == A_BASE32 ? 0x80 : 0x40) | reg | (p->base & 7);
		if ((p->base & 7) == 4)
			b[n++] = 0x24;
		break;
	default:
		b[n++] = (p->kind == A_SIB32 ? 0x80 : 0x40) | reg | 4;
		b[n++] = (u8)(p->scale << 6 | (p->index & 7) << 3 | (p->base & 7));
		break;
	}
	if (p->kind == A_BASE32 || p->kind == A_SIB32) {
		memcpy(b + n, &p->disp, 4);
		return n + 4;
	}
	b[n++] = (u8)p->disp;
	return n;
}

/* The instruction's bytes; 16 bytes of room, immediates random. */
static void put_insn(const struct form *f, const struct pick *p, struct rng *r, u8 *code)
{
	u8 b[32];
	u32 n = 0;
	u8 rex = 0, x = 0, base = p->rm;
	u64 imm = below(r, 3) ? rnd(r) : random_int(r);

	if (p->memory) {
		base = p->kind == A_RIP || p->kind == A_ABS ? 0 : p->base;
		x = p->kind == A_SIB8 || p->kind == A_SIB32 ? p->index >> 3 : 0;
	}
	if (p->addr32)
		b[n++] = 0x67;
	if (f->vex) {
		b[n++] = 0xc4;
		b[n++] = (u8)((p->reg >= 8 ? 0 : 0x80) | (x ? 0 : 0x40) | (base >= 8 ? 0 : 0x20) | f->map);
		b[n++] = (u8)(f->w << 7 | (~p->v & 15) << 3 | f->l << 2 | f->pp);
		b[n++] = f->opcode;
	} else {
		u8 opcode = f->opcode;

		if (f->lock)
			b[n++] = 0xf0;
		if (f->p66)
			b[n++] = 0x66;
		if (f->rep)
			b[n++] = f->rep;
		rex = (u8)(f->w << 3 | (p->reg >> 3) << 2 | x << 1 | base >> 3);
		if (f->bits == 64 && (rex || below(r, 8) == 0))
			b[n++] = 0x40 | rex;
		if (f->map)
			b[n++] = 0x0f;
		if (f->map == 2)
			b[n++] = 0x38;
		if (f->map == 3)
			b[n++] = 0x3a;
		if (!f->modrm)
			opcode = (opcode & 0xf8) | (p->rm & 7);
		b[n++] = opcode;
	}
	if (f->modrm)
		n += put_modrm(b + n, p);
	memcpy(b + n, &imm, 8);
	memcpy(code, b, 16);
}

/* ---- the test --------------------------------------------------------------------------- */

static u8 *sandbox(u64 la)
{
	return (u8 *)(uintptr_t)la;
}

/* A landing place: in the code page, not inside the instruction. */
static u64 code_target(struct rng *r, const struct test *t)
{
	u64 la;

	do {
		la = CODE + below(r, CODE_SIZE);
	} while (la >= t->at && la < t->at + t->len);
	return la;
}

static u64 data_target(struct rng *r, u8 bits, u32 size)
{
	u64 la = DATA + 0x400 + (below(r, 0x1800) & ~63u);

	switch (below(r, 20)) {
	case 0:		/* over the edge of mapped memory */
	case 1:
		return DATA + DATA_SIZE - below(r, size + 2);
	case 2:		/* over a page boundary */
	case 3:
		return DATA + 0x1000 - below(r, size + 2);
	case 4:
		return bits == 64 ? 0x800000100000ull + below(r, 1000) : DATA - 0x1000;
	case 5:		/* not mapped */
		return DATA + DATA_SIZE + 0x800;
	case 6: case 7: case 8: case 9: case 10:
		return la + below(r, 64);
	case 11: case 12:
		return la + 8 * below(r, 8);
	default:
		return la;
	}
}

static bool needs_code_pointer(const struct test *t)
{
	switch (t->z.meta.category) {
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_UNCOND_BR:
		return true;
	default:
		return false;
	}
}

static bool readable(u64 la, u32 size)
{
	return (la >= DATA && la + size <= DATA + DATA_SIZE) ||
	       (la >= STACK && la + size <= STACK + STACK_SIZE);
}

static bool is_string(const ZydisDecodedInstruction *z)
{
	return z->meta.category == ZYDIS_CATEGORY_STRINGOP;
}

/* Registers of the address so that it is `target`. False when it cannot be. */
static bool aim(struct rng *r, struct test *t, const ZydisDecodedOperand *p, u64 target)
{
	const ZydisDecodedOperandMem *m = &p->mem;
	u64 *g = t->in.gpr, index = 0;
	int base = ZydisRegisterGetId(m->base);

	if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP)
		return true;
	if (m->base == ZYDIS_REGISTER_NONE || t->z.address_width == 16)
		return true;
	if (m->type == ZYDIS_MEMOP_TYPE_VSIB) {
		g[base] = target - (u64)m->disp.value;
		if (t->bits == 32)
			g[base] = (u32)g[base];
		return true;
	}
	if (m->index != ZYDIS_REGISTER_NONE) {
		int id = ZydisRegisterGetId(m->index);

		if (id == base)
			return false;
		if (below(r, 2) || id == RSP)
			g[id] = below(r, 256);
		index = g[id] * m->scale;
	}
	g[base] = target - index - (u64)m->disp.value;
	if (t->bits == 32)
		g[base] = (u32)g[base];
	return true;
}

u64 address_of(const struct test *t, const ZydisDecodedOperand *p)
{
	const ZydisDecodedOperandMem *m = &p->mem;
	u64 la = (u64)m->disp.value;

	if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP)
		la += t->at + t->len;
	else if (m->base != ZYDIS_REGISTER_NONE)
		la += t->in.gpr[ZydisRegisterGetId(m->base)];
	if (m->index != ZYDIS_REGISTER_NONE && m->type != ZYDIS_MEMOP_TYPE_VSIB)
		la += t->in.gpr[ZydisRegisterGetId(m->index)] * m->scale;
	return t->z.address_width == 64 ? la : t->z.address_width == 32 ? (u32)la : (u16)la;
}

/* Nothing but the sandbox and its unmapped surroundings, or a non-canonical address. */
static bool safe(u64 la)
{
	return (la >= CODE - 0x100000 && la < STACK + 0x100000) ||
	       (la >= 0x800000000000ull && la < 0xffff800000000000ull);
}

static void gather_indices(struct rng *r, struct test *t, const ZydisDecodedOperand *p, u8 reg)
{
	bool wide = t->z.mnemonic == ZYDIS_MNEMONIC_VGATHERQPS || t->z.mnemonic == ZYDIS_MNEMONIC_VGATHERQPD ||
		    t->z.mnemonic == ZYDIS_MNEMONIC_VPGATHERQD || t->z.mnemonic == ZYDIS_MNEMONIC_VPGATHERQQ;

	for (u32 i = 0; i < 32; i += wide ? 8 : 4) {
		u8 *to = t->in.xs + (i < 16 ? XS_XMM : XS_YMM) + 16 * reg + (i & 15);
		i64 v = (i64)below(r, 256) - 128;

		if (below(r, 100) == 0)
			v = 0x2000;
		v /= p->mem.scale ? p->mem.scale : 1;
		memcpy(to, &v, wide ? 8 : 4);
	}
}

static u8 vector_id(ZydisRegister v)
{
	return (u8)ZydisRegisterGetId(v);
}

/* What a special mnemonic needs in its registers, beyond the address. */
static void special_registers(struct rng *r, struct test *t)
{
	u64 *g = t->in.gpr;

	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		/* With a memory operand the bit number reaches far: keep it near. */
		if (t->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && t->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER)
			g[ZydisRegisterGetId(t->op[1].reg.value)] = (u64)((i64)below(r, 4096) - 2048);
		break;
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
		if (below(r, 3))
			g[RDX] = below(r, 2) ? 0 : (u64)((i64)g[RAX] >> 63);
		break;
	default:
		break;
	}
}

/*
 * XSAVE and XRSTOR: a mask of components that the guest has too, and an area
 * that XRSTOR takes, but for some bit now and then. False: the mask is part of
 * the address.
 */
static bool xsave_area(struct rng *r, struct test *t, const ZydisDecodedOperand *p)
{
	u64 la = address_of(t, p), bv = below(r, 8);
	u64 *g = t->in.gpr;
	u32 mxcsr = (u32)rnd(r) & 0xffff;

	if (g[RAX] >= 8 || g[RDX])
		return false;
	if (!readable(la, 1024))
		return true;
	random_bytes(r, sandbox(la), 1024);
	if (below(r, 12) == 0)
		bv |= 1ull << (20 + below(r, 40));	/* nobody has these */
	if (below(r, 12) == 0)
		mxcsr |= 0x10000;
	memcpy(sandbox(la + XS_MXCSR), &mxcsr, 4);
	memset(sandbox(la + XS_BV), 0, 64);
	memcpy(sandbox(la + XS_BV), &bv, 8);
	if (below(r, 12) == 0)
		sandbox(la + XS_BV + 8)[below(r, 16)] = 1;
	return true;
}

/* BT and its kin with the bit number in a register of the address: it would reach anywhere. */
static bool reaches_far(const struct test *t)
{
	int bit;

	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		break;
	default:
		return false;
	}
	if (t->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY || t->op[1].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	bit = ZydisRegisterGetId(t->op[1].reg.value);
	return (t->op[0].mem.base != ZYDIS_REGISTER_NONE && ZydisRegisterGetId(t->op[0].mem.base) == bit) ||
	       (t->op[0].mem.index != ZYDIS_REGISTER_NONE && ZydisRegisterGetId(t->op[0].mem.index) == bit);
}

static bool fill_operands(struct rng *r, struct test *t)
{
	u64 *g = t->in.gpr;
	u64 where[4];
	u32 sizes[4], n = 0;
	bool vsib = false;

	g[RSP] = STACK + 0x400 + (below(r, 0x1000) & ~7u) + (below(r, 8) ? 0 : below(r, 8));
	if (below(r, 24) == 0)
		g[RSP] = below(r, 2) ? STACK + below(r, 12) : STACK + STACK_SIZE - below(r, 12);
	if (reaches_far(t))
		return false;
	special_registers(r, t);
	if (is_xsave(t->z.mnemonic)) {
		g[RAX] = below(r, 8);
		g[RDX] = 0;
	}

	for (u32 i = 0; i < t->z.operand_count; i++) {
		const ZydisDecodedOperand *p = &t->op[i];
		u64 target;

		if (p->type != ZYDIS_OPERAND_TYPE_MEMORY || p->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		target = data_target(r, t->bits, is_xsave(t->z.mnemonic) ? 832 : p->size / 8);
		if (is_string(&t->z) && below(r, 4))
			target = DATA + 0x800 + below(r, 0x1000);
		if (t->z.address_width == 32 && target >> 32)
			target = DATA + 0x800;
		if (!aim(r, t, p, target))
			return false;
		if (p->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
			gather_indices(r, t, p, vector_id(p->mem.index));
			vsib = true;
		}
	}
	for (u32 i = 0; i < t->z.operand_count; i++) {
		const ZydisDecodedOperand *p = &t->op[i];
		bool stack;

		if (p->type != ZYDIS_OPERAND_TYPE_MEMORY || p->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		stack = p->mem.base == ZYDIS_REGISTER_RSP || p->mem.segment == ZYDIS_REGISTER_SS;
		if (stack) {
			/* ENTER and LEAVE go by RBP. */
			if (t->z.mnemonic == ZYDIS_MNEMONIC_ENTER || t->z.mnemonic == ZYDIS_MNEMONIC_LEAVE)
				g[RBP] = STACK + 0x800 + below(r, 0x1000);
			continue;
		}
		/* String instructions, XLAT, MASKMOV. */
		if (!aim(r, t, p, is_string(&t->z) && below(r, 4) ? DATA + 0x800 + below(r, 0x1000) :
				  data_target(r, t->bits, p->size / 8)))
			return false;
	}
	if (t->z.address_width == 32 && t->bits == 64)
		for (u32 i = 0; i < t->z.operand_count; i++)
			if (t->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && below(r, 2) &&
			    t->op[i].mem.base != ZYDIS_REGISTER_NONE && t->op[i].mem.base != ZYDIS_REGISTER_RSP &&
			    t->op[i].mem.base != ZYDIS_REGISTER_EIP)
				g[ZydisRegisterGetId(t->op[i].mem.base)] |= rnd(r) << 32;
	if (t->z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
		g[RCX] = below(r, 20) | (t->z.address_width == 32 && t->bits == 64 && below(r, 2) ? rnd(r) << 32 : 0);
	if (t->z.mnemonic == ZYDIS_MNEMONIC_XLAT)
		g[RAX] = (g[RAX] & ~0xffull) | below(r, 256);

	/* All accesses must be safe, and what they touch random. */
	for (u32 i = 0; i < t->z.operand_count; i++) {
		const ZydisDecodedOperand *p = &t->op[i];
		u64 la;

		if (p->type != ZYDIS_OPERAND_TYPE_MEMORY || p->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
			continue;
		la = address_of(t, p);
		if (!safe(la))
			return false;
		if (is_xsave(t->z.mnemonic)) {
			if (!xsave_area(r, t, p))
				return false;
			continue;
		}
		if (n < 4) {
			where[n] = la;
			sizes[n++] = p->size / 8;
		}
	}
	for (u32 i = 0; i < n; i++) {
		u64 from = where[i] - (vsib ? 256 : is_string(&t->z) ? 192 : 32);
		u32 span = sizes[i] + (vsib ? 512 : is_string(&t->z) ? 384 : 64);
		u8 fill = (u8)rnd(r);

		for (u64 la = from; la < from + span; la += 16)
			if (readable(la, 16)) {
				random_16_bytes(r, sandbox(la));
				if (is_string(&t->z) && fill & 1)
					memset(sandbox(la), fill, 16);
			}
		if (is_string(&t->z) && fill & 1)
			g[RAX] = 0x0101010101010101ull * fill;
		if (readable(where[i], 16) && sizes[i] == 10)
			random_f80(r, sandbox(where[i]));
	}
	if (needs_code_pointer(t)) {
		u64 to = code_target(r, t);

		if (below(r, 8) == 0)
			to = below(r, 2) && t->bits == 64 ? 0x800000100000ull + below(r, 99) : CODE + 0x5000;
		for (u32 i = 0; i < t->z.operand_count; i++) {
			const ZydisDecodedOperand *p = &t->op[i];

			if (p->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
			    p->type == ZYDIS_OPERAND_TYPE_REGISTER)
				g[ZydisRegisterGetId(p->reg.value)] = to;
			else if (p->type == ZYDIS_OPERAND_TYPE_MEMORY && readable(address_of(t, p), 8))
				memcpy(sandbox(address_of(t, p)), &to, 8);
		}
		if (t->z.meta.category == ZYDIS_CATEGORY_RET && readable(g[RSP], 8))
			memcpy(sandbox(g[RSP]), &to, 8);
	}
	return true;
}

/* A relative branch must not land inside itself. */
static bool fix_branch(struct rng *r, struct test *t)
{
	for (u32 i = 0; i < t->z.operand_count; i++) {
		const ZydisDecodedOperand *p = &t->op[i];
		u32 bits = t->z.raw.imm[0].size, off = t->z.raw.imm[0].offset;
		i64 rel;

		if (p->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !p->imm.is_relative)
			continue;
		if (bits == 8)
			rel = (i64)below(r, 256) - 128;
		else
			rel = (i64)(code_target(r, t) - (t->at + t->len));
		if (bits != 8 && below(r, 16) == 0)
			rel = 0x2000 + below(r, 99);
		if (rel < 0 && rel >= -(i64)t->len)
			rel = 1;
		memcpy(t->code + off, &rel, bits / 8);
		return decode(t->bits, t->code, 15, &t->z, t->op);
	}
	return true;
}

bool make_test(const struct form *f, struct rng *r, struct test *t)
{
	u32 regs = f->bits == 64 ? 16 : 8;

	t->bits = f->bits;
	for (u32 attempt = 0; attempt < 60; attempt++) {
		struct pick p = {
			.reg = (u8)below(r, regs), .rm = (u8)below(r, regs), .v = (u8)below(r, regs),
			.memory = f->memory,
			.kind = (u8)below(r, A_KINDS), .base = (u8)below(r, regs), .index = (u8)below(r, regs),
			.scale = (u8)below(r, 4), .disp = (int8_t)rnd(r),
		};
		u64 target = DATA + 0x800 + below(r, 0x1000);
		u8 image[32] = { 0 };

		/* Bits that are part of the opcode for some, a register for others: the decoder tells. */
		if (attempt & 1 || attempt > 20)
			p.reg = f->reg;
		if (attempt & 2 || attempt > 30)
			p.rm = f->rm;
		if (attempt & 4 || attempt > 40)
			p.v = f->v;
		if (f->memory && f->rm == 4 && f->vex)
			p.kind = below(r, 2) ? A_SIB8 : A_SIB32;
		if ((p.kind == A_SIB8 || p.kind == A_SIB32) && (p.index == RSP && !(f->vex && f->rm == 4)))
			continue;
		/* Without 64-bit mode that encoding is an absolute address. */
		if (p.kind == A_ABS || (p.kind == A_RIP && f->bits == 32))
			p.disp = (int32_t)target;
		if (p.kind == A_BASE32 || p.kind == A_SIB32)
			p.disp = (int32_t)below(r, 100000) - 50000;
		if (p.kind == A_BASE)
			p.disp = 0;
		p.addr32 = f->memory && f->bits == 64 && below(r, 16) == 0;

		t->at = CODE + 0x100 + below(r, 0xe00);
		put_insn(f, &p, r, image);
		if (!decode(f->bits, image, 15, &t->z, t->op) || form_key(f->bits, &t->z, t->op) != f->key)
			continue;
		t->len = t->z.length;
		if (f->memory && p.kind == A_RIP && f->bits == 64) {
			/* The displacement follows from the place. */
			int32_t d = (int32_t)(target - (t->at + t->len));

			memcpy(image + t->z.raw.disp.offset, &d, 4);
			if (!decode(f->bits, image, 15, &t->z, t->op) || form_key(f->bits, &t->z, t->op) != f->key)
				continue;
		}
		memcpy(t->code, image, 16);
		/* MOV with a 64-bit absolute address */
		if (t->z.raw.disp.size == 64 || (!f->modrm && t->z.raw.disp.size)) {
			if (t->z.raw.disp.size != 64 && t->z.raw.disp.size != 32)
				continue;
			memcpy(t->code + t->z.raw.disp.offset, &target, t->z.raw.disp.size / 8);
			if (!decode(t->bits, t->code, 15, &t->z, t->op))
				continue;
		}
		if (!fix_branch(r, t))
			continue;
		if (below(r, 40) == 0 && t->z.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE &&
		    !(f->memory && p.kind == A_RIP))
			t->at = CODE + CODE_SIZE - 1 - below(r, t->len);

		for (u32 i = 0; i < 16; i++)
			t->in.gpr[i] = f->bits == 64 ? random_int(r) : i < 8 ? (u32)random_int(r) : 0;
		random_vectors(r, t->in.xs);
		t->in.rip = t->at;
		t->in.rflags = 0x202 | (rnd(r) & STATUS) | (below(r, 4) ? 0 : DF);
		if (!fill_operands(r, t))
			continue;
		if (f->bits == 32)
			for (u32 i = 0; i < 8; i++)
				t->in.gpr[i] = (u32)t->in.gpr[i];
		random_bytes(r, t->code + t->len, 16 - t->len);
		for (u64 la = t->in.gpr[RSP] - 32; la < t->in.gpr[RSP] + 32; la += 8)
			if (readable(la, 8) && !needs_code_pointer(t)) {
				u64 v = random_int(r);

				memcpy(sandbox(la), &v, 8);
			}
		return true;
	}
	return false;
}
