/* SPDX-License-Identifier: MIT */
/*
 * mmu.c - guest paging, EPT views and the soft TLB's slow path (tlb.c keeps the TLB).
 *
 * Order of checks of one access (SDM 28.3.3.2): canonical form, guest page
 * tables (each entry read through EPT), guest permissions, then the EPT rights
 * of the page itself. Both pages of a crossing access pass before any byte
 * moves. Accessed and dirty bits are set as by hardware; such a write to a
 * table page without W in the view is completed and counted.
 */
#include "more.h"
#include "mmu.h"

/* Page-fault error code, SDM 4.7. */
#define PF_P	1u
#define PF_W	2u
#define PF_U	4u
#define PF_RSVD	8u
#define PF_I	16u

#define PTE_P	(1ull << 0)
#define PTE_W	(1ull << 1)
#define PTE_U	(1ull << 2)
#define PTE_A	(1ull << 5)
#define PTE_D	(1ull << 6)
#define PTE_PS	(1ull << 7)
#define PTE_NX	(1ull << 63)

#define CR0_WP	(1u << 16)
#define CR0_PG	(1u << 31)
#define CR4_PSE	(1u << 4)
#define CR4_PAE	(1u << 5)
#define CR4_LA57 (1u << 12)
#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)
#define EFER_NXE (1u << 11)

/* Reserved physical-address bits of a 64-bit entry. */
#define PTE_RSVD_PHYS	(((1ull << 52) - 1) & ~PHYS_MASK)

u32 mmu_ram_page(const struct vm *vm, u64 gfn)
{
	for (u32 i = 0; i < vm->nslots; i++) {
		const struct slot *s = &vm->slot[i];

		if (gfn - s->gfn < s->pages)
			return (u32)(s->first + (gfn - s->gfn));
	}
	return NO_FRAME;
}

u32 mmu_frame(const struct vm *vm, u32 view, u64 gfn, u32 *rights)
{
	const struct view *v = &vm->view[view];
	u32 page = mmu_ram_page(vm, gfn);

	if (page == NO_FRAME) {
		*rights = 0;
		return NO_FRAME;
	}
	*rights = v->rights[page];
	if (v->remap && v->remap[page] != NO_FRAME)
		return v->remap[page];
	return SPARE_FRAMES + page;
}

/* ---- guest paging -------------------------------------------------------------------- */

static noreturn void page_fault(struct cpu *c, const struct op *o, u64 la, u32 err)
{
	c->more->fault_la = la;
	cpu_raise(c, o, X_PF, err);
}

static u32 find_override(const struct cpu *c, u64 gfn)
{
	for (u32 i = 0; i < c->more->nov; i++)
		if (c->more->ov[i].gfn == gfn)
			return i;
	return ~0u;
}

static noreturn void ept_violation(struct cpu *c, const struct op *o, u64 gpa, u64 la,
				   u32 access, u32 rights, u32 size)
{
	struct hvi_exit *x;

	ve_raise(c, o, gpa, la, access, rights);
	x = cpu_exit_record(c);
	x->gpa = gpa;
	x->gva = la;
	x->access = access | HVI_ACCESS_GVA;
	if (c->more->delivering)
		x->access |= HVI_ACCESS_EVENT;
	x->rights = rights;
	x->size = size;
	x->insn_len = o ? o->len : 0;
	cpu_exit(c, o, HVI_EXIT_EPT);
}

/* Host address of the page-table entry at gpa; exits when it may not be read. */
static void *entry_host(struct cpu *c, const struct op *o, u64 gpa, u64 la, u32 size, u32 user, u32 *rights)
{
	struct vm *vm = c->more->vm;
	u32 frame = mmu_frame(vm, c->more->view, gpa >> 12, rights);
	u32 access = HVI_ACCESS_READ | HVI_ACCESS_WALK | user;

	if (frame == NO_FRAME)
		access |= HVI_ACCESS_NO_RAM;
	if (!(*rights & HVI_R) && find_override(c, gpa >> 12) == ~0u)
		ept_violation(c, o, gpa, la, access, *rights, size);
	return (frame == NO_FRAME ? c->more->nothing : frame_host(vm, frame)) + (gpa & 0xfff);
}

