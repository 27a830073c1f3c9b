"""Failover tables on the device: the maps of every foreseen loss, stacked; which of them holds is one number that the lookups read.

A loss is one write of that number, so shapes and addresses never change and captured graphs stay valid. `ahead` computes what is stacked;
the router mask (kernels/) and the lookups here read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.ahead import Ahead
from dynamo_gpu_ft.experts.base import Placement

if TYPE_CHECKING:
    import torch

#: Entries at the end of the stack for maps that nobody foresaw; two, so that the one in use is never written.
SPARE = 2


@dataclass(frozen=True)
class Prepared:
    """A placement and what its losses lead to, as host tensors that `adopt` copies; made by `FailoverTables.prepare`."""

    ahead: tuple[Ahead, ...]
    maps: tuple[Placement, ...]
    tensors: dict[str, torch.Tensor]


class FailoverTables:
    """Stacked along entries: 0 is `placement`, then per foreseen loss its masked and its repaired map, then two spare ones.

    physical  int32 [entries, layers, ranks x slots]     expert of each physical slot, -1 empty
    logical   int32 [entries, layers, experts, width]    physical slots of each expert, padded with -1
    counts    int32 [entries, layers, experts]           how many of them there are; 0: the router mask is needed
    dispatch  int32 [entries, layers, experts]           the slot that `rank` itself sends to, -1 where there is none
    index     int32 [1]                                  the entry that holds

    An expert with more than `width` copies is reached by its first `width` ones. Used from one thread, whose current stream orders the writes.
    """

    def __init__(
        self, placement: Placement, ahead: Sequence[Ahead], *, rank: int, width: int = 8, device: str = "cpu", room: int = 0
    ) -> None:  # fmt: skip
        """`room`: how many losses `adopt` may bring, if more than there are now."""
        import torch

        self.placement, self.rank, self.width = placement, rank, width
        self.entries = 1 + 2 * max(len(ahead), room) + SPARE
        p = placement
        sizes = {
            "physical": (p.layers, p.width),
            "logical": (p.layers, p.experts, width),
            "counts": (p.layers, p.experts),
            "dispatch": (p.layers, p.experts),
        }
        self.physical, self.logical, self.counts, self.dispatch = (
            torch.full((self.entries, *size), -(name != "counts"), dtype=torch.int32, device=device)
            for name, size in sizes.items()
        )
        self.index = torch.zeros(1, dtype=torch.int32, device=device)
        self.epoch, self._entry = 0, 0
        self._maps = [placement.without(range(p.ranks))] * self.entries
        self._take(self.prepare(placement, ahead))

    @property
    def entry(self) -> int:
        """The entry that was selected last."""
        return self._entry

    @property
    def holds(self) -> Placement:
        """The map that was selected last."""
        return self._maps[self._entry]

    @property
    def foreseen(self) -> bool:
        """Whether the losses that are stacked are those of the map that holds."""
        return self.holds == self.placement and bool(self.losses)

    @property
    def device_bytes(self) -> int:
        tensors = (self.physical, self.logical, self.counts, self.dispatch, self.index)
        return sum(t.numel() * t.element_size() for t in tensors)

    # -- changing which map holds -------------------------------------------------------------------------------------

    def lose(self, dead: Iterable[int], epoch: int) -> bool:
        """Selects the masked map of a foreseen loss by one write; `dead`: all that are gone by now. False when nobody foresaw it from the map
        that holds (a second loss, one in the middle of a refill): then `publish` one. Raises `PlacementError` for a stale epoch."""
        self._fresh(epoch)
        gone = tuple(sorted(set(dead)))
        found = self._by_dead.get(gone)
        if found is None or not self._leads_to(gone):
            return False
        self._select(1 + 2 * found, epoch)
        return True

    def repaired(self, dead: Iterable[int], epoch: int) -> bool:
        """Selects the repaired map, by one write; only once every expert of its plan is in its slot. False when there is none."""
        found = self._by_dead.get(tuple(sorted(set(dead))))
        if found is None or not self._repaired[found]:
            return False
        self._select(2 + 2 * found, epoch)
        return True

    def restore(self, epoch: int) -> None:
        """Selects the map without a loss."""
        self._select(0, epoch)

    def publish(self, placement: Placement, epoch: int) -> int:
        """Writes any other map (a second loss, a refill under way) beside the one in use, then selects it. Returns its entry."""
        self._fresh(epoch)
        p, q = self.placement, placement
        if (p.layers, p.experts, p.width) != (q.layers, q.experts, q.width):
            raise PlacementError(
                "a map of another shape cannot be published",
                value=(q.layers, q.experts, q.width),
                rule=f"{(p.layers, p.experts, p.width)}: captured graphs hold the shapes",
                remedy="keep unused slots at -1",
            )
        entry = self.entries - 1 if self._entry == self.entries - 2 else self.entries - 2
        for name, tensor in self._tensors(placement).items():
            getattr(self, name)[entry].copy_(tensor)
        self._maps[entry] = placement
        self._select(entry, epoch)
        return entry

    def follow(self, placement: Placement, epoch: int) -> int:
        """Makes `placement` the map that holds: by one write where it is stacked, else published. Returns its entry."""
        if placement == self.holds:
            self._select(self._entry, epoch)
        elif placement in self._maps:
            self._select(self._maps.index(placement), epoch)
        else:
            self.publish(placement, epoch)
        return self._entry

    # -- the next losses, behind a change ------------------------------------------------------------------------------

    def prepare(self, placement: Placement, ahead: Sequence[Ahead]) -> Prepared:
        """For `adopt`. Changes nothing here, so that any thread may do it while steps go on."""
        import torch

        maps = [placement]
        for each in ahead:
            maps += [each.masked, each.plan.placement if each.plan else each.masked]
        parts = [self._tensors(one_map) for one_map in maps]
        tensors = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return Prepared(tuple(ahead), tuple(maps), tensors)

    def adopt(self, prepared: Prepared, epoch: int) -> bool:
        """Puts these maps and losses in the place of the former ones: same shapes and addresses, and the map in use is never written. False
        when another map holds by now. Raises `PlacementError` for a stale epoch and for more losses than there is room for."""
        if prepared.maps[0] != self.holds:
            return False
        if len(prepared.maps) > self.entries - SPARE:
            raise PlacementError(
                "more losses than the stack has room for", value=len(prepared.ahead),
                rule=f"at most {(self.entries - SPARE) // 2}", remedy="`room` when the tables are made",
            )  # fmt: skip
        if self._entry < self.entries - SPARE:
            self.publish(self.holds, epoch)
        self._fresh(epoch)
        self._take(prepared)
        self._select(0, epoch)
        return True

    # -- lookups: fixed shapes, no wait for the device --------------------------------------------------------------------

    def of_layer(self, name: str, layer: int) -> torch.Tensor:
        """One layer's map that holds now, a fresh tensor: `name` is that of a stack."""
        stack: torch.Tensor = getattr(self, name)
        return stack[:, layer].index_select(0, self.index)[0]

    def slots_of(self, layer: int, experts: torch.Tensor, *, first: int = 0) -> torch.Tensor:
        """Physical slots for logical ids [tokens, topk], int32; replicas in turn over tokens, as the router mask does. -1 stays -1, and an
        expert without a copy gives -1."""
        import torch

        counts, table = self.of_layer("counts", layer), self.of_layer("logical", layer)
        ids = experts.clamp(min=0).to(torch.int64)
        many = counts[ids].to(torch.int64)
        rows = torch.arange(len(experts), device=experts.device)[:, None] + first
        slots = table[ids, (rows + ids) % many.clamp(min=1)]
        return torch.where((experts >= 0) & (many > 0), slots, torch.full_like(slots, -1))

    # -- details -----------------------------------------------------------------------------------------------------------

    def _take(self, prepared: Prepared) -> None:
        ahead, count = prepared.ahead, len(prepared.maps)
        for name, tensor in prepared.tensors.items():
            getattr(self, name)[:count].copy_(tensor)
        self._maps[:count] = prepared.maps
        self.placement = prepared.maps[0]
        self.losses = tuple(each.loss for each in ahead)
        self._by_dead = {each.loss.dead: i for i, each in enumerate(ahead)}
        self._repaired = [each.plan is not None for each in ahead]

    def _leads_to(self, dead: tuple[int, ...]) -> bool:
        """Whether the masked map of `dead` is the one that holds, without them: so for the placement, and for masked maps of fewer losses."""
        at, masked = divmod(self._entry, 2)
        if masked and at < len(self.losses):
            return set(self.losses[at].dead) <= set(dead)
        return self.holds == self.placement

    def _fresh(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise PlacementError("a stale epoch may not change the map", value=epoch, rule=f"the newest is {self.epoch}")  # fmt: skip

    def _select(self, entry: int, epoch: int) -> None:
        self._fresh(epoch)
        self.index.fill_(entry)
        self._entry, self.epoch = entry, epoch

    def _tensors(self, placement: Placement) -> dict[str, torch.Tensor]:
        import torch

        p = placement
        table = torch.frombuffer(bytearray(p.table), dtype=torch.int32).view(p.layers, p.width)
        # Slots ordered by expert, equal ones by slot; those that are empty go to an expert of their own, which is cut off.
        experts = torch.where(table < 0, p.experts, table).to(torch.int64)
        ordered, slots = torch.sort(experts, dim=1, stable=True)
        full = torch.zeros(p.layers, p.experts + 1, dtype=torch.int64)
        full.scatter_add_(1, experts, torch.ones_like(experts))
        begin = full.cumsum(1) - full
        place = torch.arange(p.width)[None] - begin.gather(1, ordered)
        logical = torch.full((p.layers, p.experts + 1, self.width + 1), -1, dtype=torch.int32)
        at = ordered * (self.width + 1) + place.clamp(max=self.width)
        logical.view(p.layers, -1).scatter_(1, at, slots.to(torch.int32))
        logical = logical[:, : p.experts, : self.width].contiguous()
        counts = full[:, : p.experts].clamp(max=self.width)
        return {
            "physical": table,
            "logical": logical,
            "counts": counts.to(torch.int32),
            "dispatch": self._own_choice(logical, counts),
        }

    def _own_choice(self, logical: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Where a rank that always sends an expert's tokens to one slot sends them: its own copy, else one that ranks take in turn."""
        import torch

        turn = (self.rank + torch.arange(counts.shape[1])[None]) % counts.clamp(min=1)
        other = logical.gather(2, turn[:, :, None])[:, :, 0]
        mine = (logical >= 0) & (logical // self.placement.slots == self.rank)
        own = torch.where(mine, logical, torch.iinfo(torch.int32).max).amin(2)
        return torch.where(mine.any(2), own, other)
