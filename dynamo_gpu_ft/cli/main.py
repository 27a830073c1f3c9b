"""Entry of the command line: finds the command, imports only that one, turns its answer or its failure into an exit code.

First stop of `dynamo-gpu-ft` and of `python -m dynamo_gpu_ft`. Nothing heavy is imported before the command is known, so that
`doctor` and `--help` work where half of the installation is missing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_gpu_ft import __version__
from dynamo_gpu_ft.config import help_text
from dynamo_gpu_ft.errors import GpuFtError

OK, PROBLEMS, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    help: str
    module: str


COMMANDS = {
    "doctor": Command(
        "what is real, simulated or missing here, and the command that mends it",
        "dynamo_gpu_ft.cli.doctor",
    ),
    "demo": Command(
        "kill a real engine in mid-decode and watch its open streams go on",
        "dynamo_gpu_ft.cli.demo.command",
    ),
    "inspect": Command(
        "what an arena or a disk log holds; --verify reads every payload; --remove-unused tidies a folder of logs up",
        "dynamo_gpu_ft.cli.inspect",
    ),
    "export": Command(
        "KV blocks of an arena or of disk logs, whole prefixes with their chain, to a folder of safetensors files",
        "dynamo_gpu_ft.cli.export_kv",
    ),
    "import": Command(
        "a folder that export wrote into an arena or disk logs; every digest and link is verified before anything is sealed",
        "dynamo_gpu_ft.cli.import_kv",
    ),
    "explain": Command(
        "what a fault code means and what is done about it: explain xid 79, explain cuda 700",
        "dynamo_gpu_ft.cli.explain",
    ),
    "experts": Command(
        "which slot holds which expert: plan, check the certificate, play a loss through with a heat map",
        "dynamo_gpu_ft.cli.experts",
    ),
    "inject": Command(
        "simulated faults: NVML events, lost and silent GPUs, log lines, stopped workers",
        "dynamo_gpu_ft.sim.inject",
    ),
    "watch": Command(
        "faults of this machine's GPUs as they happen, what is watched and what cannot be",
        "dynamo_gpu_ft.cli.watch",
    ),
    "serve": Command(
        "vLLM's own OpenAI server on a resilient engine: serve MODEL [vLLM's own flags]",
        "dynamo_gpu_ft.engines.vllm.serve",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. `argv` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    try:
        if chosen == "serve":
            # vLLM reads its own flags; anything argparse knew about them would soon be wrong.
            return int(importlib.import_module(COMMANDS["serve"].module).run(arguments[1:]))
        args = _parser(chosen).parse_args(arguments)
        if chosen is None:
            _parser(None).print_help()
            return COULD_NOT_RUN
        status = int(importlib.import_module(COMMANDS[chosen].module).run(args))
        sys.stdout.flush()
        return status
    except GpuFtError as error:
        print(f"dynamo-gpu-ft {chosen}: {error}", file=sys.stderr)
        return COULD_NOT_RUN
    except ImportError as error:
        print(
            f"dynamo-gpu-ft {chosen}: cannot be run here: {error}. Try: dynamo-gpu-ft doctor",
            file=sys.stderr,
        )
        return COULD_NOT_RUN
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); the flush at exit must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return COULD_NOT_RUN


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The whole parser, with the arguments of the chosen command only: the others are not imported for it."""
    parser = argparse.ArgumentParser(
        prog="dynamo-gpu-ft",
        description="GPU-level fault tolerance for LLM inference workers.",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dynamo-gpu-ft {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            importlib.import_module(command.module).add_arguments(sub)
    return parser
