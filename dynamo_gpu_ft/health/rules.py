"""What one reading means by itself: the catalogue's answer for codes, and the rules for probes that have no catalogue.

Pure. Whether several readings together mean more is said elsewhere: repetition in `repeats.py`, combination in `verdict.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from dynamo_gpu_ft.health.incidents import Action, Unusable, Verdict
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.health.windows import Bounded

CODED = ("xid", "sxid", "nvlink5", "recovery_action", "cuda", "nccl")
# Probes that tell a state that can end; what they call healthy clears what they called failed.
STATES = ("recovery_action", "gpu_lost", "driver", "nvlink", "fabric", "rows", "ecc", "pcie", "throttle", "step", "process")  # fmt: skip
LEVELLED = (*STATES, "xid")  # XID 154 tells the state of the recovery action


class Meaning(Protocol):
    """The catalogue's answer: the class of a code and the verdict of one occurrence of it."""

    @property
    def class_name(self) -> str: ...

    @property
    def verdict(self) -> Verdict: ...


Catalogue = Callable[[Reading, str], "Meaning | None"]
"""Reading and driver version ("" = unknown) -> meaning; None where it has nothing to say about such a reading."""

# Facts that a meaning depends on: those that the catalogue names as its own.
_TELLING = (
    "registers", "intr_info", "error_status", "severity", "new_action", "new_text", "uvm", "previous_xid",
    "switch_arch", "error", "class",
)  # fmt: skip


