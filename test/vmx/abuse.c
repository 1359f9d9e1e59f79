// SPDX-License-Identifier: MIT
/*
 * abuse.c - what callers do to /dev/hvi that is no ioctl's argument: threads,
 * forks, signals, tracers, mappings, segments of their own, too much of all.
 *
 *   abuse [NAME...]
 *
 * Runs the cases, or those named, and says how each went. Exit code 0: all went
 * well; 1: not, or one did not come back; 2: no such case; 3: no device. The
 * kernel's own view is in dmesg and in what counters.sh compares.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/io.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include "backend.h"

#define RAM	0x100000ull	/* less than a large page: a VM takes what it touches */
#define CODE	0x4000u
#define COUNTER	0x8000u

struct vm {
	long fd;
	unsigned vcpus;
	struct hvi_vcpu *page[HVI_MAX_VCPUS];
	unsigned char *ram;
};

/* Real mode. */
static const unsigned char spin[] = { 0xfe, 0x06, 0x00, 0x80, 0xeb, 0xfa };	/* 1: incb COUNTER; jmp 1b */
static const unsigned char stop[] = { 0xfe, 0x06, 0x00, 0x80, 0xe6, 0x10, 0xeb, 0xf8 };	/* 1: incb COUNTER; out %al, $0x10; jmp 1b */

static const char *volatile wrong;	/* of the case that runs */

#define WANT(condition) do { if (!(condition) && !wrong) wrong = #condition; } while (0)

static struct vm make(unsigned vcpus, const unsigned char *code, unsigned size)
{
	struct hvi_create create = { .vcpus = vcpus };
	struct hvi_memory memory = { .size = RAM, .fd = -1 };
	struct vm m = { .fd = hvi_open(), .vcpus = vcpus };

	WANT(m.fd >= 0);
	WANT(hvi_call(m.fd, HVI_CREATE, &create) == 0);
	WANT(hvi_call(m.fd, HVI_ADD_MEMORY, &memory) == 0);
	for (unsigned i = 0; i < vcpus; i++) {
		m.page[i] = hvi_map(m.fd, HVI_MMAP_VCPU + i * HVI_VCPU_SIZE, HVI_VCPU_SIZE);
		WANT(m.page[i]);
		if (!m.page[i])
			continue;
		real_mode(m.page[i], CODE);
		m.page[i]->mp_state = HVI_MP_RUNNING;
		m.page[i]->dirty = HVI_STATE_ALL;
	}
	m.ram = hvi_map(m.fd, HVI_MMAP_RAM, RAM);
	WANT(m.ram);
	if (m.ram)
		memcpy(m.ram + CODE, code, size);
	return m;
}
#define MAKE(vcpus, code) make(vcpus, code, sizeof(code))

static void unmake(struct vm *m)
{
	for (unsigned i = 0; i < m->vcpus; i++)
		hvi_unmap(m->page[i], HVI_VCPU_SIZE);
	hvi_unmap(m->ram, RAM);
	hvi_close(m->fd);
}

/* The reason, or an errno. */
static long run(long fd)
{
	struct hvi_run r = { 0 };
	long n = hvi_call(fd, HVI_RUN, &r);

	return n < 0 ? n : (long)r.reason;
}

/* A guest that stops at a port did so: the VM is sound. */
static void stops(struct vm *m)
{
	long r;

	do {
		r = run(m->fd);
	} while (r == -EINTR || r == HVI_EXIT_PAUSED);
	WANT(r == HVI_EXIT_IO);
}

static void kick(long fd)
{
	struct hvi_vcpu_op op = { .vcpu = 0 };

	WANT(hvi_call(fd, HVI_KICK, &op) == 0);
}

static void msleep(unsigned ms)
{
	usleep(ms * 1000);
}

struct runner {
	long fd, result;
	pthread_t thread;
	volatile int done;
};

static void *run_thread(void *arg)
{
	struct runner *r = arg;

	do {
		r->result = run(r->fd);
	} while (r->result == -EINTR);
	r->done = 1;
	return NULL;
}

static void start(struct runner *r, long fd)
{
	*r = (struct runner){ .fd = fd };
	WANT(pthread_create(&r->thread, NULL, run_thread, r) == 0);
	msleep(20);
}

/* ---- mappings ----------------------------------------------------------------------- */

static long map_errno(long fd, int prot, int flags, __u64 offset, __u64 size)
{
	void *p = mmap(NULL, size, prot, flags, (int)fd, (off_t)offset);

	if (p == MAP_FAILED)
		return -errno;
	munmap(p, size);
	return 0;
}