/* The bytes that EMULATE replies supply for gpa.., whichever violation they answered. */
static void emulate(const struct cpu *c, u64 gpa, u8 *to, u32 len)
{
	for (u32 i = 0; i < c->more->nov; i++) {
		const struct override *ov = &c->more->ov[i];

		for (u32 r = 0; r < ov->nranges; r++) {
			const struct supplied *s = &ov->range[r];
			u64 first = s->gpa > gpa ? s->gpa : gpa;
			u64 end = s->gpa + s->len < gpa + len ? s->gpa + s->len : gpa + len;

			if (first < end)
				memcpy(to + (first - gpa), s->from + (first - s->gpa), end - first);
		}
	}
}

static bool is_supplied(const struct cpu *c, u64 gpa)
{
	for (u32 i = 0; i < c->more->nov; i++)
		for (u32 r = 0; r < c->more->ov[i].nranges; r++)
			if (gpa - c->more->ov[i].range[r].gpa < c->more->ov[i].range[r].len)
				return true;
	return false;
}

/* An entry as the walk sees it: with the bytes that an EMULATE reply supplies. */
static u64 entry_read(struct cpu *c, const void *host, u64 gpa, u32 size)
{
	u64 v = 0;

	memcpy(&v, host, size);
	if (c->more->nov)
		emulate(c, gpa, (u8 *)&v, size);
	return v;
}

struct level {
	void *host;
	u64 gpa, entry;
	u32 rights;
};

/* The bits alone: what an EMULATE reply supplied for the rest of the entry is not for memory. */
static void entry_or(struct cpu *c, const struct op *o, u64 la, const struct level *l, u64 bits, u32 size)
{
	struct vm *vm = c->more->vm;
	void *host = l->host;
	u64 gpa = l->gpa, v = 0;
	u32 frame = frame_of(vm, host);

	if (!(bits & ~l->entry) || (u64)((u8 *)host - c->more->nothing) < PAGE)
		return;
	if (!(l->rights & HVI_W)) {
		if (find_override(c, gpa >> 12) == ~0u)
			ve_raise(c, o, gpa, la, HVI_R | HVI_W | HVI_ACCESS_WALK, l->rights);
		c->more->page->counters.ad_writes++;
	}
	memcpy(&v, host, size);
	v |= bits;
	memcpy(host, &v, size);
	if (vm->frames[frame].code)
		block_written(c, frame, (u32)(gpa & 0xfff), size);
}

struct walk {
	struct level level[5];
	int n;
	u64 gpa;
	u64 span;		/* page size - 1 */
	bool w, u, nx;		/* combined over the levels */
};

/* 4-level, 5-level and PAE paging (SDM 4.4, 4.5). */
static void walk_64(struct cpu *c, const struct op *o, u64 la, u32 err, u32 user, struct walk *w)
{
	bool pae = !c->long_mode;
	int level = pae ? 2 : c->cr4 & CR4_LA57 ? 5 : 4;
	bool nxe = c->efer & EFER_NXE;
	u64 table = c->cr3 & PHYS_MASK & ~0xfffull;

	w->w = w->u = true;
	w->nx = false;
	if (pae) {
		u64 e = c->more->pdpte[la >> 30 & 3];

		if (!(e & PTE_P))
			page_fault(c, o, la, err);
		table = e & PHYS_MASK & ~0xfffull;
	}
	for (;; level--) {
		struct level *l = &w->level[w->n];
		u64 rsvd = PTE_RSVD_PHYS | (nxe ? 0 : PTE_NX);
		bool leaf;

		l->gpa = table + (la >> (12 + 9 * (level - 1)) & 511) * 8;
		l->host = entry_host(c, o, l->gpa, la, 8, user, &l->rights);
		l->entry = entry_read(c, l->host, l->gpa, 8);
		w->n++;
		if (!(l->entry & PTE_P))
			page_fault(c, o, la, err);
		leaf = level == 1 || ((l->entry & PTE_PS) && level <= 3);
		if (pae)
			rsvd |= 0x7ff0000000000000ull;	/* SDM table 4-9: bits 62:M are reserved */
		if (level >= 4)
			rsvd |= PTE_PS;
		if (leaf && level > 1)
			rsvd |= ((1ull << (12 + 9 * (level - 1))) - 1) & ~0x1fffull;
		if (l->entry & rsvd)
			page_fault(c, o, la, err | PF_P | PF_RSVD);
		w->w &= !!(l->entry & PTE_W);
		w->u &= !!(l->entry & PTE_U);
		w->nx |= !!(l->entry & PTE_NX);
		if (leaf) {
			u64 span = (1ull << (12 + 9 * (level - 1))) - 1;

			w->gpa = (l->entry & PHYS_MASK & ~0xfffull & ~span) | (la & span);
			w->span = span;
			return;
		}
		table = l->entry & PHYS_MASK & ~0xfffull;
	}
}

