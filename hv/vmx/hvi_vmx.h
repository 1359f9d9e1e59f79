/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * hvi_vmx.h - the module's structures and the contract between its files.
 *
 *   main.c     /dev/hvi: open, ioctl table, mmap, close
 *   vm.c       the VM: creation, intercepts, locking against a running guest
 *   mem.c      RAM and spare pages, made at the first touch
 *   ept.c      views: rights, remappings, EPT tables filled on demand
 *   ve.c       #VE and EPTP switching by VMFUNC; spp.c: sub-page write permissions
 *   step.c     replies that hold for one instruction: private EPT, MTF
 *   vmx.c      capabilities, VMXON and VMXOFF, CPU hotplug, suspend, VMCS regions
 *   vcpu.c     one vCPU: creation, loading on a CPU and putting away
 *   state.c    the vCPU page to the VMCS and back; check.c names invalid fields
 *   run.c      HVI_RUN: which vCPU, replies, the inner loop
 *   exit.c     VM exits; control.c, msr.c, dtr.c, cpuid.c: of instructions
 *   event.c    injection, IDT vectoring, windows
 *   paging.c   the guest's own page tables; accessed and dirty bits
 *   insn.c     the length of an instruction, where the CPU does not tell it
 *
 * One thread at a time runs a VM (vm->lock); with several vCPUs they take
 * turns on it. From vcpu_load to vcpu_put preemption is off, the VMCS is
 * current and guest FPU, MSRs and XCR0 are on the CPU: nothing sleeps there.
 */
#ifndef HVI_VMX_H
#define HVI_VMX_H

#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/timex.h>
#include <linux/wait.h>
#include <asm/msr.h>
#include "compat.h"
#include "vmcs.h"
#include "../abi/hvi.h"

#define NO_PAGE		0xffffffffu	/* not a page of RAM */
#define MAX_RAM		(64ull << 30)
#define MSR_RANGE	8192
#define PORTS		65536
#define SLICE_TICKS	200000		/* guest TSC a vCPU runs while others wait */
#define VEC_DB		1
#define VEC_NMI		2
#define VEC_BP		3
#define VEC_UD		6
#define VEC_DF		8
#define VEC_GP		13
#define VEC_PF		14
#define VEC_AC		17
#define VEC_MC		18
#define VEC_VE		20

#define CR0_GUEST_MASK	0xe005003full	/* bits that a guest may set */
#define PENDING_ENABLED	(1u << 12)	/* of pending debug exceptions: B0-B3 count */
#define PENDING_BS	(1u << 14)
#define DR6_FIXED	0xffff0ff0ull
#define DR7_FIXED	0x400ull
#define FLAG_TF		(1u << 8)
#define FLAG_IF		(1u << 9)
#define FLAG_RF		(1u << 16)
#define FLAG_VM		(1u << 17)
#define ACCESS_L	(1u << 13)
#define ACCESS_DB	(1u << 14)

/* ---- what the CPU can (vmx.c) -------------------------------------------------- */

struct vmx_caps {
	u32 revision;
	u32 pin, primary, secondary, exit, entry;	/* controls that hold for every vCPU */
	u32 secondary_allowed;
	u32 primary_allowed;
	u64 cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1;
	u64 ept_vpid;
	u32 timer_shift;
	u64 xcr0;			/* bits that a guest may have */
	u32 xsave_size;
	u32 phys_bits;
	u64 max_gfn;
	u64 caps;			/* HVI_CAP_* */
	u32 rights;			/* of a page, that EPT allows: a bit a combination of HVI_RWX */
	bool flush_l1d, verw, perf, ins_outs_info;
};
extern struct vmx_caps vmx_caps;

/* Host MSRs that a guest's displace; constant for a CPU. */
struct host_msrs {
	u64 star, lstar, cstar, fmask, tsc_aux;
};

int vmx_init(void);
void vmx_exit(void);
bool vmx_usable(void);						/* on this CPU; preemption is off */
struct page *vmx_alloc_vmcs(void);
int vmx_alloc_vpid(void);
void vmx_free_vpid(int vpid);
const struct host_msrs *vmx_host_msrs(void);

