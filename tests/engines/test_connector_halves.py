"""The connector's two halves and its guard without an engine: orders per step, ends of requests, and our own failures."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.connector import GpuFtConnector
from dynamo_gpu_ft.engines.vllm.metadata import StepMetadata, WorkerReport
from dynamo_gpu_ft.engines.vllm.scheduler import RETRY_STEPS, SchedulerHalf
from dynamo_gpu_ft.engines.vllm.worker import WorkerHalf
from dynamo_gpu_ft.kv.blocks import Pin, Run, Sources, Usable
from dynamo_gpu_ft.kv.device import DeviceTier
from dynamo_gpu_ft.kv.prefix import Names
from dynamo_gpu_ft.kv.snapshot import Progress
from dynamo_gpu_ft.sim.tier import MemoryTier

pytestmark = [pytest.mark.engine]
BLOCK = 4


class Reader:
    """Says that `blocks` leading blocks are usable, `runs` of them from here and there."""

    def __init__(
        self,
        blocks: int,
        runs: tuple[tuple[str, int], ...] = (),
        sources: tuple[Sources, ...] = (),
    ) -> None:
        self.blocks, self.runs, self.sources = blocks, runs, sources
        self.broken = False

    def usable(self, names: Names, limit: int, tails: object = ()) -> Usable:
        if self.broken:
            raise RuntimeError("arena gone")
        count = min(self.blocks, len(names(BLOCK)[:limit]))
        return Usable(count, "missing", 0, self.runs, self.sources)


def request(name: str, tokens: int, *, computed: int = 0) -> Any:
    return SimpleNamespace(
        request_id=name,
        num_tokens=tokens,
        num_prompt_tokens=tokens,
        num_computed_tokens=computed,
        block_hashes=[f"{name}{i}".encode() for i in range(tokens // BLOCK)],
        skip_reading_prefix_cache=False,
    )


def pinned(name: str, asked: Any, tokens: int = 12) -> Any:
    made = request(name, tokens)
    made.kv_transfer_params = {"gpu_ft_pin": asked, "of_another_connector": 1}
    return made


def output(**scheduled: int) -> Any:
    """One step: `scheduled` tokens per request; request blocks are numbered from 100."""
    state = SimpleNamespace(get_block_ids=lambda _: (list(range(100, 120)),))
    return SimpleNamespace(
        num_scheduled_tokens=scheduled, preempted_req_ids=None, kv_connector_block_state=state
    )


def half(blocks: int = 0, *, decode: bool = True, reader: Reader | None = None) -> SchedulerHalf:
    return SchedulerHalf(
        reader or Reader(blocks),
        block_size=BLOCK,
        block_bytes=100,
        snapshot=True,
        decode=decode,
        pin_ttl_s=50.0,
    )


def test_a_step_stores_the_blocks_it_completes_and_no_block_twice() -> None:
    scheduler, req = half(), request("a", 10)
    scheduler.allocated(req, [100, 101, 102], 0)
    first = scheduler.build(output(a=6), None)
    assert [(r.first, r.block_ids, r.block_hashes) for r in first.stores] == [(0, (100,), (b"a0",))]
    req.num_computed_tokens = 6
    second = scheduler.build(output(a=4), None)
    assert [(r.first, r.parent_hash) for r in second.stores] == [(1, b"a0")]
    assert scheduler.build(output(a=0), None).stores == []


def test_a_usable_prefix_is_loaded_behind_the_local_hit() -> None:
    scheduler, req = half(blocks=3), request("a", 20)
    assert scheduler.matched_tokens(req, 4) == (8, True)
    assert scheduler.matched_tokens(req, 4) == (8, True)
    scheduler.allocated(req, [100, 101, 102, 103], 8)
    (run,) = scheduler.build(output(), None).loads
    assert (run.first, run.block_ids, run.parent_hash) == (1, (101, 102), b"a0")


def test_nothing_is_loaded_when_the_engine_has_as_much_or_may_not_read_caches() -> None:
    assert half(blocks=2).matched_tokens(request("a", 20), 8) == (0, False)
    assert half(blocks=5).matched_tokens(request("a", 20), 3) == (0, False)
    private = request("a", 20)
    private.skip_reading_prefix_cache = True
    assert half(blocks=5).matched_tokens(private, 0) == (0, False)


def test_one_token_is_always_left_to_compute() -> None:
    assert half(blocks=99).matched_tokens(request("a", 8), 0) == (4, True)


def test_an_ended_request_waits_for_its_copies_only_if_it_has_any() -> None:
    scheduler, req = half(), request("a", 10)
    scheduler.allocated(req, [100, 101], 0)
    assert scheduler.ended(req) is False
    scheduler.allocated(req, [100, 101], 0)
    scheduler.build(output(a=8), None)
    assert scheduler.ended(req) is True
    assert scheduler.build(output(), None).finished == ["a"]


def test_a_request_that_ends_while_loading_is_not_held_twice() -> None:
    scheduler, req = half(blocks=2), request("a", 20)
    scheduler.allocated(req, [100, 101], 0)
    scheduler.build(output(a=8), None)
    scheduler.matched_tokens(req, 0)
    scheduler.allocated(req, [100, 101], 8)
    assert scheduler.ended(req) is False
    step = scheduler.build(output(), None)
    assert (step.finished, step.released) == ([], ["a"])


def test_blocks_that_could_not_be_stored_are_tried_again_later() -> None:
    scheduler, req = half(), request("a", 40)
    scheduler.allocated(req, [], 0)
    scheduler.build(output(a=12), None)
    scheduler.reported(WorkerReport({"a": 1}), [])
    req.num_computed_tokens = 12
    steps = [scheduler.build(output(a=0), None) for _ in range(RETRY_STEPS + 1)]
    assert [s.stores for s in steps[: RETRY_STEPS - 1]] == [[]] * (RETRY_STEPS - 1)
    assert [(r.first, len(r.block_ids)) for s in steps for r in s.stores] == [(1, 2)]


def test_gaps_of_all_ranks_are_merged_to_the_earliest() -> None:
    merged = WorkerReport({"a": 3, "b": 1}).aggregate(WorkerReport({"a": 2, "c": 9}))
    assert isinstance(merged, WorkerReport)
    assert merged.gaps == {"a": 2, "b": 1, "c": 9}


def test_blocks_the_engine_had_are_asked_for_as_well_so_that_the_arena_sees_their_second_use() -> (
    None
):
    scheduler, req = half(), request("a", 16, computed=8)
    assert scheduler.matched_tokens(req, 8) == (0, False)
    scheduler.allocated(req, [100, 101, 102, 103], 0)
    (run,) = scheduler.build(output(a=8), None).stores
    assert (run.first, len(run.block_ids)) == (0, 4)


@pytest.mark.parametrize(("asked", "seconds"), [(True, 50.0), (7, 7.0), (0.5, 0.5)])
def test_a_request_that_asks_for_it_is_pinned_when_it_ends(asked: Any, seconds: float) -> None:
    scheduler = half()
    scheduler.allocated(req := pinned("a", asked), [100, 101, 102], 0)
    assert scheduler.build(output(a=9), None).pins == []
    before = time.time()
    assert scheduler.ended(req) is True
    step = scheduler.build(output(), None)
    (pin,) = step.pins
    assert (pin.request_id, pin.block_hashes) == ("a", (b"a0", b"a1"))
    assert before + seconds <= pin.until <= time.time() + seconds + 1
    assert step.finished == ["a"]
    assert scheduler.build(output(), None).pins == []


def test_vllms_own_protocol_hands_the_wish_through_to_the_request() -> None:
    protocol = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    from vllm.v1.request import Request

    said = {"gpu_ft_pin": 30}
    asked = protocol.CompletionRequest(model="m", prompt="x", kv_transfer_params=said)
    params = asked.to_sampling_params(16, {})
    made = Request("a", [1, 2, 3], params, None)
    assert made.kv_transfer_params == said


def test_a_request_can_end_a_pin_and_nonsense_is_refused() -> None:
    scheduler, pins = half(), []
    for name, asked in (("a", False), ("b", "long"), ("c", -1), ("d", float("inf")), ("e", None)):
        scheduler.allocated(req := pinned(name, asked), [100, 101, 102], 0)
        scheduler.build(output(**{name: 12}), None)
        scheduler.ended(req)
        pins += scheduler.build(output(), None).pins
    assert [(p.request_id, p.until) for p in pins] == [("a", 0)]


def test_a_disk_that_proved_slower_than_computing_is_left_out() -> None:
    scheduler, req = half(reader=Reader(4, (("arena", 2), ("disk", 2)))), request("a", 20)
    assert scheduler.matched_tokens(req, 0) == (16, True)
    report = WorkerReport({}, [("arena", 1000, 0.001), ("disk", 1000, 1.0)], [(100, 0.1)])
    scheduler.reported(report, [])
    assert scheduler.matched_tokens(req, 0) == (8, True)
    scheduler.allocated(req, [100, 101], 8)
    (run,) = scheduler.build(output(), None).loads
    assert run.timeout_s == 1.0, "computing 8 tokens takes 8 ms: a load gets no more than the floor"


def test_blocks_of_another_layout_carry_what_they_are_made_of() -> None:
    made_of = tuple(Sources((b"s%d" % i,), None, b"record") for i in (1, 2))
    reader = Reader(3, (("arena", 1), ("convert", 2)), made_of)
    scheduler, req = half(reader=reader), request("a", 20)
    assert scheduler.matched_tokens(req, 0) == (12, True)
    scheduler.allocated(req, [100, 101, 102], 12)
    (run,) = scheduler.build(output(), None).loads
    assert run.sources == (None, *made_of)
    assert [ref.sources for ref in run.refs()] == [None, *made_of]


def test_reports_of_all_ranks_are_merged() -> None:
    one = WorkerReport({"a": 3, "b": 1}, [("disk", 5, 1.0)], [(64, 0.5)])
    merged = one.aggregate(WorkerReport({"a": 2}, [("arena", 6, 2.0)], []))
    assert isinstance(merged, WorkerReport)
    assert merged.moved == [("disk", 5, 1.0), ("arena", 6, 2.0)]
    assert merged.prefills == [(64, 0.5)]


def connector(scheduler: SchedulerHalf | None = None, worker: WorkerHalf | None = None) -> Any:
    """A connector with given halves, made without vLLM's configuration."""
    made = GpuFtConnector.__new__(GpuFtConnector)
    made._scheduler, made._worker = scheduler, worker
    made._identity = SimpleNamespace(block_size=BLOCK)
    made._config, made._progress, made._lost = Config(), Progress(), []
    made.not_protected = None
    made._kv_cache_manager = made._shelves = None
    made._connector_metadata = None
    return made


