/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * hvi.h - the one interface between the introspection engine and a hypervisor.
 *
 * Two backends implement it: hv/vmx (the kernel module behind /dev/hvi) and
 * hv/soft (a software vCPU in a shared library, which exports hvi_soft_open,
 * hvi_soft_ioctl, hvi_soft_mmap and hvi_soft_close with the meaning of the
 * system calls of the same name). src/bridge/abi.ts is generated from this
 * file; numbers and offsets are asked from the C compiler, never typed twice.
 *
 * Rules
 *   - One open file is one virtual machine. Closing it frees everything.
 *   - Structures are naturally aligned, have no implicit padding and are the
 *     same for every compiler. Reserved fields must be zero.
 *   - Every ioctl returns 0 or a negative errno. On an error nothing changed.
 *   - Physical addresses are guest physical unless said otherwise; a GFN is
 *     GPA >> 12. "View" is one set of EPT rights and remappings.
 */
#ifndef HVI_H
#define HVI_H

#ifdef __KERNEL__
#include <linux/ioctl.h>
#include <linux/types.h>
#else
#include <linux/types.h>
#include <sys/ioctl.h>
#endif

/*
 * Changes when a structure, a number or a meaning changes. The engine refuses
 * a backend with another version and names both.
 */
#define HVI_ABI_VERSION		2

#define HVI_PAGE_SIZE		4096
#define HVI_MAX_VCPUS		32
#define HVI_MAX_VIEWS		64
#define HVI_MAX_SPARE_PAGES	65536
#define HVI_MAX_MEMORY_SLOTS	8
#define HVI_MAX_CPUID		128

/* ---- mmap ------------------------------------------------------------- */
/*
 * Offsets for mmap. RAM is one contiguous range of bytes in the order in which
 * HVI_ADD_MEMORY gave the slots, whatever guest physical address they have.
 * vCPU pages are mapped one by one.
 */
#define HVI_MMAP_RAM		0x0000000000000000ULL	/* + byte in RAM */
#define HVI_MMAP_VCPU		0x0000100000000000ULL	/* + index * HVI_VCPU_SIZE */
#define HVI_MMAP_SPARE		0x0000200000000000ULL	/* + index * HVI_PAGE_SIZE */
#define HVI_VCPU_SIZE		4096

/* ---- what the backend is (HVI_GET_INFO) -------------------------------- */

#define HVI_CAP_EXEC_ONLY	(1ULL << 0)	/* EPT rights --x allowed */
#define HVI_CAP_EPT_AD		(1ULL << 1)	/* page-walk A/D writes completed below */
#define HVI_CAP_SPP		(1ULL << 2)	/* sub-page write permission */
#define HVI_CAP_VE		(1ULL << 3)	/* virtualisation exceptions */
#define HVI_CAP_EPTP_SWITCH	(1ULL << 4)	/* VMFUNC 0 */
#define HVI_CAP_DTR_EXIT	(1ULL << 5)	/* descriptor-table exiting */
#define HVI_CAP_MTF		(1ULL << 6)	/* single-step without guest help */
#define HVI_CAP_MBEC		(1ULL << 7)	/* mode-based execute control */
#define HVI_CAP_COW_MEMORY	(1ULL << 8)	/* HVI_ADD_MEMORY with a file, copy on write */
#define HVI_CAP_ICOUNT		(1ULL << 9)	/* tsc counts guest instructions: deterministic */
#define HVI_CAP_UNRESTRICTED	(1ULL << 10)	/* real mode and unpaged protected mode */
#define HVI_CAP_TSC_SET		(1ULL << 11)	/* guest TSC may be written through the vCPU page */

struct hvi_info {
	__u32 size;		/* in: sizeof(struct hvi_info) of the caller */
	__u32 abi_version;	/* out: HVI_ABI_VERSION of the backend */
	__u64 caps;		/* out: HVI_CAP_* */
	__u32 max_vcpus;
	__u32 max_views;
	__u32 max_spare_pages;
	__u32 xsave_size;	/* bytes for HVI_GET_XSAVE with all of xcr0_mask */
	__u64 xcr0_mask;	/* XCR0 bits a guest may set */
	__u64 max_gfn;		/* highest GFN that EPT can map */
	__u32 tsc_khz;		/* rate of the guest TSC */
	__u32 reserved;
	char backend[16];	/* "soft" or "vmx", NUL padded */
};

/* ---- building a VM ------------------------------------------------------ */

struct hvi_create {
	__u32 vcpus;		/* 1 .. max_vcpus */
	__u32 flags;		/* 0 */
};

/*
 * One range of guest RAM. With fd >= 0 the content is that of the file at
 * fd_offset, private to this VM and copied on write (HVI_CAP_COW_MEMORY);
 * with fd == -1 it is zero. All slots come before the first HVI_RUN.
 */
struct hvi_memory {
	__u64 gpa;		/* page aligned */
	__u64 size;		/* bytes, page aligned, not 0 */
	__s32 fd;
	__u32 flags;		/* 0 */
	__u64 fd_offset;	/* page aligned */
	__u64 ram_offset;	/* out: where in the RAM mapping it stands */
};

