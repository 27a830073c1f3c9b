"""Layouts as data that a conversion can trust: what each field means, records that fit and come back, hostile ones refused."""

import itertools
import json
import random
from typing import Any

import pytest

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.geometry import LayerRun, Opaque, Part, ShardLayout
from dynamo_gpu_ft.kv.geometry_record import convertible, dump, fold, parse
from dynamo_gpu_ft.kv.namespace import MAX_RECORD_BYTES, encode, layout_of, relatives


def made(**how: Any) -> ShardLayout:
    return ShardLayout(
        **{
            "block_tokens": 32,
            "piece_tokens": 16,
            "heads": 8,
            "tp": 2,
            "dtype": "torch.bfloat16",
            "itemsize": 2,
            "parts": (Part("k", 64, "PNHSD"), Part("v", 64, "PNHSD")),
            "layers": (LayerRun("model.layers.{}.attn", 0, 3),),
            **how,
        }
    )


def addresses(layout: ShardLayout) -> list[int]:
    """The byte offset of every element of a payload, in no order that matters."""
    found = []
    for layer, part in itertools.product(range(layout.num_layers), layout.parts):
        offset, strides = layout.strides(part)
        sizes = layout.sizes(part)
        axes = [a for a in part.order if a != "S"]
        for at in itertools.product(*(range(sizes[a]) for a in axes)):
            inside = sum(i * strides[a] for i, a in zip(at, axes, strict=True))
            found.append(layer * layout.layer_bytes + offset + inside)
    return found


@pytest.mark.parametrize(
    "parts",
    [
        (Part("k", 3, "PNHSD"), Part("v", 3, "PNHSD")),
        (Part("k", 3, "PHNSD"), Part("v", 5, "PHNSD")),
        (Part("k", 3, "SPNHD"), Part("v", 4, "SPNHD")),
        (Part("k", 3, "PHSDN"), Part("v", 3, "PHSND")),
        (Part("latent", 7, "PNHD"),),
    ],
)
def test_every_byte_of_a_payload_belongs_to_exactly_one_element(parts: tuple[Part, ...]) -> None:
    layout = made(parts=parts, block_tokens=8, piece_tokens=4)
    assert sorted(addresses(layout)) == list(range(0, layout.payload_bytes, 2))


def test_a_cell_is_moved_as_a_whole() -> None:
    layout = made(parts=(Part("cell", 8, "PHX"),), cell="some.kernel", heads=4)
    assert layout.strides(layout.parts[0]) == (0, {"X": 1, "H": 16 * 8 * 2, "P": 2 * 16 * 8 * 2})


def test_heads_are_dealt_out_in_order_and_shared_by_neighbours_when_there_are_too_few() -> None:
    assert [made(heads=8, tp=2).head_range(s) for s in range(2)] == [(0, 4), (4, 8)]
    assert [made(heads=2, tp=4).head_range(s) for s in range(4)] == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert [made(heads=1, tp=3).head_range(s) for s in range(3)] == [(0, 1)] * 3
    with pytest.raises(NotProtected, match="shards count"):
        made().head_range(2)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"block_tokens": 0}, "block_tokens"),
        ({"piece_tokens": 24}, "whole number of kernel blocks"),
        ({"heads": 6, "tp": 4}, "divide each other"),
        ({"itemsize": 3}, "1, 2, 4 or 8"),
        ({"once": True}, "stored once"),
        ({"layers": ()}, "layers"),
        ({"layers": (LayerRun("a", 0, 2),)}, "name of its own"),
        ({"parts": ()}, "one or two parts"),
        ({"parts": (Part("k", 64, "PNHSD"), Part("k", 64, "PNHSD"))}, "different names"),
        ({"parts": (Part("k", 64, "PNHSD"), Part("v", 64, "PHNSD"))}, "same axes before S"),
        ({"parts": (Part("k", 64, "PNHD"),), "cell": "x"}, "axes"),
        ({"parts": (Part("k", 64, "PPHD"),)}, "axes"),
        ({"block_tokens": 1 << 16, "heads": 1 << 16, "tp": 1}, "payload"),
    ],
)
def test_what_no_payload_can_be_is_refused_with_the_rule(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(NotProtected, match=rule):
        made(**change)


def test_layer_names_are_folded_and_spelled_out_again(rng: random.Random) -> None:
    for _ in range(200):
        names = []
        for prefix in ("model.layers.{}.self_attn.attn", "l{}", "encoder.{}.0.x{}"):
            start = rng.randrange(12)
            names += [prefix.replace("{}", str(start + i)) for i in range(rng.randrange(4))]
        names += ["a{}b", "07"]
        assert [n for run in fold(names) for n in run.names()][: len(names) - 2] == names[:-2]
    assert fold([f"m.{i}.attn" for i in range(200)]) == (LayerRun("m.{}.attn", 0, 200),)


def test_a_record_of_two_hundred_layers_fits_and_gives_its_layout_back() -> None:
    layout = made(layers=fold([f"model.layers.{i}.self_attn.attn" for i in range(200)]))
    record = encode({"model": "m"}, ["x"] * 200, geometry=layout)
    assert len(record) < 1024
    assert layout_of(record) == layout


def test_a_layout_too_long_to_record_becomes_opaque_instead_of_failing() -> None:
    wild = tuple(LayerRun(f"layer-{'x' * i}", 0, 1) for i in range(1, 120))
    record = encode({"model": "m"}, ["x"], geometry=made(layers=wild))
    assert len(record) <= MAX_RECORD_BYTES
    assert layout_of(record) == Opaque("its description is too long to record")


def test_lying_descriptors_are_refused_whatever_is_changed_in_them(rng: random.Random) -> None:
    good = dump(made())
    assert parse(json.loads(json.dumps(good))) == made()
    junk: list[Any] = [
        None,
        -1,
        1.5,
        True,
        "",
        "x" * 5000,
        [],
        [[]],
        {},
        1 << 70,
        [[1, 2, 3]],
        "{}{}",
    ]
    refused = 0
    for key in [*good, "extra"]:
        for value in junk:
            data = {**good, key: value}
            answer = convertible(data)  # never anything but a sound layout or a reason
            refused += isinstance(answer, Opaque)
            if isinstance(answer, ShardLayout):
                assert answer.payload_bytes > 0
    assert refused > 100
    for _ in range(2000):
        text = bytearray(json.dumps(good).encode())
        for _ in range(rng.randrange(1, 4)):
            text[rng.randrange(len(text))] = rng.randrange(32, 127)
        try:
            data = json.loads(text)
        except ValueError:
            continue
        answer = convertible(data)
        assert isinstance(answer, (ShardLayout, Opaque))
    for kind in ("other", None, 3):
        with pytest.raises(NotProtected, match="kind"):
            parse({**good, "kind": kind})


def test_records_of_the_same_values_under_another_placement_are_relatives() -> None:
    engine = {"model": "m", "hash": "sha256"}
    mine = encode(engine, ["a"], placement={"tp": 2}, geometry=made())
    other = encode(engine, ["b"], placement={"tp": 1}, geometry=made(tp=1))
    foreign = encode({**engine, "model": "n"}, ["b"], placement={"tp": 1}, geometry=made(tp=1))
    hashed = encode({**engine, "hash": "xxhash"}, ["b"], placement={"tp": 1}, geometry=made(tp=1))
    unknown = encode(engine, ["c"], placement={"tp": 4}, geometry=Opaque("?"))
    records = [
        other,
        foreign,
        hashed,
        unknown,
        mine,
        b"\xff",
        other.replace(b'"item":2', b'"item":3'),
    ]
    assert relatives(records, mine) == [0]
