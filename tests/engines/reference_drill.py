"""Drills on a running reference engine: faults of every kind at every phase, and what has to be true behind them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.driver import Engine
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.events import Event, EventStream, GroupRecovered, MemberDied, StateChanged
from dynamo_gpu_ft.recovery.group.base import Deadline
from dynamo_gpu_ft.recovery.membership.memory import MemoryStore

KINDS = ("kill", "stop", "segv", "raise")
SERVING = ("prefill", "decode", "collective")
RECOVERING = ("quiesce", "plan", "rebuild", "validate", "commit")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "segv": signal.SIGSEGV}
#: The next order that a rank gets in or behind a phase.
POINTS = {
    "quiesce": "fence",
    "plan": "join",
    "rebuild": "join",
    "validate": "canary",
    "commit": "step",
}
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Fault:
    """`kind` (of KINDS, or "xid": a fatal fault of the shard's device, by the drill's `xid`) happens to `shard` at `phase`; "random" is any moment, by a signal from outside, after `step` steps."""

    kind: str
    phase: str
    shard: int
    step: int = 8


@dataclass
class Report:
    tokens: list[list[int]]
    failed: str
    longest_step_s: float
    deaths: list[MemberDied]
    outcomes: list[GroupRecovered]
    kept: dict[int, bool] = field(
        default_factory=dict
    )  # shard -> same process and addresses as before


def prompts(seed: int, count: int = 3) -> list[list[int]]:
    random_ = random.Random(seed)
    return [
        [random_.randrange(5, 290) for _ in range(random_.randrange(10, 60))] for _ in range(count)
    ]


class Drill:
    """One engine, used for many drills."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        tp: int,
        pp: int = 1,
        standbys: int = 0,
        devices: int = 0,
        device: str = "cpu",
        backend: str = "gloo",
        nccl_library: str = "",
        dtype: str = "float32",
        faults: bool = True,
        condemned: Mapping[int, str] = {},
        **settings: Any,
    ) -> None:
        self.events: list[Event] = []
        self.xid: Callable[[int], None] = lambda device: None
        stream = EventStream(self.events.append, self._phase)
        self.pending: list[Fault] = []
        chosen = {
            "arena_dir": str(folder), "arena_bytes": "48MiB", "ledger_bytes": "1MiB", "standbys": standbys, "max_restarts": 1000,
            "start_timeout_s": 90, "recovery_deadline_s": DEADLINE_S, "step_deadline_s": 15, "hang_after_s": 1.0, "hang_floor_s": 1.0, "tail_every": 1,
            **settings,
        }  # fmt: skip
        options = Options(
            model=str(model), tp=tp, pp=pp, faults=faults, rows=32, name="drill", device=device, devices=devices, backend=backend, nccl_library=nccl_library, dtype=dtype,
            settings=chosen,
        )  # fmt: skip
        self.engine = Engine(options, MemoryStore(), stream, condemned=condemned)

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        seed: int,
        faults: Sequence[Fault] = (),
        *,
        tokens: int = 24,
        condemned: str = "",
        **how: Any,
    ) -> Report:
        """Serves the prompts of `seed` under `faults`; `condemned` is a verdict on shard 0, told before the first step."""
        engine, outputs, begun = self.engine, {}, len(self.events)
        self.pending = [fault for fault in faults if fault.phase in RECOVERING]
        serving = [fault for fault in faults if fault.phase not in RECOVERING]
        before = self.addresses()
        if condemned:
            engine.condemn(0, condemned)
        for index, prompt in enumerate(prompts(seed)):
            name = f"{seed}-{index}"
            outputs[engine.submit(prompt, Sampling(max_tokens=tokens, seed=seed, **how), name)] = (
                list[int]()
            )
        steps, longest = 0, 0.0
        while engine.busy:
            for fault in [f for f in serving if steps >= (0 if f.phase == "prefill" else f.step)]:
                serving.remove(fault)
                self._hurt(
                    fault, {"prefill": "step", "decode": "step"}.get(fault.phase, fault.phase)
                )
            began = time.monotonic()
            for output in engine.step():
                if output.token is not None:
                    outputs[output.request].append(output.token)
            longest = max(longest, time.monotonic() - began)
            steps += 1
        self.pending = []
        for process in engine.crew.members.values():
            process.send(say.Arm(point="", how=""))
        after = self.addresses() if not engine.failed else {}
        new = self.events[begun:]
        return Report(
            list(outputs.values()),
            engine.failed,
            longest,
            [e for e in new if isinstance(e, MemberDied)],
            [e for e in new if isinstance(e, GroupRecovered)],
            {shard: before[shard] == now for shard, now in after.items() if shard in before},
        )

    def addresses(self) -> dict[int, Any]:
        found = self.engine.group.describe(Deadline.after(10.0))
        return {shard: (d.pid, d.weights, d.cache) for shard, d in found.items()}

    def _phase(self, event: Event) -> None:
        if not isinstance(event, StateChanged):
            return
        for fault in [f for f in self.pending if f.phase == event.state]:
            self.pending.remove(fault)
            self._hurt(fault, POINTS[fault.phase])

    def _hurt(self, fault: Fault, point: str) -> None:
        """From outside where that is as good; by an order where the rank itself has to be at a place."""
        if fault.kind == "xid":
            device = self.engine.devices.of(fault.shard)
            if fault.phase == "collective":  # while the ranks are in the step that begins now
                threading.Thread(target=self.xid, args=(device,)).start()
            else:
                self.xid(device)
            return
        process = self.engine.crew.fresh.get(fault.shard) or self.engine.crew.members.get(
            fault.shard
        )
        if process is None:
            return
        if (fault.phase in RECOVERING and fault.kind != "raise" and process.pid) or (
            fault.phase == "random" and fault.kind != "raise"
        ):
            os.kill(process.pid, SIGNALS[fault.kind])
        else:
            point = "step" if point == "random" else point
            times = 3 if point == "collective" else 1
            process.send(say.Arm(point=point, how=fault.kind, times=times))
