/* SPDX-License-Identifier: MIT */
/* undefined.c - results that the SDM (volume 2, each instruction's page) leaves undefined. */
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
#undef M
};

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
