// SPDX-License-Identifier: MIT
/**
 * Files that ship inside the single executable. In development they lie in
 * build/; the executable's entry registers the embedded copies before anything
 * else runs.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

export type AssetName = "libhvi-soft.so" | "zydis.wasm";

const embedded = new Map<AssetName, string>();

/** Says where an embedded file is (a path of Bun's virtual file system). */
export function registerAsset(name: AssetName, path: string): void {
  embedded.set(name, path);
}

/** True when the asset comes from inside the executable. */
export function assetIsEmbedded(name: AssetName): boolean {
  return embedded.has(name);
}

/** Where the asset is, or undefined when it was not built. */
export function assetPath(name: AssetName): string | undefined {
  const inside = embedded.get(name);
  if (inside !== undefined) return inside;
  const path = join(import.meta.dir, "../../build", name);
  return existsSync(path) ? path : undefined;
}

/** The bytes of the asset, or undefined when it was not built. */
export function assetBytes(name: AssetName): Uint8Array<ArrayBuffer> | undefined {
  const path = assetPath(name);
  return path === undefined ? undefined : new Uint8Array(readFileSync(path));
}
