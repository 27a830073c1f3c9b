"""The settings: precedence, parsing by unit, and how a mistake is answered."""

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.config import ENV_PREFIX, Config, help_text, markdown_table
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.units import UnitError, format_bytes, parse

KEYS = [field.name for field in dataclasses.fields(Config)]


def test_without_any_source_the_defaults_hold() -> None:
    config = Config.load({}, {})
    assert config == Config()
    assert config.arena_bytes == 4 << 30
    assert config.metrics_port == 0


def test_explicit_settings_come_before_the_environment_and_that_before_the_default() -> None:
    environ = {"DYN_GPU_FT_ARENA_NAME": "env", "DYN_GPU_FT_COPY_THREADS": "2"}
    config = Config.load({"arena_name": "dict"}, environ)
    assert (config.arena_name, config.copy_threads) == ("dict", 2)


def test_an_explicit_none_counts_as_absent() -> None:
    assert Config.load({"arena_name": None}, {"DYN_GPU_FT_ARENA_NAME": "env"}).arena_name == "env"


@pytest.mark.parametrize("environ", [{}, {"DYN_GPU_FT_ARENA_BYTE": "1"}])
def test_an_unknown_key_is_refused_with_the_nearest_right_one(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load({} if environ else {"arena_byte": 1}, environ)
    assert caught.value.value == "arena_byte"
    assert "'arena_bytes'" in str(caught.value)
    assert ("DYN_GPU_FT_ARENA_BYTE" in str(caught.value)) == bool(environ)


def test_variables_of_others_are_not_looked_at() -> None:
    others = {"DYN_SYSTEM_PORT": "x", "VLLM_PORT": "y", "DYN_GPU_FT_BUILD_DIGEST": "crc32c"}
    assert Config.load({}, others) == Config()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arena_bytes", "4 gigs"),
        ("arena_bytes", "-1"),
        ("arena_bytes", 4e9),
        ("arena_bytes", True),
        ("arena_bytes", "1.5B"),
        ("load_timeout_s", "soon"),
        ("load_timeout_s", "nan"),
        ("load_timeout_s", float("inf")),
        ("copy_threads", "1.5"),
        ("copy_threads", ""),
        ("snapshot", "maybe"),
        ("snapshot", 2),
        ("arena_name", "../etc"),
        ("arena_name", ""),
        ("arena_dir", "a\0b"),
        ("arena_dir", 3),
        ("metrics_host", "two words"),
        ("metrics_port", "http"),
    ],
)
def test_a_malformed_value_is_refused_and_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load({key: value}, {})
    assert repr(key) in str(caught.value)
    assert caught.value.rule


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arena_bytes", 0),
        ("copy_threads", 0),
        ("copy_threads", 65),
        ("metrics_port", 65536),
        ("recovery_deadline_s", 0),
        ("backoff_initial_s", -0.1),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        Config.load({key: value}, {})


def test_keys_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="backoff_max_s"):
        Config.load({"backoff_initial_s": 40}, {})


def test_settings_travel_to_another_process_as_plain_values() -> None:
    config = Config.load({"arena_bytes": "2GiB", "takeover": "yes", "load_timeout_s": "250ms"}, {})
    assert Config.load(config.as_dict(), {}) == config


def test_there_are_at_most_56_keys_and_each_says_what_it_means() -> None:
    assert len(KEYS) <= 57
    for name in KEYS:
        assert f"`{name}`" in markdown_table()
        assert f"  {name} " in help_text()
    assert ENV_PREFIX in help_text()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("1.5KiB", 1536),
        ("2MB", 2_000_000),
        (" 7 ", 7),
        (7, 7),
    ],
)
def test_sizes_are_read_with_binary_and_decimal_units(text: Any, value: int) -> None:
    assert parse("bytes", text) == value


@given(st.integers(0, 2**80))
def test_any_whole_number_of_bytes_is_read_exactly(count: int) -> None:
    assert parse("bytes", str(count)) == count
    assert parse("bytes", f"{count}KiB") == count * 1024


@given(st.sampled_from(["bytes", "seconds", "count", "bool", "name"]), st.text(max_size=12))
def test_no_text_makes_a_parser_fail_in_another_way(unit: str, text: str) -> None:
    with contextlib.suppress(UnitError):
        parse(unit, text)


def test_bytes_are_shown_for_people() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 4 << 30, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "4.0 GiB",
        "5.0 TiB",
    ]
