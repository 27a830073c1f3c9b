"""The namespace record: everything that must be equal for KV bytes to be exchangeable between two engines.

A record is canonical JSON, stored once in the arena; links start from its digest, so a block of another model, layout or
block size can never be part of a valid prefix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Bump when the meaning of payload bytes changes for reasons no other field shows.
RECORD_VERSION = 1

#: Bytes sampled from each weight file, evenly spread: a fine-tune changes nearly all of them.
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def encode(engine: Mapping[str, Any], layout: Sequence[str]) -> bytes:
    """The record of an engine's KV: `engine` is what the whole engine agrees on, `layout` a shard's tensor fingerprint.

    Long layouts are folded to a digest so that a record fits the arena's 4 KiB entry."""
    folded = hashlib.sha256("\n".join(layout).encode()).hexdigest()
    record = {
        "version": RECORD_VERSION,
        "engine": dict(engine),
        "layout": folded,
        "layers": len(layout),
    }
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def decode(record: bytes) -> dict[str, Any]:
    """The record as a dict for people; never raises on hostile bytes, which come back under the key "unreadable"."""
    try:
        value = json.loads(record)
    except (ValueError, RecursionError):
        return {"unreadable": record[:64].hex()}
    return value if isinstance(value, dict) else {"unreadable": repr(value)[:64]}


def find(records: Sequence[bytes], engine: Mapping[str, Any]) -> int | None:
    """Index of the newest record whose engine part equals `engine`, for a process that does not see the tensors."""
    wanted = json.loads(json.dumps(dict(engine)))
    for index in range(len(records) - 1, -1, -1):
        if decode(records[index]).get("engine") == wanted:
            return index
    return None


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
