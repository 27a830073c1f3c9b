"""The attacks: each changes the bytes of a world in one way and says how the result is to be looked at.

README.md lists them with the one thing each tries. A move that returns an arena wants that one judged, not the open one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import crc
import world as w

Move = Callable[[w.World], Any]
MOVES: dict[str, Move] = {}
HOSTILE = [
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    65,
    255,
    4095,
    4096,
    4097,
    w.SLOTS - 1,
    w.SLOTS,
    w.SLOTS + 1,
    w.FILE_BYTES,
    w.FILE_BYTES - 8,
]
HOSTILE += [
    2**26 - 1,
    2**26,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**48 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 4096,
    2**64 - 1,
]


def move(function: Move) -> Move:
    MOVES[function.__name__] = function
    return function


def hostile(world: w.World) -> int:
    return world.rng.choice(HOSTILE) if world.rng.random() < 0.7 else world.rng.getrandbits(64)


def two_slots(world: w.World) -> tuple[int, int]:
    a, b = world.rng.sample(world.used, 2)
    return a, b


def swap(world: w.World, a: slice, b: slice) -> None:
    world.memory[a], world.memory[b] = world.memory[b], world.memory[a]


@move
def flip_payload(world: w.World) -> None:
    world.flip(w.PAYLOAD + world.rng.choice(world.used) * w.PAGE, w.SLOT_BYTES)


@move
def flip_header(world: w.World) -> None:
    world.flip(w.HEADERS + world.rng.choice(world.used) * w.HEADER_BYTES, w.HEADER_BYTES)


@move
def flip_state(world: w.World) -> None:
    world.flip(w.STATES, 8 * w.SLOTS)


@move
def flip_index(world: w.World) -> None:
    world.flip(w.INDEX, 128 * 8)


@move
def flip_ledger(world: w.World) -> None:
    world.flip(w.LEDGER_AT, 2 * w.HALF)


@move
def flip_namespace(world: w.World) -> None:
    world.flip(w.NAMESPACES + world.rng.randrange(2) * 4160, 80)


@move
def flip_control(world: w.World) -> None:
    world.flip(w.CONTROL, 384)


@move
def flip_lane(world: w.World) -> None:
    world.flip(w.LANES, 6 * 64)  # three writers of epoch 1, three of epoch 2


@move
def flip_anywhere(world: w.World) -> None:
    for _ in range(world.rng.choice([1, 2, 16])):
        world.flip(0, w.FILE_BYTES)


@move
def flip_file_header(world: w.World) -> Any:
    world.flip(0, 128)
    return world.ask(world.core.Arena.open, world.path)


@move
def hostile_state(world: w.World) -> None:
    for _ in range(4):
        slot = world.rng.randrange(w.SLOTS)
        word = world.word(w.STATES + slot * 8)
        part = world.rng.choice(["state", "lane", "generation", "all"])
        if part == "state":
            word = word & ~0xFF | world.rng.choice([0, 1, 2, 3, 4, 255])
        elif part == "lane":
            word = word & ~0xFF00 | world.rng.choice([0, 1, 127, 128, 255]) << 8
        elif part == "generation":
            word += world.rng.choice([-1, 1, 2, 4096, 2**18]) << 16
        else:
            word = hostile(world)
        world.set_word(w.STATES + slot * 8, word)


@move
def hostile_index(world: w.World) -> None:
    for _ in range(8):
        world.set_word(w.INDEX + world.rng.randrange(128) * 8, hostile(world))


@move
def index_points_elsewhere(world: w.World) -> None:
    """Every living entry keeps its tag and generation but names another slot."""
    for i in range(128):
        entry = world.word(w.INDEX + i * 8)
        if entry and world.rng.random() < 0.5:
            other = world.rng.choice([*world.used, world.rng.randrange(2**26 - 1)])
            world.set_word(w.INDEX + i * 8, entry & ~(2**26 - 1) | other + 1)


@move
def index_full_of_one_slot(world: w.World) -> None:
    slot = world.rng.randrange(w.SLOTS)
    generation = world.word(w.STATES + slot * 8) >> 16
    for i in range(128):
        world.set_word(
            w.INDEX + i * 8, world.rng.getrandbits(20) << 44 | generation % 2**18 << 26 | slot + 1
        )


@move
def hostile_stamps_and_holds(world: w.World) -> None:
    for _ in range(8):
        slot = world.rng.randrange(w.SLOTS)
        region = world.rng.choice([w.STAMPS, w.HOLDS, w.MARKS, None])
        if region is not None:
            world.set_word(region + slot * 8, hostile(world))
        elif world.rng.random() < 0.5:  # a mark of the right generation, whatever it says
            generation = world.word(w.STATES + slot * 8) >> 16 & 0xFFFF
            world.set_word(w.MARKS + slot * 8, generation << 48 | world.rng.getrandbits(48))
        else:  # quota, use, evictions of a namespace
            at = w.NAMESPACES + world.rng.randrange(2) * 4160 + world.rng.choice([8, 16, 24])
            world.set_word(at, hostile(world))


@move
def hostile_control(world: w.World) -> None:
    world.set_word(
        w.CONTROL + world.rng.choice([0, 8, 16, 64, 128, 136, 144, 152, 192, 256, 264, 288, 296]),
        hostile(world),
    )


@move
def hostile_lane(world: w.World) -> None:
    world.set_word(w.LANES + world.rng.randrange(6 * 8) * 8, hostile(world))


@move
def hostile_header_word(world: w.World) -> None:
    slot = world.rng.choice(world.used)
    world.set_word(w.HEADERS + slot * w.HEADER_BYTES + world.rng.randrange(24) * 8, hostile(world))


@move
def forged_lengths(world: w.World) -> None:
    """Fields that are used as lengths, numbers or limits get hostile values under a seal that fits."""
    slot = world.rng.choice(world.used)
    at = w.HEADERS + slot * w.HEADER_BYTES
    offset, size = world.rng.choice([(0, 8), (8, 8), (16, 4), (24, 8), (32, 8), (40, 4), (44, 4)])
    value = hostile(world) % 2 ** (8 * size)
    if offset == 40 and value <= 64:
        value += (
            65  # a shorter name would be another name, and under a fitting seal the forger's word
        )
    world.memory[at + offset : at + offset + size] = value.to_bytes(size, "little")
    world.reseal(slot)


@move
def swap_payloads(world: w.World) -> None:
    a, b = two_slots(world)
    swap(world, world.payload_at(a), world.payload_at(b))


@move
def swap_headers(world: w.World) -> None:
    a, b = two_slots(world)
    swap(world, world.header_at(a), world.header_at(b))


@move
def swap_slots(world: w.World) -> None:
    """Header, payload, and sometimes the state word too: the seal knows its slot."""
    a, b = two_slots(world)
    swap(world, world.header_at(a), world.header_at(b))
    swap(world, world.payload_at(a), world.payload_at(b))
    if world.rng.random() < 0.5:
        swap(
            world,
            slice(w.STATES + a * 8, w.STATES + a * 8 + 8),
            slice(w.STATES + b * 8, w.STATES + b * 8 + 8),
        )


@move
def copy_slot(world: w.World) -> None:
    a, b = two_slots(world)
    world.memory[world.header_at(b)] = world.memory[world.header_at(a)]
    world.memory[world.payload_at(b)] = world.memory[world.payload_at(a)]


@move
def replay_older_epoch(world: w.World) -> None:
    """Headers and payloads of epoch 1, sealed by the same arena in the same slots, come back."""
    for slot in world.rng.sample(world.used, world.rng.randrange(1, 4)):
        for place in (world.header_at(slot), world.payload_at(slot)):
            world.memory[place] = world.older[place]
        if world.rng.random() < 0.3:
            world.memory[w.INDEX : w.INDEX + 1024] = world.older[w.INDEX : w.INDEX + 1024]


@move
def replay_payload(world: w.World) -> None:
    slot = world.rng.choice(world.used)
    world.memory[world.payload_at(slot)] = world.older[world.payload_at(slot)]


@move
def wrong_namespace(world: w.World) -> None:
    """Blocks of one model are relabelled as another's: index number, identity, or both."""
    slot, other = two_slots(world)
    at, source = w.HEADERS + slot * w.HEADER_BYTES, w.HEADERS + other * w.HEADER_BYTES
    if world.rng.random() < 0.7:
        world.memory[at + 16 : at + 20] = struct.pack(
            "<I", world.rng.choice([0, 1, 2, 63, 64, 2**32 - 1])
        )
    if world.rng.random() < 0.7:
        world.memory[at + 112 : at + 128] = world.memory[source + 112 : source + 128]


