/* SPDX-License-Identifier: MIT */
/* integer.c - which file translates which general-purpose instruction. */
#include "integer.h"

#define M(name)	[ZYDIS_MNEMONIC_##name]

static const translate_fn by_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
	M(ADD) = xlate_alu, M(OR) = xlate_alu, M(ADC) = xlate_alu, M(SBB) = xlate_alu,
	M(AND) = xlate_alu, M(SUB) = xlate_alu, M(XOR) = xlate_alu, M(CMP) = xlate_alu,
	M(TEST) = xlate_alu,
	M(INC) = xlate_unary, M(DEC) = xlate_unary, M(NOT) = xlate_unary, M(NEG) = xlate_unary,

	M(MOV) = xlate_mov,
	M(MOVZX) = xlate_extend, M(MOVSX) = xlate_extend, M(MOVSXD) = xlate_extend,
	M(LEA) = xlate_lea, M(XCHG) = xlate_xchg, M(XLAT) = xlate_xlat,
	M(CMOVO) = xlate_cmov, M(CMOVNO) = xlate_cmov, M(CMOVB) = xlate_cmov,
	M(CMOVNB) = xlate_cmov, M(CMOVZ) = xlate_cmov, M(CMOVNZ) = xlate_cmov,
	M(CMOVBE) = xlate_cmov, M(CMOVNBE) = xlate_cmov, M(CMOVS) = xlate_cmov,
	M(CMOVNS) = xlate_cmov, M(CMOVP) = xlate_cmov, M(CMOVNP) = xlate_cmov,
	M(CMOVL) = xlate_cmov, M(CMOVNL) = xlate_cmov, M(CMOVLE) = xlate_cmov,
	M(CMOVNLE) = xlate_cmov,
	M(SETO) = xlate_setcc, M(SETNO) = xlate_setcc, M(SETB) = xlate_setcc,
	M(SETNB) = xlate_setcc, M(SETZ) = xlate_setcc, M(SETNZ) = xlate_setcc,
	M(SETBE) = xlate_setcc, M(SETNBE) = xlate_setcc, M(SETS) = xlate_setcc,
	M(SETNS) = xlate_setcc, M(SETP) = xlate_setcc, M(SETNP) = xlate_setcc,
	M(SETL) = xlate_setcc, M(SETNL) = xlate_setcc, M(SETLE) = xlate_setcc,
	M(SETNLE) = xlate_setcc, M(SALC) = xlate_setcc,
	M(CBW) = xlate_convert, M(CWDE) = xlate_convert, M(CDQE) = xlate_convert,
	M(CWD) = xlate_convert, M(CDQ) = xlate_convert, M(CQO) = xlate_convert,
	M(LAHF) = xlate_flag, M(SAHF) = xlate_flag, M(CLC) = xlate_flag,
	M(STC) = xlate_flag, M(CMC) = xlate_flag, M(CLD) = xlate_flag, M(STD) = xlate_flag,
	M(CMPXCHG) = xlate_cmpxchg, M(XADD) = xlate_cmpxchg,
	M(CMPXCHG8B) = xlate_cmpxchg, M(CMPXCHG16B) = xlate_cmpxchg,

	M(SHL) = xlate_shift, M(SHR) = xlate_shift, M(SAR) = xlate_shift,
	M(ROL) = xlate_shift, M(ROR) = xlate_shift, M(RCL) = xlate_shift, M(RCR) = xlate_shift,
	M(SHLD) = xlate_double_shift, M(SHRD) = xlate_double_shift,
	M(MUL) = xlate_muldiv, M(IMUL) = xlate_muldiv, M(DIV) = xlate_muldiv,
	M(IDIV) = xlate_muldiv,
	M(BT) = xlate_bit_test, M(BTS) = xlate_bit_test, M(BTR) = xlate_bit_test,
	M(BTC) = xlate_bit_test, M(BSF) = xlate_bit_scan, M(BSR) = xlate_bit_scan,
	M(BSWAP) = xlate_bswap,

	M(PUSH) = xlate_stack, M(POP) = xlate_stack,
	M(PUSHA) = xlate_stack, M(PUSHAD) = xlate_stack,
	M(POPA) = xlate_stack, M(POPAD) = xlate_stack,
	M(PUSHF) = xlate_stack, M(PUSHFD) = xlate_stack, M(PUSHFQ) = xlate_stack,
	M(POPF) = xlate_stack, M(POPFD) = xlate_stack, M(POPFQ) = xlate_stack,
	M(ENTER) = xlate_stack, M(LEAVE) = xlate_stack,

	M(JO) = xlate_branch, M(JNO) = xlate_branch, M(JB) = xlate_branch, M(JNB) = xlate_branch,
	M(JZ) = xlate_branch, M(JNZ) = xlate_branch, M(JBE) = xlate_branch,
	M(JNBE) = xlate_branch, M(JS) = xlate_branch, M(JNS) = xlate_branch,
	M(JP) = xlate_branch, M(JNP) = xlate_branch, M(JL) = xlate_branch,
	M(JNL) = xlate_branch, M(JLE) = xlate_branch, M(JNLE) = xlate_branch,
	M(JMP) = xlate_branch, M(CALL) = xlate_branch, M(RET) = xlate_branch,
	M(LOOP) = xlate_branch, M(LOOPE) = xlate_branch, M(LOOPNE) = xlate_branch,
	M(JCXZ) = xlate_branch, M(JECXZ) = xlate_branch, M(JRCXZ) = xlate_branch,

	M(MOVSB) = xlate_string, M(MOVSW) = xlate_string, M(MOVSD) = xlate_string,
	M(MOVSQ) = xlate_string, M(CMPSB) = xlate_string, M(CMPSW) = xlate_string,
	M(CMPSD) = xlate_string, M(CMPSQ) = xlate_string, M(SCASB) = xlate_string,
	M(SCASW) = xlate_string, M(SCASD) = xlate_string, M(SCASQ) = xlate_string,
	M(STOSB) = xlate_string, M(STOSW) = xlate_string, M(STOSD) = xlate_string,
	M(STOSQ) = xlate_string, M(LODSB) = xlate_string, M(LODSW) = xlate_string,
	M(LODSD) = xlate_string, M(LODSQ) = xlate_string,

	M(DAA) = xlate_bcd, M(DAS) = xlate_bcd, M(AAA) = xlate_bcd, M(AAS) = xlate_bcd,
	M(AAM) = xlate_bcd, M(AAD) = xlate_bcd,
	M(BOUND) = xlate_bound,
};

