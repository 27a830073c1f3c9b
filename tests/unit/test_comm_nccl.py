"""NCCL without a GPU: loading and telling versions apart, what ranks agree on, and every way out of a call, with a library of Python."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import threading
from collections.abc import Callable
from ctypes import c_void_p
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.recovery.comm import nccl
from dynamo_gpu_ft.recovery.comm.base import CommError, CommRevoked, CommTimeout, Seat
from dynamo_gpu_ft.recovery.comm.nccl import NcclBackend, NcclComm, Note, way
from dynamo_gpu_ft.recovery.comm.nccl_library import SINCE, NcclLibrary, shown
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous
from dynamo_gpu_ft.recovery.group.base import Deadline

torch = pytest.importorskip("torch")
BOTH = ("grow", "shrink")


def built(folder: Path, version: int, symbols: list[str], status: int = 0) -> str:
    """A shared library with these symbols that says it is NCCL of this version."""
    source = f"int ncclGetVersion(int* v) {{ *v = {version}; return {status}; }}\n"
    source += 'const char* ncclGetErrorString(int status) { return "of the test"; }\n'
    source += "".join(f"int {name}(void) {{ return 0; }}\n" for name in symbols)
    (folder / "nccl.c").write_text(source)
    target = folder / f"libnccl-{version}.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(target), str(folder / "nccl.c")]
    subprocess.run(command, check=True, timeout=60)
    return str(target)


@pytest.mark.parametrize("version", [21800, 22703, 22807, 22902, 22907, 23203])
def test_a_library_is_asked_for_its_symbols_and_told_by_its_version(
    tmp_path: Path, version: int
) -> None:
    has = {name: symbol for name, (symbol, since) in SINCE.items() if version >= since}
    library = NcclLibrary(built(tmp_path, version, list(has.values())))
    assert (library.version, library.features) == (version, frozenset(has))
    backend = NcclBackend(Rendezvous(f"file:{tmp_path}", "e"), library=library, stream=Stream())
    assert backend.shortcuts == {"shrink", "grow"} & has.keys()


def test_no_library_an_old_one_and_one_that_fails_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CommError, match="no NCCL here.*nowhere"):
        NcclLibrary(str(tmp_path / "nowhere.so"))
    with pytest.raises(CommError, match=r"NCCL 2\.17\.1 .* too old: 2\.18\.0"):
        NcclLibrary(built(tmp_path, 21701, []))
    with pytest.raises(CommError, match="ncclGetVersion: of the test .status 3"):
        NcclLibrary(built(tmp_path, 23203, [], status=3))


def test_a_real_library_has_what_its_version_promises() -> None:
    if importlib.util.find_spec("nvidia") is None:
        pytest.skip("no NCCL package here")
    try:
        library = NcclLibrary()
    except CommError as error:
        pytest.skip(str(error))
    assert library.features == {n for n, (_, since) in SINCE.items() if library.version >= since}
    assert shown(library.version).startswith("2.")


def old(rank: int, size: int = 4, epoch: int = 1, can: tuple[str, ...] = BOTH) -> Note:
    return Note(epoch, rank, size, can)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ([Note(), Note()], "rebuild"),
        ([old(0), old(2), old(3)], "shrink"),
        ([old(2), old(0)], "rebuild"),  # another order than NCCL's
        ([old(0), old(1), old(2), old(3)], "rebuild"),  # nobody to leave out
        ([old(0), old(2, can=("grow",))], "rebuild"),  # one of them had to abort
        ([old(0), old(2, epoch=3)], "rebuild"),  # not the same communicator
        ([old(0, 2), old(1, 2), Note()], "grow"),
        ([old(0, 2), Note(), old(1, 2)], "rebuild"),  # a hole in the middle cannot be filled
        ([old(0, 3), old(1, 3), Note()], "rebuild"),  # one of the old is missing
        ([old(0, 2), old(1, 2, can=("shrink",)), Note()], "rebuild"),
    ],
)
def test_all_ranks_take_a_shortcut_or_none_does(notes: list[Note], expected: str) -> None:
    assert way(notes) == expected


def test_no_set_of_notes_sends_ranks_into_a_shortcut_that_gives_them_other_ranks() -> None:
    some = [Note(), *(old(r, s, 1, c) for s in (2, 3) for r in range(s) for c in (BOTH, ()))]
    for count in (1, 2, 3):
        for said in itertools.product(some, repeat=count):
            how, ranks = way(said), [note.rank for note in said if note.epoch]
            if how == "shrink":
                assert ranks == sorted(set(ranks))
                assert all(note.epoch and "shrink" in note.can for note in said)
            if how == "grow":
                assert ranks == list(range(said[0].size))
                assert all(not note.epoch for note in said[len(ranks) :])


class Stream:
    """Done when told."""

    device = "cpu"

    def __init__(self) -> None:
        self.done = threading.Event()
        self.done.set()

    def pointer(self) -> int:
        return 7

    def mark(self) -> Callable[[], bool]:
        return self.done.is_set


class Library:
    """Records calls; a new handle needs a few looks until it is ready, `stuck` ones for ever; `failing` calls raise."""

    def __init__(self, *features: str) -> None:
        self.features, self.calls = frozenset(features), []
        self.looks, self.stuck, self.failing, self.error = 3, False, "", ""
        self.made = 0
        self.simulated, self.null = False, False
        self.ended: Callable[[], None] = lambda: None

    def call(self, name: str, *arguments: Any) -> None:
        self.calls.append(name)
        if name in ("ncclCommAbort", "ncclCommRevoke"):
            self.ended()
        if name == self.failing:
            raise CommError(f"{name}: of the test")
        if name in ("ncclCommInitRankConfig", "ncclCommShrink", "ncclCommGrow"):
            place = {"ncclCommInitRankConfig": 0, "ncclCommShrink": 3, "ncclCommGrow": 4}[name]
            self.made += 1
            if self.null and name != "ncclCommInitRankConfig":
                return
            arguments[place]._obj.value = 1000 + self.made  # behind byref

    def progress(self, comm: c_void_p) -> bool:
        if self.error:
            raise CommError(self.error)
        self.looks -= 1
        return not self.stuck and self.looks <= 0


class World:
    """One rank, of one."""

    def __init__(self, folder: Path, *features: str, timeout_s: float = 30.0) -> None:
        self.library, self.stream = Library(*features), Stream()
        rendezvous = Rendezvous(f"file:{folder}", "e")
        self.backend = NcclBackend(
            rendezvous,
            timeout_s=timeout_s,
            library=self.library,  # type: ignore[arg-type]
            stream=self.stream,
        )

    def seat(self, epoch: int, owner: str = "1.1") -> Seat:
        return Seat("tp", epoch, 0, 1, owner)

    def made(self, epoch: int = 1) -> NcclComm:
        comm = self.backend.make(self.seat(epoch), Deadline.after(10))
        assert isinstance(comm, NcclComm)
        return comm


def test_a_communicator_is_waited_for_and_its_calls_go_as_one_group_each(tmp_path: Path) -> None:
    world = World(tmp_path)
    comm = world.made()
    assert world.library.calls == ["ncclGetUniqueId", "ncclCommInitRankConfig"]
    comm.all_reduce(torch.ones(3))
    assert world.library.calls[2:] == ["ncclGroupStart", "ncclAllReduce", "ncclGroupEnd"]
    comm.all_to_all(torch.zeros(2), torch.ones(2))
    assert world.library.calls[5:] == ["ncclGroupStart", "ncclSend", "ncclRecv", "ncclGroupEnd"]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int16])
def test_what_nccl_cannot_move_is_refused_before_anybody_waits(tmp_path: Path, dtype: Any) -> None:
    comm = World(tmp_path).made()
    with pytest.raises(ValueError, match="NCCL moves"):
        comm.all_reduce(torch.ones(3, dtype=dtype))
    with pytest.raises(ValueError, match="contiguous"):
        comm.all_reduce(torch.ones(4, 4).t()[1:])
    comm.all_reduce(torch.ones(3))


@pytest.mark.parametrize("features", [(), ("revoke",)])
def test_a_call_that_never_ends_on_the_device_is_left_by_a_revoke(
    tmp_path: Path, features: tuple[str, ...]
) -> None:
    world = World(tmp_path, *features)
    comm = world.made()
    world.stream.done.clear()
    revoker = threading.Timer(0.05, comm.revoke)
    revoker.start()
    with pytest.raises(CommRevoked):
        comm.all_reduce(torch.ones(3))
    revoker.join()
    expected = "ncclCommRevoke" if features else "ncclCommAbort"
    assert [c for c in world.library.calls if c in ("ncclCommRevoke", "ncclCommAbort")] == [
        expected
    ]
    comm.revoke()
    with pytest.raises(CommRevoked):
        comm.all_reduce(torch.ones(3))
    comm.abort()
    comm.abort()
    assert world.library.calls.count("ncclCommAbort") == 1


@pytest.mark.parametrize("features", [(), ("revoke",)])
def test_a_call_that_a_revoke_ended_on_the_device_is_not_taken_for_done(
    tmp_path: Path, features: tuple[str, ...]
) -> None:
    world = World(tmp_path, *features)
    comm = world.made()
    world.stream.done.clear()
    world.library.ended = world.stream.done.set  # the kernel leaves, and its event comes
    looks = itertools.count()

    def mark() -> Callable[[], bool]:
        def done() -> bool:
            if next(looks) == 0:
                comm.revoke()
            return world.stream.done.is_set()

        return done

    world.stream.mark = mark  # type: ignore[method-assign]
    with pytest.raises(CommRevoked):
        comm.all_reduce(torch.ones(3))


def test_a_handle_that_comes_too_late_has_a_place_to_be_written_to(tmp_path: Path) -> None:
    world = World(tmp_path, "shrink")
    comm = world.made()
    comm.seat = Seat("tp", 1, 0, 2, "1.1")
    world.library.null = True
    kept = len(nccl._PLACES)
    with pytest.raises(CommTimeout):
        world.backend.shrink(comm, [0], world.seat(3), Deadline.after(0.05))
    assert len(nccl._PLACES) == kept + 1


def test_a_call_that_takes_too_long_or_fails_says_so_and_breaks_the_communicator(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, timeout_s=0.05)
    comm = world.made()
    world.stream.done.clear()
    with pytest.raises(CommTimeout, match="longer than"):
        comm.all_reduce(torch.ones(3))
    with pytest.raises(CommTimeout, match="broken by an earlier call"):
        comm.barrier()
    assert world.library.calls[-1] == "ncclCommAbort", "nothing goes on in the tensor behind it"
    other = World(tmp_path).made(2)
    library: Any = other._library
    library.error = "NCCL reports: remote process exited"
    with pytest.raises(CommError, match="remote process exited"):
        other.all_reduce(torch.ones(3))


def test_a_communicator_that_is_never_ready_ends_at_the_deadline_or_when_given_up(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.library.stuck = True
    with pytest.raises(CommTimeout):
        world.backend.make(world.seat(1), Deadline.after(0.05))
    with pytest.raises(CommRevoked):
        world.backend.make(world.seat(2), Deadline.after(10), lambda: True)
    assert world.library.calls.count("ncclCommAbort") == 2, "nothing half-made is left"


def test_when_the_library_refuses_to_make_one_the_error_is_its_own(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.library.failing = "ncclCommInitRankConfig"
    with pytest.raises(CommError, match="ncclCommInitRankConfig: of the test"):
        world.made()


def test_growing_from_one_rank_makes_a_new_handle_and_ends_the_old_one(tmp_path: Path) -> None:
    world = World(tmp_path, "grow", "shrink", "revoke")
    comm = world.made(1)
    store = world.backend._rendezvous.store(Seat("tp", 3, 1, 2, "2.2"), Deadline.after(10))
    store.compare_set("seat/1", "", '2.2 {"epoch":0}')  # a second rank that is there
    grown = world.backend.grow(comm, Seat("tp", 3, 0, 2, "1.1"), Deadline.after(10))
    assert world.library.calls[2:] == ["ncclCommGetUniqueId", "ncclCommGrow", "ncclCommAbort"]
    shrunk_store = world.backend._rendezvous.store(world.seat(5), Deadline.after(10))
    assert not shrunk_store.check(["seat/0"])
    shrunk = world.backend.shrink(grown, [0], world.seat(5), Deadline.after(10))
    assert world.library.calls[5:] == ["ncclCommShrink", "ncclCommAbort"]
    shrunk.all_reduce(torch.ones(1))


def test_after_an_abort_shrinking_is_a_rebuild_and_after_a_revoke_it_is_not(
    tmp_path: Path,
) -> None:
    for features, expected in (
        (("shrink",), "ncclCommInitRankConfig"),
        (("shrink", "revoke"), "ncclCommShrink"),
    ):
        folder = tmp_path / expected
        folder.mkdir()
        world = World(folder, *features)
        comm = world.made()
        comm.seat = Seat("tp", 1, 0, 2, "1.1")
        comm.revoke()
        world.backend.shrink(comm, [0], world.seat(3), Deadline.after(10))
        assert expected in world.library.calls[3:]
