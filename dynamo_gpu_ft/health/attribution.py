"""Which ranks of the engine an incident concerns: by device, by MIG instance and by process.

`shards_of` is pure; `host_pid` reads /proc. A process that is named and is none of the engine's (a monitor, another tenant)
never convicts the engine of a dead context; a GPU that is unusable concerns whoever computes on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from dynamo_gpu_ft.health.causes import Family
from dynamo_gpu_ft.health.entries import Entry
from dynamo_gpu_ft.health.incidents import Unusable, Verdict
from dynamo_gpu_ft.health.names import Known
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.topology import Rank

# Programs that ask every GPU now and then and are named by XIDs they have not caused. The kernel cuts names to 15 characters.
MONITORS = (
    "nvidia-smi", "nv-hostengine", "dcgm", "gpud", "cache_mgr", "nvidia-persiste", "nvidia-fabric", "nv-fabricmanage",
    "nvtop", "nvitop", "gpustat", "prometheus", "telegraf", "node_exporter",
)  # fmt: skip

_INIT_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO: the same number on every Linux


def rank_of_process(reading: Reading, ranks: Sequence[Rank]) -> tuple[int | None, bool]:
    """The shard whose process a reading names, and whether it names one that is certainly none of the ranks'."""
    if reading.shard is not None:
        return reading.shard, False
    if reading.pid is None or not ranks:
        return None, False
    own = reading.pid_space == "own"
    for rank in ranks:
        if reading.pid == (rank.pid if own else rank.host_pid):
            return rank.shard, False
    facts = reading.facts
    monitor = "monitor" in facts or facts.get("process", "").lower().startswith(MONITORS)
    return None, monitor or own or all(rank.host_pid is not None for rank in ranks)


def ranks_on(known: Known, ranks: Iterable[tuple[Rank, Known]]) -> list[Rank]:
    return [rank for rank, at in ranks if at.now() is known.now()]


def shards_of(
    entries: Sequence[Entry],
    involved: Sequence[Known],
    verdict: Verdict,
    ranks: Sequence[tuple[Rank, Known]],
) -> tuple[int, ...]:
    """Shards, ascending. `involved` are the incident's devices."""
    root = entries[0]
    everybody = tuple(sorted({rank.shard for rank, _ in ranks}))
    # What is wrong with a driver, a fabric or the machine does not concern ranks that are on no GPU known by any name.
    on_gpus = tuple(sorted({rank.shard for rank, _ in ranks if rank.device.known}))
    fabric = root.family is Family.SWITCH or root.probe == "fabric"
    if verdict.unusable is Unusable.NODE or root.known.device.kind == "node":
        return on_gpus
    if fabric and verdict.unusable is not Unusable.NOTHING:
        return on_gpus
    if root.family is Family.GROUP and root.shard is None:
        return everybody
    found = {
        entry.shard
        for entry in entries
        if entry.shard is not None
        and (entry.family is not Family.GROUP or root.family is Family.GROUP)
    }
    if verdict.unusable in (Unusable.GPU, Unusable.LINK):
        found |= {rank.shard for known in involved for rank in ranks_on(known, ranks)}
        return tuple(sorted(found))
    if not found and not any(entry.foreign for entry in entries):
        # Nobody is named: whoever computes there.
        for entry in entries:
            if entry.known in involved:
                found |= {r.shard for r in ranks_on(entry.known, ranks) if _instance(entry, r)}
    return tuple(sorted(found))


def _instance(entry: Entry, rank: Rank) -> bool:
    """Whether a rank may be on the MIG instance that an entry names."""
    at = rank.device
    return all(a is None or b is None or a == b for a, b in ((entry.gi, at.gi), (entry.ci, at.ci)))


def host_pid(pid: int, proc: str = "/proc") -> int | None:
    """The number by which the kernel's log names a process of this namespace; None where that cannot be known from here.

    Reads /proc/PID/status: NSpid lists the process's numbers from the namespace of that /proc inwards, so the first one is the
    host's if this /proc is the host's: in the first namespace, or with the host's /proc mounted in a container.
    """
    try:
        with open(f"{proc}/{pid}/status", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith("NSpid:")), "")
        numbers = [int(number) for number in line.split()[1:]]
        namespace = os.readlink(f"{proc}/self/ns/pid")
    except (OSError, ValueError):
        return None
    if not numbers:
        return None
    return numbers[0] if len(numbers) > 1 or namespace == _INIT_PID_NAMESPACE else None
