// SPDX-License-Identifier: MIT
// Made from hv/abi/hvi.h by hv/abi/gen.ts; do not edit.

// Constants and ioctl numbers
export const HVI_ABI_VERSION = 2;
export const HVI_PAGE_SIZE = 4096;
export const HVI_MAX_VCPUS = 32;
export const HVI_MAX_VIEWS = 64;
export const HVI_MAX_SPARE_PAGES = 65536;
export const HVI_MAX_MEMORY_SLOTS = 8;
export const HVI_MAX_CPUID = 128;
export const HVI_MMAP_RAM = 0x0;
export const HVI_MMAP_VCPU = 0x100000000000;
export const HVI_MMAP_SPARE = 0x200000000000;
export const HVI_VCPU_SIZE = 4096;
export const HVI_CAP_EXEC_ONLY = 0x1;
export const HVI_CAP_EPT_AD = 0x2;
export const HVI_CAP_SPP = 0x4;
export const HVI_CAP_VE = 0x8;
export const HVI_CAP_EPTP_SWITCH = 0x10;
export const HVI_CAP_DTR_EXIT = 0x20;
export const HVI_CAP_MTF = 0x40;
export const HVI_CAP_MBEC = 0x80;
export const HVI_CAP_COW_MEMORY = 0x100;
export const HVI_CAP_ICOUNT = 0x200;
export const HVI_CAP_UNRESTRICTED = 0x400;
export const HVI_CAP_TSC_SET = 0x800;
export const HVI_CPUID_INDEXED = 1;
export const HVI_R = 1;
export const HVI_W = 2;
export const HVI_X = 4;
export const HVI_RWX = 7;
export const HVI_SPARE_NONE = 0xffffffff;
export const HVI_DTR_LIDT = 0x1;
export const HVI_DTR_LGDT = 0x2;
export const HVI_DTR_LLDT = 0x4;
export const HVI_DTR_LTR = 0x8;
export const HVI_DTR_SIDT = 0x10;
export const HVI_DTR_SGDT = 0x20;
export const HVI_DTR_SLDT = 0x40;
export const HVI_DTR_STR = 0x80;
export const HVI_SEG_UNUSABLE = 0x10000;
export const HVI_STATE_GPR = 0x1;
export const HVI_STATE_SEG = 0x2;
export const HVI_STATE_TABLES = 0x4;
export const HVI_STATE_CR = 0x8;
export const HVI_STATE_MSR = 0x10;
export const HVI_STATE_DR = 0x20;
export const HVI_STATE_EVENTS = 0x40;
export const HVI_STATE_ALL = 0x7f;
export const HVI_BLOCK_STI = 0x1;
export const HVI_BLOCK_MOV_SS = 0x2;
export const HVI_BLOCK_NMI = 0x8;
export const HVI_ACCESS_READ = 1;
export const HVI_ACCESS_WRITE = 2;
export const HVI_ACCESS_EXEC = 4;
export const HVI_ACCESS_GVA = 0x8;
export const HVI_ACCESS_WALK = 0x10;
export const HVI_ACCESS_NO_RAM = 0x20;
export const HVI_ACCESS_EVENT = 0x40;
export const HVI_ACCESS_USER = 0x80;
export const HVI_IO_IN = 0x1;
export const HVI_IO_STRING = 0x2;
export const HVI_IO_REP = 0x4;
export const HVI_REPLY_NOTIFY = 0x1;
export const HVI_REPLY_WRITE = 0x2;
export const HVI_REPLY_SPARE = 0x4;
export const HVI_EMULATE_RANGES = 16;
export const HVI_MAX_OVERRIDES = 64;
export const HVI_EMULATE_BYTES = 256;
export const HVI_EVENT_VALID = 0x1;
export const HVI_EVENT_ERROR_CODE = 0x2;
export const HVI_EVENT_CR2 = 0x4;
export const HVI_EVENT_NOTIFY = 0x8;
export const HVI_RUN_DEADLINE = 0x1;
export const HVI_ALL_VCPUS = 0xffffffff;
export const HVI_IOC_MAGIC = 0xb1;
export const HVI_GET_INFO = 0xc048b100;
export const HVI_CREATE = 0x4008b101;
export const HVI_ADD_MEMORY = 0xc028b102;
export const HVI_GET_CPUID = 0xc010b103;
export const HVI_SET_CPUID = 0xc010b104;
export const HVI_INTERCEPT = 0x4010b105;
export const HVI_RUN = 0xc018b110;
export const HVI_PAUSE = 0x4008b111;
export const HVI_RESUME = 0x4008b112;
export const HVI_KICK = 0x4008b113;
export const HVI_FETCH = 0x4008b114;
export const HVI_RESET = 0x4008b115;
export const HVI_EPT_SET = 0x4010b120;
export const HVI_EPT_GET = 0x4010b121;
export const HVI_VIEW_CREATE = 0xc008b122;
export const HVI_VIEW_DESTROY = 0x4008b123;
export const HVI_REMAP = 0x4010b124;
export const HVI_ADD_SPARE = 0xc008b125;
export const HVI_SPP_SET = 0x4010b126;
export const HVI_VE_SET = 0x4020b127;
export const HVI_VE_PAGES = 0x4018b128;
export const HVI_GET_XSAVE = 0x4010b130;
export const HVI_SET_XSAVE = 0x4010b131;
export const HVI_LIST_MSRS = 0xc010b132;
export const HVI_GET_MSRS = 0x4010b133;
export const HVI_SET_MSRS = 0x4010b134;
export const HVI_QUERY_MTRR = 0xc010b135;

