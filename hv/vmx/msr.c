/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * msr.c - the guest's MSRs (SDM vol. 4): those that Linux and Windows use, the
 * same as in hv/soft. The CPU answers reads of a few itself; all else exits. An
 * MSR that is not here does not exist: RDMSR and WRMSR raise #GP(0).
 */
#include <linux/uaccess.h>
#include <asm/cpufeature.h>
#include <asm/processor-flags.h>
#include "../abi/rules.h"
#include "hvi_vmx.h"

#define EFER_SCE_BIT	(1ull << 0)
#define EFER_LME_BIT	(1ull << 8)
#define EFER_LMA_BIT	(1ull << 10)
#define EFER_NXE_BIT	(1ull << 11)

/* What of IA32_ARCH_CAPABILITIES a guest may know: what the CPU is not vulnerable to. */
#define ARCH_CAPS_SHOWN	0x17e1e16bull

/* Answered by the CPU, unless intercepted. Writes exit: most values are kept outside the VMCS. */
static const u32 direct_reads[] = {
	M_TSC, M_SYSENTER_CS, M_SYSENTER_ESP, M_SYSENTER_EIP, M_PAT, M_EFER, M_STAR, M_LSTAR, M_CSTAR, M_FMASK,
	M_FS_BASE, M_GS_BASE, M_KERNEL_GS_BASE,
};
static const u32 direct_writes[] = {
	M_SYSENTER_CS, M_SYSENTER_ESP, M_SYSENTER_EIP, M_FS_BASE, M_GS_BASE, M_KERNEL_GS_BASE,
};

/* ---- bitmaps (SDM 24.6.9) ------------------------------------------------------------------ */

/* Bit in msr_read and msr_write; false: outside of both ranges. */
static bool bit_of(u32 index, u32 *bit)
{
	if (index < MSR_RANGE)
		*bit = index;
	else if (index - 0xc0000000 < MSR_RANGE)
		*bit = index - 0xc0000000 + MSR_RANGE;
	else
		return false;
	return true;
}

static void bitmap_bit(struct vm *vm, u32 index, bool write, bool exits)
{
	u32 bit, at;

	if (!bit_of(index, &bit))
		return;
	at = bit + (write ? 2 * MSR_RANGE : 0);
	if (exits)
		__set_bit(at, vm->msr_bitmap);
	else
		__clear_bit(at, vm->msr_bitmap);
}

static bool direct(u32 index, bool write)
{
	const u32 *list = write ? direct_writes : direct_reads;
	u32 n = write ? ARRAY_SIZE(direct_writes) : ARRAY_SIZE(direct_reads), i;

	for (i = 0; i < n; i++)
		if (list[i] == index)
			return true;
	return false;
}

void msr_bitmap_init(struct vm *vm)
{
	u32 i;

	memset(vm->msr_bitmap, 0xff, PAGE_SIZE);
	for (i = 0; i < ARRAY_SIZE(direct_reads); i++)
		bitmap_bit(vm, direct_reads[i], false, false);
	for (i = 0; i < ARRAY_SIZE(direct_writes); i++)
		bitmap_bit(vm, direct_writes[i], true, false);
}

int msr_intercept(struct vm *vm, const struct hvi_intercept *a, bool write)
{
	unsigned long *map = write ? vm->msr_write : vm->msr_read;
	u32 bit, index = a->index;

	if (a->mask > 1)
		return -EINVAL;
	if (index - 0x40000000 < MSR_RANGE) {
		map = write ? vm->msr_write_hv : vm->msr_read_hv;
		bit = index - 0x40000000;
	} else if (!bit_of(index, &bit)) {
		return -EINVAL;
	}
	if (a->mask)
		__set_bit(bit, map);
	else
		__clear_bit(bit, map);
	bitmap_bit(vm, index, write, a->mask || !direct(index, write));
	return 0;
}

