"""Reads the protected server's journal: what became of each stream, and how long each phase of the recovery took.

Pure functions over events; the scenario hands them the lines and the instant of the kill.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dynamo_gpu_ft import events
from dynamo_gpu_ft.events import EngineDied, Recovered, RequestResumed, StepDone


@dataclass(frozen=True)
class Resumed:
    """Tokens of KV put back and tokens computed again for one stream, over all its resumptions."""

    restored: int
    recomputed: int


def read(path: Path) -> list[events.Event]:
    """The journal's events in order; lines that are none (torn, or of a newer version) are left out."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            found.append(events.decode(line))
        except msgspec.DecodeError:
            continue
    return found


def resumed(journal: Iterable[events.Event], request_id: str) -> Resumed | None:
    """What the server says about one stream. vLLM's own request id contains ours; None when it is never named."""
    named = [
        event
        for event in journal
        if isinstance(event, RequestResumed) and request_id in event.request_id
    ]
    if not named:
        return None
    return Resumed(
        restored=sum(event.tokens_restored for event in named),
        recomputed=sum(event.tokens_recomputed for event in named),
    )


def phases(
    journal: Sequence[events.Event], *, killed_at: float, last_first_token_at: float | None
) -> dict[str, float]:
    """Seconds by phase in order: `notice` (kill to engine declared dead), the steps, `first_token` (the wait after them).

    `killed_at` and `last_first_token_at` are wall-clock seconds; the latter is when the last stream's first new token
    reached its client. A step that ran more than once is summed; what the server does after it has recovered is part of
    that last wait.
    """
    result: dict[str, float] = {}
    died = next((event for event in journal if isinstance(event, EngineDied)), None)
    if died is not None:
        result["notice"] = max(0.0, died.time - killed_at)
    ends = [place for place, event in enumerate(journal) if isinstance(event, Recovered)]
    for event in journal[: ends[-1]] if ends else journal:
        if isinstance(event, StepDone):
            result[event.step] = result.get(event.step, 0.0) + event.duration_s
    if ends and last_first_token_at is not None:
        result["first_token"] = max(0.0, last_first_token_at - journal[ends[-1]].time)
    return result
