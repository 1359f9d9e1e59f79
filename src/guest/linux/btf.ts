// SPDX-License-Identifier: MIT
/**
 * BTF: the kernel's own type information, read from the copy in guest memory
 * (Documentation/bpf/btf.rst). Everything that needs an offset asks here, by
 * structure and member name; a member that this kernel does not have is
 * `undefined`, and that, never a version number, decides what is done.
 *
 * The bytes come from the guest: every length, offset and type id is checked,
 * and every walk through types is bounded.
 */

const MAGIC = 0xeb9f;
const HEADER_BYTES = 24;
const MAX_BYTES = 64 * 1024 * 1024;
/** Typedefs, const and the like that are followed in one go. */
const MAX_CHAIN = 32;
/** Depth of anonymous structures within structures. */
const MAX_NESTING = 16;
/** Members looked at in one lookup; the kernel's largest structure has some 300. */
const MAX_MEMBERS = 100_000;

export const BTF_KIND = {
  INT: 1,
  PTR: 2,
  ARRAY: 3,
  STRUCT: 4,
  UNION: 5,
  ENUM: 6,
  FWD: 7,
  TYPEDEF: 8,
  VOLATILE: 9,
  CONST: 10,
  RESTRICT: 11,
  FUNC: 12,
  FUNC_PROTO: 13,
  VAR: 14,
  DATASEC: 15,
  FLOAT: 16,
  DECL_TAG: 17,
  TYPE_TAG: 18,
  ENUM64: 19,
} as const;

/** Where a member stands in its outermost structure. */
export interface BtfMember {
  /** Byte offset; for a bit-field that of the byte its first bit is in. */
  readonly offset: number;
  /** First bit within that byte; 0 unless a bit-field. */
  readonly bitOffset: number;
  /** Width in bits of a bit-field, 0 otherwise. */
  readonly bitSize: number;
  /** Size of the member in bytes (of the declared type for a bit-field); 0 when unknown. */
  readonly size: number;
  /** Type id, typedefs and qualifiers not removed. */
  readonly type: number;
}

export type BtfFailure = "no-btf" | "btf-damaged";

/** Bytes after the 12-byte btf_type for `vlen` items of a kind; -1 for an unknown kind. */
function trailer(kind: number, vlen: number): number {
  switch (kind) {
    case BTF_KIND.INT:
    case BTF_KIND.VAR:
    case BTF_KIND.DECL_TAG:
      return 4;
    case BTF_KIND.ARRAY:
      return 12;
    case BTF_KIND.STRUCT:
    case BTF_KIND.UNION:
    case BTF_KIND.DATASEC:
    case BTF_KIND.ENUM64:
      return vlen * 12;
    case BTF_KIND.ENUM:
    case BTF_KIND.FUNC_PROTO:
      return vlen * 8;
    case BTF_KIND.PTR:
    case BTF_KIND.FWD:
    case BTF_KIND.TYPEDEF:
    case BTF_KIND.VOLATILE:
    case BTF_KIND.CONST:
    case BTF_KIND.RESTRICT:
    case BTF_KIND.FUNC:
    case BTF_KIND.FLOAT:
    case BTF_KIND.TYPE_TAG:
      return 0;
    default:
      return -1;
  }
}

/** Byte length of the BTF blob whose header is at `bytes[at]`; undefined when there is none. */
export function btfLength(bytes: Uint8Array, at: number): number | undefined {
  if (at < 0 || at + HEADER_BYTES > bytes.length) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, bytes.length - at);
  if (view.getUint16(0, true) !== MAGIC || view.getUint8(2) !== 1) return undefined;
  const header = view.getUint32(4, true);
  const length = Math.max(
    header + view.getUint32(8, true) + view.getUint32(12, true),
    header + view.getUint32(16, true) + view.getUint32(20, true),
  );
  if (header < HEADER_BYTES || length > MAX_BYTES || at + length > bytes.length) return undefined;
  return length;
}

