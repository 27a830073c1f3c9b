"""The `CommBackend` contract with real processes: right results, ranks killed and stopped inside a collective, revoked, made anew."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dynamo_gpu_ft.recovery.comm.base import CommError, CommRevoked, CommTimeout
from dynamo_gpu_ft.sim.nccl import build
from tests.contracts.comm_world import Ranks

pytest.importorskip("torch")

REVOKE_S = 0.1
NCCLS = ("simulated", "old")
Start = Callable[..., Ranks]


#: "simulated" is NCCL over a simulated library, "old" the same without what came after NCCL 2.18.
@pytest.fixture(params=["gloo", "torch", "simulated", pytest.param("old", marks=pytest.mark.long)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param in NCCLS and shutil.which("g++") is None:
        pytest.skip("no g++ here")
    return str(request.param)


@pytest.fixture
def start(kind: str, tmp_path: Path) -> Iterator[Start]:
    started: list[Ranks] = []
    name = f"{kind}:{build.library()}" if kind in NCCLS else kind

    def begin(count: int, timeout_s: float = 60.0) -> Ranks:
        started.append(Ranks(name, str(tmp_path), count, timeout_s))
        return started[-1]

    yield begin
    for ranks in started:
        ranks.close()


def loop_inside(ranks: Ranks, of: list[int]) -> None:
    """All of them are in a loop of collectives when this returns."""
    for index in of:
        ranks.tell(index, "reduce_for_ever")
    for index in of:
        assert ranks.hear(index)[0] is None


@pytest.mark.parametrize("count", [1, 2, 4])
def test_collectives_give_what_they_promise(start: Start, count: int) -> None:
    ranks = start(count)
    assert ranks.make(1) == [None] * count
    total = float(sum(range(count)))
    assert ranks.all("reduce", "{}") == [[total, total]] * count
    assert ranks.all("reduce", "{}", "max") == [[count - 1.0] * 2] * count
    assert ranks.all("reduce", "{}", "min") == [[0.0, 0.0]] * count
    for rank, answer in enumerate(ranks.all("collectives")):
        assert answer["broadcast"] == [count - 1.0, 7.0]
        assert answer["all_to_all"] == [10.0 * source + rank for source in range(count)]
        assert answer["recv"] == [0.5 if rank == 1 else -1.0]
        assert answer["all_gather"] == [[float(r)] * 2 for r in range(count)]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_killed_rank_ends_the_call_of_all_others_and_they_go_on_without_it(
    start: Start, kind: str, count: int
) -> None:
    ranks = start(count)
    ranks.make(1)
    loop_inside(ranks, list(range(count)))
    ranks.signal(count - 1, signal.SIGKILL)
    alive = list(range(count - 1))
    if kind in NCCLS:
        assert not ranks.pipes[0].poll(0.3), "nothing else than a revoke ends it"
        for index in alive:
            ranks.tell(index, "revoke")
    began = time.monotonic()
    for index in alive:
        # gloo tells it at once; who waits for a survivor that left already hears it from that one.
        error, _ = ranks.hear(index, 5.0)
        assert isinstance(error, CommError)
    assert time.monotonic() - began < 5.0
    ranks.all("abort", of=alive)
    pids = [ranks.processes[index].pid for index in alive]
    assert ranks.make(3, alive) == [None] * len(alive)
    assert ranks.all("reduce", 2.0, of=alive) == [[2.0 * len(alive)] * 2] * len(alive)
    assert [ranks.processes[index].pid for index in alive] == pids


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_stopped_rank_holds_everybody_until_they_revoke(start: Start, count: int) -> None:
    ranks = start(count)
    ranks.make(1)
    loop_inside(ranks, list(range(count)))
    ranks.signal(0, signal.SIGSTOP)
    alive = list(range(1, count))
    assert not ranks.pipes[1].poll(0.3), "nothing else than a revoke ends it"
    for index in alive:
        began = time.monotonic()
        ranks.tell(index, "revoke")
        error, _ = ranks.hear(index, 5.0)
        assert time.monotonic() - began < REVOKE_S
        # One whose peers were revoked before it hears of that first.
        assert isinstance(error, CommRevoked if index == 1 else CommError)
    ranks.all("abort", of=alive)
    assert ranks.make(3, alive) == [None] * len(alive)
    assert ranks.all("reduce", 1.0, of=alive) == [[float(len(alive))] * 2] * len(alive)
    # The stopped one goes on: its call fails (gloo may lose the error, so it revokes), and it finds no place in the new epoch.
    ranks.signal(0, signal.SIGCONT)
    ranks.tell(0, "revoke")
    error, _ = ranks.hear(0, 5.0)
    assert isinstance(error, CommError)
    ranks.all("abort", of=[0])
    ranks.tell(0, "make", 3, 0, len(alive), 2.0)
    refused, _ = ranks.hear(0, 5.0)
    assert isinstance(refused, CommError)
    assert "taken" in str(refused)
    assert ranks.all("reduce", 3.0, of=alive) == [[3.0 * len(alive)] * 2] * len(alive)


def test_after_a_revoke_every_call_is_refused_at_once_and_revoking_again_is_nothing(
    start: Start,
) -> None:
    ranks = start(2)
    ranks.make(1)
    for _ in range(2):
        ranks.tell(0, "revoke")
    for name in ("all_reduce", "all_gather", "all_to_all", "broadcast", "recv", "barrier"):
        ranks.tell(0, "each", name)
        error, seconds = ranks.hear(0)
        assert isinstance(error, CommRevoked)
        assert seconds < REVOKE_S


@pytest.mark.parametrize(
    "name", ["all_reduce", "all_gather", "all_to_all", "broadcast", "recv", "barrier"]
)
def test_every_collective_that_waits_for_a_rank_is_freed_by_a_revoke(
    start: Start, name: str
) -> None:
    ranks = start(2)
    ranks.make(1)
    ranks.tell(0, "each", name)  # rank 1 never comes
    assert not ranks.pipes[0].poll(0.2)
    began = time.monotonic()
    ranks.tell(0, "revoke")
    error, _ = ranks.hear(0, 5.0)
    assert time.monotonic() - began < REVOKE_S
    assert isinstance(error, CommRevoked)


def test_a_rank_that_never_comes_is_a_timeout_and_later_calls_say_that_it_was_broken(
    start: Start,
) -> None:
    ranks = start(2, timeout_s=0.3)
    ranks.make(1)
    ranks.tell(0, "reduce", 1.0)
    error, seconds = ranks.hear(0, 5.0)
    assert isinstance(error, CommTimeout)
    assert 0.25 < seconds < 1.5
    ranks.tell(0, "reduce", 1.0)
    again, seconds = ranks.hear(0)
    assert isinstance(again, CommTimeout)
    assert "broken by an earlier call" in str(again)
    assert seconds < REVOKE_S


def test_a_revoke_frees_the_call_also_where_the_library_loses_the_error(start: Start) -> None:
    ranks = start(3)
    for epoch in range(1, 60, 2):
        assert ranks.make(epoch) == [None] * 3
        loop_inside(ranks, [0, 1, 2])
        for index in range(3):
            ranks.tell(index, "revoke")
        for index in range(3):
            assert isinstance(ranks.hear(index, 5.0)[0], CommError)
        assert ranks.all("abort") == [None] * 3


def test_making_one_ends_at_its_deadline_or_when_it_is_given_up(start: Start) -> None:
    ranks = start(1)
    ranks.tell(0, "make", 1, 0, 2, 0.3)
    late, seconds = ranks.hear(0)
    assert isinstance(late, CommTimeout)
    assert seconds < 2.0
    ranks.tell(0, "give_up_making", 2, 0, 2, 0.2)
    given_up, seconds = ranks.hear(0)
    assert isinstance(given_up, CommRevoked)
    assert seconds < 2.0


def test_of_two_processes_that_want_one_seat_the_second_is_refused(start: Start) -> None:
    ranks = start(3)
    ranks.tell(0, "make", 1, 0, 2)
    ranks.tell(1, "make", 1, 1, 2)
    assert [ranks.hear(index)[0] for index in (0, 1)] == [None, None]
    ranks.tell(2, "make", 1, 1, 2, 2.0)
    error, _ = ranks.hear(2)
    assert isinstance(error, CommError)
    assert "taken" in str(error)
    assert ranks.all("reduce", 1.0, of=[0, 1]) == [[2.0, 2.0]] * 2


def test_shrinking_keeps_the_chosen_and_growing_takes_newcomers_where_they_belong(
    start: Start,
) -> None:
    ranks = start(3)
    ranks.make(1)
    for place, index in enumerate((0, 2)):
        ranks.tell(index, "shrink", [0, 2], 3, place)
    assert [ranks.hear(index)[0] for index in (0, 2)] == [None, None]
    assert ranks.all("reduce", 4.0, of=[0, 2]) == [[8.0, 8.0]] * 2
    new = ranks.add()
    for rank, index in enumerate((0, new, 2)):
        ranks.tell(index, "grow", 5, rank, 3)
    assert [ranks.hear(index)[0] for index in (0, new, 2)] == [None] * 3
    answers = ranks.all("collectives", of=[0, new, 2])
    assert answers[2]["all_gather"] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_a_rank_that_would_not_be_itself_after_shrinking_is_refused(start: Start) -> None:
    ranks = start(1)
    ranks.make(1)
    ranks.tell(0, "shrink", [3], 3, 0)
    assert isinstance(ranks.hear(0)[0], ValueError)


def _held(pid: int, kind: str) -> int:
    """What communicators hold in a process: sockets, or memory and threads."""
    if kind in NCCLS:
        mapped = Path(f"/proc/{pid}/maps").read_text().count("/dev/shm/simulated-nccl-")
        return mapped + len(list(Path(f"/proc/{pid}/task").iterdir()))
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += os.readlink(entry).startswith("socket:")
    return found


def test_many_epochs_leave_neither_sockets_nor_files_behind(
    start: Start, kind: str, tmp_path: Path
) -> None:
    ranks = start(2)
    pid = ranks.processes[0].pid
    before = _held(pid, kind)
    for epoch in range(1, 9):
        assert ranks.make(epoch) == [None, None]
        assert ranks.all("reduce", 1.0) == [[2.0, 2.0]] * 2
        assert _held(pid, kind) > before
        ranks.all("abort")
    until = time.monotonic() + 5.0  # some of it is given back a moment later
    while _held(pid, kind) > before and time.monotonic() < until:
        os.sched_yield()
    assert _held(pid, kind) == before
    assert not list(Path("/dev/shm").glob("simulated-nccl-*"))
    assert len(list(tmp_path.glob("*.rendezvous"))) == 1
