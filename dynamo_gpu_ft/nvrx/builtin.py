"""The built-in monitor: starts the ranks of one node, watches exits, heartbeats and sections, starts them again within limits.

One thread, one loop; no rank hosts it, and the loss of any rank is an event to it. What it decides is decided by pure functions
(`voices.hangs`, `outcome.after_loss`); its own end ends its ranks (`children`, `keeper`).
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dynamo_gpu_ft.errors import NvrxError
from dynamo_gpu_ft.events import EngineDied, EngineReady, EventStream, RecoveryFailedEvent
from dynamo_gpu_ft.nvrx import voices, wire
from dynamo_gpu_ft.nvrx.children import Child, end
from dynamo_gpu_ft.nvrx.keeper import Keeper
from dynamo_gpu_ft.nvrx.limits import Limits
from dynamo_gpu_ft.nvrx.listening import Ear
from dynamo_gpu_ft.nvrx.outcome import OK, Outcome, after_loss, exit_words
from dynamo_gpu_ft.nvrx.signals import Signals
from dynamo_gpu_ft.nvrx.translate import Job
from dynamo_gpu_ft.nvrx.wishes import Wish
from dynamo_gpu_ft.recovery import waiting

KILL_S = 10.0


@dataclass
class _Running:
    child: Child
    key: str
    status: int | None = None  # of one that has ended


class BuiltinMonitor:
    """Use from the main thread of a process that does nothing else."""

    def __init__(
        self,
        job: Job,
        limits: Limits,
        folder: str,
        keeper: Keeper,
        events: EventStream,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Raises `NvrxError` if it cannot listen in `folder`."""
        self._job, self._limits, self._keeper, self._events = job, limits, keeper, events
        self._environ = dict(os.environ if environ is None else environ)
        self._asked: list[tuple[Wish, str]] = []
        self._running: dict[int, _Running] = {}
        self._losses: list[float] = []
        self._round = 0
        self._tag = os.path.basename(folder)
        try:
            self._ear = Ear(folder, lambda rank, wish, why: self._asked.append((wish, why)))
        except OSError as error:
            raise NvrxError("the monitor cannot listen", where=folder, value=str(error)) from None

    def run(self) -> Outcome:
        """Blocks until every rank ended well, or there is no going on; then nothing it started is left."""
        with Signals() as signals:
            try:
                return self._run(signals)
            finally:
                self._end_all(graceful=bool(signals.received()))
                self._ear.close()

    def _run(self, signals: Signals) -> Outcome:
        while True:
            self._start()
            reason, lost = self._until_loss(signals)
            if number := signals.received():
                return _told_to_end(number)
            if not reason:
                return Outcome(OK)
            self._losses = [*self._losses, time.monotonic()][-1000:]
            self._events.emit(EngineDied(epoch=self._round, reason=reason, open_requests=0))
            self._end_all(graceful=True)
            plan = after_loss(
                self._losses,
                [lost] if lost is not None else [],
                self._asked,
                now=self._losses[-1],
                reason=reason,
                limits=self._limits,
            )
            if isinstance(plan, Outcome):
                self._events.emit(RecoveryFailedEvent(reason=plan.reason))
                return plan
            if plan.delay_s and not signals.received():
                waiting.readable([signals.descriptor], plan.delay_s)
            if number := signals.received():
                return _told_to_end(number)

    def _start(self) -> None:
        """All ranks, in a round with a port of its own. Raises `NvrxError` if the command cannot be started."""
        self._round += 1
        port = _free_port()
        for rank in range(self._job.ranks):
            key, tag = secrets.token_hex(8), f"{self._tag}-{self._round}-{rank}"
            self._keeper.watch(tag)
            self._ear.expect(key, rank)
            environ = {
                **self._environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self._job.ranks),
                "LOCAL_WORLD_SIZE": str(self._job.ranks),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RESTART_COUNT": str(self._round - 1),
                wire.SOCKET_VARIABLE: self._ear.path,
                wire.KEY_VARIABLE: key,
            }
            try:
                child = Child(self._job.command, tag=tag, environ=environ)
            except OSError as error:
                raise NvrxError(
                    "the command cannot be started",
                    where=f"rank {rank}",
                    value=self._job.command[0],
                    rule=str(error.strerror),
                    remedy="its full path",
                ) from None
            self._running[rank] = _Running(child, key)
        pids = tuple(one.child.pid for one in self._running.values())
        self._events.emit(EngineReady(epoch=self._round, pids=pids))

    def _until_loss(self, signals: Signals) -> tuple[str, int | None]:
        """(why a rank is lost, its exit status if it ended by itself); ("", None) when all ended well or we were told to end."""
        # NOTE: poll, not select: a connection's number may be beyond 1023.
        while not signals.received():
            alive = {
                one.child.descriptor: rank
                for rank, one in self._running.items()
                if one.status is None
            }
            if not alive:
                return "", None
            poll = select.poll()
            for number in (*alive, signals.descriptor, *self._ear.descriptors()):
                poll.register(number, select.POLLIN)
            ready = {number for number, _ in poll.poll(self._limits.check_s * 1000)}
            at = time.monotonic()
            # All that was said is heard before anybody is judged: we may have been stopped ourselves.
            self._ear.listen(at)
            for number in ready & set(alive):
                one = self._running[alive[number]]
                one.status = one.child.poll()
                if one.status is not None:
                    self._ear.forget(one.key)
                if one.status:
                    return exit_words(alive[number], one.status), one.status
            keys = {one.key for one in self._running.values() if one.status is None}
            for key, voice in self._ear.voices():
                why = voices.hangs(voice, at, self._limits) if key in keys else ""
                if why:
                    self._running[voice.rank].child.kill(KILL_S)  # it would not obey
                    return why, None
        return "", None

    def _end_all(self, *, graceful: bool) -> None:
        """Ends what runs: SIGTERM and time to obey, then SIGKILL; stopped and stuck processes included."""
        end(
            [one.child for one in self._running.values()],
            grace_s=self._limits.stop_s if graceful else 0.0,
            kill_s=KILL_S,
        )
        self._ear.listen(time.monotonic())  # a last wish
        for one in self._running.values():
            self._ear.forget(one.key)
            one.child.close()
        self._running.clear()


def _told_to_end(number: int) -> Outcome:
    return Outcome(128 + number, f"ended by {signal.Signals(number).name}")


def _free_port() -> int:
    """A TCP port nobody listens on now. Another process may take it before rank 0 does; then the round fails and the next has another."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
