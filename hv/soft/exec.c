/* SPDX-License-Identifier: MIT */
/*
 * exec.c - dispatch between blocks, the run loop, how an instruction is left.
 *
 * All vCPUs run on the thread that called HVI_RUN. The one whose clock is
 * furthest behind goes next, for at most QUANTUM instructions: the order is a
 * function of the guest alone, and an atomic instruction is atomic because
 * nobody else runs. Time is instructions retired.
 */
#include <stdlib.h>
#include "more.h"

#define DR6_BS	(1u << 14)

/* ---- dispatch ------------------------------------------------------------------------- */

/*
 * On to rip after `count` instructions of the current block. The next block
 * runs by a sibling call when it is known and still holds; otherwise the loop
 * looks it up. (Sanitized builds keep frames, so they return each time.)
 */
static inline void go(struct cpu *c, u64 rip, u64 count)
{
	const struct jump *j = &c->jumps[jump_hash(rip)];

	c->icount += count;
	c->rip = rip;
#ifndef __SANITIZE_ADDRESS__
	if (likely(j->rip == rip && j->key == c->jump_key && c->icount < c->icount_stop)) {
		struct block *b = j->blk;

		if (likely(b->epoch == c->epoch) || block_verify(c, b)) {
			c->blk = b;
			c->gpr[REG_BLOCK] = rip;
			return b->ops->fn(c, b->ops);
		}
	}
#else
	(void)j;
#endif
}

void op_block_end(struct cpu *c, const struct op *o)
{
	u64 rip = op_rip(c, o);

	if (c->code_bits != 64)
		rip = (u32)rip;
	go(c, rip, (u64)(o - c->blk->ops));
}

void cpu_jump(struct cpu *c, const struct op *o, u64 rip)
{
	const struct block *b = c->blk;

	if (unlikely(!cpu_can_jump(c, rip)))
		cpu_raise(c, o, X_GP, 0);
	if (c->code_bits != 64)
		rip = (u32)rip;
	go(c, rip, o == b->last ? b->n : (u64)(o - b->ops) + 1);
}

void cpu_continue(struct cpu *c, const struct op *o)
{
	go(c, op_next_rip(c, o), (u64)(o - c->blk->ops) + 1);
}

/* ---- leaving an instruction ---------------------------------------------------------------- */

u64 cpu_icount(const struct cpu *c, const struct op *o)
{
	return c->icount + (o && c->blk ? (u64)(o - c->blk->ops) : 0);
}

u64 cpu_tsc(const struct cpu *c, const struct op *o)
{
	return cpu_icount(c, o) + c->more->tsc_offset;
}

static void stop_at(struct cpu *c, const struct op *o)
{
	if (c->more->delivery_cpl_valid) {	/* the push of an event's frame failed */
		c->more->delivery_cpl_valid = false;
		c->cpl = c->more->delivery_cpl;
		mmu_setup(c);
	}
	if (!o || !c->blk)
		return;
	c->icount += (u64)(o - c->blk->ops);
	c->rip = op_rip(c, o);
	if (c->code_bits != 64)
		c->rip = (u32)c->rip;
	c->blk = NULL;
}

/* Vectors that push an error code (SDM table 6-1). */
static bool has_error(u32 vector)
{
	return vector < 32 && (0x60227d00u >> vector & 1);
}

void cpu_raise(struct cpu *c, const struct op *o, unsigned int vector, u32 err)
{
	struct cpu_more *m = c->more;
	struct event e = {
		.valid = true, .type = HVI_EVENT_EXCEPTION, .vector = (u8)vector,
		.has_err = has_error(vector), .err = err,
		.set_cr2 = vector == X_PF, .cr2 = m->fault_la,
	};

	stop_at(c, o);
	m->raised = e;
	m->leave = LEAVE_EXCEPTION;
	longjmp(c->out, 1);
}

void cpu_soft_int(struct cpu *c, const struct op *o, unsigned int vector, unsigned int type)
{
	struct cpu_more *m = c->more;
	struct event e = {
		.valid = true, .type = (u8)type, .vector = (u8)vector, .len = o->len,
	};

	stop_at(c, o);
	m->raised = e;
	m->leave = LEAVE_EXCEPTION;
	longjmp(c->out, 1);
}