bool msr_asked(const struct vm *vm, u32 index, bool write)
{
	u32 bit;

	if (index - 0x40000000 < MSR_RANGE)
		return test_bit(index - 0x40000000, write ? vm->msr_write_hv : vm->msr_read_hv);
	return bit_of(index, &bit) && test_bit(bit, write ? vm->msr_write : vm->msr_read);
}

/* ---- values ----------------------------------------------------------------------------------- */

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

static u32 leaf7_edx(struct vcpu *v)
{
	u32 r[4];

	cpuid_query(v, 7, 0, r);
	return r[3];
}

/*
 * MSRs of the vCPU page are read from there (they were stored at the last
 * exit) when the vCPU is not loaded, from here when it is.
 */
static bool read_stored(struct vcpu *v, u32 index, u64 *value)
{
	switch (index) {
	case 0x0: case 0x1:		/* P5 machine check */
	case M_PLATFORM_ID: case M_MISC_FEATURES: case M_PERF_STATUS: case M_ENERGY_BIAS:
	case M_MCG_CTL: case M_MCG_CAP: *value = 0; break;
	case M_FEATURE_CONTROL: *value = 1; break;	/* locked, VMX off */
	case M_TSC_ADJUST: *value = v->tsc_adjust; break;
	case M_UCODE_REV: *value = 0x0200006eull << 32; break;
	case M_PLATFORM_INFO: *value = (u64)(tsc_khz / 100000) << 8; break;
	case M_MTRRCAP: *value = 0x508; break;		/* WC, fixed, 8 variable */
	case M_MCG_STATUS: *value = v->mcg_status; break;
	case M_MISC_ENABLE: *value = v->misc_enable; break;
	case M_MTRR_DEF: *value = v->mtrr_def; break;
	case M_TSC_DEADLINE: *value = v->tsc_deadline; break;
	case M_ARCH_CAPS:
		if (!(leaf7_edx(v) >> 29 & 1))
			return false;
		*value = 0;
		if (boot_cpu_has(X86_FEATURE_ARCH_CAPABILITIES))
			rdmsrl(M_ARCH_CAPS, *value);
		*value &= ARCH_CAPS_SHOWN;
		break;
	default:
		if (index >= M_MTRR_BASE0 && index <= M_MTRR_MASK7)
			*value = index & 1 ? v->mtrr_mask[(index - M_MTRR_BASE0) / 2] :
					     v->mtrr_base[(index - M_MTRR_BASE0) / 2];
		else if (fixed_mtrr(index) >= 0)
			*value = v->mtrr_fix[fixed_mtrr(index)];
		else
			return false;
	}
	return true;
}

/* Of a loaded vCPU. */
bool msr_read(struct vcpu *v, u32 index, u64 *value)
{
	switch (index) {
	case M_SPEC_CTRL: return false;		/* the guest runs with the host's */
	case M_TSC: *value = guest_tsc(v); break;
	case M_APIC_BASE: *value = v->apic_base; break;
	case M_SYSENTER_CS: *value = vmcs_read32(F_GUEST_SYSENTER_CS); break;
	case M_SYSENTER_ESP: *value = vmcs_read(F_GUEST_SYSENTER_ESP); break;
	case M_SYSENTER_EIP: *value = vmcs_read(F_GUEST_SYSENTER_EIP); break;
	case M_DEBUGCTL: *value = v->debugctl; break;
	case M_PAT: *value = vmcs_read(F_GUEST_PAT); break;
	case M_XSS: *value = v->xss; break;
	case M_EFER: *value = vmcs_read(F_GUEST_EFER); break;
	case M_STAR: *value = v->star; break;
	case M_LSTAR: *value = v->lstar; break;
	case M_CSTAR: *value = v->cstar; break;
	case M_FMASK: *value = v->fmask; break;
	case M_FS_BASE: *value = vmcs_read(F_GUEST_ES_BASE + 2 * HVI_FS); break;
	case M_GS_BASE: *value = vmcs_read(F_GUEST_ES_BASE + 2 * HVI_GS); break;
	case M_KERNEL_GS_BASE: rdmsrl(MSR_KERNEL_GS_BASE, *value); break;
	case M_TSC_AUX: *value = v->tsc_aux; break;
	default: return read_stored(v, index, value);
	}
	return true;
}

