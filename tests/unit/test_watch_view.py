"""The tables of `watch`, from states as the endpoint tells them: what is bad stands out, what is missing says why."""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo_gpu_ft.cli.watch_view import as_text, tables
from dynamo_gpu_ft.health import report
from dynamo_gpu_ft.health.readings import Reading
from tests.unit.fusion_world import GPUS, RANKS, fused, recovery, xid


def state_after(readings: list[Reading], **more: Any) -> dict[str, Any]:
    fusion, _ = fused(readings)
    _, state = report.state(
        fusion.open(), fusion.snapshot(), more.pop("sources", {"nvml": ""}), ranks_known=True, running=True, **more,
    )  # fmt: skip
    return {**state, "gpus": [msgspec.to_builtins(gpu) for gpu in GPUS[:2]]}


def test_a_gpu_with_an_open_fault_stands_out_with_what_the_driver_asks_for() -> None:
    gpus, faults, _, _ = tables(state_after([xid(0, 48, 1), recovery(0.1, 1, 1), xid(9, 63, 0)]), 0)
    assert gpus.bad == {1}
    assert gpus.rows[1][3:] == ("unusable: gpu", "GPU Reset Required", "xid 48")
    assert gpus.rows[0][3:] == ("usable", "", "xid 63")
    assert [row[1:5] for row in faults.rows] == [
        ("xid 48", "gpu 0000:11:00", "1", "gpu"),
        ("xid 63", "gpu 0000:10:00", "0", "nothing"),
    ]


def test_ranks_are_shown_in_their_steps_and_silent_ones_stand_out() -> None:
    beats = {
        "ranks": [
            {"rank": 0, "pid": 7, "phase": "step", "step": 41, "began": 99.5, "tick": 99.99},
            {"rank": 1, "pid": 8, "phase": "idle", "step": 40, "began": 0.0, "tick": 90.0},
            {"rank": 2, "pid": 9, "phase": "left", "step": 40, "began": 0.0, "tick": 1.0},
        ]
    }
    shown = tables(state_after([], heartbeat=beats), 100.0)[3]
    assert [row[3] for row in shown.rows] == ["in a step for 0.50 s", "idle, silent for 10.0 s", "left"]  # fmt: skip
    assert shown.bad == {1}


def test_what_cannot_be_seen_says_why() -> None:
    state = state_after([], sources={"nvml": "no driver here"}, heartbeat={"why_not": "no engine here"})  # fmt: skip
    text = as_text(tables({**state, "gpus": []}, 0))
    assert "GPUs: none can be seen: no driver here" in text
    assert "Open faults: none" in text
    assert "Step heartbeats: no engine here" in text


def test_an_uncertain_verdict_is_marked_and_all_readings_are_counted() -> None:
    assert RANKS
    _, faults, _, _ = tables(state_after([xid(0, 900), xid(0.01, 900)]), 0)
    assert faults.rows[0][4] == "context?"
    assert faults.rows[0][6] == "2"
