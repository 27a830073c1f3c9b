"""The open requests of the resilient core: who is open, which tokens each has, and the ledger that knows it too.

Every output of an engine passes `accept` before anybody sees it, so the ledger is never behind a client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dynamo_gpu_ft.engines.vllm.requests import OpenRequest, sampling_summary
from dynamo_gpu_ft.metrics import metrics
from dynamo_gpu_ft.recovery.ledger import LedgerWriter


class Streams:
    """Single-threaded (the event loop). `ledger` is None while there is no arena."""

    def __init__(self, on_change: Callable[[int], None] = lambda count: None) -> None:
        """`on_change` hears how many are open whenever that changes."""
        self._open: dict[str, OpenRequest] = {}
        self._on_change = on_change
        self.ledger: LedgerWriter | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[OpenRequest]:
        return iter(list(self._open.values()))

    def get(self, request_id: str) -> OpenRequest | None:
        return self._open.get(request_id)

    def name_of(self, request_id: str) -> str:
        """The id the client knows, of an open request."""
        entry = self._open.get(request_id)
        return entry.name if entry is not None else request_id

    def admit(self, request: Any) -> OpenRequest:
        entry = OpenRequest(request)
        self._open[request.request_id] = entry
        if self.ledger is not None:
            self.ledger.admitted(
                request.request_id,
                list(request.prompt_token_ids or ()),
                sampling_summary(request),
                "",
            )
        self._gauge()
        return entry

    def accept(self, output: Any) -> OpenRequest | None:
        """Takes one EngineCoreOutput in; None when its request is not open (aborted meanwhile)."""
        entry = self._open.get(output.request_id)
        if entry is None:
            return None
        if output.new_token_ids:
            entry.token_ids += output.new_token_ids
            if self.ledger is not None:
                self.ledger.tokens(output.request_id, list(output.new_token_ids))
        if output.finish_reason is not None:
            self.close(output.request_id, str(output.finish_reason))
        return entry

    def close(self, request_id: str, reason: str) -> None:
        if self._open.pop(request_id, None) is not None and self.ledger is not None:
            self.ledger.finished(request_id, reason)
        self._gauge()

    def _gauge(self) -> None:
        metrics().set("open_requests", len(self._open))
        self._on_change(len(self._open))
