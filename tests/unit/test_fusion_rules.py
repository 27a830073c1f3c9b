"""Each rule of fusion, named as a sentence: what becomes one incident, which reading is its root, what it means, when it is over."""

from __future__ import annotations

import msgspec
import pytest

from dynamo_gpu_ft.health.fusion import Fusion
from dynamo_gpu_ft.health.incidents import Action, Unusable
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.topology import Device, Rank
from tests.unit.fusion_world import (
    NODE,
    RANKS,
    SWITCH,
    T0,
    bdf,
    cuda,
    event,
    fused,
    link,
    nccl,
    one,
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

FATAL = [xid(0, 48), event(0.01, 48), trace(0.02, 48), recovery(0.2, 1), cuda(0.3, 214)]


def test_one_fault_seen_by_five_sources_is_one_incident_with_five_pieces_of_evidence() -> None:
    incident = one(settled(FATAL))
    assert (incident.name, incident.shards) == ("xid 48", (0,))
    assert len(incident.evidence) == 5
    assert {e.first.source for e in incident.evidence} == {r.source for r in FATAL}
    assert incident.verdict.unusable is Unusable.GPU


def test_an_urgent_verdict_is_told_with_its_first_reading() -> None:
    fusion, _ = fused([])
    told = one(fusion.add(event(0, 79)))
    assert (told.version, told.verdict.unusable) == (1, Unusable.GPU)


def test_the_same_reading_again_is_counted_and_not_told_again() -> None:
    fusion, told = fused([xid(0, 79), xid(1, 79), xid(2, 79)])
    assert len(told) == 1
    assert one(fusion.open()).evidence[0].count == 3


def test_the_root_of_172_48_45_is_172_which_says_what_memory_it_was() -> None:
    incident = one(settled([xid(0.2, 45), xid(0.1, 48), xid(0, 172), xid(0.3, 13)]))
    assert incident.code == 172
    assert "SRAM" in incident.verdict.reason
    assert incident.verdict.action is Action.RESET_GPU


def test_a_row_remapping_beside_a_double_bit_error_is_part_of_it() -> None:
    incident = one(settled([xid(0, 63), xid(0.1, 48), probe(1, "rows", State.DEGRADED)]))
    assert incident.code == 48
    assert "XID 63" in incident.verdict.reason


def test_a_contained_error_with_its_channels_torn_down_restarts_the_context_only() -> None:
    incident = one(settled([xid(0, 94, pid=1000), xid(0.1, 45, pid=1000), xid(0.1, 63)]))
    assert (incident.code, incident.shards) == (94, (0,))
    assert incident.verdict.unusable is Unusable.CONTEXT


def test_an_uncontained_error_takes_every_rank_of_the_gpu_whatever_process_it_names() -> None:
    incident = one(settled([xid(0, 95, pid=4242)]))
    assert (incident.shards, incident.verdict.unusable) == ((0,), Unusable.GPU)


def test_torn_down_channels_alone_are_told_only_after_their_window_and_make_nothing_unusable() -> (
    None
):
    fusion, told = fused([xid(0, 45, pid=1000), xid(0.1, 45, pid=1000)])
    assert told == []
    assert fusion.tick(T0 + 4.9) == []
    incident = one(fusion.tick(T0 + 5.1))
    assert (incident.verdict.unusable, incident.verdict.action) == (Unusable.NOTHING, Action.REPORT)


def test_a_lost_gpu_with_its_line_without_a_number_and_its_recovery_action_is_one_incident() -> (
    None
):
    lost = read(0.1, "gpu_lost", bdf(0), Source.KERNEL_LOG, State.FAILED)
    incident = one(settled([lost, xid(0, 79), xid154(0.2, 0, 2), event(0.2, 79)]))
    assert (incident.code, incident.verdict.action) == (79, Action.REBOOT_NODE)
    assert incident.shards == (0,)


def test_a_gsp_timeout_explains_a_driver_that_does_not_answer() -> None:
    silent = read(1.5, "driver", uuid(0), Source.NVML_POLL, State.FAILED)
    incident = one(settled([xid(0, 119, pid=77, facts={"process": "nvidia-smi"}), silent]))
    assert (incident.code, incident.verdict.unusable) == (119, Unusable.GPU)
    assert incident.shards == (0,), "whoever it names, the GPU is the engine's"


def test_a_driver_that_does_not_answer_is_an_incident_of_its_own_without_one() -> None:
    incident = one(settled([read(0, "driver", uuid(3), Source.NVML_POLL, State.FAILED)]))
    assert (incident.name, incident.shards) == ("driver_unresponsive", (3,))


def test_a_link_error_and_those_of_its_peers_are_one_incident_of_several_devices() -> None:
    registers = {"registers": "0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0", "link": "14"}
    readings = [xid(0, 74, 2, facts=registers), xid(0.2, 74, 5), xid(0.3, 45, 6), nccl(0.5, 7)]
    incident = one(settled(readings))
    assert [d.index for d in incident.devices] == [2, 5]
    assert (incident.verdict.unusable, incident.shards) == (Unusable.LINK, (2, 5))


def test_a_fatal_switch_error_explains_what_its_gpus_print_and_concerns_all_ranks() -> None:
    fatal = read(0, "sxid", SWITCH, Source.KERNEL_LOG, State.FAILED, code=20034, facts={"severity": "fatal", "link": "33"})  # fmt: skip
    incident = one(settled([xid(0.2, 45, 1), fatal, xid(0.1, 74, 0), xid(0.3, 45, 4)]))
    assert (incident.probe, incident.devices[0].kind) == ("sxid", "switch")
    assert incident.shards == tuple(range(8))
    assert len(incident.devices) == 4


def test_a_switch_and_a_driver_are_nothing_to_ranks_without_a_gpu() -> None:
    on_cpu = [Rank(shard=0, pid=1), Rank(shard=1, pid=2)]
    for wrong in (
        read(0, "sxid", SWITCH, Source.KERNEL_LOG, State.FAILED, code=20034),
        read(0, "driver", NODE, Source.NVML_POLL, State.FAILED, text="driver_unresponsive"),
    ):
        fusion = Fusion(Settings(), "580.95", on_cpu)
        told = [*fusion.add(wrong), *fusion.tick(T0 + 6.0)]
        assert told
        assert {incident.shards for incident in told} == {()}


def test_a_lost_gpu_explains_the_broken_links_of_its_peers() -> None:
    incident = one(settled([xid(0, 74, 1), xid(0.1, 79, 0), xid(0.2, 74, 2)]))
    assert (incident.code, incident.devices[0].index) == (79, 0)


def test_the_drivers_own_recovery_action_is_the_action_of_the_incident() -> None:
    incident = one(settled([xid(0, 48), xid154(0.1, 0, 4)]))
    assert incident.verdict.action is Action.DRAIN_AND_RESET_GPU
    assert incident.verdict.unusable is Unusable.GPU


def test_a_soft_code_is_as_bad_as_the_recovery_action_beside_it() -> None:
    incident = one(settled([xid(0, 31, pid=1000), xid154(0.1, 0, 1)]))
    assert (incident.code, incident.verdict.unusable) == (31, Unusable.GPU)


@pytest.mark.parametrize("sign", [xid154(60, 1, 0), recovery(60, 0)])
def test_a_recovery_action_that_goes_back_to_none_ends_the_incident(sign: Reading) -> None:
    fusion, _ = fused([xid(0, 48), xid154(0.1, 0, 1), recovery(0.2, 1)])
    ended = one(fusion.add(sign))
    assert (ended.cleared, ended.ended) == (True, "recovered")
    assert fusion.open() == []


def test_no_recovery_action_at_all_ends_nothing() -> None:
    fusion, _ = fused([recovery(-1, 0), xid(0, 48)])
    fusion.add(recovery(1, 0))
    fusion.tick(T0 + 1e6)
    assert one(fusion.open()).code == 48


def test_an_unknown_state_ends_nothing_and_is_no_fault() -> None:
    lost = read(0, "gpu_lost", uuid(0), Source.NVML_POLL, State.FAILED)
    fusion, _ = fused([lost, read(1, "gpu_lost", uuid(0), Source.NVML_POLL, State.UNKNOWN)])
    assert one(fusion.open()).name == "gpu_lost"
    _, told = fused([read(0, "fabric", uuid(0), Source.NVML_COUNTER, State.UNKNOWN)])
    assert told == []


def test_a_gpu_that_answers_again_is_not_well_while_the_driver_wants_it_reset() -> None:
    lost = read(0, "gpu_lost", uuid(0), Source.NVML_POLL, State.FAILED)
    back = read(20, "gpu_lost", uuid(0), Source.NVML_POLL, State.HEALTHY)
    fusion, _ = fused([lost, recovery(0.1, 1), back])
    assert one(fusion.open()).name == "gpu_lost"
    fusion.add(recovery(21, 0))
    assert fusion.open() == []


def test_162_takes_back_163() -> None:
    fusion, told = fused([xid(0, 163), xid(9, 162)])
    assert [(i.code, i.cleared) for i in told] == [(163, False), (163, True)]
    assert fusion.open() == []


def test_a_driver_that_is_bound_anew_ends_what_was_wrong_with_the_gpu() -> None:
    bound = read(90, "driver", bdf(0), Source.NVML_EVENT, State.HEALTHY, facts={"event": "bind"})
    fusion, _ = fused([xid(0, 79), bound])
    assert fusion.open() == []


def test_an_unloaded_driver_takes_the_whole_node_until_it_is_loaded_again() -> None:
    def driver(at: float, what: str) -> Reading:
        facts = {"event": what}
        return read(at, "driver", NODE, Source.NVML_COUNTER, State.DEGRADED, facts=facts)

    fusion, told = fused([xid(0, 79, 3), driver(60, "unloaded")])
    assert (told[-1].verdict.unusable, told[-1].shards) == (Unusable.NODE, tuple(range(8)))
    assert {i.ended for i in fusion.add(driver(90, "bound"))} == {"recovered"}
    assert fusion.open() == []


def test_observations_that_a_source_folded_are_counted() -> None:
    fusion, _ = fused([xid(0, 79, count=1000), xid(1, 79)])
    assert one(fusion.open()).evidence[0].count == 1001


def test_ranks_that_become_known_later_are_the_ones_it_concerns() -> None:
    fusion, told = fused([xid(0, 79, 2)], ranks=())
    assert told[0].shards == ()
    assert one(fusion.set_ranks(RANKS)).shards == (2,)
    assert one(fusion.open()).shards == (2,)


def test_a_dead_context_is_over_once_it_is_quiet_and_a_second_death_is_a_second_incident() -> None:
    fusion, told = fused([xid(0, 31, pid=1000)])
    ended = one(fusion.tick(T0 + 11))
    assert (ended.ended, ended.id) == ("quiet", told[0].id)
    again = one(fusion.add(xid(30, 31, pid=1000)))
    assert again.id != ended.id


def test_two_processes_on_one_gpu_have_faults_of_their_own() -> None:
    open_now = settled([xid(0, 31, pid=1000), xid(0.1, 31, pid=555)], after=5.5)
    assert sorted(i.shards for i in open_now) == [(), (0,)]


def test_two_mig_instances_have_faults_of_their_own_and_a_bus_loss_takes_both() -> None:
    a, b = xid(0, 31, device=bdf(0, 5, 0)), xid(0.1, 31, device=bdf(0, 6, 0))
    assert len(settled([a, b], ranks=())) == 2
    assert {i.devices[0].gi for i in settled([a, b], ranks=())} == {5, 6}
    assert one(settled([a, b, xid(0.2, 79)], ranks=())).code == 79


def test_what_was_so_before_watching_began_is_known_and_no_incident_until_it_changes() -> None:
    fusion, told = fused(
        [link(0, False, baseline=True), link(1, False), xid(-500, 31, baseline=True)]
    )
    assert told == []
    assert [r.probe for r in fusion.snapshot().states] == ["nvlink"]
    fusion.add(link(2, True))
    assert one(fusion.add(link(3, False))).verdict.unusable is Unusable.LINK


@pytest.mark.parametrize(
    "baseline",
    [
        recovery(0, 1, baseline=True),
        recovery(0, 2, baseline=True),
        probe(0, "rows", State.FAILED, baseline=True),
        probe(0, "gpu_lost", State.FAILED, baseline=True),
    ],
)  # fmt: skip
def test_a_gpu_that_is_unusable_when_watching_begins_is_told_and_marked(baseline: Reading) -> None:
    incident = one(settled([baseline]))
    assert incident.verdict.unusable is Unusable.GPU
    assert incident.evidence[0].first.baseline
    assert "already" in incident.verdict.reason


def test_a_hang_is_a_dead_context_until_the_step_ends_and_part_of_the_fault_that_explains_it() -> (
    None
):
    fusion, told = fused([step(0, State.FAILED, 1), step(0.1, State.FAILED, 2)])
    assert (told[-1].name, told[-1].shards) == ("hang", (1, 2))
    fusion.add(step(9, State.HEALTHY, 1))
    assert one(fusion.open()).name == "hang"
    assert [i.ended for i in fusion.add(step(9.1, State.HEALTHY, 2))] == ["recovered"]
    incident = one(settled([step(0.6, State.FAILED, 1), xid(0, 79, 0), nccl(0.8, 2)]))
    assert (incident.code, incident.shards) == (79, (0,))


def test_a_hang_ends_with_the_process_that_hung() -> None:
    fusion, _ = fused([step(0, State.FAILED, 1), step(0, State.FAILED, 2)])
    fusion.tick(T0 + 30)
    anew = [msgspec.structs.replace(rank, pid=rank.pid + 500) for rank in RANKS]
    assert {i.ended for i in fusion.set_ranks([anew[0]])} == {"recovered"}
    assert fusion.open() == []
    assert fusion.set_ranks(anew) == []


def test_communicators_end_with_a_process_of_the_group_and_a_hang_soon_after_is_another() -> None:
    fusion, told = fused([step(0, State.FAILED, 0), step(0, State.FAILED, 1), nccl(0.3, 1)])
    assert told[-1].name == "nccl 6"
    fusion.tick(T0 + 1)
    anew = [msgspec.structs.replace(RANKS[0], pid=4242), *RANKS[1:]]
    assert {i.ended for i in fusion.set_ranks(anew)} == {"recovered"}
    again = one(fusion.add(step(3, State.FAILED, 1)))
    assert (again.name, again.version, again.id != told[-1].id) == ("hang", 1, True)


def test_a_rank_that_was_well_in_between_hangs_anew_while_its_communicator_is_still_a_fault() -> (
    None
):
    fusion, told = fused([step(0, State.FAILED, 1), nccl(0.3, 1), step(1, State.HEALTHY, 1)])
    fusion.tick(T0 + 6)
    again = one(fusion.add(step(8, State.FAILED, 1)))
    assert (again.name, again.version, again.id != told[-1].id) == ("hang", 1, True)
    assert [incident.name for incident in fusion.open()] == ["nccl 6", "hang"]


def test_a_fault_of_somebody_elses_gpu_does_not_explain_the_engines_hang() -> None:
    ranks = RANKS[:2]
    found = settled([xid(0, 48, 5), step(0.5, State.FAILED, 1)], ranks=ranks)
    assert sorted((i.name, i.shards) for i in found) == [("hang", (1,)), ("xid 48", ())]


def test_a_fault_of_the_node_concerns_all_ranks() -> None:
    loaded = read(0, "fabric", NODE, Source.FABRIC_LOG, State.FAILED)
    assert one(settled([loaded])).shards == tuple(range(8))


def test_a_later_and_greater_fault_of_an_unusable_gpu_is_an_incident_of_its_own_a_lesser_is_not() -> (
    None
):
    fusion, _ = fused([xid(0, 48), xid(600, 13, pid=1000)])
    assert one(fusion.open()).code == 48
    assert one(fusion.add(xid(700, 79))).code == 79
    assert len(fusion.open()) == 2


def test_an_incident_that_turns_out_to_be_part_of_another_says_so() -> None:
    fusion, told = fused([xid(0, 63), xid(0.1, 31, pid=1000)])
    assert len(fusion.open()) == 2
    told = fusion.add(xid(0.2, 48))
    merged = next(i for i in told if i.ended == "merged")
    assert merged.merged_into == one(fusion.open()).id


def test_who_waits_for_the_source_that_names_processes_does_not_accuse_the_wrong_one() -> None:
    settings = Settings(names_pids=True)
    fusion, told = fused([event(0, 31)], settings=settings)
    assert told == []
    told = fusion.add(xid(0.01, 31, pid=555))
    assert one(told).shards == ()
    fusion, _ = fused([event(0, 31)], settings=settings)
    assert fusion.deadline() == pytest.approx(T0 + 0.05)
    assert one(fusion.tick(T0 + 0.06)).shards == (0,)


@pytest.mark.parametrize("code", [999, -1])
def test_an_xid_that_nvml_cannot_name_is_the_one_that_another_source_names(code: int) -> None:
    assert one(settled([event(0, code), xid(0.1, 31, pid=1000)])).code == 31
    assert one(settled([event(0, code)])).verdict.unusable is Unusable.CONTEXT


def test_a_lost_record_is_counted_and_no_fault() -> None:
    lost = Reading(at=T0, source=Source.KERNEL_LOG, probe="log", state=State.UNKNOWN, device=Device(kind="node"), facts={"lost": "17"})  # fmt: skip
    fusion, told = fused([lost])
    assert (told, fusion.snapshot().lost) == ([], 17)
