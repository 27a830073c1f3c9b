"""The program behind test_vllm_inplace: a real `ResilientLLM` with TP 2 whose workers are lost in several ways.

Arguments: model folder, JSON of our settings, JSON of scenarios and engine arguments. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import inplace_faults
from recovery_scenarios import MAX_TOKENS, Scenarios, main_with

from dynamo_gpu_ft.events import MemberDied, StepDone, decode
from dynamo_gpu_ft.recovery import processes


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

    async def lose(
        self,
        label: str,
        rank: int,
        number: int = signal.SIGKILL,
        opened: dict[str, asyncio.Task[None]] | None = None,
        how: Callable[[int], Awaitable[Any]] | None = None,
    ) -> dict[str, Any]:
        """Open streams, of which one worker is lost in the middle: by signal `number`, or by `how(pid)`."""
        core, before = self.core_pid(), self.workers()
        streams = opened or self.open(label, range(3))
        await self.decoding(streams)
        victim = processes.Process(before[rank], processes.started_at(before[rank]))
        segments = processes.shared_segments([victim], ("psm_", "vllm_dist_"))
        if how is None:
            os.kill(before[rank], number)
        else:
            await how(before[rank])
        killed = time.monotonic()
        counts = {n: len(self.tokens[n]) for n in streams}
        await self.until(lambda: any(len(self.tokens[n]) > counts[n] + 3 for n in streams))
        gap = time.monotonic() - killed
        await asyncio.gather(*streams.values())
        after = self.workers()
        return {
            **self.seen(streams),
            "gap": gap,
            "left": sorted(path.name for path in segments if path.exists()),
            "core": [core, self.core_pid()],
            "workers": [before, after],
        }

    async def rank_1(self) -> dict[str, Any]:
        return await self.lose("one", 1)

    async def rank_0(self) -> dict[str, Any]:
        return await self.lose("zero", 0)

    async def frozen(self) -> dict[str, Any]:
        return await self.lose("frozen", 1, signal.SIGSTOP)

    async def frozen_0(self) -> dict[str, Any]:
        return await self.lose("frozen", 0, signal.SIGSTOP)

    async def prefill(self) -> dict[str, Any]:
        """The kill comes before anybody has a token: first prefills are lost in flight."""
        core, before = self.core_pid(), self.workers()
        streams = self.open("prefill", range(10, 13))
        await asyncio.sleep(0)
        while not any(self.engine._resilient._streams.get(r) for r in self.open_ids()):
            await asyncio.sleep(0)
        os.kill(before[1], signal.SIGKILL)
        await asyncio.gather(*streams.values())
        return {
            **self.seen(streams),
            "core": [core, self.core_pid()],
            "workers": [before, self.workers()],
        }

    def open_ids(self) -> list[str]:
        return [entry.request.request_id for entry in self.engine._resilient._streams]

    async def prefill_again(self) -> dict[str, Any]:
        streams = self.open("prefill", range(10, 13))
        await asyncio.gather(*streams.values())
        return self.seen(streams)

    async def idle(self) -> dict[str, Any]:
        """Nobody wants a token: the loss is recovered all the same."""
        core, before = self.core_pid(), self.workers()
        recovered = self.count("GroupRecovered")
        os.kill(before[1], signal.SIGKILL)
        await self.until(lambda: self.count("GroupRecovered") > recovered)
        return {
            **await self.undisturbed_as("idle"),
            "core": [core, self.core_pid()],
            "workers": [before, self.workers()],
        }

    async def replacement_killed(self) -> dict[str, Any]:
        """The replacement of a killed worker is killed too, on its way."""
        core, before = self.core_pid(), self.workers()
        streams = self.open("twice", range(3))
        await self.decoding(streams)
        os.kill(before[1], signal.SIGKILL)
        await self.until(
            lambda: any(getattr(e, "state", "") == "rebuild" for e in self.events[-3:])
        )
        while not (new := [p for p in self.children() if p not in before.values()]):
            await asyncio.sleep(0.01)
        await asyncio.sleep(float(os.environ.get("GFT_DELAY", "4")))
        os.kill(new[0], signal.SIGKILL)
        await asyncio.gather(*streams.values())
        return {
            **self.seen(streams),
            "core": [core, self.core_pid()],
            "workers": [before, self.workers()],
        }

    async def survivor_killed(self) -> dict[str, Any]:
        """While one worker is being replaced, the other one is killed."""
        core, before = self.core_pid(), self.workers()
        streams = self.open("both", range(3))
        await self.decoding(streams)
        os.kill(before[1], signal.SIGKILL)
        await self.until(
            lambda: any(getattr(e, "state", "") == "rebuild" for e in self.events[-3:])
        )
        os.kill(before[0], signal.SIGKILL)
        await asyncio.gather(*streams.values())
        return {
            **self.seen(streams),
            "core": [core, self.core_pid()],
            "workers": [before, self.workers()],
        }

    def children(self) -> list[int]:
        core = self.core_pid()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                helper = b"resource_tracker" in (entry / "cmdline").read_bytes()
                helper = helper or (entry / "comm").read_text().startswith("gpu-ft-")
                if not helper and parent(int(entry.name)) == core:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def nursery(self) -> int:
        """The pid of EngineCore's nursery once it has imported all, 0 before."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                named = (entry / "comm").read_text() == "gpu-ft-nursery\n"
                if named and parent(int(entry.name)) == self.core_pid():
                    return int(entry.name)
        return 0

    async def forked(self) -> dict[str, Any]:
        """A worker is lost while there is a nursery, and one again while the nursery is stopped."""
        give_up = time.monotonic() + 120
        while not (nursery := self.nursery()):
            assert time.monotonic() < give_up, "there is no nursery"
            await asyncio.sleep(0.05)
        first = await self.lose("forked", 1)
        os.kill(nursery, signal.SIGSTOP)
        second = await self.lose("fresh", 0)
        done = [e.detail for e in self.events if isinstance(e, StepDone) and e.step == "replace"]
        return {
            "tokens": first["tokens"] | second["tokens"],
            "finish": sorted({*first["finish"], *second["finish"]}),
            "replaced": done,
            "nursery": processes.started_at(nursery),
        }

    async def standbys_ready(self, count: int) -> None:
        give_up = time.monotonic() + 120
        while self.engine._group.status.standbys < count:
            assert time.monotonic() < give_up, "no standby is ready"
            await asyncio.sleep(0.05)

    async def sampled(self) -> dict[str, Any]:
        """Seeded streams beside a greedy one, undisturbed."""
        streams = self.open_sampled("plain")
        await asyncio.gather(*streams.values())
        return self.seen(streams)

    async def sampled_rank_0(self) -> dict[str, Any]:
        """The output rank is lost; a standby has rehearsed its shard."""
        await self.standbys_ready(2)
        return await self.lose("drawn", 0, opened=self.open_sampled("drawn"))

    def open_sampled(self, label: str) -> dict[str, asyncio.Task[None]]:
        from vllm import SamplingParams

        greedy, streams = self.params, {}
        for seed in range(3):
            if seed:
                self.params = SamplingParams(
                    temperature=0.8, seed=seed, max_tokens=MAX_TOKENS, ignore_eos=True
                )
            streams |= self.open(label, range(seed, seed + 1))
        self.params = greedy
        return streams

    async def standby_rank_1(self) -> dict[str, Any]:
        await self.standbys_ready(1)
        return await self.lose("sb", 1)

    async def standby_killed(self) -> dict[str, Any]:
        """A standby dies while the engine serves: nobody notices, and there is another one later."""
        await self.standbys_ready(1)
        victims = [p for p in self.children() if p not in self.workers().values()]
        streams = self.open("calm", range(3))
        await self.decoding(streams)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        while (
            self.engine._group.status.standbys
        ):  # before the streams end: the next one may be there by then
            await asyncio.sleep(0.01)
        await asyncio.gather(*streams.values())
        await self.standbys_ready(1)
        return {**self.seen(streams), "victims": len(victims)}

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

    async def stalled(self) -> dict[str, Any]:
        """One worker stays in its step, alive and answering; the other one waits for it in a collective."""
        before = self.count("MemberDied")
        seen = await self.lose(
            "stalled", 1, how=lambda pid: self.engine.collective_rpc("fault_stall", args=(1, 3))
        )
        died = [e.reason for e in self.events if isinstance(e, MemberDied)]
        return {**seen, "why": died[before:]}

    async def shared_memory(self) -> list[bool]:
        """For each rank, whether its collectives go through shared memory."""
        found: list[bool] = await self.engine.collective_rpc("fault_groups")
        return found

    async def rotten_standby(self) -> dict[str, Any]:
        """A bit of the weights of the standby that will be taken is turned over, long after it has loaded them."""
        await self.standbys_ready(2)
        pattern = bytes.fromhex(os.environ["GFT_PATTERN"])
        standbys = [p for p in self.children() if p not in self.workers().values()]
        hit = [await asyncio.to_thread(inplace_faults.rot, pid, pattern) for pid in standbys]
        steps = self.count("StepDone")
        seen = await self.lose("rotten", 1)
        told = [e for e in self.events if isinstance(e, StepDone)][steps:]
        wrong = [e.detail for e in told if e.step == "validate" and not e.ok]
        return {**seen, "hit": hit, "wrong": wrong}

    async def dies_for_good(self) -> dict[str, Any]:
        """Each worker of shard 1 is killed in turn, until nobody tries any more."""
        kills = [await self.lose(f"dying{number}-", 1) for number in range(2)]
        streams = self.open("last", range(2))
        await self.decoding(streams)
        os.kill(self.workers()[1], signal.SIGKILL)
        ends = await asyncio.gather(*streams.values(), return_exceptions=True)
        return {
            "kills": kills,
            "ends": [type(end).__name__ for end in ends],
            "failed": self.engine._resilient.failed,
            "errored": self.engine.errored,
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
