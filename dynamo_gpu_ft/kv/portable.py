"""KV blocks as files that travel: what a folder of safetensors files with a manifest says, and what it takes to believe it.

Pure: selections, names, shapes and checks. `cli.export_kv` and `cli.import_kv` read and write. A block keeps its identity for
life, so an imported prefix is the exported one: same links, same digests, same epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_gpu_ft.errors import PortableError
from dynamo_gpu_ft.kv.geometry import Opaque, ShardLayout

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

FORMAT, VERSION = "dynamo_gpu_ft.kv", 1
MANIFEST = "manifest.json"

#: What an arena can take (csrc/arena/format.h): checked before one is touched, so that nothing is imported by halves.
MAX_NAMESPACES, MAX_RECORD_BYTES = 64, 4096
#: Epochs count engine starts; an arena that took over a forged one near its last could not begin another.
MAX_EPOCH = 1 << 31

#: safetensors' names of element types, by torch's.
_DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "uint8": "uint8",
    "int8": "int8",
}


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of one shard; byte strings in hexadecimal, `tensor` its name in `file`."""

    file: str
    tensor: str
    hash: str
    shard: int
    position: int
    epoch: int
    parent_link: str
    link: str
    digest: str


class Namespace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`record` in hexadecimal is what counts; `shown` is the same for people. Blocks of a prefix come parents first."""

    record: str
    shown: dict[str, Any]
    blocks: list[Block]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int
    digest: str  # the algorithm of all digests and links
    payload_bytes: int
    namespaces: list[Namespace]


def refuse(where: str, value: object, rule: str) -> PortableError:
    return PortableError(
        "these exported KV blocks are refused",
        where=where if where.isprintable() else ascii(where),
        value=value,
        rule=rule,
        remedy="export them again; nothing was imported",
    )


@dataclass(frozen=True, slots=True)
class Chosen:
    """Blocks (number -> identity) to export, parents first, and how many asked for could not be reached from position 0."""

    blocks: list[int]
    unreachable: int


def choose(
    identities: Mapping[int, _core.Identity], wanted: Iterable[int], roots: Mapping[bytes, bytes]
) -> Chosen:
    """The whole prefixes that lead to `wanted` (numbers in `identities`). `roots` are the namespaces' ids, which the first
    block of a prefix has as its parent link."""
    by_link = {(i.namespace_id, i.shard, i.link): number for number, i in identities.items()}
    found: dict[int, None] = {}
    unreachable = 0
    for number in wanted:
        way: list[int] = []
        at: int | None = number
        while at is not None and at not in found:
            identity = identities[at]
            way.append(at)
            if identity.position == 0:
                at = -1 if identity.parent_link in roots else None
                break
            before = by_link.get((identity.namespace_id, identity.shard, identity.parent_link))
            follows = before is not None and identities[before].position == identity.position - 1
            at = before if follows else None
        if at is None:
            unreachable += 1
        else:
            found |= dict.fromkeys(reversed(way))
    order = sorted(found, key=lambda n: (identities[n].shard, identities[n].position))
    return Chosen(order, unreachable)


def tensor_name(identity: _core.Identity) -> str:
    """For people first; the link at its end makes it unique."""
    return (
        f"shard{identity.shard}.block{identity.position}"
        f".{identity.block_hash.hex()[:16]}.{identity.link.hex()}"
    )


def entry(identity: _core.Identity, file: str) -> Block:
    return Block(
        file=file,
        tensor=tensor_name(identity),
        hash=identity.block_hash.hex(),
        shard=identity.shard,
        position=identity.position,
        epoch=identity.epoch,
        parent_link=identity.parent_link.hex(),
        link=identity.link.hex(),
        digest=identity.digest.hex(),
    )


def shape_of(layout: ShardLayout | Opaque, payload_bytes: int) -> tuple[str, tuple[int, ...]]:
    """(element type, shape) of a payload as a tensor: layers first, then the layout's own axes as far as K and V share them;
    plain bytes when the layout or its element type is not known."""
    if isinstance(layout, Opaque) or layout.payload_bytes != payload_bytes:
        return "uint8", (payload_bytes,)
    dtype = _DTYPES.get(layout.dtype.rpartition(".")[2], "")
    per_element = layout.itemsize if dtype else 1
    outer = layout.parts[0].order.partition("S")[0]
    sizes = layout.sizes(layout.parts[0])
    shape = [layout.num_layers]
    if layout.cell:
        shape += [sizes[axis] for axis in "PH"]
    elif len(layout.parts) == 1:
        shape += [sizes[axis] for axis in outer]
    else:
        shape += [sizes[axis] for axis in outer]
        orders = {part.order for part in layout.parts}
        if len({part.width for part in layout.parts}) == 1:
            shape.append(len(layout.parts))
            if len(orders) == 1:
                shape += [sizes[axis] for axis in layout.parts[0].order.partition("S")[2]]
    rest = payload_bytes // per_element // math.prod(shape)
    if rest > 1:
        shape.append(rest)
    if not dtype:
        return "uint8", (*shape, 1) if rest <= 1 else tuple(shape)
    return dtype, tuple(shape)


def parse(text: bytes, where: str) -> Manifest:
    """The manifest in a file, checked for what it alone can show. Raises `PortableError`."""
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (ValueError, RecursionError) as error:  # also of text that is no UTF-8
        raise refuse(where, str(error), "a manifest as export writes it") from error
    if (manifest.format, manifest.version) != (FORMAT, VERSION):
        found = (manifest.format, manifest.version)
        raise refuse(where, found, f"format {FORMAT}, version {VERSION}")
    if not 0 < manifest.payload_bytes <= 1 << 36:
        raise refuse(where, manifest.payload_bytes, "payloads of 1 to 2^36 bytes")
    if not any(space.blocks for space in manifest.namespaces):
        raise refuse(where, 0, "at least one block")
    if len(manifest.namespaces) > MAX_NAMESPACES:
        raise refuse(where, len(manifest.namespaces), f"at most {MAX_NAMESPACES} namespaces")
    if len({unhex(s.record, where) for s in manifest.namespaces}) < len(manifest.namespaces):
        raise refuse(where, len(manifest.namespaces), "each namespace once")
    for block in (b for space in manifest.namespaces for b in space.blocks):
        if "/" in block.file or block.file in ("", ".", ".."):
            raise refuse(where, block.file, "files lie beside the manifest")
    return manifest


def identities(core: Any, manifest: Manifest, space: Namespace, where: str) -> list[_core.Identity]:
    """The identities of a namespace's blocks, each checked against itself and the chain of those before it: position 0 begins at
    the record, every other block continues one that came before. Raises `PortableError` with the tensor's name."""
    record = unhex(space.record, where)
    if not 0 < len(record) <= MAX_RECORD_BYTES:
        raise refuse(where, len(record), f"a namespace record of 1 to {MAX_RECORD_BYTES} bytes")
    root = core.digest(record)
    seen: dict[tuple[int, bytes], int] = {}
    named: set[tuple[int, bytes, bytes]] = set()
    found = []
    for block in space.blocks:
        try:
            identity = core.Identity(
                namespace_id=root,
                shard=block.shard,
                position=block.position,
                epoch=block.epoch,
                payload_bytes=manifest.payload_bytes,
                block_hash=unhex(block.hash, block.tensor),
                parent_link=unhex(block.parent_link, block.tensor),
                link=unhex(block.link, block.tensor),
                digest=unhex(block.digest, block.tensor),
            )
            link = core.link_of(identity)
        except (core.CoreError, TypeError) as error:
            raise refuse(block.tensor, str(error), "an identity as export writes it") from error
        if link != identity.link:
            raise refuse(block.tensor, block.link, "the link follows from the rest of the entry")
        if not 0 < identity.epoch <= MAX_EPOCH:
            raise refuse(block.tensor, block.epoch, f"an epoch of 1 to {MAX_EPOCH}")
        if identity.position == 0:
            continues = identity.parent_link == root
        else:
            continues = seen.get((identity.shard, identity.parent_link)) == identity.position - 1
        if not continues:
            raise refuse(block.tensor, block.parent_link, "each block continues one before it")
        name = (identity.shard, identity.parent_link, identity.block_hash)
        if name in named:
            raise refuse(block.tensor, block.hash, "one block of each name continues a prefix")
        named.add(name)
        seen[identity.shard, identity.link] = identity.position
        found.append(identity)
    return found


def parents(found: Sequence[_core.Identity]) -> list[bytes | None]:
    """For each identity the hash of the block that it continues, None at position 0."""
    by_link = {(i.shard, i.link): i.block_hash for i in found}
    return [by_link[i.shard, i.parent_link] if i.position else None for i in found]


def unhex(text: str, where: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise refuse(where, text, "bytes in hexadecimal") from error
