"""The kernel's own device and the driver's tracepoints: read, refused with the remedy, delivered, tidied up.

What needs root or a tracefs is skipped where there is none; the console's tracepoint stands in for the driver's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from door import core
from log_world import DEADLINE_S, Watched, append


def test_who_may_not_read_a_log_is_told_what_mends_it(tmp_path: Path) -> None:
    log = tmp_path / "kern"
    log.write_text("")
    log.chmod(0)
    code = (
        "import os; from dynamo_gpu_ft import native; c = native.load()\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try: c.LogReader(c.WatchQueue(), {str(log)!r})\n"
        "except c.CoreError as error: print(error.code, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.stdout.startswith("io cannot open the log"), done.stdout + done.stderr
    assert "Permission denied" in done.stdout
    assert "CAP_SYSLOG" in done.stdout


def test_the_kernels_own_device_is_read_or_refused_with_the_remedy(watched: Watched) -> None:
    try:
        reader = watched.follow("/dev/kmsg", from_start=True)
    except core.CoreError as error:
        assert error.code in ("io", "not_found")
        assert "CAP_SYSLOG" in str(error) or "mount it" in str(error)
        return
    end = time.monotonic() + DEADLINE_S
    while reader.lines == 0 and time.monotonic() < end:
        watched.queue.wait(0.01)
    assert reader.lines > 0
    assert all("baseline" in r.facts for r in watched.stop() if r.what != "gap")


TRACE = (
    "          python3-4012    [003] d..1.  1234.567890: nvidia_dev_xid: Xid (PCI:0000:75:00.0): 172, Uncorrectable SRAM error\n"
    "     we] ird: [1-77      [000] .....  1234.600000: nvidia_dev_xid: Xid (PCI:0000:75:00.0): 48, DBE\n"
    "CPU:1 [LOST 12 EVENTS]\n"
    "  irq/128-nvswitc-9      [001] dN.2.  1234.700000: nvswitch_dev_sxid: SXid (PCI:0000:c3:00.0): 22013, Fatal, Link 60 x\n"
)


def test_a_trace_pipe_is_read_and_lost_events_are_told(tmp_path: Path, watched: Watched) -> None:
    pipe = tmp_path / "trace_pipe"
    os.mkfifo(pipe)
    watched.readers.append(core.TraceReader(watched.queue, pipe))
    append(pipe, TRACE)
    first, second, gap, third = watched.until(lambda found: len(found) == 4)
    assert {r.source for r in watched.found} == {"tracepoint"}
    assert [(r.code, r.bdf) for r in (first, second)] == [(172, "0000:75:00"), (48, "0000:75:00")]
    assert (gap.what, gap.count) == ("gap", 12)
    assert (third.what, third.code, third.facts["link"]) == ("sxid", 22013, "60")


def tracefs() -> Path | None:
    """Where an instance with the console's tracepoint can be made, by whoever may."""
    for place in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        if os.access(f"{place}/events/printk/console", os.R_OK) and os.access(
            f"{place}/instances", os.W_OK
        ):
            return Path(place)
    return None


@pytest.mark.skipif(tracefs() is None, reason="no tracefs that this user may write")
def test_an_instance_of_tracefs_delivers_vanishes_and_is_tidied_up_after_a_kill(
    watched: Watched,
) -> None:
    place = tracefs()
    assert place is not None
    instances = place / "instances"

    def ours() -> list[str]:
        return [each.name for each in instances.iterdir() if each.name.startswith("dynamo_gpu_ft-")]

    code = (
        "import os, signal; from dynamo_gpu_ft import native; c = native.load(); q = c.WatchQueue()\n"
        f"r = c.TraceReader(q, {str(place)!r}, events=['printk/console']); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], timeout=DEADLINE_S)
    assert killed.returncode == -signal.SIGKILL
    (left,) = ours()
    reader = core.TraceReader(
        watched.queue, place, events=["printk/console", "nvidia/nvidia_dev_xid"]
    )
    assert reader.events[0] == "printk/console"
    assert left not in ours()
    assert len(ours()) == 1
    reader.stop()
    assert ours() == []


@pytest.mark.skipif(
    tracefs() is None or not os.access("/dev/kmsg", os.W_OK),
    reason="no tracefs and kernel log to write",
)
def test_a_line_in_the_kernels_log_arrives_by_the_device_and_by_a_tracepoint(
    watched: Watched,
) -> None:
    watched.follow("/dev/kmsg")
    trace = core.TraceReader(watched.queue, str(tracefs()), events=["printk/console"])
    watched.readers.append(trace)
    # Everybody on this machine reads it: the name of a GPU that no machine has is no fault.
    with open("/dev/kmsg", "w") as kmsg:
        kmsg.write("<6>NVRM: GPU at PCI:ffff:ff:1f: GPU-00000000-0000-0000-0000-000000000000\n")
    found = watched.until(
        lambda found: len({r.source for r in found if r.bdf == "ffff:ff:1f"}) == 2
    )
    told = {r.source: r for r in found if r.bdf == "ffff:ff:1f"}
    assert set(told) == {"kernel_log", "tracepoint"}
    assert told["kernel_log"].facts["origin"] == "user"


def test_without_tracefs_or_the_drivers_events_it_says_what_is_missing(
    tmp_path: Path, watched: Watched
) -> None:
    with pytest.raises(core.CoreError) as caught:
        core.TraceReader(watched.queue, tmp_path)
    assert caught.value.code == "not_found"
    assert "no tracefs" in str(caught.value)
    (tmp_path / "instances").mkdir()
    with pytest.raises(core.CoreError) as caught:
        core.TraceReader(watched.queue, tmp_path)
    assert caught.value.code == "not_found"
    assert "575.51" in str(caught.value)
    for event in ("/etc", "../../x"):
        with pytest.raises(core.CoreError) as caught:
            core.TraceReader(watched.queue, tmp_path, events=[event])
        assert caught.value.code == "invalid"
    with pytest.raises(core.CoreError):
        core.trace_readable(tmp_path)
