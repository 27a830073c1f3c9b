"""A rank with sections and steps on gloo, run under a launcher by the tests: `gloo_rank.py REPORT FAULTS`.

FAULTS names what rank 1 does in its third step of each round, separated by commas: kill, stop, stuck, crash, exclude, no_restart,
failed, fine. Every rank appends what it lived through to REPORT, one line "round rank word".
"""

from __future__ import annotations

import atexit
import datetime
import os
import signal
import sys
from collections.abc import Callable

from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.nvrx.rank import Rank
from dynamo_gpu_ft.nvrx.wishes import Wish

STEPS, AT = 6, 2


def fault(name: str, rank: Rank) -> None:
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        stuck()  # whoever ends it wakes it first, and what is left of this work is done in no time
    elif name == "stuck":
        stuck()
    elif name == "crash":
        sys.exit(3)
    elif name == "exclude":
        assert rank.ask(Wish.EXCLUDE_NODE, "this GPU has to be reset")
        sys.exit(4)
    elif name == "no_restart":
        assert rank.ask(Wish.DO_NOT_RESTART, "there is no model of that name")
        sys.exit(5)
    elif name == "failed":
        raise RecoveryFailed("every restart was used up")


def stuck() -> None:
    while True:
        signal.pause()


def main(report: str, faults: list[str]) -> None:
    number, round_ = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(word: str) -> None:
        os.write(file, f"{round_} {number} {word}\n".encode())

    say(f"pid={os.getpid()}")
    with Rank() as rank:
        with rank.section("weights"):
            step = prepared(number)
        say("ready")
        for index in range(STEPS):
            with rank.step():
                if number == 1 and index == AT and round_ < len(faults):
                    fault(faults[round_], rank)
                assert step() == int(os.environ["WORLD_SIZE"])
        say("done")


def prepared(number: int) -> Callable[[], float]:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    # A thread of gloo's that still runs when the process ends aborts it: "terminate called without an active exception".
    atexit.register(dist.destroy_process_group)

    def step() -> float:
        ones = torch.ones(1)
        dist.all_reduce(ones)
        return float(ones.item())

    return step


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