/* 32-bit paging with PSE and PSE-36 (SDM 4.3). */
static void walk_32(struct cpu *c, const struct op *o, u64 la, u32 err, u32 user, struct walk *w)
{
	struct level *l = &w->level[0];

	w->n = 1;
	w->nx = false;
	l->gpa = (c->cr3 & 0xfffff000) + (la >> 22 & 1023) * 4;
	l->host = entry_host(c, o, l->gpa, la, 4, user, &l->rights);
	l->entry = entry_read(c, l->host, l->gpa, 4);
	if (!(l->entry & PTE_P))
		page_fault(c, o, la, err);
	w->w = l->entry & PTE_W;
	w->u = l->entry & PTE_U;
	if ((l->entry & PTE_PS) && (c->cr4 & CR4_PSE)) {
		if (l->entry & (1u << 21))
			page_fault(c, o, la, err | PF_P | PF_RSVD);
		w->gpa = (l->entry & 0xffc00000) | (l->entry >> 13 & 0xff) << 32 | (la & 0x3fffff);
		w->span = 0x3fffff;
		return;
	}
	l++;
	w->n = 2;
	l->gpa = (l[-1].entry & 0xfffff000) + (la >> 12 & 1023) * 4;
	l->host = entry_host(c, o, l->gpa, la, 4, user, &l->rights);
	l->entry = entry_read(c, l->host, l->gpa, 4);
	if (!(l->entry & PTE_P))
		page_fault(c, o, la, err);
	w->w &= !!(l->entry & PTE_W);
	w->u &= !!(l->entry & PTE_U);
	w->gpa = (l->entry & 0xfffff000) | (la & 0xfff);
}

/*
 * Guest physical address of la for an access of `kind`; *perm gets the kinds
 * that need no further walk (W only once the dirty bit is set).
 */
