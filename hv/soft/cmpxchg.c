/* SPDX-License-Identifier: MIT */
/*
 * cmpxchg.c - CMPXCHG, XADD, CMPXCHG8B, CMPXCHG16B.
 *
 * One vCPU runs at a time, so that a plain read-modify-write is atomic.
 */
#include "integer.h"

#define FOR_SIZES(X)	X(8, "b") X(16, "w") X(32, "l") X(64, "q")

/*
 * The host's instruction works on whole registers, so that what it does to
 * the upper halves (accumulator, destination) is what the guest sees.
 * The destination is written in either case, with its own value when unequal.
 */
#define CMPXCHG(n, s)							\
	HANDLER(cmpxchg##n##_rr)					\
	{								\
		u64 acc = c->gpr[HVI_RAX], dst, src, ax;		\
		dst = CMPXCHG_IN##n(c, o->a);				\
		src = CMPXCHG_IN##n(c, o->b);				\
		asm("cmpxchg" s " %" CMPXCHG_MOD##n "3, %" CMPXCHG_MOD##n "1\n\t" \
		    "mov %%rax, %2" CAPTURE				\
		    : "+a"(acc), "+&r"(dst), "=&r"(ax) : "r"(src) : "cc"); \
		c->gpr[HVI_RAX] = ax;					\
		CMPXCHG_OUT##n(c, o->a, dst);				\
		c->flags = flags_from((u32)acc);			\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(cmpxchg##n##_mr)					\
	{								\
		u64 la = address(c, o, k), acc = c->gpr[HVI_RAX], ax;	\
		LOAD_RMW(n, v, la);					\
		asm("cmpxchg" s " %3, %1\n\tmov %%rax, %2" CAPTURE	\
		    : "+a"(acc), "+&r"(v), "=&r"(ax) : "r"(GET##n(c, o->b)) : "cc"); \
		UPDATE(n, la, v);					\
		c->gpr[HVI_RAX] = ax;					\
		c->flags = flags_from((u32)acc);			\
		NEXT(c, o);						\
	}

/* Destination AL, AH or the accumulator itself: the register file keeps the last write, the destination's. */
#define CMPXCHG_IN8(c, r)	GET8(c, r)
#define CMPXCHG_IN16(c, r)	(c)->gpr[r]
#define CMPXCHG_IN32(c, r)	(c)->gpr[r]
#define CMPXCHG_IN64(c, r)	(c)->gpr[r]
#define CMPXCHG_OUT8(c, r, v)	SET8(c, r, v)
#define CMPXCHG_OUT16(c, r, v)	SET16(c, r, v)
#define CMPXCHG_OUT32(c, r, v)	SET64(c, r, v)
#define CMPXCHG_OUT64(c, r, v)	SET64(c, r, v)
#define CMPXCHG_MOD8	"b"
#define CMPXCHG_MOD16	"w"
#define CMPXCHG_MOD32	"k"
#define CMPXCHG_MOD64	"q"

#define XADD(n, s)							\
	HANDLER(xadd##n##_rr)						\
	{								\
		u##n a = GET##n(c, o->a), b = GET##n(c, o->b), r = a;	\
		u32 ax;							\
		asm("add" s " %2, %0" CAPTURE : "+r"(r), "=a"(ax) : "r"(b) : "cc"); \
		SET##n(c, o->b, a);					\
		SET##n(c, o->a, r);					\
		c->flags = flags_from(ax);				\
		NEXT(c, o);						\
	}								\
	MEM_HANDLER(xadd##n##_mr)					\
	{								\
		u64 la = address(c, o, k);				\
		u32 ax;							\
		LOAD_RMW(n, v, la);					\
		u##n r = v;						\
		asm("add" s " %2, %0" CAPTURE : "+r"(r), "=a"(ax) : "r"(GET##n(c, o->b)) : "cc"); \
		UPDATE(n, la, r);					\
		SET##n(c, o->b, v);					\
		c->flags = flags_from(ax);				\
		NEXT(c, o);						\
	}

#define BOTH(n, s)	CMPXCHG(n, s) XADD(n, s)
FOR_SIZES(BOTH)

/* CMPXCHG8B: EDX:EAX with m64; only ZF changes. */
HANDLER(cmpxchg8b)
{
	u64 la = ea(c, o);
	u64 v = ld64_rmw(c, o, la);
	u64 old = (u64)GET32(c, HVI_RDX) << 32 | GET32(c, HVI_RAX);

	if (v == old) {
		st64(c, o, la, (u64)GET32(c, HVI_RCX) << 32 | GET32(c, HVI_RBX));
		c->flags |= FL_ZF;
	} else {
		st64(c, o, la, v);
		SET32(c, HVI_RAX, v);
		SET32(c, HVI_RDX, v >> 32);
		c->flags &= ~(u64)FL_ZF;
	}
	NEXT(c, o);
}

/* CMPXCHG16B: not aligned to 16 bytes is #GP(0) before any access. Apart, so that the handler keeps no frame. */
static COLD void cmpxchg16(struct cpu *c, const struct op *o)
{
	u64 la = ea(c, o), v[2];
	bool equal;

	if (la & 15)
		raise_gp0(c, o);
	mem_read_rmw(c, o, la, v, 16);
	equal = v[0] == c->gpr[HVI_RAX] && v[1] == c->gpr[HVI_RDX];
	st64(c, o, la, equal ? c->gpr[HVI_RBX] : v[0]);
	st64(c, o, la + 8, equal ? c->gpr[HVI_RCX] : v[1]);
	if (equal) {
		c->flags |= FL_ZF;
	} else {
		c->gpr[HVI_RAX] = v[0];
		c->gpr[HVI_RDX] = v[1];
		c->flags &= ~(u64)FL_ZF;
	}
}

HANDLER(cmpxchg16b)
{
	cmpxchg16(c, o);
	NEXT(c, o);
}

#define PAIR(name, n)	{ name##n##_rr, { MEM3(name##n##_mr) } }
#define PAIRS(name)	{ PAIR(name, 8), PAIR(name, 16), PAIR(name, 32), PAIR(name, 64) }
static const struct { op_fn rr, mr[3]; } pair_fns[2][4] = { PAIRS(cmpxchg), PAIRS(xadd) };

enum xlate xlate_cmpxchg(struct cpu *c, const struct insn *in, struct op *o)
{
	unsigned int x = in->z.mnemonic == ZYDIS_MNEMONIC_XADD;

	(void)c;
	o->size = op_size(in, 0);
	if (in->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B) {
		o->fn = cmpxchg8b;
	} else if (in->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B) {
		o->fn = cmpxchg16b;
	} else {
		o->b = op_reg(in, 1);
		if (is_mem(in, 0)) {
			o->fn = mem_fn(pair_fns[x][size_index(o->size)].mr, o);
		} else {
			o->a = op_reg(in, 0);
			o->fn = pair_fns[x][size_index(o->size)].rr;
		}
	}
	return XLATE_NEXT;
}
