"""The closed set of errors this package raises on purpose, each naming what failed, where, the value, the rule and a remedy.

Head of the vocabulary: every room raises these and nothing else, so a caller needs one `except GpuFtError`. Native failures
arrive as the core's own `CoreError` and are turned into one of these at the seam where their meaning is known.
"""

from __future__ import annotations

from typing import Any


class GpuFtError(Exception):
    """One failure told in five parts; `str()` renders them in one message.

    what    the thing that failed, as a sentence without a full stop
    where   file, key, process or request in which it failed; may be empty
    value   what was seen; None when there is nothing to show
    rule    what would have been right; may be empty
    remedy  one thing to try; may be empty

    Survives pickling, because engines carry exceptions between processes.
    """

    def __init__(
        self, what: str, *, where: str = "", value: Any = None, rule: str = "", remedy: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.value = value
        self.rule = rule
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" (at {self.where})"
        if self.value is not None:
            text += f": got {_shown(self.value)}"
        if self.rule:
            text += f"; {self.rule}"
        if self.remedy:
            text += f". Try: {self.remedy}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.what, self.where, self.value, self.rule, self.remedy)
        return (_rebuild, (type(self), *parts))


class ConfigError(GpuFtError):
    """A configuration key is unknown, malformed, out of range or contradicts another one."""


class CoreUnavailable(GpuFtError):
    """The native core cannot be loaded on this machine; nothing can be protected until it can."""


class ArenaError(GpuFtError):
    """An arena cannot be made, opened or trusted: no space, damaged, of another geometry, or owned by a live writer."""


class NotProtected(GpuFtError):
    """Protection could not be set up; the engine may go on without it and says so once."""


class PortableError(GpuFtError):
    """A folder of exported KV blocks is incomplete, contradicts itself or was changed; nothing of it was used."""


class HealthError(GpuFtError):
    """A source of health readings cannot be set up; what it would have seen stays unknown."""


class StoreUnavailable(GpuFtError):
    """A membership store did not answer within its deadline, or holds what it never could have been given; nothing is known then."""


class WeightsError(GpuFtError):
    """Weights cannot be had from one source: absent, torn, forged, of another model, or late; the next source is asked."""


class SlotError(GpuFtError):
    """An expert slot cannot be written, trusted or committed: wrong bytes, a stale epoch, no room; the map is as it was."""


class PlacementError(GpuFtError):
    """No placement of experts meets what is asked of it, or what was given to the planner contradicts itself."""


class CertificateError(GpuFtError):
    """A placement does not survive what its certificate says, or the certificate speaks of another one."""


class NvrxError(GpuFtError):
    """NVIDIA's resiliency extension lacks something that is needed, or a launcher could not be run with what it was given."""


class RecoveryFailed(GpuFtError):
    """A recovery ended in FAILED: its reason, after every allowed restart; open requests get this error."""


def _shown(value: Any, limit: int = 200) -> str:
    """`repr` of a value, cut in the middle: a hostile or huge value must not fill the log."""
    text = repr(value)
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def _rebuild(
    kind: type[GpuFtError], what: str, where: str, value: Any, rule: str, remedy: str
) -> GpuFtError:
    return kind(what, where=where, value=value, rule=rule, remedy=remedy)
