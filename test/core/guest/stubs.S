/* SPDX-License-Identifier: MIT */
/*
 * Stubs: an instruction (or the few that one needs) and RET. They run in ring 0
 * where they are linked and in ring 3 at USER_STUBS, so they use no symbol.
 * SI is what is read, DI what is written or changed, AX / XMM0 / YMM0 the value,
 * CX the count. What touches the stack does it at DI or SI, with the real stack
 * pointer in BP. ../stubs.ts says what each accesses.
 */
#include "asm.h"

	.section .stubs, "ax"
.macro STUB name
	.balign 8, 0xcc
	.globl stub_\name
stub_\name:
.endm
/* ';' would end a macro's arguments, so two instructions are written out. */
.macro ONE name, insn:vararg
	STUB \name
	\insn
	ret
.endm
/* On a stack of its own. */
.macro ON name, at, insn:vararg
	STUB \name
	mov SP, BP
	mov \at, SP
	\insn
	mov BP, SP
	ret
.endm

	.globl stub_user_return
stub_user_return:
	int $VECTOR_RETURN
	.globl landing			/* of those that jump through memory */
landing:
	mov BP, SP
	ret

/* ---- stores -------------------------------------------------------------------- */

ONE mov1_st, movb %al, (DI)
ONE mov2_st, movw %ax, (DI)
ONE mov4_st, movl %eax, (DI)
ONE mov1i_st, movb $0x5a, (DI)
ONE mov4i_st, movl $0x12345678, (DI)
ONE movnti4_st, movnti %eax, (DI)
ONE movd_st, movd %xmm0, (DI)
ONE movq_st, movq %xmm0, (DI)
ONE movss_st, movss %xmm0, (DI)
ONE movsd_st, movsd %xmm0, (DI)
ONE movlps_st, movlps %xmm0, (DI)
ONE movhps_st, movhps %xmm0, (DI)
ONE movlpd_st, movlpd %xmm0, (DI)
ONE movhpd_st, movhpd %xmm0, (DI)
ONE movups_st, movups %xmm0, (DI)
ONE movupd_st, movupd %xmm0, (DI)
ONE movdqu_st, movdqu %xmm0, (DI)
ONE movaps_st, movaps %xmm0, (DI)
ONE movapd_st, movapd %xmm0, (DI)
ONE movdqa_st, movdqa %xmm0, (DI)
ONE movntdq_st, movntdq %xmm0, (DI)
ONE movntps_st, movntps %xmm0, (DI)
ONE vmovups_st, vmovups %ymm0, (DI)
ONE vmovdqu_st, vmovdqu %ymm0, (DI)
ONE vmovntdq_st, vmovntdq %ymm0, (DI)
ONE maskmovdqu, maskmovdqu %xmm1, %xmm0
ONE setz, setz (DI)
ONE setnb, setnb (DI)
STUB fst4; fld1; fstps (DI); ret
STUB fst8; fldpi; fstpl (DI); ret
STUB fst10; fldl2t; fstpt (DI); ret
STUB fist4; fldpi; fistpl (DI); ret
ONE fnstcw, fnstcw (DI)
ONE fnstsw, fnstsw (DI)
ONE stmxcsr, stmxcsr (DI)
ONE fxsave, fxsave (DI)
ONE xsave, xsave (DI)
ONE sidt, sidt (DI)
ONE sgdt, sgdt (DI)
ONE sldt, sldt (DI)
ONE str, str (DI)
ONE smsw, smsw (DI)

/* ---- strings ----------------------------------------------------------------------- */

ONE stosb, stosb
ONE stosw, stosw
ONE stosl, stosl
ONE rep_stosb, rep stosb
ONE rep_stosl, rep stosl
STUB rep_stosl_down; std; rep stosl; cld; ret
ONE movsb, movsb
ONE movsw, movsw
ONE movsl, movsl
ONE rep_movsb, rep movsb
ONE rep_movsl, rep movsl
STUB rep_movsb_down; std; rep movsb; cld; ret
ONE lodsb, lodsb
ONE lodsl, lodsl
ONE rep_lodsw, rep lodsw
ONE scasb, scasb
ONE repne_scasl, repne scasl
ONE cmpsb, cmpsb
ONE repe_cmpsl, repe cmpsl

