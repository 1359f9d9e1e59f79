/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * run.c - HVI_RUN: what the engine changed and answered is taken, then vCPUs
 * run until one exits to it. With several they take turns on this thread, a
 * slice each: what the engine sees is in one order.
 */
#include <linux/hrtimer.h>
#include <linux/sched/signal.h>
#include "../abi/rules.h"
#include "hvi_vmx.h"

#define LOOK_MS	10		/* longest stay in the guest */

u64 guest_tsc(const struct vcpu *v)
{
	return rdtsc() + v->tsc_offset;
}

/* ---- replies ------------------------------------------------------------------------------ */

/* The CPU does not tell the length of an instruction that an EPT violation stopped (SDM 27.2.5). */
static int skip_ok(struct vcpu *v, struct hvi_exit *x)
{
	if (!x->insn_len && x->reason == HVI_EXIT_EPT && !(x->access & (HVI_ACCESS_EVENT | HVI_ACCESS_EXEC))) {
		int len = guest_insn_length(v, x->access & HVI_ACCESS_WALK ? &x->gva : NULL);

		if (len < 0)
			return len;
		x->insn_len = len;
	}
	return hvi_can_skip(x->reason, x->insn_len, x->access) ? 0 : -EINVAL;
}

static int reply_ok(struct vcpu *v, struct answer *a)
{
	const struct hvi_reply *r = &a->reply;
	struct hvi_exit *x = &a->exit;

	if (!hvi_reply_ok(r, x->reason, v->vm->spare_count))
		return -EINVAL;
	if (r->action == HVI_REPLY_SKIP)
		return skip_ok(v, x);
	return r->action == HVI_REPLY_STEP && !view_ok(v->vm, r->step_view) ? -EINVAL : 0;
}

static void skip_reply(struct vcpu *v, const struct hvi_exit *x)
{
	u64 *rax = &v->gpr[HVI_RAX];

	if (x->reason == HVI_EXIT_IO && (x->flags & HVI_IO_IN) && !(x->flags & HVI_IO_STRING)) {
		if (x->size == 1)
			*rax = (*rax & ~0xffull) | (u8)x->value;
		else if (x->size == 2)
			*rax = (*rax & ~0xffffull) | (u16)x->value;
		else
			*rax = (u32)x->value;
	}
	skip(v, x->insn_len & 15);
}

static void one_instruction(struct vcpu *v)
{
	v->one = true;
	v->one_rip = vmcs_read(F_GUEST_RIP);
}

static void override(struct vcpu *v, const struct hvi_exit *x, enum override_kind kind, const struct hvi_reply *r)
{
	step_override(v, x->gpa >> PAGE_SHIFT, kind, x->access & HVI_ACCESS_WALK, r);
	one_instruction(v);
}

/* 0, or the reason of an exit that the resumed instruction makes at once. */
static int resume(struct vcpu *v, const struct hvi_exit *x, const struct hvi_reply *r)
{
	v->rip_len = x->insn_len & 15;
	switch (x->reason) {
	case HVI_EXIT_EPT:
		override(v, x, OV_ALLOW, r);
		return 0;
	case HVI_EXIT_IO: case HVI_EXIT_VMCALL:
		skip_reply(v, x);
		return 0;
	case HVI_EXIT_MSR_READ: return resume_msr(v, x->number, 0, false);
	case HVI_EXIT_MSR_WRITE: return resume_msr(v, x->number, x->value, true);
	case HVI_EXIT_CR_WRITE: return write_cr(v, x->number, x->value);
	case HVI_EXIT_XSETBV: return write_xcr(v, x->number, x->value);
	case HVI_EXIT_DTR:
		v->pass_dtr = true;
		return 0;
	case HVI_EXIT_CPUID:
		cpuid_answer(v);
		skip(v, v->rip_len);
		return 0;
	case HVI_EXIT_HLT: return do_hlt(v);
	default:
		return 0;
	}
}

