// SPDX-License-Identifier: MIT

/** Linux errno values that the ABI uses, by number. */
const ERRNO: Readonly<Record<number, string>> = {
  1: "EPERM",
  2: "ENOENT",
  4: "EINTR",
  5: "EIO",
  6: "ENXIO",
  7: "E2BIG",
  9: "EBADF",
  11: "EAGAIN",
  12: "ENOMEM",
  13: "EACCES",
  14: "EFAULT",
  16: "EBUSY",
  17: "EEXIST",
  19: "ENODEV",
  22: "EINVAL",
  24: "EMFILE",
  25: "ENOTTY",
  27: "EFBIG",
  28: "ENOSPC",
  34: "ERANGE",
  38: "ENOSYS",
  95: "EOPNOTSUPP",
};

/** "EINVAL" for 22; the number itself when it has no name here. */
export function errnoName(errno: number): string {
  return ERRNO[errno] ?? `errno ${errno}`;
}

/** No backend can be used, or the one asked for cannot. `hint` is the next step for a person. */
export class BackendError extends Error {
  override name = "BackendError";
  constructor(
    message: string,
    readonly hint: string,
  ) {
    super(message);
  }
}

/** The backend refused a request. Nothing changed. */
export class HviError extends Error {
  override name = "HviError";
  constructor(
    /** What was asked, e.g. "HVI_EPT_SET". */
    readonly request: string,
    /** Positive errno. */
    readonly errno: number,
  ) {
    super(`${request} failed: ${errnoName(errno)}`);
  }
}
