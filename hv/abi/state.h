/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * state.h - which field of a vCPU page breaks a rule of VM entry: SDM vol. 3
 * 26.3.1 for a CPU with unrestricted guest, and what hvi itself asks of a
 * state. Both backends refuse the same states and name the same field.
 *
 * Bits that both leave out when they load a page cannot break a rule: reserved
 * bits of RFLAGS, DR6, DR7, interruptibility and pending_debug, bits 11:8 and
 * 31:17 of access rights, bits 31:16 of table limits, 63:32 of FMASK, TSC_AUX
 * and SYSENTER_CS.
 */
#ifndef HVI_STATE_H
#define HVI_STATE_H

#include "hvi.h"

/* What a vCPU may have; from its CPUID. */
struct hvi_limits {
	__u64 cr4, xcr0;
	__u32 phys_bits;
};

#define HVI_EFER_LME	(1ull << 8)
#define HVI_EFER_LMA	(1ull << 10)
#define HVI_EFER_BITS	0xd01ull	/* SCE, LME, LMA, NXE */
#define HVI_CR0_BITS	0xe005003full
#define HVI_CR0_PE	1ull
#define HVI_CR0_PG	(1ull << 31)
#define HVI_CR4_PAE	(1ull << 5)
#define HVI_CR4_PCIDE	(1ull << 17)
#define HVI_RFLAGS_VM	(1ull << 17)

/* 48 bits: no guest gets LA57. */
static inline int hvi_canonical(__u64 a)
{
	return (__u64)((__s64)(a << 16) >> 16) == a;
}

static inline int hvi_usable(const struct hvi_segment *s)
{
	return !(s->access & HVI_SEG_UNUSABLE);
}

static inline __u32 hvi_dpl(const struct hvi_segment *s)
{
	return s->access >> 5 & 3;
}

/* G must be 0 where limit bits 11:0 are not all 1, and 1 where one of 31:20 is. */
static inline int hvi_limit_ok(const struct hvi_segment *s)
{
	return s->access & (1u << 15) ? (s->limit & 0xfff) == 0xfff : !(s->limit >> 20);
}

/* 26.3.1.1, and XCR0, CR8. */
static inline __u32 hvi_bad_registers(const struct hvi_vcpu *p, const struct hvi_limits *l)
{
	int lma = !!(p->efer & HVI_EFER_LMA), i;

	if ((p->cr0 & ~HVI_CR0_BITS) || (p->cr0 & (HVI_CR0_PG | HVI_CR0_PE)) == HVI_CR0_PG ||
	    (p->cr0 >> 29 & 3) == 1)		/* NW without CD */
		return HVI_FIELD_GUEST_CR0;
	if (p->cr4 & ~l->cr4)
		return HVI_FIELD_GUEST_CR4;
	if ((p->efer & ~HVI_EFER_BITS) || lma != ((p->efer & HVI_EFER_LME) && (p->cr0 & HVI_CR0_PG)))
		return HVI_FIELD_GUEST_EFER;
	if (lma ? !(p->cr4 & HVI_CR4_PAE) : !!(p->cr4 & HVI_CR4_PCIDE))
		return HVI_FIELD_GUEST_CR4;
	if (p->cr3 >> l->phys_bits)
		return HVI_FIELD_GUEST_CR3;
	if (p->cr8 > 15)
		return HVI_FIELD_GUEST_CR8;
	if (!(p->xcr0 & 1) || (p->xcr0 & ~l->xcr0) || (p->xcr0 & 6) == 4 ||
	    ((p->xcr0 & 0xe0) && (p->xcr0 & 0xe6) != 0xe6))	/* SDM vol. 1, 13.3 */
		return HVI_FIELD_GUEST_XCR0;
	if (p->debugctl & ~0x1ffc3ull)
		return HVI_FIELD_GUEST_DEBUGCTL;
	if (!hvi_canonical(p->sysenter_esp))
		return HVI_FIELD_GUEST_SYSENTER_ESP;
	if (!hvi_canonical(p->sysenter_eip))
		return HVI_FIELD_GUEST_SYSENTER_EIP;
	if (!hvi_canonical(p->lstar))
		return HVI_FIELD_GUEST_LSTAR;
	if (!hvi_canonical(p->cstar))
		return HVI_FIELD_GUEST_CSTAR;
	if (!hvi_canonical(p->kernel_gs_base))
		return HVI_FIELD_GUEST_KERNEL_GS_BASE;
	for (i = 0; i < 64; i += 8)		/* UC WC WT WP WB UC- */
		if ((p->pat >> i & 0xff) > 7 || !(0xf3 >> (p->pat >> i & 7) & 1))
			return HVI_FIELD_GUEST_PAT;
	return 0;
}

/* 26.3.1.2 of a guest in virtual-8086 mode. */
static inline __u32 hvi_bad_v86(const struct hvi_vcpu *p)
{
	__u32 i;

	for (i = 0; i < HVI_SEGS; i++) {
		const struct hvi_segment *s = &p->seg[i];

		if (s->base != (__u64)s->selector << 4)
			return HVI_FIELD_GUEST_ES_BASE + 2 * i;
		if (s->limit != 0xffff)
			return HVI_FIELD_GUEST_ES_LIMIT + 2 * i;
		if ((s->access & 0x1f0ff) != 0xf3)
			return HVI_FIELD_GUEST_ES_ACCESS + 2 * i;
	}
	return 0;
}

