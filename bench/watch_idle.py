"""What a watcher with nothing to do costs: processor time and memory, with 8 simulated GPUs, with and without the poll.

The baseline is the same process without a watcher. The simulated calls are cheaper than a driver's; the wake-ups are the same.
"""

import dataclasses
import json
import statistics
from typing import Any

from bench.rows import Options, Row, row
from bench.watch_latency import subject

LIMIT, GROWTH_MIB = 0.002, 10


def measure(options: Options) -> list[Row]:
    seconds, rounds = (5.0, 1) if options.quick else (30.0, 3)
    found: dict[str, list[dict[str, float]]] = {"none": [], "poll": [], "events": []}
    for number in range(rounds):
        for mode, answers in found.items():
            options.say(f"{mode}, round {number + 1} of {rounds}")
            answers.append(ask(mode, seconds))
    shares = {
        mode: statistics.median(each["share"] for each in answers)
        for mode, answers in found.items()
    }
    grown = max(each["grown"] for each in found["poll"]) / (1 << 20)
    polls = found["poll"][0]["polls"] / (seconds + 1)
    rows = [
        row("watch_idle.poll", shares["poll"] * 100, "% of a core", baseline=shares["none"] * 100, ratio=LIMIT / shares["poll"],
            target=1.0, note=f"8 GPUs, poll of 250 ms: {polls:.0f} polls/s; limit {LIMIT * 100:g} %; baseline: no watcher"),
        row("watch_idle.events", shares["events"] * 100, "% of a core", baseline=shares["none"] * 100,
            ratio=LIMIT / shares["events"], target=1.0, note="events only; baseline: no watcher"),
        row("watch_idle.memory", grown, "MiB", ratio=GROWTH_MIB / max(grown, 1e-9), target=1.0,
            note=f"resident memory with the watcher over the same process before it; limit {GROWTH_MIB} MiB"),
    ]  # fmt: skip
    return [dataclasses.replace(each, simulated=True) for each in rows]


def ask(mode: str, seconds: float) -> dict[str, Any]:
    with subject(f"cost-{mode}", seconds) as (_, process):
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer
