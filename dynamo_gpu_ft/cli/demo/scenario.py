"""The three runs: undisturbed, killed without protection, killed with protection. Effects happen here, judging in `report`.

Every run sends the same prompts; both kills hit EngineCore and its workers when every stream has the same number of tokens.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dynamo_gpu_ft import events
from dynamo_gpu_ft.cli.demo import journal, processes
from dynamo_gpu_ft.cli.demo.arena_folder import ArenaFolder
from dynamo_gpu_ft.cli.demo.load import Ask, Stream, run_streams
from dynamo_gpu_ft.cli.demo.processes import Process
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.cli.demo.server import PLAIN, PROTECTED, Server, free_port

SERVED_NAME = "demo"
RUN_DEADLINE_S = 1800.0


@dataclass(frozen=True)
class Scene:
    """What is played: the same for all runs. `kill_at` is the number of tokens every stream has when the kill comes."""

    model: Path
    prompts: list[list[int]]
    max_tokens: int
    kill_at: int
    dtype: str
    tp: int
    block_size: int
    port: int  # 0: a free one for each server
    arena_bytes: int
    engine_args: tuple[str, ...]
    folder: Path  # logs and journal
    fault: signal.Signals = signal.SIGKILL  # what hits the engine's processes

    def asks(self, run: str) -> list[Ask]:
        return [
            Ask(f"gftdemo{run}{number:02d}x", prompt, self.max_tokens)
            for number, prompt in enumerate(self.prompts)
        ]


@dataclass
class Killed:
    """A run with a kill in it. `when` is monotonic, `wall` is wall-clock seconds of the same instant."""

    streams: list[Stream]
    pids: list[int]
    when: float
    wall: float


@dataclass
class Without:
    """The same fault without protection. `answers` are the streams sent again; `outage_s` ends with their last first token."""

    killed: Killed
    answers: list[Stream]
    outage_s: float
    phases: dict[str, float]


@dataclass
class Protected:
    killed: Killed
    journal: list[events.Event] = field(default_factory=list)
    in_memory: bool = True


def flags(scene: Scene) -> list[str]:
    """vLLM's flags, equal for every server of the demo."""
    longest = max(map(len, scene.prompts)) + scene.max_tokens
    return [
        *("--served-model-name", SERVED_NAME),
        *("--dtype", scene.dtype),
        *("--max-model-len", str(-(-(longest + 1) // 128) * 128)),
        *("--block-size", str(scene.block_size)),
        *("--max-num-seqs", str(len(scene.prompts))),
        *("--tensor-parallel-size", str(scene.tp)),
        *("--seed", "0"),
        "--enforce-eager",
        *scene.engine_args,
    ]


def environ(scene: Scene) -> dict[str, str]:
    """What every server gets. The VLLM_CPU_* settings matter on machines without a GPU only; the user's own win."""
    cores = len(os.sched_getaffinity(0))
    cpu = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # NOTE: vLLM keeps one core free, and two when KV is transferred. On two cores that would leave the protected
        # engine none, it would take both, and be several times slower than the plain one beside its own front.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": str(max(0, min(2, cores - 1))),
    }
    if scene.tp > 1:
        # NOTE: without one core per rank, named, vLLM's CPU workers refuse to start in tensor parallelism.
        cpu["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(scene.tp)))
        del cpu["VLLM_CPU_NUM_OF_RESERVED_CPU"]
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PROCESS_NAME_PREFIX": "VLLM",
        "PYTHONUNBUFFERED": "1",
        **{name: os.environ.get(name, value) for name, value in cpu.items()},
    }


def plain_server(scene: Scene, log: str) -> Server:
    return Server(
        PLAIN,
        scene.model,
        flags(scene),
        port=scene.port or free_port(),
        environ=environ(scene),
        log=scene.folder / log,
    )


def undisturbed(scene: Scene, server: Server) -> list[Stream]:
    """The reference. Errors: `GpuFtError` when a stream fails, for then there is nothing to compare with."""
    with Phase("undisturbed run on plain vLLM") as phase:
        streams = _run(server, scene.asks("a"), lambda open_: phase.tick(_progress(open_, scene)))
    for stream in streams:
        if not stream.whole or len(stream.tokens) != scene.max_tokens:
            raise server.failure(
                f"an undisturbed stream failed ({stream.error or 'too few tokens'})"
            )
    return streams


def without_protection(scene: Scene, server: Server) -> Without:
    """Kills the engine of a plain server that runs already, starts the server again and sends every stream again.

    A client that sends again does the best it can: its prompt and everything it had received so far.
    """
    with Phase("SIGKILL of the engine, without protection") as phase:
        killed = run_and_kill(scene, server, "b", phase, deadline_s=120)
    failed_at = time.monotonic()
    server.kill()
    again = [
        Ask(f"{stream.ask.request_id}again", [*stream.ask.prompt, *stream.tokens], 1)
        for stream in killed.streams
        if not stream.whole
    ]
    with plain_server(scene, "plain-again.log") as fresh:
        with Phase("starting vLLM again") as phase:
            fresh.wait_ready(phase)
        ready_at = time.monotonic()
        with Phase("sending the streams again") as phase:
            answers = _run(fresh, again, lambda _: phase.tick())
        for answer in answers:
            if not answer.arrivals:
                raise fresh.failure(f"a stream that was sent again got no token ({answer.error})")
    first_tokens = [answer.arrivals[0][0] for answer in answers]
    last = max(first_tokens, default=ready_at)
    return Without(
        killed=killed,
        answers=answers,
        outage_s=last - killed.when,
        phases={
            "streams_failed": failed_at - killed.when,
            "engine_start": ready_at - failed_at,
            "first_token": last - ready_at,
        },
    )


def with_protection(scene: Scene) -> Protected:
    """Starts the protected server on a fresh arena, kills its engine, and lets the streams run to their end."""
    journal_path = scene.folder / "journal.jsonl"
    with ArenaFolder(scene.arena_bytes) as arena:
        protected_environ = {
            **environ(scene),
            "DYN_GPU_FT_ARENA_DIR": str(arena.path),
            "DYN_GPU_FT_ARENA_NAME": "demo",
            "DYN_GPU_FT_ARENA_BYTES": str(scene.arena_bytes),
            "DYN_GPU_FT_JOURNAL": str(journal_path),
        }
        server = Server(
            PROTECTED,
            scene.model,
            flags(scene),
            port=scene.port or free_port(),
            environ=protected_environ,
            log=scene.folder / "protected.log",
        )
        with server:
            with Phase("starting protected vLLM") as phase:
                server.wait_ready(phase)
            with Phase(f"{scene.fault.name} of the engine, with protection") as phase:
                killed = run_and_kill(scene, server, "c", phase, deadline_s=RUN_DEADLINE_S)
        return Protected(killed, journal.read(journal_path), arena.in_memory)


def _run(server: Server, asks: list[Ask], watch: Callable[[list[Stream]], None]) -> list[Stream]:
    return asyncio.run(run_streams(server.url, SERVED_NAME, asks, watch=watch))


def run_and_kill(
    scene: Scene,
    server: Server,
    run: str,
    phase: Phase,
    *,
    deadline_s: float,
    targets: list[Process] | None = None,
) -> Killed:
    """Opens the streams and kills `targets`, or the engine, once each has `kill_at` tokens; returns when every stream has ended."""
    targets = targets or server.engine()
    fault = _Fault(scene, server, targets, phase, deadline_s)
    streams = _run(server, scene.asks(run), fault)
    if fault.when is None:
        errors = {stream.error for stream in streams if stream.error}
        raise server.failure(
            f"the streams ended before the kill ({', '.join(errors) or 'too soon'})"
        )
    return Killed(streams, [process.pid for process in targets], fault.when, fault.wall)


class _Fault:
    """Watches the streams, kills once, and bounds the time after that."""

    def __init__(
        self, scene: Scene, server: Server, targets: list[Process], phase: Phase, deadline_s: float
    ) -> None:
        self._scene, self._server, self._targets, self._phase = scene, server, targets, phase
        self._deadline_s = deadline_s
        self.when: float | None = None
        self.wall = 0.0

    def __call__(self, streams: list[Stream]) -> None:
        progress = _progress(streams, self._scene)
        if self.when is None:
            self._phase.tick(progress)
            if all(len(stream.tokens) >= self._scene.kill_at for stream in streams):
                self.when, self.wall = time.monotonic(), time.time()
                # A worker may follow its EngineCore before its own signal; that both are gone is what counts.
                hits = [processes.kill(process, self._scene.fault) for process in self._targets]
                if not any(hits):
                    raise self._server.failure("the engine was gone before the kill")
            return
        since = time.monotonic() - self.when
        self._phase.tick(f"{self._scene.fault.name} {since:.0f} s ago, {progress}")
        if since > self._deadline_s:
            raise self._server.failure(f"streams were still open {since:.0f} s after the kill")


def _progress(streams: list[Stream], scene: Scene) -> str:
    ended = sum(stream.whole or stream.error is not None for stream in streams)
    tokens = [len(stream.tokens) for stream in streams]
    return f"{min(tokens)}-{max(tokens)} of {scene.max_tokens} tokens, {ended} of {len(tokens)} streams ended"
