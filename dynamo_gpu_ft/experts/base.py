"""The vocabulary of placement: failure domains, what must be survived, which slot holds which expert, moves, and the certificate.

Frozen data without effects. `planner` makes placements, `checker` verifies their certificates, the runtime and the engines read them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from dynamo_gpu_ft.errors import PlacementError

Mode = Literal["instant", "refill"]
Level = Literal["gpu", "tray", "node", "nvlink"]
LEVELS: tuple[Level, ...] = ("gpu", "tray", "node", "nvlink")
EMPTY = -1


class Domains(msgspec.Struct, frozen=True):
    """Failure domains of an expert-parallel group's ranks, finest first; entry r of each is the number of the domain that rank r is in.

    They are nested: ranks of one tray are of one node, ranks of one node in one NVLink domain."""

    tray: tuple[int, ...]
    node: tuple[int, ...]
    nvlink: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.tray) == len(self.node) == len(self.nvlink) > 0:
            raise _wrong(
                "domains of different lengths",
                [len(x) for x in (self.tray, self.node, self.nvlink)],
                "one per rank",
            )
        for fine, coarse, name in (
            (self.tray, self.node, "tray"),
            (self.node, self.nvlink, "node"),
        ):
            owner: dict[int, int] = {}
            for inner, outer in zip(fine, coarse, strict=True):
                if owner.setdefault(inner, outer) != outer:
                    raise _wrong(f"a {name} that lies in two places", inner, "domains are nested")

    @classmethod
    def regular(
        cls, ranks: int, *, per_tray: int = 4, per_node: int = 8, per_nvlink: int | None = None
    ) -> Domains:
        """Neighbouring ranks share trays, nodes and NVLink domains of these sizes; without `per_nvlink` each node is one."""
        wide = per_nvlink or per_node
        if (
            ranks < 1
            or min(per_tray, per_node, wide) < 1
            or per_node % min(per_tray, per_node)
            or wide % per_node
        ):
            raise _wrong(
                "sizes of domains",
                (ranks, per_tray, per_node, wide),
                "each a multiple of the one inside it",
            )
        tray = min(per_tray, per_node)
        return cls(
            tuple(r // tray for r in range(ranks)),
            tuple(r // per_node for r in range(ranks)),
            tuple(r // wide for r in range(ranks)),
        )

    @property
    def ranks(self) -> int:
        return len(self.node)

    def of(self, level: Level) -> tuple[int, ...]:
        """The number of each rank's domain of this level; of "gpu" the rank itself."""
        return tuple(range(self.ranks)) if level == "gpu" else getattr(self, level)

    def members(self, level: Level) -> dict[int, tuple[int, ...]]:
        """Ranks of each domain of a level, by its number, in ascending order."""
        found: dict[int, list[int]] = {}
        for rank, domain in enumerate(self.of(level)):
            found.setdefault(domain, []).append(rank)
        return {domain: tuple(found[domain]) for domain in sorted(found)}


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What must be survived: any `losses` ranks, and any one domain of level `domain`.

    instant  every expert has a live copy at once afterwards: at least losses + 1 copies, in as many domains
    refill   what is lost is brought back from host copies: the slots that are left have room for every expert
    """

    mode: Mode = "instant"
    losses: int = 1
    domain: Level = "gpu"

    def weaker(self) -> Iterator[Aim]:
        """This aim, then ever less: finer domains, fewer losses, refill for instant; at last that every expert has a copy."""
        for level in reversed(LEVELS[: LEVELS.index(self.domain) + 1]):
            yield Aim(mode=self.mode, losses=self.losses, domain=level)
        for losses in range(self.losses - 1, 0, -1):
            yield Aim(mode=self.mode, losses=losses)
        if self.mode == "instant":
            yield from Aim(mode="refill", losses=self.losses, domain=self.domain).weaker()
        elif self.losses:
            yield Aim(mode="refill", losses=0)


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Which physical slot holds which logical expert. Slot p is slot p % slots of rank p // slots.

    table  int32 little endian [layers, ranks x slots], row-major; -1: empty, or of a dead rank
    """

    layers: int
    experts: int
    ranks: int
    slots: int
    table: bytes

    def __post_init__(self) -> None:
        sizes = (self.layers, self.experts, self.ranks, self.slots)
        if min(sizes) < 1 or len(self.table) != 4 * self.layers * self.width:
            raise _wrong(
                "a placement",
                (*sizes, len(self.table)),
                "sizes above 0 and 4 x layers x ranks x slots bytes",
            )
        cells = self._cells()
        worst = max(cells), min(cells)
        if worst[0] >= self.experts or worst[1] < EMPTY:
            raise _wrong(
                "a placement that names an expert",
                worst,
                f"experts lie between -1 and {self.experts - 1}",
            )

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], *, experts: int, ranks: int) -> Placement:
        """From physical-to-logical rows, one per layer, all of ranks x slots entries."""
        width = len(rows[0]) if rows else 0
        if not width or width % ranks or any(len(row) != width for row in rows):
            raise _wrong(
                "rows of a placement",
                [len(row) for row in rows][:4],
                f"all of one length, a multiple of {ranks} ranks",
            )
        flat = [expert for row in rows for expert in row]
        return cls(
            layers=len(rows),
            experts=experts,
            ranks=ranks,
            slots=width // ranks,
            table=_packed(flat),
        )

    @property
    def width(self) -> int:
        """Physical slots of one layer."""
        return self.ranks * self.slots

    def _cells(self) -> tuple[int, ...]:
        return struct.unpack(f"<{self.layers * self.width}i", self.table)

    def row(self, layer: int) -> tuple[int, ...]:
        """Logical expert of each physical slot of one layer."""
        return struct.unpack_from(f"<{self.width}i", self.table, 4 * layer * self.width)

    def rows(self) -> list[tuple[int, ...]]:
        return [self.row(layer) for layer in range(self.layers)]

    def copies(self, layer: int) -> list[list[int]]:
        """Physical slots of each expert of one layer, ascending."""
        found: list[list[int]] = [[] for _ in range(self.experts)]
        for slot, expert in enumerate(self.row(layer)):
            if expert >= 0:
                found[expert].append(slot)
        return found

    def counts(self) -> bytes:
        """Copies of each expert: int32 [layers, experts]."""
        return _packed(len(slots) for layer in range(self.layers) for slots in self.copies(layer))

    def logical_to_physical(self, width: int | None = None) -> bytes:
        """int32 [layers, experts, width], padded with -1; without `width`, as wide as the most copies. Raises `PlacementError` when an
        expert has more copies than `width`."""
        found = [self.copies(layer) for layer in range(self.layers)]
        most = max(len(slots) for layer in found for slots in layer)
        if width is not None and width < most:
            raise _wrong("a map too narrow", width, f"an expert has {most} copies", f"width={most}")
        wide = max(most, 1) if width is None else width
        return _packed(
            s
            for layer in found
            for slots in layer
            for s in [*slots, *[EMPTY] * (wide - len(slots))]
        )

    def without(self, dead: Iterable[int]) -> Placement:
        """The same with the slots of the ranks `dead` empty."""
        cells = list(self._cells())
        for rank in set(dead):
            for layer in range(self.layers):
                begin = layer * self.width + rank * self.slots
                cells[begin : begin + self.slots] = [EMPTY] * self.slots
        return msgspec.structs.replace(self, table=_packed(cells))


