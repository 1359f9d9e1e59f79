/* SPDX-License-Identifier: MIT */
/*
 * event.c - delivery of exceptions and interrupts (SDM vol. 3A chapter 6; the
 * INT n pseudo-code of vol. 2A), and what a fault during delivery becomes.
 * A delivery either commits as a whole or leaves by cpu_raise or an exit with
 * nothing of the guest changed but CR2 and DR6, which hardware sets first too.
 */
#include "mmu.h"
#include "seg.h"

static bool contributory(const struct event *e)
{
	return e->type == HVI_EVENT_EXCEPTION &&
	       (e->vector == X_DE || (e->vector >= X_TS && e->vector <= X_GP) || e->vector == X_CP);
}

static bool is_pf(const struct event *e)
{
	return e->type == HVI_EVENT_EXCEPTION && e->vector == X_PF;
}

/* SDM 25.5.7.3: a #VE counts as a page fault. None is raised during a delivery. */
static bool like_pf(const struct event *e)
{
	return is_pf(e) || (e->type == HVI_EVENT_EXCEPTION && e->vector == X_VE);
}

/* SDM table 6-5: a second event raised while the first was being delivered. */
void event_merge(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct event *first = &m->evt, second = m->raised;
	bool df = first->type == HVI_EVENT_EXCEPTION && first->vector == X_DF;

	if (first->injected) {
		m->page->event.status = HVI_EVENT_LOST;
		m->notify_injected |= first->notify;
	}
	m->pass_exception = false;
	if (df && (contributory(&second) || is_pf(&second))) {
		first->valid = false;
		m->shut_down = true;
		return;
	}
	if ((contributory(first) && contributory(&second)) ||
	    (like_pf(first) && (is_pf(&second) || contributory(&second)))) {
		*first = (struct event){
			.valid = true, .type = HVI_EVENT_EXCEPTION, .vector = X_DF, .has_err = true,
		};
		if (is_pf(&second))
			c->cr2 = second.cr2;
		return;
	}
	*first = second;
}

static bool software(const struct event *e)
{
	return e->type == HVI_EVENT_SOFT_INT || e->type == HVI_EVENT_SOFT_EXCEPTION;
}

/* EXT of an error code that a failing delivery pushes. */
static u32 ext_of(const struct event *e)
{
	return software(e) ? 0 : 1;
}

static u64 pushed_flags(const struct cpu *c, const struct event *e)
{
	u64 f = flags_all(c);

	/* SDM 17.3.1.1: RF is set for faults (general detect is one), not for traps, aborts, instruction breakpoints. */
	if (e->type == HVI_EVENT_EXCEPTION && e->vector != X_DF && !e->trap &&
	    (e->vector != X_DB || (e->dr6 & (1u << 13))))
		f |= FL_RF;
	return f;
}

static void finish(struct cpu *c, const struct event *e, bool interrupt_gate)
{
	u64 clear = FL_TF | FL_NT | FL_RF | FL_VM | (interrupt_gate ? FL_IF : 0);

	c->rflags &= ~clear;
	if (e->type == HVI_EVENT_NMI)
		c->more->nmi_blocked = true;
	c->more->shadow = 0;
	cpu_mode_changed(c);
}

static u64 next_rip(const struct cpu *c, const struct event *e)
{
	u64 rip = c->rip + e->len;

	return c->code_bits == 64 ? rip : c->code_bits == 32 ? (u32)rip : (u16)rip;
}

/* ---- 64-bit mode ------------------------------------------------------------------------ */