def blocks_of(ids: list[int]) -> Any:
    return SimpleNamespace(get_block_ids=lambda: (ids,))


def test_a_failing_look_up_ends_protection_and_the_engine_computes() -> None:
    reader = Reader(3)
    made = connector(half(reader=reader))
    reader.broken = True
    assert made.get_num_new_matched_tokens(request("a", 20), 0) == (0, False)
    assert "arena gone" in made.not_protected
    assert made.get_num_new_matched_tokens(request("a", 20), 0) == (0, False)
    assert made.request_finished(request("a", 20), []) == (False, None)


def test_a_load_promised_before_our_failure_is_answered_as_lost() -> None:
    scheduler = half(blocks=3)
    made = connector(scheduler)
    req = request("a", 20)
    assert made.get_num_new_matched_tokens(req, 0) == (12, True)
    scheduler.allocated = None  # type: ignore[assignment, method-assign]
    made.update_state_after_alloc(req, blocks_of([7, 8, 9]), 12)
    step = made.build_connector_meta(output())
    worker = connector()
    worker.bind_connector_metadata(step)
    worker.start_load_kv(None)
    assert worker.get_finished(set()) == (None, {"a"})
    assert worker.get_block_ids_with_load_errors() == {7, 8, 9}


def test_an_unprotected_worker_still_answers_everything_vllm_waits_for() -> None:
    worker = connector()
    load = Run("b", 0, (1, 2), (b"x", b"y"), None)
    worker.bind_connector_metadata(StepMetadata(loads=[load], finished=["a"]))
    worker.handle_preemptions(StepMetadata(preempted=["a"]))
    worker.start_load_kv(None)
    worker.wait_for_save()
    assert worker.get_finished(set()) == ({"a"}, {"b"})
    assert worker.get_block_ids_with_load_errors() == {1, 2}
    assert worker.build_connector_worker_meta() is None
    assert worker.get_finished(set()) == (None, None)


