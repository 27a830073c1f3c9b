"""The `Tier` for engine tensors on a device: plain asynchronous copies between the device and the arena's pinned slots.

The arena's mapping is registered with CUDA once, stores run on a low-priority stream of their own and loads on another;
one thread waits for their events, digests and seals. Works unchanged on CPU tensors, which is how it is tested without a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.blocks import BlockRef, JobResult
from dynamo_gpu_ft.kv.layout import BlockLayout

if TYPE_CHECKING:
    import torch

    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.kv")


@dataclass(slots=True)
class _Work:
    kind: str  # "store" | "load" | "hold" | "release" | "pin"
    job_id: int
    blocks: Sequence[BlockRef]
    hashes: Sequence[bytes]
    ready: Any  # event recorded on the engine's stream when the work was queued; None on CPU
    bytes: int = 0
    until: int = 0


class DeviceTier:
    """`Tier` over the arena for device tensors. Copies run on this tier's streams, verification on its thread.

    `tensors` are kept alive until `close` returned. A store waits for the engine's stream at the moment of `store`; a load is
    reported only after its copies have completed, so the engine's later reads see it."""

    def __init__(
        self,
        arena: _core.Arena,
        writer: _core.Writer,
        layout: BlockLayout,
        tensors: Mapping[str, torch.Tensor],
    ) -> None:
        import torch

        self._torch = torch
        self._core = native.load()
        self._arena, self._writer, self._layout = arena, writer, layout
        self._tensors = list(tensors.values())
        self.block_bytes = layout.block_bytes
        self._device = self._tensors[0].device
        self._cuda = self._device.type == "cuda"
        self._streams: dict[str, Any] = {"store": None, "load": None}
        if self._cuda:
            low, high = torch.cuda.Stream.priority_range()
            self._streams["store"] = torch.cuda.Stream(self._device, priority=low)
            self._streams["load"] = torch.cuda.Stream(self._device, priority=high)
        self._pinned = self._cuda and self._pin()
        self._fragments = [_fragments(self._tensors, region) for region in layout.regions]
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Condition()
        self._results: list[JobResult] = []
        self._cancelled: set[int] = set()
        self._running = 0
        self._pending: dict[int, tuple[str, int, int]] = {}
        self._queued = 0
        self._thread = threading.Thread(target=self._run, name="gpu-ft-device-tier", daemon=True)
        self._thread.start()

    # -- queueing (engine's thread) --------------------------------------------------------------------------------

    def store(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._enqueue("store", job_id, blocks)

    def load(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._enqueue("load", job_id, blocks)

    def hold(self, block_hashes: Sequence[bytes]) -> None:
        self._put(_Work("hold", 0, (), list(block_hashes), None))

    def release(self, block_hashes: Sequence[bytes]) -> None:
        self._put(_Work("release", 0, (), list(block_hashes), None))

    def pin(self, job_id: int, block_hashes: Sequence[bytes], until: int) -> None:
        self._put(_Work("pin", job_id, (), list(block_hashes), None, until=until))

    def _enqueue(self, kind: str, job_id: int, blocks: Sequence[BlockRef]) -> None:
        ready = None
        if self._cuda:
            ready = self._torch.cuda.Event()
            ready.record(self._torch.cuda.current_stream(self._device))
        with self._lock:
            self._pending[job_id] = (kind, len(blocks), len(blocks) * self.block_bytes)
        self._put(_Work(kind, job_id, list(blocks), (), ready))

    def _put(self, work: _Work) -> None:
        with self._lock:
            self._queued += 1
        self._work.put(work)

    def cancel(self, job_ids: Iterable[int]) -> None:
        with self._lock:
            wanted = {j for j in job_ids if j in self._pending}
            self._cancelled |= wanted
            self._lock.wait_for(lambda: self._running not in wanted, timeout=5.0)

    def poll(self) -> list[JobResult]:
        with self._lock:
            results, self._results = self._results, []
        return results

    def backlog(self) -> tuple[int, int]:
        with self._lock:
            stores = [p for p in self._pending.values() if p[0] == "store"]
        return sum(p[1] for p in stores), sum(p[2] for p in stores)

    def wait(self, timeout: float) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: self._queued == 0, timeout)

    def close(self, timeout: float = 5.0) -> None:
        self._work.put(None)
        self._thread.join(timeout)
        if self._pinned and not self._thread.is_alive():
            self._torch.cuda.cudart().cudaHostUnregister(self._arena.base_address())
        self._writer.close()

    # -- the tier's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            with self._lock:
                self._running = work.job_id
            started = time.monotonic()
            try:
                statuses = self._do(work)
            except Exception as error:
                _log.error("device tier job %d failed: %s", work.job_id, error)
                statuses = [self._status(error)] * (1 if work.kind == "pin" else len(work.blocks))
            with self._lock:
                self._running = 0
                self._queued -= 1
                if work.kind in ("store", "load", "pin"):
                    self._pending.pop(work.job_id, None)
                    self._cancelled.discard(work.job_id)
                    took = time.monotonic() - started
                    self._results.append(
                        JobResult(work.job_id, work.kind, tuple(statuses), work.bytes, took)
                    )
                self._lock.notify_all()

    def _status(self, error: Exception) -> str:
        return error.code if isinstance(error, self._core.CoreError) else "device"

    def _do(self, work: _Work) -> list[str]:
        if work.kind == "hold":
            self._writer.hold(work.hashes)
            return []
        if work.kind == "release":
            self._writer.release(work.hashes)
            return []
        if work.kind == "pin":
            pinned = self._writer.pin(work.hashes, until=work.until)
            return ["ok" if pinned or work.until == 0 else "not_found"]
        one = self._store_one if work.kind == "store" else self._load_one
        stream = self._streams[work.kind]
        if stream is not None and work.ready is not None:
            stream.wait_event(work.ready)
        statuses: list[str] = []
        for block in work.blocks:
            with self._lock:
                cancelled = work.job_id in self._cancelled
            if cancelled:
                statuses.append("cancelled")
                continue
            if work.kind == "load" and statuses and statuses[-1] != "ok":
                statuses.append("chain")
                continue
            try:
                statuses.append(one(work, block))
            except self._core.CoreError as error:
                statuses.append(error.code)
        return statuses

    def _store_one(self, work: _Work, block: BlockRef) -> str:
        claim = self._writer.claim(
            block_hash=block.block_hash, parent_hash=block.parent_hash, position=block.position
        )
        if claim is None:
            return "present"
        try:
            self._copy(block.block_id, claim.address, out=True)
        except Exception:
            claim.abandon()
            raise
        claim.seal()
        work.bytes += self.block_bytes
        return "ok"

    def _load_one(self, work: _Work, block: BlockRef) -> str:
        read = self._writer.find(block_hash=block.block_hash, parent_hash=block.parent_hash)
        read.verify()
        self._copy(block.block_id, read.address, out=False)
        read.recheck()
        work.bytes += self.block_bytes
        return "ok"

    def _copy(self, block_id: int, address: int, *, out: bool) -> None:
        """Copies one block and waits for it, so that the caller may seal or re-check."""
        if not 0 <= block_id < self._layout.num_blocks:
            raise IndexError(f"engine block {block_id} is outside 0..{self._layout.num_blocks - 1}")
        stream = self._streams["store" if out else "load"]
        slot = _slot_tensor(address, self.block_bytes)
        offset = 0
        with self._torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            for view, region in zip(self._fragments, self._layout.regions, strict=True):
                host = slot[offset : offset + region.fragment_bytes]
                device = view[block_id]
                if out:
                    host.copy_(device, non_blocking=True)
                else:
                    device.copy_(host, non_blocking=True)
                offset += region.fragment_bytes
        if stream is not None:
            stream.synchronize()

    def _pin(self) -> bool:
        code = self._torch.cuda.cudart().cudaHostRegister(
            self._arena.base_address(), self._arena.file_bytes, 0
        )
        if int(code) != 0:
            _log.warning("the arena could not be pinned (CUDA error %s): copies are slower", code)
            return False
        return True


def _fragments(tensors: Sequence[torch.Tensor], region: Any) -> torch.Tensor:
    """A byte view [num_blocks, fragment_bytes] of one region, over the storage of the tensor that holds it."""
    import torch

    for tensor in tensors:
        storage = tensor.untyped_storage()
        base = storage.data_ptr()
        if base <= region.address < base + storage.nbytes():
            flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            flat = flat.set_(storage)
            return flat.as_strided(
                (region.num_blocks, region.fragment_bytes),
                (region.stride_bytes, 1),
                region.address - base,
            )
    raise ValueError(f"no tensor holds address {region.address:#x}")


def _slot_tensor(address: int, size: int) -> torch.Tensor:
    """A CPU byte tensor over a slot of the arena; it does not own the bytes."""
    import torch

    buffer = (ctypes.c_uint8 * size).from_address(address)
    return torch.frombuffer(buffer, dtype=torch.uint8)
