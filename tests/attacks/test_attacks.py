"""Hostile bytes in every region of the arena: nothing wrong is accepted, nothing crashes, nothing hangs.

GFT_ATTACK_CASES sets the number of cases over all attacks together. README.md in this folder lists the attacks.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from moves import MOVES
from world import CHAIN, PAYLOAD, SLOT_BYTES, World, name_of

from dynamo_gpu_ft import native

CASES = int(os.environ.get("GFT_ATTACK_CASES", "100800"))
HERE = Path(__file__).parent

# What each attack must have met at least once: an attack that is never noticed tests nothing.
NOTICED = {
    "flip_index": "prefix missing",
    "flip_lane": "fenced",
    "hostile_lane": "fenced",
    "hostile_stamps_and_holds": "right bytes",  # they decide the order of eviction only
    "flip_ledger": "ledger torn",
    "hostile_record": "ledger torn",
    "swap_records": "ledger torn",
    "replay_ledger": "ledger torn",
    "flip_control": "fenced",
    "hostile_control": "fenced",
    "hostile_index": "prefix missing",
    "index_points_elsewhere": "not_found",
    "index_full_of_one_slot": "prefix missing",
    "flip_payload": "verify digest",
    "swap_payloads": "verify digest",
    "replay_payload": "verify digest",
    "another_geometry_that_fits": "verify digest",
    "flip_state": "verify seal",
    "hostile_state": "verify seal",
    "flip_header": "verify seal",
    "hostile_header_word": "verify seal",
    "forged_lengths": "verify seal",
    "swap_headers": "verify seal",
    "swap_slots": "verify seal",
    "copy_slot": "verify seal",
    "replay_older_epoch": "verify seal",
    "wrong_namespace": "verify seal",
}


def run(name: str, cases: int, seed: int) -> dict[str, int]:
    command = [
        sys.executable,
        str(HERE / "attack.py"),
        native.load().__file__,
        name,
        str(cases),
        str(seed),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"attack {name} with seed {seed}: {done.stderr[-2000:]}"
    result = json.loads(done.stdout)
    assert result["cases"] == cases
    outcomes: dict[str, int] = result["outcomes"]
    return outcomes


@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", sorted(MOVES))
def test_no_wrong_byte_is_accepted_after(name: str, rng: random.Random) -> None:
    outcomes = run(name, CASES // len(MOVES), rng.randrange(2**32))
    print(name, outcomes)
    assert outcomes.get(NOTICED.get(name, "damaged"), 0) > 0, "the attack was never noticed"


def test_every_attack_is_explained() -> None:
    assert set(
        re.findall(r"^\| `(\w+)` \|", (HERE / "README.md").read_text(), re.MULTILINE)
    ) == set(MOVES)


def test_bytes_that_change_during_a_load_are_never_delivered_as_sound(
    memory_folder: Path, rng: random.Random
) -> None:
    """The digest is of what arrived, so that a change between the check and the copy cannot slip through."""
    world = World(native.load(), memory_folder, rng)
    end = threading.Event()

    def change() -> None:
        while not end.is_set():
            slot = rng.choice(world.used)
            at = PAYLOAD + slot * 4096 + rng.randrange(SLOT_BYTES)
            old = world.memory[at]
            world.memory[at] = old ^ 0xFF
            world.memory[at] = old

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(1500):
            world.restore()
            world.judge_load((0, 0), [name_of(i) for i in range(CHAIN)])
    finally:
        end.set()
        thread.join()
    assert world.outcomes["right bytes"] > 0
