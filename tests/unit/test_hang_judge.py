"""The decision whether a rank hangs, with simulated time: a million steps with jitter, spikes and pauses, then real hangs."""

from __future__ import annotations

import random

import pytest

from dynamo_gpu_ft import native

core = native.load()
LOOK = 0.02
IDLE, STEP, BUSY = 1, 2, 3
FINE, UNEASY, HUNG = 0, 1, 2
DECODE, PREFILL = 3, 11


class World:
    """One simulated rank and its judge: time passes in looks, everything else is told."""

    def __init__(self, rng: random.Random) -> None:
        self.random = rng
        self.judge = core.HangJudge(after=0.45, floor=0.5, unknown=60, silent=0.45)
        self.now = 1000.0
        self.next_look = self.now
        self.step = 0
        self.worst = FINE
        self.stolen = 0.0

    def spend(self, seconds: float, phase: int, kind: int = 0, limit: float = 0.0) -> None:
        """This phase for so long; the judge looks every 20 ms, sometimes late."""
        began, until = self.now, self.now + seconds
        while self.next_look < until:
            self.look(self.next_look, phase, began, kind, limit)
            self.next_look += LOOK if self.random.random() < 0.99 else self.random.uniform(0, 0.3)
        self.now = until

    def look(
        self, at: float, phase: int, began: float, kind: int = 0, limit: float = 0.0
    ) -> tuple[int, str, float]:
        told = self.judge.look(
            at, phase=phase, step=self.step, began=began, kind=kind, limit=limit, tick=at, stolen=self.stolen
        )  # fmt: skip
        self.worst = max(self.worst, told[0])
        return told

    def one_step(self, kind: int, seconds: float) -> None:
        self.step += 1
        self.spend(seconds, STEP, kind)
        self.judge.learn(kind, seconds)

    def usual_step(self) -> None:
        """Decode around 30 ms, prefill around 300 ms, both with a long tail; now and then an announced pause to compile."""
        lot = self.random.random()
        if lot < 0.03:
            self.one_step(PREFILL, 0.3 * self.random.lognormvariate(0, 0.25))
        else:
            self.one_step(DECODE, 0.03 * self.random.lognormvariate(0, 0.3))
        if lot > 0.99995:
            self.spend(self.random.uniform(5, 60), BUSY, limit=300)
        self.spend(self.random.uniform(0, 0.004), IDLE)

    def hang(self, kind: int) -> tuple[float, str]:
        """A step that never ends: seconds until it is called hung, and why."""
        self.step += 1
        began = self.now
        while True:
            verdict, cause, _ = self.look(self.next_look, STEP, began, kind)
            if verdict == HUNG:
                return self.next_look - began, cause
            self.next_look += LOOK


def simulate(world: World, steps: int) -> None:
    for _ in range(steps):
        world.usual_step()


@pytest.mark.slow
def test_a_million_steps_with_jitter_spikes_and_announced_pauses_raise_no_alarm(
    rng: random.Random,
) -> None:
    world = World(rng)
    simulate(world, 1_000_000)
    assert world.worst < HUNG


@pytest.mark.parametrize("kind", [DECODE, PREFILL])
def test_a_step_that_never_ends_hangs_half_a_second_after_what_is_usual(
    rng: random.Random, kind: int
) -> None:
    world = World(rng)
    simulate(world, 5000)
    usual = world.judge.usual(kind)
    late = max(
        0.0, world.next_look - world.now
    )  # until the first look at it: the judge's own lateness
    took, cause = world.hang(kind)
    assert cause == "step"
    assert usual < took <= max(usual, 0.05) + 0.5 + late
    assert took >= 0.5 - LOOK, "not before the floor"


def test_a_step_of_an_unknown_kind_has_a_long_limit(rng: random.Random) -> None:
    world = World(rng)
    simulate(world, 200)
    took, _ = world.hang(kind=20)
    assert 55 < took < 65


def test_announced_work_hangs_only_beyond_its_own_limit(rng: random.Random) -> None:
    world = World(rng)
    simulate(world, 200)
    world.spend(29.5, BUSY, limit=30)
    assert world.worst < HUNG
    world.spend(40, BUSY, limit=30)
    assert world.worst == HUNG


def test_what_the_engine_waits_for_a_processor_is_forgiven_but_not_for_ever(
    rng: random.Random,
) -> None:
    world = World(rng)
    simulate(world, 500)
    plain, _ = world.hang(DECODE)
    world.spend(0.1, IDLE)
    world.step += 1
    began = world.next_look
    while True:
        verdict, _, _ = world.look(world.next_look, STEP, began, DECODE)
        if verdict == HUNG:
            break
        world.next_look += LOOK
        world.stolen += LOOK  # another process has the processor all the time
    starved = world.next_look - began
    assert plain * 2 < starved < plain * 6


def test_a_judge_that_was_stopped_with_everything_else_convicts_nobody(rng: random.Random) -> None:
    world = World(rng)
    simulate(world, 500)
    world.step += 1
    began = world.now
    for _ in range(5):
        world.look(world.next_look, STEP, began, DECODE)
        world.next_look += LOOK
    world.next_look += 3600  # the machine was suspended
    assert world.look(world.next_look, STEP, began, DECODE)[0] < HUNG


def test_a_rank_that_shows_no_sign_of_life_is_hung_even_when_idle() -> None:
    judge = core.HangJudge()
    told = []
    for i in range(100):
        now = 50 + i * LOOK
        told.append(judge.look(now, phase=IDLE, step=7, began=50.0, tick=min(now, 50.5)))
    hung = [i * LOOK for i, each in enumerate(told) if each[0] == HUNG]
    assert told[20][0] == FINE
    assert 0.9 < hung[0] <= 1.0
    assert told[-1][1] == "silent"


def test_a_device_that_stops_counting_hangs_although_the_host_goes_on() -> None:
    """The host queues a step every 20 ms; the device takes 200 ms for ten of them, which is its own usual time."""
    judge = core.HangJudge()
    for _ in range(100):
        judge.learn(DECODE, 0.002)

    def look(number: int, done: int) -> tuple[int, str, float]:
        now = 50 + number * LOOK
        return judge.look(
            now, phase=STEP, step=number + 1, began=now, kind=DECODE, tick=now, device_step=done
        )  # fmt: skip

    for number in range(1000):
        assert look(number, max(1, number // 10 * 10))[0] == FINE
    verdicts = [look(number, 990) for number in range(1000, 1100)]
    hung = [number for number, each in enumerate(verdicts) if each[0] == HUNG]
    assert 0.6 < (hung[0] + 10) * LOOK <= 0.2 + 0.05 + 0.5
    assert verdicts[hung[0]][1] == "device"


def test_a_device_of_which_nothing_is_known_yet_has_a_long_limit() -> None:
    judge = core.HangJudge(unknown=60)
    for number in range(1000):
        now = 50 + number * LOOK
        told = judge.look(now, phase=IDLE, step=5, began=50.0, tick=now, device_step=4)
        assert told[0] == FINE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300, 1e300])
def test_hostile_times_give_some_answer(value: float) -> None:
    judge = core.HangJudge()
    judge.learn(DECODE, value)
    for phase in range(5):
        for now in (0.0, 1.0, value, 2.0):
            verdict, _, _ = judge.look(
                now, phase=phase, step=2**64 - 1, began=value, kind=4_000_000_000, limit=value, tick=value
            )  # fmt: skip
            assert verdict in (FINE, UNEASY, HUNG)
