"""The reference engine on a simulated device: no host tensor meets a device's, and tokens and KV have the bits of the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference import needs, shape, split  # noqa: E402
from dynamo_gpu_ft.engines.reference.kv import make_cache, move_heads  # noqa: E402
from dynamo_gpu_ft.engines.reference.options import Options  # noqa: E402
from dynamo_gpu_ft.engines.reference.weights import ShardWeights  # noqa: E402
from dynamo_gpu_ft.recovery.weights.slices import SliceSource  # noqa: E402
from tests.engines.reference_world import ThreadEngine, tiny_mixtral  # noqa: E402
from tests.engines.simulated_device import SimulatedDevice, SimulatedTensor  # noqa: E402

PROMPT = [(7 * j) % 290 + 5 for j in range(37)]


@pytest.fixture
def world() -> Iterator[SimulatedDevice]:
    made = SimulatedDevice()
    with made.here():
        yield made


def recaptured(piece: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A capture as of a graph: the piece is done again into the same result."""
    out = piece()
    return lambda: out.copy_(piece()), out


@pytest.mark.parametrize(
    ("tp", "pp", "kind"),
    [(1, 1, "mixtral"), (2, 2, "llama"), pytest.param(2, 2, "mixtral", marks=pytest.mark.long)],
)
def test_the_reference_engine_computes_the_same_bits_on_it(
    world: SimulatedDevice, tmp_path: Path, tp: int, pp: int, kind: str
) -> None:
    torch.set_num_threads(1)
    folder = tiny_llama() if kind == "llama" else tiny_mixtral(tmp_path)
    plain = ThreadEngine(folder, tp, pp, capture=recaptured)
    simulated = ThreadEngine(folder, tp, pp, capture=recaptured, world=world)
    wanted = plain.generate(PROMPT, 6, chunk=16)
    world.transfers.reset()
    assert simulated.generate(PROMPT, 6, chunk=16) == wanted
    if kind == "llama":  # a step waits for its token and nothing else
        assert world.transfers.to_host == 6
    for device, host in zip(simulated.caches, plain.caches, strict=True):
        assert isinstance(device, SimulatedTensor)
        assert torch.equal(device.cpu(), host)
    drawn: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 5}
    assert simulated.generate(PROMPT, 3, **drawn) == plain.generate(PROMPT, 3, **drawn)
    if kind == "mixtral":  # with experts that may not be asked
        live = torch.tensor([True, False, True, False])
        for engine in (plain, simulated):
            for stage in engine.stages:
                stage.live |= {f"model.layers.{n}": live.to(engine.device) for n in range(4)}
        assert simulated.generate(PROMPT, 3) == plain.generate(PROMPT, 3)


def test_a_shards_weights_and_cache_live_on_it(world: SimulatedDevice) -> None:
    model = shape.read(tiny_llama())
    cut = split.even(model, 2, 1).cut(1)
    source = SliceSource(tiny_llama())
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for device in (world.device, torch.device("cpu")):
            weights = ShardWeights(needs.of(model, cut), dtype, device)
            source.load(weights.needs, weights, 60.0)
            assert {tensor.device for tensor in weights.tensors.values()} == {device}
            assert {tensor.data_ptr() % 64 for tensor in weights.tensors.values()} == {0}
            assert (weights.table("model", {str(n): b"" for n in weights.needs}) is None) == (
                device == world.device
            )
            found.append([(n, d, bytes(data)) for n, d, data in weights.kept()])
        assert found[0] == found[1]
    options = Options(model=str(tiny_llama()), blocks=4)
    old = make_cache(model, cut, options, torch.float32, world.device)
    new = make_cache(model, split.even(model, 1, 1).cut(0), options, torch.float32, world.device)
    lacking = move_heads(old.add_(1), cut.heads, new, (0, model.kv_heads))
    assert lacking == tuple(range(model.kv_heads - len(old)))
    assert new.amin(dim=(1, 2, 3, 4, 5)).tolist() == [0.0] * len(lacking) + [1.0] * len(old)
