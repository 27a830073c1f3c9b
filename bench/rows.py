"""One figure as one row, and rows as JSON lines of a table or as Markdown.

Every bench yields rows; the entry point adds where and when they were measured.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """`ratio` compares with the baseline of the same run and is above 1 when we are better; `target` is a bound on it."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: float | None = None
    met: bool | None = None
    simulated: bool = False
    machine: str = ""
    date: str = ""
    commit: str = ""
    command: str = ""
    note: str = ""


def row(
    name: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    ratio: float | None = None,
    target: float | None = None,
    note: str = "",
) -> Row:
    """A measured row, rounded to what is readable. Without `ratio` it is value / baseline: right when more is better."""
    if ratio is None and baseline:
        ratio = value / baseline
    met = None if target is None or ratio is None else ratio >= target
    return Row(
        name=name,
        value=_short(value),
        unit=unit,
        baseline=None if baseline is None else _short(baseline),
        ratio=None if ratio is None else _short(ratio),
        target=target,
        met=met,
        note=note,
    )


def placed(rows: Iterable[Row], *, machine: str, date: str, commit: str, command: str) -> list[Row]:
    return [replace(r, machine=machine, date=date, commit=commit, command=command) for r in rows]


def plain(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [asdict(r) for r in rows]


def markdown(rows: Sequence[Row]) -> str:
    """A table, and below it, once, where the figures come from."""
    lines = [
        "| name | value | baseline | ratio | target | met | note |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for r in rows:
        cells = [
            r.name + (" (simulated)" if r.simulated else ""),
            f"{r.value:g} {r.unit}",
            "" if r.baseline is None else f"{r.baseline:g} {r.unit}",
            "" if r.ratio is None else f"{r.ratio:.3g}",
            "" if r.target is None else f"≥ {r.target:g}",
            {True: "yes", False: "**no**", None: ""}[r.met],
            r.note.replace("|", "/"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    sources = {(r.machine, r.date, r.commit, r.command): None for r in rows}
    lines += [""] + [
        f"`{command}`; {machine}; {date}; commit {commit or 'unknown'}"
        for machine, date, commit, command in sources
    ]
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Lowest, median and highest of repeated measurements, for a note."""
    return (
        f"{min(values):.3g}/{statistics.median(values):.3g}/{max(values):.3g} of {len(values)} runs"
    )


def _short(value: float) -> float:
    """Four digits that count: more are noise."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Options:
    """How to measure. `quick` is for trying a bench out: its figures are not to be quoted.

    `lacking` takes one line for each part whose environment is missing; the other parts are still measured."""

    quick: bool
    say: Callable[[str], None]
    lacking: list[str] = field(default_factory=list)


Plot = Callable[[Sequence[Row], Path], None]
