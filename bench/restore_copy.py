"""The 10,000-block part of `restore_blocks`: from where KV is kept to where the engine wants it, each block in 30 fragments.

Ways beside ours, over the same bytes in the same run: memcpy; one safetensors file per request and layer, as vLLM's ExampleConnector keeps
them; and LMCache's file tier, driven by itself. All files lie in memory, so that nobody waits for a disk.
"""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

from bench.arena_copy import _Bench, address_of, memory_folder
from bench.offline import ROOT
from bench.restore_peers import python
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import GpuFtError

BLOCKS = 10_000
LAYERS = 30
PIECE = 2048  # bytes of one block in one layer, keys and values
REQUEST_BLOCKS = 100  # a prompt of 3,200 tokens
DEADLINE_S = 600.0


def rows(options: Options) -> list[Row]:
    blocks = BLOCKS // 10 if options.quick else BLOCKS
    rounds = 3 if options.quick else 7
    options.say(f"{blocks} blocks of {LAYERS} x {PIECE} bytes")
    with _Bench(PIECE, LAYERS, blocks, 1) as bench:
        for _ in range(2):
            bench.store()
            bench.load()
            bench.memcpy_in()
        ours = [bench.load() for _ in range(rounds)]
        plain = [bench.memcpy_in() for _ in range(rounds)]
        out = [_row("arena", ours, blocks, plain, "memcpy of as many bytes in one piece")]
        options.say("the same blocks from a disk log whose files lie in memory too")
        log = _disk_log(bench, blocks, rounds)
        out.append(_row("disk_log", log, blocks, plain, "memcpy of as many bytes in one piece"))
        others: dict[str, Callable[[], list[float]]] = {
            "safetensors": lambda: _safetensors(bench, blocks, rounds),
            "lmcache_fs": lambda: _lmcache(blocks, rounds),
        }
        for name, way in others.items():
            try:
                speeds = way()
            except (GpuFtError, ImportError) as error:
                options.lacking.append(f"blocks by {name}: {error}")
                continue
            what = _WHAT[name].format(requests=blocks // REQUEST_BLOCKS, layers=LAYERS)
            out.append(_row(f"arena.beside.{name}", ours, blocks, speeds, what))
            out.append(_row(f"disk_log.beside.{name}", log, blocks, speeds, what))
    return out


_WHAT = {
    "safetensors": "{requests} requests x {layers} layers of safetensors files, loaded and put into the paged cache, no digest",
    "lmcache_fs": "LMCache 0.5.6's file tier alone, one raw file per block into its buffers, not yet in the engine's cache, no digest",
}


def _row(name: str, ours: list[float], blocks: int, theirs: list[float], what: str) -> Row:
    size = blocks * LAYERS * PIECE / 1e9
    mine, other = [size / speed for speed in ours], [size / speed for speed in theirs]
    return row(
        f"restore_blocks.{name}.{blocks}",
        statistics.median(mine),
        "s",
        baseline=statistics.median(other),
        ratio=statistics.median(other) / statistics.median(mine),
        note=f"{size:.2f} GB in blocks of {LAYERS * PIECE >> 10} KiB, every digest and link checked; {spread(mine)}; "
        f"baseline: {what}; {spread(other)}",
    )


def _disk_log(bench: _Bench, blocks: int, rounds: int) -> list[float]:
    """GB/s of a reader in the way a restore goes: a request's blocks at once, each into its places in the layers."""
    core = native.load()
    target = address_of(bench._engine_side)
    with memory_folder(2 * bench.bytes + (256 << 20)) as folder:
        writer = core.DiskLog.open(str(folder / "log"))
        namespace = parent = writer.add_namespace(b"bench")
        payload = bytearray(os.urandom(LAYERS * PIECE))
        for number in range(blocks):
            payload[:8] = number.to_bytes(8, "little")
            key = core.DiskKey.seal(
                namespace=namespace,
                shard=0,
                position=number,
                epoch=1,
                block_hash=number.to_bytes(8, "little"),
                parent_link=parent,
                payload=payload,
            )
            parent = key.link
            writer.append(key, payload)
        if not writer.flush(DEADLINE_S) or not writer.close():
            raise GpuFtError("the disk log did not take every block", where=str(folder))
        log = core.DiskLog.open(str(folder / "log"), read_only=True)
        entries = sorted(log.entries(), key=lambda entry: entry.key.position)
        if len(entries) != blocks:
            raise GpuFtError("the disk log does not have every block", value=len(entries))
        wanted = [
            (
                entry,
                [(n * PIECE, PIECE, target + (n * blocks + number) * PIECE) for n in range(LAYERS)],
            )
            for number, entry in enumerate(entries)
        ]
        speeds = []
        for _ in range(rounds + 1):  # the first is not counted
            started = time.perf_counter()
            for first in range(0, blocks, REQUEST_BLOCKS):
                for status, text in log.read_into(wanted[first : first + REQUEST_BLOCKS]):
                    if status != "ok":
                        raise GpuFtError("the disk log did not give a block back", value=text)
            speeds.append(bench.bytes / (time.perf_counter() - started) / 1e9)
        log.close()
    return speeds[1:]


def _safetensors(bench: _Bench, blocks: int, rounds: int) -> list[float]:
    """GB/s. A file holds a layer of a request, [blocks, bytes]; its rows go to the block's places in that layer."""
    import ctypes

    from safetensors import safe_open
    from safetensors.numpy import save_file

    numpy = __import__("numpy")
    target = address_of(bench._engine_side)
    requests = blocks // REQUEST_BLOCKS
    with memory_folder(bench.bytes + (64 << 20)) as folder:
        for request in range(requests):
            for layer in range(LAYERS):
                data = numpy.random.default_rng(layer).bytes(REQUEST_BLOCKS * PIECE)
                tensor = numpy.frombuffer(data, numpy.uint8).reshape(REQUEST_BLOCKS, PIECE)
                save_file({"kv_cache": tensor}, folder / f"{request}.{layer}.safetensors")
        speeds = []
        for _ in range(rounds):
            started = time.perf_counter()
            for request in range(requests):
                for layer in range(LAYERS):
                    with safe_open(folder / f"{request}.{layer}.safetensors", "np") as file:
                        tensor = file.get_tensor("kv_cache")
                    place = target + (layer * blocks + request * REQUEST_BLOCKS) * PIECE
                    ctypes.memmove(place, tensor.ctypes.data, tensor.nbytes)
            speeds.append(bench.bytes / (time.perf_counter() - started) / 1e9)
    return speeds


def _lmcache(blocks: int, rounds: int) -> list[float]:
    """GB/s of LMCache's file tier, measured in an interpreter that has it."""
    size = LAYERS * PIECE
    with memory_folder(blocks * size + (64 << 20)) as folder:
        order = {"folder": str(folder), "blocks": blocks, "bytes": size, "rounds": rounds}
        try:
            done = subprocess.run(
                [python(), str(ROOT / "bench" / "lmcache_files.py"), json.dumps(order)],
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                env={**os.environ, "LMCACHE_TRACK_USAGE": "false"},
            )
        except subprocess.TimeoutExpired:
            raise GpuFtError(
                "LMCache's file tier did not finish", value=f"{DEADLINE_S} s"
            ) from None
        if done.returncode != 0:
            raise GpuFtError("LMCache's file tier could not be driven", value=done.stderr[-500:])
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return [float(speed) for speed in answer["speeds"]]
