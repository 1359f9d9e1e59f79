/* SPDX-License-Identifier: MIT */
/*
 * more.h - the parts of the machine that instruction handlers do not touch:
 * the VM (memory, views, intercepts, block cache) and the slow half of a vCPU.
 */
#ifndef HVI_SOFT_MORE_H
#define HVI_SOFT_MORE_H

#include <string.h>
#include "cpu.h"

#define PAGE		4096u
#define PHYS_BITS	40		/* MAXPHYADDR of the guest */
#define PHYS_MASK	((1ull << PHYS_BITS) - 1)
#define NO_FRAME	0xffffffffu
#define MAX_RAM		(64ull << 30)
#define SPARE_BYTES	((u64)HVI_MAX_SPARE_PAGES * PAGE)
#define TSC_KHZ		1000000u
#define QUANTUM		4096		/* instructions between two looks at the world; bounds native stack depth */
#define DR6_FIXED	0xffff0ff0u
#define DR7_FIXED	0x400u
#define DEBUGCTL_LBR	(1u << 0)
#define DEBUGCTL_BTF	(1u << 1)

/* ---- blocks (block.c) ------------------------------------------------------ */

#define BLOCK_OPS	64
#define BLOCK_HASH	(1u << 16)
#define JUMPS		4096u

struct block {
	struct block *hash_next;
	struct block *page_next, *page_next2;	/* others of the first and second frame */
	u64 key;		/* frame, offset and mode: block_key() */
	u32 epoch;		/* verified in this entry from the engine */
	u32 frame, frame2;	/* frame2: NO_FRAME unless an instruction crosses */
	u16 off;		/* in the frame */
	u16 bytes;		/* of code */
	u16 n;			/* ops */
	bool stale;
	const u8 *host;		/* where the code stands */
	const struct op *last;
	u32 alloc;		/* bytes in the arena */
	u8 *copy;		/* what it was decoded from; behind the ops */
	struct op ops[];
};

struct jump {
	u64 rip, key;
	struct block *blk;
};

/* What stands on one page of RAM or spare page. */
struct frame {
	u64 code;		/* 64-byte parts that blocks were decoded from */
	struct block *blocks;
};

/* Mode bits of a block's key. */
#define KEY_16		0u
#define KEY_32		1u
#define KEY_64		2u
#define KEY_STACK(n)	((n) == 2 ? 0u : (n) == 4 ? 4u : 8u)
#define KEY_FLAT	16u

/* ---- views ------------------------------------------------------------------- */

struct view {
	bool used;
	u8 *rights;		/* a byte a RAM page */
	u32 *remap;		/* frame that stands for a RAM page; NULL: none in this view */
	u8 *ve;			/* 1: violations of the page are convertible to #VE; NULL: none */
	u32 *parts;		/* mask of writable parts of 128 bytes; NULL: none */
};

/* What one PCID has in a TLB set; without CR4.PCIDE there is PCID 0 alone. */
struct tlb_context {
	u32 pcid;
	u64 gen;		/* 0: unused */
	u64 jump_gen;		/* unique; changes when jumps[] entries become invalid */
	/* For INVLPG, sets that may say yes too often: 4 MiB regions with entries of large pages, pages in jumps[]. */
	u64 large[16];
	u64 code[64];
	u64 huge_first, huge_last;	/* span of 1 GiB pages seen, in GiB; empty when first > last */
};
#define TLB_CONTEXTS	8		/* Linux uses 6 PCIDs at a time */

/* The soft TLBs of one vCPU in one view. */
struct tlb_set {
	struct tlb_entry e[TLB_MODES][TLB_SIZE];
	struct tlb_context context[TLB_CONTEXTS];
	struct tlb_context *now;	/* of the current PCID */
	u32 turn;			/* context to be reused next */
	u64 last_gen;
};

static inline void set_note_code(struct tlb_set *s, u64 la)
{
	s->now->code[la >> 18 & 63] |= 1ull << (la >> 12 & 63);
}

struct slot {
	u64 gfn, pages;
	u64 first;		/* page number in RAM */
};

/* ---- the VM -------------------------------------------------------------------- */

#define MSR_BITMAP	8192	/* bits for each of three ranges */

struct vm {
	u32 ncpus;
	struct cpu *cpu[HVI_MAX_VCPUS];
	bool started;		/* no more memory slots */

