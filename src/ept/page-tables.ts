// SPDX-License-Identifier: MIT
import { HVI_ACCESS_EVENT, HVI_ACCESS_WALK, HVI_W, type Vcpu } from "../bridge/index.ts";
import { PAGE_SIZE } from "../memory/address.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import { type AddressSpace, rootTable } from "../memory/space.ts";
import { PTE_RW, PTE_US } from "../memory/translate.ts";
import {
  ALLOW,
  type GpaHook,
  type GpaHooks,
  type HookAction,
  type PageAccess,
} from "./gpa-hooks.ts";
import {
  ENTRY_PAGE,
  ENTRY_TABLE,
  type EntryFormat,
  entryAddress,
  entryKind,
  entryPage,
  isPageRange,
  sameTranslation,
} from "./paging-entry.ts";
import {
  absentMapping,
  copyMapping,
  type Mapping,
  type MappingChange,
  SpaceTree,
  TableNode,
  TablePage,
  type TranslationChange,
  TranslationWatch,
  type Watcher,
} from "./table-tree.ts";
import { TableWrite, WRITE_BYTES } from "./table-write.ts";

/**
 * Hooks on translations (the guide's "Guest page-table hooks"): every table page on the way to a
 * watched range is write-hooked, watchers are asked before an entry changes and told afterwards.
 *
 * The watched entries are kept as copies. They are read after the page is hooked, so no change between
 * the two is missed, and hold the new value as soon as all hooks have allowed a write, when memory
 * still has the old one: hooks that follow a translation are set before the guest uses it. The write is
 * then looked for in memory at the vCPU's exits that follow, since an instruction may fault after all;
 * until then nothing that the old entries needed is given up.
 */

export type {
  Mapping,
  MappingChange,
  TranslationChange,
  TranslationWatch,
  Watcher,
} from "./table-tree.ts";

/** Bytes the current instruction writes at the violated address; -1 when they cannot be known. */
export type WrittenBytes = (access: PageAccess, out: Uint8Array) => number;

/** Bounds on what a guest can make us keep, and when a relaxed watch stops hooking a table. */
export interface PageTablesLimits {
  /** Places of tables in all trees together. */
  nodes: number;
  /** Places of one table page, at most 32767: tables that point to themselves have very many. */
  nodesOfPage: number;
  /** A table is not hooked any more after so many writes... */
  relaxWrites: number;
  /** ...when fewer than so many of them changed a translation. */
  relaxChanges: number;
}
const LIMITS: PageTablesLimits = {
  nodes: 65536,
  nodesOfPage: 4096,
  relaxWrites: 4096,
  relaxChanges: 64,
};

export interface PageTablesCounters {
  /** Writes to watched entries. */
  writes: number;
  /** Writes whose value was not known. */
  unknown: number;
  /** Translations changed at some level. */
  changes: number;
  /** Allowed writes that memory did not show when their instruction was over. */
  withoutEffect: number;
  /** Times a table's hook was given up because of what it cost. */
  relaxed: number;
  /** Tables that were not watched because of the limits. */
  refused: number;
}

/** Hooks that wait for a write to be seen in memory; more, and the wait ends. */
const RETIRED_MAX = 4096;

/** An entry that was found changed, until the watches are told. */
interface EntryChange {
  tree: SpaceTree;
  format: EntryFormat;
  start: number;
  end: number;
  oldLo: number;
  oldHi: number;
  newLo: number;
  newHi: number;
}

export class PageTables {
  /** Of Statistics. */
  readonly name = "page tables";
  readonly counters: PageTablesCounters = {
    writes: 0,
    unknown: 0,
    changes: 0,
    withoutEffect: 0,
    relaxed: 0,
    refused: 0,
  };
  readonly #hooks: GpaHooks;
  readonly #memory: PhysicalMemory;
  readonly #written: WrittenBytes;
  readonly #limits: PageTablesLimits;
  readonly #trees = new Map<string, SpaceTree>();
  readonly #pages = new Map<number, TablePage>();
  #nodeCount = 0;
  #watchCount = 0;

  /** Writes on their way to memory, and records of them for use again. */
  readonly #pending: TableWrite[] = [];
  readonly #free: TableWrite[] = [];
  readonly #retired: GpaHook[] = [];
  readonly #relaxed = new Set<TablePage>();