static int take_reply(struct vcpu *v, const struct answer *a)
{
	const struct hvi_reply *r = &a->reply;
	const struct hvi_exit *x = &a->exit;
	int out = 0;

	v->page->reply.action = HVI_REPLY_RESUME;
	v->page->reply.flags = 0;
	v->in_exit = false;
	if (unlikely(r->flags & HVI_REPLY_NOTIFY)) {
		v->step_notify = true;
		one_instruction(v);
	}
	switch (r->action) {
	case HVI_REPLY_RESUME:
		out = resume(v, x, r);
		break;
	case HVI_REPLY_SKIP:
		skip_reply(v, x);
		break;
	case HVI_REPLY_RETRY:
		if (x->reason == HVI_EXIT_EXCEPTION)
			v->evt.valid = false;
		break;
	case HVI_REPLY_EMULATE:
		override(v, x, OV_EMULATE, r);
		break;
	case HVI_REPLY_SCRATCH:
		override(v, x, OV_SCRATCH, r);
		break;
	case HVI_REPLY_STEP:
		if (v->step_back == ~0u)
			v->step_back = v->view;
		v->view = r->step_view;
		one_instruction(v);
		break;
	case HVI_REPLY_INJECT:
		v->evt.valid = false;
		step_drop(v);
		break;
	}
	if (unlikely(v->nov))
		step_show(v);
	return out;
}

/* ---- what the engine changed -------------------------------------------------------------------- */

static int entry_failed(struct vcpu *v, u32 number, u32 field)
{
	struct hvi_exit *x = exit_record(v, HVI_EXIT_ENTRY_FAILED);

	x->number = number;
	x->value = field;
	return HVI_EXIT_ENTRY_FAILED;
}

/* Of a loaded vCPU: groups of its page. 0, or the reason of an exit. */
static int load_page(struct vcpu *v, u32 groups)
{
	u32 bad;

	v->reload = 0;
	v->entered = false;
	bad = state_load(v, groups);
	if (likely(!bad))
		return 0;
	v->reload = HVI_STATE_ALL;
	return entry_failed(v, HVI_ENTRY_BAD_GUEST, bad);
}

/* Of a loaded vCPU. 0, or the reason of an exit. */
static int apply(struct vcpu *v, const struct answer *a)
{
	u32 groups = READ_ONCE(v->page->dirty) | v->reload;
	int r = 0;

	if (v->step_back != ~0u)
		v->step_back = v->page_view;
	else
		v->view = v->page_view;
	if (v->controls_gen != v->vm->controls_gen)
		state_masks(v);
	if (groups) {
		v->page->dirty = 0;
		r = load_page(v, groups & HVI_STATE_ALL);
		if (r)
			return r;
		if (v->one && v->one_rip != vmcs_read(F_GUEST_RIP))
			step_drop(v);		/* the engine moved the guest elsewhere */
	}
	return v->vm->last == v && v->in_exit ? take_reply(v, a) : 0;
}

static void touch(struct vm *vm, u64 gpa)
{
	u32 index = ram_index(vm, gpa >> PAGE_SHIFT);

	if (index != NO_PAGE)
		ram_page(vm, index);
}

static int check_vcpu(struct vcpu *v, struct answer *a)
{
	struct vm *vm = v->vm;
	u32 keep = v->step_back != ~0u ? v->step_back : v->view;
	struct hvi_reply *r = &a->reply;
	int err;

	if (READ_ONCE(v->page->event.flags) & HVI_EVENT_VALID) {
		struct hvi_event e;

		take(&e, &v->page->event, sizeof(e));
		if (!hvi_event_ok(&e))
			return -EINVAL;
	}
	v->page_view = READ_ONCE(v->page->view);
	if (v->page_view != keep && !view_ok(vm, v->page_view))
		return -EINVAL;
	/* Page-directory pointers are read while nothing may sleep. */
	if ((READ_ONCE(v->page->dirty) | v->reload) & (HVI_STATE_CR | HVI_STATE_MSR))
		touch(vm, READ_ONCE(v->page->cr3));
	if (vm->last != v || !v->in_exit)
		return 0;
	take(&a->exit, &v->page->exit, sizeof(a->exit));
	if (a->exit.reason == HVI_EXIT_CR_WRITE)
		touch(vm, a->exit.number == 3 ? a->exit.value : READ_ONCE(v->page->cr3));
	r->action = READ_ONCE(v->page->reply.action);
	r->flags = READ_ONCE(v->page->reply.flags);
	if (r->action == HVI_REPLY_STEP) {
		r->step_view = READ_ONCE(v->page->reply.step_view);
	} else if (r->action == HVI_REPLY_EMULATE) {
		take(r->range, v->page->reply.range, sizeof(r->range));
		take(r->bytes, v->page->reply.bytes, sizeof(r->bytes));
	}
	err = reply_ok(v, a);
	if (err)
		return err;
	if (a->exit.reason == HVI_EXIT_EPT &&
	    (r->action == HVI_REPLY_RESUME || r->action == HVI_REPLY_EMULATE || r->action == HVI_REPLY_SCRATCH))
		return step_prepare(v, a->exit.gpa >> PAGE_SHIFT, r);
	return 0;
}