// enum hvi_intercept_kind
export const HVI_INTERCEPT_MSR_READ = 1;
export const HVI_INTERCEPT_MSR_WRITE = 2;
export const HVI_INTERCEPT_CR0_WRITE = 3;
export const HVI_INTERCEPT_CR3_WRITE = 4;
export const HVI_INTERCEPT_CR4_WRITE = 5;
export const HVI_INTERCEPT_CR8_WRITE = 6;
export const HVI_INTERCEPT_DTR = 7;
export const HVI_INTERCEPT_XSETBV = 8;
export const HVI_INTERCEPT_VMCALL = 9;
export const HVI_INTERCEPT_EXCEPTION = 10;
export const HVI_INTERCEPT_IO = 11;
export const HVI_INTERCEPT_CPUID = 12;
export const HVI_INTERCEPT_HLT = 13;

// enum hvi_seg_index
export const HVI_ES = 0;
export const HVI_CS = 1;
export const HVI_SS = 2;
export const HVI_DS = 3;
export const HVI_FS = 4;
export const HVI_GS = 5;
export const HVI_SEGS = 6;

// enum hvi_gpr_index
export const HVI_RAX = 0;
export const HVI_RCX = 1;
export const HVI_RDX = 2;
export const HVI_RBX = 3;
export const HVI_RSP = 4;
export const HVI_RBP = 5;
export const HVI_RSI = 6;
export const HVI_RDI = 7;
export const HVI_R8 = 8;
export const HVI_R9 = 9;
export const HVI_R10 = 10;
export const HVI_R11 = 11;
export const HVI_R12 = 12;
export const HVI_R13 = 13;
export const HVI_R14 = 14;
export const HVI_R15 = 15;
export const HVI_GPRS = 16;

// enum hvi_mp_state
export const HVI_MP_RUNNING = 0;
export const HVI_MP_HALTED = 1;
export const HVI_MP_WAIT_SIPI = 2;
export const HVI_MP_SHUTDOWN = 3;
export const HVI_MP_PAUSED = 4;

// enum hvi_exit_reason
export const HVI_EXIT_NONE = 0;
export const HVI_EXIT_EPT = 1;
export const HVI_EXIT_MSR_READ = 2;
export const HVI_EXIT_MSR_WRITE = 3;
export const HVI_EXIT_CR_WRITE = 4;
export const HVI_EXIT_DTR = 5;
export const HVI_EXIT_XSETBV = 6;
export const HVI_EXIT_VMCALL = 7;
export const HVI_EXIT_EXCEPTION = 8;
export const HVI_EXIT_IO = 9;
export const HVI_EXIT_CPUID = 10;
export const HVI_EXIT_HLT = 11;
export const HVI_EXIT_DEADLINE = 12;
export const HVI_EXIT_IRQ_WINDOW = 13;
export const HVI_EXIT_INJECTED = 14;
export const HVI_EXIT_STEP = 15;
export const HVI_EXIT_SHUTDOWN = 16;
export const HVI_EXIT_PAUSED = 17;
export const HVI_EXIT_IDLE = 18;
export const HVI_EXIT_ENTRY_FAILED = 19;
export const HVI_EXIT_EMULATION = 20;
export const HVI_EXIT_REASONS = 21;

