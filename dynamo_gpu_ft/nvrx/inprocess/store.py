"""The store of NVRx's wrapper in a process that is no rank, so that any rank may be lost; it ends by itself after the last of them.

The rank that first takes the place of the founder starts it; the others find its port in a file. It holds nothing of an engine.

NOTE: NVRx's own choices do not do: its TCPStore lives in rank 0, and torch's FileStore ends a wait with an error that NVRx does not expect.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
import time
from typing import Any

from dynamo_gpu_ft.errors import NvrxError
from dynamo_gpu_ft.nvrx.look import PACKAGE

START_S = 60.0
_LOOK_S, _POLL_S = 0.5, 0.02
_PORT, _LIFE, _FOUNDER = "store.port", "store.alive", "store.founder"


def join(folder: str, timeout_s: float = START_S) -> tuple[int, int]:
    """(port on 127.0.0.1, descriptor to keep open: the store lives while somebody holds one). Starts the store if nobody did.

    Blocks for its start, `timeout_s` at most. Raises `NvrxError`."""
    give_up = time.monotonic() + timeout_s
    life = -1
    try:
        life = _locked(os.path.join(folder, _LIFE), fcntl.LOCK_SH, give_up)
        founder = _locked(os.path.join(folder, _FOUNDER), fcntl.LOCK_EX, give_up)
        try:
            port = _port(folder)
            if port is None:
                port = _start(folder, give_up)
        finally:
            os.close(founder)
    except (OSError, NvrxError) as error:
        if life >= 0:
            os.close(life)
        if isinstance(error, NvrxError):
            raise
        raise NvrxError(
            "the store's folder cannot be used", where=folder, value=str(error)
        ) from None
    return port, life


def factory() -> Any:
    """NVRx's store class that only connects. Imports NVRx and torch."""
    mixin = importlib.import_module(f"{PACKAGE}.inprocess.store").StoreMixin
    distributed = importlib.import_module("torch.distributed")
    # No rank is critical, which is what the mixin says by itself.
    return type("OutsideStore", (distributed.TCPStore, mixin), {})


def _locked(path: str, how: int, give_up: float) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise NvrxError(
                        "another rank did not start the store in time",
                        where=path,
                        remedy="look for a stopped rank, and end it",
                    ) from None
            time.sleep(_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise


def _port(folder: str) -> int | None:
    try:
        with open(os.path.join(folder, _PORT)) as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None


def _start(folder: str, give_up: float) -> int:
    server = subprocess.Popen(
        [sys.executable, "-m", __name__, folder],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # what ends a rank's group is not for it
    )
    while (port := _port(folder)) is None:
        status = server.poll()
        if status is not None or time.monotonic() > give_up:
            server.kill()
            server.wait()
            said = "no port in time" if status is None else f"exit status {status}"
            raise NvrxError("the store did not start", where=folder, value=said)
        time.sleep(_POLL_S)
    return port


def serve(folder: str) -> None:
    """Serves until nobody holds the store's life any more."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    path = os.path.join(folder, _PORT)
    with open(path + ".new", "w") as file:
        file.write(str(store.port))
    os.rename(path + ".new", path)
    life = os.open(os.path.join(folder, _LIFE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        time.sleep(_LOOK_S)
        try:
            fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        os.unlink(path)  # while nobody can join: who comes later starts another
        return


if __name__ == "__main__":
    serve(sys.argv[1])
