"""The one table of metrics: name, kind, help, labels, unit, and which process of an engine reports it.

At the listening end of every flow. The recorder, the tests and the documentation read this table; a name that is not here
cannot be recorded. Names follow `dynamo_gpu_ft_<name>_<unit>`, with `_total` on counters only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "dynamo_gpu_ft_"

Kind = Literal["counter", "gauge", "histogram"]
Process = Literal["front", "scheduler", "worker", "driver"]
"""front: the API server with the resilient client. scheduler, worker: the connector's two halves inside the engine. driver: the process that
leads the ranks of an expert-parallel reference engine."""

Counter = Literal[
    "snapshot_bytes_total",
    "snapshot_dropped_blocks_total",
    "seal_failures_total",
    "verify_failures_total",
    "pins_refused_total",
    "loaded_tokens_total",
    "loaded_bytes_total",
    "restore_refused_total",
    "disk_written_bytes_total",
    "disk_dropped_blocks_total",
    "restored_tokens_total",
    "recomputed_tokens_total",
    "recoveries_total",
    "health_readings_total",
    "health_lost_total",
    "health_incidents_total",
    "members_died_total",
    "group_recoveries_total",
    "experts_refilled_bytes_total",
    "experts_passed_over_total",
    "experts_damaged_total",
    "experts_routed_tokens_total",
    "experts_affected_tokens_total",
]
Gauge = Literal[
    "snapshot_lag_tokens",
    "snapshot_lag_bytes",
    "prefill_token_seconds",
    "disk_lag_blocks",
    "disk_protected",
    "open_requests",
    "protected",
    "info",
    "health_open_incidents",
    "group_state",
    "group_epoch",
    "group_standbys",
    "experts_uncovered",
    "experts_epoch",
    "experts_router_kl",
    "experts_model_kl",
]
Histogram = Literal["recovery_duration_seconds", "experts_refill_seconds"]


@dataclass(frozen=True)
class Metric:
    """One row. `name` is without the prefix; `processes` says on whose port it moves."""

    name: str
    kind: Kind
    help: str
    unit: str
    processes: tuple[Process, ...]
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


_ALL: tuple[Process, ...] = ("front", "scheduler", "worker")
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)

TABLE: tuple[Metric, ...] = (
    Metric(
        "snapshot_bytes_total",
        "counter",
        "Payload bytes copied and sealed in the arena",
        "bytes",
        ("worker",),
    ),
    Metric(
        "snapshot_lag_tokens",
        "gauge",
        "Tokens whose KV is computed but not yet sealed: what a kill now would cost",
        "tokens",
        ("worker",),
    ),
    Metric(
        "snapshot_lag_bytes", "gauge", "Payload bytes queued or being copied", "bytes", ("worker",)
    ),
    Metric(
        "snapshot_dropped_blocks_total",
        "counter",
        "Blocks not snapshotted, by reason (lag: the queue was full; full: no slot could be evicted)",
        "blocks",
        ("worker",),
        ("reason",),
    ),
    Metric(
        "seal_failures_total",
        "counter",
        "Blocks that were copied but could not be sealed, by reason",
        "blocks",
        ("worker",),
        ("reason",),
    ),
    Metric(
        "verify_failures_total",
        "counter",
        "Blocks refused on the way back, by reason; each is recomputed",
        "blocks",
        ("scheduler", "worker"),
        ("reason",),
    ),
    Metric(
        "pins_refused_total",
        "counter",
        "Requests whose blocks could not be pinned, by reason (full: the pinned share is used up)",
        "requests",
        ("scheduler", "worker"),
        ("reason",),
    ),
    Metric(
        "loaded_tokens_total",
        "counter",
        "Tokens whose KV was copied from the arena into this worker and verified",
        "tokens",
        ("worker",),
    ),
    Metric(
        "loaded_bytes_total",
        "counter",
        "Payload bytes brought back, by where from (arena, disk: read into the arena first, convert: from another layout)",
        "bytes",
        ("worker",),
        ("source",),
    ),
    Metric(
        "prefill_token_seconds",
        "gauge",
        "What computing one token of a prompt took in the newest pass over 64 or more; restoring is weighed against it",
        "seconds",
        ("worker",),
    ),
    Metric(
        "restore_refused_total",
        "counter",
        "Prefixes whose KV was there and was computed again because that is quicker, by source",
        "requests",
        ("scheduler",),
        ("source",),
    ),
    Metric(
        "disk_written_bytes_total",
        "counter",
        "Payload bytes that are durable in this shard's disk log",
        "bytes",
        ("worker",),
    ),
    Metric(
        "disk_dropped_blocks_total",
        "counter",
        "Blocks that did not reach the disk (queue: too far behind; evicted: gone before their turn; log: refused)",
        "blocks",
        ("worker",),
        ("reason",),
    ),
    Metric(
        "disk_lag_blocks",
        "gauge",
        "Sealed blocks that are not yet durable on disk",
        "blocks",
        ("worker",),
    ),
    Metric("disk_protected", "gauge", "1 while the disk log takes blocks", "", ("worker",)),
    Metric(
        "restored_tokens_total",
        "counter",
        "Tokens of resumed requests whose KV came from the arena",
        "tokens",
        ("front",),
    ),
    Metric(
        "recomputed_tokens_total",
        "counter",
        "Tokens of resumed requests whose KV was computed again",
        "tokens",
        ("front",),
    ),
    Metric(
        "recovery_duration_seconds",
        "histogram",
        "Duration of recovery steps; step=all is the whole recovery, step=in_place a whole one in place",
        "seconds",
        ("front", "scheduler", "driver"),
        ("step",),
        _SECONDS,
    ),
    Metric(
        "recoveries_total", "counter", "Recoveries ended, by outcome", "", ("front",), ("outcome",)
    ),
    Metric(
        "members_died_total",
        "counter",
        "Members of a group of ranks that died, hung or were condemned, by shard",
        "members",
        ("front", "scheduler", "driver"),
        ("shard",),
    ),
    Metric(
        "group_recoveries_total",
        "counter",
        "Recoveries in place ended, by kind of the last plan and outcome",
        "",
        ("front", "scheduler", "driver"),
        ("kind", "outcome"),
    ),
    Metric(
        "group_state",
        "gauge",
        "1 for the state that the group of ranks is in, 0 for those it left",
        "",
        ("front", "scheduler", "driver"),
        ("state",),
    ),
    Metric(
        "group_epoch",
        "gauge",
        "Newest epoch of the group of ranks",
        "",
        ("front", "scheduler", "driver"),
    ),
    Metric(
        "group_standbys",
        "gauge",
        "Warm standby processes that could take a lost rank's place now",
        "processes",
        ("front",),
    ),
    Metric("open_requests", "gauge", "Requests with an open stream", "requests", ("front",)),
    Metric("protected", "gauge", "1 while protection is on, 0 once it had to give up", "", _ALL),
    Metric(
        "health_readings_total",
        "counter",
        "Readings of faults and states taken in, by source",
        "readings",
        ("front", "worker"),
        ("source",),
    ),
    Metric(
        "health_lost_total",
        "counter",
        "Readings or incidents that did not get through, by where (wire, monitor: what its sources say they lost too, listener)",
        "readings",
        ("front", "worker"),
        ("source",),
    ),
    Metric(
        "health_incidents_total",
        "counter",
        "Faults noticed, by what their first verdict made unusable",
        "incidents",
        ("front", "worker"),
        ("verdict",),
    ),
    Metric(
        "health_open_incidents",
        "gauge",
        "Faults that are not over, by what they make unusable",
        "incidents",
        ("front", "worker"),
        ("verdict",),
    ),
    Metric(
        "experts_uncovered",
        "gauge",
        "(layer, expert) pairs without a routable copy: while it is above 0 the router masks them",
        "experts",
        ("driver",),
    ),
    Metric("experts_epoch", "gauge", "Epoch of the expert map that tokens follow", "", ("driver",)),
    Metric(
        "experts_routed_tokens_total",
        "counter",
        "Tokens that went through the router mask, one per layer",
        "tokens",
        ("driver",),
    ),
    Metric(
        "experts_affected_tokens_total",
        "counter",
        "Of those, tokens that had a dead expert among their own top-k and took the next best live one",
        "tokens",
        ("driver",),
    ),
    Metric(
        "experts_router_kl",
        "gauge",
        "Mean divergence of the masked router from the full one over the newest measured tokens",
        "nats",
        ("driver",),
    ),
    Metric(
        "experts_model_kl",
        "gauge",
        "Mean divergence of the model's output from the full model's, where both were computed, else NaN",
        "nats",
        ("driver",),
    ),
    Metric(
        "experts_refilled_bytes_total",
        "counter",
        "Bytes of experts brought into slots, by source",
        "bytes",
        ("driver",),
        ("source",),
    ),
    Metric(
        "experts_passed_over_total",
        "counter",
        "Times that a source did not give an expert (absent, late, short, wrong digest), by source",
        "experts",
        ("driver",),
        ("source",),
    ),
    Metric(
        "experts_damaged_total",
        "counter",
        "Slots whose bytes were not those of their tag; none of them was routable any more",
        "slots",
        ("driver",),
    ),
    Metric(
        "experts_refill_seconds",
        "histogram",
        "Duration of refills, from the first want to the last commit",
        "seconds",
        ("driver",),
        (),
        _SECONDS,
    ),
    Metric(
        "info",
        "gauge",
        "Always 1; labels describe the build",
        "",
        (*_ALL, "driver"),
        ("version", "digest"),
    ),
)


def markdown_table() -> str:
    """The table for the documentation, generated so that it cannot lie."""
    lines = ["| metric | kind | labels | reported by | meaning |", "|---|---|---|---|---|"]
    for row in TABLE:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        by = ", ".join(row.processes)
        lines.append(f"| `{row.full_name}` | {row.kind} | {labels} | {by} | {row.help} |")
    return "\n".join(lines)
