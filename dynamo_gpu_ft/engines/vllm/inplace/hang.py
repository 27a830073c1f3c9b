"""Who holds up a step that does not end: the rank that is stopped, that does not answer, or that is not waiting for the others.

A collective makes every rank look stuck as soon as one is. Judging is a pure function over what each rank shows of itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace.orders import Line, Where

#: How long a rank may take to say where it is. Its answer needs Python's lock, which compiled work may hold for a while.
ANSWER_S = 1.5

#: Words in a rank's innermost frames that say that it waits for the others.
WAITING = (
    "cpu_communicator.py",
    "distributed_c10d.py",
    "all_reduce",
    "all_gather",
    "shm_broadcast.py",
)


#: The kernel's letters of processes that will not answer.
STOPPED = ("T", "t", "Z", "X", "")


@dataclass(frozen=True, slots=True)
class Shown:
    """`state`: the kernel's letter for the process ("T": stopped), "" when it is gone. `where`: its frames, innermost first;
    None when it did not answer."""

    state: str
    where: str | None

    @property
    def idle(self) -> bool:
        """Waits for orders, in no step."""
        where = self.where or ""
        return "busy_loop:" in where and "_execute_worker_rpc:" not in where

    @property
    def waits(self) -> bool:
        return self.where is not None and any(word in self.where for word in WAITING)


def guilty(shown: Mapping[int, Shown]) -> dict[int, str]:
    """Rank -> why it is the one; empty when that cannot be told, and then the group has to go as a whole."""
    stopped = {r: "its process is stopped" for r, s in shown.items() if s.state in STOPPED}
    if stopped:
        return stopped
    silent = {r: "its process does not answer" for r, s in shown.items() if s.where is None}
    if silent:
        return silent if len(silent) < len(shown) else {}
    busy = {
        r: f"it does not come to where the others wait; it is in {(s.where or '').partition(' < ')[0]}"
        for r, s in shown.items()
        if not s.waits
    }
    return busy if 0 < len(busy) < len(shown) else {}


def over(shown: Mapping[int, Shown]) -> bool:
    """The step has ended after all: every rank waits for orders."""
    return all(s.idle for s in shown.values())


def look(workers: Mapping[int, tuple[int, Line | None]]) -> dict[int, Shown]:
    """Asks every rank; `workers`: rank -> (pid, its line). Blocks up to `ANSWER_S`."""
    asked = {rank: line for rank, (_, line) in workers.items() if line is not None}
    for line in asked.values():
        line.send(Where())
    found: dict[int, str] = {}
    give_up = time.monotonic() + ANSWER_S
    while len(found) < len(asked) and time.monotonic() < give_up:
        for rank, line in asked.items():
            for answer in line.answers():
                if answer.kind == "where":
                    found[rank] = answer.detail
        if all(_state_of(workers[rank][0]) in STOPPED for rank in asked.keys() - found.keys()):
            break  # nobody else is waited for
        time.sleep(0.01)
    return {rank: Shown(_state_of(pid), found.get(rank)) for rank, (pid, _) in workers.items()}


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def describe(shown: Mapping[int, Shown]) -> str:
    """For the log: where everybody is."""
    rows: list[Any] = [
        f"rank {rank}: state {s.state or 'gone'}, {s.where or 'no answer'}"
        for rank, s in sorted(shown.items())
    ]
    return "; ".join(rows)
