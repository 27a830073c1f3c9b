"""Fuzz target: a folder of exported KV blocks as `import` finds it: manifest, tensor files with their headers and offsets, chains.

Whatever the folder says, the command refuses it with `PortableError` before there is an arena or a disk log, or every block of the
manifest lies there, verified and under the identity it has in it. An input changes what is exported (links and digests follow, as a forger's would),
then the JSON of manifest and headers, then bytes and files.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import hostile_json

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli import import_kv
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import PortableError
from dynamo_gpu_ft.kv import disk, portable

core: Any = native.load()

SHM = "/dev/shm"
WORK = Path(tempfile.mkdtemp(prefix="gft-fuzz-", dir=SHM if os.access(SHM, os.W_OK) else None))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
FOLDER, ARENA, LOGS = WORK / "out", WORK / "arena", WORK / "logs"
SETTINGS = {
    "DYN_GPU_FT_ARENA_BYTES": "4MiB",
    "DYN_GPU_FT_LEDGER_BYTES": "64KiB",
    "DYN_GPU_FT_DISK_BYTES": "16MiB",
    "DYN_GPU_FT_DISK_SEGMENT_BYTES": "1MiB",
}

NUMBERS: list[Any] = [0, 1, 2, 3, 63, 64, 65, 127, 128, 4096, 1 << 31, (1 << 31) + 1, 1 << 32]
NUMBERS += [1 << 36, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -1]
HOSTILE: list[Any] = [
    *NUMBERS,
    None,
    True,
    1.5,
    1e400,
    [],
    {},
    [[]],
    [[0, 64]],
    [64, 0],
    [0, 1 << 63],
]
HOSTILE += [
    "",
    ".",
    "..",
    "../out",
    "a/b",
    "\0",
    "\ud800",
    "\x1b[2J",
    "x" * 5000,
    "zz",
    "0",
    "00" * 16,
]
HOSTILE += [
    "00" * 64,
    "00" * 65,
    "00" * 4096,
    "00" * 4097,
    "U8",
    "F64",
    "F4",
    "BF16",
    "__metadata__",
]
HOSTILE += [
    portable.FORMAT,
    portable.MANIFEST,
    core.DIGEST,
    "crc32c",
    "0.safetensors",
    "1.safetensors",
]
RECORDS = [b"", b"model A", b"model B", b"{}", b"x" * 4096, b"x" * 4097]


class Input:
    """Takes an input apart; gives zeros at its end."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def take(self, count: int) -> bytes:
        first, self.left = self.left[:count], self.left[count:]
        return first

    def byte(self) -> int:
        return int.from_bytes(self.take(1), "little")

    def choice(self, among: Sequence[Any]) -> Any:
        return among[self.byte() % len(among)]


@dataclass(eq=False)
class Entry:
    hash: bytes
    payload: bytes
    shard: int = 0
    position: int = 0
    epoch: int = 1
    parent: Entry | bytes | None = None
    file: int = 0
    link: bytes = bytes(16)
    said: dict[str, Any] = field(default_factory=dict)


def chain(model: str, shard: int, blocks: int, file: int) -> list[Entry]:
    found: list[Entry] = []
    for i in range(blocks):
        payload = bytes((i * 31 + shard * 7 + j) & 255 for j in range(64))
        parent = found[-1] if found else None
        found.append(Entry(f"{model}{i}".encode(), payload, shard, i, 1 + i % 2, parent, file))
    return found


def sound() -> list[tuple[bytes, list[Entry]]]:
    return [
        (b"model A", chain("a", 0, 3, 0) + chain("a", 1, 2, 0)),
        (b"model B", chain("b", 0, 2, 1)),
    ]


