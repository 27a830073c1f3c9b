"""`Driver`: what the drivers of both reference engines do alike: the start, requests, a lost step, restarts, the end.

Between the caller and the coordinator. An engine's own driver says what its ranks are, how a step is computed, and what is to be done
behind a recovery. It decides nothing about recovery itself.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dynamo_gpu_ft.engines.reference import backends, shape
from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.adapter import Adapter
from dynamo_gpu_ft.engines.reference.asking import GRACE_S
from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.errors import GpuFtError, RecoveryFailed
from dynamo_gpu_ft.events import EventStream
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.group.account import Outcome
from dynamo_gpu_ft.recovery.group.base import Deadline
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Kind, Policy
from dynamo_gpu_ft.recovery.membership.base import MembershipStore
from dynamo_gpu_ft.recovery.membership.open import open_store

_D = TypeVar("_D", bound="Driver")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Output:
    """A new token of a request; `finished` is empty while more will come, else "length", "stop" or the error's text (then no token)."""

    request: str
    token: int | None
    finished: str = ""


class Driver(ABC):
    """`crew`: the ranks' processes; `group`: how the coordinator's steps are done to them; `failed`: why the engine has ended for good, or "".

    An engine's constructor sets what is its own and then calls `_begin`. A context manager; call everything from one thread."""

    crew: Crew
    group: Adapter
    coordinator: Coordinator

    def __init__(self, options: Options) -> None:
        """Reads the checkpoint's shape; starts nothing. Raises `ConfigError`."""
        self.options, self.config = options, options.config()
        backends.check(options)
        self.shape = shape.read(Path(options.model))
        self.failed = ""
        self._tag = f"{options.name}-{os.getpid()}-{next(_numbers)}"
        self._steps, self._names = 0, itertools.count()
        self._restarts: list[float] = []

    def _begin(self, store: MembershipStore | None, events: EventStream | None) -> None:
        """Starts the ranks, and ends them again if one does not come up. `store` is the one that the setting `membership` names, unless it is given."""
        self._store = store if store is not None else open_store(self.config)
        self._events = events or EventStream()
        try:
            with self._starting():
                self._hire()
                self._start()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _hire(self) -> None:
        """Makes `crew` and `group`, at the start and at every restart."""

    @abstractmethod
    def _policy(self) -> Policy:
        """What the coordinator may do."""

    def _verdicts(self, missing: frozenset[int]) -> tuple[dict[int, str], int | None]:
        """For the coordinator: which of the missing have no device to be on, and how many places there are (None: not counted)."""
        return {}, None

    def _start(self) -> None:
        """Blocks until the ranks are there, at most `start_timeout_s`: fewer than there are shards, where too few devices can be used and
        that is allowed. Raises what the group's start does."""
        deadline = Deadline.after(self.config.start_timeout_s)
        members = self.group.start(deadline)
        self.coordinator = Coordinator(
            self.options.name, self.options.ranks, self.group, self._store, self._policy(), self._events, verdicts=self._verdicts
        )  # fmt: skip
        membership = self.coordinator.found(members)
        self.group.connect(membership.epoch, deadline)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Around a start: what fails in it leaves no process, and is a `GpuFtError`."""
        try:
            yield
        except BaseException as error:
            self._end_ranks()
            if isinstance(error, GpuFtError) or not isinstance(error, Exception):
                raise
            raise RecoveryFailed(
                "the engine does not start",
                where=self.options.name,
                value=f"{type(error).__name__}: {error}",
                rule=f"all ranks within {self.config.start_timeout_s:g} s",
                remedy="look at the ranks' own messages above this one",
            ) from error

    # -- requests ------------------------------------------------------------------------------------------------------------

    def submit(self, prompt: Sequence[int], sampling: Sampling, request: str = "") -> str:
        """Queues a request and returns its name, by which seeded draws go too. Raises `GpuFtError` for one that cannot be served."""
        self._check_serving()
        if bad := [t for t in prompt if not 0 <= t < self.shape.vocab]:
            raise GpuFtError(
                "a prompt has unknown tokens", value=bad[:3], rule=f"below {self.shape.vocab}"
            )
        name = request or f"r{next(self._names)}"
        self._queue(name, prompt, sampling)
        return name

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """All outputs, in the order of the prompts. Raises `RecoveryFailed` when the engine fails for good."""
        names = [self.submit(prompt, sampling) for prompt in prompts]
        outputs: dict[str, list[int]] = {name: [] for name in names}
        while self.busy:
            for output in self.step():
                if output.token is not None:
                    outputs.setdefault(output.request, []).append(output.token)
        self._check_serving()
        return [outputs[name] for name in names]

    def _check_serving(self) -> None:
        if self.failed:
            raise RecoveryFailed(
                "the engine has failed", where=self.options.name, value=self.failed
            )

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a request is open."""

    @abstractmethod
    def _queue(self, name: str, prompt: Sequence[int], sampling: Sampling) -> None:
        """Raises `GpuFtError` for a request that could never be run."""

    @abstractmethod
    def _end_requests(self, reason: str) -> list[Output]:
        """Every open request is over, with `reason`."""

    @abstractmethod
    def step(self) -> list[Output]:
        """Computes one step of what is open. Blocks for it, and for a recovery if one is needed; [] when that, or nothing, was done.

        After a failure for good, the open requests' ends are returned once, with the reason."""

    def _done(self, kind: type) -> dict[int, Any]:
        """Each member's `kind` of answer to the newest step, as far as they came: all, or those until one is lost or is too late."""
        now = self.group.epoch, self._steps
        return self.crew.collect(
            self.crew.members,
            lambda m: isinstance(m, kind) and (m.epoch, m.number) == now,  # type: ignore[attr-defined]
            time.monotonic() + self.config.step_deadline_s,
            epoch=self.group.epoch,
        )

    # -- faults --------------------------------------------------------------------------------------------------------------

    def _step_lost(self, epoch: int) -> list[Output]:
        """Somebody is dead, hung or failed, or a communicator broke: who, shows within a moment, or by who does not come back."""
        members = self.crew.members
        until = time.monotonic() + GRACE_S
        while not self.crew.lost and time.monotonic() < until:
            time.sleep(0.002)
            self.crew.look()
        if not self.crew.lost:
            for process in members.values():
                process.send(say.Revoke(epoch=epoch))
                process.send(say.Fence(number=-self._steps))
            back = self.crew.collect(
                members,
                lambda m: isinstance(m, say.Fenced) and m.number == -self._steps,
                time.monotonic() + max(1.0, self.config.hang_floor_s),
            )
            for shard in set(members) - set(back):
                members[shard].lost("it does not come back from a step that was called off")
            if len(back) == len(members):
                # All live and yet they cannot talk: one of them has to go, or it would be tried for ever.
                members[max(members)].lost("its communicators broke and nobody is dead")
        return self.recover()

    @abstractmethod
    def recover(self, *, grow: bool = False) -> list[Output]:
        """Has the coordinator recover in place; with `grow`, fill the places that a degraded engine misses. Blocks at most
        `recovery_deadline_s` and a restart. Returns the ends of requests if it failed."""

    def _not_in_place(self, outcome: Outcome) -> list[Output]:
        """A recovery did not end in SERVING: everything is started again if the coordinator says so, and as often as allowed, or it is the end."""
        if outcome.kind is not Kind.RESTART or outcome.superseded:
            return self._fail(outcome.reason)
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if now - t < self.config.restart_window_s]
        if len(self._restarts) >= self.config.max_restarts:
            return self._fail(f"{len(self._restarts)} restarts did not help: {outcome.reason}")
        self._restarts.append(now)
        try:
            self.restart()
        except GpuFtError as error:
            return self._fail(f"{outcome.reason}; then {error}")
        return []

    def restart(self) -> None:
        """Ends every process and starts all of them again; open requests keep their tokens. Raises `GpuFtError`; nothing runs then."""
        former = self.group
        self._end_ranks()
        with self._starting():
            self._hire()
            self.group.remember(former)
            self._start()

    def _fail(self, reason: str) -> list[Output]:
        self.failed = reason
        self.group.end()
        return self._end_requests(reason)

    def close(self) -> None:
        """Ends every process of the engine. Can be repeated; never raises."""
        self._end_ranks()
        for left in Path(self.config.arena_dir).glob(f"*{self._tag}-*.rendezvous"):
            shutil.rmtree(left, ignore_errors=True)

    def _end_ranks(self) -> None:
        """Also those of a start that came half-way. Never raises."""
        with suppress(OSError):
            if hasattr(self, "group"):
                self.group.end()
            if hasattr(self, "crew"):
                self.crew.close()
        processes.end_all(self._tag, deadline_s=5.0)

    def __enter__(self: _D) -> _D:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
