"""Changes of JSON values for the fuzz targets in Python: one value after the other replaced, removed or renamed, as an input says.

Changes its argument in place and never fails; what comes out can always be encoded again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside `value`."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = sorted(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    found = [(value, key) for key in keys]
    for key in keys:
        found += places(value[key])
    return found


def change(record: Any, data: bytes, hostile: Sequence[Any]) -> None:
    """Three bytes make one change: the place, what to do there, and a value."""
    for at in range(0, len(data) - 2, 3):
        there = places(record)
        if not there:
            return
        container, key = there[data[at] % len(there)]
        what = data[at + 1]
        if what < 160:
            container[key] = copy.deepcopy(hostile[what % len(hostile)])
        elif what < 200:
            container[key] = data[at + 2]
        elif what < 220 and isinstance(container[key], str):
            container[key] = container[key][::-1] + chr(data[at + 2])
        elif what < 240 and isinstance(container, list):
            container.append(container[key])
        elif isinstance(container, dict):
            container[chr(data[at + 2])] = container.pop(key)
        else:
            del container[key]
