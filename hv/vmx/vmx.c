/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * vmx.c - what the CPU can do (SDM vol. 3 appendix A), VMX operation on every
 * CPU, VMCS regions and VPIDs.
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/syscore_ops.h>
#include <asm/asm.h>
#include <asm/cpufeature.h>
#include <asm/perf_event.h>
#include <asm/processor.h>
#include <asm/reboot.h>
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
#define VMFUNC		0x491
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
static bool loading;	/* every CPU must do; later ones may be without */
static bool stopping;	/* the machine goes down */

#define IN_SETUP "switch on Intel Virtualization Technology (VT-x) in the BIOS setup, then power the machine off and on"
#define WITHOUT	"the software vCPU works without: hvi run --backend soft"

void vmcs_write_failed(unsigned long field, u64 value)
{
	WARN_ONCE(1, "hvi: VMWRITE of field %lx with %llx failed, error %u\n", field, value, vmcs_read32(F_INSN_ERROR));
}

/* ---- capabilities ------------------------------------------------------------------ */

struct control {
	const char *name;
	const char *const *bits;	/* names of those that some CPU with VT-x has not; may be NULL */
	u32 msr;
	u32 needed, wanted;
	u32 *out;
};

static const char *const pin_bits[32] = { [5] = "virtual NMIs", [6] = "VMX-preemption timer" };
static const char *const secondary_bits[32] = { [1] = "EPT", [5] = "VPID", [7] = "unrestricted guest" };

static void say_lack(const struct control *c, u32 lack)
{
	u32 bit = __ffs(lack);

	if (c->bits && c->bits[bit])
		pr_err("hvi: this CPU lacks %s (VMX %s controls, bit %u), which hvi needs; " WITHOUT "\n", c->bits[bit], c->name, bit);
	else
		pr_err("hvi: this CPU lacks bits %#x of the VMX %s controls, which hvi needs; " WITHOUT "\n", lack, c->name);
}

/* Low half: bits that must be 1; high half: bits that may be 1. */
static int adjust(const struct control *c, u32 *allowed)
{
	u64 cap;
	u32 value;

	rdmsrl(c->msr, cap);
	*allowed = cap >> 32;
	if (c->needed & ~*allowed) {
		say_lack(c, c->needed & ~*allowed);
		return -EOPNOTSUPP;
	}
	value = (c->needed | (c->wanted & *allowed)) | (u32)cap;
	*c->out = value;
	return 0;
}

/* Whether what the host did could be read out of the CPU's buffers by a guest. */
static bool has_stale_buffers(void)
{
	static const u16 bugs[] = {
		X86_BUG_MDS, X86_BUG_TAA,
#ifdef X86_BUG_MMIO_STALE_DATA
		X86_BUG_MMIO_STALE_DATA,
#endif
#ifdef X86_BUG_RFDS
		X86_BUG_RFDS,
#endif
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bugs); i++)
		if (boot_cpu_has_bug(bugs[i]))
			return true;
	return false;
}