/* ---- into the guest --------------------------------------------------------------------------------- */

static void put_controls(struct vcpu *v)
{
	u32 primary = v->primary_now & ~(PRI_MTF | PRI_INT_WINDOW | PRI_NMI_WINDOW);
	u32 secondary = v->secondary_now, exceptions = (1u << VEC_DB) | (1u << VEC_AC) | (1u << VEC_MC);
	u32 flags = READ_ONCE(v->page->event.flags);

	exceptions |= v->vm->exception_exit;
	if (v->one || v->pass_dtr || (v->flying.valid && v->flying.notify))
		primary |= PRI_MTF;
	if ((v->flying.valid && v->flying.injected) || v->nov)
		exceptions = ~0u;	/* what a fault ends must not hold for its delivery */
	if (READ_ONCE(v->page->want_irq_window))
		primary |= PRI_INT_WINDOW;
	if ((flags & HVI_EVENT_VALID) && READ_ONCE(v->page->event.type) == HVI_EVENT_NMI)
		primary |= PRI_NMI_WINDOW;
	if (v->pass_dtr)
		secondary &= ~SEC_DTR;
	else if (v->vm->dtr_exit && (vmx_caps.secondary_allowed & SEC_DTR))
		secondary |= SEC_DTR;
	secondary = (secondary & ~SEC_SPP) | spp_load(v);
	if (primary != v->primary_now)
		vmcs_write(F_PRIMARY, v->primary_now = primary);
	if (secondary != v->secondary_now)
		vmcs_write(F_SECONDARY, v->secondary_now = secondary);
	if (exceptions != v->exception_now)
		vmcs_write(F_EXCEPTION_BITMAP, v->exception_now = exceptions);
}

/* SDM 26.3.1.5: with the shadow of STI or MOV SS, BS must say what TF says. */
static void fix_pending_debug(struct vcpu *v)
{
	u64 pending, should;

	if (likely(!(vmcs_read32(F_INTERRUPTIBILITY) & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS))))
		return;
	pending = vmcs_read(F_PENDING_DEBUG);
	should = (vmcs_read(F_GUEST_RFLAGS) & FLAG_TF) && !(v->debugctl & 2) ? pending | 0x4000 : pending & ~0x4000ull;
	if (should != pending)
		vmcs_write(F_PENDING_DEBUG, should);
}

static void invalidate(struct vcpu *v, u64 eptp)
{
	int cpu = raw_smp_processor_id();

	if (ept_test_stale(&v->vm->view[v->view], cpu))
		ept_invalidate(v, ept_pointer(v->vm->view[v->view].root));
	if (v->nov && v->priv_flush) {
		ept_invalidate(v, eptp);
		v->priv_flush = false;
	}
	if (v->flush_vpid) {
		struct {
			u64 vpid, gva;
		} d = { v->vpid, 0 };

		asm volatile("invvpid %0, %1" : : "m" (d), "r" (1ul) : "cc", "memory");
		v->flush_vpid = false;
	}
}

/*
 * The deadline was said in guest TSC; it comes no later for a guest that turns
 * its clock back.
 */