static void deliver_long(struct cpu *c, const struct event *e)
{
	struct cpu_more *m = c->more;
	u32 ext = ext_of(e), code = e->vector * 8u + 2 + ext, cpl, n = 0;
	struct descriptor gate, d;
	struct hvi_segment cs;
	u64 rsp, rip, frame[6];
	u16 sel;
	u8 old_cpl = c->cpl;

	if (e->vector * 16u + 15 > m->idtr.limit)
		cpu_raise(c, NULL, X_GP, code);
	mem_read_sys(c, NULL, m->idtr.base + e->vector * 16u, &gate.lo, 8);
	mem_read_sys(c, NULL, m->idtr.base + e->vector * 16u + 8, &gate.hi, 8);
	if ((gate.lo & DESC_S) || (DESC_TYPE(&gate) != 14 && DESC_TYPE(&gate) != 15))
		cpu_raise(c, NULL, X_GP, code);
	if (software(e) && DESC_DPL(&gate) < c->cpl)
		cpu_raise(c, NULL, X_GP, code);
	if (!(gate.lo & DESC_P))
		cpu_raise(c, NULL, X_NP, code);
	sel = (u16)(gate.lo >> 16);
	rip = (gate.lo & 0xffff) | (gate.lo >> 32 & 0xffff0000) | gate.hi << 32;
	if (!(sel & ~3))
		cpu_raise(c, NULL, X_GP, ext);
	desc_fetch(c, NULL, sel, X_GP, ext, &d);
	if (!(d.lo & DESC_S) || !(DESC_TYPE(&d) & 8) || DESC_DPL(&d) > c->cpl ||
	    !(d.lo & DESC_L) || (d.lo & DESC_DB))
		cpu_raise(c, NULL, X_GP, (sel & ~3u) | ext);
	if (!(d.lo & DESC_P))
		cpu_raise(c, NULL, X_NP, (sel & ~3u) | ext);
	cpl = DESC_TYPE(&d) & 4 ? c->cpl : DESC_DPL(&d);
	if (gate.lo >> 32 & 7)
		rsp = tss_rsp(c, NULL, 36 + 8 * (u32)(gate.lo >> 32 & 7) - 8, ext);
	else if (cpl != c->cpl)
		rsp = tss_rsp(c, NULL, 4 + 8 * cpl, ext);
	else
		rsp = c->gpr[HVI_RSP];
	if (!is_canonical(c, rsp))
		cpu_raise(c, NULL, X_SS, ext);
	if (!is_canonical(c, rip))
		cpu_raise(c, NULL, X_GP, ext);
	rsp &= ~15ull;
	if (e->has_err)
		frame[n++] = e->err;
	frame[n++] = next_rip(c, e);
	frame[n++] = c->seg[HVI_CS].selector;
	frame[n++] = pushed_flags(c, e);
	frame[n++] = c->gpr[HVI_RSP];
	frame[n++] = c->seg[HVI_SS].selector;
	if (!is_canonical(c, rsp - 8 * n))
		cpu_raise(c, NULL, X_SS, ext);
	desc_accessed(c, NULL, &d);
	/* The pushes are made at the new privilege. */
	c->cpl = (u8)cpl;
	m->delivery_cpl = old_cpl;
	m->delivery_cpl_valid = true;
	mem_write_stack(c, NULL, rsp - 8 * n, frame, 8 * n);
	m->delivery_cpl_valid = false;

	desc_segment(&d, (u16)((sel & ~3u) | cpl), &cs);
	cs.access = (cs.access & ~0x60u) | cpl << 5;
	c->seg[HVI_CS] = cs;
	if (cpl != old_cpl)
		seg_null_ss(&c->seg[HVI_SS], cpl);
	c->gpr[HVI_RSP] = rsp - 8 * n;
	c->rip = rip;
	finish(c, e, DESC_TYPE(&gate) == 14);
}

/* ---- 32-bit protected mode ----------------------------------------------------------------- */

struct frame32 {
	u8 bytes[64];
	u32 n;			/* bytes used, from the end */
	u32 width;
};

static void push(struct frame32 *f, u32 v)
{
	f->n += f->width;
	memcpy(f->bytes + sizeof(f->bytes) - f->n, &v, f->width);
}

