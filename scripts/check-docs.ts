// SPDX-License-Identifier: MIT
/**
 * Keeps the documents true: each test that docs/features.md names must exist, and must have run and
 * passed in the last `npm test` or `npm run test:vmx`; each file that a document links to must be
 * there.
 *
 * A test is named as `path/to/file.test.ts` or `path/to/file.test.ts: part of a test's name`; a step
 * of the lab as `lab: NAME`, or `lab: NAME.` for all whose names begin so.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { readJunit, type TestCase } from "./junit.ts";

/** A test that a document names. */
interface Claim {
  readonly document: string;
  readonly line: number;
  readonly file: string;
  /** Part of the name of a test in that file; empty for the whole file. */
  readonly test: string;
}

function documents(root: string): string[] {
  const docs = join(root, "docs");
  const names = existsSync(docs) ? readdirSync(docs).filter((n) => n.endsWith(".md")) : [];
  return [join(root, "README.md"), ...names.map((n) => join(docs, n))].filter(existsSync);
}

function claims(document: string): Claim[] {
  const found: Claim[] = [];
  const lines = readFileSync(document, "utf8").split("\n");
  for (const [index, line] of lines.entries()) {
    for (const match of line.matchAll(/`([\w./-]+\.test\.ts)(?:: ([^`]+))?`/g)) {
      found.push({ document, line: index + 1, file: match[1] ?? "", test: match[2] ?? "" });
    }
  }
  return found;
}

/** Steps of the lab that a document names, with where. */
function labClaims(root: string, document: string): { at: string; name: string }[] {
  const lines = readFileSync(document, "utf8").split("\n");
  return lines.flatMap((line, index) =>
    [...line.matchAll(/`lab: ([\w.-]+)`/g)].map((match) => ({
      at: `${relative(root, document)}:${index + 1}`,
      name: match[1] ?? "",
    })),
  );
}

/**
 * What is wrong with what the documents say of the lab.
 * @param steps the lab's steps, each with how it went; undefined as an outcome when it is not asked
 */
export function labDocsProblems(
  root: string,
  steps: ReadonlyMap<string, string | undefined>,
): string[] {
  const problems: string[] = [];
  for (const { at, name } of documents(root).flatMap((d) => labClaims(root, d))) {
    const meant = [...steps].filter(([step]) =>
      name.endsWith(".") ? step.startsWith(name) : step === name,
    );
    if (meant.length === 0) problems.push(`${at}: no such step, or it did not run: lab: ${name}`);
    for (const [step, outcome] of meant) {
      if (outcome !== undefined && outcome !== "ok")
        problems.push(`${at}: ${outcome}: lab: ${step}`);
    }
  }
  return problems;
}

/** Links to files of the project that are not there. */
function deadLinks(root: string, document: string): string[] {
  const problems: string[] = [];
  const lines = readFileSync(document, "utf8").split("\n");
  for (const [index, line] of lines.entries()) {
    for (const match of line.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
      const target = match[1] ?? "";
      if (/^[a-z]+:/.test(target)) continue;
      if (!existsSync(join(dirname(document), target))) {
        problems.push(`${relative(root, document)}:${index + 1}: no such file: ${target}`);
      }
    }
  }
  return problems;
}

/** What is wrong with the documents; without `cases`, whether tests ran is not asked. */
export function docsProblems(root: string, cases?: readonly TestCase[]): string[] {
  const problems: string[] = [];
  for (const document of documents(root)) {
    problems.push(...deadLinks(root, document));
    for (const claim of claims(document)) {
      const at = `${relative(root, document)}:${claim.line}`;
      const path = join(root, claim.file);
      if (!existsSync(path)) {
        problems.push(`${at}: no such test file: ${claim.file}`);
        continue;
      }
      if (cases === undefined) continue;
      const ran = cases.filter(
        (c) => c.file === claim.file && c.name.includes(claim.test) && c.outcome !== "skipped",
      );
      const what = claim.test === "" ? claim.file : `${claim.file}: ${claim.test}`;
      if (ran.length === 0) problems.push(`${at}: did not run: ${what}`);
      else if (ran.some((c) => c.outcome === "failed")) problems.push(`${at}: failed: ${what}`);
    }
  }
  return problems;
}

if (import.meta.main) {
  const root = join(import.meta.dir, "..");
  const report = process.argv[2];
  const problems = docsProblems(root, report === undefined ? undefined : readJunit(report));
  for (const problem of problems) console.error(problem);
  console.log(problems.length === 0 ? "documents: ok" : `documents: ${problems.length} problems`);
  process.exit(problems.length === 0 ? 0 : 1);
}
