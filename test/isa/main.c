/* SPDX-License-Identifier: MIT */
/*
 * main.c - isa [--filter TEXT] [--mnemonics LIST] [--seed N] [--states N] [--json FILE]
 *	    [--record FILE] [--dumps N] [--library FILE]
 *
 * --mnemonics: names with commas between them; only forms of these are tried.
 * --record: the states that completed and agree, for test/x86.
 *
 * Exit code 0 when every state of every form agrees, 1 when not, 2 for bad arguments.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "isa.h"

/* CF PF AF ZF SF TF DF OF NT AC ID; IF and IOPL are not a user program's, RF is the fault's. */
#define COMPARED_FLAGS	0x244dd5u

static const char *const names[16] = {
	"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
};

static u8 before_data[DATA_SIZE], before_stack[STACK_SIZE];

static u8 *host_data(void)
{
	return (u8 *)(uintptr_t)DATA;
}

static u8 *host_stack(void)
{
	return (u8 *)(uintptr_t)STACK;
}

/* RDRAND and RDSEED give what nobody can foretell: only that it is there. */
static bool is_random(const struct test *t)
{
	return t->z.mnemonic == ZYDIS_MNEMONIC_RDRAND || t->z.mnemonic == ZYDIS_MNEMONIC_RDSEED;
}

static bool same(const struct test *t, const struct outcome *h, const struct outcome *g, u32 undefined)
{
	if (g->failure)
		return false;
	if (h->vector != g->vector || h->error != g->error || h->s.rip != g->s.rip)
		return false;
	if (h->vector == 14 && (h->cr2 ^ g->cr2) >> (fault_address_loose(t) ? 12 : 0))
		return false;
	if ((h->s.rflags ^ g->s.rflags) & COMPARED_FLAGS & ~undefined)
		return false;
	if (!is_random(t) && memcmp(h->s.gpr, g->s.gpr, sizeof(h->s.gpr)))
		return false;
	if (memcmp(h->s.xs, g->s.xs, 416) || memcmp(h->s.xs + XS_YMM, g->s.xs + XS_YMM, 256))
		return false;
	return (h->s.rip == t->at && fault_memory_loose(t)) ||
	       (!memcmp(host_data(), guest_data(), DATA_SIZE) && !memcmp(host_stack(), guest_stack(), STACK_SIZE));
}

static void dump_bytes(const char *what, const u8 *in, const u8 *h, const u8 *g, u32 n, u64 at)
{
	for (u32 i = 0; i < n; i += 16) {
		if (!memcmp(h + i, g + i, 16))
			continue;
		printf("  %s+%" PRIx64 " before", what, at + i);
		for (u32 k = 0; k < 16; k++)
			printf(" %02x", in[i + k]);
		printf("\n%*shost  ", (int)strlen(what) + 8, "");
		for (u32 k = 0; k < 16; k++)
			printf(" %02x", h[i + k]);
		printf("\n%*sguest ", (int)strlen(what) + 8, "");
		for (u32 k = 0; k < 16; k++)
			printf(" %02x", g[i + k]);
		printf("\n");
	}
}