static void deliver_protected(struct cpu *c, const struct event *e)
{
	struct cpu_more *m = c->more;
	u32 ext = ext_of(e), code = e->vector * 8u + 2 + ext, cpl, type;
	bool vm = c->rflags & FL_VM, inner;
	struct descriptor gate = { 0 }, d, sd;
	struct hvi_segment cs, ss = c->seg[HVI_SS];
	struct frame32 f = { .n = 0 };
	u64 sp = c->gpr[HVI_RSP], la;
	u8 old_cpl = c->cpl;
	u32 rip, mask;
	u16 sel, ss_sel = 0;

	if (e->vector * 8u + 7 > m->idtr.limit)
		cpu_raise(c, NULL, X_GP, code);
	mem_read_sys(c, NULL, (u32)(m->idtr.base + e->vector * 8u), &gate.lo, 8);
	type = DESC_TYPE(&gate);
	if ((gate.lo & DESC_S) || (type != 5 && (type & 6) != 6))
		cpu_raise(c, NULL, X_GP, code);
	if (software(e) && DESC_DPL(&gate) < c->cpl)
		cpu_raise(c, NULL, X_GP, code);
	if (!(gate.lo & DESC_P))
		cpu_raise(c, NULL, X_NP, code);
	if (type == 5)
		cpu_emulation(c, NULL, 0x5441534b);	/* "TASK": task gates are not supported */
	f.width = type & 8 ? 4 : 2;
	sel = (u16)(gate.lo >> 16);
	rip = (u32)(gate.lo & 0xffff) | (type & 8 ? (u32)(gate.lo >> 32 & 0xffff0000) : 0);
	if (!(sel & ~3))
		cpu_raise(c, NULL, X_GP, ext);
	desc_fetch(c, NULL, sel, X_GP, ext, &d);
	if (!(d.lo & DESC_S) || !(DESC_TYPE(&d) & 8) || DESC_DPL(&d) > c->cpl)
		cpu_raise(c, NULL, X_GP, (sel & ~3u) | ext);
	if (!(d.lo & DESC_P))
		cpu_raise(c, NULL, X_NP, (sel & ~3u) | ext);
	cpl = DESC_TYPE(&d) & 4 ? c->cpl : DESC_DPL(&d);
	if (vm && cpl)
		cpu_raise(c, NULL, X_GP, (sel & ~3u) | ext);
	inner = cpl < c->cpl;
	if (inner) {
		tss_stack(c, NULL, cpl, ext, &ss_sel, &sp);
		if (!(ss_sel & ~3))
			cpu_raise(c, NULL, X_TS, ext);
		desc_fetch(c, NULL, ss_sel, X_TS, ext, &sd);
		if ((ss_sel & 3u) != cpl || DESC_DPL(&sd) != cpl || !(sd.lo & DESC_S) ||
		    (DESC_TYPE(&sd) & 10) != 2)
			cpu_raise(c, NULL, X_TS, (ss_sel & ~3u) | ext);
		if (!(sd.lo & DESC_P))
			cpu_raise(c, NULL, X_SS, (ss_sel & ~3u) | ext);
		desc_segment(&sd, ss_sel, &ss);
		if (vm) {
			push(&f, c->seg[HVI_GS].selector);
			push(&f, c->seg[HVI_FS].selector);
			push(&f, c->seg[HVI_DS].selector);
			push(&f, c->seg[HVI_ES].selector);
		}
		push(&f, c->seg[HVI_SS].selector);
		push(&f, (u32)c->gpr[HVI_RSP]);
	}
	push(&f, (u32)pushed_flags(c, e));
	push(&f, c->seg[HVI_CS].selector);
	push(&f, (u32)next_rip(c, e));
	if (e->has_err)
		push(&f, e->err);
	desc_segment(&d, (u16)((sel & ~3u) | cpl), &cs);
	cs.access = (cs.access & ~0x60u) | cpl << 5;
	if (rip > cs.limit)
		cpu_raise(c, NULL, X_GP, ext);
	mask = ss.access & (1u << 14) ? 0xffffffff : 0xffff;
	la = (u32)(sp - f.n) & mask;
	if (!seg_limit_ok(&ss, la, f.n))
		cpu_raise(c, NULL, X_SS, (inner ? ss_sel & ~3u : 0) | ext);
	desc_accessed(c, NULL, &d);
	if (inner)
		desc_accessed(c, NULL, &sd);
	c->cpl = (u8)cpl;
	m->delivery_cpl = old_cpl;
	m->delivery_cpl_valid = true;
	mem_write_stack(c, NULL, (u32)(ss.base + la), f.bytes + sizeof(f.bytes) - f.n, f.n);
	m->delivery_cpl_valid = false;

	if (inner)
		c->seg[HVI_SS] = ss;
	if (vm)
		for (int i = 0; i < HVI_SEGS; i++)
			if (i != HVI_CS && i != HVI_SS)
				c->seg[i] = (struct hvi_segment){ .access = HVI_SEG_UNUSABLE };
	c->seg[HVI_CS] = cs;
	sp = (c->gpr[HVI_RSP] & ~(u64)mask) | la;
	c->gpr[HVI_RSP] = inner && mask == 0xffffffff ? (u32)la : mask == 0xffffffff ? (u32)sp : sp;
	c->rip = rip;
	finish(c, e, !(type & 1));
}

