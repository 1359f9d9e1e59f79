/* SPDX-License-Identifier: MIT */
/* Of the kernel's own, what hv/vmx/paging.c uses: see ../kernel.h. */
#define IS_ERR(p)	((p) == (void *)-1)
