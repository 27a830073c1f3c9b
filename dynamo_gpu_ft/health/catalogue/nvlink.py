"""Decodes link errors: XID 144 to 150 (intrInfo and errorStatus, two layouts) and the seven registers of XID 74.

Called by `lookup` with the numbers of one message; pure. No rule is an outcome of its own, never "nothing to do".
"""

from __future__ import annotations

import re
from typing import Union

import msgspec

from dynamo_gpu_ft.health.catalogue import tables
from dynamo_gpu_ft.health.catalogue.tables import NvlinkRule, Register
from dynamo_gpu_ft.health.catalogue.verdicts import gravest, gravity

V2_SINCE = 575
# Behind the unit RLW_RXPIPE: set when the error was promoted to a fatal one.
_PROMOTE_BIT = {1: 10, 2: 7}
_CODES = range(144, 151)


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """What a message says. `rule` is None, and `registers` empty, where no rule fits.

    layout   1 or 2; 0 where the driver is not known and the layouts do not agree
    certain  false where no rule fits, or the layouts or the printed severity contradict the rule
    words    what was found, for people
    """

    class_name: str
    certain: bool
    words: str
    rule: NvlinkRule | None = None
    registers: tuple[Register, ...] = ()
    promoted: bool = False
    layout: int = 0


def nvlink5(
    code: int, intr_info: int, error_status: int, branch: int | None, severity: str = ""
) -> Decoded:
    """One message of XID 144 to 150. `severity` is the word that the driver printed: "Fatal", "Nonfatal" or ""."""
    if code not in _CODES:
        raise ValueError(f"XID {code} has no NVLink 5 rules; they exist for 144 to 150")
    if branch is not None:
        return _severity_checked(
            _in_layout(code, intr_info, error_status, 2 if branch >= V2_SINCE else 1), severity
        )
    both = [_in_layout(code, intr_info, error_status, layout) for layout in (2, 1)]
    ruled = [found for found in both if found.rule is not None]
    if len(ruled) == 2 and ruled[0].class_name != ruled[1].class_name:
        worst = gravest({found.class_name for found in ruled})
        chosen = next(found for found in ruled if found.class_name == worst)
        return _severity_checked(msgspec.structs.replace(chosen, certain=False, layout=0), severity)
    return _severity_checked((ruled or both)[0], severity)


def _in_layout(code: int, intr_info: int, error_status: int, layout: int) -> Decoded:
    reason = intr_info >> 20 & 0x3F
    low = intr_info & (0x3FF if layout == 1 else 0x7F)
    for rule in tables.nvlink5():
        fits = (
            rule.code == code
            and rule.reason == reason
            and low == (rule.v1 if layout == 1 else rule.v2)
            and (not rule.statuses or error_status in rule.statuses)
        )
        if not fits:
            continue
        promoted = bool(rule.promoted_class) and bool(intr_info >> _PROMOTE_BIT[layout] & 1)
        unit = rule.unit_v1 if layout == 1 else rule.unit_v2
        words = f"{unit}, {rule.severity.rstrip('*?').lower()}"
        return Decoded(
            class_name=rule.promoted_class if promoted else rule.class_name,
            certain=not rule.severity.endswith("?"),
            words=words + (", promoted to fatal" if promoted else ""),
            rule=rule,
            promoted=promoted,
            layout=layout,
        )
    words = f"no rule for intrInfo 0x{intr_info:08x}, errorStatus 0x{error_status:08x} in layout V{layout}"
    return Decoded(class_name="LINK_SUSPECT", certain=False, words=words, layout=layout)


def _severity_checked(found: Decoded, severity: str) -> Decoded:
    """The printed severity where it contradicts the rule, or stands in for one that is missing: the graver of both, unsure."""
    said = severity.strip().lower().replace("-", "")
    mild = found.rule is None or found.rule.severity.startswith("Non-fatal")
    if said == "fatal" and mild and gravity(found.class_name) < gravity("LINK_DECODE"):
        return msgspec.structs.replace(
            found, class_name="LINK_DECODE", certain=False, words=f"{found.words}; printed as fatal"
        )
    # NOTE: four rules of 149 (NETIR_MFDE_EVENT) are fatal as a rule, and NVIDIA lets the printed severity decide.
    if said == "nonfatal" and found.rule is not None and found.rule.severity == "Fatal**":
        return msgspec.structs.replace(
            found, class_name="LINK_SUSPECT", certain=False, words=f"{found.words}; printed as nonfatal"
        )  # fmt: skip
    return found


def xid74(registers: Union[list[int], tuple[int, ...]]) -> Decoded:
    """The registers of one XID 74 in the order in which they are printed; the gravest bit decides."""
    set_bits = [
        (number, bit)
        for number, value in enumerate(registers, 1)
        for bit in range(value.bit_length())
        if value >> bit & 1
    ]
    known = tables.xid74()
    found = tuple(known[place] for place in set_bits if place in known)
    strange = [place for place in set_bits if place not in known]
    if not found:
        what = "no register has a bit set" if not set_bits else f"no rule for {_places(strange)}"
        return Decoded(class_name="LINK_DECODE", certain=False, words=what)
    class_name = gravest({row.class_name for row in found} | ({"LINK_SUSPECT"} if strange else set()))  # fmt: skip
    words = "; ".join(f"register {row.register} bit {row.bit}: {row.note}" for row in found)
    words += f"; no rule for {_places(strange)}" if strange else ""
    return Decoded(class_name=class_name, certain=not strange, words=words, registers=found)


def _places(places: list[tuple[int, int]]) -> str:
    return ", ".join(f"register {register} bit {bit}" for register, bit in places)


_NUMBER = re.compile(r"0x([0-9a-fA-F]{1,16})\b|\b(\d{1,20})\b")


def numbers(text: str) -> list[int]:
    """The numbers in the text of a fact, hexadecimal or decimal, in their order: "0x0, 0x10000" -> [0, 65536]."""
    return [int(m[1], 16) if m[1] else int(m[2]) for m in _NUMBER.finditer(text)]
