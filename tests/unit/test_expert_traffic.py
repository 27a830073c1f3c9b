"""What the steps of an expert-parallel engine compute: who decodes does not wait for the prompts of others, and no prompt waits for ever."""

from __future__ import annotations

import msgspec
import pytest

pytest.importorskip("torch")

from dynamo_gpu_ft.engines.reference.experts.traffic import Moved, Traffic, rows_of_a_step
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling

RANKS, TILE, BLOCK = 2, 8, 16


@pytest.mark.parametrize(
    ("ranks", "rows"),
    [
        ([(0, 0), (3, 0)], None),  # nobody waits for a token of a stream
        ([(3, 3), (0, 0)], 8),
        ([(3, 3), (2, 0)], 8),
        ([(8, 8), (8, 8)], 8),  # all rows of the tile decode
        ([(9, 8), (0, 0)], 16),  # and somebody waits for a row
        ([(9, 9), (1, 0)], 16),
        ([(7, 7), (17, 16)], 24),
    ],
)
def test_there_are_as_many_tiles_as_those_who_decode_need_and_a_row_for_who_does_not(
    ranks: list[tuple[int, int]], rows: int | None
) -> None:
    assert rows_of_a_step(ranks, TILE) == rows


class Served:
    """Traffic whose ranks draw 7 each time."""

    def __init__(self, rows: int = 64, blocks: int = 64) -> None:
        settings = {"tail_every": 1}
        options = Options(
            model="", ep=RANKS, slots=1, tile=TILE, rows=rows, block=BLOCK, blocks=blocks, settings=settings
        )  # fmt: skip
        self.options, self.traffic = options, Traffic(options, 512)
        self.tokens: dict[str, int] = {}

    def add(self, name: str, prompt: int, tokens: int, shard: int) -> None:
        self.traffic.add(name, range(prompt), Sampling(max_tokens=tokens), [shard])
        self.tokens[name] = 0

    def step(self) -> dict[int, int]:
        """Rows of each rank."""
        plans = self.plans = self.traffic.plan(range(RANKS))
        drawn = {p.request: 7 for plan in plans.values() for p in plan.pieces if p.sampling}
        for output in self.traffic.apply(plans, drawn, ()):
            self.tokens[output.request] += 1
        return {shard: plan.rows for shard, plan in plans.items()}


