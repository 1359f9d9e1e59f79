/* SPDX-License-Identifier: MIT */
/*
 * 64-bit long mode. Conventions: RSI is what is read, RDI what is written,
 * RAX / XMM0 / YMM0 the value, RCX the count.
 */
#include "guest.inc"
	.code64
	.text
	.globl _start
_start:
	HANDLERS iretq, %rsp, 8

CASE nothing
	DONE
CASE nops
	nop
	nop
	nop
	DONE
CASE spin
	jmp .
CASE wrmsr_spin
	wrmsr
	jmp .
CASE spin_pause
1:	pause
	jmp 1b

/* ---- plain reads and writes ------------------------------------------------ */
CASE ld1
	movb (%rsi), %al
	DONE
CASE ld2
	movw (%rsi), %ax
	DONE
CASE ld4
	movl (%rsi), %eax
	DONE
CASE ld8
	movq (%rsi), %rax
	DONE
CASE ld16
	movups (%rsi), %xmm0
	movups %xmm0, %xmm1
	DONE
CASE ld32
	vmovups (%rsi), %ymm0
	DONE
CASE st1
	movb %al, (%rdi)
	DONE
CASE st2
	movw %ax, (%rdi)
	DONE
CASE st4
	movl %eax, (%rdi)
	DONE
CASE st8
	movq %rax, (%rdi)
	DONE
CASE st16
	movups %xmm0, (%rdi)
	DONE
CASE st32
	vmovups %ymm0, (%rdi)
	DONE
CASE st8x2			/* the same page twice */
	movq %rax, (%rdi)
	movq %rax, 8(%rdi)
	DONE
CASE st8_ld8
	movq %rax, (%rdi)
	movq (%rsi), %rbx
	DONE
CASE movnti
	movnti %rax, (%rdi)
	DONE
CASE movaps_st
	movaps %xmm0, (%rdi)
	DONE
CASE movlps_st
	movlps %xmm0, (%rdi)
	DONE
CASE addps_ld
	addps (%rsi), %xmm0
	DONE
CASE gather			/* 8 DWORDs at RSI + the indices at RDX */
	vpcmpeqd %ymm1, %ymm1, %ymm1
	vmovdqu (%rdx), %ymm2
	vpgatherdd %ymm1, (%rsi,%ymm2,1), %ymm0
	DONE
CASE movzx1
	movzbl (%rsi), %eax
	DONE
CASE movsx4
	movslq (%rsi), %rax
	DONE
CASE cmp8
	cmpq %rax, (%rsi)
	DONE
CASE test8
	testq %rax, (%rsi)
	DONE
CASE mul8
	mulq (%rsi)
	DONE
CASE div8
	divq (%rsi)
	DONE
CASE prefetch
	prefetcht0 (%rsi)
	DONE
CASE clflush
	clflush (%rsi)
	DONE

/* ---- read-modify-write ------------------------------------------------------ */
CASE add1
	addb %al, (%rdi)
	DONE
CASE add2
	addw %ax, (%rdi)
	DONE
CASE add4
	addl %eax, (%rdi)
	DONE
CASE add8
	addq %rax, (%rdi)
	DONE
CASE sub8
	subq %rax, (%rdi)
	DONE
CASE adc8
	adcq %rax, (%rdi)
	DONE
CASE sbb8
	sbbq %rax, (%rdi)
	DONE
CASE and8
	andq %rax, (%rdi)
	DONE
CASE or8
	orq %rax, (%rdi)
	DONE
CASE xor8
	xorq %rax, (%rdi)
	DONE
CASE inc8
	incq (%rdi)
	DONE
CASE dec4
	decl (%rdi)
	DONE
CASE not8
	notq (%rdi)
	DONE
CASE neg8
	negq (%rdi)
	DONE
CASE shl8
	shlq $4, (%rdi)
	DONE
CASE rol4
	roll %cl, (%rdi)
	DONE
CASE rcr8
	rcrq $1, (%rdi)
	DONE
CASE shld8
	shldq $8, %rax, (%rdi)
	DONE
CASE bts8
	btsq $5, (%rdi)
	DONE
CASE btr_reg			/* bit string: the address depends on RCX */
	btrq %rcx, (%rdi)
	DONE
