"""The `export` command: chosen prefixes of an arena to a folder of safetensors files that another machine can import.

Opens the arena read-only, beside a running engine if there is one. Exit code 1 when some block that was asked for could not be
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
from dynamo_gpu_ft.cli.inspect import path_of
from dynamo_gpu_ft.cli.progress import tracked
from dynamo_gpu_ft.cli.render import as_json
from dynamo_gpu_ft.errors import PortableError
from dynamo_gpu_ft.kv import arena as arenas
from dynamo_gpu_ft.kv import namespace, portable
from dynamo_gpu_ft.recovery import ledger
from dynamo_gpu_ft.units import format_bytes

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

#: A file is begun anew behind so many payload bytes.
FILE_BYTES = 256 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arena", nargs="?", help="name or path of an arena; default: the configured one"
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
    opened = arenas.open_existing(path_of(args.arena), read_only=True)
    try:
        answer = export(opened, folder, args)
    finally:
        opened.close()
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


def export(opened: _core.Arena, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Writes the files, then the manifest: a folder without one is not whole. Returns the answer as plain data."""
    core, records = native.load(), opened.namespaces()
    roots = {_id_of(opened, record): record for record in records}
    slots = {s.slot: s for s in opened.scan() if s.state == "sealed"}
    identities: dict[int, _core.Identity] = {}
    unreadable = 0
    for slot in slots:
        try:
            identities[slot] = core.read_block(opened, slot)
        except core.CoreError as error:
            unreadable += error.code == "damaged"
    wanted, missing = _wanted(args, opened, records, slots, identities)
    chosen = portable.choose(identities, wanted, roots)
    folder.mkdir(parents=True, exist_ok=True)
    out = _Export(folder)
    gone: set[bytes] = (
        set()
    )  # links of blocks that could not be taken along, and of all behind them
    for slot in tracked(chosen.blocks, len(chosen.blocks), "exporting blocks"):
        identity, data = identities[slot], bytearray(opened.slot_bytes)
        try:
            again = core.read_block(opened, slot, data)
        except core.CoreError:
            again = None
        if again is None or again.link != identity.link or identity.parent_link in gone:
            gone.add(identity.link)
            continue
        number = slots[slot].namespace
        layout = namespace.layout_of(records[number])
        out.add(number, identity, data, portable.shape_of(layout, opened.slot_bytes))
    out.flush()
    manifest = portable.Manifest(
        format=portable.FORMAT,
        version=portable.VERSION,
        digest=opened.digest_name,
        payload_bytes=opened.slot_bytes,
        namespaces=[
            portable.Namespace(
                record=records[n].hex(), shown=namespace.decode(records[n]), blocks=b
            )
            for n, b in sorted(out.blocks.items())
        ],
    )
    _publish(folder, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    count = sum(len(b) for b in out.blocks.values())
    return {
        "arena": opened.path,
        "folder": str(folder),
        "blocks": count,
        "bytes": count * opened.slot_bytes,
        "files": out.files,
        "namespaces": sorted(out.blocks),
        "left_out": len(gone) + chosen.unreachable + missing + (unreadable if args.all else 0),
    }


def _wanted(
    args: argparse.Namespace,
    opened: _core.Arena,
    records: Sequence[bytes],
    slots: dict[int, _core.SlotInfo],
    identities: dict[int, _core.Identity],
) -> tuple[list[int], int]:
    """(slots asked for, how many names were asked for in vain)."""
    names = [text.lower() for text in args.hash]
    prefixes = set(names)
    named = {
        h.hex()
        for number, record in enumerate(records)
        for h in _of_requests(args, opened, record, number)
    }
    found = [
        slot
        for slot, identity in identities.items()
        if args.namespace in (None, slots[slot].namespace)
        and (
            args.all
            or (args.held and slots[slot].held)
            or identity.block_hash.hex() in named
            or any(identity.block_hash.hex().startswith(p) for p in prefixes)
        )
    ]
    hexes = [identities[slot].block_hash.hex() for slot in found]
    missing = sum(not any(h.startswith(p) for h in hexes) for p in prefixes)
    if args.request and not named.intersection(hexes):
        missing += len(args.request)
    return found, missing


def _of_requests(
    args: argparse.Namespace, opened: _core.Arena, record: bytes, number: int
) -> Iterator[bytes]:
    """Names of the blocks of the requests asked for, as the engine of this namespace would name them."""
    if not args.request or args.namespace not in (None, number):
        return
    engine, placement = (namespace.decode(record).get(k) or {} for k in ("engine", "placement"))
    size, algorithm = placement.get("block_size"), engine.get("hash")
    if not isinstance(size, int) or size < 1 or not isinstance(algorithm, str):
        return
    from dynamo_gpu_ft.engines.vllm.hashes import block_hashes

    requests = {r.request_id: r for r in ledger.replay(opened)}
    for request_id in args.request:
        request = requests.get(request_id)
        if request is None:
            raise PortableError(
                "there is no such open request in the ledger",
                where=opened.path,
                value=request_id,
                remedy="`dynamo-gpu-ft inspect` lists them; finished ones are exported by --hash or --all",
            )
        yield from block_hashes(algorithm, [*request.prompt_token_ids, *request.token_ids], size)


def _id_of(opened: _core.Arena, record: bytes) -> bytes:
    core = native.load()
    if opened.digest_name != core.DIGEST:
        raise PortableError(
            "this arena's digests are not those of this build",
            where=opened.path,
            value=opened.digest_name,
            rule=core.DIGEST,
            remedy="export with the build that made the arena",
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
