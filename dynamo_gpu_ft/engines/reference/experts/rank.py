"""The process of one expert-parallel rank: obeys the driver as every rank of a reference engine does, with experts of its own.

Fault points beside those of `faults.py`: dispatch, expert, combine (each inside a layer of a step), refill, commit.
"""

from __future__ import annotations

import os
import socket

import torch

from dynamo_gpu_ft import native
from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference import rank
from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.exchange import Exchange
from dynamo_gpu_ft.engines.reference.experts.held import Holding
from dynamo_gpu_ft.engines.reference.experts.routing import Routing
from dynamo_gpu_ft.engines.reference.messages import Channel
from dynamo_gpu_ft.engines.reference.model import Tile
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import draw
from dynamo_gpu_ft.engines.reference.tiles import Rows, pack
from dynamo_gpu_ft.engines.reference.weights import view
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.recovery.comm.base import CommError


class ExpertRank(rank.Rank):
    def __init__(self, channel: Channel, options: Options) -> None:
        super().__init__(channel, options)
        self._holding: Holding | None = None
        self._routing: Routing | None = None

    # -- holding ---------------------------------------------------------------------------------------------------------

    def _hold(self, order: tell.Hold) -> tell.Held:
        self._faults.at("load")
        self._watch(order.shard)
        self._busy(order.deadline_s)
        device = self._on(order.device)
        self._holding = Holding(
            order, self._options, self._sources, self._faults, device, self._tag
        )
        self._holding.stage.touched = self._faults.at
        self._idle()
        return self._holding.told()

    def _routes(self, order: tell.Routes) -> None:
        if self._routing is None:
            here = self._here
            self._routing = Routing(order.placement, here.number, str(here.device))
        self._routing.follow(order.placement, order.epoch)
        self._here.stage.follow(self._routing.tables)

    def _lose(self, order: tell.Lose) -> None:
        self._ways.lose(order.dead, order.epoch)
        self._here.stage.follow(self._ways.tables)

    def _foresee(self, order: tell.Foresee) -> None:
        self._ways.foresee(order.number, order.placement, order.ahead)

    def _join(self, order: say.Join) -> say.Joined:
        here = self._here
        here.fence(order.epoch)
        answer = super()._join(order)
        room = self._options.tile * here.shape.chosen
        here.stage.exchange = Exchange(
            self.group.comm("ep"), order.members, here.number, room, on_device=self.group.on_device
        )
        return answer

    def _regain(self, order: tell.Regain) -> tell.Regained:
        self._faults.at("restore")
        found, size, reasons = self._here.stored.regain(order.shard, order.wanted, order.deadline_s)
        return tell.Regained(number=order.number, found=found, bytes=size, reasons=reasons)

    def _refill(self, order: tell.Refill) -> None:
        self._here.refill(order)

    def _commit(self, order: tell.Commit) -> tell.Committed:
        changed, damaged = self._here.commit(order.layers, order.epoch)
        return tell.Committed(epoch=order.epoch, changed=tuple(changed), damaged=tuple(damaged))

    def _audit(self, order: tell.Audit) -> tell.Audited:
        self._here.scrub(-1 if order.digest else 0)
        entry = self._ways.tables.entry
        return tell.Audited(number=order.number, routable=self._here.routable(), entry=entry)

    def _tell(self, order: tell.Tell) -> tell.Told:
        self._ways.look()
        landed, foreseen = self._here.take_landed(), self._ways.foreseen
        return tell.Told(number=order.number, landed=landed, foreseen=foreseen)

    def _spoil(self, order: tell.Spoil) -> None:
        if self._options.faults:
            self._here.spoil(order.layer, order.slot, order.landed)

    # -- serving ---------------------------------------------------------------------------------------------------------

    def _forward(self, order: tell.Forward) -> tell.Stepped:
        if order.epoch != self.group.epoch:
            raise CommError(f"step of epoch {order.epoch} in epoch {self.group.epoch}")
        self._faults.at("step")
        self._ways.look()
        here, drawn, sang = self._here, dict[str, int](), None
        gaps = here.stored.before(order.gone, order.sealed)
        here.stage.begin()
        pieces = order.pieces
        if order.canary:
            self._faults.at("canary")
            pieces = (rank.CANARY, *pieces)
        if self._beat is not None:
            tokens = order.rounds * self._options.tile
            self._beat.begin(heartbeat.step_class(tokens), order.number)
        try:
            tiles = pack(pieces, self._options.tile, self._options.block)
            for number in range(order.rounds):
                if number < len(tiles):
                    rows = tiles[number]
                    out = self._rows(rows)
                    if order.canary and not number:
                        sang = _song(order.epoch, out[0])
                    drawn |= _drawn(rows, out)
                else:
                    here.stage.attend_others()
        finally:
            if self._beat is not None:
                self._beat.end()
        damaged = here.scrub(order.scrub)
        self._faults.at("reply")
        return tell.Stepped(
            epoch=order.epoch, number=order.number, drawn=drawn, counts=here.stage.counts.numpy().tobytes(),
            refused=tuple(sorted(here.stage.refused)), damaged=tuple(damaged), landed=here.take_landed(),
            gap=(here.stage.gap.tokens, here.stage.gap.affected, here.stage.gap.router_kl), sang=sang, gaps=dict(gaps),
        )  # fmt: skip

    def _rows(self, rows: Rows) -> torch.Tensor:
        columns = (rows.tokens, rows.positions, rows.blocks, rows.places, rows.tables)
        tile = Tile(*(torch.tensor(column, device=self._here.device) for column in columns))
        return self._here.stage.rows(tile, rows.used, logits=bool(rows.draws))

    def _describe(self, order: say.Describe) -> say.Described:
        here = self._here
        chosen = here.cache[:, list(order.blocks)].cpu().contiguous()
        return say.Described(
            pid=os.getpid(),
            shard=here.number,
            weights={n: t.data_ptr() for n, t in here.weights.tensors.items()},
            cache=here.cache.data_ptr(),
            pending=0,
            kv={0: native.load().digest(view(chosen))},
        )

    @property
    def _ways(self) -> Routing:
        if self._routing is None:
            raise RuntimeError("this rank knows no map yet")
        return self._routing

    @property
    def _here(self) -> Holding:
        if self._holding is None:
            raise RuntimeError("this rank holds nothing yet")
        return self._holding


def _drawn(rows: Rows, logits: torch.Tensor) -> dict[str, int]:
    """Token of each request that draws one in this tile."""
    drawn = {}
    for row, piece in rows.draws:
        if piece is not rank.CANARY:
            assert piece.sampling is not None
            position = piece.start + len(piece.tokens)
            drawn[piece.request] = draw(logits[row], piece.sampling, piece.request, position)
    return drawn


def _song(epoch: int, logits: torch.Tensor) -> say.Sang:
    host = logits.cpu().contiguous()
    digest = native.load().digest(view(host))
    return say.Sang(epoch=epoch, logits=digest, token=int(torch.argmax(host)))


def main(sock: socket.socket, options: Options) -> int:
    """Serves until the driver is gone."""
    return rank.main(sock, options, ExpertRank, tell.Order)
