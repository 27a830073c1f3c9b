"""Which device each shard computes on, which ones a verdict forbids, and what is spare: the driver's bookkeeping, without effects.

A rank is told its device with its shard. A shard's home is its own number, modulo how many devices there are; it moves to a spare place when
the device that it is on is condemned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


class Devices:
    """`count` devices for `shards` shards, 0 for one each. With fewer devices than shards, each has places for an equal number."""

    def __init__(self, shards: int, count: int = 0) -> None:
        self.count = count or shards
        self._places = -(-shards // self.count)
        self._at = {shard: shard % self.count for shard in range(shards)}
        self.condemned: dict[int, str] = {}

    def of(self, shard: int) -> int:
        return self._at[shard]

    def shards_on(self, device: int) -> list[int]:
        return [shard for shard, at in self._at.items() if at == device]

    def condemn(self, device: int, why: str) -> None:
        """No process may use this device until `clear`; its shards are homeless."""
        self.condemned.setdefault(device, why)

    def clear(self, shard: int) -> None:
        """The shard's home, and the device that it is on, can be used again."""
        for device in (shard % self.count, self._at[shard]):
            self.condemned.pop(device, None)

    def homeless(self, shards: Iterable[int]) -> dict[int, str]:
        """Those of `shards` that are on a condemned device, with the reason."""
        return {s: self.condemned[self._at[s]] for s in shards if self._at[s] in self.condemned}

    @property
    def spares(self) -> int:
        """Places on usable devices that no shard has."""
        return sum(self._room(device) for device in range(self.count))

    def house(self, shards: Collection[int]) -> list[int]:
        """Gives each homeless one of `shards` a spare place; returns those that are on a usable device then."""
        for shard in sorted(self.homeless(shards)):
            free = [device for device in range(self.count) if self._room(device)]
            if free:
                self._at[shard] = free[0]
        return [shard for shard in shards if self._at[shard] not in self.condemned]

    def _room(self, device: int) -> int:
        if device in self.condemned:
            return 0
        return max(0, self._places - len(self.shards_on(device)))
