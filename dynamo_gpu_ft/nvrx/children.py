"""Processes that end with us: started in a session of their own, killed with everything they started, gone when we are.

Three nets, one under the other: SIGKILL from the kernel when the parent thread ends (PDEATHSIG), the kill of the whole process group, and
a tag in the environment by which what left the group is found. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_gpu_ft.recovery import processes

#: Another than an engine's own tag: engines give their processes that one, whatever it was before.
VARIABLE = "GPU_FT_LAUNCH_TAG"
_PR_SET_PDEATHSIG = 1


class Child:
    """One started process and what it started. Use it from the thread that made it: the kernel ends the child with that thread."""

    def __init__(
        self, command: Sequence[str], *, tag: str, environ: Mapping[str, str], **popen: Any
    ) -> None:
        """Raises `OSError` if the command cannot be started; blocks until it has been."""
        self.tag = tag
        libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

        def before_exec() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:  # it died between fork and prctl
                os._exit(127)

        self.process = subprocess.Popen(
            list(command),
            env={**environ, VARIABLE: tag, "SPT_NOENV": "1"},
            preexec_fn=before_exec,
            start_new_session=True,
            **popen,
        )
        self.pid = self.process.pid
        self.descriptor = os.pidfd_open(self.pid)  # readable once the process has ended

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs. Reaps it."""
        return self.process.poll()

    def ask_to_end(self) -> None:
        """SIGTERM to the process alone; what it does about its own children is its business."""
        if self.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self, deadline_s: float) -> list[int]:
        """SIGKILL to it and all it started, stopped or not; waits. Returns pids that are still there (uninterruptible), normally none."""
        give_up = time.monotonic() + deadline_s
        if self.process.returncode is None:
            # NOTE: only until it is reaped can its number, and so its group's, not be somebody else's; after that the tag must do.
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, give_up - time.monotonic()))
        left_s = max(0.1, give_up - time.monotonic())
        left = processes.end_all(self.tag, deadline_s=left_s, variable=VARIABLE)
        return [process.pid for process in left]

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def end(children: Sequence[Child], *, grace_s: float, kill_s: float) -> list[int]:
    """SIGTERM to each, `grace_s` seconds to obey, then SIGKILL to what is left of all of them. Returns pids that are still there."""
    give_up = time.monotonic() + grace_s
    if grace_s > 0:
        for child in children:
            child.ask_to_end()
    waiting = {child.descriptor for child in children if child.descriptor >= 0}
    while waiting and (left_s := give_up - time.monotonic()) > 0:
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        waiting -= {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
    return [pid for child in children for pid in child.kill(kill_s)]
