/* SPDX-License-Identifier: MIT */
/*
 * mmu.h - memory access of the software vCPU, the inline part.
 *
 * The soft TLB maps a linear page to a host address for one privilege (enum
 * tlb_mode). A tag holds the linear page and the TLB's generation; one compare
 * decides mapping, permission, guest paging, EPT rights and, because the tag
 * is built from the last byte of the access, page crossing. Everything else is
 * the slow path's: breakpoints, alignment checks, reply overrides and pages
 * that hold decoded code simply have no tag.
 */
#ifndef HVI_SOFT_MMU_H
#define HVI_SOFT_MMU_H

#include <string.h>
#include "cpu.h"

u64 mmu_load_slow(struct cpu *c, const struct op *o, u64 la, u32 size);
u64 mmu_load_rmw_slow(struct cpu *c, const struct op *o, u64 la, u32 size);
void mmu_store_slow(struct cpu *c, const struct op *o, u64 la, u64 v, u32 size);
u64 ea_slow(struct cpu *c, const struct op *o);
u64 ea_at(struct cpu *c, const struct op *o, u64 by);	/* `by` bytes beyond the memory operand */

static inline u64 ea(struct cpu *c, const struct op *o)
{
	if (unlikely(o->flags & OP_SLOW_EA))
		return ea_slow(c, o);
	return c->segbase[o->seg] + c->gpr[o->base] +
	       (c->gpr[o->index] << o->scale) + (u64)o->disp;
}

static inline struct tlb_entry *tlb_slot(const struct cpu *c, u64 la)
{
	return &c->tlb[(la >> 12) & (TLB_SIZE - 1)];
}

static inline u64 tlb_tag(const struct cpu *c, u64 la, u32 size)
{
	return ((la + (size - 1)) & ~(u64)0xfff) | c->tlb_gen;
}

#define MMU_ACCESSORS(bits)						\
static inline u##bits ld##bits(struct cpu *c, const struct op *o, u64 la) \
{									\
	const struct tlb_entry *e = tlb_slot(c, la);			\
	u##bits v;							\
									\
	if (unlikely(e->tag_r != tlb_tag(c, la, bits / 8)))		\
		return (u##bits)mmu_load_slow(c, o, la, bits / 8);	\
	memcpy(&v, (const void *)(la + (u64)e->addend), sizeof(v));	\
	return v;							\
}									\
static inline u##bits ld##bits##_rmw(struct cpu *c, const struct op *o, u64 la) \
{									\
	const struct tlb_entry *e = tlb_slot(c, la);			\
	u##bits v;							\
									\
	if (unlikely(e->tag_w != tlb_tag(c, la, bits / 8) ||		\
		     e->tag_r != e->tag_w))				\
		return (u##bits)mmu_load_rmw_slow(c, o, la, bits / 8);	\
	memcpy(&v, (const void *)(la + (u64)e->addend), sizeof(v));	\
	return v;							\
}									\
static inline void st##bits(struct cpu *c, const struct op *o, u64 la, u##bits v) \
{									\
	const struct tlb_entry *e = tlb_slot(c, la);			\
									\
	if (unlikely(e->tag_w != tlb_tag(c, la, bits / 8))) {		\
		mmu_store_slow(c, o, la, v, bits / 8);			\
		return;							\
	}								\
	memcpy((void *)(la + (u64)e->addend), &v, sizeof(v));		\
}

MMU_ACCESSORS(8)
MMU_ACCESSORS(16)
MMU_ACCESSORS(32)
MMU_ACCESSORS(64)

#endif
