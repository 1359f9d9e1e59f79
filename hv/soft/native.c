/* SPDX-License-Identifier: MIT */
/*
 * native.c - instructions that run on the host's own CPU: x87, MMX, SSE, AVX,
 * AES, BMI and so on. Results, rounding and flags are the host's, exact by
 * construction; what stands here is everything around them: the conditions
 * for #UD, #NM and #MF, memory, alignment, and SIMD exceptions (SDM 2, 2.4
 * and 2.5; SDM 1, 11.5 and 8.4 to 8.7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "native_int.h"

/* ---- conditions ------------------------------------------------------------------ */

void native_check_need(struct cpu *c, const struct op *o, u8 need)
{
	if ((need & NEED_VEX) && (!(c->cr0 & CR0_PE) || (c->rflags & FL_VM)))
		raise_ud(c, o);
	if ((need & NEED_AVX) && (!(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & 6) != 6))
		raise_ud(c, o);
	if ((need & NEED_EM0) && (c->cr0 & CR0_EM))
		raise_ud(c, o);
	if ((need & NEED_FXSR) && !(c->cr4 & CR4_OSFXSR))
		raise_ud(c, o);
	if ((need & NEED_TS0) && (c->cr0 & CR0_TS))
		cpu_raise(c, o, X_NM, 0);
	if ((need & NEED_X87) && (c->cr0 & (CR0_EM | CR0_TS)))
		cpu_raise(c, o, X_NM, 0);
	if ((need & NEED_NOMF) && x87_pending(c->xsave))
		cpu_raise(c, o, X_MF, 0);
}

/* ---- memory operand ----------------------------------------------------------------- */

struct operand {
	u64 la;
	void *host;		/* what the stub gets in rsi */
	bool bounced;
};

/* Where the stub can read or write the operand itself: the soft TLB's hit, as in ld and st of mmu.h. */
static inline void *direct(struct cpu *c, const struct op *o, u64 la, u32 size, bool write)
{
	const struct tlb_entry *e = tlb_slot(c, la);

	if (likely((write ? e->tag_w : e->tag_r) == tlb_tag(c, la, size)))
		return (void *)(la + (u64)e->addend);
	return mem_direct(c, o, la, size, write);
}

static inline struct operand operand(struct cpu *c, const struct op *o, const struct form *f)
{
	struct operand m = { 0, NULL, false };

	if (!f->mem)
		return m;
	m.la = ea(c, o);
	if (unlikely(m.la & f->align))
		raise_gp0(c, o);	/* on the stack too */
	if (!(f->bits & FORM_STORE)) {
		m.host = direct(c, o, m.la, f->mem, false);
		if (!m.host) {
			m.host = native(c)->bounce;
			mem_read(c, o, m.la, m.host, f->mem);
		}
		return m;
	}
	if (f->bits & FORM_DIRECT)
		m.host = direct(c, o, m.la, f->mem, true);
	if (!m.host) {
		m.host = native(c)->bounce;
		m.bounced = true;
		if (f->bits & FORM_LOAD)
			mem_read(c, o, m.la, m.host, f->mem);
	}
	return m;
}

static inline void write_back(struct cpu *c, const struct op *o, const struct form *f,
			      const struct operand *m)
{
	if (m->bounced)
		mem_write(c, o, m->la, m->host, f->mem);
}

/* ---- the generic handlers --------------------------------------------------------------- */

/* No MXCSR, no x87. A stub that writes memory writes nothing else. */
static void run_plain(struct cpu *c, const struct op *o)
{
	const struct form *f = o->ptr;
	struct operand m;

	native_check(c, o, f->need);
	m = operand(c, o, f);
	f->run(c, m.host, 0, 0);
	write_back(c, o, f, &m);
	NEXT(c, o);
}

static noreturn void simd_exception(struct cpu *c, const struct op *o, u32 flags)
{
	u8 *mxcsr = c->xsave + XS_MXCSR;

	put_u32(mxcsr, get_u32(mxcsr) | flags);
	if (!(c->cr4 & CR4_OSXMMEXCPT))
		raise_ud(c, o);
	cpu_raise(c, o, X_XM, 0);
}

/* For the stub's ecx: the mask bits, which are set in every run. */
#define STORE_NOTHING	MXCSR_MASKS

/*
 * VCVTPS2PH does not know FTZ. Tiny and inexact results set UE in a masked
 * run; tiny and exact ones are multiples of 2^-24 below 2^-14, or denormal
 * singles, which are inexact anyhow. o->a: source, o->b: its elements.
 */
