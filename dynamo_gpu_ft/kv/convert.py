"""Plans of conversions as the native core runs them: compiled, and every offset checked once more.

Between the pure planner (`kv.relayout`) and `kv.shelves`, which makes converters of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.relayout import Relayout

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core


def compiled(relayout: Relayout) -> list[_core.Relayout]:
    """The plan's phases in the native core, which checks every offset once more. Linear in the payload's bytes."""
    core = native.load()
    payloads = [relayout.source_bytes] * (relayout.sources_per_target * len(relayout.source_shards))
    return [
        core.Relayout(
            [core.StridedCopy(c.source, c.start, c.to, c.dims, c.bytes) for c in copies],
            payloads,
            relayout.target_bytes,
        )
        for copies in relayout.phases
    ]
