"""Plain text for people: aligned columns and numbers that can be read at a glance.

Last stop of a command's answer when `--json` was not asked for. Pure functions, no dependency.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def columns(headers: Sequence[str], rows: Iterable[Sequence[Any]], indent: str = "  ") -> str:
    """A table of text; a column whose cells are all numbers is aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    table = [list(headers), *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(headers))]
    numeric = [
        bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(headers))
    ]
    lines = []
    for row in table:
        parts = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        lines.append((indent + "  ".join(parts)).rstrip())
    return "\n".join(lines)


def as_json(value: Any) -> str:
    """Indented JSON; what is not JSON by nature (bytes, paths) becomes text."""
    return json.dumps(value, indent=2, default=_plain)


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
