"""Who may write: epochs, tokens, lanes, and locks that die with their holder.

Live writers of other processes are real processes here, ended by this test; nothing waits longer than its deadline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from door import code_of, core, name, payload_of, read_back, seal, seal_chain, token

# Opens an arena, becomes writer, claims one block, says so, then waits for the end of its input.
CHILD = """
import sys, importlib.machinery, importlib.util
loader = importlib.machinery.ExtensionFileLoader("_core", sys.argv[1])
core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))
loader.exec_module(core)
arena = core.Arena.open(sys.argv[2])
token = bytes.fromhex(sys.argv[3])
arena.begin_epoch(token)
writer = arena.attach_writer(shard=int(sys.argv[4]), token=token, namespace=arena.add_namespace(b"namespace"))
claim = writer.claim(block_hash=b"child", parent_hash=None, position=0)
ledger = arena.open_ledger() if sys.argv[5] == "ledger" else None
print("ready", flush=True)
for line in sys.stdin:
    try:
        if line == "seal\\n":
            claim.seal()
        if line == "append\\n":
            ledger.append(1, b"late")
        print("ok", flush=True)
    except core.CoreError as error:
        print(error.code, flush=True)
"""


class Child:
    """A writer in another process, driven line by line."""

    def __init__(self, arena: Any, chosen: bytes, shard: int, what: str) -> None:
        command = [
            sys.executable,
            "-S",
            "-c",
            CHILD,
            core.__file__,
            arena.path,
            chosen.hex(),
            str(shard),
            what,
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.heard() == "ready"

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.heard()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)


@contextmanager
def child_writer(arena: Any, chosen: bytes, shard: int = 0, what: str = "") -> Iterator[Child]:
    child = Child(arena, chosen, shard, what)
    try:
        yield child
    finally:
        child.end()
        for pipe in (child.process.stdin, child.process.stdout):
            pipe.close()


def test_ranks_with_one_token_share_an_epoch(arena: Any) -> None:
    chosen = token()
    assert arena.begin_epoch(chosen) == 1
    assert core.Arena.open(arena.path).begin_epoch(chosen) == 1
    assert arena.epoch == 1


def test_a_new_token_opens_a_new_epoch_when_nobody_writes(arena: Any) -> None:
    assert [arena.begin_epoch(token()) for _ in range(3)] == [1, 2, 3]


def test_a_superseded_token_is_fenced_even_long_after(arena: Any) -> None:
    first = token()
    arena.begin_epoch(first)
    for _ in range(64):
        arena.begin_epoch(token())
    assert code_of(arena.begin_epoch, first) == "fenced"
    assert code_of(arena.begin_epoch, first, takeover=True) == "fenced"
    assert (
        code_of(arena.attach_writer, shard=0, token=first, namespace=arena.add_namespace(b"n"))
        == "fenced"
    )


def test_a_token_has_sixteen_bytes(arena: Any) -> None:
    assert code_of(arena.begin_epoch, b"short") == "invalid"


def test_attaching_needs_the_current_epochs_token(arena: Any) -> None:
    arena.add_namespace(b"n")
    assert code_of(arena.attach_writer, shard=0, token=token(), namespace=0) == "invalid"
    arena.begin_epoch(token())
    assert code_of(arena.attach_writer, shard=0, token=token(), namespace=0) == "fenced"
    assert code_of(arena.attach_writer, shard=0, token=token(), namespace=1) == "invalid"


def test_a_second_live_writer_of_a_shard_is_busy_and_named(arena: Any) -> None:
    chosen = token()
    with child_writer(arena, chosen) as child:
        arena.begin_epoch(chosen)
        how = {"shard": 0, "token": chosen, "namespace": 0}
        try:
            arena.attach_writer(**how)
        except core.CoreError as error:
            assert error.code == "busy"
            assert str(child.process.pid) in str(error)
        else:
            raise AssertionError("attached beside a live writer")
        assert arena.attach_writer(**{**how, "shard": 1}).shard == 1
        child.end()
        assert arena.attach_writer(**how).shard == 0


def test_another_engine_is_busy_while_one_writes_and_free_when_it_is_dead(arena: Any) -> None:
    with child_writer(arena, token()) as child:
        assert code_of(arena.begin_epoch, token()) == "busy"
        child.end()
        assert arena.begin_epoch(token()) == 2


def test_closing_a_writer_frees_its_shard_once_its_claims_are_done(arena: Any) -> None:
    chosen = token()
    arena.begin_epoch(chosen)
    how = {"shard": 0, "token": chosen, "namespace": arena.add_namespace(b"namespace")}
    first = arena.attach_writer(**how)
    claim = first.claim(block_hash=b"a", parent_hash=None, position=0)
    first.close()
    assert code_of(first.claim, block_hash=b"b", parent_hash=None, position=0) == "closed"
    assert code_of(arena.attach_writer, **how) == "busy"
    claim.abandon()
    del claim
    assert arena.attach_writer(**how).epoch == 1


def test_taking_over_a_shard_fences_its_former_writer(arena: Any) -> None:
    chosen = token()
    arena.begin_epoch(chosen)
    how = {"shard": 0, "token": chosen, "namespace": arena.add_namespace(b"namespace")}
    first = arena.attach_writer(**how)
    claim = first.claim(block_hash=b"a", parent_hash=None, position=0)
    second = arena.attach_writer(**how, takeover=True)
    assert code_of(claim.seal) == "fenced"
    assert code_of(first.touch, [b"a"]) == "fenced"
    assert seal(second, b"a", None, 0)
    counts = arena.counts()
    assert (counts["empty"], counts["writing"], counts["sealed"], counts["held"]) == (63, 0, 1, 1)


def test_a_live_writer_that_was_taken_over_keeps_its_open_slot_to_itself_and_seals_nothing(
    make_arena: Any,
) -> None:
    """The promise on which a shard may change hands between two living processes of one engine: see `attach_writer`."""
    arena, chosen = make_arena(slots=3), token()
    with child_writer(arena, chosen) as child:
        arena.begin_epoch(chosen)
        how = {"shard": 0, "token": chosen, "namespace": 0}
        assert code_of(arena.attach_writer, **how) == "busy"
        (open_slot,) = [info.slot for info in arena.scan()]
        writer = arena.attach_writer(**how, takeover=True)
        assert writer.epoch == arena.epoch == 1, "the same engine start: nobody else is fenced"
        for i in range(10):  # more than there is room for, so that every slot is asked for
            seal(writer, name(i), None, 0)
        assert {info.slot for info in arena.scan() if info.state == "writing"} == {open_slot}
        sealed = {info.slot for info in arena.scan() if info.state == "sealed"}
        assert child.ask("seal") == "fenced"
        assert {info.slot for info in arena.scan() if info.state == "sealed"} == sealed
        assert all(read_back(writer, name(i), None) == payload_of(name(i)) for i in (8, 9)), (
            "what the successor sealed meanwhile is whole"
        )
        third = arena.attach_writer(**how, takeover=True)
        assert code_of(writer.claim, block_hash=b"x", parent_hash=None, position=0) == "fenced"
        assert seal(third, b"x", None, 0)


def test_a_new_epoch_fences_every_call_of_the_old_writer(arena: Any, writer: Any) -> None:
    seal(writer, b"a", None, 0)
    claim = writer.claim(block_hash=b"b", parent_hash=b"a", position=1)
    arena.begin_epoch(token(), takeover=True)
    assert code_of(claim.seal) == "fenced"
    assert code_of(writer.claim, block_hash=b"c", parent_hash=None, position=0) == "fenced"
    assert code_of(writer.find, block_hash=b"a", parent_hash=None) == "fenced"
    for marks in (writer.hold, writer.release, writer.touch):
        assert code_of(marks, [b"a"]) == "fenced"
    assert arena.counts()["writing"] == 0


def test_a_dead_writers_open_slot_is_used_again(arena: Any, make_arena: Any) -> None:
    small = make_arena(slots=1)
    with child_writer(small, token()) as child:
        assert small.counts()["writing"] == 1
        child.end()
    mine = token()
    small.begin_epoch(mine)
    assert seal(small.attach_writer(shard=0, token=mine, namespace=0), b"a", None, 0)


def test_a_stopped_writers_slot_is_never_given_away_and_it_is_fenced_when_it_wakes(
    make_arena: Any,
) -> None:
    arena = make_arena(slots=3)
    with child_writer(arena, token()) as child:
        child.stop()
        mine = token()
        assert code_of(arena.begin_epoch, mine) == "busy"
        assert arena.begin_epoch(mine, takeover=True) == 2
        writer = arena.attach_writer(shard=0, token=mine, namespace=0)
        (quarantined,) = [info.slot for info in arena.scan()]
        for i in range(10):
            seal(writer, name(i), None, 0)
        assert {info.slot for info in arena.scan() if info.state == "writing"} == {quarantined}
        child.go_on()
        assert child.ask("seal") == "fenced"
        assert arena.counts()["writing"] == 0
        for i in range(3):
            seal(writer, name(i, "x"), None, 0)
        assert all(
            read_back(writer, name(i, "x"), None) == payload_of(name(i, "x")) for i in range(3)
        )


def test_every_lane_can_be_taken_and_no_more(arena: Any) -> None:
    chosen = token()
    arena.begin_epoch(chosen)
    arena.add_namespace(b"n")
    writers = [arena.attach_writer(shard=shard, token=chosen, namespace=0) for shard in range(128)]
    assert code_of(arena.attach_writer, shard=128, token=chosen, namespace=0) == "full"
    writers.pop()
    assert arena.attach_writer(shard=128, token=chosen, namespace=0).shard == 128


def test_a_stopped_administrator_is_named_after_two_seconds(arena: Any, folder: Any) -> None:
    holder = (
        "import fcntl, os, struct, sys\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(file, 37, struct.pack('hhqqhh', fcntl.F_WRLCK, 0, 1 << 60, 1, 0, 0))\n"  # F_OFD_SETLK
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", holder, arena.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        assert code_of(arena.begin_epoch, token()) == "timed_out"
    finally:
        process.communicate("", timeout=30)
    assert arena.begin_epoch(token()) == 1


def test_a_forked_child_owns_nothing_of_its_parent(arena: Any, writer: Any) -> None:
    seal_chain(writer, [b"a", b"b"])
    claim = writer.claim(block_hash=b"c", parent_hash=b"b", position=2)
    ledger = arena.open_ledger()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child: report what each call says, without running any of pytest's ends
        codes = []
        for call in (
            arena.counts,
            claim.seal,
            claim.abandon,
            writer.close,
            lambda: writer.touch([b"a"]),
            lambda: ledger.append(1, b""),
            ledger.close,
            lambda: arena.begin_epoch(bytes(16)),
        ):
            try:
                call()
                codes.append("ok")
            except core.CoreError as error:
                codes.append(error.code)
        del claim, ledger, writer
        os.write(write_end, " ".join(codes).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        assert set(pipe.read().split()) == {"forked"}
    os.waitpid(pid, 0)
    claim_address, counts = claim.address, arena.counts()
    assert counts["writing"] == 1
    assert claim_address
    claim.seal()
    assert arena.counts()["sealed"] == 3
    ledger.append(1, b"still mine")


def test_a_lock_does_not_live_on_in_a_forked_child(arena: Any) -> None:
    chosen = token()
    code = (
        "import os, sys, importlib.machinery, importlib.util\n"
        'loader = importlib.machinery.ExtensionFileLoader("_core", sys.argv[1])\n'
        'core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))\n'
        "loader.exec_module(core)\n"
        "arena = core.Arena.open(sys.argv[2])\n"
        "token = bytes.fromhex(sys.argv[3])\n"
        "arena.begin_epoch(token)\n"
        'writer = arena.attach_writer(shard=0, token=token, namespace=arena.add_namespace(b"n"))\n'
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os._exit(0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, core.__file__, arena.path, chosen.hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        orphan = int(process.stdout.readline())
        process.wait(30)
        os.kill(orphan, 0)  # the child lives
        assert arena.begin_epoch(token()) == 2  # and nobody writes
    finally:
        process.communicate("", timeout=30)
