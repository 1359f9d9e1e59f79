// SPDX-License-Identifier: MIT
import { rmSync } from "node:fs";
import { connect } from "node:net";
import { InputError } from "../errors.ts";
import { controlFolder, socketPath, socketPids } from "./folder.ts";
import { type ControlReply, request } from "./protocol.ts";

/** Milliseconds without an answer after which the machine counts as hung. */
const PATIENCE = 30_000;

/**
 * The machine that is meant: the one of process `pid`, or the only one there is.
 * @throws InputError when there is none, or several to choose from
 */
export async function findMachine(pid: number | undefined): Promise<number> {
  const pids = pid === undefined ? socketPids() : [pid];
  const alive: number[] = [];
  for (const candidate of pids) if (await listens(candidate)) alive.push(candidate);
  const [only] = alive;
  if (only === undefined) {
    const which = pid === undefined ? "no hvi is running" : `no hvi runs as process ${pid}`;
    throw new InputError(
      `${which} (looked in ${controlFolder()})`,
      "start one with hvi run, as this user; or give a snapshot file",
    );
  }
  if (alive.length > 1) {
    throw new InputError(
      `several are running: processes ${alive.join(", ")}`,
      "choose one with --machine PID",
    );
  }
  return only;
}

/** Whether somebody answers at the socket; a socket left by a killed process is removed. */
function listens(pid: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath(pid));
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ECONNREFUSED") rmSync(socketPath(pid), { force: true });
      resolve(false);
    });
  });
}

/**
 * Asks a running machine; its result.
 * @throws InputError for what the machine says is wrong with the request, Error otherwise
 */
export async function ask(pid: number, command: string, argument: unknown): Promise<unknown> {
  const reply = await exchange(pid, `${JSON.stringify(request(command, argument))}\n`);
  if (reply.ok) return reply.result;
  if (reply.input) throw new InputError(reply.message, reply.hint);
  throw new Error(reply.message);
}

function exchange(pid: number, line: string): Promise<ControlReply> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath(pid), () => socket.write(line));
    let text = "";
    socket.setEncoding("utf8");
    socket.setTimeout(PATIENCE, () => {
      socket.destroy(new Error(`process ${pid} does not answer`));
    });
    socket.on("data", (chunk: string) => {
      text += chunk;
    });
    socket.on("error", reject);
    socket.on("close", () => {
      try {
        resolve(JSON.parse(text) as ControlReply);
      } catch {
        reject(new Error(`process ${pid} ended before it answered`));
      }
    });
  });
}