struct hvi_exit *cpu_exit_record(struct cpu *c)
{
	struct hvi_exit *x = &c->more->page->exit;

	memset(x, 0, sizeof(*x));
	return x;
}

void cpu_exit(struct cpu *c, const struct op *o, u32 reason)
{
	stop_at(c, o);
	c->more->page->exit.reason = reason;
	c->more->leave = LEAVE_EXIT;
	longjmp(c->out, 1);
}

void cpu_emulation(struct cpu *c, const struct op *o, u64 detail)
{
	struct hvi_exit *x = cpu_exit_record(c);

	x->value = detail;
	x->insn_len = o ? o->len : 0;
	cpu_exit(c, o, HVI_EXIT_EMULATION);
}

void cpu_shadow(struct cpu *c, const struct op *o, bool mov_ss)
{
	struct cpu_more *m = c->more;

	m->shadow = mov_ss ? HVI_BLOCK_MOV_SS : HVI_BLOCK_STI;
	m->shadow_at = cpu_icount(c, o) + 1;
	if (m->page->want_irq_window || (c->rflags & FL_TF))
		c->icount_stop = 0;
}

void flags_set_all(struct cpu *c, u64 v)
{
	u64 old = c->rflags;

	c->flags = v & FL_STATUS;
	c->rflags = (v & ~(u64)FL_STATUS & 0x3f7fd5) | 2;
	if ((old ^ c->rflags) & (FL_TF | FL_IF | FL_AC | FL_VM | FL_RF)) {
		if ((old ^ c->rflags) & FL_AC)
			mmu_setup(c);
		if (((old ^ c->rflags) & ~(u64)(FL_IF | FL_AC)) || c->more->page->want_irq_window)
			c->icount_stop = 0;
	}
}

/* ---- modes --------------------------------------------------------------------------------------- */

static bool seg_flat(const struct hvi_segment *s, bool writable)
{
	return !s->base && s->limit == 0xffffffff && !(s->access & HVI_SEG_UNUSABLE) &&
	       (!writable || (s->access & 0xe) == 2);
}

void cpu_mode_changed(struct cpu *c)
{
	struct cpu_more *m = c->more;
	const struct hvi_segment *cs = &c->seg[HVI_CS], *ss = &c->seg[HVI_SS];
	bool pe = c->cr0 & 1;
	u32 flat = 0;

	c->long_mode = c->efer & (1u << 10);
	c->canon_shift = c->cr4 & (1u << 12) ? 7 : 16;
	if (c->long_mode && (cs->access & (1u << 13))) {
		c->code_bits = 64;
		c->stack_size = 8;
		flat = KEY_FLAT;
	} else {
		c->code_bits = cs->access & (1u << 14) ? 32 : 16;
		c->stack_size = ss->access & (1u << 14) ? 4 : 2;
		if (pe && !(c->rflags & FL_VM) && seg_flat(cs, false) && (cs->access & 2) &&
		    seg_flat(ss, true) && seg_flat(&c->seg[HVI_DS], true) && seg_flat(&c->seg[HVI_ES], true))
			flat = KEY_FLAT;
	}
	for (int i = 0; i < HVI_SEGS; i++)
		c->segbase[i] = c->seg[i].base;
	if (c->code_bits == 64)
		c->segbase[HVI_ES] = c->segbase[HVI_CS] = c->segbase[HVI_SS] = c->segbase[HVI_DS] = 0;
	if (c->code_bits != 64 && (m->cs_base != cs->base || m->cs_limit != cs->limit)) {
		m->cs_base = cs->base;
		m->cs_limit = cs->limit;
		if (!++m->cs_gen)	/* its numbers come again: nothing found with them may hold */
			mmu_flush_all(c);
	}
	m->mode = (c->code_bits == 64 ? KEY_64 : c->code_bits == 32 ? KEY_32 : KEY_16) |
		  KEY_STACK(c->stack_size) | flat;
	mmu_setup(c);
	c->icount_stop = 0;
}