/* ---- memory ---------------------------------------------------------------------- */

struct slot {
	u64 gfn, pages;
	u32 first;			/* page number in RAM */
	struct file *file;
	u64 file_offset;
	struct page **page;		/* made at the first touch */
};

#define PAGE_SPP	(1u << 6)	/* has a mask of writable parts */
#define PAGE_VE		(1u << 7)	/* its violations are convertible to #VE */

/* Where rights changed last; the next change is mostly close by. */
struct near {
	u64 first, count;		/* GFNs of one table and one slot; count 0: nothing */
	u8 *rights;			/* theirs */
	u64 *entry;			/* theirs; NULL: there is no table */
	bool large;			/* but a large page */
	u64 gen;			/* of the view, for which this is true */
};

struct view {
	bool used;
	u8 *rights;			/* a byte a RAM page: HVI_RWX, PAGE_* */
	bool marked;			/* some page has, or had, a PAGE_* */
	u64 *sppt;			/* sub-page permission table; NULL: no page has a mask */
	u32 *remap;			/* spare page that stands for a RAM page; NULL: none */
	u64 *root;
	u64 gen;			/* changes with every entry of the tables */
	u64 flush, *flushed;		/* a CPU whose flushed[] differs must INVEPT before it enters */
	struct near near;
};

/* ---- the VM ------------------------------------------------------------------------ */

struct vcpu;

/*
 * Of the vCPU that exited last: what the engine left in its page, copied
 * before it is checked, since the page may change under us. Of ranges and
 * bytes, those that the action needs. The exit is the engine's to change too:
 * nothing of it is trusted.
 */
struct answer {
	struct hvi_exit exit;
	struct hvi_reply reply;
};

struct vm {
	struct mutex lock;
	atomic_t waiters;		/* that want the lock from a running guest */
	wait_queue_head_t wake;
	struct task_struct *runner;	/* in HVI_RUN; it gives the lock away when others want it */
	bool lock_lost;			/* it was killed before it had the lock again */

	u64 id;				/* never used twice */
	u32 ncpus;
	struct vcpu *cpu[HVI_MAX_VCPUS];
	struct vcpu *last;		/* exited last: its reply is to be taken */
	struct answer answer;
	u32 turn;
	bool started;

	struct mutex ram_lock;		/* page[] of slots, spare[] */
	u32 nslots;
	u32 ram_pages;
	u64 top_gfn;			/* behind the highest of RAM */
	struct slot slot[HVI_MAX_MEMORY_SLOTS];
	u32 spare_count;
	struct page **spare;
	struct view view[HVI_MAX_VIEWS];
	struct hvi_ept_range *batch;	/* a page: what HVI_EPT_SET is working on */

	struct hvi_cpuid_entry cpuid[HVI_MAX_CPUID];
	u32 ncpuid;
	u64 cr4_allowed, xcr0_allowed;

	u64 cr0_exit, cr4_exit;
	bool cr3_exit, cr8_exit, xsetbv_exit, vmcall_exit, cpuid_exit, hlt_exit;
	u32 dtr_exit, exception_exit;
	unsigned long *io_bitmap;	/* two pages, all ones: every port exits to the module */
	unsigned long *io_silent;	/* ports that do not exit to the engine */
	bool any_silent;
	unsigned long *msr_bitmap;	/* one page: read low, read high, write low, write high */
	DECLARE_BITMAP(msr_read, 2 * MSR_RANGE);	/* that the engine asked for */
	DECLARE_BITMAP(msr_write, 2 * MSR_RANGE);
	/* The range 40000000h has no bits in the CPU's bitmap: it always exits. */
	DECLARE_BITMAP(msr_read_hv, MSR_RANGE);
	DECLARE_BITMAP(msr_write_hv, MSR_RANGE);

	u8 paused[HVI_MAX_VCPUS];
	u8 pause_report[HVI_MAX_VCPUS], kicked[HVI_MAX_VCPUS];
	u32 attention;			/* look at pause_report and kicked */
	u32 controls_gen;		/* changes with the intercepts above */
	u64 stopped_at;			/* host TSC when the last run ended: guest time stands still from there */
	bool has_deadline;
};

