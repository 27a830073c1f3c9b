"""Refill: hottest first, from the first source that is right; what a bad source does never reaches a routable slot."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from expert_world import Source, expert, geometry, manifest

from dynamo_gpu_ft.errors import SlotError, WeightsError
from dynamo_gpu_ft.experts.refill import Want, queue, refill, waves
from dynamo_gpu_ft.experts.rows import HostRows
from dynamo_gpu_ft.experts.sources import Manifest, NeedsSource
from dynamo_gpu_ft.experts.store import SlotStore

ALL = manifest(2, 8)


def wants(*numbers: int, layer: int = 0) -> list[Want]:
    return [Want(layer, slot, n, load=100 - slot) for slot, n in enumerate(numbers)]


def test_the_first_source_that_has_an_expert_gives_it() -> None:
    store, _ = SlotStore.in_memory(geometry())
    peer, host, disk = Source("peer", only={1}), Source("host", only={1, 2}), Source("disk")
    done = refill(store, wants(1, 2, 3), [peer, host, disk], ALL, epoch=1, deadline_s=10)
    assert done.complete
    assert store.routable(0) == (1, 2, 3)
    assert done.by_source == {"peer": 1, "host": 1, "disk": 1}
    assert [(p.source, p.expert) for p in done.passed] == [("peer", 2), ("peer", 3), ("host", 3)]
    assert done.bytes == 3 * store.geometry.expert_bytes


@pytest.mark.parametrize(
    ("fault", "says"),
    [("absent", "no such expert"), ("lying", "the manifest says"), ("short", "128 of 256 bytes"),
     ("broken", "ZeroDivisionError"), ("late", "overstayed")],
)  # fmt: skip
def test_a_bad_source_is_passed_over_with_its_reason(fault: str, says: str) -> None:
    store, rows = SlotStore.in_memory(geometry())
    bad, good = Source("bad", fault), Source("good")
    done = refill(store, wants(1, 2), [bad, good], ALL, epoch=1, deadline_s=10, per_source_s=0.05 if fault == "late" else 5)  # fmt: skip
    assert done.complete
    assert done.by_source == {"good": 2}
    assert says in done.passed[0].reason
    if fault == "late":
        assert bad.asked == [(0, 1)], "it is left out after it overstayed"
        bad.let_go.set()
        assert bad.wrote.wait(10), "and what it writes late"
    assert store.scrub() == [], "reaches no slot"
    assert bytes(rows.view(0, store.row_of(0)[0])) == bytes(expert(0, 1))


class Lender(Source):
    """Has three experts in memory and lends them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.held = {n: expert(0, n) for n in range(3)}

    def lend(self, layer: int, number: int, deadline_s: float) -> memoryview | None:
        found = self.held.get(number)
        return None if found is None else memoryview(found)


def test_a_source_may_lend_its_own_memory_and_nothing_is_copied_twice() -> None:
    store, rows = SlotStore.in_memory(geometry())
    lender = Lender("host")
    done = refill(store, wants(1, 2, 3), [lender], ALL, epoch=1, deadline_s=10)
    assert done.complete
    assert lender.asked == [(0, 3)], "what it does not lend it loads"
    lender.held[1][:] = bytes(256)
    assert bytes(rows.view(0, store.row_of(0)[0])) == bytes(expert(0, 1))


def test_lent_bytes_that_change_under_way_are_found_at_the_commit() -> None:
    shape, lender = geometry(), Lender("host")

    class Racing(HostRows):
        def write(self, layer: int, row: int, data: memoryview) -> None:
            lender.held[1][9] ^= 1
            super().write(layer, row, data)

    store = SlotStore(shape, Racing(bytearray(shape.payload_bytes), shape))
    done = refill(store, wants(1), [lender], ALL, epoch=1, deadline_s=10)
    assert "damaged" in done.left[0][1] or "manifest" in done.left[0][1]
    assert store.routable(0) == (-1, -1, -1)


def test_when_no_source_is_right_the_slot_stays_empty_and_every_reason_is_told() -> None:
    store, _ = SlotStore.in_memory(geometry())
    done = refill(
        store, wants(1), [Source("a", "lying"), Source("b", "short")], ALL, epoch=1, deadline_s=10
    )
    assert not done.complete
    assert store.routable(0) == (-1, -1, -1)
    [(want, why)] = done.left
    assert want.expert == 1
    assert "a: its bytes" in why
    assert "b: it gave" in why


def test_an_expert_that_the_manifest_lacks_is_never_filled() -> None:
    store, _ = SlotStore.in_memory(geometry())
    done = refill(store, wants(1), [Source("a")], Manifest({}), epoch=1, deadline_s=10)
    assert "the manifest lacks an expert" in done.left[0][1]
    assert store.routable(0) == (-1, -1, -1)


def test_the_hottest_come_first_and_ties_are_settled() -> None:
    given = [Want(1, 0, 4, 7), Want(0, 2, 5, 7), Want(0, 1, 3, 90), Want(0, 0, 5, 7)]
    assert queue(given) == [given[2], given[3], given[1], given[0]]
    assert queue(reversed(given)) == queue(given)
    assert waves(given, lambda _: 2) == [[given[2], given[3]], [given[1]], [given[0]]]