/* ---- real mode --------------------------------------------------------------------------------- */

static void deliver_real(struct cpu *c, const struct event *e)
{
	struct cpu_more *m = c->more;
	u16 frame[3], ivt[2];
	u64 sp = (u16)(c->gpr[HVI_RSP] - 6);

	if (e->vector * 4u + 3 > m->idtr.limit)
		cpu_raise(c, NULL, X_GP, e->vector * 8u + 2);
	mem_read_sys(c, NULL, m->idtr.base + e->vector * 4u, ivt, 4);
	frame[0] = (u16)next_rip(c, e);
	frame[1] = c->seg[HVI_CS].selector;
	frame[2] = (u16)pushed_flags(c, e);
	if (sp > 0xfffa || !seg_limit_ok(&c->seg[HVI_SS], sp, 6))
		cpu_raise(c, NULL, X_SS, 0);
	mem_write(c, NULL, (u32)(c->seg[HVI_SS].base + sp), frame, 6);
	c->gpr[HVI_RSP] = (c->gpr[HVI_RSP] & ~0xffffull) | sp;
	c->seg[HVI_CS].selector = ivt[1];
	c->seg[HVI_CS].base = (u64)ivt[1] << 4;
	c->rip = ivt[0];
	c->rflags &= ~(u64)FL_AC;
	finish(c, e, true);
}

void event_deliver(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct event *e = &m->evt;

	if (e->set_cr2)
		c->cr2 = e->cr2;
	if (e->type == HVI_EVENT_EXCEPTION && e->vector == X_DB && !e->injected) {
		/* SDM 17.2.3: B0-B3 tell of this #DB alone, the other bits are sticky; an injected one has no cause. */
		m->dr[6] = (m->dr[6] & ~0xfull) | e->dr6;
		m->dr[7] &= ~(1ull << 13);	/* GD */
		m->debugctl &= ~(u64)(DEBUGCTL_LBR | DEBUGCTL_BTF);	/* SDM 17.4.1 */
	}
	if (e->type == HVI_EVENT_PRIV_SOFT && m->pending_debug) {
		/* INT1 takes what MOV SS held back along with it. */
		m->dr[6] = (m->dr[6] & ~0xfull) | m->pending_debug;
		m->pending_debug = 0;
	}
	if (!(c->cr0 & 1)) {
		e->has_err = false;
		deliver_real(c, e);
	} else if (c->long_mode) {
		deliver_long(c, e);
	} else {
		/* SDM 20.2.7: INT n in virtual-8086 mode without VME needs IOPL 3. */
		if ((c->rflags & FL_VM) && e->type == HVI_EVENT_SOFT_INT && (c->rflags & FL_IOPL) != FL_IOPL)
			cpu_raise(c, NULL, X_GP, 0);
		deliver_protected(c, e);
	}
}
