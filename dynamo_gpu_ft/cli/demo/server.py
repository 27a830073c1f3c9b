"""One OpenAI server as a child process: started, waited for, its engine found and killed, and always taken away whole.

The scenario starts a plain one and a protected one through the same calls, so that both get the same treatment.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dynamo_gpu_ft.cli.demo import processes
from dynamo_gpu_ft.cli.demo.processes import Process
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.recovery.processes import adopt_orphans

START_DEADLINE_S = 900.0
STOP_DEADLINE_S = 20.0
ENGINE_TITLES = ("VLLM::EngineCore", "VLLM::Worker")
TRACKERS_DEADLINE_S = 5.0
TRACKER = "multiprocessing.resource_tracker"
TAIL_LINES = 25

PLAIN = ("-m", "vllm.entrypoints.openai.api_server", "--model")
PROTECTED = ("-m", "dynamo_gpu_ft", "serve")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


class Server:
    """A server that runs from `__enter__` to `__exit__`; nothing of it is left after that, on any way out.

    `entry` is `PLAIN` or `PROTECTED`, followed by the model and vLLM's own `flags`.
    """

    def __init__(
        self,
        entry: Sequence[str],
        model: Path,
        flags: Sequence[str],
        *,
        port: int,
        environ: Mapping[str, str],
        log: Path,
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._command = [
            sys.executable,
            *entry,
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *flags,
        ]
        self._environ = {**os.environ, **environ}
        self._process: subprocess.Popen[bytes] | None = None
        self._before: set[Process] = set()
        self._shared: set[Path] = set()

    def __enter__(self) -> "Server":
        adopt_orphans()  # a descendant whose parent dies becomes our child: none can slip away
        self._before = set(processes.descendants(os.getpid()))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then takes the server away in order
                preexec_fn=processes.die_with_parent,  # and if the demo is killed outright, the server ends too
            )
        return self

    def wait_ready(self, phase: Phase) -> None:
        """Blocks until the server answers /health. Errors: `GpuFtError` with the end of its log."""
        ends = time.monotonic() + START_DEADLINE_S
        while not self.healthy():
            if (status := self._child().poll()) is not None:
                raise self.failure(f"the server ended with status {status} before it was ready")
            if time.monotonic() > ends:
                raise self.failure(f"the server was not ready after {START_DEADLINE_S:.0f} s")
            phase.tick(last_line(self.log))
            time.sleep(0.2)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def engine(self) -> list[Process]:
        """EngineCore and its workers, by their titles, among this server's descendants. Errors: `GpuFtError` if none."""
        family = self.family()
        found = [process for process in family if process.title().startswith(ENGINE_TITLES)]
        if not found:
            raise GpuFtError(
                "the server has no engine process that could be killed",
                where=f"pid {self._child().pid}",
                value=[process.title()[:60] for process in family],
                rule=f"titles start with {' or '.join(ENGINE_TITLES)}",
                remedy="looking at the server's log (--keep-logs)",
            )
        self._shared |= processes.shared_files(found)
        return found

    def failure(self, what: str) -> GpuFtError:
        """An error that carries the end of the log."""
        return GpuFtError(
            f"{what}\n--- last lines of {self.log} ---\n{tail(self.log)}\n---\n",
            remedy="the command by hand: " + " ".join(self._command),
        )

    def _child(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "used outside its with block"
        return self._process

    def family(self) -> list[Process]:
        """The server's descendants, and those of its dead children, which this process has adopted."""
        mine = processes.descendants(os.getpid())
        return [
            process
            for process in mine
            if process not in self._before and process.pid != self._child().pid
        ]

    def stop(self) -> None:
        """SIGTERM, a while to end in order, then SIGKILL for whatever is left. Can be repeated."""
        child = self._child()
        self._shared |= processes.shared_files(self.family())
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL for the server and everything it started, at once."""
        child = self._child()
        family = self.family()
        self._shared |= processes.shared_files(family)
        child.kill()
        child.wait()
        # NOTE: Python's resource trackers remove the shared memory of the others once those are gone, and end by
        # themselves then: killed along, they would leave it in /dev/shm.
        processes.end_all(process for process in family if TRACKER not in process.title())
        processes.wait_gone(self.family(), deadline_s=TRACKERS_DEADLINE_S)
        # Whatever is still there, and what was started between the look and the kill.
        left = processes.end_all(self.family())
        # NOTE: the shared memory between vLLM's ranks is known to no tracker; without this it would stay until a reboot.
        for path in self._shared:
            path.unlink(missing_ok=True)
        if left:
            print(
                f"[demo] these processes do not end: {[process.pid for process in left]}",
                file=sys.stderr,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, read from its last 16 KiB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (16 << 10)))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error})"


def last_line(log: Path, width: int = 80) -> str:
    """What the engine's log said last: the message of the last line that has vLLM's form `... INFO ... [file:line] message`."""
    said = [line.partition("] ")[2] for line in tail(log).splitlines() if " INFO " in line]
    told = [message for message in said if message and not message.startswith("\t")]
    return told[-1][:width] if told else ""
