// SPDX-License-Identifier: MIT
/*
 * entry.c - every rule of VM entry broken once through the vCPU page (SDM
 * 26.3.1, and what hvi asks of its own), and the event that no CPU could take.
 *
 *   entry [--soft LIBRARY]
 *
 * A state that breaks a rule must end in HVI_EXIT_ENTRY_FAILED with the name of
 * the field that breaks it, and leave the page as we wrote it; the state before
 * must then run to HLT. Whether it is the backend that refuses or the CPU, is
 * its own business. Exit code 0: so it was; 1: not; 2: bad usage; 3: no device.
 */
#define _GNU_SOURCE
#include <string.h>
#include "backend.h"

#define RAM	0x200000u
#define CODE	0x4000u
#define TABLES	0x1000u		/* identity mapping of the long mode guest */
#define PDPTES	0x5000u		/* of the guest with PAE paging */

static long hvi;
static struct hvi_vcpu *v, good;
static unsigned char *ram;
static unsigned failures, rules;

/* ---- states that enter ------------------------------------------------------------- */

static void real(void)
{
	for (int i = 0; i < HVI_SEGS; i++)
		v->seg[i] = (struct hvi_segment){ .limit = 0xffff, .access = 0x93 };
	v->seg[HVI_CS].access = 0x9b;
	v->tr = (struct hvi_segment){ .limit = 0xffff, .access = 0x8b };
	v->ldtr = (struct hvi_segment){ .limit = 0xffff, .access = 0x82 };
	v->gdtr = v->idtr = (struct hvi_table){ .limit = 0xffff };
	v->cr0 = 0x30;
	v->cr3 = v->cr4 = v->efer = 0;
	v->rip = CODE;
	v->rflags = 2;
}

static void protected(void)
{
	real();
	for (int i = 0; i < HVI_SEGS; i++)
		v->seg[i] = (struct hvi_segment){ .limit = 0xffffffff, .access = 0xc093, .selector = 16 };
	v->seg[HVI_CS] = (struct hvi_segment){ .limit = 0xffffffff, .access = 0xc09b, .selector = 8 };
	v->cr0 = 0x31;
}

static void pae(void)
{
	protected();
	memcpy(ram + PDPTES, &(__u64){ (TABLES + 0x2000) | 1 }, 8);
	v->cr3 = PDPTES;
	v->cr4 = 0x20;
	v->cr0 = 0x80000031;
}

static void v86(void)
{
	protected();
	for (int i = 0; i < HVI_SEGS; i++)
		v->seg[i] = (struct hvi_segment){ .base = 0x100 * 16, .limit = 0xffff, .access = 0xf3, .selector = 0x100 };
	v->rip = CODE - 0x1000;
	v->rflags = 0x23002;
}

static void longmode(void)
{
	protected();
	v->seg[HVI_CS] = (struct hvi_segment){ .limit = 0xffffffff, .access = 0xa09b, .selector = 8 };
	v->cr0 = 0x80010033;
	v->cr3 = TABLES;
	v->cr4 = 0x620;
	v->efer = 0xd01;
}

static void compat(void)
{
	longmode();
	v->seg[HVI_CS].access = 0xc09b;
}

/* ---- rules ---------------------------------------------------------------------------- */

