"""When an incident is over: a sign of recovery that takes back what it rests on, or quiet for long enough.

Pure functions over entries and the times of the signs. What is unknown never clears anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dynamo_gpu_ft.health.causes import Family
from dynamo_gpu_ft.health.entries import Entry
from dynamo_gpu_ft.health.incidents import Unusable, Verdict
from dynamo_gpu_ft.health.rules import cure_key
from dynamo_gpu_ft.health.settings import Settings

Signs = Mapping[tuple[int, str], float]
"""(device number, `cure_key`) -> when it was last told to be fine."""

NODE = -1  # as a device number: whatever concerns the driver as a whole
_LEVEL = ("recovery_action", "gpu_lost", "driver")


def recovered_at(entries: Sequence[Entry], signs: Signs) -> float | None:
    """When the incident was over by a sign of recovery, None if it is not.

    Every state that it rests on must be fine again, later than the last bad reading of any kind, and one of them must be able to
    take back the root: the driver's recovery action for anything, a GPU that answers again for a lost one or a stuck driver, and
    a probe's own state for what it told itself. A driver that was bound anew begins with a clean slate.
    """
    root = entries[0]
    last_bad = max(entry.last.at for entry in entries)
    rebound = max(signs.get((n, "rebound"), -math.inf) for n in (root.known.number, NODE))
    if rebound >= last_bad:
        return rebound if root.verdict.lasting else None
    told: list[tuple[str, float]] = []
    for entry in entries:
        key = cure_key(entry.first)
        if not key or (entry.probe != root.probe and key not in _LEVEL):
            continue
        sign = signs.get((entry.known.number, key))
        if sign is None or sign < entry.last.at:
            return None
        told.append((key, sign))
    ends = [sign for key, sign in told if _takes_back(key, root)]
    return max(ends, default=None) if max(ends, default=-math.inf) >= last_bad else None


def _takes_back(key: str, root: Entry) -> bool:
    if key == "recovery_action":
        return root.verdict.lasting
    if key == "gpu_lost":
        return root.family in (Family.BUS, Family.DRIVER, Family.RECOVERY)
    # The root's own probe; "xid 163" is a code's own.
    return key == cure_key(root.first) or key.split()[0] == root.probe != "xid"


def quiet_for(verdict: Verdict, settings: Settings) -> float | None:
    """How long after its last reading an incident with this verdict is over by itself; None: never."""
    if verdict.lasting:
        return None
    return settings.noise_s if verdict.unusable is Unusable.NOTHING else settings.quiet_s
