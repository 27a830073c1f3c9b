"""SIGKILL of one tensor-parallel worker of a real vLLM engine until every stream has its next token: in place, and by a restart.

Each way is one `demo --fault rank`: one server, whose engine loses either worker in turn, several times, and then everything.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.errors import GpuFtError

DEADLINE_S = 1800.0

#: What the engine is given, and how many times sooner than its whole restart it is to be.
WAYS = {"respawn": (0, 5.0), "standby": (2, 25.0)}
PHASES = ("quiesce", "rebuild", "validate")


def measure(options: Options) -> list[Row]:
    kills = 1 if options.quick else 5
    runs = {way: _demo(options, standbys, kills) for way, (standbys, _) in WAYS.items()}
    wholes = [run["whole_engine"] for run in runs.values()]
    return [
        line
        for way, (_, target) in WAYS.items()
        for line in _rows(way, runs[way]["kills"], wholes, target)
    ]


def _rows(
    way: str, ones: list[dict[str, Any]], wholes: list[dict[str, Any]], target: float
) -> list[Row]:
    """Rows of one way to take the place, over its kills; beside every restart of the whole engine of this bench."""
    name = f"rank_recovery_vllm.{way}"
    rows = [
        _seconds(f"{name}.notice", [one["noticed_s"] for one in ones], "the worker's death is seen")
    ]
    rows += [
        _seconds(
            f"{name}.{phase}", [one["steps_s"][phase] for one in ones], "a step of the recovery"
        )
        for phase in PHASES
    ]
    rows.append(
        _seconds(
            f"{name}.weigh",
            [one["steps_s"]["weigh"] for one in ones],
            "digests of a replacement's weights, its loading's included: part of validate, and of the replacement's start",
        )
    )
    tails = [one["next_token_s"] - one["serving_s"] for one in ones]
    rows.append(_seconds(f"{name}.first_token", tails, "from serving to the last stream's token"))
    took = [one["next_token_s"] for one in ones]
    restarts = [whole["next_token_s"] for whole in wholes]
    same = sum(one["identical"] for one in ones), sum(one["streams"] for one in ones)
    rows.append(
        row(
            f"{name}.next_token",
            statistics.median(took),
            "s",
            baseline=statistics.median(restarts),
            ratio=statistics.median(restarts) / statistics.median(took),
            target=target,
            note=f"SIGKILL to the next token of every stream, either worker in turn; baseline: the whole engine killed, same server; "
            f"{spread(took)}; restart {spread(restarts)}; {same[0]} of {same[1]} streams identical",
        )
    )
    serving, again = [one["serving_s"] for one in ones], [whole["serving_s"] for whole in wholes]
    rows.append(
        row(
            f"{name}.serving",
            statistics.median(serving),
            "s",
            baseline=statistics.median(again),
            ratio=statistics.median(again) / statistics.median(serving),
            note=f"SIGKILL until the engine can make steps again; {spread(serving)}; restart {spread(again)}",
        )
    )
    return rows


def _seconds(name: str, values: list[float], what: str) -> Row:
    return row(name, statistics.median(values), "s", note=f"{what}; {spread(values)}")


def _demo(options: Options, standbys: int, kills: int) -> dict[str, Any]:
    """One demo in a process of its own. A difference is a result; a demo that could not run is an error."""
    options.say(f"demo --fault rank, {standbys} standbys, {kills} kills")
    with tempfile.TemporaryDirectory(prefix="gft-bench-") as folder:
        file = Path(folder) / "demo.json"
        command = [sys.executable, "-m", "dynamo_gpu_ft", "demo", "--fault", "rank"]
        command += ["--standbys", str(standbys), "--kills", str(kills), "--json", str(file)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=DEADLINE_S)
        if done.returncode not in (0, 1) or not file.exists():
            raise GpuFtError(
                "the demo could not run", value=done.returncode, remedy=" ".join(command)
            )
        result: dict[str, Any] = json.loads(file.read_text())
    options.say(f"{result['verdict']} {result['problems'] or ''}")
    return result


def plot(rows: Sequence[Row], path: Path) -> None:
    """A bar of phases for each way, beside the restart."""
    from bench.plots import figure

    with figure(path, "From SIGKILL of one worker to the next token of every stream") as axes:
        for way in WAYS:
            left = 0.0
            for phase in ("notice", *PHASES, "first_token"):
                (found,) = [r for r in rows if r.name == f"rank_recovery_vllm.{way}.{phase}"]
                axes.barh(f"in place, {way}", found.value, left=left)
                left += found.value
        (last,) = [r for r in rows if r.name == "rank_recovery_vllm.standby.next_token"]
        axes.barh("whole engine restarted", last.baseline, color="0.7")
        axes.set_xlabel("seconds")
