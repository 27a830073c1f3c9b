"""The planner's face: loads and an aim in, a placement with moves and certificate out. Pure: the same answer on every rank and machine.

The work is done by csrc/place in integers; what is infeasible is said here in a sentence, before anything is placed.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from operator import ne
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.base import (
    EMPTY,
    LEVELS,
    Aim,
    Certificate,
    Domains,
    Move,
    Placement,
    Plan,
    Recovery,
    digest,
)

NO_LIMIT = 2**63


@dataclass(frozen=True, slots=True)
class _Problem:
    """Everything the core asks for, in its form. `alive` is one byte per rank."""

    layers: int
    experts: int
    ranks: int
    slots: int
    loads: bytes
    alive: bytes
    domains: Domains
    aim: Aim

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, bool]:
        aim = self.aim
        instant = aim.mode == "instant"
        return (
            self.layers, self.experts, self.ranks, self.slots,
            aim.losses, LEVELS.index(aim.domain), instant,
        )  # fmt: skip

    @property
    def given(self) -> tuple[Any, bytes, bytes, bytes]:
        levels = [d for level in LEVELS for d in self.domains.of(level)]
        return self.sizes, self.loads, self.alive, struct.pack(f"<{len(levels)}i", *levels)

    @property
    def living(self) -> tuple[int, ...]:
        return tuple(rank for rank in range(self.ranks) if self.alive[rank])


def plan(
    loads: Any,
    *,
    ranks: int,
    slots: int,
    domains: Domains | None = None,
    aim: Aim = Aim(),  # noqa: B008 - frozen
    old: Placement | None = None,
    alive: Sequence[bool] | None = None,
    budget_bytes: int | None = None,
    expert_bytes: int = 1,
) -> Plan:
    """A placement of `loads` (integers [layers, experts]: nested sequences, or anything with `tolist`) on `slots` slots of each of `ranks`.

    With `old`, as little changes as coverage asks for, and beyond that what fits `budget_bytes` (None: whatever is worth it) of
    moves to improve the balance. Raises `PlacementError` where the aim cannot be met, with the redundancy that would do."""
    problem = _problem(loads, ranks, slots, domains, aim, alive)
    feasible(
        problem.experts, ranks, slots, problem.domains, aim, alive=list(map(bool, problem.alive))
    )
    if old is not None:
        _same(problem, old)
    changes = NO_LIMIT if budget_bytes is None else max(0, budget_bytes) // max(1, expert_bytes)
    table = _call("place_plan", problem, old.table if old else None, changes)
    return _finished(problem, table, old, expert_bytes)


def repair(
    placement: Placement,
    loads: Any,
    *,
    alive: Sequence[bool],
    domains: Domains | None = None,
    aim: Aim = Aim(mode="refill"),  # noqa: B008 - frozen
    expert_bytes: int = 1,
    partial: bool = False,
) -> Plan:
    """`placement` after ranks have died: their slots are empty, and experts without a live copy get the slots whose loss hurts the balance
    least. Nothing else moves; without orphans nothing moves at all. When fewer slots are left than experts, raises `PlacementError`, or with
    `partial` leaves the coldest without a copy."""
    problem = _problem(loads, placement.ranks, placement.slots, domains, aim, alive)
    _same(problem, placement)
    room = len(problem.living) * placement.slots
    if room < placement.experts and not partial:
        raise PlacementError(
            "the live ranks have no room for every expert",
            value=f"{room} slots, {placement.experts} experts",
            rule="a slot for each expert in every layer",
            remedy="more slots per rank, or partial=True and a masked router",
        )
    table = _call("place_repair", problem, placement.table, 0)
    # The slots that are left may have no room for the next loss: the certificate names what they have.
    held = next(
        (a for a in aim.weaker() if a.mode == "refill" and _left(problem, a) >= problem.experts),
        Aim(mode="refill", losses=0),
    )
    return _finished(replace(problem, aim=held), table, placement, expert_bytes)


def recover(
    placement: Placement,
    loads: Any,
    *,
    alive: Sequence[bool],
    domains: Domains | None = None,
    aim: Aim = Aim(),  # noqa: B008 - frozen
    budget_bytes: int | None = None,
    expert_bytes: int = 1,
) -> Recovery:
    """Everything that follows a loss: `placement` repaired, then copies and balance on the ranks that live.

    Orphans move whatever it costs. Of what `budget_bytes` leaves then (None: whatever is worth it), layers get the copies back that the
    aim needs, those first in which the busiest rank has most to do; the rest improves the balance. Where the live slots cannot meet the
    aim the next weaker one is taken. Raises `PlacementError` when fewer slots are left than experts."""
    repaired = repair(
        placement, loads, alive=alive, domains=domains, aim=aim, expert_bytes=expert_bytes
    )
    start = repaired.placement
    wish = _problem(loads, start.ranks, start.slots, domains, aim, alive)
    room = (start.experts, start.ranks, start.slots, wish.domains)
    aim = next(a for a in aim.weaker() if _room(*room, a, alive) >= start.experts)
    changes = NO_LIMIT
    if budget_bytes is not None:
        changes = max(0, budget_bytes - repaired.certificate.bytes) // max(1, expert_bytes)
    problem = replace(wish, aim=aim)
    table = _call("place_recover", problem, start.table, changes)
    found = _finished(problem, table, start, expert_bytes)
    missing = _missing(problem, found)
    if missing:
        held = next(a for a in aim.weaker() if a.mode == "refill" and _left(problem, a) >= start.experts)  # fmt: skip
        problem = replace(problem, aim=held)
        found = _finished(problem, table, start, expert_bytes)
    return Recovery(repaired=repaired, rebalanced=found, aim=aim, missing=missing)


def _missing(problem: _Problem, plan: Plan) -> int:
    """(layer, expert) pairs whose live copies lie in too few domains for the aim."""
    aim, found = problem.aim, plan.certificate
    if aim.mode != "instant":
        return 0
    whole = [found.one, *(found.domains[level] for level in (aim.domain,) if level != "gpu")]
    if aim.losses == 1 and min(found.copies) > 1 and all(s == every for s, every in whole):
        return 0
    home = problem.domains.of(aim.domain)
    of_slot = [home[slot // problem.slots] for slot in range(plan.placement.width)]
    return sum(
        len({of_slot[slot] for slot in slots}) <= aim.losses
        for layer in range(problem.layers)
        for slots in plan.placement.copies(layer)
    )


def certify(
    placement: Placement,
    loads: Any,
    *,
    domains: Domains | None = None,
    aim: Aim = Aim(),  # noqa: B008 - frozen
    alive: Sequence[bool] | None = None,
    moves: Sequence[Move] = (),
) -> Certificate:
    """What a placement survives and how it is balanced, whoever made it."""
    problem = _problem(loads, placement.ranks, placement.slots, domains, aim, alive)
    _same(problem, placement)
    return _certificate(problem, placement, moves)


def feasible(
    experts: int,
    ranks: int,
    slots: int,
    domains: Domains | None = None,
    aim: Aim = Aim(),  # noqa: B008 - frozen
    *,
    alive: Sequence[bool] | None = None,
) -> None:
    """Returns when the aim can be met; else raises `PlacementError` that says so in a sentence, with the fewest extra slots that would do."""
    room = _room(experts, ranks, slots, domains, aim, alive)
    if room >= experts:
        return
    enough = next(
        (
            more
            for more in range(slots + 1, experts * (aim.losses + 1) + 2)
            if _room(experts, ranks, more, domains, aim, alive) >= experts
        ),
        None,
    )
    what = "a loss" if aim.losses == 1 else f"{aim.losses} losses"
    if aim.domain != "gpu":
        what += f" or that of a {aim.domain}"
    where = f"{ranks} ranks with {ranks * slots - experts} extra slots cannot survive {what} ({aim.mode})"
    raise PlacementError(
        where if enough is None else f"{where}; {enough * ranks - experts} can",
        value=f"room for {room} of {experts} experts",
        rule="instant: losses + 1 copies in distinct domains; refill: the slots left hold every expert",
        remedy="more ranks or domains" if enough is None else f"{enough} slots per rank",
    )


def _room(
    experts: int,
    ranks: int,
    slots: int,
    domains: Domains | None,
    aim: Aim,
    alive: Sequence[bool] | None,
) -> int:
    problem = _problem([[0] * experts], ranks, slots, domains, aim, alive)
    if aim.mode == "instant":
        try:
            return native.load().place_room(*problem.given)
        except native.load().CoreError as error:
            raise _refused(error) from error
    return _left(problem, aim)


def _left(problem: _Problem, aim: Aim) -> int:
    """Slots of a layer that are left after the worst loss that `aim` names."""
    living = problem.living
    widest = Counter(problem.domains.of(aim.domain)[rank] for rank in living).most_common(1)[0][1]
    lost = max(aim.losses, widest if aim.domain != "gpu" else 0)
    return problem.slots * max(0, len(living) - lost)


def _problem(
    loads: Any,
    ranks: int,
    slots: int,
    domains: Domains | None,
    aim: Aim,
    alive: Sequence[bool] | None,
) -> _Problem:
    rows = loads.tolist() if hasattr(loads, "tolist") else loads
    try:
        experts = len(rows[0]) if len(rows) else 0
    except TypeError as error:
        raise PlacementError(
            "loads cannot be used", value=rows, rule="two dimensions: [layers, experts]"
        ) from error
    if min(ranks, slots, experts) < 1:
        raise PlacementError(
            "nothing can be placed", value=(ranks, slots), rule="ranks, slots, layers and experts"
        )
    if any(len(row) != experts for row in rows):
        raise PlacementError(
            "loads cannot be used",
            value=sorted({len(row) for row in rows}),
            rule="as many experts in every layer",
        )
    domains = domains or Domains.regular(ranks)
    mask = [True] * ranks if alive is None else list(alive)
    if len(mask) != ranks or domains.ranks != ranks:
        raise PlacementError(
            "a mask or domains of other ranks",
            value=(len(mask), domains.ranks),
            rule=f"one entry for each of {ranks} ranks",
        )
    if not any(mask) or aim.losses < 0:
        raise PlacementError("nobody is left", value=(sum(mask), aim), rule="a live rank")
    flat = list(chain.from_iterable(rows))
    try:
        packed = struct.pack(f"<{len(flat)}q", *flat)
    except struct.error as error:
        raise PlacementError(
            "loads cannot be used", value=str(error), rule="whole numbers of tokens"
        ) from error
    return _Problem(len(rows), experts, ranks, slots, packed, bytes(map(bool, mask)), domains, aim)


def _same(problem: _Problem, old: Placement) -> None:
    mine = (problem.layers, problem.experts, problem.ranks, problem.slots)
    if mine != (old.layers, old.experts, old.ranks, old.slots):
        raise PlacementError(
            "a placement of another size",
            value=(old.layers, old.experts, old.ranks, old.slots),
            rule=f"layers, experts, ranks, slots: {mine}",
        )


def _call(name: str, problem: _Problem, old: bytes | None, changes: int) -> bytes:
    core = native.load()
    try:
        return getattr(core, name)(*problem.given, old, changes)  # type: ignore[no-any-return]
    except core.CoreError as error:
        raise _refused(error) from error


def _refused(error: Exception) -> PlacementError:
    return PlacementError("the planner refused", value=str(error), rule="see csrc/gft_place.h")


def _finished(problem: _Problem, table: bytes, old: Placement | None, expert_bytes: int) -> Plan:
    placement = Placement(
        layers=problem.layers,
        experts=problem.experts,
        ranks=problem.ranks,
        slots=problem.slots,
        table=table,
    )
    moves = _moves(problem, placement, old, expert_bytes) if old is not None else ()
    return Plan(
        placement=placement, moves=moves, certificate=_certificate(problem, placement, moves)
    )


def _moves(
    problem: _Problem, new: Placement, old: Placement, expert_bytes: int
) -> tuple[Move, ...]:
    """Every slot that gets another expert; its source is the live copy that is nearest, of equals the one asked least often."""
    nodes, asked = problem.domains.node, Counter[int]()
    moves = []
    for layer in range(new.layers):
        before, after = old.row(layer), new.row(layer)
        differ = compress(range(new.width), map(ne, before, after))
        changed = [slot for slot in differ if after[slot] != EMPTY]
        if not changed:
            continue
        wanted = {after[slot] for slot in changed}
        held: dict[int, list[int]] = {expert: [] for expert in wanted}
        for slot in compress(range(new.width), map(wanted.__contains__, before)):
            if problem.alive[slot // new.slots]:
                held[before[slot]].append(slot)
        for slot in changed:
            node = nodes[slot // new.slots]
            source = min(
                held[after[slot]],
                key=lambda s: (nodes[s // new.slots] != node, asked[s // new.slots], s),
                default=EMPTY,
            )
            if source != EMPTY:
                asked[source // new.slots] += 1
            moves.append(Move(layer, after[slot], source, slot, expert_bytes))
    return tuple(moves)


def _certificate(problem: _Problem, placement: Placement, moves: Sequence[Move]) -> Certificate:
    try:
        one, two, domains, copies, balance = native.load().place_examine(
            *problem.given, placement.table
        )
    except native.load().CoreError as error:
        raise _refused(error) from error
    received = Counter[int]()
    for move in moves:
        received[move.slot // placement.slots] += move.bytes
    return Certificate(
        aim=problem.aim,
        alive=problem.living,
        copies=tuple(copies),
        one=one,
        two=two,
        domains=dict(zip(LEVELS[1:], domains, strict=True)),
        room=_left(problem, problem.aim),
        balance=tuple(balance),
        bytes=sum(received.values()),
        worst=max(received.values(), default=0),
        digest=digest(placement, problem.loads),
    )