static s64 ticks_left(const struct vcpu *v)
{
	return (s64)(v->deadline - rdtsc());
}

/* A reply lets one instruction run: no deadline comes before it. */
static bool owes_instruction(const struct vcpu *v)
{
	return (v->one || v->pass_dtr) && v->mp_state == HVI_MP_RUNNING;
}

static bool is_late(const struct vcpu *v)
{
	return v->vm->has_deadline && !owes_instruction(v) && ticks_left(v) <= 0;
}

/*
 * At most LOOK_MS: Bochs 3.0 keeps host interrupts from a guest that spins with
 * IF clear since before the entry (its setEFlags unmasks them on a change of IF
 * alone). On a CPU it costs an exit in 10 ms.
 */
static u32 timer_ticks(struct vcpu *v)
{
	u64 ticks = v->vm->ncpus > 1 ? SLICE_TICKS : (u64)tsc_khz * LOOK_MS;

	if (v->vm->has_deadline && !owes_instruction(v)) {
		s64 left = ticks_left(v);

		ticks = left > 0 ? min_t(u64, left, ticks) : 0;
	}
	return (ticks >> vmx_caps.timer_shift) + (ticks ? 1 : 0);
}

/* Interrupts are off. The exit reason, with REASON_ENTRY_FAILED; ~0 when the instruction itself failed. */
static u32 enter(struct vcpu *v, u64 eptp)
{
	u32 reason;

	if (v->evt.valid)
		event_put(v);
	put_controls(v);
	fix_pending_debug(v);
	if (unlikely(v->ve_info || v->nviews))
		ve_enter(v, eptp);
	if (eptp != v->eptp_now)
		vmcs_write(F_EPTP, v->eptp_now = eptp);
	invalidate(v, eptp);
	vcpu_refresh_host(v);
	load_debug_registers(v);
	vmcs_write(F_PREEMPTION_TIMER, timer_ticks(v));
	native_write_cr2(v->cr2);
	if (unlikely(hvi_vmx_enter(v->gpr, (vmx_caps.verw ? ENTER_VERW : 0) | (v->launched ? ENTER_LAUNCHED : 0))))
		return ~0u;
	reason = vmcs_read32(F_EXIT_REASON);
	/* An entry that fails while it loads the guest does not launch the VMCS (SDM 26.8). */
	if (likely(!(reason & REASON_ENTRY_FAILED)))
		v->launched = v->entered = true;
	v->cr2 = native_read_cr2();
	if (unlikely(v->nviews))
		ve_follow(v);
	if (unlikely(v->flying.valid && !(reason & REASON_ENTRY_FAILED)))
		vmcs_write(F_ENTRY_INTR_INFO, 0);
	handle_host_events(v, reason);
	return reason;
}

/*
 * A state that was never entered is the engine's, and stays as it wrote it.
 * Where the guest has run since, the VMCS has the state, to be stored.
 */
static int failed(struct vcpu *v, u32 reason)
{
	u32 number = reason == ~0u ? vmcs_read32(F_INSN_ERROR) : reason & 0xffff;
	u32 field = check_failed_entry(v, number);

	vmcs_write(F_ENTRY_INTR_INFO, 0);
	if (v->flying.valid && v->flying.injected)
		v->page->event.status = HVI_EVENT_LOST;
	v->flying.valid = false;
	if (!v->entered)
		v->reload = HVI_STATE_ALL;
	return entry_failed(v, number, field);
}

static bool must_leave(struct vm *vm)
{
	return READ_ONCE(vm->attention) || atomic_read(&vm->waiters) || signal_pending(current) || need_resched();
}

/* Nothing but an event makes a halted vCPU run. */
static bool runnable(struct vcpu *v)
{
	if (v->mp_state == HVI_MP_HALTED && (pending_debug() || v->evt.valid))
		v->mp_state = HVI_MP_RUNNING;
	return v->mp_state == HVI_MP_RUNNING;
}

