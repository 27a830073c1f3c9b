"""What an incident asks of the engine it concerns: nothing, a restart, or a restart elsewhere. Pure, told once per severity.

`Verdicts.weigh` is called for every version of every incident; the engine adapter carries the sentence out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dynamo_gpu_ft.health.incidents import Incident, Unusable
from dynamo_gpu_ft.health.readings import Source
from dynamo_gpu_ft.topology import Device

#: What incidents of steps that do not end are called, and those of processes that have.
HANG, GONE = "hang", "gone"

#: Sources that are the engine's own ranks.
RANKS = frozenset((Source.ENGINE, Source.HEARTBEAT))


@dataclass(frozen=True, slots=True)
class Sentence:
    """The running engine must end. `fence`: devices that the next one must not use. `shards`: when these ranks alone are
    affected, and whatever holds them can be replaced without the others. `echo`: a rank's process is
    gone, or nobody but ranks whose communicator broke tells of it, which is how a peer's death looks to them: the engine may know better. `stuck`: `shards` are late with a step, perhaps because another rank is."""

    reason: str
    fence: tuple[Device, ...] = ()
    shards: tuple[int, ...] = ()
    echo: bool = False
    stuck: bool = False


@dataclass
class Verdicts:
    """Remembers up to which severity each incident has been answered, so that more evidence of one fault costs one restart."""

    answered: dict[str, int] = field(default_factory=dict)

    def weigh(self, incident: Incident, *, started: float) -> Sentence | None:
        """`started`: monotonic second at which the running engine began to start.

        A dead context that was noticed before that died with the former engine; a broken GPU, link or node did not."""
        severity = incident.verdict.unusable.severity
        if incident.cleared or incident.verdict.unusable is Unusable.NOTHING:
            return None
        if not incident.shards or self.answered.get(incident.id, 0) >= severity:
            return None
        if incident.verdict.unusable is Unusable.CONTEXT and incident.updated < started:
            return None
        self.answered[incident.id] = severity
        while len(self.answered) > 10_000:
            del self.answered[next(iter(self.answered))]
        fence: tuple[Device, ...] = ()
        if incident.verdict.unusable is Unusable.GPU:
            fence = tuple(device for device in incident.devices if device.kind == "gpu")
        elif incident.verdict.unusable is Unusable.NODE:
            fence = (Device(kind="node"),)
        where = ", ".join(str(device) for device in incident.devices if device.known) or "?"
        shards = ", ".join(str(shard) for shard in incident.shards)
        of = f" (shard {shards})" if shards else ""
        alone = incident.verdict.unusable in (Unusable.CONTEXT, Unusable.GPU)
        reason = f"{incident.name} on {where}{of}: {incident.verdict.reason}"
        told_by = {each.first.source for each in incident.evidence}
        broken = incident.verdict.unusable is Unusable.LINK and bool(told_by) and told_by <= RANKS
        return Sentence(
            reason,
            fence,
            tuple(incident.shards) if alone else (),
            echo=broken or incident.name == GONE,
            stuck=incident.name == HANG,
        )