/* Answer of CPUID for one leaf; a leaf not in the table answers zeros. */
#define HVI_CPUID_INDEXED	1	/* answers only for ECX == index */
struct hvi_cpuid_entry {
	__u32 leaf;
	__u32 index;
	__u32 flags;
	__u32 eax, ebx, ecx, edx;
	__u32 reserved;
};

/*
 * HVI_GET_CPUID fills entries with what the backend can give a guest;
 * HVI_SET_CPUID sets the table for every vCPU. Bits that follow the vCPU's
 * state (OSXSAVE, XSAVE size, APIC id given as initial_apic_id) are computed.
 */
struct hvi_cpuid {
	__u32 count;		/* in: room or entries given; out: entries */
	__u32 reserved;
	__u64 entries;		/* user pointer to struct hvi_cpuid_entry[] */
};

/* ---- EPT ----------------------------------------------------------------- */

#define HVI_R			1u
#define HVI_W			2u
#define HVI_X			4u
#define HVI_RWX			7u

/* Rights of count GFNs from gfn on. Write without read is refused (SDM 28.3.3.1). */
struct hvi_ept_range {
	__u64 gfn;
	__u32 count;
	__u32 rights;		/* HVI_R | HVI_W | HVI_X */
};

/*
 * HVI_EPT_SET: all ranges or, on an error, none; in effect before the next
 * guest instruction of every vCPU in that view. HVI_EPT_GET: one range entry
 * a GFN asked (count is taken as 1), rights filled in; a GFN outside RAM
 * answers 0.
 */
struct hvi_ept {
	__u32 view;
	__u32 count;		/* ranges, at most 65536 */
	__u64 ranges;		/* user pointer to struct hvi_ept_range[] */
};

/* HVI_VIEW_CREATE: a copy of all of `from`; view 0 exists from the start, all RWX. */
struct hvi_view {
	__u32 from;		/* create: the view to copy */
	__u32 view;		/* out of create; in of destroy */
};

/*
 * In a view, let gfn stand for a spare page. Rights are untouched. spare ==
 * HVI_SPARE_NONE undoes it. HVI_ADD_SPARE makes `count` zeroed pages more.
 */
#define HVI_SPARE_NONE		0xffffffffu
struct hvi_remap {
	__u32 view;
	__u32 spare;
	__u64 gfn;
};
struct hvi_spare {
	__u32 count;		/* in: pages to add */
	__u32 first;		/* out: index of the first of them */
};

/*
 * HVI_SPP_SET (HVI_CAP_SPP): in a view, a page with R and without W may be
 * written all the same in those of its 32 parts of 128 bytes whose bit of mask
 * is set (bit 0: the first); 0, as at the start, undoes it. For other rights it
 * waits. It only saves exits: a write that is not of one part alone, the page
 * walk's writes of accessed and dirty bits, and all writes of a vCPU that may
 * switch views by VMFUNC, may still be violations (SDM 28.3.4), with the rights
 * of the page in hvi_exit.rights.
 */
struct hvi_spp {
	__u32 view;
	__u32 mask;
	__u64 gfn;
};

/*
 * HVI_VE_SET: what one vCPU may do without an exit.
 * enable (HVI_CAP_VE): violations of convertible pages are delivered as #VE,
 * vector 20, and told in the page of RAM at info_gpa (SDM 25.5.7.2), whatever
 * the views say of that page. Those that cannot become #VE (real mode, during
 * the delivery of an event, the 4 bytes at info_gpa + 4 not zero) exit.
 * views (HVI_CAP_EPTP_SWITCH): VMFUNC 0 with ECX = index selects one, at any
 * privilege; hvi_vcpu.view follows. Any other VMFUNC raises #UD. No view twice;
 * none of them can be destroyed. view_count 0: VMFUNC raises #UD.
 */
struct hvi_ve {
	__u32 vcpu;
	__u32 enable;		/* 0 or 1 */
	__u64 info_gpa;		/* virtualisation-exception information page */
	__u32 view_count;	/* views that VMFUNC may select, in order; at most HVI_MAX_VIEWS */
	__u32 reserved;
	__u64 views;		/* user pointer to __u32[] */
};
/*
 * HVI_VE_PAGES: in a view, violations of these GFNs are convertible to #VE (1)
 * or exits (0), as at the start. The page walk's writes of accessed and dirty
 * bits to a convertible page without W are violations too.
 */
struct hvi_ve_pages {
	__u32 view;
	__u32 convertible;
	__u64 gfn;
	__u64 count;
};

/* ---- intercepts ------------------------------------------------------------ */
/*
 * All off at the start, but for I/O: every port exits unless switched off. One
 * that does not exit has no device behind it: IN gives ones, OUT does nothing
 * (INS and OUTS may exit all the same).
 * An EPT violation, a triple fault and an access to a guest physical address
 * without RAM (an EPT violation too) always exit.
 */
