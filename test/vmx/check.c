// SPDX-License-Identifier: MIT
/*
 * check.c - the module's answer to "which field made the entry fail"
 * (hv/vmx/check.c), without a VMCS: the file is compiled here over a table of
 * fields. In the lab the CPU is asked (entry.c), but controls and host state
 * cannot be spoilt from user space.
 *
 * Starts from fields that break no rule, spoils one, wants its name. Exit code
 * 0: all are named; 1: not.
 */
#define HVI_VMX_H		/* what check.c needs of the module's header stands here */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <linux/types.h>

typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#include "../../hv/vmx/vmcs.h"
#include "../../hv/abi/hvi.h"

#define FLAG_TF		(1u << 8)
#define FLAG_IF		(1u << 9)
#define PENDING_BS	(1u << 14)

static struct {
	u64 cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1;
	u32 phys_bits;
} vmx_caps = { 0x80000021, 0xffffffff, 0x2000, 0x3767ff, 39 };

struct vcpu {
	struct hvi_vcpu taken;
};

static u64 vmcs[0x8000];

static u64 vmcs_read(unsigned long field)
{
	return vmcs[field];
}

static u32 vmcs_read32(unsigned long field)
{
	return (u32)vmcs[field];
}

/* Control bits that must be 1 (low half) and may be 1 (high half), of a Haswell. */
static u64 capability(u32 msr)
{
	switch (msr) {
	case VMX_TRUE_PIN: return 0x7f00000016;
	case VMX_TRUE_PRIMARY: return 0xfff9fffe04006172;
	case VMX_SECONDARY: return 0x7cff00000000;
	case VMX_TRUE_EXIT: return 0x7fffff00036dfb;
	default: return 0xffff000011fb;		/* VM entry */
	}
}
#define rdmsrl(msr, value) ((value) = capability(msr))

static bool is_canonical(u64 a, bool la57)
{
	unsigned int s = la57 ? 7 : 16;

	return (u64)((s64)(a << s) >> s) == a;
}

u32 check_failed_entry(struct vcpu *v, u32 number);
#include "../../hv/vmx/check.c"

/* A long mode guest on a 64-bit host, entered without an event. */
static void sound(void)
{
	memset(vmcs, 0, sizeof(vmcs));
	vmcs[F_VPID] = 1;
	vmcs[F_PIN] = 0x16 | PIN_EXT_INT | PIN_NMI | PIN_VNMI | PIN_TIMER;
	vmcs[F_PRIMARY] = 0x04006172 | PRI_SECONDARY | PRI_IO_BITMAPS | PRI_MSR_BITMAPS;
	vmcs[F_SECONDARY] = SEC_EPT | SEC_VPID | SEC_UNRESTRICTED;
	vmcs[F_EXIT_CTL] = 0x36dfb | EXIT_HOST_64;
	vmcs[F_ENTRY_CTL] = 0x11fb | ENTRY_IA32E | ENTRY_LOAD_EFER;
	vmcs[F_IO_BITMAP_A] = 0x1000;
	vmcs[F_IO_BITMAP_B] = 0x2000;
	vmcs[F_MSR_BITMAP] = 0x3000;
	vmcs[F_EPTP] = 0x401e;
	vmcs[F_VMCS_LINK] = ~0ull;

	vmcs[F_HOST_CR0] = 0x80050033;
	vmcs[F_HOST_CR4] = 0x3626e0;
	vmcs[F_HOST_CR3] = 0x5000;
	vmcs[F_HOST_CS_SEL] = 0x10;
	vmcs[F_HOST_SS_SEL] = 0x18;
	vmcs[F_HOST_TR_SEL] = 0x40;
	vmcs[F_HOST_RIP] = 0xffffffff81000000;
	vmcs[F_HOST_PAT] = vmcs[F_GUEST_PAT] = 0x0007040600070406;
	vmcs[F_HOST_EFER] = 0xd01;

	vmcs[F_GUEST_CR0] = 0x80010033;
	vmcs[F_GUEST_CR3] = 0x1000;
	vmcs[F_GUEST_CR4] = 0x2620;
	vmcs[F_GUEST_EFER] = 0xd01;
	vmcs[F_GUEST_RFLAGS] = 2;
	vmcs[F_GUEST_DR7] = 0x400;
	for (int i = 0; i < 6; i++) {
		vmcs[F_GUEST_ES_LIMIT + 2 * i] = 0xffffffff;
		vmcs[F_GUEST_ES_ACCESS + 2 * i] = i == HVI_CS ? 0xa09b : 0xc093;
	}
	vmcs[F_GUEST_TR_ACCESS] = 0x8b;
	vmcs[F_GUEST_LDTR_ACCESS] = HVI_SEG_UNUSABLE;
}

