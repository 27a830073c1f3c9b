"""A rank's side against a monitor in this process: what arrives, how often, and that the rank waits for nobody."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.nvrx import asked, wire
from dynamo_gpu_ft.nvrx.listening import Ear
from dynamo_gpu_ft.nvrx.rank import Rank
from dynamo_gpu_ft.nvrx.voices import Voice
from dynamo_gpu_ft.nvrx.wishes import Wish
from tests.nvrx.incidents import lost_gpu


class Monitor:
    """An `Ear` that is read when `until` is called."""

    def __init__(self, folder: Path) -> None:
        self.wishes: list[tuple[int, Wish, str]] = []
        self.ear = Ear(str(folder), lambda *wish: self.wishes.append(wish))
        self.ear.expect("key", 1)
        self.environ = {
            wire.SOCKET_VARIABLE: self.ear.path,
            wire.KEY_VARIABLE: "key",
            "RANK": "1",
            asked.VARIABLE: str(folder / "asked"),
        }
        asked.make(self.environ[asked.VARIABLE])

    def voice(self) -> Voice | None:
        self.ear.listen(time.monotonic())
        return next((voice for _, voice in self.ear.voices()), None)

    def until(self, true: Callable[[Voice], bool]) -> Voice:
        return self.until_any(lambda: (v := self.voice()) is not None and true(v) and v)

    def until_any(self, true: Callable[[], Any]) -> Any:
        give_up = time.monotonic() + 20
        while not (found := true()):
            assert time.monotonic() < give_up
            time.sleep(0.005)
        return found


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    made = Monitor(tmp_path)
    yield made
    made.ear.close()


def test_outside_a_launcher_everything_is_without_effect() -> None:
    before = threading.active_count()
    with Rank(environ={}) as rank:
        with rank.section("weights"), rank.step():
            pass
        assert not rank.launched
        assert not rank.ask(Wish.EXCLUDE_NODE, "reset")
        assert threading.active_count() == before


def test_sections_nest_and_the_monitor_hears_the_innermost(monitor: Monitor) -> None:
    with Rank(environ=monitor.environ, tick_s=0.01) as rank:
        first = monitor.until(lambda voice: voice.section == "idle")
        assert (first.rank, first.pid) == (1, os.getpid())
        with rank.step():
            began = monitor.until(lambda voice: voice.section == "step").since
            with rank.section("compile"):
                monitor.until(lambda voice: voice.section == "compile")
            again = monitor.until(lambda voice: voice.section == "step")
            assert again.since > began  # its time stood still meanwhile
        monitor.until(lambda voice: voice.section == "idle")
        rank.end()  # outside of all: without effect
    monitor.until_any(lambda: monitor.voice() is None)


def test_many_steps_cost_one_message_a_tick_and_each_long_one_begins_anew(monitor: Monitor) -> None:
    heard = 0
    real = wire.decode

    def counting(data: bytes) -> wire.Packet | None:
        nonlocal heard
        heard += 1
        return real(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "decode", counting)
        with Rank(environ=monitor.environ) as rank:
            monitor.until(lambda voice: bool(voice.section))
            heard, began = 0, time.monotonic()
            while time.monotonic() - began < 0.55:
                with rank.step():
                    pass
            monitor.voice()
            assert heard <= (time.monotonic() - began) / 0.1 + 2


def test_a_wish_arrives_even_when_the_rank_ends_at_once(monitor: Monitor) -> None:
    answers: list[bool] = []

    def live() -> None:
        with Rank(environ=monitor.environ) as rank:
            answers.append(rank.ask(Wish.EXCLUDE_NODE, "reset"))

    thread = threading.Thread(target=live)
    thread.start()
    monitor.until_any(lambda: monitor.voice() is None and monitor.wishes)
    thread.join(20)
    assert answers == [True]
    assert monitor.wishes == [(1, Wish.EXCLUDE_NODE, "reset")]
    assert asked.read(monitor.environ[asked.VARIABLE]) == [(Wish.EXCLUDE_NODE, "reset")]


def test_a_failed_recovery_and_a_lost_gpu_are_handed_over_by_themselves(monitor: Monitor) -> None:
    def live() -> None:
        with Rank(environ=monitor.environ) as rank:
            rank.on_incident(lost_gpu(1))
            raise RecoveryFailed("used up")

    failed: list[BaseException] = []

    def catching() -> None:
        try:
            live()
        except RecoveryFailed as error:
            failed.append(error)

    thread = threading.Thread(target=catching)
    thread.start()
    monitor.until_any(lambda: monitor.voice() is None and len(monitor.wishes) == 2)
    thread.join(20)
    assert [wish for _, wish, _ in monitor.wishes] == [Wish.EXCLUDE_NODE, Wish.DO_NOT_RESTART]
    assert len(failed) == 1


def test_a_monitor_that_never_answers_holds_no_step_up_and_no_end(tmp_path: Path) -> None:
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deaf.bind(str(tmp_path / "deaf"))
    deaf.listen(1)  # and nobody ever reads
    environ = {wire.SOCKET_VARIABLE: str(tmp_path / "deaf"), wire.KEY_VARIABLE: "k", "RANK": "0"}
    with deaf, Rank(environ=environ, tick_s=0.0005) as rank:
        began = time.monotonic()
        while time.monotonic() - began < 0.5:  # long enough to fill the socket
            with rank.step():
                pass
        started = time.monotonic()
        for _ in range(1000):
            with rank.step():
                pass
        assert time.monotonic() - started < 1.0  # SEND_S would be twice that, once
        before = time.monotonic()
        rank.stop(wait_s=0.2)
        assert time.monotonic() - before < 2.0


def test_a_lost_connection_is_made_again(monitor: Monitor) -> None:
    with Rank(environ=monitor.environ, tick_s=0.01) as rank:
        monitor.until(lambda voice: bool(voice.section))
        monitor.ear.forget("key")
        assert monitor.voice() is None
        monitor.ear.expect("key", 1)
        rank.begin("weights")
        monitor.until(lambda voice: voice.section == "weights")


def test_strangers_and_former_starts_are_not_heard(monitor: Monitor) -> None:
    for said in (
        wire.encode(wire.Hello(key="other", rank=1, pid=1)),
        wire.encode(wire.State(key="key", section="step", since=0.0)),
        b"\xff\x00",
    ):
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stranger.settimeout(10)
        stranger.connect(monitor.ear.path)
        stranger.send(said)
        assert monitor.voice() is None
        assert stranger.recv(10) == b""  # hung up on
        stranger.close()


def test_a_forked_child_has_no_voice(monitor: Monitor) -> None:
    with Rank(environ=monitor.environ) as rank:
        monitor.until(lambda voice: bool(voice.section))
        pid = os.fork()
        if pid == 0:
            os._exit(0 if rank.ask(Wish.DO_NOT_RESTART, "x") is False else 1)
        assert os.waitpid(pid, 0)[1] == 0
        monitor.voice()
    assert monitor.wishes == []
    assert asked.read(monitor.environ[asked.VARIABLE]) == []
