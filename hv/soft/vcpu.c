/* SPDX-License-Identifier: MIT */
/*
 * vcpu.c - vCPUs as the ioctls see them: creation, HVI_RUN with the reply to
 * the exit before it, pause and kick, XSAVE images, MSRs.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "../abi/rules.h"
#include "native.h"
#include "vm.h"

struct cpu *vcpu_new(struct vm *vm, u32 index)
{
	struct cpu *c = aligned_alloc(64, (sizeof(*c) + 63) & ~63ul);
	struct cpu_more *m;

	if (!c)
		return NULL;
	memset(c, 0, sizeof(*c));
	c->more = m = calloc(1, sizeof(*m));
	c->jumps = malloc(JUMPS * sizeof(*c->jumps));
	if (!m || !c->jumps)
		goto fail;
	memset(c->jumps, 0xff, JUMPS * sizeof(*c->jumps));
	m->vm = vm;
	m->index = index;
	m->step_back = ~0u;
	m->ve_frame = NO_FRAME;
	m->page = mmap(NULL, HVI_VCPU_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m->page == MAP_FAILED) {
		m->page = NULL;
		goto fail;
	}
	m->single = malloc(sizeof(struct block) + 2 * sizeof(struct op));
	m->nothing = aligned_alloc(64, PAGE);
	if (!m->single || !m->nothing || mmu_init_cpu(c) || native_init(c))
		goto fail;
	memset(m->nothing, 0xff, PAGE);
	m->page->size = sizeof(struct hvi_vcpu);
	m->page->index = index;
	m->page->initial_apic_id = index;
	m->page->eptp_index = ~0u;
	return c;
fail:
	vcpu_free(c);
	return NULL;
}

void vcpu_free(struct cpu *c)
{
	if (c->more) {
		native_free(c);
		mmu_free_cpu(c);
		free(c->more->single);
		free(c->more->nothing);
		if (c->more->page)
			munmap(c->more->page, HVI_VCPU_SIZE);
	}
	free(c->jumps);
	free(c->more);
	free(c);
}

static struct cpu *vcpu_of(const struct vm *vm, u32 index)
{
	return index < vm->ncpus ? vm->cpu[index] : NULL;
}

/* ---- replies ------------------------------------------------------------------------------ */

/* What does not depend on state: refuse it before anything changes. */
static int reply_ok(struct cpu *c)
{
	const struct cpu_more *m = c->more;
	const struct hvi_reply *r = &m->page->reply;
	const struct hvi_exit *x = &m->page->exit;

	if (!hvi_reply_ok(r, x->reason, m->vm->spare_count))
		return -EINVAL;
	if (r->action == HVI_REPLY_SKIP && !hvi_can_skip(x->reason, x->insn_len, x->access))
		return -EINVAL;
	return r->action == HVI_REPLY_STEP && !view_ok(m->vm, r->step_view) ? -EINVAL : 0;
}

static void skip(struct cpu *c)
{
	struct cpu_more *m = c->more;

	c->rip += m->page->exit.insn_len;
	if (c->code_bits != 64)
		c->rip = c->code_bits == 16 ? (u16)c->rip : (u32)c->rip;
	c->icount++;
	c->rflags &= ~(u64)FL_RF;
	m->evt.valid = false;
	if (c->rflags & FL_TF)
		m->pending_debug |= 1u << 14;
	exec_finish_one(c);
}

static void skip_io(struct cpu *c)
{
	const struct hvi_exit *x = &c->more->page->exit;

	if ((x->flags & HVI_IO_IN) && !(x->flags & HVI_IO_STRING)) {
		u64 *rax = &c->gpr[HVI_RAX];

		if (x->size == 1)
			*rax = (*rax & ~0xffull) | (u8)x->value;
		else if (x->size == 2)
			*rax = (*rax & ~0xffffull) | (u16)x->value;
		else
			*rax = (u32)x->value;
	}
	skip(c);
}

static void one_instruction(struct cpu *c)
{
	c->more->one = true;
	c->more->one_rip = c->rip;
}

