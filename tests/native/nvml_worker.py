"""A process that watches a simulated NVML, for tests that stop, kill, fork or end it: `nvml_worker.py LIBRARY WHAT`.

Prints one word per step, so that the test knows where it is.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from dynamo_gpu_ft import native

core: Any = native.load()


def say(*words: object) -> None:
    print(*words, flush=True)


def watch(library: str) -> None:
    """Tells every record as a line until it is ended from outside."""
    queue = core.WatchQueue(1024)
    watcher = core.NvmlWatcher(queue, library=library, poll_s=0.05, call_deadline_s=0.5)
    watcher.start()
    say("ready")
    while True:
        queue.wait(1.0)
        for record in queue.take():
            say(record.what, record.code, record.index)


def leave(library: str) -> None:
    """Ends like any program while threads are stuck in the driver."""
    queue = core.WatchQueue(64)
    watcher = core.NvmlWatcher(queue, library=library, poll_s=0.05, call_deadline_s=0.2)
    try:
        watcher.start()
    except core.CoreError as error:
        say(error.code)
    while not any(record.what == "unresponsive" for record in queue.take()):
        queue.wait(1.0)
    say("stuck")
    sys.stdin.readline()
    say("stopped", watcher.stop(0.1))


def split(library: str) -> None:
    """Forks while its threads run: the child sees nothing of the parent's watcher and may have one of its own."""
    queue = core.WatchQueue(64)
    watcher = core.NvmlWatcher(queue, library=library, poll_s=0.05)
    watcher.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            assert watcher.gpus() == []
            assert watcher.counts()["polls"] == 0
            assert watcher.stop(10)
            assert not watcher.avoid(0)
            assert queue.take() == []
            del watcher, queue
            own = core.WatchQueue(64)
            second = core.NvmlWatcher(own, library=library, poll_s=0.05)
            second.start()
            assert len(second.gpus()) == 8
            assert second.stop(10)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    polls = watcher.counts()["polls"]
    while watcher.counts()["polls"] == polls:
        time.sleep(0.01)
    say("parent", watcher.stop(10))


def both(library: str) -> None:
    """The same library through NVIDIA's own Python binding, found by its usual name."""
    queue = core.WatchQueue(64)
    watcher = core.NvmlWatcher(queue, library=library)
    watcher.start()
    import pynvml  # type: ignore[import-untyped,unused-ignore]

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(1)
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(device, pynvml.nvmlEventTypeXidCriticalError, events)
    say("ready")
    data = pynvml.nvmlEventSetWait_v2(events, 20000)
    queue.wait(20)
    say("both", data.eventData, queue.take()[0].code)


if __name__ == "__main__":
    {"watch": watch, "leave": leave, "split": split, "both": both}[sys.argv[2]](sys.argv[1])
