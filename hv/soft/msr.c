/* SPDX-License-Identifier: MIT */
/*
 * msr.c - model-specific registers that Linux and Windows use (SDM vol. 4).
 * An MSR that is not here does not exist: RDMSR and WRMSR raise #GP(0).
 */
#include "../abi/rules.h"
#include "more.h"

/*
 * RDCL_NO IBRS_ALL SKIP_L1DFL_VMENTRY SSB_NO MDS_NO PSCHANGE_MC_NO TAA_NO
 * SBDR_SSDP_NO FBSDP_NO PSDP_NO BHI_NO PBRSB_NO GDS_NO RFDS_NO ITS_NO: nothing
 * speculates here, so there is nothing to mitigate.
 */
#define ARCH_CAPS	((1ull << 0) | (1ull << 1) | (1ull << 3) | (1ull << 4) | (1ull << 5) | (1ull << 6) | \
			 (1ull << 8) | (1ull << 13) | (1ull << 14) | (1ull << 15) | (1ull << 20) | (1ull << 24) | \
			 (1ull << 26) | (1ull << 27) | (1ull << 62))

/* IBRS, STIBP, SSBD: any of them brings IA32_SPEC_CTRL. */
#define SPEC_CTRL_BITS	((1u << 26) | (1u << 27) | (1u << 31))

#define EFER_SCE	(1ull << 0)
#define EFER_LME	(1ull << 8)
#define EFER_LMA	(1ull << 10)
#define EFER_NXE	(1ull << 11)

static int fixed_mtrr(u32 index)
{
	switch (index) {
	case M_MTRR_FIX64:
		return 0;
	case M_MTRR_FIX16A: case M_MTRR_FIX16B:
		return (int)(index - M_MTRR_FIX16A) + 1;
	default:
		return index >= M_MTRR_FIX4 && index <= M_MTRR_FIX4_LAST ? (int)(index - M_MTRR_FIX4) + 3 : -1;
	}
}

/* CPUID.7.EDX of the guest's table. */
static u32 leaf7_edx(const struct cpu *c)
{
	u32 r[4];

	cpuid_query(c, 7, 0, r);
	return r[3];
}

bool msr_read(struct cpu *c, const struct op *o, u32 index, u64 *value)
{
	struct cpu_more *m = c->more;

	switch (index) {
	case M_SPEC_CTRL:
		if (!(leaf7_edx(c) & SPEC_CTRL_BITS))
			return false;
		*value = m->spec_ctrl;
		break;
	case M_ARCH_CAPS:
		if (!(leaf7_edx(c) >> 29 & 1))
			return false;
		*value = ARCH_CAPS;
		break;
	case 0x0: case 0x1:		/* P5 machine check */
	case M_PLATFORM_ID: case M_MISC_FEATURES: case M_PERF_STATUS: case M_ENERGY_BIAS:
	case M_MCG_CTL: *value = 0; break;
	case M_TSC: *value = cpu_tsc(c, o); break;
	case M_APIC_BASE: *value = m->apic_base; break;
	case M_FEATURE_CONTROL: *value = 1; break;	/* locked, VMX off */
	case M_TSC_ADJUST: *value = m->tsc_adjust; break;
	case M_UCODE_REV: *value = 0x0200006eull << 32; break;
	case M_PLATFORM_INFO: *value = (u64)(TSC_KHZ / 100000) << 8; break;
	case M_MTRRCAP: *value = 0x508; break;		/* WC, fixed, 8 variable */
	case M_SYSENTER_CS: *value = m->sysenter_cs; break;
	case M_SYSENTER_ESP: *value = m->sysenter_esp; break;
	case M_SYSENTER_EIP: *value = m->sysenter_eip; break;
	case M_MCG_CAP: *value = 0; break;
	case M_MCG_STATUS: *value = m->mcg_status; break;
	case M_MISC_ENABLE: *value = m->misc_enable; break;
	case M_DEBUGCTL: *value = m->debugctl; break;
	case M_PAT: *value = m->pat; break;
	case M_MTRR_DEF: *value = m->mtrr_def; break;
	case M_TSC_DEADLINE: *value = m->tsc_deadline; break;
	case M_XSS: *value = m->xss; break;
	case M_EFER: *value = c->efer; break;
	case M_STAR: *value = m->star; break;
	case M_LSTAR: *value = m->lstar; break;
	case M_CSTAR: *value = m->cstar; break;
	case M_FMASK: *value = m->fmask; break;
	case M_FS_BASE: *value = c->seg[HVI_FS].base; break;
	case M_GS_BASE: *value = c->seg[HVI_GS].base; break;
	case M_KERNEL_GS_BASE: *value = m->kernel_gs_base; break;
	case M_TSC_AUX: *value = m->tsc_aux; break;
	default:
		if (index >= M_MTRR_BASE0 && index <= M_MTRR_MASK7)
			*value = index & 1 ? m->mtrr_mask[(index - M_MTRR_BASE0) / 2] :
					     m->mtrr_base[(index - M_MTRR_BASE0) / 2];
		else if (fixed_mtrr(index) >= 0)
			*value = m->mtrr_fix[fixed_mtrr(index)];
		else
			return false;
	}
	return true;
}

