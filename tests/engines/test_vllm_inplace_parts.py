"""Recovery in place without an engine: what a lost step leaves, which blocks are refilled, random states, freeing a collective."""

from __future__ import annotations

import asyncio
import importlib
import json
import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")
import torch
from vllm import SamplingParams

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.inplace import births, ghost, hang, http, states, support
from dynamo_gpu_ft.engines.vllm.inplace.front import GroupFront, GroupStatus
from dynamo_gpu_ft.engines.vllm.inplace.link import Armed, Condemn, Suspect, Told
from dynamo_gpu_ft.engines.vllm.inplace.undo import chains, resumed, written_blocks
from dynamo_gpu_ft.events import EventStream, RequestResumed, StateChanged, encode
from dynamo_gpu_ft.recovery.verdicts import Sentence

pytestmark = pytest.mark.engine


def names(*numbers: int) -> list[bytes]:
    return [bytes([n]) * 4 for n in numbers]


def test_tokens_in_flight_are_not_written_and_an_open_block_is_no_whole_one() -> None:
    assert written_blocks(computed=300, in_flight=300, block_size=32) == 0, (
        "a first prefill, in flight as a whole"
    )
    assert written_blocks(computed=341, in_flight=1, block_size=32) == 10
    assert written_blocks(computed=352, in_flight=1, block_size=32) == 10, (
        "its last token filled it"
    )
    assert written_blocks(computed=352, in_flight=0, block_size=32) == 11


def test_a_run_is_a_chain_from_the_beginning_and_carries_its_names() -> None:
    (run,), unwritten = chains([("a", [7, 8, 9, 10], names(1, 2, 3), 3)])
    assert (run.first, run.block_ids, run.parent_hash) == (0, (7, 8, 9), None)
    assert list(run.block_hashes) == names(1, 2, 3)
    assert unwritten == {10}


def test_blocks_that_two_requests_share_are_refilled_once_and_the_rest_hangs_on_them() -> None:
    runs, _ = chains([("a", [7, 8, 9], names(1, 2, 3), 3), ("b", [7, 8, 5], names(1, 2, 4), 3)])
    assert [r.block_ids for r in runs] == [(7, 8, 9), (5,)]
    assert (runs[1].first, runs[1].parent_hash) == (2, names(2)[0])


def test_a_block_that_another_request_was_about_to_fill_counts_as_unwritten() -> None:
    """Both were scheduled in the lost step: the second found the first one's blocks in the prefix cache, named but empty."""
    runs, unwritten = chains([("a", [7, 8], names(1, 2), 0), ("b", [7, 8, 9], names(1, 2, 3), 2)])
    assert runs == []
    assert unwritten == {7, 8, 9}


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 30), max_size=8, unique=True),
            st.integers(0, 10),
            st.integers(0, 10),
        ),
        max_size=6,
    )
)
def test_no_unwritten_block_is_ever_refilled(
    rows: list[tuple[list[int], int, int]],
) -> None:
    given_rows = [
        (str(i), ids, names(*range(1, 1 + min(named, len(ids)))), whole)
        for i, (ids, named, whole) in enumerate(rows)
    ]
    runs, unwritten = chains(given_rows)
    refilled = [block for run in runs for block in run.block_ids]
    assert not set(refilled) & unwritten
    assert all(run.parent_hash is None or run.first > 0 for run in runs)


def context(thread: int, threads: int, rank: int, size: int, stride: int) -> bytes:
    return (b"\1\1\0\0".ljust(12, b"\0") + struct.pack("<4i", thread, threads, rank, size)).ljust(
        stride, b"\0"
    )


@pytest.mark.parametrize("stride", [256, 320])
def test_contexts_are_found_at_their_spacing_and_only_where_they_are_what_we_know(
    stride: int,
) -> None:
    data = b"".join(context(i, 3, 1, 2, stride) for i in range(3)) + b"\0" * 999
    found = ghost.read_contexts(data, rank=1, size=2)
    assert found == ghost.Contexts((0, stride, 2 * stride))
    assert ghost.read_contexts(data, rank=0, size=2) is None, "another rank's file"
    assert ghost.read_contexts(data, rank=1, size=4) is None
    assert ghost.read_contexts(b"\0" * 4096, rank=0, size=2) is None
    assert ghost.read_contexts(b"", rank=0, size=2) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rank_that_spins_in_this_builds_collective_is_freed(threads: int) -> None:
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    if not hasattr(torch.ops._C, "init_shm_manager"):
        pytest.skip("this build of vLLM has no shared-memory collectives")
    assert ghost.self_test(torch.ops._C, threads) == ""
    assert not list(ghost.FOLDER.glob("gpu-ft-test-*"))