/* ---- the loop --------------------------------------------------------------------------------------- */

static u32 shadow(const struct cpu *c)
{
	return c->icount == c->more->shadow_at ? c->more->shadow : 0;
}

u32 exec_interruptibility(const struct cpu *c)
{
	return shadow(c) | (c->more->nmi_blocked ? HVI_BLOCK_NMI : 0);
}

bool exec_can_take_irq(const struct cpu *c)
{
	const struct cpu_more *m = c->more;

	return (c->rflags & FL_IF) && !shadow(c) && !m->evt.valid && !m->pending_debug &&
	       (m->mp_state == HVI_MP_RUNNING || m->mp_state == HVI_MP_HALTED);
}

/* With breakpoints enabled each instruction is looked at: a data breakpoint traps right after its own. */
static bool breakpoints(const struct cpu *c)
{
	return c->more->dr[7] & 0xff;
}

/* SDM 17.3.1.1: a fault, before the instruction, unless RF. */
static void check_instruction_breakpoints(struct cpu *c)
{
	struct cpu_more *m = c->more;
	u64 la = c->code_bits == 64 ? c->rip : (u32)(c->segbase[HVI_CS] + c->rip), hit = 0;

	if ((c->rflags & FL_RF) || shadow(c) == HVI_BLOCK_MOV_SS)
		return;
	for (int i = 0; i < 4; i++)
		if ((m->dr[7] >> (2 * i) & 3) && !(m->dr[7] >> (16 + 4 * i) & 3) && m->dr[i] == la)
			hit |= 1u << i;
	if (!hit)
		return;
	m->raised_dr6 = hit;
	cpu_raise(c, NULL, X_DB, 0);
}

void exec_drop_one(struct cpu *c)
{
	struct cpu_more *m = c->more;

	m->one = m->step_notify = false;
	m->nov = 0;
	m->pass.valid = false;
	if (m->step_back != ~0u) {
		m->view = m->step_back;
		m->step_back = ~0u;
	}
}

void exec_finish_one(struct cpu *c)
{
	bool notify = c->more->step_notify;

	exec_drop_one(c);
	c->more->notify_step |= notify;
}

/* The one instruction (or delivery) that overrides or STEP were for is over. */
static void finish_one(struct cpu *c)
{
	exec_finish_one(c);
	mmu_setup(c);
}

/* The instruction of b, which stood at rip, has gone elsewhere than to the next one. */
static bool branched(const struct cpu *c, const struct block *b, u64 rip)
{
	return c->rip != rip + b->ops->len && !(c->rip == rip && (b->ops->flags & (OP_REP | OP_REPNE)));
}

/* One instruction, with everything that needs a look at each. */
static void run_single(struct cpu *c)
{
	struct cpu_more *m = c->more;
	bool tf = c->rflags & FL_TF;
	bool rf = c->rflags & FL_RF;
	u64 before, rip = c->rip;
	struct block *b;

	if (breakpoints(c))
		check_instruction_breakpoints(c);
	b = block_single(c);
	c->blk = b;
	c->gpr[REG_BLOCK] = c->rip;
	c->icount_stop = 0;
	c->rep_limit = 1;
	m->single_tf = tf;
	m->rf_loaded = false;
	before = c->icount;
	b->ops->fn(c, b->ops);
	c->blk = NULL;
	c->rep_limit = QUANTUM;
	/* RF holds for all iterations of a repeated instruction (SDM 17.3.1.1). */
	if (rf && c->icount != before && !m->rf_loaded &&
	    !(c->rip == rip && (b->ops->flags & (OP_REP | OP_REPNE))))
		c->rflags &= ~(u64)FL_RF;
	/* SDM 17.3.1.4: the trap belongs to the instruction that began with TF set; with BTF, to branches alone. */
	if (m->single_tf && shadow(c) != HVI_BLOCK_MOV_SS &&
	    (!(m->debugctl & DEBUGCTL_BTF) || branched(c, b, rip)))
		m->pending_debug |= DR6_BS;
	if (m->one)
		finish_one(c);
}

