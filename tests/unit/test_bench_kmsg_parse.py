"""The bench of the kernel-log parser measures what it says: all ways read the same lines, and ours finds what is in them."""

from __future__ import annotations

from bench import kmsg_parse
from bench.rows import Options


def test_every_way_sees_the_lines_that_are_there() -> None:
    log = kmsg_parse.make_log(1000, 50)
    assert log == kmsg_parse.make_log(1000, 50)
    assert kmsg_parse.by_memchr(log) == 1000
    # 20 lines are about GPUs; a fifth of them are SXids and a fifth name no pid as the obvious pattern wants it.
    assert 0 < kmsg_parse.by_re(log) <= 16
    assert kmsg_parse.by_core(log) == 20


def test_storms_are_folded() -> None:
    log = kmsg_parse.make_log(20_000, 1)
    assert kmsg_parse.by_core(log) < 2 * 29 * (2 * 4 + 3) * 3


def test_a_quick_run_gives_two_rows_a_log_with_their_baselines() -> None:
    rows = kmsg_parse.measure(Options(quick=True, say=lambda line: None))
    assert [row.name for row in rows] == [
        "kmsg_parse.mixed",
        "kmsg_parse.mixed.scan",
        "kmsg_parse.xid",
        "kmsg_parse.xid.scan",
    ]
    assert all(row.baseline and row.ratio for row in rows)
    assert [row.target is not None for row in rows] == [True, False, True, False]
