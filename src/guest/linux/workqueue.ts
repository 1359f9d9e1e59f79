// SPDX-License-Identifier: MIT
/** What a kworker is doing: kernel/workqueue_internal.h, kernel/kthread.c. */
import type { VirtualReader } from "../reader.ts";
import { isKernelPointer } from "../reader.ts";
import type { Btf } from "./btf.ts";

/** include/linux/sched.h */
const PF_WQ_WORKER = 0x20;

/**
 * The function of the work item that a task is running: `current_func` of its `struct worker`, which
 * is the `data` of its `struct kthread`. Undefined when it is no worker, runs none, or the kernel's
 * types do not tell.
 */
export function workFunction(vm: VirtualReader, btf: Btf, task: number): number | undefined {
  const flags = btf.offsetof("task_struct", "flags");
  // Since 5.17 the kthread has a member of its own; before, it shared one that only user tasks need.
  const kthreadAt =
    btf.offsetof("task_struct", "worker_private") ?? btf.offsetof("task_struct", "set_child_tid");
  const data = btf.offsetof("kthread", "data");
  const current = btf.offsetof("worker", "current_func");
  if (
    flags === undefined ||
    kthreadAt === undefined ||
    data === undefined ||
    current === undefined
  ) {
    return undefined;
  }
  const word = vm.read32(task + flags);
  if (word < 0 || (word & PF_WQ_WORKER) === 0) return undefined;
  let at = task + kthreadAt;
  for (const offset of [data, current]) {
    const next = vm.readPtr(at);
    if (!isKernelPointer(next)) return undefined;
    at = next + offset;
  }
  const found = vm.readPtr(at);
  return isKernelPointer(found) ? found : undefined;
}