/** Type information of one kernel. Lookups build what they need and remember it. */
export class Btf {
  readonly #view: DataView;
  readonly #strings: number;
  readonly #stringsEnd: number;
  /** Position of each type's btf_type; id 0 is void. */
  readonly #at: Uint32Array;
  readonly #text: Buffer;
  #byName: Map<number, number[]> | undefined;
  readonly #members = new Map<string, BtfMember | null>();
  #enumerators: Map<number, [enumType: number, value: number]> | undefined;

  private constructor(bytes: Uint8Array, strings: number, stringsEnd: number, at: Uint32Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#strings = strings;
    this.#stringsEnd = stringsEnd;
    this.#at = at;
  }

  /** Parses a BTF blob (kept, not copied). Anything beyond its bounds is "btf-damaged". */
  static parse(bytes: Uint8Array): Btf | BtfFailure {
    const length = btfLength(bytes, 0);
    if (length === undefined) return bytes.length < HEADER_BYTES ? "no-btf" : "btf-damaged";
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const header = view.getUint32(4, true);
    const types = header + view.getUint32(8, true);
    const typesEnd = types + view.getUint32(12, true);
    const strings = header + view.getUint32(16, true);
    const stringsEnd = strings + view.getUint32(20, true);
    if (stringsEnd === strings || bytes[strings] !== 0 || bytes[stringsEnd - 1] !== 0)
      return "btf-damaged";
    // A type takes at least 12 bytes.
    const at = new Uint32Array(Math.floor((typesEnd - types) / 12) + 1);
    let count = 1;
    for (let position = types; position < typesEnd; ) {
      if (position + 12 > typesEnd) return "btf-damaged";
      const info = view.getUint32(position + 4, true);
      const more = trailer((info >>> 24) & 0x1f, info & 0xffff);
      if (more < 0 || position + 12 + more > typesEnd) return "btf-damaged";
      at[count++] = position;
      position += 12 + more;
    }
    return new Btf(bytes, strings, stringsEnd, at.slice(0, count));
  }

  /** Number of types, void included. */
  get typeCount(): number {
    return this.#at.length;
  }

