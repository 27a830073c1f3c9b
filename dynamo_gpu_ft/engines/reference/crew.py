"""The driver's view of the ranks' processes: starting, talking, waiting with a deadline, noticing who is dead, hung or failed, ending.

Every wait looks at all of them at once: channels, process descriptors and the watch of their heartbeats. It decides nothing about recovery.
"""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from dynamo_gpu_ft import native
from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.messages import Channel
from dynamo_gpu_ft.engines.reference.nursery import Nursery
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.waiting import readable

#: A nursery that dies at once is not started more often than this.
NURSERY_EVERY_S = 1.0
#: How long a rank that does not come out of a step may be one that waits for another, which was lost meanwhile.
SUSPECT_S = 1.0


class Process:
    """One rank's process. `why` says why it is lost, "" while it is not."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.pid = self.started = 0
        self.why = ""
        self.since = 0.0  # when it was given a shard
        self.inbox: list[Any] = []
        self._pidfd = -1

    def greeted(self, hello: say.Hello) -> None:
        self.pid, self.started = hello.pid, hello.started
        with suppress(OSError):
            self._pidfd = os.pidfd_open(hello.pid)

    @property
    def alive(self) -> bool:
        """Whether the process is there, hung or not; True before it said hello."""
        if not self.pid:
            return not self.channel.closed
        return self._pidfd >= 0 and not readable([self._pidfd], 0)

    @property
    def stopped(self) -> bool:
        """By a signal or a debugger."""
        return self.pid > 0 and processes.is_stopped(self.pid)

    def send(self, message: msgspec.Struct) -> None:
        """A process that does not take it is lost, and noticed as that; never raises."""
        try:
            self.channel.send(message)
        except OSError as error:
            self.lost(f"it does not take orders ({error})")

    def lost(self, why: str) -> None:
        self.why = self.why or why

    def look(self) -> None:
        """Takes in what has arrived; notices the end."""
        if not self.channel.closed:
            try:
                for message in self.channel.receive():
                    if isinstance(message, say.Hello):
                        self.greeted(message)
                    elif isinstance(message, say.Failed):
                        self.lost(f"its order {message.order} failed: {message.text}")
                    self.inbox.append(message)
            except (OSError, msgspec.DecodeError) as error:
                self.lost(f"it sends nonsense ({error})")
        if self.channel.closed or not self.alive:
            self.lost("its process is gone")

    def end(self, deadline_s: float) -> bool:
        """SIGKILL, also to a stopped one; True once it is gone. What it holds (locks, connections) is free then."""
        self.lost("it was ended")
        if self._pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            gone = bool(readable([self._pidfd], deadline_s))
            os.close(self._pidfd)
            self._pidfd = -1
        else:
            gone = True  # it never said hello: it ends when its channel does
        self.channel.close()
        return gone

    @property
    def descriptors(self) -> list[int]:
        own = [] if self.channel.closed else [self.channel.fileno()]
        return own + self.pidfds

    @property
    def pidfds(self) -> list[int]:
        return [self._pidfd] if self._pidfd >= 0 else []


class Crew:
    """All processes of one engine. `members` by shard; `fresh` are replacements that are being made; `standbys` are ready
    ones, `waking` those on their way there."""

    def __init__(self, options: Options, tag: str, replies: Any = say.Reply) -> None:
        """`replies`: what the ranks may say."""
        self._options, self._tag, self._config = options, tag, options.config()
        self._replies = replies
        self._forked: weakref.WeakSet[Process] = (
            weakref.WeakSet()
        )  # what nobody holds ends by itself
        self.members: dict[int, Process] = {}
        self.standbys: list[Process] = []
        self.waking: list[Process] = []
        self.fresh: dict[int, Process] = {}
        self._queue: Any = None
        self._watch: Any = None
        self._over = False
        self._suspects: dict[int, tuple[Process, str, float]] = {}
        self._lost_at = -SUSPECT_S
        self._judge: Callable[[], None] = lambda: None
        self._calls = -1
        self._held: tuple[str, int] | None = None
        try:
            self._watch_steps()
            self.nursery = Nursery(options, tag)
        except BaseException:
            self._stop_watching()
            raise

    @property
    def lost(self) -> dict[int, str]:
        """Members that are lost, as far as was seen: shard -> why."""
        return {shard: p.why for shard, p in self.members.items() if p.why}

    def attend(self, judge: Callable[[], None], calls: int) -> None:
        """`judge` is called with every look, and may call members lost; the descriptor `calls` wakes those who wait."""
        self._judge, self._calls = judge, calls

    def _watch_steps(self) -> None:
        config, core = self._config, native.load()
        if not config.health:
            return
        path, _ = heartbeat.files(config.arena_dir, self._tag)
        ranks = self._options.ranks
        core.make_heartbeat_file(path, ranks)
        self._held = path, heartbeat.hold(path)
        self._queue = core.WatchQueue()
        self._watch = core.HangWatch(
            self._queue, path, ranks=ranks, after=config.hang_after_s, floor=config.hang_floor_s,
            unknown=config.hang_unknown_s, silent=config.hang_after_s,
        )  # fmt: skip

    def fork(self) -> Process:
        """A new process that is on its way. Raises `OSError` when the nursery is gone."""
        process = Process(Channel(self.nursery.fork(), self._replies))
        self._forked.add(process)
        return process

    def wake_standbys(self) -> None:
        """Starts as many standbys as the settings want and are lacking. Never blocks for one, never raises."""
        with suppress(OSError):
            while len(self.standbys) + len(self.waking) < self._config.standbys:
                process = self.fork()
                process.send(say.Prepare())
                self.waking.append(process)

    def look(self) -> None:
        """Takes in everything that has happened; never blocks."""
        self._mind_nursery()
        self._judge()
        for process in self.members.values():
            process.look()
        for process in [*self.fresh.values(), *self.standbys, *self.waking]:
            process.look()
            if process.stopped:  # nobody waits for them yet, so there is nothing to be patient for
                process.lost("it is stopped")
        for process in list(self.waking):
            if process.why or any(isinstance(m, say.Ready) for m in process.inbox):
                self.waking.remove(process)
                process.inbox.clear()
                if process.why:
                    process.end(1.0)
                else:
                    self.standbys.append(process)
        for process in [p for p in self.standbys if p.why]:
            self.standbys.remove(process)
            process.end(1.0)
        for record in self._queue.take() if self._queue is not None else ():
            self._note(record)
        self._judge_suspects()

    def _mind_nursery(self) -> None:
        """One that died is replaced, and so is one that is stopped while a rank is waited for; the ranks that it made live on."""
        nursery, unborn = self.nursery, self._unborn
        if self._over or (nursery.alive and not (unborn and nursery.stopped)):
            return
        for process in unborn:
            process.lost("the nursery that was to fork it is gone")
        if time.monotonic() - nursery.born < NURSERY_EVERY_S:
            return
        nursery.end()
        everyone = [*self.members.values(), *self.fresh.values(), *self.standbys, *self.waking]
        wards = [descriptor for process in everyone for descriptor in process.pidfds]
        self.nursery = Nursery(self._options, self._tag, wards=wards)

    @property
    def _unborn(self) -> list[Process]:
        return [p for p in [*self.fresh.values(), *self.waking] if not p.pid and not p.why]

    def _note(self, record: Any) -> None:
        """What the watch of the heartbeats says: who holds a collective up is hung, not those that wait for it."""
        if record.source != "heartbeat" or record.what not in ("hang", "fine"):
            return
        reading = heartbeat.reading_of(record)
        own = [reading.shard] if reading.shard is not None else []
        if record.what == "fine":
            for shard in own:
                self._suspects.pop(shard, None)
            return
        late = [int(s) for s in record.facts.get("laggards", "").replace(" ", "").split(",") if s]
        in_step = record.facts.get("cause") == "step"
        for shard in late if in_step and late else own:
            process = self.fresh.get(shard) or self.members.get(shard)
            # A record may be about the process that had the shard before, or about a collective that it took part in.
            if process is None or reading.at <= process.since:
                continue
            if in_step and not late:
                self._suspects[shard] = (process, reading.text, time.monotonic())
            else:
                process.lost(reading.text)

    def _judge_suspects(self) -> None:
        """Ranks that do not come out of a step which all have begun: one hangs in it, the others wait for that one. Who is stopped or lost is
        to blame first; behind that, whoever only waited comes back, and is fine again, within a moment."""
        now = time.monotonic()
        if any(process.why for process in self.members.values()):
            self._lost_at = now
        for shard, (process, text, since) in list(self._suspects.items()):
            others = [p for p in self.members.values() if p is not process]
            blamed = now - self._lost_at < SUSPECT_S or any(p.stopped for p in others)
            if process is not self.members.get(shard):
                del self._suspects[shard]
            elif not blamed or now - since > SUSPECT_S:
                del self._suspects[shard]
                process.lost(text)
                self._lost_at = now

    def collect(
        self,
        waiting: Mapping[int, Process],
        wanted: Callable[[Any], bool],
        until: float,
        *,
        watched: Iterable[Process] = (),
        epoch: int = -1,
    ) -> dict[int, Any]:
        """Replies by key, as far as they came: returns when all are there, when one of `waiting` or `watched` is lost or says that a
        communicator of `epoch` broke, or at the monotonic moment `until`."""
        found: dict[int, Any] = {}
        watched = [*watched, *waiting.values()]
        while True:
            self.look()
            broken = False
            for key, process in waiting.items():
                for message in process.inbox:
                    if key not in found and wanted(message):
                        found[key] = message
                    broken |= isinstance(message, say.Broken) and message.epoch == epoch
                process.inbox.clear()
            left = until - time.monotonic()
            if len(found) == len(waiting) or broken or any(p.why for p in watched) or left <= 0:
                return found
            descriptors = [fd for p in watched for fd in p.descriptors]
            descriptors += [fd for p in self.waking for fd in p.descriptors]
            if self._queue is not None:
                descriptors.append(self._queue.fileno())
            if self._calls >= 0:
                descriptors.append(self._calls)
            if self._unborn:
                descriptors.append(self.nursery.fileno())
            readable(descriptors, min(left, 0.5))

    def end_all(self) -> None:
        """Every rank and the nursery; nothing starts again. Never raises."""
        self._over = True
        for process in list(self._forked):
            with suppress(OSError):
                process.end(1.0)
        self._forked.clear()
        self.members.clear()
        self.fresh.clear()
        self.standbys.clear()
        self.waking.clear()
        self.nursery.close()

    def close(self) -> None:
        self.end_all()
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self._held is not None:
            heartbeat.let_go(*self._held)
        self._watch = self._queue = self._held = None
