"""Drives simulated NVML libraries from another process: what lasts goes into the control folder's file, events to each process.

Used by tests, benches and `dynamo-gpu-ft inject`. A shell can do the same: `echo "xid gpu=0 code=79" >> FOLDER/commands`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from dynamo_gpu_ft.errors import GpuFtError

EVENTS = ("xid", "event", "burst", "bind", "unbind")  # noticed only by who is there
QUESTIONS = ("state", "calls")
DEADLINE_S = 5.0


@dataclass(frozen=True)
class Heard:
    """What one process said to a line. `sets`: event sets that took the event, 0 for what is no event."""

    pid: int
    answer: str

    @property
    def sets(self) -> int:
        found = re.search(r"heard=(\d+)", self.answer)
        return int(found[1]) if found else 0


class Control:
    """A control folder. `send` blocks until every process that uses the library has done the line, at most 5 s for each."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.commands = self.folder / "commands"
        self.commands.touch(mode=0o600)

    def send(self, line: str) -> list[Heard]:
        """Raises `GpuFtError` when a process refuses the line or does not answer in time."""
        verb = line.split()[0] if line.split() else ""
        if "\n" in line or not verb:
            raise GpuFtError("a command is one line of text", value=line)
        if verb not in EVENTS and verb not in QUESTIONS:
            self.append(line)
            line = "sync"
        return [Heard(pid, self._ask(path, line)) for pid, path in self.users()]

    def append(self, line: str) -> None:
        """Writes the line for everybody who follows the file, without waiting for them."""
        with self.commands.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{line}\n".encode())

    def users(self) -> list[tuple[int, Path]]:
        """(pid, socket) of every process that has the library open; sockets of the dead are removed."""
        found = []
        for path in sorted(self.folder.glob("*.sock")):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(DEADLINE_S)
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                    continue
                except OSError:
                    continue
            found.append((int(path.stem), path))
        return found

    def _ask(self, path: Path, line: str) -> str:
        said = b""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(DEADLINE_S)
                client.connect(str(path))
                client.sendall(f"{line}\n".encode())
                while not said.endswith(b"\n.\n"):
                    part = client.recv(65536)
                    if not part:
                        raise ConnectionResetError("it went away")
                    said += part
        except OSError as error:
            raise GpuFtError(
                "a process with the simulated NVML does not answer",
                where=f"pid {path.stem}",
                value=str(error) or type(error).__name__,
                remedy="a stopped process answers when it goes on (kill -CONT)",
            ) from error
        word, _, rest = said.decode(errors="replace").removesuffix("\n.\n").partition(" ")
        if word != "ok":
            raise GpuFtError("the simulated NVML refuses a command", where=line, value=rest)
        return rest
