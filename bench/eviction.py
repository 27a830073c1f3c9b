"""What the eviction policy is worth: how much of what is asked again is still there, beside plain least-recently-used order.

The same requests go through two arenas whose only difference is the cap of protected blocks: at zero every block is on
probation, which is plain LRU. Popular prompts come again and again between prompts that come once, as in agent traffic.
"""

import random
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native

SLOT_BYTES, SLOTS = 64, 2048
POPULAR, BLOCKS = 64, 16  # prompts that come again, and blocks of each prompt: half of the arena
ONCE = (1, 4, 16)  # prompts that come once for each that comes again


def measure(options: Options) -> list[Row]:
    rounds, requests = (2, 2000) if options.quick else (7, 6000)
    rows: list[Row] = []
    for once in ONCE:
        options.say(f"{once} single prompts per popular one")
        ours, plain = [], []
        for seed in range(rounds):
            plain.append(_run(0, once, requests, seed))
            ours.append(_run(800, once, requests, seed))
        rows += _rows(once, ours, plain)
    return rows


def _rows(
    once: int, ours: list[tuple[float, float]], plain: list[tuple[float, float]]
) -> list[Row]:
    hits, before = [hit for hit, _ in ours], [hit for hit, _ in plain]
    costs, costs_before = [cost for _, cost in ours], [cost for _, cost in plain]
    hit, cost = statistics.median(hits), statistics.median(costs)
    lru, lru_cost = statistics.median(before), statistics.median(costs_before)
    return [
        row(
            f"eviction.hits.{once}_single_per_popular",
            100 * hit,
            "%",
            baseline=100 * lru,
            ratio=hit / lru if lru else None,
            note="blocks of popular prompts that are still there when they are asked for again; baseline: the same arena "
            "without protected blocks (plain LRU)",
        ),
        row(
            f"eviction.cost.{once}_single_per_popular",
            1e6 * cost,
            "us/block",
            baseline=1e6 * lru_cost,
            ratio=lru_cost / cost,
            note=f"claim, digest of {SLOT_BYTES} bytes, seal, release, from Python; {spread([1e6 * c for c in costs])}",
        ),
    ]


def _run(protected_part: int, once: int, requests: int, seed: int) -> tuple[float, float]:
    """(share of the popular blocks found, seconds per block) over `requests` requests on a new arena."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="gft-bench-", dir="/dev/shm") as folder:
        arena, writer = _open(Path(folder) / "arena")
        arena.set_caps(protected_part=protected_part, pinned_part=0)
        found = asked = blocks = 0
        started = time.perf_counter()
        for number in range(requests):
            popular = rng.randrange(once + 1) == 0
            # A few prompts are far more popular than the others.
            name = f"p{int(POPULAR * rng.random() ** 2)}" if popular else f"once-{number}"
            hits = _store(writer, [f"{name}/{i}".encode() for i in range(BLOCKS)])
            blocks += BLOCKS
            if popular and number > requests // 4:  # the first quarter fills the arena
                found, asked = found + hits, asked + BLOCKS
        seconds = time.perf_counter() - started
        writer.close()
        arena.close()
    return found / max(1, asked), seconds / blocks


def _store(writer: Any, names: list[bytes]) -> int:
    """One request: stores its blocks and ends; how many were there."""
    present = 0
    for i, name in enumerate(names):
        parent = names[i - 1] if i else None
        claim = writer.claim(block_hash=name, parent_hash=parent, position=i)
        if claim is None:
            present += 1
        else:
            claim.seal()
    writer.release(names)
    return present


def _open(path: Path) -> tuple[Any, Any]:
    core = native.load()
    arena = core.Arena.create(str(path), slot_bytes=SLOT_BYTES, slots=SLOTS, ledger_bytes=1 << 16)
    token = uuid.uuid4().bytes
    arena.begin_epoch(token)
    number = arena.add_namespace(b"bench")
    return arena, arena.attach_writer(shard=0, token=token, namespace=number)
