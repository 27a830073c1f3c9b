"""The resilient core against a simulated engine: deaths at every point, many schedules, exactly-once tokens.

The real engine is in test_vllm_recovery; here an engine is a few lines, so hundreds of schedules run in seconds.
"""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.core import ResilientCore
from dynamo_gpu_ft.engines.vllm.front_health import FrontHealth
from dynamo_gpu_ft.engines.vllm.launch import Engine
from dynamo_gpu_ft.events import Event, EventStream, Recovered, RequestResumed, StepDone

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


def next_token(tokens: list[int]) -> int:
    """The simulated model: the next token depends on every token before it."""
    value = 17
    for token in tokens:
        value = (value * 31 + token) % 997
    return value


class FakeEngine:
    """Speaks what the resilient core uses of vLLM's AsyncMPClient. `die_after` outputs it is dead; its last outputs are lost."""

    def __init__(self, die_after: int | None = None, *, dead_on_add: bool = False) -> None:
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.resources = SimpleNamespace(engine_manager=None, engine_dead=False)
        self.requests: dict[str, list[int]] = {}
        self.limits: dict[str, int] = {}
        self.left, self.dead_on_add = die_after, dead_on_add
        self.added: list[EngineCoreRequest] = []

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        if self.dead_on_add or self.resources.engine_dead:
            self.die()
            raise EngineDeadError()
        self.added.append(request)
        assert request.sampling_params is not None
        self.requests[request.request_id] = list(request.prompt_token_ids or ())
        self.limits[request.request_id] = request.sampling_params.max_tokens or 10**9

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        if self.resources.engine_dead:
            raise EngineDeadError()
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    async def get_output_async(self) -> EngineCoreOutputs:
        await asyncio.sleep(0)
        while not self.requests and not self.over():
            await asyncio.sleep(0)
        if self.over() or self.left == 0:
            self.die()
            raise EngineDeadError()
        if self.left is not None:
            self.left -= 1
        outputs = []
        for request_id, tokens in list(self.requests.items()):
            token = next_token(tokens)
            tokens.append(token)
            self.limits[request_id] -= 1
            done = FinishReason.LENGTH if self.limits[request_id] == 0 else None
            if done is not None:
                del self.requests[request_id]
            outputs.append(EngineCoreOutput(request_id, [token], finish_reason=done))
        return EngineCoreOutputs(outputs=outputs)

    async def is_sleeping_async(self) -> bool:
        await asyncio.Event().wait()
        return False

    def over(self) -> bool:
        return self.resources.engine_dead or not self.outputs_queue.empty()

    def die(self) -> None:
        self.resources.engine_dead = True

    def shutdown(self, timeout: float | None = None) -> None:
        self.die()


class World:
    """A resilient core over a list of engines to start, in order; an exception in the list is a failed start."""

    def __init__(self, *engines: FakeEngine | Exception, **config: Any) -> None:
        self.engines = list(engines)
        self.started: list[FakeEngine] = []
        self.events: list[Event] = []
        self.environments: list[dict[str, str]] = []
        first = self.engines.pop(0)
        assert isinstance(first, FakeEngine)
        self.started.append(first)
        settings = {"arena_dir": "/nowhere", "backoff_initial_s": 0.0, "backoff_max_s": 0.0}
        loaded = Config.load({**settings, "health": False, **config}, environ={})
        self.health = FrontHealth(loaded, lambda incident: None)
        self.core = ResilientCore(
            Engine(first, "first"),
            self,  # type: ignore[arg-type]
            loaded,
            EventStream(self.events.append),
            self.health,
        )
        self.got: dict[str, list[int]] = {}
        self.ended: dict[str, FinishReason] = {}

    ranks = 1

    def start(self, tag: str, environment: dict[str, str]) -> FakeEngine:
        self.environments.append(environment)
        engine = self.engines.pop(0)
        if isinstance(engine, Exception):
            raise engine
        self.started.append(engine)
        return engine

    async def add(self, request_id: str, *, max_tokens: int = 20, **sampling: Any) -> None:
        await self.core.add_request_async(request(request_id, max_tokens, **sampling))
        self.got[request_id] = []

    async def collect(self) -> None:
        """Reads outputs until every admitted request has ended."""
        while set(self.got) - set(self.ended):
            outputs = await asyncio.wait_for(self.core.get_output_async(), 20.0)
            for output in outputs.outputs:
                assert output.request_id not in self.ended, "an output after the end"
                self.got[output.request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    self.ended[output.request_id] = output.finish_reason


def request(request_id: str, max_tokens: int, **sampling: Any) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[len(request_id), 7, sum(map(ord, request_id)) % 50],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=max_tokens, **sampling),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=request_id,
    )