def change(spaces: list[tuple[bytes, list[Entry]]], data: Input) -> None:
    """One lie about what was exported."""
    number = data.byte() % len(spaces)
    record, entries = spaces[number]
    what = data.byte() % 12
    if what == 0:
        spaces[number] = (data.choice(RECORDS), entries)
    elif what == 1:
        count = data.byte() % 70
        spaces += [(b"model %d" % i, chain("c", 0, 1, 0)) for i in range(count)]
    elif what == 2:
        spaces[number] = (record, [])
    if not entries or what < 3:
        return
    entry = data.choice(entries)
    if what == 3:
        entry.shard = data.choice(NUMBERS)
    elif what == 4:
        entry.position = data.choice(NUMBERS)
    elif what == 5:
        entry.epoch = data.choice(NUMBERS)
    elif what == 6:
        entry.hash = data.choice([data.choice(entries).hash, bytes(data.byte() % 70)])
    elif what == 7:
        entry.parent = data.choice([None, data.choice(entries), data.take(16)])
    elif what == 8:
        entry.payload = bytes([data.byte()]) * data.choice([0, 1, 63, 64, 65, 4096])
    elif what == 9:
        entry.file = data.byte() % 3
    elif what == 10:
        entries.insert(data.byte() % (len(entries) + 1), replace(entry))
    else:
        entries.remove(entry)


def seal(entry: Entry, root: bytes, payload_bytes: int) -> None:
    parent = entry.parent
    before = parent.link if isinstance(parent, Entry) else root if parent is None else parent
    digest = core.digest(entry.payload)
    with contextlib.suppress(core.CoreError, TypeError):
        identity = core.Identity(
            namespace_id=root,
            shard=entry.shard,
            position=entry.position,
            epoch=entry.epoch,
            payload_bytes=payload_bytes,
            block_hash=entry.hash,
            parent_link=before,
            link=bytes(16),
            digest=digest,
        )
        entry.link = core.link_of(identity)
    entry.said = {
        "file": f"{entry.file}.safetensors",
        "tensor": f"shard{entry.shard}.block{entry.position}.{entry.hash.hex()[:16]}.{entry.link.hex()}",
        "hash": entry.hash.hex(),
        "shard": entry.shard,
        "position": entry.position,
        "epoch": entry.epoch,
        "parent_link": before.hex(),
        "link": entry.link.hex(),
        "digest": digest.hex(),
    }


def tensor_file(entries: Sequence[Entry], data: Input) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": portable.FORMAT}}
    body = b""
    for entry in entries:
        end = len(body) + len(entry.payload)
        header[entry.said["tensor"]] = {
            "dtype": "U8",
            "shape": [len(entry.payload)],
            "data_offsets": [len(body), end],
        }
        body += entry.payload
    hostile_json.change(header, data.take(data.byte() % 4 * 3), HOSTILE)
    text = json.dumps(header).encode()
    length = data.choice([len(text)] * 7 + [data.choice(NUMBERS)])
    return (length % (1 << 64)).to_bytes(8, "little") + text + body


def harm(files: dict[str, bytes | None], data: Input) -> None:
    """Bytes, ends and files; None becomes a directory."""
    name = data.choice(sorted(files))
    whole, what = files[name], data.byte() % 6
    if whole is None:
        return
    if what == 0:
        files[name] = whole[: data.byte() * 16 % (len(whole) + 1)]
    elif what == 1:
        files[name] = whole + data.take(data.byte())
    elif what == 2:
        files.pop(name)
    elif what == 3:
        files[name] = data.choice([None, b"", files[data.choice(sorted(files))]])
    elif whole:
        at = (data.byte() * 256 + data.byte()) % len(whole)
        fresh = data.take(data.byte() % 9)
        files[name] = whole[:at] + fresh + whole[at + len(fresh) :]


