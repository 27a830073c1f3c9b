"""Where a lost expert's bytes may come from: the contract of a source, a fetch that no source can hold up, and the manifest of digests.

The order is the caller's: a peer's replica, a copy in host memory, byte ranges of the checkpoint. `refill` asks one after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import SlotError, WeightsError


class ExpertSource(Protocol):
    """One place that may have experts. Nothing here changes the source."""

    name: str

    def load(self, layer: int, expert: int, into: memoryview, deadline_s: float) -> int:
        """Fills `into` with the expert's bytes in the store's own layout; returns how many it wrote, all or an exception.

        Should block at most about `deadline_s` seconds; `fetch` lets go of one that does not. Raises `WeightsError` when the source
        is absent, damaged or lacks the expert, `TimeoutError` past the deadline.

        A source that has the bytes in this process's memory may also have `lend(layer, expert, deadline_s) -> memoryview | None`, which is
        asked first and saves a copy; None: `load` it. Bytes that change after that are found when the row is read back."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The digest that each expert's bytes must have: (layer, expert) -> 16 bytes, as `Core.digest` gives them."""

    digests: Mapping[tuple[int, int], bytes]

    def of(self, layer: int, expert: int) -> bytes:
        """Raises `SlotError` for an expert that it does not name: one without a digest can never be trusted."""
        found = self.digests.get((layer, expert))
        if found is None:
            raise SlotError(
                "the manifest lacks an expert",
                where=f"layer {layer}",
                value=expert,
                rule=f"{len(self.digests)} experts are named",
                remedy="take the digests of all experts when the engine loads",
            )
        return found


@dataclass(frozen=True, slots=True)
class PassedOver:
    """One source that did not give one expert, and why."""

    source: str
    layer: int
    expert: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """`data` is None when no source had it. `source` "" then; `passed` says what each said."""

    data: memoryview | None
    source: str
    passed: tuple[PassedOver, ...]


class Fetcher:
    """Asks sources for experts, each in a thread and a buffer of its own, so that one that hangs or writes late harms nothing.

    A source that overstays is left out from then on (its thread still holds it). One expert at a time; not for several threads."""

    def __init__(
        self,
        sources: Sequence[ExpertSource],
        manifest: Manifest,
        expert_bytes: int,
        room: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
    ) -> None:
        """`room` gives landing memory: pinned, where rows are on a device."""
        self._sources, self._manifest, self._bytes = list(sources), manifest, expert_bytes
        self._late: dict[str, str] = {}
        self._room = room
        self._buffer = room(expert_bytes)

    def fetch(self, layer: int, expert: int, deadline_s: float, per_source_s: float) -> Fetched:
        """The first copy whose length and digest are right. Its memory is reused by the next call. Raises `SlotError` for an expert
        that the manifest lacks; what sources do becomes a reason."""
        wanted, give_up = self._manifest.of(layer, expert), time.monotonic() + deadline_s
        passed: list[PassedOver] = []
        for source in self._sources:
            left = min(give_up - time.monotonic(), per_source_s)
            why, data = self._late.get(source.name, ""), self._buffer
            if not why and left <= 0:
                why = f"not asked: the refill's {deadline_s:g} s were over"
            if not why:
                why, data = self._ask(source, layer, expert, left)
            if not why and (found := native.load().digest(data)) != wanted:
                why = f"its bytes have digest {found.hex()}, the manifest says {wanted.hex()}"
            if not why:
                return Fetched(data, source.name, tuple(passed))
            passed.append(PassedOver(source.name, layer, expert, why))
        return Fetched(None, "", tuple(passed))

    def digest_of(self, layer: int, expert: int) -> bytes:
        return self._manifest.of(layer, expert)

    def _ask(
        self, source: ExpertSource, layer: int, expert: int, left: float
    ) -> tuple[str, memoryview]:
        """ "" and the bytes, or why not."""
        said: list[tuple[str, memoryview]] = []
        buffer = self._buffer

        def ask() -> None:
            try:
                lend = getattr(source, "lend", None)
                data = None if lend is None else lend(layer, expert, left)
                got = source.load(layer, expert, buffer, left) if data is None else len(data)
                short = f"it gave {got} of {len(buffer)} bytes" if got != len(buffer) else ""
                said.append((short, buffer if data is None else data))
            except (WeightsError, TimeoutError, OSError) as error:
                said.append((str(error) or type(error).__name__, buffer))
            except Exception as error:  # a source is foreign code: its fault is its own
                said.append((f"{type(error).__name__}: {error}", buffer))

        thread = threading.Thread(target=ask, name=f"refill-{source.name}", daemon=True)
        thread.start()
        thread.join(left)
        if said:
            return said[0]
        self._buffer = self._room(self._bytes)  # the other one is the late thread's for good
        self._late[source.name] = (
            f"left out: it overstayed {left:.3g} s at layer {layer}, expert {expert}"
        )
        return self._late[source.name], buffer


class NeedsSource:
    """Joins one of recovery's weight sources to refill: `needs_of` lists an expert's tensors in the store's order.

    Takes anything with `name` and `load(needs, sink, deadline_s)`; elements must be of the store's type, whose name is `dtype`."""

    def __init__(
        self, source: Any, needs_of: Callable[[int, int], Sequence[Any]], dtype: str
    ) -> None:
        self.name: str = source.name
        self._source, self._needs_of, self._dtype = source, needs_of, dtype

    def load(self, layer: int, expert: int, into: memoryview, deadline_s: float) -> int:
        needs = self._needs_of(layer, expert)
        sink = _Sink(needs, into, self._dtype, self.name)
        self._source.load(needs, sink, deadline_s)
        return sink.check()


class _Sink:
    """The sink that a weight source fills: consecutive parts of one expert's bytes, one per need."""

    def __init__(self, needs: Sequence[Any], into: memoryview, dtype: str, source: str) -> None:
        self._dtype, self._source, self._waiting, at = dtype, source, {str(n) for n in needs}, 0
        self._rooms: dict[str, memoryview] = {}
        for need in needs:
            self._rooms[str(need)] = into[at : at + need.size(dtype)]
            at += need.size(dtype)
        self.size = at

    def room(self, need: Any, dtype: str) -> memoryview:
        if dtype != self._dtype:
            raise WeightsError(
                "a source has experts of another type",
                where=f"{self._source}, {need}",
                value=dtype,
                rule=self._dtype,
                remedy="the next source is asked",
            )
        return self._rooms[str(need)]

    def filled(self, need: Any, dtype: str) -> None:
        self._waiting.discard(str(need))

    def check(self) -> int:
        if self._waiting:
            raise WeightsError(
                "a source left tensors out", where=self._source, value=sorted(self._waiting)
            )
        return self.size
