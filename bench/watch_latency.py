"""How soon a fault that NVML tells, or does not tell, is heard: by C++ code, by an event loop, by the poll, when a call is stuck.

On the simulated NVML, which another process scripts. An event's time begins when the library posts it, inside the measured process; a
recovery action's before the command for it is sent.
"""

import contextlib
import dataclasses
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.rows import Options, Row, row
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.sim.nvml import build
from dynamo_gpu_ft.sim.nvml.control import Control

SUBJECT = Path(__file__).with_name("watch_subject.py")
DEADLINE_S, POLL_S = 2.0, 0.25  # the watcher's own defaults
MS = 1e6


def measure(options: Options) -> list[Row]:
    count = 200 if options.quick else 2000
    rows: list[Row] = []
    options.say("a Python thread in NVML's wait")
    python = events("python", count)
    for mode, text in (
        ("idle", "nothing else runs"),
        ("gil", "another thread holds the GIL without end"),
    ):
        options.say(f"C callback, {text}")
        took = events(mode, count)
        for share, limit in ((0.5, 0.5), (0.99, 5.0)):
            name = f"watch_latency.callback.{mode}.p{share * 100:.0f}"
            rows.append(late(name, at(took, share), limit, baseline=at(python, share), note=f"{text}; {spread_of(took)}; baseline: a "
                             f"Python thread in nvmlEventSetWait, idle ({spread_of(python)}); with the GIL held it hears nothing"))  # fmt: skip
    for threads, switch_ms in ((1, 5), (2, 5), (2, 1)):
        options.say(
            f"asyncio, the loop and {threads} threads busy, GIL switched every {switch_ms} ms"
        )
        took, floor = busy_loop(threads, switch_ms, count // 2)
        where = f"callbacks of 1 ms without a pause, {threads} busy Python threads, sys.setswitchinterval of {switch_ms} ms"
        rows.append(late(f"watch_latency.asyncio.busy{threads}.switch{switch_ms}ms.p99", at(took, 0.99), 20.0,
                         baseline=at(floor, 0.99), note=f"{where}; {spread_of(took)}; baseline: a byte in a pipe ({spread_of(floor)}): "
                         "who gets the GIL next is chance, with more than one busy thread"))  # fmt: skip
    options.say("recovery actions, which come without an event")
    took = polled(12 if options.quick else 100)
    rows.append(
        late(
            "watch_latency.poll.max",
            max(took),
            300.0,
            note=f"poll of {POLL_S:g} s; {spread_of(took)}",
        )
    )
    options.say("calls that do not return")
    took = wedged(2 if options.quick else 7)
    rows.append(late("watch_latency.wedged.max", max(took), DEADLINE_S * 1e3 + 100, note=f"from the beginning of the call, deadline "
                     f"{DEADLINE_S:g} s, one GPU after the other; {spread_of(took)}"))  # fmt: skip
    return [dataclasses.replace(each, simulated=True) for each in rows]


def late(
    name: str, value: float, limit: float, baseline: float | None = None, note: str = ""
) -> Row:
    """A row in milliseconds with an upper limit: its ratio is limit to value."""
    return row(
        name,
        value,
        "ms",
        baseline=baseline,
        ratio=limit / value,
        target=1.0,
        note=f"limit {limit:g} ms; {note}",
    )


def at(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def spread_of(values: Sequence[float]) -> str:
    return f"p50/p99/max {at(values, 0.5):.3g}/{at(values, 0.99):.3g}/{max(values):.3g} ms of {len(values)}"


@contextlib.contextmanager
def subject(mode: str, seconds: float) -> Iterator[tuple[Control, "subprocess.Popen[bytes]"]]:
    """The measured process, ready, and what scripts its NVML."""
    library = build.library()
    with tempfile.TemporaryDirectory(prefix="gft-bench-") as folder:
        control = Control(Path(folder) / "c")
        process = subprocess.Popen(
            [sys.executable, str(SUBJECT), mode, str(seconds), str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {build.CONTROL: str(control.folder)},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise GpuFtError(
                    "the measured process did not start", where=mode, remedy="see its output above"
                )
            yield control, process
        finally:
            process.kill()
            process.wait()


def answer_of(process: "subprocess.Popen[bytes]") -> list[list[int]]:
    assert process.stdout is not None
    heard: list[list[int]] = json.loads(process.stdout.readline())
    return heard


def events(mode: str, count: int) -> list[float]:
    """Milliseconds from the post of each of `count` events until it was heard."""
    return delays(posted(mode, count, lambda process: None), count)


def busy_loop(threads: int, switch_ms: float, count: int) -> tuple[list[float], list[float]]:
    """The same in a busy event loop, and what a plain pipe beside it takes, written in turns with the events."""

    def write(process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        process.stdin.write(struct.pack("q", time.monotonic_ns()))
        process.stdin.flush()
        time.sleep(0.004)

    heard = posted(f"loop-{threads}-{switch_ms}", count, write)
    return delays([each for each in heard if each[1] > 0], count), delays(
        [[a, -b] for a, b in heard if b < 0], count
    )


def posted(
    mode: str, count: int, between: Callable[["subprocess.Popen[bytes]"], None]
) -> list[list[int]]:
    """(heard, posted) of `count` events, 2 to 6 ms apart, `between` done before each."""
    pause = random.Random(4)
    with subject(mode, count * 0.02 + 5) as (control, process):
        [(_, path)] = control.users()
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(path))
            time.sleep(0.5)
            for _ in range(count):
                between(process)
                line.sendall(b"event gpu=0 type=0x1000 data=now\n")
                while not line.recv(256).endswith(b"\n.\n"):
                    pass
                time.sleep(pause.uniform(0.002, 0.006))
        return answer_of(process)


def delays(heard: Sequence[Sequence[int]], count: int) -> list[float]:
    if len(heard) != count:
        raise GpuFtError("events were lost", value=f"{len(heard)} of {count}")
    return [(at_ns - posted_ns) / MS for at_ns, posted_ns in heard]


def polled(count: int) -> list[float]:
    pause = random.Random(4)

    def change(control: Control, number: int) -> int:
        time.sleep(pause.uniform(0.3, 0.6))
        stamp = time.monotonic_ns()
        control.append(f"recovery gpu={number % 8} action={number // 8 % 4 + 1}")
        return stamp

    return [
        (heard[0] - sent) / MS for sent, heard in zip(*scripted(count, 0.6, change), strict=True)
    ]


def wedged(count: int) -> list[float]:
    def wedge(control: Control, number: int) -> int:
        time.sleep(0.3)
        control.append(f"wedge gpu={number} call=fields")
        return 0

    return [
        float(heard[1]) for _, heard in zip(*scripted(count, 0.3 + DEADLINE_S, wedge), strict=True)
    ]


def scripted(
    count: int, each_s: float, do: Callable[[Control, int], int]
) -> tuple[list[int], list[list[int]]]:
    """When each thing was done, and the records in the order in which they were made."""
    with subject("records", count * each_s + DEADLINE_S + 2) as (control, process):
        sent = [do(control, number) for number in range(count)]
        heard = sorted(answer_of(process))
    if len(heard) != count:
        raise GpuFtError("not every change was told", value=f"{len(heard)} of {count}")
    return sent, heard
