"""Turns events into metrics: the one place where a recovery's story becomes numbers.

Hangs on the event stream of the front process; holds no state but the recorder.
"""

from __future__ import annotations

from dynamo_gpu_ft.events import (
    EngineDied,
    EngineReady,
    Event,
    GroupRecovered,
    Listener,
    MemberDied,
    NotProtectedEvent,
    Recovered,
    RecoveryFailedEvent,
    RequestResumed,
    StateChanged,
    StepDone,
)
from dynamo_gpu_ft.metrics.recorder import Recorder


def listener(recorder: Recorder) -> Listener:
    """An event listener that counts into `recorder`."""

    def listen(event: Event) -> None:
        if isinstance(event, EngineReady):
            recorder.set("protected", 1)
        elif isinstance(event, StepDone):
            recorder.observe("recovery_duration_seconds", event.duration_s, step=event.step)
        elif isinstance(event, RequestResumed):
            recorder.add("restored_tokens_total", event.tokens_restored)
            recorder.add("recomputed_tokens_total", event.tokens_recomputed)
        elif isinstance(event, Recovered):
            recorder.observe("recovery_duration_seconds", event.duration_s, step="all")
            recorder.add("recoveries_total", outcome="serving")
        elif isinstance(event, RecoveryFailedEvent):
            recorder.add("recoveries_total", outcome="failed")
        elif isinstance(event, StateChanged):
            recorder.set("group_state", 0, state=event.former)
            recorder.set("group_state", 1, state=event.state)
            recorder.set("group_epoch", event.epoch)
        elif isinstance(event, MemberDied):
            recorder.add("members_died_total", shard=str(event.shard))
        elif isinstance(event, GroupRecovered):
            recorder.observe("recovery_duration_seconds", event.duration_s, step="in_place")
            recorder.add("group_recoveries_total", kind=event.kind, outcome=event.outcome)
            recorder.set("group_epoch", event.epoch)
        elif isinstance(event, NotProtectedEvent):
            recorder.set("protected", 0)
        elif isinstance(event, EngineDied):
            recorder.set("open_requests", event.open_requests)

    return listen
