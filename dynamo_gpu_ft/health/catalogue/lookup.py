"""Looks a fault number up and says what one occurrence of it means: name, meaning, NVIDIA's advice, class and verdict.

The catalogue's door: fusion calls `of` with a reading, people come through `dynamo-gpu-ft explain`. Pure and total: a number that
no table holds is UNKNOWN with the careful verdict, never an error and never "nothing".

Facts that count here are those of the log's parser: 74 `registers`; 144 to 150 `intr_info`, `error_status`, `severity`;
154 `new_action`, `new_text`; 159 `uvm` ("no"); 45 `previous_xid`; SXids `severity`, `switch_arch` ("lr10", "ls10").
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from dynamo_gpu_ft.health.catalogue import nvlink, tables
from dynamo_gpu_ft.health.catalogue.nvlink import Decoded
from dynamo_gpu_ft.health.catalogue.tables import Coded, Xid
from dynamo_gpu_ft.health.catalogue.verdicts import UNKNOWN, gravest, verdict
from dynamo_gpu_ft.health.incidents import Verdict
from dynamo_gpu_ft.health.readings import Reading

_NO_FACTS: Mapping[str, str] = {}


class Meaning(msgspec.Struct, frozen=True, kw_only=True):
    """What one occurrence of a code means.

    known       false: no table holds the code (on this driver branch)
    title       a few words for people; meaning: a sentence or two
    class_name  the catalogue's class, from which the verdict follows
    bucket      NVIDIA's word for what to do at once, followup what to look into later; "" where it names none
    companions  XIDs that often come with it
    detail      what was decoded from the facts, for people
    """

    probe: str
    code: int | None
    name: str
    title: str
    meaning: str
    class_name: str
    verdict: Verdict
    known: bool = True
    bucket: str = ""
    followup: str = ""
    companions: tuple[int, ...] = ()
    detail: str = ""


def branch(driver: str | int | None) -> int | None:
    """The branch of a driver version ("580.65.06" -> 580); None for none and for what is no version."""
    match = re.match(r"\s*(\d{3,4})(?:\.|\s|$)", str(driver or ""))
    return int(match[1]) if match else None


def of(reading: Reading, driver: str = "") -> Meaning | None:
    """Meaning of a reading of "xid", "nvlink5", "sxid", "recovery_action", "cuda" or "nccl"; None for every other probe.

    driver  version of the driver that said it, "" when not known
    """
    facts, code = reading.facts, reading.code
    if reading.probe in ("xid", "nvlink5"):
        return xid(-1 if code is None else code, driver, facts)
    if reading.probe == "sxid":
        return sxid(-1 if code is None else code, facts)
    if reading.probe == "recovery_action":
        return recovery_action(-1 if code is None else code)
    if reading.probe in ("cuda", "nccl"):
        found = _by_text(reading) if code is None else cuda(code) if reading.probe == "cuda" else nccl(code)  # fmt: skip
        said = facts.get("class", "")
        if said in tables.classes() and said != found.class_name:
            # `engine_error` saw more than the number: the text around it.
            judged = verdict(said, _subject(reading.probe, code, found.title))
            return msgspec.structs.replace(found, class_name=said, verdict=judged)
        return found
    return None


def xid(
    code: int, driver: str | int | None = None, facts: Mapping[str, str] = _NO_FACTS
) -> Meaning:
    """An XID as the driver of a branch means it. Without a driver the newest meaning, outside every row the
    gravest one, unsure where there are several."""
    rows = tables.xids().get(code, ())
    if not rows:
        return _unknown("xid", code)
    on = branch(driver)
    row, certain = _row(rows, on)
    class_name, detail, name, title = row.class_name, "", row.name, row.title
    decoded = _decoded(row, on, facts)
    if decoded is not None:
        class_name, certain, detail = decoded.class_name, certain and decoded.certain, decoded.words
    elif class_name == "RECOVERY_ACTION":
        action = _new_action(facts)
        if action is not None:
            class_name = action.class_name
            certain = certain and action.known
            title = f"{title} to {action.title}"
    elif class_name == "WORKFLOW_UVM" and facts.get("uvm", "") == "no":
        class_name, detail = "INFO", "unified memory is not in use"
    elif class_name == "SECONDARY" and facts.get("previous_xid", ""):
        detail = f"caused by XID {facts['previous_xid']}"
    bucket, followup = row.bucket, row.followup
    if decoded is not None and decoded.rule is not None:
        rule = decoded.rule
        bucket, followup = rule.promoted_bucket if decoded.promoted else rule.bucket, rule.followup
    return Meaning(
        probe="xid",
        code=code,
        name=name,
        title=title,
        meaning=row.meaning,
        class_name=class_name,
        verdict=verdict(
            class_name, _subject("xid", code, title) + (f" ({detail})" if detail else ""), certain
        ),
        bucket=bucket,
        followup=followup,
        companions=row.companions,
        detail=detail,
    )


def _row(rows: tuple[Xid, ...], on: int | None) -> tuple[Xid, bool]:
    """The row of a driver branch and whether it is sure."""
    if on is not None:
        for row in rows:
            if (row.since is None or on >= row.since) and (row.until is None or on <= row.until):
                return row, row.certain
    if len(rows) == 1:
        # A branch that did not know the number yet may have got it in an update of its own; without a driver it is the only one.
        return rows[0], rows[0].certain and on is None
    if on is None:
        return rows[-1], False
    worst = gravest({row.class_name for row in rows})
    return next(row for row in rows if row.class_name == worst), False


def _decoded(row: Xid, on: int | None, facts: Mapping[str, str]) -> Decoded | None:
    if row.class_name != "LINK_DECODE":
        return None
    if row.code == 74:
        registers = nvlink.numbers(facts.get("registers", ""))
        return nvlink.xid74(registers) if registers else None
    info = nvlink.numbers(facts.get("intr_info", ""))
    status = nvlink.numbers(facts.get("error_status", ""))
    severity = facts.get("severity", "")
    if info and status:
        return nvlink.nvlink5(row.code, info[0], status[0], on, severity)
    return None


def _new_action(facts: Mapping[str, str]) -> Meaning | None:
    number = nvlink.numbers(facts.get("new_action", ""))
    if number:
        return recovery_action(number[0])
    text = facts.get("new_text", "").strip().lower()
    for row in tables.recovery_actions().values():
        if row.text and row.text.lower() == text:
            return recovery_action(row.code)
    return recovery_action(-1) if text else None


def recovery_action(code: int) -> Meaning:
    """A value of NVML's field 230, or what XID 154 changed to."""
    return _coded("recovery_action", code, tables.recovery_actions().get(code))


