/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * rules.h - what both backends decide alike and hvi.h says only in words: the
 * MSRs that a guest has, and which replies fit an exit. Not part of the
 * interface; the engine does not see it.
 */
#ifndef HVI_RULES_H
#define HVI_RULES_H

#include "hvi.h"

_Static_assert(sizeof(struct hvi_vcpu) <= HVI_VCPU_SIZE, "a vCPU has one page");

/* Model-specific registers that Linux and Windows use (SDM vol. 4). */
enum {
	M_TSC = 0x10, M_PLATFORM_ID = 0x17, M_APIC_BASE = 0x1b, M_FEATURE_CONTROL = 0x3a, M_TSC_ADJUST = 0x3b,
	M_SPEC_CTRL = 0x48, M_PRED_CMD = 0x49, M_UCODE_WRITE = 0x79, M_UCODE_REV = 0x8b, M_PLATFORM_INFO = 0xce,
	M_MTRRCAP = 0xfe, M_ARCH_CAPS = 0x10a, M_FLUSH_CMD = 0x10b, M_MISC_FEATURES = 0x140,
	M_SYSENTER_CS = 0x174, M_SYSENTER_ESP, M_SYSENTER_EIP,
	M_MCG_CAP = 0x179, M_MCG_STATUS, M_MCG_CTL,
	M_PERF_STATUS = 0x198, M_MISC_ENABLE = 0x1a0, M_ENERGY_BIAS = 0x1b0, M_DEBUGCTL = 0x1d9,
	M_MTRR_BASE0 = 0x200, M_MTRR_MASK7 = 0x20f, M_MTRR_FIX64 = 0x250, M_MTRR_FIX16A = 0x258,
	M_MTRR_FIX16B = 0x259, M_MTRR_FIX4 = 0x268, M_MTRR_FIX4_LAST = 0x26f, M_PAT = 0x277, M_MTRR_DEF = 0x2ff,
	M_TSC_DEADLINE = 0x6e0, M_XSS = 0xda0,
	M_EFER = 0xc0000080, M_STAR, M_LSTAR, M_CSTAR, M_FMASK,
	M_FS_BASE = 0xc0000100, M_GS_BASE, M_KERNEL_GS_BASE, M_TSC_AUX,
};

/*
 * Whether SKIP can pass an exit: its RIP stands at an instruction of known
 * length. Takes values, not the record: that may change under the caller.
 */
static inline int hvi_can_skip(__u32 reason, __u32 insn_len, __u32 access)
{
	if (!insn_len || insn_len > 15 || (access & HVI_ACCESS_EVENT))
		return 0;
	switch (reason) {
	case HVI_EXIT_EPT: case HVI_EXIT_MSR_READ: case HVI_EXIT_MSR_WRITE: case HVI_EXIT_CR_WRITE:
	case HVI_EXIT_DTR: case HVI_EXIT_XSETBV: case HVI_EXIT_VMCALL: case HVI_EXIT_IO:
	case HVI_EXIT_CPUID: case HVI_EXIT_HLT: case HVI_EXIT_EXCEPTION: case HVI_EXIT_EMULATION:
		return 1;
	default:
		return 0;
	}
}

/*
 * An event that no vCPU could ever take is a mistake of the engine's, not the
 * guest's. Software events have an instruction: not every CPU enters a length
 * of 0 (SDM 26.2.1.3; IA32_VMX_MISC bit 30).
 */
static inline int hvi_event_ok(const struct hvi_event *e)
{
	if (!(e->flags & HVI_EVENT_VALID))
		return 1;
	switch (e->type) {
	case HVI_EVENT_EXTERNAL:
		return e->vector < 256;
	case HVI_EVENT_NMI:
		return e->vector == 2;
	case HVI_EVENT_EXCEPTION:
		return e->vector < 32;
	case HVI_EVENT_PRIV_SOFT: case HVI_EVENT_SOFT_EXCEPTION:
		return e->vector < 32 && e->insn_len - 1 < 15;
	case HVI_EVENT_SOFT_INT:
		return e->vector < 256 && e->insn_len - 1 < 15;
	default:
		return 0;
	}
}

/* Whether a range of EMULATE lies in what it names and in one page. */
static inline int hvi_emulate_range_ok(const struct hvi_emulate_range *r, __u32 flags, __u32 spare_count)
{
	if (!r->len)
		return 1;
	if (r->len > HVI_PAGE_SIZE || (r->gpa & (HVI_PAGE_SIZE - 1)) + r->len > HVI_PAGE_SIZE)
		return 0;
	if (flags & HVI_REPLY_SPARE)
		return r->offset < spare_count;
	return r->len <= HVI_EMULATE_BYTES && r->offset <= HVI_EMULATE_BYTES - r->len;
}

/* Whether RESUME at an exit goes on with an instruction or event, whose end HVI_REPLY_NOTIFY can tell. */
static inline int hvi_resume_runs(__u32 reason)
{
	switch (reason) {
	case HVI_EXIT_EPT: case HVI_EXIT_MSR_READ: case HVI_EXIT_MSR_WRITE: case HVI_EXIT_CR_WRITE:
	case HVI_EXIT_DTR: case HVI_EXIT_XSETBV: case HVI_EXIT_VMCALL: case HVI_EXIT_EXCEPTION:
	case HVI_EXIT_IO: case HVI_EXIT_CPUID: case HVI_EXIT_HLT:
		return 1;
	default:
		return 0;
	}
}

/* The flags of a reply, and of EMULATE its ranges. Whether SKIP fits is hvi_can_skip's, step_view the backend's. */
static inline int hvi_reply_ok(const struct hvi_reply *r, __u32 reason, __u32 spare_count)
{
	__u32 flags = 0;
	int i;

	switch (r->action) {
	case HVI_REPLY_RESUME:
		return !r->flags || (r->flags == HVI_REPLY_NOTIFY && hvi_resume_runs(reason));
	case HVI_REPLY_EMULATE:
		if (reason != HVI_EXIT_EPT)
			return 0;
		flags = HVI_REPLY_NOTIFY | HVI_REPLY_WRITE | HVI_REPLY_SPARE;
		for (i = 0; i < HVI_EMULATE_RANGES; i++)
			if (!hvi_emulate_range_ok(&r->range[i], r->flags, spare_count))
				return 0;
		break;
	case HVI_REPLY_SCRATCH:
		if (reason != HVI_EXIT_EPT)
			return 0;
		flags = HVI_REPLY_NOTIFY;
		break;
	case HVI_REPLY_STEP:
		flags = HVI_REPLY_NOTIFY;
		break;
	case HVI_REPLY_SKIP: case HVI_REPLY_RETRY: case HVI_REPLY_INJECT:
		break;
	default:
		return 0;
	}
	return !(r->flags & ~flags);
}

#endif
