/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * vcpu.c - a vCPU's life, and what the host's CPU must give up for it and get
 * back: the VMCS, the host-state area (SDM 24.5), MSRs, FPU, segments.
 */
#include <linux/sched.h>
#include <linux/smp.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/hw_breakpoint.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include "hvi_vmx.h"

static DEFINE_PER_CPU(struct list_head, active);	/* vCPUs whose VMCS is active here */
static DEFINE_PER_CPU(u64, last_vm);			/* whose guest ran here last */
static DEFINE_PER_CPU(struct vcpu *, current_vcpu);	/* whose VMCS is current */

void vcpu_init_lists(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		INIT_LIST_HEAD(&per_cpu(active, cpu));
}

/* ---- VMCLEAR, VMPTRLD -------------------------------------------------------------------- */

static void clear_here(void *arg)
{
	struct vcpu *v = arg;
	u64 phys = page_to_phys(v->vmcs);

	if (v->cpu != raw_smp_processor_id())
		return;
	asm volatile("vmclear %0" : : "m" (phys) : "cc", "memory");
	if (this_cpu_read(current_vcpu) == v)
		this_cpu_write(current_vcpu, NULL);
	list_del(&v->link);
	v->launched = false;
	smp_store_release(&v->cpu, -1);
}

void vcpu_clear(struct vcpu *v)
{
	int cpu = smp_load_acquire(&v->cpu);

	if (cpu >= 0)
		smp_call_function_single(cpu, clear_here, v, 1);
}

void vcpu_clear_here(void)
{
	struct list_head *list = this_cpu_ptr(&active);
	unsigned long flags;

	local_irq_save(flags);
	while (!list_empty(list))
		clear_here(list_first_entry(list, struct vcpu, link));
	local_irq_restore(flags);
}

/* ---- host state ---------------------------------------------------------------------------- */

struct dtr {
	u16 limit;
	u64 base;
} __packed;

static u64 host_tr_base(const struct dtr *gdt, u16 tr)
{
	const u64 *d = (const u64 *)(gdt->base + (tr & ~7));

	return (d[0] >> 16 & 0xffffff) | (d[0] >> 32 & 0xff000000) | d[1] << 32;
}

/* What differs from CPU to CPU. */
static void host_cpu_state(void)
{
	struct dtr gdt, idt;
	u16 tr;
	u64 value;

	asm volatile("sgdt %0" : "=m" (gdt));
	asm volatile("sidt %0" : "=m" (idt));
	asm volatile("str %0" : "=r" (tr));
	vmcs_write(F_HOST_GDTR_BASE, gdt.base);
	vmcs_write(F_HOST_IDTR_BASE, idt.base);
	vmcs_write(F_HOST_TR_SEL, tr);
	vmcs_write(F_HOST_TR_BASE, host_tr_base(&gdt, tr));
	rdmsrl(MSR_IA32_SYSENTER_CS, value);
	vmcs_write(F_HOST_SYSENTER_CS, value);
	rdmsrl(MSR_IA32_SYSENTER_ESP, value);
	vmcs_write(F_HOST_SYSENTER_ESP, value);
	rdmsrl(MSR_IA32_SYSENTER_EIP, value);
	vmcs_write(F_HOST_SYSENTER_EIP, value);
	rdmsrl(MSR_GS_BASE, value);
	vmcs_write(F_HOST_GS_BASE, value);
	rdmsrl(MSR_IA32_CR_PAT, value);
	vmcs_write(F_HOST_PAT, value);
	rdmsrl(MSR_EFER, value);
	vmcs_write(F_HOST_EFER, value);
	vmcs_write(F_HOST_CR0, native_read_cr0() & ~X86_CR0_TS);
}

/* CR3 and CR4 may change between two entries: TLB flushes, temporary mms. */
void vcpu_refresh_host(struct vcpu *v)
{
	u64 cr3 = __native_read_cr3(), cr4 = native_read_cr4();

	if (cr3 != v->host_cr3) {
		vmcs_write(F_HOST_CR3, cr3);
		v->host_cr3 = cr3;
	}
	if (cr4 != v->host_cr4) {
		vmcs_write(F_HOST_CR4, cr4);
		v->host_cr4 = cr4;
	}
	/*
	 * None of the host's counters runs in the guest: one with PEBS would write its records there,
	 * through the guest's page tables.
	 */
	if (vmx_caps.perf) {
		u64 perf;

		rdmsrl(MSR_CORE_PERF_GLOBAL_CTRL, perf);
		if (perf != v->host_perf) {
			vmcs_write(F_HOST_PERF_GLOBAL, perf);
			v->host_perf = perf;
		}
	}
}

/* ---- the VMCS ---------------------------------------------------------------------------------- */

