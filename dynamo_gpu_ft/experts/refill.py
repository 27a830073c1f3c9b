"""Brings lost experts back into a rank's slots: hottest first, from the first source that is right, one layer's commit at a time.

Called by an engine in its recovery (all wants before a deadline) or in the background (a returning rank, more redundancy); every step
is safe to be killed in, and what is left undone is said with its reasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dynamo_gpu_ft.errors import SlotError
from dynamo_gpu_ft.experts.sources import ExpertSource, Fetcher, Manifest, PassedOver
from dynamo_gpu_ft.experts.store import Committed, SlotStore


@dataclass(frozen=True, slots=True)
class Want:
    """One expert that should be in one local slot. `load` decides the order only."""

    layer: int
    slot: int
    expert: int
    load: int = 0


@dataclass
class Refilled:
    """What a refill did. `left`: wants that are not routable, with the reason of each; `stopped`: why it ended early, "" if not."""

    epoch: int
    committed: list[Committed] = field(default_factory=list)
    passed: list[PassedOver] = field(default_factory=list)
    left: list[tuple[Want, str]] = field(default_factory=list)
    by_source: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    stopped: str = ""

    @property
    def complete(self) -> bool:
        return not self.left


def queue(wants: Iterable[Want]) -> list[Want]:
    """Hottest first; equal loads by layer, expert and slot, so that every machine agrees."""
    return sorted(wants, key=lambda want: (-want.load, want.layer, want.expert, want.slot))


def waves(wants: Sequence[Want], room: Callable[[int], int]) -> list[list[Want]]:
    """The queue in commits: each starts with the hottest want left and takes along what follows of its layer, `room(layer)` at most."""
    left, found = list(queue(wants)), []
    while left:
        layer = left[0].layer
        wave = [want for want in left if want.layer == layer][: max(1, room(layer))]
        left = [want for want in left if want not in wave]
        found.append(wave)
    return found


def refill(
    store: SlotStore,
    wants: Sequence[Want],
    sources: Sequence[ExpertSource],
    manifest: Manifest,
    *,
    epoch: int,
    deadline_s: float,
    per_source_s: float = 5.0,
    committed: Callable[[Committed], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    room: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
) -> Refilled:
    """Fills `wants`; a want that its slot already has costs nothing. `committed` is called after each layer's swap: an engine updates
    its tables there and returns when no step under way uses the former map, because rows that left the map are written over next. `stop` is asked before every expert: true ends the refill cleanly (a second loss, a newer epoch). `room` gives
    landing memory (`device_rows.pinned` for rows on a device).

    Blocks at most about `deadline_s` seconds. Never raises for a source or an expert; raises `SlotError` for a stale `epoch` and for
    a slot that is not there."""
    started = time.monotonic()
    done = Refilled(epoch)
    fetcher = Fetcher(sources, manifest, store.geometry.expert_bytes, room)
    store.fence(epoch)
    if epoch < store.epoch:
        raise SlotError(
            "a refill of a stale epoch", value=epoch, rule=f"the newest is {store.epoch}"
        )
    _known(store, wants)
    open_wants = [want for want in wants if store.routable(want.layer)[want.slot] != want.expert]
    for wave in waves(open_wants, lambda layer: len(store.free_rows(layer))):
        landed = []
        for want in wave:
            why = _land(
                store, fetcher, want, done, started + deadline_s, per_source_s, stop, committed
            )
            if why:
                done.left.append((want, why))
            else:
                landed.append(want)
        if landed and not _commit(store, landed, done, committed):
            break
    told = {want for want, _ in done.left}
    rest = done.stopped or "not reached"
    done.left += [
        (want, rest)
        for want in queue(open_wants)
        if want not in told and store.routable(want.layer)[want.slot] != want.expert
    ]
    done.seconds = time.monotonic() - started
    return done


def _known(store: SlotStore, wants: Sequence[Want]) -> None:
    sizes = store.geometry
    for want in wants:
        if not (
            0 <= want.layer < sizes.layers and 0 <= want.slot < sizes.slots and want.expert >= 0
        ):
            raise SlotError(
                "a refill of a slot that is not there", value=want, rule=f"{sizes.layers} layers of {sizes.slots} slots",
                remedy="`slot` is the rank's own: physical slot modulo slots per rank",
            )  # fmt: skip


def _land(
    store: SlotStore,
    fetcher: Fetcher,
    want: Want,
    done: Refilled,
    give_up: float,
    per_source_s: float,
    stop: Callable[[], bool],
    committed: Callable[[Committed], None],
) -> str:
    """ "" when the expert is staged, else why not."""
    if not done.stopped and stop():
        done.stopped = "stopped by the caller"
    if not done.stopped and time.monotonic() >= give_up:
        done.stopped = "the deadline was over"
    if done.stopped:
        return done.stopped
    try:
        got = fetcher.fetch(want.layer, want.expert, give_up - time.monotonic(), per_source_s)
        done.passed += got.passed
        if got.data is None:
            return "; ".join(f"{p.source}: {p.reason}" for p in got.passed) or "there is no source"
        if not store.free_rows(want.layer):  # no spare row: give up what the slot has, then land
            store.retire(want.layer, want.slot, done.epoch)
            done.committed.append(store.commit(want.layer, done.epoch))
            committed(done.committed[-1])
        digest = fetcher.digest_of(want.layer, want.expert)
        store.land(want.layer, want.slot, want.expert, got.data, digest, done.epoch)
    except SlotError as error:
        return str(error)
    done.by_source[got.source] = done.by_source.get(got.source, 0) + 1
    done.bytes += len(got.data)
    return ""


def _commit(
    store: SlotStore, landed: list[Want], done: Refilled, tell: Callable[[Committed], None]
) -> bool:
    """False when a newer epoch has taken the store over."""
    try:
        result = store.commit(landed[0].layer, done.epoch)
    except SlotError as error:
        done.stopped = str(error)
        return False
    done.committed.append(result)
    done.left += [
        (w, "its row was damaged before the commit") for w in landed if w.slot in result.damaged
    ]
    tell(result)
    return True
