"""The resilient core under verdicts, over simulated engines: what a fault asks for is done, once, and the streams go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("vllm")

from test_resilient_core import FakeEngine, World, expected
from vllm.v1.engine.exceptions import EngineDeadError

from dynamo_gpu_ft.events import EngineDied, RecoveryFailedEvent
from dynamo_gpu_ft.health.incidents import Action, Incident, Unusable, Verdict
from dynamo_gpu_ft.recovery.devices import DEVICES_VARIABLE
from dynamo_gpu_ft.topology import Device


def incident(unusable: Unusable, gpu: int, number: int = 1, **changes: Any) -> Incident:
    verdict = Verdict(
        unusable=unusable, action=Action.REPORT, lasting=True, reason="it fell off the bus"
    )
    base: dict[str, Any] = {
        "id": f"1-{number}", "version": 1, "name": "xid 79", "probe": "xid", "code": 79,
        "devices": (Device(index=gpu),), "shards": (0,), "verdict": verdict, "opened": 1e12, "updated": 1e12,
        "time": 0.0, "evidence": (),
    }  # fmt: skip
    return Incident(**{**base, **changes})


async def after_tokens(world: World, count: int) -> None:
    """Reads outputs until stream "a" has so many tokens."""
    while len(world.got["a"]) < count:
        for output in (await world.core.get_output_async()).outputs:
            world.got[output.request_id] += output.new_token_ids


def test_a_verdict_on_a_living_engine_ends_it_and_its_streams_go_on() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(), FakeEngine())
        await world.add("a")
        await after_tokens(world, 3)
        world.health._heard(incident(Unusable.CONTEXT, gpu=0))
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got == {"a": expected("a", 20)}
    (died,) = [e for e in world.events if isinstance(e, EngineDied)]
    assert died.reason.startswith("xid 79 on gpu #0 (shard 0): it fell off the bus")
    assert world.environments == [{}], "the same devices as before"


def test_a_fenced_gpu_is_not_used_again_and_more_evidence_costs_no_second_restart() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(), FakeEngine(), health_devices="4,5")
        await world.add("a")
        await after_tokens(world, 3)
        for version in range(1, 5):
            world.health._heard(incident(Unusable.GPU, gpu=4, version=version))
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got == {"a": expected("a", 20)}
    assert world.environments == [{DEVICES_VARIABLE: "5"}]


def test_without_a_gpu_left_the_end_is_clean_and_says_why() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(), FakeEngine(), health_devices="4")
        await world.add("a")
        await after_tokens(world, 3)
        world.health._heard(incident(Unusable.GPU, gpu=4))
        with pytest.raises(EngineDeadError):
            await world.collect()
        with pytest.raises(EngineDeadError):
            await world.add("b")
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert len(world.started) == 1
    (failed,) = [e for e in world.events if isinstance(e, RecoveryFailedEvent)]
    assert failed.reason == (
        "0 of 1 GPUs can be used, 1 are needed (4: xid 79: it fell off the bus)"
    )


def test_a_gpu_whose_incident_is_cleared_may_be_used_again() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(), FakeEngine(), FakeEngine(), health_devices="4,5")
        await world.add("a", max_tokens=30)
        await after_tokens(world, 3)
        world.health._heard(incident(Unusable.GPU, gpu=4))
        await after_tokens(world, 10)
        world.health._heard(incident(Unusable.GPU, gpu=4, version=2, cleared=True))
        world.health._heard(incident(Unusable.CONTEXT, gpu=5, number=2))
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got == {"a": expected("a", 30)}
    assert world.environments == [{DEVICES_VARIABLE: "5"}, {}]


def test_verdicts_are_only_reported_when_acting_is_switched_off() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(), health_act=False, health_devices="4")
        await world.add("a")
        await after_tokens(world, 3)
        world.health._heard(incident(Unusable.GPU, gpu=4))
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got == {"a": expected("a", 20)}
    assert not [e for e in world.events if isinstance(e, EngineDied)]


def test_a_verdict_while_no_engine_serves_does_not_end_the_next_one_for_nothing() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(die_after=5), FakeEngine())
        await world.add("a")
        await after_tokens(world, 5)
        while world.core._serving.is_set():
            await asyncio.sleep(0)
        world.health._heard(incident(Unusable.CONTEXT, gpu=0))
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got == {"a": expected("a", 20)}
    assert len(world.started) == 2
