/* SPDX-License-Identifier: MIT */
/*
 * io.c - IN, OUT, INS, OUTS (SDM vol. 1 chapter 19): permission, then an exit
 * of one element to the engine. A port that does not exit has no device.
 */
#include "sys.h"

/* SDM vol. 1, 19.5.2: IOPL, then the bit map of the TSS. */
static void check_permission(struct cpu *c, const struct op *o, u32 port, u32 size)
{
	const struct hvi_segment *tr = &c->more->tr;
	u16 base, bits;

	if (!(c->cr0 & 1) || (!(c->rflags & FL_VM) && c->cpl <= (c->rflags & FL_IOPL) >> 12))
		return;
	if (!(tr->access & 8) || tr->limit < 0x67)
		raise_gp0(c, o);
	mem_read_sys(c, o, tr->base + 0x66, &base, 2);
	if (base + port / 8 + 1 > tr->limit)
		raise_gp0(c, o);
	mem_read_sys(c, o, tr->base + base + port / 8, &bits, 2);
	if (bits >> port % 8 & ((1u << size) - 1))
		raise_gp0(c, o);
}

static bool exits(const struct vm *vm, u32 port, u32 size)
{
	for (u32 p = port; p < port + size && p < 65536; p++)
		if (!(vm->io_pass[p / 8] >> p % 8 & 1))
			return true;
	return port + size > 65536;
}

/* CR4.DE: a debug register may watch a port (SDM 17.2.4, type 10). */
static void check_breakpoint(struct cpu *c, u32 port, u32 size)
{
	u64 dr7 = c->more->dr[7];

	if (!(c->cr4 & 8))
		return;
	for (int i = 0; i < 4; i++) {
		u32 code = dr7 >> (18 + 4 * i) & 3, len = code == 2 ? 8 : code + 1;

		if ((dr7 >> (2 * i) & 3) && (dr7 >> (16 + 4 * i) & 3) == 2 &&
		    port < (c->more->dr[i] & 0xffff) + len && (c->more->dr[i] & 0xffff) < port + size) {
			c->more->pending_debug |= 1u << i;
			c->icount_stop = 0;
		}
	}
}

static noreturn void io_exit(struct cpu *c, const struct op *o, u32 port, u32 flags, u64 value, u64 gva)
{
	struct hvi_exit *x = cpu_exit_record(c);

	x->number = port;
	x->size = o->size;
	x->flags = flags;
	x->value = value;
	x->gva = gva;
	x->insn_len = o->len;
	cpu_exit(c, o, HVI_EXIT_IO);
}

static u64 mask_of(u32 size)
{
	return (1ull << (8 * size)) - 1;
}

static u32 port_of(const struct cpu *c, const struct op *o)
{
	return o->aux ? (u16)c->gpr[HVI_RDX] : (u32)o->imm & 0xff;
}

static HANDLER(in_insn)
{
	u32 port = port_of(c, o);

	check_permission(c, o, port, o->size);
	check_breakpoint(c, port, o->size);
	if (exits(c->more->vm, port, o->size))
		io_exit(c, o, port, HVI_IO_IN, 0, 0);
	if (o->size == 4)
		c->gpr[HVI_RAX] = 0xffffffff;
	else
		c->gpr[HVI_RAX] |= mask_of(o->size);
	CONTINUE(c, o);
}

static HANDLER(out_insn)
{
	u32 port = port_of(c, o);

	check_permission(c, o, port, o->size);
	check_breakpoint(c, port, o->size);
	if (exits(c->more->vm, port, o->size))
		io_exit(c, o, port, 0, c->gpr[HVI_RAX] & mask_of(o->size), 0);
	CONTINUE(c, o);
}

static u64 address_mask(const struct op *o)
{
	return o->asize == 8 ? ~0ull : o->asize == 4 ? 0xffffffff : 0xffff;
}

