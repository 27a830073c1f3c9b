"""What a monitor is told of a rank: never more than one message a tick, never a section that is over, and what it can conclude from it."""

from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.nvrx import voices, wire
from dynamo_gpu_ft.nvrx.limits import Limits
from dynamo_gpu_ft.nvrx.progress import Mirror, Now, of_heartbeat
from dynamo_gpu_ft.nvrx.voices import Voice
from dynamo_gpu_ft.nvrx.wishes import Wish

TICK_S = 0.1


@dataclass
class Server:
    """NVRx's rank monitor, as far as its rules go: a section opens once, and closes only when it is open."""

    open: dict[str, float] = field(default_factory=dict)
    beats: list[float] = field(default_factory=list)

    def hear(self, kind: str, section: str, at: float) -> None:
        if kind == "beat":
            self.beats.append(at)
        elif kind == "open":
            assert section not in self.open
            self.open[section] = at
        else:
            del self.open[section]


@given(
    st.lists(st.tuples(st.sampled_from(["step", "weights", "idle", "own"]), st.integers(1, 30))),
    st.floats(0.1, 2.0),
)
@example([("step", 24), ("step", 5)], 0.1)  # a beat is due at every tick
@example([("step", 1), ("step", 2), ("step", 1), ("step", 1)], 0.125)  # and here between two
def test_a_long_stay_is_told_within_three_ticks_and_its_end_within_two(
    stays: list[tuple[str, int]], beat_every_s: float
) -> None:
    known = frozenset({"step", "weights", "idle"})
    mirror, server, tick = Mirror(beat_every_s, known), Server(), 0
    for turn, (section, ticks) in enumerate(stays):
        now = Now(section, turn)
        for age in range(ticks):
            at = tick * TICK_S
            message = mirror.next(at, now)
            if message is not None:
                server.hear(*message, at)
            # Of the former stay nothing is open any more, at once; this one is, once it has lasted.
            assert set(server.open) <= {section}
            if age >= 4 and section in known:
                assert section in server.open
            tick += 1
    gaps = [b - a for a, b in zip(server.beats, server.beats[1:], strict=False)]
    # A beat waits for its tick, and then for a section that begins and one that ends, no longer.
    assert all(gap < beat_every_s + 3 * TICK_S + 1e-6 for gap in gaps)


@given(st.integers(1, 200))
def test_a_thousand_short_steps_cost_only_heartbeats(steps: int) -> None:
    mirror = Mirror(1.0)
    said = [mirror.next(tick * TICK_S, Now("step", 100 * tick)) for tick in range(steps)]
    kinds = [message.kind for message in said if message]
    assert set(kinds) == {"beat"}
    assert len(kinds) <= steps * TICK_S + 2


def test_the_step_heartbeat_of_an_engine_is_progress_too() -> None:
    slots = [
        {"rank": 0, "phase": "idle", "step": 4, "began": 1.0},
        {"rank": 1, "phase": "step", "step": 5, "began": 2.0},
    ]
    now = of_heartbeat(lambda: slots, 1)
    first = now()
    assert first.section == "step"
    assert now() == first
    slots[1]["step"] = 6
    assert now() != first
    slots[1]["phase"] = "busy"
    assert now().section == "compile"
    assert of_heartbeat(lambda: slots, 0)() == Now("idle", 0)
    assert of_heartbeat(lambda: slots, 7)() == Now("idle", 0)


LIMITS = Limits(config=Config(), sections={"step": 2.0, "idle": None}, heartbeat_s=1.0)


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.sampled_from(["step", "idle", "own", ""]))
def test_a_rank_hangs_exactly_when_it_is_silent_or_in_a_limited_section_for_too_long(
    silent: float, inside: float, section: str
) -> None:
    at = 2e4
    voice = Voice(rank=1, pid=7, heard=at - silent, section=section, since=at - inside)
    why = voices.hangs(voice, at, LIMITS)
    assert bool(why) == (silent > 1.0 or (section == "step" and inside > 2.0))
    voice.over = True
    assert voices.hangs(voice, at, LIMITS) == ""


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_section_that_claims_to_begin_later_than_now_begins_now(at: float, since: float) -> None:
    voice = Voice(rank=0, pid=1, heard=0.0)
    voices.hear(voice, wire.State(key="k", section="step", since=since), at)
    assert voice.heard == at
    assert voice.since == min(at, since)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_packet_are_nobodys_words(data: bytes) -> None:
    packet = wire.decode(data)
    assert packet is None or wire.decode(wire.encode(packet)) == packet


def test_packets_come_back_as_they_went() -> None:
    for packet in (
        wire.Hello(key="k", rank=1, pid=2),
        wire.State(key="k", section="step", since=1.5),
        wire.Ask(key="k", wish=Wish.DO_NOT_RESTART, reason="x" * 1000),
        wire.Bye(key="k"),
    ):
        assert wire.decode(wire.encode(packet)) == packet
        assert len(wire.encode(packet)) < wire.LONGEST


def test_the_real_heartbeat_file_says_where_its_rank_is(tmp_path: Path) -> None:
    core = native.load()
    path = str(tmp_path / "x.beats")
    beat = core.Beat(path, rank=1, ranks=2)
    now = of_heartbeat(lambda: core.look_at_heartbeats(path), 1)
    beat.idle()
    assert now().section == "idle"
    beat.begin(3)
    first = now()
    assert first.section == "step"
    assert now() == first
    beat.end()
    beat.begin(3)
    assert now().section == "step"
    assert now() != first
    beat.end()
    beat.busy(10.0)
    assert now().section == "compile"
    beat.leave()
    assert now().section == "idle"
