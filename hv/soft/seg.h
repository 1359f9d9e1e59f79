/* SPDX-License-Identifier: MIT */
/* seg.h - descriptors (SDM vol. 3A, 3.4.5, 3.5) for event.c, seg.c and sys.c. */
#ifndef HVI_SOFT_SEG_H
#define HVI_SOFT_SEG_H

#include "more.h"

struct descriptor {
	u64 lo, hi;		/* hi: second half of a 16-byte system descriptor */
	u64 la;			/* where it stands */
};

#define DESC_S		(1ull << 44)
#define DESC_P		(1ull << 47)
#define DESC_TYPE(d)	((u32)((d)->lo >> 40 & 15))
#define DESC_DPL(d)	((u32)((d)->lo >> 45 & 3))
#define DESC_L		(1ull << 53)
#define DESC_DB		(1ull << 54)

/* Linear address of a selector's descriptor, or false when it is beyond its table. */
bool desc_address(const struct cpu *c, u16 sel, u32 bytes, u64 *la);
/* Fetch it (implicit supervisor access); raises `vector` with the selector (and ext) when beyond the table. */
void desc_fetch(struct cpu *c, const struct op *o, u16 sel, u32 vector, u32 ext, struct descriptor *d);
/* The second half of a 16-byte system descriptor. */
void desc_fetch_high(struct cpu *c, const struct op *o, u16 sel, u32 vector, u32 ext, struct descriptor *d);
/* Set the accessed bit of a code or data descriptor, in memory too. */
void desc_accessed(struct cpu *c, const struct op *o, struct descriptor *d);
/* As the hidden part of a segment register. */
void desc_segment(const struct descriptor *d, u16 sel, struct hvi_segment *s);
/* The stack pointer and SS for privilege `cpl` from the TSS (32- and 16-bit TSS). */
void tss_stack(struct cpu *c, const struct op *o, u32 cpl, u32 ext, u16 *ss, u64 *esp);
/* RSPn (index 0..2) or ISTn (3 + n, n = 1..7 given as 3..9 + 1) from the 64-bit TSS. */
u64 tss_rsp(struct cpu *c, const struct op *o, u32 offset, u32 ext);
/* A null SS of privilege cpl, as 64-bit mode loads it on a change of privilege. */
void seg_null_ss(struct hvi_segment *s, u32 cpl);

#endif
