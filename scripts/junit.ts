// SPDX-License-Identifier: MIT
/** Reading the JUnit report that `bun test` writes. */
import { existsSync, readFileSync } from "node:fs";

export interface TestCase {
  /** The test file, relative to the project. */
  readonly file: string;
  readonly name: string;
  readonly outcome: "passed" | "failed" | "skipped";
}

function unescapeXml(text: string): string {
  return text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&apos;", "'")
    .replaceAll(/&#(\d+);/g, (_, n) => String.fromCodePoint(Number(n)))
    .replaceAll("&amp;", "&");
}

/** The cases of a report; none when there is no report. */
export function readJunit(path: string): TestCase[] {
  if (!existsSync(path)) return [];
  const xml = readFileSync(path, "utf8");
  const cases: TestCase[] = [];
  for (const match of xml.matchAll(/<testcase\s([^>]*?)(\/>|>([\s\S]*?)<\/testcase>)/g)) {
    const attribute = (name: string): string =>
      unescapeXml(new RegExp(`(?:^|\\s)${name}="([^"]*)"`).exec(match[1] ?? "")?.[1] ?? "");
    const body = match[3] ?? "";
    const outcome = /<(failure|error)[\s>/]/.test(body)
      ? "failed"
      : /<skipped[\s>/]/.test(body)
        ? "skipped"
        : "passed";
    cases.push({ file: attribute("file"), name: attribute("name"), outcome });
  }
  return cases;
}
