"""Lesser ways to lose a worker of a real vLLM engine, each on an engine of its own: it hangs, its GPU fails, its stand-in is rotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inplace_faults import CLASS
from inplace_story import (
    PROGRAM,
    check_processes,
    check_streams,
    folder_of_its_own,
    recoveries,
    run,
)

from dynamo_gpu_ft.sim.nvml import build

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]


def pattern(model: Path, shard: int, shards: int) -> str:
    """Bytes of the embedding that only this shard of an engine in float32 has, as hexadecimal digits."""
    from safetensors import safe_open

    (file,) = model.glob("*.safetensors")
    with safe_open(file, framework="pt") as tensors:
        rows = tensors.get_tensor("model.embed_tokens.weight").float()
    row = rows[len(rows) * (2 * shard + 1) // (2 * shards)]  # vLLM pads, so its cuts are not exact
    return bytes(row.numpy().tobytes()[:64]).hex()


def shared_memory_collectives() -> bool:
    """Whether this machine's build of vLLM has them: that for processors with AVX2 alone has not."""
    import torch
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    return hasattr(torch.ops._C, "init_shm_manager")


@pytest.fixture(scope="module")
def hung(tiny_model: Path) -> Any:
    with folder_of_its_own() as folder:
        yield run(
            tiny_model,
            folder,
            ["undisturbed", "shared_memory", "forked", "stalled", "again"],
            {},
            llm={"worker_extension_cls": CLASS},
        )


def test_a_worker_that_does_not_come_to_the_collective_is_told_from_one_that_waits_in_it(
    hung: dict[str, Any],
) -> None:
    check_streams(hung, "stalled")
    check_processes(hung, "stalled", "1")
    assert recoveries(hung) == [("respawn", "serving")] * 3
    (why,) = hung["stalled"]["why"]
    assert "does not come to where the others wait; it is in stalled:" in why
    assert hung["shared_memory"] == [shared_memory_collectives()] * 2
    check_streams(hung, "again")


def test_a_replacement_is_forked_by_the_nursery_and_a_stopped_nursery_is_not_waited_for(
    hung: dict[str, Any],
) -> None:
    check_streams(hung, "forked")
    assert hung["forked"]["replaced"] == ["forked for shard 1", "fresh for shard 0"]
    assert hung["forked"]["nursery"] == 0, "it is there still, stopped"


def test_where_shared_memory_cannot_be_freed_collectives_go_over_gloo_and_losses_are_recovered(
    tiny_model: Path,
) -> None:
    with folder_of_its_own() as folder:
        seen = run(
            tiny_model,
            folder,
            ["undisturbed", "shared_memory", "rank_1", "frozen_0", "stalled", "again"],
            {},
            llm={"worker_extension_cls": CLASS},
            GFT_FAULT="gloo",
        )
    assert seen["shared_memory"] == [False, False]
    assert "collectives of rank 0 go over gloo" in seen["said"]
    for scenario, rank in (("rank_1", "1"), ("frozen_0", "0"), ("stalled", "1")):
        check_streams(seen, scenario)
        check_processes(seen, scenario, rank)
    check_streams(seen, "again")
    assert recoveries(seen) == [("respawn", "serving")] * 3


def test_a_standby_whose_weights_have_rotted_is_refused_and_another_process_serves(
    tiny_model: Path,
) -> None:
    with folder_of_its_own() as folder:
        seen = run(
            tiny_model,
            folder,
            ["undisturbed", "rotten_standby", "again"],
            {"standbys": 2},
            GFT_PATTERN=pattern(tiny_model, 1, 2),
        )
    rotten = seen["rotten_standby"]
    assert [hit > 0 for hit in sorted(rotten["hit"])] == [False, True], "one standby has that row"
    (wrong,) = rotten["wrong"]
    assert "the replacement of shard 1" in wrong
    assert "embed_tokens.weight (now)" in wrong
    check_streams(seen, "rotten_standby")
    check_processes(seen, "rotten_standby", "1")
    assert [outcome for _, outcome in recoveries(seen)] == ["serving"]
    check_streams(seen, "again")


def test_a_worker_that_dies_three_times_in_a_window_is_the_end_with_its_reason(
    tiny_model: Path,
) -> None:
    with folder_of_its_own() as folder:
        seen = run(tiny_model, folder, ["undisturbed", "dies_for_good"], {"max_restarts": 3})
    end = seen["dies_for_good"]
    for kill in end["kills"]:
        assert kill["tokens"] == seen["undisturbed"]["tokens"]
    assert end["errored"]
    assert end["failed"].startswith("shard 1: its member died 3 times within 600 s")
    assert end["ends"] == ["EngineDeadError"] * 2
    ended = [event for event in seen["events"] if event["event"] == "group_recovered"]
    assert [event["outcome"] for event in ended] == ["serving", "serving", "failed"]
    assert [e["event"] for e in seen["events"]].count("engine_ready") == 1, "no engine after it"
    assert seen["processes_left"] == []


def test_a_gpu_that_fell_off_the_bus_moves_its_worker_alone(tiny_model: Path) -> None:
    with folder_of_its_own() as folder:
        (folder / "kernel.log").touch()
        (folder / "control").mkdir()
        settings = {
            "health_library": str(build.library()),
            "health_log": str(folder / "kernel.log"),
            "health_devices": "0,1,2",
        }
        control = {build.CONTROL: str(folder / "control")}
        seen = run(
            tiny_model,
            folder,
            ["undisturbed", "off_the_bus", "again"],
            settings,
            program=PROGRAM.with_name("inplace_verdicts.py"),
            **control,
        )
    check_streams(seen, "off_the_bus")
    check_processes(seen, "off_the_bus", "1")
    before, after = seen["off_the_bus"]["devices"]
    assert before[0] == after[0], "the survivor stays where it is"
    assert before[1] != after[1]
    assert len({*before, *after}) == 3, "the spare one was taken"
    assert recoveries(seen) == [("respawn", "serving")]
    check_streams(seen, "again")
