"""Replay of ledger records: exactly the open requests and their tokens, whatever else is in the log."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_gpu_ft.recovery.ledger import (
    ADMITTED,
    FINISHED,
    TOKENS,
    Admitted,
    Finished,
    Tokens,
    replay_records,
)

encode = msgspec.msgpack.encode


def admit(name: str) -> tuple[int, bytes]:
    return ADMITTED, encode(Admitted(name, [1, 2], {"temperature": 0}, "ns", 5.0))


def tokens(name: str, position: int, ids: list[int]) -> tuple[int, bytes]:
    return TOKENS, encode(Tokens(name, position, ids))


def finish(name: str) -> tuple[int, bytes]:
    return FINISHED, encode(Finished(name, "stop"))


def test_open_requests_come_back_with_all_their_tokens_in_order() -> None:
    log = [admit("a"), tokens("a", 0, [7]), admit("b"), tokens("a", 1, [8, 9])]
    found = replay_records(log)
    assert list(found) == ["a", "b"]
    assert found["a"].token_ids == [7, 8, 9]
    assert found["a"].prompt_token_ids == [1, 2]
    assert found["b"].token_ids == []


def test_finished_requests_are_gone() -> None:
    assert replay_records([admit("a"), tokens("a", 0, [7]), finish("a")]) == {}


def test_tokens_after_a_gap_are_not_guessed() -> None:
    assert replay_records([admit("a"), tokens("a", 3, [7])])["a"].token_ids == []


def test_records_of_unknown_requests_kinds_and_bytes_are_skipped() -> None:
    log = [tokens("ghost", 0, [1]), (99, b"?"), (TOKENS, b"\xff\xff"), finish("ghost"), admit("a")]
    assert list(replay_records(log)) == ["a"]


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["admit", "tokens", "finish"])), max_size=60
)


@settings(max_examples=200)
@given(events, st.integers(0, 2**31))
def test_replay_equals_a_model_of_the_same_events(log: list[tuple[str, str]], seed: int) -> None:
    model: dict[str, list[int]] = {}
    records = []
    for index, (name, what) in enumerate(log):
        if what == "admit" and name not in model:
            model[name] = []
            records.append(admit(name))
        elif what == "tokens" and name in model:
            ids = [(seed + index) % 1000]
            records.append(tokens(name, len(model[name]), ids))
            model[name] = model[name] + ids
        elif what == "finish" and name in model:
            del model[name]
            records.append(finish(name))
    found = replay_records(records)
    assert {name: request.token_ids for name, request in found.items()} == model