class Move(msgspec.Struct, frozen=True):
    """One expert to be brought into `slot` from the live copy in physical slot `source` (-1: from a host copy or the checkpoint)."""

    layer: int
    expert: int
    source: int
    slot: int
    bytes: int


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a placement survives, over all layers jointly; `checker.check` verifies every word of it.

    alive      ranks that count, ascending
    copies     fewest live copies of any expert, per layer
    one, two   (survived, all) of the losses of one and of any two live ranks
    domains    the same of one whole domain, per level: tray, node, nvlink
    room       slots of a layer that are left after the worst loss that the aim names; for refill at least one for each expert
    balance    mean / max of the ranks' loads in parts per million, per layer; each copy of an expert takes an equal share
    bytes, worst  of the moves: in all, and of the rank that receives most
    digest     hexadecimal BLAKE2b-128 of the table and the loads that this speaks of
    """

    aim: Aim
    alive: tuple[int, ...]
    copies: tuple[int, ...]
    one: tuple[int, int]
    two: tuple[int, int]
    domains: dict[str, tuple[int, int]]
    room: int
    balance: tuple[int, ...]
    bytes: int
    worst: int
    digest: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A placement, what has to be moved for it, and what it survives."""

    placement: Placement
    moves: tuple[Move, ...]
    certificate: Certificate


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """What follows a loss, in two stages.

    repaired    orphans alone have moved: what has to land before every expert can be asked again; nothing where each had a live copy
    rebalanced  copies and balance restored, as far as slots and budget allow; its moves start from `repaired`
    aim         the most of what was asked for that the slots which are left allow
    missing     (layer, expert) pairs that are without the copies of `aim` for want of budget: the same call goes on from `rebalanced`
    """

    repaired: Plan
    rebalanced: Plan
    aim: Aim
    missing: int


def digest(placement: Placement, loads: bytes) -> str:
    """Names a placement and the loads (int64 little endian [layers, experts]) it was examined with."""
    sizes = (placement.layers, placement.experts, placement.ranks, placement.slots)
    content = struct.pack("<4I", *sizes) + placement.table + loads
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _packed(values: Iterable[int]) -> bytes:
    cells = tuple(values)
    return struct.pack(f"<{len(cells)}i", *cells)


def _wrong(what: str, value: object, rule: str, remedy: str = "") -> PlacementError:
    return PlacementError(f"{what} cannot be used", value=value, rule=rule, remedy=remedy)
