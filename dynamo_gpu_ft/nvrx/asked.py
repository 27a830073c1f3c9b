"""What ranks asked of their launcher, in a file of the launcher's own: one JSON line a wish, readable after every rank is gone.

NVRx answers some wishes with an exit status that says nothing about them, and a rank that asks is about to end; the file is what is left.
"""

from __future__ import annotations

import os

import msgspec

from dynamo_gpu_ft.nvrx.wishes import Wish

VARIABLE = "GPU_FT_LAUNCHER_ASKED"
_LONGEST = 64 << 10


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    wish: Wish
    reason: str
    rank: int = -1
    pid: int = -1


def note(path: str, asked: Asked) -> None:
    """Appends in one write, so that lines of several ranks stay whole. Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, msgspec.json.encode(asked) + b"\n")
    finally:
        os.close(descriptor)


def make(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def read(path: str) -> list[tuple[Wish, str]]:
    """Everything asked so far, in order. A torn or foreign line counts for nothing. Never raises."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_LONGEST).splitlines()
    except OSError:
        return []
    wishes = []
    for line in lines:
        try:
            asked = msgspec.json.decode(line, type=Asked)
        except msgspec.DecodeError:
            continue
        wishes.append((asked.wish, asked.reason))
    return wishes
