"""Readings between processes: nothing blocks, nothing is lost silently, whoever sends what."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from dynamo_gpu_ft.errors import HealthError
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.health.wire import MAX_BYTES, Hello, Receiver, Seen, Sender
from dynamo_gpu_ft.topology import Device, Rank

RANK = Rank(shard=3, pid=77, device=Device(uuid="GPU-5f", index=1))


def reading(number: int = 79, text: str = "") -> Reading:
    return Reading(
        at=1.5, source=Source.NVML_EVENT, probe="xid", state=State.FAILED, code=number, text=text
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "health")


def test_a_reading_arrives_with_its_rank(path: str) -> None:
    receiver, sender = Receiver(path), Sender(path, RANK)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert sender.hello()
    assert sender.send(reading())
    assert receiver.take() == [Hello(rank=RANK), Seen(shard=3, reading=reading())]
    receiver.close()
    sender.close()


def test_without_a_receiver_the_sender_counts_and_tells_later(path: str) -> None:
    sender = Sender(path, RANK)
    assert not any(sender.send(reading()) for _ in range(5))
    receiver = Receiver(path)
    assert sender.send(reading(48))
    (seen,) = receiver.take()
    assert isinstance(seen, Seen)
    assert (seen.lost, seen.reading.code) == (5, 48)
    assert sender.send(reading())
    (seen,) = receiver.take()
    assert isinstance(seen, Seen)
    assert seen.lost == 0
    receiver.close()
    sender.close()


def test_a_receiver_that_does_not_read_never_blocks_a_sender(path: str) -> None:
    receiver, sender = Receiver(path), Sender(path, RANK)
    sent = [sender.send(reading(number)) for number in range(5000)]
    assert not all(sent)
    taken = len(receiver.take(10_000))
    assert taken == sum(sent)
    assert sender.send(reading())
    (last,) = receiver.take()
    assert isinstance(last, Seen)
    assert last.lost == 5000 - taken
    receiver.close()
    sender.close()


def test_foreign_and_broken_messages_are_counted_and_passed_over(path: str) -> None:
    receiver, sender = Receiver(path), Sender(path, RANK)
    liar = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    whole = msgspec.msgpack.encode(Seen(shard=1, reading=reading()))
    lies = [
        b"",
        b"\xc1",
        b"\xff" * 500,
        b"x" * (MAX_BYTES + 100),
        msgspec.msgpack.encode({"type": "?"}),
    ]
    lies += [whole[:cut] for cut in range(len(whole))]
    for lie in lies:
        liar.sendto(lie, path)
        receiver.take()
    assert receiver.malformed == len(lies)
    assert sender.send(reading())
    assert len(receiver.take()) == 1
    for each in (liar, sender, receiver):
        each.close()


def test_a_huge_text_is_cut_and_still_arrives(path: str) -> None:
    receiver, sender = Receiver(path), Sender(path, RANK)
    assert sender.send(reading(text="é" * 1_000_000))
    (seen,) = receiver.take()
    assert isinstance(seen, Seen)
    assert 0 < len(seen.reading.text) < 5000
    receiver.close()
    sender.close()


def test_closing_removes_the_socket_and_can_be_repeated(path: str) -> None:
    receiver = Receiver(path)
    receiver.close()
    receiver.close()
    assert not os.path.exists(path)
    assert receiver.take() == []


def test_a_path_that_cannot_be_used_is_an_error_with_a_remedy(path: str, tmp_path: Path) -> None:
    receiver = Receiver(path)
    for wrong in (path, str(tmp_path / "absent" / "x"), str(tmp_path / ("x" * 120))):
        with pytest.raises(HealthError, match="Try: set DYN_GPU_FT_ARENA_DIR"):
            Receiver(wrong)
    with pytest.raises(HealthError):
        Sender(str(tmp_path / ("x" * 120)), RANK)
    receiver.close()


def test_a_forked_child_sends_nothing(path: str) -> None:
    receiver, sender = Receiver(path), Sender(path, RANK)
    child = os.fork()
    if child == 0:
        os._exit(sender.send(reading()))
    assert os.waitpid(child, 0)[1] == 0
    assert receiver.take() == []
    receiver.close()
    sender.close()
