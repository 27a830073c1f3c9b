"""The gather and scatter kernels in Triton: for devices whose driver takes neither our fat binary nor NVRTC's output, and to read.

One program per piece; runs on a CPU under TRITON_INTERPRET=1, which is how the tests hold it against `reference`.
Importing this module needs triton; nothing imports it by itself.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

BLOCK = 512  # 8-byte words that one program moves at a time


@triton.jit
def mix_words(words, numbers):
    """splitmix64's finaliser over word + (number + 1) * golden ratio, in unsigned arithmetic."""
    z = words + (numbers + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def move_pieces(
    pieces, staging, staging_bytes, error, digests, gather: tl.constexpr, step: tl.constexpr
):  # fmt: skip
    """`pieces`: int64 [n, 5] of (address, offset, bytes, word, owner); `digests`: int64 [64], `error`: int64 [1], both zeroed."""
    row = pieces + tl.program_id(0) * 5
    address, offset, size = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    word, owner = tl.load(row + 3), tl.load(row + 4)
    misaligned = ((address | offset | size) % 16) != 0
    stranger = (owner < 0) | (owner >= 64)
    outside = (offset < 0) | (offset > staging_bytes) | (size > staging_bytes - offset)
    if misaligned:
        tl.atomic_or(error, 1)
    elif stranger:
        tl.atomic_or(error, 2)
    elif outside:
        tl.atomic_or(error, 4)
    else:
        there = address.to(tl.pointer_type(tl.int64))
        here = (staging + offset).to(tl.pointer_type(tl.int64))
        words = size // 8
        for start in range(0, words, step):
            at = start + tl.arange(0, step)
            inside = at < words
            if gather:
                held = tl.load(there + at, mask=inside, other=0)
                tl.store(here + at, held, mask=inside)
            else:
                held = tl.load(here + at, mask=inside, other=0)
                tl.store(there + at, held, mask=inside)
            mixed = mix_words(held.to(tl.uint64), word + at)
            share = tl.sum(tl.where(inside, mixed, 0).to(tl.int64), axis=0)
            tl.atomic_add(digests + owner, share)


def run(pieces: Any, staging: Any, *, gather: bool) -> tuple[Any, Any]:
    """Launches over `pieces` (int64 tensor [n, 5] of addresses in memory); returns (error, digests) as int64 tensors."""
    import torch

    error = torch.zeros(1, dtype=torch.int64, device=staging.device)
    digests = torch.zeros(64, dtype=torch.int64, device=staging.device)
    if pieces.shape[0]:
        move_pieces[(pieces.shape[0],)](
            pieces, staging.data_ptr(), staging.numel(), error, digests, gather=gather, step=BLOCK
        )
    return error, digests
