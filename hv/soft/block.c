/* SPDX-License-Identifier: MIT */
/*
 * block.c - decoding, the block cache, self-modifying code.
 *
 * A block is a run of instructions of one page, keyed by where its bytes stand
 * (a frame: RAM or spare page) and by the mode it was decoded in. Stores into
 * a frame with blocks take the slow path, which makes the blocks they touch
 * stale at once: every op of a stale block leads to op_stale, so the very next
 * instruction is decoded anew, also within the running block. Writes of the
 * engine through its own mapping are found by comparing a block's bytes at its
 * first execution after each entry (`epoch`).
 */
#include <stdlib.h>
#include <sys/mman.h>
#include "more.h"
#include "native.h"

#define ARENA_BYTES	(96ul << 20)
#define BLOCK_BYTES_MAX	(sizeof(struct block) + (BLOCK_OPS + 1) * sizeof(struct op) + PAGE)

u8 reg_number(ZydisRegister r)
{
	if (r >= ZYDIS_REGISTER_RAX && r <= ZYDIS_REGISTER_R15)
		return (u8)(r - ZYDIS_REGISTER_RAX);
	if (r >= ZYDIS_REGISTER_EAX && r <= ZYDIS_REGISTER_R15D)
		return (u8)(r - ZYDIS_REGISTER_EAX);
	if (r >= ZYDIS_REGISTER_AX && r <= ZYDIS_REGISTER_R15W)
		return (u8)(r - ZYDIS_REGISTER_AX);
	if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BL)
		return (u8)(r - ZYDIS_REGISTER_AL);
	if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH)
		return (u8)(0x14 + r - ZYDIS_REGISTER_AH);
	if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B)
		return (u8)(4 + r - ZYDIS_REGISTER_SPL);
	if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP)
		return REG_BLOCK;
	return REG_ZERO;
}

static u8 seg_number(ZydisRegister r)
{
	switch (r) {
	case ZYDIS_REGISTER_ES: return HVI_ES;
	case ZYDIS_REGISTER_CS: return HVI_CS;
	case ZYDIS_REGISTER_SS: return HVI_SS;
	case ZYDIS_REGISTER_FS: return HVI_FS;
	case ZYDIS_REGISTER_GS: return HVI_GS;
	default: return HVI_DS;
	}
}

/* ---- ops that end or stand in for instructions ------------------------------------- */

static void leave_at(struct cpu *c, const struct op *o)
{
	c->icount += (u64)(o - c->blk->ops);
	c->rip = op_rip(c, o);
	if (c->code_bits != 64)
		c->rip = (u32)c->rip;
}

/* In every op of a stale block: go back to the loop for the bytes that stand there now. */
static void op_stale(struct cpu *c, const struct op *o)
{
	leave_at(c, o);
}

static void op_ud(struct cpu *c, const struct op *o)
{
	cpu_raise(c, o, X_UD, 0);
}

static void op_too_long(struct cpu *c, const struct op *o)
{
	cpu_raise(c, o, X_GP, 0);
}

static void op_unsupported(struct cpu *c, const struct op *o)
{
	cpu_emulation(c, o, (u64)o->imm);
}

/* ---- one instruction ------------------------------------------------------------------ */

/* The first eight bytes of an instruction, for HVI_EXIT_EMULATION. */
static i64 insn_bytes(const u8 *p, u32 len)
{
	u64 v = 0;

	memcpy(&v, p, len < 8 ? len : 8);
	return (i64)v;
}

