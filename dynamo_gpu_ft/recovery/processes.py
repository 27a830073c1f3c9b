"""Finding and ending every process an engine left behind. Linux only: /proc and pidfds.

Engine processes are found by a tag in their environment, which every child inherits whoever its parent is by then, so
orphans of a SIGKILLed engine are found and nobody else's process ever is.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

TAG_VARIABLE = "GPU_FT_ENGINE_TAG"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int  # clock ticks since boot: with the pid, names one process for ever


def this_process() -> Process:
    return Process(os.getpid(), _stat(Path("/proc/self"))[1])


def started_at(pid: int) -> int:
    """When the process was started, in clock ticks since boot; 0 when it is gone."""
    try:
        return _stat(Path("/proc") / str(pid))[1]
    except OSError:
        return 0


def lives(process: Process) -> bool:
    """Whether it is there and has not ended; a zombie has."""
    try:
        state, started = _stat(Path("/proc") / str(process.pid))
    except OSError:
        return False
    return started == process.started and state not in ("Z", "X")


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped this process; False when it is gone."""
    try:
        return _stat(Path("/proc") / str(pid))[0] in "Tt"
    except OSError:
        return False


@contextmanager
def environment(added: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with `added` in it, for children started inside; as it was afterwards."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def tagged(tag: str, more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Children started inside carry `tag`, and `more` in their environment. Our own resource tracker is started before, so that it
    does not.

    NOTE: the environment is the process's: a thread that starts a child meanwhile tags it too. SPT_NOENV keeps setproctitle,
    which engines use, from writing its title over the environment that /proc shows."""
    resource_tracker.ensure_running()
    added = {TAG_VARIABLE: tag, "SPT_NOENV": "1", **(more or {})}
    with environment(added):
        yield


def adopt_orphans() -> bool:
    """Makes this process the new parent of descendants whose parent dies, so that they can be reaped. False if refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0


def die_with_parent() -> bool:
    """In a tagged process: SIGKILL when the thread that started it ends, so that no engine outlives its server.

    Does nothing (False) in a process that was not started under a tag."""
    return told_at_parents_end(signal.SIGKILL)


def told_at_parents_end(number: signal.Signals) -> bool:
    """In a tagged process: this signal comes when the thread that started it ends. False as with `die_with_parent`."""
    started_with = Path("/proc/self/environ").read_bytes().split(b"\0")
    if not any(entry.startswith(f"{TAG_VARIABLE}=".encode()) for entry in started_with):
        return False
    return _told(number)


def die_with(parent: int) -> None:
    """SIGKILL when the thread of `parent` that started this process ends; at once if `parent` is gone already."""
    _told(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _told(number: signal.Signals) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)) == 0


def find(tag: str, variable: str = TAG_VARIABLE) -> list[Process]:
    """Live processes that carry `tag` in `variable`, without resource trackers: those clean up shared memory and end by themselves."""
    wanted = f"{variable}={tag}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if b"resource_tracker" in (entry / "cmdline").read_bytes():
                continue
            state, started = _stat(entry)
        except OSError:
            continue
        if state != "Z":
            found.append(Process(int(entry.name), started))
    return found


def _stat(entry: Path) -> tuple[str, int]:
    # A process may have any bytes for a name.
    fields = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    return fields[0], int(fields[19])


def shared_segments(found: Iterable[Process], prefixes: tuple[str, ...]) -> set[Path]:
    """Files in /dev/shm with one of `prefixes` that these processes have mapped now: what their SIGKILL leaves behind."""
    segments = set()
    for process in found:
        try:
            lines = Path(f"/proc/{process.pid}/maps").read_text(errors="replace").splitlines()
        except OSError:
            continue  # gone, or not ours to look into
        names = (line.partition("/dev/shm/")[2] for line in lines)
        segments |= {Path("/dev/shm", name) for name in names if name.startswith(prefixes)}
    return segments


def end_all(tag: str, *, deadline_s: float, variable: str = TAG_VARIABLE) -> list[Process]:
    """SIGKILLs every process with `tag` in `variable`, and those they start meanwhile, until none is left or the deadline passed.

    Returns who is still there (an uninterruptible process, normally nobody). Blocks; reaps adopted orphans, but leaves
    multiprocessing's own children to multiprocessing."""
    give_up = time.monotonic() + deadline_s
    owned = {child.pid for child in multiprocessing.active_children()}
    killed: set[int] = set()
    while (left := find(tag, variable)) and time.monotonic() < give_up:
        for process in left:
            _kill_and_wait(process, give_up)
            killed.add(process.pid)
    for pid in killed - owned:
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
    return left


def _kill_and_wait(process: Process, give_up: float) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        # NOTE: the pid may have been reused since the scan; the pidfd fixes who is meant, so compare after opening it.
        if _stat(Path("/proc") / str(process.pid))[1] != process.started:
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, give_up - time.monotonic()) * 1000)
    except OSError:
        return
    finally:
        os.close(descriptor)
