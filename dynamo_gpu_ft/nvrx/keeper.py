"""The last net under a launcher: a process that waits for its end, however it ends, and then ends everything it had started.

The launcher writes the tags of what it starts to the keeper's standard input; the end of that input is the launcher's end. The keeper
holds nothing anybody needs, so its own loss costs this net and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys

from dynamo_gpu_ft.nvrx.children import VARIABLE
from dynamo_gpu_ft.recovery import processes

END_S = 10.0


class Keeper:
    """The launcher's side. `watch` before each start; `close` when nothing is left to be ended."""

    def __init__(self, folder: str) -> None:
        """`folder` is removed at the end. Raises `OSError`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # signals of the terminal are for the launcher
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, tag: str) -> None:
        """Never raises: without a keeper the other nets hold."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(tag.encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Blocks until the keeper has looked, `END_S` seconds and a bit at most."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def keep(folder: str) -> int:
    """Reads tags until the launcher is gone, then ends whoever carries one. Returns 1 if somebody could not be ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tags = [line.strip() for line in sys.stdin]
    left = [
        process
        for tag in tags
        for process in processes.end_all(tag, deadline_s=END_S, variable=VARIABLE)
    ]
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if left else 0


if __name__ == "__main__":
    os.chdir("/")
    sys.exit(keep(sys.argv[1]))