// enum hvi_entry_error
export const HVI_ENTRY_BAD_CONTROL = 7;
export const HVI_ENTRY_BAD_HOST = 8;
export const HVI_ENTRY_BAD_GUEST = 33;
export const HVI_ENTRY_BAD_MSR = 34;
export const HVI_ENTRY_MACHINE_CHECK = 41;

// enum hvi_field
export const HVI_FIELD_VPID = 0;
export const HVI_FIELD_GUEST_ES_SELECTOR = 2048;
export const HVI_FIELD_GUEST_CS_SELECTOR = 2050;
export const HVI_FIELD_GUEST_SS_SELECTOR = 2052;
export const HVI_FIELD_GUEST_DS_SELECTOR = 2054;
export const HVI_FIELD_GUEST_FS_SELECTOR = 2056;
export const HVI_FIELD_GUEST_GS_SELECTOR = 2058;
export const HVI_FIELD_GUEST_LDTR_SELECTOR = 2060;
export const HVI_FIELD_GUEST_TR_SELECTOR = 2062;
export const HVI_FIELD_HOST_ES_SELECTOR = 3072;
export const HVI_FIELD_HOST_CS_SELECTOR = 3074;
export const HVI_FIELD_HOST_SS_SELECTOR = 3076;
export const HVI_FIELD_HOST_DS_SELECTOR = 3078;
export const HVI_FIELD_HOST_FS_SELECTOR = 3080;
export const HVI_FIELD_HOST_GS_SELECTOR = 3082;
export const HVI_FIELD_HOST_TR_SELECTOR = 3084;
export const HVI_FIELD_IO_BITMAP_A = 8192;
export const HVI_FIELD_IO_BITMAP_B = 8194;
export const HVI_FIELD_MSR_BITMAP = 8196;
export const HVI_FIELD_EPT_POINTER = 8218;
export const HVI_FIELD_VMCS_LINK = 10240;
export const HVI_FIELD_GUEST_DEBUGCTL = 10242;
export const HVI_FIELD_GUEST_PAT = 10244;
export const HVI_FIELD_GUEST_EFER = 10246;
export const HVI_FIELD_GUEST_PDPTE0 = 10250;
export const HVI_FIELD_GUEST_PDPTE1 = 10252;
export const HVI_FIELD_GUEST_PDPTE2 = 10254;
export const HVI_FIELD_GUEST_PDPTE3 = 10256;
export const HVI_FIELD_HOST_PAT = 11264;
export const HVI_FIELD_HOST_EFER = 11266;
export const HVI_FIELD_PIN_CONTROLS = 16384;
export const HVI_FIELD_PRIMARY_CONTROLS = 16386;
export const HVI_FIELD_CR3_TARGET_COUNT = 16394;
export const HVI_FIELD_EXIT_CONTROLS = 16396;
export const HVI_FIELD_ENTRY_CONTROLS = 16402;
export const HVI_FIELD_ENTRY_EVENT = 16406;
export const HVI_FIELD_ENTRY_EVENT_ERROR_CODE = 16408;
export const HVI_FIELD_ENTRY_EVENT_INSN_LEN = 16410;
export const HVI_FIELD_SECONDARY_CONTROLS = 16414;
export const HVI_FIELD_GUEST_ES_LIMIT = 18432;
export const HVI_FIELD_GUEST_CS_LIMIT = 18434;
export const HVI_FIELD_GUEST_SS_LIMIT = 18436;
export const HVI_FIELD_GUEST_DS_LIMIT = 18438;
export const HVI_FIELD_GUEST_FS_LIMIT = 18440;
export const HVI_FIELD_GUEST_GS_LIMIT = 18442;
export const HVI_FIELD_GUEST_LDTR_LIMIT = 18444;
export const HVI_FIELD_GUEST_TR_LIMIT = 18446;
export const HVI_FIELD_GUEST_GDTR_LIMIT = 18448;
export const HVI_FIELD_GUEST_IDTR_LIMIT = 18450;
export const HVI_FIELD_GUEST_ES_ACCESS = 18452;
export const HVI_FIELD_GUEST_CS_ACCESS = 18454;
export const HVI_FIELD_GUEST_SS_ACCESS = 18456;
export const HVI_FIELD_GUEST_DS_ACCESS = 18458;
export const HVI_FIELD_GUEST_FS_ACCESS = 18460;
export const HVI_FIELD_GUEST_GS_ACCESS = 18462;
export const HVI_FIELD_GUEST_LDTR_ACCESS = 18464;
export const HVI_FIELD_GUEST_TR_ACCESS = 18466;
export const HVI_FIELD_GUEST_INTERRUPTIBILITY = 18468;
export const HVI_FIELD_GUEST_ACTIVITY = 18470;
export const HVI_FIELD_GUEST_CR0 = 26624;
export const HVI_FIELD_GUEST_CR3 = 26626;
export const HVI_FIELD_GUEST_CR4 = 26628;
export const HVI_FIELD_GUEST_ES_BASE = 26630;
export const HVI_FIELD_GUEST_CS_BASE = 26632;
export const HVI_FIELD_GUEST_SS_BASE = 26634;
export const HVI_FIELD_GUEST_DS_BASE = 26636;
export const HVI_FIELD_GUEST_FS_BASE = 26638;
export const HVI_FIELD_GUEST_GS_BASE = 26640;
export const HVI_FIELD_GUEST_LDTR_BASE = 26642;
export const HVI_FIELD_GUEST_TR_BASE = 26644;
export const HVI_FIELD_GUEST_GDTR_BASE = 26646;
export const HVI_FIELD_GUEST_IDTR_BASE = 26648;
export const HVI_FIELD_GUEST_DR7 = 26650;
export const HVI_FIELD_GUEST_RIP = 26654;
export const HVI_FIELD_GUEST_RFLAGS = 26656;
export const HVI_FIELD_GUEST_PENDING_DEBUG = 26658;
export const HVI_FIELD_GUEST_SYSENTER_ESP = 26660;
export const HVI_FIELD_GUEST_SYSENTER_EIP = 26662;
export const HVI_FIELD_HOST_CR0 = 27648;
export const HVI_FIELD_HOST_CR3 = 27650;
export const HVI_FIELD_HOST_CR4 = 27652;
export const HVI_FIELD_HOST_FS_BASE = 27654;
export const HVI_FIELD_HOST_GS_BASE = 27656;
export const HVI_FIELD_HOST_TR_BASE = 27658;
export const HVI_FIELD_HOST_GDTR_BASE = 27660;
export const HVI_FIELD_HOST_IDTR_BASE = 27662;
export const HVI_FIELD_HOST_SYSENTER_ESP = 27664;
export const HVI_FIELD_HOST_SYSENTER_EIP = 27666;
export const HVI_FIELD_HOST_RIP = 27670;
export const HVI_FIELD_NOT_KNOWN = 32768;
export const HVI_FIELD_GUEST_CR8 = 32769;
export const HVI_FIELD_GUEST_XCR0 = 32770;
export const HVI_FIELD_GUEST_LSTAR = 32771;
export const HVI_FIELD_GUEST_CSTAR = 32772;
export const HVI_FIELD_GUEST_KERNEL_GS_BASE = 32773;
export const HVI_FIELD_MP_STATE = 32774;

