"""What the disk log's tests share: blocks with their identities, and appends that must end durable."""

from __future__ import annotations

import random
from typing import Any

from dynamo_gpu_ft import native

core = native.load()
NAMESPACE = b'{"engine": {"model": "disk"}}'


def seal(namespace: bytes, name: bytes, parent: bytes, data: bytes, position: int = 0) -> Any:
    return core.DiskKey.seal(
        namespace=namespace,
        shard=0,
        position=position,
        epoch=3,
        block_hash=name,
        parent_link=parent,
        payload=data,
    )


def block(log: Any, name: bytes, data: bytes) -> tuple[Any, bytes]:
    namespace = log.add_namespace(NAMESPACE)
    return seal(namespace, name, namespace, data), data


def chain(
    log: Any, rng: random.Random, count: int, size: int | None = None
) -> list[tuple[Any, bytes]]:
    """Blocks named by their position, each the next one's parent."""
    parent = namespace = log.add_namespace(NAMESPACE)
    out = []
    for position in range(count):
        data = rng.randbytes(size or rng.randrange(1, 25_000))
        key = seal(namespace, b"%d" % position, parent, data, position)
        parent = key.link
        out.append((key, data))
    return out


def append_all(log: Any, blocks: list[tuple[Any, bytes]]) -> None:
    """All of them durable, or the test ends."""
    log.poll()
    for ticket, (key, data) in enumerate(blocks):
        assert log.append(key, data, ticket) == "ok"
    assert log.flush(60)
    assert sorted(log.poll()) == [(ticket, "ok") for ticket in range(len(blocks))]
