"""Faults inside a worker of a real engine, given to vLLM as `worker_extension_cls`; and one in any process's memory, from outside.

With GFT_FAULT=gloo in the environment, every worker finds that collectives in shared memory cannot be freed in this build.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

CLASS = "inplace_faults.Faults"

if os.environ.get("GFT_FAULT") == "gloo":
    from dynamo_gpu_ft.engines.vllm.inplace import ghost

    ghost.self_test = lambda *args, **kwargs: "this test says so"


class Faults:
    """Methods of vLLM's worker, called through its RPC."""

    def fault_stall(self: Any, rank: int, steps: int) -> None:
        """After `steps` more steps, the worker of `rank` does not come out of the next one; it is alive, and answers."""
        if self.rank != rank:
            return
        stock, left = self.execute_model, [steps]

        def stalled(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            while left[0] < 0:
                time.sleep(0.01)
            return stock(*args, **kwargs)

        self.execute_model = stalled

    def fault_groups(self: Any) -> bool:
        """Whether collectives of this rank go through shared memory."""
        from dynamo_gpu_ft.engines.vllm.inplace import inside

        return inside.shared_memory_group() is not None


CHUNK = 1 << 22


def rot(pid: int, pattern: bytes) -> int:
    """Turns one bit of the last byte of every copy of `pattern` over in the memory that the process `pid` can write; how many
    there were. It must be this process's descendant."""
    found = 0
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, access, *_ = line.split()
            if not access.startswith("rw"):
                continue
            at, end = (int(each, 16) for each in where.split("-"))
            while at < end:
                try:
                    data = os.pread(descriptor, min(CHUNK + len(pattern), end - at), at)
                except OSError:  # a device's memory
                    break
                place = data.find(pattern)
                while place >= 0:
                    last = place + len(pattern) - 1
                    os.pwrite(descriptor, bytes([data[last] ^ 1]), at + last)
                    found += 1
                    place = data.find(pattern, place + 1)
                at += CHUNK
    finally:
        os.close(descriptor)
    return found
