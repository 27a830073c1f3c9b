"""What a line of a log says: every form there is, behind every prefix, in any order, cut anywhere, twice, and in noise."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from door import core
from hypothesis import given
from hypothesis import strategies as st
from log_variants import (
    FOREIGN,
    OTHERS,
    PROBE_FAILURE,
    SXID_DETAILS,
    SXIDS,
    UUID,
    VARIANTS,
    XIDS,
    Variant,
)


def escaped(text: str) -> str:
    return "".join(c if 32 <= ord(c) < 127 and c != "\\" else f"\\x{ord(c):02x}" for c in text)


def each_line(prefix: str) -> Callable[[str], str]:
    return lambda text: "\n".join(prefix + line for line in text.split("\n"))


PREFIXES: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "kmsg": lambda text: f"4,1227,98765432,-;{escaped(text)}",
    "kmsg, more flags": lambda text: f"3,1227,98765432,c,1,-;{escaped(text)}",
    "kmsg with a dictionary": lambda text: f"3,1,5,-,caller=T1;{escaped(text)}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:9b:00.0",
    "dmesg": each_line("[   98.765432] "),
    "dmesg with a caller": each_line("[12345.678901][ T4321] "),
    "dmesg -T": each_line("[Tue Jul 23 07:53:55 2024] "),
    "dmesg -x": each_line("kern  :err   : [   98.765432] "),
    "raw syslog": each_line("<3>[   98.765432] "),
    "syslog": each_line("Jul  3 07:53:55 node-17 kernel: "),
    "syslog with the kernel's time": each_line("Jul 23 07:53:55 node-17 kernel: [   98.765432] "),
    "short-iso": each_line("2024-07-23T07:53:55+0000 node-17 kernel: "),
    "short-precise": each_line("Jul 23 07:53:55.123456 node-17 kernel: "),
    "short-full": each_line("Tue 2024-07-23 07:53:55 UTC node-17 kernel: "),
    "short-monotonic": each_line("[   98.765432] node-17 kernel: "),
    "short-unix": each_line("1721721235.123456 node-17 kernel: "),
    "dmesg --time-format iso": each_line("2024-07-23T07:53:55,123456+00:00 "),
}  # fmt: skip


def look(line: str) -> Any:
    return core.parse_line(line.encode())


def check(found: Any, wanted: Variant) -> None:
    assert found is not None
    assert (found.what, found.code, found.bdf) == (wanted.what, wanted.code, wanted.bdf)
    assert (found.gi, found.ci, found.pid) == (wanted.gi, wanted.ci, wanted.pid)
    assert found.uuid == wanted.uuid
    assert {name: found.facts.get(name) for name in wanted.facts} == wanted.facts
    assert found.source == ("fabric_log" if wanted.what.startswith("fabric") else "kernel_log")
    assert len(found.text) <= 512


def key(found: Any) -> tuple[Any, ...]:
    return (found.what, found.code, found.bdf, found.gi, found.ci, found.pid)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_is_understood(variant: Variant) -> None:
    check(look(variant.line), variant)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_variant_is_understood_behind_every_prefix(prefix: str) -> None:
    for variant in VARIANTS:
        if variant.line.startswith("[Jul") and prefix != "none":
            continue  # the fabric manager's own file has its own prefix
        check(look(PREFIXES[prefix](variant.line)), variant)


def test_a_fact_that_a_variant_has_not_is_absent() -> None:
    found = look("NVRM: Xid (PCI:0000:65:00): 48, An uncorrectable error")
    assert found.facts == {}
    assert look("NVRM: Xid (PCI:0:1): 48, An error").bdf == ""


@pytest.mark.parametrize("line", FOREIGN)
def test_a_line_about_no_gpu_is_nothing(line: str) -> None:
    for prefix in PREFIXES.values():
        assert look(prefix(line)) is None


def test_a_line_of_another_program_is_nothing_whatever_it_quotes() -> None:
    quoted = "NVRM: Xid (PCI:0000:18:00): 79, GPU has fallen off the bus."
    assert look(f"Jul 23 07:53:55 node gpud[812]: event {quoted}") is None
    assert look(f"Jul 23 07:53:55 node python3: {quoted}") is None
    assert look(f"Jul 23 07:53:55 node kernel: {quoted}").facts.get("origin") is None


def test_a_line_that_a_process_wrote_into_the_kernels_log_says_so() -> None:
    line = "Xid (PCI:0000:18:00): 79, GPU has fallen off the bus."
    assert look(f"12,5,98765432,-;NVRM: {line}").facts["origin"] == "user"
    assert look(f"Jul 23 07:53:55 node NVRM: {line}").facts["origin"] == "user"
    assert "origin" not in look(f"4,5,98765432,-;NVRM: {line}").facts


def test_details_behind_an_sxid_are_no_faults() -> None:
    log = "\n".join([SXIDS[0].line, *SXID_DETAILS, SXIDS[1].line])
    found = core.parse_log(log.encode())
    assert [(each.code, each.count) for each in found] == [(20034, 1), (12028, 1)]
    assert core.parse_log("\n".join(SXID_DETAILS).encode()) == []


def test_the_serial_number_belongs_to_the_gpu_that_was_named_before() -> None:
    log = (
        "NVRM: GPU at PCI:0000:9b:00: GPU-x\nusb 1-1: hello\nNVRM: GPU Board Serial Number: 1654\n"
    )
    assert [(each.what, each.bdf) for each in core.parse_log(log.encode())] == [
        ("board_serial", "0000:9b:00")
    ]


def test_probe_failures_are_found_when_interleaved_or_when_a_line_is_lost() -> None:
    other = [line.replace("b3:00", "c4:00") for line in PROBE_FAILURE]
    mixed = [
        line for pair in zip(PROBE_FAILURE, other, strict=True) for line in (*pair, "usb: noise")
    ]
    found = core.parse_log("\n".join(mixed).encode())
    assert [(each.what, each.bdf, each.count) for each in found] == [
        ("fallen_off_bus", "0000:b3:00", 1),
        ("fallen_off_bus", "0000:c4:00", 1),
    ]
    for lost, bdf in ((0, ""), (1, "0000:b3:00"), (2, "0000:b3:00")):
        rest = [line for number, line in enumerate(PROBE_FAILURE) if number != lost]
        (one,) = core.parse_log("\n".join(rest).encode())
        assert (one.what, one.bdf, one.count) == ("fallen_off_bus", bdf, 1)
    assert core.parse_log(PROBE_FAILURE[0].encode()) == []


def test_any_order_and_any_noise_between_changes_nothing(rng: random.Random) -> None:
    wanted = sorted(key(look(variant.line)) for variant in VARIANTS)
    for _ in range(20):
        lines = [variant.line for variant in VARIANTS if variant.what != "board_serial"]
        rng.shuffle(lines)
        lines = [each for line in lines for each in (*rng.choices(FOREIGN[:10], k=2), line)]
        prefixes = [PREFIXES[name] for name in ("none", "kmsg", "dmesg", "syslog")]
        log = "\n".join(
            line if line.startswith("[Jul") else rng.choice(prefixes)(line) for line in lines
        )
        found = core.parse_log(log.encode(), window=0)
        there = sorted({key(each) for each in found} | {("board_serial", -1, "", -1, -1, -1)})
        assert there == sorted(set(wanted))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_line_cut_at_any_byte_is_never_another_fault(variant: Variant) -> None:
    whole = PREFIXES["kmsg"](variant.line)
    digits = f"{variant.code:05d}" if variant.what == "sxid" else str(variant.code)
    for end in range(len(whole)):
        found = look(whole[:end])
        if found is None or found.what == "sxid_detail":
            continue
        assert found.what == variant.what
        assert found.bdf in (variant.bdf, "")
        # A number may be cut; then it is the end of the line, and nothing behind it was lost with it.
        assert found.code == variant.code or str(found.code) in (
            "0",
            digits[: len(str(found.code))],
            digits.lstrip("0")[: len(str(found.code))],
        )
        assert str(variant.pid).startswith(str(found.pid)) or found.pid == -1
        for name, value in found.facts.items():
            wanted = look(variant.line).facts.get(name)
            assert (
                name in ("clock", "process", "pid_unknown") or value == (wanted or "")[: len(value)]
            )


def test_an_unfinished_last_line_says_that_it_was_cut() -> None:
    (found,) = core.parse_log(b"NVRM: Xid (PCI:0000:18:00): 7")
    assert found.facts["cut"] == "1"
    (found,) = core.parse_log(b"NVRM: Xid (PCI:0000:18:00): 7\n")
    assert "cut" not in found.facts


def test_equal_lines_are_folded_and_news_are_not() -> None:
    log = "".join(f"[{10 + i / 1000:.6f}] {XIDS[2].line}\n" for i in range(500))
    found = core.parse_log(log.encode())
    assert [each.count for each in found] == [1, 499]
    assert found[0].at_ns == 10_000_000_000
    assert found[1].at_ns == 10_001_000_000
    assert found[1].last_ns == 10_499_000_000
    lines = [variant.line for variant in XIDS if variant.code == 154] * 3
    assert [each.count for each in core.parse_log("\n".join(lines).encode())] == [1] * 6
    links = [XIDS[13].line.replace("Link 08", f"Link {n:02d}") for n in range(18)]
    assert len(core.parse_log("\n".join(links).encode())) == 18


def test_every_line_three_times_is_every_line_once_and_its_count() -> None:
    log = "\n".join(variant.line for variant in VARIANTS for _ in range(3))
    once: dict[object, int] = {}
    for each in core.parse_log(log.encode(), window=3600):
        once[key(each)] = once.get(key(each), 0) + each.count
    # A serial number belongs to the GPU that was named before.
    alone, named = (("board_serial", -1, bdf, -1, -1, -1) for bdf in ("", "0000:9b:00"))
    assert set(once) == ({key(look(variant.line)) for variant in VARIANTS} - {alone}) | {named}
    assert all(count % 3 == 0 for count in once.values())


def test_a_fault_that_comes_back_after_the_window_is_told_again() -> None:
    log = f"[10.0] {XIDS[2].line}\n[10.5] {XIDS[2].line}\n[20.0] {XIDS[2].line}\n[15000.0] {XIDS[2].line}\n"
    assert [(each.at_ns, each.count) for each in core.parse_log(log.encode())] == [
        (10_000_000_000, 1),
        (10_500_000_000, 1),
        (20_000_000_000, 1),
        (15_000_000_000_000, 1),
    ]


def test_what_was_folded_before_a_reboot_is_told_before_it() -> None:
    storm = "".join(f"[{500 + n / 100:.6f}] {XIDS[2].line}\n" for n in range(50))
    log = storm + f"[3.0] NVRM: GPU at PCI:0000:9b:00: {UUID}\n[4.0] {XIDS[3].line}\n"
    found = core.parse_log(log.encode())
    assert [(each.what, each.count) for each in found] == [
        ("xid", 1),
        ("xid", 49),
        ("gpu_uuid", 1),
        ("xid", 1),
    ]


def journal_entry(message: str, binary: bool, **fields: str) -> bytes:
    named = {
        "_TRANSPORT": "kernel",
        "SYSLOG_IDENTIFIER": "kernel",
        "SYSLOG_FACILITY": "0",
        **fields,
    }
    out = b"__CURSOR=s=1\n__REALTIME_TIMESTAMP=1721721235000000\n"
    out += b"".join(f"{name}={value}\n".encode() for name, value in named.items())
    text = message.encode()
    if binary or "\n" in message:
        out += b"MESSAGE\n" + struct.pack("<Q", len(text)) + text + b"\n"
    else:
        out += b"MESSAGE=" + text + b"\n"
    return out + b"_HOSTNAME=node\n\n"


def test_a_journal_is_read_with_binary_fields_and_in_any_pieces() -> None:
    # "serial number" looks back at the lines before it, which differ here.
    variants = [v for v in (*XIDS, *SXIDS, *OTHERS) if v.what != "board_serial"]
    wanted = {key(look(variant.line)) for variant in variants}
    journal = b"".join(
        journal_entry(variant.line, binary) for variant in variants for binary in (False, True)
    )
    found = core.parse_log(journal)
    assert {key(each) for each in found} == wanted
    assert all(each.facts["clock"] == "wall" for each in found)
    assert found[0].at_ns == 1_721_721_235_000_000_000
    for cut in range(0, len(journal), 997):
        assert {key(each) for each in core.parse_log(journal[:cut])} <= wanted


def test_a_journal_tells_the_kernel_from_those_who_quote_it() -> None:
    line = XIDS[2].line
    others = {"SYSLOG_IDENTIFIER": "python3", "_TRANSPORT": "journal"}
    assert core.parse_log(journal_entry(line, False, **others)) == []
    forged = core.parse_log(journal_entry(line, True, _TRANSPORT="syslog"))
    assert forged[0].facts["origin"] == "user"
    injected = journal_entry(line[6:], False, SYSLOG_IDENTIFIER="NVRM", SYSLOG_FACILITY="1")
    assert core.parse_log(injected)[0].facts["origin"] == "user"


def test_endless_lines_and_damaged_journals_cost_bounded_memory_and_nothing_else() -> None:
    endless = b"A" * 3_000_000 + XIDS[2].line.encode() + b"\n" + XIDS[3].line.encode() + b"\n"
    assert [each.code for each in core.parse_log(endless)] == [79]
    monstrous = (
        b"__CURSOR=1\nMESSAGE\n" + b"\xff" * 8 + b"text\n\n" + journal_entry(XIDS[3].line, False)
    )
    assert [each.code for each in core.parse_log(monstrous)] == [79]
    assert core.parse_log(b"") == []


def test_a_log_that_cannot_be_read_says_why(tmp_path: Any) -> None:
    for path, code in ((tmp_path / "absent", "not_found"), (tmp_path, "io")):
        with pytest.raises(core.CoreError) as caught:
            core.parse_log(path)
        assert caught.value.code == code
        assert str(path) in str(caught.value)
    for wrong in ({"format": "xml"}, {"window": -1.0}, {"window": float("nan")}):
        with pytest.raises(core.CoreError) as caught:
            core.parse_log(b"", **wrong)
        assert caught.value.code == "invalid"


def test_a_file_is_read_as_memory_is(tmp_path: Any) -> None:
    log = "\n".join(variant.line for variant in VARIANTS).encode()
    path = tmp_path / "kern"
    path.write_bytes(log)
    assert [key(each) for each in core.parse_log(path)] == [
        key(each) for each in core.parse_log(log)
    ]


noise = st.binary(max_size=40)
pieces = st.lists(
    st.one_of(noise, st.sampled_from([variant.line.encode() for variant in VARIANTS])), max_size=8
)


@given(pieces, st.sampled_from(sorted(PREFIXES)), st.data())
def test_no_bytes_break_it_and_answers_keep_their_bounds(
    parts: list[bytes], prefix: str, data: st.DataObject
) -> None:
    line = bytearray(PREFIXES[prefix](b"".join(parts).decode("latin-1")).encode("latin-1"))
    for _ in range(data.draw(st.integers(0, 4))):
        if line:
            line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    found = core.parse_line(bytes(line))
    for each in [*([found] if found else []), *core.parse_log(bytes(line))]:
        assert each.what
        assert -1 <= each.code < 10**9
        assert -1 <= each.gi < 1000
        assert each.pid >= -1
        assert all(len(value) <= 4 * 256 for value in each.facts.values())
        assert each.bdf == "" or len(each.bdf) in (10, 11, 12, 13, 14)