class Remembered:
    """A catalogue that remembers its answers, for storms of equal readings."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._answers: Bounded[tuple[object, ...], Meaning | None] = Bounded(2048)

    def __call__(self, reading: Reading, driver: str) -> Meaning | None:
        facts = reading.facts
        told = tuple([facts.get(name) for name in _TELLING]) if facts else ()
        key = (driver, reading.probe, reading.code, told)
        try:
            return self._answers[key]
        except KeyError:
            answer = self._answers[key] = self._catalogue(reading, driver)
            return answer


def _verdict(
    unusable: Unusable, action: Action, lasting: bool, reason: str, certain: bool = True
) -> Verdict:
    return Verdict(
        unusable=unusable, action=action, lasting=lasting, reason=reason, certain=certain
    )


NOTHING = _verdict(Unusable.NOTHING, Action.NONE, False, "nothing has to be done")
CAREFUL = _verdict(
    Unusable.CONTEXT,
    Action.RESTART_CONTEXT,
    False,
    "nothing is known about this code: the careful answer is to give up the context that saw it",
    certain=False,
)
TRAINING = _verdict(
    Unusable.NOTHING,
    Action.REPORT,
    False,
    "links train and the fabric registers for a while after boot, driver load and attach: no fault yet",
)
STORM = _verdict(
    Unusable.NOTHING,
    Action.DRAIN_AND_RESET_GPU,
    True,
    "a storm of corrected memory errors: the memory is wearing out, reset the GPU when it is drained",
)

FLAPPING = _verdict(
    Unusable.LINK, Action.REBUILD_GROUP, True, "an NVLink goes up and down again and again"
)

# NVML's other events. That the recovery action has changed (0x8000) says nothing by itself: the poll tells to what.
EVENTS = {
    0x2: _verdict(Unusable.GPU, Action.RESET_GPU, True, "uncorrectable memory error"),
    0x200: STORM,
    0x400: _verdict(Unusable.NOTHING, Action.REPORT, True, "a memory row is to be replaced"),
    0x800: _verdict(Unusable.GPU, Action.RESET_GPU, True, "a memory row could not be replaced"),
    0x1000: _verdict(
        Unusable.CONTEXT, Action.RESTART_CONTEXT, False, "a contained memory error was consumed"
    ),
    0x2000: _verdict(
        Unusable.GPU, Action.RESET_GPU, True, "an uncontained memory error was consumed"
    ),
    0x4000: _verdict(
        Unusable.GPU, Action.RESET_GPU, True, "the driver reports the GPU as unavailable"
    ),
}

_FAILED = {
    "gpu_lost": _verdict(
        Unusable.GPU, Action.REBOOT_NODE, True, "the driver has lost this GPU: it does not answer"
    ),
    "driver": _verdict(
        Unusable.GPU, Action.RESET_GPU, True,
        "a driver call for this GPU did not come back in time: it is asked nothing more", False,
    ),
    "rows": _verdict(
        Unusable.GPU, Action.RESET_GPU, True, "row remapping failed: bad memory stays in use"
    ),
    "ecc": _verdict(Unusable.GPU, Action.RESET_GPU, True, "uncorrectable memory errors"),
    "nvlink": _verdict(Unusable.LINK, Action.REBUILD_GROUP, True, "an NVLink is down"),
    "fabric": _verdict(
        Unusable.LINK, Action.RESET_FABRIC, True, "the NVLink fabric does not serve this GPU"
    ),
    "pcie": _verdict(
        Unusable.GPU, Action.RESET_GPU, True, "fatal errors on the PCIe link of this GPU", False
    ),
    "step": _verdict(
        Unusable.CONTEXT, Action.RESTART_CONTEXT, True,
        "the engine's step does not end though no fault of a device explains it: it hangs",
    ),
    "process": _verdict(
        Unusable.CONTEXT, Action.RESTART_CONTEXT, True, "the process of this rank is gone"
    ),
    "throttle": _verdict(
        Unusable.NOTHING, Action.REPORT, False, "the GPU slows itself down: power or heat"
    ),
}  # fmt: skip
_CRASH = _verdict(
    Unusable.CONTEXT, Action.RESTART_CONTEXT, False, "a process crashed in a library of the GPU's"
)
_WAITS = _verdict(
    Unusable.NOTHING,
    Action.REPORT,
    False,
    "a process waits without end in the kernel, perhaps for a device",
)
_RESET_REQUIRED = _verdict(
    Unusable.GPU, Action.RESET_GPU, True, "the driver refuses calls until this GPU has been reset"
)
_UNBOUND = _verdict(
    Unusable.GPU,
    Action.REPORT,
    True,
    "somebody took this GPU from the driver; usable once it is bound again",
)
_UNLOADED = _verdict(
    Unusable.NODE,
    Action.REPORT,
    True,
    "the driver was unloaded; no GPU can be used until it is loaded again",
)
_DEGRADED = {
    "rows": _verdict(
        Unusable.NOTHING, Action.DRAIN_AND_RESET_GPU, True,
        "memory rows wait for a reset to be replaced",
    ),
    "gpu_lost": _FAILED["gpu_lost"],
    "driver": _FAILED["driver"],
    "step": _verdict(
        Unusable.NOTHING, Action.REPORT, False, "steps take much longer than they used to"
    ),
}  # fmt: skip
_REPORT = _verdict(Unusable.NOTHING, Action.REPORT, False, "works, but not as well as it should")


def meaning(reading: Reading, driver: str, catalogue: Catalogue) -> tuple[Verdict, str]:
    """Verdict of this reading alone, and the class of its code ("" where there is none)."""
    if reading.probe in CODED:
        found = catalogue(reading, driver)
        if found is not None:
            return found.verdict, found.class_name
        if reading.probe != "recovery_action":
            return CAREFUL, "UNKNOWN"
    if reading.probe == "driver" and reading.facts.get("event", ""):
        return (_UNLOADED if reading.device.kind == "node" else _UNBOUND), ""
    if reading.probe == "crash":
        return _CRASH, ""
    if reading.probe == "hung_task":
        return _WAITS, ""
    if reading.probe == "gpu_lost" and reading.code == 16:
        return _RESET_REQUIRED, ""
    if reading.probe == "event":
        return EVENTS.get(reading.code or 0, NOTHING), ""
    if reading.probe == "step" and reading.facts.get("kind") == "gone":
        return _FAILED["process"], ""
    if reading.state is State.FAILED:
        return _FAILED.get(reading.probe, CAREFUL), ""
    return _DEGRADED.get(reading.probe, _REPORT), ""


_NOT_SUPPORTED = re.compile(r"not[ _]supported", re.IGNORECASE)


def says_nothing(reading: Reading) -> bool:
    """Whether a reading only says that it cannot say anything: the device has no such thing, or the code is none."""
    if reading.facts.get("supported", "").lower() in ("no", "false", "0"):
        return True
    if reading.probe in ("nvlink", "fabric", "rows", "ecc") and _NOT_SUPPORTED.search(reading.text):
        return True
    # NOTE: clock events of old drivers arrive as XID 0.
    return reading.probe == "xid" and (reading.code is None or reading.code == 0)


_CHANGED_TO = re.compile(r"\bto 0x([0-9a-f]{1,8}) \(", re.IGNORECASE)


def is_rebound(reading: Reading) -> bool:
    """Whether a reading says that the driver was loaded or bound anew: what it knew before is over, links train again."""
    event = reading.facts.get("event", "")
    return reading.probe == "driver" and event in ("loaded", "bind", "bound", "rebound")


def wanted_recovery(reading: Reading) -> int | None:
    """The recovery action that a reading reports as the driver's present wish (0: none any more); None: it reports none."""
    if reading.probe == "recovery_action":
        return reading.code
    if reading.probe != "xid" or reading.code != 154:
        return None
    told = reading.facts.get("new_action", "")
    match = _CHANGED_TO.search(reading.text)
    try:
        return int(told, 0) if told else int(match[1], 16) if match else None
    except ValueError:
        return None


def cures(reading: Reading) -> str:
    """What a reading says is over, as a key of `cure_key`; "" when it is no sign of recovery.

    Unknown is no sign of anything."""
    if reading.state is State.UNKNOWN:
        return ""
    wanted = wanted_recovery(reading)
    if wanted is not None:
        return "recovery_action" if wanted == 0 else ""
    if reading.probe == "xid" and reading.code == 162:
        return "xid 163"
    if reading.state is State.HEALTHY and reading.probe in STATES:
        return cure_key(reading)
    return ""


def cure_key(reading: Reading) -> str:
    """Which sign of recovery would end what this reading tells; "" for what no probe can take back."""
    if wanted_recovery(reading) is not None:
        return "recovery_action"
    if reading.probe == "xid" and reading.code == 163:
        return "xid 163"
    if reading.probe not in STATES:
        return ""
    where = reading.facts.get("link", "") if reading.probe == "nvlink" else ""
    if reading.probe in ("step", "process") and reading.shard is not None:
        where = f"shard {reading.shard}"
    return f"{reading.probe} {where}".strip()
