"""vLLM's requests in recovery's words, and back: what the ledger keeps, and the request that continues a lost one.

Pure apart from copying; `core` decides when.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dynamo_gpu_ft.events import RequestResumed
from dynamo_gpu_ft.recovery.requests import Remainder, remainder, split


@dataclass(slots=True)
class OpenRequest:
    """A request the client still waits for. `sent_epoch` is the epoch of the engine it was last sent to, 0 for none."""

    request: Any  # vLLM's EngineCoreRequest as first admitted; never changed
    token_ids: list[int] = field(default_factory=list)
    sent_epoch: int = 0
    resumed: bool = False  # the current engine has not answered yet since it was sent again

    @property
    def name(self) -> str:
        """The id the client knows."""
        return str(self.request.external_req_id or self.request.request_id)


def sampling_summary(request: Any) -> dict[str, Any]:
    """Sampling parameters as plain data for the ledger; what cannot be encoded is kept as text."""
    if request.sampling_params is None:
        return {"pooling": True}
    plain = msgspec.to_builtins(request.sampling_params, enc_hook=repr, str_keys=True)
    return plain if isinstance(plain, dict) else {"params": plain}


def rest_of(entry: OpenRequest) -> Remainder:
    params = entry.request.sampling_params
    return remainder(
        entry.request.prompt_token_ids or [],
        entry.token_ids,
        max_tokens=params.max_tokens if params is not None else None,
        min_tokens=params.min_tokens if params is not None else 0,
    )


def continuation(entry: OpenRequest) -> Any:
    """The request to send to a new engine: the original when nothing was generated, else prompt + generated with
    limits adjusted. Prompt logprobs were delivered with the first token and are not asked for again."""
    request = copy.copy(entry.request)
    if not entry.token_ids or request.sampling_params is None:
        return request
    rest = rest_of(entry)
    params = request.sampling_params.clone()
    params.max_tokens, params.min_tokens = rest.max_tokens, rest.min_tokens
    params.prompt_logprobs = None
    request.prompt_token_ids = rest.prompt_token_ids
    request.sampling_params = params
    return request


def why_not(request: Any) -> str | None:
    """Why a request that has generated tokens cannot be continued exactly, None when it can.

    Grammar state and per-output penalties live in the dead engine; continuing without them would change the answer
    silently, so such a request ends with an error that the client may retry."""
    params = request.sampling_params
    if request.resumable:
        return "streaming input sessions cannot be resumed"
    if request.prompt_embeds is not None:
        return "prompt embeddings cannot be extended with generated tokens"
    if params is None:
        return None
    if getattr(params, "structured_outputs", None) is not None:
        return "the state of a grammar cannot be resumed yet"
    if params.frequency_penalty or params.presence_penalty:
        return "penalties over generated tokens cannot be resumed yet"
    return None


def resumed_event(entry: OpenRequest, had: int, output: Any, epoch: int) -> RequestResumed:
    """From the first output of a request that was sent again with `had` tokens."""
    stats = output.prefill_stats
    cached = stats.num_cached_tokens if stats is not None else 0
    parts = split(len(entry.request.prompt_token_ids or ()) + had, cached)
    return RequestResumed(
        epoch=epoch,
        request_id=entry.name,
        tokens_before=had,
        tokens_restored=parts.restored,
        tokens_recomputed=parts.recomputed,
    )
