"""Fusion as a function: the order of readings within a window does not matter, neither do duplicates, nor what a lying source says.

With a brute-force oracle that knows the rules for one GPU as a few lines of its own.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_gpu_ft.health.fusion import Fusion
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.windows import Times
from dynamo_gpu_ft.topology import Device
from tests.unit.fusion_world import (
    RANKS,
    SWITCH,
    T0,
    bdf,
    cuda,
    event,
    fused,
    link,
    nccl,
    probe,
    read,
    recovery,
    settled,
    step,
    trace,
    uuid,
    xid,
    xid154,
)  # fmt: skip

MAKERS: tuple[Callable[[float, int], Reading], ...] = (
    lambda at, gpu: xid(at, 79, gpu),
    lambda at, gpu: event(at, 79, gpu),
    lambda at, gpu: xid(at, 48, gpu),
    lambda at, gpu: trace(at, 172, gpu),
    lambda at, gpu: xid(at, 63, gpu),
    lambda at, gpu: xid(at, 94, gpu, pid=1000 + gpu),
    lambda at, gpu: xid(at, 31, gpu, pid=1000 + gpu),
    lambda at, gpu: event(at, 31, gpu),
    lambda at, gpu: xid(at, 13, gpu, pid=99),
    lambda at, gpu: xid(at, 43, gpu, device=bdf(gpu, 5)),
    lambda at, gpu: xid(at, 45, gpu, pid=1000 + gpu),
    lambda at, gpu: xid(at, 74, gpu),
    lambda at, gpu: xid(at, 119, gpu),
    lambda at, gpu: xid(at, 900, gpu),
    lambda at, gpu: xid154(at, 0, 1, gpu),
    lambda at, gpu: recovery(at, 4, gpu),
    lambda at, gpu: cuda(at, 700, gpu),
    lambda at, gpu: nccl(at, gpu),
    lambda at, gpu: step(at, State.FAILED, gpu),
    lambda at, gpu: link(at, False, gpu),
    lambda at, gpu: probe(at, "rows", State.DEGRADED, gpu),
    lambda at, gpu: read(at, "driver", uuid(gpu), Source.NVML_POLL, State.FAILED),
    lambda at, gpu: read(at, "sxid", SWITCH, Source.KERNEL_LOG, State.FAILED, code=20034, facts={"severity": "fatal"}),
)  # fmt: skip

some_readings = st.lists(
    st.builds(
        lambda make, at, gpu: make(at, gpu),
        st.sampled_from(MAKERS),
        st.floats(0, 4.5).map(lambda at: round(at, 2)),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=8,
)


def shape(incidents: Sequence[Incident], counts: bool = True) -> list[Any]:
    """Incidents without their numbers, in an order of their own."""
    plain = []
    for incident in incidents:
        evidence = [msgspec.structs.replace(e, count=e.count if counts else 1) for e in incident.evidence]  # fmt: skip
        value = msgspec.structs.replace(incident, id="", version=0, evidence=tuple(evidence))
        plain.append(msgspec.json.encode(value))
    return sorted(plain)


@settings(max_examples=300)
@given(readings=some_readings, seed=st.integers(0, 2**32))
def test_the_order_within_the_window_does_not_change_the_incidents(
    readings: list[Reading], seed: int
) -> None:
    shuffled = random.Random(seed).sample(readings, len(readings))
    assert shape(settled(readings)) == shape(settled(shuffled))


@settings(max_examples=100)
@given(readings=some_readings, again=st.lists(st.integers(0, 7), max_size=12))
def test_duplicates_change_nothing_but_counts(readings: list[Reading], again: list[int]) -> None:
    twice = readings + [readings[n % len(readings)] for n in again]
    assert shape(settled(readings), counts=False) == shape(settled(twice), counts=False)


@settings(max_examples=100)
@given(readings=some_readings)
def test_one_call_with_all_readings_ends_where_one_call_for_each_does(
    readings: list[Reading],
) -> None:
    fusion = Fusion(ranks=RANKS)
    fusion.add_all(readings)
    fusion.tick(max(r.at for r in readings) + 6)
    assert shape(fusion.open()) == shape(settled(readings))


@settings(max_examples=150)
@given(readings=some_readings)
def test_versions_count_up_what_is_unusable_never_goes_down_and_nobody_is_lost(
    readings: list[Reading],
) -> None:
    fusion, told = fused(readings)
    told += fusion.tick(T0 + 5.0) + fusion.tick(T0 + 30)
    by_id: dict[str, list[Incident]] = {}
    for incident in told:
        by_id.setdefault(incident.id, []).append(incident)
    for versions in by_id.values():
        assert [v.version for v in versions] == list(range(1, len(versions) + 1))
        assert [v.cleared for v in versions[:-1]] == [False] * (len(versions) - 1)
    known = {i.id for i in fusion.open()}
    for incident in told:
        assert incident.id in known or by_id[incident.id][-1].cleared
        if incident.merged_into:
            assert incident.merged_into in by_id


@settings(max_examples=150)
@given(
    readings=some_readings,
    start=st.sampled_from([0.0, 1e6, 1.8e9]),
    good=st.lists(st.integers(0, 2), max_size=3),
)
def test_a_deadline_that_is_kept_is_followed_by_a_later_one_until_nothing_is_due(
    readings: list[Reading], start: float, good: list[int]
) -> None:
    fusion = Fusion(ranks=RANKS, settings=Settings(names_pids=True))
    signs = [link(5, True, gpu) for gpu in good] + [recovery(5, 0, gpu) for gpu in good]
    for reading in readings + signs:
        fusion.add(msgspec.structs.replace(reading, at=reading.at + start))
    now = -math.inf
    for _ in range(300):
        due = fusion.deadline()
        if due is None:
            break
        assert due > now, "waiting for it would never end"
        now = due
        fusion.tick(now)
    else:
        raise AssertionError("it never comes to rest")


def oracle(codes: frozenset[int]) -> dict[int, frozenset[int]]:
    """Root -> everything in its incident, for codes on one GPU of which no process is known. -1 is a recovery action."""
    hardware = [code for code in (79, 172, 48) if code in codes]
    if hardware:
        return {hardware[0]: codes}
    rest, found = set(codes), {}
    if 63 in rest:
        found[63] = frozenset(rest & {63, -1})
    elif 13 not in rest and -1 in rest:
        found[-1] = frozenset(rest & {-1, 45})
    if 13 in rest:
        found[13] = frozenset(rest & ({13, 45} if 63 in rest else {13, 45, -1}))
    taken = frozenset().union(*found.values())
    if 45 in rest - taken:
        found[45] = frozenset({45})
    return found


def test_every_set_of_codes_on_one_gpu_in_any_order_gives_what_the_oracle_says(
    rng: random.Random,
) -> None:
    alphabet = (79, 172, 48, 63, 13, 45, -1)
    for size in range(1, len(alphabet) + 1):
        for codes in itertools.combinations(alphabet, size):
            for _ in range(3):
                order = rng.sample(codes, size)
                readings = [
                    recovery(n / 10, 1) if code == -1 else xid(n / 10, code)
                    for n, code in enumerate(order)
                ]
                found = {
                    -1 if i.probe == "recovery_action" else i.code: frozenset(
                        -1 if e.first.probe == "recovery_action" else e.first.code
                        for e in i.evidence
                    )
                    for i in settled(readings)
                }
                assert found == oracle(frozenset(codes)), order


@given(st.lists(st.floats(0, 50), max_size=40), st.integers(0, 2**32))
def test_separate_times_do_not_depend_on_their_order(times: list[float], seed: int) -> None:
    counted = []
    for order in (times, random.Random(seed).sample(times, len(times))):
        window = Times(gap=1.0, room=100)
        for at in order:
            window.add(at)
        counted.append(window.spans)
    expected = sum(1 for a, b in itertools.pairwise(sorted(times)) if b - a > 1.0) + bool(times)
    assert counted[0] == counted[1]
    assert len(counted[0]) == expected


hostile = st.builds(
    Reading,
    at=st.one_of(st.floats(), st.floats(0, 100)),
    time=st.floats(),
    source=st.sampled_from(Source),
    probe=st.sampled_from(
        ["xid", "sxid", "nvlink5", "recovery_action", "cuda", "nccl", "ecc", "rows", "nvlink", "fabric", "pcie", "gpu_lost",
         "driver", "event", "step", "log", "process", "", "made up"]
    ),
    state=st.sampled_from(State),
    code=st.one_of(st.none(), st.integers(-(2**70), 2**70), st.sampled_from([0, 13, 31, 45, 48, 74, 79, 94, 149, 154, 162, 163, 999])),
    text=st.text(max_size=40).map(lambda text: text * 50),
    facts=st.dictionaries(
        st.sampled_from(["link", "gpc", "tpc", "new_action", "severity", "corrected", "lost", "event", "x"]),
        st.text(max_size=12), max_size=4,
    ),
    pid=st.one_of(st.none(), st.integers(-5, 2**40)),
    pid_space=st.sampled_from(["", "own", "host", "?"]),
    shard=st.one_of(st.none(), st.integers(-1, 9)),
    serial=st.sampled_from(["", "1", "2"]),
    baseline=st.booleans(),
    device=st.builds(
        Device, kind=st.sampled_from(["gpu", "switch", "node"]), bdf=st.sampled_from(["", "0000:10:00", "0000:11:00"]),
        uuid=st.sampled_from(["", "GPU-0", "GPU-1"]), index=st.one_of(st.none(), st.integers(0, 2)),
        gi=st.one_of(st.none(), st.integers(0, 3)),
    ),
)  # fmt: skip


@settings(max_examples=300)
@given(readings=st.lists(hostile, max_size=30), ticks=st.lists(st.floats(), max_size=3))
def test_no_reading_however_wrong_breaks_it(readings: list[Reading], ticks: list[float]) -> None:
    fusion = Fusion(ranks=RANKS)
    told = fusion.add_all(readings[:15]) + [i for r in readings[15:] for i in fusion.add(r)]
    for now in ticks:
        told += fusion.tick(now)
    for incident in told + fusion.open():
        assert math.isfinite(incident.opened)
        assert math.isfinite(incident.time)
        assert len(incident.evidence) <= fusion.settings.evidence
    msgspec.json.encode([*told, fusion.snapshot()])


def test_a_time_that_is_none_and_one_in_the_future_are_mended_and_counted() -> None:
    fusion = Fusion()
    told = fusion.add_all(
        [xid(0, 79), msgspec.structs.replace(xid(0, 48, 1), at=math.nan), xid(9e9, 95, 2)],
        now=T0 + 1,
    )
    assert {i.updated for i in told} == {T0, T0 + 1}
    assert fusion.snapshot().mended == 2


def test_huge_texts_are_cut() -> None:
    facts = {f"key{n}": "v" * 100_000 for n in range(1000)}
    _, told = fused([xid(0, 79, text="x" * 10_000_000, facts=facts)])
    assert len(msgspec.json.encode(told[0])) < 30_000


def test_contradictory_names_of_a_device_join_no_two_gpus() -> None:
    liar = Device(uuid="GPU-0", bdf="0000:11:00")
    _, told = fused([xid(0, 79, device=liar)])
    assert told[0].shards == ()
    assert not told[0].verdict.certain
    fusion, _ = fused([xid(0, 79, device=liar), xid(1, 48, 0), xid(2, 48, 1)])
    assert sorted(i.shards for i in fusion.open()) == [(), (0,), (1,)]


def test_names_that_turn_out_to_be_one_device_make_one_incident_of_two() -> None:
    both = Device(uuid="GPU-x", bdf="0000:77:00")
    readings = [
        xid(0, 48, device=Device(bdf="0000:77:00")),
        read(0.1, "xid", Device(uuid="GPU-x"), Source.NVML_EVENT, State.FAILED, code=48),
        read(0.2, "recovery_action", both, Source.NVML_POLL, State.FAILED, code=1),
    ]
    for order in itertools.permutations(readings):
        found = settled(order, ranks=())
        assert len(found) == 1
        assert len(found[0].evidence) == 3


@pytest.mark.slow
def test_a_storm_of_800000_readings_of_29_faults_is_at_most_29_incidents(
    rng: random.Random,
) -> None:
    faults = [(code, gpu) for code in (95, 31, 63, 74) for gpu in range(8)][:29]
    fusion = Fusion(ranks=RANKS)
    told: list[Incident] = []
    for start in range(0, 800_000, 1000):
        batch = []
        for n in range(start, start + 1000):
            code, gpu = faults[rng.randrange(29)]
            batch.append(xid(n / 200, code, gpu, serial=str(n), pid=1000 + gpu))
        told += fusion.add_all(batch)
    assert len({incident.id for incident in told}) <= 29
    assert len(told) <= 200, "a storm is not told reading by reading"
    counted = sum(e.count for i in fusion.open() for e in i.evidence) + sum(i.dropped for i in fusion.open())  # fmt: skip
    assert counted == 800_000
    assert {i.devices[0].index for i in fusion.open()} == set(range(8))


def test_1000_different_events_in_10_ms_are_all_there() -> None:
    devices = [Device(bdf=f"{n:04x}:01:00") for n in range(250)]
    readings = [xid(n / 1e5, (79, 48, 31, 63)[n % 4], device=devices[n // 4]) for n in range(1000)]
    fusion = Fusion()
    told = fusion.add_all(readings)
    assert len({i.devices[0].bdf for i in told}) == 250
    assert sum(e.count for i in fusion.open() for e in i.evidence) == 1000


def test_whatever_comes_what_is_kept_is_bounded_and_what_is_forgotten_is_told(
    rng: random.Random,
) -> None:
    small = Settings(entries=64, unsettled=16, evidence=8)
    fusion = Fusion(small)
    told: list[Incident] = []
    for n in range(1500):
        device = Device(bdf=f"{rng.randrange(5000):04x}:01:00")
        code = rng.choice([31, 48, 79, 900 + n])
        told += fusion.add(xid(n / 10, code, device=device, pid=n, text="t" * 600))
    assert len(fusion.open()) <= 64
    assert fusion.snapshot().forgotten > 500
    last = {incident.id: incident for incident in told}
    open_now = {incident.id for incident in fusion.open()}
    assert {i.id for i in last.values() if not i.cleared} == open_now


def test_ever_new_processes_on_a_broken_gpu_stay_one_incident_of_bounded_evidence() -> None:
    fusion = Fusion()
    fusion.add(xid(0, 79))
    for n in range(2000):
        fusion.add(xid(n, 31, pid=5000 + n))
    incident = fusion.open()[0]
    assert len(fusion.open()) == 1
    assert len(incident.evidence) <= 32
    assert sum(e.count for e in incident.evidence) + incident.dropped == 2001