def cuda(code: int | None) -> Meaning:
    """An error of the CUDA runtime or driver; they share their numbers."""
    return _coded("cuda", code, None if code is None else tables.cuda().get(code))


def nccl(code: int | None) -> Meaning:
    """A result of NCCL."""
    return _coded("nccl", code, None if code is None else tables.nccl().get(code))


def _by_text(reading: Reading) -> Meaning:
    """An error without a number, known by the text that engines print for it: fact `error` names the row."""
    for row in tables.engine_texts():
        if row.probe == reading.probe and row.name == reading.facts.get("error", ""):
            return Meaning(
                probe=row.probe,
                code=None,
                name=row.name,
                title=row.name.replace("_", " "),
                meaning=f"{row.meaning[0].upper()}{row.meaning[1:]}.",
                class_name=row.class_name,
                verdict=verdict(row.class_name, _subject(row.probe, None, row.meaning)),
                known=row.class_name != UNKNOWN,
            )
    return _unknown(reading.probe, None)


def _coded(probe: str, code: int | None, row: Coded | None) -> Meaning:
    if row is None:
        return _unknown(probe, code)
    title = row.text or row.names[0]
    return Meaning(
        probe=probe,
        code=code,
        name=" / ".join(row.names),
        title=title,
        meaning=row.meaning,
        class_name=row.class_name,
        verdict=verdict(row.class_name, _subject(probe, code, title), row.certain),
    )


_SEVERITIES = {"fatal": "FABRIC_FATAL", "nonfatal": "LINK_DEGRADED", "correctable": "INFO"}


def sxid(code: int, facts: Mapping[str, str] = _NO_FACTS) -> Meaning:
    """An NVSwitch error. The severity that the line prints decides; without one the table's, by the switch where it is known."""
    row = tables.sxids().get(code)
    said = facts.get("severity", "").lower().replace("-", "").replace("_", "")
    if row is None:
        found = _unknown("sxid", code)
        if said in _SEVERITIES:
            judged = verdict(_careful(_SEVERITIES[said]), _subject("sxid", code, f"printed as {said}"), False)  # fmt: skip
            return msgspec.structs.replace(found, verdict=judged)
        return found
    by_arch = {"lr10": row.lr10, "ls10": row.ls10}
    listed = {by_arch.get(facts.get("switch_arch", "").lower(), "")} - {""}
    listed = listed or {row.lr10, row.ls10, row.common} - {""}
    classes = {_SEVERITIES.get(word, row.device_class) for word in listed} or {row.device_class}
    class_name, certain = gravest(classes), len(classes) == 1 and bool(listed)
    if said in _SEVERITIES:
        class_name, certain = _SEVERITIES[said], True
    words = row.words.split(" | ")[0]
    return Meaning(
        probe="sxid",
        code=code,
        name=row.name,
        title=f"{row.unit}: {words}",
        meaning=f"An NVSwitch reports from {row.unit}; the driver prints it as: {row.words}",
        class_name=class_name,
        verdict=verdict(class_name, _subject("sxid", code, row.name), certain),
        detail=f"printed as {said}" if said in _SEVERITIES else "",
    )


def _careful(class_name: str) -> str:
    return gravest({class_name, UNKNOWN})


def _unknown(probe: str, code: int | None) -> Meaning:
    title = "not in the catalogue"
    return Meaning(
        probe=probe,
        code=code,
        name=UNKNOWN,
        title=title,
        meaning="The catalogue holds nothing about this number; a newer driver or library may print it.",
        class_name=UNKNOWN,
        verdict=verdict(UNKNOWN, _subject(probe, code, title)),
        known=False,
    )


_NAMES = {"xid": "XID", "sxid": "SXid", "cuda": "CUDA error", "nccl": "NCCL result", "recovery_action": "recovery action"}  # fmt: skip


def _subject(probe: str, code: int | None, title: str) -> str:
    number = "" if code is None or code < 0 else f" {code}"
    return f"{_NAMES[probe]}{number}, {title}"
