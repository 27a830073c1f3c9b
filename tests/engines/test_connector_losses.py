"""The connector when ranks of its group are lost: garbage is never stored, orders are given again, blocks come back verified."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")
from test_connector_halves import blocks_of, connector, half, output, request, worker_half

from dynamo_gpu_ft.engines.vllm.metadata import StepMetadata
from dynamo_gpu_ft.engines.vllm.steps import lost_step
from dynamo_gpu_ft.kv.blocks import Run

pytestmark = [pytest.mark.engine]


@pytest.fixture(autouse=True)
def no_step_is_lost() -> Iterator[None]:
    yield
    lost_step.clear()


def stored(name: str, *blocks: int) -> Run:
    hashes = tuple(f"{name}{i}".encode() for i in range(len(blocks)))
    return Run(name, 0, blocks, hashes, None)


def test_what_a_lost_step_computed_is_not_stored_under_the_names_it_should_have_had() -> None:
    made, tier = worker_half()
    worker = connector(worker=made)
    worker.bind_connector_metadata(StepMetadata(stores=[stored("a", 5, 6)]))
    lost_step.set()
    worker.wait_for_save()
    tier.wait(1.0)
    assert tier.blocks == {}
    report = worker.build_connector_worker_meta()
    assert report is not None
    assert report.gaps == {"a": 0}, "it is asked for again"


def test_nor_is_what_a_failed_step_computed_for_which_vllm_calls_all_the_same() -> None:
    made, tier = worker_half()
    worker = connector(worker=made)
    worker.bind_connector_metadata(StepMetadata(stores=[stored("a", 5)]))
    try:
        raise RuntimeError("Connection closed by peer")
    except RuntimeError:
        worker.wait_for_save()
    tier.wait(1.0)
    assert tier.blocks == {}
    worker.wait_for_save()
    tier.wait(1.0)
    assert list(tier.blocks) == [b"a0"], "a step that did not fail is stored"


def test_blocks_are_asked_for_again_and_nothing_waits_for_a_rank_that_is_gone() -> None:
    scheduler, running, ended = half(blocks=3), request("a", 8), request("b", 20)
    scheduler.allocated(running, [100, 101], 0)
    assert len(scheduler.build(output(a=8), None).stores) == 1
    assert scheduler.matched_tokens(ended, 0) == (12, True)
    scheduler.allocated(ended, [100, 101, 102], 12)
    made = connector(scheduler)
    made.members_lost()
    step = scheduler.build(output(a=8), None)
    assert [run.block_ids for run in step.stores] == [(100, 101)]
    assert (step.loads, step.finished, step.released) == ([], [], [])


def test_a_lost_shard_gets_back_what_verifies_and_says_no_more_than_that() -> None:
    made, tier = worker_half()
    worker = connector(worker=made)
    worker.bind_connector_metadata(StepMetadata(stores=[stored("a", 5, 6, 7), stored("b", 8)]))
    worker.wait_for_save()
    tier.wait(1.0)
    made.poll()
    tier.damaged.add(b"a1")
    runs = [stored("a", 5, 6, 7), stored("b", 8), stored("c", 9)]
    assert worker.refill(runs, 5.0) == [5, 8], "up to the damage, and nothing that was never there"


def test_only_open_requests_keep_their_hold_on_blocks() -> None:
    made, tier = worker_half()
    worker = connector(worker=made)
    worker.bind_connector_metadata(StepMetadata(stores=[stored("a", 5), stored("b", 8)]))
    worker.wait_for_save()
    tier.wait(1.0)
    held = dict(tier.holds)
    worker.forget({"a"})
    tier.wait(1.0)
    assert tier.holds[b"a0"] == held.get(b"a0", 0)
    assert tier.holds[b"b0"] == held.get(b"b0", 0) - 1


def test_loads_that_were_planned_before_are_forgotten() -> None:
    scheduler = half(blocks=3)
    made = connector(scheduler)
    req = request("a", 20)
    assert made.get_num_new_matched_tokens(req, 0) == (12, True)
    made.update_state_after_alloc(req, blocks_of([7, 8, 9]), 12)
    made.members_lost()
    assert made.build_connector_meta(output()).loads == []
