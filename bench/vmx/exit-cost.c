// SPDX-License-Identifier: MIT
/*
 * exit-cost.c - what an exit costs, on KVM and on hvi with one guest.
 *
 *   exit-cost [--table | --json | --lines] [--rounds N] [--require hvi,kvm]
 *             [--between COMMAND] [--soft LIBRARY] [kvm | hvi]
 *
 * Measures KVM (/dev/kvm) and then hvi (/dev/hvi), or the one that is named.
 * Two hypervisors cannot have VT-x at the same time: COMMAND is run by the
 * shell when KVM has been measured and its VM is closed, and may exchange the
 * modules (rmmod kvm-intel ...; insmod hvi.ko). --soft takes the software vCPU
 * for hvi: it shows that the program works, not what VT-x costs.
 *
 * Figures are ticks of the TSC, the median and the minimum of N rounds (4000),
 * each round timed by itself, less the cost of measuring. Under Bochs the TSC
 * counts instructions: there the figures are path lengths and the same in
 * every run. --lines, the default for one backend, prints
 * name, backend, median, minimum, with tabs between.
 *
 * Exit code 0: what was asked for is measured and within the bounds of issue 3;
 * 1: a bound is missed, or a measurement went wrong; 2: bad usage; 3: a
 * backend that is required, or the only one asked for, is not there.
 *
 * What a round is:
 *   port write     OUT in the guest, exit, HVI_RUN or KVM_RUN again
 *   access exit    KVM: MMIO read. hvi: a read without the right, answered by
 *                  RETRY under the same rights: there and back, nothing else
 *   read exit ...  the same with the access carried out: RESUME, STEP
 *   write exit ... write without the right: let through (RESUME) or thrown
 *                  away (SCRATCH; KVM: a write to a read-only slot)
 *   CPUID          timed inside of the guest, less an empty pair of RDTSC
 *   rights         HVI_EPT_SET of pages that the guest has touched, so that
 *                  they stand in the EPT; KVM: a slot of 64 such pages
 */
#include <linux/kvm.h>
#include <string.h>
#include "../../test/vmx/backend.h"

#define RAM		0x200000u
#define PORT_LOOP	0x1000
#define READ_LOOP	0x1100
#define WRITE_LOOP	0x1200
#define CPUID_LOOP	0x1300
#define TOUCH		0x1400
#define HOLE		0x8000u		/* KVM: no memory */
#define READ_ONLY	0x9000u
#define DELTAS		0xa000u		/* of CPUID_LOOP: pairs of 32-bit numbers */
#define PAIRS		1024
#define PAGES		0x40000u	/* those whose rights change: 128 from here on */
#define PAGE_COUNT	128

/* Real mode, segments at 0. */
static const unsigned char port_loop[] = {
	0xe6, 0x10,			/* 1: out %al, $0x10 */
	0xeb, 0xfc,			/*    jmp 1b */
};
static const unsigned char read_loop[] = {
	0xa0, 0x00, 0x80,		/* 1: mov HOLE, %al */
	0xeb, 0xfb,			/*    jmp 1b */
};
static const unsigned char write_loop[] = {
	0xa2, 0x00, 0x90,		/* 1: mov %al, READ_ONLY */
	0xeb, 0xfb,			/*    jmp 1b */
};
static const unsigned char cpuid_loop[] = {
	0xbf, 0x00, 0xa0,		/* 1: mov $DELTAS, %di */
	0xbd, 0x00, 0x04,		/*    mov $PAIRS, %bp */
	0x0f, 0x31,			/* 2: rdtsc */
	0x66, 0x89, 0xc6,		/*    mov %eax, %esi */
	0x66, 0x31, 0xc0,		/*    xor %eax, %eax */
	0x66, 0x31, 0xc9,		/*    xor %ecx, %ecx */
	0x0f, 0xa2,			/*    cpuid */
	0x0f, 0x31,			/*    rdtsc */
	0x66, 0x29, 0xf0,		/*    sub %esi, %eax */
	0x66, 0x89, 0x05,		/*    mov %eax, (%di) */
	0x0f, 0x31,			/*    rdtsc */
	0x66, 0x89, 0xc6,		/*    mov %eax, %esi */
	0x66, 0x31, 0xc0,		/*    xor %eax, %eax */
	0x66, 0x31, 0xc9,		/*    xor %ecx, %ecx */
	0x0f, 0x31,			/*    rdtsc */
	0x66, 0x29, 0xf0,		/*    sub %esi, %eax */
	0x66, 0x89, 0x45, 0x04,		/*    mov %eax, 4(%di) */
	0x83, 0xc7, 0x08,		/*    add $8, %di */
	0x4d,				/*    dec %bp */
	0x75, 0xd1,			/*    jnz 2b */
	0xe6, 0x10,			/*    out %al, $0x10 */
	0xeb, 0xc7,			/*    jmp 1b */
};
static const unsigned char touch[] = {
	0xb8, 0x00, 0x40,		/*    mov $PAGES >> 4, %ax */
	0x8e, 0xc0,			/* 1: mov %ax, %es */
	0x26, 0xa2, 0x00, 0x00,		/*    mov %al, %es:0 */
	0x05, 0x00, 0x01,		/*    add $0x100, %ax */
	0x3d, 0x00, 0xc0,		/*    cmp $(PAGES >> 4) + PAGE_COUNT * 0x100, %ax */
	0x75, 0xf2,			/*    jne 1b */
	0xe6, 0x10,			/* 2: out %al, $0x10 */
	0xeb, 0xfc,			/*    jmp 2b */
};

