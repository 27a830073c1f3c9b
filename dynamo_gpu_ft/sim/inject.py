"""The `inject` command: faults for engines that run on the simulated NVML, lines for logs that are followed, signals for workers.

Nothing here touches a real driver; what it makes is simulated and says so. The library itself is in sim/nvml.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import tempfile
from pathlib import Path

from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.sim import inject_log
from dynamo_gpu_ft.sim.nvml import build
from dynamo_gpu_ft.sim.nvml.control import Control

EXAMPLES = """examples:
  eval "$(dynamo-gpu-ft inject build --shell)"      compile the simulated NVML; this shell's programs find it from now on
  dynamo-gpu-ft inject xid 79 --gpu 1               an XID event, in every process that uses it
  dynamo-gpu-ft inject recovery-action 1 --gpu 1    the recovery action becomes "reset the GPU"; 0 takes it back
  dynamo-gpu-ft inject wedge fields --gpu 2         the driver does not return from a call any more, until `release`
  dynamo-gpu-ft inject command "burst gpu=0 code=95 count=1000 over_ms=10"
  dynamo-gpu-ft inject log --file kern.log xid 79 --bdf 0000:9b:00 --variant mig
  dynamo-gpu-ft inject stop --pid 4242              SIGSTOP: a worker that hangs; `continue`, `kill`

Exit codes: 0 done, 1 nobody was there to notice, 2 could not run."""

_SIGNALS = {"stop": signal.SIGSTOP, "continue": signal.SIGCONT, "kill": signal.SIGKILL}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--control",
        metavar="DIR",
        help=f"control folder of the simulated NVML (default: ${build.CONTROL}, else {default_folder()})",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    one = kinds.add_parser(
        "build", help="compile the simulated NVML; print its path and the environment to use"
    )
    one.add_argument("--shell", action="store_true", help="print export lines for a shell's eval")
    one = kinds.add_parser("xid", help="an XID event")
    one.add_argument("code", type=int)
    _gpu(one)
    one.add_argument("--gi", type=int, help="GPU instance it is attributed to")
    one.add_argument("--ci", type=int, help="compute instance it is attributed to")
    one = kinds.add_parser("event", help="another NVML event, by its bit")
    one.add_argument("type", type=_number, metavar="BIT", help="for example 0x4000")
    one.add_argument("--data", type=_number, default=0)
    _gpu(one)
    one = kinds.add_parser("recovery-action", help="the recovery action (field 230): 0 to 7")
    one.add_argument("action", type=int)
    _gpu(one)
    for name, text in (("lost", "the GPU is lost: every call says so"), ("found", "it is back")):
        _gpu(kinds.add_parser(name, help=text))
    one = kinds.add_parser("wedge", help="calls that do not return until `release`")
    one.add_argument("call", help="fields, wait, register, init, ..., or a pattern of NVML's names")
    one.add_argument("--seconds", type=float, help="until then only")
    _gpu(one, optional=True)
    one = kinds.add_parser("release", help="end all wedges and scripted return codes")
    _gpu(one, optional=True)
    one = kinds.add_parser("command", help="any line that sim/nvml/README.md lists")
    one.add_argument("line")
    inject_log.add_arguments(kinds.add_parser("log", help="a line as the NVIDIA driver writes it"))
    for name, number in _SIGNALS.items():
        one = kinds.add_parser(name, help=f"{number.name} to a worker")
        one.add_argument("--pid", type=int, required=True)


def run(args: argparse.Namespace) -> int:
    if args.kind == "log":
        return inject_log.run(args)
    if args.kind in _SIGNALS:
        return _signal(args.pid, _SIGNALS[args.kind])
    folder = Path(args.control or os.environ.get(build.CONTROL) or default_folder())
    if args.kind == "build":
        return _build(folder, args.shell)
    heard = Control(folder).send(line_of(args))
    for each in heard:
        print(f"pid {each.pid}: {each.answer.strip() or 'done'}")
    if not heard:
        print(f"no process uses the simulated NVML with {folder}; what lasts waits there for it")
        return 1
    event = args.kind in ("xid", "event") or (
        args.kind == "command" and any("heard=" in each.answer for each in heard)
    )
    return 1 if event and not any(each.sets for each in heard) else 0


def line_of(args: argparse.Namespace) -> str:
    """The command line of sim/nvml that the arguments mean."""
    if args.kind == "command":
        return str(args.line)
    verb = {"recovery-action": "recovery"}.get(args.kind, args.kind)
    words = [verb]
    names = {
        "gpu": "gpu", "code": "code", "gi": "gi", "ci": "ci", "type": "type", "data": "data", "action": "action", "call": "call",
        "seconds": "seconds",
    }  # fmt: skip
    words += [
        f"{key}={value}"
        for name, key in names.items()
        if (value := getattr(args, name, None)) is not None
    ]
    return " ".join(words)


def default_folder() -> Path:
    """Where processes and this command meet when nobody says otherwise."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime or tempfile.gettempdir()) / f"fake-nvml-{os.getuid()}"


def _build(folder: Path, shell: bool) -> int:
    found = build.library()
    Control(folder)
    environment = build.environment(found, folder)
    if not shell:
        print(f"simulated NVML: {found}\nto use it:")
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}" if shell else f"  {name}={value}")
    return 0


def _signal(pid: int, number: signal.Signals) -> int:
    if pid <= 1:
        raise GpuFtError("no worker has such a pid", value=pid, rule="a pid is above 1")
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        print(f"there is no process {pid}")
        return 1
    except OSError as error:
        raise GpuFtError(
            f"{number.name} cannot be sent", where=f"pid {pid}", value=error.strerror
        ) from error
    print(f"{number.name} to {pid}")
    return 0


def _gpu(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    default = None if optional else "0"
    parser.add_argument(
        "--gpu",
        default=default,
        metavar="INDEX",
        help="which GPU; * for all" + " (default: 0)" * (not optional),
    )


def _number(text: str) -> int:
    return int(text, 0)
