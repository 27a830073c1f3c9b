"""`NcclBackend`: NCCL communicators that never block the host, so that every call can be left, with the library's own shrink and grow.

For the ranks of engines on GPUs. What an NCCL is too old for is a rebuild; whether all ranks can take a shortcut is settled among them
at the rendezvous, before anybody enters one.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ctypes import byref, c_void_p
from typing import Any

import msgspec

from dynamo_gpu_ft.recovery.comm.base import (
    Comm,
    CommError,
    CommRevoked,
    CommTimeout,
    Op,
    Seat,
    check_kept,
    never,
)
from dynamo_gpu_ft.recovery.comm.nccl_library import (
    OPS,
    SHRINK_ABORT,
    TYPES,
    Config,
    NcclLibrary,
    UniqueId,
)
from dynamo_gpu_ft.recovery.comm.nccl_streams import CudaStream, Stream
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous, all_there, notes, take
from dynamo_gpu_ft.recovery.group.base import Deadline

POLL_S = 0.0002
_PLACES: list[c_void_p] = []
"""Where the library may still write a handle that nobody waits for any more."""


class Note(msgspec.Struct, frozen=True):
    """What a rank says of itself when it takes its seat: the communicator it comes with (epoch 0: none), and what it can do with it."""

    epoch: int = 0
    rank: int = -1
    size: int = 0
    can: tuple[str, ...] = ()


def way(notes: Sequence[Note]) -> str:
    """What all ranks of a new communicator do, from what each said, in order of their new ranks: "shrink", "grow" or "rebuild". Pure.

    NCCL's shrink keeps the order of ranks and closes the gaps; its grow keeps every rank and puts new ones behind."""
    old = [note for note in notes if note.epoch]
    if not old or len({(note.epoch, note.size) for note in old}) != 1:
        return "rebuild"
    can = set.intersection(*(set(note.can) for note in old))
    ranks, size = [note.rank for note in old], old[0].size
    if len(old) == len(notes):
        in_order = ranks == sorted(set(ranks)) and len(ranks) < size
        return "shrink" if in_order and "shrink" in can else "rebuild"
    behind = [note.rank for note in notes[:size]] == list(range(size)) and len(old) == size
    return "grow" if behind and "grow" in can else "rebuild"


class NcclBackend:
    """`timeout_s` is the longest collective. The device must be the current one of the thread that makes a communicator or calls one;
    `revoke` and `abort` come from any. Raises `CommError` where there is no NCCL, or a simulated one for tensors on a GPU."""

    name = "nccl"
    on_device = True

    def __init__(
        self,
        rendezvous: Rendezvous,
        *,
        timeout_s: float = 30.0,
        library: NcclLibrary | None = None,
        stream: Stream | None = None,
    ) -> None:
        self._rendezvous, self._timeout_s = rendezvous, timeout_s
        self._library, self._stream = library or NcclLibrary(), stream or CudaStream()
        if self._library.simulated and self._stream.device != "cpu":
            raise CommError(f"the NCCL at {self._library.path} is a simulated one: it has no GPUs")
        self.shortcuts = frozenset({"shrink", "grow"}) & self._library.features

    def make(self, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never) -> Comm:
        return self._join(None, seat, deadline, give_up)

    def shrink(
        self,
        old: Comm,
        keep: Sequence[int],
        seat: Seat,
        deadline: Deadline,
        give_up: Callable[[], bool] = never,
    ) -> Comm:
        check_kept(old, keep, seat)
        return self._join(old, seat, deadline, give_up)

    def grow(
        self, old: Comm | None, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never
    ) -> Comm:
        return self._join(old, seat, deadline, give_up)

    def _join(
        self, old: Comm | None, seat: Seat, deadline: Deadline, give_up: Callable[[], bool]
    ) -> Comm:
        before = old if isinstance(old, NcclComm) else None
        note = before.note(self.shortcuts) if before else Note()
        store = self._rendezvous.store(seat, deadline)
        take(store, seat, msgspec.json.encode(note).decode())
        all_there(store, seat, deadline, give_up)
        said = [msgspec.json.decode(each, type=Note) for each in notes(store, seat)]
        how = way(said)
        comm = NcclComm(seat, self._library, self._stream, self._timeout_s)
        try:
            if how == "shrink" and before:
                gone = sorted(set(range(before.seat.size)) - {each.rank for each in said})
                comm.from_shrink(before, gone, deadline, give_up)
            elif how == "grow":
                comm.from_grow(before, store, deadline, give_up)
            else:
                if before:
                    before.abort()
                comm.from_nothing(store, deadline, give_up)
        except BaseException:
            comm.abort()
            raise
        finally:
            if before:
                before.abort()  # also the parent of a shrink: NCCL leaves it to us
        if seat.rank == 0:
            self._rendezvous.forget_before(seat)
        return comm


