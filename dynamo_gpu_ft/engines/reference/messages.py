"""What driver and ranks say to each other: frozen messages with a tag, and the channel that carries them with deadlines.

Orders go out, one reply comes back for each; both carry the epoch where it matters. Data between ranks goes through communicators.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Union

import msgspec

from dynamo_gpu_ft.engines.reference.split import Cut, Range
from dynamo_gpu_ft.engines.reference.tiles import Piece
from dynamo_gpu_ft.recovery import waiting
from dynamo_gpu_ft.recovery.weights.peer import Table


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A seat in one communicator of an epoch."""

    name: str
    rank: int
    size: int


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive blocks of one request from block index `first` on, to be stored or loaded: engine blocks and their names. With
    `tail`, the last one is open and holds so many tokens."""

    request: str
    first: int
    blocks: tuple[int, ...]
    hashes: tuple[bytes, ...]
    parent: bytes | None = None
    tail: int = 0

    def head(self, count: int) -> Prefix:
        """The first `count` of these blocks."""
        tail = self.tail if count >= len(self.blocks) else 0
        return msgspec.structs.replace(
            self, blocks=self.blocks[:count], hashes=self.hashes[:count], tail=tail
        )

    def tokens(self, block: int) -> int:
        """How many tokens these blocks hold."""
        whole = len(self.blocks) - bool(self.tail)
        return whole * block + self.tail


class Prepare(_Message, frozen=True, kw_only=True):
    """To a standby: look at what any shard would need. Answer: `Ready`."""


class Load(_Message, frozen=True, kw_only=True):
    """Become `shard` on `device`: weights, cache, KV snapshots. `expected`: digests to insist on; empty at the first start. `keep`: write
    the weights to the neighbour file. `peers`: live processes that may hold the same weights. Answer: `Loaded`."""

    shard: int
    device: int
    cut: Cut
    expected: dict[str, bytes] = {}
    keep: bool = False
    peers: tuple[Table, ...] = ()
    deadline_s: float


class Yield(_Message, frozen=True, kw_only=True):
    """Finish storing, and let go of all KV snapshots but those of `heads`, so that another rank can take them. Answer: `Ready`."""

    heads: Range


class Recut(_Message, frozen=True, kw_only=True):
    """Hold `cut` from now on: weights by the sources, KV heads that stay moved over bit by bit. `expected` as in `Load`. Answer:
    `Loaded`."""

    cut: Cut
    expected: dict[str, bytes] = {}
    deadline_s: float


class Join(_Message, frozen=True, kw_only=True):
    """Make the communicators of `epoch`; `members` are the shards by comm rank, `vocab` the range of each of this stage's. Answer:
    `Joined`."""

    epoch: int
    members: tuple[int, ...]
    places: tuple[Place, ...]
    vocab: tuple[Range, ...]
    deadline_s: float


class Step(_Message, frozen=True, kw_only=True):
    """Compute `pieces`; before it forget `gone` requests, behind it store `sealed`. Answer: `Done`."""

    epoch: int
    number: int
    pieces: tuple[Piece, ...]
    sealed: tuple[Prefix, ...] = ()
    gone: tuple[str, ...] = ()


class Revoke(_Message, frozen=True, kw_only=True):
    """At once, also in the middle of a step: leave every communicator up to `epoch`. No answer of its own."""

    epoch: int


class Fence(_Message, frozen=True, kw_only=True):
    """Answer `Fenced` when everything before is over. `number` tells this one from earlier ones."""

    number: int


class Restore(_Message, frozen=True, kw_only=True):
    """Load KV of these prefixes into the cache of `heads`. Answer: `Restored`."""

    prefixes: tuple[Prefix, ...]
    heads: tuple[int, ...]
    deadline_s: float


class Canary(_Message, frozen=True, kw_only=True):
    """One tile of one known token through all ranks. Answer: `Sang`."""

    epoch: int


class Describe(_Message, frozen=True, kw_only=True):
    """Answer: `Described`, with a digest of each head's KV of `blocks`."""

    blocks: tuple[int, ...] = ()


class Arm(_Message, frozen=True, kw_only=True):
    """Hurt yourself in `how` ("kill", "stop", "segv", "raise") the `times`-th time that you come to `point`; "" takes back what did not happen. No answer."""

    point: str
    how: str
    times: int = 1


