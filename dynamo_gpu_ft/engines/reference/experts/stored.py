"""KV of an expert-parallel rank's requests in the arena: stored behind steps that count, loaded by whoever takes over a lost rank's requests.

A rank is one shard of the store, its payload a block of all heads. Without protection the engine serves on: a loss then costs a recomputation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dynamo_gpu_ft.engines.reference.kv import Snapshots
from dynamo_gpu_ft.engines.reference.messages import Prefix, Restored
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.engines.reference.split import Cut
from dynamo_gpu_ft.errors import GpuFtError


class StoredKV:
    """`cache` as `make_cache(together=True)` gives it. `why_not`: why nothing is stored, "" when it is. Single-threaded: the rank's own thread."""

    def __init__(
        self, cache: torch.Tensor, own: int, shape: Shape, cut: Cut, options: Options, model: str, tag: str
    ) -> None:  # fmt: skip
        self._cache = cache.transpose(0, 1)[None]
        self._how = (model, shape, cut, 0, options, tag)
        self._own: Snapshots | None = None
        self.why_not = "KV snapshots are off"
        if options.config().snapshot:
            self._own, self.why_not = self._joined(own)

    def _joined(self, shard: int) -> tuple[Snapshots | None, str]:
        """The snapshots of a shard, by this rank from now on, whoever had them before."""
        found = Snapshots(*self._how)
        try:
            found.hold((shard, shard + 1), self._cache)
        except (GpuFtError, OSError) as error:
            found.close()
            return None, str(error)
        return found, ""

    def before(self, gone: Sequence[str], sealed: Sequence[Prefix]) -> Mapping[str, int]:
        """Before a step: blocks of `gone` requests are about to be reused, `sealed` is queued. Returns gaps: request -> first block that
        could not be stored."""
        if self._own is None:
            return {}
        self._own.forget(gone)
        return self._own.store(sealed)

    def regain(self, shard: int, prefixes: Sequence[Prefix], deadline_s: float) -> Restored:
        """Loads what the lost `shard` had stored of these into their blocks here, each up to the first block that is not there as it was.
        Blocks until done; never raises for what cannot be had."""
        lost, why = self._joined(shard) if self._own is not None else (None, self.why_not)
        if lost is None:
            return Restored(blocks={}, bytes=0, seconds=0.0, reasons=(why,))
        try:
            found = lost.restore(prefixes, (shard,), deadline_s)
            lost.forget([prefix.request for prefix in prefixes])
        except (GpuFtError, OSError) as error:
            found = Restored(blocks={}, bytes=0, seconds=0.0, reasons=(str(error),))
        finally:
            lost.close()
        return found
