"""Namespace records: equal for equal engines, found by their engine part, and harmless when hostile."""

from pathlib import Path

import pytest

from dynamo_gpu_ft.kv.namespace import decode, encode, find, weights_id

ENGINE = {"engine": "vllm", "model": "m", "block_size": 32}


def test_a_record_does_not_depend_on_the_order_of_its_fields() -> None:
    turned = dict(reversed(list(ENGINE.items())))
    assert encode(ENGINE, ["l0"]) == encode(turned, ["l0"])
    assert encode(ENGINE, ["l0"]) != encode(ENGINE, ["l1"])
    assert encode(ENGINE, ["l0"]) != encode({**ENGINE, "block_size": 64}, ["l0"])


def test_a_record_fits_its_entry_however_many_layers_there_are() -> None:
    assert len(encode(ENGINE, [f"model.layers.{i}.attn" for i in range(10_000)])) < 4096


def test_the_newest_record_of_an_engine_is_found_and_another_engines_is_not() -> None:
    records = [
        encode(ENGINE, ["a"]),
        encode({**ENGINE, "model": "n"}, ["a"]),
        encode(ENGINE, ["b"]),
    ]
    assert find(records, ENGINE) == 2
    assert find(records[:2], ENGINE) == 0
    assert find(records[1:2], ENGINE) is None


@pytest.mark.parametrize(
    "record", [b"", b"\xff\xfe", b"[" * 4096, b"3", b"null", b'{"engine":' * 500]
)
def test_hostile_records_are_shown_and_never_raise(record: bytes) -> None:
    assert "unreadable" in decode(record)
    assert find([record], ENGINE) is None


def test_weights_are_told_apart_by_a_changed_byte_in_a_sample_and_by_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(300_000))
    first = weights_id(tmp_path)
    assert first == weights_id(tmp_path)
    weights.write_bytes(bytes(299_999) + b"\1\0")
    longer = weights_id(tmp_path)
    weights.write_bytes(b"\1" + bytes(299_999))
    assert len({first, longer, weights_id(tmp_path)}) == 3
    assert weights_id(tmp_path / "nowhere") == ""


def test_a_record_is_found_by_engine_and_placement_together() -> None:
    records = [
        encode(ENGINE, ["a"], placement={"tp": 2}),
        encode(ENGINE, ["a"], placement={"tp": 1}),
    ]
    assert find(records, ENGINE, {"tp": 2}) == 0
    assert find(records, ENGINE, {"tp": 1}) == 1
    assert find(records, ENGINE, {"tp": 4}) is None
    assert find(records, ENGINE) is None
