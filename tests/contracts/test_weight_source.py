"""The contract of every weight source: the right bytes of the right boxes, nothing else read, and a clear refusal of everything damaged."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import WeightsError
from dynamo_gpu_ft.recovery.weights import chain, header, neighbour
from dynamo_gpu_ft.recovery.weights.base import Need, Report, WeightSource
from dynamo_gpu_ft.recovery.weights.peer import PeerSource, Place, Table
from dynamo_gpu_ft.recovery.weights.slices import SliceSource

MODEL = "a-model"
SHAPES = {"a": (6, 40), "b": (64, 24), "c": (31,), "d": (3, 5, 7)}


class Room:
    """A sink that keeps what it got, and only counts what was filled. `lies_there`: what it says of where the bytes stay."""

    def __init__(self, *, lies_there: bool = False) -> None:
        self._lies_there = lies_there
        self.rooms: dict[Need, bytearray] = {}
        self.whole: dict[Need, bytes] = {}

    def room(self, need: Need, dtype: str) -> memoryview:
        self.rooms[need] = bytearray(need.size(dtype))
        return memoryview(self.rooms[need])

    def filled(self, need: Need, dtype: str) -> bool:
        self.whole[need] = bytes(self.rooms[need])
        return self._lies_there


@dataclass
class World:
    """One source that has all of `SHAPES`, and how to spoil the bytes of tensor "b" in it."""

    source: Callable[[], WeightSource]
    spoil: Callable[[], None]
    remove: Callable[[], None]


def element(name: str, index: tuple[int, ...]) -> bytes:
    text = f"{name}{index}".encode()
    return native.load().digest(text)[:4]


def box_bytes(need: Need) -> bytes:
    found = [()]
    for begin, to in need.box:
        found = [(*index, i) for index in found for i in range(begin, to)]
    return b"".join(element(need.tensor, index) for index in found)


def whole(name: str) -> Need:
    return Need(name, tuple((0, size) for size in SHAPES[name]))


def safetensors_bytes(tensors: dict[str, bytes], shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries, at = {}, 0
    for name, data in tensors.items():
        entries[name] = {
            "dtype": "F32",
            "shape": list(shapes[name]),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def checkpoint(folder: Path) -> None:
    parts = {"one.safetensors": ("a", "c"), "two.safetensors": ("b", "d")}
    for file, names in parts.items():
        data = {name: box_bytes(whole(name)) for name in names}
        (folder / file).write_bytes(safetensors_bytes(data, SHAPES))
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / header.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def _spoil(path: Path, need: Need) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(box_bytes(need))
    data[at + 5] ^= 1
    path.write_bytes(bytes(data))


PEER = """
import ctypes, sys
data = sys.stdin.buffer.read(int(sys.argv[1]))
room = (ctypes.c_char * len(data)).from_buffer_copy(data)
print(ctypes.addressof(room), flush=True)
for line in sys.stdin.buffer:
    room[int(line)] = bytes([room[int(line)][0] ^ 1])
    print("done", flush=True)
