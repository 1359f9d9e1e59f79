/* SPDX-License-Identifier: MIT */
/*
 * native_stub.c - makes the pieces of host code that run one guest instruction.
 *
 * The instruction is encoded anew from its decoded fields: opcode, mandatory
 * prefix and vector registers stay, a memory operand becomes [rsi], general
 * registers become r8 (ModRM.reg), r9 (ModRM.rm) and r10 (VEX.vvvv); implicit
 * RAX, RCX, RDX stay. Around it the stub loads what the instruction reads from
 * struct cpu and the XSAVE image, and stores what it writes:
 *
 *	rdi cpu, rsi memory operand, edx MXCSR / rdx FXSAVE image,
 *	ecx forbidding MXCSR bits, r11 XSAVE image, rax scratch and flags
 *
 * All of these are caller-saved, so that a stub has no frame. The x87 state,
 * the controls in MXCSR and the upper halves of YMM are left as C code wants
 * them.
 */
#include <string.h>
#include "native_int.h"

struct emit {
	u8 code[STUB_MAX];
	u32 n;
};

static void put(struct emit *e, u8 b)
{
	if (e->n < STUB_MAX)
		e->code[e->n] = b;
	e->n++;
}

static void puts_(struct emit *e, const char *bytes, u32 n)
{
	while (n--)
		put(e, (u8)*bytes++);
}
#define PUTS(e, literal)	puts_(e, literal, sizeof(literal) - 1)

static void put32le(struct emit *e, u32 v)
{
	for (u32 i = 0; i < 4; i++)
		put(e, (u8)(v >> (8 * i)));
}

/* ---- registers --------------------------------------------------------------- */

static bool is_gpr(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_R15;
}

static bool is_xmm(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_XMM0 && r <= ZYDIS_REGISTER_XMM15;
}

static bool is_ymm(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_YMM0 && r <= ZYDIS_REGISTER_YMM15;
}

static bool is_mmx(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_MM0 && r <= ZYDIS_REGISTER_MM7;
}

static u8 vector_number(ZydisRegister r)
{
	return (u8)(is_ymm(r) ? r - ZYDIS_REGISTER_YMM0 : r - ZYDIS_REGISTER_XMM0);
}

/* Number of a general register; *high for AH, CH, DH, BH. */
static u8 gpr_number(ZydisRegister r, bool *high)
{
	*high = false;
	if (r >= ZYDIS_REGISTER_RAX)
		return (u8)(r - ZYDIS_REGISTER_RAX);
	if (r >= ZYDIS_REGISTER_EAX)
		return (u8)(r - ZYDIS_REGISTER_EAX);
	if (r >= ZYDIS_REGISTER_AX)
		return (u8)(r - ZYDIS_REGISTER_AX);
	if (r <= ZYDIS_REGISTER_BL)
		return (u8)(r - ZYDIS_REGISTER_AL);
	if (r <= ZYDIS_REGISTER_BH) {
		*high = true;
		return (u8)(r - ZYDIS_REGISTER_AH);
	}
	return (u8)(r - ZYDIS_REGISTER_SPL + 4);
}

/* Host register (r8, r9, r10 or the implicit one itself) of a GPR operand. */
static u8 host_gpr(const ZydisDecodedOperand *p, u8 guest)
{
	switch (p->encoding) {
	case ZYDIS_OPERAND_ENCODING_MODRM_REG:
		return 8;
	case ZYDIS_OPERAND_ENCODING_MODRM_RM:
		return 9;
	case ZYDIS_OPERAND_ENCODING_NDSNDD:
		return 10;
	default:
		return guest;
	}
}

/* mov host, [rdi + 8 * guest] or back. */
static void move_gpr(struct emit *e, u8 host, u8 guest, bool store)
{
	put(e, 0x48 | (host >= 8 ? 4 : 0));
	put(e, store ? 0x89 : 0x8b);
	put(e, 0x47 | (host & 7) << 3);
	put(e, (u8)(8 * guest));
}

/* movaps xmm, [r11 + disp] or back; vmovaps around VEX instructions, since mixing the two is slow. */
static void move_xmm(struct emit *e, u8 n, bool store, bool vex)
{
	if (vex) {
		put(e, 0xc4);
		put(e, 0x41 | (n >= 8 ? 0 : 0x80));
		put(e, 0x78);
	} else {
		put(e, 0x41 | (n >= 8 ? 4 : 0));
		put(e, 0x0f);
	}
	put(e, store ? 0x29 : 0x28);
	put(e, 0x83 | (n & 7) << 3);
	put32le(e, XS_XMM + 16u * n);
}