static u64 guest_walk(struct cpu *c, const struct op *o, u64 la, u32 kind, enum tlb_mode mode, u32 *perm)
{
	struct tlb_context *context = c->more->set[c->more->view]->now;
	struct walk w = { .span = 0xfff };
	bool user = mode == TLB_USER;
	bool smep = c->cr4 & CR4_SMEP, smap = c->cr4 & CR4_SMAP;
	bool nxe = (c->efer & EFER_NXE) && (c->cr4 & CR4_PAE);
	u32 err = (user ? PF_U : 0) | (kind & ACC_W ? PF_W : 0) |
		  ((kind & ACC_X) && (nxe || smep) ? PF_I : 0);
	u32 size, ok = 0;
	struct level *leaf;

	if (!(c->cr0 & CR0_PG)) {
		*perm = HVI_RWX;
		return la;
	}
	if (c->cr4 & CR4_PAE) {
		walk_64(c, o, la, err, user ? HVI_ACCESS_USER : 0, &w);
		size = 8;
	} else {
		walk_32(c, o, la, err, user ? HVI_ACCESS_USER : 0, &w);
		size = 4;
	}

	/* SDM 4.6.1 */
	if (user) {
		if (w.u)
			ok = ACC_R | (w.w ? ACC_W : 0) | (w.nx ? 0 : ACC_X);
	} else {
		bool data = !(w.u && smap && mode != TLB_SUPER_AC);

		if (data)
			ok = ACC_R | (w.w || !(c->cr0 & CR0_WP) ? ACC_W : 0);
		if (!w.nx && !(w.u && smep))
			ok |= ACC_X;
	}
	if ((kind & HVI_RWX) & ~ok)
		page_fault(c, o, la, err | PF_P);

	leaf = &w.level[w.n - 1];
	for (int i = 0; i < w.n; i++) {
		struct level *l = &w.level[i];
		u64 bits = PTE_A | (l == leaf && (kind & ACC_W) ? PTE_D : 0);

		entry_or(c, o, la, l, bits, size);
		l->entry |= bits;
	}
	if (w.span > 0x3fffff) {
		if (la >> 30 < context->huge_first)
			context->huge_first = la >> 30;
		if (la >> 30 > context->huge_last)
			context->huge_last = la >> 30;
	} else if (w.span > 0xfff) {
		context->large[la >> 28 & 15] |= 1ull << (la >> 22 & 63);
	}
	*perm = ok & (leaf->entry & PTE_D ? HVI_RWX : HVI_R | HVI_X);
	return w.gpa;
}

bool mmu_load_pdptes(struct cpu *c, u64 cr3)
{
	struct vm *vm = c->more->vm;
	u64 gpa = cr3 & 0xffffffe0, e[4];
	u32 rights, frame = mmu_frame(vm, c->more->view, gpa >> 12, &rights);

	if (frame == NO_FRAME)
		memset(e, 0, sizeof(e));	/* reads of nothing: not present */
	else
		memcpy(e, frame_host(vm, frame) + (gpa & 0xfff), sizeof(e));
	for (int i = 0; i < 4; i++)
		if ((e[i] & PTE_P) && (e[i] & (0xfff00000000001e6ull | PTE_RSVD_PHYS)))
			return false;
	memcpy(c->more->pdpte, e, sizeof(e));
	return true;
}

/* ---- one page of an access -------------------------------------------------------------- */

struct piece {
	u8 *host;
	u64 gpa;
	u32 len;
	u32 frame;
	const struct override *ov;
};

static void fill(struct cpu *c, u64 la, u8 *host, u32 perm, enum tlb_mode mode)
{
	struct cpu_more *m = c->more;
	struct tlb_set *s = m->set[m->view];
	struct tlb_entry *e = &s->e[mode][(la >> 12) & (TLB_SIZE - 1)];
	u64 tag = (la & ~0xfffull) | s->now->gen;

	e->tag_r = perm & HVI_R ? tag : ~0ull;
	e->tag_w = perm & HVI_W ? tag : ~0ull;
	e->tag_x = perm & HVI_X ? tag : ~0ull;
	e->addend = (i64)((u64)(host - (la & 0xfff)) - (la & ~0xfffull));
}

/* Translate len bytes at la, all in one page. Raises or exits; changes nothing but A/D bits. */
static void translate(struct cpu *c, const struct op *o, u64 la, u32 len, u32 kind,
		      enum tlb_mode mode, struct piece *p)
{
	struct cpu_more *m = c->more;
	struct vm *vm = m->vm;
	struct tlb_set *s = m->set[m->view];
	const struct tlb_entry *e = &s->e[mode][(la >> 12) & (TLB_SIZE - 1)];
	u64 tag = (la & ~0xfffull) | s->now->gen;
	u32 perm, rights, k = kind & HVI_RWX;

