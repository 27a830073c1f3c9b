"""The native eviction decisions beside the pure rules of `kv.eviction`, on random operations.

The rules see what a scan shows and must name the very slot that the next claim takes; the flags are predicted from the
operations alone.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

from door import FOREVER, code_of, name, seal

from dynamo_gpu_ft.kv import eviction

STEPS = int(os.environ.get("GFT_MODEL_STEPS", "3000"))


class Beside:
    """Random operations on a small arena of two namespaces; the model predicts flags and victims."""

    def __init__(self, arena: Any, writers: tuple[Any, Any], rng: random.Random) -> None:
        self.arena, self.writers, self.rng = arena, writers, rng
        self.flags: dict[tuple[int, bytes], dict[str, Any]] = {}
        self.counts: Counter[str] = Counter()

    def residents(self) -> list[eviction.Resident]:
        return [
            eviction.Resident(
                i.slot, i.last_used, i.namespace, i.held, i.protected, i.pinned_until > 0
            )
            for i in self.arena.scan()
        ]

    def step(self) -> None:
        n = self.rng.randrange(2)
        writer, block = self.writers[n], name(self.rng.randrange(24), "ab"[n])
        known = self.flags.get((n, block))
        do = self.rng.choice(
            ["store"] * 6 + ["touch", "release", "hold", "pin", "unpin", "quota", "caps"]
        )
        self.counts[do] += 1
        if do == "store":
            self.store(n, block, known)
        elif do == "quota":
            self.arena.set_quota(n, self.rng.choice([0, 0, 2, 5, 9]))
        elif do == "caps":
            self.arena.set_caps(
                protected_part=self.rng.choice([0, 300, 800, 1000]),
                pinned_part=self.rng.choice([0, 200, 500]),
            )
        elif do in ("pin", "unpin"):
            self.pin(writer, block, known, do == "pin")
        else:
            getattr(writer, do)([block])
            if known is not None:
                known["protected"] |= do == "touch"
                known["holds"] = max(0, known["holds"] + {"hold": 1, "release": -1}.get(do, 0))

    def pin(self, writer: Any, block: bytes, known: dict[str, Any] | None, on: bool) -> None:
        pinned = sum(flags["pinned"] for flags in self.flags.values())
        fresh = on and known is not None and not known["pinned"]
        if fresh and pinned + 1 > self.arena.slots * self.arena.caps()[1] // 1000:
            assert code_of(writer.pin, [block], until=FOREVER) == "full"
            return
        assert writer.pin([block], until=FOREVER if on else 0) == (on and known is not None)
        if known is not None:
            known["pinned"] = on

    def store(self, n: int, block: bytes, known: dict[str, Any] | None) -> None:
        before = self.residents()
        slots = {i.slot: (i.namespace, i.block_hash) for i in self.arena.scan()}
        if known is not None:
            assert not seal(self.writers[n], block, None, 0)
            known["protected"], known["holds"] = True, known["holds"] + 1
            return
        usage = self.arena.usage()
        protected, pinned = self.arena.caps()
        expected = eviction.victim(
            before,
            namespace=n,
            slots=self.arena.slots,
            empty=self.arena.slots - len(before),
            caps=eviction.Caps(protected, pinned),
            used={i: used for i, (used, _, _) in enumerate(usage)},
            quotas={i: quota for i, (_, quota, _) in enumerate(usage)},
        )
        assert seal(self.writers[n], block, None, 0)
        after = {i.slot: (i.namespace, i.block_hash) for i in self.arena.scan()}
        gone = [slot for slot, was in slots.items() if after.get(slot) != was]
        assert gone == ([] if expected is None else [expected])
        for slot in gone:
            del self.flags[slots[slot]]
            self.counts["evicted"] += 1
        self.flags[n, block] = {"protected": False, "pinned": False, "holds": 1}

    def check(self) -> None:
        seen = {
            (i.namespace, i.block_hash): (i.protected, i.pinned_until > 0, i.held)
            for i in self.arena.scan()
        }
        assert seen == {
            key: (flags["protected"], flags["pinned"], flags["holds"] > 0)
            for key, flags in self.flags.items()
        }


def test_the_native_decisions_are_the_models(small: Any, two: tuple[Any, Any]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    beside = Beside(small, two, random.Random(seed))
    for _ in range(STEPS):
        beside.step()
        beside.check()
    assert beside.counts["evicted"] > STEPS // 10
