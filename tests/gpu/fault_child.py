"""A process that breaks its own CUDA context on purpose: `fault_child.py watch|plain` writes to an illegal address on GPU 0.

Says "ready", waits for a line, and answers in JSON when CUDA said so and, with `watch`, what a watcher in the same process heard.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch


def fault() -> tuple[int, int, str]:
    """When the illegal access was launched, when CUDA's error came back, and its text."""
    base = torch.zeros(1, device="cuda")
    near, far = (torch.tensor([where], dtype=torch.int64, device="cuda") for where in (0, 1 << 44))
    store = _store()
    store(base, near)  # compiled now and not while the time is taken
    torch.cuda.synchronize()
    launched = time.monotonic_ns()
    try:
        store(base, far)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return launched, time.monotonic_ns(), str(error).splitlines()[0]
    raise SystemExit("the illegal access did no harm")


def _store() -> Any:
    """A kernel that stores that many floats behind a pointer; PyTorch's own would check the bounds."""
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def store(pointer, offset):  # type: ignore[no-untyped-def]
        tl.store(pointer + tl.load(offset), 1.0)

    return lambda base, offset: store[(1,)](base, offset)


def main() -> None:
    watcher = queue = None
    torch.zeros(1, device="cuda")
    if sys.argv[1] == "watch":
        from dynamo_gpu_ft import native

        core = native.load()
        queue = core.WatchQueue(256)
        watcher = core.NvmlWatcher(queue)
        watcher.start()
    print("ready", flush=True)
    sys.stdin.readline()
    launched, returned, text = fault()
    records = []
    if queue is not None:
        end = time.monotonic() + 5
        while time.monotonic() < end and not any(r["what"] == "xid" for r in records):
            queue.wait(0.5)
            records += [
                {"what": r.what, "code": r.code, "at_ns": r.at_ns, "uuid": r.uuid}
                for r in queue.take()
            ]
    print(
        json.dumps({"launched": launched, "returned": returned, "text": text, "records": records}),
        flush=True,
    )
    os._exit(0)  # the context is gone; tearing it down would only complain


if __name__ == "__main__":
    main()
