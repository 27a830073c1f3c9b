"""The catalogue of fault numbers: whole, right by driver branch, never harmless about what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.health.catalogue import lookup, nvlink, tables
from dynamo_gpu_ft.health.catalogue.verdicts import gravity, state_of
from dynamo_gpu_ft.health.incidents import Action, Unusable
from dynamo_gpu_ft.health.readings import Reading, Source, State

REPAIRED = {Action.RESET_GPU, Action.RESET_FABRIC, Action.REBOOT_NODE}
# NVIDIA's catalogue counts these as not in use although it gives them an action.
NOT_ACTIVE = {14, 108}
HARD = {46, 62, 64, 79, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158}


def newest() -> list[tables.Xid]:
    return [rows[-1] for rows in tables.xids().values()]


def with_bucket(*buckets: str) -> list[tables.Xid]:
    return [
        row
        for row in newest()
        if row.bucket in buckets and row.class_name != "UNUSED" and row.code not in NOT_ACTIVE
    ]


def test_every_xid_from_1_to_176_has_a_row_and_two_numbers_have_two() -> None:
    assert sorted(tables.xids()) == list(range(1, 177))
    twice = {code: rows for code, rows in tables.xids().items() if len(rows) > 1}
    assert sorted(twice) == [139, 144]
    assert all(len(rows) == 2 for rows in twice.values())


def test_every_table_is_whole_and_every_class_and_bucket_is_explained() -> None:
    assert len(tables.nvlink5()) == 95
    assert len(tables.sxids()) == 262
    assert sorted(tables.recovery_actions()) == list(range(8))
    assert len(tables.cuda()) == 141
    assert sorted(tables.nccl()) == list(range(9))
    used = {row.class_name for row in newest()}
    used |= {row.class_name for row in tables.nvlink5()}
    used |= {row.promoted_class for row in tables.nvlink5()} - {""}
    used |= {row.device_class for row in tables.sxids().values()} - {""}
    used |= {row.class_name for row in tables.xid74().values()}
    for coded in (tables.cuda(), tables.nccl(), tables.recovery_actions()):
        used |= {row.class_name for row in coded.values()}
    used |= {row.class_name for row in tables.engine_texts()}
    assert used <= set(tables.classes())
    named = {b for row in newest() for b in (row.bucket, row.followup)}
    named |= {b for row in tables.nvlink5() for b in (row.bucket, row.promoted_bucket, row.followup)}  # fmt: skip
    assert named - {""} <= set(tables.buckets())


def test_every_table_in_the_folder_is_packaged() -> None:
    root = Path(__file__).parents[2]
    assert '"*.csv"' in (root / "pyproject.toml").read_text()
    files = {path.stem for path in (root / "dynamo_gpu_ft/health/catalogue").glob("*.csv")}
    assert {name for name in files if tables.rows(name)} == files
    assert len(files) == 10


def test_no_soft_code_makes_a_gpu_unusable_on_one_occurrence() -> None:
    soft = with_bucket("RESTART_APP", "IGNORE")
    assert len(soft) == 67
    for row in soft:
        for driver in ("", "535.104.05", "550.76", "570.86.15", "580.65.06", "595.45.04"):
            judged = lookup.xid(row.code, driver).verdict
            if row.code == 139 and driver == "550.76":
                continue  # between its two meanings
            assert judged.unusable in (Unusable.NOTHING, Unusable.CONTEXT), (row.code, driver)
            assert judged.action not in REPAIRED, (row.code, driver)


def test_no_hard_code_is_missed_on_any_driver() -> None:
    hard = with_bucket("RESET_GPU", "RESTART_BM")
    assert {row.code for row in hard} == HARD
    for row in hard:
        for driver in ("", "470.57.02", "535.104.05", "580.65.06", "615.10"):
            judged = lookup.xid(row.code, driver).verdict
            assert judged.unusable.severity >= Unusable.LINK.severity, (row.code, driver)
            assert judged.action in REPAIRED, (row.code, driver)
            assert judged.lasting


def test_an_ignored_code_stops_nothing_unless_it_says_that_a_context_died() -> None:
    stopped = {
        row.code for row in with_bucket("IGNORE")
        if lookup.xid(row.code).verdict.unusable is not Unusable.NOTHING
    }  # fmt: skip
    # 43: the channel was reset; 137: a remote access faulted. The GPU needs nothing, the process that did it is lost.
    assert stopped == {43, 137}


@pytest.mark.parametrize(
    ("code", "driver", "name"),
    [
        (139, "535.104.05", "ROBUST_CHANNEL_FAST_PATH_ERROR"),
        (139, "560.28.03", "ROBUST_CHANNEL_OFA1_ERROR"),
        (139, "", "ROBUST_CHANNEL_OFA1_ERROR"),
        (144, "550.76", "ROBUST_CHANNEL_KEY_ROTATION_ERROR"),
        (144, "560.28.03", "NVLINK_SAW_ERROR"),
        (144, "595.45.04", "NVLINK_SAW_ERROR"),
        (151, "555.42.02", "ROBUST_CHANNEL_KEY_ROTATION_ERROR"),
        (141, "550.40.07", "ROBUST_CHANNEL_FAST_PATH_ERROR"),
    ],
)
def test_a_number_that_was_used_again_means_what_its_driver_means(
    code: int, driver: str, name: str
) -> None:
    assert lookup.xid(code, driver).name == name


def test_a_number_outside_the_branches_that_know_it_is_unsure() -> None:
    assert lookup.xid(144, "580.1").verdict.unusable is Unusable.LINK
    assert not lookup.xid(139, "").verdict.certain
    assert not lookup.xid(139, "550.40").verdict.certain
    assert lookup.xid(143, "550.40").verdict.certain
    assert not lookup.xid(143, "470.57.02").verdict.certain


@given(
    st.integers(-(2**63), 2**63),
    st.sampled_from(["", "535.104.05", "580.65.06", "nonsense", "9" * 99]),
)
def test_a_number_that_no_table_holds_is_unknown_and_judged_with_care(
    code: int, driver: str
) -> None:
    for meaning, held in (
        (lookup.xid(code, driver), code in tables.xids()),
        (lookup.sxid(code), code in tables.sxids()),
        (lookup.recovery_action(code), code in tables.recovery_actions()),
        (lookup.cuda(code), code in tables.cuda()),
        (lookup.nccl(code), code in tables.nccl()),
    ):
        assert meaning.known == held
        if not held:
            assert meaning.class_name == "UNKNOWN"
            assert meaning.verdict.unusable is Unusable.CONTEXT
            assert meaning.verdict.action is Action.RESTART_CONTEXT
            assert not meaning.verdict.certain
            assert state_of(meaning.class_name) is State.FAILED


FACTS = ("registers", "intr_info", "error_status", "severity", "new_action", "new_text", "uvm", "class", "error")  # fmt: skip


@given(
    st.sampled_from(["xid", "nvlink5", "sxid", "recovery_action", "cuda", "nccl", "ecc", ""]),
    st.none() | st.integers(-5, 180) | st.integers(10_000, 30_010),
    st.dictionaries(st.sampled_from(FACTS), st.text(max_size=40) | st.just("0x1, 0x2")),
)
def test_whatever_a_reading_holds_its_meaning_is_found_without_an_error(
    probe: str, code: int | None, facts: dict[str, str]
) -> None:
    reading = Reading(
        at=0.0, source=Source.KERNEL_LOG, probe=probe, state=State.FAILED, code=code, facts=facts
    )
    for driver in ("", "570.1", "580.1"):
        meaning = lookup.of(reading, driver)
        assert (meaning is None) == (probe in ("ecc", ""))
        if meaning is not None:
            assert meaning.verdict.reason


def info(rule: tables.NvlinkRule, layout: int) -> int:
    return rule.reason << 20 | (rule.v1 if layout == 1 else rule.v2)


@pytest.mark.parametrize(("layout", "branch"), [(1, 570), (2, 575)])
def test_every_nvlink5_rule_is_found_in_its_layout_with_its_action(
    layout: int, branch: int
) -> None:
    for rule in tables.nvlink5():
        for status in rule.statuses or (0, 0xFFFFFFFF):
            # Bits that no layout looks at must not matter: 19 to 11, and above 25.
            for noise in (0, 0xFC000000 | 0x3F << 11):
                found = nvlink.nvlink5(rule.code, info(rule, layout) | noise, status, branch)
                assert found.rule is not None, rule
                # NOTE: V1 does not tell the two pipes of TLW_RX and TLW_TX apart; their rules are the same.
                same = (found.rule.bucket, found.rule.class_name, found.rule.severity)
                assert same == (rule.bucket, rule.class_name, rule.severity)
                assert layout == 1 or found.rule.v2 == rule.v2
                assert found.layout == layout
                if rule.bucket == "RESET_GPU":
                    assert gravity(found.class_name) >= gravity("LINK_FATAL")


def test_an_nvlink5_message_read_in_the_wrong_layout_has_no_rule_and_is_judged_with_care() -> None:
    for rule in tables.nvlink5():
        for layout, branch in ((1, 580), (2, 570)):
            if rule.v1 == rule.v2 == 0:
                continue
            found = nvlink.nvlink5(rule.code, info(rule, layout), (rule.statuses or (0,))[0], branch)  # fmt: skip
            assert found.rule is None, rule
            assert (found.class_name, found.certain) == ("LINK_SUSPECT", False)


def test_without_a_driver_the_layout_that_has_a_rule_is_taken() -> None:
    for rule in tables.nvlink5():
        for layout in (1, 2):
            found = nvlink.nvlink5(rule.code, info(rule, layout), (rule.statuses or (0,))[0], None)
            assert found.class_name == rule.class_name, (rule, layout)


@pytest.mark.parametrize(("branch", "bit"), [(570, 10), (580, 7)])
def test_the_promote_bit_makes_three_rules_fatal_and_no_other(branch: int, bit: int) -> None:
    layout = 1 if branch < 575 else 2
    promoted = 0
    for rule in tables.nvlink5():
        found = nvlink.nvlink5(rule.code, info(rule, layout) | 1 << bit, (rule.statuses or (0,))[0], branch)  # fmt: skip
        assert found.rule is not None
        assert found.promoted == bool(rule.promoted_class)
        if found.promoted:
            promoted += 1
            assert (rule.code, found.class_name) == (145, "GPU_FATAL")
        else:
            assert found.class_name == rule.class_name
    assert promoted == 3


def test_a_message_of_a_real_blackwell_machine_is_decoded() -> None:
    """0x004505c6: reason 000100, low ten bits 0111000110; printed by a driver before R575."""
    facts = {"intr_info": "0x004505c6", "error_status": "0x00000000", "severity": "Fatal", "link": "02"}  # fmt: skip
    found = lookup.xid(149, "570.124.06", facts)
    assert (found.class_name, found.verdict.certain) == ("LINK_FATAL", True)
    assert found.followup == "INVESTIGATE_LINK_SI"
    assert "NETIR_LINK_EVT" in found.verdict.reason
    assert not lookup.xid(149, "580.65.06", facts).verdict.certain


def test_a_severity_that_contradicts_the_rule_is_not_believed_blindly() -> None:
    quiet = {"intr_info": hex(0b0011), "error_status": "0x80000000"}  # RLW_CTRL in V2: ignore
    assert lookup.xid(145, "580.1", quiet).verdict.unusable is Unusable.NOTHING
    loud = lookup.xid(145, "580.1", {**quiet, "severity": "Fatal"}).verdict
    assert (loud.unusable, loud.certain) == (Unusable.LINK, False)
    event = {"intr_info": hex(0b0010100), "error_status": "0x1"}  # NETIR_MFDE_EVENT in V2
    assert lookup.xid(149, "580.1", {**event, "severity": "Fatal"}).class_name == "GPU_FATAL"
    softer = lookup.xid(149, "580.1", {**event, "severity": "Nonfatal"}).verdict
    assert (softer.unusable, softer.certain) == (Unusable.LINK, False)


def test_a_code_without_nvlink5_rules_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="XID 74 .* 144 to 150"):
        nvlink.nvlink5(74, 0, 0, 580)


@pytest.mark.parametrize(
    ("registers", "class_name", "certain"),
    [
        ("0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0", "LINK_FATAL", True),
        ("0x1, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", "INFO", True),
        ("0x100002, 0, 0, 0, 0, 0, 0", "SECONDARY", True),
        ("0x12, 0, 0, 0, 0, 0, 0", "LINK_FATAL", True),
        ("0, 0, 0, 0x40000, 0, 0, 0", "FABRIC_FATAL", True),
        ("0, 0, 0, 0, 0x100000, 0, 0", "LINK_DEGRADED", True),
        ("0x1, 0x8, 0, 0, 0, 0, 0", "LINK_SUSPECT", False),
        ("0, 0, 0, 0, 0, 0, 0x1", "LINK_DECODE", False),
        ("0, 0, 0, 0, 0, 0, 0", "LINK_DECODE", False),
        ("", "LINK_DECODE", False),
    ],
)
def test_the_registers_of_xid_74_are_decoded_and_the_gravest_bit_decides(
    registers: str, class_name: str, certain: bool
) -> None:
    found = lookup.xid(74, "550.1", {"registers": registers})
    assert (found.class_name, found.verdict.certain) == (class_name, certain)


def test_every_bit_of_the_xid_74_registers_gives_the_class_of_its_row() -> None:
    assert len(tables.xid74()) == 42
    for (register, bit), row in tables.xid74().items():
        values = [0] * 7
        values[register - 1] = 1 << bit
        assert nvlink.xid74(values).class_name == row.class_name


@pytest.mark.parametrize(
    ("text", "unusable", "action"),
    [
        ("None", Unusable.NOTHING, Action.NONE),
        ("GPU Reset Required", Unusable.GPU, Action.RESET_GPU),
        ("Node Reboot Required", Unusable.GPU, Action.REBOOT_NODE),
        ("Drain P2P", Unusable.LINK, Action.REBUILD_GROUP),
        ("Drain and Reset", Unusable.NOTHING, Action.DRAIN_AND_RESET_GPU),
        ("Recover IMEX Domain", Unusable.LINK, Action.RESET_FABRIC),
        ("Sing a song", Unusable.CONTEXT, Action.RESTART_CONTEXT),
    ],
)
def test_xid_154_means_what_its_text_or_its_number_says(
    text: str, unusable: Unusable, action: Action
) -> None:
    by_text = lookup.xid(154, "595.45.04", {"new_text": text}).verdict
    assert (by_text.unusable, by_text.action) == (unusable, action)
    number = next((c for c, row in tables.recovery_actions().items() if row.text == text), 8)
    by_number = lookup.xid(154, "595.45.04", {"new_action": hex(number)}).verdict
    assert (by_number.unusable, by_number.action) == (unusable, action)


def test_the_severity_of_an_sxid_is_the_lines_and_without_one_that_of_the_switch() -> None:
    assert lookup.sxid(12014, {"switch_arch": "ls10"}).class_name == "FABRIC_FATAL"
    assert lookup.sxid(12014, {"switch_arch": "lr10"}).class_name == "LINK_DEGRADED"
    either = lookup.sxid(12014)
    assert (either.class_name, either.verdict.certain) == ("FABRIC_FATAL", False)
    for said, class_name in (("fatal", "FABRIC_FATAL"), ("non-fatal", "LINK_DEGRADED"), ("Nonfatal", "LINK_DEGRADED"), ("correctable", "INFO")):  # fmt: skip
        found = lookup.sxid(12014, {"severity": said, "switch_arch": "ls10"})
        assert (found.class_name, found.verdict.certain) == (class_name, True)
    by_arch = {c for c, row in tables.sxids().items() if {row.lr10, row.ls10} >= {"fatal", "nonfatal"}}  # fmt: skip
    assert by_arch == {19048, 19049, 19056, 19058, 12014, 12029}


def test_every_sxid_ends_in_a_verdict_and_a_fatal_one_always_stops_the_link() -> None:
    for row in tables.sxids().values():
        found = lookup.sxid(row.code)
        assert found.class_name in tables.classes()
        if "fatal" in (row.lr10, row.ls10, row.common):
            assert found.verdict.unusable is Unusable.LINK
    strange = lookup.sxid(99999, {"severity": "fatal"}).verdict
    assert (strange.unusable, strange.certain) == (Unusable.LINK, False)