static struct override *override_for(struct cpu_more *m, u64 gfn)
{
	for (u32 i = 0; i < m->nov; i++)
		if (m->ov[i].gfn == gfn)
			return &m->ov[i];
	if (!m->nov)
		m->oldest = 0;
	if (m->nov < HVI_MAX_OVERRIDES)
		return &m->ov[m->nov++];
	return &m->ov[m->oldest++ % HVI_MAX_OVERRIDES];
}

static void supply(struct cpu *c, struct override *ov)
{
	const struct hvi_reply *r = &c->more->page->reply;
	bool spare = r->flags & HVI_REPLY_SPARE;

	ov->write = r->flags & HVI_REPLY_WRITE;
	for (int i = 0; i < HVI_EMULATE_RANGES; i++) {
		const struct hvi_emulate_range *e = &r->range[i];

		if (!e->len)
			continue;
		ov->range[ov->nranges++] = (struct supplied){
			.gpa = e->gpa, .len = e->len,
			.from = spare ? frame_host(c->more->vm, e->offset) + (e->gpa & 0xfff) : ov->bytes + e->offset,
		};
	}
	if (!spare)
		memcpy(ov->bytes, r->bytes, sizeof(ov->bytes));
}

static void add_override(struct cpu *c, enum override_kind kind)
{
	struct cpu_more *m = c->more;
	u64 gfn = m->page->exit.gpa >> 12;
	struct override *ov = override_for(m, gfn);

	ov->gfn = gfn;
	ov->kind = (u8)kind;
	ov->write = false;
	ov->nranges = 0;
	if (kind == OV_EMULATE)
		supply(c, ov);
	one_instruction(c);
}

static void resume(struct cpu *c)
{
	struct cpu_more *m = c->more;
	const struct hvi_exit *x = &m->page->exit;

	switch (x->reason) {
	case HVI_EXIT_EPT:
		add_override(c, OV_ALLOW);
		break;
	case HVI_EXIT_IO:
		skip_io(c);
		break;
	case HVI_EXIT_VMCALL:
		skip(c);
		break;
	case HVI_EXIT_EXCEPTION:
		m->pass_exception = true;
		break;
	case HVI_EXIT_MSR_READ: case HVI_EXIT_MSR_WRITE: case HVI_EXIT_CR_WRITE:
	case HVI_EXIT_DTR: case HVI_EXIT_XSETBV: case HVI_EXIT_CPUID: case HVI_EXIT_HLT:
		m->pass = (struct pass){
			.valid = true, .reason = x->reason, .number = x->number, .value = x->value,
		};
		one_instruction(c);
		break;
	}
}

static void take_reply(struct cpu *c)
{
	struct cpu_more *m = c->more;
	const struct hvi_reply *r = &m->page->reply;

	m->in_exit = false;
	if (r->flags & HVI_REPLY_NOTIFY) {
		m->step_notify = true;
		one_instruction(c);
	}
	switch (r->action) {
	case HVI_REPLY_RESUME:
		resume(c);
		break;
	case HVI_REPLY_SKIP:
		if (m->page->exit.reason == HVI_EXIT_IO)
			skip_io(c);
		else
			skip(c);
		break;
	case HVI_REPLY_RETRY:
		if (m->page->exit.reason == HVI_EXIT_EXCEPTION)
			m->evt.valid = false;
		break;
	case HVI_REPLY_EMULATE:
		add_override(c, OV_EMULATE);
		break;
	case HVI_REPLY_SCRATCH:
		add_override(c, OV_SCRATCH);
		break;
	case HVI_REPLY_STEP:
		if (m->page->exit.reason == HVI_EXIT_EXCEPTION)
			m->pass_exception = true;
		if (m->step_back == ~0u)
			m->step_back = m->view;
		m->view = r->step_view;
		one_instruction(c);
		break;
	case HVI_REPLY_INJECT:
		m->evt.valid = false;
		exec_drop_one(c);
		break;
	}
	m->page->reply.action = HVI_REPLY_RESUME;
	m->page->reply.flags = 0;
	mmu_setup(c);
}

/* ---- run ---------------------------------------------------------------------------------- */

static void finish_exit(struct cpu *c)
{
	struct cpu_more *m = c->more;
	struct hvi_exit *x = &m->page->exit;

	x->view = m->view;
	x->tsc = cpu_tsc(c, NULL);
	m->in_exit = true;
	m->page->counters.exits++;
}