/* ---- figures ------------------------------------------------------------------- */

enum { KVM, HVI, BACKENDS };
static const char *const backend_name[BACKENDS] = { "kvm", "hvi" };

enum row {
	PORT, ACCESS, READ_RESUME, READ_STEP, WRITE_RESUME, WRITE_SCRATCH, CPUID,
	RIGHTS_1, RIGHTS_64, RIGHTS_64_RANGES, RIGHTS_AND_EXIT, GETPPID, BAD_IOCTL, ROWS
};
static const struct { const char *name; long long bound; } rows[ROWS] = {
	[PORT] = { "port write to user space and back", 2600 },
	[ACCESS] = { "access exit to user space and back", 3000 },
	[READ_RESUME] = { "read exit, let through", 0 },
	[READ_STEP] = { "read exit, stepped in another view", 0 },
	[WRITE_RESUME] = { "write exit, let through", 0 },
	[WRITE_SCRATCH] = { "write exit, denied by scratch", 0 },
	[CPUID] = { "CPUID in the kernel", 900 },
	[RIGHTS_1] = { "rights of 1 page (KVM: flags of a slot)", 800 },
	[RIGHTS_64] = { "rights of 64 pages, one range", 4000 },
	[RIGHTS_64_RANGES] = { "rights of 64 pages, 64 ranges", 4000 },
	[RIGHTS_AND_EXIT] = { "rights of 1 page, and the next exit", 0 },
	[GETPPID] = { "system call getppid", 0 },
	[BAD_IOCTL] = { "system call that fails at once", 0 },
};

struct figure { bool known; long long median, min; };
static struct figure figures[ROWS][BACKENDS];
static int backend;
static int rounds = 4000;
static long long *times;
static long long empty;		/* what measuring costs */

static void die(const char *what, long err)
{
	fprintf(stderr, "exit-cost: %s: %s: %s\n", backend_name[backend], what, strerror((int)err));
	exit(1);
}

static inline unsigned long long ticks(void)
{
	unsigned lo, hi;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi) : : "memory");
	return (unsigned long long)hi << 32 | lo;
}

static int order(const void *a, const void *b)
{
	long long x = *(const long long *)a, y = *(const long long *)b;

	return (x > y) - (x < y);
}

static void note(enum row row, long long *t, int n)
{
	qsort(t, (size_t)n, sizeof(*t), order);
	figures[row][backend] = (struct figure){ true, t[n / 2], t[0] };
}

static void nothing(int round)
{
	(void)round;
}

static void measure_raw(void (*once)(int round))
{
	for (int i = -16; i < rounds; i++) {	/* some to warm up */
		unsigned long long t = ticks();

		once(i);
		times[i < 0 ? 0 : i] = (long long)(ticks() - t) - empty;
	}
}

static void measure(enum row row, void (*once)(int round))
{
	measure_raw(once);
	note(row, times, rounds);
}

static void get_parent(int round)
{
	(void)round;
	(void)getppid();
}

static void null_call(int round)
{
	(void)round;
	(void)ioctl(-1, 0, 0);
}

static void floor_costs(void)
{
	measure(GETPPID, get_parent);
	measure(BAD_IOCTL, null_call);
}

