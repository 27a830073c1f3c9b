"""Four ranks, then three, then four again: the engine goes on without a device and takes it back, with the same tokens and the same KV."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference.sampling import Sampling  # noqa: E402
from dynamo_gpu_ft.errors import ConfigError  # noqa: E402
from dynamo_gpu_ft.recovery.group.base import Deadline  # noqa: E402
from tests.engines.reference_drill import Drill, Fault, prompts  # noqa: E402


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


def _kv(drill: Drill, blocks: list[int]) -> dict[int, bytes]:
    """head -> digest of its KV, wherever the head is now."""
    found = drill.engine.group.describe(Deadline.after(10.0), blocks)
    return {head: digest for told in found.values() for head, digest in told.kv.items()}


@pytest.mark.parametrize(
    "lost", [pytest.param(0, marks=pytest.mark.long), 1, pytest.param(3, marks=pytest.mark.long)]
)
def test_four_ranks_become_three_and_four_again_with_equal_tokens_and_equal_kv(
    folder: Path, lost: int
) -> None:
    # An engine of its own: blocks that it had stored would be found under the same names, with the last bits of four ranks' sums.
    with Drill(tiny_llama(), folder, tp=4, arena_name="whole") as drill:
        wanted = drill.run(2, tokens=60).tokens
    with Drill(tiny_llama(), folder, tp=4, min_shards=3) as drill:
        engine = drill.engine
        names = [
            engine.submit(p, Sampling(max_tokens=60), f"d{i}") for i, p in enumerate(prompts(2))
        ]
        outputs = {name: list[int]() for name in names}
        sizes, pids = [], engine.crew.members[2].pid
        for step in range(10_000):
            if step in (20, 40):
                block = engine.options.block
                whole = [
                    b for r in engine.scheduler.running for b in r.blocks[: r.computed // block]
                ]
                before = _kv(drill, whole)
                if step == 20:
                    engine.condemn(lost, "XID 79: the GPU has fallen off the bus", device=True)
                    assert engine.step() == []
                else:
                    assert engine.returned(lost) == []
                assert _kv(drill, whole) == before
                sizes.append(len(engine.crew.members))
            for output in engine.step():
                assert output.token is not None
                outputs[output.request].append(output.token)
            if not engine.busy:
                break
        assert sizes == [3, 4]
        assert list(outputs.values()) == wanted
        assert engine.crew.members[2].pid == pids


def test_a_degraded_engine_loses_another_process_and_replaces_it(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=4, min_shards=3) as drill:
        wanted = drill.run(3).tokens
        drill.engine.condemn(2, "XID 79", device=True)
        drill.engine.step()
        assert sorted(drill.engine.crew.members) == [0, 1, 3]
        report = drill.run(3, [Fault("kill", "decode", 1)])
        assert report.tokens == wanted
        assert sorted(drill.engine.crew.members) == [0, 1, 3]
        os.kill(drill.engine.crew.members[0].pid, signal.SIGKILL)
        drill.engine.returned(2)
        assert sorted(drill.engine.crew.members) == [0, 1, 2, 3]
        assert drill.run(3).tokens == wanted


def test_an_engine_with_stages_refuses_to_go_on_with_fewer_ranks(
    folder: Path,
) -> None:
    with pytest.raises(ConfigError, match="pipeline stages"):
        Drill(tiny_llama(), folder, tp=2, pp=2, min_shards=3)
