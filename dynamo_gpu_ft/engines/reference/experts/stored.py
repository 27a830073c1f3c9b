"""KV of an expert-parallel rank's requests in the arena: stored behind steps that count, loaded by whoever takes over a lost rank's requests.

A rank is one shard of the store, its payload a block of all heads. Without protection the engine serves on: a loss then costs a recomputation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from dynamo_gpu_ft.engines.reference.kv import Snapshots
from dynamo_gpu_ft.engines.reference.messages import Prefix
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

    def regain(
        self, shard: int, wanted: Sequence[Sequence[Prefix]], deadline_s: float
    ) -> tuple[dict[str, Prefix], int, tuple[str, ...]]:
        """Loads what the lost `shard` had stored into blocks here: of each request the first of its prefixes that is whole, else what there is of
        the last. Returns what is there then, the bytes, and why not more. Blocks until done; never raises for what cannot be had."""
        lost, why = self._joined(shard) if self._own is not None else (None, self.why_not)
        if lost is None:
            return {}, 0, (why,)
        found: dict[str, Prefix] = {}
        size, reasons, give_up = 0, set[str](), time.monotonic() + deadline_s
        try:
            for turn in range(max(map(len, wanted), default=0)):
                left = [each for each in wanted if each[0].request not in found]
                if not left:
                    break
                asked = {each[0].request: each[min(turn, len(each) - 1)] for each in left}
                last = {each[0].request for each in left if turn >= len(each) - 1}
                loaded = lost.restore(list(asked.values()), (shard,), give_up - time.monotonic())
                for name, prefix in asked.items():
                    head = prefix.head(loaded.blocks.get(name, 0))
                    if head == prefix or name in last:
                        found[name] = head
                size += loaded.bytes
                reasons |= set(loaded.reasons)
            lost.forget([each[0].request for each in wanted])
        except (GpuFtError, OSError) as error:
            reasons.add(str(error))
        finally:
            lost.close()
        return found, size, tuple(sorted(reasons))
