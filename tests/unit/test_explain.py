"""The `explain` command: a page for every code, the same as data, and an honest exit code for what nobody knows."""

from __future__ import annotations

import json

import pytest

from dynamo_gpu_ft.cli import explain, main
from dynamo_gpu_ft.health.catalogue import tables


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main.main(["explain", *arguments])
    return status, capsys.readouterr().out


def test_the_page_of_a_lost_gpu_says_what_it_means_what_nvidia_advises_and_what_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, text = said(capsys, "xid", "79", "--driver", "580.65.06")
    assert status == 0
    for part in ("XID 79: GPU fell off the bus", "What it means", "RESTART_BM: Reboot the machine.", "reboot_node", "no rank is put on it", "XID 154"):  # fmt: skip
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_every_code_of_every_subject_has_a_page_and_a_line_in_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    subjects = {
        "xid": tables.xids(), "sxid": tables.sxids(), "recovery-action": tables.recovery_actions(),
        "cuda": tables.cuda(), "nccl": tables.nccl(),
    }  # fmt: skip
    for subject, table in subjects.items():
        for code in table:
            status, text = said(capsys, subject, str(code))
            assert status == 0, (subject, code)
            assert "What it means" in text
            assert "rule" in text
        status, text = said(capsys, subject)
        assert status == 0
        listed = {line.split()[0] for line in text.splitlines()[1:]}
        assert listed == {str(code) for code in table}


def test_the_data_of_a_page_is_json_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, "xid", "94", "--json")
    data = json.loads(text)
    assert status == 0
    assert (data["code"], data["class"], data["verdict"]["unusable"]) == (94, "APP_CONTAINED", "context")  # fmt: skip
    assert data["advice"]["at_once"]["bucket"] == "RESTART_APP"
    assert {"code": 48, "title": "uncorrectable memory error"} in data["companions"]
    assert len(json.loads(said(capsys, "sxid", "--json")[1])) == 262


def test_a_renumbered_code_says_so_and_follows_the_driver(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(capsys, "xid", "144")[1]
    assert "was used again" in text
    assert "--driver" in text
    assert "key rotation" in said(capsys, "xid", "144", "--driver", "550.76")[1]


def test_registers_are_decoded_by_layout_and_no_rule_is_a_problem(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, text = said(capsys, "nvlink5", "149", "0x004505c6", "0x0", "--driver", "570")
    assert (status, "NETIR_LINK_EVT, link fatal" in text) == (0, True)
    status, text = said(capsys, "nvlink5", "149", "0x004505c6", "0x0", "--driver", "580")
    assert (status, "no rule for intrInfo 0x004505c6" in text) == (1, True)
    status, text = said(capsys, "xid", "74", "--registers", "0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0")
    assert (status, "register 3 bit 16" in text) == (0, True)
    status, text = said(capsys, "xid", "154", "--action", "Drain P2P")
    assert (status, "LINK_DRAIN" in text) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("xid", "9999"), ("sxid", "1"), ("recovery-action", "8"), ("cuda", "4711"), ("nccl", "9"),
        ("cuda", "the flux ran out"), ("nccl", "nothing like it"),
    ],
)  # fmt: skip
def test_a_code_nobody_knows_gets_the_careful_page_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    status, text = said(capsys, *arguments)
    assert status == 1
    assert "restart_context" in text
    assert "careful" in text


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("xid", "x"), "is no number"),
        (("xid", "-5"), ""),
        (("xid", "79", "--driver", "new"), "is no driver version"),
        (("nvlink5", "74", "0x0", "0x0"), "invalid choice"),
        (("sxid", "20034", "--switch", "b200"), "invalid choice"),
        ((), "SUBJECT"),
    ],
)
def test_bad_arguments_are_refused_with_the_rule(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(SystemExit) as leave:
        main.main(["explain", *arguments])
    assert leave.value.code == 2
    assert rule in capsys.readouterr().err


def test_the_text_of_an_error_is_explained_as_its_code_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_code = said(capsys, "cuda", "700")
    assert said(capsys, "cuda", "an", "illegal", "memory", "access", "was", "encountered") == by_code  # fmt: skip
    assert said(capsys, "cuda", "cudaErrorIllegalAddress") == by_code
    assert said(capsys, "nccl", "ncclRemoteError") == said(capsys, "nccl", "6")
    assert set(explain.SUBJECTS) >= {"xid", "sxid", "nvlink5", "recovery-action", "cuda", "nccl"}
