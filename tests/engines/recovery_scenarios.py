"""The program behind test_vllm_recovery: a real `ResilientLLM` whose engine is killed in several ways, one after another.

Arguments: model folder, JSON of our settings, JSON of vLLM engine arguments. Prints one JSON object: scenario -> what was seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dynamo_gpu_ft.events import Event, RequestResumed
from dynamo_gpu_ft.recovery import processes

MAX_TOKENS = 100
KILL_AT = 40
MANY = 6


def prompt(seed: int, length: int = 300) -> list[int]:
    return [(seed * 7 + j * 13) % 990 + 5 for j in range(length)]


def tagged_processes(wanted: bytes) -> list[tuple[int, str]]:
    """(pid, tag) of this process's descendants that carry an engine's tag."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"resource_tracker" in (entry / "cmdline").read_bytes():
                continue
            parts = (entry / "environ").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        tag = next((p[len(wanted) :].decode() for p in parts if p.startswith(wanted)), None)
        if tag is not None and parent == os.getpid():
            found.append((int(entry.name), tag))
    return found


def segments() -> list[str]:
    """vLLM's own shared memory, which nothing but us removes after a SIGKILL."""
    return [path.name for path in Path("/dev/shm").glob("vllm_dist_*")]


class Scenarios:
    def __init__(self, engine: Any) -> None:
        from vllm import SamplingParams

        self.engine = engine
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.tokens: dict[str, list[int]] = {}
        self.finish: dict[str, str | None] = {}
        self.params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
        engine._events.add(self._note)

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, condition: Callable[[], bool], deadline_s: float = 180.0) -> None:
        async def wait() -> None:
            while not condition():
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), deadline_s)

    async def stream(self, name: str, seed: int, params: Any) -> None:
        self.tokens[name] = []
        async for output in self.engine.generate({"prompt_token_ids": prompt(seed)}, params, name):
            self.tokens[name] = list(output.outputs[0].token_ids)
            self.finish[name] = output.outputs[0].finish_reason
            self.changed.set()

    def open(self, label: str, seeds: range) -> dict[str, asyncio.Task[None]]:
        return {
            f"{label}{s}": asyncio.create_task(self.stream(f"{label}{s}", s, self.params))
            for s in seeds
        }

    async def decoding(self, streams: dict[str, asyncio.Task[None]]) -> None:
        await self.until(lambda: all(len(self.tokens.get(n, ())) >= KILL_AT for n in streams))

    def pids(self) -> list[int]:
        return list(self.engine._resilient._engine.pids())

    def kill_engine(self) -> list[int]:
        victims = self.pids()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return victims

    def count(self, kind: str) -> int:
        return sum(type(event).__name__ == kind for event in self.events)

    async def undisturbed(self) -> dict[str, Any]:
        streams = self.open("plain", range(3))
        await asyncio.gather(*streams.values())
        return self.seen(streams)

    async def engine_and_worker_killed(self) -> dict[str, Any]:
        streams = self.open("killed", range(3))
        await self.decoding(streams)
        victims = self.kill_engine()
        await asyncio.gather(*streams.values())
        return {"victims": len(victims), **self.seen(streams)}

    async def alone(self) -> dict[str, Any]:
        """One stream after the other: nothing is ever short."""
        streams: dict[str, asyncio.Task[None]] = {}
        for seed in range(MANY):
            streams |= self.open("alone", range(seed, seed + 1))
            await streams[f"alone{seed}"]
        return self.seen(streams)

    async def killed_when_short_of_cache(self) -> dict[str, Any]:
        """The kill comes when one of the streams that run in step has lost its blocks, and stands still."""
        from vllm.v1.metrics.reader import get_metrics_snapshot

        def lost() -> int:
            named = [m for m in get_metrics_snapshot() if m.name == "vllm:num_preemptions"]
            return int(sum(m.value for m in named))

        streams = self.open("short", range(MANY))

        def lengths() -> list[int]:
            return [len(self.tokens.get(name, ())) for name in streams]

        def stands_still() -> bool:
            running = [length for length in lengths() if length >= KILL_AT]
            return len(running) > 1 and max(running) - min(running) >= 6

        await self.until(stands_still)
        self.kill_engine()
        found = {"lengths": lengths(), "lost_before": lost()}
        await asyncio.gather(*streams.values())
        return {**self.seen(streams), **found, "lost": lost()}

    async def worker_killed(self) -> dict[str, Any]:
        streams = self.open("worker", range(3))
        await self.decoding(streams)
        core = self.engine._resilient._engine.core.resources.engine_manager.processes[0].pid
        (worker, *_) = [pid for pid in self.pids() if pid != core]
        os.kill(worker, signal.SIGKILL)
        await asyncio.gather(*streams.values())
        return self.seen(streams)

    async def killed_again_while_starting_and_a_client_leaves(self) -> dict[str, Any]:
        streams = self.open("twice", range(4))
        await self.decoding(streams)
        deaths = self.count("EngineDied")
        self.kill_engine()
        await self.until(lambda: self.count("EngineDied") > deaths)
        streams["twice3"].cancel()
        await asyncio.gather(streams.pop("twice3"), return_exceptions=True)
        await self.kill_the_next_start()
        await asyncio.gather(*streams.values())
        resumed = {e.request_id for e in self.events if isinstance(e, RequestResumed)}
        return {
            **self.seen(streams),
            "left_open": [e.name for e in self.engine._resilient._streams],
            "cancelled_was_resumed": "twice3" in resumed,
        }

    async def kill_the_next_start(self) -> None:
        """SIGKILLs every process of the engine being started, as soon as there is one that is not the dead engine's."""
        dead = self.engine._resilient._engine.tag
        wanted = f"{processes.TAG_VARIABLE}=".encode()

        def kill() -> bool:
            found = [p for p in tagged_processes(wanted) if p[1] != dead]
            for pid, _ in found:
                os.kill(pid, signal.SIGKILL)
            return bool(found)

        async def loop() -> None:
            while not await asyncio.to_thread(kill):
                await asyncio.sleep(0)

        await asyncio.wait_for(loop(), 60.0)

    def seen(self, streams: dict[str, asyncio.Task[None]]) -> dict[str, Any]:
        return {
            "tokens": {name[-1]: self.tokens[name] for name in streams},
            "finish": sorted({str(self.finish[name]) for name in streams}),
            "resumed": [
                msgspec.to_builtins(e)
                for e in self.events
                if isinstance(e, RequestResumed) and e.request_id in streams
            ],
        }