	p->len = len;
	p->ov = NULL;
	if (!m->nov && (!(k & ACC_R) || e->tag_r == tag) && (!(k & ACC_W) || e->tag_w == tag) &&
	    (!(k & ACC_X) || e->tag_x == tag)) {
		p->host = (u8 *)(la + (u64)e->addend);
		p->frame = frame_of(vm, p->host);
		p->gpa = 0;
		return;
	}
	m->page->counters.tlb_misses++;
	p->gpa = guest_walk(c, o, la, kind, mode, &perm);
	p->frame = mmu_frame(vm, m->view, p->gpa >> 12, &rights);
	if (p->frame == NO_FRAME) {
		u32 i = find_override(c, p->gpa >> 12);

		if (i == ~0u)
			ept_violation(c, o, p->gpa, la, k | HVI_ACCESS_NO_RAM |
				      (mode == TLB_USER ? HVI_ACCESS_USER : 0), 0, kind & ACC_X ? 0 : len);
		p->host = m->nothing + (p->gpa & 0xfff);
		p->ov = &m->ov[i];
		return;
	}
	p->host = frame_host(vm, p->frame) + (p->gpa & 0xfff);
	if (m->nov) {
		u32 i = find_override(c, p->gpa >> 12);

		if (i != ~0u) {
			p->ov = &m->ov[i];
			/* EMULATE and SCRATCH let the instruction through as RESUME does; they differ in the bytes. */
			return;
		}
	}
	if ((k & ~rights) && !((k & ~rights) == HVI_W && (rights & HVI_R) && spp_allows(c, p->gpa, len)))
		ept_violation(c, o, p->gpa, la, k | (mode == TLB_USER ? HVI_ACCESS_USER : 0),
			      rights, kind & ACC_X ? 0 : len);
	perm &= rights;
	if (vm->frames[p->frame].code)
		perm &= ~HVI_W;
	if (!m->nov)
		fill(c, la, p->host, perm, mode);
}

/* ---- any access ----------------------------------------------------------------------------- */

/* Split at the page boundary and translate both parts; the number of parts. */
static int pieces(struct cpu *c, const struct op *o, u64 la, u32 size, u32 kind, struct piece p[2])
{
	enum tlb_mode mode = kind & ACC_IMPLICIT ? TLB_SUPER : mmu_mode(c);
	u32 first = PAGE - (u32)(la & 0xfff), align = size == 6 ? 4 : size;
	u64 second = la + first;

	/* Descriptor tables, TSS and an event's frame have 64-bit addresses in compatibility mode too. */
	if (c->long_mode && (c->code_bits == 64 || (kind & ACC_IMPLICIT) || c->more->delivering)) {
		if (!is_canonical(c, la) || !is_canonical(c, la + size - 1))
			cpu_raise(c, o, o && (o->flags & OP_STACK_SEG) && !(kind & ACC_IMPLICIT) ? X_SS : X_GP, 0);
	} else {
		second = (u32)second;
	}
	if (mmu_alignment_checked(c) && !(kind & (ACC_IMPLICIT | ACC_X)) && size > 1 && size <= 8 &&
	    (la & (align - 1)))
		cpu_raise(c, o, X_AC, 0);
	if (size <= first) {
		translate(c, o, la, size, kind, mode, &p[0]);
		return 1;
	}
	translate(c, o, la, first, kind, mode, &p[0]);
	translate(c, o, second, size - first, kind, mode, &p[1]);
	return 2;
}

/* SDM 17.2.4: a data breakpoint is a trap, reported after the instruction. */
static void check_breakpoints(struct cpu *c, u64 la, u32 size, u32 kind)
{
	struct cpu_more *m = c->more;
	u64 dr7 = m->dr[7];

	for (int i = 0; i < 4; i++) {
		u32 type = dr7 >> (16 + 4 * i) & 3, code = dr7 >> (18 + 4 * i) & 3;
		u32 len = code == 2 ? 8 : code + 1;
		u64 at = m->dr[i] & ~(u64)(len - 1);

		if (!(type & 1) || (type == 1 && !(kind & ACC_W)))
			continue;
		if (la < at + len && at < la + size && (dr7 >> (2 * i) & 3)) {
			m->pending_debug |= 1u << i;
			c->icount_stop = 0;
		}
	}
}

