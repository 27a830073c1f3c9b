"""`demo --fault expert`: an expert-parallel engine loses a rank in mid-decode; the same streams with copies, without, and with a whole restart.

Runs the reference engine, so it needs torch and no vLLM. Effects happen here, judging and rendering in `experts_report`.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.events import Event, EventStream

if TYPE_CHECKING:
    from dynamo_gpu_ft.engines.reference.experts.engine import ExpertEngine

SETTLE_S = 120.0


@dataclass
class Stream:
    tokens: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    masked: int = 0


@dataclass
class Round:
    """One run of all streams. `killed`: monotonic moment of the kill, 0 without; `events` with theirs; rows: what each rank's experts computed
    before and after it; `affected`: share of rows, counted once per layer, that lost one of their experts to the mask, `divergence` the router's mean KL
    over them in nats; `whole`: when every expert was covered, and when every rank was there again."""

    streams: list[Stream]
    killed: float = 0.0
    shard: int = -1
    wall: float = 0.0
    events: list[tuple[float, Event]] = field(default_factory=list)
    before: dict[int, int] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)
    covered: float = 0.0
    whole: float = 0.0
    kept: int = 0
    failed: str = ""
    affected: float = 0.0
    divergence: float = 0.0

    @property
    def next_token_s(self) -> float:
        """Until every stream that was open at the kill had its next token."""
        nexts = [next((t for t in s.at if t > self.killed), None) for s in self.streams]
        return max((t for t in nexts if t is not None), default=self.killed) - self.killed

    @property
    def first_token_s(self) -> float:
        nexts = [t for s in self.streams for t in s.at if t > self.killed]
        return min(nexts, default=self.killed) - self.killed

    @property
    def gap_s(self) -> float:
        pauses = [b - a for s in self.streams for a, b in zip(s.at, s.at[1:], strict=False)]
        return max(pauses, default=0.0)


@dataclass
class Setup:
    model: Path
    ranks: int
    streams: int
    prompt_tokens: int
    max_tokens: int
    seed: int


@dataclass
class Played:
    """`copies`: two of every expert; `lean`: room for a lost rank's experts, no second copies; `restart`: the whole engine anew."""

    setup: Setup
    reference: Round
    copies: Round
    lean: Round
    lean_after: Round
    restart: Round
    experts: int
    slots: tuple[int, int]


@contextmanager
def engine(
    setup: Setup, slots: int, events: list[tuple[float, Event]], folder: str, **settings: Any
) -> Iterator[ExpertEngine]:
    from dynamo_gpu_ft.engines.reference.experts.engine import ExpertEngine
    from dynamo_gpu_ft.engines.reference.options import Options
    from dynamo_gpu_ft.recovery.membership.memory import MemoryStore

    stream = EventStream(lambda event: events.append((time.monotonic(), event)))
    come_back = settings.get("in_place", True)
    chosen = {
        "arena_dir": folder, "arena_name": f"demo{slots}{come_back}", "arena_bytes": "128MiB", "ledger_bytes": "1MiB", "tail_every": 1, "max_restarts": 1000, "start_timeout_s": 300, **settings,
    }  # fmt: skip
    options = Options(
        model=str(setup.model), ep=setup.ranks, slots=slots, name="demo", settings=chosen
    )
    with ExpertEngine(options, MemoryStore(), stream, come_back=come_back) as made:
        yield made