/* Take what the engine changed in the pages. 0, an errno, or 1 when a state is invalid (*who has it). */
static int enter(struct vm *vm, struct cpu **who)
{
	for (u32 i = 0; i < vm->ncpus; i++) {
		struct cpu *c = vm->cpu[i];
		struct cpu_more *m = c->more;
		u32 view = m->page->view, keep = m->step_back != ~0u ? m->step_back : m->view;

		if (!hvi_event_ok(&m->page->event))
			return -EINVAL;
		if (view != keep && !view_ok(vm, view))
			return -EINVAL;
		if (view < HVI_MAX_VIEWS && !m->set[view] && mmu_add_set(c, view))
			return -ENOMEM;
		if (vm->last == c && m->in_exit) {
			int err = reply_ok(c);

			if (err)
				return err;
			if (m->page->reply.action == HVI_REPLY_STEP && !m->set[m->page->reply.step_view] &&
			    mmu_add_set(c, m->page->reply.step_view))
				return -ENOMEM;
		}
	}
	for (u32 i = 0; i < vm->ncpus; i++)
		vm->cpu[i]->epoch++;	/* all of them, also when the state of one is invalid: blocks are shared */
	for (u32 i = 0; i < vm->ncpus; i++) {
		struct cpu *c = vm->cpu[i];
		struct cpu_more *m = c->more;
		u32 dirty = m->page->dirty | (m->reload ? HVI_STATE_ALL : 0);

		if (m->step_back != ~0u) {
			m->step_back = m->page->view;
		} else if (m->view != m->page->view) {
			m->view = m->page->view;
			mmu_setup(c);
		}
		if (!dirty)
			continue;
		m->page->dirty = 0;
		m->reload = false;
		u32 bad = state_load(c, dirty);

		if (bad) {
			m->reload = true;
			memset(&m->page->exit, 0, sizeof(m->page->exit));
			m->page->exit.reason = HVI_EXIT_ENTRY_FAILED;
			m->page->exit.number = HVI_ENTRY_BAD_GUEST;
			m->page->exit.value = bad;
			*who = c;
			return 1;
		}
		if (m->one && m->one_rip != c->rip) {	/* the engine moved the guest elsewhere */
			exec_drop_one(c);
			mmu_setup(c);
		}
	}
	if (vm->last && vm->last->more->in_exit)
		take_reply(vm->last);
	return 0;
}

int vcpu_run(struct vm *vm, struct hvi_run *run)
{
	struct cpu *who = NULL;
	int err;

	if (run->flags & ~HVI_RUN_DEADLINE)
		return -EINVAL;
	vm->started = true;
	err = enter(vm, &who);
	if (err < 0)
		return err;
	if (!err) {
		exec_run(vm, run->deadline, run->flags & HVI_RUN_DEADLINE, &who);
		for (u32 i = 0; i < vm->ncpus; i++)
			state_store(vm->cpu[i]);
	}
	finish_exit(who);
	vm->last = who;
	run->vcpu = who->more->index;
	run->reason = who->more->page->exit.reason;
	return 0;
}

/* ---- pause, kick, fetch, reset ---------------------------------------------------------------- */

int vcpu_op(struct vm *vm, unsigned long request, const struct hvi_vcpu_op *op)
{
	u32 first = op->vcpu, last = op->vcpu;

	if (op->vcpu == HVI_ALL_VCPUS) {
		first = 0;
		last = vm->ncpus - 1;
	} else if (op->vcpu >= vm->ncpus) {
		return -EINVAL;
	}
	if (request == HVI_FETCH && (op->groups & ~HVI_STATE_ALL))
		return -EINVAL;
	for (u32 i = first; i <= last; i++) {
		struct cpu *c = vm->cpu[i];

		switch (request) {
		case HVI_PAUSE:
			if (!__atomic_exchange_n(&vm->paused[i], 1, __ATOMIC_SEQ_CST))
				vm->pause_report[i] = 1;
			break;
		case HVI_RESUME:
			__atomic_store_n(&vm->paused[i], 0, __ATOMIC_SEQ_CST);
			vm->pause_report[i] = 0;
			break;
		case HVI_KICK:
			if (i == first)
				vm->kicked[i] = 1;
			break;
		case HVI_FETCH:		/* every exit stores all of it */
			break;
		case HVI_RESET:
			state_reset(c);
			c->more->reload = false;
			c->more->page->dirty = 0;
			memset(&c->more->page->event, 0, sizeof(c->more->page->event));
			state_store(c);
			break;
		}
	}
	if (request == HVI_PAUSE || request == HVI_KICK)
		__atomic_store_n(&vm->attention, 1, __ATOMIC_SEQ_CST);
	return 0;
}