/* 0: look around and come again; > 0: a reason, EXIT_FILL; -EAGAIN: step_more. */
static int slice(struct vcpu *v)
{
	struct vm *vm = v->vm;
	u64 end = rdtsc() + (owes_instruction(v) ? 0 : SLICE_TICKS), eptp;
	u32 reason;
	int r;

	for (;;) {
		r = event_pending(v);
		if (r)
			return r;
		if (!runnable(v) || must_leave(vm))
			return 0;
		if (!v->evt.valid) {
			if (is_late(v) ||
			    (vm->ncpus > 1 && !owes_instruction(v) && (s64)(end - rdtsc()) <= 0))
				return 0;
		}
		r = step_enter(v, &eptp);
		if (r)
			return r;
		local_irq_disable();
		if (must_leave(vm)) {
			local_irq_enable();
			return 0;
		}
		reason = enter(v, eptp);
		local_irq_enable();
		if (unlikely(reason & REASON_ENTRY_FAILED))
			return failed(v, reason);
		r = handle_exit(v, reason);
		if (r)
			return r;
		v->page->counters.internal_exits++;
	}
}

/* ---- which vCPU, how long ------------------------------------------------------------------------------ */

static int report_attention(struct vm *vm, struct vcpu **who)
{
	u32 i;

	WRITE_ONCE(vm->attention, 0);
	smp_mb();
	for (i = 0; i < vm->ncpus; i++)
		if (vm->pause_report[i] || vm->kicked[i]) {
			vm->pause_report[i] = vm->kicked[i] = 0;
			WRITE_ONCE(vm->attention, 1);	/* there may be more: looked at in the next run */
			*who = vm->cpu[i];
			return exit_engine(*who, HVI_EXIT_PAUSED);
		}
	return 0;
}

/* Of a vCPU that is put away. */
static bool has_work(const struct vcpu *v)
{
	const struct hvi_event *e = &v->page->event;

	return v->evt.valid || owes_instruction(v) || v->shut_down || v->notify_injected || v->notify_step ||
	       (v->mp_state == HVI_MP_HALTED && v->debug_pending) ||
	       ((e->flags & HVI_EVENT_VALID) && (e->type != HVI_EVENT_NMI || v->nmi_open)) ||
	       (v->page->want_irq_window && v->irq_open);
}

/*
 * Whose turn it is. One that a reply lets run an instruction comes first, and
 * then only for that one: what it sees of a page may be a copy, which nobody
 * else must write to meanwhile.
 */
static struct vcpu *pick(struct vm *vm, struct vcpu **late, struct vcpu **halted)
{
	u32 first = vm->last && owes_instruction(vm->last) ? vm->last->index : vm->turn, k;

	*late = *halted = NULL;
	for (k = 0; k < vm->ncpus; k++) {
		u32 i = (first + k) % vm->ncpus;
		struct vcpu *v = vm->cpu[i];

		if (vm->paused[i])
			continue;
		if (v->mp_state == HVI_MP_HALTED && !*halted)
			*halted = v;
		if (has_work(v)) {
			vm->turn = i + 1;
			return v;
		}
		if (v->mp_state != HVI_MP_RUNNING)
			continue;
		if (is_late(v)) {
			if (!*late)
				*late = v;
			continue;
		}
		vm->turn = i + 1;
		return v;
	}
	return NULL;
}

/*
 * The VM's lock again; -EINTR when a signal waits. A thread that is killed does
 * not wait for it: what another does under it may take its time.
 */
static int relock(struct vm *vm)
{
	vm->lock_lost = mutex_lock_killable(&vm->lock);
	return vm->lock_lost || signal_pending(current) ? -EINTR : 0;
}

/* All halted: sleep to the deadline. 0: look again; -EINTR. */
static int wait_deadline(struct vm *vm, struct vcpu *v)
{
	s64 left = ticks_left(v);
	u64 ns;

	if (left <= 0)
		return 0;
	ns = mul_u64_u32_div(min_t(u64, left, (u64)tsc_khz * 1000 * 3600), 1000000, tsc_khz);
	mutex_unlock(&vm->lock);
	wait_event_interruptible_hrtimeout(vm->wake, READ_ONCE(vm->attention) || atomic_read(&vm->waiters), ns_to_ktime(ns));
	return relock(vm);
}