/* An NMI waits until NMIs are unblocked (SDM 6.7.1), its event stays VALID; all else is taken at once. */
static bool engine_event(const struct cpu *c)
{
	const struct hvi_event *ev = &c->more->page->event;

	return (ev->flags & HVI_EVENT_VALID) &&
	       (ev->type != HVI_EVENT_NMI || !(c->more->nmi_blocked || shadow(c)));
}

static void take_engine_event(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct hvi_event *ev = &m->page->event;
	bool can = true;

	ev->flags &= ~HVI_EVENT_VALID;
	ev->status = HVI_EVENT_PENDING;
	/* vcpu.c has checked type, vector and length; the page may have been written since. */
	if (ev->type == HVI_EVENT_EXTERNAL)
		can = exec_can_take_irq(c);
	if (ev->type > HVI_EVENT_SOFT_EXCEPTION || ev->vector > 255 || ev->insn_len > 15)
		can = false;
	if (m->mp_state != HVI_MP_RUNNING && m->mp_state != HVI_MP_HALTED)
		can = false;
	if (!can) {
		ev->status = HVI_EVENT_LOST;
		if (ev->flags & HVI_EVENT_NOTIFY) {
			cpu_exit_record(c);
			cpu_exit(c, NULL, HVI_EXIT_INJECTED);
		}
		return;
	}
	m->mp_state = HVI_MP_RUNNING;
	m->evt = (struct event){
		.valid = true, .injected = true, .notify = ev->flags & HVI_EVENT_NOTIFY,
		.type = (u8)ev->type, .vector = (u8)ev->vector,
		.has_err = ev->flags & HVI_EVENT_ERROR_CODE, .err = ev->error_code,
		.set_cr2 = ev->flags & HVI_EVENT_CR2, .cr2 = ev->cr2,
		.len = ev->type >= HVI_EVENT_SOFT_INT ? (u8)ev->insn_len : 0,
	};
}

/* Exceptions the engine wants to see, before anything of them happens. */
static void intercept_exception(struct cpu *c)
{
	struct cpu_more *m = c->more;
	const struct event *e = &m->evt;
	struct hvi_exit *x;

	if (e->injected || m->pass_exception || e->vector >= 32 ||
	    (e->type != HVI_EVENT_EXCEPTION && e->type != HVI_EVENT_SOFT_EXCEPTION &&
	     e->type != HVI_EVENT_PRIV_SOFT) ||
	    !(m->vm->exception_exit >> e->vector & 1))
		return;
	x = cpu_exit_record(c);
	x->number = e->vector;
	x->value = e->has_err ? e->err : 0;
	x->gva = e->set_cr2 ? e->cr2 : 0;
	x->insn_len = e->len;
	cpu_exit(c, NULL, HVI_EXIT_EXCEPTION);
}

static void deliver(struct cpu *c)
{
	struct cpu_more *m = c->more;
	bool notify;

	intercept_exception(c);
	m->delivering = true;
	event_deliver(c);	/* raises or exits with nothing done, or commits */
	m->delivering = false;
	m->pass_exception = false;
	m->page->counters.events++;
	notify = m->evt.notify;
	if (m->evt.injected)
		m->page->event.status = HVI_EVENT_DELIVERED;
	m->evt.valid = false;
	if (notify) {
		m->notify_injected = true;
	}
	if (m->one)
		finish_one(c);
}

/* After a longjmp with LEAVE_EXCEPTION: what was raised, upon what was being delivered. */
static void note_exception(struct cpu *c)
{
	struct cpu_more *m = c->more;

	c->blk = NULL;
	c->rep_limit = QUANTUM;
	m->raised.dr6 = m->raised_dr6;
	m->raised_dr6 = 0;
	if (m->in_iret) {
		m->in_iret = false;
		m->nmi_blocked = false;
	}
	if (m->delivering) {
		m->delivering = false;
		event_merge(c);
	} else {
		m->evt = m->raised;
		m->pending_debug = m->debug_before;
		m->pass.valid = false;
	}
	if (m->raised.type == HVI_EVENT_EXCEPTION)	/* its delivery is not what the replies were for */
		m->nov = 0;
	mmu_setup(c);
}

