"""The NVML watcher on a simulated NVML: what it tells of events, polls and lost GPUs, and which GPUs it watches."""

from __future__ import annotations

import time
from typing import Any

import pytest
from door import core
from nvml_world import until

POLL_S = 0.05
WANTED = 0xFF0B  # every event bit that tells of a fault


def test_an_xid_arrives_with_the_names_of_its_gpu(nvml: Any) -> None:
    watcher = nvml.started()
    sent = time.monotonic_ns()
    assert nvml.send("xid gpu=1 code=31") == 1
    record = nvml.next()
    gpu = watcher.gpus()[1]
    assert (record.source, record.what, record.code, record.index) == ("nvml_event", "xid", 31, 1)
    assert (record.uuid, record.bdf) == (gpu.uuid, gpu.bdf)
    assert gpu.uuid.startswith("GPU-")
    assert gpu.bdf == "0000:23:00"
    assert (record.gi, record.ci, record.facts) == (-1, -1, {})
    assert sent < record.at_ns < time.monotonic_ns()


def test_what_the_watcher_knows_of_its_gpus(nvml: Any) -> None:
    nvml.script(
        "world gpus=3 driver=570.124.06", "supported gpu=1 mask=0x8", "recovery gpu=2 action=4"
    )
    watcher = nvml.started(poll_s=POLL_S)
    first, second, third = watcher.gpus()
    assert watcher.driver_version == "570.124.06 SIMULATED"
    assert watcher.library == str(nvml.library)
    assert (first.index, first.supported, first.registered) == (0, 0xFF9F, WANTED)
    assert first.name.startswith("SIMULATED")
    assert (second.supported, second.registered) == (0x8, 0x8)
    assert (first.recovery_action, third.recovery_action) == (0, 4)
    assert all(gpu.responsive and not gpu.avoided and not gpu.lost for gpu in watcher.gpus())


def test_every_kind_of_event_that_tells_of_a_fault_arrives(nvml: Any) -> None:
    nvml.started(gpus=["0"])
    bits = [1 << place for place in range(16) if WANTED >> place & 1 and 1 << place != 0x8]
    for bit in bits:
        assert nvml.send(f"event gpu=0 type={bit:#x} data=7") == 1
    assert [nvml.of("event").code for _ in bits] == bits
    assert nvml.send("event gpu=0 type=0x10") == 0  # clocks tell of none


def test_events_keep_their_value_and_their_mig_instance(nvml: Any) -> None:
    nvml.started()
    nvml.send("event gpu=0 type=0x4000 data=79")
    assert nvml.next().facts == {"data": "79"}
    nvml.send("xid gpu=1 code=43 gi=5 ci=0")
    record = nvml.next()
    assert (record.gi, record.ci) == (5, 0)


def test_what_happened_before_the_start_is_not_told(nvml: Any) -> None:
    nvml.started(gpus=["0"])  # somebody else, so that the library listens
    other = core.WatchQueue(16)
    late = nvml.watcher(other, gpus=["1"])
    assert nvml.send("xid gpu=1 code=48") == 0
    late.start()
    assert nvml.send("xid gpu=1 code=63") == 1
    assert other.wait(20)
    assert [record.code for record in other.take()] == [63]


def test_xid_zero_is_counted_and_an_unknown_xid_is_told(nvml: Any) -> None:
    watcher = nvml.started()
    for code in (0, 0, 999):
        nvml.send(f"xid gpu=0 code={code}")
    record = nvml.next()
    assert (record.what, record.code) == ("xid", 999)
    assert record.text == "NVML does not know the XID"
    assert watcher.counts()["spurious_xids"] == 2


def test_the_poll_tells_each_recovery_action_once(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S, gpus=["0", "1"])
    nvml.send("recovery gpu=1 action=1")
    record = nvml.next()
    assert (record.source, record.what, record.code, record.index) == (
        "nvml_poll",
        "recovery_action",
        1,
        1,
    )
    assert record.facts == {"previous": "0"}
    before = watcher.counts()["polls"]
    until(lambda: watcher.counts()["polls"] > before + 6)
    nvml.send("recovery gpu=1 action=0")
    record = nvml.next()
    assert (record.what, record.code, record.facts) == ("recovery_action", 0, {"previous": "1"})
    assert nvml.queue.take() == []


def test_what_was_there_at_the_start_says_so(nvml: Any) -> None:
    nvml.script("recovery gpu=1 action=2", "lost gpu=2")
    nvml.started(poll_s=POLL_S)
    told = {record.index: record for record in (nvml.next(), nvml.next())}
    assert (told[1].what, told[1].code, told[1].facts) == ("recovery_action", 2, {"baseline": "1"})
    assert (told[2].what, told[2].code, told[2].facts) == ("gpu_lost", 15, {"baseline": "1"})


