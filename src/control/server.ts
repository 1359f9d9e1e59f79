// SPDX-License-Identifier: MIT
import { rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { InputError } from "../errors.ts";
import { VERSION } from "../version.ts";
import { makeControlFolder, socketPath } from "./folder.ts";
import { type ControlReply, type ControlRequest, MAX_REQUEST } from "./protocol.ts";

/** Does a command; what it returns goes to the client. Throws InputError for a request at fault. */
export type CommandHandler = (argument: unknown) => unknown;

/**
 * Answers requests about the machine of this process. Handlers run between slices of guest work, so
 * the guest stands still while one looks.
 */
export class ControlServer {
  readonly #server: Server;
  readonly #path: string;
  readonly #handlers = new Map<string, CommandHandler>();
  readonly #open = new Set<Socket>();

  /** @throws Error when the socket cannot be made */
  constructor() {
    makeControlFolder();
    this.#path = socketPath(process.pid);
    // A process of the same id that was killed may have left one.
    rmSync(this.#path, { force: true });
    this.#server = createServer((socket) => this.#serve(socket));
    this.#server.on("error", () => this.close());
    this.#server.listen(this.#path);
    // A machine ends when its guest does, whoever is connected.
    this.#server.unref();
  }

  on(command: string, handler: CommandHandler): void {
    this.#handlers.set(command, handler);
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#open) socket.destroy();
    rmSync(this.#path, { force: true });
  }

  #serve(socket: Socket): void {
    this.#open.add(socket);
    let text = "";
    let answered = false;
    const answer = (reply: ControlReply): void => {
      answered = true;
      socket.end(`${JSON.stringify(reply)}\n`);
    };
    socket.setEncoding("utf8");
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.#open.delete(socket));
    socket.on("data", (chunk: string) => {
      if (answered) return;
      text += chunk;
      const end = text.indexOf("\n");
      if (end >= 0) answer(this.#handle(text.slice(0, end)));
      else if (text.length > MAX_REQUEST) {
        answer({ ok: false, message: "the request is too long", hint: "", input: true });
      }
    });
  }

  #handle(line: string): ControlReply {
    let asked: ControlRequest;
    try {
      asked = JSON.parse(line) as ControlRequest;
    } catch {
      return { ok: false, message: "the request is not JSON", hint: "", input: true };
    }
    if (asked?.version !== VERSION) {
      const message = `the running hvi is version ${VERSION}, this one is ${asked?.version}`;
      return { ok: false, message, hint: "use the executable that runs the guest", input: true };
    }
    const handler = this.#handlers.get(asked.command);
    if (handler === undefined) {
      const message = `the running hvi does not know '${asked.command}'`;
      return { ok: false, message, hint: "", input: true };
    }
    try {
      return { ok: true, result: handler(asked.argument) };
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      const input = error instanceof InputError;
      return { ok: false, message, hint: input ? error.hint : "", input };
    }
  }
}
