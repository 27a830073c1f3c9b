"""The newest word of every probe that tells a state, per device: what `snapshot` shows, and what the baseline is compared with.

NVML forgets what came before watching began, so a state that was there already is no news until it has changed.
"""

from __future__ import annotations

from dynamo_gpu_ft.health.entries import bounded
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.health.rules import STATES, cure_key
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.windows import Bounded


class Levels:
    def __init__(self, room: int = 2048) -> None:
        self._newest: Bounded[tuple[int, str], Reading] = Bounded(room)
        self._baseline: Bounded[tuple[int, str], Reading] = Bounded(room)

    def put(self, number: int, reading: Reading, settings: Settings) -> bool:
        """Remembers a reading of device `number`; false when it only repeats what was so before watching began."""
        key = (number, cure_key(reading)[:64])
        if not key[1]:
            return True
        reading = bounded(reading, settings)
        newest = self._newest.get(key)
        if newest is None or reading.at >= newest.at:
            self._newest[key] = reading
        if reading.baseline:
            self._baseline[key] = reading
            return True
        before = self._baseline.get(key)
        if before is None:
            return True
        if (before.state, before.code) == (reading.state, reading.code):
            return False
        if reading.at >= before.at:
            del self._baseline[key]
        return True

    def newest(self) -> tuple[Reading, ...]:
        return tuple(reading for reading in self._newest.values() if reading.probe in STATES)
