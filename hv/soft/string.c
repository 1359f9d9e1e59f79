/* SPDX-License-Identifier: MIT */
/*
 * string.c - MOVS, STOS, LODS, CMPS, SCAS, alone and repeated.
 *
 * An iteration of a repeated instruction is an instruction of its own: it
 * commits RSI, RDI and RCX, and a fault in the next one leaves them so. At
 * most c->rep_limit iterations are done at a time; then the instruction goes
 * on through a jump to itself, where events, deadlines and single-steps are
 * looked at.
 *
 * In the op: seg and b are the segments of source and destination, SEG_FLAT
 * where the base is 0 and nothing is to check.
 */
#include "integer.h"

#define FOR_SIZES(X)	X(8, "b") X(16, "w") X(32, "l") X(64, "q")

ALWAYS_INLINE u64 linear(struct cpu *c, const struct op *o, u8 seg, u64 off, u32 size, bool write)
{
	if (likely(seg == SEG_FLAT))
		return off;
	return seg_linear(c, o, seg, off, size, write);
}

ALWAYS_INLINE u64 offset(const struct cpu *c, const struct op *o, unsigned int reg)
{
	return c->gpr[reg] & size_mask(o->asize);
}

ALWAYS_INLINE void advance(struct cpu *c, const struct op *o, unsigned int reg, u64 by)
{
	set_reg(c, reg, o->asize, c->gpr[reg] + by);
}

/* Address step of one iteration of n bytes. */
ALWAYS_INLINE u64 step(const struct cpu *c, u64 n)
{
	return c->rflags & FL_DF ? -n : n;
}

#define SRC(n)		linear(c, o, o->seg, offset(c, o, HVI_RSI), n / 8, false)
#define DST(n, write)	linear(c, o, o->b, offset(c, o, HVI_RDI), n / 8, write)

/* ---- one iteration; CMPS reads its second operand first, as Intel CPUs do ---------- */

#define ITERATIONS(n, s)						\
	static inline void movs##n(struct cpu *c, const struct op *o)	\
	{								\
		u##n v = ld##n(c, o, SRC(n));				\
		st##n(c, o, DST(n, true), v);				\
		advance(c, o, HVI_RSI, step(c, n / 8));			\
		advance(c, o, HVI_RDI, step(c, n / 8));			\
	}								\
	static inline void stos##n(struct cpu *c, const struct op *o)	\
	{								\
		st##n(c, o, DST(n, true), (u##n)c->gpr[HVI_RAX]);	\
		advance(c, o, HVI_RDI, step(c, n / 8));			\
	}								\
	static inline void lods##n(struct cpu *c, const struct op *o)	\
	{								\
		u##n v = ld##n(c, o, SRC(n));				\
		SET##n(c, HVI_RAX, v);					\
		advance(c, o, HVI_RSI, step(c, n / 8));			\
	}								\
	ALWAYS_INLINE u64 compare##n(u##n a, u##n b)			\
	{								\
		u32 ax;							\
		asm("cmp" s " %2, %1" CAPTURE : "=a"(ax) : "r"(a), "r"(b) : "cc"); \
		return flags_from(ax);					\
	}								\
	static inline u64 cmps##n(struct cpu *c, const struct op *o)	\
	{								\
		u##n b = ld##n(c, o, DST(n, false));			\
		u##n a = ld##n(c, o, SRC(n));				\
		advance(c, o, HVI_RSI, step(c, n / 8));			\
		advance(c, o, HVI_RDI, step(c, n / 8));			\
		return compare##n(a, b);				\
	}								\
	static inline u64 scas##n(struct cpu *c, const struct op *o)	\
	{								\
		u##n b = ld##n(c, o, DST(n, false));			\
		advance(c, o, HVI_RDI, step(c, n / 8));			\
		return compare##n((u##n)c->gpr[HVI_RAX], b);		\
	}								\
	ONCE(movs, n) ONCE(stos, n) ONCE(lods, n) ONCE_FLAGS(cmps, n) ONCE_FLAGS(scas, n)
