"""What is wished, decided and answered: each verdict's wish, each end's exit status, the strongest of several."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.health.incidents import Action, Unusable
from dynamo_gpu_ft.nvrx import asked
from dynamo_gpu_ft.nvrx.limits import Limits
from dynamo_gpu_ft.nvrx.outcome import Outcome, after_loss, exit_words, of_launcher
from dynamo_gpu_ft.nvrx.wishes import (
    Wish,
    strongest,
    wish_of,
    wish_of_error,
    wish_of_sentence,
)
from dynamo_gpu_ft.recovery.plan import Restart
from dynamo_gpu_ft.recovery.verdicts import Sentence
from dynamo_gpu_ft.topology import Device
from tests.nvrx.incidents import incident

LIMITS = Limits(config=Config.load({"max_restarts": 2, "restart_window_s": 100}))
WISHES = st.lists(st.tuples(st.sampled_from(list(Wish)), st.text(max_size=5)), max_size=4)


@pytest.mark.parametrize(
    ("unusable", "action", "wish"),
    [
        (Unusable.NOTHING, Action.REPORT, Wish.CONTINUE),
        (Unusable.NOTHING, Action.DRAIN_AND_RESET_GPU, Wish.CONTINUE),
        (Unusable.CONTEXT, Action.RESTART_CONTEXT, Wish.CONTINUE),
        (Unusable.LINK, Action.REBUILD_GROUP, Wish.CONTINUE),
        (Unusable.LINK, Action.RESET_FABRIC, Wish.EXCLUDE_NODE),
        (Unusable.GPU, Action.RESET_GPU, Wish.EXCLUDE_NODE),
        (Unusable.NODE, Action.REBOOT_NODE, Wish.EXCLUDE_NODE),
    ],
)
def test_a_reset_or_a_reboot_costs_the_node_and_a_dead_context_does_not(
    unusable: Unusable, action: Action, wish: Wish
) -> None:
    assert wish_of(incident(unusable, action))[0] is wish
    assert wish_of(incident(unusable, action, cleared=True))[0] is Wish.CONTINUE
    elsewhere = incident(unusable, action, shards=())
    expected = Wish.EXCLUDE_NODE if unusable is Unusable.NODE else Wish.CONTINUE
    assert wish_of(elsewhere)[0] is expected


def test_a_sentence_with_fenced_devices_excludes_and_a_failed_recovery_is_not_restarted() -> None:
    fenced = Sentence("xid 79", fence=(Device(index=0),))
    assert wish_of_sentence(fenced) == (Wish.EXCLUDE_NODE, "xid 79")
    assert wish_of_sentence(Sentence("hang")) == (Wish.CONTINUE, "hang")
    assert wish_of_error(RecoveryFailed("no"))[0] is Wish.DO_NOT_RESTART
    assert wish_of_error(RuntimeError("no"))[0] is Wish.CONTINUE


@given(WISHES, st.lists(st.floats(0, 99), max_size=6), st.integers(-64, 125))
def test_after_a_loss_there_is_a_restart_only_where_nothing_speaks_against_it(
    wishes: list[tuple[Wish, str]], ages: list[float], status: int
) -> None:
    losses = sorted(1000.0 - age for age in [*ages, 0.0])
    plan = after_loss(losses, [status], wishes, now=1000.0, reason="why", limits=LIMITS)
    wish, _ = strongest(wishes)
    if status == 93 or wish is Wish.DO_NOT_RESTART:
        assert isinstance(plan, Outcome)
        assert plan.status == 93
    elif wish is Wish.EXCLUDE_NODE or len(losses) > 2:
        assert isinstance(plan, Outcome)
        assert plan.status == 1
    else:
        assert isinstance(plan, Restart)


@given(WISHES, st.integers(-64, 125), st.sampled_from([0, 2, 15]))
def test_the_launchers_status_is_told_apart_by_what_was_asked_for(
    wishes: list[tuple[Wish, str]], status: int, by_signal: int
) -> None:
    answer = of_launcher(status, wishes, limits=LIMITS, by_signal=by_signal)
    wish, _ = strongest(wishes)
    if by_signal:
        assert answer.status == 128 + by_signal
    elif wish is Wish.DO_NOT_RESTART or status == 93:
        assert answer.status == 93
    elif wish is Wish.CONTINUE and status == 0:
        assert answer == Outcome(0)
    else:
        assert answer.status == 1
        assert answer.reason


def test_ends_are_named() -> None:
    assert exit_words(1, -9) == "rank 1 was ended by SIGKILL"
    assert exit_words(1, -63) == "rank 1 was ended by signal 63"
    assert exit_words(0, 3) == "rank 0 exited with status 3"


def test_wishes_outlive_their_ranks_and_torn_lines_count_for_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "asked")
    assert asked.read(path) == []
    asked.make(path)
    asked.note(path, asked.Asked(wish=Wish.EXCLUDE_NODE, reason="reset", rank=1))
    with open(path, "ab") as file:
        file.write(b'{"wish":"do_not_restart","reas\n\xff\n')
    asked.note(path, asked.Asked(wish=Wish.CONTINUE, reason="x"))
    assert asked.read(path) == [(Wish.EXCLUDE_NODE, "reset"), (Wish.CONTINUE, "x")]