enum hvi_intercept_kind {
	HVI_INTERCEPT_MSR_READ = 1,	/* index = MSR, mask 0 or 1 */
	HVI_INTERCEPT_MSR_WRITE,	/* index = MSR, mask 0 or 1 */
	HVI_INTERCEPT_CR0_WRITE,	/* mask = bits whose change exits */
	HVI_INTERCEPT_CR3_WRITE,	/* mask 0 or 1 */
	HVI_INTERCEPT_CR4_WRITE,	/* mask = bits whose change exits */
	HVI_INTERCEPT_CR8_WRITE,	/* mask 0 or 1 */
	HVI_INTERCEPT_DTR,		/* mask = HVI_DTR_* */
	HVI_INTERCEPT_XSETBV,		/* mask 0 or 1 */
	HVI_INTERCEPT_VMCALL,		/* mask 0: VMCALL raises #UD */
	HVI_INTERCEPT_EXCEPTION,	/* mask = bitmap of vectors 0..31 */
	HVI_INTERCEPT_IO,		/* index = port | last port << 16, mask 0 or 1 */
	HVI_INTERCEPT_CPUID,		/* mask 0 or 1 */
	HVI_INTERCEPT_HLT,		/* mask 0: the backend waits for an event or the deadline */
};

#define HVI_DTR_LIDT		(1u << 0)
#define HVI_DTR_LGDT		(1u << 1)
#define HVI_DTR_LLDT		(1u << 2)
#define HVI_DTR_LTR		(1u << 3)
#define HVI_DTR_SIDT		(1u << 4)
#define HVI_DTR_SGDT		(1u << 5)
#define HVI_DTR_SLDT		(1u << 6)
#define HVI_DTR_STR		(1u << 7)

struct hvi_intercept {
	__u32 kind;
	__u32 index;
	__u64 mask;
};

/* ---- the vCPU page ---------------------------------------------------------- */

struct hvi_segment {
	__u64 base;
	__u32 limit;		/* bytes, granularity applied */
	__u32 access;		/* VMX format (SDM 24.4.1): type, S, DPL, P, AVL, L, D/B, G, bit 16 unusable */
	__u16 selector;
	__u16 reserved[3];
};
#define HVI_SEG_UNUSABLE	(1u << 16)

struct hvi_table {
	__u64 base;
	__u32 limit;
	__u32 reserved;
};

enum hvi_seg_index { HVI_ES, HVI_CS, HVI_SS, HVI_DS, HVI_FS, HVI_GS, HVI_SEGS };
/* General registers in the order of their encoding. */
enum hvi_gpr_index {
	HVI_RAX, HVI_RCX, HVI_RDX, HVI_RBX, HVI_RSP, HVI_RBP, HVI_RSI, HVI_RDI,
	HVI_R8, HVI_R9, HVI_R10, HVI_R11, HVI_R12, HVI_R13, HVI_R14, HVI_R15,
	HVI_GPRS
};

/* Groups of registers, for `dirty` (engine changed them) and `valid`. */
#define HVI_STATE_GPR		(1u << 0)	/* gpr, rip, rflags */
#define HVI_STATE_SEG		(1u << 1)	/* seg, ldtr, tr */
#define HVI_STATE_TABLES	(1u << 2)	/* gdtr, idtr */
#define HVI_STATE_CR		(1u << 3)	/* cr0, cr2, cr3, cr4, cr8, xcr0 */
#define HVI_STATE_MSR		(1u << 4)	/* efer ... kernel_gs_base, pat, apic_base, tsc */
#define HVI_STATE_DR		(1u << 5)	/* dr */
#define HVI_STATE_EVENTS	(1u << 6)	/* interruptibility, mp_state, pending_debug */
#define HVI_STATE_ALL		0x7fu

enum hvi_mp_state {
	HVI_MP_RUNNING,
	HVI_MP_HALTED,		/* HLT; an event wakes it */
	HVI_MP_WAIT_SIPI,	/* after INIT; only the engine wakes it */
	HVI_MP_SHUTDOWN,	/* triple fault */
	HVI_MP_PAUSED,		/* by HVI_PAUSE; not part of the guest's state */
};

#define HVI_BLOCK_STI		(1u << 0)	/* SDM 24.4.2 */
#define HVI_BLOCK_MOV_SS	(1u << 1)
#define HVI_BLOCK_NMI		(1u << 3)

enum hvi_exit_reason {
	HVI_EXIT_NONE,
	HVI_EXIT_EPT,		/* gpa, gva, access, rights, size */
	HVI_EXIT_MSR_READ,	/* number = MSR */
	HVI_EXIT_MSR_WRITE,	/* number = MSR, value, old */
	HVI_EXIT_CR_WRITE,	/* number = 0, 3, 4 or 8, value, old */
	HVI_EXIT_DTR,		/* number = one HVI_DTR_* bit, gva of the operand or ~0, value = selector */
	HVI_EXIT_XSETBV,	/* number = XCR, value, old */
	HVI_EXIT_VMCALL,
	HVI_EXIT_EXCEPTION,	/* number = vector, value = error code, gva = CR2 of a #PF */
	HVI_EXIT_IO,		/* number = port, size, flags, value (OUT), gva (string) */
	HVI_EXIT_CPUID,		/* value = EAX, old = ECX */
	HVI_EXIT_HLT,
	HVI_EXIT_DEADLINE,	/* hvi_run.deadline reached */
	HVI_EXIT_IRQ_WINDOW,	/* the guest can take an external interrupt now */
	HVI_EXIT_INJECTED,	/* notice asked with HVI_EVENT_NOTIFY: see event_status */
	HVI_EXIT_STEP,		/* the instruction of a reply with HVI_REPLY_NOTIFY is over */
	HVI_EXIT_SHUTDOWN,	/* triple fault; the state is that before it */
	HVI_EXIT_PAUSED,	/* HVI_PAUSE took effect, or HVI_KICK */
	HVI_EXIT_IDLE,		/* no vCPU can run: all halted with no deadline, or waiting */
	HVI_EXIT_ENTRY_FAILED,	/* number = enum hvi_entry_error, value = enum hvi_field */
	HVI_EXIT_EMULATION,	/* the backend cannot do this instruction; value = detail */
	HVI_EXIT_REASONS
};

