// SPDX-License-Identifier: MIT
/** The assembled guests: images and symbols. Made by `make -C test/conformance/guests`. */
import { readFileSync } from "node:fs";

export interface Image {
  readonly bytes: Uint8Array;
  readonly base: number;
  readonly symbols: ReadonlyMap<string, number>;
}

/** Parses `nm` output; the image starts at _start. */
export function parseImage(bytes: Uint8Array, sym: string): Image {
  const symbols = new Map<string, number>();
  for (const line of sym.split("\n")) {
    const [address, , name] = line.split(" ");
    if (name) symbols.set(name, Number.parseInt(address!, 16));
  }
  const base = symbols.get("_start");
  if (base === undefined) throw new Error("no _start among the guest's symbols");
  return { bytes, base, symbols };
}

/** Where the built images stand; a single executable replaces it by what it embeds. */
export type ImageSource = (name: string) => Image;

/** Images from a directory, read once. */
export function imagesFrom(directory: string): ImageSource {
  const cache = new Map<string, Image>();
  return (name) => {
    let image = cache.get(name);
    if (!image) {
      image = parseImage(
        new Uint8Array(readFileSync(`${directory}/${name}.bin`)),
        readFileSync(`${directory}/${name}.sym`, "utf8"),
      );
      cache.set(name, image);
    }
    return image;
  };
}
