"""Runs one attack many times against a fresh world and prints what came of it as one line of JSON.

A process of its own per attack: a crash or a hang of the core is then a failure with a seed, not the end of the test run.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from moves import MOVES
from world import World


def load_core(path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("_core", path)
    core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))
    loader.exec_module(core)
    return core


def attack(core: Any, name: str, cases: int, seed: int, folder: Path) -> dict[str, Any]:
    rng = random.Random(f"{name}:{seed}")
    world = World(core, folder, rng)
    world.judge_everything()
    untouched = dict(world.outcomes)
    assert untouched["right bytes"] == 15 + 2 * 20, (
        untouched
    )  # by slot, and by name in two ways with one chain twice
    assert untouched["ledger whole"] == 1, untouched
    world.outcomes.clear()
    move = MOVES[name]
    for case in range(cases):
        truth = {key: set(value) for key, value in world.truth.items()} if case % 10 == 0 else None
        world.restore()
        try:
            other = move(world)
            world.judge(other)
            if truth is not None and other is None:
                world.stir()
                world.truth = truth
        except Exception as error:
            raise AssertionError(f"attack {name}, seed {seed}, case {case}: {error!r}") from error
    return {"attack": name, "cases": cases, "outcomes": dict(world.outcomes)}


def main() -> None:
    core_path, name, cases, seed = sys.argv[1:]
    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="gft-attack-", dir=root) as folder:
        print(json.dumps(attack(load_core(core_path), name, int(cases), int(seed), Path(folder))))


if __name__ == "__main__":
    main()
