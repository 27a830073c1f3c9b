"""Thresholds of the device copy path: chosen from samples, kept in a file that nobody has to trust."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.kv import tuning
from dynamo_gpu_ft.kv.device import OpenDevice, prepare

FACTS = {
    "uuid": "u",
    "driver": "d",
    "batch": "yes",
    "compute": "9.0",
    "kernels": "yes",
    "simulated": "no",
}


class Fake:
    """A device whose kernel takes 10 us plus its bytes, and whose DMA takes 1 us for each piece plus its bytes."""

    def __init__(self, kernels: bool = True) -> None:
        self.asked, self.has_kernels = 0, kernels

    def facts(self) -> dict[str, str]:
        return FACTS | {"kernels": "yes" if self.has_kernels else "no"}

    def use_kernels(self, images: list[bytes]) -> None:
        pass

    def measure(self, way: str, *, load: bool, bytes: int, count: int) -> float:
        self.asked += 1
        moved = bytes * count / 50e9
        return 10e-6 + moved * 1.3 if way == "kernel" else 1e-6 * count + moved


def test_packing_ends_at_the_first_size_at_which_it_lost() -> None:
    rows = [tuning.Sample(64, size, size * 1e-9, 2e-5) for size in tuning.SIZES]
    assert tuning.thresholds(rows) == ((64, 32 << 10),)


def test_packing_that_never_won_is_never_used_and_one_that_always_won_always() -> None:
    never = [tuning.Sample(16, size, 2.0, 1.0) for size in tuning.SIZES]
    always = [tuning.Sample(64, size, 1.0, 2.0) for size in tuning.SIZES]
    assert tuning.thresholds(never + always) == ((16, 0), (64, tuning.SIZES[-1] + 1))
    assert tuning.thresholds([]) == ()


def test_thresholds_do_not_depend_on_the_order_of_samples(rng: random.Random) -> None:
    samples = [
        tuning.Sample(count, size, rng.random(), rng.random())
        for count in tuning.COUNTS
        for size in tuning.SIZES
    ]
    expected = tuning.thresholds(samples)
    rng.shuffle(samples)
    assert tuning.thresholds(samples) == expected
    assert [count for count, _ in expected] == sorted(tuning.COUNTS)


def opened(device: Any, folder: Path) -> OpenDevice:
    return prepare(device, cache=str(folder))


def test_a_device_is_measured_once_and_again_when_its_driver_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(Fake(), tmp_path)
    assert first.out
    again = Fake()
    assert opened(again, tmp_path).out == first.out
    assert again.asked == 0
    monkeypatch.setitem(FACTS, "driver", "newer")
    changed = Fake()
    opened(changed, tmp_path)
    assert changed.asked > 0


def test_a_device_without_kernels_is_not_measured(tmp_path: Path) -> None:
    device = Fake(kernels=False)
    assert opened(device, tmp_path).out == ()
    assert device.asked == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00\xff" * 100,
        b"[" * 100000,
        b'{"version": 1}',
        b'{"version": 2, "key": "k", "out": [], "load": []}',
        b'{"version": 1, "key": "other", "out": [], "load": []}',
        b'{"version": 1, "key": "k", "out": [[4, 1], [4, 2]], "load": []}',
        b'{"version": 1, "key": "k", "out": [[0, 1]], "load": []}',
        b'{"version": 1, "key": "k", "out": [[1, -1]], "load": []}',
        b'{"version": 1, "key": "k", "out": [[1, 99999999999999]], "load": []}',
        b'{"version": 1, "key": "k", "out": "x", "load": []}',
        b'{"version": 1, "key": "k", "out": [], "load": []}' + b" " * 20000,
    ],
)
def test_a_cache_file_that_does_not_hold_is_as_good_as_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(text)
    assert tuning.read(path, "k") is None


def test_a_cache_that_cannot_be_written_costs_a_measurement_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tuned = tuning.Tuned(tuning.VERSION, "k", ((1, 2),), ())
    tuning.write(tmp_path / "file" / "below", tuned)
    tuning.write(tmp_path / "good", tuned)
    assert tuning.read(tmp_path / "good", "k") == tuned
    assert {path.name for path in tmp_path.iterdir()} == {"file", "good"}