static void dump(const struct form *f, const struct test *t, const struct outcome *h,
		 const struct outcome *g, u32 undefined, u32 state)
{
	ZydisFormatter fm;
	char text[128] = "";

	ZydisFormatterInit(&fm, ZYDIS_FORMATTER_STYLE_INTEL);
	ZydisFormatterFormatInstruction(&fm, &t->z, t->op, t->z.operand_count_visible, text, sizeof(text),
					t->at, NULL);
	printf("MISMATCH %s (state %u)\n  %" PRIx64 ":", f->name, state, t->at);
	for (u32 i = 0; i < t->len; i++)
		printf(" %02x", t->code[i]);
	printf("  %s\n", text);
	if (g->failure)
		printf("  guest: %s\n", g->failure);
	printf("  end: host vector %u error %x rip %" PRIx64 " cr2 %" PRIx64
	       ", guest vector %u error %x rip %" PRIx64 " cr2 %" PRIx64 "\n",
	       h->vector, h->error, h->s.rip, h->vector == 14 ? h->cr2 : 0,
	       g->vector, g->error, g->s.rip, g->vector == 14 ? g->cr2 : 0);
	printf("  rflags: before %" PRIx64 " host %" PRIx64 " guest %" PRIx64 " (undefined %x)%s\n",
	       t->in.rflags, h->s.rflags, g->s.rflags, undefined,
	       (h->s.rflags ^ g->s.rflags) & COMPARED_FLAGS & ~undefined ? " <-" : "");
	for (u32 i = 0; i < 16; i++) {
		bool differ = h->s.gpr[i] != g->s.gpr[i];

		if (differ || h->s.gpr[i] != t->in.gpr[i] || i < 4)
			printf("  %s: before %" PRIx64 " host %" PRIx64 " guest %" PRIx64 "%s\n", names[i],
			       t->in.gpr[i], h->s.gpr[i], g->s.gpr[i], differ ? " <-" : "");
	}
	if (t->z.meta.isa_ext != ZYDIS_ISA_EXT_BASE) {
		u32 m;
		u16 cw, sw;

		memcpy(&m, t->in.xs + XS_MXCSR, 4);
		memcpy(&cw, t->in.xs, 2);
		memcpy(&sw, t->in.xs + 2, 2);
		printf("  before: mxcsr %x fcw %x fsw %x ftw %x\n", m, cw, sw, t->in.xs[4]);
	}
	dump_bytes("xsave", t->in.xs, h->s.xs, g->s.xs, 416, 0);
	dump_bytes("ymmh", t->in.xs + XS_YMM, h->s.xs + XS_YMM, g->s.xs + XS_YMM, 256, 0);
	dump_bytes("data", before_data, host_data(), guest_data(), DATA_SIZE, DATA);
	dump_bytes("stack", before_stack, host_stack(), guest_stack(), STACK_SIZE, STACK);
}

struct options {
	const char *filter, *mnemonics, *json, *record, *library;
	u64 seed;
	u32 states, dumps;
};

static u64 number(const char *s)
{
	char *end;
	u64 v = strtoull(s, &end, 0);

	if (!*s || *end) {
		fprintf(stderr, "isa: '%s' is not a number\n", s);
		exit(2);
	}
	return v;
}

static struct options parse(int argc, char **argv)
{
	struct options o = { .library = "build/libhvi-soft.so", .seed = 1, .states = 100, .dumps = 40 };

	for (int i = 1; i < argc; i += 2) {
		const char *v = i + 1 < argc ? argv[i + 1] : NULL;

		if (!v) {
			fprintf(stderr, "isa: %s needs a value\n", argv[i]);
			exit(2);
		}
		if (!strcmp(argv[i], "--filter"))
			o.filter = v;
		else if (!strcmp(argv[i], "--mnemonics"))
			o.mnemonics = v;
		else if (!strcmp(argv[i], "--record"))
			o.record = v;
		else if (!strcmp(argv[i], "--seed"))
			o.seed = number(v);
		else if (!strcmp(argv[i], "--states"))
			o.states = (u32)number(v);
		else if (!strcmp(argv[i], "--dumps"))
			o.dumps = (u32)number(v);
		else if (!strcmp(argv[i], "--json"))
			o.json = v;
		else if (!strcmp(argv[i], "--library"))
			o.library = v;
		else {
			fprintf(stderr, "isa: unknown option %s (--filter, --mnemonics, --seed, --states, --dumps, --json, --record, --library)\n",
				argv[i]);
			exit(2);
		}
	}
	return o;
}

static void write_json(const char *path, const struct form *f, u32 n, const struct options *o)
{
	FILE *out = fopen(path, "w");

	if (!out) {
		fprintf(stderr, "isa: cannot write %s\n", path);
		exit(2);
	}
	fprintf(out, "{\"seed\":%" PRIu64 ",\"forms\":[\n", o->seed);
	for (u32 i = 0, first = 1; i < n; i++) {
		if (!f[i].states)
			continue;
		fprintf(out, "%s{\"form\":\"%s\",\"mnemonic\":\"%s\",\"states\":%u,\"completed\":%u,\"faulted\":%u,\"mismatches\":%u}",
			first ? "" : ",\n", f[i].name, ZydisMnemonicGetString(f[i].mnemonic), f[i].states,
			f[i].completed, f[i].faults, f[i].mismatches);
		first = 0;
	}
	fprintf(out, "\n]}\n");
	fclose(out);
}

