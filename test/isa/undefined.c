/* SPDX-License-Identifier: MIT */
/* undefined.c - results that the SDM (volume 2, each instruction's page) leaves undefined. */
#include <string.h>
#include "isa.h"

#define CF	0x001u
#define PF	0x004u
#define AF	0x010u
#define ZF	0x040u
#define SF	0x080u
#define OF	0x800u

enum when {
	ALWAYS,
	SHIFTED,		/* count not 0 */
	COUNT_NOT_1,		/* count not 0 and not 1 */
	COUNT_OVER,		/* count at or above the operand's size */
};

static const struct {
	ZydisMnemonic mnemonic;
	u32 flags;
	enum when when;
	const char *sdm;
} table[] = {
#define M(n)	ZYDIS_MNEMONIC_##n
	{ M(AND), AF, ALWAYS, "The state of the AF flag is undefined." },
	{ M(OR), AF, ALWAYS, "The state of the AF flag is undefined." },
	{ M(XOR), AF, ALWAYS, "The state of the AF flag is undefined." },
	{ M(TEST), AF, ALWAYS, "The state of the AF flag is undefined." },
	{ M(MUL), SF | ZF | AF | PF, ALWAYS, "The SF, ZF, AF, and PF flags are undefined." },
	{ M(IMUL), SF | ZF | AF | PF, ALWAYS, "The SF, ZF, AF, and PF flags are undefined." },
	{ M(DIV), CF | OF | SF | ZF | AF | PF, ALWAYS, "The CF, OF, SF, ZF, AF, and PF flags are undefined." },
	{ M(IDIV), CF | OF | SF | ZF | AF | PF, ALWAYS, "The CF, OF, SF, ZF, AF, and PF flags are undefined." },
	{ M(BSF), CF | OF | SF | AF | PF, ALWAYS, "The CF, OF, SF, AF, and PF flags are undefined." },
	{ M(BSR), CF | OF | SF | AF | PF, ALWAYS, "The CF, OF, SF, AF, and PF flags are undefined." },
	{ M(BT), OF | SF | AF | PF, ALWAYS, "The OF, SF, AF, and PF flags are undefined." },
	{ M(BTS), OF | SF | AF | PF, ALWAYS, "The OF, SF, AF, and PF flags are undefined." },
	{ M(BTR), OF | SF | AF | PF, ALWAYS, "The OF, SF, AF, and PF flags are undefined." },
	{ M(BTC), OF | SF | AF | PF, ALWAYS, "The OF, SF, AF, and PF flags are undefined." },
	{ M(SHL), AF, SHIFTED, "For a non-zero count, the AF flag is undefined." },
	{ M(SHR), AF, SHIFTED, "For a non-zero count, the AF flag is undefined." },
	{ M(SAR), AF, SHIFTED, "For a non-zero count, the AF flag is undefined." },
	{ M(SHL), OF, COUNT_NOT_1, "The OF flag is affected only for 1-bit shifts; otherwise, it is undefined." },
	{ M(SHR), OF, COUNT_NOT_1, "The OF flag is affected only for 1-bit shifts; otherwise, it is undefined." },
	{ M(SAR), OF, COUNT_NOT_1, "The OF flag is affected only for 1-bit shifts; otherwise, it is undefined." },
	{ M(SHL), CF, COUNT_OVER, "It is undefined for SHL and SHR where the count is greater than or equal to the size (in bits)." },
	{ M(SHR), CF, COUNT_OVER, "It is undefined for SHL and SHR where the count is greater than or equal to the size (in bits)." },
	{ M(ROL), OF, COUNT_NOT_1, "The OF flag is defined only for the 1-bit rotates; it is undefined in all other cases." },
	{ M(ROR), OF, COUNT_NOT_1, "The OF flag is defined only for the 1-bit rotates; it is undefined in all other cases." },
	{ M(RCL), OF, COUNT_NOT_1, "The OF flag is defined only for the 1-bit rotates; it is undefined in all other cases." },
	{ M(RCR), OF, COUNT_NOT_1, "The OF flag is defined only for the 1-bit rotates; it is undefined in all other cases." },
	{ M(SHLD), AF, SHIFTED, "For shifts of one or more bits the AF flag is undefined." },
	{ M(SHRD), AF, SHIFTED, "For shifts of one or more bits the AF flag is undefined." },
	{ M(SHLD), OF, COUNT_NOT_1, "For shifts greater than 1 bit, the OF flag is undefined." },
	{ M(SHRD), OF, COUNT_NOT_1, "For shifts greater than 1 bit, the OF flag is undefined." },
	{ M(DAA), OF, ALWAYS, "The OF flag is undefined." },
	{ M(DAS), OF, ALWAYS, "The OF flag is undefined." },
	{ M(AAA), OF | SF | ZF | PF, ALWAYS, "The OF, SF, ZF, and PF flags are undefined." },
	{ M(AAS), OF | SF | ZF | PF, ALWAYS, "The OF, SF, ZF, and PF flags are undefined." },
	{ M(AAM), OF | AF | CF, ALWAYS, "The OF, AF, and CF flags are undefined." },
	{ M(AAD), OF | AF | CF, ALWAYS, "The OF, AF, and CF flags are undefined." },
#undef M
};

