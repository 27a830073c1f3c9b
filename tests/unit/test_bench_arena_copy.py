"""The copy bench measures real copies: right bytes on both sides, and no figure for blocks that were not copied."""

from collections.abc import Iterator

import pytest

from bench.arena_copy import _Bench, _measure
from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import GpuFtError

if not native.available()[0]:
    pytest.skip("the native core is not built here", allow_module_level=True)


@pytest.fixture(params=[1, 3])
def bench(request: pytest.FixtureRequest) -> Iterator[_Bench]:
    with _Bench(4096, fragments=request.param, blocks=16, threads=1) as made:
        yield made


def test_what_is_stored_comes_back_equal(bench: _Bench) -> None:
    before = bytes(bench._engine_side)
    for _ in range(4):  # more generations than the arena has room for: old ones make room
        assert bench.store() > 0
    bench._engine_side[:] = bytes(bench.bytes)
    assert bench.load() > 0
    assert bytes(bench._engine_side) == before


def test_memcpy_copies_every_byte_both_ways(bench: _Bench) -> None:
    before = bytes(bench._engine_side)
    bench.memcpy_out()
    assert bytes(bench._arena_side) == before
    bench._engine_side[:] = bytes(bench.bytes)
    bench.memcpy_in()
    assert bytes(bench._engine_side) == before


def test_blocks_that_were_not_copied_give_an_error_instead_of_a_figure(bench: _Bench) -> None:
    bench.store()
    with pytest.raises(GpuFtError, match="did not copy every block"):
        bench._submit(bench._engine.store, bench._list(bench._generation), "ok")


def test_a_measurement_has_a_row_each_way_with_its_target() -> None:
    rows = _measure(256 << 10, 1, 1, 2 << 20, 2)
    assert [r.name for r in rows] == ["arena_copy.store.256KiB", "arena_copy.load.256KiB"]
    assert all(r.target == 0.8 and r.baseline and r.ratio for r in rows)
    assert _measure(64 << 10, 1, 1, 1 << 20, 2)[0].target is None