/*
 * Once more with every access leaving the guest, and all of it to the record,
 * whose memory is the host's. False: it ends otherwise.
 */
static bool record(const struct test *t, const struct outcome *h, u32 undefined)
{
	static struct watched w;
	struct outcome g, host = *h;

	if (host_stores_more(t))
		return true;
	memcpy(guest_data(), before_data, DATA_SIZE);
	memcpy(guest_stack(), before_stack, STACK_SIZE);
	guest_watch(t, &g, &w);
	forget_undefined(t, &host, &g);
	if (!same(t, &host, &g, undefined))
		return false;
	record_state(t, h, &w, before_data, before_stack);
	return true;
}

/* One state of a form; true when it agrees (or nothing can be said). */
static bool one(struct form *f, struct test *t, struct rng *r, const struct options *o, u32 state, u32 *dumps)
{
	struct outcome h, g;
	bool skip;
	u32 undefined;

	if (!make_test(f, r, t))
		return true;
	undefined = undefined_flags(t, &skip);
	if (skip)
		return true;
	memcpy(before_data, host_data(), DATA_SIZE);
	memcpy(before_stack, host_stack(), STACK_SIZE);
	memcpy(guest_data(), before_data, DATA_SIZE);
	memcpy(guest_stack(), before_stack, STACK_SIZE);
	host_run(t, &h);
	if (fault_unspecified(t, &h))
		return true;
	guest_run(t, &g);
	forget_undefined(t, &h, &g);
	f->states++;
	if (h.vector == 13 && h.s.rip != t->at)
		f->completed++;
	else
		f->faults++;
	if (same(t, &h, &g, undefined) &&
	    (!o->record || h.vector != 13 || h.s.rip == t->at || record(t, &h, undefined)))
		return true;
	f->mismatches++;
	if (f->mismatches <= 2 && *dumps < o->dumps) {
		dump(f, t, &h, &g, undefined, state);
		++*dumps;
	}
	return false;
}

static bool wanted(const struct options *o, const struct form *f)
{
	const char *name = ZydisMnemonicGetString(f->mnemonic), *at = o->mnemonics;
	size_t n = strlen(name);

	if (o->filter && !strstr(f->name, o->filter))
		return false;
	if (!at)
		return true;
	for (; (at = strstr(at, name)); at += n)
		if ((at == o->mnemonics || at[-1] == ',') && (!at[n] || at[n] == ','))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	struct options o = parse(argc, argv);
	struct form *forms;
	u32 n = find_forms(&forms), used = 0, bad = 0, dumps = 0, rows, wrong;
	u64 states = 0;
	static struct test t;

	guest_open(o.library);
	wrong = check_conditions(&rows);
	printf("conditions %u mismatches %u\n", rows, wrong);
	host_open();
	if (o.record)
		record_open(o.record);
	for (u32 i = 0; i < n; i++) {
		struct form *f = &forms[i];

		if (!wanted(&o, f))
			continue;
		for (u32 k = 0; k < o.states; k++) {
			struct rng r = { (o.seed * 0x9e3779b97f4a7c15ull) ^ f->key ^ ((u64)k << 32) ^ 0x1234567 };

			rnd(&r);
			rnd(&r);
			one(f, &t, &r, &o, k, &dumps);
		}
		used += f->states > 0;
		states += f->states;
		bad += f->mismatches;
		if (f->mismatches)
			printf("FORM %s: %u of %u states differ\n", f->name, f->mismatches, f->states);
		if (i % 500 == 499) {
			printf("... %u of %u forms, %" PRIu64 " states, %u mismatches\n", i + 1, n, states, bad);
			fflush(stdout);
		}
	}
	if (o.record)
		record_close();
	if (o.json)
		write_json(o.json, forms, n, &o);
	printf("forms %u states %" PRIu64 " mismatches %u\n", used, states, bad);
	return bad || wrong ? 1 : 0;
}
