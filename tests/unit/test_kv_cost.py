"""Load or compute: the choice is the cheapest cut, unmeasured things are tried, and a bad guess is forgiven."""

from __future__ import annotations

import random

from dynamo_gpu_ft.kv.cost import Choice, Costs, Rate, choose


def costs(*, compute: float | None, **load: float) -> Costs:
    made = Costs()
    made.compute.seconds_per_unit = compute
    for name, value in load.items():
        made.load[name].seconds_per_unit = value
    return made


def test_everything_is_loaded_before_anything_was_measured() -> None:
    choice = choose([("arena", 3), ("disk", 4)], block_bytes=100, block_tokens=16, costs=Costs())
    assert choice == Choice(7, None, "")


def test_a_disk_slower_than_computing_is_left_out() -> None:
    measured = costs(compute=0.001, arena=1e-6, disk=1.0)
    choice = choose([("arena", 3), ("disk", 4)], block_bytes=100, block_tokens=16, costs=measured)
    assert choice.blocks == 3
    assert choice.refused == "disk"


def test_a_slow_arena_behind_a_fast_engine_is_not_worth_it_either() -> None:
    measured = costs(compute=1e-9, arena=1.0)
    choice = choose([("arena", 3)], block_bytes=100, block_tokens=16, costs=measured)
    assert choice == Choice(0, None, "arena")


def whole_time(measured: Costs, flat: list[str], cut: int, sizes: tuple[int, int]) -> float:
    """Seconds to load the first `cut` blocks and to compute the rest, the slow way."""
    load = sum(measured.load[name].seconds_per_unit or 0 for name in flat[:cut])
    rest = (measured.compute.seconds_per_unit or 0) * (len(flat) - cut)
    return load * sizes[0] + rest * sizes[1]


def test_the_cut_is_the_best_of_all(rng: random.Random) -> None:
    for _ in range(500):
        measured = costs(
            compute=rng.uniform(0, 1),
            **{name: rng.uniform(0, 1) for name in ("arena", "convert", "disk")},
        )
        names = rng.sample(("arena", "convert", "disk"), rng.randint(1, 3))
        segments = [(name, rng.randint(1, 5)) for name in names]
        sizes = rng.randint(1, 9), rng.randint(1, 9)
        flat = [name for name, count in segments for _ in range(count)]
        choice = choose(segments, block_bytes=sizes[0], block_tokens=sizes[1], costs=measured)
        times = [whole_time(measured, flat, cut, sizes) for cut in range(len(flat) + 1)]
        assert times[choice.blocks] <= min(times) + 1e-9


def test_patience_grows_with_what_computing_would_take_and_has_a_floor() -> None:
    measured = costs(compute=0.01, arena=0.0)
    long = choose([("arena", 100)], block_bytes=1, block_tokens=16, costs=measured)
    short = choose([("arena", 1)], block_bytes=1, block_tokens=1, costs=measured)
    assert long.timeout_s == 1.5 * 0.01 * 1600
    assert short.timeout_s == 1.0


def test_a_refused_source_becomes_acceptable_again_in_time() -> None:
    measured = costs(compute=0.01, disk=0.02)
    asked = 0
    while choose([("disk", 1)], block_bytes=1, block_tokens=1, costs=measured).blocks == 0:
        measured.load["disk"].forgive()
        asked += 1
        assert asked < 100
    assert asked > 5


def test_a_rate_follows_what_is_measured_and_ignores_nothing_measured() -> None:
    rate = Rate()
    rate.observe(0, 5)
    assert rate.seconds(10) is None
    rate.observe(100, 1)
    assert rate.seconds(100) == 1
    for _ in range(50):
        rate.observe(100, 3)
    assert abs((rate.seconds(100) or 0) - 3) < 0.01
