/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* vmcs.h - VMCS fields (SDM vol. 3 appendix B), control bits, exit reasons (appendix C). */
#ifndef HVI_VMX_VMCS_H
#define HVI_VMX_VMCS_H

/* 16 bits */
#define F_VPID			0x0000
#define F_EPTP_INDEX		0x0004
#define F_GUEST_ES_SEL		0x0800	/* + 2 * segment; ES CS SS DS FS GS LDTR TR */
#define F_HOST_ES_SEL		0x0c00
#define F_HOST_CS_SEL		0x0c02
#define F_HOST_SS_SEL		0x0c04
#define F_HOST_DS_SEL		0x0c06
#define F_HOST_FS_SEL		0x0c08
#define F_HOST_GS_SEL		0x0c0a
#define F_HOST_TR_SEL		0x0c0c
/* 64 bits */
#define F_IO_BITMAP_A		0x2000
#define F_IO_BITMAP_B		0x2002
#define F_MSR_BITMAP		0x2004
#define F_TSC_OFFSET		0x2010
#define F_VMFUNC_CTL		0x2018
#define F_EPTP			0x201a
#define F_EPTP_LIST		0x2024
#define F_VE_INFO		0x202a
#define F_SPPTP			0x2030
#define F_GPA			0x2400
#define F_VMCS_LINK		0x2800
#define F_GUEST_DEBUGCTL	0x2802
#define F_GUEST_PAT		0x2804
#define F_GUEST_EFER		0x2806
#define F_GUEST_PERF_GLOBAL	0x2808
#define F_GUEST_PDPTE0		0x280a	/* + 2 * n */
#define F_HOST_PAT		0x2c00
#define F_HOST_EFER		0x2c02
#define F_HOST_PERF_GLOBAL	0x2c04
/* 32 bits */
#define F_PIN			0x4000
#define F_PRIMARY		0x4002
#define F_EXCEPTION_BITMAP	0x4004
#define F_PF_MASK		0x4006
#define F_PF_MATCH		0x4008
#define F_CR3_TARGETS		0x400a
#define F_EXIT_CTL		0x400c
#define F_EXIT_MSR_STORE_COUNT	0x400e
#define F_EXIT_MSR_LOAD_COUNT	0x4010
#define F_ENTRY_CTL		0x4012
#define F_ENTRY_MSR_LOAD_COUNT	0x4014
#define F_ENTRY_INTR_INFO	0x4016
#define F_ENTRY_ERROR_CODE	0x4018
#define F_ENTRY_INSN_LEN	0x401a
#define F_SECONDARY		0x401e
#define F_INSN_ERROR		0x4400
#define F_EXIT_REASON		0x4402
#define F_EXIT_INTR_INFO	0x4404
#define F_EXIT_INTR_ERROR	0x4406
#define F_IDT_VECTORING		0x4408
#define F_IDT_VECTORING_ERROR	0x440a
#define F_EXIT_INSN_LEN		0x440c
#define F_EXIT_INSN_INFO	0x440e
#define F_GUEST_ES_LIMIT	0x4800
#define F_GUEST_GDTR_LIMIT	0x4810
#define F_GUEST_IDTR_LIMIT	0x4812
#define F_GUEST_ES_ACCESS	0x4814
#define F_GUEST_CS_ACCESS	0x4816
#define F_GUEST_SS_ACCESS	0x4818
#define F_GUEST_LDTR_ACCESS	0x4820
#define F_GUEST_TR_ACCESS	0x4822
#define F_INTERRUPTIBILITY	0x4824
#define F_ACTIVITY		0x4826
#define F_GUEST_SYSENTER_CS	0x482a
#define F_PREEMPTION_TIMER	0x482e
#define F_HOST_SYSENTER_CS	0x4c00
/* natural width */
#define F_CR0_MASK		0x6000
#define F_CR4_MASK		0x6002
#define F_CR0_SHADOW		0x6004
#define F_CR4_SHADOW		0x6006
#define F_QUALIFICATION		0x6400
#define F_GUEST_LINEAR		0x640a
#define F_GUEST_CR0		0x6800
#define F_GUEST_CR3		0x6802
#define F_GUEST_CR4		0x6804
#define F_GUEST_ES_BASE		0x6806
#define F_GUEST_GDTR_BASE	0x6816
#define F_GUEST_IDTR_BASE	0x6818
#define F_GUEST_DR7		0x681a
#define F_GUEST_RSP		0x681c
#define F_GUEST_RIP		0x681e
#define F_GUEST_RFLAGS		0x6820
#define F_PENDING_DEBUG		0x6822
#define F_GUEST_SYSENTER_ESP	0x6824
#define F_GUEST_SYSENTER_EIP	0x6826
#define F_HOST_CR0		0x6c00
#define F_HOST_CR3		0x6c02
#define F_HOST_CR4		0x6c04
#define F_HOST_FS_BASE		0x6c06
#define F_HOST_GS_BASE		0x6c08
#define F_HOST_TR_BASE		0x6c0a
#define F_HOST_GDTR_BASE	0x6c0c
#define F_HOST_IDTR_BASE	0x6c0e
#define F_HOST_SYSENTER_ESP	0x6c10
#define F_HOST_SYSENTER_EIP	0x6c12
#define F_HOST_RSP		0x6c14
#define F_HOST_RIP		0x6c16

