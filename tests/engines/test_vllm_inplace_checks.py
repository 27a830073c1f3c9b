"""What vLLM in place checks before it trusts: weights by digest and by sounding, the store's name, and the end that is one for good."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
import torch

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.inplace import epochs, weights
from dynamo_gpu_ft.engines.vllm.inplace import front as front_module
from dynamo_gpu_ft.engines.vllm.inplace.front import GroupFront
from dynamo_gpu_ft.engines.vllm.inplace.link import Armed, Told
from dynamo_gpu_ft.engines.vllm.inplace.standby import Standbys
from dynamo_gpu_ft.engines.vllm.inplace.weights import Scale, Weighed, differing
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.events import EventStream, GroupRecovered, Planned, StateChanged, encode
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.recovery.membership.memory import MemoryStore
from dynamo_gpu_ft.recovery.processes import started_at

pytestmark = pytest.mark.engine

SEED = int(os.environ.get("GFT_TEST_SEED", "1"))


class Linear(torch.nn.Module):
    """A linear layer as vLLM's CPU backend leaves it when it has packed its weights: by vLLM's own code."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.input_size_per_partition = columns
        self.weight = torch.nn.Parameter(torch.randn(rows, columns), requires_grad=False)

    def pack(self) -> None:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        dispatch_cpu_unquantized_gemm(self, remove_weight=True)


class Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.embed = torch.nn.Embedding(40, 64)
        self.linear = Linear(96, 64)
        self.register_buffer("cos_sin_cache", torch.randn(16, 8))
        self.register_buffer("_k_scale", torch.ones(1))
        self.to(dtype)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def packed(dtype: torch.dtype) -> None:
    """Skips where vLLM leaves weights of this type as they are: oneDNN has no product of bfloat16 for processors without AVX-512."""
    model = Model(dtype)
    model.linear.pack()
    if model.linear.weight.numel():
        pytest.skip(f"vLLM packs no weights of {dtype} on this processor")


def loaded(model: Model) -> Scale:
    """As vLLM's loader does it: the hook is called where it would pack the weights."""
    from vllm.model_executor.model_loader import base_loader

    scale = Scale()
    stock = base_loader.process_weights_after_loading
    base_loader.process_weights_after_loading = lambda model: model.linear.pack()
    try:
        with scale.loading():
            base_loader.process_weights_after_loading(model)
    finally:
        base_loader.process_weights_after_loading = stock
    return scale


@pytest.mark.usefixtures("packed")
def test_equal_models_weigh_the_same_and_again_after_a_while(dtype: Any) -> None:
    first, second = Model(dtype), Model(dtype)
    scale = loaded(first)
    one, two = scale.weigh(first), loaded(second).weigh(second)
    assert first.linear.weight.numel() == 0, "vLLM has packed them: nothing is left to be read"
    assert set(one.loaded) == {"embed.weight", "linear.weight"}
    assert set(one.sounded) == {"linear"}
    assert "cos_sin_cache" in one.now
    assert one.size > 0
    assert differing(one, two) == []
    with torch.no_grad():
        first._k_scale.fill_(2.0)  # vLLM changes it as it runs
    assert differing(two, scale.weigh(first)) == []


def test_one_changed_bit_is_found_wherever_it_is(dtype: Any) -> None:
    healthy = Model(dtype)
    manifest = loaded(healthy).weigh(healthy)
    for name, kind in (
        ("embed.weight", "loaded"),
        ("linear.weight", "loaded"),
        ("cos_sin_cache", "now"),
    ):
        broken = Model(dtype)
        flip(broken.get_parameter(name) if kind == "loaded" else broken.get_buffer(name))
        found = differing(manifest, loaded(broken).weigh(broken))
        assert f"{name} ({kind})" in found, name
    later = Model(dtype)
    scale = loaded(later)
    flip(later.embed.weight)  # in memory, after it was loaded well
    assert differing(manifest, scale.weigh(later)) == ["embed.weight (now)"]


def flip(tensor: torch.Tensor) -> None:
    """Turns the lowest bit of the last element over."""
    tensor.detach().reshape(-1).view(torch.uint8)[-tensor.element_size()] ^= 1


