// SPDX-License-Identifier: MIT
/** The built images of the core guest. Made by `make -C test/core/guest`. */
import { readFileSync } from "node:fs";
import type { Mode } from "./layout.ts";

export interface Image {
  readonly bytes: Uint8Array;
  /** Physical address at which it is loaded and entered. */
  readonly base: number;
  /** Linear addresses: signed in long mode, unsigned otherwise. */
  readonly symbols: ReadonlyMap<string, number>;
}

export type ImageSource = (mode: Mode) => Image;

/** `nm`'s lines: address, type, name. */
function parseSymbols(text: string): Map<string, number> {
  const symbols = new Map<string, number>();
  for (const line of text.split("\n")) {
    const [address, , name] = line.split(" ");
    // The upper half does not fit a double as an unsigned number.
    if (address && name) symbols.set(name, Number(BigInt.asIntN(64, BigInt(`0x${address}`))));
  }
  return symbols;
}

/** Images from a directory, read once. */
export function imagesFrom(directory: string): ImageSource {
  const cache = new Map<Mode, Image>();
  return (mode) => {
    let image = cache.get(mode);
    if (!image) {
      const symbols = parseSymbols(readFileSync(`${directory}/${mode}.sym`, "utf8"));
      const base = symbols.get("_start");
      if (base === undefined) throw new Error(`the image ${mode} has no _start`);
      image = { bytes: new Uint8Array(readFileSync(`${directory}/${mode}.bin`)), base, symbols };
      cache.set(mode, image);
    }
    return image;
  };
}
