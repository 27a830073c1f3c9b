"""The `WeightSource` contract: what a shard needs of a checkpoint, and how a source hands it over.

An engine says its needs as slices of checkpoint tensors and offers room for each; `chain.load` asks the sources one after the other and
checks every tensor by digest. Bytes cross as memoryviews, so no source knows of torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dynamo_gpu_ft.errors import WeightsError

#: Bytes of an element by the names that safetensors uses.
DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Need:
    """A box of one checkpoint tensor: [from, to) in each dimension. Its tensor and box name it; a shard needs each box once."""

    tensor: str
    box: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(to - begin for begin, to in self.box)

    def size(self, dtype: str) -> int:
        """Bytes of the box with elements of `dtype`."""
        return math.prod(self.shape) * DTYPES[dtype]

    def __str__(self) -> str:
        return f"{self.tensor}[{', '.join(f'{a}:{b}' for a, b in self.box)}]"


class Sink(Protocol):
    """The engine's side: where a need's bytes go. Called for one need after the other, for different ones by several threads if the source
    has them."""

    def room(self, need: Need, dtype: str) -> memoryview:
        """Writable, contiguous, exactly `need.size(dtype)` bytes: the tensor itself where it has this type, else room to convert from."""

    def filled(self, need: Need, dtype: str) -> bool | None:
        """All bytes of the last `room` for this need are there. True when that room is the tensor itself and they stay as they are: a
        digest of them is the tensor's own."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one load cost: `bytes_read` from the source (what it had to skip included), `bytes_needed` in the source's own types.

    digests   need (as text) -> digest of the sink's own bytes, of those needs that were digested where they lie now"""

    source: str
    bytes_read: int
    bytes_needed: int
    seconds: float
    digests: Mapping[str, bytes] = field(default_factory=dict)


class WeightSource(Protocol):
    """One place that may have a shard's weights. Used from one thread; nothing here changes the source."""

    name: str

    def load(self, needs: Sequence[Need], sink: Sink, deadline_s: float) -> Report:
        """Hands over every need, in the order that suits the source. Blocks at most about `deadline_s` seconds.

        All or an exception: `WeightsError` when the source is absent, damaged, of another model or lacks one of the needs,
        `TimeoutError` past the deadline. What the sink got until then is to be thrown away. Can be repeated."""


def refuse(
    what: str, where: str, value: object = None, rule: str = "", remedy: str = ""
) -> WeightsError:
    return WeightsError(what, where=where, value=value, rule=rule, remedy=remedy)