/* hvi_exit.number of HVI_EXIT_ENTRY_FAILED: VMX instruction errors (SDM 30.4) and basic exit reasons (appendix C). */
enum hvi_entry_error {
	HVI_ENTRY_BAD_CONTROL = 7,
	HVI_ENTRY_BAD_HOST = 8,
	HVI_ENTRY_BAD_GUEST = 33,
	HVI_ENTRY_BAD_MSR = 34,
	HVI_ENTRY_MACHINE_CHECK = 41,
};

/*
 * hvi_exit.value of HVI_EXIT_ENTRY_FAILED: the field that breaks a rule of SDM
 * 26.2 or 26.3. Encodings are those of VMCS fields (appendix B); from 8000h on,
 * where no encoding is, stands what is no VMCS field.
 */
enum hvi_field {
	HVI_FIELD_VPID = 0x0000,
	HVI_FIELD_GUEST_ES_SELECTOR = 0x0800, HVI_FIELD_GUEST_CS_SELECTOR = 0x0802,
	HVI_FIELD_GUEST_SS_SELECTOR = 0x0804, HVI_FIELD_GUEST_DS_SELECTOR = 0x0806,
	HVI_FIELD_GUEST_FS_SELECTOR = 0x0808, HVI_FIELD_GUEST_GS_SELECTOR = 0x080a,
	HVI_FIELD_GUEST_LDTR_SELECTOR = 0x080c, HVI_FIELD_GUEST_TR_SELECTOR = 0x080e,
	HVI_FIELD_HOST_ES_SELECTOR = 0x0c00, HVI_FIELD_HOST_CS_SELECTOR = 0x0c02,
	HVI_FIELD_HOST_SS_SELECTOR = 0x0c04, HVI_FIELD_HOST_DS_SELECTOR = 0x0c06,
	HVI_FIELD_HOST_FS_SELECTOR = 0x0c08, HVI_FIELD_HOST_GS_SELECTOR = 0x0c0a,
	HVI_FIELD_HOST_TR_SELECTOR = 0x0c0c,
	HVI_FIELD_IO_BITMAP_A = 0x2000, HVI_FIELD_IO_BITMAP_B = 0x2002, HVI_FIELD_MSR_BITMAP = 0x2004,
	HVI_FIELD_EPT_POINTER = 0x201a, HVI_FIELD_VMCS_LINK = 0x2800,
	HVI_FIELD_GUEST_DEBUGCTL = 0x2802, HVI_FIELD_GUEST_PAT = 0x2804, HVI_FIELD_GUEST_EFER = 0x2806,
	HVI_FIELD_GUEST_PDPTE0 = 0x280a, HVI_FIELD_GUEST_PDPTE1 = 0x280c,
	HVI_FIELD_GUEST_PDPTE2 = 0x280e, HVI_FIELD_GUEST_PDPTE3 = 0x2810,
	HVI_FIELD_HOST_PAT = 0x2c00, HVI_FIELD_HOST_EFER = 0x2c02,
	HVI_FIELD_PIN_CONTROLS = 0x4000, HVI_FIELD_PRIMARY_CONTROLS = 0x4002, HVI_FIELD_CR3_TARGET_COUNT = 0x400a,
	HVI_FIELD_EXIT_CONTROLS = 0x400c, HVI_FIELD_ENTRY_CONTROLS = 0x4012,
	HVI_FIELD_ENTRY_EVENT = 0x4016, HVI_FIELD_ENTRY_EVENT_ERROR_CODE = 0x4018,
	HVI_FIELD_ENTRY_EVENT_INSN_LEN = 0x401a, HVI_FIELD_SECONDARY_CONTROLS = 0x401e,
	HVI_FIELD_GUEST_ES_LIMIT = 0x4800, HVI_FIELD_GUEST_CS_LIMIT = 0x4802, HVI_FIELD_GUEST_SS_LIMIT = 0x4804,
	HVI_FIELD_GUEST_DS_LIMIT = 0x4806, HVI_FIELD_GUEST_FS_LIMIT = 0x4808, HVI_FIELD_GUEST_GS_LIMIT = 0x480a,
	HVI_FIELD_GUEST_LDTR_LIMIT = 0x480c, HVI_FIELD_GUEST_TR_LIMIT = 0x480e,
	HVI_FIELD_GUEST_GDTR_LIMIT = 0x4810, HVI_FIELD_GUEST_IDTR_LIMIT = 0x4812,
	HVI_FIELD_GUEST_ES_ACCESS = 0x4814, HVI_FIELD_GUEST_CS_ACCESS = 0x4816, HVI_FIELD_GUEST_SS_ACCESS = 0x4818,
	HVI_FIELD_GUEST_DS_ACCESS = 0x481a, HVI_FIELD_GUEST_FS_ACCESS = 0x481c, HVI_FIELD_GUEST_GS_ACCESS = 0x481e,
	HVI_FIELD_GUEST_LDTR_ACCESS = 0x4820, HVI_FIELD_GUEST_TR_ACCESS = 0x4822,
	HVI_FIELD_GUEST_INTERRUPTIBILITY = 0x4824, HVI_FIELD_GUEST_ACTIVITY = 0x4826,
	HVI_FIELD_GUEST_CR0 = 0x6800, HVI_FIELD_GUEST_CR3 = 0x6802, HVI_FIELD_GUEST_CR4 = 0x6804,
	HVI_FIELD_GUEST_ES_BASE = 0x6806, HVI_FIELD_GUEST_CS_BASE = 0x6808, HVI_FIELD_GUEST_SS_BASE = 0x680a,
	HVI_FIELD_GUEST_DS_BASE = 0x680c, HVI_FIELD_GUEST_FS_BASE = 0x680e, HVI_FIELD_GUEST_GS_BASE = 0x6810,
	HVI_FIELD_GUEST_LDTR_BASE = 0x6812, HVI_FIELD_GUEST_TR_BASE = 0x6814,
	HVI_FIELD_GUEST_GDTR_BASE = 0x6816, HVI_FIELD_GUEST_IDTR_BASE = 0x6818, HVI_FIELD_GUEST_DR7 = 0x681a,
	HVI_FIELD_GUEST_RIP = 0x681e, HVI_FIELD_GUEST_RFLAGS = 0x6820, HVI_FIELD_GUEST_PENDING_DEBUG = 0x6822,
	HVI_FIELD_GUEST_SYSENTER_ESP = 0x6824, HVI_FIELD_GUEST_SYSENTER_EIP = 0x6826,
	HVI_FIELD_HOST_CR0 = 0x6c00, HVI_FIELD_HOST_CR3 = 0x6c02, HVI_FIELD_HOST_CR4 = 0x6c04,
	HVI_FIELD_HOST_FS_BASE = 0x6c06, HVI_FIELD_HOST_GS_BASE = 0x6c08, HVI_FIELD_HOST_TR_BASE = 0x6c0a,
	HVI_FIELD_HOST_GDTR_BASE = 0x6c0c, HVI_FIELD_HOST_IDTR_BASE = 0x6c0e,
	HVI_FIELD_HOST_SYSENTER_ESP = 0x6c10, HVI_FIELD_HOST_SYSENTER_EIP = 0x6c12, HVI_FIELD_HOST_RIP = 0x6c16,
	HVI_FIELD_NOT_KNOWN = 0x8000,	/* the backend cannot tell which */
	HVI_FIELD_GUEST_CR8, HVI_FIELD_GUEST_XCR0,
	HVI_FIELD_GUEST_LSTAR, HVI_FIELD_GUEST_CSTAR, HVI_FIELD_GUEST_KERNEL_GS_BASE,
	HVI_FIELD_MP_STATE,
};

