"""Where shards are when devices come and go: always on a usable one, where there is a place for them."""

from __future__ import annotations

import random

import pytest

from dynamo_gpu_ft.engines.reference.devices import Devices
from tests.conftest import SEED


def test_each_shard_has_a_device_of_its_own_and_none_is_spare() -> None:
    devices = Devices(4)
    assert [devices.of(shard) for shard in range(4)] == [0, 1, 2, 3]
    assert devices.spares == 0
    devices.condemn(2, "XID 79")
    assert devices.homeless(range(4)) == {2: "XID 79"}
    assert devices.house(range(4)) == [0, 1, 3]
    devices.clear(2)
    assert devices.house(range(4)) == [0, 1, 2, 3]


def test_a_homeless_shard_moves_to_a_spare_device_and_its_old_one_is_spare_when_it_is_back() -> (
    None
):
    devices = Devices(2, 3)
    devices.condemn(1, "XID 79")
    assert devices.house([1]) == [1]
    assert (devices.of(1), devices.spares) == (2, 0)
    devices.clear(1)
    assert (devices.of(1), devices.spares) == (2, 1)


def test_shards_that_share_a_device_lose_it_together_and_share_what_room_there_is() -> None:
    devices = Devices(4, 2)
    assert devices.shards_on(1) == [1, 3]
    devices.condemn(1, "XID 79")
    assert devices.house(range(4)) == [0, 2]
    devices = Devices(4, 3)  # two places each
    devices.condemn(0, "XID 79")
    assert devices.house(range(4)) == [0, 1, 2, 3]
    assert devices.spares == 0


@pytest.mark.parametrize("number", range(20))
def test_nobody_is_housed_on_a_condemned_device_nor_in_a_place_that_is_taken(number: int) -> None:
    random_ = random.Random(f"{SEED}:{number}")
    shards, count = random_.randrange(1, 9), random_.randrange(1, 12)
    devices = Devices(shards, count)
    places = -(-shards // count)
    for _ in range(40):
        if random_.random() < 0.6:
            devices.condemn(random_.randrange(count), "why")
        else:
            devices.clear(random_.randrange(shards))
        free, homeless = devices.spares, len(devices.homeless(range(shards)))
        housed = devices.house(range(shards))
        assert len(housed) == shards - homeless + min(free, homeless)
        assert not devices.homeless(housed)
        for device in range(count):
            on = [shard for shard in housed if devices.of(shard) == device]
            assert len(on) <= places
