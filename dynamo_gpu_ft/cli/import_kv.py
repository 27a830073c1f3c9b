"""The `import` command: a folder that `export` wrote into an arena, which is made when there is none, or into disk logs.

Everything is verified first, without arena or log; then each block is sealed under the identity it was exported with, and verified again
as it lies in its slot. Exit code 1 when a block did not fit what the arena holds already; 2 when the folder was refused.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli import import_logs, tensor_files
from dynamo_gpu_ft.cli.export_sources import disk_config
from dynamo_gpu_ft.cli.inspect import path_of
from dynamo_gpu_ft.cli.progress import tracked
from dynamo_gpu_ft.cli.render import as_json
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ArenaError, PortableError
from dynamo_gpu_ft.kv import arena as arenas
from dynamo_gpu_ft.kv import portable

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what export wrote")
    parser.add_argument(
        "--arena",
        metavar="NAME",
        help="name or path of the arena to fill, made when there is none; default: the configured one",
    )
    parser.add_argument(
        "--disk",
        metavar="DIR",
        help="into the disk logs of the shards in this folder (a disk_dir; --arena is a name then), not into an arena",
    )
    parser.add_argument(
        "--check", action="store_true", help="verify the folder and stop: nothing is touched"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    tensor_files.library()
    folder = Path(args.folder)
    manifest = _manifest(folder)
    spaces = verify(folder, manifest)
    count = sum(len(found) for found in spaces)
    answer: dict[str, Any] = {
        "folder": str(folder),
        "verified": count,
        "bytes": count * manifest.payload_bytes,
    }
    if args.disk and not args.check:
        config = disk_config(args.disk, args.arena)
        answer |= import_logs.fill(
            config, manifest, spaces, lambda shard: _payloads(folder, manifest, spaces, shard)
        )
    elif not args.check:
        answer |= fill(folder, manifest, spaces, path_of(args.arena))
    print(as_json(answer) if args.json else _text(answer))
    return 1 if answer.get("refused") else 0


def verify(folder: Path, manifest: portable.Manifest) -> list[list[_core.Identity]]:
    """Checks every chain and every payload of a folder; mutates nothing. Returns the identities per namespace.

    Raises `PortableError` with the name of the first tensor that is not what was exported."""
    core = native.load()
    spaces = [
        portable.identities(core, manifest, space, str(folder / portable.MANIFEST))
        for space in manifest.namespaces
    ]
    total = sum(len(found) for found in spaces)
    for _ in tracked(_payloads(folder, manifest, spaces), total, "verifying"):
        pass
    return spaces


def fill(
    folder: Path,
    manifest: portable.Manifest,
    spaces: list[list[_core.Identity]],
    path: Path,
) -> dict[str, Any]:
    """Seals verified blocks into the arena at `path`. Raises `ArenaError` ("busy": a live engine has it), and `PortableError` when
    the folder is no longer what was verified."""
    core, token = native.load(), os.urandom(16)
    opened = arenas.open_or_create(path, slot_bytes=manifest.payload_bytes, config=Config.load())
    count = sum(len(found) for found in spaces)
    try:
        if opened.digest_name != manifest.digest or opened.slots < count:
            raise ArenaError(
                "the arena cannot take these blocks",
                where=opened.path,
                value=f"{opened.slots} slots, digest {opened.digest_name}",
                rule=f"{count} slots, digest {manifest.digest}",
                remedy="raise DYN_GPU_FT_ARENA_BYTES and name a new arena with --arena",
            )
        floor = max((i.epoch for found in spaces for i in found), default=0)
        opened.begin_epoch(token, floor=floor)
        numbers = [opened.add_namespace(bytes.fromhex(s.record)) for s in manifest.namespaces]
        writer: _core.Writer | None = None
        writes = (-1, -1)
        came_from = [portable.parents(found) for found in spaces]
        results: Counter[str] = Counter()
        places = [{i.link: at for at, i in enumerate(found)} for found in spaces]
        for space, identity, data in tracked(_payloads(folder, manifest, spaces), count, "sealing"):
            if writer is None or writes != (space, identity.shard):
                if writer is not None:  # one at a time: an arena has lanes for so many
                    writer.close()
                writes = (space, identity.shard)
                writer = opened.attach_writer(
                    shard=identity.shard, token=token, namespace=numbers[space]
                )
            parent = came_from[space][places[space][identity.link]]
            results[_seal(writer, identity, parent, data)] += 1
        if writer is not None:
            writer.close()
    except PortableError as error:
        error.remedy = (
            "what was sealed by then is whole; leave the folder alone and import it again"
        )
        raise
    except core.CoreError as error:
        raise ArenaError(
            "the import stopped",
            where=opened.path,
            value=str(error),
            rule=error.code,
            remedy="what was sealed by then is whole; end a live engine of this arena or name another one",
        ) from error
    finally:
        opened.close()
    refused = {k: v for k, v in results.items() if k not in ("sealed", "present")}
    return {
        "arena": str(path),
        "sealed": results["sealed"],
        "present": results["present"],
        "refused": refused,
    }


def _seal(writer: _core.Writer, identity: _core.Identity, parent: bytes | None, data: bytes) -> str:
    """What became of one block: "sealed", "present", or the status it was refused with."""
    core = native.load()
    try:
        claim = writer.claim(
            block_hash=identity.block_hash, parent_hash=parent, position=identity.position
        )
        if claim is None:
            return "present"
        ctypes.memmove(claim.address, data, len(data))
        sealed = claim.seal_as(identity, parent_hash=parent, hold=False)
        return "sealed" if sealed else "present"
    except core.CoreError as error:
        if error.code in ("chain", "no_parent", "digest", "full"):
            return error.code
        raise


def _payloads(
    folder: Path,
    manifest: portable.Manifest,
    spaces: list[list[_core.Identity]],
    shard: int | None = None,
) -> Iterator[tuple[int, _core.Identity, bytes]]:
    """(namespace, identity, verified bytes) in the manifest's order, of one shard or all; one file is in memory at a time."""
    core = native.load()
    name, tensors = "", {}
    for number, (space, found) in enumerate(zip(manifest.namespaces, spaces, strict=True)):
        for block, identity in zip(space.blocks, found, strict=True):
            if shard not in (None, identity.shard):
                continue
            if block.file != name:
                name, tensors = block.file, tensor_files.read(folder / block.file)
            if block.tensor not in tensors or block.tensor != portable.tensor_name(identity):
                raise portable.refuse(block.tensor, name, "the tensor of this name is in its file")
            data = tensors[block.tensor]
            if len(data) != manifest.payload_bytes:
                rule = f"payloads of {manifest.payload_bytes} bytes"
                raise portable.refuse(block.tensor, len(data), rule)
            if (digest := core.digest(data)) != identity.digest:
                rule = f"digest {identity.digest.hex()}"
                raise portable.refuse(block.tensor, digest.hex(), rule)
            yield number, identity, data


def _manifest(folder: Path) -> portable.Manifest:
    where = str(folder / portable.MANIFEST)
    try:
        text = tensor_files.bytes_of(folder / portable.MANIFEST)
    except (OSError, ValueError, MemoryError) as error:
        raise portable.refuse(where, str(error), "a folder that export finished") from error
    manifest = portable.parse(text, where)
    if manifest.digest != native.load().DIGEST:
        raise portable.refuse(
            where, manifest.digest, f"digests of this build: {native.load().DIGEST}"
        )
    return manifest


def _text(answer: dict[str, Any]) -> str:
    said = f"{answer['verified']} blocks verified in {answer['folder']}"
    if "arena" not in answer and "disk" not in answer:
        return said
    if answer.get("refused"):
        reasons = ", ".join(f"{count} {reason}" for reason, count in answer["refused"].items())
        print(f"dynamo-gpu-ft import: blocks that did not fit: {reasons}", file=sys.stderr)
    if "disk" in answer:
        return f"{said}; {answer['stored']} stored, {answer['present']} there already, in {answer['disk']}"
    return f"{said}; {answer['sealed']} sealed, {answer['present']} there already, in {answer['arena']}"