/* ---- XSAVE, MSRs -------------------------------------------------------------------------------- */

int vcpu_get_xsave(struct vm *vm, const struct hvi_xsave *a)
{
	struct cpu *c = vcpu_of(vm, a->vcpu);

	if (!c || a->size < NATIVE_XSAVE_SIZE)
		return -EINVAL;
	if (!a->data)
		return -EFAULT;
	memset((void *)(uintptr_t)a->data, 0, a->size);
	memcpy((void *)(uintptr_t)a->data, c->xsave, NATIVE_XSAVE_SIZE);
	return 0;
}

int vcpu_set_xsave(struct vm *vm, const struct hvi_xsave *a)
{
	struct cpu *c = vcpu_of(vm, a->vcpu);
	const u8 *from = (const void *)(uintptr_t)a->data;
	u64 bv;
	u32 mxcsr;

	if (!c || a->size < 576)
		return -EINVAL;
	if (!from)
		return -EFAULT;
	for (int i = 520; i < 576; i++)	/* XCOMP_BV and the reserved bytes of the header */
		if (from[i])
			return -EINVAL;
	memcpy(&bv, from + 512, 8);
	memcpy(&mxcsr, from + 24, 4);
	if ((bv & ~cpuid_host_xcr0()) || (mxcsr & ~0xffffu) || ((bv & 4) && a->size < NATIVE_XSAVE_SIZE))
		return -EINVAL;
	memset(c->xsave, 0, NATIVE_XSAVE_SIZE);
	memcpy(c->xsave, from, a->size < NATIVE_XSAVE_SIZE ? a->size : NATIVE_XSAVE_SIZE);
	native_xsave_loaded(c);
	return 0;
}

int vcpu_list_msrs(struct vm *vm, struct hvi_msrs *a)
{
	u32 list[128], n = msr_list(list, 128);
	struct hvi_msr_entry *e = (void *)(uintptr_t)a->entries;

	if (!vcpu_of(vm, a->vcpu))
		return -EINVAL;
	if (a->count < n) {
		a->count = n;
		return -E2BIG;
	}
	if (!e)
		return -EFAULT;
	for (u32 i = 0; i < n; i++)
		e[i] = (struct hvi_msr_entry){ .index = list[i] };
	a->count = n;
	return 0;
}

int vcpu_msrs(struct vm *vm, const struct hvi_msrs *a, bool set)
{
	struct cpu *c = vcpu_of(vm, a->vcpu);
	struct hvi_msr_entry *e = (void *)(uintptr_t)a->entries;

	if (!c || a->count > 4096)
		return -EINVAL;
	if (a->count && !e)
		return -EFAULT;
	if (set)
		for (u32 i = 0; i < a->count; i++)
			if (!msr_write_ok(c, e[i].index, e[i].value))
				return -EINVAL;
	for (u32 i = 0; i < a->count; i++) {
		u32 group;
		__u64 *field = state_msr_field(c, e[i].index, &group);
		u64 v = 0;
		bool pending = field && (c->more->page->dirty & group);

		if (!set) {
			if (!msr_read(c, NULL, e[i].index, &v))
				return -EINVAL;
			e[i].value = pending ? *field : v;
			continue;
		}
		if (field)
			*field = e[i].value;
		if (!pending)
			msr_set(c, e[i].index, e[i].value);
	}
	if (set) {
		c->more->page_tsc = cpu_tsc(c, NULL);
		cpu_mode_changed(c);
		mmu_flush_all(c);
	}
	return 0;
}

int vcpu_mtrr(struct vm *vm, struct hvi_mtrr *a)
{
	a->type = msr_mtrr_type(vm->cpu[0], a->gpa);
	return 0;
}
