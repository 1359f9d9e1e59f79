// SPDX-License-Identifier: MIT
/**
 * What the lab's machine says on its second serial line (init.sh describes the lines), as events.
 * The line carries what programs under test print, so each of their lines has a mark in front, and
 * a file is believed when its size and its sum are right.
 */
import { createHash } from "node:crypto";
import { gunzipSync } from "node:zlib";

export type ChannelEvent =
  | { readonly kind: "boot" | "beat"; readonly seconds: number }
  | { readonly kind: "begin"; readonly name: string }
  | { readonly kind: "line"; readonly text: string }
  | { readonly kind: "kmsg"; readonly level: number; readonly text: string }
  | { readonly kind: "file"; readonly name: string; readonly data: Uint8Array }
  | {
      readonly kind: "end";
      readonly name: string;
      readonly code: number;
      readonly seconds: number;
    }
  | { readonly kind: "done" }
  | { readonly kind: "garbled"; readonly text: string };

/** A file that is coming in: what was announced, and its lines so far. */
interface Incoming {
  readonly name: string;
  readonly size: number;
  readonly sum: string;
  readonly parts: string[];
}

function received(file: Incoming): ChannelEvent {
  const data = Buffer.from(file.parts.join(""), "base64");
  const sum = createHash("md5").update(data).digest("hex");
  return data.length === file.size && sum === file.sum
    ? { kind: "file", name: file.name, data: gunzipSync(data) }
    : { kind: "garbled", text: `file ${file.name}: damaged, ${data.length} of ${file.size} bytes` };
}

/** One line that is no part of a file. */
function parse(line: string): ChannelEvent {
  if (line.startsWith("|")) return { kind: "line", text: line.slice(2) };
  const [mark, word, first = "", second = "", third = ""] = line.split(" ");
  if (mark === "@lab") {
    if (word === "boot" || word === "beat") return { kind: word, seconds: Number(first) };
    if (word === "begin") return { kind: "begin", name: first };
    if (word === "done") return { kind: "done" };
    if (word === "end" && third !== "") {
      return { kind: "end", name: first, code: Number(second), seconds: Number(third) };
    }
    const said = /^@lab kmsg <(\d)>(.*)$/.exec(line);
    if (said) return { kind: "kmsg", level: Number(said[1]), text: said[2] ?? "" };
  }
  return { kind: "garbled", text: line };
}

export class Channel {
  private rest = "";
  private incoming: Incoming | undefined;

  /** Takes in what came over the line; what is complete comes out. */
  push(text: string): ChannelEvent[] {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop() ?? "";
    const events: ChannelEvent[] = [];
    for (const raw of lines) this.take(raw.endsWith("\r") ? raw.slice(0, -1) : raw, events);
    return events;
  }

  private take(line: string, events: ChannelEvent[]): void {
    if (this.incoming && line.startsWith("+ ")) {
      this.incoming.parts.push(line.slice(2));
      return;
    }
    // A heartbeat may come between the lines of a file.
    if (this.incoming && !line.startsWith("@lab beat ")) {
      events.push(received(this.incoming));
      this.incoming = undefined;
    }
    const announced = /^@lab file (\S+) (\d+) ([0-9a-f]{32})$/.exec(line);
    if (announced) {
      const [, name = "", size, sum = ""] = announced;
      this.incoming = { name, size: Number(size), sum, parts: [] };
    } else if (line !== "") events.push(parse(line));
  }
}