// enum hvi_reply_action
export const HVI_REPLY_RESUME = 0;
export const HVI_REPLY_SKIP = 1;
export const HVI_REPLY_RETRY = 2;
export const HVI_REPLY_EMULATE = 3;
export const HVI_REPLY_SCRATCH = 4;
export const HVI_REPLY_STEP = 5;
export const HVI_REPLY_INJECT = 6;
export const HVI_REPLY_ACTIONS = 7;

// enum hvi_event_type
export const HVI_EVENT_EXTERNAL = 0;
export const HVI_EVENT_NMI = 2;
export const HVI_EVENT_EXCEPTION = 3;
export const HVI_EVENT_SOFT_INT = 4;
export const HVI_EVENT_PRIV_SOFT = 5;
export const HVI_EVENT_SOFT_EXCEPTION = 6;

// enum hvi_event_status
export const HVI_EVENT_IDLE = 0;
export const HVI_EVENT_PENDING = 1;
export const HVI_EVENT_DELIVERED = 2;
export const HVI_EVENT_LOST = 3;

// struct hvi_info
export const SIZEOF_INFO = 72;
export const INFO_SIZE = 0;
export const INFO_ABI_VERSION = 4;
export const INFO_CAPS = 8;
export const INFO_MAX_VCPUS = 16;
export const INFO_MAX_VIEWS = 20;
export const INFO_MAX_SPARE_PAGES = 24;
export const INFO_XSAVE_SIZE = 28;
export const INFO_XCR0_MASK = 32;
export const INFO_MAX_GFN = 40;
export const INFO_TSC_KHZ = 48;
export const INFO_BACKEND = 56;

// struct hvi_create
export const SIZEOF_CREATE = 8;
export const CREATE_VCPUS = 0;
export const CREATE_FLAGS = 4;