def test_without_spare_rows_only_the_slot_under_way_is_ever_empty() -> None:
    store, _ = SlotStore.in_memory(geometry(spare=0))
    refill(store, wants(1, 2, 3), [Source("a")], ALL, epoch=1, deadline_s=10)
    seen: list[tuple[int, ...]] = []
    done = refill(store, wants(4, 5, 6), [Source("a")], ALL, epoch=1, deadline_s=10,
                  committed=lambda _: seen.append(store.routable(0)))  # fmt: skip
    assert done.complete
    assert all(row.count(-1) <= 1 for row in seen)
    assert store.routable(0) == (4, 5, 6)


def test_with_a_spare_row_no_slot_is_ever_empty() -> None:
    store, _ = SlotStore.in_memory(geometry())
    refill(store, wants(1, 2, 3), [Source("a")], ALL, epoch=1, deadline_s=10)
    seen: list[tuple[int, ...]] = []
    refill(store, wants(4, 5, 6), [Source("a")], ALL, epoch=1, deadline_s=10,
           committed=lambda _: seen.append(store.routable(0)))  # fmt: skip
    assert len(seen) == 3
    assert all(-1 not in row for row in seen)


def test_a_second_loss_during_a_refill_ends_it_and_the_next_one_goes_on() -> None:
    store, _ = SlotStore.in_memory(geometry())
    commits = []

    def lost() -> bool:
        return len(commits) == 1

    first = refill(store, wants(1, layer=0) + wants(2, 3, layer=1), [Source("a")], ALL, epoch=1, deadline_s=10,
                   committed=commits.append, stop=lost)  # fmt: skip
    assert first.stopped == "stopped by the caller"
    assert len(first.left) == 2
    with pytest.raises(SlotError, match="stale epoch"):
        store.fence(2)
        refill(store, wants(1), [Source("a")], ALL, epoch=1, deadline_s=10)
    again = refill(
        store, wants(1, layer=0) + wants(2, 3, layer=1), [Source("a")], ALL, epoch=2, deadline_s=10
    )
    assert again.complete
    assert again.bytes == 2 * store.geometry.expert_bytes, "what was there is not brought again"


def test_a_newer_epoch_in_mid_refill_stops_it_before_its_commit() -> None:
    store, _ = SlotStore.in_memory(geometry())

    class Fencing(Source):
        def load(self, layer: int, number: int, into: memoryview, deadline_s: float) -> int:
            if number == 2:
                store.fence(9)
            return super().load(layer, number, into, deadline_s)

    done = refill(store, wants(1, 2, 3), [Fencing("a")], ALL, epoch=1, deadline_s=10)
    assert not done.complete
    assert store.epoch == 9
    assert 2 not in store.routable(0)
    assert all("stale epoch" in why for _, why in done.left)


def test_the_deadline_holds_even_when_every_source_hangs() -> None:
    store, _ = SlotStore.in_memory(geometry())
    sources = [Source("a", "late"), Source("b", "late")]
    began = time.monotonic()
    done = refill(store, wants(1, 2, 3), sources, ALL, epoch=1, deadline_s=0.3, per_source_s=0.1)
    assert time.monotonic() - began < 5
    assert len(done.left) == 3
    for source in sources:
        source.let_go.set()


@dataclass(frozen=True)
class Part:
    name: str

    def size(self, dtype: str) -> int:
        return {"F32": 128, "BF16": 64}[dtype]


class Weights:
    """Shaped like recovery's sources: needs and a sink."""

    name = "checkpoint"

    def __init__(self, dtype: str = "F32", leave_out: str = "") -> None:
        self._dtype, self._leave_out = dtype, leave_out

    def load(self, needs: list[Part], sink: object, deadline_s: float) -> None:
        for need in reversed(needs):  # any order is right
            if need.name == self._leave_out:
                continue
            layer, number, part = map(int, need.name.split("."))
            room = sink.room(need, self._dtype)  # type: ignore[attr-defined]
            room[:] = expert(layer, number)[part * 128 : part * 128 + len(room)]
            sink.filled(need, self._dtype)  # type: ignore[attr-defined]


def needs_of(layer: int, number: int) -> list[Part]:
    return [Part(f"{layer}.{number}.{part}") for part in (0, 1)]


def test_a_weight_source_of_the_recovery_fills_an_expert_tensor_by_tensor() -> None:
    store, _ = SlotStore.in_memory(geometry())
    source = NeedsSource(Weights(), needs_of, "F32")
    assert refill(store, wants(1, 2), [source], ALL, epoch=1, deadline_s=10).complete


@pytest.mark.parametrize(
    ("weights", "says"),
    [(Weights("BF16"), "another type"), (Weights(leave_out="0.1.1"), "left tensors out")],
)
def test_a_weight_source_of_another_type_or_with_gaps_is_passed_over(
    weights: Weights, says: str
) -> None:
    source = NeedsSource(weights, needs_of, "F32")
    with pytest.raises(WeightsError, match=says):
        source.load(0, 1, memoryview(bytearray(256)), 1.0)
