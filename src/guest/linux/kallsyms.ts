// SPDX-License-Identifier: MIT
/**
 * The kernel's own symbol table (kernel/kallsyms.c, scripts/kallsyms.c), found
 * in a copy of the kernel image by structure alone:
 *
 *   num_syms, names, markers [, seqs_of_names], token_table, token_index
 *
 * stand in this order in every layout since 2.6; offsets and relative_base
 * stand before num_syms (up to 6.3) or after token_index (later). Each table is
 * confirmed by another one: token_index repeats the lengths of token_table,
 * markers repeat the lengths of names, and the decoded addresses must ascend
 * and lie in the image. No kernel version is asked.
 */
import { gvaFromHalves } from "../../memory/address.ts";

/** How symbol addresses are stored. */
export type KallsymsAddressing =
  /** u64 each (CONFIG_KALLSYMS_BASE_RELATIVE=n) */
  | "absolute"
  /** u32 from relative_base */
  | "relative"
  /** s32: >= 0 absolute per-cpu offset, < 0 from relative_base - 1 downwards */
  | "relative-percpu"
  /** s32 from the place of the entry itself */
  | "self-relative";

export interface KallsymsLayout {
  readonly count: number;
  readonly addressing: KallsymsAddressing;
  /** "before": offsets stand before the names, "after": after the token index. */
  readonly offsets: "before" | "after";
  /** Two-byte lengths for names of 128 and more compressed bytes. */
  readonly longNames: boolean;
  readonly markerWidth: 4 | 8;
  /** GVA of token_table, signed. */
  readonly tokenTable: number;
}

export interface KernelSymbol {
  readonly name: string;
  /** Signed GVA; a small positive number for an absolute per-cpu symbol. */
  readonly address: number;
  /** Bytes up to the next symbol; 0 for the last one. */
  readonly size: number;
  /** nm's letter: T t R r D d B b A V W … */
  readonly type: string;
}

export type KallsymsFailure = "no-kallsyms" | "kallsyms-damaged";

const DIGITS = Buffer.from("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00", "latin1");
const DIGIT_TOKEN = 0x30;
/** KSYM_NAME_LEN of 6.1 and later; longer expansions are damage. */
const MAX_NAME = 512;
const MAX_SYMBOLS = 4_000_000;
/** Fewer make a single marker, which confirms nothing. */
const MIN_SYMBOLS = 257;
/** How far before the token table num_syms can stand. */
const MAX_NAMES_BYTES = 64 * 1024 * 1024;
const MAX_DIGIT_HITS = 64;
/** Names walked in the search for num_syms, over all candidates. */
const MAX_WALKED = 50_000_000;

interface TokenTable {
  start: number;
  /** End of token_index. */
  end: number;
  offsets: Uint16Array;
  bytes: Uint8Array;
}

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;

/** Checks a token table that would start at `start`; the token index must repeat it. */
function tokenTableAt(image: Uint8Array, start: number): TokenTable | undefined {
  const offsets = new Uint16Array(256);
  let at = start;
  for (let i = 0; i < 256; i++) {
    if (at - start > 0xffff) return undefined;
    offsets[i] = at - start;
    const limit = Math.min(image.length, at + MAX_NAME);
    while (at < limit && image[at] !== 0) at++;
    if (at >= limit) return undefined;
    at++;
  }
  for (const alignment of [8, 4]) {
    const index = alignUp(at, alignment);
    if (index + 512 > image.length) continue;
    let same = true;
    for (let i = 0; i < 256 && same; i++) {
      same = (image[index + i * 2] | (image[index + i * 2 + 1] << 8)) === offsets[i];
    }
    if (same) return { start, end: index + 512, offsets, bytes: image.slice(start, at) };
  }
  return undefined;
}

