"""Runs NVRx's `ft_launcher` as a child of ours: the configuration file, the signals, what is left when it ends, what its end means.

It is a child and not `exec`, because its exit status does not tell everything and a SIGKILL of it leaves its ranks behind.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping

from dynamo_gpu_ft.errors import NvrxError
from dynamo_gpu_ft.nvrx import asked
from dynamo_gpu_ft.nvrx.children import Child
from dynamo_gpu_ft.nvrx.keeper import Keeper
from dynamo_gpu_ft.nvrx.limits import Limits
from dynamo_gpu_ft.nvrx.outcome import Outcome, of_launcher
from dynamo_gpu_ft.nvrx.signals import Signals
from dynamo_gpu_ft.nvrx.translate import Launch
from dynamo_gpu_ft.recovery import waiting

KILL_S = 10.0
#: The launcher's own way from the end of its ranks to its own.
_MARGIN_S = 10.0


def yaml_of(config: Mapping[str, object]) -> str:
    """A configuration as YAML. JSON is YAML, where PyYAML is missing."""
    try:
        import yaml
    except ImportError:
        return json.dumps(config, indent=2) + "\n"
    return str(yaml.safe_dump(dict(config), sort_keys=False))


def run(launch: Launch, limits: Limits, folder: str, config_path: str, keeper: Keeper) -> Outcome:
    """Blocks until the launcher and everything it started is gone. Raises `NvrxError` if it cannot be started."""
    notes = os.path.join(folder, "asked")
    try:
        with open(config_path, "x") as file:
            file.write(yaml_of(launch.config))
        asked.make(notes)
    except OSError as error:
        raise NvrxError(
            "the launcher's folder cannot be written", where=folder, value=str(error)
        ) from None
    tag = os.path.basename(folder)
    keeper.watch(tag)
    environ = {**os.environ, asked.VARIABLE: notes}
    with Signals() as signals:
        try:
            child = Child([sys.executable, *launch.argv], tag=tag, environ=environ)
        except OSError as error:
            raise NvrxError("NVRx's launcher cannot be started", value=str(error)) from None
        try:
            _wait(child, signals, limits.stop_s + _MARGIN_S)
        finally:
            left = child.kill(KILL_S)
            child.close()
        status = child.poll()
        outcome = of_launcher(
            1 if status is None else status,
            asked.read(notes),
            limits=limits,
            by_signal=signals.received(),
        )
    if left:
        return Outcome(outcome.status or 1, f"{outcome.reason}; still there: {left}".lstrip("; "))
    return outcome


def _wait(child: Child, signals: Signals, grace_s: float) -> None:
    """Until the child has ended, or `grace_s` after we were told to end."""
    give_up: float | None = None
    while True:
        timeout = None if give_up is None else max(0.0, give_up - time.monotonic())
        watched = [child.descriptor] + ([signals.descriptor] if give_up is None else [])
        ready = waiting.readable(watched, timeout)
        if child.descriptor in ready or not ready:
            return
        child.ask_to_end()
        give_up = time.monotonic() + grace_s
