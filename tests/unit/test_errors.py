"""The errors: what they say, and that they survive the trip between processes."""

import pickle

import pytest

from dynamo_gpu_ft import errors
from dynamo_gpu_ft.errors import (
    ArenaError,
    CertificateError,
    ConfigError,
    CoreUnavailable,
    GpuFtError,
    HealthError,
    NotProtected,
    NvrxError,
    PlacementError,
    PortableError,
    RecoveryFailed,
    SlotError,
    StoreUnavailable,
    WeightsError,
)

KINDS = [
    ArenaError, CertificateError, ConfigError, CoreUnavailable, HealthError, NotProtected, NvrxError, PlacementError,
    PortableError, RecoveryFailed, SlotError, StoreUnavailable, WeightsError,
]  # fmt: skip


def test_a_message_names_what_where_value_rule_and_remedy() -> None:
    error = ArenaError(
        "the arena is too small",
        where="/dev/shm/x",
        value=17,
        rule="it needs room for two blocks",
        remedy="raise arena_bytes",
    )
    assert str(error) == (
        "the arena is too small (at /dev/shm/x): got 17; it needs room for two blocks. Try: raise arena_bytes"
    )


def test_parts_that_were_not_given_leave_no_trace() -> None:
    assert str(NotProtected("the engine keeps no KV")) == "the engine keeps no KV"


def test_a_value_of_zero_or_empty_is_shown() -> None:
    assert "got 0" in str(GpuFtError("x", value=0))
    assert "got ''" in str(GpuFtError("x", value=""))


def test_a_huge_value_is_cut_in_the_middle() -> None:
    text = str(GpuFtError("x", value="a" * 100_000 + "END"))
    assert len(text) < 300
    assert "END" in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling_whole(kind: type[GpuFtError]) -> None:
    error = kind("what", where="where", value=[1], rule="rule", remedy="remedy")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_the_set_is_closed_every_kind_is_known_here() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type)}
    assert {kind for kind in defined if issubclass(kind, GpuFtError)} == {GpuFtError, *KINDS}