// struct hvi_memory
export const SIZEOF_MEMORY = 40;
export const MEMORY_GPA = 0;
export const MEMORY_SIZE = 8;
export const MEMORY_FD = 16;
export const MEMORY_FLAGS = 20;
export const MEMORY_FD_OFFSET = 24;
export const MEMORY_RAM_OFFSET = 32;

// struct hvi_cpuid_entry
export const SIZEOF_CPUID_ENTRY = 32;
export const CPUID_ENTRY_LEAF = 0;
export const CPUID_ENTRY_INDEX = 4;
export const CPUID_ENTRY_FLAGS = 8;
export const CPUID_ENTRY_EAX = 12;
export const CPUID_ENTRY_EBX = 16;
export const CPUID_ENTRY_ECX = 20;
export const CPUID_ENTRY_EDX = 24;

// struct hvi_cpuid
export const SIZEOF_CPUID = 16;
export const CPUID_COUNT = 0;
export const CPUID_ENTRIES = 8;

// struct hvi_ept_range
export const SIZEOF_EPT_RANGE = 16;
export const EPT_RANGE_GFN = 0;
export const EPT_RANGE_COUNT = 8;
export const EPT_RANGE_RIGHTS = 12;

// struct hvi_ept
export const SIZEOF_EPT = 16;
export const EPT_VIEW = 0;
export const EPT_COUNT = 4;
export const EPT_RANGES = 8;

// struct hvi_view
export const SIZEOF_VIEW = 8;
export const VIEW_FROM = 0;
export const VIEW_VIEW = 4;

// struct hvi_remap
export const SIZEOF_REMAP = 16;
export const REMAP_VIEW = 0;
export const REMAP_SPARE = 4;
export const REMAP_GFN = 8;

// struct hvi_spare
export const SIZEOF_SPARE = 8;
export const SPARE_COUNT = 0;
export const SPARE_FIRST = 4;

// struct hvi_spp
export const SIZEOF_SPP = 16;
export const SPP_VIEW = 0;
export const SPP_MASK = 4;
export const SPP_GFN = 8;

// struct hvi_ve
export const SIZEOF_VE = 32;
export const VE_VCPU = 0;
export const VE_ENABLE = 4;
export const VE_INFO_GPA = 8;
export const VE_VIEW_COUNT = 16;
export const VE_VIEWS = 24;

// struct hvi_ve_pages
export const SIZEOF_VE_PAGES = 24;
export const VE_PAGES_VIEW = 0;
export const VE_PAGES_CONVERTIBLE = 4;
export const VE_PAGES_GFN = 8;
export const VE_PAGES_COUNT = 16;

// struct hvi_intercept
export const SIZEOF_INTERCEPT = 16;
export const INTERCEPT_KIND = 0;
export const INTERCEPT_INDEX = 4;
export const INTERCEPT_MASK = 8;

// struct hvi_segment
export const SIZEOF_SEGMENT = 24;
export const SEGMENT_BASE = 0;
export const SEGMENT_LIMIT = 8;
export const SEGMENT_ACCESS = 12;
export const SEGMENT_SELECTOR = 16;

// struct hvi_table
export const SIZEOF_TABLE = 16;
export const TABLE_BASE = 0;
export const TABLE_LIMIT = 8;

// struct hvi_exit (offsets from the start of the vCPU page)
export const SIZEOF_EXIT = 72;
export const EXIT_REASON = 656;
export const EXIT_INSN_LEN = 660;
export const EXIT_GPA = 664;
export const EXIT_GVA = 672;
export const EXIT_ACCESS = 680;
export const EXIT_RIGHTS = 684;
export const EXIT_SIZE = 688;
export const EXIT_NUMBER = 692;
export const EXIT_FLAGS = 696;
export const EXIT_VIEW = 700;
export const EXIT_VALUE = 704;
export const EXIT_OLD = 712;
export const EXIT_TSC = 720;

// struct hvi_emulate_range
export const SIZEOF_EMULATE_RANGE = 16;
export const EMULATE_RANGE_GPA = 0;
export const EMULATE_RANGE_LEN = 8;
export const EMULATE_RANGE_OFFSET = 12;

// struct hvi_reply (offsets from the start of the vCPU page)
export const SIZEOF_REPLY = 528;
export const REPLY_ACTION = 728;
export const REPLY_FLAGS = 732;
export const REPLY_STEP_VIEW = 736;
export const REPLY_RANGE = 744;
export const REPLY_BYTES = 1000;

