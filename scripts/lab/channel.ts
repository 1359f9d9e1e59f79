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

interface Incoming {
  readonly name: string;
  readonly size: number;
  readonly sum: string;
  readonly parts: string[];
}

export class Channel {
  private rest = "";
  private incoming: Incoming | undefined;

  /** Takes in what came over the line; what is complete comes out. */
  push(text: string): ChannelEvent[] {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop() ?? "";
    const events: ChannelEvent[] = [];
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line.startsWith("+ ")) {
        this.incoming?.parts.push(line.slice(2));
        continue;
      }
      const event = this.read(line);
      // A heartbeat may come between the lines of a file.
      if (event.kind !== "beat") this.finish(events);
      if (event.kind === "garbled" && event.text === "") continue;
      events.push(event);
    }
    return events.filter((e) => e !== STARTED);
  }

  private read(line: string): ChannelEvent {
    if (line.startsWith("| ") || line === "|") return { kind: "line", text: line.slice(2) };
    const [mark, word, ...args] = line.split(" ");
    if (mark !== "@lab") return { kind: "garbled", text: line };
    const [first = "", second = "", third = ""] = args;
    switch (word) {
      case "boot":
      case "beat":
        return { kind: word, seconds: Number(first) };
      case "begin":
        return { kind: "begin", name: first };
      case "kmsg": {
        const match = /^@lab kmsg <(\d)>(.*)$/.exec(line);
        if (match) return { kind: "kmsg", level: Number(match[1]), text: match[2] ?? "" };
        break;
      }
      case "file":
        this.next = { name: first, size: Number(second), sum: third, parts: [] };
        return STARTED;
      case "end":
        return { kind: "end", name: first, code: Number(second), seconds: Number(third) };
      case "done":
        return { kind: "done" };
    }
    return { kind: "garbled", text: line };
  }

  private next: Incoming | undefined;

  /** Ends the file that was coming in, and starts the one that was announced. */
  private finish(events: ChannelEvent[]): void {
    const file = this.incoming;
    this.incoming = this.next;
    this.next = undefined;
    if (file === undefined) return;
    const data = Buffer.from(file.parts.join(""), "base64");
    const sum = createHash("md5").update(data).digest("hex");
    if (data.length !== file.size || sum !== file.sum) {
      events.push({ kind: "garbled", text: `file ${file.name}: ${data.length} of ${file.size} bytes, or damaged` });
      return;
    }
    events.push({ kind: "file", name: file.name, data: gunzipSync(data) });
  }
}

/** Stands for the announcement of a file, which is no event of its own. */
const STARTED: ChannelEvent = { kind: "garbled", text: "" };