/** Every token table of the image: normally one. */
function* tokenTables(image: Uint8Array): Generator<TokenTable> {
  const buffer = Buffer.from(image.buffer, image.byteOffset, image.length);
  let hit = -1;
  for (let tries = 0; tries < MAX_DIGIT_HITS; tries++) {
    hit = buffer.indexOf(DIGITS, hit + 1);
    if (hit < 0) return;
    // Back over the tokens 47..1: each ends with the NUL before the next.
    let at = hit;
    let ok = true;
    for (let i = DIGIT_TOKEN - 1; i > 0 && ok; i--) {
      let start = at - 1;
      const limit = Math.max(0, at - MAX_NAME);
      while (start > limit && image[start - 1] !== 0) start--;
      ok = start > limit;
      at = start;
    }
    if (!ok) continue;
    // What precedes token 0 need not be NUL: try each aligned start.
    const lowest = Math.max(0, at - MAX_NAME);
    for (let start = (at - 1) & ~3; start >= lowest; start -= 4) {
      const table = tokenTableAt(image, start);
      if (table !== undefined && table.offsets[DIGIT_TOKEN] === hit - start) {
        yield table;
        break;
      }
    }
  }
}

interface NameTable {
  /** Position of num_syms. */
  numSyms: number;
  count: number;
  names: Uint8Array;
  /** Where each entry (its length byte) begins in `names`. */
  starts: Uint32Array;
  longNames: boolean;
  markerWidth: 4 | 8;
}

/** The search for the names that belong to one token table. */
class NameSearch {
  #budget = MAX_WALKED;
  /** Entry positions of the walk at hand, grown as needed. */
  #starts = new Uint32Array(1024);

  constructor(
    private readonly image: Uint8Array,
    private readonly words: Uint32Array,
    /** Where names and markers must end. */
    private readonly limit: number,
  ) {}

  /** Looks backwards from the token table for a num_syms whose names and markers agree. */
  run(): NameTable | undefined {
    const lowest = Math.max(0, this.limit - MAX_NAMES_BYTES);
    for (let at = (this.limit - 8) & ~3; at >= lowest && this.#budget > 0; at -= 4) {
      const count = this.words[at >> 2];
      if (count < MIN_SYMBOLS || count > MAX_SYMBOLS) continue;
      // Tables were aligned to 8 bytes, later to 4: num_syms is then padded or not.
      const padded = (at & 7) === 0 && this.words[(at >> 2) + 1] === 0;
      const names = padded ? at + 8 : at + 4;
      const found = this.#walk(at, names, count, true) ?? this.#walk(at, names, count, false);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /** Walks `count` names from `start`; the markers that follow must agree with it. */
  #walk(numSyms: number, start: number, count: number, longNames: boolean): NameTable | undefined {
    const { image, limit } = this;
    // An entry has at least two bytes.
    if (start + count * 2 > limit) return undefined;
    let starts = this.#starts;
    let at = start;
    for (let i = 0; i < count; i++) {
      if (i === starts.length) {
        starts = new Uint32Array(i * 4);
        starts.set(this.#starts);
        this.#starts = starts;
      }
      starts[i] = at - start;
      let length = image[at++];
      if (longNames && (length & 0x80) !== 0) length = (length & 0x7f) | (image[at++] << 7);
      at += length;
      if (length === 0 || at > limit) {
        this.#budget -= i;
        return undefined;
      }
    }
    this.#budget -= count;
    for (const alignment of [8, 4]) {
      const markerWidth = this.#markers(alignUp(at, alignment), Math.ceil(count / 256));
      if (markerWidth === undefined) continue;
      return {
        numSyms,
        count,
        names: image.slice(start, at),
        starts: starts.slice(0, count),
        longNames,
        markerWidth,
      };
    }
    return undefined;
  }

  /** Width of the markers at `at` when they repeat every 256th position of the walk. */
  #markers(at: number, blocks: number): 4 | 8 | undefined {
    for (const width of [4, 8] as const) {
      if (at + blocks * width > this.limit) continue;
      const step = width >> 2;
      const first = at >> 2;
      let same = true;
      for (let i = 0; i < blocks && same; i++) {
        same =
          this.words[first + i * step] === this.#starts[i * 256] &&
          (width === 4 || this.words[first + i * step + 1] === 0);
      }
      if (same) return width;
    }
    return undefined;
  }
}

interface AddressTable {
  addresses: Float64Array;
  addressing: KallsymsAddressing;
  offsets: "before" | "after";
}

const unsignedOrder = (a: number) => (a < 0 ? a + 2 ** 64 : a);

/** True when the addresses ascend (as unsigned numbers) and most lie in the image. */
function plausible(addresses: Float64Array, base: number, size: number): boolean {
  let inside = 0;
  let descents = 0;
  let last = -1;
  for (const address of addresses) {
    if (address >= base && address < base + size) inside++;
    const key = unsignedOrder(address);
    if (key < last) descents++;
    last = key;
  }
  return inside * 2 > addresses.length && descents * 1000 <= addresses.length;
}

function findAddresses(
  words: Uint32Array,
  bytesLength: number,
  base: number,
  table: TokenTable,
  names: NameTable,
): AddressTable | undefined {
  const { count, numSyms } = names;
  const bytes = count * 4;
  const inImage = (a: number) => a >= base - 0x200_0000 && a < base + bytesLength;
  const after = table.end;

  const relative = (
    at: number,
    relativeBase: number,
    where: "before" | "after",
  ): AddressTable | undefined => {
    if (at < 0 || at + count * 4 > bytesLength) return undefined;
    const first = at >> 2;
    let negative = 0;
    for (let i = 0; i < count; i++) if ((words[first + i] | 0) < 0) negative++;
    const percpu = negative * 2 > count;
    const addresses = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const offset = words[first + i];
      const signed = offset | 0;
      if (!percpu) addresses[i] = relativeBase + offset;
      else addresses[i] = signed >= 0 ? signed : relativeBase - 1 - signed;
    }
    if (!plausible(addresses, base, bytesLength)) return undefined;
    return { addresses, addressing: percpu ? "relative-percpu" : "relative", offsets: where };
  };