def worker_half() -> tuple[WorkerHalf, MemoryTier]:
    tier = MemoryTier(8, lambda _: bytes(8), lambda *_: None)
    return WorkerHalf(tier, Config(), BLOCK), tier


def test_a_worker_that_fails_in_the_middle_gives_up_what_is_under_way() -> None:
    made, tier = worker_half()
    worker = connector(worker=made)
    worker.bind_connector_metadata(
        StepMetadata(
            loads=[Run("b", 0, (1,), (b"x",), None)],
            stores=[Run("a", 0, (5,), (b"a",), None)],
            finished=["a"],
        )
    )
    worker.start_load_kv(None)
    worker.wait_for_save()
    tier.poll = None  # type: ignore[assignment, method-assign]
    assert worker.get_finished(set()) == ({"a"}, {"b"})
    assert worker.get_block_ids_with_load_errors() == {1}
    assert worker.not_protected is not None


def test_a_worker_pins_before_the_request_lets_go_and_counts_refusals() -> None:
    made, tier = worker_half()
    tier.most_pinned = 1
    store = StepMetadata(
        stores=[Run("a", 0, (1, 2), (b"x", b"y"), None)],
        pins=[Pin("a", (b"x",), 99), Pin("a", (b"x", b"y"), 99)],
        finished=["a"],
    )
    made.after_step(store)
    order: list[str] = []
    tier._finish, finish = (
        lambda kind, *rest: (order.append(kind), finish(kind, *rest)),
        tier._finish,
    )
    tier.wait(0)
    assert order == ["store", "pin", "pin"]
    assert tier.pins == {b"x": 99}
    assert made.poll().sent == {"a"}
    assert made._refusals == {"full"}
    assert made._queue.idle


