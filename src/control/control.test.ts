// SPDX-License-Identifier: MIT
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, statSync } from "node:fs";
import { connect } from "node:net";
import { InputError } from "../errors.ts";
import { ask, findMachine } from "./client.ts";
import { controlFolder, socketPath } from "./folder.ts";
import { MAX_REQUEST } from "./protocol.ts";
import { ControlServer } from "./server.ts";

let server: ControlServer;

beforeEach(() => {
  server = new ControlServer();
  server.on("echo", (argument) => argument);
  server.on("wrong", () => {
    throw new InputError("no such thing", "try another");
  });
  server.on("broken", () => {
    throw new Error("it broke");
  });
});
afterEach(() => server.close());

/** What the server says to raw bytes. */
function raw(text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = "";
    const socket = connect(socketPath(process.pid), () => socket.write(text));
    socket.on("data", (chunk) => {
      answer += chunk;
    });
    socket.on("error", reject);
    socket.on("close", () => resolve(answer));
  });
}

describe("control socket", () => {
  test("is only for its user", () => {
    expect(statSync(controlFolder()).mode & 0o777).toBe(0o700);
  });

  test("answers a request", async () => {
    expect(await findMachine(process.pid)).toBe(process.pid);
    expect(await ask(process.pid, "echo", { a: ["ü", 1] })).toEqual({ a: ["ü", 1] });
  });

  test("tells a request at fault from a failure", async () => {
    expect(ask(process.pid, "wrong", null)).rejects.toBeInstanceOf(InputError);
    expect(ask(process.pid, "nothing", null)).rejects.toThrow("does not know 'nothing'");
    const failure = await ask(process.pid, "broken", null).catch((e: unknown) => e);
    expect(failure).not.toBeInstanceOf(InputError);
    expect((failure as Error).message).toBe("it broke");
  });

  test("refuses another release, naming both", async () => {
    const line = `${JSON.stringify({ version: "0.0.0-other", command: "echo", argument: 1 })}\n`;
    expect(await raw(line)).toMatch(/running hvi is version .*this one is 0.0.0-other/);
  });

  test.each([
    ["garbage", "{nonsense\n", /not JSON/],
    ["null", "null\n", /version/],
    ["no end of line", "x".repeat(MAX_REQUEST + 1), /too long/],
  ])("survives %s", async (_what, text, said) => {
    expect(await raw(text)).toMatch(said);
    expect(await ask(process.pid, "echo", 5)).toBe(5);
  });

  test("is gone after close", async () => {
    server.close();
    expect(existsSync(socketPath(process.pid))).toBe(false);
    expect(findMachine(process.pid)).rejects.toThrow(`no hvi runs as process ${process.pid}`);
  });
});