struct rule {
	const char *what;
	void (*state)(void);
	__u32 field;
	const char *name;
	void (*spoil)(void);
	__u32 dirty;		/* groups that are said to be changed; 0: all */
};
#define RULE(text, state, field, ...) \
	{ text, state, HVI_FIELD_##field, #field, ({ void spoil_(void) { __VA_ARGS__; } spoil_; }), 0 }

#define SEGMENT_RULES(S, N) \
	RULE(N ": not accessed", longmode, GUEST_##S##_ACCESS, v->seg[HVI_##S].access = 0xc092), \
	RULE(N ": code that is not readable", longmode, GUEST_##S##_ACCESS, v->seg[HVI_##S].access = 0xc099), \
	RULE(N ": a system segment", longmode, GUEST_##S##_ACCESS, v->seg[HVI_##S].access = 0xc083), \
	RULE(N ": not present", longmode, GUEST_##S##_ACCESS, v->seg[HVI_##S].access = 0xc013), \
	RULE(N ": limit bits 11:0 with G", longmode, GUEST_##S##_ACCESS, v->seg[HVI_##S].limit = 0xfffff000), \
	RULE(N ": limit bits 31:20 without G", longmode, GUEST_##S##_ACCESS, v->seg[HVI_##S].access = 0x4093), \
	RULE(N ": base in virtual-8086 mode", v86, GUEST_##S##_BASE, v->seg[HVI_##S].base++), \
	RULE(N ": limit in virtual-8086 mode", v86, GUEST_##S##_LIMIT, v->seg[HVI_##S].limit--), \
	RULE(N ": access in virtual-8086 mode", v86, GUEST_##S##_ACCESS, v->seg[HVI_##S].access = 0x93)

static void complain(const struct rule *r, const char *what, unsigned long long have, unsigned long long want)
{
	printf("entry: FAIL: %s: %s %llx, should be %llx (%s)\n", r->what, what, have, want, r->name);
	failures++;
}

static long go(void)
{
	struct hvi_run run = { .flags = HVI_RUN_DEADLINE, .deadline = v->tsc + 100000000 };
	long n;

	v->reply.action = HVI_REPLY_INJECT;	/* no event: forget what was */
	do {
		n = hvi_call(hvi, HVI_RUN, &run);
	} while (n == -EINTR);
	return n < 0 ? n : (long)run.reason;
}

/* The state as it was when we made the VM, then one of the states above. */
static void set(void (*state)(void))
{
	memcpy((char *)v + __builtin_offsetof(struct hvi_vcpu, gpr), good.gpr,
	       __builtin_offsetof(struct hvi_vcpu, exit) - __builtin_offsetof(struct hvi_vcpu, gpr));
	memset(&v->event, 0, sizeof(v->event));
	v->interruptibility = v->pending_debug = 0;
	v->mp_state = HVI_MP_RUNNING;
	state();
	v->dirty = HVI_STATE_ALL;
}

/* In virtual-8086 mode HLT raises #GP (SDM vol. 3 20.2.7). */
static long good_exit(void (*state)(void))
{
	return state == v86 ? HVI_EXIT_EXCEPTION : HVI_EXIT_HLT;
}

static void enters(const char *what, void (*state)(void))
{
	long r;

	set(state);
	r = go();
	if (r == good_exit(state))
		return;
	printf("entry: FAIL: a good state after \"%s\": %s %ld (field %llx)\n", what, r < 0 ? "error" : "exit", r,
	       (unsigned long long)v->exit.value);
	failures++;
}

static void check(const struct rule *r)
{
	struct hvi_vcpu wrote;
	long e;

	rules++;
	set(r->state);
	if (r->dirty) {		/* on top of a state that has run */
		e = go();
		if (e != HVI_EXIT_HLT)
			complain(r, "exit before", (unsigned long long)e, HVI_EXIT_HLT);
		set(r->state);
		v->dirty = r->dirty;
	}
	r->spoil();
	wrote = *v;
	e = go();
	if (e != HVI_EXIT_ENTRY_FAILED)
		complain(r, "exit", (unsigned long long)e, HVI_EXIT_ENTRY_FAILED);
	else if (v->exit.number != HVI_ENTRY_BAD_GUEST)
		complain(r, "number", v->exit.number, HVI_ENTRY_BAD_GUEST);
	else if (v->exit.value != r->field)
		complain(r, "field", v->exit.value, r->field);
	else if (memcmp(wrote.gpr, v->gpr, __builtin_offsetof(struct hvi_vcpu, exit) - __builtin_offsetof(struct hvi_vcpu, gpr)))
		complain(r, "the page has changed", 0, 0);
	/* Nothing repaired: it must fail again, and then the good state must enter. */
	else if (go() != HVI_EXIT_ENTRY_FAILED || v->exit.value != r->field)
		complain(r, "second time: field", v->exit.value, r->field);
	enters(r->what, r->state);
	memset(ram + PDPTES, 0, 32);
}

static void all_rules(void)
{
	const struct rule list[] = {
		RULE("CR0: reserved bit", real, GUEST_CR0, v->cr0 |= 0x40),
		RULE("CR0: bit 32", real, GUEST_CR0, v->cr0 |= 1ull << 32),
		RULE("CR0: PG without PE", real, GUEST_CR0, v->cr0 |= 1ull << 31),
		RULE("CR0: NW without CD", longmode, GUEST_CR0, v->cr0 |= 1ull << 29),
		RULE("CR4: reserved bit", longmode, GUEST_CR4, v->cr4 |= 1 << 15),
		RULE("CR4: VMXE", longmode, GUEST_CR4, v->cr4 |= 1 << 13),
		RULE("CR4: bit 32", longmode, GUEST_CR4, v->cr4 |= 1ull << 32),
		RULE("CR4: long mode without PAE", longmode, GUEST_CR4, v->cr4 = 0x600),
		RULE("CR4: PCIDE outside of long mode", protected, GUEST_CR4, v->cr4 = 0x20020),
		RULE("EFER: reserved bit", longmode, GUEST_EFER, v->efer |= 2),
		RULE("EFER: LMA without LME", longmode, GUEST_EFER, v->efer = 0xc01),
		RULE("EFER: LMA without paging", longmode, GUEST_EFER, v->cr0 &= ~(1ull << 31)),
		RULE("EFER: LME and paging without LMA", longmode, GUEST_EFER, v->efer = 0x901),
		RULE("CR3: beyond physical addresses", longmode, GUEST_CR3, v->cr3 |= 1ull << 52),
		RULE("CR3: bit 63", longmode, GUEST_CR3, v->cr3 |= 1ull << 63),
		RULE("CR8: 16", longmode, GUEST_CR8, v->cr8 = 16),
		RULE("XCR0: no x87", longmode, GUEST_XCR0, v->xcr0 = 2),
		RULE("XCR0: AVX without SSE", longmode, GUEST_XCR0, v->xcr0 = 5),
		RULE("XCR0: bit 62", longmode, GUEST_XCR0, v->xcr0 |= 1ull << 62),
		RULE("DEBUGCTL: reserved bit", longmode, GUEST_DEBUGCTL, v->debugctl = 1 << 2),
		RULE("SYSENTER_ESP: not canonical", longmode, GUEST_SYSENTER_ESP, v->sysenter_esp = 1ull << 47),
		RULE("SYSENTER_EIP: not canonical", longmode, GUEST_SYSENTER_EIP, v->sysenter_eip = 1ull << 63),
		RULE("LSTAR: not canonical", longmode, GUEST_LSTAR, v->lstar = 0xffff7fffffffffff),
		RULE("CSTAR: not canonical", longmode, GUEST_CSTAR, v->cstar = 1ull << 60),
		RULE("KERNEL_GS_BASE: not canonical", longmode, GUEST_KERNEL_GS_BASE, v->kernel_gs_base = 1ull << 48),
		RULE("PAT: type 2", longmode, GUEST_PAT, v->pat = 0x0007040600070402),
		RULE("PAT: type 3", longmode, GUEST_PAT, v->pat = 0x0307040600070406),
		RULE("PAT: type 8", longmode, GUEST_PAT, v->pat = 0x0007080600070406),
		RULE("TR: in the LDT", longmode, GUEST_TR_SELECTOR, v->tr.selector |= 4),
		RULE("LDTR: in the LDT", longmode, GUEST_LDTR_SELECTOR, v->ldtr.selector |= 4),
		RULE("CS: base beyond 32 bits", longmode, GUEST_CS_BASE, v->seg[HVI_CS].base = 1ull << 32),
		RULE("SS: base beyond 32 bits", longmode, GUEST_SS_BASE, v->seg[HVI_SS].base = 1ull << 32),
		RULE("DS: base beyond 32 bits", longmode, GUEST_DS_BASE, v->seg[HVI_DS].base = 1ull << 40),
		RULE("ES: base beyond 32 bits", longmode, GUEST_ES_BASE, v->seg[HVI_ES].base = ~0ull),
		RULE("FS: base not canonical", longmode, GUEST_FS_BASE, v->seg[HVI_FS].base = 1ull << 47),
		RULE("GS: base not canonical", longmode, GUEST_GS_BASE, v->seg[HVI_GS].base = 1ull << 63),
		RULE("CS: a writable data segment at DPL 3", real, GUEST_CS_ACCESS, v->seg[HVI_CS].access = 0xf3),
		RULE("CS: read-only data", protected, GUEST_CS_ACCESS, v->seg[HVI_CS].access = 0xc091),
		RULE("CS: not accessed", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access = 0xa09a),
		RULE("CS: a system segment", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access = 0xa08b),
		RULE("CS: not present", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access = 0xa01b),
		RULE("CS: unusable", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access |= HVI_SEG_UNUSABLE),
		RULE("CS: L and D", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access |= 0x4000),
		RULE("CS: DPL is not that of SS", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access |= 0x60),
		RULE("CS: conforming, DPL above that of SS", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access |= 0x64),
		RULE("CS: limit bits 11:0 with G", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].limit = 0xfffffff0),
		RULE("CS: limit bits 31:20 without G", longmode, GUEST_CS_ACCESS, v->seg[HVI_CS].access = 0x209b),
		RULE("SS: read-only", protected, GUEST_SS_ACCESS, v->seg[HVI_SS].access = 0xc091),
		RULE("SS: code", longmode, GUEST_SS_ACCESS, v->seg[HVI_SS].access = 0xc09b),
		RULE("SS: DPL 3 in real mode", real, GUEST_SS_ACCESS,
		     { v->seg[HVI_SS].access = 0xf3; v->seg[HVI_CS].access = 0xfb; }),
		RULE("CS: at the base in virtual-8086 mode", v86, GUEST_CS_BASE, v->seg[HVI_CS].base = 0),
		SEGMENT_RULES(SS, "SS"), SEGMENT_RULES(DS, "DS"), SEGMENT_RULES(ES, "ES"),
		SEGMENT_RULES(FS, "FS"), SEGMENT_RULES(GS, "GS"),
		RULE("TR: base not canonical", longmode, GUEST_TR_BASE, v->tr.base = 1ull << 50),
		RULE("TR: not busy", longmode, GUEST_TR_ACCESS, v->tr.access = 0x89),
		RULE("TR: of 16 bits in long mode", longmode, GUEST_TR_ACCESS, v->tr.access = 0x83),
		RULE("TR: no system segment", longmode, GUEST_TR_ACCESS, v->tr.access = 0x9b),
		RULE("TR: not present", longmode, GUEST_TR_ACCESS, v->tr.access = 0x0b),
		RULE("TR: unusable", longmode, GUEST_TR_ACCESS, v->tr.access |= HVI_SEG_UNUSABLE),
		RULE("TR: limit bits 11:0 with G", longmode, GUEST_TR_ACCESS, { v->tr.access = 0x808b; v->tr.limit = 0x67; }),
		RULE("TR: limit bits 31:20 without G", longmode, GUEST_TR_ACCESS, v->tr.limit = 0xffffffff),
		RULE("LDTR: base not canonical", longmode, GUEST_LDTR_BASE, v->ldtr.base = 1ull << 62),
		RULE("LDTR: type", longmode, GUEST_LDTR_ACCESS, v->ldtr.access = 0x83),
		RULE("LDTR: no system segment", longmode, GUEST_LDTR_ACCESS, v->ldtr.access = 0x92),
		RULE("LDTR: not present", longmode, GUEST_LDTR_ACCESS, v->ldtr.access = 0x02),
		RULE("LDTR: limit bits 31:20 without G", longmode, GUEST_LDTR_ACCESS, v->ldtr.limit = 0xfff00000),
		RULE("GDTR: base not canonical", longmode, GUEST_GDTR_BASE, v->gdtr.base = 1ull << 47),
		RULE("IDTR: base not canonical", longmode, GUEST_IDTR_BASE, v->idtr.base = 1ull << 63),
		RULE("RIP: not canonical", longmode, GUEST_RIP, v->rip = 1ull << 47),
		RULE("RIP: beyond 32 bits in compatibility mode", compat, GUEST_RIP, v->rip |= 1ull << 32),
		RULE("RIP: beyond 32 bits in real mode", real, GUEST_RIP, v->rip |= 1ull << 40),
		RULE("RFLAGS: VM in long mode", longmode, GUEST_RFLAGS, v->rflags |= 1 << 17),
		RULE("RFLAGS: VM in real mode", real, GUEST_RFLAGS, {
			for (int i = 0; i < HVI_SEGS; i++)
				v->seg[i] = (struct hvi_segment){ .limit = 0xffff, .access = 0xf3 };
			v->rflags |= 1 << 17; }),
		RULE("PDPTE: reserved bit", pae, GUEST_PDPTE0, ram[PDPTES] |= 4),
		RULE("PDPTE: beyond physical addresses", pae, GUEST_PDPTE0, ram[PDPTES + 7] = 0x10),
		RULE("mp_state: no state", longmode, MP_STATE, v->mp_state = 5),
		/* Registers alone: here it is the CPU that refuses. */
		{ "RFLAGS: VM in long mode, GPR group alone", longmode, HVI_FIELD_GUEST_RFLAGS, "GUEST_RFLAGS",
		  ({ void s(void) { v->rflags |= 1 << 17; } s; }), HVI_STATE_GPR },
		{ "RIP: not canonical, GPR group alone", longmode, HVI_FIELD_GUEST_RIP, "GUEST_RIP",
		  ({ void s(void) { v->rip = 1ull << 47; } s; }), HVI_STATE_GPR },
		{ "RIP: beyond 32 bits, GPR group alone", protected, HVI_FIELD_GUEST_RIP, "GUEST_RIP",
		  ({ void s(void) { v->rip |= 1ull << 32; } s; }), HVI_STATE_GPR },
	};

	for (unsigned i = 0; i < sizeof(list) / sizeof(list[0]); i++)
		check(&list[i]);
}

/* ---- events ----------------------------------------------------------------------------- */

static void refused(const char *what, struct hvi_event e)
{
	long r;

	rules++;
	set(longmode);
	v->event = e;
	r = go();
	if (r != -EINVAL) {
		printf("entry: FAIL: event: %s: %ld, should be -EINVAL\n", what, r);
		failures++;
	}
	enters(what, longmode);
}

static void all_events(void)
{
	for (__u32 type = HVI_EVENT_SOFT_INT; type <= HVI_EVENT_SOFT_EXCEPTION; type++) {
		refused("software, of length 0", (struct hvi_event){ .flags = 1, .type = type, .vector = 3 });
		refused("software, of length 16", (struct hvi_event){ .flags = 1, .type = type, .vector = 3, .insn_len = 16 });
	}
	refused("reserved type", (struct hvi_event){ .flags = 1, .type = 1, .vector = 3 });
	refused("type 7", (struct hvi_event){ .flags = 1, .type = 7 });
	refused("type 8", (struct hvi_event){ .flags = 1, .type = 8 });
	refused("NMI that is no vector 2", (struct hvi_event){ .flags = 1, .type = HVI_EVENT_NMI, .vector = 3 });
	refused("exception 32", (struct hvi_event){ .flags = 1, .type = HVI_EVENT_EXCEPTION, .vector = 32 });
	refused("interrupt 256", (struct hvi_event){ .flags = 1, .type = HVI_EVENT_EXTERNAL, .vector = 256 });
}

int main(int argc, char **argv)
{
	static void (*const states[])(void) = { real, protected, pae, v86, longmode, compat };
	struct hvi_create create = { .vcpus = 1 };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };
	struct hvi_intercept hlt = { .kind = HVI_INTERCEPT_HLT, .mask = 1 };
	struct hvi_intercept gp = { .kind = HVI_INTERCEPT_EXCEPTION, .mask = 1 << 13 };

	if (argc == 3 && !strcmp(argv[1], "--soft")) {
		use_soft(argv[2]);
	} else if (argc != 1) {
		fprintf(stderr, "usage: entry [--soft LIBRARY]\n");
		return 2;
	}
	hvi = hvi_open();
	if (hvi < 0) {
		fprintf(stderr, "entry: /dev/hvi: %s\n", strerror((int)-hvi));
		return 3;
	}
	if (hvi_call(hvi, HVI_CREATE, &create) || hvi_call(hvi, HVI_ADD_MEMORY, &memory) ||
	    hvi_call(hvi, HVI_INTERCEPT, &hlt) || hvi_call(hvi, HVI_INTERCEPT, &gp)) {
		printf("entry: FAIL: no VM can be made\n");
		return 1;
	}
	v = hvi_map(hvi, HVI_MMAP_VCPU, HVI_VCPU_SIZE);
	ram = hvi_map(hvi, HVI_MMAP_RAM, RAM);
	if (!v || !ram) {
		printf("entry: FAIL: a VM cannot be mapped\n");
		return 1;
	}
	good = *v;
	memset(ram + CODE, 0xf4, 16);
	memcpy(ram + TABLES, &(__u64){ (TABLES + 0x1000) | 7 }, 8);
	memcpy(ram + TABLES + 0x1000, &(__u64){ (TABLES + 0x2000) | 7 }, 8);
	memcpy(ram + TABLES + 0x2000, &(__u64){ 0x87 }, 8);
	for (unsigned i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
		enters("nothing", states[i]);
	}
	all_rules();
	all_events();
	printf("entry: %u rules, %u failures\n", rules, failures);
	return failures ? 1 : 0;
}
