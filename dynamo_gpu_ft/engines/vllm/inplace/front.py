"""The serving process's side of recoveries in place: hears from EngineCore what they do, and passes verdicts on to it.

It outlives engines; each start of one calls in under its own tag. Events are passed on on the event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener
from typing import Any

from dynamo_gpu_ft.engines.vllm.front_health import FrontHealth
from dynamo_gpu_ft.engines.vllm.inplace.link import (
    Armed,
    Condemn,
    Noticed,
    Suspect,
    Told,
    Undecided,
    address,
)
from dynamo_gpu_ft.events import (
    Event,
    EventStream,
    GroupRecovered,
    Planned,
    RequestResumed,
    StateChanged,
    decode,
)
from dynamo_gpu_ft.metrics import metrics
from dynamo_gpu_ft.recovery.group.plan import Kind
from dynamo_gpu_ft.recovery.verdicts import Sentence

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: How long an engine that has failed may take to close its line, after it has said why.
LAST_WORDS_S = 2.0

#: By then a peer's death has been noticed, if it was one.
PEER_S = 5.0


@dataclasses.dataclass
class GroupStatus:
    """What is known of the running engine's group. `members`: shard -> pid; empty while losses are not recovered in place."""

    members: dict[int, int] = dataclasses.field(default_factory=dict)
    state: str = "none"
    epoch: int = 0
    standbys: int = 0
    lost: tuple[int, ...] = ()
    reason: str = ""
    recoveries: int = 0
    over: str = ""  # why no engine may be started again either: a shard that takes each of its members with it


class GroupFront:
    """One per serving process. `nudge` is called on the loop when the engine should be asked something."""

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._listener: Listener | None = None
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: list[Any] = []
        self._lock = threading.Lock()
        self._recovered = float("-inf")  # when the last recovery was over, monotonic
        self._hung_up = threading.Event()  # the engine's end of the line is closed
        self.nudge: Callable[[], None] = lambda: None
        self.give_up: Callable[[str], None] = lambda reason: None
        self.name_of: Callable[[str], str] = lambda request_id: request_id
        self.expect: Callable[[bool], None] = lambda recovering: None
        self.status = GroupStatus()

    def prepare(self, tag: str) -> None:
        """Listens for the engine that will be started under `tag`. Never raises."""
        self._release()
        self.status = GroupStatus(recoveries=self.status.recoveries)
        try:
            key = bytes(multiprocessing.current_process().authkey)
            listener = Listener(address(tag), "AF_UNIX", authkey=key)
        except OSError as error:
            _log.warning(
                "recoveries in place of this engine are not followed by its server: %s", error
            )
            return
        self._listener = listener
        self._hung_up = threading.Event()
        threading.Thread(
            target=self._serve, args=(listener, self._hung_up), daemon=True, name="gpu-ft-group"
        ).start()

    def serve(
        self,
        *,
        nudge: Callable[[], None],
        name_of: Callable[[str], str],
        give_up: Callable[[str], None],
        expect: Callable[[bool], None],
    ) -> None:
        """Call on the loop once the engine is ready: messages are taken in from now on, those that came before first."""
        self.nudge, self.name_of, self.give_up, self.expect = nudge, name_of, give_up, expect
        with self._lock:
            self._loop = asyncio.get_running_loop()
            early, self._early = self._early, []
        for message in early:
            self._take(message)

    def late(self, give_up: Callable[[str], None], reason: str) -> None:
        """Gives the engine up that `give_up` belongs to, if it is this one's and is not recovered by now."""
        if self.busy and give_up == self.give_up:
            give_up(reason)

    def look_into(self, reason: str, give_up: Callable[[str], None]) -> bool:
        """Ranks say that their communicator broke: a peer may have died, and its recovery is on its way then. If none was seen after
        a while, the engine is given up. False when losses are not recovered in place."""
        if not self.status.members:
            return False

        def decide() -> None:
            lately = time.monotonic() - self._recovered < 2 * PEER_S
            if not (self.busy or lately) and give_up == self.give_up:
                give_up(reason)

        self.nudge()
        asyncio.get_running_loop().call_later(PEER_S, decide)
        return True

    @property
    def busy(self) -> bool:
        return self.status.state not in ("none", "serving")

    async def why_over(self) -> str:
        """Of an engine that has ended: why none is to be started again, "" when one may be. Waits a moment for its last words."""
        if self.busy:
            await asyncio.to_thread(self._hung_up.wait, LAST_WORDS_S)
        return self.status.over

    def replace(self, sentence: Sentence, health: FrontHealth, ranks: int) -> bool:
        """Has the shards of a verdict replaced. False when that is not possible: nobody or no device would be left, or nobody listens."""
        members, shards = self.status.members, sentence.shards
        if not shards or not members:
            return False
        if len(members) > 1 and (sentence.stuck or set(shards) == set(members)):
            # A collective makes all of them look stuck, and the one that waits may have been seen first: they are asked.
            return self._send(Suspect(sentence.reason))
        if not set(shards) < set(members):
            return False
        choice, environment = health.choose(ranks)
        if choice.missing:
            return False
        condemned = {shard: members[shard] for shard in shards}
        return self._send(Condemn(condemned, sentence.reason, dict(environment)))

    def close(self) -> None:
        self._release()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _send(self, message: object) -> bool:
        connection = self._connection
        if connection is None:
            return False
        try:
            connection.send(message)
            return True
        except OSError:
            return False

    def _release(self) -> None:
        listener, self._listener = self._listener, None
        connection, self._connection = self._connection, None
        for open_end in (connection, listener):
            if open_end is not None:
                open_end.close()

    def _serve(self, listener: Listener, hung_up: threading.Event) -> None:
        try:
            connection = listener.accept()
            self._connection = connection
            while True:
                message = connection.recv()
                with self._lock:
                    loop = self._loop
                    if loop is None:
                        self._early.append(message)
                        continue
                loop.call_soon_threadsafe(self._take, message)
        except (OSError, EOFError, RuntimeError, multiprocessing.AuthenticationError):
            return  # the engine has ended, or this server
        finally:
            hung_up.set()

    def _take(self, message: object) -> None:
        if isinstance(message, Armed):
            self.status.members = dict(message.members)
            self.status.standbys, self.status.epoch = message.standbys, message.epoch
            metrics().set("group_standbys", message.standbys)
            if self.status.state == "none":
                self.status.state = "serving"
        elif isinstance(message, Noticed):
            self.nudge()
        elif isinstance(message, Undecided):
            self.give_up(message.reason)
        elif isinstance(message, Told):
            self._heard(decode(message.event))

    def _heard(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self.status.state, self.status.epoch = event.state, event.epoch
            self.status.lost, self.status.reason = event.lost, event.reason
            if event.state != "failed":
                self.expect(event.state != "serving")
        elif isinstance(event, Planned) and event.kind == Kind.FAIL.value:
            self.status.over = event.reason
        elif isinstance(event, GroupRecovered) and event.outcome == "serving":
            self.status.recoveries += 1
            self._recovered = time.monotonic()
        elif isinstance(event, RequestResumed):
            event = RequestResumed(
                time=event.time,
                epoch=event.epoch,
                request_id=self.name_of(event.request_id),
                tokens_before=event.tokens_before,
                tokens_restored=event.tokens_restored,
                tokens_recomputed=event.tokens_recomputed,
            )
        self._events.emit(event)
