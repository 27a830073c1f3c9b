"""Waiting for descriptors, also for those with large numbers."""

from __future__ import annotations

import os
import socket
import time

import pytest

from dynamo_gpu_ft.recovery.waiting import readable, writable


@pytest.mark.usefixtures("many_files")
def test_descriptors_of_any_number_are_waited_for() -> None:
    reads, writes = os.pipe()
    assert reads > 1023
    assert readable([reads], 0) == set()
    os.write(writes, b"x")
    assert readable([reads, writes], 0) == {reads}
    assert writable(writes, 0)
    os.close(writes)
    os.read(reads, 1)
    assert readable([reads]) == {reads}, "whose other end is gone"
    os.close(reads)


def test_a_wait_ends_in_time_and_not_before() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began = time.monotonic()
        assert readable([ours], 0.0005) == set()
        assert time.monotonic() - began >= 0.0005
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16))
        assert not writable(ours, 0)
        assert readable([ours, theirs]) == {theirs.fileno()}
