// SPDX-License-Identifier: MIT
import type { Alert, AlertSink, Originator, Violation } from "./alert.ts";

/** One readable line an alert, for people. */
export class TerminalSink implements AlertSink {
  readonly #write: (line: string) => void;
  readonly #colour: boolean;

  constructor(write: (line: string) => void, colour: boolean) {
    this.#write = write;
    this.#colour = colour;
  }

  write(alert: Alert): void {
    this.#write(formatAlert(alert, this.#colour));
  }

  close(): void {}
}

/** The line for one alert, without a newline. */
export function formatAlert(alert: Alert, colour = false): string {
  if (alert.kind === "event") return paint(colour, 36, `hvi: ${alert.message}`);
  const verdict =
    alert.action === "denied" ? paint(colour, 31, "DENIED") : paint(colour, 33, "ALLOWED");
  return `${verdict} ${describe(alert)}`;
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
  return `${v.protection}: ${what} ${victim} (${v.victim.kind})${bytes} by ${who(v.originator)}${process}`;
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