/*
 * hvi_exit.access. A read-modify-write is a WRITE; whether READ stands beside
 * it is up to the CPU (SDM 28.2.1, table 28-7). hv/soft says both.
 */
#define HVI_ACCESS_READ		HVI_R
#define HVI_ACCESS_WRITE	HVI_W
#define HVI_ACCESS_EXEC		HVI_X
#define HVI_ACCESS_GVA		(1u << 3)	/* gva is valid */
#define HVI_ACCESS_WALK		(1u << 4)	/* while the CPU read a page table; gpa is that of the entry */
#define HVI_ACCESS_NO_RAM	(1u << 5)	/* no memory there: device space */
#define HVI_ACCESS_EVENT	(1u << 6)	/* while delivering an event through the IDT */
#define HVI_ACCESS_USER		(1u << 7)	/* CPL 3, and not an implicit supervisor access */

/* hvi_exit.flags of HVI_EXIT_IO */
#define HVI_IO_IN		(1u << 0)
#define HVI_IO_STRING		(1u << 1)	/* INS or OUTS: one element an exit; the engine does memory, RSI/RDI, RCX */
#define HVI_IO_REP		(1u << 2)

/*
 * One exit. For faults (EPT, EXCEPTION) RIP stands at the instruction and
 * nothing of it has happened; for instructions that are intercepted likewise,
 * and insn_len is their length. Of an EPT exit a CPU does not tell it.
 */
