"""A real vLLM engine with two tensor-parallel workers loses one at a time; EngineCore and the other keep running, streams go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inplace_story import (
    check_processes,
    check_streams,
    folder_of_its_own,
    recoveries,
    run,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32


@pytest.fixture(scope="module")
def warm(tiny_model: Path) -> Iterator[dict[str, Any]]:
    """With two standbys, and KV in the arena."""
    scenarios = ["undisturbed", "sampled", "sampled_rank_0", "prefill", "prefill_again", "again"]
    with folder_of_its_own() as folder:
        yield run(tiny_model, folder, scenarios, {"standbys": 2})


@pytest.fixture(scope="module")
def cold(tiny_model: Path) -> Iterator[dict[str, Any]]:
    """Without standbys, and without KV to restore from."""
    scenarios = ["undisturbed", "rank_1", "frozen_0", "again"]
    with folder_of_its_own() as folder:
        yield run(tiny_model, folder, scenarios, {"snapshot": False})


def check_series(seen: dict[str, Any], kills: int) -> None:
    """As many losses, each recovered in place: every stream equal, EngineCore and the other worker the same processes."""
    expected, series = seen["undisturbed"]["tokens"], seen["series"]
    assert len(series["tokens"]) == 3 * kills
    assert series["core"][0] == series["core"][1]
    for name, tokens in series["tokens"].items():
        assert tokens == expected[name[-1]], name
    for number, (before, after) in enumerate(series["workers"]):
        survivor = str(1 - number % 2)
        assert before[survivor] == after[survivor]
    assert [outcome for _, outcome in recoveries(seen)] == ["serving"] * kills
    check_streams(seen, "again")
    assert seen["segments_left"] == []


def test_the_output_rank_is_lost_in_decode_and_even_seeded_streams_go_on_identically(
    warm: dict[str, Any],
) -> None:
    check_streams(warm, "sampled_rank_0", like="sampled")
    check_processes(warm, "sampled_rank_0", "0")


def test_first_prefills_in_flight_are_done_again(warm: dict[str, Any]) -> None:
    check_streams(warm, "prefill", like="prefill_again")
    check_processes(warm, "prefill", "1")


def test_standbys_took_the_places_and_no_engine_was_restarted(warm: dict[str, Any]) -> None:
    assert recoveries(warm) == [("substitute", "serving")] * 2


def test_running_streams_lose_at_most_their_open_block(warm: dict[str, Any]) -> None:
    resumed = [e for e in warm["events"] if e["event"] == "request_resumed"]
    decoding = [e for e in resumed if e["request_id"].startswith("drawn")]
    assert len(decoding) == 3
    for event in decoding:
        assert event["tokens_restored"] > 300
        # One block may not be in the arena yet, and one is open.
        assert event["tokens_recomputed"] <= 2 * BLOCK, event


@pytest.mark.long
def test_without_kv_in_the_arena_a_killed_worker_costs_computing_and_no_token(
    cold: dict[str, Any],
) -> None:
    check_streams(cold, "rank_1")
    check_processes(cold, "rank_1", "1")
    assert all(e["tokens_restored"] == 0 for e in cold["events"] if e["event"] == "request_resumed")


@pytest.mark.long
def test_a_stopped_worker_is_replaced_too(cold: dict[str, Any]) -> None:
    check_streams(cold, "frozen_0")
    check_processes(cold, "frozen_0", "0")
    assert recoveries(cold) == [("respawn", "serving")] * 2


@pytest.mark.parametrize("engine", ["warm", pytest.param("cold", marks=pytest.mark.long)])
def test_the_prefix_cache_is_right_afterwards_and_nothing_is_left_behind(
    engine: str, request: pytest.FixtureRequest
) -> None:
    seen = request.getfixturevalue(engine)
    check_streams(seen, "again")
    assert seen["ledger_open"] == []
    assert seen["processes_left"] == []
    assert seen["segments_left"] == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_twenty_kills_of_either_worker_one_after_another(tiny_model: Path) -> None:
    with folder_of_its_own() as folder:
        scenarios = ["undisturbed", "series", "again"]
        seen = run(tiny_model, folder, scenarios, {}, deadline_s=850, GFT_KILLS="20")
    check_series(seen, 20)


@pytest.mark.long
def test_three_kills_in_a_row_with_standbys(tiny_model: Path) -> None:
    """The second and third come while the next standbys still get ready."""
    with folder_of_its_own() as folder:
        seen = run(tiny_model, folder, ["undisturbed", "series", "again"], {"standbys": 2})
    check_series(seen, 3)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_second_faults_end_in_serving_as_well(tiny_model: Path) -> None:
    """A replacement that dies, the other worker in mid-recovery, a standby, and a loss that nobody is there to see."""
    scenarios = ["undisturbed", "replacement_killed", "survivor_killed", "idle", "again"]
    with folder_of_its_own() as folder:
        seen = run(tiny_model, folder, scenarios, {})
        stand_in = run(
            tiny_model, folder, ["undisturbed", "standby_killed", "standby_rank_1"], {"standbys": 1}
        )
    for scenario in scenarios[1:]:
        check_streams(seen, scenario)
    assert seen["replacement_killed"]["core"][0] == seen["replacement_killed"]["core"][1]
    assert seen["survivor_killed"]["core"][0] == seen["survivor_killed"]["core"][1]
    assert {outcome for _, outcome in recoveries(seen)} == {"serving"}
    assert seen["segments_left"] == []
    assert stand_in["standby_killed"]["victims"] == 1
    check_streams(stand_in, "standby_killed")
    check_streams(stand_in, "standby_rank_1")
    assert recoveries(stand_in) == [("substitute", "serving")]
