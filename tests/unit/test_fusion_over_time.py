"""Rules of fusion that need time: repeated codes, storms, links that flap, links that train after boot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dynamo_gpu_ft.health import case, clearing, fusion, grouping
from dynamo_gpu_ft.health.incidents import Action, Unusable
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.topology import Device
from tests.unit.fusion_world import T0, fused, link, one, probe, xid


def test_a_codes_third_time_on_the_same_gpc_and_tpc_makes_the_hardware_suspect() -> None:
    def at(n: int, tpc: str) -> Reading:
        return xid(n * 12, 13, facts={"gpc": "1", "tpc": tpc, "sm": "0"}, pid=1000 + n)

    same, _ = fused([at(n, "3") for n in range(3)])
    last = one(same.open())
    assert (last.verdict.unusable, last.verdict.certain) == (Unusable.GPU, False)
    other, _ = fused([at(n, str(n)) for n in range(3)])
    assert one(other.open()).verdict.unusable is Unusable.CONTEXT


def test_many_lines_of_one_moment_are_one_time() -> None:
    facts = {"gpc": "1", "tpc": "3"}
    fusion, _ = fused([xid(n / 1000, 13, facts=facts, pid=1000) for n in range(50)])
    assert one(fusion.open()).verdict.unusable is Unusable.CONTEXT


def test_memory_faults_again_on_one_gpu_make_it_suspect_and_on_two_they_are_the_applications() -> (
    None
):
    on_one = [xid(n * 20, 31, 0, pid=1000) for n in range(3)]
    fusion, _ = fused(on_one)
    raised = one(fusion.tick(T0 + 46))
    assert (raised.verdict.unusable, raised.verdict.certain) == (Unusable.GPU, False)
    fusion, _ = fused([*on_one[:2], xid(25, 31, 1, pid=1001), on_one[2]])
    fusion.tick(T0 + 46)
    assert {i.verdict.unusable for i in fusion.open()} == {Unusable.CONTEXT}


def test_an_unknown_code_gives_up_the_context_and_again_and_again_the_gpu() -> None:
    fusion, told = fused([xid(0, 900)])
    assert (told[0].verdict.unusable, told[0].verdict.certain) == (Unusable.CONTEXT, False)
    told = fusion.add(xid(4, 900)) + fusion.add(xid(8, 900))
    assert (told[-1].verdict.unusable, told[-1].verdict.certain) == (Unusable.GPU, False)
    assert told[-1].id == "t-1"


def test_a_storm_of_corrected_errors_is_told_and_a_trickle_is_not() -> None:
    def corrected(at: float, n: int) -> Reading:
        return probe(at, "ecc", State.DEGRADED, facts={"corrected": str(n)})

    _, told = fused([corrected(t, 4647 * t) for t in range(20)])
    storm = told[-1].verdict
    assert (storm.unusable, storm.action) == (Unusable.NOTHING, Action.DRAIN_AND_RESET_GPU)
    _, told = fused([corrected(t, t) for t in range(20)])
    assert {i.verdict.action for i in told} == {Action.REPORT}


def test_links_that_are_down_while_the_machine_boots_are_reported_and_never_fatal() -> None:
    fatal = set()
    for node in range(214):
        fusion, told = fused([], booted=T0, attached=T0 + 30)
        for n in range(18):
            told += fusion.add(link(20 + (node * 7 + n) % 240, False, n % 8, n))
        told += fusion.tick(T0 + 290)
        for n in range(18):
            told += fusion.add(link(291, True, n % 8, n))
        told += fusion.tick(T0 + 2000)
        fatal |= {(node, i.id) for i in told if i.verdict.unusable is not Unusable.NOTHING}
        assert fusion.open() == []
    assert fatal == set()


def test_a_link_that_is_down_later_is_a_fault_and_over_when_it_stays_up() -> None:
    fusion, told = fused([link(0, False), link(1, True)])
    assert told[0].verdict.unusable is Unusable.LINK
    assert fusion.tick(T0 + 5) == []
    assert one(fusion.tick(T0 + 11.5)).ended == "recovered"


def test_a_flapping_link_stays_a_fault_until_it_has_been_up_for_long() -> None:
    fusion, told = fused([link(n * 4, n % 2 == 1) for n in range(8)])
    assert len({i.id for i in told}) == 1, "it never counts as over in between"
    assert "again and again" in one(fusion.open()).verdict.reason
    assert fusion.tick(T0 + 300) == []
    assert one(fusion.tick(T0 + 700)).ended == "recovered"


def test_a_card_without_nvlink_has_no_link_fault() -> None:
    _, told = fused([probe(0, "nvlink", State.FAILED, text="NVLink is Not Supported"), probe(1, "nvlink", State.FAILED, facts={"supported": "no"})])  # fmt: skip
    assert told == []


def test_a_flood_of_faults_on_devices_of_their_own_costs_each_of_them_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A log that lies about its devices: what is weighed, judged and looked up grows with the readings, not with their square."""
    calls: Counter[str] = Counter()

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls[name] += 1
            return original(*args)

        return call

    monkeypatch.setattr(grouping, "explains", counted("explains", grouping.explains))
    monkeypatch.setattr(case, "judge", counted("judge", case.judge))
    monkeypatch.setattr(fusion, "recovered_at", counted("recovered_at", clearing.recovered_at))
    flood = [
        xid(n / 200, (79, 48, 31, 63)[n % 4], device=Device(bdf=f"{n:04x}:01:00"))
        for n in range(800)
    ]
    watched, told = fused(flood)
    assert len(watched.open()) == len(told) == 800
    assert max(calls.values()) <= 20 * len(flood), calls
