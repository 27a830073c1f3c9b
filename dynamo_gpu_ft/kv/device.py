"""The `Tier` for engine tensors on a device: a thin face over the native device copy engine.

`open_device` finds the device, its kernels and its thresholds once per process; `DeviceTier` then only queues. Without a
GPU the same tier runs on a simulated device (`sim.twin`), which is how it is tested.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv import tuning
from dynamo_gpu_ft.kv.arena import HostTier
from dynamo_gpu_ft.kv.blocks import BlockRef, JobResult
from dynamo_gpu_ft.kv.layout import BlockLayout

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

#: Device memory per copy thread for packing, and how much of the device the packing kernels may take.
STAGING_BYTES, THREAD_BLOCKS = 16 << 20, 4

_log = logging.getLogger("dynamo_gpu_ft.kv")


@dataclass(frozen=True)
class OpenDevice:
    """A device with what was found out about it; `kernels` names where they come from, or why there are none."""

    native: _core.Device
    kernels: str
    out: tuning.Thresholds
    load: tuning.Thresholds

    @property
    def simulated(self) -> bool:
        return self.native.facts()["simulated"] == "yes"


def open_device(ordinal: int, config: Config) -> OpenDevice:
    """The GPU that this process calls `ordinal`, in its primary context. Measures once per device and driver (< 1 s).

    Raises `NotProtected` when there is no driver or the device cannot be used."""
    core = native.load()
    try:
        device = core.Device.open(ordinal, timeout=config.device_timeout_s)
    except core.CoreError as error:
        raise NotProtected(
            "the device cannot be used for KV snapshots",
            where=f"device {ordinal}",
            value=str(error),
            rule=error.code,
            remedy="run `dynamo-gpu-ft doctor`",
        ) from error
    return prepare(device, cache=config.cache)


def prepare(device: _core.Device, *, cache: str = "") -> OpenDevice:
    """Loads kernels into an open device and finds its thresholds: from the cache folder, else by measuring."""
    kernels = _load_kernels(device)
    facts = device.facts()
    if facts["kernels"] != "yes":
        return OpenDevice(device, kernels, (), ())
    path = _cache_file(cache, facts["uuid"])
    key = tuning.key_of(facts)
    tuned = tuning.read(path, key)
    if tuned is None:
        tuned = _measure(device, facts, key)
        if facts["simulated"] != "yes":
            tuning.write(path, tuned)
    return OpenDevice(device, kernels, tuned.out, tuned.load)


def _load_kernels(device: _core.Device) -> str:
    try:
        # By name, because the folder lies outside the package in a checkout.
        kernels = importlib.import_module("dynamo_gpu_ft.kernels.compile")
    except ImportError as error:
        return f"none: {error}"
    way, why = kernels.load(device.use_kernels, device.facts()["compute"])
    if why:
        _log.info("no copy kernels (%s): small fragments go by batched copies", why)
    return way if not why else f"{way}: {why}"


def _measure(device: _core.Device, facts: Mapping[str, str], key: str) -> tuning.Tuned:
    direct = "batch" if facts["batch"] == "yes" else "plain"
    try:
        out = tuning.thresholds(tuning.measured(device.measure, direct, load=False))
        load = tuning.thresholds(tuning.measured(device.measure, direct, load=True))
    except native.load().CoreError as error:
        _log.warning("the copy paths could not be measured (%s): defaults are used", error)
        out = load = tuning.DEFAULT
    return tuning.Tuned(tuning.VERSION, key, out, load)


def _cache_file(cache: str, uuid: str) -> Path:
    folder = Path(cache) if cache else Path.home() / ".cache" / "dynamo_gpu_ft"
    return folder / f"copy-paths-{uuid}.json"


class DeviceTier(HostTier):
    """`Tier` over the arena for device tensors. `tensors` are kept alive until `close` returned.

    Stores and loads are ordered behind what the engine's stream holds when they are queued: torch's current stream, or the
    one set with `use_stream`. A load is reported after its copies have completed, so the engine's later reads see it."""

    def __init__(
        self,
        arena: _core.Arena,
        writer: _core.Writer,
        layout: BlockLayout,
        tensors: Mapping[str, Any],
        *,
        config: Config | None = None,
        device: OpenDevice | None = None,
    ) -> None:
        config = config or Config()
        self._core = native.load()
        self._arena, self._writer, self._tensors = arena, writer, dict(tensors)
        self._device = next(iter(tensors.values())).device
        self._stream: int | None = None
        self._refused: list[JobResult] = []
        if device is None:
            device = self._open(config)
        self.opened = device
        self._engine: _core.DeviceEngine = self._core.DeviceEngine(
            writer,
            device.native,
            self._core.Layout(layout.native()),
            threads=max(2, config.copy_threads),
            staging_bytes=STAGING_BYTES,
            thread_blocks=THREAD_BLOCKS,
            device_digest=config.device_digest,
            rate=config.device_rate,
            slowdown=config.device_slowdown_percent / 100,
            pack_out=device.out,
            pack_in=device.load,
        )
        self.block_bytes = layout.block_bytes

    def _open(self, config: Config) -> OpenDevice:
        if self._device.type != "cuda":
            raise NotProtected(
                "these tensors are not on a device that KV can be copied from",
                value=str(self._device),
                rule="a CUDA device, or the host tier for CPU tensors",
                remedy="use kv.arena.HostTier",
            )
        import torch

        index = self._device.index
        return open_device(torch.cuda.current_device() if index is None else index, config)

    def use_stream(self, stream: int) -> None:
        """Raw handle of the stream that the engine computes on; needed when it is not torch's current one."""
        self._stream = stream

    def _current_stream(self) -> int:
        if self._stream is not None:
            return self._stream
        if self._device.type != "cuda":
            return 0
        import torch

        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def store(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._submit("store", job_id, blocks)

    def load(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._submit("load", job_id, blocks)

    def _submit(self, kind: str, job_id: int, blocks: Sequence[BlockRef]) -> None:
        """Queues, or makes a result at once when the device cannot even be asked: a lost device is a status, not an error."""
        queue = self._engine.store_after if kind == "store" else self._engine.load_after
        try:
            queue(job_id, self._native(blocks), self._current_stream())
        except self._core.CoreError as error:
            if error.code not in ("device", "busy"):
                raise
            self._refused.append(JobResult(job_id, kind, (error.code,) * len(blocks), 0, 0.0))

    def poll(self) -> list[JobResult]:
        refused, self._refused = self._refused, []
        return refused + super().poll()

    def step(self, seconds: float) -> None:
        """The engine's last step took this long: stores give way when steps with stores are slower than usual."""
        self._engine.step(seconds)

    def facts(self) -> dict[str, float]:
        """Counters of the copy path: registered bytes, ways taken, retries, the byte budget; see the native stub."""
        return self._engine.facts()