static void fill_op(const struct insn *in, struct op *o)
{
	const ZydisDecodedInstruction *z = &in->z;
	bool stack = false;
	int mem = -1;

	memset(o, 0, sizeof(*o));
	o->off = in->off;
	o->len = z->length;
	o->size = z->operand_width / 8;
	o->asize = z->address_width / 8;
	o->base = o->index = REG_ZERO;
	o->seg = SEG_FLAT;
	if (z->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		o->flags |= OP_LOCK;
	for (u32 i = 0; i < z->raw.prefix_count; i++) {
		if (z->raw.prefixes[i].value == 0xf3)
			o->flags |= OP_REP;
		if (z->raw.prefixes[i].value == 0xf2)
			o->flags |= OP_REPNE;
	}
	for (u32 i = 0; i < z->operand_count; i++) {
		const ZydisDecodedOperand *d = &in->op[i];

		if (d->type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		if (d->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN && mem < 0)
			mem = (int)i;
		else if (d->mem.segment == ZYDIS_REGISTER_SS)
			stack = true;
	}
	if (mem >= 0) {
		const ZydisDecodedOperand *d = &in->op[mem];

		o->base = reg_number(d->mem.base);
		o->index = d->mem.index == ZYDIS_REGISTER_NONE ? REG_ZERO : reg_number(d->mem.index);
		o->scale = d->mem.scale == 8 ? 3 : d->mem.scale == 4 ? 2 : d->mem.scale == 2 ? 1 : 0;
		o->disp = d->mem.disp.value;
		if (o->base == REG_BLOCK)
			o->disp += in->off + z->length;
		o->msize = d->size / 8;
		if (d->actions & (ZYDIS_OPERAND_ACTION_WRITE | ZYDIS_OPERAND_ACTION_CONDWRITE))
			o->flags |= OP_MEM_WRITE;
		o->seg = seg_number(d->mem.segment);
		if (o->seg == HVI_SS)
			o->flags |= OP_STACK_SEG;
		if (in->code_bits == 64) {
			if (o->seg != HVI_FS && o->seg != HVI_GS)
				o->seg = SEG_FLAT;
			if (o->asize != 8)
				o->flags |= OP_SLOW_EA;
		} else {
			if (in->flat && o->asize == 4 && o->seg != HVI_FS && o->seg != HVI_GS &&
			    (o->seg != HVI_CS || !(o->flags & OP_MEM_WRITE)))
				o->seg = SEG_FLAT;
			o->flags |= OP_SLOW_EA;
		}
	} else if (stack) {
		o->flags |= OP_STACK_SEG;
	}
}

/*
 * What instruction sets beyond the baseline the guest has is in its CPUID
 * table; extensions that no part of this vCPU implements raise #UD as on a
 * CPU without them. Everything else that nobody translates is an emulation
 * exit, never a silent mistake.
 */
static bool never_offered(const ZydisDecodedInstruction *z)
{
	switch (z->meta.isa_ext) {
	case ZYDIS_ISA_EXT_AMD3DNOW: case ZYDIS_ISA_EXT_AMD_INVLPGB: case ZYDIS_ISA_EXT_AMX_BF16:
	case ZYDIS_ISA_EXT_AMX_INT8: case ZYDIS_ISA_EXT_AMX_TILE: case ZYDIS_ISA_EXT_AVX512EVEX:
	case ZYDIS_ISA_EXT_AVX512VEX: case ZYDIS_ISA_EXT_CLZERO: case ZYDIS_ISA_EXT_ENQCMD:
	case ZYDIS_ISA_EXT_FMA4: case ZYDIS_ISA_EXT_HRESET: case ZYDIS_ISA_EXT_KEYLOCKER:
	case ZYDIS_ISA_EXT_KEYLOCKER_WIDE: case ZYDIS_ISA_EXT_KNC: case ZYDIS_ISA_EXT_KNCE:
	case ZYDIS_ISA_EXT_KNCV: case ZYDIS_ISA_EXT_MCOMMIT: case ZYDIS_ISA_EXT_MONITOR:
	case ZYDIS_ISA_EXT_MONITORX: case ZYDIS_ISA_EXT_MOVDIR: case ZYDIS_ISA_EXT_PADLOCK:
	case ZYDIS_ISA_EXT_PCONFIG: case ZYDIS_ISA_EXT_PKU: case ZYDIS_ISA_EXT_PT:
	case ZYDIS_ISA_EXT_RDPRU: case ZYDIS_ISA_EXT_RTM: case ZYDIS_ISA_EXT_SGX:
	case ZYDIS_ISA_EXT_SGX_ENCLV: case ZYDIS_ISA_EXT_SMX: case ZYDIS_ISA_EXT_SNP:
	case ZYDIS_ISA_EXT_SSE4A: case ZYDIS_ISA_EXT_SVM: case ZYDIS_ISA_EXT_TBM:
	case ZYDIS_ISA_EXT_TDX: case ZYDIS_ISA_EXT_TSX_LDTRK: case ZYDIS_ISA_EXT_UINTR:
	case ZYDIS_ISA_EXT_VTX: case ZYDIS_ISA_EXT_WAITPKG: case ZYDIS_ISA_EXT_XOP:
	case ZYDIS_ISA_EXT_XSAVES:
		return true;
	default:
		return false;
	}
}

static enum xlate translate_insn(struct cpu *c, const struct insn *in, const u8 *bytes, struct op *o)
{
	enum xlate r;

	fill_op(in, o);
	r = sys_translate(c, in, o);
	if (r == XLATE_NO)
		r = integer_translate(c, in, o);
	if (r == XLATE_NO)
		r = native_translate(c, in, o);
	if (r != XLATE_NO)
		return r;
	o->fn = never_offered(&in->z) ? op_ud : op_unsupported;
	o->imm = insn_bytes(bytes, o->len);
	return XLATE_END;
}

static ZyanStatus decode(struct vm *vm, const u8 *p, u32 room, struct insn *in)
{
	const ZydisDecoder *d = in->code_bits == 64 ? &vm->dec64 : in->code_bits == 32 ? &vm->dec32 : &vm->dec16;

	ZyanStatus e = ZydisDecoderDecodeFull(d, p, room > 15 ? 15 : room, &in->z, in->op);

	if (!ZYAN_SUCCESS(e) || !(in->z.attributes & ZYDIS_ATTRIB_HAS_SIB) ||
	    in->z.raw.modrm.mod != 0 || in->z.raw.sib.base != 5)
		return e;
	/*
	 * No base but a 32-bit displacement (SDM 2, table 2-3), whatever REX.B
	 * is. Zydis 4.0.0 gives base R13D there with a 32-bit address size.
	 */
	for (u32 i = 0; i < in->z.operand_count; i++)
		if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    in->op[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
			in->op[i].mem.base = ZYDIS_REGISTER_NONE;
			in->op[i].mem.disp.has_displacement = ZYAN_TRUE;
			in->op[i].mem.disp.value = in->z.raw.disp.value;
		}
	return e;
}

/* Instructions that cannot fault or exit: flags written before them need not be exact while they run. */
static bool harmless(const struct insn *in)
{
	const ZydisDecodedInstruction *z = &in->z;

	for (u32 i = 0; i < z->operand_count; i++)
		if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    in->op[i].mem.type == ZYDIS_MEMOP_TYPE_MEM)
			return false;
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_BINARY:
		return z->mnemonic != ZYDIS_MNEMONIC_DIV && z->mnemonic != ZYDIS_MNEMONIC_IDIV;
	case ZYDIS_CATEGORY_LOGICAL: case ZYDIS_CATEGORY_SHIFT: case ZYDIS_CATEGORY_ROTATE:
	case ZYDIS_CATEGORY_CMOV: case ZYDIS_CATEGORY_SETCC: case ZYDIS_CATEGORY_BITBYTE:
	case ZYDIS_CATEGORY_CONVERT:
		return true;
	case ZYDIS_CATEGORY_DATAXFER: case ZYDIS_CATEGORY_MISC:
		return z->mnemonic == ZYDIS_MNEMONIC_MOV || z->mnemonic == ZYDIS_MNEMONIC_MOVZX ||
		       z->mnemonic == ZYDIS_MNEMONIC_MOVSX || z->mnemonic == ZYDIS_MNEMONIC_MOVSXD ||
		       z->mnemonic == ZYDIS_MNEMONIC_LEA || z->mnemonic == ZYDIS_MNEMONIC_XCHG ||
		       z->mnemonic == ZYDIS_MNEMONIC_BSWAP;
	default:
		return false;
	}
}

