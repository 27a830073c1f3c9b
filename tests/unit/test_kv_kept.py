"""Which tails stay: at any moment of any interleaving of two shards, what both have is the newest that both ever had."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.kv.kept import MOST_WAITING, KeptTails, Reach

BLOCK = 4


def reach(count: int) -> Reach:
    return divmod(count, BLOCK)


class Shard:
    """Seals the same blocks as its peer, in the same order, at its own pace; whole blocks stay."""

    def __init__(self) -> None:
        self.done = 0
        self.has: set[int] = set()
        self.peer: Shard = self
        self.kept = KeptTails(lambda name: int(name) in self.peer.has)

    def seal(self, *, fails: bool = False) -> None:
        self.done += 1
        count = self.done
        whole = count % BLOCK == 0
        name = str(count).encode()
        if not whole:
            self.kept.add("a", reach(count), name)
        if fails:
            if not whole:
                self.kept.lost("a", reach(count), name)
            return
        self.has.add(count)
        for gone in self.kept.sealed("a", reach(count), name):
            self.has.discard(int(gone))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_what_two_shards_have_in_common_is_never_given_up_for_what_one_has(
    turns: list[tuple[bool, int]],
) -> None:
    shards = Shard(), Shard()
    shards[0].peer, shards[1].peer = shards[1], shards[0]
    best = 0
    for first, luck in turns:
        here, there = shards if first else shards[::-1]
        if here.done - there.done >= MOST_WAITING - 1:
            here, there = there, here
        here.seal(fails=luck == 0)
        common = max(here.has & there.has, default=0)
        assert common >= best, (here.has, there.has)
        best = common
        for shard in shards:
            assert len(shard.kept) <= MOST_WAITING
    for shard in shards:
        tails = {count for count in shard.has if count % BLOCK}
        assert {int(name) for name in shard.kept.ended("a")} >= tails
        assert len(shard.kept) == 0


def test_one_shard_keeps_its_newest_tail_alone() -> None:
    kept = KeptTails()
    for count in (1, 2, 3):
        kept.add("a", reach(count), b"%d" % count)
        assert kept.sealed("a", reach(count), b"%d" % count) == (
            [b"%d" % (count - 1)] * (count > 1)
        )
    assert kept.sealed("a", reach(4), b"whole") == [b"3"]
    assert kept.ended("a") == []


def test_a_shard_that_stands_still_costs_the_other_a_handful_of_tails_only() -> None:
    kept, here = KeptTails(lambda name: False), set()
    for count in range(1, 100):
        if count % BLOCK == 0:
            here -= set(kept.sealed("a", reach(count), b"whole"))
            continue
        kept.add("a", reach(count), b"%d" % count)
        here.add(b"%d" % count)
        here -= set(kept.sealed("a", reach(count), b"%d" % count))
        assert len(here) == len(kept) <= MOST_WAITING
    assert set(kept.ended("a")) == here


def test_a_tail_held_twice_is_dropped_twice() -> None:
    kept = KeptTails()
    kept.add("a", (0, 2), b"two")
    kept.sealed("a", (0, 2), b"two")
    kept.add("a", (0, 2), b"two")  # loaded after a preemption
    kept.add("a", (0, 3), b"three")
    assert kept.sealed("a", (0, 3), b"three") == [b"two", b"two"]


def test_a_request_that_has_ended_drops_nothing_more() -> None:
    kept = KeptTails()
    kept.add("a", (0, 1), b"one")
    assert kept.ended("a") == [b"one"]
    assert kept.sealed("a", (0, 1), b"one") == []
    assert kept.ended("a") == []
