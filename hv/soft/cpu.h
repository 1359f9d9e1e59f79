/* SPDX-License-Identifier: MIT */
/*
 * cpu.h - the software vCPU's working state and the contract between its parts.
 *
 *   vm.c       the ABI of hvi.h: ioctl, mmap, run loop's entry and exit, replies
 *   block.c    decoding, block cache, self-modifying code
 *   exec.c     dispatch, run loop, single-step
 *   mmu.c      guest paging, EPT views, soft TLB (fast path inline in mmu.h)
 *   event.c    exceptions, interrupts, IRET, the stack switch
 *   seg.c      descriptor loads, far transfers
 *   sys.c      system instructions, MSRs, CPUID, I/O
 *   integer.c  (and string.c, stack.c, ...) the general-purpose instructions
 *   native.c   x87, MMX, SSE, AVX, BMI...: run on the host's own CPU by stubs
 *
 * Execution. Guest code is decoded by Zydis into blocks of `struct op`, keyed
 * by guest physical address and mode. Each op's fn does the instruction and
 * ends in a sibling call to the next op's fn (NEXT), so a block runs without
 * returning to the loop; the last op of a block returns. A handler commits
 * nothing (registers, flags, memory) before the last access that can fault:
 * cpu_raise() and exits longjmp out of it with the guest as it was before the
 * instruction. REP iterations are instructions of their own in this sense.
 */
#ifndef HVI_SOFT_CPU_H
#define HVI_SOFT_CPU_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <Zydis/Zydis.h>
#include "../abi/hvi.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

#define likely(x)	__builtin_expect(!!(x), 1)
#define unlikely(x)	__builtin_expect(!!(x), 0)
#define noreturn	__attribute__((noreturn))

/* RFLAGS */
#define FL_CF	(1u << 0)
#define FL_PF	(1u << 2)
#define FL_AF	(1u << 4)
#define FL_ZF	(1u << 6)
#define FL_SF	(1u << 7)
#define FL_TF	(1u << 8)
#define FL_IF	(1u << 9)
#define FL_DF	(1u << 10)
#define FL_OF	(1u << 11)
#define FL_IOPL	(3u << 12)
#define FL_NT	(1u << 14)
#define FL_RF	(1u << 16)
#define FL_VM	(1u << 17)
#define FL_AC	(1u << 18)
#define FL_VIF	(1u << 19)
#define FL_VIP	(1u << 20)
#define FL_ID	(1u << 21)
#define FL_STATUS (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

enum vector {
	X_DE, X_DB, X_NMI, X_BP, X_OF, X_BR, X_UD, X_NM, X_DF, X_TS = 10,
	X_NP, X_SS, X_GP, X_PF, X_MF = 16, X_AC, X_MC, X_XM, X_VE, X_CP
};

/* Pseudo registers behind the 16 general ones, so that address computation needs no branch. */
#define REG_ZERO	16	/* always 0: "no base", "no index" */
#define REG_BLOCK	17	/* RIP at the start of the block: RIP-relative = this + disp */
#define REG_COUNT	18
#define SEG_FLAT	6	/* index into segbase[]: always 0 */

struct cpu;
struct op;
typedef void (*op_fn)(struct cpu *c, const struct op *o);

/*
 * One decoded instruction. `a`, `b` are register numbers of the first and
 * second operand (for byte operands AH, CH, DH, BH are 0x14..0x17: 0x10 + the
 * number in the encoding; see reg8 in integer.c); `imm` the immediate or the
 * branch target relative to the block's start. What else it holds is up to
 * the translator that filled it.
 */
struct op {
	op_fn fn;
	i64 imm;
	i64 disp;
	u16 off;	/* of the instruction from the block's start, bytes */
	u8 len;		/* its bytes */
	u8 size;	/* operand size, bytes */
	u8 a, b;
	u8 base, index, scale;	/* REG_ZERO for none; scale is the shift 0..3 */
	u8 seg;		/* HVI_ES..HVI_GS or SEG_FLAT when its base is known 0 */
	u8 asize;	/* address size, bytes: 2, 4, 8 */
	u8 flags;	/* OP_* */
	u32 aux;	/* for the translator */
	u32 msize;	/* bytes of the memory operand, 0 for none (filled by block.c) */
	void *ptr;	/* for the translator; e.g. the native stub */
};
/* Ops are shared by all vCPUs of a VM: nothing of one vCPU may be stored in them. */
#define OP_LOCK		(1u << 0)
#define OP_REP		(1u << 1)	/* F3 */
#define OP_REPNE	(1u << 2)	/* F2 */
#define OP_SLOW_EA	(1u << 3)	/* limits or wrapping: use ea_slow */
#define OP_STACK_SEG	(1u << 4)	/* SS-relative: #SS instead of #GP */
#define OP_MEM_WRITE	(1u << 5)	/* the memory operand is written (filled by block.c) */

