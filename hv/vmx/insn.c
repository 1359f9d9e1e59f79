/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * insn.c - how long an instruction is, for replies that skip one whose length
 * the CPU does not tell: the exit of an EPT violation has none (SDM 27.2.5).
 * SDM vol. 2 chapter 2 and appendix A. What no Intel CPU has (XOP, 3DNow!,
 * SSE4a) is not known.
 *
 * A row of a map is 16 opcodes, a letter each:
 *   .  no operand bytes        m  ModRM                 r  ModRM that is always a register (CR, DR)
 *   b  imm8                    B  ModRM, imm8
 *   w  imm16                   z  imm16 or imm32        Z  ModRM, imm16 or imm32
 *   j  branch: like z, but imm32 in 64-bit code
 *   v  imm16, imm32, imm64     a  address-sized offset
 *   e  imm16, imm8             f  far pointer
 *   g  ModRM; imm8 when its reg is 0 or 1               G  the same with imm16 or imm32
 *   -  not known, or handled on its own
 */
#include "insn.h"

static const char one_byte[16][17] = {
	"mmmmbz..mmmmbz.-", "mmmmbz..mmmmbz..", "mmmmbz-.mmmmbz-.", "mmmmbz-.mmmmbz-.",
	"................", "................", "..mm----zZbB....", "bbbbbbbbbbbbbbbb",
	"BZBBmmmmmmmmmmmm", "..........f.....", "aaaa....bz......", "bbbbbbbbvvvvvvvv",
	"BBw.mmBZe.w..b..", "mmmmbb..mmmmmmmm", "bbbbbbbbjjfb....", "-.--..gG......mm",
};
static const char two_byte[16][17] = {
	"mmmm-.....-.-m.-", "mmmmmmmmmmmmmmmm", "rrrr----mmmmmmmm", "......-.--------",
	"mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm", "BBBBmmm.mm--mmmm",
	"jjjjjjjjjjjjjjjj", "mmmmmmmmmmmmmmmm", "...mBm--...mBmmm", "mmmmmmmm-mBmmmmm",
	"mmBmBBBm........", "mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm",
};

struct insn {
	const __u8 *p;
	unsigned int n, at;
	int bits, address;		/* address: 16, 32 or 64 */
	int osize, simd, lock, rex;	/* prefixes: 66h, the last of F2h and F3h, F0h, REX */
};

/* The byte at i; -1 when it is not there. */
static int peek(const struct insn *x, unsigned int i)
{
	return i < x->n ? x->p[i] : -1;
}

static int next(struct insn *x)
{
	return peek(x, x->at) < 0 ? -1 : x->p[x->at++];
}

/* ModRM with SIB and displacement (SDM vol. 2 tables 2-1 to 2-3). 0 when bytes are missing. */
static int modrm(struct insn *x)
{
	int m = next(x), mod = m >> 6, rm = m & 7;

	if (m < 0)
		return 0;
	if (mod == 3)
		return 1;
	if (x->address == 16) {
		x->at += mod == 1 ? 1 : mod == 2 || rm == 6 ? 2 : 0;
		return 1;
	}
	if (rm == 4) {
		int sib = next(x);

		if (sib < 0)
			return 0;
		rm = sib & 7;
	}
	x->at += mod == 1 ? 1 : mod == 2 || rm == 5 ? 4 : 0;
	return 1;
}

/* Size of an operand that an immediate of 16 or 32 bits goes with. */
static int wide(const struct insn *x)
{
	if (x->rex & 8)
		return 4;
	return (x->bits == 16) != x->osize ? 2 : 4;
}

/* What follows an opcode of this letter. 0 when it is not known. */
static int operands(struct insn *x, char form)
{
	int reg;

	switch (form) {
	case '.':
		return 1;
	case 'm':
		return modrm(x);
	case 'r': case 'b':
		x->at++;
		return 1;
	case 'B':
		if (!modrm(x))
			return 0;
		x->at++;
		return 1;
	case 'w':
		x->at += 2;
		return 1;
	case 'z':
		x->at += wide(x);
		return 1;
	case 'Z':
		if (!modrm(x))
			return 0;
		x->at += wide(x);
		return 1;
	case 'j':
		x->at += x->bits == 64 ? 4 : wide(x);
		return 1;
	case 'v':
		x->at += (x->rex & 8) ? 8 : wide(x);
		return 1;
	case 'a':
		x->at += x->address / 8;
		return 1;
	case 'e':
		x->at += 3;
		return 1;
	case 'f':
		x->at += 2 + wide(x);
		return 1;
	case 'g': case 'G':
		reg = peek(x, x->at);
		if (reg < 0 || !modrm(x))
			return 0;
		if (!(reg >> 4 & 3))		/* TEST; the others have no immediate */
			x->at += form == 'g' ? 1 : wide(x);
		return 1;
	default:
		return 0;
	}
}

