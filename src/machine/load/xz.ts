// SPDX-License-Identifier: MIT
import { XzReadableStream } from "xz-decompress";

/**
 * Decompresses an .xz stream of `size` uncompressed bytes; undefined when the
 * size differs. Throws what the decoder throws for damaged data or a filter
 * that it lacks.
 */
export async function unxz(bytes: Uint8Array, size: number): Promise<Uint8Array | undefined> {
  const stream = new XzReadableStream(new Blob([bytes as Uint8Array<ArrayBuffer>]).stream());
  const out = new Uint8Array(await new Response(stream).arrayBuffer());
  return out.length === size ? out : undefined;
}
