"""Our limits in NVRx's words: the command line of its `ft_launcher` and the configuration file it reads. Pure.

What the installed package does not offer is left out and said in a note, so that nobody believes in a limit that is not there; what it
must offer has been checked before (`look.missing`).
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.nvrx.limits import Limits
from dynamo_gpu_ft.nvrx.look import LAUNCHER, Offered

#: Fields that follow from our limits; `--set` may not contradict them.
OURS = (
    "initial_rank_heartbeat_timeout",
    "rank_heartbeat_timeout",
    "rank_section_timeouts",
    "rank_out_of_section_timeout",
    "rank_termination_signal",
    "workload_check_interval",
)
#: Fields that not every package has, and what they must say for a server: no step waits for an answer, and an engine that writes no
#: training checkpoints is not taken for one without progress.
WHERE_OFFERED: Mapping[str, Any] = {"skip_section_response": True, "max_no_progress_cycles": 0}


#: How often the launcher asks whether a rank has ended; limits are looked at by its monitors, at an interval of their own.
EXITS_S = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """What is to run, as the command line says it.

    ranks      processes on this node;  nodes: how many nodes, "1" or "MIN:MAX"
    endpoint   HOST:PORT where the nodes meet;  name: the same on all of them
    extra      further fields of NVRx's configuration, given by name
    """

    command: tuple[str, ...]
    ranks: int = 1
    nodes: str = "1"
    endpoint: str = ""
    name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """`argv` is a whole command line without the interpreter; `config` the content of the file whose path it names."""

    argv: tuple[str, ...]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def launch(job: Job, limits: Limits, offered: Offered, config_path: str) -> Launch:
    """Raises `ConfigError` for a field of `extra` that the package does not have or that is decided here."""
    notes: list[str] = []
    flags: dict[str, str] = {
        "--nproc-per-node": str(job.ranks),
        "--nnodes": job.nodes,
        "--rdzv-backend": "c10d",
        "--rdzv-endpoint": job.endpoint,
        "--rdzv-id": job.name,
        "--max-restarts": str(limits.config.max_restarts),
        "--monitor-interval": f"{min(EXITS_S, limits.check_s):g}",
    }
    grace = str(max(1, math.ceil(limits.stop_s)))
    wanted = {
        "--log-dir": os.path.dirname(config_path),  # else it leaves a folder behind for each run
        "--term-timeout": grace,
        "--workers-stop-timeout": grace,
        "--ft-no-restart-exit-code": str(limits.no_restart_code),
    }
    for name, value in wanted.items():
        if offered.flag(name):
            flags[name] = value
        elif name == "--log-dir":
            continue
        elif name == "--ft-no-restart-exit-code":
            notes.append(
                f"{name} is not offered: this command answers with status {limits.no_restart_code} itself"
            )
        else:
            notes.append(f"{name} is not offered: the package's own grace time holds")
    notes.append(
        "restart_window_s and back-off are not offered: max_restarts counts over the whole run, "
        "restarts follow at once"
    )
    cfg = offered.flag("--ft-cfg-path", "--fault-tol-cfg-path") or "--ft-cfg-path"
    argv = ["-m", LAUNCHER, *(f"{name}={value}" for name, value in flags.items())]
    argv += [f"{cfg}={config_path}", "--no-python", *job.command]
    return Launch(tuple(argv), _config(limits, offered, job.extra, notes), tuple(notes))


def _config(
    limits: Limits, offered: Offered, extra: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "workload_check_interval": limits.check_s,
        # The rank's side beats from the moment it connects, from a thread of its own: the first beat is no later than others.
        "initial_rank_heartbeat_timeout": limits.heartbeat_s,
        "rank_heartbeat_timeout": limits.heartbeat_s,
        "rank_section_timeouts": dict(limits.sections),
        "rank_out_of_section_timeout": None,  # idle, or a section that nobody limited
        "rank_termination_signal": "SIGKILL",
    }
    fields |= {name: value for name, value in WHERE_OFFERED.items() if name in offered.fields}
    for name, value in extra.items():
        if name in OURS:
            raise ConfigError(
                "a field of NVRx's configuration is decided by this project's limits",
                where="--set",
                value=name,
                rule="sections, heartbeat and check interval come from the options of their own",
                remedy="--section, --heartbeat",
            )
        if name not in offered.fields:
            raise ConfigError(
                "NVRx's configuration has no such field",
                where="--set",
                value=name,
                rule=f"version {offered.version} has {', '.join(sorted(offered.fields))}",
                remedy="leaving it out",
            )
        fields[name] = value
    return {"fault_tolerance": fields}


def shown(argv: Sequence[str], python: str) -> str:
    """The command line as a shell takes it, one flag a line."""
    return " \\\n    ".join(shlex.quote(part) for part in [python, *argv])
