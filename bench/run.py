"""`python bench/run.py NAME... --json FILE`: runs benches, prints a Markdown table, writes rows and plots.

Exit status 0 when every target is met, 1 when one is missed (its row is kept), 2 when a bench could not run.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.rows import Options, Row, markdown, placed, plain  # noqa: E402
from dynamo_gpu_ft.cli.demo import machine  # noqa: E402
from dynamo_gpu_ft.errors import GpuFtError  # noqa: E402

RESULTS = ROOT / "bench" / "results"
QUESTIONS = {
    "arena_copy": "how fast blocks go into the arena and back, digest on, beside memcpy",
    "eviction": "how much of what is asked again the arena still has, beside plain LRU",
    "digest": "how fast payloads are digested, beside reading them and beside other checksums",
    "relayout": "how fast KV of one layout becomes KV of another, beside memcpy",
    "disk_log": "how fast blocks go to the disk log and back, beside fio on the same file system",
    "recovery_scan": "how long a disk log of 100,000 blocks takes to open",
    "kmsg_parse": "how many lines of a kernel log are parsed in a second, beside Python's re and memchr",
    "fusion": "how many readings a second fusion takes in, in a storm and when each is a fault of its own",
    "vllm_overhead": "what the connector costs vLLM in throughput",
    "vllm_restore": "time to the first token after a restart, KV restored beside prefilled again",
    "restore_blocks": "restoring 10,000 blocks, and real prompts after a restart, beside LMCache and vLLM alone",
    "vllm_recovery": "how long a recovery takes, by phase, and how often bfloat16 streams are identical",
    "rank_recovery_vllm": "how soon streams go on when one vLLM worker is lost, in place and by a restart, by phase",
    "rank_recovery_reference": "SIGKILL of a rank to the next token: standby, respawn, whole restart of the reference engine",
    "experts_failover": "SIGKILL of an expert-parallel rank to the next token: with copies, refilled, and by a whole restart",
    "degrade": "what four ranks of the reference engine still give as three, and the pause on the way there and back",
    "experts_plan": "balance, survival, bytes moved and time of plans of redundant experts, beside EPLB and vLLM's balancer",
    "experts_repair": "balance, bytes and time of giving a lost rank's experts to the others, beside what engines do today",
    "watch_latency": "how soon a GPU fault is heard: by C++, by asyncio, by the poll, when a call is stuck",
    "watch_idle": "what watching 8 GPUs costs while nothing happens",
    "hang": "how soon a hang is noticed: stopped, endless and missing ranks, and a real frozen engine",
    "comm_rebuild": "how soon ranks that lost one are out of their collective and in a new communicator, beside gloo alone",
    "nvrx_restart": "how soon killed ranks compute again under each launcher and in process, beside NVRx's ft_launcher",
    "experts_refill": "how fast lost experts come back into host memory, beside a plain copy, and what swapping all maps takes",
    "gpu_copy": "how fast KV goes from a GPU into the arena and back, by fragment size and way of copying",
    "gpu_experts": "experts on a GPU: router mask beside plain top-k, map swaps under a graph, refill from pinned memory",
    "gpu_overhead": "what snapshots at full rate cost a decode loop on a GPU",
    "gpu_xid_latency": "how soon a real XID is heard, beside CUDA's own error",
    "gpu_register": "how long it takes to register an arena with a GPU's driver",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    if args.list:
        for name, question in QUESTIONS.items():
            print(f"{name:<16} {question}")
        return 0
    busy = _busy()
    if busy:
        print(f"[bench] {busy}: expect noise", file=sys.stderr)
    status, every = 0, []
    for name in args.names or _runnable():
        try:
            rows, lacking = _measure(name, args, busy)
        except (GpuFtError, ImportError) as error:
            print(f"bench {name} could not run: {error}", file=sys.stderr)
            status = 2
            continue
        for line in lacking:
            print(f"bench {name}: a part could not run: {line}", file=sys.stderr)
            status = 2
        every += rows
        print(f"\n{markdown(rows)}", flush=True)
        if args.save:
            _save(name, rows, RESULTS)
    if args.json:
        target = Path(args.json)
        target.write_text(json.dumps(plain(every), indent=1) + "\n", encoding="utf-8")
        for name in dict.fromkeys(row.name.partition(".")[0] for row in every):
            _plot(name, [row for row in every if row.name.startswith(f"{name}.")], target.parent)
    missed = [row.name for row in every if row.met is False]
    if missed:
        print(f"targets missed: {', '.join(missed)}", file=sys.stderr)
    return status or int(bool(missed))


def _runnable() -> list[str]:
    """All benches; those that need a GPU only where there is one. Asked for by name, they say what is missing."""
    return [n for n in QUESTIONS if not n.startswith("gpu_") or Path("/dev/nvidia0").exists()]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benches (default: all)")
    parser.add_argument("--list", action="store_true", help="list the benches and their questions")
    parser.add_argument("--json", metavar="FILE", help="write all rows there, plots beside it")
    parser.add_argument("--save", action="store_true", help="write each bench to bench/results/")
    parser.add_argument("--quick", action="store_true", help="few repetitions: to try a bench out")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(QUESTIONS))
    if unknown:
        parser.error(f"no bench named {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    return args


def _measure(name: str, args: argparse.Namespace, busy: str) -> tuple[list[Row], list[str]]:
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[bench] {name} {time.monotonic() - started:5.0f} s  {line}", file=sys.stderr)

    say(QUESTIONS[name])
    options = Options(quick=args.quick, say=say)
    rows = importlib.import_module(f"bench.{name}").measure(options)
    rows = placed(
        rows,
        machine=machine.machine(),
        date=machine.today(),
        commit=machine.commit(),
        command=f"python bench/run.py {name}" + " --quick" * args.quick + f" ({busy})" * bool(busy),
    )
    return rows, options.lacking


def _busy() -> str:
    """Says so when others use the machine; asked before the first bench, whose own load must not count."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return f"busy machine: load {load:.1f} on {cores} cores" if load > 0.5 * cores else ""


def _save(name: str, rows: list[Row], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(plain(rows), indent=1) + "\n", encoding="utf-8")
    picture = _plot(name, rows, folder)
    shown = f"\n![{QUESTIONS[name]}]({picture.name})\n" if picture else ""
    title = f"# {name}: {QUESTIONS[name]}\n\n"
    (folder / f"{name}.md").write_text(title + markdown(rows) + shown, encoding="utf-8")


def _plot(name: str, rows: list[Row], folder: Path) -> Path | None:
    """The bench's plot, if it has one and matplotlib is installed."""
    draw = getattr(importlib.import_module(f"bench.{name}"), "plot", None)
    if draw is None or importlib.util.find_spec("matplotlib") is None:
        return None
    path = folder / f"{name}.png"
    draw(rows, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
