"""The planner and the byte budget of device copies: pure, so held against brute force and against their promises.

The planner's property: every byte is copied exactly once, to its place, by a way that may carry it.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from door import code_of, core
from hypothesis import given, settings
from hypothesis import strategies as st

HOST, DEVICE, REGION = 1 << 30, 1 << 40, 1 << 20


@st.composite
def transfers(draw: Any) -> tuple[list[tuple[int, int, int, int, int]], dict[str, Any]]:
    """Blocks of a few fragments, some of them adjacent on both sides; rules of any kind."""
    unit = draw(st.sampled_from([16, 16, 8, 1]))
    sizes = draw(st.lists(st.integers(1, 300).map(lambda n: n * unit), min_size=1, max_size=6))
    payload = sum(sizes)
    stride = draw(st.sampled_from([payload, (payload + 4095) // 4096 * 4096]))
    blocks = draw(st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True))
    slots = draw(st.permutations(range(12)))
    together = draw(st.booleans())  # one region holds whole blocks
    fragments = []
    for owner, block in enumerate(blocks):
        at = 0
        for region, size in enumerate(sizes):
            device = (
                DEVICE + block * payload + at
                if together
                else DEVICE + region * REGION + block * size
            )
            fragments.append((device, HOST + slots[owner] * stride + at, size, owner, at))
            at += size
    rules = {
        "kernels": draw(st.booleans()),
        "pack_all": draw(st.booleans()),
        "pack": draw(st.sampled_from([[], [(1, 1000)], [(1, 10**9)], [(4, 100), (9, 5000)]])),
        "staging_bytes": draw(st.sampled_from([0, 64, 4096, 65536, 1 << 24])),
        "max_pieces": draw(st.sampled_from([0, 1, 7, 10000])),
        "host_base": draw(st.sampled_from([0, HOST, HOST + 4096])),
        "host_chunk": draw(st.sampled_from([0, 4096, 8192, 1 << 20])),
    }
    return draw(st.permutations(fragments)), rules


EXTENT, NOTHING = 12 * 36864, -1


@settings(max_examples=60)
@given(transfers())
def test_every_byte_is_copied_exactly_once_to_its_place(case: Any) -> None:
    fragments, rules = case
    wanted = np.full(EXTENT, NOTHING)
    for device, host, size, *_ in fragments:
        wanted[host - HOST : host - HOST + size] = np.arange(device, device + size)
    of_block = {owner: (host - position) for _d, host, _s, owner, position in fragments}
    got, staging = np.full(EXTENT, NOTHING), np.full(EXTENT, NOTHING)
    meant, round_now = np.full(EXTENT, NOTHING), -1
    for way, number, (a, b, c, owner, position) in core.device_plan(fragments, **rules):
        if way and number != round_now:
            assert (staging == NOTHING).all(), "packed and never copied on"
            round_now = number
        if way == 1:
            assert b + c <= rules["staging_bytes"]
            assert (staging[b : b + c] == NOTHING).all(), "two pieces at one place of staging"
            staging[b : b + c] = np.arange(a, a + c)
            meant[b : b + c] = np.arange(of_block[owner] + position, of_block[owner] + position + c)
            continue
        to = b - HOST
        assert (got[to : to + c] == NOTHING).all(), "a byte copied twice"
        if way == 0:
            got[to : to + c] = np.arange(a, a + c)
        else:
            assert (meant[a : a + c] == np.arange(b, b + c)).all(), "not where its block says"
            got[to : to + c] = staging[a : a + c]
            staging[a : a + c] = NOTHING
    assert (staging == NOTHING).all(), "packed and never copied on"
    assert (got == wanted).all()


@settings(max_examples=60)
@given(transfers())
def test_copies_keep_the_rules(case: Any) -> None:
    fragments, rules = case
    plan = core.device_plan(fragments, **rules)
    packed = [values for way, _round, values in plan if way == 1]
    assert not packed or rules["kernels"]
    assert len(packed) <= rules["max_pieces"]
    for address, offset, size, _owner, position in packed:
        assert (address | offset | size | position) % 16 == 0
    base, chunk = rules["host_base"], rules["host_chunk"]
    for way, _round, values in plan:
        if way == 1 or not chunk:
            continue
        start, size = values[1], values[2]
        if start >= base:
            assert (start - base) // chunk == (start + size - 1 - base) // chunk, (
                "across registrations"
            )


@settings(max_examples=60)
@given(transfers())
def test_every_byte_of_a_direct_copy_is_written_once(case: Any) -> None:
    fragments, rules = case
    spans = sorted(
        (v[1], v[1] + v[2]) for way, _r, v in core.device_plan(fragments, **rules) if way != 1
    )
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    assert sum(end - start for start, end in spans) == sum(size for _d, _h, size, *_ in fragments)


def test_adjacent_blocks_go_as_one_copy() -> None:
    blocks = [(DEVICE + i * 4096, HOST + i * 4096, 4096, i, 0) for i in range(8)]
    rules: dict[str, Any] = {"kernels": False, "pack_all": False, "pack": [], "staging_bytes": 0}
    rules |= {"max_pieces": 0, "host_base": 0, "host_chunk": 0}
    assert core.device_plan(blocks, **rules) == [(0, 0, [DEVICE, HOST, 8 * 4096, 0, 0])]
    cut = core.device_plan(blocks, **(rules | {"host_base": HOST, "host_chunk": 16384}))
    assert [values[2] for _way, _round, values in cut] == [16384, 16384]


def test_the_threshold_depends_on_the_number_of_pieces() -> None:
    def ways(count: int) -> set[int]:
        pieces = [(DEVICE + 8192 * i, HOST + 4096 * i, 4096, 0, 4096 * i) for i in range(count)]
        plan = core.device_plan(
            pieces, kernels=True, pack_all=False, pack=[(4, 4096), (16, 8192)],
            staging_bytes=1 << 20, max_pieces=1000, host_base=0, host_chunk=0,
        )  # fmt: skip
        return {way for way, _round, _values in plan}

    assert ways(3) == {0}
    assert ways(15) == {0}, "4096 is not below 4096"
    assert ways(16) == {1, 2}


STEP, SPEND, ASK = 0.0, 1.0, 2.0


def test_a_budget_is_kept_over_time() -> None:
    rate, now, sent, events = 1e6, 100.0, 0, []
    for _ in range(300):
        wait, _rate = core.device_pace(rate, 0.0, [*events, (now, ASK, 0)])[-1]
        if wait == 0:
            events.append((now, SPEND, 50_000))
            sent += 50_000
        now += 0.01
    assert 0.9 * rate * 3.0 <= sent <= rate * 3.0 + 100_000


def test_without_a_limit_nothing_waits() -> None:
    events = [(float(i), SPEND, 1e12) for i in range(10)]
    assert core.device_pace(0.0, 0.0, events) == [[0.0, 0.0]] * 10


def life(slower: float, steps: int, slowdown: float = 0.03) -> list[Any]:
    """Steps of 10 ms, first without stores, then with; those with stores take `slower` times as long."""
    events, now = [], 1.0
    for number in range(steps):
        stores = number >= 20
        now += 0.01
        if stores:
            events.append((now, SPEND, 1e7))
        events.append((now + 0.005, STEP, 0.01 * (slower if stores else 1.0)))
    return core.device_pace(0.0, slowdown, events)


def test_stores_give_way_when_steps_with_them_are_slower() -> None:
    rates = [rate for _wait, rate in life(1.2, 80)]
    assert rates[19] == 0
    assert 0 < rates[-1] < 1e8, "far below the 1 GB/s at which it began"


def test_stores_are_left_alone_when_they_cost_nothing() -> None:
    assert {rate for _wait, rate in life(1.01, 80)} == {0.0}
    assert {rate for _wait, rate in life(2.0, 80, slowdown=0.0)} == {0.0}


def test_a_rate_that_fell_recovers() -> None:
    events, now = [], 1.0
    for number in range(600):
        now += 0.01
        if number >= 20:
            events.append((now, SPEND, 1e6))
        slow = 20 <= number < 60
        events.append((now + 0.005, STEP, 0.012 if slow else 0.01))
    rates = [rate for _wait, rate in core.device_pace(0.0, 0.03, events)]
    assert min(rate for rate in rates if rate) < 1e8
    assert rates[-1] == 0 or rates[-1] > 1e9


def test_an_engine_that_only_got_slower_for_good_is_not_held_against_stores_for_ever() -> None:
    rates = [rate for _wait, rate in life(1.3, 3000)]
    assert min(rate for rate in rates[20:] if rate) < 1e8
    assert rates[-1] == 0 or rates[-1] > 1e9


def test_nonsense_is_refused_or_ignored() -> None:
    assert core.device_pace(0.0, 0.03, [(1.0, STEP, float("nan")), (2.0, STEP, -1.0)])[-1] == [0, 0]
    assert (
        code_of(
            core.device_plan, [], kernels=True, pack_all=False, pack=[(2, 1), (1, 1)],
            staging_bytes=0, max_pieces=0, host_base=0, host_chunk=0,
        ) == "invalid"
    )  # fmt: skip