/* ---- read, change, write --------------------------------------------------------------- */

ONE add1, addb %al, (DI)
ONE add2, addw %ax, (DI)
ONE add4, addl %eax, (DI)
ONE add4i, addl $7, (DI)
STUB adc4; stc; adcl %eax, (DI); ret
ONE sub2, subw %ax, (DI)
STUB sbb4; stc; sbbl %eax, (DI); ret
ONE and1, andb %al, (DI)
ONE and4, andl %eax, (DI)
ONE or4, orl %eax, (DI)
ONE xor4, xorl %eax, (DI)
ONE inc4, incl (DI)
ONE dec1, decb (DI)
ONE not4, notl (DI)
ONE neg2, negw (DI)
ONE shl4, shll %cl, (DI)
ONE shr1, shrb $1, (DI)
ONE sar4, sarl $3, (DI)
ONE rol4, roll $9, (DI)
ONE ror2, rorw $3, (DI)
STUB rcl4; stc; rcll $1, (DI); ret
STUB rcr4; stc; rcrl $1, (DI); ret
ONE shld4, shldl $5, %eax, (DI)
ONE shrd4, shrdl %cl, %eax, (DI)
ONE bts4i, btsl $17, (DI)
ONE btr4i, btrl $17, (DI)
ONE btc4i, btcl $17, (DI)
ONE bts4_near, btsl %ecx, (DI)
ONE btr4_far, btrl %edx, (DI)
ONE btc4_far, btcl %edx, (DI)
ONE xchg1, xchgb %al, (DI)
ONE xchg4, xchgl %eax, (DI)
ONE xadd4, xaddl %eax, (DI)
STUB cmpxchg4_equal; movl (DI), %eax; cmpxchgl %ecx, (DI); ret
ONE cmpxchg4_other, cmpxchgl %ecx, (DI)
ONE cmpxchg8b, cmpxchg8b (DI)
ONE lock_add4, lock addl %eax, (DI)
ONE lock_or1, lock orb %al, (DI)
ONE lock_inc4, lock incl (DI)
ONE lock_btr4, lock btrl $17, (DI)
ONE lock_xadd4, lock xaddl %eax, (DI)
ONE lock_cmpxchg4, lock cmpxchgl %ecx, (DI)
ONE lock_cmpxchg8b, lock cmpxchg8b (DI)

/* ---- loads --------------------------------------------------------------------------------- */

ONE mov1_ld, movb (SI), %al
ONE mov2_ld, movw (SI), %ax
ONE mov4_ld, movl (SI), %eax
ONE movzx1_ld, movzbl (SI), %eax
ONE movzx2_ld, movzwl (SI), %eax
ONE movsx1_ld, movsbl (SI), %eax
ONE movsx2_ld, movswl (SI), %eax
ONE movq_ld, movq (SI), %xmm1
ONE movhps_ld, movhps (SI), %xmm1
ONE movups_ld, movups (SI), %xmm1
ONE movaps_ld, movaps (SI), %xmm1
ONE vmovups_ld, vmovups (SI), %ymm1
ONE addps_ld, addps (SI), %xmm1
ONE cvtsi2sd_ld, cvtsi2sdl (SI), %xmm1
ONE cvtps2pd_ld, cvtps2pd (SI), %xmm1
ONE cmp4_ld, cmpl %eax, (SI)
ONE test4_ld, testl %eax, (SI)
ONE add4_ld, addl (SI), %eax
ONE imul4_ld, imull (SI), %eax
ONE mul4_ld, mull (SI)
STUB div4_ld; xorl %edx, %edx; divl (SI); ret
ONE bt4_ld, btl $17, (SI)
ONE bt4_far, btl %edx, (SI)
STUB fld4_ld; flds (SI); fstp %st(0); ret
STUB fild8_ld; fildll (SI); fstp %st(0); ret
STUB xlat_ld; mov SI, BX; xlat; ret
STUB fxrstor; fxsave (DI); fxrstor (DI); ret
# x87 is in use, by every CPU's reckoning (XINUSE), so that its part is saved and read back.
STUB xrstor; fninit; fld1; xsave (DI); xrstor (DI); fninit; ret

