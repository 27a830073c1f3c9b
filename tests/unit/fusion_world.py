"""Readings as the sources make them, for the tests of fusion: short names, one place for the shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dynamo_gpu_ft.health.fusion import Fusion
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device, Rank

T0 = 10_000.0  # seconds since boot: no boot grace any more

GPUS = tuple(Device(bdf=f"0000:{0x10 + n:02x}:00", uuid=f"GPU-{n}", index=n) for n in range(8))
RANKS = tuple(
    Rank(shard=n, pid=10 + n, host_pid=1000 + n, device=device) for n, device in enumerate(GPUS)
)
SWITCH = Device(kind="switch", bdf="0000:86:00")
NODE = Device(kind="node")


def bdf(n: int, gi: int | None = None, ci: int | None = None) -> Device:
    """A GPU as the kernel's log names it."""
    return Device(bdf=GPUS[n].bdf, gi=gi, ci=ci)


def uuid(n: int) -> Device:
    """A GPU as NVML names it."""
    return Device(uuid=GPUS[n].uuid, index=n)


def read(
    at: float, probe: str, device: Device, source: Source, state: State, **more: Any
) -> Reading:
    return Reading(at=T0 + at, probe=probe, device=device, source=source, state=state, **more)


def xid(at: float, code: int, gpu: int = 0, **more: Any) -> Reading:
    """An XID in the kernel's log."""
    device = more.pop("device", bdf(gpu))
    if "pid" in more:
        more.setdefault("pid_space", "host")
    return read(
        at, more.pop("probe", "xid"), device, Source.KERNEL_LOG, State.FAILED, code=code, **more
    )


def event(at: float, code: int, gpu: int = 0, **more: Any) -> Reading:
    """The same from NVML's events: no process, other names."""
    return read(at, "xid", uuid(gpu), Source.NVML_EVENT, State.FAILED, code=code, **more)


def trace(at: float, code: int, gpu: int = 0) -> Reading:
    return read(at, "xid", bdf(gpu), Source.TRACEPOINT, State.FAILED, code=code)


def recovery(at: float, action: int, gpu: int = 0, **more: Any) -> Reading:
    """NVML's field 230 as the poll sees it."""
    state = State.FAILED if action else State.HEALTHY
    return read(at, "recovery_action", uuid(gpu), Source.NVML_POLL, state, code=action, **more)


def xid154(at: float, old: int, new: int, gpu: int = 0) -> Reading:
    return xid(at, 154, gpu, facts={"old_action": hex(old), "new_action": hex(new)})


def probe(at: float, name: str, state: State, gpu: int = 0, **more: Any) -> Reading:
    return read(at, name, uuid(gpu), Source.NVML_COUNTER, state, **more)


def link(at: float, up: bool, gpu: int = 0, number: int = 3, **more: Any) -> Reading:
    state = State.HEALTHY if up else State.FAILED
    return probe(at, "nvlink", state, gpu, facts={"link": str(number)}, **more)


def cuda(at: float, code: int, shard: int = 0) -> Reading:
    return Reading(
        at=T0 + at, probe="cuda", source=Source.ENGINE, state=State.FAILED, code=code,
        shard=shard, pid=10 + shard, pid_space="own",
    )  # fmt: skip


def nccl(at: float, shard: int) -> Reading:
    return Reading(
        at=T0 + at, probe="nccl", source=Source.ENGINE, state=State.FAILED, code=6, shard=shard
    )


def step(at: float, state: State, shard: int = 0) -> Reading:
    return Reading(at=T0 + at, probe="step", source=Source.HEARTBEAT, state=state, shard=shard)


def fused(readings: Iterable[Reading], **made: Any) -> tuple[Fusion, list[Incident]]:
    """A fusion that took them one by one, and everything it told."""
    made.setdefault("ranks", RANKS)
    fusion = Fusion(prefix="t", **made)
    told = []
    for reading in readings:
        told += fusion.add(reading)
    return fusion, told


def one(incidents: Iterable[Incident]) -> Incident:
    found = list(incidents)
    assert len(found) == 1, [incident.name for incident in found]
    return found[0]


def settled(readings: Iterable[Reading], after: float = 6.0, **made: Any) -> list[Incident]:
    """What is open once the window of the last reading has passed."""
    readings = list(readings)
    fusion, _ = fused(readings, **made)
    fusion.tick(max(reading.at for reading in readings) + after)
    return fusion.open()