static inline int hvi_cs_ok(const struct hvi_vcpu *p)
{
	const struct hvi_segment *cs = &p->seg[HVI_CS];
	__u32 type = cs->access & 15, dpl = hvi_dpl(cs), cpl = hvi_dpl(&p->seg[HVI_SS]);

	if ((cs->access & 0x10090) != 0x90 || !hvi_limit_ok(cs))	/* S, P, usable */
		return 0;
	if ((p->efer & HVI_EFER_LMA) && (cs->access & 0x6000) == 0x6000)	/* L and D */
		return 0;
	switch (type) {
	case 3:
		return !dpl;
	case 9: case 11:
		return dpl == cpl;
	case 13: case 15:
		return dpl <= cpl;
	default:
		return 0;
	}
}

static inline int hvi_ss_ok(const struct hvi_vcpu *p)
{
	const struct hvi_segment *ss = &p->seg[HVI_SS];

	if (hvi_dpl(ss) && ((p->seg[HVI_CS].access & 15) == 3 || !(p->cr0 & HVI_CR0_PE)))
		return 0;
	/* Writable data, accessed. */
	return !hvi_usable(ss) || ((ss->access & 0x9b) == 0x93 && hvi_limit_ok(ss));
}

static inline int hvi_data_ok(const struct hvi_segment *s)
{
	if (!hvi_usable(s))
		return 1;
	/* Accessed; code must be readable. */
	return (s->access & 0x91) == 0x91 && (s->access & 10) != 8 && hvi_limit_ok(s);
}

/* 26.3.1.2, and the bases of 26.3.1.3. */
static inline __u32 hvi_bad_segments(const struct hvi_vcpu *p)
{
	int lma = !!(p->efer & HVI_EFER_LMA);
	__u32 i, bad, type = p->tr.access & 15;

	if (p->tr.selector & 4)
		return HVI_FIELD_GUEST_TR_SELECTOR;
	if (hvi_usable(&p->ldtr) && (p->ldtr.selector & 4))
		return HVI_FIELD_GUEST_LDTR_SELECTOR;
	if (p->rflags & HVI_RFLAGS_VM) {
		bad = hvi_bad_v86(p);
		if (bad)
			return bad;
	} else {
		for (i = 0; i < HVI_SEGS; i++) {
			const struct hvi_segment *s = &p->seg[i];

			if (i >= HVI_FS ? !hvi_canonical(s->base) : (i == HVI_CS || hvi_usable(s)) && s->base >> 32)
				return HVI_FIELD_GUEST_ES_BASE + 2 * i;
			if (i == HVI_CS ? !hvi_cs_ok(p) : i == HVI_SS ? !hvi_ss_ok(p) : !hvi_data_ok(s))
				return HVI_FIELD_GUEST_ES_ACCESS + 2 * i;
		}
	}
	if (!hvi_canonical(p->tr.base))
		return HVI_FIELD_GUEST_TR_BASE;
	/* A busy TSS. */
	if ((p->tr.access & 0x10090) != 0x80 || !(type == 11 || (type == 3 && !lma)) || !hvi_limit_ok(&p->tr))
		return HVI_FIELD_GUEST_TR_ACCESS;
	if (hvi_usable(&p->ldtr)) {
		if (!hvi_canonical(p->ldtr.base))
			return HVI_FIELD_GUEST_LDTR_BASE;
		if ((p->ldtr.access & 0x9f) != 0x82 || !hvi_limit_ok(&p->ldtr))
			return HVI_FIELD_GUEST_LDTR_ACCESS;
	}
	if (!hvi_canonical(p->gdtr.base))
		return HVI_FIELD_GUEST_GDTR_BASE;
	return hvi_canonical(p->idtr.base) ? 0 : HVI_FIELD_GUEST_IDTR_BASE;
}

/* 26.3.1.4, 26.3.1.5. */
static inline __u32 hvi_bad_rip(const struct hvi_vcpu *p)
{
	int lma = !!(p->efer & HVI_EFER_LMA);

	if ((p->rflags & HVI_RFLAGS_VM) && (lma || !(p->cr0 & HVI_CR0_PE)))
		return HVI_FIELD_GUEST_RFLAGS;
	if (lma && (p->seg[HVI_CS].access & 0x2000) ? !hvi_canonical(p->rip) : !!(p->rip >> 32))
		return HVI_FIELD_GUEST_RIP;
	return p->mp_state <= HVI_MP_PAUSED ? 0 : HVI_FIELD_MP_STATE;
}

/* 0, or the first field that is invalid. All groups of the page are looked at. */
static inline __u32 hvi_bad_state(const struct hvi_vcpu *p, const struct hvi_limits *l)
{
	__u32 bad = hvi_bad_registers(p, l);

	if (!bad)
		bad = hvi_bad_rip(p);
	return bad ? bad : hvi_bad_segments(p);
}

#endif
