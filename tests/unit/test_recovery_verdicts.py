"""What incidents ask of an engine, and which GPUs its successor may use."""

from __future__ import annotations

import itertools

import pytest
from msgspec import structs

from dynamo_gpu_ft.health.incidents import Action, Evidence, Incident, Unusable, Verdict
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.recovery.devices import Choice, Fence, choose, named_by, names_in
from dynamo_gpu_ft.recovery.verdicts import Sentence, Verdicts
from dynamo_gpu_ft.topology import Device

GPU1 = Device(index=1, uuid="GPU-b", bdf="0000:3b:00")


def incident(
    unusable: Unusable, *, number: int = 1, version: int = 1, shards: tuple[int, ...] = (1,),
    updated: float = 100.0, cleared: bool = False, devices: tuple[Device, ...] = (GPU1,),
) -> Incident:  # fmt: skip
    return Incident(
        id=f"1-{number}", version=version, name="xid 79", probe="xid", code=79, devices=devices,
        shards=shards, opened=99.0, updated=updated, time=0.0, evidence=(), cleared=cleared,
        verdict=Verdict(unusable=unusable, action=Action.REPORT, lasting=True, reason="it fell off"),
    )  # fmt: skip


def test_a_broken_gpu_ends_the_engine_and_is_fenced() -> None:
    sentence = Verdicts().weigh(incident(Unusable.GPU), started=0.0)
    assert sentence is not None
    assert sentence.fence == (GPU1,)
    assert sentence.reason == "xid 79 on gpu 0000:3b:00 (shard 1): it fell off"


def test_a_dead_context_ends_the_engine_and_fences_nothing() -> None:
    sentence = Verdicts().weigh(incident(Unusable.CONTEXT), started=0.0)
    assert sentence is not None
    assert sentence.fence == ()


@pytest.mark.parametrize(
    "harmless",
    [
        incident(Unusable.NOTHING),
        incident(Unusable.GPU, shards=()),
        incident(Unusable.GPU, cleared=True),
        incident(Unusable.CONTEXT, updated=5.0),
    ],
    ids=["only a report", "a gpu nobody uses", "over", "of the former engine"],
)
def test_what_does_not_concern_the_engine_leaves_it_alone(harmless: Incident) -> None:
    assert Verdicts().weigh(harmless, started=10.0) is None


def test_more_evidence_of_one_fault_costs_one_restart_and_a_worse_verdict_one_more() -> None:
    verdicts = Verdicts()
    versions = [Unusable.CONTEXT, Unusable.CONTEXT, Unusable.GPU, Unusable.GPU, Unusable.CONTEXT]
    told = [
        verdicts.weigh(incident(each, version=n), started=0.0) for n, each in enumerate(versions)
    ]
    assert [each is not None for each in told] == [True, False, True, False, False]


def test_a_node_that_cannot_be_relied_on_is_fenced_as_a_whole() -> None:
    sentence = Verdicts().weigh(incident(Unusable.NODE, shards=(0, 1)), started=0.0)
    assert sentence == Sentence(
        "xid 79 on gpu 0000:3b:00 (shard 0, 1): it fell off", (Device(kind="node"),)
    )


def test_the_first_healthy_devices_are_chosen_in_order() -> None:
    names = ("0", "GPU-b", "0000:5e:00.0", "3")
    known = {name: named_by(name) for name in names} | {"GPU-b": GPU1}
    for fenced in itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(5)):
        fence = Fence()
        for name in fenced:
            fence.add("1-1", known[name], "xid 79")
        healthy = [name for name in names if name not in fenced]
        for count in range(1, 5):
            choice = choose(names, known, fence, count=count)
            assert choice.devices == tuple(healthy[:count])
            assert (choice.missing == "") == (len(healthy) >= count)


def test_a_device_is_found_by_any_of_its_names() -> None:
    fence = Fence()
    fence.add("1-1", Device(bdf="0000:3b:00"), "xid 79")
    assert choose(("1", "2"), {"1": GPU1}, fence, count=1) == Choice(("2",))
    missing = choose(("1", "2"), {"1": GPU1}, fence, count=2).missing
    assert missing == "1 of 2 GPUs can be used, 2 are needed (1: xid 79)"
    fence.clear("1-1")
    assert choose(("1", "2"), {"1": GPU1}, fence, count=2) == Choice(("1", "2"))


def test_a_fenced_node_leaves_nothing_to_choose_even_without_names() -> None:
    fence = Fence()
    assert choose((), {}, fence, count=2) == Choice(())
    fence.add("1-1", Device(kind="node"), "reboot it")
    assert choose((), {}, fence, count=2).missing == "this node cannot be used (reboot it)"
    assert choose(("0",), {}, fence, count=1).devices == ()


def test_names_of_devices_are_read_as_people_write_them() -> None:
    assert names_in(" 0, GPU-5f ,,0000:3B:00.0") == ("0", "GPU-5f", "0000:3B:00.0")
    assert named_by("7") == Device(index=7)
    assert named_by("0000:3B:00.0") == Device(bdf="0000:3b:00")
    assert named_by("GPU-5f") == Device(uuid="GPU-5f")


def told_by(*sources: Source) -> tuple[Evidence, ...]:
    seen = [Reading(source=source, probe="nccl", state=State.FAILED, at=1.0) for source in sources]
    return tuple(Evidence(first=each, last=each) for each in seen)


def test_a_broken_communicator_that_only_ranks_tell_of_may_be_the_echo_of_a_peers_death() -> None:
    broken = incident(Unusable.LINK, devices=(), shards=(0, 1))
    by_ranks = structs.replace(broken, evidence=told_by(Source.ENGINE, Source.HEARTBEAT))
    sentence = Verdicts().weigh(by_ranks, started=0.0)
    assert sentence is not None
    assert sentence.echo
    by_driver = structs.replace(broken, evidence=told_by(Source.ENGINE, Source.KERNEL_LOG))
    sentence = Verdicts().weigh(by_driver, started=0.0)
    assert sentence is not None
    assert not sentence.echo, "a link's own fault is none"
    assert not sentence.stuck
    hurt = structs.replace(by_ranks, verdict=incident(Unusable.CONTEXT).verdict)
    sentence = Verdicts().weigh(hurt, started=0.0)
    assert sentence is not None
    assert not sentence.echo


def test_a_rank_that_is_late_may_be_waiting_for_another_one() -> None:
    late = structs.replace(incident(Unusable.CONTEXT), name="hang", probe="step")
    sentence = Verdicts().weigh(late, started=0.0)
    assert sentence is not None
    assert sentence.stuck
    hurt = Verdicts().weigh(incident(Unusable.CONTEXT), started=0.0)
    assert hurt is not None
    assert not hurt.stuck
    assert not hurt.echo


def test_that_a_process_is_gone_its_engine_may_know_already() -> None:
    gone = structs.replace(incident(Unusable.CONTEXT), name="gone", probe="step")
    sentence = Verdicts().weigh(gone, started=0.0)
    assert sentence is not None
    assert sentence.echo
