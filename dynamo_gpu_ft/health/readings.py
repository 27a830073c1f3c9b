"""A reading: what one source saw at one moment about one device. The only thing that probes produce and fusion takes in.

Frozen data that crosses processes as JSON or msgpack. A source that cannot see says `unknown`, which is never taken as healthy.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from dynamo_gpu_ft.topology import Device


class State(str, Enum):
    """What a reading says about its device."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Source(str, Enum):
    """Who saw it. Two sources may see one fault; the same source twice with one `serial` saw it once."""

    NVML_EVENT = "nvml_event"  # the driver's event queue
    NVML_POLL = "nvml_poll"  # the native poll of recovery action and lost GPUs
    NVML_COUNTER = "nvml_counter"  # counters and states read by a probe
    KERNEL_LOG = "kernel_log"
    TRACEPOINT = "tracepoint"
    FABRIC_LOG = "fabric_log"  # the fabric manager's own log
    ENGINE = "engine"  # an exception or status that the engine handed in
    HEARTBEAT = "heartbeat"
    PROCESS = "process"  # what /proc says of a process


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One observation.

    at        seconds of CLOCK_MONOTONIC of this host when it was seen; the only time that rules compare
    time      wall-clock seconds since 1970, for people
    probe     what was looked at: "xid", "sxid", "nvlink5", "ecc", "rows", "nvlink", "fabric", "pcie", "throttle",
              "recovery_action", "gpu_lost", "driver", "cuda", "nccl", "step", "event" (another NVML event), "log" (lost lines),
              "peermem", "crash" (in a GPU library), "hung_task", "name" (tells names of a device and nothing of its health)
    code      the number that goes with the probe: XID, SXid, recovery action, event bit, CUDA or NCCL code, None
    text      the source's own words, cut to a bounded length
    facts     small extra values by name, as text: subcode, registers, link, unit, counters, previous_xid, process name ...
    pid       process that the source names, in the namespace that `pid_space` tells ("host", "own", "" = none named)
    shard     rank of the engine that saw it in itself, None for what concerns a device as a whole
    serial    identity within the source (kernel-log sequence number, event count), "" when it has none
    count     how many equal observations a source folded into this one
    baseline  true for what was there already when watching began: known, but nothing that happened now
    """

    at: float
    source: Source
    probe: str
    state: State
    device: Device = Device()
    time: float = 0.0
    code: int | None = None
    text: str = ""
    facts: dict[str, str] = {}
    pid: int | None = None
    pid_space: str = ""
    shard: int | None = None
    serial: str = ""
    count: int = 1
    baseline: bool = False