/* vinsertf128 ymm, ymm, [r11 + disp], 1 or vextractf128 [r11 + disp], ymm, 1. */
static void move_high(struct emit *e, u8 n, bool store)
{
	put(e, 0xc4);
	put(e, 0x43 | (n >= 8 ? 0 : 0x80));
	put(e, (store ? 0x78 : (u8)((~n & 15) << 3)) | 5);
	put(e, store ? 0x19 : 0x18);
	put(e, 0x83 | (n & 7) << 3);
	put32le(e, XS_YMM + 16u * n);
	put(e, 1);
}

static void zero_high(struct emit *e, u8 n)
{
	for (u32 i = 0; i < 16; i += 8) {
		PUTS(e, "\x49\xc7\x83");	/* mov qword [r11 + disp], 0 */
		put32le(e, XS_YMM + 16u * n + i);
		put32le(e, 0);
	}
}

/* ---- the instruction itself ------------------------------------------------------ */

/* VEX.W only chooses the size of a general register, which outside 64-bit mode is 32. */
static bool vex_w_is_gpr_size(const struct insn *in)
{
	u8 op = in->z.opcode;

	switch (in->z.opcode_map) {
	case ZYDIS_OPCODE_MAP_0F:
		return op == 0x6e || op == 0x7e || op == 0x2a || op == 0x2c || op == 0x2d;
	case ZYDIS_OPCODE_MAP_0F38:
		return op >= 0xf2 && op <= 0xf7;
	case ZYDIS_OPCODE_MAP_0F3A:
		return op == 0x16 || op == 0x22 || op == 0xf0;
	default:
		return false;
	}
}

/* The operand-size prefix matters: 16-bit general registers. */
static bool has_16bit_form(const struct insn *in)
{
	switch (in->z.meta.isa_set) {
	case ZYDIS_ISA_SET_POPCNT:
	case ZYDIS_ISA_SET_LZCNT:
	case ZYDIS_ISA_SET_BMI1:
	case ZYDIS_ISA_SET_MOVBE:
	case ZYDIS_ISA_SET_RDRAND:
	case ZYDIS_ISA_SET_RDSEED:
		return true;
	default:
		return in->z.mnemonic == ZYDIS_MNEMONIC_CRC32;
	}
}

