"""Expert slots: routable only while tag and map agree, two phases per layer, a torn record is an absent one."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path

import pytest
from expert_world import BYTES, digest, expert, geometry

from dynamo_gpu_ft.errors import SlotError
from dynamo_gpu_ft.experts import records
from dynamo_gpu_ft.experts.records import Entry, Image, Tag
from dynamo_gpu_ft.experts.store import SlotStore


def put(store: SlotStore, layer: int, slot: int, number: int, epoch: int = 1) -> int:
    data = expert(layer, number)
    return store.land(layer, slot, number, memoryview(data), digest(data), epoch)


def test_what_has_landed_is_not_routable_before_its_commit() -> None:
    store, rows = SlotStore.in_memory(geometry())
    row = put(store, 0, 1, 7)
    assert store.routable(0) == (-1, -1, -1)
    assert store.staged(0) == {1: 7}
    done = store.commit(0, 1)
    assert (done.changed, done.damaged) == ({1: 7}, ())
    assert store.routable(0) == (-1, 7, -1)
    assert store.row_of(0) == (-1, row, -1)
    assert store.find(0, 7) == row
    assert bytes(rows.view(0, row)) == bytes(expert(0, 7))
    assert store.routable(1) == (-1, -1, -1)


def test_an_expert_is_replaced_without_a_gap_while_a_row_is_free() -> None:
    store, _ = SlotStore.in_memory(geometry())
    for slot in range(3):
        put(store, 0, slot, slot)
        store.commit(0, 1)
    put(store, 0, 0, 9)
    assert store.routable(0) == (0, 1, 2), "the former expert serves until the swap"
    assert store.free_rows(0) == []
    with pytest.raises(SlotError, match="no row is free.*retire the slot"):
        put(store, 0, 1, 8)
    store.commit(0, 1)
    assert store.routable(0) == (9, 1, 2)
    assert len(store.free_rows(0)) == 1


def test_without_a_spare_row_a_slot_is_retired_first() -> None:
    store, _ = SlotStore.in_memory(geometry(spare=0))
    for slot in range(3):
        put(store, 0, slot, slot)
    store.commit(0, 1)
    store.retire(0, 2, 1)
    assert store.routable(0) == (0, 1, 2)
    store.commit(0, 1)
    put(store, 0, 2, 5)
    assert store.routable(0) == (0, 1, -1)
    store.commit(0, 1)
    assert store.routable(0) == (0, 1, 5)


def test_a_row_that_is_damaged_between_landing_and_commit_stays_out() -> None:
    store, rows = SlotStore.in_memory(geometry())
    put(store, 0, 0, 3)
    store.commit(0, 1)
    row = put(store, 0, 0, 4)
    rows.view(0, row)[5] ^= 0x10
    done = store.commit(0, 1)
    assert done.damaged == (0,)
    assert store.routable(0) == (3, -1, -1)


def test_a_row_that_is_damaged_later_is_dropped_by_scrubbing(rng: random.Random) -> None:
    store, rows = SlotStore.in_memory(geometry())
    for slot in range(3):
        put(store, 1, slot, slot)
        store.commit(1, 1)
    assert store.scrub() == []
    rows.view(1, store.row_of(1)[2])[rng.randrange(BYTES)] ^= 1 << rng.randrange(8)
    assert store.scrub() == [(1, 2, 2)]
    assert store.routable(1) == (0, 1, -1)
    assert store.find(1, 2) is None


def test_no_change_of_any_single_byte_of_a_tag_or_map_makes_another_expert_routable(
    rng: random.Random,
) -> None:
    shape = geometry(layers=1)
    control = bytearray(shape.control_bytes)
    rows = SlotStore.in_memory(shape)[1]
    store = SlotStore(shape, rows, control)
    for slot in range(3):
        put(store, 0, slot, slot + 10)
        store.commit(0, 1)
    whole, honest = bytes(control), store.routable(0)
    for at in range(records.HEADER_BYTES, records.HEADER_BYTES + shape.layer_bytes):
        control[at] ^= 1 << rng.randrange(8)
        for seen in (store.routable(0), SlotStore(shape, rows, control).routable(0)):
            assert all(a in (b, -1) for a, b in zip(seen, honest, strict=True)), at
        control[:] = whole


def test_a_tag_of_another_epoch_or_digest_is_not_the_maps() -> None:
    shape = geometry(layers=1)
    control = bytearray(shape.control_bytes)
    store = SlotStore(shape, SlotStore.in_memory(shape)[1], control)
    row = put(store, 0, 0, 4, epoch=3)
    store.commit(0, 3)
    good = digest(expert(0, 4))
    at = shape.tag_at(0, row)
    for tag in (
        Tag(0, 4, 2, good),
        Tag(0, 5, 3, good),
        Tag(1, 4, 3, good),
        Tag(0, 4, 3, bytes(16)),
    ):
        control[at : at + records.TAG_BYTES] = records.pack_tag(tag)
        assert store.routable(0) == (-1, -1, -1), tag
    control[at : at + records.TAG_BYTES] = records.pack_tag(Tag(0, 4, 3, good))
    assert store.routable(0) == (4, -1, -1)


def test_a_stale_epoch_can_neither_land_nor_commit_and_a_newer_one_drops_what_was_staged() -> None:
    store, _ = SlotStore.in_memory(geometry())
    put(store, 0, 0, 1, epoch=5)
    store.fence(6)
    for act in (
        lambda: put(store, 0, 0, 1, 5),
        lambda: store.retire(0, 0, 5),
        lambda: store.commit(0, 5),
    ):
        with pytest.raises(SlotError, match="stale epoch.*newest is 6"):
            act()
    assert store.staged(0) == {}
    assert store.commit(0, 7).changed == {}
    assert store.epoch == 7


def test_bytes_that_are_not_the_manifests_do_not_land() -> None:
    store, _ = SlotStore.in_memory(geometry())
    data = expert(0, 1)
    with pytest.raises(SlotError, match="not what the manifest says"):
        store.land(0, 0, 1, memoryview(data), digest(expert(0, 2)), 1)
    with pytest.raises(SlotError, match=f"{BYTES} bytes"):
        store.land(0, 0, 1, memoryview(data)[:-1], digest(data[:-1]), 1)
    with pytest.raises(SlotError, match="no such slot"):
        store.retire(0, 3, 1)
    assert store.staged(0) == {}


def test_an_aborted_change_leaves_the_map_and_frees_the_rows() -> None:
    store, _ = SlotStore.in_memory(geometry())
    put(store, 0, 0, 1)
    store.abort(0)
    assert len(store.free_rows(0)) == 4
    assert store.commit(0, 1).changed == {}
    assert store.routable(0) == (-1, -1, -1)


def test_a_store_in_a_file_is_there_again_and_trusts_no_row_unread(memory_folder: Path) -> None:
    path, shape = memory_folder / "slots", geometry()
    store, rows = SlotStore.at(path, shape)
    for slot in range(3):
        put(store, 1, slot, slot, epoch=4)
        store.commit(1, 4)
    again, seen = SlotStore.at(path, shape)
    assert again.routable(1) == (0, 1, 2)
    assert again.epoch == 4
    rows.view(1, store.row_of(1)[0])[0] ^= 1
    assert SlotStore.at(path, shape)[0].routable(1) == (-1, 1, 2)
    assert bytes(seen.view(1, store.row_of(1)[1])) == bytes(expert(1, 1))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_another_model_is_refused(memory_folder: Path) -> None:
    path = memory_folder / "slots"
    SlotStore.at(path, geometry())
    with pytest.raises(SlotError, match="another size"):
        SlotStore.at(path, geometry(layers=3))
    other = records.Geometry(2, 3, 4, BYTES, rank=0, namespace=b"another model".ljust(16, b"\0"))
    with pytest.raises(SlotError, match="another model"):
        SlotStore.at(path, other)


def test_a_full_disk_is_an_error_at_start_and_leaves_no_half_store(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(SlotError, match="no room for a slot store.*allocated at start"):
            SlotStore.at(tmp_path / "slots", geometry())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, before)
    assert os.path.getsize(tmp_path / "slots") == 0
    assert SlotStore.at(tmp_path / "slots", geometry())[0].routable(0) == (-1, -1, -1)


def test_a_map_torn_at_any_byte_reads_as_the_former_one() -> None:
    shape = geometry(layers=1)
    control = bytearray(shape.control_bytes)
    rows = SlotStore.in_memory(shape)[1]
    store = SlotStore(shape, rows, control)
    put(store, 0, 0, 1)
    store.commit(0, 1)
    put(store, 0, 0, 2)
    before = bytes(control)
    store.commit(0, 1)
    after = bytes(control)
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed
    for at in range(changed[0], changed[-1] + 2):
        torn = bytearray(after[:at] + before[at:])
        seen = SlotStore(shape, rows, torn).routable(0)[0]
        assert seen == (2 if bytes(torn) == after else 1), at


def test_records_come_back_as_they_were() -> None:
    image = Image(9, 8, (Entry(3, 1, 7, bytes(range(16))), Entry()))
    assert records.read_image(records.pack_image(image)) == image
    tag = Tag(1, 2, 3, bytes(range(16)))
    assert records.read_tag(records.pack_tag(tag)) == tag
    assert records.read_tag(bytes(records.TAG_BYTES)) is None
    assert records.read_header(bytes(records.HEADER_BYTES)) is None


def test_sizes_that_cannot_be_are_refused() -> None:
    for sizes in ((0, 1, 1, 1), (1, 2, 1, 1), (1, 1, 1, 0)):
        with pytest.raises(SlotError, match="rows at least as many as slots"):
            records.Geometry(*sizes, rank=0)