struct hvi_exit {
	__u32 reason;		/* enum hvi_exit_reason */
	__u32 insn_len;		/* bytes; 0: the backend does not know it yet, see SKIP */
	__u64 gpa;
	__u64 gva;
	__u32 access;		/* HVI_ACCESS_* */
	__u32 rights;		/* of the view at gpa */
	__u32 size;		/* bytes of the access that lie in the violated page, 0 when unknown or a fetch */
	__u32 number;
	__u32 flags;
	__u32 view;		/* the view it ran in */
	__u64 value;
	__u64 old;
	__u64 tsc;		/* guest TSC */
};

/*
 * What happens next. For each exit:
 *   RESUME   as if nobody had looked: the access is made whatever the rights
 *            of the page it violated (for this one instruction, or one
 *            iteration of a REP); the MSR, CR, XCR or DTR write happens with
 *            exit.value; the exception is delivered; CPUID answers from the
 *            table; HLT halts. An I/O exit, VMCALL: same as SKIP.
 *   SKIP     RIP moves past the instruction, by exit.insn_len; when that is 0,
 *            by the length that the backend finds in guest memory, or -EINVAL
 *            when it finds none. What the instruction would have done is the
 *            engine's business: results go in the registers (an IN takes its
 *            value from exit.value). Not for exits without an instruction:
 *            one whose fetch was not allowed is not known yet.
 *   RETRY    run the instruction again under the rights that hold now.
 *   EMULATE  (EPT) run the instruction; the bytes inside the given ranges are
 *            the engine's: reads of them see the bytes supplied, writes to them
 *            are dropped. Reads of the rest of the violated page see memory;
 *            writes to it take effect with HVI_REPLY_WRITE, or when the page
 *            has W in the view, and are dropped otherwise, as by SCRATCH.
 *   SCRATCH  (EPT) run the instruction; its writes to the violated page have no
 *            effect, everything else of it (registers, flags, reads) has.
 *   STEP     run one instruction (or deliver one event) in view step_view,
 *            then come back to the view of before.
 *   INJECT   forget the exit, deliver `event` at the current RIP.
 *
 * RESUME, EMULATE and SCRATCH hold for one instruction, one iteration of a REP,
 * or the delivery of one event; and there for all pages that it violates one
 * after the other, each with the reply given for it. Ranges of EMULATE hold
 * wherever they lie: on a page that is not violated, or that was answered with
 * another reply, too. A page answered again forgets its reply and ranges of
 * before. Of ranges that overlap the last one counts. It does not matter how
 * the access is made: by an operand, the stack, an event reading the IDT, GDT
 * or TSS or pushing its frame, a page walk, a fetch. Only accessed and dirty
 * bits of a walk are set in memory whatever the reply, ranges included. What an
 * instruction reads of bytes that it has written itself and that are dropped
 * (ENTER with nested frames) is up to the backend. Of more than
 * HVI_MAX_OVERRIDES pages that are answered for one instruction, or covered by
 * ranges, the oldest are forgotten.
 *
 * An exception that the instruction or delivery raises (not INT n, INT3, INTO)
 * ends these replies: its own delivery violates by itself. The view of STEP stays
 * to the end of that delivery.
 *
 * HVI_REPLY_NOTIFY, with RESUME, EMULATE, SCRATCH and STEP: HVI_EXIT_STEP comes
 * when the instruction is over: done, with RIP at the next one (or, of a REP
 * with iterations left, at itself); or faulted, with the guest at the first
 * instruction of the handler. RESUME takes it at exits that have an instruction
 * or event to go on with: EPT, MSR_READ, MSR_WRITE, CR_WRITE, DTR, XSETBV,
 * VMCALL, EXCEPTION, IO, CPUID, HLT; STEP at every exit. When the instruction
 * exits again on its way (another page, its MSR), the flag in any one of the
 * replies is enough, and the STEP comes once. Of such a later exit
 *   - SKIP ends the instruction: the STEP comes, and what it would have written
 *     is not (parts of a save area or a frame, on a page answered with RESUME,
 *     a CPU may have stored before the exit);
 *   - RETRY runs it again with the replies given so far: the STEP comes after it;
 *   - INJECT, a RIP that the engine has changed, HVI_RESET and HVI_EXIT_SHUTDOWN
 *     give the instruction up, with its replies and its STEP.
 * An event that the engine has delivered together with the reply (`event`) comes
 * before the instruction and counts instead of it: the STEP comes at the first
 * instruction of its handler, the replies are forgotten, and when the guest is
 * back at the instruction it violates again.
 *
 * The backend resets action to RESUME and flags to 0 after it has taken them.
 * -EINVAL: a flag that the action, or RESUME the exit, does not take; a range
 * that is no range.
 */
enum hvi_reply_action {
	HVI_REPLY_RESUME,
	HVI_REPLY_SKIP,
	HVI_REPLY_RETRY,
	HVI_REPLY_EMULATE,
	HVI_REPLY_SCRATCH,
	HVI_REPLY_STEP,
	HVI_REPLY_INJECT,
	HVI_REPLY_ACTIONS
};

