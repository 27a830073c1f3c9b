"""The checker agrees with brute force and rejects every certificate of which one word was changed, and placements that were."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_world import counted, counted_domains, loads_of, zipf

from dynamo_gpu_ft.errors import CertificateError
from dynamo_gpu_ft.experts.base import Aim, Certificate, Domains, Move, Placement
from dynamo_gpu_ft.experts.checker import check
from dynamo_gpu_ft.experts.planner import certify, plan, repair

DOMAINS = Domains.regular(8, per_tray=2, per_node=4)
LOADS = zipf(3, 16, 0.6)
AIM = Aim(domain="node")
OLD = plan(zipf(3, 16, 0.9, seed=1), ranks=8, slots=5, domains=DOMAINS, aim=AIM).placement
FOUND = plan(LOADS, ranks=8, slots=5, domains=DOMAINS, aim=AIM, old=OLD, expert_bytes=3)


def checked(certificate: Certificate = FOUND.certificate, **other: Any) -> None:
    given = {"placement": FOUND.placement, "loads": LOADS, "domains": DOMAINS, "moves": FOUND.moves, "old": OLD}  # fmt: skip
    check(certificate=certificate, **(given | other))


def test_a_true_certificate_passes() -> None:
    assert FOUND.moves
    checked()


def changes(value: Any) -> list[Any]:
    """Values of the same kind that differ in one place."""
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, str):
        return [value[:-1] + ("0" if value[-1] != "0" else "1"), ""]
    if isinstance(value, dict):
        return [
            *({**value, key: change} for key in value for change in changes(value[key])),
            *({k: v for k, v in value.items() if k != key} for key in value),
        ]
    if isinstance(value, tuple):
        return [
            *(
                (*value[:i], change, *value[i + 1 :])
                for i, each in enumerate(value)
                for change in changes(each)
            ),
            value[:-1],
        ]
    raise AssertionError(f"no changes of a {type(value)}")


@pytest.mark.parametrize("word", [f for f in Certificate.__struct_fields__ if f != "aim"])
def test_a_certificate_with_one_word_changed_is_rejected(word: str) -> None:
    mutants = changes(getattr(FOUND.certificate, word))
    assert mutants
    for mutant in mutants:
        with pytest.raises(CertificateError):
            checked(msgspec.structs.replace(FOUND.certificate, **{word: mutant}))


@pytest.mark.parametrize(
    "aim", [Aim(losses=2, domain="node"), Aim(losses=5), Aim(domain="nvlink", losses=2)]
)
def test_a_certificate_that_claims_a_higher_aim_is_rejected(aim: Aim) -> None:
    with pytest.raises(CertificateError, match="aim|room"):
        checked(msgspec.structs.replace(FOUND.certificate, aim=aim))
    room = certify(FOUND.placement, LOADS, domains=DOMAINS, aim=aim).room
    with pytest.raises(CertificateError, match="aim"):
        checked(msgspec.structs.replace(FOUND.certificate, aim=aim, room=room))


def test_a_certificate_of_another_placement_or_of_other_loads_is_rejected() -> None:
    rows = [list(row) for row in FOUND.placement.rows()]
    draw = random.Random(3)
    for _ in range(50):
        layer, slot = draw.randrange(3), draw.randrange(40)
        changed = [list(row) for row in rows]
        changed[layer][slot] = (changed[layer][slot] + 1 + draw.randrange(14)) % 16
        with pytest.raises(CertificateError):
            checked(placement=Placement.of_rows(changed, experts=16, ranks=8))
    with pytest.raises(CertificateError):
        checked(loads=[[load + 1 for load in row] for row in LOADS])


def test_moves_that_do_not_make_the_placement_of_the_old_one_are_rejected() -> None:
    first, *others = FOUND.moves
    wrong = [
        tuple(others),
        (*FOUND.moves, Move(0, 1, -1, 0, 0)),
        (msgspec.structs.replace(first, expert=(first.expert + 1) % 16), *others),
        (msgspec.structs.replace(first, slot=(first.slot + 1) % 40), *others),
        (msgspec.structs.replace(first, source=first.slot), *others),
    ]
    for moves in wrong:
        with pytest.raises(CertificateError):
            checked(moves=moves)


def test_a_certificate_does_not_hold_for_other_domains() -> None:
    mixed = Domains(tuple(range(8)), (0, 0, 1, 1, 0, 0, 1, 1), (0,) * 8)
    with pytest.raises(CertificateError):
        checked(domains=mixed)


def test_a_forger_who_knows_the_digest_is_found_out_by_the_count() -> None:
    """A placement in which an expert lost a copy, with a digest that fits: the words about losses are wrong then."""
    rows = [list(row) for row in FOUND.placement.rows()]
    where = [slot for slot, expert in enumerate(rows[1]) if expert == rows[1][0]]
    for slot in where[1:]:
        rows[1][slot] = -1
    other = Placement.of_rows(rows, experts=16, ranks=8)
    true = certify(other, LOADS, domains=DOMAINS, aim=AIM)
    with pytest.raises(CertificateError, match="aim"):
        check(other, true, LOADS, DOMAINS)
    forged = msgspec.structs.replace(FOUND.certificate, digest=true.digest, balance=true.balance)
    with pytest.raises(CertificateError, match="copies"):
        check(other, forged, LOADS, DOMAINS)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.data())
@settings(max_examples=150, deadline=None)
def test_planner_checker_and_brute_force_count_the_same_in_placements_of_all_kinds(
    seed: int, ranks: int, experts: int, data: st.DataObject
) -> None:
    slots = data.draw(st.integers(1, 3))
    layers = data.draw(st.integers(1, 3))
    cell = st.integers(-1, experts - 1)
    rows = [data.draw(st.lists(cell, min_size=ranks * slots, max_size=ranks * slots)) for _ in range(layers)]  # fmt: skip
    alive = data.draw(st.lists(st.booleans(), min_size=ranks, max_size=ranks))
    alive[data.draw(st.integers(0, ranks - 1))] = True
    domains = Domains.regular(ranks, per_tray=1, per_node=2)
    placement, loads = Placement.of_rows(rows, experts=experts, ranks=ranks), loads_of(seed, layers, experts)  # fmt: skip
    found = certify(placement, loads, domains=domains, alive=alive, aim=Aim(mode="refill"))
    assert found.one == counted(placement, alive, 1)
    assert found.two == counted(placement, alive, 2)
    for level in ("tray", "node", "nvlink"):
        assert found.domains[level] == counted_domains(placement, alive, domains, level)
    try:
        check(placement, found, loads, domains)
    except CertificateError as error:
        # Every count agrees; what is wrong is the placement itself.
        assert error.where in ("aim", "placement")
        doubled = any(
            len(mine) != len(set(mine))
            for row in rows
            for rank in range(ranks)
            if (mine := [e for e in row[rank * slots : (rank + 1) * slots] if e >= 0])
        )
        short = found.room < experts
        assert doubled if error.where == "placement" else min(found.copies) == 0 or short


REFILL = Aim(mode="refill")


def test_a_plan_that_claims_a_refill_for_which_there_is_no_room_is_refused() -> None:
    """8 ranks x 2 slots hold 16 experts once: nothing is left for what a lost rank held, whatever the certificate says."""
    bare = plan(LOADS, ranks=8, slots=2, domains=DOMAINS, aim=Aim(mode="refill", losses=0))
    check(bare.placement, bare.certificate, LOADS, DOMAINS)
    assert bare.certificate.room == 16
    honest = certify(bare.placement, LOADS, domains=DOMAINS, aim=REFILL)
    assert honest.room == 14
    with pytest.raises(CertificateError, match="aim"):
        check(bare.placement, honest, LOADS, DOMAINS)
    for room in (13, 15, 16, 10**9):
        lying = msgspec.structs.replace(honest, room=room)
        with pytest.raises(CertificateError, match="room"):
            check(bare.placement, lying, LOADS, DOMAINS)
    renamed = msgspec.structs.replace(bare.certificate, aim=REFILL)
    with pytest.raises(CertificateError, match="room"):
        check(bare.placement, renamed, LOADS, DOMAINS)


def test_the_room_of_a_refill_is_what_the_widest_domain_leaves() -> None:
    uneven = Domains(tuple(range(8)), (0, 0, 0, 0, 0, 1, 1, 1), (0,) * 8)
    wish = Aim(mode="refill", domain="node")
    found = plan(LOADS, ranks=8, slots=6, domains=uneven, aim=wish)
    assert found.certificate.room == 3 * 6
    check(found.placement, found.certificate, LOADS, uneven)
    alive = [rank != 0 for rank in range(8)]
    after = repair(found.placement, LOADS, alive=alive, domains=uneven, aim=wish)
    assert (after.certificate.aim, after.certificate.room) == (wish, 3 * 6)
    check(after.placement, after.certificate, LOADS, uneven, after.moves, found.placement)


def test_a_repair_that_uses_up_the_room_says_so() -> None:
    """8 ranks x 3 slots and 16 experts: room for two losses of one rank each, not for a third."""
    placement, alive = plan(LOADS, ranks=8, slots=3, domains=DOMAINS, aim=REFILL).placement, [True] * 8  # fmt: skip
    for dead, aim, room in ((0, REFILL, 18), (1, Aim(mode="refill", losses=0), 18)):
        alive[dead] = False
        found = repair(placement, LOADS, alive=alive, domains=DOMAINS, aim=REFILL)
        assert (found.certificate.aim, found.certificate.room) == (aim, room)
        check(found.placement, found.certificate, LOADS, DOMAINS, found.moves, placement)
        placement = found.placement


def test_the_certificate_of_a_repaired_placement_is_true_for_those_that_live() -> None:
    refill = Aim(mode="refill")
    old = plan(LOADS, ranks=8, slots=3, domains=DOMAINS, aim=refill).placement
    last = next(e for e in range(16) if len(old.copies(0)[e]) == 1)
    alive = [rank != old.copies(0)[last][0] // 3 for rank in range(8)]
    found = repair(old, LOADS, alive=alive, domains=DOMAINS, aim=refill)
    assert found.moves
    check(found.placement, found.certificate, LOADS, DOMAINS, found.moves, old)
    dead = msgspec.structs.replace(found.certificate, alive=tuple(range(8)))
    with pytest.raises(CertificateError):
        check(found.placement, dead, LOADS, DOMAINS, found.moves, old)


def test_certificates_survive_json() -> None:
    again = msgspec.json.decode(msgspec.json.encode(FOUND.certificate), type=Certificate)
    assert again == FOUND.certificate
    checked(again)