static int read_caps(void)
{
	struct vmx_caps *c = &vmx_caps;
	u64 basic, misc, functions;
	u32 unused;
	/* Version 2 of the PMU brought IA32_PERF_GLOBAL_CTRL; before Haswell, loading it has errata. */
	bool perf = boot_cpu_has(X86_FEATURE_ARCH_PERFMON) && (cpuid_eax(0xa) & 0xff) >= 2 &&
		    boot_cpu_data.x86_model >= 0x3c;
	struct control list[] = {
		{ "pin-based", pin_bits, VMX_TRUE_PIN, PIN_EXT_INT | PIN_NMI | PIN_VNMI | PIN_TIMER, 0, &c->pin },
		{ "primary processor-based", NULL, VMX_TRUE_PRIMARY,
		  PRI_TSC_OFFSET | PRI_HLT | PRI_MWAIT | PRI_RDPMC | PRI_CR8_LOAD | PRI_CR8_STORE | PRI_MOV_DR |
		  PRI_IO_BITMAPS | PRI_MSR_BITMAPS | PRI_MONITOR | PRI_SECONDARY, 0, &c->primary },
		{ "secondary processor-based", secondary_bits, VMX_SECONDARY,
		  SEC_EPT | SEC_VPID | SEC_UNRESTRICTED, SEC_RDTSCP | SEC_WBINVD | SEC_INVPCID, &c->secondary },
		{ "VM-exit", NULL, VMX_TRUE_EXIT, EXIT_SAVE_DEBUG | EXIT_HOST_64 | EXIT_SAVE_PAT | EXIT_LOAD_PAT |
		  EXIT_SAVE_EFER | EXIT_LOAD_EFER, perf ? EXIT_LOAD_PERF : 0, &c->exit },
		{ "VM-entry", NULL, VMX_TRUE_ENTRY, ENTRY_LOAD_DEBUG | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER,
		  perf ? ENTRY_LOAD_PERF : 0, &c->entry },
	};
	u32 *allowed[] = { &unused, &c->primary_allowed, &c->secondary_allowed, &unused, &unused };
	unsigned int i;

	rdmsrl(BASIC, basic);
	c->revision = basic & 0x7fffffff;
	if (!(basic & (1ull << 55))) {
		pr_err("hvi: this CPU has no true VMX controls (IA32_VMX_BASIC bit 55); " WITHOUT "\n");
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
		pr_err("hvi: this CPU has no monitor trap flag, which single-steps need; " WITHOUT "\n");
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
		pr_err("hvi: this CPU's EPT and VPID capabilities %#llx lack what hvi needs; " WITHOUT "\n", c->ept_vpid);
		return -EOPNOTSUPP;
	}
	c->phys_bits = boot_cpu_data.x86_phys_bits;
	c->max_gfn = (1ull << (min(c->phys_bits, 48u) - 12)) - 1;
	c->caps = HVI_CAP_EPT_AD | HVI_CAP_MTF | HVI_CAP_UNRESTRICTED | HVI_CAP_TSC_SET | HVI_CAP_COW_MEMORY;
	/* No write without read (SDM 28.3.3.1). */
	c->rights = 1 << 0 | 1 << HVI_R | 1 << (HVI_R | HVI_W) | 1 << (HVI_R | HVI_X) | 1 << HVI_RWX;
	if (c->ept_vpid & EPT_EXEC_ONLY) {
		c->caps |= HVI_CAP_EXEC_ONLY;
		c->rights |= 1 << HVI_X;
	}
	if (c->secondary_allowed & SEC_DTR)
		c->caps |= HVI_CAP_DTR_EXIT;
	if (c->secondary_allowed & SEC_VE)
		c->caps |= HVI_CAP_VE;
	if (c->secondary_allowed & SEC_SPP)
		c->caps |= HVI_CAP_SPP;
	if (c->secondary_allowed & SEC_VMFUNC) {	/* else the MSR is not there */
		rdmsrl(VMFUNC, functions);
		if (functions & 1)
			c->caps |= HVI_CAP_EPTP_SWITCH;
	}
	c->flush_l1d = boot_cpu_has_bug(X86_BUG_L1TF) && boot_cpu_has(X86_FEATURE_FLUSH_L1D);
	c->verw = boot_cpu_has(X86_FEATURE_MD_CLEAR) && has_stale_buffers();
	c->perf = (c->entry & ENTRY_LOAD_PERF) && (c->exit & EXIT_LOAD_PERF);
	if (!c->perf) {
		c->entry &= ~ENTRY_LOAD_PERF;
		c->exit &= ~EXIT_LOAD_PERF;
	}
	return 0;
}

/* ---- VMX operation ------------------------------------------------------------------- */

/* 0, or why VMXON did not go through. It faults when some condition of SDM 30.3 (VMXON) does not hold. */
static int vmxon(u64 region)
{
	asm goto("1: vmxon %0\n\t"
		 "jna %l[no]\n\t"
		 _ASM_EXTABLE(1b, %l[fault])
		 : : "m" (region) : "cc", "memory" : no, fault);
	return 0;
no:
	return -EBUSY;
fault:
	return -EIO;
}