/* Memory types: UC WC WT WP WB; PAT has UC- (7) as well. */
static bool types_ok(u64 v, u32 good)
{
	for (int i = 0; i < 8; i++, v >>= 8)
		if ((v & 0xff) > 7 || !(good >> (v & 0xff) & 1))
			return false;
	return true;
}

bool msr_write_ok(const struct cpu *c, u32 index, u64 v)
{
	switch (index) {
	case 0x0: case 0x1:
	case M_TSC: case M_UCODE_WRITE: case M_UCODE_REV: case M_SYSENTER_CS: case M_STAR:
	case M_MISC_ENABLE: case M_TSC_ADJUST: case M_TSC_DEADLINE: case M_ENERGY_BIAS:
		return true;
	case M_MCG_STATUS: case M_MISC_FEATURES:
		return !v;
	case M_APIC_BASE:
		return !(v & (~PHYS_MASK | 0x2ff)) && ((v & 0xc00) != 0x400);
	case M_PRED_CMD:
		return (leaf7_edx(c) >> 26 & 1) && !(v & ~1ull);
	case M_FLUSH_CMD:
		return (leaf7_edx(c) >> 28 & 1) && !(v & ~1ull);
	case M_SPEC_CTRL:
		return (leaf7_edx(c) & SPEC_CTRL_BITS) && !(v & ~7ull);
	case M_SYSENTER_ESP: case M_SYSENTER_EIP: case M_LSTAR: case M_CSTAR:
	case M_FS_BASE: case M_GS_BASE: case M_KERNEL_GS_BASE:
		return is_canonical(c, v);
	case M_DEBUGCTL:
		return !(v & ~0x1ffc3ull);
	case M_PAT:
		return types_ok(v, 0xf3);
	case M_MTRR_DEF:
		return !(v & ~0xcffull) && types_ok((v & 0xff) * 0x0101010101010101ull, 0x73);
	case M_XSS:
		return !v;
	case M_EFER:
		if (v & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE))
			return false;
		/* SDM 9.8.5: LME may not change while paging is on. */
		return !((c->cr0 >> 31 & 1) && ((v ^ c->efer) & EFER_LME));
	case M_FMASK: case M_TSC_AUX:
		return !(v >> 32);
	default:
		if (index >= M_MTRR_BASE0 && index <= M_MTRR_MASK7)
			return !(v & ~PHYS_MASK) && (index & 1 ? !(v & 0x7ff) :
				!(v & 0xf00) && types_ok((v & 0xff) * 0x0101010101010101ull, 0x73));
		return fixed_mtrr(index) >= 0 && types_ok(v, 0x73);
	}
}