static void mappings(void)
{
	struct vm m = MAKE(2, stop);
	struct hvi_spare spare = { .count = 4 };
	int rw = PROT_READ | PROT_WRITE;
	unsigned char *p;

	WANT(hvi_call(m.fd, HVI_ADD_SPARE, &spare) == 0);
	WANT(map_errno(m.fd, rw, MAP_SHARED, 0, RAM + 4096) == -EINVAL);
	WANT(map_errno(m.fd, rw, MAP_SHARED, RAM, 4096) == -EINVAL);
	WANT(map_errno(m.fd, rw, MAP_SHARED, HVI_MMAP_VCPU + 2 * 4096, 4096) == -EINVAL);
	WANT(map_errno(m.fd, rw, MAP_SHARED, HVI_MMAP_VCPU, 2 * 4096) == -EINVAL);
	WANT(map_errno(m.fd, rw, MAP_SHARED, HVI_MMAP_SPARE + 4 * 4096, 4096) == -EINVAL);
	WANT(map_errno(m.fd, rw, MAP_SHARED, HVI_MMAP_SPARE, 5 * 4096) == -EINVAL);
	WANT(map_errno(m.fd, rw, MAP_SHARED, HVI_MMAP_SPARE, 4 * 4096) == 0);
	WANT(map_errno(m.fd, rw, MAP_SHARED, 0x300000000000, 4096) == -EINVAL);
	WANT(map_errno(m.fd, rw, MAP_SHARED, 0x7ffffffffffff000, 4096) < 0);
	WANT(map_errno(m.fd, rw, MAP_PRIVATE, 0, 4096) == -EINVAL);
	WANT(map_errno(m.fd, PROT_READ, MAP_PRIVATE, HVI_MMAP_VCPU, 4096) == -EINVAL);
	/* Not longer, not twice; moved and cut it stays what it is. */
	WANT(mremap(m.ram, RAM, RAM + 4096, MREMAP_MAYMOVE) == MAP_FAILED);
	WANT(mremap(m.page[0], 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED);
	WANT(mprotect(m.ram, RAM, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
	m.ram[COUNTER] = 0xc3;		/* ret */
	((void (*)(void))(m.ram + COUNTER))();
	p = mremap(m.ram, RAM, RAM, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(NULL, RAM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	WANT(p != MAP_FAILED && p[COUNTER] == 0xc3);
	m.ram = p;
	munmap(p + 0x80000, 4096);
	stops(&m);
	WANT(m.ram[COUNTER] == 0xc4);
	madvise(m.ram, RAM, MADV_DONTNEED);
	WANT(m.ram[COUNTER] == 0xc4);
	madvise(m.ram, RAM, MADV_REMOVE);
	WANT(m.ram[COUNTER] == 0xc4);
	unmake(&m);
}

/* Files that the kernel cannot read for us; the kernel's log must stay empty. */
static void files(void)
{
	static const char *const odd[] = {
		"/dev/zero", "/dev/null", "/", "/proc/self/maps", "/proc/self/mem", "/proc/meminfo", "/proc/kmsg",
		"/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/kernel/hostname", "/dev/hvi",
	};
	struct vm m = { .fd = hvi_open() };
	struct hvi_create create = { .vcpus = 1 };
	int pipes[2], part = memfd_create("part", 0), gone = memfd_create("gone", 0);
	unsigned char *p;

	WANT(hvi_call(m.fd, HVI_CREATE, &create) == 0);
	WANT(pipe(pipes) == 0 && ftruncate(part, 5000) == 0 && ftruncate(gone, RAM) == 0);
	for (unsigned i = 0; i < sizeof(odd) / sizeof(odd[0]) + 2; i++) {
		int fd = i < 2 ? pipes[i] : open(odd[i - 2], O_RDONLY);
		struct hvi_memory memory = { .gpa = RAM << i, .size = RAM, .fd = fd };
		long r = hvi_call(m.fd, HVI_ADD_MEMORY, &memory);

		/* One that it can read after all may be taken. */
		WANT(fd < 0 || r == -EACCES || r == 0);
		if (r == 0) {
			p = hvi_map(m.fd, memory.ram_offset, 4096);
			WANT(p && (p[0] | 1));
			hvi_unmap(p, 4096);
		}
		if (i >= 2)
			close(fd);
	}
	/* Shorter than the slot, or cut later: zeros, no SIGBUS. */
	WANT(pwrite(part, "x", 1, 4999) == 1 && pwrite(gone, "x", 1, 0) == 1);
	for (int i = 0; i < 2; i++) {
		struct hvi_memory memory = { .gpa = (1ull << 34) + RAM * i, .size = RAM, .fd = i ? gone : part };

		WANT(hvi_call(m.fd, HVI_ADD_MEMORY, &memory) == 0);
		WANT(!i || ftruncate(gone, 0) == 0);
		p = hvi_map(m.fd, memory.ram_offset, RAM);
		WANT(p && p[i ? 0 : 4999] == (i ? 0 : 'x') && !p[RAM - 1]);
		hvi_unmap(p, RAM);
	}
	close(part);
	close(gone);
	close(pipes[0]);
	close(pipes[1]);
	hvi_close(m.fd);
}

/* ---- threads and processes ------------------------------------------------------------ */

static void two_runners(void)
{
	struct vm m = MAKE(1, spin);
	struct runner r;
	struct hvi_ept_range range = { COUNTER >> 12, 1, HVI_RWX };
	struct hvi_ept set = { 0, 1, (unsigned long)&range };

	start(&r, m.fd);
	for (int i = 0; i < 20; i++) {
		WANT(run(m.fd) == -EBUSY);
		WANT(hvi_call(m.fd, HVI_EPT_SET, &set) == 0);
	}
	WANT(!r.done);
	kick(m.fd);
	pthread_join(r.thread, NULL);
	WANT(r.result == HVI_EXIT_PAUSED);
	unmake(&m);
}

/* HVI_RESET and HVI_SET_MSRS while another thread runs the guest are in effect afterwards. */
static void changed_while_running(void)
{
	struct vm m = MAKE(1, spin);
	struct hvi_msr_entry e = { .index = 0xc0000082, .value = 0x123456789000 & 0x7fffffffffff };
	struct hvi_msrs msrs = { .vcpu = 0, .count = 1, .entries = (unsigned long)&e };
	struct hvi_vcpu_op op = { .vcpu = 0 };
	struct runner r;

	start(&r, m.fd);
	WANT(hvi_call(m.fd, HVI_SET_MSRS, &msrs) == 0);
	msleep(20);
	kick(m.fd);
	pthread_join(r.thread, NULL);
	WANT(m.page[0]->lstar == e.value);
	start(&r, m.fd);
	WANT(hvi_call(m.fd, HVI_RESET, &op) == 0);
	msleep(20);
	kick(m.fd);
	pthread_join(r.thread, NULL);
	WANT(m.page[0]->seg[HVI_CS].selector == 0xf000 && m.page[0]->lstar == 0);
	unmake(&m);
}

static void closed_under_it(void)
{
	for (int i = 0; i < 8; i++) {
		struct vm m = MAKE(1 + i % 2, spin);
		int copy = dup((int)m.fd);
		struct runner r;

		start(&r, m.fd);
		if (i & 1)
			close((int)m.fd);
		if (i & 2) {
			hvi_unmap(m.ram, RAM);
			m.ram = NULL;
		}
		if (i & 4)
			for (unsigned k = 0; k < m.vcpus; k++) {
				hvi_unmap(m.page[k], HVI_VCPU_SIZE);
				m.page[k] = NULL;
			}
		msleep(5);
		WANT(!r.done);
		kick(copy);
		pthread_join(r.thread, NULL);
		WANT(r.result == HVI_EXIT_PAUSED || r.result == -EBADF);
		close(copy);
		if (i & 1)
			m.fd = -1;
		unmake(&m);
	}
}

static void forked_under_it(void)
{
	struct vm m = MAKE(1, spin);
	struct runner r;

	start(&r, m.fd);
	for (int i = 0; i < 10; i++) {
		pid_t pid = fork();

		if (!pid) {
			/* The mappings did not come along, the file did. */
			unsigned char vec;

			if (mincore(m.ram, 4096, &vec) == 0 || run(m.fd) != -EBUSY)
				_exit(1);
			kick(m.fd);
			_exit(0);
		}
		int status = 1;

		WANT(waitpid(pid, &status, 0) == pid && status == 0);
		pthread_join(r.thread, NULL);
		start(&r, m.fd);
	}
	kick(m.fd);
	pthread_join(r.thread, NULL);
	unmake(&m);
}

/* The file goes to another process, which runs the guest when we have closed it; we are killed, or it. */
static void passed_on(void)
{
	for (int killed = 0; killed < 2; killed++) {
		int pair[2], back[2];
		pid_t pid;
		char c = 0;

		WANT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(back) == 0);
		pid = fork();
		if (!pid) {
			char buffer[CMSG_SPACE(sizeof(int))];
			struct iovec iov = { &c, 1 };
			struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = buffer,
					      .msg_controllen = sizeof(buffer) };
			struct vm other = { .vcpus = 0 };

			if (recvmsg(pair[1], &msg, 0) != 1)
				_exit(1);
			memcpy(&other.fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
			other.fd = (int)other.fd;
			if (read(pair[1], &c, 1) != 1)	/* the sender has closed it */
				_exit(1);
			(void)!write(back[1], "r", 1);
			if (killed)
				for (;;)
					run(other.fd);
			stops(&other);
			_exit(wrong != NULL);
		}
		{
			struct vm m = killed ? MAKE(1, spin) : MAKE(1, stop);
			char buffer[CMSG_SPACE(sizeof(int))] = { 0 };
			struct iovec iov = { &c, 1 };
			struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = buffer,
					      .msg_controllen = sizeof(buffer) };
			struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
			int fd = (int)m.fd, status = 0;

			cmsg->cmsg_level = SOL_SOCKET;
			cmsg->cmsg_type = SCM_RIGHTS;
			cmsg->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
			WANT(sendmsg(pair[0], &msg, 0) == 1);
			unmake(&m);
			WANT(write(pair[0], "x", 1) == 1 && read(back[0], &c, 1) == 1);
			msleep(20);
			if (killed)
				kill(pid, SIGKILL);
			WANT(waitpid(pid, &status, 0) == pid && status == (killed ? SIGKILL : 0));
		}
		for (int i = 0; i < 2; i++) {
			close(pair[i]);
			close(back[i]);
		}
	}
}

/*
 * One thread holds the VM's lock for as long as we like: its argument is on a
 * page that nobody delivers (userfaultfd). Another process is in HVI_RUN and
 * must be killable all the same.
 */
static struct { long fd; void *page; } stuck;

static void *stuck_thread(void *arg)
{
	struct hvi_ept set = { 0, 1, (unsigned long)stuck.page };

	(void)arg;
	(void)hvi_call(stuck.fd, HVI_EPT_SET, &set);
	return NULL;
}

static void killed_without_the_lock(void)
{
	struct vm m = MAKE(1, spin);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), status = 0;
	pthread_t thread;
	pid_t pid;

	reg.range.start = (unsigned long)page;
	reg.range.len = 4096;
	WANT(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &reg) == 0);
	pid = fork();
	if (!pid)
		for (;;)
			run(m.fd);
	msleep(50);
	stuck.fd = m.fd;
	stuck.page = page;
	WANT(pthread_create(&thread, NULL, stuck_thread, NULL) == 0);
	msleep(50);
	kill(pid, SIGKILL);
	for (int i = 0; i < 100 && waitpid(pid, &status, WNOHANG) == 0; i++)
		msleep(20);
	WANT(WIFSIGNALED(status));
	close(uffd);		/* the page is delivered as zeros: a bad range */
	pthread_join(thread, NULL);
	munmap(page, 4096);
	unmake(&m);
}

/* Every word that is checked flips between good and bad while another thread runs. */
static volatile int flipping;

static void *flip(void *arg)
{
	struct vm *m = arg;
	struct hvi_vcpu *v = m->page[0];

	while (flipping) {
		v->view = 0x7fffffff;
		v->reply.action = HVI_REPLY_STEP;
		v->reply.step_view = 0x7fffffff;
		v->exit.reason = HVI_EXIT_EPT;
		v->exit.gpa = ~0ull;
		v->xcr0 = ~0ull;
		v->lstar = 1ull << 63;
		v->mp_state = 0x7fffffff;
		v->event.type = 1;
		v->event.vector = 0xffffff;
		v->dirty = HVI_STATE_ALL;
		v->event.flags = HVI_EVENT_VALID;
		v->view = 0;
		v->reply.action = HVI_REPLY_EMULATE;
		v->reply.range[0] = (struct hvi_emulate_range){ .gpa = 0x8ff8, .len = 8, .offset = 0 };
		v->reply.range[0].offset = 0xfffffff0;
		v->reply.flags = HVI_REPLY_SPARE | HVI_REPLY_WRITE;
		v->reply.range[0].offset = 0;
		v->reply.range[HVI_EMULATE_RANGES - 1] = (struct hvi_emulate_range){ .gpa = 0x8000, .len = 4096 };
		v->reply.range[HVI_EMULATE_RANGES - 1].offset = ~0u;
		v->reply.range[HVI_EMULATE_RANGES - 1].len = ~0u;
		v->reply.flags = ~0u;
		v->reply.flags = 0;
		v->reply.action = HVI_REPLY_RESUME;
		v->exit.reason = HVI_EXIT_XSETBV;
		v->exit.value = ~0ull;
		v->xcr0 = 1;
		v->lstar = 0;
		v->mp_state = HVI_MP_RUNNING;
		v->event.type = HVI_EVENT_NMI;
		v->event.vector = 2;
		v->event.flags = 0;
	}
	return NULL;
}

static void flipped(void)
{
	struct vm m = MAKE(1, stop);
	struct hvi_spare spare = { .count = 1 };
	pthread_t thread;
	unsigned ran = 0;

	WANT(hvi_call(m.fd, HVI_ADD_SPARE, &spare) == 0);
	flipping = 1;
	WANT(pthread_create(&thread, NULL, flip, &m) == 0);
	for (int i = 0; i < 5000; i++) {
		struct hvi_run r = { .flags = HVI_RUN_DEADLINE, .deadline = m.page[0]->tsc + 20000 };

		real_mode(m.page[0], CODE);
		ran += hvi_call(m.fd, HVI_RUN, &r) == 0;
	}
	flipping = 0;
	pthread_join(thread, NULL);
	WANT(ran > 10);
	unmake(&m);
}

/* ---- signals, tracers -------------------------------------------------------------------- */

static volatile unsigned rings;

static void on_alarm(int sig)
{
	(void)sig;
	rings++;
}

static void alarms(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval every = { { 0, 1000 }, { 0, 1000 } }, never = { { 0, 0 }, { 0, 0 } };
	struct vm m = MAKE(2, spin);
	unsigned interrupted = 0, moved = 0;
	unsigned char before;

	rings = 0;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	for (int i = 0; i < 300; i++) {
		before = m.ram[COUNTER];
		interrupted += run(m.fd) == -EINTR;
		moved += m.ram[COUNTER] != before;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	WANT(interrupted == 300 && rings >= 290);
	WANT(moved > 200);		/* the guest gets on in between */
	unmake(&m);
}

/*
 * A traced process with a watchpoint of its own runs a guest that has its debug
 * registers on: afterwards the watchpoint still hits, and nothing else does.
 */
static volatile long watched;

static void traced(void)
{
	struct vm m = MAKE(1, stop);
	int status = 0, hits = 0;
	pid_t pid;

	m.page[0]->dr[0] = 0xffffffff81000000;
	m.page[0]->dr[7] = 0x402 | 1 << 16 | 3 << 18;
	m.page[0]->dirty = HVI_STATE_ALL;
	pid = fork();
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		for (int i = 0; i < 20; i++) {
			stops(&m);
			watched = i;
		}
		_exit(wrong != NULL);
	}
	WANT(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	WANT(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]), &watched) == 0);
	WANT(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), 1 | 1 << 16 | 2 << 18) == 0);
	for (;;) {
		WANT(ptrace(PTRACE_CONT, pid, 0, 0) == 0);
		if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
			break;
		hits += WSTOPSIG(status) == SIGTRAP;
		if (WSTOPSIG(status) != SIGTRAP) {
			WANT(!"a stop that is no watchpoint");
			kill(pid, SIGKILL);
		}
	}
	WANT(status == 0 && hits == 20);
	/* A tracer stops it in the middle of HVI_RUN, again and again. */
	memcpy(m.ram + CODE, spin, sizeof(spin));
	pid = fork();
	if (!pid)
		for (;;)
			run(m.fd);
	WANT(ptrace(PTRACE_SEIZE, pid, 0, 0) == 0);
	for (int i = 0; i < 20; i++) {
		msleep(5);
		WANT(ptrace(PTRACE_INTERRUPT, pid, 0, 0) == 0);
		WANT(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
		WANT(ptrace(PTRACE_CONT, pid, 0, 0) == 0);
	}
	kill(pid, SIGKILL);
	WANT(waitpid(pid, &status, 0) == pid);
	unmake(&m);
}

