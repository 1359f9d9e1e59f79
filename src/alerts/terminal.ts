// SPDX-License-Identifier: MIT
import { printable } from "../printable.ts";
import type { Alert, AlertSink, Originator, Violation } from "./alert.ts";

/** Violations shown in one second; a person reads no more, and a terminal takes its time. */
const LINES_A_SECOND = 200;

/** One readable line an alert, for people; of a flood, the beginning of each second and a count. */
export class TerminalSink implements AlertSink {
  readonly #write: (line: string) => void;
  readonly #colour: boolean;
  /** The host's second that `#shown` and `#left` count in: `time` of an alert, to the second. */
  #second = "";
  #shown = 0;
  #left = 0;

  constructor(write: (line: string) => void, colour: boolean) {
    this.#write = write;
    this.#colour = colour;
  }

  write(alert: Alert): void {
    const second = alert.time.slice(0, 19);
    if (second !== this.#second) {
      this.#tellLeft();
      this.#second = second;
      this.#shown = 0;
    }
    if (alert.kind === "violation" && ++this.#shown > LINES_A_SECOND) this.#left++;
    else this.#write(formatAlert(alert, this.#colour));
  }

  close(): void {
    this.#tellLeft();
  }

  #tellLeft(): void {
    if (this.#left === 0) return;
    this.#write(`hvi: ${this.#left} more violations in that second are not shown here`);
    this.#left = 0;
  }
}

/** The line for one alert, without a newline. */
export function formatAlert(alert: Alert, colour = false): string {
  if (alert.kind === "event") return paint(colour, 36, `hvi: ${printable(alert.message)}`);
  const verdict =
    alert.action === "denied" ? paint(colour, 31, "DENIED") : paint(colour, 33, "ALLOWED");
  return `${verdict} ${printable(describe(alert))}`;
}

function describe(v: Violation): string {
  const victim = v.victim.symbol ?? v.victim.gva;
  const bytes =
    v.access.new === undefined ? "" : ` ${shorten(v.access.old)} -> ${shorten(v.access.new)}`;
  const process = v.process === undefined ? "" : ` in ${v.process.comm}[${v.process.tgid}]`;
  const what =
    v.type === "translation-violation"
      ? "remap of"
      : `${v.access.kind} of ${v.access.size} bytes at`;
  const times = v.access.count > 1 ? `, ${v.access.count} accesses` : "";
  return `${v.protection}: ${what} ${victim} (${v.victim.kind})${bytes}${times} by ${who(v.originator)}${process}`;
}

function who(o: Originator): string {
  const place = o.symbol ?? o.rip;
  // The symbol of a module names it already.
  return o.module === undefined ? `${o.kind} ${place}` : place;
}

function shorten(hex: string | undefined): string {
  if (hex === undefined) return "?";
  return hex.length > 32 ? `${hex.slice(0, 32)}…` : hex;
}

function paint(colour: boolean, code: number, text: string): string {
  return colour ? `\u001b[${code}m${text}\u001b[0m` : text;
}
