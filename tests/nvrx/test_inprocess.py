"""Real ranks in NVRx's real in-process wrapper with our callables: who comes back, with which shard, and whether its weights moved."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.nvrx import harness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = Path(__file__).with_name("inprocess_rank.py")


@dataclass(frozen=True)
class Turn:
    turn: int
    place: str
    shard: int
    pid: int
    address: int
    loads: int


def run(version: str, folder: Path, *, ranks: int, shards: int, faults: str) -> list[Turn]:
    """Starts the ranks, waits for all of them; a stopped one is killed by NVRx itself."""
    report = folder / "report"
    log = (folder / "log").open("wb")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(report), str(folder), str(shards), faults],
            # LOCAL_RANK is set, as launchers do: without NVML, NVRx's own checks must not end every rank.
            env=harness.environ(
                version, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                TORCH_CPP_LOG_LEVEL="ERROR",
            ),
            stdout=log, stderr=log,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        give_up = time.monotonic() + harness.DEADLINE_S
        for process in processes:
            process.wait(max(0.1, give_up - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
    lines = report.read_text().splitlines()
    said = "\n".join(lines) + (folder / "log").read_text()[-3000:]
    assert "done" in lines, said
    turns = [line.split() for line in lines if line not in ("done", "None")]
    return [Turn(int(t), p, *map(int, (s, pid, a, n))) for t, p, s, pid, a, n in turns]


@pytest.mark.parametrize(
    "nvrx", [pytest.param("0.4.1", marks=pytest.mark.long), "0.7.0"], indirect=True
)
def test_survivors_keep_process_shard_and_weights_and_a_spare_takes_the_lost_shard(
    nvrx: str, tmp_path: Path
) -> None:
    faults = "1:raise,0:kill,1:stop"
    turns = run(nvrx, tmp_path, ranks=3, shards=2, faults=faults)
    by = {(t.turn, t.shard): t for t in turns}
    places = {key: t.place for key, t in by.items()}
    assert places == {
        (0, 0): "0/2", (0, 1): "1/2",
        (1, 0): "0/2", (1, 1): "1/2",
        (2, 0): "0/2", (2, 1): "1/2",
        (3, 0): "0/1",
    }  # fmt: skip
    # The error of a step costs nobody's process; the kill of rank 0, which NVRx's own store would not survive, only that one.
    same = [((0, 0), (1, 0)), ((0, 1), (1, 1)), ((1, 1), (2, 1)), ((2, 0), (3, 0))]
    for before, after in same:
        assert by[before].pid == by[after].pid
        assert by[before].address == by[after].address
        assert by[after].loads == 1
    assert by[2, 0].pid not in {by[0, 0].pid, by[0, 1].pid}


@pytest.mark.long
def test_a_rank_with_a_verdict_against_its_gpu_ends_and_the_spare_goes_on(
    nvrx: str, tmp_path: Path
) -> None:
    turns = run(nvrx, tmp_path, ranks=3, shards=2, faults="1:unfit")
    by = {(t.turn, t.shard): t for t in turns}
    assert by[0, 0].pid == by[1, 0].pid
    assert by[0, 1].pid != by[1, 1].pid
    assert by[0, 0].address == by[1, 0].address