/*
 * Instructions that make several accesses: which of them faults first is up to
 * the implementation, so that CR2 tells the page and no more.
 */
bool fault_address_loose(const struct test *t)
{
	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64:
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD: case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return true;
	default:
		return false;
	}
}

/*
 * Memory that a faulting instruction may have written in part: hvi writes
 * nothing. CALL, ENTER and PUSHA push before they fault on this CPU; stores of 10
 * bytes and more across a page boundary write the first page.
 */
bool fault_memory_loose(const struct test *t)
{
	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_CALL: case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_PUSHA: case ZYDIS_MNEMONIC_PUSHAD:
	case ZYDIS_MNEMONIC_FSTP: case ZYDIS_MNEMONIC_FBSTP:
	case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
		return true;
	default:
		return false;
	}
}

static bool host_is_amd(void)
{
	u32 a, b, c, d;

	__asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
	return b == 0x68747541;		/* "Auth" */
}

/*
 * Where AMD's CPUs fault and Intel's, which hv/soft is like, do not, or the
 * other way round: SHA's memory operand need not be aligned; MOVSXD to 16 bits
 * reads 32; a register form of 0F 0D is #UD; with REX.B, F3 90 is XCHG; a fault
 * by a store's address comes before its numeric exception, one by alignment
 * before #SS.
 */
static bool amd_faults_otherwise(const struct test *t, const struct outcome *host)
{
	bool bad_address = host->s.rip == t->at && host->vector >= 12 && host->vector <= 14;

	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_SHA1MSG1: case ZYDIS_MNEMONIC_SHA1MSG2:
	case ZYDIS_MNEMONIC_SHA1NEXTE: case ZYDIS_MNEMONIC_SHA1RNDS4:
	case ZYDIS_MNEMONIC_SHA256MSG1: case ZYDIS_MNEMONIC_SHA256MSG2:
	case ZYDIS_MNEMONIC_SHA256RNDS2:
		return t->op[1].type == ZYDIS_OPERAND_TYPE_MEMORY && (address_of(t, &t->op[1]) & 15);
	case ZYDIS_MNEMONIC_NOP:
		return host->vector == 6 && t->z.opcode == 0x0d;
	case ZYDIS_MNEMONIC_PAUSE:
		return t->z.attributes & ZYDIS_ATTRIB_HAS_REX && t->z.raw.rex.B;
	case ZYDIS_MNEMONIC_MOVSXD:
		return bad_address && t->z.operand_width == 16;
	case ZYDIS_MNEMONIC_FST: case ZYDIS_MNEMONIC_FSTP: case ZYDIS_MNEMONIC_FIST:
	case ZYDIS_MNEMONIC_FISTP: case ZYDIS_MNEMONIC_FISTTP: case ZYDIS_MNEMONIC_FBSTP:
	case ZYDIS_MNEMONIC_VCVTPS2PH:
		return bad_address;
	case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64:
		return bad_address && address_of(t, &t->op[0]) >> 47;
	default:
		return false;
	}
}

/*
 * MASKMOVDQU: "Exceptions associated with addressing memory and page faults may
 * still be signaled (implementation dependent)" for bytes that the mask leaves
 * out. CALL to a non-canonical address with a stack that cannot be written:
 * the SDM's pseudocode checks the target first, this CPU the stack.
 */