def test_a_long_prompt_is_prefilled_in_a_chunk_while_nobody_decodes_and_by_tiles_beside_those_who_do() -> (
    None
):
    served = Served()
    served.add("short", 3, 40, 0)
    assert served.step() == {0: 3}
    served.add("long", 100, 4, 1)
    steps = 0
    while not served.tokens["long"]:
        assert served.step() == {0: 1, 1: min(TILE, 100 - TILE * steps)}
        steps += 1
        assert served.tokens["short"] == 1 + steps, "a token in every step"
    assert steps == -(-100 // TILE), "as many tiles as in one chunk"

    alone = Served()
    alone.add("long", 100, 4, 1)
    assert [alone.step(), alone.step()] == [{1: 64}, {1: 36}]


def test_requests_of_a_lost_rank_are_computed_again_beside_those_who_decode_a_tile_at_a_time() -> (
    None
):
    served = Served()
    for number in range(4):
        served.add(f"r{number}", 20, 60, number % RANKS)
    for _ in range(6):
        served.step()
    served.traffic.move({1}, [0])
    behind = dict(served.tokens)
    assert served.step() == {0: TILE}
    assert {n for n in behind if served.tokens[n] > behind[n]} == {"r0", "r2"}
    for _ in range(40):
        served.step()
    assert all(served.tokens[name] > behind[name] for name in ("r1", "r3"))


def test_where_all_rows_of_the_tile_decode_another_tile_is_for_who_does_not() -> None:
    served = Served()
    for number in range(TILE):
        served.add(f"d{number}", 1, 100, 0)
    served.step()
    served.add("new", 30, 5, 0)
    rows = [served.step()[0] for _ in range(4)]
    assert rows == [16, 16, 16, TILE + 6]
    assert served.tokens["new"] == 1
    assert {served.tokens[f"d{n}"] for n in range(TILE)} == {5}


def test_fewer_rows_than_a_tile_stay_as_they_are() -> None:
    served = Served(rows=5)
    served.add("short", 3, 40, 0)
    served.step()
    served.add("long", 12, 4, 1)
    assert [served.step()[1] for _ in range(3)] == [5, 5, 2]


def due(served: Served, shard: int = 0) -> list[tuple[int, int]]:
    """(first block, tokens) of what that rank is told to store before the step that is planned now."""
    plans = served.traffic.plan(range(RANKS))
    return [(p.first, p.tokens(BLOCK)) for p in plans[shard].due]


def test_kv_is_stored_before_the_step_after_the_one_that_computed_it_and_counts() -> None:
    served = Served()
    served.add("one", 20, 40, 0)
    assert due(served) == []
    served.step()
    assert due(served) == due(served) == [(0, 16), (1, 4)], "as often as the step is planned"
    served.step()
    assert due(served) == [(1, 5)]


def test_what_is_over_or_begins_anew_is_not_stored() -> None:
    served = Served()
    served.add("one", 20, 1, 0)
    served.add("two", 5, 3, 0)
    served.step()
    assert due(served) == [(0, 5)], "of the other one"

    served = Served(blocks=5)
    served.add("old", 30, 30, 0)
    served.add("young", 30, 10, 0)
    before: set[str] = set()
    while not any(request.lives for request in served.traffic.open(0)):
        before = {p.request for p in served.plans[0].sealed} if served.tokens["old"] else set()
        served.step()
    assert before == {"old", "young"}
    assert {p.request for p in served.plans[0].due} == {"old"}, "the young one's blocks are others'"


def known(moved: Moved) -> list[int]:
    """Tokens of what may be stored of it."""
    return [prefix.tokens(BLOCK) for prefix in moved.prefixes]


def test_a_moved_request_goes_on_behind_what_is_restored_and_from_its_first_token_without() -> None:
    served = Served()
    for name in ("first", "second", "third"):
        served.add(name, 20, 60, 1)
    for _ in range(3):
        served.step()
    moved = served.traffic.move([1], [0])
    # 22 tokens have KV, and all but the newest of them were ordered to be stored: 21 last, 20 before.
    assert [(m.request.id, known(m), m.source, m.target) for m in moved] == [
        (name, [21, 20], 1, 0) for name in ("first", "second", "third")
    ]
    whole, partly, nothing = moved
    served.traffic.regained(whole, whole.prefixes[0])
    served.traffic.regained(partly, partly.prefixes[0].head(1))
    pieces = {p.request: p for p in served.traffic.plan([0], canary=True)[0].pieces}
    assert (pieces["first"].start, len(pieces["first"].tokens)) == (21, 2)
    assert pieces["second"].start == 16
    assert nothing.request.computed == 0
    assert pieces["first"].blocks == whole.prefixes[0].blocks
    names = served.traffic._schedulers[0]._names(partly.request, 1)
    assert tuple(names) == partly.prefixes[0].hashes[:1], "what was restored keeps its name"
    assert (
        served.traffic._schedulers[0]._names(nothing.request, 1)[0] != nothing.prefixes[0].hashes[0]
    )


def test_all_that_was_restored_is_stored_again_by_who_has_it_now() -> None:
    served = Served()
    served.add("one", 20, 60, 1)
    for _ in range(3):
        served.step()
    [moved] = served.traffic.move([1], [0])
    served.traffic.regained(moved, moved.prefixes[0])
    served.step()
    assert due(served) == [(0, 16), (1, 7)]


def test_a_request_for_whose_kv_there_is_no_room_waits_and_is_computed_again() -> None:
    served = Served(blocks=4)
    served.add("here", 30, 15, 0)
    served.add("there", 30, 15, 1)
    for _ in range(3):
        served.step()
    assert served.traffic.move([1], [0]) == []
    [waiting] = [r for r in served.traffic.open(0) if r.id == "there"]
    assert (waiting.computed, waiting.blocks) == (0, [])
    for _ in range(60):
        served.step()
    assert served.tokens == {"here": 15, "there": 15}


def test_equal_tokens_of_two_requests_or_two_lives_have_different_names() -> None:
    served = Served()
    served.add("one", 40, 10, 0)
    served.add("other", 40, 10, 0)
    served.step()
    scheduler = served.traffic._schedulers[0]
    one, other = served.traffic.open(0)
    first = [*scheduler._names(one, 2), scheduler._tail_name(one, 39)]
    assert not set(first) & {*scheduler._names(other, 2), scheduler._tail_name(other, 39)}
    scheduler._anew(one)
    assert not set(first) & {*scheduler._names(one, 2), scheduler._tail_name(one, 39)}


def test_who_takes_over_may_be_lost_before_it_has_stored_anything() -> None:
    served = Served()
    served.traffic = Traffic(msgspec.structs.replace(served.options, ep=4), 512)
    served.add("one", 20, 60, 1)
    for _ in range(3):
        served.step()
    [moved] = served.traffic.move([1], [0, 2, 3])
    assert (moved.source, moved.target) == (1, 0)
    [same] = served.traffic.move([], [0, 2, 3])
    assert same == moved, "as long as nobody has said what became of it"
    [again] = served.traffic.move([0], [2, 3])
    assert (again.source, again.target, known(again)) == (1, 2, [21, 20])
    served.traffic.regained(again, again.prefixes[1])
    [third] = served.traffic.move([2], [3])
    assert (third.source, third.target, known(third)) == (1, 3, [20])
    served.traffic.regained(third, third.prefixes[0])
    # The first is there again: what it stored is its own, and nobody else may write in its name.
    assert served.traffic.move([3], [1, 2]) == []


def test_what_was_not_restored_before_the_next_step_never_is() -> None:
    served = Served()
    served.add("one", 20, 60, 1)
    for _ in range(3):
        served.step()
    assert len(served.traffic.move([1], [0])) == 1
    plans = served.traffic.plan([0])
    assert plans[0].pieces[0].start == 0
    served.traffic.apply(plans, {"one": 7}, ())
    assert served.traffic.move([], [0]) == []
    assert served.traffic.move([0], [1]) == []
