"""A `ShardLayout` as plain JSON data and back: the part of a namespace record that says where each element lies.

Layer names are folded, so that a model of hundreds of layers fits a record. What is parsed comes from shared memory or from a
file and is taken for hostile: unknown keys, kinds, types and sizes are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.geometry import LayerRun, Opaque, Part, ShardLayout, refuse

_NUMBERS = {
    "block": "block_tokens",
    "piece": "piece_tokens",
    "heads": "heads",
    "tp": "tp",
    "item": "itemsize",
}
_KEYS = frozenset({*_NUMBERS, "kind", "dtype", "parts", "layers", "cell", "once"})
_MAX_TEXT, _MAX_RUNS, _MAX_LAYERS = 256, 256, 1 << 14


def dump(layout: ShardLayout | Opaque) -> dict[str, Any]:
    if isinstance(layout, Opaque):
        return {"kind": "opaque", "why": layout.why}
    return {
        "kind": "blocks",
        **{short: getattr(layout, name) for short, name in _NUMBERS.items()},
        "dtype": layout.dtype,
        "parts": [[p.name, p.width, p.order] for p in layout.parts],
        "layers": [[run.name, run.first, run.count] for run in layout.layers],
        "cell": layout.cell,
        "once": layout.once,
    }


def parse(data: Any) -> ShardLayout | Opaque:
    """The layout in a record. Raises `NotProtected` for anything `dump` cannot have written."""
    if not isinstance(data, Mapping):
        raise refuse("a layout is a JSON object", data)
    kind = data.get("kind")
    if kind == "opaque" and set(data) == {"kind", "why"}:
        return Opaque(_text(data["why"]))
    if kind != "blocks":
        raise refuse('its kind is "blocks" or "opaque"', kind)
    if set(data) != _KEYS:
        raise refuse(f"its keys are {', '.join(sorted(_KEYS))}", sorted(map(str, data)))
    if not isinstance(data["once"], bool):
        raise refuse('"once" is true or false', data["once"])
    layers = tuple(LayerRun(_text(n), _number(f), _number(c)) for n, f, c in _rows(data["layers"]))
    for run in layers:
        if run.count > _MAX_LAYERS or run.first > 1 << 31 or run.name.count("{}") > 1:
            raise refuse("layer names count in one place", run)
    parts = tuple(Part(_text(n), _number(w), _text(o)) for n, w, o in _rows(data["parts"]))
    return ShardLayout(
        **{name: _number(data[short]) for short, name in _NUMBERS.items()},
        dtype=_text(data["dtype"]),
        parts=parts,
        layers=layers,
        cell=_text(data["cell"]),
        once=data["once"],
    )


def convertible(data: Any) -> ShardLayout | Opaque:
    """As `parse`, with an `Opaque` instead of an error: for lists of namespaces in which one record may be bad."""
    try:
        return parse(data)
    except NotProtected as error:
        return Opaque(error.rule)


def fold(names: Sequence[str]) -> tuple[LayerRun, ...]:
    """Runs that spell out `names` in order; a name that fits no run is one by itself."""
    runs: list[LayerRun] = []
    at = 0
    while at < len(names):
        best = LayerRun(names[at], 0, 1)
        for found in re.finditer(r"0|[1-9]\d{0,8}", names[at]):
            before, after = names[at][: found.start()], names[at][found.end() :]
            first, count = int(found[0]), 1
            while (
                at + count < len(names) and names[at + count] == f"{before}{first + count}{after}"
            ):
                count += 1
            if count > best.count and "{}" not in before + after:
                best = LayerRun(f"{before}{{}}{after}", first, count)
        runs.append(best)
        at += best.count
    return tuple(runs)


def _rows(value: Any) -> list[list[Any]]:
    if not isinstance(value, list) or len(value) > _MAX_RUNS:
        raise refuse(f"a list of at most {_MAX_RUNS} entries", value)
    if any(not isinstance(row, list) or len(row) != 3 for row in value):
        raise refuse("entries of three values", value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise refuse(f"a text of at most {_MAX_TEXT} characters", value)
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise refuse("a whole number that is not negative", value)
    return value