/* After one element without an exit: move the pointer, count, and go round again. */
static void string_done(struct cpu *c, const struct op *o, u8 pointer)
{
	u64 step = c->rflags & FL_DF ? -(u64)o->size : o->size;
	u64 mask = address_mask(o);
	u32 width = o->asize;

	set_gpr(c, pointer, width, (c->gpr[pointer] + step) & mask);
	if (o->flags & (OP_REP | OP_REPNE)) {
		u64 left = (c->gpr[HVI_RCX] - 1) & mask;

		set_gpr(c, HVI_RCX, width, left);
		if (left)
			return cpu_jump(c, o, op_rip(c, o));
	}
	CONTINUE(c, o);
}

static HANDLER(ins_insn)
{
	u32 port = (u16)c->gpr[HVI_RDX];
	u32 flags = HVI_IO_IN | HVI_IO_STRING | (o->flags & (OP_REP | OP_REPNE) ? HVI_IO_REP : 0);
	u64 la, ones = ~0ull;

	check_permission(c, o, port, o->size);
	if ((flags & HVI_IO_REP) && !(c->gpr[HVI_RCX] & address_mask(o)))
		CONTINUE(c, o);
	la = seg_linear(c, o, HVI_ES, c->gpr[HVI_RDI] & address_mask(o), o->size, true);
	mem_probe_write(c, o, la, o->size);
	check_breakpoint(c, port, o->size);
	if (exits(c->more->vm, port, o->size))
		io_exit(c, o, port, flags, 0, la);
	mem_write(c, o, la, &ones, o->size);
	return string_done(c, o, HVI_RDI);
}

static HANDLER(outs_insn)
{
	u32 port = (u16)c->gpr[HVI_RDX];
	u32 flags = HVI_IO_STRING | (o->flags & (OP_REP | OP_REPNE) ? HVI_IO_REP : 0);
	u64 la, v = 0;

	check_permission(c, o, port, o->size);
	if ((flags & HVI_IO_REP) && !(c->gpr[HVI_RCX] & address_mask(o)))
		CONTINUE(c, o);
	la = seg_linear(c, o, o->a, c->gpr[HVI_RSI] & address_mask(o), o->size, false);
	mem_read(c, o, la, &v, o->size);
	check_breakpoint(c, port, o->size);
	if (exits(c->more->vm, port, o->size))
		io_exit(c, o, port, flags, v, la);
	return string_done(c, o, HVI_RSI);
}

static u8 source_segment(const struct insn *in)
{
	for (u32 i = 0; i < in->z.operand_count; i++) {
		if (in->op[i].type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		switch (in->op[i].mem.segment) {
		case ZYDIS_REGISTER_ES: return HVI_ES;
		case ZYDIS_REGISTER_CS: return HVI_CS;
		case ZYDIS_REGISTER_SS: return HVI_SS;
		case ZYDIS_REGISTER_FS: return HVI_FS;
		case ZYDIS_REGISTER_GS: return HVI_GS;
		default: return HVI_DS;
		}
	}
	return HVI_DS;
}

enum xlate xlate_io(const struct insn *in, struct op *o)
{
	u32 which;

	switch (in->z.mnemonic) {
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
		which = in->z.mnemonic == ZYDIS_MNEMONIC_IN;
		o->aux = in->op[which].type == ZYDIS_OPERAND_TYPE_REGISTER;
		o->imm = o->aux ? 0 : (i64)in->op[which].imm.value.u;
		o->size = (u8)(in->op[!which].size / 8);
		o->fn = which ? in_insn : out_insn;
		return XLATE_END;
	case ZYDIS_MNEMONIC_INSB: o->size = 1; o->fn = ins_insn; return XLATE_END;
	case ZYDIS_MNEMONIC_INSW: o->size = 2; o->fn = ins_insn; return XLATE_END;
	case ZYDIS_MNEMONIC_INSD: o->size = 4; o->fn = ins_insn; return XLATE_END;
	case ZYDIS_MNEMONIC_OUTSB: o->size = 1; break;
	case ZYDIS_MNEMONIC_OUTSW: o->size = 2; break;
	case ZYDIS_MNEMONIC_OUTSD: o->size = 4; break;
	default: return XLATE_NO;
	}
	o->a = source_segment(in);
	o->fn = outs_insn;
	return XLATE_END;
}