static void pending_debug_trap(struct cpu *c)
{
	struct cpu_more *m = c->more;

	m->evt = (struct event){
		.valid = true, .type = HVI_EVENT_EXCEPTION, .vector = X_DB, .trap = true,
		.dr6 = m->pending_debug,
	};
	m->pending_debug = 0;
}

static void triple_fault(struct cpu *c)
{
	c->more->mp_state = HVI_MP_SHUTDOWN;
	exec_drop_one(c);
	mmu_setup(c);
	cpu_exit_record(c);
	cpu_exit(c, NULL, HVI_EXIT_SHUTDOWN);
}

/* A reply lets one instruction run: no deadline comes before it. */
static bool owes_instruction(const struct cpu *c)
{
	return c->more->one && c->more->mp_state == HVI_MP_RUNNING;
}

/* Run c until icount `end` or an exit; the reason, or 0. */
static u32 slice(struct cpu *c, u64 end)
{
	struct cpu_more *m = c->more;
	struct vm *vm = m->vm;

	if (setjmp(c->out)) {
		if (m->leave == LEAVE_EXIT) {
			c->blk = NULL;
			c->rep_limit = QUANTUM;
			/* Breakpoints hit so far will be hit again. An IN or OUT is over with its exit. */
			if (!m->delivering && m->page->exit.reason != HVI_EXIT_IO)
				m->pending_debug = m->debug_before;
			m->delivering = false;
			m->in_iret = false;
			return m->page->exit.reason;
		}
		note_exception(c);
	}
	for (;;) {
		m->debug_before = m->pending_debug;
		if (m->shut_down) {
			m->shut_down = false;
			triple_fault(c);
		}
		if (m->notify_injected) {
			m->notify_injected = false;
			cpu_exit_record(c);
			cpu_exit(c, NULL, HVI_EXIT_INJECTED);
		}
		if (m->notify_step) {
			m->notify_step = false;
			cpu_exit_record(c);
			cpu_exit(c, NULL, HVI_EXIT_STEP);
		}
		if (m->evt.valid) {
			deliver(c);
			/* Time passes, or a handler that faults at its first byte would outlast any deadline. */
			m->tsc_offset++;
			if (++m->deliveries % 64 == 0)
				return 0;
			continue;
		}
		if (m->pending_debug && (m->mp_state == HVI_MP_HALTED ||
					 (m->mp_state == HVI_MP_RUNNING && shadow(c) != HVI_BLOCK_MOV_SS))) {
			m->mp_state = HVI_MP_RUNNING;	/* HLT under TF does not sleep */
			pending_debug_trap(c);
			continue;
		}
		if (engine_event(c)) {
			take_engine_event(c);
			continue;
		}
		if (m->page->want_irq_window && exec_can_take_irq(c)) {
			cpu_exit_record(c);
			cpu_exit(c, NULL, HVI_EXIT_IRQ_WINDOW);
		}
		if (m->mp_state != HVI_MP_RUNNING || (c->icount >= end && !owes_instruction(c)) || vm->attention)
			return 0;
		if (m->one || (c->rflags & (FL_TF | FL_RF)) || breakpoints(c) ||
		    ((m->page->want_irq_window || (m->page->event.flags & HVI_EVENT_VALID)) && shadow(c))) {
			run_single(c);
		} else {
			struct block *b = block_get(c);

			c->icount_stop = end;
			c->blk = b;
			c->gpr[REG_BLOCK] = c->rip;
			b->ops->fn(c, b->ops);
			c->blk = NULL;
		}
	}
}

/* ---- which vCPU, how long ------------------------------------------------------------------------------ */

