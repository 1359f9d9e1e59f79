/* SPDX-License-Identifier: MIT */
/* seg.c - descriptor tables and the TSS (SDM vol. 3A, 3.4, 3.5, 7.2, 7.7). */
#include "mmu.h"
#include "seg.h"

bool desc_address(const struct cpu *c, u16 sel, u32 bytes, u64 *la)
{
	const struct cpu_more *m = c->more;
	u64 base = m->gdtr.base;
	u32 limit = m->gdtr.limit, at = sel & ~7u;

	if (sel & 4) {
		if (m->ldtr.access & HVI_SEG_UNUSABLE)
			return false;
		base = m->ldtr.base;
		limit = m->ldtr.limit;
	}
	*la = c->long_mode ? base + at : (u32)(base + at);
	return at + bytes - 1 <= limit;
}

void desc_fetch(struct cpu *c, const struct op *o, u16 sel, u32 vector, u32 ext, struct descriptor *d)
{
	if (!desc_address(c, sel, 8, &d->la))
		cpu_raise(c, o, vector, (sel & ~3u) | ext);
	mem_read_sys(c, o, d->la, &d->lo, 8);
	d->hi = 0;
}

void desc_fetch_high(struct cpu *c, const struct op *o, u16 sel, u32 vector, u32 ext, struct descriptor *d)
{
	u64 la;

	if (!desc_address(c, sel, 16, &la))
		cpu_raise(c, o, vector, (sel & ~3u) | ext);
	mem_read_sys(c, o, la + 8, &d->hi, 8);
}

void desc_accessed(struct cpu *c, const struct op *o, struct descriptor *d)
{
	u8 type;

	if (d->lo & (1ull << 40))
		return;
	d->lo |= 1ull << 40;
	type = (u8)(d->lo >> 40);
	mem_write_sys(c, o, d->la + 5, &type, 1);
}

void desc_segment(const struct descriptor *d, u16 sel, struct hvi_segment *s)
{
	u32 limit = (u32)(d->lo & 0xffff) | (u32)(d->lo >> 32 & 0xf0000);

	memset(s, 0, sizeof(*s));
	s->selector = sel;
	s->base = (d->lo >> 16 & 0xffffff) | (d->lo >> 32 & 0xff000000);
	if (!(d->lo & DESC_S))
		s->base |= d->hi << 32;
	s->limit = d->lo & (1ull << 55) ? limit << 12 | 0xfff : limit;
	s->access = (u32)(d->lo >> 40 & 0xf0ff);
}

void seg_null_ss(struct hvi_segment *s, u32 cpl)
{
	*s = (struct hvi_segment){ .selector = (u16)cpl, .access = HVI_SEG_UNUSABLE | cpl << 5 };
}

u64 tss_rsp(struct cpu *c, const struct op *o, u32 offset, u32 ext)
{
	const struct hvi_segment *tr = &c->more->tr;
	u64 rsp;

	if (offset + 7 > tr->limit)
		cpu_raise(c, o, X_TS, (tr->selector & ~3u) | ext);
	mem_read_sys(c, o, tr->base + offset, &rsp, 8);
	return rsp;
}

void tss_stack(struct cpu *c, const struct op *o, u32 cpl, u32 ext, u16 *ss, u64 *esp)
{
	const struct hvi_segment *tr = &c->more->tr;
	bool wide = tr->access & 8;
	u32 at = wide ? 4 + 8 * cpl : 2 + 4 * cpl, sp = 0;

	if (at + (wide ? 5 : 3) > tr->limit)
		cpu_raise(c, o, X_TS, (tr->selector & ~3u) | ext);
	mem_read_sys(c, o, (u32)(tr->base + at), &sp, wide ? 4 : 2);
	mem_read_sys(c, o, (u32)(tr->base + at + (wide ? 4 : 2)), ss, 2);
	*esp = sp;
}
