"""What is snapshotted and what is dropped: examples, and properties of the drop choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.kv import policy
from dynamo_gpu_ft.kv.blocks import PendingStore, Usable, make_run
from dynamo_gpu_ft.kv.policy import blocks_to_store, choose_drops, restorable_blocks
from dynamo_gpu_ft.kv.restore import outcome, plan
from dynamo_gpu_ft.kv.tail import Tail


def wanted(**changes: object) -> range:
    base = {
        "stored": 0,
        "computed_tokens": 100,
        "block_size": 32,
        "hashed_blocks": 10,
        "prompt_blocks": 2,
        "decode": True,
    }
    return blocks_to_store(**{**base, **changes})  # type: ignore[arg-type]


def test_only_complete_blocks_are_stored() -> None:
    assert wanted() == range(0, 3)
    assert wanted(computed_tokens=31) == range(0, 0)


def test_a_block_the_engine_has_not_hashed_is_not_stored() -> None:
    assert wanted(hashed_blocks=1) == range(0, 1)


def test_blocks_asked_for_before_are_not_asked_for_again() -> None:
    assert wanted(stored=3) == range(3, 3)
    assert not wanted(stored=5)


def test_without_decode_only_prompt_blocks_are_stored() -> None:
    assert wanted(decode=False) == range(0, 2)


def test_a_restore_leaves_one_token_to_compute() -> None:
    assert restorable_blocks(num_tokens=64, block_size=32, hashed_blocks=2) == 1
    assert restorable_blocks(num_tokens=65, block_size=32, hashed_blocks=2) == 2
    assert restorable_blocks(num_tokens=0, block_size=32, hashed_blocks=0) == 0


def pending(job_id: int, size: int, *, is_open: bool, first: int = 0) -> PendingStore:
    return PendingStore(job_id, f"r{job_id}", first, (job_id,), size, is_open, job_id)


def test_nothing_is_dropped_while_the_backlog_fits() -> None:
    assert choose_drops([pending(1, 10, is_open=False)], incoming_bytes=5, limit_bytes=15) == []


def test_finished_requests_are_dropped_before_open_ones_and_oldest_first() -> None:
    jobs = [
        pending(1, 10, is_open=True),
        pending(2, 10, is_open=False),
        pending(3, 10, is_open=False),
    ]
    assert choose_drops(jobs, incoming_bytes=10, limit_bytes=30) == [2]
    assert choose_drops(jobs, incoming_bytes=10, limit_bytes=20) == [2, 3]


def test_of_open_requests_the_latest_blocks_go_first_so_that_prefixes_stay_whole() -> None:
    jobs = [
        PendingStore(1, "a", 0, (1,), 10, True, 1),
        PendingStore(2, "a", 1, (2,), 10, True, 2),
    ]
    assert choose_drops(jobs, incoming_bytes=10, limit_bytes=20) == [2]


def test_tails_are_dropped_before_anything_else_and_oldest_first() -> None:
    jobs = [
        pending(1, 10, is_open=False),
        PendingStore(2, "a", 3, (2,), 10, True, 2, Tail(b"t", 1)),
        PendingStore(3, "b", 3, (3,), 10, True, 3, Tail(b"u", 1)),
    ]
    assert choose_drops(jobs, incoming_bytes=10, limit_bytes=30) == [2]
    assert choose_drops(jobs, incoming_bytes=20, limit_bytes=20) == [2, 3, 1]


sizes = st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=20)


@given(sizes, st.integers(0, 300), st.integers(0, 500))
def test_drops_make_room_or_everything_is_dropped(
    jobs: list[tuple[int, bool]], incoming: int, limit: int
) -> None:
    backlog = [pending(i + 1, s, is_open=o) for i, (s, o) in enumerate(jobs)]
    drops = choose_drops(backlog, incoming_bytes=incoming, limit_bytes=limit)
    left = sum(j.bytes for j in backlog if j.job_id not in drops)
    assert len(set(drops)) == len(drops)
    assert left + incoming <= limit or len(drops) == len(backlog)
    if drops:  # never one more than needed
        last = next(j for j in backlog if j.job_id == drops[-1])
        assert left + last.bytes + incoming > limit


def test_a_run_names_its_parent_and_its_blocks_in_order() -> None:
    run = make_run("r", 1, [7, 8], [b"a", b"b", b"c", b"d"])
    assert [(r.block_id, r.block_hash, r.parent_hash, r.position) for r in run.refs()] == [
        (7, b"b", b"a", 1),
        (8, b"c", b"b", 2),
    ]
    assert make_run("r", 0, [7], [b"a"]).refs()[0].parent_hash is None


def test_a_restore_starts_after_what_the_engine_has() -> None:
    def planned(local_tokens: int) -> tuple[int, int]:
        usable = Usable(5, "missing", 1)
        made = plan(usable, local_tokens=local_tokens, block_size=32, block_bytes=1, costs=None)
        return made.first, made.count

    assert planned(64) == (2, 3)
    assert planned(192) == (6, 0)


def test_everything_from_the_first_bad_block_on_is_bad() -> None:
    answer = outcome([4, 5, 6], ["ok", "digest", "chain"])
    assert (answer.restored, answer.bad_block_ids, answer.reason) == (1, (5, 6), "digest")
    assert outcome([4, 5], ["ok", "ok"]).reason == "complete"
    assert outcome([4, 5], ["ok"]).bad_block_ids == (5,)


def test_a_pin_ends_when_the_request_says_or_by_default() -> None:
    assert policy.pin_until(True, now=100.5, ttl_s=10) == 111
    assert policy.pin_until(True, now=100.5, ttl_s=0) == policy.UNTIL_UNPINNED
    assert policy.pin_until(2.5, now=100.5, ttl_s=10) == 103
    assert policy.pin_until(1e30, now=100.5, ttl_s=10) == policy.UNTIL_UNPINNED - 1
    assert policy.pin_until(False, now=100.5, ttl_s=10) == 0
    for nonsense in (0, -1, "yes", float("nan"), float("inf"), [], {}):
        with pytest.raises(ValueError, match="seconds above 0"):
            policy.pin_until(nonsense, now=100.5, ttl_s=10)
