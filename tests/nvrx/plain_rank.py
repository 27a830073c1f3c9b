"""A rank without torch, run by the tests under the built-in monitor: `plain_rank.py REPORT FAULTS`, as `gloo_rank.py`.

More faults: leak (starts a child in a session of its own, then is killed), deaf (never speaks to the monitor), beat (its process goes on
while its main thread is stuck in idle), orderly (says goodbye, then takes its time).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from dynamo_gpu_ft.nvrx.rank import Rank
from dynamo_gpu_ft.nvrx.wishes import Wish
from tests.nvrx.gloo_rank import fault

STEPS, AT, STEP_S = 6, 2, 0.05
HELD_S = 2.5  # longer than the limits the tests give


def own_fault(name: str, rank: Rank, say: Callable[[str], None]) -> None:
    if name == "leak":
        code = "import signal, sys; print('up', flush=True); signal.alarm(100); signal.pause()"
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        say(f"pid={child.pid}")
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "code":
        sys.exit(93)
    elif name == "exclude":
        rank.ask(Wish.EXCLUDE_NODE, "this GPU has to be reset")
        sys.exit(4)
    else:
        fault(name, rank)


def main(report: str, faults: list[str]) -> None:
    number, round_ = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(word: str) -> None:
        os.write(file, f"{round_} {number} {word}\n".encode())

    name = faults[min(round_, len(faults) - 1)] if number == 1 else "fine"
    say(f"pid={os.getpid()}")
    if name == "deaf":
        time.sleep(HELD_S)
        say("done")
        return
    with Rank() as rank:
        say("ready")
        for index in range(STEPS):
            with rank.step():
                time.sleep(STEP_S)
                if index == AT and name not in ("fine", "idle", "orderly", "hold"):
                    own_fault(name, rank, say)
        if name in ("idle", "hold"):
            time.sleep(HELD_S if name == "idle" else 100)
    if name == "orderly":
        time.sleep(HELD_S)
    say("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