/* ---- a vCPU -------------------------------------------------------------------------- */

enum override_kind { OV_ALLOW, OV_EMULATE, OV_SCRATCH };
struct override {
	u64 gfn;
	u64 frame;			/* host frame of the page; 0: device space */
	u8 kind;
	u8 rights;			/* in the private EPT */
	bool answered;			/* it was violated; else only some range lies on it */
	bool walk;			/* a page table, read by the CPU's walk */
	bool write, spare;		/* flags of EMULATE */
	bool shown;			/* the copy stands for the page */
	bool tracked;			/* and `before` tells what was written to it */
	u8 nranges;
	struct page *copy;		/* what the instruction sees and writes instead of the page */
	struct page *before;		/* the copy before the instruction */
	struct hvi_emulate_range range[HVI_EMULATE_RANGES];
	u8 bytes[HVI_EMULATE_BYTES];
};

/* An event on its way through the IDT. */
struct event {
	bool valid, has_err, set_cr2, injected, notify;
	bool is_db;
	u8 type, vector, len;
	u32 err;
	u64 cr2, dr6;
};

struct vcpu {
	u64 gpr[HVI_GPRS];		/* entry.S; RSP is in the VMCS */
	struct vm *vm;
	struct hvi_vcpu *page;
	struct page *page_page;
	u32 index;
	int vpid;

	struct page *vmcs;
	int cpu;			/* on which the VMCS is active, or -1 */
	struct list_head link;		/* of that CPU's active ones */
	bool launched;
	bool flush_vpid;
	u64 host_cr3, host_cr4, host_debugctl, host_perf;
	u32 primary_now, secondary_now, exception_now;
	u64 eptp_now;
	u16 host_ds, host_es, host_ldt;
	bool irq_open, nmi_open, debug_pending;	/* as of the last vcpu_put */

	u64 cr2, cr8, xcr0;
	u64 star, lstar, cstar, fmask, kernel_gs_base, tsc_aux;
	u64 apic_base, xss, spec_ctrl, misc_enable, tsc_adjust, mcg_status, tsc_deadline, debugctl;
	u64 mtrr_def, mtrr_fix[11], mtrr_base[8], mtrr_mask[8];
	u64 dr[8];
	u64 tsc_offset;			/* guest TSC - host TSC */
	u64 page_tsc;
	u64 deadline;			/* of the run, in host TSC */
	u32 controls_gen;		/* of the VM, as put into the VMCS */
	u64 fill_gfn;			/* EXIT_FILL */
	u64 host_kernel_gs_base;
	u8 *xsave;
	u32 rip_len;			/* of the last exit's instruction */

	u32 mp_state;
	u32 view;
	struct event evt;		/* to be delivered at the next entry */
	struct event flying;		/* put into the VMCS at the last entry */
	bool pass_exception;
	bool notify_injected, notify_step, shut_down;
	bool pass_dtr;			/* one instruction without descriptor-table exits */
	u32 reload;			/* groups of the page to load, whatever is dirty */
	bool entered;			/* since the page was loaded */
	u32 page_view;			/* the page's view, checked */
	bool in_exit;
	u32 spurious;

	/* for one instruction (step.c) */
	bool one, step_notify;
	u32 step_back;
	u64 one_rip;
	u32 nov, oldest;		/* of ov[]: in use; to be reused next when all are */
	struct override *ov;		/* HVI_MAX_OVERRIDES */
	u64 *priv_root;
	u32 priv_view;			/* whose tables the private ones are made of */
	u64 priv_gen;
	u64 *pool[3 * HVI_MAX_OVERRIDES];	/* tables of the private EPT */
	u32 pool_used, pool_size;
	u32 applied;			/* overrides that stand in the tables */
	bool priv_flush;

	struct hvi_vcpu taken;		/* copy of the page, checked and loaded */

	/* hvi_ve (ve.c) */
	u64 ve_info;			/* host address of the information page; 0: no #VE */
	u32 nviews;			/* that VMFUNC may select; 0: none */
	u32 views[HVI_MAX_VIEWS];
	u64 *eptp_list;
	u64 vmfunc_now;			/* VM-function controls */
	u64 spptp_now;
};

