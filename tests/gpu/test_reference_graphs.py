"""The reference model's pieces as CUDA graphs: equal bits with and without, and what a step takes with each."""

from __future__ import annotations

import statistics
import time

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import smollm2  # noqa: E402
from dynamo_gpu_ft.engines.reference import needs, shape, split  # noqa: E402
from dynamo_gpu_ft.engines.reference.joint import Group, StageJoint  # noqa: E402
from dynamo_gpu_ft.engines.reference.kv import cache_size, make_cache  # noqa: E402
from dynamo_gpu_ft.engines.reference.model import Stage, Tile  # noqa: E402
from dynamo_gpu_ft.engines.reference.options import Options  # noqa: E402
from dynamo_gpu_ft.engines.reference.pieces import pieces_for  # noqa: E402
from dynamo_gpu_ft.engines.reference.sampling import Sampling  # noqa: E402
from dynamo_gpu_ft.engines.reference.tiles import Piece, pack  # noqa: E402
from dynamo_gpu_ft.engines.reference.weights import ShardWeights  # noqa: E402
from dynamo_gpu_ft.recovery.weights.slices import SliceSource  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
STEPS = 50


def test_graphs_give_the_bits_of_called_kernels_and_take_less_time() -> None:
    folder, device = smollm2(), torch.device("cuda", 0)
    options, made = Options(model=str(folder), device="cuda"), shape.read(folder)
    cut = split.even(made, 1, 1).cut(0)
    weights = ShardWeights(needs.of(made, cut), torch.float32, device)
    SliceSource(folder).load(weights.needs, weights, 60.0)
    found = {}
    for graphs in (False, True):
        cache = make_cache(made, cut, options, torch.float32, device)
        assert tuple(cache.shape) == cache_size(made, cut, options)
        pieces = pieces_for(device, graphs)
        stage, joint = Stage(made, cut, weights.tensors, cache, pieces), StageJoint(Group())
        logits, times = [], []
        for at in range(STEPS):
            piece = Piece(request="r", start=at, tokens=(100 + at,), blocks=tuple(range(1, at // options.block + 2)), sampling=Sampling())  # fmt: skip
            (rows,) = pack([piece], options.tile, options.block)
            columns = (rows.tokens, rows.positions, rows.blocks, rows.places, rows.tables)
            tile = Tile(*(torch.tensor(column, device=device) for column in columns))
            began = time.monotonic()
            logits.append(stage.run(tile, joint, None, logits=True)[0].cpu())
            times.append(time.monotonic() - began)
        found[graphs] = (torch.stack(logits), statistics.median(times))
        assert bool(pieces.captured) is graphs
    assert torch.equal(found[True][0], found[False][0])
    print(f"a step: {found[False][1] * 1e3:.2f} ms called, {found[True][1] * 1e3:.2f} ms as graphs")
    assert found[True][1] < found[False][1]