/* ---- the caller's own CPU state ------------------------------------------------------------- */

/* A VM exit empties LDTR, DS and ES: a caller that uses them has them again. */
static void segments(void)
{
	struct vm m = MAKE(1, stop);
	unsigned *low = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	struct user_desc d = { .entry_number = 1, .base_addr = 0x10000000, .limit = 4095, .seg_32bit = 1, .useable = 1 };
	unsigned short es = 1 << 3 | 4 | 3, ds = 0x2b, now_es, now_ds, gs, tr;
	unsigned value = 0;

	*low = 0x5eed;
	WANT(syscall(SYS_modify_ldt, 1, &d, sizeof(d)) == 0);
	asm volatile("mov %0, %%es; mov %1, %%ds" : : "r" (es), "r" (ds));
	stops(&m);
	asm volatile("mov %%es, %0; mov %%ds, %1; lsl %2, %%edx; cmovnz %4, %%edx; mov %%edx, %3"
		     : "=&r" (now_es), "=&r" (now_ds) : "r" ((unsigned)es), "m" (value), "r" (0) : "edx", "cc", "memory");
	WANT(now_es == es && now_ds == ds);
	WANT(value == 4095);		/* the LDT is there */
	asm volatile("mov %0, %%es; mov %0, %%ds" : : "r" (0));
	/* FS and GS selectors cannot be kept: refused. */
	asm volatile("mov %%gs, %0; mov %1, %%gs" : "=&r" (gs) : "r" (ds));
	WANT(run(m.fd) == -EOPNOTSUPP);
	asm volatile("mov %0, %%gs" : : "r" (gs));
	stops(&m);
	/* TR's limit, which a VM exit cuts, carries the I/O permissions. */
	WANT(ioperm(0x3ff, 1, 1) == 0);
	stops(&m);
	asm volatile("in %%dx, %%al" : "=a" (tr) : "d" (0x3ff));
	WANT(ioperm(0x3ff, 1, 0) == 0);
	d = (struct user_desc){ .entry_number = 1, .read_exec_only = 1, .seg_not_present = 1 };
	syscall(SYS_modify_ldt, 1, &d, sizeof(d));
	munmap(low, 4096);
	unmake(&m);
}