  // Work of #grow: pages whose hook does not cover all watched entries, granules to read (~ of those that
  // were watched before), entries whose tables are to be looked at, relaxed pages that are hooked again.
  readonly #widened: TablePage[] = [];
  readonly #unreadPages: TablePage[] = [];
  readonly #unreadGranules: number[] = [];
  readonly #newNodes: TableNode[] = [];
  readonly #newEntries: number[] = [];
  readonly #woken: TablePage[] = [];

  // Stacks: a handler may change the lists that are walked, and cause the next change.
  readonly #nodes: TableNode[] = [];
  readonly #watches: TranslationWatch[] = [];
  readonly #changes: EntryChange[] = [];
  #changeCount = 0;

  readonly #asked = {} as TranslationChange;
  readonly #told: MappingChange = {
    before: absentMapping(),
    after: absentMapping(),
  } as MappingChange;

  constructor(
    hooks: GpaHooks,
    memory: PhysicalMemory,
    written: WrittenBytes,
    limits: Partial<PageTablesLimits> = {},
  ) {
    this.#hooks = hooks;
    this.#memory = memory;
    this.#written = written;
    this.#limits = { ...LIMITS, ...limits };
  }

  /** Of Statistics. */
  read(): Record<string, number> {
    return {
      watches: this.#watchCount,
      pages: this.pageCount,
      places: this.#nodeCount,
      unhooked: this.relaxedCount,
      ...this.counters,
    };
  }

  /** Table pages that are watched now. */
  get pageCount(): number {
    return this.#pages.size;
  }
  /** Places of them in the trees of all spaces. */
  get nodeCount(): number {
    return this.#nodeCount;
  }
  get watchCount(): number {
    return this.#watchCount;
  }
  /** Table pages that are not hooked at the moment because of what it cost. */
  get relaxedCount(): number {
    return this.#relaxed.size;
  }

  /**
   * Watches the translation of [start, end), signed, whole pages. Without paging it never changes.
   * The tables are hooked when it returns.
   * @returns undefined when the space cannot have these addresses
   */
  watch(
    space: AddressSpace,
    start: number,
    end: number,
    watcher: Watcher,
  ): TranslationWatch | undefined {
    if (!isPageRange(space, start, end)) return undefined;
    const tree = this.#treeOf(space);
    const watch = new TranslationWatch(tree, start, end, watcher);
    tree.add(watch);
    this.#watchCount++;
    const from = this.#changeCount;
    if (tree.root === undefined && tree.formats.length > 0) {
      const gfn = Math.floor(tree.rootGpa / PAGE_SIZE);
      tree.root = this.#addNode(tree, gfn, 0, 0, (tree.rootGpa % PAGE_SIZE) / 4);
    }
    if (tree.root !== undefined) this.#coverWatch(tree.root, watch);
    this.#grow();
    if (watch.isPage) tree.walk(start, watch.mapping);
    this.#tell(from, undefined);
    return watch;
  }

  /** Ends a watch, also from inside its own callbacks; in effect after the hooks' next commit. */
  unwatch(watch: TranslationWatch): void {
    if (watch.removed) return;
    watch.removed = true;
    this.#watchCount--;
    const { tree, start, end } = watch;
    tree.remove(watch);
    if (tree.root !== undefined) {
      if (start < 0) this.#uncover(tree.root, start, Math.min(end, 0));
      if (end > 0) this.#uncover(tree.root, Math.max(start, 0), end);
      if (tree.root.entries === 0) this.#dropNode(tree.root);
    }
    if (tree.watchCount === 0) this.#trees.delete(tree.key);
  }

  /** Memory of a page was written without the guest: by us, or by a device. */
  resync(gfn: number): void {
    const page = this.#pages.get(gfn);
    if (page !== undefined) this.#update(page, 0, PAGE_SIZE, undefined, undefined);
  }

  /** Compares the tables whose hook was given up, and hooks them again. About once a second. */
  poll(): void {
    if (this.#relaxed.size === 0) return;
    const from = this.#changeCount;
    for (const page of this.#relaxed) this.#wake(page);
    this.#grow();
    this.#tell(from, undefined);
  }

  /**
   * Removes a hook that the translation before a change needed, once the change is seen in memory.
   * For those that follow translations, inside `after`.
   */
  retire(hook: GpaHook): void {
    if (this.#pending.length === 0) {
      this.#hooks.remove(hook);
      return;
    }
    this.#retired.push(hook);
    if (this.#retired.length >= RETIRED_MAX) {
      while (this.#pending.length > 0) this.#finish(this.#pending[0] as TableWrite);
    }
  }

  #treeOf(space: AddressSpace): SpaceTree {
    const { pse, nxe, physicalBits } = space.features;
    const key = `${space.mode} ${rootTable(space.mode, space.root)} ${pse} ${nxe} ${physicalBits}`;
    let tree = this.#trees.get(key);
    if (tree === undefined) {
      tree = new SpaceTree(key, space);
      this.#trees.set(key, tree);
    }
    return tree;
  }

  // ---- writes -------------------------------------------------------------------------------------

  #onWrite(page: TablePage, access: PageAccess): HookAction {
    const offset = access.gpa % PAGE_SIZE;
    const { size, vcpu } = access;
    if (!page.covers(offset, size)) return ALLOW;
    this.counters.writes++;
    page.writes++;
    const write = this.#free.pop() ?? this.#makeWrite();
    write.gfn = page.gfn;
    write.offset = offset;
    write.size = size;
    write.vcpu = vcpu;
    write.rip = vcpu.rip;
    write.applied = false;
    // What pushes an event's frame is not the instruction at RIP.
    write.known =
      size <= WRITE_BYTES &&
      (access.access & (HVI_ACCESS_EVENT | HVI_ACCESS_WALK)) === 0 &&
      this.#written(access, write.bytes) >= size;
    if (write.known && !this.#changesAny(page, write)) {
      this.#free.push(write);
      if (page.writes >= this.#limits.relaxWrites) this.#relax(page);
      return ALLOW;
    }
    if (!write.known) this.counters.unknown++;
    // Before the watchers are asked: they may look at what is pending.
    write.settled = false;
    this.#pending.push(write);
    const action = this.#ask(page, write, access);
    if (write.known) this.#hooks.ifAllowed(write.whenAllowed);
    // A value that is not known is looked for before the guest can use it.
    this.#hooks.afterInstruction(write, !write.known);
    return action;
  }

  #makeWrite(): TableWrite {
    return new TableWrite({
      allowed: (write, vcpu) => this.#apply(write, vcpu),
      exited: (write, vcpu) => this.#settle(write, vcpu),
    });
  }

  /** Asks the watchers of the entries that a write changes, or may change. */
  #ask(page: TablePage, write: TableWrite, access: PageAccess): HookAction {
    const { offset, size, known } = write;
    const last = lastGranule(offset, size);
    let action: HookAction = ALLOW;
    for (let granule = offset >> 3; granule <= last; granule++) {
      if (page.count(granule) === 0) continue;
      const from = this.#nodes.length;
      for (let n = 0; n < page.nodes.length; n++) this.#nodes.push(page.nodes[n] as TableNode);
      const to = this.#nodes.length;
      for (let n = from; n < to; n++) {
        const node = this.#nodes[n] as TableNode;
        if (node.tree.askers === 0) continue;
        const first = node.entryAt(granule * 2);
        for (let i = first; i < first + 2 / node.format.words; i++) {
          if (node.removed || !node.isWatched(i)) continue;
          if (known && this.#sameEntry(node, i, write)) continue;
          const wish = this.#askEntry(node, i, write, access);
          if (wish > action) action = wish;
        }
        // Of a write that may change anything one refusal is enough.
        if (!known && action !== ALLOW) break;
      }
      this.#nodes.length = from;
      if (!known && action !== ALLOW) break;
    }
    return action;
  }

  #askEntry(node: TableNode, entry: number, write: TableWrite, access: PageAccess): HookAction {
    const gva = node.gvaOf(entry);
    const { size, level, words } = node.format;
    const from = this.#watches.length;
    node.tree.collect(gva, gva + size, this.#watches);
    const to = this.#watches.length;
    const word = node.wordOf(entry);
    const change = this.#asked;
    let action: HookAction = ALLOW;
    for (let i = from; i < to; i++) {
      const watch = this.#watches[i] as TranslationWatch;
      if (watch.removed || watch.watcher.before === undefined) continue;
      // Set each time: the one before may have caused another question.
      change.vcpu = access.vcpu;
      change.access = access;
      change.gva = gva;
      change.level = level;
      change.entryGpa = write.gfn * PAGE_SIZE + word * 4;
      change.oldLo = this.#memoryWord(write.gfn, word);
      change.oldHi = words === 2 ? this.#memoryWord(write.gfn, word + 1) : 0;
      change.newLo = write.word(word, change.oldLo);
      change.newHi = words === 2 ? write.word(word + 1, change.oldHi) : 0;
      change.known = write.known;
      const wish = watch.watcher.before(change);
      if (wish > action) action = wish;
    }
    this.#watches.length = from;
    return action;
  }

  #apply(write: TableWrite, vcpu: Vcpu): void {
    // The wait for memory may have been cut short before.
    if (write.settled) this.#pending.push(write);
    write.settled = false;
    write.applied = true;
    const page = this.#pages.get(write.gfn);
    if (page !== undefined) this.#update(page, write.offset, write.size, write, vcpu);
  }

  /** At an exit after a write: is it in memory, or will it never be? */
  #settle(write: TableWrite, vcpu: Vcpu): void {
    if (!write.settled) {
      const page = this.#pages.get(write.gfn);
      const over = page === undefined || write.isOver(vcpu);
      if (!over && !write.known)
        this.#update(page, write.offset, write.size, undefined, write.vcpu);
      const arrived = write.applied && page !== undefined && this.#hasArrived(page, write);
      if (!over && !arrived) {
        this.#hooks.afterInstruction(write);
        return;
      }
      if (write.applied && !arrived) this.counters.withoutEffect++;
      this.#finish(write);
    }
    write.vcpu = undefined;
    this.#free.push(write);
  }

  /** What memory holds now counts. */
  #finish(write: TableWrite): void {
    const at = this.#pending.indexOf(write);
    if (at >= 0) this.#pending.splice(at, 1);
    write.settled = true;
    const page = this.#pages.get(write.gfn);
    if (page !== undefined) {
      this.#update(page, write.offset, write.size, undefined, write.vcpu);
    }
    if (this.#pending.length > 0) return;
    for (let i = 0; i < this.#retired.length; i++) this.#hooks.remove(this.#retired[i] as GpaHook);
    this.#retired.length = 0;
  }

  // ---- copies -------------------------------------------------------------------------------------

  #memoryWord(gfn: number, word: number): number {
    return Math.max(this.#memory.read32(gfn * PAGE_SIZE + word * 4), 0);
  }

  /** A word as it will be after the writes that are allowed and on their way, and `write`. */
  #futureWord(gfn: number, word: number, write?: TableWrite): number {
    let value = this.#memoryWord(gfn, word);
    for (let i = 0; i < this.#pending.length; i++) {
      const other = this.#pending[i] as TableWrite;
      if (other.gfn === gfn && other.applied) value = other.word(word, value);
    }
    return write === undefined ? value : write.word(word, value);
  }

  /** Whether an entry will translate, after `write`, as its copy does. */
  #sameEntry(node: TableNode, entry: number, write: TableWrite): boolean {
    const { gfn } = node.page;
    const word = node.wordOf(entry);
    const lo = this.#futureWord(gfn, word, write) | 0;
    const hi = node.format.words === 2 ? this.#futureWord(gfn, word + 1, write) | 0 : 0;
    return sameTranslation(node.format, node.lo(entry), node.hi(entry), lo, hi);
  }

  /** Whether a watched entry among the bytes of `write` will translate otherwise than its copy. */
  #changesAny(page: TablePage, write: TableWrite): boolean {
    const last = lastGranule(write.offset, write.size);
    for (let granule = write.offset >> 3; granule <= last; granule++) {
      if (page.count(granule) === 0) continue;
      const lo = this.#futureWord(page.gfn, granule * 2, write);
      const hi = this.#futureWord(page.gfn, granule * 2 + 1, write);
      if (!granuleTranslatesAs(page, granule, lo, hi)) return true;
    }
    return false;
  }

  /** Whether memory translates as the copies of these bytes do. */
  #hasArrived(page: TablePage, write: TableWrite): boolean {
    const last = lastGranule(write.offset, write.size);
    for (let granule = write.offset >> 3; granule <= last; granule++) {
      if (page.count(granule) === 0) continue;
      const lo = this.#memoryWord(page.gfn, granule * 2);
      const hi = this.#memoryWord(page.gfn, granule * 2 + 1);
      if (!granuleTranslatesAs(page, granule, lo, hi)) return false;
    }
    return true;
  }

  /**
   * Takes over what `write` (or, without one, memory) has at these bytes, hooks what is new below, and
   * tells the watches.
   */
  #update(
    page: TablePage,
    offset: number,
    size: number,
    write: TableWrite | undefined,
    vcpu: Vcpu | undefined,
  ): void {
    const from = this.#changeCount;
    // Tables may point to themselves: what is new may lie among the same bytes, at most once a level.
    for (let round = 0; round < 8; round++) {
      if (!this.#takeOver(page, offset, size, write)) break;
      this.#grow();
    }
    if (this.#changeCount > from) {
      page.changes++;
      this.#tell(from, vcpu);
    }
  }

  /** Brings copies and structure up to date; returns whether anything was different. */
  #takeOver(page: TablePage, offset: number, size: number, write: TableWrite | undefined): boolean {
    const { gfn } = page;
    const last = lastGranule(offset, size);
    let different = false;
    for (let granule = offset >> 3; granule <= last; granule++) {
      if (page.count(granule) === 0) continue;
      const word = granule * 2;
      const oldLo = page.word(word);
      const oldHi = page.word(word + 1);
      const newLo = this.#futureWord(gfn, word, write);
      const newHi = this.#futureWord(gfn, word + 1, write);
      if (oldLo === newLo && oldHi === newHi) continue;
      page.setWord(word, newLo);
      page.setWord(word + 1, newHi);
      different = true;
      const from = this.#nodes.length;
      for (let n = 0; n < page.nodes.length; n++) this.#nodes.push(page.nodes[n] as TableNode);
      const to = this.#nodes.length;
      for (let n = from; n < to; n++) {
        const node = this.#nodes[n] as TableNode;
        const entry = node.entryAt(word);
        if (node.format.words === 2) {
          this.#entryChanged(node, entry, oldLo | 0, oldHi | 0, newLo | 0, newHi | 0);
        } else {
          this.#entryChanged(node, entry, oldLo | 0, 0, newLo | 0, 0);
          this.#entryChanged(node, entry + 1, oldHi | 0, 0, newHi | 0, 0);
        }
      }
      this.#nodes.length = from;
    }
    return different;
  }

  #entryChanged(
    node: TableNode,
    entry: number,
    oldLo: number,
    oldHi: number,
    newLo: number,
    newHi: number,
  ): void {
    const { format } = node;
    if (node.removed || !node.isWatched(entry)) return;
    if (sameTranslation(format, oldLo, oldHi, newLo, newHi)) return;
    this.counters.changes++;
    const table = entryKind(format, newLo, newHi) === ENTRY_TABLE;
    const child = node.children?.get(entry);
    const stays =
      table &&
      child !== undefined &&
      child.page.gfn === Math.floor(entryAddress(newLo, newHi) / PAGE_SIZE);
    if (child !== undefined && !stays) {
      node.children?.delete(entry);
      this.#dropNode(child);
    }
    if (table && !stays) {
      this.#newNodes.push(node);
      this.#newEntries.push(entry);
    }
    const at = this.#changeCount++;
    if (this.#changes.length === at) this.#changes.push({} as EntryChange);
    const change = this.#changes[at] as EntryChange;
    change.tree = node.tree;
    change.format = format;
    change.start = node.gvaOf(entry);
    change.end = change.start + format.size;
    change.oldLo = oldLo;
    change.oldHi = oldHi;
    change.newLo = newLo;
    change.newHi = newHi;
  }

  /** Tells the watches of the changes from `from` on. */
  #tell(from: number, vcpu: Vcpu | undefined): void {
    const count = this.#changeCount;
    for (let i = from; i < count; i++) {
      const change = this.#changes[i] as EntryChange;
      const first = this.#watches.length;
      change.tree.collect(change.start, change.end, this.#watches);
      const end = this.#watches.length;
      for (let w = first; w < end; w++) {
        this.#tellWatch(this.#watches[w] as TranslationWatch, change, vcpu);
      }
      this.#watches.length = first;
    }
    this.#changeCount = from;
  }

  #tellWatch(watch: TranslationWatch, change: EntryChange, vcpu: Vcpu | undefined): void {
    if (watch.removed) return;
    const told = this.#told;
    if (watch.isPage) {
      if (!watch.refresh(told.before)) return;
      copyMapping(watch.mapping, told.after);
    } else {
      entryMapping(change.format, change.oldLo, change.oldHi, told.before);
      entryMapping(change.format, change.newLo, change.newHi, told.after);
    }
    watch.changes++;
    if (watch.watcher.after === undefined) return;
    told.watch = watch;
    told.vcpu = vcpu;
    told.start = Math.max(watch.start, change.start);
    told.end = Math.min(watch.end, change.end);
    told.level = change.format.level;
    told.oldLo = change.oldLo >>> 0;
    told.oldHi = change.oldHi >>> 0;
    told.newLo = change.newLo >>> 0;
    told.newHi = change.newHi >>> 0;
    watch.watcher.after(told);
  }

  // ---- structure ----------------------------------------------------------------------------------

  /** Hooks what is newly watched, then reads it, and goes on with the tables that it points to. */
  #grow(): void {
    while (
      this.#widened.length > 0 ||
      this.#unreadPages.length > 0 ||
      this.#newNodes.length > 0 ||
      this.#woken.length > 0
    ) {
      if (this.#widened.length > 0) this.#hookWidened();
      for (let i = 0; i < this.#unreadPages.length; i++) {
        const page = this.#unreadPages[i] as TablePage;
        const granule = this.#unreadGranules[i] as number;
        if (granule < 0) {
          // Another level looks at other bits than those that the copy was kept for.
          this.#takeOver(page, ~granule * 8, 8, undefined);
          continue;
        }
        const word = granule * 2;
        page.setWord(word, this.#futureWord(page.gfn, word));
        page.setWord(word + 1, this.#futureWord(page.gfn, word + 1));
      }
      this.#unreadPages.length = 0;
      this.#unreadGranules.length = 0;
      for (let page = this.#woken.pop(); page !== undefined; page = this.#woken.pop()) {
        this.#takeOver(page, 0, PAGE_SIZE, undefined);
      }
      // Those found below wait for the next round: one commit a level.
      const count = this.#newNodes.length;
      for (let i = 0; i < count; i++) {
        this.#descend(this.#newNodes[i] as TableNode, this.#newEntries[i] as number);
      }
      this.#newNodes.splice(0, count);
      this.#newEntries.splice(0, count);
    }
  }

  #hookWidened(): void {
    for (let i = 0; i < this.#widened.length; i++) {
      const page = this.#widened[i] as TablePage;
      page.widened = false;
      if (page.nodes.length === 0) continue;
      const before = page.hook;
      page.hook = this.#hooks.add(page.gfn, HVI_W, (access) => this.#onWrite(page, access), {
        start: page.start,
        end: page.end,
        owner: "page-tables",
      });
      if (before !== undefined) this.#hooks.remove(before);
    }
    this.#widened.length = 0;
    // The hooks must hold before the entries are read.
    this.#hooks.commit();
  }

  /** Watches the table that an entry points to, if it does. */
  #descend(node: TableNode, entry: number): void {
    if (node.removed || !node.isWatched(entry) || node.children?.has(entry)) return;
    const lo = node.lo(entry);
    const hi = node.hi(entry);
    if (entryKind(node.format, lo, hi) !== ENTRY_TABLE) return;
    const gfn = Math.floor(entryAddress(lo, hi) / PAGE_SIZE);
    const start = node.gvaOf(entry);
    const child = this.#addNode(node.tree, gfn, node.depth + 1, start, 0);
    if (child === undefined) return;
    node.children ??= new Map();
    node.children.set(entry, child);
    const end = start + node.format.size;
    const from = this.#watches.length;
    node.tree.collect(start, end, this.#watches);
    const to = this.#watches.length;
    for (let i = from; i < to; i++) {
      const watch = this.#watches[i] as TranslationWatch;
      this.#cover(child, Math.max(start, watch.start), Math.min(end, watch.end));
    }
    this.#watches.length = from;
  }

  /** @returns undefined when there is no RAM, or no room: the watches know of the latter */
  #addNode(
    tree: SpaceTree,
    gfn: number,
    depth: number,
    base: number,
    offset: number,
  ): TableNode | undefined {
    if (this.#memory.read32(gfn * PAGE_SIZE) < 0) return undefined;
    let page = this.#pages.get(gfn);
    const places = page?.nodes.length ?? 0;
    if (this.#nodeCount >= this.#limits.nodes || places >= this.#limits.nodesOfPage) {
      this.#refuse(tree, depth, base);
      return undefined;
    }
    if (page === undefined) {
      page = new TablePage(gfn);
      this.#pages.set(gfn, page);
    } else if (page.relaxed) this.#wake(page);
    const node = new TableNode(tree, page, depth, base, offset);
    node.slot = page.nodes.length;
    page.nodes.push(node);
    this.#nodeCount++;
    return node;
  }

  #refuse(tree: SpaceTree, depth: number, base: number): void {
    this.counters.refused++;
    const from = this.#watches.length;
    const size = depth === 0 ? Number.POSITIVE_INFINITY : (tree.formats[depth - 1]?.size ?? 0);
    tree.collect(depth === 0 ? Number.NEGATIVE_INFINITY : base, base + size, this.#watches);
    for (let i = from; i < this.#watches.length; i++) {
      (this.#watches[i] as TranslationWatch).complete = false;
    }
    this.#watches.length = from;
  }

  #coverWatch(root: TableNode, watch: TranslationWatch): void {
    // At the root the negative half comes after the other one.
    if (watch.start < 0) this.#cover(root, watch.start, Math.min(watch.end, 0));
    if (watch.end > 0) this.#cover(root, Math.max(watch.start, 0), watch.end);
  }

  /** Watches the entries of a node that translate part of [start, end), and the tables below. */
  #cover(node: TableNode, start: number, end: number): void {
    const { page } = node;
    if (page.relaxed) this.#wake(page);
    const first = node.firstEntry(start);
    const last = node.lastEntry(start, end);
    if (last < first) return;
    // A granule has two 32-bit entries.
    const from = (node.wordOf(first) >> 1) * 8;
    const to = ((node.wordOf(last + 1) + 1) >> 1) * 8;
    if (page.widen(from, to) && !page.widened) {
      page.widened = true;
      this.#widened.push(page);
    }
    for (let i = first; i <= last; i++) {
      if (!node.isWatched(i)) {
        this.#markEntry(node, i);
        continue;
      }
      const child = node.children?.get(i);
      if (child !== undefined) {
        const gva = node.gvaOf(i);
        this.#cover(child, Math.max(start, gva), Math.min(end, gva + node.format.size));
      }
    }
  }

  #markEntry(node: TableNode, entry: number): void {
    const { page } = node;
    node.setWatched(entry, true);
    const word = node.wordOf(entry);
    const granule = word >> 1;
    const fresh = page.count(granule) === 0;
    this.#unreadPages.push(page);
    this.#unreadGranules.push(fresh ? granule : ~granule);
    page.addCount(granule, 1);
    if (node.format.level > 1) {
      this.#newNodes.push(node);
      this.#newEntries.push(entry);
    }
  }

  /** Undoes #cover where no other watch needs the entries. */
  #uncover(node: TableNode, start: number, end: number): void {
    const last = node.lastEntry(start, end);
    for (let i = node.firstEntry(start); i <= last; i++) {
      if (!node.isWatched(i)) continue;
      const from = node.gvaOf(i);
      const to = from + node.format.size;
      const child = node.children?.get(i);
      if (!node.tree.overlaps(from, to)) {
        if (child !== undefined) {
          node.children?.delete(i);
          this.#dropNode(child);
        }
        this.#unmarkEntry(node, i);
      } else if (child !== undefined) {
        this.#uncover(child, Math.max(start, from), Math.min(end, to));
      }
    }
  }

  #unmarkEntry(node: TableNode, entry: number): void {
    node.setWatched(entry, false);
    node.page.addCount(node.wordOf(entry) >> 1, -1);
  }

  /** Forgets a node and all below; their pages' hooks go when nothing else needs them. */
  #dropNode(node: TableNode): void {
    node.removed = true;
    this.#nodeCount--;
    if (node.children !== undefined) {
      for (const child of node.children.values()) this.#dropNode(child);
      node.children = undefined;
    }
    const { count } = node.format;
    for (let i = 0; i < count && node.entries > 0; i++) {
      if (node.isWatched(i)) this.#unmarkEntry(node, i);
    }
    const { page, tree } = node;
    const moved = page.nodes.pop() as TableNode;
    if (moved !== node) {
      page.nodes[node.slot] = moved;
      moved.slot = node.slot;
    }
    if (tree.root === node) tree.root = undefined;
    if (page.nodes.length > 0) return;
    this.#pages.delete(page.gfn);
    this.#relaxed.delete(page);
    if (page.hook !== undefined) this.retire(page.hook);
    page.hook = undefined;
  }

  // ---- tables that cost too much ------------------------------------------------------------------

  /** Gives up the hook of a table that is written much and hardly changes, if its watches permit. */
  #relax(page: TablePage): void {
    const seldom = page.changes < this.#limits.relaxChanges;
    page.writes = 0;
    page.changes = 0;
    if (!seldom || page.hook === undefined || !this.#maySkip(page)) return;
    this.counters.relaxed++;
    page.relaxed = true;
    this.#relaxed.add(page);
    this.#hooks.remove(page.hook);
    page.hook = undefined;
  }

  #maySkip(page: TablePage): boolean {
    const from = this.#watches.length;
    let may = true;
    for (let n = 0; n < page.nodes.length && may; n++) {
      const node = page.nodes[n] as TableNode;
      const all = node.depth === 0;
      const end = node.base + node.format.size * node.format.count;
      node.tree.collect(all ? -Infinity : node.base, all ? Infinity : end, this.#watches);
      for (let i = from; i < this.#watches.length; i++) {
        if ((this.#watches[i] as TranslationWatch).watcher.relaxed !== true) may = false;
      }
      this.#watches.length = from;
    }
    return may;
  }

  /** Hooks a relaxed table again; #grow compares its entries. */
  #wake(page: TablePage): void {
    if (!page.relaxed) return;
    page.relaxed = false;
    this.#relaxed.delete(page);
    this.#woken.push(page);
    if (page.widened) return;
    page.widened = true;
    this.#widened.push(page);
  }
}