static void piece_read(const struct cpu *c, const struct piece *p, u8 *to)
{
	memcpy(to, p->host, p->len);
	if (c->more->nov)
		emulate(c, p->gpa, to, p->len);
}

/* Whether stores to the page of p are thrown away: SCRATCH; EMULATE without WRITE on a page without W. */
static bool piece_scratch(struct cpu *c, const struct piece *p)
{
	u32 rights;

	if (!p->ov)
		return false;
	if (p->frame == NO_FRAME)
		return true;
	if (p->ov->kind == OV_ALLOW || p->ov->write)
		return false;
	if (p->ov->kind == OV_SCRATCH)
		return true;
	mmu_frame(c->more->vm, c->more->view, p->gpa >> 12, &rights);
	return !(rights & HVI_W);
}

static void piece_write(struct cpu *c, const struct piece *p, const u8 *from)
{
	if (piece_scratch(c, p))
		return;
	if (c->more->nov) {
		for (u32 i = 0; i < p->len; i++)
			if (!is_supplied(c, p->gpa + i))
				p->host[i] = from[i];
	} else {
		memcpy(p->host, from, p->len);
	}
	if (c->more->vm->frames[p->frame].code)
		block_written(c, p->frame, (u32)((u64)p->host & 0xfff), p->len);
}

static void access_read(struct cpu *c, const struct op *o, u64 la, void *to, u32 size, u32 kind)
{
	struct piece p[2];
	int n = pieces(c, o, la, size, kind, p);

	piece_read(c, &p[0], to);
	if (n == 2)
		piece_read(c, &p[1], (u8 *)to + p[0].len);
	if (unlikely(c->more->dr[7] & 0xff) && !(kind & ACC_IMPLICIT))
		check_breakpoints(c, la, size, kind);
}

static void access_write(struct cpu *c, const struct op *o, u64 la, const void *from, u32 size, u32 kind)
{
	struct piece p[2];
	int n = pieces(c, o, la, size, kind, p);

	piece_write(c, &p[0], from);
	if (n == 2)
		piece_write(c, &p[1], (const u8 *)from + p[0].len);
	if (unlikely(c->more->dr[7] & 0xff) && !(kind & ACC_IMPLICIT))
		check_breakpoints(c, la, size, kind);
}

u64 mmu_load_slow(struct cpu *c, const struct op *o, u64 la, u32 size)
{
	u64 v = 0;

	access_read(c, o, la, &v, size, ACC_R);
	return v;
}

u64 mmu_load_rmw_slow(struct cpu *c, const struct op *o, u64 la, u32 size)
{
	u64 v = 0;

	access_read(c, o, la, &v, size, ACC_R | ACC_W);
	return v;
}

void mmu_store_slow(struct cpu *c, const struct op *o, u64 la, u64 v, u32 size)
{
	access_write(c, o, la, &v, size, ACC_W);
}

/* size may exceed a page only by going page by page in the caller; XSAVE areas are below that. */
void mem_read(struct cpu *c, const struct op *o, u64 la, void *to, u32 size)
{
	access_read(c, o, la, to, size, ACC_R);
}

void mem_read_rmw(struct cpu *c, const struct op *o, u64 la, void *to, u32 size)
{
	access_read(c, o, la, to, size, ACC_R | ACC_W);
}

void mem_write(struct cpu *c, const struct op *o, u64 la, const void *from, u32 size)
{
	access_write(c, o, la, from, size, ACC_W);
}

void mem_read_sys(struct cpu *c, const struct op *o, u64 la, void *to, u32 size)
{
	access_read(c, o, la, to, size, ACC_R | ACC_IMPLICIT);
}

void mem_write_sys(struct cpu *c, const struct op *o, u64 la, const void *from, u32 size)
{
	access_write(c, o, la, from, size, ACC_W | ACC_IMPLICIT);
}

void mem_write_stack(struct cpu *c, const struct op *o, u64 la, const void *from, u32 size)
{
	access_write(c, o, la, from, size, ACC_W);
}