def made(data: Input) -> dict[str, bytes | None]:
    spaces = sound()
    for _ in range(data.byte() % 6):
        change(spaces, data)
    payload_bytes = data.choice([64] * 7 + [data.choice(NUMBERS)])
    for record, entries in spaces:
        for entry in entries:
            seal(entry, core.digest(record), payload_bytes)
    manifest: dict[str, Any] = {
        "format": portable.FORMAT,
        "version": portable.VERSION,
        "digest": core.DIGEST,
        "payload_bytes": payload_bytes,
        "namespaces": [
            {"record": record.hex(), "shown": {}, "blocks": [dict(e.said) for e in entries]}
            for record, entries in spaces
        ],
    }
    hostile_json.change(manifest, data.take(data.byte() % 4 * 3), HOSTILE)
    files: dict[str, bytes | None] = {portable.MANIFEST: json.dumps(manifest).encode()}
    for number in range(3):
        here = [e for _, entries in spaces for e in entries if e.file == number]
        files[f"{number}.safetensors"] = tensor_file(here, data)
    for _ in range(data.byte() % 4):
        if files:
            harm(files, data)
    return files


def one_input(data: bytes) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.rmtree(LOGS, ignore_errors=True)
    ARENA.unlink(missing_ok=True)
    FOLDER.mkdir()
    to_disk = data[:1] >= b"\xc0"
    files = made(Input(data))
    for name, content in files.items():
        if content is None:
            (FOLDER / name).mkdir()
        else:
            (FOLDER / name).write_bytes(content)
    with mock.patch.dict(os.environ, SETTINGS):
        said = imported(to_disk)
        assert data or said, "what is sound was refused"
        if said is None:
            assert [path.name for path in WORK.iterdir()] == [FOLDER.name]
        else:
            look(said, files, in_logs() if to_disk else in_arena())


def imported(to_disk: bool) -> dict[str, Any] | None:
    """What the command said; None when it refused the folder."""
    asked = argparse.Namespace(
        folder=str(FOLDER),
        arena=None if to_disk else str(ARENA),
        disk=str(LOGS) if to_disk else None,
        check=False,
        json=True,
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            status = import_kv.run(asked)
        except PortableError as error:
            assert str(error).isprintable()
            return None
    said: dict[str, Any] = json.loads(out.getvalue())
    assert status == 0, said
    assert not said.get("refused"), said
    return said


#: (id of the namespace, what the block says it is, verified payload)
Found = tuple[bytes, Any, bytes]


def in_arena() -> Iterator[Found]:
    arena = core.Arena.open(str(ARENA), read_only=True)
    try:
        for slot in arena.scan():
            payload = bytearray(arena.slot_bytes)
            identity = core.read_block(arena, slot.slot, payload)
            yield identity.namespace_id, identity, bytes(payload)
    finally:
        arena.close()


def in_logs() -> Iterator[Found]:
    config = Config.load({"disk_dir": str(LOGS)})
    for shard in disk.shards_on_disk(config):
        log = disk.open_reader(config, shard)
        assert log is not None
        for entry in log.entries():
            assert entry.key.shard == shard
            yield entry.key.namespace, entry.key, log.read(entry)
        log.close()


def look(said: dict[str, Any], files: dict[str, bytes | None], there: Iterable[Found]) -> None:
    """Every block of the manifest is there as it lies in its file, and nothing else is."""
    manifest = json.loads(files[portable.MANIFEST] or b"")
    wanted = {
        (core.digest(bytes.fromhex(space["record"])), bytes.fromhex(block["link"])): block
        for space in manifest["namespaces"]
        for block in space["blocks"]
    }
    assert len(wanted) == said.get("sealed", said.get("stored"))
    for namespace, found, payload in there:
        block = wanted.pop((namespace, found.link))
        assert payload == tensor(files[block["file"]] or b"", block["tensor"])
        assert (found.shard, found.position) == (block["shard"], block["position"])
        assert found.epoch == block["epoch"]
        for name in ("block_hash", "parent_link", "digest"):
            assert getattr(found, name) == bytes.fromhex(block[name.removeprefix("block_")])
    assert not wanted, "imported by halves"


def tensor(file: bytes, name: str) -> bytes:
    end = 8 + int.from_bytes(file[:8], "little")
    first, last = json.loads(file[8:end])[name]["data_offsets"]
    return file[end:][first:last]