/* MSRs that say which control bits may be 0 and 1 (appendix A.3 to A.5) */
#define VMX_SECONDARY		0x48b
#define VMX_TRUE_PIN		0x48d
#define VMX_TRUE_PRIMARY	0x48e
#define VMX_TRUE_EXIT		0x48f
#define VMX_TRUE_ENTRY		0x490

/* Pin-based controls (SDM 24.6.1) */
#define PIN_EXT_INT		(1u << 0)
#define PIN_NMI			(1u << 3)
#define PIN_VNMI		(1u << 5)
#define PIN_TIMER		(1u << 6)
/* Primary processor-based (24.6.2) */
#define PRI_INT_WINDOW		(1u << 2)
#define PRI_TSC_OFFSET		(1u << 3)
#define PRI_HLT			(1u << 7)
#define PRI_MWAIT		(1u << 10)
#define PRI_RDPMC		(1u << 11)
#define PRI_CR3_LOAD		(1u << 15)
#define PRI_CR3_STORE		(1u << 16)
#define PRI_CR8_LOAD		(1u << 19)
#define PRI_CR8_STORE		(1u << 20)
#define PRI_NMI_WINDOW		(1u << 22)
#define PRI_MOV_DR		(1u << 23)
#define PRI_IO_BITMAPS		(1u << 25)
#define PRI_MTF			(1u << 27)
#define PRI_MSR_BITMAPS		(1u << 28)
#define PRI_MONITOR		(1u << 29)
#define PRI_SECONDARY		(1u << 31)
/* Secondary */
#define SEC_EPT			(1u << 1)
#define SEC_DTR			(1u << 2)
#define SEC_RDTSCP		(1u << 3)
#define SEC_VPID		(1u << 5)
#define SEC_WBINVD		(1u << 6)
#define SEC_UNRESTRICTED	(1u << 7)
#define SEC_INVPCID		(1u << 12)
#define SEC_VMFUNC		(1u << 13)
#define SEC_VE			(1u << 18)
#define SEC_SPP			(1u << 23)
/* VM exit */
#define EXIT_SAVE_DEBUG		(1u << 2)
#define EXIT_HOST_64		(1u << 9)
#define EXIT_LOAD_PERF		(1u << 12)
#define EXIT_SAVE_PAT		(1u << 18)
#define EXIT_LOAD_PAT		(1u << 19)
#define EXIT_SAVE_EFER		(1u << 20)
#define EXIT_LOAD_EFER		(1u << 21)
/* VM entry */
#define ENTRY_LOAD_DEBUG	(1u << 2)
#define ENTRY_IA32E		(1u << 9)
#define ENTRY_LOAD_PERF		(1u << 13)
#define ENTRY_LOAD_PAT		(1u << 14)
#define ENTRY_LOAD_EFER		(1u << 15)

/* Interruption information (24.8.3) */
#define INTR_VALID		(1u << 31)
#define INTR_ERROR		(1u << 11)
#define INTR_NMI_UNBLOCK	(1u << 12)
#define INTR_TYPE(i)		((i) >> 8 & 7)
#define INTR_VECTOR(i)		((i) & 0xff)

#ifndef __ASSEMBLY__
enum vmx_exit {
	X_EXCEPTION = 0, X_EXTERNAL = 1, X_TRIPLE = 2, X_INT_WINDOW = 7, X_NMI_WINDOW = 8, X_TASK = 9,
	X_CPUID = 10, X_GETSEC = 11, X_HLT = 12, X_INVD = 13, X_RDPMC = 15, X_VMCALL = 18, X_VMXON = 27,
	X_CR = 28, X_DR = 29, X_IO = 30, X_RDMSR = 31, X_WRMSR = 32, X_BAD_STATE = 33, X_BAD_MSR = 34,
	X_MWAIT = 36, X_MTF = 37, X_MONITOR = 39, X_MCE = 41, X_GDT_IDT = 46, X_LDT_TR = 47,
	X_EPT = 48, X_EPT_MISCONFIG = 49, X_INVEPT = 50, X_TIMER = 52, X_INVVPID = 53, X_WBINVD = 54, X_XSETBV = 55,
	X_VMFUNC = 59, X_SPP = 66,
};
#endif
#define REASON_ENTRY_FAILED	(1u << 31)

#endif
