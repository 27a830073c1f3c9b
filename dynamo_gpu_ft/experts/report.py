"""Turns what happened to experts into metrics: the one place of this room that records.

Engines call it after a commit, a refill, a scrub and now and then with what the router mask counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from dynamo_gpu_ft.experts.base import Placement
from dynamo_gpu_ft.experts.gap import Gap
from dynamo_gpu_ft.experts.refill import Refilled
from dynamo_gpu_ft.metrics.recorder import Recorder


def of_map(recorder: Recorder, routable: Placement, epoch: int) -> int:
    """The map that tokens follow now; returns how many (layer, expert) have no copy in it."""
    missing = sum(not slots for layer in range(routable.layers) for slots in routable.copies(layer))
    recorder.set("experts_uncovered", missing)
    recorder.set("experts_epoch", epoch)
    return missing


def of_refill(recorder: Recorder, done: Refilled, expert_bytes: int) -> None:
    for source, experts in done.by_source.items():
        of_landed(recorder, source, experts * expert_bytes)
    for passed in done.passed:
        of_passed(recorder, passed.source)
    of_damage(recorder, sum(len(c.damaged) for c in done.committed))
    of_seconds(recorder, done.seconds)


def of_landed(recorder: Recorder, source: str, size: int) -> None:
    """`size` bytes of experts came from `source`."""
    recorder.add("experts_refilled_bytes_total", size, source=source)


def of_passed(recorder: Recorder, source: str) -> None:
    """`source` was asked for an expert and did not give it."""
    recorder.add("experts_passed_over_total", source=source)


def of_seconds(recorder: Recorder, seconds: float) -> None:
    """A refill is over, so long after its first want."""
    recorder.observe("experts_refill_seconds", seconds)


def of_damage(recorder: Recorder, slots: int) -> None:
    recorder.add("experts_damaged_total", slots)


def of_scrub(recorder: Recorder, damaged: Iterable[tuple[int, int, int]]) -> None:
    of_damage(recorder, len(list(damaged)))


def of_gap(recorder: Recorder, gap: Gap, model_kl: float | None = None) -> None:
    """`gap` since the last call; `model_kl` where an engine has both models' logits."""
    recorder.add("experts_routed_tokens_total", gap.tokens)
    recorder.add("experts_affected_tokens_total", gap.affected)
    if gap.tokens:
        recorder.set("experts_router_kl", gap.kl)
    if model_kl is not None:
        recorder.set("experts_model_kl", model_kl)