	/* One reservation: spare pages first, then RAM. A frame is a page of it. */
	u8 *base;
	u64 ram_size;
	u32 spare_count;
	u32 nslots;
	struct slot slot[HVI_MAX_MEMORY_SLOTS];
	struct frame *frames;

	struct view view[HVI_MAX_VIEWS];

	struct block **hash;
	u8 *arena, *arena_next, *arena_end;
	struct insn *scratch;	/* BLOCK_OPS instructions being translated */
	ZydisDecoder dec16, dec32, dec64;

	struct hvi_cpuid_entry cpuid[HVI_MAX_CPUID];
	u32 ncpuid;

	u64 cr0_exit, cr4_exit;
	bool cr3_exit, cr8_exit, xsetbv_exit, vmcall_exit, cpuid_exit, hlt_exit;
	u32 dtr_exit, exception_exit;
	u8 io_pass[65536 / 8];		/* bit set: the port does not exit */
	u8 msr_read[3][MSR_BITMAP / 8], msr_write[3][MSR_BITMAP / 8];

	u8 paused[HVI_MAX_VCPUS];	/* by HVI_PAUSE */
	volatile u32 attention;		/* pause or kick asked: look at paused[], kicked[] */
	volatile u8 pause_report[HVI_MAX_VCPUS], kicked[HVI_MAX_VCPUS];
	struct cpu *last;		/* exited last: its reply is to be taken */
};

static inline u32 frame_of(const struct vm *vm, const void *host)
{
	return (u32)((u64)((const u8 *)host - vm->base) >> 12);
}

static inline u8 *frame_host(const struct vm *vm, u32 frame)
{
	return vm->base + ((u64)frame << 12);
}

#define SPARE_FRAMES	((u32)(SPARE_BYTES >> 12))

/* ---- the slow half of a vCPU ---------------------------------------------------- */

/* What made cpu->out jump. */
enum leave { LEAVE_NONE, LEAVE_EXCEPTION, LEAVE_EXIT };

/* An event on its way through the IDT. */
struct event {
	bool valid;
	bool has_err;
	bool set_cr2;
	bool injected;		/* from hvi_event: status is reported */
	bool notify;
	bool trap;		/* a #DB trap: RF is not set in the frame */
	u8 type;		/* enum hvi_event_type */
	u8 vector;
	u8 len;			/* software events: RIP moves past it */
	u32 err;
	u64 cr2;
	u64 dr6;		/* #DB: bits to set */
};

/* A reply that holds for the next instruction. */
enum override_kind { OV_ALLOW, OV_EMULATE, OV_SCRATCH };
struct override {
	u64 gfn;
	u8 kind;
	bool write;		/* of EMULATE: stores outside the ranges are made, whatever the rights */
	u8 nranges;
	struct supplied {
		u64 gpa;
		u32 len;
		const u8 *from;	/* in bytes[], or in a spare page */
	} range[HVI_EMULATE_RANGES];
	u8 bytes[HVI_EMULATE_BYTES];
};

/* One instruction's permission to pass an intercept (reply RESUME). */
struct pass {
	bool valid;
	u32 reason, number;
	u64 value;		/* to be written instead */
};

struct cpu_more {
	struct vm *vm;
	struct hvi_vcpu *page;
	u32 index;
	u32 mp_state;
	u32 view;
	struct tlb_set *set[HVI_MAX_VIEWS];
	struct tlb_entry *empty;	/* TLB that never hits: slow path for every access */
	u64 jump_counter;
	u32 mode;			/* KEY_*: of the blocks that fit now */
	u64 fetch_gpa;			/* of the last mmu_fetch; 0 unless overrides hold */
	u64 cs_base;
	u32 cs_limit;
	u16 cs_gen;			/* changes with base or limit of CS outside 64-bit mode */

	struct hvi_segment ldtr, tr;
	struct hvi_table gdtr, idtr;
	u64 page_tsc;			/* as last shown in the page: the engine writes it by changing it */
	u64 star, lstar, cstar, fmask, kernel_gs_base;
	u64 sysenter_cs, sysenter_esp, sysenter_eip;
	u64 pat, apic_base, tsc_offset, tsc_aux, debugctl, xss, spec_ctrl;
	u64 misc_enable, mtrr_def, mtrr_fix[11], mtrr_base[8], mtrr_mask[8], tsc_adjust, feat_ctl;
	u64 mcg_status, tsc_deadline;
	u64 dr[8];
	u64 pdpte[4];

