"""Orders for tails without an engine: when one is stored and for which tokens, when it is loaded, and how its request ends."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
from dynamo_gpu_ft.engines.vllm.metadata import WorkerReport
from dynamo_gpu_ft.engines.vllm.scheduler import SchedulerHalf
from dynamo_gpu_ft.kv.blocks import Run, Usable
from dynamo_gpu_ft.kv.prefix import Names
from dynamo_gpu_ft.kv.tail import Tail, name_of

pytestmark = [pytest.mark.engine]
BLOCK = 4


class Reader:
    """Has every whole block and the tails it is told of."""

    def __init__(self) -> None:
        self.tails: set[bytes] = set()

    def usable(self, names: Names, limit: int, tails: Iterable[Tail] = ()) -> Usable:
        for tail in tails:
            if tail.name in self.tails:
                return Usable(limit + 1, "complete", tail=tail)
        return Usable(limit, "complete")


def request(name: str, known: int, *, computed: int = 0, **more: Any) -> Any:
    made = SimpleNamespace(
        request_id=name,
        num_prompt_tokens=known,
        num_computed_tokens=computed,
        skip_reading_prefix_cache=False,
        all_token_ids=[],
        block_hashes=[],
        num_tokens=0,
        **more,
    )
    grow(made, known)
    return made


def grow(req: Any, count: int) -> None:
    """The engine accepts `count` more tokens."""
    req.all_token_ids += range(1000 + len(req.all_token_ids), 1000 + len(req.all_token_ids) + count)
    req.num_tokens = len(req.all_token_ids)
    whole = req.num_tokens // BLOCK
    req.block_hashes = [f"{req.request_id}{i}".encode() for i in range(whole)]


def output(**scheduled: int) -> Any:
    state = SimpleNamespace(get_block_ids=lambda _: (list(range(100, 120)),))
    return SimpleNamespace(
        num_scheduled_tokens=scheduled, preempted_req_ids=None, kv_connector_block_state=state
    )


def half(every: int = 1, *, decode: bool = True, reader: Reader | None = None) -> SchedulerHalf:
    return SchedulerHalf(
        reader or Reader(),
        block_size=BLOCK,
        block_bytes=100,
        snapshot=True,
        decode=decode,
        tail_every=every,
    )


def step(scheduler: SchedulerHalf, req: Any, scheduled: int, accepted: int = 0) -> list[Run]:
    """One step: its orders; then the engine counts, and accepts `accepted` tokens."""
    orders = scheduler.build(output(**{req.request_id: scheduled}), None).stores
    req.num_computed_tokens += scheduled
    grow(req, accepted)
    return orders


def started(scheduler: SchedulerHalf, req: Any) -> Any:
    scheduler.allocated(req, [100, 101, 102], 0)
    return req


def covered(orders: list[Run]) -> list[tuple[int, int]]:
    return [(run.first, run.tail) for run in orders]


def test_every_step_stores_the_open_block_behind_the_whole_ones() -> None:
    scheduler = half()
    req = started(scheduler, request("a", 6))
    whole, tail = step(scheduler, req, 6, accepted=1)
    assert (whole.block_hashes, whole.tail) == ((b"a0",), 0)
    assert (tail.first, tail.block_ids, tail.parent_hash, tail.tail) == (1, (101,), b"a0", 2)
    assert tail.block_hashes == (name_of(b"a0", [1004, 1005]),)
    assert [ref.tail for ref in tail.refs()] == [True]
    assert covered(step(scheduler, req, 1, accepted=1)) == [(1, 3)]
    assert covered(step(scheduler, req, 1, accepted=1)) == [(1, 0)], "the block is whole now"
    assert covered(step(scheduler, req, 1, accepted=1)) == [(2, 1)]


def test_a_tail_covers_multiples_only_also_when_a_step_jumps_over_them() -> None:
    scheduler = half(2)
    req = started(scheduler, request("a", 5))
    assert covered(step(scheduler, req, 5, accepted=1)) == [(0, 0)]
    assert covered(step(scheduler, req, 1, accepted=1)) == [(1, 2)]
    assert step(scheduler, req, 1, accepted=1) == [], "three tokens, and two are stored"
    scheduler = half(2)
    req = started(scheduler, request("c", 7))
    assert covered(step(scheduler, req, 7)) == [(0, 0), (1, 2)]


def test_tokens_the_engine_has_not_accepted_are_not_named() -> None:
    scheduler = half()
    req = started(scheduler, request("a", 5))
    step(scheduler, req, 5)
    # Asynchronous scheduling: the next step is planned before the token it begins with is known.
    assert step(scheduler, req, 1, accepted=1) == []
    (tail,) = step(scheduler, req, 1)
    assert tail.block_hashes == (name_of(b"a0", [1004, 1005]),)
    # Drafts: three of them may be rejected.
    grow(req, 1)
    (tail,) = step(scheduler, req, 4)
    assert tail.block_hashes == (name_of(b"a0", [1004, 1005, 1006]),)


def test_nothing_is_ordered_when_it_is_off_or_for_prompts_alone() -> None:
    for scheduler in (half(0), half(decode=False)):
        req = started(scheduler, request("a", 6))
        assert covered(step(scheduler, req, 6)) == [(0, 0)]


@pytest.mark.parametrize("more", ["lora_request", "mm_features", "cache_salt", "prompt_embeds"])
def test_a_request_whose_tokens_do_not_say_all_has_no_tails(more: str) -> None:
    reader = Reader()
    scheduler = half(reader=reader)
    req = started(scheduler, request("a", 6, **{more: ["something"]}))
    assert covered(step(scheduler, req, 6)) == [(0, 0)]
    reader.tails = {name_of(b"a0", [1004])}
    assert scheduler.matched_tokens(req, 0) == (4, True)


def test_a_block_that_must_be_tried_again_has_no_tail_behind_it() -> None:
    scheduler = half()
    req = started(scheduler, request("a", 6))
    step(scheduler, req, 6, accepted=1)
    scheduler.reported(WorkerReport({"a": 0}), [])
    assert step(scheduler, req, 1, accepted=1) == []


def test_a_tail_is_loaded_behind_the_whole_blocks_and_the_next_one_is_longer() -> None:
    reader = Reader()
    scheduler, req = half(reader=reader), request("a", 11)
    reader.tails = {name_of(b"a1", [1008]), name_of(b"a1", [1008, 1009])}
    assert scheduler.matched_tokens(req, 0) == (10, True)
    scheduler.allocated(req, [100, 101, 102], 10)
    (run,) = scheduler.build(output(), None).loads
    assert run.block_ids == (100, 101, 102)
    assert run.block_hashes == (b"a0", b"a1", name_of(b"a1", [1008, 1009]))
    assert (run.tail, run.parent_hash) == (2, None)
    req.num_computed_tokens = 10
    assert covered(step(scheduler, req, 1, accepted=1)) == [(0, 0), (2, 3)]


def test_a_tail_is_loaded_alone_when_the_engine_has_the_whole_blocks() -> None:
    reader = Reader()
    scheduler, req = half(reader=reader), request("a", 10)
    assert scheduler.matched_tokens(req, 8) == (0, False)
    reader.tails = {name_of(b"a1", [1008])}
    assert scheduler.matched_tokens(req, 8) == (1, True)
    scheduler.allocated(req, [100, 101, 102], 1)
    (run,) = scheduler.build(output(), None).loads
    assert (run.first, run.block_ids, run.parent_hash, run.tail) == (2, (102,), b"a1", 1)


def test_an_engine_that_takes_only_whole_blocks_gets_no_tail() -> None:
    reader = Reader()
    scheduler, req = half(reader=reader), request("a", 11)
    reader.tails = {name_of(b"a1", [1008, 1009])}
    assert scheduler.matched_tokens(req, 0) == (10, True)
    scheduler.allocated(req, [100, 101, 102], 8)
    (run,) = scheduler.build(output(), None).loads
    assert (run.block_hashes, run.tail) == ((b"a0", b"a1"), 0)


def test_a_block_that_is_whole_by_now_is_loaded_under_its_own_name() -> None:
    reader = Reader()
    scheduler, req = half(reader=reader), request("a", 8)
    reader.tails = {b"a1"}
    assert scheduler.matched_tokens(req, 0) == (7, True)
    scheduler.allocated(req, [100, 101], 7)
    (run,) = scheduler.build(output(), None).loads
    assert (run.block_hashes, run.tail) == ((b"a0", b"a1"), 0), "nobody may drop it as a tail"


def test_a_request_with_nothing_but_a_tail_waits_for_its_copy_and_pins_nothing() -> None:
    scheduler = half()
    req = started(scheduler, request("a", 2, kv_transfer_params={"gpu_ft_pin": True}))
    assert covered(step(scheduler, req, 2)) == [(0, 2)]
    assert scheduler.ended(req) is True
    last = scheduler.build(output(), None)
    assert (last.finished, last.pins) == (["a"], [])


def test_a_preempted_request_does_not_store_shorter_tails_again() -> None:
    scheduler = half()
    req = started(scheduler, request("a", 7))
    assert covered(step(scheduler, req, 7)) == [(0, 0), (1, 3)]
    req.num_computed_tokens = 0
    assert step(scheduler, req, 5) == []
    assert step(scheduler, req, 2, accepted=2) == []
    assert covered(step(scheduler, req, 2)) == [(1, 0), (2, 1)]


def test_blocks_whose_copy_a_preemption_called_off_are_asked_for_as_soon_as_they_are_computed_again() -> (
    None
):
    scheduler = half()
    req = started(scheduler, request("a", 6))
    step(scheduler, req, 6, accepted=1)
    gone = output()
    gone.preempted_req_ids = {"a"}
    scheduler.build(gone, None)
    req.num_computed_tokens = 0
    scheduler.reported(WorkerReport({"a": 0}), [])
    assert covered(step(scheduler, req, 7, accepted=1)) == [(0, 0), (1, 3)]


def test_a_request_whose_blocks_are_all_to_be_tried_again_still_ends_at_the_workers() -> None:
    scheduler = half(0)
    req = started(scheduler, request("a", 6))
    assert covered(step(scheduler, req, 6, accepted=1)) == [(0, 0)]
    scheduler.reported(WorkerReport({"a": 0}), [])
    assert scheduler.ended(req) is True, "copies of it may be under way, and its holds must go"
    assert scheduler.build(output(), None).finished == ["a"]
