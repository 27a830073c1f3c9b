"""The contract of communicators: collectives among the members of one epoch, whose stuck calls can be freed from outside.

An engine's ranks make one for each epoch, revoke it when a member is lost, and make the next one in the same process. `gloo.py`,
`nccl.py` and `torch_groups.py` keep the contract; `rendezvous.py` is where ranks find each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dynamo_gpu_ft.recovery.group.base import Deadline

Op = Literal["sum", "max", "min"]


class CommError(Exception):
    """A peer is gone, refused us or sent what does not fit. The communicator is of no use any more; which peer it was is not known."""


class CommRevoked(CommError):
    """This process revoked the communicator, before the call or in the middle of it. Tensors of the call hold anything."""


class CommTimeout(CommError, TimeoutError):
    """Nobody failed visibly and the call did not end in time. The communicator is of no use any more."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Which place a process takes in which communicator: `name` tells groups of one engine apart (tp, pp), `epoch` generations.

    owner   names the process for ever (`pid.started`): of two that want one seat the first has it, the other is refused"""

    name: str
    epoch: int
    rank: int
    size: int
    owner: str


class Comm(Protocol):
    """One communicator in one process. Calls block until their result is in the tensor, raise `CommError`, and are made by one
    thread at a time in the same order on all ranks; `revoke` and `abort` may come from any other thread at any time.

    After any error every later call raises too; gloo's peers that wait for this rank are told, NCCL's wait until they revoke. Tensors are of the back end's device, contiguous, and of equal shape and dtype on all ranks."""

    @property
    def seat(self) -> Seat: ...

    def all_reduce(self, tensor: Any, op: Op = "sum") -> None:
        """In place."""

    def all_gather(self, tensor: Any) -> list[Any]:
        """The tensors of all ranks, in order of rank."""

    def all_to_all(self, out: Any, tensor: Any) -> None:
        """Equal parts of the first dimension: part i of `tensor` becomes part `rank` of rank i's `out`."""

    def broadcast(self, tensor: Any, root: int) -> None:
        """In place, from rank `root`."""

    def send(self, tensor: Any, to: int) -> None: ...

    def recv(self, tensor: Any, source: int) -> None:
        """In place."""

    def barrier(self) -> None: ...

    def revoke(self) -> None:
        """Frees the calls of this process that are stuck in this communicator, and refuses later ones: they raise `CommRevoked`.

        Returns at once, usually before they have raised. Peers notice too (`CommError`), sooner or later. Can be repeated; never raises."""

    def abort(self) -> None:
        """`revoke`, and gives back what the communicator holds, some of it a moment later. The thread that was in it must have come out.
        Never raises."""


def never() -> bool:
    return False


class CommBackend(Protocol):
    """Makes communicators. `shortcuts` names what is done by the library with resources of the old one ("shrink", "grow"); what is
    not in it is a rebuild: a new communicator from nothing, with the same result. `on_device`: tensors of a GPU go to it as they are;
    else they have to be copied to host memory first."""

    name: str
    on_device: bool
    shortcuts: frozenset[str]

    def make(self, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never) -> Comm:
        """Blocks until all `seat.size` ranks are there. `give_up` is polled while others are waited for.

        Raises `CommTimeout` past the deadline, `CommRevoked` when `give_up` said so, `CommError` when the seat is taken."""

    def shrink(
        self,
        old: Comm,
        keep: Sequence[int],
        seat: Seat,
        deadline: Deadline,
        give_up: Callable[[], bool] = never,
    ) -> Comm:
        """The communicator of those ranks of `old` that are in `keep`, in that order: only they call. Frees and aborts `old`."""

    def grow(
        self, old: Comm | None, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never
    ) -> Comm:
        """A larger one: ranks of `old` call with it, new ones with None; all take the rank that `seat` says. Aborts `old`."""


class Rebuilds:
    """`shrink` and `grow` for back ends without shortcuts."""

    shortcuts: frozenset[str] = frozenset()
    on_device = False

    def make(self, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never) -> Comm:
        raise NotImplementedError

    def shrink(
        self,
        old: Comm,
        keep: Sequence[int],
        seat: Seat,
        deadline: Deadline,
        give_up: Callable[[], bool] = never,
    ) -> Comm:
        check_kept(old, keep, seat)
        old.abort()
        return self.make(seat, deadline, give_up)

    def grow(
        self, old: Comm | None, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never
    ) -> Comm:
        if old is not None:
            old.abort()
        return self.make(seat, deadline, give_up)


def check_kept(old: Comm, keep: Sequence[int], seat: Seat) -> None:
    """`ValueError` unless `seat` is this process's place among `keep`."""
    if len(keep) != seat.size or keep[seat.rank] != old.seat.rank:
        raise ValueError(
            f"rank {old.seat.rank} of {old.seat.size} does not become rank {seat.rank} of {seat.size} when {list(keep)} are kept"
        )
