"""Incidents as the health room makes them, for the tests of what they ask for."""

from __future__ import annotations

from dynamo_gpu_ft.health.incidents import Action, Incident, Unusable, Verdict
from dynamo_gpu_ft.topology import Device


def incident(
    unusable: Unusable, action: Action, *, shards: tuple[int, ...] = (1,), cleared: bool = False
) -> Incident:
    return Incident(
        id="1-1",
        version=1,
        name="xid 79",
        probe="log",
        code=79,
        devices=(Device(index=1),),
        shards=shards,
        verdict=Verdict(unusable=unusable, action=action, lasting=True, reason="it is gone"),
        opened=0.0,
        updated=0.0,
        time=0.0,
        evidence=(),
        cleared=cleared,
    )


def lost_gpu(shard: int) -> Incident:
    return incident(Unusable.GPU, Action.RESET_GPU, shards=(shard,))
