"""What to do about lost shards: a pure function of who is alive, what the verdicts say, what stands by, and the policy.

First cheapest: a standby takes the shard, a fresh process does, the engine goes on with fewer ranks, everything is restarted.
`coordinator.py` gathers the `Situation` and carries the `Plan` out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from dynamo_gpu_ft.config import Config


class Kind(str, Enum):
    SUBSTITUTE = "substitute"  # a standby takes each lost shard
    RESPAWN = "respawn"  # a new process takes each lost shard
    DEGRADE = "degrade"  # survivors share the lost shards' work
    RESTART = "restart"  # the whole engine; the group recovery ends and says so
    FAIL = "fail"  # neither; with the reason


@dataclass(frozen=True, slots=True)
class Plan:
    """`lost` are the shards to fill; `ranks` the shard of each comm rank of the next epoch, in order; `cost_s` the estimate it was
    chosen by; `reason` why not something cheaper."""

    kind: Kind
    lost: tuple[int, ...]
    ranks: tuple[int, ...]
    cost_s: float
    reason: str = ""


#: Seconds that each kind takes until it was measured; an engine that knows better says so in its policy.
DEFAULT_COSTS: Mapping[Kind, float] = {
    Kind.SUBSTITUTE: 1.0,
    Kind.RESPAWN: 15.0,
    Kind.DEGRADE: 2.0,
    Kind.RESTART: 60.0,
    Kind.FAIL: 0.0,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is allowed, and what it costs. Times are seconds.

    in_place     False: every loss is a restart of the whole engine
    restart      whether somebody restarts the whole engine when the group recovery ends without success
    respawn      whether the engine can start a fresh process for a shard
    min_shards   fewest ranks to go on with; 0: never degrade
    deaths       a shard whose member died so often within `window_s` is not filled again, the recovery fails instead; 0: at once
    attempts     how often one kind of plan, or one state, may fail within a recovery before it is not tried any more
    """

    in_place: bool = True
    restart: bool = True
    respawn: bool = True
    min_shards: int = 0
    deaths: int = 3
    window_s: float = 600.0
    attempts: int = 2
    step_s: float = 30.0
    recovery_s: float = 300.0
    costs: Mapping[Kind, float] = field(default_factory=lambda: dict(DEFAULT_COSTS))

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        restart: bool = True,
        respawn: bool = True,
        costs: Mapping[Kind, float] | None = None,
    ) -> Policy:
        """`max_restarts` counts the deaths of one shard here: with 3 the third is the last, with 0 there is no recovery at all."""
        return cls(
            in_place=config.in_place,
            restart=restart,
            respawn=respawn,
            min_shards=config.min_shards,
            deaths=max(2, config.max_restarts) if config.max_restarts else 0,
            window_s=config.restart_window_s,
            step_s=config.step_deadline_s,
            recovery_s=config.recovery_deadline_s,
            costs={**DEFAULT_COSTS, **(costs or {})},
        )


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when a plan is made.

    shards     how many shards the engine was built with
    alive      those with a member that goes on
    lost       those lost in this recovery; a degraded engine misses others besides
    standbys   started processes that could take any shard now
    condemned  shard -> why its device can take no process any more, by verdict; the key -1 condemns the node as a whole
    spares     usable devices that nobody uses; None: not counted, the engine's processes need no device of their own
    deaths     shard -> when its members died, this time included, in seconds of one clock
    now        on that clock
    failed     how often a kind has failed in this recovery
    measured   seconds that kinds took before
    left_s     what is left of the recovery's deadline
    """

    shards: int
    alive: frozenset[int]
    lost: frozenset[int]
    standbys: int = 0
    condemned: Mapping[int, str] = field(default_factory=dict)
    spares: int | None = None
    deaths: Mapping[int, Sequence[float]] = field(default_factory=dict)
    now: float = 0.0
    failed: Mapping[Kind, int] = field(default_factory=dict)
    measured: Mapping[Kind, float] = field(default_factory=dict)
    left_s: float = float("inf")


NODE = -1  # in `Situation.condemned`


def plan(now: Situation, policy: Policy) -> Plan:
    """The cheapest plan that is possible, the largest engine first: an engine with fewer ranks is slower for as long as it runs.

    Pure. The reason names what stood against everything cheaper, in words for a person."""
    against = _never(now, policy)
    if against:
        return _end(against, now, policy, fail=True)
    if not policy.in_place:
        return _end("recovery in place is switched off (in_place)", now, policy)
    if NODE in now.condemned:
        return _end(f"the node is condemned: {now.condemned[NODE]}", now, policy)
    reasons: list[str] = []
    every = frozenset(range(now.shards))
    targets = [every, now.alive | now.lost] if now.alive | now.lost != every else [every]
    for target in targets:
        found = _fill(target, now, policy, reasons)
        if found:
            return found
    against = _degrade_obstacle(now, policy)
    if not against:
        return _made(Kind.DEGRADE, frozenset(), now.alive, now, policy, reasons)
    return _end("; ".join([*reasons, against]), now, policy)


def _never(now: Situation, policy: Policy) -> str:
    """Why nothing is to be tried at all: a shard that keeps dying would take its next member with it too."""
    if policy.deaths <= 0 and now.lost:
        return "no restarts are allowed (max_restarts = 0)"
    for shard in sorted(now.lost):
        times = [t for t in now.deaths.get(shard, ()) if now.now - t <= policy.window_s]
        if len(times) >= policy.deaths > 0:
            return (
                f"shard {shard}: its member died {len(times)} times within {policy.window_s:g} s "
                f"(max_restarts, restart_window_s)"
            )
    return ""


def _fill(
    target: frozenset[int], now: Situation, policy: Policy, reasons: list[str]
) -> Plan | None:
    """The cheapest way to have a member for every shard of `target`; the obstacles go to `reasons`."""
    fill = target - now.alive
    kinds = sorted(
        (Kind.SUBSTITUTE, Kind.RESPAWN),
        key=lambda kind: (cost(kind, now, policy), kind != "substitute"),
    )
    for kind in kinds:
        obstacle = _spent(kind, now, policy) or (
            _substitute_obstacle(fill, now)
            if kind is Kind.SUBSTITUTE
            else _respawn_obstacle(fill, now, policy)
        )
        if not obstacle:
            return _made(kind, fill, target, now, policy, reasons)
        note = f"no {kind.value}: {obstacle}"
        if note not in reasons:
            reasons.append(note)
    return None


def _substitute_obstacle(fill: frozenset[int], now: Situation) -> str:
    if len(fill) <= now.standbys:
        return ""
    return f"{_count(now.standbys, 'standby')} for {_named(fill)}"


def _respawn_obstacle(fill: frozenset[int], now: Situation, policy: Policy) -> str:
    if fill and not policy.respawn:
        return "the engine cannot start a single rank"
    homeless = fill & now.condemned.keys()
    if homeless and (now.spares is None or now.spares < len(homeless)):
        why = "; ".join(f"shard {shard}: {now.condemned[shard]}" for shard in sorted(homeless))
        return f"{_count(now.spares or 0, 'spare device')} for {_named(homeless)} ({why})"
    return ""


def _degrade_obstacle(now: Situation, policy: Policy) -> str:
    if policy.min_shards <= 0:
        return "no degrade: not allowed (min_shards = 0)"
    if len(now.alive) < policy.min_shards:
        return f"no degrade: {len(now.alive)} left, fewer than min_shards = {policy.min_shards}"
    spent = _spent(Kind.DEGRADE, now, policy)
    return f"no degrade: {spent}" if spent else ""


def _spent(kind: Kind, now: Situation, policy: Policy) -> str:
    failed = now.failed.get(kind, 0)
    if failed >= policy.attempts:
        return f"failed {failed} times in this recovery"
    measured = now.measured.get(kind, 0.0)
    if measured > now.left_s:
        return f"took {measured:.3g} s last time and {now.left_s:.3g} s are left"
    return ""


def cost(kind: Kind, now: Situation, policy: Policy) -> float:
    """Seconds: measured if it was, else the policy's estimate."""
    return now.measured.get(kind, policy.costs.get(kind, DEFAULT_COSTS[kind]))


def _made(
    kind: Kind,
    fill: frozenset[int],
    target: frozenset[int],
    now: Situation,
    policy: Policy,
    reasons: Sequence[str],
) -> Plan:
    ranks, lost = tuple(sorted(target)), tuple(sorted(fill))
    return Plan(kind, lost, ranks, cost(kind, now, policy), "; ".join(reasons))


def _end(reason: str, now: Situation, policy: Policy, *, fail: bool = False) -> Plan:
    kind = Kind.RESTART if policy.restart and not fail else Kind.FAIL
    return Plan(kind, (), (), cost(kind, now, policy), reason)


def _count(number: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number or 'no'} {what if number == 1 else plural}"


def _named(shards: frozenset[int]) -> str:
    return f"shard{'s' * (len(shards) > 1)} {', '.join(map(str, sorted(shards)))}"