	u64 shadow_at;			/* icount at which the STI or MOV SS shadow lies */
	u32 shadow;			/* HVI_BLOCK_STI or HVI_BLOCK_MOV_SS while icount == shadow_at */
	bool nmi_blocked;
	bool in_iret;			/* an IRET is at work: it unblocks NMIs even when it faults (SDM 6.7.1) */
	u64 pending_debug;		/* DR6 bits of a #DB trap to come */
	u64 debug_before;		/* the same when the instruction began: what a fault goes back to */
	bool single_tf;			/* RFLAGS.TF when the instruction began */

	enum leave leave;
	u64 icount_exact;		/* at the point of leaving */
	struct event evt;		/* to deliver: raised, injected or vectoring */
	bool delivering;
	u8 delivery_cpl;		/* CPL to go back to when the frame's push leaves */
	bool delivery_cpl_valid;
	struct event raised;		/* by cpu_raise, on its way to evt */
	u64 raised_dr6;			/* for a #DB that is being raised */
	bool rf_loaded;			/* the instruction itself has loaded RF */
	bool pass_exception;		/* evt was seen by the engine: deliver */
	bool notify_injected, notify_step, shut_down;
	bool reload;			/* the last load failed: take every group again */
	u8 *nothing;			/* a page of ones: what an allowed read of device space sees */
	u64 fault_la;			/* of the #PF being raised */

	u32 nov, oldest;		/* of ov[]: in use; to be reused next when all are */
	struct pass pass;
	bool one;			/* the next instruction alone: overrides, STEP, NOTIFY */
	bool step_notify;
	u32 step_back;			/* view to return to, or ~0 */
	bool in_exit;			/* page->exit stands for an unanswered exit */
	u32 deliveries;			/* of events so far */
	u64 run_adjust;			/* tsc_adjust when HVI_RUN began */
	u64 quantum_end;

	u32 ve_frame;			/* virtualisation-exception information page; NO_FRAME: no #VE */
	u32 nviews;			/* that VMFUNC may select */
	u32 views[HVI_MAX_VIEWS];

	u64 one_rip;			/* where the overrides belong to */
	struct block *single;		/* scratch block for single instructions */
	struct override ov[HVI_MAX_OVERRIDES];
};

/* Access flags of the slow paths. */
#define ACC_R		HVI_R
#define ACC_W		HVI_W
#define ACC_X		HVI_X
#define ACC_IMPLICIT	(1u << 8)	/* implicit supervisor access: descriptor tables, TSS, IDT */

/* mmu.c, tlb.c */
u32 mmu_ram_page(const struct vm *vm, u64 gfn);		/* page number in RAM or NO_FRAME */
u32 mmu_frame(const struct vm *vm, u32 view, u64 gfn, u32 *rights); /* frame or NO_FRAME */
enum tlb_mode mmu_mode(const struct cpu *c);	/* of explicit data accesses now */
bool mmu_alignment_checked(const struct cpu *c); /* CR0.AM, RFLAGS.AC, CPL 3 */
void mmu_setup(struct cpu *c);			/* choose c->tlb after a change of mode, privilege, view */
void mmu_flush_all(struct cpu *c);		/* every view's */
void mmu_flush_page(struct cpu *c, u64 la);	/* whatever the PCID */
void mmu_switch_pcid(struct cpu *c, bool flush); /* after a change of CR3 with CR4.PCIDE */
void mmu_flush_pcid(struct cpu *c, u32 pcid);
void mmu_forget_frames(struct vm *vm, u32 view, u32 first, u32 count); /* drop tags of host frames; view ~0: every view */
void mmu_forget_pages(struct vm *vm, u32 view, u32 page, u32 count); /* of RAM, by what stands for them in the view */
void mmu_revoke_write(struct vm *vm, u32 frame);
bool mmu_load_pdptes(struct cpu *c, u64 cr3);	/* false: reserved bits */
const u8 *mmu_fetch(struct cpu *c, u64 la);	/* host address of code; raises */
void mmu_fetch_bytes(struct cpu *c, const u8 *host, u8 *to, u32 len); /* after mmu_fetch */
void mem_read_sys(struct cpu *c, const struct op *o, u64 la, void *to, u32 size);
void mem_write_stack(struct cpu *c, const struct op *o, u64 la, const void *from, u32 size); /* at CPL, explicit */
bool seg_limit_ok(const struct hvi_segment *s, u64 off, u32 size);
void mem_write_sys(struct cpu *c, const struct op *o, u64 la, const void *from, u32 size);
int mmu_init_cpu(struct cpu *c);
void mmu_free_cpu(struct cpu *c);
int mmu_add_set(struct cpu *c, u32 view);