def test_an_event_about_the_recovery_action_is_looked_up_at_once(nvml: Any) -> None:
    nvml.started(poll_s=60.0)
    nvml.send("recovery gpu=3 action=4")
    nvml.send("event gpu=3 type=0x8000")
    assert nvml.of("recovery_action").code == 4


def test_a_lost_gpu_is_told_once_and_taken_in_again_when_it_is_back(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S)
    nvml.send("lost gpu=6")
    record = nvml.next()
    assert (record.what, record.code, record.index) == ("gpu_lost", 15, 6)
    until(lambda: watcher.gpus()[6].registered == 0)
    assert nvml.send("xid gpu=5 code=43") == 1
    assert nvml.next().code == 43
    nvml.send("found gpu=6")
    record = nvml.next()
    assert (record.what, record.code, record.index) == ("gpu_lost", 0, 6)
    until(lambda: watcher.gpus()[6].registered == WANTED)
    nvml.send("xid gpu=6 code=45")
    assert nvml.next().index == 6


def test_a_gpu_that_is_lost_only_says_the_wait_is_found_without_a_poll(nvml: Any) -> None:
    nvml.started(poll_s=0)
    nvml.send("lost gpu=2")
    record = nvml.next()
    assert (record.what, record.index) == ("gpu_lost", 2)


def test_a_gpu_that_needs_a_reset_is_told_and_one_that_recovers_too(nvml: Any) -> None:
    nvml.started(poll_s=POLL_S)
    nvml.send("return gpu=4 call=fields code=16")
    record = nvml.next()
    assert (record.what, record.code, record.index) == ("gpu_lost", 16, 4)
    assert "reset" in record.text
    nvml.send("release gpu=4")
    assert nvml.next().code == 0


def test_another_return_code_is_an_error_and_no_fault_of_the_gpu(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S)
    nvml.send("return gpu=4 call=fields code=17")
    record = nvml.next()
    assert (record.what, record.code, record.index) == ("error", 17, 4)
    assert not watcher.gpus()[4].lost


def test_an_old_driver_without_the_field_is_still_watched(nvml: Any) -> None:
    nvml.script("unset gpu=* 230")
    watcher = nvml.started(poll_s=POLL_S)
    assert {gpu.recovery_action for gpu in watcher.gpus()} == {-1}
    nvml.send("return gpu=1 call=nvmlDeviceGetTemperature code=15")
    assert nvml.next().what == "gpu_lost"


def test_a_driver_without_system_events_or_mig_is_still_watched(nvml: Any) -> None:
    nvml.script("return call=nvmlSystemEventSetCreate code=3")
    nvml.started()
    assert nvml.send("xid gpu=0 code=13") == 1
    assert nvml.next().code == 13


def test_binding_and_unbinding_of_a_driver_are_told(nvml: Any) -> None:
    nvml.started()
    until(lambda: nvml.send("unbind gpu=1") == 1)
    record = nvml.next()
    assert (record.what, record.bdf, record.index) == ("driver_unbind", "0000:23:00", 1)
    nvml.send("bind gpu=1")
    assert nvml.next().what == "driver_bind"


def test_gpus_are_chosen_by_index_uuid_address_or_mig_instance(nvml: Any) -> None:
    uuid = "GPU-51d0feed-0000-4000-8000-000000000002"
    nvml.script("mig gpu=5 gi=1 ci=0 uuid=MIG-aa")
    watcher = nvml.started(gpus=["1", uuid, "0000:39:00.0", "MIG-aa"], poll_s=POLL_S)
    assert [gpu.index for gpu in watcher.gpus()] == [1, 2, 3, 5]
    assert nvml.send("xid gpu=5 code=31 gi=1 ci=0") == 1
    assert nvml.send("xid gpu=0 code=31") == 0
    assert nvml.next().index == 5
    assert nvml.calls(gpu=0) == {}


@pytest.mark.parametrize("name", ["9", "GPU-nobody", "0000:ff:00"])
def test_a_gpu_that_is_not_there_is_an_error(nvml: Any, name: str) -> None:
    watcher = nvml.watcher(gpus=["0", name])
    with pytest.raises(core.CoreError, match=name) as caught:
        watcher.start()
    assert caught.value.code == "not_found"
    assert watcher.stop(20)


def test_one_gpu_that_cannot_be_opened_does_not_keep_the_others_from_being_watched(
    nvml: Any,
) -> None:
    nvml.script("return gpu=2 call=handle code=999")
    watcher = nvml.started()
    record = nvml.next()
    assert (record.what, record.code, record.index) == ("error", 999, 2)
    assert nvml.send("xid gpu=3 code=13") == 1
    assert [gpu.registered for gpu in watcher.gpus()][1:4] == [WANTED, 0, WANTED]


