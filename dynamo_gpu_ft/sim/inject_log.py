"""`inject log`: one line in the NVIDIA driver's own format, appended to a file that a log reader follows.

Formats: NVIDIA/open-gpu-kernel-modules 595.45.04. It writes to /dev/kmsg only when that is asked for by its flag: the kernel's log belongs
to the whole machine, and everybody who reads it would believe it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import time
from pathlib import Path

from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.topology import bdf_of

KMSG = "/dev/kmsg"
VARIANTS = ("plain", "unknown-pid", "no-pid", "function", "mig", "mig-ci", "caused-by")
#: What the driver says behind the code, in its wording, for the codes that are tried most.
MESSAGES = {
    13: "Graphics SM Warp Exception on (GPC 1, TPC 3, SM 0): Out Of Range Address",
    31: "Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_8 faulted @ 0x73ac_1c000000. "
    "Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE",
    43: "Ch 00000008",
    45: "Ch 00000008",
    48: "An uncorrectable double bit error (DBE) has been detected on GPU",
    63: "Row Remapper: New row marked for remapping, reset gpu to activate.",
    64: "Row Remapper: Error writing new row",
    74: "NVLink: fatal error detected on link 14(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)",
    79: "GPU has fallen off the bus.",
    94: "Contained: SM (0x1). RST: No, D-RST: No",
    95: "Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
    119: "Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801813 0x4c).",
    154: "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--file", metavar="PATH", help="append there; made if it is missing")
    where.add_argument(
        "--kmsg", action="store_true", help=f"write to {KMSG}: the whole machine sees it"
    )
    where.add_argument("--print", action="store_true", help="only print the line")
    parser.add_argument(
        "--as", dest="form", choices=("text", "kmsg"), default="text",
        help="text: the bare message; kmsg: with the prefix of /dev/kmsg records",
    )  # fmt: skip
    faults = parser.add_subparsers(dest="fault", metavar="FAULT", required=True)
    one = faults.add_parser("xid", help="an XID of a GPU")
    one.add_argument("code", type=int)
    one.add_argument("--bdf", required=True, help="PCI address of the GPU, 0000:9b:00")
    one.add_argument("--variant", choices=VARIANTS, default="plain")
    one.add_argument("--pid", type=int, default=4242)
    one.add_argument("--name", default="python3", help="name of the process")
    one.add_argument("--gi", type=int, default=5)
    one.add_argument("--ci", type=int, default=0)
    one.add_argument("--previous", type=int, default=48, help="of the variant caused-by")
    one.add_argument("--message", help="what follows the code")
    one = faults.add_parser("sxid", help="an SXid of an NVSwitch")
    one.add_argument("code", type=int)
    one.add_argument("--bdf", required=True, help="PCI address of the switch")
    one.add_argument("--link", type=int, default=14)
    one.add_argument("--severity", choices=("Fatal", "Non-fatal", "Correctable"), default="Fatal")
    one.add_argument("--switch", type=int, default=0)
    one = faults.add_parser(
        "fallen", help="the driver's line without an XID for a GPU that is off the bus"
    )
    one.add_argument("--bdf", required=True)


def run(args: argparse.Namespace) -> int:
    message = message_of(args)
    if args.print:
        print(message)
        return 0
    target = KMSG if args.kmsg else args.file
    if target == KMSG and not args.kmsg:
        raise GpuFtError(
            "the kernel's log is written by its flag only", where=KMSG, remedy="--kmsg"
        )
    line = message
    if args.form == "kmsg" and not args.kmsg:
        line = f"4,{time.monotonic_ns() // 1000},{time.monotonic_ns() // 1000},-;{message}"
    try:
        descriptor = os.open(
            target, os.O_WRONLY | os.O_APPEND | (0 if args.kmsg else os.O_CREAT), 0o644
        )
        try:
            if not args.kmsg:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise GpuFtError(
            "a line cannot be written", where=str(Path(target)), value=error.strerror
        ) from error
    print(line)
    return 0


def message_of(args: argparse.Namespace) -> str:
    """The driver's message, without any prefix of a log."""
    place = bdf_of(args.bdf)
    if not place:
        raise GpuFtError(
            "that is no PCI address", where="--bdf", value=args.bdf, rule="like 0000:9b:00"
        )
    if args.fault == "fallen":
        return f"NVRM: GPU {place}.0: GPU has fallen off the bus."
    if args.fault == "sxid":
        return (
            f"nvidia-nvswitch{args.switch}: SXid (PCI:{place}.0): {args.code:05d}, {args.severity}, Link {args.link:02d} "
            f"simulated error"
        )
    return _xid(args, place)


def _xid(args: argparse.Namespace, place: str) -> str:
    where = {
        "function": f"PCI:{place}.0",
        "mig": f"PCI:{place} GPU-I:{args.gi:02d}",
        "mig-ci": f"PCI:{place} GPU-I:{args.gi:02d} GPU-CI:{args.ci:02d}",
    }.get(args.variant, f"PCI:{place}")
    who = {
        "no-pid": "",
        "unknown-pid": "pid='<unknown>', name=<unknown>, ",
    }.get(args.variant, f"pid={args.pid}, name={args.name}, ")
    why = f" caused by previous Xid {args.previous}" if args.variant == "caused-by" else ""
    said = args.message if args.message is not None else MESSAGES.get(args.code, "simulated error")
    return f"NVRM: Xid ({where}): {args.code}, {who}{said}{why}"