static u32 half_underflow(const struct cpu *c, const struct op *o, u32 mxcsr)
{
	for (u32 i = 0; i < o->b; i++) {
		u32 v = get_u32(c->xsave + (i < 4 ? XS_XMM + 4 * i : XS_YMM + 4 * (i - 4)) + 16 * o->a);
		u32 exponent = v >> 23 & 0xff, fraction = v & 0x7fffff;

		if (!exponent && (!fraction || (mxcsr & MXCSR_DAZ)))
			continue;
		if (exponent < 103)	/* below 2^-24 */
			continue;
		if (exponent < 113 && !(fraction & ((1u << (126 - exponent)) - 1)))
			return MXCSR_UE;
	}
	return 0;
}

/*
 * Status bits of an unmasked underflow, which a masked run does not tell: it
 * sets UE for results that are tiny and inexact, an unmasked UE is for tiny
 * ones (SDM 1, 4.9.1.5). With FTZ on, every tiny result sets UE.
 */
static u32 underflow(struct cpu *c, const struct op *o, const struct form *f, void *mem, u32 use)
{
	if (f->bits & FORM_PH)
		return half_underflow(c, o, use);
	return f->run(c, mem, use | MXCSR_FTZ, STORE_NOTHING) & MXCSR_UE;
}

static void run_mxcsr(struct cpu *c, const struct op *o)
{
	const struct form *f = o->ptr;
	struct operand m;
	u32 mxcsr, use, unmasked, flags = 0;

	native_check(c, o, f->need);
	m = operand(c, o, f);
	mxcsr = get_u32(c->xsave + XS_MXCSR);
	unmasked = ~(mxcsr >> 7) & MXCSR_FLAGS;
	use = (mxcsr & MXCSR_VALID) | MXCSR_MASKS;
	if (unlikely(unmasked))		/* which of them are new? */
		use &= ~MXCSR_FLAGS;
	if (unlikely(unmasked & MXCSR_UE)) {
		use &= ~MXCSR_FTZ;	/* has no effect then (SDM 1, 10.2.3.3) */
		flags = underflow(c, o, f, m.host, use);
	}
	flags |= f->run(c, m.host, use, flags & unmasked ? STORE_NOTHING : unmasked) & MXCSR_FLAGS;
	if (unlikely(flags & unmasked)) {
		/* An exception found before computing keeps the others from arising (SDM 1, 11.5.3). */
		if (flags & unmasked & MXCSR_PRE)
			flags &= MXCSR_PRE;
		simd_exception(c, o, flags);
	}
	write_back(c, o, f, &m);
	put_u32(c->xsave + XS_MXCSR, mxcsr | flags);
	NEXT(c, o);
}

/* x87, MMX: on a copy of the legacy image. Unmasked x87 exceptions wait for the next instruction. */
static void run_fx(struct cpu *c, const struct op *o)
{
	const struct form *f = o->ptr;
	struct native *n = native(c);
	u8 *to = n->image, *from = n->xsave;
	u32 mxcsr = get_u32(from + XS_MXCSR), flags, unmasked;
	u64 fip = get_u64(from + XS_FIP), fdp = get_u64(from + XS_FDP);
	u16 fop = get_u16(from + XS_FOP);
	u32 size = f->bits & FORM_FX_XMM ? XS_LEGACY : XS_XMM;
	struct operand m;

	native_check(c, o, f->need);
	m = operand(c, o, f);
	memcpy(to, from, size);
	put_u16(to + XS_FSW, get_u16(to + XS_FSW) & ~(FSW_ES | FSW_B));
	put_u32(to + XS_MXCSR, ((mxcsr & MXCSR_VALID) | MXCSR_MASKS) & ~MXCSR_FLAGS);
	f->run(c, m.host, (u64)(uintptr_t)to, 0);
	flags = get_u32(to + XS_MXCSR) & MXCSR_FLAGS;
	unmasked = ~(mxcsr >> 7) & MXCSR_FLAGS;
	if (unlikely(flags & unmasked)) {
		if (flags & unmasked & MXCSR_PRE)
			flags &= MXCSR_PRE;
		simd_exception(c, o, flags);
	}
	/* An unmasked IE, OE or UE keeps the result from being stored (SDM 1, 8.5.1, 8.5.4, 8.5.5). */
	if (!(get_u16(to + XS_FSW) & ~get_u16(to + XS_FCW) & FSW_NO_STORE))
		write_back(c, o, f, &m);
	if (f->bits & FORM_FIP) {
		fip = op_rip(c, o);
		if (x87_pending(to)) {
			fop = f->fop;
			if (f->mem)
				fdp = m.la - c->segbase[o->seg];
		}
	}
	put_u64(to + XS_FIP, fip);
	put_u64(to + XS_FDP, fdp);
	put_u16(to + XS_FOP, fop);
	put_u32(to + XS_MXCSR, mxcsr | flags);
	memcpy(from, to, size);
	NEXT(c, o);
}

static void run_nothing(struct cpu *c, const struct op *o)
{
	NEXT(c, o);
}

