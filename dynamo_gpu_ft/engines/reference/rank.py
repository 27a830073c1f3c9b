"""One rank's process: takes orders from the driver one after the other, and listens meanwhile for the one that may not wait, `Revoke`.

Two threads: the main one computes, the other reads the channel, so that a rank that is stuck in a collective can be freed, and one whose
driver is gone ends. Forked by the nursery; a standby is a rank without a shard.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from contextlib import suppress
from typing import Any

import torch

from dynamo_gpu_ft import native
from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.backends import backend_of
from dynamo_gpu_ft.engines.reference.faults import Faults
from dynamo_gpu_ft.engines.reference.joint import Group, StageJoint
from dynamo_gpu_ft.engines.reference.kv import Snapshots
from dynamo_gpu_ft.engines.reference.messages import Channel, Order
from dynamo_gpu_ft.engines.reference.model import Tile
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.rehearsal import CANARY as CANARY
from dynamo_gpu_ft.engines.reference.sampling import draw
from dynamo_gpu_ft.engines.reference.shard import Shard, Sources, device_of
from dynamo_gpu_ft.engines.reference.tiles import Rows, pack
from dynamo_gpu_ft.engines.reference.weights import view
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.recovery import processes, waiting
from dynamo_gpu_ft.recovery.comm.base import CommError
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous


class Rank:
    """The main thread's state. `_shard` is None while this is a standby."""

    def __init__(self, channel: Channel, options: Options) -> None:
        self._channel, self._options = channel, options
        self._tag = os.environ.get(processes.TAG_VARIABLE, options.name)
        self._config = options.config()
        self.group = Group()
        self._shard: Shard | None = None
        self._sources = Sources(options)
        self._faults = Faults(options.faults)
        self._beat: Any = None
        self._members: tuple[int, ...] = ()
        own = processes.this_process()
        self._owner = f"{own.pid}.{own.started}"
        self._backend = backend_of(
            options,
            Rendezvous(f"file:{self._config.arena_dir}", f"{options.name}-{self._tag}"[:80]),
        )
        self.group.touched = lambda: self._faults.at("collective")
        self._channel.send(say.Hello(pid=own.pid, started=own.started))

    def obey(self, order: Any) -> None:
        """Carries one order out and answers. Errors become answers; only a channel that is gone raises."""
        try:
            answer = getattr(self, f"_{type(order).__name__.lower()}")(order)
        except CommError as error:
            answer = say.Broken(epoch=getattr(order, "epoch", 0), text=str(error))
        except Exception as error:
            name = type(order).__name__.lower()
            answer = say.Failed(order=name, text=f"{type(error).__name__}: {error}")
        if answer is not None:
            self._channel.send(answer)

    # -- becoming a shard ------------------------------------------------------------------------------------------------

    def _prepare(self, order: say.Prepare) -> say.Ready:
        self._faults.at("prepare")
        return say.Ready(notes=tuple(self._sources.prepare()))

    def _load(self, order: say.Load) -> say.Loaded:
        self._faults.at("load")
        self._watch(order.shard)
        self._busy(order.deadline_s)
        self._on(order.device)
        self._shard = Shard(order, self._options, self._sources, self._tag)
        self._idle()
        return self._shard.told()

    def _yield(self, order: say.Yield) -> say.Ready:
        if self._own.snapshots is not None:
            self._own.snapshots.let_go(order.heads)
        return say.Ready()

    def _recut(self, order: say.Recut) -> say.Loaded:
        self._busy(order.deadline_s)
        self._own.recut(order)
        self._idle()
        return self._own.told()

    def _join(self, order: say.Join) -> say.Joined:
        self._faults.at("join")
        self._members = order.members
        self.group.join(order, self._backend, self._owner, order.vocab)
        return say.Joined(epoch=order.epoch)

    def _restore(self, order: say.Restore) -> say.Restored:
        self._faults.at("restore")
        kept = self._own.snapshots
        if kept is None:
            why = self._own.not_protected or "KV snapshots are off"
            return say.Restored(blocks={}, bytes=0, seconds=0.0, reasons=(why,))
        return kept.restore(order.prefixes, order.heads, order.deadline_s)

    # -- serving -----------------------------------------------------------------------------------------------------------

    def _step(self, order: say.Step) -> say.Done:
        if order.epoch != self.group.epoch:
            raise CommError(f"step of epoch {order.epoch} in epoch {self.group.epoch}")
        self._faults.at("step")
        kept: Snapshots | None = self._own.snapshots
        if kept is not None:
            kept.forget(order.gone)
        drawn: dict[str, int] = {}
        if self._beat is not None:
            tokens = sum(len(p.tokens) for p in order.pieces)
            self._beat.begin(heartbeat.step_class(tokens), order.number)
        try:
            for rows in pack(order.pieces, self._options.tile, self._options.block):
                drawn |= self._tile(rows)
        finally:
            if self._beat is not None:
                self._beat.end()
        gaps = kept.store(order.sealed) if kept is not None else {}
        self._faults.at("reply")
        return say.Done(epoch=order.epoch, number=order.number, drawn=drawn, gaps=gaps)

    def _tile(self, rows: Rows) -> dict[str, int]:
        out = self._through(rows, logits=bool(rows.draws))
        if not self._draws:
            return {}
        drawn = {}
        for row, piece in rows.draws:
            assert piece.sampling is not None
            position = piece.start + len(piece.tokens)
            drawn[piece.request] = draw(out[row], piece.sampling, piece.request, position)
        return drawn

    def _through(self, rows: Rows, *, logits: bool) -> torch.Tensor:
        """One tile through this rank's stage; hidden states come from and go to the neighbouring stages."""
        own = self._own
        columns = (rows.tokens, rows.positions, rows.blocks, rows.places, rows.tables)
        tile = Tile(*(torch.tensor(column, device=own.device) for column in columns))
        number, hidden = own.number // self._options.tp, None
        if number > 0:
            size = (len(rows.tokens), own.shape.hidden)
            hidden = self.group.take(own.cache.new_empty(size), number - 1)
        out = own.stage.run(tile, StageJoint(self.group), hidden, logits=logits)
        if number < self._options.pp - 1:
            self.group.give(out, number + 1)
        return out

    @property
    def _draws(self) -> bool:
        """Whether tokens come from this rank: the first that the last stage has."""
        last = [s for s in self._members if s // self._options.tp == self._options.pp - 1]
        return bool(last) and self._own.number == last[0]

    # -- being looked at -----------------------------------------------------------------------------------------------------

    def _fence(self, order: say.Fence) -> say.Fenced:
        self._faults.at("fence")
        return say.Fenced(number=order.number)

    def _canary(self, order: say.Canary) -> say.Sang:
        self._faults.at("canary")
        if order.epoch != self.group.epoch:
            raise CommError(f"canary of epoch {order.epoch} in epoch {self.group.epoch}")
        (rows,) = pack([CANARY], self._options.tile, self._options.block)
        out = self._through(rows, logits=True)
        if self._own.number // self._options.tp < self._options.pp - 1:
            return say.Sang(epoch=order.epoch)
        logits = out[0].cpu().contiguous()
        digest = native.load().digest(view(logits))
        return say.Sang(epoch=order.epoch, logits=digest, token=int(torch.argmax(logits)))

    def _describe(self, order: say.Describe) -> say.Described:
        own = self._own
        digest, chosen = native.load().digest, own.cache[:, list(order.blocks)].cpu().contiguous()
        return say.Described(
            pid=os.getpid(),
            shard=own.number,
            weights={name: tensor.data_ptr() for name, tensor in own.weights.tensors.items()},
            cache=own.cache.data_ptr(),
            pending=own.snapshots.pending() if own.snapshots else 0,
            kv={
                head: digest(view(kv))
                for head, kv in zip(range(*own.cut.heads), chosen, strict=True)
            },
        )

    def _arm(self, order: say.Arm) -> None:
        self._faults.arm(order)

    # -- details -------------------------------------------------------------------------------------------------------------

    def _on(self, number: int) -> torch.device:
        """The device of that number, the current one from now on: NCCL takes that, and its context is made before loading is timed."""
        device = device_of(self._options, number)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    @property
    def _own(self) -> Shard:
        if self._shard is None:
            raise RuntimeError("this is a standby")
        return self._shard

    def _watch(self, shard: int) -> None:
        if self._config.health and self._beat is None:
            path, _ = heartbeat.files(self._config.arena_dir, self._tag)
            ranks = self._options.ranks
            with suppress(native.load().CoreError):
                self._beat = native.load().Beat(path, rank=shard, ranks=ranks)

    def _busy(self, limit_s: float) -> None:
        if self._beat is not None:
            self._beat.busy(limit_s)

    def _idle(self) -> None:
        if self._beat is not None:
            self._beat.idle()


def main(
    sock: socket.socket, options: Options, kind: type[Rank] = Rank, understands: Any = Order
) -> int:
    """Serves until the driver is gone."""
    torch.set_num_threads(options.threads)
    channel = Channel(sock, understands)
    rank = kind(channel, options)
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, rank, orders), daemon=True).start()
    while True:
        rank.obey(orders.get())


def _listen(channel: Channel, rank: Rank, orders: queue.SimpleQueue[Any]) -> None:
    while not channel.closed:
        waiting.readable([channel])
        for order in channel.receive():
            if isinstance(order, say.Revoke):
                rank.group.revoke(order.epoch)
            else:
                orders.put(order)
    os._exit(0)  # the main thread may be anywhere, in a collective too
