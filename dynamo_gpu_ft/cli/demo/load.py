"""The demo's client: open streams on an OpenAI server, each event with its arrival time, text and token ids.

It only looks and records; what the streams mean (identical, lost, late) is decided by the scenario from the records.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

NO_EVENT_DEADLINE_S = (
    600.0  # a stream that is silent for longer has failed: longer than any recovery may take
)


@dataclass(frozen=True)
class Ask:
    """One request: `request_id` travels as X-Request-Id, and vLLM makes its own id from it."""

    request_id: str
    prompt: Sequence[int]
    max_tokens: int


@dataclass
class Stream:
    """What the client saw of one stream. Times are `time.monotonic()` seconds."""

    ask: Ask
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # (time, tokens so far)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def whole(self) -> bool:
        return self.error is None and self.finish_reason is not None

    def tokens_at(self, moment: float) -> int:
        """Tokens delivered until `moment`."""
        return max((count for when, count in self.arrivals if when <= moment), default=0)

    def first_arrival_after(self, moment: float) -> float | None:
        return next((when for when, _ in self.arrivals if when > moment), None)

    def longest_pause(self) -> float:
        """Longest time between two events with tokens; the wait for the first one does not count."""
        times = [when for when, _ in self.arrivals]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


async def run_streams(
    base_url: str,
    model: str,
    asks: Sequence[Ask],
    *,
    watch: Callable[[list[Stream]], None] | None = None,
    watch_every_s: float = 0.02,
) -> list[Stream]:
    """Opens all streams at once and returns when each has ended, well or not; never raises for a failed stream.

    `watch` is called between events, at least every `watch_every_s` while streams are open; it must not block, and what
    it raises ends all streams. Greedy, end tokens ignored, so every stream has exactly `max_tokens` tokens.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=NO_EVENT_DEADLINE_S)
    streams = [Stream(ask) for ask in asks]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(base_url, timeout=timeout, connector=connector) as session:
        tasks = [asyncio.create_task(_follow(session, model, stream)) for stream in streams]
        try:
            pending = set(tasks)
            while pending:
                _, pending = await asyncio.wait(pending, timeout=watch_every_s)
                if watch is not None:
                    watch(streams)
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return streams


async def _follow(session: Any, model: str, stream: Stream) -> None:
    """Fills `stream` until it ends. A broken connection or an error of the server becomes `stream.error`."""
    import aiohttp

    body = {
        "model": model,
        "prompt": list(stream.ask.prompt),
        "max_tokens": stream.ask.max_tokens,
        "temperature": 0,
        # Greedy all the same, but a small model then tells a story instead of one sentence for ever. The penalty looks at
        # prompt and answer as one, so a stream that goes on elsewhere keeps its meaning.
        "repetition_penalty": 1.2,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    headers = {"X-Request-Id": stream.ask.request_id}
    done = False
    try:
        async with session.post("/v1/completions", json=body, headers=headers) as response:
            if response.status != 200:
                stream.error = f"HTTP {response.status}: {(await response.text())[:200]}"
                return
            async for data in _events(response.content.iter_any()):
                if data == "[DONE]":
                    done = True
                    break
                _take(stream, json.loads(data), time.monotonic())
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        stream.error = f"{type(error).__name__}: {error}".rstrip(": ")
    if not done and stream.error is None:
        stream.error = "the server closed the stream before its end"


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event, whatever pieces the bytes arrive in."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()


def _take(stream: Stream, event: dict[str, Any], now: float) -> None:
    """Adds one decoded event to the record."""
    if (error := event.get("error")) is not None:
        message = error.get("message", error) if isinstance(error, dict) else error
        stream.error = f"the server said: {str(message)[:200]}"
        return
    for choice in event.get("choices", []):
        ids = choice.get("token_ids") or []
        stream.text += choice.get("text") or ""
        stream.tokens += ids
        if ids:
            stream.arrivals.append((now, len(stream.tokens)))
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
    if usage := event.get("usage"):
        stream.prompt_tokens = usage.get("prompt_tokens", 0)
        stream.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