def expected(request_id: str, max_tokens: int) -> list[int]:
    tokens = list(request(request_id, 1).prompt_token_ids or ())
    start = len(tokens)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[start:]


def test_streams_go_on_over_a_death_without_losing_or_repeating_a_token() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(die_after=5), FakeEngine())
        await world.add("a")
        await world.add("b", max_tokens=3)
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got == {"a": expected("a", 20), "b": expected("b", 3)}
    assert set(world.ended.values()) == {FinishReason.LENGTH}
    (resent,) = world.started[1].added
    assert resent.sampling_params is not None
    assert resent.sampling_params.max_tokens == 15
    assert len(resent.prompt_token_ids or ()) == 3 + 5
    assert [e.requests for e in world.events if isinstance(e, Recovered)] == [1]
    assert [e.tokens_before for e in world.events if isinstance(e, RequestResumed)] == [5]


@pytest.mark.parametrize("seed", range(60))
def test_any_schedule_of_deaths_gives_the_undisturbed_tokens(seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed: {seed}")
    plan: list[FakeEngine | Exception] = [FakeEngine(rng.randrange(0, 6))]
    for _ in range(rng.randrange(1, 6)):
        kind = rng.random()
        if kind < 0.25:
            plan.append(RuntimeError("start failed"))
        elif kind < 0.4:
            plan.append(FakeEngine(dead_on_add=True))
        else:
            plan.append(FakeEngine(rng.randrange(0, 6)))
    plan.append(FakeEngine())
    lengths = {f"r{i}": rng.randrange(1, 25) for i in range(rng.randrange(1, 5))}

    async def scenario() -> World:
        world = World(*plan, max_restarts=50)
        late = dict(lengths)
        name, length = late.popitem()
        await world.add(name, max_tokens=length)
        collecting = asyncio.ensure_future(world.collect())
        for name, length in late.items():
            for _ in range(rng.randrange(0, 8)):
                await asyncio.sleep(0)
            await world.add(name, max_tokens=length)
        await collecting
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got == {name: expected(name, length) for name, length in lengths.items()}
    assert len(world.core._streams) == 0


def test_an_aborted_request_is_not_sent_to_the_next_engine() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(die_after=2), FakeEngine())
        await world.add("stay")
        await world.add("leave")
        outputs = [await world.core.get_output_async() for _ in range(2)]
        assert len(outputs[0].outputs) == 2
        await world.core.abort_requests_async(["leave"])
        del world.got["leave"]
        for outputs_ in outputs:
            for output in outputs_.outputs:
                if output.request_id == "stay":
                    world.got["stay"] += output.new_token_ids
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.got["stay"] == expected("stay", 20)
    assert [r.request_id for r in world.started[1].added] == ["stay"]


def test_too_many_deaths_end_in_a_clean_failure_and_later_requests_are_refused() -> None:
    async def scenario() -> World:
        world = World(FakeEngine(1), FakeEngine(0), FakeEngine(0), max_restarts=2)
        await world.add("a")
        with pytest.raises(EngineDeadError):
            await world.collect()
        with pytest.raises(EngineDeadError):
            await world.core.get_output_async()
        with pytest.raises(EngineDeadError):
            await world.add("b")
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.core.failed is not None
    assert "max_restarts = 2" in world.core.failed


