/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * vmx.c - what the CPU can do (SDM vol. 3 appendix A), VMX operation on every
 * CPU, VMCS regions and VPIDs.
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/syscore_ops.h>
#include <asm/cpufeature.h>
#include <asm/processor.h>
#include <asm/tlbflush.h>
#include "hvi_vmx.h"

struct vmx_caps vmx_caps;

#define BASIC		0x480
#define MISC		0x485
#define CR0_FIXED0	0x486
#define CR0_FIXED1	0x487
#define CR4_FIXED0	0x488
#define CR4_FIXED1	0x489
#define EPT_VPID	0x48c
#define FEATURE_CONTROL	0x3a

/* IA32_VMX_EPT_VPID_CAP */
#define EPT_EXEC_ONLY		(1ull << 0)
#define EPT_WALK_4		(1ull << 6)
#define EPT_WB			(1ull << 14)
#define EPT_2M			(1ull << 16)
#define EPT_INVEPT		(1ull << 20)
#define EPT_INVEPT_SINGLE	(1ull << 25)
#define VPID_INVVPID		(1ull << 32)
#define VPID_SINGLE		(1ull << 41)

static DEFINE_PER_CPU(struct page *, vmxon_region);
static DEFINE_PER_CPU(bool, vmx_on);
static DEFINE_PER_CPU(struct host_msrs, host_msrs);
static DECLARE_BITMAP(vpids, 65536);
static DEFINE_SPINLOCK(vpids_lock);
static int hp_state;

void vmcs_write_failed(unsigned long field, u64 value)
{
	WARN_ONCE(1, "hvi: VMWRITE of field %lx with %llx failed, error %u\n", field, value, vmcs_read32(F_INSN_ERROR));
}

/* ---- capabilities ------------------------------------------------------------------ */

struct control {
	const char *name;
	u32 msr;
	u32 needed, wanted;
	u32 *out;
};

/* Low half: bits that must be 1; high half: bits that may be 1. */
static int adjust(const struct control *c, u32 *allowed)
{
	u64 cap;
	u32 value;

	rdmsrl(c->msr, cap);
	*allowed = cap >> 32;
	if (c->needed & ~*allowed) {
		pr_err("hvi: this CPU lacks %s controls %#x, which hvi needs\n", c->name, c->needed & ~*allowed);
		return -EOPNOTSUPP;
	}
	value = (c->needed | (c->wanted & *allowed)) | (u32)cap;
	*c->out = value;
	return 0;
}