static void put_guest(unsigned char *ram)
{
	memcpy(ram + PORT_LOOP, port_loop, sizeof(port_loop));
	memcpy(ram + READ_LOOP, read_loop, sizeof(read_loop));
	memcpy(ram + WRITE_LOOP, write_loop, sizeof(write_loop));
	memcpy(ram + CPUID_LOOP, cpuid_loop, sizeof(cpuid_loop));
	memcpy(ram + TOUCH, touch, sizeof(touch));
}

/* Runs the loop as often as it takes for `rounds`; its pairs stand in guest memory. */
static void measure_cpuid(const unsigned char *ram, void (*once)(int round))
{
	int n = 0;

	while (n < rounds) {
		once(0);
		for (int i = 0; i < PAIRS && n < rounds; i++) {
			__u32 with, without;

			memcpy(&with, ram + DELTAS + i * 8, 4);
			memcpy(&without, ram + DELTAS + i * 8 + 4, 4);
			times[n++] = (long long)with - without;
		}
	}
	note(CPUID, times, rounds);
}

/* ---- KVM ------------------------------------------------------------------------ */

static int kvm_vm, kvm_vcpu;
static struct kvm_run *kvm_page;
static unsigned char *kvm_ram;
static struct kvm_userspace_memory_region kvm_slot;

static void kvm_go(int round)
{
	(void)round;
	if (ioctl(kvm_vcpu, KVM_RUN, 0) < 0)
		die("KVM_RUN", errno);
}

static void kvm_flags(int round)
{
	kvm_slot.flags = round & 1 ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	if (ioctl(kvm_vm, KVM_SET_USER_MEMORY_REGION, &kvm_slot) < 0)
		die("KVM_SET_USER_MEMORY_REGION", errno);
}

static void kvm_memory(__u32 slot, __u32 from, __u32 to, __u32 flags)
{
	kvm_slot = (struct kvm_userspace_memory_region){
		.slot = slot, .flags = flags, .guest_phys_addr = from, .memory_size = to - from,
		.userspace_addr = (unsigned long)kvm_ram + from };
	if (ioctl(kvm_vm, KVM_SET_USER_MEMORY_REGION, &kvm_slot) < 0)
		die("KVM_SET_USER_MEMORY_REGION", errno);
}

/* To `rip`, and one exit on from there, which must be `want`. */
static void kvm_at(unsigned rip, unsigned want)
{
	struct kvm_regs regs = { .rip = rip, .rflags = 2 };

	/* What the last exit left to do would else be done with the new RIP. */
	kvm_page->immediate_exit = 1;
	(void)ioctl(kvm_vcpu, KVM_RUN, 0);
	kvm_page->immediate_exit = 0;
	if (ioctl(kvm_vcpu, KVM_SET_REGS, &regs) < 0)
		die("KVM_SET_REGS", errno);
	kvm_go(0);
	if (kvm_page->exit_reason != want) {
		ioctl(kvm_vcpu, KVM_GET_REGS, &regs);
		fprintf(stderr, "exit-cost: kvm: exit %u at %llx, not %u; MMIO at %llx\n",
			kvm_page->exit_reason, regs.rip, want, kvm_page->mmio.phys_addr);
		exit(1);
	}
}