@pytest.mark.usefixtures("packed")
def test_a_packed_layer_that_was_damaged_in_memory_answers_something_else(dtype: Any) -> None:
    """Its bytes cannot be read: the layer is packed anew from a damaged weight, as a flipped bit would leave it."""
    healthy, broken = Model(dtype), Model(dtype)
    manifest = loaded(healthy).weigh(healthy)
    scale = loaded(broken)
    damaged = Linear(96, 64).to(dtype)
    torch.manual_seed(SEED)
    damaged.weight = Model(dtype).linear.weight
    with torch.no_grad():
        damaged.weight[95, 63] *= 2
    damaged.pack()
    broken.linear.cpu_linear = damaged.cpu_linear
    assert differing(manifest, scale.weigh(broken)) == ["linear (packed)"]


def test_soundings_of_ranks_with_another_number_of_threads_are_not_compared() -> None:
    one = Weighed({"w": b"1"}, {"w": b"1"}, {"w": b"x"}, threads=1)
    assert differing(one, Weighed({"w": b"1"}, {"w": b"1"}, {"w": b"y"}, threads=2)) == []
    assert differing(one, Weighed({"w": b"1"}, {"w": b"1"}, {"w": b"y"}, threads=1)) == [
        "w (packed)"
    ]
    assert differing(one, Weighed()) == ["w (loaded)"], "a missing tensor is a wrong one"


def test_vllms_loader_still_calls_what_the_scale_listens_to() -> None:
    import inspect

    from vllm.model_executor.model_loader import base_loader

    source = inspect.getsource(base_loader.BaseModelLoader.load_model)
    assert "process_weights_after_loading(model" in source
    before = base_loader.process_weights_after_loading
    with pytest.raises(KeyError), weights.Scale().loading():
        raise KeyError
    assert base_loader.process_weights_after_loading is before


# -- who may lead ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1) as it:
        yield it
        it.kill()


def of(pid: int, started: int) -> Membership:
    members = (Member(shard=0, rank=0, pid=pid, started=started),)
    return Membership(engine="e", epoch=1, shards=1, members=members)


def test_a_name_whose_engine_lives_is_refused_and_one_of_the_dead_is_free(
    sleeper: subprocess.Popen[bytes],
) -> None:
    store = MemoryStore()
    assert epochs.taken(store, "e", 0.0) == ""
    store.publish(of(sleeper.pid, started_at(sleeper.pid)))
    assert f"pid {sleeper.pid}" in epochs.taken(store, "e", 0.0)
    assert "DYN_GPU_FT_ARENA_NAME" in epochs.taken(store, "e", 0.0)
    assert epochs.taken(store, "another", 0.0) == ""
    threading.Timer(0.05, sleeper.kill).start()  # not reaped: a zombie has ended
    assert epochs.taken(store, "e", 10.0) == ""


def test_a_pid_that_somebody_else_has_by_now_is_not_the_member(
    sleeper: subprocess.Popen[bytes],
) -> None:
    store = MemoryStore()
    store.publish(of(sleeper.pid, started_at(sleeper.pid) - 1))
    assert epochs.taken(store, "e", 0.0) == ""


def test_the_store_is_the_configured_one_and_nonsense_is_refused_by_name(tmp_path: Path) -> None:
    config = Config(membership=f"file:{tmp_path / 'epochs'}", arena_name="mine")
    store = epochs.opened(config)
    assert store.publish(Membership(engine=epochs.engine_name(config), epoch=1, shards=1))
    assert [path.name for path in (tmp_path / "epochs").iterdir()] == ["mine.1.membership"]
    with pytest.raises(ConfigError, match="membership"):
        epochs.opened(Config(membership="redis:somewhere:1"))


def test_nonsense_is_refused_before_an_engine_is_started(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    from dynamo_gpu_ft.engines.vllm.client import in_place_executor

    settings: Any = SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="membership"):
        in_place_executor(settings, MultiprocExecutor, Config(membership="nowhere"))
    (tmp_path / "file").write_text("")
    bad = Config(membership=f"file:{tmp_path / 'file'}")  # cannot be made now: perhaps later
    chosen = in_place_executor(settings, MultiprocExecutor, bad)
    assert chosen.__name__ == "InPlaceExecutor"


# -- the end ----------------------------------------------------------------------------------------------------------------


