// SPDX-License-Identifier: MIT
import { InputError } from "../../errors.ts";
import { isElf } from "./elf.ts";
import type { LoadableImage, LoadRequest } from "./image.ts";
import { isBzImage, loadLinux } from "./linux.ts";
import { findMultibootHeader, loadMultiboot } from "./multiboot.ts";

export type { LoadableImage, LoadRequest } from "./image.ts";

/** Recognises the kernel file and checks it against the machine. Throws InputError. */
export async function loadImage(request: LoadRequest): Promise<LoadableImage> {
  let kernel = request.kernel;
  if (kernel[0] === 0x1f && kernel[1] === 0x8b) {
    try {
      kernel = Bun.gunzipSync(kernel as Uint8Array<ArrayBuffer>);
    } catch {
      throw new InputError(
        `${request.kernelName}: a damaged gzip file`,
        "copy or download the kernel again",
      );
    }
  }
  const unpacked = { ...request, kernel };
  if (isBzImage(kernel)) return loadLinux(unpacked);
  if (findMultibootHeader(kernel) >= 0) return loadMultiboot(unpacked);
  if (isElf(kernel)) return loadLinux(unpacked);
  if (kernel.length < 1024)
    throw new InputError(
      `${request.kernelName}: only ${kernel.length} bytes, no kernel`,
      "give a bzImage, a vmlinux or a Multiboot image",
    );
  throw new InputError(
    `${request.kernelName}: neither a bzImage, nor an ELF file, nor a Multiboot image`,
    "give a bzImage (vmlinuz), a vmlinux or a Multiboot image",
  );
}
