/* SPDX-License-Identifier: MIT */
/*
 * sys.c - the system instructions' translator, and those that belong to no
 * other file: interrupt flag, software interrupts, HLT, CPUID, time stamps,
 * hypercalls, hints and cache-line operations.
 */
#include "sys.h"

/* SDM vol. 2A, CLI; without VME and PVI. */
static bool may_change_if(const struct cpu *c)
{
	return c->cpl <= (c->rflags & FL_IOPL) >> 12 || !(c->cr0 & 1);
}

static HANDLER(cli)
{
	if (!may_change_if(c))
		raise_gp0(c, o);
	c->rflags &= ~(u64)FL_IF;
	NEXT(c, o);
}

static HANDLER(sti)
{
	if (!may_change_if(c))
		raise_gp0(c, o);
	if (!(c->rflags & FL_IF)) {
		c->rflags |= FL_IF;
		cpu_shadow(c, o, false);
	}
	CONTINUE(c, o);
}

static HANDLER(clac_stac)
{
	/* SDM vol. 2A, CLAC: #UD without CPUID's SMAP, whatever CR4 says. */
	if (!(cpuid_cr4_mask(c) >> 21 & 1) || c->cpl)
		raise_ud(c, o);
	if (o->aux)
		c->rflags |= FL_AC;
	else
		c->rflags &= ~(u64)FL_AC;
	mmu_setup(c);
	NEXT(c, o);
}

static HANDLER(hlt)
{
	u64 unused;

	need_cpl0(c, o);
	if (c->more->vm->hlt_exit && !sys_pass(c, HVI_EXIT_HLT, 0, &unused))
		sys_intercept(c, o, HVI_EXIT_HLT, 0, 0, 0);
	c->more->mp_state = HVI_MP_HALTED;
	c->icount_stop = 0;
	CONTINUE(c, o);
}

/* ---- software interrupts -------------------------------------------------------------- */

static HANDLER(int_n)
{
	/* SDM 20.2.7: virtual-8086 mode without VME needs IOPL 3. */
	if ((c->rflags & FL_VM) && (c->rflags & FL_IOPL) != FL_IOPL)
		raise_gp0(c, o);
	cpu_soft_int(c, o, (u8)o->imm, HVI_EVENT_SOFT_INT);
}

static HANDLER(int3)
{
	cpu_soft_int(c, o, X_BP, HVI_EVENT_SOFT_EXCEPTION);
}

static HANDLER(int1)
{
	cpu_soft_int(c, o, X_DB, HVI_EVENT_PRIV_SOFT);
}

static HANDLER(into)
{
	if (c->flags & FL_OF)
		cpu_soft_int(c, o, X_OF, HVI_EVENT_SOFT_EXCEPTION);
	NEXT(c, o);
}

static HANDLER(ud)
{
	raise_ud(c, o);
}

/* ---- CPUID, time ------------------------------------------------------------------------ */

static HANDLER(cpuid)
{
	u32 leaf = (u32)c->gpr[HVI_RAX], index = (u32)c->gpr[HVI_RCX], r[4];
	u64 unused;

	if (c->more->vm->cpuid_exit && !sys_pass(c, HVI_EXIT_CPUID, 0, &unused)) {
		struct hvi_exit *x = cpu_exit_record(c);

		x->value = leaf;
		x->old = index;
		x->insn_len = o->len;
		cpu_exit(c, o, HVI_EXIT_CPUID);
	}
	cpuid_query(c, leaf, index, r);
	c->gpr[HVI_RAX] = r[0];
	c->gpr[HVI_RBX] = r[1];
	c->gpr[HVI_RCX] = r[2];
	c->gpr[HVI_RDX] = r[3];
	NEXT(c, o);
}

static HANDLER(rdtsc)
{
	u64 t;

	if ((c->cr4 & 4) && c->cpl)
		raise_gp0(c, o);
	t = cpu_tsc(c, o);
	c->gpr[HVI_RAX] = (u32)t;
	c->gpr[HVI_RDX] = t >> 32;
	if (o->aux)
		c->gpr[HVI_RCX] = (u32)c->more->tsc_aux;
	NEXT(c, o);
}

