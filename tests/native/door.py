"""Small helpers around the native door: fill an arena, read it back, name the error.

Payloads are a pure function of the block hash, so that every test can check every byte it gets back.
"""

from __future__ import annotations

import ctypes
import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dynamo_gpu_ft import native

SLOT_BYTES = 1000  # not a multiple of anything
FOREVER = 2**32 - 1  # the end of a pin that lasts until it is unpinned
core = native.load()


def payload_of(block_hash: bytes, size: int = SLOT_BYTES) -> bytes:
    return hashlib.shake_128(block_hash).digest(size)


def name(i: int, prefix: str = "b") -> bytes:
    return f"{prefix}{i}".encode()


def token() -> bytes:
    return uuid.uuid4().bytes


def code_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Status name of the error that `call` must raise; its message must say more than a code."""
    with pytest.raises(core.CoreError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value)) > 30, str(caught.value)
    return caught.value.code


def seal(writer: Any, block_hash: bytes, parent: bytes | None, position: int) -> bool:
    """Stores one block through a claim; False when it was there already."""
    claim = writer.claim(block_hash=block_hash, parent_hash=parent, position=position)
    if claim is None:
        return False
    ctypes.memmove(claim.address, payload_of(block_hash), SLOT_BYTES)
    claim.seal()
    return True


def seal_chain(writer: Any, hashes: Sequence[bytes]) -> None:
    for i, block_hash in enumerate(hashes):
        seal(writer, block_hash, hashes[i - 1] if i else None, i)


def read_back(writer: Any, block_hash: bytes, parent: bytes | None) -> bytes:
    found = writer.find(block_hash=block_hash, parent_hash=parent)
    data = ctypes.string_at(found.address, found.payload_bytes)
    found.verify()
    return data