CASE setcc
	sete (%rdi)
	DONE
CASE xchg1
	xchgb %al, (%rdi)
	DONE
CASE xchg2
	xchgw %ax, (%rdi)
	DONE
CASE xchg4
	xchgl %eax, (%rdi)
	DONE
CASE xchg8
	xchgq %rax, (%rdi)
	DONE
CASE cmpxchg8
	cmpxchgq %rbx, (%rdi)
	DONE
CASE lock_add1
	lock addb %al, (%rdi)
	DONE
CASE lock_add2
	lock addw %ax, (%rdi)
	DONE
CASE lock_add4
	lock addl %eax, (%rdi)
	DONE
CASE lock_add8
	lock addq %rax, (%rdi)
	DONE
CASE lock_inc4
	lock incl (%rdi)
	DONE
CASE lock_bts8
	lock btsq $5, (%rdi)
	DONE
CASE lock_xadd4
	lock xaddl %eax, (%rdi)
	DONE
CASE lock_xadd8
	lock xaddq %rax, (%rdi)
	DONE
CASE lock_cmpxchg4
	lock cmpxchgl %ebx, (%rdi)
	DONE
CASE lock_cmpxchg8
	lock cmpxchgq %rbx, (%rdi)
	DONE
CASE lock_cmpxchg8b
	lock cmpxchg8b (%rdi)
	DONE
CASE lock_cmpxchg16b
	lock cmpxchg16b (%rdi)
	DONE
CASE lock_neg8
	lock negq (%rdi)
	DONE

/* ---- strings ----------------------------------------------------------------- */
CASE movsb
	movsb
	DONE
CASE movsq
	movsq
	DONE
CASE rep_movsb
	rep movsb
	DONE
CASE rep_movsq
	rep movsq
	DONE
CASE rep_movsq_down
	std
	rep movsq
	cld
	DONE
CASE rep_stosb
	rep stosb
	DONE
CASE rep_stosq
	rep stosq
	DONE
CASE rep_lodsb
	rep lodsb
	DONE
CASE repe_cmpsb
	repe cmpsb
	DONE
CASE repne_scasb
	repne scasb
	DONE

/* ---- stack and control transfer ------------------------------------------------ */
CASE push_rax
	pushq %rax
	DONE
CASE push_mem			/* reads (RSI), writes the stack */
	pushq (%rsi)
	DONE
CASE pop_rax
	popq %rax
	DONE
CASE pop_mem			/* reads the stack, writes (RDI) */
	popq (%rdi)
	DONE
CASE push_imm
	pushq $0x1234
	DONE
CASE pushf
	pushfq
	DONE
CASE popf
	popfq
	DONE
CASE enter_frame
	enterq $16, $0
	DONE
CASE leave_frame
	leaveq
	DONE
CASE call_near
	call 1f
	ud2
1:	DONE
CASE call_rax
	call *%rax
	DONE
CASE call_mem
	call *(%rsi)
	DONE
CASE jmp_rax
	jmp *%rax
CASE jmp_mem
	jmp *(%rsi)
	.globl done
done:	DONE
CASE ret_near
	ret
CASE ret_far
	lretq
CASE jmp_far			/* m16:64 at RSI */
	rex.w ljmp *(%rsi)
CASE call_far
	rex.w lcall *(%rsi)
	DONE
CASE int_30
	int $0x30
	DONE
CASE int3
	int3
	DONE
CASE iret
	iretq
CASE syscall
	syscall
	DONE
CASE sysret
	sysretq
CASE ud2
	ud2
	DONE
CASE ss_shadow			/* MOV SS holds off events for one instruction */
	movw %ax, %ss
	nop
	nop
	DONE
CASE sti_nops
	sti
	nop
	nop
	DONE
CASE cli_nops
	cli
	nop
	nop
	DONE
CASE tf_nops			/* single-step trap after the NOP */
	pushfq
	orq $0x100, (%rsp)
	popfq
	nop
	nop
	DONE

/* ---- descriptors ------------------------------------------------------------------ */
CASE load_ds
	movw %ax, %ds
	DONE
CASE load_fs
	movw %ax, %fs
	DONE
CASE load_gs
	movw %ax, %gs
	DONE
CASE lss_mem
	.byte 0x48
	lss (%rsi), %esp
	DONE