/* No counter exists (CPUID has no leaf 10): every number is invalid. */
static HANDLER(rdpmc)
{
	raise_gp0(c, o);
}

static HANDLER(rdpid)
{
	c->gpr[o->a] = (u32)c->more->tsc_aux;
	NEXT(c, o);
}

/* ---- hypercalls, hints ------------------------------------------------------------------ */

static HANDLER(vmcall)
{
	if (!c->more->vm->vmcall_exit)
		raise_ud(c, o);
	sys_intercept(c, o, HVI_EXIT_VMCALL, 0, 0, 0);
}

static HANDLER(nop)
{
	NEXT(c, o);
}

/* CLFLUSH and its kin fault as a load does; there is no cache to flush. */
static HANDLER(clflush)
{
	mem_probe_read(c, o, ea(c, o), 1);
	NEXT(c, o);
}

static enum xlate op_is(struct op *o, op_fn fn)
{
	o->fn = fn;
	return XLATE_NEXT;
}

static enum xlate op_ends(struct op *o, op_fn fn)
{
	o->fn = fn;
	return XLATE_END;
}

static enum xlate xlate_misc(const struct insn *in, struct op *o)
{
	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_CLI: return op_is(o, cli);
	case ZYDIS_MNEMONIC_STI: return op_ends(o, sti);
	case ZYDIS_MNEMONIC_CLAC: o->aux = 0; return op_is(o, clac_stac);
	case ZYDIS_MNEMONIC_STAC: o->aux = 1; return op_is(o, clac_stac);
	case ZYDIS_MNEMONIC_HLT: return op_ends(o, hlt);
	case ZYDIS_MNEMONIC_INT:
		o->imm = (i64)in->op[0].imm.value.u;
		return op_ends(o, int_n);
	case ZYDIS_MNEMONIC_INT3: return op_ends(o, int3);
	case ZYDIS_MNEMONIC_INT1: return op_ends(o, int1);
	case ZYDIS_MNEMONIC_INTO: return op_is(o, into);
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
	case ZYDIS_MNEMONIC_RSM: return op_ends(o, ud);
	case ZYDIS_MNEMONIC_CPUID: return op_is(o, cpuid);
	case ZYDIS_MNEMONIC_RDTSC: o->aux = 0; return op_is(o, rdtsc);
	case ZYDIS_MNEMONIC_RDTSCP: o->aux = 1; return op_is(o, rdtsc);
	case ZYDIS_MNEMONIC_RDPMC: return op_ends(o, rdpmc);
	case ZYDIS_MNEMONIC_RDPID:
		o->a = reg_number(in->op[0].reg.value);
		return op_is(o, rdpid);
	case ZYDIS_MNEMONIC_VMCALL: return op_ends(o, vmcall);
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB: return op_is(o, clflush);
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
	case ZYDIS_MNEMONIC_SERIALIZE:
	case ZYDIS_MNEMONIC_CLDEMOTE:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_RDSSPD:
	case ZYDIS_MNEMONIC_RDSSPQ: return op_is(o, nop);
	default: break;
	}
	/* Prefetches never fault; MPX without CPUID's MPX is a hint (SDM vol. 1, 17.4). */
	if (in->z.meta.category == ZYDIS_CATEGORY_PREFETCH || in->z.meta.isa_ext == ZYDIS_ISA_EXT_MPX)
		return op_is(o, nop);
	if (in->z.meta.isa_ext == ZYDIS_ISA_EXT_CET)
		return op_ends(o, ud);
	return XLATE_NO;
}

enum xlate sys_translate(struct cpu *c, const struct insn *in, struct op *o)
{
	static enum xlate (*const parts[])(const struct insn *, struct op *) = {
		xlate_misc, xlate_segment, xlate_control, xlate_far, xlate_syscall, xlate_tables, xlate_io,
		xlate_vmfunc,
	};

	(void)c;
	for (u32 i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		enum xlate r = parts[i](in, o);

		if (r != XLATE_NO)
			return r;
	}
	return XLATE_NO;
}
