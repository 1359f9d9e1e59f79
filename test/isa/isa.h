/* SPDX-License-Identifier: MIT */
/*
 * isa.h - one instruction at a time on the host's CPU and in hv/soft.
 *
 *	forms.c	    every instruction form, found by asking Zydis about every encoding
 *	states.c    random registers, operands and memory for one form
 *	host.c	    runs it on this CPU, in a signal frame
 *	guest.c	    runs it in a guest of hv/soft through the ABI
 *	undefined.c which results the SDM leaves undefined
 *	conditions.c #UD, #NM, #MF by CR0, CR4 and XCR0, after the SDM's tables
 *	record.c    writes states and what became of them to a file, for test/x86
 *	main.c	    compares, reports
 *
 * Both run at privilege 3, in 64-bit and 32-bit code, at the same linear addresses, in pages
 * filled with HLT: whatever the instruction does, the run ends in a fault,
 * and the fault is part of what is compared.
 */
#ifndef HVI_TEST_ISA_H
#define HVI_TEST_ISA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <Zydis/Zydis.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };

/* The sandbox; everything else around it is unmapped. */
#define CODE		0x10000000ull
#define CODE_SIZE	0x1000u
#define DATA		0x10010000ull
#define DATA_SIZE	0x2000u
#define STACK		0x10020000ull
#define STACK_SIZE	0x2000u

/* XSAVE image, standard format. */
#define XSAVE_SIZE	832u
#define XS_MXCSR	24u
#define XS_ST		32u
#define XS_XMM		160u
#define XS_BV		512u
#define XS_YMM		576u

struct state {
	u64 gpr[16];
	u64 rip, rflags;
	u8 xs[XSAVE_SIZE] __attribute__((aligned(64)));
};

/* State and how it ended. */
struct outcome {
	struct state s;
	u32 vector, error;
	u64 cr2;
	const char *failure;	/* the run itself did not work */
};

/* ---- forms ------------------------------------------------------------------ */

struct form {
	char name[80];		/* "add r64, m64" */
	u64 key;
	ZydisMnemonic mnemonic;
	bool vex, memory, modrm;
	u8 bits;		/* 64, or 32: compatibility mode */
	u8 map, opcode, rep, lock, p66, w, l, pp, reg, rm, mod, v;
	u32 states, mismatches, completed, faults;
};

bool is_xsave(ZydisMnemonic m);
u32 find_forms(struct form **forms);
u64 form_key(u8 bits, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op);

/* ---- tests -------------------------------------------------------------------- */

struct test {
	u8 bits;
	u8 code[16];
	u32 len;
	u64 at;			/* linear address of the instruction */
	ZydisDecodedInstruction z;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	struct state in;
};

struct rng { u64 s; };
static inline u64 rnd(struct rng *r)
{
	/* xorshift64* */
	r->s ^= r->s >> 12;
	r->s ^= r->s << 25;
	r->s ^= r->s >> 27;
	return r->s * 0x2545f4914f6cdd1dull;
}
static inline u32 below(struct rng *r, u32 n)
{
	return (u32)((rnd(r) >> 32) * n >> 32);
}

bool decode(u8 bits, const u8 *bytes, u32 len, ZydisDecodedInstruction *z, ZydisDecodedOperand *op);
/* Linear address of a memory operand; of a gather, without an index. */
u64 address_of(const struct test *t, const ZydisDecodedOperand *p);
/* Fills in the test and the host's sandbox memory. False: no safe operands found. */
bool make_test(const struct form *f, struct rng *r, struct test *t);

/* ---- runs ----------------------------------------------------------------------- */

void host_open(void);
void host_run(const struct test *t, struct outcome *out);

/* One access that left the guest. */
struct access {
	u64 gva;
	u32 kind;		/* HVI_ACCESS_* */
	u32 size;		/* bytes in its page */
};
#define MAX_WATCHED	64u
struct watched {
	u32 count;
	struct access access[MAX_WATCHED];
};

void guest_open(const char *library);
void guest_run(const struct test *t, struct outcome *out);
/* The same with every right taken away from DATA and STACK: each access exits and is let pass. */
void guest_watch(const struct test *t, struct outcome *out, struct watched *w);
/* For the next runs: CR0 bits set, CR4 bits cleared, XCR0. */
void guest_control(u64 cr0_set, u64 cr4_clear, u64 xcr0);
u8 *guest_data(void);		/* the guest's DATA and STACK, in that order */
u8 *guest_stack(void);

/* ---- the record ------------------------------------------------------------------- */

void record_open(const char *path);
/* One state: the memory before and, on the host, after; what the watched guest accessed. */
void record_state(const struct test *t, const struct outcome *host, const struct watched *w,
		  const u8 *before_data, const u8 *before_stack);
void record_close(void);

/* ---- conditions that a user program cannot set on the host ------------------------- */

/* Runs the table in conditions.c in the guest; how many rows differ from the SDM. */
u32 check_conditions(u32 *rows);

/* ---- what is undefined ------------------------------------------------------------ */

/* Flags that the SDM leaves undefined here; *skip when the result itself is. */
u32 undefined_flags(const struct test *t, bool *skip);
/* After a fault: only the page of CR2 is defined; memory may have been written in part. */
bool fault_address_loose(const struct test *t);
bool fault_memory_loose(const struct test *t);
/* Whether it faults this way is up to the implementation. */
bool fault_unspecified(const struct test *t, const struct outcome *host);
/* Brings what is undefined or known to differ to one value in both outcomes. */
void forget_undefined(const struct test *t, struct outcome *host, struct outcome *guest);
/* Whether the host's CPU writes bytes that hv/soft, which is like Intel's, leaves alone. */
bool host_stores_more(const struct test *t);

#endif
