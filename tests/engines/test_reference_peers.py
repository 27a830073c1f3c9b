"""A lost shard's weights out of the memory of another engine's rank on this machine: taken when they are right, passed over when they lie."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.recovery.weights.peer import Table  # noqa: E402
from tests.engines.reference_drill import Drill, Fault  # noqa: E402


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


def swapped(table: Table) -> Table:
    """The same digests and addresses, under each other's names: true to itself, and not what the engine started with."""
    first, second = [p for p in table.places if "up_proj" in p.tensor][:2]
    lies = {
        first.tensor: msgspec.structs.replace(second, tensor=first.tensor),
        second.tensor: msgspec.structs.replace(first, tensor=second.tensor),
    }
    places = tuple(lies.get(place.tensor, place) for place in table.places)
    return msgspec.structs.replace(table, places=places)


def broken(table: Table) -> Table:
    """Where the second tensor is said to lie there is nothing."""
    nowhere = msgspec.structs.replace(table.places[1], address=4096)
    return msgspec.structs.replace(table, places=(table.places[0], nowhere, *table.places[2:]))


def test_a_lost_shard_comes_from_a_peer_and_from_the_next_source_when_the_peer_lies_or_is_gone(
    folder: Path,
) -> None:
    model = tiny_llama()
    with Drill(model, folder, tp=2, arena_name="one") as drill:
        with Drill(model, folder, tp=2, arena_name="two") as other:
            group, tables = drill.engine.group, other.engine.group.tables()
            wanted = drill.run(1).tokens

            def source(peers: tuple[Table, ...], shard: int) -> tuple[str, dict[str, str]]:
                group.peers = peers
                report = drill.run(1, [Fault("kill", "decode", shard)])
                assert report.tokens == wanted
                facts: dict[int, Any] = group.facts["loads"]
                name, read, needed, refused = facts[shard]
                assert read == needed
                return name, dict(refused)

            assert source(tables, 0) == ("peer", {})
            stopped = other.engine.crew.members[1].pid
            os.kill(stopped, signal.SIGSTOP)  # its help is not needed
            assert source(tables, 1) == ("peer", {})
            os.kill(stopped, signal.SIGCONT)
            for lie, said in ((swapped, "another digest"), (broken, "cannot be read")):
                name, refused = source(tuple(map(lie, tables)), 1)
                assert name == "neighbour"
                assert said in refused["peer"]
        name, refused = source(tables, 0)
        assert name == "neighbour"
        assert "no live peer" in refused["peer"]
        for path in folder.glob("dynamo_gpu_ft-one.weights-1"):
            path.unlink()
        name, refused = source(tables, 1)
        assert name == "checkpoint"
        assert set(refused) == {"peer", "neighbour"}
