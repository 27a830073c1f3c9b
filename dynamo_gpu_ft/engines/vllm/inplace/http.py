"""`GET /fault_tolerance/status` and `POST /fault_tolerance/apply` on the HTTP server of `dynamo-gpu-ft serve`.

The paths, bodies and codes are those of vLLM's and SGLang's own fault tolerance; what stands behind them is recovery in place. An ASGI
middleware around vLLM's server, which knows nothing of it; it asks for the server's API key like everything that changes something.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

MIDDLEWARE = "dynamo_gpu_ft.engines.vllm.inplace.http.FaultTolerance"
STATUS, APPLY = "/fault_tolerance/status", "/fault_tolerance/apply"
INSTRUCTIONS = ("pause", "retry", "scale_down")
LONGEST_BODY = 64 << 10

#: Keys of which a request must carry one as bearer; empty: none is asked for. Set by `serve`.
keys: list[str] = []


class Bad(Exception):
    """Status 400 with this text."""


def parse(body: bytes) -> tuple[str, dict[str, Any]]:
    """(instruction, params). Raises `Bad`."""
    try:
        found = json.loads(body or b"null")
    except ValueError as error:
        raise Bad(f"Invalid JSON format: {error}") from None
    if not isinstance(found, dict):
        raise Bad("Request body must be a JSON object.")
    instruction, params = found.get("instruction"), found.get("params", {})
    if not instruction:
        raise Bad("'instruction' is required.")
    if instruction not in INSTRUCTIONS:
        raise Bad(f"Invalid instruction: {instruction!r}; one of {', '.join(INSTRUCTIONS)}.")
    if not isinstance(params, dict):
        raise Bad("'params' must be an object.")
    return str(instruction), params


def status_of(core: Any, *, paused: bool) -> dict[str, Any]:
    """What the server knows of its engine and its group, from its own memory. `core`: the resilient core."""
    group, serving, open_requests = core.standing()
    if core.failed is not None:
        state = "dead"
    elif not serving or group.state not in ("none", "serving"):
        state = "unhealthy"
    else:
        state = "healthy"
    return {
        "schema_version": 1,
        "total_engines": 1,
        "engines": [
            {
                "id": 0,
                "status": state,
                "reason": core.failed or (group.reason if state != "healthy" else ""),
                "paused": paused,
                "in_place": bool(group.members),
                "state": group.state,
                "epoch": group.epoch,
                "members": {str(shard): pid for shard, pid in sorted(group.members.items())},
                "lost": list(group.lost),
                "standbys": group.standbys,
                "recoveries": group.recoveries,
                "open_requests": open_requests,
            }
        ],
    }


class FaultTolerance:
    """The middleware; one per server."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._paused = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] not in (STATUS, APPLY):
            await self._app(scope, receive, send)
            return
        wanted = "GET" if scope["path"] == STATUS else "POST"
        if scope["method"] != wanted:
            await _reply(send, 405, {"error": f"{wanted} {scope['path']}"})
        elif not authorised(scope.get("headers", ())):
            await _reply(send, 401, {"error": "Unauthorized"})
        else:
            client = scope["app"].state.engine_client
            await _reply(send, *await self._answer(client, wanted, receive))

    async def _answer(self, client: Any, method: str, receive: Any) -> tuple[int, dict[str, Any]]:
        core = client.engine_core
        if method == "GET":
            return 200, status_of(core, paused=self._paused)
        try:
            instruction, _ = parse(await _body(receive))
        except Bad as bad:
            return 400, {"error": str(bad)}
        if instruction == "scale_down":
            return 409, {
                "error": "scale_down is refused: vLLM cannot go on with fewer tensor-parallel ranks; a lost one is replaced, by a "
                "standby (DYN_GPU_FT_STANDBYS) or a new process. DYN_GPU_FT_RESTART_TP starts the next engine smaller"
            }
        request_id = str(uuid.uuid4())
        if instruction == "pause":
            self._paused = True
            _behind(lambda: client.pause_generation(mode="keep", clear_cache=False))
        else:
            self._paused = False
            core.look()
            _behind(client.resume_generation)
        text = f"Request accepted; poll {STATUS} for updates."
        return 202, {"message": text, "request_id": request_id}


def authorised(headers: Any) -> bool:
    if not keys:
        return True
    given = next((v for k, v in headers if k.lower() == b"authorization"), b"").decode("latin-1")
    scheme, _, token = given.partition(" ")
    fits = [hmac.compare_digest(token.encode(), key.encode()) for key in keys]
    return scheme.lower() == "bearer" and any(fits)


_running: set[asyncio.Future[Any]] = set()


def _behind(call: Callable[[], Awaitable[Any]]) -> None:
    """Runs it after the answer; how it ends is seen in the status."""
    task = asyncio.ensure_future(call())
    _running.add(task)
    task.add_done_callback(_running.discard)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False) and message["type"] == "http.request"
        if len(body) > LONGEST_BODY:
            raise Bad(f"Request body is longer than {LONGEST_BODY} bytes.")
    return body


async def _reply(send: Any, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
