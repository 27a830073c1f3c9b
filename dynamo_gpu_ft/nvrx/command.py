"""The command line `python -m dynamo_gpu_ft.nvrx`: options to limits, the choice of the back end, the dry run, the exit status.

The only place that decides whether NVRx or the built-in monitor runs the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import traceback
import uuid
from collections.abc import Sequence
from typing import Any

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ConfigError, GpuFtError, NvrxError
from dynamo_gpu_ft.events import EventStream, Journal, one_line
from dynamo_gpu_ft.nvrx import launcher, look, translate
from dynamo_gpu_ft.nvrx.builtin import BuiltinMonitor
from dynamo_gpu_ft.nvrx.keeper import Keeper
from dynamo_gpu_ft.nvrx.limits import (
    HEARTBEAT_S,
    NO_RESTART_CODE,
    STOP_S,
    Limits,
    limits_of,
    parse_section,
)
from dynamo_gpu_ft.nvrx.outcome import COULD_NOT_RUN, Outcome
from dynamo_gpu_ft.nvrx.translate import Job, Launch

PROGRAM = "python -m dynamo_gpu_ft.nvrx"
_EPILOG = f"""\
back ends
  nvrx     the ft_launcher of the installed nvidia-resiliency-ext, 0.4.1 or later: what it offers is looked up, not its version
  builtin  this project's own monitor, one node: exits, heartbeats and sections over a Unix socket, restarts with back-off
  auto     nvrx where it is installed and offers what is needed, else builtin

the rank's side: `from dynamo_gpu_ft.nvrx.rank import Rank` tells sections and steps; a rank without it is watched by its exit alone.
Restarts, window, back-off and default limits come from the project's settings: DYN_GPU_FT_MAX_RESTARTS, ..._START_TIMEOUT_S, ...

exit status: 0 every rank ended well; 1 given up, or not restarted on this node; 2 could not run; {NO_RESTART_CODE} (--no-restart-code) not to be
started again; 128+N ended by signal N
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one job; returns its exit status. `argv` is without the program's name."""
    options = parser().parse_args(argv)
    try:
        outcome = run(options)
    except GpuFtError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return COULD_NOT_RUN
    except Exception:
        traceback.print_exc()
        return COULD_NOT_RUN
    if outcome.reason:
        print(f"{PROGRAM}: {outcome.reason}", file=sys.stderr)
    return outcome.status


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [options] -- COMMAND...",
        description="Starts the ranks of an engine, watches them and starts them again within limits.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--backend", choices=["auto", "nvrx", "builtin"], default="auto", help="default: auto")
    add("--ranks", type=int, default=1, metavar="N", help="processes on this node; default: 1")
    add("--nodes", default="1", metavar="N|MIN:MAX", help="nodes of the job; default: 1 (nvrx)")
    add("--endpoint", default="", metavar="HOST:PORT", help="where several nodes meet (nvrx)")
    add("--name", default="", help="name of the job, the same on all nodes (nvrx)")
    add(
        "--section", action="append", default=[], metavar="NAME=SECONDS",
        help="longest stay in weights, compile, capture, step or a section of your own; none: for ever; idle never times out",
    )  # fmt: skip
    add(
        "--heartbeat", type=float, default=HEARTBEAT_S, metavar="SECONDS",
        help=f"longest silence of a rank's process; default: {HEARTBEAT_S:g}",
    )  # fmt: skip
    add("--max-restarts", type=int, metavar="N", help="instead of the setting max_restarts")
    add(
        "--stop", type=float, default=STOP_S, metavar="SECONDS",
        help=f"from SIGTERM to SIGKILL; default: {STOP_S:g}",
    )  # fmt: skip
    add("--no-restart-code", type=int, default=NO_RESTART_CODE, metavar="N", help="see below")
    add(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="further field of NVRx's own configuration, value as JSON or text (nvrx)",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="print what would be started, and start nothing")
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what each rank runs")
    return made


def run(options: argparse.Namespace) -> Outcome:
    job, limits = _job(options), _limits(options)
    backend, offered = _backend(options.backend, job)
    if options.dry_run:
        folder = os.path.join(tempfile.gettempdir(), "gpu-ft-DRYRUN")
    else:
        folder = tempfile.mkdtemp(prefix="gpu-ft-")
    if backend == "nvrx":
        assert offered is not None
        config_path = os.path.join(folder, "nvrx.yaml")
        launch = translate.launch(job, limits, offered, config_path)
        if options.dry_run:
            _show(launch, offered, config_path)
            return Outcome(0)
        for note in launch.notes:
            print(f"{PROGRAM}: {note}", file=sys.stderr)
        keeper = Keeper(folder)
        try:
            return launcher.run(launch, limits, folder, config_path, keeper)
        finally:
            keeper.close()
    if options.dry_run:
        _show_builtin(job, limits)
        return Outcome(0)
    return _builtin(job, limits, folder)


