"""What the scheduler is told about a prefix: own blocks, blocks on disk, blocks of other layouts, and how they are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamo_gpu_ft.kv import cost, restore
from dynamo_gpu_ft.kv.blocks import Sources, Usable
from dynamo_gpu_ft.kv.geometry import LayerRun, Part, ShardLayout
from dynamo_gpu_ft.kv.prefix import Foreign, PrefixIndex
from dynamo_gpu_ft.kv.relayout import plan

RECORD = b"the other layout"


class FixedShelf:
    """Has the first `blocks` blocks, from where `runs` say."""

    def __init__(self, blocks: int, runs: tuple[tuple[str, int], ...] = (), arena: Any = None):
        self.blocks, self.runs, self.arena, self.record = blocks, runs, arena or object(), RECORD

    def usable(self, block_hashes: Sequence[bytes]) -> Usable:
        count = min(self.blocks, len(block_hashes))
        reason = "complete" if count == len(block_hashes) else "missing"
        return Usable(count, reason, 0, self.runs or (("arena", count),))


def layout(tokens: int, tp: int = 1) -> ShardLayout:
    parts = (Part("k", 8, "PHSND"), Part("v", 8, "PHSND"))
    return ShardLayout(tokens, tokens, 4, tp, "float16", 2, parts, (LayerRun("l{}", 0, 2),))


def names(tokens: int, of: int = 256) -> list[bytes]:
    return [b"%d-%d" % (tokens, i) for i in range(of // tokens)]


def foreign(tokens: int, blocks: int, own: int) -> Foreign:
    relayout = plan(layout(tokens, tp=2), layout(own), 0)
    return Foreign(FixedShelf(blocks), tokens, relayout)  # type: ignore[arg-type]


def index(own: FixedShelf, *others: Foreign, tokens: int = 32) -> PrefixIndex:
    return PrefixIndex(own, tokens, others)  # type: ignore[arg-type]


def test_own_blocks_need_nobody_else() -> None:
    usable = index(FixedShelf(8), foreign(16, 16, 32)).usable(names, 8)
    assert (usable.blocks, usable.reason, usable.sources) == (8, "complete", ())


def test_blocks_of_a_smaller_block_size_continue_our_own() -> None:
    usable = index(FixedShelf(2), foreign(16, 11, 32)).usable(names, 8)
    assert usable.blocks == 5, "eleven blocks of 16 make five of 32"
    assert usable.runs == (("arena", 2), ("convert", 3))
    assert usable.sources[0] == Sources((b"16-4", b"16-5"), b"16-3", RECORD)


def test_blocks_of_a_larger_block_size_are_cut() -> None:
    usable = index(FixedShelf(0), foreign(64, 3, 32)).usable(names, 8)
    assert usable.blocks == 6
    assert [s.names for s in usable.sources[:3]] == [(b"64-0",), (b"64-0",), (b"64-1",)]
    assert [s.parent for s in usable.sources[:3]] == [None, None, b"64-0"]


def test_the_layout_that_has_most_is_taken() -> None:
    usable = index(FixedShelf(1), foreign(16, 4, 32), foreign(64, 2, 32)).usable(names, 8)
    assert usable.blocks == 4
    assert usable.sources[-1].names == (b"64-1",)


def test_a_layout_with_less_than_ours_is_left_alone() -> None:
    usable = index(FixedShelf(4), foreign(16, 4, 32)).usable(names, 8)
    assert (usable.blocks, usable.reason, usable.sources) == (4, "missing", ())


def test_forgotten_arenas_are_not_asked() -> None:
    gone = object()
    other = foreign(16, 16, 32)
    other.shelf.arena = gone  # type: ignore[misc, assignment]
    known = index(FixedShelf(0), other)
    known.forget(gone)  # type: ignore[arg-type]
    assert known.usable(names, 8).blocks == 0


def test_a_plan_starts_behind_the_local_hit_and_keeps_the_sources_aligned() -> None:
    made = tuple(Sources((b"s%d" % i,), None, RECORD) for i in (2, 3))
    usable = Usable(4, "missing", 0, (("disk", 2), ("convert", 2)), made)
    planned = restore.plan(
        usable, local_tokens=32, block_size=32, block_bytes=1, costs=cost.Costs()
    )
    assert (planned.first, planned.count) == (1, 3)
    assert planned.sources == (None, *made)


def test_a_plan_cut_before_the_conversion_has_no_sources() -> None:
    made = (Sources((b"s",), None, RECORD),)
    usable = Usable(2, "missing", 0, (("arena", 1), ("convert", 1)), made)
    costs = cost.Costs()
    costs.compute.observe(1000, 0.001)
    costs.load["arena"].observe(10**9, 0.001)
    costs.load["convert"].observe(1, 10.0)
    planned = restore.plan(usable, local_tokens=0, block_size=32, block_bytes=1, costs=costs)
    assert (planned.count, planned.sources, planned.refused) == (1, (), "convert")


def test_without_costs_everything_is_loaded() -> None:
    usable = Usable(3, "missing", 0, (("arena", 1), ("disk", 2)))
    planned = restore.plan(usable, local_tokens=32, block_size=32, block_bytes=1, costs=None)
    assert (planned.first, planned.count, planned.timeout_s) == (1, 2, None)