CASE lar
	larl %eax, %ebx
	DONE
CASE lsl
	lsll %eax, %ebx
	DONE
CASE verw
	verw %ax
	DONE
CASE lgdt
	lgdt (%rsi)
	DONE
CASE lidt
	lidt (%rsi)
	DONE
CASE lldt
	lldt %ax
	DONE
CASE lldt_mem
	lldt (%rsi)
	DONE
CASE ltr
	ltr %ax
	DONE
CASE sgdt
	sgdt (%rdi)
	DONE
CASE sidt
	sidt (%rdi)
	DONE
CASE sldt
	sldt %eax
	DONE
CASE sldt_mem
	sldt (%rdi)
	DONE
CASE str_reg
	str %eax
	DONE
CASE str_mem
	str (%rdi)
	DONE

/* ---- control registers, MSRs, the rest ----------------------------------------------- */
CASE mov_cr0
	movq %rax, %cr0
	DONE
CASE mov_cr3
	movq %rax, %cr3
	DONE
CASE mov_cr4
	movq %rax, %cr4
	DONE
CASE mov_cr8
	movq %rax, %cr8
	DONE
CASE get_cr8
	movq %cr8, %rax
	DONE
CASE get_crs
	movq %cr0, %rax
	movq %cr2, %rbx
	movq %cr3, %rcx
	movq %cr4, %rdx
	DONE
CASE clts
	clts
	DONE
CASE lmsw
	lmsw %ax
	DONE
CASE mov_dr7
	movq %rax, %dr7
	DONE
CASE get_dr
	movq %dr0, %rax
	movq %dr7, %rbx
	DONE
CASE rdmsr
	rdmsr
	DONE
CASE wrmsr
	wrmsr
	DONE
CASE xsetbv
	xsetbv
	DONE
CASE xgetbv
	xgetbv
	DONE
CASE vmcall
	vmcall
	DONE
CASE cpuid
	cpuid
	DONE
CASE hlt
	hlt
	DONE
CASE rdtsc
	rdtsc
	DONE
CASE invlpg
	invlpg (%rsi)
	DONE
CASE wbinvd
	wbinvd
	DONE
CASE swapgs
	swapgs
	DONE

/* ---- I/O ------------------------------------------------------------------------------- */
CASE out1
	outb %al, %dx
	DONE
CASE out2
	outw %ax, %dx
	DONE
CASE out4
	outl %eax, %dx
	DONE
CASE out_imm
	outb %al, $0x42
	DONE
CASE in1
	inb %dx, %al
	DONE
CASE in2
	inw %dx, %ax
	DONE
CASE in4
	inl %dx, %eax
	DONE
CASE in_imm
	inl $0x42, %eax
	DONE
CASE outsb
	outsb
	DONE
CASE rep_outsw
	rep outsw
	DONE
CASE insl
	insl
	DONE
CASE rep_insb
	rep insb
	DONE

/* ---- extended state ---------------------------------------------------------------------- */
CASE fxsave
	fxsave64 (%rdi)
	DONE
CASE fxrstor
	fxrstor64 (%rsi)
	DONE
CASE xsave
	xsave64 (%rdi)
	DONE
CASE xrstor
	xrstor64 (%rsi)
	DONE
CASE fnstenv
	fnstenv (%rdi)
	DONE
CASE fstp8
	fld1
	fstpl (%rdi)
	DONE
CASE fild8
	fildq (%rsi)
	fistpq (%rdi)
	DONE

/* ---- stress: RCX rounds of a counter at RDI that two vCPUs share --------------------------- */
CASE count_locked
1:	lock incq (%rdi)
	movq %rcx, (%rsi)	/* the hooked store */
	decq %rcx
	jnz 1b
	DONE
CASE count_hooked		/* the hooked instruction is the count itself */
1:	lock incq (%rdi)
	decq %rcx
	jnz 1b
	DONE
CASE ping			/* wait for *RSI == RAX, then *RDI = RBX */
1:	pause
	cmpq %rax, (%rsi)
	jne 1b
	movq %rbx, (%rdi)
	DONE
CASE watch_flag			/* spin until the byte at RSI is not 0 */
1:	cmpb $0, (%rsi)
	je 1b
	DONE