#define HVI_REPLY_NOTIFY	(1u << 0)	/* RESUME, EMULATE, SCRATCH, STEP: HVI_EXIT_STEP when done */
#define HVI_REPLY_WRITE		(1u << 1)	/* EMULATE: writes outside the ranges take effect, whatever the rights */
#define HVI_REPLY_SPARE		(1u << 2)	/* EMULATE: ranges name spare pages instead of bytes[] */
#define HVI_EMULATE_RANGES	16
#define HVI_MAX_OVERRIDES	64
#define HVI_EMULATE_BYTES	256

/*
 * len bytes at gpa, inside one page. They are bytes[offset] and on; with
 * HVI_REPLY_SPARE, those at the same place in the spare page with index offset.
 */
struct hvi_emulate_range {
	__u64 gpa;
	__u32 len;		/* 0 = unused, whatever else stands there */
	__u32 offset;
};

struct hvi_reply {
	__u32 action;		/* enum hvi_reply_action */
	__u32 flags;		/* HVI_REPLY_NOTIFY, _WRITE, _SPARE */
	__u32 step_view;
	__u32 reserved;
	struct hvi_emulate_range range[HVI_EMULATE_RANGES];
	__u8 bytes[HVI_EMULATE_BYTES];
};

/*
 * An event to deliver at the next entry (SDM 24.8.3 for the types). An NMI
 * waits, its VALID set, until NMIs are unblocked; everything else is taken at
 * once and, where the guest cannot take it, LOST.
 */
enum hvi_event_type {
	HVI_EVENT_EXTERNAL = 0,
	HVI_EVENT_NMI = 2,
	HVI_EVENT_EXCEPTION = 3,
	HVI_EVENT_SOFT_INT = 4,
	HVI_EVENT_PRIV_SOFT = 5,
	HVI_EVENT_SOFT_EXCEPTION = 6,
};
#define HVI_EVENT_VALID		(1u << 0)
#define HVI_EVENT_ERROR_CODE	(1u << 1)	/* error_code is pushed */
#define HVI_EVENT_CR2		(1u << 2)	/* cr2 is loaded when it is delivered */
#define HVI_EVENT_NOTIFY	(1u << 3)	/* HVI_EXIT_INJECTED when it was delivered or lost */

enum hvi_event_status {
	HVI_EVENT_IDLE,
	HVI_EVENT_PENDING,
	HVI_EVENT_DELIVERED,	/* the guest stands at the first instruction of the handler */
	HVI_EVENT_LOST,		/* its delivery faulted, or the guest could not take it */
};

struct hvi_event {
	__u32 flags;		/* HVI_EVENT_*; the backend clears VALID when taken */
	__u32 type;
	__u32 vector;
	__u32 error_code;
	__u64 cr2;
	__u32 insn_len;		/* of software events: 1 to 15 */
	__u32 status;		/* enum hvi_event_status, by the backend */
};

/* Counters the backend keeps; they only grow. */
struct hvi_counters {
	__u64 instructions;	/* guest instructions retired; 0 where unknown */
	__u64 exits;		/* to the engine */
	__u64 ad_writes;	/* page-walk accessed/dirty writes to pages without W, completed here */
	__u64 tlb_misses;
	__u64 blocks;		/* decoded blocks built (soft) */
	__u64 internal_exits;	/* VM exits handled below the interface (vmx) */
	__u64 events;		/* delivered to the guest */
	__u64 invepts;		/* INVEPT before an entry (vmx) */
};

struct hvi_vcpu {
	__u32 size;		/* sizeof(struct hvi_vcpu) of the backend */
	__u32 index;
	__u32 valid;		/* groups filled in at the last exit; others by HVI_FETCH */
	__u32 dirty;		/* groups the engine changed; cleared when taken */
	__u32 mp_state;		/* enum hvi_mp_state */
	__u32 interruptibility;	/* HVI_BLOCK_* */
	__u32 view;		/* the engine may change it at any exit */
	__u32 eptp_index;	/* of `view` in hvi_ve.views, ~0 when it is not there */
	__u32 want_irq_window;	/* in: exit with IRQ_WINDOW as soon as an interrupt can be taken */
	__u32 irq_ready;	/* out: an external interrupt injected now would be taken at once */
	__u32 initial_apic_id;
	__u32 pending_debug;	/* DR6 bits of a pending #DB (TF) */

	__u64 gpr[HVI_GPRS];
	__u64 rip;
	__u64 rflags;

	struct hvi_segment seg[HVI_SEGS];
	struct hvi_segment ldtr;
	struct hvi_segment tr;
	struct hvi_table gdtr;
	struct hvi_table idtr;

	__u64 cr0, cr2, cr3, cr4, cr8, xcr0;

	__u64 efer, star, lstar, cstar, fmask;
	__u64 kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip;
	__u64 pat, apic_base, tsc, tsc_aux, debugctl, xss, spec_ctrl;

	__u64 dr[8];		/* 0..3, 6, 7; 4 and 5 unused */

	struct hvi_exit exit;
	struct hvi_reply reply;
	struct hvi_event event;
	struct hvi_counters counters;
};

/* ---- running ------------------------------------------------------------------ */

#define HVI_RUN_DEADLINE	(1u << 0)

