/* SPDX-License-Identifier: MIT */
/*
 * native_int.h - shared by native*.c only.
 */
#ifndef HVI_SOFT_NATIVE_INT_H
#define HVI_SOFT_NATIVE_INT_H

#include "cpu.h"
#include "mmu.h"
#include "native.h"

/* Offsets in the XSAVE image (SDM 1, 13.4). */
#define XS_FCW		0
#define XS_FSW		2
#define XS_FTW		4
#define XS_FOP		6
#define XS_FIP		8
#define XS_FDP		16
#define XS_MXCSR	24
#define XS_MXCSR_MASK	28
#define XS_ST		32
#define XS_XMM		160
#define XS_LEGACY	512
#define XS_BV		512
#define XS_XCOMP	520
#define XS_YMM		576

#define MXCSR_FLAGS	0x3fu
#define MXCSR_PRE	0x07u	/* IE, DE, ZE: found before the result is computed */
#define MXCSR_UE	0x10u
#define MXCSR_DAZ	0x40u
#define MXCSR_MASKS	0x1f80u
#define MXCSR_UM	0x800u
#define MXCSR_FTZ	0x8000u
#define MXCSR_VALID	0xffffu

#define FSW_ES		0x80u
#define FSW_B		0x8000u

#define FSW_NO_STORE	0x19u	/* IE, OE, UE */

#define CR0_PE		(1u << 0)
#define CR0_MP		(1u << 1)
#define CR0_EM		(1u << 2)
#define CR0_TS		(1u << 3)
#define CR4_OSFXSR	(1u << 9)
#define CR4_OSXMMEXCPT	(1u << 10)
#define CR4_OSXSAVE	(1u << 18)

/* What has to hold before the instruction may run; in the order of its bits. */
#define NEED_VEX	(1u << 0)	/* not in real or virtual-8086 mode */
#define NEED_AVX	(1u << 1)	/* OSXSAVE, XCR0[2:1] = 3 */
#define NEED_EM0	(1u << 2)	/* CR0.EM = 0, else #UD */
#define NEED_FXSR	(1u << 3)	/* CR4.OSFXSR, else #UD */
#define NEED_TS0	(1u << 4)	/* CR0.TS = 0, else #NM */
#define NEED_X87	(1u << 5)	/* CR0.EM = 0 and CR0.TS = 0, else #NM */
#define NEED_NOMF	(1u << 6)	/* no x87 exception pending, else #MF */

/*
 * A stub: rdi = the cpu, rsi = the memory operand, edx = MXCSR to run with or
 * rdx = the FXSAVE image, ecx = status bits that forbid to store the results.
 * Returns MXCSR after the instruction (when the form uses it).
 */
typedef u32 (*stub_fn)(struct cpu *c, void *mem, u64 mxcsr_or_image, u32 unmasked);

/* One instruction form and its stub. */
struct form {
	stub_fn run;
	u32 next;		/* in the hash chain; index + 1 */
	u32 code;		/* offset in the arena */
	u16 code_len;
	u16 fop;		/* x87: the last 11 bits of the opcode */
	u8 need;		/* NEED_* */
	u8 mem;			/* bytes of the memory operand; 0: none */
	u8 align;		/* its alignment - 1, else #GP(0) */
	u8 bits;		/* FORM_* */
};
#define FORM_LOAD	(1u << 0)	/* the memory operand is read */
#define FORM_STORE	(1u << 1)	/* the memory operand is written */
#define FORM_MXCSR	(1u << 2)
#define FORM_DIRECT	(1u << 3)	/* a store may go to guest memory by the stub */
#define FORM_FX		(1u << 4)	/* runs on an FXSAVE image: x87, MMX */
#define FORM_FX_XMM	(1u << 5)	/* ... which uses its XMM registers too */
#define FORM_FIP	(1u << 6)	/* updates FIP (and FDP, FOP) */
#define FORM_PH		(1u << 7)	/* VCVTPS2PH: ignores FTZ */

#define ARENA_SIZE	(4u << 20)
#define FORMS		32768u
#define FORM_HASH	8192u
#define STUB_MAX	384u

struct native {
	u8 xsave[1024];		/* first: c->xsave points here */
	u8 image[512];		/* a copy to run on */
	u8 bounce[128];
	u8 has[ZYDIS_ISA_SET_MAX_VALUE + 1];	/* SET_* */
	u8 *arena_w;		/* the same memory, writable and executable */
	const u8 *arena_x;
	u32 used;
	u32 forms_used;
	u32 hash[FORM_HASH];
	struct form form[FORMS];
};

static inline struct native *native(const struct cpu *c)
{
	return (struct native *)c->xsave;
}

#define FIELD(name, type)						\
static inline type get_##name(const u8 *p)				\
{									\
	type v;								\
	__builtin_memcpy(&v, p, sizeof(v));				\
	return v;							\
}									\
static inline void put_##name(u8 *p, type v)				\
{									\
	__builtin_memcpy(p, &v, sizeof(v));				\
}
FIELD(u16, u16)
FIELD(u32, u32)
FIELD(u64, u64)
#undef FIELD

/* Unmasked x87 exceptions wait in this FSW with that FCW. */
static inline bool x87_pending(const u8 *image)
{
	return get_u16(image + XS_FSW) & ~get_u16(image + XS_FCW) & 0x3f;
}

/* ES and B follow from the exception bits and the masks (SDM 1, 8.1.3.3). */
static inline void x87_fix_es(u8 *image)
{
	u16 sw = get_u16(image + XS_FSW) & ~(FSW_ES | FSW_B);

	if (sw & ~get_u16(image + XS_FCW) & 0x3f)
		sw |= FSW_ES | FSW_B;
	put_u16(image + XS_FSW, sw);
}

void native_check_need(struct cpu *c, const struct op *o, u8 need);

/* The checks that come before any memory access, in the order of SDM 2, 2.4 and 2.5. */
static inline void native_check(struct cpu *c, const struct op *o, u8 need)
{
	if (need)
		native_check_need(c, o, need);
}

/* native_stub.c */
const struct form *native_form(struct cpu *c, const struct insn *in, struct form *f);

/* native_features.c: which instruction sets may run. ABSENT ones are #UD. */
enum { SET_OTHER, SET_RUNS, SET_ABSENT };
void native_find_sets(u8 has[ZYDIS_ISA_SET_MAX_VALUE + 1]);

/* native_x87.c, native_xsave.c, native_mask.c: instructions done in C. */
op_fn native_x87_control(const struct insn *in, struct op *o);
op_fn native_xsave_insn(const struct insn *in, struct op *o);
op_fn native_masked(const struct insn *in, struct op *o);

/* The memory operand, or NULL. */
const ZydisDecodedOperand *native_memory_operand(const struct insn *in);

#endif
