"""The fixed-size records of a slot store in bytes: its header, one tag per row, two map images per layer. Nothing here acts.

`store` writes and reads them. Every record ends in a checksum of its own, so that one torn by a kill reads as absent; of a layer's
two images the newer whole one counts, so that a kill at any point leaves the old map or the new one.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from dynamo_gpu_ft.errors import SlotError

MAGIC = b"GFTSLOT1"
CHECK, DIGEST = 16, 16
_HEADER = struct.Struct("<8sIIIIQ16s")
_TAG = struct.Struct("<IiQ16s")
_IMAGE = struct.Struct("<QQ")
_ENTRY = struct.Struct("<iiQ16s")
HEADER_BYTES = 64
TAG_BYTES = _TAG.size + CHECK
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Tag:
    """What a row holds: expert of a layer, the digest of its bytes, the epoch in which they were written."""

    layer: int
    expert: int
    epoch: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """What the map says of one slot: the expert, the row that holds it, and the tag that this row must have. `expert` -1: empty."""

    expert: int = -1
    row: int = -1
    epoch: int = 0
    digest: bytes = bytes(DIGEST)


@dataclass(frozen=True, slots=True)
class Image:
    """A layer's map: `version` counts commits, `epoch` is that of the newest one."""

    version: int
    epoch: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a store. `slots` per layer are what the map speaks of; `rows` are what there is room for, spare ones included."""

    layers: int
    slots: int
    rows: int
    expert_bytes: int
    rank: int
    namespace: bytes = bytes(DIGEST)

    def __post_init__(self) -> None:
        sizes = (self.layers, self.slots, self.rows, self.expert_bytes)
        if min(sizes) < 1 or self.rows < self.slots or self.rank < 0:
            raise SlotError(
                "a slot store cannot have these sizes",
                value=self,
                rule="layers, slots and bytes are above 0, rows at least as many as slots",
                remedy="one row more than slots lets an expert be replaced without a gap",
            )

    @property
    def image_bytes(self) -> int:
        return _IMAGE.size + self.slots * _ENTRY.size + CHECK

    @property
    def layer_bytes(self) -> int:
        return self.rows * TAG_BYTES + 2 * self.image_bytes

    @property
    def control_bytes(self) -> int:
        """Of the header, all tags and all maps, rounded up to whole pages."""
        return -(-(HEADER_BYTES + self.layers * self.layer_bytes) // PAGE) * PAGE

    @property
    def payload_bytes(self) -> int:
        return self.layers * self.rows * self.expert_bytes

    def tag_at(self, layer: int, row: int) -> int:
        return HEADER_BYTES + layer * self.layer_bytes + row * TAG_BYTES

    def image_at(self, layer: int, which: int) -> int:
        return self.tag_at(layer, self.rows) + which * self.image_bytes


def _checked(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=CHECK).digest()


def _body(record: bytes | memoryview) -> bytes | None:
    body = bytes(record[:-CHECK])
    return body if _checked(body) == bytes(record) else None


def pack_header(geometry: Geometry) -> bytes:
    g = geometry
    body = _HEADER.pack(
        MAGIC, g.layers, g.slots, g.rows, g.rank, g.expert_bytes, g.namespace[:16].ljust(16, b"\0")
    )
    return _checked(body).ljust(HEADER_BYTES, b"\0")


def read_header(record: bytes | memoryview) -> Geometry | None:
    """None for bytes that are no whole header."""
    body = _body(record[: _HEADER.size + CHECK])
    if body is None:
        return None
    magic, layers, slots, rows, rank, expert_bytes, namespace = _HEADER.unpack(body)
    if magic != MAGIC:
        return None
    return Geometry(layers, slots, rows, expert_bytes, rank, namespace)


def pack_tag(tag: Tag) -> bytes:
    return _checked(_TAG.pack(tag.layer, tag.expert, tag.epoch, tag.digest))


def read_tag(record: bytes | memoryview) -> Tag | None:
    body = _body(record)
    if body is None:
        return None
    layer, expert, epoch, digest = _TAG.unpack(body)
    return Tag(layer, expert, epoch, digest)


def pack_image(image: Image) -> bytes:
    entries = b"".join(_ENTRY.pack(e.expert, e.row, e.epoch, e.digest) for e in image.entries)
    return _checked(_IMAGE.pack(image.version, image.epoch) + entries)


def read_image(record: bytes | memoryview) -> Image | None:
    body = _body(record)
    if body is None:
        return None
    version, epoch = _IMAGE.unpack_from(body)
    entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(body[_IMAGE.size :]))
    return Image(version, epoch, entries)
