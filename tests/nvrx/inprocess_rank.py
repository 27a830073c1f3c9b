"""A rank whose loop runs in NVRx's in-process wrapper: `inprocess_rank.py REPORT FOLDER SHARDS FAULTS`, one process per rank.

FAULTS has one entry for each turn, "SHARD:KIND" with kill, stop, raise or unfit, separated by commas: who holds that shard has the fault in
its fourth step. Every turn appends "turn rank/size shard pid address-of-the-weights loads" to REPORT; the end of the loop appends "done".
"""

from __future__ import annotations

import datetime
import os
import signal
import sys

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.nvrx.inprocess.callables import Process
from dynamo_gpu_ft.nvrx.inprocess.wrapper import wrapper

STEPS = 8


def main(report: str, folder: str, shards: int, faults: list[str]) -> None:
    import torch
    import torch.distributed as dist

    process = Process(shards, Config.load({"min_shards": 1}))
    incidents: list[Incident] = []
    process.incidents = lambda: incidents
    file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(text: str) -> None:
        os.write(file, (text + "\n").encode())

    @wrapper(process, folder=folder, hang_s=3.0, tick_s=0.1)
    def serve() -> str:
        assert process.shard is not None
        shard, turn = process.shard, process.turn
        weights = process.kept.once("weights", shard, lambda: torch.full((4,), float(shard + 1)))
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        assert rank == process.rank
        say(f"{turn} {rank}/{size} {shard} {os.getpid()} {weights.data_ptr()} {process.kept.loads}")
        store = dist.FileStore(os.path.join(folder, f"group{turn}"), size)
        with process.communicators.opening():
            dist.init_process_group(
                "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=60),
            )
        for step in range(STEPS):
            victim, _, kind = faults[turn].partition(":") if turn < len(faults) else ("", "", "")
            if step == 3 and victim == str(shard):
                hurt(kind, incidents)
            total = weights.clone()
            dist.all_reduce(total)
        held = [s for s in process.seating.holders if s is not None] if process.seating else []
        assert total[0].item() == sum(s + 1 for s in held)
        dist.destroy_process_group()
        return "done"

    say(str(serve()))


def hurt(kind: str, incidents: list[Incident]) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "raise":
        raise RuntimeError("a step failed")
    elif kind == "unfit":
        from tests.nvrx.incidents import lost_gpu

        incidents.extend(lost_gpu(shard) for shard in range(2))
        raise RuntimeError("a step failed on a bad GPU")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split(","))