/* Whether KVM is there; says why not. */
static bool on_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct kvm_sregs sregs;
	long size;

	backend = KVM;
	kvm_vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	if (kvm_vm < 0) {
		fprintf(stderr, "exit-cost: kvm is absent: %s: %s\n",
			kvm < 0 ? "/dev/kvm" : "KVM_CREATE_VM", strerror(errno));
		if (kvm >= 0)
			close(kvm);
		return false;
	}
	kvm_ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (kvm_ram == MAP_FAILED)
		die("mmap", errno);
	put_guest(kvm_ram);
	kvm_memory(0, 0, HOLE, 0);
	kvm_memory(1, READ_ONLY, READ_ONLY + 0x1000, KVM_MEM_READONLY);
	kvm_memory(2, READ_ONLY + 0x1000, PAGES, 0);
	kvm_memory(3, PAGES + 64 * 0x1000, RAM, 0);
	kvm_memory(4, PAGES, PAGES + 64 * 0x1000, 0);	/* the last: the one of kvm_flags */

	kvm_vcpu = ioctl(kvm_vm, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (kvm_vcpu < 0 || size < 0)
		die("KVM_CREATE_VCPU", errno);
	kvm_page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, kvm_vcpu, 0);
	if (kvm_page == MAP_FAILED || ioctl(kvm_vcpu, KVM_GET_SREGS, &sregs) < 0)
		die("vCPU", errno);
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(kvm_vcpu, KVM_SET_SREGS, &sregs) < 0)
		die("KVM_SET_SREGS", errno);

	floor_costs();
	kvm_at(TOUCH, KVM_EXIT_IO);
	kvm_at(PORT_LOOP, KVM_EXIT_IO);
	measure(PORT, kvm_go);
	kvm_at(READ_LOOP, KVM_EXIT_MMIO);
	measure(ACCESS, kvm_go);
	kvm_at(WRITE_LOOP, KVM_EXIT_MMIO);
	measure(WRITE_SCRATCH, kvm_go);
	kvm_at(CPUID_LOOP, KVM_EXIT_IO);
	measure_cpuid(kvm_ram, kvm_go);
	measure(RIGHTS_1, kvm_flags);

	munmap(kvm_page, (size_t)size);
	close(kvm_vcpu);
	close(kvm_vm);
	close(kvm);
	munmap(kvm_ram, RAM);
	return true;
}

/* ---- hvi -------------------------------------------------------------------------- */

static long hvi;
static struct hvi_vcpu *vcpu;
static unsigned char *ram;
static struct hvi_run run;
static struct hvi_ept_range ranges[2][64];	/* with and without W */
static struct hvi_ept ept;
static struct hvi_reply reply;

static void must(unsigned long request, void *arg, const char *name)
{
	long r = hvi_call(hvi, request, arg);

	if (r < 0)
		die(name, -r);
}

static void hvi_go(int round)
{
	long r;

	(void)round;
	vcpu->reply.action = reply.action;
	vcpu->reply.step_view = reply.step_view;
	r = hvi_call(hvi, HVI_RUN, &run);
	if (r < 0)
		die("HVI_RUN", -r);
}

static void hvi_rights(int round)
{
	long r;

	ept.ranges = (unsigned long)ranges[round & 1];
	r = hvi_call(hvi, HVI_EPT_SET, &ept);
	if (r < 0)
		die("HVI_EPT_SET", -r);
}

/* A change, and the guest's next exit: with what the flush of the TLB costs. */
static void hvi_rights_and_go(int round)
{
	hvi_rights(round);
	hvi_go(round);
}

/* `count` GFNs from PAGES on, in `calls` ranges; scattered ones are every second. */
static void measure_rights(enum row row, unsigned count, unsigned calls)
{
	for (unsigned i = 0; i < 2 * calls; i++)
		ranges[i % 2][i / 2] = (struct hvi_ept_range){
			.gfn = (PAGES >> 12) + (i & ~1u), .count = count / calls,
			.rights = i & 1 ? HVI_RWX : HVI_R | HVI_X,
		};
	ept.count = calls;
	measure(row, hvi_rights);
}

static void hvi_want(unsigned want)
{
	if (vcpu->exit.reason == want)
		return;
	fprintf(stderr, "exit-cost: hvi: exit %u at %llx, not %u; number %u value %llx\n",
		vcpu->exit.reason, vcpu->rip, want, vcpu->exit.number, vcpu->exit.value);
	exit(1);
}

/* To `rip`, and one exit on from there, which must be `want`; what it is answered from then on. */
static void hvi_at(unsigned rip, __u32 action, unsigned want)
{
	vcpu->rip = rip;
	vcpu->rflags = 2;
	vcpu->dirty |= HVI_STATE_GPR;
	reply.action = HVI_REPLY_RETRY;	/* of the exit before; this one begins anew */
	hvi_go(0);
	hvi_want(want);
	reply.action = action;
}

/* All rounds of an access; afterwards it must still be the one that was meant. */
static void measure_access(enum row row, unsigned rip, __u32 action)
{
	unsigned kind = rip == WRITE_LOOP ? HVI_ACCESS_WRITE : HVI_ACCESS_READ;

	hvi_at(rip, action, HVI_EXIT_EPT);
	measure(row, hvi_go);
	hvi_want(HVI_EXIT_EPT);
	if (!(vcpu->exit.access & kind) || vcpu->rip != rip) {
		fprintf(stderr, "exit-cost: hvi: %s: access %x at %llx\n", rows[row].name,
			vcpu->exit.access, vcpu->rip);
		exit(1);
	}
}