static unsigned failures, rules;

static void want(u32 number, u32 field, const char *name)
{
	struct vcpu v;
	u32 have = check_failed_entry(&v, number);

	rules++;
	if (have == field)
		return;
	printf("check: FAIL: %x, should be %x (%s)\n", have, field, name);
	failures++;
}

static void spoil(u32 number, u32 spoilt, u64 value, u32 field, const char *name)
{
	sound();
	vmcs[spoilt] = value;
	want(number, field, name);
}
#define CONTROL(f, value, name) spoil(HVI_ENTRY_BAD_CONTROL, f, value, HVI_FIELD_##name, #name)
#define HOST(f, value, name) spoil(HVI_ENTRY_BAD_HOST, f, value, HVI_FIELD_##name, #name)
#define GUEST(f, value, name) spoil(HVI_ENTRY_BAD_GUEST, f, value, HVI_FIELD_##name, #name)

static void controls(void)
{
	CONTROL(F_VPID, 1, NOT_KNOWN);
	CONTROL(F_VPID, 0, VPID);
	CONTROL(F_PIN, 0x69, PIN_CONTROLS);		/* a bit that must be 1 */
	CONTROL(F_PIN, 0x7f | 1 << 8, PIN_CONTROLS);	/* one that must be 0 */
	CONTROL(F_PIN, 0x16 | PIN_VNMI, PIN_CONTROLS);
	CONTROL(F_PRIMARY, 0, PRIMARY_CONTROLS);
	CONTROL(F_SECONDARY, 1u << 31, SECONDARY_CONTROLS);
	CONTROL(F_SECONDARY, SEC_VPID | SEC_UNRESTRICTED, SECONDARY_CONTROLS);
	CONTROL(F_EXIT_CTL, 0, EXIT_CONTROLS);
	CONTROL(F_ENTRY_CTL, 1u << 31, ENTRY_CONTROLS);
	CONTROL(F_CR3_TARGETS, 5, CR3_TARGET_COUNT);
	CONTROL(F_IO_BITMAP_A, 0x1001, IO_BITMAP_A);
	CONTROL(F_IO_BITMAP_B, 1ull << 39, IO_BITMAP_B);
	CONTROL(F_MSR_BITMAP, 0x3800, MSR_BITMAP);
	CONTROL(F_EPTP, 0x4000, EPT_POINTER);		/* uncacheable, one level */
	CONTROL(F_EPTP, 0x409e, EPT_POINTER);
	CONTROL(F_EPTP, 0x401e | 1ull << 45, EPT_POINTER);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | 1 << 8, ENTRY_EVENT);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | 7 << 8, ENTRY_EVENT);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | HVI_EVENT_NMI << 8 | 3, ENTRY_EVENT);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | HVI_EVENT_EXCEPTION << 8 | 32, ENTRY_EVENT);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | HVI_EVENT_EXCEPTION << 8 | 13, ENTRY_EVENT);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | INTR_ERROR | HVI_EVENT_EXCEPTION << 8 | 6, ENTRY_EVENT);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | 1 << 12 | HVI_EVENT_EXCEPTION << 8 | 6, ENTRY_EVENT);
	CONTROL(F_ENTRY_INTR_INFO, INTR_VALID | HVI_EVENT_SOFT_INT << 8 | 0x80, ENTRY_EVENT_INSN_LEN);
	sound();
	vmcs[F_ENTRY_INTR_INFO] = INTR_VALID | INTR_ERROR | HVI_EVENT_EXCEPTION << 8 | 13;
	vmcs[F_ENTRY_ERROR_CODE] = 0x10000;
	want(HVI_ENTRY_BAD_CONTROL, HVI_FIELD_ENTRY_EVENT_ERROR_CODE, "ENTRY_EVENT_ERROR_CODE");
	sound();		/* in real mode there is no error code */
	vmcs[F_GUEST_CR0] = 0x20;
	vmcs[F_ENTRY_INTR_INFO] = INTR_VALID | INTR_ERROR | HVI_EVENT_EXCEPTION << 8 | 13;
	want(HVI_ENTRY_BAD_CONTROL, HVI_FIELD_ENTRY_EVENT, "ENTRY_EVENT");
}