/* Memory types: UC WC WT WP WB; PAT has UC- (7) as well. */
static bool types_ok(u64 value, u32 good)
{
	int i;

	for (i = 0; i < 8; i++, value >>= 8)
		if ((value & 0xff) > 7 || !(good >> (value & 0xff) & 1))
			return false;
	return true;
}

/* But for EFER's relation to CR0, which only a loaded vCPU knows. */
bool msr_write_ok(struct vcpu *v, u32 index, u64 value)
{
	u64 phys = ~((1ull << vmx_caps.phys_bits) - 1);

	switch (index) {
	case 0x0: case 0x1:
	case M_TSC: case M_UCODE_WRITE: case M_UCODE_REV: case M_SYSENTER_CS: case M_STAR:
	case M_MISC_ENABLE: case M_TSC_ADJUST: case M_TSC_DEADLINE: case M_ENERGY_BIAS:
		return true;
	case M_MCG_STATUS: case M_MISC_FEATURES:
		return !value;
	case M_APIC_BASE:
		return !(value & (phys | 0x2ff)) && (value & 0xc00) != 0x400;
	case M_PRED_CMD:
		return (leaf7_edx(v) >> 26 & 1) && !(value & ~1ull);
	case M_FLUSH_CMD:
		return (leaf7_edx(v) >> 28 & 1) && !(value & ~1ull);
	case M_SYSENTER_ESP: case M_SYSENTER_EIP: case M_LSTAR: case M_CSTAR:
	case M_FS_BASE: case M_GS_BASE: case M_KERNEL_GS_BASE:
		return is_canonical(value, false);
	case M_DEBUGCTL:
		return !(value & ~0x1ffc3ull);
	case M_PAT:
		return types_ok(value, 0xf3);
	case M_MTRR_DEF:
		return !(value & ~0xcffull) && types_ok((value & 0xff) * 0x0101010101010101ull, 0x73);
	case M_XSS:
		return !value;
	case M_EFER:
		return !(value & ~(EFER_SCE_BIT | EFER_LME_BIT | EFER_LMA_BIT | EFER_NXE_BIT));
	case M_FMASK: case M_TSC_AUX:
		return !(value >> 32);
	default:
		if (index >= M_MTRR_BASE0 && index <= M_MTRR_MASK7)
			return !(value & phys) && (index & 1 ? !(value & 0x7ff) :
				!(value & 0xf00) && types_ok((value & 0xff) * 0x0101010101010101ull, 0x73));
		return fixed_mtrr(index) >= 0 && types_ok(value, 0x73);
	}
}

static void write_stored(struct vcpu *v, u32 index, u64 value)
{
	switch (index) {
	case M_TSC_ADJUST: v->tsc_adjust = value; break;
	case M_MCG_STATUS: v->mcg_status = value; break;
	case M_MISC_ENABLE: v->misc_enable = value; break;
	case M_MTRR_DEF: v->mtrr_def = value; break;
	case M_TSC_DEADLINE: v->tsc_deadline = value; break;
	default:
		if (index >= M_MTRR_BASE0 && index <= M_MTRR_MASK7) {
			if (index & 1)
				v->mtrr_mask[(index - M_MTRR_BASE0) / 2] = value;
			else
				v->mtrr_base[(index - M_MTRR_BASE0) / 2] = value;
		} else if (fixed_mtrr(index) >= 0) {
			v->mtrr_fix[fixed_mtrr(index)] = value;
		}
	}
}

