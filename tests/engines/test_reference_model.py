"""The reference engine's arithmetic: tokens of transformers, however the model is cut up, and the same bits whatever else is computed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dynamo_gpu_ft.cli.models import smollm2, tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference import split  # noqa: E402
from dynamo_gpu_ft.engines.reference.sampling import Sampling, draw, uniform  # noqa: E402
from dynamo_gpu_ft.engines.reference.tiles import Piece  # noqa: E402
from tests.engines.reference_world import (  # noqa: E402
    BLOCK,
    ThreadEngine,
    greedy_of_transformers,
    tiny_mixtral,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PROMPT = [(7 * j) % 290 + 5 for j in range(37)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixtral(tmp_path_factory.mktemp("mixtral"))


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (3, 1), (4, 1), (1, 3), (2, 2)])
def test_a_llama_gives_the_tokens_of_transformers_however_it_is_cut(tp: int, pp: int) -> None:
    wanted = greedy_of_transformers(tiny_llama(), PROMPT, 24)
    assert ThreadEngine(tiny_llama(), tp, pp).generate(PROMPT, 24) == wanted


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (3, 1), (2, 2)])
def test_a_mixtral_gives_the_tokens_of_transformers_however_it_is_cut(
    mixtral: Path, tp: int, pp: int
) -> None:
    wanted = greedy_of_transformers(mixtral, PROMPT, 24)
    assert ThreadEngine(mixtral, tp, pp).generate(PROMPT, 24) == wanted


def test_smollm2_gives_the_tokens_of_transformers() -> None:
    prompt = [504, 3575, 282, 4649, 314, 253, 260, 1250, 28]
    wanted = greedy_of_transformers(smollm2(), prompt, 8)
    assert ThreadEngine(smollm2(), 3, 2).generate(prompt, 8) == wanted


def test_a_row_has_the_same_bits_prefilled_or_decoded_alone_or_in_company(
    rng: random.Random,
) -> None:
    alone = ThreadEngine(tiny_llama(), 2)
    tokens = alone.generate(PROMPT, 40, chunk=5)
    known = [*PROMPT, *tokens[:-1]]
    other = ThreadEngine(tiny_llama(), 2)
    blocks = tuple(range(20, 20 + -(-len(known) // BLOCK)))
    at = 0
    while at < len(
        known
    ):  # the same tokens as prompt, in pieces of any size, beside another request's
        end = min(len(known), at + rng.randrange(1, 14))
        company = Piece(
            request="x",
            start=0,
            tokens=tuple(rng.randrange(300) for _ in range(rng.randrange(1, 30))),
            blocks=(40, 41),
        )
        piece = Piece(request="r", start=at, tokens=tuple(known[at:end]), blocks=blocks)
        other.step([company, piece] if rng.random() < 0.5 else [piece, company])
        at = end
    for mine, theirs in zip(alone.caches, other.caches, strict=True):
        for index, block in enumerate(blocks):
            rows = min(BLOCK, len(known) - index * BLOCK)
            assert torch.equal(mine[:, 1 + index, :, :, :rows], theirs[:, block, :, :, :rows])


def test_a_draw_depends_on_seed_request_and_position_alone() -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3))
    sampling = Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=7)
    first = [draw(logits, sampling, "a", position) for position in range(200)]
    assert first == [draw(logits, sampling, "a", position) for position in range(200)]
    assert len(set(first)) > 10
    assert first != [draw(logits, sampling, "b", position) for position in range(200)]
    top = set(torch.topk(logits, 50).indices.tolist())
    assert set(first) <= top
    draws = [uniform(1, "a", position) for position in range(4000)]
    assert 0.48 < sum(draws) / len(draws) < 0.52


def test_uneven_cuts_hold_everything_once_and_leave_survivors_most_of_theirs() -> None:
    shape = ThreadEngine(tiny_llama()).shape
    whole = split.even(shape, 4, 1)
    for lost in range(4):
        cut = split.without(whole, shape, [lost])
        for ranges, total in ((cut.heads, 4), (cut.columns, shape.inner), (cut.vocab, shape.vocab)):
            held = [number for begin, to in ranges for number in range(begin, to)]
            assert held == list(range(total))
            assert ranges[lost][0] == ranges[lost][1]
    wanted = ThreadEngine(tiny_llama()).generate(PROMPT, 16)
    assert (
        ThreadEngine(tiny_llama(), cuts=split.without(whole, shape, [1])).generate(PROMPT, 16)
        == wanted
    )