static void host(void)
{
	HOST(F_VPID, 1, NOT_KNOWN);
	HOST(F_HOST_CR0, 0x80050013, HOST_CR0);		/* NE */
	HOST(F_HOST_CR0, 0x180050033, HOST_CR0);
	HOST(F_HOST_CR3, 1ull << 39, HOST_CR3);
	HOST(F_HOST_CR4, 0x3606e0, HOST_CR4);		/* VMXE */
	HOST(F_HOST_CR4, 0x3626c0, HOST_CR4);		/* PAE */
	HOST(F_HOST_ES_SEL, 0x13, HOST_ES_SELECTOR);
	HOST(F_HOST_CS_SEL, 0, HOST_CS_SELECTOR);
	HOST(F_HOST_SS_SEL, 0x14, HOST_SS_SELECTOR);
	HOST(F_HOST_DS_SEL, 1, HOST_DS_SELECTOR);
	HOST(F_HOST_FS_SEL, 2, HOST_FS_SELECTOR);
	HOST(F_HOST_GS_SEL, 0x63, HOST_GS_SELECTOR);
	HOST(F_HOST_TR_SEL, 0, HOST_TR_SELECTOR);
	HOST(F_HOST_FS_BASE, 1ull << 47, HOST_FS_BASE);
	HOST(F_HOST_GS_BASE, 1ull << 63, HOST_GS_BASE);
	HOST(F_HOST_TR_BASE, 1ull << 62, HOST_TR_BASE);
	HOST(F_HOST_GDTR_BASE, 1ull << 50, HOST_GDTR_BASE);
	HOST(F_HOST_IDTR_BASE, 1ull << 50, HOST_IDTR_BASE);
	HOST(F_HOST_SYSENTER_ESP, 1ull << 50, HOST_SYSENTER_ESP);
	HOST(F_HOST_SYSENTER_EIP, 1ull << 50, HOST_SYSENTER_EIP);
	HOST(F_HOST_RIP, 1ull << 50, HOST_RIP);
	HOST(F_HOST_PAT, 2, HOST_PAT);
	HOST(F_HOST_EFER, 0x101, HOST_EFER);
}