  const wordPair = (at: number) =>
    at >= 0 && at + 8 <= bytesLength
      ? gvaFromHalves(words[at >> 2], words[(at >> 2) + 1])
      : Number.NaN;

  const baseAfter = wordPair(alignUp(after + bytes, 8));
  if (inImage(baseAfter)) {
    const found = relative(after, baseAfter, "after");
    if (found !== undefined) return found;
  }
  const baseBefore = wordPair(numSyms - 8);
  if (inImage(baseBefore)) {
    const found = relative(numSyms - 8 - alignUp(bytes, 8), baseBefore, "before");
    if (found !== undefined) return found;
  }
  // Addresses in full, before num_syms.
  const full = numSyms - count * 8;
  if (full >= 0) {
    const addresses = new Float64Array(count);
    for (let i = 0; i < count; i++) addresses[i] = wordPair(full + i * 8);
    if (plausible(addresses, base, bytesLength))
      return { addresses, addressing: "absolute", offsets: "before" };
  }
  // Each entry from its own place.
  if (after + count * 4 <= bytesLength) {
    const addresses = new Float64Array(count);
    for (let i = 0; i < count; i++)
      addresses[i] = base + after + i * 4 + (words[(after >> 2) + i] | 0);
    if (plausible(addresses, base, bytesLength))
      return { addresses, addressing: "self-relative", offsets: "after" };
  }
  return undefined;
}

/**
 * Finds the kallsyms tables in a kernel image (see {@link copyKernelImage}).
 * `base` is the signed GVA of image[0], page aligned. The tables are copied out,
 * so the image can be dropped.
 */
export function findKallsyms(image: Uint8Array, base: number): SymbolTable | KallsymsFailure {
  if ((image.byteOffset & 3) !== 0) image = image.slice();
  const words = new Uint32Array(image.buffer, image.byteOffset, image.length >> 2);
  let failure: KallsymsFailure = "no-kallsyms";
  for (const table of tokenTables(image)) {
    failure = "kallsyms-damaged";
    const names = new NameSearch(image, words, table.start).run();
    if (names === undefined) continue;
    const addresses = findAddresses(words, words.length * 4, base, table, names);
    if (addresses === undefined) continue;
    return new SymbolTable(
      names.names,
      names.starts,
      addresses.addresses,
      table.bytes,
      table.offsets,
      {
        count: names.count,
        addressing: addresses.addressing,
        offsets: addresses.offsets,
        longNames: names.longNames,
        markerWidth: names.markerWidth,
        tokenTable: base + table.start,
      },
    );
  }
  return failure;
}

const HASH_STEP = 0x01000193;

/**
 * Symbols by name and by address. Names stay compressed (about 12 bytes a
 * symbol with their index); a hash of all names is made when the first name is
 * asked for, straight from the compressed form.
 */
