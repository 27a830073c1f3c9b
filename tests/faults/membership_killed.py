"""A process that publishes one epoch into a folder and kills itself before or after the n-th effect on the file system."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from dynamo_gpu_ft.recovery.membership.file import FileStore
from tests.contracts.membership_world import membership

EFFECTS = ("open", "fsync", "link", "unlink", "close")


def main(folder: str, epoch: int, at: int) -> None:
    """Exit status 0: published, and there were fewer effects than `at`."""
    store, count = FileStore(folder), 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def effect(*args: Any, **more: Any) -> Any:
            nonlocal count
            for moment in ("before", "after"):
                result = real(*args, **more) if moment == "after" else None
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            return result

        return effect

    for name in EFFECTS:
        setattr(os, name, counted(getattr(os, name)))
    assert store.publish(membership(epoch))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