/* What a caller or its guest may ask too much of: it fails before others are killed for it. */
#define GFP_MODEST	(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

/* mem.c */
u32 ram_index(const struct vm *vm, u64 gfn);
struct page *ram_page(struct vm *vm, u32 index);		/* may sleep; ERR_PTR */
struct page *ram_page_mapped(struct vm *vm, u32 index);
struct page *ram_page_present(const struct vm *vm, u32 index);	/* NULL when never touched */
int mem_add(struct vm *vm, struct hvi_memory *a);
int mem_add_spare(struct vm *vm, struct hvi_spare *a);
struct page *mem_spare(struct vm *vm, u32 index);
void mem_free(struct vm *vm);

/* ept.c */
int view_init(struct vm *vm, u32 view);
void view_free(struct vm *vm, u32 view);
int ept_set(struct vm *vm, const struct hvi_ept *a);
int ept_get(struct vm *vm, const struct hvi_ept *a);
int view_create(struct vm *vm, struct hvi_view *a);
int view_destroy(struct vm *vm, const struct hvi_view *a);
int view_remap(struct vm *vm, const struct hvi_remap *a);
u32 view_rights(const struct vm *vm, u32 view, u64 gfn);
int ept_fill(struct vm *vm, u32 view, u64 gfn);			/* may sleep */
u64 *ept_leaf(u64 *root, u64 gfn, int *level);
u64 ept_frame(struct vm *vm, u32 view, u64 gfn);		/* host frame that stands there, 0: none yet */
u64 ept_pointer(const u64 *root);
void ept_invalidate(struct vcpu *v, u64 eptp);
void ept_clear(u64 *t);						/* a table of nothing */
bool ept_hides_mark(struct vm *vm, u32 view, u64 gfn);
int ept_mark(struct vm *vm, u32 view, u64 gfn, u64 count, u8 mark, bool on);	/* may sleep */
void ept_changed(struct vm *vm, u32 view);
bool ept_test_stale(struct view *v, int cpu);
#define EPT_WB_IPAT	((6u << 3) | (1u << 6))
#define EPT_LARGE	(1ull << 7)
#define EPT_FRAME	0x000ffffffffff000ull
/* Where a GFN stands in a table of a level, 1 to 4; the table that an entry points to. Of sub-page tables too. */
#define EPT_INDEX(gfn, level)	((gfn) >> (9 * ((level) - 1)) & 511)
static inline u64 *ept_table(u64 entry)
{
	return __va(entry & EPT_FRAME);
}
#define EPT_SPP		(1ull << 61)
/* Suppress #VE, in entries of nothing too: only what the engine made convertible may become one. */
#define EPT_NO_VE	(1ull << 63)
#define EPT_NONE	EPT_NO_VE

/* ve.c */
int ve_set(struct vm *vm, const struct hvi_ve *a);
int ve_pages(struct vm *vm, const struct hvi_ve_pages *a);
void ve_load(struct vcpu *v);					/* into the VMCS: after HVI_VE_SET */
void ve_free(struct vcpu *v);
u32 ve_index(const struct vcpu *v, u32 view);			/* in hvi_ve.views, or ~0 */
void ve_enter(struct vcpu *v, u64 eptp);			/* before an entry with eptp */
void ve_follow(struct vcpu *v);					/* after an exit: the guest may have switched */
int exit_vmfunc(struct vcpu *v);

/* spp.c */
int spp_set(struct vm *vm, const struct hvi_spp *a);
u64 *spp_copy(const u64 *sppt);
void spp_free(u64 *sppt);
u32 spp_load(struct vcpu *v);

