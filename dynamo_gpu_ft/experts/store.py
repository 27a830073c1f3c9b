"""One rank's expert slots: what is routable, and the two-phase commit by which that changes, one layer at a time.

Phase 1 (`land`, `retire`) writes experts into rows that no map entry names and stages the change; phase 2 (`commit`) reads each landed
row back, then swaps the layer's map. `refill` brings bytes here; engines copy `routable` into their routing tables after a commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import SlotError
from dynamo_gpu_ft.experts import records
from dynamo_gpu_ft.experts.records import Entry, Geometry, Image, Tag
from dynamo_gpu_ft.experts.rows import Buffer, HostRows, Rows, store_file

Digest = Callable[[memoryview], bytes]


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did: `changed` slot -> expert (-1 retired); `damaged`: slots whose row was not what had landed, now empty."""

    layer: int
    epoch: int
    changed: dict[int, int]
    damaged: tuple[int, ...] = ()


class SlotStore:
    """Slots [layers, slots] of one rank over `rows`. A slot is routable only while its row's tag equals the map entry: `routable`
    computes map ∧ tags each time it is asked, so nothing else can make it so.

    `control` is `geometry.control_bytes` of writable memory that holds the maps and tags; where it and the rows outlive the process (a
    shared file), so do the experts, and opening it again digests each of them before it counts. Any thread may call; writers take turns.
    """

    def __init__(self, geometry: Geometry, rows: Rows, control: Buffer | None = None) -> None:
        self.geometry, self.rows = geometry, rows
        self._control = memoryview(
            bytearray(geometry.control_bytes) if control is None else control
        )
        self._lock = threading.RLock()
        self._staged: dict[int, dict[int, Entry]] = {}
        self._epoch = 0
        found = records.read_header(self._control)
        if found is None:
            self._control[: geometry.control_bytes] = bytes(geometry.control_bytes)
            self._put(0, records.pack_header(geometry))
        elif found != geometry:
            raise SlotError(
                "a slot store belongs to another model or rank",
                value=found,
                rule=str(geometry),
                remedy="remove the file: its experts are refilled",
            )
        self._images = [self._newest(layer) for layer in range(geometry.layers)]
        self._epoch = max(image.epoch for image in self._images)
        if found is not None:
            self.scrub()

    @classmethod
    def at(cls, path: Path, geometry: Geometry) -> tuple[SlotStore, HostRows]:
        """A store in a shared file: kept over the death of its process. Raises `SlotError` where there is no room."""
        shared = store_file(path, geometry)
        rows = HostRows(shared, geometry, geometry.control_bytes)
        return cls(geometry, rows, memoryview(shared)[: geometry.control_bytes]), rows

    @classmethod
    def in_memory(cls, geometry: Geometry) -> tuple[SlotStore, HostRows]:
        rows = HostRows(bytearray(geometry.payload_bytes), geometry)
        return cls(geometry, rows), rows

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self._epoch

    def image(self, layer: int) -> Image:
        """What the map says, routable or not."""
        return self._images[layer]

    def routable(self, layer: int) -> tuple[int, ...]:
        """Per slot the expert that may be routed to, -1 where there is none."""
        return tuple(e.expert if self._holds(layer, e) else -1 for e in self._images[layer].entries)

    def row_of(self, layer: int) -> tuple[int, ...]:
        """Per slot the row that holds its expert, -1 where none is routable: what a rank's own kernels index weights by."""
        return tuple(e.row if self._holds(layer, e) else -1 for e in self._images[layer].entries)

    def row_for(self, layer: int, slot: int, expert: int) -> int | None:
        """The row to compute with when a token is sent to `slot` for `expert`; None when that may not be: one tag is read."""
        entry = self._images[layer].entries[slot]
        return entry.row if entry.expert == expert and self._holds(layer, entry) else None

    def find(self, layer: int, expert: int) -> int | None:
        """A row with a routable copy of the expert: what a peer is served from."""
        for entry in self._images[layer].entries:
            if entry.expert == expert and self._holds(layer, entry):
                return entry.row
        return None

    def staged(self, layer: int) -> dict[int, int]:
        """Slot -> expert (-1: to be retired) that the next commit of this layer changes."""
        with self._lock:
            return {slot: entry.expert for slot, entry in self._staged.get(layer, {}).items()}

    def free_rows(self, layer: int) -> list[int]:
        """Rows that neither the map nor a staged change names: as many experts can land before the next commit."""
        with self._lock:
            taken = {e.row for e in self._images[layer].entries}
            taken |= {e.row for e in self._staged.get(layer, {}).values()}
            return [row for row in range(self.geometry.rows) if row not in taken]

    # -- phase 1 ---------------------------------------------------------------------------------------------------

    def fence(self, epoch: int) -> None:
        """From now on nothing older than `epoch` may land or commit; what was staged before is dropped. A newer epoch's first `land`,
        `retire` or `commit` does the same."""
        with self._lock:
            if epoch > self._epoch:
                self._epoch = epoch
                self._staged.clear()

    def land(
        self, layer: int, slot: int, expert: int, data: memoryview, digest: bytes, epoch: int
    ) -> int:
        """Writes an expert into a free row and stages it for `slot`; the map is as before. Returns the row.

        Raises `SlotError`: an old epoch, bytes whose length or digest is not the manifest's, no free row (retire a slot and commit first)."""
        with self._lock:
            self._check(layer, slot, epoch)
            if expert < 0 or len(data) != self.geometry.expert_bytes:
                raise self._wrong("an expert of this size cannot land", layer, slot, (expert, len(data)),
                                  f"{self.geometry.expert_bytes} bytes")  # fmt: skip
            if (found := native.load().digest(data)) != digest:
                raise self._wrong("an expert is not what the manifest says", layer, slot, found.hex(),
                                  f"expert {expert} has digest {digest.hex()}")  # fmt: skip
            self._staged.get(layer, {}).pop(slot, None)
            free = self.free_rows(layer)
            if not free:
                raise self._wrong("no row is free", layer, slot, self.geometry.rows,
                                  "a landing expert needs a row that no map names",
                                  "retire the slot and commit, or open the store with spare rows")  # fmt: skip
            row = free[0]
            self._put(self.geometry.tag_at(layer, row), bytes(records.TAG_BYTES))
            try:
                self.rows.write(layer, row, data)
            except Exception as error:  # the engine's memory: its fault must not end a refill
                raise self._wrong("a row cannot be written", layer, slot, f"{type(error).__name__}: {error}",
                                  f"row {row} takes an expert") from error  # fmt: skip
            self._put(
                self.geometry.tag_at(layer, row),
                records.pack_tag(Tag(layer, expert, epoch, digest)),
            )
            self._staged.setdefault(layer, {})[slot] = Entry(expert, row, epoch, digest)
            return row

    def retire(self, layer: int, slot: int, epoch: int) -> None:
        """Stages an empty slot: after the commit its row is free. Whether other copies are left is for the caller to know."""
        with self._lock:
            self._check(layer, slot, epoch)
            self._staged.setdefault(layer, {})[slot] = Entry()

    def abort(self, layer: int | None = None) -> None:
        """Drops what is staged; the map was never touched."""
        with self._lock:
            self._staged.clear() if layer is None else self._staged.pop(layer, None)

    # -- phase 2 ---------------------------------------------------------------------------------------------------

    def commit(self, layer: int, epoch: int) -> Committed:
        """Swaps the layer's map to what is staged. Every landed row is read back first: one that is not what landed stays out, its
        slot keeps what it had. Blocks for the digests of the landed rows. Raises `SlotError` for an old epoch."""
        with self._lock:
            self._check(layer, 0, epoch)
            staged, damaged = self._staged.get(layer, {}), []
            for slot, entry in staged.items():
                sound = self._holds(layer, entry) and self._whole(layer, entry)
                if entry.expert >= 0 and not sound:
                    damaged.append(slot)
            changes = {slot: entry for slot, entry in staged.items() if slot not in damaged}
            old = self._images[layer]
            entries = tuple(changes.get(slot, entry) for slot, entry in enumerate(old.entries))
            image = Image(old.version + 1, epoch, entries)
            at = self.geometry.image_at(layer, image.version % 2)
            self._put(at, records.pack_image(image))
            self._images[layer] = image
            self._staged.pop(layer, None)
            return Committed(
                layer, epoch, {s: e.expert for s, e in changes.items()}, tuple(damaged)
            )

    # -- damage ----------------------------------------------------------------------------------------------------

    def drop(self, layer: int, slot: int) -> None:
        """Ends a slot's being routable at once: its tag is cleared, the map stays."""
        with self._lock:
            entry = self._images[layer].entries[slot]
            if entry.row >= 0:
                self._put(self.geometry.tag_at(layer, entry.row), bytes(records.TAG_BYTES))

    def scrub(self, layer: int | None = None) -> list[tuple[int, int, int]]:
        """Reads routable rows back and drops those that are damaged: (layer, slot, expert) of each. Blocks for the digests."""
        found = []
        for each in range(self.geometry.layers) if layer is None else (layer,):
            for slot, entry in enumerate(self._images[each].entries):
                with self._lock:
                    now = self._images[each].entries[slot]
                    if now is not entry or not self._holds(each, entry):
                        continue
                    if not self._whole(each, entry):
                        self.drop(each, slot)
                        found.append((each, slot, entry.expert))
        return found

    # -- details ---------------------------------------------------------------------------------------------------

    def _holds(self, layer: int, entry: Entry) -> bool:
        if entry.expert < 0:
            return False
        at = self.geometry.tag_at(layer, entry.row)
        tag = records.read_tag(self._control[at : at + records.TAG_BYTES])
        return tag == Tag(layer, entry.expert, entry.epoch, entry.digest)

    def _whole(self, layer: int, entry: Entry) -> bool:
        """Whether the row still holds what was written; one that cannot be read does not."""
        try:
            return self.rows.digest(layer, entry.row) == entry.digest
        except Exception:  # the engine's memory: what cannot be read back is not served
            return False

    def _newest(self, layer: int) -> Image:
        size = self.geometry.image_bytes
        ats = [self.geometry.image_at(layer, which) for which in (0, 1)]
        whole = [i for i in (records.read_image(self._control[at : at + size]) for at in ats) if i]
        empty = Image(0, 0, (Entry(),) * self.geometry.slots)
        return max(whole, key=lambda image: image.version, default=empty)

    def _put(self, at: int, record: bytes) -> None:
        self._control[at : at + len(record)] = record

    def _check(self, layer: int, slot: int, epoch: int) -> None:
        if not 0 <= layer < self.geometry.layers or not 0 <= slot < self.geometry.slots:
            raise self._wrong("there is no such slot", layer, slot, None,
                              f"{self.geometry.layers} layers of {self.geometry.slots} slots")  # fmt: skip
        if epoch < self._epoch:
            raise self._wrong("a stale epoch may not change slots", layer, slot, epoch,
                              f"the newest is {self._epoch}")  # fmt: skip
        self.fence(epoch)

    def _wrong(
        self, what: str, layer: int, slot: int, value: object, rule: str, remedy: str = ""
    ) -> SlotError:
        where = f"rank {self.geometry.rank}, layer {layer}, slot {slot}"
        return SlotError(what, where=where, value=value, rule=rule, remedy=remedy)
