"""The program behind test_vllm_health: a real `ResilientLLM` beside a simulated driver, whose faults are injected one after another.

Arguments: model folder, JSON of our settings (with `health_library` and `health_log`), JSON of scenarios and vLLM engine arguments.
Prints one JSON object: scenario -> what was seen.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from recovery_scenarios import Scenarios, main_with

from dynamo_gpu_ft.sim.nvml import build
from dynamo_gpu_ft.sim.nvml.control import Control

LOG = "NVRM: Xid (PCI:{bdf}): {code}, pid={pid}, name=VLLM::Worker, {text}\n"


class HealthScenarios(Scenarios):
    """`fake` drives the simulated driver that every process of the engine has loaded; the log is a file that all follow."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.log = Path(engine._config.health_log)
        self.fake = Control(os.environ[build.CONTROL])

    def incidents(self) -> list[Any]:
        return [e for e in self.events if type(e).__name__ == "IncidentEvent"]

    def write_log(self, gpu: int, code: int, text: str) -> None:
        (bdf,) = (each.bdf for each in self.engine._health._watching.gpus() if each.index == gpu)
        with self.log.open("a") as log:
            log.write(LOG.format(bdf=bdf, code=code, pid=self.pids()[-1], text=text))

    async def faulted(self, label: str, inject: Any) -> dict[str, Any]:
        """Open streams, then a fault; when they have ended: what they got, and how long their clients waited at most."""
        streams = self.open(label, range(3))
        await self.decoding(streams)
        deaths = self.count("EngineDied")
        began = time.monotonic()
        inject()
        died: list[float] = []

        async def notice() -> None:
            await self.until(lambda: self.count("EngineDied") > deaths)
            died.append(time.monotonic() - began)

        noticing = asyncio.create_task(notice())
        await asyncio.gather(*streams.values())
        noticing.cancel()
        await asyncio.gather(noticing, return_exceptions=True)
        return {
            **self.seen(streams),
            "deaths": self.count("EngineDied") - deaths,
            "noticed_s": died[0] if died else None,
            "took_s": time.monotonic() - began,
            "devices": self.devices(),
        }

    def devices(self) -> list[str]:
        """The device of each rank as the ranks themselves have told it."""
        ranks = self.engine._health._ranks
        return [str(ranks[shard].device) for shard in sorted(ranks)]

    async def row_remapped(self) -> dict[str, Any]:
        before = len(self.incidents())
        seen = await self.faulted("xid63_", lambda: self.fake.send("xid gpu=0 code=63"))
        await self.until(lambda: len(self.incidents()) > before, 30.0)
        return seen

    async def illegal_access(self) -> dict[str, Any]:
        return await self.faulted("xid13_", lambda: self.fake.send("xid gpu=0 code=13"))

    async def frozen(self) -> dict[str, Any]:
        def freeze() -> None:
            for pid in self.pids():
                os.kill(pid, signal.SIGSTOP)

        return await self.faulted("stop_", freeze)

    async def off_the_bus_by_log(self) -> dict[str, Any]:
        text = "GPU has fallen off the bus."
        return await self.faulted("xid79log_", lambda: self.write_log(0, 79, text))

    async def off_the_bus_by_driver(self) -> dict[str, Any]:
        return await self.faulted("xid79_", lambda: self.fake.send("xid gpu=0 code=79"))

    async def the_last_gpu_too(self) -> dict[str, Any]:
        """No GPU is left: streams end with an error that says so, and so does every later request."""
        streams = self.open("last_", range(2))
        await self.decoding(streams)
        self.fake.send("xid gpu=1 code=79")
        ends = await asyncio.gather(*streams.values(), return_exceptions=True)
        return {
            "ends": [type(end).__name__ for end in ends],
            "failed": self.engine._resilient.failed,
            "errored": self.engine.errored,
        }


if __name__ == "__main__":
    main_with(HealthScenarios)