/* After msr_write_ok. The caller calls cpu_mode_changed, and flushes for EFER. */
bool msr_write(struct cpu *c, u32 index, u64 v)
{
	struct cpu_more *m = c->more;

	if (!msr_write_ok(c, index, v))
		return false;
	switch (index) {
	case M_TSC:
		/* SDM 17.17.3: a write to the TSC moves TSC_ADJUST by as much. */
		m->tsc_adjust += v - cpu_tsc(c, NULL);
		m->tsc_offset = v - c->icount;
		break;
	case M_TSC_ADJUST:
		m->tsc_offset += v - m->tsc_adjust;
		m->tsc_adjust = v;
		break;
	case M_APIC_BASE: m->apic_base = v; break;
	case M_SPEC_CTRL: m->spec_ctrl = v; break;
	case M_SYSENTER_CS: m->sysenter_cs = v; break;
	case M_SYSENTER_ESP: m->sysenter_esp = v; break;
	case M_SYSENTER_EIP: m->sysenter_eip = v; break;
	case M_MCG_STATUS: m->mcg_status = v; break;
	case M_MISC_ENABLE: m->misc_enable = v; break;
	case M_DEBUGCTL: m->debugctl = v; break;
	case M_PAT: m->pat = v; break;
	case M_MTRR_DEF: m->mtrr_def = v; break;
	case M_TSC_DEADLINE: m->tsc_deadline = v; break;
	case M_XSS: m->xss = v; break;
	case M_EFER: c->efer = (v & ~EFER_LMA) | (c->efer & EFER_LMA); break;
	case M_STAR: m->star = v; break;
	case M_LSTAR: m->lstar = v; break;
	case M_CSTAR: m->cstar = v; break;
	case M_FMASK: m->fmask = v; break;
	case M_FS_BASE: c->seg[HVI_FS].base = c->segbase[HVI_FS] = v; break;
	case M_GS_BASE: c->seg[HVI_GS].base = c->segbase[HVI_GS] = v; break;
	case M_KERNEL_GS_BASE: m->kernel_gs_base = v; break;
	case M_TSC_AUX: m->tsc_aux = v; break;
	default:
		if (index >= M_MTRR_BASE0 && index <= M_MTRR_MASK7) {
			if (index & 1)
				m->mtrr_mask[(index - M_MTRR_BASE0) / 2] = v;
			else
				m->mtrr_base[(index - M_MTRR_BASE0) / 2] = v;
		} else if (fixed_mtrr(index) >= 0) {
			m->mtrr_fix[fixed_mtrr(index)] = v;
		}
	}
	return true;
}

void msr_set(struct cpu *c, u32 index, u64 v)
{
	if (index == M_TSC)
		c->more->tsc_offset = v - c->icount;
	else if (index == M_TSC_ADJUST)
		c->more->tsc_adjust = v;
	else if (index == M_EFER)
		c->efer = v;
	else
		msr_write(c, index, v);
}

u32 msr_list(u32 *out, u32 room)
{
	/* IA32_SPEC_CTRL is on the vCPU page, and readable only with the CPUID bits for it. */
	static const u32 list[] = {
		M_TSC_ADJUST, M_TSC, M_APIC_BASE, M_SYSENTER_CS, M_SYSENTER_ESP, M_SYSENTER_EIP,
		M_MCG_STATUS, M_MISC_ENABLE, M_DEBUGCTL, M_PAT, M_MTRR_DEF, M_TSC_DEADLINE, M_XSS, M_EFER,
		M_STAR, M_LSTAR, M_CSTAR, M_FMASK, M_FS_BASE, M_GS_BASE, M_KERNEL_GS_BASE, M_TSC_AUX,
		0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,
		0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
		0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
	};
	u32 n = sizeof(list) / sizeof(list[0]);

	for (u32 i = 0; i < n && i < room; i++)
		out[i] = list[i];
	return n;
}

/* SDM 11.11.4: fixed ranges first, then variable ones (UC wins, WT beats WB), then the default. */
u32 msr_mtrr_type(const struct cpu *c, u64 gpa)
{
	const struct cpu_more *m = c->more;
	u32 found = ~0u;

	if (!(m->mtrr_def & 0x800))
		return 0;
	if (gpa < 0x100000 && (m->mtrr_def & 0x400)) {
		if (gpa < 0x80000)
			return m->mtrr_fix[0] >> (gpa >> 16) * 8 & 0xff;
		if (gpa < 0xc0000)
			return m->mtrr_fix[1 + (gpa - 0x80000) / 0x20000] >> ((gpa >> 14) & 7) * 8 & 0xff;
		return m->mtrr_fix[3 + (gpa - 0xc0000) / 0x8000] >> ((gpa >> 12) & 7) * 8 & 0xff;
	}
	for (int i = 0; i < 8; i++) {
		u64 mask = m->mtrr_mask[i] & ~0xfffull;
		u32 type = m->mtrr_base[i] & 0xff;

		if (!(m->mtrr_mask[i] & 0x800) || (gpa & mask) != (m->mtrr_base[i] & mask))
			continue;
		if (found == ~0u || type == 0)
			found = type;
		else if (found != type && found)
			found = found == 6 ? type : type == 6 ? found : 0;
	}
	return found == ~0u ? m->mtrr_def & 0xff : found;
}