static void guest(void)
{
	GUEST(F_VPID, 1, NOT_KNOWN);
	GUEST(F_GUEST_CR0, 0x80010013, GUEST_CR0);	/* NE, which the CPU wants */
	GUEST(F_GUEST_CR0, 0x80010032, GUEST_CR0);	/* PG without PE */
	GUEST(F_GUEST_CR3, 1ull << 39, GUEST_CR3);
	GUEST(F_GUEST_CR4, 0x620, GUEST_CR4);		/* VMXE */
	GUEST(F_GUEST_CR4, 0x2600, GUEST_CR4);		/* PAE */
	GUEST(F_GUEST_CR4, 1ull << 40 | 0x2620, GUEST_CR4);
	GUEST(F_GUEST_EFER, 0x901, GUEST_EFER);
	GUEST(F_ENTRY_CTL, 0x11fb, GUEST_EFER);		/* LMA without the control */
	GUEST(F_GUEST_DEBUGCTL, 4, GUEST_DEBUGCTL);
	GUEST(F_GUEST_DR7, 1ull << 32, GUEST_DR7);
	GUEST(F_GUEST_PAT, 2, GUEST_PAT);
	GUEST(F_GUEST_SYSENTER_ESP, 1ull << 50, GUEST_SYSENTER_ESP);
	GUEST(F_GUEST_SYSENTER_EIP, 1ull << 50, GUEST_SYSENTER_EIP);
	GUEST(F_GUEST_ES_SEL + 14, 4, GUEST_TR_SELECTOR);
	GUEST(F_GUEST_CS_ACCESS, 0xe09b, GUEST_CS_ACCESS);
	GUEST(F_GUEST_SS_ACCESS, 0xc091, GUEST_SS_ACCESS);
	GUEST(F_GUEST_ES_ACCESS, 0xc092, GUEST_ES_ACCESS);
	GUEST(F_GUEST_ES_BASE + 2 * HVI_DS, 1ull << 32, GUEST_DS_BASE);
	GUEST(F_GUEST_TR_ACCESS, 0x89, GUEST_TR_ACCESS);
	GUEST(F_GUEST_LDTR_ACCESS, 0x81, GUEST_LDTR_ACCESS);
	GUEST(F_GUEST_GDTR_BASE, 1ull << 50, GUEST_GDTR_BASE);
	GUEST(F_GUEST_IDTR_BASE, 1ull << 50, GUEST_IDTR_BASE);
	GUEST(F_GUEST_GDTR_LIMIT, 0x10000, GUEST_GDTR_LIMIT);
	GUEST(F_GUEST_IDTR_LIMIT, 0x10000, GUEST_IDTR_LIMIT);
	GUEST(F_GUEST_RIP, 1ull << 47, GUEST_RIP);
	GUEST(F_GUEST_RFLAGS, 0, GUEST_RFLAGS);
	GUEST(F_GUEST_RFLAGS, 0x8002, GUEST_RFLAGS);
	GUEST(F_GUEST_RFLAGS, 0x20002, GUEST_RFLAGS);	/* VM */
	GUEST(F_ACTIVITY, 1, GUEST_ACTIVITY);
	GUEST(F_VMCS_LINK, 0x1000, VMCS_LINK);
	GUEST(F_ENTRY_INTR_INFO, INTR_VALID | 0x20, GUEST_RFLAGS);	/* an interrupt with IF clear */
	GUEST(F_INTERRUPTIBILITY, 3, GUEST_INTERRUPTIBILITY);
	GUEST(F_INTERRUPTIBILITY, HVI_BLOCK_STI, GUEST_INTERRUPTIBILITY);
	GUEST(F_INTERRUPTIBILITY, 1 << 5, GUEST_INTERRUPTIBILITY);
	GUEST(F_PENDING_DEBUG, 1 << 13, GUEST_PENDING_DEBUG);
	sound();
	vmcs[F_ENTRY_INTR_INFO] = INTR_VALID | HVI_EVENT_NMI << 8 | 2;
	vmcs[F_INTERRUPTIBILITY] = HVI_BLOCK_NMI;
	want(HVI_ENTRY_BAD_GUEST, HVI_FIELD_GUEST_INTERRUPTIBILITY, "GUEST_INTERRUPTIBILITY");
	sound();
	vmcs[F_INTERRUPTIBILITY] = HVI_BLOCK_MOV_SS;
	vmcs[F_GUEST_RFLAGS] = 2 | FLAG_TF;
	want(HVI_ENTRY_BAD_GUEST, HVI_FIELD_GUEST_PENDING_DEBUG, "GUEST_PENDING_DEBUG");
	sound();		/* PAE paging */
	vmcs[F_ENTRY_CTL] = 0x11fb;
	vmcs[F_GUEST_EFER] = 0;
	vmcs[F_GUEST_CS_ACCESS] = 0xc09b;
	vmcs[F_GUEST_PDPTE0 + 4] = 3;
	want(HVI_ENTRY_BAD_GUEST, HVI_FIELD_GUEST_PDPTE2, "GUEST_PDPTE2");
}

int main(void)
{
	controls();
	host();
	guest();
	printf("check: %u rules, %u failures\n", rules, failures);
	return failures ? 1 : 0;
}
