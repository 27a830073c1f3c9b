"""A nursery: one process that has an engine's imports behind it and forks a worker when asked, in milliseconds instead of seconds.

What it forks is a `multiprocessing` process like one of the spawn context, and a child of the process that asked: its exit status is
told there, and the nursery's own death, or its being stopped, is nobody else's. Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import multiprocessing
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import context, popen_fork, reduction, resource_tracker, spawn, util
from pathlib import Path
from typing import Any

import msgspec

from dynamo_gpu_ft.recovery import processes, waiting

#: A fork takes milliseconds; a nursery that has not answered after so long is stopped or stuck.
BIRTH_S = 2.0
_PID = struct.Struct("=q")
_MOST = 1 << 20
_READY, _THREADS = b"ready", b"threads"


class Nursery:
    """Starts on construction, imports `modules` and then calls `prepare` in the background, with `environment` beside this process's; makes
    this process the parent of its descendants' orphans. Ends with the thread that made it. What either raises there is passed over: a
    child does without. Raises OSError."""

    def __init__(
        self,
        modules: Sequence[str],
        environment: Mapping[str, str] = {},
        prepare: Callable[[], object] | None = None,
    ) -> None:
        if not processes.adopt_orphans():
            raise OSError("this process may not adopt orphans (PR_SET_CHILD_SUBREAPER)")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(BIRTH_S)
        self._said = b""
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve,
            args=(theirs, list(modules), prepare, os.getpid()),
            name="gpu-ft-nursery",
            daemon=True,
        )
        with theirs, processes.environment(environment):
            self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def ready(self) -> bool:
        """Whether its imports are done and it is there, as far as can be told without asking. Never blocks."""
        if not self._said and waiting.readable([self._socket], 0):
            with contextlib.suppress(OSError):
                self._said = self._socket.recv(16)
        return self._said == _READY and self.alive

    @property
    def importing(self) -> bool:
        """Whether it may still become ready. Never blocks."""
        return not self.ready and not self._said and self.alive

    @property
    def unfit(self) -> bool:
        """Whether it may not fork, because something it has imported has started threads."""
        return not self.ready and self._said == _THREADS

    def process(self, target: Callable[..., object], **arguments: Any) -> NurseryProcess:
        """A process yet to be started; `arguments` are those of `multiprocessing.Process`. `start` blocks for 2 * BIRTH_S at most, gives it
        this process's environment of that moment, and raises OSError when the nursery does not answer: it is no good any more then."""
        return NurseryProcess(self, target=target, **arguments)

    def close(self) -> None:
        """Ends it alone: its children live on."""
        self._process.kill()
        self._process.join(BIRTH_S)
        self._socket.close()

    def ask(self, files: Sequence[int]) -> None:
        said = msgspec.msgpack.encode(dict(os.environ))
        socket.send_fds(self._socket, [said], list(files))


