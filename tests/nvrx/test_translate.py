"""Limits in NVRx's words, for any limits and any package: nothing is invented, nothing finite becomes endless, idle never ends."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.nvrx import look, translate
from dynamo_gpu_ft.nvrx.limits import Limits, limits_of, parse_section
from dynamo_gpu_ft.nvrx.look import Offered
from dynamo_gpu_ft.nvrx.translate import Job

SECONDS = st.floats(0.1, 1e5, allow_nan=False)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True).filter(lambda name: name != "idle")


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    own = draw(st.dictionaries(NAMES, st.none() | SECONDS, max_size=4))
    known = limits_of(Config.load({"max_restarts": draw(st.integers(0, 50))}), own)
    return Limits(
        config=known.config,
        sections=known.sections,
        heartbeat_s=draw(SECONDS),
        stop_s=draw(SECONDS),
        no_restart_code=draw(st.integers(1, 125)),
    )


OPTIONAL_FLAGS = (
    "--term-timeout",
    "--workers-stop-timeout",
    "--ft-no-restart-exit-code",
    "--log-dir",
)
OPTIONAL_FIELDS = ("skip_section_response", "max_no_progress_cycles", "enable_nic_monitor")


@st.composite
def packages(draw: st.DrawFn) -> Offered:
    flags = {draw(st.sampled_from(spellings)) for spellings in look.FLAGS}
    return Offered(
        where="/x",
        version="any",
        flags=frozenset(flags | draw(st.sets(st.sampled_from(OPTIONAL_FLAGS)))),
        fields=frozenset({*look.FIELDS, *draw(st.sets(st.sampled_from(OPTIONAL_FIELDS)))}),
        client={name: list(parameters) for name, parameters in look.CLIENT.items()},
        actions=frozenset(look.ACTIONS),
    )


def flags_of(argv: tuple[str, ...]) -> dict[str, str]:
    before = argv[: argv.index("--no-python")]
    return dict(part.split("=", 1) for part in before if part.startswith("--"))


@given(limits(), packages(), st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_only_what_is_offered_is_used_and_every_limit_arrives(
    given_limits: Limits, offered: Offered, command: list[str]
) -> None:
    job = Job(tuple(command), ranks=3, endpoint="h:1", name="n")
    made = translate.launch(job, given_limits, offered, "/f/c.yaml")
    assert look.missing(offered) == []
    flags = flags_of(made.argv)
    assert set(flags) <= offered.flags
    assert made.argv[made.argv.index("--no-python") + 1 :] == tuple(command)
    assert flags["--max-restarts"] == str(given_limits.config.max_restarts)
    assert flags["--nproc-per-node"] == "3"
    config: dict[str, Any] = dict(made.config["fault_tolerance"])
    assert set(config) <= offered.fields
    assert config["rank_section_timeouts"] == given_limits.sections
    assert config["rank_section_timeouts"]["idle"] is None
    assert config["rank_out_of_section_timeout"] is None
    assert config["rank_heartbeat_timeout"] == given_limits.heartbeat_s
    finite = [s for s in (*given_limits.sections.values(), given_limits.heartbeat_s) if s]
    assert 0.1 <= config["workload_check_interval"] <= max(0.1, min(finite) / 4)
    if "--term-timeout" in flags:
        assert int(flags["--term-timeout"]) >= given_limits.stop_s
    for name in ("--term-timeout", "--ft-no-restart-exit-code"):
        assert (name in flags) != any(note.startswith(name) for note in made.notes)


def test_a_field_of_ones_own_is_passed_on_and_a_wrong_or_a_decided_one_is_refused() -> None:
    offered = Offered(
        where="/x",
        version="1",
        flags=frozenset(spellings[0] for spellings in look.FLAGS),
        fields=frozenset({*look.FIELDS, "enable_nic_monitor"}),
    )
    job = Job(("x",), extra={"enable_nic_monitor": False})
    made = translate.launch(job, limits_of(Config()), offered, "/c")
    assert made.config["fault_tolerance"]["enable_nic_monitor"] is False
    with pytest.raises(ConfigError, match="no such field.*'nic'"):
        translate.launch(Job(("x",), extra={"nic": 1}), limits_of(Config()), offered, "/c")
    with pytest.raises(ConfigError, match="decided by this project's limits"):
        extra = {"rank_heartbeat_timeout": 1}
        translate.launch(Job(("x",), extra=extra), limits_of(Config()), offered, "/c")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"idle": 5.0}, "the idle section cannot have a limit"),
        ({"step": 0.0}, "a finite number of seconds, more than 0"),
        ({"step": float("inf")}, "a finite number of seconds, more than 0"),
        ({"Step": 1.0}, "name of a section is malformed"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_its_name(
    sections: dict[str, float | None], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        limits_of(Config(), sections)


def test_sections_are_read_as_they_are_written() -> None:
    assert parse_section("step=2.5") == ("step", 2.5)
    assert parse_section("weights=none") == ("weights", None)
    for text in ("step", "step=", "step=soon", "none"):
        with pytest.raises(ConfigError, match="NAME=SECONDS"):
            parse_section(text)
