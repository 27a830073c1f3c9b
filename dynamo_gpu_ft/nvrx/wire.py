"""What a rank and the built-in monitor say to each other over a Unix socket: four small messages, one to a packet.

The whole state goes in each packet, so a lost one is made good by the next; times are CLOCK_MONOTONIC, which all processes of a machine
share.
"""

from __future__ import annotations

from typing import Union

import msgspec

from dynamo_gpu_ft.nvrx.wishes import Wish

#: Where the monitor listens, and the word that names one start of one rank: a former start's packets count for nothing.
SOCKET_VARIABLE = "GPU_FT_MONITOR_SOCKET"
KEY_VARIABLE = "GPU_FT_MONITOR_KEY"
LONGEST = 4096  # bytes of a packet


class _Packet(msgspec.Struct, frozen=True, kw_only=True, tag_field="say"):
    key: str


class Hello(_Packet, frozen=True, kw_only=True, tag="hello"):
    rank: int
    pid: int


class State(_Packet, frozen=True, kw_only=True, tag="state"):
    """The rank is in `section` since second `since`; also the sign that its process runs."""

    section: str
    since: float


class Ask(_Packet, frozen=True, kw_only=True, tag="ask"):
    wish: Wish
    reason: str


class Bye(_Packet, frozen=True, kw_only=True, tag="bye"):
    """The rank ends its side on purpose: it is watched by its exit alone from now on."""


Packet = Union[Hello, State, Ask, Bye]


def encode(packet: Packet) -> bytes:
    return msgspec.json.encode(packet)


def decode(data: bytes) -> Packet | None:
    """None for what is no packet of ours."""
    try:
        packet: Packet = msgspec.json.decode(data, type=Packet)
    except msgspec.DecodeError:
        return None
    return packet