#define ONCE_FLAGS(name, n)						\
	HANDLER(name##n##_once)						\
	{								\
		c->flags = name##n(c, o);				\
		NEXT(c, o);						\
	}
#define ONCE(name, n)							\
	HANDLER(name##n##_once)						\
	{								\
		name##n(c, o);						\
		NEXT(c, o);						\
	}
FOR_SIZES(ITERATIONS)

/* ---- repeated ------------------------------------------------------------------------- */

/* Count one iteration off; its new value. */
ALWAYS_INLINE u64 count_off(struct cpu *c, const struct op *o, u64 by)
{
	u64 left = (c->gpr[HVI_RCX] - by) & size_mask(o->asize);

	set_reg(c, HVI_RCX, o->asize, left);
	return left;
}

/* Iterations to do now. */
ALWAYS_INLINE u64 budget(const struct cpu *c, const struct op *o)
{
	u64 count = offset(c, o, HVI_RCX);

	return count < c->rep_limit ? count : c->rep_limit;
}

/* Whole elements of `size` bytes from la to the end of its page. */
ALWAYS_INLINE u64 to_page_end(u64 la, u64 size)
{
	return (4096 - (la & 4095)) / size;
}

static inline u64 least(u64 a, u64 b)
{
	return a < b ? a : b;
}

/* Element by element upwards, as the CPU does: a destination just above the source repeats it. */
static void copy_up(u8 *to, const u8 *from, u64 count, u64 size)
{
	u64 bytes = count * size;

	if (to <= from || to >= from + bytes) {
		memmove(to, from, bytes);
		return;
	}
	for (u64 i = 0; i < bytes; i += size) {
		u64 v;

		memcpy(&v, from + i, size);
		memcpy(to + i, &v, size);
	}
}

static void fill(u8 *to, u64 count, u64 size, u64 v)
{
	if (size == 1) {
		memset(to, (int)(v & 0xff), count);
		return;
	}
	for (u64 i = 0; i < count * size; i += size)
		memcpy(to + i, &v, size);
}

/*
 * Host address of count elements at la when the soft TLB has the page, else
 * NULL: then the next iteration goes alone, with the checks, faults and
 * access size of one, and brings the page in.
 */
static u8 *resident(const struct cpu *c, u64 la, u64 bytes, bool write)
{
	const struct tlb_entry *e = tlb_slot(c, la);
	u64 tag = tlb_tag(c, la, (u32)bytes);

	return (write ? e->tag_w : e->tag_r) == tag ? (u8 *)(la + (u64)e->addend) : NULL;
}

/* As many of `most` iterations of MOVS as one page of each side allows; 0: go the slow way. */
static u64 bulk_movs(struct cpu *c, u64 most, u64 size)
{
	u64 from = c->gpr[HVI_RSI], to = c->gpr[HVI_RDI];
	u64 n = least(most, least(to_page_end(from, size), to_page_end(to, size)));
	const u8 *hf = n ? resident(c, from, n * size, false) : NULL;
	u8 *ht = hf ? resident(c, to, n * size, true) : NULL;

	if (!ht)
		return 0;
	copy_up(ht, hf, n, size);
	c->gpr[HVI_RSI] += n * size;
	c->gpr[HVI_RDI] += n * size;
	return n;
}

static u64 bulk_stos(struct cpu *c, u64 most, u64 size)
{
	u64 to = c->gpr[HVI_RDI];
	u64 n = least(most, to_page_end(to, size));
	u8 *h = n ? resident(c, to, n * size, true) : NULL;

	if (!h)
		return 0;
	fill(h, n, size, c->gpr[HVI_RAX]);
	c->gpr[HVI_RDI] += n * size;
	return n;
}

static u64 bulk_none(struct cpu *c, u64 most, u64 size)
{
	(void)c, (void)most, (void)size;
	return 0;
}

/* Upwards with flat 64-bit addresses, and worth the calls. */
#define BULK_MIN	4
ALWAYS_INLINE bool bulk_allowed(const struct cpu *c, const struct op *o)
{
	return o->aux && !(c->rflags & FL_DF);
}

/* The rest of the instruction is another round of the loop's. */
#define REP_END(done)							\
	do {								\
		if (likely(done))					\
			NEXT(c, o);					\
		return cpu_jump(c, o, op_rip(c, o));			\
	} while (0)

#define REP(name, bulk, n)						\
	HANDLER(name##n##_rep)						\
	{								\
		u64 most = budget(c, o), done;				\
		while (most) {						\
			done = most >= BULK_MIN && bulk_allowed(c, o) ?	\
			       bulk(c, most, n / 8) : 0;		\
			if (!done) {					\
				name##n(c, o);				\
				done = 1;				\
			}						\
			count_off(c, o, done);				\
			most -= done;					\
		}							\
		REP_END(offset(c, o, HVI_RCX) == 0);			\
	}
/*
 * REPE and REPNE: until ZF is not what the prefix wants. The flags change when
 * the instruction is over: a fault on the way finds those of before (SDM
 * vol. 2B, REP).
 */
#define REP_WHILE(name, n, sfx, want)					\
	HANDLER(name##n##_##sfx)					\
	{								\
		u64 most = budget(c, o);				\
		u64 f = c->flags;					\
		bool go = true;						\
		while (most && go) {					\
			f = name##n(c, o);				\
			count_off(c, o, 1);				\
			most--;						\
			go = (f & FL_ZF) == (want);			\
		}							\
		if (unlikely(go && offset(c, o, HVI_RCX)))		\
			return cpu_jump(c, o, op_rip(c, o));		\
		c->flags = f;						\
		NEXT(c, o);						\
	}
#define REPEATED(n, s)							\
	REP(movs, bulk_movs, n) REP(stos, bulk_stos, n) REP(lods, bulk_none, n) \
	REP_WHILE(cmps, n, repe, FL_ZF) REP_WHILE(cmps, n, repne, 0)	\
	REP_WHILE(scas, n, repe, FL_ZF) REP_WHILE(scas, n, repne, 0)
FOR_SIZES(REPEATED)

struct string_fns { op_fn once, repe, repne; };

#define PLAIN(name, n)	{ name##n##_once, name##n##_rep, name##n##_rep }
#define TESTED(name, n)	{ name##n##_once, name##n##_repe, name##n##_repne }
#define FOUR(X, name)	{ X(name, 8), X(name, 16), X(name, 32), X(name, 64) }
static const struct string_fns movs_fns[4] = FOUR(PLAIN, movs), stos_fns[4] = FOUR(PLAIN, stos),
			       lods_fns[4] = FOUR(PLAIN, lods), cmps_fns[4] = FOUR(TESTED, cmps),
			       scas_fns[4] = FOUR(TESTED, scas);

static const struct string_fns *string_table(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_MOVSB: case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSD: case ZYDIS_MNEMONIC_MOVSQ:
		return movs_fns;
	case ZYDIS_MNEMONIC_STOSB: case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD: case ZYDIS_MNEMONIC_STOSQ:
		return stos_fns;
	case ZYDIS_MNEMONIC_LODSB: case ZYDIS_MNEMONIC_LODSW:
	case ZYDIS_MNEMONIC_LODSD: case ZYDIS_MNEMONIC_LODSQ:
		return lods_fns;
	case ZYDIS_MNEMONIC_CMPSB: case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSD: case ZYDIS_MNEMONIC_CMPSQ:
		return cmps_fns;
	default:
		return scas_fns;
	}
}

/* No base and no check: 64-bit code but for FS and GS, and flat 32-bit code. */
static u8 flat_segment(const struct insn *in, u8 seg)
{
	bool special = seg == HVI_FS || seg == HVI_GS;

	return (in->code_bits == 64 || in->flat) && !special ? SEG_FLAT : seg;
}

enum xlate xlate_string(struct cpu *c, const struct insn *in, struct op *o)
{
	const struct string_fns *f = string_table(in->z.mnemonic);

	(void)c;
	o->size = 0;
	for (unsigned int i = 0; i < in->z.operand_count && !o->size; i++)
		if (is_mem(in, i))
			o->size = op_size(in, i);
	f += size_index(o->size);
	o->asize = in->z.address_width / 8;
	o->seg = flat_segment(in, memory_segment(in, ZYDIS_REGISTER_SI, ZYDIS_REGISTER_ESI,
						 ZYDIS_REGISTER_RSI));
	o->b = flat_segment(in, HVI_ES);
	o->aux = in->code_bits == 64 && o->asize == 8 && o->seg == SEG_FLAT;
	o->fn = f->once;
	for (unsigned int i = 0; i < in->z.raw.prefix_count; i++) {	/* the last one counts */
		if (in->z.raw.prefixes[i].value == 0xf3)
			o->fn = f->repe;
		else if (in->z.raw.prefixes[i].value == 0xf2)
			o->fn = f->repne;
	}
	return XLATE_NEXT;
}
