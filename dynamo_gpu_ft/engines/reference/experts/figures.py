"""What the driver of an expert-parallel engine tells the metrics: the map that tokens follow, what a loss costs, what came back.

On the driver's own port (`metrics_port`), for all ranks: a rank's own port would be gone with it, and so would its counts.
"""

from __future__ import annotations

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.reference.experts.messages import Landed
from dynamo_gpu_ft.engines.reference.experts.routes import Map
from dynamo_gpu_ft.events import EventStream
from dynamo_gpu_ft.experts import report
from dynamo_gpu_ft.experts.base import Placement
from dynamo_gpu_ft.experts.gap import Gap
from dynamo_gpu_ft.metrics import listener, metrics, port_of


class Figures:
    """Starts this process's metrics where they are wanted; costs next to nothing where they are not. Never raises.

    Of several engines of one process the first one's port serves, with the figures of all."""

    def __init__(self, config: Config, expert_bytes: int) -> None:
        self._expert_bytes = expert_bytes
        port = port_of("driver", config.metrics_port)
        if not port:
            return  # another engine of this process may still want them
        digest = native.load().DIGEST
        metrics().start("driver", port=port, host=config.metrics_host, digest=digest)
        metrics().set("experts_model_kl", float("nan"))  # no rank has the full model's logits

    def heard_by(self, events: EventStream) -> EventStream:
        """A stream that hands on to `events`, and counts."""
        return EventStream(listener(metrics()), events.emit)

    def map(self, routes: Map, epoch: int) -> None:
        """The map or the epoch has changed."""
        if metrics().registry is None:
            return
        ranks = len(routes.table[0]) // routes.slots
        now = Placement.of_rows(routes.table, experts=routes.experts, ranks=ranks)
        report.of_map(metrics(), now, epoch)

    def step(self, gap: Gap) -> None:
        """What the router's mask cost in one step."""
        report.of_gap(metrics(), gap)

    def landed(self, each: Landed) -> None:
        """An expert was brought, or was not."""
        for source in each.passed:
            report.of_passed(metrics(), source)
        if not each.error:
            report.of_landed(metrics(), each.source, self._expert_bytes)

    def damaged(self, slots: int) -> None:
        report.of_damage(metrics(), slots)

    def refilled(self, seconds: float) -> None:
        report.of_seconds(metrics(), seconds)
