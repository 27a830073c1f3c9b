"""Where things are: the names of a GPU, a MIG instance, an NVLink or a node, and which rank of an engine uses it.

Part of the vocabulary: frozen data, no effects. Every source of faults names devices in its own way (index, UUID, PCI address);
`Device.same` says whether two names can mean the same thing.
"""

from __future__ import annotations

import re
from typing import Union

import msgspec

_BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.[0-7])?", re.IGNORECASE)


def bdf_of(text: str) -> str:
    """A PCI address in the one form used here, "0000:9b:00": lower case, domain of at least four digits, no function.

    "" for text that is no PCI address."""
    match = _BDF.fullmatch(text.strip())
    if match is None:
        return ""
    domain = int(match[1] or "0", 16)
    return f"{domain:04x}:{match[2]}:{match[3]}".lower()


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or one MIG instance of it, or one NVSwitch, by whatever names are known; "" and None are unknown.

    bdf    as `bdf_of` gives it
    uuid   "GPU-..." of the whole GPU
    index  NVML's index on this host
    gi,ci  MIG GPU instance and compute instance
    kind   "gpu", "switch" or "node" (the driver, the fabric manager: the machine as a whole)
    """

    kind: str = "gpu"
    bdf: str = ""
    uuid: str = ""
    index: int | None = None
    gi: int | None = None
    ci: int | None = None

    @property
    def known(self) -> bool:
        """Whether this names one device and not just a kind."""
        return self.kind == "node" or bool(self.bdf or self.uuid or self.index is not None)

    def same(self, other: Device) -> bool:
        """Whether both may be the same GPU (MIG instances of one GPU are): no name that both have differs, and one agrees."""
        if self.kind != other.kind:
            return False
        if self.kind == "node":
            return True
        pairs = (
            (self.uuid, other.uuid),
            (self.bdf, other.bdf),
            (self.index, other.index),
        )
        both = [(a, b) for a, b in pairs if a not in ("", None) and b not in ("", None)]
        return bool(both) and all(a == b for a, b in both)

    def merged(self, other: Device) -> Device:
        """All names of two descriptions of the same device; the MIG instance only where both agree or one knows it."""
        return Device(
            kind=self.kind,
            bdf=self.bdf or other.bdf,
            uuid=self.uuid or other.uuid,
            index=self.index if self.index is not None else other.index,
            gi=self.gi if self.gi is not None else other.gi,
            ci=self.ci if self.ci is not None else other.ci,
        )

    def __str__(self) -> str:
        if self.kind == "node":
            return "node"
        name = self.bdf or self.uuid or ("?" if self.index is None else f"#{self.index}")
        mig = "" if self.gi is None else f" GPU-I:{self.gi:02d}"
        mig += "" if self.ci is None else f" GPU-CI:{self.ci:02d}"
        return f"{self.kind} {name}{mig}"


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of an engine: its permanent shard, its process and the device it computes on.

    pid    in the namespace of this process; host_pid is that process as the kernel's own log names it, None when unknown
    """

    shard: int
    pid: int = 0
    host_pid: int | None = None
    device: Device = Device()


Ranks = Union[tuple[Rank, ...], list[Rank]]
