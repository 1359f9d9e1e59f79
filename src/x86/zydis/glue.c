// SPDX-License-Identifier: MIT
/*
 * glue.c - what JavaScript calls of Zydis.
 *
 * One instruction goes in as bytes at input[], one comes out as 32-bit words
 * at result[]; the layout is that of src/x86/zydis/module.ts. No pointer and no
 * structure of Zydis crosses the border.
 */
#include <Zydis/Zydis.h>

#define EXPORT(name) __attribute__((export_name(#name), visibility("default"))) name

#define INPUT_BYTES	16
#define HEADER_WORDS	20
#define OPERAND_WORDS	16
#define TEXT_BYTES	160
#define REGISTER_WORDS	4

static ZyanU8 input[INPUT_BYTES] __attribute__((aligned(4)));
static ZyanU32 result[HEADER_WORDS + ZYDIS_MAX_OPERAND_COUNT * OPERAND_WORDS];
static char text[TEXT_BYTES];
static ZyanU32 register_row[REGISTER_WORDS];

static ZydisDecoder decoders[3];
static ZydisFormatter formatter;
static ZydisDecodedInstruction instruction;
static ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];

/* With bulk memory these become one instruction each; Zydis clears operands with them. */
void *memset(void *to, int value, __SIZE_TYPE__ n)
{
	return __builtin_memset(to, value, n);
}

void *memcpy(void *to, const void *from, __SIZE_TYPE__ n)
{
	return __builtin_memcpy(to, from, n);
}

/* Must be called once before anything else; 0 when well. */
int EXPORT(setup)(void)
{
	static const struct {
		ZydisMachineMode mode;
		ZydisStackWidth width;
	} modes[3] = {
		{ ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16 },
		{ ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32 },
		{ ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64 },
	};

	for (int i = 0; i < 3; i++)
		if (ZYAN_FAILED(ZydisDecoderInit(&decoders[i], modes[i].mode, modes[i].width)))
			return -1;
	if (ZYAN_FAILED(ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)))
		return -1;
	ZydisFormatterSetProperty(&formatter, ZYDIS_FORMATTER_PROP_HEX_UPPERCASE, ZYAN_FALSE);
	return 0;
}

void *EXPORT(input_address)(void)
{
	return input;
}

void *EXPORT(result_address)(void)
{
	return result;
}

void *EXPORT(text_address)(void)
{
	return text;
}

void *EXPORT(register_address)(void)
{
	return register_row;
}

/* Bits of result[15]. */
#define HAS_LOCK	(1u << 0)
#define HAS_REP		(1u << 1)	/* F3: REP or REPE */
#define HAS_REPNE	(1u << 2)
#define IS_PRIVILEGED	(1u << 3)
#define IS_RELATIVE	(1u << 4)	/* an operand is relative to RIP or a branch target */
#define IS_FAR		(1u << 5)

static ZyanU32 traits(ZydisInstructionAttributes a)
{
	return (a & ZYDIS_ATTRIB_HAS_LOCK ? HAS_LOCK : 0) |
	       (a & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE) ? HAS_REP : 0) |
	       (a & ZYDIS_ATTRIB_HAS_REPNE ? HAS_REPNE : 0) |
	       (a & ZYDIS_ATTRIB_IS_PRIVILEGED ? IS_PRIVILEGED : 0) |
	       (a & ZYDIS_ATTRIB_IS_RELATIVE ? IS_RELATIVE : 0);
}

static void put64(ZyanU32 *to, ZyanU64 value)
{
	to[0] = (ZyanU32)value;
	to[1] = (ZyanU32)(value >> 32);
}

static void put_operand(ZyanU32 *to, const ZydisDecodedOperand *o)
{
	to[0] = (ZyanU32)o->type | (ZyanU32)o->visibility << 8 | (ZyanU32)o->actions << 16;
	to[1] = o->size;
	to[2] = o->element_size | (ZyanU32)o->element_count << 16;
	switch (o->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER:
		to[3] = o->reg.value;
		break;
	case ZYDIS_OPERAND_TYPE_MEMORY:
		to[3] = o->mem.type;
		to[4] = o->mem.segment;
		to[5] = o->mem.base;
		to[6] = o->mem.index;
		to[7] = o->mem.scale;
		to[8] = o->mem.disp.has_displacement;
		put64(to + 10, (ZyanU64)o->mem.disp.value);
		break;
	case ZYDIS_OPERAND_TYPE_POINTER:
		to[3] = o->ptr.segment;
		put64(to + 10, o->ptr.offset);
		break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		to[3] = o->imm.is_signed;
		to[4] = o->imm.is_relative;
		put64(to + 10, o->imm.value.u);
		break;
	default:
		break;
	}
}

