"""The `explain` command: what a fault code means, what NVIDIA advises and what this project does about it, as a page for people.

A view of the catalogue; reads no device. Each subject (xid, sxid, ...) says its arguments and its answer in `SUBJECTS`. Without a
code it lists all of them. Exit code 1 for a code that the catalogue does not hold: the page then shows the careful answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

from dynamo_gpu_ft.cli import explain_log
from dynamo_gpu_ft.cli import explain_page as page
from dynamo_gpu_ft.cli.render import as_json
from dynamo_gpu_ft.health.catalogue import lookup, nvlink, tables
from dynamo_gpu_ft.health.catalogue.engine import engine_error
from dynamo_gpu_ft.health.catalogue.lookup import Meaning


@dataclass(frozen=True)
class Subject:
    """`add` declares arguments; `run` answers, prints and returns the exit code."""

    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", dest="subject", required=True)  # fmt: skip
    for name, subject in SUBJECTS.items():
        sub = subjects.add_parser(name, help=subject.help, description=subject.help)
        subject.add(sub)
        sub.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    return SUBJECTS[args.subject].run(args)


def number(text: str) -> int:
    """Decimal or hexadecimal."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; one like 79 or 0x4f is needed")
    return value


def driver(text: str) -> str:
    if lookup.branch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no driver version; one like 580 or 580.65.06 is needed"
        )
    return text


