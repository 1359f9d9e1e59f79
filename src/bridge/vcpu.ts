// SPDX-License-Identifier: MIT
import * as abi from "./abi.ts";

const TWO32 = 4294967296;

/** Indices of 32-bit words in the vCPU page. */
const W_VALID = abi.VCPU_VALID >>> 2;
const W_DIRTY = abi.VCPU_DIRTY >>> 2;
const W_GPR = abi.VCPU_GPR >>> 2;
const W_RIP = abi.VCPU_RIP >>> 2;
const W_RFLAGS = abi.VCPU_RFLAGS >>> 2;
const W_SEG = abi.VCPU_SEG >>> 2;
const SEGMENT_WORDS = abi.SIZEOF_SEGMENT >>> 2;
const W_ACTION = abi.REPLY_ACTION >>> 2;
const W_REPLY_FLAGS = abi.REPLY_FLAGS >>> 2;
const W_RANGE = abi.REPLY_RANGE >>> 2;
const RANGE_WORDS = abi.SIZEOF_EMULATE_RANGE >>> 2;

/** What HVI_EXIT_ENTRY_FAILED's number says. */
const ENTRY_ERRORS: Readonly<Record<number, string>> = {
  [abi.HVI_ENTRY_BAD_CONTROL]: "invalid controls",
  [abi.HVI_ENTRY_BAD_HOST]: "invalid host state",
  [abi.HVI_ENTRY_BAD_GUEST]: "invalid guest state",
  [abi.HVI_ENTRY_BAD_MSR]: "an MSR could not be loaded",
  [abi.HVI_ENTRY_MACHINE_CHECK]: "machine check",
};

/** Fetches groups of registers that the last exit left out (HVI_FETCH). */
export type FetchState = (vcpu: number, groups: number) => void;

/**
 * A typed view of one mapped vCPU page. Nothing here allocates. Registers hold
 * what they held at the last exit; setters mark their group dirty and take
 * effect at the next run.
 *
 * Two kinds of 64-bit getters: addresses that must be canonical (rip, segment
 * bases, gpr) come as signed numbers, everything else unsigned. Both are exact
 * below 2^53; a general register may hold more, so `gprLo`/`gprHi` give its
 * halves and `gprExact` says whether `gpr` lost bits.
 */
export class Vcpu {
  readonly u32: Uint32Array;
  private readonly i32: Int32Array;
  /** Ranges and bytes that the EMULATE reply under construction has so far, and the ranges that one before left. */
  private emulateRanges = 0;
  private emulateUsed = 0;
  private emulateLeft = 0;
  private emulateFlags = 0;

  constructor(
    readonly index: number,
    readonly page: Uint8Array,
    private readonly fetchState: FetchState,
  ) {
    this.u32 = new Uint32Array(page.buffer, page.byteOffset, page.byteLength >>> 2);
    this.i32 = new Int32Array(page.buffer, page.byteOffset, page.byteLength >>> 2);
  }

  /** Makes sure that groups (HVI_STATE_*) are filled in. */
  need(groups: number): void {
    const missing = groups & ~this.u32[W_VALID];
    if (missing !== 0) this.fetchState(this.index, missing);
  }
  private unsigned(offset: number): number {
    const i = offset >>> 2;
    return this.u32[i + 1] * TWO32 + this.u32[i];
  }
  private signed(offset: number): number {
    const i = offset >>> 2;
    return this.i32[i + 1] * TWO32 + this.u32[i];
  }
  private put(offset: number, value: number, group: number): void {
    this.need(group);
    const i = offset >>> 2;
    this.u32[i] = value >>> 0;
    this.u32[i + 1] = Math.floor(value / TWO32) >>> 0;
    this.u32[W_DIRTY] |= group;
  }
  private put32(offset: number, value: number, group: number): void {
    this.need(group);
    this.u32[offset >>> 2] = value;
    this.u32[W_DIRTY] |= group;
  }

  // ---- general registers -----------------------------------------------

