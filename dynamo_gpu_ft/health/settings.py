"""The times and thresholds that fusion follows, with the reason for each default. Frozen data, given once at the start.

Seconds are seconds of `Reading.at`. Nothing here is a user's setting of its own: the monitor makes one of these.
"""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """
    window_s      readings this close belong to one fault; sources lag each other by a poll (250 ms) to a few seconds
    await_pid_s   how long a dead context waits for the source that names its process, where there is one (`names_pids`)
    quiet_s       a transient incident that made something unusable is over after this long without a reading
    noise_s       ... and one that made nothing unusable; long, so that noise stays one incident
    link_hold_s   a link has to stay up this long before its incident is cleared
    flap_count    so many times down within flap_window_s is flapping: it then has to stay up for the whole window
    grace_s       links train and the fabric registers for this long after boot, driver load and attach
    repeat_count  so many separate times of a suspicious code within repeat_window_s speak against the hardware
    repeat_gap_s  readings closer than this are one time: one fault prints many lines and has several sources
    sbe_per_s     corrected memory errors per second that are a storm
    sbe_over_s    shortest time over which that rate is believed
    evidence      kinds of readings kept per incident; the rest is counted
    entries       kinds of readings kept in all; beyond, the oldest of the least severe incidents are forgotten, a sixteenth at a time
    text, facts   characters kept of a reading's text and of each fact; facts kept per reading
    """

    window_s: float = 5.0
    names_pids: bool = False
    await_pid_s: float = 0.05
    quiet_s: float = 10.0
    noise_s: float = 600.0
    link_hold_s: float = 10.0
    flap_count: int = 3
    flap_window_s: float = 600.0
    grace_s: float = 300.0
    repeat_count: int = 3
    repeat_window_s: float = 180.0
    repeat_gap_s: float = 0.1
    sbe_per_s: float = 100.0
    sbe_over_s: float = 5.0
    evidence: int = 32
    entries: int = 2048
    unsettled: int = 256
    text: int = 512
    facts: int = 24
