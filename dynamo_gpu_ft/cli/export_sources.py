"""Where `export` takes blocks from: an arena, or the disk logs of an arena's shards. Both are opened read-only beside a live engine.

Identities come from headers alone; a payload is verified when it is read, and only then taken along.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import PortableError
from dynamo_gpu_ft.kv import disk
from dynamo_gpu_ft.recovery import ledger

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core


class Source(Protocol):
    """Blocks by number. `unreadable` counts those whose headers do not hold."""

    where: str
    digest: str
    records: list[bytes]
    identities: dict[int, _core.Identity]
    namespaces: dict[int, int]  # of each block: its record's number
    held: frozenset[int]
    unreadable: int

    def read(self, number: int) -> bytearray | None:
        """The payload under exactly the identity known; None when it does not hold or is gone."""

    def requests(self) -> dict[str, Any]:
        """Open requests by id. Raises `PortableError` where there is no ledger."""

    def close(self) -> None: ...


class ArenaSource:
    def __init__(self, opened: _core.Arena) -> None:
        core = native.load()
        self._arena = opened
        self.where, self.digest, self.records = opened.path, opened.digest_name, opened.namespaces()
        slots = [s for s in opened.scan() if s.state == "sealed"]
        self.held = frozenset(s.slot for s in slots if s.held)
        self.namespaces = {s.slot: s.namespace for s in slots}
        self.identities, self.unreadable = {}, 0
        for slot in self.namespaces:
            try:
                self.identities[slot] = core.read_block(opened, slot)
            except core.CoreError as error:
                self.unreadable += error.code == "damaged"

    def read(self, number: int) -> bytearray | None:
        core, data = native.load(), bytearray(self._arena.slot_bytes)
        try:
            again = core.read_block(self._arena, number, data)
        except core.CoreError:
            return None
        return data if again.link == self.identities[number].link else None

    def requests(self) -> dict[str, Any]:
        return {r.request_id: r for r in ledger.replay(self._arena)}

    def close(self) -> None:
        self._arena.close()


class LogSource:
    """All shards' logs of one arena's name, as one source."""

    held: frozenset[int] = frozenset()  # what requests hold is known to their engine alone
    unreadable = 0

    def __init__(self, config: Config) -> None:
        core = native.load()
        self.where = str(disk.folder(config, 0).parent)
        self._logs = list(_opened(config))
        found = {log.stats()["digest"] for log in self._logs}
        if not found:
            raise PortableError(
                "there are no disk logs to export from",
                where=self.where,
                rule="DIR/ARENA/shard-N, as disk_dir has them",
                remedy="name the disk_dir with --disk and the arena's name before it",
            )
        self.digest = found.pop() if len(found) == 1 else f"{len(found)} kinds"
        self.records = list(dict.fromkeys(r for log in self._logs for r in log.namespaces()))
        order = {core.digest(record): number for number, record in enumerate(self.records)}
        self.identities, self.namespaces = {}, {}
        seen: set[tuple[bytes, int, bytes]] = set()  # a log may have been copied
        self._places: dict[int, tuple[_core.DiskLog, _core.DiskEntry]] = {}
        for log in self._logs:
            for entry in log.entries():
                key, number = entry.key, len(self._places)
                name = (key.namespace, key.shard, key.link)
                if key.namespace not in order or name in seen:
                    continue
                seen.add(name)
                self._places[number] = (log, entry)
                self.namespaces[number] = order[key.namespace]
                self.identities[number] = core.Identity(
                    namespace_id=key.namespace,
                    shard=key.shard,
                    position=key.position,
                    epoch=key.epoch,
                    payload_bytes=key.payload_bytes,
                    block_hash=key.block_hash,
                    parent_link=key.parent_link,
                    link=key.link,
                    digest=key.digest,
                )

    def read(self, number: int) -> bytearray | None:
        core = native.load()
        log, entry = self._places[number]
        try:
            return bytearray(log.read(entry))
        except core.CoreError:
            return None

    def requests(self) -> dict[str, Any]:
        raise PortableError(
            "disk logs know no requests",
            where=self.where,
            rule="--request and --held ask an arena",
            remedy="choose by --hash, --namespace or --all, or export from the arena",
        )

    def close(self) -> None:
        for log in self._logs:
            log.close()


def _opened(config: Config) -> Iterator[_core.DiskLog]:
    for shard in disk.shards_on_disk(config):
        log = disk.open_reader(config, shard)
        if log is not None:
            yield log


def disk_config(folder: str, arena: str | None) -> Config:
    """The configuration with `folder` as its disk_dir. Raises `ConfigError` when `arena` is no name."""
    explicit = {"disk_dir": str(Path(folder).absolute())}
    return Config.load(explicit | ({"arena_name": arena} if arena else {}))
