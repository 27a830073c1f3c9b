"""The `doctor` command: says of everything this package stands on whether it is real, simulated or missing, and what mends it.

The first command of a newcomer and of a bug report, so it needs the standard library alone and runs as a plain file too
(`python dynamo_gpu_ft/cli/doctor.py`). Every probe (in `probes/`) has a deadline; native code is touched in a child process only.
"""

from __future__ import annotations

import os
import sys

if __package__ in (None, ""):
    # NOTE: run as a file, this folder comes first on the path and its `inspect.py` would hide the standard library's.
    _here = os.path.dirname(os.path.abspath(__file__))
    _root = os.path.dirname(os.path.dirname(_here))
    sys.path[:] = [_root, *(each for each in sys.path if os.path.abspath(each) != _here)]

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from dynamo_gpu_ft.cli.probes import gpu, machine, memory, packages
from dynamo_gpu_ft.cli.probes.base import Item

PROBE_S = 20.0

PROBES: tuple[Callable[[], Item], ...] = (
    machine.probe_python, packages.probe_requirements, packages.probe_core, machine.probe_settings, memory.probe_memory,
    memory.probe_arena_dir, memory.probe_arenas, memory.probe_locked_memory, packages.probe_vllm, packages.probe_torch,
    packages.probe_plugin, packages.probe_nvrx, gpu.probe_gpu, gpu.probe_gpu_copies, gpu.probe_nvml, gpu.probe_gpu_logs,
    machine.probe_ports, machine.probe_build_tools, packages.probe_demo_model,
)  # fmt: skip


def examine(
    probes: Sequence[Callable[[], Item]] = PROBES, deadline_s: float = PROBE_S
) -> list[Item]:
    """Runs all probes at once, each in its own thread; one that raises or is late becomes a `missing` item."""
    answers: list[Item | None] = [None] * len(probes)

    def ask(index: int) -> None:
        name = probes[index].__name__.removeprefix("probe_").replace("_", " ")
        try:
            answers[index] = probes[index]()
        except Exception as error:
            detail = f"the probe failed: {type(error).__name__}: {error}"
            answers[index] = Item(name, "missing", detail, "report it", True)

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(probes))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + deadline_s
    for index, thread in enumerate(threads):
        while thread.is_alive() and time.monotonic() < end:
            thread.join(min(2.0, max(0.0, end - time.monotonic())))
            if thread.is_alive():
                print(f"waiting for {probes[index].__name__} ...", file=sys.stderr, flush=True)
    late = f"no answer within {deadline_s:g} s"
    return [
        answer
        or Item(probe.__name__.removeprefix("probe_"), "missing", late, "look at dmesg", True)
        for answer, probe in zip(answers, probes, strict=True)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    items = examine()
    problems = [item for item in items if item.problem]
    if args.json:
        rows = [asdict(item) | {"problem": item.problem} for item in items]
        print(json.dumps({"ok": not problems, "items": rows}, indent=2))
    else:
        print(as_text(items))
    return 1 if problems else 0


def as_text(items: Sequence[Item]) -> str:
    lines = []
    for item in items:
        lines.append(f"{item.state:<10} {item.name:<14} {item.detail}")
        if item.remedy:
            lines.append(f"{'':<25} {'mend it' if item.problem else 'to change it'}: {item.remedy}")
    problems = [item.name for item in items if item.problem]
    counts = ", ".join(
        f"{sum(i.state == s for i in items)} {s}" for s in ("real", "simulated", "missing")
    )
    verdict = f"problems: {', '.join(problems)}" if problems else "ready"
    return "\n".join([*lines, f"\n{counts}; {verdict}"])


def main() -> int:
    """Entry of the plain file, which has no package above it."""
    parser = argparse.ArgumentParser(prog="doctor", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a probe's thread that still hangs in the kernel must not hold the answer
