"""A membership as bytes, and back with every doubt an error: what the stores write and what they refuse to read.

Shared by all stores. The bytes are JSON behind a checksum, so that a person can read them and a damaged one is never believed.
"""

from __future__ import annotations

import re
import zlib

import msgspec

from dynamo_gpu_ft.errors import ConfigError, StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import Membership

MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def checked_name(engine: str) -> str:
    """The engine's name, if it can be part of a file's or a key's."""
    if not _NAME.fullmatch(engine):
        raise ConfigError(
            "an engine cannot have this name",
            value=engine,
            rule="up to 100 letters, digits, _ . - of which the first is no dot or dash",
            remedy="another arena_name",
        )
    return engine


def packed(membership: Membership) -> bytes:
    body = msgspec.json.encode(membership)
    return f"{zlib.crc32(body):08x} ".encode() + body + b"\n"


def unpacked(data: bytes, engine: str, where: str, epoch: int | None = None) -> Membership:
    """Raises `StoreUnavailable` for anything but a whole membership of `engine` (and `epoch`). An older one in its place would let two
    lead at once, so damage is never passed over."""
    try:
        if len(data) > MAX_BYTES or not data.endswith(b"\n") or data[8:9] != b" ":
            raise ValueError(f"{len(data)} bytes that are not one whole line")
        if int(data[:8], 16) != zlib.crc32(data[9:-1]):
            raise ValueError("its checksum is wrong")
        membership = msgspec.json.decode(data[9:-1], type=Membership)
        if membership.engine != engine or (epoch or membership.epoch) != membership.epoch:
            raise ValueError(f"it is of engine {membership.engine!r}, epoch {membership.epoch}")
        checked(membership)
    except (ValueError, msgspec.DecodeError) as error:
        raise StoreUnavailable(
            "a membership is damaged",
            where=where,
            value=str(error),
            rule=f"a membership of engine {engine!r} as one line of JSON behind its checksum",
            remedy="end the engine, remove what is damaged and start it again",
        ) from None
    return membership


def checked(membership: Membership) -> None:
    """`ValueError` for a membership that cannot be: no store takes one or gives one."""
    shards = [member.shard for member in membership.members]
    ranks = sorted(member.rank for member in membership.members)
    if membership.epoch < 1 or membership.shards < 1:
        raise ValueError(f"epoch {membership.epoch} of {membership.shards} shards")
    if len(set(shards)) != len(shards) or not all(0 <= s < membership.shards for s in shards):
        raise ValueError(f"members for the shards {shards} of {membership.shards}")
    if len(set(ranks)) != len(ranks):
        raise ValueError(f"two members with one rank: {ranks}")
    if membership.settled and ranks != list(range(len(ranks))):
        raise ValueError(f"ranks with gaps: {ranks}")