// struct hvi_event (offsets from the start of the vCPU page)
export const SIZEOF_EVENT = 32;
export const EVENT_FLAGS = 1256;
export const EVENT_TYPE = 1260;
export const EVENT_VECTOR = 1264;
export const EVENT_ERROR_CODE = 1268;
export const EVENT_CR2 = 1272;
export const EVENT_INSN_LEN = 1280;
export const EVENT_STATUS = 1284;

// struct hvi_counters (offsets from the start of the vCPU page)
export const SIZEOF_COUNTERS = 64;
export const COUNTERS_INSTRUCTIONS = 1288;
export const COUNTERS_EXITS = 1296;
export const COUNTERS_AD_WRITES = 1304;
export const COUNTERS_TLB_MISSES = 1312;
export const COUNTERS_BLOCKS = 1320;
export const COUNTERS_INTERNAL_EXITS = 1328;
export const COUNTERS_EVENTS = 1336;
export const COUNTERS_INVEPTS = 1344;

// struct hvi_vcpu
export const SIZEOF_VCPU = 1352;
export const VCPU_SIZE = 0;
export const VCPU_INDEX = 4;
export const VCPU_VALID = 8;
export const VCPU_DIRTY = 12;
export const VCPU_MP_STATE = 16;
export const VCPU_INTERRUPTIBILITY = 20;
export const VCPU_VIEW = 24;
export const VCPU_EPTP_INDEX = 28;
export const VCPU_WANT_IRQ_WINDOW = 32;
export const VCPU_IRQ_READY = 36;
export const VCPU_INITIAL_APIC_ID = 40;
export const VCPU_PENDING_DEBUG = 44;
export const VCPU_GPR = 48;
export const VCPU_RIP = 176;
export const VCPU_RFLAGS = 184;
export const VCPU_SEG = 192;
export const VCPU_LDTR = 336;
export const VCPU_TR = 360;
export const VCPU_GDTR = 384;
export const VCPU_IDTR = 400;
export const VCPU_CR0 = 416;
export const VCPU_CR2 = 424;
export const VCPU_CR3 = 432;
export const VCPU_CR4 = 440;
export const VCPU_CR8 = 448;
export const VCPU_XCR0 = 456;
export const VCPU_EFER = 464;
export const VCPU_STAR = 472;
export const VCPU_LSTAR = 480;
export const VCPU_CSTAR = 488;
export const VCPU_FMASK = 496;
export const VCPU_KERNEL_GS_BASE = 504;
export const VCPU_SYSENTER_CS = 512;
export const VCPU_SYSENTER_ESP = 520;
export const VCPU_SYSENTER_EIP = 528;
export const VCPU_PAT = 536;
export const VCPU_APIC_BASE = 544;
export const VCPU_TSC = 552;
export const VCPU_TSC_AUX = 560;
export const VCPU_DEBUGCTL = 568;
export const VCPU_XSS = 576;
export const VCPU_SPEC_CTRL = 584;
export const VCPU_DR = 592;
export const VCPU_EXIT = 656;
export const VCPU_REPLY = 728;
export const VCPU_EVENT = 1256;
export const VCPU_COUNTERS = 1288;

// struct hvi_run
export const SIZEOF_RUN = 24;
export const RUN_DEADLINE = 0;
export const RUN_FLAGS = 8;
export const RUN_VCPU = 12;
export const RUN_REASON = 16;

// struct hvi_vcpu_op
export const SIZEOF_VCPU_OP = 8;
export const VCPU_OP_VCPU = 0;
export const VCPU_OP_GROUPS = 4;

// struct hvi_xsave
export const SIZEOF_XSAVE = 16;
export const XSAVE_VCPU = 0;
export const XSAVE_SIZE = 4;
export const XSAVE_DATA = 8;

// struct hvi_msr_entry
export const SIZEOF_MSR_ENTRY = 16;
export const MSR_ENTRY_INDEX = 0;
export const MSR_ENTRY_VALUE = 8;

// struct hvi_msrs
export const SIZEOF_MSRS = 16;
export const MSRS_VCPU = 0;
export const MSRS_COUNT = 4;
export const MSRS_ENTRIES = 8;

// struct hvi_mtrr
export const SIZEOF_MTRR = 16;
export const MTRR_GPA = 0;
export const MTRR_TYPE = 8;