  #valid(id: number): boolean {
    return id > 0 && id < this.#at.length;
  }

  /** BTF_KIND of a type; 0 for void or an id that does not exist. */
  kind(id: number): number {
    return this.#valid(id) ? (this.#view.getUint32(this.#at[id] + 4, true) >>> 24) & 0x1f : 0;
  }

  #vlen(id: number): number {
    return this.#view.getUint32(this.#at[id] + 4, true) & 0xffff;
  }

  #sizeOrType(id: number): number {
    return this.#view.getUint32(this.#at[id] + 8, true);
  }

  #string(offset: number): string {
    const start = this.#strings + offset;
    if (start >= this.#stringsEnd) return "";
    return this.#text.toString("latin1", start, this.#text.indexOf(0, start));
  }

  /** Name of a type; empty when anonymous. */
  nameOf(id: number): string {
    return this.#valid(id) ? this.#string(this.#view.getUint32(this.#at[id], true)) : "";
  }

  /** Offset of a whole string in the string section; BTF has each string once. */
  #stringOffset(text: string): number | undefined {
    const needle = Buffer.from(`\0${text}\0`, "latin1");
    const found = this.#text.indexOf(needle, this.#strings);
    return found < 0 || found + needle.length > this.#stringsEnd
      ? undefined
      : found + 1 - this.#strings;
  }

  /** Ids of all types of that name, in order. */
  findAll(name: string): number[] {
    if (name === "") return [];
    if (this.#byName === undefined) {
      this.#byName = new Map();
      for (let id = 1; id < this.#at.length; id++) {
        const offset = this.#view.getUint32(this.#at[id], true);
        if (offset === 0) continue;
        const known = this.#byName.get(offset);
        if (known === undefined) this.#byName.set(offset, [id]);
        else known.push(id);
      }
    }
    const offset = this.#stringOffset(name);
    return offset === undefined ? [] : (this.#byName.get(offset) ?? []);
  }

  /** The structure or union of that name; undefined when there is only a declaration or none. */
  findStruct(name: string): number | undefined {
    return this.findAll(name).find((id) => {
      const kind = this.kind(id);
      return kind === BTF_KIND.STRUCT || kind === BTF_KIND.UNION;
    });
  }

  /** The type behind typedefs, const, volatile, restrict and tags; 0 when the chain does not end. */
  resolve(id: number): number {
    for (let i = 0; i < MAX_CHAIN; i++) {
      switch (this.kind(id)) {
        case BTF_KIND.TYPEDEF:
        case BTF_KIND.VOLATILE:
        case BTF_KIND.CONST:
        case BTF_KIND.RESTRICT:
        case BTF_KIND.TYPE_TAG:
          id = this.#sizeOrType(id);
          continue;
        default:
          return id;
      }
    }
    return 0;
  }

  /** Size in bytes of a type given by id or by structure name; undefined when unknown. */
  sizeof(type: number | string): number | undefined {
    const start = typeof type === "string" ? this.findStruct(type) : type;
    if (start === undefined) return undefined;
    let id = start;
    let factor = 1;
    for (let i = 0; i < MAX_CHAIN; i++) {
      id = this.resolve(id);
      switch (this.kind(id)) {
        case BTF_KIND.INT:
        case BTF_KIND.STRUCT:
        case BTF_KIND.UNION:
        case BTF_KIND.ENUM:
        case BTF_KIND.ENUM64:
        case BTF_KIND.FLOAT:
        case BTF_KIND.DATASEC:
          return factor * this.#sizeOrType(id);
        case BTF_KIND.PTR:
          return factor * 8;
        case BTF_KIND.ARRAY:
          factor *= this.arrayLength(id) ?? 0;
          id = this.#view.getUint32(this.#at[id] + 12, true);
          continue;
        default:
          return undefined;
      }
    }
    return undefined;
  }

  /** Number of elements of an array type (after typedefs); undefined for another kind. */
  arrayLength(type: number): number | undefined {
    const id = this.resolve(type);
    return this.kind(id) === BTF_KIND.ARRAY
      ? this.#view.getUint32(this.#at[id] + 20, true)
      : undefined;
  }

  /** Element type of an array, or target of a pointer; undefined for another kind. */
  target(type: number): number | undefined {
    const id = this.resolve(type);
    const kind = this.kind(id);
    if (kind === BTF_KIND.ARRAY) return this.#view.getUint32(this.#at[id] + 12, true);
    return kind === BTF_KIND.PTR ? this.#sizeOrType(id) : undefined;
  }

  /** Members that the lookup at hand may still look at. */
  #budget = 0;

  /** Looks for a member by the offset of its name; anonymous structures are searched in place. */
  #find(
    struct: number,
    name: number,
    depth: number,
    bits: number,
  ): { bits: number; width: number; type: number } | undefined {
    const id = this.resolve(struct);
    const kind = this.kind(id);
    if ((kind !== BTF_KIND.STRUCT && kind !== BTF_KIND.UNION) || depth > MAX_NESTING)
      return undefined;
    const view = this.#view;
    const flagged = view.getUint32(this.#at[id] + 4, true) >>> 31 === 1;
    let at = this.#at[id] + 12;
    for (let left = this.#vlen(id); left > 0 && this.#budget > 0; left--, at += 12) {
      this.#budget--;
      const memberName = view.getUint32(at, true);
      if (memberName !== 0 && memberName !== name) continue;
      const type = view.getUint32(at + 4, true);
      const raw = view.getUint32(at + 8, true);
      const offset = flagged ? raw & 0xff_ffff : raw;
      const width = flagged ? raw >>> 24 : 0;
      if (memberName === name) return { bits: bits + offset, width, type };
      const inner = this.#find(type, name, depth + 1, bits + offset);
      if (inner !== undefined) return inner;
    }
    return undefined;
  }

  /**
   * The member at `path` of a structure: names joined with dots, elements of
   * arrays in brackets, as "mem[2].base"; members of anonymous structures
   * directly. Undefined when this kernel does not have it, or places it outside
   * of the structure.
   */
  member(struct: string, path: string): BtfMember | undefined {
    const key = `${struct} ${path}`;
    const known = this.#members.get(key);
    if (known !== undefined) return known ?? undefined;
    const found = this.#walk(struct, path);
    this.#members.set(key, found ?? null);
    return found;
  }

  #walk(struct: string, path: string): BtfMember | undefined {
    let type = this.findStruct(struct);
    const whole = type === undefined ? 0 : (this.sizeof(type) ?? 0);
    this.#budget = MAX_MEMBERS;
    let bits = 0;
    let width = 0;
    for (const part of path.split(".")) {
      const match = /^(\w+)((?:\[\d+\])*)$/.exec(part);
      if (match === null || type === undefined) return undefined;
      const name = this.#stringOffset(match[1]);
      const found = name === undefined ? undefined : this.#find(type, name, 0, 0);
      if (found === undefined) return undefined;
      bits += found.bits;
      width = found.width;
      type = found.type;
      for (const index of match[2].matchAll(/\d+/g)) {
        const length = this.arrayLength(type);
        const element: number | undefined = this.target(type);
        if (length === undefined || element === undefined || Number(index[0]) >= length)
          return undefined;
        bits += Number(index[0]) * (this.sizeof(element) ?? 0) * 8;
        type = element;
      }
    }
    const offset = Math.floor(bits / 8);
    if (type === undefined || offset >= whole) return undefined;
    return {
      offset,
      bitOffset: bits % 8,
      bitSize: width,
      size: this.sizeof(type) ?? 0,
      type,
    };
  }

  /** Byte offset of a member; undefined when this kernel does not have it. */
  offsetof(struct: string, path: string): number | undefined {
    return this.member(struct, path)?.offset;
  }

  /** Value of an enumerator of any enumeration (32-bit, or 64-bit if exact); undefined when unknown. */
  enumerator(name: string): number | undefined {
    if (this.#enumerators === undefined) {
      this.#enumerators = new Map();
      const view = this.#view;
      for (let id = 1; id < this.#at.length; id++) {
        const kind = this.kind(id);
        if (kind !== BTF_KIND.ENUM && kind !== BTF_KIND.ENUM64) continue;
        const wide = kind === BTF_KIND.ENUM64;
        let at = this.#at[id] + 12;
        for (let left = this.#vlen(id); left > 0; left--, at += wide ? 12 : 8) {
          const text = view.getUint32(at, true);
          const value = view.getInt32(at + 4, true);
          const full = wide ? view.getInt32(at + 8, true) * 0x1_0000_0000 + (value >>> 0) : value;
          if (!this.#enumerators.has(text)) this.#enumerators.set(text, [id, full]);
        }
      }
    }
    const offset = this.#stringOffset(name);
    return offset === undefined ? undefined : this.#enumerators.get(offset)?.[1];
  }

  /** Names and values of one enumeration, in order; empty when there is none of that name. */
  enumeration(name: string): Array<[name: string, value: number]> {
    const id = this.findAll(name).find((t) => this.kind(t) === BTF_KIND.ENUM);
    if (id === undefined) return [];
    const values: Array<[string, number]> = [];
    let at = this.#at[id] + 12;
    for (let left = this.#vlen(id); left > 0; left--, at += 8) {
      values.push([
        this.#string(this.#view.getUint32(at, true)),
        this.#view.getInt32(at + 4, true),
      ]);
    }
    return values;
  }
}

/**
 * Copies the BTF blob out of a kernel image: at __start_BTF when the symbol is
 * known, else where a header with a plausible size stands.
 */
export function findBtf(image: Uint8Array, start: number | undefined): Uint8Array | BtfFailure {
  if (start !== undefined) {
    const length = btfLength(image, start);
    return length === undefined ? "btf-damaged" : image.slice(start, start + length);
  }
  // Magic, version 1, no flags, header length 24, type_off 0: how pahole writes it.
  const signature = Buffer.from([0x9f, 0xeb, 1, 0, HEADER_BYTES, 0, 0, 0, 0, 0, 0, 0]);
  const buffer = Buffer.from(image.buffer, image.byteOffset, image.length);
  let best: Uint8Array | BtfFailure = "no-btf";
  for (let at = buffer.indexOf(signature), tries = 0; at >= 0 && tries < 64; tries++) {
    const length = btfLength(image, at);
    if (length !== undefined && length > (typeof best === "string" ? 64 * 1024 : best.length)) {
      best = image.slice(at, at + length);
    }
    at = buffer.indexOf(signature, at + 4);
  }
  return best;
}