def request(seed: int | None, tokens: int, name: str = "a") -> states.RequestState:
    sampling = SamplingParams(temperature=0.8, seed=seed)
    return states.RequestState(name, [1, 2], list(range(tokens)), sampling)


def runner(generator: torch.Generator, tokens: int) -> Any:
    state = SimpleNamespace(output_token_ids=[0] * tokens, generator=generator)
    batch = SimpleNamespace(generators={0: generator}, req_ids=["a"])
    return SimpleNamespace(input_batch=batch, requests={"a": state})


def test_a_draw_that_nobody_received_is_taken_back() -> None:
    vocabulary, generator = 50, torch.Generator().manual_seed(7)
    draws, seen = states.Draws(), []
    for tokens in range(4):
        draws.before_sampling(runner(generator, tokens))
        seen.append(torch.empty(vocabulary).exponential_(generator=generator))
    for tokens in (
        2,
        3,
    ):  # the scheduler has that many; the fourth draw, perhaps the third too, was lost
        export = draws.export(runner(generator, 4))
        again = states.generator_of(request(7, tokens), export, vocabulary)
        assert torch.equal(torch.empty(vocabulary).exponential_(generator=again), seen[tokens])


def test_a_draw_that_the_lost_step_did_not_come_to_is_made_where_the_last_one_ended() -> None:
    generator = torch.Generator().manual_seed(7)
    torch.empty(50).exponential_(generator=generator)
    again = states.generator_of(request(7, 1), states.Draws().export(runner(generator, 1)), 50)
    assert torch.equal(again.get_state(), generator.get_state())


def test_draws_that_no_rank_remembers_are_made_again() -> None:
    vocabulary, generator = 50, torch.Generator().manual_seed(7)
    for _ in range(5):
        torch.empty(vocabulary).exponential_(generator=generator)
    nothing = states.RandomState(torch.get_rng_state())
    again = states.generator_of(request(7, 5), nothing, vocabulary)
    assert torch.equal(again.get_state(), generator.get_state())
    assert states.generator_of(request(None, 5), nothing, vocabulary) is None


def config_of(**changes: Any) -> Any:
    parallel: dict[str, Any] = {
        "tensor_parallel_size": 2, "pipeline_parallel_size": 1, "data_parallel_size": 1, "worker_cls": "auto",
    }  # fmt: skip
    scheduling = {"async_scheduling": False, "scheduler_cls": None}
    base: dict[str, Any] = {
        "speculative_config": None, "lora_config": None, "kv_transfer_config": None,
        "use_v2_model_runner": False,
        "model_config": SimpleNamespace(is_multimodal_model=False, runner_type="generate"),
        "cache_config": SimpleNamespace(enable_prefix_caching=True),
    }  # fmt: skip
    for name, value in changes.items():
        target = next((d for d in (parallel, scheduling) if name in d), base)
        target[name] = value
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        scheduler_config=SimpleNamespace(**scheduling),
        **base,
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tensor_parallel_size": 1}, "tensor_parallel_size"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2"),
        ({"data_parallel_size": 2}, "data_parallel_size is 2"),
        ({"async_scheduling": True}, "asynchronous"),
        ({"speculative_config": object()}, "speculative"),
        ({"lora_config": object()}, "LoRA"),
        ({"use_v2_model_runner": True}, "V2"),
        ({"scheduler_cls": "mine.Scheduler"}, "scheduler"),
        ({"worker_cls": "mine.Worker"}, "worker class"),
        ({"kv_transfer_config": SimpleNamespace(kv_connector="NixlConnector")}, "connector"),
    ],
)
def test_what_cannot_be_recovered_in_place_is_refused_with_its_reason(
    changes: dict[str, Any], word: str
) -> None:
    assert word in support.why_not(config_of(**changes), Config(), platform="cpu")
    assert support.why_not(config_of(), Config(), platform="cpu") == ""