/* A system call of 32-bit programs: there is none of them on this device. */
static void compat(void)
{
	struct vm m = MAKE(1, stop);
	void *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	static const unsigned long requests[] = { HVI_GET_INFO, HVI_RUN, HVI_EPT_SET, HVI_CREATE };

	for (unsigned i = 0; i < 4; i++) {
		long r;

		asm volatile("int $0x80" : "=a" (r) : "a" (54), "b" (m.fd), "c" (requests[i]), "d" (low)
			     : "memory", "r8", "r9", "r10", "r11");
		WANT(r == -ENOTTY || r == -ENOSYS);
	}
	stops(&m);
	munmap(low, 4096);
	unmake(&m);
}

/* A port that does not exit is not the host's: the serial line's scratch register. */
static void ports(void)
{
	static const unsigned char code[] = {
		0xba, 0xff, 0x03,	/* mov $0x3ff, %dx */
		0xb0, 0xaa, 0xee,	/* mov $0xaa, %al; out %al, %dx */
		0xb0, 0x00, 0xec,	/* mov $0, %al; in %dx, %al */
		0xa2, 0x00, 0x80,	/* mov %al, COUNTER */
		0x66, 0x31, 0xc0,	/* xor %eax, %eax */
		0xe5, 0x80,		/* in $0x80, %ax */
		0x66, 0xa3, 0x04, 0x80,	/* mov %eax, COUNTER + 4 */
		0xf4, 0xeb, 0xfd,	/* 1: hlt; jmp 1b */
	};
	struct hvi_intercept off = { .kind = HVI_INTERCEPT_IO, .index = 0xffff0000 };
	struct vm m = MAKE(1, code);

	WANT(iopl(3) == 0);
	outb(0x55, 0x3ff);
	WANT(hvi_call(m.fd, HVI_INTERCEPT, &off) == 0);
	WANT(run(m.fd) == HVI_EXIT_IDLE);	/* halted, and nothing to wait for */
	WANT(inb(0x3ff) == 0x55);
	WANT(m.ram[COUNTER] == 0xff && *(unsigned *)(m.ram + COUNTER + 4) == 0xffff);
	iopl(0);
	unmake(&m);
}

