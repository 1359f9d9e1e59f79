// SPDX-License-Identifier: MIT
/**
 * Makes src/bridge/abi.ts from hvi.h.
 *
 * The header gives the names (constants, enums, structures, fields); a C
 * program that includes the header and is compiled by gcc gives their values,
 * sizes and offsets. No number is typed twice.
 *
 *     bun hv/abi/gen.ts            write src/bridge/abi.ts
 *     bun hv/abi/gen.ts --check    exit 1 when it differs from the header
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const HEADER = join(import.meta.dir, "hvi.h");
export const ABI_OUTPUT = join(import.meta.dir, "../../src/bridge/abi.ts");

/** The structure whose members are given relative to the vCPU page. */
const PAGE_STRUCT = "hvi_vcpu";

interface Field {
  name: string;
  /** Name of the structure type, without "struct ", or undefined for scalars. */
  struct?: string;
  array: boolean;
}

interface Header {
  defines: { name: string; hex: boolean }[];
  enums: { name: string; members: string[] }[];
  structs: { name: string; fields: Field[] }[];
}

function parseHeader(source: string): Header {
  const text = source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/\\\n/g, " ");
  const header: Header = { defines: [], enums: [], structs: [] };
  for (const m of text.matchAll(/^#define\s+(HVI_\w+)[ \t]+(\S.*)$/gm)) {
    header.defines.push({ name: m[1], hex: /0x|<<|_IO/.test(m[2]) });
  }
  for (const m of text.matchAll(/enum\s+(hvi_\w+)\s*\{([^}]*)\}/g)) {
    const members = m[2]
      .split(",")
      .map((s) => s.replace(/=.*/s, "").trim())
      .filter((s) => s !== "");
    header.enums.push({ name: m[1], members });
  }
  for (const m of text.matchAll(/struct\s+(hvi_\w+)\s*\{([^}]*)\}/g)) {
    const fields: Field[] = [];
    for (const declaration of m[2].split(";")) {
      const d = /^\s*(struct\s+(hvi_\w+)|\w+)\s+(.+)$/s.exec(declaration);
      if (!d) continue;
      for (const declarator of d[3].split(",")) {
        const name = declarator.replace(/\[.*/s, "").trim();
        fields.push({ name, struct: d[2], array: declarator.includes("[") });
      }
    }
    header.structs.push({ name: m[1], fields });
  }
  return header;
}

function constantName(struct: string, field: string): string {
  return `${struct.replace(/^hvi_/, "")}_${field}`.toUpperCase();
}

interface Line {
  ts: string;
  expression: string;
  hex: boolean;
}

interface Section {
  title: string;
  lines: Line[];
}

/** What to export, in the order of the header, with the C expression of each value. */
function sections(header: Header): Section[] {
  const out: Section[] = [
    {
      title: "Constants and ioctl numbers",
      lines: header.defines.map((d) => ({ ts: d.name, expression: d.name, hex: d.hex })),
    },
  ];
  for (const e of header.enums) {
    out.push({
      title: `enum ${e.name}`,
      lines: e.members.map((m) => ({ ts: m, expression: m, hex: false })),
    });
  }
  const page = header.structs.find((s) => s.name === PAGE_STRUCT);
  if (!page) throw new Error(`hvi.h has no struct ${PAGE_STRUCT}`);
  for (const s of header.structs) {
    const member = page.fields.find((f) => f.struct === s.name && !f.array);
    const onPage =
      member && page.fields.filter((f) => f.struct === s.name).length === 1 ? member : undefined;
    const base = onPage ? `offsetof(struct ${PAGE_STRUCT}, ${onPage.name}) + ` : "";
    out.push({
      title: `struct ${s.name}${onPage ? " (offsets from the start of the vCPU page)" : ""}`,
      lines: [
        {
          ts: `SIZEOF_${s.name.replace(/^hvi_/, "").toUpperCase()}`,
          expression: `sizeof(struct ${s.name})`,
          hex: false,
        },
        ...s.fields
          .filter((f) => f.name !== "reserved")
          .map((f) => ({
            ts: constantName(s.name, f.name),
            expression: `${base}offsetof(struct ${s.name}, ${f.name})`,
            hex: false,
          })),
      ],
    });
  }
  return out;
}

