"""Finds, kills and reaps processes through /proc, by pid and start time, never by name alone.

The demo kills the engine's processes with it, and uses it on every way out to leave no orphan behind.
"""

import ctypes
import functools
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
SHARED_PREFIXES = ("psm_", "sem.mp-", "vllm_dist_")


@dataclass(frozen=True)
class Process:
    """`started` (clock ticks since boot) tells a process from a later one with the same pid."""

    pid: int
    parent: int
    started: int

    def title(self) -> str:
        """The command line as it stands now (engines rewrite theirs); empty for a zombie or a process that is gone."""
        try:
            with open(f"/proc/{self.pid}/cmdline", "rb") as file:
                return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""

    def running(self) -> bool:
        """Still there under the same start time, and not a zombie."""
        found = _read(self.pid)
        return found is not None and found[0].started == self.started and found[1] not in "ZX"


def _read(pid: int) -> tuple[Process, str] | None:
    """The process and its state letter."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may hold spaces and brackets of its own: fields start after the last one.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Process(pid=pid, parent=int(fields[1]), started=int(fields[19])), fields[0].decode()


def shared_files(targets: Iterable[Process]) -> set[Path]:
    """Files of Python's and vLLM's shared memory that the processes have mapped now: what a SIGKILL leaves in /dev/shm."""
    found = set()
    for process in targets:
        try:
            lines = Path(f"/proc/{process.pid}/maps").read_text(errors="replace").splitlines()
        except OSError:  # gone, or not ours to look into
            continue
        names = (line.partition("/dev/shm/")[2].removesuffix(" (deleted)") for line in lines)
        found |= {Path("/dev/shm", name) for name in names if name.startswith(SHARED_PREFIXES)}
    return found


def descendants(root: int) -> list[Process]:
    """Every process under `root` (not itself), parents first. One pass over /proc: a snapshot, not a promise."""
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := _read(int(name))) is not None:
            children.setdefault(found[0].parent, []).append(found[0])
    order: list[Process] = []
    parents = [root]
    while parents:
        found_here = children.get(parents.pop(0), [])
        order += found_here
        parents += [process.pid for process in found_here]
    return order


def kill(process: Process, number: signal.Signals = signal.SIGKILL) -> bool:
    """Sends the signal to exactly this process; False when it is gone already. A pid used again is never hit."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not process.running():
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def end_all(targets: Iterable[Process], *, deadline_s: float = 10.0) -> list[Process]:
    """SIGKILLs the processes and waits until they are gone.

    Returns those still there after `deadline_s` (in an uninterruptible wait, for example).
    """
    left = list(targets)
    for process in left:
        kill(process)
    return wait_gone(left, deadline_s=deadline_s)


def wait_gone(targets: Iterable[Process], *, deadline_s: float) -> list[Process]:
    """Waits until the processes are gone, reaping those that are this process's children; returns those that stay."""
    left = list(targets)
    ends = time.monotonic() + deadline_s
    while left:
        for process in left:
            reap(process.pid)
        left = [process for process in left if process.running()]
        if not left or time.monotonic() > ends:
            break
        time.sleep(0.02)
    return left


def reap(pid: int) -> None:
    """Collects the exit status of a child that ended; nothing for a process that is not ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def die_with_parent() -> None:
    """For a child before exec: SIGTERM when the parent dies, even of SIGKILL."""
    _libc().prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)


@functools.cache
def _libc() -> ctypes.CDLL:
    """The C library that is loaded already."""
    return ctypes.CDLL(None)
