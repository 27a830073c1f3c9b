"""The ledger: which requests are open and which tokens each has, written before a token reaches a client.

Records are msgpack inside the arena's append-only log (generation and CRC per record are the core's). Replaying gives exactly the
open requests; when the log is full the open ones are written into its other half and the rest is forgotten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_gpu_ft import native

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.recovery")

ADMITTED, TOKENS, FINISHED = 1, 2, 3


class Admitted(msgspec.Struct, frozen=True, array_like=True):
    """A request came in. `sampling` is the engine adapter's own plain data; `namespace` names the KV it may use."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: dict[str, Any]
    namespace: str
    admitted_at: float


class Tokens(msgspec.Struct, frozen=True, array_like=True):
    """Tokens [position, position + len(token_ids)) of the output."""

    request_id: str
    position: int
    token_ids: list[int]


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """The request ended: "stop", "length", "abort", "error", or "abandoned" (its server is gone)."""

    request_id: str
    reason: str


class OpenRequest(msgspec.Struct):
    """What replay gives: a request nobody has finished, with every token that may have reached its client."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: dict[str, Any]
    namespace: str
    admitted_at: float
    token_ids: list[int] = msgspec.field(default_factory=list)

    @classmethod
    def of(cls, record: Admitted) -> OpenRequest:
        return cls(
            record.request_id,
            list(record.prompt_token_ids),
            record.sampling,
            record.namespace,
            record.admitted_at,
        )


_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {
    ADMITTED: msgspec.msgpack.Decoder(Admitted),
    TOKENS: msgspec.msgpack.Decoder(Tokens),
    FINISHED: msgspec.msgpack.Decoder(Finished),
}


def replay_records(records: Iterable[tuple[int, bytes]]) -> dict[str, OpenRequest]:
    """The open requests after `records`, in order of admission. A token record that does not continue its request at the
    right position ends that request's tokens there (nothing is guessed); undecodable records are skipped."""
    open_requests: dict[str, OpenRequest] = {}
    for kind, payload in records:
        decoder = _DECODERS.get(kind)
        if decoder is None:
            continue
        try:
            record = decoder.decode(payload)
        except msgspec.DecodeError:
            continue
        if kind == ADMITTED:
            open_requests[record.request_id] = OpenRequest.of(record)
        elif kind == FINISHED:
            open_requests.pop(record.request_id, None)
        else:
            request = open_requests.get(record.request_id)
            if request is not None and record.position <= len(request.token_ids):
                request.token_ids[record.position :] = record.token_ids
    return open_requests


def replay(arena: _core.Arena) -> list[OpenRequest]:
    """The open requests of an arena's ledger, oldest first."""
    return list(replay_records(arena.read_ledger().records).values())


class LedgerWriter:
    """The one writer of an arena's ledger. Every method returns with the record readable by others, or with `healthy` False.

    A failure never reaches the request: the ledger turns unhealthy, says so once, and later calls do nothing."""

    def __init__(self, arena: _core.Arena, *, takeover: bool = False) -> None:
        """Takes the ledger over and closes what a former server left open. Raises `CoreError` "busy" when one is alive."""
        self._core = native.load()
        self._encoder = msgspec.msgpack.Encoder()
        self._open: dict[str, OpenRequest] = {}
        self.healthy = True
        self.abandoned = replay(arena)
        self._log = arena.open_ledger(takeover=takeover)
        for request in self.abandoned:
            self._append(FINISHED, Finished(request.request_id, "abandoned"))

    def admitted(
        self, request_id: str, prompt_token_ids: list[int], sampling: dict[str, Any], namespace: str
    ) -> None:
        record = Admitted(request_id, prompt_token_ids, sampling, namespace, time.time())
        self._open[request_id] = OpenRequest.of(record)
        self._append(ADMITTED, record)

    def tokens(self, request_id: str, token_ids: list[int]) -> None:
        request = self._open.get(request_id)
        if request is None or not token_ids:
            return
        position = len(request.token_ids)
        request.token_ids += token_ids
        self._append(TOKENS, Tokens(request_id, position, token_ids))

    def finished(self, request_id: str, reason: str) -> None:
        if self._open.pop(request_id, None) is not None:
            self._append(FINISHED, Finished(request_id, reason))

    def move_to(self, arena: _core.Arena, *, takeover: bool = False) -> LedgerWriter:
        """A writer on another arena that knows this one's open requests; this one is closed. Raises `CoreError`."""
        moved = LedgerWriter(arena, takeover=takeover)
        moved._open = self._open
        try:
            moved._write_open()
        except self._core.CoreError as error:
            moved._fail(error)
        self.healthy = False
        self.close()
        return moved

    def close(self) -> None:
        self._log.close()

    def _append(self, kind: int, record: msgspec.Struct) -> None:
        if not self.healthy:
            return
        payload = self._encoder.encode(record)
        try:
            self._log.append(kind, payload)
        except self._core.CoreError as error:
            if error.code != "full" or not self._compact():
                self._fail(error)

    def _compact(self) -> bool:
        """Writes every open request, the newest record's effect included, into the other half."""
        try:
            self._log.begin_compaction()
            self._write_open()
            self._log.commit_compaction()
        except self._core.CoreError as error:
            self._fail(error)
            return False
        return True

    def _write_open(self) -> None:
        for request in self._open.values():
            admitted = Admitted(
                request.request_id,
                request.prompt_token_ids,
                request.sampling,
                request.namespace,
                request.admitted_at,
            )
            self._log.append(ADMITTED, self._encoder.encode(admitted))
            if request.token_ids:
                tokens = Tokens(request.request_id, 0, request.token_ids)
                self._log.append(TOKENS, self._encoder.encode(tokens))

    def _fail(self, error: Exception) -> None:
        if self.healthy:
            self.healthy = False
            _log.error("NOT PROTECTED: the request ledger stopped: %s", error)