/* step.c */
int step_init(struct vcpu *v);
void step_free(struct vcpu *v);
int step_prepare(struct vcpu *v, u64 gfn, const struct hvi_reply *r);	/* may sleep: pages that the reply will need */
void step_override(struct vcpu *v, u64 gfn, enum override_kind kind, bool walk, const struct hvi_reply *r);
void step_show(struct vcpu *v);					/* make the copies anew: before the instruction runs again */
int step_enter(struct vcpu *v, u64 *eptp);			/* -EAGAIN: step_more, then again */
int step_more(struct vcpu *v);					/* may sleep */
void step_drop(struct vcpu *v);					/* forget the overrides, the step and its notice */
void step_finish(struct vcpu *v, bool done);			/* the instruction is over; done: its writes count */
void step_faulted(struct vcpu *v);				/* forget the overrides: what is to come is a delivery */
void step_reset(struct vcpu *v);
u32 step_rights(const struct vcpu *v, u64 gfn, u32 rights);	/* that hold now for a page with these in the view */
u8 *step_copy(const struct vcpu *v, u64 gfn);			/* what stands for the page, NULL: itself */
bool step_walked(struct vcpu *v, u64 gfn);			/* a walk's bit was set in the page's copy; false: it has none */

/* vcpu.c */
struct vcpu *vcpu_new(struct vm *vm, u32 index);
void vcpu_free(struct vcpu *v);
int vcpu_load(struct vcpu *v);
void vcpu_put(struct vcpu *v);
void vcpu_clear(struct vcpu *v);				/* VMCLEAR wherever it is active */
void vcpu_clear_here(void);					/* all of this CPU */
void vcpu_init_lists(void);
void vcpu_refresh_host(struct vcpu *v);
#define ENTER_VERW	1u
#define ENTER_LAUNCHED	2u
int hvi_vmx_enter(u64 *gpr, u32 flags);
u64 hvi_vmx_host_rip(void);

/* state.c */
void state_reset(struct vcpu *v);
u32 state_load(struct vcpu *v, u32 groups);			/* VMCS loaded; 0 or the invalid field */
void state_store(struct vcpu *v);				/* VMCS loaded */
__u64 *state_msr_field(struct vcpu *v, u32 index, u32 *group);
u64 guest_cr0(void);
u64 guest_cr4(void);
void set_guest_cr0(struct vcpu *v, u64 cr0);
void set_guest_cr4(struct vcpu *v, u64 cr4);
void set_guest_efer(struct vcpu *v, u64 efer);
void state_masks(struct vcpu *v);
u32 pending_debug(void);					/* DR6 bits of a #DB to come; VMCS loaded */
u32 check_failed_entry(struct vcpu *v, u32 number);		/* check.c; enum hvi_field */

/* run.c */
int run(struct vm *vm, struct hvi_run *a);
int do_hlt(struct vcpu *v);
int vcpu_op(struct vm *vm, unsigned int request, const struct hvi_vcpu_op *op);
struct hvi_exit *exit_record(struct vcpu *v, u32 reason);
void skip(struct vcpu *v, u32 len);
u64 guest_tsc(const struct vcpu *v);

/* exit.c: 0 go on, > 0 the reason of an exit to the engine or EXIT_FILL */
#define EXIT_FILL	0x10000		/* fill v->fill_gfn, then go on */
int handle_exit(struct vcpu *v, u32 reason);
void handle_host_events(struct vcpu *v, u32 reason);		/* interrupts are off: NMI, machine check */
int exit_engine(struct vcpu *v, u32 reason);
int inject_exception(struct vcpu *v, u32 vector, bool has_err, u32 err);
int inject_gp0(struct vcpu *v);
int inject_ud(struct vcpu *v);
u32 guest_cpl(void);
int guest_code_bits(void);

/* event.c */
bool can_take_irq(struct vcpu *v);
void event_vectoring(struct vcpu *v);				/* after each exit */
void event_merge(struct vcpu *v, const struct event *second);
void event_put(struct vcpu *v);					/* v->evt into the VMCS */
int event_pending(struct vcpu *v);				/* before an entry: the engine's; reason or 0 */

/* msr.c */
bool msr_read(struct vcpu *v, u32 index, u64 *value);
bool msr_write_ok(struct vcpu *v, u32 index, u64 value);
bool msr_write(struct vcpu *v, u32 index, u64 value);
void msr_set(struct vcpu *v, u32 index, u64 value);
int msr_list(struct vm *vm, struct hvi_msrs *a);
int msr_access(struct vm *vm, const struct hvi_msrs *a, bool set);
int msr_intercept(struct vm *vm, const struct hvi_intercept *a, bool write);
bool msr_asked(const struct vm *vm, u32 index, bool write);
void msr_bitmap_init(struct vm *vm);
int exit_rdmsr(struct vcpu *v);
int exit_wrmsr(struct vcpu *v);
int resume_msr(struct vcpu *v, u32 index, u64 value, bool write);