static void run_undefined(struct cpu *c, const struct op *o)
{
	raise_ud(c, o);
}

/* ---- translation -------------------------------------------------------------------------- */

const ZydisDecodedOperand *native_memory_operand(const struct insn *in)
{
	for (u32 i = 0; i < in->z.operand_count; i++)
		if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return &in->op[i];
	return NULL;
}

/* Legacy-encoded 16-byte operands have to be aligned, but for these. */
static bool unaligned_form(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
		return true;
	default:
		return false;
	}
}

static u8 alignment(const struct insn *in, u32 bytes)
{
	if (in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
		return in->z.meta.exception_class == ZYDIS_EXCEPTION_CLASS_AVX1 ? (u8)(bytes - 1) : 0;
	if (bytes != 16 || in->z.meta.isa_ext == ZYDIS_ISA_EXT_X87 || unaligned_form(in->z.mnemonic))
		return 0;
	return 15;
}

/* Instructions that read or write MXCSR: those of the classes with SIMD exceptions. */
static bool uses_mxcsr(const struct insn *in)
{
	switch (in->z.meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_SSE2:
	case ZYDIS_EXCEPTION_CLASS_SSE3:
	case ZYDIS_EXCEPTION_CLASS_AVX2:
	case ZYDIS_EXCEPTION_CLASS_AVX3:
	case ZYDIS_EXCEPTION_CLASS_AVX11:
		return true;
	default:
		return false;
	}
}

static bool non_temporal(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_MOVNTI:
	case ZYDIS_MNEMONIC_MOVNTQ:
	case ZYDIS_MNEMONIC_MOVNTDQ:
	case ZYDIS_MNEMONIC_MOVNTPS:
	case ZYDIS_MNEMONIC_MOVNTPD:
	case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTPS:
	case ZYDIS_MNEMONIC_VMOVNTPD:
		return true;
	default:
		return false;
	}
}

struct registers {
	bool mmx, vector;
};

static struct registers registers(const struct insn *in)
{
	struct registers r = { false, false };

	for (u32 i = 0; i < in->z.operand_count; i++) {
		ZydisRegister v = in->op[i].reg.value;

		if (in->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		if (v >= ZYDIS_REGISTER_MM0 && v <= ZYDIS_REGISTER_MM7)
			r.mmx = true;
		if (v >= ZYDIS_REGISTER_XMM0 && v <= ZYDIS_REGISTER_YMM31)
			r.vector = true;
	}
	return r;
}

/* All of D8 to DF, whatever set Zydis counts it to (FISTTP: SSE3, FCOMI: P6). */
static bool is_x87(const struct insn *in)
{
	return in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	       in->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (in->z.opcode & 0xf8) == 0xd8;
}

static u8 needs(const struct insn *in, struct registers r)
{
	bool vex = in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;

	if (is_x87(in))
		return NEED_X87 | NEED_NOMF;
	if (vex)
		return NEED_VEX | (r.vector ? NEED_AVX | NEED_TS0 : 0);
	if (r.mmx)
		return NEED_EM0 | NEED_TS0 | NEED_NOMF | (r.vector ? NEED_FXSR : 0);
	if (r.vector)
		return NEED_EM0 | NEED_FXSR | NEED_TS0;
	if (in->z.mnemonic == ZYDIS_MNEMONIC_EMMS)
		return NEED_EM0 | NEED_TS0 | NEED_NOMF;
	return 0;
}

static bool fits_vex_or_legacy(const struct insn *in)
{
	return in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ||
	       in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
}

enum xlate native_translate(struct cpu *c, const struct insn *in, struct op *o)
{
	const ZydisDecodedOperand *mem = native_memory_operand(in);
	struct registers r = registers(in);
	struct form f = { 0 };

	if (!fits_vex_or_legacy(in))
		return XLATE_NO;
	if (in->z.meta.category == ZYDIS_CATEGORY_PREFETCH) {
		o->fn = run_nothing;
		return XLATE_NEXT;
	}
	switch (native(c)->has[is_x87(in) ? ZYDIS_ISA_SET_X87 : in->z.meta.isa_set]) {
	case SET_RUNS:
		break;
	case SET_ABSENT:
		o->fn = run_undefined;
		return XLATE_END;
	default:
		return XLATE_NO;
	}
	f.need = needs(in, r);
	o->aux = f.need;
	o->fn = native_x87_control(in, o);
	if (!o->fn)
		o->fn = native_xsave_insn(in, o);
	if (!o->fn)
		o->fn = native_masked(in, o);
	if (o->fn)
		return XLATE_NEXT;