static void page_rights(__u32 page, __u32 rights)
{
	struct hvi_ept_range range = { .gfn = page >> 12, .count = 1, .rights = rights };
	struct hvi_ept set = { .count = 1, .ranges = (unsigned long)&range };

	must(HVI_EPT_SET, &set, "HVI_EPT_SET");
}

/* The byte that the write loop writes, after a round with AL = 55h. */
static unsigned written(void)
{
	ram[READ_ONLY] = 0xee;
	vcpu->gpr[HVI_RAX] = 0x55;
	vcpu->dirty |= HVI_STATE_GPR;
	hvi_go(0);
	return ram[READ_ONLY];
}

static void measure_hvi(void)
{
	struct hvi_create create = { .vcpus = 1 };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };
	static struct hvi_cpuid_entry entries[HVI_MAX_CPUID];
	struct hvi_cpuid cpuid = { .count = HVI_MAX_CPUID, .entries = (unsigned long)entries };
	struct hvi_view view = { .from = 0 };

	must(HVI_CREATE, &create, "HVI_CREATE");
	must(HVI_ADD_MEMORY, &memory, "HVI_ADD_MEMORY");
	must(HVI_GET_CPUID, &cpuid, "HVI_GET_CPUID");
	must(HVI_SET_CPUID, &cpuid, "HVI_SET_CPUID");
	ram = hvi_map(hvi, HVI_MMAP_RAM, RAM);
	vcpu = hvi_map(hvi, HVI_MMAP_VCPU, HVI_VCPU_SIZE);
	if (!ram || !vcpu)
		die("mmap", errno);
	put_guest(ram);
	real_mode(vcpu, TOUCH);
	must(HVI_VIEW_CREATE, &view, "HVI_VIEW_CREATE");	/* all rights: for STEP */
	reply.step_view = view.view;

	floor_costs();
	hvi_at(TOUCH, HVI_REPLY_RESUME, HVI_EXIT_IO);
	hvi_at(PORT_LOOP, HVI_REPLY_RESUME, HVI_EXIT_IO);
	measure(PORT, hvi_go);
	hvi_want(HVI_EXIT_IO);

	page_rights(HOLE, 0);
	measure_access(ACCESS, READ_LOOP, HVI_REPLY_RETRY);
	measure_access(READ_RESUME, READ_LOOP, HVI_REPLY_RESUME);
	measure_access(READ_STEP, READ_LOOP, HVI_REPLY_STEP);
	page_rights(READ_ONLY, HVI_R);
	measure_access(WRITE_RESUME, WRITE_LOOP, HVI_REPLY_RESUME);
	if (written() != 0x55)
		die("a write that was let through has no effect", 0);
	measure_access(WRITE_SCRATCH, WRITE_LOOP, HVI_REPLY_SCRATCH);
	if (written() != 0xee)
		die("a write that was denied has an effect", 0);

	hvi_at(CPUID_LOOP, HVI_REPLY_RESUME, HVI_EXIT_IO);
	measure_cpuid(ram, hvi_go);

	measure_rights(RIGHTS_1, 1, 1);
	measure_rights(RIGHTS_64, 64, 1);
	measure_rights(RIGHTS_64_RANGES, 64, 64);
	hvi_at(PORT_LOOP, HVI_REPLY_RESUME, HVI_EXIT_IO);
	ept.count = 1;
	measure(RIGHTS_AND_EXIT, hvi_rights_and_go);

	hvi_unmap(ram, RAM);
	hvi_unmap(vcpu, HVI_VCPU_SIZE);
}

static bool on_hvi(void)
{
	struct hvi_info info = { .size = sizeof(info) };

	backend = HVI;
	hvi = hvi_open();
	if (hvi < 0) {
		fprintf(stderr, "exit-cost: hvi is absent: /dev/hvi: %s\n", strerror((int)-hvi));
		return false;
	}
	if (hvi_call(hvi, HVI_GET_INFO, &info) < 0 || info.abi_version != HVI_ABI_VERSION) {
		fprintf(stderr, "exit-cost: hvi: ABI version %u, this program has %u\n", info.abi_version,
			HVI_ABI_VERSION);
		exit(1);
	}
	measure_hvi();
	hvi_close(hvi);
	return true;
}

/* ---- output ------------------------------------------------------------------------- */

