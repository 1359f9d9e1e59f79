/* SPDX-License-Identifier: MIT */
/* sys.h - what the files of the system instructions share. */
#ifndef HVI_SOFT_SYS_H
#define HVI_SOFT_SYS_H

#include "mmu.h"
#include "seg.h"

#define HANDLER(name)	void name(struct cpu *c, const struct op *o)
/* End of an instruction that may have changed more than registers. */
#define CONTINUE(c, o)	return cpu_continue(c, o)

static inline void need_cpl0(struct cpu *c, const struct op *o)
{
	if (c->cpl)
		raise_gp0(c, o);
}

/* SDM 2.5: with CR4.UMIP, SGDT SIDT SLDT SMSW STR belong to CPL 0. */
static inline void need_umip(struct cpu *c, const struct op *o)
{
	if (c->cpl && (c->cr4 & (1u << 11)))
		raise_gp0(c, o);
}

/* Protected mode, not virtual-8086: others raise #UD. */
static inline void need_protected(struct cpu *c, const struct op *o)
{
	if (!(c->cr0 & 1) || (c->rflags & FL_VM))
		raise_ud(c, o);
}

/* Write a general register as an instruction of that operand size does. */
static inline void set_gpr(struct cpu *c, u8 r, u32 size, u64 v)
{
	if (size == 2)
		c->gpr[r] = (c->gpr[r] & ~0xffffull) | (u16)v;
	else
		c->gpr[r] = size == 4 ? (u32)v : v;
}

/* The engine has seen this very event and said RESUME: true once; *value is what to write. */
bool sys_pass(struct cpu *c, u32 reason, u32 number, u64 *value);
noreturn void sys_intercept(struct cpu *c, const struct op *o, u32 reason, u32 number, u64 value, u64 old);

/* segload.c */
void seg_load(struct cpu *c, const struct op *o, u8 seg, u16 sel);
enum xlate xlate_segment(const struct insn *in, struct op *o);
/* far.c */
enum xlate xlate_far(const struct insn *in, struct op *o);
/* syscall.c */
enum xlate xlate_syscall(const struct insn *in, struct op *o);
/* control.c */
enum xlate xlate_control(const struct insn *in, struct op *o);
/* tables.c */
enum xlate xlate_tables(const struct insn *in, struct op *o);
/* ve.c */
enum xlate xlate_vmfunc(const struct insn *in, struct op *o);
/* io.c */
enum xlate xlate_io(const struct insn *in, struct op *o);

#endif