  /** General register i (HVI_RAX...) as a signed number, rounded when beyond 2^53. */
  gpr(i: number): number {
    this.need(abi.HVI_STATE_GPR);
    const w = W_GPR + 2 * i;
    return this.i32[w + 1] * TWO32 + this.u32[w];
  }
  /** True when gpr(i) is exactly the register. */
  gprExact(i: number): boolean {
    this.need(abi.HVI_STATE_GPR);
    const top = this.i32[W_GPR + 2 * i + 1] >> 21;
    return top === 0 || top === -1;
  }
  gprLo(i: number): number {
    this.need(abi.HVI_STATE_GPR);
    return this.u32[W_GPR + 2 * i];
  }
  gprHi(i: number): number {
    this.need(abi.HVI_STATE_GPR);
    return this.u32[W_GPR + 2 * i + 1];
  }
  setGpr(i: number, lo: number, hi: number): void {
    this.need(abi.HVI_STATE_GPR);
    const w = W_GPR + 2 * i;
    this.u32[w] = lo;
    this.u32[w + 1] = hi;
    this.u32[W_DIRTY] |= abi.HVI_STATE_GPR;
  }
  /** Sets a general register to a signed or unsigned integer of magnitude below 2^53. */
  setGprNumber(i: number, value: number): void {
    this.put(abi.VCPU_GPR + 8 * i, value, abi.HVI_STATE_GPR);
  }

  get rip(): number {
    this.need(abi.HVI_STATE_GPR);
    return this.i32[W_RIP + 1] * TWO32 + this.u32[W_RIP];
  }
  set rip(value: number) {
    this.put(abi.VCPU_RIP, value, abi.HVI_STATE_GPR);
  }
  get rflags(): number {
    this.need(abi.HVI_STATE_GPR);
    return this.u32[W_RFLAGS];
  }
  set rflags(value: number) {
    this.put(abi.VCPU_RFLAGS, value, abi.HVI_STATE_GPR);
  }

  // ---- control registers -------------------------------------------------

  get cr0(): number {
    this.need(abi.HVI_STATE_CR);
    return this.unsigned(abi.VCPU_CR0);
  }
  set cr0(value: number) {
    this.put(abi.VCPU_CR0, value, abi.HVI_STATE_CR);
  }
  get cr2(): number {
    this.need(abi.HVI_STATE_CR);
    return this.signed(abi.VCPU_CR2);
  }
  set cr2(value: number) {
    this.put(abi.VCPU_CR2, value, abi.HVI_STATE_CR);
  }
  /** With PCID in bits 11..0; bit 63 never is in the register. */
  get cr3(): number {
    this.need(abi.HVI_STATE_CR);
    return this.unsigned(abi.VCPU_CR3);
  }
  set cr3(value: number) {
    this.put(abi.VCPU_CR3, value, abi.HVI_STATE_CR);
  }
  get cr4(): number {
    this.need(abi.HVI_STATE_CR);
    return this.unsigned(abi.VCPU_CR4);
  }
  set cr4(value: number) {
    this.put(abi.VCPU_CR4, value, abi.HVI_STATE_CR);
  }
  get cr8(): number {
    this.need(abi.HVI_STATE_CR);
    return this.unsigned(abi.VCPU_CR8);
  }
  set cr8(value: number) {
    this.put(abi.VCPU_CR8, value, abi.HVI_STATE_CR);
  }
  get xcr0(): number {
    this.need(abi.HVI_STATE_CR);
    return this.unsigned(abi.VCPU_XCR0);
  }
  set xcr0(value: number) {
    this.put(abi.VCPU_XCR0, value, abi.HVI_STATE_CR);
  }

  // ---- model-specific registers on the page --------------------------------

