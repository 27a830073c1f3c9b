"""The device half of the typed stub: classes of the same module, in a file of their own for their length.

There is no module of this name at run time; everybody imports `_core`."""

from collections.abc import Sequence

from dynamo_gpu_ft.native._core import Block, CopyEngine, Layout, Writer

class Device:
    """A device that KV can be copied from and to: an NVIDIA GPU by its driver, or a twin simulated on the CPU.

    A lost or wedged device gives "device"; no call of ours waits for it without a deadline."""

    @staticmethod
    def open(ordinal: int, *, timeout: float = 10.0) -> Device:
        """The GPU as this process numbers it, in its primary context (torch's). Errors: "not_found" (no driver), "version", "invalid", "device"."""
    @staticmethod
    def probe() -> str:
        """One line about the driver; makes no context. Errors: "not_found", "version"."""
    def facts(self) -> dict[str, str]:
        """name, driver, uuid, compute, simulated, batch, kernels, node, lost."""
    def use_kernels(self, images: Sequence[bytes]) -> None:
        """Fat binaries, cubins or PTX that hold both kernels together; none: do without. Errors: "device"."""
    def measure(self, way: str, *, load: bool, bytes: int, count: int) -> float:
        """Median seconds of a transfer of `count` pieces by "plain", "batch" or "kernel". Blocks briefly. Errors: "not_found", "invalid", "timed_out", "device"."""
    # The rest is for twins alone ("invalid" otherwise): a device of host memory and threads, late and in stream order.
    @staticmethod
    def twin(
        *,
        seed: int = 0,
        gb_per_s: float = 8.0,
        call_seconds: float = 0.0,
        work_seconds: float = 1e-5,
        version: int = 13000,
        kernels: bool = True,
        register_bytes: int = ...,
        timeout: float = 10.0,
    ) -> Device: ...
    def twin_set(
        self,
        *,
        seed: int = 0,
        gb_per_s: float = 8.0,
        call_seconds: float = 0.0,
        work_seconds: float = 1e-5,
        version: int = 13000,
        kernels: bool = True,
        register_bytes: int = ...,
        fail_at: int = 0,
        fail_with: int = 0,
        lose_at: int = 0,
        block_at: int = 0,
        flip_every: int = 0,
    ) -> None:
        """From now on; call numbers count from 1, the next call. Releases a blocked call."""
    def twin_calls(self) -> tuple[int, int]:
        """(driver calls so far, bytes registered now)."""
    def twin_allocate(self, bytes: int) -> int: ...
    def twin_adopt(self, address: int, bytes: int) -> None:
        """Host memory becomes this device's, under its own address; the caller keeps it alive."""
    def twin_stream(self) -> int: ...
    def twin_write(self, address: int, data: bytes) -> None: ...
    def twin_read(self, address: int, bytes: int) -> bytes: ...
    def twin_fill(
        self, stream: int, address: int, bytes: int, value: int, seconds: float
    ) -> None: ...
    def twin_copy(self, stream: int, to: int, source: int, bytes: int, seconds: float) -> None: ...
    def twin_launch(
        self,
        kernel: str,
        pieces: Sequence[tuple[int, int, int, int, int]],
        staging: int,
        staging_bytes: int,
        digest: bool,
    ) -> tuple[int, list[int]]:
        """The host twin of a kernel over (address, offset, bytes, word, owner): (error word, 64 digests)."""

class DeviceEngine(CopyEngine):
    """The copy engine over a device's memory: same queue, same seals, same results; a status more: "device".

    `pack_out`, `pack_in`: ascending (count, below): transfers of at least `count` pieces pack pieces shorter than `below`."""

    def __init__(
        self,
        writer: Writer,
        device: Device,
        layout: Layout,
        *,
        threads: int = 2,
        staging_bytes: int = ...,
        chunk_bytes: int = ...,
        thread_blocks: int = 4,
        device_digest: bool = False,
        rate: int = 0,
        slowdown: float = 0.0,
        pack_out: Sequence[tuple[int, int]] = ...,
        pack_in: Sequence[tuple[int, int]] = ...,
    ) -> None: ...
    def store_after(self, job_id: int, blocks: Sequence[Block], stream: int) -> None:
        """`store`, once all that the stream (raw handle) holds now is done. Errors: "busy" (the stream is being captured), "device"."""
    def load_after(self, job_id: int, blocks: Sequence[Block], stream: int) -> None: ...
    def step(self, seconds: float) -> None:
        """The engine's last step took this long: stores give way when steps with stores are slower."""
    def facts(self) -> dict[str, float]:
        """payload_bytes, registered_bytes, registration_seconds, registration_done, registration_failed, huge_pages, batches,
        direct_copies, packed_pieces, bounced_bytes, retries, mixups, overdue, kernels, batched_copies, device_lost, device_stuck,
        store_rate (0: no limit), usual_step_seconds."""

def device_plan(
    fragments: Sequence[tuple[int, int, int, int, int]],
    *,
    kernels: bool,
    pack_all: bool,
    pack: Sequence[tuple[int, int]],
    staging_bytes: int,
    max_pieces: int,
    host_base: int,
    host_chunk: int,
) -> list[tuple[int, int, list[int]]]:
    """The plan for fragments (device, host, bytes, owner, position) as (way, round, values); see gft_device.h. Pure."""

def device_pace(
    rate: float, slowdown: float, events: Sequence[tuple[float, float, float]]
) -> list[tuple[float, float]]:
    """(seconds to wait, rate in force) after each event (time, kind, value) of a byte budget's life. Pure."""