/* ---- the stack, and jumps through memory ------------------------------------------------------- */

ON push_st, DI, push AX
ON push_i, DI, push $0x77
ON push_m, DI, push (SI)
ON push2, DI, pushw %ax
ON pushf_st, DI, pushf
STUB call_st; mov SP, BP; mov DI, SP; call 1f; 1: mov BP, SP; ret
STUB enter_st
	mov SP, BX
	mov DI, SP
	enter $16, $0
	mov BX, SP
	ret
ON pop_ld, SI, pop AX
ON pop_m, SI, pop (DI)
ON popf_ld, SI, popf
STUB leave_ld
	mov SP, DX
	mov SI, BP
	leave
	mov DX, SP
	ret
STUB ret_ld
	mov SP, BP
	mov SI, SP
	ret
STUB call_m
	mov SP, BP
	mov DI, SP
	call *(SI)
STUB jmp_m
	mov SP, BP
	jmp *(SI)
ON int_st, DI, int $VECTOR_FRAME

/* ---- 64 bits ------------------------------------------------------------------------------------ */

#ifdef __x86_64__
ONE mov8_st, movq %rax, (DI)
ONE mov8i_st, movq $-2, (DI)
ONE movnti8_st, movnti %rax, (DI)
ONE fxsave64, fxsave64 (DI)
ONE xsave64, xsave64 (DI)
ONE stosq, stosq
ONE rep_stosq, rep stosq
ONE movsq, movsq
ONE rep_movsq, rep movsq
ONE add8, addq %rax, (DI)
ONE xor8, xorq %rax, (DI)
ONE inc8, incq (DI)
ONE neg8, negq (DI)
ONE shl8, shlq %cl, (DI)
ONE shld8, shldq $5, %rax, (DI)
ONE bts8_far, btsq %rdx, (DI)
ONE xchg8, xchgq %rax, (DI)
ONE xadd8, lock xaddq %rax, (DI)
ONE cmpxchg8, lock cmpxchgq %rcx, (DI)
ONE cmpxchg16b, cmpxchg16b (DI)
ONE lock_cmpxchg16b, lock cmpxchg16b (DI)
ONE mov8_ld, movq (SI), %rax
ONE movsxd_ld, movslq (SI), %rax
ONE cmp8_ld, cmpq %rax, (SI)
ONE imul8_ld, imulq (SI), %rax
ONE movs_indexed, movl (%rsi,%rcx,4), %r8d
ONE mov_gs, movl %gs:(%rsi), %r8d
#else
ON pusha_st, DI, pusha
#endif

/* ---- system registers (ring 0) --------------------------------------------------------------------- */

ONE lidt, lidt (SI)
ONE lgdt, lgdt (SI)
ONE wrmsr, wrmsr
ONE rdmsr, rdmsr
ONE set_cr0, mov AX, %cr0
ONE get_cr0, mov %cr0, AX
ONE set_cr3, mov AX, %cr3
ONE get_cr3, mov %cr3, AX
ONE set_cr4, mov AX, %cr4
ONE get_cr4, mov %cr4, AX
STUB cr0_clts; mov AX, %cr0; clts; ret	/* outside, TS would stop the kernel's own moves */
STUB lmsw_clts; lmsw %ax; clts; ret
ONE xsetbv, xsetbv
ONE xgetbv, xgetbv

/* ---- others ------------------------------------------------------------------------------------------ */

ONE nothing, nop
ONE undefined, ud2
ONE breakpoint, int3
STUB divide; xorl %ecx, %ecx; divl %ecx; ret
STUB call_ax
	call *AX
	ret
STUB store_loop			/* CX stores of 4 bytes at DI, the values counting down */
1:	movl %ecx, (DI)
	dec CX
	jnz 1b
	ret
STUB workload			/* SI: words' address, CX: how many, DX: rounds, AX: seed */
#ifdef __x86_64__
	mov %rsi, %rdi
	mov %ecx, %esi
	mov %eax, %ecx
	call workload
#else
	push %eax
	push %edx
	push %ecx
	push %esi
	call workload
	add $16, %esp
#endif
	ret
