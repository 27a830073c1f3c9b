"""The demo's client: what it records of good, broken and lying streams."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from dynamo_gpu_ft.cli.demo import load
from dynamo_gpu_ft.cli.demo.load import Ask, Stream


def chunk(text: str, ids: list[int], finish: str | None = None) -> bytes:
    choice = {"text": text, "token_ids": ids, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def answered_with(pieces: Iterable[bytes], *, status: str = "200 OK", cut: bool = False) -> Stream:
    """What the client records when a server answers with exactly these bytes and then closes (or cuts) the stream."""
    pytest.importorskip("aiohttp")
    seen: dict[str, Any] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen["head"] = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(seen["head"].lower().split("content-length:")[1].split()[0])
        seen["body"] = json.loads(await reader.readexactly(length))
        writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for piece in pieces:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if not cut:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        writer.close()

    async def play() -> list[Stream]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            ask = Ask("name-1", [1, 2, 3], 3)
            return await load.run_streams(f"http://127.0.0.1:{port}", "m", [ask])

    (stream,) = asyncio.run(asyncio.wait_for(play(), 30))
    assert "X-Request-Id: name-1" in seen["head"]
    assert seen["body"]["prompt"] == [1, 2, 3]
    assert seen["body"]["max_tokens"] == 3
    return stream


def test_a_whole_stream_is_recorded_token_by_token() -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}}\n\n'
    pieces = [chunk("a", [7]), chunk("b c", [8, 9], "length"), usage, DONE]
    stream = answered_with(pieces)
    assert stream.whole
    assert (stream.text, stream.tokens) == ("ab c", [7, 8, 9])
    assert [count for _, count in stream.arrivals] == [1, 3]
    assert (stream.prompt_tokens, stream.cached_tokens) == (3, 2)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_size_of_the_pieces_does_not_matter(size: int) -> None:
    data = chunk("ä", [7]) + chunk("€", [8], "length") + DONE
    stream = answered_with(data[start : start + size] for start in range(0, len(data), size))
    assert stream.whole
    assert (stream.text, stream.tokens) == ("ä€", [7, 8])


def test_a_very_long_line_is_no_error() -> None:
    stream = answered_with([chunk("x" * 500_000, [7], "length"), DONE])
    assert stream.whole
    assert len(stream.text) == 500_000


def test_a_cut_connection_is_an_error_and_keeps_what_came() -> None:
    stream = answered_with([chunk("a", [7])], cut=True)
    assert not stream.whole
    assert stream.error
    assert stream.tokens == [7]


def test_a_stream_closed_in_order_but_too_early_is_an_error() -> None:
    stream = answered_with([chunk("a", [7])])
    assert stream.error == "the server closed the stream before its end"


def test_a_finished_choice_without_the_end_of_the_stream_is_not_whole() -> None:
    assert not answered_with([chunk("a", [7], "length")]).whole


def test_an_error_inside_the_stream_is_an_error_even_when_the_stream_ends_well() -> None:
    stream = answered_with([b'data: {"error": {"message": "EngineCore died"}}\n\n', DONE])
    assert stream.error == "the server said: EngineCore died"


def test_a_refused_request_is_an_error_with_the_servers_words() -> None:
    stream = answered_with([b"too busy"], status="503 Service Unavailable")
    assert stream.error == "HTTP 503: too busy"


def test_a_line_that_is_no_json_is_an_error() -> None:
    stream = answered_with([b"data: {nonsense\n\n", DONE])
    assert "JSONDecodeError" in str(stream.error)


def test_a_watcher_that_raises_ends_all_streams() -> None:
    pytest.importorskip("aiohttp")

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    def watch(streams: list[Stream]) -> None:
        raise TimeoutError("too long")

    async def play() -> None:
        server = await asyncio.start_server(never, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await load.run_streams(url, "m", [Ask("a", [1], 1), Ask("b", [1], 1)], watch=watch)

    with pytest.raises(TimeoutError, match="too long"):
        asyncio.run(asyncio.wait_for(play(), 30))


def test_pauses_and_counts_are_read_from_the_arrivals() -> None:
    stream = Stream(Ask("a", [1], 9), arrivals=[(10.0, 1), (10.5, 2), (14.0, 4), (14.1, 9)])
    assert stream.longest_pause() == 3.5
    assert [stream.tokens_at(moment) for moment in (9.9, 10.0, 12.0, 14.0, 99.0)] == [0, 1, 2, 4, 9]
    assert stream.first_arrival_after(10.5) == 14.0
    assert stream.first_arrival_after(14.1) is None


def test_lines_that_are_not_data_are_passed_over() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b": comment\n", b"event: x\ndata:1\n\nda", b"ta: 2\r\n"):
            yield piece

    async def collect() -> list[str]:
        return [data async for data in load._events(pieces())]

    assert asyncio.run(collect()) == ["1", "2"]