/* VEX and EVEX, maps 1 to 3, 5 and 6: the opcode, ModRM, an immediate. */
static int vector(struct insn *x, int map, int vex)
{
	int op = next(x);

	if (op < 0)
		return 0;
	switch (map) {
	case 1:
		if (vex && op == 0x77)		/* VZEROUPPER, VZEROALL */
			return 1;
		if ((op >= 0x70 && op <= 0x73) || op == 0xc2 || (op >= 0xc4 && op <= 0xc6))
			return operands(x, 'B');
		return vex && op >> 4 == 8 ? 0 : modrm(x);
	case 2: case 5: case 6:
		return modrm(x);
	case 3:
		return operands(x, 'B');
	default:
		return 0;
	}
}

/*
 * C4h, C5h and 62h are LES, LDS and BOUND where ModRM says memory outside
 * 64-bit code. 1: done, 0: not known, -1: not one of them.
 */
static int vector_prefix(struct insn *x, int op)
{
	int b = peek(x, x->at), c = peek(x, x->at + 1);

	if (op != 0xc4 && op != 0xc5 && op != 0x62)
		return -1;
	if (b < 0)
		return 0;
	if (x->bits != 64 && b >> 6 != 3)
		return -1;
	if (x->osize || x->simd || x->lock || x->rex)
		return 0;
	switch (op) {
	case 0xc5:
		x->at++;
		return vector(x, 1, 1);
	case 0xc4:
		x->at += 2;
		return vector(x, b & 31, 1);
	default:
		if (c < 0 || (b & 8) || !(c & 4))
			return 0;
		x->at += 3;
		return vector(x, b & 7, 0);
	}
}

static int opcode(struct insn *x)
{
	int op = next(x), r;

	if (op < 0)
		return 0;
	r = vector_prefix(x, op);
	if (r >= 0)
		return r;
	if (op == 0x8f && (peek(x, x->at) & 0x38))	/* XOP, not POP */
		return 0;
	if (op != 0x0f)
		return operands(x, one_byte[op >> 4][op & 15]);
	op = next(x);
	if (op < 0)
		return 0;
	switch (op) {
	case 0x38:
		return next(x) < 0 ? 0 : modrm(x);
	case 0x3a:
		return next(x) < 0 ? 0 : operands(x, 'B');
	case 0x78:			/* VMREAD; with a prefix SSE4a */
		return !x->osize && !x->simd && modrm(x);
	case 0xb8:			/* POPCNT; JMPE is not x86 */
		return x->simd == 0xf3 ? modrm(x) : 0;
	default:
		return operands(x, two_byte[op >> 4][op & 15]);
	}
}

int insn_length(const __u8 *bytes, unsigned int n, int bits)
{
	struct insn x = { .p = bytes, .n = n < INSN_MAX ? n : INSN_MAX, .bits = bits };
	int other = 0, b;

	for (;; x.at++) {
		b = peek(&x, x.at);
		if (bits == 64 && b >= 0 && b >> 4 == 4) {
			x.rex = b;
			continue;
		}
		if (b == 0x66)
			x.osize = 1;
		else if (b == 0x67)
			other = 1;
		else if (b == 0xf2 || b == 0xf3)
			x.simd = b;
		else if (b == 0xf0)
			x.lock = 1;
		else if (b != 0x26 && b != 0x2e && b != 0x36 && b != 0x3e && b != 0x64 && b != 0x65)
			break;
		x.rex = 0;		/* REX counts right before the opcode only */
	}
	x.address = bits == 64 ? (other ? 32 : 64) : (bits == 16) != other ? 16 : 32;
	if (!opcode(&x) || x.at > x.n)
		return 0;
	return (int)x.at;
}
