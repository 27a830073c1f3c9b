"""A whole log as faults: its records through fusion with the log's own time, boot after boot. Pure.

Behind `dynamo-gpu-ft explain log`: what the monitor does live, done afterwards. Records come from the native parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from dynamo_gpu_ft.health.fusion import Fusion
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.topology import Rank

# Time since boot that goes back by more than this is another boot; less is the disorder of a log with several writers.
_REBOOT_S = 60.0
# Lines without any time are taken to be this far apart: neighbours belong together, pages do not.
_LINE_S = 0.5
_AT_ONCE = 4096


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The faults of a log.

    incidents  last versions, in the order of their first reading; those that turned out to be parts of others are left out
    driver     the version that decided what codes mean, "" when neither given nor in the log
    timed      false: no line had a time, so that the order of lines stood in for it
    """

    incidents: tuple[Incident, ...]
    readings: int
    unread: int
    boots: int
    driver: str
    timed: bool


def faults(
    records: Sequence[Any],
    translate: Callable[[Any], Reading | None],
    *,
    driver: str = "",
    ranks: Sequence[Rank] = (),
) -> Found:
    """`records` as the native parser gives them, in the log's order; `translate` makes a reading of one."""
    timed = any("clock" in record.facts for record in records)
    driver = driver or _driver_of(records)
    found: list[Incident] = []
    boots = readings = unread = 0
    for boot in _boots(records):
        boots += 1
        fusion = Fusion(driver=driver, ranks=ranks, prefix=f"boot{boots}" if boots > 1 else "fault", booted=_booted(boot))  # fmt: skip
        last: dict[str, Incident] = {}
        taken = [_reading(record, translate, timed) for record in boot]
        for start in range(0, len(taken), _AT_ONCE):
            batch = [reading for reading in taken[start : start + _AT_ONCE] if reading is not None]
            readings += len(batch)
            for incident in fusion.add_all(batch):
                last[incident.id] = incident
        unread += sum(reading is None for reading in taken)
        end = max((reading.at for reading in taken if reading is not None), default=0.0)
        # What only had to settle is told; that a log ends is no sign that a fault is over.
        for incident in fusion.tick(end + fusion.settings.window_s + 1e-3):
            last[incident.id] = incident
        for incident in fusion.open():
            last[incident.id] = incident  # with its last counts
        found += [incident for incident in last.values() if incident.ended != "merged"]
    return Found(
        incidents=tuple(found),
        readings=readings,
        unread=unread,
        boots=boots,
        driver=driver,
        timed=timed,
    )


def _boots(records: Sequence[Any]) -> Iterator[list[Any]]:
    """The records of each boot. Time on the wall tells no boots."""
    boot: list[Any] = []
    latest = 0.0
    for record in records:
        at = record.at_ns / 1e9
        if record.facts.get("clock") == "boot":
            if boot and at < latest - _REBOOT_S:
                yield boot
                boot, latest = [], at
            latest = max(latest, at)
        boot.append(record)
    if boot:
        yield boot


def _booted(records: Iterable[Any]) -> float | None:
    """When the machine booted on the clock of these records, None if it cannot be known."""
    return 0.0 if any(record.facts.get("clock") == "boot" for record in records) else None


def _reading(
    record: Any, translate: Callable[[Any], Reading | None], timed: bool
) -> Reading | None:
    reading = translate(record)
    if reading is None or timed:
        return reading
    return msgspec.structs.replace(reading, at=record.serial * _LINE_S, time=0.0)


def _driver_of(records: Iterable[Any]) -> str:
    versions = (r.facts.get("version", "") for r in records if r.what == "driver_loaded")
    return next((version for version in versions if version), "")