async def run(
    model: str,
    settings: dict[str, Any],
    engine: dict[str, Any],
    kind: type[Scenarios] = Scenarios,
) -> dict[str, Any]:
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    from dynamo_gpu_ft.engines.vllm.client import ResilientLLM
    from dynamo_gpu_ft.engines.vllm.settings import transfer_entry
    from dynamo_gpu_ft.recovery.ledger import replay

    processes.adopt_orphans()
    before = set(segments())
    arguments = AsyncEngineArgs(
        model=model,
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        block_size=32,
        max_num_seqs=8,
        seed=0,
        kv_transfer_config=KVTransferConfig(**transfer_entry(settings)),
        **engine.get("llm", {}),
    )
    client = ResilientLLM.from_vllm_config(arguments.create_engine_config())
    scenarios = kind(client)
    results: dict[str, Any] = {}
    try:
        for name in engine["scenarios"]:
            results[name] = await getattr(scenarios, name)()
        arena = client._resilient._shelter._arena
        results["ledger_open"] = [] if arena is None else [r.request_id for r in replay(arena)]
        results["events"] = [msgspec.to_builtins(e) for e in scenarios.events]
    finally:
        client.shutdown(timeout=5)
    results["segments_left"] = sorted(set(segments()) - before)
    results["processes_left"] = [p.pid for p in processes.find(client._tag)]
    return results


def main_with(kind: type[Scenarios]) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result = asyncio.run(run(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), kind))
    print(json.dumps(result), file=replies, flush=True)


if __name__ == "__main__":
    main_with(Scenarios)
