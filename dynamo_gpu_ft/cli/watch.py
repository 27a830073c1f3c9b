"""The `watch` command: faults of this machine's GPUs as they happen, with what is watched and what cannot be.

Runs a monitor of its own, beside any engine and without touching one; needs no GPU to say what is missing. A live view on a terminal
with rich, lines elsewhere. Exit code 1 when something is unusable at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import queue
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.watch_view import Table, as_text, tables
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health import report
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.watching import Watching

_EVERY_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--library", metavar="PATH", help="NVML; another file is a simulated one (see `inject build`)")  # fmt: skip
    parser.add_argument("--log", metavar="PATH", help="kernel log: a file or pipe that is followed; none: no log")  # fmt: skip
    parser.add_argument("--beats", metavar="FILE", help="heartbeat file of an engine; default: the newest in arena_dir")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a line: the state, then every fault, the state at the end")  # fmt: skip
    parser.add_argument("--once", action="store_true", help="show the state and end")
    parser.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="end after so long; default: at ctrl-C")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    given = {"health_library": args.library, "health_log": args.log, "health_port": 0}
    config = Config.load(given)
    heard: queue.SimpleQueue[Incident] = queue.SimpleQueue()
    beats = args.beats or newest_beats(config.arena_dir)
    watching = Watching(config, on_incident=heard.put)
    watching.start()
    try:
        if beats:
            _judge(watching, beats)
        until = time.monotonic() + (0.0 if args.once else args.seconds or float("inf"))
        show = _json if args.json else _rich if _live() and not args.once else _lines
        with contextlib.suppress(KeyboardInterrupt):
            show(watching, beats, heard, until)
        usable, _ = state_of(watching, beats)
        return 0 if usable else 1
    finally:
        watching.stop()


def newest_beats(folder: str) -> str:
    """The heartbeat file that was made last, "" if there is none."""
    found = []
    for path in Path(folder).glob("dynamo_gpu_ft-*.beats"):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime, str(path)))
    return max(found, default=(0.0, ""))[1]


def state_of(watching: Watching, beats: str) -> tuple[bool, dict[str, Any]]:
    """Whether everything is usable, and the state as the health endpoint tells it, with GPUs and heartbeats."""
    monitor = watching.monitor
    usable, state = report.state(
        monitor.open(),
        monitor.snapshot(),
        monitor.sources(),
        ranks_known=False,
        running=monitor.running,
        heartbeat=_heartbeat(beats),
    )
    return usable, {**state, "gpus": [msgspec.to_builtins(gpu) for gpu in watching.gpus()]}


def _heartbeat(beats: str) -> dict[str, Any]:
    if not beats:
        return {"ranks": [], "why_not": "no engine here has made a heartbeat file"}
    core = native.load()
    try:
        return {"file": beats, "ranks": core.look_at_heartbeats(beats)}
    except core.CoreError as error:
        return {"file": beats, "ranks": [], "why_not": str(error)}


def _judge(watching: Watching, beats: str) -> None:
    """Hangs of the ranks of this file become faults here as well."""
    core = native.load()
    try:
        ranks = 1 + max((beat["rank"] for beat in core.look_at_heartbeats(beats)), default=0)
        watching.add_heartbeats(beats, ranks=ranks)
    except core.CoreError as error:
        watching.monitor.unavailable("heartbeat", str(error))


def _next(heard: queue.SimpleQueue[Incident], until: float) -> Iterator[Incident]:
    """Incidents as they come, for as long as one wait of the view."""
    wait = min(_EVERY_S, until - time.monotonic())
    try:
        yield heard.get(timeout=max(wait, 0.0)) if wait > 0 else heard.get_nowait()
        while True:
            yield heard.get_nowait()
    except queue.Empty:
        return


def _json(watching: Watching, beats: str, heard: queue.SimpleQueue[Incident], until: float) -> None:
    def line(kind: str, value: Any) -> None:
        sys.stdout.buffer.write(msgspec.json.encode({kind: value}) + b"\n")
        sys.stdout.flush()

    line("state", state_of(watching, beats)[1])
    over = False
    with contextlib.suppress(KeyboardInterrupt):
        while not over:
            over = time.monotonic() >= until
            for incident in _next(heard, until):
                line("incident", incident)
    line("state", state_of(watching, beats)[1])


def _lines(
    watching: Watching, beats: str, heard: queue.SimpleQueue[Incident], until: float
) -> None:
    print(as_text(tables(state_of(watching, beats)[1], time.monotonic())), flush=True)
    over = False
    while not over:
        over = time.monotonic() >= until
        for incident in _next(heard, until):
            print(f"{_clock()} {report.event_of(incident).line}", flush=True)


def _live() -> bool:
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def _rich(watching: Watching, beats: str, heard: queue.SimpleQueue[Incident], until: float) -> None:
    from rich import box
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table as RichTable
    from rich.text import Text

    def drawn(table: Table) -> Any:
        if not table.rows:
            return Text(f"{table.title}: {table.empty}")
        made = RichTable(
            *table.headers,
            title=table.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1),
        )
        for number, row in enumerate(table.rows):
            # As text, so that a fault's own brackets are no markup.
            made.add_row(*map(Text, row), style="bold red" if number in table.bad else None)
        return made

    def now() -> Any:
        state = state_of(watching, beats)[1]
        return Group(*(drawn(table) for table in tables(state, time.monotonic())))

    with Live(now(), auto_refresh=False, screen=False) as live:
        while time.monotonic() < until:
            for incident in _next(heard, until):
                live.console.print(Text(f"{_clock()} {report.event_of(incident).line}"))
            live.update(now(), refresh=True)


def _clock() -> str:
    return f"{datetime.datetime.now():%H:%M:%S.%f}"[:-3]
