"""The program behind test_vllm_inplace: a real `ResilientLLM` with TP 2 whose workers are lost in several ways.

Arguments: model folder, JSON of our settings, JSON of scenarios and engine arguments. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from recovery_scenarios import Scenarios, main_with

from dynamo_gpu_ft.events import decode


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


class InPlace(Scenarios):
    def journal(self) -> list[Any]:
        path = Path(self.engine._config.journal)
        return [decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def core_pid(self) -> int:
        return int(self.engine._resilient._engine.core.resources.engine_manager.processes[0].pid)

    def workers(self) -> dict[int, int]:
        """rank -> pid, from the newest membership that EngineCore has told."""
        members = [p for p in self.pids() if p != self.core_pid() and parent(p) == self.core_pid()]
        named = {}
        for pid in members:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            for rank in (0, 1):
                if f"Worker_TP{rank}" in title:
                    named[rank] = pid
        return named

    async def lose(self, label: str, rank: int, number: int = signal.SIGKILL) -> dict[str, Any]:
        core, before = self.core_pid(), self.workers()
        streams = self.open(label, range(3))
        await self.decoding(streams)
        os.kill(before[rank], number)
        killed = time.monotonic()
        counts = {n: len(self.tokens[n]) for n in streams}
        await self.until(lambda: any(len(self.tokens[n]) > counts[n] + 3 for n in streams))
        gap = time.monotonic() - killed
        await asyncio.gather(*streams.values())
        after = self.workers()
        return {
            **self.seen(streams),
            "gap": gap,
            "core": [core, self.core_pid()],
            "workers": [before, after],
        }

    async def rank_1(self) -> dict[str, Any]:
        return await self.lose("one", 1)

    async def rank_0(self) -> dict[str, Any]:
        return await self.lose("zero", 0)

    async def series(self) -> dict[str, Any]:
        """One kill after another, of either rank, each under streams of its own."""
        count = int(os.environ.get("GFT_KILLS", "3"))
        kills = [await self.lose(f"series{number}-", number % 2) for number in range(count)]
        tokens = {f"{i}.{k}": v for i, kill in enumerate(kills) for k, v in kill["tokens"].items()}
        return {
            "tokens": tokens,
            "finish": sorted({f for kill in kills for f in kill["finish"]}),
            "gaps": [round(kill["gap"], 2) for kill in kills],
            "core": [kills[0]["core"][0], kills[-1]["core"][1]],
            "workers": [kill["workers"] for kill in kills],
            "resumed": [],
        }

    async def again(self) -> dict[str, Any]:
        """The same prompts once more: the prefix cache is right."""
        return await self.undisturbed_as("again")

    async def undisturbed_as(self, label: str) -> dict[str, Any]:
        streams = self.open(label, range(3))
        await asyncio.gather(*streams.values())
        return self.seen(streams)


if __name__ == "__main__":
    main_with(InPlace)
