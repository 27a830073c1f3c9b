"""A stand-in for the demo's servers: real HTTP streams and a real engine process to kill, no model. Run as a program.

`demo_fake_server.py MODE MODEL --host H --port P ...`. Token i of a request depends on its own prompt and i alone, so that
a continued stream can be told from a wrong one. Modes: `plain` fails all streams when its engine dies; `protected` starts
another engine and goes on, telling the journal; `wrong` goes on with other tokens; `silent` goes on and tells no journal;
`stubborn` ignores SIGTERM and has a grandchild in a session of its own; `broken` ends before it is ready.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from multiprocessing import shared_memory
from pathlib import Path

from dynamo_gpu_ft import events

TOKEN_EVERY_S = 0.004
BLOCK = 32


def token(prompt: list[int], index: int) -> int:
    return (sum(prompt) * 31 + index * 17) % 1000


def start_engine() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["VLLM::EngineCore", "1000"], executable="/bin/sleep")


class Fake:
    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.engine = start_engine()
        self.epoch = 1
        self.open: dict[str, int] = {}  # request id -> tokens of prompt and answer so far
        path = os.environ.get("DYN_GPU_FT_JOURNAL")
        self.journal = events.Journal(path) if path and mode != "silent" else None

    def tell(self, event: events.Event) -> None:
        if self.journal is not None:
            self.journal(event)

    async def check_engine(self) -> None:
        """Recovers like the real thing, in the time of a blink; raises in plain mode."""
        if self.engine.poll() is None:
            return
        if self.mode in ("plain", "stubborn"):
            raise ConnectionResetError
        epoch = self.epoch
        self.tell(events.EngineDied(epoch=epoch, reason="exit", open_requests=len(self.open)))
        self.engine = start_engine()
        self.epoch += 1
        self.tell(events.StepDone(epoch=self.epoch, step="start_engine", duration_s=0.25, ok=True))
        for request_id, total in self.open.items():
            restored = total // BLOCK * BLOCK
            self.tell(
                events.RequestResumed(
                    epoch=self.epoch,
                    request_id=f"cmpl-{request_id}-0-abcd",
                    tokens_before=total,
                    tokens_restored=restored,
                    tokens_recomputed=total - restored,
                )
            )
        self.tell(events.Recovered(epoch=self.epoch, duration_s=0.3, requests=len(self.open)))

    async def stream(self, body: dict, request_id: str, writer: asyncio.StreamWriter) -> None:
        prompt, count = body["prompt"], body["max_tokens"]
        for index in range(count):
            self.open[request_id] = len(prompt) + index
            await asyncio.sleep(TOKEN_EVERY_S)
            await self.check_engine()
            wrong = self.mode == "wrong" and self.epoch > 1
            value = token(prompt, index) + wrong
            last = index == count - 1
            choice = {"text": f" w{value}", "token_ids": [value]}
            choice["finish_reason"] = "length" if last else None
            await send(writer, {"choices": [choice]})
        del self.open[request_id]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count}
        await send(writer, {"choices": [], "usage": usage})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head.split("\r\n"))
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n")
        try:
            if not head.startswith("POST"):
                writer.write(b"Content-Length: 0\r\n\r\n")
                await writer.drain()
            else:
                writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
                chunked = Chunked(writer)
                await self.stream(json.loads(body), headers["x-request-id"], chunked)
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except ConnectionError:
            writer.transport.abort()
            if self.engine.poll() is not None and self.mode == "plain":
                os._exit(1)
        finally:
            writer.close()


class Chunked:
    """Each write as one chunk of HTTP's chunked coding, so that a cut connection is an error to the client."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.drain = writer.drain

    def write(self, data: bytes) -> None:
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def send(writer: Chunked, event: dict) -> None:
    writer.write(f"data: {json.dumps(event)}\n\n".encode())
    await writer.drain()


async def main() -> None:
    mode, arguments = sys.argv[1], sys.argv[3:]
    if mode == "broken":
        print("no room on this device")
        sys.exit(3)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # A grandchild whose parent is gone, in a session of its own: what a tree walk from the server would miss.
        subprocess.Popen(["/bin/sh", "-c", "setsid sleep 1000 &"]).wait()
    # As engines do: shared memory that only Python's resource tracker removes after a kill.
    shared = shared_memory.SharedMemory(create=True, size=4096)
    (Path(sys.argv[2]) / "shared_memory_name").write_text(shared.name)
    fake = Fake(mode)
    port = int(arguments[arguments.index("--port") + 1])
    server = await asyncio.start_server(fake.answer, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
