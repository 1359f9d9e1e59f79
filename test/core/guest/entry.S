/* SPDX-License-Identifier: MIT */
/* Into the kernel by exceptions, and into stubs and back. */
#include "asm.h"

/* ---- exceptions -------------------------------------------------------------- */

	.text
	.balign 16
	.globl handlers			/* of vectors 0..31, 16 bytes each */
handlers:
	.set vector, 0
	.rept 32
	.balign 16, 0xcc
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
	push $0
	.endif
	push $vector
	jmp exception
	.set vector, vector + 1
	.endr

/* struct frame in kernel.h is what stands on the stack then. */
exception:
	cld
#ifdef __x86_64__
	.irp r, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rsp, rbx, rdx, rcx, rax
	push %\r
	.endr
	mov %rsp, %rdi
	call trap
	pop %rax
	pop %rcx
	pop %rdx
	pop %rbx
	add $8, %rsp
	.irp r, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
	pop %\r
	.endr
#else
	.irp r, edi, esi, ebp, esp, ebx, edx, ecx, eax
	push %\r
	.endr
	push %esp
	call trap
	add $4, %esp
	pop %eax
	pop %ecx
	pop %edx
	pop %ebx
	add $4, %esp
	pop %ebp
	pop %esi
	pop %edi
#endif
	add $2 * WORD, SP
	IRET

/* INT of the stub: its frame is what counts. The stub's own stack pointer is in BP. */
	.globl frame_handler
frame_handler:
	mov BP, SP
	ret

/* ---- stubs ------------------------------------------------------------------- */

.macro EACH_GPR what
	\what 0, AX
	\what 1, CX
	\what 2, DX
	\what 3, BX
	\what 5, BP
	\what 6, SI
	\what 7, DI
#ifdef __x86_64__
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	\what \n, %r\n
	.endr
#endif
.endm
.macro LOAD_GPR n, r
	mov MEM(regs_in + 8 * \n), \r
.endm
.macro STORE_GPR n, r
	mov \r, MEM(regs_out + 8 * \n)
.endm

.macro ENTER_RUN target
	push BX
	push BP
	push SI
	push DI
#ifdef __x86_64__
	push %r12
	push %r13
	push %r14
	push %r15
#endif
	mov \target, MEM(run_target)
	mov SP, MEM(run_sp)
	cmpb $0, MEM(have_avx)
	jne 1f
	.irp n, 0, 1, 2, 3
	movups MEM(vectors_in + 32 * \n), %xmm\n
	.endr
	jmp 2f
1:	.irp n, 0, 1, 2, 3
	vmovups MEM(vectors_in + 32 * \n), %ymm\n
	.endr
2:	fninit
.endm

/* void run_kernel(word target): ring 0, on this stack. */
	.globl run_kernel
run_kernel:
#ifdef __x86_64__
	ENTER_RUN %rdi
#else
	mov 4(%esp), %eax
	ENTER_RUN %eax
#endif
	mov MEM(flags_in), AX
	push AX
	popf
	EACH_GPR LOAD_GPR
	call *MEM(run_target)
	pushf
	EACH_GPR STORE_GPR
	pop AX
	mov AX, MEM(flags_out)
	/* falls through */

/* Back from run_kernel or run_user, wherever the stack is now. */
	.globl leave_run
leave_run:
	mov MEM(run_sp), SP
	push $2
	popf
	cmpb $0, MEM(have_avx)
	jne 1f
	.irp n, 0, 1, 2, 3
	movups %xmm\n, MEM(vectors_out + 32 * \n)
	.endr
	jmp 2f
1:	.irp n, 0, 1, 2, 3
	vmovups %ymm\n, MEM(vectors_out + 32 * \n)
	.endr
2:
#ifdef __x86_64__
	pop %r15
	pop %r14
	pop %r13
	pop %r12
#endif
	pop DI
	pop SI
	pop BP
	pop BX
	ret

/* void run_user(word target): ring 3, on the user's stack, whose top is the address of stub_user_return. */
	.globl run_user
run_user:
#ifdef __x86_64__
	ENTER_RUN %rdi
#else
	mov 4(%esp), %eax
	ENTER_RUN %eax
#endif
	push $USER_DS
	push $USER_STACK + 4096 - WORD
	push MEM(flags_in)
	push $USER_CS
	push MEM(run_target)
	EACH_GPR LOAD_GPR
	IRET

/* VECTOR_RETURN. */
	.globl return_handler
return_handler:
	EACH_GPR STORE_GPR
	mov 2 * WORD(SP), AX
	mov AX, MEM(flags_out)
	jmp leave_run