struct tlb_entry {
	u64 tag_r, tag_w, tag_x;	/* linear page | generation, or ~0 */
	i64 addend;			/* host address - linear address */
};
#define TLB_BITS	10
#define TLB_SIZE	(1u << TLB_BITS)

enum tlb_mode { TLB_SUPER, TLB_SUPER_AC, TLB_USER, TLB_MODES };

struct cpu {
	u64 gpr[REG_COUNT];
	u64 flags;		/* status flags only (FL_STATUS), in RFLAGS places */
	u64 rflags;		/* all the others; bit 1 set; status bits 0 */
	u64 rip;		/* of the current block's start while one runs */

	/* soft TLB of the current view and privilege; refilled by mmu.c */
	struct tlb_entry *tlb;
	u64 tlb_gen;		/* in the low 12 bits of every tag */

	u64 segbase[8];		/* bases by HVI_ES..; [SEG_FLAT] and [7] are 0 */
	struct hvi_segment seg[HVI_SEGS];
	u8 cpl;
	u8 code_bits;		/* 16, 32, 64: default operand/address size of CS */
	u8 stack_size;		/* 2, 4, 8: of SP */
	bool long_mode;		/* EFER.LMA */
	u8 canon_shift;		/* 16 with 48-bit linear addresses, 7 with 57-bit ones */

	u64 cr0, cr2, cr3, cr4, cr8, xcr0, efer;

	/* x87, MMX, SSE, AVX: a standard-format XSAVE image (native.c owns it) */
	u8 *xsave;		/* 64-byte aligned */

	jmp_buf out;		/* exec.c: cpu_raise and exits */
	const struct op *cur;	/* set by every slow path: the instruction at work */

	/* Dispatch (block.c, exec.c). */
	u64 icount;		/* instructions retired before the current block */
	u64 icount_stop;	/* leave at a block's end from here on */
	struct block *blk;	/* the block at work */
	struct jump *jumps;	/* RIP -> block */
	u64 jump_key;		/* what an entry of jumps[] must carry to hold now */
	u32 epoch;		/* entry from the engine; blocks older than it are verified */
	u32 rep_limit;		/* iterations that a REP instruction may do before it must
				 * cpu_jump(c, o, op_rip(c, o)) to itself; 1 when stepping */

	/* The rest (MSRs, tables, block cache, vm, page, reply overrides, icount...) is exec.c's and vm.c's: */
	struct cpu_more *more;
};

/* Run the next instruction of the block. Must be the last statement of a handler. */
#define NEXT(c, o)	return ((o) + 1)->fn((c), (o) + 1)

/* RIP of an op, and of what follows it. */
static inline u64 op_rip(const struct cpu *c, const struct op *o)
{
	return c->gpr[REG_BLOCK] + o->off;
}

static inline u64 op_next_rip(const struct cpu *c, const struct op *o)
{
	u64 rip = c->gpr[REG_BLOCK] + o->off + o->len;

	return c->code_bits == 64 ? rip : (u32)rip;
}

static inline bool is_canonical(const struct cpu *c, u64 la)
{
	return (u64)((i64)(la << c->canon_shift) >> c->canon_shift) == la;
}

/*
 * Whether a near branch may go to rip: canonical in 64-bit mode, within the
 * limit of CS elsewhere. A handler that commits something (CALL's push, RET's
 * RSP) before its cpu_jump asks first, and raises #GP(0).
 */
static inline bool cpu_can_jump(const struct cpu *c, u64 rip)
{
	if (c->code_bits == 64)
		return is_canonical(c, rip);
	return (u32)rip <= c->seg[HVI_CS].limit;
}

/*
 * Leave the block and go on at `rip` (checks as cpu_can_jump: #GP(0) at this
 * instruction, which must not have committed anything unless the handler has
 * asked). Last statement of a branch handler.
 * A handler that changed the mode, the privilege, IF, or a control register
 * ends its block this way too.
 */
