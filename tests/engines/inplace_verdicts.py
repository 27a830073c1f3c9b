"""The program behind the verdicts of test_vllm_inplace_faults: an engine with TP 2 beside a simulated driver; a GPU of one worker fails.

Arguments as those of health_scenarios.
"""

from __future__ import annotations

import asyncio
from typing import Any

from health_scenarios import HealthScenarios
from inplace_scenarios import InPlace
from recovery_scenarios import main_with


class Verdicts(InPlace, HealthScenarios):
    async def off_the_bus(self) -> dict[str, Any]:
        """The GPU of rank 1 falls off the bus; the processes on it live on."""
        before = self.devices()
        seen = await self.lose("bus_", 1, how=lambda pid: self.inject("xid gpu=1 code=79"))
        return {**seen, "devices": [before, self.devices()]}

    async def inject(self, line: str) -> None:
        await asyncio.to_thread(self.fake.send, line)


if __name__ == "__main__":
    main_with(Verdicts)
