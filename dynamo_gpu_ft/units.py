"""Turns the text of a setting into bytes, seconds, counts and names, and numbers back into text a person reads.

Used by `config` on the way in and by the command line on the way out. Pure functions; no float is ever taken for a size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

_SIZES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZES |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.ASCII)


class UnitError(ValueError):
    """Text is not of its unit; the message is the rule it broke."""


def parse(unit: str, value: Any) -> Any:
    """`value` (text, or a number or bool that needs no parsing) as the Python value of `unit`; `UnitError` if it is none."""
    return _PARSERS[unit](value.strip() if isinstance(value, str) else value)


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for name in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {name}" if name == "B" else f"{count:.1f} {name}"
        count /= 1024
    return f"{count:.1f} TiB"


def _bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _NUMBER.fullmatch(value.lower()) if isinstance(value, str) else None
    if match is None or match[2] not in _SIZES:
        raise UnitError(
            "it must be a size: a whole number of bytes, or one with KiB, MiB, GiB or TiB"
        )
    size = float(match[1]) * _SIZES[match[2]]
    if not math.isfinite(size) or size != int(size):
        raise UnitError("it must come to a whole number of bytes")
    return int(match[1]) * _SIZES[match[2]] if match[1].isdigit() else int(size)


def _seconds(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        match = _NUMBER.fullmatch(value.lower()) if isinstance(value, str) else None
        if match is None or match[2] not in _TIMES:
            raise UnitError(
                "it must be a time: a number of seconds, or one with ms, s, min, h or d"
            )
        seconds = float(match[1]) * _TIMES[match[2]]
    if not math.isfinite(seconds):
        raise UnitError("it must be a finite time")
    return seconds


def _count(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or re.fullmatch(r"[0-9]+", value, re.ASCII) is None:
        raise UnitError("it must be a whole number")
    return int(value)


def _share(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        share = float(value)
    else:
        match = _NUMBER.fullmatch(value.lower()) if isinstance(value, str) else None
        if match is None or match[2]:
            raise UnitError("it must be a share: a number between 0 and 1")
        share = float(match[1])
    if not math.isfinite(share):
        raise UnitError("it must be a finite share")
    return share


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise UnitError("it must be one of " + ", ".join(_TRUE + _FALSE))
    return text in _TRUE


def _path(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise UnitError("it must be a path")
    return value


def _name(value: Any) -> str:
    if (
        not isinstance(value, str)
        or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value) is None
    ):
        raise UnitError(
            "it must be 1 to 100 letters, digits, '.', '_' or '-', not starting with a sign"
        )
    return value


def _host(value: Any) -> str:
    if not isinstance(value, str) or not value or re.search(r"\s", value):
        raise UnitError("it must be a host name or an address")
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "bytes": _bytes,
    "seconds": _seconds,
    "share": _share,
    "count": _count,
    "port": _count,
    "bool": _bool,
    "path": _path,
    "name": _name,
    "host": _host,
}