def planned(kind: str) -> Told:
    reason = "shard 1: its member died 3 times"
    return Told(
        encode(
            Planned(engine="e", epoch=4, kind=kind, lost=(), ranks=(), cost_s=0.0, reason=reason)
        )
    )


@pytest.mark.parametrize(("kind", "over"), [("fail", True), ("restart", False)])
def test_a_plan_to_fail_is_the_end_of_every_engine_and_one_to_restart_is_not(
    kind: str, over: bool
) -> None:
    front = GroupFront(EventStream())
    front._take(Armed({0: 10, 1: 11}))
    moved = StateChanged(engine="e", epoch=4, former="plan", happening="hopeless", state="failed")

    async def end() -> str:
        def speak() -> None:  # the engine's last words come when its death is known already
            loop.call_soon_threadsafe(front._take, planned(kind))
            front._hung_up.set()

        loop = asyncio.get_running_loop()
        front._take(Told(encode(moved)))
        threading.Timer(0.05, speak).start()
        return await front.why_over()

    assert bool(asyncio.run(end())) is over


def test_the_end_of_an_engine_that_served_is_not_waited_for() -> None:
    front = GroupFront(EventStream())
    front._take(Armed({0: 10, 1: 11}))
    assert asyncio.run(asyncio.wait_for(front.why_over(), 0.5)) == ""


RECOVERED = GroupRecovered(engine="e", epoch=4, kind="respawn", outcome="serving", duration_s=0.5)


@pytest.mark.parametrize("recovered", ["never", "before", "after", "now"])
def test_what_ranks_say_of_their_communicator_ends_the_engine_only_if_no_peer_has_died(
    recovered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The survivors of a dead peer see its connection close, before or after the death itself is told."""
    monkeypatch.setattr(front_module, "PEER_S", 0.05)
    front, ended = GroupFront(EventStream()), list[str]()
    nudged: list[None] = []
    front.nudge, front.give_up = (lambda: nudged.append(None)), ended.append
    moved = StateChanged(engine="e", epoch=4, former="serving", happening="lost", state="suspect")

    async def story() -> None:
        front._take(Armed({0: 10, 1: 11}))
        if recovered == "before":
            front._take(Told(encode(RECOVERED)))
        assert front.look_into("a peer closed its connection", front.give_up)
        if recovered == "after":
            front._take(Told(encode(RECOVERED)))
        if recovered == "now":
            front._take(Told(encode(moved)))
        decided = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.06, decided.set_result, None)
        await decided

    asyncio.run(story())
    assert nudged, "the engine is asked, so that it looks at its workers"
    assert bool(ended) is (recovered == "never")


def test_without_a_group_the_engine_answers_for_its_communicator() -> None:
    assert not GroupFront(EventStream()).look_into("a peer closed its connection", print)


# -- standbys that are where nobody may be ----------------------------------------------------------------------------------


class Waiting:
    """A standby that has rehearsed."""

    rank, rehearsed, age_s = 1, True, 0.0

    def __init__(self) -> None:
        self.ended = False
        self.process = self

    def is_alive(self) -> bool:
        return not self.ended

    def end(self, switchboard: Any) -> None:
        self.ended = True


def test_standbys_leave_a_condemned_device_and_the_next_ones_are_started_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    from dynamo_gpu_ft.engines.vllm.inplace import spawn

    started: list[tuple[Waiting, dict[str, str]]] = []

    def start(executor: Any, rank: int, environment: Any, *, standby: Any) -> Waiting:
        started.append((Waiting(), dict(environment)))
        return started[-1][0]

    monkeypatch.setattr(spawn, "start", start)
    births = SimpleNamespace(soon=False)
    executor: Any = SimpleNamespace(world_size=2, switchboard=None, births=births)
    standbys = Standbys(executor, "", None, 1, lambda ready, took, what: None)
    standbys.maintain()
    assert standbys.ready() == 1
    standbys.move({"CUDA_VISIBLE_DEVICES": "0,2"})
    assert standbys.ready() == 0
    assert standbys.take(1) is None
    assert started[0][0].ended
    standbys.maintain()
    assert started[1][1] == {"CUDA_VISIBLE_DEVICES": "0,2"}
    assert standbys.ready() == 1
