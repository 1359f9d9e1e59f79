/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * dtr.c - LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR (SDM 27.2.5, tables
 * 27-10 and 27-11). When the engine has answered, or did not ask, the CPU runs
 * the instruction itself with descriptor-table exits off for that one.
 */
#include "hvi_vmx.h"

/* Linear address of the memory operand, from the VM-exit instruction information. */
static u64 operand(struct vcpu *v, u32 info)
{
	u32 scale = info & 3, asize = info >> 7 & 7, seg = info >> 15 & 7;
	u32 index = info >> 18 & 15, base = info >> 23 & 15;
	u64 la = vmcs_read(F_QUALIFICATION);		/* displacement */

	v->gpr[HVI_RSP] = vmcs_read(F_GUEST_RSP);
	if (!(info & (1u << 27)))
		la += v->gpr[base];
	if (!(info & (1u << 22)))
		la += v->gpr[index] << scale;
	if (asize == 0)
		la = (u16)la;
	else if (asize == 1)
		la = (u32)la;
	if (guest_code_bits() == 64)
		return seg >= HVI_FS ? la + vmcs_read(F_GUEST_ES_BASE + 2 * seg) : la;
	return (u32)(la + vmcs_read(F_GUEST_ES_BASE + 2 * seg));
}

static int ask(struct vcpu *v, u32 bit, u64 gva, u64 value)
{
	struct hvi_exit *x;

	if (!(v->vm->dtr_exit & bit)) {
		v->pass_dtr = true;
		return 0;
	}
	x = exit_record(v, HVI_EXIT_DTR);
	x->number = bit;
	x->gva = gva;
	x->value = value;
	x->insn_len = v->rip_len;
	return HVI_EXIT_DTR;
}

int exit_gdt_idt(struct vcpu *v)
{
	static const u32 bits[4] = { HVI_DTR_SGDT, HVI_DTR_SIDT, HVI_DTR_LGDT, HVI_DTR_LIDT };
	u32 info = vmcs_read32(F_EXIT_INSN_INFO);

	return ask(v, bits[info >> 28 & 3], operand(v, info), 0);
}

int exit_ldt_tr(struct vcpu *v)
{
	static const u32 bits[4] = { HVI_DTR_SLDT, HVI_DTR_STR, HVI_DTR_LLDT, HVI_DTR_LTR };
	u32 info = vmcs_read32(F_EXIT_INSN_INFO), which = info >> 28 & 3;
	bool reg = info & (1u << 10);
	u64 gva = reg ? ~0ull : operand(v, info);
	u16 selector = vmcs_read(F_GUEST_ES_SEL + (which & 1 ? 14 : 12));

	if (which >= 2) {		/* a selector that cannot be read makes the instruction fault by itself */
		v->gpr[HVI_RSP] = vmcs_read(F_GUEST_RSP);
		if (reg)
			selector = v->gpr[info >> 3 & 15];
		else {
			int r = guest_read(v, gva, &selector, 2);

			if (r > 0)
				return r;
			if (r < 0) {
				v->pass_dtr = true;
				return 0;
			}
		}
	}
	return ask(v, bits[which], gva, selector);
}