	if (mem) {
		u32 bytes = mem->size / 8;

		/* Every form with more is done in C. */
		if (mem->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM || !bytes || bytes > 32)
			return XLATE_NO;
		f.mem = (u8)bytes;
		f.align = alignment(in, bytes);
		if (mem->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
			f.bits |= FORM_LOAD;
		if (mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			f.bits |= FORM_STORE;
		o->size = f.mem;
	}
	if (in->z.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH) {
		f.bits |= FORM_PH;
		o->a = (u8)ZydisRegisterGetId(in->op[1].reg.value);
		o->b = (u8)(in->op[1].size / 32);
	}
	/* CVTPI2PS from memory does not wait for x87 exceptions, but leaves the registers to MMX. */
	if ((f.need & (NEED_X87 | NEED_NOMF)) || in->z.mnemonic == ZYDIS_MNEMONIC_CVTPI2PS) {
		f.bits |= FORM_FX | (r.vector ? FORM_FX_XMM : 0);
		if (f.need & NEED_X87) {
			f.bits |= FORM_FIP;
			f.fop = (u16)((in->z.opcode & 7) << 8 | in->z.raw.modrm.mod << 6 |
				      in->z.raw.modrm.reg << 3 | in->z.raw.modrm.rm);
		}
		o->fn = run_fx;
	} else if (uses_mxcsr(in)) {
		f.bits |= FORM_MXCSR;
		o->fn = run_mxcsr;
	} else {
		if ((f.bits & FORM_STORE) && !non_temporal(in->z.mnemonic))
			f.bits |= FORM_DIRECT;
		o->fn = run_plain;
	}
	o->ptr = (void *)(uintptr_t)native_form(c, in, &f);
	return o->ptr ? XLATE_NEXT : XLATE_NO;
}

/* ---- life ------------------------------------------------------------------------------------ */

void native_init_state(struct cpu *c)
{
	u8 *x = c->xsave;

	memset(x, 0, sizeof(native(c)->xsave));
	put_u16(x + XS_FCW, 0x37f);
	put_u32(x + XS_MXCSR, 0x1f80);
	put_u32(x + XS_MXCSR_MASK, MXCSR_VALID);
	put_u64(x + XS_BV, 7);
}

void native_xsave_loaded(struct cpu *c)
{
	u8 *x = c->xsave;
	u64 bv = get_u64(x + XS_BV);

	if (!(bv & 1)) {
		memset(x, 0, XS_MXCSR);
		memset(x + XS_ST, 0, XS_XMM - XS_ST);
		put_u16(x + XS_FCW, 0x37f);
	}
	if (!(bv & 6))
		put_u32(x + XS_MXCSR, 0x1f80);
	if (!(bv & 2))
		memset(x + XS_XMM, 0, 256);
	if (!(bv & 4))
		memset(x + XS_YMM, 0, 256);
	put_u32(x + XS_MXCSR, get_u32(x + XS_MXCSR) & MXCSR_VALID);
	put_u32(x + XS_MXCSR_MASK, MXCSR_VALID);
	memset(x + XS_XMM + 256, 0, XS_LEGACY - XS_XMM - 256);
	memset(x + XS_BV, 0, XS_YMM - XS_BV);
	put_u64(x + XS_BV, 7);
	x87_fix_es(x);
}

void native_reset(struct cpu *c)
{
	struct native *n = native(c);

	n->used = 0;
	n->forms_used = 0;
	memset(n->hash, 0, sizeof(n->hash));
}

bool native_full(const struct cpu *c)
{
	const struct native *n = native(c);

	/* A block has at most 64 instructions (more.h); twice that many, to be sure. */
	return n->forms_used + 128 > FORMS || n->used + 128 * STUB_MAX > ARENA_SIZE;
}

int native_init(struct cpu *c)
{
	struct native *n;
	void *w, *x;
	int fd;

	n = mmap(NULL, sizeof(*n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (n == MAP_FAILED)
		return -ENOMEM;
	fd = memfd_create("hvi-stubs", MFD_CLOEXEC);
	if (fd < 0)
		goto no_memory;
	if (ftruncate(fd, ARENA_SIZE)) {
		close(fd);
		goto no_memory;
	}
	w = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	x = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	close(fd);
	if (w == MAP_FAILED || x == MAP_FAILED) {
		if (w != MAP_FAILED)
			munmap(w, ARENA_SIZE);
		if (x != MAP_FAILED)
			munmap(x, ARENA_SIZE);
		goto no_memory;
	}
	n->arena_w = w;
	n->arena_x = x;
	native_find_sets(n->has);
	c->xsave = n->xsave;
	native_init_state(c);
	return 0;

no_memory:
	munmap(n, sizeof(*n));
	return -ENOMEM;
}

void native_free(struct cpu *c)
{
	struct native *n = native(c);

	if (!n)
		return;
	munmap(n->arena_w, ARENA_SIZE);
	munmap((void *)(uintptr_t)n->arena_x, ARENA_SIZE);
	munmap(n, sizeof(*n));
	c->xsave = NULL;
}
