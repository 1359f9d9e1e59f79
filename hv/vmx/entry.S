/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * entry.S - into the guest and out of it again.
 *
 * int hvi_vmx_enter(u64 gpr[16], u32 flags): 0 after a VM exit, 1 when
 * VMLAUNCH or VMRESUME failed (SDM 30.2). gpr is in the order of hvi.h; RSP is
 * in the VMCS. flags: bit 1, the VMCS is launched; bit 0, the CPU must forget
 * in its buffers what the host did (VERW), after the last load from memory. Interrupts are off. RFLAGS comes back with IF clear, as the VM
 * exit leaves it.
 */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include "vmcs.h"

	.text

SYM_FUNC_START(hvi_vmx_enter)
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rdi
	mov	$F_HOST_RSP, %eax
	vmwrite	%rsp, %rax
	shl	$31, %esi		/* CF: launched, SF: VERW; MOV leaves the flags alone */
	mov	0x00(%rdi), %rax
	mov	0x08(%rdi), %rcx
	mov	0x10(%rdi), %rdx
	mov	0x18(%rdi), %rbx
	mov	0x28(%rdi), %rbp
	mov	0x30(%rdi), %rsi
	mov	0x40(%rdi), %r8
	mov	0x48(%rdi), %r9
	mov	0x50(%rdi), %r10
	mov	0x58(%rdi), %r11
	mov	0x60(%rdi), %r12
	mov	0x68(%rdi), %r13
	mov	0x70(%rdi), %r14
	mov	0x78(%rdi), %r15
	mov	0x38(%rdi), %rdi
	jns	4f
	verw	.Lselector(%rip)	/* changes ZF alone */
4:	jnc	1f
	vmresume
	jbe	2f			/* always: VMfail sets CF or ZF */
	jmp	.Lexit
1:	vmlaunch
	jbe	2f
	jmp	.Lexit
2:	pop	%rdi
	mov	$1, %eax
	jmp	3f

	/* HOST_RIP: a VM exit comes out here, with the stack as it was. */
.Lexit:
	push	%rdi
	mov	8(%rsp), %rdi
	mov	%rax, 0x00(%rdi)
	mov	%rcx, 0x08(%rdi)
	mov	%rdx, 0x10(%rdi)
	mov	%rbx, 0x18(%rdi)
	mov	%rbp, 0x28(%rdi)
	mov	%rsi, 0x30(%rdi)
	mov	%r8, 0x40(%rdi)
	mov	%r9, 0x48(%rdi)
	mov	%r10, 0x50(%rdi)
	mov	%r11, 0x58(%rdi)
	mov	%r12, 0x60(%rdi)
	mov	%r13, 0x68(%rdi)
	mov	%r14, 0x70(%rdi)
	mov	%r15, 0x78(%rdi)
	popq	0x38(%rdi)
	pop	%rdi
	/* The guest must not steer the host's speculation: returns first, then registers. */
#ifdef X86_FEATURE_RSB_VMEXIT
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT
#else
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RETPOLINE
#endif
	xor	%eax, %eax
3:	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
#ifdef RET
	RET
#else
	ret
#endif
SYM_FUNC_END(hvi_vmx_enter)

	.pushsection .rodata
.Lselector:
	.word	__KERNEL_DS
	.popsection

/* u64 hvi_vmx_host_rip(void): where VM exits go. */
SYM_FUNC_START(hvi_vmx_host_rip)
	lea	.Lexit(%rip), %rax
#ifdef RET
	RET
#else
	ret
#endif
SYM_FUNC_END(hvi_vmx_host_rip)