def test_other_platforms_and_the_switch_refuse_too() -> None:
    assert "cuda" in support.why_not(config_of(), Config(), platform="cuda")
    assert "in_place" in support.why_not(config_of(), Config(in_place=False), platform="cpu")
    groups = [SimpleNamespace(kv_cache_groups=[1, 2])] * 2
    assert "2 KV cache groups" in support.why_not_cache(groups)


def test_the_server_follows_a_recovery_and_names_requests_as_clients_do() -> None:
    seen: list[Any] = []
    front = GroupFront(EventStream(seen.append))
    busy: list[bool] = []
    front.name_of = lambda request_id: request_id.removesuffix("-0")
    front.expect = busy.append
    front._take(Armed({0: 10, 1: 11}, standbys=1, epoch=7))
    assert (front.status.state, front.status.standbys, front.busy) == ("serving", 1, False)
    assert front.status.epoch == 7
    moved = StateChanged(engine="e", epoch=1, former="serving", happening="lost", state="suspect")
    front._take(Told(encode(moved)))
    assert (front.status.state, front.busy, busy) == ("suspect", True, [True])
    front._take(
        Told(
            encode(
                RequestResumed(
                    epoch=1,
                    request_id="a-0",
                    tokens_before=1,
                    tokens_restored=2,
                    tokens_recomputed=3,
                )
            )
        )
    )
    assert seen[-1].request_id == "a"


def test_nobody_is_replaced_when_nobody_would_be_left_or_nobody_listens() -> None:
    front = GroupFront(EventStream())
    health: Any = SimpleNamespace(choose=lambda ranks: (SimpleNamespace(missing=""), {}))
    front._take(Armed({0: 10, 1: 11}))
    assert not front.replace(Sentence("why"), health, 2)
    assert not front.replace(Sentence("why", shards=(0, 1)), health, 2)
    assert not front.replace(Sentence("why", shards=(1,)), health, 2), "no line to the engine"


def test_a_late_rank_is_asked_about_and_a_hurt_one_is_replaced() -> None:
    front, sent = GroupFront(EventStream()), list[Any]()
    health: Any = SimpleNamespace(choose=lambda ranks: (SimpleNamespace(missing=""), {"GPU": "2"}))
    front._connection = cast("Any", SimpleNamespace(send=sent.append, close=lambda: None))
    front._take(Armed({0: 10, 1: 11}))
    assert front.replace(Sentence("hang", shards=(0,), stuck=True), health, 2)
    assert front.replace(Sentence("both", shards=(0, 1)), health, 2)
    assert front.replace(Sentence("xid 79", shards=(1,)), health, 2)
    assert sent == [Suspect("hang"), Suspect("both"), Condemn({1: 11}, "xid 79", {"GPU": "2"})]


def test_the_rank_that_is_stopped_silent_or_elsewhere_holds_the_others_up() -> None:
    waits = hang.Shown("R", "__call__:/v/cpu_communicator.py:275 < all_reduce:...")
    busy = hang.Shown("R", "forward:/v/llama.py:10 < execute_model:...")
    assert list(hang.guilty({0: waits, 1: hang.Shown("T", None)})) == [1]
    assert list(hang.guilty({0: waits, 1: hang.Shown("S", None)})) == [1]
    assert "forward" in hang.guilty({0: waits, 1: busy})[1]
    assert hang.guilty({0: waits, 1: waits}) == {}, "nobody can tell"
    assert hang.guilty({0: busy, 1: busy}) == {}
    idle = hang.Shown("S", "dequeue:/v/shm_broadcast.py:7 < busy_loop:/g/survivor.py:9 < main:...")
    deep = hang.Shown("S", "all_reduce:... < _execute_worker_rpc:/v/m.py:1 < busy_loop:/g/s.py:9")
    assert hang.over({0: idle, 1: idle})
    assert not hang.over({0: idle, 1: deep})
    assert not hang.over({0: idle, 1: hang.Shown("T", None)})
    assert hang.guilty({0: hang.Shown("R", None), 1: hang.Shown("R", None)}) == {}


