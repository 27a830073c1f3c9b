"""The process whose watcher is measured: `watch_subject.py MODE SECONDS LIBRARY`, on the simulated NVML. Says "ready", then its answer as JSON.

Its C listener notes when each record was heard, whatever Python does. The events come from the bench's own process.
"""

import asyncio
import ctypes
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from dynamo_gpu_ft import native  # noqa: E402

ROOM = 1 << 16
LISTENER = """
#include <stdint.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "gft_watch.h"
/* Notes when it was called, and when the event was posted if that was a moment ago. */
struct heard { int64_t count, room; struct { int64_t at_ns, posted_ns; } each[]; };
void listen(void *context, const gft_watch_record *record) {
  struct heard *to = (struct heard *)context;
  int64_t place = __atomic_fetch_add(&to->count, 1, __ATOMIC_SEQ_CST);
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (place >= to->room) return;
  to->each[place].at_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
  char text[32] = "";
  for (size_t i = 0; i < record->fact_count; ++i)
    if (!strcmp(record->facts[i].name, "data") && record->facts[i].value.size < sizeof text)
      memcpy(text, record->facts[i].value.data, record->facts[i].value.size);
  to->each[place].posted_ns = atoll(text);
}
"""


class Listener:
    """A C function for a queue's `on_record`, and what it has heard: (when, when posted)."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, built = Path(folder) / "listen.c", Path(folder) / "listen.so"
            source.write_text(LISTENER)
            command = [
                "gcc",
                "-O2",
                "-shared",
                "-fPIC",
                f"-I{ROOT / 'csrc'}",
                str(source),
                "-o",
                str(built),
            ]
            subprocess.run(command, check=True, timeout=60)
            self._library = ctypes.CDLL(str(built))
        self.address = ctypes.cast(self._library.listen, ctypes.c_void_p).value or 0
        self._notes = (ctypes.c_int64 * (2 + 2 * ROOM))(0, ROOM)
        self.context = ctypes.addressof(self._notes)

    def heard(self) -> list[tuple[int, int]]:
        notes = self._notes
        return [(notes[i], notes[i + 1]) for i in range(2, 2 + 2 * min(notes[0], ROOM), 2)]


def say(answer: Any) -> None:
    print(answer if isinstance(answer, str) else json.dumps(answer), flush=True)


def idle(seconds: float, listener: Listener) -> None:
    time.sleep(seconds)


def gil(seconds: float, listener: Listener) -> None:
    """No Python runs in this process for that long, in no thread."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def spin(over: threading.Event) -> None:
    while not over.is_set():
        sum(range(500))


def loop(seconds: float, queue: Any, threads: int, switch_s: float) -> list[tuple[int, int]]:
    """When the event loop got each record: its callbacks take 1 ms each and never end, beside busy threads.

    What comes through standard input, times as eight bytes, is noted too, as posted at minus that time: the loop's own delay.
    """
    heard: list[tuple[int, int]] = []

    def take() -> None:
        now = time.monotonic_ns()
        heard.extend((now, int(record.facts.get("data", 0))) for record in queue.take())

    def read() -> None:
        now = time.monotonic_ns()
        stamps = os.read(0, 4096)
        heard.extend((now, -stamp) for (stamp,) in struct.iter_unpack("q", stamps))

    async def work() -> None:
        asyncio.get_running_loop().add_reader(queue.fileno(), take)
        asyncio.get_running_loop().add_reader(0, read)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            busy = time.perf_counter() + 0.001
            while time.perf_counter() < busy:
                pass
            await asyncio.sleep(0)

    sys.setswitchinterval(switch_s)
    over = threading.Event()
    spinning = [threading.Thread(target=spin, args=(over,)) for _ in range(threads)]
    for thread in spinning:
        thread.start()
    asyncio.run(work())
    over.set()
    for thread in spinning:
        thread.join()
    return heard


def python_wait(seconds: float, library: str) -> list[tuple[int, int]]:
    """The usual way instead of a watcher: a Python thread in NVML's wait."""
    nvml = ctypes.CDLL(library)
    nvml.nvmlInit_v2()
    events, device, data = ctypes.c_void_p(), ctypes.c_void_p(), (ctypes.c_ulonglong * 4)()
    nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    nvml.nvmlEventSetCreate(ctypes.byref(events))
    nvml.nvmlDeviceRegisterEvents(device, ctypes.c_ulonglong(0x1000), events)
    say("ready")
    heard, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        if nvml.nvmlEventSetWait_v2(events, ctypes.byref(data), 200) == 0:
            heard.append((time.monotonic_ns(), data[2]))
    return heard


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    return 0


def cost(mode: str, seconds: float, library: str) -> dict[str, float]:
    """Processor time and memory of a watcher with nothing to do; mode "none": of no watcher."""
    before = resident()
    queue = native.load().WatchQueue(4096)
    poll = {"poll": 0.25, "events": 0.0}.get(mode)
    watcher = None
    if poll is not None:
        watcher = native.load().NvmlWatcher(queue, library=library, poll_s=poll)
        watcher.start()
    time.sleep(1.0)
    started, used = time.monotonic(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - used) / (time.monotonic() - started)
    return {
        "share": share,
        "grown": resident() - before,
        "polls": watcher.counts()["polls"] if watcher else 0,
    }


def main() -> None:
    mode, seconds, library = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    core = native.load()
    if mode == "python":
        say(python_wait(seconds, library))
    elif mode.startswith("cost-"):
        say("ready")
        say(cost(mode.removeprefix("cost-"), seconds, library))
    else:
        listener = Listener()
        queue = core.WatchQueue(ROOM, on_record=listener.address, context=listener.context)
        watcher = core.NvmlWatcher(queue, library=library)
        watcher.start()
        say("ready")
        if mode.startswith("loop"):
            _, threads, switch_ms = mode.split("-")
            say(loop(seconds, queue, int(threads), float(switch_ms) / 1e3))
        elif mode == "records":
            time.sleep(seconds)
            say([[r.at_ns, int(r.facts.get("waited_ms", 0))] for r in queue.take()])
        else:
            {"idle": idle, "gil": gil}[mode](seconds, listener)
            say(listener.heard())
    sys.stdout.flush()
    os._exit(0)  # stuck calls are part of a measurement


if __name__ == "__main__":
    main()
