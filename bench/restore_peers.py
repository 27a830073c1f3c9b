"""Who restores KV after a restart in `restore_blocks`: we, LMCache's server with its file tier, and vLLM's ExampleConnector.

Each says how its engine is configured, what runs beside the engine, when everything is saved, and how its stored bytes are overwritten
with noise. Everything is vLLM 0.32 from one environment (`make bench-lmcache`), so that only the connector differs.
"""

import os
import random
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.offline import ROOT
from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.demo.server import tail
from dynamo_gpu_ft.errors import GpuFtError

ENVIRONMENT = ROOT / ".venv-vllm" / "lmcache"
SERVER_DEADLINE_S = 120.0
SETTLE_DEADLINE_S = 120.0
QUIET_S = 3.0  # files that did not change for so long are all there will be
CHUNK_TOKENS = 128
ARENA_BYTES = 1 << 30
PAGE = 4096


def python() -> str:
    """The interpreter with vLLM 0.32 and LMCache: GFT_LMCACHE_PYTHON, else that of `make bench-lmcache`."""
    chosen = Path(os.environ.get("GFT_LMCACHE_PYTHON") or ENVIRONMENT / "bin" / "python")
    if not chosen.exists():
        raise GpuFtError(
            "there is no environment with vLLM 0.32 and LMCache",
            where=str(chosen),
            remedy="make bench-lmcache, or GFT_LMCACHE_PYTHON=/path/to/its/python",
        )
    return str(chosen)


class Peer(ABC):
    """One way to keep KV over a restart. `folder` is its own; the same before and after."""

    name = ""
    settings: dict[str, Any] | None = None  # ours
    transfer: dict[str, Any] | None = None  # somebody else's

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What has to run while an engine does."""
        yield

    def settle(self) -> None:  # noqa: B027 - most have stored everything by the time they return
        """Returns when everything that was given to it is stored."""

    @abstractmethod
    def spoil(self, chooser: random.Random) -> str:
        """Overwrites the stored KV with noise and says what was overwritten; names, sizes and file headers stay."""


class Ours(Peer):
    name = "ours"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.settings = {"arena_dir": str(self.folder), "arena_bytes": ARENA_BYTES}

    def spoil(self, chooser: random.Random) -> str:
        (path,) = [file for file in self.folder.rglob("*") if file.is_file()]
        arena = native.load().Arena.open(str(path), read_only=True)
        sealed = [info.slot for info in arena.scan()]
        stride = -(-arena.slot_bytes // PAGE) * PAGE
        payloads = arena.file_bytes - arena.slots * stride
        arena.close()
        with path.open("r+b") as file:
            for slot in sealed:
                file.seek(payloads + slot * stride)
                file.write(chooser.randbytes(stride))
        return f"the payloads of {len(sealed)} blocks in the arena"


class Example(Peer):
    name = "example_connector"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.transfer = {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(self.folder)},
        }

    def spoil(self, chooser: random.Random) -> str:
        files = sorted(self.folder.rglob("*.safetensors"))
        for path in files:
            with path.open("r+b") as file:
                header = 8 + int.from_bytes(file.read(8), "little")
                file.seek(header)
                file.write(chooser.randbytes(path.stat().st_size - header))
        return f"the tensors in {len(files)} safetensors files"


class LMCache(Peer):
    name = "lmcache"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.socket() as probe, socket.socket() as other:
            probe.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self._port, self._http = probe.getsockname()[1], other.getsockname()[1]
        self.transfer = {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "lmcache.mp.host": "tcp://127.0.0.1",
                "lmcache.mp.port": self._port,
            },
        }

    @contextmanager
    def beside(self) -> Iterator[None]:
        """A server of its own for each engine, so that its memory tier is empty and its file tier is what restores."""
        command = [str(Path(python()).parent / "lmcache"), "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--http-port", str(self._http)]
        command += ["--chunk-size", str(CHUNK_TOKENS), "--l1-size-gb", "1"]
        command += ["--eviction-policy", "LRU", "--supported-transfer-mode", "auto"]
        command += ["--shm-name", "", "--disable-metrics"]
        command += ["--l2-adapter", f'{{"type":"fs","base_path":"{self.folder}"}}']
        log = Path(tempfile.mkstemp(prefix="gft-bench-lmcache.", suffix=".log")[1])
        with log.open("wb") as out:
            server = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                env={**os.environ, "LMCACHE_TRACK_USAGE": "false"},
            )
        try:
            self._wait_for(server, log)
            yield
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            log.unlink(missing_ok=True)

    def _wait_for(self, server: "subprocess.Popen[bytes]", log: Path) -> None:
        ends = time.monotonic() + SERVER_DEADLINE_S
        while True:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            if server.poll() is not None or time.monotonic() > ends:
                raise GpuFtError(
                    f"LMCache's server did not start; its log ends with\n{tail(log)}\n"
                )
            time.sleep(0.2)

    def settle(self) -> None:
        ends, before, since = time.monotonic() + SETTLE_DEADLINE_S, -1, time.monotonic()
        while time.monotonic() < ends:
            now = sum(f.stat().st_size for f in self.folder.rglob("*.data"))
            if now != before:
                before, since = now, time.monotonic()
            elif now and time.monotonic() - since > QUIET_S:
                return
            time.sleep(0.2)
        raise GpuFtError("LMCache's file tier stored nothing", where=str(self.folder))

    def spoil(self, chooser: random.Random) -> str:
        files = sorted(self.folder.rglob("*.data"))
        for path in files:
            path.write_bytes(chooser.randbytes(path.stat().st_size))
        return f"all bytes of {len(files)} chunk files"


def peers(folder: Path) -> list[Peer]:
    return [Ours(folder), LMCache(folder), Example(folder)]
