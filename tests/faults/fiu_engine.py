"""A worker as far as its disk goes: an arena, its log behind it, told over a pipe what to do. Runs under `fiu-run`.

Started by test_disk_fiu.py. Reads a command per line on standard input and answers each with a line of JSON: "open" opens the log, "spill N" seals N blocks,
spills them and reports as a worker does; "read" reads everything that is committed and checks it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import sys
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.kv import disk
from dynamo_gpu_ft.kv.fillers import DiskFiller

SLOT = 6000
RECORD = b"fiu"


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def payload_of(name: bytes) -> bytes:
    return hashlib.shake_128(name).digest(SLOT)


class Engine:
    def __init__(self, arena_path: str, folder: str) -> None:
        core = native.load()
        self.said = Said()
        logging.getLogger("dynamo_gpu_ft.kv").addHandler(self.said)
        token = os.urandom(16)
        self.arena = core.Arena.create(arena_path, slot_bytes=SLOT, slots=600, ledger_bytes=1 << 16)
        config = Config.load({"disk_dir": folder}, environ={})
        self.arena.begin_epoch(token, floor=disk.epoch_floor(config, [0]))
        space = self.arena.add_namespace(RECORD)
        self.writer = self.arena.attach_writer(shard=0, token=token, namespace=space)
        self.next = int.from_bytes(os.urandom(4), "big")
        self.config = config
        self.log: Any = None
        self.filler: Any = None

    def open(self) -> None:
        core = native.load()
        # io_uring makes no system call that could be made to fail, and cut transfers do not suit O_DIRECT.
        how = {"backend": "threads", "direct": False, "segment_bytes": 1 << 18, "window_ms": 1}
        path = disk.folder(self.config, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.log = core.DiskLog.open(str(path), **how)
            self.log.add_namespace(RECORD)
            self.filler = DiskFiller(
                core.Backing(self.writer, self.log, queue_blocks=600), self.log
            )
        except core.CoreError as error:
            self.said.lines.append(f"NOT PROTECTED on disk: {error}")

    def spill(self, count: int) -> None:
        from dynamo_gpu_ft.kv.blocks import BlockRef

        blocks = []
        for _ in range(count):
            name = b"%d" % self.next
            self.next += 1
            claim = self.writer.claim(block_hash=name, parent_hash=None, position=0)
            ctypes.memmove(claim.address, payload_of(name), SLOT)
            claim.seal()
            blocks.append(BlockRef(0, name, None, 0))
        if self.filler is not None:
            self.filler.spill(blocks)
            self.filler.wait(30)

    def answer(self, command: str) -> dict[str, Any]:
        word, _, number = command.partition(" ")
        core = native.load()
        good, bad = [], []
        if word == "open":
            self.open()
        elif word == "spill":
            self.spill(int(number))
        elif word == "read" and self.log is not None:
            for entry in self.log.entries():
                name = entry.key.block_hash
                try:
                    right = self.log.read(entry) == payload_of(name)
                except core.CoreError as error:
                    bad.append(f"{name.decode()}: {error}")
                    continue
                (good if right else bad).append(name.decode())
        if self.filler is not None:
            self.filler.report(now=float("inf"))
            self.filler._next_report = 0.0
        stats = self.log.stats() if self.log is not None else {}
        backing = self.filler._backing.stats() if self.filler is not None else {}
        return {
            "good": good,
            "bad": bad,
            "said": self.said.lines,
            "sealed": self.arena.counts()["sealed"],
            "spilled": backing.get("spilled_blocks", 0),
            "writable": stats.get("writable", False),
            "reason": stats.get("reason", "none"),
        }


def main() -> None:
    engine = Engine(*sys.argv[1:])
    print(json.dumps({"pid": os.getpid()} | engine.answer("")), flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.answer(line.strip())), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