class NcclComm:
    """One handle. Every use of it is under the lock and short, because the library never blocks; `revoke` may come in between."""

    def __init__(self, seat: Seat, library: NcclLibrary, stream: Stream, timeout_s: float) -> None:
        self.seat, self._library, self._stream = seat, library, stream
        self._timeout_s = timeout_s
        self._handle = c_void_p()
        self._lock = threading.Lock()
        self._revoked = self._freed = self._begun = False
        self._broken: CommError | None = None

    # ---- how it comes to be

    def from_nothing(self, store: Any, deadline: Deadline, give_up: Callable[[], bool]) -> None:
        unique = UniqueId()
        if self.seat.rank == 0:
            self._library.call("ncclGetUniqueId", byref(unique))
            store.set("id", bytes(unique).hex())
        else:
            unique = UniqueId.from_buffer_copy(_got(store, "id"))
        self._begin(
            "ncclCommInitRankConfig",
            byref(self._handle),
            self.seat.size,
            unique,
            self.seat.rank,
            byref(Config.non_blocking()),
        )
        self._settled(deadline, give_up)

    def from_shrink(
        self, old: NcclComm, gone: Sequence[int], deadline: Deadline, give_up: Callable[[], bool]
    ) -> None:
        exclude = (ctypes.c_int * len(gone))(*gone)
        with old._lock:
            self._begin(
                "ncclCommShrink",
                old._handle,
                exclude,
                len(gone),
                byref(self._handle),
                byref(Config.non_blocking()),
                SHRINK_ABORT,
            )
        self._settled(deadline, give_up)

    def from_grow(
        self, old: NcclComm | None, store: Any, deadline: Deadline, give_up: Callable[[], bool]
    ) -> None:
        unique, first = UniqueId(), self.seat.rank == 0
        if old is not None and first:
            with old._lock:
                self._library.call("ncclCommGetUniqueId", old._handle, byref(unique))
            store.set("id", bytes(unique).hex())
        elif old is None:
            unique = UniqueId.from_buffer_copy(_got(store, "id"))
        with old._lock if old else contextlib.nullcontext():
            self._begin(
                "ncclCommGrow",
                old._handle if old else None,
                self.seat.size,
                byref(unique) if first or old is None else None,
                -1 if old else self.seat.rank,
                byref(self._handle),
                byref(Config.non_blocking()),
            )
        self._settled(deadline, give_up)

    def note(self, shortcuts: frozenset[str]) -> Note:
        """What this one is still good for. After a revoke by the library's own call it may be shrunk, after an abort nothing is left."""
        whole = bool(self._handle) and (not self._revoked or "revoke" in self._library.features)
        grows = whole and not self._revoked and self._broken is None
        can = [name for name in sorted(shortcuts) if (grows if name == "grow" else whole)]
        return Note(self.seat.epoch, self.seat.rank, self.seat.size, tuple(can))

    def _begin(self, name: str, *arguments: Any) -> None:
        with self._lock:
            self._begun = True
            self._library.call(name, *arguments)

    def _settled(self, deadline: Deadline, give_up: Callable[[], bool]) -> None:
        """Until the new handle is ready. NOTE: it may be null for a moment after a call that is in progress."""
        while not (self._handle and self._progress()):
            if give_up() or self._revoked:
                raise CommRevoked(f"given up while epoch {self.seat.epoch} was being made")
            if not deadline.left_s:
                raise CommTimeout(f"epoch {self.seat.epoch} was not made in time")
            time.sleep(POLL_S)

    def _progress(self) -> bool:
        with self._lock:
            if not self._handle:
                raise CommRevoked(f"the communicator of epoch {self.seat.epoch} is revoked")
            return self._library.progress(self._handle)

    # ---- collectives

    def all_reduce(self, tensor: Any, op: Op = "sum") -> None:
        with self._call("all_reduce"):
            at, count, kind = _parts(tensor)
            self._put("ncclAllReduce", at, at, count, kind, OPS[op])

    def all_gather(self, tensor: Any) -> list[Any]:
        with self._call("all_gather"):
            at, count, kind = _parts(tensor)
            out = tensor.new_empty((self.seat.size, *tensor.shape))
            self._put("ncclAllGather", at, c_void_p(out.data_ptr()), count, kind)
        return list(out)

    def all_to_all(self, out: Any, tensor: Any) -> None:
        with self._call("all_to_all"):
            # Sends and receives in one group: the collective of this name is in the newest versions only.
            source, target = tensor.chunk(self.seat.size), out.chunk(self.seat.size)
            pairs = []
            for rank in range(self.seat.size):
                pairs.append(("ncclSend", (*_parts(source[rank]), rank)))
                pairs.append(("ncclRecv", (*_parts(target[rank]), rank)))
            self._put_group(pairs)

    def broadcast(self, tensor: Any, root: int) -> None:
        with self._call("broadcast"):
            at, count, kind = _parts(tensor)
            self._put("ncclBroadcast", at, at, count, kind, root)

    def send(self, tensor: Any, to: int) -> None:
        with self._call("send"):
            self._put("ncclSend", *_parts(tensor), to)

    def recv(self, tensor: Any, source: int) -> None:
        with self._call("recv"):
            self._put("ncclRecv", *_parts(tensor), source)

    def barrier(self) -> None:
        import torch

        self.all_reduce(torch.zeros(1, device=self._stream.device))

    # ---- the end

    def revoke(self) -> None:
        with self._lock:
            first, self._revoked = not self._revoked, True
            if first:
                self._free()

    def abort(self) -> None:
        with self._lock:
            self._revoked = True
            self._abort()

    def _free(self) -> None:
        """Ends what runs, by the way that leaves more of it: one that was revoked can still be shrunk."""
        if self._handle and "revoke" in self._library.features and not self._freed:
            self._freed = True
            with contextlib.suppress(CommError):
                self._library.call("ncclCommRevoke", self._handle, 0)
                return
        self._abort()

    def _abort(self) -> None:
        handle, self._handle = self._handle, c_void_p()
        if handle:
            with contextlib.suppress(CommError):
                self._library.call("ncclCommAbort", handle)
        elif self._begun:
            _PLACES.append(handle)

    # ---- one call

    def _put(self, name: str, *arguments: Any) -> None:
        self._put_group([(name, arguments)])

    def _put_group(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Puts them on the stream and waits for what they do, looking whether to leave all the time."""
        stream = c_void_p(self._stream.pointer())
        with self._lock:
            if not self._handle or self._revoked:
                raise CommRevoked(f"the communicator of epoch {self.seat.epoch} is revoked")
            self._library.call("ncclGroupStart")
            try:
                for name, arguments in calls:
                    self._library.call(name, *arguments, self._handle, stream)
            finally:
                self._library.call("ncclGroupEnd")
        end = Deadline.after(self._timeout_s)
        while not self._progress():
            self._may_go_on(end)
        done = self._stream.mark()
        while not done():
            self._progress()
            self._may_go_on(end)
        self._is_whole()

    def _may_go_on(self, end: Deadline) -> None:
        """NOTE: who leaves a call gives its tensors away, so the library must have let go of them: behind a revoke that has returned."""
        self._is_whole()
        if not end.left_s:
            with self._lock:
                self._free()
            raise CommTimeout(f"a collective took longer than {self._timeout_s:g} s")
        time.sleep(POLL_S)

    def _is_whole(self) -> None:
        """A call that was cut short by a revoke looks as one that is done."""
        if self._revoked:
            with self._lock:
                raise CommRevoked(f"revoked in epoch {self.seat.epoch}")

    @contextlib.contextmanager
    def _call(self, name: str) -> Iterator[None]:
        if self._broken is not None and not self._revoked:
            raise type(self._broken)(f"{name}: broken by an earlier call: {self._broken}")
        try:
            yield
        except CommError as error:
            told = error
            if self._revoked and not isinstance(error, CommRevoked):
                told = CommRevoked(f"{name}: {error}")
            self._broken = told
            if told is not error:
                raise told from error
            raise


def _parts(tensor: Any) -> tuple[c_void_p, int, int]:
    """Address, number of elements and NCCL's type. `ValueError` for what NCCL cannot move."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in TYPES or not tensor.is_contiguous():
        raise ValueError(f"NCCL moves contiguous tensors of {sorted(TYPES)}, not {kind}")
    return c_void_p(tensor.data_ptr()), tensor.numel(), TYPES[kind]


def _got(store: Any, key: str) -> bytes:
    return bytes.fromhex(store.get(key).decode())