def test_a_registration_that_fails_costs_that_gpu_its_events_only(nvml: Any) -> None:
    nvml.script("return gpu=1 call=register code=999")  # leaves the set undefined
    watcher = nvml.started(poll_s=POLL_S)
    record = nvml.next()
    assert (record.what, record.code, record.index) == ("error", 999, 1)
    for gpu in (0, 2, 7):
        assert nvml.send(f"xid gpu={gpu} code=43") == 1
        assert nvml.next().index == gpu
    nvml.send("recovery gpu=1 action=1")
    assert nvml.next().what == "recovery_action"
    assert watcher.gpus()[1].registered == 0
    assert nvml.calls()["nvmlEventSetFree"] == 1


def test_a_gpu_to_be_avoided_is_asked_nothing_more(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S)
    assert watcher.avoid(3)
    assert not watcher.avoid(99)
    asked, others = nvml.calls(gpu=3), nvml.calls(gpu=4)
    until(lambda: nvml.calls(gpu=4) != others)
    until(
        lambda: (
            nvml.calls(gpu=4)["nvmlDeviceGetFieldValues"] > others["nvmlDeviceGetFieldValues"] + 3
        )
    )
    assert nvml.calls(gpu=3)["nvmlDeviceGetFieldValues"] <= asked["nvmlDeviceGetFieldValues"] + 1
    assert watcher.gpus()[3].avoided


@pytest.mark.parametrize(
    "line", ["xid gpu=3 code=79", "xid gpu=3 code=119", "event gpu=3 type=0x4000"]
)
def test_a_gpu_that_fell_silent_is_avoided_by_itself(nvml: Any, line: str) -> None:
    watcher = nvml.started(poll_s=POLL_S)
    nvml.send(line)
    nvml.next()
    assert [gpu.index for gpu in watcher.gpus() if gpu.avoided] == [3]


def test_a_thousand_events_in_ten_milliseconds_are_all_told_or_counted(nvml: Any) -> None:
    nvml.started(gpus=["0"])
    assert nvml.send("burst gpu=0 code=95 count=1000 over_ms=10") == 1000
    for _ in range(1000):
        assert nvml.next().code == 95
    small = core.WatchQueue(100)
    nvml.watcher(small, gpus=["1"]).start()
    assert nvml.send("burst gpu=1 code=94 count=1000 over_ms=10") == 1000
    assert small.wait(20)
    until(lambda: small.lost == 900)
    records = small.take()
    assert (records[0].source, records[0].what, records[0].count) == ("queue", "overflow", 900)
    assert [record.code for record in records[1:]] == [94] * 100


def test_two_watchers_of_one_process_both_hear_of_everything(nvml: Any) -> None:
    nvml.started(gpus=["0"])
    other = core.WatchQueue(16)
    nvml.watcher(other, gpus=["0", "1"]).start()
    assert nvml.send("xid gpu=0 code=13") == 2
    assert nvml.next().code == 13
    assert other.wait(20)
    assert other.take()[0].code == 13


def test_starting_and_stopping_have_an_order(nvml: Any) -> None:
    watcher = nvml.watcher()
    assert watcher.gpus() == []
    assert watcher.stop(1)
    with pytest.raises(core.CoreError) as caught:
        nvml.started().start()
    assert caught.value.code == "invalid"
    assert all(each.stop(20) for each in nvml.watchers)
    assert nvml.control.send("state")[0].answer.startswith("users=0")


@pytest.mark.parametrize("options", [{"poll_s": -1.0}, {"poll_s": 0.001}, {"poll_s": float("nan")}, {"call_deadline_s": 0.0}, {"gpus": []}])  # fmt: skip
def test_options_that_break_a_rule_are_refused(nvml: Any, options: dict[str, Any]) -> None:
    with pytest.raises(core.CoreError) as caught:
        nvml.watcher(**options)
    assert caught.value.code == "invalid"


def test_no_nvml_is_an_error_that_says_what_to_do() -> None:
    queue = core.WatchQueue(1)
    with pytest.raises(core.CoreError, match="inject build") as caught:
        core.NvmlWatcher(queue, library="/nonexistent/libnvidia-ml.so.1")
    assert caught.value.code == "not_found"
    with pytest.raises(core.CoreError, match="nvmlInit_v2") as caught:
        core.NvmlWatcher(queue, library="libc.so.6")
    assert caught.value.code == "version"


def test_a_driver_that_is_not_loaded_is_an_error(nvml: Any) -> None:
    nvml.script("return call=init code=9")
    with pytest.raises(core.CoreError, match="Driver Not Loaded") as caught:
        nvml.started()
    assert caught.value.code == "not_found"
