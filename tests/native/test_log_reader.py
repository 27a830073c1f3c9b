"""The thread that follows a log: growing, rotated, truncated, cut and closed ones, storms, forks.

Every wait is for the records themselves, with a deadline.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from door import core
from log_variants import SXIDS, UUID, VARIANTS, XIDS
from log_world import DEADLINE_S, Watched, append, line


def test_what_is_written_after_the_start_is_told_and_what_was_there_is_not(
    tmp_path: Path, watched: Watched
) -> None:
    log = tmp_path / "kern"
    append(log, line(48))
    watched.follow(log)
    append(log, "usb 1-1: hello\n" + line(79))
    (found,) = watched.codes([79])
    assert (found.source, found.what, found.bdf) == ("kernel_log", "xid", "0000:18:00")
    assert "baseline" not in found.facts
    assert time.monotonic_ns() - found.at_ns < DEADLINE_S * 1e9


def test_from_the_start_old_lines_are_marked_and_new_ones_are_not(
    tmp_path: Path, watched: Watched
) -> None:
    log = tmp_path / "kern"
    append(log, f"NVRM: GPU at PCI:0000:18:00: {UUID}\n" + line(48))
    watched.follow(log, from_start=True)
    watched.until(lambda found: len(found) == 2)
    append(log, line(48))
    named, old, new = watched.until(lambda found: len(found) == 3)
    assert (named.what, named.bdf, named.uuid) == ("gpu_uuid", "0000:18:00", UUID)
    assert [each.facts.get("baseline") for each in (named, old, new)] == ["1", "1", None]
    assert [each.serial for each in (named, old, new)] == [1, 2, 3]


def test_a_line_that_comes_in_pieces_is_one_line(tmp_path: Path, watched: Watched) -> None:
    log = tmp_path / "kern"
    whole = line(79)
    append(log, whole[:30])
    reader = watched.follow(log)
    for at in range(30, len(whole), 7):
        append(log, whole[at : at + 7])
    append(log, line(48))
    assert [r.code for r in watched.codes([79, 48])] == [79, 48]
    assert reader.lines == 2


def test_a_file_that_is_rotated_is_followed_to_its_end_and_then_the_new_one(
    tmp_path: Path, watched: Watched
) -> None:
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log)
    for turn in range(5):
        append(log, line(100 + 2 * turn))
        watched.codes([100 + n for n in range(2 * turn + 1)])
        log.rename(tmp_path / f"kern.{turn}")
        # The daemon has the old file open for a while after the renaming.
        append(tmp_path / f"kern.{turn}", line(101 + 2 * turn))
        watched.codes([100 + n for n in range(2 * turn + 2)])
        append(log, "")
    append(log, line(120))
    watched.codes([*range(100, 110), 120])


def test_a_rotation_in_mid_line_tells_that_the_line_was_cut(
    tmp_path: Path, watched: Watched
) -> None:
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log)
    append(log, "NVRM: Xid (PCI:0000:18:00): 7")
    log.rename(tmp_path / "kern.1")
    append(log, "9, GPU has fallen off the bus.\n" + line(48))
    seven, new = watched.codes([7, 48])
    assert (seven.code, seven.facts["cut"]) == (7, "1")
    assert "cut" not in new.facts


@pytest.mark.parametrize("shorter", [True, False], ids=["shorter", "longer"])
def test_a_file_that_is_truncated_and_written_anew_is_read_from_its_start_and_a_gap_is_told(
    tmp_path: Path, watched: Watched, shorter: bool
) -> None:
    log = tmp_path / "kern"
    append(log, "usb: noise\n")
    watched.follow(log)
    append(log, line(48) * (4 if shorter else 1))
    watched.codes([48])
    log.write_text(line(79) + ("" if shorter else "usb: more noise than before\n" * 20))
    watched.until(lambda found: any(r.code == 79 for r in found))
    (gap,) = [r for r in watched.found if r.what == "gap"]
    # The look may fall between the truncation and the writing.
    assert gap.facts["why"] in (("truncated",) if shorter else ("truncated", "rewritten"))


def test_a_file_may_come_later_and_vanish_for_a_while(tmp_path: Path, watched: Watched) -> None:
    log = tmp_path / "later" / "kern"
    watched.follow(log)
    log.parent.mkdir()
    append(log, line(48))
    watched.codes([48])
    log.unlink()
    append(log, line(79))
    watched.codes([48, 79])
    assert not [r for r in watched.found if "baseline" in r.facts]


def test_a_pipe_is_followed_from_writer_to_writer(tmp_path: Path, watched: Watched) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    watched.follow(fifo)
    for code, rest in ((48, "NVRM: Xid (PCI:0000:18:00): 9"), (79, "")):
        append(fifo, line(code) + rest)  # opens, writes, closes
        watched.until(lambda found, code=code: any(r.code == code for r in found))  # type: ignore[misc]
        if rest:
            watched.codes([48, 9])
    assert [r.facts.get("cut") for r in watched.codes([48, 9, 79])] == [None, "1", None]


def test_a_commands_output_is_followed_by_its_descriptor(watched: Watched) -> None:
    text = line(48) + line(79)
    with subprocess.Popen(
        [sys.executable, "-c", f"print({text!r}, end='')"], stdout=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        watched.follow(f"/dev/fd/{command.stdout.fileno()}")
        watched.codes([48, 79])


def test_a_writer_that_is_killed_in_mid_line_takes_one_line_with_it(
    tmp_path: Path, watched: Watched
) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    watched.follow(fifo)
    code = (
        "import os, signal, sys\n"
        f"f = os.open({str(fifo)!r}, os.O_WRONLY)\n"
        f"os.write(f, {(line(48) + 'NVRM: Xid (PCI:0000:18:00): 1').encode()!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=DEADLINE_S)
    assert done.returncode == -signal.SIGKILL
    watched.codes([48, 1])
    append(fifo, line(79))
    found = watched.codes([48, 1, 79])
    assert [r.facts.get("cut") for r in found] == [None, "1", None]


def test_a_journal_stream_is_followed_in_any_pieces(tmp_path: Path, watched: Watched) -> None:
    log = tmp_path / "export"
    head = "__CURSOR=a\n_TRANSPORT=kernel\nSYSLOG_IDENTIFIER=kernel\nMESSAGE=usb: noise\n\n"
    append(log, head)
    watched.follow(log)
    entry = head.replace("usb: noise", line(79).strip())
    quoted = entry.replace("=kernel", "=gpud").replace("79", "95")
    text = quoted + entry + entry.replace("79", "48")
    for at in range(0, len(text), 11):
        append(log, text[at : at + 11])
    assert [r.code for r in watched.codes([79, 48])] == [79, 48]


@pytest.mark.slow
def test_a_storm_of_800000_lines_with_29_faults_costs_few_records_and_bounded_memory(
    tmp_path: Path, watched: Watched
) -> None:
    distinct = [line(95, bus) for bus in range(29)]
    log = tmp_path / "kern"
    append(log, "")
    reader = watched.follow(log)
    block = "".join(distinct[n % 29] for n in range(29 * 500))
    before, lines = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    while lines < 800_000:
        append(log, block)
        lines += 29 * 500
    watched.total(lines)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{len(watched.found)} records, {grown} KiB")
    firsts = [r for r in watched.found if r.count == 1]
    assert {r.bdf for r in firsts} == {f"0000:{bus:02x}:00" for bus in range(29)}
    assert sum(r.count for r in watched.found) == lines == reader.lines
    # The window doubles: of each kind the first, and a count after 1, 2, 4, 8 ... s.
    assert len(watched.found) <= 29 * 6
    assert watched.queue.lost == 0
    assert grown < 20 << 10


def test_a_storm_of_ever_new_faults_is_not_lost_silently(tmp_path: Path) -> None:
    watched = Watched()
    watched.queue = core.WatchQueue(64)
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log, window=0.05)
    text = "".join(
        f"NVRM: Xid (PCI:0000:18:00): 31, pid={n}, name=x, Ch 00000001\n" for n in range(20_000)
    )
    append(log, text)
    watched.until(lambda found: sum(r.count for r in found) >= 20_000)
    assert sum(r.count for r in watched.stop()) == 20_000


def test_what_is_folded_is_told_when_its_window_is_over_without_another_line(
    tmp_path: Path, watched: Watched
) -> None:
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log, window=0.1)
    append(log, line(95) * 10)
    watched.until(lambda found: sum(r.count for r in found) == 10)
    assert [r.count for r in watched.found] == [1, 9]


def test_what_is_folded_when_the_reader_stops_is_not_lost(tmp_path: Path, watched: Watched) -> None:
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log, window=3600)
    append(log, line(95) * 10 + line(48))
    watched.codes([95, 48])
    assert sorted(r.count for r in watched.stop()) == [1, 1, 9]


def test_the_queues_descriptor_wakes_whoever_waits_for_it(tmp_path: Path, watched: Watched) -> None:
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log)
    append(log, line(79))
    assert select.select([watched.queue.fileno()], [], [], DEADLINE_S)[0]
    (found,) = watched.codes([79])
    assert found.code == 79


def test_a_forked_child_has_no_thread_and_its_parent_goes_on(
    tmp_path: Path, watched: Watched
) -> None:
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log)
    append(log, line(48))
    watched.codes([48])
    child = os.fork()
    if child == 0:
        try:
            threads = len(os.listdir("/proc/self/task"))
            watched.stop()
            gc.collect()
            os._exit(0 if threads == 1 and not watched.queue.take() else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    append(log, line(79))
    watched.codes([48, 79])


def test_a_process_ends_while_its_reader_lives(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    code = (
        "from dynamo_gpu_ft import native; c = native.load(); q = c.WatchQueue()\n"
        f"r = c.LogReader(q, {str(fifo)!r}); print('there')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "there\n", "")


def test_stopping_twice_is_stopping_once_and_then_it_is_closed(
    tmp_path: Path, watched: Watched
) -> None:
    reader = watched.follow(tmp_path / "kern")
    reader.stop()
    reader.stop()
    with pytest.raises(core.CoreError) as caught:
        _ = reader.lines
    assert caught.value.code == "closed"


def test_what_cannot_be_followed_says_what_mends_it(tmp_path: Path, watched: Watched) -> None:
    for path, code, remedy in (
        ("/dev/no-such-kmsg", "not_found", "mount it"),
        (str(tmp_path), "io", "CAP_SYSLOG"),
    ):
        for attempt in (
            lambda path=path: watched.follow(path),
            lambda path=path: core.log_readable(path),
        ):  # type: ignore[misc]
            with pytest.raises(core.CoreError) as caught:
                attempt()
            assert caught.value.code == code
            assert remedy in str(caught.value)
    with pytest.raises(core.CoreError) as caught:
        watched.follow(tmp_path / "kern", format="evtx")
    assert caught.value.code == "invalid"


def test_every_variant_arrives_through_a_file_that_is_followed(
    tmp_path: Path, watched: Watched
) -> None:
    log = tmp_path / "kern"
    append(log, "")
    watched.follow(log, window=0)
    wanted = [variant for variant in VARIANTS if variant.what != "board_serial"]
    append(log, "".join(variant.line + "\n" for variant in wanted))
    kinds = {(v.what, v.code, v.bdf, v.gi, v.ci, v.pid) for v in wanted}
    watched.until(
        lambda found: {(r.what, r.code, r.bdf, r.gi, r.ci, r.pid) for r in found} >= kinds
    )
    assert len(SXIDS) == 8
    assert len(XIDS) >= 22
