"""The namespace record: everything that must be equal for KV bytes to be exchangeable between two engines.

A record is canonical JSON, stored once in the arena; links start from its digest, so a block of another model, layout or
block size can never be part of a valid prefix. Its engine part says which KV values, its placement and layout say where they
lie: records that differ in the latter alone are for `kv.relayout`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.kv import geometry_record
from dynamo_gpu_ft.kv.geometry import Opaque, ShardLayout

#: Bump when the meaning of payload bytes changes for reasons no other field shows.
RECORD_VERSION = 2

#: What an arena has room for.
MAX_RECORD_BYTES = 4096

#: Bytes sampled from each weight file, evenly spread: a fine-tune changes nearly all of them.
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def encode(
    engine: Mapping[str, Any],
    fingerprint: Sequence[str],
    *,
    placement: Mapping[str, Any] | None = None,
    geometry: ShardLayout | Opaque | None = None,
) -> bytes:
    """The record of a shard's KV. `engine` is what makes the values (equal: the same KV), `placement` how they are cut up
    and laid out, `fingerprint` the tensors' shapes, `geometry` what a conversion needs to know.

    Blocks are exchanged directly only under equal records. Fingerprints are folded to a digest, and a geometry that
    does not fit is left out (such blocks are restored, never converted), so that a record fits the arena's 4 KiB entry."""
    record = {
        "version": RECORD_VERSION,
        "engine": dict(engine),
        "placement": dict(placement or {}),
        "tensors": hashlib.sha256("\n".join(fingerprint).encode()).hexdigest(),
        "layers": len(fingerprint),
        "layout": geometry_record.dump(geometry or Opaque("not described")),
    }
    encoded = _canonical(record)
    if len(encoded) > MAX_RECORD_BYTES:
        record["layout"] = geometry_record.dump(Opaque("its description is too long to record"))
        encoded = _canonical(record)
    return encoded


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def decode(record: bytes) -> dict[str, Any]:
    """The record as a dict for people; never raises on hostile bytes, which come back under the key "unreadable"."""
    try:
        value = json.loads(record)
    except (ValueError, RecursionError):
        return {"unreadable": record[:64].hex()}
    return value if isinstance(value, dict) else {"unreadable": repr(value)[:64]}


def find(
    records: Sequence[bytes],
    engine: Mapping[str, Any],
    placement: Mapping[str, Any] | None = None,
) -> int | None:
    """Index of the newest record of this engine and placement, for a process that does not see the tensors."""
    wanted = json.loads(json.dumps([dict(engine), dict(placement or {})]))
    for index in range(len(records) - 1, -1, -1):
        record = decode(records[index])
        if [record.get("engine"), record.get("placement")] == wanted:
            return index
    return None


def layout_of(record: bytes) -> ShardLayout | Opaque:
    """What a record says about its payloads; hostile or older records are `Opaque`."""
    return geometry_record.convertible(decode(record).get("layout"))


def relatives(records: Sequence[bytes], record: bytes) -> list[int]:
    """Indices of the other records that hold the same KV values under another placement, newest first: candidates for a
    conversion. Whether one is possible is for `kv.relayout` to say."""
    mine = decode(record)
    found = []
    for index in range(len(records) - 1, -1, -1):
        other = decode(records[index])
        same = (other.get("version"), other.get("engine")) == (
            mine.get("version"),
            mine.get("engine"),
        )
        if same and records[index] != record and isinstance(layout_of(records[index]), ShardLayout):
            found.append(index)
    return found


def weights_id(folder: Path) -> str:
    """Identity of a local checkpoint: names, sizes and evenly spread samples of its weight files, and its config.

    Reads at most 256 KiB per file. Returns "" when `folder` is not a local checkpoint (a hub name, say): then
    the revision must identify the weights."""
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in _identity_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as stream:
            step = max(_SAMPLE_BYTES, size // _SAMPLES)
            for offset in range(0, size, step):
                stream.seek(offset)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _identity_files(folder: Path) -> Iterator[Path]:
    for pattern in ("config.json", "*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth"):
        yield from sorted(p for p in folder.glob(pattern) if p.is_file())