void mem_probe_write(struct cpu *c, const struct op *o, u64 la, u32 size)
{
	struct piece p[2];

	pieces(c, o, la, size, ACC_W, p);
}

void mem_probe_read(struct cpu *c, const struct op *o, u64 la, u32 size)
{
	struct piece p[2];

	pieces(c, o, la, size, ACC_R, p);
}

void *mem_direct(struct cpu *c, const struct op *o, u64 la, u32 size, bool write)
{
	struct piece p[2];

	if (c->tlb == c->more->empty || (la & 0xfff) + size > PAGE)
		return NULL;
	if (write && c->more->vm->view[c->more->view].parts)
		return NULL;	/* each element has its own part */
	pieces(c, o, la, size, write ? ACC_W : ACC_R, p);
	if (write && c->more->vm->frames[p[0].frame].code)
		return NULL;
	return p[0].host;
}

const u8 *mmu_fetch(struct cpu *c, u64 la)
{
	struct piece p[2];

	if (c->code_bits == 64 && !is_canonical(c, la))
		cpu_raise(c, NULL, X_GP, 0);
	pieces(c, NULL, la, 1, ACC_X, p);
	c->more->fetch_gpa = p[0].gpa;
	return p[0].host;
}

void mmu_fetch_bytes(struct cpu *c, const u8 *host, u8 *to, u32 len)
{
	struct piece p = {
		.host = (u8 *)(uintptr_t)host, .gpa = c->more->fetch_gpa, .len = len,
	};

	piece_read(c, &p, to);
}

/* ---- effective addresses with segments ---------------------------------------------------------- */

/*
 * SDM 3.4.5.1: limit check of off..off+size-1. With a limit of 4 GiB there is
 * none: an access over the end wraps (measured on Intel hosts).
 */
bool seg_limit_ok(const struct hvi_segment *s, u64 off, u32 size)
{
	u64 end = off + size - 1;

	if ((s->access & 0xc) == 4) {	/* data, expand down */
		u64 top = s->access & (1u << 14) ? 0xffffffff : 0xffff;

		return off > s->limit && end <= top;
	}
	return end <= s->limit || s->limit == 0xffffffff;
}

u64 seg_linear(struct cpu *c, const struct op *o, u8 seg, u64 off, u32 size, bool write)
{
	const struct hvi_segment *s = &c->seg[seg];
	u32 type = s->access & 15;
	bool stack = seg == HVI_SS;

	if (c->code_bits == 64) {
		u64 la = off + (seg == HVI_FS || seg == HVI_GS ? c->segbase[seg] : 0);

		if (!is_canonical(c, la) || !is_canonical(c, la + (size ? size - 1 : 0)))
			cpu_raise(c, o, stack ? X_SS : X_GP, 0);
		return la;
	}
	if (!size)
		size = 1;
	if ((c->cr0 & 1) && !(c->rflags & FL_VM)) {
		bool bad = s->access & HVI_SEG_UNUSABLE;

		if (write)
			bad |= (type & 8) || !(type & 2);	/* code, or data without W */
		else
			bad |= (type & 10) == 8;		/* execute-only code */
		if (bad)
			cpu_raise(c, o, stack ? X_SS : X_GP, 0);
	}
	if (!seg_limit_ok(s, (u32)off, size))
		cpu_raise(c, o, stack ? X_SS : X_GP, 0);
	return (u32)(c->segbase[seg] + off);
}

u64 ea_slow(struct cpu *c, const struct op *o)
{
	return ea_at(c, o, 0);
}

u64 ea_at(struct cpu *c, const struct op *o, u64 by)
{
	u64 off = c->gpr[o->base] + (c->gpr[o->index] << o->scale) + (u64)o->disp + by;

	if (o->asize == 4)
		off = (u32)off;
	else if (o->asize == 2)
		off = (u16)off;
	if (c->code_bits == 64 || o->seg == SEG_FLAT)
		return off + c->segbase[o->seg];
	return seg_linear(c, o, o->seg, off, o->msize, o->flags & OP_MEM_WRITE);
}
