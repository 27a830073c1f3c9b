"""One page of `explain` for people, and the same as data: what a code means, what NVIDIA advises, what this project does about it.

Takes a `Meaning` of the catalogue; pure, prints nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from dynamo_gpu_ft.cli.render import columns
from dynamo_gpu_ft.health.catalogue import lookup, tables
from dynamo_gpu_ft.health.catalogue.lookup import Meaning
from dynamo_gpu_ft.health.incidents import Action, Unusable

WIDTH = 96
_UNUSABLE = {
    Unusable.NOTHING: "nothing: all ranks go on",
    Unusable.CONTEXT: "the context: the rank that had it starts a new one, the GPU may be used at once",
    Unusable.LINK: "the link or fabric: the group of ranks cannot go on as it is",
    Unusable.GPU: "the GPU: no rank is put on it until it has been repaired",
    Unusable.NODE: "the machine: nothing on it is relied on",
}
_ACTION = {
    Action.NONE: "nothing to do",
    Action.REPORT: "report it: a line, an event, a metric",
    Action.RESTART_CONTEXT: "start the rank's process again, on the same GPU",
    Action.REBUILD_GROUP: "build the group of ranks anew, without the link",
    Action.DRAIN_AND_RESET_GPU: "let the GPU finish, then reset it",
    Action.RESET_GPU: "give up the ranks on it and reset the GPU",
    Action.RESET_FABRIC: "give up the groups on it and reset the fabric with its GPUs",
    Action.REBOOT_NODE: "give up what is on it and restart the machine",
}


def as_data(found: Meaning, notes: Iterable[str] = ()) -> dict[str, Any]:
    """Plain data of one page, for --json."""
    judged = found.verdict
    buckets = tables.buckets()
    return {
        "probe": found.probe,
        "code": found.code,
        "known": found.known,
        "name": found.name,
        "title": found.title,
        "meaning": found.meaning,
        "decoded": found.detail,
        "class": found.class_name,
        "advice": {
            when: {"bucket": bucket, "text": buckets.get(bucket, "")}
            for when, bucket in (("at_once", found.bucket), ("later", found.followup))
            if bucket
        },
        "verdict": {
            "unusable": judged.unusable.value,
            "action": judged.action.value,
            "lasting": judged.lasting,
            "certain": judged.certain,
            "reason": judged.reason,
        },
        "companions": [
            {"code": code, "title": lookup.xid(code).title} for code in found.companions
        ],
        "notes": list(notes),
    }


def as_text(heading: str, found: Meaning, notes: Iterable[str] = ()) -> str:
    """The page. `heading` names the code as people do: "XID 79"."""
    judged, buckets = found.verdict, tables.buckets()
    lines = [f"{heading}: {found.title}"]
    if found.known and found.code is not None and found.name != found.title:
        lines.append(found.name)
    lines += ["", "What it means", *_wrapped(found.meaning)]
    if found.detail:
        lines += _wrapped(f"This message: {found.detail}.")
    if found.bucket or found.followup:
        lines += ["", "What NVIDIA advises"]
        for when, bucket in (("at once", found.bucket), ("later", found.followup)):
            if bucket:
                lines += _entry(when, f"{bucket}: {buckets.get(bucket, '')}")
    elif found.probe in ("xid", "sxid") and found.known:
        lines += ["", "What NVIDIA advises", "  no action is published"]
    lines += ["", "What this project does when it happens once"]
    lines += _entry("unusable", _UNUSABLE[judged.unusable])
    lines += _entry("action", f"{judged.action.value}: {_ACTION[judged.action]}")
    lines += _entry("lasts", "until it is repaired" if judged.lasting else "it may be over by itself")  # fmt: skip
    if not judged.certain:
        lines += _entry("certain", "no: this is the careful answer; other signs may tell more")
    lines += _entry("rule", f"{found.class_name}: {tables.classes()[found.class_name].sentence}")
    if found.companions:
        lines += ["", "What often comes with it"]
        lines += [f"  XID {code:<5} {lookup.xid(code).title}" for code in found.companions]
    notes = list(notes)
    if notes:
        lines += ["", "Good to know"]
        for note in notes:
            lines += _wrapped(note)
    return "\n".join(lines)


def listing(found: Iterable[Meaning]) -> str:
    """One line per code."""
    rows = [
        (m.code, m.title[:56], m.class_name, m.verdict.unusable.value, m.verdict.action.value)
        for m in found
    ]
    return columns(("code", "", "class", "unusable", "action"), rows, indent="")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12)
