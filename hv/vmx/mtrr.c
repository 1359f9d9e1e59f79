/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* mtrr.c - the guest's MTRRs. They change nothing: RAM is write-back by EPT. */
#include "hvi_vmx.h"

/* SDM 11.11.4: fixed ranges first, then variable ones (UC wins, WT beats WB), then the default. */
u32 mtrr_type(const struct vcpu *v, u64 gpa)
{
	u32 found = ~0u;
	int i;

	if (!(v->mtrr_def & 0x800))
		return 0;
	if (gpa < 0x100000 && (v->mtrr_def & 0x400)) {
		if (gpa < 0x80000)
			return v->mtrr_fix[0] >> (gpa >> 16) * 8 & 0xff;
		if (gpa < 0xc0000)
			return v->mtrr_fix[1 + (gpa - 0x80000) / 0x20000] >> ((gpa >> 14) & 7) * 8 & 0xff;
		return v->mtrr_fix[3 + (gpa - 0xc0000) / 0x8000] >> ((gpa >> 12) & 7) * 8 & 0xff;
	}
	for (i = 0; i < 8; i++) {
		u64 mask = v->mtrr_mask[i] & ~0xfffull;
		u32 type = v->mtrr_base[i] & 0xff;

		if (!(v->mtrr_mask[i] & 0x800) || (gpa & mask) != (v->mtrr_base[i] & mask))
			continue;
		if (found == ~0u || type == 0)
			found = type;
		else if (found != type && found)
			found = found == 6 ? type : type == 6 ? found : 0;
	}
	return found == ~0u ? v->mtrr_def & 0xff : found;
}