/* ---- too much -------------------------------------------------------------------------------- */

static void many_vcpus(void)
{
	struct vm m = MAKE(HVI_MAX_VCPUS, stop);
	struct hvi_view view = { 0 };
	__u32 seen = 0;

	for (int i = 0; i < 400 && seen != 0xffffffff; i++) {
		struct hvi_run r = { 0 };

		WANT(hvi_call(m.fd, HVI_RUN, &r) == 0 && r.reason == HVI_EXIT_IO && r.vcpu < HVI_MAX_VCPUS);
		seen |= 1u << r.vcpu % 32;
	}
	WANT(seen == 0xffffffff);
	for (int i = 1; i < HVI_MAX_VIEWS; i++)
		WANT(hvi_call(m.fd, HVI_VIEW_CREATE, &view) == 0 && view.view == (__u32)i);
	WANT(hvi_call(m.fd, HVI_VIEW_CREATE, &view) == -ENOSPC);
	for (__u32 i = 0; i < HVI_MAX_VCPUS; i++)
		m.page[i]->view = i * 2 + 1;
	stops(&m);
	unmake(&m);
}

static void many_vms(void)
{
	enum { MANY = 2000 };
	static struct vm m[MANY];
	struct rlimit most = { 3 * MANY, 3 * MANY };

	WANT(setrlimit(RLIMIT_NOFILE, &most) == 0);
	for (int i = 0; i < MANY && !wrong; i++) {
		m[i] = MAKE(1, stop);
		stops(&m[i]);
	}
	for (int i = 0; i < MANY && !wrong; i += 7)
		stops(&m[i]);
	for (int i = 0; i < MANY && m[i].vcpus; i++)
		unmake(&m[i]);
}

