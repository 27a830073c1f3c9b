"""Stores for the contract's tests, and the servers behind some of them; also run as a process that publishes until it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import Member, Membership, MembershipStore
from dynamo_gpu_ft.recovery.membership.open import open_store

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0


def opened(url: str, deadline_s: float = 5.0) -> MembershipStore:
    return open_store(Config(membership=url), deadline_s=deadline_s)


def membership(epoch: int, *, engine: str = "e", by: str = "me", shards: int = 2) -> Membership:
    members = tuple(Member(shard=s, rank=s, pid=100 + s, started=epoch) for s in range(shards))
    return Membership(engine=engine, epoch=epoch, shards=shards, members=members, by=by)


@contextlib.contextmanager
def server(kind: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str] | None]]:
    """The address of a store of this kind, and the process behind it."""
    if kind == "file":
        yield f"file:{folder / 'store'}", None
        return
    process = _etcd(folder) if kind == "etcd" else _tcp(folder if kind == "tcp+folder" else None)
    try:
        if kind == "etcd":
            url = process.args[-1]  # type: ignore[index]
            _until_it_answers(str(url))
        else:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
        yield str(url), process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.communicate(timeout=10)


def _tcp(folder: Path | None, port: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dynamo_gpu_ft.recovery.membership.tcp", "--port", str(port)]
    command += ["--folder", str(folder / "kept")] if folder else []
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _etcd(folder: Path) -> subprocess.Popen[str]:
    program = shutil.which("etcd", path=f"{os.environ['PATH']}:{sys.prefix}/etcd/usr/bin")
    if program is None:
        pytest.skip("no etcd here (Debian: etcd-server)")
    pytest.importorskip("etcd3gw")
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [program, "--name=n0", f"--data-dir={folder / 'etcd'}", "--logger=zap"]
    command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    command += [f"--initial-cluster=n0={peer}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    process.args = [*command, client.replace("http://", "etcd:")]
    return process


def _until_it_answers(url: str) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            opened(url, 1.0).read("nobody")
            return
        except StoreUnavailable:
            if time.monotonic() > end:
                raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def publish_until_killed(url: str) -> None:
    """Tells every epoch before it is published and after it was."""
    store, number = opened(url), 0
    while True:
        newest = store.read("e")
        number = (newest.epoch if newest else 0) + 1
        won = store.publish(membership(number, by=str(os.getpid()), shards=50))
        os.write(1, f"{number} {int(won)}\n".encode())


def compete(url: str, epochs: int) -> None:
    """Publishes what it can until an epoch is reached; tells which were its own."""
    store, mine, seen = opened(url), [], 0
    while seen < epochs:
        newest = store.read("e")
        seen = newest.epoch if newest else 0
        if seen < epochs and store.publish(membership(seen + 1, by=str(os.getpid()))):
            mine.append(seen + 1)
    print(*mine)


if __name__ == "__main__":
    if sys.argv[1] == "compete":
        compete(sys.argv[2], int(sys.argv[3]))
    else:
        publish_until_killed(sys.argv[2])
