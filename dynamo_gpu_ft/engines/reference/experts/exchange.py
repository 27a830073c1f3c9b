"""Dispatch and combine: rows of tokens go to the ranks whose slots were chosen for them, the answers come back to the rows' own rank.

Two all-to-alls of equal parts per layer, each part with room for every row of a tile: no sizes have to be agreed on first, and what a rank
sends depends on nothing but its own rows. A receiver answers for every row that came, with zeros where it refuses one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dynamo_gpu_ft.recovery.comm.base import Comm

_NOTE = 8  # bytes per row: slot and expert as int32


class Exchange:
    """Between `members`, the shards by comm rank; `comm` is None for one alone. `room`: most rows that one rank sends to another;
    `on_device`: rows go to it from where they lie, else through host memory."""

    def __init__(
        self,
        comm: Comm | None,
        members: Sequence[int],
        own: int,
        room: int,
        *,
        on_device: bool = False,
    ) -> None:
        self._comm, self._room, self._on_device = comm, room, on_device
        self._rank = {shard: rank for rank, shard in enumerate(members)}
        self._own = self._rank[own]

    def run(
        self,
        rows: torch.Tensor,
        targets: Sequence[tuple[int, int, int]],
        answer: Callable[[list[tuple[int, int]], torch.Tensor], torch.Tensor],
        touched: Callable[[str], None],
    ) -> torch.Tensor:
        """Answers to `rows` [n, hidden], in their order; `targets`: (shard, its slot, expert) of each.

        `answer` gets (slot, expert) of all rows that came here, and the rows. Blocks until all members take part; raises `CommError`."""
        size, hidden = len(self._rank), rows.shape[1]
        notes = torch.full((size * self._room, 2), -1, dtype=torch.int32)
        sent = rows.new_zeros((size * self._room, hidden))
        filled, at = [0] * size, []
        for shard, _, _ in targets:
            rank = self._rank[shard]
            at.append(rank * self._room + filled[rank])
            filled[rank] += 1
        if at:
            notes[at] = torch.tensor([target[1:] for target in targets], dtype=torch.int32)
            sent[at] = rows
        touched("dispatch")
        came, asked = self._swap(sent.view(size, -1, hidden), notes)
        flat = asked.view(-1, 2).tolist()
        there = [index for index, (slot, _) in enumerate(flat) if slot >= 0]
        answers = torch.zeros_like(came).view(-1, hidden)
        if there:
            wanted = [(flat[index][0], flat[index][1]) for index in there]
            answers[there] = answer(wanted, came.view(-1, hidden)[there])
        touched("combine")
        back, _ = self._swap(answers.view(size, self._room, hidden), None)
        return back.view(-1, hidden)[at]

    def _swap(
        self, rows: torch.Tensor, notes: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Part i of both goes to rank i; one message for each peer. `notes` are in host memory, those that came where the message lies."""
        if self._comm is None:
            return rows, rows if notes is None else notes
        size = len(rows)
        packed = rows.reshape(size, -1).view(torch.uint8)
        if not self._on_device:
            packed = packed.cpu()
        if notes is not None:
            told = notes.to(packed.device).view(size, -1).view(torch.uint8)
            packed = torch.cat((told, packed), dim=1)
        came = torch.empty_like(packed := packed.contiguous())
        self._comm.all_to_all(came, packed)
        begin = 0 if notes is None else self._room * _NOTE
        told = came[:, :begin].contiguous().view(torch.int32).view(size, -1, 2)
        back = came[:, begin:].to(rows.device).contiguous()
        return back.view(rows.dtype).view(rows.shape), told