Order = Union[
    Prepare, Load, Yield, Recut, Join, Step, Revoke, Fence, Restore, Canary, Describe, Arm
]


class Hello(_Message, frozen=True, kw_only=True):
    pid: int
    started: int


class Ready(_Message, frozen=True, kw_only=True):
    notes: tuple[str, ...] = ()


class Loaded(_Message, frozen=True, kw_only=True):
    """`source` gave the weights: `read` bytes for `needed`; `digests` are of the tensors where they lie in this rank's memory. `seconds`
    went into moving weights and, in a `Recut`, KV. `namespace` and `kv_epoch` are those of the shard's KV snapshots, -1
    without (`not_protected` says why). `table`: where the weights lie, for peers; None where they are not in host memory."""

    digests: dict[str, bytes]
    source: str
    read: int
    needed: int
    seconds: float
    refused: tuple[tuple[str, str], ...] = ()
    namespace: int = -1
    kv_epoch: int = -1
    not_protected: str = ""
    table: Table | None = None


class Joined(_Message, frozen=True, kw_only=True):
    epoch: int


class Done(_Message, frozen=True, kw_only=True):
    """`drawn`: request -> token, from the last stage's first rank. `gaps`: request -> first block that is not stored."""

    epoch: int
    number: int
    drawn: dict[str, int] = {}
    gaps: dict[str, int] = {}


class Broken(_Message, frozen=True, kw_only=True):
    """A communicator failed under a step or a join: somebody else's fault, as far as this rank knows."""

    epoch: int
    text: str


class Failed(_Message, frozen=True, kw_only=True):
    """An order raised: this rank is not to be trusted any more."""

    order: str
    text: str


class Fenced(_Message, frozen=True, kw_only=True):
    number: int


class Restored(_Message, frozen=True, kw_only=True):
    """request -> leading blocks that are verified in the cache."""

    blocks: dict[str, int]
    bytes: int
    seconds: float
    reasons: tuple[str, ...] = ()


class Sang(_Message, frozen=True, kw_only=True):
    """`logits`: digest of the canary's logits; `token` the greedy one. Only from the last stage."""

    epoch: int
    logits: bytes = b""
    token: int = -1


class Described(_Message, frozen=True, kw_only=True):
    """Addresses for tests and benches: of every weight and of the cache; and stores that are still under way."""

    pid: int
    shard: int
    weights: dict[str, int]
    cache: int
    pending: int
    kv: dict[int, bytes] = {}


Reply = Union[Hello, Ready, Loaded, Joined, Done, Broken, Failed, Fenced, Restored, Sang, Described]

MAX_MESSAGE = 256 << 20
_LENGTH = struct.Struct("<I")


class Channel:
    """Whole messages over one stream socket. One thread sends, one receives; both ends may die at any byte."""

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        """`receives`: the union of what comes in."""
        sock.setblocking(False)
        self._sock, self._buffer = sock, bytearray()
        self._decode = msgspec.msgpack.Decoder(receives).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: msgspec.Struct, timeout_s: float = 5.0) -> None:
        """Blocks at most `timeout_s` for a peer that does not read. Raises `OSError` (`TimeoutError` among them): the channel is of no
        use any more then."""
        body = self._encode(message)
        data = memoryview(_LENGTH.pack(len(body)) + body)
        give_up = time.monotonic() + timeout_s
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                left = give_up - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the other end of a channel does not read") from None
                waiting.writable(self._sock, left)

    def receive(self) -> list[Any]:
        """What has arrived in whole; never blocks. `closed` is set when the other end is gone. Raises `msgspec.DecodeError`, `OSError`."""
        while not self.closed:
            try:
                data = self._sock.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
            self._buffer += data
        found = []
        while len(self._buffer) >= 4:
            size = _LENGTH.unpack_from(self._buffer)[0]
            if size > MAX_MESSAGE:
                raise OSError(f"a message of {size} bytes")
            if len(self._buffer) < 4 + size:
                break
            found.append(self._decode(bytes(self._buffer[4 : 4 + size])))
            del self._buffer[: 4 + size]
        return found

    def close(self) -> None:
        self.closed = True
        self._sock.close()
