"""How long a recovery of a real engine takes, by phase, from the demo's own scenario; and how often bfloat16 streams are identical.

Each repetition is one whole demo: a SIGKILL with protection and, in the first, the same kill without.
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
STREAMS = 4


def measure(options: Options) -> list[Row]:
    runs = 1 if options.quick else 3
    exact = [_demo(options, seed, "float32", []) for seed in range(runs)]
    coarse = [_demo(options, seed, "bfloat16", ["--skip-without"]) for seed in range(runs)]
    phases: dict[str, list[float]] = {}
    for result in exact:
        for phase, seconds in result["recovery_s"].items():
            phases.setdefault(phase, []).append(seconds)
    rows = [
        row(
            f"vllm_recovery.phase.{phase}",
            statistics.median(seconds),
            "s",
            note=f"float32; lowest/median/highest {spread(seconds)}",
        )
        for phase, seconds in phases.items()
    ]
    gaps = [max(stream["gap_s"] for stream in result["streams"]) for result in exact]
    outages = [result["without"]["outage_s"] for result in exact]
    rows.append(
        row(
            "vllm_recovery.gap",
            statistics.median(gaps),
            "s",
            baseline=statistics.median(outages),
            ratio=statistics.median(b / a for a, b in zip(gaps, outages, strict=True)),
            note="longest pause of an open stream; baseline: the same kill without protection, until every stream that "
            f"was lost and sent again has its next token; {spread(gaps)}; without {spread(outages)}",
        )
    )
    again = [sum(stream["tokens_recomputed"] or 0 for stream in r["streams"]) for r in exact]
    lost = [result["without"]["tokens_recomputed"] for result in exact]
    rows.append(
        row(
            "vllm_recovery.tokens_recomputed",
            statistics.median(again),
            "tokens",
            baseline=statistics.median(lost),
            ratio=statistics.median(lost) / max(1.0, statistics.median(again)),
            note=f"over {STREAMS} streams; {spread(again)}; without protection {spread(lost)}",
        )
    )
    rows += [_identical("float32", exact, 1.0), _identical("bfloat16", coarse, None)]
    return rows


def _identical(dtype: str, results: list[dict[str, Any]], target: float | None) -> Row:
    streams = [stream["identical"] for result in results for stream in result["streams"]]
    return row(
        f"vllm_recovery.identical.{dtype}",
        sum(streams) / len(streams),
        "of streams",
        baseline=1.0,
        target=target,
        note=f"{sum(streams)} of {len(streams)} killed streams equal the undisturbed run byte for byte",
    )


def _demo(options: Options, seed: int, dtype: str, flags: list[str]) -> dict[str, Any]:
    """One demo in a process of its own. A demo that finds a difference is a result; one that could not run is an error."""
    options.say(f"demo, {dtype}, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="gft-bench-") as folder:
        file = Path(folder) / "demo.json"
        command = [sys.executable, "-m", "dynamo_gpu_ft", "demo", "--json", str(file)]
        command += ["--dtype", dtype, "--seed", str(seed), "--streams", str(STREAMS), *flags]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=DEADLINE_S)
        if done.returncode not in (0, 1) or not file.exists():
            raise GpuFtError(
                "the demo could not run", value=done.returncode, remedy=" ".join(command)
            )
        result: dict[str, Any] = json.loads(file.read_text())
    options.say(f"{result['verdict']} {result['problems'] or ''}")
    return result


def plot(rows: Sequence[Row], path: Path) -> None:
    """One bar made of the phases, beside the outage without protection."""
    from bench.plots import figure

    phases = [r for r in rows if r.name.startswith("vllm_recovery.phase.")]
    (gap,) = [r for r in rows if r.name == "vllm_recovery.gap"]
    with figure(path, "From SIGKILL to the next token of every stream") as axes:
        left = 0.0
        for r in phases:
            axes.barh("with protection", r.value, left=left, label=r.name.rpartition(".")[2])
            left += r.value
        axes.barh("without (streams lost,\nsent again by the client)", gap.baseline, color="0.7")
        axes.set_xlabel("seconds")
        axes.legend(fontsize=8)
