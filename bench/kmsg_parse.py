"""Lines per second of the kernel-log parser, beside Python's `re` with the obvious pattern and beside only finding the newlines.

Two logs in memory: a mixed one, of which one line in fifty is about a GPU, and one that is nothing but XIDs, with a storm in it.
"""

import random
import re
import statistics
import time
from collections.abc import Callable

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native

GOAL = 200_000  # lines/s: more than the kernel can print
_FOREIGN = (
    "usb 1-1: new high-speed USB device number {} using xhci_hcd",
    "EXT4-fs (nvme{}n1): mounted filesystem with ordered data mode. Quota mode: none.",
    'audit: type=1400 audit(1721721235.1:{}): apparmor="STATUS" operation="profile_load" profile="unconfined"',
    "IPv6: ADDRCONF(NETDEV_CHANGE): veth{}: link becomes ready",
    "nvidia-uvm: Loaded the UVM driver, major device number {}.",
    "NVRM: RmInitAdapter of device {} succeeded",
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=pod{},mems_allowed=0-1,task=python3",
)
_XIDS = (
    "NVRM: Xid (PCI:0000:{bus:02x}:00): 31, pid={pid}, name=python3, Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS "
    "GPCCLIENT_T1_8 faulted @ 0x73ac_1c000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE",
    "NVRM: Xid (PCI:0000:{bus:02x}:00): 43, pid={pid}, name=ray::WorkerDict, Ch 0000000a",
    "NVRM: Xid (PCI:0000:{bus:02x}:00): 95, pid='<unknown>', name=<unknown>, Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
    "NVRM: Xid (PCI:0018:{bus:02x}:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x004505c6 0x00000000 0x00000000 0x00000000 "
    "0x00000000 0x00000000 0x00000000)",
    "nvidia-nvswitch3: SXid (PCI:0000:{bus:02x}:00.0): 20034, Fatal, Link 32 LTSSM Fault Up (First)",
)
_OBVIOUS = re.compile(
    rb"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),(?: pid=(\d+), name=([^,]+),)? (.*)"
)


def measure(options: Options) -> list[Row]:
    lines, rounds = (50_000, 3) if options.quick else (500_000, 9)
    rows: list[Row] = []
    for name, one_in in (("mixed", 50), ("xid", 1)):
        options.say(f"{name}: {lines} lines, one in {one_in} about a GPU")
        log = make_log(lines, one_in)
        figures: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, do in WAYS.items():
                started = time.perf_counter()
                do(log)
                figures[way].append(lines / (time.perf_counter() - started))
        rows += _rows(name, log, figures)
    return rows


def make_log(lines: int, one_in: int) -> bytes:
    """A log as `dmesg` prints it, the same in every run: 10,000 lines a second, 29 GPUs, 4 processes on each."""
    choose = random.Random(20)
    out = []
    for n in range(lines):
        bus = choose.randrange(29)
        text = (
            _XIDS[n // one_in % len(_XIDS)].format(bus=bus, pid=4000 + choose.randrange(4) * 29 + bus)
            if n % one_in == 0
            else _FOREIGN[n % len(_FOREIGN)].format(n)
        )  # fmt: skip
        out.append(f"[{n / 10_000 + 5:13.6f}] {text}\n")
    return "".join(out).encode()


def by_core(log: bytes) -> int:
    return len(native.load().parse_log(log, format="text"))


def by_re(log: bytes) -> int:
    """Line by line, as a follower gets them."""
    return sum(_OBVIOUS.search(line) is not None for line in log.split(b"\n"))


def by_memchr(log: bytes) -> int:
    """CPython counts one byte with memchr."""
    return log.count(b"\n")


WAYS: dict[str, Callable[[bytes], int]] = {"core": by_core, "re": by_re, "memchr": by_memchr}


def _rows(name: str, log: bytes, figures: dict[str, list[float]]) -> list[Row]:
    ours, pattern, scan = figures["core"], figures["re"], figures["memchr"]
    usual = statistics.median(pattern)
    size = len(log) / log.count(b"\n")
    records = by_core(log)
    return [
        row(
            f"kmsg_parse.{name}",
            statistics.median(ours),
            "lines/s",
            baseline=usual,
            ratio=statistics.median(a / b for a, b in zip(ours, pattern, strict=True)),
            target=GOAL / usual,
            note=f"{spread(ours)}; {size:.0f} bytes a line, {records} records; baseline: Python's re, line by line, which sees XIDs "
            f"without MIG and no SXids; the target stands for {GOAL} lines/s",
        ),
        row(
            f"kmsg_parse.{name}.scan",
            statistics.median(ours) * size / 1e6,
            "MB/s",
            baseline=statistics.median(scan) * size / 1e6,
            ratio=statistics.median(a / b for a, b in zip(ours, scan, strict=True)),
            note="baseline: only finding the newlines (memchr)",
        ),
    ]