/* Stores to a page of each of more regions than the tables of single instructions are kept for. */
static void many_regions(void)
{
	enum { REGIONS = 300, SHIFT = 21 };
	/* 1: movl %eax, (%edi); addl $0x200000, %edi; jmp 1b */
	static const unsigned char code[] = { 0x89, 0x07, 0x81, 0xc7, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf6 };
	struct hvi_create create = { .vcpus = 1 };
	struct hvi_memory memory = { .size = (REGIONS + 1ull) << SHIFT, .fd = -1 };
	static struct hvi_ept_range range[REGIONS];
	struct hvi_ept ept = { .count = REGIONS, .ranges = (__u64)(uintptr_t)range };
	long fd = hvi_open();
	unsigned char *ram;
	struct hvi_vcpu *v;

	WANT(hvi_call(fd, HVI_CREATE, &create) == 0);
	WANT(hvi_call(fd, HVI_ADD_MEMORY, &memory) == 0);
	v = hvi_map(fd, HVI_MMAP_VCPU, HVI_VCPU_SIZE);
	ram = hvi_map(fd, HVI_MMAP_RAM, memory.size);
	WANT(v && ram);
	if (!v || !ram)
		return;
	for (unsigned i = 0; i < REGIONS; i++)
		range[i] = (struct hvi_ept_range){ .gfn = (i + 1ull) << (SHIFT - 12), .count = 1, .rights = HVI_R };
	WANT(hvi_call(fd, HVI_EPT_SET, &ept) == 0);
	memcpy(ram + CODE, code, sizeof(code));
	real_mode(v, CODE);
	for (int i = 0; i < HVI_SEGS; i++)
		v->seg[i] = (struct hvi_segment){ .limit = ~0u, .access = i == HVI_CS ? 0xc09b : 0xc093 };
	v->cr0 |= 1;
	v->gpr[HVI_RAX] = 0x12345678;
	v->gpr[HVI_RDI] = 1u << SHIFT;
	v->dirty = HVI_STATE_ALL;
	for (unsigned i = 1; i <= REGIONS && !wrong; i++) {
		WANT(run(fd) == HVI_EXIT_EPT);
		WANT(v->exit.gpa == (__u64)i << SHIFT);
		v->reply.action = i % 3 ? HVI_REPLY_RESUME : HVI_REPLY_EMULATE;
		v->reply.flags = i % 3 ? 0 : HVI_REPLY_WRITE;
	}
	WANT(run(fd) == HVI_EXIT_EPT);
	WANT(v->exit.access & HVI_ACCESS_NO_RAM);
	for (unsigned i = 1; i <= REGIONS; i++)
		WANT(*(volatile unsigned *)(ram + ((size_t)i << SHIFT)) == 0x12345678);
	hvi_unmap(v, HVI_VCPU_SIZE);
	hvi_unmap(ram, memory.size);
	hvi_close(fd);
}