/*
 * Zydis 4.0.0 takes "SIB without base" (mod 0, base 101b) for R13D when REX.B
 * is set and addresses have 32 bits (ZydisDecodeOperandMemory looks for EBP
 * only), and loses the displacement. The CPU ignores REX.B there (SDM vol. 2,
 * table 2-5).
 */
static void repair_base(ZydisDecodedOperand *o)
{
	if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.base != ZYDIS_REGISTER_R13D ||
	    o->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM)
		return;
	if (instruction.raw.modrm.mod || instruction.raw.modrm.rm != 4 || instruction.raw.sib.base != 5)
		return;
	o->mem.base = ZYDIS_REGISTER_NONE;
	o->mem.disp.has_displacement = ZYAN_TRUE;
	o->mem.disp.value = instruction.raw.disp.value;
}

/* Decodes input[0..n); mode 0, 1, 2 is 16, 32, 64 bits. The length, or -1. */
int EXPORT(decode)(unsigned int mode, unsigned int n)
{
	const ZydisAccessedFlags *flags;
	ZydisDecoderContext context;
	ZyanU32 *r = result;

	if (mode > 2 || n > INPUT_BYTES)
		return -1;
	/* Not ZydisDecoderDecodeFull: it clears all ten operands each time. */
	if (ZYAN_FAILED(ZydisDecoderDecodeInstruction(&decoders[mode], &context, input, n,
						      &instruction)))
		return -1;
	if (ZYAN_FAILED(ZydisDecoderDecodeOperands(&decoders[mode], &context, &instruction, operands,
						   instruction.operand_count)))
		return -1;
	flags = instruction.cpu_flags;
	r[0] = instruction.mnemonic;
	r[1] = instruction.length;
	r[2] = instruction.operand_count;
	r[3] = instruction.operand_count_visible;
	put64(r + 4, instruction.attributes);
	r[6] = instruction.operand_width;
	r[7] = instruction.address_width;
	r[8] = instruction.stack_width;
	r[9] = instruction.opcode | (ZyanU32)instruction.opcode_map << 8 |
	       (ZyanU32)instruction.encoding << 16;
	r[10] = instruction.meta.category;
	r[11] = instruction.meta.branch_type;
	r[12] = flags ? flags->tested : 0;
	r[13] = flags ? flags->modified | flags->set_0 | flags->set_1 | flags->undefined : 0;
	r[14] = flags ? flags->undefined : 0;
	r[15] = traits(instruction.attributes) |
		(instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? IS_FAR : 0);
	for (ZyanU32 i = 0; i < instruction.operand_count; i++) {
		repair_base(&operands[i]);
		put_operand(r + HEADER_WORDS + i * OPERAND_WORDS, &operands[i]);
	}
	return instruction.length;
}

/* Intel syntax of the instruction decoded last, at this address; its length in text[], or -1. */
int EXPORT(format)(unsigned int address_lo, unsigned int address_hi)
{
	ZyanU64 address = (ZyanU64)address_hi << 32 | address_lo;
	int n = 0;

	if (ZYAN_FAILED(ZydisFormatterFormatInstruction(&formatter, &instruction, operands,
							instruction.operand_count_visible, text,
							TEXT_BYTES, address, 0)))
		return -1;
	while (n < TEXT_BYTES && text[n])
		n++;
	return n;
}

static int put_text(const char *s)
{
	int n = 0;

	while (s && s[n] && n < TEXT_BYTES) {
		text[n] = s[n];
		n++;
	}
	return n;
}

/* Name of a mnemonic in text[]; its length, 0 when there is none. */
int EXPORT(mnemonic_name)(unsigned int id)
{
	return put_text(ZydisMnemonicGetString((ZydisMnemonic)id));
}

int EXPORT(mnemonic_count)(void)
{
	return ZYDIS_MNEMONIC_MAX_VALUE + 1;
}

int EXPORT(register_count)(void)
{
	return ZYDIS_REGISTER_MAX_VALUE + 1;
}

/* What a register is, in register_row[], with its name in text[]; the name's length. */
int EXPORT(register_info)(unsigned int id)
{
	ZydisRegister reg = (ZydisRegister)id;

	register_row[0] = ZydisRegisterGetClass(reg);
	register_row[1] = (ZyanU32)ZydisRegisterGetId(reg);
	/* Zydis counts byte registers with AH..BH in between; we want RAX..R15. */
	if (register_row[0] >= ZYDIS_REGCLASS_GPR8 && register_row[0] <= ZYDIS_REGCLASS_GPR64)
		register_row[1] = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg) -
				  ZYDIS_REGISTER_RAX;
	register_row[2] = ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, reg);
	register_row[3] = reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
	return put_text(ZydisRegisterGetString(reg));
}

/* Name of an instruction category in text[]; its length, 0 when there is none. */
int EXPORT(category_name)(unsigned int id)
{
	return put_text(ZydisCategoryGetString((ZydisInstructionCategory)id));
}
