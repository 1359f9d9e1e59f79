// SPDX-License-Identifier: MIT
/** The demo's report as one HTML page that needs nothing beside it. */
import { describe, type RunVerdict } from "../fixtures/attacks/verdict.ts";

export interface Report {
  readonly release: string;
  readonly summary: string;
  readonly problems: readonly string[];
  readonly run: RunVerdict;
  /** The processes, as `hvi inspect ps` prints them. */
  readonly ps: string;
}

/** Text from a guest is hostile: nothing of it may become markup. */
function escapeHtml(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

function attackRows(run: RunVerdict): string {
  return run.attacks
    .map((a) => {
      const [way = "", writer = "", target = ""] = a.name.split("/");
      const cells = [way, writer, target, a.verdict, a.alerts[0] ? describe(a.alerts[0]) : ""];
      const kind = a.verdict === "denied" ? "good" : "bad";
      return `<tr class="${kind}">${cells.map((c) => `<td>${escapeHtml(c)}</td>`).join("")}</tr>`;
    })
    .join("\n");
}

function problemList(problems: readonly string[]): string {
  if (problems.length === 0) return "";
  const items = problems.map((p) => `<li>${escapeHtml(p)}</li>`).join("");
  return `<h2>What went wrong</h2><ul class="bad">${items}</ul>`;
}

/** The page. */
export function page(report: Report): string {
  const { run } = report;
  const events = run.events
    .map((e) => (e.kind === "event" ? `<li>${escapeHtml(`${e.type}: ${e.message}`)}</li>` : ""))
    .join("");
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>hvi demo: ${escapeHtml(report.release)}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; }
td:last-child, pre { font-family: ui-monospace, monospace; font-size: 13px; }
tr.good td:nth-child(4) { color: #06702c; font-weight: 600; }
tr.bad td:nth-child(4), ul.bad { color: #b00020; font-weight: 600; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; }
</style>
<h1>hvi: ${escapeHtml(report.release)} under attack</h1>
<p>${escapeHtml(report.summary)}; the benign workload ran ${run.benignRuns} times.</p>
${problemList(report.problems)}
<h2>Attacks</h2>
<table>
<tr><th>way</th><th>writer</th><th>target</th><th>verdict</th><th>first alert</th></tr>
${attackRows(run)}
</table>
<h2>Events</h2>
<ul>${events}</ul>
<h2>Processes, as the engine sees them</h2>
<pre>${escapeHtml(report.ps)}</pre>
</html>
`;
}
