"""NCCL for real: several ranks on one GPU (NCCL 2.30 or newer), one killed or stopped in a collective, revoked, shrunk, grown."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_gpu_ft.recovery.comm.base import CommError, CommRevoked
from tests.contracts.comm_world import Ranks

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    from dynamo_gpu_ft.recovery.comm.nccl_library import NcclLibrary

    if NcclLibrary().version < 23000:
        pytest.skip("this NCCL refuses several ranks on one GPU")
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    monkeypatch.setenv("NCCL_MAX_CTAS", "2")
    made = Ranks("nccl", str(tmp_path), 2)
    yield made
    made.close()


def test_collectives_between_processes_give_what_they_promise(ranks: Ranks) -> None:
    assert ranks.make(1) == [None, None]
    assert ranks.all("reduce", "{}") == [[1.0, 1.0]] * 2
    for rank, answer in enumerate(ranks.all("collectives")):
        assert answer["broadcast"] == [1.0, 7.0]
        assert answer["all_to_all"] == [10.0 * source + rank for source in range(2)]
        assert answer["all_gather"] == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_survivor_is_freed_by_a_revoke_and_goes_on_alone_and_with_a_newcomer(
    ranks: Ranks, number: signal.Signals
) -> None:
    ranks.make(1)
    for index in (0, 1):
        ranks.tell(index, "reduce_for_ever")
    for index in (0, 1):
        assert ranks.hear(index)[0] is None
    ranks.signal(1, number)
    began = time.monotonic()
    ranks.tell(0, "revoke")
    error, _ = ranks.hear(0)
    assert isinstance(error, (CommRevoked, CommError))
    print(f"revoked within {time.monotonic() - began:.3f} s")
    ranks.tell(0, "shrink", [0], 3, 0)
    assert ranks.hear(0)[0] is None
    ranks.tell(0, "reduce", 5.0)
    assert ranks.hear(0)[0] == [5.0, 5.0]
    new = ranks.add()
    ranks.tell(0, "grow", 5, 0, 2)
    ranks.tell(new, "grow", 5, 1, 2)
    assert [ranks.hear(index)[0] for index in (0, new)] == [None, None]
    assert ranks.all("reduce", 2.0, of=[0, new]) == [[4.0, 4.0]] * 2
