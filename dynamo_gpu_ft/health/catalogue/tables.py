"""Reads the catalogue's tables from the package, once and when first asked, into rows with names and types.

First stop of every lookup. A table that cannot be read is a broken installation and raises what the file system said.
"""

from __future__ import annotations

import csv
import io
from functools import cache
from importlib import resources

import msgspec

from dynamo_gpu_ft.health.incidents import Action, Unusable


class Class(msgspec.Struct, frozen=True):
    """What one occurrence of a code of this class means; the sentence goes behind the name of the code."""

    unusable: Unusable
    action: Action
    lasting: bool
    certain: bool
    sentence: str


class Xid(msgspec.Struct, frozen=True):
    """One meaning of an XID number: on driver branches `since` to `until` (None: from the first, to the newest)."""

    code: int
    name: str
    since: int | None
    until: int | None
    class_name: str
    certain: bool
    title: str
    meaning: str
    bucket: str
    followup: str
    with_154_since: int | None
    seen_on: tuple[str, ...]
    companions: tuple[int, ...]


class NvlinkRule(msgspec.Struct, frozen=True):
    """One decode rule of XID 144 to 150. `v1`, `v2`: what the low 10 and the low 7 bits of intrInfo must be in the two layouts;
    `statuses`: values of errorStatus, empty for any; `promoted_class`: its class when the promote bit is set, "" when it has none."""

    code: int
    unit_v1: str
    unit_v2: str
    reason: int
    v1: int
    v2: int
    statuses: tuple[int, ...]
    class_name: str
    promoted_class: str
    bucket: str
    promoted_bucket: str
    followup: str
    severity: str
    origin: str
    here: str
    peer: str


class Register(msgspec.Struct, frozen=True):
    """One bit of a register that XID 74 prints; registers are counted from 1."""

    register: int
    bit: int
    class_name: str
    note: str


class Sxid(msgspec.Struct, frozen=True):
    """One NVSwitch error: its severity ("fatal", "nonfatal", "device", "") on the A100's and the H100's switch and in common code;
    `device_class` is its class where the driver prints no severity."""

    code: int
    name: str
    lr10: str
    ls10: str
    common: str
    device_class: str
    unit: str
    words: str


class Coded(msgspec.Struct, frozen=True):
    """A recovery action, a CUDA or an NCCL error: `names` under which it is printed, `text` that goes with it."""

    code: int
    names: tuple[str, ...]
    text: str
    class_name: str
    certain: bool
    meaning: str


class Text(msgspec.Struct, frozen=True):
    """What engines print when no number, name or text of a table is in it: the first pattern that is found decides."""

    probe: str
    name: str
    pattern: str
    class_name: str
    meaning: str


def rows(name: str) -> list[dict[str, str]]:
    """The lines of one table by column name, as they stand."""
    file = resources.files(__package__).joinpath(f"{name}.csv")
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


@cache
def classes() -> dict[str, Class]:
    return {
        r["class"]: Class(
            Unusable(r["unusable"]), Action(r["action"]), _yes(r["lasting"]), _yes(r["certain"]), r["sentence"]
        )
        for r in rows("classes")
    }  # fmt: skip


@cache
def xids() -> dict[int, tuple[Xid, ...]]:
    """By code; where a number was used again, one row per use, older first."""
    found: dict[int, tuple[Xid, ...]] = {}
    for r in rows("xid"):
        row = Xid(
            int(r["code"]), r["name"], _number(r["since"]), _number(r["until"]), r["class"], _yes(r["certain"]),
            r["title"], r["meaning"], r["bucket"], r["followup"], _number(r["with_154_since"]),
            tuple(r["seen_on"].split()), tuple(int(code) for code in r["companions"].split()),
        )  # fmt: skip
        found[row.code] = (*found.get(row.code, ()), row)
    return found


@cache
def nvlink5() -> tuple[NvlinkRule, ...]:
    return tuple(
        NvlinkRule(
            int(r["xid"]), r["unit_v1"], r["unit_v2"], int(r["reason"], 2), int(r["v1"], 2), int(r["v2"], 2),
            () if r["status"] == "any" else tuple(int(value, 16) for value in r["status"].split()),
            r["class"], r["promoted_class"], r["bucket"], r["promoted_bucket"], r["followup"], r["severity"],
            r["origin"], r["here"], r["peer"],
        )
        for r in rows("nvlink5")
    )  # fmt: skip


@cache
def xid74() -> dict[tuple[int, int], Register]:
    """By register, from 1, and bit."""
    found = [Register(int(r["register"]), int(r["bit"]), r["class"], r["note"]) for r in rows("xid74")]  # fmt: skip
    return {(row.register, row.bit): row for row in found}


@cache
def sxids() -> dict[int, Sxid]:
    found = [
        Sxid(
            int(r["code"]), r["name"], r["lr10"], r["ls10"], r["common"], r["device_class"], r["unit"], r["words"]
        )
        for r in rows("sxid")
    ]  # fmt: skip
    return {row.code: row for row in found}


@cache
def recovery_actions() -> dict[int, Coded]:
    """`text` is what XID 154 prints for it, "" where no driver was seen to print it."""
    return {
        int(r["code"]): Coded(int(r["code"]), (r["name"],), r["log_text"], r["class"], True, r["meaning"])
        for r in rows("recovery_action")
    }  # fmt: skip


@cache
def cuda() -> dict[int, Coded]:
    """Runtime and driver API share their numbers; `names` has both names where both exist."""
    return {
        int(r["code"]): Coded(
            int(r["code"]), tuple(n for n in (r["runtime_name"], r["driver_name"]) if n), r["text"], r["class"],
            _yes(r["certain"]), r["meaning"],
        )
        for r in rows("cuda")
    }  # fmt: skip


@cache
def nccl() -> dict[int, Coded]:
    return {
        int(r["code"]): Coded(int(r["code"]), (r["name"],), r["text"], r["class"], _yes(r["certain"]), r["meaning"])
        for r in rows("nccl")
    }  # fmt: skip


@cache
def engine_texts() -> tuple[Text, ...]:
    return tuple(
        Text(r["probe"], r["name"], r["pattern"], r["class"], r["meaning"])
        for r in rows("engine_text")
    )


@cache
def buckets() -> dict[str, str]:
    """NVIDIA's words for what to do, each with what it means."""
    return {r["bucket"]: r["advice"] for r in rows("buckets")}


def _yes(text: str) -> bool:
    return text == "yes"


def _number(text: str) -> int | None:
    return int(text) if text else None
