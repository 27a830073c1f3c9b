"""Random lives of a slot store beside a model of a few lines: landings, retirements, commits, epochs, damage, reopening, rows that fail."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from expert_world import BYTES, Source, digest, expert, geometry, manifest

from dynamo_gpu_ft.errors import SlotError
from dynamo_gpu_ft.experts.records import Geometry
from dynamo_gpu_ft.experts.refill import Want, refill
from dynamo_gpu_ft.experts.rows import HostRows
from dynamo_gpu_ft.experts.store import SlotStore


class Model:
    """What is routable, what is staged, which epoch; rows only as numbers of them."""

    def __init__(self, shape: Geometry) -> None:
        self.map = [[-1] * shape.slots for _ in range(shape.layers)]
        self.held = [
            [False] * shape.slots for _ in range(shape.layers)
        ]  # a map entry keeps its row, routable or not
        self.staged: list[dict[int, int]] = [{} for _ in range(shape.layers)]
        self.spoilt: set[tuple[int, int]] = set()
        self.epoch = 0

    def fence(self, epoch: int) -> bool:
        if epoch > self.epoch:
            self.epoch, self.spoilt = epoch, set()
            self.staged = [{} for _ in self.staged]
        return epoch == self.epoch

    def free(self, layer: int, rows: int) -> int:
        return rows - sum(self.held[layer]) - sum(e >= 0 for e in self.staged[layer].values())

    def commit(self, layer: int) -> None:
        for slot, number in self.staged[layer].items():
            if (layer, slot) not in self.spoilt:
                self.map[layer][slot], self.held[layer][slot] = number, number >= 0
        self.spoilt -= {(layer, slot) for slot in self.staged[layer]}
        self.staged[layer] = {}


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_store_does_what_the_model_does(
    spare: int, rng: random.Random, memory_folder: Path
) -> None:
    shape, path = geometry(spare=spare), memory_folder / "slots"
    store, rows = SlotStore.at(path, shape)
    model = Model(shape)
    for _ in range(1500):
        layer, slot, number = (
            rng.randrange(shape.layers),
            rng.randrange(shape.slots),
            rng.randrange(9),
        )
        epoch = model.epoch + rng.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1])
        act = rng.choice(
            [
                "land",
                "land",
                "land",
                "retire",
                "commit",
                "commit",
                "abort",
                "spoil",
                "damage",
                "reopen",
            ]
        )
        if act == "land":
            data = expert(layer, number)
            good = model.fence(epoch)
            if good:
                model.staged[layer].pop(slot, None)
                model.spoilt.discard((layer, slot))
                good = model.free(layer, shape.rows) > 0
            try:
                store.land(layer, slot, number, memoryview(data), digest(data), epoch)
                assert good
                model.staged[layer][slot] = number
            except SlotError:
                assert not good
        elif act == "retire":
            good = model.fence(epoch)
            try:
                store.retire(layer, slot, epoch)
                assert good
                model.staged[layer][slot] = -1
                model.spoilt.discard((layer, slot))
            except SlotError:
                assert not good
        elif act == "commit":
            good = model.fence(epoch)
            try:
                store.commit(layer, epoch)
                assert good
                model.commit(layer)
            except SlotError:
                assert not good
        elif act == "abort":
            store.abort(layer)
            model.spoilt -= {(layer, s) for s in model.staged[layer]}
            model.staged[layer] = {}
        elif act == "spoil" and model.staged[layer].get(slot, -1) >= 0:
            row = store._staged[layer][slot].row
            rows.view(layer, row)[rng.randrange(BYTES)] = rng.randrange(256)
            if digest(rows.view(layer, row)) != store._staged[layer][slot].digest:
                model.spoilt.add((layer, slot))
        elif act == "damage" and model.map[layer][slot] >= 0:
            rows.view(layer, store.row_of(layer)[slot])[rng.randrange(BYTES)] ^= 1 << rng.randrange(
                8
            )
            assert store.scrub(layer) == [(layer, slot, model.map[layer][slot])]
            model.map[layer][slot] = -1
        elif act == "reopen":
            store, rows = SlotStore.at(path, shape)
            model.staged = [{} for _ in model.staged]
            model.spoilt, model.epoch = set(), store.epoch
        for each in range(shape.layers):
            assert list(store.routable(each)) == model.map[each]
            for at, found in enumerate(model.map[each]):
                row = store.row_for(each, at, found) if found >= 0 else None
                assert (row is None) == (found < 0)
                if row is not None:
                    assert bytes(rows.view(each, row)) == bytes(expert(each, found))


class Failing(HostRows):
    """Memory of an engine that fails as a lost device does."""

    broken = ""

    def write(self, layer: int, row: int, data: memoryview) -> None:
        if self.broken == "write":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        super().write(layer, row, data)

    def digest(self, layer: int, row: int) -> bytes:
        if self.broken == "read":
            raise RuntimeError("CUDA error: device lost")
        return super().digest(layer, row)


def test_rows_that_fail_end_no_refill_and_are_never_routable() -> None:
    shape = geometry()
    rows = Failing(bytearray(shape.payload_bytes), shape)
    store = SlotStore(shape, rows)
    wants, all_of = [Want(0, 0, 1), Want(0, 1, 2)], manifest(2, 8)
    rows.broken = "write"
    done = refill(store, wants, [Source("a")], all_of, epoch=1, deadline_s=10)
    assert "illegal memory access" in done.left[0][1]
    rows.broken = "read"
    done = refill(store, wants, [Source("a")], all_of, epoch=1, deadline_s=10)
    assert {why for _, why in done.left} == {"its row was damaged before the commit"}
    assert store.routable(0) == (-1, -1, -1)
    rows.broken = ""
    assert refill(store, wants, [Source("a")], all_of, epoch=1, deadline_s=10).complete


def test_rows_of_a_tensor_are_written_and_read_back() -> None:
    torch = pytest.importorskip("torch")
    from dynamo_gpu_ft.experts.device_rows import DeviceRows, pinned

    shape = geometry()
    image = torch.zeros((2, 4, BYTES), dtype=torch.uint8)
    store = SlotStore(shape, DeviceRows(shape, image))
    done = refill(
        store, [Want(1, 2, 5)], [Source("a")], manifest(2, 8), epoch=1, deadline_s=10, room=pinned
    )
    assert done.complete
    row = store.row_of(1)[2]
    assert bytes(image[1, row].tolist()) == bytes(expert(1, 5))
    image[1, row, 9] ^= 1
    assert store.scrub() == [(1, 2, 5)]
    with pytest.raises(SlotError, match="contiguous uint8"):
        DeviceRows(shape, image[:, :3])


def test_a_copy_that_never_ends_is_an_error_at_its_deadline() -> None:
    from dynamo_gpu_ft.experts.device_rows import wait_until

    answers = iter([False, False, True])
    wait_until(lambda: next(answers), 30.0)
    with pytest.raises(SlotError, match="does not end"):
        wait_until(lambda: False, 0.01)


def test_a_want_of_a_slot_that_is_not_there_is_refused_before_anything_moves() -> None:
    store, _ = SlotStore.in_memory(geometry())
    for want in (Want(2, 0, 1), Want(0, 3, 1), Want(0, -1, 1), Want(0, 0, -1)):
        with pytest.raises(SlotError, match="not there.*slots per rank"):
            refill(
                store, [Want(0, 0, 1), want], [Source("a")], manifest(2, 8), epoch=1, deadline_s=10
            )
    assert store.staged(0) == {}