// Names of enum members, by value
export const hviInterceptKindNames: Readonly<Record<number, string>> = {
  1: "MSR_READ",
  2: "MSR_WRITE",
  3: "CR0_WRITE",
  4: "CR3_WRITE",
  5: "CR4_WRITE",
  6: "CR8_WRITE",
  7: "DTR",
  8: "XSETBV",
  9: "VMCALL",
  10: "EXCEPTION",
  11: "IO",
  12: "CPUID",
  13: "HLT",
};
export const hviSegIndexNames: Readonly<Record<number, string>> = {
  0: "ES",
  1: "CS",
  2: "SS",
  3: "DS",
  4: "FS",
  5: "GS",
  6: "SEGS",
};
export const hviGprIndexNames: Readonly<Record<number, string>> = {
  0: "RAX",
  1: "RCX",
  2: "RDX",
  3: "RBX",
  4: "RSP",
  5: "RBP",
  6: "RSI",
  7: "RDI",
  8: "R8",
  9: "R9",
  10: "R10",
  11: "R11",
  12: "R12",
  13: "R13",
  14: "R14",
  15: "R15",
  16: "GPRS",
};
export const hviMpStateNames: Readonly<Record<number, string>> = {
  0: "RUNNING",
  1: "HALTED",
  2: "WAIT_SIPI",
  3: "SHUTDOWN",
  4: "PAUSED",
};
export const hviExitReasonNames: Readonly<Record<number, string>> = {
  0: "NONE",
  1: "EPT",
  2: "MSR_READ",
  3: "MSR_WRITE",
  4: "CR_WRITE",
  5: "DTR",
  6: "XSETBV",
  7: "VMCALL",
  8: "EXCEPTION",
  9: "IO",
  10: "CPUID",
  11: "HLT",
  12: "DEADLINE",
  13: "IRQ_WINDOW",
  14: "INJECTED",
  15: "STEP",
  16: "SHUTDOWN",
  17: "PAUSED",
  18: "IDLE",
  19: "ENTRY_FAILED",
  20: "EMULATION",
  21: "REASONS",
};
export const hviEntryErrorNames: Readonly<Record<number, string>> = {
  7: "BAD_CONTROL",
  8: "BAD_HOST",
  33: "BAD_GUEST",
  34: "BAD_MSR",
  41: "MACHINE_CHECK",
};
export const hviFieldNames: Readonly<Record<number, string>> = {
  0: "VPID",
  2048: "GUEST_ES_SELECTOR",
  2050: "GUEST_CS_SELECTOR",
  2052: "GUEST_SS_SELECTOR",
  2054: "GUEST_DS_SELECTOR",
  2056: "GUEST_FS_SELECTOR",
  2058: "GUEST_GS_SELECTOR",
  2060: "GUEST_LDTR_SELECTOR",
  2062: "GUEST_TR_SELECTOR",
  3072: "HOST_ES_SELECTOR",
  3074: "HOST_CS_SELECTOR",
  3076: "HOST_SS_SELECTOR",
  3078: "HOST_DS_SELECTOR",
  3080: "HOST_FS_SELECTOR",
  3082: "HOST_GS_SELECTOR",
  3084: "HOST_TR_SELECTOR",
  8192: "IO_BITMAP_A",
  8194: "IO_BITMAP_B",
  8196: "MSR_BITMAP",
  8218: "EPT_POINTER",
  10240: "VMCS_LINK",
  10242: "GUEST_DEBUGCTL",
  10244: "GUEST_PAT",
  10246: "GUEST_EFER",
  10250: "GUEST_PDPTE0",
  10252: "GUEST_PDPTE1",
  10254: "GUEST_PDPTE2",
  10256: "GUEST_PDPTE3",
  11264: "HOST_PAT",
  11266: "HOST_EFER",
  16384: "PIN_CONTROLS",
  16386: "PRIMARY_CONTROLS",
  16394: "CR3_TARGET_COUNT",
  16396: "EXIT_CONTROLS",
  16402: "ENTRY_CONTROLS",
  16406: "ENTRY_EVENT",
  16408: "ENTRY_EVENT_ERROR_CODE",
  16410: "ENTRY_EVENT_INSN_LEN",
  16414: "SECONDARY_CONTROLS",
  18432: "GUEST_ES_LIMIT",
  18434: "GUEST_CS_LIMIT",
  18436: "GUEST_SS_LIMIT",
  18438: "GUEST_DS_LIMIT",
  18440: "GUEST_FS_LIMIT",
  18442: "GUEST_GS_LIMIT",
  18444: "GUEST_LDTR_LIMIT",
  18446: "GUEST_TR_LIMIT",
  18448: "GUEST_GDTR_LIMIT",
  18450: "GUEST_IDTR_LIMIT",
  18452: "GUEST_ES_ACCESS",
  18454: "GUEST_CS_ACCESS",
  18456: "GUEST_SS_ACCESS",
  18458: "GUEST_DS_ACCESS",
  18460: "GUEST_FS_ACCESS",
  18462: "GUEST_GS_ACCESS",
  18464: "GUEST_LDTR_ACCESS",
  18466: "GUEST_TR_ACCESS",
  18468: "GUEST_INTERRUPTIBILITY",
  18470: "GUEST_ACTIVITY",
  26624: "GUEST_CR0",
  26626: "GUEST_CR3",
  26628: "GUEST_CR4",
  26630: "GUEST_ES_BASE",
  26632: "GUEST_CS_BASE",
  26634: "GUEST_SS_BASE",
  26636: "GUEST_DS_BASE",
  26638: "GUEST_FS_BASE",
  26640: "GUEST_GS_BASE",
  26642: "GUEST_LDTR_BASE",
  26644: "GUEST_TR_BASE",
  26646: "GUEST_GDTR_BASE",
  26648: "GUEST_IDTR_BASE",
  26650: "GUEST_DR7",
  26654: "GUEST_RIP",
  26656: "GUEST_RFLAGS",
  26658: "GUEST_PENDING_DEBUG",
  26660: "GUEST_SYSENTER_ESP",
  26662: "GUEST_SYSENTER_EIP",
  27648: "HOST_CR0",
  27650: "HOST_CR3",
  27652: "HOST_CR4",
  27654: "HOST_FS_BASE",
  27656: "HOST_GS_BASE",
  27658: "HOST_TR_BASE",
  27660: "HOST_GDTR_BASE",
  27662: "HOST_IDTR_BASE",
  27664: "HOST_SYSENTER_ESP",
  27666: "HOST_SYSENTER_EIP",
  27670: "HOST_RIP",
  32768: "NOT_KNOWN",
  32769: "GUEST_CR8",
  32770: "GUEST_XCR0",
  32771: "GUEST_LSTAR",
  32772: "GUEST_CSTAR",
  32773: "GUEST_KERNEL_GS_BASE",
  32774: "MP_STATE",
};
export const hviReplyActionNames: Readonly<Record<number, string>> = {
  0: "RESUME",
  1: "SKIP",
  2: "RETRY",
  3: "EMULATE",
  4: "SCRATCH",
  5: "STEP",
  6: "INJECT",
  7: "ACTIONS",
};
export const hviEventTypeNames: Readonly<Record<number, string>> = {
  0: "EXTERNAL",
  2: "NMI",
  3: "EXCEPTION",
  4: "SOFT_INT",
  5: "PRIV_SOFT",
  6: "SOFT_EXCEPTION",
};
export const hviEventStatusNames: Readonly<Record<number, string>> = {
  0: "IDLE",
  1: "PENDING",
  2: "DELIVERED",
  3: "LOST",
};