function lastGranule(offset: number, size: number): number {
  return Math.min(PAGE_SIZE / 8 - 1, (offset + size - 1) >> 3);
}

/** Whether the entries of a granule, with these contents, translate as their copies do. */
function granuleTranslatesAs(page: TablePage, granule: number, lo: number, hi: number): boolean {
  const word = granule * 2;
  const oldLo = page.word(word);
  const oldHi = page.word(word + 1);
  if (oldLo === lo && oldHi === hi) return true;
  for (let n = 0; n < page.nodes.length; n++) {
    const node = page.nodes[n] as TableNode;
    const { format } = node;
    const entry = node.entryAt(word);
    if (format.words === 2) {
      if (!node.isWatched(entry)) continue;
      if (!sameTranslation(format, oldLo | 0, oldHi | 0, lo | 0, hi | 0)) return false;
      continue;
    }
    if (node.isWatched(entry) && !sameTranslation(format, oldLo | 0, 0, lo | 0, 0)) return false;
    if (node.isWatched(entry + 1) && !sameTranslation(format, oldHi | 0, 0, hi | 0, 0)) {
      return false;
    }
  }
  return true;
}

/** What an entry maps by itself. */
function entryMapping(format: EntryFormat, lo: number, hi: number, out: Mapping): void {
  const page = entryKind(format, lo, hi) === ENTRY_PAGE;
  out.gpa = page ? entryPage(format, lo, hi) : -1;
  out.pageSize = page ? format.size : 0;
  out.writable = page && (lo & PTE_RW) !== 0;
  out.user = page && (lo & PTE_US) !== 0;
  out.nx = !page || hi < 0;
}