export class SymbolTable {
  /** Position in the table sorted by address; undefined when it already is sorted. */
  #order: Uint32Array | undefined;
  /** Addresses in ascending signed order. */
  #sorted: Float64Array;
  #hash: Int32Array | undefined;
  readonly #scratch = new Uint8Array(MAX_NAME + 1);

  constructor(
    private readonly names: Uint8Array,
    private readonly starts: Uint32Array,
    private readonly addresses: Float64Array,
    private readonly tokens: Uint8Array,
    private readonly tokenOffsets: Uint16Array,
    readonly layout: KallsymsLayout,
  ) {
    // Ascending as signed numbers: the kernel's addresses (negative) first.
    const count = addresses.length;
    let firstNegative = 0;
    while (firstNegative < count && addresses[firstNegative] >= 0) firstNegative++;
    const rotated = new Float64Array(count);
    rotated.set(addresses.subarray(firstNegative), 0);
    rotated.set(addresses.subarray(0, firstNegative), count - firstNegative);
    let ascending = true;
    for (let i = 1; i < count && ascending; i++) ascending = rotated[i] >= rotated[i - 1];
    if (ascending && firstNegative === 0) {
      this.#sorted = addresses;
      return;
    }
    const order = new Uint32Array(count);
    for (let i = 0; i < count; i++) order[i] = (i + firstNegative) % count;
    if (!ascending) {
      order.sort((a, b) => addresses[a] - addresses[b] || a - b);
      for (let i = 0; i < count; i++) rotated[i] = addresses[order[i]];
    }
    this.#order = order;
    this.#sorted = rotated;
  }

  /** Number of symbols. */
  get count(): number {
    return this.addresses.length;
  }

