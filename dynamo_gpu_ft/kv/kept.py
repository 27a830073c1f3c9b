"""Which tails a shard keeps: of each open request the newest one that all shards have, and what came after it.

`kv.snapshot` tells what was ordered, sealed and lost, and takes the answers out of its tier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: Tails of one request that may wait for the other shards; beyond that the oldest go, however far behind another shard is.
MOST_WAITING = 8

#: (position, tokens) of an open block; a block that became whole is as far as an empty one behind it.
Reach = tuple[int, int]


@dataclass(slots=True)
class _Request:
    tails: list[tuple[Reach, bytes]] = field(default_factory=list)
    sealed: list[tuple[Reach, bytes]] = field(
        default_factory=list
    )  # not everywhere when last asked


class KeptTails:
    """One shard's tails, in names. Nothing here blocks.

    `everywhere(name)`: whether every shard of the engine has a block of that name sealed. Shards copy at their own pace, and a
    prefix is restored only as far as all of them have it: a tail that went too early here may be the only one another has."""

    def __init__(self, everywhere: Callable[[bytes], bool] = lambda name: True) -> None:
        self._everywhere = everywhere
        self._requests: dict[str, _Request] = {}

    def __len__(self) -> int:
        return sum(len(request.tails) for request in self._requests.values())

    def requests(self) -> set[str]:
        return set(self._requests)

    def add(self, request_id: str, reach: Reach, name: bytes) -> None:
        """A tail that is being stored, or was loaded: it is held once more."""
        self._requests.setdefault(request_id, _Request()).tails.append((reach, name))

    def lost(self, request_id: str, reach: Reach, name: bytes) -> None:
        """It was not sealed, so there is nothing to drop."""
        request = self._requests.get(request_id)
        if request is not None and (reach, name) in request.tails:
            request.tails.remove((reach, name))

    def sealed(self, request_id: str, reach: Reach, name: bytes) -> list[bytes]:
        """Names to drop, each as often as it was added, now that a tail or a whole block is sealed here."""
        request = self._requests.get(request_id)
        if request is None or not request.tails:
            return []
        request.sealed.append((reach, name))
        request.sealed.sort(key=lambda each: each[0])
        reaches = sorted(each[0] for each in request.tails)
        oldest = reaches[-MOST_WAITING] if len(reaches) > MOST_WAITING else reaches[0]
        for at, (far, this) in reversed(list(enumerate(request.sealed))):
            if self._everywhere(this):
                oldest = max(oldest, far)
                del request.sealed[: at + 1]
                break
        del request.sealed[:-MOST_WAITING]
        gone = [tail for reach, tail in request.tails if reach < oldest]
        request.tails = [each for each in request.tails if each[0] >= oldest]
        return gone

    def ended(self, request_id: str) -> list[bytes]:
        """Names to drop when the request is over: all of its tails, those under way too."""
        request = self._requests.pop(request_id, None)
        return [name for _, name in request.tails] if request is not None else []
