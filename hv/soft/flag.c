/* SPDX-License-Identifier: MIT */
/* flag.c - LAHF, SAHF, CLC, STC, CMC, CLD, STD. */
#include "integer.h"

#define AH		1	/* its byte offset in gpr[] */
#define FL_LAHF		(FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)

HANDLER(lahf)
{
	SET8(c, AH, (c->flags & FL_LAHF) | 2);
	NEXT(c, o);
}

HANDLER(sahf)
{
	c->flags = (c->flags & FL_OF) | (GET8(c, AH) & FL_LAHF);
	NEXT(c, o);
}

HANDLER(clc)
{
	c->flags &= ~(u64)FL_CF;
	NEXT(c, o);
}

HANDLER(stc)
{
	c->flags |= FL_CF;
	NEXT(c, o);
}

HANDLER(cmc)
{
	c->flags ^= FL_CF;
	NEXT(c, o);
}

HANDLER(cld)
{
	c->rflags &= ~(u64)FL_DF;
	NEXT(c, o);
}

HANDLER(std)
{
	c->rflags |= FL_DF;
	NEXT(c, o);
}

enum xlate xlate_flag(struct cpu *c, const struct insn *in, struct op *o)
{
	(void)c;
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_LAHF: o->fn = lahf; break;
	case ZYDIS_MNEMONIC_SAHF: o->fn = sahf; break;
	case ZYDIS_MNEMONIC_CLC: o->fn = clc; break;
	case ZYDIS_MNEMONIC_STC: o->fn = stc; break;
	case ZYDIS_MNEMONIC_CMC: o->fn = cmc; break;
	case ZYDIS_MNEMONIC_CLD: o->fn = cld; break;
	default: o->fn = std; break;
	}
	return XLATE_NEXT;
}