def serve(made: ExpertEngine, setup: Setup, events: list[tuple[float, Event]], shard: int = -1) -> Round:  # fmt: skip
    """All streams to their end; with `shard`, its process is killed a third of the way, between two moments of a step."""
    from dynamo_gpu_ft.engines.reference.sampling import Sampling

    random_ = random.Random(setup.seed)
    streams: dict[str, Stream] = {}
    for _ in range(setup.streams):
        prompt = [random_.randrange(5, made.shape.vocab - 10) for _ in range(setup.prompt_tokens)]
        streams[made.submit(prompt, Sampling(max_tokens=setup.max_tokens))] = Stream()
    found = Round(list(streams.values()), shard=shard)
    first, counted, gap = len(events), made.rows_per_rank(), made.gap
    pids = {s: p.pid for s, p in made.crew.members.items()}
    while made.busy:
        least = min(len(s.tokens) for s in streams.values())
        if shard >= 0 and not found.killed and least >= setup.max_tokens // 3:
            found.before = _less(made.rows_per_rank(), counted)
            counted = made.rows_per_rank()
            found.killed, found.wall = time.monotonic(), time.time()
            os.kill(pids[shard], signal.SIGKILL)
        for output in made.step():
            if output.token is None:
                found.failed = output.finished
            else:
                streams[output.request].tokens.append(output.token)
                streams[output.request].at.append(time.monotonic())
        if found.killed and not found.covered and made.covered and shard not in made.crew.members:
            found.covered, counted = time.monotonic(), made.rows_per_rank()
        if found.covered and not found.whole and len(made.crew.members) == setup.ranks:
            found.whole = time.monotonic()
            found.after = _less(made.rows_per_rank(), counted)
    if not found.after:
        found.after = _less(made.rows_per_rank(), counted)
    for name, stream in streams.items():
        stream.masked = sum(run.drew and bool(run.mask) for run in made.traffic.history.pop(name))
    found.events = events[first:]
    rows, affected = made.gap.tokens - gap.tokens, made.gap.affected - gap.affected
    found.affected = affected / rows if rows else 0.0
    found.divergence = (made.gap.router_kl - gap.router_kl) / affected if affected else 0.0
    found.kept = sum(pids.get(s) == p.pid for s, p in made.crew.members.items())
    return found


def play(setup: Setup) -> Played:
    """Errors: `GpuFtError` when an engine cannot start or does not become whole again."""
    from dynamo_gpu_ft.engines.reference import shape

    experts = shape.read(setup.model).experts
    if not experts or setup.ranks < 3:
        raise GpuFtError(
            "there are no experts to lose, or too few ranks to go on",
            value={"experts": experts, "ranks": setup.ranks},
            rule="a Mixtral and at least 3 ranks",
            remedy="--model tiny-moe",
        )
    full = -(-2 * experts // setup.ranks)
    lean = max(-(-experts // (setup.ranks - 1)), -(-experts // setup.ranks))
    shard = random.Random(setup.seed).randrange(1, setup.ranks)
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="dynamo_gpu_ft_demo.", dir=place) as folder:
        events: list[tuple[float, Event]] = []
        with (
            Phase(f"{setup.ranks} ranks with two copies of {experts} experts"),
            engine(setup, full, events, folder) as made,
        ):
            reference = serve(made, setup, events)
            copies = serve(made, setup, events, shard)
        with (
            Phase(f"{setup.ranks} ranks with one copy, and room for a lost rank's experts"),
            engine(setup, lean, events, folder) as made,
        ):
            lean_round = serve(made, setup, events, _only_holder(made))
            if not made.settle(SETTLE_S):
                raise GpuFtError("the engine did not become whole again", value=SETTLE_S)
            lean_after = serve(made, setup, events)
        with (
            Phase("the same kill, and the whole engine started again"),
            engine(setup, full, events, folder, in_place=False) as made,
        ):
            serve(made, setup, events)
            restart = serve(made, setup, events, copies.shard)
    return Played(setup, reference, copies, lean_round, lean_after, restart, experts, (full, lean))


def _only_holder(made: ExpertEngine) -> int:
    """A rank that alone has some expert."""
    for shard in range(made.options.ep):
        routes = type(made.homes)(made.homes.experts, made.homes.slots, made.homes.table)
        routes.drop(shard)
        if routes.uncovered():
            return shard
    return made.options.ep - 1


def _less(now: dict[int, int], before: dict[int, int]) -> dict[int, int]:
    return {shard: rows - before.get(shard, 0) for shard, rows in now.items()}