/*
 * With little memory: in a cgroup of its own, since filling a machine takes
 * long. What the module takes for us beyond it is refused, and nobody is killed.
 */
static void limited(const char *most, void (*what)(void))
{
	static const char group[] = "/sys/fs/cgroup/hvi-abuse";
	char path[80];
	int status = 1;
	pid_t pid;

	WANT(mkdir(group, 0755) == 0 || errno == EEXIST);
	pid = fork();
	if (!pid) {
		FILE *f;

		snprintf(path, sizeof(path), "%s/memory.max", group);
		f = fopen(path, "w");
		WANT(f && fputs(most, f) >= 0 && fclose(f) == 0);
		snprintf(path, sizeof(path), "%s/cgroup.procs", group);
		f = fopen(path, "w");
		WANT(f && fputs("0", f) >= 0 && fclose(f) == 0);
		if (!wrong)
			what();
		if (wrong)
			printf("abuse: with %s of memory not so: %s\n", most, wrong);
		fflush(stdout);
		_exit(wrong != NULL);
	}
	WANT(waitpid(pid, &status, 0) == pid && status == 0);
	rmdir(group);
}

/* VMs of 64 GiB that nobody touches: some fit, then it is ENOMEM. */
static void untouched(void)
{
	long fd[16];
	int n, refused = 0;

	for (n = 0; n < 16 && !refused; n++) {
		struct hvi_create create = { .vcpus = 1 };
		struct hvi_memory memory = { .size = 64ull << 30, .fd = -1 };
		struct hvi_view view = { 0 };
		long r;

		fd[n] = hvi_open();
		WANT(fd[n] >= 0 && hvi_call(fd[n], HVI_CREATE, &create) == 0);
		r = hvi_call(fd[n], HVI_ADD_MEMORY, &memory);
		if (r == 0)
			r = hvi_call(fd[n], HVI_VIEW_CREATE, &view);
		WANT(r == 0 || r == -ENOMEM);
		refused = r == -ENOMEM;
	}
	WANT(n == 3 && refused);
	while (n--)
		hvi_close(fd[n]);
}

