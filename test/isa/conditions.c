/* SPDX-License-Identifier: MIT */
/*
 * conditions.c - when x87, MMX, SSE and AVX instructions are #UD, #NM or #MF:
 * SDM 3, tables 2-2 and 23-1 and following; SDM 2, 2.4 to 2.6. The host's
 * kernel owns these control registers, so the expected vector stands here.
 */
#include <stdio.h>
#include <string.h>
#include "isa.h"

#define MP	0x2u
#define EM	0x4u
#define TS	0x8u
#define OSFXSR		0x200u
#define OSXMMEXCPT	0x400u
#define OSXSAVE		0x40000u
#define DONE	13u	/* the HLT behind it */

static const struct {
	const char *name, *code;
	u32 len;
	u32 cr0, no_cr4;
	u32 xcr0;
	u16 fsw;		/* with FCW 0: what is set here is pending */
	u32 mxcsr;		/* 0: 1F80H */
	u32 vector;
} table[] = {
#define X87	"fld1", "\xd9\xe8", 2
#define FWAIT	"fwait", "\x9b", 1
#define FNSTSW	"fnstsw ax", "\xdf\xe0", 2
#define MMX	"paddb mm0, mm1", "\x0f\xfc\xc1", 3
#define EMMS	"emms", "\x0f\x77", 2
#define SSE	"paddb xmm0, xmm1", "\x66\x0f\xfc\xc1", 4
#define SSEDIV	"divps xmm0, xmm0", "\x0f\x5e\xc0", 3
#define AVX	"vpaddb xmm0, xmm0, xmm1", "\xc5\xf9\xfc\xc1", 4
#define BMI	"andn eax, eax, ecx", "\xc4\xe2\x78\xf2\xc1", 5
#define MOVNTI	"movnti [rsp], eax", "\x0f\xc3\x04\x24", 4
#define FXSAVE	"fxsave [rsp]", "\x0f\xae\x04\x24", 4
#define XSAVE	"xsave [rsp]", "\x0f\xae\x24\x24", 4
#define LDMXCSR	"stmxcsr [rsp]", "\x0f\xae\x1c\x24", 4
#define CRC32	"crc32 eax, ecx", "\xf2\x0f\x38\xf1\xc1", 5
	{ X87, 0, 0, 7, 0, 0, DONE },
	{ X87, TS, 0, 7, 0, 0, 7 },
	{ X87, EM, 0, 7, 0, 0, 7 },
	{ X87, 0, OSFXSR, 7, 0, 0, DONE },
	{ X87, 0, 0, 7, 1, 0, 16 },
	{ X87, TS, 0, 7, 1, 0, 7 },
	{ FWAIT, EM, 0, 7, 0, 0, DONE },
	{ FWAIT, TS | MP, 0, 7, 0, 0, 7 },
	{ FWAIT, 0, 0, 7, 1, 0, 16 },
	{ FNSTSW, 0, 0, 7, 1, 0, DONE },
	{ FNSTSW, TS, 0, 7, 0, 0, 7 },
	{ MMX, 0, OSFXSR, 7, 0, 0, DONE },
	{ MMX, EM, 0, 7, 0, 0, 6 },
	{ MMX, TS, 0, 7, 0, 0, 7 },
	{ MMX, EM | TS, 0, 7, 0, 0, 6 },
	{ MMX, 0, 0, 7, 1, 0, 16 },
	{ EMMS, EM, 0, 7, 0, 0, 6 },
	{ EMMS, 0, 0, 7, 1, 0, 16 },
	{ SSE, 0, 0, 7, 1, 0, DONE },
	{ SSE, EM, 0, 7, 0, 0, 6 },
	{ SSE, TS, 0, 7, 0, 0, 7 },
	{ SSE, TS, OSFXSR, 7, 0, 0, 6 },
	{ SSE, 0, OSXSAVE, 1, 0, 0, DONE },
	{ SSEDIV, 0, 0, 7, 0, 0x1f00, 19 },
	{ SSEDIV, 0, OSXMMEXCPT, 7, 0, 0x1f00, 6 },
	{ SSEDIV, TS, 0, 7, 0, 0x1f00, 7 },
	{ AVX, 0, 0, 7, 0, 0, DONE },
	{ AVX, 0, OSXSAVE, 7, 0, 0, 6 },
	{ AVX, 0, 0, 3, 0, 0, 6 },
	{ AVX, 0, 0, 1, 0, 0, 6 },
	{ AVX, TS, 0, 7, 0, 0, 7 },
	{ AVX, EM, 0, 7, 0, 0, DONE },
	{ AVX, 0, OSFXSR, 7, 0, 0, DONE },
	{ BMI, TS | EM, OSXSAVE | OSFXSR, 1, 0, 0, DONE },
	{ MOVNTI, TS | EM, OSFXSR, 7, 0, 0, DONE },
	{ CRC32, TS | EM, OSFXSR, 7, 0, 0, DONE },
	{ FXSAVE, 0, OSFXSR, 7, 1, 0, DONE },
	{ FXSAVE, TS, 0, 7, 0, 0, 7 },
	{ FXSAVE, EM, 0, 7, 0, 0, 7 },
	{ XSAVE, 0, OSXSAVE, 7, 0, 0, 6 },
	{ XSAVE, TS, 0, 7, 0, 0, 7 },
	{ XSAVE, EM, 0, 7, 0, 0, DONE },
	{ LDMXCSR, TS, 0, 7, 0, 0, 7 },
	{ LDMXCSR, 0, OSFXSR, 7, 0, 0, 6 },
	{ LDMXCSR, EM, 0, 7, 0, 0, 6 },
};

u32 check_conditions(u32 *rows)
{
	u32 bad = 0;

	*rows = sizeof(table) / sizeof(table[0]);
	for (u32 i = 0; i < *rows; i++) {
		static struct test t;
		struct outcome out;
		u64 bv = 7;
		u32 mxcsr = table[i].mxcsr ? table[i].mxcsr : 0x1f80;
		bool done;

		memset(&t, 0, sizeof(t));
		t.bits = 64;
		t.at = CODE + 0x100;
		t.len = table[i].len;
		memcpy(t.code, table[i].code, t.len);
		t.in.rip = t.at;
		t.in.rflags = 0x202;
		t.in.gpr[RSP] = STACK + 0x1000;
		memcpy(t.in.xs + 2, &table[i].fsw, 2);
		memcpy(t.in.xs + XS_MXCSR, &mxcsr, 4);
		memcpy(t.in.xs + XS_BV, &bv, 8);
		guest_control(table[i].cr0, table[i].no_cr4, table[i].xcr0);
		guest_run(&t, &out);
		done = table[i].vector == DONE;
		if (!out.failure && out.vector == table[i].vector && out.s.rip == t.at + (done ? t.len : 0))
			continue;
		printf("CONDITION %s with CR0 bits %x, CR4 without %x, XCR0 %x, FSW %x, MXCSR %x: vector %u expected, %u at +%u %s\n",
		       table[i].name, table[i].cr0, table[i].no_cr4, table[i].xcr0, table[i].fsw, mxcsr,
		       table[i].vector, out.vector, (u32)(out.s.rip - t.at), out.failure ? out.failure : "");
		bad++;
	}
	guest_control(0, 0, 7);
	return bad;
}