static void set_tsc_offset(struct vcpu *v, u64 offset)
{
	v->tsc_offset = offset;
	vmcs_write(F_TSC_OFFSET, offset);
}

static void live(u32 msr, u64 *kept, u64 value)
{
	*kept = value;
	wrmsrl(msr, value);
}

/* By the guest, of a loaded vCPU. False: #GP(0). */
bool msr_write(struct vcpu *v, u32 index, u64 value)
{
	u64 old;

	if (!msr_write_ok(v, index, value))
		return false;
	switch (index) {
	case M_TSC:		/* SDM 17.17.3: a write to the TSC moves TSC_ADJUST by as much */
		old = guest_tsc(v);
		v->tsc_adjust += value - old;
		set_tsc_offset(v, v->tsc_offset + value - old);
		break;
	case M_TSC_ADJUST:
		set_tsc_offset(v, v->tsc_offset + value - v->tsc_adjust);
		v->tsc_adjust = value;
		break;
	case M_APIC_BASE: v->apic_base = value; break;
	case M_SYSENTER_CS: vmcs_write(F_GUEST_SYSENTER_CS, (u32)value); break;
	case M_SYSENTER_ESP: vmcs_write(F_GUEST_SYSENTER_ESP, value); break;
	case M_SYSENTER_EIP: vmcs_write(F_GUEST_SYSENTER_EIP, value); break;
	case M_DEBUGCTL:
		v->debugctl = value;
		vmcs_write(F_GUEST_DEBUGCTL, value & 2);
		break;
	case M_PAT: vmcs_write(F_GUEST_PAT, value); break;
	case M_XSS: v->xss = value; break;
	case M_EFER:
		old = vmcs_read(F_GUEST_EFER);
		/* SDM 9.8.5: LME may not change while paging is on. */
		if ((guest_cr0() & X86_CR0_PG) && ((value ^ old) & EFER_LME_BIT))
			return false;
		set_guest_efer(v, (value & ~EFER_LMA_BIT) | (old & EFER_LMA_BIT));
		v->flush_vpid = true;
		break;
	case M_STAR: live(MSR_STAR, &v->star, value); break;
	case M_LSTAR: live(MSR_LSTAR, &v->lstar, value); break;
	case M_CSTAR: live(MSR_CSTAR, &v->cstar, value); break;
	case M_FMASK: live(MSR_SYSCALL_MASK, &v->fmask, value); break;
	case M_FS_BASE: vmcs_write(F_GUEST_ES_BASE + 2 * HVI_FS, value); break;
	case M_GS_BASE: vmcs_write(F_GUEST_ES_BASE + 2 * HVI_GS, value); break;
	case M_KERNEL_GS_BASE: live(MSR_KERNEL_GS_BASE, &v->kernel_gs_base, value); break;
	case M_TSC_AUX:
		if (vmx_caps.secondary & SEC_RDTSCP)
			live(MSR_TSC_AUX, &v->tsc_aux, value);
		else
			v->tsc_aux = value;
		break;
	default: write_stored(v, index, value);
	}
	return true;
}

/* ---- exits ------------------------------------------------------------------------------------------ */

int resume_msr(struct vcpu *v, u32 index, u64 value, bool write)
{
	if (write ? !msr_write(v, index, value) : !msr_read(v, index, &value))
		return inject_gp0(v);
	if (!write) {
		v->gpr[HVI_RAX] = (u32)value;
		v->gpr[HVI_RDX] = value >> 32;
	}
	skip(v, v->rip_len);
	return 0;
}

int exit_rdmsr(struct vcpu *v)
{
	u32 index = (u32)v->gpr[HVI_RCX];

	if (msr_asked(v->vm, index, false)) {
		struct hvi_exit *x = exit_record(v, HVI_EXIT_MSR_READ);

		x->number = index;
		x->insn_len = v->rip_len;
		return HVI_EXIT_MSR_READ;
	}
	return resume_msr(v, index, 0, false);
}