bool fault_unspecified(const struct test *t, const struct outcome *host)
{
	if (host_is_amd() && amd_faults_otherwise(t, host))
		return true;
	if (host->s.rip != t->at)
		return false;
	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU: case ZYDIS_MNEMONIC_MASKMOVQ:
		return true;
	case ZYDIS_MNEMONIC_CALL:
		return host->vector == 14 || host->vector == 12;
	default:
		return false;
	}
}

/* The masked count of a shift or rotate; 1 for what has none. */
static u32 shift_count(const struct test *t)
{
	u32 mask = t->z.operand_width == 64 ? 63 : 31;

	for (u32 i = 1; i < t->z.operand_count; i++) {
		if (t->op[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return (u32)t->op[i].imm.value.u & mask;
		if (t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && t->op[i].reg.value == ZYDIS_REGISTER_CL)
			return (u32)t->in.gpr[RCX] & mask;
	}
	return 1;
}

u32 undefined_flags(const struct test *t, bool *skip)
{
	u32 n = shift_count(t), flags = 0;

	*skip = false;
	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD:
		/* "If the count is greater than the operand size, the result is undefined." */
		*skip = n > t->z.operand_width;
		break;
	case ZYDIS_MNEMONIC_BSWAP:
		/* "When the BSWAP instruction references a 16-bit register, the result is undefined." */
		*skip = t->z.operand_width == 16;
		break;
	default:
		break;
	}
	for (u32 i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (table[i].mnemonic != t->z.mnemonic)
			continue;
		switch (table[i].when) {
		case ALWAYS:
			flags |= table[i].flags;
			break;
		case SHIFTED:
			flags |= n ? table[i].flags : 0;
			break;
		case COUNT_NOT_1:
			flags |= n > 1 ? table[i].flags : 0;
			break;
		case COUNT_OVER:
			flags |= n >= t->op[0].size ? table[i].flags : 0;
			break;
		}
	}
	return flags;
}

static bool uses_mmx(const struct test *t)
{
	for (u32 i = 0; i < t->z.operand_count; i++)
		if (t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetClass(t->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
			return true;
	return false;
}

/* Registers in their physical places, TOP 0, all tags valid. */
static void forget_top(u8 *xs)
{
	u8 st[128];
	u32 top = xs[3] >> 3 & 7;

	memcpy(st, xs + XS_ST, sizeof(st));
	for (u32 i = 0; i < 8; i++)
		memcpy(xs + XS_ST + 16 * ((i + top) & 7), st + 16 * i, 16);
	xs[3] &= 0xc7;
	xs[4] = 0xff;
}

/* The guest's byte for a linear address in DATA or STACK; NULL elsewhere. */
static u8 *guest_byte(u64 la)
{
	if (la >= DATA && la < DATA + DATA_SIZE)
		return guest_data() + (la - DATA);
	if (la >= STACK && la < STACK + STACK_SIZE)
		return guest_stack() + (la - STACK);
	return NULL;
}

static void take_hosts_bytes(u64 la, u32 n)
{
	for (u32 i = 0; i < n; i++) {
		u8 *g = guest_byte(la + i);

		if (g)
			*g = *(u8 *)(uintptr_t)(la + i);
	}
}

/* PUSH of a segment register: AMD's CPUs write all of a 32-bit slot, hv/soft, like Intel's, two bytes. */
bool host_stores_more(const struct test *t)
{
	return host_is_amd() && t->z.mnemonic == ZYDIS_MNEMONIC_PUSH && t->z.operand_width == 32 &&
	       ZydisRegisterGetClass(t->op[0].reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static bool is_gather(const struct test *t)
{
	return t->z.meta.category == ZYDIS_CATEGORY_AVX2GATHER;
}

/*
 * What AMD's CPUs leave behind otherwise: FOP, FIP and FDP are kept only while
 * an exception is pending (APM 2, 11.5.6), MXCSR_MASK has bit 17, which hvi's
 * CPUID does not offer; REP CMPS and SCAS that fault have the flags of the
 * iteration before, and a gather that faults has done nothing.
 */
static void forget_amd(const struct test *t, struct outcome *h, struct outcome *g)
{
	bool fault = h->s.rip == t->at;

	memset(h->s.xs + 6, 0, 18);
	memset(g->s.xs + 6, 0, 18);
	if (fault && t->z.meta.category == ZYDIS_CATEGORY_STRINGOP)
		g->s.rflags = (g->s.rflags & ~0x8d5ull) | (h->s.rflags & 0x8d5);
	if (fault && is_gather(t))
		for (u32 i = 0; i < 3; i += 2) {
			u32 n = (u32)ZydisRegisterGetId(t->op[i].reg.value);

			memcpy(g->s.xs + XS_XMM + 16 * n, h->s.xs + XS_XMM + 16 * n, 16);
			memcpy(g->s.xs + XS_YMM + 16 * n, h->s.xs + XS_YMM + 16 * n, 16);
		}
	if (!fault && host_stores_more(t))
		take_hosts_bytes(h->s.gpr[RSP] + 2, 2);
	switch (t->z.mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
		take_hosts_bytes(address_of(t, &t->op[0]) + 28, 4);
		break;
	default:
		break;
	}
}

void forget_undefined(const struct test *t, struct outcome *h, struct outcome *g)
{
	bool fault = h->s.rip == t->at;

	/* MXCSR_MASK: which bits of MXCSR the CPU has. */
	memset(h->s.xs + 28, 0, 4);
	memset(g->s.xs + 28, 0, 4);
	if (host_is_amd())
		forget_amd(t, h, g);
	/* TOP and tags after an MMX instruction that faulted: this CPU sets them for some; the SDM says nothing. */
	if (fault && uses_mmx(t)) {
		forget_top(h->s.xs);
		forget_top(g->s.xs);
	}
	/* FIP and FDP are made canonical, by the linear-address width of the CPU: 57 bits here, 48 in the guest. */
	if (t->z.mnemonic == ZYDIS_MNEMONIC_FXRSTOR64 || t->z.mnemonic == ZYDIS_MNEMONIC_XRSTOR64) {
		memset(h->s.xs + 14, 0, 2);
		memset(g->s.xs + 14, 0, 2);
		memset(h->s.xs + 22, 0, 2);
		memset(g->s.xs + 22, 0, 2);
	}
	/* POPA that faults: this CPU has loaded what it read, hvi nothing; ESP stands, so that both can go on. */
	if (fault && (t->z.mnemonic == ZYDIS_MNEMONIC_POPA || t->z.mnemonic == ZYDIS_MNEMONIC_POPAD))
		for (u32 i = 0; i < 8; i++)
			if (i != RSP)
				g->s.gpr[i] = h->s.gpr[i];
	/* A store's #PF may come after MXCSR was updated: which comes first is not said. */
	if (fault && t->z.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH && h->vector != 19) {
		memcpy(h->s.xs + XS_MXCSR, t->in.xs + XS_MXCSR, 4);
		memcpy(g->s.xs + XS_MXCSR, t->in.xs + XS_MXCSR, 4);
	}
	/*
	 * Known differences (docs/limits.md) in the status bits that come with #XM.
	 * With an unmasked overflow or underflow hvi's PE says whether the masked
	 * result is inexact, the CPU's whether the one with an unbounded exponent
	 * would be. DPPS and DPPD multiply first and add then, and stop in between.
	 */
	if (fault && h->vector == 19) {
		u8 unmasked = (u8)(~(t->in.xs[XS_MXCSR] >> 7 | t->in.xs[XS_MXCSR + 1] << 1) & 0x3f);
		u8 ignored = h->s.xs[XS_MXCSR] & unmasked & 0x18 ? 0x20 : 0;

		if (t->z.mnemonic == ZYDIS_MNEMONIC_DPPS || t->z.mnemonic == ZYDIS_MNEMONIC_DPPD ||
		    t->z.mnemonic == ZYDIS_MNEMONIC_VDPPS || t->z.mnemonic == ZYDIS_MNEMONIC_VDPPD)
			ignored = 0x3f;
		h->s.xs[XS_MXCSR] |= ignored;
		g->s.xs[XS_MXCSR] |= ignored;
	}
}
