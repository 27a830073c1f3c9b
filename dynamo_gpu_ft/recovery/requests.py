"""What remains of a request whose engine died: pure arithmetic on token counts and limits.

An engine adapter turns `Remainder` into its own request; the client's stream goes on at position `generated`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remainder:
    """The rest of a request: prompt plus what was generated becomes the new prompt, limits shrink by what was generated."""

    prompt_token_ids: list[int]
    generated: int
    max_tokens: int | None
    min_tokens: int
    done: (
        bool  # nothing is left to generate: the engine died between the last token and its end mark
    )


def remainder(
    prompt: Sequence[int], generated: Sequence[int], *, max_tokens: int | None, min_tokens: int
) -> Remainder:
    """`max_tokens` None means no limit of its own. `generated` are the tokens in the ledger, all of them."""
    count = len(generated)
    left = None if max_tokens is None else max_tokens - count
    return Remainder(
        prompt_token_ids=[*prompt, *generated],
        generated=count,
        max_tokens=left,
        min_tokens=max(0, min_tokens - count),
        done=left is not None and left <= 0,
    )


@dataclass(frozen=True, slots=True)
class Split:
    """Where the tokens before the fault came from when the request went on."""

    before: int
    restored: int
    recomputed: int


def split(before: int, cached: int) -> Split:
    """`before` prompt and generated tokens, of which the new engine took `cached` without computing them."""
    restored = max(0, min(cached, before))
    return Split(before, restored, before - restored)
