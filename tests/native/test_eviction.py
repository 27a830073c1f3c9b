"""What the arena lets go first: scans, quotas, pins, forged marks and writers that die while they mark.

That each single decision is the one the rules give is shown in test_eviction_model.py.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from door import FOREVER, code_of, core, name, seal, seal_chain, token


def there(arena: Any) -> set[bytes]:
    return {info.block_hash for info in arena.scan() if info.state == "sealed"}


def fill(writer: Any, names: list[bytes]) -> None:
    """Stores blocks of requests that are over."""
    for each in names:
        seal(writer, each, None, 0)
        writer.release([each])


# -- admission ---------------------------------------------------------------------------------------------------------


def test_a_scan_of_blocks_used_once_cannot_empty_the_arena(small: Any, alone: Any) -> None:
    shared = [name(i, "shared") for i in range(6)]
    fill(alone, shared)
    alone.touch(shared)
    fill(alone, [name(i, "scan") for i in range(100)])
    assert set(shared) <= there(small)


def test_a_second_use_by_store_or_touch_protects_and_looking_does_not(
    small: Any, alone: Any
) -> None:
    fill(alone, [b"stored", b"touched", b"looked", b"once"])
    assert not seal(alone, b"stored", None, 0)
    alone.release([b"stored"])
    alone.touch([b"touched"])
    alone.find(block_hash=b"looked", parent_hash=None)
    assert {i.block_hash for i in small.scan() if i.protected} == {b"stored", b"touched"}
    assert small.counts()["protected"] == 2


def test_protected_blocks_age_when_others_take_their_place(small: Any, alone: Any) -> None:
    for i in range(30):
        fill(alone, [name(i)])
        alone.touch([name(i)])
        fill(alone, [name(i, "once")])
    left = there(small)
    assert {name(i) for i in range(23, 30)} <= left
    assert not {name(i) for i in range(20)} & left


def test_a_prefix_is_eaten_from_its_end_in_every_class(small: Any, alone: Any) -> None:
    chain = [name(i) for i in range(5)]
    seal_chain(alone, chain)
    alone.release(chain)
    alone.touch(chain)
    small.set_caps(protected_part=300, pinned_part=0)  # two of the five lose their protection
    fill(alone, [name(i, "once") for i in range(5)])
    for i in range(12):
        fill(alone, [name(i, "more")])
    assert there(small) & set(chain) == set(chain[:3])


# -- quotas ------------------------------------------------------------------------------------------------------------


def test_a_namespace_at_its_quota_evicts_its_own_blocks_beside_empty_slots(
    small: Any, two: tuple[Any, Any]
) -> None:
    small.set_quota(0, 3)
    fill(two[1], [b"other"])
    fill(two[0], [name(i) for i in range(7)])
    assert there(small) == {b"other", name(4), name(5), name(6)}
    assert small.usage() == [(3, 3, 4), (1, 0, 0)]
    assert small.counts()["empty"] == 6


def test_a_namespace_above_a_lowered_quota_pays_for_the_others(
    small: Any, two: tuple[Any, Any]
) -> None:
    fill(two[0], [name(i) for i in range(6)])
    fill(two[1], [name(i, "o") for i in range(4)])
    two[0].touch([name(i) for i in range(6)])  # protected, and still
    small.set_quota(0, 4)
    fill(two[1], [b"new", b"newer", b"newest"])
    assert [used for used, _, _ in small.usage()] == [4, 6]
    assert name(0, "o") not in there(small)


def test_a_quota_is_kept_by_writers_side_by_side(make_arena: Callable[..., Any]) -> None:
    arena = make_arena(slots=256)
    chosen = token()
    arena.begin_epoch(chosen)
    arena.set_quota(arena.add_namespace(b"A"), 40)
    writers = [
        core.Arena.open(arena.path).attach_writer(shard=n, token=chosen, namespace=0)
        for n in range(4)
    ]
    most: list[int] = []

    def store(writer: Any) -> None:
        for i in range(300):
            fill(writer, [name(i)])
            if i % 50 == 0:
                most.append(arena.usage()[0][0])

    threads = [threading.Thread(target=store, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 40 + len(writers)
    used, _, evicted = arena.usage()[0]
    assert used <= 40 + len(writers)
    assert evicted >= 4 * 300 - 40 - 2 * len(writers)


def test_quotas_and_caps_have_limits(small: Any) -> None:
    small.add_namespace(b"A")
    assert code_of(small.set_quota, 0, 11) == "invalid"
    assert code_of(small.set_quota, 1, 1) == "invalid"
    assert code_of(small.set_caps, protected_part=1001, pinned_part=0) == "invalid"
    assert code_of(small.set_caps, protected_part=0, pinned_part=901) == "invalid"
    assert small.caps() == (800, 250)
    small.set_caps(protected_part=500, pinned_part=100)
    assert core.Arena.open(small.path, read_only=True).caps() == (500, 100)


# -- pins --------------------------------------------------------------------------------------------------------------


def test_pinned_blocks_stay_across_epochs_until_they_are_unpinned(
    small: Any, make_writer: Callable[..., Any]
) -> None:
    first = make_writer(small)
    fill(first, [b"a", b"b"])
    assert first.pin([b"a", b"b", b"unknown"], until=FOREVER) == 2
    assert small.counts()["pinned"] == 2
    for _ in range(3):
        writer = make_writer(small)
    fill(writer, [name(i) for i in range(50)])
    assert {b"a", b"b"} <= there(small)
    writer.pin([b"a"], until=0)
    fill(writer, [name(i, "x") for i in range(50)])
    assert there(small) & {b"a", b"b"} == {b"b"}


def test_a_pin_ends_at_its_time_and_is_never_shortened(small: Any, alone: Any) -> None:
    fill(alone, [b"a", b"b"])
    now = int(time.time())
    assert alone.pin([b"a"], until=now + 500) == 1
    assert alone.pin([b"a"], until=now + 100) == 1
    assert alone.pin([b"b"], until=now - 1) == 0
    infos = {info.block_hash: info for info in small.scan()}
    assert infos[b"a"].pinned_until == now + 500
    assert infos[b"b"].pinned_until == 0
    fill(alone, [name(i) for i in range(20)])
    assert there(small) & {b"a", b"b"} == {b"a"}


def test_a_pin_above_the_cap_is_refused_and_changes_nothing(small: Any, alone: Any) -> None:
    names = [name(i) for i in range(4)]
    fill(alone, names)
    soon = int(time.time()) + 1000
    assert alone.pin(names[:1], until=soon) == 1
    assert code_of(alone.pin, names, until=FOREVER) == "full"
    infos = {info.block_hash: info.pinned_until for info in small.scan()}
    assert infos == {names[0]: soon} | dict.fromkeys(names[1:], 0)
    assert alone.pin(names[:2], until=FOREVER) == 2


def test_the_copy_engine_pins_behind_its_stores(small: Any, alone: Any) -> None:
    memory = bytearray(10 * 1000)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    engine = core.CopyEngine(alone, core.Layout([(base, 1000, 1000, 10)]))
    engine.store(1, [core.Block(0, b"a", None, 0)])
    engine.pin(2, [b"a"], until=FOREVER)
    engine.pin(3, [b"nowhere"], until=FOREVER)
    engine.store(4, [core.Block(i, name(i), None, 0) for i in range(5)])
    engine.pin(5, [name(i) for i in range(5)], until=FOREVER)
    engine.touch([name(0)])
    assert engine.wait(30)
    results = {result.job_id: result for result in engine.poll()}
    assert [results[job].statuses for job in (2, 3, 5)] == [["ok"], ["not_found"], ["full"]]
    assert {results[job].kind for job in (2, 3, 5)} == {"pin"}
    assert (results[2].bytes, results[1].bytes) == (0, 1000)
    assert "pinned_share" in results[5].detail
    assert {i.block_hash for i in small.scan() if i.protected} == {name(0)}
    assert engine.backlog() == (0, 0)


# -- hostile words -----------------------------------------------------------------------------------------------------

SLOTS = 10
MARKS = 4096 * (
    1 + 2 + 2 + 65 + 1 + 3
)  # header, control, lanes, namespaces, index, states, stamps, holds
CAPS = 4096 + 3 * 64  # of the control page
QUOTA = 4096 * 5 + 8  # of namespace 0


def forge(arena: Any, at: int, word: int) -> None:
    with open(arena.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[at : at + 8] = (word % 2**64).to_bytes(8, "little")


def forge_marks(arena: Any, low: int) -> None:
    """The lower 48 bits of every mark word."""
    for info in arena.scan():
        forge(arena, MARKS + info.slot * 8, info.generation % 2**16 << 48 | low)


@pytest.mark.parametrize("how", ["pinned", "protected", "both", "nobody's", "noise"])
def test_forged_marks_cannot_end_service(small: Any, alone: Any, how: str) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    low = {
        "pinned": FOREVER << 16 | 1 << 8,
        "protected": 1 << 8 | 1,
        "both": FOREVER << 16 | 1 << 8 | 1,
        "nobody's": FOREVER << 16 | 0xFE << 8 | 1,
    }
    fill(alone, [name(i) for i in range(SLOTS)])
    for i in range(60):
        forge_marks(small, low[how] if how in low else rng.getrandbits(48))
        assert seal(alone, name(i, "new"), None, 0)
        alone.release([name(i, "new")])
    assert name(59, "new") in there(small)


@pytest.mark.parametrize("word", [0, 1, 0xCA95 << 32 | 0xFFFFFFFF, 2**64 - 1, 0xCA95 << 32 | 901])
def test_a_forged_caps_word_means_the_defaults(small: Any, alone: Any, word: int) -> None:
    small.set_caps(protected_part=10, pinned_part=20)
    forge(small, CAPS, word)
    assert small.caps() == (800, 250)


@pytest.mark.parametrize("offset", [0, 8, 16])
def test_forged_quota_words_cannot_end_service(small: Any, alone: Any, offset: int) -> None:
    small.set_quota(0, 5)
    for word in (0, 1, 4, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
        for i in range(12):
            forge(small, QUOTA + offset, word)
            fill(alone, [name(i, f"{word}-")])
        assert name(11, f"{word}-") in there(small)


# -- the dead -------------------------------------------------------------------------------------------------------


def test_a_writer_killed_while_it_marks_leaves_an_arena_that_works(
    small: Any, make_writer: Callable[..., Any]
) -> None:
    """Whatever the last instruction was, words are valid or ignorable, and the count of a quota is put right."""
    code = (
        "import os, sys, threading, importlib.machinery, importlib.util\n"
        'loader = importlib.machinery.ExtensionFileLoader("_core", sys.argv[1])\n'
        'core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))\n'
        "loader.exec_module(core)\n"
        "arena = core.Arena.open(sys.argv[2])\n"
        "token = os.urandom(16)\n"
        "arena.begin_epoch(token)\n"
        'writer = arena.attach_writer(shard=0, token=token, namespace=arena.add_namespace(b"namespace"))\n'
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True:\n"
        "    names = [b'%d' % (i + k) for k in range(3)]\n"
        "    for each in names:\n"
        "        claim = writer.claim(block_hash=each, parent_hash=None, position=0)\n"
        "        if claim: claim.seal()\n"
        "    writer.touch(names[:1]); writer.pin(names[1:2], until=2**32 - 1); writer.pin(names[1:2], until=0)\n"
        "    writer.release(names); i += 1\n"
    )
    small.set_quota(small.add_namespace(b"namespace"), 6)
    for round_ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code, core.__file__, small.path],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "ready\n"
            process.kill()
            process.wait(30)
        make_writer(small)
        writer = make_writer(small)  # an epoch later the holds of the dead count no more
        writer.pin([info.block_hash for info in small.scan()], until=0)
        for i in range(12):
            fill(writer, [name(i, f"r{round_}-")])
            writer.touch([name(i, f"r{round_}-")])  # as protected as what the dead left
        assert {name(i, f"r{round_}-") for i in range(7, 12)} <= there(small)
        assert small.usage()[0][0] <= 6
        assert small.counts()["writing"] == 0
        writer.close()
