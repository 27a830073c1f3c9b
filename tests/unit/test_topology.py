"""Names of devices: one form for PCI addresses, and which descriptions may mean the same thing."""

from __future__ import annotations

import pytest

from dynamo_gpu_ft.topology import Device, bdf_of


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("0000:9b:00.0", "0000:9b:00"),
        ("00000000:9B:00.0", "0000:9b:00"),
        ("9b:00", "0000:9b:00"),
        ("0009:01:00", "0009:01:00"),
        ("10000:01:00.0", "10000:01:00"),
        ("0000:9b:00.9", ""),
        ("GPU-5f", ""),
        ("", ""),
        ("0000:9b:00; rm", ""),
    ],
)
def test_a_pci_address_has_one_form(text: str, form: str) -> None:
    assert bdf_of(text) == form


def test_two_descriptions_are_the_same_device_only_if_nothing_contradicts() -> None:
    full = Device(index=1, uuid="GPU-b", bdf="0000:3b:00")
    assert full.same(Device(uuid="GPU-b"))
    assert full.same(Device(index=1, gi=3, ci=0))
    assert not full.same(Device(index=1, uuid="GPU-c"))
    assert not full.same(Device())
    assert not full.same(Device(kind="switch", index=1))
    assert Device(kind="node").same(Device(kind="node"))
    assert not Device(uuid="GPU-b").same(Device(index=1)), "nothing that both have agrees"


def test_merging_knows_what_either_knew() -> None:
    merged = Device(index=1, gi=2).merged(Device(uuid="GPU-b", bdf="0000:3b:00"))
    assert merged == Device(index=1, uuid="GPU-b", bdf="0000:3b:00", gi=2)
    assert str(merged) == "gpu 0000:3b:00 GPU-I:02"
    assert Device(kind="node").known
    assert not Device().known