static void setup_vmcs(struct vcpu *v)
{
	struct vm *vm = v->vm;

	vmcs_write(F_VPID, v->vpid);
	vmcs_write(F_PIN, vmx_caps.pin);
	v->primary_now = vmx_caps.primary;
	vmcs_write(F_PRIMARY, v->primary_now);
	v->secondary_now = vmx_caps.secondary;
	vmcs_write(F_SECONDARY, v->secondary_now);
	vmcs_write(F_EXIT_CTL, vmx_caps.exit);
	vmcs_write(F_ENTRY_CTL, vmx_caps.entry);
	v->exception_now = ~0u;
	vmcs_write(F_EXCEPTION_BITMAP, v->exception_now);
	vmcs_write(F_PF_MASK, 0);
	vmcs_write(F_PF_MATCH, 0);
	vmcs_write(F_CR3_TARGETS, 0);
	vmcs_write(F_EXIT_MSR_STORE_COUNT, 0);
	vmcs_write(F_EXIT_MSR_LOAD_COUNT, 0);
	vmcs_write(F_ENTRY_MSR_LOAD_COUNT, 0);
	vmcs_write(F_ENTRY_INTR_INFO, 0);
	vmcs_write(F_IO_BITMAP_A, __pa(vm->io_bitmap));
	vmcs_write(F_IO_BITMAP_B, __pa(vm->io_bitmap) + PAGE_SIZE);
	vmcs_write(F_MSR_BITMAP, __pa(vm->msr_bitmap));
	vmcs_write(F_VMCS_LINK, ~0ull);
	vmcs_write(F_ACTIVITY, 0);
	vmcs_write(F_HOST_RIP, hvi_vmx_host_rip());
	vmcs_write(F_HOST_CS_SEL, __KERNEL_CS);
	vmcs_write(F_HOST_SS_SEL, __KERNEL_DS);
	vmcs_write(F_HOST_DS_SEL, 0);
	vmcs_write(F_HOST_ES_SEL, 0);
	vmcs_write(F_HOST_FS_SEL, 0);
	vmcs_write(F_HOST_GS_SEL, 0);
	if (vmx_caps.perf) {
		vmcs_write(F_GUEST_PERF_GLOBAL, 0);
		vmcs_write(F_HOST_PERF_GLOBAL, v->host_perf);
	}
	v->eptp_now = ~0ull;
	v->host_cr3 = v->host_cr4 = ~0ull;
	v->spptp_now = ~0ull;
	v->controls_gen = vm->controls_gen - 1;
}

static void swap_msr(u32 msr, u64 from, u64 to)
{
	if (from != to)
		wrmsrl(msr, to);
}

static void guest_msrs(struct vcpu *v)
{
	const struct host_msrs *h = vmx_host_msrs();

	swap_msr(MSR_STAR, h->star, v->star);
	swap_msr(MSR_LSTAR, h->lstar, v->lstar);
	swap_msr(MSR_CSTAR, h->cstar, v->cstar);
	swap_msr(MSR_SYSCALL_MASK, h->fmask, v->fmask);
	if (vmx_caps.secondary & SEC_RDTSCP)
		swap_msr(MSR_TSC_AUX, h->tsc_aux, v->tsc_aux);
	rdmsrl(MSR_KERNEL_GS_BASE, v->host_kernel_gs_base);
	swap_msr(MSR_KERNEL_GS_BASE, v->host_kernel_gs_base, v->kernel_gs_base);
}

static void host_msrs(struct vcpu *v)
{
	const struct host_msrs *h = vmx_host_msrs();

	rdmsrl(MSR_KERNEL_GS_BASE, v->kernel_gs_base);	/* SWAPGS changes it without an exit */
	swap_msr(MSR_KERNEL_GS_BASE, v->kernel_gs_base, v->host_kernel_gs_base);
	swap_msr(MSR_STAR, v->star, h->star);
	swap_msr(MSR_LSTAR, v->lstar, h->lstar);
	swap_msr(MSR_CSTAR, v->cstar, h->cstar);
	swap_msr(MSR_SYSCALL_MASK, v->fmask, h->fmask);
	if (vmx_caps.secondary & SEC_RDTSCP)
		swap_msr(MSR_TSC_AUX, v->tsc_aux, h->tsc_aux);
}

