"""Where the ranks of one epoch find each other: a torch store that no member hosts, and seats in it that one process each may take.

Used by the communicator back ends. A rank of an older epoch does not know the newer one's name, and one that does finds its seat taken.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.recovery.comm.base import CommError, CommRevoked, CommTimeout, Seat, never
from dynamo_gpu_ft.recovery.comm.folder import folder_store
from dynamo_gpu_ft.recovery.group.base import Deadline

POLL_S = 0.001
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Rendezvous:
    """`url` is `file:DIR` (a folder that all ranks see; nothing to start, nothing to lose) or `tcp:HOST:PORT` (a torch TCPStore that
    runs outside of the ranks). `engine` tells engines apart that share one."""

    def __init__(self, url: str, engine: str) -> None:
        kind, _, place = url.partition(":")
        if kind not in ("file", "tcp") or not place or not _NAME.fullmatch(engine):
            raise ValueError(f"no rendezvous: {url!r} for {engine!r}; file:DIR or tcp:HOST:PORT")
        self.url, self.engine, self._kind, self._place = url, engine, kind, place

    def store(self, seat: Seat, deadline: Deadline) -> Any:
        """The torch store of one communicator of one epoch, to be kept for as long as that is in use. Imports torch."""
        import torch.distributed as dist

        name = f"{self.engine}-{seat.name}-{seat.epoch}"
        if not _NAME.fullmatch(name):
            raise ValueError(f"no name of a communicator: {name!r}")
        left = datetime.timedelta(seconds=max(0.001, deadline.left_s))
        if self._kind == "file":
            # One folder for each epoch: what a killed rank left in one cannot hurt the next.
            store = folder_store(Path(self._place, f"{name}.rendezvous"))
            store.set_timeout(left)
            return store
        host, _, port = self._place.rpartition(":")
        store = dist.TCPStore(host, int(port), None, False, left, wait_for_workers=False)
        store.set_timeout(left)
        return dist.PrefixStore(name, store)

    def forget_before(self, seat: Seat) -> None:
        """Removes the folders of this communicator's older epochs. Never raises; on `tcp` the server forgets when it ends."""
        if self._kind != "file":
            return
        pattern = re.compile(re.escape(f"{self.engine}-{seat.name}-") + r"(\d+)\.rendezvous")
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._place):
                found = pattern.fullmatch(entry.name)
                if found and int(found[1]) < seat.epoch:
                    shutil.rmtree(entry.path, ignore_errors=True)


def take(store: Any, seat: Seat, note: str = "") -> None:
    """Takes the seat for `seat.owner`; taking one's own again is fine. Raises `CommError` when another process has it."""
    mine = f"{seat.owner} {note}"
    holder = store.compare_set(f"seat/{seat.rank}", "", mine).decode()
    if holder.split(" ")[0] != seat.owner:
        raise CommError(
            f"seat {seat.rank} of {seat.size} in epoch {seat.epoch} is taken by {holder.split(' ')[0]}, not {seat.owner}"
        )


def all_there(
    store: Any, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never
) -> None:
    """Waits until every seat is taken, so that nobody is in the library's own rendezvous, which nothing interrupts, before all are."""
    for rank in range(seat.size):
        while not store.check([f"seat/{rank}"]):
            if give_up():
                raise CommRevoked(f"given up while waiting for rank {rank} of epoch {seat.epoch}")
            if not deadline.left_s:
                raise CommTimeout(f"rank {rank} of epoch {seat.epoch} did not come in time")
            time.sleep(POLL_S)


def notes(store: Any, seat: Seat) -> list[bytes]:
    """What the holder of every seat noted when he took it, in order of rank; all are there already."""
    return [store.get(f"seat/{rank}").split(b" ", 1)[1] for rank in range(seat.size)]
