"""What the installed nvidia-resiliency-ext offers, looked up in its own parser, fields and signatures: never by its version.

Runs in a process of its own (`python -m dynamo_gpu_ft.nvrx.look` prints one JSON object), because the package brings torch with it and
the launcher has to stay small. `missing` says what a use of ours lacks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from dynamo_gpu_ft.errors import NvrxError

PACKAGE = "nvidia_resiliency_ext"
LAUNCHER = f"{PACKAGE}.fault_tolerance.launcher"
LOOK_S = 120.0
#: What the launcher must understand, each in one of its spellings.
FLAGS = (
    ("--nproc-per-node",),
    ("--nnodes",),
    ("--max-restarts",),
    ("--monitor-interval",),
    ("--no-python",),
    ("--rdzv-backend",),
    ("--rdzv-endpoint",),
    ("--rdzv-id",),
    ("--ft-cfg-path", "--fault-tol-cfg-path"),
)
FIELDS = (
    "initial_rank_heartbeat_timeout",
    "rank_heartbeat_timeout",
    "rank_section_timeouts",
    "rank_out_of_section_timeout",
    "rank_termination_signal",
    "workload_check_interval",
)
#: Method of the client -> parameters it must take, in our words.
CLIENT = {
    "init_workload_monitoring": (),
    "shutdown_workload_monitoring": (),
    "send_heartbeat": (),
    "start_section": ("section",),
    "end_section": ("section",),
    "send_workload_control_request": ("req",),
}
ACTIONS = ("ExcludeThisNode", "ShutdownWorkload")


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """Names only. `where` and `version` are for people; nothing is decided by them."""

    where: str
    version: str
    flags: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    client: dict[str, list[str]] = {}
    actions: frozenset[str] = frozenset()

    def flag(self, *spellings: str) -> str | None:
        """The first spelling that is offered."""
        return next((name for name in spellings if name in self.flags), None)


def installed() -> bool:
    """Whether a package of that name can be found; imports nothing."""
    return importlib.util.find_spec(PACKAGE) is not None


def missing(offered: Offered) -> list[str]:
    """What the launcher and the rank's side need and the package does not have, in words."""
    lacks = [f"flag {spellings[0]}" for spellings in FLAGS if not offered.flag(*spellings)]
    lacks += [
        f"field {name} of FaultToleranceConfig" for name in FIELDS if name not in offered.fields
    ]
    lacks += missing_of_client(offered)
    return lacks


def missing_of_client(offered: Offered) -> list[str]:
    lacks = []
    for method, parameters in CLIENT.items():
        if method not in offered.client:
            lacks.append(f"method {method} of RankMonitorClient")
            continue
        has = offered.client[method]
        lacks += [
            f"parameter {p} of RankMonitorClient.{method}" for p in parameters if p not in has
        ]
    return lacks + [f"WorkloadAction.{name}" for name in ACTIONS if name not in offered.actions]


def demand(lacks: list[str], offered: Offered) -> None:
    """Raises `NvrxError` that names everything that is missing."""
    if lacks:
        raise NvrxError(
            "nvidia-resiliency-ext does not offer what is needed: " + ", ".join(lacks),
            where=f"version {offered.version} in {offered.where}",
            rule="flags and signatures are compared, whatever the version",
            remedy="pip install nvidia-resiliency-ext==0.4.1, or --backend builtin",
        )


def look(timeout_s: float = LOOK_S) -> Offered:
    """Asks a child process of this interpreter. Blocks for its start (torch's import). Raises `NvrxError`."""
    command = [sys.executable, "-m", __name__]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise NvrxError(
            "nvidia-resiliency-ext could not be looked at in time",
            value=f"{timeout_s:g} s",
            remedy="--backend builtin",
        ) from None
    if answer.returncode != 0:
        said = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        raise NvrxError(
            "nvidia-resiliency-ext cannot be imported",
            where=sys.executable,
            value=said,
            remedy="pip install nvidia-resiliency-ext, or --backend builtin",
        )
    # The package's own modules may print while they are imported; ours is the last line.
    return msgspec.json.decode(answer.stdout.strip().splitlines()[-1], type=Offered)


def look_here(*, launcher: bool = True) -> Offered:
    """The same in this process. Imports the package, and torch with it. Names that are not there are simply not offered."""
    tolerance = importlib.import_module(f"{PACKAGE}.fault_tolerance")
    package = importlib.import_module(PACKAGE)
    flags: Iterable[str] = ()
    if launcher:
        parser = getattr(importlib.import_module(LAUNCHER), "get_args_parser", None)
        flags = getattr(parser(), "_option_string_actions", {}) if parser else ()
    config = getattr(tolerance, "FaultToleranceConfig", None)
    return Offered(
        where=str(next(iter(getattr(package, "__path__", [])), "?")),
        version=_version(),
        flags=frozenset(flags),
        fields=frozenset(getattr(config, "__dataclass_fields__", {})),
        client=_methods(getattr(tolerance, "RankMonitorClient", None)),
        actions=frozenset(getattr(getattr(tolerance, "WorkloadAction", None), "__members__", {})),
    )


def _methods(kind: Any) -> dict[str, list[str]]:
    found = {}
    for name, value in vars(kind).items() if kind is not None else ():
        if not name.startswith("_") and callable(value):
            found[name] = [p for p in inspect.signature(value).parameters if p != "self"]
    return found


def _version() -> str:
    try:
        return importlib.metadata.version("nvidia-resiliency-ext")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    print(json.dumps(msgspec.to_builtins(look_here())))
