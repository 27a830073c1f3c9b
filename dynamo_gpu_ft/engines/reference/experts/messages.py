"""What driver and ranks of an expert-parallel engine say to each other beside the words that all reference engines have.

A rank's answers carry what it did in the background, so that nothing of it is lost between two orders.
"""

from __future__ import annotations

from typing import Union

import msgspec

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.tiles import Piece
from dynamo_gpu_ft.experts.ahead import Ahead
from dynamo_gpu_ft.experts.base import Placement
from dynamo_gpu_ft.recovery.weights.peer import Table


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """Bring `expert` of `layer` into one's own `slot`; `digests`: need -> digest that its tensors must have."""

    layer: int
    slot: int
    expert: int
    digests: dict[str, bytes] = {}


class Landed(msgspec.Struct, frozen=True, kw_only=True):
    """A fill that is over: staged, for the next commit of its layer, or not (`error`). `source`, `read`, `seconds`: where it came from;
    `passed`: sources that were asked before that one."""

    fill: Fill
    source: str = ""
    read: int = 0
    seconds: float = 0.0
    passed: tuple[str, ...] = ()
    error: str = ""


class Hold(_Message, frozen=True, kw_only=True):
    """Become `shard` on `device`: the whole model but its experts, and those experts that `fills` say; none for one that comes back. `keep`: write what is held as host copy.
    `expected`: digests of the other weights; empty at the first start. Answer: `Held`."""

    shard: int
    device: int
    fills: tuple[Fill, ...]
    expected: dict[str, bytes] = {}
    peers: tuple[Table, ...] = ()
    keep: bool = False
    deadline_s: float


class Routes(_Message, frozen=True, kw_only=True):
    """From the next order on route by `placement`. No answer."""

    epoch: int
    placement: Placement


class Lose(_Message, frozen=True, kw_only=True):
    """Send nothing to the ranks `dead` from the next order on: the map that holds, without them. No answer."""

    epoch: int
    dead: tuple[int, ...]


class Foresee(_Message, frozen=True, kw_only=True):
    """Have ready, behind the steps, the maps of what may be lost next from `placement`, the `number`-th such order. No answer; `Told` says
    when it is done."""

    number: int
    placement: Placement
    ahead: tuple[Ahead, ...]


class Forward(_Message, frozen=True, kw_only=True):
    """One step: `rounds` tiles together with all ranks, the first of them over one's own `pieces`, with `canary` behind the canary; before it
    forget `gone` requests and store `sealed`, which was computed in a step that counts; behind it, digest `scrub` slots (-1: all that are routable). Answer: `Stepped`."""

    epoch: int
    number: int
    pieces: tuple[Piece, ...]
    rounds: int
    gone: tuple[str, ...] = ()
    sealed: tuple[say.Prefix, ...] = ()
    scrub: int = 0
    canary: bool = False


class Regain(_Message, frozen=True, kw_only=True):
    """Load KV that the lost `shard` had stored into one's own cache: of each request one of its prefixes, the first of them if it is there. Answer:
    `Regained`, of the same number."""

    number: int
    shard: int
    wanted: tuple[tuple[say.Prefix, ...], ...]
    deadline_s: float


class Refill(_Message, frozen=True, kw_only=True):
    """Bring experts in the background, in this order; what an earlier order left is dropped. Answers come with `Stepped` and `Told`."""

    fills: tuple[Fill, ...]
    epoch: int
    peers: tuple[Table, ...] = ()
    deadline_s: float


class Commit(_Message, frozen=True, kw_only=True):
    """Make what has landed routable, layer by layer. Answer: `Committed`."""

    epoch: int
    layers: tuple[int, ...]


class Audit(_Message, frozen=True, kw_only=True):
    """Say which slots are routable; with `digest`, once each of them was digested. Answer: `Audited`."""

    number: int
    digest: bool = False


class Tell(_Message, frozen=True, kw_only=True):
    """Answer: `Told`."""

    number: int


class Spoil(_Message, frozen=True, kw_only=True):
    """For drills: flip a bit of an expert, where it lies (`landed` False) or of the next one that lands. No answer."""

    layer: int
    slot: int
    landed: bool = False


class Held(_Message, frozen=True, kw_only=True):
    """`digests` of all tensors that are held, experts' included; `table`: where they lie, for peers. `not_kept`, `not_protected`: why there is no host
    copy of them, or why KV is not stored."""

    digests: dict[str, bytes]
    routable: bytes
    sources: dict[str, int] = {}
    seconds: float = 0.0
    table: Table | None = None
    not_kept: str = ""
    not_protected: str = ""


class Stepped(_Message, frozen=True, kw_only=True):
    """`drawn`: request -> token. `counts`: int32 [layers, slots], rows that one's experts computed. `refused`, `damaged`: (layer, slot) that rows
    were sent to but that is not routable, and slots whose bytes turned out wrong. With either, the step's results are void.
    `gap`: (rows routed, rows one of whose experts was masked, sum of the router's divergence in nats), over all layers. `sang`: of a step with
    the canary, what that gave. `gaps`: request -> first block that could not be stored."""

    epoch: int
    number: int
    drawn: dict[str, int] = {}
    counts: bytes = b""
    refused: tuple[tuple[int, int], ...] = ()
    damaged: tuple[tuple[int, int], ...] = ()
    landed: tuple[Landed, ...] = ()
    gap: tuple[int, int, float] = (0, 0, 0.0)
    sang: say.Sang | None = None
    gaps: dict[str, int] = {}


class Regained(_Message, frozen=True, kw_only=True):
    """`found`: of each request the prefix that is verified in the cache, as far as it is; `reasons` why not more."""

    number: int
    found: dict[str, say.Prefix] = {}
    bytes: int = 0
    reasons: tuple[str, ...] = ()


class Committed(_Message, frozen=True, kw_only=True):
    """(layer, slot, expert) that are routable now; `damaged`: (layer, slot) that were not what had landed."""

    epoch: int
    changed: tuple[tuple[int, int, int], ...]
    damaged: tuple[tuple[int, int], ...] = ()


class Audited(_Message, frozen=True, kw_only=True):
    """`routable`: int32 [layers, slots], the expert of each slot that may be routed to, else -1. `entry`: which of its failover tables the
    rank routes by."""

    number: int
    routable: bytes
    entry: int


class Told(_Message, frozen=True, kw_only=True):
    """`foreseen`: the newest `Foresee` that was done."""

    number: int
    landed: tuple[Landed, ...] = ()
    foreseen: int = 0


Order = Union[
    say.Join, say.Revoke, say.Fence, say.Describe, say.Arm,
    Hold, Routes, Forward, Lose, Foresee, Regain, Refill, Commit, Audit, Tell, Spoil,
]  # fmt: skip
Reply = Union[
    say.Hello, say.Joined, say.Broken, say.Failed, say.Fenced, say.Described,
    Held, Stepped, Regained, Committed, Audited, Told,
]  # fmt: skip
