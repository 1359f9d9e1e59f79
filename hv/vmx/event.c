/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * event.c - events on their way into the guest (SDM 26.6) and what a fault
 * during their delivery becomes (table 6-5; SDM 27.2.4).
 *
 * An event of the engine is entered with every exception intercepted: one that
 * its delivery raises comes out with IDT-vectoring information (lost), any other
 * exit says that it was delivered. Only for HVI_EVENT_NOTIFY MTF makes that exit
 * come before the handler's first instruction.
 */
#include "../abi/rules.h"
#include "hvi_vmx.h"

static bool contributory(const struct event *e)
{
	return e->type == HVI_EVENT_EXCEPTION &&
	       (e->vector == 0 || (e->vector >= 10 && e->vector <= 13) || e->vector == 21);
}

static bool is_pf(const struct event *e)
{
	return e->type == HVI_EVENT_EXCEPTION && e->vector == VEC_PF;
}

/* SDM 25.5.7.3: a #VE counts as a page fault. None is raised during a delivery. */
static bool like_pf(const struct event *e)
{
	return is_pf(e) || (e->type == HVI_EVENT_EXCEPTION && e->vector == VEC_VE);
}

/* v->evt was being delivered when `second` was raised. */
void event_merge(struct vcpu *v, const struct event *second)
{
	struct event *first = &v->evt;
	bool df = first->type == HVI_EVENT_EXCEPTION && first->vector == VEC_DF;

	if (first->injected) {
		v->page->event.status = HVI_EVENT_LOST;
		v->notify_injected |= first->notify;
	}
	v->pass_exception = false;
	if (df && (contributory(second) || is_pf(second))) {
		first->valid = false;
		v->shut_down = true;
		return;
	}
	if ((contributory(first) && contributory(second)) ||
	    (like_pf(first) && (is_pf(second) || contributory(second)))) {
		if (is_pf(second))
			v->cr2 = second->cr2;
		*first = (struct event){
			.valid = true, .type = HVI_EVENT_EXCEPTION, .vector = VEC_DF, .has_err = true,
		};
		return;
	}
	*first = *second;
}

/* After each exit: is what was entered with it delivered, or must it go again? */
void event_vectoring(struct vcpu *v)
{
	u32 info = vmcs_read32(F_IDT_VECTORING);
	struct event *f = &v->flying;

	if (info & INTR_VALID) {
		u8 type = INTR_TYPE(info), vector = INTR_VECTOR(info);

		if (f->valid && f->type == type && f->vector == vector) {
			v->evt = *f;
		} else {
			v->evt = (struct event){
				.valid = true, .type = type, .vector = vector,
				.has_err = info & INTR_ERROR,
				.err = info & INTR_ERROR ? vmcs_read32(F_IDT_VECTORING_ERROR) : 0,
				.len = type >= HVI_EVENT_SOFT_INT ? vmcs_read32(F_EXIT_INSN_LEN) : 0,
			};
		}
		/* Blocking by NMI began with a delivery that has not happened. */
		if (type == HVI_EVENT_NMI)
			vmcs_write(F_INTERRUPTIBILITY, vmcs_read32(F_INTERRUPTIBILITY) & ~HVI_BLOCK_NMI);
	} else if (f->valid) {
		v->page->counters.events++;
		v->pass_exception = false;
		if (f->injected) {
			v->page->event.status = HVI_EVENT_DELIVERED;
			v->notify_injected |= f->notify;
		}
	}
	f->valid = false;
}

/* SDM 26.2.1.3: these have an error code, and the VM-entry field must say so. */
static bool has_error_code(u32 type, u32 vector)
{
	return type == HVI_EVENT_EXCEPTION && vector < 32 && (0x27d00u >> vector & 1);
}

/* Into the VMCS for the next entry. The guest may be in another mode than when the event was raised. */
void event_put(struct vcpu *v)
{
	struct event *e = &v->evt;
	u32 info = INTR_VALID | e->type << 8 | e->vector;
	bool real = !(vmcs_read(F_GUEST_CR0) & 1);

	if (e->set_cr2)
		v->cr2 = e->cr2;
	if (e->is_db) {
		/* SDM 17.2.3: B0-B3 tell of this #DB alone, the other bits are sticky. */
		v->dr[6] = (v->dr[6] & ~0xfull) | e->dr6;
		vmcs_write(F_GUEST_DR7, vmcs_read(F_GUEST_DR7) & ~(1ull << 13));
	}
	if (has_error_code(e->type, e->vector) && !real) {
		info |= INTR_ERROR;
		vmcs_write(F_ENTRY_ERROR_CODE, e->err & 0x7fff);
	}
	if (e->type >= HVI_EVENT_SOFT_INT)
		vmcs_write(F_ENTRY_INSN_LEN, e->len);
	vmcs_write(F_ENTRY_INTR_INFO, info);
	/* Nothing that is injected may meet the shadow of STI or MOV SS. */
	if (e->type == HVI_EVENT_EXTERNAL || e->type == HVI_EVENT_NMI)
		vmcs_write(F_INTERRUPTIBILITY,
			   vmcs_read32(F_INTERRUPTIBILITY) & ~(HVI_BLOCK_STI | HVI_BLOCK_MOV_SS));
	v->flying = *e;
	e->valid = false;
}