static int read_caps(void)
{
	struct vmx_caps *c = &vmx_caps;
	u64 basic, misc;
	u32 unused;
	struct control list[] = {
		{ "pin-based", VMX_TRUE_PIN, PIN_EXT_INT | PIN_NMI | PIN_VNMI | PIN_TIMER, 0, &c->pin },
		{ "primary processor-based", VMX_TRUE_PRIMARY,
		  PRI_TSC_OFFSET | PRI_HLT | PRI_MWAIT | PRI_RDPMC | PRI_CR8_LOAD | PRI_CR8_STORE | PRI_MOV_DR |
		  PRI_IO_BITMAPS | PRI_MSR_BITMAPS | PRI_MONITOR | PRI_SECONDARY, 0, &c->primary },
		{ "secondary processor-based", VMX_SECONDARY,
		  SEC_EPT | SEC_VPID | SEC_UNRESTRICTED, SEC_RDTSCP | SEC_WBINVD | SEC_INVPCID, &c->secondary },
		{ "VM-exit", VMX_TRUE_EXIT, EXIT_SAVE_DEBUG | EXIT_HOST_64 | EXIT_SAVE_PAT | EXIT_LOAD_PAT |
		  EXIT_SAVE_EFER | EXIT_LOAD_EFER, 0, &c->exit },
		{ "VM-entry", VMX_TRUE_ENTRY, ENTRY_LOAD_DEBUG | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER, 0, &c->entry },
	};
	u32 *allowed[] = { &unused, &c->primary_allowed, &c->secondary_allowed, &unused, &unused };
	unsigned int i;

	rdmsrl(BASIC, basic);
	c->revision = basic & 0x7fffffff;
	if (!(basic & (1ull << 55))) {
		pr_err("hvi: this CPU has no true VMX controls (IA32_VMX_BASIC bit 55)\n");
		return -EOPNOTSUPP;
	}
	if (((basic >> 32) & 0x1fff) > PAGE_SIZE)
		return -EOPNOTSUPP;
	c->ins_outs_info = basic & (1ull << 54);
	for (i = 0; i < ARRAY_SIZE(list); i++) {
		int err = adjust(&list[i], allowed[i]);

		if (err)
			return err;
	}
	if (!(c->primary_allowed & PRI_MTF)) {
		pr_err("hvi: this CPU has no monitor trap flag, which single-steps need\n");
		return -EOPNOTSUPP;
	}
	rdmsrl(CR0_FIXED0, c->cr0_fixed0);
	rdmsrl(CR0_FIXED1, c->cr0_fixed1);
	rdmsrl(CR4_FIXED0, c->cr4_fixed0);
	rdmsrl(CR4_FIXED1, c->cr4_fixed1);
	rdmsrl(MISC, misc);
	c->timer_shift = misc & 31;
	rdmsrl(EPT_VPID, c->ept_vpid);
	if ((c->ept_vpid & (EPT_WALK_4 | EPT_WB | EPT_INVEPT | EPT_INVEPT_SINGLE | VPID_INVVPID | VPID_SINGLE)) !=
	    (EPT_WALK_4 | EPT_WB | EPT_INVEPT | EPT_INVEPT_SINGLE | VPID_INVVPID | VPID_SINGLE)) {
		pr_err("hvi: this CPU's EPT and VPID capabilities %#llx lack what hvi needs\n", c->ept_vpid);
		return -EOPNOTSUPP;
	}
	c->phys_bits = boot_cpu_data.x86_phys_bits;
	c->max_gfn = (1ull << (min(c->phys_bits, 48u) - 12)) - 1;
	c->caps = HVI_CAP_EPT_AD | HVI_CAP_MTF | HVI_CAP_UNRESTRICTED | HVI_CAP_TSC_SET | HVI_CAP_COW_MEMORY;
	if (c->ept_vpid & EPT_EXEC_ONLY)
		c->caps |= HVI_CAP_EXEC_ONLY;
	if (c->secondary_allowed & SEC_DTR)
		c->caps |= HVI_CAP_DTR_EXIT;
	c->flush_l1d = boot_cpu_has_bug(X86_BUG_L1TF) && boot_cpu_has(X86_FEATURE_FLUSH_L1D);
	c->verw = boot_cpu_has_bug(X86_BUG_MDS) && boot_cpu_has(X86_FEATURE_MD_CLEAR);
	return 0;
}

/* ---- VMX operation ------------------------------------------------------------------- */

static int cpu_on(unsigned int cpu)
{
	struct page *region = per_cpu(vmxon_region, cpu);
	struct host_msrs *h = this_cpu_ptr(&host_msrs);
	u64 feature, phys = page_to_phys(region), aux = 0;
	bool failed;

	rdmsrl(MSR_STAR, h->star);
	rdmsrl(MSR_LSTAR, h->lstar);
	rdmsrl(MSR_CSTAR, h->cstar);
	rdmsrl(MSR_SYSCALL_MASK, h->fmask);
	if (boot_cpu_has(X86_FEATURE_RDTSCP))
		rdmsrl(MSR_TSC_AUX, aux);
	h->tsc_aux = aux;
	if (native_read_cr4() & X86_CR4_VMXE) {
		pr_err("hvi: CPU %u is in VMX operation already: another hypervisor holds VT-x (rmmod kvm_intel)\n", cpu);
		return -EBUSY;
	}
	rdmsrl(FEATURE_CONTROL, feature);
	if (!(feature & 1)) {		/* the firmware left it open: enable VMX outside SMX, lock */
		wrmsrl(FEATURE_CONTROL, feature | 5);
		rdmsrl(FEATURE_CONTROL, feature);
	}
	if (!(feature & 4)) {
		pr_err("hvi: VT-x is disabled and locked by the firmware of CPU %u\n", cpu);
		return -EOPNOTSUPP;
	}
	memset(page_address(region), 0, PAGE_SIZE);
	*(u32 *)page_address(region) = vmx_caps.revision;
	cr4_set_bits(X86_CR4_VMXE);
	asm volatile("vmxon %1; setna %0" : "=qm" (failed) : "m" (phys) : "cc", "memory");
	if (failed) {
		cr4_clear_bits(X86_CR4_VMXE);
		pr_err("hvi: VMXON failed on CPU %u\n", cpu);
		return -EIO;
	}
	this_cpu_write(vmx_on, true);
	return 0;
}