static u32 report_attention(struct vm *vm, struct cpu **who)
{
	for (u32 i = 0; i < vm->ncpus; i++) {
		if (vm->pause_report[i] || vm->kicked[i]) {
			vm->pause_report[i] = vm->kicked[i] = 0;
			*who = vm->cpu[i];
			cpu_exit_record(*who)->reason = HVI_EXIT_PAUSED;
			return HVI_EXIT_PAUSED;
		}
	}
	__atomic_store_n(&vm->attention, 0, __ATOMIC_SEQ_CST);
	for (u32 i = 0; i < vm->ncpus; i++)	/* set again between the two looks? */
		if (vm->pause_report[i] || vm->kicked[i])
			__atomic_store_n(&vm->attention, 1, __ATOMIC_SEQ_CST);
	return 0;
}

/* Something to do whatever the time: an event, a window that is open, a reply. */
static bool has_work(const struct cpu *c)
{
	const struct cpu_more *m = c->more;

	return m->evt.valid || owes_instruction(c) || engine_event(c) || (m->mp_state == HVI_MP_HALTED && m->pending_debug) ||
	       m->shut_down || m->notify_injected || m->notify_step ||
	       (m->page->want_irq_window && exec_can_take_irq(c));
}

static u32 simple_exit(struct cpu *c, u32 reason, struct cpu **who)
{
	cpu_exit_record(c)->reason = reason;
	*who = c;
	return reason;
}

/*
 * The clock that deadlines are held against: the guest's TSC, but for what the
 * guest wrote to it since HVI_RUN began. A guest cannot put off a deadline.
 */
static u64 run_time(const struct cpu *c)
{
	return cpu_tsc(c, NULL) - (c->more->tsc_adjust - c->more->run_adjust);
}

u32 exec_run(struct vm *vm, u64 deadline, bool has_deadline, struct cpu **who)
{
	for (u32 i = 0; i < vm->ncpus; i++)
		vm->cpu[i]->more->run_adjust = vm->cpu[i]->more->tsc_adjust;
	for (;;) {
		struct cpu *next = NULL, *halted = NULL, *late = NULL;
		u64 least = 0, end;
		u32 reason;

		if (vm->attention) {
			reason = report_attention(vm, who);
			if (reason)
				return reason;
		}
		for (u32 i = 0; i < vm->ncpus; i++) {
			struct cpu *c = vm->cpu[i];
			u64 now = run_time(c);

			if (vm->paused[i])
				continue;
			if (c->more->mp_state == HVI_MP_HALTED && !halted)
				halted = c;
			if (has_work(c)) {
				next = c;
				break;
			}
			if (c->more->mp_state != HVI_MP_RUNNING)
				continue;
			if (has_deadline && (i64)(deadline - now) <= 0) {
				late = late ? late : c;
				continue;
			}
			if (!next || (i64)(now - least) < 0) {
				next = c;
				least = now;
			}
		}
		if (!next) {
			if (late)
				return simple_exit(late, HVI_EXIT_DEADLINE, who);
			if (!halted)
				return simple_exit(vm->cpu[0], HVI_EXIT_IDLE, who);
			if (!has_deadline)
				return simple_exit(halted, HVI_EXIT_IDLE, who);
			for (u32 i = 0; i < vm->ncpus; i++) {
				i64 skip = (i64)(deadline - run_time(vm->cpu[i]));

				if (skip > 0)
					vm->cpu[i]->more->tsc_offset += (u64)skip;
			}
			return simple_exit(halted, HVI_EXIT_DEADLINE, who);
		}
		/* A vCPU that slept does not lag behind those that ran. */
		if (next->more->mp_state == HVI_MP_RUNNING)
			for (u32 i = 0; i < vm->ncpus; i++)
				if (vm->cpu[i]->more->mp_state != HVI_MP_RUNNING &&
				    (i64)(least - run_time(vm->cpu[i])) > 0 && !has_work(next))
					vm->cpu[i]->more->tsc_offset += least - run_time(vm->cpu[i]);
		end = next->icount + QUANTUM;
		if (has_deadline) {
			i64 left = (i64)(deadline - run_time(next));

			if (left < QUANTUM)
				end = next->icount + (u64)(left > 0 ? left : 0);
		}
		reason = slice(next, end);
		if (reason) {
			*who = next;
			return reason;
		}
	}
}
