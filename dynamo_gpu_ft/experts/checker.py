"""Verifies certificates: counts once more, in plain Python and in another way than the planner, what a placement survives.

Used by tests, by `dynamo-gpu-ft experts check`, and by engines before a map is put to use. Pure; shares no code with csrc/place.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from dynamo_gpu_ft.errors import CertificateError
from dynamo_gpu_ft.experts.base import (
    LEVELS,
    Aim,
    Certificate,
    Domains,
    Move,
    Placement,
    digest,
)


def check(
    placement: Placement,
    certificate: Certificate,
    loads: Any,
    domains: Domains,
    moves: Sequence[Move] = (),
    old: Placement | None = None,
) -> None:
    """Raises `CertificateError` for the first word of `certificate` that is not true of `placement`, or when the aim it names is not met."""
    rows = [list(row) for row in (loads.tolist() if hasattr(loads, "tolist") else loads)]
    packed = b"".join(struct.pack(f"<{len(row)}q", *row) for row in rows)
    alive = certificate.alive
    if (
        list(alive) != sorted(set(alive))
        or not set(alive) <= set(range(placement.ranks))
        or not alive
    ):
        raise _false("alive", alive, f"ranks of 0 to {placement.ranks - 1}, ascending")
    said = {
        "digest": (certificate.digest, digest(placement, packed)),
        "copies": (certificate.copies, tuple(_fewest(placement, alive))),
        "balance": (certificate.balance, tuple(_balance(placement, rows, alive))),
        "room": (certificate.room, _room(placement, certificate, domains)),
        "bytes": (certificate.bytes, sum(move.bytes for move in moves)),
        "worst": (certificate.worst, _worst(moves, placement.slots)),
        **_survived(placement, certificate, domains),
    }
    for name, (claimed, found) in said.items():
        if claimed != found:
            raise _false(name, claimed, f"it is {found}")
    _no_doubles(placement)
    _aim_met(placement, certificate, domains)
    if old is not None:
        _moves_explain(placement, old, moves, alive)


def _holders(placement: Placement, alive: Sequence[int]) -> list[list[frozenset[int]]]:
    """Live ranks that hold each expert, per layer."""
    living = set(alive)
    return [
        [frozenset(slot // placement.slots for slot in slots) & living for slots in placement.copies(layer)]
        for layer in range(placement.layers)
    ]  # fmt: skip


def _fewest(placement: Placement, alive: Sequence[int]) -> list[int]:
    living = set(alive)
    return [
        min(sum(slot // placement.slots in living for slot in slots) for slots in placement.copies(layer))
        for layer in range(placement.layers)
    ]  # fmt: skip


def _balance(placement: Placement, loads: list[list[int]], alive: Sequence[int]) -> list[int]:
    living, found = set(alive), []
    for layer, row in enumerate(loads):
        load = Counter[int]()
        for expert, slots in enumerate(placement.copies(layer)):
            ranks = [slot // placement.slots for slot in slots if slot // placement.slots in living]
            for rank in ranks:
                load[rank] += row[expert] * 2**20 // len(ranks)
        most = max(load.values(), default=0)
        found.append(sum(load.values()) * 10**6 // (most * len(alive)) if most else 10**6)
    return found


def _survived(
    placement: Placement, certificate: Certificate, domains: Domains
) -> dict[str, tuple[Any, Any]]:
    held = {ranks for layer in _holders(placement, certificate.alive) for ranks in layer}
    smallest = {ranks for ranks in held if len(ranks) <= 2}
    alive = certificate.alive

    def survives(lost: frozenset[int], among: set[frozenset[int]]) -> bool:
        return not any(ranks <= lost for ranks in among)

    ones = [frozenset([rank]) for rank in alive]
    fatal = {ranks for ranks in held if len(ranks) <= 1}
    pairs = list(combinations(alive, 2))
    lost_two = sum(
        frozenset(pair) in smallest or any(frozenset([r]) in fatal for r in pair) for pair in pairs
    )
    whole = {}
    for level in LEVELS[1:]:
        parts = [frozenset(ranks) & set(alive) for ranks in domains.members(level).values()]
        parts = [part for part in parts if part]
        whole[level] = (sum(survives(part, held) for part in parts), len(parts))
    nothing = frozenset() in held
    return {
        "one": (certificate.one, (sum(survives(one, fatal) for one in ones), len(ones))),
        "two": (certificate.two, (0 if nothing else len(pairs) - lost_two, len(pairs))),
        "domains": (certificate.domains, whole),
    }


def _room(placement: Placement, certificate: Certificate, domains: Domains) -> int:
    """Slots of a layer after the loss that leaves fewest: of as many ranks as the aim says, or of one whole domain."""
    aim, alive = certificate.aim, certificate.alive
    losses = [alive[: max(0, aim.losses)]]
    if aim.domain != "gpu":
        losses += domains.members(aim.domain).values()
    return placement.slots * min(len(set(alive) - set(lost)) for lost in losses)


def _aim_met(placement: Placement, certificate: Certificate, domains: Domains) -> None:
    aim: Aim = certificate.aim
    if min(certificate.copies) < 1:
        raise _false("aim", aim, "every expert has a live copy")
    if aim.mode != "instant":
        if certificate.room < placement.experts:
            rule = f"a slot for each of {placement.experts} experts after the worst loss"
            raise _false("aim", f"{aim}, room for {certificate.room}", rule)
        return
    for layer, held in enumerate(_holders(placement, certificate.alive)):
        for expert, ranks in enumerate(held):
            spread = {domains.of(aim.domain)[rank] for rank in ranks}
            if len(spread) <= aim.losses:
                rule = f"{aim.losses + 1} copies in distinct domains ({aim.domain})"
                raise _false("aim", f"layer {layer}, expert {expert} on {sorted(ranks)}", rule)


def _no_doubles(placement: Placement) -> None:
    for layer in range(placement.layers):
        for expert, slots in enumerate(placement.copies(layer)):
            ranks = [slot // placement.slots for slot in slots]
            if len(set(ranks)) < len(ranks):
                rule = "no two copies of an expert on one rank"
                raise _false("placement", f"layer {layer}, expert {expert} in slots {slots}", rule)


def _worst(moves: Sequence[Move], slots: int) -> int:
    received = Counter[int]()
    for move in moves:
        received[move.slot // slots] += move.bytes
    return max(received.values(), default=0)


def _moves_explain(
    placement: Placement, old: Placement, moves: Sequence[Move], alive: Sequence[int]
) -> None:
    """The old placement with the moves made is the new one, and every source is a live copy of what is moved."""
    named = {(move.layer, move.slot): move for move in moves}
    for layer in range(placement.layers):
        before, after = old.row(layer), placement.row(layer)
        for slot, expert in enumerate(after):
            move = named.pop((layer, slot), None)
            if (move.expert if move else before[slot]) != expert and expert >= 0:
                raise _false("moves", move, f"slot {slot} of layer {layer} gets expert {expert}")
            if move and move.source >= 0:
                right = before[move.source] == expert and move.source // old.slots in alive
                if not right:
                    raise _false("moves", move, "its source is a live copy of the same expert")
    if named:
        raise _false("moves", next(iter(named.values())), "every move fills a slot that there is")


def _false(word: str, claimed: object, rule: str) -> CertificateError:
    return CertificateError(
        "a certificate is not true",
        where=word,
        value=claimed,
        rule=rule,
        remedy="plan again: the map, the loads or the certificate changed",
    )