/* Between slices, with nothing loaded. -EINTR when a signal waits. */
static int look_around(struct vm *vm)
{
	cond_resched();
	if (atomic_read(&vm->waiters)) {
		mutex_unlock(&vm->lock);
		wait_event_interruptible(vm->wake, !atomic_read(&vm->waiters));
		return relock(vm);
	}
	return signal_pending(current) ? -EINTR : 0;
}

/* The vCPU on this CPU; NULL: none. Its page is filled in before it is put away. */
static void put(struct vcpu **on)
{
	struct vcpu *v = *on;

	if (!v)
		return;
	state_store(v);
	v->irq_open = v->page->irq_ready;
	v->nmi_open = !(vmcs_read32(F_INTERRUPTIBILITY) & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS | HVI_BLOCK_NMI));
	v->debug_pending = pending_debug();
	vcpu_put(v);
	*on = NULL;
}

static int switch_to(struct vcpu **on, struct vcpu *v)
{
	int err;

	if (*on == v)
		return 0;
	put(on);
	err = vcpu_load(v);
	if (err)
		return err;
	*on = v;
	if (unlikely(v->nov))
		step_show(v);	/* others may have written to the pages */
	return 0;
}

static int execute(struct vm *vm, struct vcpu **on, struct vcpu **who)
{
	struct vcpu *v, *late, *halted;
	int r;

	for (;;) {
		if (READ_ONCE(vm->attention)) {
			r = report_attention(vm, who);
			if (r)
				return r;
		}
		if (vm->ncpus == 1 && *on && !vm->paused[0] && (*on)->mp_state == HVI_MP_RUNNING && !must_leave(vm) &&
		    !is_late(*on)) {
			v = *on;
		} else {
			put(on);
			r = look_around(vm);
			if (r)
				return r;
			v = pick(vm, &late, &halted);
			if (!v) {
				*who = late ? late : halted ? halted : vm->cpu[0];
				if (late)
					return exit_engine(late, HVI_EXIT_DEADLINE);
				if (!halted || !vm->has_deadline)
					return exit_engine(*who, HVI_EXIT_IDLE);
				if (ticks_left(halted) <= 0)
					return exit_engine(halted, HVI_EXIT_DEADLINE);
				r = wait_deadline(vm, halted);
				if (r)
					return r;
				continue;
			}
			r = switch_to(on, v);
			if (r)
				return r;
			if (v->controls_gen != vm->controls_gen)
				state_masks(v);
			if (unlikely(v->reload)) {	/* HVI_RESET or HVI_SET_MSRS came in between */
				*who = v;
				r = load_page(v, v->reload);
				if (r)
					return r;
			}
		}
		r = slice(v);
		if (r == EXIT_FILL) {
			u64 gfn = v->fill_gfn;

			put(on);
			r = ept_fill(vm, v->view, gfn);
			if (r)
				return r;
			r = switch_to(on, v);
		} else if (r == -EAGAIN) {
			put(on);
			r = step_more(v);
			if (!r)
				r = switch_to(on, v);
		} else if (r) {
			*who = v;
		}
		if (r)
			return r;
	}
}