int exit_wrmsr(struct vcpu *v)
{
	u32 index = (u32)v->gpr[HVI_RCX];
	u64 value = (u32)v->gpr[HVI_RAX] | v->gpr[HVI_RDX] << 32;

	if (msr_asked(v->vm, index, true)) {
		struct hvi_exit *x = exit_record(v, HVI_EXIT_MSR_WRITE);
		u64 old = 0;

		msr_read(v, index, &old);
		x->number = index;
		x->value = value;
		x->old = old;
		x->insn_len = v->rip_len;
		return HVI_EXIT_MSR_WRITE;
	}
	return resume_msr(v, index, value, true);
}

/* ---- the engine's access, between runs --------------------------------------------------------------- */

static const u32 kept[] = {
	M_TSC_ADJUST, M_TSC, M_APIC_BASE, M_SYSENTER_CS, M_SYSENTER_ESP, M_SYSENTER_EIP,
	M_MCG_STATUS, M_MISC_ENABLE, M_DEBUGCTL, M_PAT, M_MTRR_DEF, M_TSC_DEADLINE, M_XSS, M_EFER,
	M_STAR, M_LSTAR, M_CSTAR, M_FMASK, M_FS_BASE, M_GS_BASE, M_KERNEL_GS_BASE, M_TSC_AUX,
	0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,
	0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
	0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
};

int msr_list(struct vm *vm, struct hvi_msrs *a)
{
	struct hvi_msr_entry __user *u = (void __user *)(uintptr_t)a->entries;
	u32 i;

	if (!vcpu_of(vm, a->vcpu))
		return -EINVAL;
	if (a->count < ARRAY_SIZE(kept)) {
		a->count = ARRAY_SIZE(kept);
		return -E2BIG;
	}
	for (i = 0; i < ARRAY_SIZE(kept); i++) {
		struct hvi_msr_entry e = { .index = kept[i] };

		if (copy_to_user(&u[i], &e, sizeof(e)))
			return -EFAULT;
	}
	a->count = ARRAY_SIZE(kept);
	return 0;
}

static int get_one(struct vcpu *v, struct hvi_msr_entry *e)
{
	u32 group;
	const __u64 *field = state_msr_field(v, e->index, &group);

	if (field && e->index != M_SPEC_CTRL) {
		e->value = *field;
		return 0;
	}
	return read_stored(v, e->index, &e->value) ? 0 : -EINVAL;
}

/* Into the page, to be loaded at the next HVI_RUN, or at once what does not stand there. */
static void set_one(struct vcpu *v, const struct hvi_msr_entry *e)
{
	u32 group;
	__u64 *field = state_msr_field(v, e->index, &group);

	if (!field) {
		write_stored(v, e->index, e->value);
		return;
	}
	*field = e->value;
	v->reload |= group;
}

int msr_access(struct vm *vm, const struct hvi_msrs *a, bool set)
{
	struct vcpu *v = vcpu_of(vm, a->vcpu);
	struct hvi_msr_entry __user *u = (void __user *)(uintptr_t)a->entries;
	struct hvi_msr_entry *e;
	size_t bytes = (size_t)a->count * sizeof(*e);
	int err = 0;
	u32 i;

	if (!v || a->count > 4096)
		return -EINVAL;
	if (!a->count)
		return 0;
	e = kvmalloc(bytes, GFP_KERNEL_ACCOUNT);
	if (!e)
		return -ENOMEM;
	if (copy_from_user(e, u, bytes))
		err = -EFAULT;
	for (i = 0; !err && i < a->count; i++)
		err = set ? (msr_write_ok(v, e[i].index, e[i].value) ? 0 : -EINVAL) : get_one(v, &e[i]);
	if (!err && set)
		for (i = 0; i < a->count; i++)
			set_one(v, &e[i]);
	if (!err && !set && copy_to_user(u, e, bytes))
		err = -EFAULT;
	kvfree(e);
	return err;
}