/*
 * Run until some vCPU exits. With one vCPU it runs on the calling thread.
 * The reply of the vCPU that exited last is taken at the next HVI_RUN; an
 * instruction that the reply lets run is run, however late it is.
 */
struct hvi_run {
	__u64 deadline;		/* in: guest TSC at which to stop, with HVI_RUN_DEADLINE */
	__u32 flags;
	__u32 vcpu;		/* out: which exited */
	__u32 reason;		/* out: its exit reason */
	__u32 reserved;
};

#define HVI_ALL_VCPUS		0xffffffffu
struct hvi_vcpu_op {		/* HVI_PAUSE, HVI_RESUME, HVI_KICK, HVI_FETCH, HVI_RESET */
	__u32 vcpu;		/* or HVI_ALL_VCPUS */
	__u32 groups;		/* HVI_FETCH: HVI_STATE_* wanted */
};

struct hvi_xsave {		/* HVI_GET_XSAVE, HVI_SET_XSAVE; standard (not compacted) format */
	__u32 vcpu;
	__u32 size;		/* bytes at data; get: at least hvi_info.xsave_size */
	__u64 data;		/* user pointer */
};

struct hvi_msr_entry {
	__u32 index;
	__u32 reserved;
	__u64 value;
};
/* HVI_GET_MSRS, HVI_SET_MSRS; HVI_LIST_MSRS fills the indices a snapshot must keep. */
struct hvi_msrs {
	__u32 vcpu;
	__u32 count;		/* in: entries; list: out, how many there are */
	__u64 entries;		/* user pointer to struct hvi_msr_entry[] */
};

struct hvi_mtrr {
	__u64 gpa;
	__u32 type;		/* out: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB */
	__u32 reserved;
};

/* ---- ioctl numbers ---------------------------------------------------------------- */

#define HVI_IOC_MAGIC		0xb1
#define HVI_GET_INFO		_IOWR(HVI_IOC_MAGIC, 0x00, struct hvi_info)
#define HVI_CREATE		_IOW(HVI_IOC_MAGIC, 0x01, struct hvi_create)
#define HVI_ADD_MEMORY		_IOWR(HVI_IOC_MAGIC, 0x02, struct hvi_memory)
#define HVI_GET_CPUID		_IOWR(HVI_IOC_MAGIC, 0x03, struct hvi_cpuid)
#define HVI_SET_CPUID		_IOWR(HVI_IOC_MAGIC, 0x04, struct hvi_cpuid)
#define HVI_INTERCEPT		_IOW(HVI_IOC_MAGIC, 0x05, struct hvi_intercept)
#define HVI_RUN			_IOWR(HVI_IOC_MAGIC, 0x10, struct hvi_run)
#define HVI_PAUSE		_IOW(HVI_IOC_MAGIC, 0x11, struct hvi_vcpu_op)
#define HVI_RESUME		_IOW(HVI_IOC_MAGIC, 0x12, struct hvi_vcpu_op)
#define HVI_KICK		_IOW(HVI_IOC_MAGIC, 0x13, struct hvi_vcpu_op)
#define HVI_FETCH		_IOW(HVI_IOC_MAGIC, 0x14, struct hvi_vcpu_op)
#define HVI_RESET		_IOW(HVI_IOC_MAGIC, 0x15, struct hvi_vcpu_op)
#define HVI_EPT_SET		_IOW(HVI_IOC_MAGIC, 0x20, struct hvi_ept)
#define HVI_EPT_GET		_IOW(HVI_IOC_MAGIC, 0x21, struct hvi_ept)
#define HVI_VIEW_CREATE		_IOWR(HVI_IOC_MAGIC, 0x22, struct hvi_view)
#define HVI_VIEW_DESTROY	_IOW(HVI_IOC_MAGIC, 0x23, struct hvi_view)
#define HVI_REMAP		_IOW(HVI_IOC_MAGIC, 0x24, struct hvi_remap)
#define HVI_ADD_SPARE		_IOWR(HVI_IOC_MAGIC, 0x25, struct hvi_spare)
#define HVI_SPP_SET		_IOW(HVI_IOC_MAGIC, 0x26, struct hvi_spp)
#define HVI_VE_SET		_IOW(HVI_IOC_MAGIC, 0x27, struct hvi_ve)
#define HVI_VE_PAGES		_IOW(HVI_IOC_MAGIC, 0x28, struct hvi_ve_pages)
#define HVI_GET_XSAVE		_IOW(HVI_IOC_MAGIC, 0x30, struct hvi_xsave)
#define HVI_SET_XSAVE		_IOW(HVI_IOC_MAGIC, 0x31, struct hvi_xsave)
#define HVI_LIST_MSRS		_IOWR(HVI_IOC_MAGIC, 0x32, struct hvi_msrs)
#define HVI_GET_MSRS		_IOW(HVI_IOC_MAGIC, 0x33, struct hvi_msrs)
#define HVI_SET_MSRS		_IOW(HVI_IOC_MAGIC, 0x34, struct hvi_msrs)
#define HVI_QUERY_MTRR		_IOWR(HVI_IOC_MAGIC, 0x35, struct hvi_mtrr)

#endif /* HVI_H */
