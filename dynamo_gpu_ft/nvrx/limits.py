"""How long a rank may be silent, how long each section of its life may last, and how it ends: one frozen `Limits` for both back ends.

Made from the project's settings and the command line, before anything is started; `translate` turns it into NVRx's words, the built-in
monitor reads it as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ConfigError

#: The sections of a rank's life. Between two steps it is idle, and idle never times out: a server may wait for ever.
WEIGHTS, COMPILE, CAPTURE, STEP, IDLE = "weights", "compile", "capture", "step", "idle"
HEARTBEAT_S = 10.0
STOP_S = 10.0
NO_RESTART_CODE = 93
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Limits:
    """heartbeat_s   longest silence of a connected rank's process, in seconds
    sections         section -> seconds it may last; None: for ever. A section that is not named may last for ever
    config           restarts, their window and the pauses between them
    stop_s           seconds from SIGTERM to SIGKILL
    no_restart_code  exit status that says: do not start this again
    """

    config: Config
    sections: Mapping[str, float | None] = field(default_factory=dict)
    heartbeat_s: float = HEARTBEAT_S
    stop_s: float = STOP_S
    no_restart_code: int = NO_RESTART_CODE

    def __post_init__(self) -> None:
        for name, seconds in self.sections.items():
            where = f"section {name!r}"
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    "name of a section is malformed",
                    value=name,
                    rule="lower-case letters, digits and _, at most 32, a letter first",
                    remedy="one of weights, compile, capture, step",
                )
            if name == IDLE and seconds is not None:
                raise ConfigError(
                    "the idle section cannot have a limit",
                    where=where,
                    value=seconds,
                    rule="a rank without requests may wait for ever",
                    remedy="a limit for step, or a shorter heartbeat",
                )
            _positive(where, seconds)
        _positive("heartbeat", self.heartbeat_s)
        _positive("stop", self.stop_s)
        if not 1 <= self.no_restart_code <= 125:
            raise ConfigError(
                "exit status of `do not restart` is out of range",
                value=self.no_restart_code,
                rule="between 1 and 125: more is the shell's",
                remedy=f"leave it out for {NO_RESTART_CODE}",
            )

    @property
    def check_s(self) -> float:
        """How often a monitor has to look, so that a limit is overrun by a quarter at most."""
        finite = [limit for limit in (*self.sections.values(), self.heartbeat_s) if limit]
        return min(5.0, max(0.1, min(finite) / 4))


def limits_of(config: Config, sections: Mapping[str, float | None] | None = None) -> Limits:
    """The limits that the project's settings mean, with the sections that somebody named instead."""
    start = config.start_timeout_s
    known: dict[str, float | None] = {
        WEIGHTS: start,
        COMPILE: start,
        CAPTURE: start,
        STEP: config.hang_unknown_s,
        IDLE: None,
    }
    return Limits(config=config, sections={**known, **(sections or {})})


def parse_section(text: str) -> tuple[str, float | None]:
    """`NAME=SECONDS` or `NAME=none`. Raises `ConfigError`."""
    name, equals, value = text.partition("=")
    if value.lower() in ("none", "never") and equals:
        return name, None
    try:
        return name, float(value)
    except ValueError:
        raise ConfigError(
            "limit of a section is malformed",
            where="--section",
            value=text,
            rule="NAME=SECONDS, or NAME=none for no limit",
            remedy="--section step=30",
        ) from None


def _positive(where: str, seconds: float | None) -> None:
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(
            "a limit is out of range",
            where=where,
            value=seconds,
            rule="a finite number of seconds, more than 0",
            remedy="none, where nothing should ever time out",
        )