static void encode(struct emit *e, const struct insn *in)
{
	const ZydisDecodedInstruction *z = &in->z;
	bool vex = z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
	bool modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM;
	u8 reg = z->raw.modrm.reg, rm = z->raw.modrm.rm, mod = 3, v = 0, rex;
	int is4 = -1;

	for (u32 i = 0; i < z->operand_count; i++) {
		const ZydisDecodedOperand *p = &in->op[i];
		u8 n;

		if (p->type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    p->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
			mod = 0;
			rm = 6;
		}
		if (p->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		if (is_gpr(p->reg.value))
			n = host_gpr(p, 0);
		else if (is_xmm(p->reg.value) || is_ymm(p->reg.value))
			n = vector_number(p->reg.value);
		else if (is_mmx(p->reg.value))
			n = (u8)(p->reg.value - ZYDIS_REGISTER_MM0);
		else
			continue;
		if (p->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
			reg = n;
		else if (p->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
			rm = n;
		else if (p->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
			v = n;
		else if (p->encoding == ZYDIS_OPERAND_ENCODING_IS4)
			is4 = n;
	}

	if (vex) {
		bool w = z->raw.vex.W;

		if (in->code_bits != 64 && vex_w_is_gpr_size(in))
			w = false;
		put(e, 0xc4);
		put(e, (reg >= 8 ? 0 : 0x80) | 0x40 | (rm >= 8 ? 0 : 0x20) |
		       (u8)(z->opcode_map == ZYDIS_OPCODE_MAP_0F ? 1 :
			    z->opcode_map == ZYDIS_OPCODE_MAP_0F38 ? 2 : 3));
		put(e, (w ? 0x80 : 0) | (u8)((~v & 15) << 3) |
		       (z->raw.vex.L ? 4 : 0) | z->raw.vex.pp);
	} else {
		if (z->operand_width == 16 && has_16bit_form(in))
			put(e, 0x66);
		for (u32 i = 0; i < z->raw.prefix_count; i++)
			if (z->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY)
				put(e, z->raw.prefixes[i].value);
		rex = (in->code_bits == 64 && (z->attributes & ZYDIS_ATTRIB_HAS_REX) &&
		       z->raw.rex.W ? 8 : 0) | (reg >= 8 ? 4 : 0) | (rm >= 8 ? 1 : 0);
		if (rex)
			put(e, 0x40 | rex);
		if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
			put(e, 0x0f);
		if (z->opcode_map == ZYDIS_OPCODE_MAP_0F38)
			put(e, 0x38);
		if (z->opcode_map == ZYDIS_OPCODE_MAP_0F3A)
			put(e, 0x3a);
	}
	put(e, z->opcode);
	if (modrm)
		put(e, (u8)(mod << 6 | (reg & 7) << 3 | (rm & 7)));
	if (is4 >= 0)
		put(e, (u8)(is4 << 4 | (z->raw.imm[0].value.u & 15)));
	else
		for (u32 bit = 0; bit < z->raw.imm[0].size; bit += 8)
			put(e, (u8)(z->raw.imm[0].value.u >> bit));
}

/* ---- the stub around it ------------------------------------------------------------ */

#define OFF(member)	((u32)offsetof(struct cpu, member))

static void load_operands(struct emit *e, const struct insn *in)
{
	bool vex = in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
	u32 wide = 0;

	for (u32 i = 0; i < in->z.operand_count; i++) {
		const ZydisDecodedOperand *p = &in->op[i];
		ZydisRegister r = p->reg.value;

		if (p->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		if (is_gpr(r)) {
			bool high;
			u8 n = gpr_number(r, &high), h = host_gpr(p, n);

			if (high) {
				/* movzx r9d, byte [rdi + 8 * n + 1]: CRC32 alone has it */
				PUTS(e, "\x44\x0f\xb6\x4f");
				put(e, (u8)(8 * n + 1));
			} else if (h >= 8 || n <= 2) {
				move_gpr(e, h, n, false);
			}
		} else if (is_ymm(r)) {
			move_xmm(e, vector_number(r), false, vex);
			move_high(e, vector_number(r), false);
			wide |= 1u << vector_number(r);
		} else if (is_xmm(r) && !(wide >> vector_number(r) & 1)) {
			move_xmm(e, vector_number(r), false, vex);
		}
	}
}

static void store_operands(struct emit *e, const struct insn *in)
{
	bool vex = in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;

	/* The first operand last: MULX with the same destination twice keeps the high half. */
	for (u32 i = in->z.operand_count; i-- > 0;) {
		const ZydisDecodedOperand *p = &in->op[i];
		ZydisRegister r = p->reg.value;
		bool high;

		if (p->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    !(p->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		if (is_gpr(r)) {
			u8 n = gpr_number(r, &high);

			move_gpr(e, host_gpr(p, n), n, true);
		} else if (is_xmm(r) || is_ymm(r)) {
			move_xmm(e, vector_number(r), true, vex);
			if (is_ymm(r))
				move_high(e, vector_number(r), true);
			else if (vex)
				zero_high(e, vector_number(r));
		}
	}
}

static void build(struct emit *e, const struct insn *in, const struct form *f)
{
	const ZydisAccessedFlags *fl = in->z.cpu_flags;
	u32 written = fl ? (fl->modified | fl->set_0 | fl->set_1 | fl->undefined) & FL_STATUS : 0;
	u32 read = fl ? fl->tested & FL_STATUS : 0;
	/* Flags that come out as they went in: those not written, and maybe the undefined ones. */
	u32 kept = fl ? FL_STATUS & ~((fl->modified | fl->set_0 | fl->set_1) & ~fl->undefined) : 0;
	bool mxcsr = f->bits & FORM_MXCSR, fx = f->bits & FORM_FX, wide = false;
	u32 skip = 0;

	if (in->flags_dead)
		written = 0;
	for (u32 i = 0; i < in->z.operand_count; i++)
		if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_ymm(in->op[i].reg.value))
			wide = true;

	PUTS(e, "\x4c\x8b\x9f");		/* mov r11, [rdi + xsave] */
	put32le(e, OFF(xsave));
	if (mxcsr || fx)
		PUTS(e, "\x0f\xae\x5c\x24\xe0");	/* stmxcsr [rsp - 32] */
	if (fx)
		PUTS(e, "\x48\x0f\xae\x0a");	/* fxrstor64 [rdx] */
	else if (mxcsr)
		/*
		 * LDMXCSR is slow: not when the controls are equal already and
		 * every status bit that is set is set in edx too.
		 */
		PUTS(e, "\x8b\x44\x24\xe0"		/* mov eax, [rsp - 32] */
			"\x41\x89\xc2"			/* mov r10d, eax */
			"\x41\x31\xd2"			/* xor r10d, edx */
			"\x0d\xc0\xff\x00\x00"		/* or eax, 0xffc0 */
			"\x41\x85\xc2"			/* test r10d, eax */
			"\x74\x09"			/* jz over */
			"\x89\x54\x24\xe8"		/* mov [rsp - 24], edx */
			"\x0f\xae\x54\x24\xe8");	/* ldmxcsr [rsp - 24] */
	load_operands(e, in);
	if (read || (written && kept)) {
		PUTS(e, "\xff\xb7");		/* push qword [rdi + flags] */
		put32le(e, OFF(flags));
		put(e, 0x9d);			/* popfq */
	}
	encode(e, in);
	if (written)
		PUTS(e, "\x9c\x58");		/* pushfq; pop rax */
	if (fx) {
		PUTS(e, "\x48\x0f\xae\x02");	/* fxsave64 [rdx] */
		PUTS(e, "\xdb\xe3");		/* fninit */
		PUTS(e, "\x0f\xae\x54\x24\xe0");	/* ldmxcsr [rsp - 32] */
	} else if (mxcsr) {
		/* Left behind: the default controls, with whatever status bits. */
		PUTS(e, "\x0f\xae\x5c\x24\xe8"		/* stmxcsr [rsp - 24] */
			"\x8b\x54\x24\xe8"		/* mov edx, [rsp - 24] */
			"\x89\xd6"			/* mov esi, edx */
			"\x81\xe6\xc0\xff\x00\x00"	/* and esi, 0xffc0 */
			"\x81\xfe\x80\x1f\x00\x00"	/* cmp esi, 0x1f80 */
			"\x74\x0d"			/* je over */
			"\xc7\x44\x24\xe8\x80\x1f\x00\x00"	/* mov dword [rsp - 24], 0x1f80 */
			"\x0f\xae\x54\x24\xe8");	/* ldmxcsr [rsp - 24] */
		PUTS(e, "\x85\xca");			/* test edx, ecx */
		PUTS(e, "\x0f\x85");		/* jnz done */
		skip = e->n;
		put32le(e, 0);
	}
	/* With FORM_FX the XMM results are in the image. */
	if (!(f->bits & FORM_FX_XMM))
		store_operands(e, in);
	if (written) {
		put(e, 0x25);			/* and eax, FL_STATUS */
		put32le(e, FL_STATUS);
		PUTS(e, "\x48\x89\x87");	/* mov [rdi + flags], rax */
		put32le(e, OFF(flags));
	}
	if (skip) {
		u32 d = e->n - (skip + 4);

		memcpy(e->code + skip, &d, 4);
	}
	if (mxcsr && !fx)
		PUTS(e, "\x89\xd0");		/* mov eax, edx */
	if (wide)
		PUTS(e, "\xc5\xf8\x77");	/* vzeroupper */
	put(e, 0xc3);
}

/* ---- the arena --------------------------------------------------------------------- */

static u32 hash(const u8 *p, u32 n)
{
	u32 h = 2166136261u;

	while (n--)
		h = (h ^ *p++) * 16777619u;
	return h;
}

static bool same(const struct form *a, const struct form *b)
{
	return a->fop == b->fop && a->need == b->need && a->mem == b->mem &&
	       a->align == b->align && a->bits == b->bits;
}

/*
 * The form like f (filled in but for its code), made now or found; NULL when
 * there is no room left (native_full() said so before).
 */
const struct form *native_form(struct cpu *c, const struct insn *in, struct form *f)
{
	struct native *n = native(c);
	struct emit e = { .n = 0 };
	struct form *g;
	u32 h;

	build(&e, in, f);
	if (e.n > STUB_MAX)
		return NULL;
	h = (hash(e.code, e.n) ^ f->bits ^ f->mem) % FORM_HASH;
	for (u32 i = n->hash[h]; i; i = g->next) {
		g = &n->form[i - 1];
		if (same(g, f) && g->code_len == e.n && !memcmp(n->arena_w + g->code, e.code, e.n))
			return g;
	}
	if (n->forms_used == FORMS || n->used + e.n > ARENA_SIZE)
		return NULL;
	memcpy(n->arena_w + n->used, e.code, e.n);
	g = &n->form[n->forms_used++];
	*g = *f;
	g->code = n->used;
	g->code_len = (u16)e.n;
	g->run = (stub_fn)(uintptr_t)(n->arena_x + n->used);
	g->next = n->hash[h];
	n->hash[h] = n->forms_used;
	n->used = (n->used + e.n + 15) & ~15u;
	return g;
}