bool can_take_irq(struct vcpu *v)
{
	return (vmcs_read(F_GUEST_RFLAGS) & FLAG_IF) &&
	       !(vmcs_read32(F_INTERRUPTIBILITY) & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS)) &&
	       !v->evt.valid && !pending_debug() &&
	       (v->mp_state == HVI_MP_RUNNING || v->mp_state == HVI_MP_HALTED);
}

static bool can_take(struct vcpu *v, const struct hvi_event *e)
{
	if (!hvi_event_ok(e) || (v->mp_state != HVI_MP_RUNNING && v->mp_state != HVI_MP_HALTED))
		return false;
	return e->type != HVI_EVENT_EXTERNAL || can_take_irq(v);
}

/* An NMI waits until NMIs are unblocked (SDM 6.7.1), its event stays VALID; all else is taken at once. */
static void take_engine_event(struct vcpu *v)
{
	struct hvi_event e;

	take(&e, &v->page->event, sizeof(e));
	if (!(e.flags & HVI_EVENT_VALID))
		return;
	if (e.type == HVI_EVENT_NMI &&
	    (vmcs_read32(F_INTERRUPTIBILITY) & (HVI_BLOCK_STI | HVI_BLOCK_MOV_SS | HVI_BLOCK_NMI)))
		return;
	v->page->event.flags = e.flags & ~HVI_EVENT_VALID;
	if (!can_take(v, &e)) {
		v->page->event.status = HVI_EVENT_LOST;
		v->notify_injected |= !!(e.flags & HVI_EVENT_NOTIFY);
		return;
	}
	v->page->event.status = HVI_EVENT_PENDING;
	v->mp_state = HVI_MP_RUNNING;
	v->evt = (struct event){
		.valid = true, .injected = true, .notify = e.flags & HVI_EVENT_NOTIFY,
		.type = e.type, .vector = e.vector,
		.has_err = has_error_code(e.type, e.vector), .err = e.flags & HVI_EVENT_ERROR_CODE ? e.error_code : 0,
		.set_cr2 = e.flags & HVI_EVENT_CR2, .cr2 = e.cr2,
		.len = e.type >= HVI_EVENT_SOFT_INT ? e.insn_len : 0,
	};
}

/*
 * An event on its way that the guest can no longer take, since the engine has
 * changed the guest: it is lost. The entry would fail (SDM 26.3.1.4, 26.3.1.5).
 */
static void drop_misfit(struct vcpu *v)
{
	if (v->evt.type == HVI_EVENT_EXTERNAL ? vmcs_read(F_GUEST_RFLAGS) & FLAG_IF :
	    v->evt.type != HVI_EVENT_NMI || !(vmcs_read32(F_INTERRUPTIBILITY) & HVI_BLOCK_NMI))
		return;
	v->evt.valid = false;
	if (v->evt.injected) {
		v->page->event.status = HVI_EVENT_LOST;
		v->notify_injected |= v->evt.notify;
	}
}

/* What comes before the next instruction: a notice, the engine's event, an open window. */
int event_pending(struct vcpu *v)
{
	if (v->shut_down) {
		v->shut_down = false;
		v->mp_state = HVI_MP_SHUTDOWN;
		step_drop(v);
		return exit_engine(v, HVI_EXIT_SHUTDOWN);
	}
	if (unlikely(v->evt.valid))
		drop_misfit(v);
	if (!v->evt.valid && !v->notify_injected && !v->notify_step &&
	    (READ_ONCE(v->page->event.flags) & HVI_EVENT_VALID))
		take_engine_event(v);
	if (v->notify_injected) {
		v->notify_injected = false;
		return exit_engine(v, HVI_EXIT_INJECTED);
	}
	if (v->notify_step) {
		v->notify_step = false;
		return exit_engine(v, HVI_EXIT_STEP);
	}
	if (!v->evt.valid && READ_ONCE(v->page->want_irq_window) && can_take_irq(v))
		return exit_engine(v, HVI_EXIT_IRQ_WINDOW);
	return 0;
}