"""


@pytest.fixture(params=["checkpoint", "neighbour", "peer"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "checkpoint":
        checkpoint(tmp_path)
        file = tmp_path / "two.safetensors"
        yield World(
            lambda: SliceSource(tmp_path),
            lambda: os.truncate(
                file, file.stat().st_size - 8
            ),  # it has no digests: what is short is seen
            lambda: file.unlink(),
        )
    elif request.param == "neighbour":
        path = neighbour.path_of(str(tmp_path / "x.arena"), 3)
        kept = [(whole(name), "F32", memoryview(box_bytes(whole(name)))) for name in SHAPES]
        assert neighbour.write(path, MODEL, 4, kept)
        yield World(
            lambda: neighbour.NeighbourSource([path], MODEL),
            lambda: _spoil(path, whole("b")),
            lambda: path.unlink(),
        )
    else:
        data = b"".join(box_bytes(whole(name)) for name in SHAPES)
        process = subprocess.Popen(
            [sys.executable, "-c", PEER, str(len(data))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(data)
        process.stdin.flush()
        base = int(process.stdout.readline())
        places, at = [], 0
        for name in SHAPES:
            piece = box_bytes(whole(name))
            places.append(
                Place(name, whole(name).box, "F32", base + at, native.load().digest(piece))
            )
            at += len(piece)
        ticks = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        table = Table(process.pid, ticks, MODEL, tuple(places))

        def spoil() -> None:
            assert process.stdin
            assert process.stdout
            process.stdin.write(b"%d\n" % (places[1].address - base + 9))
            process.stdin.flush()
            process.stdout.readline()

        def remove() -> None:
            process.kill()
            process.wait()

        yield World(lambda: PeerSource([table], MODEL), spoil, remove)
        process.kill()
        process.communicate()


def test_boxes_of_rows_columns_and_corners_arrive_byte_for_byte(
    world: World, rng: random.Random
) -> None:
    source = world.source()
    for _ in range(40):
        needs = []
        for name, sizes in SHAPES.items():
            box = []
            for size in sizes:
                begin = rng.choice((0, rng.randrange(size)))
                box.append((begin, rng.choice((size, rng.randrange(begin + 1, size + 1)))))
            needs.append(Need(name, tuple(box)))
        room = Room()
        report = source.load(needs, room, 10.0)
        assert room.whole == {need: box_bytes(need) for need in needs}
        assert report.bytes_needed == sum(need.size("F32") for need in needs)


def test_what_is_damaged_is_refused_and_never_counted_as_filled(world: World) -> None:
    needs = [whole(name) for name in SHAPES]
    world.spoil()
    room = Room()
    with pytest.raises(WeightsError):
        world.source().load(needs, room, 10.0)
    assert all(data == box_bytes(need) for need, data in room.whole.items())


def test_a_source_that_is_gone_says_so(world: World) -> None:
    world.remove()
    with pytest.raises(WeightsError):
        world.source().load([whole("b")], Room(), 10.0)


def test_a_tensor_or_a_row_that_is_not_there_is_refused(world: World) -> None:
    for need in (Need("nobody", ((0, 1),)), Need("a", ((0, 7), (0, 40))), Need("a", ((0, 6),))):
        with pytest.raises(WeightsError):
            world.source().load([need], Room(), 10.0)


def test_no_time_left_is_a_timeout(world: World) -> None:
    with pytest.raises(TimeoutError):
        world.source().load([whole("a")], Room(), -1.0)


def test_a_load_can_be_repeated(world: World) -> None:
    source = world.source()
    for _ in range(2):
        room = Room()
        source.load([whole("d")], room, 10.0)
        assert room.whole[whole("d")] == box_bytes(whole("d"))


# -- what only one of them can get wrong -----------------------------------------------------------------------------


def test_a_shard_reads_its_share_of_the_checkpoint_and_no_more(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    half = [Need("b", ((0, 64), (0, 12))), Need("a", ((3, 6), (0, 40)))]
    report = SliceSource(tmp_path).load(half, Room(), 10.0)
    assert report.bytes_read <= 1.05 * sum(need.size("F32") for need in half)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}, "as far apart"),
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [1 << 40, (1 << 40) + 16]}, "all bytes"),
        ({"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}, "known types"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, "not negative"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}, "as far apart"),
        ([], "known types"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_lie(
    tmp_path: Path, entry: object, words: str
) -> None:
    text = json.dumps({"a": entry}).encode()
    (tmp_path / header.SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(WeightsError, match=words):
        SliceSource(tmp_path).entries()


def test_headers_longer_than_the_file_or_no_json_or_overlapping_are_refused(tmp_path: Path) -> None:
    path = tmp_path / header.SINGLE
    twice = {n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}
    text = json.dumps(twice).encode()
    for data in (
        b"",
        b"1234567",
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 4) + b"}{{{",
        struct.pack("<Q", len(text)) + text + bytes(16),
    ):
        path.write_bytes(data)
        with pytest.raises(WeightsError):
            SliceSource(tmp_path).entries()


def test_an_index_that_points_outside_or_nowhere_is_refused(tmp_path: Path) -> None:
    for name in ("../one.safetensors", "/etc/passwd", "nowhere.safetensors", ""):
        (tmp_path / header.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WeightsError):
            SliceSource(tmp_path).entries()


def test_a_need_across_two_shards_files_is_put_together(tmp_path: Path) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    for path, rows in zip(paths, ((0, 30), (30, 64)), strict=True):
        need = Need("b", (rows, (0, 24)))
        neighbour.write(path, MODEL, 1, [(need, "F32", memoryview(box_bytes(need)))])
    room, wanted = Room(), Need("b", ((20, 50), (3, 9)))
    neighbour.NeighbourSource(paths, MODEL).load([wanted], room, 10.0)
    assert room.whole[wanted] == box_bytes(wanted)


def test_torn_stale_foreign_or_forged_neighbour_files_are_refused(
    tmp_path: Path, rng: random.Random
) -> None:
    path, need = tmp_path / "file", whole("a")
    neighbour.write(path, MODEL, 1, [(need, "F32", memoryview(box_bytes(need)))])
    good = path.read_bytes()
    with pytest.raises(WeightsError, match="another model"):
        neighbour.NeighbourSource([path], "other").load([need], Room(), 10.0)
    for _ in range(300):
        bad = bytearray(good)
        if rng.random() < 0.3:
            del bad[rng.randrange(len(bad)) :]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(bad))
        room = Room()
        try:
            neighbour.NeighbourSource([path], MODEL).load([need], room, 10.0)
        except WeightsError:
            continue
        assert room.whole[need] == box_bytes(need)  # the flipped bit was padding


def test_a_writer_killed_in_the_middle_leaves_the_old_file_and_a_second_writer_waits_for_nobody(
    tmp_path: Path,
) -> None:
    path, need = tmp_path / "file", whole("a")
    data = memoryview(box_bytes(need))
    assert neighbour.write(path, MODEL, 1, [(need, "F32", data)])
    Path(f"{path}.tmp").write_bytes(b"half of something")
    assert not neighbour.write(path, MODEL, 2, [(need, "F32", data)])  # the same is there already
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl,sys,time; f=open(sys.argv[1],'a'); fcntl.flock(f,2); print(1,flush=True); time.sleep(60)", f"{path}.lock"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    other = whole("c")
    kept = [(other, "F32", memoryview(box_bytes(other)))]
    try:
        assert not neighbour.write(path, MODEL, 2, kept)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert neighbour.write(path, MODEL, 2, kept)
    assert path.stat().st_mode & 0o777 == 0o600


class Source:
    """A source that does what it is told."""

    def __init__(self, name: str, data: bytes | Exception) -> None:
        self.name, self._data = name, data

    def load(self, needs: list[Need], sink: Room, deadline_s: float) -> Report:
        if isinstance(self._data, Exception):
            raise self._data
        for need in needs:
            sink.room(need, "F32")[:] = self._data
            sink.filled(need, "F32")
        return Report(self.name, len(self._data), len(self._data), 0.0)


def test_the_chain_takes_the_first_source_whose_bytes_have_the_expected_digest() -> None:
    need, core = Need("x", ((0, 2),)), native.load()
    room = Room()
    sources = [
        Source("absent", WeightsError("no")), Source("slow", TimeoutError("late")), Source("forged", b"12345679"), Source("good", b"12345678"),
    ]  # fmt: skip
    expected = {str(need): core.digest(b"12345678")}

    def digest(each: Need) -> bytes:
        return core.digest(room.whole[each])

    loaded = chain.load(sources, [need], room, digest, expected=expected, deadline_s=5.0)
    assert loaded.report.source == "good"
    assert [name for name, _ in loaded.refused] == ["absent", "slow", "forged"]
    with pytest.raises(WeightsError, match="no source"):
        chain.load(sources[:3], [need], room, digest, expected=expected, deadline_s=5.0)


def test_what_a_source_digested_where_it_lies_is_not_digested_again(tmp_path: Path) -> None:
    path, core = tmp_path / "w", native.load()
    whole = [Need(name, tuple((0, size) for size in shape)) for name, shape in SHAPES.items()]
    neighbour.write(path, MODEL, 1, [(need, "F32", memoryview(box_bytes(need))) for need in whole])
    part = Need("b", ((3, 60), (0, 24)))  # of one that is stored in whole
    for lies_there, needs, again in (
        (True, whole, 0),
        (False, whole, len(whole)),
        (True, [part], 1),
    ):
        room, asked = Room(lies_there=lies_there), list[Need]()

        def digest(each: Need, room: Room = room, asked: list[Need] = asked) -> bytes:
            asked.append(each)
            return core.digest(room.whole[each])

        source = neighbour.NeighbourSource([path], MODEL)
        loaded = chain.load([source], needs, room, digest, deadline_s=5.0)
        assert len(asked) == again
        assert loaded.digests == {str(need): core.digest(box_bytes(need)) for need in needs}


def test_a_source_that_lacks_one_need_reads_nothing_for_the_others(tmp_path: Path) -> None:
    path = tmp_path / "w"
    whole = Need("a", ((0, 6), (0, 40)))
    neighbour.write(path, MODEL, 1, [(whole, "F32", memoryview(box_bytes(whole)))])
    room = Room()
    source = neighbour.NeighbourSource([path], MODEL)
    with pytest.raises(WeightsError, match="not there"):
        source.load([whole, Need("c", ((0, 31),))], room, 5.0)
    assert not room.rooms
