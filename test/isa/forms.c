/* SPDX-License-Identifier: MIT */
/* forms.c - every instruction form that a user program can run, from Zydis's own tables. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "isa.h"

bool decode(u8 bits, const u8 *bytes, u32 len, ZydisDecodedInstruction *z, ZydisDecodedOperand *op)
{
	static ZydisDecoder d64, d32;
	static bool ready;

	if (!ready) {
		ZydisDecoderInit(&d64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
		ZydisDecoderInit(&d32, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
		ready = true;
	}
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(bits == 64 ? &d64 : &d32, bytes, len, z, op)))
		return false;
	/* SIB without a base: Zydis 4.0.0 takes R13D for one with a 32-bit address size. */
	for (u32 i = 0; i < z->operand_count; i++)
		if (op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && (z->attributes & ZYDIS_ATTRIB_HAS_SIB) &&
		    z->raw.modrm.mod == 0 && z->raw.sib.base == 5 &&
		    op[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
			op[i].mem.base = ZYDIS_REGISTER_NONE;
			op[i].mem.disp.has_displacement = ZYAN_TRUE;
			op[i].mem.disp.value = z->raw.disp.value;
		}
	return true;
}

static u64 mix(u64 h, u64 v)
{
	h ^= v;
	h *= 0x9e3779b97f4a7c15ull;
	return h ^ h >> 29;
}

