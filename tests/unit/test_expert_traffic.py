"""What the steps of an expert-parallel engine compute: who decodes does not wait for the prompts of others, and no prompt waits for ever."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from dynamo_gpu_ft.engines.reference.experts.traffic import Traffic, rows_of_a_step
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling

RANKS, TILE = 2, 8


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

    def __init__(self, rows: int = 64) -> None:
        self.traffic = Traffic(
            Options(model="", ep=RANKS, slots=1, tile=TILE, rows=rows, blocks=64), 512
        )
        self.tokens: dict[str, int] = {}

    def add(self, name: str, prompt: int, tokens: int, shard: int) -> None:
        self.traffic.add(name, range(prompt), Sampling(max_tokens=tokens), [shard])
        self.tokens[name] = 0

    def step(self) -> dict[int, int]:
        """Rows of each rank."""
        plans = self.traffic.plan(range(RANKS))
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
