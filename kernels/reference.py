"""The kernels once more in torch: what their CUDA sources, their host twins and the Triton version are held against.

Slow and plain on purpose. Memory is one flat uint8 tensor; a piece's address is an index into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: (address, offset in staging, bytes, number of the first 8-byte word in its payload, owner)
Piece = tuple[int, int, int, int, int]

ALIGNMENT, MAX_OWNERS = 16, 64
MISALIGNED, OWNER, BOUNDS = 1, 2, 4
_WORD = 2**64


def mix(data: torch.Tensor, first: int) -> int:
    """The device digest of `data` (uint8, a multiple of 8 bytes), whose first word has number `first` in its payload."""
    import torch

    words = data.contiguous().view(torch.int64).tolist()
    total = 0
    for offset, word in enumerate(words):
        z = (word % _WORD + (first + offset + 1) * 0x9E3779B97F4A7C15) % _WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
        total += z ^ (z >> 31)
    return total % _WORD


def error_of(piece: Piece, staging_bytes: int) -> int:
    """The error word's bit for a piece that breaks a rule, 0 for a good one."""
    address, offset, size, _word, owner = piece
    if (address | offset | size) % ALIGNMENT:
        return MISALIGNED
    if owner >= MAX_OWNERS:
        return OWNER
    return BOUNDS if offset > staging_bytes or size > staging_bytes - offset else 0


def gather(
    memory: torch.Tensor, staging: torch.Tensor, pieces: Sequence[Piece]
) -> tuple[int, list[int]]:
    """Packs pieces of `memory` into `staging` (mutates it). Returns (error word, digest per owner)."""
    return _run(memory, staging, pieces, out=True)


def scatter(
    memory: torch.Tensor, staging: torch.Tensor, pieces: Sequence[Piece]
) -> tuple[int, list[int]]:
    """Hands pieces of `staging` out into `memory` (mutates it). Returns (error word, digest per owner)."""
    return _run(memory, staging, pieces, out=False)


def _run(
    memory: torch.Tensor, staging: torch.Tensor, pieces: Sequence[Piece], *, out: bool
) -> tuple[int, list[int]]:
    error, digests = 0, [0] * MAX_OWNERS
    for piece in pieces:
        wrong = error_of(piece, staging.numel())
        error |= wrong
        if wrong:
            continue
        address, offset, size, word, owner = piece
        there, here = memory[address : address + size], staging[offset : offset + size]
        source, target = (there, here) if out else (here, there)
        digests[owner] = (digests[owner] + mix(source, word)) % _WORD
        target.copy_(source)
    return error, digests