function run(argv: string[]): string {
  const p = Bun.spawnSync(argv, { stdout: "pipe", stderr: "pipe" });
  if (p.exitCode !== 0) {
    throw new Error(`${argv[0]} failed (status ${p.exitCode}): ${p.stderr.toString().trim()}`);
  }
  return p.stdout.toString();
}

/** Asks gcc for the value of each expression. */
function evaluate(expressions: string[]): bigint[] {
  const dir = mkdtempSync(join(tmpdir(), "hvi-abi-"));
  try {
    const c = join(dir, "abi.c");
    writeFileSync(
      c,
      [
        "#include <stddef.h>",
        "#include <stdio.h>",
        `#include "${HEADER}"`,
        "int main(void)",
        "{",
        ...expressions.map((e) => `\tprintf("%llu\\n", (unsigned long long)(${e}));`),
        "\treturn 0;",
        "}",
        "",
      ].join("\n"),
    );
    run(["gcc", "-std=gnu11", "-Wall", "-Werror", "-o", join(dir, "abi"), c]);
    return run([join(dir, "abi")])
      .trim()
      .split("\n")
      .map((s) => BigInt(s));
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

function camel(name: string): string {
  return name.replace(/_(\w)/g, (_, c: string) => c.toUpperCase());
}

/** Longest prefix, ending in an underscore, that all names share. */
function commonPrefix(names: string[]): number {
  let n = names[0].lastIndexOf("_") + 1;
  while (n > 0 && !names.every((s) => s.startsWith(names[0].slice(0, n)))) {
    n = names[0].lastIndexOf("_", n - 2) + 1;
  }
  return n;
}

/** The text of src/bridge/abi.ts. Throws with gcc's message when the header does not compile. */
export function generateAbi(): string {
  const header = parseHeader(readFileSync(HEADER, "utf8"));
  const parts = sections(header);
  const values = evaluate(parts.flatMap((s) => s.lines.map((l) => l.expression)));
  const byName = new Map<string, bigint>();
  const out: string[] = [
    "// SPDX-License-Identifier: MIT",
    "// Made from hv/abi/hvi.h by hv/abi/gen.ts; do not edit.",
  ];
  let i = 0;
  for (const section of parts) {
    out.push("", `// ${section.title}`);
    for (const line of section.lines) {
      const value = values[i++];
      if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
        throw new Error(`${line.ts} does not fit a number exactly`);
      }
      if (byName.has(line.ts)) throw new Error(`${line.ts} is exported twice`);
      byName.set(line.ts, value);
      const shown = line.hex ? `0x${value.toString(16)}` : value.toString();
      out.push(`export const ${line.ts} = ${shown};`);
    }
  }
  out.push("", "// Names of enum members, by value");
  for (const e of header.enums) {
    const cut = commonPrefix(e.members);
    out.push(`export const ${camel(e.name)}Names: Readonly<Record<number, string>> = {`);
    for (const m of e.members) out.push(`  ${byName.get(m)}: "${m.slice(cut)}",`);
    out.push("};");
  }
  const ioctls = header.defines.filter((d) =>
    new RegExp(`#define\\s+${d.name}\\s+_IO`).test(readFileSync(HEADER, "utf8")),
  );
  out.push(
    "",
    "// Names of ioctls, by number",
    "export const hviIoctlNames: Readonly<Record<number, string>> = {",
  );
  for (const d of ioctls) out.push(`  ${byName.get(d.name)}: "${d.name}",`);
  out.push("};", "");
  return out.join("\n");
}

if (import.meta.main) {
  const text = generateAbi();
  if (!process.argv.includes("--check")) {
    writeFileSync(ABI_OUTPUT, text);
  } else if (readFileSync(ABI_OUTPUT, "utf8") !== text) {
    console.error("src/bridge/abi.ts differs from hv/abi/hvi.h. Run: bun hv/abi/gen.ts");
    process.exit(1);
  }
}