def _builtin(job: Job, limits: Limits, folder: str) -> Outcome:
    events = EventStream(lambda event: print(f"{PROGRAM}: {one_line(event)}", file=sys.stderr))
    if limits.config.journal:
        events.add(Journal(limits.config.journal))
    keeper = Keeper(folder)
    try:
        return BuiltinMonitor(job, limits, folder, keeper, events).run()
    finally:
        keeper.close()


def _backend(wanted: str, job: Job) -> tuple[str, look.Offered | None]:
    """Which back end runs, and what NVRx offers if it is that one. Raises `NvrxError` if the wanted one cannot."""
    if wanted == "builtin":
        _only_one_node(job)
        return "builtin", None
    if not look.installed():
        if wanted == "nvrx":
            raise NvrxError(
                "nvidia-resiliency-ext is not installed",
                where=sys.executable,
                remedy="pip install nvidia-resiliency-ext, or --backend builtin",
            )
        _only_one_node(job)
        return "builtin", None
    try:
        offered = look.look()
        look.demand(look.missing(offered), offered)
    except NvrxError as error:
        if wanted == "nvrx":
            raise
        _only_one_node(job)
        print(f"{PROGRAM}: the built-in monitor runs this: {error}", file=sys.stderr)
        return "builtin", None
    return "nvrx", offered


def _only_one_node(job: Job) -> None:
    given = [f"--nodes {job.nodes}"] if job.nodes != "1" else []
    given += [f"--set {name}=..." for name in job.extra]
    if given:
        raise ConfigError(
            "the built-in monitor does not know what was asked for",
            value=", ".join(given),
            rule="it runs one node, and has no configuration of NVRx",
            remedy="--backend nvrx with nvidia-resiliency-ext installed",
        )


def _job(options: argparse.Namespace) -> Job:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise ConfigError(
            "there is no command to run", rule="it follows `--`", remedy=f"{PROGRAM} --help"
        )
    if options.ranks < 1:
        raise ConfigError(
            "number of ranks is out of range",
            where="--ranks",
            value=options.ranks,
            rule="at least 1",
        )
    if options.nodes != "1" and not options.endpoint:
        raise ConfigError(
            "several nodes have nowhere to meet",
            where="--nodes",
            value=options.nodes,
            rule="--endpoint names a host and port that all of them reach",
            remedy="--endpoint HOST:29400 --name JOB",
        )
    return Job(
        command=tuple(command),
        ranks=options.ranks,
        nodes=options.nodes,
        endpoint=options.endpoint or "localhost:0",
        name=options.name or str(uuid.uuid4()),
        extra=dict(_field(text) for text in options.set),
    )


def _limits(options: argparse.Namespace) -> Limits:
    more = {} if options.max_restarts is None else {"max_restarts": options.max_restarts}
    known = limits_of(Config.load(more), dict(parse_section(text) for text in options.section))
    return Limits(
        config=known.config,
        sections=known.sections,
        heartbeat_s=options.heartbeat,
        stop_s=options.stop,
        no_restart_code=options.no_restart_code,
    )


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("a field is malformed", where="--set", value=text, rule="FIELD=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _show(launch: Launch, offered: look.Offered, config_path: str) -> None:
    print(f"# nvidia-resiliency-ext {offered.version} in {offered.where}")
    print(translate.shown(launch.argv, sys.executable))
    print(f"\n# {config_path}")
    print(launcher.yaml_of(launch.config), end="")
    for note in launch.notes:
        print(f"# note: {note}")


def _show_builtin(job: Job, limits: Limits) -> None:
    config = limits.config
    print(f"# the built-in monitor, {job.ranks} ranks of")
    print(shlex.join(job.command))
    shown = {
        "heartbeat": limits.heartbeat_s,
        "sections": dict(limits.sections),
        "max_restarts": config.max_restarts,
        "restart_window_s": config.restart_window_s,
        "backoff_initial_s": config.backoff_initial_s,
        "backoff_max_s": config.backoff_max_s,
        "stop": limits.stop_s,
        "no_restart_code": limits.no_restart_code,
    }
    print("\n# its limits")
    print(launcher.yaml_of(shown), end="")