  get efer(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.unsigned(abi.VCPU_EFER);
  }
  set efer(value: number) {
    this.put(abi.VCPU_EFER, value, abi.HVI_STATE_MSR);
  }
  get star(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.unsigned(abi.VCPU_STAR);
  }
  get lstar(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.signed(abi.VCPU_LSTAR);
  }
  get cstar(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.signed(abi.VCPU_CSTAR);
  }
  get fmask(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.unsigned(abi.VCPU_FMASK);
  }
  get kernelGsBase(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.signed(abi.VCPU_KERNEL_GS_BASE);
  }
  set kernelGsBase(value: number) {
    this.put(abi.VCPU_KERNEL_GS_BASE, value, abi.HVI_STATE_MSR);
  }
  get sysenterCs(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.unsigned(abi.VCPU_SYSENTER_CS);
  }
  get sysenterEsp(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.signed(abi.VCPU_SYSENTER_ESP);
  }
  get sysenterEip(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.signed(abi.VCPU_SYSENTER_EIP);
  }
  get apicBase(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.unsigned(abi.VCPU_APIC_BASE);
  }
  set apicBase(value: number) {
    this.put(abi.VCPU_APIC_BASE, value, abi.HVI_STATE_MSR);
  }
  /** Guest time-stamp counter at the last exit. Exact below 2^53. */
  get tsc(): number {
    this.need(abi.HVI_STATE_MSR);
    return this.unsigned(abi.VCPU_TSC);
  }
  /** Needs HVI_CAP_TSC_SET. */
  set tsc(value: number) {
    this.put(abi.VCPU_TSC, value, abi.HVI_STATE_MSR);
  }

  // ---- debug registers --------------------------------------------------

  /** DR0..3, 6 or 7. */
  dr(i: number): number {
    this.need(abi.HVI_STATE_DR);
    return i < 4 ? this.signed(abi.VCPU_DR + 8 * i) : this.unsigned(abi.VCPU_DR + 8 * i);
  }
  setDr(i: number, value: number): void {
    this.put(abi.VCPU_DR + 8 * i, value, abi.HVI_STATE_DR);
  }

  // ---- segments and tables -------------------------------------------------

