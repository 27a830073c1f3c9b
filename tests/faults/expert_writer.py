"""Rank processes that are killed in the middle of a refill or a commit, over a slot store in a shared file; what is left is looked at after each.

Started by test_expert_kill.py with a folder, a seed and a number of trials; forks one child per trial, which kills itself (SIGKILL) in a
chosen write after a chosen byte, or is killed from outside at a random instant.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from expert_world import Source, digest, expert, manifest

from dynamo_gpu_ft.experts.records import Geometry
from dynamo_gpu_ft.experts.refill import Want, refill
from dynamo_gpu_ft.experts.rows import HostRows, store_file
from dynamo_gpu_ft.experts.store import SlotStore

LAYERS, SLOTS, EXPERTS, SIZE = 3, 3, 8, 4096
ALL = manifest(LAYERS, EXPERTS, SIZE)


class Deadly:
    """Counts bytes as they are written and ends the process in the middle of a write. `left` None: never."""

    left: int | None = None

    def write(self, target: memoryview, data: bytes | memoryview) -> None:
        if self.left is not None and len(data) > self.left:
            target[: self.left] = data[: self.left]
            os.kill(os.getpid(), signal.SIGKILL)
        target[:] = data
        if self.left is not None:
            self.left -= len(data)


deadly = Deadly()


class DeadlyRows(HostRows):
    def write(self, layer: int, row: int, data: memoryview) -> None:
        deadly.write(self.view(layer, row), data)


class DeadlyStore(SlotStore):
    def _put(self, at: int, record: bytes) -> None:
        deadly.write(self._control[at : at + len(record)], record)


def opened(path: Path, spare: int) -> DeadlyStore:
    geometry = Geometry(LAYERS, SLOTS, SLOTS + spare, SIZE, rank=0)
    shared = store_file(path, geometry)
    rows = DeadlyRows(shared, geometry, geometry.control_bytes)
    return DeadlyStore(geometry, rows, memoryview(shared)[: geometry.control_bytes])


def fill(store: SlotStore, target: list[list[int]], epoch: int) -> None:
    wants = [Want(a, b, e, load=e) for a, row in enumerate(target) for b, e in enumerate(row)]
    done = refill(
        store, wants, [Source("liar", "lying"), Source("good")], ALL, epoch=epoch, deadline_s=60
    )
    assert done.complete, done.left


def trial(
    path: Path, rng: random.Random, number: int, spare: int, targets: list[list[list[int]]]
) -> bool:
    """One kill; the next process finds the old or the new expert in every slot, whole, or (without spare rows) nothing. True if it hit."""
    old, new = targets
    inside = number % 4 != 3
    child = os.fork()
    if child == 0:
        if inside:
            deadly.left = rng.randrange(LAYERS * SLOTS * SIZE)
        store = opened(path, spare)
        fill(store, new, epoch=number + 1)
        os._exit(0)
    if not inside:
        time.sleep(rng.random() * 0.02)  # any instant will do: nothing is waited for
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, status
    deadly.left = None
    again = opened(path, spare)
    for layer in range(LAYERS):
        for slot, found in enumerate(again.routable(layer)):
            allowed = {old[layer][slot], new[layer][slot]} | (set() if spare else {-1})
            assert found in allowed, (number, layer, slot, found, allowed)
            if found >= 0:
                row = again.row_of(layer)[slot]
                held = again.rows.view(layer, row)  # type: ignore[attr-defined]
                assert digest(held) == digest(expert(layer, found, SIZE)), (number, layer, slot)
    fill(again, new, epoch=number + 1)
    assert [list(again.routable(layer)) for layer in range(LAYERS)] == new
    return os.WIFSIGNALED(status)


def main(folder: str, seed: str, trials: str, spare: str) -> None:
    rng, path = random.Random(int(seed)), Path(folder) / "slots"
    old = [rng.sample(range(EXPERTS), SLOTS) for _ in range(LAYERS)]
    fill(opened(path, int(spare)), old, epoch=0)
    hit = 0
    for number in range(int(trials)):
        new = [rng.sample(range(EXPERTS), SLOTS) for _ in range(LAYERS)]
        hit += trial(path, rng, number, int(spare), [old, new])
        old = new
    print(f"killed {hit}")


if __name__ == "__main__":
    main(*sys.argv[1:])