// Names of ioctls, by number
export const hviIoctlNames: Readonly<Record<number, string>> = {
  3225989376: "HVI_GET_INFO",
  1074311425: "HVI_CREATE",
  3223892226: "HVI_ADD_MEMORY",
  3222319363: "HVI_GET_CPUID",
  3222319364: "HVI_SET_CPUID",
  1074835717: "HVI_INTERCEPT",
  3222843664: "HVI_RUN",
  1074311441: "HVI_PAUSE",
  1074311442: "HVI_RESUME",
  1074311443: "HVI_KICK",
  1074311444: "HVI_FETCH",
  1074311445: "HVI_RESET",
  1074835744: "HVI_EPT_SET",
  1074835745: "HVI_EPT_GET",
  3221795106: "HVI_VIEW_CREATE",
  1074311459: "HVI_VIEW_DESTROY",
  1074835748: "HVI_REMAP",
  3221795109: "HVI_ADD_SPARE",
  1074835750: "HVI_SPP_SET",
  1075884327: "HVI_VE_SET",
  1075360040: "HVI_VE_PAGES",
  1074835760: "HVI_GET_XSAVE",
  1074835761: "HVI_SET_XSAVE",
  3222319410: "HVI_LIST_MSRS",
  1074835763: "HVI_GET_MSRS",
  1074835764: "HVI_SET_MSRS",
  3222319413: "HVI_QUERY_MTRR",
};