def test_a_resumed_request_is_told_with_what_the_step_counts_as_there() -> None:
    step = SimpleNamespace(
        scheduled_cached_reqs=SimpleNamespace(req_ids=["x", "a"], num_computed_tokens=[7, 4])
    )
    (event,) = resumed([request(None, 9), request(None, 1, "b")], step, epoch=3)
    assert (event.request_id, event.tokens_before) == ("a", 9)
    assert (event.tokens_restored, event.tokens_recomputed) == (4, 7)


class Core:
    """What the fault tolerance endpoints ask of the resilient core."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.status = GroupStatus(members={0: 10, 1: 11}, state="serving", epoch=3)
        self.looked = 0

    def standing(self) -> tuple[GroupStatus, bool, int]:
        return self.status, True, 2

    def look(self) -> None:
        self.looked += 1


class Client:
    def __init__(self) -> None:
        self.engine_core, self.calls = Core(), list[str]()

    async def pause_generation(self, **how: Any) -> None:
        self.calls.append(f"pause {how['mode']}")

    async def resume_generation(self) -> None:
        self.calls.append("resume")


def ask(
    client: Client, method: str, path: str, body: bytes = b"", headers: Any = ()
) -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []

    async def scenario() -> None:
        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        app = SimpleNamespace(state=SimpleNamespace(engine_client=client))
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "app": app}
        await http.FaultTolerance(inner)(scope, receive, send)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_status_says_who_holds_which_shard_and_whether_all_is_well() -> None:
    client = Client()
    status, answer = ask(client, "GET", http.STATUS)
    (engine,) = answer["engines"]
    assert (status, engine["status"], engine["members"]) == (200, "healthy", {"0": 10, "1": 11})
    client.engine_core.status.state = "rebuild"
    assert ask(client, "GET", http.STATUS)[1]["engines"][0]["status"] == "unhealthy"
    client.engine_core.failed = "three times"
    (engine,) = ask(client, "GET", http.STATUS)[1]["engines"]
    assert (engine["status"], engine["reason"]) == ("dead", "three times")


def test_pause_and_retry_are_accepted_and_scale_down_is_refused_with_the_way_out() -> None:
    client = Client()
    assert ask(client, "POST", http.APPLY, b'{"instruction": "pause"}')[0] == 202
    assert ask(client, "POST", http.APPLY, b'{"instruction": "retry", "params": {}}')[0] == 202
    assert client.calls == ["pause keep", "resume"]
    assert client.engine_core.looked == 1
    status, answer = ask(client, "POST", http.APPLY, b'{"instruction": "scale_down"}')
    assert status == 409
    assert "STANDBYS" in answer["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"instruction": "explode"}', b'{"instruction": "retry", "params": 1}',
     b'{"instruction": "retry", "x": "' + b"y" * http.LONGEST_BODY + b'"}'],
)  # fmt: skip
def test_a_malformed_instruction_is_told_what_is_wrong_and_does_nothing(body: bytes) -> None:
    client = Client()
    status, answer = ask(client, "POST", http.APPLY, body)
    assert status == 400
    assert answer["error"]
    assert client.calls == []


def test_other_paths_pass_other_methods_do_not_and_a_key_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ask(Client(), "GET", "/v1/models")[0] == 418
    assert ask(Client(), "POST", http.STATUS)[0] == 405
    monkeypatch.setattr(http, "keys", ["secret"])
    assert ask(Client(), "GET", http.STATUS)[0] == 401
    wrong = [(b"authorization", b"Bearer other")]
    assert ask(Client(), "POST", http.APPLY, b'{"instruction": "pause"}', wrong)[0] == 401
    assert (
        ask(Client(), "GET", http.STATUS, headers=[(b"authorization", b"Bearer secret")])[0] == 200
    )


def test_a_nursery_asks_this_torch_what_its_compiler_asks_first() -> None:
    """By names that are torch's own: another version may have others, and replacements would only be slower."""
    births.compiler_ready()
    isa = importlib.import_module("torch._inductor.cpu_vec_isa")
    assert isa.valid_vec_isa_list.cache_info().currsize == 1