  /** Signed base of segment i (HVI_ES..HVI_GS). */
  segBase(i: number): number {
    this.need(abi.HVI_STATE_SEG);
    const w = W_SEG + SEGMENT_WORDS * i;
    return this.i32[w + 1] * TWO32 + this.u32[w];
  }
  /** Limit in bytes, granularity applied. */
  segLimit(i: number): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[W_SEG + SEGMENT_WORDS * i + (abi.SEGMENT_LIMIT >>> 2)];
  }
  /** Access rights in VMX format (SDM 24.4.1). */
  segAccess(i: number): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[W_SEG + SEGMENT_WORDS * i + (abi.SEGMENT_ACCESS >>> 2)];
  }
  segSelector(i: number): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[W_SEG + SEGMENT_WORDS * i + (abi.SEGMENT_SELECTOR >>> 2)] & 0xffff;
  }
  /** Sets a whole segment register; use for loading a guest, and with care. */
  setSeg(i: number, selector: number, base: number, limit: number, access: number): void {
    this.setSegmentAt(abi.VCPU_SEG + abi.SIZEOF_SEGMENT * i, selector, base, limit, access);
  }
  setTr(selector: number, base: number, limit: number, access: number): void {
    this.setSegmentAt(abi.VCPU_TR, selector, base, limit, access);
  }
  setLdtr(selector: number, base: number, limit: number, access: number): void {
    this.setSegmentAt(abi.VCPU_LDTR, selector, base, limit, access);
  }
  private setSegmentAt(
    offset: number,
    selector: number,
    base: number,
    limit: number,
    access: number,
  ): void {
    this.put(offset + abi.SEGMENT_BASE, base, abi.HVI_STATE_SEG);
    this.put32(offset + abi.SEGMENT_LIMIT, limit, abi.HVI_STATE_SEG);
    this.put32(offset + abi.SEGMENT_ACCESS, access, abi.HVI_STATE_SEG);
    // The upper half of this word is a reserved field that must be zero.
    this.put32(offset + abi.SEGMENT_SELECTOR, selector & 0xffff, abi.HVI_STATE_SEG);
  }
  get trBase(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.signed(abi.VCPU_TR + abi.SEGMENT_BASE);
  }
  get trSelector(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[(abi.VCPU_TR + abi.SEGMENT_SELECTOR) >>> 2] & 0xffff;
  }
  get trLimit(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[(abi.VCPU_TR + abi.SEGMENT_LIMIT) >>> 2];
  }
  get trAccess(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[(abi.VCPU_TR + abi.SEGMENT_ACCESS) >>> 2];
  }
  get ldtrBase(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.signed(abi.VCPU_LDTR + abi.SEGMENT_BASE);
  }
  get ldtrSelector(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[(abi.VCPU_LDTR + abi.SEGMENT_SELECTOR) >>> 2] & 0xffff;
  }
  get ldtrLimit(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[(abi.VCPU_LDTR + abi.SEGMENT_LIMIT) >>> 2];
  }
  get ldtrAccess(): number {
    this.need(abi.HVI_STATE_SEG);
    return this.u32[(abi.VCPU_LDTR + abi.SEGMENT_ACCESS) >>> 2];
  }
  get gdtBase(): number {
    this.need(abi.HVI_STATE_TABLES);
    return this.signed(abi.VCPU_GDTR + abi.TABLE_BASE);
  }
  get gdtLimit(): number {
    this.need(abi.HVI_STATE_TABLES);
    return this.u32[(abi.VCPU_GDTR + abi.TABLE_LIMIT) >>> 2];
  }
  setGdt(base: number, limit: number): void {
    this.put(abi.VCPU_GDTR + abi.TABLE_BASE, base, abi.HVI_STATE_TABLES);
    this.put32(abi.VCPU_GDTR + abi.TABLE_LIMIT, limit, abi.HVI_STATE_TABLES);
  }
  get idtBase(): number {
    this.need(abi.HVI_STATE_TABLES);
    return this.signed(abi.VCPU_IDTR + abi.TABLE_BASE);
  }
  get idtLimit(): number {
    this.need(abi.HVI_STATE_TABLES);
    return this.u32[(abi.VCPU_IDTR + abi.TABLE_LIMIT) >>> 2];
  }
  setIdt(base: number, limit: number): void {
    this.put(abi.VCPU_IDTR + abi.TABLE_BASE, base, abi.HVI_STATE_TABLES);
    this.put32(abi.VCPU_IDTR + abi.TABLE_LIMIT, limit, abi.HVI_STATE_TABLES);
  }
  /** Current privilege level: the DPL of SS (SDM 24.4.1), which holds in every mode. */
  get cpl(): number {
    return (this.segAccess(abi.HVI_SS) >>> 5) & 3;
  }

  // ---- state outside the architecture's registers ---------------------------

  get mpState(): number {
    return this.u32[abi.VCPU_MP_STATE >>> 2];
  }
  set mpState(value: number) {
    this.put32(abi.VCPU_MP_STATE, value, abi.HVI_STATE_EVENTS);
  }
  /** HVI_BLOCK_* */
  get interruptibility(): number {
    this.need(abi.HVI_STATE_EVENTS);
    return this.u32[abi.VCPU_INTERRUPTIBILITY >>> 2];
  }
  set interruptibility(value: number) {
    this.put32(abi.VCPU_INTERRUPTIBILITY, value, abi.HVI_STATE_EVENTS);
  }
  get initialApicId(): number {
    return this.u32[abi.VCPU_INITIAL_APIC_ID >>> 2];
  }
  set initialApicId(value: number) {
    this.u32[abi.VCPU_INITIAL_APIC_ID >>> 2] = value;
  }
  /** The view this vCPU runs in; may be changed at any exit. */
  get view(): number {
    return this.u32[abi.VCPU_VIEW >>> 2];
  }
  set view(value: number) {
    this.u32[abi.VCPU_VIEW >>> 2] = value;
  }
  /** Index of the view in the list of setVe(), or 0xffffffff. */
  get eptpIndex(): number {
    return this.u32[abi.VCPU_EPTP_INDEX >>> 2];
  }
  /** An external interrupt injected now would be taken at once. */
  get irqReady(): boolean {
    return this.u32[abi.VCPU_IRQ_READY >>> 2] !== 0;
  }
  get wantIrqWindow(): boolean {
    return this.u32[abi.VCPU_WANT_IRQ_WINDOW >>> 2] !== 0;
  }
  /** Ask for HVI_EXIT_IRQ_WINDOW as soon as an interrupt can be taken. */
  set wantIrqWindow(value: boolean) {
    this.u32[abi.VCPU_WANT_IRQ_WINDOW >>> 2] = value ? 1 : 0;
  }
  get valid(): number {
    return this.u32[W_VALID];
  }
  get dirty(): number {
    return this.u32[W_DIRTY];
  }
  /** For code that writes the page itself. */
  markDirty(groups: number): void {
    this.u32[W_DIRTY] |= groups;
  }

  // ---- the exit record ----------------------------------------------------

  get exitReason(): number {
    return this.u32[abi.EXIT_REASON >>> 2];
  }
  /** Name of the exit reason, e.g. "EPT"; for messages. */
  get exitName(): string {
    return abi.hviExitReasonNames[this.exitReason] ?? `reason ${this.exitReason}`;
  }
  /** Of HVI_EXIT_ENTRY_FAILED: what was invalid, with the field's name; for messages. */
  get entryFailure(): string {
    const number = this.exitNumber;
    const field = this.exitValueLo;
    const kind = ENTRY_ERRORS[number] ?? `error ${number}`;
    return `${kind}, field ${abi.hviFieldNames[field] ?? `0x${field.toString(16)}`}`;
  }
  get exitInsnLen(): number {
    return this.u32[abi.EXIT_INSN_LEN >>> 2];
  }
  get exitGpa(): number {
    return this.unsigned(abi.EXIT_GPA);
  }
  /** Valid when exitAccess has HVI_ACCESS_GVA, and for DTR, string I/O and #PF. */
  get exitGva(): number {
    return this.signed(abi.EXIT_GVA);
  }
  get exitAccess(): number {
    return this.u32[abi.EXIT_ACCESS >>> 2];
  }
  get exitRights(): number {
    return this.u32[abi.EXIT_RIGHTS >>> 2];
  }
  get exitSize(): number {
    return this.u32[abi.EXIT_SIZE >>> 2];
  }
  get exitNumber(): number {
    return this.u32[abi.EXIT_NUMBER >>> 2];
  }
  get exitFlags(): number {
    return this.u32[abi.EXIT_FLAGS >>> 2];
  }
  get exitView(): number {
    return this.u32[abi.EXIT_VIEW >>> 2];
  }
  get exitTsc(): number {
    return this.unsigned(abi.EXIT_TSC);
  }
  get exitValueLo(): number {
    return this.u32[abi.EXIT_VALUE >>> 2];
  }
  get exitValueHi(): number {
    return this.u32[(abi.EXIT_VALUE >>> 2) + 1];
  }
  get exitOldLo(): number {
    return this.u32[abi.EXIT_OLD >>> 2];
  }
  get exitOldHi(): number {
    return this.u32[(abi.EXIT_OLD >>> 2) + 1];
  }
  /** The value a write goes on with at RESUME, or what an IN gives at SKIP. */
  setExitValue(lo: number, hi: number): void {
    this.u32[abi.EXIT_VALUE >>> 2] = lo;
    this.u32[(abi.EXIT_VALUE >>> 2) + 1] = hi;
  }

  // ---- replies (see enum hvi_reply_action in hvi.h) --------------------------

  get replyAction(): number {
    return this.u32[W_ACTION];
  }
  /** HVI_REPLY_* flags of the reply. */
  get replyFlags(): number {
    return this.u32[W_REPLY_FLAGS];
  }
  private reply(action: number, flags: number): void {
    this.u32[W_REPLY_FLAGS] = flags;
    this.u32[W_ACTION] = action;
  }
  /** With `notify`, here and below: HVI_EXIT_STEP when the instruction is over. */
  resume(notify = false): void {
    this.reply(abi.HVI_REPLY_RESUME, notify ? abi.HVI_REPLY_NOTIFY : 0);
  }
  skip(): void {
    this.reply(abi.HVI_REPLY_SKIP, 0);
  }
  retry(): void {
    this.reply(abi.HVI_REPLY_RETRY, 0);
  }
  scratch(notify = false): void {
    this.reply(abi.HVI_REPLY_SCRATCH, notify ? abi.HVI_REPLY_NOTIFY : 0);
  }
  /** Run one instruction in another view. */
  step(view: number, notify = false): void {
    this.u32[abi.REPLY_STEP_VIEW >>> 2] = view;
    this.reply(abi.HVI_REPLY_STEP, notify ? abi.HVI_REPLY_NOTIFY : 0);
  }
  /**
   * The instruction's reads of [gpa, gpa + bytes.length) see these bytes.
   * When the range goes over a page boundary, `split` is how many of them
   * belong to gpa; the rest stands at gpa2. Writes of the instruction to the
   * violated page are dropped when the view forbids them.
   * Throws RangeError for more than 256 bytes or a part that crosses a page.
   */
  emulate(gpa: number, bytes: Uint8Array, gpa2?: number, split?: number): void {
    const first = gpa2 === undefined ? bytes.length : (split ?? 0x1000 - (gpa % 0x1000));
    const second = bytes.length - first;
    if (bytes.length > abi.HVI_EMULATE_BYTES || first < 0 || second < 0) {
      throw new RangeError(`emulate: ${bytes.length} bytes split at ${first}`);
    }
    if (
      (gpa % 0x1000) + first > 0x1000 ||
      (gpa2 !== undefined && (gpa2 % 0x1000) + second > 0x1000)
    ) {
      throw new RangeError("emulate: a range crosses a page");
    }
    this.beginEmulate();
    this.putEmulateRange(gpa, first, 0);
    if (gpa2 !== undefined) this.putEmulateRange(gpa2, second, first);
    this.page.set(bytes, abi.REPLY_BYTES);
    this.endEmulate(false, false);
  }

  /**
   * Starts an EMULATE reply of several ranges: emulateBytes() or emulateSpare()
   * for each, then endEmulate(). Nothing is answered before that.
   */
  beginEmulate(): void {
    this.emulateRanges = 0;
    this.emulateUsed = 0;
    this.emulateFlags = 0;
  }
  /**
   * Reads of [gpa, gpa + length) see bytes[at ...]. False when that crosses a
   * page, when ranges (16) or bytes (256 of all ranges) are used up, or when this
   * reply takes its bytes from spare pages; nothing is added then.
   */
  emulateBytes(gpa: number, bytes: Uint8Array, at = 0, length = bytes.length - at): boolean {
    const used = this.emulateUsed;
    if (used + length > abi.HVI_EMULATE_BYTES || this.emulateFlags !== 0) return false;
    if (!this.putEmulateRange(gpa, length, used)) return false;
    for (let i = 0; i < length; i++) this.page[abi.REPLY_BYTES + used + i] = bytes[at + i];
    this.emulateUsed = used + length;
    return true;
  }
  /**
   * Reads of [gpa, gpa + length) see the bytes at the same place in a spare
   * page. False when that crosses a page, when ranges (16) are used up, or when
   * this reply supplies bytes itself; nothing is added then.
   */
  emulateSpare(gpa: number, length: number, spare: number): boolean {
    if (this.emulateUsed !== 0 || !this.putEmulateRange(gpa, length, spare)) return false;
    this.emulateFlags = abi.HVI_REPLY_SPARE;
    return true;
  }
  /**
   * Answers with EMULATE. Writes into the ranges are dropped; with `write`, all
   * others to the violated page take effect, whatever its rights.
   */
  endEmulate(write: boolean, notify: boolean): void {
    for (let i = this.emulateRanges; i < this.emulateLeft; i++) {
      this.u32[W_RANGE + RANGE_WORDS * i + (abi.EMULATE_RANGE_LEN >>> 2)] = 0;
    }
    this.emulateLeft = this.emulateRanges;
    this.reply(
      abi.HVI_REPLY_EMULATE,
      this.emulateFlags | (write ? abi.HVI_REPLY_WRITE : 0) | (notify ? abi.HVI_REPLY_NOTIFY : 0),
    );
  }
  private putEmulateRange(gpa: number, length: number, offset: number): boolean {
    if (this.emulateRanges === abi.HVI_EMULATE_RANGES) return false;
    if ((gpa % abi.HVI_PAGE_SIZE) + length > abi.HVI_PAGE_SIZE) return false;
    const w = W_RANGE + RANGE_WORDS * this.emulateRanges++;
    if (this.emulateLeft < this.emulateRanges) this.emulateLeft = this.emulateRanges;
    this.u32[w] = gpa >>> 0;
    this.u32[w + 1] = Math.floor(gpa / TWO32);
    this.u32[w + (abi.EMULATE_RANGE_LEN >>> 2)] = length;
    this.u32[w + (abi.EMULATE_RANGE_OFFSET >>> 2)] = offset;
    return true;
  }
  /** Forget the exit and deliver the event set with inject() at the current RIP. */
  injectReply(): void {
    this.reply(abi.HVI_REPLY_INJECT, 0);
  }

  // ---- events ---------------------------------------------------------------

  /**
   * Fills in the event to deliver at the next entry.
   * @param type HVI_EVENT_EXTERNAL, HVI_EVENT_EXCEPTION...
   * @param errorCode -1 for none
   * @param cr2 linear address of a #PF, or undefined
   * @param notify ask for HVI_EXIT_INJECTED when it was delivered or lost
   */
  inject(type: number, vector: number, errorCode = -1, cr2?: number, notify = false): void {
    let flags = abi.HVI_EVENT_VALID;
    if (errorCode >= 0) flags |= abi.HVI_EVENT_ERROR_CODE;
    if (cr2 !== undefined) {
      flags |= abi.HVI_EVENT_CR2;
      this.u32[abi.EVENT_CR2 >>> 2] = cr2 >>> 0;
      this.u32[(abi.EVENT_CR2 >>> 2) + 1] = Math.floor(cr2 / TWO32) >>> 0;
    }
    if (notify) flags |= abi.HVI_EVENT_NOTIFY;
    this.u32[abi.EVENT_TYPE >>> 2] = type;
    this.u32[abi.EVENT_VECTOR >>> 2] = vector;
    this.u32[abi.EVENT_ERROR_CODE >>> 2] = Math.max(errorCode, 0);
    this.u32[abi.EVENT_INSN_LEN >>> 2] = 0;
    this.u32[abi.EVENT_FLAGS >>> 2] = flags;
  }
  /** An event waits to be taken by the backend. */
  get eventPending(): boolean {
    return (this.u32[abi.EVENT_FLAGS >>> 2] & abi.HVI_EVENT_VALID) !== 0;
  }
  /** enum hvi_event_status */
  get eventStatus(): number {
    return this.u32[abi.EVENT_STATUS >>> 2];
  }
  get eventVector(): number {
    return this.u32[abi.EVENT_VECTOR >>> 2];
  }

  // ---- counters ---------------------------------------------------------------

  get instructions(): number {
    return this.unsigned(abi.COUNTERS_INSTRUCTIONS);
  }
  get exits(): number {
    return this.unsigned(abi.COUNTERS_EXITS);
  }
  get adWrites(): number {
    return this.unsigned(abi.COUNTERS_AD_WRITES);
  }
  get tlbMisses(): number {
    return this.unsigned(abi.COUNTERS_TLB_MISSES);
  }
  get blocks(): number {
    return this.unsigned(abi.COUNTERS_BLOCKS);
  }
  get internalExits(): number {
    return this.unsigned(abi.COUNTERS_INTERNAL_EXITS);
  }
  get events(): number {
    return this.unsigned(abi.COUNTERS_EVENTS);
  }
  get invepts(): number {
    return this.unsigned(abi.COUNTERS_INVEPTS);
  }
}