/* -EAGAIN on a CPU that goes offline: before 5.11 its tasks stay there beyond its callbacks. */
static int load_here(struct vcpu *v)
{
	u64 phys = page_to_phys(v->vmcs), value;
	bool fresh = false;
	u16 fs, gs;
	int cpu;

	savesegment(fs, fs);
	savesegment(gs, gs);
	if (fs || gs)
		return -EOPNOTSUPP;	/* selectors that a VM exit would lose; no 64-bit program has them */
	preempt_disable();
	cpu = smp_processor_id();
	if (unlikely(!vmx_usable())) {
		int err = cpu_active(cpu) ? -ENODEV : -EAGAIN;

		preempt_enable();
		return err;
	}
	if (v->cpu != cpu) {
		vcpu_clear(v);
		local_irq_disable();
		asm volatile("vmclear %0" : : "m" (phys) : "cc", "memory");
		v->launched = false;
		v->cpu = cpu;
		list_add(&v->link, this_cpu_ptr(&active));
		fresh = true;
		local_irq_enable();
	}
	local_irq_disable();
	if (this_cpu_read(current_vcpu) != v) {
		asm volatile("vmptrld %0" : : "m" (phys) : "cc", "memory");
		this_cpu_write(current_vcpu, v);
		/* One VM must not steer the speculation of another. */
		if (this_cpu_read(last_vm) != v->vm->id) {
			this_cpu_write(last_vm, v->vm->id);
			indirect_branch_prediction_barrier();
		}
	}
	local_irq_enable();
	if (fresh) {
		u64 behind = v->page_tsc - guest_tsc(v);

		/* The TSCs of two CPUs may differ by a little; the guest's does not run backwards for it. */
		if (unlikely((s64)behind > 0))
			v->tsc_offset += behind;
		if (v->host_cr3 == 0)		/* first of all */
			setup_vmcs(v);
		host_cpu_state();
		v->flush_vpid = true;
		v->priv_flush = true;
	}
	asm volatile("sldt %0" : "=m" (v->host_ldt));
	savesegment(ds, v->host_ds);
	savesegment(es, v->host_es);
	rdmsrl(MSR_FS_BASE, value);
	vmcs_write(F_HOST_FS_BASE, value);
	rdmsrl(MSR_IA32_DEBUGCTLMSR, v->host_debugctl);
	vmcs_write(F_TSC_OFFSET, v->tsc_offset);
	guest_msrs(v);
	xsave_load(v);
	if (vmx_caps.flush_l1d)
		wrmsrl(MSR_IA32_FLUSH_CMD, 1);
	return 0;
}

/*
 * Preemption stays off until vcpu_put. -EOPNOTSUPP for a 32-bit caller; -ENODEV
 * on a CPU without VT-x or while the machine goes down.
 */
int vcpu_load(struct vcpu *v)
{
	int err;

	/* Who wakes up does so on a CPU that stays. */
	while ((err = load_here(v)) == -EAGAIN)
		schedule_timeout_uninterruptible(1);
	return err;
}

void vcpu_put(struct vcpu *v)
{
	struct dtr gdt, idt;

	xsave_save(v);
	host_msrs(v);
	/* A VM exit sets the limits of GDTR and IDTR to 0xffff (SDM 27.5.2) and that of TR to 0x67. */
	asm volatile("sgdt %0" : "=m" (gdt));
	asm volatile("sidt %0" : "=m" (idt));
	gdt.limit = GDT_SIZE - 1;
	idt.limit = IDT_ENTRIES * 16 - 1;
	asm volatile("lgdt %0" : : "m" (gdt));
	asm volatile("lidt %0" : : "m" (idt));
	if (unlikely(v->host_ldt))		/* made unusable by a VM exit (SDM 27.5.2); modify_ldt's */
		asm volatile("lldt %0" : : "m" (v->host_ldt));
	if (v->host_ds | v->host_es) {
		loadsegment(ds, v->host_ds);
		loadsegment(es, v->host_es);
	}
	invalidate_tss_limit();
	if (v->host_debugctl)
		wrmsrl(MSR_IA32_DEBUGCTLMSR, v->host_debugctl);
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
	preempt_enable();
}

/* ---- life ------------------------------------------------------------------------------------------ */

struct vcpu *vcpu_new(struct vm *vm, u32 index)
{
	struct vcpu *v = kzalloc(sizeof(*v), GFP_KERNEL_ACCOUNT);

	if (!v)
		return NULL;
	v->vm = vm;
	v->index = index;
	v->cpu = -1;
	v->xcr0 = 1;
	v->step_back = ~0u;
	v->priv_view = ~0u;
	v->vmcs = vmx_alloc_vmcs();
	v->page_page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	v->xsave = (u8 *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	v->vpid = vmx_alloc_vpid();
	if (!v->vmcs || !v->page_page || !v->xsave || v->vpid < 0 || step_init(v)) {
		vcpu_free(v);
		return NULL;
	}
	v->page = page_address(v->page_page);
	v->page->size = sizeof(struct hvi_vcpu);
	v->page->index = index;
	v->page->initial_apic_id = index;
	v->page->eptp_index = ~0u;
	return v;
}

void vcpu_free(struct vcpu *v)
{
	vcpu_clear(v);
	if (v->vmcs)
		__free_page(v->vmcs);
	if (v->page_page)
		__free_page(v->page_page);
	free_page((unsigned long)v->xsave);
	if (v->vpid > 0)
		vmx_free_vpid(v->vpid);
	step_free(v);
	ve_free(v);
	kfree(v);
}
