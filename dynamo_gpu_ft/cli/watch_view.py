"""What `watch` shows: tables of GPUs, sources, open faults and step heartbeats, as rows that a terminal or a plain text can draw.

Pure: state in (the answer of the health endpoint), rows out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamo_gpu_ft.cli.render import columns
from dynamo_gpu_ft.health.catalogue import lookup
from dynamo_gpu_ft.topology import Device


@dataclass(frozen=True)
class Table:
    """`empty` stands in for rows when there are none; `bad` are the rows to be seen first."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str
    bad: frozenset[int] = frozenset()


def tables(state: Mapping[str, Any], now: float) -> list[Table]:
    """`now` on the clock of the heartbeats."""
    return [_gpus(state), _faults(state), _sources(state), _beats(state, now)]


def as_text(shown: Sequence[Table]) -> str:
    parts = []
    for table in shown:
        if table.rows:
            parts.append(f"{table.title}\n{columns(table.headers, table.rows)}")
        else:
            parts.append(f"{table.title}: {table.empty}")
    return "\n\n".join(parts)


def _gpus(state: Mapping[str, Any]) -> Table:
    rows, bad = [], set()
    for number, gpu in enumerate(state["gpus"]):
        here = _device(gpu)
        faults = [
            fault
            for fault in state["incidents"]
            if any(here.same(_device(device)) for device in fault["devices"])
        ]
        wanted = next(
            (
                each["code"]
                for each in state["states"]
                if each["probe"] == "recovery_action" and here.same(_device(each["device"]))
            ),
            None,
        )
        worst = max((fault["verdict"]["unusable"] for fault in faults), key=_severity, default="")
        if worst and worst != "nothing":
            bad.add(number)
        rows.append(
            (
                "" if here.index is None else str(here.index),
                here.bdf,
                here.uuid,
                "usable" if not bad & {number} else f"unusable: {worst}",
                "" if not wanted else lookup.recovery_action(wanted).title,
                ", ".join(fault["name"] for fault in faults),
            )
        )
    headers = ("gpu", "address", "uuid", "verdict", "driver asks for", "faults")
    return Table("GPUs", headers, tuple(rows), _no_gpus(state), frozenset(bad))


def _no_gpus(state: Mapping[str, Any]) -> str:
    nvml = state["sources"].get("nvml")
    why = "" if nvml is None or nvml["active"] else f": {nvml['reason']}"
    return f"none can be seen{why}"


def _faults(state: Mapping[str, Any]) -> Table:
    rows, bad = [], set()
    for number, fault in enumerate(state["incidents"]):
        verdict = fault["verdict"]
        if verdict["unusable"] != "nothing":
            bad.add(number)
        rows.append(
            (
                fault["id"],
                fault["name"],
                ", ".join(str(_device(device)) for device in fault["devices"]),
                ", ".join(map(str, fault["shards"])),
                verdict["unusable"] + ("" if verdict["certain"] else "?"),
                verdict["action"].replace("_", " "),
                str(sum(each["count"] for each in fault["evidence"]) + fault["dropped"]),
            )
        )
    headers = ("id", "fault", "where", "ranks", "unusable", "to do", "readings")
    return Table("Open faults", headers, tuple(rows), "none", frozenset(bad))


def _sources(state: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, "active" if source["active"] else "not available", source["reason"])
        for name, source in state["sources"].items()
    )
    return Table("Sources", ("source", "state", "why not"), rows, "none was opened")


def _beats(state: Mapping[str, Any], now: float) -> Table:
    beats = state["heartbeat"] or {}
    rows: list[tuple[str, ...]] = []
    bad = set()
    for beat in beats.get("ranks", ()):
        silent = now - beat["tick"]
        phase = beat["phase"]
        if phase not in ("left", "empty") and silent > 1.0:
            bad.add(len(rows))
            phase += f", silent for {silent:.1f} s"
        elif phase == "step":
            phase = f"in a step for {max(now - beat['began'], 0.0):.2f} s"
        rows.append((str(beat["rank"]), str(beat["pid"]), str(beat["step"]), phase))
    headers = ("rank", "pid", "steps", "now")
    return Table("Step heartbeats", headers, tuple(rows), beats.get("why_not", "none"), frozenset(bad))  # fmt: skip


def _device(plain: Mapping[str, Any]) -> Device:
    return Device(
        **{name: plain[name] for name in ("kind", "bdf", "uuid", "index", "gi", "ci") if name in plain}
    )  # fmt: skip


_ORDER = ("nothing", "context", "link", "gpu", "node")


def _severity(unusable: str) -> int:
    return _ORDER.index(unusable)