def test_a_fenced_worker_says_so_and_stops() -> None:
    made, tier = worker_half()
    worker = connector(worker=made)
    tier._store_one = lambda block: "fenced"  # type: ignore[method-assign]
    worker.bind_connector_metadata(StepMetadata(stores=[Run("a", 0, (5,), (b"a",), None)]))
    worker.wait_for_save()
    tier.wait(0)
    worker.get_finished(set())
    worker.get_finished(set())
    assert "taken this arena over" in worker.not_protected


def test_a_reset_of_the_engines_caches_ends_protection() -> None:
    made = connector(half(blocks=3))
    assert made.reset_cache() is True
    assert "weights" in made.not_protected
    assert made.get_num_new_matched_tokens(request("a", 20), 0) == (0, False)
    assert made.build_connector_meta(output(a=8)).stores == []


def test_a_device_tier_hears_how_long_steps_take_but_not_of_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[float] = []

    class Hearing(DeviceTier):
        def __init__(self) -> None:
            self.block_bytes = 8

        def step(self, seconds: float) -> None:
            heard.append(round(seconds, 3))

    clock = iter([100.0, 100.02, 100.05, 107.0, 107.03])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    half = WorkerHalf(Hearing(), Config(), BLOCK)
    for _ in range(5):
        half.before_step(StepMetadata())
    monkeypatch.undo()
    assert heard == [0.02, 0.03, 0.03]


def test_the_time_of_a_pass_counts_from_before_it_also_when_loads_begin_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half, _ = worker_half()
    step = StepMetadata(prefill_tokens=64)
    clock = iter([10.0, 10.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    half.before_step(step)
    # The pass happens here; vLLM starts asynchronous loads when it is over.
    half.start_loads(step)
    half.after_step(step)
    monkeypatch.undo()
    report = half.report({})
    assert report is not None
    assert report.prefills == [(64, 0.5)]