static int cpu_off(unsigned int cpu)
{
	if (!this_cpu_read(vmx_on))
		return 0;
	vcpu_clear_here();
	this_cpu_write(vmx_on, false);
	asm volatile("vmxoff" : : : "cc", "memory");
	cr4_clear_bits(X86_CR4_VMXE);
	return 0;
}

/* Only the booting CPU runs here, with interrupts off; the others go through hotplug. */
static int suspend(void)
{
	cpu_off(raw_smp_processor_id());
	return 0;
}

static void resume(void)
{
	if (cpu_on(raw_smp_processor_id()))
		pr_err("hvi: VT-x did not come back after suspend\n");
}

static void off_here(void *unused)
{
	cpu_off(raw_smp_processor_id());
}

/* In VMX operation INIT is blocked, and a reset would hang. */
static void reboot(void)
{
	on_each_cpu(off_here, NULL, 1);
}

static struct syscore_ops syscore = {
	.suspend = suspend,
	.resume = resume,
	.shutdown = reboot,
};

const struct host_msrs *vmx_host_msrs(void)
{
	return this_cpu_ptr(&host_msrs);
}

struct page *vmx_alloc_vmcs(void)
{
	struct page *p = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);

	if (p)
		*(u32 *)page_address(p) = vmx_caps.revision;
	return p;
}

int vmx_alloc_vpid(void)
{
	int n;

	spin_lock(&vpids_lock);
	n = find_next_zero_bit(vpids, 65536, 1);
	if (n < 65536)
		__set_bit(n, vpids);
	spin_unlock(&vpids_lock);
	return n < 65536 ? n : -ENOSPC;
}

void vmx_free_vpid(int vpid)
{
	spin_lock(&vpids_lock);
	__clear_bit(vpid, vpids);
	spin_unlock(&vpids_lock);
}

static void free_regions(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		if (per_cpu(vmxon_region, cpu)) {
			__free_page(per_cpu(vmxon_region, cpu));
			per_cpu(vmxon_region, cpu) = NULL;
		}
}

int vmx_init(void)
{
	int cpu, err;

	if (!boot_cpu_has(X86_FEATURE_VMX)) {
		u64 feature = 0;

		if (boot_cpu_data.x86_vendor == X86_VENDOR_INTEL && (cpuid_ecx(1) & (1u << 5)) &&
		    !rdmsrl_safe(FEATURE_CONTROL, &feature) && (feature & 5) == 1)
			pr_err("hvi: VT-x is disabled and locked by the firmware (BIOS setup: Intel Virtualization Technology)\n");
		else
			pr_err("hvi: this CPU has no VT-x\n");
		return -EOPNOTSUPP;
	}
	if (X86_CR4_FRED && (native_read_cr4() & X86_CR4_FRED)) {
		pr_err("hvi: the kernel uses FRED, which hvi does not switch (boot with fred=off)\n");
		return -EOPNOTSUPP;
	}
	err = read_caps();
	if (err)
		return err;
	err = xsave_init();
	if (err)
		return err;
	vcpu_init_lists();
	for_each_possible_cpu(cpu) {
		struct page *p = alloc_pages_node(cpu_to_node(cpu), GFP_KERNEL, 0);

		if (!p) {
			free_regions();
			return -ENOMEM;
		}
		per_cpu(vmxon_region, cpu) = p;
	}
	err = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "hvi:online", cpu_on, cpu_off);
	if (err < 0) {
		free_regions();
		return err;
	}
	hp_state = err;
	register_syscore_ops(&syscore);
	return 0;
}

void vmx_exit(void)
{
	unregister_syscore_ops(&syscore);
	cpuhp_remove_state(hp_state);
	free_regions();
}