def test_a_start_that_never_ends_is_given_up_at_the_deadline() -> None:
    import threading

    release = threading.Event()

    class Stuck(World):
        def start(self, tag: str, environment: dict[str, str]) -> FakeEngine:
            release.wait(30)
            raise RuntimeError("released")

    async def scenario() -> World:
        world = Stuck(FakeEngine(1), recovery_deadline_s=0.3, start_timeout_s=0.2, max_restarts=100)
        await world.add("a")
        with pytest.raises(EngineDeadError):
            await world.collect()
        release.set()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.core.failed is not None
    assert any(isinstance(e, StepDone) and e.detail == "deadline" for e in world.events)


def test_a_request_that_waits_too_long_ends_with_an_error_and_the_others_go_on() -> None:
    import threading

    release = threading.Event()

    class Slow(World):
        def start(self, tag: str, environment: dict[str, str]) -> FakeEngine:
            release.wait(30)
            return super().start(tag, environment)

    async def scenario() -> World:
        world = Slow(FakeEngine(2), FakeEngine(), request_wait_s=0.05)
        await world.add("a")
        collecting = asyncio.ensure_future(world.collect())
        while "a" not in world.ended:
            await asyncio.sleep(0)
        release.set()
        await collecting
        await asyncio.wait_for(world.core._serving.wait(), 20.0)
        await world.add("b")
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.ended == {"a": FinishReason.ERROR, "b": FinishReason.LENGTH}
    assert world.got["b"] == expected("b", 20)


def test_a_call_to_a_dying_engine_fails_instead_of_waiting_for_ever() -> None:
    async def scenario() -> None:
        first = FakeEngine(die_after=3)
        world = World(first, FakeEngine())
        await world.add("a")
        call = asyncio.ensure_future(world.core.is_sleeping_async())
        await world.collect()
        with pytest.raises(EngineDeadError):
            await asyncio.wait_for(call, 5.0)
        world.core.shutdown()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "sampling",
    [{"frequency_penalty": 0.5}, {"presence_penalty": 0.5}, {"structured_outputs": "json"}],
    ids=lambda s: next(iter(s)),
)
def test_a_request_whose_state_dies_with_the_engine_ends_with_an_error_not_a_wrong_answer(
    sampling: dict[str, Any],
) -> None:
    if "structured_outputs" in sampling:
        from vllm.sampling_params import StructuredOutputsParams

        sampling = {"structured_outputs": StructuredOutputsParams(json={"type": "object"})}

    async def scenario() -> World:
        world = World(FakeEngine(die_after=4), FakeEngine())
        await world.add("plain")
        await world.add("special", **sampling)
        await world.collect()
        world.core.shutdown()
        return world

    world = asyncio.run(scenario())
    assert world.ended == {"plain": FinishReason.LENGTH, "special": FinishReason.ERROR}
    assert world.got["plain"] == expected("plain", 20)
    assert world.got["special"] == expected("special", 4)


@pytest.mark.parametrize(
    ("size", "extra", "word"),
    [
        (2, {}, "data_parallel_size"),
        (1, {"client_count": 2}, "client_count"),
        (1, {"client_addresses": {"input_address": "x"}}, "client_addresses"),
    ],
)
def test_engines_it_cannot_own_are_refused_by_name(
    size: int, extra: dict[str, Any], word: str
) -> None:
    from dynamo_gpu_ft.engines.vllm.client import ResilientLLM
    from dynamo_gpu_ft.errors import ConfigError

    config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=size))
    with pytest.raises(ConfigError, match=word):
        ResilientLLM(config, object, False, **extra)


def test_the_connector_is_added_once_and_other_connectors_are_kept() -> None:
    from dynamo_gpu_ft.engines.vllm.settings import transfer_entry, with_connector

    other = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    assert with_connector(None) == transfer_entry()
    assert with_connector(transfer_entry({"arena_name": "x"})) == transfer_entry(
        {"arena_name": "x"}
    )
    wrapped = with_connector(other)
    assert wrapped["kv_connector"] == "MultiConnector"
    names = [c["kv_connector"] for c in wrapped["kv_connector_extra_config"]["connectors"]]
    assert names == ["GpuFtConnector", "ExampleConnector"]
    assert with_connector(wrapped) == wrapped
    several = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [other]},
    }
    assert len(with_connector(several)["kv_connector_extra_config"]["connectors"]) == 2
