// SPDX-License-Identifier: MIT
/**
 * The disc that the lab's machine boots from: GRUB, a stock Debian kernel, and a first file system
 * in parts that the kernel unpacks one after the other. Large parts are compressed and kept until
 * what is in them changes.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { must } from "../../fixtures/command.ts";
import { type CpioEntry, cpio } from "../../fixtures/initramfs/cpio.ts";

/** A file for the machine: where it comes from, or what is in it. */
export interface LabFile {
  readonly path: string;
  readonly from?: string;
  readonly text?: string;
  readonly data?: Uint8Array;
  readonly mode?: number;
}

function contents(f: LabFile): Uint8Array {
  if (f.data) return f.data;
  if (f.text !== undefined) return new TextEncoder().encode(f.text);
  if (f.from === undefined) throw new Error(`${f.path}: no content given`);
  return readFileSync(f.from);
}

/** Files, with the folders above them, as a cpio archive. */
export function archive(files: readonly LabFile[]): Uint8Array {
  const entries: CpioEntry[] = [];
  const dirs = new Set<string>(["."]);
  const parents = (path: string): void => {
    const dir = dirname(path);
    if (dirs.has(dir)) return;
    parents(dir);
    dirs.add(dir);
    entries.push({ kind: "dir", path: dir });
  };
  for (const f of files) {
    const path = f.path.replace(/^\//, "");
    parents(path);
    entries.push({ kind: "file", path, data: contents(f), mode: f.mode ?? 0o755 });
  }
  return cpio(entries);
}

/** `files` as a compressed part at `at`, made again when one of them has changed. */
export async function compressedPart(at: string, files: readonly LabFile[]): Promise<string> {
  const hash = createHash("sha256");
  for (const f of files) hash.update(`${f.path} ${f.mode ?? ""}\n`).update(contents(f));
  const key = hash.digest("hex");
  const keyFile = `${at}.key`;
  if (existsSync(at) && existsSync(keyFile) && readFileSync(keyFile, "utf8") === key) return at;
  mkdirSync(dirname(at), { recursive: true });
  rmSync(keyFile, { force: true });
  const plain = `${at}.${process.pid}.cpio`;
  const packed = `${at}.${process.pid}.lz4`;
  try {
    writeFileSync(plain, archive(files));
    // -l: the format that the kernel reads.
    await must(["lz4", "-l", "-9", "-f", "-q", plain, packed]);
    renameSync(packed, at);
    writeFileSync(keyFile, key);
  } finally {
    rmSync(plain, { force: true });
    rmSync(packed, { force: true });
  }
  return at;
}

/** GRUB's modules that reading a disc and starting Linux need; the rest only takes time to read. */
const GRUB_MODULES = "normal linux iso9660 biosdisk part_msdos minicmd test echo";

/** Writes the disc. */
export async function makeIso(o: {
  readonly iso: string;
  readonly kernel: string;
  readonly append: string;
  readonly parts: readonly string[];
}): Promise<void> {
  const dir = `${o.iso}.tree`;
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(join(dir, "boot/grub"), { recursive: true });
  const graft = [`boot/vmlinuz=${o.kernel}`];
  const names = o.parts.map((part, i) => {
    const name = `boot/${i}-${basename(part)}`;
    graft.push(`${name}=${part}`);
    return `/${name}`;
  });
  const menu = [
    "set timeout=0",
    `linux /boot/vmlinuz ${o.append}`,
    `initrd ${names.join(" ")}`,
    "boot",
    "",
  ];
  writeFileSync(join(dir, "boot/grub/grub.cfg"), menu.join("\n"));
  const argv = ["grub-mkrescue", `--output=${o.iso}`, "--locales=", "--fonts=", "--themes="];
  argv.push(`--install-modules=${GRUB_MODULES}`, dir, ...graft);
  await must(argv);
  rmSync(dir, { recursive: true });
}
