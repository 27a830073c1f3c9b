"""Drives LMCache's file tier by itself: stores blocks, loads them again several times, prints GB/s as JSON.

Run by `restore_blocks` with the interpreter that has LMCache; imports nothing of ours.
"""

import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any


def main() -> None:
    order = json.loads(sys.argv[1])
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2Adapter, FSL2AdapterConfig

    tier = FSL2Adapter(FSL2AdapterConfig(order["folder"]))
    keys = [
        ObjectKey(chunk_hash=number.to_bytes(32, "little"), model_name="bench", kv_rank=0)
        for number in range(order["blocks"])
    ]
    size = order["bytes"]
    memory = memoryview(bytearray(os.urandom(1 << 20) * (len(keys) * size // (1 << 20) + 1)))
    objects: Any = [
        SimpleNamespace(byte_array=memory[n * size : (n + 1) * size]) for n in range(len(keys))
    ]
    task = tier.submit_store_task(keys, objects)
    _finished(lambda: tier.pop_completed_store_tasks().get(task))
    speeds = []
    for _ in range(order["rounds"] + 1):  # the first load is not counted
        started = time.perf_counter()
        task = tier.submit_load_task(keys, objects)
        loaded = _finished(lambda task=task: tier.query_load_result(task))
        speeds.append(len(keys) * size / (time.perf_counter() - started) / 1e9)
        assert len(loaded.get_indices_list()) == len(keys), "blocks are missing"
    print(json.dumps({"speeds": speeds[1:]}), flush=True)
    os._exit(0)  # its threads are not waited for


def _finished(ask: Any) -> Any:
    ends = time.monotonic() + 300
    while time.monotonic() < ends:
        answer = ask()
        if answer is not None:
            return answer
        time.sleep(0.001)
    raise TimeoutError("LMCache's file tier did not answer in 300 s")


if __name__ == "__main__":
    main()
