"""What the built-in monitor has heard from the ranks, and the judgement who hangs: pure, time is handed in.

One start of one rank may speak with several voices (its engine's own workers); any of them can hang it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_gpu_ft.nvrx import wire
from dynamo_gpu_ft.nvrx.limits import Limits


@dataclass
class Voice:
    """One connection. Silent until its `Hello` with the right key.

    rank, pid   who speaks, by its own word;  heard: when something came last
    section, since   where it is; empty: it has not said"""

    rank: int
    pid: int
    heard: float
    section: str = ""
    since: float = 0.0
    over: bool = False  # it said goodbye


def hear(voice: Voice, packet: wire.Packet, at: float) -> None:
    """Notes a packet of this voice that came at second `at`. A section that begins in the future begins now."""
    voice.heard = at
    if isinstance(packet, wire.State):
        voice.section, voice.since = packet.section, min(packet.since, at)
    elif isinstance(packet, wire.Bye):
        voice.over = True


def hangs(voice: Voice, at: float, limits: Limits) -> str:
    """Why this voice's rank counts as hung at second `at`; empty if it does not."""
    if voice.over:
        return ""
    silent = at - voice.heard
    if silent > limits.heartbeat_s:
        return (
            f"rank {voice.rank} hangs: no sign of process {voice.pid} for {silent:.1f} s, "
            f"the limit is {limits.heartbeat_s:g} s"
        )
    limit = limits.sections.get(voice.section)
    if limit is not None and at - voice.since > limit:
        return (
            f"rank {voice.rank} hangs: section {voice.section!r} lasts {at - voice.since:.1f} s, "
            f"the limit is {limit:g} s"
        )
    return ""