@move
def swap_namespace_records(world: w.World) -> None:
    a, b = w.NAMESPACES, w.NAMESPACES + 4160
    swap(world, slice(a, a + 4160), slice(b, b + 4160))
    if world.rng.random() < 0.5:
        world.set_word(w.CONTROL + 8, hostile(world))


@move
def hostile_namespace_length(world: w.World) -> None:
    at = w.NAMESPACES + world.rng.randrange(2) * 4160
    world.memory[at : at + 4] = struct.pack("<I", hostile(world) % 2**32)


@move
def hostile_geometry(world: w.World) -> Any:
    """Numbers of the file header under a checksum that fits, sometimes with a file of the length they ask for."""
    offset = world.rng.choice([12, 16, 24, 32, 40, 48])
    value = world.rng.choice([hostile(world), world.rng.randrange(1, 64)])
    world.set_word(offset, value)
    world.memory[124:128] = struct.pack("<I", crc.crc32c(world.memory[:124]))
    return world.ask(world.core.Arena.open, world.path)


@move
def another_geometry_that_fits(world: w.World) -> Any:
    """A copy of the file with other numbers, checksum and length: sound as a file, nonsense as an arena."""
    slots, ledger = world.rng.choice([(12, 16384), (24, 8192), (28, 4096), (23, 12288), (64, 2)])
    copy = bytearray(world.memory)
    struct.pack_into("<QQ", copy, 24, slots, ledger)
    half = -(-((ledger + 1) // 2) // w.PAGE) * w.PAGE
    headers = -(-slots * w.HEADER_BYTES // w.PAGE) * w.PAGE
    size = w.HEADERS + headers + 2 * half + slots * w.PAGE
    struct.pack_into("<Q", copy, 40, size)
    struct.pack_into("<I", copy, 124, crc.crc32c(bytes(copy[:124])))
    return opened_copy(world, copy[:size] + bytes(max(0, size - len(copy))))


@move
def truncate(world: w.World) -> Any:
    return opened_copy(
        world,
        world.memory[
            : world.rng.choice([world.rng.randrange(w.FILE_BYTES), world.rng.randrange(300)])
        ],
    )


@move
def grow(world: w.World) -> Any:
    return opened_copy(world, world.memory[:] + bytes(world.rng.choice([1, 8, 4096])))


def opened_copy(world: w.World, data: bytes) -> Any:
    path = world.folder / "copy"
    path.write_bytes(data)
    os.chmod(path, 0o600)
    return world.ask(world.core.Arena.open, str(path), read_only=world.rng.random() < 0.5)


@move
def hostile_record(world: w.World) -> None:
    """A record's length or kind gets a hostile value, under a checksum that fits half of the time."""
    at = record_offsets(world)[world.rng.randrange(len(w.LEDGER))]
    size = hostile(world) % 2**32
    struct.pack_into("<I", world.memory, at + 16, size)
    if world.rng.random() < 0.5 and size <= w.HALF:
        world.set_word(at, 0x5EA1ED1E << 32 | crc.crc32c(world.memory[at + 8 : at + 24 + size]))
        if world.memory[at + 8 : at + 24] == world.original[at + 8 : at + 24]:
            return
        # A forger's record: whatever it says is his word. Only that nothing breaks counts here.
        world.ask(world.arena.read_ledger)
        world.restore()


@move
def swap_records(world: w.World) -> None:
    offsets = record_offsets(world)
    a, b = world.rng.sample(range(len(w.LEDGER)), 2)
    size = 24
    swap(world, slice(offsets[a], offsets[a] + size), slice(offsets[b], offsets[b] + size))


@move
def replay_ledger(world: w.World) -> None:
    """The half of the former generation is put where the living one is, or the ledger word points back."""
    if world.rng.random() < 0.5:
        live = LIVE_HALF
        world.memory[w.LEDGER_AT + live * w.HALF : w.LEDGER_AT + (live + 1) * w.HALF] = (
            world.original[w.LEDGER_AT + (1 - live) * w.HALF : w.LEDGER_AT + (2 - live) * w.HALF]
        )
    else:
        world.set_word(
            w.CONTROL + 128, world.word(w.CONTROL + 128) ^ world.rng.choice([1, 2, 4, 5, 8])
        )


LIVE_HALF = 1  # after one compaction


def record_offsets(world: w.World) -> list[int]:
    offsets, at = [], w.LEDGER_AT + LIVE_HALF * w.HALF
    for _, payload in w.LEDGER:
        offsets.append(at)
        at += (24 + len(payload) + 7) // 8 * 8
    return offsets