void cpu_jump(struct cpu *c, const struct op *o, u64 rip);
/* The same to the next instruction, without the check: a fault there is the next instruction's. */
void cpu_continue(struct cpu *c, const struct op *o);

/* Raise an exception at instruction o (a fault: RIP stays). err is ignored for vectors without one. */
noreturn void cpu_raise(struct cpu *c, const struct op *o, unsigned int vector, u32 err);
#define raise_gp0(c, o)	cpu_raise(c, o, X_GP, 0)
#define raise_ud(c, o)	cpu_raise(c, o, X_UD, 0)

/* ---- memory (mmu.h has the bodies; addresses are linear) -------------------- */
/*
 * ea() gives the linear address of the memory operand, limit and canonical
 * checks included where the mode needs them.
 * ld and st: little endian, any alignment, page crossing handled, in the order
 * and with the faults of the CPU. A store does either all of it or nothing.
 * mem_probe_write() makes sure that a following st of that range cannot fault
 * (call it before the first commit of a read-modify-write).
 * ld_rmw: as ld, but needs write permission as well (read-modify-write).
 *
 * Inline, in mmu.h:
 *	u64 ea(c, o);
 *	u8 ld8(c, o, la) ... u64 ld64(c, o, la), ld8_rmw ... ld64_rmw
 *	void st8(c, o, la, v) ... st64
 */
void mem_read(struct cpu *c, const struct op *o, u64 la, void *to, u32 size);
void mem_write(struct cpu *c, const struct op *o, u64 la, const void *from, u32 size);
/* mem_read for a read-modify-write: needs, and reports, write permission as well. */
void mem_read_rmw(struct cpu *c, const struct op *o, u64 la, void *to, u32 size);
void mem_probe_write(struct cpu *c, const struct op *o, u64 la, u32 size);
void mem_probe_read(struct cpu *c, const struct op *o, u64 la, u32 size);
/* Host address of a linear range inside one page that may be read (write: written) directly, or NULL: then go byte by byte. */
void *mem_direct(struct cpu *c, const struct op *o, u64 la, u32 size, bool write);

/*
 * Linear address of seg:off for an access of size bytes, with the checks of
 * the segment in modes that have them (#SS for SS, #GP otherwise). For
 * accesses other than the memory operand: the stack, string instructions.
 */
u64 seg_linear(struct cpu *c, const struct op *o, u8 seg, u64 off, u32 size, bool write);

/* ---- the guest's RFLAGS as one value ------------------------------------------ */
static inline u64 flags_all(const struct cpu *c)
{
	return c->rflags | c->flags;
}
/* Sets every flag; the caller has applied the masks of the instruction. Ends the block when IF, TF, AC, VM change. */
void flags_set_all(struct cpu *c, u64 v);
/* STI and the like: hold external interrupts (mov_ss: and debug traps) off until after the next instruction. */
void cpu_shadow(struct cpu *c, const struct op *o, bool mov_ss);
/* INT n, INT3, INTO, INT1: deliver through the IDT; type is an enum hvi_event_type. */
noreturn void cpu_soft_int(struct cpu *c, const struct op *o, unsigned int vector, unsigned int type);

/* ---- decoding -------------------------------------------------------------------- */
/* What a translator gets: one decoded instruction. */
struct insn {
	ZydisDecodedInstruction z;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	u16 off;		/* from the block's start */
	u8 code_bits;		/* 16, 32, 64 */
	bool flat;		/* ES, CS, SS, DS have base 0 and no limit to check */
	bool flags_dead;	/* nobody reads the status flags that this one writes */
};

enum xlate { XLATE_NO, XLATE_NEXT, XLATE_END };
/*
 * Each part's translator fills o (fn, operands, size; off, len, flags, and the
 * memory operand's base/index/scale/disp/seg/asize are already filled by
 * exec.c) and answers XLATE_END when the instruction ends a block, XLATE_NO
 * when it is not its own. Asked in this order: sys, integer, native.
 */
enum xlate sys_translate(struct cpu *c, const struct insn *in, struct op *o);
enum xlate integer_translate(struct cpu *c, const struct insn *in, struct op *o);
enum xlate native_translate(struct cpu *c, const struct insn *in, struct op *o);

/* Register number for `struct op`'s a, b, base, index; see there. */
u8 reg_number(ZydisRegister r);

#endif
