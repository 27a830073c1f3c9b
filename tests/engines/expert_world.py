"""The oracle of expert parallelism: one process that computes what an engine's ranks computed, under the same masks; and drills on engines."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.experts.engine import ExpertEngine
from dynamo_gpu_ft.engines.reference.experts.messages import Spoil
from dynamo_gpu_ft.engines.reference.experts.traffic import Computed, Mask
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.tiles import Piece
from dynamo_gpu_ft.events import Event, EventStream, MemberDied
from dynamo_gpu_ft.experts.ahead import uncovered
from dynamo_gpu_ft.experts.base import Aim
from dynamo_gpu_ft.recovery.membership.memory import MemoryStore
from tests.engines.reference_world import BLOCK, ThreadEngine

POINTS = ("dispatch", "expert", "combine", "refill", "commit")


class Oracle:
    """One process with all experts. `tokens` is the plain model; `replay` masks the router where the engine had to."""

    def __init__(self, model: Path) -> None:
        torch.set_num_threads(1)
        self.engine = ThreadEngine(model)
        self._known: dict[tuple[int, ...], list[int]] = {}

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        key = (*prompt, count)
        if key not in self._known:
            self._mask(())
            self._known[key] = self.engine.generate(prompt, count)
        return self._known[key]

    def replay(
        self, name: str, prompt: Sequence[int], tokens: Sequence[int], history: Sequence[Computed]
    ) -> list[int]:
        """The tokens of the masked-router model for the same runs of tokens under the same masks."""
        known, drawn = [*prompt, *tokens], []
        for run in history:
            self._mask(run.mask)
            end = run.start + run.count
            piece = Piece(
                request=name,
                start=run.start,
                tokens=tuple(known[run.start : end]),
                blocks=tuple(range(1, 1 + -(-end // BLOCK))),
                sampling=Sampling(max_tokens=1) if run.drew else None,
            )
            drawn += self.engine.step([piece]).values()
        self._mask(())
        return drawn

    def _mask(self, mask: Mask) -> None:
        live = self.engine.stages[0].live
        live.clear()
        for layer, expert in mask:
            name = f"model.layers.{layer}"
            live.setdefault(name, torch.ones(self.engine.shape.experts, dtype=torch.bool))
            live[name][expert] = False


def prompts(seed: int, count: int = 6) -> list[list[int]]:
    random_ = random.Random(seed)
    return [
        [random_.randrange(5, 290) for _ in range(random_.randrange(4, 30))] for _ in range(count)
    ]


@dataclass(frozen=True)
class Fault:
    """`kind` happens to `shard` at a point of its, or ("random") by a signal from outside, once `step` steps are done."""

    kind: str
    point: str
    shard: int
    step: int = 4
    times: int = 1


@dataclass
class Report:
    prompts: list[list[int]]
    tokens: list[list[int]]
    histories: list[list[Computed]]
    failed: str
    deaths: list[MemberDied]
    pids: dict[int, bool] = field(default_factory=dict)
    longest_s: float = 0.0
    pause_s: float = 0.0  # longest between two steps that gave tokens: a kill in the run is at most so long before the next token
    stream_s: float = 0.0  # longest between two tokens of one request
    usual_s: float = 0.0  # of a step that nothing happened in

    @property
    def masked(self) -> bool:
        return any(run.mask for history in self.histories for run in history)


class Pauses:
    """The longest time without a token, of all requests together and of any one of them, from its first token on; and the usual one."""

    def __init__(self) -> None:
        self.any_s = self.one_s = 0.0
        self._steps: list[float] = []
        self._last: dict[str, float] = {}
        self._newest = 0.0

    def token(self, request: str) -> None:
        now = time.monotonic()
        if self._newest:
            self.any_s = max(self.any_s, now - self._newest)
            self._steps.append(now - self._newest)
        if request in self._last:
            self.one_s = max(self.one_s, now - self._last[request])
        self._newest = self._last[request] = now

    @property
    def usual_s(self) -> float:
        """Of a step: the median of pauses that are none between two tokens of one step."""
        found = sorted(each for each in self._steps if each > 1e-3)
        return found[len(found) // 2] if found else 0.0


def spread(seconds: Sequence[float]) -> str:
    """Of the longest pauses of runs, each of which is at least what a loss in it took."""
    found = sorted(seconds)
    above = sum(each > 1.0 for each in found)
    return f"median {found[len(found) // 2]:.3f} s, longest {found[-1]:.3f} s of {len(found)}, {above} above 1 s"


class Drill:
    """One engine, used for many runs; `whole` brings every lost rank back behind a run. `snapshot`: KV is stored, behind every step."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        ep: int,
        slots: int,
        name: str = "ep",
        backend: str = "gloo",
        nccl_library: str = "",
        device: str = "cpu",
        devices: int = 0,
        snapshot: bool = True,
        blocks: int = 64,
        **changes: Any,
    ) -> None:
        self.events: list[Event] = []
        own = ("come_back", "scrub", "placement", "budget_bytes")
        given = {k: changes.pop(k) for k in own if k in changes}
        settings = {
            "arena_dir": str(folder), "arena_name": name, "max_restarts": 1000, "start_timeout_s": 90,
            "snapshot": snapshot, "tail_every": 1, "arena_bytes": "64MiB", "ledger_bytes": "1MiB",
            "step_deadline_s": 15, "recovery_deadline_s": 60, "hang_after_s": 1.0, "hang_floor_s": 1.0, **changes,
        }  # fmt: skip
        options = Options(
            model=str(model), ep=ep, slots=slots, faults=True, rows=16, blocks=blocks, name=name, backend=backend, nccl_library=nccl_library,
            device=device, devices=devices, settings=settings,
        )  # fmt: skip
        self.engine = ExpertEngine(options, MemoryStore(), EventStream(self.events.append), **given)

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def run(
        self, seed: int, faults: Sequence[Fault] = (), *, tokens: int = 12, count: int = 6
    ) -> Report:
        engine, begun, waiting = self.engine, len(self.events), list(faults)
        pids = {shard: p.pid for shard, p in engine.crew.members.items()}
        asked = prompts(seed, count)
        names = [
            engine.submit(prompt, Sampling(max_tokens=tokens, seed=seed), f"{seed}-{len(self.events)}-{i}-{time.monotonic_ns()}")
            for i, prompt in enumerate(asked)
        ]  # fmt: skip
        outputs: dict[str, list[int]] = {name: [] for name in names}
        steps, longest, pauses = 0, 0.0, Pauses()
        while engine.busy:
            for fault in [f for f in waiting if f.step <= steps]:
                waiting.remove(fault)
                self.hurt(fault)
            began = time.monotonic()
            for output in engine.step():
                if output.token is not None:
                    outputs[output.request].append(output.token)
                    pauses.token(output.request)
            longest = max(longest, time.monotonic() - began)
            steps += 1
        self.disarm()
        return Report(
            asked,
            list(outputs.values()),
            [engine.traffic.history.pop(name) for name in names],
            engine.failed,
            [e for e in self.events[begun:] if isinstance(e, MemberDied)],
            {s: pids.get(s) == p.pid for s, p in engine.crew.members.items()},
            longest,
            pauses.any_s,
            pauses.one_s,
            pauses.usual_s,
        )

    def hurt(self, fault: Fault) -> None:
        process = self.engine.crew.members.get(fault.shard) or self.engine.group.returning.get(
            fault.shard
        )
        if process is None:
            return
        if fault.point == "random":
            if process.pid:
                os.kill(process.pid, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[fault.kind])
        elif fault.kind in ("spoil", "spoil-landing"):
            layer, slot = divmod(fault.times, self.engine.options.slots)
            process.send(Spoil(layer=layer, slot=slot, landed=fault.kind == "spoil-landing"))
        else:
            process.send(say.Arm(point=fault.point, how=fault.kind, times=fault.times))

    def disarm(self) -> None:
        for process in self.engine.crew.members.values():
            process.send(say.Arm(point="", how=""))

    def back(self) -> None:
        """Every rank is there again, and any of them may be lost as at the start."""
        for shard in range(self.engine.options.ep):
            self.engine.bring_back(shard)
        assert self.engine.settle(60), "the engine did not become whole"
        assert set(self.engine.crew.members) == set(range(self.engine.options.ep))
        assert self.engine.covered
        assert self.survived() == self.engine.options.ep or self.engine.planning.aim != Aim()

    def whole(self) -> None:
        """The same, and every slot holds what it did at the start, for the next run to begin alike."""
        self.back()
        self.engine.place(self.engine.homes)
        assert self.engine.settle(60), "the engine did not go back to its start"
        if self.engine.group.map.table != self.engine.homes.table:
            self.engine.restart()  # the way there was a circle of last copies

    def survived(self) -> int:
        """How many of the members could be lost, each alone, with a copy of every expert left."""
        now, members = self.engine.group.map.placement, sorted(self.engine.crew.members)
        return sum(not uncovered(now.without([shard])) for shard in members)


def judge(oracle: Oracle, report: Report, *, instant: bool, note: object = "") -> None:
    """Every token is the oracle's: the plain model's where nothing was masked, the masked router's elsewhere."""
    assert not report.failed, (report.failed, note)
    for index, (prompt, tokens) in enumerate(zip(report.prompts, report.tokens, strict=True)):
        history = report.histories[index]
        if instant or not any(run.mask for run in history):
            assert not any(run.mask for run in history), note
            assert tokens == oracle.tokens(prompt, len(tokens)), note
        else:
            assert tokens == oracle.replay("r", prompt, tokens, history), note
