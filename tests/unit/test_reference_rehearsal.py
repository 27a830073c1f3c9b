"""What a standby prepares fits the shard that it is given, and nothing of the rehearsal is left in it."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.engines.reference import needs, shape, split  # noqa: E402
from dynamo_gpu_ft.engines.reference.kv import make_cache  # noqa: E402
from dynamo_gpu_ft.engines.reference.options import Options  # noqa: E402
from dynamo_gpu_ft.engines.reference.rehearsal import rehearse, touched  # noqa: E402
from dynamo_gpu_ft.engines.reference.weights import ShardWeights, room_for  # noqa: E402
from tests.engines.reference_world import tiny_mixtral  # noqa: E402

HOST = torch.device("cpu")


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_shard_finds_its_rooms_large_enough_and_all_zeros(
    tmp_path: Path, tp: int, pp: int, dtype: str
) -> None:
    options = Options(
        model=str(tiny_mixtral(tmp_path / "m", files=1)), tp=tp, pp=pp, blocks=6, dtype=dtype
    )
    kind = getattr(torch, dtype)
    rooms = rehearse(options, kind)
    assert rooms.weights is not None
    assert rooms.cache is not None
    assert not rooms.cache.any()
    made = shape.read(Path(options.model))
    cuts = split.even(made, tp, pp)
    for shard in range(cuts.shards):
        cut = cuts.cut(shard)
        wanted = needs.of(made, cut)
        held = ShardWeights(wanted, kind, HOST, rooms.weights)
        assert _inside(held.tensors[wanted[0].tensor], rooms.weights)
        cache = make_cache(made, cut, options, kind, HOST, rooms.cache)
        assert cache.shape[0] == cut.heads[1] - cut.heads[0]
        assert _inside(cache, rooms.cache)


def test_room_that_is_too_small_is_not_used(tmp_path: Path) -> None:
    options = Options(model=str(tiny_mixtral(tmp_path / "m", files=1)), blocks=6)
    made = shape.read(Path(options.model))
    cut, small = split.even(made, 1, 1).cut(0), touched(100)
    assert not _inside(make_cache(made, cut, options, torch.float32, HOST, small), small)
    wanted = needs.of(made, cut)
    held = ShardWeights(wanted, torch.float32, HOST, small)
    assert not _inside(held.tensors[wanted[0].tensor], small)
    assert held.total_bytes <= room_for(wanted, torch.float32)


def _inside(tensor: torch.Tensor, room: torch.Tensor) -> bool:
    return 0 <= tensor.data_ptr() - room.data_ptr() < len(room)
