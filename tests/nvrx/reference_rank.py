"""The reference engine as a launcher's rank: `reference_rank.py REPORT MODEL`, its driver is the rank, its own ranks are its business.

In the first round one of its ranks is killed, which it mends in place, and later the driver itself, which is the launcher's to mend. REPORT gets
the lines of `gloo_rank.py`: "pid=" of every process, "recovered", and the tokens.
"""

from __future__ import annotations

import os
import signal
import sys

from dynamo_gpu_ft.engines.reference.driver import Engine
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.events import Event, EventStream, GroupRecovered
from dynamo_gpu_ft.nvrx.rank import Rank
from dynamo_gpu_ft.recovery.membership.memory import MemoryStore

PROMPT, TOKENS = [7, 11, 13, 17, 19, 23], 24


def main(report: str, model: str) -> None:
    round_ = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(word: str) -> None:
        os.write(file, f"{round_} 0 {word}\n".encode())

    def on_event(event: Event) -> None:
        if isinstance(event, GroupRecovered):
            say("recovered")

    settings = {"arena_dir": os.path.dirname(report), "arena_bytes": "16MiB", "ledger_bytes": "1MiB", "snapshot": False,
                "standbys": 1, "start_timeout_s": 60, "step_deadline_s": 15}  # fmt: skip
    options = Options(model=model, tp=2, rows=32, settings=settings)
    say(f"pid={os.getpid()}")
    with Rank() as rank:
        rank.begin("weights")
        with Engine(options, MemoryStore(), EventStream(on_event)) as engine:
            rank.end()
            tokens: list[int] = []
            engine.submit(PROMPT, Sampling(max_tokens=TOKENS))
            hurt = False
            while engine.busy:
                with rank.step():
                    tokens += [out.token for out in engine.step() if out.token is not None]
                if round_ == 0 and len(tokens) >= 6 and not hurt:
                    hurt = True
                    pids = [process.pid for process in engine.crew.members.values()]
                    for pid in pids:
                        say(f"pid={pid}")
                    os.kill(pids[1], signal.SIGKILL)
                if round_ == 0 and len(tokens) >= 16:
                    os.kill(os.getpid(), signal.SIGKILL)
            say("tokens=" + ",".join(map(str, tokens)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
