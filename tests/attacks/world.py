"""The arena under attack, the truth about what was sealed in it, and the judge of what is handed out.

A world is built once per attack; after each case the whole file is put back byte for byte.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

SLOT_BYTES, SLOTS, PAGE = 300, 24, 4096
CHAIN = 5
LEDGER = [(i % 4, bytes([i]) * (i * 5 % 60)) for i in range(30)]

# The layout of the file as csrc/arena/README.md gives it, computed here a second time on purpose.
CONTROL, LANES = PAGE, 3 * PAGE
NAMESPACES = LANES + 2 * PAGE
INDEX = NAMESPACES + 65 * PAGE  # 64 records of 4160 bytes
STATES = INDEX + PAGE
STAMPS, HOLDS, MARKS, HEADERS = (STATES + n * PAGE for n in (1, 2, 3, 4))
HEADER_BYTES = 192
LEDGER_AT = HEADERS + 2 * PAGE  # 24 headers of 192 bytes
HALF = 2 * PAGE
PAYLOAD = LEDGER_AT + 2 * HALF
FILE_BYTES = PAYLOAD + SLOTS * PAGE


def bytes_of(namespace: int, shard: int, name: bytes, version: int = 0) -> bytes:
    return hashlib.shake_128(b"%d/%d/%d/" % (namespace, shard, version) + name).digest(SLOT_BYTES)


def name_of(position: int) -> bytes:
    return hashlib.sha256(b"block %d" % position).digest()


class Accepted(AssertionError):
    """The arena handed out bytes that were never sealed under that name."""


class World:
    """An arena with three chains over two namespaces and two shards, sealed in two epochs, and a ledger."""

    def __init__(self, core: Any, folder: Path, rng: random.Random) -> None:
        self.core, self.rng, self.folder = core, rng, folder
        self.path = str(folder / "arena")
        self.truth: dict[tuple[int, int, bytes], set[bytes]] = {}
        self.outcomes: Counter[str] = Counter()
        self.arena = core.Arena.create(
            self.path, slot_bytes=SLOT_BYTES, slots=SLOTS, ledger_bytes=2 * HALF
        )
        assert self.arena.file_bytes == FILE_BYTES, (
            "README.md and the code disagree about the layout"
        )
        for record in (b"model A", b"model B"):
            self.arena.add_namespace(record)
        self._first_epoch()
        self.older = Path(self.path).read_bytes()  # what a replay brings back
        self._second_epoch()
        with open(self.path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), FILE_BYTES)
        self.original = bytes(self.memory)
        self.used = [info.slot for info in self.arena.scan()]
        self.target = bytearray(CHAIN * SLOT_BYTES)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.target))
        layout = core.Layout([(base, SLOT_BYTES, SLOT_BYTES, CHAIN)])
        self.engines = {
            key: core.CopyEngine(writer, layout) for key, writer in self.writers.items()
        }

    def _attach(self, number: int) -> None:
        token = bytes([number]) * 16
        self.arena.begin_epoch(token, takeover=True)
        self.writers = {
            (0, 0): self.arena.attach_writer(shard=0, token=token, namespace=0),
            (0, 1): self.arena.attach_writer(shard=1, token=token, namespace=0),
            (1, 2): self.arena.attach_writer(shard=2, token=token, namespace=1),
        }

    def seal(self, key: tuple[int, int], position: int, version: int) -> None:
        name, parent = name_of(position), name_of(position - 1) if position else None
        claim = self.writers[key].claim(block_hash=name, parent_hash=parent, position=position)
        if claim is None:
            return
        data = bytes_of(*key, name, version)
        ctypes.memmove(claim.address, data, SLOT_BYTES)
        claim.seal()
        self.truth.setdefault((*key, name), set()).add(data)

    def _first_epoch(self) -> None:
        self._attach(1)
        for key in self.writers:
            for position in range(3):
                self.seal(key, position, 1)
        ledger = self.arena.open_ledger()
        for kind, payload in LEDGER[:20]:
            ledger.append(kind, b"older" + payload)

    def _second_epoch(self) -> None:
        """The same slots again: every block of epoch 1 is taken out and sealed anew with other bytes."""
        self._attach(2)
        for key, writer in self.writers.items():
            for position in (2, 1, 0):
                found = writer.find(
                    block_hash=name_of(position),
                    parent_hash=name_of(position - 1) if position else None,
                )
                ctypes.memset(found.address, 0xEE, 8)
                try:
                    found.verify()
                except self.core.CoreError:
                    pass  # dropped, as a reader does with a bad block
            for position in range(CHAIN):
                self.seal(key, position, 2)
        self.truth = {key: {bytes_of(key[0], key[1], key[2], 2)} for key in self.truth}
        ledger = self.arena.open_ledger()
        ledger.begin_compaction()
        for kind, payload in LEDGER:
            ledger.append(kind, payload)
        ledger.commit_compaction()
        self.ledger = ledger

    def restore(self) -> None:
        self.memory[:] = self.original

    # ---- the judge ----

    def ask(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """The answer, or None with the refusal counted."""
        try:
            return call(*args, **kwargs)
        except self.core.CoreError as error:
            self.outcomes[error.code] += 1
            return None

    def right(self, namespace: int, shard: int, name: bytes, data: bytes) -> None:
        if data not in self.truth.get((namespace, shard, name), ()):
            raise Accepted(f"namespace {namespace}, shard {shard}, block {name.hex()[:8]}")
        self.outcomes["right bytes"] += 1

    def judge(self, arena: Any = None) -> None:
        """Asks for everything there is; raises Accepted for one wrong byte, counts the rest."""
        opened = arena or self.arena
        self.ask(opened.counts)
        self.ask(opened.namespaces)
        self.judge_ledger(opened)
        self.judge_slots(opened)
        if arena is None:
            # All blocks were looked at by slot; by name, one chain at a time is enough over many cases.
            self.judge_chain(self.rng.choice(list(self.writers)))

    def judge_everything(self) -> None:
        self.judge()
        for key in self.writers:
            self.judge_chain(key)

    def judge_ledger(self, arena: Any) -> None:
        read = self.ask(arena.read_ledger)
        if read is None:
            return
        older = [(kind, b"older" + payload) for kind, payload in LEDGER[:20]]
        if (
            read.records != LEDGER[: len(read.records)]
            and read.records != older[: len(read.records)]
        ):
            raise Accepted("the ledger holds a record that was never written there")
        self.outcomes[f"ledger {read.end}"] += 1
        if read.end == "clean" and read.records == LEDGER:
            self.outcomes["ledger whole"] += 1

    def judge_slots(self, arena: Any) -> None:
        base = self.ask(arena.base_address)
        for info in self.ask(arena.scan) or []:
            said = self.ask(arena.verify, info.slot)
            if said == "ok":
                data = ctypes.string_at(base + PAYLOAD + info.slot * PAGE, SLOT_BYTES)
                self.right(info.namespace, info.shard, info.block_hash, data)
            else:
                self.outcomes[f"verify {said}"] += 1

    def judge_chain(self, key: tuple[int, int]) -> None:
        names = [name_of(i) for i in range(CHAIN)]
        answer = self.ask(
            self.arena.usable_prefix,
            namespace=key[0],
            shards=[key[1]],
            block_hashes=names,
            max_epoch=2,
        )
        if answer is not None:
            self.outcomes[f"prefix {answer.reason}"] += 1
        writer = self.writers[key]
        for i, name in enumerate(names):
            found = self.ask(writer.find, block_hash=name, parent_hash=names[i - 1] if i else None)
            if found is None:
                continue
            data = ctypes.string_at(found.address, found.payload_bytes)
            try:
                found.verify()
            except self.core.CoreError as error:
                self.outcomes[error.code] += 1
            else:
                self.right(*key, name, data)
        self.judge_load(key, names)

    def judge_load(self, key: tuple[int, int], names: list[bytes]) -> None:
        self.target[:] = bytes(len(self.target))
        blocks = [
            self.core.Block(i, name, names[i - 1] if i else None, i) for i, name in enumerate(names)
        ]
        self.engines[key].load(1, blocks)
        assert self.engines[key].wait(20), "a load hung"
        (result,) = self.engines[key].poll()
        for i, status in enumerate(result.statuses):
            self.outcomes[f"load {status}"] += 1
            if status == "ok":
                self.right(
                    *key, names[i], bytes(self.target[i * SLOT_BYTES : (i + 1) * SLOT_BYTES])
                )

    def stir(self) -> None:
        """Goes on working on the damaged arena: evicts, writes, opens epochs. Errors are fine, wrong bytes are not."""
        for key, writer in self.writers.items():
            for i in range(6):
                name = b"stirred %d" % i
                claim = self.ask(writer.claim, block_hash=name, parent_hash=None, position=0)
                if claim is not None:
                    data = bytes_of(*key, name)
                    ctypes.memmove(claim.address, data, SLOT_BYTES)
                    self.truth.setdefault((*key, name), set()).add(data)
                    self.ask(claim.seal)
        self.judge()
        self.ask(self.arena.add_namespace, b"another")
        self.ask(self.arena.begin_epoch, self.rng.randbytes(16), takeover=self.rng.random() < 0.5)
        token = self.rng.randbytes(16)
        self.ask(self.arena.begin_epoch, token, takeover=True)
        self.ask(self.arena.attach_writer, shard=9, token=token, namespace=1)
        ledger = self.ask(self.arena.open_ledger, takeover=True)
        if ledger is not None:
            self.ask(ledger.close)

    # ---- places in the file, for the attacks ----

    def header_at(self, slot: int) -> slice:
        return slice(HEADERS + slot * HEADER_BYTES, HEADERS + (slot + 1) * HEADER_BYTES)

    def payload_at(self, slot: int) -> slice:
        return slice(PAYLOAD + slot * PAGE, PAYLOAD + slot * PAGE + SLOT_BYTES)

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, offset)[0])

    def set_word(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, offset, value % 2**64)

    def flip(self, start: int, length: int) -> None:
        at = start + self.rng.randrange(length)
        self.memory[at] ^= 1 << self.rng.randrange(8)

    def reseal(self, slot: int) -> None:
        """Makes link and seal of a header fit again: what a forger of lengths would do."""
        header = bytearray(self.memory[self.header_at(slot)])
        covered = header[128:144] + header[160:176] + header[112:128] + header[8:16]
        shard, hash_bytes = (
            struct.unpack_from("<I", header, 20)[0],
            struct.unpack_from("<I", header, 40)[0],
        )
        covered += (
            struct.pack("<Q", shard)
            + header[24:32]
            + struct.pack("<Q", hash_bytes)
            + header[48:112]
        )
        header[144:160] = self.core.digest(bytes(covered))
        arena_id = self.memory[64:80]
        header[176:192] = self.core.digest(bytes(header[:176]) + struct.pack("<Q", slot) + arena_id)
        self.memory[self.header_at(slot)] = bytes(header)