/* A guest that touches more than there is, and spare pages: ENOMEM, and the VM goes on where there is memory. */
static void touched(void)
{
	static const unsigned char code[] = {
		0x66, 0xbf, 0x00, 0x00, 0x10, 0x00,	/*    mov $0x100000, %edi */
		0x67, 0x88, 0x07,			/* 1: mov %al, (%edi) */
		0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, /*  add $0x1000, %edi */
		0xeb, 0xf4,				/*    jmp 1b */
	};
	struct vm m = MAKE(1, code);
	struct hvi_memory memory = { .gpa = RAM, .size = 1ull << 30, .fd = -1 };
	struct hvi_spare spare = { .count = HVI_MAX_SPARE_PAGES };

	m.ram[COUNTER] = 0;		/* what we and the guest need afterwards: nothing more will be had */
	wrong = NULL;
	WANT(hvi_call(m.fd, HVI_ADD_MEMORY, &memory) == 0);
	WANT(hvi_call(m.fd, HVI_ADD_SPARE, &spare) == -ENOMEM);
	m.page[0]->seg[HVI_DS].limit = 0xffffffff;
	m.page[0]->seg[HVI_DS].access = 0x8093;
	m.page[0]->dirty |= HVI_STATE_SEG;
	WANT(run(m.fd) == -ENOMEM);
	WANT(m.page[0]->gpr[HVI_RDI] > 0x1000000);
	WANT(run(m.fd) == -ENOMEM);
	memcpy(m.ram + CODE, stop, sizeof(stop));
	m.page[0]->rip = CODE;
	m.page[0]->dirty = HVI_STATE_GPR;
	stops(&m);
	unmake(&m);
}

static void memory_limits(void)
{
	limited("400M", untouched);
	limited("64M", touched);
}

/* Ranges that are all of 64 GiB each, 65,536 of them: a caller that is killed goes at once. */
static void endless_call(void)
{
	struct hvi_create create = { .vcpus = 1 };
	struct hvi_memory memory = { .size = 64ull << 30, .fd = -1 };
	struct hvi_ept_range *range = calloc(65536, sizeof(*range));
	struct hvi_ept set = { 0, 65536, (unsigned long)range };
	long fd = hvi_open();
	int status = 0;
	pid_t pid;

	WANT(hvi_call(fd, HVI_CREATE, &create) == 0 && hvi_call(fd, HVI_ADD_MEMORY, &memory) == 0);
	for (int i = 0; i < 65536; i++)
		range[i] = (struct hvi_ept_range){ 0, 1 << 24, i & 1 ? HVI_R : HVI_RWX };
	pid = fork();
	if (!pid) {
		(void)hvi_call(fd, HVI_EPT_SET, &set);
		_exit(0);
	}
	msleep(300);
	kill(pid, SIGKILL);
	for (int i = 0; i < 500 && waitpid(pid, &status, WNOHANG) == 0; i++)
		msleep(20);
	WANT(WIFSIGNALED(status));
	hvi_close(fd);
	free(range);
}

/* ---------------------------------------------------------------------------------------------- */

static const struct { const char *name; void (*run)(void); } cases[] = {
	{ "mappings", mappings }, { "files", files }, { "two-runners", two_runners },
	{ "changed-while-running", changed_while_running }, { "closed-under-it", closed_under_it },
	{ "forked-under-it", forked_under_it }, { "passed-on", passed_on },
	{ "killed-without-the-lock", killed_without_the_lock }, { "flipped", flipped }, { "alarms", alarms },
	{ "traced", traced }, { "segments", segments }, { "compat", compat }, { "ports", ports },
	{ "many-vcpus", many_vcpus }, { "many-vms", many_vms }, { "many-regions", many_regions }, { "memory-limits", memory_limits },
	{ "endless-call", endless_call },
};
#define CASES ((int)(sizeof(cases) / sizeof(cases[0])))

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Each case in a process of its own: what one spoils is not the next one's. */
static bool passes(int i)
{
	double from = seconds();
	int status = 0;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(60);
		cases[i].run();
		if (wrong)
			printf("abuse: %s: not so: %s\n", cases[i].name, wrong);
		fflush(stdout);
		_exit(wrong != NULL);
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		printf("abuse: %s: signal %d\n", cases[i].name, WTERMSIG(status));
	printf("abuse: %-24s %s (%.1f s)\n", cases[i].name, status ? "FAIL" : "ok", seconds() - from);
	return !status;
}

int main(int argc, char **argv)
{
	int failed = 0;
	long fd = hvi_open();

	if (fd < 0) {
		fprintf(stderr, "abuse: /dev/hvi: %s\n", strerror((int)-fd));
		return 3;
	}
	hvi_close(fd);
	for (int a = 1; a < argc; a++) {
		int i = 0;

		while (i < CASES && strcmp(argv[a], cases[i].name))
			i++;
		if (i == CASES) {
			fprintf(stderr, "abuse: no case %s\n", argv[a]);
			return 2;
		}
		failed += !passes(i);
	}
	for (int i = 0; argc == 1 && i < CASES; i++)
		failed += !passes(i);
	printf("abuse: %d failed\n", failed);
	return failed ? 1 : 0;
}
