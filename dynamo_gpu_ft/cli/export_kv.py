"""The `export` command: chosen prefixes of an arena or of disk logs to a folder of safetensors files that another machine can import.

Opens them read-only, beside a running engine if there is one. Exit code 1 when some block that was asked for could not be
taken along (damaged, or its prefix is gone); 2 when nothing could be exported at all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli import tensor_files
from dynamo_gpu_ft.cli.export_sources import ArenaSource, LogSource, Source, disk_config
from dynamo_gpu_ft.cli.inspect import path_of
from dynamo_gpu_ft.cli.progress import tracked
from dynamo_gpu_ft.cli.render import as_json
from dynamo_gpu_ft.errors import PortableError
from dynamo_gpu_ft.kv import arena as arenas
from dynamo_gpu_ft.kv import namespace, portable
from dynamo_gpu_ft.units import format_bytes

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

#: A file is begun anew behind so many payload bytes.
FILE_BYTES = 256 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arena", nargs="?", help="name or path of an arena; default: the configured one"
    )
    parser.add_argument(
        "--disk",
        metavar="DIR",
        help="from the disk logs in this folder (a disk_dir; ARENA is a name then), not from the arena",
    )
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a new or empty folder")
    chosen = parser.add_argument_group("which blocks (each with its whole prefix; at least one of)")
    chosen.add_argument("--all", action="store_true", help="every sealed block")
    chosen.add_argument("--held", action="store_true", help="blocks that open requests hold")
    chosen.add_argument(
        "--hash", action="append", default=[], metavar="HEX", help="blocks whose hash begins so"
    )
    chosen.add_argument(
        "--request",
        action="append",
        default=[],
        metavar="ID",
        help="the prompt and output of an open request of the ledger (needs vLLM, which names blocks)",
    )
    parser.add_argument(
        "--namespace",
        type=int,
        metavar="N",
        help="only this namespace (numbers as `inspect` shows)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    tensor_files.library()
    if not (args.all or args.held or args.hash or args.request):
        raise PortableError(
            "nothing was chosen for export",
            rule="one of --all, --held, --hash, --request",
            remedy="dynamo-gpu-ft export --all --to FOLDER",
        )
    folder = Path(args.to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PortableError(
            "the folder is not empty", where=str(folder), remedy="name a new folder with --to"
        )
    source: Source
    if args.disk:
        source = LogSource(disk_config(args.disk, args.arena))
    else:
        source = ArenaSource(arenas.open_existing(path_of(args.arena), read_only=True))
    try:
        if args.disk and (args.held or args.request):
            source.requests()  # says why not
        answer = export(source, folder, args)
    finally:
        source.close()
    print(as_json(answer) if args.json else _text(answer))
    return 1 if answer["left_out"] or not answer["blocks"] else 0


@dataclass
class _Export:
    """What has been written so far."""

    folder: Path
    blocks: dict[int, list[portable.Block]] = field(default_factory=dict)  # by namespace
    waiting: dict[str, bytearray] = field(default_factory=dict)
    form: tuple[str, tuple[int, ...]] = ("uint8", ())
    files: list[str] = field(default_factory=list)

    def add(self, number: int, identity: _core.Identity, data: bytearray, form: Any) -> None:
        if self.waiting and (form != self.form or len(data) * len(self.waiting) >= FILE_BYTES):
            self.flush()
        if not self.waiting:
            self.form = form
            self.files.append(f"kv-{len(self.files):05d}.safetensors")
        made = portable.entry(identity, self.files[-1])
        self.waiting[made.tensor] = data
        self.blocks.setdefault(number, []).append(made)

    def flush(self) -> None:
        if self.waiting:
            about = {"format": portable.FORMAT, "version": str(portable.VERSION)}
            tensor_files.write(self.folder / self.files[-1], self.waiting, *self.form, about)
        self.waiting = {}


def export(source: Source, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Writes the files, then the manifest: a folder without one is not whole. Returns the answer as plain data."""
    roots = {_id_of(source, record): record for record in source.records}
    wanted, missing = _wanted(args, source)
    chosen = portable.choose(source.identities, wanted, roots)
    size = _size_of(source, chosen.blocks)
    folder.mkdir(parents=True, exist_ok=True)
    out = _Export(folder)
    # Links of blocks that could not be taken along, and of all behind them.
    gone: set[bytes] = set()
    for number in tracked(chosen.blocks, len(chosen.blocks), "exporting blocks"):
        identity = source.identities[number]
        data = None if identity.parent_link in gone else source.read(number)
        if data is None:
            gone.add(identity.link)
            continue
        space = source.namespaces[number]
        layout = namespace.layout_of(source.records[space])
        out.add(space, identity, data, portable.shape_of(layout, size))
    out.flush()
    manifest = portable.Manifest(
        format=portable.FORMAT,
        version=portable.VERSION,
        digest=source.digest,
        payload_bytes=size,
        namespaces=[
            portable.Namespace(
                record=source.records[n].hex(),
                shown=namespace.decode(source.records[n]),
                blocks=b,
            )
            for n, b in sorted(out.blocks.items())
        ],
    )
    _publish(folder, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    count = sum(len(b) for b in out.blocks.values())
    unreadable = source.unreadable if args.all else 0
    return {
        "arena": source.where,
        "folder": str(folder),
        "blocks": count,
        "bytes": count * size,
        "files": out.files,
        "namespaces": sorted(out.blocks),
        "left_out": len(gone) + chosen.unreachable + missing + unreadable,
    }


def _size_of(source: Source, chosen: Sequence[int]) -> int:
    """The payload bytes that all chosen blocks have; 1 when there is none."""
    sizes = {source.identities[n].payload_bytes for n in chosen}
    if len(sizes) > 1:
        raise PortableError(
            "the chosen blocks have payloads of several sizes",
            where=source.where,
            value=sorted(sizes),
            rule="one size per export",
            remedy="choose one model's with --namespace N",
        )
    return sizes.pop() if sizes else 1


def _wanted(args: argparse.Namespace, source: Source) -> tuple[list[int], int]:
    """(blocks asked for, how many names were asked for in vain)."""
    names = [text.lower() for text in args.hash]
    prefixes = set(names)
    named = {
        h.hex()
        for number, record in enumerate(source.records)
        for h in _of_requests(args, source, record, number)
    }
    found = [
        number
        for number, identity in source.identities.items()
        if args.namespace in (None, source.namespaces[number])
        and (
            args.all
            or (args.held and number in source.held)
            or identity.block_hash.hex() in named
            or any(identity.block_hash.hex().startswith(p) for p in prefixes)
        )
    ]
    hexes = [source.identities[number].block_hash.hex() for number in found]
    missing = sum(not any(h.startswith(p) for h in hexes) for p in prefixes)
    if args.request and not named.intersection(hexes):
        missing += len(args.request)
    return found, missing


def _of_requests(
    args: argparse.Namespace, source: Source, record: bytes, number: int
) -> Iterator[bytes]:
    """Names of the blocks of the requests asked for, as the engine of this namespace would name them."""
    if not args.request or args.namespace not in (None, number):
        return
    engine, placement = (namespace.decode(record).get(k) or {} for k in ("engine", "placement"))
    size, algorithm = placement.get("block_size"), engine.get("hash")
    if not isinstance(size, int) or size < 1 or not isinstance(algorithm, str):
        return
    from dynamo_gpu_ft.engines.vllm.hashes import block_hashes

    requests = source.requests()
    for request_id in args.request:
        request = requests.get(request_id)
        if request is None:
            raise PortableError(
                "there is no such open request in the ledger",
                where=source.where,
                value=request_id,
                remedy="`dynamo-gpu-ft inspect` lists them; finished ones are exported by --hash or --all",
            )
        yield from block_hashes(algorithm, [*request.prompt_token_ids, *request.token_ids], size)


def _id_of(source: Source, record: bytes) -> bytes:
    core = native.load()
    if source.digest != core.DIGEST:
        raise PortableError(
            "the digests of these blocks are not those of this build",
            where=source.where,
            value=source.digest,
            rule=core.DIGEST,
            remedy="export with the build that made them",
        )
    return core.digest(record)


def _publish(folder: Path, text: bytes) -> None:
    part = folder / (portable.MANIFEST + ".part")
    with part.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / portable.MANIFEST)


def _text(answer: dict[str, Any]) -> str:
    said = (
        f"{answer['blocks']} blocks, {format_bytes(answer['bytes'])}, in {len(answer['files'])} files "
        f"to {answer['folder']}"
    )
    if answer["left_out"]:
        print(
            f"dynamo-gpu-ft export: {answer['left_out']} blocks were left out: damaged, not there, or behind one that is",
            file=sys.stderr,
        )
    return said