/* LOCK is allowed with a memory destination of these (SDM vol. 2A, LOCK). */
static bool lockable(const struct insn *in)
{
	if (in->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY &&
	    !(in->z.mnemonic == ZYDIS_MNEMONIC_XCHG && is_mem(in, 1)))
		return false;
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_BTC: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_CMPXCHG: case ZYDIS_MNEMONIC_CMPXCHG8B:
	case ZYDIS_MNEMONIC_CMPXCHG16B: case ZYDIS_MNEMONIC_DEC: case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_NEG: case ZYDIS_MNEMONIC_NOT: case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_SBB: case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_XADD: case ZYDIS_MNEMONIC_XCHG:
		return true;
	default:
		return false;
	}
}

static void illegal_lock(struct cpu *c, const struct op *o)
{
	raise_ud(c, o);
}

enum xlate integer_translate(struct cpu *c, const struct insn *in, struct op *o)
{
	translate_fn f = by_mnemonic[in->z.mnemonic];

	/* MOVSD and CMPSD are SSE instructions too. */
	if (!f || (f == xlate_string && in->z.meta.category != ZYDIS_CATEGORY_STRINGOP))
		return XLATE_NO;
	if ((o->flags & OP_LOCK) && !lockable(in)) {
		o->fn = illegal_lock;
		return XLATE_END;
	}
	return f(c, in, o);
}