/* With the VM's lock, unless vm->lock_lost. */
static int run_locked(struct vm *vm, struct hvi_run *a)
{
	struct vcpu *on = NULL, *who = NULL;
	int r = 0;
	u64 gap;
	u32 i;

	for (i = 0; i < vm->ncpus && !r; i++)
		r = check_vcpu(vm->cpu[i], &vm->answer);
	if (r)
		return r;
	vm->has_deadline = a->flags & HVI_RUN_DEADLINE;
	/* What the engine did in between took the guest no time. */
	for (i = 0, gap = rdtsc() - vm->stopped_at; i < vm->ncpus; i++)
		vm->cpu[i]->tsc_offset -= gap;
	for (i = 0; i < vm->ncpus && !r; i++) {
		struct vcpu *v = vm->cpu[i];

		if (vm->ncpus > 1 && !READ_ONCE(v->page->dirty) && !v->reload && v->view == v->page_view &&
		    !(vm->last == v && v->in_exit) && v->step_back == ~0u)
			continue;
		r = switch_to(&on, v);
		if (!r)
			r = apply(v, &vm->answer);
		if (r > 0)
			who = v;
	}
	for (i = 0; i < vm->ncpus; i++)
		vm->cpu[i]->deadline = a->deadline - vm->cpu[i]->tsc_offset;
	if (!r)
		r = execute(vm, &on, &who);
	/* An entry that failed leaves the page as the engine wrote it. */
	if (r == HVI_EXIT_ENTRY_FAILED && on && on->reload) {
		vcpu_put(on);
		on = NULL;
	}
	put(&on);
	vm->stopped_at = rdtsc();
	/* Where no handler of a signal runs (the freezer, a debugger), the call goes on by itself. */
	if (r < 0)
		return r == -EINTR ? -ERESTARTNOHAND : r;
	/* A vCPU that slept was put away before; its clock went on. */
	for (i = 0; i < vm->ncpus; i++) {
		struct vcpu *v = vm->cpu[i];

		if (likely(!v->reload))
			v->page->tsc = v->page_tsc = vm->stopped_at + v->tsc_offset;
	}
	who->page->exit.view = who->view;
	who->page->exit.tsc = vm->stopped_at + who->tsc_offset;
	who->page->counters.exits++;
	who->in_exit = true;
	vm->last = who;
	a->vcpu = who->index;
	a->reason = r;
	return 0;
}

int run(struct vm *vm, struct hvi_run *a)
{
	int r = vm_lock(vm);

	if (r)
		return r;
	if (!vm->ncpus || (a->flags & ~HVI_RUN_DEADLINE)) {
		r = -EINVAL;
	} else if (vm->runner) {	/* it has made room for us, but one thread at a time runs a VM */
		r = -EBUSY;
	} else {
		vm->started = true;
		vm->lock_lost = false;
		WRITE_ONCE(vm->runner, current);
		r = run_locked(vm, a);
		WRITE_ONCE(vm->runner, NULL);
		if (vm->lock_lost)
			return r;
	}
	vm_unlock(vm);
	return r;
}

/* ---- pause, kick, fetch, reset ---------------------------------------------------------------- */

/* HVI_PAUSE, HVI_RESUME and HVI_KICK come from any thread, without the VM's lock. */
int vcpu_op(struct vm *vm, unsigned int request, const struct hvi_vcpu_op *op)
{
	u32 first = op->vcpu, last = op->vcpu, i;

	if (op->vcpu == HVI_ALL_VCPUS) {
		first = 0;
		last = vm->ncpus - 1;
	} else if (op->vcpu >= vm->ncpus) {
		return -EINVAL;
	}
	if (request == HVI_FETCH && (op->groups & ~HVI_STATE_ALL))
		return -EINVAL;
	for (i = first; i <= last; i++) {
		switch (request) {
		case HVI_PAUSE:
			if (!xchg(&vm->paused[i], 1))
				WRITE_ONCE(vm->pause_report[i], 1);
			break;
		case HVI_RESUME:
			WRITE_ONCE(vm->paused[i], 0);
			WRITE_ONCE(vm->pause_report[i], 0);
			break;
		case HVI_KICK:
			if (i == first)
				WRITE_ONCE(vm->kicked[i], 1);
			break;
		case HVI_FETCH:		/* every exit stores all of it */
			break;
		case HVI_RESET:
			memset(&vm->cpu[i]->page->event, 0, sizeof(vm->cpu[i]->page->event));
			state_reset(vm->cpu[i]);
			break;
		}
	}
	if (request == HVI_PAUSE || request == HVI_KICK) {
		struct task_struct *runner;

		smp_mb();
		WRITE_ONCE(vm->attention, 1);
		rcu_read_lock();	/* it may end its run, and exit, meanwhile */
		runner = READ_ONCE(vm->runner);
		if (runner)
			kick_process(runner);
		rcu_read_unlock();
		wake_up(&vm->wake);
	}
	return 0;
}
