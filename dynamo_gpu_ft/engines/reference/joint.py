"""What the shards of one engine do together, over communicators of `recovery.comm`: sums and joins inside a stage, hand-over between stages.

Sums are gathered and added in the order of the shards by everybody: the bits do not depend on who computes, nor on an algorithm that
a library picks by size or number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from dynamo_gpu_ft.engines.reference.messages import Join
from dynamo_gpu_ft.engines.reference.split import Range
from dynamo_gpu_ft.recovery.comm.base import Comm, CommBackend, Seat
from dynamo_gpu_ft.recovery.group.base import Deadline


class Group:
    """The communicators of one epoch in one rank: "stage" among the shards of a stage, "pipe" along one place of all stages."""

    def __init__(self) -> None:
        self.epoch = 0
        self._comms: dict[str, Comm] = {}
        self._revoked = 0
        self.widths: Sequence[int] = ()
        self.on_device = (
            False  # tensors go to the communicators as they are, not through host memory
        )
        self.touched: Callable[[], None] = lambda: None

    def join(self, order: Join, backend: CommBackend, owner: str, vocab: Sequence[Range]) -> None:
        """Leaves the old communicators and makes those of `order`. Raises `CommError`."""
        self.leave()
        self.on_device = backend.on_device
        deadline = Deadline.after(order.deadline_s)
        for place in order.places:
            seat = Seat(place.name, order.epoch, place.rank, place.size, owner)
            comm = backend.make(seat, deadline, lambda: self._revoked >= order.epoch)
            self._comms[place.name.partition("-")[0]] = comm
            if self._revoked >= order.epoch:
                comm.revoke()
        self.epoch = order.epoch
        self.widths = [to - begin for begin, to in vocab]

    def revoke(self, epoch: int) -> None:
        """From any thread: frees this rank from every communicator up to `epoch`."""
        self._revoked = max(self._revoked, epoch)
        for comm in list(self._comms.values()):
            if comm.seat.epoch <= epoch:
                comm.revoke()

    def leave(self) -> None:
        comms, self._comms = self._comms, {}
        for comm in comms.values():
            comm.abort()

    def comm(self, name: str) -> Comm | None:
        """None where this rank needs none: it is alone."""
        return self._comms.get(name)

    # -- Joint ---------------------------------------------------------------------------------------------------------

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        self.touched()
        comm = self._comms.get("stage")
        if comm is None:
            return part
        first, *others = self._gather(comm, part)
        for other in others:
            first = first + other
        return first

    def join_columns(self, part: torch.Tensor) -> torch.Tensor:
        comm = self._comms.get("stage")
        if comm is None:
            return part
        widest = max(self.widths)
        padded = (
            part
            if part.shape[-1] == widest
            else torch.nn.functional.pad(part, (0, widest - part.shape[-1]))
        )
        parts = self._gather(comm, padded)
        return torch.cat([p[..., :w] for p, w in zip(parts, self.widths, strict=True)], dim=-1)

    # -- between stages ------------------------------------------------------------------------------------------------

    def take(self, like: torch.Tensor, stage: int) -> torch.Tensor:
        """The hidden states of stage `stage`'s shard at our place."""
        taken = torch.empty_like(self._sendable(like))
        self._comms["pipe"].recv(taken, stage)
        return taken.to(like.device)

    def give(self, hidden: torch.Tensor, stage: int) -> None:
        self._comms["pipe"].send(self._sendable(hidden), stage)

    def _gather(self, comm: Comm, part: torch.Tensor) -> list[torch.Tensor]:
        parts: list[torch.Tensor] = comm.all_gather(self._sendable(part))
        return [each.to(part.device) for each in parts]

    def _sendable(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor if self.on_device else tensor.cpu()).contiguous()


class StageJoint:
    """`model.Joint` over a `Group`."""

    def __init__(self, group: Group) -> None:
        self.sum, self.join = group.sum, group.join_columns


def seats(members: Mapping[int, int], tp: int, pp: int, shard: int) -> list[tuple[str, int, int]]:
    """(name, rank, size) of the communicators that `shard` is in; `members`: shard -> comm rank. One alone needs none."""
    stage, place = divmod(shard, tp)
    same_stage = sorted(s for s in members if s // tp == stage)
    same_place = sorted(s for s in members if s % tp == place)
    found = []
    if len(same_stage) > 1:
        found.append((f"stage-{stage}", same_stage.index(shard), len(same_stage)))
    if pp > 1:
        found.append((f"pipe-{place}", same_place.index(shard), len(same_place)))
    return found
