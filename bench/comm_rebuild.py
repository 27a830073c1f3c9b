"""How soon ranks whose collective lost a member are free, and how soon they have a new communicator, beside what gloo does by itself.

Four gloo ranks in a loop of all_reduce of 4 MiB. One is killed, or stopped; the survivors are timed until their exception and until the
first all_reduce without it. The baseline of the same run: gloo's own timeout (1 s), then destroy_process_group and
init_process_group.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.recovery.comm.base import Seat
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous
from dynamo_gpu_ft.recovery.group.base import Deadline

RANKS, ELEMENTS, GLOO_S, LONG_S = 4, 1 << 20, 1.0, 60.0
Times = dict[str, list[float]]


def measure(options: Options) -> list[Row]:
    repeats = 3 if options.quick else 20
    figures: Times = {}
    for ours in (True, False):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            options.say(f"{'ours' if ours else 'gloo alone'}, {number.name}, {repeats} times")
            for _ in range(repeats):
                free, new = _once(ours, number)
                figures.setdefault(f"{ours}.free.{number.name}", []).append(free)
                figures.setdefault(f"{ours}.new.{number.name}", []).append(new)
    return [
        _row("killed_to_exception", figures, "free.SIGKILL", "the last survivor's exception"),
        _row("stopped_to_exception", figures, "free.SIGSTOP", "revoke to the last exception"),
        _row("rebuild_after_kill", figures, "new.SIGKILL", "exception to first new all_reduce"),
        _row("rebuild_after_stop", figures, "new.SIGSTOP", "exception to first new all_reduce"),
    ]


def _row(name: str, figures: Times, key: str, what: str) -> Row:
    ours, alone = figures[f"True.{key}"], figures[f"False.{key}"]
    value, baseline = statistics.median(ours), statistics.median(alone)
    return row(
        f"comm_rebuild.{name}",
        value * 1000,
        "ms",
        baseline=baseline * 1000,
        ratio=baseline / value,
        note=f"{what}, {RANKS} ranks; {spread([1000 * t for t in ours])}; baseline: gloo with a timeout of "
        f"{GLOO_S:g} s and torch's default group, {spread([1000 * t for t in alone])}",
    )


def _once(ours: bool, number: signal.Signals) -> tuple[float, float]:
    """Seconds from the fault (with SIGSTOP and us: from the order to revoke) to the last exception, and from there to the first
    result of the new communicator."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed"])
    with tempfile.TemporaryDirectory(prefix="gft-bench-") as folder:
        pipes, processes = [], []
        for rank in range(RANKS):
            pipe, theirs = context.Pipe()
            target = _our_rank if ours else _torch_rank
            process = context.Process(target=target, args=(theirs, folder, rank), daemon=True)
            process.start()
            theirs.close()
            pipes.append(pipe)
            processes.append(process)
        try:
            for pipe in pipes:
                _told(pipe)
            threading.Event().wait(0.05)  # anywhere in the loop
            victim, alive = processes[-1], pipes[:-1]
            began = time.monotonic()
            os.kill(victim.pid or 0, number)
            if ours and number is signal.SIGSTOP:
                threading.Event().wait(0.05)  # in life: until somebody notices
                began = time.monotonic()
                for pipe in alive:
                    pipe.send("revoke")
            free = max(_told(pipe) for pipe in alive)
            for pipe in alive:
                pipe.send("again")
            return free - began, max(_told(pipe) for pipe in alive) - free
        finally:
            for process in processes:
                process.kill()
                process.join(10)
            for pipe in pipes:
                pipe.close()


def _told(pipe: Connection) -> float:
    """The moment that the child names; the clock is one for all processes."""
    if not pipe.poll(LONG_S):
        raise RuntimeError("a rank did not answer")
    return float(pipe.recv())


def _our_rank(pipe: Connection, folder: str, rank: int) -> None:
    import torch

    from dynamo_gpu_ft.recovery.comm.gloo import GlooBackend

    torch.set_num_threads(1)
    backend = GlooBackend(Rendezvous(f"file:{folder}", "bench"), timeout_s=LONG_S)
    tensor = torch.ones(ELEMENTS)
    old = backend.make(Seat("tp", 1, rank, RANKS, str(os.getpid())), Deadline.after(LONG_S))
    orders: list[str] = []
    heard = threading.Semaphore(0)

    def listen() -> None:
        while True:
            order = pipe.recv()
            if order == "revoke":
                old.revoke()
            else:
                orders.append(order)
                heard.release()

    threading.Thread(target=listen, daemon=True).start()
    _until_it_breaks(pipe, lambda: old.all_reduce(tensor))
    heard.acquire()
    old.abort()
    seat = Seat("tp", 3, rank, RANKS - 1, str(os.getpid()))
    backend.make(seat, Deadline.after(LONG_S)).all_reduce(tensor)
    pipe.send(time.monotonic())
    threading.Event().wait(LONG_S)


def _torch_rank(pipe: Connection, folder: str, rank: int) -> None:
    import datetime

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    tensor = torch.ones(ELEMENTS)

    def group(size: int) -> None:
        store = dist.FileStore(f"{folder}/{size}", -1)
        limit = datetime.timedelta(seconds=GLOO_S if size == RANKS else LONG_S)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)

    group(RANKS)
    _until_it_breaks(pipe, lambda: dist.all_reduce(tensor))
    pipe.recv()
    dist.destroy_process_group()
    group(RANKS - 1)
    dist.all_reduce(tensor)
    pipe.send(time.monotonic())
    threading.Event().wait(LONG_S)


def _until_it_breaks(pipe: Connection, step: Any) -> None:
    step()
    pipe.send(time.monotonic())
    while True:
        try:
            step()
        except RuntimeError:
            break
        except Exception as error:
            if type(error).__module__.startswith("dynamo_gpu_ft"):
                break
            raise
    pipe.send(time.monotonic())