/* block.c */
int block_init(struct vm *vm);
void block_free(struct vm *vm);
struct block *block_get(struct cpu *c);		/* the block at c->rip; raises */
struct block *block_single(struct cpu *c);	/* one instruction at c->rip, not cached */
void block_written(struct cpu *c, u32 frame, u32 off, u32 size); /* guest stores into a frame with code */
void block_flush(struct vm *vm);		/* forget all; only between blocks */
u32 block_mode(const struct cpu *c);
bool block_verify(struct cpu *c, struct block *b);	/* false: its bytes have changed, it is gone */

static inline u32 jump_hash(u64 rip)
{
	return (u32)(rip ^ rip >> 12) & (JUMPS - 1);
}

/* exec.c */
void op_block_end(struct cpu *c, const struct op *o);
void cpu_mode_changed(struct cpu *c);	/* segments, CR0, CR4, EFER, CPL changed */
noreturn void cpu_exit(struct cpu *c, const struct op *o, u32 reason);	/* page->exit is filled */
struct hvi_exit *cpu_exit_record(struct cpu *c);	/* a zeroed record */
u64 cpu_icount(const struct cpu *c, const struct op *o);
u64 cpu_tsc(const struct cpu *c, const struct op *o);
u32 exec_run(struct vm *vm, u64 deadline, bool has_deadline, struct cpu **who);
noreturn void cpu_emulation(struct cpu *c, const struct op *o, u64 detail);
bool exec_can_take_irq(const struct cpu *c);
u32 exec_interruptibility(const struct cpu *c);
void exec_drop_one(struct cpu *c);	/* forget overrides, passes, STEP and its notice; the caller does mmu_setup */
void exec_finish_one(struct cpu *c);	/* the same, but the notice that was asked for comes */

/* state.c */
void state_reset(struct cpu *c);
u32 state_load(struct cpu *c, u32 groups);	/* 0, or the field that is invalid */
void state_store(struct cpu *c);
__u64 *state_msr_field(struct cpu *c, u32 index, u32 *group);
void state_segments(struct cpu *c);

/* event.c */
void event_deliver(struct cpu *c);
void event_merge(struct cpu *c);

/* ve.c */
u32 ve_index(const struct cpu *c, u32 view);		/* in hvi_ve.views, or ~0 */
void ve_raise(struct cpu *c, const struct op *o, u64 gpa, u64 la, u32 access, u32 rights); /* returns when it cannot be #VE */
bool spp_allows(const struct cpu *c, u64 gpa, u32 len);

/* cpuid.c */
u32 cpuid_supported(struct hvi_cpuid_entry *out, u32 room);
u64 cpuid_host_xcr0(void);			/* XCR0 bits that a guest may have */
u64 cpuid_xcr0_mask(const struct cpu *c);	/* of these, those in the guest's table */
u32 cpuid_xsave_size(void);
u32 cpuid_size_of(u64 xcr0);			/* bytes of a standard-format XSAVE image */
void cpuid_query(const struct cpu *c, u32 leaf, u32 index, u32 regs[4]);
u64 cpuid_cr4_mask(const struct cpu *c);

/* vm.c */
int vm_msr_bit(u32 index, u32 *range, u32 *bit);	/* place in the intercept bitmaps */

/* msr.c */
bool msr_read(struct cpu *c, const struct op *o, u32 index, u64 *value);
bool msr_write(struct cpu *c, u32 index, u64 value);
void msr_set(struct cpu *c, u32 index, u64 value);	/* by the engine: the one register, no side effect */
bool msr_write_ok(const struct cpu *c, u32 index, u64 value);
u32 msr_list(u32 *out, u32 room);
u32 msr_mtrr_type(const struct cpu *c, u64 gpa);

#endif
