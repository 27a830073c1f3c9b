"""`demo --fault rank`: one server, the same streams undisturbed, then one worker killed (once or more), then the whole engine killed.

Effects happen here, judging and rendering in `rank_report`.
"""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo_gpu_ft import events
from dynamo_gpu_ft.cli.demo import journal, scenario
from dynamo_gpu_ft.cli.demo.arena_folder import ArenaFolder
from dynamo_gpu_ft.cli.demo.load import Stream
from dynamo_gpu_ft.cli.demo.processes import Process
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.cli.demo.scenario import Killed, Scene
from dynamo_gpu_ft.cli.demo.server import PROTECTED, Server, free_port

STATUS = "/fault_tolerance/status"
STANDBYS_DEADLINE_S = 300.0


@dataclass
class Round:
    """One kill: what the clients saw, what the server told since, and the engine's processes before and after."""

    killed: Killed
    journal: list[events.Event]
    before: list[Process]
    after: list[Process]


@dataclass
class Played:
    """`shard` is the one whose worker was killed; `standbys` were ready at that moment. `more`: further kills, of either shard in turn."""

    reference: list[Stream]
    rank: Round
    whole: Round
    shard: int
    standbys: int
    in_memory: bool = True
    more: list[Round] = field(default_factory=list)


def play(scene: Scene, standbys: int, kills: int = 1) -> Played:
    """Kills a worker `kills` times, each when `standbys` are ready. Errors: `GpuFtError` when the server cannot start, refuses recovery in place, or a stream of the reference fails."""
    told = scene.folder / "journal.jsonl"
    with ArenaFolder(scene.arena_bytes) as arena:
        environ = {
            **scenario.environ(scene),
            "DYN_GPU_FT_ARENA_DIR": str(arena.path),
            "DYN_GPU_FT_ARENA_NAME": "demo",
            "DYN_GPU_FT_ARENA_BYTES": str(scene.arena_bytes),
            "DYN_GPU_FT_JOURNAL": str(told),
            "DYN_GPU_FT_STANDBYS": str(standbys),
        }
        if kills > 2:
            environ["DYN_GPU_FT_MAX_RESTARTS"] = str(kills + 1)
        server = Server(
            PROTECTED,
            scene.model,
            scenario.flags(scene),
            port=scene.port or free_port(),
            environ=environ,
            log=scene.folder / "protected.log",
        )
        with server:
            with Phase("starting protected vLLM") as phase:
                server.wait_ready(phase)
            reference = scenario.undisturbed(scene, server)
            rounds: list[Round] = []
            for number in range(kills):
                with Phase("waiting for standbys") as phase:
                    ready = _wait(server, standbys, phase)
                if not rounds:
                    shard, stood = max(ready["members"], key=int), int(ready["standbys"])
                chosen = sorted(ready["members"], key=int)[-1 - number % len(ready["members"])]
                victim = _member(server, ready, chosen)
                with Phase(f"{scene.fault.name} of the worker of shard {chosen}") as phase:
                    run = "b" if number == 0 else f"b{number}x"
                    rounds.append(_round(scene, server, told, run, phase, [victim]))
            with Phase(f"{scene.fault.name} of the whole engine") as phase:
                whole = _round(scene, server, told, "c", phase, None)
    return Played(reference, rounds[0], whole, int(shard), stood, arena.in_memory, rounds[1:])


def _round(
    scene: Scene, server: Server, told: Path, run: str, phase: Phase, targets: list[Process] | None
) -> Round:
    known = len(journal.read(told))
    before = server.engine()
    killed = scenario.run_and_kill(
        scene, server, run, phase, deadline_s=scenario.RUN_DEADLINE_S, targets=targets
    )
    return Round(killed, journal.read(told)[known:], before, server.engine())


def status(server: Server) -> dict[str, Any]:
    """The one engine of the server's answer; empty when there is none."""
    try:
        with urllib.request.urlopen(f"{server.url}{STATUS}", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)["engines"][0]
            return found
    except (urllib.error.URLError, OSError, ValueError):
        return {}


def _wait(server: Server, standbys: int, phase: Phase) -> dict[str, Any]:
    ends = time.monotonic() + STANDBYS_DEADLINE_S
    while True:
        found = status(server)
        if found.get("in_place") and found["standbys"] >= standbys:
            return found
        if time.monotonic() > ends:
            raise server.failure(
                f"the server does not recover in place with {standbys} standbys: {found}"
            )
        phase.tick(f"{found.get('standbys', 0)} of {standbys} standbys are ready")
        time.sleep(0.1)


def _member(server: Server, found: dict[str, Any], shard: str) -> Process:
    pid = found["members"][shard]
    for process in server.family():
        if process.pid == pid:
            return process
    raise server.failure(f"the worker of shard {shard} (pid {pid}) is not there")


def kept(round_: Round) -> tuple[int, int]:
    """(processes that were there before and still are, processes before)."""
    after = set(round_.after)
    return sum(process in after for process in round_.before), len(round_.before)