class NurseryProcess(context.SpawnProcess):
    """As a process of the spawn context, forked by a nursery."""

    def __init__(self, nursery: Nursery, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._nursery: Nursery | None = nursery

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        nursery, process_obj._nursery = process_obj._nursery, None  # not for the child
        return _Popen(process_obj, nursery)


class _Inherited:
    """A descriptor of the parent's, as the child finds it. multiprocessing's protocol."""

    files: Sequence[int] = ()  # in a child: what came with its birth

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        return self.files[self._index]


class _Popen(popen_fork.Popen):
    """The parent's handle: `waitpid` works, for the child has become this process's."""

    method = "spawn"
    DupFd = _Inherited

    def __init__(self, process_obj: Any, nursery: Nursery) -> None:
        self._files: list[int] = []
        self._nursery = nursery
        super().__init__(process_obj)

    def duplicate_for_child(self, file: int) -> int:
        self._files.append(file)
        return len(self._files) - 1

    def _launch(self, process_obj: Any) -> None:
        payload = io.BytesIO()
        context.set_spawning_popen(self)  # type: ignore[arg-type]  # multiprocessing asks no more of it
        try:
            reduction.dump(spawn.get_preparation_data(process_obj._name), payload)
            reduction.dump(process_obj, payload)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, theirs = os.pipe()
        alive, ours = os.pipe()
        self.finalizer = util.Finalize(self, _close, (self.sentinel, ours))
        memory = os.memfd_create("gpu-ft-birth")
        try:
            with open(
                memory, "wb", closefd=False
            ) as file:  # no pipe: nobody has to read at the other end
                file.write(payload.getbuffer())
            self._nursery.ask([theirs, alive, memory, *self._files])
        finally:
            for number in (theirs, alive, memory):
                os.close(number)
        said = b""
        if waiting.readable([self.sentinel], BIRTH_S):
            said = os.read(self.sentinel, _PID.size)
        if len(said) != _PID.size:
            self.finalizer()  # a child that comes after all has nobody to tell, and ends
            raise OSError(f"the nursery (pid {self._nursery.pid}) bears no child")
        (self.pid,) = _PID.unpack(said)


def _close(*files: int) -> None:
    for file in files:
        os.close(file)


def _serve(
    asked: socket.socket,
    modules: Sequence[str],
    prepare: Callable[[], object] | None,
    parent: int,
) -> None:
    """The nursery's life, and in a child that of the worker. Does not return."""
    processes.die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    own = _own_files()
    _call_itself("gpu-ft-imports")
    for name in modules:
        if name not in sys.modules:
            with contextlib.suppress(
                Exception
            ):  # a module of another's making that cannot be imported by its name
                importlib.import_module(name)
    if prepare is not None:
        with contextlib.suppress(Exception):
            prepare()
    if titles := sys.modules.get("setproctitle"):
        titles.getproctitle()  # it looks for a title's place behind the first variable, which a child's environment may not have
    gc.collect()
    gc.freeze()  # what is there stays shared with the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those in between are reaped by the kernel
    _call_itself("gpu-ft-nursery")
    asked.send(_READY if len(list(Path("/proc/self/task").iterdir())) == 1 else _THREADS)
    while True:
        said, files, _, _ = socket.recv_fds(asked, _MOST, 250)
        if not said:
            os._exit(0)
        if os.fork() == 0:
            if os.fork() == 0:
                break
            os._exit(0)  # so that the child's parent is who asked
        for file in files:
            os.close(file)
    status = 1
    try:
        for file in own:
            os.close(file)
        asked.detach()
        status = _live(msgspec.msgpack.decode(said, type=dict[str, str]), files, parent)
    except BaseException:
        traceback.print_exc()
    finally:
        util._flush_std_streams()  # type: ignore[attr-defined]
        os._exit(status)


def _own_files() -> list[int]:
    """What this process was started with for itself: `asked`, and pipes whose other ends tell of its death."""
    kept = {0, 1, 2, resource_tracker._resource_tracker._fd}  # type: ignore[attr-defined]
    found = sorted(int(file.name) for file in Path("/proc/self/fd").iterdir())
    return [file for file in found if file not in kept and _is_open(file)]


def _is_open(file: int) -> bool:
    try:
        os.fstat(file)
        return True
    except OSError:
        return False  # that one was of the listing itself


def _call_itself(name: str) -> None:
    with contextlib.suppress(
        OSError
    ):  # /proc may be read-only; this is for those who look at a list of processes
        Path("/proc/self/comm").write_text(name)


def _live(environment: Mapping[str, str], files: Sequence[int], parent: int) -> int:
    patience = time.monotonic() + BIRTH_S
    while os.getppid() != parent:
        if time.monotonic() > patience:
            return 1  # it is gone
        os.sched_yield()
    processes.die_with_parent()  # as the engine's other processes do, where they do
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _call_itself("python")
    # Only what differs: a process's title is written where its environment began.
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    born, alive, memory, *_Inherited.files = files
    os.write(born, _PID.pack(os.getpid()))
    os.lseek(memory, 0, os.SEEK_SET)
    return int(spawn._main(memory, alive))