/* cpuid.c */
int cpuid_get(struct hvi_cpuid *a);
int cpuid_set(struct vm *vm, const struct hvi_cpuid *a);
void cpuid_default(struct vm *vm);
void cpuid_answer(struct vcpu *v);
void cpuid_query(struct vcpu *v, u32 leaf, u32 index, u32 *r);

/* control.c */
int exit_cr(struct vcpu *v);
int exit_dr(struct vcpu *v);
int exit_xsetbv(struct vcpu *v);
int write_cr(struct vcpu *v, u32 number, u64 value);		/* 0 or injects */
int write_xcr(struct vcpu *v, u32 number, u64 value);
bool load_pdptes(struct vcpu *v, u64 cr3);
void load_debug_registers(struct vcpu *v);

/* dtr.c */
int exit_gdt_idt(struct vcpu *v);
int exit_ldt_tr(struct vcpu *v);

/* xsave.c */
int xsave_init(void);
int xsave_get(struct vm *vm, const struct hvi_xsave *a);
int xsave_put(struct vm *vm, const struct hvi_xsave *a);
void xsave_reset(struct vcpu *v);
void xsave_load(struct vcpu *v);
void xsave_save(struct vcpu *v);
void xsave_set_xcr0(struct vcpu *v, u64 value);
u32 xsave_size_of(u64 xcr0);

/* mtrr.c */
u32 mtrr_type(const struct vcpu *v, u64 gpa);

/* paging.c */
void *guest_phys(struct vcpu *v, u64 gpa);			/* as the guest sees it; NULL: no memory, or untouched */
int guest_read(struct vcpu *v, u64 gva, void *to, u32 size);	/* 0, EXIT_FILL, -EFAULT */
int guest_insn_length(struct vcpu *v, const u64 *walked);	/* at RIP, VMCS not loaded, may sleep; 0: unknown */
bool guest_set_ad(struct vcpu *v, u64 entry_gpa);	/* true: the entry was changed, run again */

/* vm.c */
struct vm *vm_new(void);
void vm_free(struct vm *vm);
int vm_create(struct vm *vm, const struct hvi_create *a);
int vm_intercept(struct vm *vm, const struct hvi_intercept *a);
int vm_lock_held(struct vm *vm);
extern atomic_t vm_count;

static inline bool view_ok(const struct vm *vm, u32 view)
{
	return view < HVI_MAX_VIEWS && vm->view[view].used;
}

static inline struct vcpu *vcpu_of(const struct vm *vm, u32 index)
{
	return index < vm->ncpus ? vm->cpu[index] : NULL;
}

/* Also from a running guest. */
static inline int vm_lock(struct vm *vm)
{
	return likely(mutex_trylock(&vm->lock)) ? 0 : vm_lock_held(vm);
}

static inline void vm_unlock(struct vm *vm)
{
	mutex_unlock(&vm->lock);
}

static inline bool is_canonical(u64 a, bool la57)
{
	unsigned int s = la57 ? 7 : 16;

	return (u64)((s64)(a << s) >> s) == a;
}

/* From where user space may write at any time; what is read from the copy stays the same. */
static __always_inline void take(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
	barrier();
}

/* ---- VMX instructions -------------------------------------------------------------- */

static __always_inline u64 vmcs_read(unsigned long field)
{
	u64 value;

	asm volatile("vmread %1, %0" : "=rm" (value) : "r" (field) : "cc");
	return value;
}

static __always_inline u32 vmcs_read32(unsigned long field)
{
	return (u32)vmcs_read(field);
}

void vmcs_write_failed(unsigned long field, u64 value);

static __always_inline void vmcs_write(unsigned long field, u64 value)
{
	bool failed;

	asm volatile("vmwrite %2, %1; setna %0" : "=qm" (failed) : "r" (field), "rm" (value) : "cc");
	if (unlikely(failed))
		vmcs_write_failed(field, value);
}

#endif