/* MOV to CR, DR or a segment register is a DATAXFER too: only general registers count. */
static bool general_only(const struct insn *in)
{
	for (u32 i = 0; i < in->z.operand_count_visible; i++) {
		ZydisRegisterClass k;

		if (in->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		k = ZydisRegisterGetClass(in->op[i].reg.value);
		if (k != ZYDIS_REGCLASS_GPR8 && k != ZYDIS_REGCLASS_GPR16 &&
		    k != ZYDIS_REGCLASS_GPR32 && k != ZYDIS_REGCLASS_GPR64)
			return false;
	}
	return true;
}

static bool ends_block(const ZydisDecodedInstruction *z)
{
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_COND_BR: case ZYDIS_CATEGORY_UNCOND_BR: case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET: case ZYDIS_CATEGORY_INTERRUPT: case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
		return true;
	default:
		return false;
	}
}

/* flags_dead of n instructions, from the last to the first (SDM vol. 1 appendix A). */
static void mark_dead_flags(struct insn *in, u32 n)
{
	u32 live = FL_STATUS;

	for (u32 i = n; i-- > 0;) {
		const ZydisAccessedFlags *f = in[i].z.cpu_flags;
		u32 writes = 0, kills = 0, reads = 0;

		if (f) {
			writes = (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_STATUS;
			kills = writes;
			reads = f->tested & FL_STATUS;
		}
		/* A shift or rotate by a count of 0, and REP with RCX 0, leave the flags alone. */
		if (in[i].z.meta.category == ZYDIS_CATEGORY_SHIFT ||
		    in[i].z.meta.category == ZYDIS_CATEGORY_ROTATE ||
		    in[i].z.meta.category == ZYDIS_CATEGORY_STRINGOP)
			kills = 0;
		in[i].flags_dead = writes && !(writes & live);
		if (!harmless(&in[i]) || !general_only(&in[i]))
			live = FL_STATUS;
		else
			live = (live & ~kills) | reads;
	}
}

/* ---- the cache ------------------------------------------------------------------------------ */

static u64 block_key(u32 frame, u32 off, u32 mode)
{
	return (u64)frame << 12 | off | (u64)mode << 48;
}

static u32 key_hash(u64 key)
{
	return (u32)((key * 0x9e3779b97f4a7c15ull) >> 48) & (BLOCK_HASH - 1);
}

u32 block_mode(const struct cpu *c)
{
	return c->more->mode;
}

int block_init(struct vm *vm)
{
	vm->hash = calloc(BLOCK_HASH, sizeof(*vm->hash));
	vm->scratch = malloc(BLOCK_OPS * sizeof(*vm->scratch));
	vm->arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!vm->hash || !vm->scratch || vm->arena == MAP_FAILED)
		return -1;
	vm->arena_next = vm->arena;
	vm->arena_end = vm->arena + ARENA_BYTES;
	ZydisDecoderInit(&vm->dec64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	ZydisDecoderInit(&vm->dec32, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
	ZydisDecoderInit(&vm->dec16, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
	return 0;
}

void block_free(struct vm *vm)
{
	free(vm->hash);
	free(vm->scratch);
	if (vm->arena && vm->arena != MAP_FAILED)
		munmap(vm->arena, ARENA_BYTES);
}

void block_flush(struct vm *vm)
{
	for (u8 *p = vm->arena; p < vm->arena_next;) {
		struct block *b = (struct block *)p;

		vm->frames[b->frame].code = 0;
		vm->frames[b->frame].blocks = NULL;
		if (b->frame2 != NO_FRAME) {
			vm->frames[b->frame2].code = 0;
			vm->frames[b->frame2].blocks = NULL;
		}
		p += b->alloc;
	}
	memset(vm->hash, 0, BLOCK_HASH * sizeof(*vm->hash));
	vm->arena_next = vm->arena;
	for (u32 i = 0; i < vm->ncpus; i++) {
		memset(vm->cpu[i]->jumps, 0xff, JUMPS * sizeof(struct jump));
		vm->cpu[i]->blk = NULL;
		mmu_flush_all(vm->cpu[i]);
		native_reset(vm->cpu[i]);
	}
}

static void list_remove(struct vm *vm, u32 frame, struct block *b)
{
	struct block **p = &vm->frames[frame].blocks;

	while (*p && *p != b)
		p = (*p)->frame == frame ? &(*p)->page_next : &(*p)->page_next2;
	if (*p)
		*p = b->frame == frame ? b->page_next : b->page_next2;
}

static u64 code_bits_of(u32 off, u32 bytes)
{
	u32 first = off / 64, last = (off + bytes - 1) / 64;

	return (~0ull << first) & (~0ull >> (63 - last));
}

/* The part of a block that stands in a frame. */
static void block_extent(const struct block *b, u32 frame, u32 *off, u32 *bytes)
{
	u32 first = b->off + b->bytes > PAGE ? PAGE - b->off : b->bytes;

	if (b->frame == b->frame2) {	/* one page mapped twice in a row */
		*off = 0;
		*bytes = PAGE;
	} else if (b->frame == frame) {
		*off = b->off;
		*bytes = first;
	} else {
		*off = 0;
		*bytes = b->bytes - first;
	}
}

static void block_kill(struct vm *vm, struct block *b)
{
	struct block **p = &vm->hash[key_hash(b->key)];

	while (*p && *p != b)
		p = &(*p)->hash_next;
	if (*p)
		*p = b->hash_next;
	list_remove(vm, b->frame, b);
	if (b->frame2 != NO_FRAME && b->frame2 != b->frame)
		list_remove(vm, b->frame2, b);
	for (u32 i = 0; i <= b->n; i++)
		b->ops[i].fn = op_stale;
	b->stale = true;
}

static void frame_recount(struct vm *vm, u32 frame)
{
	u64 code = 0;

	for (struct block *b = vm->frames[frame].blocks; b; b = b->frame == frame ? b->page_next : b->page_next2) {
		u32 off, bytes;

		block_extent(b, frame, &off, &bytes);
		code |= code_bits_of(off, bytes);
	}
	vm->frames[frame].code = code;
}

void block_written(struct cpu *c, u32 frame, u32 off, u32 size)
{
	struct vm *vm = c->more->vm;
	struct block *b, *next;
	bool any = false;

	if (!(vm->frames[frame].code & code_bits_of(off, size)))
		return;
	for (b = vm->frames[frame].blocks; b; b = next) {
		u32 at, bytes;

		next = b->frame == frame ? b->page_next : b->page_next2;
		block_extent(b, frame, &at, &bytes);
		if (off < at + bytes && at < off + size) {
			block_kill(vm, b);
			any = true;
		}
	}
	if (any)
		frame_recount(vm, frame);
}

static bool block_intact(const struct vm *vm, const struct block *b)
{
	u32 first = b->frame2 == NO_FRAME ? b->bytes : PAGE - b->off;

	return !memcmp(b->host, b->copy, first) &&
	       (b->frame2 == NO_FRAME ||
		!memcmp(frame_host(vm, b->frame2), b->copy + first, b->bytes - first));
}

bool block_verify(struct cpu *c, struct block *b)
{
	struct vm *vm = c->more->vm;

	if (b->stale)
		return false;
	if (!block_intact(vm, b)) {
		block_kill(vm, b);
		frame_recount(vm, b->frame);
		if (b->frame2 != NO_FRAME)
			frame_recount(vm, b->frame2);
		return false;
	}
	b->epoch = c->epoch;
	return true;
}

/* ---- building ------------------------------------------------------------------------------------ */

/* Linear address of c->rip, after the limit check of CS (SDM 6.15, #GP). */
static u64 fetch_address(struct cpu *c)
{
	if (c->code_bits == 64)
		return c->rip;
	if (c->rip > c->seg[HVI_CS].limit)
		cpu_raise(c, NULL, X_GP, 0);
	return (u32)(c->segbase[HVI_CS] + c->rip);
}

/* Bytes from c->rip to the end of the page and of CS. */
static u32 fetch_room(const struct cpu *c, u64 la)
{
	u32 room = PAGE - (u32)(la & 0xfff);

	if (c->code_bits != 64 && c->seg[HVI_CS].limit - (u32)c->rip < room)
		room = c->seg[HVI_CS].limit - (u32)c->rip + 1;
	return room;
}

static void insn_mode(const struct cpu *c, struct insn *in)
{
	in->code_bits = c->code_bits;
	in->flat = c->more->mode & KEY_FLAT;
	in->flags_dead = false;
}

/* An op for bytes that are no instruction. */
static void bad_op(struct op *o, u32 off, ZyanStatus status)
{
	memset(o, 0, sizeof(*o));
	o->off = (u16)off;
	o->fn = status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? op_too_long : op_ud;
}

/* Ops for `bytes` bytes at p, at most max; sets n, bytes, last. */
static void build_ops(struct cpu *c, struct block *b, const u8 *p, u32 room, u32 max)
{
	struct vm *vm = c->more->vm;
	struct insn *in = vm->scratch;
	ZyanStatus bad = 0;
	bool ended = false;
	u32 n = 0, at = 0, done = 0;

	while (n < max && at < room) {
		insn_mode(c, &in[n]);
		in[n].off = (u16)at;
		bad = decode(vm, p + at, room - at, &in[n]);
		if (ZYAN_FAILED(bad))
			break;
		bad = 0;
		at += in[n].z.length;
		n++;
		if (ends_block(&in[n - 1].z))
			break;
	}
	mark_dead_flags(in, n);
	for (u32 i = 0; i < n && !ended; i++) {
		ended = translate_insn(c, &in[i], p + in[i].off, &b->ops[i]) == XLATE_END;
		done = i + 1;
		at = in[i].off + in[i].z.length;
	}
	b->n = (u16)done;
	if (!ended && !n && bad) {	/* the first one is bad; a later one will be met in its own block */
		bad_op(&b->ops[0], 0, bad);
		b->n = 1;
		at = room < 15 ? room : 15;
	}
	b->bytes = (u16)at;
	b->last = &b->ops[b->n - 1];
	memset(&b->ops[b->n], 0, sizeof(struct op));
	b->ops[b->n].off = b->bytes;
	b->ops[b->n].fn = op_block_end;
}

/* The bytes of an instruction that may reach into the next page; their number. */
static u32 gather(struct cpu *c, u64 la, u32 room, u8 buf[16], u32 *frame2)
{
	const u8 *host = mmu_fetch(c, la);
	u32 first = room < 15 ? room : 15;
	struct insn *in = c->more->vm->scratch;
	const u8 *second;
	u32 more;

	*frame2 = NO_FRAME;
	mmu_fetch_bytes(c, host, buf, first);
	insn_mode(c, in);
	in->off = 0;
	if (first == 15 || decode(c->more->vm, buf, first, in) != ZYDIS_STATUS_NO_MORE_DATA)
		return first;
	if (c->code_bits != 64) {
		u64 end = c->rip + first;

		if (end > c->seg[HVI_CS].limit)
			cpu_raise(c, NULL, X_GP, 0);
		la = (u32)(la + first);
		more = c->seg[HVI_CS].limit - (u32)end + 1;
		if (more == 0 || more > 15 - first)
			more = 15 - first;
	} else {
		la += first;
		more = 15 - first;
	}
	second = mmu_fetch(c, la);
	*frame2 = frame_of(c->more->vm, second);
	mmu_fetch_bytes(c, second, buf + first, more);
	return first + more;
}

struct block *block_single(struct cpu *c)
{
	struct block *b = c->more->single;
	u64 la = fetch_address(c);
	u8 buf[16];
	u32 room = gather(c, la, fetch_room(c, la), buf, &b->frame2);

	if (native_full(c))
		block_flush(c->more->vm);
	build_ops(c, b, buf, room, 1);
	b->stale = false;
	return b;
}

static struct block *build(struct cpu *c, u64 la, const u8 *host, u64 key)
{
	struct vm *vm = c->more->vm;
	u32 room = fetch_room(c, la), frame = frame_of(vm, host), frame2 = NO_FRAME;
	struct block *b;
	u8 buf[16];

	if (room < 15)
		room = gather(c, la, room, buf, &frame2);	/* may raise: before anything is allocated */
	b = (struct block *)vm->arena_next;
	b->frame = frame;
	b->frame2 = frame2;
	b->off = (u16)((u64)host & 0xfff);
	b->host = host;
	b->key = key;
	b->stale = false;
	if (frame2 != NO_FRAME) {
		build_ops(c, b, buf, room, 1);
		if (b->off + b->bytes <= PAGE)
			b->frame2 = NO_FRAME;
	} else {
		build_ops(c, b, host, room, BLOCK_OPS);
	}
	b->copy = (u8 *)&b->ops[b->n + 1];
	memcpy(b->copy, b->frame2 != NO_FRAME ? buf : host, b->bytes);
	b->alloc = (u32)((sizeof(*b) + (b->n + 1u) * sizeof(struct op) + b->bytes + 63) & ~63ul);
	vm->arena_next += b->alloc;
	b->epoch = c->epoch;

	b->hash_next = vm->hash[key_hash(key)];
	vm->hash[key_hash(key)] = b;
	for (int i = 0; i < 2; i++) {
		u32 f = i ? b->frame2 : frame, off, bytes;

		if (f == NO_FRAME || (i && f == frame))
			continue;
		if (!vm->frames[f].code)
			mmu_revoke_write(vm, f);
		if (i)
			b->page_next2 = vm->frames[f].blocks;
		else
			b->page_next = vm->frames[f].blocks;
		vm->frames[f].blocks = b;
		block_extent(b, f, &off, &bytes);
		vm->frames[f].code |= code_bits_of(off, bytes);
	}
	c->more->page->counters.blocks++;
	return b;
}

struct block *block_get(struct cpu *c)
{
	struct vm *vm = c->more->vm;
	u64 la = fetch_address(c), key;
	const u8 *host;
	struct block *b;
	struct jump *j;

	if (vm->arena_end - vm->arena_next < (long)(2 * BLOCK_BYTES_MAX) || native_full(c))
		block_flush(vm);
	if (c->code_bits != 64 && c->seg[HVI_CS].limit - (u32)c->rip < PAGE - (u32)(la & 0xfff) - 1)
		return block_single(c);	/* CS may end inside a block */
	host = mmu_fetch(c, la);
	key = block_key(frame_of(vm, host), (u32)((u64)host & 0xfff), c->more->mode);
again:
	for (b = vm->hash[key_hash(key)]; b && b->key != key; b = b->hash_next)
		;
	if (b && b->epoch != c->epoch && !block_verify(c, b))
		goto again;
	if (b && b->frame2 != NO_FRAME) {
		/* The second page may have been mapped elsewhere since. */
		u64 next = la + (PAGE - b->off);

		if (c->code_bits != 64)
			next = (u32)next;
		if (frame_of(vm, mmu_fetch(c, next)) != b->frame2) {
			u32 f2 = b->frame2;

			block_kill(vm, b);
			frame_recount(vm, b->frame);
			frame_recount(vm, f2);
			b = NULL;
		}
	}
	if (!b)
		b = build(c, la, host, key);
	if (b->frame2 == NO_FRAME) {
		j = &c->jumps[jump_hash(c->rip)];
		j->rip = c->rip;
		j->key = c->jump_key;
		j->blk = b;
		set_note_code(c->more->set[c->more->view], la);
	}
	return b;
}