static int cpu_on(unsigned int cpu)
{
	struct page *region = per_cpu(vmxon_region, cpu);
	struct host_msrs *h = this_cpu_ptr(&host_msrs);
	u64 feature, aux = 0;
	int err;

	rdmsrl(MSR_STAR, h->star);
	rdmsrl(MSR_LSTAR, h->lstar);
	rdmsrl(MSR_CSTAR, h->cstar);
	rdmsrl(MSR_SYSCALL_MASK, h->fmask);
	if (boot_cpu_has(X86_FEATURE_RDTSCP))
		rdmsrl(MSR_TSC_AUX, aux);
	h->tsc_aux = aux;
	if (native_read_cr4() & X86_CR4_VMXE) {
		pr_err("hvi: CPU %u is in VMX operation already: another hypervisor holds VT-x; stop its guests and unload it (rmmod kvm_intel), then load hvi.ko again\n",
		       cpu);
		return -EBUSY;
	}
	if (rdmsrl_safe(FEATURE_CONTROL, &feature)) {
		pr_err("hvi: CPU %u has no VT-x\n", cpu);
		return -EOPNOTSUPP;
	}
	if (!(feature & 1)) {		/* the firmware left it open: enable VMX outside SMX, lock */
		wrmsrl_safe(FEATURE_CONTROL, feature | 5);
		rdmsrl(FEATURE_CONTROL, feature);
	}
	if ((feature & 5) != 5) {
		pr_err("hvi: VT-x is disabled and locked by the firmware of CPU %u; " IN_SETUP "\n", cpu);
		return -EOPNOTSUPP;
	}
	memset(page_address(region), 0, PAGE_SIZE);
	*(u32 *)page_address(region) = vmx_caps.revision;
	intel_pt_handle_vmx(1);		/* tracing of VMX operation may be unsupported: perf must know */
	cr4_set_bits(X86_CR4_VMXE);
	err = vmxon(page_to_phys(region));
	if (err) {
		cr4_clear_bits(X86_CR4_VMXE);
		intel_pt_handle_vmx(0);
		pr_err("hvi: VMXON %s on CPU %u; another hypervisor may be around it\n", err == -EIO ? "faulted" : "failed", cpu);
		return err;
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
	intel_pt_handle_vmx(0);
	return 0;
}

/*
 * A CPU that comes later and has no VT-x (SDM 23.7: each has its own
 * IA32_FEATURE_CONTROL) is no reason to keep it from the host: vcpu_load
 * does not go there.
 */
static int cpu_comes(unsigned int cpu)
{
	int err = READ_ONCE(stopping) ? 0 : cpu_on(cpu);

	if (!err || loading)
		return err;
	pr_warn("hvi: CPU %u cannot run guests: keep hvi off it (taskset)\n", cpu);
	return 0;
}

bool vmx_usable(void)
{
	return likely(this_cpu_read(vmx_on) && !READ_ONCE(stopping));
}

/* Only the booting CPU runs here, with interrupts off; the others go through hotplug. */
static int suspend(void)
{
	cpu_off(raw_smp_processor_id());
	return 0;
}

static void resume(void)
{
	if (!stopping && cpu_on(raw_smp_processor_id()))
		pr_err("hvi: VT-x did not come back after suspend\n");
}

static void off_here(void *unused)
{
	cpu_off(raw_smp_processor_id());
}

static struct syscore_ops syscore = {
	.suspend = suspend,
	.resume = resume,
};

/*
 * Before a reboot, a power-off and another kernel (kexec): in VMX operation
 * INIT is blocked (SDM 23.8), CR4.VMXE cannot be cleared, and a reset may hang.
 */
static int reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	WRITE_ONCE(stopping, true);
	/* From vcpu_load to vcpu_put preemption is off, so that whoever is in between is out then. */
	synchronize_rcu();
	on_each_cpu(off_here, NULL, 1);
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = {
	.notifier_call = reboot,
};

#ifdef HVI_VIRT_CALLBACK
/*
 * A crashing kernel starts another one, or resets: it asks the one who has
 * registered to leave VMX operation. KVM does that on any CPU in it, so while
 * kvm_intel is loaded, who wants the place for itself, it serves for both.
 */
extern bool kvm_rebooting;
static bool on_call;

/* The CPU comes from anywhere and does not go back. */
static void emergency(void)
{
	if (!this_cpu_read(vmx_on))
		return;
	this_cpu_write(vmx_on, false);
	asm volatile("vmxoff" : : : "cc", "memory");
	cr4_clear_bits(X86_CR4_VMXE);
}

static void be_on_call(bool on)
{
	if (on == on_call)
		return;
	on_call = on;
	if (on)
		cpu_emergency_register_virt_callback(emergency);
	else
		cpu_emergency_unregister_virt_callback(emergency);
}

static int module_changes(struct notifier_block *nb, unsigned long state, void *data)
{
	const struct module *m = data;

	if (strcmp(m->name, "kvm_intel") == 0 && (state == MODULE_STATE_COMING || state == MODULE_STATE_GOING))
		be_on_call(state == MODULE_STATE_GOING);
	return NOTIFY_DONE;
}

static struct notifier_block module_notifier = {
	.notifier_call = module_changes,
};

static void emergency_init(void)
{
	register_module_notifier(&module_notifier);
	if (symbol_get(kvm_rebooting))
		symbol_put(kvm_rebooting);
	else
		be_on_call(true);
}

static void emergency_exit(void)
{
	unregister_module_notifier(&module_notifier);
	be_on_call(false);
}
#else
/* Older kernels look for themselves. */
static void emergency_init(void)
{
}

static void emergency_exit(void)
{
}
#endif

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
		if (boot_cpu_data.x86_vendor != X86_VENDOR_INTEL)
			pr_err("hvi: this is no Intel CPU; " WITHOUT "\n");
		else if (cpuid_ecx(1) & (1u << 5))	/* the kernel found it so on this CPU or another */
			pr_err("hvi: VT-x is disabled and locked by the firmware; " IN_SETUP "\n");
		else if (boot_cpu_has(X86_FEATURE_HYPERVISOR))
			pr_err("hvi: the hypervisor below shows no VT-x: allow nested virtualization there; " WITHOUT "\n");
		else
			pr_err("hvi: this CPU has no VT-x; " WITHOUT "\n");
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
	loading = true;
	err = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "hvi:online", cpu_comes, cpu_off);
	loading = false;
	if (err < 0) {
		free_regions();
		return err;
	}
	hp_state = err;
	register_syscore_ops(&syscore);
	register_reboot_notifier(&reboot_notifier);
	emergency_init();
	return 0;
}

void vmx_exit(void)
{
	emergency_exit();
	unregister_reboot_notifier(&reboot_notifier);
	unregister_syscore_ops(&syscore);
	cpuhp_remove_state(hp_state);
	free_regions();
}