def _add_driver(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--driver", type=driver, help="driver version or its branch: numbers were used again")  # fmt: skip


def _add_xid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", type=number, help="the number behind `Xid (PCI:...):`")
    _add_driver(parser)
    parser.add_argument("--registers", default="", metavar="TEXT", help='of XID 74, as printed: "0x0, 0x0, 0x10000, ..."')  # fmt: skip
    parser.add_argument("--action", default="", metavar="TEXT", help='of XID 154, as printed last: "GPU Reset Required"')  # fmt: skip


def _xid(args: argparse.Namespace) -> int:
    if args.code is None:
        return _list(args, [lookup.xid(code, args.driver) for code in sorted(tables.xids())])
    facts = {"registers": args.registers, "new_text": args.action}
    return _show(
        args,
        f"XID {args.code}",
        lookup.xid(args.code, args.driver, facts),
        _xid_notes(args.code, args.driver),
    )


def _xid_notes(code: int, on: Union[str, None]) -> list[str]:
    rows = tables.xids().get(code, ())
    notes = []
    if len(rows) > 1:
        uses = [f"{row.name} {_branches(row.since, row.until)}" for row in rows]
        said = "" if on else "; say --driver for the one that counts"
        notes.append(f"The number was used again: {', '.join(uses)}{said}.")
    for row in rows[-1:]:
        if row.class_name == "LINK_DECODE":
            how = "--registers" if code == 74 else "`explain nvlink5` with intrInfo and errorStatus"
            notes.append(f"The message decides: {how} decodes it.")
        if row.seen_on:
            notes.append(f"Seen on {', '.join(row.seen_on)}.")
        if row.with_154_since:
            notes.append(
                f"Since driver {row.with_154_since} an XID 154 with the recovery action goes with it."
            )
    return notes


def _branches(since: Union[int, None], until: Union[int, None]) -> str:
    return f"since driver {since}" if until is None else f"on drivers {since} to {until}"


def _add_nvlink5(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", type=int, choices=range(144, 151), metavar="XID", help="144 to 150")
    parser.add_argument("intr_info", type=number, metavar="INTRINFO", help="first number in the brackets behind `Link NN`")  # fmt: skip
    parser.add_argument("error_status", type=number, metavar="ERRORSTATUS", help="the second")
    _add_driver(parser)
    parser.add_argument("--severity", choices=("Fatal", "Nonfatal"), default="", help="the word that the message prints")  # fmt: skip


def _nvlink5(args: argparse.Namespace) -> int:
    facts = {
        "intr_info": hex(args.intr_info),
        "error_status": hex(args.error_status),
        "severity": args.severity,
    }
    found = lookup.xid(args.code, args.driver, facts)
    notes = _xid_notes(args.code, args.driver)[-2:]
    decoded = nvlink.nvlink5(args.code, args.intr_info, args.error_status, lookup.branch(args.driver), args.severity)  # fmt: skip
    if decoded.rule is None:
        notes.insert(0, "Drivers before 575 and since then lay intrInfo out differently: --driver decides which is read.")  # fmt: skip
    else:
        rule = decoded.rule
        notes.insert(0, f"Origin {rule.origin}. On this GPU: {rule.here}. On the peer: {rule.peer}.")  # fmt: skip
    shown = f"XID {args.code} intrInfo 0x{args.intr_info:08x} errorStatus 0x{args.error_status:08x}"
    status = _show(args, shown, found, notes)
    return status or (1 if decoded.rule is None else 0)


def _add_sxid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", type=number, help="the number behind `SXid (PCI:...):`")
    parser.add_argument("--severity", default="", choices=("Fatal", "Non-fatal", "Correctable"), help="the word that the line prints: it decides")  # fmt: skip
    parser.add_argument("--switch", default="", choices=("lr10", "ls10"), help="lr10: the A100's switch; ls10: the H100's")  # fmt: skip


def _sxid(args: argparse.Namespace) -> int:
    facts = {"severity": args.severity, "switch_arch": args.switch}
    if args.code is None:
        return _list(args, [lookup.sxid(code, facts) for code in sorted(tables.sxids())])
    row = tables.sxids().get(args.code)
    notes = []
    if row is not None:
        where = (("A100's switch", row.lr10), ("H100's switch", row.ls10), ("any switch", row.common))  # fmt: skip
        said = ", ".join(f"{name}: {word}" for name, word in where if word)
        notes.append(f"The driver's own severity: {said or 'not printed by any open driver'}.")
    return _show(args, f"SXid {args.code}", lookup.sxid(args.code, facts), notes)


def _add_code(what: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("code", nargs="?", type=number, help=what)

    return add


def _recovery_action(args: argparse.Namespace) -> int:
    if args.code is None:
        return _list(args, [lookup.recovery_action(code) for code in tables.recovery_actions()])
    return _show(
        args, f"Recovery action {args.code}", lookup.recovery_action(args.code),
        ["NVML tells it in field 230; XID 154 says when it changes."],
    )  # fmt: skip


def _add_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("error", nargs="*", help="a number, a name, or the text of an error")


def _error(probe: str, label: str) -> Callable[[argparse.Namespace], int]:
    def answer(args: argparse.Namespace) -> int:
        text = " ".join(args.error).strip()
        codes = tables.cuda() if probe == "cuda" else tables.nccl()
        look_up = lookup.cuda if probe == "cuda" else lookup.nccl
        if not text:
            return _list(args, [look_up(code) for code in sorted(codes)])
        if text.isdigit():
            return _show(args, f"{label} {int(text)}", look_up(int(text)))
        # The bare text of an error counts as well: with the mark that engines put before it.
        reading = engine_error(text) or engine_error(f"{label}: {text}")
        found = None if reading is None else lookup.of(reading)
        if found is None:
            found = look_up(None)
        shown = label if found.code is None else f"{label} {found.code}"
        return _show(args, shown, found)

    return answer


def _show(
    args: argparse.Namespace, heading: str, found: Meaning, notes: Union[list[str], None] = None
) -> int:
    print(as_json(page.as_data(found, notes or ())) if args.json else page.as_text(heading, found, notes or ()))  # fmt: skip
    return 0 if found.known else 1


def _list(args: argparse.Namespace, found: list[Meaning]) -> int:
    print(as_json([page.as_data(each) for each in found]) if args.json else page.listing(found))
    return 0


SUBJECTS = {
    "xid": Subject("a fault number of the GPU driver, from the kernel log or NVML", _add_xid, _xid),
    "nvlink5": Subject("the registers of an XID 144 to 150", _add_nvlink5, _nvlink5),
    "sxid": Subject("a fault number of an NVSwitch", _add_sxid, _sxid),
    "recovery-action": Subject(
        "what the driver says a GPU needs", _add_code("value of NVML field 230"), _recovery_action
    ),
    "cuda": Subject("an error of CUDA, or the text that an engine printed", _add_error, _error("cuda", "CUDA error")),
    "nccl": Subject("a result of NCCL, or the text that an engine printed", _add_error, _error("nccl", "NCCL error")),
    "log": Subject("a whole log: one entry for each real fault, with the lines it rests on", explain_log.add, explain_log.run),
}  # fmt: skip