/* Two encodings are the same form when nothing but register numbers, addressing and values differ. */
u64 form_key(u8 bits, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
	u64 h = mix(z->mnemonic, bits << 8 | z->encoding);
	u8 opcode = z->opcode;

	for (u32 i = 0; i < z->operand_count; i++) {
		const ZydisDecodedOperand *p = &op[i];

		if (p->encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
			opcode &= 0xf8;
		if (p->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		h = mix(h, (u64)p->type << 32 | (u64)p->encoding << 16 | p->size);
		if (p->visibility == ZYDIS_OPERAND_VISIBILITY_IMPLICIT &&
		    p->type == ZYDIS_OPERAND_TYPE_REGISTER)
			h = mix(h, p->reg.value);
	}
	h = mix(h, (u64)opcode << 8 | z->opcode_map);
	h = mix(h, z->attributes & (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP |
				    ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE));
	/* Operand sizes of instructions without visible operands (MOVSB, PUSHF, LEAVE). */
	if (!z->operand_count_visible)
		h = mix(h, z->operand_width);
	return h ? h : 1;
}

bool is_xsave(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64:
		return true;
	default:
		return false;
	}
}

/* Instructions whose result depends on the machine around, or that a user program must not run. */
static bool skipped(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
	switch (z->meta.isa_ext) {
	case ZYDIS_ISA_EXT_BASE: case ZYDIS_ISA_EXT_LONGMODE: case ZYDIS_ISA_EXT_X87:
	case ZYDIS_ISA_EXT_MMX: case ZYDIS_ISA_EXT_SSE: case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3: case ZYDIS_ISA_EXT_SSSE3: case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_AES: case ZYDIS_ISA_EXT_PCLMULQDQ: case ZYDIS_ISA_EXT_SHA:
	case ZYDIS_ISA_EXT_AVX: case ZYDIS_ISA_EXT_AVX2: case ZYDIS_ISA_EXT_AVX2GATHER:
	case ZYDIS_ISA_EXT_AVXAES: case ZYDIS_ISA_EXT_FMA: case ZYDIS_ISA_EXT_F16C:
	case ZYDIS_ISA_EXT_BMI1: case ZYDIS_ISA_EXT_BMI2: case ZYDIS_ISA_EXT_ADOX_ADCX:
	case ZYDIS_ISA_EXT_LZCNT: case ZYDIS_ISA_EXT_MOVBE: case ZYDIS_ISA_EXT_RDRAND:
	case ZYDIS_ISA_EXT_RDSEED: case ZYDIS_ISA_EXT_GFNI: case ZYDIS_ISA_EXT_VAES:
	case ZYDIS_ISA_EXT_VPCLMULQDQ: case ZYDIS_ISA_EXT_AVX_VNNI: case ZYDIS_ISA_EXT_PAUSE:
	case ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH:
		break;
	case ZYDIS_ISA_EXT_XSAVE: case ZYDIS_ISA_EXT_XSAVEOPT:
		if (!is_xsave(z->mnemonic))
			return true;
		break;
	default:
		return true;
	}
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_SYSTEM: case ZYDIS_CATEGORY_SYSCALL: case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_INTERRUPT: case ZYDIS_CATEGORY_IO: case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_SEGOP:
		return true;
	default:
		break;
	}
	if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	    z->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return true;
	if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
		return true;
	for (u32 i = 0; i < z->operand_count; i++) {
		ZydisRegisterClass k;

		if (op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		k = ZydisRegisterGetClass(op[i].reg.value);
		if (k == ZYDIS_REGCLASS_CONTROL || k == ZYDIS_REGCLASS_DEBUG || k == ZYDIS_REGCLASS_TABLE)
			return true;
		if (k == ZYDIS_REGCLASS_SEGMENT && (op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			return true;
	}
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_HLT: case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_RDPMC: case ZYDIS_MNEMONIC_XGETBV: case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD: case ZYDIS_MNEMONIC_IRETQ: case ZYDIS_MNEMONIC_SMSW:
	case ZYDIS_MNEMONIC_SLDT: case ZYDIS_MNEMONIC_STR: case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL: case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW:
	case ZYDIS_MNEMONIC_UD0: case ZYDIS_MNEMONIC_UD1:
		return true;
	default:
		return false;
	}
}

static u32 append(char *to, u32 n, u32 room, const char *text)
{
	while (*text && n + 1 < room)
		to[n++] = *text++;
	to[n] = 0;
	return n;
}

static void name_form(struct form *f, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
	u32 n = 0;
	char t[24];

	if (f->bits == 32)
		n = append(f->name, n, sizeof(f->name), "32: ");
	if (z->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		n = append(f->name, n, sizeof(f->name), "lock ");
	if (z->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
		n = append(f->name, n, sizeof(f->name), "rep ");
	if (z->attributes & ZYDIS_ATTRIB_HAS_REPNE)
		n = append(f->name, n, sizeof(f->name), "repne ");
	n = append(f->name, n, sizeof(f->name), ZydisMnemonicGetString(z->mnemonic));
	for (u32 i = 0; i < z->operand_count; i++) {
		const ZydisDecodedOperand *p = &op[i];

		if (p->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		n = append(f->name, n, sizeof(f->name), i ? ", " : " ");
		switch (p->type) {
		case ZYDIS_OPERAND_TYPE_MEMORY:
			snprintf(t, sizeof(t), p->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? "vm%u" : "m%u", p->size);
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			snprintf(t, sizeof(t), "%s%u", p->imm.is_relative ? "rel" : "imm",
				 z->raw.imm[0].size ? z->raw.imm[0].size : p->size);
			break;
		default:
			switch (ZydisRegisterGetClass(p->reg.value)) {
			case ZYDIS_REGCLASS_XMM: snprintf(t, sizeof(t), "xmm"); break;
			case ZYDIS_REGCLASS_YMM: snprintf(t, sizeof(t), "ymm"); break;
			case ZYDIS_REGCLASS_MMX: snprintf(t, sizeof(t), "mm"); break;
			case ZYDIS_REGCLASS_X87: snprintf(t, sizeof(t), "st"); break;
			case ZYDIS_REGCLASS_SEGMENT: snprintf(t, sizeof(t), "sreg"); break;
			default:
				if (p->visibility == ZYDIS_OPERAND_VISIBILITY_IMPLICIT)
					snprintf(t, sizeof(t), "%s", ZydisRegisterGetString(p->reg.value));
				else
					snprintf(t, sizeof(t), "r%u", p->size);
			}
		}
		n = append(f->name, n, sizeof(f->name), t);
	}
	snprintf(t, sizeof(t), " {%s%x %02x}", z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? "v" : "",
		 z->opcode_map, z->opcode);
	append(f->name, n, sizeof(f->name), t);
}

#define MAX_FORMS	16384u
#define SEEN		65536u

static struct form *list;
static u32 count;
static u64 seen[SEEN];

static bool is_new(u64 key)
{
	u32 i = (u32)(key >> 20) % SEEN;

	while (seen[i]) {
		if (seen[i] == key)
			return false;
		i = (i + 1) % SEEN;
	}
	seen[i] = key;
	return true;
}

static void consider(const u8 *bytes, const struct form *like)
{
	ZydisDecodedInstruction z;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	struct form *f;
	u64 key;

	if (!decode(like->bits, bytes, 15, &z, op) || skipped(&z, op))
		return;
	key = form_key(like->bits, &z, op);
	if (!is_new(key) || count == MAX_FORMS)
		return;
	f = &list[count++];
	*f = *like;
	f->key = key;
	f->mnemonic = z.mnemonic;
	f->modrm = z.attributes & ZYDIS_ATTRIB_HAS_MODRM;
	f->memory = f->modrm && like->mod != 3;
	name_form(f, &z, op);
}

static void legacy(struct form f)
{
	u8 b[16] = { 0 };
	u32 n = 0;

	if (f.lock)
		b[n++] = 0xf0;
	if (f.p66)
		b[n++] = 0x66;
	if (f.rep)
		b[n++] = f.rep;
	if (f.w)
		b[n++] = 0x48;
	if (f.map)
		b[n++] = 0x0f;
	if (f.map == 2)
		b[n++] = 0x38;
	if (f.map == 3)
		b[n++] = 0x3a;
	b[n++] = f.opcode;
	b[n] = (u8)(f.mod << 6 | f.reg << 3 | f.rm);
	consider(b, &f);
}

static void vex(struct form f)
{
	u8 b[16] = { 0xc4, 0xe0 | f.map, (u8)(f.w << 7 | (~f.v & 15) << 3 | f.l << 2 | f.pp), f.opcode,
		     (u8)(f.mod << 6 | f.reg << 3 | f.rm) };

	if (f.rm == 4 && f.mod == 0)
		b[5] = 0x3f;	/* SIB: [rdi + xmm7 or rdi] */
	consider(b, &f);
}

static void find(u8 bits)
{
	static const struct { u8 p66, rep; } prefixes[] = {
		{ 0, 0 }, { 1, 0 }, { 0, 0xf3 }, { 0, 0xf2 }, { 1, 0xf3 }, { 1, 0xf2 },
	};

	for (u32 map = 0; map < 4; map++)
		for (u32 opcode = 0; opcode < 256; opcode++)
			for (u32 p = 0; p < 6; p++)
				for (u32 x = 0; x < 2 * 2 * 2 * 8; x++) {
					struct form f = {
						.bits = bits, .map = (u8)map, .opcode = (u8)opcode,
						.p66 = prefixes[p].p66, .rep = prefixes[p].rep,
						.w = x & 1, .lock = x >> 1 & 1, .mod = x >> 2 & 1 ? 3 : 0,
						.reg = x >> 3 & 7,
						.rm = 7,
					};
					bool x87 = !map && (opcode & 0xf8) == 0xd8;

					if (f.w && bits != 64)
						continue;
					for (f.rm = x87 && f.mod == 3 ? 0 : 7; f.rm < 8; f.rm++)
						legacy(f);
				}
	for (u32 map = 1; map < 4; map++)
		for (u32 opcode = 0; opcode < 256; opcode++)
			for (u32 x = 0; x < 4 * 2 * 2 * 2 * 8 * 2 * 2; x++) {
				struct form f = {
					.bits = bits, .vex = true, .map = (u8)map, .opcode = (u8)opcode,
					.pp = x & 3, .w = x >> 2 & 1, .l = x >> 3 & 1,
					.mod = x >> 4 & 1 ? 3 : 0, .reg = x >> 5 & 7,
					.v = x >> 8 & 1 ? 6 : 0, .rm = x >> 9 & 1 ? 4 : 5,
				};

				/* rm 5 with mod 0 is RIP-relative: take 1 there */
				if (f.mod == 0 && f.rm == 5)
					f.rm = 1;
				vex(f);
			}
}

u32 find_forms(struct form **forms)
{
	list = calloc(MAX_FORMS, sizeof(*list));
	if (!list)
		abort();
	find(64);
	find(32);
	*forms = list;
	return count;
}
