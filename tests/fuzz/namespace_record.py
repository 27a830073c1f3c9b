"""Fuzz target: namespace records and the layouts in them, which come out of shared memory or a file.

Whatever the bytes are, `decode` and `layout_of` answer and `parse` refuses with its own error; a layout that is accepted is one that
its own writer gives back. Half of the inputs are the bytes of a record, half are changes of values in a sound one.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import hostile_json

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv import geometry_record, namespace
from dynamo_gpu_ft.kv.geometry import LayerRun, Part, ShardLayout

SOUND: list[dict[str, Any]] = [
    json.loads(namespace.encode({"model": "m"}, ["a"], placement={"tp": 2}, geometry=layout))
    for layout in (
        ShardLayout(
            block_tokens=32,
            piece_tokens=16,
            heads=8,
            tp=2,
            dtype="bfloat16",
            itemsize=2,
            parts=(Part("k", 64, "SPNHD"), Part("v", 64, "SPNHD")),
            layers=(LayerRun("model.layers.{}.attn", 0, 4), LayerRun("last", 0, 1)),
        ),
        ShardLayout(
            block_tokens=16,
            piece_tokens=16,
            heads=1,
            tp=4,
            dtype="bfloat16",
            itemsize=2,
            parts=(Part("latent", 576, "PHX"),),
            layers=(LayerRun("x{}", 0, 61),),
            cell="kernel",
            once=True,
        ),
    )
]
HOSTILE: list[Any] = [None, True, -1, 0, 1, 2, 3, 1 << 14, 1 << 31, 1 << 62, 1 << 70, 1.5, 1e400]
HOSTILE += ["", "{}", "{}{}", "PHSNDX", "SPNHD", "PHX", "opaque", "\ud800", "x" * 300, [], {}, [[]]]
HOSTILE += [["k", 64, "SPNHD"], [["l{}", 0, 1 << 14]] * 2, [["l1", 0, 1], ["l{}", 1, 1]]]


def changed(data: bytes) -> bytes:
    """A sound record with one value after the other replaced, removed or renamed, as the bytes of `data` say."""
    record = copy.deepcopy(SOUND[data[0] % len(SOUND)])
    hostile_json.change(record, data[1:], HOSTILE)
    return json.dumps(record).encode()


def one_input(data: bytes) -> None:
    look(data)
    if data:
        look(changed(data))


def look(record: bytes) -> None:
    assert isinstance(namespace.decode(record), dict)
    layout = namespace.layout_of(record)
    if isinstance(layout, ShardLayout):
        assert geometry_record.parse(geometry_record.dump(layout)) == layout
        assert layout.payload_bytes > 0
        assert len(layout.layer_names()) == layout.num_layers
    namespace.relatives([record, b"{}"], record)
    namespace.find([record], {})
    try:
        value = json.loads(record)
    except (ValueError, RecursionError):
        return
    for each in (value, value.get("layout") if isinstance(value, dict) else None):
        try:
            geometry_record.parse(each)
        except NotProtected:
            pass
