"""Asks the weight sources one after the other until one has given every tensor with the right digest.

Called by a rank at its start and by a replacement in REBUILD; what each refused source said is kept for the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dynamo_gpu_ft.errors import WeightsError
from dynamo_gpu_ft.recovery.weights.base import Need, Report, Sink, WeightSource, refuse


@dataclass(frozen=True, slots=True)
class Loaded:
    """`digests`: need (as text) -> digest of the engine's own bytes; `refused`: source -> what it said."""

    report: Report
    digests: dict[str, bytes]
    refused: tuple[tuple[str, str], ...] = ()


def load(
    sources: Sequence[WeightSource],
    needs: Sequence[Need],
    sink: Sink,
    digest_of: Callable[[Need], bytes],
    *,
    expected: Mapping[str, bytes] | None = None,
    deadline_s: float,
) -> Loaded:
    """Loads from the first source that works. Every tensor is digested once where it lies: by the source as its bytes arrived, else by
    `digest_of`, which reads the engine's own. With `expected`, every need must have that digest, or the source counts as forged.

    Blocks at most about `deadline_s` seconds for all sources together. Raises `WeightsError` when none is left, `TimeoutError`."""
    give_up = time.monotonic() + deadline_s
    refused: list[tuple[str, str]] = []
    for source in sources:
        left = give_up - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no source gave the weights in {deadline_s:g} s: {refused}")
        try:
            report = source.load(needs, sink, left)
            digests = {
                name: report.digests.get(name) or digest_of(need)
                for name, need in zip(map(str, needs), needs, strict=True)
            }
            _check(source, digests, expected)
        except (WeightsError, TimeoutError) as error:
            refused.append((source.name, str(error)))
            continue
        return Loaded(report, digests, tuple(refused))
    if time.monotonic() >= give_up:
        raise TimeoutError(f"no source gave the weights in {deadline_s:g} s: {refused}")
    raise refuse("no source has this shard's weights", "weights", refused, remedy="look at each")


def _check(
    source: WeightSource, digests: Mapping[str, bytes], expected: Mapping[str, bytes] | None
) -> None:
    for name, found in digests.items():
        wanted = None if expected is None else expected.get(name)
        if wanted is not None and wanted != found:
            raise refuse(
                "weights have another digest than when the engine started",
                f"{source.name}, {name}",
                found.hex(),
                wanted.hex(),
                "the next source is asked",
            )