static bool missed(int row)
{
	return rows[row].bound && figures[row][HVI].known && figures[row][HVI].median > rows[row].bound;
}

static void cell(const struct figure *f)
{
	if (f->known)
		printf("%9lld %9lld", f->median, f->min);
	else
		printf("%9s %9s", "-", "-");
}

static void table(void)
{
	printf("%-42s%9s %9s%9s %9s%9s\n", on_soft ? "ticks (hvi: software vCPU)" : "ticks", "KVM",
	       "min", "hvi", "min", "bound");
	for (int r = 0; r < ROWS; r++) {
		printf("%-42s", rows[r].name);
		cell(&figures[r][KVM]);
		cell(&figures[r][HVI]);
		if (rows[r].bound)
			printf("%9lld%s", rows[r].bound, missed(r) ? "  MISSED" : "");
		printf("\n");
	}
}

static void lines(void)
{
	for (int r = 0; r < ROWS; r++)
		for (int b = 0; b < BACKENDS; b++)
			if (figures[r][b].known)
				printf("%s\t%s\t%lld\t%lld\n", rows[r].name, backend_name[b],
				       figures[r][b].median, figures[r][b].min);
}

/* Names are ours and have nothing to escape. */
static void json(void)
{
	printf("{\"rounds\":%d,\"soft\":%s,\"figures\":[", rounds, on_soft ? "true" : "false");
	for (int r = 0; r < ROWS; r++) {
		printf("%s\n{\"name\":\"%s\"", r ? "," : "", rows[r].name);
		for (int b = 0; b < BACKENDS; b++)
			if (figures[r][b].known)
				printf(",\"%s\":{\"median\":%lld,\"min\":%lld}", backend_name[b],
				       figures[r][b].median, figures[r][b].min);
		if (rows[r].bound)
			printf(",\"bound\":%lld", rows[r].bound);
		if (rows[r].bound && figures[r][HVI].known)
			printf(",\"missed\":%s", missed(r) ? "true" : "false");
		printf("}");
	}
	printf("\n]}\n");
}

static int usage(void)
{
	fprintf(stderr, "usage: exit-cost [--table | --json | --lines] [--rounds N] [--require hvi,kvm]\n"
			"                 [--between COMMAND] [--soft LIBRARY] [kvm | hvi]\n");
	return 2;
}

int main(int argc, char **argv)
{
	const char *require = "", *between = NULL, *only = NULL;
	void (*print)(void) = NULL;
	bool have[BACKENDS] = { false, false };
	int code = 0;

	for (int i = 1; i < argc; i++) {
		const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (!strcmp(a, "--table")) {
			print = table;
		} else if (!strcmp(a, "--json")) {
			print = json;
		} else if (!strcmp(a, "--lines")) {
			print = lines;
		} else if (!strcmp(a, "kvm") || !strcmp(a, "hvi")) {
			only = a;
		} else if (!value) {
			return usage();
		} else {
			i++;
			if (!strcmp(a, "--rounds"))
				rounds = atoi(value);
			else if (!strcmp(a, "--require"))
				require = value;
			else if (!strcmp(a, "--between"))
				between = value;
			else if (!strcmp(a, "--soft"))
				use_soft(value);
			else
				return usage();
		}
	}
	if (rounds < 1 || rounds > 1000000)
		return usage();
	if (!print)
		print = only ? lines : table;
	times = calloc((size_t)rounds, sizeof(*times));
	if (!times)
		return 1;
	measure_raw(nothing);
	qsort(times, (size_t)rounds, sizeof(*times), order);
	empty = times[0];

	if (!only || !strcmp(only, "kvm"))
		have[KVM] = on_kvm();
	if (between && system(between)) {
		fprintf(stderr, "exit-cost: --between: the command failed\n");
		return 1;
	}
	if (!only || !strcmp(only, "hvi"))
		have[HVI] = on_hvi();
	if (have[KVM] || have[HVI])
		print();
	for (int r = 0; r < ROWS; r++)
		if (missed(r) && !on_soft) {
			fprintf(stderr, "exit-cost: %s: %lld, bound %lld\n", rows[r].name,
				figures[r][HVI].median, rows[r].bound);
			code = 1;
		}
	if (!have[KVM] && !have[HVI])
		code = 3;
	for (int b = 0; b < BACKENDS; b++)
		if (strstr(require, backend_name[b]) && !have[b])
			code = 3;
	return code;
}