  /** Start of the compressed bytes of entry i in the low part, their number in #length. */
  #length = 0;
  #bytesOf(i: number): number {
    let at = this.starts[i];
    let length = this.names[at++];
    if (this.layout.longNames && (length & 0x80) !== 0)
      length = (length & 0x7f) | (this.names[at++] << 7);
    this.#length = length;
    return at;
  }

  /** Expands entry i (type letter first) into the scratch; returns its length, at most MAX_NAME. */
  #expand(i: number): number {
    const { names, tokens, tokenOffsets } = this;
    const out = this.#scratch;
    let at = this.#bytesOf(i);
    const end = at + this.#length;
    let length = 0;
    for (; at < end; at++) {
      for (let t = tokenOffsets[names[at]]; tokens[t] !== 0 && t < tokens.length; t++) {
        if (length >= MAX_NAME) return length;
        out[length++] = tokens[t];
      }
    }
    return length;
  }

  /** Name of the symbol at table position i (0 <= i < count). */
  nameAt(i: number): string {
    const length = this.#expand(i);
    return Buffer.from(this.#scratch.buffer, 1, Math.max(0, length - 1)).toString("latin1");
  }

  /** nm's type letter of the symbol at table position i. */
  typeAt(i: number): string {
    const first = this.names[this.#bytesOf(i)];
    return String.fromCharCode(this.tokens[this.tokenOffsets[first]]);
  }

  addressAt(i: number): number {
    return this.addresses[i];
  }

  /** Hash of all names: polynomial, so that tokens' hashes join without expanding them. */
  #index(): Int32Array {
    if (this.#hash !== undefined) return this.#hash;
    const { names, tokens, tokenOffsets } = this;
    const tokenHash = new Int32Array(256);
    const tokenPower = new Int32Array(256);
    /** The same for the token without its first letter: the type is not part of the name. */
    const tailHash = new Int32Array(256);
    for (let i = 0; i < 256; i++) {
      let hash = 0;
      let tail = 0;
      let power = 1;
      for (let t = tokenOffsets[i]; t < tokens.length && tokens[t] !== 0; t++) {
        hash = (Math.imul(hash, HASH_STEP) + tokens[t]) | 0;
        if (t > tokenOffsets[i]) tail = (Math.imul(tail, HASH_STEP) + tokens[t]) | 0;
        power = Math.imul(power, HASH_STEP);
      }
      tokenHash[i] = hash;
      tailHash[i] = tail;
      tokenPower[i] = power;
    }
    let size = 1024;
    while (size < this.count * 2) size *= 2;
    const slots = new Int32Array(size).fill(-1);
    const mask = size - 1;
    for (let i = 0; i < this.count; i++) {
      let at = this.#bytesOf(i);
      const end = at + this.#length;
      let hash = tailHash[names[at++]];
      for (; at < end; at++) {
        const byte = names[at];
        hash = (Math.imul(hash, tokenPower[byte]) + tokenHash[byte]) | 0;
      }
      let slot = this.#slotOf(hash, mask);
      while (slots[slot] >= 0) slot = (slot + 1) & mask;
      slots[slot] = i;
    }
    this.#hash = slots;
    return slots;
  }

  #slotOf(hash: number, mask: number): number {
    // The low bits of a polynomial hash are poor: mix them.
    let mixed = hash ^ (hash >>> 15);
    mixed = Math.imul(mixed, 0x2c1b3c6d);
    return (mixed ^ (mixed >>> 12)) & mask;
  }

  #matches(i: number, name: Uint8Array): boolean {
    if (this.#expand(i) !== name.length + 1) return false;
    for (let k = 0; k < name.length; k++) if (this.#scratch[k + 1] !== name[k]) return false;
    return true;
  }

  /** Table positions of all symbols of that name, in table order. */
  positions(name: string): number[] {
    const bytes = Buffer.from(name, "latin1");
    if (bytes.length === 0 || bytes.length >= MAX_NAME) return [];
    const slots = this.#index();
    const mask = slots.length - 1;
    let hash = 0;
    for (const byte of bytes) hash = (Math.imul(hash, HASH_STEP) + byte) | 0;
    const found: number[] = [];
    for (let slot = this.#slotOf(hash, mask); slots[slot] >= 0; slot = (slot + 1) & mask) {
      if (this.#matches(slots[slot], bytes)) found.push(slots[slot]);
    }
    return found;
  }

  /** Address of the first symbol of that name; undefined when there is none. */
  lookup(name: string): number | undefined {
    const [first] = this.positions(name);
    return first === undefined ? undefined : this.addresses[first];
  }

  /** The symbol with its size; the first in the table when several have the name. */
  find(name: string): KernelSymbol | undefined {
    const [first] = this.positions(name);
    return first === undefined ? undefined : this.#symbol(first);
  }

  /** All symbols of that name (static functions of several files share one). */
  findAll(name: string): KernelSymbol[] {
    return this.positions(name).map((i) => this.#symbol(i));
  }

  #symbol(i: number): KernelSymbol {
    const address = this.addresses[i];
    const next = this.#upper(address);
    const size = next < this.count ? this.#sorted[next] - address : 0;
    return { name: this.nameAt(i), address, size, type: this.typeAt(i) };
  }

  /** First place in the sorted addresses that is above `address`. */
  #upper(address: number): number {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#sorted[middle] <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /**
   * The symbol that `address` lies in: the nearest at or below, of several at
   * the same address the first in the table, as the kernel itself prints it.
   * Undefined below the first symbol.
   */
  at(address: number): KernelSymbol | undefined {
    const above = this.#upper(address);
    if (above === 0) return undefined;
    const start = this.#sorted[above - 1];
    // A kernel address never belongs to an absolute per-cpu symbol, nor the reverse.
    if (start < 0 !== address < 0) return undefined;
    let first = above - 1;
    while (first > 0 && this.#sorted[first - 1] === start) first--;
    const i = this.#order === undefined ? first : this.#order[first];
    const size = above < this.count ? this.#sorted[above] - start : 0;
    return { name: this.nameAt(i), address: start, size, type: this.typeAt(i) };
  }

  /** Names that begin with `prefix`, at most `max` symbols, in address order of the table. */
  withPrefix(prefix: string, max = 64): KernelSymbol[] {
    const found: KernelSymbol[] = [];
    const bytes = Buffer.from(prefix, "latin1");
    for (let i = 0; i < this.count && found.length < max; i++) {
      if (this.#expand(i) <= bytes.length) continue;
      let same = true;
      for (let k = 0; k < bytes.length && same; k++) same = this.#scratch[k + 1] === bytes[k];
      if (same) found.push(this.#symbol(i));
    }
    return found;
  }
}
